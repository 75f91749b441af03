//! The rows that are ordinary benches with settings of their own: what each sets, and what its figures have to reach.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::args::BenchArgs;
use crate::bench::counters;
use crate::bench::figures::Figures;
use crate::bench::job;
use crate::bench::place::Place;
use crate::bench::suite::row::{Bar, Judged, Outcome, Row, Site};
use crate::engine::{Durability, Wait};
use crate::text::value;

/// Where the memory file system is, on nearly every Linux.
pub(crate) const TMPFS: &str = "/dev/shm";
/// What a log in memory may need: it has no slow disk that keeps it small.
const TMPFS_FREE_BYTES: u64 = 6 << 30;

/// One bench: its name, its bar, what it sets, how it is judged.
struct Load {
    name: &'static str,
    bar: &'static str,
    set: fn(&mut BenchArgs),
    judge: fn(&Figures) -> Judged,
}

const SPIN: Wait = Wait::Spin(Duration::from_micros(50));

/// On the disk.
const ON_DISK: [Load; 9] = [
    Load {
        name: "latency-spin",
        bar: "p50 <= 1.15 x floor",
        set: |args| (args.producers, args.wait) = (1, SPIN),
        judge: latency_spin,
    },
    Load {
        name: "latency-parked",
        bar: "p50 <= floor + 1.3 x hand-over",
        set: |args| args.producers = 1,
        judge: latency_parked,
    },
    Load {
        name: "producers-16",
        bar: "acked >= 10 x depth-1 writes",
        set: |args| args.producers = 16,
        judge: |figures| {
            let times = figures.ratio.acked_to_depth1;
            Judged::new(times >= 10.0, format!("{} x, {} /s", value(times), value(figures.acked_per_s)))
        },
    },
    Load {
        name: "producers-256",
        bar: ">= 35 x, or CPUs >= 90 % at <= 7 s/M",
        set: |args| args.producers = 256,
        judge: producers_256,
    },
    Load {
        name: "window-4096",
        bar: ">= 250 x, or a thread >= 90 % at <= 1.2 s/M",
        set: |args| (args.producers, args.window) = (1, 4096),
        judge: window_4096,
    },
    Load {
        name: "batch-100",
        bar: ">= 0.85 x frames at depth 1, <= 1.10 B/B",
        set: |args| (args.producers, args.batch, args.payload, args.wait) = (1, 100, 1024, SPIN),
        judge: batch_100,
    },
    Load {
        name: "batch-1000",
        bar: ">= 0.85 x frames at depth N, or >= 6 M/s",
        set: |args| (args.producers, args.batch) = (4, 1000),
        judge: batch_1000,
    },
    Load {
        name: "stream-retained",
        bar: "MB/s >= 0.85 x sequential",
        set: |args| (args.producers, args.window, args.payload, args.retain) = (1, 512, 16 << 10, Some(1 << 30)),
        judge: |figures| stream(figures, 0.85),
    },
    Load {
        name: "stream-growing",
        bar: "MB/s >= 0.45 x sequential",
        set: |args| (args.producers, args.window, args.payload) = (1, 512, 16 << 10),
        judge: |figures| stream(figures, 0.45),
    },
];

/// In memory: no disk to hide behind.
const IN_MEMORY: [Load; 2] = [
    Load {
        name: "tmpfs-parked",
        bar: "p50 <= 1.3 x hand-over + 10 us",
        set: |args| args.producers = 1,
        judge: |figures| {
            let (p50, handover) = (figures.latency_us.p50, figures.floor.handover_us);
            let figure = format!("{} us, hand-over {}", value(p50), value(handover));
            Judged::new(p50 <= 1.3 * handover + 10.0, figure)
        },
    },
    Load {
        name: "tmpfs-spin",
        bar: "p50 <= 15 us",
        set: |args| (args.producers, args.wait) = (1, SPIN),
        judge: |figures| {
            let p50 = figures.latency_us.p50;
            Judged::new(p50 <= 15.0, format!("{} us", value(p50)))
        },
    },
];

/// The rows on the disk.
pub(crate) fn on_disk() -> Vec<Row> {
    ON_DISK.into_iter().map(|load| row(load, |site| Ok(site.dir.to_path_buf()))).collect()
}

/// The rows in memory, where there is a file system for that.
pub(crate) fn in_memory() -> Vec<Row> {
    IN_MEMORY.into_iter().map(|load| row(load, |_| memory_dir(Path::new(TMPFS)))).collect()
}

