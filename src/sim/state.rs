//! What all handles, files and drivers of one simulated disk share, and the way every operation takes through it.
//!
//! An operation is counted and judged by the fault rules (`begin`), put in flight or on the medium as something loose,
//! passes the *instant* at which the power may fail and a recording is taken, and only then keeps its promise. Whoever
//! calls holds the one lock.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::class::{Class, UNIT_BYTES};
use super::crash::CrashPoint;
use super::disk::{OpId, SimOptions};
use super::fault::{Asked, Counters, EINVAL, EIO, ENOSPC, Fault, Faults, OpKind};
use super::medium::{Cause, Failure, Flight, FlightKind, InodeId, Medium, Standing, TOLD};
use super::rng::Rng;
use crate::disk::Access;
use crate::disk::transfer::Transfer;

/// What all handles, files and drivers of one disk share.
pub(super) struct Shared {
    pub(super) state: Mutex<State>,
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
pub(super) struct Open {
    pub(super) id: u64,
    /// Address of the `SimFile`: how [`Driver::attach`] knows its files again behind `dyn DiskFile`.
    pub(super) address: usize,
    pub(super) inode: InodeId,
    pub(super) access: Access,
}

/// The end of an operation, waiting for its driver.
pub(super) struct Finished {
    pub(super) id: OpId,
    pub(super) driver: u64,
    pub(super) token: u64,
    pub(super) cause: Option<Cause>,
}

/// The disk's state proper.
pub(super) struct State {
    pub(super) medium: Medium,
    pub(super) options: SimOptions,
    pub(super) rng: Rng,
    pub(super) finished: Vec<Finished>,
    /// The power is gone: everything fails, nothing changes.
    pub(super) is_dead: bool,
    pub(super) opens: Vec<Open>,
    pub(super) faults: Faults,
    pub(super) counters: Counters,
    last_id: u64,
    /// Instants that still pass before the power fails.
    pub(super) instants_left: Option<u64>,
    pub(super) recording: Option<Vec<CrashPoint>>,
    /// Some operation was made slow: those in flight are counted down.
    has_slow: bool,
    pub(super) is_in_place: bool,
    pub(super) wake: Arc<Condvar>,
}

impl State {
    pub(super) fn new(medium: Medium, options: SimOptions) -> State {
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
            has_slow: false,
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
    pub(super) fn begin(&mut self, kind: OpKind, name: &str) -> Result<(), Failure> {
        self.ask(kind, 0, |_| Arc::from(name)).map(drop)
    }

    /// As `begin`, for an open file.
    pub(super) fn begin_on(&mut self, kind: OpKind, inode: InodeId) -> Result<(), Failure> {
        self.ask_on(kind, inode, 0).map(drop)
    }

    /// As `begin_on`, for what reads or writes so many bytes and may go wrong without failing.
    pub(super) fn ask_on(&mut self, kind: OpKind, inode: InodeId, bytes: usize) -> Result<Option<Fault>, Failure> {
        self.ask(kind, bytes, |medium| medium.name_of(inode))
    }

    /// Counts an operation and asks what befalls it. The name is made only where a fault may ask for it.
    fn ask(
        &mut self,
        op: OpKind,
        bytes: usize,
        name: impl FnOnce(&Medium) -> Arc<str>,
    ) -> Result<Option<Fault>, Failure> {
        if self.is_dead {
            return Err(Failure::of(EIO));
        }
        self.counters.count(op);
        if self.faults.are_idle() {
            return Ok(None);
        }
        let State { medium, faults, counters, options, .. } = self;
        let name = name(medium);
        let asked = Asked { op, nth: counters.of(op), name: &name, bytes };
        let block = u64::from(options.physical_block_bytes);
        match faults.strike(&asked, |rng| some_place(medium, block, rng)) {
            Some(Fault::Error { os_error, lands, drops_pages }) => {
                Err(Failure { lands, drops_pages, ..Failure::of(os_error) })
            }
            other => Ok(other),
        }
    }

    /// The moment in an operation at which the power may fail: what it has begun is on the medium as something that
    /// a crash may keep or lose, what it promises is not yet true.
    pub(super) fn instant(&mut self) -> io::Result<()> {
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
    pub(super) fn reserve(&self, more_bytes: u64) -> Result<(), Failure> {
        let Some(capacity) = self.options.capacity_bytes else { return Ok(()) };
        let is_open = |id| self.opens.iter().any(|open| open.inode == id);
        let fits = more_bytes == 0 || self.medium.used_bytes(is_open) + more_bytes <= capacity;
        if fits { Ok(()) } else { Err(Failure::of(ENOSPC)) }
    }

    /// Puts a write in flight, fated to fail where a rule, the capacity or its alignment says so.
    pub(super) fn start_write(&mut self, mut flight: Flight) -> io::Result<OpId> {
        self.attempt(&mut flight);
        self.start(flight)
    }

    /// One attempt at a write: counts it and settles how it will end.
    fn attempt(&mut self, flight: &mut Flight) {
        let FlightKind::Write { offset, data, .. } = &flight.kind else { unreachable!("only writes are attempted") };
        let (offset, bytes) = (*offset, data.len() as u64);
        self.counters.bytes_written += bytes;
        let grows_by = (offset + bytes).saturating_sub(self.medium.inodes[flight.inode].size());
        let fault = self.ask_on(OpKind::Write, flight.inode, bytes as usize);
        let verdict = fault
            .and_then(|fault| self.check_write(flight.open, offset, bytes).map(|()| fault))
            .and_then(|fault| self.reserve(grows_by).map(|()| fault));
        match verdict {
            Ok(None) => {}
            Ok(Some(fault)) => self.afflict(flight, fault),
            Err(failure) => flight.failure = Some(failure),
        }
    }

    /// Puts a sync in flight; it covers what completed before this moment.
    pub(super) fn start_sync(&mut self, mut flight: Flight) -> io::Result<OpId> {
        match self.ask_on(OpKind::Sync, flight.inode, 0) {
            Ok(None) => {}
            Ok(Some(fault)) => self.afflict(&mut flight, fault),
            Err(failure) => flight.failure = Some(failure),
        }
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
        let block = self.alignment(open);
        let is_aligned = offset.is_multiple_of(block) && bytes.is_multiple_of(block);
        if is_aligned { Ok(()) } else { Err(Failure::of(EINVAL)) }
    }

    /// What writes through an open file must be aligned to.
    fn alignment(&self, open: u64) -> u64 {
        let access = self.opens.iter().find(|known| known.id == open).map(|known| known.access);
        let is_direct = matches!(access, Some(Access::Segment { .. } | Access::CreateSegment));
        if is_direct { u64::from(self.options.physical_block_bytes) } else { 1 }
    }

    /// Ends an operation in flight and leaves its end for its driver; `false` where there is no such operation. A write
    /// that transfers only a part stays in flight with the rest.
    pub(super) fn complete(&mut self, id: OpId) -> bool {
        let Some(position) = self.medium.flights.iter().position(|flight| flight.id == id) else { return false };
        if self.goes_on(position) {
            return true;
        }
        let flight = self.medium.finish(position);
        if self.has_slow {
            self.pass(1, |_| true);
        }
        if let Some(driver) = flight.driver {
            let cause = flight.failure.map(|failure| failure.cause);
            self.finished.push(Finished { id, driver, token: flight.token, cause });
        }
        self.release_if_gone(flight.open, flight.home);
        true
    }

    /// Whether the end of an operation waits for its driver.
    pub(super) fn has_finished(&self, driver: u64) -> bool {
        self.finished.iter().any(|finished| finished.driver == driver)
    }

    /// Ends an operation that its own caller waits for.
    pub(super) fn complete_now(&mut self, id: OpId) -> io::Result<()> {
        loop {
            let position = self.medium.flights.iter().position(|flight| flight.id == id);
            let position = position.expect("an operation under the lock stays where it was put");
            if self.is_dead {
                return Err(io::Error::from_raw_os_error(EIO));
            }
            if !self.goes_on(position) {
                let flight = self.medium.finish(position);
                return flight.failure.map_or(Ok(()), |failure| Err(failure.cause.to_io()));
            }
        }
    }

    /// Lets go of the lock of an open file that is neither open nor written through any more.
    pub(super) fn release_if_gone(&mut self, open: u64, inode: InodeId) {
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
    pub(super) fn resolve(&mut self, name: &str, access: Access) -> io::Result<InodeId> {
        let known = self.medium.names.get(name).copied();
        let makes = match access {
            Access::CreateSegment | Access::Create => true,
            Access::Lock => known.is_none(),
            Access::Read | Access::ReadWrite | Access::ReadDirect | Access::Segment { .. } => false,
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
    pub(super) fn read(&mut self, inode: InodeId, buf: &mut [u8], offset: u64) -> usize {
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

/// The ways in which things go wrong without failing.
impl State {
    /// Lets a fault befall an operation that is about to be in flight.
    fn afflict(&mut self, flight: &mut Flight, fault: Fault) {
        match fault {
            Fault::Short { bytes } => self.shorten(flight, bytes),
            Fault::Slow { completions } => (flight.hold, self.has_slow) = (completions, true),
            Fault::Held => (flight.hold, self.has_slow) = (TOLD, true),
            Fault::BitRot { bit } => {
                if let FlightKind::Write { data, .. } = &mut flight.kind {
                    flip(Arc::make_mut(data), bit);
                }
            }
            Fault::Misdirected { file, offset } => self.misdirect(flight, file.as_deref(), offset),
            Fault::BitError { .. } | Fault::Error { .. } => {}
        }
    }

    fn shorten(&mut self, flight: &mut Flight, count: usize) {
        let alignment = self.alignment(flight.open) as usize;
        if let FlightKind::Write { data, .. } = &flight.kind
            && count < data.len()
        {
            flight.takes = Some(count);
            flight.transfer.get_or_insert_with(|| Transfer::new(data.len(), alignment));
        }
    }

    /// The write happens at another place. What its own file system knows goes its way: the size grows where it should.
    fn misdirect(&mut self, flight: &mut Flight, file: Option<&str>, to: u64) {
        let FlightKind::Write { offset, data, .. } = &mut flight.kind else { return };
        let at = self.medium.tick();
        self.medium.inodes[flight.home].grow(*offset + data.len() as u64, at);
        flight.inode = file.and_then(|name| self.medium.names.get(name)).copied().unwrap_or(flight.home);
        let room = self.medium.inodes[flight.inode].size().saturating_sub(to);
        let bytes = (data.len() as u64).min(room) as usize;
        *data = Arc::from(&data[..bytes]);
        *offset = if bytes > 0 { to } else { 0 };
    }

    /// Lets a write that transfers only a part take that part and go on, as `disk::transfer` says, with a moment between
    /// at which the power may fail; `false` where it is at its end.
    fn goes_on(&mut self, position: usize) -> bool {
        let flight = &mut self.medium.flights[position];
        let (Some(count), None) = (flight.takes.take(), &flight.failure) else { return false };
        let mut flight = self.medium.flights.remove(position);
        let goes_on = self.take_part(&mut flight, count);
        if goes_on {
            self.attempt(&mut flight);
        }
        self.medium.flights.insert(position, flight);
        if goes_on {
            // With the power gone, nobody is told how it ended.
            let _ = self.instant();
        }
        goes_on
    }

    /// Writes the first `count` bytes and sets the flight to what is left; `false` where the transfer gives up.
    fn take_part(&mut self, flight: &mut Flight, count: usize) -> bool {
        let (FlightKind::Write { offset, data, durable }, Some(transfer)) = (&mut flight.kind, &mut flight.transfer)
        else {
            return false;
        };
        let standing = if *durable { Standing::Settled } else { Standing::Loose };
        let at = self.medium.tick();
        if count > 0 {
            self.medium.inodes[flight.inode].write(*offset, &Arc::from(&data[..count]), at, standing);
        }
        let before = transfer.rest().map_or(0, |rest| rest.start);
        if let Err(error) = transfer.advance(Ok(count)) {
            flight.failure = Some(Failure { cause: Cause::Kind(error.kind()), ..Failure::of(0) });
            return false;
        }
        let done = transfer.rest().map_or(0, |rest| rest.start - before);
        *offset += done as u64;
        *data = Arc::from(&data[done..]);
        let seen = flight.landed.take();
        flight.landed = seen.map(|seen| shifted(&seen, done / UNIT_BYTES, data.len().div_ceil(UNIT_BYTES)));
        true
    }

    /// Counts some slow operations down.
    fn pass(&mut self, completions: u64, whose: impl Fn(&Flight) -> bool) {
        let slow = self.medium.flights.iter_mut().filter(|flight| flight.hold != TOLD && whose(flight));
        slow.for_each(|flight| flight.hold = flight.hold.saturating_sub(completions));
    }

    /// A driver's operations that chance may complete now. Where there is none, one poll in vain counts as a completion
    /// for the slow ones; for a driver that `waits`, time passes until the first of them is ready.
    pub(super) fn ready(&mut self, driver: u64, waits: bool) -> Vec<OpId> {
        let ids = self.ready_now(driver);
        if !self.has_slow || !ids.is_empty() {
            return ids;
        }
        let own = |flight: &Flight| flight.driver == Some(driver);
        let holds = self.medium.flights.iter().filter(|flight| own(flight)).map(|flight| flight.hold);
        let first = holds.filter(|&hold| hold != TOLD).min().unwrap_or(0);
        self.pass(if waits { first } else { 1 }, own);
        self.ready_now(driver)
    }

    fn ready_now(&self, driver: u64) -> Vec<OpId> {
        let is_ready = |flight: &&Flight| flight.driver == Some(driver) && flight.hold == 0;
        self.medium.flights.iter().filter(is_ready).map(|flight| flight.id).collect()
    }

    /// Lets all of a driver's operations complete whenever they may.
    pub(super) fn release_all(&mut self, driver: u64) {
        let own = self.medium.flights.iter_mut().filter(|flight| flight.driver == Some(driver));
        own.for_each(|flight| flight.hold = 0);
    }

    /// Whether a driver has operations in flight and all of them wait to be told.
    pub(super) fn waits_to_be_told(&self, driver: u64) -> bool {
        let mut own = self.medium.flights.iter().filter(|flight| flight.driver == Some(driver)).peekable();
        self.has_slow && own.peek().is_some() && own.all(|flight| flight.hold == TOLD)
    }

    /// Lets a fault befall what was just read of a file.
    pub(super) fn spoil(&mut self, fault: Fault, inode: InodeId, buf: &mut [u8], offset: u64) {
        match fault {
            Fault::BitRot { bit } if !buf.is_empty() => {
                let bit = bit % (8 * buf.len() as u64);
                self.medium.inodes[inode].flip(offset + bit / 8, (bit % 8) as u8);
                flip(buf, bit);
            }
            Fault::BitError { bit } => flip(buf, bit),
            Fault::Misdirected { file, offset } => {
                let found = file.and_then(|name| self.medium.names.get(&name)).copied().unwrap_or(inode);
                let content = &self.medium.inodes[found].current;
                let start = offset.min(content.len() as u64) as usize;
                let bytes = buf.len().min(content.len() - start);
                buf[..bytes].copy_from_slice(&content[start..start + bytes]);
                buf[bytes..].fill(0);
            }
            _ => {}
        }
    }
}

/// Flips one bit, counted from the lowest of the first byte, modulo what there is.
fn flip(bytes: &mut [u8], bit: u64) {
    if !bytes.is_empty() {
        let bit = (bit % (8 * bytes.len() as u64)) as usize;
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

/// The class of what is left of a write after its first units.
fn shifted(class: &Class, units_done: usize, units: usize) -> Class {
    Class::Units((0..units).map(|unit| class.keeps(unit + units_done)).collect())
}

/// A block of some file, drawn by chance; `None` on a disk without a block.
fn some_place(medium: &Medium, block: u64, rng: &mut Rng) -> Option<(Arc<str>, u64)> {
    let blocks = |inode: InodeId| medium.inodes[inode].size() / block;
    let files: Vec<_> = medium.names.iter().filter(|&(_, &inode)| blocks(inode) > 0).collect();
    let (name, &inode) = *files.get(rng.below(files.len().max(1)))?;
    Some((name.clone(), block * rng.below(blocks(inode) as usize) as u64))
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

pub(super) fn to_io(failure: Failure) -> io::Error {
    failure.cause.to_io()
}

/// Whether each write through such a file is durable when it completes.
pub(super) fn writes_durably(access: Access) -> bool {
    matches!(access, Access::Segment { durable: true })
}
