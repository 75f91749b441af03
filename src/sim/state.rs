//! What all handles, files and drivers of one simulated disk share, and the way every operation takes through it.
//!
//! An operation is counted and judged by the fault rules (`begin`), put in flight or on the medium as something loose,
//! passes the *instant* at which the power may fail and a recording is taken, and only then keeps its promise. Whoever
//! calls holds the one lock.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::class::Class;
use super::crash::CrashPoint;
use super::disk::{OpId, SimOptions};
use super::fault::{Counters, EINVAL, EIO, ENOSPC, Faults, OpKind};
use super::medium::{Failure, Flight, FlightKind, InodeId, Medium};
use super::rng::Rng;
use crate::disk::Access;

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
    pub(super) opens: Vec<Open>,
    pub(super) faults: Faults,
    pub(super) counters: Counters,
    last_id: u64,
    /// Instants that still pass before the power fails.
    pub(super) instants_left: Option<u64>,
    pub(super) recording: Option<Vec<CrashPoint>>,
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
        if self.is_dead {
            return Err(Failure { os_error: EIO, lands: Class::Absent });
        }
        self.counters.count(kind);
        self.faults.strike(kind, name).map_or(Ok(()), Err)
    }

    /// As `begin`, for an open file; its name is looked up only if a rule may ask for it.
    pub(super) fn begin_on(&mut self, kind: OpKind, inode: InodeId) -> Result<(), Failure> {
        let name = if self.faults.is_empty() { Arc::from("") } else { self.medium.name_of(inode) };
        self.begin(kind, &name)
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
    pub(super) fn complete_now(&mut self, id: OpId) -> io::Result<()> {
        let position = self.medium.flights.iter().position(|flight| flight.id == id);
        let position = position.expect("an operation under the lock stays where it was put");
        let (_, os_error) = self.medium.finish(position);
        os_error.map_or(Ok(()), |number| Err(io::Error::from_raw_os_error(number)))
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
    io::Error::from_raw_os_error(failure.os_error)
}

/// Whether each write through such a file is durable when it completes.
pub(super) fn writes_durably(access: Access) -> bool {
    matches!(access, Access::Segment { durable: true })
}
