//! A node's whole store (log, machine, snapshots) crashed at every moment at which its simulated disk changes, in a
//! history as openraft makes it: entries appended, committed and applied, some replaced by another leader's, snapshots
//! built, received and installed, the log purged behind them, also before the installation is done. Whatever the crash
//! left, the store opens, openraft finds its initial state in it, what was acknowledged is there, and the machine is what
//! its entries say.
//!
//! A failure names its seed. `RINGWAL_SEED` begins with it; `RINGWAL_HISTORIES` tries more of them, and
//! `RINGWAL_POINTS` more moments of each.

#[path = "common/cluster.rs"]
mod cluster;
mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use cluster::{Kv, Store, open_on, set, small};
use common::block_on;
use openraft::storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine};
use openraft::{
    BasicNode, CommittedLeaderId, Entry, EntryPayload, LogId, Membership, RaftLogReader, RaftSnapshotBuilder, Snapshot,
    StorageHelper, StoredMembership, Vote,
};
use ringwal::machine::{KvCommand, KvStateMachine};
use ringwal::raft::{RaftConfig, RaftSnapshot};
use ringwal::sim::{CrashTest, FaultRates, Life, Rng, SimDisk};
use ringwal::{Config, StateMachine};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

type Failure = Box<dyn std::error::Error>;

/// The node's id, and that of a leader whose entries never come to be committed.
const NODE: u64 = 7;
const LOSER: u64 = 3;

/// What the cluster commits at an index: the same for whoever asks.
fn committed(index: u64) -> Entry<Kv> {
    let payload = match index {
        0 => EntryPayload::Membership(members(2)),
        _ if index.is_multiple_of(11) => EntryPayload::Membership(members(1 + index % 4)),
        _ if index.is_multiple_of(7) => EntryPayload::Blank,
        _ => EntryPayload::Normal(command(index)),
    };
    Entry { log_id: id(index), payload }
}

fn id(index: u64) -> LogId<u64> {
    LogId::new(CommittedLeaderId::new(2 * index, NODE), index)
}

fn members(nodes: u64) -> Membership<u64, BasicNode> {
    Membership::new(vec![(1..=nodes).collect()], None)
}

fn command(index: u64) -> KvCommand {
    match index % 5 {
        0 => KvCommand::Delete { key: format!("key {}", index % 3).into() },
        _ => set(format!("key {}", index % 9), format!("{index} {}", "and so on ".repeat(index as usize % 40))),
    }
}

/// Entries from an index on that a leader without a majority left: of a term after that of the entry before, and before
/// that of what is committed in their place.
fn lost(from: u64, count: u64) -> Vec<Entry<Kv>> {
    let leader = CommittedLeaderId::new((2 * from).saturating_sub(1), LOSER);
    let entry = |index| Entry { log_id: LogId::new(leader, index), payload: EntryPayload::Normal(set("lost", index)) };
    (from..from + count).map(entry).collect()
}

/// What the machine holds after the entries up to an index, and the membership there.
fn expected(applied: Option<u64>) -> (BTreeMap<Vec<u8>, Vec<u8>>, StoredMembership<u64, BasicNode>) {
    let (mut machine, mut membership) = (KvStateMachine::new(), StoredMembership::default());
    for index in 0..applied.map_or(0, |applied| applied + 1) {
        match committed(index).payload {
            EntryPayload::Blank => {}
            EntryPayload::Normal(command) => drop(block_on(machine.apply(command))),
            EntryPayload::Membership(members) => membership = StoredMembership::new(Some(id(index)), members),
        }
    }
    (content(&machine), membership)
}

fn content(machine: &KvStateMachine) -> BTreeMap<Vec<u8>, Vec<u8>> {
    machine.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
}

/// From now on somebody relies on it.
#[derive(Clone, Copy, Debug)]
enum Told {
    /// That the entries up to this one are durable, if they are committed.
    Appended(u64),
    Voted(u64),
    /// That a snapshot is there; a leader may have purged its log.
    Snapshot(u64),
}

