//! Every error of the snapshots, each saying what happened, where, and what to do next.
//!
//! Invariant: none of them is ever to be read as "there is no snapshot". Whatever fails, the snapshots that were there
//! before are there still.

use std::io;
use std::path::{Path, PathBuf};

use super::SnapshotId;
use crate::error::{Error, advice};
use crate::format::snapshot::SnapshotDefect;

/// What can go wrong with snapshots, by what the caller should do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// Not an id of a snapshot. Nothing was looked up under it.
    #[error(
        "{id:?} is no snapshot id ({reason}): ids are snapshot_INDEX_TERM in plain decimal, as the list shows them"
    )]
    BadId {
        /// What was given.
        id: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// There is no such snapshot.
    #[error("{path} does not exist: list the snapshots for those that do")]
    NotFound {
        /// The file that would hold it.
        path: PathBuf,
    },
    /// A snapshot of that index and term is there already; it stays as it is.
    #[error("{id} is there already and stays as it is: use it, or delete it first")]
    Exists {
        /// Its id.
        id: SnapshotId,
    },
    /// The snapshot is whole: there is no reason to set it aside.
    #[error("{id} is whole and stays as it is: delete it if it is not wanted any more")]
    Intact {
        /// Its id.
        id: SnapshotId,
    },
    /// The snapshot is what the compacted log stands on.
    #[error(
        "{id} must stay: the log is compacted up to index {stands_on} and cannot be replayed without it; take a newer snapshot first"
    )]
    Needed {
        /// The snapshot.
        id: SnapshotId,
        /// The log's compaction point.
        stands_on: u64,
    },
    /// Fewer than one snapshot was to be kept.
    #[error("keep_count is 0: at least 1 snapshot must stay; delete single ones by their id")]
    KeepCount,
    /// Somebody else is making or receiving this very file.
    #[error("{path} is being written by another writer: wait until it is done, or end that one")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Not all of a snapshot has arrived.
    #[error("{path} has only the first {offset} bytes of a snapshot: go on receiving it from there")]
    Incomplete {
        /// The file that holds what has arrived.
        path: PathBuf,
        /// Where to go on, in bytes.
        offset: u64,
    },
    /// What arrives does not continue what had arrived before.
    #[error(
        "what arrives does not continue {path}, whose first {offset} bytes are whole: it was damaged on its way, or is of another machine's copy of that snapshot, whose bytes differ; go on from there with the same copy, or abort and receive another one from its start"
    )]
    OtherCopy {
        /// The file that holds what had arrived.
        path: PathBuf,
        /// Where the same copy can go on, in bytes.
        offset: u64,
    },
    /// A snapshot is damaged. Nothing was cut or deleted.
    #[error(
        "{file} is damaged at byte {offset} ({reason}); nothing was changed: use the snapshot before it, or a copy of another machine"
    )]
    Corrupt {
        /// The damaged file.
        file: PathBuf,
        /// The place in it, in bytes.
        offset: u64,
        /// What did not fit.
        reason: String,
    },
    /// A snapshot that is whole but stands under the name of another one.
    #[error("{file} holds {found}, which is not what its name says: give it its own name back")]
    Misnamed {
        /// The file.
        file: PathBuf,
        /// Which snapshot it holds.
        found: SnapshotId,
    },
    /// The snapshot was written by a newer version of this crate.
    #[error("{file} was written by a newer version ({what}): read it with that version; nothing was changed")]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// What was not understood.
        what: String,
    },
    /// The snapshot holds the state of another machine, or of another version of its state.
    #[error("{file} holds the state of {found:?}, not of {expected:?}: open it with the machine that made it")]
    OtherMachine {
        /// The file.
        file: PathBuf,
        /// The machine that made it.
        found: String,
        /// The machine that was to take it.
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

impl SnapshotError {
    /// Wraps an answer of the operating system with what was attempted, for `map_err`. One that only carries a
    /// `SnapshotError` through `Read` or `Write` comes out as that.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> SnapshotError {
        let path = path.into();
        move |source| match source.downcast::<SnapshotError>() {
            Ok(carried) => carried,
            Err(source) => SnapshotError::Io { action, path, source },
        }
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

    /// Whether it says that the disk, or a quota on it, is full.
    pub fn is_out_of_space(&self) -> bool {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let SnapshotError::Io { source, .. } = self else { return false };
        matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge)
    }

    fn kind(&self) -> io::ErrorKind {
        match self {
            SnapshotError::Io { source, .. } => source.kind(),
            SnapshotError::NotFound { .. } => io::ErrorKind::NotFound,
            SnapshotError::Exists { .. } => io::ErrorKind::AlreadyExists,
            SnapshotError::Unsupported { .. } => io::ErrorKind::Unsupported,
            SnapshotError::InUse { .. } => io::ErrorKind::ResourceBusy,
            SnapshotError::BadId { .. } | SnapshotError::Config(_) | SnapshotError::KeepCount => {
                io::ErrorKind::InvalidInput
            }
            _ => io::ErrorKind::InvalidData,
        }
    }
}

/// For [`std::io::Read`] and [`std::io::Write`], whose callers find the `SnapshotError` again by
/// [`io::Error::downcast`] or [`io::Error::get_ref`].
impl From<SnapshotError> for io::Error {
    fn from(error: SnapshotError) -> io::Error {
        io::Error::new(error.kind(), error)
    }
}

/// What opening a directory may answer.
impl From<Error> for SnapshotError {
    fn from(error: Error) -> SnapshotError {
        match error {
            Error::Io { action, path, source } => SnapshotError::Io { action, path, source },
            Error::Config(what) => SnapshotError::Config(what),
            other => SnapshotError::Io { action: "open", path: PathBuf::new(), source: io::Error::other(other) },
        }
    }
}
