//! ringwal: an embeddable, crash-proof, append-only log for Linux.
#![deny(missing_docs)]

mod config;
pub mod disk;
mod entry;
mod error;
pub mod format;
#[cfg(any(test, feature = "sim"))]
pub mod sim;

pub use config::{Config, Durability, IoChoice, Verify, Wait};
pub use entry::LogEntry;
pub use error::{Error, Result};
