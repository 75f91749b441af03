//! Restoring a snapshot and replaying what the log has after it comes to the same as replaying everything: for random
//! histories, crashed on a simulated disk at every moment at which it changes, those within a checkpoint, a compaction
//! and a recovery among them.
//!
//! A failure names its seed. `RINGWAL_SEED` begins with it; `RINGWAL_HISTORIES` tries more of them, and
//! `RINGWAL_POINTS` more moments of each.

mod stack;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use ringwal::machine::{KvStateMachine, StateMachine};
use ringwal::sim::{CrashTest, FaultRates, Life, SimDisk};
use ringwal::{Durability, KvStore, SnapshotId, StoreError};
use stack::crash::{Tries, crash, crash_each};
use stack::judge::{Settings, check_damaged, check_reach};
use stack::writers::{self, WRITERS, write};
use stack::{ready, setting};

#[test]
fn a_crash_at_any_moment_leaves_a_snapshot_and_a_log_that_give_the_state_again() {
    crash_each(&Tries { histories: 3, steps: 30, points: 1000, images: 6 }, 1, |test| test);
}

#[test]
fn lives_that_go_on_after_crashes_and_short_writes_do_too() {
    let rates = FaultRates { short_writes: 6, slow: 6, ..FaultRates::default() };
    crash_each(&Tries { histories: 2, steps: 24, points: 30, images: 3 }, 100, |test| test.lives(3).faults(rates));
}

#[test]
fn lives_in_which_calls_of_the_disk_fail_leave_what_was_answered_and_published() {
    let rates = FaultRates::honest(40);
    crash_each(&Tries { histories: 2, steps: 24, points: 30, images: 3 }, 200, |test| test.lives(3).faults(rates));
}

#[test]
fn a_crash_at_some_moments_of_a_history_that_nobody_has_tried_before_does_no_harm_either() {
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).unwrap();
    let seed = u64::from_le_bytes(seed) >> 16;
    crash_each(&Tries { histories: 1, steps: 60, points: 60, images: 6 }, seed, |test| test.lives(2));
}

#[test]
fn a_newest_snapshot_that_a_crash_left_and_that_is_damaged_since_is_got_over_wherever_the_crash_was() {
    let first = setting("RINGWAL_SEED").unwrap_or(400);
    for seed in first..first + setting("RINGWAL_HISTORIES").unwrap_or(2) {
        let settings = Settings::new(seed).plain().durable().keeping(3, 2);
        let tries = Tries { histories: 1, steps: 24, points: 50, images: 3 };
        let tried = crash(seed, &settings, &tries, check_damaged, |test| test);
        println!("seed {seed}: {:?}", tried.unwrap_or_else(|failure| panic!("{failure}")));
    }
}

/// What several threads were told.
#[derive(Clone, Copy, Debug)]
enum Told {
    /// So many writes of a writer.
    Written { writer: u64, n: u64 },
    /// A snapshot.
    Published(SnapshotId),
}

/// Writes of each writer in one life.
const WRITES: u64 = 6;

fn open_store(disk: &SimDisk, settings: &Settings) -> Result<KvStore, StoreError> {
    KvStore::open_on(Arc::new(disk.clone()), settings.driver()).map(|(store, _)| store)
}

/// Several threads write while one takes snapshots.
fn write_side_by_side(life: &Life<Told>, settings: &Settings) -> Result<(), StoreError> {
    let store = open_store(life.disk(), settings)?;
    thread::scope(|scope| -> Result<(), StoreError> {
        let start = |writer| {
            let store = &store;
            scope.spawn(move || write_some(life, store, writer))
        };
        let writing: Vec<_> = (0..WRITERS).map(start).collect();
        for _ in 0..3 {
            life.promise(Told::Published(store.checkpoint()?.id));
        }
        writing.into_iter().try_for_each(|writer| writer.join().unwrap())
    })?;
    store.close()
}

fn write_some(life: &Life<Told>, store: &KvStore, writer: u64) -> Result<(), StoreError> {
    let first = writers::written(writer, |key| store.get(key)) + 1;
    for n in first..first + WRITES {
        store.write_batch(write(writer, n))?;
        life.promise(Told::Written { writer, n });
    }
    Ok(())
}

/// Everything that was told is there, in each snapshot as much as it stands for, and nothing else.
fn check_side_by_side(disk: &SimDisk, told: &[Told], settings: &Settings, lives: u64) -> Result<Vec<u64>, String> {
    let store = open_store(disk, &settings.clone().plain()).map_err(|error| format!("{error}\n{disk:?}"))?;
    let told_of = |writer| {
        let of_it = told.iter().filter_map(|told| match told {
            Told::Written { writer: its, n } if *its == writer => Some(*n),
            _ => None,
        });
        of_it.max().unwrap_or(0)
    };
    let content: BTreeMap<Bytes, Bytes> = store.scan::<&[u8]>(.., usize::MAX).into_iter().collect();
    let least = |writer| if settings.is_durable() { told_of(writer) } else { 0 };
    let found = writers::check(&content, |writer| least(writer)..=told_of(writer) + lives)?;
    let snapshots = store.driver().snapshots();
    let ids = snapshots.ids().map_err(|error| error.to_string())?;
    check_reach(store.driver(), &ids, false, settings)?;
    let newest = told.iter().filter_map(|told| match told {
        Told::Published(id) => Some(id),
        Told::Written { .. } => None,
    });
    if ids.last() < newest.max() {
        return Err(format!("of the snapshots there are {ids:?}"));
    }
    for id in ids {
        check_content(&store, id, &found).map_err(|wrong| format!("{id}: {wrong}"))?;
    }
    store.close().map_err(|error| error.to_string())?;
    Ok(found.to_vec())
}

/// A snapshot holds what its index says, of what was found in the store.
fn check_content(store: &KvStore, id: SnapshotId, found: &[u64]) -> Result<(), String> {
    let loaded = store.driver().snapshots().load_snapshot(&id.to_string());
    let (_, state) = loaded.map_err(|error| error.to_string())?;
    let mut machine = KvStateMachine::new();
    ready(machine.set_state(&state)).map_err(|error| error.to_string())?;
    let owned = |(key, value)| (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
    let content: BTreeMap<Bytes, Bytes> = machine.iter().map(owned).collect();
    let then = writers::check(&content, |writer| 0..=found[writer as usize])?;
    if then.iter().sum::<u64>() == id.index { Ok(()) } else { Err(format!("it has {then:?}")) }
}

fn crash_side_by_side(first: u64, settings: impl Fn(Settings) -> Settings) {
    let (lives, first) = (2, setting("RINGWAL_SEED").unwrap_or(first));
    for seed in first..first + setting("RINGWAL_HISTORIES").unwrap_or(2) {
        let settings = settings(Settings::new(seed));
        let test = CrashTest::new(seed).points_max(setting("RINGWAL_POINTS").unwrap_or(30)).images(4).lives(lives);
        let tried = test.run(
            |life| write_side_by_side(life, &settings),
            |disk, told| check_side_by_side(disk, told, &settings, lives as u64),
        );
        println!("{:?}", tried.unwrap_or_else(|failure| panic!("RINGWAL_SEED={seed}: {failure}\n{settings:?}")));
    }
}

#[test]
fn a_crash_while_threads_write_and_another_takes_snapshots_loses_nothing_that_they_were_told() {
    crash_side_by_side(300, Settings::durable);
}

#[test]
fn a_snapshot_is_never_ahead_of_a_log_that_is_not_synced_at_every_write() {
    crash_side_by_side(310, |settings| settings.durability(Durability::None).keeping(3, 2));
}
