//! The cluster that is tortured: processes, the links between them, and the disk of one that can be filled.
//!
//! A place in the cluster has addresses and a directory of its own; the node in it gets a new number each time that it
//! comes back wiped. Every process knows from its start how the numbers to come are reached, always through the links.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::disk::SmallDisk;
use super::proxy::{Harm, Link, Weather};
use super::schedule::{Links, Whom};
use super::watcher::Sight;
use super::{Broken, report};
use crate::api::ClusterStatus;
use crate::args::{IoMode, Plant, SEGMENT_BYTES_MIN};
use crate::client::KvClient;
use crate::processes::{Exit, NodeArgs, NodeProcess, free_addrs};
use crate::types::{NodeAddr, NodeId};

/// Far longer than anything takes on a machine that only is slow: after it, something hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// What a node exits with when its disk is full.
const EXIT_FULL: Exit = Exit::Code(6);

/// How the cluster is set up.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) nodes: usize,
    pub(crate) dir: PathBuf,
    pub(crate) plant: Option<Plant>,
    /// Whether one node gets a disk that can be filled.
    pub(crate) has_small_disk: bool,
    /// How often a node may come back under a new number.
    pub(crate) wipes: usize,
}

/// The nodes and the links between them. All processes end with this.
#[derive(Debug)]
pub(crate) struct Cluster {
    settings: Settings,
    places: Vec<Place>,
    links: BTreeMap<(usize, usize), Link>,
    pub(crate) watcher: KvClient,
    pub(crate) admin: KvClient,
    pub(crate) harm: Arc<Harm>,
    /// What was seen whenever somebody looked.
    pub(crate) sight: Sight,
    /// Nodes that stopped because their disk was full.
    pub(crate) full_exits: u64,
    pub(crate) restarts: u64,
}

#[derive(Debug)]
struct Place {
    id: NodeId,
    addr: NodeAddr,
    dir: PathBuf,
    disk: Option<SmallDisk>,
    is_full: bool,
    process: Option<NodeProcess>,
    is_paused: bool,
}

impl Cluster {
    /// Starts all nodes and makes them a cluster.
    pub(crate) async fn start(settings: Settings) -> Result<Cluster> {
        let addrs = free_addrs(2 * settings.nodes)?;
        let places: Vec<Place> =
            addrs.chunks(2).enumerate().map(|(at, addrs)| Place::new(at, addrs, &settings)).collect();
        let harm = Arc::<Harm>::default();
        let mut links = BTreeMap::new();
        for from in 0..places.len() {
            for to in (0..places.len()).filter(|to| *to != from) {
                links.insert((from, to), Link::open(places[to].addr.peer.clone(), harm.clone()).await?);
            }
        }
        let clients: Vec<String> = places.iter().map(|place| place.addr.client.clone()).collect();
        let watcher = KvClient::new(clients.clone()).timeout(Duration::from_millis(1000));
        let admin = KvClient::new(clients).timeout(Duration::from_secs(10));
        let (sight, full_exits, restarts) = (Sight::default(), 0, 0);
        let mut cluster = Cluster { settings, places, links, watcher, admin, harm, sight, full_exits, restarts };
        cluster.start_all().await?;
        let nodes: BTreeMap<NodeId, NodeAddr> =
            cluster.places.iter().map(|place| (place.id, place.addr.clone())).collect();
        cluster.admin.init(&cluster.places[0].addr.client, &nodes).await.context("the cluster cannot be made")?;
        Ok(cluster)
    }

    /// How many nodes it has.
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// The addresses for clients.
    pub(crate) fn clients(&self) -> Vec<String> {
        self.places.iter().map(|place| place.addr.client.clone()).collect()
    }

    /// The number of the node at a place.
    pub(crate) fn id(&self, at: usize) -> NodeId {
        self.places[at].id
    }

    /// The addresses of a place.
    pub(crate) fn addr(&self, at: usize) -> NodeAddr {
        self.places[at].addr.clone()
    }

    /// The numbers of all nodes, without that at this place.
    pub(crate) fn ids_but(&self, without: Option<usize>) -> BTreeSet<NodeId> {
        let ids = self.places.iter().enumerate().filter(|(at, _)| Some(*at) != without);
        ids.map(|(_, place)| place.id).collect()
    }

