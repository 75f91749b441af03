//! Opening a large log: after a clean close and after its writer was killed, with cold caches and warm ones.
//!
//! Every open is a process of its own, so that its memory is the open's. After a close the log may take a fixed time;
//! after a kill also the time to read what has to be read, which are the segments that hold the entries that recovery
//! kept, at a fixed rate. A process that opened the log closes it again, so that each round starts from the same state.
//!
//! Cold means: everything synced, the kernel told to forget the log's files, and where that is allowed (as root) all
//! its caches. Warm means: a read-only open of the same state went before.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{Advice, fadvise};
use serde::Serialize;

use crate::args::{BenchArgs, ChildArgs};
use crate::bench::acks::Acks;
use crate::bench::counters;
use crate::bench::figures::median;
use crate::bench::job;
use crate::bench::payload::{Payloads, next_random};
use crate::bench::place::Place;
use crate::bench::suite::append::base;
use crate::bench::suite::child::{self, Opened};
use crate::bench::suite::fill::fill;
use crate::bench::suite::row::{Bar, Judged, Outcome, Row, Site};
use crate::engine::{Target, View};
use crate::interrupt;
use crate::text::{bytes, value};

/// Opens per line; the median counts.
const ROUNDS: usize = 3;
/// What a process appends at least before it is killed, unless the log is smaller; about twice as much at most.
const KILL_AFTER_BYTES: u64 = 192 << 20;
/// Room for spares, and for the unexpected.
const ROOM_BYTES: u64 = 1 << 30;

const OPEN_S_MAX: f64 = 0.3;
const WALK_BYTES_PER_S: f64 = 1.5e9;
const PEAK_RSS_BYTES_MAX: u64 = 64 << 20;

/// What went before an open, and in which state the caches are: the order of the lines.
const CASES: [(&str, bool, bool); 4] = [
    ("clean-cold", false, true),
    ("clean-warm", false, false),
    ("killed-cold", true, true),
    ("killed-warm", true, false),
];

/// All figures of a row.
#[derive(Debug, Serialize)]
struct Opens {
    payload: usize,
    log_bytes: u64,
    entries: u64,
    cases: Vec<Case>,
}

/// The opens of one line.
#[derive(Debug, Serialize)]
struct Case {
    name: &'static str,
    open_s: f64,
    limit_s: f64,
    peak_rss_bytes: u64,
    rounds: Vec<Opened>,
}

/// One row per size of payloads.
pub(crate) fn rows() -> Vec<Row> {
    [("open-1KiB", 1024), ("open-128B", 128)].map(|(name, payload)| row(name, payload)).into()
}

fn row(name: &str, payload: usize) -> Row {
    let bars = CASES.map(|(case, killed, _)| Bar {
        name: format!("{name}-{case}"),
        bar: format!("<= {OPEN_S_MAX} s{}, <= 64 MiB", if killed { " + walk at 1.5 GB/s" } else { "" }),
    });
    Row {
        name: name.into(),
        bars: bars.to_vec(),
        run: Box::new(move |site| {
            let needed = needed_bytes(site.args.open_bytes);
            let parent = site.dir.parent().context("a row's directory has a parent")?;
            if counters::free_bytes(parent).is_some_and(|free| free < needed) {
                return Ok(Outcome::Skipped(format!("needs {} free", bytes(needed))));
            }
            let opens = run(site, payload)?;
            let raw = serde_json::to_value(&opens).context("cannot write the figures as JSON")?;
            Ok(Outcome::Measured(opens.cases.iter().map(judge).collect(), raw))
        }),
    }
}

/// The log with what is appended before every kill.
fn needed_bytes(open_bytes: u64) -> u64 {
    let kills = CASES.iter().filter(|(_, killed, _)| *killed).count() * ROUNDS;
    open_bytes + open_bytes / 4 + 2 * kills as u64 * kill_after_bytes(open_bytes) + ROOM_BYTES
}

fn kill_after_bytes(open_bytes: u64) -> u64 {
    KILL_AFTER_BYTES.min(open_bytes)
}

fn judge(case: &Case) -> Judged {
    let met = case.open_s <= case.limit_s && case.peak_rss_bytes <= PEAK_RSS_BYTES_MAX;
    let (open_s, limit_s) = (value(case.open_s), value(case.limit_s));
    Judged::new(met, format!("{open_s} s of {limit_s}, {}", bytes(case.peak_rss_bytes)))
}

