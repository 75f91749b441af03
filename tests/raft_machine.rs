//! A node's machine under openraft: what was applied is in its snapshots with the membership, snapshots are streamed in
//! both directions as files, and whatever goes wrong while one is made, sent or installed leaves the machine as it was.

#[path = "common/cluster.rs"]
mod cluster;
mod common;

use std::collections::BTreeMap;
use std::io::{self, Read, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, mpsc};

use bytes::Bytes;
use cluster::{Kv, Net, Store, open_on, run, set, small};
use common::gated::{GatedDisk, Held};
use common::{block_on, eventually, poll_once, scratch};
use openraft::storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine};
use openraft::{
    BasicNode, CommittedLeaderId, Entry, EntryPayload, LogId, Membership, RaftLogReader, RaftSnapshotBuilder, Snapshot,
    StorageHelper, StoredMembership,
};
use ringwal::machine::{CounterCommand, CounterStateMachine, KvStateMachine};
use ringwal::raft::{self, RaftError, RaftSnapshot};
use ringwal::sim::{FaultRule, OpKind, SimDisk};
use ringwal::{Driver, DriverConfig, DriverError, StateImage, StateMachine};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

fn open(dir: &Path, id: u64) -> Store {
    raft::open(dir, id, KvStateMachine::new(), small()).unwrap()
}

fn sim(disk: &SimDisk) -> Store {
    open_on(Arc::new(disk.clone()), 1, small()).unwrap()
}

fn id(index: u64) -> LogId<u64> {
    LogId::new(CommittedLeaderId::new(1 + index / 100, 1), index)
}

/// An entry that writes its own key.
fn write(index: u64) -> Entry<Kv> {
    Entry { log_id: id(index), payload: EntryPayload::Normal(set(format!("key {index:05}"), index * 7919)) }
}

fn members(index: u64, nodes: u64) -> Entry<Kv> {
    let membership = Membership::new(vec![(1..=nodes).collect()], None);
    Entry { log_id: id(index), payload: EntryPayload::Membership(membership) }
}

/// Applies entries up to an index, the first of which is a membership.
fn fill(store: &mut Store, to: u64) {
    let next = store.machine.handle().last_applied().map_or(0, |last| last + 1);
    let entries = (next..=to).map(|index| if index == 0 { members(0, 3) } else { write(index) });
    block_on(store.machine.apply(entries.collect::<Vec<_>>())).unwrap();
}

fn build(store: &mut Store) -> Snapshot<Kv> {
    let mut builder = block_on(store.machine.get_snapshot_builder());
    block_on(builder.build_snapshot()).unwrap()
}

fn bytes_of(snapshot: Snapshot<Kv>) -> Vec<u8> {
    let (mut bytes, mut data) = (Vec::new(), snapshot.snapshot);
    block_on(data.read_to_end(&mut bytes)).unwrap();
    bytes
}

fn current(store: &mut Store) -> Option<Snapshot<Kv>> {
    block_on(store.machine.get_current_snapshot()).unwrap()
}

/// All that a machine holds.
fn content(store: &Store) -> BTreeMap<Vec<u8>, Vec<u8>> {
    store.machine.handle().read(|kv| kv.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect()).unwrap()
}

/// A snapshot of another node's, up to an index.
fn other(to: u64) -> (Store, Snapshot<Kv>) {
    let mut store = open_on(Arc::new(SimDisk::new(to)), 2, small()).unwrap();
    fill(&mut store, to);
    let snapshot = build(&mut store);
    (store, snapshot)
}

fn begin(store: &mut Store) -> Box<RaftSnapshot> {
    block_on(store.machine.begin_receiving_snapshot()).unwrap()
}

/// Sends bytes from an offset on.
fn send(data: &mut RaftSnapshot, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
    block_on(async {
        data.seek(SeekFrom::Start(offset)).await?;
        data.write_all(bytes).await?;
        data.flush().await
    })
}

/// The files of snapshots, whatever their state.
fn files(disk: &SimDisk) -> Vec<String> {
    let mut names: Vec<_> = disk.file_names().iter().map(|name| name.to_string()).collect();
    names.retain(|name| name.starts_with("snapshot_"));
    names.sort();
    names
}

#[test]
fn one_node_writes_takes_snapshots_purges_and_comes_back_as_it_was() {
    let dir = scratch();
    run(async {
        let net = Net::default();
        let node = net.start(1, open(dir.path(), 1), cluster::quick()).await;
        node.found().await;
        for number in 0..50 {
            node.write(set("count", number)).await;
        }
        let snapshot = node.snapshot().await;
        for number in 0..7 {
            node.write(set(format!("later {number}"), "here")).await;
        }
        node.stop().await;

        let node = net.start(1, open(dir.path(), 1), cluster::quick()).await;
        assert_eq!(node.report.snapshot.map(|id| id.index), Some(snapshot));
        node.until("it leads again", |metrics| metrics.current_leader == Some(1)).await;
        assert_eq!(node.value("count").as_deref(), Some("49"));
        assert_eq!(node.value("later 6").as_deref(), Some("here"));
        node.stop().await;
    });
}

/// Three nodes write and purge, and a fourth, which has nothing, comes up by a snapshot. Gives how many chunks were sent.
async fn bring_up_a_fourth(net: Net) -> u64 {
    let dirs: Vec<_> = (0..4).map(|_| scratch()).collect();
    let mut nodes = Vec::new();
    for (id, dir) in (1..).zip(&dirs) {
        nodes.push(net.start(id, open(dir.path(), id), cluster::quick()).await);
    }
    let leader = &nodes[0];
    leader.found().await;
    for id in [2, 3] {
        leader.raft.add_learner(id, BasicNode::default(), true).await.unwrap();
    }
    leader.raft.change_membership([1, 2, 3], false).await.unwrap();
    for number in 0..60 {
        leader.write(set(format!("key {number}"), format!("value {}", number * 7919))).await;
    }
    let snapshot = leader.snapshot().await;
    leader.write(set("after", "it")).await;
    leader.raft.add_learner(4, BasicNode::default(), true).await.unwrap();
    let learner = &nodes[3];
    learner.until("it has the snapshot", |metrics| metrics.snapshot.map(|id| id.index) >= Some(snapshot)).await;
    let applied = leader.handle.last_applied();
    learner.until("it has it all", |metrics| metrics.last_applied.map(|id| id.index) >= applied).await;
    assert_eq!(learner.value("after").as_deref(), Some("it"));
    for number in 0..60 {
        assert_eq!(learner.value(&format!("key {number}")), Some(format!("value {}", number * 7919)));
    }
    for node in nodes {
        node.stop().await;
    }
    let mut store = open(dirs[3].path(), 4);
    assert_eq!(store.report.snapshot.map(|id| id.index), Some(snapshot));
    let (_, membership) = store.machine.applied_state().await.unwrap();
    assert_eq!(membership.voter_ids().collect::<Vec<_>>(), [1, 2, 3]);
    net.chunks.load(Ordering::Relaxed)
}

