//! The simulated disk as the log sees it: [`SimDisk`] and its open files.
//!
//! Every call takes the one lock, asks the fault rules, passes one *instant* at which the power may fail (and at which
//! a recording is taken), and then changes the medium. The laws of what is durable are in `medium`, what a crash
//! leaves is in `crash`, the driver is in `driver`.
//!
//! It does not know the page cache: buffered and direct access see the same bytes at once. Direct access is checked
//! strictly: offset and length must be multiples of the physical block and memory of 512, or the call fails with
//! `EINVAL`.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::class::{Class, UNIT_BYTES};
use super::crash::CrashPoint;
use super::driver::SimDriver;
use super::fault::{Counters, EINVAL, EIO, ENOSPC, FaultRule, Faults, OpKind};
use super::medium::{DirOp, Failure, Flight, FlightKind, InodeId, Medium};
use super::rng::Rng;
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

/// What all handles, files and drivers of one disk share.
pub(super) struct Shared {
    state: Mutex<State>,
    /// Signalled when an operation is submitted or completed, an alarm rings, or the power fails.
    pub(super) wake: Arc<Condvar>,
}

impl Shared {
    /// The state, even where a thread died holding it: a test that failed already must not fail again while it
    /// unwinds.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open file description.
struct Open {
    id: u64,
    /// Address of the `SimFile`: how [`Driver::attach`] knows its files again behind `dyn DiskFile`.
    address: usize,
    inode: InodeId,
    access: Access,
}

/// The end of an operation, waiting for its driver.
pub(super) struct Finished {
    pub(super) id: OpId,
    pub(super) driver: u64,
    pub(super) token: u64,
    pub(super) os_error: Option<i32>,
}

/// The disk's state proper.
pub(super) struct State {
    pub(super) medium: Medium,
    pub(super) options: SimOptions,
    pub(super) rng: Rng,
    pub(super) finished: Vec<Finished>,
    /// The power is gone: everything fails, nothing changes.
    pub(super) is_dead: bool,
    opens: Vec<Open>,
    faults: Faults,
    counters: Counters,
    last_id: u64,
    /// Instants that still pass before the power fails.
    instants_left: Option<u64>,
    recording: Option<Vec<CrashPoint>>,
    is_in_place: bool,
    wake: Arc<Condvar>,
}

impl State {
    fn new(medium: Medium, options: SimOptions) -> State {
        let last_id = medium.flights.iter().map(|flight| flight.id.max(flight.open)).max().unwrap_or(0);
        State {
            medium,
            options,
            rng: Rng::new(options.seed),
            finished: Vec::new(),
            is_dead: false,
            opens: Vec::new(),
            faults: Faults::default(),
            counters: Counters::default(),
            last_id,
            instants_left: None,
            recording: None,
            is_in_place: true,
            wake: Arc::default(),
        }
    }

    /// A number never used on this disk.
    pub(super) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Counts an operation and asks whether it may go on.
    fn begin(&mut self, kind: OpKind, name: &str) -> Result<(), Failure> {
        if self.is_dead {
            return Err(Failure { os_error: EIO, lands: Class::Absent });
        }
        self.counters.count(kind);
        self.faults.strike(kind, name).map_or(Ok(()), Err)
    }

    /// As `begin`, for an open file; its name is looked up only if a rule may ask for it.
    fn begin_on(&mut self, kind: OpKind, inode: InodeId) -> Result<(), Failure> {
        let name = if self.faults.is_empty() { Arc::from("") } else { self.medium.name_of(inode) };
        self.begin(kind, &name)
    }

