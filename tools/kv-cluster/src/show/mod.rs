//! The commands for people: start a cluster, see one at work, look at one.

mod demo;
mod status;
mod up;

pub use demo::demo;
pub use status::status;
pub use up::up;
