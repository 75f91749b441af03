//! redb: a copy-on-write B-tree in one file, whose commits write the changed pages and sync once.
//!
//! `Durability::Immediate` and commits of one phase (a checksum tells a torn one) are its defaults, and the faster of
//! what it offers to who needs durable commits. It has one writer at a time and no group commit: transactions wait for
//! each other. The cache of 1 GiB, its default, holds all that a run writes. The table is there and its first commit
//! made before the clock runs.

use std::path::{Path, PathBuf};

use anyhow::Result;
use bytes::Bytes;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use super::{See, Store, engine};
use crate::engine::{Contestant, Engine};
use crate::load::Load;
use crate::records::parts;
use crate::versions;

pub(crate) const CONTESTANT: Contestant = Contestant {
    name: "redb",
    version: || versions::of("redb"),
    durability: "Durability::Immediate: one fdatasync per commit, which callers do not share",
    open,
};

const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("kv");
const CACHE_BYTES: usize = 1 << 30;

struct Redb {
    db: Database,
    path: PathBuf,
}

fn open(dir: &Path, _: &Load) -> Result<Box<dyn Engine>> {
    let path = dir.join("kv.redb");
    let store = Redb { db: open_file(&path)?, path };
    store.set_all(Vec::new())?;
    Ok(engine(store))
}

fn open_file(path: &Path) -> Result<Database> {
    Ok(Database::builder().set_cache_size(CACHE_BYTES).create(path)?)
}

impl Store for Redb {
    fn set(&self, record: Bytes) -> Result<()> {
        self.set_all(vec![record])
    }

    fn set_all(&self, records: Vec<Bytes>) -> Result<()> {
        let mut transaction = self.db.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        {
            let mut table = transaction.open_table(TABLE)?;
            for (key, value) in records.iter().map(|record| parts(record)) {
                table.insert(key, value)?;
            }
        }
        Ok(transaction.commit()?)
    }

    fn reopen(self) -> Result<Redb> {
        drop(self.db);
        Ok(Redb { db: open_file(&self.path)?, path: self.path })
    }

    fn for_each(&self, see: &mut See<'_>) -> Result<()> {
        for item in self.db.begin_read()?.open_table(TABLE)?.iter()? {
            let (key, value) = item?;
            see(key.value(), value.value())?;
        }
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let value = self.db.begin_read()?.open_table(TABLE)?.get(key)?;
        Ok(value.map(|value| value.value().to_vec()))
    }
}
