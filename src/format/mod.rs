//! Bytes of the log's files to values and back: pure, no I/O.

pub mod index;

/// The highest index an entry can have.
pub const INDEX_MAX: u64 = u64::MAX - 2;
