//! What the threads of a log share: the state under one short lock, and the ways to wake each other.
//!
//! Invariants:
//!
//! - Everything a caller changes is changed under the core's lock, in one step; no I/O happens under it, and no code of
//!   callers runs under it: tasks and threads are woken once it is given up, or they would run into it.
//! - A thread that is about to sleep says so under the lock, after looking once more; whoever gives it something to do
//!   looks at that under the same lock. So no wake is lost, and none is sent to a thread that runs.
//! - Once poisoned or closed, the log stays so.

use std::collections::{BTreeMap, VecDeque};
use std::ops::{Deref, DerefMut, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError, Weak};
use std::task::Waker;
use std::time::{SystemTime, UNIX_EPOCH};

use super::ack::{Ticket, Waiters};
use super::shelf::Shelf;
use super::stall::Stalls;
use super::subscribe::Subscriber;
use super::tail::{self, TailCache};
use super::view::View;
use super::writer::{DeskWriter, Writer, in_callback};
use crate::config::Config;
use crate::disk::{Alarm, Disk, DiskFile};
use crate::engine::operations::Operations;
use crate::engine::pace::Appends;
use crate::engine::pipeline;
use crate::engine::sequencer::{Accepted, Frame, Refusal, Request, Sequencer};
use crate::entry::LogEntry;
use crate::error::{Error, Result};
use crate::format::frame::Operation;
use crate::format::index::IndexIdentity;
use crate::segment::dir::LockFile;
use crate::segment::sealed::SegmentHandle;
use crate::segment::spare::OpenSegment;
use crate::stats::Meter;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::channel::Sender;
use crate::sync::{Condvar, Instant, Mistake, Mutex, MutexGuard, OnceLock, planted};

/// Control messages to the writer thread; frames it takes from the core.
pub(crate) enum ToWriter {
    /// There is something to do.
    Wake,
    /// Finish everything and leave.
    Close,
}

/// Messages to the helper thread: what is to be done it sees in the core.
pub(crate) enum ToHelper {
    /// There is something to do.
    Wake,
    /// Leave.
    Close,
}

/// What the writer thread is doing, as far as waking it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriterState {
    /// It will look at the core before it sleeps.
    Awake,
    /// It sleeps on its channel: nothing is in flight.
    Idle,
    /// It waits for completions; a pending frame of at least this size is worth waking it for.
    Waiting { worth_bytes: u64 },
}

/// A way to wake the writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ring {
    /// It sleeps on its channel.
    Channel,
    /// It sleeps in the driver.
    Alarm,
    /// It stands at the desk: who gave it something to do does its work.
    InPlace,
}

/// What a spare could not be made for want of. Nothing that was acknowledged is at stake: callers are refused meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shortage {
    Space,
    /// Descriptors or memory: the number of the operating system.
    System(i32),
}

impl Shortage {
    pub(crate) fn of(error: &Error) -> Option<Shortage> {
        if error.is_out_of_space() {
            return Some(Shortage::Space);
        }
        error.scarcity().map(Shortage::System)
    }

    /// What callers are told.
    pub(crate) fn error(self, shared: &Shared) -> Error {
        match self {
            Shortage::Space => Error::NoSpace,
            Shortage::System(number) => {
                let source = std::io::Error::from_raw_os_error(number);
                Error::io("make the next segment in", shared.disk.path())(source)
            }
        }
    }
}

/// How the making of spares stands.
#[derive(Debug, Default)]
pub(crate) struct SpareWork {
    /// The helper was asked, or is at it.
    pub(crate) is_wanted: bool,
    /// Attempts finished, well or not.
    pub(crate) attempts: u64,
    /// Why the last attempt made none, where a later one may.
    pub(crate) shortage: Option<Shortage>,
    /// A caller found no room because no spare stands.
    pub(crate) is_missed: bool,
}

/// A callback of one caller, to be run when its frame is settled.
pub(crate) type Callback = Box<dyn FnOnce(Result<()>) + Send>;

