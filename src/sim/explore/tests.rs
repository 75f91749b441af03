//! The explorer at work: it finds nothing in the log as it is, and every mistake that is planted in it.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Instant;

use super::*;
use crate::plant::{self, Plant};
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
    let Summary { read_only_looks, failing_recoveries, lied_to, without_indexes, stale_indexes, .. } = *summary;
    let Summary { failed_recoveries, lies_noticed, failing_housekeeping, short_writes, reads, .. } = *summary;
    assert!([read_only_looks, failing_recoveries, lied_to].iter().all(|&count| count > 1000), "{summary:#?}");
    assert!([without_indexes, stale_indexes, failed_recoveries, lies_noticed].iter().all(|&count| count > 100));
    assert!([failing_housekeeping, short_writes, reads].iter().all(|&count| count > 50));
    assert!(summary.relieved > 2 && summary.exhausted > 3 && summary.exhausted_images > 500);
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

/// A test for each mistake, and none without a test.
macro_rules! finds {
    ($($test:ident: $plant:ident,)*) => {
        $(#[test]
        fn $test() {
            finds(Plant::$plant);
        })*

        /// Does not compile where a mistake has no test.
        #[allow(dead_code, reason = "only its completeness counts")]
        fn has_test(plant: Plant) {
            match plant {
                $(Plant::$plant => {})*
                // These have a list of their own, as complete.
                Plant::Stack(_) => {}
            }
        }
    };
}

finds! {
    // Format.
    it_can_fail_salt_left_out: SaltLeftOut,
    it_can_fail_payloads_not_verified: PayloadsNotVerified,
    it_can_fail_base_without_hard_state: BaseWithoutHardState,
    it_can_fail_stale_index_taken: StaleIndexTaken,
    it_can_fail_no_watermark: NoWatermark,
    it_can_fail_watermark_ahead: WatermarkAhead,
    // Recovery.
    it_can_fail_neither_chain_nor_epoch: NeitherChainNorEpoch,
    it_can_fail_follow_without_look: FollowWithoutLook,
    it_can_fail_segments_not_locked: SegmentsNotLocked,
    it_can_fail_start_not_proved: StartNotProved,
    it_can_fail_one_block_behind: OneBlockBehind,
    it_can_fail_one_segment_behind: OneSegmentBehind,
    it_can_fail_slot_ignored: SlotIgnored,
    it_can_fail_names_not_synced: NamesNotSynced,
    it_can_fail_kept_not_written_again: KeptNotWrittenAgain,
    it_can_fail_head_written_unread: HeadWrittenUnread,
    it_can_fail_open_frame_not_synced: OpenFrameNotSynced,
    it_can_fail_spares_not_cleared: SparesNotCleared,
    // Space.
    it_can_fail_reserve_not_kept: ReserveNotKept,
    it_can_fail_joins_past_the_end: JoinsPastTheEnd,
    it_can_fail_drop_before_next_base: DropBeforeNextBase,
    it_can_fail_compaction_in_flight_counts: CompactionInFlightCounts,
    // Ranges.
    it_can_fail_truncates_newest_only: TruncatesNewestOnly,
    it_can_fail_drops_by_live: DropsByLive,
    it_can_fail_floor_ignored: FloorIgnored,
    // Acknowledgements.
    it_can_fail_ack_before_completion: AckBeforeCompletion,
    it_can_fail_ack_out_of_order: AckOutOfOrder,
    it_can_fail_sync_covers_later: SyncCoversLater,
    it_can_fail_syncs_newest_only: SyncsNewestOnly,
    it_can_fail_acks_after_poison: AcksAfterPoison,
    it_can_fail_truncation_lowers_nothing: TruncationLowersNothing,
}

#[test]
fn every_subset_of_the_units_of_one_frame_is_a_legal_image() {
    for (units, is_stale, is_unsynced) in [(11, false, false), (9, true, false), (8, false, true), (8, true, true)] {
        let scene = Scene { frames: vec![units], rolls: false, is_stale, is_unsynced };
        // Where frames of an earlier life lie below, their successor's open frame took one unit's place.
        let at_stake = units - usize::from(is_stale);
        exhausts(&scene, 1 << at_stake);
    }
}

#[test]
fn every_combination_of_the_classes_over_three_frames_is_a_legal_image() {
    // Nothing, everything, the first unit alone, and each unit missing.
    let classes = |units: u64| units + 3;
    for is_unsynced in [false, true] {
        let scene = Scene { frames: vec![4, 3, 5], rolls: false, is_stale: false, is_unsynced };
        exhausts(&scene, classes(4) * classes(3) * classes(5));
    }
}

#[test]
fn every_combination_of_the_classes_over_three_frames_and_a_roll_is_a_legal_image() {
    let scene = Scene { frames: vec![4, 3, 5], rolls: true, is_stale: false, is_unsynced: false };
    exhausts(&scene, 7 * 6 * 8);
}

#[test]
fn every_combination_of_the_classes_over_stale_frames_of_a_life_before_is_a_legal_image() {
    for rolls in [false, true] {
        let scene = Scene { frames: vec![5, 3, 4], rolls, is_stale: true, is_unsynced: false };
        exhausts(&scene, 7 * 6 * 7);
    }
}

/// Tries a scene to its end, which has at least so many images.
fn exhausts(scene: &Scene, images: u64) {
    let mut summary = Summary::default();
    let tried = scene.run(7, &mut summary);
    let tried =
        tried.unwrap_or_else(|broken| panic!("{}{}\n{}", broken.trace, broken.finding.place, broken.finding.promise));
    assert_eq!((tried, summary.exhausted_images), (images, images), "{scene:?}");
    assert!(summary.states >= images);
}

#[test]
fn a_failing_history_is_made_short_and_a_replay_gives_the_same_short_one() {
    for (plant, steps_left_max) in [(Plant::KeptNotWrittenAgain, 8), (Plant::SparesNotCleared, 40)] {
        plant::with(plant, || {
            let (seed, broken) = search(1, |_| false, None).expect_err("it never ends otherwise");
            let short = explore(seed, 1).expect_err("the seed breaks the promise again");
            println!("{short}");
            assert_eq!(short.steps, broken.visited.len());
            assert!(short.steps_left <= steps_left_max && short.steps_left < short.steps, "{short}");
            assert!(short.trace.lines().count() > short.steps_left, "{short}");
            assert_eq!(explore(seed, 1).expect_err("and again").to_string(), short.to_string());
        });
    }
}