#[test]
fn a_cluster_of_three_brings_a_new_member_up_by_a_snapshot_of_many_chunks() {
    let chunks = run(bring_up_a_fourth(Net::default()));
    assert!(chunks > 3, "{chunks}");
}

#[test]
fn chunks_whose_answers_are_lost_and_chunks_that_are_given_up_halfway_do_no_harm() {
    let chunks = run(bring_up_a_fourth(Net::lossy()));
    assert!(chunks > 9, "{chunks}");
}

#[test]
fn a_chunk_that_is_damaged_on_its_way_is_refused_and_sent_again_and_nobody_stops_for_it() {
    let whole = run(bring_up_a_fourth(Net::default()));
    for damaged in [0, 2, whole - 1] {
        let chunks = run(bring_up_a_fourth(Net::damaging(damaged)));
        assert!(chunks > whole, "{chunks} of {whole}");
    }
}

#[test]
fn a_member_that_was_wiped_is_removed_and_comes_back_as_a_new_one() {
    let dirs: Vec<_> = (0..4).map(|_| scratch()).collect();
    run(async {
        let net = Net::default();
        let mut nodes = Vec::new();
        for (id, dir) in (1..=3).zip(&dirs) {
            nodes.push(net.start(id, open(dir.path(), id), cluster::quick()).await);
        }
        nodes[0].found().await;
        for id in [2, 3] {
            nodes[0].raft.add_learner(id, BasicNode::default(), true).await.unwrap();
        }
        nodes[0].raft.change_membership([1, 2, 3], false).await.unwrap();
        for number in 0..30 {
            nodes[0].write(set(format!("key {number}"), number)).await;
        }
        nodes[0].snapshot().await;
        nodes.pop().unwrap().stop().await;

        // Damage to what it had acknowledged: it refuses, and says what to do.
        let path = dirs[2].path();
        let segment = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
        let segment = segment.filter(|path| path.extension().is_some_and(|ending| ending == "seg")).min().unwrap();
        let mut bytes = std::fs::read(&segment).unwrap();
        bytes[3 * 4096 + 200] ^= 1;
        std::fs::write(&segment, bytes).unwrap();
        let refused = raft::open::<Kv, _>(path, 3, KvStateMachine::new(), small()).unwrap_err();
        assert!(refused.is_damage(), "{refused}");
        assert!(refused.to_string().contains("remove this node from the cluster, wipe"), "{refused}");

        // That is done.
        nodes[0].raft.change_membership([1, 2], false).await.unwrap();
        std::fs::remove_dir_all(path).unwrap();
        nodes.push(net.start(4, open(path, 4), cluster::quick()).await);
        nodes[0].raft.add_learner(4, BasicNode::default(), true).await.unwrap();
        nodes[0].raft.change_membership([1, 2, 4], false).await.unwrap();
        nodes[0].write(set("after", "it")).await;
        let applied = nodes[0].handle.last_applied();
        nodes[2].until("it has it all", |metrics| metrics.last_applied.map(|id| id.index) >= applied).await;
        assert_eq!(nodes[2].value("key 29").as_deref(), Some("29"));
        assert_eq!(nodes[2].value("after").as_deref(), Some("it"));
        for node in nodes {
            node.stop().await;
        }
    });
}

#[test]
fn a_chunk_that_is_sent_again_does_no_harm() {
    let (sender, snapshot) = other(300);
    let (meta, bytes) = (snapshot.meta.clone(), bytes_of(snapshot));
    let mut store = sim(&SimDisk::new(1));
    let mut data = begin(&mut store);
    for (nth, chunk) in bytes.chunks(500).enumerate() {
        let offset = nth as u64 * 500;
        send(&mut data, offset, chunk).unwrap();
        send(&mut data, offset, chunk).unwrap();
        if nth % 5 == 4 {
            let earlier = offset as usize - 1234;
            send(&mut data, earlier as u64, &bytes[earlier..offset as usize + chunk.len()]).unwrap();
        }
    }
    block_on(data.shutdown()).unwrap();
    block_on(store.machine.install_snapshot(&meta, data)).unwrap();
    assert_eq!(content(&store), content(&sender));
    assert_eq!(bytes_of(current(&mut store).unwrap()), bytes, "the very same file");
    assert_eq!(current(&mut store).unwrap().meta, meta);
}

#[test]
fn bytes_that_leave_a_gap_are_refused_and_the_transfer_goes_on_where_it_was() {
    let (_, snapshot) = other(100);
    let bytes = bytes_of(snapshot);
    let mut store = sim(&SimDisk::new(1));
    let mut data = begin(&mut store);
    send(&mut data, 0, &bytes[..700]).unwrap();
    assert!(send(&mut data, 800, &bytes[800..]).unwrap_err().to_string().contains("missing"));
    send(&mut data, 700, &bytes[700..]).unwrap();
    block_on(data.shutdown()).unwrap();
}

#[test]
fn a_transfer_of_another_snapshot_begins_anew_and_leaves_nothing_of_the_first() {
    let ((_one, first), (two, second)) = (other(300), other(350));
    let (meta, bytes) = (second.meta.clone(), bytes_of(second));
    let disk = SimDisk::new(1);
    let mut store = sim(&disk);
    let mut data = begin(&mut store);
    send(&mut data, 0, &bytes_of(first)[..3000]).unwrap();
    assert_eq!(files(&disk).len(), 1);
    drop(data);
    assert_eq!(files(&disk), [""; 0]);
    let mut data = begin(&mut store);
    send(&mut data, 0, &bytes).unwrap();
    block_on(data.shutdown()).unwrap();
    block_on(store.machine.install_snapshot(&meta, data)).unwrap();
    assert_eq!(content(&store), content(&two));
    assert_eq!(files(&disk), ["snapshot_350_4.zst"]);
}

#[test]
fn a_torn_transfer_is_an_error_and_the_machine_and_its_directory_are_as_before() {
    let (_, snapshot) = other(300);
    let (meta, bytes) = (snapshot.meta.clone(), bytes_of(snapshot));
    for end in [0, 1, 100, 3000, bytes.len() - 1] {
        let disk = SimDisk::new(1);
        let mut store = sim(&disk);
        fill(&mut store, 10);
        let before = (content(&store), block_on(store.machine.applied_state()).unwrap());
        let mut data = begin(&mut store);
        send(&mut data, 0, &bytes[..end]).unwrap();
        assert!(block_on(data.shutdown()).unwrap_err().to_string().contains("has only the first"));
        assert!(block_on(store.machine.install_snapshot(&meta, data)).is_err());
        assert_eq!((content(&store), block_on(store.machine.applied_state()).unwrap()), before);
        assert!(current(&mut store).is_none());
        assert_eq!(files(&disk), [""; 0]);
        fill(&mut store, 20);
    }
}