/// A frame that callers wait for.
pub(crate) struct Waiting {
    pub(crate) number: u64,
    pub(crate) ticket: Arc<Ticket>,
    pub(crate) callbacks: Vec<Callback>,
}

/// A job for the reader thread.
pub(crate) type ReadJob = Box<dyn FnOnce(&Shared) + Send>;

/// The state under the lock.
pub(crate) struct Core {
    pub(crate) sequencer: Sequencer,
    pub(crate) tail: TailCache,
    /// Frames with tickets, oldest first.
    pub(crate) waiting: VecDeque<Waiting>,
    /// Tickets of `sync` calls, by the frame that must be durable.
    pub(crate) syncs: VecDeque<(u64, Arc<Ticket>)>,
    pub(crate) writer: WriterState,
    /// When each frame that the writer did not take yet took its first batch, oldest first.
    pub(crate) since: VecDeque<(u64, Instant)>,
    pub(crate) spare: SpareWork,
    /// Files of the segments that may still be written: the active one and the spares.
    pub(crate) files: BTreeMap<u64, Arc<dyn DiskFile>>,
    pub(crate) handles: BTreeMap<u64, Arc<SegmentHandle>>,
    /// Cleared with every change to what older segments hold.
    pub(crate) shelf: Arc<Shelf>,
    /// Sealed segments whose index files are to be made.
    pub(crate) to_seal: VecDeque<IndexIdentity>,
    /// A watermark for the lock file's slots.
    pub(crate) slot_due: Option<u64>,
    pub(crate) subscribers: Vec<Weak<Subscriber>>,
    /// The index that subscribers, as far as they were told, expect next at most.
    pub(crate) told_next: u64,
    /// Callers that wait for room or for a spare, as threads and as tasks.
    pub(crate) room_sleepers: usize,
    pub(crate) room_wakers: Vec<Waker>,
    /// Tasks to be woken when the lock is given up.
    pub(super) to_wake: Vec<Waker>,
    /// How the writer is to be woken when the lock is given up.
    pub(super) to_ring: Option<Ring>,
    /// What the tail cache let go of, to be dropped when the lock is given up: it may be very many entries.
    pub(super) to_drop: Vec<Arc<Operations>>,
    pub(crate) poison: Option<Arc<Error>>,
    pub(crate) is_closed: bool,
}

/// Why a batch was not accepted now.
pub(crate) enum Hold {
    /// It never will be.
    Refused(Error),
    /// The term of this index must be looked up first.
    NeedTerm(u64),
    /// The queue is full.
    QueueFull,
    /// No spare stands behind the segment.
    NoSpare,
}

impl Core {
    /// Refuses what a closed or poisoned log refuses.
    pub(crate) fn check_writable(&self) -> Result<()> {
        match &self.poison {
            _ if self.is_closed => Err(Error::Closed),
            Some(cause) => Err(Error::Poisoned(cause.clone())),
            None => Ok(()),
        }
    }

    /// Accepts a batch, which is empty then, and gives the ticket of its frame.
    pub(crate) fn accept(
        &mut self,
        shared: &Shared,
        batch: &mut Vec<Request>,
        hints: &[(u64, u64)],
    ) -> Result<(Accepted, Arc<Ticket>), Hold> {
        self.check_writable().map_err(Hold::Refused)?;
        // One batch may always be queued, or nothing could ever make room for it.
        let queued_bytes = self.sequencer.queued_bytes();
        if queued_bytes > 0 && queued_bytes >= shared.config.queue_bytes_max {
            return Err(Hold::QueueFull);
        }
        let accepted = match self.sequencer.accept(batch, now_ms(), hints) {
            Ok(accepted) => accepted,
            Err(Refusal::Error(error)) => return Err(Hold::Refused(error)),
            Err(Refusal::NeedTerm(index)) => return Err(Hold::NeedTerm(index)),
            Err(Refusal::NoRoom) => return Err(Hold::NoSpare),
        };
        self.take_in(&accepted);
        let ticket = self.ticket_of(shared, accepted.number);
        shared.next_calls.store(self.next_calls(), Ordering::Relaxed);
        Ok((accepted, ticket))
    }

