//! openraft nodes in one process: over stores of ours, on any disk, joined by a network of direct calls that can be cut.

#![allow(clippy::result_large_err, reason = "openraft's traits say which error they return")]
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::fmt::Display;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use openraft::error::{InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Unreachable};
use openraft::network::{RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
    VoteResponse,
};
use openraft::{BasicNode, Entry, Raft, SnapshotPolicy};
use ringwal::disk::Disk;
use ringwal::machine::{KvCommand, KvResponse, KvStateMachine};
use ringwal::raft::{self, MachineHandle, RaftConfig, RaftReport, RaftSnapshot, RaftStore, Reply};
use ringwal::{Config, SnapshotOptions};
use serde::{Deserialize, Serialize};

/// What a node answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    Nothing,
    Done(KvResponse),
    Refused(String),
}

impl From<Reply<KvStateMachine>> for Answer {
    fn from(reply: Reply<KvStateMachine>) -> Answer {
        match reply {
            Reply::Nothing => Answer::Nothing,
            Reply::Done(response) => Answer::Done(response),
            Reply::Refused(error) => Answer::Refused(error.to_string()),
        }
    }
}

openraft::declare_raft_types!(
    /// A key-value store.
    pub(crate) Kv:
        D = KvCommand,
        R = Answer,
        Node = BasicNode,
        Entry = Entry<Kv>,
        SnapshotData = RaftSnapshot,
);

pub(crate) type Store = RaftStore<Kv, KvStateMachine>;

/// How long something may take before a test gives up: far more than it ever does.
const FOR_EVER: Duration = Duration::from_secs(60);

/// Small segments, and snapshots in several chunks.
pub(crate) fn small() -> RaftConfig {
    RaftConfig::default()
        .log(Config::default().segment_bytes(24 * 4096).idle_mark_after(Duration::from_secs(3600)))
        .snapshots(SnapshotOptions::default().chunk_bytes(1 << 10).workers(0).low_priority(false))
}

/// Opens the store of a node on a disk.
pub(crate) fn open_on(disk: Arc<dyn Disk>, id: u64, config: RaftConfig) -> Result<Store, raft::RaftError> {
    raft::open_on(disk, id, KvStateMachine::new(), config)
}

/// A command that sets a key.
pub(crate) fn set(key: impl Display, value: impl Display) -> KvCommand {
    KvCommand::Set { key: key.to_string().into(), value: value.to_string().into() }
}

/// Settings of openraft under which a few writes make a snapshot, and hardly an entry is kept before it.
pub(crate) fn quick() -> openraft::Config {
    openraft::Config {
        heartbeat_interval: 40,
        election_timeout_min: 150,
        election_timeout_max: 300,
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: 0,
        snapshot_max_chunk_size: 700,
        ..openraft::Config::default()
    }
}

/// The nodes that are up, by their ids.
#[derive(Clone, Default)]
pub(crate) struct Net {
    nodes: Arc<Mutex<BTreeMap<u64, Raft<Kv>>>>,
    /// Whether chunks of snapshots have it hard.
    is_lossy: bool,
    /// Chunks that were sent.
    pub(crate) chunks: Arc<AtomicU64>,
    /// The number of the chunk in which a bit flips on its way.
    damaged: Option<u64>,
}

/// A node that is up.
pub(crate) struct Node {
    pub(crate) id: u64,
    pub(crate) raft: Raft<Kv>,
    pub(crate) handle: MachineHandle<KvStateMachine>,
    pub(crate) log: ringwal::raft::RaftLog<Kv>,
    pub(crate) report: RaftReport,
    net: Net,
}

impl Net {
    /// A network on which, at first, of three chunks of a snapshot one arrives and its answer is lost, and one is given up
    /// by its receiver halfway.
    pub(crate) fn lossy() -> Net {
        Net { is_lossy: true, ..Net::default() }
    }

    /// A network on which a bit of one chunk of a snapshot flips on its way: of the one with this number, from 0.
    pub(crate) fn damaging(chunk: u64) -> Net {
        Net { damaged: Some(chunk), ..Net::default() }
    }

    /// Starts a node over a store.
    pub(crate) async fn start(&self, id: u64, store: Store, config: openraft::Config) -> Node {
        let handle = store.machine.handle();
        let (log, report) = (store.log.clone(), store.report.clone());
        let config = Arc::new(config.validate().unwrap());
        let raft = Raft::new(id, config, self.clone(), store.log, store.machine).await.unwrap();
        self.nodes.lock().unwrap().insert(id, raft.clone());
        Node { id, raft, handle, log, report, net: self.clone() }
    }

    fn node(&self, id: u64) -> Result<Raft<Kv>, Unreachable> {
        let node = self.nodes.lock().unwrap().get(&id).cloned();
        node.ok_or_else(|| Unreachable::new(&std::io::Error::other(format!("node {id} is down"))))
    }

    /// Nobody reaches the node any more.
    pub(crate) fn cut(&self, id: u64) {
        self.nodes.lock().unwrap().remove(&id);
    }
}

