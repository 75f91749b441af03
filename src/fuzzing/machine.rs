//! Target: the state machines. Commands and states of any bytes; histories of commands, with images, against a plain map.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::choices::Choices;
use crate::machine::{CounterStateMachine, KvCommand, KvImage, KvOp, KvStateMachine, StateMachine};

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// Any bytes as commands and as states, as they are and with heads that fit; or a history, with states altered.
///
/// What decodes comes out byte for byte the same when it is encoded once more; a state that is refused leaves the machine
/// as it was; every image shows exactly its moment.
pub fn machine(input: &[u8]) {
    let mut choices = Choices::new(input);
    match choices.below(4) {
        0 => check_commands(&Bytes::copy_from_slice(choices.rest())),
        1 => check_states(choices.rest()),
        2 => {
            let (keys, bytes) = (choices.number(), choices.number());
            let head = [&b"RWKV\x01"[..], &keys.to_le_bytes(), &bytes.to_le_bytes()];
            check_states(&[&head.concat(), choices.rest()].concat());
        }
        _ => History::default().run(&mut choices),
    }
}

/// The machines' futures are ready at once.
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a machine's future waits"),
    }
}

fn check_commands(bytes: &Bytes) {
    if let Ok(command) = KvStateMachine::decode(bytes) {
        assert_eq!(KvStateMachine::encode(&command), bytes, "{command:?} encoded once more");
        let mut kv = KvStateMachine::new();
        let result = ready(kv.apply(command.clone()));
        assert!(result.is_ok() || kv.is_empty(), "{command:?} was refused and has done something");
    }
    if let Ok(command) = CounterStateMachine::decode(bytes) {
        assert_eq!(CounterStateMachine::encode(&command), bytes, "{command:?} encoded once more");
        let mut counter = CounterStateMachine::new(1);
        let result = ready(counter.apply(command));
        assert_eq!(result.unwrap_or(1), counter.count(), "{command:?}");
    }
}

fn check_states(bytes: &[u8]) {
    let mut kv = KvStateMachine::new();
    ready(kv.apply(KvCommand::Set { key: "stays".into(), value: "as it was".into() })).expect("it is not too long");
    let before = state(&kv);
    let expected = if ready(kv.set_state(bytes)).is_ok() { bytes } else { &before };
    assert_eq!(state(&kv), expected, "a state written once more");
    let mut counter = CounterStateMachine::new(1);
    let before = state(&counter);
    let expected = if ready(counter.set_state(bytes)).is_ok() { bytes } else { &before };
    assert_eq!(state(&counter), expected, "a state written once more");
}

fn state<M: StateMachine>(machine: &M) -> Vec<u8> {
    ready(machine.get_state()).expect("memory does not fail")
}

/// A machine's life beside a model's.
#[derive(Default)]
struct History {
    kv: KvStateMachine,
    model: Model,
    images: Vec<(KvImage, Model)>,
}

impl History {
    fn run(mut self, choices: &mut Choices<'_>) {
        while !choices.are_spent() {
            self.step(choices);
        }
        self.compare();
        self.alter(choices);
    }

    fn step(&mut self, choices: &mut Choices<'_>) {
        match choices.below(8) {
            0 => self.images.push((self.kv.image(), self.model.clone())),
            1 if !self.images.is_empty() => {
                self.images.swap_remove(choices.below(self.images.len()));
            }
            2 => {
                let restored = state(&self.kv);
                ready(self.kv.set_state(&restored)).expect("a state that was just written");
            }
            3 => self.remove(choices),
            4 => self.compare_and_set(choices),
            5 => self.read(choices),
            _ => self.put(choices),
        }
        // Every image holds a model: not more of them than an input should take memory.
        self.images.truncate(4);
    }

    /// Keys one after the other from anywhere, so that a few bytes of input fill many leaves.
    fn keys(choices: &mut Choices<'_>) -> Vec<Bytes> {
        let (from, count) = (choices.below(1 << 16), choices.below(64));
        let by = choices.one_of(&[1, 3, 1009]);
        (0..count).map(|nth| Bytes::from(format!("{:x}", (from + nth * by) % 4096))).collect()
    }

