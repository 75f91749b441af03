//! The explorer at work: it finds nothing in the log as it is, and every mistake that is planted in it.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Instant;

use super::*;
use crate::engine::plant::{self, Plant};
use crate::sim::{LocalLog, Mode};
use crate::{Error, Log};

/// A number from the environment.
fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// A seed that was never used before, unless the environment names one.
fn fresh_seed() -> u64 {
    setting("RINGWAL_SEED").unwrap_or_else(|| {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    })
}

fn explore_and_tell(seed: u64, states: u64) -> Summary {
    let states = setting("RINGWAL_STATES").unwrap_or(states);
    println!("explores {states} states from seed {seed}");
    let began = Instant::now();
    let threaded = Threaded::default();
    let summary = explore_with(seed, states, &threaded).unwrap_or_else(|violation| panic!("{violation}"));
    assert!(summary.real_checks >= states / 1000 - 1, "one state in a thousand is opened with threads");
    println!("{} opens on a real directory", threaded.on_a_real_directory.get());
    println!("{summary:#?}\n{:.0} states a second", summary.states as f64 / began.elapsed().as_secs_f64());
    summary
}

/// Many states prove little if nothing happened in them.
fn check_is_interesting(summary: &Summary) {
    let Summary { rolls, sealed, dropped, recycled, marks, refused, truncations_across, .. } = *summary;
    let Summary { several_in_flight, rolling_in_flight, in_flight_max, cuts, rewrites, clean_opens, .. } = *summary;
    let Summary { crash_points_in_recovery, kills, kills_with_queued_writes, poisoned, damage_noticed, .. } = *summary;
    let Summary { torn_absent, torn_head, torn_tail, torn_one_missing, torn_scattered, torn_whole, .. } = *summary;
    assert!([rolls, sealed, dropped, recycled, marks, refused].iter().all(|&count| count > 20), "{summary:#?}");
    assert!([truncations_across, several_in_flight, rolling_in_flight].iter().all(|&count| count > 20));
    assert!([cuts, rewrites, clean_opens, crash_points_in_recovery, kills].iter().all(|&count| count > 1000));
    assert!(kills_with_queued_writes > 100 && poisoned > 5 && damage_noticed > 1000 && in_flight_max >= 3);
    let classes = [torn_absent, torn_head, torn_tail, torn_one_missing, torn_scattered, torn_whole];
    assert!(classes.iter().all(|&count| count > 500));
}

#[test]
fn no_crash_breaks_a_promise_from_a_fixed_seed() {
    let summary = explore_and_tell(1, 100_000);
    if summary.states >= 100_000 {
        check_is_interesting(&summary);
    }
}

/// Opens a state with the log's own threads: on the simulated disk, and on a real directory where its blocks are
/// large enough for one.
#[derive(Default)]
struct Threaded {
    on_a_real_directory: Cell<u64>,
}

fn look(log: &Log, expected: &Contents) -> Result<(), String> {
    let entries: Result<Vec<_>, _> = log.iter(..).collect();
    let found = (entries.map_err(|error| error.to_string())?, log.state().compacted, log.meta());
    let meta: Vec<_> = expected.hard_state.clone().into_iter().collect();
    let wanted = (expected.entries.clone(), expected.compacted, meta);
    if found == wanted { Ok(()) } else { Err(format!("{found:?} instead of {wanted:?}")) }
}

impl RealCheck for Threaded {
    fn check(&self, image: &SimDisk, config: &Config, expected: &Contents) -> Result<bool, String> {
        let scratch = tempfile::tempdir().map_err(|error| error.to_string())?;
        image.export_to(scratch.path()).map_err(|error| error.to_string())?;
        match Log::open(scratch.path(), config.clone()) {
            Ok((log, _)) => {
                look(&log, expected)?;
                self.on_a_real_directory.set(self.on_a_real_directory.get() + 1);
            }
            Err(Error::Config(_)) => {}
            Err(error) => return Err(error.to_string()),
        }
        image.set_mode(Mode::Random);
        let (log, _) = Log::open_on(Arc::new(image.clone()), config.clone()).map_err(|error| error.to_string())?;
        look(&log, expected).map(|()| true)
    }
}

/// Opens what it is given once more in this thread, and counts.
struct Again(Cell<u64>);

impl RealCheck for Again {
    fn check(&self, image: &SimDisk, config: &Config, expected: &Contents) -> Result<bool, String> {
        self.0.set(self.0.get() + 1);
        let log = LocalLog::open(image, config.clone(), 1).map_err(|error| error.to_string())?;
        let found = log.contents().map_err(|error| error.to_string())?;
        if found == *expected { Ok(self.0.get().is_multiple_of(2)) } else { Err(format!("{found:?}")) }
    }
}

#[test]
fn one_state_in_a_thousand_is_opened_by_the_real_check_too() {
    let again = Again(Cell::new(0));
    let summary = explore_with(3, 5_000, &again).unwrap_or_else(|violation| panic!("{violation}"));
    assert!((3..6).contains(&summary.real_checks), "{}", summary.real_checks);
    assert_eq!(again.0.get(), 2 * summary.real_checks, "a state that was passed over is made up for");
}

#[test]
fn no_crash_breaks_a_promise_from_a_new_seed() {
    explore_and_tell(fresh_seed(), 100_000);
}

/// Explores with a planted mistake until it is found.
fn finds(plant: Plant) {
    let began = Instant::now();
    let found = plant::with(plant, || search(1, |_| began.elapsed().as_secs() >= 60, None));
    let (seed, broken) = found.expect_err("the explorer does not find the planted mistake");
    println!("{plant:?} is found after {:?}, in history {seed}: {}", began.elapsed(), broken.finding.promise);
    let again = plant::with(plant, || search(seed, |summary| summary.states > 0, None));
    let (_, again) = again.expect_err("a violation's seed replays it");
    assert_eq!((&again.finding.promise, &again.finding.place), (&broken.finding.promise, &broken.finding.place));
    assert!(explore(seed, 1).is_ok(), "without the mistake the same history holds");
}

#[test]
fn it_can_fail_ack_before_completion() {
    finds(Plant::AckBeforeCompletion);
}

#[test]
fn it_can_fail_ack_out_of_order() {
    finds(Plant::AckOutOfOrder);
}

#[test]
fn it_can_fail_neither_chain_nor_epoch() {
    finds(Plant::NeitherChainNorEpoch);
}

#[test]
fn it_can_fail_no_watermark() {
    finds(Plant::NoWatermark);
}

#[test]
fn it_can_fail_drop_before_next_base() {
    finds(Plant::DropBeforeNextBase);
}

#[test]
fn it_can_fail_follow_without_look() {
    finds(Plant::FollowWithoutLook);
}
