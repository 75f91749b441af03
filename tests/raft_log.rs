//! What the log of an openraft node promises: each test is named for the damage that a break of it would do.
//!
//! No test here has a runtime: the log needs none. openraft hands out its callbacks in `blocking_append` only, which
//! appends and then waits for the callback: polled once, it has appended.

mod common;

use std::fs;
use std::future::Future;
use std::io::Cursor;
use std::ops::Range;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread;

use common::gated::{Gate, GatedDisk, Held};
use common::{FOR_EVER, block_on, eventually, poll_once, scratch, small, tiny};
use openraft::storage::{RaftLogReaderExt, RaftLogStorage, RaftLogStorageExt};
use openraft::testing::log_id;
use openraft::{Entry, EntryPayload, LogId, LogState, Membership, RaftLogReader, RaftTypeConfig, StorageError, Vote};
use ringwal::disk::RealDisk;
use ringwal::format::names;
use ringwal::machine::{CounterStateMachine, KvCommand, KvOp};
use ringwal::raft::{RaftError, RaftLog};
use ringwal::sim::{Class, Mode, SimDisk};
use ringwal::{Config, Driver, DriverConfig, DriverError, Durability, Error, IoChoice, Log, StateMachine};
use tempfile::TempDir;

openraft::declare_raft_types!(
    /// A node that keeps text.
    pub Types: D = String, R = ()
);

const KIND: &str = "text/1";

fn try_open<C: RaftTypeConfig<Entry = Entry<C>>>(
    disk: &SimDisk,
    node: C::NodeId,
    config: Config,
) -> Result<RaftLog<C>, RaftError> {
    RaftLog::open_on(Arc::new(disk.clone()), node, KIND, config).map(|(log, _)| log)
}

fn open(disk: &SimDisk) -> RaftLog<Types> {
    try_open(disk, 1, tiny()).unwrap()
}

/// The log id that leader 1 gives.
fn id(term: u64, index: u64) -> LogId<u64> {
    log_id(term, 1, index)
}

fn entry(term: u64, index: u64) -> Entry<Types> {
    Entry { log_id: id(term, index), payload: EntryPayload::Normal(format!("{index} in {term}")) }
}

fn entries(term: u64, indexes: Range<u64>) -> Vec<Entry<Types>> {
    indexes.map(|index| entry(term, index)).collect()
}

fn append(log: &RaftLog<Types>, entries: Vec<Entry<Types>>) {
    block_on(log.clone().blocking_append(entries)).unwrap();
}

/// An append on its way: it has returned once this was polled, and is called back when it is ready.
fn appending(log: &RaftLog<Types>, entries: Vec<Entry<Types>>) -> Pin<Box<dyn Future<Output = Appended> + Send>> {
    let mut log = log.clone();
    let mut appending: Pin<Box<dyn Future<Output = _> + Send>> =
        Box::pin(async move { log.blocking_append(entries).await });
    let first = appending.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(first.is_pending(), "it was called back before anything was written: {first:?}");
    appending
}

type Appended = Result<(), StorageError<u64>>;

fn read(log: &RaftLog<Types>, range: Range<u64>) -> Vec<Entry<Types>> {
    block_on(log.clone().try_get_log_entries(range)).unwrap()
}

fn state(log: &RaftLog<Types>) -> (Option<LogId<u64>>, Option<LogId<u64>>) {
    let LogState { last_purged_log_id, last_log_id } = block_on(log.clone().get_log_state()).unwrap();
    (last_purged_log_id, last_log_id)
}

fn truncate(log: &RaftLog<Types>, log_id: LogId<u64>) {
    block_on(log.clone().truncate(log_id)).unwrap();
}

fn purge(log: &RaftLog<Types>, log_id: LogId<u64>) {
    block_on(log.clone().purge(log_id)).unwrap();
}

fn vote(log: &RaftLog<Types>, term: u64) {
    block_on(log.clone().save_vote(&Vote::new(term, 1))).unwrap();
}

fn commit(log: &RaftLog<Types>, committed: LogId<u64>) {
    block_on(log.clone().save_committed(Some(committed))).unwrap();
}

/// All that openraft can see of a log.
#[derive(Clone, Debug, Default, PartialEq)]
struct Seen {
    entries: Vec<LogId<u64>>,
    purged: Option<LogId<u64>>,
    vote: Option<Vote<u64>>,
    committed: Option<LogId<u64>>,
}

impl Seen {
    fn of(log: &RaftLog<Types>) -> Seen {
        let mut log = log.clone();
        let found = block_on(log.try_get_log_entries(..)).unwrap();
        let seen = Seen {
            entries: found.iter().map(|entry| entry.log_id).collect(),
            purged: state(&log).0,
            vote: block_on(log.read_vote()).unwrap(),
            committed: block_on(log.read_committed()).unwrap(),
        };
        assert_eq!(state(&log).1, seen.entries.last().copied().or(seen.purged), "{seen:?}");
        for (entry, log_id) in found.iter().zip(&seen.entries) {
            let text = format!("{} in {}", log_id.index, log_id.leader_id.term);
            assert!(matches!(&entry.payload, EntryPayload::Normal(found) if *found == text), "{entry:?}");
        }
        seen
    }

    /// What the next life finds on a disk.
    fn on(disk: &SimDisk) -> Seen {
        Seen::of(&open(disk))
    }
}

/// A disk that has been opened as a node's before, and holds back its writes from now on; lets them go in the end.
struct HeldNode {
    disk: SimDisk,
    log: RaftLog<Types>,
}

impl HeldNode {
    fn after(prepare: impl FnOnce(&RaftLog<Types>)) -> HeldNode {
        let disk = SimDisk::new(3);
        let log = open(&disk);
        prepare(&log);
        log.log().sync().unwrap();
        disk.set_mode(Mode::Held);
        HeldNode { disk, log }
    }

    fn wait_for_write(&self) {
        assert!(self.disk.wait_in_flight(1, FOR_EVER), "the write never came");
    }

    fn release(&self) {
        self.disk.set_mode(Mode::Random);
        self.disk.complete_all();
    }
}

impl Drop for HeldNode {
    fn drop(&mut self) {
        self.release();
    }
}

#[test]
fn a_leader_that_waits_for_the_disk_before_it_sends_what_it_appended() {
    let held = HeldNode::after(|log| append(log, entries(1, 1..3)));
    let mut first = appending(&held.log, entries(1, 3..5));
    let mut second = appending(&held.log, entries(2, 5..6));
    held.wait_for_write();
    assert_eq!(read(&held.log, 0..9), [entries(1, 1..5), entries(2, 5..6)].concat());
    assert_eq!(block_on(held.log.clone().limited_get_log_entries(3, 6)).unwrap().len(), 3);
    assert_eq!(state(&held.log), (None, Some(id(2, 5))));
    assert!(poll_once(&mut first).is_pending() && poll_once(&mut second).is_pending());
    assert_eq!(Seen::on(&held.disk.crash_point().lose_all()).entries, [id(1, 1), id(1, 2)]);
    held.release();
    block_on(first).unwrap();
    block_on(second).unwrap();
    assert_eq!(Seen::on(&held.disk.crash_point().lose_all()).entries.len(), 5);
}

