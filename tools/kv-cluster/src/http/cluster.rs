//! The cluster itself: who is in it, and how one node sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use openraft::error::{ChangeMembershipError, ClientWriteError, InitializeError, RaftError};
use openraft::{ChangeMembers, LogId, ServerState};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use super::kv::{Body, json};
use super::{Node, Shared};
use crate::api::{ClusterStatus, InitRequest, LearnerRequest, Member, Place, VotersRequest};
use crate::failing::Failure;
use crate::leading::Metrics;
use crate::types::{NodeAddr, NodeId};

type Answered = Result<Response, Failure>;
type WriteError = RaftError<NodeId, ClientWriteError<NodeId, NodeAddr>>;

/// How often it is looked whether a node has caught up.
const LOOK_MS: u64 = 20;

pub(super) async fn status(State(node): Shared) -> Json<ClusterStatus> {
    Json(node.status())
}

pub(super) async fn health(State(node): Shared) -> Answered {
    let metrics = node.leading.metrics();
    if metrics.running_state.is_err() {
        return Err(Failure::stopping());
    }
    let leader = metrics.current_leader.ok_or_else(Failure::no_leader)?;
    Ok(Json(json!({"status": "ok", "id": node.id, "leader": leader})).into_response())
}

pub(super) async fn init(State(node): Shared, body: Body) -> Answered {
    let InitRequest { nodes } = json(body)?;
    for (id, addr) in &nodes {
        check(*id, addr)?;
    }
    match node.raft.initialize(nodes).await {
        Ok(()) => done(),
        Err(RaftError::APIError(InitializeError::NotAllowed(why))) => {
            Err(Failure::conflict("already_initialized", why.to_string()))
        }
        Err(RaftError::APIError(InitializeError::NotInMembers(_))) => {
            Err(Failure::bad(format!("node {} is not among these nodes: ask one that is", node.id)))
        }
        Err(RaftError::Fatal(_)) => Err(Failure::stopped()),
    }
}

pub(super) async fn add_learner(State(node): Shared, body: Body) -> Answered {
    let LearnerRequest { id, peer, client } = json(body)?;
    let addr = NodeAddr { peer, client };
    check(id, &addr)?;
    node.leading.check()?;
    let membership = node.certain().await?.membership_config;
    let membership = membership.membership();
    match membership.get_node(&id) {
        Some(known) if membership.voter_ids().any(|voter| voter == id) => {
            let message =
                format!("node {id} votes already, at {known}: one that lost its directory needs a new number");
            return Err(Failure::conflict("id_in_use", message));
        }
        Some(known) if *known == addr => return done(),
        Some(known) => {
            let message = format!("node {id} is a member already, at {known}: give the new one a number of its own");
            return Err(Failure::conflict("id_in_use", message));
        }
        None => {}
    }
    node.proposed(node.raft.add_learner(id, addr, false)).await
}

pub(super) async fn remove_learner(State(node): Shared, Path(id): Path<String>) -> Answered {
    let id = id.parse().map_err(|_| Failure::bad(format!("{id:?} is no node's number")))?;
    node.leading.check()?;
    let membership = node.certain().await?.membership_config;
    let membership = membership.membership();
    if membership.voter_ids().any(|voter| voter == id) {
        return Err(Failure::conflict("is_voter", format!("node {id} votes: change the voters first")));
    }
    if membership.get_node(&id).is_none() {
        return done();
    }
    let removal = ChangeMembers::RemoveNodes([id].into());
    node.proposed(node.raft.change_membership(removal, true)).await
}

pub(super) async fn set_voters(State(node): Shared, body: Body) -> Answered {
    let VotersRequest { ids } = json(body)?;
    if ids.is_empty() {
        return Err(Failure::bad("somebody has to vote"));
    }
    node.leading.check()?;
    for id in &ids {
        if node.member(*id).is_none() {
            return Err(Failure::bad(format!("node {id} is no member: add it as a learner first")));
        }
    }
    let voters: BTreeSet<_> = node.leading.metrics().membership_config.membership().voter_ids().collect();
    node.wait_until_caught_up(ids.difference(&voters).copied()).await?;
    node.proposed(node.raft.change_membership(ids, false)).await
}

pub(super) async fn snapshot(State(node): Shared) -> Answered {
    match node.raft.trigger().snapshot().await {
        Ok(()) => Ok((StatusCode::ACCEPTED, Json(json!({"triggered": true}))).into_response()),
        Err(_) => Err(Failure::stopping()),
    }
}

fn done() -> Answered {
    Ok(Json(json!({"done": true})).into_response())
}

fn check(id: NodeId, addr: &NodeAddr) -> Result<(), Failure> {
    let is_addr = |addr: &str| {
        let parts = addr.rsplit_once(':');
        parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
    };
    if id == 0 {
        return Err(Failure::bad("nodes are numbered from 1 on"));
    }
    for addr in [&addr.peer, &addr.client] {
        if !is_addr(addr) {
            return Err(Failure::bad(format!("node {id}: {addr:?} is not of the form host:port")));
        }
    }
    Ok(())
}

