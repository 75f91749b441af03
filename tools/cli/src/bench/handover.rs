//! The price of waking: a round trip between two parked threads, which every blocking append pays at least once.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Round trips until the threads are warm.
const DISCARDED: usize = 5;

/// Sends a token to another thread and back for `time`; nanoseconds of each round trip.
pub(crate) fn round_trips_ns(time: Duration) -> Vec<u64> {
    let (ball, here) = (Ball::default(), thread::current());
    thread::scope(|scope| {
        let there = scope.spawn(|| ball.answer(&here));
        let (begin, mut trips) = (Instant::now(), Vec::new());
        while begin.elapsed() < time || trips.len() <= DISCARDED {
            let start = Instant::now();
            ball.serve(there.thread());
            trips.push(start.elapsed().as_nanos() as u64);
        }
        ball.over.store(true, Ordering::Release);
        there.thread().unpark();
        trips.split_off(DISCARDED)
    })
}

/// Counts the hits: even when the server has the ball, odd when the other one has.
#[derive(Default)]
struct Ball {
    hits: AtomicU64,
    over: AtomicBool,
}

impl Ball {
    fn serve(&self, there: &thread::Thread) {
        let mine = self.hits.fetch_add(1, Ordering::AcqRel) + 2;
        there.unpark();
        while self.hits.load(Ordering::Acquire) != mine {
            thread::park();
        }
    }

    fn answer(&self, here: &thread::Thread) {
        while !self.over.load(Ordering::Acquire) {
            if self.hits.load(Ordering::Acquire) % 2 == 1 {
                self.hits.fetch_add(1, Ordering::AcqRel);
                here.unpark();
            } else {
                thread::park();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_trip_takes_time() {
        let trips = round_trips_ns(Duration::from_millis(2));
        assert!(!trips.is_empty() && trips.iter().all(|&ns| ns > 0));
    }
}
