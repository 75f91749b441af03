//! Single reads while others append: of the newest entries, which are in the tail cache, and of full segments that are
//! in the page cache.
//!
//! One reader takes turns between the two. The mean comes from runs of gets with two looks at the clock around each
//! run; the 99th percentile from gets that are timed one by one, clock included. The tail cache is small, so that it
//! has none of the full segments' entries.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::args::BenchArgs;
use crate::bench::job::{self, Acked};
use crate::bench::load::{Load, LoadPlan};
use crate::bench::payload::{Payloads, next_random};
use crate::bench::place::Place;
use crate::bench::suite::append::base;
use crate::bench::suite::fill::{fill, sealed};
use crate::bench::suite::row::{Bar, Judged, Outcome, Row, Site};
use crate::engine::Target;
use crate::interrupt;
use crate::text::value;

/// Payloads kept in memory: many more than the newest entries that are read, far fewer than a segment.
const TAIL_BYTES: u64 = 1 << 20;
const NEWEST: u64 = 1000;
/// Full segments' bytes: three of the default size.
const SEALED_BYTES: u64 = 192 << 20;
/// Gets between two looks at the clock.
const RUN: usize = 1000;
const SLICE: Duration = Duration::from_millis(500);

/// The two kinds of reads: mean and 99th percentile allowed, in nanoseconds.
const BARS: [(&str, f64, f64); 2] = [("get-tail", 250.0, 2_000.0), ("get-sealed", 2_000.0, 10_000.0)];

/// All figures of the row, in nanoseconds.
#[derive(Debug, Serialize)]
struct Gets {
    tail: Timing,
    sealed: Timing,
    appended_per_s: f64,
    verified_entries: u64,
}

#[derive(Debug, Serialize)]
struct Timing {
    mean_ns: f64,
    p50_ns: u64,
    p99_ns: u64,
    max_ns: u64,
    gets: u64,
}

/// The row.
pub(crate) fn row() -> Row {
    let bars = BARS.map(|(name, mean_ns, p99_ns)| Bar {
        name: name.into(),
        bar: format!("mean <= {}, p99 <= {}", time(mean_ns), time(p99_ns)),
    });
    Row {
        name: "get".into(),
        bars: bars.to_vec(),
        run: Box::new(|site| {
            let gets = run(site)?;
            let raw = serde_json::to_value(&gets).context("cannot write the figures as JSON")?;
            Ok(Outcome::Measured(judge(&gets), raw))
        }),
    }
}

fn judge(gets: &Gets) -> Vec<Judged> {
    let appended = value(gets.appended_per_s);
    let judge = |(timing, (_, mean_ns, p99_ns)): (&Timing, (&str, f64, f64))| {
        let (mean, p99) = (timing.mean_ns, timing.p99_ns as f64);
        let figure = format!("{}, p99 {}, beside {appended} app/s", time(mean), time(p99));
        Judged::new(mean <= mean_ns && p99 <= p99_ns, figure)
    };
    [&gets.tail, &gets.sealed].into_iter().zip(BARS).map(judge).collect()
}

/// Nanoseconds up to a microsecond, microseconds beyond.
fn time(ns: f64) -> String {
    if ns < 1e3 { format!("{ns:.0} ns") } else { format!("{} us", value(ns / 1e3)) }
}

fn run(site: &Site<'_>) -> Result<Gets> {
    let args = BenchArgs { producers: 4, ..base(site.args) };
    let mut place = Place::take(Some(site.dir), false)?;
    let payloads = Payloads::new(args.payload, u64::from(std::process::id()));
    let config = job::config(&args).tail_cache_bytes(TAIL_BYTES);
    let target = Target::open(&place.log(), config.clone())?;
    let mut producers = fill(&target, &payloads, SEALED_BYTES)?;
    let old = sealed(&target).into_iter().map(|segment| segment.entries);
    let old = old.reduce(|all, one| all.start..one.end).context("no segment is full")?;
    touch(&target, old.clone())?;

    let plan = LoadPlan { producers: args.producers, first_producer: 1, ..LoadPlan::default() };
    let load = Load::start(&target, &plan, &payloads, None)?;
    let before = target.counters().entries;
    let (readers, time) = read_beside(&target, &load, &payloads, old, args.seconds)?;
    let appended_per_s = (target.counters().entries - before) as f64 / time.as_secs_f64();
    producers.extend(load.finish()?);
    target.close()?;
    let verified_entries = job::check_or_keep(&config, &mut place, &payloads, &Acked { producers, compacted: 0 })?;
    let [tail, sealed] = readers.map(Reads::timing);
    Ok(Gets { tail, sealed, appended_per_s, verified_entries })
}

/// Has everything read once, in order and by index, so that what can be in memory is.
fn touch(target: &Target, entries: Range<u64>) -> Result<()> {
    let expected = entries.end - entries.start;
    let mut found = 0;
    target.scan(entries.clone(), |_, _| {
        found += 1;
        Ok(())
    })?;
    ensure!(found == expected, "{found} of {expected} entries could be read");
    entries.step_by(16).try_for_each(|index| target.get(index).map(drop))
}

