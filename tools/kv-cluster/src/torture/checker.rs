//! Whether the history of a key is linearizable: whether some order of its operations explains every answer, each taking
//! effect at one moment between its start and its end.
//!
//! The search is `todc-utils`' (Wing and Gong, with Lowe's memory of what was tried); the model of a key is ours. Of what
//! there is in Rust, `stateright`'s tester remembers nothing of what it tried and needs seconds for 200 operations;
//! `porcupine-rs` is several times faster than this one, but brings a benchmark framework and more along. What that
//! speed would be for is had by short histories: keys are retired after a few hundred operations (see `ledger`).
//!
//! Operations that stay open are what makes the search slow: each may come anywhere later on. But one whose value was
//! seen has happened before that, at the latest: [`narrowed`] gives it that end. This changes no verdict.
//!
//! Some histories cannot be decided by anybody's patience: the search grows with every open operation, and its memory
//! with every try. So a search has bounds, and one that reaches them says nothing about the history, least of all that
//! it is fine.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

use todc_utils::linearizability::WGLChecker;
use todc_utils::linearizability::history::{Action as Event, History};
use todc_utils::specifications::Specification;

use super::history::{Action, Answer, Operation, Value};

/// What may be spent on the search for one order. An ordinary key takes milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) time: Duration,
    /// Each takes the memory of a few hundred bytes, until the search is over.
    pub(crate) tries: u64,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds { time: Duration::from_secs(30), tries: 2_000_000 }
    }
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} or {} tries", self.time, self.tries)
    }
}

/// What is known of a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Some order explains every answer.
    Linearizable,
    /// None does.
    NotLinearizable,
    /// No order was found, and not all were tried.
    Undecided,
}

/// What is left of the bounds of one search.
#[derive(Debug)]
struct Patience {
    until: Instant,
    tries_left: Cell<u64>,
    has_ended: Cell<bool>,
}

impl Patience {
    fn new(bounds: Bounds) -> Patience {
        let (tries_left, has_ended) = (Cell::new(bounds.tries), Cell::new(false));
        Patience { until: Instant::now() + bounds.time, tries_left, has_ended }
    }

    /// Whether one more may be tried.
    fn take(&self) -> bool {
        let left = self.tries_left.get();
        self.tries_left.set(left.saturating_sub(1));
        let has_ended = self.has_ended.get() || left == 0 || Instant::now() >= self.until;
        self.has_ended.set(has_ended);
        !has_ended
    }
}

/// A key: its value, or none.
struct Register<'a>(PhantomData<&'a Patience>);

/// What was asked, what was told, and how long it may take to find out whether that fits.
type Told<'a> = (Action, Option<Answer>, &'a Patience);

impl<'a> Specification for Register<'a> {
    type State = Option<Value>;
    type Operation = Told<'a>;

    fn init() -> Option<Value> {
        None
    }

    /// The search has no way out of its own: once nothing fits any more, it takes back all it had and ends.
    fn apply((action, told, patience): &Told<'a>, state: &Option<Value>) -> (bool, Option<Value>) {
        let (answer, next) = effect(*action, *state);
        (patience.take() && told.is_none_or(|told| told == answer), next)
    }
}

/// What an action gives in a state, and what it leaves.
fn effect(action: Action, state: Option<Value>) -> (Answer, Option<Value>) {
    match action {
        Action::Get => (Answer::Found(state), state),
        Action::Set(value) => (Answer::Set, Some(value)),
        Action::Delete => (Answer::Deleted { existed: state.is_some() }, None),
        Action::Swap { expected, new } if expected == state => (Answer::Swapped(true), new),
        Action::Swap { .. } => (Answer::Swapped(false), state),
    }
}

/// Whether the operations on a key that is not there at first, in any order, are linearizable.
pub(crate) fn verdict(operations: &[Operation], bounds: Bounds) -> Verdict {
    search(&narrowed(operations), bounds)
}

