//! Whether what a scan told was ever there, all of it at one moment.
//!
//! Each value of a scan is a read of its key as well, and is checked as one. Here keys are compared with each other: a
//! value cannot have been there before its write began, nor after another operation, begun when that write had ended,
//! showed or left something else. Where one key's value was gone before another's began, the scan is torn. What is
//! found so is wrong for certain; that nothing is found does not prove the scan: keys that were not there are left
//! out, as they may have come and gone.

use std::collections::BTreeMap;
use std::fmt;

use super::checker;
use super::history::{Action, Answer, Key, Operation, Value};

/// What a scan told of the keys that were worked on.
#[derive(Clone, Debug)]
pub(crate) struct Scan {
    pub(crate) client: u32,
    pub(crate) start_ns: u64,
    pub(crate) end_ns: u64,
    pub(crate) found: Vec<(Key, Option<Value>)>,
}

/// Two values that were never there at the same time, and when that shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Torn {
    gone: (u64, Key, Value),
    began: (u64, Key, Value),
}

/// When a value was there, as far as that is certain.
#[derive(Clone, Copy, Debug)]
struct Stay {
    from_ns: u64,
    until_ns: u64,
}

/// The operations on all keys, by which scans are judged.
#[derive(Debug, Default)]
pub(crate) struct Histories(BTreeMap<Key, BTreeMap<Value, Stay>>);

impl Histories {
    pub(crate) fn add(&mut self, key: Key, operations: &[Operation]) {
        let operations = checker::narrowed(operations);
        let written = operations.iter().filter_map(|write| Some((written(write.action)?, stay(write, &operations)?)));
        self.0.insert(key, written.collect());
    }

    /// What shows that a scan's answer was there at no moment.
    pub(crate) fn torn(&self, scan: &Scan) -> Option<Torn> {
        let stays =
            || scan.found.iter().filter_map(|(key, value)| Some((*key, (*value)?, self.stay(*key, (*value)?)?)));
        let began = stays().map(|(key, value, stay)| (stay.from_ns, key, value)).max()?;
        let gone = stays().map(|(key, value, stay)| (stay.until_ns, key, value)).min()?;
        (began.0 > gone.0).then_some(Torn { gone, began })
    }

    fn stay(&self, key: Key, value: Value) -> Option<Stay> {
        self.0.get(&key)?.get(&value).copied()
    }
}

impl fmt::Display for Torn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |ns: u64| ns as f64 / 1e6;
        let (gone_ns, gone_key, gone) = self.gone;
        let (began_ns, began_key, began) = self.began;
        write!(f, "{gone_key} had {gone:?} no longer at {:.3} ms, ", ms(gone_ns))?;
        write!(f, "and {began_key} had {began:?} not before {:.3} ms", ms(began_ns))
    }
}

/// What an action leaves, if it leaves a value.
fn written(action: Action) -> Option<Value> {
    match action {
        Action::Set(value) => Some(value),
        Action::Swap { new, .. } => new,
        Action::Get | Action::Delete => None,
    }
}

/// How long what was written was there at the most; `None` for a swap that was not made.
fn stay(write: &Operation, operations: &[Operation]) -> Option<Stay> {
    if write.end.is_some_and(|(_, answer)| answer == Answer::Swapped(false)) {
        return None;
    }
    let value = written(write.action)?;
    // One that never ended may have come at any time.
    let ended_ns = write.end.map_or(u64::MAX, |(end_ns, _)| end_ns);
    let later = operations.iter().filter(|later| later.start_ns > ended_ns);
    let until_ns = later.filter_map(|later| shows_other(later, value)).min().unwrap_or(u64::MAX);
    Some(Stay { from_ns: write.start_ns, until_ns })
}

