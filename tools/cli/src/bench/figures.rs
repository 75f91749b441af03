//! From pairs of slices to the figures of the run. Pure arithmetic; the names are those of the JSON.
//!
//! An *ack* is one acknowledged entry. Totals and rates are over all pairs. A ratio is the median of the pairs' own
//! ratios, so that a disturbance of the machine that hits a few slices does not decide it. A figure that cannot be had
//! is `null`.

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::bench::floor::SEQUENTIAL_BYTES;
use crate::bench::slices::{FloorSlice, LogSlice, median_ns};

/// What the pairs were measured with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    pub(crate) payload_bytes: usize,
    pub(crate) batch: u32,
    pub(crate) frame_bytes: usize,
    pub(crate) cpus: usize,
}

/// The figures of a run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figures {
    pub(crate) acked_per_s: f64,
    pub(crate) mb_per_s: f64,
    pub(crate) latency_us: Latency,
    pub(crate) frames_per_s: f64,
    pub(crate) entries_per_frame: f64,
    pub(crate) bytes_written_per_payload_byte: f64,
    pub(crate) device_flushes_per_ack: Option<f64>,
    /// Flushes of the device, frames and syncs of the log, all while the log was measured.
    pub(crate) device_flushes: Option<u64>,
    pub(crate) frames: u64,
    pub(crate) syncs: u64,
    pub(crate) cpu_seconds: f64,
    pub(crate) cpu_seconds_per_million_acks: f64,
    /// CPU time of this process while the load ran, over that time and all CPUs. What interrupts and other programs
    /// take is not in it.
    pub(crate) cpu_share: f64,
    /// The share of all CPUs that was not idle while the load ran: this process, the kernel's work for it, and whatever
    /// else ran.
    pub(crate) cpus_busy: Option<f64>,
    /// The thread that used most CPU time in the log's slices, and its share of one CPU.
    pub(crate) busiest_thread: Option<BusyThread>,
    pub(crate) floor: FloorFigures,
    pub(crate) ratio: Ratios,
    pub(crate) pairs: usize,
    pub(crate) acked: u64,
}

/// A thread and what it used of one CPU, from 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct BusyThread {
    pub(crate) name: String,
    pub(crate) cpu_share: f64,
}

/// Latencies in microseconds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
}

/// The device's floor.
#[derive(Clone, Debug, Serialize)]
#[allow(non_snake_case, reason = "the names of the JSON's fields")]
pub(crate) struct FloorFigures {
    pub(crate) write_p50_us: f64,
    pub(crate) writes_per_s_depth1: f64,
    pub(crate) writes_per_s_depthN: f64,
    pub(crate) frame_bytes: usize,
    pub(crate) frame_writes_per_s_depth1: f64,
    pub(crate) frame_writes_per_s_depthN: f64,
    pub(crate) sequential_mb_per_s: f64,
    pub(crate) handover_us: f64,
}

/// The log against the floor.
#[derive(Clone, Debug, Serialize)]
#[allow(non_snake_case, reason = "the names of the JSON's fields")]
pub(crate) struct Ratios {
    pub(crate) p50_to_floor: f64,
    pub(crate) acked_to_depth1: f64,
    pub(crate) acked_batches_to_frame_depth1: f64,
    pub(crate) frames_to_frame_depthN: f64,
    pub(crate) mb_to_sequential: f64,
}

impl Figures {
    /// The figures of these pairs; `latencies` has every latency of their log slices, in nanoseconds.
    pub(crate) fn of(pairs: &[(LogSlice, FloorSlice)], latencies: &Histogram<u64>, scale: Scale) -> Figures {
        let log = sum(pairs.iter().map(|(log, _)| log));
        let acked_per_s = rate(&log);
        Figures {
            acked_per_s,
            mb_per_s: megabytes(acked_per_s, scale.payload_bytes),
            latency_us: Latency::of(latencies),
            frames_per_s: acked_per_s / entries_per_frame(&log),
            entries_per_frame: entries_per_frame(&log),
            bytes_written_per_payload_byte: log.written_bytes as f64 / log.payload_bytes as f64,
            device_flushes_per_ack: log.flushes.map(|flushes| flushes as f64 / log.acked as f64),
            device_flushes: log.flushes,
            frames: log.frames,
            syncs: log.syncs,
            cpu_seconds: log.cpu_s,
            cpu_seconds_per_million_acks: log.cpu_s * 1e6 / log.acked as f64,
            cpu_share: log.busy_cpu_s / log.busy_wall_s / scale.cpus as f64,
            cpus_busy: log.idle_s.map(|idle_s| (1.0 - idle_s / log.busy_wall_s / scale.cpus as f64).clamp(0.0, 1.0)),
            busiest_thread: busiest(&log),
            floor: FloorFigures::of(pairs, scale),
            ratio: Ratios::of(pairs, scale),
            pairs: pairs.len(),
            acked: log.acked,
        }
    }
}

