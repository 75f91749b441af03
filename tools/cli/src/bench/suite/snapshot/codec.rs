//! The stream of a snapshot beside the `zstd` tool: compressing on two cores, and reading back to nowhere.
//!
//! Both compress the very same bytes at the same level, from memory to a file in memory (tmpfs), where a sync costs
//! nothing: what is compared is the work, not the disk. They take turns after a turn that is discarded; the figure is the
//! median of the turns' ratios. What a snapshot costs on the disk besides, syncs and reading back, is told apart, from
//! one that is made there. Reading back is compared on that one: a file on the disk that the page cache holds.

use std::fs;
use std::io::{BufRead, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::bench::figures::median;
use crate::bench::payload::next_random;
use crate::bench::place::Root;
use crate::bench::suite::append::{TMPFS, memory_dir};
use crate::bench::suite::row::{Bar, Judged, Outcome, Row, Site};
use crate::bench::suite::snapshot::tool;
use crate::engine::{FileSnapshots, Snapshot, SnapshotOptions};
use crate::interrupt;
use crate::text::value;

const STATE_BYTES: usize = 512 << 20;
const LEVEL: i32 = 3;
const CORES: usize = 2;
const TURNS: usize = 5;
const MACHINE: &str = "bench/1";

const COMPRESS_RATIO_MAX: f64 = 1.10;
const READ_RATIO_MAX: f64 = 1.0;

/// Times of the turns, in seconds: ours and the tool's.
type Turns = Vec<[f64; 2]>;

/// All figures of a row.
#[derive(Debug, Serialize)]
struct Compared {
    tool: String,
    state_bytes: usize,
    /// Sizes of the files: ours and the tool's.
    stored_bytes: [u64; 2],
    /// Our time over the tool's.
    ratio: f64,
    mb_per_s: [f64; 2],
    turns_s: Turns,
    on_disk: Option<OnDisk>,
}

/// What a snapshot takes on the disk, and what the tool takes there with a sync after it.
#[derive(Clone, Copy, Debug, Serialize)]
struct OnDisk {
    /// Until everything is compressed, written and synced.
    written_s: f64,
    /// To read it back, for its verification.
    read_back_s: f64,
    tool_s: f64,
    tool_sync_s: f64,
}

/// The row of compressing.
pub(crate) fn compress_row() -> Row {
    let name = "snapshot-compress";
    row(name, format!("time <= {COMPRESS_RATIO_MAX:.2} x zstd -{LEVEL} -T{CORES}"), |site, tool| {
        let memory = match memory_dir(Path::new(TMPFS)) {
            Ok(dir) => dir,
            Err(why) => return Ok(Outcome::Skipped(why)),
        };
        let compared = compress(site.dir, &memory, tool)?;
        let size = compared.stored_bytes[0] as f64 / compared.stored_bytes[1] as f64;
        let [ours, theirs] = compared.mb_per_s.map(value);
        let figure = format!("{:.2} x, {ours} MB/s of {theirs}, size {size:.3} x", compared.ratio);
        outcome(compared.ratio <= COMPRESS_RATIO_MAX, figure, &compared)
    })
}

/// The row of reading back.
pub(crate) fn read_row() -> Row {
    row("snapshot-read", format!("time <= {READ_RATIO_MAX:.2} x zstd -dc"), |site, tool| {
        let compared = read(site.dir, tool)?;
        let [ours, theirs] = compared.mb_per_s.map(value);
        let figure = format!("{:.2} x, {ours} MB/s of {theirs}", compared.ratio);
        outcome(compared.ratio <= READ_RATIO_MAX, figure, &compared)
    })
}

fn row(name: &str, bar: String, run: impl Fn(&Site<'_>, String) -> Result<Outcome> + 'static) -> Row {
    Row {
        name: name.into(),
        bars: vec![Bar { name: name.into(), bar }],
        run: Box::new(move |site| match tool::version() {
            Ok(version) => run(site, version),
            Err(why) => Ok(Outcome::Skipped(why)),
        }),
    }
}

fn outcome(met: bool, figure: String, compared: &Compared) -> Result<Outcome> {
    let raw = serde_json::to_value(compared).context("cannot write the figures as JSON")?;
    Ok(Outcome::Measured(vec![Judged::new(met, figure)], raw))
}

fn compress(dir: &Path, memory: &Path, tool: String) -> Result<Compared> {
    let (state, in_memory, on_disk) = (state(), Files::make(memory)?, Files::make(dir)?);
    fs::write(&in_memory.plain, &state).context("cannot write the state")?;
    let (mut turns, mut stored_bytes) = (Turns::new(), [0; 2]);
    for turn in 0..=TURNS as u64 {
        interrupt::check()?;
        let (ours, snapshot) = in_memory.snapshot(turn, &state)?;
        let tool = tool::compress(&in_memory.plain, &in_memory.packed, LEVEL, CORES)?;
        turns.push([ours.written_s, tool.as_secs_f64()]);
        stored_bytes = [snapshot.stored_bytes, fs::metadata(&in_memory.packed)?.len()];
    }
    turns.remove(0);
    let on_disk = Some(on_disk.measure(&state, &in_memory.plain)?);
    if let Some(OnDisk { written_s, read_back_s, tool_s, tool_sync_s }) = on_disk {
        eprintln!(
            "  on the disk: {written_s:.2} s with its syncs, read back in {read_back_s:.2} s; zstd {tool_s:.2} s"
        );
        eprintln!("  and its sync {tool_sync_s:.2} s");
    }
    Ok(compared(tool, state.len(), stored_bytes, turns, on_disk))
}

fn read(dir: &Path, tool: String) -> Result<Compared> {
    let (state, files) = (state(), Files::make(dir)?);
    let (_, snapshot) = files.snapshot(1, &state)?;
    let file = files.root.path().join(format!("{}.zst", snapshot.id));
    let mut turns = Turns::new();
    for _ in 0..=TURNS {
        interrupt::check()?;
        let ours = read_back(&files.snapshots, &snapshot)?;
        turns.push([ours, tool::decompress(&file)?].map(|time| time.as_secs_f64()));
    }
    turns.remove(0);
    Ok(compared(tool, state.len(), [snapshot.stored_bytes; 2], turns, None))
}

/// Reads all of a snapshot, as whoever restores a machine does, and drops it.
fn read_back(snapshots: &FileSnapshots, snapshot: &Snapshot) -> Result<Duration> {
    let start = Instant::now();
    let mut reader = snapshots.open_snapshot(&snapshot.id.to_string())?;
    let mut bytes = 0;
    loop {
        let piece = reader.fill_buf()?.len();
        if piece == 0 {
            break;
        }
        reader.consume(piece);
        bytes += piece as u64;
    }
    let time = start.elapsed();
    ensure!(bytes == snapshot.raw_bytes, "{bytes} bytes were read of {}", snapshot.raw_bytes);
    Ok(time)
}

fn compared(
    tool: String,
    state_bytes: usize,
    stored_bytes: [u64; 2],
    turns: Turns,
    on_disk: Option<OnDisk>,
) -> Compared {
    let rate = |side: usize| state_bytes as f64 / 1e6 / median(turns.iter().map(|turn| turn[side]).collect());
    Compared {
        tool,
        state_bytes,
        stored_bytes,
        ratio: median(turns.iter().map(|[ours, tool]| ours / tool).collect()),
        mb_per_s: [rate(0), rate(1)],
        turns_s: turns,
        on_disk,
    }
}

/// Records as a store has them: a key that looks random, and a value that does so by half.
fn state() -> Vec<u8> {
    let (mut state, mut random) = (Vec::with_capacity(STATE_BYTES), 1);
    while state.len() < STATE_BYTES {
        for word in 0..8 {
            let number = next_random(&mut random);
            state.extend_from_slice(&number.to_le_bytes());
            if word > 1 {
                state.extend_from_slice(if number.is_multiple_of(2) { b"of a key" } else { b" a value" });
            }
        }
    }
    state.truncate(STATE_BYTES);
    state
}

/// A directory with snapshots and the tool's files; removed with all of them.
struct Files {
    root: Root,
    snapshots: FileSnapshots,
    plain: PathBuf,
    packed: PathBuf,
}

/// How long it took to make a snapshot.
struct Made {
    written_s: f64,
    read_back_s: f64,
}

impl Files {
    fn make(dir: &Path) -> Result<Files> {
        let root = Root::take(Some(dir))?;
        let options = SnapshotOptions::default().level(LEVEL).workers(CORES).low_priority(false);
        let snapshots = FileSnapshots::open(root.path(), options)?;
        let [plain, packed] = ["state", "state.zst"].map(|name| root.path().join(name));
        Ok(Files { root, snapshots, plain, packed })
    }

    /// Makes a snapshot of this index. Its publication ends with reading it back, which is what a verification of it
    /// right afterwards takes once more.
    fn snapshot(&self, index: u64, state: &[u8]) -> Result<(Made, Snapshot)> {
        let start = Instant::now();
        let mut writer = self.snapshots.writer(index, 0, MACHINE)?;
        writer.write_all(state)?;
        let snapshot = writer.publish()?;
        let published = start.elapsed();
        let start = Instant::now();
        self.snapshots.verify(&snapshot.id.to_string())?;
        let read_back = start.elapsed();
        let written_s = published.saturating_sub(read_back).as_secs_f64();
        Ok((Made { written_s, read_back_s: read_back.as_secs_f64() }, snapshot))
    }

    /// Once on this file system: a snapshot, and the tool with a sync after it.
    fn measure(&self, state: &[u8], plain: &Path) -> Result<OnDisk> {
        let (Made { written_s, read_back_s }, _) = self.snapshot(1, state)?;
        let tool = tool::compress(plain, &self.packed, LEVEL, CORES)?;
        let start = Instant::now();
        fs::File::open(&self.packed)?.sync_all().context("cannot sync the tool's file")?;
        let tool_sync_s = start.elapsed().as_secs_f64();
        Ok(OnDisk { written_s, read_back_s, tool_s: tool.as_secs_f64(), tool_sync_s })
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // Best effort, as for every directory of the bench.
        let _ = fs::remove_dir_all(self.root.path());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_the_median_of_the_turns() {
        let turns = vec![[1.0, 1.0], [3.0, 2.0], [1.2, 1.0]];
        let compared = compared(String::new(), 6_000_000, [1; 2], turns, None);
        assert_eq!((compared.ratio, compared.mb_per_s), (1.2, [5.0, 6.0]));
    }
}
