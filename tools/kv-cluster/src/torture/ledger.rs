//! Which keys the clients work on, and what they did: shared by all of them.
//!
//! A few keys are worked on at a time, so that clients meet on them. A key is retired after a number of operations, or of
//! operations with an unknown outcome: what is checked stays small enough to be checked. Once nobody works on a retired
//! key any more, it is handed out to be checked; its last word is spoken when it is read in the end.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rand::Rng;
use rand::rngs::StdRng;
use tokio::sync::mpsc::UnboundedSender;

use super::history::{Action, Answer, Key, Operation, Value};
use super::scans::Scan;

/// Keys that are worked on at a time.
const ACTIVE_KEYS: usize = 5;
/// A key is retired after so many operations.
const OPERATIONS_MAX: usize = 150;
/// And after so many of which nobody knows the outcome.
const OPEN_MAX: usize = 4;

/// The history of a run.
#[derive(Debug)]
pub(crate) struct Ledger {
    began: Instant,
    values: AtomicU64,
    keys: Mutex<Keys>,
    settled: UnboundedSender<Key>,
}

#[derive(Debug, Default)]
struct Keys {
    all: BTreeMap<Key, Page>,
    active: Vec<Key>,
    scans: Vec<Scan>,
}

/// What is known of one key.
#[derive(Debug, Default)]
struct Page {
    operations: Vec<Operation>,
    in_flight: usize,
    open: usize,
    is_retired: bool,
    /// What it had when somebody looked or wrote last.
    hint: Option<Value>,
}

impl Ledger {
    /// An empty one; keys that were retired and are worked on no more are told here.
    pub(crate) fn new(settled: UnboundedSender<Key>) -> Ledger {
        let mut keys = Keys::default();
        for _ in 0..ACTIVE_KEYS {
            keys.add();
        }
        Ledger { began: Instant::now(), values: AtomicU64::new(1), keys: Mutex::new(keys), settled }
    }

