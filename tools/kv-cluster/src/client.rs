//! A client of the cluster: follows the leader, tries the next node where the last one certainly did nothing, and never
//! repeats a write of which it does not know what became.
//!
//! Reads change nothing, so they are repeated after any failure, until the client's time is over.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use reqwest::header::LOCATION;
use reqwest::{Method, StatusCode, redirect};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::{
    Blob, CasAnswer, CasRequest, ClusterStatus, DeleteAnswer, ErrorAnswer, InitRequest, LearnerRequest, ScanAnswer,
    VotersRequest,
};
use crate::types::{NodeAddr, NodeId};

pub use crate::api::Outcome;

/// What stays as it is in a path and a query.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// How long one connection may take to be made.
const CONNECT_MS_MAX: u64 = 1000;
/// How long a client waits before it asks again where nobody leads.
const PAUSE_MS: u64 = 25;

/// Why a request came to nothing, and what may have become of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientError {
    /// What it means for a write.
    pub outcome: Outcome,
    /// The node's error code, such as `no_leader`; `transport` where no answer came.
    pub code: String,
    /// The status of the answer, if one came.
    pub status: Option<u16>,
    /// What was told.
    pub message: String,
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = match self.outcome {
            Outcome::NotApplied => "not applied",
            Outcome::Unknown => "may be applied or not",
        };
        write!(f, "{}: {} ({outcome})", self.code, self.message)
    }
}

impl std::error::Error for ClientError {}

/// A client that knows some nodes of a cluster. Share it: it holds connections, and remembers who leads.
#[derive(Debug)]
pub struct KvClient {
    http: reqwest::Client,
    addrs: Vec<String>,
    /// Whom to ask first: the leader, as far as it is known.
    leader: Mutex<Option<String>>,
    /// Whom to ask where no leader is known, in turn.
    next: AtomicUsize,
    timeout: Duration,
}

/// One request, as it can be sent again.
struct Request {
    method: Method,
    path: String,
    body: Bytes,
    is_json: bool,
    is_read: bool,
}

/// An answer that is a success, or a refusal that the caller understands.
struct Answer {
    status: StatusCode,
    body: Bytes,
}

/// What came of one attempt.
enum Attempt {
    Answered(Answer),
    /// Somebody else is to be asked.
    Elsewhere {
        addr: String,
        error: ClientError,
    },
    Failed(ClientError),
}

impl KvClient {
    /// A client that may ask these nodes, each as `host:port` of its client address. Nothing is connected yet.
    ///
    /// # Panics
    ///
    /// There is no address, or the HTTP client cannot be set up (which takes no network).
    pub fn new(addrs: Vec<String>) -> KvClient {
        assert!(!addrs.is_empty(), "a client needs an address");
        let http = reqwest::Client::builder()
            .redirect(redirect::Policy::none())
            .no_proxy()
            .tcp_nodelay(true)
            .connect_timeout(Duration::from_millis(CONNECT_MS_MAX))
            .build()
            .expect("an HTTP client without TLS needs nothing from the system");
        let (leader, next) = (Mutex::default(), AtomicUsize::default());
        KvClient { http, addrs, leader, next, timeout: Duration::from_secs(5) }
    }

