//! Opening a log: recovery, then the threads.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};

use super::core::{Core, Shared, SpareWork, ToHelper, ToWriter, WriterState};
use super::helper::Helper;
use super::stall::Watcher;
use super::tail::TailCache;
use super::writer::{Writer, keep_desk};
use crate::config::{Config, Durability};
use crate::disk::{Disk, RealDisk};
use crate::engine::pipeline::{Bounds, Pipeline};
use crate::engine::sequencer::{Limits, Sequencer};
use crate::error::{Error, Result};
use crate::format::frame::Epoch;
use crate::segment::recover::{self, Recovered, RecoveryReport, Request};
use crate::segment::sealed::SegmentHandle;
use crate::sync::channel::{Receiver, Sender, bounded, unbounded};
use crate::sync::thread::{self, JoinHandle};

/// How often a read-only open beside a live writer looks again before it believes what it sees.
const READ_ONLY_TRIES: usize = 100;

/// The threads of a log that is open for writing.
pub(crate) struct Threads {
    pub(crate) writer: JoinHandle<()>,
    pub(crate) helper: JoinHandle<()>,
    pub(crate) watcher: Watcher,
}

impl Threads {
    /// Whether the caller runs on one of them.
    pub(crate) fn include_this(&self) -> bool {
        let this = thread::current().id();
        this == self.writer.thread().id() || this == self.helper.thread().id() || self.watcher.is_this()
    }
}

/// 64 random bits from the operating system.
pub(crate) fn random() -> u64 {
    getrandom::u64().unwrap_or_else(|error| {
        // Salts must differ from file to file; the clock and the counter of this process do that too.
        tracing::warn!(%error, "no random numbers from the system; salts come from the clock");
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        since.as_nanos() as u64 ^ (u64::from(std::process::id()) << 40)
    })
}

/// Opens the log of a real directory, creating the directory and the log where there is none.
pub(crate) fn open(dir: &Path, config: Config) -> Result<(Arc<Shared>, Threads, RecoveryReport)> {
    open_on(disk_of(dir, &config)?, config)
}

/// The disk that a real directory is; it is created where there is none.
pub(crate) fn disk_of(dir: &Path, config: &Config) -> Result<Arc<dyn Disk>> {
    config.validate()?;
    check_directory(dir)?;
    if let Err(error) = std::fs::create_dir_all(dir) {
        // On a read-only disk an existing directory is still named by what cannot be done in it.
        if !dir.is_dir() {
            return Err(Error::io("create", dir)(error));
        }
    }
    Ok(Arc::new(RealDisk::open(dir, config.io_choice())?))
}

/// Refuses a path where something stands that can never be a log.
fn check_directory(dir: &Path) -> Result<()> {
    if dir.exists() && !dir.is_dir() {
        return Err(Error::Foreign { path: dir.into(), found: "it is not a directory".into() });
    }
    Ok(())
}

/// Opens the log on any disk.
pub(crate) fn open_on(disk: Arc<dyn Disk>, config: Config) -> Result<(Arc<Shared>, Threads, RecoveryReport)> {
    config.validate()?;
    let started = Instant::now();
    let request = Request { disk: &disk, config: &config, random: &random, read_only: false };
    let recovered = recover::recover(&request)?;
    let mut report = recovered.report.clone();
    let pipeline = pipeline(&config, &recovered);
    let (to_writer, writer_inbox) = unbounded();
    let (to_helper, helper_inbox) = unbounded();
    let shared = share(disk, config, recovered, (to_writer, to_helper));
    let threads = start_threads(&shared, pipeline, writer_inbox, helper_inbox)?;
    report.took = started.elapsed();
    tell(&shared, &report);
    Ok((shared, threads, report))
}

/// A whole recovery, and then a log without threads, for reading: where many states are to be tried. One that is read
/// only looks once: whatever it finds damaged, nobody else is writing there.
#[cfg(feature = "sim")]
pub(crate) fn recover_on(
    disk: Arc<dyn Disk>,
    config: Config,
    read_only: bool,
) -> Result<(Arc<Shared>, RecoveryReport)> {
    config.validate()?;
    let request = Request { disk: &disk, config: &config, random: &random, read_only };
    let mut recovered = recover::recover(&request)?;
    recovered.lock = None;
    let report = recovered.report.clone();
    let (to_writer, to_helper) = (unbounded().0, unbounded().0);
    Ok((share(disk, config, recovered, (to_writer, to_helper)), report))
}

