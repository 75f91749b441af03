//! Each row of recovery's table, by the damage that leads to it: inflicted on a small log, opened in every way there is.
//!
//! The log: blocks of 512 bytes, segments of 24, one entry to a frame and one frame to a block. Frame 1 is the open
//! frame, frame n + 1 holds entry n, and 23 frames fill a segment. It runs in this thread ([`LocalLog`]).
//!
//! [`rows`] ties the table and the tests together: it names the rows that each test shows. A test that does not meet its
//! rows fails, and so does a row without a test.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::recover::{self, RecoveryReport};
use crate::config::{Config, Verify};
use crate::disk::Disk;
use crate::engine::recovery::{self, *};
use crate::engine::sequencer::Request;
use crate::entry::LogEntry;
use crate::error::Error;
use crate::format::Salted;
use crate::format::frame::{self, FrameKind, FrameSpec, HEAD_BYTES, Head, HeadRead, Operation};
use crate::format::lock::{SLOT_OFFSETS, Slot};
use crate::format::names;
use crate::format::segment::SegmentHeader;
use crate::format::state::State;
use crate::sim::{Class, Contents, LocalLog, LooseEnd, OpKind, SimDisk, SimOptions};

const BLOCK: u64 = 512;
const BLOCKS: u64 = 24;
/// Frames in a segment that is filled.
const FRAMES: u64 = BLOCKS - 1;

/// No entries.
const NOTHING: RangeInclusive<u64> = RangeInclusive::new(1, 0);

/// Names the rows that each test shows, and makes it one.
macro_rules! rows {
    ($($test:ident: $($row:expr),+;)*) => {
        mod rows {
            use super::*;

            $(#[test] fn $test() { showing(&[$($row.name()),+], super::$test) })*

            /// All rows that some test shows.
            pub(super) fn shown() -> BTreeSet<&'static str> {
                [$($($row.name()),+),*].into()
            }
        }
    };
}

rows! {
    an_empty_directory_becomes_a_log_for_a_writer_and_is_nothing_to_a_reader:
        Files::Empty, Files::NothingToRead, Stop::Unborn, Ending::Created, OpenFrame::Here;
    all_segments_gone_with_a_mark_in_the_lock_file: Files::AllGone;
    a_segment_of_another_size: Files::SizesDiffer;
    a_segment_of_another_log: Files::LogsDiffer;
    a_lock_file_of_another_log: Files::OtherMark;
    a_segment_under_the_name_of_another: Header::OtherName;
    a_segment_file_cut_short: Header::CutShort;
    a_segment_header_of_a_newer_version: Header::Newer;
    a_zeroed_header: Header::Damaged, Header::BySalt;
    a_zeroed_header_and_a_zeroed_first_frame: Header::Damaged, Header::Mute;
    nothing_damaged_in_a_closed_log:
        Files::OneLog, Header::Belongs, Start::NewestProved, Start::Full, Next::Follows, Next::Nothing, Base::Taken,
        Base::NotDue, Base::Agrees, Stop::Rolls, Stop::Ends, Beginning::VeryFirst, Kept::Proved, Ending::Clean,
        Blocks::Fit;
    nothing_damaged_in_a_log_of_one_segment: Start::NothingProved, Spare::Blank;
    index_files_there_and_gone: Older::ByIndex, Older::ByFrames;
    the_first_frame_of_the_first_of_many_segments_zeroed: Older::FirstLost, Behind::Witness;
    the_first_frame_of_a_middle_segment_zeroed: Older::NextLost, Behind::Witness;
    the_last_frame_of_a_killed_log_zeroed: Next::Nothing, Stop::Ends, Ending::Cut, OpenFrame::Here;
    the_last_frame_of_a_killed_log_torn: Next::NotWhole, Ending::Cut;
    the_last_frame_of_a_killed_log_whole_but_unproved: Kept::Rewritten, Ending::Cut;
    a_last_frame_with_garbage_for_its_lengths: Next::NotWhole, Ending::Cut;
    a_torn_frame_with_a_payload_of_whole_frames: Next::Nothing, Next::NotWhole, Ending::Cut;
    a_frame_in_the_middle_torn: Next::NotWhole, Behind::Witness;
    a_frame_in_the_middle_zeroed: Next::Nothing, Behind::Witness;
    the_last_frame_before_a_roll_torn: Next::NotWhole, Behind::Witness;
    a_torn_frame_before_a_whole_one_of_its_life: Behind::InFlight, Ending::Cut;
    a_whole_frame_of_a_dead_life_behind_the_open_frame: Next::Stale, Behind::OtherLife;
    a_frame_of_a_newer_version_where_the_log_ends: Next::Newer;
    a_frame_of_a_newer_version_behind_the_end: Behind::Newer;
    the_last_entry_and_the_mark_behind_it_zeroed: Behind::MarkWitness;
    a_torn_frame_after_the_mark_in_the_lock_file: Behind::MarkBefore, Ending::Cut;
    the_open_frame_of_a_new_log_zeroed: Stop::Unborn, Ending::Cut;
    the_first_frame_of_a_run_that_does_not_begin_with_segment_1_zeroed: Stop::Lost;
    a_segment_dropped_after_a_compaction: Beginning::Covered;
    a_segment_deleted_without_a_compaction: Beginning::SegmentMissing;
    the_first_frame_of_the_run_torn_behind_its_index_file: Beginning::BaseLost, Stop::Lost;
    a_forged_frame_that_proves_itself_durable: Misfit::Counters;
    a_forged_frame_without_a_base_where_a_segment_begins: Misfit::Base, Base::Missing;
    a_forged_frame_with_another_base: Misfit::Base, Base::Contradicts;
    a_forged_frame_with_a_base_where_none_belongs: Misfit::Base, Base::Misplaced;
    a_forged_truncation_with_another_last_term: Misfit::LastTerm;
    a_forged_truncation_into_an_older_segment_with_another_last_term: Misfit::LastTerm, Older::ByIndex;
    a_forged_entry_that_leaves_a_gap: Misfit::Operation;
    a_forged_frame_with_another_first_index: Misfit::FirstIndex;
    a_killed_log_with_its_last_segment_full_and_a_spare_behind: Next::SegmentEnds, OpenFrame::NextSegment;
    a_killed_log_with_its_last_segment_full_and_no_spare: OpenFrame::Deferred;
    the_first_frame_of_a_segment_whole_and_the_one_before_it_lost: Spare::DeadFrame, Behind::InFlight;
    a_log_copied_to_a_device_of_larger_blocks: Blocks::EndTooSmall;
    a_spare_copied_to_a_device_of_larger_blocks: Blocks::SpareTooSmall;
    a_log_killed_before_its_first_frame_and_copied_to_a_device_of_larger_blocks: Blocks::UnbornTooSmall, Stop::Unborn;
}