#[test]
fn a_vote_that_was_given_and_is_forgotten() {
    let held = HeldNode::after(|log| vote(log, 1));
    let mut log = held.log.clone();
    let mut saving = Box::pin(async move { log.save_vote(&Vote::new_committed(7, 3)).await });
    assert!(poll_once(&mut saving).is_pending(), "nothing was written yet");
    held.wait_for_write();
    assert!(poll_once(&mut saving).is_pending());
    assert_eq!(Seen::on(&held.disk.crash_point().lose_all()).vote, Some(Vote::new(1, 1)));
    held.release();
    block_on(saving).unwrap();
    for image in held.disk.crash_point().images(32, 1) {
        assert_eq!(Seen::on(&image).vote, Some(Vote::new_committed(7, 3)));
    }
    assert_eq!(block_on(held.log.clone().read_vote()).unwrap(), Some(Vote::new_committed(7, 3)));
}

#[test]
fn a_committed_log_id_that_costs_a_device_write() {
    let disk = SimDisk::new(1);
    let log = open(&disk);
    append(&log, entries(1, 1..4));
    let frames = || {
        log.log().sync().unwrap();
        log.log().stats().frames
    };
    let before = frames();
    for index in 1..4 {
        commit(&log, id(1, index));
        assert_eq!(block_on(log.clone().read_committed()).unwrap(), Some(id(1, index)));
    }
    assert_eq!(frames(), before, "it is kept in memory");
    append(&log, entries(1, 4..5));
    assert_eq!(frames(), before + 1, "it goes with the next append");
    let image = disk.crash_point().lose_all();
    assert_eq!(Seen::on(&image).committed, Some(id(1, 3)));
    append(&log, entries(1, 5..6));
    commit(&log, id(1, 3));
    append(&log, entries(1, 6..7));
    assert_eq!(frames(), before + 3, "and only once");
}

#[test]
fn a_committed_log_id_that_nothing_followed_is_lost_when_the_node_stops() {
    let disk = SimDisk::new(1);
    let log = open(&disk);
    append(&log, entries(1, 1..4));
    commit(&log, id(1, 2));
    drop(log);
    let log = open(&disk);
    assert_eq!(Seen::of(&log).committed, Some(id(1, 2)));
    commit(&log, id(1, 3));
    let reader = log.clone();
    log.close().unwrap();
    assert_eq!(Seen::on(&disk).committed, Some(id(1, 3)), "also where a reader still has the log");
    drop(reader);
    let mut log = open(&disk);
    block_on(log.save_committed(None)).unwrap();
    drop(log);
    assert_eq!(Seen::on(&disk).committed, None);
}

#[test]
fn every_operation_takes_the_committed_log_id_along() {
    type Operation = fn(&RaftLog<Types>);
    let operations: [Operation; 4] = [
        |log| append(log, entries(1, 5..6)),
        |log| vote(log, 2),
        |log| truncate(log, id(1, 4)),
        |log| purge(log, id(1, 1)),
    ];
    for operation in operations {
        let disk = SimDisk::new(1);
        let log = open(&disk);
        append(&log, entries(1, 1..5));
        commit(&log, id(1, 2));
        operation(&log);
        log.log().sync().unwrap();
        assert_eq!(Seen::on(&disk.crash_point().lose_all()).committed, Some(id(1, 2)));
    }
}

#[test]
fn a_crash_between_a_purge_and_the_log_id_that_it_purged_up_to() {
    let mut found = [0, 0];
    for seed in 0..10 {
        let disk = SimDisk::new(seed);
        let log = open(&disk);
        append(&log, entries(1, 1..10));
        append(&log, entries(2, 10..14));
        let before = Seen::of(&log);
        disk.start_recording();
        purge(&log, id(1, 7));
        log.log().sync().unwrap();
        let after = Seen::of(&log);
        assert_eq!((after.purged, after.entries.len()), (Some(id(1, 7)), 6));
        for point in disk.take_recording().iter().chain([&disk.crash_point()]) {
            for image in point.images(8, seed) {
                let seen = Seen::on(&image);
                assert!(seen == before || seen == after, "{seen:?}");
                found[usize::from(seen == after)] += 1;
            }
        }
        assert_eq!(Seen::on(&disk.crash_point().lose_all()), after);
    }
    assert!(found.iter().all(|&count| count > 0), "crashes fall on both sides: {found:?}");
}

#[test]
fn a_node_that_goes_in_the_middle_of_an_append_leaves_its_log_to_somebody_else() {
    let disk = SimDisk::new(1);
    let mut expect = Seen::default();
    for _ in 0..60 {
        // Whoever opens it next does not wait for anybody.
        let log = try_open::<Types>(&disk, 1, tiny().lock_wait(std::time::Duration::ZERO)).unwrap();
        assert_eq!(Seen::of(&log), expect);
        expect.committed = expect.entries.last().copied();
        block_on(log.clone().save_committed(expect.committed)).unwrap();
        let (mut on_its_way, next) = (log.clone(), expect.entries.len() as u64 + 1);
        let append = async move { on_its_way.blocking_append(entries(1, next..next + 1)).await };
        let _ = poll_once(&mut Box::pin(append));
        // Where the next segment was not ready, it had not returned.
        expect.entries = read(&log, 0..99).iter().map(|entry| entry.log_id).collect();
        drop(log);
    }
    assert!(expect.entries.len() > 10, "{expect:?}");
}

#[test]
fn a_new_log_that_takes_its_first_entry_at_one_only() {
    for first in [0, 1, 2, 1000] {
        let disk = SimDisk::new(first);
        let log = open(&disk);
        assert_eq!(state(&log), (None, None));
        assert_eq!(read(&log, 0..u64::MAX), []);
        append(&log, entries(3, first..first + 2));
        assert_eq!(state(&log), (None, Some(id(3, first + 1))));
        assert_eq!(Seen::on(&disk.crash_point().lose_all()).entries, [id(3, first), id(3, first + 1)]);
    }
}

#[test]
fn a_log_that_does_not_go_on_after_an_installed_snapshot() {
    let disk = SimDisk::new(1);
    let log = open(&disk);
    for last in [id(4, 500), id(4, 600), id(6, 601)] {
        purge(&log, last);
        assert_eq!(state(&log), (Some(last), Some(last)));
        assert_eq!(read(&log, 0..u64::MAX), []);
        let LogId { leader_id, index } = last;
        append(&log, entries(leader_id.term, index + 1..index + 4));
        assert_eq!(state(&log), (Some(last), Some(id(leader_id.term, index + 3))));
    }
    let seen = Seen::of(&log);
    assert_eq!(seen.entries, [id(6, 602), id(6, 603), id(6, 604)]);
    drop(log);
    assert_eq!(Seen::on(&disk), seen);
}

#[test]
fn entries_that_were_never_committed_come_back_under_an_installed_snapshot() {
    // The old leader's entries reach past the snapshot of the new one's history; as openraft opens, it purges up to it.
    for (purged, at) in
        [(id(3, 5), "at one of them"), (id(3, 1), "below all"), (id(3, 9), "past all"), (id(3, 7), "at the last")]
    {
        let disk = SimDisk::new(1);
        let log = open(&disk);
        append(&log, entries(1, 2..8));
        purge(&log, purged);
        let gone = Seen { purged: Some(purged), ..Seen::default() };
        assert_eq!((Seen::of(&log), state(&log).1), (gone.clone(), Some(purged)), "{at}");
        log.log().sync().unwrap();
        assert_eq!(Seen::on(&disk.crash_point().lose_all()), gone, "{at}");
        append(&log, entries(3, purged.index + 1..purged.index + 3));
        assert_eq!(read(&log, 0..99), entries(3, purged.index + 1..purged.index + 3), "{at}");
    }
}

