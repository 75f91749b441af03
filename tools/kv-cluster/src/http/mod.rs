//! The clients' listener: paths, bodies and answers. What they mean is decided in `kv` and `cluster`.

mod cluster;
mod kv;
mod query;

pub(crate) use cluster::matched;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::HttpBody;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::{CONTENT_TYPE, LOCATION};
use axum::http::{HeaderValue, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use openraft::Raft;
use ringwal::raft::RaftLog;
use tokio::sync::Semaphore;

use crate::api::LeaderHint;
use crate::failing::Failure;
use crate::leading::Leading;
use crate::machine::Types;
use crate::metrics::Metrics;
use crate::reads::Reads;
use crate::room::Room;
use crate::state::LocalState;
use crate::types::{NodeId, VALUE_BYTES_MAX};
use crate::writes::Writes;

/// Two values as JSON, in base64 or escaped.
const CAS_BYTES_MAX: usize = 16 * VALUE_BYTES_MAX;
/// Any other body but a value: members of the cluster, at the most.
const BODY_BYTES_MAX: usize = 64 << 10;
/// The bytes of all requests together that are read or worked on at a time. More are refused.
const REQUESTS_BYTES_MAX: usize = 256 << 20;
/// What a request counts besides its body, and in what it is counted.
const REQUEST_UNIT_BYTES: usize = 1 << 10;

/// What a node answers its clients with.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) raft: Raft<Types>,
    pub(crate) log: RaftLog<Types>,
    pub(crate) state: LocalState,
    pub(crate) leading: Leading,
    pub(crate) writes: Writes,
    pub(crate) reads: Reads,
    pub(crate) metrics: Metrics,
    pub(crate) room: Room,
    pub(crate) limit: Duration,
    /// What is left of [`REQUESTS_BYTES_MAX`], in units.
    pub(crate) space: Arc<Semaphore>,
}

/// For all requests together.
pub(crate) fn space() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(REQUESTS_BYTES_MAX / REQUEST_UNIT_BYTES))
}

type Shared = State<Arc<Node>>;

/// All paths.
pub(crate) fn router(node: Arc<Node>) -> Router {
    let kv = || get(kv::get).put(kv::put).delete(kv::delete).layer(DefaultBodyLimit::max(CAS_BYTES_MAX));
    let cas = || post(kv::cas).layer(DefaultBodyLimit::max(CAS_BYTES_MAX));
    Router::new()
        .route("/v1/kv", kv())
        .route("/v1/kv/", kv())
        .route("/v1/kv/{*key}", kv())
        .route("/v1/cas", cas())
        .route("/v1/cas/", cas())
        .route("/v1/cas/{*key}", cas())
        .route("/v1/scan", get(kv::scan))
        .route("/v1/cluster", get(cluster::status))
        .route("/v1/cluster/init", post(cluster::init))
        .route("/v1/cluster/learners", post(cluster::add_learner))
        .route("/v1/cluster/learners/{id}", delete(cluster::remove_learner))
        .route("/v1/cluster/voters", put(cluster::set_voters))
        .route("/v1/cluster/snapshot", post(cluster::snapshot))
        .route("/metrics", get(metrics))
        .route("/healthz", get(cluster::health))
        .fallback(|| async { Failure::no_path() })
        .method_not_allowed_fallback(|| async { Failure::no_method() })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(node.clone(), watched))
        .with_state(node)
}

/// Counts and times a request, and tells one who is sent elsewhere the whole place.
async fn watched(State(node): Shared, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let uri = request.uri().clone();
    let operation = operation(request.method().as_str(), uri.path());
    let units = units(request.body().size_hint().upper());
    let mut response = match node.space.clone().try_acquire_many_owned(units) {
        Ok(_held) => next.run(request).await,
        Err(_) => Failure::overloaded("too many bytes of other requests are here already").into_response(),
    };
    if let Some(place) = response.extensions().get::<LeaderHint>().and_then(|leader| place(leader, &uri)) {
        response.headers_mut().insert(LOCATION, place);
    }
    node.metrics.request(operation, response.status().as_u16(), began.elapsed());
    response
}

/// What a request counts: what it says that it has, or all that any may have.
fn units(body_bytes: Option<u64>) -> u32 {
    let bytes = body_bytes.map_or(CAS_BYTES_MAX, |bytes| bytes.min(CAS_BYTES_MAX as u64) as usize);
    1 + bytes.div_ceil(REQUEST_UNIT_BYTES) as u32
}

fn place(leader: &LeaderHint, uri: &Uri) -> Option<HeaderValue> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    HeaderValue::try_from(format!("http://{}{path}", leader.client)).ok()
}

/// What a request counts as.
fn operation(method: &str, path: &str) -> &'static str {
    let under = |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    match method {
        "GET" if under("/v1/kv") => "get",
        "PUT" if under("/v1/kv") => "put",
        "DELETE" if under("/v1/kv") => "delete",
        "POST" if under("/v1/cas") => "cas",
        "GET" if path == "/v1/scan" => "scan",
        "GET" if matches!(path, "/metrics" | "/healthz" | "/v1/cluster") => "status",
        _ if under("/v1/cluster") => "cluster",
        _ => "other",
    }
}

async fn metrics(State(node): Shared) -> Response {
    let text = node.metrics.text(&node.leading.metrics(), &node.log.log().stats(), node.state.keys());
    match text {
        Ok(text) => {
            ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("a figure cannot be told: {error}")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_what_they_do() {
        assert_eq!(operation("GET", "/v1/kv/a%2Fb"), "get");
        assert_eq!(operation("GET", "/v1/kv"), "get");
        assert_eq!(operation("GET", "/v1/kvass"), "other");
        assert_eq!(operation("POST", "/v1/cluster/init"), "cluster");
        assert_eq!(operation("GET", "/v1/cluster"), "status");
    }

    #[test]
    fn who_is_sent_elsewhere_is_sent_to_the_same_path() {
        let leader = LeaderHint { id: 2, client: "127.0.0.1:7002".into() };
        let uri = "/v1/kv/a%2Fb?x=%20".parse().unwrap();
        assert_eq!(place(&leader, &uri).unwrap(), "http://127.0.0.1:7002/v1/kv/a%2Fb?x=%20");
    }
}
