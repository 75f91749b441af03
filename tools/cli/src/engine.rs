//! The one place where the tool meets the library: what the bench asks of a log, in the bench's own words; torture uses
//! the log as it is.
//!
//! Everything else in the tool goes through here, so a change of the library's interface is followed in one file.

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result};
use bytes::Bytes;
use hdrhistogram::Histogram;

pub(crate) use ringwal::disk::AlignedBuf;
pub(crate) use ringwal::sim::{Rng, Summary, Violation, explore_until};
pub(crate) use ringwal::{
    Batch, Config, DriverConfig, Durability, Error, FileSnapshots, IoChoice, KvOp, KvStore, Log, LogEntry, LogState,
    Pending, RecoveryReport, SegmentInfo, SegmentRole, Snapshot, SnapshotOptions, Verify, Wait,
};

/// A log that is being measured. Clones share it.
#[derive(Clone)]
pub(crate) struct Target {
    log: Log,
}

/// What a log has counted since it was opened; the histograms cover the same time.
pub(crate) struct Counters {
    pub(crate) frames: u64,
    pub(crate) entries: u64,
    pub(crate) payload_bytes: u64,
    pub(crate) written_bytes: u64,
    /// Times the log went on in a new segment.
    pub(crate) rolls: u64,
    /// Completed syncs, in the durabilities that sync apart from writing.
    pub(crate) syncs: u64,
    pub(crate) entries_per_frame: Histogram<u64>,
    /// Bytes per frame.
    pub(crate) frame_bytes: Histogram<u64>,
    /// Where the time went, in nanoseconds: queue wait, encode, write, wake.
    pub(crate) stages_ns: [Histogram<u64>; 4],
}

impl Target {
    /// Opens the log in `dir`, making it if it is not there.
    pub(crate) fn open(dir: &Path, config: Config) -> Result<Target> {
        Target::recover(dir, config).map(|(target, _)| target)
    }

    /// [`Target::open`], with what recovery had to do.
    pub(crate) fn recover(dir: &Path, config: Config) -> Result<(Target, RecoveryReport)> {
        let opened = Log::open(dir, config).with_context(|| format!("cannot open the log in {}", dir.display()));
        opened.map(|(log, report)| (Target { log }, report))
    }

    /// Hands in a batch without waiting for its ack.
    pub(crate) fn submit(&self, batch: Batch) -> Result<Pending> {
        Ok(self.log.submit(batch)?)
    }

    /// Drops everything up to and including `upto`.
    pub(crate) fn compact(&self, upto: u64) -> Result<()> {
        Ok(self.log.compact(upto)?)
    }

    /// Index of the last entry that was accepted.
    pub(crate) fn last_index(&self) -> Option<u64> {
        self.log.state().last.map(|(index, _)| index)
    }

    /// Index of the highest entry that was compacted away.
    pub(crate) fn compacted_index(&self) -> Option<u64> {
        self.log.state().compacted.map(|(index, _)| index)
    }

    /// The segments, oldest first.
    pub(crate) fn segments(&self) -> Vec<SegmentInfo> {
        self.log.segments()
    }

    /// Whether the next segment stands ready, so that nothing is being prepared.
    pub(crate) fn spare_stands(&self) -> bool {
        self.log.segments().iter().any(|segment| segment.role == SegmentRole::Spare)
    }

    /// Block size of the segment that is being written.
    pub(crate) fn block_bytes(&self) -> u64 {
        let segments = self.log.segments();
        let active = segments.iter().find(|segment| segment.role == SegmentRole::Active);
        active.map_or(4096, |segment| u64::from(segment.block_bytes))
    }

    /// Who carries the writes, and why.
    pub(crate) fn io_mode(&self) -> String {
        self.log.io_mode().to_string()
    }

    /// What was counted since the open.
    pub(crate) fn counters(&self) -> Counters {
        let stats = self.log.stats();
        Counters {
            frames: stats.frames,
            entries: stats.entries,
            payload_bytes: stats.payload_bytes,
            written_bytes: stats.written_bytes,
            rolls: stats.rolls,
            syncs: stats.syncs,
            entries_per_frame: stats.entries_per_frame,
            frame_bytes: stats.bytes_per_frame,
            stages_ns: [stats.queue_wait_ns, stats.encode_ns, stats.write_ns, stats.wake_ns],
        }
    }

    /// The payload of one entry.
    pub(crate) fn get(&self, index: u64) -> Result<Bytes> {
        Ok(self.log.get(index)?.command)
    }

    /// All entries in order: index and payload.
    pub(crate) fn entries(&self) -> impl Iterator<Item = Result<(u64, Bytes)>> + use<> {
        self.log.iter(..).map(|entry| entry.map(|entry| (entry.index, entry.command)).context("cannot read the log"))
    }

    /// Lends the entries of a range in order: index and payload.
    pub(crate) fn scan(&self, range: Range<u64>, mut see: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let mut entries = self.log.iter(range);
        while let Some(entry) = entries.next_ref() {
            let entry = entry.context("cannot read the log")?;
            see(entry.index, entry.command)?;
        }
        Ok(())
    }

    /// Closes the log: drained, synced, marked.
    pub(crate) fn close(self) -> Result<()> {
        self.log.close().context("cannot close the log")
    }
}

/// What a read-only look at a log shows.
pub(crate) struct View {
    pub(crate) state: LogState,
    pub(crate) segments: Vec<SegmentInfo>,
    pub(crate) meta: Vec<(Bytes, Bytes)>,
    pub(crate) io_mode: String,
}

impl View {
    /// Opens the log in `dir` read-only and takes one look.
    pub(crate) fn open(dir: &Path) -> Result<View> {
        let (log, _) = Log::open_read_only(dir)?;
        let (state, segments, meta) = (log.state(), log.segments(), log.meta());
        Ok(View { state, segments, meta, io_mode: log.io_mode().to_string() })
    }
}
