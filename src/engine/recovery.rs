//! The table of recovery: which frame follows, and whether the end of the log is torn, stale or corrupt.
//!
//! | what is found at the next place | and | it is | then |
//! |---|---|---|---|
//! | a whole frame | expected number, chain and epoch | the next frame | follow it |
//! | a whole frame that follows | but its operations do not fit the state | corrupt | error |
//! | a head of this segment | of an unknown kind, flag or log number | from a newer version | error |
//! | a whole frame | but number, chain or epoch differ | stale: a dead life, or the file's past | the end is here |
//! | a head whose frame is not whole | | torn, or damaged | the end is here |
//! | nothing that verifies | | torn, damaged, or never written | the end is here |
//!
//! | at the end, any head behind it (in this segment or later ones), or a slot, with | it is | then |
//! |---|---|---|
//! | a watermark at or past the expected number | a witness: the expected frame was acknowledged | error |
//! | no such watermark | torn: whatever is there was in flight | cut |
//!
//! Pure. Does not know files; [`crate::segment::recover`] reads them and asks here.

use super::ledger::Ledger;
use crate::error::Error;
use crate::format::frame::{Epoch, FoundOperation, FrameKind, Head, Operation, WholeFrame};
use crate::plant::{Plant, planted};

/// What a whole frame is to the log so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    /// It is the next frame.
    Next,
    /// It belongs to a dead life or to the file's past.
    Stale,
}

/// Whether a whole frame follows the frame before it. `None` before it: the walk starts here, and what this frame says
/// of number, chain and epoch is taken as given.
pub(crate) fn fits(before: Option<&Head>, head: &Head, offset: u64) -> Fit {
    let Some(before) = before else { return Fit::Next };
    if planted(Plant::NeitherChainNorEpoch) {
        return if head.number > before.number { Fit::Next } else { Fit::Stale };
    }
    let epoch_fits = match head.kind {
        FrameKind::Open => head.epoch.counter > before.epoch.counter,
        FrameKind::Data | FrameKind::Mark => head.epoch == before.epoch,
    };
    let follows = before.number.checked_add(1) == Some(head.number) && head.chain == before.checksum;
    if follows && epoch_fits && u64::from(head.offset) == offset { Fit::Next } else { Fit::Stale }
}

/// Whether a head, wherever it was found, proves that frame `number` was acknowledged.
pub(crate) fn witnesses(watermark: u64, number: u64) -> bool {
    watermark >= number
}

/// Carries the state of the log forward frame by frame.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    pub(crate) ledger: Ledger,
    /// The last frame followed.
    pub(crate) last: Option<Head>,
    /// Highest watermark in any head followed.
    pub(crate) witnessed: u64,
    pub(crate) entries: u64,
    pub(crate) frames: u64,
}

impl Replay {
    /// Number of the frame that comes next; `None` at the counter's end.
    pub(crate) fn expected(&self) -> Option<u64> {
        match &self.last {
            None => Some(1),
            Some(last) => last.number.checked_add(1).filter(|&number| number < u64::MAX),
        }
    }

    /// Takes in a frame that [`fits`], which lies at `offset` in segment `sequence`.
    ///
    /// # Errors
    ///
    /// What does not fit, in words, for an error that names the place: the frame verifies, so this is corruption (or
    /// a mistake of the writer), never a torn write.
    pub(crate) fn follow(
        &mut self,
        frame: &WholeFrame,
        sequence: u64,
        offset: u64,
        segment_bytes: u64,
    ) -> Result<(), String> {
        let head = &frame.head;
        if head.watermark >= head.number || head.number == u64::MAX || head.epoch.counter == u64::MAX {
            return Err("its counters are impossible".into());
        }
        let begins_segment = self.ledger.ranges.newest().is_none_or(|newest| newest.sequence != sequence);
        self.take_base(frame, begins_segment)?;
        if begins_segment {
            self.ledger.add_segment(sequence, head.number);
        }
        let mut first_entry = None;
        for found in &frame.operations {
            let (operation, at) = operation_of(found);
            if let Operation::Entry { index, .. } = operation {
                first_entry = first_entry.or(Some(index));
                self.entries += 1;
            }
            self.check_last_term(&operation)?;
            self.ledger.outline.check(&operation, segment_bytes).map_err(|error| does_not_fit(&error))?;
            self.ledger.apply(&operation, (offset + u64::from(at)) as u32);
        }
        if head.first_index != first_entry.or(self.ledger.outline.state.next) {
            return Err("its first index is not that of its entries".into());
        }
        self.witnessed = self.witnessed.max(head.watermark);
        self.frames += 1;
        self.last = Some(*head);
        Ok(())
    }

