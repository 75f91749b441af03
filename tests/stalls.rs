//! A disk that does not answer is seen while it does not: in the statistics, whoever asks and whatever the log's threads
//! wait for, and in two events of `tracing`, one when it has been so for too long and one when it is over.
//!
//! The last test freezes a real file system. That takes root; without, it says so and is skipped.

mod common;

use std::fmt::{self, Write as _};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::thread;
use std::time::Duration;

use common::gated::{Gate, GatedDisk, Held};
use common::{HeldLog, append_each, eventually, scratch, small, within};
use ringwal::disk::Disk;
use ringwal::format::names;
use ringwal::{Batch, Config, Durability, Error, Log, Stage, Stall};
use tempfile::TempDir;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// What was told, each event as `message field=value ...`.
static TOLD: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Keeps the warnings.
struct Listener;

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        TOLD.lock().unwrap_or_else(PoisonError::into_inner).push(text.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        write!(self.0, " {field}={value:?}").unwrap();
    }
}

/// What was told of stalls in a directory.
fn told(directory: &Path) -> Vec<String> {
    let directory = format!("directory={} ", directory.display());
    let told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    told.iter().filter(|text| text.contains(&directory) && text.contains("stage=")).cloned().collect()
}

/// So early that every wait of these tests is a stall, also one that only a slow machine makes.
const AFTER: Duration = Duration::from_millis(1);

fn config() -> Config {
    static LISTEN: Once = Once::new();
    LISTEN.call_once(|| tracing::subscriber::set_global_default(Listener).unwrap());
    small().stall_after(AFTER)
}

/// Waits until a stall of this kind shows, and until it was told of.
fn see_stall(log: &Log, directory: &Path, stage: Stage) -> Stall {
    let mut seen = None;
    eventually("the stall shows", || {
        seen = log.stats().stalled.filter(|stall| stall.stage == stage);
        seen.is_some()
    });
    let seen = seen.unwrap();
    assert!(seen.waited_ns >= AFTER.as_nanos() as u64 && log.stats().stalls > 0);
    let words = [format!("stage={stage} "), "still waiting".to_owned(), format!("device={:?} ", seen.device)];
    eventually("the stall is told of while it lasts", || {
        told(directory).iter().any(|text| words.iter().all(|word| text.contains(word)))
    });
    seen
}

/// Waits until nothing is stalled, and every stall was told of twice and not more often.
fn see_end(log: &Log, directory: &Path) {
    eventually("the stall is over", || log.stats().stalled.is_none());
    eventually("its end is told", || {
        let told = told(directory);
        let begun = told.iter().filter(|text| text.contains("still waiting")).count() as u64;
        let over = told.iter().filter(|text| text.contains("is over") && text.contains("lasted=")).count() as u64;
        let stalls = log.stats().stalls;
        assert!(over <= begun && begun <= stalls, "{begun} begun and {over} over of {stalls}: {told:?}");
        begun == stalls && over == stalls
    });
}

/// A log in a real directory on which a test holds operations.
struct GatedLog {
    // Dropped in this order: the gate opens before the log waits for its threads.
    _open: OpenLater,
    gate: Arc<Gate>,
    log: Log,
    path: PathBuf,
    device: String,
    _directory: TempDir,
}

struct OpenLater(Arc<Gate>);

impl Drop for OpenLater {
    fn drop(&mut self) {
        self.0.open();
    }
}

impl GatedLog {
    /// `held` is closed before the log opens.
    fn open(config: Config, held: Option<Held>) -> GatedLog {
        let directory = scratch();
        let path = directory.path().join("log");
        fs::create_dir(&path).unwrap();
        let (disk, gate) = GatedDisk::open(&path);
        let device = disk.device();
        held.into_iter().for_each(|held| gate.hold(held));
        let (log, _) = Log::open_on(Arc::new(disk), config).unwrap();
        let _open = OpenLater(gate.clone());
        GatedLog { _open, gate, log, path, device, _directory: directory }
    }

    /// The name that the first segment's file was opened by.
    fn first() -> String {
        names::temporary(&names::segment(1))
    }
}

