//! What must be in the log that was killed: the script's batches applied one by one, and the comparison with what is.
//!
//! Shares nothing with the engine but the script. An error says what differs.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use crate::engine::{Log, LogEntry};
use crate::torture::kill9::script::{BATCH_KEY, Script, Shape, Step, VOTE_KEY, entry, vote};

/// An entry as it was appended: term, batch, size.
#[derive(Clone, Copy, Debug)]
struct Known {
    term: u64,
    batch: u64,
    bytes: usize,
}

/// The log after a batch.
#[derive(Debug, Default)]
struct Model {
    entries: BTreeMap<u64, Known>,
    compacted: Option<(u64, u64)>,
    /// Batch and size.
    vote: Option<(u64, usize)>,
    batch: u64,
}

impl Model {
    fn apply(&mut self, batch: u64, steps: &[Step], counts: &mut Counts) {
        for step in steps {
            match *step {
                Step::Entry { index, term, bytes } => drop(self.entries.insert(index, Known { term, batch, bytes })),
                Step::Truncate { from } => {
                    drop(self.entries.split_off(&from));
                    counts.truncations += 1;
                }
                Step::Compact { upto } => {
                    let term = self.entries.get(&upto).map_or(0, |known| known.term);
                    self.compact(upto, term, counts);
                }
                Step::CompactPast { index, term } => self.compact(index, term, counts),
                Step::Vote { bytes } => self.vote = Some((batch, bytes)),
                Step::Unvote => self.vote = None,
            }
        }
        self.batch = batch;
    }

    fn compact(&mut self, index: u64, term: u64, counts: &mut Counts) {
        self.entries = self.entries.split_off(&(index + 1));
        self.compacted = Some((index, term));
        counts.compactions += 1;
    }

    fn last(&self) -> Option<(u64, u64)> {
        self.entries.last_key_value().map(|(&index, known)| (index, known.term))
    }

    /// As of the log itself: see [`shape`].
    fn shape(&self) -> Shape {
        shape(self.first(), self.last(), self.compacted, self.batch)
    }

    fn first(&self) -> u64 {
        let empty_at = self.compacted.map_or(1, |(index, _)| index + 1);
        self.entries.first_key_value().map_or(empty_at, |(&index, _)| index)
    }

    /// Everything that the log shows, against everything that it must show; how many entries that were.
    fn compare(&self, seed: u64, log: &Log) -> Result<u64> {
        let (state, meta) = (log.state(), log.meta());
        let (found, wanted) = ((state.first, state.last, state.compacted), (self.first(), self.last(), self.compacted));
        ensure!(found == wanted, "first, last and compacted are {found:?} instead of {wanted:?}");
        ensure!(meta == self.meta(seed), "the hard state is not that of batch {}: {meta:?}", self.batch);
        let mut entries = log.iter(..);
        for (&index, known) in &self.entries {
            let found = entries.next().with_context(|| format!("the log ends before index {index}"))?;
            let found = found.with_context(|| format!("index {index} cannot be read"))?;
            let wanted = entry(seed, known.batch, (index, known.term, known.bytes));
            ensure!(found == wanted, "index {index} holds {} instead of {}", told(&found), told(&wanted));
        }
        ensure!(entries.next().is_none(), "the log goes on past its last entry");
        Ok(self.entries.len() as u64)
    }

    fn meta(&self, seed: u64) -> Vec<(bytes::Bytes, bytes::Bytes)> {
        let batch = (self.batch > 0).then(|| (BATCH_KEY, self.batch.to_le_bytes().to_vec()));
        let vote = self.vote.map(|(batch, bytes)| (VOTE_KEY, vote(seed, batch, bytes)));
        let pairs = batch.into_iter().chain(vote);
        pairs.map(|(key, value)| (bytes::Bytes::from_static(key), value.into())).collect()
    }
}

fn told(entry: &LogEntry) -> String {
    let LogEntry { term, index, command, timestamp } = entry;
    format!(
        "index {index}, term {term}, batch {timestamp}, {} bytes starting with {:02x?}",
        command.len(),
        head(command)
    )
}

fn head(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(8)]
}

/// The shape of a log that shows this: what a log's last term is, a script cannot tell from one that was never used.
fn shape(first: u64, last: Option<(u64, u64)>, compacted: Option<(u64, u64)>, batch: u64) -> Shape {
    let (next, term) = last.or(compacted).map_or((1, 0), |(index, term)| (index + 1, term));
    Shape { first: first.min(next), next, term, batch }
}