    /// A truncation says the term of the last entry that stays; where that is known, it must be so.
    fn check_last_term(&self, operation: &Operation) -> Result<(), String> {
        let Operation::Truncate { first_removed, last_term } = operation else { return Ok(()) };
        let known = first_removed.checked_sub(1).and_then(|last| self.ledger.term_of(last));
        let fits = known.map_or(*last_term <= self.ledger.outline.state.last_term, |term| term == *last_term);
        if fits { Ok(()) } else { Err(format!("a truncation leaves term {last_term} last, which is not so")) }
    }

    /// The first frame of a segment carries a base and no other does. Where the walk starts the base is the state;
    /// later it must agree with what was replayed.
    fn take_base(&mut self, frame: &WholeFrame, begins_segment: bool) -> Result<(), String> {
        match (&frame.base, begins_segment) {
            (Some(base), true) if self.last.is_none() => {
                self.ledger.outline.state = base.clone();
                if let Some((index, _)) = base.compacted {
                    self.ledger.ranges.compact_to(index);
                }
                self.ledger.ranges.truncate_from(base.next.unwrap_or(0));
                Ok(())
            }
            (Some(base), true) if *base == self.ledger.outline.state => Ok(()),
            (Some(_), true) => Err("its base contradicts the frames before it".into()),
            (None, false) => Ok(()),
            (Some(_), false) => Err("it carries a base but does not begin a segment".into()),
            (None, true) => Err("it begins a segment but carries no base".into()),
        }
    }
}

fn does_not_fit(error: &Error) -> String {
    format!("an operation does not fit the log before it: {error}")
}

fn operation_of(found: &FoundOperation) -> (Operation, u32) {
    match found {
        FoundOperation::Other(operation) => (operation.clone(), 0),
        FoundOperation::Entry { header, offset } => {
            let (index, term, timestamp) = (header.index, header.term, header.timestamp);
            (Operation::Entry { index, term, timestamp, payload: bytes::Bytes::new() }, *offset)
        }
    }
}

/// The epoch of a new life: one above the highest counter seen in any head that verifies.
pub(crate) fn next_epoch(highest_counter: u64, random: u32) -> Option<Epoch> {
    let counter = highest_counter.checked_add(1).filter(|&counter| counter < u64::MAX)?;
    Some(Epoch { counter, random })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(kind: FrameKind, number: u64, chain: u32, counter: u64, random: u32) -> Head {
        Head {
            kind,
            has_base: false,
            frame_bytes: 512,
            operation_count: 0,
            entry_count: 0,
            base_bytes: 0,
            operations_bytes: 0,
            chain,
            first_index: None,
            number,
            epoch: Epoch { counter, random },
            offset: 512,
            salt: 1,
            watermark: 0,
            headers_checksum: 0,
            checksum: 77,
        }
    }

    #[test]
    fn every_combination_of_number_chain_epoch_and_kind_meets_one_row() {
        let before = head(FrameKind::Data, 5, 1, 2, 9);
        for number in [4, 5, 6, 7] {
            for chain in [77, 78] {
                for (counter, random) in [(1, 9), (2, 9), (2, 8), (3, 9), (4, 1)] {
                    for kind in [FrameKind::Data, FrameKind::Mark, FrameKind::Open] {
                        for offset in [512, 1024] {
                            let opens = kind == FrameKind::Open;
                            let epoch_fits = if opens { counter > 2 } else { (counter, random) == (2, 9) };
                            let next = number == 6 && chain == 77 && epoch_fits && offset == 512;
                            let found = fits(Some(&before), &head(kind, number, chain, counter, random), offset);
                            assert_eq!(found == Fit::Next, next, "{number} {chain} {counter} {random} {kind:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn only_a_watermark_at_or_past_the_missing_frame_witnesses() {
        assert!(!witnesses(4, 5) && witnesses(5, 5) && witnesses(6, 5));
    }

    #[test]
    fn the_epoch_counter_has_an_end() {
        assert_eq!(next_epoch(u64::MAX - 1, 0), None);
        assert_eq!(next_epoch(0, 7), Some(Epoch { counter: 1, random: 7 }));
    }
}