fn config() -> RaftConfig {
    let log = Config::default().segment_bytes(24 * 512).block_bytes(Some(512)).frame_bytes_max(4096);
    small().log(log)
}

fn open(disk: &SimDisk) -> Result<Store, Failure> {
    Ok(open_on(Arc::new(disk.clone()), NODE, config())?)
}

/// A snapshot's file as it is sent.
struct Sent {
    index: u64,
    meta: openraft::SnapshotMeta<u64, BasicNode>,
    bytes: Vec<u8>,
}

/// Snapshots of another node at some indexes.
fn sent(indexes: impl IntoIterator<Item = u64>) -> Vec<Sent> {
    let mut store = open_on(Arc::new(SimDisk::new(99)), LOSER, config()).unwrap();
    let mut next = 0;
    let mut send = |index: u64| {
        block_on(store.machine.apply((next..=index).map(committed).collect::<Vec<_>>())).unwrap();
        next = index + 1;
        let Snapshot { meta, mut snapshot } = built(&mut store).unwrap();
        let mut bytes = Vec::new();
        block_on(snapshot.read_to_end(&mut bytes)).unwrap();
        Sent { index, meta, bytes }
    };
    indexes.into_iter().map(&mut send).collect()
}

fn built(store: &mut Store) -> Result<Snapshot<Kv>, Failure> {
    let mut builder = block_on(store.machine.get_snapshot_builder());
    Ok(block_on(builder.build_snapshot())?)
}

/// A node as openraft runs it.
struct Node<'a> {
    store: Store,
    life: &'a Life<Told>,
    rng: Rng,
    /// The next index to append, of what the cluster commits.
    next: u64,
    /// The next index to apply.
    to_apply: u64,
    has_lost: bool,
}