    /// How long one operation may take in all, with everything that is tried again: default five seconds.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> KvClient {
        self.timeout = timeout;
        self
    }

    /// The nodes that may be asked.
    pub fn addrs(&self) -> &[String] {
        &self.addrs
    }

    /// The value of a key, no older than this call: linearizable.
    ///
    /// # Errors
    ///
    /// Nobody could answer in time.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ClientError> {
        value(self.anywhere(&Request::read(key_path("kv", key))).await?)
    }

    /// The value of a key as one node has it, which may be behind.
    ///
    /// # Errors
    ///
    /// The node did not answer in time.
    pub async fn get_local(&self, addr: &str, key: &[u8]) -> Result<Option<Vec<u8>>, ClientError> {
        value(self.at(addr, &Request::read(local_path(key))).await?)
    }

    /// Gives a key a value.
    ///
    /// # Errors
    ///
    /// With [`Outcome::Unknown`] the value may be there, or may come to be there at any time until it is overwritten.
    pub async fn put(&self, key: &[u8], value: &[u8]) -> Result<(), ClientError> {
        self.anywhere(&Request::write(Method::PUT, key_path("kv", key), value)).await.map(drop)
    }

    /// Removes a key; whether it was there.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    pub async fn delete(&self, key: &[u8]) -> Result<bool, ClientError> {
        let answer = self.anywhere(&Request::write(Method::DELETE, key_path("kv", key), b"")).await?;
        parsed::<DeleteAnswer>(&answer).map(|answer| answer.existed)
    }

    /// Gives a key a new value (`None`: removes it) if it has the one expected (`None`: is not there); whether it had.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    pub async fn cas(&self, key: &[u8], expected: Option<&[u8]>, new: Option<&[u8]>) -> Result<bool, ClientError> {
        let blob = |bytes: &[u8]| Blob(Bytes::copy_from_slice(bytes));
        let swap = CasRequest { expected: expected.map(blob), new: new.map(blob) };
        let answer = self.anywhere(&Request::json(Method::POST, key_path("cas", key), &swap)).await?;
        parsed::<CasAnswer>(&answer).map(|answer| answer.swapped)
    }

    /// Keys and values from `start` on and before `end` (`None`: to the last), at most `limit`; and whether there are
    /// more. Linearizable.
    ///
    /// # Errors
    ///
    /// Nobody could answer in time.
    pub async fn scan(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<(Vec<(Vec<u8>, Vec<u8>)>, bool), ClientError> {
        let end = end.map(|end| format!("&end={}", escaped(end))).unwrap_or_default();
        let path = format!("/v1/scan?start={}{end}&limit={limit}", escaped(start));
        let answer: ScanAnswer = parsed(&self.anywhere(&Request::read(path)).await?)?;
        let entries = answer.entries.into_iter().map(|(key, value)| (key.0.to_vec(), value.0.to_vec()));
        Ok((entries.collect(), answer.more))
    }

    /// All keys and values as one node has them, which may be behind. In parts: what changes meanwhile may be seen or not.
    ///
    /// # Errors
    ///
    /// The node did not answer in time.
    pub async fn scan_local(&self, addr: &str) -> Result<Vec<(Vec<u8>, Vec<u8>)>, ClientError> {
        let mut all: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        loop {
            let start = all.last().map(|(key, _)| [key.as_slice(), b"\0"].concat()).unwrap_or_default();
            let path = format!("/v1/scan?start={}&consistency=local", escaped(&start));
            let answer: ScanAnswer = parsed(&self.at(addr, &Request::read(path)).await?)?;
            all.extend(answer.entries.into_iter().map(|(key, value)| (key.0.to_vec(), value.0.to_vec())));
            if !answer.more {
                return Ok(all);
            }
        }
    }

    /// The cluster as the node at this address sees it.
    ///
    /// # Errors
    ///
    /// The node did not answer.
    pub async fn cluster_status(&self, addr: &str) -> Result<ClusterStatus, ClientError> {
        parsed(&self.at(addr, &Request::read("/v1/cluster".into())).await?)
    }

    /// Makes these nodes a cluster; the one at this address must be among them, and all of them new.
    ///
    /// # Errors
    ///
    /// The node is part of a cluster already (`already_initialized`), or could not.
    pub async fn init(&self, addr: &str, nodes: &BTreeMap<NodeId, NodeAddr>) -> Result<(), ClientError> {
        let init = InitRequest { nodes: nodes.clone() };
        self.at(addr, &Request::json(Method::POST, "/v1/cluster/init".into(), &init)).await.map(drop)
    }

    /// Adds a node that only learns. It need not have caught up when this returns.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    pub async fn add_learner(&self, id: NodeId, addr: &NodeAddr) -> Result<(), ClientError> {
        let learner = LearnerRequest { id, peer: addr.peer.clone(), client: addr.client.clone() };
        self.anywhere(&Request::json(Method::POST, "/v1/cluster/learners".into(), &learner)).await.map(drop)
    }

    /// Lets exactly these nodes vote, all of them members already. Those that voted and no longer do are removed.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put); `behind` where one of them has not caught up (then nothing is changed).
    pub async fn set_voters(&self, ids: &BTreeSet<NodeId>) -> Result<(), ClientError> {
        let voters = VotersRequest { ids: ids.clone() };
        self.anywhere(&Request::json(Method::PUT, "/v1/cluster/voters".into(), &voters)).await.map(drop)
    }

    /// Lets the node at this address make a snapshot. It goes on after this returns.
    ///
    /// # Errors
    ///
    /// The node did not answer.
    pub async fn snapshot(&self, addr: &str) -> Result<(), ClientError> {
        self.at(addr, &Request::write(Method::POST, "/v1/cluster/snapshot".into(), b"")).await.map(drop)
    }

    /// The node's figures, as text for Prometheus.
    ///
    /// # Errors
    ///
    /// The node did not answer.
    pub async fn metrics(&self, addr: &str) -> Result<String, ClientError> {
        let answer = self.at(addr, &Request::read("/metrics".into())).await?;
        Ok(String::from_utf8_lossy(&answer.body).into_owned())
    }

    /// Asks this node only, once.
    async fn at(&self, addr: &str, request: &Request) -> Result<Answer, ClientError> {
        match self.attempt(addr, request, self.timeout).await {
            Attempt::Answered(answer) => Ok(answer),
            Attempt::Elsewhere { error, .. } | Attempt::Failed(error) => Err(error),
        }
    }

    /// Asks the leader, whoever it is.
    async fn anywhere(&self, request: &Request) -> Result<Answer, ClientError> {
        let until = Instant::now() + self.timeout;
        let mut addr = self.first();
        let mut refused = 0;
        let mut unknown = false;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let error = match self.attempt(&addr, request, left).await {
                Attempt::Answered(answer) => {
                    self.remember(Some(addr));
                    return Ok(answer);
                }
                Attempt::Elsewhere { addr: leader, error } => {
                    addr = leader;
                    refused += 1;
                    error
                }
                Attempt::Failed(error) => {
                    if error.is_final(request) {
                        return Err(error);
                    }
                    self.remember(None);
                    addr = self.turn();
                    refused = self.addrs.len();
                    error
                }
            };
            unknown |= error.outcome == Outcome::Unknown;
            if Instant::now() >= until {
                return Err(error.with_doubt(unknown));
            }
            // Two nodes may each take the other for the leader for a moment.
            if refused >= 2 {
                tokio::time::sleep(Duration::from_millis(PAUSE_MS)).await;
            }
        }
    }

    async fn attempt(&self, addr: &str, request: &Request, left: Duration) -> Attempt {
        let url = format!("http://{addr}{}", request.path);
        let mut builder = self.http.request(request.method.clone(), url).timeout(left);
        if request.is_json {
            builder = builder.header(reqwest::header::CONTENT_TYPE, "application/json");
        }
        let sent = builder.body(request.body.clone()).send().await;
        let response = match sent {
            Ok(response) => response,
            Err(error) => return Attempt::Failed(ClientError::from_transport(&error, error.is_connect())),
        };
        let status = response.status();
        let location = response.headers().get(LOCATION).and_then(|place| place.to_str().ok()).and_then(authority);
        match response.bytes().await {
            Ok(body) => judge(request, Answer { status, body }, location),
            Err(error) => Attempt::Failed(ClientError::from_transport(&error, false)),
        }
    }

    fn first(&self) -> String {
        self.leader.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_else(|| self.turn())
    }

    fn turn(&self) -> String {
        self.addrs[self.next.fetch_add(1, Ordering::Relaxed) % self.addrs.len()].clone()
    }

    fn remember(&self, leader: Option<String>) {
        *self.leader.lock().unwrap_or_else(PoisonError::into_inner) = leader;
    }
}