#[test]
fn every_row_of_the_table_has_a_test() {
    let mut without = Vec::new();
    macro_rules! all {
        ($($table:ident),*) => { $(without.extend($table::ALL.iter().map(|row| row.name()));)* };
    }
    all!(
        Files, Header, Start, Older, Next, Base, Misfit, Stop, Behind, Beginning, Kept, Ending, OpenFrame, Blocks,
        Spare
    );
    assert!(without.len() > 60, "the tables were not found");
    let shown = rows::shown();
    without.retain(|row| !shown.contains(row));
    assert_eq!(without, [""; 0]);
}

/// Runs a test and checks that recovery met the rows that it is to show.
fn showing(rows: &[&'static str], test: fn()) {
    recovery::met::take();
    test();
    let met = recovery::met::take();
    let missed: Vec<_> = rows.iter().filter(|row| !met.contains(*row)).collect();
    assert!(missed.is_empty(), "the damage does not lead to {missed:?}, but to {met:?}");
}

// ---- the log, and what is done to it ----

fn config() -> Config {
    let small = Config::default().block_bytes(Some(BLOCK as u32)).segment_bytes(BLOCKS * BLOCK);
    small.frame_bytes_max(BLOCK).lock_wait(Duration::ZERO)
}

fn entry(index: u64) -> Request {
    Request::Entry(LogEntry { timestamp: index, ..LogEntry::new(1, index, vec![index as u8; 300]) })
}

fn append(log: &mut LocalLog, batch: &[Request]) {
    log.submit(batch).unwrap();
    log.drain().unwrap();
}

/// Appends entries, each acknowledged before the next; segments are filled to their last block.
fn append_each(log: &mut LocalLog, indexes: RangeInclusive<u64>) {
    for index in indexes {
        log.prepare_spare().unwrap();
        append(log, &[entry(index)]);
    }
}

/// A log of entries 1 to `last`, still open, on a disk.
fn log_to(last: u64) -> (SimDisk, LocalLog) {
    let disk = SimDisk::manual(1);
    let mut log = LocalLog::open(&disk, config(), 1).unwrap();
    append_each(&mut log, 1..=last);
    (disk, log)
}

/// A log whose process was killed with nothing in flight: its last frame is proved by nothing.
fn killed(last: u64) -> SimDisk {
    log_to(last).0.copy_at_rest()
}

/// A log that was closed: a mark follows the last entry, and the lock file repeats it.
fn closed(last: u64) -> SimDisk {
    let (disk, log) = log_to(last);
    log.close().unwrap();
    disk.copy_at_rest()
}

/// As [`killed`], with an index file for each sealed segment.
fn killed_with_indexes(last: u64) -> SimDisk {
    let (disk, mut log) = log_to(last);
    while log.seal_one().unwrap() {}
    disk.copy_at_rest()
}

/// As [`killed_with_indexes`], with entries 1 to `upto` compacted in a frame of their own, entry `last` after it, and the
/// segments that this frees dropped.
fn killed_with_a_drop(last: u64, upto: u64) -> SimDisk {
    let (disk, mut log) = log_to(last - 1);
    append(&mut log, &[Request::Compact(upto, Some(1))]);
    append(&mut log, &[entry(last)]);
    while log.seal_one().unwrap() {}
    while log.drop_one().unwrap() {
        log.remove_dropped().unwrap();
    }
    disk.copy_at_rest()
}

/// The segment and byte where a frame of this number lies, if segments are filled.
fn place(frame: u64) -> (u64, u64) {
    (1 + (frame - 1) / FRAMES, (1 + (frame - 1) % FRAMES) * BLOCK)
}

/// The frame that holds an entry.
fn frame_of(entry: u64) -> u64 {
    entry + 1
}

fn zero(disk: &SimDisk, frame: u64) {
    let (segment, offset) = place(frame);
    disk.zero_range(&names::segment(segment), offset..offset + BLOCK).unwrap();
}

/// Leaves the head whole and not the frame.
fn tear(disk: &SimDisk, frame: u64) {
    let (segment, offset) = place(frame);
    disk.flip_bit(&names::segment(segment), offset + 200, 3).unwrap();
}

fn header_of(disk: &SimDisk, segment: u64) -> SegmentHeader {
    SegmentHeader::decode(&disk.contents(&names::segment(segment)).unwrap()).unwrap()
}

fn write_header(disk: &SimDisk, segment: u64, header: &SegmentHeader) {
    disk.edit_file(&names::segment(segment), |bytes| header.encode(bytes)).unwrap();
}

fn head_at(disk: &SimDisk, (segment, offset): (u64, u64)) -> Head {
    let bytes = disk.contents(&names::segment(segment)).unwrap();
    match Head::decode(&bytes[offset as usize..], header_of(disk, segment).salt) {
        HeadRead::Head(head) => head,
        other => panic!("{other:?} at byte {offset} of segment {segment}"),
    }
}

/// Writes the frame that comes after the last one, of a killed log with entries up to `last`, altered.
fn forge<'a>(disk: &SimDisk, last: u64, alter: impl FnOnce(&mut FrameSpec<'a>)) -> (u64, u64) {
    let before = head_at(disk, place(frame_of(last)));
    let (segment, offset) = place(frame_of(last) + 1);
    let mut spec = FrameSpec {
        kind: FrameKind::Data,
        number: before.number + 1,
        epoch: before.epoch,
        chain: before.checksum,
        watermark: before.number,
        salt: header_of(disk, segment).salt,
        offset: offset as u32,
        first_index: Some(last + 1),
        base: None,
        operations: &[],
    };
    alter(&mut spec);
    let mut bytes = vec![0; BLOCK as usize];
    frame::encode(&spec, &mut bytes);
    let range = offset..offset + BLOCK;
    disk.edit_range(&names::segment(segment), range, |block| block.copy_from_slice(&bytes)).unwrap();
    (segment, offset)
}

