//! Index files are derived: deleted, emptied, stale, flipped, lengthened or swapped, they cost their rebuilding only.
//!
//! Never an error, never another answer; and afterwards the files are there again, as they were.

#[path = "look/mod.rs"]
mod look;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use look::Look;
use ringwal::format::index::{IndexHeader, SegmentIndex, encode};
use ringwal::format::names;
use ringwal::sim::SimDisk;
use ringwal::{Batch, Config, Log, LogEntry, SegmentRole};

fn config() -> Config {
    let small = Config::default().segment_bytes(24 * 512).block_bytes(Some(512)).tail_cache_bytes(0);
    small.idle_mark_after(Duration::from_secs(3600))
}

fn open(disk: &SimDisk) -> Log {
    Log::open_on(Arc::new(disk.clone()), config()).unwrap().0
}

/// Waits until each sealed segment has its index file.
fn settle(log: &Log, disk: &SimDisk) {
    let is_made = |sequence| disk.contents(&names::index(sequence)).is_ok();
    while !log.segments().iter().all(|info| info.role != SegmentRole::Sealed || is_made(info.sequence)) {
        thread::sleep(Duration::from_millis(1));
    }
}

/// Fills the active segment with hard state alone, until it is sealed.
fn fill_with_hard_state(log: &Log) {
    let active = |log: &Log| log.segments().iter().find(|info| info.role == SegmentRole::Active).unwrap().sequence;
    let start = active(log);
    while active(log) < start + 2 {
        log.put_meta(b"vote", b"somebody").unwrap();
    }
}

fn push(log: &Log, count: u64) {
    for _ in 0..count {
        let (next, term) = log.state().last.map_or((100, 1), |(last, term)| (last + 1, term));
        log.append_entries(vec![LogEntry::new(term + u64::from(next % 30 == 0), next, vec![next as u8; 300])]).unwrap();
    }
}

/// What is written to a log, and what it is called.
type History<'a> = (&'static str, &'a dyn Fn(&Log));

/// Segments of every kind: with entries, with truncations that reach into older ones, with hard state alone, emptied by a
/// truncation and begun again lower down, emptied by a compaction past the end.
fn histories() -> Vec<(&'static str, SimDisk)> {
    let histories: [History; 6] = [
        ("entries", &|log| push(log, 80)),
        ("truncations into older segments", &|log| {
            push(log, 50);
            log.truncate_from(110).unwrap();
            push(log, 5);
            log.truncate_from(103).unwrap();
            push(log, 60);
        }),
        ("hard state between entries", &|log| {
            push(log, 30);
            fill_with_hard_state(log);
            push(log, 60);
            fill_with_hard_state(log);
        }),
        ("truncated to nothing and begun lower down", &|log| {
            push(log, 30);
            log.truncate_from(100).unwrap();
            log.append_entries(vec![LogEntry::new(1, 7, "lower")]).unwrap();
            push(log, 60);
        }),
        ("truncated to nothing, hard state, begun higher up", &|log| {
            push(log, 30);
            log.truncate_from(100).unwrap();
            fill_with_hard_state(log);
            log.append_entries(vec![LogEntry::new(1, 700, "higher")]).unwrap();
            push(log, 60);
        }),
        ("compacted in the middle and past the end", &|log| {
            push(log, 60);
            log.compact(130).unwrap();
            push(log, 20);
            log.write(Batch::new().compact_to(1000, 6)).unwrap();
            log.append_entries(vec![LogEntry::new(40, 1001, "after")]).unwrap();
            push(log, 60);
        }),
    ];
    let make = |(name, write): History| {
        let disk = SimDisk::new(1);
        let log = open(&disk);
        write(&log);
        settle(&log, &disk);
        log.close().unwrap();
        (name, disk)
    };
    histories.map(make).into()
}

fn index_names(disk: &SimDisk) -> Vec<String> {
    disk.file_names().iter().filter(|name| name.ends_with(".idx")).map(|name| name.to_string()).collect()
}

/// Every damage to the index files of a disk, one at a time, and all of them at once.
fn damages(disk: &SimDisk) -> Vec<(String, SimDisk)> {
    let mut damages = Vec::new();
    let mut add = |what: String, alter: &dyn Fn(&SimDisk)| {
        let copy = disk.copy_at_rest();
        alter(&copy);
        damages.push((what, copy));
    };
    let names = index_names(disk);
    add("all deleted".into(), &|copy| names.iter().for_each(|name| copy.remove_file(name).unwrap()));
    for (nth, name) in names.iter().enumerate() {
        let bytes = disk.contents(name).unwrap().len();
        add(format!("{name} deleted"), &|copy| copy.remove_file(name).unwrap());
        add(format!("{name} zeroed"), &|copy| copy.write_file(name, &vec![0; bytes]).unwrap());
        add(format!("{name} emptied"), &|copy| copy.write_file(name, &[]).unwrap());
        for more in [1, 4, 16, 4096] {
            add(format!("{name} lengthened by {more}"), &|copy| copy.set_len(name, (bytes + more) as u64).unwrap());
        }
        for to in [1, 111, 112, 113, bytes - 4, bytes - 1] {
            add(format!("{name} cut to {to}"), &|copy| copy.set_len(name, to as u64).unwrap());
        }
        for byte in 0..bytes as u64 {
            add(format!("{name} byte {byte} flipped"), &|copy| copy.flip_bit(name, byte, (byte % 8) as u8).unwrap());
        }
        for other in &names[nth + 1..] {
            add(format!("{name} and {other} swapped"), &|copy| copy.swap_files(name, other).unwrap());
        }
    }
    damages
}

