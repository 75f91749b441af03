//! A log in memory, for tests of programs that embed the durable one: same answers, same errors, nothing kept.
//!
//! Invariants: entries are contiguous and terms never fall; the first entry follows the compaction point if there is
//! one; a refused call changes nothing. It knows no disk, so what only a disk can do (fill up, fail, be busy) never
//! happens here, and payloads have no size limit.

use std::collections::VecDeque;

use crate::entry::LogEntry;
use crate::error::{Error, Result};
use crate::format::INDEX_MAX;
use crate::log_storage::LogStorage;

/// An in-memory [`LogStorage`].
///
/// It is a plain value: clone it to keep a state and come back to it. The methods of its own need no executor.
///
/// ```
/// use ringwal::{Error, LogEntry, MemLog};
///
/// let mut log = MemLog::new();
/// log.append([LogEntry::new(1, 1, "a"), LogEntry::new(1, 2, "b"), LogEntry::new(2, 3, "c")])?;
/// log.truncate_from(3)?;
/// log.compact_to(1, 1)?;
/// assert_eq!(log.get(2)?.command, "b");
/// assert_eq!((log.compacted(), log.last(), log.next_index()), (Some((1, 1)), Some((2, 1)), Some(3)));
/// assert!(matches!(log.get(3), Err(Error::NotWritten { next: 3 })));
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemLog {
    entries: VecDeque<LogEntry>,
    /// (index, term) of the last entry that was compacted away.
    compacted: Option<(u64, u64)>,
}

impl MemLog {
    /// A log without entries and without a compaction point: the first entry may have any index.
    pub fn new() -> MemLog {
        MemLog::default()
    }

    /// Index and term of the last entry.
    pub fn last(&self) -> Option<(u64, u64)> {
        self.entries.back().map(|entry| (entry.index, entry.term))
    }

    /// The compaction point: index and term of the last entry that was compacted away.
    pub fn compacted(&self) -> Option<(u64, u64)> {
        self.compacted
    }

    /// The lowest index that can be read now or, in a log without entries, later; `None` where that may be any.
    pub fn first_index(&self) -> Option<u64> {
        self.entries.front().map(|entry| entry.index).or(self.next_index())
    }

    /// The index that the next entry must have; `None` where it may be any.
    pub fn next_index(&self) -> Option<u64> {
        self.last_or_compacted().map(|(index, _)| index + 1)
    }

    /// What the next entry continues.
    fn last_or_compacted(&self) -> Option<(u64, u64)> {
        self.last().or(self.compacted)
    }

    /// Appends the entries, all or none, and returns the index before the next one: that of the last entry, if any.
    ///
    /// # Errors
    ///
    /// [`Error::Gap`], [`Error::TermFell`], and [`Error::TooLarge`] for an index above the highest there can be.
    pub fn append(&mut self, entries: impl IntoIterator<Item = LogEntry>) -> Result<u64> {
        let entries: Vec<LogEntry> = entries.into_iter().collect();
        let mut last = self.last_or_compacted();
        for entry in &entries {
            check_follows(last, entry)?;
            last = Some((entry.index, entry.term));
        }
        self.entries.extend(entries);
        Ok(last.map_or(0, |(index, _)| index))
    }

    /// The entry at an index.
    ///
    /// # Errors
    ///
    /// [`Error::Compacted`] below the first index, [`Error::NotWritten`] at or past the next.
    pub fn get(&self, index: u64) -> Result<&LogEntry> {
        self.check_readable(index)?;
        let entry = self.position(index).and_then(|nth| self.entries.get(nth));
        entry.ok_or(Error::NotWritten { next: self.next_or_default() })
    }

    /// The entries in memory, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &LogEntry> + ExactSizeIterator {
        self.entries.iter()
    }

    /// Removes the entry at `first_removed` and all after it. Where there are none, nothing happens.
    ///
    /// # Errors
    ///
    /// [`Error::Compacted`] at or below the compaction point.
    pub fn truncate_from(&mut self, first_removed: u64) -> Result<()> {
        match self.compacted {
            Some((point, _)) if first_removed <= point => Err(Error::Compacted { first: point + 1 }),
            _ => {
                // Below the first entry of a log without compaction point, all are removed.
                self.entries.truncate(self.position(first_removed).unwrap_or(0));
                Ok(())
            }
        }
    }

    /// Drops the entries up to and including `index`, which has `term`. Past the last index, the log is then empty and
    /// goes on at `index + 1`, as it must after an installed snapshot.
    ///
    /// Below the first index nothing happens.
    ///
    /// # Errors
    ///
    /// [`Error::TermMismatch`] where the log holds the index with another term, [`Error::TermFell`] where the index is
    /// past the last and its term lower, [`Error::TooLarge`] for an index above the highest there can be.
    pub fn compact_to(&mut self, index: u64, term: u64) -> Result<()> {
        check_index(index)?;
        match self.term(index) {
            Ok(expected) if expected != term => return Err(Error::TermMismatch { index, expected, found: term }),
            Err(Error::Compacted { .. }) => return Ok(()),
            Ok(_) => {}
            // Past the last index.
            Err(_) => check_term(self.last_or_compacted(), term)?,
        }
        let dropped = self.position(index).map_or(0, |nth| nth.saturating_add(1).min(self.entries.len()));
        self.entries.drain(..dropped);
        self.compacted = Some((index, term));
        Ok(())
    }

    /// Term of the entry at an index, or of the compaction point.
    ///
    /// # Errors
    ///
    /// As [`MemLog::get`].
    pub fn term(&self, index: u64) -> Result<u64> {
        match self.compacted {
            Some((point, term)) if point == index => Ok(term),
            _ => self.get(index).map(|entry| entry.term),
        }
    }

    /// Where an index at or past the first entry's lies, or would lie, among the entries.
    fn position(&self, index: u64) -> Option<usize> {
        let above = index.checked_sub(self.entries.front()?.index)?;
        Some(usize::try_from(above).unwrap_or(usize::MAX))
    }

    fn check_readable(&self, index: u64) -> Result<()> {
        match self.first_index() {
            Some(first) if index < first => Err(Error::Compacted { first }),
            _ => Ok(()),
        }
    }

    /// The next index for messages: an entry that brings none would get 1 in a log of default settings.
    fn next_or_default(&self) -> u64 {
        self.next_index().unwrap_or(1)
    }
}

