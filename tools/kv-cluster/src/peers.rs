//! Node to node: openraft's requests over HTTP, with postcard bodies, on a listener of their own.
//!
//! Every request says which node it is meant for, and a node refuses what is meant for another: addresses are used again,
//! and an answer in another node's name could count as its vote or its acknowledgement.
//!
//! How long an answer may take is openraft's business (a heartbeat's interval for entries, see `RPCOption`); how long one
//! waits before asking a node again that does not answer is decided here.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use openraft::error::{
    Fatal, InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Timeout, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RPCTypes, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
    VoteResponse,
};
use openraft::{Raft, SnapshotMeta, Vote};
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
        self.call(RPCTypes::AppendEntries, postcard::to_stdvec(&rpc), option.hard_ttl()).await
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
}

#[derive(Deserialize)]
struct Target {
    to: NodeId,
}

/// The peers' listener.
pub(crate) fn router(id: NodeId, raft: Raft<Types>) -> Router {
    Router::new()
        .route("/raft/append", post(append))
        .route("/raft/vote", post(vote))
        .route("/raft/snapshot", post(snapshot))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(Serving { id, raft })
}

async fn append(State(serving): State<Serving>, Query(target): Query<Target>, body: Bytes) -> Response {
    match serving.understood(&target, &body) {
        Ok(rpc) => answer(serving.raft.append_entries(rpc).await),
        Err(refusal) => refusal.into_response(),
    }
}

async fn vote(State(serving): State<Serving>, Query(target): Query<Target>, body: Bytes) -> Response {
    match serving.understood(&target, &body) {
        Ok(rpc) => answer(serving.raft.vote(rpc).await),
        Err(refusal) => refusal.into_response(),
    }
}

async fn snapshot(State(serving): State<Serving>, Query(target): Query<Target>, body: Bytes) -> Response {
    match serving.understood(&target, &body) {
        Ok(Chunk { vote, meta, offset, done, data }) => {
            let rpc = InstallSnapshotRequest { vote, meta, offset, data: data.into(), done };
            answer(serving.raft.install_snapshot(rpc).await)
        }
        Err(refusal) => refusal.into_response(),
    }
}

impl Serving {
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