    /// The place whose disk can be filled.
    pub(crate) fn small_disk(&self) -> Option<usize> {
        self.places.iter().position(|place| place.disk.is_some())
    }

    /// The cluster as the node at a place sees it, if it answers.
    pub(crate) async fn status(&self, at: usize) -> Option<ClusterStatus> {
        let place = &self.places[at];
        if place.process.is_none() || place.is_paused {
            return None;
        }
        self.watcher.cluster_status(&place.addr.client).await.inspect(|status| self.sight.note(status)).ok()
    }

    /// What all nodes see, in turn.
    pub(crate) async fn statuses(&self) -> Vec<Option<ClusterStatus>> {
        let mut all = Vec::new();
        for at in 0..self.places.len() {
            all.push(self.status(at).await);
        }
        all
    }

    /// Where the leader is: of those that believe to lead, the one of the highest term.
    pub(crate) async fn leader(&self) -> Option<usize> {
        let statuses = self.statuses().await;
        let leads = statuses.iter().enumerate().filter_map(|(at, status)| Some((status.as_ref()?, at)));
        leads.filter(|(status, _)| status.leads()).max_by_key(|(status, _)| status.term).map(|(_, at)| at)
    }

    /// The places that are meant. Where nobody leads, any node is taken for the leader.
    pub(crate) async fn who(&self, whom: Whom) -> Vec<usize> {
        self.who_and_leader(whom).await.0
    }

    /// The places that are meant, and that of the leader if one was seen.
    pub(crate) async fn who_and_leader(&self, whom: Whom) -> (Vec<usize>, Option<usize>) {
        let seen = self.leader().await;
        (whom.places(self.places.len(), seen.unwrap_or_default()), seen)
    }

    /// `kill -9`; whether there was something to kill.
    pub(crate) async fn kill(&mut self, at: usize) -> Result<bool> {
        let Some(mut process) = self.places[at].process.take() else { return Ok(false) };
        process.kill9().await?;
        self.places[at].is_paused = false;
        self.keep_words(at, process).await?;
        Ok(true)
    }

    /// SIGTERM, and the wait for the end, with which nothing may be wrong; whether there was something to stop.
    pub(crate) async fn terminate(&mut self, at: usize) -> Result<bool> {
        let place = &mut self.places[at];
        // One that is paused would never hear of it.
        if place.is_paused {
            return self.kill(at).await;
        }
        let Some(mut process) = place.process.take() else { return Ok(false) };
        process.terminate()?;
        let exit = process.wait_exit(PATIENCE).await;
        let words = self.keep_words(at, process).await?;
        match exit {
            Ok(Exit::Code(0)) => Ok(true),
            Ok(EXIT_FULL) if self.places[at].is_full => Ok(true),
            exit => {
                let id = self.places[at].id;
                Err(Broken(format!("node {id} was asked to stop and ended with {exit:?}: {}", tail(&words))).into())
            }
        }
    }

    /// SIGSTOP; whether there was something to stop.
    pub(crate) fn pause(&mut self, at: usize) -> bool {
        let place = &mut self.places[at];
        let is_paused = place.process.as_ref().is_some_and(|process| process.pause().is_ok());
        place.is_paused |= is_paused;
        is_paused
    }

    /// A weather on links of the node at a place.
    pub(crate) fn around(&self, at: usize, which: Links, weather: Weather) {
        for ((from, to), link) in &self.links {
            let is_out = *from == at && which != Links::In;
            let is_in = *to == at && which != Links::Out;
            if is_out || is_in {
                link.set(weather);
            }
        }
    }

    /// A weather on all links between these places and the others.
    pub(crate) fn split(&self, part: &BTreeSet<usize>, weather: Weather) {
        for ((from, to), link) in &self.links {
            if part.contains(from) != part.contains(to) {
                link.set(weather);
            }
        }
    }

    /// Fills the disk of the node at a place, which has one that can be.
    pub(crate) fn fill(&mut self, at: usize) -> Result<()> {
        let place = &mut self.places[at];
        let disk = place.disk.as_ref().context("this node's disk cannot be filled")?;
        place.is_full = true;
        Ok(disk.fill()?)
    }

