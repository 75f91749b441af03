//! A replicated key-value service over ringwal and openraft, and the means to start, use and torture its clusters.
//!
//! The README beside this crate is for those who run it; this is for those who build on it.

#![deny(missing_docs)]

pub mod api;
pub mod args;
mod asked;
pub mod client;
mod failing;
pub mod failure;
mod http;
mod leading;
pub mod local;
pub mod machine;
mod metrics;
pub mod node;
mod peers;
mod planted;
pub mod processes;
mod reads;
mod room;
pub mod show;
mod state;
pub mod torture;
pub mod types;
mod writes;
