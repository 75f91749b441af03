//! Things that go wrong with the snapshots of a driven machine, one at a time: a call of the disk that fails in the
//! middle of a checkpoint or of an open, a disk that is full or lies, a snapshot file that is damaged.
//!
//! Each function here tries one sort of it everywhere and panics where something is lost. The legal outcomes are two: the
//! whole state, or an error that says so. Never an older state, never an empty one. And the log and the snapshots that
//! were there before a failed checkpoint are there after it.

use std::sync::Arc;

use ringwal::sim::{Class, FaultRule, OpKind, SimDisk};
use ringwal::{Driver, DriverError, SnapshotError, StateMachine};

use super::history::History;
use super::judge::{Error, Promise, Settings, check, check_kept_as, named, open};
use super::ledger::Ledger;
use super::ready;

/// Commands before the checkpoint that is tried, and in all.
const BEFORE: u64 = 14;
const ALL: u64 = 18;

/// A directory with a few snapshots and entries behind the newest, and what leads on from there.
struct Scene {
    history: History,
    settings: Settings,
    disk: SimDisk,
    promised: Vec<Promise>,
}

impl Scene {
    /// Snapshots of the indexes 5 and 10 are there, and of the beginning.
    fn new(settings: Settings) -> Scene {
        let (history, disk) = (History::of_single_commands(3, ALL as usize), SimDisk::new(3));
        let mut scene = Scene { history, settings, disk, promised: vec![Promise::Opened] };
        let (driver, report) = open(&scene.disk, scene.history.initial, scene.settings.driver()).unwrap();
        assert!(report.created);
        for index in 1..=BEFORE {
            propose(&driver, &scene.history, index).unwrap();
            scene.promised.push(Promise::Applied(index));
            if index % 5 == 0 {
                scene.promised.push(Promise::Published(driver.checkpoint().unwrap().id));
            }
        }
        driver.close().unwrap();
        scene
    }

    fn open(&self, disk: &SimDisk) -> Result<Driver<Ledger>, Error> {
        // What is brought along has no part in it.
        open(disk, -7, self.settings.driver()).map(|(driver, _)| driver)
    }

    /// Everything holds, with nothing wrong any more.
    fn check(&self, disk: &SimDisk, promised: &[Promise], what: &str) -> u64 {
        let checked = check(disk, promised, &self.history, &self.settings);
        checked.unwrap_or_else(|wrong| panic!("{what}: {wrong}"))
    }
}

fn propose(driver: &Driver<Ledger>, history: &History, index: u64) -> Result<(), Error> {
    assert_eq!(driver.last_applied() + 1, index);
    match driver.propose(history.command(index)) {
        Err(DriverError::Refused(_)) | Ok(_) => Ok(()),
        Err(error) => Err(error),
    }
}

fn state(driver: &Driver<Ledger>) -> Vec<u8> {
    driver.read(|machine| ready(machine.get_state())).unwrap()
}

/// How often each kind of operation is asked for by something.
fn counted(disk: &SimDisk, work: impl FnOnce()) -> Vec<(OpKind, u64)> {
    let before = disk.counters();
    work();
    let after = disk.counters();
    OpKind::ALL
        .map(|kind| (kind, after.of(kind) - before.of(kind)))
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .collect()
}

/// A checkpoint in which something fails.
fn failing_checkpoint(scene: &Scene, rule: FaultRule, what: &str) -> Outcome {
    let (disk, mut promised) = (scene.disk.copy_at_rest(), scene.promised.clone());
    let driver = scene.open(&disk).unwrap();
    propose(&driver, &scene.history, BEFORE + 1).unwrap();
    promised.push(Promise::Applied(BEFORE + 1));
    let (before, first) = (named(&disk), driver.log().state().first);
    disk.fail(rule);
    let result = driver.checkpoint();
    disk.clear_faults();
    let has_struck = !disk.struck().is_empty();
    if let Ok(snapshot) = &result {
        promised.push(Promise::Published(snapshot.id));
    } else {
        check_kept_as(&before, &disk).unwrap_or_else(|wrong| panic!("{what}: {wrong}"));
        let is_published = named(&disk).len() > before.len();
        assert!(is_published || driver.log().state().first == first, "{what}: the log is cut without a snapshot");
    }
    // Reads go on whatever happened.
    assert_eq!(state(&driver), scene.history.state(BEFORE + 1), "{what}");
    let is_poisoned = !goes_on(scene, &driver, &mut promised, what);
    drop(driver);
    scene.check(&disk, &promised, what);
    Outcome { error: result.err(), is_poisoned, has_struck }
}

