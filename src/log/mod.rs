//! The log as callers hold it: one handle, cheap to clone, safe to share.
//!
//! The only module with threads: the writer ([`writer`]) carries frames to the disk, the helper ([`helper`]) prepares,
//! seals and drops segments, the watcher ([`stall`]) tells when the disk does not answer either of them, and a reader
//! thread serves asynchronous reads once there are any.

mod ack;
mod batch;
mod core;
mod helper;
mod log_storage;
#[cfg(all(test, ringwal_shuttle))]
pub(crate) mod models;
mod open;
mod pending;
mod reader;
mod shelf;
mod stall;
mod subscribe;
pub(crate) mod tail;
pub(crate) mod view;
mod writer;

use std::fmt;
use std::future::Future;
use std::ops::{Range, RangeBounds};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
#[cfg(feature = "openraft")]
use std::task::Context;
use std::task::{Poll, Waker, ready};

use bytes::Bytes;

pub use self::batch::Batch;
pub(crate) use self::core::Callback;
use self::core::{Core, CoreGuard, Hold, Shared, ToHelper, ToWriter};
use self::open::Threads;
pub(crate) use self::open::disk_of;
pub use self::pending::Pending;
pub use self::reader::Entries;
pub use self::subscribe::{Event, EventStream, Subscription, Upto};
use crate::config::{Config, Durability};
use crate::disk::IoMode;
use crate::engine::sequencer::{Accepted, Request};
use crate::entry::LogEntry;
use crate::error::{Error, Result};
use crate::format::names;
use crate::segment::recover::RecoveryReport;
use crate::stats::Stats;
use crate::sync::{Mistake, Mutex, planted, thread};

/// One consistent look at a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogState {
    /// The lowest index that can be read; where there is no entry, the index the next one gets.
    pub first: u64,
    /// Index and term of the last accepted entry.
    pub last: Option<(u64, u64)>,
    /// Index and term of the compaction point.
    pub compacted: Option<(u64, u64)>,
    /// The last index that survives power loss and was not truncated since.
    pub durable: Option<u64>,
}

/// What a segment is to the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentRole {
    /// Full; nothing is written to it any more.
    Sealed,
    /// The one frames go to.
    Active,
    /// Prepared, not yet used.
    Spare,
}

/// A segment of the log, for people who look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its number.
    pub sequence: u64,
    /// Its file.
    pub file: PathBuf,
    /// Size of the file in bytes.
    pub bytes: u64,
    /// Block size in bytes.
    pub block_bytes: u32,
    /// Bytes from the start of the file to the end of the last frame; of a sealed segment, the whole.
    pub used_bytes: u64,
    /// The entries in it that can be read.
    pub entries: Range<u64>,
    /// What it is.
    pub role: SegmentRole,
    /// Number of its first frame.
    pub first_frame: Option<u64>,
}

/// An append-only log in a directory.
///
/// Clones share the log; the last one to be dropped drains, syncs and closes it, as [`Log::close`] does with a report.
///
/// ```
/// # fn main() -> Result<(), ringwal::Error> {
/// # let dir = tempfile::tempdir().unwrap();
/// use ringwal::{Config, Log};
///
/// let (log, report) = Log::open(dir.path().join("log"), Config::default().segment_bytes(1 << 20))?;
/// assert!(report.created);
/// let index = log.append("hello")?; // durable when it returns
/// assert_eq!(log.get(index)?.command, "hello");
/// log.close()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Log {
    handle: Arc<Handle>,
}

/// Closes the log when the last clone goes.
struct Handle {
    shared: Arc<Shared>,
    threads: Mutex<Option<Threads>>,
}

impl Log {
    /// Opens the log in a directory; creates directory and log where there is none.
    ///
    /// Runs recovery: finds the end of what was written, makes it durable, and cuts what a crash left unfinished. The
    /// report says what it did.
    ///
    /// # Errors
    ///
    /// - [`Error::Config`] for settings out of their range;
    /// - [`Error::Locked`] where another writer has the log;
    /// - [`Error::Foreign`] where the directory holds something else;
    /// - [`Error::Unsupported`] where a newer version wrote it;
    /// - [`Error::Corrupt`] where acknowledged data is damaged: nothing was changed then;
    /// - [`Error::NoSpace`], [`Error::Io`].
    pub fn open(dir: impl AsRef<Path>, config: Config) -> Result<(Log, RecoveryReport)> {
        let (shared, threads, report) = open::open(dir.as_ref(), config)?;
        Ok((Log::new(shared, Some(threads)), report))
    }