fn place(id: &LogId<NodeId>) -> Place {
    Place { term: id.leader_id.term, index: id.index }
}

impl Node {
    fn member(&self, id: NodeId) -> Option<NodeAddr> {
        self.leading.metrics().membership_config.membership().get_node(&id).cloned()
    }

    /// A membership that is committed, and no older than this call: that this node leads is confirmed first. What was only
    /// appended may be undone by the next leader.
    async fn certain(&self) -> Result<Metrics, Failure> {
        self.reads.ready().await?;
        let is_committed = |metrics: &Metrics| *metrics.membership_config.log_id() <= metrics.last_applied;
        let looked = self.raft.wait(Some(self.limit)).metrics(is_committed, "a membership that is committed").await;
        looked.map_err(|_| Failure::read_timed_out())
    }

    pub(crate) fn status(&self) -> ClusterStatus {
        let metrics = self.leading.metrics();
        ClusterStatus {
            id: self.id,
            state: state(metrics.state).into(),
            term: metrics.current_term,
            leader: metrics.current_leader,
            members: members(&metrics),
            last_log_index: metrics.last_log_index,
            applied: metrics.last_applied.as_ref().map(place),
            snapshot: metrics.snapshot.as_ref().map(place),
            purged: metrics.purged.as_ref().map(place),
            quorum_ack_age_ms: metrics.millis_since_quorum_ack,
            keys: self.state.keys(),
            io_mode: format!("{:?}", self.log.log().io_mode()).to_lowercase(),
        }
    }

    /// New voters count at once: one that is far behind would hold up every write until it has caught up. Those that vote
    /// already are not waited for: one of them may be why the voters are changed.
    async fn wait_until_caught_up(&self, ids: impl Iterator<Item = NodeId> + Clone) -> Result<(), Failure> {
        let goal = self.leading.metrics().last_log_index;
        let until = Instant::now() + self.limit;
        loop {
            self.leading.check()?;
            let metrics = self.leading.metrics();
            let Some(behind) = ids.clone().find(|id| matched(&metrics, *id) < goal) else { return Ok(()) };
            if Instant::now() > until {
                let message = format!("node {behind} has not caught up: ask again when it has");
                return Err(Failure::unavailable_behind(message));
            }
            sleep(Duration::from_millis(LOOK_MS)).await;
        }
    }

    /// Waits for a change of the membership that was proposed.
    async fn proposed<T>(&self, change: impl Future<Output = Result<T, WriteError>>) -> Answered {
        match timeout(self.limit, change).await {
            Ok(Ok(_)) => done(),
            Ok(Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error)))) => Err(refused(&error)),
            Ok(Err(error)) => Err(Failure::lost(&error.to_string())),
            Err(_) => Err(Failure::timed_out()),
        }
    }
}

fn refused(error: &ChangeMembershipError<NodeId>) -> Failure {
    match error {
        ChangeMembershipError::InProgress(_) => Failure::conflict("in_progress", error.to_string()),
        error => Failure::bad(error.to_string()),
    }
}

fn state(state: ServerState) -> &'static str {
    match state {
        ServerState::Learner => "learner",
        ServerState::Follower => "follower",
        ServerState::Candidate => "candidate",
        ServerState::Leader => "leader",
        ServerState::Shutdown => "shutdown",
    }
}

/// Up to where a node has the leader's log, as the leader knows.
pub(crate) fn matched(metrics: &Metrics, id: NodeId) -> Option<u64> {
    if id == metrics.id {
        return metrics.last_log_index;
    }
    metrics.replication.as_ref()?.get(&id)?.as_ref().map(|log_id| log_id.index)
}

fn members(metrics: &Metrics) -> BTreeMap<NodeId, Member> {
    let membership = metrics.membership_config.membership();
    let next = |index: Option<u64>| index.map_or(0, |index| index + 1);
    let behind = |id| {
        metrics.replication.is_some().then(|| next(metrics.last_log_index).saturating_sub(next(matched(metrics, id))))
    };
    let member = |(id, addr): (&NodeId, &NodeAddr)| {
        let voter = membership.voter_ids().any(|voter| voter == *id);
        let NodeAddr { peer, client } = addr.clone();
        (*id, Member { peer, client, voter, behind_entries: behind(*id) })
    };
    membership.nodes().map(member).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Outcome;

    #[test]
    fn addresses_need_a_host_and_a_port() {
        let check = |peer: &str| check(1, &NodeAddr::new(peer, "localhost:1"));
        assert!(check("127.0.0.1:7101").is_ok() && check("[::1]:7101").is_ok());
        for wrong in ["", "127.0.0.1", ":7101", "host:0", "host:99999", "host:http"] {
            assert!(check(wrong).is_err_and(|failure| failure.outcome() == Some(Outcome::NotApplied)), "{wrong}");
        }
    }
}
