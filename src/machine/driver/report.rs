//! What an open found, and what a driver did since.

use std::path::PathBuf;
use std::time::Duration;

use crate::segment::recover::RecoveryReport;
use crate::snapshot::SnapshotId;

/// What an open of a [`Driver`](super::Driver) did.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DriverReport {
    /// The directory was new: the machine is as it was given.
    pub created: bool,
    /// What the log's recovery did.
    pub log: RecoveryReport,
    /// The snapshot that the machine was restored from, or that was made of its initial state.
    pub snapshot: SnapshotId,
    /// Entries of the log that were applied after it.
    pub replayed_entries: u64,
    /// Bytes of their commands.
    pub replayed_bytes: u64,
    /// Damaged snapshots that were set aside, under their new names.
    pub set_aside: Vec<PathBuf>,
    /// How long all of it took.
    pub took: Duration,
}

/// What a [`Driver`](super::Driver) did since it was opened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DriverStats {
    /// Index of the last entry that the machine applied.
    pub last_applied: u64,
    /// Index of the last entry known to be acknowledged; never below `last_applied`.
    pub commit_index: u64,
    /// Commands applied, the refused ones included.
    pub commands: u64,
    /// Commands that the machine refused.
    pub refusals: u64,
    /// Times the machine was locked to apply some.
    pub rounds: u64,
    /// The snapshot that an open now would begin with.
    pub snapshot: SnapshotId,
    /// Entries applied since that snapshot.
    pub entries_since_snapshot: u64,
    /// Bytes of their commands.
    pub bytes_since_snapshot: u64,
    /// Checkpoints taken, in the background and on request.
    pub checkpoints: u64,
    /// Checkpoints that failed.
    pub failed_checkpoints: u64,
    /// Why the last checkpoint failed; `None` once one went well.
    pub last_failure: Option<String>,
}