/// It was not for good: whatever the failed checkpoint left, the next one is well. Unless it was the log that failed.
fn goes_on(scene: &Scene, driver: &Driver<Ledger>, promised: &mut Vec<Promise>, what: &str) -> bool {
    match propose(driver, &scene.history, BEFORE + 2) {
        Ok(()) => {
            promised.push(Promise::Applied(BEFORE + 2));
            let snapshot = driver.checkpoint().unwrap_or_else(|error| panic!("{what}: {error}"));
            promised.push(Promise::Published(snapshot.id));
            true
        }
        Err(DriverError::Log(ringwal::Error::Poisoned(_))) => false,
        Err(error) => panic!("{what}: {error}"),
    }
}

struct Outcome {
    error: Option<Error>,
    is_poisoned: bool,
    has_struck: bool,
}

/// Every operation of a checkpoint, by kind and number.
fn operations_of_a_checkpoint(scene: &Scene) -> Vec<(OpKind, u64)> {
    let disk = scene.disk.copy_at_rest();
    let driver = scene.open(&disk).unwrap();
    propose(&driver, &scene.history, BEFORE + 1).unwrap();
    let counted = counted(&disk, || drop(driver.checkpoint().unwrap()));
    for kind in [OpKind::Create, OpKind::Write, OpKind::Sync, OpKind::Rename, OpKind::SyncDir, OpKind::Read] {
        assert!(counted.iter().any(|(found, _)| *found == kind), "a checkpoint without a {kind:?}: {counted:?}");
    }
    counted
}

pub(crate) fn checkpoint_with_errors() {
    let scene = Scene::new(Settings::new(3).plain().durable().keeping(2, 1));
    let (mut failed, mut poisoned) = (0, 0);
    for (kind, count) in operations_of_a_checkpoint(&scene) {
        for nth in 1..=count {
            let outcome = failing_checkpoint(&scene, FaultRule::io_error(kind, nth), &format!("{kind:?} {nth}"));
            failed += u64::from(outcome.error.is_some());
            poisoned += u64::from(outcome.is_poisoned);
            assert!(outcome.has_struck || outcome.error.is_none(), "{kind:?} {nth}");
        }
    }
    assert!(failed > 10 && poisoned > 0, "{failed} failed, {poisoned} poisoned");
}

pub(crate) fn checkpoint_with_moments_of_no_space() {
    let scene = Scene::new(Settings::new(3).plain().durable().keeping(2, 1));
    let mut told = 0;
    for (kind, count) in operations_of_a_checkpoint(&scene) {
        let needs_room =
            matches!(kind, OpKind::Create | OpKind::Write | OpKind::Sync | OpKind::Rename | OpKind::SyncDir);
        for nth in 1..=if needs_room { count } else { 0 } {
            let outcome = failing_checkpoint(&scene, FaultRule::no_space(kind, nth), &format!("{kind:?} {nth}"));
            match outcome.error {
                Some(DriverError::Snapshot(error)) => {
                    assert!(error.is_out_of_space(), "{kind:?} {nth}: {error}");
                    told += 1;
                }
                Some(DriverError::Log(_)) | None => {}
                Some(other) => panic!("{kind:?} {nth}: {other}"),
            }
        }
    }
    assert!(told > 3, "{told}");
}

