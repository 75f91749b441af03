//! What all clusters have in common: openraft's types, filled in.

use std::io::Cursor;

use bytes::Bytes;
use openraft::LogId;
use serde::{Deserialize, Serialize};

/// A record of a key and its value ([`crate::records`]): what a client writes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record(pub(crate) Bytes);

openraft::declare_raft_types!(
    /// Records in, nothing out.
    pub(crate) Types: D = Record, R = (), SnapshotData = Cursor<Vec<u8>>
);

/// A node's number: the leader's is 0.
pub(crate) type NodeId = u64;
/// An entry of a log.
pub(crate) type Entry = openraft::Entry<Types>;
/// A node.
pub(crate) type Raft = openraft::Raft<Types>;
/// An entry's place.
pub(crate) type Id = LogId<NodeId>;
/// What a node voted for.
pub(crate) type Vote = openraft::Vote<NodeId>;
/// Why a store failed.
pub(crate) type StorageError = openraft::StorageError<NodeId>;
