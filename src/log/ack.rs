//! Tickets: how the callers that share a frame learn its fate, with one wake for all of them.
//!
//! Every frame has one ticket. Blocking waiters sleep on its futex word, so that one system call wakes them all; tasks
//! leave a waker. A ticket is settled once and stays so. It belongs to a frame number, never to an index: after a
//! truncation the same index means another entry.
//!
//! Does not know why a frame failed: the log keeps the first cause.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use rustix::thread::futex;

use crate::config::Wait;

const WAITING: u32 = 0;
const DONE: u32 = 1;
const FAILED: u32 = 2;

/// How a frame ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Acknowledged,
    /// Unknown until the log is opened again.
    Failed,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Ticket {
    state: AtomicU32,
    /// Whether a thread sleeps, or is about to: without one, settling costs no system call.
    sleepers: AtomicU32,
    /// When it was settled, for the first waiter that comes round, in nanoseconds of the log's clock; 0 once taken.
    settled_ns: AtomicU64,
    wakers: Mutex<Vec<Waker>>,
}

impl Ticket {
    pub(crate) fn fate(&self) -> Option<Fate> {
        match self.state.load(Ordering::Acquire) {
            WAITING => None,
            DONE => Some(Fate::Acknowledged),
            _ => Some(Fate::Failed),
        }
    }

    /// Settles the ticket and wakes everyone who waits for it.
    pub(crate) fn settle(&self, fate: Fate, now_ns: u64) {
        self.settled_ns.store(now_ns, Ordering::Relaxed);
        let state = if fate == Fate::Acknowledged { DONE } else { FAILED };
        // SeqCst pairs with the waiter's: either it sees the state, or this sees the sleeper.
        self.state.store(state, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            let _ = futex::wake(&self.state, futex::Flags::PRIVATE, i32::MAX as u32);
        }
        let wakers = std::mem::take(&mut *self.wakers.lock().unwrap_or_else(PoisonError::into_inner));
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Blocks until the ticket is settled.
    pub(crate) fn wait(&self, how: Wait) -> Fate {
        if let Wait::Spin(limit) = how
            && let Some(fate) = self.spin(limit)
        {
            return fate;
        }
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        loop {
            if let Some(fate) = self.fate_seq_cst() {
                return fate;
            }
            // EINTR and EAGAIN mean: look again.
            let _ = futex::wait(&self.state, futex::Flags::PRIVATE, WAITING, None);
        }
    }

    fn fate_seq_cst(&self) -> Option<Fate> {
        match self.state.load(Ordering::SeqCst) {
            WAITING => None,
            _ => self.fate(),
        }
    }

    fn spin(&self, limit: Duration) -> Option<Fate> {
        let start = Instant::now();
        loop {
            for _ in 0..64 {
                if let Some(fate) = self.fate() {
                    return Some(fate);
                }
                std::hint::spin_loop();
            }
            if start.elapsed() >= limit {
                return None;
            }
        }
    }

    /// Polls for the fate, leaving the waker behind if it is not known yet.
    pub(crate) fn poll(&self, waker: &Waker) -> Poll<Fate> {
        if let Some(fate) = self.fate() {
            return Poll::Ready(fate);
        }
        {
            let mut wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
            if !wakers.iter().any(|known| known.will_wake(waker)) {
                wakers.push(waker.clone());
            }
        }
        // Settled between the look and the push: the settling thread may have missed the waker.
        self.fate().map_or(Poll::Pending, Poll::Ready)
    }

    /// When the ticket was settled, once: the first waiter measures the wake for the whole frame.
    pub(crate) fn take_settled_ns(&self) -> Option<u64> {
        Some(self.settled_ns.swap(0, Ordering::Relaxed)).filter(|&ns| ns > 0)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    #[test]
    fn one_settling_wakes_every_thread_and_task() {
        let ticket = Arc::new(Ticket::default());
        let waiting: Vec<_> = (0..8)
            .map(|nth| {
                let ticket = ticket.clone();
                let how = if nth % 2 == 0 { Wait::Park } else { Wait::Spin(Duration::from_micros(20)) };
                thread::spawn(move || match nth {
                    7 => crate::block_on::block_on(std::future::poll_fn(|context| ticket.poll(context.waker()))),
                    _ => ticket.wait(how),
                })
            })
            .collect();
        thread::sleep(Duration::from_millis(20));
        ticket.settle(Fate::Acknowledged, 5);
        for thread in waiting {
            assert_eq!(thread.join().unwrap(), Fate::Acknowledged);
        }
        assert_eq!((ticket.take_settled_ns(), ticket.take_settled_ns()), (Some(5), None));
    }

    #[test]
    fn a_settled_ticket_answers_at_once() {
        let ticket = Ticket::default();
        ticket.settle(Fate::Failed, 1);
        assert_eq!(ticket.wait(Wait::Park), Fate::Failed);
        assert_eq!(ticket.poll(Waker::noop()), Poll::Ready(Fate::Failed));
    }
}
