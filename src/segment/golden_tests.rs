//! The golden files of format version 1: how they were made, and that today's writer still makes them.
//!
//! `tests/golden/v1` is frozen. Whatever changes the format needs a new version and a directory of its own there; never
//! new bytes in this one. `tests/golden.rs` opens what is there and says what it holds.
//!
//! Everything follows from the seeds and steps below, so the same steps write the same bytes, salts and epochs included;
//! only the line in the lock file that names its holder is left out. A difference found here is a change of the format,
//! or of the order in which the simulated log draws its random numbers.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;

use crate::config::Config;
use crate::engine::sequencer::Request;
use crate::entry::LogEntry;
use crate::format::frame::Head;
use crate::format::lock::{HOLDER_OFFSET, SLOT_OFFSETS, Slot, SlotRead};
use crate::format::{Salted, names};
use crate::sim::{Class, LocalLog, LooseEnd, SimDisk};

fn config(block_bytes: u32) -> Config {
    let small = Config::default().block_bytes(Some(block_bytes)).segment_bytes(24 * u64::from(block_bytes));
    small.frame_bytes_max(4 * u64::from(block_bytes)).lock_wait(Duration::ZERO)
}

/// What `tests/golden.rs` expects of each index and term.
fn entry(index: u64, term: u64) -> Request {
    let text = format!("entry {index} of term {term}. ");
    let command = text.repeat(1 + (index % 9) as usize);
    Request::Entry(LogEntry { term, index, command: command.into(), timestamp: 1_700_000_000_000 + 1000 * index })
}

fn put(key: &'static str, value: &'static str) -> Request {
    Request::PutMeta(Bytes::from_static(key.as_bytes()), Bytes::from_static(value.as_bytes()))
}

fn write(log: &mut LocalLog, batch: &[Request]) {
    log.submit(batch).unwrap();
    log.drain().unwrap();
}

/// Entries, each in a frame of its own.
fn write_each(log: &mut LocalLog, term: u64, indexes: std::ops::RangeInclusive<u64>) {
    indexes.for_each(|index| write(log, &[entry(index, term)]));
}

/// Index files, drops, and a spare made of what was dropped.
fn tidy(log: &mut LocalLog) {
    while log.seal_one().unwrap() {}
    while log.drop_one().unwrap() {}
    while log.wants_spare() && log.prepare_spare().unwrap() {}
    while log.remove_dropped().unwrap() {}
}

/// Two lives, both closed. Hard state set, replaced and deleted; batches of several entries; truncations within the
/// segment, across segments, and with what replaces the truncated in one batch; compactions, dropped and recycled
/// segments; index files; a spare; both slots of the lock file.
fn closed() -> SimDisk {
    let disk = SimDisk::manual(1);
    let mut log = LocalLog::open(&disk, config(512), 11).unwrap();
    write(&mut log, &[put("vote", "node 1"), put("commit", "0"), put("gone", "soon")]);
    write_each(&mut log, 1, 1..=20);
    tidy(&mut log);
    write(&mut log, &[entry(21, 1), entry(22, 1), put("commit", "20"), entry(23, 1)]);
    write(&mut log, &[Request::Truncate(22), entry(22, 2), entry(23, 2)]);
    write_each(&mut log, 2, 24..=40);
    tidy(&mut log);
    write(&mut log, &[Request::Truncate(30)]);
    write(&mut log, &[put("vote", "node 2"), Request::DeleteMeta(Bytes::from_static(b"gone"))]);
    write_each(&mut log, 3, 30..=60);
    write(&mut log, &[Request::Compact(45, None)]);
    tidy(&mut log);
    write_each(&mut log, 3, 61..=80);
    tidy(&mut log);
    // Into the segment before.
    write(&mut log, &[Request::Truncate(66), put("commit", "65")]);
    write_each(&mut log, 5, 66..=84);
    tidy(&mut log);
    log.close().unwrap();
    let mut log = LocalLog::open(&disk, config(512), 12).unwrap();
    write(&mut log, &[entry(85, 6), entry(86, 6), put("commit", "84")]);
    write(&mut log, &[Request::Compact(50, None), entry(87, 6)]);
    log.close().unwrap();
    disk.copy_at_rest()
}