#[test]
fn a_shorter_log_of_a_later_leader_stops_a_node_that_is_sent_a_snapshot() {
    // Written by a leader that nobody else heard of, whose term is above that of the last entry committed.
    for (last, purged) in [(id(2, 5), id(1, 10)), (id(2, 5), id(1, 5)), (id(9, 4), id(3, 5))] {
        let disk = SimDisk::new(1);
        let log = open(&disk);
        append(&log, entries(1, 1..last.index));
        append(&log, entries(last.leader_id.term, last.index..last.index + 1));
        purge(&log, purged);
        assert_eq!(state(&log), (Some(purged), Some(purged)));
        log.log().sync().unwrap();
        let gone = Seen { purged: Some(purged), ..Seen::default() };
        assert_eq!(Seen::on(&disk.crash_point().lose_all()), gone);
        append(&log, entries(3, purged.index + 1..purged.index + 3));
        assert_eq!(read(&log, 0..99), entries(3, purged.index + 1..purged.index + 3));
    }
}

#[test]
fn a_purge_under_an_installed_snapshot_that_a_full_disk_refuses() {
    // Past all, and among entries of an earlier term and so none of which may stay.
    for (term, behind) in [(1, 100), (9, 100), (9, 0)] {
        let disk = SimDisk::new(1);
        let log = open(&disk);
        let mut next = fill_up(&disk, &log);
        let purged = id(term, next - 4 + behind);
        purge(&log, purged);
        assert_eq!(state(&log), (Some(purged), Some(purged)));
        next = purged.index + 1;
        eventually("room is made by purging", || {
            block_on(log.clone().blocking_append(entries(9, next..next + 1))).is_ok()
        });
        drop(log);
        assert_eq!(Seen::on(&disk).entries, [id(9, next)]);
    }
}

/// Appends until the disk has no room for more, and gives the next index.
fn fill_up(disk: &SimDisk, log: &RaftLog<Types>) -> u64 {
    let mut next = 1;
    while log.log().segments().len() < 4 {
        append(log, entries(1, next..next + 1));
        next += 1;
    }
    disk.set_capacity(Some(disk.used_bytes()));
    while block_on(log.clone().blocking_append(entries(1, next..next + 1))).is_ok() {
        next += 1;
        assert!(next < 1000, "the disk is never full");
    }
    next
}

fn large(index: u64, bytes: usize) -> Entry<Types> {
    Entry { log_id: id(1, index), payload: EntryPayload::Normal("x".repeat(bytes)) }
}

#[test]
fn a_message_that_is_larger_than_a_batch_of_the_log_stops_the_node() {
    let held = HeldNode::after(|log| commit(log, id(1, 0)));
    let sent: Vec<_> = (1..40).map(|index| large(index, 100 * index as usize % 1500)).collect();
    let total: usize = (1..40).map(|index| 100 * index % 1500).sum();
    assert!(total > 3 * held.log.entry_bytes_max());
    let (acknowledged, mut log, message) = (AtomicBool::new(false), held.log.clone(), sent.clone());
    let mut appending = Box::pin(async {
        log.blocking_append(message).await.unwrap();
        acknowledged.store(true, Ordering::Relaxed);
    });
    assert!(poll_once(&mut appending).is_pending());
    held.wait_for_write();
    assert!(poll_once(&mut appending).is_pending() && !acknowledged.load(Ordering::Relaxed));
    held.release();
    block_on(appending);
    assert_eq!(read(&held.log, 0..99), sent);
    assert_eq!(state(&held.log), (None, Some(id(1, 39))));
    let log = open(&held.disk.crash_point().lose_all());
    assert_eq!((read(&log, 0..99), block_on(log.clone().read_committed()).unwrap()), (sent, Some(id(1, 0))));
}

#[test]
fn an_entry_as_large_as_is_promised_stops_the_node() {
    let disk = SimDisk::new(1);
    let log = open(&disk);
    append(&log, vec![large(1, 1000)]);
    let added = log.log().get(1).unwrap().command.len() - 1000;
    let largest = log.entry_bytes_max() - added;
    for index in 2..9 {
        // The committed log id waits for a batch that has room for it.
        commit(&log, id(1, index - 1));
        append(&log, vec![large(index, largest)]);
        assert_eq!(log.log().get(index).unwrap().command.len(), log.entry_bytes_max());
    }
    append(&log, entries(1, 9..10));
    assert_eq!(block_on(open(&disk.crash_point().lose_all()).read_committed()).unwrap(), Some(id(1, 7)));
    let refused = block_on(log.clone().blocking_append([large(10, largest + 1)])).unwrap_err();
    assert!(refused.to_string().contains("is too large"), "{refused}");
    assert!(matches!(&*log.failure().unwrap(), RaftError::Log(Error::TooLarge { .. })));
}

#[test]
fn a_purge_that_takes_back_an_earlier_one() {
    let disk = SimDisk::new(1);
    let log = open(&disk);
    append(&log, entries(1, 1..20));
    purge(&log, id(1, 9));
    for earlier in [id(1, 0), id(1, 8), id(1, 9)] {
        purge(&log, earlier);
        assert_eq!((state(&log).0, read(&log, 0..99).len()), (Some(id(1, 9)), 10));
    }
    drop(log);
    assert_eq!(Seen::on(&disk).purged, Some(id(1, 9)));
}

#[test]
fn a_purge_below_the_first_entry_is_forgotten() {
    let disk = SimDisk::new(1);
    let log = open(&disk);
    append(&log, entries(2, 10..13));
    for purged in [id(1, 3), id(2, 9), id(2, 10)] {
        purge(&log, purged);
        assert_eq!(state(&log), (Some(purged), Some(id(2, 12))));
        log.log().sync().unwrap();
        let seen = Seen::on(&disk.crash_point().lose_all());
        assert_eq!((seen.purged, seen.entries.last()), (Some(purged), Some(&id(2, 12))));
    }
    assert_eq!(read(&log, 0..99), entries(2, 11..13));
}

#[test]
fn entries_that_a_snapshot_covers_already_stop_the_node() {
    let disk = SimDisk::new(1);
    let log = open(&disk);
    append(&log, entries(1, 1..10));
    purge(&log, id(1, 9));
    for covered in [entries(1, 1..2), entries(1, 9..10), entries(1, 4..10), Vec::new()] {
        append(&log, covered);
        assert_eq!(state(&log), (Some(id(1, 9)), Some(id(1, 9))));
    }
    append(&log, entries(1, 7..13));
    assert_eq!(read(&log, 0..99), entries(1, 10..13));
    assert_eq!(state(&log).1, Some(id(1, 12)));
    let held = HeldNode { disk, log };
    held.disk.set_mode(Mode::Held);
    // Called back in its turn: what was appended before it is durable then.
    let mut before = appending(&held.log, entries(1, 13..14));
    let mut covered = appending(&held.log, entries(1, 2..3));
    held.wait_for_write();
    assert!(poll_once(&mut before).is_pending() && poll_once(&mut covered).is_pending());
    held.release();
    block_on(covered).unwrap();
    block_on(before).unwrap();
}