    /// The moment in an operation at which the power may fail: what it has begun is on the medium as something that
    /// a crash may keep or lose, what it promises is not yet true.
    fn instant(&mut self) -> io::Result<()> {
        if self.recording.is_some() {
            let point = self.crash_point();
            self.recording.get_or_insert_default().push(point);
        }
        match &mut self.instants_left {
            Some(0) => {
                self.is_dead = true;
                self.wake.notify_all();
                Err(io::Error::from_raw_os_error(EIO))
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    pub(super) fn crash_point(&self) -> CrashPoint {
        CrashPoint::new(self.medium.clone(), self.options)
    }

    /// Fails if the files, grown by so much, would not fit any more.
    fn reserve(&self, more_bytes: u64) -> Result<(), Failure> {
        let Some(capacity) = self.options.capacity_bytes else { return Ok(()) };
        let is_open = |id| self.opens.iter().any(|open| open.inode == id);
        let fits = more_bytes == 0 || self.medium.used_bytes(is_open) + more_bytes <= capacity;
        if fits { Ok(()) } else { Err(Failure { os_error: ENOSPC, lands: Class::Absent }) }
    }

    /// Puts a write in flight, fated to fail where a rule, the capacity or its alignment says so.
    pub(super) fn start_write(&mut self, mut flight: Flight) -> io::Result<OpId> {
        let FlightKind::Write { offset, data, .. } = &flight.kind else { unreachable!("only writes are started here") };
        let (offset, bytes) = (*offset, data.len() as u64);
        self.counters.bytes_written += bytes;
        let grows_by = (offset + bytes).saturating_sub(self.medium.inodes[flight.inode].size());
        let verdict = self
            .begin_on(OpKind::Write, flight.inode)
            .and_then(|()| self.check_write(flight.open, offset, bytes))
            .and_then(|()| self.reserve(grows_by));
        flight.failure = verdict.err();
        self.start(flight)
    }

    /// Puts a sync in flight; it covers what completed before this moment.
    pub(super) fn start_sync(&mut self, mut flight: Flight) -> io::Result<OpId> {
        flight.failure = self.begin_on(OpKind::Sync, flight.inode).err();
        flight.kind = FlightKind::Sync { began_at: self.medium.tick() };
        self.start(flight)
    }

    fn start(&mut self, mut flight: Flight) -> io::Result<OpId> {
        flight.id = self.next_id();
        let id = flight.id;
        if self.is_dead {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        if self.options.partial_reads && matches!(flight.kind, FlightKind::Write { .. }) {
            flight.landed = Some(Class::Scattered(self.rng.next_u64()));
        }
        self.medium.flights.push(flight);
        self.instant().map(|()| id)
    }

    fn check_write(&self, open: u64, offset: u64, bytes: u64) -> Result<(), Failure> {
        let access = self.opens.iter().find(|known| known.id == open).map(|known| known.access);
        let block = u64::from(self.options.physical_block_bytes);
        let is_direct = matches!(access, Some(Access::Segment { .. } | Access::CreateSegment));
        if is_direct && !(offset.is_multiple_of(block) && bytes.is_multiple_of(block)) {
            return Err(Failure { os_error: EINVAL, lands: Class::Absent });
        }
        Ok(())
    }

    /// Ends an operation in flight and leaves its end for its driver; `false` where there is no such operation.
    pub(super) fn complete(&mut self, id: OpId) -> bool {
        let Some(position) = self.medium.flights.iter().position(|flight| flight.id == id) else { return false };
        let (flight, os_error) = self.medium.finish(position);
        if let Some(driver) = flight.driver {
            self.finished.push(Finished { id, driver, token: flight.token, os_error });
        }
        self.release_if_gone(flight.open, flight.inode);
        true
    }

    /// Ends an operation that its own caller waits for.
    fn complete_now(&mut self, id: OpId) -> io::Result<()> {
        let position = self.medium.flights.iter().position(|flight| flight.id == id);
        let position = position.expect("an operation under the lock stays where it was put");
        let (_, os_error) = self.medium.finish(position);
        os_error.map_or(Ok(()), |number| Err(io::Error::from_raw_os_error(number)))
    }

    /// Lets go of the lock of an open file that is neither open nor written through any more.
    fn release_if_gone(&mut self, open: u64, inode: InodeId) {
        let is_open = self.opens.iter().any(|known| known.id == open);
        let is_written = self.medium.flights.iter().any(|flight| flight.open == open);
        let lock = &mut self.medium.inodes[inode].lock;
        if !is_open && !is_written && *lock == Some(open) {
            *lock = None;
        }
    }

    /// The open file behind a `SimFile` at this address.
    pub(super) fn open_at(&self, address: usize) -> Option<(u64, InodeId, Access)> {
        let open = self.opens.iter().find(|open| open.address == address)?;
        Some((open.id, open.inode, open.access))
    }

    /// Finds or makes the file that is opened.
    fn resolve(&mut self, name: &str, access: Access) -> io::Result<InodeId> {
        let known = self.medium.names.get(name).copied();
        let makes = match access {
            Access::CreateSegment | Access::Create => true,
            Access::Lock => known.is_none(),
            Access::Read | Access::ReadDirect | Access::Segment { .. } => false,
        };
        self.begin(if makes { OpKind::Create } else { OpKind::Open }, name).map_err(to_io)?;
        match known {
            None if !makes => Err(io::ErrorKind::NotFound.into()),
            None => {
                self.reserve(1).map_err(to_io)?;
                let State { medium, opens, .. } = self;
                let inode = medium.create(name, |id| opens.iter().any(|open| open.inode == id));
                self.instant().map(|()| inode)
            }
            Some(inode) if makes => {
                let at = self.medium.tick();
                self.medium.inodes[inode].empty(at);
                self.instant().map(|()| inode)
            }
            Some(inode) => Ok(inode),
        }
    }

    /// Copies what can be read at `offset`, writes in flight included as far as they have landed.
    fn read(&mut self, inode: InodeId, buf: &mut [u8], offset: u64) -> usize {
        let content = &self.medium.inodes[inode].current;
        let start = offset.min(content.len() as u64) as usize;
        let bytes = buf.len().min(content.len() - start);
        buf[..bytes].copy_from_slice(&content[start..start + bytes]);
        for flight in self.medium.flights.iter().filter(|flight| flight.inode == inode) {
            overlay(flight, &mut buf[..bytes], offset);
        }
        self.counters.bytes_read += bytes as u64;
        bytes
    }
}

/// Shows what has landed of a write in flight to a read of `buf` at `offset`.
fn overlay(flight: &Flight, buf: &mut [u8], offset: u64) {
    let (FlightKind::Write { offset: at, data, .. }, Some(class)) = (&flight.kind, &flight.landed) else { return };
    for run in class.runs(*at, data.len()) {
        let start = (at + run.start as u64).max(offset);
        let end = (at + run.end as u64).min(offset + buf.len() as u64);
        if start < end {
            let part = &data[(start - at) as usize..(end - at) as usize];
            buf[(start - offset) as usize..(end - offset) as usize].copy_from_slice(part);
        }
    }
}

fn to_io(failure: Failure) -> io::Error {
    io::Error::from_raw_os_error(failure.os_error)
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

    /// Lifts all faults.
    pub fn clear_faults(&self) {
        self.shared.lock().faults.clear();
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

    /// Completes an operation in flight; its driver collects the completion at its next poll. Returns `false` where
    /// no such operation is in flight.
    pub fn complete(&self, id: OpId) -> bool {
        let mut state = self.shared.lock();
        let was_there = !state.is_dead && state.complete(id);
        self.shared.wake.notify_all();
        was_there
    }

    /// Completes everything in flight, in the order it was submitted.
    pub fn complete_all(&self) {
        for flight in self.in_flight() {
            self.complete(flight.id);
        }
    }

    /// Completes an operation in flight with an error (`errno`). Of a write, `lands` reaches the file all the same:
    /// readable, at the mercy of a crash, and covered by no later sync.
    pub fn complete_failing(&self, id: OpId, os_error: i32, lands: Class) -> bool {
        if let Some(flight) = self.shared.lock().medium.flights.iter_mut().find(|flight| flight.id == id) {
            flight.failure = Some(Failure { os_error, lands });
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
        Flight {
            id: 0,
            driver: None,
            token: 0,
            file: 0,
            open: self.open,
            inode: self.inode,
            kind,
            failure: None,
            landed: None,
        }
    }

    fn check_writable(&self) -> io::Result<()> {
        match self.access {
            Access::Read | Access::ReadDirect => Err(io::Error::from(rustix::io::Errno::BADF)),
            _ => Ok(()),
        }
    }

    /// Refuses unaligned memory for direct access; and unaligned places, for reading.
    fn check_aligned(&self, block: u64, address: usize, place: Option<(u64, usize)>) -> io::Result<()> {
        if matches!(self.access, Access::Read | Access::Create | Access::Lock) {
            return Ok(());
        }
        let (offset, bytes) = place.unwrap_or((0, 0));
        let is_aligned =
            address.is_multiple_of(UNIT_BYTES) && offset.is_multiple_of(block) && (bytes as u64).is_multiple_of(block);
        if is_aligned { Ok(()) } else { Err(io::Error::from_raw_os_error(EINVAL)) }
    }
}

/// Whether each write through such a file is durable when it completes.
pub(super) fn writes_durably(access: Access) -> bool {
    matches!(access, Access::Segment { durable: true })
}

impl DiskFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        let state = self.shared.lock();
        if state.is_dead { Err(io::Error::from_raw_os_error(EIO)) } else { Ok(state.medium.inodes[self.inode].size()) }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.shared.lock();
        state.begin_on(OpKind::Read, self.inode).map_err(to_io)?;
        let block = u64::from(state.options.physical_block_bytes);
        self.check_aligned(block, buf.as_ptr().addr(), Some((offset, buf.len())))?;
        Ok(state.read(self.inode, buf, offset))
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
        if state.is_dead {
            return Err(io::Error::from_raw_os_error(EIO));
        }
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
