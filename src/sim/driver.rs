//! The simulated disk's driver: operations are put in flight at submit and complete when chance or a test says so.
//!
//! Invariants: a completion is collected exactly once and hands its buffer back; the buffers never leave the driver;
//! a poll that may wait ends for a completion, the alarm, or its time, whichever is first. Breaking the driver's
//! contract (an unknown file, a detach under way) panics: this is an instrument for finding such mistakes.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::disk::{Mode, OpId};
use super::fault::EIO;
use super::medium::{Flight, FlightKind, InodeId};
use super::state::{Finished, Shared, State, writes_durably};
use crate::disk::{Alarm, AlignedBuf, Completion, DiskFile, Driver, FileId, Operation, PollWait};

/// A file the driver knows. It keeps the open file alive, and with it the lock.
struct Attached {
    id: FileId,
    _file: Arc<dyn DiskFile>,
    open: u64,
    inode: InodeId,
    durable: bool,
}

/// An operation that was submitted and not collected.
struct Pending {
    id: OpId,
    token: u64,
    file: FileId,
    buffer: Option<AlignedBuf>,
}

/// Drives a [`SimDisk`](super::SimDisk).
pub(super) struct SimDriver {
    shared: Arc<Shared>,
    id: u64,
    files: Vec<Attached>,
    pending: Vec<Pending>,
    alarm: Arc<SimAlarm>,
}

impl SimDriver {
    pub(super) fn new(shared: Arc<Shared>) -> SimDriver {
        let id = shared.lock().next_id();
        let alarm = Arc::new(SimAlarm { shared: shared.clone(), has_rung: AtomicBool::new(false) });
        SimDriver { shared, id, files: Vec::new(), pending: Vec::new(), alarm }
    }

    fn flight(&self, file: FileId, token: u64, kind: impl FnOnce(bool) -> FlightKind) -> Flight {
        let attached = self.files.iter().find(|attached| attached.id == file);
        let attached = attached.unwrap_or_else(|| panic!("file {file} was never attached to this driver"));
        let kind = kind(attached.durable);
        Flight { driver: Some(self.id), token, file, ..Flight::new(attached.open, attached.inode, kind) }
    }

    /// Remembers a submitted operation. One that fell to a power failure has no id that could complete: it fails at
    /// the next poll with all others.
    fn remember(&mut self, started: io::Result<OpId>, token: u64, file: FileId, buffer: Option<AlignedBuf>) {
        self.pending.push(Pending { id: started.unwrap_or(0), token, file, buffer });
        self.shared.wake.notify_all();
    }

    /// Takes what has finished; with the power gone, everything fails.
    fn collect(&mut self, state: &mut State, done: &mut Vec<Completion>) -> bool {
        let before = done.len();
        let mut kept = Vec::new();
        for finished in state.finished.drain(..) {
            if finished.driver == self.id {
                done.push(self.completion(&finished));
            } else {
                kept.push(finished);
            }
        }
        state.finished = kept;
        if state.is_dead {
            done.extend(self.pending.drain(..).map(|pending| Completion {
                token: pending.token,
                result: Err(io::Error::from_raw_os_error(EIO)),
                buffer: pending.buffer,
            }));
        }
        done.len() > before
    }

    fn completion(&mut self, finished: &Finished) -> Completion {
        let position = self.pending.iter().position(|pending| pending.id == finished.id);
        let pending = self.pending.remove(position.expect("what finished was pending"));
        let result = finished.cause.map_or(Ok(()), |cause| Err(cause.to_io()));
        Completion { token: finished.token, result, buffer: pending.buffer }
    }

    /// Waits for a completion or the alarm, until the deadline (`None`: for ever).
    fn wait(&mut self, mut state: MutexGuard<'_, State>, deadline: Option<Instant>, done: &mut Vec<Completion>) {
        let shared = self.shared.clone();
        while !self.alarm.has_rung.swap(false, Ordering::Relaxed) {
            let left = deadline.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return;
            }
            // A wait without end is cut into pieces that the platform's clock can count.
            let piece = left.min(Duration::from_secs(3600));
            state = shared.wake.wait_timeout(state, piece).unwrap_or_else(PoisonError::into_inner).0;
            if self.collect(&mut state, done) {
                return;
            }
        }
    }
}

