//! The writer thread: takes frames, encodes and submits them, and settles their tickets in log order.
//!
//! Invariants:
//!
//! - Only this thread encodes frames and moves the watermarks. With [`Config::write_in_place`](crate::Config::write_in_place)
//!   that is whoever holds the desk's lock: see [`DeskWriter`]. A caller who finds the writer idle says that it is awake and
//!   goes there; nobody leaves without looking once more, so that what is accepted meanwhile is seen.
//! - Acknowledgements leave in log order; callbacks run here, in that order, exactly once, also on poison.
//! - After a failure nothing more is submitted, everything in flight is drained, and all tickets fail.
//! - It never sleeps while there is something it may submit: it says that it sleeps under the core's lock, after
//!   looking there once more.
//!
//! Two ways of sleeping: on its channel when nothing is in flight (a blocking receive would otherwise hold back
//! completions), in the driver's poll when something is.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::ack::spin_politely;
use super::core::{Callback, Core, Shared, ToWriter, Waiting, WriterState};
use super::stall::Who;
use crate::config::{Durability, Wait};
use crate::disk::{AlignedBuf, Completion, Driver, Operation, PollWait};
use crate::engine::pipeline::{Offer, Pipeline, Progress, Step};
use crate::engine::sequencer::Frame;
use crate::engine::stall::Stage;
use crate::error::Error;
use crate::format::frame::FrameKind;
use crate::format::index::IndexIdentity;
use crate::format::names;
use crate::stats::FrameStats;
use crate::sync::atomic::Ordering;
use crate::sync::channel::{Receiver, RecvTimeoutError};
use crate::sync::{Instant, Mistake, planted, thread, thread_local};

