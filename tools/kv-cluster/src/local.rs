//! A cluster of node processes on this machine's loopback: what `up`, `demo` and the tests run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::time::sleep;

use crate::api::ClusterStatus;
use crate::client::{ClientError, KvClient};
use crate::processes::{Exit, NodeArgs, NodeProcess, free_addrs};
use crate::types::{NodeAddr, NodeId};

/// How long anything here may take that a node does. It only keeps one from waiting for ever.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often it is looked again.
const LOOK: Duration = Duration::from_millis(20);

/// Changes what a node is started with.
pub type Shape = Box<dyn Fn(&mut NodeArgs) + Send + Sync>;

/// Nodes by their numbers, each with a directory `node-N`.
pub struct LocalCluster {
    program: PathBuf,
    dir: PathBuf,
    shape: Shape,
    nodes: BTreeMap<NodeId, NodeProcess>,
    addrs: BTreeMap<NodeId, NodeAddr>,
}

impl fmt::Debug for LocalCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalCluster").field("dir", &self.dir).field("nodes", &self.nodes).finish_non_exhaustive()
    }
}

impl LocalCluster {
    /// No nodes yet: those to come run this program, and have their directories in this one.
    pub fn new(program: &Path, dir: &Path, shape: impl Fn(&mut NodeArgs) + Send + Sync + 'static) -> LocalCluster {
        let (nodes, addrs) = (BTreeMap::new(), BTreeMap::new());
        LocalCluster { program: program.to_owned(), dir: dir.to_owned(), shape: Box::new(shape), nodes, addrs }
    }

    /// A cluster of this many voters, numbered from 1, that has a leader.
    ///
    /// # Errors
    ///
    /// A node does not start, or the cluster does not come together.
    pub async fn start(
        program: &Path,
        dir: &Path,
        count: u64,
        shape: impl Fn(&mut NodeArgs) + Send + Sync + 'static,
    ) -> Result<LocalCluster> {
        let mut cluster = LocalCluster::new(program, dir, shape);
        for id in 1..=count {
            cluster.add(id).await?;
        }
        cluster.init().await?;
        Ok(cluster)
    }

    /// Makes the nodes there are a cluster, and waits for a leader.
    ///
    /// # Errors
    ///
    /// They are a cluster already, or do not come together.
    pub async fn init(&self) -> Result<NodeId> {
        let first = self.addrs.values().next().context("there are no nodes")?;
        self.client().init(&first.client, &self.addrs).await?;
        self.leader().await
    }

