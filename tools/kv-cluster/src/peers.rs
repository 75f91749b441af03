//! Node to node: openraft's requests over HTTP, with postcard bodies, on a listener of their own.
//!
//! Every request says which node it is meant for, and a node refuses what is meant for another: addresses are used again,
//! and an answer in another node's name could count as its vote or its acknowledgement.
//!
//! How long an answer may take is openraft's business (a heartbeat's interval for entries, see `RPCOption`); how long one
//! waits before asking a node again that does not answer is decided here.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use openraft::error::{
    Fatal, InstallSnapshotError, NetworkError, PayloadTooLarge, RPCError, RaftError, RemoteError, Timeout, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RPCTypes, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
    VoteResponse,
};
use openraft::{Raft, SnapshotMeta, StorageError, Vote};
use prometheus_client::metrics::counter::Counter;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::machine::Types;
use crate::types::{NodeAddr, NodeId};

/// The most that a body may have: what is read from the log at once, and the largest entry.
const BODY_BYTES_MAX: usize = 16 << 20;
/// How long a connection may take to be made.
const CONNECT_MS_MAX: u64 = 500;
/// How long a part of a snapshot may take that is not the last. The last one is answered when all of it is installed.
const CHUNK_MS_MAX: u64 = 10_000;
/// How long a node is left alone that does not answer: at first, and at the most.
const BACKOFF_MS: u64 = 20;
const BACKOFF_MS_MAX: u64 = 400;
/// How long nothing is told of a failure that comes again.
const TELL_AGAIN_MS: u64 = 10_000;

type RpcError<E = openraft::error::Infallible> = RPCError<NodeId, NodeAddr, RaftError<NodeId, E>>;

/// A part of a snapshot, with its bytes in one piece: openraft's own request has them one by one.
#[derive(Debug, Serialize, Deserialize)]
struct Chunk {
    vote: Vote<NodeId>,
    meta: SnapshotMeta<NodeId, NodeAddr>,
    offset: u64,
    done: bool,
    data: Bytes,
}

/// Makes the ways to other nodes. All ways share their connections.
#[derive(Clone, Debug)]
pub(crate) struct Peers {
    http: reqwest::Client,
    /// Nodes that are reached elsewhere than where the membership says.
    dial: Arc<HashMap<NodeId, String>>,
}

/// The way to one node.
#[derive(Debug)]
pub(crate) struct Peer {
    http: reqwest::Client,
    target: NodeId,
    addr: String,
    answers: AtomicBool,
}

impl Peers {
    pub(crate) fn new(dial: &[(NodeId, String)]) -> reqwest::Result<Peers> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .tcp_nodelay(true)
            .connect_timeout(Duration::from_millis(CONNECT_MS_MAX))
            .build()?;
        Ok(Peers { http, dial: Arc::new(dial.iter().cloned().collect()) })
    }
}

impl RaftNetworkFactory<Types> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, target: NodeId, node: &NodeAddr) -> Peer {
        let addr = self.dial.get(&target).unwrap_or(&node.peer).clone();
        Peer { http: self.http.clone(), target, addr, answers: AtomicBool::new(true) }
    }
}

impl Peer {
    async fn call<T, E>(
        &self,
        kind: RPCTypes,
        body: Result<Vec<u8>, postcard::Error>,
        limit: Duration,
    ) -> Result<T, RpcError<E>>
    where
        T: DeserializeOwned,
        E: std::error::Error + DeserializeOwned,
    {
        let body = body.map_err(|error| NetworkError::new(&error))?;
        let answered = self.send(path_of(kind), body, limit).await;
        self.tell(answered.as_ref().err());
        let answer = answered.map_err(|error| self.rpc_error(kind, limit, &error))?;
        let answer: Result<T, RaftError<NodeId, E>> =
            postcard::from_bytes(&answer).map_err(|error| NetworkError::new(&error))?;
        answer.map_err(|error| RemoteError::new(self.target, error).into())
    }

