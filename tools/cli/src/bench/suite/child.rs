//! What the suite runs in processes of their own: an open whose time and memory are its own, an append that is to be
//! killed, and snapshots beside writers, whose memory is their own.
//!
//! They are this very program with a command that its help does not show. An open, and whoever takes snapshots, tells
//! what it found in one line of JSON; an append tells the last index it saw acknowledged, in lines of decimal digits.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::ValueEnum as _;
use serde::{Deserialize, Serialize};

use crate::args::ChildArgs;
use crate::bench::counters;
use crate::bench::payload::Payloads;
use crate::bench::suite::fill::{WINDOW, batch_entries};
use crate::bench::suite::snapshot::latency::Measured;
use crate::engine::{Batch, Config, SegmentInfo, SegmentRole, Target};
use crate::interrupt;
use crate::text::print;

pub(crate) const OPEN: &str = "suite-open";
pub(crate) const APPEND: &str = "suite-append";
pub(crate) const SNAPSHOTS: &str = "suite-snapshots";

/// How long an appending child may take to get as far as it is wanted.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a process that opened a log has to tell.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Opened {
    pub(crate) open_s: f64,
    /// The most memory the process had held when the open returned.
    pub(crate) peak_rss_bytes: u64,
    pub(crate) last_index: u64,
    /// Bytes of the segments that recovery read frames of; see [`walked_bytes`].
    pub(crate) walked_bytes: u64,
    pub(crate) was_clean: bool,
    pub(crate) frames_kept: u64,
    pub(crate) entries_kept: u64,
    pub(crate) frames_rewritten: u64,
    pub(crate) bytes_cut: u64,
    pub(crate) indexes_rebuilt: u64,
}

/// Opens the log, tells what that took, and closes it, so that the next open finds it closed.
pub(crate) fn open(args: &ChildArgs) -> Result<()> {
    let start = Instant::now();
    let (target, report) = Target::recover(&args.dir, config(args))?;
    let open_s = start.elapsed().as_secs_f64();
    let peak_rss_bytes = counters::peak_rss_bytes().context("this kernel does not tell how much memory was held")?;
    let last_index = target.last_index().unwrap_or(0);
    let opened = Opened {
        open_s,
        peak_rss_bytes,
        last_index,
        walked_bytes: walked_bytes(&target.segments(), last_index, report.entries_kept),
        was_clean: report.was_clean,
        frames_kept: report.frames_kept,
        entries_kept: report.entries_kept,
        frames_rewritten: report.frames_rewritten,
        bytes_cut: report.bytes_cut,
        indexes_rebuilt: report.indexes_rebuilt,
    };
    target.close()?;
    Ok(print(&(serde_json::to_string(&opened)? + "\n"))?)
}

/// The log's settings in every such process.
pub(crate) fn config(args: &ChildArgs) -> Config {
    Config::default().io(args.io_mode.into())
}

/// The used bytes of the segments that hold the last `entries_kept` entries: those whose frames recovery read.
fn walked_bytes(segments: &[SegmentInfo], last_index: u64, entries_kept: u64) -> u64 {
    let first_kept = (last_index + 1).saturating_sub(entries_kept);
    let walked =
        segments.iter().filter(|segment| segment.role != SegmentRole::Spare && segment.entries.end > first_kept);
    walked.map(|segment| segment.used_bytes).sum()
}

/// Appends as fast as it goes until it is killed, or nobody listens any more.
pub(crate) fn append(args: &ChildArgs) -> Result<()> {
    let target = Target::open(&args.dir, config(args))?;
    let mut payloads = Payloads::new(args.payload, 1);
    let (batch, mut number) = (u64::from(batch_entries(args.payload)), 0);
    let (mut outstanding, mut out) = (VecDeque::new(), std::io::stdout().lock());
    loop {
        while outstanding.len() < WINDOW {
            let numbers = number..number + batch;
            number = numbers.end;
            outstanding
                .push_back(target.submit(numbers.fold(Batch::new(), |batch, n| batch.push(payloads.make(0, n))))?);
        }
        let pending = outstanding.pop_front().context("nothing is outstanding")?;
        let last = pending.indexes().end.saturating_sub(1);
        pending.wait()?;
        writeln!(out, "{last}")?;
    }
}