impl Request {
    fn read(path: String) -> Request {
        Request { method: Method::GET, path, body: Bytes::new(), is_json: false, is_read: true }
    }

    fn write(method: Method, path: String, body: &[u8]) -> Request {
        Request { method, path, body: Bytes::copy_from_slice(body), is_json: false, is_read: false }
    }

    fn json(method: Method, path: String, body: &impl Serialize) -> Request {
        let body = serde_json::to_vec(body).expect("these types have nothing that JSON lacks");
        Request { method, path, body: body.into(), is_json: true, is_read: false }
    }
}

impl ClientError {
    fn from_transport(error: &reqwest::Error, not_sent: bool) -> ClientError {
        let outcome = if not_sent { Outcome::NotApplied } else { Outcome::Unknown };
        let mut message = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            message = format!("{message}: {error}");
            cause = error.source();
        }
        ClientError { outcome, code: "transport".into(), status: None, message }
    }

    fn from_answer(answer: &Answer) -> ClientError {
        let status = Some(answer.status.as_u16());
        match serde_json::from_slice::<ErrorAnswer>(&answer.body) {
            Ok(told) => {
                // An error that says nothing of it leaves everything open.
                let outcome = told.outcome.unwrap_or(Outcome::Unknown);
                ClientError { outcome, code: told.error, status, message: told.message }
            }
            Err(_) => ClientError {
                outcome: Outcome::Unknown,
                code: "foreign".into(),
                status,
                message: format!("this is no answer of a node: {}", String::from_utf8_lossy(&answer.body)),
            },
        }
    }

    /// Whether asking again is wrong or of no use.
    fn is_final(&self, request: &Request) -> bool {
        let is_mistake = self.status.is_some_and(|status| (400..500).contains(&status));
        is_mistake || (!request.is_read && self.outcome == Outcome::Unknown)
    }

    /// An earlier attempt leaves the doubt that this one does not.
    fn with_doubt(mut self, unknown: bool) -> ClientError {
        if unknown {
            self.outcome = Outcome::Unknown;
        }
        self
    }
}