/// Completes some operations of the driver by chance, in any order: none is completed only where none is ready, or where
/// `at_least` allows it. A short write may be among them and stay. Returns whether anything moved.
fn complete_by_chance(state: &mut State, driver: u64, at_least: usize) -> bool {
    let mut ids = state.ready(driver, at_least > 0);
    let count = state.rng.below(ids.len() + 1).max(at_least.min(ids.len()));
    for _ in 0..count {
        let id = ids.swap_remove(state.rng.below(ids.len()));
        state.complete(id);
    }
    count > 0
}

impl Driver for SimDriver {
    fn attach(&mut self, id: FileId, file: Arc<dyn DiskFile>) -> io::Result<()> {
        assert!(self.files.iter().all(|attached| attached.id != id), "file {id} is attached already");
        let known = self.shared.lock().open_at(Arc::as_ptr(&file).cast::<()>().addr());
        let Some((open, inode, access)) = known else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not an open file of this simulated disk"));
        };
        self.files.push(Attached { id, _file: file, open, inode, durable: writes_durably(access) });
        Ok(())
    }

    fn detach(&mut self, id: FileId) {
        assert!(
            self.pending.iter().all(|pending| pending.file != id),
            "file {id} is detached under a pending operation"
        );
        self.files.retain(|attached| attached.id != id);
    }

    fn submit(&mut self, operation: Operation) {
        match operation {
            Operation::Write { token, file, offset, buffer, bytes } => {
                let data: Arc<[u8]> = Arc::from(&buffer[..bytes]);
                let flight = self.flight(file, token, |durable| FlightKind::Write { offset, data, durable });
                let started = self.shared.lock().start_write(flight);
                self.remember(started, token, file, Some(buffer));
            }
            Operation::Sync { token, file } => {
                let flight = self.flight(file, token, |_| FlightKind::Sync { began_at: 0 });
                let started = self.shared.lock().start_sync(flight);
                self.remember(started, token, file, None);
            }
        }
    }

    fn poll(&mut self, wait: PollWait, done: &mut Vec<Completion>) {
        let shared = self.shared.clone();
        let mut state = shared.lock();
        let mode = state.options.mode;
        while mode == Mode::Random && !state.is_dead && !state.has_finished(self.id) {
            let moved = complete_by_chance(&mut state, self.id, usize::from(wait != PollWait::No));
            // Whoever waits does so until something is complete, not a part of it.
            if !moved || wait == PollWait::No {
                break;
            }
        }
        if self.collect(&mut state, done) {
            return;
        }
        match wait {
            PollWait::AtMost(limit) if mode != Mode::Manual => {
                self.wait(state, Instant::now().checked_add(limit), done)
            }
            _ => {}
        }
    }

    fn in_flight(&self) -> usize {
        self.pending.len()
    }

    fn alarm(&self) -> Arc<dyn Alarm> {
        self.alarm.clone()
    }
}

impl Drop for SimDriver {
    /// Drains: by chance and by hand alike everything completes, in `Held` mode and where a fault holds it when somebody
    /// says so.
    fn drop(&mut self) {
        let shared = self.shared.clone();
        let mut state = shared.lock();
        let mut ignored = Vec::new();
        self.collect(&mut state, &mut ignored);
        while !self.pending.is_empty() {
            let is_held = match state.options.mode {
                Mode::Held => true,
                Mode::Random => state.waits_to_be_told(self.id),
                Mode::Manual => false,
            };
            if is_held && !std::thread::panicking() {
                state = shared.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            } else if !complete_by_chance(&mut state, self.id, usize::MAX) {
                state.release_all(self.id);
            }
            self.collect(&mut state, &mut ignored);
        }
        shared.wake.notify_all();
        drop(state);
        // The files close only now, without the lock: closing takes it.
        self.files.clear();
    }
}

/// Wakes a [`SimDriver`].
struct SimAlarm {
    shared: Arc<Shared>,
    has_rung: AtomicBool,
}

impl Alarm for SimAlarm {
    fn ring(&self) {
        // Under the lock, so that a driver that has just looked is certainly waiting when it is woken.
        let _state = self.shared.lock();
        self.has_rung.store(true, Ordering::Relaxed);
        self.shared.wake.notify_all();
    }
}
