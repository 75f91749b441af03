//! What can go wrong with a driven machine, each error saying what to do next.

use std::error::Error as StdError;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::Error;
use crate::snapshot::{SnapshotError, SnapshotId};

/// What can go wrong with a [`Driver`](super::Driver), by what the caller should do about it.
///
/// [`Refused`](Self::Refused) is an answer of the machine. [`Reentrant`](Self::Reentrant) and
/// [`MachineFailed`](Self::MachineFailed) may come after the log acknowledged the command: it is durable then, and a
/// replay applies it. For every other error of a proposal it holds what the log's error says: one that refuses left
/// nothing behind, after [`Error::Poisoned`] the next open decides.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriverError<E: StdError + 'static> {
    /// The machine refused the command, which is in the log all the same: it will be refused again at every replay.
    #[error("the machine refuses the command: {0}")]
    Refused(#[source] E),
    /// The log refused, or failed.
    #[error(transparent)]
    Log(#[from] Error),
    /// A snapshot could not be made, published, read or deleted.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The directory, or a snapshot in it, belongs to a machine of another kind.
    #[error(
        "{path} belongs to a machine of kind {found:?}, not {expected:?}: open it with that machine, or give another directory"
    )]
    OtherMachine {
        /// The directory, or the snapshot's file.
        path: PathBuf,
        /// The kind found.
        found: String,
        /// The kind of the machine that was given.
        expected: &'static str,
    },
    /// The directory holds a log whose entries no driver wrote.
    #[error("{path} holds a log that no machine drives: give an empty directory, or one that a driver made")]
    NoMachine {
        /// The directory.
        path: PathBuf,
    },
    /// All snapshots are missing: what the log's entries are to be applied to is not known.
    #[error(
        "{path} holds the log of a machine and none of its snapshots: put one back from a replica or backup; nothing was changed"
    )]
    NoSnapshot {
        /// The directory.
        path: PathBuf,
    },
    /// The newest snapshot is ahead of a log that has entries which no intact snapshot of its own stands for: installing
    /// it would give them up.
    #[error(
        "{file} is ahead of the log, whose entries {first} to {last} are in no snapshot of its own: move the file away to go on with the log, or open with `install_over_entries` to give these entries up; nothing was changed"
    )]
    Ahead {
        /// The snapshot's file.
        file: PathBuf,
        /// The first entry that would be given up.
        first: u64,
        /// The last one.
        last: u64,
    },
    /// The newest snapshot is damaged.
    #[error("the newest snapshot {file} cannot be used ({source}): put the file back from a replica or backup{}; nothing was changed", way_on(.reachable))]
    Damaged {
        /// The snapshot's file.
        file: PathBuf,
        /// An older snapshot that the log still reaches back to, if there is one; it was not looked into.
        reachable: Option<SnapshotId>,
        /// What is wrong with it.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The snapshot is intact, and the machine does not take it.
    #[error(
        "the machine cannot take the intact snapshot {file}: {source}; was it written by another version of the machine?"
    )]
    NotRestored {
        /// The snapshot's file.
        file: PathBuf,
        /// Why not.
        #[source]
        source: E,
    },
    /// The log does not have the entries that follow the newest snapshot.
    #[error(
        "the log in {path} begins at index {first}, past the snapshot of index {snapshot}: entries between them are missing; put back the newer snapshot, or restore from a replica or backup"
    )]
    OutOfReach {
        /// The directory.
        path: PathBuf,
        /// The newest snapshot's index.
        snapshot: u64,
        /// The log's first index.
        first: u64,
    },
    /// A snapshot and the log tell different stories.
    #[error(
        "the snapshot of index {index} has term {found}, and the log has term {expected} there: they are not of one history; put back the files that belong together"
    )]
    OtherHistory {
        /// The snapshot's index.
        index: u64,
        /// Its term.
        found: u64,
        /// The log's.
        expected: u64,
    },
    /// An entry of the log is no command of the machine.
    #[error(
        "the entry at index {index} is no command of this machine: {source}; open the directory with the program that wrote it"
    )]
    Undecodable {
        /// The entry.
        index: u64,
        /// Why not.
        #[source]
        source: E,
    },
    /// The machine failed while a command was applied, and may have applied half of it. Of a proposal that was accepted
    /// before, nobody tells here whether it is in the log: what is there is applied by the next open, this command with
    /// it.
    #[error(transparent)]
    MachineFailed(Arc<MachineFailure>),
    /// A call that waits for the machine was made from inside: from a closure that reads it, or while it applies.
    /// Nothing was accepted; but a future that was accepted before, and polled to its end from inside, has its command
    /// in the log, where it is applied with a later one, and by the next open.
    #[error(
        "a call that waits for the machine, made from inside of it, would wait for itself: make it after the closure"
    )]
    Reentrant,
    /// The driver was closed, or its last handle went, before the snapshot was ready.
    #[error(
        "the driver was closed before the snapshot was ready: the log and the snapshots before it are as they were"
    )]
    Stopped,
}

fn way_on(reachable: &Option<SnapshotId>) -> String {
    match reachable {
        Some(id) => format!(", or open with `fall_back`: the log still reaches back to {id}"),
        None => String::new(),
    }
}

/// Why a machine cannot be used any more. What was acknowledged is in the log: once the machine is mended, an open
/// replays it.
#[derive(Debug, thiserror::Error)]
#[error(
    "the machine failed at index {index} ({reason}) and is not used any more: mend it and open again; the log has everything that was acknowledged"
)]
pub struct MachineFailure {
    /// The first index of the commands that were being applied.
    pub index: u64,
    /// What happened.
    pub reason: String,
}
