//! Which segment holds which live entries, and which segment may go.
//!
//! Invariants: segments are in sequence order without gaps; their live ranges are in ascending order, do not overlap,
//! and the non-empty ones follow each other without a hole. An index is therefore found by binary search.
//!
//! Does not know files, offsets or payloads.

use std::collections::VecDeque;
use std::ops::Range;

use crate::plant::{Plant, planted};

/// One segment's part of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SegmentRange {
    pub(crate) sequence: u64,
    /// Number of the segment's first frame.
    pub(crate) first_frame: u64,
    /// The entries in it that are neither truncated nor compacted.
    pub(crate) live: Range<u64>,
    /// The highest index ever written in it, truncated or not.
    pub(crate) highest_ever: Option<u64>,
}

/// All segments that hold frames, oldest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ranges {
    segments: VecDeque<SegmentRange>,
}

impl Ranges {
    /// The log goes on in this segment.
    pub(crate) fn add_segment(&mut self, sequence: u64, first_frame: u64) {
        let start = self.segments.back().map_or(0, |last| last.live.end);
        self.segments.push_back(SegmentRange { sequence, first_frame, live: start..start, highest_ever: None });
    }

    /// Adds a segment as its index file tells it, after the older ones; `floor` is the lowest index that a truncation
    /// in it reached.
    pub(crate) fn restore(&mut self, mut segment: SegmentRange, floor: Option<u64>) {
        if let Some(floor) = floor.filter(|_| !planted(Plant::FloorIgnored)) {
            self.truncate_from(floor);
        }
        if segment.live.is_empty() {
            // An index without entries stands at any number; here it would break the ascending order.
            let start = self.segments.back().map_or(0, |last| last.live.end);
            segment.live = start..start;
        } else {
            self.lower_empty_tail(segment.live.start);
        }
        self.segments.push_back(segment);
    }

    /// An entry was written to the newest segment.
    pub(crate) fn push(&mut self, index: u64) {
        self.push_run(index..index + 1);
    }

    /// Entries were written to the newest segment: at least one.
    pub(crate) fn push_run(&mut self, indexes: Range<u64>) {
        let index = indexes.start;
        if self.segments.back().is_some_and(|newest| newest.live.is_empty() || newest.live.end != index) {
            self.lower_empty_tail(index);
        }
        let Some(newest) = self.segments.back_mut() else { return };
        if newest.live.is_empty() || newest.live.end != index {
            // A log emptied by a compaction past its end, or never begun, starts anywhere.
            newest.live = index..index;
        }
        newest.live.end = indexes.end;
        newest.highest_ever = newest.highest_ever.max(Some(indexes.end - 1));
    }

    /// Keeps empty ranges from standing above an index that follows them: an emptied log may begin again lower down.
    fn lower_empty_tail(&mut self, index: u64) {
        for segment in self.segments.iter_mut().rev() {
            if segment.live.is_empty() && segment.live.start > index {
                segment.live = index..index;
            }
        }
    }

    pub(crate) fn truncate_from(&mut self, first_removed: u64) {
        let reach = if planted(Plant::TruncatesNewestOnly) { 1 } else { usize::MAX };
        let reached = |segment: &&mut SegmentRange| segment.live.end > first_removed;
        for segment in self.segments.iter_mut().rev().take_while(reached).take(reach) {
            segment.live = segment.live.start.min(first_removed)..first_removed;
        }
    }

    pub(crate) fn compact_to(&mut self, index: u64) {
        for segment in self.segments.iter_mut() {
            if segment.live.start > index {
                break;
            }
            let start = index + 1;
            segment.live = start..segment.live.end.max(start);
        }
    }

    /// The segment that holds a live index.
    pub(crate) fn locate(&self, index: u64) -> Option<&SegmentRange> {
        let at = self.segments.partition_point(|segment| segment.live.end <= index);
        self.segments.get(at).filter(|segment| segment.live.contains(&index))
    }

    /// The lowest live index.
    #[cfg(test)]
    pub(crate) fn first(&self) -> Option<u64> {
        self.segments.iter().find(|segment| !segment.live.is_empty()).map(|segment| segment.live.start)
    }