/// The operation at whose end a history that is not linearizable can no longer be explained: with all that ended before
/// it, it still can be. `None` if that cannot be decided.
pub(crate) fn first_wrong(operations: &[Operation], bounds: Bounds) -> Option<Operation> {
    let mut ended: Vec<&Operation> = operations.iter().filter(|operation| operation.end.is_some()).collect();
    ended.sort_by_key(|operation| operation.end.map(|(end_ns, _)| end_ns));
    let is_decided = Cell::new(true);
    // What an order explains, it explains of every beginning of the history too.
    let wrong = ended.partition_point(|last| {
        let verdict = verdict(&until(operations, last), bounds);
        is_decided.set(is_decided.get() && verdict != Verdict::Undecided);
        verdict == Verdict::Linearizable
    });
    ended.get(wrong).filter(|_| is_decided.get()).map(|operation| **operation)
}

/// The history up to the end of an operation: what ended later is open.
fn until(operations: &[Operation], last: &Operation) -> Vec<Operation> {
    let until_ns = last.end.map_or(u64::MAX, |(end_ns, _)| end_ns);
    let begun = operations.iter().filter(|operation| operation.start_ns <= until_ns);
    begun
        .map(|operation| Operation { end: operation.end.filter(|(end_ns, _)| *end_ns <= until_ns), ..*operation })
        .collect()
}

fn search(operations: &[Operation], bounds: Bounds) -> Verdict {
    if operations.is_empty() {
        return Verdict::Linearizable;
    }
    let patience = Patience::new(bounds);
    let mut events = Vec::with_capacity(2 * operations.len());
    for (number, operation) in operations.iter().enumerate() {
        let told = (operation.action, operation.end.map(|(_, answer)| answer), &patience);
        let end_ns = operation.end.map_or(u64::MAX, |(end_ns, _)| end_ns);
        events.push((operation.start_ns, false, number, Event::Call(told)));
        events.push((end_ns, true, number, Event::Response(told)));
    }
    // At one and the same moment, what starts comes before what ends: they overlapped.
    events.sort_by_key(|(at_ns, is_end, number, _)| (*at_ns, *is_end, *number));
    let events = events.into_iter().map(|(_, _, number, event)| (number, event)).collect();
    match WGLChecker::<Register>::is_linearizable(History::from_actions(events)) {
        true => Verdict::Linearizable,
        false if patience.has_ended.get() => Verdict::Undecided,
        false => Verdict::NotLinearizable,
    }
}

/// The same history with less to try: open reads are left out, and an open write that was seen ends where it was.
pub(crate) fn narrowed(operations: &[Operation]) -> Vec<Operation> {
    let is_open_read = |operation: &&Operation| operation.action == Action::Get && operation.end.is_none();
    let mut narrowed: Vec<Operation> =
        operations.iter().filter(|operation| !is_open_read(operation)).copied().collect();
    // A swap that was seen has seen what it expected: one may close the next.
    while let Some((number, end)) = (0..narrowed.len()).find_map(|number| Some((number, seen(number, &narrowed)?))) {
        narrowed[number].end = Some(end);
    }
    narrowed
}

/// The end that an open write has because somebody saw what it wrote.
fn seen(number: usize, operations: &[Operation]) -> Option<(u64, Answer)> {
    let open = operations[number];
    let (value, answer) = match open.action {
        Action::Set(value) => (value, Answer::Set),
        Action::Swap { new: Some(value), .. } => (value, Answer::Swapped(true)),
        _ => return None,
    };
    if open.end.is_some() {
        return None;
    }
    let end_ns = operations.iter().filter_map(|other| sight(other, value)).min()?;
    // Seen before it began: nothing explains that, and the search shall find it so.
    (end_ns > open.start_ns).then_some((end_ns, answer))
}