fn plain(index: u64) -> Operation {
    Operation::Entry { index, term: 1, timestamp: 0, payload: Bytes::from_static(b"forged") }
}

/// The state after entries 1 to `last`.
fn state_after(last: u64) -> State {
    State { first: Some(1), next: Some(last + 1), last_term: 1, ..State::default() }
}

/// Makes a frame one of an unknown kind, as a newer version might write it.
fn make_newer(disk: &SimDisk, (segment, offset): (u64, u64)) {
    let salt = header_of(disk, segment).salt;
    let edit = |bytes: &mut [u8]| {
        bytes[4] = 9;
        let checksum = Salted::new(salt).over(&bytes[..HEAD_BYTES - 4]).value();
        bytes[HEAD_BYTES - 4..].copy_from_slice(&checksum.to_le_bytes());
    };
    disk.edit_range(&names::segment(segment), offset..offset + HEAD_BYTES as u64, edit).unwrap();
}

// ---- opening it ----

/// How a log is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Way {
    read_only: bool,
    verify: Verify,
}

const WRITING: Way = Way { read_only: false, verify: Verify::Tail };
const READING: Way = Way { read_only: true, ..WRITING };
const WRITING_FULL: Way = Way { verify: Verify::Full, ..WRITING };
const READING_FULL: Way = Way { read_only: true, ..WRITING_FULL };
const EVERY_WAY: [Way; 4] = [WRITING, READING, WRITING_FULL, READING_FULL];

/// What an open shows.
struct Seen {
    indexes: Vec<u64>,
    report: RecoveryReport,
}

fn open(disk: &SimDisk, way: Way) -> Result<Seen, Error> {
    let config = config().verify(way.verify);
    if way.read_only {
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        let request = recover::Request { disk: &disk, config: &config, random: &|| 7, read_only: true };
        let recovered = recover::recover(&request)?;
        let indexes = recovered.start.ledger.ranges.iter().flat_map(|range| range.live.clone()).collect();
        return Ok(Seen { indexes, report: recovered.report });
    }
    let log = LocalLog::open(disk, config.clone(), 2)?;
    let (contents, report) = (log.contents()?, log.report().clone());
    drop(log);
    // A second recovery decides the same, whatever the power failure takes that comes before it.
    let again = LocalLog::open(&disk.crash(|_| Class::Absent), config, 3)?;
    assert_eq!(again.contents()?, contents, "{way:?}: a second recovery decides otherwise");
    Ok(Seen { indexes: indexes(&contents), report })
}

fn indexes(contents: &Contents) -> Vec<u64> {
    contents.entries.iter().map(|entry| entry.index).collect()
}

/// Opens copies in these ways; each shows exactly these entries. Gives the report of the first way.
fn holds(disk: &SimDisk, ways: &[Way], entries: RangeInclusive<u64>) -> RecoveryReport {
    let mut reports = Vec::new();
    for &way in ways {
        let copy = disk.copy_at_rest();
        let seen = open(&copy, way).unwrap_or_else(|error| panic!("{way:?}: {error}"));
        assert_eq!(seen.indexes, entries.clone().collect::<Vec<_>>(), "{way:?}");
        if way.read_only {
            assert_untouched(&copy, disk);
        }
        reports.push(seen.report);
    }
    reports.swap_remove(0)
}

/// Opens copies in these ways; each is refused, with damage in this file at this byte from this index on, and nothing
/// is changed.
fn corrupt(disk: &SimDisk, ways: &[Way], name: &str, at: u64, first_index: u64, why: &str) {
    for &way in ways {
        let copy = disk.copy_at_rest();
        match open(&copy, way).err() {
            Some(Error::Corrupt { file, offset, indexes, reason }) => {
                assert!(file.ends_with(name), "{way:?}: {} instead of {name}", file.display());
                assert_eq!((offset, indexes.start), (at, first_index), "{way:?}: {reason}");
                assert!(reason.contains(why), "{way:?}: {reason:?} says nothing of {why:?}");
            }
            other => panic!("{way:?}: {other:?}"),
        }
        assert_untouched(&copy, disk);
    }
}

