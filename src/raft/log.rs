//! A node's log: openraft's view of a [`Log`].
//!
//! An entry's payload is the whole openraft entry, its log id included; index and term stand in the log's own entry too.
//! What openraft wants to know of the log besides lies in the hard state: node, machine, vote, committed and purged log id.
//!
//! Invariants:
//!
//! - Log ids in memory are those of the log as accepted: they are changed under the log's lock, in the step that accepts.
//! - The committed log id never makes a frame of its own while the log is open: it goes with the next batch.
//! - The purged log id and the compaction it tells of are one batch; so are a truncation and the compaction that needs it.
//! - Nobody waits with a lock held, and nothing blocks the executor.

use std::fmt::{self, Debug};
use std::ops::{Bound, Range, RangeBounds};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::{Bytes, BytesMut};
use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{
    Entry, ErrorSubject, ErrorVerb, LogId, LogState, OptionalSend, RaftLogReader, RaftTypeConfig, StorageError, Vote,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::arrivals::Arrivals;
use super::codec::{self, CodecError};
use super::error::{RaftError, io_error, storage_error};
use crate::config::{Config, Durability};
use crate::disk::Disk;
use crate::entry::LogEntry;
use crate::error::Error;
use crate::format::frame::operation_bytes;
use crate::log::{Batch, Callback, Log, Pending, disk_of};
use crate::segment::recover::RecoveryReport;

const NODE: &[u8] = b"raft/node";
const VOTE: &[u8] = b"raft/vote";
const COMMITTED: &[u8] = b"raft/committed";
const PURGED: &[u8] = b"raft/purged";
/// As a driver has it, so that neither takes the other's directory.
const MACHINE: &[u8] = b"machine";

/// How much is read at once, and sent to another node at once, of entries that have more.
const READ_BYTES: usize = 1 << 20;

/// What is not openraft's business yet.
type Outcome<T> = std::result::Result<T, RaftError>;

type Result<T, C> = std::result::Result<T, StorageError<<C as RaftTypeConfig>::NodeId>>;

/// The log of a node, as openraft wants it: give it to [`Raft::new`](openraft::Raft::new).
///
/// Clones share the log. See [the module](super) for what is durable when, and what its errors mean.
pub struct RaftLog<C: RaftTypeConfig> {
    inner: Arc<Inner<C>>,
}

struct Inner<C: RaftTypeConfig> {
    log: Log,
    /// Locked under the log's lock, and never the other way round.
    ids: Mutex<Ids<C>>,
    failure: Arc<Failure>,
    /// Of the machine beside it, if that is this crate's.
    arrivals: OnceLock<Arrivals>,
}

/// The first error that openraft was told of.
struct Failure {
    first: OnceLock<Arc<RaftError>>,
    directory: PathBuf,
}

impl Failure {
    fn of_log(&self, error: Error) -> RaftError {
        RaftError::of_log(error, &self.directory)
    }

    fn note(&self, error: RaftError) {
        // Later ones follow from it, mostly.
        let _ = self.first.set(Arc::new(error));
    }
}

/// What is known of the log without reading it.
struct Ids<C: RaftTypeConfig> {
    vote: Option<Vote<C::NodeId>>,
    /// Of the last entry.
    last: Option<LogId<C::NodeId>>,
    purged: Option<LogId<C::NodeId>>,
    committed: Option<LogId<C::NodeId>>,
    /// The one that the log was given last.
    committed_in_log: Option<LogId<C::NodeId>>,
    /// Where entries are encoded.
    buffer: BytesMut,
}

impl<C: RaftTypeConfig> Clone for RaftLog<C> {
    fn clone(&self) -> RaftLog<C> {
        RaftLog { inner: self.inner.clone() }
    }
}

impl<C: RaftTypeConfig> Debug for RaftLog<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RaftLog").field("log", &self.inner.log).finish()
    }
}

