//! Snapshots of a state machine: files that stream in both directions, in bounded memory.

// What publishes snapshots is not here yet.
#![allow(dead_code, unused_imports)]

mod error;
mod options;
mod pool;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub use error::SnapshotError;
pub use options::SnapshotOptions;
pub use reader::SnapshotReader;
pub(crate) use writer::SnapshotStream;
