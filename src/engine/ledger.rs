//! What an operation means, and whether it fits what was before it.
//!
//! New batches and replayed frames go through the same rules, so recovery cannot accept what an append would refuse.
//!
//! The [`Outline`] is all that the rules need: small enough to try a batch on a copy before anything is accepted. The
//! [`Ledger`] adds where entries lie.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::ranges::Ranges;
use crate::error::Error;
use crate::format::INDEX_MAX;
use crate::format::frame::Operation;
use crate::format::index::SegmentIndex;
use crate::format::state::{State, hard_state_bytes_max};

/// The state of the log without its entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outline {
    pub(crate) state: State,
}

impl Outline {
    /// Checks that an operation fits.
    ///
    /// # Errors
    ///
    /// The error that the caller of an append would get.
    pub(crate) fn check(&self, operation: &Operation, segment_bytes: u64) -> Result<(), Error> {
        match operation {
            Operation::Entry { index, term, .. } => self.check_entry(*index, *term),
            Operation::Truncate { first_removed, .. } => self.check_truncate(*first_removed),
            Operation::Compact { index, term } => self.check_compact(*index, *term),
            Operation::PutMeta { key, value } => {
                let before = self.state.hard_state.get(key).map_or(0, |old| pair(key, old));
                let bytes = self.state.hard_state_bytes() - before + pair(key, value);
                let limit = hard_state_bytes_max(segment_bytes);
                if bytes > limit { Err(Error::TooLarge { what: "hard state", bytes, limit }) } else { Ok(()) }
            }
            Operation::DeleteMeta { .. } => Ok(()),
        }
    }

    fn check_entry(&self, index: u64, term: u64) -> Result<(), Error> {
        match self.state.next {
            Some(expected) if expected != index => Err(Error::Gap { expected, found: index }),
            _ if index > INDEX_MAX => Err(Error::TooLarge { what: "index", bytes: index, limit: INDEX_MAX }),
            _ => self.check_term(term),
        }
    }

    fn check_term(&self, found: u64) -> Result<(), Error> {
        let last = self.state.last_term;
        if found < last { Err(Error::TermFell { last, found }) } else { Ok(()) }
    }

    fn check_truncate(&self, first_removed: u64) -> Result<(), Error> {
        let Some(next) = self.state.next else { return Err(Error::NotWritten { next: 0 }) };
        if first_removed > next {
            return Err(Error::NotWritten { next });
        }
        let first = self.first_readable(next);
        if first_removed < first { Err(Error::Compacted { first }) } else { Ok(()) }
    }

    fn check_compact(&self, index: u64, term: u64) -> Result<(), Error> {
        if index > INDEX_MAX {
            return Err(Error::TooLarge { what: "index", bytes: index, limit: INDEX_MAX });
        }
        if self.state.compacted.is_some_and(|(compacted, _)| index <= compacted) {
            return Err(Error::Compacted { first: self.first_readable(0) });
        }
        match self.state.first {
            Some(first) if index + 1 < first => Err(Error::Compacted { first }),
            _ if self.is_past_end(index) => self.check_term(term),
            _ => Ok(()),
        }
    }

    /// Whether a compaction to `index` leaves no entry, so that the log goes on right behind it.
    fn is_past_end(&self, index: u64) -> bool {
        self.state.first.is_none() || self.state.next.is_none_or(|next| index >= next)
    }

    /// The lowest index that can be read or truncated; `next` where there is none.
    pub(crate) fn first_readable(&self, next: u64) -> u64 {
        let after_compaction = self.state.compacted.map(|(index, _)| index + 1);
        self.state.first.or(after_compaction).unwrap_or(next)
    }

    /// Carries out an operation that was checked.
    pub(crate) fn apply(&mut self, operation: &Operation) {
        let state = &mut self.state;
        match operation {
            Operation::Entry { index, term, .. } => {
                (state.next, state.last_term) = (Some(index + 1), *term);
                state.first = state.first.or(Some(*index));
            }
            Operation::Truncate { first_removed, last_term } => {
                (state.next, state.last_term) = (Some(*first_removed), *last_term);
                state.first = state.first.filter(|first| first < first_removed);
                if state.first.is_none() && state.compacted.is_none() {
                    // Nothing is left and nothing was ever compacted: the log is as new and may start anywhere.
                    state.next = None;
                }
            }
            Operation::Compact { index, term } => {
                let past_end = self.is_past_end(*index);
                let state = &mut self.state;
                state.compacted = Some((*index, *term));
                if past_end {
                    (state.next, state.last_term) = (Some(index + 1), *term);
                }
                state.first = Some(index + 1).filter(|first| state.next.is_some_and(|next| *first < next));
            }
            Operation::PutMeta { key, value } => {
                Arc::make_mut(&mut state.hard_state).insert(key.clone(), value.clone());
            }
            Operation::DeleteMeta { key } => {
                Arc::make_mut(&mut state.hard_state).remove(key);
            }
        }
    }
}