fn unsupported(disk: &SimDisk, name: &str, at: u64) {
    for way in EVERY_WAY {
        let copy = disk.copy_at_rest();
        match open(&copy, way).err() {
            Some(Error::Unsupported { file, offset, .. }) => assert!(file.ends_with(name) && offset == at, "{way:?}"),
            other => panic!("{way:?}: {other:?}"),
        }
        assert_untouched(&copy, disk);
    }
}

fn assert_untouched(disk: &SimDisk, before: &SimDisk) {
    let files = |disk: &SimDisk| {
        let names = disk.file_names().into_iter().filter(|name| **name != *names::LOCK);
        names.map(|name| (disk.contents(&name).unwrap(), name)).collect::<Vec<_>>()
    };
    assert!(files(disk) == files(before), "files were changed, made or removed");
}

// ---- the files ----

fn an_empty_directory_becomes_a_log_for_a_writer_and_is_nothing_to_a_reader() {
    let disk = SimDisk::manual(1);
    assert!(matches!(open(&disk, READING), Err(Error::Foreign { .. })));
    assert!(disk.file_names().is_empty());
    let report = holds(&disk, &[WRITING, WRITING_FULL], NOTHING);
    assert_eq!((report.created, report.bytes_cut), (true, 0));
}

fn all_segments_gone_with_a_mark_in_the_lock_file() {
    let disk = closed(30);
    disk.file_names().iter().filter(|name| name.ends_with(".seg")).for_each(|name| disk.remove_file(name).unwrap());
    corrupt(&disk, &EVERY_WAY, &names::segment(1), 0, 0, "all segments are gone");
}

fn a_segment_of_another_size() {
    let disk = killed(30);
    let name = names::segment(2);
    write_header(&disk, 2, &SegmentHeader { segment_bytes: (BLOCKS + 1) * BLOCK, ..header_of(&disk, 2) });
    disk.set_len(&name, (BLOCKS + 1) * BLOCK).unwrap();
    corrupt(&disk, &EVERY_WAY, &name, 0, 0, "its size differs");
}

fn a_segment_of_another_log() {
    let disk = killed(30);
    write_header(&disk, 2, &SegmentHeader { log_id: [9; 16], ..header_of(&disk, 2) });
    corrupt(&disk, &EVERY_WAY, &names::segment(2), 0, 0, "another log");
}

fn a_lock_file_of_another_log() {
    let disk = closed(30);
    let slot = Slot { log_id: [9; 16], watermark: 1000 }.encode();
    let range = SLOT_OFFSETS[0]..SLOT_OFFSETS[0] + slot.len() as u64;
    disk.edit_range(names::LOCK, range, |bytes| bytes.copy_from_slice(&slot)).unwrap();
    corrupt(&disk, &EVERY_WAY, names::LOCK, 0, 0, "another log");
}

// ---- headers ----

fn a_segment_under_the_name_of_another() {
    let disk = killed(50);
    disk.swap_files(&names::segment(1), &names::segment(2)).unwrap();
    corrupt(&disk, &EVERY_WAY, &names::segment(1), 0, 0, "it is segment 2 under the name of segment 1");
}

fn a_segment_file_cut_short() {
    for segment in [1, 2, 3] {
        let disk = killed(50);
        disk.set_len(&names::segment(segment), (BLOCKS - 1) * BLOCK).unwrap();
        corrupt(&disk, &EVERY_WAY, &names::segment(segment), 0, 0, "it is shorter");
    }
}

fn a_segment_header_of_a_newer_version() {
    let disk = killed(30);
    let salt = header_of(&disk, 2).salt;
    let edit = |bytes: &mut Vec<u8>| {
        bytes[8] = 2;
        let checksum = Salted::new(salt).over(&bytes[..56]).value();
        bytes[56..60].copy_from_slice(&checksum.to_le_bytes());
    };
    disk.edit_file(&names::segment(2), edit).unwrap();
    unsupported(&disk, &names::segment(2), 8);
}

fn a_zeroed_header() {
    for segment in [1, 2, 3] {
        let disk = killed(50);
        disk.zero_range(&names::segment(segment), 0..BLOCK).unwrap();
        corrupt(&disk, &[WRITING, WRITING_FULL], &names::segment(segment), 0, 0, "header");
        assert_eq!(holds(&disk, &[READING, READING_FULL], 1..=50).damaged_headers, 1);
    }
}

fn a_zeroed_header_and_a_zeroed_first_frame() {
    let disk = killed(50);
    disk.zero_range(&names::segment(2), 0..2 * BLOCK).unwrap();
    corrupt(&disk, &EVERY_WAY, &names::segment(2), 0, 0, "header");
}

// ---- a log as it should be ----

fn nothing_damaged_in_a_closed_log() {
    let report = holds(&closed(50), &EVERY_WAY, 1..=50);
    assert!(report.was_clean && report.frames_rewritten == 0 && report.bytes_cut == 0);
    // Segments 1 and 2 are proved by segment 3; the walk starts in 2.
    assert_eq!(report.frames_kept, frame_of(50) + 1 - FRAMES);
    assert_eq!(holds(&closed(50), &[WRITING_FULL], 1..=50).frames_kept, frame_of(50) + 1);
}

fn nothing_damaged_in_a_log_of_one_segment() {
    let report = holds(&killed(5), &EVERY_WAY, 1..=5);
    assert_eq!((report.was_clean, report.frames_kept, report.bytes_cut), (false, 6, 0));
}

