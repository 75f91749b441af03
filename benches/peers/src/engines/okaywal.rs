//! okaywal: a write-ahead log in Rust whose committers share the sync of whoever came first.
//!
//! One call is one entry of the log, each payload a chunk of it. Files are 64 MiB, as ringwal's segments, instead of
//! 1 MiB, and checkpointed at 60 MiB; the buffer is 256 KiB instead of 16 KiB, so that a batch is one write. The engine
//! fills fresh files with zeros while everybody waits and recycles them after a checkpoint, so the warm-up has it make
//! and checkpoint some before the clock runs. The checkpoints of the run itself store nothing anywhere: that would be
//! the work of whatever stands behind the log.
//!
//! What was checkpointed is no longer in the log and is counted by its ids, which have no gaps; the rest is counted as
//! recovery hands it over.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use bytes::Bytes;
use okaywal::{Configuration, Entry, EntryId, LogManager, SegmentReader, WriteAheadLog};

use crate::engine::{Contestant, Engine};
use crate::load::Load;
use crate::versions;

pub(crate) const CONTESTANT: Contestant = Contestant {
    name: "okaywal",
    version: || versions::of("okaywal"),
    durability: "commit(): fdatasync before the ack, shared by the callers that are waiting",
    open,
};

const FILE_BYTES: u32 = 64 << 20;
const CHECKPOINT_AFTER_BYTES: u64 = 60 << 20;
const BUFFER_BYTES: usize = 256 << 10;
/// Files that the warm-up has made and checkpointed, if the checkpoints are slower than it.
const WARM_UP_FILES: u64 = 3;

struct OkayWal {
    log: WriteAheadLog,
    dir: PathBuf,
    tally: Arc<Tally>,
    batch: u64,
}

/// What the log told its manager.
#[derive(Debug, Default)]
struct Tally {
    checkpointed_upto: AtomicU64,
    recovered_payloads: AtomicU64,
}

#[derive(Debug)]
struct Manager(Arc<Tally>);

impl LogManager for Manager {
    fn recover(&mut self, entry: &mut Entry<'_>) -> io::Result<()> {
        // Whole and checked, or not at all: a chunk that is skipped unread moves this version's reader too far.
        let payloads = entry.read_all_chunks()?.unwrap_or_default();
        if entry.id().0 > self.0.checkpointed_upto.load(Ordering::Relaxed) {
            self.0.recovered_payloads.fetch_add(payloads.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    fn checkpoint_to(&mut self, last: EntryId, _: &mut SegmentReader, _: &WriteAheadLog) -> io::Result<()> {
        self.0.checkpointed_upto.fetch_max(last.0, Ordering::Relaxed);
        Ok(())
    }
}

fn open(dir: &Path, load: &Load) -> Result<Box<dyn Engine>> {
    let tally = Arc::<Tally>::default();
    let log = OkayWal { log: open_log(dir, &tally)?, dir: dir.to_path_buf(), tally, batch: load.batch as u64 };
    for _ in 0..WARM_UP_FILES {
        log.append(0, Bytes::from_static(b"warm-up"))?;
        log.log.checkpoint_active()?;
    }
    Ok(Box::new(log))
}

fn open_log(dir: &Path, tally: &Arc<Tally>) -> Result<WriteAheadLog> {
    let config = Configuration::default_for(dir)
        .preallocate_bytes(FILE_BYTES)
        .checkpoint_after_bytes(CHECKPOINT_AFTER_BYTES)
        .buffer_bytes(BUFFER_BYTES);
    Ok(config.open(Manager(tally.clone()))?)
}

impl Engine for OkayWal {
    fn append(&self, producer: usize, payload: Bytes) -> Result<()> {
        self.append_batch(producer, vec![payload])
    }

    fn append_batch(&self, _: usize, payloads: Vec<Bytes>) -> Result<()> {
        let mut entry = self.log.begin_entry()?;
        for payload in &payloads {
            entry.write_chunk(payload)?;
        }
        entry.commit()?;
        Ok(())
    }

    fn close_and_count(self: Box<Self>) -> Result<u64> {
        self.log.shutdown()?;
        let upto = self.tally.checkpointed_upto.load(Ordering::Relaxed);
        let checkpointed = upto.checked_sub(WARM_UP_FILES).context("the warm-up was not checkpointed")? * self.batch;
        let log = open_log(&self.dir, &self.tally)?;
        log.shutdown()?;
        Ok(checkpointed + self.tally.recovered_payloads.load(Ordering::Relaxed))
    }
}
