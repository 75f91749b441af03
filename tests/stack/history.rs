//! Random histories: what is proposed, when a snapshot is taken or dropped, when the store is opened again. And the
//! state after each command, from a model that shares nothing with the machine.
//!
//! Everything follows from the seed. The n-th command of a history has the index n in the log.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use ringwal::StateMachine;
use ringwal::machine::{CounterCommand, KvCommand, KvOp, KvResponse};
use ringwal::sim::Rng;

use super::ledger::{Command, Ledger, Response};
use super::ready;

/// Keys that are in use: few, so that commands meet.
const KEYS: usize = 12;

/// What is done to the driven machine.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// One command.
    Propose(Command),
    /// Several, as one batch of the log.
    Together(Vec<Command>),
    /// Takes a snapshot.
    Checkpoint,
    /// Keeps so many snapshots.
    Keep(usize),
    /// Deletes the oldest snapshot, which may be refused.
    DeleteOldest,
    /// Opens again: after a close, or without one.
    Reopen { closes: bool },
}

impl Step {
    pub(crate) fn commands(&self) -> &[Command] {
        match self {
            Step::Propose(command) => std::slice::from_ref(command),
            Step::Together(commands) => commands,
            _ => &[],
        }
    }
}

/// A history with the states it goes through.
pub(crate) struct History {
    seed: u64,
    /// The count that the machine begins with.
    pub(crate) initial: i64,
    pub(crate) steps: Vec<Step>,
    /// The state after so many commands, as the machine writes it.
    states: Vec<Vec<u8>>,
}

impl History {
    /// A history of so many steps.
    pub(crate) fn new(seed: u64, steps: usize) -> History {
        let mut rng = Rng::of_part(seed, &[0]);
        // So near to the limit that some increments are refused.
        let initial = i64::MAX - rng.below(40) as i64;
        let mut steps: Vec<Step> = (0..steps).map(|_| step(&mut rng)).collect();
        // At least one snapshot is taken, with something before and behind it. Its last command does not come to the same
        // when it is applied twice.
        let middle = steps.len() / 2;
        steps[middle - 1] = Step::Propose(Command::Count(CounterCommand::Decrement(1 + rng.below(8) as i64)));
        steps[middle] = Step::Checkpoint;
        History::of(seed, initial, steps)
    }

    /// So many commands, each by itself.
    pub(crate) fn of_single_commands(seed: u64, commands: usize) -> History {
        let mut rng = Rng::of_part(seed, &[0]);
        let steps = (0..commands).map(|_| Step::Propose(command(&mut rng))).collect();
        History::of(seed, i64::MAX - 10, steps)
    }

    fn of(seed: u64, initial: i64, steps: Vec<Step>) -> History {
        let states = states_of(initial, &steps);
        History { seed, initial, steps, states }
    }

    /// The command of an index.
    pub(crate) fn command(&self, index: u64) -> Command {
        self.steps.iter().flat_map(Step::commands).nth(index as usize - 1).cloned().expect("there is one")
    }

    /// How many commands there are.
    pub(crate) fn len(&self) -> u64 {
        self.states.len() as u64 - 1
    }

    /// The state after the command of this index; 0 is the one before the first.
    pub(crate) fn state(&self, index: u64) -> &[u8] {
        &self.states[index as usize]
    }

    /// The indexes after which no step is half done.
    pub(crate) fn is_boundary(&self, index: u64) -> bool {
        let mut at = 0;
        index == 0
            || self.steps.iter().any(|step| {
                at += step.commands().len() as u64;
                at == index
            })
    }

    /// The steps that are left when the commands up to an index are applied.
    pub(crate) fn rest(&self, index: u64) -> &[Step] {
        let (mut at, mut done) = (0, 0);
        for (nth, step) in self.steps.iter().enumerate() {
            at += step.commands().len() as u64;
            if at <= index && !step.commands().is_empty() {
                done = nth + 1;
            }
        }
        &self.steps[done..]
    }
}

/// Its steps, each on a line with the index of its first command.
impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut next = 1;
        for step in &self.steps {
            let told: String = format!("{step:?}").chars().take(160).collect();
            writeln!(f, "{next:>5} {told}")?;
            next += step.commands().len();
        }
        Ok(())
    }
}

fn step(rng: &mut Rng) -> Step {
    match rng.below(40) {
        0..=21 => Step::Propose(command(rng)),
        22..=26 => Step::Together((0..1 + rng.below(4)).map(|_| command(rng)).collect()),
        27..=33 => Step::Checkpoint,
        34 => Step::Keep(1 + rng.below(2)),
        35 => Step::DeleteOldest,
        _ => Step::Reopen { closes: rng.one_in(2) },
    }
}

fn key(rng: &mut Rng) -> Bytes {
    Bytes::from(format!("key {}", rng.below(KEYS)))
}

