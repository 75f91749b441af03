//! What is wrong with an encoded command or state. Shared by the machines here; of use to others.

use std::io;

/// Bytes that are no command of a machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The command was written by a newer version.
    #[error("the command has version {found}, and this program knows version {known}: a newer one wrote it")]
    Version {
        /// The version found.
        found: u8,
        /// The one known here.
        known: u8,
    },
    /// A command of a kind that is unknown here.
    #[error("no command has the tag {tag}: another machine, or a newer program, wrote it")]
    Unknown {
        /// The tag found.
        tag: u8,
    },
    /// The bytes end within the command, or go on after it, or a number is not written in the shortest way.
    #[error("the command is malformed at byte {offset}: {reason}")]
    Malformed {
        /// Where, in bytes from the command's beginning.
        offset: usize,
        /// What is wrong.
        reason: &'static str,
    },
}

/// A source that is no state of a machine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The source could not be read.
    #[error("the state could not be read: {0}")]
    Io(#[from] io::Error),
    /// The source does not begin like a state of this machine.
    #[error("this is not the state of a {expected} machine")]
    Foreign {
        /// The kind expected.
        expected: &'static str,
    },
    /// The state was written by a newer version.
    #[error("the state has version {found}, and this program knows version {known}: a newer one wrote it")]
    Version {
        /// The version found.
        found: u8,
        /// The one known here.
        known: u8,
    },
    /// The source ends too early, goes on too long, or is not as it must be.
    #[error("the state is damaged at byte {offset}: {reason}; restore it from another snapshot")]
    Damaged {
        /// Where, in bytes from the state's beginning.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
}
