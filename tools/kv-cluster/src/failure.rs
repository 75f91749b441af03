//! What the commands exit with: one number for each next step that a script could take. The numbers are those of the
//! `ringwal` tool.

use std::io;

use ringwal::raft::RaftError;
use ringwal::{Error, SnapshotError};

use crate::torture::Interrupted;

/// The exit codes, as the help tells them.
pub const EXIT_CODES: &str = "\
Exit codes:
  0    done, or stopped when asked to
  1    failed
  2    the command line was not understood
  3    something is damaged: the message says what to do
  4    there is no such node
  5    another process holds the directory
  6    the disk is full: the node goes on when it is started with room
  130  interrupted";

/// The number for an error: that of the outermost cause that has one.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    error.chain().find_map(known).unwrap_or(1)
}

fn known(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    if let Some(error) = cause.downcast_ref::<Error>() {
        return of_log(error);
    }
    if let Some(error) = cause.downcast_ref::<SnapshotError>() {
        return of_snapshot(error);
    }
    if let Some(error) = cause.downcast_ref::<io::Error>() {
        return of_system(error);
    }
    if cause.is::<Interrupted>() {
        return Some(130);
    }
    cause.downcast_ref::<RaftError>().and_then(of_store)
}

/// The number for an error of a node's store: that of what it stems from, unless it says more itself.
pub fn of_store(error: &RaftError) -> Option<u8> {
    match error {
        error if error.is_damage() => Some(3),
        RaftError::Log(error) => of_log(error),
        RaftError::Snapshot(error) => of_snapshot(error),
        _ => None,
    }
}

fn of_log(error: &Error) -> Option<u8> {
    match error {
        Error::Corrupt { .. } => Some(3),
        Error::Locked { .. } => Some(5),
        Error::NoSpace => Some(6),
        Error::Io { source, .. } => of_system(source),
        Error::Poisoned(cause) => of_log(cause),
        _ => None,
    }
}

fn of_snapshot(error: &SnapshotError) -> Option<u8> {
    match error {
        SnapshotError::Corrupt { .. } | SnapshotError::Misnamed { .. } => Some(3),
        SnapshotError::NotFound { .. } => Some(4),
        SnapshotError::InUse { .. } => Some(5),
        SnapshotError::Io { source, .. } => of_system(source),
        _ => None,
    }
}

/// An error of the system, or one that is only carried as one: its `source` leaves out what it carries.
fn of_system(error: &io::Error) -> Option<u8> {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    if let Some(carried) = error.get_ref() {
        return anyhow::Chain::new(carried).find_map(known);
    }
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge).then_some(6)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn causes_are_found_however_deep_they_are_carried() {
        let full = Error::Io { action: "write", path: PathBuf::new(), source: io::ErrorKind::StorageFull.into() };
        let poisoned = Error::Poisoned(std::sync::Arc::new(full));
        assert_eq!(exit_code(&anyhow::Error::from(poisoned).context("the node stopped")), 6);
        let unread = RaftError::OutOfReach { path: PathBuf::from("d"), snapshot: None, first: 7 };
        assert_eq!(exit_code(&anyhow::Error::from(unread).context("the node cannot start")), 3);
        assert_eq!(exit_code(&RaftError::Log(Error::NoSpace).into()), 6);
        let corrupt = SnapshotError::Corrupt { file: PathBuf::from("s"), offset: 7, reason: "torn".into() };
        assert_eq!(exit_code(&io::Error::other(io::Error::from(corrupt)).into()), 3);
        assert_eq!(exit_code(&io::Error::other("anything").into()), 1);
    }
}
