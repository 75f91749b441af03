//! Looks at all nodes again and again, to count what only they can tell: who led, and where snapshots came from.
//!
//! What happens between two looks and leaves no trace is not counted: the counts are lower bounds. What a run has to have
//! met must not hang on that, so what others see while they wait for it (see `cluster`) is noted as well.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
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

/// What was seen by all who look.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sight(Arc<Mutex<Seen>>);

impl Sight {
    /// Notes what a node told.
    pub(crate) fn note(&self, status: &ClusterStatus) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).note(status);
    }

    /// Takes it over into the report.
    pub(crate) fn tell(&self, report: &mut Report) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).tell(report);
    }
}

/// Looks until it is told to stop.
pub(crate) async fn watch(addrs: Vec<String>, sight: Sight, stop: watch::Receiver<bool>) {
    let client = KvClient::new(addrs.clone()).timeout(Duration::from_millis(500));
    while !*stop.borrow() {
        for addr in &addrs {
            if let Ok(status) = client.cluster_status(addr).await {
                sight.note(&status);
            }
        }
        tokio::time::sleep(LOOK).await;
    }
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

    fn tell(&self, report: &mut Report) {
        report.leader_changes = self.leaders.len().saturating_sub(1) as u64;
        report.snapshots_made = self.made.len() as u64;
        report.snapshots_transferred = self.sent.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Place;

    fn status(id: NodeId, term: u64, leads: bool, snapshot: Option<u64>, purged: Option<u64>) -> ClusterStatus {
        let place = |index| Place { term: 1, index };
        ClusterStatus {
            id,
            state: if leads { "leader" } else { "follower" }.into(),
            term,
            leader: leads.then_some(id),
            members: BTreeMap::new(),
            last_log_index: None,
            applied: None,
            snapshot: snapshot.map(place),
            purged: purged.map(place),
            quorum_ack_age_ms: None,
            keys: 0,
            io_mode: String::new(),
        }
    }

    #[test]
    fn what_is_seen_twice_is_counted_once_and_a_snapshot_that_was_sent_is_none_that_was_made() {
        let (mut seen, mut report) = (Seen::default(), Report::default());
        for _ in 0..2 {
            seen.note(&status(1, 1, true, Some(100), Some(95)));
            seen.note(&status(2, 1, false, Some(100), Some(100)));
            seen.note(&status(2, 1, false, None, None));
            seen.note(&status(2, 2, true, Some(200), Some(195)));
        }
        seen.tell(&mut report);
        assert_eq!((report.leader_changes, report.snapshots_made, report.snapshots_transferred), (1, 2, 1));
    }
}
