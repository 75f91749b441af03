//! Looks at all nodes again and again, to count what only they can tell: who led, and where snapshots came from.
//!
//! What happens between two looks and leaves no trace is not counted: the counts are lower bounds.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::watch;

use super::report::Report;
use crate::api::ClusterStatus;
use crate::client::KvClient;
use crate::types::NodeId;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);

/// What was seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Who led in which term.
    leaders: BTreeMap<u64, NodeId>,
    /// Snapshots by node and last index, and whether the node was sent it.
    made: BTreeSet<(NodeId, u64)>,
    sent: BTreeSet<(NodeId, u64)>,
}

/// Looks until it is told to stop.
pub(crate) async fn watch(addrs: Vec<String>, stop: watch::Receiver<bool>) -> Seen {
    let client = KvClient::new(addrs.clone()).timeout(Duration::from_millis(500));
    let mut seen = Seen::default();
    while !*stop.borrow() {
        for addr in &addrs {
            if let Ok(status) = client.cluster_status(addr).await {
                seen.note(&status);
            }
        }
        tokio::time::sleep(LOOK).await;
    }
    seen
}

impl Seen {
    fn note(&mut self, status: &ClusterStatus) {
        if status.leads() {
            self.leaders.insert(status.term, status.id);
        }
        let Some(snapshot) = status.snapshot else { return };
        // A node keeps some entries before a snapshot that it made itself; one that it was sent is all that it has.
        let was_sent = status.purged == Some(snapshot);
        let snapshots = if was_sent { &mut self.sent } else { &mut self.made };
        snapshots.insert((status.id, snapshot.index));
    }

    /// Takes it over into the report.
    pub(crate) fn tell(&self, report: &mut Report) {
        report.leader_changes = self.leaders.len().saturating_sub(1) as u64;
        report.snapshots_made = self.made.len() as u64;
        report.snapshots_transferred = self.sent.len() as u64;
    }
}
