//! Every way of reading shows the same: single entries, ranges, iterators from both ends, lent entries.
//!
//! Over segments with truncated and re-used indexes, entries longer than what is read at once, index files that lead
//! astray, and segments that go while they are read.

#[path = "common/mod.rs"]
mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use common::{FOR_EVER, scratch, small};
use ringwal::format::names;
use ringwal::{Batch, Config, EntryRef, Error, Log, LogEntry, SegmentRole, Verify};

/// Nothing stays in memory, so that reads go to the disk.
fn config() -> Config {
    small().tail_cache_bytes(0)
}

fn open(dir: &Path, config: Config) -> Log {
    Log::open(dir.join("log"), config).unwrap().0
}

fn payload(index: u64, term: u64, bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|at| (index * 31 + term * 7 + at / 8) as u8).collect()
}

/// Entries from `first` on, in one batch; the model learns of them too.
fn append(log: &Log, model: &mut Vec<LogEntry>, term: u64, sizes: &[usize]) {
    let first = 1 + model.len() as u64;
    let entry = |(index, &bytes): (u64, &usize)| LogEntry::new(term, index, payload(index, term, bytes));
    let entries: Vec<LogEntry> = (first..).zip(sizes).map(entry).collect();
    model.extend(entries.clone());
    log.append_entries(entries).unwrap();
}

fn truncate(log: &Log, model: &mut Vec<LogEntry>, first_removed: u64) {
    model.truncate(first_removed as usize - 1);
    log.truncate_from(first_removed).unwrap();
}

/// Makes and closes a log of several segments that all have their index files; what it holds.
fn closed_log(dir: &Path) -> Vec<LogEntry> {
    let (log, mut model) = (open(dir, config()), Vec::new());
    for _ in 0..40 {
        append(&log, &mut model, 1, &[160; 40]);
    }
    settle(&log, dir);
    log.close().unwrap();
    model
}

