//! rocksdb as a log store: a record per entry and a sync of the write-ahead log per append, on the executor's thread, as
//! most stores over it work.
//!
//! Set up and warmed up as among the logs ([`crate::engines::rocksdb`]), but for smaller recycled logs: every node fills
//! its own, and writes far less. Entries are encoded as by the other stores. The committed id is written without a sync.

use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{AnyError, LogState, OptionalSend, RaftLogReader, StorageIOError};
use rocksdb::{DB, Direction, IteratorMode, WriteBatch};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::cluster;
use super::types::{Entry, Id, StorageError, Types, Vote};
use crate::engine::Contestant;
use crate::engines::rocksdb::{DURABILITY, durable, open_again, open_warm, version};

pub(crate) const CONTESTANT: Contestant = Contestant {
    name: "rocksdb",
    version,
    durability: DURABILITY,
    open: |dir, load| cluster::start(dir, load, Rocks::open, Some(Rocks::reopen)),
};

/// Bytes of each log that is filled before a run.
const LOG_BYTES: usize = 32 << 20;

/// Before an entry's index, as eight bytes in the order of the numbers.
const ENTRY: u8 = b'e';
const VOTE: &[u8] = b"m-vote";
const COMMITTED: &[u8] = b"m-committed";
const PURGED: &[u8] = b"m-purged";

/// See the module.
#[derive(Clone)]
struct Rocks {
    db: Arc<DB>,
}

fn key(index: u64) -> [u8; 9] {
    let mut key = [ENTRY; 9];
    key[1..].copy_from_slice(&index.to_be_bytes());
    key
}

impl Rocks {
    fn open(dir: &Path, _: u64) -> Result<Rocks> {
        Ok(Rocks { db: Arc::new(open_warm(dir, false, LOG_BYTES)?.0) })
    }

    fn reopen(dir: &Path, _: u64) -> Result<Rocks> {
        Ok(Rocks { db: Arc::new(open_again(dir)?) })
    }

    fn get<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>> {
        Ok(self.db.get(key)?.map(|bytes| postcard::from_bytes(&bytes)).transpose()?)
    }

    fn put<T: Serialize>(&self, key: &[u8], value: &T) -> Result<()> {
        Ok(self.db.put_opt(key, postcard::to_allocvec(value)?, &durable())?)
    }

    fn append(&self, entries: impl Iterator<Item = Entry>) -> Result<()> {
        let mut batch = WriteBatch::default();
        for entry in entries {
            batch.put(key(entry.log_id.index), postcard::to_allocvec(&entry)?);
        }
        Ok(self.db.write_opt(batch, &durable())?)
    }

    fn read(&self, range: impl RangeBounds<u64>) -> Result<Vec<Entry>> {
        let first = match range.start_bound() {
            Bound::Included(first) => *first,
            Bound::Excluded(before) => before + 1,
            Bound::Unbounded => 0,
        };
        let mut entries = Vec::new();
        for item in self.db.iterator(IteratorMode::From(&key(first), Direction::Forward)) {
            let (key, bytes) = item?;
            let Some(index) = index_of(&key).filter(|index| range.contains(index)) else { break };
            entries.push(postcard::from_bytes(&bytes).with_context(|| format!("entry {index}"))?);
        }
        Ok(entries)
    }

    fn last(&self) -> Result<Option<Id>> {
        let mut newest = self.db.iterator(IteratorMode::From(&key(u64::MAX), Direction::Reverse));
        let Some((key, bytes)) = newest.next().transpose()? else { return Ok(None) };
        let entry = index_of(&key).map(|_| postcard::from_bytes::<Entry>(&bytes)).transpose()?;
        Ok(entry.map(|entry| entry.log_id))
    }

    fn state(&self) -> Result<LogState<Types>> {
        let purged = self.get(PURGED)?;
        Ok(LogState { last_purged_log_id: purged, last_log_id: self.last()?.or(purged) })
    }

    fn remove(&self, from: u64, to: u64, purged: Option<Id>) -> Result<()> {
        let mut batch = WriteBatch::default();
        batch.delete_range(key(from), key(to));
        if let Some(purged) = purged {
            batch.put(PURGED, postcard::to_allocvec(&purged)?);
        }
        Ok(self.db.write_opt(batch, &durable())?)
    }
}

fn index_of(key: &[u8]) -> Option<u64> {
    let (ENTRY, index) = key.split_first().map(|(first, index)| (*first, index))? else { return None };
    Some(u64::from_be_bytes(index.try_into().ok()?))
}

fn unread(error: anyhow::Error) -> StorageError {
    StorageIOError::read_logs(AnyError::error(format!("{error:#}"))).into()
}

fn unwritten(error: anyhow::Error) -> StorageError {
    StorageIOError::write_logs(AnyError::error(format!("{error:#}"))).into()
}

impl RaftLogReader<Types> for Rocks {
    async fn try_get_log_entries<R>(&mut self, range: R) -> Result<Vec<Entry>, StorageError>
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.read(range).map_err(unread)
    }
}

impl RaftLogStorage<Types> for Rocks {
    type LogReader = Rocks;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError> {
        self.state().map_err(unread)
    }

    async fn get_log_reader(&mut self) -> Rocks {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        self.put(VOTE, vote).map_err(unwritten)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        self.get(VOTE).map_err(unread)
    }

    async fn save_committed(&mut self, committed: Option<Id>) -> Result<(), StorageError> {
        let save = || Ok(self.db.put(COMMITTED, postcard::to_allocvec(&committed)?)?);
        save().map_err(unwritten)
    }

    async fn read_committed(&mut self) -> Result<Option<Id>, StorageError> {
        Ok(self.get::<Option<Id>>(COMMITTED).map_err(unread)?.flatten())
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        Rocks::append(self, entries.into_iter()).map_err(unwritten)?;
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, from: Id) -> Result<(), StorageError> {
        self.remove(from.index, u64::MAX, None).map_err(unwritten)
    }

    async fn purge(&mut self, upto: Id) -> Result<(), StorageError> {
        self.remove(0, upto.index + 1, Some(upto)).map_err(unwritten)
    }
}