    /// Nanoseconds since the run began.
    pub(crate) fn now_ns(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    /// A value that was never written.
    pub(crate) fn new_value(&self) -> Value {
        Value(self.values.fetch_add(1, Ordering::Relaxed))
    }

    /// A key to work on, another than this one; and the value it may have. To be followed by [`end`](Self::end).
    pub(crate) fn begin(&self, rng: &mut StdRng, other_than: Option<Key>) -> (Key, Option<Value>) {
        let mut keys = self.keys();
        let choice: Vec<Key> = keys.active.iter().copied().filter(|key| Some(*key) != other_than).collect();
        let key = choice[rng.random_range(0..choice.len())];
        let page = keys.all.entry(key).or_default();
        page.in_flight += 1;
        (key, page.hint)
    }

    /// All keys that are worked on, in their order: each is to be followed by [`end`](Self::end).
    pub(crate) fn begin_all(&self) -> Vec<Key> {
        let mut keys = self.keys();
        let mut active = keys.active.clone();
        active.sort_unstable();
        for key in &active {
            keys.all.entry(*key).or_default().in_flight += 1;
        }
        active
    }

    /// What came of it; `None` where it is certain that nothing did.
    pub(crate) fn end(&self, key: Key, operation: Option<Operation>) {
        let mut keys = self.keys();
        let page = keys.all.entry(key).or_default();
        page.in_flight -= 1;
        if let Some(operation) = operation {
            page.note(operation);
        }
        let is_full = page.operations.len() + page.in_flight >= OPERATIONS_MAX || page.open >= OPEN_MAX;
        let retires = is_full && !page.is_retired;
        page.is_retired |= retires;
        let is_settled = page.is_retired && page.in_flight == 0;
        if retires {
            keys.active.retain(|active| *active != key);
            keys.add();
        }
        if is_settled {
            // Nobody listens any more where the run has failed.
            let _ = self.settled.send(key);
        }
    }

    /// Adds what a scan told, all at once: its keys are to be ended besides.
    pub(crate) fn note_scan(&self, scan: Scan) {
        self.keys().scans.push(scan);
    }

    /// All scans that were answered up to now.
    pub(crate) fn scans(&self) -> Vec<Scan> {
        self.keys().scans.clone()
    }

    /// Adds what was read of a key after the clients were gone.
    pub(crate) fn read_back(&self, key: Key, operation: Operation) {
        self.keys().all.entry(key).or_default().note(operation);
    }

    /// Every key that was ever worked on.
    pub(crate) fn all(&self) -> Vec<Key> {
        self.keys().all.keys().copied().collect()
    }

    /// All that was done with a key up to now.
    pub(crate) fn operations(&self, key: Key) -> Vec<Operation> {
        self.keys().all.get(&key).map(|page| page.operations.clone()).unwrap_or_default()
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keys {
    fn add(&mut self) {
        let key = Key(self.all.len() as u64);
        self.all.insert(key, Page::default());
        self.active.push(key);
    }
}

impl Page {
    fn note(&mut self, operation: Operation) {
        match (operation.action, operation.end) {
            (Action::Get, None) => {}
            (_, None) => self.open += 1,
            (_, Some((_, Answer::Found(found)))) => self.hint = found,
            (Action::Set(value), Some(_)) => self.hint = Some(value),
            (Action::Swap { new, .. }, Some((_, Answer::Swapped(true)))) => self.hint = new,
            (Action::Delete, Some(_)) => self.hint = None,
            _ => {}
        }
        self.operations.push(operation);
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use tokio::sync::mpsc;

    use super::*;

    fn done(value: Value) -> Option<Operation> {
        Some(Operation { client: 0, action: Action::Set(value), start_ns: 0, end: Some((1, Answer::Set)) })
    }

    fn unknown(value: Value) -> Option<Operation> {
        done(value).map(|operation| Operation { end: None, ..operation })
    }

    #[test]
    fn a_key_is_retired_when_it_has_seen_enough_and_settled_when_the_last_client_leaves_it() {
        let (tell, mut settled) = mpsc::unbounded_channel();
        let (ledger, mut rng) = (Ledger::new(tell), StdRng::seed_from_u64(1));
        let (key, _) = ledger.begin(&mut rng, None);
        while ledger.operations(key).len() < OPERATIONS_MAX - 1 {
            let (other, _) = ledger.begin(&mut rng, None);
            ledger.end(other, done(ledger.new_value()).filter(|_| other == key));
        }
        assert!(settled.try_recv().is_err());
        assert!(!ledger.begin_all().contains(&key));
        ledger.end(key, done(ledger.new_value()));
        assert_eq!(settled.try_recv(), Ok(key));
        assert_eq!(ledger.operations(key).len(), OPERATIONS_MAX);
    }

    #[test]
    fn a_key_with_many_unknown_outcomes_is_retired_early() {
        let (tell, mut settled) = mpsc::unbounded_channel();
        let (ledger, mut rng) = (Ledger::new(tell), StdRng::seed_from_u64(2));
        while settled.is_empty() {
            let (key, _) = ledger.begin(&mut rng, None);
            ledger.end(key, unknown(ledger.new_value()));
        }
        let key = settled.try_recv().unwrap();
        assert_eq!(ledger.operations(key).len(), OPEN_MAX);
        assert_eq!(ledger.all().len(), ACTIVE_KEYS + 1);
    }

    #[test]
    fn who_does_not_know_what_became_of_a_key_goes_on_with_another() {
        let (tell, _settled) = mpsc::unbounded_channel();
        let (ledger, mut rng) = (Ledger::new(tell), StdRng::seed_from_u64(3));
        let (key, hint) = ledger.begin(&mut rng, None);
        assert_eq!(hint, None);
        let value = ledger.new_value();
        ledger.end(key, done(value));
        for _ in 0..100 {
            let (other, _) = ledger.begin(&mut rng, Some(key));
            assert_ne!(other, key);
            ledger.end(other, None);
        }
        let hinted = std::iter::repeat_with(|| ledger.begin(&mut rng, None)).find(|(other, _)| *other == key);
        assert_eq!(hinted, Some((key, Some(value))));
    }
}
