//! What broke other logs, row by row, and the tests here that fail when the same happens to this one.
//!
//! [`ROWS`] is the list; a test checks that each test it names exists. Where a row's rule is about speed, a bench shows
//! it and what can be counted is tested.
//!
//! The tests at the end of this file are those that belong nowhere else.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::{HeldLog, append_each, open_sim, payloads, scratch, small, tiny, try_open_sim};
use ringwal::{Batch, Error, Log, LogEntry};

/// A hazard, and the tests against it: file, then name.
const ROWS: &[(&str, &[&str])] = &[
    (
        "a sync fails once, is retried and \"succeeds\"",
        &[
            "tests/poison.rs::no_append_is_acknowledged_after_a_write_that_failed_once",
            "tests/poison.rs::a_failed_sync_is_final_where_syncs_are_apart",
            "tests/poison.rs::a_failed_timed_sync_poisons_too",
            "src/engine/tests.rs::after_a_failure_nothing_is_admitted_and_nothing_moves",
            "src/sim/tests.rs::a_failed_sync_is_final_for_what_it_should_have_covered",
            "tests/failing_device.rs::a_device_that_fails_poisons_the_log_and_reading_goes_on",
            "tests/faults.rs::what_a_failed_sync_left_in_memory_may_vanish_and_nothing_acknowledged_with_it",
        ],
    ),
    (
        "what is read back was never durable",
        &[
            "src/segment/tests.rs::a_frame_that_a_killed_process_left_in_the_devices_cache_is_durable_once_it_was_shown",
            "src/segment/table_tests.rs::the_last_frame_of_a_killed_log_whole_but_unproved",
            "src/sim/explore/tests.rs::no_crash_breaks_a_promise_from_a_fixed_seed",
        ],
    ),
    (
        "acknowledged data is cut as a torn tail",
        &[
            "tests/bits.rs::each_bit_of_a_closed_log_flipped_is_an_error_or_changes_nothing",
            "tests/bits.rs::each_bit_of_a_killed_log_flipped_loses_at_most_the_batch_that_nothing_proves",
            "src/segment/table_tests.rs::a_frame_in_the_middle_torn",
            "src/segment/table_tests.rs::the_last_entry_and_the_mark_behind_it_zeroed",
        ],
    ),
    (
        "a torn tail is refused as corruption",
        &[
            "src/segment/table_tests.rs::the_last_frame_of_a_killed_log_torn",
            "src/segment/table_tests.rs::a_last_frame_with_garbage_for_its_lengths",
            "src/segment/table_tests.rs::a_torn_frame_before_a_whole_one_of_its_life",
            "src/sim/explore/tests.rs::no_crash_breaks_a_promise_from_a_fixed_seed",
        ],
    ),
    (
        "at most one torn batch is reckoned with",
        &[
            "src/segment/tests.rs::recycled_segments_with_frames_of_one_size_crashed_at_every_frame_show_nothing_of_their_past",
            "src/sim/explore/tests.rs::no_crash_breaks_a_promise_from_a_new_seed",
            "src/engine/tests.rs::acks_leave_in_log_order_whatever_completes_first",
        ],
    ),
    (
        "a torn write is taken for a prefix",
        &[
            "src/sim/tests.rs::a_durable_write_is_any_subset_in_flight_and_whole_once_complete",
            "src/sim/tests.rs::size_and_bytes_persist_independently",
            "src/sim/naive.rs::the_disk_leaves_what_the_plain_model_leaves_no_more_and_no_less",
            "src/segment/table_tests.rs::a_torn_frame_with_a_payload_of_whole_frames",
            "src/sim/explore/tests.rs::no_crash_breaks_a_promise_from_a_fixed_seed",
        ],
    ),
    (
        "a stale record of a recycled file is replayed",
        &[
            "src/segment/tests.rs::recycled_segments_with_frames_of_one_size_crashed_at_every_frame_show_nothing_of_their_past",
            "src/format/frame.rs::a_frame_of_another_segment_is_absent",
        ],
    ),
    (
        "a whole frame of an earlier life is revived behind a new tail",
        &[
            "src/segment/table_tests.rs::a_whole_frame_of_a_dead_life_behind_the_open_frame",
            "src/segment/tests.rs::a_dead_first_frame_in_a_spare_is_not_taken_for_a_durable_one",
            "src/sim/explore/tests.rs::it_can_fail_neither_chain_nor_epoch",
        ],
    ),
    (
        "a truncated suffix comes back",
        &[
            "src/segment/tests.rs::a_truncation_across_segments_crashed_at_every_point_comes_whole_or_not_and_stays",
            "tests/durability.rs::hard_state_truncation_and_compaction_are_as_durable_as_entries",
            "src/segment/tests.rs::a_truncated_entry_that_a_device_put_in_the_place_of_its_successor_is_not_shown",
        ],
    ),
    (
        "a newer segment survives and older bytes do not",
        &[
            "src/segment/table_tests.rs::the_last_frame_before_a_roll_torn",
            "src/segment/table_tests.rs::a_segment_deleted_without_a_compaction",
            "src/sim/explore/tests.rs::it_can_fail_follow_without_look",
        ],
    ),
    (
        "the index is trusted over the log",
        &[
            "tests/index_files.rs::damaged_index_files_give_the_same_answers",
            "tests/index_files.rs::stale_index_files_give_the_same_answers",
            "tests/index_files.rs::an_index_file_damaged_under_an_open_log_gives_the_same_answers",
            "tests/reads.rs::an_index_that_leads_astray_costs_time_and_nothing_else",
            "src/segment/table_tests.rs::a_forged_truncation_into_an_older_segment_with_another_last_term",
        ],
    ),
    (
        "zeros decode as a valid record",
        &[
            "src/format/frame.rs::zeros_are_no_head",
            "src/format/segment.rs::zeros_and_short_bytes_are_no_header",
            "tests/bits.rs::files_of_a_closed_log_deleted_emptied_cut_lengthened_or_swapped_are_an_error_or_change_nothing",
        ],
    ),
    (
        "SIGBUS from a mapped file; too many mappings",
        &[
            "tests/space.rs::a_full_disk_where_an_index_file_should_go_does_no_harm",
            "src/segment/index_map.rs::a_damaged_file_is_a_defect_and_never_an_error_of_the_log",
            "tests/reads.rs::hundreds_of_segments_are_read_with_few_of_them_open",
        ],
    ),
    (
        "create or rename without a sync of the directory",
        &[
            "src/segment/tests.rs::a_crash_at_any_step_of_create_roll_seal_drop_and_recycle_leaves_a_log_that_opens",
            "src/segment/tests.rs::a_spare_named_by_a_killed_process_keeps_its_name_when_the_power_fails_later",
            "src/sim/tests.rs::a_rename_is_atomic_and_may_be_undone_until_the_directory_is_synced",
        ],
    ),
    (
        "a half-created file blocks the next start",
        &[
            "src/segment/tests.rs::a_crash_while_the_log_is_created_does_not_block_the_next_open",
            "src/segment/tests.rs::a_crash_at_any_step_of_create_roll_seal_drop_and_recycle_leaves_a_log_that_opens",
            "src/segment/table_tests.rs::the_open_frame_of_a_new_log_zeroed",
            "tests/bad_input.rs::temporary_files_left_over_are_removed_and_others_are_not",
            "tests/snapshot_crashes.rs::a_crash_at_any_moment_leaves_a_snapshot_and_a_log_that_give_the_state_again",
        ],
    ),
    (
        "the first write into unwritten extents is slow (a bench shows it: the row `rolling`)",
        &["tests/threads.rs::dropped_segments_become_spares_beyond_those_asked_for"],
    ),
    (
        "uninitialised memory is written as padding",
        &["src/format/frame.rs::frames_read_back", "src/disk/buffer.rs::a_buffer_is_zeroed_aligned_and_rounded_up"],
    ),
    (
        "logical and physical tail are confused",
        &[
            "tests/sizes.rs::payloads_around_every_block_boundary_come_back_as_they_were",
            "tests/sizes.rs::the_segment_size_is_the_logs_and_the_block_size_each_segments_own",
            "src/sim/tests.rs::direct_access_must_be_aligned_and_reading_files_are_not_written",
            "src/segment/table_tests.rs::a_log_copied_to_a_device_of_larger_blocks",
        ],
    ),
    (
        "a sync overtakes its write; a short write breaks a link",
        &[
            "src/engine/tests.rs::without_durable_writes_only_a_completed_sync_makes_durable_and_only_what_was_written_before_it",
            "src/disk/uring.rs::a_short_write_is_finished_before_it_is_reported",
            "src/disk/transfer.rs::a_short_write_goes_on_at_a_block_whatever_the_count",
            "tests/durability.rs::what_is_written_during_a_sync_is_not_covered_by_it",
        ],
    ),
    (
        "a buffer is freed while the kernel writes it",
        &[
            "tests/hazards.rs::a_log_dropped_in_the_middle_of_its_writes_holds_its_lock_until_they_are_done",
            "src/disk/uring.rs::a_drop_waits_for_a_slow_device",
            "src/disk/uring.rs::an_abandoned_driver_fails_what_was_in_flight_once_and_refuses_the_rest",
            "src/sim/tests.rs::dropping_a_driver_drains_it",
        ],
    ),
    (
        "a failed append is assumed not to be written",
        &[
            "tests/poison.rs::frames_behind_a_failed_one_are_not_acknowledged_though_they_are_written",
            "tests/poison.rs::a_log_whose_first_write_failed_shows_nothing",
            "src/sim/explore/tests.rs::no_crash_breaks_a_promise_from_a_fixed_seed",
        ],
    ),
    (
        "an error of a snapshot is taken for no snapshot",
        &[
            "tests/snapshot_faults.rs::each_byte_of_the_newest_snapshot_damaged_is_an_error_or_the_whole_state_and_never_an_older_one",
            "tests/snapshot_faults.rs::a_newest_snapshot_that_is_cut_zeroed_lengthened_swapped_or_gone_is_an_error_or_the_whole_state",
            "tests/snapshot_faults.rs::any_call_of_an_open_that_fails_once_is_an_error_or_changes_nothing",
            "tests/snapshot_faults.rs::falling_back_gives_the_whole_state_or_an_error_and_deletes_nothing",
        ],
    ),
    (
        "the log is cut before the snapshot is safe",
        &[
            "tests/snapshot_crashes.rs::a_crash_at_any_moment_leaves_a_snapshot_and_a_log_that_give_the_state_again",
            "tests/snapshot_faults.rs::any_call_of_a_checkpoint_that_fails_once_costs_at_most_that_checkpoint",
            "tests/snapshot_faults.rs::a_snapshot_that_rots_while_it_is_written_is_never_published_and_the_log_keeps_everything",
            "tests/store_kill9.rs::a_process_killed_again_and_again_leaves_a_store_with_every_write_that_was_answered",
        ],
    ),
    (
        "a full disk: panic, wedge, or no restart",
        &[
            "tests/full_disk.rs::a_disk_that_is_full_when_a_snapshot_is_taken_costs_nothing_but_that_snapshot",
            "tests/snapshot_faults.rs::a_disk_that_is_full_at_any_moment_of_a_checkpoint_costs_at_most_that_checkpoint_and_says_so",
            "tests/snapshot_faults.rs::a_checkpoint_that_finds_no_room_leaves_log_and_snapshots_as_they_were_and_no_file",
            "tests/full_disk.rs::a_file_system_in_memory_filled_to_the_brim",
            "tests/full_disk.rs::an_ext4_filled_to_the_brim",
            "tests/space.rs::compaction_on_a_full_disk_lets_appends_go_on_without_a_restart",
            "tests/space.rs::a_log_that_crashes_again_and_again_on_a_full_disk_opens_each_time",
            "tests/full_disk.rs::a_process_killed_again_and_again_on_a_full_disk_leaves_a_log_that_opens",
            "tests/faults.rs::a_segment_whose_loss_of_its_name_could_not_be_synced_is_not_made_another_under_that_name",
        ],
    ),
    (
        "an I/O error while recovering cuts the log",
        &[
            "tests/poison.rs::a_read_that_fails_once_while_opening_is_an_error_and_never_a_cut",
            "tests/poison.rs::what_else_fails_once_while_opening_loses_nothing_either",
            "tests/faults.rs::a_read_that_comes_from_elsewhere_while_opening_costs_nothing",
            "tests/faults.rs::a_bit_that_flips_on_the_way_while_opening_costs_nothing",
        ],
    ),
    (
        "a huge length field allocates gigabytes",
        &[
            "tests/bounded.rs::lengths_that_lie_allocate_no_more_than_a_window",
            "tests/bounded.rs::index_files_that_lie_allocate_no_more_than_a_window",
            "tests/bounded.rs::files_of_random_bytes_allocate_no_more_than_a_window",
        ],
    ),
    (
        "two processes, one directory",
        &[
            "tests/bad_input.rs::a_second_opener_in_this_process_is_told_who_has_the_log",
            "tests/bad_input.rs::a_second_opener_in_another_process_is_told_and_the_lock_dies_with_the_first",
            "tests/read_only.rs::a_closed_log_is_shown_whole_and_left_as_it_is",
        ],
    ),
    ("process-global state", &["tests/api.rs::two_logs_in_one_process_know_nothing_of_each_other"]),
    (
        "a vote is acknowledged before it is durable",
        &[
            "tests/durability.rs::hard_state_truncation_and_compaction_are_as_durable_as_entries",
            "src/sim/explore/tests.rs::it_can_fail_ack_before_completion",
        ],
    ),
    (
        "io_uring is missing: panic in a container",
        &[
            "tests/barred.rs::a_filter_that_forbids_io_uring_leaves_system_calls",
            "tests/barred.rs::a_filter_that_hides_io_uring_leaves_system_calls",
            "tests/barred.rs::a_filter_that_lets_a_ring_be_made_and_forbids_its_use_leaves_system_calls",
            "tests/barred.rs::a_low_limit_of_locked_memory_leaves_system_calls",
            "src/disk/suite.rs::the_suite_passes_with_system_calls",
        ],
    ),
    (
        "group commit never forms",
        &[
            "tests/submission.rs::one_frame_carries_what_many_put_in_while_the_device_works",
            "src/engine/tests.rs::arrivals_gather_while_something_is_in_flight_and_go_at_once_when_nothing_is",
        ],
    ),
    (
        "the pipeline stalls at every roll (a bench shows it: the row `rolling`)",
        &["tests/submission.rs::try_submit_is_busy_while_the_next_segment_is_not_ready"],
    ),
    ("memory grows with the log", &["tests/bounded.rs::ten_times_the_log_opens_in_hardly_more_memory"]),
    (
        "the benchmark flatters",
        &[
            "tools/cli/tests/command_line.rs::a_short_bench_verifies_everything_and_its_log_can_be_inspected",
            "tools/cli/tests/command_line.rs::an_audit_shows_every_figure_with_its_grounds",
            "tools/cli/tests/command_line.rs::an_audit_without_grounds_has_no_figure_and_says_why",
        ],
    ),
    (
        "a buffered read beside a direct write returns a stale page",
        &[
            "tests/read_only.rs::readers_that_race_the_writer_see_every_byte_right",
            "tests/read_only.rs::readers_that_race_the_writer_on_an_ext4_of_its_own_see_every_byte_right",
            "tests/read_only.rs::readers_that_race_the_writer_on_an_xfs_see_every_byte_right",
        ],
    ),
    ("time goes backwards or jumps", &["tests/hazards.rs::clocks_set_back_and_forth_between_two_opens_change_nothing"]),
    (
        "queued writes of a killed process land after recovery has read",
        &[
            "tools/cli/tests/torture.rs::slow_writes_of_a_killed_process_end_before_the_log_is_read",
            "tools/cli/tests/torture.rs::a_killed_process_takes_no_acknowledged_batch_along",
            "src/sim/tests.rs::a_queued_write_of_a_killed_process_holds_its_lock_and_lands_later",
            "src/sim/explore/tests.rs::no_crash_breaks_a_promise_from_a_fixed_seed",
        ],
    ),
    (
        "the only durable copy of compaction point or vote is dropped",
        &[
            "src/engine/ranges.rs::a_segment_goes_only_when_covered_and_its_state_is_carried_on",
            "src/segment/tests.rs::a_crash_at_any_step_of_create_roll_seal_drop_and_recycle_leaves_a_log_that_opens",
            "src/sim/explore/tests.rs::it_can_fail_drop_before_next_base",
        ],
    ),
    (
        "one bad header block hides a whole segment",
        &[
            "tests/read_only.rs::a_damaged_header_refuses_a_writer_and_a_reader_goes_by_the_salt_of_the_frames",
            "tests/read_only.rs::a_damaged_header_does_not_hide_other_damage_in_its_segment",
            "src/segment/table_tests.rs::a_zeroed_header",
        ],
    ),
    (
        "a waiter by index is released by the old entry after a truncate",
        &[
            "tests/submission.rs::an_acknowledged_append_is_well_though_a_later_truncate_removes_it",
            "tests/hazards.rs::an_index_truncated_and_used_again_while_in_flight_releases_each_waiter_with_its_own_frame",
        ],
    ),
    (
        "a frame of a newer version is cut as torn",
        &[
            "tests/newer.rs::a_frame_of_a_future_kind_flag_or_log_is_refused_wherever_it_stands",
            "tests/newer.rs::a_frame_of_a_future_kind_behind_the_end_is_not_cut_as_torn",
            "src/segment/table_tests.rs::a_frame_of_a_newer_version_where_the_log_ends",
            "tests/golden.rs::what_a_newer_version_wrote_is_refused_and_left_as_it_is",
        ],
    ),
    (
        "a read-only open beside a live writer cries corrupt",
        &["tests/read_only.rs::beside_a_live_writer_every_look_shows_at_least_what_was_acknowledged_before_it"],
    ),
    (
        "padding or payload is parsed as frames: quadratic look-ahead",
        &[
            "src/segment/tests.rs::a_segment_full_of_forged_heads_is_read_a_few_times_and_not_once_for_each_of_them",
            "src/segment/table_tests.rs::a_torn_frame_with_a_payload_of_whole_frames",
            "src/segment/table_tests.rs::truncations_that_leave_the_same_entry_of_an_older_segment_last_read_it_once",
        ],
    ),
];

