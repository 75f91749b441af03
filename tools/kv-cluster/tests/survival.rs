//! What a cluster outlives without losing anything acknowledged: killed and paused nodes, all of them at once, changes of
//! its members, a node that lost its directory.

mod cluster;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cluster::{files, noise, put, send, started};
use openraft::Vote;
use openraft::storage::RaftLogStorage;
use reqwest::Method;
use ringwal_kv_cluster::client::{KvClient, Outcome};
use ringwal_kv_cluster::local::{LocalCluster, PATIENCE};
use ringwal_kv_cluster::machine::{JoinedKv, Types};
use ringwal_kv_cluster::processes::Exit;
use ringwal_kv_cluster::types::NodeAddr;
use tokio::task::JoinSet;

/// Appends a word of its own to the key, exactly once, whatever answers get lost.
async fn append_once(client: &KvClient, key: &[u8], word: &str) {
    loop {
        let old = client.get(key).await.unwrap();
        let text = String::from_utf8(old.clone().unwrap_or_default()).unwrap();
        if text.split(',').any(|other| other == word) {
            return;
        }
        // One that is still on its way with the same expectation can only be in place of this one, not besides it.
        let _ = client.cas(key, old.as_deref(), Some(format!("{text}{word},").as_bytes())).await;
    }
}

#[tokio::test]
async fn of_many_who_compare_and_set_the_same_key_none_overwrites_another() {
    const CLIENTS: usize = 8;
    const WORDS: usize = 15;
    let (_dir, cluster) = started(3, |_| {}).await;
    let client = Arc::new(cluster.client().timeout(PATIENCE));
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let client = client.clone();
        clients.spawn(async move {
            for word in 0..WORDS {
                append_once(&client, b"words", &format!("{number}-{word}")).await;
            }
        });
    }
    while let Some(done) = clients.join_next().await {
        done.unwrap();
    }
    let text = String::from_utf8(client.get(b"words").await.unwrap().unwrap()).unwrap();
    let words: Vec<_> = text.trim_end_matches(',').split(',').collect();
    assert_eq!(words.len(), CLIENTS * WORDS, "{text}");
    for number in 0..CLIENTS {
        let own = words.iter().filter_map(|word| word.strip_prefix(&format!("{number}-")));
        assert!(own.eq((0..WORDS).map(|word| word.to_string()).collect::<Vec<_>>().iter()), "{text}");
    }
}

#[tokio::test]
async fn a_read_after_the_leader_was_killed_sees_what_was_acknowledged() {
    let (_dir, mut cluster) = started(3, |_| {}).await;
    for round in 0..4 {
        let client = cluster.client().timeout(PATIENCE);
        let value = format!("round {round}");
        put(&client, b"k", value.as_bytes()).await;
        let leader = cluster.leader().await.unwrap();
        cluster.kill(leader).await.unwrap();
        assert_eq!(client.get(b"k").await.unwrap().unwrap(), value.as_bytes());
        cluster.restart(leader).await.unwrap();
    }
}

#[tokio::test]
async fn a_leader_that_slept_through_an_election_does_not_answer_with_what_it_knew() {
    let (_dir, mut cluster) = started(3, |_| {}).await;
    let client = cluster.client().timeout(PATIENCE);
    put(&client, b"k", b"old").await;
    let asleep = cluster.leader().await.unwrap();
    cluster.node(asleep).pause().unwrap();
    // The client gives up on the one that sleeps only at its own time: ask the others.
    let others: Vec<_> = cluster.ids().into_iter().filter(|id| *id != asleep).collect();
    let addrs = others.iter().map(|id| cluster.addr(*id).unwrap().client.clone()).collect::<Vec<_>>();
    put_somewhere(&addrs, "new").await;
    let addr = cluster.addr(asleep).unwrap().client.clone();
    let mut waiting = JoinSet::new();
    for _ in 0..8 {
        let addr = addr.clone();
        waiting.spawn(async move { send(Method::GET, &addr, "/v1/kv/k", "").await });
    }
    // So that they wait at its door when it wakes up.
    tokio::time::sleep(Duration::from_millis(100)).await;
    cluster.node(asleep).resume().unwrap();
    while let Some(response) = waiting.join_next().await {
        let response = response.unwrap();
        match response.status().as_u16() {
            200 => assert_eq!(response.bytes().await.unwrap(), "new"),
            status => assert!([307, 503, 504].contains(&status), "{status}"),
        }
    }
    assert_eq!(client.get(b"k").await.unwrap().unwrap(), b"new");
}