/// When an operation ended that is not explained by a key that had this value before and after it.
fn shows_other(operation: &Operation, value: Value) -> Option<u64> {
    let (end_ns, answer) = operation.end?;
    let shows = match (operation.action, answer) {
        (_, Answer::Found(found)) => found != Some(value),
        (Action::Swap { expected, .. }, Answer::Swapped(false)) => expected == Some(value),
        _ => true,
    };
    shows.then_some(end_ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(value: u64, start_ns: u64, end_ns: impl Into<Option<u64>>) -> Operation {
        let end = end_ns.into().map(|end_ns| (end_ns, Answer::Set));
        Operation { client: 0, action: Action::Set(Value(value)), start_ns, end }
    }

    fn get(value: u64, start_ns: u64, end_ns: u64) -> Operation {
        let end = Some((end_ns, Answer::Found(Some(Value(value)))));
        Operation { client: 0, action: Action::Get, start_ns, end }
    }

    fn swap(expected: u64, new: u64, swapped: bool, start_ns: u64, end_ns: u64) -> Operation {
        let action = Action::Swap { expected: Some(Value(expected)), new: Some(Value(new)) };
        Operation { client: 0, action, start_ns, end: Some((end_ns, Answer::Swapped(swapped))) }
    }

    fn is_torn(histories: [&[Operation]; 2], found: [impl Into<Option<u64>>; 2]) -> bool {
        let mut all = Histories::default();
        histories.iter().enumerate().for_each(|(at, operations)| all.add(Key(at as u64), operations));
        let found = found.into_iter().enumerate().map(|(at, value)| (Key(at as u64), value.into().map(Value)));
        let scan = Scan { client: 1, start_ns: 5, end_ns: 100, found: found.collect() };
        all.torn(&scan).is_some()
    }

    #[test]
    fn a_scan_with_a_value_that_was_gone_before_another_of_its_values_began_is_found() {
        let (one, two) = ([set(1, 0, 1), set(2, 10, 11)], [set(3, 0, 1), set(4, 20, 21)]);
        let torn = |found: [u64; 2]| is_torn([&one, &two], found);
        assert!(torn([1, 4]));
        assert!(!torn([1, 3]) && !torn([2, 3]) && !torn([2, 4]));
        // What is missing says nothing.
        assert!(!is_torn([&one, &two], [Some(1), None]) && !is_torn([&one, &two], [None, Some(4)]));
    }

    #[test]
    fn a_scan_that_some_order_of_operations_at_the_same_time_explains_is_none_that_is_torn() {
        // The one's end and the other's start at the same moment, and one within the other.
        for other in [set(4, 11, 21), set(4, 5, 6), set(4, 5, 30)] {
            assert!(!is_torn([&[set(1, 0, 1), set(2, 10, 11)], &[other]], [1, 4]), "{other}");
        }
        // The first write may have come after the second.
        assert!(!is_torn([&[set(1, 0, 10), set(2, 9, 11)], &[set(4, 20, 21)]], [1, 4]));
        assert!(!is_torn([&[set(1, 0, None), set(2, 9, 11)], &[set(4, 20, 21)]], [1, 4]));
        assert!(!is_torn([&[set(1, 0, 1), set(2, 9, None)], &[set(4, 20, 21)]], [1, 4]));
    }

    #[test]
    fn a_value_is_gone_when_another_was_seen_or_swapped_for_it_and_not_when_a_swap_failed() {
        let other = [set(4, 20, 21)];
        let torn = |later: &[Operation]| is_torn([&[&[set(1, 0, 1)], later].concat(), &other], [1, 4]);
        assert!(torn(&[get(2, 5, 6), set(2, 0, None)]));
        assert!(torn(&[swap(1, 2, true, 5, 6)]) && torn(&[swap(1, 2, false, 5, 6)]));
        assert!(!torn(&[get(1, 5, 6)]) && !torn(&[swap(7, 8, false, 5, 6)]) && !torn(&[get(2, 25, 26)]));
        // An open write that was seen had come by then.
        assert!(is_torn([&[set(1, 0, None), get(1, 2, 3), set(2, 5, 6)], &other], [1, 4]));
    }
}
