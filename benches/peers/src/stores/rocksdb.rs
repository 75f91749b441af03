//! rocksdb, set up and warmed up as among the logs ([`crate::engines::rocksdb`]): writes with `sync`, whose callers form
//! groups with a leader that writes and syncs for all; a memtable of 1 GiB, which is filled by the writers of a group in
//! parallel and never flushed in a run; recycled logs, whose blocks have been written before.
//!
//! What is read after the reopen was recovered from the log.

use std::path::{Path, PathBuf};

use anyhow::Result;
use bytes::Bytes;
use rocksdb::{DB, IteratorMode, WriteBatch, WriteOptions};

use super::{See, Store, engine};
use crate::engine::{Contestant, Engine};
use crate::engines::rocksdb::{DURABILITY, WARM_UP_LOG_BYTES, open_again, open_warm, version};
use crate::load::Load;
use crate::records::parts;

pub(crate) const CONTESTANT: Contestant = Contestant { name: "rocksdb", version, durability: DURABILITY, open };

struct RocksDb {
    db: DB,
    dir: PathBuf,
    durable: WriteOptions,
}

fn open(dir: &Path, load: &Load) -> Result<Box<dyn Engine>> {
    let (db, durable) = open_warm(dir, load.batch > 1, WARM_UP_LOG_BYTES)?;
    Ok(engine(RocksDb { db, dir: dir.to_path_buf(), durable }))
}

impl Store for RocksDb {
    fn set(&self, record: Bytes) -> Result<()> {
        let (key, value) = parts(&record);
        Ok(self.db.put_opt(key, value, &self.durable)?)
    }

    fn set_all(&self, records: Vec<Bytes>) -> Result<()> {
        let mut batch = WriteBatch::default();
        for (key, value) in records.iter().map(|record| parts(record)) {
            batch.put(key, value);
        }
        Ok(self.db.write_opt(batch, &self.durable)?)
    }

    fn reopen(self) -> Result<RocksDb> {
        drop(self.db);
        Ok(RocksDb { db: open_again(&self.dir)?, ..self })
    }

    fn for_each(&self, see: &mut See<'_>) -> Result<()> {
        for item in self.db.iterator(IteratorMode::Start) {
            let (key, value) = item?;
            see(&key, &value)?;
        }
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.db.get(key)?)
    }
}