impl Node {
    /// Stops the node and waits until its store is closed, durable as it was.
    pub(crate) async fn stop(self) {
        self.net.cut(self.id);
        self.raft.shutdown().await.unwrap();
        drop(self.raft);
        let log = self.log;
        tokio::task::spawn_blocking(move || log.close()).await.unwrap().unwrap();
    }

    /// Writes through this node, which must lead.
    pub(crate) async fn write(&self, command: KvCommand) -> Answer {
        self.raft.client_write(command).await.unwrap().data
    }

    /// The value of a key, as this node has it.
    pub(crate) fn value(&self, key: &str) -> Option<String> {
        self.handle.read(|kv| kv.get(key.as_bytes())).unwrap().map(|value| String::from_utf8(value.to_vec()).unwrap())
    }

    /// Becomes the leader of a cluster of its own.
    pub(crate) async fn found(&self) {
        self.raft.initialize(BTreeMap::from([(self.id, BasicNode::default())])).await.unwrap();
        self.until("it leads", |metrics| metrics.current_leader == Some(self.id)).await;
    }

    /// Waits until the node's metrics say something.
    pub(crate) async fn until(
        &self,
        what: &str,
        holds: impl Fn(&openraft::RaftMetrics<u64, BasicNode>) -> bool + Send,
    ) {
        let wait = self.raft.wait(Some(FOR_EVER));
        if let Err(error) = wait.metrics(holds, what).await {
            panic!("node {}: {what}: {error}\n{:?}", self.id, self.raft.metrics().borrow());
        }
    }

    /// Makes a snapshot of everything applied, and waits until the log is purged up to it.
    pub(crate) async fn snapshot(&self) -> u64 {
        let applied = self.handle.last_applied().unwrap();
        self.raft.trigger().snapshot().await.unwrap();
        let is_there = |index: Option<u64>| index.is_some_and(|index| index >= applied);
        self.until("a snapshot", |metrics| is_there(metrics.snapshot.map(|id| id.index))).await;
        self.until("a purge", |metrics| is_there(metrics.purged.map(|id| id.index))).await;
        applied
    }
}

impl RaftNetworkFactory<Kv> for Net {
    type Network = Link;

    async fn new_client(&mut self, to: u64, _node: &BasicNode) -> Link {
        Link { net: self.clone(), to }
    }
}

/// The way to a node.
pub(crate) struct Link {
    net: Net,
    to: u64,
}

type Rpc<T, E> = Result<T, RPCError<u64, BasicNode, E>>;

impl Link {
    async fn call<T, E, F>(&self, call: impl FnOnce(Raft<Kv>) -> F) -> Rpc<T, E>
    where
        E: std::error::Error,
        F: Future<Output = Result<T, E>>,
    {
        let answer = call(self.net.node(self.to)?).await;
        answer.map_err(|error| RPCError::RemoteError(RemoteError::new(self.to, error)))
    }
}

impl RaftNetwork<Kv> for Link {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Kv>,
        _option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<u64>, RaftError<u64>> {
        self.call(|raft| async move { raft.append_entries(rpc).await }).await
    }

    async fn install_snapshot(
        &mut self,
        mut rpc: InstallSnapshotRequest<Kv>,
        _option: RPCOption,
    ) -> Rpc<InstallSnapshotResponse<u64>, RaftError<u64, InstallSnapshotError>> {
        let number = self.net.chunks.fetch_add(1, Ordering::Relaxed);
        if self.net.damaged == Some(number) {
            rpc.data[5] ^= 4;
        }
        let sent = self.call(|raft| async move { raft.install_snapshot(rpc).await });
        // Not for ever: a sender whose answer to the last chunk is lost each time begins again each time.
        let is_lossy = self.net.is_lossy && number < 40;
        match number % 3 {
            1 if is_lossy => {
                let _ = sent.await;
                Err(lost("the answer was lost"))
            }
            2 if is_lossy => {
                // One look at it, and then it is dropped.
                match tokio::time::timeout(Duration::ZERO, sent).await {
                    Ok(answer) => answer,
                    Err(_) => Err(lost("it was given up")),
                }
            }
            _ => sent.await,
        }
    }

    async fn vote(&mut self, rpc: VoteRequest<u64>, _option: RPCOption) -> Rpc<VoteResponse<u64>, RaftError<u64>> {
        self.call(|raft| async move { raft.vote(rpc).await }).await
    }
}

fn lost<E: std::error::Error>(why: &str) -> RPCError<u64, BasicNode, E> {
    RPCError::Network(NetworkError::new(&std::io::Error::other(why.to_owned())))
}

/// Runs nodes.
pub(crate) fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let started = Instant::now();
    let value = runtime.block_on(async { tokio::time::timeout(3 * FOR_EVER, work).await }).expect("it never ends");
    runtime.shutdown_timeout(FOR_EVER);
    assert!(started.elapsed() < 4 * FOR_EVER);
    value
}