/// Opens the log of a directory for reading only: no lock is taken and nothing is written.
pub(crate) fn open_read_only(dir: &Path) -> Result<(Arc<Shared>, RecoveryReport)> {
    check_directory(dir)?;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::open_read_only(dir)?);
    read_only_on(disk)
}

pub(crate) fn read_only_on(disk: Arc<dyn Disk>) -> Result<(Arc<Shared>, RecoveryReport)> {
    let started = Instant::now();
    let config = Config::default();
    let request = Request { disk: &disk, config: &config, random: &random, read_only: true };
    let recovered = look_until_sure(&request)?;
    let report = RecoveryReport { took: started.elapsed(), ..recovered.report.clone() };
    let (to_writer, to_helper) = (unbounded().0, unbounded().0);
    Ok((share(disk, config, recovered, (to_writer, to_helper)), report))
}

/// Beside a live writer a frame may land between two looks, and a segment may go or be made anew: what looks damaged
/// is believed only when a second whole look finds the same place damaged.
fn look_until_sure(request: &Request<'_>) -> Result<Recovered> {
    let mut last_place = None;
    for _ in 0..READ_ONLY_TRIES {
        let error = match recover::recover(request) {
            Ok(recovered) => return Ok(recovered),
            Err(error) => error,
        };
        let place = match &error {
            Error::Corrupt { file, offset, .. } => Some((file.clone(), *offset)),
            Error::Io { source, path, .. } if source.kind() == std::io::ErrorKind::NotFound => Some((path.clone(), 0)),
            _ => return Err(error),
        };
        if place == last_place {
            return Err(error);
        }
        last_place = place;
        thread::sleep(Duration::from_millis(20));
    }
    // Each look was overtaken at another place: what is there changes faster than it can be read.
    Err(Error::Busy)
}

fn pipeline(config: &Config, recovered: &Recovered) -> Pipeline {
    let bounds = Bounds {
        frames: config.frames_in_flight,
        bytes: config.in_flight_bytes_max,
        durable_writes: config.durability == Durability::Sync,
    };
    let Epoch { counter, random } = recovered.epoch;
    Pipeline::new(bounds, Epoch { counter, random }, recovered.chain, recovered.start.next_number - 1)
}

fn share(
    disk: Arc<dyn Disk>,
    config: Config,
    recovered: Recovered,
    senders: (Sender<ToWriter>, Sender<ToHelper>),
) -> Arc<Shared> {
    let log_id = recovered.active.header.log_id;
    let mut handles = BTreeMap::new();
    let mut to_seal = VecDeque::new();
    for sealed in recovered.sealed {
        let handle = SegmentHandle::new(disk.clone(), sealed.header);
        handle.seal(sealed.identity);
        handles.insert(sealed.header.sequence, Arc::new(handle));
        if recovered.start.ledger.indexes.contains_key(&sealed.header.sequence) {
            to_seal.push_back(sealed.identity);
        }
    }
    let mut files = BTreeMap::new();
    for open in std::iter::once(&recovered.active).chain(&recovered.spares) {
        let handle = SegmentHandle::new(disk.clone(), open.header);
        handles.insert(open.header.sequence, Arc::new(handle));
        // A read-only log keeps no descriptor that it opened for recovery.
        if recovered.lock.is_some() {
            files.insert(open.header.sequence, open.file.clone());
        }
    }
    let block_bytes = recover::block_bytes(&config, &*disk).unwrap_or(recovered.active.header.block_bytes);
    let limits = Limits { frame_bytes_max: config.frame_bytes_max, block_bytes, first_index: config.first_index };
    let told_next = recovered.start.ledger.outline.state.next.unwrap_or(0);
    let core = Core {
        sequencer: Sequencer::new(recovered.start, limits),
        tail: TailCache::new(config.tail_cache_bytes),
        waiting: VecDeque::new(),
        syncs: VecDeque::new(),
        writer: WriterState::Awake,
        since: VecDeque::new(),
        spare: SpareWork::default(),
        files,
        handles,
        shelf: Arc::default(),
        to_seal,
        slot_due: None,
        subscribers: Vec::new(),
        told_next,
        room_sleepers: 0,
        room_wakers: Vec::new(),
        to_wake: Vec::new(),
        to_ring: None,
        to_drop: Vec::new(),
        poison: None,
        is_closed: false,
    };
    Arc::new(Shared::new(disk, config, log_id, core, recovered.lock, senders))
}

