//! The state machines as their users see them: commands, refusals, images, restoring, encodings.

mod common;

use bytes::Bytes;
use ringwal::StateMachine;
use ringwal::machine::{
    CounterCommand, CounterError, CounterStateMachine, KvCommand, KvOp, KvResponse, KvStateMachine,
};

use common::block_on;

fn set(key: &'static str, value: &'static str) -> KvCommand {
    KvCommand::Set { key: key.into(), value: value.into() }
}

fn get(key: &'static str) -> KvCommand {
    KvCommand::Get { key: key.into() }
}

fn delete(key: &'static str) -> KvCommand {
    KvCommand::Delete { key: key.into() }
}

fn apply<M: StateMachine>(machine: &mut M, command: M::Command) -> Result<M::Response, M::Error> {
    block_on(machine.apply(command))
}

#[test]
fn a_key_is_set_and_got_and_deleted_and_gone() {
    let mut kv = KvStateMachine::new();
    assert_eq!(apply(&mut kv, set("key1", "value1")).unwrap(), KvResponse::Done);
    assert_eq!(apply(&mut kv, get("key1")).unwrap(), KvResponse::Value(Some("value1".into())));
    assert_eq!(apply(&mut kv, delete("key1")).unwrap(), KvResponse::Deleted { existed: true });
    assert_eq!(apply(&mut kv, get("key1")).unwrap(), KvResponse::Value(None));
    assert_eq!(apply(&mut kv, delete("key1")).unwrap(), KvResponse::Deleted { existed: false });
}

#[test]
fn the_counter_counts_up_and_down_from_where_it_began() {
    let mut counter = CounterStateMachine::new(10);
    assert_eq!(apply(&mut counter, CounterCommand::Increment(5)).unwrap(), 15);
    assert_eq!(apply(&mut counter, CounterCommand::Decrement(3)).unwrap(), 12);
    assert_eq!(apply(&mut counter, CounterCommand::Set(100)).unwrap(), 100);
    assert_eq!(apply(&mut counter, CounterCommand::Get).unwrap(), 100);
}

#[test]
fn a_counter_that_would_overflow_stays_as_it_was() {
    let mut counter = CounterStateMachine::new(i64::MAX - 1);
    assert_eq!(apply(&mut counter, CounterCommand::Increment(1)).unwrap(), i64::MAX);
    for refused in [CounterCommand::Increment(1), CounterCommand::Decrement(-1), CounterCommand::Decrement(i64::MIN)] {
        let refusal = apply(&mut counter, refused);
        assert!(matches!(refusal, Err(CounterError::Overflow { count: i64::MAX, command }) if command == refused));
        assert_eq!(counter.count(), i64::MAX);
    }
    assert_eq!(apply(&mut counter, CounterCommand::Increment(i64::MIN)).unwrap(), -1);
}

#[test]
fn an_image_shows_its_moment_whatever_comes_after() {
    let mut kv = KvStateMachine::new();
    apply(&mut kv, set("a", "1")).unwrap();
    let image = kv.image();
    let ops = vec![KvOp::Put { key: "b".into(), value: "2".into() }, KvOp::Delete { key: "a".into() }];
    apply(&mut kv, KvCommand::Batch(ops)).unwrap();
    assert_eq!(image.iter().collect::<Vec<_>>(), [(&b"a"[..], &b"1"[..])]);
    assert_eq!(kv.iter().collect::<Vec<_>>(), [(&b"b"[..], &b"2"[..])]);
}

#[test]
fn a_state_that_is_set_is_the_state_that_was_got() {
    let mut kv = KvStateMachine::new();
    for (key, value) in [("b", "2"), ("a", "1"), ("c", "")] {
        apply(&mut kv, set(key, value)).unwrap();
    }
    let state = block_on(kv.get_state()).unwrap();
    let mut restored = KvStateMachine::new();
    block_on(restored.set_state(&state)).unwrap();
    assert_eq!(block_on(restored.get_state()).unwrap(), state);
    let bytes = KvStateMachine::encode(&set("a", "b"));
    assert_eq!(KvStateMachine::decode(&Bytes::from(bytes.to_vec())).unwrap(), set("a", "b"));
}