#[test]
fn a_flipped_bit_anywhere_in_a_transfer_is_an_error_and_the_snapshot_can_be_sent_again() {
    let (sender, snapshot) = other(200);
    let (meta, bytes) = (snapshot.meta.clone(), bytes_of(snapshot));
    for at in (0..bytes.len()).step_by(bytes.len() / 40) {
        let disk = SimDisk::new(1);
        let mut store = sim(&disk);
        fill(&mut store, 10);
        let before = content(&store);
        let mut wrong = bytes.clone();
        wrong[at] ^= 0x10;
        let mut data = begin(&mut store);
        let sent = send(&mut data, 0, &wrong).and_then(|()| block_on(data.shutdown()));
        assert!(sent.is_err(), "byte {at}");
        assert_eq!((content(&store), current(&mut store).is_none()), (before, true));
        // Its sender begins again, and so does what receives it.
        send(&mut data, 0, &bytes[..999]).unwrap();
        send(&mut data, 999, &bytes[999..]).unwrap();
        block_on(data.shutdown()).unwrap();
        block_on(store.machine.install_snapshot(&meta, data)).unwrap();
        assert_eq!(content(&store), content(&sender));
    }
}

#[test]
fn a_snapshot_of_another_store_is_copied_and_may_be_deleted_there_meanwhile() {
    let disk = SimDisk::new(5);
    let mut from = open_on(Arc::new(disk.clone()), 2, small()).unwrap();
    fill(&mut from, 300);
    let snapshot = build(&mut from);
    let there = content(&from);
    for name in files(&disk) {
        disk.remove_file(&name).unwrap();
    }
    drop(from);
    let here = SimDisk::new(6);
    let mut store = sim(&here);
    fill(&mut store, 5);
    block_on(store.machine.install_snapshot(&snapshot.meta, snapshot.snapshot)).unwrap();
    assert_eq!(content(&store), there);
    assert_eq!(block_on(store.machine.applied_state()).unwrap().0, Some(id(300)));
    drop(store);
    let mut store = sim(&here);
    assert_eq!((content(&store), current(&mut store).unwrap().meta), (there, snapshot.meta));
}

#[test]
fn a_snapshot_that_is_being_sent_stays_readable_though_a_newer_one_replaces_it() {
    let disk = SimDisk::new(5);
    let mut store = open_on(Arc::new(disk.clone()), 1, small().keep_snapshots(1)).unwrap();
    fill(&mut store, 300);
    let bytes = bytes_of(build(&mut store));
    let mut sending = current(&mut store).unwrap().snapshot;
    let mut start = vec![0; 1000];
    block_on(sending.read_exact(&mut start)).unwrap();
    fill(&mut store, 400);
    build(&mut store);
    assert_eq!(files(&disk), ["snapshot_400_5.zst"]);
    let mut rest = Vec::new();
    block_on(sending.read_to_end(&mut rest)).unwrap();
    assert_eq!([start, rest].concat(), bytes);
    block_on(sending.seek(SeekFrom::Start(10))).unwrap();
    let mut again = vec![0; 30];
    block_on(sending.read_exact(&mut again)).unwrap();
    assert_eq!(again, bytes[10..40]);
    assert_eq!(block_on(sending.seek(SeekFrom::End(0))).unwrap(), bytes.len() as u64);
}

#[test]
fn the_id_of_a_snapshot_is_that_of_its_bytes() {
    let ((one, first), (_two, second)) = (other(300), other(300));
    assert_ne!(first.meta.snapshot_id, second.meta.snapshot_id, "made twice");
    assert_eq!((&first.meta.last_log_id, &first.meta.last_membership), (&Some(id(300)), &second.meta.last_membership));
    let mut store = sim(&SimDisk::new(1));
    block_on(store.machine.install_snapshot(&second.meta, second.snapshot)).unwrap();
    assert_eq!(current(&mut store).unwrap().meta, second.meta);
    // Of two files for one state, one is enough.
    block_on(store.machine.install_snapshot(&first.meta, first.snapshot)).unwrap();
    assert_eq!(current(&mut store).unwrap().meta, second.meta);
    assert_eq!(content(&store), content(&one));
}

#[test]
fn an_id_of_a_damaged_snapshot_that_was_received_once_more_is_that_of_the_new_bytes() {
    let (disk, (_, again)) = (SimDisk::new(1), other(300));
    let (mut store, first) = rotten(&disk);
    let (meta, bytes) = (again.meta.clone(), bytes_of(again));
    // It is not installed: the node that sent it hung up.
    arrive(&mut store, &bytes).unwrap();
    let now = current(&mut store).unwrap();
    assert_ne!(first, meta.snapshot_id);
    assert_eq!(now.meta, meta);
    assert_eq!(bytes_of(now), bytes);
}

#[test]
fn a_damaged_snapshot_keeps_its_name_until_the_one_that_arrives_again_has_it() {
    let bytes = bytes_of(other(300).1);
    for kind in [OpKind::Rename, OpKind::SyncDir] {
        for nth in 1.. {
            let disk = SimDisk::new(1);
            let (mut store, _) = rotten(&disk);
            disk.fail(FaultRule::io_error(kind, nth));
            let arrived = arrive(&mut store, &bytes);
            assert!(files(&disk).contains(&"snapshot_300_4.zst".to_owned()), "{kind:?} {nth}: {:?}", files(&disk));
            if arrived.is_ok() {
                assert_eq!(files(&disk), ["snapshot_300_4.zst"]);
                assert!(nth > 1, "there is none to fail");
                break;
            }
        }
    }
}

/// A store whose snapshot was damaged since it was opened, and what that is called.
fn rotten(disk: &SimDisk) -> (Store, String) {
    let mut store = sim(disk);
    fill(&mut store, 300);
    build(&mut store);
    drop(store);
    let mut store = sim(disk);
    let id = current(&mut store).unwrap().meta.snapshot_id;
    disk.flip_bit("snapshot_300_4.zst", 400, 1).unwrap();
    (store, id)
}

/// All of a snapshot arrives, and nobody installs it.
fn arrive(store: &mut Store, bytes: &[u8]) -> io::Result<()> {
    let mut data = begin(store);
    send(&mut data, 0, bytes)?;
    block_on(data.shutdown())
}

#[test]
fn a_transfer_that_is_given_up_is_removed_by_another_thread_than_the_executors() {
    let disk = SimDisk::new(1);
    let mut store = sim(&disk);
    let bytes = bytes_of(other(300).1);
    let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let mut data = store.machine.begin_receiving_snapshot().await.unwrap();
        data.write_all(&bytes[..3000]).await.unwrap();
        data.flush().await.unwrap();
        // The only thread that may wait for the disk is busy.
        let (go, gate) = mpsc::channel::<()>();
        tokio::task::spawn_blocking(move || gate.recv());
        drop(data);
        assert_eq!(files(&disk).len(), 1, "it was removed here");
        go.send(()).unwrap();
        tokio::task::spawn_blocking(|| ()).await.unwrap();
        assert_eq!(files(&disk), [""; 0]);
    });
}

#[test]
fn a_file_that_became_shorter_ends_its_transfer_with_an_error() {
    let disk = SimDisk::new(1);
    let mut store = sim(&disk);
    fill(&mut store, 300);
    let mut sending = build(&mut store).snapshot;
    disk.set_len("snapshot_300_4.zst", 1000).unwrap();
    let mut bytes = Vec::new();
    let failed = block_on(sending.read_to_end(&mut bytes)).unwrap_err();
    assert_eq!((failed.kind(), bytes.len()), (io::ErrorKind::UnexpectedEof, 1000), "{failed}");
}