    /// Shows what was accepted to readers and subscribers.
    fn take_in(&mut self, accepted: &Accepted) {
        // The batch may have closed the frame before its own.
        let Core { sequencer, tail, to_drop, .. } = self;
        sequencer.closed_after(tail.newest()).for_each(|frame| tail.push(frame, to_drop));
        match accepted.is_plain {
            true => {
                tell_next(&mut self.told_next, &self.subscribers, accepted.indexes.clone(), accepted.number);
            }
            false => self.take_in_operations(accepted),
        }
        if accepted.operation_count > 0 && self.since.back().is_none_or(|(newest, _)| *newest < accepted.number) {
            self.since.push_back((accepted.number, Instant::now()));
        }
        if !self.subscribers.is_empty() {
            self.notify_subscribers(|subscriber| !subscriber.waits_for_durable());
        }
    }

    fn take_in_operations(&mut self, accepted: &Accepted) {
        let number = accepted.number;
        for operation in self.sequencer.newest_operations(accepted.operation_count) {
            match operation {
                Operation::Entry { index, .. } => {
                    tell_next(&mut self.told_next, &self.subscribers, *index..index + 1, number);
                }
                Operation::Truncate { first_removed, .. } => {
                    self.tail.truncate_from(*first_removed, &mut self.to_drop);
                    self.shelf.clear();
                    tell_truncated(&self.subscribers, *first_removed, number);
                    self.told_next = *first_removed;
                }
                Operation::Compact { index, .. } => {
                    self.tail.compact_to(*index, &mut self.to_drop);
                    if !planted(Mistake::KeepShelf) {
                        self.shelf.clear();
                    }
                }
                Operation::PutMeta { .. } | Operation::DeleteMeta { .. } => {}
            }
        }
    }

    /// Takes the next frame for the writer; it stays readable.
    pub(crate) fn take_frame(&mut self, shared: &Shared) -> Option<(Frame, Option<Instant>)> {
        let frame = self.sequencer.take_frame()?;
        if frame.number > self.tail.newest() {
            self.tail.push(&frame, &mut self.to_drop);
        }
        shared.next_calls.store(self.next_calls(), Ordering::Relaxed);
        let since = self.since.pop_front_if(|(number, _)| *number <= frame.number);
        Some((frame, since.map(|(_, since)| since)))
    }

    /// Calls in the next frame; more than any that is hoped for, once waiting for more gains nothing.
    fn next_calls(&self) -> u64 {
        let is_full = self.sequencer.has_closed()
            || self.sequencer.peek_frame().is_some_and(|(bytes, _)| bytes >= pipeline::GATHER_BYTES);
        if is_full { u64::MAX } else { self.sequencer.next_calls() }
    }

    /// An entry that is in memory.
    pub(crate) fn cached(&self, index: u64) -> Option<LogEntry> {
        let growing = self.sequencer.pending().and_then(|frame| tail::entry_of(&frame.operations, index));
        growing.or_else(|| self.tail.get(index))
    }

    pub(crate) fn notify_subscribers(&mut self, whom: impl Fn(&Subscriber) -> bool) {
        self.subscribers.retain(|weak| match weak.upgrade() {
            Some(subscriber) => {
                if whom(&subscriber) {
                    self.to_wake.extend(subscriber.notify());
                }
                true
            }
            None => false,
        });
    }

    /// The ticket of a frame that was accepted; a settled one if it is acknowledged already.
    pub(crate) fn ticket_of(&mut self, shared: &Shared, number: u64) -> Arc<Ticket> {
        if number <= self.sequencer.acknowledged() {
            let ticket = Ticket::new(&shared.waiters);
            ticket.acknowledge(0);
            return Arc::new(ticket);
        }
        match self.waiting.back() {
            Some(last) if last.number == number => last.ticket.clone(),
            _ => {
                let ticket = Arc::new(Ticket::new(&shared.waiters));
                self.waiting.push_back(Waiting { number, ticket: ticket.clone(), callbacks: Vec::new() });
                ticket
            }
        }
    }

