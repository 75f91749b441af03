//! A load of the size that a store is for, which is too much for every test run. Start it with
//!
//! ```sh
//! cargo test --release -p ringwal-cli --test real_load -- --ignored --nocapture
//! ```
//!
//! Records of 16-byte keys, in no order, and 100-byte values go from a file through `ringwal kv load` in batches. The load is
//! killed in the middle and goes on where it had told that its lines were durable; a snapshot is taken and the log
//! compacted; the store is opened again, and its export is compared with the input. Each step's time and peak memory, and the
//! disk's use before and after the compaction, are printed.
//!
//! `RINGWAL_LOAD_LINES` says how many records (5,000,000), `RINGWAL_LOAD_DIR` where (under target/). It takes some
//! 2 GB of disk there and a minute or two.

mod tool;

use std::env;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{ChildStderr, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ringwal::sim::Rng;
use tool::{Running, on, succeeded};

const VALUE_BYTES: usize = 100;

/// The key of a record: every number has its own, and they come in no order.
fn key(number: u64) -> u64 {
    // The finish of splitmix64: each step can be undone.
    let mixed = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The line of a record. Its value is of 64 letters, by chance: no compression gets below three quarters.
fn write_line(number: u64, line: &mut Vec<u8>) {
    const LETTERS: &[u8; 64] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+/";
    line.clear();
    write!(line, "{:016x}\t", key(number)).unwrap();
    let mut rng = Rng::new(number);
    let mut random = 0;
    for place in 0..VALUE_BYTES {
        if place % 10 == 0 {
            random = rng.next_u64();
        }
        line.push(LETTERS[(random & 63) as usize]);
        random >>= 6;
    }
    line.push(b'\n');
}

fn write_input(path: &Path, lines: u64) {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).unwrap());
    let mut line = Vec::new();
    for number in 0..lines {
        write_line(number, &mut line);
        file.write_all(&line).unwrap();
    }
    file.into_inner().unwrap().sync_all().unwrap();
}

/// The highest memory that a process has had, while it runs and may still have more.
fn peak_kib(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
}

/// Bytes that the files of a directory take on the disk.
fn disk_bytes(dir: &Path) -> u64 {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().blocks() * 512).sum()
}

/// A process that is being watched.
struct Step {
    name: &'static str,
    running: Running,
    started: Instant,
    peak_kib: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
}

impl Step {
    fn start(name: &'static str, command: &mut Command) -> Step {
        let (started, running) = (Instant::now(), Running(command.spawn().unwrap()));
        let (peak_kib, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (peak, over, pid) = (peak_kib.clone(), is_over.clone(), running.0.id());
        thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                peak.fetch_max(self::peak_kib(pid).unwrap_or(0), Ordering::Relaxed);
                thread::sleep(Duration::from_millis(5));
            }
        });
        Step { name, running, started, peak_kib, is_over }
    }

    fn report(&self) {
        self.is_over.store(true, Ordering::Relaxed);
        let (seconds, peak) = (self.started.elapsed().as_secs_f64(), self.peak_kib.load(Ordering::Relaxed) / 1024);
        println!("{:<44} {seconds:>8.2} s   peak memory {peak:>6} MiB", self.name);
    }

    /// Waits for its end, which has to be a good one.
    fn finish(mut self) -> String {
        let child = &mut self.running.0;
        let status = child.wait().unwrap();
        self.report();
        let read = |pipe: Option<&mut dyn std::io::Read>| {
            let mut bytes = Vec::new();
            pipe.map(|pipe| pipe.read_to_end(&mut bytes).unwrap());
            bytes
        };
        let child = &mut self.running.0;
        let stdout = read(child.stdout.as_mut().map(|pipe| pipe as _));
        let stderr = read(child.stderr.as_mut().map(|pipe| pipe as _));
        String::from_utf8(succeeded(&[self.name], Output { status, stdout, stderr })).unwrap()
    }
}

