//! The simulated disk as the log sees it: [`SimDisk`] and its open files.
//!
//! Every call takes the one lock and goes the way that `state` describes. The laws of what is durable are in `medium`,
//! what a crash leaves is in `crash`, the driver is in `driver`.
//!
//! It does not know the page cache: buffered and direct access see the same bytes at once. Direct access is checked
//! strictly: offset and length must be multiples of the physical block and memory of 512, or the call fails with
//! `EINVAL`.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::class::{Class, UNIT_BYTES};
use super::crash::CrashPoint;
use super::driver::SimDriver;
use super::fault::{Counters, EINVAL, FaultRates, FaultRule, OpKind, Struck};
use super::medium::{DirOp, Failure, Flight, FlightKind, InodeId, Medium};
use super::state::{Open, Shared, State, to_io, writes_durably};
use crate::disk::{Access, Disk, DiskFile, Driver, IoMode};

/// Who decides when a driver's operations complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mode {
    /// Chance, by the seed: a poll completes none, some or all, in any order; a poll that may wait, at least one.
    #[default]
    Random,
    /// Only [`SimDisk::complete`] and its kin. A poll never waits: for explorers with a single thread.
    Manual,
    /// As `Manual`, but a poll waits as it is told: for tests that hold back the writes of a log with threads. A
    /// dropped driver waits until somebody completes what is in flight.
    Held,
}

/// How a simulated disk behaves; start from [`SimOptions::default`].
#[derive(Clone, Copy, Debug)]
pub struct SimOptions {
    /// Decides everything left to chance.
    pub seed: u64,
    /// Who completes operations.
    pub mode: Mode,
    /// What [`Disk::physical_block_bytes`] answers, and what direct access must be aligned to: a power of two from
    /// 512.
    pub physical_block_bytes: u32,
    /// Whether reads see a random part of each write in flight, as they do on a real disk.
    pub partial_reads: bool,
    /// Bytes all files may have together; beyond, operations fail with `ENOSPC`.
    pub capacity_bytes: Option<u64>,
}

impl Default for SimOptions {
    fn default() -> SimOptions {
        SimOptions {
            seed: 0,
            mode: Mode::Random,
            physical_block_bytes: 512,
            partial_reads: false,
            capacity_bytes: None,
        }
    }
}

/// Names an operation in flight, uniquely on its disk and the images made from it.
pub type OpId = u64;

/// An operation in flight, as [`SimDisk::in_flight`] shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// For [`SimDisk::complete`].
    pub id: OpId,
    /// The token of the driver's caller: unique only among the operations of one driver.
    pub token: u64,
    /// The driver's id of the file.
    pub file: u64,
    /// The file's present name.
    pub name: Arc<str>,
    /// Where it writes; 0 for a sync.
    pub offset: u64,
    /// How much it writes; 0 for a sync.
    pub bytes: usize,
    /// Whether it is a sync.
    pub is_sync: bool,
}

/// A disk in memory that keeps apart what is written and what is durable. Cloning gives another handle of the same
/// disk; a crash gives a new disk.
#[derive(Clone)]
pub struct SimDisk {
    pub(super) shared: Arc<Shared>,
}

/// Construction and control.
impl SimDisk {
    /// An empty disk whose operations complete by chance, decided by the seed.
    pub fn new(seed: u64) -> SimDisk {
        SimDisk::with_options(SimOptions { seed, ..SimOptions::default() })
    }

    /// An empty disk whose operations complete only by hand: for explorers that run everything on one thread.
    pub fn manual(seed: u64) -> SimDisk {
        SimDisk::with_options(SimOptions { seed, mode: Mode::Manual, ..SimOptions::default() })
    }

    /// An empty disk that behaves as told.
    ///
    /// # Panics
    ///
    /// Where the physical block is no power of two from 512.
    pub fn with_options(options: SimOptions) -> SimDisk {
        let block = options.physical_block_bytes;
        assert!(block.is_power_of_two() && block >= 512, "a physical block of {block} bytes exists nowhere");
        SimDisk::on(Medium::default(), options)
    }

