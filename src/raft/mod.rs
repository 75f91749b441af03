//! The log, a state machine and its snapshots as the store of an [openraft](https://docs.rs/openraft/0.9) node: feature
//! `openraft`.

mod codec;
mod error;
mod log;

pub use codec::CodecError;
pub use error::RaftError;
pub use log::RaftLog;
