//! Planted mistakes: rules that a test can break on purpose, to prove that the crash explorer notices.
//!
//! Any layer may ask here whether one of its rules is to be broken; this module knows none of them.
//!
//! Only test builds of this crate can plant anything; elsewhere [`planted`] is the constant `false` and costs nothing.

/// A rule that can be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plant {
    /// Acknowledge a frame when it is submitted.
    AckBeforeCompletion,
    /// Take the highest completed frame for the durable one.
    AckOutOfOrder,
    /// Follow any whole frame of the segment's salt with the expected number or a higher one.
    NeitherChainNorEpoch,
    /// Write watermark 0 into every frame and slot.
    NoWatermark,
    /// Drop a segment before the next one's base is durable.
    DropBeforeNextBase,
    /// Follow the log into the next segment without looking through the rest of this one.
    FollowWithoutLook,
    /// Leave the segment's salt out of all checksums, and do not compare it.
    SaltLeftOut,
    /// Take a frame for whole without its operations' own checksums, which are what covers payloads.
    PayloadsNotVerified,
    /// Take an index file though the segment's last frame is another one than it was made for.
    StaleIndexTaken,
    /// Do not take the locks of segments, which a killed process's queued writes hold.
    SegmentsNotLocked,
    /// Start the walk at the newest segment with a frame, proved durable or not.
    StartNotProved,
    /// Look for witnesses in the first block behind the end only.
    OneBlockBehind,
    /// Look for witnesses in the segment of the end only.
    OneSegmentBehind,
    /// Do not ask the lock file's slots.
    SlotIgnored,
    /// Do not sync the directory before anything is written to what it names.
    NamesNotSynced,
    /// Believe what reads back: write no kept frame again.
    KeptNotWrittenAgain,
    /// Write a kept frame again without another look at its head.
    HeadWrittenUnread,
    /// Hand out the log before the open frame is synced.
    OpenFrameNotSynced,
    /// Leave dead first frames in the spares.
    SparesNotCleared,
    /// Let data have the blocks that are kept for compaction.
    ReserveNotKept,
    /// Let batches join a frame past its segment's end.
    JoinsPastTheEnd,
    /// Leave the hard state out of the bases.
    BaseWithoutHardState,
    /// Let a truncation reach into the newest segment only.
    TruncatesNewestOnly,
    /// Drop a segment once its live entries are compacted, whatever else was ever written there.
    DropsByLive,
    /// Drop by a compaction that is not durable.
    CompactionInFlightCounts,
    /// Restore ranges from index files without what their segments truncated in older ones.
    FloorIgnored,
    /// Let a sync cover what was written while it ran.
    SyncCoversLater,
    /// Sync the newest of the segments that need it, and count all of them as synced.
    SyncsNewestOnly,
    /// Write a watermark that says the frames before are durable, though they are in flight.
    WatermarkAhead,
    /// Go on acknowledging after a failed write.
    AcksAfterPoison,
    /// Show a durable end that no truncation lowers.
    TruncationLowersNothing,
}

#[cfg(test)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Plant>> = const { std::cell::Cell::new(None) };
}

/// Whether this rule is broken on this thread.
#[inline(always)]
pub(crate) fn planted(plant: Plant) -> bool {
    #[cfg(test)]
    return PLANTED.with(|cell| cell.get()) == Some(plant);
    #[cfg(not(test))]
    {
        let _ = plant;
        false
    }
}

/// Runs `body` with one rule broken on this thread.
#[cfg(test)]
pub(crate) fn with<T>(plant: Plant, body: impl FnOnce() -> T) -> T {
    struct Restore;
    impl Drop for Restore {
        fn drop(&mut self) {
            PLANTED.with(|cell| cell.set(None));
        }
    }
    PLANTED.with(|cell| cell.set(Some(plant)));
    let _restore = Restore;
    body()
}