    /// The oldest segment, if it may go: nothing in it can be needed again, because a durable compaction point covers
    /// every index ever written there (operations in flight do not count), and because the frame after it, which
    /// carries the state so far, is durable. Dropping it earlier would lose the only durable copy of that state.
    pub(crate) fn droppable(&self, durable_compaction: Option<u64>, durable_frame: u64) -> Option<u64> {
        let (oldest, next) = (self.segments.front()?, self.segments.get(1)?);
        let highest_ever = match planted(Plant::DropsByLive) {
            true => oldest.live.clone().next_back(),
            false => oldest.highest_ever,
        };
        let covered = highest_ever.is_none_or(|highest| durable_compaction.is_some_and(|index| highest <= index));
        let carried = next.first_frame <= durable_frame || planted(Plant::DropBeforeNextBase);
        (covered && carried).then_some(oldest.sequence)
    }

    /// Whether a compaction to `index` would let the oldest segment go.
    pub(crate) fn frees(&self, index: u64) -> bool {
        self.segments.len() > 1 && self.segments[0].highest_ever.is_none_or(|highest| highest <= index)
    }

    /// Forgets the oldest segment.
    pub(crate) fn drop_oldest(&mut self) -> Option<SegmentRange> {
        self.segments.pop_front()
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &SegmentRange> {
        self.segments.iter()
    }

    pub(crate) fn newest(&self) -> Option<&SegmentRange> {
        self.segments.back()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Push(u8),
        Truncate(u8),
        Compact(u8),
        Roll,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1..9u8).prop_map(Step::Push),
            1 => (0..20u8).prop_map(Step::Truncate),
            1 => (0..20u8).prop_map(Step::Compact),
            2 => Just(Step::Roll),
        ]
    }

    proptest! {
        #[test]
        fn ranges_agree_with_a_map_from_index_to_segment(steps in proptest::collection::vec(step(), 0..60)) {
            let mut ranges = Ranges::default();
            let mut model: BTreeMap<u64, u64> = BTreeMap::new();
            let (mut sequence, mut next, mut compacted) = (1, 10, 0);
            ranges.add_segment(1, 1);
            for step in steps {
                match step {
                    Step::Push(count) => for _ in 0..count {
                        ranges.push(next);
                        model.insert(next, sequence);
                        next += 1;
                    },
                    Step::Truncate(back) => {
                        let from = next.saturating_sub(back.into()).max(compacted + 1).max(10);
                        ranges.truncate_from(from);
                        model.split_off(&from);
                        next = from.min(next);
                    }
                    Step::Compact(ahead) => {
                        let index = (compacted + u64::from(ahead)).max(10);
                        if index <= compacted { continue; }
                        ranges.compact_to(index);
                        model = model.split_off(&(index + 1));
                        compacted = index;
                        next = next.max(index + 1);
                    }
                    Step::Roll => { sequence += 1; ranges.add_segment(sequence, sequence); }
                }
                prop_assert_eq!(ranges.first(), model.keys().next().copied());
                for index in 0..next + 3 {
                    prop_assert_eq!(ranges.locate(index).map(|at| at.sequence), model.get(&index).copied(), "{}", index);
                }
            }
        }
    }

    #[test]
    fn a_segment_goes_only_when_covered_and_its_state_is_carried_on() {
        let mut ranges = Ranges::default();
        ranges.add_segment(1, 1);
        (1..=5).for_each(|index| ranges.push(index));
        ranges.truncate_from(3);
        ranges.add_segment(2, 7);
        assert_eq!(ranges.droppable(Some(5), 6), None, "the next base is not durable");
        assert_eq!(ranges.droppable(Some(4), 7), None, "index 5 was written there, though truncated");
        assert_eq!(ranges.droppable(None, 7), None);
        assert_eq!(ranges.droppable(Some(5), 7), Some(1));
    }

    #[test]
    fn a_restored_segment_without_entries_hides_none_of_the_others() {
        let mut ranges = Ranges::default();
        for (sequence, live) in [(1, 5..10), (2, 0..0), (3, 10..20), (4, 900..900), (5, 20..30)] {
            ranges.restore(SegmentRange { sequence, first_frame: sequence, live, highest_ever: None }, None);
        }
        let found = [5, 9, 10, 19, 20, 29].map(|index| ranges.locate(index).map(|at| at.sequence));
        assert_eq!(found, [1, 1, 3, 3, 5, 5].map(Some));
    }

    #[test]
    fn an_emptied_log_begins_again_lower_down() {
        let mut ranges = Ranges::default();
        ranges.add_segment(1, 1);
        (5..=7).for_each(|index| ranges.push(index));
        ranges.truncate_from(5);
        ranges.add_segment(2, 2);
        ranges.push(2);
        assert_eq!(ranges.locate(2).map(|at| at.sequence), Some(2));
        assert_eq!((ranges.first(), ranges.locate(5)), (Some(2), None));
    }
}
