//! The network: a call to another node is a call of its method, on the task of the caller.

use std::sync::{Arc, OnceLock};

use openraft::error::{InstallSnapshotError, RPCError, RaftError, RemoteError, Unreachable};
use openraft::network::{RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
    VoteResponse,
};
use openraft::{AnyError, BasicNode};

use super::types::{NodeId, Raft, Types};

/// Connects the nodes of a cluster once they are there.
#[derive(Clone, Default)]
pub(crate) struct Network {
    nodes: Arc<OnceLock<Vec<Raft>>>,
}

/// The way to one node.
pub(crate) struct Link {
    network: Network,
    target: NodeId,
}

type Failure<E> = RPCError<NodeId, BasicNode, E>;

impl Network {
    /// From now on these can be reached, the first of them as node 0.
    pub(crate) fn connect(&self, nodes: Vec<Raft>) {
        let _ = self.nodes.set(nodes);
    }

    /// Takes the nodes off: a node holds the network, and must not hold itself.
    fn node(&self, target: NodeId) -> Option<&Raft> {
        self.nodes.get()?.get(target as usize)
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: NodeId, _: &BasicNode) -> Link {
        Link { network: self.clone(), target }
    }
}

impl Link {
    fn node(&self) -> Result<&Raft, Unreachable> {
        let away = || Unreachable::new(&AnyError::error("the node is not there"));
        self.network.node(self.target).ok_or_else(away)
    }
}

impl RaftNetwork<Types> for Link {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<NodeId>, Failure<RaftError<NodeId>>> {
        let answer = self.node()?.append_entries(request).await;
        answer.map_err(|error| RemoteError::new(self.target, error).into())
    }

    async fn install_snapshot(
        &mut self,
        _: InstallSnapshotRequest<Types>,
        _: RPCOption,
    ) -> Result<InstallSnapshotResponse<NodeId>, Failure<RaftError<NodeId, InstallSnapshotError>>> {
        Err(Unreachable::new(&AnyError::error("nobody takes snapshots here")).into())
    }

    async fn vote(
        &mut self,
        request: VoteRequest<NodeId>,
        _: RPCOption,
    ) -> Result<VoteResponse<NodeId>, Failure<RaftError<NodeId>>> {
        let answer = self.node()?.vote(request).await;
        answer.map_err(|error| RemoteError::new(self.target, error).into())
    }
}