    /// Starts the node at a place once while its disk is full: it may run or refuse.
    pub(crate) async fn restart_full(&mut self, at: usize) -> Result<()> {
        self.kill(at).await?;
        self.spawn(at)?;
        self.wait_ready(at).await
    }

    /// Takes the directory of a node that was killed, and gives its place a new number.
    pub(crate) fn wipe(&mut self, at: usize) -> Result<()> {
        let nodes = self.places.len() as NodeId;
        let place = &mut self.places[at];
        fs::remove_dir_all(&place.dir)?;
        place.id += nodes;
        Ok(())
    }

    /// Starts every node that is not running, and waits until it listens.
    pub(crate) async fn start_all(&mut self) -> Result<()> {
        let down: Vec<usize> = (0..self.places.len()).filter(|at| self.places[*at].process.is_none()).collect();
        for at in &down {
            self.spawn(*at)?;
        }
        for at in down {
            self.wait_ready(at).await?;
        }
        Ok(())
    }

    /// Makes everything well again: links, paused and dead nodes, the full disk.
    pub(crate) async fn restore(&mut self) -> Result<()> {
        for link in self.links.values() {
            link.set(Weather::Fair);
        }
        for place in &mut self.places {
            if let Some(disk) = place.disk.as_ref().filter(|_| place.is_full) {
                disk.free()?;
            }
            if std::mem::take(&mut place.is_paused)
                && let Some(process) = &place.process
            {
                process.resume()?;
            }
        }
        self.watch().await?;
        // Only now: a node whose disk was full may have stopped for that until this moment.
        self.start_all().await
    }

    /// Notices nodes that ended by themselves: on a full disk they may, anywhere else that is a fault of theirs.
    pub(crate) async fn watch(&mut self) -> Result<()> {
        for at in 0..self.places.len() {
            let Some(process) = &mut self.places[at].process else { continue };
            let Some(exit) = process.try_exit()? else { continue };
            self.ended(at, exit).await?;
        }
        Ok(())
    }