fn judge(request: &Request, answer: Answer, location: Option<String>) -> Attempt {
    if answer.status.is_success() || is_refusal(request, &answer) {
        return Attempt::Answered(answer);
    }
    let error = ClientError::from_answer(&answer);
    match location {
        Some(addr) if answer.status == StatusCode::TEMPORARY_REDIRECT => Attempt::Elsewhere { addr, error },
        _ => Attempt::Failed(error),
    }
}

/// Answers that are results: no such key, another value than the one expected.
fn is_refusal(request: &Request, answer: &Answer) -> bool {
    match answer.status {
        StatusCode::NOT_FOUND => request.is_read && ClientError::from_answer(answer).code == "no_key",
        StatusCode::CONFLICT => serde_json::from_slice::<CasAnswer>(&answer.body).is_ok(),
        _ => false,
    }
}

fn value(answer: Answer) -> Result<Option<Vec<u8>>, ClientError> {
    Ok((answer.status != StatusCode::NOT_FOUND).then(|| answer.body.to_vec()))
}

fn parsed<T: DeserializeOwned>(answer: &Answer) -> Result<T, ClientError> {
    serde_json::from_slice(&answer.body).map_err(|error| ClientError {
        outcome: Outcome::Unknown,
        code: "foreign".into(),
        status: Some(answer.status.as_u16()),
        message: format!("the answer was not understood: {error}"),
    })
}

fn escaped(bytes: &[u8]) -> impl fmt::Display {
    percent_encode(bytes, ESCAPED)
}

/// The path for a key. One that a URL cannot carry in its path (nothing, or dots that would be a way up) goes in the query.
fn key_path(what: &str, key: &[u8]) -> String {
    match key {
        b"" | b"." | b".." => format!("/v1/{what}?key={}", escaped(key)),
        key => format!("/v1/{what}/{}", escaped(key)),
    }
}

fn local_path(key: &[u8]) -> String {
    let path = key_path("kv", key);
    let separator = if path.contains('?') { '&' } else { '?' };
    format!("{path}{separator}consistency=local")
}

/// The `host:port` of a URL.
fn authority(url: &str) -> Option<String> {
    let rest = url.strip_prefix("http://")?;
    Some(rest.split('/').next()?.to_owned())
}