    /// Adds a callback for a frame; `true` if the frame is acknowledged already, by an empty batch behind it: then the
    /// writer is to run it all the same, after those before it.
    pub(crate) fn add_callback(&mut self, number: u64, ticket: &Arc<Ticket>, callback: Callback) -> bool {
        match self.waiting.back_mut() {
            Some(last) if last.number == number => last.callbacks.push(callback),
            _ => self.waiting.push_back(Waiting { number, ticket: ticket.clone(), callbacks: vec![callback] }),
        }
        self.has_late_callbacks()
    }

    /// Whether there are callbacks for frames that are acknowledged.
    pub(crate) fn has_late_callbacks(&self) -> bool {
        self.waiting.front().is_some_and(|first| first.number <= self.sequencer.acknowledged())
    }

    /// Takes callbacks of empty batches whose turn had come before they were given.
    pub(crate) fn take_late_callbacks(&mut self) -> Option<Waiting> {
        let acknowledged = self.sequencer.acknowledged();
        self.waiting.pop_front_if(|first| first.number <= acknowledged)
    }

    /// What readers may see.
    pub(crate) fn view(&self) -> View<'_> {
        View { sequencer: &self.sequencer, poison: self.poison.as_ref() }
    }

    /// The live indexes that readers may see: everything accepted, or after poisoning what is durable of it.
    pub(crate) fn visible(&self) -> Range<u64> {
        self.view().visible()
    }

    /// One past the last index that readers may see.
    pub(crate) fn visible_next(&self) -> u64 {
        self.visible().end
    }

    /// Checks that an index can be read.
    pub(crate) fn check_readable(&self, index: u64) -> Result<()> {
        if self.is_closed { Err(Error::Closed) } else { self.view().check_readable(index) }
    }

    /// What the appends are doing, for the filling of a spare beside them.
    pub(crate) fn appends(&self) -> Appends {
        Appends {
            are_under_way: self.sequencer.last_number() > self.sequencer.acknowledged(),
            wait_for_room: self.spare.is_missed && self.has_room_waiters(),
            used_bytes: self.sequencer.tail(),
        }
    }

    /// Whether callers wait for room.
    fn has_room_waiters(&self) -> bool {
        self.room_sleepers > 0 || !self.room_wakers.is_empty()
    }
}

/// Entries with these indexes joined a frame.
fn tell_next(told_next: &mut u64, subscribers: &[Weak<Subscriber>], indexes: Range<u64>, number: u64) {
    if indexes.start < *told_next {
        // The log was emptied and begins again lower down.
        tell_truncated(subscribers, indexes.start, number);
    }
    *told_next = indexes.end;
}

fn tell_truncated(subscribers: &[Weak<Subscriber>], first_removed: u64, number: u64) {
    let subscribers = subscribers.iter().filter_map(Weak::upgrade);
    subscribers.for_each(|subscriber| subscriber.on_truncate(first_removed, number));
}

/// The core's lock. Whoever is to be woken is woken after it is given up: a waker is a caller's code, and a thread that
/// is woken under the lock would only wait for it.
pub(crate) struct CoreGuard<'a> {
    shared: &'a Shared,
    /// Taken only by what consumes the guard.
    core: Option<MutexGuard<'a, Core>>,
}

impl Deref for CoreGuard<'_> {
    type Target = Core;

    fn deref(&self) -> &Core {
        self.core.as_deref().expect("the guard is there until it is consumed")
    }
}

impl DerefMut for CoreGuard<'_> {
    fn deref_mut(&mut self) -> &mut Core {
        self.core.as_deref_mut().expect("the guard is there until it is consumed")
    }
}

impl Drop for CoreGuard<'_> {
    fn drop(&mut self) {
        if let Some(mut core) = self.core.take() {
            let (to_wake, to_ring) = (std::mem::take(&mut core.to_wake), core.to_ring.take());
            let to_drop = std::mem::take(&mut core.to_drop);
            drop(core);
            self.shared.ring(to_ring);
            to_wake.into_iter().for_each(Waker::wake);
            drop(to_drop);
            if to_ring == Some(Ring::InPlace) {
                // Last: it waits for the device.
                self.shared.at_desk(Writer::serve);
            }
        }
    }
}