/// Killed with three frames in flight: of the first only the tail is there, the others are whole. The life before was
/// killed as well.
fn killed() -> SimDisk {
    let disk = SimDisk::manual(2);
    let mut log = LocalLog::open(&disk, config(512), 21).unwrap();
    write(&mut log, &[put("vote", "node 3")]);
    write_each(&mut log, 1, 7..=9);
    drop(log);
    let mut log = LocalLog::open(&disk, config(512), 22).unwrap();
    write_each(&mut log, 2, 10..=12);
    for index in 13..=15 {
        let large = LogEntry::new(2, index, vec![index as u8; 1500]);
        log.submit(&[Request::Entry(large)]).unwrap();
    }
    assert_eq!(log.pump().unwrap(), 3);
    let mut fates = [Class::Tail, Class::Whole, Class::Whole].into_iter();
    let fate = |end: &LooseEnd| if end.is_in_flight() { fates.next().unwrap() } else { Class::Whole };
    disk.crash(fate)
}

/// Closed, of blocks of 4096 bytes, with a sealed segment; emptied once by a compaction past its end.
fn blocks_of_4096() -> SimDisk {
    let disk = SimDisk::manual(3);
    let mut log = LocalLog::open(&disk, config(4096), 31).unwrap();
    write_each(&mut log, 1, 0..=3);
    write(&mut log, &[Request::Compact(99, Some(4)), put("vote", "node 4")]);
    write_each(&mut log, 4, 100..=120);
    while log.seal_one().unwrap() {}
    log.close().unwrap();
    disk.copy_at_rest()
}

/// A small log that a newer version went on with: it altered something, and made the checksums fit.
fn newer(alter: impl FnOnce(&mut Vec<u8>, &mut Vec<u8>)) -> SimDisk {
    let disk = SimDisk::manual(4);
    let mut log = LocalLog::open(&disk, config(512), 41).unwrap();
    write_each(&mut log, 1, 1..=4);
    log.close().unwrap();
    let disk = disk.copy_at_rest();
    let (segment, lock) = (names::segment(1), names::LOCK);
    let mut bytes = (disk.read_file(&segment).unwrap(), disk.read_file(lock).unwrap());
    alter(&mut bytes.0, &mut bytes.1);
    disk.write_file(&segment, &bytes.0).unwrap();
    disk.write_file(lock, &bytes.1).unwrap();
    disk
}

/// The frame of the last entry of [`newer`] logs, and the mark behind it.
const LAST_ENTRY: usize = 5 * 512;
const MARK: usize = 6 * 512;

fn seal(bytes: &mut [u8], covered: std::ops::Range<usize>, at: usize, salt: u64) {
    let checksum = Salted::new(salt).over(&bytes[covered]).value();
    bytes[at..at + 4].copy_from_slice(&checksum.to_le_bytes());
}

fn salt_of(segment: &[u8]) -> u64 {
    u64::from_le_bytes(segment[48..56].try_into().unwrap())
}

/// Changes a byte of the mark's head.
fn with_head_byte(at: usize, value: u8) -> SimDisk {
    newer(|segment, _| {
        let salt = salt_of(segment);
        segment[MARK + at] = value;
        seal(segment, MARK..MARK + 84, MARK + 84, salt);
    })
}

fn with_operation_kind() -> SimDisk {
    newer(|segment, _| {
        let salt = salt_of(segment);
        let operation = LAST_ENTRY + 88;
        segment[operation] = 77;
        let payload = u32::from_le_bytes(segment[operation + 4..operation + 8].try_into().unwrap()) as usize;
        // Where the checksum will be stands the operation's place.
        segment[operation + 36..operation + 40].copy_from_slice(&(operation as u32).to_le_bytes());
        let checksum = Salted::new(salt).over(&segment[operation..operation + 40 + payload]).value();
        segment[operation + 36..operation + 40].copy_from_slice(&checksum.to_le_bytes());
        seal(segment, operation..operation + 40, LAST_ENTRY + 80, salt);
        seal(segment, LAST_ENTRY..LAST_ENTRY + 84, LAST_ENTRY + 84, salt);
        // The mark follows this frame's head as it is now.
        segment.copy_within(LAST_ENTRY + 84..LAST_ENTRY + 88, MARK + 28);
        seal(segment, MARK..MARK + 84, MARK + 84, salt);
    })
}