thread_local! {
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is running a completion callback: a blocking call here would wait for itself.
pub(crate) fn in_callback() -> bool {
    IN_CALLBACK.with(Cell::get)
}

/// Longest wait for completions before the writer looks around: a lost wake-up would show as a delay, not as a hang.
const POLL_MAX: Duration = Duration::from_millis(500);

/// Sleeping threads that are woken before anything else is done. Each takes about a microsecond: with more, the device
/// would rest meanwhile.
const TOLD_AT_ONCE_MAX: u32 = if cfg!(ringwal_shuttle) { 1 } else { 32 };

/// Buffers kept for reuse.
const BUFFERS_MAX: usize = 8;

/// Tokens of syncs; frame numbers never get there.
const SYNC_TOKEN: u64 = 1 << 63;

struct InFlight {
    stats: FrameStats,
    submitted_at: Instant,
    segment: u64,
}

/// A writer that is handed from thread to thread: see [`Config::write_in_place`](crate::Config::write_in_place).
pub(crate) type DeskWriter = Writer<dyn Driver + Send>;

/// See the module.
pub(crate) struct Writer<D: Driver + ?Sized> {
    shared: Arc<Shared>,
    inbox: Arc<Receiver<ToWriter>>,
    driver: Box<D>,
    pipeline: Pipeline,
    in_flight: BTreeMap<u64, InFlight>,
    /// Segments the driver knows.
    attached: Vec<u64>,
    /// Segments left behind, to be sealed when their last frame is durable.
    sealing: VecDeque<IndexIdentity>,
    /// Segment of the newest frame encoded, and number of its first frame.
    segment: u64,
    buffers: Vec<AlignedBuf>,
    /// Acknowledged frames whose waiters are still to be told, in log order.
    untold: VecDeque<Waiting>,
    last_sync: Instant,
    /// A sync is due once everything up to this frame is written: the last of a segment that was left.
    sync_through: u64,
    was_idle_marked: bool,
    is_closing: bool,
    has_failed: bool,
    /// When a caller wrote last, and whether the log's thread wakes by itself to see that nobody does any more.
    served: Instant,
    has_timer: bool,
    /// Whether a caller is at it, who writes one frame and no more.
    is_serving: bool,
}

impl<D: Driver + ?Sized> Writer<D> {
    pub(crate) fn new(
        shared: Arc<Shared>,
        inbox: Arc<Receiver<ToWriter>>,
        driver: Box<D>,
        pipeline: Pipeline,
    ) -> Writer<D> {
        let segment = shared.core().sequencer.active().sequence;
        Writer {
            shared,
            inbox,
            driver,
            pipeline,
            in_flight: BTreeMap::new(),
            attached: Vec::new(),
            sealing: VecDeque::new(),
            segment,
            buffers: Vec::new(),
            untold: VecDeque::new(),
            last_sync: Instant::now(),
            sync_through: 0,
            was_idle_marked: true,
            is_closing: false,
            has_failed: false,
            served: Instant::now(),
            has_timer: false,
            is_serving: false,
        }
    }

    /// Works until told to close and everything is done.
    pub(crate) fn run(mut self) {
        let mut done = Vec::new();
        loop {
            while let Ok(message) = self.inbox.try_recv() {
                self.on_message(&message);
            }
            self.submit_ready();
            self.sync_if_due();
            if !self.untold.is_empty() {
                // What came meanwhile goes to the kernel first: it is written while the many are woken.
                self.hand_over();
                self.tell();
            } else if !self.pipeline.is_idle() {
                self.driver.poll(PollWait::AtMost(self.poll_limit()), &mut done);
                self.on_completions(&mut done);
            } else if self.is_closing && self.finish_closing() {
                return;
            } else if !self.has_work() {
                self.sleep_idle();
            }
        }
    }

    fn on_message(&mut self, message: &ToWriter) {
        match message {
            ToWriter::Wake => {}
            ToWriter::Close => self.is_closing = true,
        }
    }

    /// Submits frames as long as the pipeline takes them.
    fn submit_ready(&mut self) {
        while let Some((frame, queued_since)) = self.next_frame() {
            if let Err(error) = self.submit(frame, queued_since) {
                return self.fail(Some(error));
            }
            if !self.untold.is_empty() || self.is_serving {
                // One frame for the device to work on is enough: those that are acknowledged have waited.
                return;
            }
            if self.has_work() {
                // Before the next frame is encoded, this one goes to the kernel.
                self.hand_over();
            }
        }
    }

    /// Sees to it that the kernel has everything that was submitted.
    fn hand_over(&mut self) {
        let mut done = Vec::new();
        self.driver.poll(PollWait::No, &mut done);
        self.on_completions(&mut done);
    }

    /// Takes the next frame if it may go now; else says under the lock what is worth waking up for.
    fn next_frame(&mut self) -> Option<(Frame, Option<Instant>)> {
        loop {
            if self.has_failed {
                return None;
            }
            let shared = self.shared.clone();
            let mut core = shared.core();
            if let Some(late) = core.take_late_callbacks() {
                drop(core);
                // Those of frames before it come first.
                if !planted(Mistake::LateCallbackFirst) {
                    self.tell();
                }
                settle_one(late, 0, &Outcome::Acknowledged);
                continue;
            }
            if core.poison.is_some() {
                // A failure elsewhere (the helper's, a directory that is gone) ends the writing as one of its own would.
                drop(core);
                self.fail(None);
                continue;
            }
            match self.next_step(&core) {
                Step::Go => {
                    core.writer = WriterState::Awake;
                    return core.take_frame(&shared);
                }
                Step::Hold { until_ns, calls } => {
                    core.writer = WriterState::Awake;
                    drop(core);
                    self.hold(until_ns, calls);
                }
                Step::Wait { worth_bytes } => {
                    core.writer = match self.pipeline.is_idle() {
                        true => WriterState::Awake,
                        false => WriterState::Waiting { worth_bytes },
                    };
                    return None;
                }
            }
        }
    }

    /// What to do with the next frame; where there is none, what would make one worth sending.
    fn next_step(&self, core: &Core) -> Step {
        let Some((bytes, goes_alone)) = core.sequencer.peek_frame() else {
            return Step::Wait { worth_bytes: self.pipeline.worth_bytes() };
        };
        let is_closed = core.sequencer.has_closed() || self.is_closing;
        let calls = core.sequencer.next_calls();
        let linger = self.shared.config.linger;
        let lingers = !is_closed && core.since.front().is_some_and(|(_, since)| since.elapsed() < linger);
        if lingers && !linger.is_zero() && self.pipeline.admits(bytes, goes_alone) {
            return Step::Wait { worth_bytes: self.pipeline.worth_bytes() };
        }
        self.pipeline.next_step(self.shared.now_ns(), Offer { bytes, calls, goes_alone, is_closed })
    }

    /// Lets other threads run until so many calls have joined the pending frame or the time has come: those that were
    /// just woken want this CPU. Sleeping would cost the machine more, and take longer than what is waited for.
    fn hold(&self, until_ns: u64, calls: u64) {
        while self.shared.next_calls.load(Ordering::Relaxed) < calls && self.shared.now_ns() < until_ns {
            thread::yield_now();
        }
    }

    fn submit(&mut self, frame: Frame, queued_since: Option<Instant>) -> Result<(), Error> {
        let started = Instant::now();
        if frame.plot.sequence != self.segment {
            self.leave_segment(&frame);
        }
        self.attach(frame.plot.sequence)?;
        let bytes = frame.padded_bytes() as usize;
        let mut buffer = self.take_buffer(bytes);
        self.pipeline.encode(&frame, &mut buffer[..bytes], self.shared.now_ns());
        let submitted_at = Instant::now();
        let stats = FrameStats {
            is_data: frame.kind == FrameKind::Data,
            is_mark: frame.kind == FrameKind::Mark,
            entries: frame.entry_count.into(),
            payload_bytes: frame.payload_bytes,
            padded_bytes: bytes as u64,
            queue_wait_ns: queued_since.map_or(0, |since| started.duration_since(since).as_nanos() as u64),
            encode_ns: submitted_at.duration_since(started).as_nanos() as u64,
            write_ns: 0,
        };
        self.was_idle_marked = frame.kind != FrameKind::Data;
        self.in_flight.insert(frame.number, InFlight { stats, submitted_at, segment: frame.plot.sequence });
        let (token, file, offset) = (frame.number, frame.plot.sequence, frame.offset);
        let submitted_ns = self.shared.waiters.ns_at(submitted_at);
        self.shared.stalls.begin(Who::Writer, token, Stage::Write, bytes as u64, submitted_ns);
        self.driver.submit(Operation::Write { token, file, offset, buffer, bytes });
        Ok(())
    }

    /// The frame begins a new segment: the one before it will be sealed.
    fn leave_segment(&mut self, frame: &Frame) {
        let core = self.shared.core();
        let left = core.sequencer.ledger.ranges.iter().rev().find(|range| range.sequence + 1 == frame.plot.sequence);
        if let (Some(left), Some(handle)) = (left, core.handles.get(&self.segment)) {
            self.sealing.push_back(IndexIdentity {
                log_id: self.shared.log_id,
                sequence: left.sequence,
                salt: handle.header.salt,
                last_head_checksum: self.pipeline.chain(),
                first_frame: left.first_frame,
                last_frame: frame.number - 1,
            });
        }
        drop(core);
        self.segment = frame.plot.sequence;
        self.sync_through = frame.number - 1;
        self.shared.count(&self.shared.meter.rolls);
        tracing::debug!(sequence = self.segment, "rolled");
        let mut core = self.shared.core();
        core.slot_due = Some(self.pipeline.progress().durable);
        self.shared.want_spare(&mut core);
    }

    fn attach(&mut self, sequence: u64) -> Result<(), Error> {
        if self.attached.contains(&sequence) {
            return Ok(());
        }
        let path = self.shared.disk.path_of(&names::segment(sequence));
        let file = self.shared.core().files.get(&sequence).cloned();
        let file = file.ok_or_else(|| Error::io("find", &path)(std::io::ErrorKind::NotFound.into()))?;
        self.driver.attach(sequence, file).map_err(Error::io("attach", &path))?;
        self.attached.push(sequence);
        Ok(())
    }

    fn take_buffer(&mut self, bytes: usize) -> AlignedBuf {
        let fits = self.buffers.iter().position(|buffer| buffer.len() >= bytes);
        fits.map_or_else(|| AlignedBuf::zeroed(bytes), |at| self.buffers.swap_remove(at))
    }

    fn return_buffer(&mut self, buffer: AlignedBuf) {
        // A rare giant is not kept.
        if self.buffers.len() < BUFFERS_MAX && buffer.len() as u64 <= 2 * self.shared.config.frame_bytes_max {
            self.buffers.push(buffer);
        }
    }

    fn on_completions(&mut self, done: &mut Vec<Completion>) {
        if done.is_empty() {
            return;
        }
        let (before, now_ns) = (self.pipeline.progress(), self.shared.now_ns());
        for completion in done.drain(..) {
            let stage = if completion.token == SYNC_TOKEN { Stage::Sync } else { Stage::Write };
            self.shared.stalls.end(Who::Writer, completion.token, stage, now_ns);
            if let Some(buffer) = completion.buffer {
                self.return_buffer(buffer);
            }
            match (completion.result, completion.token) {
                (Ok(()), SYNC_TOKEN) => self.on_synced(),
                (Ok(()), number) => self.on_written(number, now_ns),
                (Err(source), SYNC_TOKEN) => {
                    let path = self.shared.disk.path().to_path_buf();
                    self.pipeline.on_sync_failed();
                    self.fail(Some(Error::Io { action: "sync a segment in", path, source }));
                }
                (Err(source), number) => {
                    let segment = self.in_flight.remove(&number).map_or(self.segment, |flight| flight.segment);
                    self.pipeline.on_failed(number);
                    let path = self.shared.disk.path_of(&names::segment(segment));
                    self.fail(Some(Error::Io { action: "write a frame to", path, source }));
                }
            }
        }
        let progress = self.pipeline.progress();
        if progress != before && !self.has_failed {
            self.settle(progress);
        }
    }

    fn on_written(&mut self, number: u64, now_ns: u64) {
        self.pipeline.on_written(number, now_ns);
        self.shared.waiters.write_ns.store(self.pipeline.write_ns(), Ordering::Relaxed);
        if let Some(flight) = self.in_flight.remove(&number) {
            let write_ns = flight.submitted_at.elapsed().as_nanos() as u64;
            self.shared.meter.record_frame(&FrameStats { write_ns, ..flight.stats });
        }
    }

    fn on_synced(&mut self) {
        self.pipeline.on_synced();
        if !self.pipeline.is_syncing() {
            // Where syncs are apart, a mark follows a completed one.
            self.was_idle_marked = false;
            self.shared.count(&self.shared.meter.syncs);
        }
    }

    /// Moves the watermarks everyone sees and settles what they cover.
    fn settle(&mut self, progress: Progress) {
        let mut syncs = Vec::new();
        let shared = self.shared.clone();
        {
            let mut core = shared.core();
            core.sequencer.on_acknowledged(progress.written);
            core.sequencer.on_durable(progress.durable);
            while let Some(waiting) = core.waiting.pop_front_if(|waiting| waiting.number <= progress.written) {
                self.untold.push_back(waiting);
            }
            while let Some((_, ticket)) = core.syncs.pop_front_if(|(number, _)| *number <= progress.durable) {
                syncs.push(ticket);
            }
            if !core.subscribers.is_empty() {
                core.notify_subscribers(|subscriber| {
                    subscriber.on_durable(progress.durable);
                    subscriber.waits_for_durable()
                });
            }
            if !planted(Mistake::RoomWithoutNotice) {
                self.shared.notify_room(&mut core);
            }
            self.seal_ready(&mut core, progress.durable);
            if core.sequencer.droppable().is_some() {
                self.shared.wake_helper();
            }
        }
        syncs.iter().for_each(|ticket| ticket.acknowledge(0));
        if self.untold.iter().map(|waiting| waiting.ticket.sleepers()).sum::<u32>() <= TOLD_AT_ONCE_MAX {
            self.tell();
        }
        self.evict(progress.written);
    }

    /// Lets the tail cache shrink, after those who wait were told.
    fn evict(&mut self, acknowledged: u64) {
        let mut core = self.shared.core();
        let Core { tail, to_drop, .. } = &mut *core;
        tail.evict(acknowledged, to_drop);
    }

    /// Tells the waiters of acknowledged frames.
    fn tell(&mut self) {
        let now_ns = self.shared.now_ns();
        while let Some(waiting) = self.untold.pop_front() {
            settle_one(waiting, now_ns, &Outcome::Acknowledged);
        }
    }

    /// Hands segments whose last frame is durable to the helper; nothing will be written to them any more.
    fn seal_ready(&mut self, core: &mut Core, durable: u64) {
        while let Some(identity) = self.sealing.pop_front_if(|identity| identity.last_frame <= durable) {
            self.driver.detach(identity.sequence);
            self.attached.retain(|&sequence| sequence != identity.sequence);
            core.files.remove(&identity.sequence);
            core.to_seal.push_back(identity);
            self.shared.wake_helper();
        }
    }

    /// Fails everything that is not acknowledged, once, with the first cause.
    fn fail(&mut self, cause: Option<Error>) {
        self.tell();
        self.pipeline.poison();
        let (waiting, syncs, acknowledged, cause) = {
            let mut core = self.shared.core();
            if let Some(cause) = cause {
                self.shared.poison(&mut core, cause);
            }
            core.writer = WriterState::Awake;
            let (waiting, syncs) = (std::mem::take(&mut core.waiting), std::mem::take(&mut core.syncs));
            (waiting, syncs, core.sequencer.acknowledged(), core.poison.clone())
        };
        self.has_failed = true;
        let Some(cause) = cause else { return };
        syncs.iter().for_each(|(_, ticket)| ticket.fail(cause.clone()));
        for waiting in waiting {
            match waiting.number <= acknowledged {
                true => settle_one(waiting, 0, &Outcome::Acknowledged),
                false => settle_one(waiting, 0, &Outcome::Failed(cause.clone())),
            }
        }
    }

    /// Begins a sync where one is due: asked for, by the timer, at a roll, before something may follow an open frame.
    fn sync_if_due(&mut self) {
        let by_timer = match self.shared.config.durability {
            Durability::Interval(every) => self.last_sync.elapsed() >= every,
            Durability::Sync | Durability::None => false,
        };
        let Progress { written, durable } = self.pipeline.progress();
        let rolled = durable < self.sync_through && self.sync_through <= written;
        if !self.pipeline.has_unsynced() {
            return;
        }
        let asked = rolled || self.is_closing || self.pipeline.barrier_waits() || self.sync_asked();
        if !(asked || by_timer && self.pipeline.wants_sync()) {
            return;
        }
        if let Some(segments) = self.pipeline.begin_sync() {
            self.last_sync = Instant::now();
            let now_ns = self.shared.now_ns();
            for file in segments {
                self.shared.stalls.begin(Who::Writer, SYNC_TOKEN, Stage::Sync, 0, now_ns);
                self.driver.submit(Operation::Sync { token: SYNC_TOKEN, file });
            }
        }
    }

    fn sync_asked(&self) -> bool {
        !self.shared.core().syncs.is_empty()
    }

    fn poll_limit(&self) -> Duration {
        self.until_sync().map_or(POLL_MAX, |until| until.min(POLL_MAX))
    }

    /// Time to the next timed sync, if something waits for it.
    fn until_sync(&self) -> Option<Duration> {
        match self.shared.config.durability {
            Durability::Interval(every)
                if self.pipeline.wants_sync() && !self.pipeline.is_syncing() && !self.has_failed =>
            {
                Some(every.saturating_sub(self.last_sync.elapsed()))
            }
            _ => None,
        }
    }

    /// Whether the next frame could be submitted now.
    fn has_work(&self) -> bool {
        let core = self.shared.core();
        !self.has_failed && !matches!(self.next_step(&core), Step::Wait { .. }) || self.is_called(&core)
    }

    /// Nothing is in flight and nothing to submit: sleeps until a message comes or something is due by time.
    fn sleep_idle(&mut self) {
        if let Wait::Spin(limit) = self.shared.config.wait
            && self.shared.config.linger.is_zero()
            && !self.has_failed
            && self.spin_idle(limit)
        {
            return;
        }
        let Some(limit) = self.rest() else { return };
        let message = match limit {
            Some(limit) => self.inbox.recv_timeout(limit),
            None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        self.shared.core().writer = WriterState::Awake;
        match message {
            Ok(message) => self.on_message(&message),
            Err(RecvTimeoutError::Timeout) => self.on_idle_tick(),
            Err(RecvTimeoutError::Disconnected) => self.is_closing = true,
        }
    }

    /// Says that nobody writes, unless there is something to do: `None`. How long until something is due by time.
    fn rest(&self) -> Option<Option<Duration>> {
        let mut core = self.shared.core();
        let is_pending = core.sequencer.peek_frame().is_some() && !self.has_failed;
        let pending = core.since.front().map(|(_, since)| *since).filter(|_| is_pending);
        let has_work = pending.is_some() && self.shared.config.linger.is_zero() || self.is_called(&core);
        if has_work && !planted(Mistake::SleepWithoutLook) {
            core.writer = WriterState::Awake;
            return None;
        }
        core.writer = WriterState::Idle;
        let lingering = pending.map(|since| self.shared.config.linger.saturating_sub(since.elapsed()));
        let mark = (!self.was_idle_marked && !self.has_failed).then_some(self.shared.config.idle_mark_after);
        Some([lingering, mark, self.until_sync()].into_iter().flatten().min())
    }

    /// Whether there is something to do besides frames, given while this thread was not asleep and was not woken.
    fn is_called(&self, core: &Core) -> bool {
        let wants_sync = !core.syncs.is_empty() && self.pipeline.has_unsynced();
        core.has_late_callbacks() || !self.has_failed && (wants_sync || core.poison.is_some())
    }

    /// Looks for something to do for a while before sleeping; `true` if there is.
    fn spin_idle(&mut self, limit: Duration) -> bool {
        let start = Instant::now();
        // Frames and messages are seen without the lock, which callers want; the rest is looked for now and then.
        let is_called = || self.shared.next_calls.load(Ordering::Relaxed) > 0 || !self.inbox.is_empty();
        for round in 1.. {
            spin_politely(is_called);
            if is_called() || round % 8 == 0 && self.has_work() {
                return true;
            }
            if start.elapsed() >= limit {
                break;
            }
        }
        false
    }

    /// Nothing happened for a while: prove the last entries durable with a mark, and look whether the directory stands.
    fn on_idle_tick(&mut self) {
        if self.has_failed || self.was_idle_marked || self.until_sync().is_some() || self.has_pending() {
            return;
        }
        if !self.shared.disk.is_in_place() {
            let path = self.shared.disk.path().to_path_buf();
            return self.fail(Some(Error::DirectoryGone { path }));
        }
        self.mark();
    }

    fn has_pending(&self) -> bool {
        self.shared.core().sequencer.peek_frame().is_some()
    }

    /// Writes a mark, if everything is durable and the last frame is none; the slots repeat it.
    fn mark(&mut self) {
        self.was_idle_marked = true;
        let progress = self.pipeline.progress();
        if progress.durable < progress.written {
            return;
        }
        self.shared.core().sequencer.add_mark();
        self.submit_ready();
        let mut done = Vec::new();
        while !self.pipeline.is_idle() {
            self.driver.poll(PollWait::AtMost(POLL_MAX), &mut done);
            self.on_completions(&mut done);
        }
        self.shared.core().slot_due = Some(self.pipeline.progress().durable);
        self.shared.wake_helper();
    }

    /// Drains, syncs and marks; `true` when nothing is left to do.
    fn finish_closing(&mut self) -> bool {
        if self.shared.core().has_late_callbacks() {
            return false;
        }
        if self.has_failed {
            return true;
        }
        if self.has_pending() || self.pipeline.wants_sync() {
            return false;
        }
        if !self.was_idle_marked {
            self.mark();
        }
        true
    }
}

/// How a frame ended.
enum Outcome {
    Acknowledged,
    Failed(Arc<Error>),
}

/// Settles one frame: its waiters by one wake, then its callbacks.
fn settle_one(waiting: Waiting, now_ns: u64, outcome: &Outcome) {
    match outcome {
        Outcome::Acknowledged => waiting.ticket.acknowledge(now_ns),
        Outcome::Failed(cause) => waiting.ticket.fail(cause.clone()),
    }
    let result = || match outcome {
        Outcome::Acknowledged => Ok(()),
        Outcome::Failed(cause) => Err(Error::Poisoned(cause.clone())),
    };
    waiting.callbacks.into_iter().for_each(|callback| run_callback(callback, result()));
}

fn run_callback(callback: Callback, result: Result<(), Error>) {
    IN_CALLBACK.with(|is_in| is_in.set(true));
    // A panicking callback is its owner's bug: it must not take the log with it.
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| callback(result)));
    IN_CALLBACK.with(|is_in| is_in.set(false));
    if outcome.is_err() {
        tracing::error!("a completion callback panicked");
    }
}

