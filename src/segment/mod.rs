//! Segments on a disk: where the format's bytes and the disk's files meet.
//!
//! - [`dir`]: which files are there; the lock.
//! - [`spare`]: making segments ready, from nothing or from a dropped one.
//! - [`scan`]: reading a segment frame by frame.
//! - [`recover`]: finding the end of the log, and making it safe to go on from there.
//! - [`salvage`]: what a segment tells of itself when its header is damaged, for looking only.
//! - [`index_map`]: index files, mapped.
//! - [`sealed`]: reading single entries and ranges.
//! - [`piece`]: many entries read at once.
//!
//! Nothing here has threads; the threads of [`crate::log`] and the explorer call it alike.

pub(crate) mod dir;
pub(crate) mod index_map;
pub(crate) mod piece;
pub(crate) mod recover;
mod salvage;
pub(crate) mod scan;
pub(crate) mod sealed;
pub(crate) mod spare;

#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod table_tests;
#[cfg(test)]
mod tests;
