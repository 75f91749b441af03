//! Whether anyone feels a segment ending: the slowest append around each roll against that of stretches without one.
//!
//! Every append's index and latency are kept. A window is as many entries as 8 frames take (8 times the median of
//! entries per frame), centred on the first entry of a new segment; as many windows of that size lie elsewhere, one in
//! each segment. The figure is the ratio of the medians of the windows' slowest appends.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::args::BenchArgs;
use crate::bench::job::{self, Acked};
use crate::bench::load::{Load, LoadPlan, Take};
use crate::bench::payload::Payloads;
use crate::bench::place::Place;
use crate::bench::slices::median_ns;
use crate::bench::suite::append::base;
use crate::bench::suite::row::{Bar, Judged, Outcome, Row, Site, Verdict};
use crate::bench::suite::windows;
use crate::engine::Target;
use crate::interrupt;
use crate::progress::Progress;
use crate::text::value;

const ROLLS: usize = 100;
const FRAMES_PER_WINDOW: u64 = 8;
const BAR: f64 = 1.5;
/// A slice of the load. Long, so that few windows have its filling or draining in them.
const SLICE: Duration = Duration::from_secs(1);
/// The row gives up after this many times the seconds of an ordinary one.
const PATIENCE: u32 = 30;

/// All figures of the row.
#[derive(Debug, Serialize)]
struct Rolling {
    rolls: u64,
    /// Windows that lay in the log as a whole: around rolls, and elsewhere.
    windows: [usize; 2],
    entries_per_frame: u64,
    slowest_median_us: [f64; 2],
    ratio: f64,
    slowest_at_rolls_us: Vec<f64>,
    slowest_elsewhere_us: Vec<f64>,
    p50_us: f64,
    entries: u64,
    verified_entries: u64,
}

/// The row.
pub(crate) fn row() -> Row {
    let bar = format!("slowest at {ROLLS} rolls <= {BAR} x elsewhere");
    Row {
        name: "rolling".into(),
        bars: vec![Bar { name: "rolling".into(), bar }],
        run: Box::new(|site| {
            let rolling = run(site)?;
            let raw = serde_json::to_value(&rolling).context("cannot write the figures as JSON")?;
            Ok(Outcome::Measured(vec![judge(&rolling)], raw))
        }),
    }
}

/// Fewer rolls than promised are no measurement, whatever the figure.
fn judge(rolling: &Rolling) -> Judged {
    let [at_rolls, elsewhere] = rolling.slowest_median_us;
    let figure = format!("{} x, {} us, elsewhere {}", value(rolling.ratio), value(at_rolls), value(elsewhere));
    if rolling.windows.iter().any(|&windows| windows < ROLLS) {
        let figure = format!("{} rolls in time; {figure}", rolling.rolls);
        return Judged { figure, verdict: Verdict::Skipped };
    }
    Judged::new(rolling.ratio <= BAR, figure)
}

fn run(site: &Site<'_>) -> Result<Rolling> {
    let args = BenchArgs { producers: 16, payload: 1024, segment_size: 16 << 20, ..base(site.args) };
    let mut place = Place::take(Some(site.dir), false)?;
    let (config, payloads) = (job::config(&args), Payloads::new(args.payload, u64::from(std::process::id())));
    let target = Target::open(&place.log(), config.clone())?;
    let plan = LoadPlan { producers: args.producers, trace: true, ..LoadPlan::default() };
    let load = Load::start(&target, &plan, &payloads, None)?;
    let latencies_ns = trace(&target, &load, SLICE * args.seconds * PATIENCE)?;
    let mut rolling = compare(&target, latencies_ns)?;
    let producers = load.finish()?;
    target.close()?;
    rolling.verified_entries = job::check_or_keep(&config, &mut place, &payloads, &Acked { producers, compacted: 0 })?;
    Ok(rolling)
}

/// Runs the load until there were rolls enough or `patience` is over; the latency of every entry, in the log's order.
fn trace(target: &Target, load: &Load, patience: Duration) -> Result<Vec<u64>> {
    let (begin, mut latencies_ns) = (Instant::now(), Vec::new());
    let mut note = |take: &Take| {
        for &(index, ns) in &take.traced {
            // The first entry of a fresh log has index 1.
            let place = index.saturating_sub(1) as usize;
            latencies_ns.resize(latencies_ns.len().max(place + 1), 0);
            latencies_ns[place] = ns;
        }
    };
    let mut progress = Progress::start("rolling", ROLLS as u64);
    // One more than is looked at: the last one may be too close to the end.
    while target.counters().rolls <= ROLLS as u64 && begin.elapsed() < patience {
        interrupt::check()?;
        load.slice(SLICE, &mut note)?;
        progress.at(target.counters().rolls, || "rolls".into());
    }
    Ok(latencies_ns)
}

fn compare(target: &Target, mut latencies_ns: Vec<u64>) -> Result<Rolling> {
    let counters = target.counters();
    let entries_per_frame = counters.entries_per_frame.value_at_quantile(0.5).max(1);
    let (size, entries) = (FRAMES_PER_WINDOW * entries_per_frame, latencies_ns.len() as u64);
    let starts = target.segments().into_iter().map(|segment| segment.entries).filter(|entries| !entries.is_empty());
    let rolls = starts.map(|entries| entries.start.saturating_sub(1)).filter(|&place| place > 0).collect::<Vec<_>>();
    let at_rolls = windows::slowest(&latencies_ns, &windows::around(&rolls, size, entries));
    let elsewhere = windows::slowest(&latencies_ns, &windows::away(&rolls, size, entries, at_rolls.len().max(ROLLS)));
    let us = |ns: &[u64]| ns.iter().map(|&ns| ns as f64 / 1e3).collect::<Vec<_>>();
    let (slowest_at_rolls_us, slowest_elsewhere_us) = (us(&at_rolls), us(&elsewhere));
    let windows = [at_rolls.len(), elsewhere.len()];
    let slowest_median_us = [at_rolls, elsewhere].map(|mut ns| median_ns(&mut ns) as f64 / 1e3);
    Ok(Rolling {
        rolls: counters.rolls,
        windows,
        entries_per_frame,
        slowest_median_us,
        ratio: slowest_median_us[0] / slowest_median_us[1],
        slowest_at_rolls_us,
        slowest_elsewhere_us,
        p50_us: median_ns(&mut latencies_ns) as f64 / 1e3,
        entries,
        verified_entries: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(windows: usize, ratio: f64) -> Verdict {
        let rolling = Rolling {
            rolls: windows as u64,
            windows: [windows, ROLLS],
            entries_per_frame: 16,
            slowest_median_us: [ratio * 100.0, 100.0],
            ratio,
            slowest_at_rolls_us: Vec::new(),
            slowest_elsewhere_us: Vec::new(),
            p50_us: 50.0,
            entries: 0,
            verified_entries: 0,
        };
        judge(&rolling).verdict
    }

    #[test]
    fn too_few_rolls_give_no_verdict() {
        assert_eq!(verdict(ROLLS, 1.5), Verdict::Met);
        assert_eq!(verdict(ROLLS, 1.51), Verdict::Missed);
        assert_eq!(verdict(ROLLS, f64::NAN), Verdict::Missed);
        assert_eq!(verdict(ROLLS - 1, 1.0), Verdict::Skipped);
    }
}
