//! The tail cache: the newest entries in memory, so that a reader gets what it just appended without the disk.
//!
//! Invariants: the cached indexes are contiguous and end at the next index; an entry leaves from the front, and only
//! once its frame is acknowledged, so every entry that is not readable on disk is here. What is not acknowledged is
//! bounded by the queue, the rest by the limit given.

use std::collections::VecDeque;

use crate::entry::LogEntry;

/// What an entry costs besides its payload, counted so that tiny payloads are bounded too.
const ENTRY_BYTES: u64 = 80;

#[derive(Debug)]
struct Cached {
    entry: LogEntry,
    frame: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct TailCache {
    entries: VecDeque<Cached>,
    bytes: u64,
    bytes_max: u64,
}

impl TailCache {
    pub(crate) fn new(bytes_max: u64) -> TailCache {
        TailCache { entries: VecDeque::new(), bytes: 0, bytes_max }
    }

    /// Adds the entry of a frame; one that does not continue the cached ones starts afresh.
    pub(crate) fn push(&mut self, entry: LogEntry, frame: u64) {
        if self.entries.back().is_some_and(|last| last.entry.index + 1 != entry.index) {
            self.entries.clear();
            self.bytes = 0;
        }
        self.bytes += cost(&entry);
        self.entries.push_back(Cached { entry, frame });
    }

    pub(crate) fn truncate_from(&mut self, first_removed: u64) {
        while let Some(gone) = self.entries.pop_back_if(|last| last.entry.index >= first_removed) {
            self.bytes -= cost(&gone.entry);
        }
    }

    /// Forgets what was compacted.
    pub(crate) fn compact_to(&mut self, index: u64) {
        while let Some(gone) = self.entries.pop_front_if(|first| first.entry.index <= index) {
            self.bytes -= cost(&gone.entry);
        }
    }

    /// Lets go of the oldest entries above the limit, as far as their frames are acknowledged.
    pub(crate) fn evict(&mut self, acknowledged: u64) {
        while self.bytes > self.bytes_max {
            match self.entries.pop_front_if(|first| first.frame <= acknowledged) {
                Some(gone) => self.bytes -= cost(&gone.entry),
                None => break,
            }
        }
    }

    pub(crate) fn get(&self, index: u64) -> Option<&LogEntry> {
        let first = self.entries.front()?.entry.index;
        self.entries.get(usize::try_from(index.checked_sub(first)?).ok()?).map(|cached| &cached.entry)
    }
}

fn cost(entry: &LogEntry) -> u64 {
    entry.command.len() as u64 + ENTRY_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(indexes: std::ops::Range<u64>) -> TailCache {
        let mut cache = TailCache::new(ENTRY_BYTES * 3);
        indexes.for_each(|index| cache.push(LogEntry::new(1, index, "x"), index));
        cache
    }

    #[test]
    fn only_acknowledged_entries_leave() {
        let mut cache = cache(10..20);
        cache.evict(12);
        assert!(cache.get(12).is_none() && cache.get(13).is_some());
        cache.evict(100);
        assert!(cache.get(17).is_none() && cache.get(18).is_some() && cache.get(20).is_none());
    }

    #[test]
    fn truncation_compaction_and_jumps_keep_the_cache_contiguous() {
        let mut cache = cache(10..20);
        cache.truncate_from(15);
        cache.compact_to(11);
        assert!(cache.get(15).is_none() && cache.get(11).is_none());
        assert_eq!(cache.get(12).map(|entry| entry.index), Some(12));
        cache.push(LogEntry::new(1, 100, "x"), 30);
        assert!(cache.get(12).is_none());
        assert_eq!((cache.get(100).map(|entry| entry.index), cache.bytes), (Some(100), ENTRY_BYTES + 1));
    }
}