#[test]
fn damaged_index_files_give_the_same_answers() {
    for (history, disk) in histories() {
        let (log, report) = Log::recover_on(Arc::new(disk.copy_at_rest()), config()).unwrap();
        assert_eq!(report.indexes_rebuilt, 0, "{history}: no index was damaged yet");
        let whole = Look::take(&log).unwrap();
        assert!(!whole.entries.is_empty() && index_names(&disk).len() >= 2, "{history}");
        for (damage, copy) in damages(&disk) {
            let (log, _) = Log::recover_on(Arc::new(copy), config())
                .unwrap_or_else(|error| panic!("{history}, {damage}: {error}"));
            let look = Look::take(&log).unwrap_or_else(|error| panic!("{history}, {damage}: {error}"));
            assert_eq!(look, whole, "{history}, {damage}");
            for entry in &whole.entries {
                assert_eq!(log.term(entry.index).unwrap(), entry.term, "{history}, {damage}");
            }
        }
    }
}

#[test]
fn what_recovery_finds_wrong_is_written_anew_as_it_was() {
    let mut rebuilt = 0;
    for (history, disk) in histories() {
        for name in index_names(&disk) {
            let copy = disk.copy_at_rest();
            copy.flip_bit(&name, 0, 3).unwrap();
            let (log, report) = Log::open_on(Arc::new(copy.clone()), config()).unwrap();
            settle(&log, &copy);
            log.close().unwrap();
            // A log whose start needed no look at this segment's index left it alone.
            rebuilt += report.indexes_rebuilt;
            if report.indexes_rebuilt == 1 {
                assert_eq!(copy.contents(&name).unwrap(), disk.contents(&name).unwrap(), "{history}, {name}");
            }
        }
    }
    assert!(rebuilt > 5, "hardly any index was looked at");
}

/// An index file from before the segment got its last frames, or from another life of the file.
#[test]
fn stale_index_files_give_the_same_answers() {
    let disk = SimDisk::new(1);
    let log = open(&disk);
    push(&log, 30);
    settle(&log, &disk);
    let stale = disk.read_file(&names::index(1)).unwrap();
    log.close().unwrap();
    let disk = SimDisk::new(2);
    let log = open(&disk);
    push(&log, 60);
    settle(&log, &disk);
    let whole = Look::take(&log).unwrap();
    let of_the_second = disk.read_file(&names::index(2)).unwrap();
    log.close().unwrap();
    for (what, bytes) in [("of another log", stale), ("of another segment", of_the_second)] {
        let copy = disk.copy_at_rest();
        copy.write_file(&names::index(1), &bytes).unwrap();
        let (log, report) = Log::open_on(Arc::new(copy.clone()), config()).unwrap();
        assert_eq!((Look::take(&log).unwrap(), report.indexes_rebuilt), (whole.clone(), 1), "{what}");
    }
}

/// The file goes wrong while the log is open, and readers meet it.
#[test]
fn an_index_file_damaged_under_an_open_log_gives_the_same_answers() {
    for (history, disk) in histories() {
        let whole = Look::take(&Log::recover_on(Arc::new(disk.copy_at_rest()), config()).unwrap().0).unwrap();
        for alter in [&SimDisk::remove_file as &dyn Fn(&SimDisk, &str) -> _, &|disk, name| disk.flip_bit(name, 1, 1)] {
            let copy = disk.copy_at_rest();
            let (log, _) = Log::recover_on(Arc::new(copy.clone()), config()).unwrap();
            index_names(&copy).iter().for_each(|name| alter(&copy, name).unwrap());
            assert_eq!(Look::take(&log).unwrap(), whole, "{history}");
            for entry in &whole.entries {
                assert_eq!(log.get(entry.index).unwrap(), *entry, "{history}");
            }
        }
    }
}

/// Whoever made it knew the segment: the file verifies and names the segment as it is. Only it leaves entries out, or
/// has some that are not there.
#[test]
fn an_index_file_that_verifies_and_tells_of_other_entries_is_not_believed() {
    let (_, disk) = histories().swap_remove(0);
    let recover = |disk: &SimDisk| Log::recover_on(Arc::new(disk.copy_at_rest()), config()).unwrap();
    let expected = Look::take(&recover(&disk).0).unwrap();
    let mut rebuilt = 0;
    for name in index_names(&disk) {
        let bytes = disk.read_file(&name).unwrap();
        let header = IndexHeader::decode(&bytes, bytes.len() as u64).unwrap();
        let whole = header.range();
        for range in [whole.start..whole.end - 1, whole.start + 1..whole.end, whole.start..whole.end + 1, 0..0] {
            let mut index = SegmentIndex::new();
            range.clone().for_each(|nth| index.push(nth, 1, 4096 + 8 * (nth - range.start) as u32));
            let lied_to = disk.copy_at_rest();
            lied_to.write_file(&name, &encode(&index, header.identity())).unwrap();
            let (log, report) = recover(&lied_to);
            assert_eq!(Look::take(&log).unwrap(), expected, "{name} tells of {range:?}, not {whole:?}");
            rebuilt += report.indexes_rebuilt;
        }
    }
    assert!(rebuilt > 0, "no index file that was altered was ever read");
}
