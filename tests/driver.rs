//! The driver: what was answered is applied and stays so, the log is compacted only below a snapshot that can be
//! restored, and nobody waits for whom it must not.

mod common;

use std::future::Future;
use std::io::{self, Read, Write};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use common::{FOR_EVER, block_on, eventually, held_disk, scratch, small, tiny, within};
use ringwal::machine::{CounterCommand, CounterStateMachine};
use ringwal::sim::{FaultRule, Mode, OpKind, SimDisk};
use ringwal::{
    Batch, Config, Driver, DriverConfig, DriverError, DriverReport, Durability, Error, FileSnapshots, Log, SegmentRole,
    SnapshotError, SnapshotOptions, StateImage, StateMachine,
};

/// Writes down what it is told, in order. Refuses what begins with "no", and panics at "panic" while it is told to.
#[derive(Debug, Default)]
struct Scribe {
    lines: Vec<String>,
    gate: Arc<Gate>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
enum ScribeError {
    #[error("the scribe does not write {0:?}")]
    Refused(String),
    #[error("that is no text")]
    NoText,
}

/// Holds back images that are written, and decides about panics.
#[derive(Debug, Default)]
struct Gate {
    is_closed: Mutex<bool>,
    news: Condvar,
    waiting: AtomicU64,
    panics: AtomicBool,
    breaks: AtomicBool,
}

impl Gate {
    fn close(&self) {
        *self.is_closed.lock().unwrap() = true;
    }

    fn open(&self) {
        *self.is_closed.lock().unwrap() = false;
        self.news.notify_all();
    }

    fn pass(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        assert!(!self.breaks.load(Ordering::SeqCst), "the image tore");
        let mut is_closed = self.is_closed.lock().unwrap();
        while *is_closed {
            is_closed = self.news.wait(is_closed).unwrap();
        }
    }

    fn wait_for(&self, images: u64) {
        eventually("an image is written", || self.waiting.load(Ordering::SeqCst) >= images);
    }
}

struct ScribeImage {
    text: String,
    gate: Arc<Gate>,
}

impl StateImage for ScribeImage {
    fn write_to(self, sink: &mut dyn Write) -> io::Result<()> {
        let (first, second) = self.text.as_bytes().split_at(self.text.len() / 2);
        sink.write_all(first)?;
        self.gate.pass();
        sink.write_all(second)
    }
}

impl StateMachine for Scribe {
    type Command = String;
    type Response = usize;
    type Image = ScribeImage;
    type Error = ScribeError;

    const KIND: &'static str = "scribe/1";

    async fn apply(&mut self, command: String) -> Result<usize, ScribeError> {
        assert!(command != "panic" || !self.gate.panics.load(Ordering::SeqCst), "the pen broke");
        if command.starts_with("no") {
            return Err(ScribeError::Refused(command));
        }
        self.lines.push(command);
        Ok(self.lines.len())
    }

    fn image(&self) -> ScribeImage {
        ScribeImage { text: self.lines.join("\n"), gate: self.gate.clone() }
    }

    async fn restore(&mut self, source: &mut (dyn Read + Send)) -> Result<(), ScribeError> {
        let mut text = String::new();
        source.read_to_string(&mut text).map_err(|_| ScribeError::NoText)?;
        self.lines = text.lines().map(str::to_owned).collect();
        Ok(())
    }

    fn encode(command: &String) -> Bytes {
        Bytes::copy_from_slice(command.as_bytes())
    }

