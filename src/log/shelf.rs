//! Which sealed segment holds which entries, for readers that need not take the core's lock.
//!
//! Invariants: what is found was so in the core at some moment during the look. It is put here under the core's lock,
//! and under the same lock taken away by whatever changes it: a truncation, a compaction, a dropped segment, poison,
//! the end of the log. Appends change nothing that is here. No segment is held here that the core does not hold.
//!
//! Entries that may be in the tail cache are not found, so that nobody goes to the disk for them.

use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use crate::segment::sealed::SegmentHandle;

/// So many reads go through the core before everything is put here: it may be taken away again by the next compaction.
const MISSES: u32 = 8;

/// A segment and its live entries.
pub(crate) type Shelved = (Range<u64>, Arc<SegmentHandle>);

#[derive(Default)]
struct Contents {
    /// Ascending.
    segments: Vec<Shelved>,
    /// Entries from this index on may be in the tail cache.
    upto: u64,
    misses: u32,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Shelf(RwLock<Contents>);

impl Shelf {
    /// The segment that holds an entry.
    pub(crate) fn find(&self, index: u64) -> Option<Arc<SegmentHandle>> {
        let contents = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if index >= contents.upto {
            return None;
        }
        contents.segment_of(index).map(|(_, handle)| handle.clone())
    }

    /// An entry was looked for here, and found by the core in a sealed segment and not in the tail cache. `all` lists
    /// the sealed segments with their live entries, as of now. Called with the core's lock.
    pub(crate) fn missed(&self, index: u64, all: impl FnOnce() -> Vec<Shelved>) {
        let mut contents = self.contents();
        if contents.segment_of(index).is_none() {
            contents.misses += 1;
            if contents.misses < MISSES {
                return;
            }
            contents.segments = all();
            contents.misses = 0;
        }
        contents.upto = contents.upto.max(index + 1);
    }

    /// Takes everything away. Called with the core's lock.
    pub(crate) fn clear(&self) {
        *self.contents() = Contents::default();
    }

    fn contents(&self) -> RwLockWriteGuard<'_, Contents> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Contents {
    fn segment_of(&self, index: u64) -> Option<&Shelved> {
        let at = self.segments.partition_point(|(live, _)| live.end <= index);
        self.segments.get(at).filter(|(live, _)| live.contains(&index))
    }
}
