//! Reading without writing: beside a live writer, of a damaged log, of nothing; and readers that race the writer.

#[path = "look/mod.rs"]
mod look;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use look::{Look, files, segment_names};
use ringwal::sim::Rng;
use ringwal::{Batch, Config, Error, IoChoice, Log, LogEntry};
use rustix::mount::UnmountFlags;
use tempfile::TempDir;

const BLOCK: usize = 4096;

fn config() -> Config {
    let small = Config::default().segment_bytes(24 * BLOCK as u64).frame_bytes_max(32 << 10).tail_cache_bytes(0);
    small.idle_mark_after(Duration::from_millis(5)).lock_wait(Duration::from_secs(60))
}

/// What the entry of an index and a term holds.
fn payload(index: u64, term: u64) -> Vec<u8> {
    let mut rng = Rng::new(index << 24 ^ term);
    let bytes = if rng.one_in(10) { 9000 } else { 8 * rng.below(150) };
    (0..bytes / 8).flat_map(|_| rng.next_u64().to_le_bytes()).collect()
}

fn entry(index: u64, term: u64) -> LogEntry {
    LogEntry { timestamp: index, ..LogEntry::new(term, index, payload(index, term)) }
}

/// A closed log of some segments.
fn closed_log() -> (TempDir, Look) {
    let directory = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(directory.path(), config()).unwrap();
    for index in 1..250 {
        log.append_entries(vec![entry(index, 1 + index / 100)]).unwrap();
    }
    log.write(Batch::new().put_meta(b"vote", b"7").truncate_from(245).compact(20)).unwrap();
    let look = Look::take(&log).unwrap();
    log.close().unwrap();
    (directory, look)
}

#[test]
fn a_closed_log_is_shown_whole_and_left_as_it_is() {
    let (directory, whole) = closed_log();
    let before = files(directory.path());
    let (log, report) = Log::open_read_only(directory.path()).unwrap();
    assert_eq!(Look::take(&log).unwrap(), whole);
    assert_eq!((report.created, report.damaged_headers), (false, 0));
    for refused in [
        log.append("x").map(drop),
        log.truncate_from(30),
        log.compact(30),
        log.put_meta(b"vote", b"8"),
        log.sync().map(drop),
        log.submit(Batch::new().push("x")).map(drop),
        log.try_submit(Batch::new().push("x")).map(drop).map_err(|(error, _)| error),
    ] {
        assert!(matches!(refused, Err(Error::ReadOnly)), "{refused:?}");
    }
    assert!(files(directory.path()) == before, "a read-only open wrote something");
    let (writer, _) = Log::open(directory.path(), config().lock_wait(Duration::ZERO)).unwrap();
    assert_eq!(Look::take(&writer).unwrap(), whole, "a read-only log holds no lock");
}

#[test]
fn an_empty_or_missing_directory_and_a_file_are_clear_errors() {
    let directory = tempfile::tempdir().unwrap();
    let error = Log::open_read_only(directory.path()).unwrap_err();
    assert!(matches!(error, Error::Foreign { .. }), "{error}");
    assert!(error.to_string().contains("no segment"), "{error}");
    let missing = directory.path().join("missing");
    let error = Log::open_read_only(&missing).unwrap_err();
    assert!(matches!(&error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound), "{error}");
    assert!(!missing.exists());
}

/// Says of an error what must agree between a writing and a read-only open.
fn essence(error: &Error) -> (String, Option<u64>) {
    match error {
        Error::Corrupt { file, offset, .. } => (file.display().to_string(), Some(*offset)),
        other => (other.to_string(), None),
    }
}

#[test]
fn a_damaged_log_is_the_error_that_a_writing_open_gives() {
    let (directory, _) = closed_log();
    let names = segment_names(directory.path());
    assert!(names.len() >= 4);
    let mut refused = 0;
    for name in &names {
        let path = directory.path().join(name);
        let whole = fs::read(&path).unwrap();
        for block in 1..24 {
            let mut damaged = whole.clone();
            damaged[block * BLOCK + 70] ^= 4;
            fs::write(&path, &damaged).unwrap();
            let before = files(directory.path());
            let looked = Log::open_read_only(directory.path());
            assert!(files(directory.path()) == before, "a read-only open wrote something");
            if let Err(error) = looked {
                let writing = Log::open(directory.path(), config()).unwrap_err();
                assert_eq!(essence(&error), essence(&writing), "block {block} of {name}");
                refused += 1;
            }
        }
        fs::write(&path, &whole).unwrap();
        let deleted = fs::remove_file(&path);
        assert!(deleted.is_ok());
        let looks = [Log::open_read_only(directory.path()), Log::open(directory.path(), config())];
        let errors = looks.map(|look| look.err().map(|error| essence(&error)));
        assert_eq!(errors[0], errors[1], "{name} deleted");
        fs::write(&path, &whole).unwrap();
    }
    assert!(refused > 20, "only {refused} of the damages were noticed at open");
}