#[test]
fn a_truncation_that_leaves_a_wrong_last_log_id() {
    let disk = SimDisk::new(1);
    let log = open(&disk);
    append(&log, entries(1, 1..4));
    append(&log, entries(2, 4..8));
    append(&log, entries(5, 8..10));
    for nothing_there in [id(5, 10), id(5, 11), id(9, u64::MAX)] {
        truncate(&log, nothing_there);
        assert_eq!(state(&log).1, Some(id(5, 9)));
    }
    for (cut, last) in [(id(5, 8), id(2, 7)), (id(2, 5), id(2, 4)), (id(2, 4), id(1, 3)), (id(1, 2), id(1, 1))] {
        truncate(&log, cut);
        assert_eq!((state(&log).1, read(&log, 0..99).len() as u64), (Some(last), last.index));
        log.log().sync().unwrap();
        assert_eq!(Seen::on(&disk.crash_point().lose_all()).entries.last(), Some(&last));
    }
    append(&log, entries(2, 2..4));
    assert_eq!(read(&log, 0..99), [entries(1, 1..2), entries(2, 2..4)].concat());
    truncate(&log, id(1, 0));
    assert_eq!((state(&log), read(&log, 0..99)), ((None, None), vec![]));
    append(&log, entries(1, 30..31));
    assert_eq!(state(&log), (None, Some(id(1, 30))));
}

#[test]
fn a_truncation_back_to_the_purged_entries_leaves_a_hole() {
    let disk = SimDisk::new(1);
    let log = open(&disk);
    append(&log, entries(1, 1..10));
    purge(&log, id(1, 4));
    truncate(&log, id(1, 5));
    assert_eq!(state(&log), (Some(id(1, 4)), Some(id(1, 4))));
    append(&log, entries(2, 5..7));
    // What was purged had been committed: whoever takes it back is wrong about more than that.
    let refused = block_on(log.clone().truncate(id(1, 4))).unwrap_err().to_string();
    assert!(refused.contains("compacted away: the first readable index is 5"), "{refused}");
    assert_eq!(read(&log, 0..99), entries(2, 5..7));
    drop(log);
    let seen = Seen::on(&disk);
    assert_eq!((seen.entries, seen.purged), (vec![id(2, 5), id(2, 6)], Some(id(1, 4))));
}

#[test]
fn a_read_of_a_range_that_is_partly_gone_or_not_there_yet() {
    let disk = SimDisk::new(1);
    let mut log = open(&disk);
    append(&log, entries(1, 1..20));
    purge(&log, id(1, 5));
    assert_eq!(read(&log, 0..8), entries(1, 6..8));
    assert_eq!(read(&log, 18..99), entries(1, 18..20));
    assert_eq!(read(&log, 0..6), []);
    assert_eq!(read(&log, 20..30), []);
    #[allow(clippy::reversed_empty_ranges, reason = "nothing may come of it")]
    let backwards = 9..7;
    assert_eq!(read(&log, backwards), []);
    assert_eq!(block_on(log.try_get_log_entries(..=6)).unwrap(), entries(1, 6..7));
    assert_eq!(block_on(log.try_get_log_entries(19..)).unwrap(), entries(1, 19..20));
    assert_eq!(block_on(log.try_get_log_entries(7..=u64::MAX)).unwrap(), entries(1, 7..20));
    assert_eq!(block_on(log.get_log_id(7)).unwrap(), id(1, 7));
    assert!(block_on(log.get_log_id(5)).is_err() && block_on(log.get_log_id(20)).is_err());
    // What is sent must begin where it was asked for, or the other node would take it for something else.
    assert_eq!(block_on(log.limited_get_log_entries(3, 9)).unwrap(), []);
    assert_eq!(block_on(log.limited_get_log_entries(7, 9)).unwrap(), entries(1, 7..9));
    assert_eq!(block_on(log.limited_get_log_entries(7, 7)).unwrap(), []);
}

#[test]
fn readers_beside_a_writer_that_see_a_hole_or_an_entry_of_an_older_leader_after_a_newer_one() {
    let disk = SimDisk::new(1);
    let log = try_open::<Types>(&disk, 1, tiny().tail_cache_bytes(2000)).unwrap();
    append(&log, entries(1, 1..10));
    let done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let (log, done) = (log.clone(), done.clone());
            thread::spawn(move || {
                let mut reads = 0;
                while !done.load(Ordering::Relaxed) || reads < 20 {
                    let found = read(&log, 0..u64::MAX);
                    for pair in found.windows(2) {
                        let (a, b) = (pair[0].log_id, pair[1].log_id);
                        assert!(a.index + 1 == b.index && a.leader_id <= b.leader_id, "{a} and then {b}");
                    }
                    let LogId { index, .. } = found[0].log_id;
                    let some = block_on(log.clone().limited_get_log_entries(index, index + 5)).unwrap();
                    assert!(some.first().is_none_or(|first| first.log_id.index == index));
                    reads += 1;
                }
            })
        })
        .collect();
    for term in 2..120 {
        let LogId { index: last, .. } = state(&log).1.unwrap();
        truncate(&log, id(term - 1, last - 2));
        append(&log, entries(term, last - 2..last + 4));
        if let Some(upto) = last.checked_sub(40) {
            let LogId { leader_id, .. } = block_on(log.clone().get_log_id(upto)).unwrap();
            purge(&log, LogId { leader_id, index: upto });
        }
    }
    done.store(true, Ordering::Relaxed);
    readers.into_iter().for_each(|reader| reader.join().unwrap());
}

#[test]
fn a_message_to_another_node_as_large_as_everything_it_lacks() {
    let long = |index| Entry::<Types> { log_id: id(1, index), payload: EntryPayload::Normal("x".repeat(300 << 10)) };
    for cached in [64 << 20, 0] {
        let disk = SimDisk::new(1);
        let config = tiny().block_bytes(Some(4096)).segment_bytes(4 << 20).tail_cache_bytes(cached);
        let mut log: RaftLog<Types> = try_open(&disk, 1, config).unwrap();
        for index in 1..30 {
            append(&log, vec![long(index)]);
        }
        let mut next = 1;
        while next < 30 {
            let some = block_on(log.limited_get_log_entries(next, 30)).unwrap();
            let expect = (30 - next).min(3);
            assert_eq!((some.len() as u64, some[0].log_id.index), (expect, next), "of 1 MiB, {cached} cached");
            next += expect;
        }
        assert_eq!(block_on(log.try_get_log_entries(1..30)).unwrap().len(), 29, "who asks for all gets all");
    }
    let disk = SimDisk::new(1);
    let config = tiny().block_bytes(Some(4096)).segment_bytes(8 << 20);
    let mut log: RaftLog<Types> = try_open(&disk, 1, config).unwrap();
    let larger = Entry::<Types> { log_id: id(1, 1), payload: EntryPayload::Normal("x".repeat(3 << 20)) };
    append(&log, vec![larger, entry(1, 2)]);
    assert_eq!(block_on(log.limited_get_log_entries(1, 3)).unwrap().len(), 1, "one at least");
}

mod wide {
    //! Node ids so large that no two batches with one go in the same frame.

    use super::*;

