//! What a log ought to contain: the operations of the log on a plain map, by logic of its own.
//!
//! Deliberately naive and independent of the engine: nothing is kept that can be derived, and every batch is carried
//! out on a copy, so all or nothing. Does not know frames, segments, durability or disks.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::local::Contents;
use crate::engine::sequencer::Request;
use crate::error::Error;

/// The contents of a log: cheap to clone, payloads are shared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Model {
    /// Term and payload by index.
    entries: BTreeMap<u64, (u64, Bytes)>,
    compacted: Option<(u64, u64)>,
    hard_state: BTreeMap<Bytes, Bytes>,
}

/// Why a batch must be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Gap,
    TermFell,
    TermMismatch,
    Compacted,
    NotWritten,
    TooLarge,
}

impl Refused {
    /// The refusal that an error stands for; `None` for errors that are none.
    pub(crate) fn of(error: &Error) -> Option<Refused> {
        match error {
            Error::Gap { .. } => Some(Refused::Gap),
            Error::TermFell { .. } => Some(Refused::TermFell),
            Error::TermMismatch { .. } => Some(Refused::TermMismatch),
            Error::Compacted { .. } => Some(Refused::Compacted),
            Error::NotWritten { .. } => Some(Refused::NotWritten),
            Error::TooLarge { .. } => Some(Refused::TooLarge),
            _ => None,
        }
    }
}

/// What the settings of a log say about what fits it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fitting {
    pub(crate) first_index: u64,
    /// Limit of the hard state: keys, values, and 8 bytes for each pair.
    pub(crate) hard_state_bytes_max: usize,
}

impl Model {
    /// The log after the batch, or why there is none.
    pub(crate) fn after(&self, batch: &[Request], fitting: Fitting) -> Result<Model, Refused> {
        let mut model = self.clone();
        batch.iter().try_for_each(|request| model.carry_out(request, fitting))?;
        Ok(model)
    }

    fn carry_out(&mut self, request: &Request, fitting: Fitting) -> Result<(), Refused> {
        match request {
            Request::Push(payload) => {
                let index = self.next().unwrap_or(fitting.first_index);
                self.entries.insert(index, (self.last_term(), payload.clone()));
                Ok(())
            }
            Request::Entry(entry) => self.append(entry.index, entry.term, &entry.command),
            Request::Truncate(from) => self.truncate(*from, fitting.first_index),
            Request::Compact(through, term) => self.compact(*through, *term),
            Request::PutMeta(key, value) => {
                self.hard_state.insert(key.clone(), value.clone());
                let bytes: usize = self.hard_state.iter().map(|(key, value)| 8 + key.len() + value.len()).sum();
                if bytes > fitting.hard_state_bytes_max { Err(Refused::TooLarge) } else { Ok(()) }
            }
            Request::DeleteMeta(key) => {
                self.hard_state.remove(key);
                Ok(())
            }
        }
    }

    fn append(&mut self, index: u64, term: u64, payload: &Bytes) -> Result<(), Refused> {
        if self.next().is_some_and(|next| next != index) {
            return Err(Refused::Gap);
        }
        if term < self.last_term() {
            return Err(Refused::TermFell);
        }
        self.entries.insert(index, (term, payload.clone()));
        Ok(())
    }

    fn truncate(&mut self, from: u64, first_index: u64) -> Result<(), Refused> {
        let next = self.next().unwrap_or(first_index);
        if from == next {
            return Ok(());
        }
        if from > next || self.next().is_none() {
            return Err(Refused::NotWritten);
        }
        // Where nothing was ever compacted, an index below the first entry means the whole log.
        if self.compacted.is_some_and(|(through, _)| from <= through) {
            return Err(Refused::Compacted);
        }
        self.entries.split_off(&from);
        Ok(())
    }

    fn compact(&mut self, through: u64, term: Option<u64>) -> Result<(), Refused> {
        let is_done = self.compacted.is_some_and(|(done, _)| through <= done);
        let first = self.first();
        // Below the first entry there is nothing to drop; only right below it, and with a term, is there a point to
        // remember.
        if is_done || first.is_some_and(|first| through + 1 < first || (through + 1 == first && term.is_none())) {
            return Ok(());
        }
        let known = self.entries.get(&through).map(|(term, _)| *term);
        let term = match (term, known) {
            (Some(given), Some(known)) if given != known => return Err(Refused::TermMismatch),
            (_, Some(known)) => known,
            (Some(given), None) => given,
            (None, None) => return Err(Refused::NotWritten),
        };
        // A point right before the first entry must not have a term above that entry's.
        if first == Some(through + 1) && self.entries.values().next().is_some_and(|(first_term, _)| *first_term < term)
        {
            return Err(Refused::TermFell);
        }
        let is_past_end = self.next().is_none_or(|next| through >= next);
        if is_past_end && term < self.last_term() {
            return Err(Refused::TermFell);
        }
        self.entries = self.entries.split_off(&(through + 1));
        self.compacted = Some((through, term));
        Ok(())
    }

