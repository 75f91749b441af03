//! fjall: an LSM tree whose writes go to a journal; a write is durable once `persist` was called after it.
//!
//! It groups nobody's commits by itself: it syncs under the lock that writers need. So the callers share here what can
//! be shared from outside: each writes (into the journal's buffer, which is what `manual_journal_persist` is for) and
//! then waits for a `persist` that began after its write. One of those who wait makes it, once those who are about to
//! write have written. With one writer that is a sync per call, as it is without.
//!
//! `PersistMode::SyncData` is fdatasync, which commits the file's new blocks as well, and is what the others use; a
//! journal file gets its size when it is made. Its blocks cannot be written ahead: the engine has no setting for that.
//! The memtable is 1 GiB, as rocksdb's: none is flushed during a run.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::{See, Store, engine};
use crate::engine::{Contestant, Engine};
use crate::load::Load;
use crate::records::parts;
use crate::versions;

pub(crate) const CONTESTANT: Contestant = Contestant {
    name: "fjall",
    version: || versions::of("fjall"),
    durability: "persist(SyncData): fdatasync of the journal before the ack, shared by the callers (by our adapter)",
    open,
};

const MEMTABLE_BYTES: u64 = 1 << 30;
const JOURNALS_BYTES: u64 = 4 << 30;

struct Fjall {
    db: Database,
    records: Keyspace,
    dir: PathBuf,
    /// Calls that began, and those of them whose writes are in the journal.
    begun: AtomicU64,
    written: AtomicU64,
    syncs: Mutex<Syncs>,
    synced: Condvar,
}

/// What is known of the syncs.
#[derive(Default)]
struct Syncs {
    /// How many of the written calls they have covered.
    covered: u64,
    is_syncing: bool,
}

fn open(dir: &Path, _: &Load) -> Result<Box<dyn Engine>> {
    Ok(engine(open_dir(dir)?))
}

fn open_dir(dir: &Path) -> Result<Fjall> {
    let db = Database::builder(dir).manual_journal_persist(true).max_journaling_size(JOURNALS_BYTES).open()?;
    let options = || KeyspaceCreateOptions::default().manual_journal_persist(true).max_memtable_size(MEMTABLE_BYTES);
    let records = db.keyspace("kv", options)?;
    let [begun, written] = [(); 2].map(|()| AtomicU64::new(0));
    let (syncs, synced) = Default::default();
    Ok(Fjall { db, records, dir: dir.to_path_buf(), begun, written, syncs, synced })
}

impl Fjall {
    /// Writes, and returns when a sync has covered that.
    fn durably(&self, write: impl FnOnce() -> fjall::Result<()>) -> Result<()> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let wrote = write();
        let number = self.written.fetch_add(1, Ordering::SeqCst) + 1;
        wrote?;
        let mut syncs = self.syncs();
        while syncs.covered < number {
            if syncs.is_syncing {
                syncs = self.synced.wait(syncs).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            syncs.is_syncing = true;
            drop(syncs);
            let synced = self.sync();
            syncs = self.syncs();
            syncs.is_syncing = false;
            self.synced.notify_all();
            syncs.covered = synced?;
        }
        Ok(())
    }

    fn syncs(&self) -> MutexGuard<'_, Syncs> {
        self.syncs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Syncs for all who have written, and for those who are at it; how many calls that covers.
    fn sync(&self) -> Result<u64> {
        let begun = self.begun.load(Ordering::SeqCst);
        while self.written.load(Ordering::SeqCst) < begun {
            std::thread::yield_now();
        }
        let written = self.written.load(Ordering::SeqCst);
        self.db.persist(PersistMode::SyncData)?;
        Ok(written)
    }
}

impl Store for Fjall {
    fn set(&self, record: Bytes) -> Result<()> {
        let (key, value) = parts(&record);
        self.durably(|| self.records.insert(key, value))
    }

    fn set_all(&self, records: Vec<Bytes>) -> Result<()> {
        let mut batch = self.db.batch();
        for (key, value) in records.iter().map(|record| parts(record)) {
            batch.insert(&self.records, key, value);
        }
        self.durably(|| batch.commit())
    }

    fn reopen(self) -> Result<Fjall> {
        let Fjall { db, records, dir, .. } = self;
        drop((records, db));
        open_dir(&dir)
    }

    fn for_each(&self, see: &mut See<'_>) -> Result<()> {
        for item in self.records.iter() {
            let (key, value) = item.into_inner()?;
            see(&key, &value)?;
        }
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.records.get(key)?.map(|value| value.to_vec()))
    }
}