#[test]
fn a_damaged_header_refuses_a_writer_and_a_reader_goes_by_the_salt_of_the_frames() {
    let (directory, whole) = closed_log();
    for name in segment_names(directory.path()) {
        let path = directory.path().join(&name);
        let good = fs::read(&path).unwrap();
        let zeroed = (0..BLOCK).map(|at| (at, 0xff)).collect::<Vec<_>>();
        let bits = [0, 8, 12, 16, 24, 40, 48, 56].map(|byte| vec![(byte, 1u8)]);
        for damage in bits.into_iter().chain([zeroed]) {
            let mut damaged = good.clone();
            match damage.len() {
                1 => damaged[damage[0].0] ^= damage[0].1,
                _ => damaged[..BLOCK].fill(0),
            }
            fs::write(&path, &damaged).unwrap();
            let before = files(directory.path());
            let refused = Log::open(directory.path(), config()).unwrap_err();
            assert!(matches!(&refused, Error::Corrupt { file, offset: 0, .. } if *file == path), "{refused}");
            let (log, report) = Log::open_read_only(directory.path()).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!((Look::take(&log).unwrap(), report.damaged_headers), (whole.clone(), 1), "{name}");
            assert!(files(directory.path()) == before, "{name}: a refused or read-only open wrote something");
        }
        fs::write(&path, &good).unwrap();
    }
}

#[test]
fn a_damaged_header_does_not_hide_other_damage_in_its_segment() {
    let (directory, whole) = closed_log();
    let names = segment_names(directory.path());
    let mut refused = 0;
    for name in &names {
        let path = directory.path().join(name);
        let good = fs::read(&path).unwrap();
        for block in 1..24 {
            let mut damaged = good.clone();
            damaged[..BLOCK].fill(0);
            damaged[block * BLOCK..][..BLOCK].fill(0);
            fs::write(&path, &damaged).unwrap();
            match Log::open_read_only(directory.path()) {
                Err(error) => {
                    assert!(matches!(error, Error::Corrupt { .. }), "block {block} of {name}: {error}");
                    refused += 1;
                }
                Ok((log, _)) => {
                    assert_eq!(Look::without_entries(&log).last, whole.last, "block {block} of {name}");
                    for entry in &whole.entries {
                        match log.get(entry.index) {
                            Ok(found) => assert_eq!(found, *entry),
                            Err(Error::Corrupt { .. }) => refused += 1,
                            Err(error) => panic!("block {block} of {name}: {error}"),
                        }
                    }
                }
            }
        }
        fs::write(&path, &good).unwrap();
    }
    assert!(refused > 50, "{refused}");
}

/// A writer that rolls, truncates, compacts and recycles, until it is told to stop.
struct Writer {
    log: Log,
    /// Every index up to this one was acknowledged, and is there unless it is compacted.
    acked: AtomicU64,
    stop: AtomicBool,
}

impl Writer {
    fn open(directory: &Path, io: IoChoice) -> Writer {
        let (log, _) = Log::open(directory, config().io(io)).unwrap();
        log.append_entries(vec![entry(1, 1)]).unwrap();
        Writer { log, acked: AtomicU64::new(1), stop: AtomicBool::new(false) }
    }

    fn write(&self) {
        let _stop = Stop(&self.stop);
        let mut rng = Rng::new(3);
        let (mut next, mut term) = (2, 1);
        while !self.stop.load(Ordering::Relaxed) {
            let mut batch = Batch::new();
            if rng.one_in(6) {
                // What is truncated is written again in the same batch, of another term: no acked index ever goes.
                (next, term) = (next - 1, term + 1);
                batch = batch.truncate_from(next);
            }
            for _ in 0..=rng.below(5) {
                batch = batch.push_entry(entry(next, term));
                next += 1;
            }
            if rng.one_in(12) && next > 300 {
                batch = batch.compact(next - 150);
            }
            self.log.write(batch).unwrap();
            self.acked.store(next - 1, Ordering::SeqCst);
        }
    }

    fn rolls(&self) -> u64 {
        assert!(!self.stop.load(Ordering::Relaxed), "the writer ended by itself");
        self.log.stats().rolls
    }
}

/// Reads everything that a log shows; each entry is right or compacted away meanwhile.
fn read_all(log: &Log) -> u64 {
    let state = log.state();
    let mut read = 0;
    let end = state.last.map_or(state.first, |(last, _)| last + 1);
    for index in state.first..end {
        match log.get(index) {
            Ok(found) => {
                assert_eq!(
                    (found.index, &found.command[..]),
                    (index, &payload(index, found.term)[..]),
                    "index {index}"
                );
                read += 1;
            }
            Err(Error::Compacted { .. } | Error::NotWritten { .. }) => {}
            Err(error) => panic!("index {index}: {error}"),
        }
    }
    read
}