    /// A disk around a medium.
    pub(super) fn on(medium: Medium, options: SimOptions) -> SimDisk {
        let state = State::new(medium, options);
        let wake = state.wake.clone();
        SimDisk { shared: Arc::new(Shared { state: Mutex::new(state), wake }) }
    }

    /// Changes who completes operations, from the next poll on.
    pub fn set_mode(&self, mode: Mode) {
        self.shared.lock().options.mode = mode;
    }

    /// Changes how many bytes all files may have together.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.shared.lock().options.capacity_bytes = bytes;
    }

    /// Bytes that count against the capacity: the sizes of all files that have a name or are open.
    pub fn used_bytes(&self) -> u64 {
        let state = self.shared.lock();
        state.medium.used_bytes(|id| state.opens.iter().any(|open| open.inode == id))
    }

    /// Puts a fault in force.
    pub fn fail(&self, rule: FaultRule) {
        self.shared.lock().faults.add(rule);
    }

    /// Lets faults strike by chance from now on, besides those of the rules. What befalls the n-th operation of a kind
    /// since the disk was made follows from this seed alone: a run of one thread is repeated by its seeds, and so is one
    /// of several threads as far as they ask for the same. Default rates end it.
    pub fn fail_by_chance(&self, rates: FaultRates, seed: u64) {
        self.shared.lock().faults.set_chance(rates, seed);
    }

    /// Lifts all faults, those by chance too. What was struck before stays struck.
    pub fn clear_faults(&self) {
        self.shared.lock().faults.clear();
    }

    /// The faults that struck so far, oldest first; the first thousand or so.
    pub fn struck(&self) -> Vec<Struck> {
        self.shared.lock().faults.struck.clone()
    }

    /// Drops from memory what failed syncs and writes left there: reads show what the medium has from then on, where the
    /// units that `on_medium` keeps of each such write had come all the same. A kernel does so at any time.
    pub fn drop_failed_pages(&self, on_medium: Class) {
        let mut state = self.shared.lock();
        state.medium.inodes.iter_mut().for_each(|inode| inode.drop_stuck_pages(&on_medium));
    }

    /// What [`Disk::is_in_place`] answers from now on.
    pub fn set_in_place(&self, is_in_place: bool) {
        self.shared.lock().is_in_place = is_in_place;
    }

    /// What the disk was asked for so far.
    pub fn counters(&self) -> Counters {
        self.shared.lock().counters
    }

    /// Everything in flight, in the order it was submitted.
    pub fn in_flight(&self) -> Vec<InFlight> {
        view_flights(&self.shared.lock().medium)
    }

    /// Completes an operation in flight; its driver collects the completion at its next poll. A write that a fault made
    /// short stays in flight with its rest: it needs another call for each piece. Returns `false` where no such operation
    /// is in flight.
    pub fn complete(&self, id: OpId) -> bool {
        let mut state = self.shared.lock();
        let was_there = !state.is_dead && state.complete(id);
        self.shared.wake.notify_all();
        was_there
    }

    /// Completes everything in flight, in the order it was submitted, short writes piece by piece.
    pub fn complete_all(&self) {
        let mut state = self.shared.lock();
        let ids: Vec<OpId> = state.medium.flights.iter().map(|flight| flight.id).collect();
        for id in ids {
            while !state.is_dead && state.complete(id) {}
        }
        self.shared.wake.notify_all();
    }

    /// Completes an operation in flight with an error (`errno`). Of a write, `lands` reaches the file all the same:
    /// readable, at the mercy of a crash, and covered by no later sync.
    pub fn complete_failing(&self, id: OpId, os_error: i32, lands: Class) -> bool {
        if let Some(flight) = self.shared.lock().medium.flights.iter_mut().find(|flight| flight.id == id) {
            flight.failure = Some(Failure { lands, ..Failure::of(os_error) });
        }
        self.complete(id)
    }

    /// Lets reads see some units of a write in flight from now on.
    pub fn land(&self, id: OpId, class: Class) -> bool {
        let mut state = self.shared.lock();
        let flight = state.medium.flights.iter_mut().find(|flight| flight.id == id);
        flight.map(|flight| flight.landed = Some(class)).is_some()
    }

    /// Waits until at least so many operations are in flight: for tests that hold back a log with threads.
    pub fn wait_in_flight(&self, operations: usize, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.shared.lock();
        while state.medium.flights.len() < operations {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.shared.wake.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Lets the power fail in the middle of a later operation: `instants` operations that change something go
    /// through, the one after them is cut short (what it had begun is for [`SimDisk::crash_point`] to keep or lose),
    /// and from then on everything fails with an I/O error and nothing changes.
    pub fn power_off_after(&self, instants: u64) {
        self.shared.lock().instants_left = Some(instants);
    }

    /// Whether the power has failed.
    pub fn is_dead(&self) -> bool {
        self.shared.lock().is_dead
    }

    /// Starts to record a crash point in the middle of every operation that changes something.
    pub fn start_recording(&self) {
        self.shared.lock().recording = Some(Vec::new());
    }

    /// Ends the recording and returns it: every state in which the power could have failed since its start, but for
    /// the present one ([`SimDisk::crash_point`]).
    pub fn take_recording(&self) -> Vec<CrashPoint> {
        self.shared.lock().recording.take().unwrap_or_default()
    }

    /// The present state, frozen, with everything that a crash at this moment may keep or lose.
    pub fn crash_point(&self) -> CrashPoint {
        self.shared.lock().crash_point()
    }
}

/// Everything in flight on a medium.
pub(super) fn view_flights(medium: &Medium) -> Vec<InFlight> {
    medium.flights.iter().map(|flight| view(medium, flight)).collect()
}

/// An operation in flight as shown to the outside.
pub(super) fn view(medium: &Medium, flight: &Flight) -> InFlight {
    let (offset, bytes, is_sync) = match &flight.kind {
        FlightKind::Write { offset, data, .. } => (*offset, data.len(), false),
        FlightKind::Sync { .. } => (0, 0, true),
    };
    let name = medium.name_of(flight.inode);
    InFlight { id: flight.id, token: flight.token, file: flight.file, name, offset, bytes, is_sync }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.lock();
        let files = state.medium.names.iter().map(|(name, &id)| (name, state.medium.inodes[id].size()));
        write!(f, "SimDisk(seed {}, {} in flight) ", state.options.seed, state.medium.flights.len())?;
        f.debug_map().entries(files).finish()
    }
}

