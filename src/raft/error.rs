//! What can go wrong when a node's store is opened, each error saying what to do next; and how the log's errors look to
//! openraft.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;

use openraft::{AnyError, ErrorSubject, ErrorVerb, NodeId, StorageError, StorageIOError};

use super::codec::CodecError;
use crate::error::Error;
use crate::snapshot::SnapshotError;

/// Why the store of a node was not opened. Nothing was changed then, unless an error of the operating system says
/// otherwise.
///
/// Some of them mean that the node cannot go on with what it has, see [`is_damage`](RaftError::is_damage): it must not
/// simply be started with an empty directory under its old id, because it would have forgotten votes it gave and entries
/// it acknowledged, and the cluster could lose what it decided. It is removed from the cluster first, and comes back as a
/// new member.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RaftError {
    /// What the node acknowledged is damaged.
    #[error(
        "the log in {path} is damaged below what was acknowledged ({source}): remove this node from the cluster, wipe {path}, and add the node again as a new member; nothing was changed"
    )]
    Damaged {
        /// The directory.
        path: PathBuf,
        /// What is damaged.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The log does not have the entries that follow the newest snapshot that can be read.
    #[error(
        "the log in {path} begins at index {first}, and {}: entries between them are missing; put the newer snapshot back, or remove this node from the cluster, wipe {path}, and add the node again as a new member; nothing was changed", upto(.snapshot)
    )]
    OutOfReach {
        /// The directory.
        path: PathBuf,
        /// The index of the newest snapshot that can be read, if there is one.
        snapshot: Option<u64>,
        /// The log's first index.
        first: u64,
    },
    /// The directory belongs to another node.
    #[error(
        "{path} belongs to the node with id {found}, not {expected}: give this node its own directory; nothing was changed"
    )]
    OtherNode {
        /// The directory.
        path: PathBuf,
        /// The id of the node whose it is.
        found: String,
        /// The id that was given.
        expected: String,
    },
    /// The directory belongs to a machine of another kind, or to a driver that runs without a cluster.
    #[error(
        "{path} belongs to a machine of kind {found:?}, not {expected:?}: open it with that machine, or give another directory; nothing was changed"
    )]
    OtherMachine {
        /// The directory, or the snapshot's file.
        path: PathBuf,
        /// The kind found.
        found: String,
        /// The kind that was expected.
        expected: String,
    },
    /// The directory holds a log that no node wrote.
    #[error(
        "{path} holds a log that no node of a cluster wrote ({found}): give an empty directory, or one that a node made; nothing was changed"
    )]
    NoNode {
        /// The directory.
        path: PathBuf,
        /// What was found there.
        found: &'static str,
    },
    /// Bytes of the log are whole, and not what this program reads there.
    #[error(
        "the {what} in {path} cannot be read: {source}; open the directory with the program that wrote it; nothing was changed"
    )]
    Undecodable {
        /// The directory.
        path: PathBuf,
        /// What it is.
        what: &'static str,
        /// Why not.
        #[source]
        source: CodecError,
    },
    /// An entry, a vote or a log id cannot be encoded.
    #[error("it cannot be encoded: {0}; its serde form must be one that postcard can hold")]
    Unencodable(#[source] CodecError),
    /// The newest snapshot is damaged, and the log reaches back to no older one that is whole.
    #[error(
        "the newest snapshot {file} is damaged ({source}), and the log reaches back to no older one that is whole: put the file back, or remove this node from the cluster, wipe {path}, and add the node again as a new member; nothing was changed"
    )]
    DamagedSnapshot {
        /// The directory.
        path: PathBuf,
        /// The snapshot's file.
        file: PathBuf,
        /// What is damaged.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The newest snapshot is damaged, and the log does not go on from an older one up to it.
    #[error(
        "the newest snapshot {file} is damaged ({source}), and the log does not have the entries between the one before it, {older}, and it: put the file back, or remove this node from the cluster, wipe {path}, and add the node again as a new member; nothing was changed"
    )]
    EntriesGone {
        /// The directory.
        path: PathBuf,
        /// The snapshot's file.
        file: PathBuf,
        /// The one before it, which is of too old a state.
        older: PathBuf,
        /// What is damaged.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// A snapshot is intact, and the machine does not take it. The machine is as it was.
    #[error(
        "the machine cannot take the intact snapshot {file}: {source}; was it written by another version of the machine?{}", way_back(.older)
    )]
    NotRestored {
        /// The snapshot's file.
        file: PathBuf,
        /// The newest one before it that the log reaches back to, when a store is opened.
        older: Option<PathBuf>,
        /// Why not.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// A snapshot that arrived is not the one that was announced. It was not installed.
    #[error("the snapshot {file} is of {found}, and was announced as of {announced}: have it sent again")]
    OtherSnapshot {
        /// The snapshot's file.
        file: PathBuf,
        /// What it says it holds.
        found: String,
        /// What was announced.
        announced: String,
    },
    /// The snapshot that was to stand for a part of the log was not installed, and so that is not purged.
    #[error(
        "the log in {path} is not purged up to index {index}: the snapshot that stands for it was not installed; start the node again, and have it sent once more"
    )]
    NotInstalled {
        /// The directory.
        path: PathBuf,
        /// Up to where it was to be purged.
        index: u64,
    },
    /// An entry was to be applied that was applied before.
    #[error("the entry at index {index} was applied already, and the next one is {next}: nothing is applied twice")]
    AppliedTwice {
        /// Its index.
        index: u64,
        /// The lowest index that can be applied.
        next: u64,
    },
    /// The machine failed while entries were applied or its image was taken, and may be half changed. It is not used any
    /// more.
    #[error("the machine failed ({reason}) and is not used any more: mend it and start the node again")]
    MachineFailed {
        /// What happened.
        reason: String,
    },
    /// The log refused, or failed.
    #[error(transparent)]
    Log(Error),
    /// A snapshot could not be read or deleted.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

