//! Damage that once broke a log, each as the crash explorer found it, by hand and small.
//!
//! They run a whole log in this thread ([`LocalLog`]) on a simulated disk: blocks of 512 bytes, segments of 24.

use std::time::Duration;

use bytes::Bytes;

use crate::config::{Config, Verify};
use crate::disk::Disk;
use crate::engine::sequencer::Request;
use crate::entry::LogEntry;
use crate::error::Error;
use crate::format::frame::{self, Epoch, FrameKind, FrameSpec, Head, HeadRead};
use crate::format::segment::SegmentHeader;
use crate::format::{Salted, names};
use crate::sim::{Class, Contents, CrashPoint, FaultRule, Landing, LocalLog, Loose, LooseEnd, SimDisk};

fn config() -> Config {
    Config::default().block_bytes(Some(512)).segment_bytes(24 * 512).frame_bytes_max(512).lock_wait(Duration::ZERO)
}

fn open(disk: &SimDisk, seed: u64) -> LocalLog {
    LocalLog::open(disk, config(), seed).unwrap()
}

fn entry(index: u64, term: u64, bytes: usize) -> Request {
    Request::Entry(LogEntry::new(term, index, vec![index as u8; bytes]))
}

/// Has the batch acknowledged.
fn append(log: &mut LocalLog, batch: &[Request]) {
    log.submit(batch).unwrap();
    log.drain().unwrap();
}

fn indexes(contents: &Contents) -> Vec<u64> {
    contents.entries.iter().map(|entry| entry.index).collect()
}

#[test]
fn a_crash_while_the_log_is_created_does_not_block_the_next_open() {
    let disk = SimDisk::manual(1);
    disk.write_file(&names::temporary(&names::segment(1)), &[0; 512]).unwrap();
    assert_eq!(open(&disk, 1).contents().unwrap(), Contents::default());
}

#[test]
fn a_compaction_among_entries_of_dropped_or_unread_segments_is_replayed() {
    let disk = SimDisk::manual(1);
    let mut log = open(&disk, 1);
    // Segment 1 holds entries 1 and 2, segment 2 a compaction to 1, of a lower term than the last entry's.
    append(&mut log, &[entry(1, 1, 5000)]);
    append(&mut log, &[entry(2, 2, 5000)]);
    append(&mut log, &[entry(3, 2, 5000)]);
    append(&mut log, &[Request::Compact(1, None)]);
    append(&mut log, &[entry(4, 2, 5000)]);
    (5..8).for_each(|index| append(&mut log, &[entry(index, 2, 5000)]));
    assert_eq!(log.active_segment(), 4, "segment 2 is not walked at open");
    let expected = log.contents().unwrap();
    log.close().unwrap();
    assert!(disk.file_names().iter().all(|name| !name.ends_with(".idx")), "every index is made from its segment");
    for verify in [Verify::Tail, Verify::Full] {
        let log = LocalLog::open(&disk.copy_at_rest(), config().verify(verify), 2).unwrap();
        assert_eq!(log.contents().unwrap(), expected);
    }
}

#[test]
fn a_segment_that_empties_a_log_whose_first_segment_is_gone_is_replayed() {
    let disk = SimDisk::manual(1);
    let mut log = open(&disk, 1);
    append(&mut log, &[entry(1, 1, 5000)]);
    append(&mut log, &[entry(2, 2, 5000)]);
    // In segment 2 the log is emptied and begins elsewhere; then segment 1 is dropped.
    append(&mut log, &[entry(3, 2, 5000)]);
    append(&mut log, &[Request::Truncate(1), entry(50, 3, 10)]);
    append(&mut log, &[Request::Compact(49, Some(3))]);
    log.seal_one().unwrap();
    assert!(log.drop_one().unwrap() && log.remove_dropped().unwrap());
    let expected = log.contents().unwrap();
    log.close().unwrap();
    let log = LocalLog::open(&disk, config().verify(Verify::Full), 2).unwrap();
    assert_eq!((log.contents().unwrap(), indexes(&expected)), (expected.clone(), vec![50]));
}