impl Latency {
    fn of(latencies: &Histogram<u64>) -> Latency {
        let at = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e3;
        Latency { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: latencies.max() as f64 / 1e3 }
    }
}

impl FloorFigures {
    fn of(pairs: &[(LogSlice, FloorSlice)], scale: Scale) -> FloorFigures {
        let mean = |figure: fn(&FloorSlice) -> f64| {
            pairs.iter().map(|(_, floor)| figure(floor)).sum::<f64>() / pairs.len() as f64
        };
        let p50_us = |durations: fn(&FloorSlice) -> &Vec<u64>| {
            let mut all = pairs.iter().flat_map(|(_, floor)| durations(floor)).copied().collect::<Vec<_>>();
            median_ns(&mut all) as f64 / 1e3
        };
        FloorFigures {
            write_p50_us: p50_us(|floor| &floor.write_ns),
            writes_per_s_depth1: mean(|floor| floor.block_depth1),
            writes_per_s_depthN: mean(|floor| floor.block_depth_n),
            frame_bytes: scale.frame_bytes,
            frame_writes_per_s_depth1: mean(|floor| floor.frame_depth1),
            frame_writes_per_s_depthN: mean(|floor| floor.frame_depth_n),
            sequential_mb_per_s: megabytes(mean(|floor| floor.sequential), SEQUENTIAL_BYTES),
            handover_us: p50_us(|floor| &floor.handover_ns),
        }
    }
}

impl Ratios {
    fn of(pairs: &[(LogSlice, FloorSlice)], scale: Scale) -> Ratios {
        let over = |ratio: &dyn Fn(&LogSlice, &FloorSlice) -> f64| {
            median(pairs.iter().map(|(log, floor)| ratio(log, floor)).collect())
        };
        let batch = f64::from(scale.batch);
        Ratios {
            p50_to_floor: over(&|log, floor| log.p50_ns as f64 / floor.write_p50_ns as f64),
            acked_to_depth1: over(&|log, floor| rate(log) / floor.block_depth1),
            acked_batches_to_frame_depth1: over(&|log, floor| rate(log) / batch / floor.frame_depth1),
            frames_to_frame_depthN: over(&|log, floor| rate(log) / entries_per_frame(log) / floor.frame_depth_n),
            mb_to_sequential: over(&|log, floor| {
                megabytes(rate(log), scale.payload_bytes) / megabytes(floor.sequential, SEQUENTIAL_BYTES)
            }),
        }
    }
}

fn sum<'a>(slices: impl Iterator<Item = &'a LogSlice>) -> LogSlice {
    slices
        .cloned()
        .reduce(|all, one| LogSlice {
            acked: all.acked + one.acked,
            counted: all.counted + one.counted,
            counted_s: all.counted_s + one.counted_s,
            p50_ns: 0,
            cpu_s: all.cpu_s + one.cpu_s,
            busy_wall_s: all.busy_wall_s + one.busy_wall_s,
            busy_cpu_s: all.busy_cpu_s + one.busy_cpu_s,
            idle_s: all.idle_s.zip(one.idle_s).map(|(all, one)| all + one),
            threads: all.threads.plus(&one.threads),
            flushes: all.flushes.zip(one.flushes).map(|(all, one)| all + one),
            frames: all.frames + one.frames,
            syncs: all.syncs + one.syncs,
            entries: all.entries + one.entries,
            payload_bytes: all.payload_bytes + one.payload_bytes,
            written_bytes: all.written_bytes + one.written_bytes,
        })
        .unwrap_or_default()
}