impl Disk for SimDisk {
    fn path(&self) -> &Path {
        Path::new("/simulated")
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut state = self.shared.lock();
        state.begin(OpKind::List, "").map_err(to_io)?;
        Ok(state.medium.names.keys().map(|name| name.to_string()).collect())
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        check_name(name)?;
        let mut state = self.shared.lock();
        let inode = state.resolve(name, access)?;
        let id = state.next_id();
        let file = Arc::new(SimFile { shared: self.shared.clone(), open: id, inode, access });
        let address = Arc::as_ptr(&file).addr();
        state.opens.push(Open { id, address, inode, access });
        Ok(file)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        check_name(to)?;
        let mut state = self.shared.lock();
        state.begin(OpKind::Rename, from).map_err(to_io)?;
        let Some((from, &inode)) = state.medium.names.get_key_value(from) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if **from == *to {
            return Ok(());
        }
        let operation = DirOp::Rename { from: from.clone(), to: Arc::from(to), inode };
        state.medium.change_names(operation);
        state.instant()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.shared.lock();
        state.begin(OpKind::Remove, name).map_err(to_io)?;
        let Some((name, _)) = state.medium.names.get_key_value(name) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let operation = DirOp::Remove { name: name.clone() };
        state.medium.change_names(operation);
        state.instant()
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.shared.lock();
        state.begin(OpKind::SyncDir, "").map_err(to_io)?;
        state.instant()?;
        state.medium.sync_dir();
        Ok(())
    }