impl<'a> Node<'a> {
    /// Begins on whatever a crash left.
    fn start(life: &'a Life<Told>, seed: u64) -> Result<Node<'a>, Failure> {
        let mut store = open(life.disk())?;
        block_on(StorageHelper::new(&mut store.log, &mut store.machine).get_initial_state())?;
        let to_apply = block_on(store.machine.applied_state())?.0.map_or(0, |applied| applied.index + 1);
        let rng = Rng::new(seed + life.number() as u64);
        let mut node = Node { store, life, rng, next: to_apply, to_apply, has_lost: true };
        // What follows may be anybody's: of that, only what the cluster committed stays.
        let end = block_on(node.store.log.get_log_state())?.last_log_id.map_or(0, |last| last.index + 1);
        for entry in block_on(node.store.log.try_get_log_entries(to_apply..end))? {
            if entry.log_id != id(entry.log_id.index) {
                break;
            }
            node.next = entry.log_id.index + 1;
        }
        node.forget_lost()?;
        Ok(node)
    }

    fn step(&mut self, sent: &[Sent]) -> Result<(), Failure> {
        match self.rng.below(10) {
            0..=3 => self.append(),
            4..=5 => self.commit(),
            6 => self.vote(),
            7 => self.append_lost(),
            8 => self.snapshot(),
            _ => match sent.iter().find(|sent| sent.index >= self.next) {
                Some(sent) => self.install(sent),
                None => self.append(),
            },
        }
    }

    fn append(&mut self) -> Result<(), Failure> {
        self.forget_lost()?;
        let end = self.next + 1 + self.rng.below(3) as u64;
        block_on(self.store.log.blocking_append((self.next..end).map(committed).collect::<Vec<_>>()))?;
        self.next = end;
        self.life.promise(Told::Appended(end - 1));
        Ok(())
    }

    /// Entries that no other node has.
    fn append_lost(&mut self) -> Result<(), Failure> {
        self.forget_lost()?;
        let count = 1 + self.rng.below(2) as u64;
        block_on(self.store.log.blocking_append(lost(self.next, count)))?;
        self.has_lost = true;
        Ok(())
    }

    fn forget_lost(&mut self) -> Result<(), Failure> {
        let last = block_on(self.store.log.get_log_state())?.last_log_id;
        if std::mem::take(&mut self.has_lost) && last.is_some_and(|last| last.index >= self.next) {
            block_on(self.store.log.truncate(lost(self.next, 1)[0].log_id))?;
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), Failure> {
        if self.to_apply == self.next {
            return Ok(());
        }
        let end = self.to_apply + 1 + self.rng.below((self.next - self.to_apply) as usize) as u64;
        block_on(self.store.log.save_committed(Some(id(end - 1))))?;
        let entries = block_on(self.store.log.try_get_log_entries(self.to_apply..end))?;
        block_on(self.store.machine.apply(entries))?;
        self.to_apply = end;
        Ok(())
    }

    fn vote(&mut self) -> Result<(), Failure> {
        let term = block_on(self.store.log.read_vote())?.map_or(0, |vote: Vote<u64>| vote.leader_id().term) + 1;
        block_on(self.store.log.save_vote(&Vote::new(term, NODE)))?;
        self.life.promise(Told::Voted(term));
        Ok(())
    }

    fn snapshot(&mut self) -> Result<(), Failure> {
        let snapshot = built(&mut self.store)?;
        let Some(last) = snapshot.meta.last_log_id else { return Ok(()) };
        self.life.promise(Told::Snapshot(last.index));
        // openraft keeps a few entries before it.
        if let Some(upto) = last.index.checked_sub(self.rng.below(4) as u64) {
            block_on(self.store.log.purge(id(upto)))?;
        }
        Ok(())
    }

    /// As openraft does it: what conflicts is truncated, and the log is purged while the machine is still at work on the
    /// installation.
    fn install(&mut self, sent: &Sent) -> Result<(), Failure> {
        let mut data = block_on(self.store.machine.begin_receiving_snapshot())?;
        block_on(receive(&mut data, &sent.bytes, &mut self.rng))?;
        self.life.promise(Told::Snapshot(sent.index));
        if block_on(self.store.log.get_log_state())?.last_log_id.is_some_and(|last| last.index >= sent.index) {
            self.forget_lost()?;
        }
        let meta = sent.meta.clone();
        if self.rng.below(2) == 0 {
            block_on(self.store.log.purge(id(sent.index)))?;
            block_on(self.store.machine.install_snapshot(&meta, data))?;
        } else {
            block_on(self.store.machine.install_snapshot(&meta, data))?;
            block_on(self.store.log.purge(id(sent.index)))?;
        }
        (self.next, self.to_apply, self.has_lost) = (sent.index + 1, sent.index + 1, true);
        self.forget_lost()
    }
}

/// In pieces, some of them twice.
async fn receive(data: &mut RaftSnapshot, bytes: &[u8], rng: &mut Rng) -> std::io::Result<()> {
    let mut offset = 0;
    while offset < bytes.len() {
        let end = (offset + 1 + rng.below(900)).min(bytes.len());
        data.seek(std::io::SeekFrom::Start(offset as u64)).await?;
        data.write_all(&bytes[offset..end]).await?;
        offset = if rng.below(4) == 0 { offset } else { end };
    }
    data.shutdown().await
}

fn live(life: &Life<Told>, seed: u64, sent: &[Sent]) -> Result<(), Failure> {
    let mut node = Node::start(life, seed)?;
    for _ in 0..30 {
        node.step(sent)?;
    }
    node.store.log.close()?;
    Ok(())
}

/// What a node has after a crash, to those who look.
#[derive(Debug, PartialEq)]
struct Found {
    vote: u64,
    log: (Option<LogId<u64>>, Option<LogId<u64>>),
    applied: Option<LogId<u64>>,
    snapshot: Option<LogId<u64>>,
}

fn check(disk: &SimDisk, told: &[Told]) -> Result<Found, Failure> {
    let mut store = open(disk)?;
    let state = block_on(StorageHelper::new(&mut store.log, &mut store.machine).get_initial_state())?;
    let log = block_on(store.log.get_log_state())?;
    let (applied, membership) = block_on(store.machine.applied_state())?;
    let snapshot = block_on(store.machine.get_current_snapshot())?.and_then(|snapshot| snapshot.meta.last_log_id);
    let found = Found {
        vote: state.vote_ref().leader_id().term,
        log: (log.last_purged_log_id, log.last_log_id),
        applied,
        snapshot,
    };
    check_told(told, &found)?;
    let left_over = disk.file_names().into_iter().find(|name| name.starts_with("snapshot_") && !name.ends_with(".zst"));
    ensure(left_over.is_none(), || format!("{left_over:?} was left over"))?;
    let machine = store.machine.handle().read(content)?;
    let index = applied.map(|applied| applied.index);
    ensure(applied == index.map(id), || format!("applied {applied:?}"))?;
    ensure((machine, membership) == expected(index), || format!("another state at {index:?}"))?;
    ensure(log.last_purged_log_id <= snapshot, || "the log does not reach back to the snapshot".into())?;
    let first = log.last_purged_log_id.map_or(0, |purged| purged.index + 1);
    let entries = block_on(store.log.try_get_log_entries(first..u64::MAX))?;
    let end = log.last_log_id.map_or(0, |last| last.index + 1);
    ensure(entries.len() as u64 == end - first, || format!("{} entries in {first}..{end}", entries.len()))?;
    for entry in entries.iter().take_while(|entry| Some(entry.log_id.index) <= least(told)) {
        ensure(*entry == committed(entry.log_id.index), || format!("another entry: {entry:?}"))?;
    }
    Ok(found)
}

/// The last index that was told to be durable.
fn least(told: &[Told]) -> Option<u64> {
    let index = |told: &Told| match told {
        Told::Appended(index) | Told::Snapshot(index) => Some(*index),
        Told::Voted(_) => None,
    };
    told.iter().filter_map(index).max()
}

fn check_told(told: &[Told], found: &Found) -> Result<(), Failure> {
    let last = found.log.1.map(|last| last.index);
    ensure(last >= least(told), || format!("the log ends at {last:?}: {found:?} after {told:?}"))?;
    for told in told {
        let is_kept = match told {
            Told::Appended(_) => true,
            Told::Voted(term) => found.vote >= *term,
            Told::Snapshot(index) => {
                found.snapshot.is_some_and(|id| id.index >= *index) && found.applied >= found.snapshot
            }
        };
        ensure(is_kept, || format!("{told:?} was forgotten: {found:?}"))?;
    }
    Ok(())
}

fn ensure(holds: bool, wrong: impl FnOnce() -> String) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(wrong().into()) }
}

/// A number from the environment.
fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

fn crash_each(first: u64, histories: u64, test: impl Fn(CrashTest) -> CrashTest) {
    let sent = sent((1..12).map(|nth| nth * 17));
    let first = setting("RINGWAL_SEED").unwrap_or(first);
    for seed in first..first + setting("RINGWAL_HISTORIES").unwrap_or(histories) {
        let points = setting("RINGWAL_POINTS").unwrap_or(60);
        let test = test(CrashTest::new(seed).points_max(points).images(4));
        let tried = test.run(|life| live(life, seed, &sent), check);
        println!("seed {seed}: {:?}", tried.unwrap_or_else(|failure| panic!("RINGWAL_SEED={seed}: {failure}")));
    }
}

#[test]
fn a_crash_at_any_moment_leaves_a_store_that_openraft_goes_on_from() {
    crash_each(1, 4, |test| test);
}

#[test]
fn lives_in_which_calls_of_the_disk_fail_keep_what_each_of_them_told() {
    crash_each(200, 2, |test| test.lives(3).faults(FaultRates::honest(40)));
}

#[test]
fn lives_that_go_on_after_crashes_keep_what_each_of_them_told() {
    crash_each(100, 2, |test| test.lives(3));
}
