//! What is written to the log that is killed: a script that the process that writes and the one that checks both follow.
//!
//! Batch `n` follows from the round's seed and the batches before it, and writes `n` to the hard state. Producers take
//! the next batch and hand it in as one step, so the log's order is the script's. After the kill the hard state says up to
//! where the log goes (all or nothing: never between two batches), and the script says what must then be in it.
//!
//! Payloads follow from seed, batch and index, so that no entry's content passes for another's. Pure.

use crate::engine::{Batch, LogEntry, Rng};

/// The hard state's key that the number of the last batch stands under.
pub(crate) const BATCH_KEY: &[u8] = b"batch";
/// The key that a value of changing size stands under, at times.
pub(crate) const VOTE_KEY: &[u8] = b"vote";
/// A log is compacted once it has more entries than this, to a third of them.
const ENTRIES_MANY: u64 = 900;

/// One step of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Entry {
        index: u64,
        term: u64,
        bytes: usize,
    },
    /// Removes the entry at an index and all after it.
    Truncate {
        from: u64,
    },
    /// Drops all up to an index that the log has.
    Compact {
        upto: u64,
    },
    /// Drops all, up to an index past the last.
    CompactPast {
        index: u64,
        term: u64,
    },
    Vote {
        bytes: usize,
    },
    Unvote,
}

/// As much of the log as the script needs to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) first: u64,
    pub(crate) next: u64,
    /// Of the last entry or the compaction point.
    pub(crate) term: u64,
    /// Number of the last batch.
    pub(crate) batch: u64,
}

impl Shape {
    /// Of a log that was just made.
    pub(crate) const EMPTY: Shape = Shape { first: 1, next: 1, term: 0, batch: 0 };
}

/// The batches of one round.
#[derive(Debug)]
pub(crate) struct Script {
    rng: Rng,
    shape: Shape,
}

impl Script {
    /// The script of a round on a log of this shape.
    pub(crate) fn new(seed: u64, round: u32, shape: Shape) -> Script {
        Script { rng: Rng::new(mixed(seed, u64::from(round), 0)), shape }
    }

    /// Number of the last batch.
    pub(crate) fn batch(&self) -> u64 {
        self.shape.batch
    }

    /// The next batch's steps.
    pub(crate) fn next(&mut self) -> Vec<Step> {
        self.shape.batch += 1;
        let mut steps: Vec<Step> = self.change().into_iter().collect();
        for _ in 0..self.rng.below(5) {
            let bytes = if self.rng.one_in(12) { 9000 } else { self.rng.below(800) };
            steps.push(Step::Entry { index: self.shape.next, term: self.shape.term, bytes });
            self.shape.next += 1;
        }
        steps
    }

    /// What a batch may begin with, as far as the log has what it takes.
    fn change(&mut self) -> Option<Step> {
        let Shape { first, next, term, .. } = self.shape;
        let live = next - first;
        if live > ENTRIES_MANY && self.rng.one_in(4) {
            return Some(self.compact(next - live / 3));
        }
        match self.rng.below(40) {
            0..=2 if live > 0 => Some(self.truncate(live.min(3))),
            // Over segments.
            3 if self.rng.one_in(6) && live > 0 => Some(self.truncate(live.min(300))),
            4 if self.rng.one_in(20) => {
                let index = next + self.below(5);
                (self.shape.first, self.shape.next) = (index + 1, index + 1);
                Some(Step::CompactPast { index, term })
            }
            5 if live > 3 && self.rng.one_in(4) => {
                let upto = first + self.below(live - 1);
                Some(self.compact(upto))
            }
            6 | 7 => Some(Step::Vote { bytes: self.rng.below(3000) }),
            8 => Some(Step::Unvote),
            9 => {
                self.shape.term += 1;
                None
            }
            _ => None,
        }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.rng.next_u64() % bound
    }

