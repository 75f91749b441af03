//! ringwal with its default settings: what the others are compared with.
//!
//! Nothing is warmed up and nothing prepared beyond what opening a log does: one spare segment of 64 MiB.

use std::path::{Path, PathBuf};

use anyhow::Result;
use bytes::Bytes;
use ringwal::{Batch, Config, Log};

use crate::engine::{Contestant, Engine};
use crate::load::Load;
use crate::versions;

pub(crate) const CONTESTANT: Contestant = Contestant {
    name: "ringwal",
    version: || versions::of("ringwal"),
    durability: "Durability::Sync, all defaults: direct writes through io_uring, durable before the ack",
    open,
};

struct RingWal {
    log: Log,
    dir: PathBuf,
}

fn open(dir: &Path, _: &Load) -> Result<Box<dyn Engine>> {
    let (log, _) = Log::open(dir, Config::default())?;
    Ok(Box::new(RingWal { log, dir: dir.to_path_buf() }))
}

impl Engine for RingWal {
    fn append(&self, _: usize, payload: Bytes) -> Result<()> {
        self.log.append(payload)?;
        Ok(())
    }

    fn append_batch(&self, _: usize, payloads: Vec<Bytes>) -> Result<()> {
        self.log.write(payloads.into_iter().fold(Batch::new(), Batch::push))?;
        Ok(())
    }

    fn close_and_count(self: Box<Self>) -> Result<u64> {
        self.log.close()?;
        let (log, _) = Log::open(&self.dir, Config::default())?;
        let mut count = 0;
        for entry in log.iter(..) {
            entry?;
            count += 1;
        }
        log.close()?;
        Ok(count)
    }
}
