//! Settings of snapshots: each with its meaning, unit, default and bounds. None of them is needed for reading.

use super::SnapshotError;
use crate::format::snapshot::{CHUNK_BYTES_MAX, CHUNK_BYTES_MIN};

/// The most workers: more would only cost memory, and CPUs that the log wants.
const WORKERS_MAX: usize = 64;

/// How snapshots are made. Start from [`SnapshotOptions::default`] and change what you need.
///
/// ```
/// use ringwal::SnapshotOptions;
/// let options = SnapshotOptions::default().level(1).workers(2);
/// options.validate().unwrap();
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotOptions {
    pub(crate) chunk_bytes: u32,
    pub(crate) level: i32,
    pub(crate) workers: usize,
    pub(crate) low_priority: bool,
}

impl Default for SnapshotOptions {
    fn default() -> SnapshotOptions {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        SnapshotOptions { chunk_bytes: 1 << 20, level: 3, workers: (cores - 1).clamp(1, 4), low_priority: true }
    }
}

impl SnapshotOptions {
    /// Bytes of the state that are compressed together, and the unit of seeking, of verification and of resuming a
    /// transfer: default 1 MiB, from 1 KiB to 8 MiB. Larger chunks compress a little better. While a snapshot is made,
    /// up to `4 * (workers + 1)` times this is in memory, and what zstd needs for each worker: a few MiB.
    #[must_use]
    pub fn chunk_bytes(mut self, chunk_bytes: u32) -> SnapshotOptions {
        self.chunk_bytes = chunk_bytes;
        self
    }

    /// zstd's compression level: default 3, from 1 (fast) to 22; above 9 it is slow and takes much memory.
    #[must_use]
    pub fn level(mut self, level: i32) -> SnapshotOptions {
        self.level = level;
        self
    }

    /// Threads that compress: by default one less than there are cores, at least one and at most four. With 0 there are
    /// no threads at all: the one that writes does everything. States of one chunk never start a thread.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> SnapshotOptions {
        self.workers = workers;
        self
    }

    /// Whether a snapshot gives way to everybody else: the threads that compress, write and verify run at the lowest
    /// priority, so that they take the CPU time that nobody else wants, and the disk is left alone for three quarters of
    /// the time. Default `true`.
    #[must_use]
    pub fn low_priority(mut self, low_priority: bool) -> SnapshotOptions {
        self.low_priority = low_priority;
        self
    }

    /// Checks that every setting is in its range.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Config`] naming the setting, its value and its bounds.
    pub fn validate(&self) -> Result<(), SnapshotError> {
        check("chunk_bytes", self.chunk_bytes, CHUNK_BYTES_MIN, CHUNK_BYTES_MAX)?;
        check("level", self.level, 1, 22)?;
        check("workers", self.workers, 0, WORKERS_MAX)
    }
}

fn check<T: PartialOrd + std::fmt::Display>(name: &str, value: T, low: T, high: T) -> Result<(), SnapshotError> {
    if value < low || value > high {
        return Err(SnapshotError::Config(format!("{name} is {value}: it must be from {low} to {high}")));
    }
    Ok(())
}
