//! A disk filled to the brim, for real: appends are refused, all else works, and goes on when there is room again.
//!
//! On small file systems of their own: in memory, and ext4 with a journal on a loop device. Where this user may not
//! mount, the tests say so and are skipped.

#[path = "look/mod.rs"]
mod look;
#[path = "common/mounted.rs"]
mod mounted;
#[path = "common/skip.rs"]
mod skip;

use std::env;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use look::Look;
use mounted::Mounted;
use ringwal::sim::Rng;
use ringwal::{Batch, Config, DriverError, Error, IoChoice, KvStore, Log, StoreConfig};

/// A small file system to be filled.
struct Small {
    mounted: Mounted,
}

impl Small {
    fn in_memory() -> Option<Small> {
        Mounted::in_memory(c"size=1m").map(|mounted| Small { mounted })
    }

    fn ext4() -> Option<Small> {
        let small = Small { mounted: Mounted::ext4(12 << 20)? };
        small.leave(1 << 20);
        Some(small)
    }

    fn log(&self) -> PathBuf {
        self.mounted.at().join("log")
    }

    fn filler(&self) -> PathBuf {
        self.mounted.at().join("filler")
    }

    /// Takes all room but so much: every synced append takes its time.
    fn leave(&self, bytes: u64) {
        let room = rustix::fs::statvfs(self.mounted.at()).unwrap();
        let ballast = (room.f_bavail * room.f_frsize).saturating_sub(bytes) as usize;
        fs::write(self.mounted.at().join("ballast"), vec![1; ballast]).unwrap();
    }

    /// Keeps some room from the log, for [`Small::free`] to give: more than one segment.
    fn reserve(&self, bytes: usize) {
        File::create(self.filler()).unwrap().write_all(&vec![1; bytes]).unwrap();
    }

    /// Takes whatever room is left, to the last block.
    fn fill(&self) {
        let mut filler = File::options().create(true).append(true).open(self.filler()).unwrap();
        for piece in [64 << 10, 4096, 512, 1] {
            while filler.write_all(&vec![1; piece]).is_ok() {}
            let _ = filler.sync_all();
        }
    }

    fn free(&self) {
        fs::remove_file(self.filler()).unwrap();
        // Blocks that a journal still speaks of are not free before it is written.
        File::open(self.mounted.at()).unwrap().sync_all().unwrap();
    }
}

fn config(io: IoChoice) -> Config {
    let small = Config::default().segment_bytes(24 * 4096).tail_cache_bytes(0).lock_wait(Duration::from_secs(60));
    small.idle_mark_after(Duration::from_secs(3600)).io(io)
}

fn open(small: &Small, io: IoChoice) -> Log {
    Log::open(small.log(), config(io)).unwrap_or_else(|error| panic!("{io:?}: {error}")).0
}

/// Appends until it is refused; returns how many were acknowledged.
fn append_until_refused(log: &Log) -> u64 {
    for nth in 0..100_000u64 {
        match log.append(vec![nth as u8; 2000]) {
            Ok(_) => {}
            Err(Error::NoSpace) => return nth,
            Err(error) => panic!("append {nth}: {error}"),
        }
    }
    panic!("the disk is never full");
}

fn assert_refuses(log: &Log) {
    let before = log.state();
    let error = log.append(vec![1; 2000]).unwrap_err();
    assert!(matches!(error, Error::NoSpace), "{error}");
    assert!(error.to_string().contains("free space on the disk or compact the log"), "{error}");
    assert_eq!(log.state(), before, "a refused append leaves nothing behind");
    // Where no spare stands, a call that never waits says that it would have to, or what the last attempt found.
    let (error, _) = log.try_submit(Batch::new().push(vec![1; 2000])).map(drop).unwrap_err();
    assert!(matches!(error, Error::NoSpace | Error::Busy), "{error}");
}

fn filled_to_the_brim(small: &Small) {
    for io in [IoChoice::Auto, IoChoice::Syscall] {
        let log = open(small, io);
        println!("{io:?}: {}", log.io_mode());
        small.reserve(300 << 10);
        let acked = append_until_refused(&log);
        assert!(acked > 30, "only {acked} fitted");
        small.fill();
        assert_refuses(&log);
        let whole = Look::take(&log).unwrap();
        assert_eq!(whole.entries.len() as u64, acked, "reads go on");
        log.put_meta(b"vote", b"small things still fit").unwrap();
        log.close().unwrap();

        reopens_while_full(small, io, &whole);
        goes_on_when_space_is_freed(small, io, &whole);
        goes_on_after_compaction(small, io);
        fs::remove_dir_all(small.log()).unwrap();
    }
}

