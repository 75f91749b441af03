//! `ringwal bench --audit`: each figure with its grounds beside it, or no figure.
//!
//! The grounds: as many entries as were acknowledged were found and compared after the log was reopened; and the device
//! flushed so many times while the log was measured, against so many frames of the log's.
//!
//! The rule for flushes: on a device with a volatile write cache, a durable write needs a flush that begins once the
//! write is done, or the flag that forces that one write through (FUA), which nothing counts. Frames that are in flight
//! together may share a flush. So with `sync` at least frames / frames in flight, with the other durabilities at least
//! the log's syncs. What other programs flushed is in the device's count and can only hide flushes that are missing.

use std::fmt::Write as _;
use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use crate::args::BenchArgs;
use crate::bench::counters::{self, Cache, Device};
use crate::bench::report::{Report, Settings, durability_promise};
use crate::engine::Durability;
use crate::output;
use crate::text::{count, value};

/// The grounds of every figure of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Grounds {
    /// Acknowledged, and found and compared after reopening: the same number, or there are no grounds.
    entries_compared: u64,
    device_flushes: u64,
    flushes_per_frame: f64,
}

/// A figure with its grounds.
#[derive(Debug, Serialize)]
struct Figure {
    figure: &'static str,
    value: f64,
    #[serde(flatten)]
    grounds: Grounds,
}

/// What the flushes say of the durability that was promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    /// As many as the rule asks for.
    Enough,
    /// Fewer: either the device lies about its cache, or somebody does not wait for the flush.
    TooFew,
    /// The device needs none.
    NoneNeeded,
    /// Durable writes carry a flag, and no counter tells how many.
    NotCounted,
}

/// All that an audit tells.
#[derive(Debug, Serialize)]
struct Audit {
    figures: Vec<Figure>,
    durability: String,
    io_mode: String,
    device: String,
    frames: u64,
    /// The fewest flushes that the rule asks for.
    flushes_needed: u64,
    flushes: Verdict,
    settings: Settings,
}

/// The device whose flushes are the grounds, or why there can be none: asked before a run that would be for nothing.
pub(crate) fn device(dir: &Path) -> Result<Device> {
    Device::under(dir).with_context(|| {
        let file_system = counters::file_system(dir);
        format!(
            "NO FIGURE: no device under {} ({file_system}) counts flushes; --dir chooses another place",
            dir.display()
        )
    })
}

/// Shows the figures with their grounds. An error where they have none, or where the flushes were too few.
pub(crate) fn publish(report: &Report, device: &Device, args: &BenchArgs, json_file: Option<File>) -> Result<()> {
    let audit = Audit::of(report, device, args)?;
    output::publish(&audit, || audit.table(args.durability), args.json.as_deref(), json_file)?;
    let (flushes, needed) =
        (audit.figures.first().map_or(0, |first| first.grounds.device_flushes), audit.flushes_needed);
    ensure!(
        audit.flushes != Verdict::TooFew,
        "{} flushes cannot have made the frames durable: {} were needed",
        count(flushes),
        count(needed)
    );
    Ok(())
}

impl Audit {
    fn of(report: &Report, device: &Device, args: &BenchArgs) -> Result<Audit> {
        let figures = &report.figures;
        let grounds = grounds(report)?;
        let flushes_needed = needed(args.durability, figures.frames, figures.syncs, args.frames_in_flight);
        let latency = &figures.latency_us;
        let named = [
            ("entries acknowledged /s", figures.acked_per_s),
            ("MB acknowledged /s", figures.mb_per_s),
            ("latency, median (us)", latency.p50),
            ("latency, p90 (us)", latency.p90),
            ("latency, p99 (us)", latency.p99),
            ("latency, p99.9 (us)", latency.p999),
            ("latency, longest (us)", latency.max),
            ("frames /s", figures.frames_per_s),
            ("entries per frame", figures.entries_per_frame),
        ];
        Ok(Audit {
            figures: named.map(|(figure, value)| Figure { figure, value, grounds }).into(),
            durability: report.durability.clone(),
            io_mode: report.io_mode.clone(),
            device: device.name(),
            frames: figures.frames,
            flushes_needed,
            flushes: verdict(device.cache(), grounds.device_flushes, flushes_needed),
            settings: report.settings.clone(),
        })
    }

