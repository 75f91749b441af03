//! Snapshots: what taking one does to the writers beside it, and how its stream stands beside the `zstd` tool.
//!
//! - `latency`: a key-value store is written to while its state is taken; `writers`: the load of that
//! - `codec`: compressing and reading back, against `zstd`
//! - `tool`: the `zstd` tool

mod codec;
pub(crate) mod latency;
mod tool;
mod writers;

use crate::bench::suite::row::Row;

/// All rows about snapshots.
pub(crate) fn rows() -> Vec<Row> {
    vec![latency::row(), codec::compress_row(), codec::read_row()]
}