    #[derive(
        Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
    )]
    pub(crate) struct Wide([u64; 20]);

    impl std::fmt::Display for Wide {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "{:?}", self.0)
        }
    }

    openraft::declare_raft_types!(
        /// A node with such an id.
        pub(crate) Widely: D = String, R = (), NodeId = Wide
    );

    #[test]
    fn a_crash_between_the_parts_of_a_purge_that_go_in_different_frames() {
        let node = Wide([u64::MAX; 20]);
        let config = || tiny().frame_bytes_max(512);
        let wide = |index| log_id(1, node, index);
        let disk = SimDisk::new(2);
        let mut log: RaftLog<Widely> = try_open(&disk, node, config()).unwrap();
        for index in 1..10 {
            let entry = Entry { log_id: wide(index), payload: EntryPayload::Blank };
            block_on(log.blocking_append([entry])).unwrap();
        }
        disk.start_recording();
        block_on(log.purge(wide(7))).unwrap();
        log.log().sync().unwrap();
        for point in disk.take_recording().iter().chain([&disk.crash_point()]) {
            for image in point.images(16, 2) {
                let mut log: RaftLog<Widely> = try_open(&image, node, config()).unwrap();
                let found = block_on(log.try_get_log_entries(..)).unwrap();
                let purged = block_on(log.get_log_state()).unwrap().last_purged_log_id;
                let both = [(None, 1), (Some(wide(7)), 8)];
                assert!(both.contains(&(purged, found[0].log_id.index)), "{purged:?} and {} entries", found.len());
            }
        }
    }
}

mod named {
    //! A node whose id is no number.

    use super::*;

    #[derive(
        Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
    )]
    pub(crate) struct Name([char; 4]);

    impl std::fmt::Display for Name {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            self.0.iter().try_for_each(|letter| write!(f, "{letter}"))
        }
    }

    const ANNA: Name = Name(['a', 'n', 'n', 'a']);
    const BERT: Name = Name(['b', 'e', 'r', 't']);

    openraft::declare_raft_types!(
        /// A node that keeps text.
        pub(crate) Named: D = String, R = (), NodeId = Name
    );

    #[test]
    fn a_node_whose_id_is_a_name_is_not_recognised() {
        let disk = SimDisk::new(1);
        let mut log: RaftLog<Named> = try_open(&disk, ANNA, tiny()).unwrap();
        let anna = |index| log_id(3, ANNA, index);
        let members = Membership::new(vec![[ANNA, BERT].into()], None);
        let entries = vec![
            Entry { log_id: anna(1), payload: EntryPayload::Blank },
            Entry { log_id: anna(2), payload: EntryPayload::Membership(members) },
            Entry { log_id: anna(3), payload: EntryPayload::Normal("three".into()) },
        ];
        block_on(log.blocking_append(entries.clone())).unwrap();
        block_on(log.purge(anna(1))).unwrap();
        block_on(log.save_vote(&Vote::new(4, BERT))).unwrap();
        drop(log);
        let other = try_open::<Named>(&disk, BERT, tiny()).unwrap_err();
        assert!(matches!(other, RaftError::OtherNode { found, .. } if found == "anna"));
        let mut log: RaftLog<Named> = try_open(&disk, ANNA, tiny()).unwrap();
        assert_eq!(block_on(log.try_get_log_entries(..)).unwrap(), entries[1..]);
        let LogState { last_purged_log_id, last_log_id } = block_on(log.get_log_state()).unwrap();
        assert_eq!((last_purged_log_id, last_log_id), (Some(anna(1)), Some(anna(3))));
        assert_eq!(block_on(log.read_vote()).unwrap(), Some(Vote::new(4, BERT)));
    }
}

#[test]
fn a_write_that_fails_is_told_as_anything_else_than_what_it_was() {
    let held = HeldNode::after(|log| append(log, entries(1, 1..3)));
    let appends = [appending(&held.log, entries(1, 3..5)), appending(&held.log, entries(1, 5..6))];
    held.wait_for_write();
    held.disk.complete_failing(held.disk.in_flight()[0].id, 5, Class::Absent);
    held.release();
    for failed in appends {
        let told = block_on(failed).unwrap_err().to_string();
        assert!(told.contains("poisoned by an earlier failure") && told.contains("os error 5"), "{told}");
    }
    let mut log = held.log.clone();
    let told = block_on(log.blocking_append(entries(1, 6..7))).unwrap_err().to_string();
    assert!(told.contains("os error 5"), "{told}");
    assert!(block_on(log.save_vote(&Vote::new(9, 1))).is_err());
    assert!(block_on(log.truncate(id(1, 2))).is_err() && block_on(log.purge(id(1, 1))).is_err());
    let failure = log.failure().unwrap();
    assert!(matches!(&*failure, RaftError::Log(Error::Poisoned(_))), "{failure}");
    // What was acknowledged is still there to be read.
    assert_eq!(read(&log, 1..3), entries(1, 1..3));
    assert!(block_on(log.try_get_log_entries(1..4)).is_err());
}

mod counted {
    //! A runtime that counts how often a callback was run, and how often it was dropped instead.

    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use openraft::async_runtime::AsyncOneshotSendExt;
    use openraft::{AsyncRuntime, TokioRuntime};

    use super::*;

    #[derive(Debug, Default, PartialEq, Eq)]
    pub(crate) struct Counting;

    static RUN: AtomicUsize = AtomicUsize::new(0);
    static DROPPED: AtomicUsize = AtomicUsize::new(0);

    type OfTokio<T> = <TokioRuntime as AsyncRuntime>::OneshotSender<T>;

    pub(crate) struct Counted<T: Send>(Option<OfTokio<T>>);

    impl<T: Send> std::fmt::Debug for Counted<T> {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Counted")
        }
    }

    impl<T: Send> AsyncOneshotSendExt<T> for Counted<T> {
        fn send(mut self, value: T) -> Result<(), T> {
            RUN.fetch_add(1, Ordering::SeqCst);
            self.0.take().unwrap().send(value)
        }
    }

    impl<T: Send> Drop for Counted<T> {
        fn drop(&mut self) {
            DROPPED.fetch_add(usize::from(self.0.is_some()), Ordering::SeqCst);
        }
    }

    impl AsyncRuntime for Counting {
        type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
        type JoinHandle<T: Send + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
        type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
        type Instant = <TokioRuntime as AsyncRuntime>::Instant;
        type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
        type Timeout<R, T: Future<Output = R> + Send> = <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
        type ThreadLocalRng = <TokioRuntime as AsyncRuntime>::ThreadLocalRng;
        type OneshotSender<T: Send> = Counted<T>;
        type OneshotReceiver<T: Send> = <TokioRuntime as AsyncRuntime>::OneshotReceiver<T>;
        type OneshotReceiverError = <TokioRuntime as AsyncRuntime>::OneshotReceiverError;

        fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
        where
            T: Future + Send + 'static,
            T::Output: Send + 'static,
        {
            TokioRuntime::spawn(future)
        }

        fn sleep(duration: Duration) -> Self::Sleep {
            TokioRuntime::sleep(duration)
        }

        fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
            TokioRuntime::sleep_until(deadline)
        }

        fn timeout<R, F: Future<Output = R> + Send>(duration: Duration, future: F) -> Self::Timeout<R, F> {
            TokioRuntime::timeout(duration, future)
        }

        fn timeout_at<R, F: Future<Output = R> + Send>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
            TokioRuntime::timeout_at(deadline, future)
        }

        fn is_panic(error: &Self::JoinError) -> bool {
            TokioRuntime::is_panic(error)
        }

        fn thread_rng() -> Self::ThreadLocalRng {
            TokioRuntime::thread_rng()
        }

        fn oneshot<T: Send>() -> (Self::OneshotSender<T>, Self::OneshotReceiver<T>) {
            let (sender, receiver) = TokioRuntime::oneshot();
            (Counted(Some(sender)), receiver)
        }
    }

    openraft::declare_raft_types!(
        /// The types of such a node.
        pub(crate) Tallied: D = String, R = (), AsyncRuntime = Counting
    );

    fn entries(indexes: Range<u64>) -> Vec<Entry<Tallied>> {
        indexes.map(|index| Entry { log_id: id(1, index), payload: EntryPayload::Blank }).collect()
    }

    fn run() -> usize {
        RUN.load(Ordering::SeqCst)
    }

    #[test]
    fn a_node_that_waits_for_ever_for_a_callback_that_never_comes() {
        let disk = SimDisk::new(1);
        let mut log: RaftLog<Tallied> = try_open(&disk, 1, tiny()).unwrap();
        block_on(log.blocking_append(entries(1..4))).unwrap();
        block_on(log.purge(id(1, 3))).unwrap();
        block_on(log.blocking_append(entries(1..3))).unwrap();
        assert_eq!(run(), 2, "covered entries, too");

        let refused = block_on(log.blocking_append(entries(9..10))).unwrap_err().to_string();
        assert!(refused.contains("index 9 leaves a gap"), "the append itself says why: {refused}");
        let too_large = vec![Entry { log_id: id(1, 4), payload: EntryPayload::Normal("x".repeat(99_999)) }];
        assert!(block_on(log.blocking_append(too_large)).is_err());
        assert_eq!(run(), 4, "refused ones, too");

        disk.set_mode(Mode::Held);
        for first in [4, 5, 6] {
            let mut log = log.clone();
            // The one who waits goes away.
            drop(poll_once(&mut Box::pin(async move { log.blocking_append(entries(first..first + 1)).await })));
        }
        assert!(disk.wait_in_flight(1, FOR_EVER), "the write never came");
        disk.complete_failing(disk.in_flight()[0].id, 5, Class::Absent);
        disk.set_mode(Mode::Random);
        disk.complete_all();
        eventually("the ones in flight are called back", || run() == 7);
        assert!(block_on(log.blocking_append(entries(7..8))).is_err());
        assert_eq!(run(), 8, "those of a poisoned log, too");
        drop(log);
        assert_eq!((run(), DROPPED.load(Ordering::SeqCst)), (8, 0), "once each, and none in vain");
    }
}

