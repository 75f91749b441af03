//! The primitives under a model checker: loom's or shuttle's, and what neither has.
//!
//! Time does not pass here: a wait with a limit ends only when it is woken, so that a lost wake-up is a deadlock and not
//! a delay. Clocks count the times they were looked at, so that the same schedule gives the same run.

use std::cell::Cell;
use std::ops::Sub;
use std::sync::PoisonError;
use std::time::Duration;

#[cfg(ringwal_loom)]
pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic};
#[cfg(ringwal_shuttle)]
pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic};
#[cfg(ringwal_shuttle)]
pub(crate) use shuttle::{thread, thread_local};
#[cfg(ringwal_loom)]
pub(crate) use std::thread_local;

use super::Mistake;
use atomic::{AtomicBool, AtomicU32, Ordering};

/// As [`std::thread`].
#[cfg(ringwal_loom)]
pub(crate) mod thread {
    use std::time::Duration;

    pub(crate) use loom::thread::{Builder, JoinHandle, Thread, current, park, spawn, yield_now};
    pub(crate) use std::thread::panicking;

    pub(crate) fn park_timeout(_: Duration) {
        park();
    }

    pub(crate) fn sleep(_: Duration) {
        yield_now();
    }
}

pub(crate) const SPINS: u32 = 1;

std::thread_local! {
    static PLANTED: Cell<Option<Mistake>> = const { Cell::new(None) };
    static CLOCK: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Whether this mistake is made.
pub(crate) fn planted(mistake: Mistake) -> bool {
    // Both checkers run their threads as coroutines of one real thread.
    PLANTED.get() == Some(mistake)
}

/// Makes this mistake from now on, or none, on this real thread.
pub(crate) fn plant(mistake: Option<Mistake>) {
    PLANTED.set(mistake);
}

/// How much later each look at a clock comes than the one before: few looks fit into a short wait.
const LOOK: Duration = Duration::from_micros(100);

/// As [`std::time::Instant`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Instant(Duration);

impl Instant {
    pub(crate) fn now() -> Instant {
        CLOCK.set(CLOCK.get() + LOOK);
        Instant(CLOCK.get())
    }

    pub(crate) fn elapsed(&self) -> Duration {
        Instant::now() - *self
    }

    pub(crate) fn duration_since(&self, earlier: Instant) -> Duration {
        *self - earlier
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Instant) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// As [`std::sync::OnceLock`], with what it promises to those who see its value and no more.
#[derive(Debug)]
pub(crate) struct OnceLock<T> {
    value: std::sync::OnceLock<T>,
    is_set: AtomicBool,
}

impl<T> OnceLock<T> {
    pub(crate) fn new() -> OnceLock<T> {
        OnceLock { value: std::sync::OnceLock::new(), is_set: AtomicBool::new(false) }
    }

    pub(crate) fn set(&self, value: T) -> Result<(), T> {
        self.value.set(value)?;
        self.is_set.store(true, Ordering::Release);
        Ok(())
    }

    pub(crate) fn get(&self) -> Option<&T> {
        self.value.get().filter(|_| self.is_set.load(Ordering::Acquire))
    }
}

/// As the real one. The kernel looks at the word and lies down to sleep in one step, which wakes take turns with: so does
/// whoever holds the gate here.
#[derive(Debug)]
pub(crate) struct Futex {
    word: AtomicU32,
    gate: Mutex<()>,
    sleepers: Condvar,
}

impl Futex {
    pub(crate) fn new(value: u32) -> Futex {
        Futex { word: AtomicU32::new(value), gate: Mutex::new(()), sleepers: Condvar::new() }
    }

    pub(crate) fn load(&self, order: Ordering) -> u32 {
        self.word.load(order)
    }

    pub(crate) fn store(&self, value: u32, order: Ordering) {
        self.word.store(value, order);
    }

    pub(crate) fn wait(&self, value: u32, limit: Option<Duration>) -> bool {
        if limit.is_some() {
            // A nap: it is over before anything happens.
            return true;
        }
        let gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        if self.word.load(Ordering::Relaxed) == value {
            drop(self.sleepers.wait(gate).unwrap_or_else(PoisonError::into_inner));
        }
        false
    }

    pub(crate) fn wake_all(&self) {
        let _gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.notify_all();
    }
}

/// As the channels of crossbeam, as far as the log uses them.
pub(crate) mod channel {
    use std::collections::VecDeque;
    use std::sync::{Arc, PoisonError};
    use std::time::Duration;

    pub(crate) use crossbeam_channel::{RecvError, RecvTimeoutError, SendError, TryRecvError};

    use super::{Condvar, Mutex, MutexGuard};

    struct Queue<T> {
        messages: VecDeque<T>,
        senders: usize,
        has_receiver: bool,
    }

    struct Channel<T> {
        queue: Mutex<Queue<T>>,
        news: Condvar,
    }

    impl<T> Channel<T> {
        fn queue(&self) -> MutexGuard<'_, Queue<T>> {
            self.queue.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    pub(crate) struct Sender<T>(Arc<Channel<T>>);

    pub(crate) struct Receiver<T>(Arc<Channel<T>>);

    pub(crate) fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
        let queue = Mutex::new(Queue { messages: VecDeque::new(), senders: 1, has_receiver: true });
        let channel = Arc::new(Channel { queue, news: Condvar::new() });
        (Sender(channel.clone()), Receiver(channel))
    }

    /// The log never fills one.
    pub(crate) fn bounded<T>(_: usize) -> (Sender<T>, Receiver<T>) {
        unbounded()
    }

    impl<T> Sender<T> {
        pub(crate) fn send(&self, message: T) -> Result<(), SendError<T>> {
            let mut queue = self.0.queue();
            if !queue.has_receiver {
                return Err(SendError(message));
            }
            queue.messages.push_back(message);
            self.0.news.notify_all();
            Ok(())
        }
    }

    impl<T> Drop for Sender<T> {
        fn drop(&mut self) {
            self.0.queue().senders -= 1;
            self.0.news.notify_all();
        }
    }

    impl<T> Receiver<T> {
        pub(crate) fn is_empty(&self) -> bool {
            self.0.queue().messages.is_empty()
        }

        pub(crate) fn try_recv(&self) -> Result<T, TryRecvError> {
            self.0.queue().messages.pop_front().ok_or(TryRecvError::Empty)
        }

        pub(crate) fn recv(&self) -> Result<T, RecvError> {
            let mut queue = self.0.queue();
            loop {
                match queue.messages.pop_front() {
                    Some(message) => return Ok(message),
                    None if queue.senders == 0 => return Err(RecvError),
                    None => queue = self.0.news.wait(queue).unwrap_or_else(PoisonError::into_inner),
                }
            }
        }

        pub(crate) fn recv_timeout(&self, _: Duration) -> Result<T, RecvTimeoutError> {
            self.recv().map_err(|RecvError| RecvTimeoutError::Disconnected)
        }

        pub(crate) fn iter(&self) -> impl Iterator<Item = T> {
            std::iter::from_fn(|| self.recv().ok())
        }
    }

    impl<T> Drop for Receiver<T> {
        fn drop(&mut self) {
            let mut queue = self.0.queue();
            queue.has_receiver = false;
            let left = std::mem::take(&mut queue.messages);
            drop(queue);
            drop(left);
        }
    }
}