/// What every handle and thread of a log shares.
pub(crate) struct Shared {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) config: Config,
    pub(crate) log_id: [u8; 16],
    pub(crate) read_only: bool,
    core: Mutex<Core>,
    /// The core's.
    pub(crate) shelf: Arc<Shelf>,
    room: Condvar,
    pub(crate) meter: Arc<Meter>,
    pub(crate) waiters: Arc<Waiters>,
    pub(crate) stalls: Stalls,
    /// Calls in the frame that the writer takes next, to be looked at without the lock; `u64::MAX` where it takes no more.
    /// Changed under the lock, read without order: before the writer sleeps, it looks once more under the lock.
    pub(crate) next_calls: AtomicU64,
    pub(crate) to_writer: Sender<ToWriter>,
    pub(crate) to_helper: Sender<ToHelper>,
    pub(crate) alarm: OnceLock<Arc<dyn Alarm>>,
    pub(crate) lock: Mutex<Option<LockFile>>,
    /// Handles with open files, in the order they were opened.
    pub(crate) open_handles: Mutex<VecDeque<Weak<SegmentHandle>>>,
    /// The writer of a log whose callers write, between two of them. Taken before the core's lock, never under it.
    desk: Mutex<Option<DeskWriter>>,
    /// To the reader thread, if there is one.
    pub(crate) reads: Mutex<Option<Sender<ReadJob>>>,
}