    /// Starts a node that was not there, at addresses that are free. It is no member yet.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub async fn add(&mut self, id: NodeId) -> Result<NodeAddr> {
        let addrs = free_addrs(2)?;
        self.add_at(id, NodeAddr::new(&addrs[0], &addrs[1])).await
    }

    /// Starts a node that was not there, at these addresses.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub async fn add_at(&mut self, id: NodeId, addr: NodeAddr) -> Result<NodeAddr> {
        self.addrs.insert(id, addr.clone());
        self.restart(id).await?;
        Ok(addr)
    }

    /// Starts a node again, killing it if it still runs.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub async fn restart(&mut self, id: NodeId) -> Result<()> {
        if let Some(mut node) = self.nodes.remove(&id) {
            node.kill9().await?;
        }
        let mut node = self.spawn(id)?;
        node.wait_ready(PATIENCE).await?;
        self.nodes.insert(id, node);
        Ok(())
    }

    /// Starts the process of a node without waiting for anything, and without counting it among the nodes.
    ///
    /// # Errors
    ///
    /// The process cannot be started.
    pub fn spawn(&self, id: NodeId) -> Result<NodeProcess> {
        let addr = self.addr(id)?;
        let mut args = NodeArgs::new(id, &self.node_dir(id), &addr.peer, &addr.client);
        (self.shape)(&mut args);
        NodeProcess::spawn_with(&self.program, &args)
    }

    /// A node's process.
    ///
    /// # Panics
    ///
    /// It was never started, or was taken out.
    pub fn node(&mut self, id: NodeId) -> &mut NodeProcess {
        self.nodes.get_mut(&id).unwrap_or_else(|| panic!("there is no node {id}"))
    }

    /// The numbers of the nodes.
    pub fn ids(&self) -> BTreeSet<NodeId> {
        self.nodes.keys().copied().collect()
    }

    /// A node's directory.
    pub fn node_dir(&self, id: NodeId) -> PathBuf {
        self.dir.join(format!("node-{id}"))
    }

    /// A node's addresses.
    ///
    /// # Errors
    ///
    /// There is no such node.
    pub fn addr(&self, id: NodeId) -> Result<&NodeAddr> {
        self.addrs.get(&id).with_context(|| format!("there is no node {id}"))
    }

    /// Kills a node and takes it out; its directory stays.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub async fn kill(&mut self, id: NodeId) -> Result<()> {
        self.node(id).kill9().await?;
        self.nodes.remove(&id);
        Ok(())
    }

    /// Forgets a node that was killed, and removes its directory.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub fn wipe(&mut self, id: NodeId) -> Result<()> {
        self.addrs.remove(&id);
        let dir = self.node_dir(id);
        std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))
    }

    /// A client that knows all nodes.
    pub fn client(&self) -> KvClient {
        KvClient::new(self.addrs.values().map(|addr| addr.client.clone()).collect())
    }

    /// The cluster as a node sees it.
    ///
    /// # Errors
    ///
    /// It does not answer.
    pub async fn status(&self, id: NodeId) -> Result<ClusterStatus> {
        let addr = &self.addr(id)?.client;
        Ok(KvClient::new(vec![addr.clone()]).timeout(Duration::from_secs(2)).cluster_status(addr).await?)
    }

    /// Waits until the nodes that run have a leader that a majority confirmed, and gives its number.
    ///
    /// # Errors
    ///
    /// They have none in all the time there is.
    pub async fn leader(&self) -> Result<NodeId> {
        let until = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        while Instant::now() < until {
            seen.clear();
            for id in self.nodes.keys() {
                match self.status(*id).await {
                    Ok(status) if status.leads() && status.quorum_ack_age_ms.is_some() => return Ok(*id),
                    other => seen.push(other.map(|status| status.state).map_err(|error| error.to_string())),
                }
            }
            sleep(LOOK).await;
        }
        bail!("the nodes have no leader: {seen:?}")
    }

    /// Waits until a look at a node shows what it should.
    ///
    /// # Errors
    ///
    /// It does not in all the time there is.
    pub async fn wait(&self, id: NodeId, what: &str, holds: impl Fn(&ClusterStatus) -> bool) -> Result<ClusterStatus> {
        let until = Instant::now() + PATIENCE;
        let mut last = None;
        while Instant::now() < until {
            match self.status(id).await {
                Ok(status) if holds(&status) => return Ok(status),
                other => last = Some(other),
            }
            sleep(LOOK).await;
        }
        bail!("node {id}: {what} did not come to hold: {last:?}")
    }

    /// Waits until a node has applied everything that the leader has now.
    ///
    /// # Errors
    ///
    /// It has not in all the time there is.
    pub async fn caught_up(&self, id: NodeId) -> Result<ClusterStatus> {
        let leader = self.leader().await?;
        let goal = self.status(leader).await?.last_log_index;
        self.wait(id, "it has caught up", |status| status.applied.map(|place| place.index) >= goal).await
    }

    /// Adds a node as a learner, waits until it has everything, and lets it vote in place of those that no longer should.
    ///
    /// # Errors
    ///
    /// The cluster refuses, or takes too long.
    pub async fn promote(&self, id: NodeId, without: &[NodeId]) -> Result<()> {
        let client = self.client().timeout(PATIENCE);
        client.add_learner(id, self.addr(id)?).await?;
        self.caught_up(id).await?;
        let mut voters = self.status(self.leader().await?).await?.voters();
        voters.insert(id);
        voters.retain(|voter| !without.contains(voter));
        self.set_voters(&voters).await
    }

    /// Changes the voters. Asked again after an unknown outcome: the second time it changes nothing.
    ///
    /// # Errors
    ///
    /// The cluster refuses, or takes too long.
    pub async fn set_voters(&self, voters: &BTreeSet<NodeId>) -> Result<()> {
        let client = self.client();
        let until = Instant::now() + PATIENCE;
        loop {
            match client.set_voters(voters).await {
                Ok(()) => return Ok(()),
                Err(ClientError { status: Some(400), message, .. }) => bail!("the voters were refused: {message}"),
                Err(error) if Instant::now() > until => return Err(error.into()),
                Err(_) => sleep(LOOK).await,
            }
        }
    }

    /// All keys and values as a node has them.
    ///
    /// # Errors
    ///
    /// It does not answer.
    pub async fn content(&self, id: NodeId) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let addr = &self.addr(id)?.client;
        Ok(KvClient::new(vec![addr.clone()]).scan_local(addr).await?)
    }

    /// Asks every node to stop, and waits for all.
    ///
    /// # Errors
    ///
    /// One does not end as it should.
    pub async fn stop(&mut self) -> Result<()> {
        for node in self.nodes.values() {
            // One that has ended already is asked below how.
            let _ = node.terminate();
        }
        for (id, mut node) in std::mem::take(&mut self.nodes) {
            let exit = node.wait_exit(PATIENCE).await?;
            if exit != Exit::Code(0) {
                bail!("node {id} ended with {exit:?}: {}", node.stderr());
            }
        }
        Ok(())
    }
}
