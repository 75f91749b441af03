//! What a log did since it was opened: counters and histograms.
//!
//! Durations are in nanoseconds, sizes in bytes. Histograms are HDR histograms with two significant digits; values
//! beyond their range are counted at its end.

use std::fmt;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use hdrhistogram::Histogram;

use crate::engine::stall::Stage;

/// Longest duration told apart, in nanoseconds: a minute.
const NS_MAX: u64 = 60_000_000_000;

/// A look at a log's counters; see [`crate::Log::stats`].
#[derive(Clone, Debug)]
pub struct Stats {
    /// Frames acknowledged, marks and open frames included.
    pub frames: u64,
    /// Entries acknowledged.
    pub entries: u64,
    /// Bytes of the payloads of acknowledged entries.
    pub payload_bytes: u64,
    /// Bytes of acknowledged frames as written, padding included.
    pub written_bytes: u64,
    /// Marks among the frames.
    pub marks: u64,
    /// Times the log went on in a new segment.
    pub rolls: u64,
    /// Segments that were dropped after compaction.
    pub drops: u64,
    /// Dropped segments that became spares.
    pub recycled: u64,
    /// Completed syncs, in the durabilities that sync apart from writing.
    pub syncs: u64,
    /// What the disk has not answered for longer than [`Config::stall_after`](crate::Config::stall_after), as of this
    /// look; `None` where it answers. True at any time, whatever the log's own threads wait for.
    pub stalled: Option<Stall>,
    /// Stalls, the present one included.
    pub stalls: u64,
    /// From the moment a frame took its first batch to the moment the writer took the frame.
    pub queue_wait_ns: Histogram<u64>,
    /// Copying and checksumming a frame.
    pub encode_ns: Histogram<u64>,
    /// From submission to completion of a frame's write.
    pub write_ns: Histogram<u64>,
    /// From the acknowledgement of a frame to the moment its first waiter ran.
    pub wake_ns: Histogram<u64>,
    /// Entries in a data frame.
    pub entries_per_frame: Histogram<u64>,
    /// Padded size of a data frame in bytes.
    pub bytes_per_frame: Histogram<u64>,
}

impl Stats {
    fn new() -> Stats {
        Stats {
            frames: 0,
            entries: 0,
            payload_bytes: 0,
            written_bytes: 0,
            marks: 0,
            rolls: 0,
            drops: 0,
            recycled: 0,
            syncs: 0,
            stalled: None,
            stalls: 0,
            queue_wait_ns: histogram(NS_MAX),
            encode_ns: histogram(NS_MAX),
            write_ns: histogram(NS_MAX),
            wake_ns: histogram(NS_MAX),
            entries_per_frame: histogram(1 << 32),
            bytes_per_frame: histogram(1 << 32),
        }
    }
}

/// A disk that does not answer, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stall {
    /// What the oldest operation without an answer is.
    pub stage: Stage,
    /// The device, as [`Disk::device`](crate::disk::Disk::device) names it.
    pub device: String,
    /// How long the oldest operation has waited, in nanoseconds.
    pub waited_ns: u64,
    /// Operations without an answer: of the writer thread if the oldest is its, else of the helper.
    pub operations: usize,
    /// Bytes that these operations write.
    pub bytes: u64,
}

fn histogram(high: u64) -> Histogram<u64> {
    Histogram::new_with_bounds(1, high, 2).expect("the bounds are constants that HdrHistogram accepts")
}

/// What is counted per frame, by the writer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FrameStats {
    pub(crate) is_data: bool,
    pub(crate) is_mark: bool,
    pub(crate) entries: u64,
    pub(crate) payload_bytes: u64,
    pub(crate) padded_bytes: u64,
    pub(crate) queue_wait_ns: u64,
    pub(crate) encode_ns: u64,
    pub(crate) write_ns: u64,
}

/// The counters as the threads keep them.
pub(crate) struct Meter {
    stats: Mutex<Stats>,
    pub(crate) rolls: AtomicU64,
    pub(crate) drops: AtomicU64,
    pub(crate) recycled: AtomicU64,
    pub(crate) syncs: AtomicU64,
}

impl Meter {
    pub(crate) fn new() -> Meter {
        let zero = AtomicU64::default;
        Meter { stats: Mutex::new(Stats::new()), rolls: zero(), drops: zero(), recycled: zero(), syncs: zero() }
    }

    pub(crate) fn record_frame(&self, frame: &FrameStats) {
        let mut stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
        stats.frames += 1;
        stats.entries += frame.entries;
        stats.payload_bytes += frame.payload_bytes;
        stats.written_bytes += frame.padded_bytes;
        stats.marks += u64::from(frame.is_mark);
        if frame.is_data {
            stats.queue_wait_ns.saturating_record(frame.queue_wait_ns);
            stats.encode_ns.saturating_record(frame.encode_ns);
            stats.write_ns.saturating_record(frame.write_ns);
            stats.entries_per_frame.saturating_record(frame.entries);
            stats.bytes_per_frame.saturating_record(frame.padded_bytes);
        }
    }

    /// Waiters come by the hundred: one that would have to wait leaves its sample out.
    pub(crate) fn record_wake(&self, ns: u64) {
        if let Ok(mut stats) = self.stats.try_lock() {
            stats.wake_ns.saturating_record(ns);
        }
    }

    pub(crate) fn look(&self) -> Stats {
        let mut stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner).clone();
        stats.rolls = self.rolls.load(Ordering::Relaxed);
        stats.drops = self.drops.load(Ordering::Relaxed);
        stats.recycled = self.recycled.load(Ordering::Relaxed);
        stats.syncs = self.syncs.load(Ordering::Relaxed);
        stats
    }
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Meter")
    }
}