/// The shape of a log, for the process that writes to it.
pub(crate) fn shape_of(log: &Log) -> Result<Shape> {
    let state = log.state();
    Ok(shape(state.first, state.last, state.compacted, batch_of(log)?))
}

/// Number of the last batch in the log.
pub(crate) fn batch_of(log: &Log) -> Result<u64> {
    let Some(value) = log.get_meta(BATCH_KEY) else { return Ok(0) };
    let number = <[u8; 8]>::try_from(&value[..]).context("the hard state's batch is not a number")?;
    Ok(u64::from_le_bytes(number))
}

/// What was asked of the log.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) truncations: u64,
    pub(crate) compactions: u64,
}

/// Goes along with what the log is found to hold, from round to round.
#[derive(Debug)]
pub(crate) struct Follower {
    seed: u64,
    script: Script,
    model: Model,
    pub(crate) counts: Counts,
}

impl Follower {
    /// Of a log that is not made yet.
    pub(crate) fn new(seed: u64) -> Follower {
        let script = Script::new(seed, 0, Shape::EMPTY);
        Follower { seed, script, model: Model::default(), counts: Counts::default() }
    }

    /// A process began to write after this batch, by the script of its round.
    pub(crate) fn start(&mut self, round: u32, after: u64) -> Result<()> {
        self.advance(after)?;
        self.script = Script::new(self.seed, round, self.model.shape());
        Ok(())
    }

    /// Compares a log that must hold every batch up to `acked`; how many entries were compared.
    pub(crate) fn check(&mut self, acked: u64, log: &Log) -> Result<u64> {
        let batch = batch_of(log)?;
        ensure!(batch >= acked, "batch {acked} was acknowledged, and the log ends with batch {batch}");
        self.advance(batch)?;
        self.model.compare(self.seed, log).with_context(|| format!("the log is not that of batch {batch}"))
    }

    fn advance(&mut self, to: u64) -> Result<()> {
        let seen = self.script.batch();
        ensure!(seen <= to, "batch {seen} was in the log already, and now it ends with batch {to}");
        while self.script.batch() < to {
            let steps = self.script.next();
            self.model.apply(self.script.batch(), &steps, &mut self.counts);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Config;
    use crate::torture::kill9::script::batch;

    const SEED: u64 = 5;

    /// A log with the first `batches` batches of round 0.
    fn written(batches: u64) -> (tempfile::TempDir, Log) {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = Log::open(dir.path(), Config::default().segment_bytes(192 << 10)).unwrap();
        let mut script = Script::new(SEED, 0, Shape::EMPTY);
        for _ in 0..batches {
            let steps = script.next();
            drop(log.submit(batch(SEED, script.batch(), &steps)).unwrap());
        }
        log.sync().unwrap();
        (dir, log)
    }

    #[test]
    fn a_log_that_followed_the_script_is_what_the_follower_expects() {
        let (_dir, log) = written(400);
        let mut follower = Follower::new(SEED);
        let compared = follower.check(400, &log).unwrap();
        assert!(compared > 0 && follower.counts.truncations > 5, "{compared} {:?}", follower.counts);
        assert_eq!(shape_of(&log).unwrap(), follower.model.shape());
    }

    #[test]
    fn every_difference_is_noticed() {
        let (_dir, log) = written(400);
        let check = |acked| Follower::new(SEED).check(acked, &log).map_err(|error| format!("{error:#}"));
        assert!(check(401).unwrap_err().contains("batch 401 was acknowledged"));
        let mut ahead = Follower::new(SEED);
        ahead.start(0, 401).unwrap();
        assert!(ahead.check(0, &log).unwrap_err().to_string().contains("was in the log already"));
        assert!(Follower::new(SEED + 1).check(0, &log).is_err(), "another seed's content");

        let (last, term) = log.state().last.unwrap();
        log.append("one more").unwrap();
        assert!(check(400).unwrap_err().contains("first, last and compacted"));
        log.truncate_from(last).unwrap();
        assert!(check(400).unwrap_err().contains("first, last and compacted"));
        log.append_entries(vec![LogEntry::new(term, last, "another one")]).unwrap();
        assert!(check(400).unwrap_err().contains(&format!("index {last} holds")));
    }

    #[test]
    fn another_vote_or_compaction_point_is_noticed() {
        let (_dir, log) = written(60);
        log.put_meta(VOTE_KEY, b"not this one").unwrap();
        assert!(format!("{:#}", Follower::new(SEED).check(60, &log).unwrap_err()).contains("hard state"));
        let (_dir, log) = written(60);
        log.compact(log.state().first).unwrap();
        assert!(format!("{:#}", Follower::new(SEED).check(60, &log).unwrap_err()).contains("compacted"));
    }
}