fn index_files_there_and_gone() {
    let disk = killed_with_indexes(80);
    assert_eq!(holds(&disk, &EVERY_WAY, 1..=80).indexes_rebuilt, 0);
    disk.remove_file(&names::index(1)).unwrap();
    assert_eq!(holds(&disk, &EVERY_WAY, 1..=80).indexes_rebuilt, 1);
}

// ---- first frames ----

fn the_first_frame_of_the_first_of_many_segments_zeroed() {
    let disk = killed_with_indexes(80);
    zero(&disk, 1);
    corrupt(&disk, &EVERY_WAY, &names::segment(1), BLOCK, 0, "");
}

fn the_first_frame_of_a_middle_segment_zeroed() {
    let disk = killed_with_indexes(80);
    zero(&disk, 1 + FRAMES);
    corrupt(&disk, &[WRITING, READING], &names::segment(2), BLOCK, 0, "its first frame is damaged");
    // The walk comes there from segment 1, and knows what follows.
    corrupt(&disk, &[WRITING_FULL, READING_FULL], &names::segment(2), BLOCK, FRAMES, "frame 24 is missing or damaged");
}

fn the_first_frame_of_a_run_that_does_not_begin_with_segment_1_zeroed() {
    let disk = killed_with_a_drop(50, 25);
    zero(&disk, 1 + FRAMES);
    corrupt(&disk, &EVERY_WAY, &names::segment(2), BLOCK, 0, "its first frame is damaged");
}

fn the_first_frame_of_the_run_torn_behind_its_index_file() {
    let disk = killed_with_a_drop(80, 25);
    tear(&disk, 1 + FRAMES);
    // By its index file the segment holds entries from 26 on; a walk from there has nothing to go by.
    corrupt(&disk, &[WRITING, READING], &names::segment(2), BLOCK, 26, "its first frame is damaged");
    corrupt(&disk, &[WRITING_FULL, READING_FULL], &names::segment(2), BLOCK, 0, "its first frame is damaged");
}

fn the_open_frame_of_a_new_log_zeroed() {
    let disk = killed(0);
    zero(&disk, 1);
    let report = holds(&disk, &EVERY_WAY, NOTHING);
    assert_eq!((report.created, report.bytes_cut), (false, 0));
}

// ---- the end ----

fn the_last_frame_of_a_killed_log_zeroed() {
    for last in [5, 50] {
        let disk = killed(last);
        zero(&disk, frame_of(last));
        let report = holds(&disk, &EVERY_WAY, 1..=last - 1);
        assert_eq!((report.bytes_cut, report.saved_to), (0, None), "there is nothing to be saved");
    }
}

fn the_last_frame_of_a_killed_log_torn() {
    for last in [5, 50] {
        let disk = killed(last);
        tear(&disk, frame_of(last));
        let report = holds(&disk, &EVERY_WAY, 1..=last - 1);
        assert_eq!(report.bytes_cut, BLOCK);
        let opened = disk.copy_at_rest();
        let saved = open(&opened, WRITING).unwrap().report.saved_to.unwrap();
        let saved = opened.read_file(saved.file_name().unwrap().to_str().unwrap()).unwrap();
        let (segment, offset) = place(frame_of(last));
        assert_eq!(saved, disk.contents(&names::segment(segment)).unwrap()[offset as usize..][..BLOCK as usize]);
    }
}

fn a_last_frame_with_garbage_for_its_lengths() {
    // Of the frame, its operations, its entries, its base, its operations' bytes.
    for field in [8, 12, 16, 20, 24] {
        for garbage in [3, 7, 511, 513, 1024, 12_288, 1 << 20, 1 << 31, u32::MAX - 7, u32::MAX] {
            let disk = killed(50);
            let (segment, offset) = place(frame_of(50));
            let salt = header_of(&disk, segment).salt;
            let edit = |bytes: &mut [u8]| {
                bytes[field..field + 4].copy_from_slice(&u32::to_le_bytes(garbage));
                let checksum = Salted::new(salt).over(&bytes[..HEAD_BYTES - 4]).value();
                bytes[HEAD_BYTES - 4..].copy_from_slice(&checksum.to_le_bytes());
            };
            disk.edit_range(&names::segment(segment), offset..offset + HEAD_BYTES as u64, edit).unwrap();
            holds(&disk, &EVERY_WAY, 1..=49);
        }
    }
}

fn a_torn_frame_with_a_payload_of_whole_frames() {
    // Frames of another log, at the blocks of this one, with watermarks past the frame that carries them.
    let other = SimDisk::manual(2);
    let mut log = LocalLog::open(&other, config(), 9).unwrap();
    append_each(&mut log, 1..=20);
    let frames = &other.read_file(&names::segment(1)).unwrap()[(10 * BLOCK) as usize..(20 * BLOCK) as usize];
    let before_first_block = BLOCK as usize - HEAD_BYTES - frame::OPERATION_HEADER_BYTES;
    let payload = [&vec![0; before_first_block], frames].concat();
    let (disk, mut log) = log_to(5);
    log.submit(&[Request::Entry(LogEntry::new(1, 6, payload))]).unwrap();
    log.pump().unwrap();
    for fate in [Class::Tail, Class::OneMissing(1), Class::OneMissing(9), Class::Head] {
        let torn = disk.crash(|end| if end.is_in_flight() { fate.clone() } else { Class::Whole });
        if fate == Class::Tail {
            let bytes = torn.contents(&names::segment(1)).unwrap();
            assert!(bytes[place(9).1 as usize..].starts_with(b"RWF1"), "there is a frame at a block");
        }
        holds(&torn, &EVERY_WAY, 1..=5);
    }
    holds(&disk.crash(|_| Class::Whole), &EVERY_WAY, 1..=6);
}

