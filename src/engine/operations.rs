//! The operations of one frame, and which entry among them an index means.
//!
//! A frame's operations are kept once: the writer encodes them, and the tail cache serves reads from them.
//!
//! Invariants: operations stand in the order accepted; the indexes that [`Operations::live`] tells are contiguous, and
//! each means the newest entry of that index that no later truncation of the frame removed.
//!
//! Does not know about other frames: what a later one truncates or compacts, whoever holds the frames must ask first.

use std::ops::Range;

use crate::format::frame::Operation;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Operations {
    list: Vec<Operation>,
    /// Index of the first live entry.
    first: u64,
    /// Where the live entries stand in `list`, in order; `None` while every operation is a live entry, as in most
    /// frames: then entry n stands at n.
    places: Option<Vec<u32>>,
}

impl Operations {
    /// The operations in order.
    pub(crate) fn list(&self) -> &[Operation] {
        &self.list
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// Makes room for so many more.
    pub(crate) fn reserve(&mut self, count: usize) {
        self.list.reserve(count);
    }

    /// Adds the next operation, which was checked to fit.
    pub(crate) fn push(&mut self, operation: Operation) {
        let at = self.list.len() as u32;
        match &operation {
            Operation::Entry { index, .. } => {
                let is_first = self.places.as_ref().map_or(at == 0, Vec::is_empty);
                if is_first {
                    self.first = *index;
                }
                debug_assert_eq!(*index, self.live().end, "entries of a frame are contiguous");
                if let Some(places) = &mut self.places {
                    places.push(at);
                }
            }
            Operation::Truncate { first_removed, .. } => {
                let kept = first_removed.saturating_sub(self.first);
                self.scattered().truncate(usize::try_from(kept).unwrap_or(usize::MAX));
            }
            Operation::Compact { index, .. } if *index >= self.live().end.saturating_sub(1) => {
                self.scattered().clear();
            }
            Operation::Compact { .. } | Operation::PutMeta { .. } | Operation::DeleteMeta { .. } => {
                self.scattered();
            }
        }
        self.list.push(operation);
    }

    fn scattered(&mut self) -> &mut Vec<u32> {
        let count = self.list.len() as u32;
        self.places.get_or_insert_with(|| (0..count).collect())
    }

    /// Indexes of the entries that no operation of the frame itself removed.
    pub(crate) fn live(&self) -> Range<u64> {
        let count = self.places.as_ref().map_or(self.list.len(), Vec::len);
        self.first..self.first + count as u64
    }

    /// The entry of an index.
    pub(crate) fn entry(&self, index: u64) -> Option<&Operation> {
        let nth = usize::try_from(index.checked_sub(self.first)?).ok()?;
        match &self.places {
            None => self.list.get(nth),
            Some(places) => self.list.get(*places.get(nth)? as usize),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn entry(index: u64, term: u64) -> Operation {
        Operation::Entry { index, term, timestamp: 0, payload: Bytes::new() }
    }

    fn of(operations: &[Operation]) -> Operations {
        let mut made = Operations::default();
        operations.iter().for_each(|operation| made.push(operation.clone()));
        made
    }

    fn terms(operations: &Operations) -> Vec<(u64, u64)> {
        let term = |index| match operations.entry(index) {
            Some(Operation::Entry { index: at, term, .. }) if *at == index => (index, *term),
            other => panic!("{index}: {other:?}"),
        };
        assert!(operations.entry(operations.live().end).is_none());
        operations.live().map(term).collect()
    }

    #[test]
    fn plain_entries_are_found_by_their_distance() {
        assert_eq!(terms(&of(&[entry(7, 1), entry(8, 1), entry(9, 2)])), [(7, 1), (8, 1), (9, 2)]);
        assert!(of(&[entry(7, 1)]).entry(6).is_none());
        assert!(of(&[]).live().is_empty());
    }

    #[test]
    fn hard_state_between_entries_moves_no_index() {
        let meta = Operation::DeleteMeta { key: Bytes::from_static(b"k") };
        assert_eq!(terms(&of(&[meta.clone(), entry(7, 1), meta.clone(), entry(8, 2), meta])), [(7, 1), (8, 2)]);
    }

    #[test]
    fn an_index_used_twice_means_the_later_entry() {
        let truncate = |first_removed| Operation::Truncate { first_removed, last_term: 0 };
        let twice = of(&[entry(7, 1), entry(8, 1), truncate(8), entry(8, 2), entry(9, 2)]);
        assert_eq!(terms(&twice), [(7, 1), (8, 2), (9, 2)]);
        let below = of(&[entry(7, 1), truncate(3), entry(3, 4)]);
        assert_eq!(terms(&below), [(3, 4)]);
        assert!(of(&[entry(7, 1), truncate(3)]).live().is_empty());
    }

    #[test]
    fn a_compaction_past_the_end_begins_anew_behind_it_and_one_inside_changes_nothing() {
        let compact = |index| Operation::Compact { index, term: 1 };
        assert_eq!(terms(&of(&[entry(7, 1), compact(20), entry(21, 1)])), [(21, 1)]);
        assert_eq!(terms(&of(&[entry(7, 1), entry(8, 1), compact(7), entry(9, 1)])), [(7, 1), (8, 1), (9, 1)]);
    }
}