fn pair(key: &[u8], value: &[u8]) -> u64 {
    crate::format::state::pair_bytes(key, value)
}

/// The outline, and where every entry lies.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) outline: Outline,
    pub(crate) ranges: Ranges,
    /// Indexes of the segments that have no index file yet: the newest, and those whose file is being made. Only the
    /// newest ever changes.
    pub(crate) indexes: BTreeMap<u64, Arc<SegmentIndex>>,
}

impl Ledger {
    /// The log goes on in this segment.
    pub(crate) fn add_segment(&mut self, sequence: u64, first_frame: u64) {
        self.ranges.add_segment(sequence, first_frame);
        self.indexes.insert(sequence, Arc::new(SegmentIndex::new()));
    }

    /// The term of a live entry, where its segment's index is in memory.
    pub(crate) fn term_of(&self, index: u64) -> Option<u64> {
        let segment = self.ranges.locate(index)?;
        self.indexes.get(&segment.sequence)?.term_of(index)
    }

    /// Whether the live entries of all segments together are those that the outline tells of, without a hole.
    pub(crate) fn ranges_agree(&self) -> bool {
        let State { first, next, .. } = self.outline.state;
        let mut end = first;
        let mut live = self.ranges.iter().map(|segment| &segment.live).filter(|live| !live.is_empty());
        let joins = live.all(|live| end.replace(live.end) == Some(live.start));
        joins && (first.is_none() || end == next)
    }

    /// Carries out `count` appends at the next indexes, from `first` on, with the last term. Where they lie is told to
    /// what this returns.
    pub(crate) fn begin_run(&mut self, first: u64, count: u64) -> Run<'_> {
        let state = &mut self.outline.state;
        state.next = Some(first + count);
        state.first = state.first.or(Some(first));
        self.ranges.push_run(first..first + count);
        let newest = self.indexes.last_entry().map(|entry| Arc::make_mut(entry.into_mut()));
        Run { newest, term: self.outline.state.last_term }
    }

    /// Carries out a checked operation of the newest segment; an entry's header lies at `offset` in it.
    pub(crate) fn apply(&mut self, operation: &Operation, offset: u32) {
        let past_end = matches!(operation, Operation::Compact { index, .. } if self.outline.is_past_end(*index));
        self.outline.apply(operation);
        let newest = self.indexes.last_entry().map(|entry| Arc::make_mut(entry.into_mut()));
        match operation {
            Operation::Entry { index, term, .. } => {
                self.ranges.push(*index);
                newest.into_iter().for_each(|newest| newest.push(*index, *term, offset));
            }
            Operation::Truncate { first_removed, .. } => {
                self.ranges.truncate_from(*first_removed);
                newest.into_iter().for_each(|newest| newest.truncate_from(*first_removed));
            }
            Operation::Compact { index, .. } => {
                self.ranges.compact_to(*index);
                newest.filter(|_| past_end).into_iter().for_each(|newest| newest.compact_past(*index));
            }
            Operation::PutMeta { .. } | Operation::DeleteMeta { .. } => {}
        }
    }
}

/// Appends of one batch on their way into the newest segment's index.
pub(crate) struct Run<'a> {
    newest: Option<&'a mut SegmentIndex>,
    term: u64,
}