    /// The lowest index that holds an entry.
    pub(crate) fn first(&self) -> Option<u64> {
        self.entries.keys().next().copied()
    }

    /// Index of the next entry; `None` where it may be any.
    pub(crate) fn next(&self) -> Option<u64> {
        let last = self.entries.keys().next_back().copied();
        last.or(self.compacted.map(|(through, _)| through)).map(|last| last + 1)
    }

    /// The term that the next entry must not fall below.
    pub(crate) fn last_term(&self) -> u64 {
        let last = self.entries.values().next_back().map(|(term, _)| *term);
        last.or(self.compacted.map(|(_, term)| term)).unwrap_or(0)
    }

    /// Term of an entry.
    pub(crate) fn term(&self, index: u64) -> Option<u64> {
        self.entries.get(&index).map(|(term, _)| *term)
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The compaction point.
    #[cfg(test)]
    pub(crate) fn compacted(&self) -> Option<(u64, u64)> {
        self.compacted
    }

    /// Where a log differs from this one; `None` where it does not.
    pub(crate) fn difference(&self, found: &Contents) -> Option<String> {
        let differ = |what: &str, found: &dyn std::fmt::Debug, expected: &dyn std::fmt::Debug| {
            Some(format!("{what} is {found:?}, not {expected:?}"))
        };
        if found.compacted != self.compacted {
            return differ("the compaction point", &found.compacted, &self.compacted);
        }
        if found.next != self.next() {
            return differ("the next index", &found.next, &self.next());
        }
        if found.last_term != self.last_term() {
            return differ("the last term", &found.last_term, &self.last_term());
        }
        if found.hard_state != self.hard_state {
            return differ("the hard state", &found.hard_state.keys(), &self.hard_state.keys());
        }
        if found.entries.len() != self.entries.len() {
            return differ("the number of entries", &found.entries.len(), &self.entries.len());
        }
        let mut pairs = found.entries.iter().zip(&self.entries);
        let differing = pairs.find(|(found, (index, (term, payload)))| {
            found.index != **index || found.term != *term || found.command != *payload
        });
        differing.map(|(found, (index, _))| format!("entry {} is not the one expected at {index}", found.index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::LogEntry;

    const FITTING: Fitting = Fitting { first_index: 1, hard_state_bytes_max: 64 };

    fn push(text: &'static str) -> Request {
        Request::Push(Bytes::from_static(text.as_bytes()))
    }

    fn entry(index: u64, term: u64) -> Request {
        Request::Entry(LogEntry::new(term, index, "x"))
    }

    #[test]
    fn a_batch_is_all_or_nothing() {
        let model = Model::default().after(&[push("a"), push("b")], FITTING).unwrap();
        assert_eq!(model.after(&[push("c"), entry(9, 1)], FITTING), Err(Refused::Gap));
        assert_eq!((model.first(), model.next(), model.len()), (Some(1), Some(3), 2));
    }

    #[test]
    fn terms_and_points_follow_what_is_left() {
        let start = [entry(5, 2), entry(6, 3), Request::Compact(5, None)];
        let model = Model::default().after(&start, FITTING).unwrap();
        assert_eq!((model.compacted(), model.last_term()), (Some((5, 2)), 3));
        let model = model.after(&[Request::Truncate(6)], FITTING).unwrap();
        assert_eq!((model.next(), model.last_term()), (Some(6), 2));
        assert_eq!(model.after(&[entry(6, 1)], FITTING), Err(Refused::TermFell));
        assert_eq!(model.after(&[Request::Truncate(5)], FITTING), Err(Refused::Compacted));
        let model = model.after(&[Request::Compact(20, Some(7))], FITTING).unwrap();
        assert_eq!((model.next(), model.last_term(), model.len()), (Some(21), 7, 0));
    }
}
