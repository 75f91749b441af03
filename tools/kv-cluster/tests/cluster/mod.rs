//! Clusters for tests: real processes on loopback, in a directory of the test's own, gone when it ends.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Client, Method, Response, redirect};
use ringwal_kv_cluster::api::{ErrorAnswer, Outcome};
use ringwal_kv_cluster::client::KvClient;
use ringwal_kv_cluster::local::LocalCluster;
use ringwal_kv_cluster::processes::NodeArgs;
use tempfile::TempDir;

/// The program under test.
pub(crate) fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_ringwal-cluster"))
}

/// A directory on the disk that the build is on.
pub(crate) fn scratch() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Small segments, and elections that are over soon.
pub(crate) fn small(args: &mut NodeArgs) {
    args.segment_size = 4 << 20;
    (args.heartbeat_ms, args.election_min_ms, args.election_max_ms) = (100, 400, 800);
}

/// A cluster that has a leader, and its directory.
pub(crate) async fn started(
    count: u64,
    shape: impl Fn(&mut NodeArgs) + Send + Sync + 'static,
) -> (TempDir, LocalCluster) {
    let dir = scratch();
    let shape = move |args: &mut NodeArgs| {
        small(args);
        shape(args);
    };
    let cluster = LocalCluster::start(program(), dir.path(), count, shape).await.unwrap();
    (dir, cluster)
}

/// A node's addresses on ports that are free, and its directory, for what has to fail to start.
pub(crate) fn lone(dir: &Path, id: u64) -> NodeArgs {
    let addrs = ringwal_kv_cluster::processes::free_addrs(2).unwrap();
    let mut args = NodeArgs::new(id, &dir.join(format!("node-{id}")), &addrs[0], &addrs[1]);
    small(&mut args);
    args
}

/// A request as it is, redirects not followed.
pub(crate) async fn send(method: Method, addr: &str, path: &str, body: impl Into<reqwest::Body>) -> Response {
    let client = Client::builder().redirect(redirect::Policy::none()).no_proxy().build().unwrap();
    let request = client.request(method, format!("http://{addr}{path}")).timeout(Duration::from_secs(30));
    request.body(body).send().await.unwrap()
}

/// The error of a request that has to fail like this, and must have changed nothing.
pub(crate) async fn refused(response: Response, status: u16, code: &str) -> ErrorAnswer {
    assert_eq!(response.status().as_u16(), status);
    let text = response.text().await.unwrap();
    let answer: ErrorAnswer = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!((answer.error.as_str(), answer.outcome), (code, Some(Outcome::NotApplied)), "{answer:?}");
    assert!(!answer.message.is_empty());
    answer
}

/// A value that does not compress.
pub(crate) fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    use rand::{RngCore, SeedableRng, rngs::StdRng};
    let mut value = vec![0; bytes];
    StdRng::seed_from_u64(seed).fill_bytes(&mut value);
    value
}

/// Sets a key, again where the answer says that it may be or not: on a machine that is busy, leaders change by themselves.
pub(crate) async fn put(client: &KvClient, key: &[u8], value: &[u8]) {
    while let Err(error) = client.put(key, value).await {
        assert!(error.outcome == Outcome::Unknown, "{error}");
    }
}

/// The files of a directory whose names end like this, in order.
pub(crate) fn files(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.to_str().unwrap().ends_with(ending));
    files.sort();
    files
}
