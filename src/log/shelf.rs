//! Which sealed segment holds which entries, for readers that need not take the core's lock.
//!
//! Invariants: what is found was so in the core at some moment during the look. It is put here under the core's lock,
//! and under the same lock taken away by whatever changes it: a truncation, a compaction, a dropped segment, poison,
//! the end of the log. Appends change nothing that is here. No segment is held here that the core does not hold.
//!
//! Entries that may be in the tail cache are not found, so that nobody goes to the disk for them.

use std::ops::Range;
use std::sync::{Arc, PoisonError};

use crate::segment::sealed::SegmentHandle;
use crate::sync::{RwLock, RwLockWriteGuard};

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

/// Every interleaving of a reader and of a compaction that lets a segment go.
#[cfg(all(test, ringwal_loom))]
mod loom_models {
    use std::sync::Arc;

    use super::*;
    use crate::disk::Disk;
    use crate::format::segment::SegmentHeader;
    use crate::sim::SimDisk;
    use crate::sync::atomic::{AtomicBool, Ordering};
    use crate::sync::{Mutex, thread};

    /// What the core holds, and what became of the oldest segment.
    struct Log {
        core: Mutex<Vec<Shelved>>,
        shelf: Shelf,
        is_compacted: AtomicBool,
        is_recycled: AtomicBool,
    }

    impl Log {
        fn new(disk: &Arc<dyn Disk>) -> Log {
            let segment = |sequence: u64| {
                let (block_bytes, segment_bytes) = (512, 24 * 512);
                let header = SegmentHeader { log_id: [0; 16], sequence, salt: 1, block_bytes, segment_bytes };
                (sequence * 10..sequence * 10 + 10, Arc::new(SegmentHandle::new(disk.clone(), header)))
            };
            Log {
                core: Mutex::new(vec![segment(1), segment(2)]),
                shelf: Shelf::default(),
                is_compacted: AtomicBool::new(false),
                is_recycled: AtomicBool::new(false),
            }
        }

        /// A reader, as in `reader::get`.
        fn find(&self, index: u64) -> Option<Arc<SegmentHandle>> {
            self.shelf.find(index).or_else(|| {
                let core = self.core.lock().unwrap();
                let found = core.iter().find(|(live, _)| live.contains(&index)).map(|(_, handle)| handle.clone());
                found.inspect(|_| self.shelf.missed(index, || core.clone()))
            })
        }

        /// The helper, as in `drop_oldest` and `may_recycle`.
        fn compact(&self, clears_in_time: bool) {
            let mut core = self.core.lock().unwrap();
            let (_, dropped) = core.remove(0);
            if clears_in_time {
                self.shelf.clear();
            }
            drop(core);
            self.is_compacted.store(true, Ordering::Release);
            if !clears_in_time {
                self.shelf.clear();
            }
            if Arc::strong_count(&dropped) == 1 {
                self.is_recycled.store(true, Ordering::Relaxed);
            }
        }

        fn read(&self) {
            let was_compacted = self.is_compacted.load(Ordering::Acquire);
            let Some(_handle) = self.find(15) else { return };
            assert!(!was_compacted, "an entry was found after its compaction was acknowledged");
            assert!(!self.is_recycled.load(Ordering::Relaxed), "a segment was overwritten under its reader");
        }
    }

    fn a_segment_goes_under_readers(clears_in_time: bool) {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::manual(0));
        loom::model(move || {
            let log = Arc::new(Log::new(&disk));
            for _ in 0..MISSES {
                assert!(log.find(15).is_some());
            }
            assert!(log.shelf.find(15).is_some(), "it is on the shelf");
            let (one, two) = (log.clone(), log.clone());
            let readers = [thread::spawn(move || one.read()), thread::spawn(move || two.read())];
            log.compact(clears_in_time);
            readers.into_iter().for_each(|reader| reader.join().unwrap());
            assert!(log.find(15).is_none() && log.find(25).is_some());
        });
    }

    #[test]
    fn a_segment_that_goes_is_neither_found_afterwards_nor_overwritten_under_a_reader() {
        a_segment_goes_under_readers(true);
    }

    #[test]
    #[should_panic(expected = "after its compaction was acknowledged")]
    fn a_shelf_that_is_cleared_too_late_would_be_found() {
        a_segment_goes_under_readers(false);
    }
}
