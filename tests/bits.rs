//! Every bit, every file: a small log is damaged in each single way there is, and opened again.
//!
//! What comes out is an error, or the log as it was, or (of a log that was killed, not closed) the log without the last
//! batch, which nothing on disk proves acknowledged; never anything else. Index files are derived: whatever happens to
//! them costs nothing but their rebuilding.

#[path = "look/mod.rs"]
mod look;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use look::Look;
use ringwal::format::{lock, names};
use ringwal::sim::SimDisk;
use ringwal::{Batch, Config, Error, Log, LogEntry, SegmentRole, Verify};

const BLOCK: usize = 512;
const SEGMENT: usize = 24 * BLOCK;
const LOCK_BYTES: usize = lock::HOLDER_OFFSET as usize + lock::HOLDER_BYTES_MAX;
/// Batches that leave two sealed segments, and one.
const CLOSED_OPS: u64 = 61;
const KILLED_OPS: u64 = 40;

fn config() -> Config {
    let small = Config::default().segment_bytes(SEGMENT as u64).block_bytes(Some(BLOCK as u32));
    small.idle_mark_after(Duration::from_secs(3600)).tail_cache_bytes(0)
}

/// A log at rest, and what may come out of it once damaged.
struct Sample {
    disk: SimDisk,
    whole: Look,
    /// Without the last batch, where nothing on disk witnesses that it was acknowledged; and where its frame lies.
    shorter: Option<(Look, String, Range<u64>)>,
}

/// Sealed segments with index files, an active one and a spare; segment 1 is dropped. Written one batch at a time, so
/// that each frame proves all before it.
fn write_history(log: &Log, ops: u64) {
    let payload = |op: u64, bytes: usize| (0..bytes).map(|at| (op * 31 + at as u64) as u8).collect::<Vec<u8>>();
    for op in 1..=ops {
        let next = log.state().last.map_or(10, |(last, _)| last + 1);
        let term = 1 + op / 20;
        let entry = |index: u64, bytes| LogEntry::new(term, index, payload(op, bytes));
        let batch = match op % 10 {
            3 => Batch::new().put_meta(b"vote", &op.to_le_bytes()),
            5 => Batch::new().truncate_from(next - 2).push_entry(entry(next - 2, 9)),
            7 => Batch::new().push_entry(entry(next, 400)).push_entry(entry(next + 1, 700)),
            9 if op == 29 => Batch::new().compact(log.segments()[0].entries.end + 1),
            _ => Batch::new().push_entry(entry(next, 40)).put_meta(b"applied", &op.to_le_bytes()),
        };
        log.write(batch).unwrap();
    }
    log.write(Batch::new().push(payload(99, 30)).push(payload(100, 900))).unwrap();
}

