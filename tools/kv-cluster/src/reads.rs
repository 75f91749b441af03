//! Linearizable reads: the leader makes sure that it still leads, once for all who wait.
//!
//! Invariant: a reader is answered by a confirmation that began after it came. So those who come while one is on its way
//! wait for the next.

use std::time::Duration;

use openraft::Raft;
use openraft::error::{CheckIsLeaderError, RaftError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::failing::Failure;
use crate::leading::Leading;
use crate::machine::Types;
use crate::types::{NodeAddr, NodeId};

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
    pub(crate) fn start(raft: Raft<Types>, leading: Leading, limit: Duration) -> Reads {
        let (queue, waiting) = mpsc::unbounded_channel();
        tokio::spawn(confirm(raft, leading.clone(), waiting, limit));
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

async fn confirm(raft: Raft<Types>, leading: Leading, mut waiting: mpsc::UnboundedReceiver<Reader>, limit: Duration) {
    while let Some(first) = waiting.recv().await {
        let mut readers = vec![first];
        while let Ok(reader) = waiting.try_recv() {
            readers.push(reader);
        }
        let confirmed = match timeout(limit, raft.ensure_linearizable()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(failure(&error, &leading)),
            Err(_) => Err(Failure::read_timed_out()),
        };
        // Who went away need not be told.
        readers.into_iter().for_each(|reader| drop(reader.send(confirmed.clone())));
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