/// When an operation that saw this value ended.
fn sight(operation: &Operation, value: Value) -> Option<u64> {
    let (end_ns, answer) = operation.end?;
    let saw = match (operation.action, answer) {
        (_, Answer::Found(found)) => found,
        (Action::Swap { expected, .. }, Answer::Swapped(true)) => expected,
        _ => None,
    };
    (saw == Some(value)).then_some(end_ns)
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// Histories of tests are decided, however slow the machine.
    const BOUNDS: Bounds = Bounds { time: Duration::from_secs(100_000), tries: 2_000_000 };

    fn is_linearizable(operations: &[Operation]) -> bool {
        decided(verdict(operations, BOUNDS))
    }

    fn decided(verdict: Verdict) -> bool {
        assert_ne!(verdict, Verdict::Undecided);
        verdict == Verdict::Linearizable
    }

    fn first_wrong(operations: &[Operation]) -> Option<Operation> {
        assert!(!is_linearizable(operations));
        super::first_wrong(operations, BOUNDS)
    }

    fn operation(action: Action, start_ns: u64, end: Option<(u64, Answer)>) -> Operation {
        Operation { client: 0, action, start_ns, end }
    }

    fn set(value: u64, start_ns: u64, end_ns: u64) -> Operation {
        operation(Action::Set(Value(value)), start_ns, Some((end_ns, Answer::Set)))
    }

    fn open_set(value: u64, start_ns: u64) -> Operation {
        operation(Action::Set(Value(value)), start_ns, None)
    }

    fn get(found: impl Into<Option<u64>>, start_ns: u64, end_ns: u64) -> Operation {
        operation(Action::Get, start_ns, Some((end_ns, Answer::Found(found.into().map(Value)))))
    }

    fn swap(expected: u64, new: u64, swapped: bool, start_ns: u64, end_ns: u64) -> Operation {
        let action = Action::Swap { expected: Some(Value(expected)), new: Some(Value(new)) };
        operation(action, start_ns, Some((end_ns, Answer::Swapped(swapped))))
    }

    fn delete(existed: bool, start_ns: u64, end_ns: u64) -> Operation {
        operation(Action::Delete, start_ns, Some((end_ns, Answer::Deleted { existed })))
    }

    #[test]
    fn what_one_client_does_after_another_is_explained() {
        assert!(is_linearizable(&[]));
        let one_by_one = [
            get(None, 0, 1),
            set(1, 2, 3),
            get(1, 4, 5),
            swap(1, 2, true, 6, 7),
            swap(1, 3, false, 8, 9),
            delete(true, 10, 11),
            delete(false, 12, 13),
            get(None, 14, 15),
        ];
        assert!(is_linearizable(&one_by_one));
    }

    #[test]
    fn a_read_that_is_behind_is_found() {
        let stale = [set(1, 0, 1), set(2, 2, 3), get(1, 4, 5), get(2, 6, 7)];
        assert_eq!(first_wrong(&stale), Some(stale[2]));
    }

    #[test]
    fn an_acknowledged_write_that_is_lost_is_found() {
        let lost = [set(1, 0, 1), set(2, 2, 3), get(1, 10, 11)];
        assert_eq!(first_wrong(&lost), Some(lost[2]));
        assert_eq!(first_wrong(&[set(1, 0, 1), get(None, 2, 3)]), Some(get(None, 2, 3)));
    }

    #[test]
    fn reads_that_go_forth_and_back_during_a_write_are_found() {
        let forth = [set(1, 0, 1), set(2, 2, 20), get(1, 3, 4), get(2, 5, 6), get(2, 7, 8)];
        assert!(is_linearizable(&forth));
        let back = [set(1, 0, 1), set(2, 2, 20), get(2, 3, 4), get(1, 5, 6)];
        assert_eq!(first_wrong(&back), Some(back[3]));
    }

    #[test]
    fn two_swaps_of_the_same_value_are_found() {
        let twice = [set(1, 0, 1), swap(1, 2, true, 2, 10), swap(1, 3, true, 3, 9)];
        assert!(first_wrong(&twice).is_some());
    }

    #[test]
    fn a_value_that_nobody_wrote_is_found() {
        assert!(!is_linearizable(&[set(1, 0, 1), get(9, 0, 5)]));
        assert!(!is_linearizable(&[get(Value::FOREIGN.0, 0, 5)]));
        // Also one that was seen before its write began.
        assert!(!is_linearizable(&[get(1, 0, 5), open_set(1, 6)]));
    }

    #[test]
    fn a_write_of_unknown_outcome_may_have_happened_late_or_never_but_not_twice() {
        for found in [1, 2] {
            assert!(is_linearizable(&[set(1, 0, 1), open_set(2, 2), get(found, 100, 101)]), "{found}");
        }
        assert!(is_linearizable(&[set(1, 0, 1), open_set(2, 2), get(1, 3, 4), set(3, 5, 6), get(2, 7, 8)]));
        let twice = [open_set(2, 0), get(2, 1, 2), set(3, 3, 4), get(3, 5, 6), get(2, 7, 8)];
        assert_eq!(first_wrong(&twice), Some(twice[4]));
    }

    #[test]
    fn a_write_of_unknown_outcome_that_nobody_read_explains_a_swap_that_failed() {
        assert!(is_linearizable(&[set(1, 0, 1), open_set(2, 2), swap(1, 3, false, 3, 4)]));
        assert!(!is_linearizable(&[set(1, 0, 1), swap(1, 3, false, 3, 4)]));
        assert!(is_linearizable(&[open_set(2, 2), delete(true, 3, 4)]));
        let open_delete = operation(Action::Delete, 2, None);
        assert!(is_linearizable(&[set(1, 0, 1), open_delete, get(None, 3, 4)]));
        assert!(!is_linearizable(&[set(1, 0, 1), open_delete, get(None, 3, 4), get(1, 5, 6)]));
    }

    #[test]
    fn touching_operations_overlap() {
        assert!(is_linearizable(&[set(1, 0, 5), get(None, 5, 6)]));
        assert!(!is_linearizable(&[set(1, 0, 5), get(None, 6, 7)]));
    }

    /// Tries every order.
    fn explained(state: Option<Value>, left: &[Operation]) -> bool {
        let first_end = left.iter().filter_map(|operation| operation.end).map(|(end_ns, _)| end_ns).min();
        let Some(first_end) = first_end else { return true };
        (0..left.len()).filter(|next| left[*next].start_ns <= first_end).any(|next| {
            let mut rest = left.to_vec();
            let taken = rest.remove(next);
            let (answer, after) = effect(taken.action, state);
            taken.end.is_none_or(|(_, told)| told == answer) && explained(after, &rest)
        })
    }

    /// Operations with answers that are often right.
    fn drawn(rng: &mut StdRng) -> Vec<Operation> {
        let (mut state, mut made, mut at_ns) = (None, Vec::new(), 0);
        for number in 0..rng.random_range(1..7) {
            at_ns += rng.random_range(0..4);
            let some = |rng: &mut StdRng| Some(Value(rng.random_range(0..6))).filter(|_| rng.random_bool(0.8));
            let action = match rng.random_range(0..8) {
                0..3 => Action::Get,
                3..5 => Action::Set(Value(number)),
                5 => Action::Delete,
                _ => Action::Swap { expected: state.or_else(|| some(rng)), new: Some(Value(number)) },
            };
            let (answer, after) = effect(action, state);
            state = if rng.random_bool(0.9) { after } else { state };
            let answer = match answer {
                Answer::Found(_) if rng.random_bool(0.2) => Answer::Found(some(rng)),
                answer => answer,
            };
            let end = rng.random_bool(0.75).then(|| (at_ns + rng.random_range(0..8), answer));
            made.push(operation(action, at_ns, end));
        }
        made
    }

    #[test]
    fn every_verdict_is_the_one_that_trying_all_orders_gives() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut verdicts = [0; 2];
        for round in 0..20_000 {
            let operations = drawn(&mut rng);
            let expected = explained(None, &operations);
            verdicts[usize::from(expected)] += 1;
            assert_eq!(decided(search(&operations, BOUNDS)), expected, "round {round}: {operations:?}");
            assert_eq!(is_linearizable(&operations), expected, "narrowed, round {round}: {operations:?}");
        }
        assert!(verdicts.iter().all(|count| *count > 2000), "{verdicts:?}");
    }

    #[test]
    fn one_acknowledged_write_lost_out_of_a_whole_history_is_found_by_the_first_read_in_the_end() {
        const OPERATIONS: u64 = 150;
        for seed in 0..200 {
            let mut rng = StdRng::seed_from_u64(seed);
            let (mut state, mut whole) = (None, Vec::new());
            for number in 0..OPERATIONS {
                let action = match rng.random_range(0..8) {
                    0..4 => Action::Get,
                    4..6 => Action::Set(Value(number)),
                    6 => Action::Delete,
                    _ => Action::Swap { expected: state, new: Some(Value(number)) },
                };
                let (answer, after) = effect(action, state);
                state = after;
                // It takes effect in the middle; up to five overlap.
                let at_ns = 100 + 10 * number;
                let (before, later) = (rng.random_range(0..25), rng.random_range(0..25));
                whole.push(operation(action, at_ns - before, Some((at_ns + later, answer))));
            }
            let end_ns = 100 + 10 * OPERATIONS + 25;
            let written = Value(OPERATIONS);
            whole.push(operation(Action::Set(written), end_ns, Some((end_ns + 1, Answer::Set))));
            let read = |found, start_ns| operation(Action::Get, start_ns, Some((start_ns + 1, Answer::Found(found))));
            let with = |found| [whole.clone(), vec![read(found, end_ns + 2), read(found, end_ns + 4)]].concat();
            assert!(is_linearizable(&with(Some(written))), "seed {seed}");
            assert_eq!(first_wrong(&with(state)), Some(read(state, end_ns + 2)), "seed {seed}");
        }
    }

    #[test]
    fn a_long_history_with_many_open_operations_is_decided() {
        let mut operations = Vec::new();
        for number in 0..120 {
            let start_ns = 10 * number;
            operations.push(set(number, start_ns, start_ns + 25));
            operations.push(get(number, start_ns + 12, start_ns + 26));
            if number % 20 == 3 {
                operations.push(open_set(1000 + number, start_ns));
            }
        }
        assert!(is_linearizable(&operations));
        operations.push(get(50, 5000, 5001));
        assert_eq!(first_wrong(&operations), operations.last().copied());
    }

    /// Writes that nobody ever saw, open all at once, and in the end a swap that nothing explains: every order in which
    /// they may have come has to be tried before that is known.
    fn hard() -> Vec<Operation> {
        let open = (0..30).map(|number| open_set(number, number));
        open.chain([swap(50, 51, true, 100, 101)]).collect()
    }

    #[test]
    fn a_history_that_takes_too_long_is_neither_fine_nor_wrong() {
        let operations = hard();
        let few = Bounds { tries: 20_000, ..BOUNDS };
        assert_eq!(verdict(&operations, few), Verdict::Undecided);
        let late = Bounds { time: Duration::ZERO, ..BOUNDS };
        assert_eq!(verdict(&operations, late), Verdict::Undecided);
        assert_eq!(super::first_wrong(&operations, few), None);
        // Not even one that is plainly right or wrong, if nothing may be tried.
        for plain in [[set(1, 0, 1), get(1, 2, 3)], [set(1, 0, 1), get(2, 2, 3)]] {
            assert_eq!(verdict(&plain, late), Verdict::Undecided);
            assert_eq!(verdict(&plain, Bounds { tries: 0, ..BOUNDS }), Verdict::Undecided);
        }
    }
}
