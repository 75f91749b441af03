//! Snapshots of a state machine: files beside the log from which its state is restored.
//!
//! A snapshot stands for every entry up to its index, so that the log may be compacted there. It is streamed in both
//! directions, in bounded memory; it gets its name only once it is whole, durable and read back; and whatever goes
//! wrong while one is made, those that were there before are there still.
//!
//! [`FileSnapshots`] keeps them on a [`Disk`](crate::disk::Disk), in the log's directory or another one, and
//! [`MemSnapshots`] in memory, for tests. What the files look like is said in `format::snapshot`. Nothing here knows
//! the log or what a state means.

mod arrival;
mod error;
#[cfg(test)]
mod golden_tests;
mod import;
mod manager;
mod mem;
mod options;
mod pace;
mod pool;
mod reader;
mod temporary;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

pub use error::SnapshotError;
pub use import::SnapshotImporter;
pub use manager::{FileSnapshots, SnapshotWriter};
pub use mem::MemSnapshots;
pub use options::SnapshotOptions;
pub use reader::SnapshotReader;
pub(crate) use writer::SnapshotStream;

use crate::format::INDEX_MAX;
use crate::format::names;
use crate::format::snapshot::{SnapshotMeta, SnapshotTotals};
use crate::plant::{StackPlant, planted};

/// Which snapshot: of the state after the entry of this index, which has this term. Ordered by index, then term; as
/// text `snapshot_{index}_{term}`.
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

    /// Whether there can be such a snapshot.
    fn check(self) -> Result<(), SnapshotError> {
        match self.index <= INDEX_MAX {
            true => Ok(()),
            false => Err(SnapshotError::BadId { id: self.to_string(), reason: "no log has so high an index" }),
        }
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
        let id = SnapshotId { index, term };
        id.check().map(|()| id)
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

impl Snapshot {
    /// What a snapshot that is open for reading says of itself.
    pub fn of(reader: &SnapshotReader) -> Snapshot {
        let (meta, totals) = (reader.meta(), reader.totals());
        let SnapshotMeta { index, term, timestamp_ms, ref machine } = *meta;
        let SnapshotTotals { raw_bytes, stored_bytes, checksum, .. } = *totals;
        let id = SnapshotId { index, term };
        Snapshot { id, index, term, timestamp_ms, machine: machine.clone(), raw_bytes, stored_bytes, checksum }
    }
}

/// Keeps snapshots of states that fit into memory. Every call blocks until it is done.
///
/// Implemented by [`FileSnapshots`], which streams larger ones besides, and by [`MemSnapshots`].
///
/// ```
/// use ringwal::{MemSnapshots, SnapshotError, SnapshotManager};
///
/// fn keep_two(snapshots: &mut impl SnapshotManager) -> Result<(), SnapshotError> {
///     for index in [10, 20, 30] {
///         snapshots.create_snapshot(index, 1, format!("state {index}").as_bytes())?;
///     }
///     snapshots.compact_snapshots(2)?;
///     let (snapshot, data) = snapshots.load_snapshot("snapshot_30_1")?;
///     assert_eq!((snapshot.index, snapshot.term, &data[..]), (30, 1, &b"state 30"[..]));
///     assert!(snapshots.load_snapshot("snapshot_10_1").is_err());
///     Ok(())
/// }
/// keep_two(&mut MemSnapshots::default())?;
/// # Ok::<(), SnapshotError>(())
/// ```
pub trait SnapshotManager: Send {
    /// Makes a snapshot of the state `data` after the entry `index` of `term`. When this returns it is as durable as
    /// the manager's snapshots are.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Exists`], [`SnapshotError::BadId`] for an index that no log can have, [`SnapshotError::Io`].
    fn create_snapshot(&mut self, index: u64, term: u64, data: &[u8]) -> Result<Snapshot, SnapshotError>;

    /// Reads a whole snapshot, verified.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::BadId`], [`SnapshotError::NotFound`], whatever is found to be damaged, [`SnapshotError::Io`].
    fn load_snapshot(&self, id: &str) -> Result<(Snapshot, Vec<u8>), SnapshotError>;

    /// Deletes a snapshot.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::BadId`], [`SnapshotError::NotFound`], [`SnapshotError::Needed`], [`SnapshotError::Io`].
    fn delete_snapshot(&mut self, id: &str) -> Result<(), SnapshotError>;

    /// All snapshots, ascending by index and term.
    ///
    /// # Errors
    ///
    /// Where one is damaged, what is wrong with it: never a list without it.
    fn list_snapshots(&self) -> Result<Vec<Snapshot>, SnapshotError>;

    /// Deletes all but the newest `keep_count` snapshots and returns what it deleted, ascending.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::KeepCount`] for 0, [`SnapshotError::Needed`], [`SnapshotError::Io`].
    fn compact_snapshots(&mut self, keep_count: usize) -> Result<Vec<Snapshot>, SnapshotError>;
}

/// Whether a snapshot may go without taking from the log what it stands on: the newest one, if it is at or past the
/// compaction point.
fn check_may_go(stands_on: Option<u64>, newest: Option<SnapshotId>, id: SnapshotId) -> Result<(), SnapshotError> {
    let Some(stands_on) = stands_on.filter(|_| !planted(StackPlant::NeededDeleted)) else { return Ok(()) };
    match newest {
        Some(newest) if newest.index >= stands_on && newest != id => Ok(()),
        _ => Err(SnapshotError::Needed { id, stands_on }),
    }
}

/// The time now, in milliseconds since the Unix epoch.
fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