    fn is_in_place(&self) -> bool {
        self.shared.lock().is_in_place
    }

    fn physical_block_bytes(&self) -> u32 {
        self.shared.lock().options.physical_block_bytes
    }

    fn driver(&self, _depth: usize) -> io::Result<Box<dyn Driver>> {
        self.shared.lock().begin(OpKind::Driver, "").map_err(to_io)?;
        Ok(Box::new(SimDriver::new(self.shared.clone())))
    }

    fn io_mode(&self) -> IoMode {
        IoMode::Simulated
    }
}

/// Refuses what names no file of the directory itself.
pub(super) fn check_name(name: &str) -> io::Result<()> {
    let is_plain = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']);
    if is_plain { Ok(()) } else { Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} names no file"))) }
}

/// An open file of a [`SimDisk`]; dropping it closes it.
struct SimFile {
    shared: Arc<Shared>,
    open: u64,
    inode: InodeId,
    access: Access,
}

impl SimFile {
    /// An operation of this file's caller, who waits for it.
    fn flight(&self, kind: FlightKind) -> Flight {
        Flight::new(self.open, self.inode, kind)
    }

    fn check_writable(&self) -> io::Result<()> {
        match self.access {
            Access::Read | Access::ReadDirect => Err(io::Error::from(rustix::io::Errno::BADF)),
            _ => Ok(()),
        }
    }

    /// Refuses unaligned memory for direct access; and unaligned places, for reading.
    fn check_aligned(&self, block: u64, address: usize, place: Option<(u64, usize)>) -> io::Result<()> {
        if matches!(self.access, Access::Read | Access::ReadWrite | Access::Create | Access::Lock) {
            return Ok(());
        }
        let (offset, bytes) = place.unwrap_or((0, 0));
        let is_aligned =
            address.is_multiple_of(UNIT_BYTES) && offset.is_multiple_of(block) && (bytes as u64).is_multiple_of(block);
        if is_aligned { Ok(()) } else { Err(io::Error::from_raw_os_error(EINVAL)) }
    }
}

impl DiskFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        let mut state = self.shared.lock();
        state.begin_on(OpKind::Size, self.inode).map_err(to_io)?;
        Ok(state.medium.inodes[self.inode].size())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.shared.lock();
        let fault = state.ask_on(OpKind::Read, self.inode, buf.len()).map_err(to_io)?;
        let block = u64::from(state.options.physical_block_bytes);
        self.check_aligned(block, buf.as_ptr().addr(), Some((offset, buf.len())))?;
        let bytes = state.read(self.inode, buf, offset);
        if let Some(fault) = fault {
            state.spoil(fault, self.inode, &mut buf[..bytes], offset);
        }
        Ok(bytes)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.check_writable()?;
        let mut state = self.shared.lock();
        let block = u64::from(state.options.physical_block_bytes);
        self.check_aligned(block, buf.as_ptr().addr(), None)?;
        let durable = writes_durably(self.access);
        let id = state.start_write(self.flight(FlightKind::Write { offset, data: Arc::from(buf), durable }))?;
        state.complete_now(id)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.shared.lock();
        let id = state.start_sync(self.flight(FlightKind::Sync { began_at: 0 }))?;
        state.complete_now(id)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.check_writable()?;
        let mut state = self.shared.lock();
        state.begin_on(OpKind::Allocate, self.inode).map_err(to_io)?;
        let more_bytes = bytes.saturating_sub(state.medium.inodes[self.inode].size());
        state.reserve(more_bytes).map_err(to_io)?;
        let at = state.medium.tick();
        state.medium.inodes[self.inode].grow(bytes, at);
        state.instant()
    }

    fn try_lock(&self) -> io::Result<bool> {
        let mut state = self.shared.lock();
        state.begin_on(OpKind::Lock, self.inode).map_err(to_io)?;
        let holder = *state.medium.inodes[self.inode].lock.get_or_insert(self.open);
        Ok(holder == self.open)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.opens.retain(|open| open.id != self.open);
        state.release_if_gone(self.open, self.inode);
    }
}
