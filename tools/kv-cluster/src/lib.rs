//! A replicated key-value service over ringwal and openraft, and the means to start, use and torture its clusters.
//!
//! The README beside this crate is for those who run it; this is for those who build on it.

#![deny(missing_docs)]

pub mod api;
pub mod args;
pub mod client;
pub mod failure;
pub mod processes;
pub mod torture;
pub mod types;