fn the_last_frame_of_a_killed_log_whole_but_unproved() {
    let report = holds(&killed(5), &EVERY_WAY, 1..=5);
    // Each frame proves those before it.
    assert_eq!((report.frames_rewritten, report.frames_kept), (1, 6));
}

fn a_frame_in_the_middle_torn() {
    for (disk, last) in [(killed(50), 50), (closed(50), 51)] {
        // From the second frame of the segment where the walk starts to the last that anything proves.
        for frame in FRAMES + 2..frame_of(last) {
            let copy = disk.copy_at_rest();
            tear(&copy, frame);
            let (segment, offset) = place(frame);
            corrupt(&copy, &EVERY_WAY, &names::segment(segment), offset, frame - 1, "durable");
        }
    }
}

fn a_frame_in_the_middle_zeroed() {
    let disk = closed(40);
    for frame in 2..=frame_of(40) {
        let copy = disk.copy_at_rest();
        zero(&copy, frame);
        let (segment, offset) = place(frame);
        // Before the first entry no index is known.
        let first_index = if frame == 2 { 0 } else { frame - 1 };
        corrupt(&copy, &EVERY_WAY, &names::segment(segment), offset, first_index, "durable");
    }
}

fn the_last_frame_before_a_roll_torn() {
    // The hole: the newer segment is there, and the end of the older one is not.
    for lost in 1..=4 {
        for damage in [zero, tear] {
            let disk = killed(30);
            (FRAMES + 1 - lost..=FRAMES).for_each(|frame| damage(&disk, frame));
            let frame = FRAMES + 1 - lost;
            corrupt(&disk, &EVERY_WAY, &names::segment(1), place(frame).1, frame - 1, "durable");
        }
    }
}

/// A log killed with two frames in flight, of which these units of the first and all of the second are there.
fn first_of_two_lost(last: u64, first: Class) -> SimDisk {
    let (disk, mut log) = log_to(last);
    log.prepare_spare().unwrap();
    log.submit(&[entry(last + 1)]).unwrap();
    log.submit(&[entry(last + 2)]).unwrap();
    assert_eq!(log.pump().unwrap(), 2);
    let mut fates = [first, Class::Whole].into_iter();
    let fate = |end: &LooseEnd| match end.is_in_flight() {
        true => fates.next().unwrap(),
        false => Class::Whole,
    };
    disk.crash(fate)
}

fn a_torn_frame_before_a_whole_one_of_its_life() {
    let report = holds(&first_of_two_lost(5, Class::Absent), &EVERY_WAY, 1..=5);
    assert_eq!((report.bytes_cut, report.was_clean), (2 * BLOCK, false));
}

fn a_whole_frame_of_a_dead_life_behind_the_open_frame() {
    // Torn frame 7, whole frame 8. The next life's open frame takes the place and number of frame 7, at the same length:
    // the dead frame 8 stands right behind it, of the number that comes next.
    let disk = first_of_two_lost(5, Class::Absent);
    let mut log = LocalLog::open(&disk, config(), 4).unwrap();
    let at_rest = disk.copy_at_rest();
    assert_eq!((head_at(&at_rest, place(7)).kind, head_at(&at_rest, place(8)).number), (FrameKind::Open, 8));
    assert!(holds(&at_rest, &EVERY_WAY, 1..=5).was_clean, "what is behind is of another life");
    // That life's own frame 8 gets as far as the device, or not at all: then the dead one is still there.
    log.submit(&[entry(6)]).unwrap();
    log.pump().unwrap();
    holds(&disk.crash(|_| Class::Absent), &EVERY_WAY, 1..=5);
    holds(&disk.crash(|_| Class::Whole), &EVERY_WAY, 1..=6);
}

fn a_frame_of_a_newer_version_where_the_log_ends() {
    for disk in [killed(50), closed(49)] {
        make_newer(&disk, place(51));
        unsupported(&disk, &names::segment(3), place(51).1);
    }
}

fn a_frame_of_a_newer_version_behind_the_end() {
    let disk = first_of_two_lost(5, Class::Absent);
    make_newer(&disk, place(8));
    unsupported(&disk, &names::segment(1), place(8).1);
}

fn the_last_entry_and_the_mark_behind_it_zeroed() {
    let disk = closed(50);
    zero(&disk, frame_of(50));
    zero(&disk, frame_of(51));
    let (segment, offset) = place(frame_of(50));
    corrupt(&disk, &EVERY_WAY, &names::segment(segment), offset, 50, "the mark in the lock file");
}

fn a_torn_frame_after_the_mark_in_the_lock_file() {
    let disk = closed(5);
    let mut log = LocalLog::open(&disk, config(), 4).unwrap();
    append(&mut log, &[entry(6)]);
    append(&mut log, &[entry(7)]);
    let disk = disk.copy_at_rest();
    // Open frame, five entries, mark, open frame, two entries.
    tear(&disk, 10);
    holds(&disk, &EVERY_WAY, 1..=6);
}

// ---- missing segments ----

fn a_segment_dropped_after_a_compaction() {
    let disk = killed_with_a_drop(50, 25);
    assert!(!disk.file_names().iter().any(|name| **name == *names::segment(1)));
    holds(&disk, &EVERY_WAY, 26..=50);
}

fn a_segment_deleted_without_a_compaction() {
    for last in [30, 80] {
        let disk = killed_with_indexes(last);
        disk.remove_file(&names::segment(1)).unwrap();
        corrupt(&disk, &EVERY_WAY, &names::segment(1), 0, 0, "the segment is missing");
    }
}