fn run(site: &Site<'_>, payload: usize) -> Result<Opens> {
    let args = BenchArgs { payload, ..base(site.args) };
    let place = Place::take(Some(site.dir), false)?;
    let (config, payloads) = (job::config(&args), Payloads::new(payload, u64::from(std::process::id())));
    let target = Target::open(&place.log(), config)?;
    let acks = fill(&target, &payloads, args.open_bytes)?;
    target.close()?;
    let entries = acks.iter().map(Acks::entries).sum::<u64>();
    let log_bytes = files(&place.log())?.iter().filter_map(|path| fs::metadata(path).ok()).map(|file| file.len()).sum();

    let child = ChildArgs { dir: place.log(), payload, io_mode: args.io_mode };
    let mut log = LargeLog { child, open_bytes: args.open_bytes, acked: entries, random: 1 };
    let cases = CASES.into_iter().map(|(name, killed, cold)| log.case(name, killed, cold));
    Ok(Opens { payload, log_bytes, entries, cases: cases.collect::<Result<_>>()? })
}

/// The log that is opened.
struct LargeLog {
    child: ChildArgs,
    open_bytes: u64,
    /// The highest index known to be acknowledged.
    acked: u64,
    random: u64,
}

impl LargeLog {
    fn case(&mut self, name: &'static str, killed: bool, cold: bool) -> Result<Case> {
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            interrupt::check()?;
            if killed {
                self.append_and_kill()?;
            }
            if cold {
                forget(&self.child.dir)?
            } else {
                View::open(&self.child.dir).map(drop)?
            }
            let opened = child::run_open(&self.child)?;
            let (last, acked) = (opened.last_index, self.acked);
            ensure!(last >= acked, "index {acked} was acknowledged, and the last one after opening is {last}");
            ensure!(opened.was_clean || killed, "the log was closed, and its open says that it was not");
            self.acked = last;
            eprintln!("  {name}: {} s, {}", value(opened.open_s), bytes(opened.peak_rss_bytes));
            rounds.push(opened);
        }
        Ok(case(name, killed, rounds))
    }

    /// Killed at a place in a segment that looks random.
    fn append_and_kill(&mut self) -> Result<()> {
        let least = kill_after_bytes(self.open_bytes);
        let bytes = least + next_random(&mut self.random) % least;
        self.acked = child::append_and_kill(&self.child, self.acked + bytes / self.child.payload as u64)?;
        Ok(())
    }
}

/// The median of the rounds, by how far they are from what each of them may take.
fn case(name: &'static str, killed: bool, rounds: Vec<Opened>) -> Case {
    let limit = |opened: &Opened| OPEN_S_MAX + if killed { opened.walked_bytes as f64 / WALK_BYTES_PER_S } else { 0.0 };
    let over = |opened: &Opened| opened.open_s - limit(opened);
    let limit_s = median(rounds.iter().map(limit).collect());
    Case {
        name,
        open_s: limit_s + median(rounds.iter().map(over).collect()),
        limit_s,
        peak_rss_bytes: rounds.iter().map(|opened| opened.peak_rss_bytes).max().unwrap_or(0),
        rounds,
    }
}

/// Has the kernel forget what it holds of the log's files.
fn forget(dir: &Path) -> Result<()> {
    rustix::fs::sync();
    for path in files(dir)? {
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        fadvise(&file, 0, None, Advice::DontNeed).with_context(|| format!("cannot forget {}", path.display()))?;
    }
    if let Ok(mut caches) = OpenOptions::new().write(true).open("/proc/sys/vm/drop_caches") {
        // Only root may; the files' own pages are gone in any case.
        let _ = caches.write_all(b"3");
    }
    Ok(())
}

/// All files in a directory.
fn files(dir: &Path) -> Result<Vec<std::path::PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let files = entries.filter_map(|entry| entry.map(|entry| entry.path()).ok()).filter(|path| path.is_file());
    Ok(files.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::suite::row::Verdict;

    fn opened(open_s: f64, walked_bytes: u64, peak_rss_bytes: u64) -> Opened {
        Opened { open_s, walked_bytes, peak_rss_bytes, ..Opened::default() }
    }

    #[test]
    fn a_killed_log_may_take_what_reading_its_end_takes() {
        let rounds = vec![opened(0.5, 300_000_000, 1), opened(0.45, 300_000_000, 2), opened(9.0, 0, 1)];
        let killed = case("killed-cold", true, rounds.clone());
        assert!((killed.limit_s - 0.5).abs() < 1e-9 && (killed.open_s - 0.5).abs() < 1e-9, "{killed:?}");
        assert_eq!((judge(&killed).verdict, killed.peak_rss_bytes), (Verdict::Met, 2));
        let clean = case("clean-cold", false, rounds);
        assert_eq!((judge(&clean).verdict, clean.limit_s), (Verdict::Missed, 0.3));
    }

    #[test]
    fn memory_counts_in_every_round() {
        let rounds = vec![opened(0.1, 0, 1), opened(0.1, 0, PEAK_RSS_BYTES_MAX + 1), opened(0.1, 0, 1)];
        assert_eq!(judge(&case("clean-warm", false, rounds)).verdict, Verdict::Missed);
    }
}
