//! Nodes that must not start, or cannot go on: each says what is wrong and what to do, with the exit code for it.

mod cluster;
#[path = "../../../tests/common/mounted.rs"]
mod mounted;
#[path = "../../../tests/common/skip.rs"]
mod skip;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use cluster::{files, lone, noise, program, put, refused, scratch, send, started};
use reqwest::Method;
use ringwal_kv_cluster::local::{LocalCluster, PATIENCE};
use ringwal_kv_cluster::processes::{Exit, NodeArgs, NodeProcess};

/// The error of a node that has to fail to start with this code.
async fn fails(args: &NodeArgs, code: i32) -> String {
    let mut node = NodeProcess::spawn_with(program(), args).unwrap();
    let exit = node.wait_exit(PATIENCE).await.unwrap();
    let told = node.stderr();
    assert_eq!(exit, Exit::Code(code), "{told}");
    told.lines().last().unwrap_or_default().to_owned()
}

/// Turns bits of the oldest segment over, where frames lie that later ones prove to have been durable.
fn damage(dir: &Path) {
    let oldest = files(dir, ".seg").remove(0);
    let file = fs::File::options().read(true).write(true).open(&oldest).unwrap();
    let mut page = vec![0; 4096];
    // Beyond the header and the base.
    let offset = 10 * 4096;
    file.read_exact_at(&mut page, offset).unwrap();
    assert!(page.iter().any(|byte| *byte != 0), "there is nothing to damage in {}", oldest.display());
    page.iter_mut().for_each(|byte| *byte = !*byte);
    file.write_all_at(&page, offset).unwrap();
}

#[tokio::test]
async fn a_node_whose_log_is_damaged_refuses_to_start_and_comes_back_as_a_new_member_once_wiped() {
    let (_dir, mut cluster) = started(3, |_| {}).await;
    let client = cluster.client().timeout(PATIENCE);
    for key in 0..60u8 {
        put(&client, &[key], &noise(key.into(), 3000)).await;
    }
    let leader = cluster.leader().await.unwrap();
    let damaged = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    cluster.caught_up(damaged).await.unwrap();
    cluster.kill(damaged).await.unwrap();
    let dir = cluster.node_dir(damaged);
    damage(&dir);
    let mut node = cluster.spawn(damaged).unwrap();
    let exit = node.wait_exit(PATIENCE).await.unwrap();
    let told = node.stderr();
    assert_eq!(exit, Exit::Code(3), "{told}");
    let dir = dir.display();
    for words in [
        format!("the log in {dir} is damaged"),
        "remove this node from the cluster".into(),
        format!("wipe {dir}"),
        "add the node again as a new member".into(),
    ] {
        assert!(told.contains(&words), "{words:?} is not in {told}");
    }
    // It says the same again: a refused start changes nothing.
    let mut again = cluster.spawn(damaged).unwrap();
    assert_eq!(again.wait_exit(PATIENCE).await.unwrap(), Exit::Code(3));

    // What it says, in its order.
    let others = cluster.ids();
    cluster.set_voters(&others).await.unwrap();
    cluster.wipe(damaged).unwrap();
    cluster.add(4).await.unwrap();
    cluster.promote(4, &[]).await.unwrap();
    let leader = cluster.leader().await.unwrap();
    assert_eq!(cluster.content(4).await.unwrap(), cluster.content(leader).await.unwrap());
    assert_eq!(cluster.caught_up(4).await.unwrap().keys, 60);
}

#[tokio::test]
async fn a_directory_that_another_process_holds_is_left_alone() {
    let (_dir, cluster) = started(1, |_| {}).await;
    let mut args = lone(Path::new("/"), 1);
    args.dir = cluster.node_dir(1);
    let told = fails(&args, 5).await;
    assert!(told.contains("node 1 cannot start"), "{told}");
    cluster.client().put(b"k", b"v").await.unwrap();
}

#[tokio::test]
async fn a_directory_of_another_node_is_refused() {
    let (_dir, mut cluster) = started(1, |_| {}).await;
    cluster.stop().await.unwrap();
    let mut args = lone(Path::new("/"), 2);
    args.dir = cluster.node_dir(1);
    let told = fails(&args, 1).await;
    assert!(told.contains("belongs to the node with id 1, not 2"), "{told}");
    cluster.restart(1).await.unwrap();
    cluster.leader().await.unwrap();
}

#[tokio::test]
async fn an_address_that_is_taken_or_is_not_here_is_told_as_such() {
    let dir = scratch();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut args = lone(dir.path(), 1);
    args.client_addr = taken.local_addr().unwrap().to_string();
    let told = fails(&args, 1).await;
    assert!(told.contains("cannot listen for clients") && told.contains("another process listens there"), "{told}");
    args.client_addr = "192.0.2.1:7001".into();
    let told = fails(&args, 1).await;
    assert!(told.contains("no address of this machine"), "{told}");
    args.client_addr = "127.0.0.1".into();
    assert!(fails(&args, 1).await.contains("cannot listen for clients at 127.0.0.1"));
}

