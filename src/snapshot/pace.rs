//! How much of the disk's time a snapshot takes.
//!
//! A log that writes beside it waits for the disk a hundred times for each second's worth of a snapshot, and a disk that has
//! megabytes to write answers nobody else meanwhile: at full speed a snapshot makes the slowest of the log's writes ten
//! times as slow. So whoever is in no hurry does a small piece, and then leaves the disk alone for three times as long as that
//! took: the disk's own time is the measure, so a slow disk is given more rest. Pieces of 128 KiB cost the log nothing that
//! can be measured; of 1 MiB they do.
//!
//! Does not know what is read or written, nor who else wants the disk.

use std::thread;
use std::time::{Duration, Instant};

/// One part in so many of the disk's time is taken.
const PARTS: u32 = 4;

/// Below this no rest is worth a sleep: it is added to the next one.
const REST_MIN: Duration = Duration::from_micros(100);

/// What takes longer than this counts as this long: a disk that hung has been left alone for long enough.
const TOOK_MAX: Duration = Duration::from_millis(25);

/// The pace of one of several threads that share the disk's time.
#[derive(Debug)]
pub(super) struct Pace {
    /// Rests for so many times as long as it works; 0 for full speed.
    rests: u32,
    owed: Duration,
}

impl Pace {
    /// For one of `threads`, in no hurry or in one.
    pub(super) fn new(is_gentle: bool, threads: usize) -> Pace {
        let rests = PARTS * u32::try_from(threads.max(1)).unwrap_or(u32::MAX / PARTS) - 1;
        Pace { rests: if is_gentle { rests } else { 0 }, owed: Duration::ZERO }
    }

    /// Does a piece of work with the disk, and then rests.
    pub(super) fn work<T>(&mut self, piece: impl FnOnce() -> T) -> T {
        if self.rests == 0 {
            return piece();
        }
        let began = Instant::now();
        let outcome = piece();
        self.owed += began.elapsed().min(TOOK_MAX) * self.rests;
        if self.owed >= REST_MIN {
            thread::sleep(std::mem::take(&mut self.owed));
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long so many pieces of 2 ms took.
    fn took(mut pace: Pace, pieces: u32) -> Duration {
        let began = Instant::now();
        (0..pieces).for_each(|_| pace.work(|| thread::sleep(Duration::from_millis(2))));
        began.elapsed()
    }

    #[test]
    fn whoever_is_in_no_hurry_rests_for_as_many_parts_as_are_others() {
        assert!(took(Pace::new(true, 1), 3) >= Duration::from_millis(3 * 8));
        assert!(took(Pace::new(true, 2), 2) >= Duration::from_millis(2 * 16));
    }

    #[test]
    fn rests_are_owed_only_by_who_is_gentle_and_the_smallest_are_put_together() {
        let (mut hurried, mut gentle) = (Pace::new(false, 1), Pace::new(true, 1));
        hurried.work(|| thread::sleep(Duration::from_millis(2)));
        assert_eq!(hurried.owed, Duration::ZERO);
        gentle.owed = Duration::from_micros(1);
        gentle.work(|| {});
        // Either it was added to what is owed, or slept off with it where this thread was kept from running.
        assert!(gentle.owed == Duration::ZERO || gentle.owed > Duration::from_micros(1));
    }
}
