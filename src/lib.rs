//! ringwal: an embeddable, crash-proof, append-only log for Linux.
#![deny(missing_docs)]

#[cfg(test)]
mod block_on;
mod config;
pub mod disk;
mod engine;
mod entry;
mod error;
pub mod format;
mod log;
mod log_storage;
mod mem_log;
mod segment;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod stats;

pub use config::{Config, Durability, IoChoice, Verify, Wait};
pub use entry::LogEntry;
pub use error::{Error, Result};
pub use log::{
    Batch, Entries, Event, EventStream, Log, LogState, Pending, SegmentInfo, SegmentRole, Subscription, Upto,
};
pub use log_storage::LogStorage;
pub use mem_log::MemLog;
pub use segment::recover::RecoveryReport;
pub use stats::Stats;