/// A node's log on a real directory, with a gate before some of its operations; opened when the test ends, however it ends.
struct GatedLog {
    gate: Arc<Gate>,
    log: RaftLog<Types>,
    _directory: TempDir,
}

impl GatedLog {
    fn open(config: Config) -> GatedLog {
        let directory = scratch();
        let (disk, gate) = GatedDisk::open(directory.path());
        let (log, _) = RaftLog::open_on(Arc::new(disk), 1, KIND, config).unwrap();
        GatedLog { gate, log, _directory: directory }
    }
}

impl Drop for GatedLog {
    fn drop(&mut self) {
        self.gate.open();
    }
}

#[test]
fn a_read_from_the_disk_stops_the_executor() {
    let gated = GatedLog::open(small().tail_cache_bytes(0));
    for index in 1..300 {
        append(&gated.log, entries(1, index..index + 1));
    }
    eventually("segments are sealed", || gated.log.log().segments().len() > 3);
    gated.gate.hold(Held::Reads);
    let log = || gated.log.clone();
    let mut one = Box::pin(async { log().try_get_log_entries(7..8).await });
    let mut all = Box::pin(async { log().try_get_log_entries(..).await });
    let mut some = Box::pin(async { log().limited_get_log_entries(1, 9).await });
    let mut cut = Box::pin(async { log().truncate(id(1, 250)).await });
    // Had one of them read, this thread would wait for itself.
    assert!(poll_once(&mut one).is_pending() && poll_once(&mut all).is_pending());
    assert!(poll_once(&mut some).is_pending() && poll_once(&mut cut).is_pending());
    assert_eq!(state(&gated.log).1, Some(id(1, 299)));
    gated.gate.open();
    assert_eq!(block_on(one).unwrap(), entries(1, 7..8));
    assert_eq!(block_on(some).unwrap(), entries(1, 1..9));
    block_on(cut).unwrap();
    let all = block_on(all).unwrap();
    assert!([249, 299].contains(&all.len()), "before or after the cut: {}", all.len());
    assert_eq!(state(&gated.log).1, Some(id(1, 249)));
}

#[test]
fn entries_in_memory_are_read_by_way_of_a_thread() {
    let gated = GatedLog::open(small());
    append(&gated.log, entries(1, 1..100));
    gated.gate.hold(Held::Reads);
    let mut log = gated.log.clone();
    let mut read = Box::pin(async move { log.try_get_log_entries(1..100).await });
    let Poll::Ready(found) = poll_once(&mut read) else { panic!("it waits for somebody") };
    assert_eq!(found.unwrap(), entries(1, 1..100));
}

#[test]
fn a_segment_that_is_not_ready_stops_the_executor() {
    let directory = scratch();
    let (disk, gate) = GatedDisk::open(directory.path());
    gate.hold(Held::WriteTo(names::temporary(&names::segment(2))));
    let (log, _) = RaftLog::open_on(Arc::new(disk), 1, KIND, small()).unwrap();
    let gated = GatedLog { gate, log, _directory: directory };
    let mut next = 1;
    let (mut waiting, last) = loop {
        assert!(next < 1000, "the segment never ends");
        let mut log = gated.log.clone();
        let mut appending = Box::pin(async move { log.blocking_append(entries(1, next..next + 1)).await });
        let polled = poll_once(&mut appending);
        if state(&gated.log).1 != Some(id(1, next)) {
            assert!(polled.is_pending());
            break (appending, next - 1);
        }
        block_on(appending).unwrap();
        next += 1;
    };
    assert_eq!(
        read(&gated.log, last..next + 1),
        entries(1, last..next),
        "it has not returned, and nothing was accepted"
    );
    assert!(poll_once(&mut waiting).is_pending());
    gated.gate.open();
    block_on(waiting).unwrap();
    assert_eq!(state(&gated.log).1, Some(id(1, next)));
}

#[test]
fn a_full_disk_that_a_node_cannot_tell_from_a_broken_one_or_get_over() {
    let disk = SimDisk::new(1);
    let log = open(&disk);
    let mut next = 1;
    while log.log().segments().len() < 4 {
        append(&log, entries(1, next..next + 1));
        next += 1;
    }
    disk.set_capacity(Some(disk.used_bytes()));
    let full = loop {
        assert!(next < 1000, "the disk is never full");
        match block_on(log.clone().blocking_append(entries(1, next..next + 1))) {
            Ok(()) => next += 1,
            Err(error) => break error,
        }
    };
    assert!(full.to_string().contains("no space is left for the log"), "{full}");
    let failure = log.failure().unwrap();
    assert!(matches!(&*failure, RaftError::Log(Error::NoSpace)), "{failure}");
    assert_eq!(state(&log).1, Some(id(1, next - 1)), "nothing was accepted");
    // openraft stops the node. It can be started again as it is, vote, and send what it has.
    drop(log);
    let log = open(&disk);
    assert_eq!(read(&log, 1..next), entries(1, 1..next));
    vote(&log, 2);
    assert!(log.failure().is_none());
    // Purging makes room, and so does whoever frees some.
    purge(&log, id(1, next - 1));
    eventually("room is made by purging", || block_on(log.clone().blocking_append(entries(2, next..next + 1))).is_ok());
    disk.set_capacity(None);
    for index in next + 1..next + 50 {
        append(&log, entries(2, index..index + 1));
    }
    drop(log);
    let seen = Seen::on(&disk);
    assert_eq!((seen.vote, seen.entries.len()), (Some(Vote::new(2, 1)), 50));
}

