//! `demo`: a cluster at work, in a temporary directory, with what happens told line by line and checked on the way.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;

use super::status::table;
use crate::args::DemoArgs;
use crate::client::{KvClient, Outcome};
use crate::local::{LocalCluster, PATIENCE};

const CLIENTS: u64 = 16;
const KEYS: u64 = 2000;
const VALUE_BYTES: usize = 200;

/// Shows a cluster at work.
///
/// # Errors
///
/// Something is not as it should be.
pub async fn demo(args: &DemoArgs) -> Result<()> {
    let program = std::env::current_exe().context("this program's own file is not known")?;
    let dir = tempfile::tempdir().context("cannot make a temporary directory")?;
    let mut cluster = LocalCluster::start(&program, dir.path(), args.nodes, |node| {
        node.segment_size = 4 << 20;
        (node.snapshot_every, node.keep_entries) = (300, 50);
    })
    .await?;
    let leader = cluster.leader().await?;
    println!("{} nodes run in {}; node {leader} leads", args.nodes, dir.path().display());
    write_and_read(&cluster).await?;
    lose_the_leader(&mut cluster, leader).await?;
    replace(&mut cluster, args.nodes).await?;
    let leader = cluster.leader().await?;
    print!("the cluster in the end:\n{}", table(&cluster.status(leader).await?));
    cluster.stop().await?;
    println!("all nodes have stopped");
    Ok(())
}

fn value(key: u64, round: u64) -> Vec<u8> {
    format!("{key}/{round}/").into_bytes().into_iter().chain(std::iter::repeat_n(b'.', VALUE_BYTES)).collect()
}

/// Sets all keys, with many clients at once. A write whose answer was lost is sent again, as a client may do
/// whose writes can be repeated without harm.
async fn write_all(client: &Arc<KvClient>, round: u64) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    let mut clients = JoinSet::new();
    for first in 0..CLIENTS {
        let client = client.clone();
        clients.spawn(async move {
            for key in (first..KEYS).step_by(CLIENTS as usize) {
                let name = format!("key-{key:06}");
                while let Err(error) = client.put(name.as_bytes(), &value(key, round)).await {
                    ensure!(error.outcome == Outcome::Unknown && Instant::now() < until, "{error}");
                }
            }
            Ok(())
        });
    }
    while let Some(done) = clients.join_next().await {
        done.context("a client ended")??;
    }
    Ok(())
}

/// Reads everything back, from the leader and by linearizable reads.
async fn check_all(client: &KvClient, round: u64) -> Result<()> {
    let (mut start, mut count) = (Vec::new(), 0);
    loop {
        let (entries, more) = client.scan(&start, None, 500).await?;
        for (key, found) in &entries {
            let number = String::from_utf8_lossy(key).trim_start_matches("key-").parse::<u64>();
            if let Ok(number) = number {
                ensure!(*found == value(number, round), "key {number} has another value");
                count += 1;
            }
        }
        match entries.into_iter().next_back() {
            Some((last, _)) if more => start = [last, vec![0]].concat(),
            _ => break,
        }
    }
    ensure!(count == KEYS, "{count} of {KEYS} keys are there");
    Ok(())
}

async fn write_and_read(cluster: &LocalCluster) -> Result<()> {
    let client = Arc::new(cluster.client().timeout(PATIENCE));
    let began = Instant::now();
    write_all(&client, 1).await?;
    let rate = KEYS as f64 / began.elapsed().as_secs_f64();
    println!("{CLIENTS} clients set {KEYS} keys: {rate:.0} writes/s, each on the disks of a majority");
    check_all(&client, 1).await?;
    let swapped = client.cas(b"lock", None, Some(b"mine")).await?;
    let again = client.cas(b"lock", None, Some(b"mine too")).await?;
    ensure!(swapped && !again, "a key that is there was taken for one that is not");
    println!("all are read back; a key was compared and set, and the second one to try was told that it is there");
    Ok(())
}

async fn lose_the_leader(cluster: &mut LocalCluster, leader: u64) -> Result<()> {
    let client = Arc::new(cluster.client().timeout(PATIENCE));
    cluster.kill(leader).await?;
    let began = Instant::now();
    client.put(b"after", b"the leader was killed").await?;
    let took = began.elapsed();
    println!(
        "node {leader} was killed (kill -9); the next write took {took:.0?}: node {} leads",
        cluster.leader().await?
    );
    check_all(&client, 1).await?;
    write_all(&client, 2).await?;
    check_all(&client, 2).await?;
    println!("nothing is lost, and everything was written anew by the nodes that are left");
    let began = Instant::now();
    cluster.restart(leader).await?;
    cluster.caught_up(leader).await?;
    println!("node {leader} is back and has caught up after {:.0?}", began.elapsed());
    Ok(())
}

/// A node loses its directory: it is removed, and comes back as a new member.
async fn replace(cluster: &mut LocalCluster, nodes: u64) -> Result<()> {
    let leader = cluster.leader().await?;
    let lost = cluster.ids().into_iter().find(|id| *id != leader).context("there is no other node")?;
    let voters = cluster.ids().into_iter().filter(|id| *id != lost).collect();
    cluster.set_voters(&voters).await?;
    cluster.kill(lost).await?;
    cluster.wipe(lost)?;
    println!("node {lost} was removed from the voters, killed, and its directory wiped");
    let new = nodes + 1;
    let began = Instant::now();
    cluster.add(new).await?;
    cluster.promote(new, &[]).await?;
    let status = cluster.status(new).await?;
    let took = began.elapsed();
    let snapshot = status.snapshot.context("the new node got no snapshot")?;
    println!(
        "node {new} is a voter after {took:.0?}: it got a snapshot up to entry {} and the entries after it",
        snapshot.index
    );
    same_everywhere(cluster).await
}

async fn same_everywhere(cluster: &LocalCluster) -> Result<()> {
    let leader = cluster.leader().await?;
    let content = cluster.content(leader).await?;
    for id in cluster.ids() {
        cluster.caught_up(id).await?;
        ensure!(cluster.content(id).await? == content, "node {id} has another state than node {leader}");
    }
    println!("all nodes have the same {} keys", content.len());
    Ok(())
}