#[test]
fn a_spare_named_by_a_killed_process_keeps_its_name_when_the_power_fails_later() {
    let disk = SimDisk::manual(1);
    let mut log = open(&disk, 1);
    disk.start_recording();
    log.prepare_spare().unwrap();
    let renamed = disk
        .take_recording()
        .into_iter()
        .find(|point| point.loose_ends().iter().any(|end| matches!(end.what, Loose::Renamed { .. })));
    let killed = renamed.unwrap().kill(|_| unreachable!("nothing is in flight"));
    let log = open(&killed, 2);
    assert_eq!(log.segments(), [1, 2]);
    let names = killed.crash(|_| Class::Absent).list().unwrap();
    assert!(names.contains(&names::segment(2)), "frames may go to segment 2 now: {names:?}");
}

#[test]
fn a_dead_first_frame_in_a_spare_is_not_taken_for_a_durable_one() {
    let disk = SimDisk::manual(1);
    let config = || config().spare_segments(3).frames_in_flight(3);
    let kept_in = |segment, class: Class| {
        move |end: &LooseEnd| match end.is_in_flight() && *end.file == *names::segment(segment) {
            true => class.clone(),
            false => Class::Absent,
        }
    };
    let mut log = LocalLog::open(&disk, config(), 1).unwrap();
    while log.prepare_spare().unwrap() {}
    append(&mut log, &[entry(1, 1, 5000)]);
    // Frame 3 fills segment 1 and is lost; frame 4, in flight with it, begins segment 2 and is kept.
    log.submit(&[entry(2, 1, 5000)]).unwrap();
    log.submit(&[entry(3, 1, 5000)]).unwrap();
    log.pump().unwrap();
    let disk = disk.crash(kept_in(2, Class::Whole));
    // The next life has its own frames 3 to 5 in segment 1, all durable. Then two rolls are in flight at once, and
    // only the second gets to the disk.
    let mut log = LocalLog::open(&disk, config(), 2).unwrap();
    append(&mut log, &[entry(2, 1, 10)]);
    append(&mut log, &[entry(3, 1, 10)]);
    log.submit(&[entry(4, 1, 5900)]).unwrap();
    log.submit(&[entry(5, 1, 5900)]).unwrap();
    log.pump().unwrap();
    assert_eq!((log.progress().1, log.active_segment()), (5, 3));
    let log = LocalLog::open(&disk.crash(kept_in(3, Class::Head)), config(), 3).unwrap();
    assert_eq!(indexes(&log.contents().unwrap()), [1, 2, 3]);
}

#[test]
fn an_open_frame_that_rolls_leaves_room_for_what_follows_it() {
    let disk = SimDisk::manual(1);
    let mut log = open(&disk, 1);
    log.prepare_spare().unwrap();
    // A clean end in the last block of segment 1: the open frame of the next life begins segment 2.
    while log.active_segment() == 1 && log.tail() < 23 * 512 {
        append(&mut log, &[Request::PutMeta(Bytes::from_static(b"k"), Bytes::from_static(b"v"))]);
    }
    log.close().unwrap();
    let mut log = open(&disk, 2);
    append(&mut log, &[Request::Push(Bytes::from_static(b"first"))]);
    assert_eq!((log.active_segment(), indexes(&log.contents().unwrap())), (2, vec![1]));
}

#[test]
fn a_full_disk_that_lost_the_size_of_the_lock_file_opens() {
    let disk = SimDisk::manual(1);
    let mut log = open(&disk, 1);
    append(&mut log, &[entry(1, 1, 10)]);
    let lost = disk.crash(|_| Class::Absent);
    assert_eq!(lost.read_file(names::LOCK).unwrap().len(), 0, "nobody syncs it before a mark");
    lost.set_capacity(Some(lost.used_bytes()));
    assert_eq!(indexes(&open(&lost, 2).contents().unwrap()), [1]);
}

#[test]
fn a_frame_that_a_killed_process_left_in_the_devices_cache_is_durable_once_it_was_shown() {
    let disk = SimDisk::manual(1);
    let mut log = open(&disk, 1);
    append(&mut log, &[entry(1, 1, 10)]);
    log.submit(&[entry(2, 1, 10)]).unwrap();
    log.pump().unwrap();
    let killed = disk.crash_point().kill(|_| Landing::Units(Class::Whole));
    assert_eq!(indexes(&killed_and_lost(&killed)), [1], "nothing proves that it got further than the cache");
    let shown = open(&killed, 2).contents().unwrap();
    assert_eq!(indexes(&shown), [1, 2]);
    assert_eq!(killed_and_lost(&killed), shown);
}

