//! What the nodes of a cluster agree on: who they are, what an entry of the log carries, and what comes of it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A node's number. A directory belongs to one number for ever, and a number to one directory: a node that lost its
/// directory comes back under a number that was never used.
pub type NodeId = u64;

/// Where a node is reached: kept in the cluster's membership, so every node knows it of every other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NodeAddr {
    /// For the other nodes, as `host:port`.
    pub peer: String,
    /// For clients, as `host:port`: where a node that does not lead sends them.
    pub client: String,
}

impl NodeAddr {
    /// An address for peers and one for clients.
    pub fn new(peer: impl Into<String>, client: impl Into<String>) -> NodeAddr {
        NodeAddr { peer: peer.into(), client: client.into() }
    }
}

impl std::fmt::Display for NodeAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "peer={} client={}", self.peer, self.client)
    }
}

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 4096;

/// The longest value, in bytes. Replication gives up on a request that takes longer than a heartbeat, and a value goes
/// in one.
pub const VALUE_BYTES_MAX: usize = 1 << 20;

/// The most entries that one scan gives.
pub const SCAN_ENTRIES_MAX: usize = 10_000;

/// The most bytes of keys and values that one scan gives, but for its first entry.
pub const SCAN_BYTES_MAX: usize = 4 << 20;

/// Entries of a scan: keys and values.
pub type Entries = Vec<(Bytes, Bytes)>;