/// Reads everything in every way.
fn assert_reads(log: &Log, model: &[LogEntry], what: &str) {
    let same = |read: &[LogEntry], expected: &[LogEntry], how: &str| {
        let differs = read.iter().zip(expected).position(|(read, expected)| read != expected);
        assert!(differs.is_none() && read.len() == expected.len(), "{what}, {how}: {differs:?} of {}", read.len());
    };
    let all = |entries: &mut dyn Iterator<Item = ringwal::Result<LogEntry>>| entries.map(Result::unwrap).collect();
    let read: Vec<LogEntry> = all(&mut log.iter(..));
    same(&read, model, "iterated");
    let mut back: Vec<LogEntry> = all(&mut log.iter(..).rev());
    back.reverse();
    same(&back, model, "from the end");
    let (mut lent, mut entries) = (Vec::new(), log.iter(..));
    while let Some(entry) = entries.next_ref() {
        lent.push(entry.map(|entry: EntryRef<'_>| entry.to_entry()).unwrap());
    }
    same(&lent, model, "lent");
    let single: Vec<LogEntry> = model.iter().map(|entry| log.get(entry.index).unwrap()).collect();
    same(&single, model, "one by one");
    for bytes_max in [0, 1, 700, 5000, usize::MAX] {
        for first in [1, model.len() / 3 + 1, model.len()] {
            let end = model.len() as u64 + 1;
            let range = log.get_entries(first as u64..end, bytes_max).unwrap();
            let expected = &model[first - 1..];
            same(&range, &expected[..taken(expected, bytes_max)], &format!("{bytes_max} bytes from {first}"));
        }
    }
}

/// How many entries have payloads that do not pass a limit; at least one.
fn taken(entries: &[LogEntry], bytes_max: usize) -> usize {
    let mut bytes = 0;
    let fits = |entry: &&LogEntry| {
        bytes += entry.command.len();
        bytes < bytes_max
    };
    let below = entries.iter().take_while(fits).count();
    // The one that reaches the limit is still given; one that passes it only if it is the first.
    let reaches = entries.get(below).is_some_and(|_| bytes == bytes_max);
    (below + usize::from(reaches)).max(1).min(entries.len())
}

/// Waits until each sealed segment has its index file and is read through it.
fn settle(log: &Log, dir: &Path) {
    let is_made = |sequence| dir.join("log").join(names::index(sequence)).exists();
    let all = || log.segments().iter().all(|info| info.role != SegmentRole::Sealed || is_made(info.sequence));
    wait_until("the index files are not made", all);
}

fn wait_until(complaint: &str, is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < FOR_EVER, "{complaint}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn truncated_and_reused_indexes_are_read_as_they_are_now() {
    let dir = scratch();
    let (log, mut model) = (open(dir.path(), config()), Vec::new());
    for round in 0..60u64 {
        let sizes: Vec<usize> = (0..12).map(|nth| ((round * 12 + nth) * 97 % 900) as usize).collect();
        append(&log, &mut model, round, &sizes);
        if round % 5 == 4 {
            let back = if round % 3 == 0 { 60 } else { 9 };
            let first_removed = (model.len() as u64).saturating_sub(back).max(2);
            truncate(&log, &mut model, first_removed);
        }
        if round % 20 == 19 {
            settle(&log, dir.path());
            assert_reads(&log, &model, &format!("round {round}"));
        }
    }
    log.close().unwrap();
    let log = open(dir.path(), config());
    assert_reads(&log, &model, "opened again");
    let sealed = |info: &ringwal::SegmentInfo| info.role == SegmentRole::Sealed;
    let holds = log.segments().into_iter().filter(|info| sealed(info) && !info.entries.is_empty()).count();
    assert!(holds > 2, "entries lie in {holds} sealed segments");
    // All of it is known to readers by now, and must be forgotten where it is truncated.
    truncate(&log, &mut model, 20);
    append(&log, &mut model, 1000, &[10; 30]);
    assert_reads(&log, &model, "cut far back");
    assert!(matches!(log.get(50), Err(Error::NotWritten { next: 50 })));
}

#[test]
fn entries_of_every_length_lie_across_the_ends_of_what_is_read_at_once() {
    const KIB: usize = 1 << 10;
    let dir = scratch();
    let config = config().segment_bytes(16 << 20).frame_bytes_max(4 << 20);
    let (log, mut model) = (open(dir.path(), config.clone()), Vec::new());
    let lengths = [0, 1, 100, 4055, 4056, 4057, 4096, 60 * KIB, 255 * KIB, 256 * KIB, 257 * KIB, 320 * KIB, 700 * KIB];
    for (nth, &length) in lengths.iter().enumerate() {
        append(&log, &mut model, 1, &[length, 50, length, length]);
        append(&log, &mut model, 1, &vec![200 + nth; 1500]);
        append(&log, &mut model, 1, &[length]);
    }
    append(&log, &mut model, 1, &[1500 * KIB, 0, 3000 * KIB, 7]);
    settle(&log, dir.path());
    assert_reads(&log, &model, "as written");
    log.close().unwrap();
    assert_reads(&open(dir.path(), config), &model, "opened again");
}

/// Changes the offsets of an index file, which are not verified when it is opened.
fn bend(path: &Path, how: &dyn Fn(usize, u32) -> u32) {
    let mut bytes = fs::read(path).unwrap();
    let runs = u32::from_le_bytes(bytes[92..96].try_into().unwrap()) as usize;
    let (_, offsets) = bytes.split_at_mut(112 + 16 * runs);
    for (nth, units) in offsets.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        *units = how(nth, u32::from_le_bytes(*units)).to_le_bytes();
    }
    fs::write(path, bytes).unwrap();
}

#[test]
fn an_index_that_leads_astray_costs_time_and_nothing_else() {
    type Bend = (&'static str, fn(usize, u32) -> u32);
    let bends: [Bend; 5] = [
        ("one unit on", |nth, units| units + u32::from(nth == 40)),
        ("to the start", |nth, units| if nth == 40 { 0 } else { units }),
        ("past the end", |nth, units| if nth >= 40 { u32::MAX / 8 } else { units }),
        ("all alike", |_, _| 512),
        ("one entry on", |nth, units| if nth > 40 { units + 25 } else { units }),
    ];
    for (what, how) in bends {
        let dir = scratch();
        let model = closed_log(dir.path());
        bend(&dir.path().join("log").join(names::index(1)), &how);
        bend(&dir.path().join("log").join(names::index(2)), &how);
        let log = open(dir.path(), config());
        let (mut entries, mut read) = (log.iter(..), Vec::new());
        while let Some(entry) = entries.next_ref() {
            read.push(entry.unwrap().to_entry());
        }
        assert!(read == model, "{what}: scanned first");
        assert_reads(&log, &model, what);
    }
}

#[test]
fn a_full_verification_mends_an_index_file_that_leads_astray_and_leaves_the_others_alone() {
    let dir = scratch();
    let model = closed_log(dir.path());
    let path = |sequence| dir.path().join("log").join(names::index(sequence));
    let look = |sequence| (fs::read(path(sequence)).unwrap(), fs::metadata(path(sequence)).unwrap().ino());
    let (first, second) = (look(1), look(2));
    bend(&path(2), &|nth, units| units + u32::from(nth == 40));
    let log = open(dir.path(), config().verify(Verify::Full));
    wait_until("the file is not made anew", || look(2).0 == second.0);
    assert_reads(&log, &model, "verified");
    assert!(look(1) == first, "a file that was right is left alone");
}

#[test]
fn a_segment_that_goes_while_an_iterator_is_in_it_ends_the_iterator_and_lends_nothing_else() {
    let dir = scratch();
    // Several pieces to a segment.
    let (log, mut model) = (open(dir.path(), config().segment_bytes(1 << 20)), Vec::new());
    let fill = |model: &mut Vec<LogEntry>| (0..400).for_each(|_| append(&log, model, 1, &[1000; 10]));
    fill(&mut model);
    settle(&log, dir.path());
    let (mut owned, mut lent) = (log.iter(..), log.iter(..));
    let held: Vec<LogEntry> = owned.by_ref().take(5).map(Result::unwrap).collect();
    assert_eq!(lent.next_ref().unwrap().unwrap().to_entry(), model[0]);
    log.compact(3500).unwrap();
    fill(&mut model);
    wait_until("the first segments are not dropped", || log.segments()[0].sequence > 3);
    assert_eq!(held, model[..5]);
    let (mut given, mut error) = (5, None);
    for entry in owned.by_ref() {
        match entry {
            Ok(entry) => {
                assert_eq!(entry, model[given]);
                given += 1;
            }
            Err(found) => error = Some(found),
        }
    }
    assert!(matches!(error, Some(Error::Compacted { first: 3501 })), "{error:?} after {given}");
    let mut given = 1;
    while let Some(Ok(entry)) = lent.next_ref() {
        assert_eq!(entry.to_entry(), model[given]);
        given += 1;
    }
    assert!(lent.next_ref().is_none());
}

#[test]
fn what_readers_know_without_the_lock_ends_with_compaction_and_close() {
    let dir = scratch();
    let (log, mut model) = (open(dir.path(), config()), Vec::new());
    (0..60).for_each(|_| append(&log, &mut model, 1, &[500; 10]));
    settle(&log, dir.path());
    assert_reads(&log, &model, "whole");
    log.compact(100).unwrap();
    assert!(matches!(log.get(100), Err(Error::Compacted { first: 101 })));
    assert_eq!(log.get(101).unwrap(), model[100]);
    (0..20).for_each(|_| assert_eq!(log.get(101).unwrap(), model[100]));
    assert!(matches!(log.get(7), Err(Error::Compacted { first: 101 })));
    log.write(Batch::new().compact(300)).unwrap();
    assert!(matches!(log.get(101), Err(Error::Compacted { first: 301 })));
    (0..20).for_each(|_| assert_eq!(log.get(350).unwrap(), model[349]));
    let other = log.clone();
    log.close().unwrap();
    assert!(matches!(other.get(350), Err(Error::Closed)));
}

/// Descriptors and mappings of this process that belong to a directory.
fn open_there(dir: &Path) -> (usize, usize) {
    let is_there = |path: &Path| path.starts_with(dir);
    let files = fs::read_dir("/proc/self/fd").unwrap().map(|entry| fs::read_link(entry.unwrap().path()));
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let path_of = |line: &&str| line.split_once('/').is_some_and(|(_, path)| is_there(Path::new(&format!("/{path}"))));
    (files.flatten().filter(|path| is_there(path)).count(), maps.lines().filter(path_of).count())
}

#[test]
fn hundreds_of_segments_are_read_with_few_of_them_open() {
    let dir = scratch();
    let (log, mut model) = (open(dir.path(), config()), Vec::new());
    (0..500).for_each(|_| append(&log, &mut model, 1, &[45_000]));
    settle(&log, dir.path());
    let path = fs::canonicalize(dir.path()).unwrap();
    let check = |log: &Log, what: &str| {
        let sealed = log.segments().iter().filter(|info| info.role == SegmentRole::Sealed).count();
        assert!(sealed >= 499, "{sealed} segments");
        for entry in &model {
            assert_eq!(log.get(entry.index).unwrap(), *entry);
        }
        let (files, maps) = open_there(&path);
        println!("{what}: {files} descriptors, {maps} mappings");
        // Two descriptors and a mapping for each that is open: 128 of them.
        assert!(files > 128 && files <= 2 * 128 + 16, "{what}: {files} descriptors");
        assert!(maps > 64 && maps <= 128 + 16, "{what}: {maps} mappings");
    };
    check(&log, "as written");
    log.close().unwrap();
    for verify in [Verify::Tail, Verify::Full] {
        let log = open(dir.path(), config().verify(verify));
        let (files, maps) = open_there(&path);
        assert!(files < 16 && maps == 0, "{verify:?}: {files} descriptors and {maps} mappings before anything is read");
        check(&log, "opened again");
    }
}