/// What a simulated disk of so little room does to a checkpoint: no file of it is left, and it goes on with more.
pub(crate) fn checkpoint_without_room() {
    let scene = Scene::new(Settings::new(3).plain().durable().keeping(2, 1));
    for room in [0, 1, 512, 1000, 4095] {
        let disk = scene.disk.copy_at_rest();
        let driver = scene.open(&disk).unwrap();
        propose(&driver, &scene.history, BEFORE + 1).unwrap();
        // The log may prepare a segment meanwhile: that is none of the checkpoint's files.
        let files = || disk.file_names().into_iter().filter(|name| !name.ends_with(".seg")).collect::<Vec<_>>();
        let (before, state) = (files(), driver.log().state());
        disk.set_capacity(Some(disk.used_bytes() + room));
        let error = driver.checkpoint().unwrap_err();
        assert!(matches!(&error, DriverError::Snapshot(error) if error.is_out_of_space()), "{room}: {error}");
        assert!(error.to_string().contains("free space"), "{room}: {error}");
        assert_eq!((files(), driver.log().state()), (before, state), "{room}");
        disk.set_capacity(None);
        driver.checkpoint().unwrap();
        driver.close().unwrap();
        scene.check(&disk, &scene.promised, &format!("{room}"));
    }
}

/// Bits that are wrong on the medium from the moment they are written: found before anything older is given up.
pub(crate) fn checkpoint_that_rots() {
    let scene = Scene::new(Settings::new(3).plain().durable().keeping(1, 1));
    let writes = operations_of_a_checkpoint(&scene).into_iter().find(|(kind, _)| *kind == OpKind::Write).unwrap().1;
    let mut noticed = 0;
    for nth in 1..=writes {
        for bit in (0..4096 * 8).step_by(1009) {
            let disk = scene.disk.copy_at_rest();
            let driver = scene.open(&disk).unwrap();
            propose(&driver, &scene.history, BEFORE + 1).unwrap();
            let first = driver.log().state().first;
            disk.fail(FaultRule::bit_rot(OpKind::Write, nth, bit));
            let result = driver.checkpoint();
            let is_in_a_snapshot = disk.struck().first().is_some_and(|struck| struck.file.starts_with("snapshot_"));
            if !is_in_a_snapshot {
                // The log's own damage is other tests' matter.
                break;
            }
            match result {
                Err(DriverError::Snapshot(SnapshotError::Corrupt { .. } | SnapshotError::Unsupported { .. })) => {
                    noticed += 1;
                    assert_eq!(driver.log().state().first, first, "write {nth} bit {bit}");
                }
                Err(error) => panic!("write {nth} bit {bit}: {error}"),
                Ok(_) => {}
            }
            drop(driver);
            scene.check(&disk, &scene.promised, &format!("write {nth} bit {bit}"));
        }
    }
    assert!(noticed > 10, "{noticed}");
}

/// How an open of a directory ended in which something is wrong.
#[derive(Default)]
struct Opens {
    whole: u64,
    refused: u64,
}

impl Opens {
    /// The whole state, or an error; then, with everything well again, the whole state.
    fn take(&mut self, scene: &Scene, opened: Result<Driver<Ledger>, Error>, what: &str) {
        match opened {
            Ok(driver) => {
                assert_eq!(driver.last_applied(), BEFORE, "{what}");
                assert!(state(&driver) == scene.history.state(BEFORE), "{what}: another state");
                self.whole += 1;
            }
            Err(DriverError::Refused(error)) => panic!("{what}: {error}"),
            Err(_) => self.refused += 1,
        }
    }
}

pub(crate) fn open_with_errors() {
    let scene = Scene::new(Settings::new(3).plain().durable().keeping(2, 2));
    let disk = scene.disk.copy_at_rest();
    let operations = counted(&disk, || drop(scene.open(&disk).unwrap()));
    let mut opens = Opens::default();
    for (kind, count) in operations {
        for nth in 1..=count {
            let what = format!("{kind:?} {nth}");
            let mut rules = vec![FaultRule::io_error(kind, nth)];
            if kind == OpKind::Read {
                rules.push(FaultRule::bit_error(nth, 77));
                rules.push(FaultRule::misdirected(kind, nth, 512));
            }
            for rule in rules {
                let disk = scene.disk.copy_at_rest();
                disk.fail(rule);
                opens.take(&scene, scene.open(&disk), &what);
                disk.clear_faults();
                scene.check(&disk, &scene.promised, &what);
            }
        }
    }
    assert!(opens.refused > 10 && opens.whole > 0, "{} refused, {} whole", opens.refused, opens.whole);
}