impl Shared {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        config: Config,
        log_id: [u8; 16],
        core: Core,
        lock: Option<LockFile>,
        senders: (Sender<ToWriter>, Sender<ToHelper>),
    ) -> Shared {
        let meter = Arc::new(Meter::new());
        let waiters = Arc::new(Waiters::new(config.wait, meter.clone()));
        Shared {
            stalls: Stalls::new(disk.device(), config.stall_after, waiters.clone()),
            disk,
            waiters,
            config,
            log_id,
            read_only: lock.is_none(),
            shelf: core.shelf.clone(),
            core: Mutex::new(core),
            room: Condvar::new(),
            meter,
            next_calls: AtomicU64::new(0),
            to_writer: senders.0,
            to_helper: senders.1,
            alarm: OnceLock::new(),
            lock: Mutex::new(lock),
            open_handles: Mutex::new(VecDeque::new()),
            desk: Mutex::new(None),
            reads: Mutex::new(None),
        }
    }

    /// Puts the writer where callers find it.
    pub(crate) fn furnish(&self, writer: DeskWriter) {
        *self.desk.lock().unwrap_or_else(PoisonError::into_inner) = Some(writer);
    }

    /// Takes the writer away for good, at the end.
    pub(crate) fn clear_desk(&self) {
        let writer = self.desk.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(writer);
    }

    /// Does something as the writer; `None` where there is none (any more). Whoever panics at it takes it along, which fails
    /// everything that waits.
    pub(crate) fn at_desk<T>(&self, work: impl FnOnce(&mut DeskWriter) -> T) -> Option<T> {
        let mut desk = self.desk.lock().unwrap_or_else(PoisonError::into_inner);
        let writer = desk.as_mut()?;
        let outcome = catch_unwind(AssertUnwindSafe(|| work(writer)));
        if outcome.is_err()
            && let Some(writer) = desk.take()
        {
            writer.break_off();
        }
        outcome.ok()
    }

    pub(crate) fn core(&self) -> CoreGuard<'_> {
        // A panic while the lock was held is a bug of ours; the state may be half changed, so it is not papered over:
        // the writer poisons the log when it panics, and callers go on with what they see.
        CoreGuard { shared: self, core: Some(self.core.lock().unwrap_or_else(PoisonError::into_inner)) }
    }

    /// Nanoseconds on the log's own clock, never 0.
    pub(crate) fn now_ns(&self) -> u64 {
        self.waiters.now_ns()
    }

    /// Wakes the writer if it sleeps and there is something worth it. Called with the lock, after a batch was accepted.
    pub(crate) fn wake_writer_for_frame(&self, core: &mut Core) {
        let wake = match core.writer {
            WriterState::Awake => return,
            WriterState::Idle => true,
            // Every slot is taken: it will look by itself when one is free.
            WriterState::Waiting { worth_bytes: u64::MAX } => false,
            WriterState::Waiting { worth_bytes } => {
                core.sequencer.has_closed()
                    || core.sequencer.peek_frame().is_some_and(|(bytes, _)| bytes >= worth_bytes)
            }
        };
        if wake && !planted(Mistake::AcceptWithoutWake) {
            self.wake_writer(core);
            // A callback's caller has something else to do than to wait for a device.
            if self.config.write_in_place && core.to_ring == Some(Ring::Channel) && !in_callback() {
                core.to_ring = Some(Ring::InPlace);
            }
        }
    }

    /// Wakes the writer whatever it waits for, once the lock is given up.
    pub(crate) fn wake_writer(&self, core: &mut Core) {
        match std::mem::replace(&mut core.writer, WriterState::Awake) {
            WriterState::Awake => {}
            WriterState::Idle => core.to_ring = Some(Ring::Channel),
            WriterState::Waiting { .. } => core.to_ring = Some(Ring::Alarm),
        }
    }

    fn ring(&self, how: Option<Ring>) {
        match (how, self.alarm.get()) {
            (Some(Ring::Channel), _) => drop(self.to_writer.send(ToWriter::Wake)),
            (Some(Ring::Alarm), Some(alarm)) => alarm.ring(),
            _ => {}
        }
    }

    /// Asks the helper for a spare, unless it is at it.
    pub(crate) fn want_spare(&self, core: &mut Core) {
        if !core.spare.is_wanted {
            core.spare.is_wanted = true;
            self.wake_helper();
        }
    }

    pub(crate) fn wake_helper(&self) {
        let _ = self.to_helper.send(ToHelper::Wake);
    }

    /// Waits until room may have been made; the lock is given up meanwhile.
    pub(crate) fn wait_for_room(&self, mut guard: CoreGuard<'_>) {
        if guard.to_ring.is_some() || !guard.to_wake.is_empty() {
            // Somebody is to be woken first, which only happens without the lock. The caller tries again.
            return;
        }
        let Some(mut core) = guard.core.take() else { return };
        core.room_sleepers += 1;
        let mut core = self.room.wait(core).unwrap_or_else(PoisonError::into_inner);
        core.room_sleepers -= 1;
        guard.core = Some(core);
    }

    /// Wakes everyone who waits for room.
    pub(crate) fn notify_room(&self, core: &mut Core) {
        if core.has_room_waiters() {
            self.room.notify_all();
            let Core { room_wakers, to_wake, .. } = core;
            to_wake.append(room_wakers);
        }
    }

    /// Latches the first failure. Waiters learn it from the writer, or here if that is gone.
    pub(crate) fn poison(&self, core: &mut Core, cause: Error) {
        if core.poison.is_none() {
            tracing::error!(%cause, directory = %self.disk.path().display(), "the log is poisoned");
            core.poison = Some(Arc::new(cause));
            core.shelf.clear();
        }
        if !planted(Mistake::PoisonWithoutNotice) {
            self.notify_room(core);
        }
        core.notify_subscribers(|_| true);
        self.wake_writer(core);
    }

    /// A segment stands ready.
    pub(crate) fn add_spare(&self, core: &mut Core, spare: OpenSegment) {
        core.spare.is_missed = false;
        core.sequencer.add_spare(spare.plot());
        let handle = Arc::new(SegmentHandle::new(self.disk.clone(), spare.header));
        core.handles.insert(spare.header.sequence, handle);
        core.files.insert(spare.header.sequence, spare.file);
    }

    pub(crate) fn count(&self, counter: &std::sync::atomic::AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Milliseconds since the Unix epoch; 0 on a clock set before it.
fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