#[tokio::test]
async fn settings_that_do_not_fit_are_refused_before_anything_is_made() {
    let dir = scratch();
    let mut args = lone(dir.path(), 1);
    (args.heartbeat_ms, args.election_min_ms) = (500, 400);
    assert!(fails(&args, 1).await.contains("--heartbeat-ms must be below --election-min-ms"));
    assert!(!args.dir.exists());
    let mut args = lone(dir.path(), 1);
    args.segment_size = 4096;
    assert!(fails(&args, 2).await.contains("--help"));
    let mut args = lone(dir.path(), 0);
    args.id = 0;
    fails(&args, 2).await;
    assert!(!args.dir.exists());
}

#[tokio::test]
async fn a_node_that_is_asked_to_stop_finishes_what_was_asked_of_it() {
    let (_dir, mut cluster) = started(1, |_| {}).await;
    let client = std::sync::Arc::new(cluster.client().timeout(Duration::from_secs(5)));
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8u8 {
        let client = client.clone();
        writers.spawn(async move {
            let mut done = 0u32;
            while client.put(&[writer], done.to_string().as_bytes()).await.is_ok() {
                done += 1;
            }
            done
        });
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    cluster.stop().await.unwrap();
    let mut acknowledged = Vec::new();
    while let Some(done) = writers.join_next().await {
        acknowledged.push(done.unwrap());
    }
    assert!(acknowledged.iter().any(|done| *done > 0));
    cluster.restart(1).await.unwrap();
    let client = cluster.client().timeout(PATIENCE);
    let mut found = Vec::new();
    for writer in 0..8u8 {
        let value = client.get(&[writer]).await.unwrap();
        // The one after the last that was acknowledged may be there too.
        found.push(value.map_or(0, |value| String::from_utf8(value).unwrap().parse::<u32>().unwrap() + 1));
    }
    found.sort();
    acknowledged.sort();
    let fits = found.iter().zip(&acknowledged).all(|(found, done)| (*done..=done + 1).contains(found));
    assert!(fits, "{found:?} {acknowledged:?}");
}

#[tokio::test]
async fn a_node_whose_disk_is_full_leaves_the_others_and_comes_back_when_there_is_room() {
    let Some(disk) = mounted::Mounted::in_memory(c"size=6m") else { return };
    let place = disk.at().to_owned();
    let (_dir, mut cluster) = started(3, move |args| {
        args.segment_size = 1 << 20;
        (args.snapshot_every, args.keep_entries) = (1_000_000, 0);
        if args.id == 3 {
            args.dir = place.join("node-3");
        }
    })
    .await;
    let client = cluster.client().timeout(PATIENCE);
    let mut written = 0u32;
    while cluster.node(3).try_exit().unwrap().is_none() {
        let _ = client.put(&(written % 50).to_be_bytes(), &noise(written.into(), 20 << 10)).await;
        written += 1;
        assert!(written < 5000, "the disk of node 3 does not fill up");
    }
    let exit = cluster.node(3).wait_exit(PATIENCE).await.unwrap();
    let told = cluster.node(3).stderr();
    assert_eq!(exit, Exit::Code(6), "{told}");
    put(&client, b"after", b"the others go on").await;
    rustix::mount::mount_remount(disk.at(), rustix::mount::MountFlags::empty(), "size=600m").unwrap();
    cluster.restart(3).await.unwrap();
    let status = cluster.caught_up(3).await.unwrap();
    let leader = cluster.leader().await.unwrap();
    assert_eq!(cluster.content(3).await.unwrap(), cluster.content(leader).await.unwrap());
    assert!(status.keys >= 1);
}

#[tokio::test]
async fn writes_are_refused_while_less_is_free_than_is_kept_in_reserve() {
    let Some(disk) = mounted::Mounted::in_memory(c"size=64m") else { return };
    let shape = |args: &mut NodeArgs| {
        cluster::small(args);
        args.reserve = 32 << 20;
    };
    let mut cluster = LocalCluster::start(program(), disk.at(), 1, shape).await.unwrap();
    let client = cluster.client();
    client.put(b"k", b"v").await.unwrap();
    let filler = disk.at().join("filler");
    fs::write(&filler, vec![1; 30 << 20]).unwrap();
    let addr = cluster.addr(1).unwrap().client.clone();
    let answer = refused(send(Method::PUT, &addr, "/v1/kv/k", "w").await, 507, "full").await;
    assert!(answer.message.contains("make room"), "{answer:?}");
    assert_eq!(client.get(b"k").await.unwrap().unwrap(), b"v");
    fs::remove_file(&filler).unwrap();
    client.put(b"k", b"w").await.unwrap();
    cluster.stop().await.unwrap();
}
