//! A cluster in one process, over any log store: how it is started, written to, checked and opened again.
//!
//! Node 0 is the leader from the start to the end: the others never stand for election. All nodes and all clients are
//! tasks on one runtime, with as many threads for every store. Log stores bring their own threads besides, if they have
//! any.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use openraft::storage::RaftLogStorage;
use openraft::{Config, EntryPayload, SnapshotPolicy};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use super::machine::Table;
use super::network::Network;
use super::types::{NodeId, Raft, Record, Types};
use crate::engine::Engine;
use crate::load::Load;
use crate::records::{check, parts};
use crate::slice::{Seen, Start, Window};

const LEADER: NodeId = 0;
/// Long beside anything that is measured: heartbeats are a few writes in thousands, and nobody else becomes leader.
const HEARTBEAT_MS: u64 = 500;
const ELECTION_MS: u64 = 5000;
/// How long the nodes may take to agree.
const PATIENCE: Duration = Duration::from_secs(10);

/// Opens a node's log in a directory.
pub(crate) type Open<L> = fn(&Path, NodeId) -> Result<L>;

/// A cluster that runs.
struct Cluster<L> {
    runtime: Runtime,
    nodes: Vec<Node>,
    /// Opens a node's log once more, where it outlives the cluster.
    reopen: Option<Open<L>>,
}

struct Node {
    id: NodeId,
    raft: Raft,
    table: Table,
    dir: PathBuf,
}

/// Starts a cluster as large as the load says, each node with a log in a directory of its own.
pub(crate) fn start<L: RaftLogStorage<Types>>(
    dir: &Path,
    load: &Load,
    open: Open<L>,
    reopen: Option<Open<L>>,
) -> Result<Box<dyn Engine>> {
    let shape = load.cluster.context("the load has no cluster")?;
    let runtime = Builder::new_multi_thread().worker_threads(shape.workers).enable_time().build()?;
    let nodes = runtime.block_on(start_nodes(dir, shape.nodes, open))?;
    Ok(Box::new(Cluster { runtime, nodes, reopen }))
}

async fn start_nodes<L: RaftLogStorage<Types>>(dir: &Path, count: usize, open: Open<L>) -> Result<Vec<Node>> {
    let (network, mut nodes) = (Network::default(), Vec::new());
    for id in 0..count as NodeId {
        nodes
            .push(start_node(dir, id, open, network.clone()).await.with_context(|| format!("cannot start node {id}"))?);
    }
    network.connect(nodes.iter().map(|node| node.raft.clone()).collect());
    let leader = leader(&nodes)?;
    leader.initialize((0..count as NodeId).collect::<BTreeSet<_>>()).await?;
    leader.wait(Some(PATIENCE)).current_leader(LEADER, "the first node leads").await?;
    agree(&nodes).await?;
    Ok(nodes)
}

async fn start_node<L: RaftLogStorage<Types>>(dir: &Path, id: NodeId, open: Open<L>, network: Network) -> Result<Node> {
    let dir = dir.join(format!("node-{id}"));
    std::fs::create_dir(&dir)?;
    let (log, table) = (open(&dir, id)?, Table::default());
    let raft = Raft::new(id, Arc::new(config(id).validate()?), network, log, table.clone()).await?;
    Ok(Node { id, raft, table, dir })
}

fn config(id: NodeId) -> Config {
    Config {
        cluster_name: "peers".to_owned(),
        heartbeat_interval: HEARTBEAT_MS,
        election_timeout_min: ELECTION_MS,
        election_timeout_max: 2 * ELECTION_MS,
        enable_elect: id == LEADER,
        snapshot_policy: SnapshotPolicy::Never,
        ..Config::default()
    }
}

fn leader(nodes: &[Node]) -> Result<&Raft> {
    Ok(&nodes.first().context("there are no nodes")?.raft)
}

/// Waits until every node has applied all that the leader has committed.
async fn agree(nodes: &[Node]) -> Result<()> {
    let committed = leader(nodes)?.ensure_linearizable().await?.map(|id| id.index);
    for node in nodes {
        let wait = node.raft.wait(Some(PATIENCE));
        let agreed = wait.applied_index_at_least(committed, "all is applied").await;
        agreed.with_context(|| format!("node {} has not applied what is committed", node.id))?;
    }
    Ok(())
}

async fn run_client(raft: Raft, mut next: impl FnMut() -> Bytes, window: Window) -> Result<Seen> {
    let (mut seen, mut now) = (Seen::default(), Instant::now());
    while window.is_open_at(now) {
        let record = Record(next());
        let before = Instant::now();
        raft.client_write(record).await?;
        now = seen.note(1, before, window);
    }
    Ok(seen)
}

impl<L: RaftLogStorage<Types>> Engine for Cluster<L> {
    fn append(&self, _: usize, payload: Bytes) -> Result<()> {
        let write = leader(&self.nodes)?.client_write(Record(payload));
        self.runtime.block_on(write)?;
        Ok(())
    }

    fn append_batch(&self, _: usize, _: Vec<Bytes>) -> Result<()> {
        bail!("a client of a cluster writes one record at a time")
    }

    /// The clients are tasks beside the leader's own: threads that wait would need a wake each.
    fn produce(&self, load: &Load, start: &Start) -> Result<Seen> {
        self.runtime.block_on(async {
            let sources = (0..load.producers).map(|client| load.source(client)).collect::<Vec<_>>();
            let (window, mut clients) = (start.now(), JoinSet::new());
            for source in sources {
                clients.spawn(run_client(leader(&self.nodes)?.clone(), source, window));
            }
            let mut all = Seen::default();
            while let Some(client) = clients.join_next().await {
                all.add(client??);
            }
            Ok(all)
        })
    }

    fn close_and_count(self: Box<Self>) -> Result<u64> {
        let Cluster { runtime, nodes, reopen } = *self;
        let count = runtime.block_on(close(&nodes))?;
        let dirs = nodes.iter().map(|node| (node.id, node.dir.clone())).collect::<Vec<_>>();
        drop(nodes);
        // With its tasks go the last handles of the logs.
        drop(runtime);
        for (id, dir) in dirs {
            if let Some(open) = reopen {
                let found = count_log(open, &dir, id).with_context(|| format!("the log of node {id}"))?;
                ensure!(found == count, "node {id} had applied {count} writes, its log has {found} after a reopen");
            }
        }
        Ok(count)
    }
}

/// The records in every node's state, once all agree.
async fn close(nodes: &[Node]) -> Result<u64> {
    agree(nodes).await?;
    let count = nodes.first().context("there are no nodes")?.table.check()?;
    for node in nodes {
        let found = node.table.check().with_context(|| format!("the state of node {}", node.id))?;
        ensure!(found == count, "node 0 has {count} records, node {} has {found}", node.id);
    }
    for node in nodes {
        node.raft.shutdown().await?;
    }
    Ok(count)
}

/// Opens a log again and counts the records in it, each of which must be as it was written.
fn count_log<L: RaftLogStorage<Types>>(open: Open<L>, dir: &Path, id: NodeId) -> Result<u64> {
    let runtime = Builder::new_current_thread().enable_time().build()?;
    let mut log = open(dir, id).context("cannot open again")?;
    let entries = runtime.block_on(log.try_get_log_entries(..))?;
    let mut count = 0;
    for (index, entry) in entries.iter().enumerate() {
        ensure!(entry.log_id.index == index as u64, "entry {index} is missing");
        if let EntryPayload::Normal(Record(record)) = &entry.payload {
            let (key, value) = parts(record);
            check(key, value)?;
            count += 1;
        }
    }
    Ok(count)
}
