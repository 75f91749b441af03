//! One node, from its directory to its listeners, and how it ends.
//!
//! The order of a start: the directory (an error there says what to do with it), then the listeners, then openraft, then
//! the ready line. The order of an end that was asked for: clients' requests are finished while the others still answer,
//! then openraft stops, then the log is closed, with everything it accepted on the disk.

use std::future::IntoFuture;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use axum::Router;
use axum::serve::ListenerExt;
use openraft::error::Fatal;
use openraft::{Config as RaftOptions, Raft, SnapshotPolicy};
use ringwal::raft::{RaftConfig, RaftLog, RaftStore};
use ringwal::{Config, IoChoice};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::args::{IoMode, NodeArgs};
use crate::asked::Asked;
use crate::http::{self, Node};
use crate::leading::Leading;
use crate::machine::{JoinedKv, Types};
use crate::metrics::Metrics;
use crate::peers::{self, Peers};
use crate::processes::ready_line;
use crate::reads::{Reads, Resumed};
use crate::room::Room;
use crate::state::LocalState;
use crate::types::{NodeAddr, NodeId};
use crate::writes::Writes;

/// How long an end that was asked for waits for requests to be finished, beyond the time that each may take.
const DRAIN_MS: u64 = 500;
/// How long the last part of a snapshot may take, with its installation.
const INSTALL_MS_MAX: u64 = 120_000;
/// Entries in one request; the log gives fewer where they are large.
const ENTRIES_MAX: u64 = 1024;

/// Runs a node until it is asked to stop, or cannot go on.
///
/// # Errors
///
/// It cannot be started, or its store failed: see `failure` for what that means for a script.
pub async fn run(args: NodeArgs) -> Result<()> {
    if let Some(parent) = args.with_parent {
        end_with(parent)?;
    }
    if args.plant.is_some() {
        eprintln!("ringwal-cluster: WARNING: a fault is built in (--plant): THIS NODE LOSES ACKNOWLEDGED WRITES");
    }
    let options = Arc::new(raft_options(&args)?);
    let store = open(&args).await?;
    let peer = listen("peers", &args.peer_addr).await?;
    let client = listen("clients", &args.client_addr).await?;
    let addr = NodeAddr::new(peer.local_addr()?.to_string(), client.local_addr()?.to_string());
    let node = start(&args, options, store).await?;
    let running = Running::new(node, client, peer);
    let mut asked = Asked::listen()?;
    // Who does not listen need not be told.
    let _ = writeln!(io::stdout(), "{}", ready_line(args.id, &addr));
    let cause = tokio::select! {
        () = asked.wait() => None,
        fatal = core_stopped(running.node.raft.metrics()) => Some(fatal),
    };
    running.end(cause).await
}

/// Starts openraft on what the directory holds.
async fn start(args: &NodeArgs, options: Arc<RaftOptions>, store: RaftStore<Types, JoinedKv>) -> Result<Arc<Node>> {
    let RaftStore { log, machine, .. } = store;
    let limit = Duration::from_millis(args.request_timeout_ms);
    let state = LocalState::new(machine.handle(), limit)?;
    let peers = Peers::new(&args.dial).context("cannot set up the way to the other nodes")?;
    let resumed = Resumed::of(args.id, &log).await.map_err(|error| told(&error.into(), &log))?;
    // It applies again what was committed: what the log cannot read of that is found here.
    let raft = Raft::new(args.id, options, peers, log.clone(), machine).await;
    let raft = raft.map_err(|error| told(&error, &log))?;
    if let Some(resumed) = resumed {
        // Of a core that has stopped, its metrics tell.
        let _ = resumed.go_on(&raft).await;
    }
    let leading = Leading::new(raft.metrics());
    Ok(Arc::new(Node {
        id: args.id,
        writes: Writes::start(raft.clone(), leading.clone(), limit, log.entry_bytes_max(), args.plant),
        reads: Reads::start(raft.clone(), leading.clone(), resumed, limit),
        metrics: Metrics::new(),
        room: Room::new(args.dir.clone(), args.reserve),
        raft,
        log,
        state,
        leading,
        limit,
        space: http::space(),
    }))
}

/// A node and its listeners.
struct Running {
    node: Arc<Node>,
    stop: watch::Sender<Stop>,
    clients: JoinHandle<io::Result<()>>,
    others: JoinHandle<io::Result<()>>,
}

impl Running {
    fn new(node: Arc<Node>, client: TcpListener, peer: TcpListener) -> Running {
        let (stop, stopped) = watch::channel(Stop::No);
        let clients = serve(client, http::router(node.clone()), stopped.clone(), Stop::Clients);
        let failures = node.metrics.snapshot_receive_failures.clone();
        let others = serve(peer, peers::router(node.id, node.raft.clone(), failures), stopped, Stop::All);
        Running { node, stop, clients, others }
    }