#[test]
fn a_snapshot_that_is_not_the_one_announced_is_not_installed() {
    let ((_one, first), (_two, second)) = (other(300), other(299));
    let mut store = sim(&SimDisk::new(1));
    fill(&mut store, 10);
    let before = content(&store);
    let refused = block_on(store.machine.install_snapshot(&first.meta, second.snapshot)).unwrap_err();
    assert!(refused.to_string().contains("announced"), "{refused}");
    let mut other_members = first.meta.clone();
    other_members.last_membership = StoredMembership::default();
    assert!(block_on(store.machine.install_snapshot(&other_members, first.snapshot)).is_err());
    assert_eq!(content(&store), before);
    assert_eq!(block_on(store.machine.applied_state()).unwrap().0, Some(id(10)));
    fill(&mut store, 11);
}

#[test]
fn a_snapshot_of_nothing_and_one_of_the_first_entry_do_not_get_in_each_others_way() {
    let disk = SimDisk::new(1);
    let mut store = sim(&disk);
    let nothing = build(&mut store);
    assert_eq!(files(&disk), [""; 0]);
    assert_eq!((nothing.meta.last_log_id, &nothing.meta.last_membership), (None, &StoredMembership::default()));
    let first = LogId::new(CommittedLeaderId::new(0, 0), 0);
    let membership = Membership::new(vec![[1].into()], None);
    let entry = Entry { log_id: first, payload: EntryPayload::Membership(membership.clone()) };
    block_on(store.machine.apply([entry])).unwrap();
    let one = build(&mut store);
    assert_eq!(one.meta.last_log_id, Some(first));
    assert_eq!(one.meta.last_membership, StoredMembership::new(Some(first), membership));
    drop(store);
    let mut store = sim(&disk);
    assert_eq!(current(&mut store).unwrap().meta, one.meta);
    assert_eq!(block_on(store.machine.applied_state()).unwrap(), (Some(first), one.meta.last_membership));
}

#[test]
fn a_learner_that_was_asked_for_a_snapshot_before_its_first_entry_takes_the_one_of_entry_0() {
    let first = LogId::new(CommittedLeaderId::new(0, 0), 0);
    let entry = || Entry { log_id: first, payload: members(0, 3).payload };
    let mut leader = sim(&SimDisk::new(2));
    block_on(leader.machine.apply([entry()])).unwrap();
    let Snapshot { meta, snapshot } = build(&mut leader);
    let disk = SimDisk::new(1);
    let mut store = sim(&disk);
    build(&mut store);
    block_on(store.machine.install_snapshot(&meta, snapshot)).unwrap();
    assert_eq!(block_on(store.machine.applied_state()).unwrap(), (Some(first), meta.last_membership));
    drop(store);
    assert_eq!(block_on(sim(&disk).machine.applied_state()).unwrap().0, Some(first));
}

#[test]
fn nothing_is_applied_twice_and_what_is_refused_is_answered_as_that() {
    let mut store = sim(&SimDisk::new(1));
    fill(&mut store, 5);
    let refused = block_on(store.machine.apply([write(5)])).unwrap_err();
    assert!(refused.to_string().contains("nothing is applied twice"), "{refused}");
    let long = set("k".repeat(1 + KvStateMachine::KEY_BYTES_MAX), "v");
    let blank = Entry { log_id: id(6), payload: EntryPayload::Blank };
    let entries = [blank, Entry { log_id: id(7), payload: EntryPayload::Normal(long) }, members(8, 2), write(9)];
    let answers = block_on(store.machine.apply(entries)).unwrap();
    assert!(matches!(
        &answers[..],
        [
            cluster::Answer::Nothing,
            cluster::Answer::Refused(_),
            cluster::Answer::Nothing,
            cluster::Answer::Done(ringwal::machine::KvResponse::Done)
        ]
    ));
    let (last, membership) = block_on(store.machine.applied_state()).unwrap();
    assert_eq!((last, *membership.log_id()), (Some(id(9)), Some(id(8))));
}

/// A log of committed entries, with snapshots at some indexes, purged up to one.
fn lived(disk: &SimDisk, to: u64, snapshots: &[u64], purged: Option<u64>) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut store = sim(disk);
    for index in 0..=to {
        let entry = if index == 0 { members(0, 3) } else { write(index) };
        block_on(store.log.blocking_append([entry])).unwrap();
        fill(&mut store, index);
        if snapshots.contains(&index) {
            build(&mut store);
        }
    }
    block_on(store.log.save_committed(Some(id(to)))).unwrap();
    if let Some(purged) = purged {
        block_on(store.log.purge(id(purged))).unwrap();
    }
    let content = content(&store);
    store.log.close().unwrap();
    content
}

/// As openraft starts.
fn begin_again(store: &mut Store) {
    block_on(StorageHelper::new(&mut store.log, &mut store.machine).get_initial_state()).unwrap();
}

#[test]
fn a_damaged_newest_snapshot_is_got_over_where_the_log_reaches_back_to_an_older_one() {
    let disk = SimDisk::new(1);
    let before = lived(&disk, 90, &[30, 60], Some(30));
    disk.flip_bit("snapshot_60_1.zst", 300, 3).unwrap();
    let mut store = sim(&disk);
    assert_eq!(store.report.snapshot.map(|id| id.index), Some(30));
    assert_eq!(store.report.set_aside.len(), 1);
    begin_again(&mut store);
    assert_eq!(content(&store), before);
    assert_eq!(current(&mut store).unwrap().meta.last_log_id, Some(id(30)));
    drop(store);
    assert!(sim(&disk).report.set_aside.is_empty());
}

#[test]
fn a_damaged_newest_snapshot_that_the_log_begins_after_is_refused_with_what_to_do() {
    let disk = SimDisk::new(1);
    lived(&disk, 90, &[30, 60], Some(31));
    disk.flip_bit("snapshot_60_1.zst", 300, 3).unwrap();
    let before = files(&disk);
    let refused = open_on(Arc::new(disk.clone()), 1, small()).unwrap_err();
    assert!(matches!(refused, RaftError::DamagedSnapshot { .. }) && refused.is_damage(), "{refused}");
    for part in ["snapshot_60_1.zst", "remove this node from the cluster, wipe", "add the node again as a new member"] {
        assert!(refused.to_string().contains(part), "{refused}");
    }
    assert_eq!(files(&disk), before, "nothing was changed");
}

#[test]
fn a_damaged_snapshot_from_another_node_is_not_got_over_by_a_log_without_its_entries() {
    let bytes = bytes_of(other(300).1);
    // A log that ends before it, and one that has entries there which were never committed.
    for stale in [0, 300] {
        let disk = SimDisk::new(1);
        lived(&disk, 20, &[10], None);
        let mut store = sim(&disk);
        let entries: Vec<_> = (21..=stale).map(|index| lost(2, index)).collect();
        block_on(store.log.blocking_append(entries)).unwrap();
        arrive(&mut store, &bytes).unwrap();
        let image = disk.crash_point().keep_completed();
        image.flip_bit("snapshot_300_4.zst", 300, 3).unwrap();
        let before = files(&image);
        let refused = open_on(Arc::new(image.clone()), 1, small()).unwrap_err();
        assert!(matches!(refused, RaftError::EntriesGone { .. }) && refused.is_damage(), "{refused}");
        for part in ["snapshot_300_4.zst", "snapshot_10_1.zst", "remove this node from the cluster, wipe"] {
            assert!(refused.to_string().contains(part), "{refused}");
        }
        assert_eq!(files(&image), before, "nothing was changed");
    }
}