    async fn send(&self, path: &str, body: Vec<u8>, limit: Duration) -> reqwest::Result<Bytes> {
        let url = format!("http://{}{path}?to={}", self.addr, self.target);
        self.http.post(url).timeout(limit).body(body).send().await?.error_for_status()?.bytes().await
    }

    /// What is not answered in time may be asked again at once; what cannot be reached is left alone for a while.
    fn rpc_error<E: std::error::Error>(
        &self,
        action: RPCTypes,
        limit: Duration,
        error: &reqwest::Error,
    ) -> RpcError<E> {
        match error.is_timeout() && !error.is_connect() {
            true => Timeout { action, id: 0, target: self.target, timeout: limit }.into(),
            false => Unreachable::new(&io::Error::other(causes(error))).into(),
        }
    }

    /// Tells of a node that is lost, or found again, once.
    fn tell(&self, error: Option<&reqwest::Error>) {
        let answered = self.answers.swap(error.is_none(), Ordering::Relaxed);
        match error {
            Some(error) if answered => {
                tracing::info!(node = self.target, addr = self.addr, error = causes(error), "a node does not answer");
            }
            None if !answered => tracing::info!(node = self.target, addr = self.addr, "a node answers again"),
            _ => {}
        }
    }
}

fn path_of(kind: RPCTypes) -> &'static str {
    match kind {
        RPCTypes::AppendEntries => "/raft/append",
        RPCTypes::Vote => "/raft/vote",
        RPCTypes::InstallSnapshot => "/raft/snapshot",
    }
}

/// An error with what it stems from.
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

impl RaftNetwork<Types> for Peer {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<NodeId>, RpcError> {
        let entries = rpc.entries.len() as u64;
        // openraft itself gives up after the whole time, and would send the same again, which a slow link never gets across.
        let limit = if entries > 1 { option.soft_ttl() } else { option.hard_ttl() };
        let answered = self.call(RPCTypes::AppendEntries, postcard::to_stdvec(&rpc), limit).await;
        answered.map_err(|error| match error {
            RPCError::Timeout(_) if entries > 1 => PayloadTooLarge::new_entries_hint(entries / 2).into(),
            error => error,
        })
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<Types>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<NodeId>, RpcError<InstallSnapshotError>> {
        let limit = match rpc.done {
            true => option.hard_ttl(),
            false => option.hard_ttl().min(Duration::from_millis(CHUNK_MS_MAX)),
        };
        let InstallSnapshotRequest { vote, meta, offset, data, done } = rpc;
        let chunk = Chunk { vote, meta, offset, done, data: data.into() };
        self.call(RPCTypes::InstallSnapshot, postcard::to_stdvec(&chunk), limit).await
    }

    async fn vote(&mut self, rpc: VoteRequest<NodeId>, option: RPCOption) -> Result<VoteResponse<NodeId>, RpcError> {
        self.call(RPCTypes::Vote, postcard::to_stdvec(&rpc), option.hard_ttl()).await
    }

