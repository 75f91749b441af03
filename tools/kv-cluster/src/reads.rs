//! Linearizable reads: the leader makes sure that it still leads, once for all who wait.
//!
//! Invariants:
//!
//! - A reader is answered by a confirmation that began after it came. So those who come while one is on its way wait for
//!   the next.
//! - A node that comes back as the leader that it was answers nobody before it has applied all that its log had when it
//!   came back, and proposes something so that it can be: see [`Resumed`].

use std::time::Duration;

use openraft::error::{CheckIsLeaderError, Fatal, RaftError};
use openraft::storage::RaftLogStorage;
use openraft::{Raft, StorageError};
use ringwal::raft::RaftLog;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::failing::Failure;
use crate::leading::{Leading, Metrics};
use crate::machine::{Commands, Types};
use crate::types::{NodeAddr, NodeId};

/// The term that a node led in when it ended, and the last index of its log when it came back.
///
/// openraft lets such a node lead on in that term, without a blank entry that would have to be committed first, and takes
/// the last commit that was written down for all that was committed. That may be less than what was acknowledged: reads
/// that only asked openraft could miss it until the next commit. All of it is in this node's log, which has an entry on
/// its disk before it sends it to anyone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resumed {
    term: u64,
    last_index: u64,
}

impl Resumed {
    /// Reads it from the log, before openraft starts on it. `None` if the node did not lead, or has nothing.
    ///
    /// # Errors
    ///
    /// The log's own.
    pub(crate) async fn of(id: NodeId, log: &RaftLog<Types>) -> Result<Option<Resumed>, StorageError<NodeId>> {
        let mut log = log.clone();
        let (vote, state) = (log.read_vote().await?, log.get_log_state().await?);
        let led = vote.filter(|vote| vote.is_committed() && vote.leader_id().voted_for() == Some(id));
        let resumed = led.zip(state.last_log_id);
        Ok(resumed.map(|(vote, last)| Resumed { term: vote.leader_id().get_term(), last_index: last.index }))
    }

    /// Proposes an entry of that term. Without one, openraft commits nothing that is older, and a node that ended before
    /// it proposed its blank entry would wait for it at each read, until somebody writes.
    ///
    /// # Errors
    ///
    /// openraft's core has stopped.
    pub(crate) async fn go_on(self, raft: &Raft<Types>) -> Result<(), Fatal<NodeId>> {
        // Nobody waits for it: where this node no longer leads, the next leader proposes one of its own.
        raft.client_write_ff(Commands::default()).await.map(drop)
    }

    /// What is to be applied before a read, while the node still leads in that term.
    fn barrier(self, metrics: &Metrics) -> Option<u64> {
        let is_behind = metrics.last_applied.is_none_or(|applied| applied.index < self.last_index);
        (metrics.current_term <= self.term && is_behind).then_some(self.last_index)
    }
}

/// Who may read, and waits until it is allowed.
type Reader = oneshot::Sender<Result<(), Failure>>;

/// Where reads ask for leave.
#[derive(Debug)]
pub(crate) struct Reads {
    queue: mpsc::UnboundedSender<Reader>,
    leading: Leading,
    limit: Duration,
}

impl Reads {
    /// Starts the one who asks the others.
    pub(crate) fn start(raft: Raft<Types>, leading: Leading, resumed: Option<Resumed>, limit: Duration) -> Reads {
        let (queue, waiting) = mpsc::unbounded_channel();
        let confirmer = Confirmer { raft, leading: leading.clone(), resumed, limit };
        tokio::spawn(confirmer.run(waiting));
        Reads { queue, leading, limit }
    }

    /// Returns when this node's state is at least as new as everything that was acknowledged before this call.
    pub(crate) async fn ready(&self) -> Result<(), Failure> {
        self.leading.check()?;
        let (reader, leave) = oneshot::channel();
        if self.queue.send(reader).is_err() {
            return Err(Failure::stopping());
        }
        match timeout(self.limit, leave).await {
            Ok(Ok(confirmed)) => confirmed,
            Ok(Err(_)) => Err(Failure::stopping()),
            Err(_) => Err(Failure::read_timed_out()),
        }
    }
}

/// The one who asks the others.
struct Confirmer {
    raft: Raft<Types>,
    leading: Leading,
    resumed: Option<Resumed>,
    limit: Duration,
}

impl Confirmer {
    async fn run(self, mut waiting: mpsc::UnboundedReceiver<Reader>) {
        while let Some(first) = waiting.recv().await {
            let mut readers = vec![first];
            while let Ok(reader) = waiting.try_recv() {
                readers.push(reader);
            }
            readers.retain(|reader| !reader.is_closed());
            if readers.is_empty() {
                continue;
            }
            let confirmed = self.confirm().await;
            // Who went away need not be told.
            readers.into_iter().for_each(|reader| drop(reader.send(confirmed.clone())));
        }
    }

    async fn confirm(&self) -> Result<(), Failure> {
        match timeout(self.limit, self.raft.ensure_linearizable()).await {
            Ok(Ok(_)) => self.catch_up().await,
            Ok(Err(error)) => Err(failure(&error, &self.leading)),
            Err(_) => Err(Failure::read_timed_out()),
        }
    }

    /// Waits for what this node may have acknowledged before it ended.
    async fn catch_up(&self) -> Result<(), Failure> {
        let Some(last) = self.resumed.and_then(|resumed| resumed.barrier(&self.leading.metrics())) else {
            return Ok(());
        };
        let caught_up =
            self.raft.wait(Some(self.limit)).applied_index_at_least(Some(last), "a leader that came back").await;
        caught_up.map(drop).map_err(|_| Failure::read_timed_out())
    }
}

fn failure(error: &RaftError<NodeId, CheckIsLeaderError<NodeId, NodeAddr>>, leading: &Leading) -> Failure {
    match error {
        RaftError::APIError(CheckIsLeaderError::ForwardToLeader(_)) => leading.elsewhere(),
        RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(error)) => {
            Failure::no_quorum(format!("a majority did not confirm that this node leads: {error}"))
        }
        RaftError::Fatal(_) => Failure::stopping(),
    }
}

#[cfg(test)]
mod tests {
    use openraft::{CommittedLeaderId, LogId};

    use super::*;

    fn metrics(term: u64, applied: Option<u64>) -> Metrics {
        let mut metrics = Metrics::new_initial(1);
        metrics.current_term = term;
        metrics.last_applied = applied.map(|index| LogId::new(CommittedLeaderId::new(term, 1), index));
        metrics
    }

    #[test]
    fn a_leader_that_came_back_answers_no_read_before_it_has_applied_what_it_may_have_acknowledged() {
        let resumed = Resumed { term: 3, last_index: 10 };
        for behind in [None, Some(0), Some(9)] {
            assert_eq!(resumed.barrier(&metrics(3, behind)), Some(10));
        }
        assert_eq!(resumed.barrier(&metrics(3, Some(10))), None);
        // In a later term its blank entry had to be committed, and all before it with it: what its log had may be gone.
        assert_eq!(resumed.barrier(&metrics(4, Some(7))), None);
    }
}