#[test]
fn a_snapshot_that_is_missing_below_a_purged_log_is_refused_with_what_to_do() {
    for snapshots in [&[30, 60][..], &[60]] {
        let disk = SimDisk::new(1);
        lived(&disk, 90, snapshots, Some(60));
        disk.remove_file("snapshot_60_1.zst").unwrap();
        let refused = open_on(Arc::new(disk.clone()), 1, small()).unwrap_err();
        let expected = (snapshots.len() == 2).then_some(30);
        assert!(
            matches!(refused, RaftError::OutOfReach { snapshot, first: 61, .. } if snapshot == expected),
            "{refused}"
        );
        assert!(refused.is_damage() && refused.to_string().contains("wipe"), "{refused}");
    }
}

#[test]
fn a_log_that_is_damaged_below_what_was_acknowledged_is_refused_with_what_to_do() {
    let disk = SimDisk::new(1);
    lived(&disk, 9, &[5], None);
    let segment = disk.file_names().iter().find(|name| name.ends_with(".seg")).unwrap().to_string();
    disk.flip_bit(&segment, 5 * 4096 + 200, 3).unwrap();
    let refused = open_on(Arc::new(disk.clone()), 1, small()).unwrap_err();
    assert!(matches!(refused, RaftError::Damaged { .. }) && refused.is_damage(), "{refused}");
    for part in ["the log in", "is damaged", "remove this node from the cluster, wipe", "as a new member"] {
        assert!(refused.to_string().contains(part), "{refused}");
    }
}

#[test]
fn an_interrupted_installation_is_finished_by_the_next_start() {
    for purged_first in [false, true] {
        let disk = SimDisk::new(1);
        lived(&disk, 20, &[], None);
        let (sender, snapshot) = other(300);
        let bytes = bytes_of(snapshot);
        let mut store = sim(&disk);
        begin_again(&mut store);
        let mut data = begin(&mut store);
        send(&mut data, 0, &bytes).unwrap();
        block_on(data.shutdown()).unwrap();
        // openraft purges without waiting for the installation.
        if purged_first {
            block_on(store.log.purge(id(300))).unwrap();
            block_on(store.log.save_vote(&openraft::Vote::new(9, 1))).unwrap();
        }
        let image = disk.crash_point().keep_completed();
        drop((store, data));
        let mut store = open_on(Arc::new(image.clone()), 1, small()).unwrap();
        begin_again(&mut store);
        assert_eq!(content(&store), content(&sender));
        let log = block_on(store.log.get_log_state()).unwrap();
        assert_eq!((log.last_purged_log_id, log.last_log_id), (Some(id(300)), Some(id(300))));
        block_on(store.log.blocking_append([write(301)])).unwrap();
        fill(&mut store, 301);
    }
}

/// An entry of a leader whose entries never came to be committed.
fn lost(term: u64, index: u64) -> Entry<Kv> {
    let log_id = LogId::new(CommittedLeaderId::new(term, 3), index);
    Entry { log_id, payload: EntryPayload::Normal(set("lost", index)) }
}

#[test]
fn a_log_that_does_not_go_on_from_a_snapshot_that_arrived_stops_every_start() {
    // Shorter and of a later leader; as long, and longer, with other entries in their places.
    for (from, to) in [(5, 6), (40, 51), (40, 61)] {
        for term in [1, 2, 7] {
            let disk = SimDisk::new(1);
            lived(&disk, from - 1, &[], None);
            let (sender, snapshot) = other(50);
            let bytes = bytes_of(snapshot);
            let mut store = sim(&disk);
            begin_again(&mut store);
            block_on(store.log.blocking_append((from..to).map(|index| lost(term, index)))).unwrap();
            let mut data = begin(&mut store);
            send(&mut data, 0, &bytes).unwrap();
            block_on(data.shutdown()).unwrap();
            let image = disk.crash_point().keep_completed();
            let mut store = sim(&image);
            let log = block_on(store.log.get_log_state()).unwrap();
            assert_eq!((log.last_purged_log_id, log.last_log_id), (Some(id(50)), Some(id(50))), "{from}..{to}");
            begin_again(&mut store);
            assert_eq!(content(&store), content(&sender));
            assert!(block_on(store.log.try_get_log_entries(..)).unwrap().is_empty(), "they would be sent on");
            block_on(store.log.blocking_append([write(51)])).unwrap();
            fill(&mut store, 51);
        }
    }
}

#[test]
fn a_log_that_goes_on_from_a_snapshot_is_dropped_by_a_start() {
    let disk = SimDisk::new(1);
    lived(&disk, 60, &[50], None);
    let mut store = sim(&disk);
    let log = block_on(store.log.get_log_state()).unwrap();
    assert_eq!((log.last_purged_log_id, log.last_log_id), (None, Some(id(60))));
    drop(store);
    store = sim(&disk);
    assert_eq!(block_on(store.log.try_get_log_entries(..)).unwrap().len(), 61);
}

#[test]
fn a_log_that_is_purged_under_a_snapshot_that_is_not_there_yet() {
    let disk = SimDisk::new(1);
    lived(&disk, 20, &[], None);
    let (sender, snapshot) = other(300);
    let meta = snapshot.meta.clone();
    let bytes = bytes_of(snapshot);
    let mut store = sim(&disk);
    begin_again(&mut store);
    // An own transport that forgets the `shutdown`; openraft purges as soon as it has asked for the installation.
    let mut data = begin(&mut store);
    send(&mut data, 0, &bytes).unwrap();
    let mut log = store.log.clone();
    let mut purging = Box::pin(async move { log.purge(id(300)).await });
    assert!(poll_once(&mut purging).is_pending());
    let image = disk.crash_point().keep_completed();
    let mut crashed = open_on(Arc::new(image), 1, small()).unwrap();
    begin_again(&mut crashed);
    assert_eq!(crashed.machine.handle().last_applied(), Some(20), "all that was acknowledged is there");
    block_on(store.machine.install_snapshot(&meta, data)).unwrap();
    block_on(purging).unwrap();
    assert_eq!(content(&store), content(&sender));
    let image = disk.crash_point().keep_completed();
    let mut crashed = open_on(Arc::new(image), 1, small()).unwrap();
    begin_again(&mut crashed);
    assert_eq!(content(&crashed), content(&sender));
}

