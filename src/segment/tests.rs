//! Damage that once broke a log, each as the crash explorer found it, by hand and small.
//!
//! They run a whole log in this thread ([`LocalLog`]) on a simulated disk: blocks of 512 bytes, segments of 24.

use std::time::Duration;

use bytes::Bytes;

use crate::config::{Config, Verify};
use crate::disk::Disk;
use crate::engine::sequencer::Request;
use crate::entry::LogEntry;
use crate::format::names;
use crate::sim::{Class, Contents, FaultRule, LocalLog, Loose, LooseEnd, SimDisk};

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
