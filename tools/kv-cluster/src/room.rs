//! Room on the disk: writes are refused before it is gone, and one who asks why a node stopped is told.

use std::path::PathBuf;

use ringwal::raft::RaftLog;

use crate::failing::Failure;
use crate::failure::of_store;
use crate::machine::Types;

/// The disk of a node's directory.
#[derive(Debug)]
pub(crate) struct Room {
    dir: PathBuf,
    /// Below this many free bytes, writes are refused; 0: never.
    reserve: u64,
}

impl Room {
    pub(crate) fn new(dir: PathBuf, reserve: u64) -> Room {
        Room { dir, reserve }
    }

    /// Whether there is room for a write.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.reserve == 0 {
            return Ok(());
        }
        match self.free_bytes() {
            Ok(free) if free < self.reserve => Err(Failure::full(format!(
                "this node's disk has {free} bytes free, and keeps {} in reserve: make room",
                self.reserve
            ))),
            // A disk that does not tell is the log's business.
            _ => Ok(()),
        }
    }

    fn free_bytes(&self) -> rustix::io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Whether the node stopped for want of room.
    pub(crate) fn stopped_full(&self, log: &RaftLog<Types>) -> bool {
        log.failure().is_some_and(|error| of_store(&error) == Some(6))
    }
}
