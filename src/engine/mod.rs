//! The decisions of the log, as state machines without I/O, clock or threads.
//!
//! - [`ledger`]: what an operation means and which operations fit; the same rules judge a new batch and a replayed one.
//! - [`ranges`]: which segment holds an index, under truncation and compaction; which segment may go.
//! - [`space`]: how far into a segment each class of frame may reach.
//! - [`sequencer`]: batches in, frames out: who joins which frame, where it lies, when to roll.
//! - [`operations`]: the operations of one frame, and which entry among them an index means.
//! - [`gather`]: whether a frame should wait for the callers that were acknowledged just now.
//! - [`pace`]: how fast a spare segment is filled beside appends.
//! - [`pipeline`]: frames in, writes and acknowledgements out: how many at once, in which order acks may leave.
//! - [`stall`]: whether an operation has been under way for too long, and what is to be told of it.
//! - [`recovery`]: the table that decides whether a frame is next, torn, stale or corrupt.
//!
//! The threads of [`crate::log`], the crash explorer and the tests drive this same code: time comes in as a number,
//! randomness as a value, and what is to be done comes out as data.

pub(crate) mod gather;
pub(crate) mod ledger;
pub(crate) mod operations;
pub(crate) mod pace;
pub(crate) mod pipeline;
pub(crate) mod ranges;
pub(crate) mod recovery;
pub(crate) mod sequencer;
pub(crate) mod space;
pub(crate) mod stall;

#[cfg(test)]
mod tests;