/// Again and again: an open must not use up what little is left.
fn reopens_while_full(small: &Small, io: IoChoice, whole: &Look) {
    for _ in 0..12 {
        let log = open(small, io);
        assert_eq!(Look::take(&log).unwrap().entries, whole.entries);
        assert_refuses(&log);
        log.close().unwrap();
    }
    assert_eq!(Look::take(&Log::open_read_only(small.log()).unwrap().0).unwrap().entries, whole.entries);
}

fn goes_on_when_space_is_freed(small: &Small, io: IoChoice, whole: &Look) {
    let log = open(small, io);
    assert_refuses(&log);
    small.free();
    let index = log.append("there is room again").unwrap_or_else(|error| panic!("{io:?}: {error}"));
    assert_eq!(index, whole.last.unwrap().0 + 1);
    small.reserve(150 << 10);
    append_until_refused(&log);
    small.fill();
    assert_refuses(&log);
}

/// Compaction is recorded on a full disk, and what it lets go makes room, also behind the filler.
fn goes_on_after_compaction(small: &Small, io: IoChoice) {
    let log = open(small, io);
    assert_refuses(&log);
    for _ in 0..3 {
        let state = log.state();
        let (last, _) = state.last.unwrap();
        let middle = state.first + (last - state.first) / 2;
        log.compact(middle).unwrap_or_else(|error| panic!("{io:?}: {error}"));
        assert_eq!((log.state().first, log.get(last).unwrap().index), (middle + 1, last));
        let more = append_until_refused(&log);
        assert!(more > 0, "nothing fitted after a compaction to {middle} of {state:?}");
        assert_refuses(&log);
    }
    let whole = Look::take(&log).unwrap();
    log.close().unwrap();
    let log = open(small, io);
    assert_eq!(Look::take(&log).unwrap(), whole);
    small.free();
    log.append("after all").unwrap();
}

#[test]
fn a_file_system_in_memory_filled_to_the_brim() {
    if let Some(small) = Small::in_memory() {
        filled_to_the_brim(&small);
    }
}

#[test]
fn an_ext4_filled_to_the_brim() {
    if let Some(small) = Small::ext4() {
        filled_to_the_brim(&small);
    }
}

/// No room for even the first segment: an error, and nothing that stands in the way of the next try.
#[test]
fn a_log_cannot_be_created_on_a_full_disk_and_can_once_there_is_room() {
    for small in [Small::in_memory(), Small::ext4()].into_iter().flatten() {
        fs::create_dir(small.log()).unwrap();
        small.fill();
        let error = Log::open(small.log(), config(IoChoice::Auto)).unwrap_err();
        assert!(error.to_string().contains("free space on the disk"), "{error}");
        assert!(is_out_of_space(&error), "{error}");
        small.free();
        open(&small, IoChoice::Auto).append("created").unwrap();
    }
}

fn is_out_of_space(error: &Error) -> bool {
    match error {
        Error::NoSpace => true,
        Error::Io { source, .. } => source.kind() == std::io::ErrorKind::StorageFull,
        _ => false,
    }
}

/// Kills nothing, but leaves the log as a kill would: the last frames have no mark, and there is no room to save or
/// rewrite anything new.
#[test]
fn a_log_that_was_not_closed_reopens_while_the_disk_is_full() {
    for small in [Small::in_memory(), Small::ext4()].into_iter().flatten() {
        small.reserve(300 << 10);
        let log = open(&small, IoChoice::Auto);
        append_until_refused(&log);
        small.fill();
        let whole = Look::take(&log).unwrap();
        let copy = copy_over(&small);
        log.close().unwrap();
        // Back in place as it stood while the log was open; every block that differs is allocated.
        for (name, bytes) in copy {
            let path = small.log().join(name);
            let (now, file) = (fs::read(&path).unwrap(), File::options().write(true).open(path).unwrap());
            for (nth, block) in
                bytes.chunks(512).enumerate().filter(|(nth, block)| now[nth * 512..][..block.len()] != **block)
            {
                file.write_all_at(block, nth as u64 * 512).unwrap();
            }
        }
        let log = open(&small, IoChoice::Auto);
        assert_eq!(Look::take(&log).unwrap(), whole);
        assert_refuses(&log);
        small.free();
        log.append("there is room again").unwrap();
    }
}