fn way_back(older: &Option<PathBuf>) -> String {
    let advice = |older: &PathBuf| {
        let older = older.display();
        format!(
            " Open it with that one; or, where no version of the machine has ever taken it, move the file to another directory: {older} and the log have all that this node had applied"
        )
    };
    older.as_ref().map(advice).unwrap_or_default()
}

fn upto(snapshot: &Option<u64>) -> String {
    match snapshot {
        Some(index) => format!("the newest snapshot that can be read has index {index}"),
        None => String::from("no snapshot can be read"),
    }
}

impl RaftError {
    /// Whether the node cannot go on with what it has: remove it from the cluster, wipe its directory, and add it again.
    pub fn is_damage(&self) -> bool {
        use RaftError::{Damaged, DamagedSnapshot, EntriesGone, OutOfReach};
        matches!(self, Damaged { .. } | DamagedSnapshot { .. } | EntriesGone { .. } | OutOfReach { .. })
    }

    /// An error of the log in a directory.
    pub(super) fn of_log(error: Error, directory: impl Into<PathBuf>) -> RaftError {
        match error {
            Error::Corrupt { .. } => RaftError::Damaged { path: directory.into(), source: Box::new(error) },
            error => RaftError::Log(error),
        }
    }
}

/// How openraft is told of an error: it stops the node for any.
pub(super) fn storage_error<N: NodeId>(
    subject: ErrorSubject<N>,
    verb: ErrorVerb,
    error: &(impl StdError + 'static),
) -> StorageError<N> {
    StorageIOError::new(subject, verb, AnyError::new(error)).into()
}

/// How the one who waits for an append is told of an error.
pub(super) fn io_error(error: &Error) -> io::Error {
    let kind = if error.is_out_of_space() { io::ErrorKind::StorageFull } else { io::ErrorKind::Other };
    io::Error::new(kind, error.to_string())
}
