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
        let snapshot_id = format!("{}-{salt:016x}", self.id());
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
        source.take(length.into()).read_to_end(&mut body).map_err(broken)?;
        let (last, membership) = codec::decode(&body).map_err(undecodable)?;
        Ok(Applied { last, membership })
    }
}