/// The log's files as they stand.
fn copy_over(small: &Small) -> Vec<(String, Vec<u8>)> {
    let read = |path: &Path| fs::read(path).unwrap();
    let entries = fs::read_dir(small.log()).unwrap().map(|entry| entry.unwrap());
    let files = entries.map(|entry| (entry.file_name().into_string().unwrap(), entry.path()));
    // The helper may be trying to make something, and not be able to.
    files.filter(|(name, _)| !name.ends_with(".tmp")).map(|(name, path)| (name, read(&path))).collect()
}

/// What the process that is killed below told before it died: the last of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Told {
    appended: u64,
    voted: u64,
    compacted: u64,
}

impl Told {
    fn note(&mut self, line: &str) {
        let Some((what, number)) = line.split_once(' ') else { return };
        let Ok(number) = number.parse() else { return };
        match what {
            "appended" => self.appended = number,
            "voted" => self.voted = number,
            "compacted" => self.compacted = number,
            _ => {}
        }
    }
}

/// One line by one system call: whole in the pipe, or not there.
fn tell(line: &str) {
    assert_eq!(rustix::io::write(std::io::stdout(), line.as_bytes()), Ok(line.len()));
}

fn vote_of(log: &Log) -> u64 {
    log.get_meta(b"vote").map_or(0, |vote| u64::from_le_bytes(vote[..].try_into().unwrap()))
}

/// What the entry of an index holds in the log that is killed.
fn payload(index: u64) -> Vec<u8> {
    vec![index as u8; 1000 + (index % 7 * 100) as usize]
}

/// Not a test of its own: appends, votes and compacts on a disk that is full, until the test below kills it.
#[test]
#[ignore = "the process that is killed by another test"]
fn the_process_on_a_full_disk() {
    let Ok(directory) = env::var("RINGWAL_FULL") else { return println!("nobody asked for it") };
    let (log, _) = Log::open(directory, config(IoChoice::Auto)).unwrap();
    println!();
    for turn in 0u64.. {
        let next = log.state().last.map_or(log.state().first, |(last, _)| last + 1);
        match log.append(payload(next)) {
            Ok(index) => tell(&format!("appended {index}\n")),
            Err(Error::NoSpace) => {}
            Err(error) => panic!("{error}"),
        }
        let vote = vote_of(&log) + 1;
        match log.put_meta(b"vote", &vote.to_le_bytes()) {
            Ok(()) => tell(&format!("voted {vote}\n")),
            Err(Error::NoSpace) => {}
            Err(error) => panic!("{error}"),
        }
        // Rarely: most lives end on a disk that is full all the time.
        if turn % 64 == 63 {
            // More than a segment holds: one that lets none go is refused once hard state has used up the reserve.
            let upto = log.state().first + 30;
            log.compact(upto)
                .unwrap_or_else(|error| panic!("{error}: {upto} of {:?} {:?}", log.state(), log.segments()));
            tell(&format!("compacted {upto}\n"));
        }
    }
}

/// Runs that process for so long; what it told until it was killed.
fn killed_after(small: &Small, time: Duration) -> Told {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "the_process_on_a_full_disk", "--ignored", "--nocapture"]);
    let mut child = command.env("RINGWAL_FULL", small.log()).stdout(Stdio::piped()).spawn().unwrap();
    thread::sleep(time);
    assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
    child.kill().unwrap();
    let mut told = Told::default();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.map_while(Result::ok).for_each(|line| told.note(&line));
    child.wait().unwrap();
    told
}

/// Opens the log as often as not, so that one kill follows another on what the last one left.
fn crashes_while_full(small: &Small) {
    small.reserve(300 << 10);
    let log = open(small, IoChoice::Auto);
    let refused = (1..10_000).find_map(|index| log.append(payload(index)).err());
    assert!(matches!(refused, Some(Error::NoSpace)), "{refused:?}");
    small.fill();
    drop(log);
    let (mut rng, mut highest) = (Rng::new(1), Told::default());
    let met = |highest: &Told| highest.voted > 20 && highest.compacted > 0 && highest.appended > highest.compacted;
    // Where much else runs, lives so short come to nothing: then there are more of them, and longer ones.
    for round in 0..400 {
        if round >= 40 && met(&highest) {
            break;
        }
        let longest_us = 60_000 * (1 + round / 40);
        let told = killed_after(small, Duration::from_micros(rng.next_u64() % longest_us));
        highest.appended = highest.appended.max(told.appended);
        highest.voted = highest.voted.max(told.voted);
        highest.compacted = highest.compacted.max(told.compacted);
        if rng.one_in(2) {
            let log = open(small, if rng.one_in(2) { IoChoice::Auto } else { IoChoice::Syscall });
            has_all(&log, highest, round);
            log.close().unwrap();
        }
    }
    println!("{highest:?}");
    assert!(met(&highest), "{highest:?}");
    let log = open(small, IoChoice::Auto);
    has_all(&log, highest, 400);
    small.free();
    log.append("there is room again").unwrap();
}