    fn table(&self, durability: Durability) -> String {
        let mut table = format!("\ndurability {}: {}\n\n", self.durability, durability_promise(durability));
        line(&mut table, ["", "", "acknowledged =", "flushes of", "flushes"]);
        line(&mut table, ["", "figure", "compared entries", &self.device, "per frame"]);
        for Figure { figure, value: number, grounds } in &self.figures {
            let Grounds { entries_compared, device_flushes, flushes_per_frame } = *grounds;
            let grounds = [count(entries_compared), count(device_flushes), value(flushes_per_frame)];
            line(&mut table, [figure, &value(*number), &grounds[0], &grounds[1], &grounds[2]]);
        }
        let said = said(self.flushes, &count(self.flushes_needed));
        let _ = writeln!(table, "\n{} frames while the log was measured: {said}", count(self.frames));
        table
    }
}

fn line(table: &mut String, [figure, value, compared, flushes, ratio]: [&str; 5]) {
    // Writing to a string cannot fail.
    let _ = writeln!(table, "{figure:<26}{value:>14}{compared:>20}{flushes:>16}{ratio:>12}");
}

/// What compares and what counts; where either is missing there are no grounds, and no figure.
fn grounds(report: &Report) -> Result<Grounds> {
    let (acknowledged, compared) = (report.acknowledged_entries, report.verified_entries);
    if acknowledged != compared || compared == 0 {
        bail!("NO FIGURE: {} entries were acknowledged, and {} were compared", count(acknowledged), count(compared));
    }
    let device_flushes = report.figures.device_flushes.context("NO FIGURE: the device stopped to count its flushes")?;
    let flushes_per_frame = device_flushes as f64 / report.figures.frames as f64;
    Ok(Grounds { entries_compared: compared, device_flushes, flushes_per_frame })
}

/// See the module for the rule.
fn needed(durability: Durability, frames: u64, syncs: u64, frames_in_flight: u32) -> u64 {
    match durability {
        Durability::Sync => frames.div_ceil(u64::from(frames_in_flight)),
        Durability::Interval(_) | Durability::None => syncs,
    }
}

fn verdict(cache: Cache, flushes: u64, needed: u64) -> Verdict {
    match cache {
        _ if flushes >= needed => Verdict::Enough,
        Cache::WriteThrough => Verdict::NoneNeeded,
        Cache::ForcedUnitAccess => Verdict::NotCounted,
        Cache::WriteBack => Verdict::TooFew,
    }
}

fn said(verdict: Verdict, needed: &str) -> String {
    match verdict {
        Verdict::Enough => format!("durable with {needed} flushes at the least, and there were more or as many"),
        Verdict::TooFew => format!("THEY CANNOT ALL HAVE BEEN DURABLE, which takes {needed} flushes at the least"),
        Verdict::NoneNeeded => "the device says that it has no volatile cache, and needs no flush".into(),
        Verdict::NotCounted => "the device forces single writes through (FUA), which no counter counts".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn frames_in_flight_together_may_share_a_flush_and_the_weaker_durabilities_sync_apart() {
        assert_eq!([1, 4].map(|in_flight| needed(Durability::Sync, 10, 0, in_flight)), [10, 3]);
        assert_eq!(needed(Durability::Interval(Duration::from_millis(5)), 1000, 7, 4), 7);
        assert_eq!(needed(Durability::None, 1000, 0, 4), 0);
    }

    #[test]
    fn too_few_flushes_are_accepted_only_of_a_device_that_says_it_needs_none() {
        let too_few = |cache| verdict(cache, 9, 10);
        assert_eq!(too_few(Cache::WriteBack), Verdict::TooFew);
        assert_eq!(too_few(Cache::WriteThrough), Verdict::NoneNeeded);
        assert_eq!(too_few(Cache::ForcedUnitAccess), Verdict::NotCounted);
        assert_eq!(verdict(Cache::WriteBack, 10, 10), Verdict::Enough);
    }
}