/// A value: one of a few, so that a comparison meets it, or any. Some are long enough to fill a chunk of a snapshot, or
/// to make the log roll.
fn value(rng: &mut Rng) -> Bytes {
    let bytes = match rng.below(8) {
        0 => 0,
        1 => 300 + rng.below(1500),
        2 => 1 + rng.below(40),
        _ => return Bytes::from(format!("value {}", rng.below(3))),
    };
    (0..bytes).map(|_| rng.next_u64() as u8).collect()
}

fn command(rng: &mut Rng) -> Command {
    match rng.below(16) {
        0..=4 => Command::Kv(KvCommand::Set { key: key(rng), value: value(rng) }),
        5 | 6 => Command::Kv(KvCommand::Delete { key: key(rng) }),
        7 => Command::Kv(KvCommand::Get { key: key(rng) }),
        8 | 9 => Command::Kv(KvCommand::Batch((0..rng.below(5)).map(|_| op(rng)).collect())),
        // Absent as often as not: a first set that is then in the way of the next.
        10 | 11 => {
            let (expected, new) = (rng.one_in(3).then(|| value(rng)), rng.one_in(2).then(|| value(rng)));
            Command::Kv(KvCommand::CompareAndSet { key: key(rng), expected, new })
        }
        12 => Command::Kv(KvCommand::Scan { start: key(rng), end: None, limit: 3 }),
        13 => Command::Count(CounterCommand::Decrement(rng.below(9) as i64)),
        _ => Command::Count(CounterCommand::Increment(rng.below(15) as i64)),
    }
}

fn op(rng: &mut Rng) -> KvOp {
    match rng.one_in(3) {
        true => KvOp::Delete { key: key(rng) },
        false => KvOp::Put { key: key(rng), value: value(rng) },
    }
}

/// The state before the first command and after each, by a machine that is never restored; on the way it is held against
/// the model.
fn states_of(initial: i64, steps: &[Step]) -> Vec<Vec<u8>> {
    let mut machine = Ledger::new(initial);
    let mut model = Model { map: BTreeMap::new(), count: initial };
    let mut states = vec![ready(machine.get_state()).unwrap()];
    for command in steps.iter().flat_map(Step::commands) {
        let expected = model.apply(command);
        let given = ready(machine.apply(command.clone())).ok();
        assert_eq!(given, expected, "{command:?}");
        assert!(model.is(&machine), "{command:?}: {machine:?} is not {model:?}");
        states.push(ready(machine.get_state()).unwrap());
    }
    states
}

/// What a ledger holds, in the plainest way.
#[derive(Debug)]
struct Model {
    map: BTreeMap<Bytes, Bytes>,
    count: i64,
}

impl Model {
    fn is(&self, ledger: &Ledger) -> bool {
        let pairs = self.map.iter().map(|(key, value)| (&key[..], &value[..]));
        ledger.counter.count() == self.count && ledger.kv.iter().eq(pairs)
    }

    /// `None` for a refusal.
    fn apply(&mut self, command: &Command) -> Option<Response> {
        match command {
            Command::Kv(command) => Some(Response::Kv(self.apply_kv(command))),
            Command::Count(command) => {
                self.count = match *command {
                    CounterCommand::Increment(by) => self.count.checked_add(by)?,
                    CounterCommand::Decrement(by) => self.count.checked_sub(by)?,
                    CounterCommand::Set(count) => count,
                    CounterCommand::Get => self.count,
                };
                Some(Response::Count(self.count))
            }
        }
    }

    fn apply_kv(&mut self, command: &KvCommand) -> KvResponse {
        match command.clone() {
            KvCommand::Set { key, value } => {
                self.map.insert(key, value);
                KvResponse::Done
            }
            KvCommand::Delete { key } => KvResponse::Deleted { existed: self.map.remove(&key).is_some() },
            KvCommand::Get { key } => KvResponse::Value(self.map.get(&key).cloned()),
            KvCommand::Batch(ops) => {
                ops.into_iter().for_each(|op| self.set(op));
                KvResponse::Done
            }
            KvCommand::CompareAndSet { key, expected, new } => {
                let found = self.map.get(&key).cloned();
                if found != expected {
                    return KvResponse::Differs(found);
                }
                self.set(match new {
                    Some(value) => KvOp::Put { key, value },
                    None => KvOp::Delete { key },
                });
                KvResponse::Swapped
            }
            KvCommand::Scan { start, end, limit } => {
                let in_range =
                    |(key, _): &(&Bytes, &Bytes)| **key >= start && end.as_ref().is_none_or(|end| *key < end);
                let pairs = self.map.iter().filter(in_range).take(limit as usize);
                KvResponse::Entries(pairs.map(|(key, value)| (key.clone(), value.clone())).collect())
            }
            #[allow(unreachable_patterns, reason = "where the machine knows more than the histories")]
            other => unreachable!("no history has {other:?}"),
        }
    }

    fn set(&mut self, op: KvOp) {
        match op {
            KvOp::Put { key, value } => _ = self.map.insert(key, value),
            KvOp::Delete { key } => _ = self.map.remove(&key),
        }
    }
}