#[test]
fn each_test_that_is_named_here_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources: BTreeMap<&str, String> = BTreeMap::new();
    let mut missing = Vec::new();
    for (hazard, tests) in ROWS {
        assert!(!tests.is_empty(), "{hazard}: no test");
        for test in *tests {
            let (file, name) = test.split_once("::").unwrap();
            let source = sources.entry(file).or_insert_with(|| fs::read_to_string(root.join(file)).unwrap_or_default());
            // Written out, or declared in a list that a macro makes tests of.
            let is_there = source.contains(&format!("fn {name}(")) || source.contains(&format!("    {name}: "));
            if !is_there {
                missing.push(*test);
            }
        }
    }
    assert_eq!(missing, [""; 0]);
}

#[test]
fn clocks_set_back_and_forth_between_two_opens_change_nothing() {
    let scratch = scratch();
    let directory = scratch.path().join("log");
    let open = || Log::open(&directory, small()).unwrap();
    let now_ms = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    // The first life was far in the future, and its own clock ran backwards.
    let stamps: Vec<u64> = (0..400).map(|nth| 4_000_000_000_000 - 1000 * nth).collect();
    let (log, _) = open();
    for (index, &timestamp) in (1..).zip(&stamps) {
        log.append_entries(vec![LogEntry { timestamp, ..LogEntry::new(1, index, vec![index as u8; 900]) }]).unwrap();
    }
    log.compact(50).unwrap();
    log.close().unwrap();
    // The newest files are the oldest by their times, and all are from before the first life or after this one.
    let mut names: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    assert!(names.len() > 5);
    for (nth, path) in names.iter().rev().enumerate() {
        let time = UNIX_EPOCH + Duration::from_secs(if nth % 2 == 0 { nth as u64 } else { 5_000_000_000 });
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_times(fs::FileTimes::new().set_modified(time).set_accessed(time)).unwrap();
    }
    let before = now_ms();
    let (log, report) = open();
    assert!(report.was_clean && report.indexes_rebuilt == 0);
    append_each(&log, ["now"; 3]);
    log.close().unwrap();
    let (log, _) = open();
    let found: Vec<LogEntry> = log.iter(..).map(Result::unwrap).collect();
    assert_eq!(found.iter().map(|entry| entry.index).collect::<Vec<_>>(), (51..=403).collect::<Vec<_>>());
    assert_eq!(found[..350].iter().map(|entry| entry.timestamp).collect::<Vec<_>>(), stamps[50..]);
    assert!(found[350..].iter().all(|entry| (before..=now_ms()).contains(&entry.timestamp)));
}