    /// Opens the log on a given disk, such as a simulated one; else as [`Log::open`].
    ///
    /// # Errors
    ///
    /// Those of [`Log::open`].
    pub fn open_on(disk: Arc<dyn crate::disk::Disk>, config: Config) -> Result<(Log, RecoveryReport)> {
        let (shared, threads, report) = open::open_on(disk, config)?;
        Ok((Log::new(shared, Some(threads)), report))
    }

    /// Runs recovery as [`Log::open_on`] does, writes included, and gives the log without its threads: it can be read
    /// and not be written. For tests that try very many states of a disk.
    ///
    /// # Errors
    ///
    /// Those of [`Log::open`].
    #[cfg(feature = "sim")]
    pub fn recover_on(disk: Arc<dyn crate::disk::Disk>, config: Config) -> Result<(Log, RecoveryReport)> {
        let (shared, report) = open::recover_on(disk, config, false)?;
        Ok((Log::new(shared, None), report))
    }

    /// As [`Log::recover_on`], but only looks: nothing is written.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn look_on(disk: Arc<dyn crate::disk::Disk>, config: Config) -> Result<(Log, RecoveryReport)> {
        let (shared, report) = open::recover_on(disk, config, true)?;
        Ok((Log::new(shared, None), report))
    }

    /// Opens a log for reading, also beside a live writer: takes no lock, writes nothing, and shows every whole frame
    /// that was there when it looked. What a writer appends later is not seen; open again to see it.
    ///
    /// # Errors
    ///
    /// [`Error::Foreign`] where there is no log; else those of [`Log::open`]. Writing calls return
    /// [`Error::ReadOnly`].
    pub fn open_read_only(dir: impl AsRef<Path>) -> Result<(Log, RecoveryReport)> {
        let (shared, report) = open::open_read_only(dir.as_ref())?;
        Ok((Log::new(shared, None), report))
    }

    /// Opens the log on a given disk for reading; else as [`Log::open_read_only`].
    ///
    /// # Errors
    ///
    /// Those of [`Log::open_read_only`].
    #[cfg(any(test, feature = "sim"))]
    pub fn open_read_only_on(disk: Arc<dyn crate::disk::Disk>) -> Result<(Log, RecoveryReport)> {
        let (shared, report) = open::read_only_on(disk)?;
        Ok((Log::new(shared, None), report))
    }

    fn new(shared: Arc<Shared>, threads: Option<Threads>) -> Log {
        Log { handle: Arc::new(Handle { shared, threads: Mutex::new(threads) }) }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    /// Appends one entry and waits until it is acknowledged; returns its index.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`], [`Error::NoSpace`], [`Error::Poisoned`], [`Error::Closed`], [`Error::ReadOnly`],
    /// [`Error::InCallback`]; [`Error::Io`] where a segment is needed and the process has no file descriptor or memory for
    /// it just now: nothing was appended, and later calls may go through.
    pub fn append(&self, command: impl Into<Bytes>) -> Result<u64> {
        self.write(Batch::new().push(command)).map(|indexes| indexes.start)
    }

    /// Appends one entry; the future is done when it is acknowledged.
    ///
    /// The entry is accepted when the future is first polled and there is room. Dropping the future after that does
    /// not take it back. No runtime is assumed.
    ///
    /// # Errors
    ///
    /// Those of [`Log::append`].
    pub fn append_async<C: Into<Bytes>>(&self, command: C) -> impl Future<Output = Result<u64>> + Send + use<C> {
        let written = self.write_async(Batch::new().push(command));
        async move { written.await.map(|indexes| indexes.start) }
    }

    /// Appends entries that bring their index and term, all or none; waits until they are acknowledged.
    ///
    /// # Errors
    ///
    /// [`Error::Gap`], [`Error::TermFell`], and those of [`Log::append`].
    pub fn append_entries(&self, entries: Vec<LogEntry>) -> Result<Range<u64>> {
        self.write(Batch { requests: entries.into_iter().map(Request::Entry).collect() })
    }

    /// Writes a batch and waits until it is acknowledged; returns the indexes of its entries.
    ///
    /// # Errors
    ///
    /// Those of [`Log::submit`], and [`Error::Poisoned`] where the write failed.
    pub fn write(&self, batch: Batch) -> Result<Range<u64>> {
        let pending = self.submit(batch)?;
        let indexes = pending.indexes();
        pending.wait()?;
        Ok(indexes)
    }

    /// Writes a batch; the future is done when it is acknowledged. See [`Log::append_async`].
    ///
    /// # Errors
    ///
    /// Those of [`Log::write`].
    pub fn write_async(&self, batch: Batch) -> impl Future<Output = Result<Range<u64>>> + Send + use<> + 'static {
        let accepted = self.submit_noting_async(batch, |_| {});
        async move {
            let pending = accepted.await?;
            let indexes = pending.indexes();
            pending.await?;
            Ok(indexes)
        }
    }

    /// Accepts a batch: its entries have their indexes and can be read, and it will be written. Waits while the queue
    /// is full or the next segment is not ready.
    ///
    /// # Errors
    ///
    /// [`Error::Gap`], [`Error::TermFell`], [`Error::TermMismatch`], [`Error::Compacted`], [`Error::NotWritten`],
    /// [`Error::TooLarge`], [`Error::NoSpace`], [`Error::Poisoned`], [`Error::Closed`], [`Error::ReadOnly`],
    /// [`Error::InCallback`]. Nothing was accepted then.
    pub fn submit(&self, batch: Batch) -> Result<Pending> {
        self.submit_noting(batch, |_| {})
    }

    /// As [`Log::submit`]; `note` sees the accepted batch before any other can be accepted, so that what it notes down is
    /// in log order, and before the batch can be acknowledged. It runs under the log's lock: it must be quick, and call
    /// nothing of the log's.
    pub(crate) fn submit_noting(&self, mut batch: Batch, note: impl FnOnce(&Pending)) -> Result<Pending> {
        self.check_may_block()?;
        let (mut intake, mut note) = (Intake::default(), Some(note));
        loop {
            match self.try_accept_noting(&mut batch, &mut intake, &mut once(&mut note)) {
                Ok(accepted) => return accepted,
                Err(core) => self.shared().wait_for_room(core),
            }
        }
    }

    /// As [`Log::submit_noting`], without blocking: the batch is accepted when the future is polled and there is room.
    pub(crate) fn submit_noting_async<N>(
        &self,
        mut batch: Batch,
        note: N,
    ) -> impl Future<Output = Result<Pending>> + Send + use<N> + 'static
    where
        N: FnOnce(&Pending) + Send + 'static,
    {
        let log = self.clone();
        let (mut intake, mut note) = (Intake { never_blocks: true, ..Intake::default() }, Some(note));
        std::future::poll_fn(move |context| {
            log.poll_accept(&mut batch, &mut intake, &mut once(&mut note), context.waker())
        })
    }

    /// As [`Log::submit_noting`], without blocking, and calls back as [`Log::submit_with`] does. Where the batch is refused,
    /// or the future dropped before there was room, the callback is dropped.
    #[cfg(feature = "openraft")]
    pub(crate) async fn accept_async(
        &self,
        mut batch: Batch,
        callback: Option<Callback>,
        note: impl FnOnce(&Pending) + Send,
    ) -> Result<Pending> {
        let mut intake = Intake { never_blocks: true, callback, ..Intake::default() };
        let mut note = Some(note);
        let accept = |context: &mut Context<'_>| {
            self.poll_accept(&mut batch, &mut intake, &mut once(&mut note), context.waker())
        };
        std::future::poll_fn(accept).await
    }

    /// The most bytes that the operations of one batch may take.
    #[cfg(feature = "openraft")]
    pub(crate) fn batch_bytes_max(&self) -> u64 {
        self.shared().core().sequencer.batch_bytes_max()
    }

    /// Accepts a batch without ever waiting.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] where [`Log::submit`] would wait, and its other errors; the batch comes back.
    #[allow(clippy::result_large_err, reason = "the batch comes back so that it can be tried again")]
    pub fn try_submit(&self, mut batch: Batch) -> Result<Pending, (Error, Batch)> {
        let mut intake = Intake { never_blocks: true, never_waits: true, ..Intake::default() };
        match self.try_accept(&mut batch, &mut intake) {
            Ok(Ok(pending)) => Ok(pending),
            Ok(Err(error)) => Err((error, batch)),
            Err(core) => {
                drop(core);
                Err((Error::Busy, batch))
            }
        }
    }

    /// Accepts a batch and calls `done` when it is acknowledged or lost: exactly once, on the writer thread (with
    /// [`Config::write_in_place`] also on a caller's, before its call returns), in log order. `done` must be quick: every
    /// append waits behind it. Blocking calls in it return [`Error::InCallback`].
    ///
    /// # Errors
    ///
    /// Those of [`Log::submit`]; `done` is not called then.
    pub fn submit_with(&self, mut batch: Batch, done: impl FnOnce(Result<()>) + Send + 'static) -> Result<Range<u64>> {
        self.check_may_block()?;
        let mut intake = Intake { callback: Some(Box::new(done)), ..Intake::default() };
        loop {
            match self.try_accept(&mut batch, &mut intake) {
                Ok(accepted) => return accepted.map(|pending| pending.indexes()),
                Err(core) => self.shared().wait_for_room(core),
            }
        }
    }

    /// Removes the entry at an index and all after it; waits until that is acknowledged.
    ///
    /// # Errors
    ///
    /// [`Error::Compacted`] at or below the compaction point, [`Error::NotWritten`] past the next index; else those of
    /// [`Log::append`].
    pub fn truncate_from(&self, first_removed: u64) -> Result<()> {
        self.write(Batch::new().truncate_from(first_removed)).map(drop)
    }

    /// Drops all entries up to and including an index, which must be in the log; waits until that is acknowledged.
    /// Segments that hold nothing else go soon after. At or below the compaction point nothing happens.
    ///
    /// # Errors
    ///
    /// [`Error::NotWritten`] past the last index; else those of [`Log::append`].
    pub fn compact(&self, upto: u64) -> Result<()> {
        self.write(Batch::new().compact(upto)).map(drop)
    }

    /// Drops all entries up to and including an index whose term is given; it may lie past the last entry.
    ///
    /// # Errors
    ///
    /// [`Error::TermMismatch`], [`Error::TermFell`]; else those of [`Log::append`].
    pub fn compact_to(&self, index: u64, term: u64) -> Result<()> {
        self.write(Batch::new().compact_to(index, term)).map(drop)
    }

    /// Sets a key of the hard state; waits until that is acknowledged.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] where all pairs together pass their limit; else those of [`Log::append`].
    pub fn put_meta(&self, key: &[u8], value: &[u8]) -> Result<()> {
        self.write(Batch::new().put_meta(key, value)).map(drop)
    }

    /// The value of a key of the hard state, as accepted.
    pub fn get_meta(&self, key: &[u8]) -> Option<Bytes> {
        self.shared().core().sequencer.outline().state.hard_state.get(key).cloned()
    }

    /// All of the hard state, as accepted, by key.
    pub fn meta(&self) -> Vec<(Bytes, Bytes)> {
        let state = self.shared().core().sequencer.outline().state.hard_state.clone();
        state.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// One consistent look.
    pub fn state(&self) -> LogState {
        self.shared().core().view().state()
    }

    /// Reads one entry, as accepted; after poisoning, as durable.
    ///
    /// # Errors
    ///
    /// [`Error::Compacted`], [`Error::NotWritten`], [`Error::Corrupt`], [`Error::Io`], [`Error::Closed`];
    /// [`Error::Poisoned`] for an entry that was accepted and is not known to be durable.
    pub fn get(&self, index: u64) -> Result<LogEntry> {
        reader::get(self.shared(), index)
    }

    /// Reads one entry without blocking the task: what is not in memory is read by a thread of the log's own.
    ///
    /// # Errors
    ///
    /// Those of [`Log::get`].
    pub fn get_async(&self, index: u64) -> impl Future<Output = Result<LogEntry>> + Send + use<> + 'static {
        let log = self.clone();
        async move {
            match reader::get_cached(log.shared(), index) {
                Ok(Some(entry)) => Ok(entry),
                Ok(None) => {
                    let answer =
                        reader::on_reader_thread(log.shared(), Box::new(move |shared| reader::get(shared, index)));
                    std::future::poll_fn(|context| answer.poll(context.waker())).await
                }
                Err(error) => Err(error),
            }
        }
    }

    /// Reads the entries of a half-open range until their payloads pass `max_bytes`: at least one, if the range is not
    /// empty.
    ///
    /// # Errors
    ///
    /// Those of [`Log::get`], for the first index.
    pub fn get_entries(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<LogEntry>> {
        reader::get_entries(self.shared(), range, max_bytes)
    }

    /// As [`Log::get_entries`], without blocking the task: what is not in memory is read by a thread of the log's own. Fewer
    /// may come than there are below `max_bytes`, at least one.
    ///
    /// # Errors
    ///
    /// Those of [`Log::get_entries`].
    pub fn get_entries_async(
        &self,
        range: Range<u64>,
        max_bytes: usize,
    ) -> impl Future<Output = Result<Vec<LogEntry>>> + Send + use<> + 'static {
        let log = self.clone();
        async move {
            if range.is_empty() {
                return Ok(Vec::new());
            }
            match reader::get_entries_cached(log.shared(), range.clone(), max_bytes) {
                Ok(Some(entries)) => Ok(entries),
                Ok(None) => {
                    let read = move |shared: &Shared| reader::get_entries(shared, range, max_bytes);
                    let answer = reader::on_reader_thread(log.shared(), Box::new(read));
                    std::future::poll_fn(|context| answer.poll(context.waker())).await
                }
                Err(error) => Err(error),
            }
        }
    }

    /// The entries of a range, from either end, in bounded memory. An unbounded side ends where the log does when the
    /// iterator is made.
    pub fn iter(&self, range: impl RangeBounds<u64>) -> Entries {
        let indexes = self.shared().core().view().indexes_of(range);
        Entries::new(self.shared().clone(), indexes)
    }

    /// The term of an entry, or of the compaction point.
    ///
    /// # Errors
    ///
    /// Those of [`Log::get`].
    pub fn term(&self, index: u64) -> Result<u64> {
        reader::term(self.shared(), index)
    }

    /// Entries from an index on, as they are accepted or become durable.
    pub fn subscribe(&self, from: u64, upto: Upto) -> Subscription {
        Subscription::new(self.shared().clone(), from, upto)
    }

    /// Waits until everything accepted so far is durable; returns the durable index, `None` in a log without entries.
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`], [`Error::DirectoryGone`], [`Error::Closed`], [`Error::ReadOnly`], [`Error::InCallback`].
    pub fn sync(&self) -> Result<Option<u64>> {
        self.check_may_block()?;
        let shared = self.shared();
        if !shared.disk.is_in_place() {
            let path = shared.disk.path().to_path_buf();
            shared.poison(&mut shared.core(), Error::DirectoryGone { path });
        }
        let ticket = {
            let mut core = shared.core();
            core.check_writable()?;
            let number = core.sequencer.last_number();
            if number <= core.sequencer.durable() {
                None
            } else if shared.config.durability == Durability::Sync {
                Some(core.ticket_of(shared, number))
            } else {
                let ticket = Arc::new(ack::Ticket::new(&shared.waiters));
                core.syncs.push_back((number, ticket.clone()));
                if !planted(Mistake::SyncWithoutWake) {
                    shared.wake_writer(&mut core);
                }
                Some(ticket)
            }
        };
        if let Some(ticket) = ticket {
            Pending::new(ticket, 0..0).wait()?;
        }
        Ok(self.state().durable)
    }

    /// Counters and histograms since the open, and whether the disk answers.
    pub fn stats(&self) -> Stats {
        let (stalled, stalls) = self.shared().stalls.look();
        Stats { stalled, stalls, ..self.shared().meter.look() }
    }

    /// Which driver writes, and why.
    pub fn io_mode(&self) -> IoMode {
        self.shared().disk.io_mode()
    }

    /// The segments of the log, oldest first.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        let core = self.shared().core();
        let active = core.sequencer.active().sequence;
        let info = |(&sequence, handle): (&u64, &Arc<crate::segment::sealed::SegmentHandle>)| {
            let range = core.sequencer.ledger.ranges.iter().find(|range| range.sequence == sequence);
            let (role, used_bytes) = match sequence.cmp(&active) {
                std::cmp::Ordering::Less => (SegmentRole::Sealed, handle.header.segment_bytes),
                std::cmp::Ordering::Equal => (SegmentRole::Active, core.sequencer.tail()),
                std::cmp::Ordering::Greater => (SegmentRole::Spare, u64::from(handle.header.block_bytes)),
            };
            SegmentInfo {
                sequence,
                file: self.shared().disk.path_of(&names::segment(sequence)),
                bytes: handle.header.segment_bytes,
                block_bytes: handle.header.block_bytes,
                used_bytes,
                entries: range.map_or(0..0, |range| range.live.clone()),
                role,
                first_frame: range.map(|range| range.first_frame),
            }
        };
        core.handles.iter().map(info).collect()
    }

    /// Drains, syncs and closes the log. Clones of the handle get [`Error::Closed`] from then on.
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`] where not everything accepted could be made durable; [`Error::InCallback`].
    pub fn close(self) -> Result<()> {
        self.check_may_block_unless_read_only()?;
        self.handle.close()
    }

    /// Whether this is a thread of the log's own, or may be: what the log does would wait for it.
    pub(crate) fn is_on_own_thread(&self) -> bool {
        let threads = self.handle.threads.try_lock();
        threads.map_or(true, |threads| threads.as_ref().is_some_and(Threads::include_this))
    }

    pub(crate) fn check_may_block(&self) -> Result<()> {
        if self.shared().read_only {
            return Err(Error::ReadOnly);
        }
        self.check_may_block_unless_read_only()
    }

    fn check_may_block_unless_read_only(&self) -> Result<()> {
        if writer::in_callback() { Err(Error::InCallback) } else { Ok(()) }
    }

    /// One attempt at accepting: the result, or the lock still held where the caller is to wait for room.
    fn try_accept(&self, batch: &mut Batch, intake: &mut Intake) -> Result<Result<Pending>, CoreGuard<'_>> {
        self.try_accept_noting(batch, intake, &mut |_| {})
    }

    /// As [`Log::try_accept`]; `note` is called under the lock where the batch is accepted.
    fn try_accept_noting(
        &self,
        batch: &mut Batch,
        intake: &mut Intake,
        note: &mut dyn FnMut(&Pending),
    ) -> Result<Result<Pending>, CoreGuard<'_>> {
        let shared = self.shared();
        if shared.read_only {
            return Ok(Err(Error::ReadOnly));
        }
        loop {
            let mut core = shared.core();
            if intake.truncations != Some(core.sequencer.truncations()) {
                intake.hints.clear();
            }
            match core.accept(shared, &mut batch.requests, &intake.hints) {
                Ok((accepted, ticket)) => {
                    let pending = self.accepted(&mut core, accepted, ticket, intake);
                    note(&pending);
                    return Ok(Ok(pending));
                }
                Err(Hold::Refused(error)) => return Ok(Err(error)),
                Err(Hold::QueueFull) => return Err(core),
                Err(Hold::NoSpare) => return intake.on_no_spare(shared, core),
                Err(Hold::NeedTerm(index)) => {
                    intake.truncations = Some(core.sequencer.truncations());
                    drop(core);
                    match intake.look_up(shared, index) {
                        Ok(Some(term)) => intake.hints.push((index, term)),
                        Ok(None) => return Err(shared.core()),
                        Err(error) => return Ok(Err(error)),
                    }
                }
            }
        }
    }

    /// One attempt of a task: what it needs from the disk is read by the reader thread, and where there is no room its
    /// waker is left behind.
    fn poll_accept(
        &self,
        batch: &mut Batch,
        intake: &mut Intake,
        note: &mut dyn FnMut(&Pending),
        waker: &Waker,
    ) -> Poll<Result<Pending>> {
        loop {
            if let Some((index, answer)) = &intake.lookup {
                let term = ready!(answer.poll(waker));
                let index = *index;
                intake.lookup = None;
                match term {
                    Ok(term) => intake.hints.push((index, term)),
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
            let mut core = match self.try_accept_noting(batch, intake, note) {
                Ok(accepted) => return Poll::Ready(accepted),
                Err(core) => core,
            };
            if intake.lookup.is_none() {
                if !core.room_wakers.iter().any(|known| known.will_wake(waker)) {
                    core.room_wakers.push(waker.clone());
                }
                return Poll::Pending;
            }
        }
    }

    fn accepted(&self, core: &mut Core, accepted: Accepted, ticket: Arc<ack::Ticket>, intake: &mut Intake) -> Pending {
        let shared = self.shared();
        if let Some(callback) = intake.callback.take()
            && core.add_callback(accepted.number, &ticket, callback)
        {
            shared.wake_writer(core);
        }
        shared.wake_writer_for_frame(core);
        Pending::new(ticket, accepted.indexes)
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("directory", &self.shared().disk.path()).field("state", &self.state()).finish()
    }
}

/// A note that is taken at most once, for attempts that are made until one is accepted.
fn once<N: FnOnce(&Pending)>(note: &mut Option<N>) -> impl FnMut(&Pending) {
    |pending| {
        if let Some(note) = note.take() {
            note(pending);
        }
    }
}

/// What one call remembers between its attempts to be accepted.
#[derive(Default)]
struct Intake {
    hints: Vec<(u64, u64)>,
    /// How many truncations had been accepted when the hints were looked up.
    truncations: Option<u64>,
    /// Attempts at making a spare that were finished when this call first missed one.
    attempts: Option<u64>,
    never_waits: bool,
    /// The disk is read by the reader thread only.
    never_blocks: bool,
    /// A term that the reader thread is looking up.
    lookup: Option<(u64, Arc<pending::Answer<u64>>)>,
    callback: Option<Callback>,
}

impl Intake {
    /// The term of a live index; `None` where a call that must not block has asked the reader thread for it.
    fn look_up(&mut self, shared: &Arc<Shared>, index: u64) -> Result<Option<u64>> {
        if !self.never_blocks {
            return reader::term(shared, index).map(Some);
        }
        let known = reader::term_in_memory(shared, index)?;
        if known.is_none() {
            let read = move |shared: &Shared| reader::term(shared, index);
            self.lookup = Some((index, reader::on_reader_thread(shared, Box::new(read))));
        }
        Ok(known)
    }

    /// No spare stands: ask for one. A call that waits is refused only after an attempt that began later than the call
    /// found no space, or too few descriptors; one that does not is told what the last attempt found.
    #[allow(clippy::type_complexity, reason = "the shape of try_accept, which this is the tail of")]
    fn on_no_spare<'a>(&mut self, shared: &Shared, mut core: CoreGuard<'a>) -> Result<Result<Pending>, CoreGuard<'a>> {
        let attempts = core.spare.attempts;
        // An attempt that is under way may have begun too early: the one after it counts.
        let began = *self.attempts.get_or_insert(attempts + u64::from(core.spare.is_wanted));
        let failed = core.spare.shortage.filter(|_| self.never_waits || attempts > began);
        core.spare.is_missed = true;
        shared.want_spare(&mut core);
        match failed {
            Some(shortage) => Ok(Err(shortage.error(shared))),
            None => Err(core),
        }
    }
}