#[test]
fn a_purge_that_waits_for_ever_or_goes_ahead_where_the_snapshot_never_comes() {
    let (_sender, snapshot) = other(300);
    let meta = snapshot.meta.clone();
    let bytes = bytes_of(snapshot);
    for end in ["torn", "given up", "the machine is gone", "torn before the purge"] {
        let disk = SimDisk::new(1);
        lived(&disk, 20, &[], None);
        let mut store = sim(&disk);
        begin_again(&mut store);
        let mut data = begin(&mut store);
        send(&mut data, 0, &bytes[..bytes.len() / 2]).unwrap();
        let mut log = store.log.clone();
        let mut purging = Box::pin(async move { log.purge(id(300)).await });
        let mut data = Some(data);
        if end == "torn before the purge" {
            block_on(store.machine.install_snapshot(&meta, data.take().unwrap())).unwrap_err();
        } else {
            assert!(poll_once(&mut purging).is_pending(), "{end}");
        }
        let handle = store.log.clone();
        match end {
            "torn" => drop(block_on(store.machine.install_snapshot(&meta, data.take().unwrap())).unwrap_err()),
            "given up" => drop(data.take()),
            "the machine is gone" => drop(store),
            _ => {}
        }
        let refused = block_on(purging).unwrap_err().to_string();
        assert!(refused.contains("was not installed"), "{end}: {refused}");
        assert!(matches!(&*handle.failure().unwrap(), RaftError::NotInstalled { index: 300, .. }), "{end}");
        assert_eq!(block_on(handle.clone().try_get_log_entries(..)).unwrap().len(), 21, "{end}");
    }
}

#[test]
fn a_directory_of_a_driver_and_one_of_a_node_refuse_each_other() {
    let (dir, other) = (scratch(), scratch());
    let config = || DriverConfig::default().log(common::small());
    let (driver, _) = Driver::open(dir.path(), KvStateMachine::new(), config()).unwrap();
    driver.propose(set("a", "b")).unwrap();
    driver.close().unwrap();
    let refused = raft::open::<Kv, _>(dir.path(), 1, KvStateMachine::new(), small()).unwrap_err();
    assert!(matches!(refused, RaftError::OtherMachine { .. }) && !refused.is_damage(), "{refused}");
    let (driver, report) = Driver::open(dir.path(), KvStateMachine::new(), config()).unwrap();
    assert_eq!((driver.read(|kv| kv.len()), report.replayed_entries), (1, 1));

    drop(open(other.path(), 1));
    let refused = Driver::open(other.path(), KvStateMachine::new(), config()).unwrap_err();
    assert!(matches!(refused, DriverError::OtherMachine { .. }), "{refused}");
    let counter = Driver::open(other.path(), CounterStateMachine::default(), config()).unwrap_err();
    assert!(matches!(counter, DriverError::OtherMachine { .. }), "{counter}");
    drop(open(other.path(), 1));
}

openraft::declare_raft_types!(
    /// Another machine.
    Counting:
        D = CounterCommand,
        R = Counted,
        Node = BasicNode,
        Entry = Entry<Counting>,
        SnapshotData = RaftSnapshot,
);

/// What the counter answers.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
struct Counted(i64);

impl From<raft::Reply<CounterStateMachine>> for Counted {
    fn from(reply: raft::Reply<CounterStateMachine>) -> Counted {
        match reply {
            raft::Reply::Done(count) => Counted(count),
            raft::Reply::Nothing | raft::Reply::Refused(_) => Counted(-1),
        }
    }
}

#[test]
fn another_node_another_machine_and_a_log_without_a_node_are_refused() {
    let dir = scratch();
    drop(open(dir.path(), 1));
    let refused = raft::open::<Kv, _>(dir.path(), 2, KvStateMachine::new(), small()).unwrap_err();
    assert!(matches!(refused, RaftError::OtherNode { .. }) && !refused.is_damage(), "{refused}");
    let refused = raft::open::<Counting, _>(dir.path(), 1, CounterStateMachine::default(), small()).unwrap_err();
    assert!(matches!(refused, RaftError::OtherMachine { .. }), "{refused}");
    let held = open(dir.path(), 1);
    let refused = raft::open::<Kv, _>(dir.path(), 1, KvStateMachine::new(), small()).unwrap_err();
    assert!(matches!(refused, RaftError::Log(ringwal::Error::Locked { .. })), "{refused}");
    drop(held);
    let plain = scratch();
    let (log, _) = ringwal::Log::open(plain.path(), common::small()).unwrap();
    log.append("somebody's").unwrap();
    log.close().unwrap();
    let refused = raft::open::<Kv, _>(plain.path(), 1, KvStateMachine::new(), small()).unwrap_err();
    assert!(matches!(refused, RaftError::NoNode { .. }), "{refused}");
}

#[test]
fn a_snapshot_of_another_machine_is_refused_as_soon_as_it_arrives() {
    let mut counter =
        raft::open_on::<Counting, _>(Arc::new(SimDisk::new(2)), 2, CounterStateMachine::new(5), small()).unwrap();
    let add = EntryPayload::Normal(CounterCommand::Increment(1));
    block_on(counter.machine.apply([Entry { log_id: id(0), payload: add }])).unwrap();
    let mut builder = block_on(counter.machine.get_snapshot_builder());
    let mut snapshot = block_on(builder.build_snapshot()).unwrap().snapshot;
    let mut bytes = Vec::new();
    block_on(snapshot.read_to_end(&mut bytes)).unwrap();
    let disk = SimDisk::new(1);
    let mut store = sim(&disk);
    let mut data = begin(&mut store);
    let refused = send(&mut data, 0, &bytes[..500]).unwrap_err();
    assert!(refused.to_string().contains("raft/counter/1"), "{refused}");
    drop(data);
    assert_eq!(files(&disk), [""; 0]);
}

#[test]
fn a_disk_that_is_full_while_a_snapshot_is_made_does_not_stop_the_node() {
    let disk = SimDisk::new(1);
    let mut store = open_on(Arc::new(disk.clone()), 1, small()).unwrap();
    fill(&mut store, 100);
    disk.set_capacity(Some(disk.used_bytes()));
    let none = build(&mut store);
    assert_eq!(none.meta.last_log_id, None, "there was none, and there is none");
    disk.set_capacity(None);
    let first = build(&mut store);
    assert_eq!(first.meta.last_log_id, Some(id(100)));
    fill(&mut store, 200);
    disk.set_capacity(Some(disk.used_bytes()));
    assert_eq!(build(&mut store).meta, first.meta, "the one that was there before");
    disk.set_capacity(None);
    assert_eq!(files(&disk), ["snapshot_100_2.zst"]);
    assert_eq!(build(&mut store).meta.last_log_id, Some(id(200)));
}

#[test]
fn a_device_that_fails_while_a_snapshot_is_made_is_an_error_and_leaves_the_one_before() {
    let disk = SimDisk::new(1);
    let mut store = sim(&disk);
    fill(&mut store, 100);
    let first = build(&mut store);
    fill(&mut store, 200);
    // When it is read back.
    disk.fail(FaultRule::io_error(OpKind::Read, 1));
    let mut builder = block_on(store.machine.get_snapshot_builder());
    assert!(block_on(builder.build_snapshot()).is_err());
    assert_eq!(current(&mut store).unwrap().meta, first.meta);
    assert_eq!(files(&disk), ["snapshot_100_2.zst"]);
}