#[test]
fn beside_a_live_writer_every_look_shows_at_least_what_was_acknowledged_before_it() {
    for io in [IoChoice::Auto, IoChoice::Syscall] {
        let directory = tempfile::tempdir().unwrap();
        let writer = Writer::open(directory.path(), io);
        let (mut looks, mut read) = (0, 0);
        thread::scope(|scope| {
            scope.spawn(|| writer.write());
            // Told to stop however this ends.
            let _stop = Stop(&writer.stop);
            while looks < 60 || writer.rolls() < 60 {
                let acked = writer.acked.load(Ordering::SeqCst);
                let (log, _) = Log::open_read_only(directory.path()).unwrap();
                let last = log.state().last.unwrap().0;
                assert!(last >= acked, "look {looks} ends at {last}, but {acked} was acknowledged before");
                read += read_all(&log);
                looks += 1;
            }
        });
        println!("{looks} looks, {read} entries read, {} segments rolled", writer.log.stats().rolls);
        assert!(read > 1000 && writer.log.stats().drops > 10);
    }
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The kernel may leave a stale page in its cache when a direct write passes a buffered read.
#[test]
fn readers_that_race_the_writer_see_every_byte_right() {
    let directory = tempfile::tempdir().unwrap();
    race_on(directory.path());
}

#[test]
fn readers_that_race_the_writer_on_an_ext4_of_its_own_see_every_byte_right() {
    if let Some(mounted) = Mounted::new("ext4", &["-q", "-F"], 64 << 20) {
        race_on(&mounted.at);
    }
}

#[test]
fn readers_that_race_the_writer_on_an_xfs_see_every_byte_right() {
    if let Some(mounted) = Mounted::new("xfs", &["-q"], 320 << 20) {
        race_on(&mounted.at);
    }
}

/// A file system in a file, until this is dropped.
struct Mounted {
    at: PathBuf,
    _directory: TempDir,
}

impl Mounted {
    /// `None`, and a word about it, where this user may not mount or there is no such file system.
    fn new(kind: &str, options: &[&str], bytes: u64) -> Option<Mounted> {
        let directory = tempfile::tempdir().unwrap();
        let (at, image) = (directory.path().join("mounted"), directory.path().join("image"));
        fs::create_dir(&at).unwrap();
        fs::File::create(&image).unwrap().set_len(bytes).unwrap();
        let made = run(Command::new(format!("mkfs.{kind}")).args(options).arg(&image));
        match made.and_then(|()| run(Command::new("mount").args(["-o", "loop"]).args([&image, &at]))) {
            Ok(()) => Some(Mounted { at, _directory: directory }),
            Err(why) => {
                println!("skipped: cannot make and mount an {kind} here ({why})");
                None
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.at, UnmountFlags::DETACH);
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_string()),
    }
}

fn race_on(parent: &Path) {
    for (name, io) in [("auto", IoChoice::Auto), ("syscall", IoChoice::Syscall)] {
        let writer = Writer::open(&parent.join(name), io);
        let read = AtomicU64::new(0);
        thread::scope(|scope| {
            scope.spawn(|| writer.write());
            let readers: Vec<_> = (0..3)
                .map(|nth| {
                    scope.spawn({
                        let (writer, read) = (&writer, &read);
                        move || race(writer, read, nth)
                    })
                })
                .collect();
            let _stop = Stop(&writer.stop);
            readers.into_iter().for_each(|reader| reader.join().unwrap());
        });
        let (read, rolls) = (read.load(Ordering::Relaxed), writer.log.stats().rolls);
        println!(
            "{} with {:?}: {read} entries read while {rolls} segments were rolled",
            parent.display(),
            writer.log.io_mode()
        );
        assert!(read > 10_000);
    }
}

/// Reads near the end, at random, and in a row, until enough segments were rolled.
fn race(writer: &Writer, read: &AtomicU64, nth: u64) {
    let mut rng = Rng::new(nth);
    while writer.rolls() < 40 {
        let state = writer.log.state();
        let last = state.last.unwrap().0;
        let first = match nth {
            0 => last.saturating_sub(rng.below(5) as u64),
            1 => state.first + rng.below((last + 1 - state.first) as usize) as u64,
            _ => state.first,
        };
        let found = match writer.log.get_entries(first.max(1)..last + 1, 64 << 10) {
            Ok(found) => found,
            Err(Error::Compacted { .. } | Error::NotWritten { .. }) => continue,
            Err(error) => panic!("from {first}: {error}"),
        };
        for found in &found {
            assert!(found.command[..] == payload(found.index, found.term)[..], "index {} is another", found.index);
        }
        read.fetch_add(found.len() as u64, Ordering::Relaxed);
    }
}
