//! The alarm of the real drivers: ends a driver's sleep, wherever it sleeps.
//!
//! A driver sleeps in one of two ways: parked, when nothing is in flight and only the alarm can end the wait; or inside
//! its runtime, when completions can end it too. The state says which, so that a ring wakes the right sleeper, and one
//! that finds nobody asleep costs a single atomic operation.
//!
//! Invariant: a ring is never lost. It either finds the sleeper's state and wakes it, or leaves [`RUNG`] behind, and
//! no sleep begins over that.

use std::sync::{Arc, PoisonError};
use std::task::Waker;
use std::time::Duration;

use super::Alarm;
use crate::sync::atomic::{AtomicU8, Ordering};
use crate::sync::thread::{self, Thread};
use crate::sync::{Instant, Mistake, Mutex, planted};

/// Nobody sleeps and nobody rang.
const QUIET: u8 = 0;
/// The driver's thread is parked.
const PARKED: u8 = 1;
/// The driver's thread sleeps in its runtime; the waker ends that.
const IN_RUNTIME: u8 = 2;
/// Somebody rang since the last wait ended.
const RUNG: u8 = 3;

/// The alarm of a driver that lives on one thread.
pub(crate) struct Bell {
    state: AtomicU8,
    thread: Thread,
    waker: Mutex<Option<Waker>>,
}

impl Bell {
    /// The bell of a driver on this thread.
    pub(crate) fn of_this_thread() -> Arc<Bell> {
        Arc::new(Bell { state: AtomicU8::new(QUIET), thread: thread::current(), waker: Mutex::new(None) })
    }

    /// Parks the driver's thread until somebody rings, or rang since the last wait, or the time is over.
    pub(crate) fn park(&self, limit: Duration) {
        debug_assert_eq!(thread::current().id(), self.thread.id());
        if planted(Mistake::ParkOverRing) {
            self.state.store(PARKED, Ordering::Release);
        }
        if planted(Mistake::ParkOverRing) || self.change(QUIET, PARKED).is_ok() {
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
    pub(crate) fn listen(&self, waker: &Waker) -> bool {
        let too_early = planted(Mistake::ListenBeforeWaker).then(|| self.change(QUIET, IN_RUNTIME));
        // The waker stands before the state does: whoever sees the state finds the waker.
        let mut slot = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
        if !slot.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
        drop(slot);
        matches!(too_early.unwrap_or_else(|| self.change(QUIET, IN_RUNTIME)), Err(RUNG))
    }

    /// Ends a wait: takes back the sleeper's state, and tells whether somebody rang.
    pub(crate) fn silence(&self) -> bool {
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

/// Every interleaving of a driver that sleeps and of threads that ring it.
#[cfg(all(test, ringwal_loom))]
mod loom_models {
    use std::task::Wake;

    use super::*;
    use crate::sync::atomic::AtomicU32;
    use crate::sync::{plant, thread};

    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    /// Where a driver sleeps.
    #[derive(Clone, Copy)]
    enum Bed {
        Parked,
        Runtime,
    }

    impl Bed {
        /// One wait, as a driver's poll does it.
        fn sleep(self, bell: &Bell) {
            match self {
                Bed::Parked => bell.park(Duration::from_secs(1)),
                Bed::Runtime => {
                    // A runtime polls once more whenever its waker was used.
                    let waker = Waker::from(Arc::new(Unpark(thread::current())));
                    while !bell.listen(&waker) {
                        thread::park();
                    }
                    bell.silence();
                }
            }
        }
    }

    /// Threads put down work and ring; the driver sleeps until it has seen all of it. A ring that is lost is a deadlock.
    fn work_arrives(beds: &'static [Bed], ringers: u32, mistake: Option<Mistake>) {
        loom::model(move || {
            plant(mistake);
            let (bell, work) = (Bell::of_this_thread(), Arc::new(AtomicU32::new(0)));
            for _ in 0..ringers {
                let (bell, work) = (bell.clone(), work.clone());
                thread::spawn(move || {
                    // Nothing but the ring makes it known.
                    work.fetch_add(1, Ordering::Relaxed);
                    bell.ring();
                });
            }
            let mut beds = beds.iter().cycle();
            while work.load(Ordering::Relaxed) < ringers {
                beds.next().unwrap().sleep(&bell);
            }
        });
    }

    #[test]
    fn no_ring_is_lost_wherever_the_driver_sleeps() {
        work_arrives(&[Bed::Parked], 2, None);
        work_arrives(&[Bed::Runtime], 2, None);
        work_arrives(&[Bed::Runtime, Bed::Parked], 2, None);
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn a_bell_that_parks_over_a_ring_would_be_found() {
        work_arrives(&[Bed::Parked], 1, Some(Mistake::ParkOverRing));
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn a_bell_that_listens_before_its_waker_stands_would_be_found() {
        work_arrives(&[Bed::Runtime], 1, Some(Mistake::ListenBeforeWaker));
    }
}