fn busiest(log: &LogSlice) -> Option<BusyThread> {
    let (name, time) = log.threads.busiest()?;
    Some(BusyThread { name, cpu_share: (time.as_secs_f64() / log.busy_wall_s).min(1.0) })
}

/// Entries acknowledged per second.
fn rate(log: &LogSlice) -> f64 {
    log.counted as f64 / log.counted_s
}

fn entries_per_frame(log: &LogSlice) -> f64 {
    log.entries as f64 / log.frames as f64
}

/// Millions of bytes per second.
fn megabytes(per_s: f64, bytes: usize) -> f64 {
    per_s * bytes as f64 / 1e6
}

/// The median, of an even number the mean of the middle two; NaN of none, and those that are not numbers left out.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.retain(|value| value.is_finite());
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::threads::ThreadTimes;

    fn pair(counted: u64, p50_ns: u64) -> (LogSlice, FloorSlice) {
        let log = LogSlice {
            acked: counted + 100,
            counted,
            counted_s: 0.2,
            p50_ns,
            cpu_s: 0.1,
            busy_wall_s: 0.2,
            busy_cpu_s: 0.1,
            idle_s: Some(0.3),
            threads: ThreadTimes::of([(7, "writer", 50_000_000), (8, "producer", 90_000_000)]),
            flushes: Some(50),
            frames: 100,
            syncs: 0,
            entries: 1000,
            payload_bytes: 128_000,
            written_bytes: 400_000,
        };
        let floor = FloorSlice {
            block_depth1: 1000.0,
            block_depth_n: 3000.0,
            frame_depth1: 500.0,
            frame_depth_n: 2000.0,
            sequential: 100.0,
            write_p50_ns: 100_000,
            write_ns: vec![100_000],
            handover_ns: vec![7_000],
        };
        (log, floor)
    }

    const SCALE: Scale = Scale { payload_bytes: 128, batch: 10, frame_bytes: 8192, cpus: 2 };

    #[test]
    fn the_median_is_of_the_finite_ones() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(vec![1.0, f64::INFINITY, f64::NAN]), 1.0);
        assert!(median(vec![]).is_nan());
    }

    #[test]
    fn a_ratio_is_the_median_of_the_pairs_and_not_the_ratio_of_the_sums() {
        let pairs = [pair(2000, 120_000), pair(2200, 110_000), pair(900_000, 1)];
        let figures = Figures::of(&pairs, &Histogram::new(3).unwrap(), SCALE);
        let near = |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 1e-9, "{found} {expected}");
        near(figures.ratio.acked_to_depth1, 11.0);
        near(figures.ratio.p50_to_floor, 1.1);
        near(figures.ratio.acked_batches_to_frame_depth1, 2.2);
        near(figures.ratio.frames_to_frame_depthN, 0.55);
        near(figures.ratio.mb_to_sequential, 11_000.0 * 128.0 / (100.0 * 1_048_576.0));
    }

    #[test]
    fn totals_are_over_all_pairs() {
        let figures = Figures::of(&[pair(2000, 1), pair(4000, 1)], &Histogram::new(3).unwrap(), SCALE);
        assert_eq!((figures.pairs, figures.acked), (2, 6200));
        assert_eq!(figures.acked_per_s, 15_000.0);
        assert_eq!(figures.entries_per_frame, 10.0);
        assert_eq!(figures.frames_per_s, 1500.0);
        assert_eq!(figures.device_flushes_per_ack, Some(100.0 / 6200.0));
        assert_eq!((figures.device_flushes, figures.frames), (Some(100), 200));
        assert_eq!(figures.floor.handover_us, 7.0);
        assert_eq!(figures.cpu_share, 0.25);
        assert!((figures.cpus_busy.unwrap() - 0.25).abs() < 1e-9);
        let busiest = figures.busiest_thread.unwrap();
        assert!(busiest.name == "producer" && (busiest.cpu_share - 0.45).abs() < 1e-9, "{busiest:?}");
    }

    #[test]
    fn a_device_without_counters_and_a_run_without_acks_give_null() {
        let mut quiet = pair(0, 0);
        quiet.0 = LogSlice::default();
        let figures = Figures::of(&[quiet], &Histogram::new(3).unwrap(), SCALE);
        let json = serde_json::to_value(&figures).unwrap();
        assert!(json["device_flushes_per_ack"].is_null() && json["acked_per_s"].is_null());
    }
}