    fn put(&mut self, choices: &mut Choices<'_>) {
        let value = Bytes::copy_from_slice(choices.bytes(8));
        let keys = Self::keys(choices);
        self.model.extend(keys.iter().map(|key| (key.to_vec(), value.to_vec())));
        let ops = keys.into_iter().map(|key| KvOp::Put { key, value: value.clone() }).collect();
        ready(self.kv.apply(KvCommand::Batch(ops))).expect("nothing is too long");
    }

    fn remove(&mut self, choices: &mut Choices<'_>) {
        let keys = Self::keys(choices);
        keys.iter().for_each(|key| _ = self.model.remove(&key[..]));
        let ops = keys.into_iter().map(|key| KvOp::Delete { key }).collect();
        ready(self.kv.apply(KvCommand::Batch(ops))).expect("nothing is too long");
    }

    fn compare_and_set(&mut self, choices: &mut Choices<'_>) {
        for key in Self::keys(choices) {
            let expected = self.model.get(&key[..]).map(|value| Bytes::copy_from_slice(value));
            let new = Some(Bytes::from_static(b"swapped")).filter(|_| choices.one_in(2));
            match &new {
                Some(value) => _ = self.model.insert(key.to_vec(), value.to_vec()),
                None => _ = self.model.remove(&key[..]),
            }
            ready(self.kv.apply(KvCommand::CompareAndSet { key, expected, new })).expect("nothing is too long");
        }
    }

    fn read(&self, choices: &mut Choices<'_>) {
        let (from, to) = (choices.bytes(4), choices.bytes(4));
        let found = self.kv.range(from..to);
        let expected = self.model.iter().filter(|(key, _)| (from..to).contains(&&key[..]));
        assert!(found.eq(expected.map(|(key, value)| (&key[..], &value[..]))), "from {from:?} to {to:?}");
        assert_eq!(self.kv.get_ref(from), self.model.get(from).map(|value| &value[..]));
    }

    fn compare(&self) {
        let of = |model: &Model| model.clone().into_iter().collect::<Vec<_>>();
        let is = |(key, value): (&[u8], &[u8])| (key.to_vec(), value.to_vec());
        assert_eq!(self.kv.iter().map(is).collect::<Vec<_>>(), of(&self.model));
        for (image, model) in &self.images {
            assert_eq!(image.iter().map(is).collect::<Vec<_>>(), of(model), "an image does not show its moment");
        }
    }

    /// The state, with a byte of it altered, cut, or padded.
    fn alter(&self, choices: &mut Choices<'_>) {
        let mut bytes = state(&self.kv);
        check_states(&bytes);
        bytes.truncate(bytes.len() - 1);
        check_states(&bytes);
        let at = choices.below(bytes.len());
        bytes[at] ^= 1 << choices.below(8);
        check_states(&bytes);
    }
}

/// Inputs to begin with.
pub(super) fn seeds() -> Vec<(String, Vec<u8>)> {
    let string = || Bytes::from_static(b"some");
    let commands = [
        KvCommand::Set { key: string(), value: string() },
        KvCommand::Batch(vec![KvOp::Put { key: string(), value: string() }, KvOp::Delete { key: string() }]),
        KvCommand::CompareAndSet { key: string(), expected: None, new: Some(string()) },
        KvCommand::Scan { start: string(), end: Some(string()), limit: 300 },
    ];
    let command = |(nth, command)| (format!("command-{nth}"), [&[0], &KvStateMachine::encode(command)[..]].concat());
    let mut seeds: Vec<_> = commands.iter().enumerate().map(command).collect();
    let mut kv = KvStateMachine::new();
    for command in commands {
        ready(kv.apply(command)).expect("nothing is too long");
    }
    seeds.push(("state-kv".into(), [&[1], &state(&kv)[..]].concat()));
    seeds.push(("state-counter".into(), [&[1], &state(&CounterStateMachine::new(-3))[..]].concat()));
    seeds.push(("state-headed".into(), [&[2, 0, 1, 0, 2][..], b"\x01\x01kv"].concat()));
    let lived = |nth: u8| (0..200u8).map(move |at| at.wrapping_mul(37 + 2 * nth) ^ (at >> 3) ^ nth);
    seeds.extend((0..4).map(|nth| (format!("lived-{nth}"), std::iter::once(3).chain(lived(nth)).collect())));
    seeds
}
