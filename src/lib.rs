//! ringwal: an embeddable, crash-proof, append-only log for Linux.
#![deny(missing_docs)]

mod config;
pub mod disk;
mod entry;
mod error;
pub mod format;
mod segment;

pub use config::{Config, Durability, IoChoice, Verify, Wait};
pub use entry::LogEntry;
pub use error::{Error, Result};
