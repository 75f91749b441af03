//! Mistakes in what stands on the log, planted: the tests of the whole stack, which are in `tests/stack`, find each.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

#[path = "../../tests/stack/mod.rs"]
mod stack;

use stack::crash::{Tries, crash};
use stack::judge::{Settings, check};
use stack::scene;

use crate::plant::{self, StackPlant};

/// Histories that are crashed until a mistake shows.
const HISTORIES: u64 = 40;
const TRIES: Tries = Tries { histories: HISTORIES, steps: 24, points: 80, images: 8 };

/// Crashes histories until the mistake is found.
fn by_crashes(plant: StackPlant) {
    by_crashes_from(1, plant);
}

/// As [`by_crashes`], where those before the first cannot show it.
fn by_crashes_from(first: u64, plant: StackPlant) {
    let began = Instant::now();
    // What is planted grows on the threads of log and driver only.
    let lives = |seed| crash(seed, &Settings::new(seed).plain(), &TRIES, check, |test| test.lives(2));
    let found =
        (first..first + HISTORIES).find_map(|seed| plant::with(plant, || lives(seed)).err().map(|found| (seed, found)));
    let (seed, found) = found.unwrap_or_else(|| panic!("{plant:?} is not found in {HISTORIES} histories"));
    println!(
        "{plant:?} is found after {:?}, in history {seed}: {}",
        began.elapsed(),
        found.lines().take(2).collect::<Vec<_>>().join(" ")
    );
    lives(seed).unwrap_or_else(|wrong| panic!("without the mistake: {wrong}"));
}

/// Goes through a scene, which other tests go through without the mistake.
fn by_scene(plant: StackPlant, scene: fn()) {
    let began = Instant::now();
    let found = plant::with(plant, || catch_unwind(AssertUnwindSafe(scene)));
    let panic = found.expect_err("the scene does not show the planted mistake");
    println!("{plant:?} is found after {:?}: {:?}", began.elapsed(), panic.downcast_ref::<String>());
}

/// A test for each mistake, and none without a test.
macro_rules! finds {
    ($($test:ident: $plant:ident $how:expr,)*) => {
        $(#[test]
        fn $test() {
            let find: fn(StackPlant) = $how;
            find(StackPlant::$plant);
        })*

        /// Does not compile where a mistake has no test.
        #[allow(dead_code, reason = "only its completeness counts")]
        fn has_test(plant: StackPlant) {
            match plant {
                $(StackPlant::$plant => {})*
            }
        }
    };
}

finds! {
    // Publication.
    it_can_fail_named_before_sync: NamedBeforeSync by_crashes,
    it_can_fail_snapshot_name_not_synced: SnapshotNameNotSynced by_crashes,
    it_can_fail_not_read_back: NotReadBack |plant| by_scene(plant, scene::checkpoint_that_rots),
    // Compaction.
    it_can_fail_compacted_before_published: CompactedBeforePublished by_crashes,
    it_can_fail_compacted_past_snapshot: CompactedPastSnapshot |plant| by_crashes_from(4, plant),
    it_can_fail_needed_deleted: NeededDeleted |plant| by_crashes_from(3, plant),
    it_can_fail_oldest_kept: OldestKept |plant| by_crashes_from(6, plant),
    // Restoring.
    it_can_fail_image_ahead_of_log: ImageAheadOfLog |plant| by_crashes_from(11, plant),
    it_can_fail_replayed_one_too_many: ReplayedOneTooMany by_crashes,
    it_can_fail_replayed_one_too_few: ReplayedOneTooFew by_crashes,
    it_can_fail_older_taken_silently: OlderTakenSilently |plant| by_scene(plant, scene::whole_file_damaged),
    it_can_fail_damaged_deleted: DamagedDeleted |plant| by_scene(plant, scene::fall_back),
}