/// What the next open finds after the power failed.
fn killed_and_lost(killed: &SimDisk) -> Contents {
    open(&killed.crash(|_| Class::Absent), 3).contents().unwrap()
}

/// Opens images of crash points, each twice; gives what was found.
fn after_crashes(points: &[CrashPoint], config: &Config, mut check: impl FnMut(&Contents)) {
    assert!(!points.is_empty());
    for point in points {
        for fates in point.fates(64, 1) {
            let image = point.image(&fates);
            let found = LocalLog::open(&image, config.clone(), 77).map(|log| log.contents().unwrap());
            let found = found.unwrap_or_else(|error| panic!("{error}\n{}", point.describe(&fates)));
            check(&found);
            let again = LocalLog::open(&image.crash(|_| Class::Absent), config.clone(), 78).unwrap();
            assert_eq!(again.contents().unwrap(), found, "a second recovery decides otherwise");
        }
    }
}

/// Every moment in the step, and the one after it.
fn moments<T>(disk: &SimDisk, step: impl FnOnce() -> T) -> (Vec<CrashPoint>, T) {
    disk.start_recording();
    let done = step();
    let mut points = disk.take_recording();
    points.push(disk.crash_point());
    (points, done)
}

#[test]
fn a_crash_at_any_step_of_create_roll_seal_drop_and_recycle_leaves_a_log_that_opens() {
    let disk = SimDisk::manual(1);
    let (points, mut log) = moments(&disk, || open(&disk, 1));
    after_crashes(&points, &config(), |found| assert_eq!(*found, Contents::default()));
    let mut recycled = 0;
    for index in 1..=40u64 {
        // Each step on its own, and none loses what was acknowledged before it.
        let kept = |found: &Contents| {
            assert!(found.next.unwrap_or(1) >= index, "{found:?} without entry {}", index - 1);
            assert_eq!(indexes(found).last().copied().unwrap_or(index), found.next.map_or(index, |next| next - 1));
        };
        recycled += log.dropped();
        let (points, _) = moments(&disk, || log.prepare_spare().unwrap());
        // A spare that is filled has many moments that are all alike.
        let few: Vec<_> = points.iter().rev().take(8).chain(points.first()).cloned().collect();
        after_crashes(&few, &config(), kept);
        let (points, ()) = moments(&disk, || append(&mut log, &[entry(index, 1, 1700)]));
        after_crashes(&points, &config(), kept);
        if index % 6 == 0 {
            let (points, ()) = moments(&disk, || append(&mut log, &[Request::Compact(index - 3, None)]));
            after_crashes(&points, &config(), kept);
        }
        let (points, _) = moments(&disk, || {
            while log.seal_one().unwrap() {}
            log.drop_one().unwrap()
        });
        after_crashes(&points, &config(), kept);
    }
    assert!(recycled > 2 && log.active_segment() > 6, "{recycled} recycled, segment {}", log.active_segment());
}

#[test]
fn a_truncation_across_segments_crashed_at_every_point_comes_whole_or_not_and_stays() {
    let disk = SimDisk::manual(1);
    let mut log = open(&disk, 1);
    (1..=30).for_each(|index| append(&mut log, &[entry(index, 1, 900)]));
    assert!(log.active_segment() >= 3);
    let before = log.contents().unwrap();
    let at = |upto: u64| -> Contents {
        let kept = before.entries.iter().filter(|entry| entry.index < 5).cloned();
        let new = (5..=upto).map(|index| LogEntry::new(2, index, vec![index as u8; 900]));
        let last_term = if upto < 5 { 1 } else { 2 };
        Contents { entries: kept.chain(new).collect(), next: Some(upto + 1), last_term, ..Contents::default() }
    };
    let (points, ()) = moments(&disk, || append(&mut log, &[Request::Truncate(5)]));
    let (after, inside) = points.split_last().unwrap();
    after_crashes(inside, &config(), |found| assert!(*found == before || *found == at(4), "{found:?}"));
    after_crashes(std::slice::from_ref(after), &config(), |found| assert_eq!(*found, at(4)));
    for index in 5..12 {
        let (points, ()) = moments(&disk, || append(&mut log, &[entry(index, 2, 900)]));
        let legal = [at(index - 1), at(index)];
        after_crashes(&points, &config(), |found| assert!(legal.contains(found), "{found:?}"));
    }
}

