//! The log, a state machine and its snapshots as the store of an [openraft](https://docs.rs/openraft/0.9) node: feature
//! `openraft`.

mod builder;
mod codec;
mod error;
mod header;
mod log;
mod machine;
mod open;
mod snapshot;

pub use builder::RaftSnapshotBuilder;
pub use codec::CodecError;
pub use error::RaftError;
pub use log::RaftLog;
pub use machine::{MachineHandle, RaftMachine, RaftTypes, Reply};
pub use open::{RaftConfig, RaftReport, RaftStore, open, open_on};
pub use snapshot::RaftSnapshot;