#[test]
fn a_log_dropped_in_the_middle_of_its_writes_holds_its_lock_until_they_are_done() {
    let mut held = HeldLog::open(tiny().lock_wait(Duration::ZERO).frames_in_flight(4));
    let log = held.log.take().unwrap();
    for index in 1..=8 {
        drop(log.submit(Batch::new().push(vec![index; 300])).unwrap());
    }
    held.wait_in_flight(1);
    let dropper = thread::spawn(move || drop(log));
    // Nothing completes before it is told to: as long as a write is in flight, the log has not let go.
    let refused = try_open_sim(&held.disk, tiny().lock_wait(Duration::ZERO)).unwrap_err();
    assert!(matches!(refused, Error::Locked { .. }), "{refused}");
    assert!(!held.disk.in_flight().is_empty() && !dropper.is_finished());
    held.release();
    dropper.join().unwrap();
    assert_eq!(payloads(&open_sim(&held.disk, tiny())), (1..=8).map(|nth| vec![nth; 300]).collect::<Vec<_>>());
}

#[test]
fn an_index_truncated_and_used_again_while_in_flight_releases_each_waiter_with_its_own_frame() {
    // A frame goes while others are in flight once the next batch does not fit it any more.
    let held = HeldLog::open(tiny().frames_in_flight(4).frame_bytes_max(512));
    let log = held.log();
    let entry = |term| LogEntry::new(term, 1, vec![term as u8; 300]);
    let mut waiters = vec![log.submit(Batch::new().push_entry(entry(1))).unwrap()];
    for term in 2..=4 {
        waiters.push(log.submit(Batch::new().truncate_from(1).push_entry(entry(term))).unwrap());
    }
    held.wait_in_flight(3);
    // Written in the reverse order: index 1 lies on the disk twice before the frame of the first waiter does.
    let flights = held.disk.in_flight();
    for flight in flights[1..].iter().rev() {
        assert!(held.disk.complete(flight.id));
    }
    assert!(waiters.iter().all(|waiter| !waiter.is_done()) && log.state().durable.is_none());
    assert!(held.disk.complete(flights[0].id));
    let last = waiters.pop().unwrap();
    waiters.into_iter().for_each(|waiter| waiter.wait().unwrap());
    assert!(!last.is_done() && log.get(1).unwrap().term == 4, "accepted, and not yet durable");
    held.release();
    last.wait().unwrap();
}