#[test]
fn recycled_segments_with_frames_of_one_size_crashed_at_every_frame_show_nothing_of_their_past() {
    let config = config().spare_segments(2);
    let disk = SimDisk::manual(1);
    let mut log = LocalLog::open(&disk, config.clone(), 1).unwrap();
    let (mut next, mut compacted, mut recycled) = (1, 0, 0);
    while log.active_segment() < 9 {
        while log.wants_spare() {
            let is_recycled = log.dropped() > 0;
            log.prepare_spare().unwrap();
            if is_recycled {
                assert_blank_to_its_salt(&disk, *log.segments().last().unwrap());
                recycled += 1;
            }
        }
        log.submit(&[entry(next, 1, 600)]).unwrap();
        log.submit(&[entry(next + 1, 1, 600)]).unwrap();
        assert_eq!(log.pump().unwrap(), 2, "two frames in flight, of two blocks each");
        for first in Class::usual(2, 0) {
            for second in Class::usual(2, 0) {
                let kept = match (&first, &second) {
                    (Class::Whole, Class::Whole) => next + 2,
                    (Class::Whole, _) => next + 1,
                    _ => next,
                };
                let mut fates = [first.clone(), second].into_iter();
                let of_segment = |end: &LooseEnd| if end.is_in_flight() { fates.next().unwrap() } else { Class::Whole };
                let image = disk.crash(of_segment);
                let found = LocalLog::open(&image, config.clone(), next).unwrap().contents().unwrap();
                assert_eq!(indexes(&found), (compacted + 1..kept).collect::<Vec<_>>());
            }
        }
        log.drain().unwrap();
        next += 2;
        if next - compacted > 20 {
            compacted = next - 4;
            append(&mut log, &[Request::Compact(compacted, None)]);
        }
        while log.seal_one().unwrap() {}
        log.drop_one().unwrap();
    }
    assert!(recycled >= 3, "{recycled} segments were recycled");
}

/// What lies in a recycled segment is there, and none of it verifies with the segment's new salt.
fn assert_blank_to_its_salt(disk: &SimDisk, sequence: u64) {
    let bytes = disk.contents(&names::segment(sequence)).unwrap();
    let salt = SegmentHeader::decode(&bytes).unwrap().salt;
    let blocks = || bytes.chunks(512).skip(1);
    assert!(blocks().filter(|block| Head::salt_in(block).is_some()).count() > 5, "it was zeroed");
    assert!(blocks().all(|block| Head::decode(block, salt) == HeadRead::Absent));
}

/// Bytes that recovery reads of a segment of 64 MiB, full of heads that verify and claim all that is behind them.
#[test]
fn a_segment_full_of_forged_heads_is_read_a_few_times_and_not_once_for_each_of_them() {
    const SEGMENT: u64 = 64 << 20;
    let config = Config::default().segment_bytes(SEGMENT).lock_wait(Duration::ZERO);
    let disk = SimDisk::manual(1);
    let mut log = LocalLog::open(&disk, config.clone(), 1).unwrap();
    append(&mut log, &[entry(1, 1, 10)]);
    let tail = log.tail();
    drop(log);
    let name = names::segment(1);
    let forge = |bytes: &mut Vec<u8>| {
        let salt = SegmentHeader::decode(bytes).unwrap().salt;
        for offset in (tail as usize..bytes.len()).step_by(4096) {
            let rest = bytes.len() - offset;
            let spec = FrameSpec {
                kind: FrameKind::Data,
                number: 3,
                epoch: Epoch { counter: 1, random: offset as u32 },
                chain: 0,
                watermark: 0,
                salt,
                offset: offset as u32,
                first_index: Some(2),
                base: None,
                operations: &[],
            };
            frame::encode(&spec, &mut bytes[offset..offset + 4096]);
            // All of what follows, as operations: the lengths fit each other.
            bytes[offset + 8..offset + 12].copy_from_slice(&(rest as u32).to_le_bytes());
            bytes[offset + 24..offset + 28].copy_from_slice(&((rest - 88) as u32).to_le_bytes());
            let checksum = Salted::new(salt).over(&bytes[offset..offset + 84]).value();
            bytes[offset + 84..offset + 88].copy_from_slice(&checksum.to_le_bytes());
        }
    };
    disk.edit_file(&name, forge).unwrap();
    for verify in [Verify::Tail, Verify::Full] {
        let disk = disk.copy_at_rest();
        let before = disk.counters();
        let log = LocalLog::open(&disk, config.clone().verify(verify), 2).unwrap();
        assert_eq!(indexes(&log.contents().unwrap()), [1]);
        let read = disk.counters().bytes_read - before.bytes_read;
        assert!(read > SEGMENT && read < 4 * SEGMENT, "{} segments were read", read as f64 / SEGMENT as f64);
    }
}

