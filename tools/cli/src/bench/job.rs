//! One run of the bench from an empty directory to a checked report: floor, load, figures, reopening.
//!
//! The log and the floor take turns in slices of 200 ms, at least 15 pairs after one that is discarded: the discarded
//! one warms both up and tells how large this run's frames are.

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;

use crate::args::BenchArgs;
use crate::bench::acks::Acks;
use crate::bench::compactor::Compactor;
use crate::bench::counters::{self, Device, Others};
use crate::bench::figures::{Figures, Scale};
use crate::bench::floor::{BLOCK_BYTES, Floor};
use crate::bench::load::{Load, LoadPlan};
use crate::bench::payload::Payloads;
use crate::bench::place::Place;
use crate::bench::report::{self, Report, Settings, Stages, durability_name};
use crate::bench::slices::{Bench, SLICE};
use crate::bench::verify;
use crate::engine::{Config, Target};
use crate::interrupt;
use crate::progress::Progress;
use crate::text::value;

/// The fewest pairs a ratio is the median of.
const PAIRS_MIN: u32 = 15;

/// Measures a log in `place` and checks it afterwards; where the check fails, the log stays on the disk.
pub(crate) fn run(args: &BenchArgs, place: &mut Place) -> Result<Report> {
    counters::reset_peak_rss();
    let config = config(args);
    let payloads = Payloads::new(args.payload, u64::from(std::process::id()));
    let floor = Floor::prepare(&place.floor(), args.segment_size)?;
    let measured = measure(args, &config, place, &floor, &payloads)?;
    let file_system = counters::file_system(&place.log());
    let settings = Settings::of(args, file_system, floor.is_direct());
    let verified_entries = check_or_keep(&config, place, &payloads, &measured.acked)?;
    Ok(measured.report(args, settings, verified_entries))
}

/// The log's settings.
pub(crate) fn config(args: &BenchArgs) -> Config {
    Config::default()
        .segment_bytes(args.segment_size)
        .durability(args.durability)
        .wait(args.wait)
        .io(args.io_mode.into())
        .frames_in_flight(args.frames_in_flight as usize)
}

/// What a run leaves to be reported and checked.
struct Measured {
    figures: Figures,
    stages_us: Stages,
    cpu_share_of_others: Option<f64>,
    peak_rss_mb: Option<f64>,
    io_mode: String,
    acked: Acked,
}

/// What has to be in the log: all that was acknowledged above the highest index that was compacted.
pub(crate) struct Acked {
    pub(crate) producers: Vec<Acks>,
    pub(crate) compacted: u64,
}

fn measure(args: &BenchArgs, config: &Config, place: &Place, floor: &Floor, payloads: &Payloads) -> Result<Measured> {
    let target = Target::open(&place.log(), config.clone())?;
    let device = Device::under(&place.log());
    let keep_entries = args.retain.map(|retain| retain.div_ceil(args.payload as u64));
    let compactor = Compactor::start(&target, keep_entries)?;
    let load = Load::start(&target, &load_plan(args), payloads, compactor.requests())?;
    let bench = Bench {
        target: &target,
        load: &load,
        compactor: &compactor,
        device: device.as_ref(),
        floor,
        batch: args.batch,
        depth: args.frames_in_flight as usize,
    };
    let others = Others::watch();
    let figures = measure_pairs(&bench, pairs(args.seconds), args.payload)?;
    let cpu_share_of_others = others.share(report::cpus());
    let stages_us = stages(&target);
    let producers = load.finish()?;
    let compacted = compactor.finish()?;
    let io_mode = target.io_mode();
    target.close()?;
    let peak_rss_mb = counters::peak_rss_bytes().map(|bytes| bytes as f64 / 1e6);
    let acked = Acked { producers, compacted };
    Ok(Measured { figures, stages_us, cpu_share_of_others, peak_rss_mb, io_mode, acked })
}

fn load_plan(args: &BenchArgs) -> LoadPlan {
    LoadPlan {
        producers: args.producers,
        window: args.window as usize,
        batch: args.batch,
        // An eighth of what is to stay comes in between two compactions; the first producer counts for all.
        compact_every_bytes: args.retain.map(|retain| (retain / 8 / u64::from(args.producers)).max(1)),
        ..LoadPlan::default()
    }
}

/// Half of the time is the log's, half the floor's.
fn pairs(seconds: u32) -> u32 {
    (seconds.saturating_mul(1000) / (2 * SLICE.as_millis() as u32)).max(PAIRS_MIN)
}

