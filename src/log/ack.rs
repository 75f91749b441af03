//! Tickets: how the callers that share a frame learn its fate, with one wake for all of them.
//!
//! Every frame has one ticket. Blocking waiters sleep on its futex word, so that one system call wakes them all; tasks
//! leave a waker. A ticket is settled once and stays so. It belongs to a frame number, never to an index: after a
//! truncation the same index means another entry.
//!
//! Does not know frames, files or the log's lock: a waiter touches nothing but its ticket.

use std::sync::{Arc, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use crate::config::Wait;
use crate::error::{Error, Result};
use crate::stats::Meter;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use crate::sync::{Futex, Instant, Mistake, Mutex, OnceLock, SPINS, planted, thread};

const WAITING: u32 = 0;
const DONE: u32 = 1;
const FAILED: u32 = 2;

/// How late a sleep of known length may end: the kernel lets timers of ordinary threads slip by 50 us.
const NAP_SLACK: Duration = Duration::from_micros(60);

/// A wait that usually takes at most so many times the limit for spinning is spun through as a whole. A thread that
/// sleeps for shorter than that gains nothing: the kernel likes to wake it on the very CPU that the writer needs.
const SPUN_THROUGH_PARTS: u32 = 4;

/// Spins for a few microseconds or until `is_over`; then lets whoever waits for this CPU have it. With fewer CPUs than
/// spinning threads, the one that is waited for would else have to wait.
pub(crate) fn spin_politely(is_over: impl Fn() -> bool) {
    for _ in 0..SPINS {
        if is_over() {
            return;
        }
        std::hint::spin_loop();
    }
    thread::yield_now();
}

/// What the waiters of one log have in common.
#[derive(Debug)]
pub(crate) struct Waiters {
    pub(crate) wait: Wait,
    pub(crate) meter: Arc<Meter>,
    /// How long a write takes lately, in nanoseconds: read and written without order, since it only tells how to wait.
    pub(crate) write_ns: AtomicU64,
    started: Instant,
}

impl Waiters {
    pub(crate) fn new(wait: Wait, meter: Arc<Meter>) -> Waiters {
        Waiters { wait, meter, write_ns: AtomicU64::new(0), started: Instant::now() }
    }

    /// Nanoseconds on the log's own clock, never 0.
    pub(crate) fn now_ns(&self) -> u64 {
        self.ns_at(Instant::now())
    }

    /// The log's own clock as it was at a moment since the open.
    pub(crate) fn ns_at(&self, moment: Instant) -> u64 {
        moment.duration_since(self.started).as_nanos() as u64 + 1
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Ticket {
    state: Futex,
    /// Whether a thread sleeps, or is about to: without one, settling costs no system call.
    sleepers: AtomicU32,
    /// When it was settled, for the first waiter that comes round, in nanoseconds of the log's clock; 0 once taken.
    settled_ns: AtomicU64,
    wakers: Mutex<Vec<Waker>>,
    /// Why it failed.
    cause: OnceLock<Arc<Error>>,
    waiters: Arc<Waiters>,
}

impl Ticket {
    pub(crate) fn new(waiters: &Arc<Waiters>) -> Ticket {
        Ticket {
            state: Futex::new(WAITING),
            sleepers: AtomicU32::new(0),
            settled_ns: AtomicU64::new(0),
            wakers: Mutex::default(),
            cause: OnceLock::new(),
            waiters: waiters.clone(),
        }
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.state.load(Ordering::Acquire) != WAITING
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.state.load(Ordering::Acquire) == FAILED
    }

    /// How many threads sleep: waking each costs about a microsecond. An estimate: nobody depends on it.
    pub(crate) fn sleepers(&self) -> u32 {
        self.sleepers.load(Ordering::Relaxed)
    }

    /// The frame is acknowledged: wakes everyone who waits for it. `now_ns` is 0 where the wake is not to be measured.
    pub(crate) fn acknowledge(&self, now_ns: u64) {
        self.settled_ns.store(now_ns, Ordering::Relaxed);
        self.settle(DONE);
    }

    /// The frame failed, and whether it is on disk is unknown until the log is opened again.
    pub(crate) fn fail(&self, cause: Arc<Error>) {
        let _ = self.cause.set(cause);
        self.settle(FAILED);
    }

    fn settle(&self, state: u32) {
        // Release: whoever sees the state sees the cause and the time as well.
        let order = if planted(Mistake::SettleRelaxed) { Ordering::Relaxed } else { Ordering::Release };
        self.state.store(state, order);
        // Pairs with the sleeper's fence: either it sees the state, or this sees the sleeper.
        if !planted(Mistake::SettleWithoutFence) {
            fence(Ordering::SeqCst);
        }
        if self.sleepers.load(Ordering::Relaxed) > 0 {
            self.state.wake_all();
        }
        let wakers = std::mem::take(&mut *self.wakers.lock().unwrap_or_else(PoisonError::into_inner));
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Blocks until the ticket is settled.
    pub(crate) fn wait(&self) -> Result<()> {
        if let Wait::Spin(limit) = self.waiters.wait {
            self.nap_and_spin(limit);
        }
        if !self.is_settled() {
            self.sleep(None);
        }
        self.outcome()
    }

    /// Sleeps until the ticket is settled, or for about so long.
    fn sleep(&self, limit: Option<Duration>) {
        self.sleepers.fetch_add(1, Ordering::Relaxed);
        // Pairs with the settling thread's.
        fence(Ordering::SeqCst);
        while !self.is_settled() {
            if self.state.wait(WAITING, limit) {
                // One that settles now may still see this sleeper, and wakes nobody: that costs a system call.
                self.sleepers.fetch_sub(1, Ordering::Relaxed);
                return;
            }
        }
    }

    /// Spins through a write that is short beside the limit, and around the end of a longer one, which is slept through.
    fn nap_and_spin(&self, limit: Duration) {
        let write = Duration::from_nanos(self.waiters.write_ns.load(Ordering::Relaxed));
        if write <= limit.saturating_mul(SPUN_THROUGH_PARTS) {
            return self.spin(limit.saturating_add(write));
        }
        self.sleep(Some(write - limit / 2 - NAP_SLACK.min(write / 4)));
        self.spin(limit + NAP_SLACK);
    }

    fn spin(&self, limit: Duration) {
        let start = Instant::now();
        while !self.is_settled() && start.elapsed() < limit {
            spin_politely(|| self.is_settled());
        }
    }

    /// Polls for the outcome, leaving the waker behind if it is not known yet: at `slot`, which is the caller's own.
    pub(crate) fn poll(&self, waker: &Waker, slot: &mut Option<usize>) -> Poll<Result<()>> {
        if self.is_settled() {
            return Poll::Ready(self.outcome());
        }
        self.leave(waker, slot);
        // Settled between the look and the push: the settling thread may have missed the waker.
        let is_settled = !planted(Mistake::LeaveWithoutLook) && self.is_settled();
        if is_settled { Poll::Ready(self.outcome()) } else { Poll::Pending }
    }

    fn leave(&self, waker: &Waker, slot: &mut Option<usize>) {
        let mut wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        match slot.and_then(|slot| wakers.get_mut(slot)) {
            Some(known) if known.will_wake(waker) => {}
            Some(known) => *known = waker.clone(),
            None => {
                *slot = Some(wakers.len());
                wakers.push(waker.clone());
            }
        }
    }

    fn outcome(&self) -> Result<()> {
        self.measure_wake();
        match self.state.load(Ordering::Acquire) {
            FAILED => Err(self.cause.get().cloned().map_or(Error::Closed, Error::Poisoned)),
            _ => Ok(()),
        }
    }

    /// The first waiter that comes round measures the wake for the whole frame.
    fn measure_wake(&self) {
        // Looked at before it is taken: the others only read.
        if self.settled_ns.load(Ordering::Relaxed) > 0 {
            let settled_ns = self.settled_ns.swap(0, Ordering::Relaxed);
            if settled_ns > 0 {
                self.waiters.meter.record_wake(self.waiters.now_ns().saturating_sub(settled_ns));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn ticket(wait: Wait, write_ns: u64) -> Arc<Ticket> {
        let waiters = Waiters::new(wait, Arc::new(Meter::new()));
        waiters.write_ns.store(write_ns, Ordering::Relaxed);
        Arc::new(Ticket::new(&Arc::new(waiters)))
    }

    fn poll(ticket: &Arc<Ticket>) -> Result<()> {
        let (ticket, mut slot) = (ticket.clone(), None);
        crate::block_on::block_on(std::future::poll_fn(|context| ticket.poll(context.waker(), &mut slot)))
    }

    #[test]
    fn one_settling_wakes_every_thread_and_task() {
        for wait in [Wait::Park, Wait::Spin(Duration::from_micros(20))] {
            for write_ns in [0, 1_000, 200_000, 900_000_000] {
                let ticket = ticket(wait, write_ns);
                let waiting: Vec<_> = (0..8)
                    .map(|nth| {
                        let ticket = ticket.clone();
                        thread::spawn(move || if nth % 4 == 3 { poll(&ticket) } else { ticket.wait() })
                    })
                    .collect();
                thread::sleep(Duration::from_millis(5));
                ticket.acknowledge(5);
                waiting.into_iter().for_each(|thread| thread.join().unwrap().unwrap());
                assert_eq!(ticket.waiters.meter.look().wake_ns.len(), 1, "one waiter measures for all");
            }
        }
    }

    #[test]
    fn a_settled_ticket_answers_at_once_with_its_cause() {
        let ticket = ticket(Wait::Park, 0);
        ticket.fail(Arc::new(Error::NoSpace));
        assert!(matches!(ticket.wait(), Err(Error::Poisoned(cause)) if matches!(*cause, Error::NoSpace)));
        assert!(poll(&ticket).is_err());
    }

    #[test]
    fn a_task_that_polls_again_leaves_one_waker() {
        let (ticket, mut slot) = (ticket(Wait::Park, 0), None);
        for _ in 0..3 {
            assert!(ticket.poll(Waker::noop(), &mut slot).is_pending());
        }
        assert_eq!(ticket.wakers.lock().unwrap().len(), 1);
    }
}

/// Every interleaving of a settling and of those who wait for it.
#[cfg(all(test, ringwal_loom))]
mod loom_models {
    use super::*;
    use crate::block_on::block_on;
    use crate::sync::plant;

    #[derive(Clone, Copy, Debug)]
    enum Waiter {
        /// Blocks, as the log's setting says.
        Thread,
        /// Polls until it is done.
        Task,
        /// Polls once and goes away.
        Deserter,
    }

    impl Waiter {
        /// What it was told, if it stayed to hear it.
        fn wait(self, ticket: &Ticket) -> Option<Result<()>> {
            let mut slot = None;
            match self {
                Waiter::Thread => Some(ticket.wait()),
                Waiter::Task => Some(block_on(std::future::poll_fn(|context| ticket.poll(context.waker(), &mut slot)))),
                Waiter::Deserter => match ticket.poll(Waker::noop(), &mut slot) {
                    Poll::Ready(outcome) => Some(outcome),
                    Poll::Pending => None,
                },
            }
        }
    }

    /// Waiters come while a frame is settled: none sleeps for ever, and each that stays is told what happened.
    fn settled(waiters: &'static [Waiter], wait: Wait, fails: bool, mistake: Option<Mistake>) {
        settled_after(0, waiters, wait, fails, mistake);
    }

    fn settled_after(write_ns: u64, waiters: &'static [Waiter], wait: Wait, fails: bool, mistake: Option<Mistake>) {
        let (meter, cause) = (Arc::new(Meter::new()), Arc::new(Error::NoSpace));
        let mut model = loom::model::Builder::new();
        // One waiter meets the settling in every way there is; two in all with three switches that nothing forces.
        model.preemption_bound = (waiters.len() > 1).then_some(3);
        model.check(move || {
            plant(mistake);
            let common = Waiters::new(wait, meter.clone());
            common.write_ns.store(write_ns, Ordering::Relaxed);
            let ticket = Arc::new(Ticket::new(&Arc::new(common)));
            let come = |waiter: &Waiter| {
                let (waiter, ticket) = (*waiter, ticket.clone());
                thread::spawn(move || waiter.wait(&ticket))
            };
            let come: Vec<_> = waiters.iter().map(come).collect();
            match fails {
                true => ticket.fail(cause.clone()),
                false => ticket.acknowledge(1),
            }
            for told in come.into_iter().filter_map(|thread| thread.join().unwrap()) {
                match told {
                    Ok(()) => assert!(!fails),
                    Err(Error::Poisoned(theirs)) => assert!(fails && Arc::ptr_eq(&theirs, &cause)),
                    Err(other) => panic!("told of something else: {other}"),
                }
            }
        });
    }

    use Waiter::{Deserter, Task, Thread};

    /// Long enough for one look.
    const SPIN: Wait = Wait::Spin(Duration::from_micros(50));

    #[test]
    fn everyone_who_comes_while_a_frame_is_settled_is_told() {
        for fails in [false, true] {
            settled(&[Thread], Wait::Park, fails, None);
            settled(&[Task], Wait::Park, fails, None);
        }
        settled(&[Thread, Thread], Wait::Park, false, None);
        settled(&[Thread, Task], Wait::Park, true, None);
        settled(&[Task, Task], Wait::Park, false, None);
    }

    #[test]
    fn threads_that_nap_and_spin_are_told() {
        for fails in [false, true] {
            // Beside a long write it naps first; a short one it spins through.
            for write_ns in [0, 1_000_000_000] {
                settled_after(write_ns, &[Thread], SPIN, fails, None);
            }
        }
    }

    #[test]
    fn one_who_gives_up_takes_nobody_elses_wake() {
        settled(&[Deserter, Task], Wait::Park, false, None);
        settled(&[Deserter, Thread], Wait::Park, true, None);
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn a_settling_without_its_fence_would_be_found() {
        settled(&[Thread], Wait::Park, false, Some(Mistake::SettleWithoutFence));
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn a_waker_left_without_another_look_would_be_found() {
        settled(&[Task], Wait::Park, false, Some(Mistake::LeaveWithoutLook));
    }

    #[test]
    #[should_panic(expected = "told of something else")]
    fn a_settling_that_publishes_nothing_would_be_found() {
        settled(&[Thread], SPIN, true, Some(Mistake::SettleRelaxed));
    }
}
