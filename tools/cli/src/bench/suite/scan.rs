//! Reading everything in order, against a bare loop that reads the very same files and takes their checksums.
//!
//! Both on one thread, through the page cache, which holds all of it: they take turns after a turn that is discarded.
//! The log is opened anew for it, so that none of the entries comes from the tail cache, and only full segments are
//! read, so that both read the same bytes. The figure is the median of the turns' ratios.

use std::fs::File;
use std::hint::black_box;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::args::BenchArgs;
use crate::bench::acks::Acks;
use crate::bench::figures::median;
use crate::bench::job;
use crate::bench::payload::Payloads;
use crate::bench::place::Place;
use crate::bench::suite::append::base;
use crate::bench::suite::fill::{fill, sealed};
use crate::bench::suite::row::{Bar, Judged, Outcome, Row, Site};
use crate::engine::{SegmentInfo, Target};
use crate::interrupt;
use crate::text::value;

/// The largest log that is read: it has to fit into memory.
const BYTES_MAX: u64 = 1 << 30;
const PIECE_BYTES: usize = 1 << 20;
const TURNS: usize = 7;
const BAR: f64 = 0.55;

/// All figures of a row.
#[derive(Debug, Serialize)]
struct Scan {
    payload: usize,
    file_bytes: u64,
    entries: u64,
    ratio: f64,
    log_mb_per_s: f64,
    bare_mb_per_s: f64,
    log_entries_per_s: f64,
    /// Of each turn, in seconds: the log's and the bare loop's.
    turns_s: Vec<[f64; 2]>,
}

/// One row per size of payloads.
pub(crate) fn rows() -> Vec<Row> {
    [("scan-1KiB", 1024), ("scan-128B", 128)].map(|(name, payload)| row(name, payload)).into()
}

fn row(name: &str, payload: usize) -> Row {
    Row {
        name: name.into(),
        bars: vec![Bar { name: name.into(), bar: format!(">= {BAR} x bare read + crc32c") }],
        run: Box::new(move |site| {
            let scan = run(site, payload)?;
            let (log, bare) = (scan.log_mb_per_s, scan.bare_mb_per_s);
            let figure = format!("{} x, {} MB/s of {}", value(scan.ratio), value(log), value(bare));
            let raw = serde_json::to_value(&scan).context("cannot write the figures as JSON")?;
            Ok(Outcome::Measured(vec![Judged::new(scan.ratio >= BAR, figure)], raw))
        }),
    }
}

fn run(site: &Site<'_>, payload: usize) -> Result<Scan> {
    let args = BenchArgs { payload, ..base(site.args) };
    let place = Place::take(Some(site.dir), false)?;
    let (config, payloads) = (job::config(&args), Payloads::new(payload, u64::from(std::process::id())));
    let target = Target::open(&place.log(), config.clone())?;
    let acks = fill(&target, &payloads, args.open_bytes.min(BYTES_MAX))?;
    target.close()?;

    let target = Target::open(&place.log(), config)?;
    let acked = acks.iter().map(Acks::entries).sum::<u64>();
    ensure!(target.last_index() == Some(acked), "{acked} entries were acknowledged, last is {:?}", target.last_index());
    let segments = sealed(&target);
    let entries = segments.iter().map(|segment| segment.entries.clone()).reduce(|all, one| all.start..one.end);
    let entries = entries.context("no segment is full")?;
    let mut turns = Vec::new();
    for _ in 0..=TURNS {
        interrupt::check()?;
        let log = read_log(&target, entries.clone(), payload)?;
        turns.push([log, read_bare(&segments)?].map(|time| time.as_secs_f64()));
    }
    target.close()?;
    Ok(figures(payload, &segments, entries.end - entries.start, &turns[1..]))
}

fn figures(payload: usize, segments: &[SegmentInfo], entries: u64, turns: &[[f64; 2]]) -> Scan {
    let file_bytes = segments.iter().map(|segment| segment.bytes).sum::<u64>();
    let [log_s, bare_s] = [0, 1].map(|side| median(turns.iter().map(|turn| turn[side]).collect()));
    Scan {
        payload,
        file_bytes,
        entries,
        ratio: median(turns.iter().map(|[log, bare]| bare / log).collect()),
        log_mb_per_s: file_bytes as f64 / 1e6 / log_s,
        bare_mb_per_s: file_bytes as f64 / 1e6 / bare_s,
        log_entries_per_s: entries as f64 / log_s,
        turns_s: turns.to_vec(),
    }
}

/// Reads the entries in order; every one has to be there with its length. The log verifies their checksums.
fn read_log(target: &Target, entries: Range<u64>, payload_bytes: usize) -> Result<Duration> {
    let (start, mut next, mut bytes) = (Instant::now(), entries.start, 0);
    target.scan(entries.clone(), |index, payload| {
        ensure!(index == next, "index {index} was read where {next} is due");
        next += 1;
        bytes += payload.len();
        Ok(())
    })?;
    let time = start.elapsed();
    ensure!(next == entries.end, "the last entry read is {}, not {}", next - 1, entries.end - 1);
    ensure!(
        bytes as u64 == (entries.end - entries.start) * payload_bytes as u64,
        "{bytes} bytes of payloads were read"
    );
    Ok(time)
}

/// Reads the files in large pieces and takes a checksum of each.
fn read_bare(segments: &[SegmentInfo]) -> Result<Duration> {
    let (start, mut piece) = (Instant::now(), vec![0; PIECE_BYTES]);
    for segment in segments {
        let file = File::open(&segment.file).with_context(|| format!("cannot open {}", segment.file.display()))?;
        let mut offset = 0;
        while offset < segment.bytes {
            let read = file.read_at(&mut piece, offset)?;
            ensure!(read > 0, "{} ends at {offset}", segment.file.display());
            black_box(crc32c::crc32c(&piece[..read]));
            offset += read as u64;
        }
    }
    Ok(start.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_the_median_of_the_turns() {
        let scan = figures(128, &[], 1000, &[[2.0, 1.0], [4.0, 1.0], [1.0, 0.6]]);
        assert_eq!(scan.ratio, 0.5);
        assert_eq!(scan.log_entries_per_s, 500.0);
    }
}