/// Opens the log in another process.
pub(crate) fn run_open(args: &ChildArgs) -> Result<Opened> {
    let output = command(OPEN, args)?.output().context("cannot start another process")?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "the process that opens the log failed: {errors}");
    serde_json::from_slice(&output.stdout).context("the process that opens the log told nothing")
}

/// Takes snapshots of a store beside its writers in another process, which shows what goes on.
pub(crate) fn run_snapshots(args: &ChildArgs) -> Result<Measured> {
    let output = command(SNAPSHOTS, args)?.stderr(Stdio::inherit()).output().context("cannot start another process")?;
    ensure!(output.status.success(), "the process that takes snapshots failed: {}", output.status);
    serde_json::from_slice(&output.stdout).context("the process that takes snapshots told nothing")
}

/// Appends in another process until index `goal_index` is acknowledged, then kills it at once; the last index that it
/// had told was acknowledged.
pub(crate) fn append_and_kill(args: &ChildArgs, goal_index: u64) -> Result<u64> {
    let spawned = command(APPEND, args)?.stdout(Stdio::piped()).spawn();
    let mut child = Killed(spawned.context("cannot start another process")?);
    let told = child.0.stdout.take().context("the other process has no output")?;
    let acked = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let listener = scope.spawn(|| listen(told, &acked));
        let reached = wait_until(goal_index, &acked, || listener.is_finished());
        child.kill()?;
        // What it told before it was killed is still in the pipe.
        listener.join().map_err(|_| anyhow!("the listener panicked"))??;
        reached
    })?;
    Ok(acked.load(Ordering::Relaxed))
}

fn wait_until(goal_index: u64, acked: &AtomicU64, has_ended: impl Fn() -> bool) -> Result<()> {
    let start = Instant::now();
    while acked.load(Ordering::Relaxed) < goal_index {
        interrupt::check()?;
        if has_ended() {
            bail!("the process that appends ended by itself");
        }
        ensure!(start.elapsed() < PATIENCE, "the process that appends got only to index {acked:?} in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Notes the last whole line until there are no more.
fn listen(told: ChildStdout, acked: &AtomicU64) -> Result<()> {
    let (mut lines, mut line) = (BufReader::new(told), String::new());
    while lines.read_line(&mut line)? > 0 {
        // Cut off by the kill.
        let Some(number) = line.strip_suffix('\n') else { break };
        acked.store(number.parse().with_context(|| format!("'{number}' is no index"))?, Ordering::Relaxed);
        line.clear();
    }
    Ok(())
}

/// A process that does not outlive its owner.
struct Killed(Child);

impl Killed {
    fn kill(&mut self) -> Result<()> {
        self.0.kill().context("cannot kill the process that appends")?;
        self.0.wait().context("cannot wait for the process that appends")?;
        Ok(())
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.kill();
    }
}

/// This very program, told to do something else.
fn command(name: &str, args: &ChildArgs) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this program's own file")?);
    let io_mode = args.io_mode.to_possible_value().context("an io mode has a name")?;
    command.arg(name).arg(&args.dir).args(["--payload", &args.payload.to_string(), "--io-mode", io_mode.get_name()]);
    command.stdin(Stdio::null());
    Ok(command)
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    fn segment(role: SegmentRole, used_bytes: u64, entries: Range<u64>) -> SegmentInfo {
        let (file, first_frame) = (std::path::PathBuf::new(), None);
        SegmentInfo { sequence: 1, file, bytes: 100, block_bytes: 4096, used_bytes, entries, role, first_frame }
    }

    #[test]
    fn what_was_walked_is_what_holds_the_kept_entries() {
        use SegmentRole::{Active, Sealed, Spare};
        let segments = [
            segment(Sealed, 100, 1..11),
            segment(Sealed, 100, 11..21),
            segment(Active, 30, 21..24),
            segment(Spare, 4, 0..0),
        ];
        let walked = |entries_kept| walked_bytes(&segments, 23, entries_kept);
        assert_eq!([0, 3, 4, 13, 14, 23].map(walked), [0, 30, 130, 130, 230, 230]);
    }

    #[test]
    fn listening_ends_with_the_last_whole_line() {
        let mut echo = Command::new("printf").arg("7\\n12\\n13").stdout(Stdio::piped()).spawn().unwrap();
        let acked = AtomicU64::new(0);
        listen(echo.stdout.take().unwrap(), &acked).unwrap();
        echo.wait().unwrap();
        assert_eq!(acked.into_inner(), 12);
    }
}