/// The first open of all, by which the directory gets a log, the initial state's snapshot and a machine, in which a call
/// fails or finds no room: the next one finds nothing in its way, and the machine as it was to begin.
pub(crate) fn first_open_with_errors() {
    let scene = Scene::new(Settings::new(3).plain().durable().keeping(2, 1));
    let first = |disk: &SimDisk| open(disk, scene.history.initial, scene.settings.driver());
    let disk = SimDisk::new(4);
    let operations = counted(&disk, || drop(first(&disk).unwrap()));
    let failures: [fn(OpKind, u64) -> FaultRule; 2] = [FaultRule::io_error, FaultRule::no_space];
    let mut refused = 0;
    for (kind, count) in operations {
        for (nth, fails) in (1..=count).flat_map(|nth| failures.map(|fails| (nth, fails))) {
            let (disk, what) = (SimDisk::new(4), format!("{kind:?} {nth}"));
            disk.fail(fails(kind, nth));
            refused += u64::from(first(&disk).is_err());
            disk.clear_faults();
            let (driver, _) = first(&disk).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!((driver.last_applied(), state(&driver)), (0, scene.history.state(0).to_vec()), "{what}");
            propose(&driver, &scene.history, 1).unwrap();
            driver.close().unwrap();
            assert_eq!(scene.check(&disk, &[Promise::Opened, Promise::Applied(1)], &what), 1);
        }
    }
    assert!(refused > 20, "{refused}");
}

/// Damages the newest snapshot, and opens the directory: with the way on, and without.
fn open_damaged(scene: &Scene, opens: &mut Opens, what: &str, damage: impl Fn(&SimDisk, &str)) {
    let newest = named(&scene.disk).pop().unwrap();
    let name = format!("{newest}.zst");
    let disk = scene.disk.copy_at_rest();
    damage(&disk, &name);
    let before = contents(&disk);
    let opened = scene.open(&disk);
    if let Err(error) = &opened {
        assert!(error.to_string().contains(&name) || error.to_string().contains("snapshot"), "{what}: {error}");
    }
    let is_refused = opened.is_err();
    opens.take(scene, opened, what);
    if is_refused {
        assert!(contents(&disk) == before, "{what}: a refused open changes a snapshot");
    }
}

/// All files of snapshots, whatever they are called by now.
fn contents(disk: &SimDisk) -> Vec<(Arc<str>, Arc<Vec<u8>>)> {
    let names = disk.file_names().into_iter().filter(|name| name.contains("snapshot_"));
    names.map(|name| (name.clone(), disk.contents(&name).unwrap())).collect()
}

pub(crate) fn each_byte_damaged() {
    let scene = Scene::new(Settings::new(3).plain().durable().keeping(2, 2));
    let bytes = scene.disk.contents(&format!("{}.zst", named(&scene.disk).pop().unwrap())).unwrap().len() as u64;
    let mut opens = Opens::default();
    for offset in 0..bytes {
        let bit = (offset % 8) as u8;
        open_damaged(&scene, &mut opens, &format!("byte {offset}"), |disk, name| {
            disk.flip_bit(name, offset, bit).unwrap()
        });
    }
    println!("{} of {bytes} refused", opens.refused);
    assert!(opens.refused > 300, "{} refused of {bytes}", opens.refused);
}

