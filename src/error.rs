//! Every error the log can return, each saying what happened, where, and what to do next.
//!
//! Invariant: an error that refuses an operation (`Gap`, `TermFell`, `TooLarge`, `Busy`, `NoSpace`, ...) left nothing
//! behind: no index was given out and no byte was accepted. Only [`Error::Poisoned`] leaves it open whether the
//! operations that were in flight are on disk; reopening the log decides.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// What can go wrong, by what the caller should do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An entry's index does not follow the last one.
    #[error(
        "index {found} leaves a gap or goes back: the next index is {expected}; append entries in order, or truncate first"
    )]
    Gap {
        /// The index that would have been accepted.
        expected: u64,
        /// The index that was given.
        found: u64,
    },
    /// A term is lower than the one before it.
    #[error(
        "term {found} is lower than the last term {last}: terms never fall; check that the entries come from the right leader"
    )]
    TermFell {
        /// The term of the last entry, or of the compaction point of an empty log.
        last: u64,
        /// The term that was given.
        found: u64,
    },
    /// A term was given for an index that the log holds with another term.
    #[error(
        "index {index} has term {expected} in this log, not {found}: check where the (index, term) pair comes from"
    )]
    TermMismatch {
        /// The index in question.
        index: u64,
        /// The term the log holds there.
        expected: u64,
        /// The term that was given.
        found: u64,
    },
    /// The index was compacted away.
    #[error("the index was compacted away: the first readable index is {first}; read from there or restore a snapshot")]
    Compacted {
        /// The lowest index that can still be read or truncated.
        first: u64,
    },
    /// The index was not written yet.
    #[error("nothing is written there yet: the next index is {next}")]
    NotWritten {
        /// The index that the next entry will get.
        next: u64,
    },
    /// A payload, batch or key is larger than the log can take.
    #[error(
        "{what} of {bytes} bytes is too large: the limit is {limit}; split it, or create the log with larger segments"
    )]
    TooLarge {
        /// What was too large.
        what: &'static str,
        /// Its size, in bytes where nothing else is said.
        bytes: u64,
        /// The largest that is accepted.
        limit: u64,
    },
    /// Accepting now would mean waiting: the queue is full or the next segment is not ready.
    #[error(
        "the log is busy: its queue is full or the next segment is not ready yet; try again, or use a call that waits"
    )]
    Busy,
    /// There is no room on the disk for more entries.
    #[error(
        "no space is left for the log: free space on the disk or compact the log; reads and compaction go on, and so do appends once there is room"
    )]
    NoSpace,
    /// A write or sync failed; the log refuses further writes until it is opened again.
    #[error(
        "the log is poisoned by an earlier failure and takes no more writes; reopen it to run recovery (first cause: {0})"
    )]
    Poisoned(#[source] Arc<Error>),
    /// A blocking call was made from a completion callback, on the writer thread itself.
    #[error("a blocking call inside a completion callback would wait for itself: hand the work to another thread")]
    InCallback,
    /// The log was closed.
    #[error("the log is closed: open it again to go on")]
    Closed,
    /// A write was attempted through a read-only handle.
    #[error("the log was opened read-only: open it with `Log::open` to write")]
    ReadOnly,
    /// Another process (or another handle in this one) has the log open for writing.
    #[error("{path} is locked by {holder}: close that writer, or open read-only")]
    Locked {
        /// The file whose lock is held.
        path: PathBuf,
        /// Who holds it, as far as is known.
        holder: String,
    },
    /// The directory holds something that is not a ringwal log.
    #[error("{path} is not a ringwal log ({found}): give an empty directory or one that ringwal made")]
    Foreign {
        /// The directory or file.
        path: PathBuf,
        /// What was found there.
        found: String,
    },
    /// The log was written by a newer version of this crate.
    #[error(
        "{file} at byte {offset} was written by a newer version ({what}): open it with that version; nothing was changed"
    )]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// The place in it, in bytes.
        offset: u64,
        /// What was not understood.
        what: String,
    },
    /// Data that was acknowledged is damaged.
    #[error(
        "{file} is damaged at byte {offset} ({reason}); indexes {indexes:?} are affected. Nothing was cut or deleted: restore the file from a replica or backup"
    )]
    Corrupt {
        /// The damaged file.
        file: PathBuf,
        /// The place in it, in bytes.
        offset: u64,
        /// The entries that cannot be read, as far as is known: `start..u64::MAX` where the end is unknown.
        indexes: Range<u64>,
        /// What did not fit.
        reason: String,
    },
    /// The directory of the log was removed or replaced while the log was open.
    #[error(
        "the directory {path} was removed or replaced while the log was open: what was acknowledged there may be unreachable; put it back and reopen"
    )]
    DirectoryGone {
        /// The directory.
        path: PathBuf,
    },
    /// A setting is out of its range or contradicts another.
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
pub(crate) fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => "; give this user the right to read and write there",
        io::ErrorKind::ReadOnlyFilesystem => "; mount it writable, or open it read-only",
        io::ErrorKind::NotFound => "; check the path",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free space on the disk",
        _ if source.raw_os_error().is_some_and(is_out_of_descriptors) => "; raise the limit on open files",
        io::ErrorKind::IsADirectory => "; move the directory away: a file of ours has this name",
        _ => "",
    }
}

/// Whether a number of the operating system says that the process or the system has no descriptor left.
pub(crate) fn is_out_of_descriptors(os_error: i32) -> bool {
    matches!(os_error, libc::EMFILE | libc::ENFILE)
}

impl Error {
    /// Wraps an operating system error with what was attempted, for `map_err`.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }

    /// The number of the operating system, where the error says that descriptors or memory are scarce just now: nothing is
    /// wrong with the disk then, nor with what is on it.
    pub(crate) fn scarcity(&self) -> Option<i32> {
        // What a sync leaves undone is lost, whatever the reason.
        let Error::Io { source, action, .. } = self else { return None };
        if *action == "sync" {
            return None;
        }
        source.raw_os_error().filter(|&number| is_out_of_descriptors(number) || number == libc::ENOMEM)
    }

    /// Whether the error says that the disk (or a quota on it) is full.
    pub(crate) fn is_out_of_space(&self) -> bool {
        match self {
            Error::NoSpace => true,
            Error::Io { source, .. } => {
                matches!(
                    source.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
                )
            }
            _ => false,
        }
    }
}

/// The crate's result type.
pub type Result<T, E = Error> = std::result::Result<T, E>;