/// Waits until so many lines are told to be durable, and says how many that were.
fn told_durable(told: &mut BufReader<ChildStderr>, enough: u64) -> u64 {
    for line in told.lines().map_while(Result::ok) {
        let lines = line.split("bytes, ").nth(1).and_then(|rest| rest.split(' ').next());
        let lines = lines.and_then(|lines| lines.replace(',', "").parse().ok()).unwrap_or(0);
        if lines >= enough {
            return lines;
        }
    }
    panic!("it ended before {enough} lines were told to be durable");
}

#[test]
#[ignore = "takes gigabytes and minutes: see the top of the file"]
fn millions_of_records_survive_a_kill_a_compaction_and_a_reopen() {
    let lines = env::var("RINGWAL_LOAD_LINES").map_or(5_000_000, |lines| lines.parse::<u64>().unwrap());
    let base = env::var_os("RINGWAL_LOAD_DIR").unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into());
    let scratch = tempfile::tempdir_in(base).unwrap();
    let (input, dir) = (scratch.path().join("input"), scratch.path().join("store"));
    write_input(&input, lines);
    let path = input.to_str().unwrap();
    println!("{lines} records, {} MiB of input", input.metadata().unwrap().len() >> 20);

    let mut step = Step::start("load, killed in the middle", &mut on(&dir, &["kv", "load", path]));
    let mut told = BufReader::new(step.running.0.stderr.take().unwrap());
    let durable = told_durable(&mut told, lines * 2 / 5);
    assert!(step.running.0.try_wait().unwrap().is_none(), "it was over before it could be killed");
    step.running.0.kill().unwrap();
    step.running.0.wait().unwrap();
    step.report();
    println!("  killed when {durable} lines were told to be durable");
    count_step("opened to read by one get", &dir, durable);

    let skip = durable.to_string();
    print!("  {}", Step::start("load, going on", &mut on(&dir, &["kv", "load", path, "--skip", &skip])).finish());
    println!("  disk: {} MiB", disk_bytes(&dir) >> 20);
    let told = Step::start("snapshot, log compacted", &mut on(&dir, &["snapshot", "create"])).finish();
    told.lines().for_each(|line| println!("  {line}"));
    println!("  disk: {} MiB", disk_bytes(&dir) >> 20);
    Step::start("verify all snapshots", &mut on(&dir, &["snapshot", "verify"])).finish();
    Step::start("opened to write, one key deleted", &mut on(&dir, &["kv", "delete", &hex(lines - 1)])).finish();
    let mut line = Vec::new();
    write_line(lines - 1, &mut line);
    let value = std::str::from_utf8(&line[17..line.len() - 1]).unwrap();
    Step::start("opened to write, the key set again", &mut on(&dir, &["kv", "set", &hex(lines - 1), value])).finish();
    compare_export(&dir, lines);
}

fn hex(number: u64) -> String {
    format!("{:016x}", key(number))
}

/// A key that was told to be durable is there.
fn count_step(name: &'static str, dir: &Path, durable: u64) {
    let mut line = Vec::new();
    write_line(durable - 1, &mut line);
    let value = Step::start(name, &mut on(dir, &["kv", "get", &hex(durable - 1)])).finish();
    assert_eq!(value.as_bytes(), &line[17..]);
}

/// Exports the store, and compares each line with what it has to be.
fn compare_export(dir: &Path, lines: u64) {
    let mut sorted = (0..lines).map(|number| (key(number), number)).collect::<Vec<_>>();
    sorted.sort_unstable();
    let mut step = Step::start("export", on(dir, &["kv", "export"]).stderr(Stdio::inherit()));
    let mut exported = BufReader::with_capacity(1 << 20, step.running.0.stdout.take().unwrap());
    let (mut line, mut expected) = (Vec::new(), Vec::new());
    for (_, number) in sorted {
        line.clear();
        exported.read_until(b'\n', &mut line).unwrap();
        write_line(number, &mut expected);
        assert!(line == expected, "{} in place of {}", line.escape_ascii(), expected.escape_ascii());
    }
    assert_eq!(exported.read_until(b'\n', &mut line).unwrap(), 0, "it goes on after the last record");
    step.finish();
    println!("the export is the input, sorted: {lines} records compared");
}