/// `place` says where the log goes, or why there is no place for it.
fn row(load: Load, place: fn(&Site<'_>) -> Result<PathBuf, String>) -> Row {
    Row {
        name: load.name.into(),
        bars: vec![Bar { name: load.name.into(), bar: load.bar.into() }],
        run: Box::new(move |site| match place(site) {
            Ok(dir) => run(&load, site.args, &dir),
            Err(why) => Ok(Outcome::Skipped(why)),
        }),
    }
}

fn run(load: &Load, args: &BenchArgs, dir: &Path) -> Result<Outcome> {
    let mut args = base(args);
    (load.set)(&mut args);
    let report = job::run(&args, &mut Place::take(Some(dir), false)?)?;
    let raw = serde_json::to_value(&report).context("cannot write the figures as JSON")?;
    Ok(Outcome::Measured(vec![(load.judge)(&report.figures)], raw))
}

/// What rows have in common: everything as by default, except for what the suite was told.
pub(crate) fn base(args: &BenchArgs) -> BenchArgs {
    BenchArgs { payload: 128, durability: Durability::Sync, json: None, keep: false, ..args.clone() }
}

/// A directory that is not there yet on the memory file system at `mount`, or why not.
pub(crate) fn memory_dir(mount: &Path) -> Result<PathBuf, String> {
    if fs::metadata(mount).is_err() || counters::file_system(mount) != "tmpfs" {
        return Err(format!("{} is no tmpfs", mount.display()));
    }
    if counters::free_bytes(mount) < Some(TMPFS_FREE_BYTES) {
        return Err(format!("{} has less than 6 GiB free", mount.display()));
    }
    Ok(mount.join(format!("ringwal-bench-{}", std::process::id())))
}

fn latency_spin(figures: &Figures) -> Judged {
    let (p50, floor, ratio) = (figures.latency_us.p50, figures.floor.write_p50_us, figures.ratio.p50_to_floor);
    Judged::new(ratio <= 1.15, format!("{} x, {} us, floor {}", value(ratio), value(p50), value(floor)))
}

fn latency_parked(figures: &Figures) -> Judged {
    let (p50, floor, handover) = (figures.latency_us.p50, figures.floor.write_p50_us, figures.floor.handover_us);
    let over = (p50 - floor) / handover;
    let figure = format!("floor + {over:.2} x, {} us, {} + {}", value(p50), value(floor), value(handover));
    Judged::new(over <= 1.3, figure)
}

/// Enough work done, or all CPUs at work and few of their seconds needed.
fn producers_256(figures: &Figures) -> Judged {
    let (times, share) = (figures.ratio.acked_to_depth1, figures.cpus_busy.unwrap_or(figures.cpu_share));
    let cpu_s = figures.cpu_seconds_per_million_acks;
    let met = times >= 35.0 || (share >= 0.9 && cpu_s <= 7.0);
    Judged::new(met, format!("{} x, CPUs {:.0} % at {} s/M", value(times), 100.0 * share, value(cpu_s)))
}

fn window_4096(figures: &Figures) -> Judged {
    let (times, cpu_s) = (figures.ratio.acked_to_depth1, figures.cpu_seconds_per_million_acks);
    let (name, share) = figures.busiest_thread.as_ref().map_or(("-", 0.0), |busy| (&busy.name, busy.cpu_share));
    let met = times >= 250.0 || (share >= 0.9 && cpu_s <= 1.2);
    Judged::new(met, format!("{} x, {name} {:.0} % at {} s/M", value(times), 100.0 * share, value(cpu_s)))
}

fn batch_100(figures: &Figures) -> Judged {
    let (ratio, spread) = (figures.ratio.acked_batches_to_frame_depth1, figures.bytes_written_per_payload_byte);
    Judged::new(ratio >= 0.85 && spread <= 1.10, format!("{} x, {spread:.3} B/B", value(ratio)))
}

fn batch_1000(figures: &Figures) -> Judged {
    let (ratio, millions) = (figures.ratio.frames_to_frame_depthN, figures.acked_per_s / 1e6);
    Judged::new(ratio >= 0.85 || millions >= 6.0, format!("{} x, {} M/s", value(ratio), value(millions)))
}

fn stream(figures: &Figures, bar: f64) -> Judged {
    let ratio = figures.ratio.mb_to_sequential;
    let (log, floor) = (figures.mb_per_s, figures.floor.sequential_mb_per_s);
    Judged::new(ratio >= bar, format!("{} x, {} MB/s of {}", value(ratio), value(log), value(floor)))
}

#[cfg(test)]
mod tests {
    use hdrhistogram::Histogram;

    use super::*;
    use crate::bench::figures::{BusyThread, Scale};
    use crate::bench::suite::row::Verdict;

    /// Figures of nothing, to be filled in.
    fn blank() -> Figures {
        let scale = Scale { payload_bytes: 128, batch: 1, frame_bytes: 4096, cpus: 2 };
        Figures::of(&[], &Histogram::new(3).unwrap(), scale)
    }

    fn verdict(judge: fn(&Figures) -> Judged, fill: impl FnOnce(&mut Figures)) -> Verdict {
        let mut figures = blank();
        fill(&mut figures);
        judge(&figures).verdict
    }

    #[test]
    fn no_figures_meet_no_bar() {
        for load in ON_DISK.iter().chain(&IN_MEMORY) {
            let name = load.name;
            if name == "tmpfs-spin" || name == "tmpfs-parked" {
                continue;
            }
            assert_eq!((load.judge)(&blank()).verdict, Verdict::Missed, "{name}");
        }
    }

    #[test]
    fn latencies_are_held_against_floor_and_hand_over() {
        let at = |ratio| verdict(latency_spin, |figures| figures.ratio.p50_to_floor = ratio);
        assert_eq!([1.15, 1.16].map(at), [Verdict::Met, Verdict::Missed]);
        let parked = |p50| {
            verdict(latency_parked, |figures| {
                (figures.latency_us.p50, figures.floor.write_p50_us, figures.floor.handover_us) = (p50, 100.0, 50.0);
            })
        };
        assert_eq!([165.0, 166.0].map(parked), [Verdict::Met, Verdict::Missed]);
    }

    #[test]
    fn many_producers_may_fill_the_cpus_instead_if_they_are_cheap() {
        let at = |(times, share, cpu_s)| {
            verdict(producers_256, |figures| {
                (figures.ratio.acked_to_depth1, figures.cpus_busy) = (times, Some(share));
                figures.cpu_seconds_per_million_acks = cpu_s;
            })
        };
        let cases = [(35.0, 0.1, 20.0), (20.0, 0.9, 7.0), (20.0, 0.9, 7.1), (20.0, 0.89, 5.0)];
        assert_eq!(cases.map(at), [Verdict::Met, Verdict::Met, Verdict::Missed, Verdict::Missed]);
    }

    #[test]
    fn one_producer_may_fill_its_cpu_instead_if_it_is_cheap() {
        let at = |(times, cpu_share, cpu_s)| {
            verdict(window_4096, |figures| {
                figures.ratio.acked_to_depth1 = times;
                figures.busiest_thread = Some(BusyThread { name: "producer-0".into(), cpu_share });
                figures.cpu_seconds_per_million_acks = cpu_s;
            })
        };
        let cases = [(250.0, 0.1, 9.0), (200.0, 0.9, 1.2), (200.0, 0.9, 1.3), (200.0, 0.8, 1.0)];
        assert_eq!(cases.map(at), [Verdict::Met, Verdict::Met, Verdict::Missed, Verdict::Missed]);
    }

    #[test]
    fn batches_are_held_against_frames_and_their_own_size() {
        let at = |(ratio, spread)| {
            verdict(batch_100, |figures| {
                figures.ratio.acked_batches_to_frame_depth1 = ratio;
                figures.bytes_written_per_payload_byte = spread;
            })
        };
        assert_eq!([(0.85, 1.1), (0.9, 1.2), (0.8, 1.0)].map(at), [Verdict::Met, Verdict::Missed, Verdict::Missed]);
        let many = |(ratio, per_s)| {
            verdict(batch_1000, |figures| {
                (figures.ratio.frames_to_frame_depthN, figures.acked_per_s) = (ratio, per_s);
            })
        };
        assert_eq!([(0.85, 1.0), (0.5, 6e6), (0.8, 5e6)].map(many), [Verdict::Met, Verdict::Met, Verdict::Missed]);
    }

    #[test]
    fn there_is_no_memory_where_there_is_a_disk() {
        assert!(memory_dir(Path::new("/proc")).unwrap_err().contains("no tmpfs"));
        assert!(memory_dir(Path::new("/there/is/nothing")).is_err());
    }
}