    /// Ends in order; the error of one that could not go on.
    async fn end(self, cause: Option<Fatal<NodeId>>) -> Result<()> {
        let Running { node, stop, clients, others } = self;
        let drain = Duration::from_millis(DRAIN_MS);
        stop.send_replace(Stop::Clients);
        // What takes longer than a request may is not waited for.
        let _ = timeout(node.limit + drain, clients).await;
        let shut = node.raft.shutdown().await;
        stop.send_replace(Stop::All);
        let _ = timeout(drain, others).await;
        if let Some(fatal) = cause {
            return Err(told(&fatal, &node.log));
        }
        shut.map_err(|error| anyhow!("the node did not stop as it should: {error}"))?;
        close(node.log.clone()).await
    }
}

/// Lets the system end this process with the one that started it, which may have ended already.
fn end_with(parent: u32) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot end with the process that started this")?;
    let is_there = getppid().is_some_and(|pid| pid.as_raw_nonzero().get().unsigned_abs() == parent);
    ensure!(is_there, "the process {parent} that started this one has ended");
    Ok(())
}

/// How far an end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stop {
    No,
    /// Clients are no longer let in.
    Clients,
    /// Nobody is.
    All,
}

fn raft_options(args: &NodeArgs) -> Result<RaftOptions> {
    let options = RaftOptions {
        cluster_name: "ringwal".into(),
        heartbeat_interval: args.heartbeat_ms,
        election_timeout_min: args.election_min_ms,
        election_timeout_max: args.election_max_ms,
        install_snapshot_timeout: INSTALL_MS_MAX,
        max_payload_entries: ENTRIES_MAX,
        replication_lag_threshold: args.snapshot_every,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(args.snapshot_every),
        snapshot_max_chunk_size: args.snapshot_chunk,
        max_in_snapshot_log_to_keep: args.keep_entries,
        ..RaftOptions::default()
    };
    options.validate().context("--heartbeat-ms must be below --election-min-ms, and that below --election-max-ms")
}

/// Opens the directory, on a thread that may wait for the disk.
async fn open(args: &NodeArgs) -> Result<RaftStore<Types, JoinedKv>> {
    let io = match args.io_mode {
        IoMode::Auto => IoChoice::Auto,
        IoMode::Uring => IoChoice::Uring,
        IoMode::Syscall => IoChoice::Syscall,
    };
    let log = Config::default().segment_bytes(args.segment_size).io(io);
    let (dir, id) = (args.dir.clone(), args.id);
    let open = move || ringwal::raft::open(dir, id, JoinedKv::default(), RaftConfig::default().log(log));
    let opened = tokio::task::spawn_blocking(open).await.context("the thread that opens the directory ended")?;
    opened.with_context(|| format!("node {id} cannot start"))
}

async fn listen(whom: &str, addr: &str) -> Result<TcpListener> {
    TcpListener::bind(addr).await.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => anyhow!(
            "cannot listen for {whom} at {addr}: another process listens there; end it, or give another address"
        ),
        io::ErrorKind::AddrNotAvailable => {
            anyhow!("cannot listen for {whom} at {addr}: it is no address of this machine")
        }
        _ => anyhow!("cannot listen for {whom} at {addr}: {error}"),
    })
}

fn serve(
    listener: TcpListener,
    router: Router,
    mut stopped: watch::Receiver<Stop>,
    at: Stop,
) -> JoinHandle<io::Result<()>> {
    // Answers are small, and each is waited for.
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
    let asked = async move {
        // Whoever could ask is gone: the node is ending.
        let _ = stopped.wait_for(|stop| *stop >= at).await;
    };
    tokio::spawn(axum::serve(listener, router).with_graceful_shutdown(asked).into_future())
}

/// Ends when openraft's core does, which it does for any failure of the store.
async fn core_stopped(mut metrics: watch::Receiver<crate::leading::Metrics>) -> Fatal<NodeId> {
    match metrics.wait_for(|metrics| metrics.running_state.is_err()).await {
        Ok(metrics) => metrics.running_state.clone().err().unwrap_or(Fatal::Stopped),
        Err(_) => Fatal::Stopped,
    }
}

/// Why the node could not go on: openraft keeps errors as text, the log knows what kind its own was.
fn told(fatal: &Fatal<NodeId>, log: &RaftLog<Types>) -> anyhow::Error {
    let stopped = format!("the node stopped: {fatal}");
    if let Some(failure) = log.failure() {
        return anyhow::Error::new(Shared(failure)).context(stopped);
    }
    match stopped.contains("os error 28") {
        true => anyhow::Error::new(io::Error::from(io::ErrorKind::StorageFull)).context(stopped),
        false => anyhow::Error::msg(stopped),
    }
}

/// An error that others look at too.
#[derive(Debug)]
struct Shared(Arc<ringwal::raft::RaftError>);

impl std::fmt::Display for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Shared {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.0)
    }
}

async fn close(log: RaftLog<Types>) -> Result<()> {
    let closed = tokio::task::spawn_blocking(move || log.close()).await;
    closed.context("the thread that closes the log ended")?.context("the log was not closed as it should")
}
