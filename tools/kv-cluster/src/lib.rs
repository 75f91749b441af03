//! A replicated key-value service over ringwal and openraft.

#![deny(missing_docs)]

#[allow(dead_code, reason = "the command that uses it all is the next step")]
pub mod torture;