#[test]
fn another_nodes_or_programs_directory_is_taken_for_its_own() {
    let disk = SimDisk::new(1);
    append(&open(&disk), entries(1, 1..4));
    let other = try_open::<Types>(&disk, 2, tiny()).unwrap_err();
    assert!(matches!(&other, RaftError::OtherNode { found, expected, .. } if (&**found, &**expected) == ("1", "2")));
    assert!(other.to_string().contains("give this node its own directory") && !other.is_damage(), "{other}");
    let other = RaftLog::<Types>::open_on(Arc::new(disk.clone()), 1, "text/2", tiny()).unwrap_err();
    assert!(matches!(&other, RaftError::OtherMachine { found, expected, .. }
        if (&**found, &**expected) == ("raft/text/1", "raft/text/2")));
    let driver =
        Driver::open_on(Arc::new(disk.clone()), CounterStateMachine::new(0), DriverConfig::default().log(tiny()));
    let refused = driver.map(drop).unwrap_err();
    assert!(matches!(&refused, DriverError::OtherMachine { found, .. } if found == "raft/text/1"), "{refused}");
    assert_eq!(Seen::on(&disk).entries.len(), 3, "and nothing was changed");

    let disk = SimDisk::new(2);
    let (driver, _) =
        Driver::open_on(Arc::new(disk.clone()), CounterStateMachine::new(0), DriverConfig::default().log(tiny()))
            .unwrap();
    drop(driver);
    let refused = try_open::<Types>(&disk, 1, tiny()).unwrap_err();
    assert!(matches!(refused, RaftError::OtherMachine { found, .. } if found == CounterStateMachine::KIND));

    let foreign: [fn(&Log); 3] = [
        |log| assert!(log.append("an entry").is_ok()),
        |log| log.compact_to(7, 1).unwrap(),
        |log| log.put_meta(b"vote", b"mine").unwrap(),
    ];
    for make in foreign {
        let disk = SimDisk::new(3);
        make(&common::open_sim(&disk, tiny()));
        let refused = try_open::<Types>(&disk, 1, tiny()).unwrap_err();
        assert!(matches!(refused, RaftError::NoNode { .. }), "{refused}");
    }
}

#[test]
fn a_log_that_somebody_else_wrote_to_is_taken_for_whole() {
    type Spoil = fn(&Log);
    let spoilt: [(Spoil, &str); 4] = [
        (|log| log.compact_to(2, 1).unwrap(), "compacted by something else"),
        (|log| log.put_meta(b"raft/vote", b"\x01\xff").unwrap(), "the vote in"),
        (|log| log.put_meta(b"raft/committed", b"\x02\x01\x01\x01").unwrap(), "a newer one wrote it"),
        (|log| assert!(log.append("an entry").is_ok()), "the last entry in"),
    ];
    for (spoil, expect) in spoilt {
        let disk = SimDisk::new(1);
        append(&open(&disk), entries(1, 1..4));
        spoil(&common::open_sim(&disk, tiny()));
        let refused = try_open::<Types>(&disk, 1, tiny()).unwrap_err().to_string();
        assert!(refused.contains(expect), "{refused}");
    }
    // Whole, but of another index: whoever copied it there did not mean well.
    let disk = SimDisk::new(1);
    append(&open(&disk), entries(1, 1..4));
    let log = common::open_sim(&disk, tiny());
    log.append(log.get(2).unwrap().command).unwrap();
    drop(log);
    let refused = try_open::<Types>(&disk, 1, tiny()).unwrap_err().to_string();
    assert!(refused.contains("at index 4 in term 1"), "{refused}");
}

#[test]
fn a_crash_while_the_directory_becomes_a_nodes() {
    let disk = SimDisk::new(4);
    disk.start_recording();
    drop(open(&disk));
    for point in disk.take_recording().iter().chain([&disk.crash_point()]) {
        for image in point.images(8, 3) {
            let log = open(&image);
            append(&log, entries(1, 0..2));
            assert_eq!(Seen::of(&log).entries.len(), 2);
        }
    }
}

#[test]
fn a_node_that_acknowledges_what_it_may_forget() {
    for durability in [Durability::None, Durability::Interval(std::time::Duration::from_millis(1))] {
        let disk = SimDisk::new(1);
        let refused = try_open::<Types>(&disk, 1, tiny().durability(durability)).unwrap_err();
        assert!(matches!(&refused, RaftError::Log(Error::Config(_))), "{refused}");
        assert!(disk.file_names().is_empty());
    }
}

#[test]
fn a_node_with_a_damaged_log_that_starts_all_the_same() {
    let scratch = scratch();
    let directory = scratch.path().join("node");
    let open_in = |path: &Path| {
        fs::create_dir_all(path).unwrap();
        let disk = RealDisk::open(path, IoChoice::Syscall).unwrap();
        RaftLog::<Types>::open_on(Arc::new(disk), 1, KIND, small()).map(|(log, _)| log)
    };
    let log = open_in(&directory).unwrap();
    append(&log, entries(1, 1..10));
    log.close().unwrap();
    let segment = directory.join(names::segment(1));
    let mut bytes = fs::read(&segment).unwrap();
    let at = bytes.windows(6).position(|bytes| bytes == b"5 in 1").unwrap();
    bytes[at] ^= 1;
    fs::write(&segment, &bytes).unwrap();
    let refused = open_in(&directory).unwrap_err();
    let told = refused.to_string();
    assert!(refused.is_damage() && matches!(refused, RaftError::Damaged { .. }), "{told}");
    let way_on = format!(
        "remove this node from the cluster, wipe {}, and add the node again as a new member",
        directory.display()
    );
    assert!(told.contains(&way_on), "{told}");
    assert_eq!(fs::read(&segment).unwrap(), bytes, "nothing was changed");
    fs::remove_dir_all(&directory).unwrap();
    append(&open_in(&directory).unwrap(), entries(1, 1..10));
}

mod stubborn {
    //! An application whose commands cannot all be encoded.

    use serde::{Deserialize, Serialize, Serializer};

    use super::*;

    #[derive(Debug, Deserialize)]
    pub(crate) struct Stubborn(bool);

    impl Serialize for Stubborn {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            match self.0 {
                true => Err(serde::ser::Error::custom("it does not want to")),
                false => serializer.serialize_bool(false),
            }
        }
    }

    openraft::declare_raft_types!(
        /// The types of such a node.
        pub(crate) Types: D = Stubborn, R = ()
    );

    #[test]
    fn an_entry_that_cannot_be_encoded_is_half_appended() {
        let entry = |index, is| Entry { log_id: id(1, index), payload: EntryPayload::Normal(Stubborn(is)) };
        let disk = SimDisk::new(1);
        let mut log: RaftLog<Types> = try_open(&disk, 1, tiny()).unwrap();
        let refused = block_on(log.blocking_append([entry(1, false), entry(2, true)])).unwrap_err().to_string();
        assert!(refused.contains("cannot be encoded"), "{refused}");
        assert!(matches!(&*log.failure().unwrap(), RaftError::Unencodable(_)));
        assert_eq!(block_on(log.try_get_log_entries(..)).unwrap().len(), 0);
        block_on(log.blocking_append([entry(1, false)])).unwrap();
        assert_eq!(block_on(log.try_get_log_entries(..)).unwrap().len(), 1);
    }
}

mod kv {
    //! The key-value machine's commands.

    use std::io::Cursor;

    use ringwal::machine::KvCommand;

    openraft::declare_raft_types!(
        /// The types of such a node.
        pub(crate) Types: D = KvCommand, R = ()
    );
}

