//! ringwal's key-value store with its default settings: what the others are compared with.
//!
//! All records are in memory, in a map that is fed from the log. Nothing is warmed up and nothing prepared beyond what
//! opening does. By default a snapshot is taken once 1 GiB of commands came, which no usual slice reaches; what is read
//! after the reopen was replayed from the log.

use std::path::{Path, PathBuf};

use anyhow::Result;
use bytes::Bytes;
use ringwal::{KvOp, KvStore, StoreConfig};

use super::{See, Store, engine};
use crate::engine::{Contestant, Engine};
use crate::load::Load;
use crate::records::KEY_BYTES;
use crate::versions;

pub(crate) const CONTESTANT: Contestant = Contestant {
    name: "ringwal",
    version: || versions::of("ringwal"),
    durability: "KvStore, all defaults: direct writes through io_uring, durable before the ack, shared by all who wait",
    open,
};

struct RingWal {
    store: KvStore,
    dir: PathBuf,
}

fn open(dir: &Path, _: &Load) -> Result<Box<dyn Engine>> {
    Ok(engine(open_dir(dir)?))
}

fn open_dir(dir: &Path) -> Result<RingWal> {
    let (store, _) = KvStore::open(dir, StoreConfig::default())?;
    Ok(RingWal { store, dir: dir.to_path_buf() })
}

impl Store for RingWal {
    fn set(&self, mut record: Bytes) -> Result<()> {
        let key = record.split_to(KEY_BYTES);
        Ok(self.store.set(key, record)?)
    }

    fn set_all(&self, records: Vec<Bytes>) -> Result<()> {
        let put = |mut record: Bytes| KvOp::Put { key: record.split_to(KEY_BYTES), value: record };
        Ok(self.store.write_batch(records.into_iter().map(put).collect())?)
    }

    fn reopen(self) -> Result<RingWal> {
        self.store.close()?;
        open_dir(&self.dir)
    }

    fn for_each(&self, see: &mut See<'_>) -> Result<()> {
        self.store.image().iter().try_for_each(|(key, value)| see(key, value))
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.store.get(key).map(|value| value.to_vec()))
    }
}
