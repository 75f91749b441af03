//! What the tests of the public API share: disks to run on, an executor, deadlines that only keep a test from hanging.
#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod gated;
pub(crate) mod skip;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ringwal::disk::Disk;
use ringwal::sim::{Mode, SimDisk, SimOptions};
use ringwal::{Config, Durability, Error, IoChoice, Log, LogEntry, RecoveryReport};
use tempfile::TempDir;

/// Long enough for the slowest machine: whoever waits so long waits for ever.
pub(crate) const FOR_EVER: Duration = Duration::from_secs(60);

/// The smallest segment with blocks of 4096, so that a few entries make the log roll.
pub(crate) const SMALL_SEGMENT: u64 = 24 * 4096;

/// A configuration that rolls early and never writes a mark of its own accord.
pub(crate) fn small() -> Config {
    Config::default().segment_bytes(SMALL_SEGMENT).idle_mark_after(Duration::from_secs(3600))
}

/// As [`small`], with blocks and segments as small as can be: 24 blocks of 512.
pub(crate) fn tiny() -> Config {
    small().block_bytes(Some(512)).segment_bytes(24 * 512).frame_bytes_max(4096)
}

/// A directory on a real disk.
pub(crate) fn scratch() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Where a log lives, so that it can be opened again.
pub(crate) enum Place {
    /// A real directory, with this driver.
    Dir(TempDir, IoChoice),
    /// A simulated disk.
    Sim(SimDisk),
}

impl Place {
    /// A real directory with io_uring, or with whatever the machine allows where it is barred.
    pub(crate) fn uring() -> Place {
        let probe = scratch();
        let is_allowed = Log::open(probe.path(), small().io(IoChoice::Uring)).is_ok();
        Place::Dir(scratch(), if is_allowed { IoChoice::Uring } else { IoChoice::Auto })
    }

    /// A real directory with plain system calls.
    pub(crate) fn syscall() -> Place {
        Place::Dir(scratch(), IoChoice::Syscall)
    }

    /// A simulated disk that completes in any order.
    pub(crate) fn sim(seed: u64) -> Place {
        Place::Sim(SimDisk::new(seed))
    }

    pub(crate) fn try_open(&self, config: Config) -> Result<(Log, RecoveryReport), Error> {
        match self {
            Place::Dir(dir, io) => Log::open(dir.path(), config.io(*io)),
            Place::Sim(disk) => Log::open_on(Arc::new(disk.clone()), config),
        }
    }

    pub(crate) fn open(&self, config: Config) -> Log {
        self.try_open(config).unwrap().0
    }
}

/// Opens a log on a simulated disk.
pub(crate) fn open_sim(disk: &SimDisk, config: Config) -> Log {
    try_open_sim(disk, config).unwrap()
}

pub(crate) fn try_open_sim(disk: &SimDisk, config: Config) -> Result<Log, Error> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    Log::open_on(disk, config).map(|(log, _)| log)
}

/// A simulated disk whose writes complete only when the test says so.
pub(crate) fn held_disk() -> SimDisk {
    SimDisk::with_options(SimOptions { mode: Mode::Held, ..SimOptions::default() })
}

/// Opens a log on a disk whose writes are held back, and lets everything go when the test ends, however it ends:
/// a log that is dropped waits for its writes.
pub(crate) struct HeldLog {
    // Dropped in this order: first the writes are let go, then the log waits for them.
    _release: Release,
    pub(crate) log: Option<Log>,
    pub(crate) disk: SimDisk,
}

struct Release(SimDisk);

impl Drop for Release {
    fn drop(&mut self) {
        self.0.set_mode(Mode::Random);
        self.0.complete_all();
    }
}

impl HeldLog {
    pub(crate) fn open(config: Config) -> HeldLog {
        let disk = held_disk();
        let log = open_sim(&disk, config);
        HeldLog { _release: Release(disk.clone()), log: Some(log), disk }
    }

    pub(crate) fn log(&self) -> &Log {
        self.log.as_ref().unwrap()
    }

    /// Waits until so many writes are held back.
    pub(crate) fn wait_in_flight(&self, operations: usize) {
        assert!(self.disk.wait_in_flight(operations, FOR_EVER), "the writes never came");
    }

    /// Lets everything complete from now on.
    pub(crate) fn release(&self) {
        self.disk.set_mode(Mode::Random);
        self.disk.complete_all();
    }
}

/// Runs something that must end, and says so if it does not.
pub(crate) fn within<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    let worker = thread::spawn(move || drop(sender.send(work())));
    match receiver.recv_timeout(FOR_EVER) {
        Ok(value) => {
            worker.join().unwrap();
            value
        }
        Err(RecvTimeoutError::Timeout) => panic!("{what} never ends"),
        Err(RecvTimeoutError::Disconnected) => std::panic::resume_unwind(worker.join().unwrap_err()),
    }
}

/// Waits until something becomes true.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < FOR_EVER, "it never happens: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Drives one future on this thread: no runtime.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let start = Instant::now();
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park_timeout(FOR_EVER),
        }
        assert!(start.elapsed() < FOR_EVER, "the future is never ready");
    }
}

/// Polls a future once, with a waker that does nothing.
pub(crate) fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    std::pin::Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// Appends one entry after the other, each acknowledged before the next.
pub(crate) fn append_each<P: Into<Bytes>>(log: &Log, payloads: impl IntoIterator<Item = P>) {
    for payload in payloads {
        log.append(payload).unwrap();
    }
}

/// The payloads of all entries that can be read.
pub(crate) fn payloads(log: &Log) -> Vec<Vec<u8>> {
    log.iter(..).map(|entry| entry.unwrap().command.to_vec()).collect()
}

/// Entries `indexes` with a term, each with a payload that names it.
pub(crate) fn entries(term: u64, indexes: std::ops::Range<u64>) -> Vec<LogEntry> {
    indexes.map(|index| LogEntry::new(term, index, format!("{index} in {term}"))).collect()
}

/// What an error comes to, for comparing: variant and fields.
pub(crate) fn told<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    format!("{:?}", result.unwrap_err())
}

/// A log of several segments, some sealed, that ended in the middle of work; and what was acknowledged.
pub(crate) fn interrupted(durability: Durability) -> (SimDisk, Config, Vec<LogEntry>) {
    let config = tiny().durability(durability);
    let disk = SimDisk::new(11);
    let log = open_sim(&disk, config.clone());
    for index in 1..90 {
        log.append_entries(entries(1 + index / 10, index..index + 1)).unwrap();
    }
    log.truncate_from(85).unwrap();
    log.compact(20).unwrap();
    log.put_meta(b"vote", b"me").unwrap();
    log.append_entries(entries(30, 85..88)).unwrap();
    eventually("segments are sealed", || disk.file_names().iter().any(|name| name.ends_with(".idx")));
    let kept = log.iter(..).map(Result::unwrap).collect();
    (disk.crash_point().keep_completed(), config, kept)
}
