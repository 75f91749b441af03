//! What stands before the machine's state in a node's snapshot: up to where openraft's log it goes, and the membership
//! there.
//!
//! ```text
//!   0          8         12
//!   | ringraft | length  | body: (last log id, membership), as `codec` encodes it | the machine's state ...
//! ```
//!
//! Little-endian. It is part of the state that the snapshot file holds, so it is compressed and verified with it.

use std::io::{self, Read, Write};
use std::path::Path;

use bytes::BytesMut;
use openraft::{LogId, RaftTypeConfig, SnapshotMeta, StoredMembership};

use super::codec::{self, CodecError};
use super::error::RaftError;
use crate::snapshot::{SnapshotError, SnapshotId};

const MAGIC: [u8; 8] = *b"ringraft";

/// The longest body: far more than any membership takes.
const BODY_BYTES_MAX: u32 = 16 << 20;

/// Up to where a machine has applied openraft's log.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Applied<C: RaftTypeConfig> {
    /// The last entry applied.
    pub(super) last: Option<LogId<C::NodeId>>,
    /// The last membership among the entries applied.
    pub(super) membership: StoredMembership<C::NodeId, C::Node>,
}

impl<C: RaftTypeConfig> Clone for Applied<C> {
    fn clone(&self) -> Applied<C> {
        Applied { last: self.last.clone(), membership: self.membership.clone() }
    }
}

impl<C: RaftTypeConfig> Default for Applied<C> {
    fn default() -> Applied<C> {
        Applied { last: None, membership: StoredMembership::default() }
    }
}

/// How openraft names the file of a snapshot: as no other file, of the same state or not.
pub(super) fn snapshot_id(id: SnapshotId, salt: u64) -> String {
    format!("{id}-{salt:016x}")
}

impl<C: RaftTypeConfig> Applied<C> {
    /// Under which name a snapshot of it is kept.
    pub(super) fn id(&self) -> SnapshotId {
        let (index, term) = self.last.as_ref().map_or((0, 0), |last| (last.index, last.leader_id.term));
        SnapshotId { index, term }
    }

    /// The index after the last one applied.
    pub(super) fn next(&self) -> u64 {
        self.last.as_ref().map_or(0, |last| last.index + 1)
    }

    /// What openraft knows of a snapshot of it: the id tells the very bytes of the file.
    pub(super) fn meta(&self, salt: u64) -> SnapshotMeta<C::NodeId, C::Node> {
        let snapshot_id = snapshot_id(self.id(), salt);
        SnapshotMeta { last_log_id: self.last.clone(), last_membership: self.membership.clone(), snapshot_id }
    }

    /// Writes the header.
    pub(super) fn write_to(&self, sink: &mut dyn Write) -> io::Result<()> {
        let body = codec::encode(&(&self.last, &self.membership), &mut BytesMut::new()).map_err(io::Error::other)?;
        let length = u32::try_from(body.len()).ok().filter(|&length| length <= BODY_BYTES_MAX);
        let length = length.ok_or_else(|| io::Error::other("the membership is too large for a snapshot"))?;
        sink.write_all(&MAGIC)?;
        sink.write_all(&length.to_le_bytes())?;
        sink.write_all(&body)
    }

    /// Reads the header and leaves the source where the machine's state begins.
    pub(super) fn read_from(source: &mut dyn Read, file: &Path) -> Result<Applied<C>, RaftError> {
        let broken = |error| RaftError::from(SnapshotError::io("read", file)(error));
        let undecodable = |source| RaftError::Undecodable { path: file.to_owned(), what: "snapshot's header", source };
        let mut start = [0; 12];
        source.read_exact(&mut start).map_err(broken)?;
        let length = start.last_chunk().map_or(0, |length| u32::from_le_bytes(*length));
        if !start.starts_with(&MAGIC) || length > BODY_BYTES_MAX {
            return Err(undecodable(CodecError::Malformed("it does not begin like a node's snapshot".into())));
        }
        let mut body = Vec::new();
        let found = source.take(length.into()).read_to_end(&mut body).map_err(broken)?;
        if found < length as usize {
            return Err(undecodable(CodecError::Malformed("it ends within its header".into())));
        }
        let (last, membership) = codec::decode(&body).map_err(undecodable)?;
        Ok(Applied { last, membership })
    }
}

#[cfg(test)]
mod tests {
    use openraft::{BasicNode, CommittedLeaderId, Entry, Membership};

    use super::*;
    use crate::raft::RaftSnapshot;

    openraft::declare_raft_types!(
        /// Any node.
        Types: D = String, R = String, Node = BasicNode, Entry = Entry<Types>, SnapshotData = RaftSnapshot,
    );

    fn applied() -> Applied<Types> {
        let id = |index| LogId::new(CommittedLeaderId::new(300, 2), index);
        let nodes = [(1, BasicNode::new("a:1")), (2, BasicNode::new("b:2"))];
        let membership = Membership::new(vec![[1].into()], std::collections::BTreeMap::from(nodes));
        Applied { last: Some(id(70_000)), membership: StoredMembership::new(Some(id(5)), membership) }
    }

    fn written(applied: &Applied<Types>) -> Vec<u8> {
        let mut bytes = Vec::new();
        applied.write_to(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn the_bytes_of_a_header_never_change() {
        let body = [
            &[1][..],                        // version of the encoding
            &[1, 0xac, 2, 2, 0xf0, 0xa2, 4], // last: term 300, node 2, index 70,000
            &[1, 0xac, 2, 2, 5],             // the membership's log id
            &[1, 1, 1],                      // one set of voters, of one
            &[2, 1, 3, b'a', b':', b'1', 2, 3, b'b', b':', b'2'],
        ]
        .concat();
        let expected = [&b"ringraft"[..], &(body.len() as u32).to_le_bytes(), &body].concat();
        assert_eq!(written(&applied()), expected);
        assert_eq!(written(&Applied::default()), b"ringraft\x05\0\0\0\x01\0\0\0\0");
    }

    #[test]
    fn a_header_is_read_back_and_leaves_the_state_behind_it() {
        let bytes = [&written(&applied())[..], b"state"].concat();
        let mut source = &bytes[..];
        assert_eq!(Applied::<Types>::read_from(&mut source, Path::new("f")).unwrap(), applied());
        assert_eq!(source, b"state");
    }

    #[test]
    fn bytes_that_are_no_header_are_refused_whatever_they_claim() {
        let whole = written(&applied());
        for end in 0..whole.len() {
            assert!(Applied::<Types>::read_from(&mut &whole[..end], Path::new("f")).is_err(), "{end}");
        }
        for (at, byte) in [(0, b'x'), (8, 255), (11, 255), (12, 9), (13, 7)] {
            let mut wrong = whole.clone();
            wrong[at] = byte;
            let refused = Applied::<Types>::read_from(&mut &wrong[..], Path::new("f")).unwrap_err();
            assert!(matches!(refused, RaftError::Undecodable { .. }), "byte {at}: {refused}");
        }
    }
}