impl<C: RaftTypeConfig<Entry = Entry<C>>> RaftLog<C> {
    /// Opens the log of a node in a directory, for a node whose state machine is openraft's own kind and keeps its own
    /// snapshots; else as [`RaftLog::open_on`]. Blocks.
    ///
    /// # Errors
    ///
    /// Those of [`RaftLog::open_on`].
    pub fn open(
        dir: impl AsRef<Path>,
        node_id: C::NodeId,
        kind: &str,
        config: Config,
    ) -> std::result::Result<(RaftLog<C>, RecoveryReport), RaftError> {
        let disk = disk_of(dir.as_ref(), &config).map_err(RaftError::Log)?;
        RaftLog::open_on(disk, node_id, kind, config)
    }

    /// Opens the log of a node on a disk, or makes it where there is none; the machine's kind is part of what it is. Blocks.
    ///
    /// # Errors
    ///
    /// Those of [`RaftError`]; [`Error::Config`] for a durability other than [`Durability::Sync`]: a node that forgets what
    /// it acknowledged can lose what the cluster decided.
    pub fn open_on(
        disk: Arc<dyn Disk>,
        node_id: C::NodeId,
        kind: &str,
        config: Config,
    ) -> std::result::Result<(RaftLog<C>, RecoveryReport), RaftError> {
        if config.durability != Durability::Sync {
            let why = "the log of a node must be durable when it says so: use `Durability::Sync`";
            return Err(RaftError::Log(Error::Config(why.into())));
        }
        let path = disk.path().to_path_buf();
        let (log, report) = Log::open_on(disk, config).map_err(|error| RaftError::of_log(error, &path))?;
        let opening = Opening { log: &log, path: path.clone() };
        opening.check_owner(&node_id, &format!("raft/{kind}"))?;
        let ids = opening.ids::<C>()?;
        let failure = Arc::new(Failure { first: OnceLock::new(), directory: path });
        Ok((
            RaftLog { inner: Arc::new(Inner { log, ids: Mutex::new(ids), failure, arrivals: OnceLock::new() }) },
            report,
        ))
    }
}

impl<C: RaftTypeConfig> RaftLog<C> {
    /// The log below, for its counters and its driver. Writing to it makes openraft's view of it wrong.
    pub fn log(&self) -> &Log {
        &self.inner.log
    }

    /// The first error that openraft was told of by this log. It keeps errors as text: what kind it was, and so what to do
    /// next, is seen here.
    pub fn failure(&self) -> Option<Arc<RaftError>> {
        self.inner.failure.first.get().cloned()
    }

    /// The largest entry that this log can take, in bytes of its encoded form: the command's own encoding, and what
    /// openraft adds, which is less than 100 bytes where the node id is a number. It depends on the size of the segments,
    /// which may be another on another node.
    ///
    /// A larger one stops the node that is to append it, each time it is sent: refuse such a command before it is
    /// proposed.
    pub fn entry_bytes_max(&self) -> usize {
        let bytes = (self.inner.log.batch_bytes_max() & !7).saturating_sub(operation_bytes(0));
        bytes.min(u32::MAX.into()) as usize
    }

