//! `ringwal snapshot create`: a snapshot of a store as it is now.
//!
//! It is the driver's checkpoint: publish, verify, compact the log, drop older snapshots. With `--keep-log`, the log and the
//! older snapshots stay, and the store can still be replayed from any of them.

use std::io::{self, Write};
use std::time::Instant;

use anyhow::{Context, Result};
use ringwal::machine::KvStateMachine;
use ringwal::{Log, Snapshot, SnapshotId, SnapshotOptions, StateImage, StateMachine};
use serde::Serialize;

use super::args::CreateArgs;
use crate::failure::{from_driver, unwrapped};
use crate::kv::store::{self, Store};
use crate::output;
use crate::progress::{Busy, Progress};
use crate::text::{bytes, count, value};

/// What was done.
#[derive(Debug, Serialize)]
struct Created {
    id: String,
    index: u64,
    term: u64,
    machine: String,
    raw_bytes: u64,
    stored_bytes: u64,
    checksum: String,
    keys: u64,
    /// Nothing was written since this snapshot was taken, so that there is no newer one.
    was_there: bool,
    seconds: f64,
    /// The log's segments before and after.
    log_bytes_before: u64,
    log_bytes: u64,
    /// Index up to which the log is compacted.
    compacted: u64,
}

impl Created {
    fn table(&self) -> String {
        let what = if self.was_there { "was there already" } else { "was taken and verified" };
        format!(
            "{} {what}: {} keys, {} in {}, {} s\nthe log takes {} (before: {}) and is compacted up to index {}\n",
            self.id,
            count(self.keys),
            bytes(self.raw_bytes),
            bytes(self.stored_bytes),
            value(self.seconds),
            bytes(self.log_bytes),
            bytes(self.log_bytes_before),
            count(self.compacted),
        )
    }
}

/// Takes the snapshot.
pub(super) fn run(args: &CreateArgs) -> Result<()> {
    let json_file = output::open_json(args.json.as_deref())?;
    let options = SnapshotOptions::default().level(args.level).low_priority(false);
    let kept = args.kept().map_err(anyhow::Error::msg)? as usize;
    let config =
        store::one_shot().snapshots(options).keep_snapshots(kept).log_reaches_back_to(args.reach_back as usize);
    let store = store::open_existing(&args.store, config)?;
    let mut created = create(&store, args.keep_log)?;
    store::close(store)?;
    // Segments that a compaction dropped go by and by, and at the latest when the log is closed.
    created.log_bytes = bytes_of(&Log::open_read_only(&args.store.dir)?.0);
    output::publish(&created, || created.table(), args.json.as_deref(), json_file)
}

fn create(store: &Store, keep_log: bool) -> Result<Created> {
    let started = Instant::now();
    let log_bytes = bytes_of(store.log());
    let newest_before = store.snapshots().newest()?;
    let snapshot = if keep_log { snapshot_alone(store)? } else { checkpoint(store)? };
    Ok(Created {
        id: snapshot.id.to_string(),
        index: snapshot.index,
        term: snapshot.term,
        machine: snapshot.machine,
        raw_bytes: snapshot.raw_bytes,
        stored_bytes: snapshot.stored_bytes,
        checksum: format!("{:08x}", snapshot.checksum),
        keys: store.read(KvStateMachine::len),
        was_there: newest_before == Some(snapshot.id),
        seconds: started.elapsed().as_secs_f64(),
        log_bytes_before: log_bytes,
        log_bytes,
        compacted: store.log().state().compacted.map_or(0, |(index, _)| index),
    })
}

fn bytes_of(log: &Log) -> u64 {
    log.segments().iter().map(|segment| segment.bytes).sum()
}

fn checkpoint(store: &Store) -> Result<Snapshot> {
    let _bar = Busy::start("taking and verifying the snapshot, compacting the log");
    store.checkpoint().map_err(from_driver)
}

/// A snapshot without any consequence for the log.
fn snapshot_alone(store: &Store) -> Result<Snapshot> {
    // Nobody else has the store: nothing is applied between these.
    let index = store.last_applied();
    let term = if index == 0 { 0 } else { store.log().term(index)? };
    let snapshots = store.snapshots();
    if snapshots.newest()? == Some(SnapshotId { index, term }) {
        let _bar = Busy::start("verifying the snapshot that is there");
        return Ok(snapshots.verify(&SnapshotId { index, term }.to_string())?);
    }
    let (image, total) = store.read(|machine| (machine.image(), machine.bytes()));
    let mut writer = snapshots.writer(index, term, KvStateMachine::KIND)?;
    let mut sink = Shown { sink: &mut writer, bar: Progress::bar("taking the snapshot", total), done: 0 };
    image.write_to(&mut sink).map_err(unwrapped).context("the snapshot could not be written")?;
    drop(sink);
    let _bar = Busy::start("verifying the snapshot");
    Ok(writer.publish()?)
}

/// A snapshot that is written with a bar.
struct Shown<'a, W> {
    sink: &'a mut W,
    bar: Progress,
    done: u64,
}

impl<W: Write> Write for Shown<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.sink.write(bytes)?;
        self.done += count as u64;
        self.bar.at(self.done, String::new);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}
