//! A log in memory with the rules of API.md, written down once more and as plainly as can be.
//!
//! It shares no code with the engine. What it does not know: space, files, frames, durability.

use std::collections::{BTreeMap, VecDeque};

use ringwal::{Error, LogEntry};

/// An operation as the log is asked for it.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Push(Vec<u8>),
    Entry(LogEntry),
    Truncate(u64),
    Compact(u64),
    CompactTo(u64, u64),
    Put(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
}

/// What is known of an entry; the log itself stamps those that bring no time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) term: u64,
    pub(crate) command: Vec<u8>,
    pub(crate) timestamp: Option<u64>,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Model {
    first_index: u64,
    hard_state_max: u64,
    pub(crate) compacted: Option<(u64, u64)>,
    /// Index of the first entry, if there are any.
    start: u64,
    pub(crate) entries: VecDeque<Known>,
    pub(crate) meta: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Model {
    pub(crate) fn new(first_index: u64, hard_state_max: u64) -> Model {
        Model {
            first_index,
            hard_state_max,
            compacted: None,
            start: 0,
            entries: VecDeque::new(),
            meta: BTreeMap::new(),
        }
    }

    /// The index that the next entry must have; `None` where it may be any.
    fn fixed_next(&self) -> Option<u64> {
        match (self.entries.is_empty(), self.compacted) {
            (false, _) => Some(self.start + self.entries.len() as u64),
            (true, Some((index, _))) => Some(index + 1),
            (true, None) => None,
        }
    }

    pub(crate) fn next(&self) -> u64 {
        self.fixed_next().unwrap_or(self.first_index)
    }

    /// The lowest index that can be read; where there is no entry, the next one.
    pub(crate) fn first(&self) -> u64 {
        if self.entries.is_empty() { self.next() } else { self.start }
    }

    pub(crate) fn last_term(&self) -> u64 {
        self.entries.back().map(|last| last.term).or(self.compacted.map(|(_, term)| term)).unwrap_or(0)
    }

    pub(crate) fn last(&self) -> Option<(u64, u64)> {
        (!self.entries.is_empty()).then(|| (self.next() - 1, self.last_term()))
    }

    pub(crate) fn get(&self, index: u64) -> Result<&Known, Error> {
        match self.fixed_next() {
            Some(next) if index < next => {
                let nth = index.checked_sub(self.first()).and_then(|nth| self.entries.get(nth as usize));
                nth.ok_or(Error::Compacted { first: self.first() })
            }
            _ => Err(Error::NotWritten { next: self.next() }),
        }
    }

    pub(crate) fn term(&self, index: u64) -> Result<u64, Error> {
        match self.compacted {
            Some((compacted, term)) if compacted == index => Ok(term),
            _ => self.get(index).map(|entry| entry.term),
        }
    }

    /// Applies a batch, all or nothing; gives the indexes of its entries.
    pub(crate) fn apply(&mut self, batch: &[Op]) -> Result<std::ops::Range<u64>, Error> {
        let mut trial = self.clone();
        let mut indexes: Option<(u64, u64)> = None;
        for op in batch {
            if let Some(index) = trial.step(op)? {
                indexes = Some((indexes.map_or(index, |(first, _)| first), index));
            }
        }
        *self = trial;
        Ok(indexes.map_or(self.next()..self.next(), |(first, last)| first..last + 1))
    }

    fn step(&mut self, op: &Op) -> Result<Option<u64>, Error> {
        match op {
            Op::Push(command) => {
                let known = Known { term: self.last_term(), command: command.clone(), timestamp: None };
                return self.append(self.next(), known).map(Some);
            }
            Op::Entry(entry) => {
                let LogEntry { term, index, command, timestamp } = entry.clone();
                let known = Known { term, command: command.to_vec(), timestamp: Some(timestamp) };
                return self.append(index, known).map(Some);
            }
            Op::Truncate(from) => self.truncate(*from)?,
            Op::Compact(index) => self.compact(*index, None)?,
            Op::CompactTo(index, term) => self.compact(*index, Some(*term))?,
            Op::Put(key, value) => self.put(key, value)?,
            Op::Delete(key) => drop(self.meta.remove(key)),
        }
        Ok(None)
    }

    fn append(&mut self, index: u64, known: Known) -> Result<u64, Error> {
        match self.fixed_next() {
            Some(expected) if expected != index => return Err(Error::Gap { expected, found: index }),
            _ if known.term < self.last_term() => {
                return Err(Error::TermFell { last: self.last_term(), found: known.term });
            }
            _ => {}
        }
        if self.entries.is_empty() {
            self.start = index;
        }
        self.entries.push_back(known);
        Ok(index)
    }

    fn truncate(&mut self, from: u64) -> Result<(), Error> {
        let next = self.next();
        if from == next {
            return Ok(());
        }
        if from > next || self.fixed_next().is_none() {
            return Err(Error::NotWritten { next });
        }
        if self.compacted.is_some_and(|(index, _)| from <= index) {
            return Err(Error::Compacted { first: self.first() });
        }
        // Without a compaction point, all from an index before the first one is all.
        self.entries.truncate(from.saturating_sub(self.start) as usize);
        Ok(())
    }

    fn compact(&mut self, index: u64, term: Option<u64>) -> Result<(), Error> {
        let is_before = |first| index < first && (term.is_none() || index + 1 < first);
        if self.compacted.is_some_and(|(compacted, _)| index <= compacted)
            || !self.entries.is_empty() && is_before(self.start)
        {
            return Ok(());
        }
        let is_live = self.get(index).is_ok();
        let is_past_end = self.entries.is_empty() || index >= self.next();
        let term = match (term, is_live) {
            (None, false) => return Err(Error::NotWritten { next: self.next() }),
            (None, true) => self.term(index)?,
            (Some(found), true) if found != self.term(index)? => {
                return Err(Error::TermMismatch { index, expected: self.term(index)?, found });
            }
            (Some(found), _) if is_past_end && found < self.last_term() => {
                return Err(Error::TermFell { last: self.last_term(), found });
            }
            // Right before the first entry: a point whose term is above the entry's would make terms fall.
            (Some(last), _) if index + 1 == self.start && !is_past_end && last > self.entries[0].term => {
                return Err(Error::TermFell { last, found: self.entries[0].term });
            }
            (Some(term), _) => term,
        };
        let dropped = if is_past_end { self.entries.len() } else { (index + 1 - self.start) as usize };
        self.entries.drain(..dropped);
        (self.start, self.compacted) = (index + 1, Some((index, term)));
        Ok(())
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        let mut meta = self.meta.clone();
        meta.insert(key.to_vec(), value.to_vec());
        let bytes = meta.iter().map(|(key, value)| 8 + key.len() as u64 + value.len() as u64).sum();
        if bytes > self.hard_state_max {
            return Err(Error::TooLarge { what: "hard state", bytes, limit: self.hard_state_max });
        }
        self.meta = meta;
        Ok(())
    }
}