fn check_index(index: u64) -> Result<()> {
    if index <= INDEX_MAX {
        return Ok(());
    }
    Err(Error::TooLarge { what: "index", bytes: index, limit: INDEX_MAX })
}

fn check_term(last: Option<(u64, u64)>, term: u64) -> Result<()> {
    match last {
        Some((_, last)) if term < last => Err(Error::TermFell { last, found: term }),
        _ => Ok(()),
    }
}

fn check_follows(last: Option<(u64, u64)>, entry: &LogEntry) -> Result<()> {
    match last {
        Some((last, _)) if entry.index != last + 1 => Err(Error::Gap { expected: last + 1, found: entry.index }),
        _ => check_index(entry.index).and(check_term(last, entry.term)),
    }
}

impl LogStorage for MemLog {
    type Error = Error;

    async fn append_entry(&mut self, entry: &LogEntry) -> Result<u64> {
        self.append([entry.clone()])
    }

    async fn append_entries(&mut self, entries: &[LogEntry]) -> Result<u64> {
        self.append(entries.iter().cloned())
    }

    async fn get_entry(&self, index: u64) -> Result<Option<LogEntry>> {
        match self.get(index) {
            Ok(entry) => Ok(Some(entry.clone())),
            Err(Error::NotWritten { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn get_entries(&self, start: u64, end: u64) -> Result<Vec<LogEntry>> {
        if start >= end {
            return Ok(Vec::new());
        }
        self.check_readable(start)?;
        let skipped = self.position(start).unwrap_or(0);
        Ok(self.entries.iter().skip(skipped).take_while(|entry| entry.index < end).cloned().collect())
    }

    async fn last_index(&self) -> Result<Option<u64>> {
        Ok(self.last().map(|(index, _)| index))
    }

    async fn last_term(&self) -> Result<Option<u64>> {
        Ok(self.last().map(|(_, term)| term))
    }

    async fn truncate(&mut self, index: u64) -> Result<()> {
        index.checked_add(1).map_or(Ok(()), |first_removed| self.truncate_from(first_removed))
    }

    async fn compact(&mut self, index: u64) -> Result<()> {
        match self.term(index) {
            Ok(term) => self.compact_to(index, term),
            Err(Error::Compacted { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::log_storage::conformance;

    #[test]
    fn it_does_what_every_log_storage_must() {
        conformance::all(MemLog::new);
    }

    proptest! {
        #[test]
        fn two_of_them_agree(operations in conformance::operations()) {
            conformance::agrees_with_mem_log(MemLog::new(), &operations);
        }
    }

    fn log(indexes: std::ops::Range<u64>, term: u64) -> MemLog {
        let mut log = MemLog::new();
        log.append(indexes.map(|index| LogEntry::new(term, index, "x"))).unwrap();
        log
    }

    #[test]
    fn an_installed_snapshot_moves_the_log_on() {
        let mut log = log(1..4, 2);
        assert!(matches!(log.compact_to(10, 1), Err(Error::TermFell { last: 2, found: 1 })));
        log.compact_to(10, 5).unwrap();
        assert_eq!((log.compacted(), log.last(), log.first_index()), (Some((10, 5)), None, Some(11)));
        assert_eq!((log.term(10).unwrap(), log.iter().len()), (5, 0));
        assert!(matches!(log.term(9), Err(Error::Compacted { first: 11 })));
        log.append([LogEntry::new(5, 11, "x")]).unwrap();
        // A new log takes one just as well.
        let mut new = MemLog::new();
        new.compact_to(10, 5).unwrap();
        assert_eq!(new.next_index(), Some(11));
    }

    #[test]
    fn compacting_to_another_term_is_refused() {
        let mut log = log(1..4, 2);
        assert!(matches!(log.compact_to(2, 3), Err(Error::TermMismatch { index: 2, expected: 2, found: 3 })));
        log.compact_to(2, 2).unwrap();
        assert!(matches!(log.compact_to(2, 3), Err(Error::TermMismatch { index: 2, expected: 2, found: 3 })));
        log.compact_to(1, 9).unwrap();
        assert!(matches!(log.compact_to(u64::MAX, 9), Err(Error::TooLarge { .. })));
        assert_eq!((log.compacted(), log.last()), (Some((2, 2)), Some((3, 2))));
    }

    #[test]
    fn truncate_from_can_empty_a_log_that_starts_at_zero() {
        let mut log = log(0..3, 1);
        log.truncate_from(3).unwrap();
        assert_eq!(log.last(), Some((2, 1)));
        log.truncate_from(0).unwrap();
        assert_eq!(log, MemLog::new());
    }

    #[test]
    fn truncate_from_the_compaction_point_is_refused() {
        let mut log = log(1..9, 1);
        log.compact_to(4, 1).unwrap();
        assert!(matches!(log.truncate_from(4), Err(Error::Compacted { first: 5 })));
        log.truncate_from(5).unwrap();
        assert_eq!((log.last(), log.next_index()), (None, Some(5)));
    }
}