fn has_all(log: &Log, told: Told, round: u64) {
    let (state, vote) = (log.state(), vote_of(log));
    assert!(state.last.unwrap().0 >= told.appended, "round {round}: {state:?} after {told:?}");
    assert!(vote >= told.voted, "round {round}: vote {vote} after {told:?}");
    assert!(state.compacted.map_or(0, |(index, _)| index) >= told.compacted, "round {round}: {state:?} after {told:?}");
    for entry in log.iter(..) {
        let entry = entry.unwrap();
        assert!(entry.command == payload(entry.index), "round {round}: index {}", entry.index);
    }
}

#[test]
fn a_process_killed_again_and_again_on_a_full_disk_leaves_a_log_that_opens() {
    for small in [Small::in_memory(), Small::ext4()].into_iter().flatten() {
        crashes_while_full(&small);
    }
}

fn open_store(small: &Small) -> KvStore {
    let config = StoreConfig::default().log(config(IoChoice::Auto)).keep_snapshots(2);
    KvStore::open(small.log(), config).unwrap_or_else(|error| panic!("{error}")).0
}

fn set_each(store: &KvStore, keys: std::ops::Range<u64>) {
    for key in keys {
        let mut rng = Rng::new(key);
        let value: Vec<u8> = (0..1000).map(|_| rng.next_u64() as u8).collect();
        store.set(format!("key {key}"), value).unwrap_or_else(|error| panic!("key {key}: {error}"));
    }
}

/// Names and bytes of what belongs to snapshots.
fn snapshot_files(small: &Small) -> Vec<(String, Vec<u8>)> {
    let is_one = |(name, _): &(String, Vec<u8>)| name.starts_with("snapshot_");
    let mut files: Vec<_> = look::files(&small.log()).into_iter().filter(is_one).collect();
    files.sort();
    files
}

/// A checkpoint that finds no room: log and snapshots stay as they were, and nothing of it is left.
fn assert_takes_no_snapshot(small: &Small, store: &KvStore) {
    let (log, before) = (store.driver().log(), snapshot_files(small));
    let state = (log.state(), store.image().iter().count());
    let error = store.checkpoint().unwrap_err();
    assert!(matches!(&error, DriverError::Snapshot(error) if error.is_out_of_space()), "{error}");
    assert!(error.to_string().contains("free space on the disk"), "{error}");
    assert_eq!((log.state(), store.image().iter().count()), state);
    assert!(snapshot_files(small) == before, "a snapshot was lost or left behind");
}

/// No temporary file is in the way of anything either: a checkpoint needs as much room as the snapshot, and no more.
#[test]
fn a_disk_that_is_full_when_a_snapshot_is_taken_costs_nothing_but_that_snapshot() {
    for small in [Small::in_memory(), Small::ext4()].into_iter().flatten() {
        let store = open_store(&small);
        small.reserve(300 << 10);
        set_each(&store, 0..60);
        let snapshot = store.checkpoint().unwrap();
        set_each(&store, 40..100);
        let whole: Vec<_> = store.scan::<&[u8]>(.., usize::MAX);
        small.fill();
        (0..3).for_each(|_| assert_takes_no_snapshot(&small, &store));
        store.close().unwrap();
        let store = open_store(&small);
        assert_eq!((store.scan::<&[u8]>(.., usize::MAX), store.stats().snapshot), (whole.clone(), snapshot.id));
        assert_takes_no_snapshot(&small, &store);
        small.free();
        let later = store.checkpoint().unwrap();
        assert!(later.index > snapshot.index && store.driver().log().state().first == later.index + 1);
        set_each(&store, 0..1);
        store.close().unwrap();
        assert_eq!(open_store(&small).scan::<&[u8]>(.., usize::MAX), whole);
    }
}
