//! Snapshots of a state machine: files beside the log from which its state is restored.
//!
//! A snapshot stands for every entry up to its index, so that the log may be compacted there. It is streamed in both
//! directions, in bounded memory; it gets its name only once it is whole, durable and read back; and whatever goes wrong
//! while one is made, those that were there before are there still.
//!
//! [`FileSnapshots`] keeps them on a [`Disk`](crate::disk::Disk), in the log's directory or another one, and
//! [`MemSnapshots`] in memory, for tests. What the files look like is said in `format::snapshot`. Nothing here knows the
//! log or what a state means.

mod error;
mod options;
mod pool;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt;
use std::str::FromStr;

pub use error::SnapshotError;
pub use options::SnapshotOptions;
pub use reader::SnapshotReader;
pub(crate) use writer::SnapshotStream;

use crate::format::INDEX_MAX;
use crate::format::names;

/// Which snapshot: of the state after the entry of this index, which has this term. Ordered by index, then term; as text
/// `snapshot_{index}_{term}`.
///
/// ```
/// use ringwal::SnapshotId;
///
/// let id: SnapshotId = "snapshot_1200_3".parse()?;
/// assert_eq!((id.index, id.term), (1200, 3));
/// assert_eq!(id.to_string(), "snapshot_1200_3");
/// for bad in ["", "snapshot_1200", "snapshot_01200_3", "snapshot_+1_3", "../snapshot_1200_3"] {
///     assert!(bad.parse::<SnapshotId>().is_err());
/// }
/// # Ok::<(), ringwal::SnapshotError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId {
    /// The last index that the state includes; 0 for the state before the first entry.
    pub index: u64,
    /// That entry's term.
    pub term: u64,
}

impl SnapshotId {
    /// The name of its file.
    pub(crate) fn file_name(self) -> String {
        names::snapshot(self.index, self.term)
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&names::snapshot_id(self.index, self.term))
    }
}

impl FromStr for SnapshotId {
    type Err = SnapshotError;

    /// Reads an id. Nothing but what [`Display`](fmt::Display) writes is one.
    fn from_str(id: &str) -> Result<SnapshotId, SnapshotError> {
        let bad = |reason| SnapshotError::BadId { id: id.to_owned(), reason };
        let (index, term) = names::read_snapshot_id(id).map_err(bad)?;
        if index > INDEX_MAX {
            return Err(bad("no log has so high an index"));
        }
        Ok(SnapshotId { index, term })
    }
}

/// What is known of a snapshot without reading all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// Which it is.
    pub id: SnapshotId,
    /// The last index that the state includes.
    pub index: u64,
    /// That entry's term.
    pub term: u64,
    /// When it was begun, in milliseconds since the Unix epoch, by the clock of the machine that made it.
    pub timestamp_ms: u64,
    /// Which machine made it, and which version of its state it is.
    pub machine: String,
    /// Size of the state in bytes.
    pub raw_bytes: u64,
    /// Size of the file in bytes.
    pub stored_bytes: u64,
    /// CRC-32C of the whole state.
    pub checksum: u32,
}