    /// Removes up to so many entries from the end.
    fn truncate(&mut self, entries_max: u64) -> Step {
        self.shape.next -= 1 + self.below(entries_max);
        Step::Truncate { from: self.shape.next }
    }

    fn compact(&mut self, upto: u64) -> Step {
        self.shape.first = upto + 1;
        Step::Compact { upto }
    }
}

/// What a batch is to the log.
pub(crate) fn batch(seed: u64, number: u64, steps: &[Step]) -> Batch {
    let batch = steps.iter().fold(Batch::new(), |batch, step| match *step {
        Step::Entry { index, term, bytes } => batch.push_entry(entry(seed, number, (index, term, bytes))),
        Step::Truncate { from } => batch.truncate_from(from),
        Step::Compact { upto } => batch.compact(upto),
        Step::CompactPast { index, term } => batch.compact_to(index, term),
        Step::Vote { bytes } => batch.put_meta(VOTE_KEY, &vote(seed, number, bytes)),
        Step::Unvote => batch.delete_meta(VOTE_KEY),
    });
    batch.put_meta(BATCH_KEY, &number.to_le_bytes())
}

/// An entry; its time is the number of its batch.
pub(crate) fn entry(seed: u64, number: u64, (index, term, bytes): (u64, u64, usize)) -> LogEntry {
    LogEntry { timestamp: number, ..LogEntry::new(term, index, content(seed, number, index, bytes)) }
}

/// The value of the vote that a batch casts.
pub(crate) fn vote(seed: u64, number: u64, bytes: usize) -> Vec<u8> {
    content(seed, number, u64::MAX, bytes)
}

/// Whether an entry is one that some batch of this seed appended, as it was.
pub(crate) fn is_whole(seed: u64, entry: &LogEntry) -> bool {
    entry.command == content(seed, entry.timestamp, entry.index, entry.command.len())
}

fn content(seed: u64, number: u64, index: u64, bytes: usize) -> Vec<u8> {
    let mut rng = Rng::new(mixed(seed, number, index));
    let mut content = Vec::with_capacity(bytes + 8);
    while content.len() < bytes {
        content.extend_from_slice(&rng.next_u64().to_le_bytes());
    }
    content.truncate(bytes);
    content
}

fn mixed(seed: u64, one: u64, other: u64) -> u64 {
    let mixed = Rng::new(seed.wrapping_add(one)).next_u64();
    Rng::new(mixed.wrapping_add(other)).next_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_depends_on_seed_round_and_shape_and_meets_everything() {
        let steps = |seed, round| {
            let mut script = Script::new(seed, round, Shape::EMPTY);
            (0..20_000).map(|_| script.next()).collect::<Vec<_>>()
        };
        let all = steps(1, 2);
        assert_eq!(all, steps(1, 2));
        assert!(all != steps(1, 3) && all != steps(2, 2));
        let count = |is: fn(&Step) -> bool| all.iter().flatten().filter(|step| is(step)).count();
        assert!(count(|step| matches!(step, Step::Truncate { .. })) > 500);
        assert!(count(|step| matches!(step, Step::Compact { .. })) > 30);
        assert!(count(|step| matches!(step, Step::CompactPast { .. })) > 5);
        assert!(count(|step| matches!(step, Step::Vote { .. } | Step::Unvote)) > 500);
    }

    #[test]
    fn an_entry_of_another_batch_or_place_is_not_taken_for_this_one() {
        let whole = entry(7, 30, (4, 1, 100));
        assert!(is_whole(7, &whole));
        for other in [entry(8, 30, (4, 1, 100)), entry(7, 31, (4, 1, 100)), entry(7, 30, (5, 1, 100))] {
            assert!(!is_whole(7, &LogEntry { command: other.command, ..whole.clone() }));
        }
        let mut bytes = whole.command.to_vec();
        bytes[99] ^= 1;
        assert!(!is_whole(7, &LogEntry { command: bytes.into(), ..whole }));
    }
}
