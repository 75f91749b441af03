//! fjall: an LSM tree whose writes go to a journal; a write is durable once `persist` was called after it.
//!
//! It groups nobody's commits by itself: it syncs under the lock that writers need. So the callers share here what can
//! be shared from outside: each writes (into the journal's buffer, which is what `manual_journal_persist` is for) and
//! then sees to it that a `persist` is made that began after its write, by itself or by somebody who was before it. With
//! one writer that is a sync per call, as it is without.
//!
//! `PersistMode::SyncData` is fdatasync, which commits the file's new blocks as well, and is what the others use; a
//! journal file gets its size when it is made. Its blocks cannot be written ahead: the engine has no setting for that.
//! The memtable is 1 GiB, as rocksdb's: none is flushed during a run.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

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
    /// Calls whose writes are in the journal.
    written: AtomicU64,
    /// How many of them a sync has covered.
    synced: Mutex<u64>,
}

fn open(dir: &Path, _: &Load) -> Result<Box<dyn Engine>> {
    Ok(engine(open_dir(dir)?))
}

fn open_dir(dir: &Path) -> Result<Fjall> {
    let db = Database::builder(dir).manual_journal_persist(true).max_journaling_size(JOURNALS_BYTES).open()?;
    let options = || KeyspaceCreateOptions::default().manual_journal_persist(true).max_memtable_size(MEMTABLE_BYTES);
    let records = db.keyspace("kv", options)?;
    Ok(Fjall { db, records, dir: dir.to_path_buf(), written: AtomicU64::new(0), synced: Mutex::new(0) })
}

impl Fjall {
    /// Returns when a sync has covered this call's write, which is in the journal.
    fn persist(&self) -> Result<()> {
        let number = self.written.fetch_add(1, Ordering::SeqCst) + 1;
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        if *synced < number {
            let upto = self.written.load(Ordering::SeqCst);
            self.db.persist(PersistMode::SyncData)?;
            *synced = upto;
        }
        Ok(())
    }
}

impl Store for Fjall {
    fn set(&self, record: Bytes) -> Result<()> {
        let (key, value) = parts(&record);
        self.records.insert(key, value)?;
        self.persist()
    }

    fn set_all(&self, records: Vec<Bytes>) -> Result<()> {
        let mut batch = self.db.batch();
        for (key, value) in records.iter().map(|record| parts(record)) {
            batch.insert(&self.records, key, value);
        }
        batch.commit()?;
        self.persist()
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