/// Of a long frame the head is read first, and then all of it. A bit of the head that was wrong in the second read only
/// was written over the frame, which was whole and acknowledged.
#[test]
fn a_bit_that_is_wrong_once_in_the_head_of_a_kept_frame_is_not_written_over_it() {
    let disk = SimDisk::manual(1);
    let mut log = open(&disk, 1);
    append(&mut log, &[entry(1, 1, 3000)]);
    let expected = log.contents().unwrap();
    drop(log);
    let crashed = disk.crash_point();
    let mut opened = 0;
    for (nth, bit) in (1..40).flat_map(|nth| (0..88 * 8).step_by(61).map(move |bit| (nth, bit))) {
        let image = crashed.lose_all();
        image.fail(FaultRule::bit_error(nth, bit));
        opened += u64::from(LocalLog::open(&image, config(), 2).is_ok());
        image.clear_faults();
        assert_eq!(open(&image, 3).contents().unwrap(), expected, "bit {bit} of read {nth}");
    }
    assert!(opened > 0, "not every wrong bit is an error");
}

/// The entry that a truncation removed has the salt and the index of the one that came after it. Where a device wrote it
/// in the newer one's place, in a segment that an open does not walk, it was read as that one.
#[test]
fn a_truncated_entry_that_a_device_put_in_the_place_of_its_successor_is_not_shown() {
    let disk = SimDisk::manual(1);
    let mut log = open(&disk, 1);
    (1..5).for_each(|index| append(&mut log, &[entry(index, 1, 100)]));
    let old = log.tail() as usize;
    append(&mut log, &[entry(5, 1, 100)]);
    append(&mut log, &[Request::Truncate(5)]);
    let new = log.tail() as usize;
    append(&mut log, &[entry(5, 2, 100)]);
    (6..20).for_each(|index| append(&mut log, &[entry(index, 2, 3000)]));
    while log.seal_one().unwrap() {}
    assert!(log.active_segment() > 2, "the first segment is not walked at open");
    log.close().unwrap();
    let misdirect = |bytes: &mut Vec<u8>| bytes.copy_within(old..old + 512, new);
    disk.edit_file(&names::segment(1), misdirect).unwrap();
    let found = open(&disk, 2).contents();
    assert!(matches!(found, Err(Error::Corrupt { .. })), "{found:?}");
}

/// A truncation says the term of the entry it leaves last, which recovery compares with that entry. Where a later one
/// removed the entry too, and the medium lost it, the log was refused for something that nobody can ask for.
#[test]
fn damage_to_an_entry_that_a_truncation_left_last_and_another_removed_keeps_no_log_shut() {
    let disk = SimDisk::manual(1);
    let mut log = open(&disk, 1);
    (1..4).for_each(|index| append(&mut log, &[entry(index, 1, 100)]));
    let place = log.tail();
    append(&mut log, &[entry(4, 1, 100)]);
    (5..20).for_each(|index| append(&mut log, &[entry(index, 1, 3000)]));
    while log.seal_one().unwrap() {}
    let newest = log.active_segment();
    append(&mut log, &[Request::Truncate(5)]);
    append(&mut log, &[Request::Truncate(3)]);
    append(&mut log, &[entry(3, 2, 100)]);
    assert!(newest > 2 && log.active_segment() == newest, "the truncations are walked, the entry is not");
    let expected = log.contents().unwrap();
    log.close().unwrap();
    disk.flip_bit(&names::segment(1), place + 88 + 40, 0).unwrap();
    assert_eq!(open(&disk.copy_at_rest(), 2).contents().unwrap(), expected);
    let verified = LocalLog::open(&disk, config().verify(Verify::Full), 3);
    assert!(matches!(verified, Err(Error::Corrupt { .. })), "a full verification tells of it");
}