#[test]
fn settings_that_cannot_be_are_refused() {
    let dir = scratch();
    let refused = raft::open::<Kv, _>(dir.path(), 1, KvStateMachine::new(), small().keep_snapshots(0)).unwrap_err();
    assert!(refused.to_string().contains("keep_snapshots"), "{refused}");
    let lazy = small().log(common::small().durability(ringwal::Durability::None));
    let refused = raft::open::<Kv, _>(dir.path(), 1, KvStateMachine::new(), lazy).unwrap_err();
    assert!(matches!(refused, RaftError::Log(ringwal::Error::Config(_))), "{refused}");
}

/// Keeps lines. Panics at "panic"; its images are written once they are let, and so is a state with a "slow" line
/// restored. Of a state that begins with "short", it reads no more than that.
struct Scripted {
    lines: Vec<String>,
    gate: Arc<Mutex<mpsc::Receiver<()>>>,
}

struct ScriptedImage(Vec<String>, Arc<Mutex<mpsc::Receiver<()>>>);

impl StateImage for ScriptedImage {
    fn write_to(self, sink: &mut dyn Write) -> io::Result<()> {
        self.1.lock().unwrap().recv().map_err(io::Error::other)?;
        sink.write_all(self.0.join("\n").as_bytes())
    }
}

impl StateMachine for Scripted {
    type Command = String;
    type Response = u64;
    type Image = ScriptedImage;
    type Error = io::Error;

    const KIND: &'static str = "scripted/1";

    async fn apply(&mut self, line: String) -> io::Result<u64> {
        assert_ne!(line, "panic", "it was told to");
        self.lines.push(line);
        Ok(self.lines.len() as u64)
    }

    fn image(&self) -> ScriptedImage {
        ScriptedImage(self.lines.clone(), self.gate.clone())
    }

    async fn restore(&mut self, source: &mut (dyn Read + Send)) -> io::Result<()> {
        let mut text = String::new();
        (&mut *source).take(6).read_to_string(&mut text)?;
        if text == "short\n" {
            self.lines = vec!["short".into()];
            return Ok(());
        }
        source.read_to_string(&mut text)?;
        if text.contains("slow") {
            self.gate.lock().unwrap().recv().map_err(io::Error::other)?;
        }
        if text.contains("indigestible") {
            return Err(io::Error::other("that it does not take"));
        }
        self.lines = text.lines().map(String::from).collect();
        Ok(())
    }

    fn encode(line: &String) -> Bytes {
        line.clone().into()
    }

    fn decode(bytes: &Bytes) -> io::Result<String> {
        String::from_utf8(bytes.to_vec()).map_err(io::Error::other)
    }
}

openraft::declare_raft_types!(
    /// A machine that does what it is told.
    Script: D = String, R = Line, Node = BasicNode, Entry = Entry<Script>, SnapshotData = RaftSnapshot,
);

/// Its number.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
struct Line(Option<u64>);

impl From<raft::Reply<Scripted>> for Line {
    fn from(reply: raft::Reply<Scripted>) -> Line {
        match reply {
            raft::Reply::Done(number) => Line(Some(number)),
            raft::Reply::Nothing | raft::Reply::Refused(_) => Line(None),
        }
    }
}

type ScriptStore = raft::RaftStore<Script, Scripted>;

/// A store, and what lets an image be written.
fn scripted(disk: &SimDisk) -> Result<(ScriptStore, mpsc::Sender<()>), RaftError> {
    let (go, gate) = mpsc::channel();
    let machine = Scripted { lines: Vec::new(), gate: Arc::new(Mutex::new(gate)) };
    raft::open_on(Arc::new(disk.clone()), 1, machine, small()).map(|store| (store, go))
}

fn line(index: u64, text: &str) -> Entry<Script> {
    Entry { log_id: id(index), payload: EntryPayload::Normal(text.to_owned()) }
}

#[test]
fn a_machine_that_panics_is_told_of_and_not_used_any_more() {
    let (mut store, _go) = scripted(&SimDisk::new(1)).unwrap();
    block_on(store.machine.apply([line(1, "one")])).unwrap();
    let failed = block_on(store.machine.apply([line(2, "two"), line(3, "panic")])).unwrap_err();
    assert!(failed.to_string().contains("it was told to"), "{failed}");
    let failed = block_on(store.machine.apply([line(2, "two")])).unwrap_err();
    assert!(failed.to_string().contains("is not used any more"), "{failed}");
    let mut builder = block_on(store.machine.get_snapshot_builder());
    assert!(block_on(builder.build_snapshot()).unwrap_err().to_string().contains("is not used any more"));
    assert_eq!(block_on(store.machine.applied_state()).unwrap().0, Some(id(1)));
}