    fn decode(bytes: &Bytes) -> Result<String, ScribeError> {
        String::from_utf8(bytes.to_vec()).map_err(|_| ScribeError::NoText)
    }
}

type ScribeDriver = Driver<Scribe>;
type ScribeResult<T> = Result<T, DriverError<ScribeError>>;

fn config() -> DriverConfig {
    DriverConfig::default().log(tiny()).snapshots(SnapshotOptions::default().chunk_bytes(4096).workers(1))
}

fn try_open(disk: &SimDisk, config: DriverConfig) -> ScribeResult<(ScribeDriver, DriverReport)> {
    Driver::open_on(Arc::new(disk.clone()), Scribe::default(), config)
}

fn open(disk: &SimDisk) -> ScribeDriver {
    try_open(disk, config()).unwrap().0
}

fn lines(driver: &ScribeDriver) -> Vec<String> {
    driver.read(|scribe| scribe.lines.clone())
}

fn gate(driver: &ScribeDriver) -> Arc<Gate> {
    driver.read(|scribe| scribe.gate.clone())
}

fn write(driver: &ScribeDriver, indexes: std::ops::RangeInclusive<u64>) {
    for index in indexes {
        driver.propose(format!("line {index}")).unwrap();
    }
}

fn expected(lines: u64) -> Vec<String> {
    (1..=lines).map(|index| format!("line {index}")).collect()
}

fn snapshot_files(disk: &SimDisk) -> Vec<String> {
    let names = disk.file_names().into_iter().map(|name| name.to_string());
    names.filter(|name| name.starts_with("snapshot")).collect()
}

/// What a refused open leaves as it is: all but the segment and the index file that an open log prepares meanwhile.
fn untouched(disk: &SimDisk, before: &[Arc<str>]) -> bool {
    let names = disk.file_names();
    let is_prepared = |name: &Arc<str>| name.ends_with(".seg") || name.ends_with(".idx");
    before.iter().all(|name| names.contains(name))
        && names.iter().all(|name| before.contains(name) || is_prepared(name))
}

/// A directory with snapshots at 10 and 20 and ten entries more, closed.
fn with_history(config: &DriverConfig) -> SimDisk {
    let disk = SimDisk::new(7);
    let (driver, _) = try_open(&disk, config.clone()).unwrap();
    write(&driver, 1..=10);
    driver.checkpoint().unwrap();
    write(&driver, 11..=20);
    driver.checkpoint().unwrap();
    write(&driver, 21..=30);
    driver.close().unwrap();
    disk
}

/// Flips a bit in the middle of a file.
fn damage(disk: &SimDisk, name: &str) {
    let bytes = disk.read_file(name).unwrap().len() as u64;
    disk.flip_bit(name, bytes / 2, 3).unwrap();
}

#[test]
fn what_was_answered_is_there_after_every_reopen() {
    let dir = scratch();
    for round in 0..5u64 {
        let config = DriverConfig::default().log(small());
        let (driver, report) = Driver::open(dir.path(), Scribe::default(), config).unwrap();
        assert_eq!((report.created, driver.last_applied()), (round == 0, round * 8));
        assert_eq!(lines(&driver), expected(round * 8));
        for index in round * 8 + 1..=round * 8 + 8 {
            assert_eq!(driver.propose(format!("line {index}")).unwrap(), index as usize);
        }
        if round % 2 == 1 {
            driver.checkpoint().unwrap();
        }
        match round {
            3 => drop(driver),
            _ => driver.close().unwrap(),
        }
    }
}

#[test]
fn an_open_replays_only_what_came_after_the_newest_snapshot() {
    let disk = with_history(&config());
    let (driver, report) = try_open(&disk, config()).unwrap();
    assert_eq!((report.snapshot.index, report.replayed_entries, report.created), (20, 10, false));
    assert_eq!(lines(&driver), expected(30));
    assert_eq!(driver.log().state().compacted, Some((20, 0)));
    assert_eq!(snapshot_files(&disk), ["snapshot_10_0.zst", "snapshot_20_0.zst"]);
}

#[test]
fn nothing_new_since_the_last_snapshot_gives_that_one() {
    let disk = SimDisk::new(1);
    let driver = open(&disk);
    let initial = driver.checkpoint().unwrap();
    assert_eq!((initial.index, initial.term), (0, 0));
    write(&driver, 1..=3);
    let first = driver.checkpoint().unwrap();
    assert_eq!(driver.checkpoint().unwrap(), first);
    drop(driver);
    let driver = open(&disk);
    assert_eq!(driver.checkpoint().unwrap(), first, "a reopened driver knows it too");
    let snapshots = driver.snapshots();
    snapshots.delete_snapshot("snapshot_0_0").unwrap();
    assert!(matches!(snapshots.delete_snapshot("snapshot_3_0"), Err(SnapshotError::Needed { .. })));
    assert_eq!(snapshot_files(&disk), ["snapshot_3_0.zst"]);
}

#[test]
fn the_initial_state_is_part_of_what_is_kept() {
    let dir = scratch();
    let open = |initial| {
        let config = DriverConfig::default().log(small());
        Driver::open(dir.path(), CounterStateMachine::new(initial), config).unwrap().0
    };
    let driver = open(40);
    assert_eq!(driver.propose(CounterCommand::Increment(2)).unwrap(), 42);
    drop(driver);
    let driver = open(7);
    assert_eq!(driver.read(|counter| counter.count()), 42);
    driver.checkpoint().unwrap();
    drop(driver);
    assert_eq!(open(0).read(|counter| counter.count()), 42);
}

#[test]
fn a_refusal_is_an_answer_and_the_same_at_every_replay() {
    let disk = SimDisk::new(2);
    let driver = open(&disk);
    write(&driver, 1..=1);
    let refused = driver.propose("not this".into());
    assert!(matches!(refused, Err(DriverError::Refused(ScribeError::Refused(line))) if line == "not this"));
    let results = driver.propose_batch(vec!["line 2".into(), "no".into(), "line 3".into()]).unwrap();
    assert_eq!(results, [Ok(2), Err(ScribeError::Refused("no".into())), Ok(3)]);
    assert_eq!((driver.last_applied(), driver.stats().refusals), (5, 2));
    assert_eq!(driver.propose_batch(Vec::new()).unwrap(), []);
    drop(driver);
    let driver = open(&disk);
    assert_eq!((lines(&driver), driver.last_applied()), (expected(3), 5));
}

#[test]
fn a_directory_of_another_machine_is_refused_and_left_alone() {
    let disk = with_history(&config());
    let files = disk.file_names();
    let opened = Driver::open_on(Arc::new(disk.clone()), CounterStateMachine::new(1), config());
    let Err(DriverError::OtherMachine { found, expected, .. }) = opened else { panic!("{opened:?}") };
    assert_eq!((found.as_str(), expected), ("scribe/1", "counter/1"));
    assert!(untouched(&disk, &files), "{:?}", disk.file_names());
    assert_eq!(lines(&open(&disk)), self::expected(30));
}

#[test]
fn a_snapshot_of_another_machine_is_refused() {
    let disk = with_history(&config());
    let snapshots = FileSnapshots::open_on(Arc::new(disk.clone()), SnapshotOptions::default()).unwrap();
    let mut writer = snapshots.writer(25, 0, "counter/1").unwrap();
    writer.write_all(b"a count").unwrap();
    writer.publish().unwrap();
    for fall_back in [false, true] {
        let opened = try_open(&disk, config().fall_back(fall_back));
        let Err(DriverError::OtherMachine { path, found, .. }) = opened else { panic!("{opened:?}") };
        assert_eq!((path.ends_with("snapshot_25_0.zst"), found.as_str()), (true, "counter/1"));
    }
}

#[test]
fn a_log_without_a_machine_is_refused() {
    let disk = SimDisk::new(3);
    let (log, _) = Log::open_on(Arc::new(disk.clone()), tiny()).unwrap();
    log.append("an entry of somebody else").unwrap();
    drop(log);
    assert!(matches!(try_open(&disk, config()), Err(DriverError::NoMachine { .. })));
    assert_eq!(snapshot_files(&disk), [""; 0]);
}

#[test]
fn a_log_whose_snapshots_are_gone_is_an_error_and_never_an_empty_state() {
    let disk = with_history(&config());
    for name in snapshot_files(&disk) {
        disk.remove_file(&name).unwrap();
    }
    for fall_back in [false, true] {
        assert!(matches!(try_open(&disk, config().fall_back(fall_back)), Err(DriverError::NoSnapshot { .. })));
    }
}

#[test]
fn entries_that_are_missing_behind_the_newest_snapshot_are_an_error() {
    let disk = with_history(&config());
    disk.remove_file("snapshot_20_0.zst").unwrap();
    for fall_back in [false, true] {
        let opened = try_open(&disk, config().fall_back(fall_back));
        assert!(matches!(opened, Err(DriverError::OutOfReach { snapshot: 10, first: 21, .. })), "{opened:?}");
    }
}

#[test]
fn a_damaged_newest_snapshot_is_an_error_that_names_the_way_on() {
    for reach in [1, 2] {
        let config = config().log_reaches_back_to(reach);
        let disk = with_history(&config);
        damage(&disk, "snapshot_20_0.zst");
        let files = disk.file_names();
        for _ in 0..2 {
            let error = try_open(&disk, config.clone()).unwrap_err();
            let DriverError::Damaged { file, reachable, .. } = &error else { panic!("{error:?}") };
            assert!(file.ends_with("snapshot_20_0.zst"));
            assert_eq!(reachable.map(|id| id.index), (reach == 2).then_some(10));
            assert_eq!(error.to_string().contains("fall_back"), reach == 2, "{error}");
            assert!(untouched(&disk, &files), "{:?}", disk.file_names());
        }
    }
}

#[test]
fn a_damaged_newest_snapshot_is_got_over_while_the_log_reaches_back() {
    let config = config().log_reaches_back_to(2).fall_back(true);
    let disk = with_history(&config);
    damage(&disk, "snapshot_20_0.zst");
    let damaged = disk.read_file("snapshot_20_0.zst").unwrap();
    let (driver, report) = try_open(&disk, config.clone()).unwrap();
    assert_eq!((report.snapshot.index, report.replayed_entries), (10, 20));
    assert_eq!(lines(&driver), expected(30));
    let aside = report.set_aside[0].file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(disk.read_file(&aside).unwrap(), damaged, "it is kept under another name");
    drop(driver);
    let (driver, report) = try_open(&disk, config).unwrap();
    assert_eq!((report.snapshot.index, report.set_aside.len()), (10, 0));
    assert_eq!(driver.checkpoint().unwrap().index, 30);
}

#[test]
fn an_intact_newest_snapshot_is_not_given_up_for_one_read_that_goes_wrong() {
    let config = config().log_reaches_back_to(2).fall_back(true);
    let history = with_history(&config);
    let files = history.file_names();
    let rules: [fn(u64) -> FaultRule; 2] =
        [|nth| FaultRule::io_error(OpKind::Read, nth), |nth| FaultRule::bit_error(nth, 12_345)];
    for (kind, rule) in rules.into_iter().enumerate() {
        let (mut struck, mut opened) = (0, 0);
        for nth in 1.. {
            let disk = history.copy_at_rest();
            disk.fail(rule(nth).on("snapshot_20_0.zst"));
            let result = try_open(&disk, config.clone());
            if disk.struck().is_empty() {
                break;
            }
            struck += 1;
            match result {
                Ok((driver, report)) => {
                    assert_eq!((report.snapshot.index, report.set_aside.len()), (20, 0), "{kind} {nth}");
                    assert_eq!(lines(&driver), expected(30));
                    opened += 1;
                }
                Err(error) => {
                    let DriverError::Snapshot(SnapshotError::Io { .. }) = error else { panic!("{error:?}") };
                    assert!(untouched(&disk, &files), "{kind} {nth}: {:?}", disk.file_names());
                }
            }
        }
        assert_eq!((struck > 1, opened), (true, if kind == 0 { 0 } else { struck }), "{kind}: of {struck}");
    }
}

#[test]
fn a_snapshot_that_is_whole_is_not_set_aside() {
    let disk = with_history(&config());
    let driver = open(&disk);
    let files = snapshot_files(&disk);
    let refused = driver.snapshots().set_aside("snapshot_10_0");
    assert!(matches!(refused, Err(SnapshotError::Intact { .. })), "{refused:?}");
    disk.fail(FaultRule::io_error(OpKind::Read, 1));
    let refused = driver.snapshots().set_aside("snapshot_10_0");
    assert!(matches!(refused, Err(SnapshotError::Io { .. })), "{refused:?}");
    assert_eq!(snapshot_files(&disk), files);
    damage(&disk, "snapshot_10_0.zst");
    driver.snapshots().set_aside("snapshot_10_0").unwrap();
}

#[test]
fn a_snapshot_that_cannot_be_opened_is_none_that_the_log_reaches_back_to() {
    let config = config().keep_snapshots(3).log_reaches_back_to(2);
    let disk = with_history(&config);
    let last_byte = disk.read_file("snapshot_20_0.zst").unwrap().len() as u64 - 1;
    let (driver, _) = try_open(&disk, config.clone()).unwrap();
    disk.flip_bit("snapshot_20_0.zst", last_byte, 3).unwrap();
    driver.checkpoint().unwrap();
    assert_eq!(driver.log().state().compacted, Some((10, 0)));
    drop(driver);
    damage(&disk, "snapshot_30_0.zst");
    let (driver, report) = try_open(&disk, config.fall_back(true)).unwrap();
    assert_eq!((lines(&driver), report.snapshot.index), (expected(30), 10));
}

#[test]
fn where_the_log_does_not_reach_back_falling_back_is_no_way_on() {
    let config = config().fall_back(true);
    let disk = with_history(&config);
    damage(&disk, "snapshot_20_0.zst");
    let files = disk.file_names();
    let opened = try_open(&disk, config);
    assert!(matches!(opened, Err(DriverError::Damaged { reachable: None, .. })), "{opened:?}");
    assert!(untouched(&disk, &files), "{:?}", disk.file_names());
}

#[test]
fn an_entry_that_is_no_command_is_an_error_at_its_index() {
    let disk = with_history(&config());
    let (log, _) = Log::open_on(Arc::new(disk.clone()), tiny()).unwrap();
    log.append(&b"\xff\xfe"[..]).unwrap();
    drop(log);
    let opened = try_open(&disk, config());
    assert!(matches!(opened, Err(DriverError::Undecodable { index: 31, source: ScribeError::NoText })), "{opened:?}");
}

/// Puts a snapshot there that this directory's driver did not make.
fn put_snapshot(disk: &SimDisk, index: u64, term: u64) {
    let snapshots = FileSnapshots::open_on(Arc::new(disk.clone()), SnapshotOptions::default()).unwrap();
    let mut writer = snapshots.writer(index, term, "scribe/1").unwrap();
    writer.write_all(b"what the peer knows").unwrap();
    writer.publish().unwrap();
}

#[test]
fn a_snapshot_of_a_peer_in_a_new_directory_is_installed() {
    let disk = SimDisk::new(7);
    drop(Log::open_on(Arc::new(disk.clone()), tiny()).unwrap());
    put_snapshot(&disk, 100, 4);
    let driver = open(&disk);
    assert_eq!((driver.last_applied(), lines(&driver)), (100, vec!["what the peer knows".to_owned()]));
    assert_eq!(driver.propose("and more".into()).unwrap(), 2);
}

#[test]
fn a_snapshot_of_a_peer_does_not_replace_entries_unless_that_is_wanted() {
    let disk = with_history(&config());
    put_snapshot(&disk, 100, 4);
    let files = disk.file_names();
    for _ in 0..2 {
        let error = try_open(&disk, config()).unwrap_err();
        assert!(matches!(error, DriverError::Ahead { first: 21, last: 30, .. }), "{error:?}");
        let told = error.to_string();
        assert!(told.contains("install_over_entries") && told.contains("snapshot_100_4.zst"), "{told}");
        assert!(untouched(&disk, &files), "{:?}", disk.file_names());
    }
    disk.remove_file("snapshot_100_4.zst").unwrap();
    assert_eq!(lines(&open(&disk)), expected(30), "nothing is lost");
}

#[test]
fn entries_whose_own_snapshot_is_damaged_are_not_replaced_either() {
    let config = config().log_reaches_back_to(2);
    let disk = with_history(&config);
    let (driver, _) = try_open(&disk, config.clone()).unwrap();
    assert_eq!(driver.checkpoint().unwrap().index, 30);
    drop(driver);
    damage(&disk, "snapshot_30_0.zst");
    put_snapshot(&disk, 100, 4);
    let opened = try_open(&disk, config.clone());
    assert!(matches!(opened, Err(DriverError::Ahead { first: 21, last: 30, .. })), "{opened:?}");
    disk.remove_file("snapshot_100_4.zst").unwrap();
    assert_eq!(lines(&try_open(&disk, config.fall_back(true)).unwrap().0), expected(30));
}

#[test]
fn a_newer_snapshot_of_a_peer_costs_a_running_driver_none_of_its_own() {
    let disk = SimDisk::new(24);
    let config = config().keep_snapshots(1);
    let (driver, _) = try_open(&disk, config.clone()).unwrap();
    write(&driver, 1..=1);
    driver.checkpoint().unwrap();
    put_snapshot(&disk, 50, 2);
    for last in [10, 12] {
        write(&driver, driver.last_applied() + 1..=last);
        let snapshot = driver.checkpoint().unwrap();
        assert_eq!(driver.checkpoint().unwrap(), snapshot);
        assert_eq!(snapshot_files(&disk), [format!("snapshot_{last}_0.zst"), "snapshot_50_2.zst".into()]);
        assert_eq!(driver.log().state().compacted, Some((last, 0)));
    }
    write(&driver, 13..=15);
    drop(driver);
    let opened = try_open(&disk, config.clone());
    assert!(matches!(opened, Err(DriverError::Ahead { first: 13, last: 15, .. })), "{opened:?}");
    disk.remove_file("snapshot_50_2.zst").unwrap();
    assert_eq!(lines(&try_open(&disk, config).unwrap().0), expected(15));
}

#[test]
fn a_snapshot_of_a_peer_ahead_of_the_log_is_installed_where_that_is_wanted() {
    let disk = with_history(&config());
    put_snapshot(&disk, 100, 4);
    for is_wanted in [true, false] {
        let driver = try_open(&disk, config().install_over_entries(is_wanted)).unwrap().0;
        assert_eq!((driver.last_applied(), lines(&driver)), (100, vec!["what the peer knows".to_owned()]));
        assert_eq!(driver.log().state().compacted, Some((100, 4)));
    }
    let driver = open(&disk);
    driver.propose("and more".into()).unwrap();
    assert_eq!((driver.last_applied(), driver.checkpoint().unwrap().term), (101, 4));
}

#[test]
fn a_snapshot_of_another_history_is_refused() {
    let disk = with_history(&config());
    let snapshots = FileSnapshots::open_on(Arc::new(disk.clone()), SnapshotOptions::default()).unwrap();
    let mut writer = snapshots.writer(25, 9, "scribe/1").unwrap();
    writer.write_all(b"what never was").unwrap();
    writer.publish().unwrap();
    let opened = try_open(&disk, config());
    assert!(matches!(opened, Err(DriverError::OtherHistory { index: 25, found: 9, expected: 0 })), "{opened:?}");
}

#[test]
fn a_poisoned_log_fails_waiters_and_later_calls_with_the_first_cause_and_reads_go_on() {
    let disk = held_disk();
    disk.set_mode(Mode::Random);
    let driver = open(&disk);
    write(&driver, 1..=3);
    disk.set_mode(Mode::Held);
    let waiting: Vec<_> = (0..4)
        .map(|nth| {
            let driver = driver.clone();
            thread::spawn(move || driver.propose(format!("lost {nth}")))
        })
        .collect();
    assert!(disk.wait_in_flight(1, FOR_EVER));
    eventually("all are accepted", || driver.log().state().last == Some((7, 0)));
    let first = disk.in_flight()[0].id;
    disk.complete_failing(first, 5, ringwal::sim::Class::Absent);
    disk.set_mode(Mode::Random);
    disk.complete_all();
    for thread in waiting {
        is_poisoned(thread.join().unwrap());
    }
    is_poisoned(driver.propose("later".into()));
    is_poisoned(block_on(driver.propose_async("later".into())));
    is_poisoned(driver.checkpoint());
    assert_eq!((lines(&driver), driver.last_applied(), driver.commit_index()), (expected(3), 3, 3));
    assert_eq!(snapshot_files(&disk), ["snapshot_0_0.zst"]);
    is_poisoned(driver.close());
    assert_eq!(lines(&open(&disk))[..3], expected(3));
}

fn is_poisoned<T: std::fmt::Debug>(result: ScribeResult<T>) {
    let Err(DriverError::Log(Error::Poisoned(cause))) = &result else { panic!("not poisoned: {result:?}") };
    assert!(matches!(&**cause, Error::Io { source, .. } if source.raw_os_error() == Some(5)), "{cause:?}");
}

#[test]
fn a_full_disk_refuses_before_anything_is_accepted_and_goes_on_once_there_is_room() {
    let disk = SimDisk::new(5);
    let driver = open(&disk);
    write(&driver, 1..=1);
    disk.set_capacity(Some(disk.used_bytes()));
    let mut written = 1;
    let refused = loop {
        match driver.propose(format!("line {}", written + 1)) {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, DriverError::Log(Error::NoSpace)), "{refused:?}");
    assert_eq!((driver.last_applied(), driver.log().state().last), (written, Some((written, 0))));
    assert_eq!(lines(&driver), expected(written));
    disk.set_capacity(None);
    write(&driver, written + 1..=written + 5);
    drop(driver);
    assert_eq!(lines(&open(&disk)), expected(written + 5));
}

#[test]
fn a_checkpoint_that_fails_changes_nothing_and_the_next_one_works() {
    let kinds = [OpKind::Create, OpKind::Write, OpKind::Sync, OpKind::Rename, OpKind::SyncDir, OpKind::Read];
    for kind in kinds {
        for os_error in [5, 28] {
            let disk = SimDisk::new(6);
            // Nothing else is at work on the disk meanwhile.
            let driver = try_open(&disk, config().log(small())).unwrap().0;
            write(&driver, 1..=10);
            driver.checkpoint().unwrap();
            write(&driver, 11..=20);
            let (state, files) = (driver.log().state(), snapshot_files(&disk));
            eventually("the spare stands", || driver.log().segments().iter().any(|it| it.role == SegmentRole::Spare));
            disk.fail(FaultRule::new(kind, 1, os_error));
            let failed = driver.checkpoint();
            assert!(matches!(failed, Err(DriverError::Snapshot(_))), "{kind:?} {os_error}: {failed:?}");
            assert_eq!(driver.log().state(), state, "{kind:?}: the log is as it was");
            let left: Vec<_> = snapshot_files(&disk).into_iter().filter(|name| !files.contains(name)).collect();
            assert!(
                left.iter().all(|name| kind == OpKind::SyncDir && name == "snapshot_20_0.zst"),
                "{kind:?}: {left:?}"
            );
            assert!(files.iter().all(|name| snapshot_files(&disk).contains(name)), "{kind:?}: older ones stay");
            assert_eq!((driver.stats().failed_checkpoints, driver.stats().last_failure.is_some()), (1, true));
            disk.clear_faults();
            write(&driver, 21..=21);
            assert_eq!(driver.checkpoint().unwrap().index, 21, "{kind:?}");
            assert_eq!(driver.stats().last_failure, None);
            drop(driver);
            assert_eq!(lines(&try_open(&disk, config().log(small())).unwrap().0), expected(21));
        }
    }
}

#[test]
fn writes_and_reads_go_on_while_a_snapshot_is_written() {
    let disk = SimDisk::new(8);
    let driver = open(&disk);
    write(&driver, 1..=10);
    let gate = gate(&driver);
    let before = gate.waiting.load(Ordering::SeqCst);
    gate.close();
    let checkpoint = {
        let driver = driver.clone();
        thread::spawn(move || driver.checkpoint().unwrap())
    };
    gate.wait_for(before + 1);
    write(&driver, 11..=20);
    assert_eq!(lines(&driver), expected(20));
    gate.open();
    assert_eq!(checkpoint.join().unwrap().index, 10);
    drop(driver);
    let (driver, report) = try_open(&disk, config()).unwrap();
    assert_eq!((report.snapshot.index, lines(&driver)), (10, expected(20)));
}

#[test]
fn checkpoints_asked_for_at_once_share_one() {
    let disk = SimDisk::new(9);
    let driver = open(&disk);
    write(&driver, 1..=10);
    let gate = gate(&driver);
    let before = gate.waiting.load(Ordering::SeqCst);
    gate.close();
    let asked: Vec<_> = (0..4)
        .map(|_| {
            let driver = driver.clone();
            thread::spawn(move || driver.checkpoint().unwrap())
        })
        .collect();
    gate.wait_for(before + 1);
    write(&driver, 11..=12);
    gate.open();
    for thread in asked {
        let index = thread.join().unwrap().index;
        assert!([10, 12].contains(&index), "{index}");
    }
    assert!(gate.waiting.load(Ordering::SeqCst) <= before + 2, "at most one more, for those who asked later");
}

#[test]
fn snapshots_are_taken_in_the_background_and_the_log_stays_short() {
    for config in [config().snapshot_every_entries(Some(20)), config().snapshot_every_bytes(Some(150))] {
        let disk = SimDisk::new(10);
        let (driver, _) = try_open(&disk, config.keep_snapshots(3)).unwrap();
        let mut written = 0;
        while driver.stats().checkpoints < 5 {
            written += 1;
            driver.propose(format!("line {written}")).unwrap();
        }
        eventually("the log is compacted", || driver.log().state().first > 1);
        drop(driver);
        assert_eq!(snapshot_files(&disk).len(), 3);
        assert_eq!(lines(&open(&disk)), expected(written));
    }
}

#[test]
fn a_snapshot_that_is_due_and_fails_is_not_tried_at_every_proposal() {
    let disk = SimDisk::new(22);
    let (driver, _) =
        try_open(&disk, config().log(tiny().segment_bytes(1 << 20)).snapshot_every_entries(Some(1))).unwrap();
    eventually("the spare stands", || driver.log().segments().iter().any(|it| it.role == SegmentRole::Spare));
    disk.fail(FaultRule::no_space(OpKind::Create, 1).for_good());
    write(&driver, 1..=200);
    eventually("it was tried", || driver.stats().failed_checkpoints > 0);
    write(&driver, 201..=400);
    let failed = driver.stats().failed_checkpoints;
    assert!(failed < 50, "{failed} times for 400 proposals");
    assert!(driver.stats().last_failure.unwrap().contains("free space"));
    disk.clear_faults();
    eventually("it is tried again by itself", || driver.stats().snapshot.index == 400);
}

#[test]
fn a_long_checkpoint_that_fails_is_not_tried_at_every_proposal_either() {
    let disk = SimDisk::new(25);
    let (driver, _) =
        try_open(&disk, config().log(tiny().segment_bytes(1 << 20)).snapshot_every_entries(Some(5))).unwrap();
    eventually("the spare stands", || driver.log().segments().iter().any(|it| it.role == SegmentRole::Spare));
    let gate = gate(&driver);
    let before = gate.waiting.load(Ordering::SeqCst);
    gate.close();
    write(&driver, 1..=5);
    gate.wait_for(before + 1);
    // Much is applied while it is written, and it fails at its very end.
    write(&driver, 6..=100);
    disk.fail(FaultRule::no_space(OpKind::Rename, 1).for_good());
    gate.open();
    eventually("it failed", || driver.stats().failed_checkpoints > 0);
    write(&driver, 101..=400);
    let failed = driver.stats().failed_checkpoints;
    assert!(failed < 50, "{failed} times for 400 proposals");
    disk.clear_faults();
    eventually("it is tried again by itself", || driver.stats().snapshot.index == 400);
}

#[test]
fn a_snapshot_that_somebody_made_of_this_very_index_is_taken_if_it_is_whole() {
    for is_damaged in [false, true] {
        let disk = SimDisk::new(26);
        let driver = open(&disk);
        write(&driver, 1..=10);
        let mut writer = driver.snapshots().writer(10, 0, "scribe/1").unwrap();
        writer.write_all(lines(&driver).join("\n").as_bytes()).unwrap();
        let theirs = writer.publish().unwrap();
        if is_damaged {
            damage(&disk, "snapshot_10_0.zst");
            let failed = driver.checkpoint();
            assert!(matches!(failed, Err(DriverError::Snapshot(SnapshotError::Corrupt { .. }))), "{failed:?}");
            assert_eq!(driver.log().state().compacted, None);
            write(&driver, 11..=11);
            assert_eq!(driver.checkpoint().unwrap().index, 11, "the next one is not in its way");
            continue;
        }
        assert_eq!(driver.checkpoint().unwrap(), theirs);
        assert_eq!((driver.stats().snapshot, driver.stats().entries_since_snapshot), (theirs.id, 0));
        assert_eq!(driver.log().state().compacted, Some((10, 0)));
        drop(driver);
        let (driver, report) = try_open(&disk, config()).unwrap();
        assert_eq!((report.snapshot.index, lines(&driver)), (10, expected(10)));
    }
}

#[test]
fn a_snapshot_of_another_machine_of_this_very_index_is_not_taken() {
    let disk = SimDisk::new(27);
    let driver = open(&disk);
    write(&driver, 1..=10);
    driver.snapshots().writer(10, 0, "counter/1").unwrap().publish().unwrap();
    let failed = driver.checkpoint();
    assert!(matches!(failed, Err(DriverError::Snapshot(SnapshotError::OtherMachine { .. }))), "{failed:?}");
    assert_eq!(driver.log().state().compacted, None);
}

#[test]
fn commands_that_are_submitted_are_under_way_at_once_and_applied_in_order() {
    let disk = SimDisk::new(28);
    let driver = open(&disk);
    let submitted: Vec<_> = (1..=600u64).map(|index| driver.submit(format!("line {index}")).unwrap()).collect();
    for (nth, proposed) in submitted.into_iter().enumerate() {
        assert_eq!(proposed.index(), nth as u64 + 1);
        match nth % 3 {
            0 => assert_eq!(proposed.wait().unwrap(), nth + 1),
            1 => assert_eq!(block_on(proposed).unwrap(), nth + 1),
            _ => drop(proposed),
        }
    }
    let refused = driver.submit("no".into()).unwrap().wait();
    assert!(matches!(refused, Err(DriverError::Refused(_))), "{refused:?}");
    assert_eq!((lines(&driver), driver.last_applied()), (expected(600), 601));
    let inside = driver.read(|_| driver.submit("inside".into()).map(drop));
    assert!(matches!(inside, Err(DriverError::Reentrant)), "{inside:?}");
    // The last handle may go before the answers are there.
    let last = driver.submit("line 601".into()).unwrap();
    drop(driver);
    assert_eq!(last.wait().unwrap(), 601);
    assert_eq!(lines(&open(&disk)), expected(601));
}

#[test]
fn a_snapshot_that_was_due_at_the_last_close_is_taken_after_the_open() {
    let disk = with_history(&config());
    let (driver, _) = try_open(&disk, config().snapshot_every_entries(Some(10))).unwrap();
    eventually("the snapshot is taken", || driver.stats().snapshot.index == 30);
}

#[test]
fn the_last_handle_ends_a_checkpoint_that_is_under_way() {
    let disk = SimDisk::new(11);
    let driver = open(&disk);
    write(&driver, 1..=10);
    let gate = gate(&driver);
    let before = gate.waiting.load(Ordering::SeqCst);
    gate.close();
    let checkpoint = {
        let (driver, started) = (driver.clone(), gate.clone());
        thread::spawn(move || {
            let outcome = driver.checkpoint();
            drop(started);
            outcome
        })
    };
    gate.wait_for(before + 1);
    let closing = thread::spawn(move || driver.close());
    thread::sleep(Duration::from_millis(20));
    gate.open();
    within("closing", move || closing.join().unwrap()).unwrap();
    // Whichever came first.
    let outcome = checkpoint.join().unwrap();
    assert!(matches!(outcome, Ok(_) | Err(DriverError::Stopped)), "{outcome:?}");
    assert!(snapshot_files(&disk).iter().all(|name| name.ends_with(".zst")), "nothing unfinished is left");
    assert_eq!(lines(&open(&disk)), expected(10));
}

#[test]
fn a_closed_driver_can_be_read_and_nothing_else() {
    let disk = SimDisk::new(12);
    let driver = open(&disk);
    write(&driver, 1..=3);
    let other = driver.clone();
    driver.close().unwrap();
    assert_eq!(lines(&other), expected(3));
    assert!(matches!(other.propose("more".into()), Err(DriverError::Log(Error::Closed))));
    assert!(matches!(other.checkpoint(), Err(DriverError::Stopped)));
    assert_eq!(lines(&open(&disk)), expected(3), "it has let go of the directory");
}

#[test]
fn a_machine_that_panics_is_not_used_any_more_and_nobody_hangs() {
    let disk = SimDisk::new(13);
    let driver = open(&disk);
    write(&driver, 1..=2);
    let gate = gate(&driver);
    gate.panics.store(true, Ordering::SeqCst);
    let threads: Vec<_> = (0..8)
        .map(|nth| {
            let driver = driver.clone();
            thread::spawn(move || match nth {
                0 => driver.propose("panic".into()),
                _ => driver.propose(format!("beside {nth}")),
            })
        })
        .collect();
    let mut failed = 0;
    for thread in threads {
        match within("a proposal", move || thread.join().unwrap()) {
            Ok(_) => {}
            Err(DriverError::MachineFailed(failure)) => {
                assert!(failure.reason.contains("the pen broke"), "{failure}");
                failed += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(failed >= 1 && driver.last_applied() <= driver.commit_index());
    assert!(matches!(driver.propose("later".into()), Err(DriverError::MachineFailed(_))));
    assert!(matches!(driver.checkpoint(), Err(DriverError::MachineFailed(_))));
    let tried = driver.try_read(|scribe| scribe.lines.len());
    assert!(matches!(tried, Err(DriverError::MachineFailed(_))), "{tried:?}");
    let reader = driver.clone();
    let read = thread::spawn(move || lines(&reader)).join();
    assert!(read.unwrap_err().downcast::<String>().unwrap().contains("the pen broke"));
    driver.close().unwrap();
    // A mended machine applies all of it.
    let mended = lines(&open(&disk));
    assert!(mended.contains(&"panic".to_owned()) && mended[..2] == expected(2));
}

#[test]
fn a_call_from_inside_the_machine_is_an_error_and_no_deadlock() {
    let disk = SimDisk::new(14);
    let driver = open(&disk);
    let is_reentrant = |result: ScribeResult<usize>| matches!(result, Err(DriverError::Reentrant));
    assert!(driver.read(|_| is_reentrant(driver.propose("inside".into()))));
    assert!(driver.read(|_| is_reentrant(block_on(driver.propose_async("inside".into())))));
    assert!(driver.read(|_| matches!(driver.checkpoint(), Err(DriverError::Reentrant))));
    assert_eq!(driver.read(|_| driver.last_applied()), 0, "what waits for nothing may be called");
    assert!(driver.read(|_| matches!(driver.try_read(|_| ()), Err(DriverError::Reentrant))));
    let nested = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| driver.read(|_| driver.read(|_| ()))));
    assert!(nested.unwrap_err().downcast::<&str>().unwrap().contains("inside"));
    // Another driver is another matter; and afterwards all is well.
    let other = open(&SimDisk::new(15));
    assert_eq!(driver.read(|_| other.propose("outside".into()).unwrap()), 1);
    write(&driver, 1..=3);
    assert_eq!(lines(&driver), expected(3));
}

#[test]
fn an_image_that_panics_is_a_failed_checkpoint_and_the_next_one_works() {
    let disk = SimDisk::new(23);
    let driver = open(&disk);
    write(&driver, 1..=3);
    let gate = gate(&driver);
    gate.breaks.store(true, Ordering::SeqCst);
    let failed = driver.checkpoint();
    assert!(
        matches!(&failed, Err(DriverError::Snapshot(error)) if error.to_string().contains("panicked")),
        "{failed:?}"
    );
    assert_eq!(snapshot_files(&disk), ["snapshot_0_0.zst"]);
    gate.breaks.store(false, Ordering::SeqCst);
    write(&driver, 4..=4);
    assert_eq!(driver.checkpoint().unwrap().index, 4);
}

#[test]
fn what_a_callback_of_the_log_cannot_do_is_refused() {
    let disk = SimDisk::new(16);
    let driver = open(&disk);
    let (sender, receiver) = std::sync::mpsc::channel();
    let inside = driver.clone();
    let note = move |_| {
        let _ = sender.send((inside.propose("from a callback".into()), inside.checkpoint().map(drop)));
    };
    driver.log().submit_with(Batch::new().put_meta(b"key", b"value"), note).unwrap();
    let (proposed, checkpoint) = receiver.recv_timeout(FOR_EVER).unwrap();
    assert!(matches!(proposed, Err(DriverError::Log(Error::InCallback))), "{proposed:?}");
    assert!(matches!(checkpoint, Err(DriverError::Log(Error::InCallback))), "{checkpoint:?}");
}

#[test]
fn reads_wait_neither_for_the_disk_nor_for_those_who_do() {
    let disk = held_disk();
    disk.set_mode(Mode::Random);
    let driver = open(&disk);
    write(&driver, 1..=3);
    disk.set_mode(Mode::Held);
    let waiting = {
        let driver = driver.clone();
        thread::spawn(move || driver.propose("line 4".into()))
    };
    assert!(disk.wait_in_flight(1, FOR_EVER));
    let reader = driver.clone();
    let read = within("a read beside a write that hangs", move || lines(&reader));
    assert_eq!(read, expected(3), "what is not durable is not shown");
    disk.set_mode(Mode::Random);
    disk.complete_all();
    assert_eq!(waiting.join().unwrap().unwrap(), 4);
    assert_eq!(lines(&driver), expected(4));
}

#[test]
fn proposals_whose_futures_are_dropped_are_applied_with_later_ones() {
    let disk = SimDisk::new(17);
    let driver = open(&disk);
    for index in 1..=2000u64 {
        let mut future = pin!(driver.propose_async(format!("line {index}")));
        let polled = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(polled, Poll::Pending | Poll::Ready(Ok(_))), "{polled:?}");
        if index % 500 == 0 {
            eventually("durable", || driver.log().state().durable == driver.log().state().last.map(|(last, _)| last));
        }
    }
    let (applied, accepted) = (driver.last_applied(), driver.log().state().last.unwrap().0);
    assert!(accepted - applied < 1000, "of {accepted} only {applied} were applied");
    // Some found no room, and were never accepted.
    driver.propose("the last".into()).unwrap();
    let all = lines(&driver);
    assert_eq!((all.len() as u64, all.last().unwrap().as_str()), (accepted + 1, "the last"));
    let numbers: Vec<u64> = all[..all.len() - 1].iter().map(|line| line[5..].parse().unwrap()).collect();
    assert!(numbers.is_sorted(), "in the order in which they were accepted");
}

#[test]
fn what_is_appended_past_the_driver_is_applied_in_its_place() {
    let disk = SimDisk::new(18);
    let driver = open(&disk);
    write(&driver, 1..=2);
    driver.log().append("line 3").unwrap();
    driver.log().append("no, refused").unwrap();
    driver.propose("line 4".into()).unwrap();
    assert_eq!((lines(&driver), driver.last_applied()), (expected(4), 5));
    driver.log().append(&b"\xff"[..]).unwrap();
    let failed = driver.propose("line 5".into());
    assert!(matches!(failed, Err(DriverError::MachineFailed(_))), "{failed:?}");
}

#[test]
fn applied_never_passes_committed_and_committed_never_passes_durable() {
    let dir = scratch();
    let config = DriverConfig::default().log(small()).snapshot_every_entries(Some(400));
    let (driver, _) = Driver::open(dir.path(), Scribe::default(), config).unwrap();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let writers: Vec<_> = (0..6)
            .map(|writer| {
                let driver = driver.clone();
                scope.spawn(move || {
                    for nth in 0..150 {
                        let line = format!("{writer}: {nth}");
                        match nth % 3 {
                            0 => drop(driver.propose(line).unwrap()),
                            1 => drop(block_on(driver.propose_async(line)).unwrap()),
                            _ => drop(driver.propose_batch(vec![line.clone(), line]).unwrap()),
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            let mut last = 0;
            while !is_over.load(Ordering::SeqCst) {
                // Each is read after the one that must not pass it.
                let applied = driver.last_applied();
                let seen = driver.read(|scribe| scribe.lines.len() as u64);
                let committed = driver.commit_index();
                let state = driver.log().state();
                assert!(last <= applied && applied <= seen && applied <= committed);
                assert!(committed <= state.durable.unwrap_or(committed), "{committed} {state:?}");
                assert!(state.last.is_none_or(|(index, _)| committed <= index), "{committed} {state:?}");
                let stats = driver.stats();
                assert!(stats.last_applied <= stats.commit_index);
                last = applied;
            }
        });
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        is_over.store(true, Ordering::SeqCst);
    });
    assert_eq!(driver.last_applied(), 6 * 200);
}

#[test]
fn a_batch_is_seen_as_a_whole_or_not_at_all() {
    let disk = SimDisk::new(19);
    let driver = open(&disk);
    let is_over = Arc::new(AtomicBool::new(false));
    let reader = {
        let (driver, is_over) = (driver.clone(), is_over.clone());
        thread::spawn(move || {
            while !is_over.load(Ordering::SeqCst) {
                assert_eq!(driver.read(|scribe| scribe.lines.len()) % 7, 0);
            }
        })
    };
    for batch in 0..50 {
        let commands = (0..7).map(|nth| format!("{batch}: {nth}")).collect();
        assert!(driver.propose_batch(commands).unwrap().iter().all(Result::is_ok));
    }
    is_over.store(true, Ordering::SeqCst);
    reader.join().unwrap();
}

#[test]
fn a_snapshot_is_never_ahead_of_what_power_loss_leaves_of_the_log() {
    for durability in [Durability::None, Durability::Interval(Duration::from_secs(3600))] {
        let disk = SimDisk::new(20);
        let config = config().log(tiny().durability(durability));
        let (driver, _) = try_open(&disk, config.clone()).unwrap();
        write(&driver, 1..=10);
        assert_eq!(driver.checkpoint().unwrap().index, 10);
        write(&driver, 11..=15);
        let left = disk.crash_point().lose_all();
        drop(driver);
        let (driver, report) = try_open(&left, config).unwrap();
        assert_eq!(report.snapshot.index, 10);
        let known = lines(&driver);
        assert_eq!(known, expected(known.len() as u64));
        assert!(known.len() >= 10);
        driver.propose("and on".into()).unwrap();
    }
}

#[test]
fn bad_settings_are_refused_before_anything_is_made() {
    let dir = scratch();
    let at = dir.path().join("new");
    let bad = [
        DriverConfig::default().keep_snapshots(0),
        DriverConfig::default().log_reaches_back_to(0),
        DriverConfig::default().log_reaches_back_to(3),
        DriverConfig::default().snapshot_every_entries(Some(0)),
        DriverConfig::default().snapshot_every_bytes(Some(0)),
        DriverConfig::default().log(Config::default().first_index(5)),
        DriverConfig::default().log(Config::default().frames_in_flight(0)),
        DriverConfig::default().snapshots(SnapshotOptions::default().level(99)),
    ];
    for config in bad {
        let opened = Driver::open(&at, Scribe::default(), config);
        assert!(matches!(opened, Err(DriverError::Log(Error::Config(_)))), "{opened:?}");
        assert!(!at.exists());
    }
}

#[test]
fn handles_may_go_on_the_threads_of_the_log() {
    let disk = SimDisk::new(21);
    for _ in 0..20 {
        let driver = open(&disk);
        let last = driver.clone();
        driver.log().submit_with(Batch::new().put_meta(b"key", b"value"), move |_| drop(last)).unwrap();
        within("the last handle goes", move || drop(driver));
    }
}
