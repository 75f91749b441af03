//! The commands for people, as they are typed: `up`, `status`, `demo`.

mod cluster;

use std::process::Stdio;
use std::time::Duration;

use cluster::{program, scratch};
use ringwal_kv_cluster::client::KvClient;
use ringwal_kv_cluster::local::PATIENCE;
use ringwal_kv_cluster::processes::free_addrs;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    command
}

#[tokio::test]
async fn the_demo_shows_what_it_says_and_leaves_nothing_behind() {
    let dir = scratch();
    let output = command(&["demo"]).env("TMPDIR", dir.path()).output().await.unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{told}\n{}", String::from_utf8_lossy(&output.stderr));
    for words in ["was killed (kill -9)", "nothing is lost", "it got a snapshot", "have the same", "have stopped"] {
        assert!(told.contains(words), "{words:?} is not in {told}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Waits until `up` says that its cluster can be used.
async fn usable(up: &mut Child) {
    let mut lines = BufReader::new(up.stdout.take().unwrap()).lines();
    let told = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("leads; try") {
                return;
            }
        }
        panic!("`up` ended without a word of how to use it");
    };
    tokio::time::timeout(PATIENCE, told).await.unwrap();
    // It goes on to tell: somebody has to listen.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
}

async fn stopped(mut up: Child) {
    kill_process(Pid::from_raw(up.id().unwrap() as i32).unwrap(), Signal::TERM).unwrap();
    assert!(tokio::time::timeout(PATIENCE, up.wait()).await.unwrap().unwrap().success());
}

#[tokio::test]
async fn a_cluster_that_is_up_is_used_looked_at_and_stopped_and_has_everything_when_it_is_up_again() {
    let dir = scratch();
    let base: u16 = free_addrs(1).unwrap()[0].rsplit(':').next().unwrap().parse().unwrap();
    let arguments = ["up", "--nodes", "3", "--dir", dir.path().to_str().unwrap(), "--base-port", &base.to_string()];
    let start = || command(&arguments).stdout(Stdio::piped()).spawn().unwrap();
    let addr = format!("127.0.0.1:{}", base + 1);
    let client = KvClient::new(vec![addr.clone()]).timeout(Duration::from_secs(30));

    let mut up = start();
    usable(&mut up).await;
    cluster::put(&client, b"k", b"v").await;
    let status = command(&["status", "--client-addr", &addr]).output().await.unwrap();
    let told = String::from_utf8(status.stdout).unwrap();
    assert!(status.status.success() && told.starts_with("node 1 is ") && told.matches("voter").count() == 3, "{told}");
    let status = command(&["status", "--json", "--client-addr", &addr]).output().await.unwrap();
    let json: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!((&json["id"], json["members"].as_object().unwrap().len()), (&1.into(), 3));
    stopped(up).await;

    let nobody = command(&["status", "--client-addr", &addr]).output().await.unwrap();
    assert_eq!(nobody.status.code(), Some(1));
    let mut up = start();
    usable(&mut up).await;
    assert_eq!(client.get(b"k").await.unwrap().unwrap(), b"v");
    stopped(up).await;
}
