//! The alarm of the real drivers: ends a driver's sleep, wherever it sleeps.
//!
//! A driver sleeps in one of two ways: parked, when nothing is in flight and only the alarm can end the wait; or inside
//! its runtime, when completions can end it too. The state says which, so that a ring wakes the right sleeper, and one
//! that finds nobody asleep costs a single atomic operation.
//!
//! Invariant: a ring is never lost. It either finds the sleeper's state and wakes it, or leaves [`RUNG`] behind, and
//! no sleep begins over that.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use super::Alarm;

/// Nobody sleeps and nobody rang.
const QUIET: u8 = 0;
/// The driver's thread is parked.
const PARKED: u8 = 1;
/// The driver's thread sleeps in its runtime; the waker ends that.
const IN_RUNTIME: u8 = 2;
/// Somebody rang since the last wait ended.
const RUNG: u8 = 3;

/// The alarm of a driver that lives on one thread.
pub(super) struct Bell {
    state: AtomicU8,
    thread: Thread,
    waker: Mutex<Option<Waker>>,
}

impl Bell {
    /// The bell of a driver on this thread.
    pub(super) fn of_this_thread() -> Arc<Bell> {
        Arc::new(Bell { state: AtomicU8::new(QUIET), thread: thread::current(), waker: Mutex::new(None) })
    }

    /// Parks the driver's thread until somebody rings, or rang since the last wait, or the time is over.
    pub(super) fn park(&self, limit: Duration) {
        debug_assert_eq!(thread::current().id(), self.thread.id());
        if self.change(QUIET, PARKED).is_ok() {
            let start = Instant::now();
            // Parking may end for no reason: only the state and the clock count.
            while self.state.load(Ordering::Acquire) == PARKED {
                let left = limit.saturating_sub(start.elapsed());
                if left.is_zero() {
                    break;
                }
                thread::park_timeout(left);
            }
        }
        self.silence();
    }

    /// Says that the driver is about to sleep in its runtime and is woken by `waker`. Returns whether somebody rang
    /// already, in which case it must not sleep.
    pub(super) fn listen(&self, waker: &Waker) -> bool {
        // The waker stands before the state does: whoever sees the state finds the waker.
        let mut slot = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
        if !slot.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
        drop(slot);
        matches!(self.change(QUIET, IN_RUNTIME), Err(RUNG))
    }

    /// Ends a wait: takes back the sleeper's state, and tells whether somebody rang.
    pub(super) fn silence(&self) -> bool {
        self.state.swap(QUIET, Ordering::AcqRel) == RUNG
    }

    fn change(&self, from: u8, to: u8) -> Result<u8, u8> {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
    }
}

impl Alarm for Bell {
    fn ring(&self) {
        match self.state.swap(RUNG, Ordering::AcqRel) {
            PARKED => self.thread.unpark(),
            IN_RUNTIME => {
                let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_ring_wakes_the_runtime_once_and_only_while_it_listens() {
        let (bell, count) = (Bell::of_this_thread(), Arc::new(Count(AtomicUsize::new(0))));
        let waker = Waker::from(Arc::clone(&count));
        assert!(!bell.listen(&waker));
        bell.ring();
        bell.ring();
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(bell.listen(&waker), "a ring is seen before the next sleep");
        assert!(bell.silence());
        bell.ring();
        assert_eq!(count.0.load(Ordering::SeqCst), 1, "nobody listened");
        assert!(bell.listen(&waker));
    }

    #[test]
    fn a_ring_before_the_park_ends_it_at_once_and_only_that_one() {
        let bell = Bell::of_this_thread();
        bell.ring();
        let start = Instant::now();
        bell.park(Duration::from_secs(60));
        assert!(start.elapsed() < Duration::from_secs(30));
        let start = Instant::now();
        bell.park(Duration::from_millis(20));
        assert!(start.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn no_ring_is_lost_between_two_threads() {
        let bell = Bell::of_this_thread();
        let (there, rounds) = (Arc::clone(&bell), 2000);
        let (send, receive) = std::sync::mpsc::sync_channel(0);
        let ringer = thread::spawn(move || {
            for _ in 0..rounds {
                there.ring();
                send.send(()).expect("the other side counts all rounds");
            }
        });
        for _ in 0..rounds {
            let start = Instant::now();
            bell.park(Duration::from_secs(60));
            assert!(start.elapsed() < Duration::from_secs(30), "a ring was lost");
            receive.recv().expect("the ringer sends one message a round");
        }
        ringer.join().expect("the ringer does not panic");
    }
}