impl Handle {
    fn close(&self) -> Result<()> {
        let shared = &self.shared;
        // Held to the end: a second close must not let go of what the first one still writes.
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut core = shared.core();
            core.is_closed = true;
            core.shelf.clear();
            shared.notify_room(&mut core);
            let _ = shared.to_writer.send(ToWriter::Close);
            shared.wake_writer(&mut core);
        }
        match threads.take() {
            Some(threads) if threads.include_this() => finish_elsewhere(shared.clone(), threads),
            threads => finish(shared, threads),
        }
    }
}

/// Waits for the threads and lets go of the directory.
fn finish(shared: &Shared, threads: Option<Threads>) -> Result<()> {
    let mut whole = true;
    if let Some(threads) = threads {
        whole &= threads.writer.join().is_ok();
        // Its driver waited for what was under way, or gave it up.
        shared.stalls.clear(stall::Who::Writer);
        let _ = shared.to_helper.send(ToHelper::Close);
        whole &= threads.helper.join().is_ok();
        shared.stalls.clear(stall::Who::Helper);
        drop(threads.watcher);
    }
    let_go(shared);
    match &shared.core().poison {
        Some(cause) => Err(Error::Poisoned(cause.clone())),
        None if !whole => Err(Error::Closed),
        None => Ok(()),
    }
}

/// The last handle went on one of the log's own threads, in a callback or with a waker: that thread has work to finish,
/// and cannot wait for itself.
fn finish_elsewhere(shared: Arc<Shared>, threads: Threads) -> Result<()> {
    let path = shared.disk.path().to_path_buf();
    let closer = thread::Builder::new().name(format!("{}-closer", shared.config.thread_name));
    let spawned = closer.spawn(move || {
        if let Err(error) = finish(&shared, Some(threads)) {
            tracing::error!(%error, "the log could not be closed cleanly");
        }
    });
    spawned.map(drop).map_err(Error::io("start the thread that closes", path))
}

/// Gives up every descriptor that holds a lock, whoever still holds a part of this log.
fn let_go(shared: &Shared) {
    let mut core = shared.core();
    core.files.clear();
    core.notify_subscribers(|_| true);
    drop(core);
    shared.reads.lock().unwrap_or_else(PoisonError::into_inner).take();
    shared.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(%error, "the log could not be closed cleanly");
        }
    }
}