// ---- frames that verify and cannot be ----

fn a_forged_frame_that_proves_itself_durable() {
    for watermark in [7, 8, u64::MAX] {
        let disk = killed(5);
        let operations = [plain(6)];
        let (_, offset) = forge(&disk, 5, |spec| (spec.watermark, spec.operations) = (watermark, &operations));
        corrupt(&disk, &EVERY_WAY, &names::segment(1), offset, 6, "counters");
    }
}

/// As the first frame of segment 2.
fn forged_first_frame(base: Option<State>) -> (SimDisk, u64) {
    let disk = killed_with_spare(FRAMES - 1);
    let operations = [plain(FRAMES)];
    let (_, offset) = forge(&disk, FRAMES - 1, |spec| (spec.base, spec.operations) = (base.as_ref(), &operations));
    (disk, offset)
}

/// As [`killed`], with a spare behind.
fn killed_with_spare(last: u64) -> SimDisk {
    let (disk, mut log) = log_to(last);
    log.prepare_spare().unwrap();
    disk.copy_at_rest()
}

fn a_forged_frame_without_a_base_where_a_segment_begins() {
    let (disk, offset) = forged_first_frame(None);
    corrupt(&disk, &EVERY_WAY, &names::segment(2), offset, FRAMES, "no base");
}

fn a_forged_frame_with_another_base() {
    let right = state_after(FRAMES - 1);
    let (disk, _) = forged_first_frame(Some(right.clone()));
    holds(&disk, &EVERY_WAY, 1..=FRAMES);
    for wrong in [
        State { first: Some(2), ..right.clone() },
        State { next: Some(FRAMES + 1), ..right.clone() },
        State { last_term: 2, ..right.clone() },
        State { compacted: Some((0, 0)), ..right.clone() },
        State { hard_state: Arc::new([(Bytes::new(), Bytes::new())].into()), ..right },
    ] {
        let (disk, offset) = forged_first_frame(Some(wrong));
        corrupt(&disk, &EVERY_WAY, &names::segment(2), offset, FRAMES, "contradicts");
    }
}

fn a_forged_frame_with_a_base_where_none_belongs() {
    let (disk, operations, base) = (killed(5), [plain(6)], state_after(5));
    let (_, offset) = forge(&disk, 5, |spec| (spec.base, spec.operations) = (Some(&base), &operations));
    corrupt(&disk, &EVERY_WAY, &names::segment(1), offset, 6, "does not begin a segment");
}

fn a_forged_truncation_with_another_last_term() {
    for (last_term, is_so) in [(0, false), (1, true), (2, false)] {
        let (disk, operations) = (killed(5), [Operation::Truncate { first_removed: 4, last_term }]);
        let (_, offset) = forge(&disk, 5, |spec| (spec.operations, spec.first_index) = (&operations, Some(4)));
        match is_so {
            true => drop(holds(&disk, &EVERY_WAY, 1..=3)),
            false => corrupt(&disk, &EVERY_WAY, &names::segment(1), offset, 6, "a truncation leaves term"),
        }
    }
}

fn a_forged_truncation_into_an_older_segment_with_another_last_term() {
    // The entry that stays last lies in segment 1, the walk starts in segment 3: with an index file, with a damaged one
    // and without one it is found out alike.
    for (last_term, is_so) in [(0, false), (1, true), (2, false)] {
        let disk = killed_with_indexes(80);
        let operations = [Operation::Truncate { first_removed: 11, last_term }];
        let (segment, offset) = forge(&disk, 80, |spec| (spec.operations, spec.first_index) = (&operations, Some(11)));
        let name = names::index(1);
        let gone = |disk: &SimDisk| disk.remove_file(&name).unwrap();
        let torn = |disk: &SimDisk| disk.flip_bit(&name, 70, 1).unwrap();
        let astray = |disk: &SimDisk| {
            let at = disk.contents(&name).unwrap().len() as u64 - 4 * (FRAMES - 1 - 9);
            disk.flip_bit(&name, at, 3).unwrap();
        };
        let damages: [&dyn Fn(&SimDisk); 4] = [&|_| (), &gone, &torn, &astray];
        for damage in damages {
            let copy = disk.copy_at_rest();
            damage(&copy);
            match is_so {
                true => drop(holds(&copy, &EVERY_WAY, 1..=10)),
                false => corrupt(&copy, &EVERY_WAY, &names::segment(segment), offset, 81, "a truncation leaves term"),
            }
        }
    }
}

#[test]
fn truncations_that_leave_the_same_entry_of_an_older_segment_last_read_it_once() {
    let reads = |truncations: u64| {
        let disk = killed_with_indexes(70);
        let operations = [Operation::Truncate { first_removed: 11, last_term: 1 }];
        for nth in 0..truncations {
            forge(&disk, 70 + nth, |spec| (spec.operations, spec.first_index) = (&operations, Some(11)));
        }
        let before = disk.counters();
        open(&disk, READING).unwrap();
        disk.counters().of(OpKind::Read) - before.of(OpKind::Read)
    };
    assert!(reads(1) > reads(0));
    assert_eq!(reads(9), reads(1));
}

fn a_forged_entry_that_leaves_a_gap() {
    let (disk, operations) = (killed(5), [plain(7)]);
    let (_, offset) = forge(&disk, 5, |spec| (spec.operations, spec.first_index) = (&operations, Some(7)));
    corrupt(&disk, &EVERY_WAY, &names::segment(1), offset, 6, "does not fit the log before it");
}