impl DeskWriter {
    /// On the thread of a caller who found the log idle: writes what it gave. What came meanwhile is left to the log's own
    /// thread, or a caller might write for others for ever.
    pub(crate) fn serve(&mut self) {
        self.is_serving = true;
        self.write_out();
        self.is_serving = false;
        self.served = Instant::now();
        let limit = self.rest();
        let needs_timer = !self.has_timer && limit.flatten().is_some();
        if limit.is_none() || needs_timer {
            // Until it comes, either nobody may take its place, or it only sets its clock.
            let _ = self.shared.to_writer.send(ToWriter::Wake);
        }
    }

    /// Writes what is pending until nothing is in flight, and tells everyone.
    fn write_out(&mut self) {
        let mut done = Vec::new();
        self.submit_ready();
        while !self.pipeline.is_idle() {
            self.driver.poll(PollWait::AtMost(POLL_MAX), &mut done);
            self.on_completions(&mut done);
        }
        self.tell();
    }

    /// On the log's own thread: does what is due, and all that is pending. Returns how long the thread may sleep; `None` when
    /// the log is closed.
    fn keep(&mut self, message: Result<ToWriter, RecvTimeoutError>) -> Option<Option<Duration>> {
        match message {
            Ok(message) => self.on_message(&message),
            Err(RecvTimeoutError::Timeout) if self.served.elapsed() < self.shared.config.idle_mark_after => {}
            Err(RecvTimeoutError::Timeout) => self.on_idle_tick(),
            Err(RecvTimeoutError::Disconnected) => self.is_closing = true,
        }
        loop {
            while let Ok(message) = self.inbox.try_recv() {
                self.on_message(&message);
            }
            self.write_out();
            if self.is_closing && self.finish_closing() {
                return None;
            }
            if let Some(limit) = self.rest() {
                self.has_timer = limit.is_some();
                return Some(limit.map(|limit| limit.saturating_sub(self.served.elapsed())));
            }
        }
    }

    /// Somebody panicked at it: everyone who waits is told.
    pub(crate) fn break_off(mut self) {
        self.is_closing = false;
    }
}

/// What the thread of a log does whose callers write: it sees to the clock, to the end, and to what callers leave.
pub(crate) fn keep_desk(shared: &Shared, inbox: &Receiver<ToWriter>) {
    let mut message = Ok(ToWriter::Wake);
    while let Some(Some(limit)) = shared.at_desk(|writer| writer.keep(message)) {
        message = match limit {
            Some(limit) => inbox.recv_timeout(limit),
            None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
    }
    shared.clear_desk();
}

impl<D: Driver + ?Sized> Drop for Writer<D> {
    /// However the thread ends, nobody waits for it in vain.
    fn drop(&mut self) {
        self.tell();
        let clean = self.is_closing && !self.has_failed && !thread::panicking();
        if !clean && !self.has_failed {
            let cause = Error::Io {
                action: "go on writing to",
                path: self.shared.disk.path().to_path_buf(),
                source: std::io::Error::other("the writer thread ended unexpectedly"),
            };
            self.fail(Some(cause));
        }
    }
}