#[test]
fn a_write_in_flight_that_hangs_shows_while_it_hangs() {
    let held = HeldLog::open(config());
    let (log, directory) = (held.log().clone(), held.disk.path().to_path_buf());
    let first = log.submit(Batch::new().push(vec![1; 5000])).unwrap();
    held.wait_in_flight(1);
    let second = log.submit(Batch::new().push(vec![2; 5000])).unwrap();
    let stall = see_stall(&log, &directory, Stage::Write);
    assert_eq!((stall.device.as_str(), stall.operations, stall.bytes), ("simulated", 1, 8192));
    let first_told = told(&directory).into_iter().find(|text| text.contains("still waiting")).unwrap();
    assert!(first_told.contains("operations=1 bytes=8192 queued_bytes="), "{first_told}");
    let later = log.stats().stalled.unwrap();
    assert!(later.waited_ns >= stall.waited_ns, "it grows");
    held.release();
    within("both writes", move || first.wait().and(second.wait())).unwrap();
    see_end(&log, &directory);
}

#[test]
fn a_plain_write_that_blocks_the_writer_thread_shows_while_it_blocks() {
    let gated = GatedLog::open(config(), None);
    gated.log.append("first").unwrap();
    gated.gate.hold(Held::WriteTo(GatedLog::first()));
    let pending = gated.log.submit(Batch::new().push("second")).unwrap();
    let stall = see_stall(&gated.log, &gated.path, Stage::Write);
    assert_eq!((&stall.device, stall.operations, stall.bytes), (&gated.device, 1, 4096));
    gated.gate.open();
    within("the write", move || pending.wait()).unwrap();
    see_end(&gated.log, &gated.path);
}

#[test]
fn a_sync_that_hangs_shows_while_it_hangs() {
    for durability in [Durability::None, Durability::Interval(Duration::from_millis(1))] {
        let gated = GatedLog::open(config().durability(durability), None);
        // Making the segment synced it as well: that is over.
        gated.gate.hold(Held::SyncOf(GatedLog::first()));
        gated.log.append("entry").unwrap();
        let log = gated.log.clone();
        let syncing = thread::spawn(move || log.sync());
        let stall = see_stall(&gated.log, &gated.path, Stage::Sync);
        assert_eq!((stall.operations, stall.bytes), (1, 0));
        gated.gate.open();
        assert_eq!(within("the sync", move || syncing.join().unwrap()).unwrap(), Some(1));
        see_end(&gated.log, &gated.path);
    }
}

#[test]
fn a_spare_that_hangs_shows_while_appends_go_on() {
    let temporary = names::temporary(&names::segment(2));
    for held in [Held::WriteTo(temporary.clone()), Held::SyncOf(temporary), Held::SyncDir] {
        let gated = GatedLog::open(config(), None);
        // The first spare stands; the one behind it does not come.
        eventually("a spare", || gated.log.segments().len() == 2);
        gated.gate.hold(match held {
            Held::WriteTo(_) => Held::WriteTo(names::temporary(&names::segment(3))),
            Held::SyncOf(_) => Held::SyncOf(names::temporary(&names::segment(3))),
            other => other,
        });
        while gated.log.stats().rolls < 1 {
            gated.log.append(vec![1; 4000]).unwrap();
        }
        let stall = see_stall(&gated.log, &gated.path, Stage::Spare);
        assert_eq!((&stall.device, stall.operations), (&gated.device, 1));
        append_each(&gated.log, ["goes on", "and on"]);
        assert_eq!(gated.log.stats().stalled.map(|stall| stall.stage), Some(Stage::Spare), "it still hangs");
        gated.gate.open();
        see_end(&gated.log, &gated.path);
    }
}

#[test]
fn what_else_the_helper_does_shows_by_its_name() {
    let index = Held::WriteTo(names::temporary(&names::index(1)));
    let slot = Held::WriteTo(names::LOCK.to_owned());
    let removal = Held::RemovalOf(names::index(1));
    for (held, stage) in [(index, Stage::Index), (slot, Stage::Slot), (removal, Stage::Removal)] {
        let gated = GatedLog::open(config(), None);
        gated.gate.hold(held);
        let mut last = 0;
        while gated.log.stats().rolls < 2 {
            last = gated.log.append(vec![1; 4000]).unwrap();
        }
        gated.log.compact(last).unwrap();
        see_stall(&gated.log, &gated.path, stage);
        gated.gate.open();
        see_end(&gated.log, &gated.path);
    }
}

