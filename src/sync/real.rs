//! The standard library's primitives, and a futex.

pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic};
pub(crate) use std::time::Instant;
pub(crate) use std::{thread, thread_local};

pub(crate) use crossbeam_channel as channel;

use atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::thread::{Timespec, futex};

/// So often a spinning thread looks before it lets others have its CPU.
pub(crate) const SPINS: u32 = 64;

/// A word that threads sleep on until it changes: one system call wakes all of them.
#[derive(Debug)]
pub(crate) struct Futex(AtomicU32);

impl Futex {
    pub(crate) fn new(value: u32) -> Futex {
        Futex(AtomicU32::new(value))
    }

    pub(crate) fn load(&self, order: Ordering) -> u32 {
        self.0.load(order)
    }

    pub(crate) fn store(&self, value: u32, order: Ordering) {
        self.0.store(value, order);
    }

    /// Sleeps if the word still has this value, until it is woken or for about so long, less than a second; it may wake
    /// for no reason. Returns whether the time is over.
    pub(crate) fn wait(&self, value: u32, limit: Option<Duration>) -> bool {
        let limit = limit.map(|limit| Timespec { tv_sec: 0, tv_nsec: limit.as_nanos().min(999_999_999) as i64 });
        let slept = futex::wait(&self.0, futex::Flags::PRIVATE, value, limit.as_ref());
        // EINTR and EAGAIN mean: look again.
        slept == Err(rustix::io::Errno::TIMEDOUT)
    }

    /// Wakes all who sleep.
    pub(crate) fn wake_all(&self) {
        let _ = futex::wake(&self.0, futex::Flags::PRIVATE, i32::MAX as u32);
    }
}
