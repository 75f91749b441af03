//! Every error of the snapshots, each saying what happened, where, and what to do next.
//!
//! Invariant: an error leaves every snapshot that was published before as it was.

use std::io;
use std::path::{Path, PathBuf};

use crate::format::snapshot::SnapshotDefect;

/// What can go wrong with snapshots, by what the caller should do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// An id is not of the form `snapshot_{index}_{term}`.
    #[error("{id:?} is not the id of a snapshot: ids are snapshot_INDEX_TERM in plain decimal")]
    BadId {
        /// What was given.
        id: String,
    },
    /// There is no such snapshot.
    #[error("there is no snapshot {id}: list the snapshots to see which there are")]
    NotFound {
        /// What was asked for.
        id: String,
    },
    /// There is such a snapshot already.
    #[error("snapshot {id} exists already: delete it first, or keep it")]
    Exists {
        /// Its id.
        id: String,
    },
    /// The compacted log stands on this snapshot.
    #[error(
        "snapshot {id} is needed: the log is compacted up to index {stands_on} and cannot be restored without it; take a newer one first"
    )]
    Needed {
        /// Its id.
        id: String,
        /// The log's compaction point.
        stands_on: u64,
    },
    /// No snapshot was to be kept.
    #[error("at least one snapshot must be kept: give a count of 1 or more")]
    KeepCount,
    /// A snapshot file is damaged.
    #[error(
        "the snapshot {file} is damaged at byte {offset} ({reason}): restore the file from a peer or a backup, or use an older snapshot"
    )]
    Corrupt {
        /// The damaged file.
        file: PathBuf,
        /// The place in it, in bytes.
        offset: u64,
        /// What did not fit.
        reason: String,
    },
    /// A snapshot file was written by a newer version of this crate.
    #[error("the snapshot {file} was written by a newer version ({what}): read it with that version")]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// What was not understood.
        what: String,
    },
    /// A snapshot holds the state of another machine.
    #[error("the snapshot {file} holds a state of {found:?}, not of {expected:?}: give it to the machine that made it")]
    OtherMachine {
        /// The file.
        file: PathBuf,
        /// Whose state it is.
        found: String,
        /// Whose was wanted.
        expected: String,
    },
    /// A setting or an argument is out of its range.
    #[error("bad setting: {0}")]
    Config(String),
    /// The operating system refused a call.
    #[error("cannot {action} {path}: {source}{}", advice(source))]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
}

/// What to do about an answer of the operating system that has a usual cause.
fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free space on the disk",
        _ => "",
    }
}

impl SnapshotError {
    /// Wraps an operating system error with what was attempted, for `map_err`.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> SnapshotError {
        let path = path.into();
        move |source| SnapshotError::Io { action, path, source }
    }

    /// What a stream says again and again once it failed: the error, as far as it can be told twice.
    pub(crate) fn again(&self) -> SnapshotError {
        match self {
            SnapshotError::Io { action, path, source } => {
                let same = source.raw_os_error().map(io::Error::from_raw_os_error);
                let source = same.unwrap_or_else(|| io::Error::new(source.kind(), source.to_string()));
                SnapshotError::Io { action, path: path.clone(), source }
            }
            SnapshotError::Corrupt { file, offset, reason } => {
                SnapshotError::Corrupt { file: file.clone(), offset: *offset, reason: reason.clone() }
            }
            SnapshotError::Unsupported { file, what } => {
                SnapshotError::Unsupported { file: file.clone(), what: what.clone() }
            }
            other => SnapshotError::Config(other.to_string()),
        }
    }

    /// Says in which file a defect is.
    pub(crate) fn of(defect: SnapshotDefect, file: &Path) -> SnapshotError {
        let file = file.to_owned();
        match defect {
            SnapshotDefect::Corrupt { offset, reason } => {
                SnapshotError::Corrupt { file, offset, reason: reason.to_owned() }
            }
            SnapshotDefect::Unsupported(what) => SnapshotError::Unsupported { file, what },
        }
    }
}

/// For `Read`, `Write` and `Seek`: the error itself is inside.
impl From<SnapshotError> for io::Error {
    fn from(error: SnapshotError) -> io::Error {
        let kind = match &error {
            SnapshotError::Corrupt { .. } => io::ErrorKind::InvalidData,
            SnapshotError::Unsupported { .. } => io::ErrorKind::Unsupported,
            SnapshotError::Config(_) => io::ErrorKind::InvalidInput,
            SnapshotError::Io { source, .. } => source.kind(),
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}
