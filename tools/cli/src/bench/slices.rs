//! One pair of measurements: a slice of the log, then a slice of the device's floor, each with the device to itself.
//!
//! A slice of the log ends when the log is quiet: all acks in, no compaction under way, the next segment prepared.
//! What it takes to get quiet after the last ack (preparing that segment) is charged to the log: its rate is taken
//! over the counted time *and* that one. So the floor is not disturbed by the log's housekeeping, and the log gets no
//! housekeeping for free.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use hdrhistogram::Histogram;

use crate::bench::compactor::Compactor;
use crate::bench::counters::{Device, cpu_time, idle_time};
use crate::bench::floor::{BLOCK_BYTES, Floor, SEQUENTIAL_BYTES};
use crate::bench::handover;
use crate::bench::load::Load;
use crate::bench::threads::ThreadTimes;
use crate::engine::Target;

/// Length of a slice.
pub(crate) const SLICE: Duration = Duration::from_millis(200);
/// How much of a floor's slice goes to waking threads; the writes share the rest.
const HANDOVER: Duration = Duration::from_millis(10);
/// How long a slice of the log may take to get quiet.
const QUIET_MAX: Duration = Duration::from_secs(2);

/// What a slice of the log came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct LogSlice {
    /// Entries acknowledged in all.
    pub(crate) acked: u64,
    /// Entries acknowledged within the counted time, and what they are divided by to get a rate.
    pub(crate) counted: u64,
    pub(crate) counted_s: f64,
    pub(crate) p50_ns: u64,
    pub(crate) cpu_s: f64,
    /// From the start of the load to its last ack, and the CPU time of this process within it.
    pub(crate) busy_wall_s: f64,
    pub(crate) busy_cpu_s: f64,
    /// What all CPUs together were idle in that time, where the machine tells.
    pub(crate) idle_s: Option<f64>,
    /// CPU time that each thread used.
    pub(crate) threads: ThreadTimes,
    /// Flushes of the device, where it counts them.
    pub(crate) flushes: Option<u64>,
    pub(crate) frames: u64,
    pub(crate) syncs: u64,
    pub(crate) entries: u64,
    pub(crate) payload_bytes: u64,
    pub(crate) written_bytes: u64,
}

/// What a slice of the floor came to: writes per second, and nanoseconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct FloorSlice {
    pub(crate) block_depth1: f64,
    pub(crate) block_depth_n: f64,
    pub(crate) frame_depth1: f64,
    pub(crate) frame_depth_n: f64,
    pub(crate) sequential: f64,
    pub(crate) write_p50_ns: u64,
    pub(crate) write_ns: Vec<u64>,
    pub(crate) handover_ns: Vec<u64>,
}

/// Everything a pair needs.
pub(crate) struct Bench<'a> {
    pub(crate) target: &'a Target,
    pub(crate) load: &'a Load,
    pub(crate) compactor: &'a Compactor,
    pub(crate) device: Option<&'a Device>,
    pub(crate) floor: &'a Floor,
    pub(crate) batch: u32,
    pub(crate) depth: usize,
}

impl Bench<'_> {
    /// Measures the log; every latency also goes to `all`.
    pub(crate) fn log_slice(&self, all: &mut Histogram<u64>) -> Result<LogSlice> {
        let before = self.target.counters();
        let (threads, start) = (ThreadTimes::now(), Instant::now());
        let idle = idle_time();
        let (cpu, flushes) = (cpu_time(), self.device.and_then(Device::flushes));
        let (mut slice, mut latencies) = (LogSlice::default(), Histogram::<u64>::new(3)?);
        let mut takes_ns = Vec::new();
        let counted = self.load.slice(SLICE, |take| {
            slice.counted += take.counted;
            takes_ns.extend_from_slice(&take.latencies_ns);
        })?;
        slice.busy_cpu_s = (cpu_time() - cpu).as_secs_f64();
        slice.busy_wall_s = start.elapsed().as_secs_f64();
        slice.idle_s = idle_time().zip(idle).map(|(now, then)| now.saturating_sub(then).as_secs_f64());
        self.compactor.rest()?;
        slice.counted_s = (counted + self.get_quiet()).as_secs_f64();
        slice.cpu_s = (cpu_time() - cpu).as_secs_f64();
        slice.flushes = self.device.and_then(Device::flushes).zip(flushes).map(|(now, then)| now - then);
        slice.threads = ThreadTimes::now().since(&threads);

        takes_ns.iter().try_for_each(|&ns| latencies.record(ns))?;
        all.add(&latencies)?;
        slice.acked = takes_ns.len() as u64 * u64::from(self.batch);
        slice.p50_ns = latencies.value_at_quantile(0.5);
        let after = self.target.counters();
        slice.frames = after.frames - before.frames;
        slice.syncs = after.syncs - before.syncs;
        slice.entries = after.entries - before.entries;
        slice.payload_bytes = after.payload_bytes - before.payload_bytes;
        slice.written_bytes = after.written_bytes - before.written_bytes;
        Ok(slice)
    }

    /// Waits until the next segment stands ready; how long that took.
    fn get_quiet(&self) -> Duration {
        let start = Instant::now();
        while !self.target.spare_stands() && start.elapsed() < QUIET_MAX {
            thread::sleep(Duration::from_micros(500));
        }
        start.elapsed()
    }

    /// Measures the floor with frames of `frame_bytes`; `turn` says with which measurement it begins, so that none is
    /// always the first after the log.
    pub(crate) fn floor_slice(&self, frame_bytes: usize, turn: usize) -> Result<FloorSlice> {
        let mut slice = FloorSlice::default();
        let share = (SLICE - HANDOVER) / 5;
        let write = |bytes, depth| self.floor.write(bytes, depth, share);
        for step in 0..5 {
            match (turn + step) % 5 {
                0 => {
                    let writes = write(BLOCK_BYTES, 1)?;
                    slice.block_depth1 = writes.per_s;
                    slice.write_ns = writes.latencies_ns;
                    slice.write_p50_ns = median_ns(&mut slice.write_ns);
                }
                1 => slice.block_depth_n = write(BLOCK_BYTES, self.depth)?.per_s,
                2 => slice.frame_depth1 = write(frame_bytes, 1)?.per_s,
                3 => slice.frame_depth_n = write(frame_bytes, self.depth)?.per_s,
                _ => slice.sequential = write(SEQUENTIAL_BYTES, self.depth)?.per_s,
            }
        }
        slice.handover_ns = handover::round_trips_ns(HANDOVER);
        Ok(slice)
    }
}

/// The median of durations, which are sorted by this; 0 for none.
pub(crate) fn median_ns(durations: &mut [u64]) -> u64 {
    durations.sort_unstable();
    durations.get(durations.len() / 2).copied().unwrap_or(0)
}
