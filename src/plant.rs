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
    /// One of those that the log alone cannot notice.
    Stack(StackPlant),
}

/// A rule of what stands on the log: snapshots, and the machine that is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StackPlant {
    /// Give a snapshot its name before its bytes are synced.
    NamedBeforeSync,
    /// Do not sync the directory after a snapshot got its name.
    SnapshotNameNotSynced,
    /// Publish a snapshot without reading it back.
    NotReadBack,
    /// Compact the log before the snapshot is published.
    CompactedBeforePublished,
    /// Compact the log past the snapshot.
    CompactedPastSnapshot,
    /// Take the image before what it holds is durable in the log.
    ImageAheadOfLog,
    /// Begin the replay with an entry that the snapshot has.
    ReplayedOneTooMany,
    /// Leave out the first entry after the snapshot.
    ReplayedOneTooFew,
    /// Where the newest snapshot is damaged, take an older one and say nothing.
    OlderTakenSilently,
    /// Delete the snapshot that the log stands on.
    NeededDeleted,
    /// Of the snapshots to keep, keep the oldest.
    OldestKept,
    /// Delete a damaged snapshot rather than set it aside.
    DamagedDeleted,
}

impl From<StackPlant> for Plant {
    fn from(plant: StackPlant) -> Plant {
        Plant::Stack(plant)
    }
}

#[cfg(test)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Plant>> = const { std::cell::Cell::new(None) };
}

/// Whether this rule is broken on this thread.
#[inline(always)]
pub(crate) fn planted(plant: impl Into<Plant>) -> bool {
    #[cfg(test)]
    return PLANTED.with(|cell| cell.get()) == Some(plant.into());
    #[cfg(not(test))]
    {
        let _ = plant;
        false
    }
}

/// Runs `body` with one rule broken on this thread.
#[cfg(test)]
pub(crate) fn with<T>(plant: impl Into<Plant>, body: impl FnOnce() -> T) -> T {
    struct Restore;
    impl Drop for Restore {
        fn drop(&mut self) {
            PLANTED.with(|cell| cell.set(None));
        }
    }
    PLANTED.with(|cell| cell.set(Some(plant.into())));
    let _restore = Restore;
    body()
}

/// The rule that is broken on a thread, to be taken along to one that it starts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Carried {
    #[cfg(test)]
    plant: Option<Plant>,
}

/// What is planted on this thread.
#[inline(always)]
pub(crate) fn carried() -> Carried {
    Carried {
        #[cfg(test)]
        plant: PLANTED.with(|cell| cell.get()),
    }
}

impl Carried {
    /// Plants it on this thread, until its end.
    #[inline(always)]
    pub(crate) fn take_root(self) {
        #[cfg(test)]
        PLANTED.with(|cell| cell.set(self.plant));
    }
}
