//! rocksdb's write-ahead log: puts with `sync`, whose callers form groups with a leader that writes and syncs for all.
//!
//! Pipelined writes (the next group writes its log while the last one fills its memtable) are on for batches and off
//! for single appends: on two CPUs they gained a tenth with 4 producers of batches, lost as much or more with 256
//! producers, and made no difference with few. The memtable is 1 GiB: none is flushed during a run, and no compaction
//! runs. Log files are recycled, which is the engine's own setting against slow syncs on fresh extents; the warm-up
//! fills two logs of 192 MiB with data that is nowhere but in the log and flushes after each, so that the run starts in
//! a recycled one. Closing does not flush: what is counted was recovered from the log. The memtable is part of the
//! engine and of its cost; compression plays no part.
//!
//! A key is the producer and the number of its entry, 12 bytes.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use bytes::Bytes;
use rocksdb::{DB, IteratorMode, Options, WriteBatch, WriteOptions};

use crate::engine::{Contestant, Engine};
use crate::load::Load;
use crate::versions;

pub(crate) const CONTESTANT: Contestant = Contestant { name: "rocksdb", version, durability: DURABILITY, open };

pub(crate) const DURABILITY: &str =
    "WriteOptions::sync = true: fdatasync of the log before the ack, shared by a write group";

const MEMTABLE_BYTES: usize = 1 << 30;
/// Bytes of the logs that are filled before a run, where it may write as much.
pub(crate) const WARM_UP_LOG_BYTES: usize = 192 << 20;
const WARM_UP_RECORD_BYTES: usize = 1 << 20;
const WARM_UP_KEY: &[u8] = b"warm-up";

pub(crate) fn version() -> String {
    format!("{} (librocksdb-sys {})", versions::of("rocksdb"), versions::of("librocksdb-sys"))
}

struct RocksDb {
    db: DB,
    dir: PathBuf,
    durable: WriteOptions,
    next_numbers: Vec<AtomicU64>,
}

fn options(is_pipelined: bool) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_write_buffer_size(MEMTABLE_BYTES);
    options.set_enable_pipelined_write(is_pipelined);
    options.set_recycle_log_file_num(4);
    options.set_disable_auto_compactions(true);
    options
}

fn open(dir: &Path, load: &Load) -> Result<Box<dyn Engine>> {
    let (db, durable) = open_warm(dir, load.batch > 1, WARM_UP_LOG_BYTES)?;
    let next_numbers = (0..load.producers).map(|_| AtomicU64::new(0)).collect();
    Ok(Box::new(RocksDb { db, dir: dir.to_path_buf(), durable, next_numbers }))
}

/// A new database whose next log is a recycled one, and what makes its writes durable.
pub(crate) fn open_warm(dir: &Path, is_pipelined: bool, log_bytes: usize) -> Result<(DB, WriteOptions)> {
    let db = DB::open(&options(is_pipelined), dir)?;
    for _ in 0..2 {
        fill_log(&db, log_bytes)?;
    }
    db.delete(WARM_UP_KEY)?;
    Ok((db, durable()))
}

/// What makes a write wait until it survives power loss.
pub(crate) fn durable() -> WriteOptions {
    let mut durable = WriteOptions::default();
    durable.set_sync(true);
    durable
}

/// The database as it was left.
pub(crate) fn open_again(dir: &Path) -> Result<DB> {
    Ok(DB::open(&options(false), dir)?)
}

fn fill_log(db: &DB, bytes: usize) -> Result<()> {
    let record = vec![0; WARM_UP_RECORD_BYTES];
    for _ in 0..bytes / WARM_UP_RECORD_BYTES {
        let mut batch = WriteBatch::default();
        batch.put_log_data(&record);
        db.write(batch)?;
    }
    // Without a key there is nothing to flush, and the log would be kept.
    db.put(WARM_UP_KEY, b"")?;
    Ok(db.flush()?)
}

fn key(producer: usize, number: u64) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&(producer as u32).to_be_bytes());
    key[4..].copy_from_slice(&number.to_be_bytes());
    key
}

impl Engine for RocksDb {
    fn append(&self, producer: usize, payload: Bytes) -> Result<()> {
        self.append_batch(producer, vec![payload])
    }

    fn append_batch(&self, producer: usize, payloads: Vec<Bytes>) -> Result<()> {
        let next_number = self.next_numbers.get(producer).context("more producers than the load has")?;
        let first = next_number.fetch_add(payloads.len() as u64, Ordering::Relaxed);
        let mut batch = WriteBatch::default();
        for (number, payload) in (first..).zip(&payloads) {
            batch.put(key(producer, number), payload);
        }
        Ok(self.db.write_opt(batch, &self.durable)?)
    }

    fn close_and_count(self: Box<Self>) -> Result<u64> {
        drop(self.db);
        let db = open_again(&self.dir)?;
        let mut count = 0;
        for item in db.iterator(IteratorMode::Start) {
            item?;
            count += 1;
        }
        Ok(count)
    }
}