fn measure_pairs(bench: &Bench<'_>, count_pairs: u32, payload_bytes: usize) -> Result<Figures> {
    let mut discarded = Histogram::new(3)?;
    bench.log_slice(&mut discarded)?;
    let block = bench.target.block_bytes().max(BLOCK_BYTES as u64);
    let frame_bytes = padded_median(&bench.target.counters().frame_bytes, block);
    bench.floor_slice(frame_bytes, 0)?;

    let (mut latencies, mut pairs) = (Histogram::new(3)?, Vec::new());
    let mut progress = Progress::start("measuring", u64::from(count_pairs));
    for turn in 0..count_pairs {
        interrupt::check()?;
        let log = bench.log_slice(&mut latencies)?;
        let acked_per_s = log.counted as f64 / log.counted_s;
        pairs.push((log, bench.floor_slice(frame_bytes, turn as usize)?));
        progress.at(u64::from(turn) + 1, || format!("pairs, {} acknowledged /s", value(acked_per_s)));
    }
    let scale = Scale { payload_bytes, batch: bench.batch, frame_bytes, cpus: report::cpus() };
    Ok(Figures::of(&pairs, &latencies, scale))
}

/// The median in whole blocks. The histogram rounds: its lowest equivalent value is a whole number of blocks where the
/// recorded one was.
fn padded_median(sizes: &Histogram<u64>, block: u64) -> usize {
    let median = sizes.lowest_equivalent(sizes.value_at_quantile(0.5));
    median.max(1).next_multiple_of(block) as usize
}

fn stages(target: &Target) -> Stages {
    let us = |stage: &Histogram<u64>| [0.5, 0.99].map(|quantile| stage.value_at_quantile(quantile) as f64 / 1e3);
    let [queue_wait, encode, write, wake] = target.counters().stages_ns;
    Stages { queue_wait: us(&queue_wait), encode: us(&encode), write: us(&write), wake: us(&wake) }
}

/// [`check`]; a log that does not pass it is left on the disk for whoever wants to know why.
pub(crate) fn check_or_keep(config: &Config, place: &mut Place, payloads: &Payloads, acked: &Acked) -> Result<u64> {
    let verified = check(config, place, payloads, acked).inspect_err(|error| {
        if !error.is::<interrupt::Interrupted>() {
            place.keep_log();
        }
    });
    verified.with_context(|| format!("THE CHECK FAILED; see {}", place.log().display()))
}

/// Reopens the log and looks at every entry; how many there were.
fn check(config: &Config, place: &Place, payloads: &Payloads, acked: &Acked) -> Result<u64> {
    let target = Target::open(&place.log(), config.clone())?;
    let compacted = target.compacted_index().unwrap_or(0);
    ensure!(
        compacted == acked.compacted,
        "the log was compacted up to index {} and says {compacted} after reopening",
        acked.compacted
    );
    let mut progress = Progress::start("verifying", acked.entries());
    let tick = |verified| {
        progress.at(verified, || "entries".into());
        Ok(interrupt::check()?)
    };
    let verified = verify::verify(target.entries(), &acked.producers, compacted, payloads, tick)?;
    target.close()?;
    Ok(verified)
}

impl Acked {
    fn entries(&self) -> u64 {
        self.producers.iter().map(Acks::entries).sum()
    }
}

impl Measured {
    fn report(self, args: &BenchArgs, settings: Settings, verified_entries: u64) -> Report {
        Report {
            figures: self.figures,
            stages_us: self.stages_us,
            cpu_share_of_others: self.cpu_share_of_others,
            peak_rss_mb: self.peak_rss_mb,
            durability: durability_name(args.durability),
            io_mode: self.io_mode,
            acknowledged_entries: self.acked.entries(),
            verified_entries,
            compacted_entries: self.acked.entries() - verified_entries,
            settings,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_set_the_number_of_pairs_from_fifteen_on() {
        assert_eq!([1, 6, 10, 60].map(pairs), [15, 15, 25, 150]);
    }

    #[test]
    fn the_median_frame_is_not_rounded_up_by_the_histogram() {
        for (recorded, padded) in [(4096, 4096), (4000, 4096), (36864, 36864), (257 * 4096, 257 * 4096), (0, 4096)] {
            let mut sizes = Histogram::<u64>::new(3).unwrap();
            sizes.record(recorded).unwrap();
            assert_eq!(padded_median(&sizes, 4096), padded);
        }
    }
}
