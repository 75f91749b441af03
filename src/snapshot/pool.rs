//! A few threads that work on numbered jobs side by side, and whoever takes the results in the jobs' order.
//!
//! Invariants: a job that was given in comes out again, also when the work on it panics, so nobody waits for one that
//! is lost; no thread outlives its [`Threads`]; a job that nobody wants any more is dropped. The threads end when the
//! senders of jobs are gone, or whoever took the results. Memory is bounded by whoever makes the jobs: they are made
//! once and go round.
//!
//! Does not know what the work is. These threads are not the log's: nothing of the log waits for them, so they meet
//! through the standard library and not through what the model checkers stand in for.

use std::io;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::priority::step_back;

/// A job, with room for its outcome.
pub(super) trait Job: Send + 'static {
    /// Jobs come out in this order: 0, 1, 2 and so on from the first that was given in.
    fn number(&self) -> u64;
}

/// Threads that are waited for when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Threads(Vec<JoinHandle<()>>);

impl Drop for Threads {
    fn drop(&mut self) {
        for thread in self.0.drain(..) {
            // A panic was told by the job it happened in.
            let _ = thread.join();
        }
    }
}

/// Starts one thread for each of `workers`, which does its part on the jobs that come. Dropping the sender ends them.
pub(super) fn start<J: Job, W: FnMut(&mut J) + Send + 'static>(
    name: &str,
    low_priority: bool,
    workers: impl IntoIterator<Item = W>,
) -> io::Result<(Sender<J>, InOrder<J>, Threads)> {
    // Made first and so dropped last: where one more thread cannot be started, those that run are waited for only when the
    // sender of their jobs is gone.
    let mut threads = Threads::default();
    let (jobs_in, jobs) = unbounded();
    let (done_in, done) = unbounded();
    for worker in workers {
        let (jobs, done) = (jobs.clone(), done_in.clone());
        threads.0.push(spawn(name, low_priority, move || run(worker, &jobs, &done))?);
    }
    Ok((jobs_in, InOrder { done, next: None, early: Vec::new() }, threads))
}

/// Starts a thread, at the lowest priority where that is asked for.
pub(super) fn spawn<T: Send + 'static>(
    name: &str,
    low_priority: bool,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        if low_priority {
            yield_to_all();
        }
        body()
    })
}

/// Every other thread goes first.
fn yield_to_all() {
    if let Err(error) = step_back() {
        tracing::debug!(%error, "a snapshot's thread keeps its priority");
    }
}

fn run<J: Job>(mut worker: impl FnMut(&mut J), jobs: &Receiver<J>, done: &Sender<J>) {
    for job in jobs {
        let mut returned = Returned { job: Some(job), done };
        if let Some(job) = returned.job.as_mut() {
            worker(job);
        }
        if returned.give_back().is_err() {
            return;
        }
    }
}

/// A job under way: it comes back also from a panic.
struct Returned<'a, J: Job> {
    job: Option<J>,
    done: &'a Sender<J>,
}

impl<J: Job> Returned<'_, J> {
    /// Fails where nobody takes results any more.
    fn give_back(&mut self) -> Result<(), ()> {
        self.job.take().map_or(Ok(()), |job| self.done.send(job)).map_err(drop)
    }
}

impl<J: Job> Drop for Returned<'_, J> {
    fn drop(&mut self) {
        let _ = self.give_back();
    }
}

/// Takes jobs that are done, in their order.
#[derive(Debug)]
pub(super) struct InOrder<J> {
    done: Receiver<J>,
    next: Option<u64>,
    early: Vec<J>,
}

impl<J: Job> InOrder<J> {
    /// Begins with another number than 0.
    pub(super) fn starting_at(mut self, number: u64) -> InOrder<J> {
        self.next = Some(number);
        self
    }

    /// The next job in order; `None` once no more can come.
    pub(super) fn next(&mut self) -> Option<J> {
        let wanted = self.next.unwrap_or(0);
        let job = loop {
            if let Some(at) = self.early.iter().position(|job| job.number() == wanted) {
                break self.early.swap_remove(at);
            }
            self.early.push(self.done.recv().ok()?);
        };
        self.next = Some(wanted + 1);
        Some(job)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    struct Square {
        number: u64,
        square: Option<u64>,
    }

    impl Job for Square {
        fn number(&self) -> u64 {
            self.number
        }
    }

    fn square(job: &mut Square) {
        // The later ones are done first.
        thread::sleep(Duration::from_micros(500 * (4 - job.number % 4)));
        assert_ne!(job.number, 7, "planted");
        job.square = Some(job.number * job.number);
    }

    #[test]
    fn jobs_come_out_in_order_and_those_that_panic_come_out_undone() {
        let (jobs, mut done, threads) = start("test", true, [square; 3]).unwrap();
        (0..20).for_each(|number| jobs.send(Square { number, square: None }).unwrap());
        drop(jobs);
        for number in 0..20 {
            let job = done.next().unwrap();
            assert_eq!((job.number, job.square), (number, (number != 7).then_some(number * number)));
        }
        assert!(done.next().is_none());
        drop(threads);
    }

    #[test]
    fn a_thread_that_cannot_be_started_leaves_none_that_waits_for_ever() {
        let workers = [0, 1].into_iter().map(|number| {
            assert_eq!(number, 0, "planted: the second worker cannot be had");
            square
        });
        let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| start("test", false, workers).map(drop)));
        assert!(failed.is_err(), "and this returned at all");
    }

    #[test]
    fn threads_end_when_nobody_takes_what_they_do() {
        let (jobs, done, threads) = start("test", false, [square; 2]).unwrap();
        (0..100).for_each(|number| jobs.send(Square { number: 4 * number, square: None }).unwrap());
        drop(done);
        drop(threads);
        assert!(jobs.send(Square { number: 0, square: None }).is_err(), "no thread is left");
    }
}