    /// Waits until somebody leads everybody who shall vote, and answers.
    pub(crate) async fn settle(&mut self) -> Result<()> {
        let began = Instant::now();
        let expected = self.ids_but(None);
        loop {
            self.watch().await?;
            self.start_all().await?;
            let leader = self.leader().await;
            let status = match leader {
                Some(at) => self.status(at).await,
                None => None,
            };
            if status.is_some_and(|status| status.voters() == expected) && self.watcher.get(b"settled").await.is_ok() {
                // The disk was full until now, if it was; from here on it is not why a node ends.
                self.places.iter_mut().for_each(|place| place.is_full = false);
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                let seen = self.statuses().await;
                return Err(Broken(format!("the cluster did not recover in {PATIENCE:?}: {seen:#?}")).into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until all nodes have applied the same, all of it.
    pub(crate) async fn level(&mut self) -> Result<()> {
        let began = Instant::now();
        loop {
            self.watch().await?;
            let statuses = self.statuses().await;
            let applied: BTreeSet<_> =
                statuses.iter().map(|status| status.as_ref().and_then(|status| status.applied)).collect();
            let is_level = statuses
                .iter()
                .flatten()
                .all(|status| status.applied.map(|place| place.index) == status.last_log_index);
            if applied.len() == 1 && !applied.contains(&None) && is_level {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                return Err(Broken(format!("not all nodes applied everything in {PATIENCE:?}: {statuses:#?}")).into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Asks all nodes to stop, one after another.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        for at in 0..self.places.len() {
            self.terminate(at).await?;
        }
        Ok(())
    }

    /// Ends all processes, whatever they are doing.
    pub(crate) async fn kill_all(&mut self) {
        for at in 0..self.places.len() {
            if let Err(error) = self.kill(at).await {
                eprintln!("node {} could not be killed: {error:#}", self.places[at].id);
            }
        }
    }

    /// Copies what lies on a disk that is about to go to the directory of the run.
    pub(crate) fn keep_disk(&self) {
        for place in self.places.iter().filter(|place| place.disk.is_some()) {
            let kept = self.settings.dir.join(format!("node-{}-kept", place.id));
            if let Err(error) = copy(&place.dir, &kept) {
                eprintln!("{} cannot be kept: {error}", place.dir.display());
            }
        }
    }

    fn spawn(&mut self, at: usize) -> Result<()> {
        let args = self.node_args(at);
        self.restarts += 1;
        self.places[at].process = Some(NodeProcess::spawn(&args)?);
        Ok(())
    }

    async fn wait_ready(&mut self, at: usize) -> Result<()> {
        let Some(process) = &mut self.places[at].process else { return Ok(()) };
        let Err(error) = process.wait_ready(PATIENCE).await else { return Ok(()) };
        match process.try_exit()? {
            Some(exit) => self.ended(at, exit).await,
            None => Err(error),
        }
    }

    async fn ended(&mut self, at: usize, exit: Exit) -> Result<()> {
        let Some(process) = self.places[at].process.take() else { return Ok(()) };
        let words = self.keep_words(at, process).await?;
        let place = &self.places[at];
        if place.is_full && exit == EXIT_FULL {
            self.full_exits += 1;
            return Ok(());
        }
        Err(Broken(format!("node {} ended by itself with {exit:?}: {}", place.id, tail(&words))).into())
    }

    /// Writes what a process that has ended told to the node's own file.
    async fn keep_words(&self, at: usize, mut process: NodeProcess) -> Result<String> {
        let exit = process.wait_exit(PATIENCE).await?;
        let words = process.stderr();
        let path = self.settings.dir.join(format!("node-{}.log", self.places[at].id));
        let mut log = File::options().create(true).append(true).open(path)?;
        writeln!(log, "{words}-- ended with {exit:?}")?;
        Ok(words)
    }

    fn node_args(&self, at: usize) -> NodeArgs {
        let place = &self.places[at];
        let mut args = NodeArgs::new(place.id, &place.dir, &place.addr.peer, &place.addr.client);
        let nodes = self.places.len();
        for to in (0..nodes).filter(|to| *to != at) {
            let addr = self.links[&(at, to)].addr().to_string();
            let numbers = (0..=self.settings.wipes).map(|life| first_id(to) + (life * nodes) as NodeId);
            args.dial.extend(numbers.map(|id| (id, addr.clone())));
        }
        // A follower that was away for a moment finds the entries that it misses gone, and gets a snapshot.
        (args.snapshot_every, args.keep_entries) = (100, 5);
        (args.heartbeat_ms, args.election_min_ms, args.election_max_ms) = (100, 400, 800);
        args.request_timeout_ms = 1500;
        args.segment_size = SEGMENT_BYTES_MIN;
        // Even a small snapshot goes in many pieces, and can be interrupted between any two.
        args.snapshot_chunk = 4 << 10;
        // Both ways to write, on all nodes, in turn with the lives of processes.
        args.io_mode = if self.restarts % 4 == 3 { IoMode::Syscall } else { IoMode::Auto };
        args.plant = self.settings.plant;
        args
    }
}

impl Place {
    fn new(at: usize, addrs: &[String], settings: &Settings) -> Place {
        let addr = NodeAddr::new(addrs[0].clone(), addrs[1].clone());
        let name = format!("place-{at}");
        let disk =
            (settings.has_small_disk && at + 1 == settings.nodes).then(|| small_disk(&settings.dir.join("disk")));
        let disk = disk.flatten();
        let dir = disk.as_ref().map_or_else(|| settings.dir.join(name), SmallDisk::dir);
        Place { id: first_id(at), addr, dir, disk, is_full: false, process: None, is_paused: false }
    }
}

fn first_id(at: usize) -> NodeId {
    at as NodeId + 1
}

fn small_disk(at: &Path) -> Option<SmallDisk> {
    let mounted = SmallDisk::mount(at);
    mounted
        .inspect_err(|error| report::skip(&format!("no disk can be filled, as none can be mounted here ({error})")))
        .ok()
}

/// The last lines of what a node told.
fn tail(words: &str) -> String {
    const LINES: usize = 12;
    let lines: Vec<&str> = words.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy(&entry.path(), &target)?,
            false => drop(fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}
