//! Every way in which a request can fail, and what it means to the client: made here, so that no error leaves a node
//! without saying whether it changed anything.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use crate::api::{ErrorAnswer, LeaderHint, Outcome};

/// A request that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    status: StatusCode,
    answer: ErrorAnswer,
}

impl Failure {
    fn new(status: StatusCode, code: &str, outcome: Outcome, message: impl Into<String>) -> Failure {
        let answer = ErrorAnswer { error: code.into(), outcome: Some(outcome), message: message.into(), leader: None };
        Failure { status, answer }
    }

    fn unavailable(code: &str, message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::SERVICE_UNAVAILABLE, code, Outcome::NotApplied, message)
    }

    /// The request itself is wrong.
    pub(crate) fn bad(message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::BAD_REQUEST, "bad_request", Outcome::NotApplied, message)
    }

    /// Something in the request is too long.
    pub(crate) fn too_large(what: &str, bytes: usize, limit: usize) -> Failure {
        let message = format!("the {what} has {bytes} bytes, and at most {limit} are allowed");
        Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", Outcome::NotApplied, message)
    }

    /// The body did not arrive, or is longer than any may be.
    pub(crate) fn body(status: StatusCode, message: impl Into<String>) -> Failure {
        let code = if status == StatusCode::PAYLOAD_TOO_LARGE { "too_large" } else { "bad_request" };
        Failure::new(status, code, Outcome::NotApplied, message)
    }

    /// The machine refused the command: on every node, for good.
    pub(crate) fn refused(why: String) -> Failure {
        Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "refused", Outcome::NotApplied, why)
    }

    /// There is no such key.
    pub(crate) fn no_key() -> Failure {
        let answer = ErrorAnswer { error: "no_key".into(), outcome: None, message: "no such key".into(), leader: None };
        Failure { status: StatusCode::NOT_FOUND, answer }
    }

    /// There is no such path.
    pub(crate) fn no_path() -> Failure {
        let message = "there is no such path: see the README for those that are";
        Failure::new(StatusCode::NOT_FOUND, "no_path", Outcome::NotApplied, message)
    }

    /// The path is there, but not for this.
    pub(crate) fn no_method() -> Failure {
        let message = "this path does not take that method";
        Failure::new(StatusCode::METHOD_NOT_ALLOWED, "no_method", Outcome::NotApplied, message)
    }

    /// Another node leads.
    pub(crate) fn redirect(leader: LeaderHint) -> Failure {
        let message = format!("node {} leads: ask it at {}", leader.id, leader.client);
        let mut failure = Failure::new(StatusCode::TEMPORARY_REDIRECT, "not_leader", Outcome::NotApplied, message);
        failure.answer.leader = Some(leader);
        failure
    }

    /// Nobody leads, as far as this node knows.
    pub(crate) fn no_leader() -> Failure {
        Failure::unavailable("no_leader", "no leader is known: ask again, or another node")
    }

    /// This node leads, and a majority did not confirm it: for reads.
    pub(crate) fn no_quorum(message: impl Into<String>) -> Failure {
        Failure::unavailable("no_quorum", message)
    }

    /// More waits than can be taken.
    pub(crate) fn overloaded(message: &str) -> Failure {
        Failure::unavailable("overloaded", message)
    }

    /// The node has stopped, or is about to, and nothing was proposed.
    pub(crate) fn stopping() -> Failure {
        Failure::unavailable("stopping", "this node is stopping: ask another")
    }

    /// A read that could not be answered in time.
    pub(crate) fn read_timed_out() -> Failure {
        Failure::new(StatusCode::GATEWAY_TIMEOUT, "timeout", Outcome::NotApplied, "the read took too long")
    }

    /// The disk has too little room: for what is not proposed.
    pub(crate) fn full(message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::INSUFFICIENT_STORAGE, "full", Outcome::NotApplied, message)
    }

    /// Something is in the way of what was asked for, and nothing was changed.
    pub(crate) fn conflict(code: &str, message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::CONFLICT, code, Outcome::NotApplied, message)
    }

    /// A node is to vote that is not ready to.
    pub(crate) fn unavailable_behind(message: impl Into<String>) -> Failure {
        Failure::unavailable("behind", message)
    }

    /// It was proposed, and nothing came of it in time.
    pub(crate) fn timed_out() -> Failure {
        let message = "it was proposed, and not applied in time: it may be yet";
        Failure::new(StatusCode::GATEWAY_TIMEOUT, "timeout", Outcome::Unknown, message)
    }

    /// It was proposed, and what became of it cannot be known here.
    pub(crate) fn lost(why: &str) -> Failure {
        let message = format!("it was proposed, and may be applied or not: {why}");
        Failure::new(StatusCode::SERVICE_UNAVAILABLE, "lost", Outcome::Unknown, message)
    }

    /// It was proposed, and the node stopped.
    pub(crate) fn stopped() -> Failure {
        let message = "it was proposed, and this node stopped: it may be applied or not";
        Failure::new(StatusCode::SERVICE_UNAVAILABLE, "stopped", Outcome::Unknown, message)
    }

    /// It was proposed, and this node's disk is full.
    pub(crate) fn stopped_full(&self) -> Failure {
        let message = "this node's disk is full and it stopped: what was proposed may be applied or not";
        let outcome = self.answer.outcome.unwrap_or(Outcome::Unknown);
        Failure::new(StatusCode::INSUFFICIENT_STORAGE, "full", outcome, message)
    }

    /// Whether the node is the reason.
    pub(crate) fn is_stop(&self) -> bool {
        matches!(self.answer.error.as_str(), "stopped" | "stopping")
    }

    #[cfg(test)]
    pub(crate) fn outcome(&self) -> Option<Outcome> {
        self.answer.outcome
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let leader = self.answer.leader.clone();
        let mut response = (self.status, Json(self.answer)).into_response();
        if let Some(leader) = leader {
            // The path is filled in where it is known.
            response.extensions_mut().insert(leader);
        }
        response
    }
}