#[test]
fn a_disk_on_which_both_threads_hang_is_told_of_all_the_same() {
    let gated = GatedLog::open(config(), Some(Held::WriteTo(names::temporary(&names::segment(2)))));
    see_stall(&gated.log, &gated.path, Stage::Spare);
    gated.gate.hold(Held::Writes);
    let pending = gated.log.submit(Batch::new().push("entry")).unwrap();
    eventually("the write that hangs is told of beside the spare", || {
        told(&gated.path).iter().any(|text| text.contains("stage=write "))
    });
    assert!(gated.log.stats().stalls >= 2);
    gated.gate.open();
    within("the write", move || pending.wait()).unwrap();
    see_end(&gated.log, &gated.path);
}

#[test]
fn a_close_that_hangs_is_told_of() {
    let gated = GatedLog::open(config(), None);
    gated.log.append("first").unwrap();
    gated.gate.hold(Held::WriteTo(GatedLog::first()));
    // Kept so that the statistics can still be asked for.
    let log = gated.log.clone();
    let closing = thread::spawn(move || log.close());
    see_stall(&gated.log, &gated.path, Stage::Write);
    gated.gate.open();
    within("the close", move || closing.join().unwrap()).unwrap();
    see_end(&gated.log, &gated.path);
    assert!(matches!(gated.log.append("later"), Err(Error::Closed)));
}

#[test]
fn a_disk_that_answers_is_no_news() {
    let directory = scratch();
    let path = directory.path().join("log");
    let (log, _) = Log::open(&path, config().stall_after(Duration::MAX)).unwrap();
    append_each(&log, (0..50).map(|nth| format!("{nth}")));
    assert_eq!((log.stats().stalled, log.stats().stalls), (None, 0));
    log.close().unwrap();
    assert_eq!(told(&path), [""; 0]);
    let error = Log::open(&path, config().stall_after(Duration::ZERO)).unwrap_err();
    assert!(matches!(&error, Error::Config(why) if why.contains("stall_after")), "{error}");
}

/// A frozen file system thaws, and is unmounted, however the test ends.
struct Freezer {
    at: PathBuf,
    _directory: TempDir,
}

impl Freezer {
    fn mount() -> Result<Freezer, String> {
        let directory = scratch();
        let (at, image) = (directory.path().join("mounted"), directory.path().join("image"));
        fs::create_dir(&at).unwrap();
        fs::File::create(&image).unwrap().set_len(24 << 20).unwrap();
        run("mkfs.ext4", &[Path::new("-q"), Path::new("-F"), &image])?;
        run("mount", &[Path::new("-o"), Path::new("loop"), &image, &at])?;
        let freezer = Freezer { at, _directory: directory };
        // Tried once, so that where it is not allowed the test is skipped.
        freezer.freeze()?;
        freezer.thaw();
        Ok(freezer)
    }

    fn freeze(&self) -> Result<(), String> {
        run("fsfreeze", &[Path::new("--freeze"), &self.at])
    }

    fn thaw(&self) {
        // Thawing what is not frozen is refused, and no harm.
        let _ = run("fsfreeze", &[Path::new("--unfreeze"), &self.at]);
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.thaw();
        let _ = rustix::mount::unmount(&self.at, rustix::mount::UnmountFlags::DETACH);
    }
}

fn run(program: &str, arguments: &[&Path]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

#[test]
fn a_frozen_file_system_shows_while_it_is_frozen() {
    let freezer = match Freezer::mount() {
        Ok(freezer) => freezer,
        Err(why) => return println!("skipped: cannot mount and freeze a file system here ({why})"),
    };
    let path = freezer.at.join("log");
    let (log, _) = Log::open(&path, config().segment_bytes(2 << 20)).unwrap();
    log.append("before").unwrap();
    eventually("a spare", || log.segments().len() == 2);
    // A small write blocks the writer thread in the kernel; a large one hangs in the ring, where there is one.
    for bytes in [100, 300 << 10] {
        freezer.freeze().unwrap();
        let pending = log.submit(Batch::new().push(vec![1; bytes])).unwrap();
        let stall = see_stall(&log, &path, Stage::Write);
        assert!(stall.device.contains("loop"), "{stall:?}");
        assert!(!pending.is_done(), "nothing is acknowledged on a frozen file system");
        freezer.thaw();
        within("the write", move || pending.wait()).unwrap();
        see_end(&log, &path);
    }
    log.close().unwrap();
}
