//! Restoring a snapshot and replaying what the log has after it comes to the same as replaying everything: for random
//! histories, crashed on a simulated disk at every moment at which it changes, those within a checkpoint, a compaction
//! and a recovery among them.
//!
//! A failure names its seed. `RINGWAL_SEED` begins with it; `RINGWAL_HISTORIES` tries more of them, and
//! `RINGWAL_POINTS` more moments of each.

mod stack;

use ringwal::sim::FaultRates;
use stack::crash::{Tries, crash_each};

#[test]
fn a_crash_at_any_moment_leaves_a_snapshot_and_a_log_that_give_the_state_again() {
    crash_each(&Tries { histories: 3, steps: 30, points: 1000, images: 6 }, 1, |test| test);
}

#[test]
fn lives_that_go_on_after_crashes_and_short_writes_do_too() {
    let rates = FaultRates { short_writes: 6, slow: 6, ..FaultRates::default() };
    crash_each(&Tries { histories: 3, steps: 24, points: 30, images: 3 }, 100, |test| test.lives(3).faults(rates));
}

#[test]
fn lives_in_which_calls_of_the_disk_fail_leave_what_was_answered_and_published() {
    let rates = FaultRates::honest(40);
    crash_each(&Tries { histories: 3, steps: 24, points: 30, images: 3 }, 200, |test| test.lives(3).faults(rates));
}

#[test]
fn a_crash_at_some_moments_of_a_history_that_nobody_has_tried_before_does_no_harm_either() {
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).unwrap();
    let seed = u64::from_le_bytes(seed) >> 16;
    crash_each(&Tries { histories: 1, steps: 60, points: 60, images: 6 }, seed, |test| test.lives(2));
}