/// Sets the key by whichever of these nodes leads, in the end.
async fn put_somewhere(addrs: &[String], value: &str) {
    let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build().unwrap();
    for addr in addrs.iter().cycle() {
        let request =
            http.put(format!("http://{addr}/v1/kv/k")).timeout(Duration::from_secs(10)).body(value.to_owned());
        if request.send().await.is_ok_and(|response| response.status() == 204) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn write(client: &KvClient, keys: std::ops::Range<u32>, value: &str) {
    for key in keys {
        put(client, format!("key {key}").as_bytes(), value.as_bytes()).await;
    }
}

async fn check(client: &KvClient, keys: std::ops::Range<u32>, value: &str) {
    for key in keys {
        let found = client.get(format!("key {key}").as_bytes()).await.unwrap();
        assert_eq!(found.as_deref(), Some(value.as_bytes()), "key {key}");
    }
}

#[tokio::test]
async fn all_nodes_stopped_or_killed_at_once_come_back_with_everything() {
    let (_dir, mut cluster) = started(3, |args| args.snapshot_every = 40).await;
    let client = cluster.client().timeout(PATIENCE);
    write(&client, 0..100, "first").await;
    cluster.stop().await.unwrap();
    for id in 1..=3 {
        cluster.restart(id).await.unwrap();
    }
    check(&client, 0..100, "first").await;
    write(&client, 50..150, "second").await;
    for id in 1..=3 {
        cluster.kill(id).await.unwrap();
    }
    for id in 1..=3 {
        cluster.restart(id).await.unwrap();
    }
    check(&client, 0..50, "first").await;
    check(&client, 50..150, "second").await;
}

#[tokio::test]
async fn nodes_that_are_killed_again_and_again_lose_nothing_acknowledged() {
    let (_dir, mut cluster) = started(3, |args| (args.snapshot_every, args.keep_entries) = (30, 5)).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for writer in 0..3 {
        writers.spawn(write_until(cluster.client().timeout(PATIENCE), writer, stop.clone()));
    }
    for round in 0..6 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let victim = if round % 2 == 0 { cluster.leader().await.unwrap() } else { 1 + round % 3 };
        cluster.kill(victim).await.unwrap();
        cluster.restart(victim).await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let client = cluster.client().timeout(PATIENCE);
    while let Some(written) = writers.join_next().await {
        for (key, possible) in written.unwrap() {
            let found = client.get(key.as_bytes()).await.unwrap().map(|value| String::from_utf8(value).unwrap());
            assert!(possible.contains(&found), "{key}: {found:?}, and it can be {possible:?}");
        }
    }
    let leader = cluster.leader().await.unwrap();
    let content = cluster.content(leader).await.unwrap();
    for id in 1..=3 {
        cluster.caught_up(id).await.unwrap();
        assert_eq!(cluster.content(id).await.unwrap(), content, "node {id}");
    }
}

/// What each key of one writer may have in the end: what was acknowledged last, or what came after it and may be.
async fn write_until(client: KvClient, writer: u32, stop: Arc<AtomicBool>) -> BTreeMap<String, Vec<Option<String>>> {
    let mut written = BTreeMap::new();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let (key, value) = (format!("{writer}/{}", number % 10), Some(number.to_string()));
        let possible: &mut Vec<_> = written.entry(key.clone()).or_insert_with(|| vec![None]);
        match client.put(key.as_bytes(), number.to_string().as_bytes()).await {
            // A write of before whose answer was lost may still be on its way to the log.
            Ok(()) if possible.len() == 1 => *possible = vec![value],
            Ok(()) => possible.push(value),
            Err(error) if error.outcome == Outcome::Unknown => possible.push(value),
            Err(_) => {}
        }
    }
    written
}

#[tokio::test]
async fn members_come_and_go_and_the_leader_among_them() {
    let (_dir, mut cluster) = started(3, |_| {}).await;
    let client = cluster.client().timeout(PATIENCE);
    write(&client, 0..20, "first").await;
    let leader = cluster.leader().await.unwrap();
    cluster.add(4).await.unwrap();
    cluster.promote(4, &[leader]).await.unwrap();
    // One that is no member any more does not count, and does not lead.
    let gone = cluster.node(leader).terminate();
    gone.unwrap();
    assert_eq!(cluster.node(leader).wait_exit(PATIENCE).await.unwrap(), Exit::Code(0));
    cluster.kill(leader).await.unwrap();
    let client = cluster.client().timeout(PATIENCE);
    check(&client, 0..20, "first").await;
    write(&client, 20..40, "second").await;
    let voters = cluster.status(cluster.leader().await.unwrap()).await.unwrap().voters();
    assert!(voters.contains(&4) && !voters.contains(&leader) && voters.len() == 3, "{voters:?}");
    assert_eq!(cluster.caught_up(4).await.unwrap().keys, 40);
}

#[tokio::test]
async fn a_node_that_lost_its_directory_returns_as_a_new_member_by_a_snapshot_in_parts() {
    let (_dir, mut cluster) = started(3, |args| (args.snapshot_every, args.keep_entries) = (100, 10)).await;
    let client = cluster.client().timeout(PATIENCE);
    for key in 0..250 {
        put(&client, &[key], &noise(key.into(), 40 << 10)).await;
    }
    // Snapshots are made beside the writes, and take their time: only then nobody has the first entries any more.
    for id in cluster.ids() {
        cluster.wait(id, "it has purged", |status| status.purged.is_some()).await.unwrap();
    }
    let lost = replaced(&mut cluster).await;
    let status = cluster.caught_up(4).await.unwrap();
    assert!(!status.voters().contains(&lost) && status.voters().contains(&4), "{status:?}");
    // It can have begun with nothing else.
    let leads = cluster.status(cluster.leader().await.unwrap()).await.unwrap();
    assert!(status.snapshot.is_some() && leads.purged.is_some(), "{status:?} {leads:?}");
    let snapshot = files(&cluster.node_dir(4), ".zst").pop().unwrap();
    let bytes = std::fs::metadata(&snapshot).unwrap().len();
    assert!(bytes > 3 << 20, "{} has {bytes} bytes, which is one part", snapshot.display());
    let leader = cluster.leader().await.unwrap();
    assert_eq!(cluster.content(4).await.unwrap(), cluster.content(leader).await.unwrap());
    cluster.kill(4).await.unwrap();
    cluster.restart(4).await.unwrap();
    assert_eq!(cluster.caught_up(4).await.unwrap().keys, 250);
}

/// Takes a follower out of the cluster, wipes it, and lets node 4 take its place; the number of the lost one.
async fn replaced(cluster: &mut LocalCluster) -> u64 {
    let leader = cluster.leader().await.unwrap();
    let lost = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    cluster.kill(lost).await.unwrap();
    cluster.wipe(lost).unwrap();
    let voters = cluster.ids();
    cluster.set_voters(&voters).await.unwrap();
    cluster.add(4).await.unwrap();
    cluster.promote(4, &[]).await.unwrap();
    lost
}

#[tokio::test]
async fn a_leader_that_was_killed_before_its_first_entry_answers_reads_although_nobody_writes() {
    let (_dir, mut cluster) = started(1, |args| args.request_timeout_ms = 1000).await;
    let client = cluster.client();
    client.put(b"k", b"v").await.unwrap();
    let term = cluster.status(1).await.unwrap().term;
    cluster.stop().await.unwrap();
    elected(&cluster.node_dir(1), term + 1).await;
    cluster.restart(1).await.unwrap();
    assert_eq!(client.get(b"k").await.unwrap().unwrap(), b"v");
    assert_eq!(cluster.status(1).await.unwrap().term, term + 1);
}

/// Leaves a node's directory as if it had just won an election, and written nothing since.
async fn elected(dir: &std::path::Path, term: u64) {
    let log = ringwal::Config::default().segment_bytes(4 << 20);
    let config = ringwal::raft::RaftConfig::default().log(log);
    let mut store = ringwal::raft::open::<Types, _>(dir, 1, JoinedKv::default(), config).unwrap();
    store.log.save_vote(&Vote::new_committed(term, 1)).await.unwrap();
    let closed = tokio::task::spawn_blocking(move || store.log.close()).await;
    closed.unwrap().unwrap();
}

#[tokio::test]
async fn a_wiped_node_under_its_old_number_elects_nobody_who_lacks_what_it_acknowledged() {
    let (_dir, mut cluster) = started(3, |args| args.request_timeout_ms = 2000).await;
    put(&cluster.client().timeout(PATIENCE), b"k", b"old").await;
    let leader = cluster.leader().await.unwrap();
    let others: Vec<_> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
    let (wiped, behind) = (others[0], others[1]);
    cluster.caught_up(behind).await.unwrap();
    cluster.node(behind).pause().unwrap();
    // On the disks of the leader and of the one that is wiped.
    let addr = cluster.addr(leader).unwrap().client.clone();
    KvClient::new(vec![addr]).put(b"k", b"new").await.unwrap();
    cluster.kill(leader).await.unwrap();
    cluster.kill(wiped).await.unwrap();
    std::fs::remove_dir_all(cluster.node_dir(wiped)).unwrap();
    cluster.restart(wiped).await.unwrap();
    cluster.node(behind).resume().unwrap();
    // Long enough for some elections; that none was won is seen by what is read when the leader is back.
    tokio::time::sleep(Duration::from_secs(4)).await;
    cluster.restart(leader).await.unwrap();
    let client = cluster.client().timeout(PATIENCE);
    assert_eq!(client.get(b"k").await.unwrap().unwrap(), b"new");
}

#[tokio::test]
async fn a_change_of_members_is_not_called_done_while_it_may_be_undone() {
    let (_dir, mut cluster) = started(3, |args| args.request_timeout_ms = 500).await;
    let leader = cluster.leader().await.unwrap();
    let others: Vec<_> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
    for id in &others {
        cluster.node(*id).pause().unwrap();
    }
    let addr = cluster.addr(leader).unwrap().client.clone();
    let learner = r#"{"id":9,"peer":"127.0.0.1:9","client":"127.0.0.1:9"}"#;
    for _ in 0..3 {
        let answer = send(Method::POST, &addr, "/v1/cluster/learners", learner).await;
        assert!(!answer.status().is_success(), "{}", answer.status());
    }
    for id in &others {
        cluster.node(*id).resume().unwrap();
    }
    let client = cluster.client().timeout(PATIENCE);
    let nine = NodeAddr::new("127.0.0.1:9", "127.0.0.1:9");
    while let Err(error) = client.add_learner(9, &nine).await {
        assert!(error.outcome == Outcome::Unknown || error.code == "in_progress", "{error}");
    }
    let members = cluster.status(cluster.leader().await.unwrap()).await.unwrap().members;
    assert!(members.contains_key(&9), "{members:?}");
}

#[tokio::test]
async fn voters_are_changed_although_one_that_votes_already_is_down() {
    let (_dir, mut cluster) = started(3, |args| args.request_timeout_ms = 2000).await;
    let leader = cluster.leader().await.unwrap();
    let down = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    cluster.kill(down).await.unwrap();
    put(&cluster.client().timeout(PATIENCE), b"k", b"it does not get this").await;
    cluster.add(4).await.unwrap();
    cluster.promote(4, &[]).await.unwrap();
    let status = cluster.status(cluster.leader().await.unwrap()).await.unwrap();
    assert_eq!(status.voters(), [1, 2, 3, 4].into());
}
