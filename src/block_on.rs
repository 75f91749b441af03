//! Drives one future on this thread: no runtime, no dependency. The thread sleeps until it is woken.
//!
//! Whether there was a wake is noted for each future by itself: a thread has one token to be unparked by, and whoever
//! parks inside of a poll, such as another call from here, takes it.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
// Not one that the model checkers stand in for: with loom's, a thread may be switched away between the look at it and the
// park, and loom then finds deadlocks that the token of a real thread rules out.
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use crate::sync::thread::{self, Thread};

struct Unpark {
    thread: Thread,
    is_woken: AtomicBool,
}

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.is_woken.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

/// Waits for the future's value.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let unpark = Arc::new(Unpark { thread: thread::current(), is_woken: AtomicBool::new(false) });
    let waker = Waker::from(unpark.clone());
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(value) => return value,
            // A wake between poll and park is not lost: it leaves a token that lets `park` return at once.
            Poll::Pending => {
                while !unpark.is_woken.swap(false, Ordering::Acquire) {
                    thread::park();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks to be polled again, once.
    fn again() -> impl Future<Output = ()> {
        let mut is_first = true;
        std::future::poll_fn(move |context| {
            context.waker().wake_by_ref();
            if std::mem::take(&mut is_first) { Poll::Pending } else { Poll::Ready(()) }
        })
    }

    #[test]
    fn a_wake_is_not_taken_by_another_wait_inside_of_the_poll() {
        let (is_over, over) = std::sync::mpsc::channel();
        // It would wait for ever, which must not be this thread's matter.
        std::thread::spawn(move || {
            let mut is_first = true;
            block_on(std::future::poll_fn(move |context| {
                context.waker().wake_by_ref();
                block_on(again());
                if std::mem::take(&mut is_first) { Poll::Pending } else { Poll::Ready(()) }
            }));
            is_over.send(()).unwrap();
        });
        over.recv_timeout(std::time::Duration::from_secs(60)).expect("the wake was lost");
    }

    #[test]
    fn a_wake_from_another_thread_ends_the_wait() {
        let mut polls = 0;
        let value = block_on(std::future::poll_fn(|context| {
            polls += 1;
            if polls == 3 {
                return Poll::Ready(polls);
            }
            let waker = context.waker().clone();
            thread::spawn(move || waker.wake());
            Poll::Pending
        }));
        assert_eq!(value, 3);
    }
}