fn start_threads(
    shared: &Arc<Shared>,
    pipeline: Pipeline,
    writer_inbox: Receiver<ToWriter>,
    helper_inbox: Receiver<ToHelper>,
) -> Result<Threads> {
    let path = || shared.disk.path().to_path_buf();
    // First: where a later thread cannot be started, dropping it ends it, and an abandoned writer would keep its locks.
    let watcher = Watcher::start(shared).map_err(Error::io("start the watching thread for", path()))?;
    let (report, started) = bounded(1);
    let writer_inbox = Arc::new(writer_inbox);
    let theirs = shared.clone();
    let name = |role| format!("{}-{role}", shared.config.thread_name);
    let spawned = thread::Builder::new().name(name("writer")).spawn(move || {
        // The driver never leaves the thread it is made on.
        let bound = theirs.config.writer_cpu.map_or(Ok(()), bind);
        if theirs.config.write_in_place && bound.is_ok() {
            let driver = theirs.disk.driver_in_place();
            let _ = theirs.alarm.set(driver.alarm());
            theirs.furnish(Writer::new(theirs.clone(), writer_inbox.clone(), driver, pipeline));
            let _ = report.send(Ok(()));
            return keep_desk(&theirs, &writer_inbox);
        }
        match bound.and_then(|()| theirs.disk.driver(theirs.config.frames_in_flight)) {
            Ok(driver) => {
                let _ = theirs.alarm.set(driver.alarm());
                // Made before anyone can append: it must see the segment that the log begins in.
                let writer = Writer::new(theirs, writer_inbox, driver, pipeline);
                let _ = report.send(Ok(()));
                writer.run();
            }
            Err(error) => drop(report.send(Err(error))),
        }
    });
    let writer = spawned.map_err(Error::io("start the writer thread for", path()))?;
    let made = started.recv().unwrap_or_else(|_| Err(std::io::Error::other("the writer thread ended at once")));
    made.map_err(Error::io("start the driver for", path()))?;
    let helper = Helper::new(shared.clone(), helper_inbox);
    let spawned = thread::Builder::new().name(name("helper")).spawn(move || helper.run());
    let helper = match spawned.map_err(Error::io("start the helper thread for", path())) {
        Ok(helper) => helper,
        Err(error) => {
            let _ = shared.to_writer.send(ToWriter::Close);
            let _ = writer.join();
            return Err(error);
        }
    };
    shared.want_spare(&mut shared.core());
    Ok(Threads { writer, helper, watcher })
}

/// Binds this thread to a CPU.
fn bind(cpu: usize) -> std::io::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        let message = format!("writer_cpu is {cpu}: there is no such CPU");
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, message));
    }
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only).map_err(|error| {
        let error = std::io::Error::from(error);
        std::io::Error::new(error.kind(), format!("writer_cpu is {cpu}, which this process may not use: {error}"))
    })
}

fn tell(shared: &Shared, report: &RecoveryReport) {
    let directory = shared.disk.path().display();
    let RecoveryReport { frames_kept, entries_kept, bytes_cut, was_clean, took, .. } = report;
    tracing::info!(%directory, frames_kept, entries_kept, bytes_cut, was_clean, ?took, "opened the log");
    if *bytes_cut > 0 {
        tracing::warn!(%directory, bytes_cut, saved_to = ?report.saved_to, "cut a torn tail: {}", report.cut_reason);
    }
}
