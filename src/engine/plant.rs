//! Planted mistakes: rules that a test can break on purpose, to prove that the crash explorer notices.
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