pub(crate) fn whole_file_damaged() {
    for reach in [1, 2] {
        let scene = Scene::new(Settings::new(3).plain().durable().keeping(3, reach));
        let names = named(&scene.disk);
        let older = format!("{}.zst", names[names.len() - 2]);
        let bytes = scene.disk.contents(&format!("{}.zst", names.last().unwrap())).unwrap().len() as u64;
        let mut opens = Opens::default();
        for keep in (0..bytes).step_by(173).chain([1, bytes - 1, bytes - 512]) {
            open_damaged(&scene, &mut opens, &format!("cut to {keep}"), |disk, name| disk.set_len(name, keep).unwrap());
        }
        for start in (0..bytes).step_by(512) {
            let range = start..start + 512;
            open_damaged(&scene, &mut opens, &format!("zeros in {range:?}"), |disk, name| {
                disk.zero_range(name, range.clone()).unwrap()
            });
        }
        let refused = opens.refused;
        open_damaged(&scene, &mut opens, "all zeros", |disk, name| disk.zero_range(name, 0..bytes).unwrap());
        open_damaged(&scene, &mut opens, "lengthened", |disk, name| disk.set_len(name, bytes + 4096).unwrap());
        open_damaged(&scene, &mut opens, "swapped with an older one", |disk, name| {
            disk.swap_files(name, &older).unwrap()
        });
        open_damaged(&scene, &mut opens, "an older one in its place", |disk, name| {
            disk.write_file(name, &scene.disk.read_file(&older).unwrap()).unwrap();
        });
        assert_eq!(opens.refused, refused + 4);
        // A file that is gone leaves the one before as the newest: enough where the log reaches back to it.
        open_damaged(&scene, &mut opens, "removed", |disk, name| disk.remove_file(name).unwrap());
        assert_eq!(opens.refused, refused + if reach == 1 { 5 } else { 4 });
        open_damaged(&scene, &mut opens, "all removed", |disk, _| {
            named(disk).iter().for_each(|id| disk.remove_file(&format!("{id}.zst")).unwrap());
        });
        assert_eq!(opens.refused, refused + if reach == 1 { 6 } else { 5 });
    }
}

pub(crate) fn fall_back() {
    for reach in [1, 2] {
        let scene = Scene::new(Settings::new(3).plain().durable().keeping(3, reach));
        let name = format!("{}.zst", named(&scene.disk).pop().unwrap());
        let bytes = scene.disk.contents(&name).unwrap().len() as u64;
        for offset in (0..bytes).step_by(41) {
            let what = format!("byte {offset}, the log reaches back to snapshot {reach}");
            let disk = scene.disk.copy_at_rest();
            disk.flip_bit(&name, offset, 3).unwrap();
            let damaged = contents(&disk);
            match open(&disk, -7, scene.settings.driver().fall_back(true)) {
                Ok((driver, report)) => {
                    assert!(state(&driver) == scene.history.state(BEFORE), "{what}");
                    let is_set_aside = !report.set_aside.is_empty();
                    assert!(!is_set_aside || reach == 2, "{what}");
                    // It goes on as if nothing had been.
                    propose(&driver, &scene.history, BEFORE + 1).unwrap();
                    driver.checkpoint().unwrap();
                    driver.close().unwrap();
                    if is_set_aside {
                        let aside =
                            |(name, _): &&(Arc<str>, _)| named(&disk).iter().all(|id| **name != *format!("{id}.zst"));
                        let (_, bad) = damaged.iter().find(|(found, _)| **found == *name).unwrap();
                        assert!(
                            contents(&disk).iter().any(|found| aside(&found) && found.1 == *bad),
                            "{what}: it is gone"
                        );
                    }
                    let reopened = open(&disk, -7, scene.settings.driver()).unwrap().0;
                    assert!(state(&reopened) == scene.history.state(BEFORE + 1), "{what}");
                }
                Err(error) => {
                    assert_eq!(reach, 1, "{what}: {error}");
                    assert!(contents(&disk) == damaged, "{what}");
                }
            }
        }
    }
}

/// The medium keeps what a failed sync left in memory, or does not: what was acknowledged does not hang on it.
pub(crate) fn checkpoint_with_failed_syncs() {
    let scene = Scene::new(Settings::new(3).plain().durable().keeping(2, 1));
    let syncs = operations_of_a_checkpoint(&scene).into_iter().find(|(kind, _)| *kind == OpKind::Sync).unwrap().1;
    for nth in 1..=syncs {
        for lands in [Class::Absent, Class::Head, Class::Tail, Class::Scattered(nth)] {
            let rule = FaultRule::io_error(OpKind::Sync, nth).dropping_pages().landing(lands.clone());
            let outcome = failing_checkpoint(&scene, rule, &format!("sync {nth}, {lands:?} on the medium"));
            assert!(outcome.error.is_some() && outcome.has_struck);
        }
    }
}
