//! What was acknowledged, kept in a byte or two per submission, so that every entry of a long run can be checked.
//!
//! A producer numbers its entries from zero in the order it submits them, and sees its acks in that order, so only the
//! indexes have to be kept: per submission the distance from the end of the one before it, as a variable-length
//! integer. Indexes of one producer only grow; a log that hands out others is caught when they are added.

use std::ops::Range;

/// The acknowledged submissions of one producer, all of `batch` entries.
#[derive(Clone, Debug)]
pub(crate) struct Acks {
    gaps: Vec<u8>,
    next_index: u64,
    submissions: u64,
    batch: u64,
}

impl Acks {
    pub(crate) fn new(batch: u32) -> Acks {
        Acks { gaps: Vec::new(), next_index: 0, submissions: 0, batch: u64::from(batch) }
    }

    /// Adds the indexes of the next acknowledged submission.
    pub(crate) fn add(&mut self, indexes: Range<u64>) -> Result<(), String> {
        if indexes.start < self.next_index || indexes.end.checked_sub(indexes.start) != Some(self.batch) {
            return Err(format!(
                "the log gave indexes {indexes:?} to a submission of {} entries after {}",
                self.batch, self.next_index
            ));
        }
        push_varint(&mut self.gaps, indexes.start - self.next_index);
        self.next_index = indexes.end;
        self.submissions += 1;
        Ok(())
    }

    /// Entries acknowledged.
    pub(crate) fn entries(&self) -> u64 {
        self.submissions * self.batch
    }

    /// All of them in order: `(index, number)`.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let (mut rest, mut next_index) = (self.gaps.as_slice(), 0);
        let starts = std::iter::from_fn(move || {
            let gap = take_varint(&mut rest)?;
            let start = next_index + gap;
            next_index = start + self.batch;
            Some(start)
        });
        let entries = starts.flat_map(|start| start..start + self.batch);
        entries.zip(0..)
    }
}

fn push_varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&first, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(first & 0x7f) << shift;
        if first < 0x80 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_comes_back_in_order() {
        let mut acks = Acks::new(3);
        for start in [1, 4, 300, 1 << 40] {
            acks.add(start..start + 3).unwrap();
        }
        let found = acks.iter().collect::<Vec<_>>();
        assert_eq!(found[..4], [(1, 0), (2, 1), (3, 2), (4, 3)]);
        assert_eq!(found[9..], [(1 << 40, 9), ((1 << 40) + 1, 10), ((1 << 40) + 2, 11)]);
        assert_eq!(acks.entries(), 12);
    }

    #[test]
    fn indexes_that_go_back_or_do_not_match_the_batch_are_refused() {
        let mut acks = Acks::new(2);
        acks.add(5..7).unwrap();
        for wrong in [6..8, 0..2, 7..8, 7..10] {
            assert!(acks.add(wrong.clone()).is_err(), "{wrong:?}");
        }
        acks.add(7..9).unwrap();
    }

    #[test]
    fn neighbours_cost_one_byte() {
        let mut acks = Acks::new(1);
        for index in 1..=1000 {
            acks.add(index..index + 1).unwrap();
        }
        assert_eq!(acks.gaps.len(), 1000);
    }
}