    fn backoff(&self) -> Backoff {
        let doubled = |ms: &u64| Some((ms * 2).min(BACKOFF_MS_MAX));
        Backoff::new(std::iter::successors(Some(BACKOFF_MS), doubled).map(Duration::from_millis))
    }
}

/// What a node answers to the others.
#[derive(Clone)]
struct Serving {
    id: NodeId,
    raft: Raft<Types>,
    snapshot_failures: Counter,
    /// When one of them was told last.
    told: Arc<Mutex<Option<Instant>>>,
}

#[derive(Deserialize)]
struct Target {
    to: NodeId,
}

/// The peers' listener.
pub(crate) fn router(id: NodeId, raft: Raft<Types>, snapshot_failures: Counter) -> Router {
    let serving = Serving { id, raft, snapshot_failures, told: Arc::default() };
    Router::new()
        .route("/raft/append", post(append))
        .route("/raft/vote", post(vote))
        .route("/raft/snapshot", post(snapshot))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(serving)
}

async fn append(State(serving): State<Serving>, Query(target): Query<Target>, body: Bytes) -> Response {
    match serving.understood(&target, &body) {
        Ok(rpc) => answer(serving.raft.append_entries(rpc).await),
        Err(refusal) => refusal.into_response(),
    }
}

async fn vote(State(serving): State<Serving>, Query(target): Query<Target>, body: Bytes) -> Response {
    match serving.understood(&target, &body) {
        Ok(rpc) if serving.may_have_forgotten(&rpc) => {
            let message =
                format!("node {} has nothing yet, and the cluster has: it votes when it has learnt", serving.id);
            (StatusCode::SERVICE_UNAVAILABLE, message).into_response()
        }
        Ok(rpc) => answer(serving.raft.vote(rpc).await),
        Err(refusal) => refusal.into_response(),
    }
}

async fn snapshot(State(serving): State<Serving>, Query(target): Query<Target>, body: Bytes) -> Response {
    match serving.understood(&target, &body) {
        Ok(Chunk { vote, meta, offset, done, data }) => {
            let rpc = InstallSnapshotRequest { vote, meta, offset, data: data.into(), done };
            match serving.raft.install_snapshot(rpc).await {
                Err(RaftError::Fatal(Fatal::StorageError(error))) => serving.cannot_take(&error),
                result => answer(result),
            }
        }
        Err(refusal) => refusal.into_response(),
    }
}

impl Serving {
    /// Whether this is asked for its vote, by one of a cluster that has written something, while it has nothing itself. It
    /// may be new, or a node that was wiped and started under its old number, against all advice: that one may have voted
    /// in this term already, and acknowledged what the one who asks does not have. Only the first election of a new cluster
    /// needs nodes that have nothing.
    fn may_have_forgotten(&self, rpc: &VoteRequest<NodeId>) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let has_nothing = metrics.last_log_index.is_none()
            && metrics.last_applied.is_none()
            && metrics.membership_config.log_id().is_none();
        has_nothing && rpc.last_log_id.is_some_and(|last| last.index > 0)
    }

    /// A part of a snapshot that could not be taken, which harms nothing but leaves this node behind.
    fn cannot_take(&self, error: &StorageError<NodeId>) -> Response {
        self.snapshot_failures.inc();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| told.elapsed() > Duration::from_millis(TELL_AGAIN_MS)) {
            *told = Some(Instant::now());
            tracing::error!(node = self.id, %error, "a snapshot of another node could not be taken: this one stays behind");
        }
        (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response()
    }

    fn understood<T: DeserializeOwned>(&self, target: &Target, body: &[u8]) -> Result<T, (StatusCode, String)> {
        if target.to != self.id {
            let message = format!("this is node {}, not {}", self.id, target.to);
            return Err((StatusCode::MISDIRECTED_REQUEST, message));
        }
        postcard::from_bytes(body).map_err(|error| (StatusCode::BAD_REQUEST, format!("it was not understood: {error}")))
    }
}