fn a_forged_frame_with_another_first_index() {
    for first_index in [None, Some(5), Some(7)] {
        let (disk, operations) = (killed(5), [plain(6)]);
        let (_, offset) = forge(&disk, 5, |spec| (spec.operations, spec.first_index) = (&operations, first_index));
        corrupt(&disk, &EVERY_WAY, &names::segment(1), offset, 7, "first index");
    }
}

// ---- going on ----

fn a_killed_log_with_its_last_segment_full_and_a_spare_behind() {
    let disk = killed_with_spare(FRAMES - 1);
    holds(&disk, &EVERY_WAY, 1..=FRAMES - 1);
    let log = LocalLog::open(&disk, config(), 2).unwrap();
    assert_eq!((log.active_segment(), log.tail()), (2, 2 * BLOCK), "the open frame begins segment 2");
}

fn a_killed_log_with_its_last_segment_full_and_no_spare() {
    let disk = SimDisk::manual(1);
    let mut log = LocalLog::open(&disk, config(), 1).unwrap();
    append(&mut log, &[entry(1)]);
    let put = Request::PutMeta(Bytes::from_static(b"vote"), Bytes::from_static(b"me"));
    while log.tail() < (BLOCKS - 2) * BLOCK {
        append(&mut log, std::slice::from_ref(&put));
    }
    let disk = disk.copy_at_rest();
    holds(&disk, &EVERY_WAY, 1..=1);
    let before = disk.read_file(&names::segment(1)).unwrap();
    let mut log = LocalLog::open(&disk, config(), 2).unwrap();
    let (used, left) = before.split_at(((BLOCKS - 2) * BLOCK) as usize);
    let after = disk.read_file(&names::segment(1)).unwrap();
    assert!(after.starts_with(used) && after.ends_with(left) && log.segments() == [1], "no open frame yet");
    append(&mut log, &[entry(2)]);
    assert_eq!(indexes(&log.contents().unwrap()), [1, 2]);
    drop(log);
    holds(&disk.copy_at_rest(), &EVERY_WAY, 1..=2);
}

fn the_first_frame_of_a_segment_whole_and_the_one_before_it_lost() {
    let disk = first_of_two_lost(FRAMES - 2, Class::Absent);
    let first = place(1 + FRAMES);
    assert_eq!(head_at(&disk, first).number, 1 + FRAMES);
    holds(&disk, &EVERY_WAY, 1..=FRAMES - 2);
    drop(LocalLog::open(&disk, config(), 2).unwrap());
    let block = &disk.contents(&names::segment(first.0)).unwrap()[first.1 as usize..][..BLOCK as usize];
    assert!(block.iter().all(|&byte| byte == 0), "the dead first frame is cleared");
}

/// The same files on a device that writes 4096 bytes as a whole.
fn on_larger_blocks(disk: &SimDisk) -> SimDisk {
    let copy = SimDisk::with_options(SimOptions { physical_block_bytes: 4096, ..SimOptions::default() });
    for name in disk.file_names() {
        copy.write_file(&name, &disk.contents(&name).unwrap()).unwrap();
    }
    copy
}

/// Segments that are large enough for either block size.
fn mixed(block_bytes: u32) -> Config {
    config().block_bytes(Some(block_bytes)).segment_bytes(BLOCKS * 4096).frame_bytes_max(4096)
}

fn a_log_copied_to_a_device_of_larger_blocks() {
    let disk = SimDisk::manual(1);
    let mut log = LocalLog::open(&disk, mixed(512), 1).unwrap();
    append_each(&mut log, 1..=5);
    let copy = on_larger_blocks(&disk);
    let mut log = LocalLog::open(&copy, mixed(4096), 2).unwrap();
    assert_eq!(log.segments(), [1], "the spare of small blocks is gone");
    append(&mut log, &[entry(6)]);
    assert_eq!((indexes(&log.contents().unwrap()), log.active_segment()), ((1..=6).collect(), 2));
    assert_eq!(header_of(&copy, 2).block_bytes, 4096);
    let again = LocalLog::open(&copy.copy_at_rest(), mixed(4096), 3).unwrap();
    assert_eq!(again.contents().unwrap(), log.contents().unwrap());
}

fn a_spare_copied_to_a_device_of_larger_blocks() {
    let disk = SimDisk::manual(1);
    LocalLog::open(&disk, mixed(4096), 1).unwrap().close().unwrap();
    let mut log = LocalLog::open(&disk, mixed(512), 2).unwrap();
    append_each(&mut log, 1..=5);
    assert_eq!((log.segments(), header_of(&disk, 2).block_bytes), (vec![1, 2], 512));
    let copy = on_larger_blocks(&disk);
    let log = LocalLog::open(&copy, mixed(4096), 3).unwrap();
    assert_eq!((log.segments(), indexes(&log.contents().unwrap())), (vec![1], (1..=5).collect()));
}

/// It was a panic: there was no segment to go on from.
fn a_log_killed_before_its_first_frame_and_copied_to_a_device_of_larger_blocks() {
    let disk = SimDisk::manual(1);
    drop(LocalLog::open(&disk, mixed(512), 1).unwrap());
    disk.zero_range(&names::segment(1), 512..BLOCKS * 4096).unwrap();
    let copy = on_larger_blocks(&disk);
    for verify in [Verify::Tail, Verify::Full] {
        let refused = LocalLog::open(&copy, mixed(4096).verify(verify), 2).unwrap_err();
        assert!(matches!(&refused, Error::Config(why) if why.contains("remove")), "{refused}");
    }
    assert_eq!(copy.file_names(), disk.file_names(), "and nothing was removed");
}
