//! Who leads, as this node knows it before it proposes or reads anything.

use openraft::{RaftMetrics, ServerState};
use tokio::sync::watch;

use crate::api::LeaderHint;
use crate::failing::Failure;
use crate::types::{NodeAddr, NodeId};

pub(crate) type Metrics = RaftMetrics<NodeId, NodeAddr>;

/// A look at openraft's own metrics.
#[derive(Clone, Debug)]
pub(crate) struct Leading {
    metrics: watch::Receiver<Metrics>,
}

impl Leading {
    pub(crate) fn new(metrics: watch::Receiver<Metrics>) -> Leading {
        Leading { metrics }
    }

    pub(crate) fn metrics(&self) -> Metrics {
        self.metrics.borrow().clone()
    }

    /// Nothing where this node runs: one that has stopped answers nobody, however old the answer may be.
    pub(crate) fn check_running(&self) -> Result<(), Failure> {
        self.metrics.borrow().running_state.as_ref().map(drop).map_err(|_| Failure::stopping())
    }

    /// Nothing where this node leads, else whom to ask. It may be wrong a moment later.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        self.check_running()?;
        let metrics = self.metrics.borrow();
        if metrics.state == ServerState::Leader && metrics.current_leader == Some(metrics.id) {
            return Ok(());
        }
        Err(elsewhere(&metrics))
    }

    /// Whom to ask instead of this node.
    pub(crate) fn elsewhere(&self) -> Failure {
        elsewhere(&self.metrics.borrow())
    }
}

fn elsewhere(metrics: &Metrics) -> Failure {
    let leader = metrics.current_leader.filter(|leader| *leader != metrics.id);
    let node = leader.and_then(|id| Some((id, metrics.membership_config.membership().get_node(&id)?)));
    match node {
        Some((id, addr)) => Failure::redirect(LeaderHint { id, client: addr.client.clone() }),
        None => Failure::no_leader(),
    }
}