fn with_segment_version() -> SimDisk {
    newer(|segment, _| {
        let salt = salt_of(segment);
        segment[8] = 2;
        seal(segment, 0..56, 56, salt);
    })
}

fn with_slot_version() -> SimDisk {
    newer(|_, lock| {
        let salt = u64::from_le_bytes(lock[16..24].try_into().unwrap());
        lock[8] = 2;
        seal(lock, 0..40, 40, salt);
    })
}

/// Every golden directory.
fn all() -> BTreeMap<&'static str, SimDisk> {
    BTreeMap::from([
        ("closed", closed()),
        ("killed", killed()),
        ("blocks-of-4096", blocks_of_4096()),
        ("newer-frame-kind", with_head_byte(4, 9)),
        ("newer-frame-flag", with_head_byte(5, 0x40)),
        ("newer-log-number", with_head_byte(6, 1)),
        ("newer-operation-kind", with_operation_kind()),
        ("newer-segment-version", with_segment_version()),
        ("newer-slot-version", with_slot_version()),
    ])
}

fn directory(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1").join(name)
}

/// All files of a disk; of the lock file its slots.
fn files(disk: &SimDisk) -> BTreeMap<String, Vec<u8>> {
    let of = |name: std::sync::Arc<str>| {
        let mut bytes = disk.read_file(&name).unwrap();
        if *name == *names::LOCK {
            bytes.truncate(HOLDER_OFFSET as usize);
        }
        (name.to_string(), bytes)
    };
    disk.file_names().into_iter().map(of).collect()
}

#[test]
fn the_writer_of_today_writes_the_golden_files_byte_for_byte() {
    for (name, disk) in all() {
        let golden = SimDisk::manual(0);
        golden.import_from(&directory(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (today, golden) = (files(&disk), files(&golden));
        assert_eq!(today.keys().collect::<Vec<_>>(), golden.keys().collect::<Vec<_>>(), "{name}");
        for (file, bytes) in today {
            let differs = bytes.iter().zip(&golden[&file]).position(|(one, other)| one != other);
            assert!(bytes.len() == golden[&file].len(), "{name}/{file}: {} bytes", bytes.len());
            assert!(differs.is_none(), "{name}/{file} differs at byte {differs:?}: see the head of this file");
        }
    }
}

/// Only for a new version, into a directory of its own: what is there already is never written again.
#[test]
#[ignore = "makes golden files that are not there yet"]
fn golden_files_that_are_missing_are_written() {
    for (name, disk) in all() {
        if directory(name).exists() {
            continue;
        }
        fs::create_dir_all(directory(name)).unwrap();
        for (file, bytes) in files(&disk) {
            fs::write(directory(name).join(file), bytes).unwrap();
        }
    }
}

#[test]
fn the_closed_golden_log_has_what_it_is_for() {
    let disk = SimDisk::manual(0);
    disk.import_from(&directory("closed")).unwrap();
    let segments: Vec<_> = disk.file_names().iter().filter(|name| name.ends_with(".seg")).cloned().collect();
    let indexes = disk.file_names().iter().filter(|name| name.ends_with(".idx")).count();
    assert!(segments.len() >= 5 && indexes >= 3 && *segments[0] != *names::segment(1), "sealed, and some dropped");
    let is_recycled = |name: &std::sync::Arc<str>| {
        let bytes = disk.contents(name).unwrap();
        let salts = bytes.chunks(512).skip(1).filter_map(Head::salt_in);
        salts.into_iter().any(|salt| salt != salt_of(&bytes))
    };
    assert!(segments[..segments.len() - 1].iter().any(is_recycled), "a segment in use was made of a dropped one");
    let lock = disk.read_file(names::LOCK).unwrap();
    assert!(SLOT_OFFSETS.iter().all(|&at| matches!(Slot::decode(&lock[at as usize..]), SlotRead::Slot(_))));
}