#[test]
fn another_version_of_this_crate_encodes_entries_otherwise() {
    let disk = SimDisk::new(1);
    let mut log: RaftLog<kv::Types> = try_open(&disk, 300, tiny()).unwrap();
    let payloads = [
        EntryPayload::Blank,
        EntryPayload::Normal(KvCommand::Set { key: "key".into(), value: "value".into() }),
        EntryPayload::Normal(KvCommand::CompareAndSet { key: "k".into(), expected: None, new: Some("v".into()) }),
        EntryPayload::Normal(KvCommand::Batch(vec![KvOp::Delete { key: "k".into() }])),
        EntryPayload::Membership(Membership::new(vec![[1, 2].into()], None)),
    ];
    let log_id = |index| log_id(200, 300, index);
    let entries = payloads.into_iter().zip(300..).map(|(payload, index)| Entry { log_id: log_id(index), payload });
    block_on(log.blocking_append(entries.collect::<Vec<_>>())).unwrap();
    block_on(log.save_committed(Some(log_id(300)))).unwrap();
    block_on(log.purge(log_id(299))).unwrap();
    block_on(log.save_vote(&Vote::new_committed(200, 300))).unwrap();

    // Term, node and index of a log id; what follows is the payload.
    let id_of = |index: u8| [1, 0xc8, 1, 0xac, 2, index, 2];
    let stored = [
        (0xac, &b"\0"[..]),
        (0xad, b"\x01\0\x03key\x05value"),
        (0xae, b"\x01\x04\x01k\0\x01\x01v"),
        (0xaf, b"\x01\x03\x01\x01\x01k"),
        (0xb0, b"\x02\x01\x02\x01\x02\x02\x01\0\x02\0"),
    ];
    for (index, payload) in stored {
        let found = log.log().get(u64::from(index) + 128).unwrap().command;
        assert_eq!(found, [&id_of(index)[..], payload].concat(), "the entry at {index:#x}");
    }
    let meta = |key: &str| log.log().get_meta(key.as_bytes()).unwrap();
    assert_eq!(meta("raft/node"), [1, 0xac, 2][..]);
    assert_eq!(meta("raft/vote"), [1, 0xc8, 1, 0xac, 2, 1][..]);
    assert_eq!(meta("raft/committed"), id_of(0xac)[..]);
    assert_eq!(meta("raft/purged"), id_of(0xab)[..]);
    assert_eq!(meta("machine"), "raft/text/1");
}

mod histories {
    //! Whatever openraft does, and wherever the power fails in it: the next life finds the log as it was after some step,
    //! with everything that was acknowledged.

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Append { count: u64, new_term: bool },
        Vote,
        Commit { back: u64 },
        Truncate { back: u64 },
        Purge { back: i64 },
        Reopen,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let one = prop_oneof![
            6 => (0..7u64, any::<bool>()).prop_map(|(count, new_term)| Step::Append { count, new_term }),
            2 => Just(Step::Vote),
            3 => (0..4u64).prop_map(|back| Step::Commit { back }),
            2 => (0..5u64).prop_map(|back| Step::Truncate { back }),
            2 => (-3..6i64).prop_map(|back| Step::Purge { back }),
            1 => Just(Step::Reopen),
        ];
        proptest::collection::vec(one, 1..25)
    }

    /// What the log must be, step by step.
    struct Tale {
        now: Seen,
        /// The committed log id in memory.
        committed: Option<LogId<u64>>,
        term: u64,
        /// After each batch.
        versions: Vec<Seen>,
        /// The lowest version that a crash may leave.
        acknowledged: usize,
    }

    impl Tale {
        fn last(&self) -> Option<LogId<u64>> {
            self.now.entries.last().copied().or(self.now.purged)
        }

        fn next(&self) -> u64 {
            self.last().map_or(1, |last| last.index + 1)
        }

        /// A batch was accepted, and the committed log id with it.
        fn turn(&mut self) {
            self.now.committed = self.committed;
            self.versions.push(self.now.clone());
        }

        fn acknowledge(&mut self) {
            self.acknowledged = self.versions.len() - 1;
        }
    }

    fn play(disk: &SimDisk, log: &mut RaftLog<Types>, tale: &mut Tale, step: &Step) {
        match *step {
            Step::Append { count, new_term } => {
                tale.term += u64::from(new_term);
                let indexes = tale.next()..tale.next() + count;
                tale.now.entries.extend(indexes.clone().map(|index| id(tale.term, index)));
                if count > 0 || tale.committed != tale.now.committed {
                    tale.turn();
                }
                append(log, entries(tale.term, indexes));
                tale.acknowledge();
            }
            Step::Vote => {
                tale.term += 1;
                tale.now.vote = Some(Vote::new(tale.term, 1));
                tale.turn();
                vote(log, tale.term);
                tale.acknowledge();
            }
            Step::Commit { back } => {
                let back = (back as usize).min(tale.now.entries.len());
                if let Some(&committed) = tale.now.entries[..tale.now.entries.len() - back].last() {
                    tale.committed = tale.committed.max(Some(committed));
                    block_on(log.save_committed(tale.committed)).unwrap();
                }
            }
            Step::Truncate { back } => {
                let keep = tale.now.entries.len().saturating_sub(back as usize);
                let cut = tale.now.entries.split_off(keep);
                if let Some(first) = cut.first() {
                    tale.turn();
                    truncate(log, *first);
                }
            }
            Step::Purge { back } => {
                let Some(last) = tale.last() else { return };
                let index = last.index.saturating_add_signed(-back);
                // Below the first entry its term is possible, above the last one that.
                let at = tale.now.entries.iter().find(|entry| entry.index >= index).copied().unwrap_or(last);
                let purged = id(at.leader_id.term, index);
                if tale.now.purged.is_none_or(|purged| purged.index < index) {
                    tale.now.purged = Some(purged);
                    tale.now.entries.retain(|entry| entry.index > index);
                    tale.turn();
                }
                purge(log, purged);
            }
            Step::Reopen => {
                tale.turn();
                let empty = open(&SimDisk::new(99));
                drop(std::mem::replace(log, empty));
                tale.acknowledge();
                *log = open(disk);
            }
        }
    }

    fn judge(disk: &SimDisk, steps: &[Step], seed: u64) -> Result<(), TestCaseError> {
        let mut log = open(disk);
        let now = Seen::default();
        let versions = vec![now.clone()];
        let mut tale = Tale { now, committed: None, term: 1, versions, acknowledged: 0 };
        for (step, nth) in steps.iter().zip(0..) {
            disk.start_recording();
            let floor = tale.acknowledged;
            play(disk, &mut log, &mut tale, step);
            let shown = Seen { committed: tale.committed, ..tale.now.clone() };
            prop_assert_eq!(Seen::of(&log), shown, "after {:?}", step);
            let points = disk.take_recording();
            let inside = points.iter().map(|point| (point, floor));
            for (point, floor) in inside.chain([(&disk.crash_point(), tale.acknowledged)]) {
                for image in point.images(3, seed + nth) {
                    let found = Seen::on(&image);
                    let legal = tale.versions[floor..].contains(&found);
                    prop_assert!(legal, "{:?} after {:?}: none of {:?}", found, step, &tale.versions[floor..]);
                }
            }
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(40) })]

        #[test]
        fn a_crash_leaves_a_log_that_never_was(steps in steps(), seed in 0..1000u64) {
            judge(&SimDisk::new(seed), &steps, seed)?;
        }
    }
}