/// Waits until the helper did all it has to do: a spare stands, and each sealed segment has its index file.
fn settle(log: &Log, disk: &SimDisk) {
    loop {
        let segments = log.segments();
        let has_index = |sequence| disk.contents(&names::index(sequence)).is_ok();
        let sealed = segments.iter().filter(|segment| segment.role == SegmentRole::Sealed);
        let done = sealed.clone().all(|sealed| has_index(sealed.sequence));
        if done && segments[0].sequence > 1 && segments.iter().any(|segment| segment.role == SegmentRole::Spare) {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn closed() -> Sample {
    let disk = SimDisk::new(1);
    let (log, _) = Log::open_on(Arc::new(disk.clone()), config()).unwrap();
    write_history(&log, CLOSED_OPS);
    settle(&log, &disk);
    let whole = Look::take(&log).unwrap();
    log.close().unwrap();
    Sample { disk: disk.copy_at_rest(), whole, shorter: None }
}

fn killed() -> Sample {
    let disk = SimDisk::new(2);
    let (log, _) = Log::open_on(Arc::new(disk.clone()), config()).unwrap();
    write_history(&log, KILLED_OPS);
    let before = Look::take(&log).unwrap();
    let tail = |log: &Log| {
        let active = log.segments().into_iter().find(|segment| segment.role == SegmentRole::Active).unwrap();
        (names::segment(active.sequence), active.used_bytes)
    };
    let (name, start) = tail(&log);
    log.write(Batch::new().push(vec![7; 600]).push(vec![8; 100]).put_meta(b"vote", b"last")).unwrap();
    settle(&log, &disk);
    let (same_name, end) = tail(&log);
    assert_eq!(name, same_name, "the last frame is to lie in the same segment as the one before it");
    let whole = Look::take(&log).unwrap();
    Sample { disk: disk.copy_at_rest(), whole, shorter: Some((before, name, start..end)) }
}

/// What opening a damaged log and reading all of it came to.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Same,
    /// Without the last batch.
    Shorter,
    /// The open is refused.
    Refused,
    /// Some entries cannot be read; the others are right.
    Unreadable,
}

#[derive(Default)]
struct Tally {
    same: AtomicU64,
    shorter: AtomicU64,
    refused: AtomicU64,
    unreadable: AtomicU64,
}

impl Tally {
    fn count(&self, outcome: &Outcome) {
        let counter = match outcome {
            Outcome::Same => &self.same,
            Outcome::Shorter => &self.shorter,
            Outcome::Refused => &self.refused,
            Outcome::Unreadable => &self.unreadable,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn all(&self) -> [u64; 4] {
        [&self.same, &self.shorter, &self.refused, &self.unreadable].map(|counter| counter.load(Ordering::Relaxed))
    }
}

impl Sample {
    /// Opens a damaged copy and reads everything.
    ///
    /// Panics where what comes out is neither an error nor what was acknowledged.
    fn outcome(&self, disk: SimDisk, config: Config, damage: &dyn Fn() -> String) -> Outcome {
        let (handle, before) = (disk.clone(), disk.copy_at_rest());
        let log = match Log::recover_on(Arc::new(disk), config) {
            Ok((log, _)) => log,
            Err(error) => {
                assert!(matches!(error, Error::Corrupt { .. }), "{}: {error}", damage());
                assert_unchanged(&handle, &before, damage);
                return Outcome::Refused;
            }
        };
        let found = Look::without_entries(&log);
        let (expected, outcome) = match &self.shorter {
            Some((shorter, ..)) if same_but_entries(&found, shorter) => (shorter, Outcome::Shorter),
            _ => (&self.whole, Outcome::Same),
        };
        assert!(same_but_entries(&found, expected), "{}: {found:?} instead of {expected:?}", damage());
        match read_each(&log, expected, damage) {
            0 => outcome,
            _ => Outcome::Unreadable,
        }
    }

    /// Damages a copy.
    fn damaged(&self, alter: impl FnOnce(&SimDisk)) -> SimDisk {
        let copy = self.disk.copy_at_rest();
        alter(&copy);
        copy
    }

    fn files(&self) -> Vec<(String, usize)> {
        let names = self.disk.file_names();
        names.iter().map(|name| (name.to_string(), self.disk.contents(name).unwrap().len())).collect()
    }
}

fn same_but_entries(one: &Look, other: &Look) -> bool {
    (one.first, one.last, one.compacted, &one.meta) == (other.first, other.last, other.compacted, &other.meta)
}

/// Reads in a row, and where that fails entry by entry; counts those that cannot be read.
fn read_each(log: &Log, expected: &Look, damage: &dyn Fn() -> String) -> usize {
    if let Ok(all) = log.iter(..).collect::<Result<Vec<_>, _>>() {
        assert!(all == expected.entries, "{}: {all:?} instead of {:?}", damage(), expected.entries);
        return 0;
    }
    let mut unreadable = 0;
    for entry in &expected.entries {
        match log.get(entry.index) {
            Ok(found) => assert_eq!(found, *entry, "{}", damage()),
            Err(Error::Corrupt { .. }) => unreadable += 1,
            Err(error) => panic!("{}: entry {}: {error}", damage(), entry.index),
        }
        match log.term(entry.index) {
            Ok(term) => assert_eq!(term, entry.term, "{}", damage()),
            Err(Error::Corrupt { .. }) => {}
            Err(error) => panic!("{}: term of {}: {error}", damage(), entry.index),
        }
    }
    assert!(unreadable > 0, "{}: each entry can be read alone, but not all in a row", damage());
    unreadable
}

/// A refused open leaves everything as it was, but for the line that names the lock's holder.
fn assert_unchanged(disk: &SimDisk, before: &SimDisk, damage: &dyn Fn() -> String) {
    let files =
        |disk: &SimDisk| disk.file_names().into_iter().filter(|name| **name != *names::LOCK).collect::<Vec<_>>();
    assert_eq!(files(disk), files(before), "{}: a refused open made or removed files", damage());
    for name in files(before) {
        let (now, then) = (disk.contents(&name).unwrap(), before.contents(&name).unwrap());
        assert!(Arc::ptr_eq(&now, &then) || now == then, "{}: {name} was changed", damage());
    }
    let without_holder = |disk: &SimDisk| {
        let mut bytes = disk.read_file(names::LOCK).unwrap_or_default();
        if bytes.len() <= LOCK_BYTES {
            bytes.resize(lock::HOLDER_OFFSET as usize, 0);
        }
        bytes
    };
    assert!(without_holder(disk) == without_holder(before), "{}: the lock file was changed", damage());
}

/// Runs `check` for every number below `count`, on two threads.
fn on_two_threads(count: usize, check: impl Fn(usize) + Sync) {
    thread::scope(|scope| {
        for half in 0..2 {
            let check = &check;
            scope.spawn(move || (half..count).step_by(2).for_each(check));
        }
    });
}

/// Flips every bit of every file, one at a time.
fn flip_every_bit(sample: &Sample) -> Tally {
    let tally = Tally::default();
    for (name, bytes) in sample.files() {
        on_two_threads(bytes * 8, |bit| {
            let (byte, bit) = ((bit / 8) as u64, (bit % 8) as u8);
            let damage = || format!("bit {bit} of byte {byte} of {name}");
            let flipped = sample.damaged(|disk| disk.flip_bit(&name, byte, bit).unwrap());
            let outcome = sample.outcome(flipped, config(), &damage);
            if let (Outcome::Shorter, Some((_, tail, range))) = (&outcome, &sample.shorter) {
                assert!(name == *tail && range.contains(&byte), "{}: the last batch is lost", damage());
            }
            if name.ends_with(".idx") {
                assert_eq!(outcome, Outcome::Same, "{}: index files are derived", damage());
            }
            tally.count(&outcome);
        });
    }
    tally
}

#[test]
fn each_bit_of_a_closed_log_flipped_is_an_error_or_changes_nothing() {
    let sample = closed();
    let [same, shorter, refused, unreadable] = flip_every_bit(&sample).all();
    println!("{same} the same, {refused} refused, {unreadable} with unreadable entries");
    assert_eq!(shorter, 0);
    assert!(same > 100_000 && refused > 100_000 && unreadable > 10_000);
}

#[test]
fn each_bit_of_a_killed_log_flipped_loses_at_most_the_batch_that_nothing_proves() {
    let sample = killed();
    let [same, shorter, refused, unreadable] = flip_every_bit(&sample).all();
    println!("{same} the same, {shorter} shorter, {refused} refused, {unreadable} with unreadable entries");
    assert!(same > 100_000 && shorter > 5_000 && refused > 50_000);
}

/// Damage to a file as a whole or to a block of it.
fn coarse_damages(sample: &Sample) -> Vec<(String, SimDisk)> {
    let mut damages = Vec::new();
    let files = sample.files();
    for (name, bytes) in &files {
        let mut add = |what: String, alter: &dyn Fn(&SimDisk)| damages.push((what, sample.damaged(alter)));
        add(format!("{name} deleted"), &|disk| disk.remove_file(name).unwrap());
        for fill in [0, 0xff] {
            add(format!("{name} filled with {fill}"), &|disk| disk.write_file(name, &vec![fill; *bytes]).unwrap());
        }
        for to in cuts(*bytes) {
            add(format!("{name} cut to {to}"), &|disk| disk.set_len(name, to as u64).unwrap());
        }
        for (more, fill) in [(1, 0), (7, 9), (BLOCK, 0), (BLOCK, 1), (4096, 0xff), (*bytes, 0)] {
            let longer = |disk: &SimDisk| disk.edit_file(name, |content| content.resize(bytes + more, fill)).unwrap();
            add(format!("{name} lengthened by {more} of {fill}"), &longer);
        }
        add(format!("{name} twice"), &|disk| disk.edit_file(name, |content| content.extend(content.clone())).unwrap());
        for block in (0..*bytes).step_by(BLOCK) {
            let range = block..(block + BLOCK).min(*bytes);
            for fill in [0, 0xff] {
                let fill_range = range.start as u64..range.end as u64;
                add(format!("{name} from {block}: a block of {fill}"), &|disk| {
                    disk.edit_range(name, fill_range.clone(), |bytes| bytes.fill(fill)).unwrap();
                });
            }
            for (other, other_bytes) in &files {
                // The block before it in the same file, or the same one of another file: a misdirected write.
                let from = if other == name { block.saturating_sub(BLOCK) } else { block };
                if other == name && block == 0 || from + range.len() > *other_bytes {
                    continue;
                }
                let foreign = sample.disk.contents(other).unwrap()[from..from + range.len()].to_vec();
                add(format!("{name} from {block}: what {other} has at {from}"), &|disk| {
                    disk.edit_file(name, |bytes| bytes[range.clone()].copy_from_slice(&foreign)).unwrap();
                });
            }
        }
    }
    for (at, (one, _)) in files.iter().enumerate() {
        for (other, _) in &files[at + 1..] {
            damages.push((
                format!("{one} and {other} swapped"),
                sample.damaged(|disk| disk.swap_files(one, other).unwrap()),
            ));
        }
    }
    damages
}

/// Lengths to cut a file to: every block's end, a byte less and a byte more, and odd ones.
fn cuts(bytes: usize) -> Vec<usize> {
    let around = (0..bytes).step_by(BLOCK).flat_map(|at| [at.saturating_sub(1), at, at + 1]);
    let mut cuts: Vec<usize> = around.chain([13, 59, 60, 61, bytes / 3, bytes - 1]).filter(|&to| to < bytes).collect();
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}

/// Whether the damage can only have hit what the last batch's frame lies in.
fn may_hit_last_batch(sample: &Sample, damage: &str) -> bool {
    sample.shorter.as_ref().is_some_and(|(_, name, _)| damage.contains(name.as_str()))
}

fn damage_files(sample: &Sample, config: &Config) -> Tally {
    let tally = Tally::default();
    let damages = coarse_damages(sample);
    on_two_threads(damages.len(), |nth| {
        let (damage, disk) = &damages[nth];
        let outcome = sample.outcome(disk.clone(), config.clone(), &|| damage.clone());
        assert!(outcome != Outcome::Shorter || may_hit_last_batch(sample, damage), "{damage}: the last batch is lost");
        let only_index = !damage.contains(".seg") && !damage.contains("lock");
        assert!(!only_index || outcome == Outcome::Same, "{damage}: {outcome:?}, but index files are derived");
        tally.count(&outcome);
    });
    tally
}

#[test]
fn files_of_a_closed_log_deleted_emptied_cut_lengthened_or_swapped_are_an_error_or_change_nothing() {
    for verify in [Verify::Tail, Verify::Full] {
        let [same, shorter, refused, unreadable] = damage_files(&closed(), &config().verify(verify)).all();
        println!("{verify:?}: {same} the same, {refused} refused, {unreadable} with unreadable entries");
        assert_eq!(shorter, 0);
        assert!(same > 100 && refused > 300);
        assert_eq!(unreadable > 0, verify == Verify::Tail, "a full verification finds damage at open");
    }
}

#[test]
fn files_of_a_killed_log_deleted_emptied_cut_lengthened_or_swapped_lose_at_most_what_nothing_proves() {
    let [same, shorter, refused, unreadable] = damage_files(&killed(), &config()).all();
    println!("{same} the same, {shorter} shorter, {refused} refused, {unreadable} with unreadable entries");
    assert!(same > 100 && shorter > 3 && refused > 200);
}

#[test]
fn a_full_verification_finds_at_open_what_a_read_would_find() {
    let sample = closed();
    let tally = Tally::default();
    for (name, bytes) in sample.files() {
        on_two_threads(bytes, |byte| {
            let flipped = sample.damaged(|disk| disk.flip_bit(&name, byte as u64, (byte % 8) as u8).unwrap());
            let damage = || format!("byte {byte} of {name}, verified in full");
            let outcome = sample.outcome(flipped, config().verify(Verify::Full), &damage);
            assert_ne!(outcome, Outcome::Unreadable, "{}", damage());
            tally.count(&outcome);
        });
    }
    let [same, shorter, refused, _] = tally.all();
    println!("{same} the same, {refused} refused");
    assert!(same > 10_000 && shorter == 0 && refused > 20_000);
}

/// A log that opens in spite of damage is written to, closed and opened again, by the real thing with its threads.
#[test]
fn a_log_that_opens_damaged_goes_on_and_comes_back() {
    let sample = killed();
    let went_on = AtomicU64::new(0);
    for (name, bytes) in sample.files() {
        on_two_threads(bytes / 29, |nth| {
            let (byte, bit) = ((nth * 29) as u64, (nth % 8) as u8);
            let damage = format!("bit {bit} of byte {byte} of {name}");
            let disk = sample.damaged(|disk| disk.flip_bit(&name, byte, bit).unwrap());
            let Ok((log, _)) = Log::open_on(Arc::new(disk.clone()), config()) else { return };
            let expected = log.state();
            let index = log.append("after the damage").unwrap_or_else(|error| panic!("{damage}: {error}"));
            log.close().unwrap_or_else(|error| panic!("{damage}: {error}"));
            let again = Log::recover_on(Arc::new(disk), config());
            let (log, report) = again.unwrap_or_else(|error| panic!("{damage}: {error}"));
            let state = log.state();
            assert_eq!((state.first, state.compacted), (expected.first, expected.compacted), "{damage}");
            assert_eq!(state.last.map(|(last, _)| last), Some(index), "{damage}");
            assert!(report.was_clean && log.get(index).unwrap().command == "after the damage", "{damage}");
            went_on.fetch_add(1, Ordering::Relaxed);
        });
    }
    assert!(went_on.into_inner() > 800);
}