    /// Writes what was only kept in memory, drains and closes the log; openraft's calls fail from then on. Blocks: shut the
    /// node down first, and call it where that may be.
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`] where not everything accepted could be made durable.
    pub fn close(self) -> std::result::Result<(), Error> {
        self.inner.leave_committed();
        self.inner.log.clone().close()
    }
}

/// A log that was just opened, before it is known what it is.
struct Opening<'a> {
    log: &'a Log,
    path: PathBuf,
}

impl Opening<'_> {
    /// Checks that the log is this node's and this machine's; makes a new one theirs.
    fn check_owner<N: openraft::NodeId>(&self, node_id: &N, kind: &str) -> Outcome<()> {
        let Some(owner) = self.read::<N>(NODE, "node id")? else { return self.found(node_id, kind) };
        if owner != *node_id {
            let (found, expected) = (owner.to_string(), node_id.to_string());
            return Err(RaftError::OtherNode { path: self.path.clone(), found, expected });
        }
        self.check_kind(kind)
    }

    fn check_kind(&self, kind: &str) -> Outcome<()> {
        match self.log.get_meta(MACHINE) {
            Some(found) if found != kind.as_bytes() => {
                let found = String::from_utf8_lossy(&found).into_owned();
                Err(RaftError::OtherMachine { path: self.path.clone(), found, expected: kind.into() })
            }
            _ => Ok(()),
        }
    }

    fn found<N: openraft::NodeId>(&self, node_id: &N, kind: &str) -> Outcome<()> {
        self.check_kind(kind)?;
        let state = self.log.state();
        let found = match () {
            _ if state.last.is_some() => Some("it has entries and no node id"),
            _ if state.compacted.is_some() => Some("it was compacted and has no node id"),
            _ if !self.log.meta().is_empty() => Some("it has hard state and no node id"),
            _ => None,
        };
        if let Some(found) = found {
            return Err(RaftError::NoNode { path: self.path.clone(), found });
        }
        let node =
            codec::encode(node_id, &mut BytesMut::new()).map_err(|source| self.undecodable("node id", source))?;
        let batch = Batch::new().put_meta(NODE, &node).put_meta(MACHINE, kind.as_bytes());
        self.log.write(batch).map(drop).map_err(RaftError::Log)
    }

    fn ids<C: RaftTypeConfig<Entry = Entry<C>>>(&self) -> Outcome<Ids<C>> {
        let state = self.log.state();
        let purged: Option<LogId<C::NodeId>> = self.read(PURGED, "purged log id")?;
        if state.compacted.map(|(index, _)| index) > purged.as_ref().map(|id| id.index) {
            let found = "it was compacted by something else than a node";
            return Err(RaftError::NoNode { path: self.path.clone(), found });
        }
        let last = state.last.map(|(index, _)| self.log_id::<C>(index)).transpose()?;
        let committed: Option<LogId<C::NodeId>> = self.read(COMMITTED, "committed log id")?;
        Ok(Ids {
            vote: self.read(VOTE, "vote")?,
            last,
            purged,
            committed_in_log: committed.clone(),
            committed,
            buffer: BytesMut::new(),
        })
    }

    fn log_id<C: RaftTypeConfig<Entry = Entry<C>>>(&self, index: u64) -> Outcome<LogId<C::NodeId>> {
        let entry = self.log.get(index).map_err(|error| RaftError::of_log(error, &self.path))?;
        let entry = decode::<C>(&entry).map_err(|source| self.undecodable("last entry", source))?;
        Ok(entry.log_id)
    }

    fn read<T: DeserializeOwned>(&self, key: &[u8], what: &'static str) -> Outcome<Option<T>> {
        let bytes = self.log.get_meta(key);
        bytes.map(|bytes| codec::decode(&bytes)).transpose().map_err(|source| self.undecodable(what, source))
    }

    fn undecodable(&self, what: &'static str, source: CodecError) -> RaftError {
        RaftError::Undecodable { path: self.path.clone(), what, source }
    }
}

/// The openraft entry that an entry of the log holds.
fn decode<C: RaftTypeConfig<Entry = Entry<C>>>(found: &LogEntry) -> std::result::Result<Entry<C>, CodecError> {
    let entry: Entry<C> = codec::decode(&found.command)?;
    let LogId { leader_id, index } = &entry.log_id;
    if (*index, leader_id.term) != (found.index, found.term) {
        let why = format!("it has log id {}, at index {} in term {}", entry.log_id, found.index, found.term);
        return Err(CodecError::Malformed(why));
    }
    Ok(entry)
}

impl<C: RaftTypeConfig> Inner<C> {
    fn ids(&self) -> MutexGuard<'_, Ids<C>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accepts a batch, the committed log id with it, and notes what that changes in the step that accepts.
    async fn accept(&self, batch: Batch, note: impl FnOnce(&mut Ids<C>) + Send) -> Outcome<Pending> {
        self.accept_within(u64::MAX, batch, None, note).await
    }

    /// As [`accept`](Inner::accept); the committed log id goes with it where it takes no more than so many bytes.
    async fn accept_within(
        &self,
        room: u64,
        batch: Batch,
        callback: Option<Callback>,
        note: impl FnOnce(&mut Ids<C>) + Send,
    ) -> Outcome<Pending> {
        let (batch, committed) = self.ids().ride(batch, room)?;
        let note = |_: &Pending| {
            let mut ids = self.ids();
            ids.committed_in_log = committed;
            note(&mut ids);
        };
        self.log.accept_async(batch, callback, note).await.map_err(|error| self.of_log(error))
    }

    /// Lets the log have the committed log id, where it did not go with anything yet.
    fn leave_committed(&self) {
        let Ok((batch, committed)) = self.ids().ride(Batch::new(), u64::MAX) else { return };
        if batch.is_empty() {
            return;
        }
        // It waits for room, as the close that follows waits for the disk.
        match self.log.submit(batch) {
            Ok(_) => self.ids().committed_in_log = committed,
            // It only spares the next open what a leader tells it anyway.
            Err(error) => tracing::debug!(%error, "the committed log id was not written at the end"),
        }
    }

    /// Reads entries of a range, at least one of what is there, not many more than have payloads of so many bytes.
    async fn read(&self, range: Range<u64>, bytes_max: usize) -> std::result::Result<Vec<LogEntry>, Error> {
        self.log.get_entries_async(range, bytes_max).await
    }

    /// The log id at an index.
    async fn log_id(&self, index: u64) -> Outcome<Option<LogId<C::NodeId>>>
    where
        C: RaftTypeConfig<Entry = Entry<C>>,
    {
        match self.log.get_async(index).await {
            Ok(entry) => Ok(Some(self.decode(&entry)?.log_id)),
            Err(Error::Compacted { .. } | Error::NotWritten { .. }) => Ok(None),
            Err(error) => Err(self.of_log(error)),
        }
    }

    fn decode(&self, entry: &LogEntry) -> Outcome<Entry<C>>
    where
        C: RaftTypeConfig<Entry = Entry<C>>,
    {
        decode::<C>(entry).map_err(|source| RaftError::Undecodable {
            path: self.failure.directory.clone(),
            what: "entry",
            source,
        })
    }

    fn of_log(&self, error: Error) -> RaftError {
        self.failure.of_log(error)
    }

    /// Tells openraft of an error, and remembers the first one.
    fn fail(&self, subject: ErrorSubject<C::NodeId>, verb: ErrorVerb, error: RaftError) -> StorageError<C::NodeId> {
        let told = storage_error(subject, verb, &error);
        self.failure.note(error);
        told
    }
}

impl<C: RaftTypeConfig> Drop for Inner<C> {
    fn drop(&mut self) {
        self.leave_committed();
    }
}

impl<C: RaftTypeConfig> Ids<C> {
    /// Adds the committed log id to a batch, where the log does not have it and it fits; gives the one that the log has
    /// then.
    fn ride(&mut self, batch: Batch, room: u64) -> Outcome<(Batch, Option<LogId<C::NodeId>>)> {
        if self.committed == self.committed_in_log {
            return Ok((batch, self.committed.clone()));
        }
        let batch = match &self.committed {
            Some(committed) => {
                let bytes = encode(committed, &mut self.buffer)?;
                if operation_bytes(COMMITTED.len() + bytes.len()) > room {
                    return Ok((batch, self.committed_in_log.clone()));
                }
                batch.put_meta_shared(COMMITTED, bytes)
            }
            None => batch.delete_meta(COMMITTED),
        };
        Ok((batch, self.committed.clone()))
    }

    /// The entries that the log does not have behind it already, in batches of so many bytes at the most, unless one
    /// entry alone has more: it is refused as that. There is a last batch, though it may be empty.
    fn pieces_of(&mut self, entries: impl Iterator<Item = Entry<C>>, bytes_max: u64) -> Outcome<Vec<Piece<C>>>
    where
        C: RaftTypeConfig<Entry = Entry<C>>,
    {
        let (mut pieces, mut piece) = (Vec::with_capacity(1), Piece::default());
        for entry in entries {
            let LogId { leader_id, index } = &entry.log_id;
            if self.purged.as_ref().is_some_and(|purged| *index <= purged.index) {
                continue;
            }
            let payload = encode(&entry, &mut self.buffer)?;
            let bytes = operation_bytes(payload.len());
            if piece.bytes > 0 && piece.bytes + bytes > bytes_max {
                pieces.push(std::mem::take(&mut piece));
            }
            piece.batch = piece.batch.push_entry(LogEntry::new(leader_id.term, *index, payload));
            piece.bytes += bytes;
            piece.last = Some(entry.log_id);
        }
        pieces.push(piece);
        Ok(pieces)
    }
}

/// What is appended in one batch.
struct Piece<C: RaftTypeConfig> {
    batch: Batch,
    bytes: u64,
    /// The last of its entries.
    last: Option<LogId<C::NodeId>>,
}

impl<C: RaftTypeConfig> Default for Piece<C> {
    fn default() -> Piece<C> {
        Piece { batch: Batch::new(), bytes: 0, last: None }
    }
}

fn encode<T: Serialize>(value: &T, buffer: &mut BytesMut) -> Outcome<Bytes> {
    codec::encode(value, buffer).map_err(RaftError::Unencodable)
}

impl<C: RaftTypeConfig<Entry = Entry<C>>> RaftLogReader<C> for RaftLog<C> {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry<C>>, C>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let Range { mut start, end } = half_open(range);
        let mut entries = Vec::new();
        while start < end {
            match self.inner.read(start..end, READ_BYTES).await {
                Ok(found) => {
                    start += found.len() as u64;
                    self.decode_into(&mut entries, &found)?;
                }
                Err(Error::Compacted { first }) if entries.is_empty() && first > start => start = first,
                // What was purged meanwhile is a gap, and what follows it is no part of the answer.
                Err(Error::NotWritten { .. } | Error::Compacted { .. }) => break,
                Err(error) => return Err(self.cannot_read(start, self.inner.of_log(error))),
            }
        }
        Ok(entries)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry<C>>, C> {
        if start >= end {
            return Ok(Vec::new());
        }
        let mut entries = Vec::new();
        match self.inner.read(start..end, READ_BYTES).await {
            Ok(found) => self.decode_into(&mut entries, &found)?,
            // A leader that purges what it is about to send finds out by itself, and sends a snapshot. What follows the
            // gap must not be taken for what was asked for.
            Err(Error::NotWritten { .. } | Error::Compacted { .. }) => {}
            Err(error) => return Err(self.cannot_read(start, self.inner.of_log(error))),
        }
        Ok(entries)
    }
}

impl<C: RaftTypeConfig<Entry = Entry<C>>> RaftLog<C> {
    fn decode_into(&self, entries: &mut Vec<Entry<C>>, found: &[LogEntry]) -> Result<(), C> {
        entries.reserve(found.len());
        for entry in found {
            entries.push(self.inner.decode(entry).map_err(|error| self.cannot_read(entry.index, error))?);
        }
        Ok(())
    }

    fn cannot_read(&self, index: u64, error: RaftError) -> StorageError<C::NodeId> {
        self.inner.fail(ErrorSubject::LogIndex(index), ErrorVerb::Read, error)
    }

    fn cannot_write(&self, error: RaftError) -> StorageError<C::NodeId> {
        self.inner.fail(ErrorSubject::Logs, ErrorVerb::Write, error)
    }
}

/// A range with both ends.
fn half_open(range: impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&end) => end.saturating_add(1),
        Bound::Excluded(&end) => end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl<C: RaftTypeConfig<Entry = Entry<C>>> RaftLogStorage<C> for RaftLog<C> {
    type LogReader = RaftLog<C>;

    async fn get_log_state(&mut self) -> Result<LogState<C>, C> {
        let ids = self.inner.ids();
        let (last, purged) = (ids.last.clone(), ids.purged.clone());
        Ok(LogState { last_log_id: last.or(purged.clone()), last_purged_log_id: purged })
    }

    async fn get_log_reader(&mut self) -> RaftLog<C> {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<C::NodeId>) -> Result<(), C> {
        let saved = self.write_vote(vote).await;
        saved.map_err(|error| self.inner.fail(ErrorSubject::Vote, ErrorVerb::Write, error))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<C::NodeId>>, C> {
        Ok(self.inner.ids().vote.clone())
    }

    async fn save_committed(&mut self, committed: Option<LogId<C::NodeId>>) -> Result<(), C> {
        self.inner.ids().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId<C::NodeId>>, C> {
        Ok(self.inner.ids().committed.clone())
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<C>) -> Result<(), C>
    where
        I: IntoIterator<Item = Entry<C>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let flushed = Flushed(Some(callback));
        let bytes_max = self.inner.log.batch_bytes_max();
        let pieces = self.inner.ids().pieces_of(entries.into_iter(), bytes_max);
        let mut pieces = pieces.map_err(|error| self.cannot_write(error))?;
        let last = pieces.pop().unwrap_or_default();
        for piece in pieces {
            self.take_in(piece, bytes_max, None).await?;
        }
        // Not of the log: the writer thread must not be the one to close it.
        let failure = self.inner.failure.clone();
        let callback = Box::new(move |result: std::result::Result<(), Error>| flushed.settle(&failure, result));
        // Durable in the order accepted: the last one tells of all.
        self.take_in(last, bytes_max, Some(callback)).await
    }

    async fn truncate(&mut self, log_id: LogId<C::NodeId>) -> Result<(), C> {
        self.cut(log_id).await.map_err(|error| self.cannot_write(error))
    }

    async fn purge(&mut self, log_id: LogId<C::NodeId>) -> Result<(), C> {
        self.drop_upto(log_id).await.map_err(|error| self.cannot_write(error))
    }
}

impl<C: RaftTypeConfig<Entry = Entry<C>>> RaftLog<C> {
    /// Appends one batch.
    async fn take_in(&self, piece: Piece<C>, bytes_max: u64, callback: Option<Callback>) -> Result<(), C> {
        let Piece { batch, bytes, last } = piece;
        let note = |ids: &mut Ids<C>| ids.last = last.or(ids.last.take());
        let accepted = self.inner.accept_within(bytes_max.saturating_sub(bytes), batch, callback, note).await;
        accepted.map(drop).map_err(|error| self.cannot_write(error))
    }

    async fn write_vote(&self, vote: &Vote<C::NodeId>) -> Outcome<()> {
        let bytes = encode(vote, &mut self.inner.ids().buffer)?;
        let note = |ids: &mut Ids<C>| ids.vote = Some(vote.clone());
        let pending = self.inner.accept(Batch::new().put_meta_shared(VOTE, bytes), note).await?;
        pending.await.map_err(|error| self.inner.of_log(error))
    }

    /// Removes the entry with a log id and all after it. Not waited for: whatever is acknowledged later is so after it.
    async fn cut(&self, log_id: LogId<C::NodeId>) -> Outcome<()> {
        let first_removed = log_id.index;
        if self.inner.ids().last.as_ref().is_none_or(|last| last.index < first_removed) {
            return Ok(());
        }
        let before = match first_removed.checked_sub(1) {
            Some(before) => self.inner.log_id(before).await?,
            None => None,
        };
        let note = |ids: &mut Ids<C>| ids.last = before;
        self.inner.accept(Batch::new().truncate_from(first_removed), note).await.map(drop)
    }

    /// Drops the entries up to and including a log id, which may be past the last one. Not waited for, as a truncation.
    async fn drop_upto(&self, log_id: LogId<C::NodeId>) -> Outcome<()> {
        if let Some(arrivals) = self.inner.arrivals.get()
            && !arrivals.allow(log_id.index).await
        {
            return Err(RaftError::NotInstalled { path: self.inner.failure.directory.clone(), index: log_id.index });
        }
        // What follows is kept if it was written by somebody who had that entry. The order of log ids does not tell it
        // alone: a leader that nobody heard of may have left a shorter log of a higher term.
        let follows = |last: &LogId<C::NodeId>| last.index > log_id.index && *last > log_id;
        let keeps = self.inner.ids().last.as_ref().is_some_and(follows);
        self.compact(log_id, keeps).await.map(drop)
    }

    /// Drops the entries up to a log id, and all that follow unless they are kept. Nothing is done where it was purged.
    async fn compact(&self, log_id: LogId<C::NodeId>, keeps: bool) -> Outcome<Option<Pending>> {
        let first = self.inner.log.state().first;
        let (batch, last) = {
            let mut ids = self.inner.ids();
            if ids.purged.as_ref().is_some_and(|purged| log_id.index <= purged.index) {
                return Ok(None);
            }
            let bytes = encode(&log_id, &mut ids.buffer)?;
            // Only where the compaction alone would leave entries, or would take the log back to an earlier term: it
            // needs room for data otherwise, and there may be none.
            let is_in_the_way = |last: &LogId<C::NodeId>| {
                last.index >= log_id.index && *last != log_id || last.leader_id.term > log_id.leader_id.term
            };
            let batch = match &ids.last {
                Some(last) if !keeps && is_in_the_way(last) => Batch::new().truncate_from(first),
                _ => Batch::new(),
            };
            let batch = batch.compact_to(log_id.index, log_id.leader_id.term).put_meta_shared(PURGED, bytes);
            (batch, ids.last.clone().filter(|_| keeps))
        };
        let note = |ids: &mut Ids<C>| (ids.last, ids.purged) = (last, Some(log_id));
        self.inner.accept(batch, note).await.map(Some)
    }

    /// Nothing is purged from now on under a snapshot that is on its way, before that is durable.
    pub(super) fn purge_behind(&self, arrivals: Arrivals) {
        // It is called once.
        let _ = self.inner.arrivals.set(arrivals);
    }

    /// Drops a log that does not go on from a snapshot that was restored: openraft compares log ids where it starts, and
    /// takes a shorter log of a higher term, or entries that the snapshot's took the place of, for what follows. Blocks.
    pub(super) fn begin_after(&self, snapshot: &LogId<C::NodeId>) -> Outcome<()> {
        if crate::block_on::block_on(self.goes_on_from(snapshot))? {
            return Ok(());
        }
        let dropping = crate::block_on::block_on(self.compact(snapshot.clone(), false))?;
        dropping.map_or(Ok(()), |dropping| dropping.wait().map_err(|error| self.inner.of_log(error)))
    }

    async fn goes_on_from(&self, snapshot: &LogId<C::NodeId>) -> Outcome<bool> {
        let Some(last) = self.inner.ids().last.clone() else { return Ok(true) };
        // An entry that is not there any more was purged under another snapshot.
        let at = |found: Option<LogId<C::NodeId>>| found.is_none_or(|found| found == *snapshot);
        Ok(last.index >= snapshot.index && at(self.inner.log_id(snapshot.index).await?))
    }
}

/// Who waits for an append, and is told exactly once: also where it is never accepted.
struct Flushed<C: RaftTypeConfig>(Option<LogFlushed<C>>);

impl<C: RaftTypeConfig> Flushed<C> {
    /// Runs on the writer thread.
    fn settle(mut self, failure: &Failure, result: std::result::Result<(), Error>) {
        let Some(callback) = self.0.take() else { return };
        callback.log_io_completed(result.map_err(|error| {
            let told = io_error(&error);
            failure.note(failure.of_log(error));
            told
        }));
    }
}

impl<C: RaftTypeConfig> Drop for Flushed<C> {
    fn drop(&mut self) {
        if let Some(callback) = self.0.take() {
            let error = "the entries were not accepted: the append itself says why";
            callback.log_io_completed(Err(std::io::Error::other(error)));
        }
    }
}
