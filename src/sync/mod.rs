//! What the log's threads meet through: the standard library's primitives, a word to sleep on, channels.
//!
//! Two builds of this crate's own tests put others in their place, so that the code that hands frames and wakes over runs
//! under a scheduler that tries interleavings:
//!
//! - `--cfg ringwal_loom`: every interleaving, and every stale value that a weak ordering allows, for small pieces;
//! - `--cfg ringwal_shuttle`: very many random interleavings of the whole log.
//!
//! Invariant: whatever blocks a thread of the log, or lets it go on, is taken from here. What is only counted, and the
//! contents of reference-counted pointers, need not be.

#[cfg(all(test, any(ringwal_loom, ringwal_shuttle)))]
mod model;
#[cfg(not(all(test, any(ringwal_loom, ringwal_shuttle))))]
mod real;

#[cfg(all(test, any(ringwal_loom, ringwal_shuttle)))]
pub(crate) use model::*;
#[cfg(not(all(test, any(ringwal_loom, ringwal_shuttle))))]
pub(crate) use real::*;

/// A mistake that a model check plants, to prove that it would be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistake {
    /// Settle a ticket without the fence between its state and the look for sleepers.
    SettleWithoutFence,
    /// Leave a waker at a ticket without looking at its state again.
    LeaveWithoutLook,
    /// Settle a ticket with a store that publishes nothing.
    SettleRelaxed,
    /// Park over a bell that rang.
    ParkOverRing,
    /// Set the state of a bell before the waker that belongs to it.
    ListenBeforeWaker,
    /// Leave on the shelf what a compaction or a truncation took away.
    KeepShelf,
    /// Begin an operation without calling a watcher that sleeps.
    BeginWithoutCall,
    /// Go to sleep without looking at the core once more.
    SleepWithoutLook,
    /// Accept a batch without waking a writer that sleeps.
    AcceptWithoutWake,
    /// Ask for a sync without waking the writer.
    SyncWithoutWake,
    /// Acknowledge frames without telling those who wait for room.
    RoomWithoutNotice,
    /// Poison the log without telling those who wait for room.
    PoisonWithoutNotice,
    /// Run the callbacks of late empty batches before those of frames that still are to be told.
    LateCallbackFirst,
    /// Apply a command without looking whether it is acknowledged.
    ApplyEarly,
}

/// Whether this mistake is made: never, outside of a model check that plants it.
#[cfg(not(all(test, any(ringwal_loom, ringwal_shuttle))))]
#[inline(always)]
pub(crate) fn planted(_: Mistake) -> bool {
    false
}