#[test]
fn the_executor_runs_on_while_a_snapshot_is_made_and_the_snapshot_is_of_when_it_was_asked_for() {
    let (mut store, go) = scripted(&SimDisk::new(1)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let snapshot = runtime.block_on(async {
        store.machine.apply([line(1, "one")]).await.unwrap();
        let mut builder = store.machine.get_snapshot_builder().await;
        store.machine.apply([line(2, "two")]).await.unwrap();
        let building = tokio::spawn(async move { builder.build_snapshot().await.unwrap() });
        // The only thread of the executor comes here while the image waits for its gate.
        tokio::task::yield_now().await;
        store.machine.apply([line(3, "three")]).await.unwrap();
        assert!(store.machine.get_current_snapshot().await.unwrap().is_none());
        go.send(()).unwrap();
        building.await.unwrap()
    });
    assert_eq!(snapshot.meta.last_log_id, Some(id(1)));
    assert_eq!(store.machine.handle().read(|machine| machine.lines.join(" ")).unwrap(), "one two three");
}

#[test]
fn a_snapshot_that_the_machine_does_not_take_leaves_it_as_it_was_and_is_kept() {
    let (mut from, go) = scripted(&SimDisk::new(2)).unwrap();
    block_on(from.machine.apply([line(1, "one"), line(2, "indigestible")])).unwrap();
    go.send(()).unwrap();
    let mut builder = block_on(from.machine.get_snapshot_builder());
    let snapshot = block_on(builder.build_snapshot()).unwrap();
    let disk = SimDisk::new(1);
    let (mut store, _go) = scripted(&disk).unwrap();
    block_on(store.machine.apply([line(1, "one")])).unwrap();
    let failed = block_on(store.machine.install_snapshot(&snapshot.meta, snapshot.snapshot)).unwrap_err();
    assert!(failed.to_string().contains("that it does not take"), "{failed}");
    assert_eq!(store.machine.handle().read(|machine| machine.lines.clone()).unwrap(), ["one"]);
    assert_eq!(block_on(store.machine.applied_state()).unwrap().0, Some(id(1)));
    assert!(block_on(store.machine.get_current_snapshot()).unwrap().is_none());
    block_on(store.machine.apply([line(2, "two")])).unwrap();
    drop(store);
    let refused = scripted(&disk).map(drop).unwrap_err();
    assert!(matches!(refused, RaftError::NotRestored { .. }), "{refused}");
}

/// A snapshot of lines at the indexes from 1 on, as its file is sent.
fn scripted_snapshot(lines: &[&str]) -> (openraft::SnapshotMeta<u64, BasicNode>, Vec<u8>) {
    let (mut from, go) = scripted(&SimDisk::new(2)).unwrap();
    block_on(from.machine.apply((1..).zip(lines).map(|(index, text)| line(index, text)).collect::<Vec<_>>())).unwrap();
    go.send(()).unwrap();
    let mut builder = block_on(from.machine.get_snapshot_builder());
    let Snapshot { meta, mut snapshot } = block_on(builder.build_snapshot()).unwrap();
    let mut bytes = Vec::new();
    block_on(snapshot.read_to_end(&mut bytes)).unwrap();
    (meta, bytes)
}

/// Receives a snapshot, to its end.
async fn received(store: &mut ScriptStore, bytes: &[u8]) -> Box<RaftSnapshot> {
    let mut data = store.machine.begin_receiving_snapshot().await.unwrap();
    data.write_all(bytes).await.unwrap();
    data.shutdown().await.unwrap();
    data
}

#[test]
fn readers_do_not_hold_up_the_executor_while_a_snapshot_is_installed() {
    let (meta, bytes) = scripted_snapshot(&["one", "slow"]);
    let (mut store, go) = scripted(&SimDisk::new(1)).unwrap();
    let handle = store.machine.handle();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        store.machine.apply([line(1, "one")]).await.unwrap();
        let data = received(&mut store, &bytes).await;
        let installing = tokio::spawn(async move { store.machine.install_snapshot(&meta, data).await });
        // Until it has begun; it does not end before it is let.
        while handle.try_read(|_| ()).unwrap().is_some() {
            tokio::task::yield_now().await;
        }
        let readers: Vec<_> = (0..3).map(|_| handle.clone()).collect();
        let read = |handle: ringwal::raft::MachineHandle<Scripted>| async move {
            handle.read_async(|machine| machine.lines.join(" ")).await.unwrap()
        };
        let readers: Vec<_> = readers.into_iter().map(|handle| tokio::spawn(read(handle))).collect();
        // The only thread of the executor comes here, after the readers had it.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert!(readers.iter().all(|reader| !reader.is_finished()));
        go.send(()).unwrap();
        installing.await.unwrap().unwrap();
        for reader in readers {
            assert_eq!(reader.await.unwrap(), "one slow");
        }
    });
}

#[test]
fn a_snapshot_received_while_one_of_the_same_entry_is_made_does_not_stop_the_node() {
    let (meta, bytes) = scripted_snapshot(&["one"]);
    let disk = SimDisk::new(1);
    let (mut store, go) = scripted(&disk).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let built = runtime.block_on(async {
        store.machine.apply([line(1, "one")]).await.unwrap();
        let mut builder = store.machine.get_snapshot_builder().await;
        let building = tokio::spawn(async move { builder.build_snapshot().await });
        while files(&disk).is_empty() {
            tokio::task::yield_now().await;
        }
        received(&mut store, &bytes).await;
        go.send(()).unwrap();
        building.await.unwrap().unwrap()
    });
    assert_eq!(built.meta, meta, "the one that is there");
    assert_eq!(files(&disk), ["snapshot_1_1.zst"]);
}

#[test]
fn two_transfers_of_one_snapshot_that_end_in_the_same_moment_do_not_fail() {
    let (slow, quick) = (bytes_of(other(300).1), bytes_of(other(300).1));
    assert_ne!(slow, quick);
    let dir = scratch();
    let (disk, gate) = GatedDisk::open(dir.path());
    let mut store = open_on(Arc::new(disk), 1, small()).unwrap();
    let names =
        || std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut data = begin(&mut store);
    send(&mut data, 0, &slow).unwrap();
    let arriving = names().find(|name| name.starts_with("snapshot_")).unwrap();
    gate.hold(Held::SyncOf(arriving));
    let ending = std::thread::spawn(move || block_on(data.shutdown()));
    eventually("it has found none of the name", || gate.is_awaited());
    arrive(&mut store, &quick).unwrap();
    gate.open();
    ending.join().unwrap().unwrap();
    assert_eq!(names().filter(|name| name.starts_with("snapshot_")).collect::<Vec<_>>(), ["snapshot_300_4.zst"]);
    assert_eq!(std::fs::read(dir.path().join("snapshot_300_4.zst")).unwrap(), quick);
}

#[test]
fn a_state_whose_file_failed_behind_what_the_machine_took_of_it_is_never_shown() {
    let noise =
        (0..3000u64).map(|number| format!("{:x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect::<String>();
    let (meta, bytes) = scripted_snapshot(&["short", &noise]);
    let mut unsound = 0;
    for nth in 1.. {
        let disk = SimDisk::new(1);
        let (mut store, _go) = scripted(&disk).unwrap();
        block_on(store.machine.apply([line(1, "old")])).unwrap();
        let data = block_on(received(&mut store, &bytes));
        disk.fail(FaultRule::io_error(OpKind::Read, nth));
        let handle = store.machine.handle();
        let is_installed = block_on(store.machine.install_snapshot(&meta, data)).is_ok();
        match handle.read(|machine| machine.lines.clone()) {
            Ok(lines) => match (&lines[0][..], handle.last_applied()) {
                ("old", Some(1)) if !is_installed => {}
                ("short", Some(2)) => {}
                (line, applied) => panic!("{line} at {applied:?} after read {nth}"),
            },
            Err(RaftError::MachineFailed { .. }) if !is_installed => unsound += 1,
            Err(other) => panic!("{other} after read {nth}"),
        }
        if is_installed {
            break;
        }
    }
    assert!(unsound > 0);
}

#[test]
fn a_newest_snapshot_that_the_machine_does_not_take_is_told_with_the_way_back_to_the_one_before() {
    let (_, bytes) = scripted_snapshot(&["one", "indigestible"]);
    let disk = SimDisk::new(1);
    let (mut store, go) = scripted(&disk).unwrap();
    block_on(store.log.blocking_append([line(1, "one")])).unwrap();
    block_on(store.machine.apply([line(1, "one")])).unwrap();
    go.send(()).unwrap();
    let mut builder = block_on(store.machine.get_snapshot_builder());
    block_on(builder.build_snapshot()).unwrap();
    // It arrives, and its sender hangs up.
    block_on(received(&mut store, &bytes));
    store.log.close().unwrap();
    drop((store.machine, builder));
    let [older, newest] = &files(&disk)[..] else { panic!("{:?}", files(&disk)) };
    let refused = scripted(&disk).map(drop).unwrap_err();
    assert!(matches!(&refused, RaftError::NotRestored { older: Some(path), .. } if path.ends_with(older)), "{refused}");
    assert!(refused.to_string().contains(newest) && refused.to_string().contains("move the file"), "{refused}");
    disk.remove_file(newest).unwrap();
    let (store, _go) = scripted(&disk).unwrap();
    assert_eq!(store.machine.handle().read(|machine| machine.lines.clone()).unwrap(), ["one"]);
}