/// Reads on a thread of its own while the producers append; what the reads took, and how long all of it went on.
fn read_beside(
    target: &Target,
    load: &Load,
    payloads: &Payloads,
    old: Range<u64>,
    seconds: u32,
) -> Result<([Reads; 2], Duration)> {
    let over = AtomicBool::new(false);
    let begin = Instant::now();
    let reads = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reader = Reader { target, payloads, random: 1, picked: Vec::with_capacity(RUN) };
            reader.run(old, &over)
        });
        let mut appended = Ok(Duration::ZERO);
        while appended.is_ok() && begin.elapsed() < Duration::from_secs(u64::from(seconds)) {
            appended = interrupt::check().map_err(Into::into).and_then(|()| load.slice(SLICE, |_| ()));
        }
        over.store(true, Ordering::Relaxed);
        let reads = reader.join().map_err(|_| anyhow!("the reader panicked"))?;
        appended.and(reads)
    })?;
    Ok((reads, begin.elapsed()))
}

struct Reader<'a> {
    target: &'a Target,
    payloads: &'a Payloads,
    random: u64,
    picked: Vec<u64>,
}

/// What one kind of reads took.
struct Reads {
    in_runs: Duration,
    gets_in_runs: u64,
    timed_ns: Histogram<u64>,
}

impl Reads {
    fn new() -> Result<Reads> {
        Ok(Reads { in_runs: Duration::ZERO, gets_in_runs: 0, timed_ns: Histogram::new(3)? })
    }

    fn timing(self) -> Timing {
        let at = |quantile| self.timed_ns.value_at_quantile(quantile);
        Timing {
            mean_ns: self.in_runs.as_nanos() as f64 / self.gets_in_runs as f64,
            p50_ns: at(0.5),
            p99_ns: at(0.99),
            max_ns: self.timed_ns.max(),
            gets: self.gets_in_runs + self.timed_ns.len(),
        }
    }
}

impl Reader<'_> {
    /// Reads both kinds in turns until it is over: the newest, and those of `old`.
    fn run(&mut self, old: Range<u64>, over: &AtomicBool) -> Result<[Reads; 2]> {
        let mut reads = [Reads::new()?, Reads::new()?];
        while !over.load(Ordering::Relaxed) {
            let newest = |target: &Target| {
                let end = target.last_index().unwrap_or(0) + 1;
                end.saturating_sub(NEWEST)..end
            };
            for timed in [false, true] {
                let range = newest(self.target);
                self.read(range, timed, &mut reads[0])?;
                self.read(old.clone(), timed, &mut reads[1])?;
            }
        }
        Ok(reads)
    }

    fn read(&mut self, range: Range<u64>, timed: bool, reads: &mut Reads) -> Result<()> {
        self.picked.clear();
        let length = range.end - range.start;
        self.picked.extend((0..RUN).map(|_| range.start + next_random(&mut self.random) % length));
        if timed { self.read_timed(reads) } else { self.read_run(reads) }
    }

    fn read_run(&self, reads: &mut Reads) -> Result<()> {
        let (start, mut bytes) = (Instant::now(), 0);
        for &index in &self.picked {
            bytes += self.target.get(index)?.len();
        }
        reads.in_runs += start.elapsed();
        reads.gets_in_runs += self.picked.len() as u64;
        ensure!(bytes == RUN * self.payloads.payload_bytes(), "{RUN} gets gave {bytes} bytes");
        Ok(())
    }

    fn read_timed(&self, reads: &mut Reads) -> Result<()> {
        for &index in &self.picked {
            let start = Instant::now();
            let payload = self.target.get(index)?;
            reads.timed_ns.record(start.elapsed().as_nanos() as u64)?;
            let is_whole = self.payloads.check(&payload).is_ok();
            ensure!(is_whole, "index {index} was read with a content that was never appended");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::suite::row::Verdict;

    #[test]
    fn mean_and_tail_count_both() {
        let timing = |mean_ns, p99_ns| Timing { mean_ns, p50_ns: 1, p99_ns, max_ns: 1, gets: 1 };
        let verdicts = |tail, sealed| {
            let judged = judge(&Gets { tail, sealed, appended_per_s: 1.0, verified_entries: 1 });
            judged.into_iter().map(|judged| judged.verdict).collect::<Vec<_>>()
        };
        use Verdict::{Met, Missed};
        assert_eq!(verdicts(timing(250.0, 2000), timing(2000.0, 10_000)), [Met, Met]);
        assert_eq!(verdicts(timing(251.0, 2000), timing(2000.0, 10_001)), [Missed, Missed]);
    }

    #[test]
    fn times_are_shown_in_fitting_units() {
        assert_eq!([48.3, 250.0, 2000.0].map(time), ["48 ns", "250 ns", "2.00 us"]);
    }
}
