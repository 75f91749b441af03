//! What goes wrong with snapshots of a driven machine: calls of the disk that fail in the middle of a checkpoint or of an
//! open, a disk that is full or lies, snapshot files that are damaged. What is tried, and what must hold, is in
//! `stack::scene`.

mod stack;

use stack::scene;

#[test]
fn any_call_of_a_checkpoint_that_fails_once_costs_at_most_that_checkpoint() {
    scene::checkpoint_with_errors();
}

#[test]
fn a_disk_that_is_full_at_any_moment_of_a_checkpoint_costs_at_most_that_checkpoint_and_says_so() {
    scene::checkpoint_with_moments_of_no_space();
}

#[test]
fn a_checkpoint_that_finds_no_room_leaves_log_and_snapshots_as_they_were_and_no_file() {
    scene::checkpoint_without_room();
}

#[test]
fn a_snapshot_that_rots_while_it_is_written_is_never_published_and_the_log_keeps_everything() {
    scene::checkpoint_that_rots();
}

#[test]
fn any_call_of_an_open_that_fails_once_is_an_error_or_changes_nothing() {
    scene::open_with_errors();
}

#[test]
fn any_call_of_the_first_open_that_fails_once_is_in_nobodys_way_later() {
    scene::first_open_with_errors();
}

#[test]
fn each_byte_of_the_newest_snapshot_damaged_is_an_error_or_the_whole_state_and_never_an_older_one() {
    scene::each_byte_damaged();
}

#[test]
fn a_newest_snapshot_that_is_cut_zeroed_lengthened_swapped_or_gone_is_an_error_or_the_whole_state() {
    scene::whole_file_damaged();
}

#[test]
fn falling_back_gives_the_whole_state_or_an_error_and_deletes_nothing() {
    scene::fall_back();
}

#[test]
fn what_a_failed_sync_of_a_snapshot_left_behind_is_not_taken_for_one() {
    scene::checkpoint_with_failed_syncs();
}