fn answer<T: Serialize, E: Serialize>(result: Result<T, RaftError<NodeId, E>>) -> Response {
    // What stopped this node is its own business, and may be of any shape: the others only learn that it did.
    let result = result.map_err(|error| match error {
        RaftError::Fatal(_) => RaftError::Fatal(Fatal::Stopped),
        error => error,
    });
    match postcard::to_stdvec(&result) {
        Ok(body) => body.into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use openraft::{CommittedLeaderId, Entry, LogId};
    use ringwal::raft::{RaftConfig, RaftStore};

    use super::*;
    use crate::machine::JoinedKv;

    const TTL: Duration = Duration::from_millis(100);

    fn entry(index: u64) -> Entry<Types> {
        Entry { log_id: LogId::new(CommittedLeaderId::new(1, 1), index), payload: openraft::EntryPayload::Blank }
    }

    #[tokio::test]
    async fn entries_that_a_slow_link_does_not_get_across_are_sent_again_in_fewer() {
        // Connections are made, and nothing is answered.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = NodeAddr::new(silent.local_addr().unwrap().to_string(), "");
        let mut peer = Peers::new(&[]).unwrap().new_client(2, &addr).await;
        let mut send = async |count: u64| {
            let entries = (1..=count).map(entry).collect();
            let rpc = AppendEntriesRequest { vote: Vote::new(1, 1), prev_log_id: None, entries, leader_commit: None };
            // As openraft does: it gives up by itself when the time is over.
            tokio::time::timeout(TTL, peer.append_entries(rpc, RPCOption::new(TTL))).await
        };
        match send(9).await.expect("openraft's own limit came first").unwrap_err() {
            RPCError::PayloadTooLarge(hint) => assert_eq!(hint.entries_hint(), 4),
            other => panic!("{other:?}"),
        }
        for count in [0, 1] {
            // One cannot be fewer: it is for openraft to go on.
            assert!(!matches!(send(count).await, Ok(Err(RPCError::PayloadTooLarge(_)) | Ok(_))));
        }
    }

    /// A node that has nothing, as others see it.
    async fn pristine(dir: &std::path::Path) -> Serving {
        let log = ringwal::Config::default().segment_bytes(4 << 20);
        let config = RaftConfig::default().log(log);
        let RaftStore { log, machine, .. } =
            ringwal::raft::open::<Types, _>(dir, 2, JoinedKv::default(), config).unwrap();
        let raft = Raft::new(2, Arc::default(), Peers::new(&[]).unwrap(), log, machine).await.unwrap();
        Serving { id: 2, raft, snapshot_failures: Counter::default(), told: Arc::default() }
    }

    async fn vote_status(serving: &Serving, last_index: Option<u64>) -> StatusCode {
        let last = last_index.map(|index| LogId::new(CommittedLeaderId::new(1, 1), index));
        let rpc = VoteRequest { vote: Vote::new(5, 1), last_log_id: last };
        let body = postcard::to_stdvec(&rpc).unwrap().into();
        vote(State(serving.clone()), Query(Target { to: 2 }), body).await.status()
    }

    #[tokio::test]
    async fn a_node_that_may_have_lost_its_directory_gives_its_vote_to_a_new_cluster_only() {
        let dir = tempfile::tempdir().unwrap();
        let serving = pristine(dir.path()).await;
        assert_eq!(vote_status(&serving, Some(7)).await, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(vote_status(&serving, Some(1)).await, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(vote_status(&serving, Some(0)).await, StatusCode::OK);
        let rpc: AppendEntriesRequest<Types> = AppendEntriesRequest {
            vote: Vote::new_committed(6, 1),
            prev_log_id: None,
            entries: vec![entry(0)],
            leader_commit: None,
        };
        let body = postcard::to_stdvec(&rpc).unwrap().into();
        assert_eq!(append(State(serving.clone()), Query(Target { to: 2 }), body).await.status(), StatusCode::OK);
        serving.raft.wait(None).log_index_at_least(Some(0), "it has learnt something").await.unwrap();
        assert_eq!(vote_status(&serving, Some(7)).await, StatusCode::OK);
        serving.raft.shutdown().await.unwrap();
    }

    #[tokio::test]
    async fn a_snapshot_that_cannot_be_taken_is_counted_and_the_node_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let serving = pristine(dir.path()).await;
        let last_log_id = Some(LogId::new(CommittedLeaderId::new(1, 1), 9));
        let meta = SnapshotMeta { last_log_id, last_membership: Default::default(), snapshot_id: "no such".into() };
        let chunk =
            Chunk { vote: Vote::new_committed(3, 1), meta, offset: 0, done: true, data: Bytes::from_static(b"?") };
        let body = postcard::to_stdvec(&chunk).unwrap().into();
        let answered = snapshot(State(serving.clone()), Query(Target { to: 2 }), body).await;
        assert_eq!(answered.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(serving.snapshot_failures.get(), 1);
        assert!(serving.told.lock().unwrap().is_some());
        // It goes on, and does not say that it stopped.
        assert_eq!(vote_status(&serving, Some(0)).await, StatusCode::OK);
        serving.raft.shutdown().await.unwrap();
    }
}
