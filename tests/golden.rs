//! Logs of format version 1, as they were when it was frozen, are opened by this version: for reading where they lie, on
//! a real file system, and for writing as copies on a simulated disk.
//!
//! What they hold is written out here, by index, term and text. The files never change: see `tests/golden/README.md`.

#[path = "look/mod.rs"]
mod look;

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

use look::{Look, files};
use ringwal::format::names;
use ringwal::sim::SimDisk;
use ringwal::{Config, Error, Log, LogEntry, RecoveryReport, Verify};

fn directory(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1").join(name)
}

fn copy(name: &str) -> SimDisk {
    let disk = SimDisk::new(1);
    disk.import_from(&directory(name)).unwrap();
    disk
}

fn config(block_bytes: u32) -> Config {
    Config::default().block_bytes(Some(block_bytes)).segment_bytes(24 * u64::from(block_bytes)).tail_cache_bytes(0)
}

/// The entries of these indexes, all of one term.
fn entries(term: u64, indexes: RangeInclusive<u64>) -> Vec<LogEntry> {
    let entry = |index: u64| {
        let command = format!("entry {index} of term {term}. ").repeat(1 + (index % 9) as usize);
        LogEntry { term, index, command: command.into(), timestamp: 1_700_000_000_000 + 1000 * index }
    };
    indexes.map(entry).collect()
}

fn meta(pairs: &[(&'static str, &'static str)]) -> Vec<(bytes::Bytes, bytes::Bytes)> {
    pairs.iter().map(|&(key, value)| (key.into(), value.into())).collect()
}

/// Opens a golden log in every way; gives the report of a writing open that verifies no more than it must.
fn holds(name: &str, block_bytes: u32, expected: &Look) -> RecoveryReport {
    let before = files(&directory(name));
    let (log, report) = Log::open_read_only(directory(name)).unwrap();
    assert_eq!(Look::take(&log).unwrap(), *expected, "{name}, read where it lies");
    assert_eq!((report.indexes_rebuilt, report.damaged_headers), (0, 0));
    drop(log);
    assert!(files(&directory(name)) == before, "{name} was changed");
    let config = config(block_bytes);
    let mut reports = Vec::new();
    for verify in [Verify::Full, Verify::Tail] {
        let disk = copy(name);
        let (log, report) = Log::open_on(Arc::new(disk.clone()), config.clone().verify(verify)).unwrap();
        assert_eq!(Look::take(&log).unwrap(), *expected, "{name}, {verify:?}");
        let index = log.append("this version goes on").unwrap();
        log.close().unwrap();
        let (log, _) = Log::recover_on(Arc::new(disk.clone()), config.clone().verify(Verify::Full)).unwrap();
        let mut found = Look::take(&log).unwrap();
        assert_eq!(
            found.entries.pop().map(|entry| (entry.index, entry.command)),
            Some((index, "this version goes on".into()))
        );
        assert_eq!(
            (found.entries, found.meta),
            (expected.entries.clone(), expected.meta.clone()),
            "{name}, {verify:?}"
        );
        for file in copy(name).file_names().iter().filter(|file| file.ends_with(".idx")) {
            let is_kept = disk.contents(file).is_ok_and(|bytes| bytes == copy(name).contents(file).unwrap());
            assert!(is_kept, "{name}, {verify:?}: {file} was made anew");
        }
        reports.push(report);
    }
    reports.swap_remove(1)
}

#[test]
fn a_closed_log_holds_what_was_written() {
    let expected = Look {
        first: 51,
        last: Some((87, 6)),
        compacted: Some((50, 3)),
        meta: meta(&[("commit", "84"), ("vote", "node 2")]),
        entries: [entries(3, 51..=65), entries(5, 66..=84), entries(6, 85..=87)].concat(),
    };
    let report = holds("closed", 512, &expected);
    assert!(report.was_clean && report.bytes_cut == 0 && report.indexes_rebuilt == 0);
    // Index files that are not believed would not be missed: so each is looked at, where it is there.
    let disk = copy("closed");
    (3..6).for_each(|sequence| disk.remove_file(&names::index(sequence)).unwrap());
    let (log, report) = Log::recover_on(Arc::new(disk), config(512)).unwrap();
    assert_eq!((Look::take(&log).unwrap(), report.indexes_rebuilt > 0), (expected, true));
}

#[test]
fn a_killed_log_ends_before_its_torn_frame() {
    let expected = Look {
        first: 7,
        last: Some((12, 2)),
        compacted: None,
        meta: meta(&[("vote", "node 3")]),
        entries: [entries(1, 7..=9), entries(2, 10..=12)].concat(),
    };
    let report = holds("killed", 512, &expected);
    // Three frames of 1500 bytes and what belongs to them, in blocks of 512.
    assert_eq!((report.was_clean, report.bytes_cut), (false, 3 * 4 * 512));
    assert!(report.saved_to.is_some());
}

#[test]
fn a_log_of_larger_blocks_holds_what_was_written() {
    let expected = Look {
        first: 100,
        last: Some((120, 4)),
        compacted: Some((99, 4)),
        meta: meta(&[("vote", "node 4")]),
        entries: entries(4, 100..=120),
    };
    let report = holds("blocks-of-4096", 4096, &expected);
    assert!(report.was_clean && report.bytes_cut == 0);
}

#[test]
fn what_a_newer_version_wrote_is_refused_and_left_as_it_is() {
    let segment = names::segment(1);
    let cases = [
        ("newer-frame-kind", segment.as_str(), 3072, "frame kind 9"),
        ("newer-frame-flag", &segment, 3072, "frame flags 0x40"),
        ("newer-log-number", &segment, 3072, "log number 1"),
        ("newer-operation-kind", &segment, 2560, "operation kind 77"),
        ("newer-segment-version", &segment, 8, "format version 2"),
        ("newer-slot-version", names::LOCK, 0, "format version 2"),
    ];
    for (name, file, at, what) in cases {
        let check = |refused: Error| match refused {
            Error::Unsupported { file: found, offset, what: said } => {
                assert!(found.ends_with(file) && offset == at, "{name}: {} at {offset}", found.display());
                assert_eq!(said, what, "{name}");
            }
            other => panic!("{name}: {other}"),
        };
        let before = files(&directory(name));
        check(Log::open_read_only(directory(name)).unwrap_err());
        assert!(files(&directory(name)) == before, "{name} was changed");
        for verify in [Verify::Tail, Verify::Full] {
            let disk = copy(name);
            check(Log::open_on(Arc::new(disk.clone()), config(512).verify(verify)).unwrap_err());
            let names = |disk: &SimDisk| disk.file_names();
            assert_eq!(names(&disk), names(&copy(name)), "{name}");
            assert!(disk.contents(&segment).unwrap() == copy(name).contents(&segment).unwrap(), "{name} was changed");
        }
    }
}
