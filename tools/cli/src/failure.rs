//! What the store's commands exit with: one number for each next step that a script could take.
//!
//! The library's errors keep their words; here they only get their number.

use std::fmt;
use std::io;

use ringwal::machine::StateError;
use ringwal::{DriverError, Error, SnapshotError};

/// The exit codes, as the help tells them.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0    done, also where a reader of the output went away, such as head
  1    failed
  2    the command line was not understood
  3    something is damaged
  4    there is no such key, snapshot or store
  5    another process holds the store
  6    the disk is full
  130  interrupted";

/// Something that was asked for is not there: a key, a snapshot, a store.
#[derive(Debug)]
pub(crate) struct Missing(pub(crate) String);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

/// Something is damaged, and has been told already or is told here.
#[derive(Debug)]
pub(crate) struct Damaged(pub(crate) String);

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Damaged {}

/// The error of a driver for this command line: the log's and the snapshots' own errors come out as they are, and ways on
/// are named as options.
pub(crate) fn from_driver<E: std::error::Error + Send + Sync + 'static>(error: DriverError<E>) -> anyhow::Error {
    match error {
        DriverError::Log(error) => error.into(),
        DriverError::Snapshot(error) => error.into(),
        error @ (DriverError::Damaged { .. }
        | DriverError::NoSnapshot { .. }
        | DriverError::OutOfReach { .. }
        | DriverError::OtherHistory { .. }
        | DriverError::Undecodable { .. }) => Damaged(error.to_string().replace("`fall_back`", "--fall-back")).into(),
        error => anyhow::Error::msg(error.to_string()),
    }
}

/// The snapshot's own error, where what read or wrote it only passed it on.
pub(crate) fn unwrapped(error: io::Error) -> anyhow::Error {
    match error.downcast::<SnapshotError>() {
        Ok(error) => error.into(),
        Err(error) => error.into(),
    }
}

/// The number for an error: that of the outermost cause that has one.
pub(crate) fn exit_code(error: &anyhow::Error) -> u8 {
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
    if cause.is::<Damaged>() || matches!(cause.downcast_ref(), Some(StateError::Damaged { .. })) {
        return Some(3);
    }
    cause.is::<Missing>().then_some(4)
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

    use anyhow::Context;

    use super::*;

    fn corrupt() -> SnapshotError {
        SnapshotError::Corrupt { file: PathBuf::from("snapshot_1_0.zst"), offset: 7, reason: "torn".into() }
    }

    #[test]
    fn damage_counts_however_deep_it_is_carried() {
        let twice = io::Error::other(io::Error::from(corrupt()));
        for error in [io::Error::from(corrupt()), twice] {
            let carrier = SnapshotError::Io { action: "read", path: PathBuf::new(), source: error };
            assert_eq!(exit_code(&carrier.into()), 3);
        }
        let told = Err::<(), _>(StateError::Io(corrupt().into())).context("cannot print it").unwrap_err();
        assert_eq!(exit_code(&told), 3);
        assert_eq!(exit_code(&io::Error::other("anything").into()), 1);
        assert_eq!(exit_code(&io::Error::from(io::ErrorKind::StorageFull).into()), 6);
    }
}