impl Run<'_> {
    /// The header of the entry with this index lies at `offset`.
    pub(crate) fn push(&mut self, index: u64, offset: u32) {
        if let Some(newest) = &mut self.newest {
            newest.push(index, self.term, offset);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const SEGMENT: u64 = 1 << 20;

    fn entry(index: u64, term: u64) -> Operation {
        Operation::Entry { index, term, timestamp: 0, payload: Bytes::new() }
    }

    fn truncate(first_removed: u64, last_term: u64) -> Operation {
        Operation::Truncate { first_removed, last_term }
    }

    fn compact(index: u64, term: u64) -> Operation {
        Operation::Compact { index, term }
    }

    fn outline(operations: &[Operation]) -> Outline {
        let mut outline = Outline::default();
        for operation in operations {
            outline.check(operation, SEGMENT).unwrap();
            outline.apply(operation);
        }
        outline
    }

    #[test]
    fn an_empty_log_takes_any_first_index_and_none_after_that() {
        for first in [0, 1, 2, 1000, INDEX_MAX] {
            let log = outline(&[entry(first, 3)]);
            assert!(matches!(
                log.check(&entry(first + 2, 3), SEGMENT),
                Err(Error::Gap { .. } | Error::TooLarge { .. })
            ));
        }
        let emptied = outline(&[entry(5, 1), truncate(5, 0)]);
        assert_eq!(emptied.state.next, None);
        assert!(emptied.check(&entry(2, 1), SEGMENT).is_ok());
    }

    #[test]
    fn terms_never_fall_not_even_behind_a_compaction_point() {
        let log = outline(&[entry(1, 4), compact(9, 6)]);
        assert!(matches!(log.check(&entry(10, 5), SEGMENT), Err(Error::TermFell { last: 6, found: 5 })));
        assert!(matches!(log.check(&entry(2, 6), SEGMENT), Err(Error::Gap { expected: 10, found: 2 })));
        assert!(log.check(&entry(10, 6), SEGMENT).is_ok());
    }

    #[test]
    fn truncation_stays_within_what_is_there() {
        let log = outline(&[entry(1, 1), entry(2, 1), entry(3, 1), compact(2, 1)]);
        assert!(matches!(log.check(&truncate(2, 1), SEGMENT), Err(Error::Compacted { first: 3 })));
        assert!(log.check(&truncate(3, 1), SEGMENT).is_ok());
        assert!(log.check(&truncate(4, 1), SEGMENT).is_ok());
        assert!(matches!(log.check(&truncate(5, 1), SEGMENT), Err(Error::NotWritten { next: 4 })));
    }

    #[test]
    fn a_compaction_inside_keeps_the_rest_and_one_past_the_end_moves_the_log() {
        let log = outline(&[entry(1, 1), entry(2, 2), compact(1, 1)]);
        assert_eq!((log.state.first, log.state.next, log.state.last_term), (Some(2), Some(3), 2));
        let log = outline(&[entry(1, 1), compact(1, 1)]);
        assert_eq!((log.state.first, log.state.next), (None, Some(2)));
        let log = outline(&[entry(1, 1), compact(100, 7)]);
        assert_eq!((log.state.first, log.state.next, log.state.last_term), (None, Some(101), 7));
    }

    #[test]
    fn ranges_agree_while_they_hold_every_live_entry_and_no_other() {
        let mut ledger = Ledger::default();
        assert!(ledger.ranges_agree());
        ledger.add_segment(1, 1);
        (5..9).for_each(|index| ledger.apply(&entry(index, 1), index as u32 * 64));
        ledger.add_segment(2, 5);
        ledger.apply(&entry(9, 1), 512);
        ledger.apply(&compact(6, 1), 0);
        assert!(ledger.ranges_agree());
        let mut short = ledger.clone();
        short.ranges.truncate_from(9);
        assert!(!short.ranges_agree(), "the last entry is missing");
        let mut holed = ledger.clone();
        holed.ranges.drop_oldest();
        assert!(!holed.ranges_agree(), "the first ones are missing");
        let mut more = ledger.clone();
        more.ranges.push(10);
        assert!(!more.ranges_agree(), "one too many");
        ledger.apply(&compact(20, 1), 0);
        assert!(ledger.ranges_agree(), "nothing is left, and nothing is there");
    }

    #[test]
    fn hard_state_above_its_limit_is_refused() {
        let mut log = Outline::default();
        let put = |bytes: usize| Operation::PutMeta { key: Bytes::from_static(b"k"), value: vec![0; bytes].into() };
        log.apply(&put(60_000));
        assert!(log.check(&put(65_000), SEGMENT).is_ok(), "replacing counts once");
        assert!(matches!(log.check(&put(66_000), SEGMENT), Err(Error::TooLarge { .. })));
    }
}
