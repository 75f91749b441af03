//! raft-engine, the log of TiKV: one log for many Raft groups, grouping the writes of its callers.
//!
//! Each producer is a Raft group of its own, as it would be in TiKV, so that calls are independent and can share a
//! sync. Files are 64 MiB, as ringwal's segments, and prefilled with zeros, which is the engine's own setting against
//! slow syncs on fresh extents: three of them, ready before the clock runs (ringwal prepares its own while it runs).
//! The first file is never a prefilled one, so it is filled up in the warm-up. Compression is off: random payloads do
//! not compress, and trying would only cost time. The in-memory index of all entries that the engine keeps is part of
//! it.
//!
//! An entry is encoded as a Raft entry is: a protobuf message of an index and bytes. Nothing is purged during a run.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use bytes::Bytes;
use protobuf::descriptor::UninterpretedOption;
use raft_engine::{Config, Engine as RaftEngine, LogBatch, MessageExt, ReadableSize};

use crate::engine::{Contestant, Engine};
use crate::load::Load;
use crate::versions;

pub(crate) const CONTESTANT: Contestant = Contestant {
    name: "raft-engine",
    version: || versions::of("raft-engine"),
    durability: "write(.., sync = true): fdatasync before the ack, shared by the callers that are waiting",
    open,
};

const FILE_BYTES: u64 = 64 << 20;
/// The engine prefills half as many again as fit.
const PREFILL_BYTES: u64 = 2 * FILE_BYTES;
/// The group of the warm-up; the producers' are their own numbers.
const WARM_UP_GROUP: u64 = u64::MAX;
const WARM_UP_ENTRY_BYTES: u64 = 1 << 20;

/// An entry's message. Of the types that come with protobuf this one has an integer for the index and bytes for the
/// payload; its name has nothing to do with it.
#[derive(Clone)]
struct Indexed;

impl MessageExt for Indexed {
    type Entry = UninterpretedOption;

    fn index(entry: &UninterpretedOption) -> u64 {
        entry.get_positive_int_value()
    }
}

fn entry(index: u64, payload: &[u8]) -> UninterpretedOption {
    let mut entry = UninterpretedOption::new();
    entry.set_positive_int_value(index);
    entry.set_string_value(payload.to_vec());
    entry
}

struct Tikv {
    engine: RaftEngine,
    dir: PathBuf,
    next_indexes: Vec<AtomicU64>,
}

fn open(dir: &Path, load: &Load) -> Result<Box<dyn Engine>> {
    let engine = RaftEngine::open(config(dir)?)?;
    fill_first_file(&engine)?;
    let next_indexes = (0..load.producers).map(|_| AtomicU64::new(1)).collect();
    Ok(Box::new(Tikv { engine, dir: dir.to_path_buf(), next_indexes }))
}

fn config(dir: &Path) -> Result<Config> {
    Ok(Config {
        dir: dir.to_str().context("raft-engine needs a directory whose name is UTF-8")?.to_owned(),
        target_file_size: ReadableSize(FILE_BYTES),
        prefill_for_recycle: true,
        prefill_limit: Some(ReadableSize(PREFILL_BYTES)),
        batch_compression_threshold: ReadableSize(0),
        ..Config::default()
    })
}

fn fill_first_file(engine: &RaftEngine) -> Result<()> {
    let payload = vec![0; WARM_UP_ENTRY_BYTES as usize];
    for index in 1..=FILE_BYTES / WARM_UP_ENTRY_BYTES {
        write(engine, WARM_UP_GROUP, &[entry(index, &payload)], false)?;
    }
    // The first write that no longer finds room turns to the next file.
    write(engine, WARM_UP_GROUP, &[entry(FILE_BYTES / WARM_UP_ENTRY_BYTES + 1, b"")], true)
}

fn write(engine: &RaftEngine, group: u64, entries: &[UninterpretedOption], sync: bool) -> Result<()> {
    let mut batch = LogBatch::default();
    batch.add_entries::<Indexed>(group, entries)?;
    engine.write(&mut batch, sync)?;
    Ok(())
}

impl Engine for Tikv {
    fn append(&self, producer: usize, payload: Bytes) -> Result<()> {
        self.append_batch(producer, vec![payload])
    }

    fn append_batch(&self, producer: usize, payloads: Vec<Bytes>) -> Result<()> {
        let next_index = self.next_indexes.get(producer).context("more producers than the load has")?;
        let first = next_index.fetch_add(payloads.len() as u64, Ordering::Relaxed);
        let entries = (first..).zip(&payloads).map(|(index, payload)| entry(index, payload)).collect::<Vec<_>>();
        write(&self.engine, producer as u64, &entries, true)
    }

    fn close_and_count(self: Box<Self>) -> Result<u64> {
        drop(self.engine);
        let engine = RaftEngine::open(config(&self.dir)?)?;
        let groups = 0..self.next_indexes.len() as u64;
        let span = |group| engine.first_index(group).zip(engine.last_index(group));
        Ok(groups.filter_map(span).map(|(first, last)| last - first + 1).sum())
    }
}
