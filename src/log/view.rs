//! What of a log its readers may see: everything accepted, or after a failed write or sync what is durable of it.
//!
//! Pure looks at a sequencer; the log with threads and the one without share them.

use std::ops::{Bound, Range, RangeBounds};
use std::sync::Arc;

use super::LogState;
use crate::engine::sequencer::Sequencer;
use crate::error::{Error, Result};

/// A log at one moment.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) sequencer: &'a Sequencer,
    pub(crate) poison: Option<&'a Arc<Error>>,
}

impl View<'_> {
    /// The live indexes that readers may see.
    pub(crate) fn visible(&self) -> Range<u64> {
        let accepted = self.sequencer.next_index();
        let first = self.sequencer.outline().first_readable(accepted);
        match self.poison {
            Some(_) => first..self.sequencer.durable_next().unwrap_or(first).clamp(first, accepted),
            None => first..accepted,
        }
    }

    /// Index and term of the last entry that readers may see.
    pub(crate) fn last(&self) -> Option<(u64, u64)> {
        let visible = self.visible();
        let durable = self.sequencer.durable_end().filter(|_| self.poison.is_some());
        let last_term = durable.map_or(self.sequencer.outline().state.last_term, |end| end.last_term);
        (!visible.is_empty()).then(|| (visible.end - 1, last_term))
    }

    /// Everything that callers are told of a log.
    pub(crate) fn state(&self) -> LogState {
        let visible = self.visible();
        let durable_end = self.sequencer.durable_next().map(|next| next.min(visible.end));
        LogState {
            first: visible.start,
            last: self.last(),
            compacted: self.sequencer.outline().state.compacted,
            durable: durable_end.filter(|&end| end > visible.start).map(|end| end - 1),
        }
    }

    /// Checks that an index can be read.
    pub(crate) fn check_readable(&self, index: u64) -> Result<()> {
        let visible = self.visible();
        if index >= visible.end || self.sequencer.outline().state.next.is_none() {
            match self.poison {
                Some(cause) if index < self.sequencer.next_index() => Err(Error::Poisoned(cause.clone())),
                _ => Err(Error::NotWritten { next: visible.end }),
            }
        } else if index < visible.start {
            Err(Error::Compacted { first: visible.start })
        } else {
            Ok(())
        }
    }

    /// The indexes of a range that an iterator goes through: an unbounded side ends where the log does.
    pub(crate) fn indexes_of(&self, range: impl RangeBounds<u64>) -> Range<u64> {
        let visible = self.visible();
        let start = match range.start_bound() {
            Bound::Included(&start) => start,
            Bound::Excluded(&start) => start.saturating_add(1),
            Bound::Unbounded => visible.start,
        };
        let end = match range.end_bound() {
            Bound::Included(&end) => end.saturating_add(1),
            Bound::Excluded(&end) => end,
            Bound::Unbounded => visible.end,
        };
        start..end.min(visible.end).max(start)
    }
}
