//! The state machines as their users see them: commands, refusals, images, restoring, and the encodings of commands and
//! states, which must not change.

mod common;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::ops::Bound;
use std::thread;

use bytes::{Bytes, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;
use ringwal::machine::{
    CommandError, CounterCommand, CounterError, CounterStateMachine, KvCommand, KvError, KvOp, KvResponse,
    KvStateMachine, StateError,
};
use ringwal::{StateImage, StateMachine};

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

fn put_op(key: &'static str, value: &'static str) -> KvOp {
    KvOp::Put { key: key.into(), value: value.into() }
}

fn delete_op(key: &'static str) -> KvOp {
    KvOp::Delete { key: key.into() }
}

fn compare_and_set(key: &'static str, expected: Option<&'static str>, new: Option<&'static str>) -> KvCommand {
    KvCommand::CompareAndSet { key: key.into(), expected: expected.map(Bytes::from), new: new.map(Bytes::from) }
}

fn scan(start: &'static str, end: Option<&'static str>, limit: u64) -> KvCommand {
    KvCommand::Scan { start: start.into(), end: end.map(Bytes::from), limit }
}

fn apply<M: StateMachine>(machine: &mut M, command: M::Command) -> Result<M::Response, M::Error> {
    block_on(machine.apply(command))
}

fn state<M: StateMachine>(machine: &M) -> Vec<u8> {
    block_on(machine.get_state()).unwrap()
}

/// A machine with these keys and values.
fn filled(entries: &[(&'static str, &'static str)]) -> KvStateMachine {
    let mut kv = KvStateMachine::new();
    entries.iter().for_each(|(key, value)| _ = apply(&mut kv, set(key, value)).unwrap());
    kv
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
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
fn a_counter_that_would_overflow_stays_as_it_was_on_every_machine() {
    let mut counter = CounterStateMachine::new(i64::MAX - 1);
    assert_eq!(apply(&mut counter, CounterCommand::Increment(1)).unwrap(), i64::MAX);
    let mut restored = CounterStateMachine::default();
    block_on(restored.set_state(&state(&counter))).unwrap();
    for refused in [CounterCommand::Increment(1), CounterCommand::Decrement(-1), CounterCommand::Decrement(i64::MIN)] {
        for machine in [&mut counter, &mut restored] {
            let refusal = apply(machine, refused);
            assert!(matches!(refusal, Err(CounterError::Overflow { count: i64::MAX, command }) if command == refused));
            assert_eq!(machine.count(), i64::MAX);
        }
    }
    let commands = vec![CounterCommand::Increment(1), CounterCommand::Increment(i64::MIN), CounterCommand::Get];
    let results = block_on(counter.apply_batch(commands));
    assert!(matches!(results[..], [Err(CounterError::Overflow { .. }), Ok(-1), Ok(-1)]), "{results:?}");
}

#[test]
fn the_initial_count_is_part_of_the_state() {
    let counter = CounterStateMachine::new(-7);
    let mut restored = CounterStateMachine::new(1000);
    block_on(restored.set_state(&state(&counter))).unwrap();
    assert_eq!(restored, counter);
    assert_eq!(counter.image().count(), -7);
}

#[test]
fn a_key_is_set_only_if_it_is_as_expected() {
    let mut kv = KvStateMachine::new();
    let differs = |value: Option<&'static str>| KvResponse::Differs(value.map(Bytes::from));
    assert_eq!(apply(&mut kv, compare_and_set("a", Some(""), Some("1"))).unwrap(), differs(None));
    assert_eq!(apply(&mut kv, compare_and_set("a", None, Some("1"))).unwrap(), KvResponse::Swapped);
    assert_eq!(apply(&mut kv, compare_and_set("a", None, Some("2"))).unwrap(), differs(Some("1")));
    assert_eq!(apply(&mut kv, compare_and_set("a", Some("1"), Some("2"))).unwrap(), KvResponse::Swapped);
    assert_eq!(apply(&mut kv, compare_and_set("a", Some("1"), None)).unwrap(), differs(Some("2")));
    assert_eq!(apply(&mut kv, compare_and_set("a", Some("2"), None)).unwrap(), KvResponse::Swapped);
    assert_eq!(apply(&mut kv, compare_and_set("a", None, None)).unwrap(), KvResponse::Swapped);
    assert!(kv.is_empty());
}

#[test]
fn a_scan_gives_what_lies_in_its_range_up_to_its_limit() {
    let mut kv = filled(&[("a", "1"), ("b", "2"), ("c", "3")]);
    let mut keys = |start, end, limit| match apply(&mut kv, scan(start, end, limit)).unwrap() {
        KvResponse::Entries(entries) => entries.into_iter().map(|(key, _)| key[0] as char).collect::<String>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(keys("", None, u64::MAX), "abc");
    assert_eq!(keys("b", Some("c"), 9), "b");
    assert_eq!(keys("aa", None, 1), "b");
    assert_eq!(keys("", Some("b"), 0), "");
    assert_eq!(keys("c", Some("a"), 9), "", "a range that ends before it begins");
}

#[test]
fn a_command_with_something_too_long_is_refused_and_nothing_of_it_is_done() {
    let mut kv = filled(&[("a", "1")]);
    let long = Bytes::from(vec![7; KvStateMachine::KEY_BYTES_MAX + 1]);
    let put = KvOp::Put { key: long.clone(), value: "".into() };
    let refused = [
        KvCommand::Set { key: long.clone(), value: "".into() },
        KvCommand::Batch(vec![delete_op("a"), put]),
        KvCommand::CompareAndSet { key: long.clone(), expected: None, new: Some("".into()) },
    ];
    for command in refused {
        // It may have come into a log all the same: what cannot be decoded would bar that log.
        assert_eq!(KvStateMachine::decode(&KvStateMachine::encode(&command)).unwrap(), command);
        assert!(matches!(
            apply(&mut kv, command),
            Err(KvError::TooLarge { what: "key", bytes: 65_536, limit: 65_535 })
        ));
        assert_eq!((kv.len(), kv.get(b"a")), (1, Some("1".into())));
    }
    // What only reads or removes finds no such key.
    let found = apply(&mut kv, KvCommand::Get { key: long.clone() }).unwrap();
    assert_eq!(found, KvResponse::Value(None));
    assert_eq!(
        apply(&mut kv, KvCommand::Delete { key: long.clone() }).unwrap(),
        KvResponse::Deleted { existed: false }
    );
    // One byte less is fine.
    apply(&mut kv, KvCommand::Set { key: long.slice(1..), value: "".into() }).unwrap();
    assert!(kv.contains_key(&long[1..]));
}

#[test]
fn an_image_shows_its_moment_whatever_comes_after() {
    let mut kv = filled(&[("a", "1")]);
    let image = kv.image();
    let nested = image.clone();
    apply(&mut kv, KvCommand::Batch(vec![put_op("b", "2"), delete_op("a")])).unwrap();
    let later = kv.image();
    apply(&mut kv, set("b", "3")).unwrap();
    drop(image);
    assert_eq!(nested.iter().collect::<Vec<_>>(), [(&b"a"[..], &b"1"[..])]);
    assert_eq!((nested.len(), nested.bytes(), nested.get(b"a")), (1, 2, Some("1".into())));
    assert_eq!(later.range("a".."c").collect::<Vec<_>>(), [(&b"b"[..], &b"2"[..])]);
    assert_eq!(kv.iter().collect::<Vec<_>>(), [(&b"b"[..], &b"3"[..])]);
}

#[test]
fn an_image_is_written_by_another_thread_while_the_machine_goes_on() {
    let mut kv = KvStateMachine::new();
    let key = |number: u32| Bytes::from(format!("key {number:05}"));
    let put = |number: u32, value: u32| KvOp::Put { key: key(number), value: value.to_string().into() };
    for round in 0..5 {
        apply(&mut kv, KvCommand::Batch((0..3000).map(|number| put(number, round)).collect())).unwrap();
        let expected = state(&kv);
        let image = kv.image();
        let writer = thread::spawn(move || {
            let mut written = Vec::new();
            image.write_to(&mut written).unwrap();
            written
        });
        for number in 0..3000 {
            let command = if number % 3 == 0 {
                KvCommand::Delete { key: key(number) }
            } else {
                KvCommand::Batch(vec![put(number, 9)])
            };
            apply(&mut kv, command).unwrap();
        }
        assert!(writer.join().unwrap() == expected, "the image of round {round} shows what came later");
        assert_eq!(kv.len(), 2000);
    }
}

#[test]
fn a_value_does_not_pin_the_frame_that_its_command_came_in() {
    let mut frame = BytesMut::from(&KvStateMachine::encode(&set("key", "value"))[..]);
    frame.resize(1 << 20, 0);
    let frame = frame.freeze();
    let mut kv = KvStateMachine::new();
    let commands: Vec<KvCommand> = [
        set("key", "value"),
        KvCommand::Batch(vec![put_op("other", "value")]),
        compare_and_set("third", None, Some("value")),
    ]
    .iter()
    .map(|command| {
        // As the log gives it: a slice of a larger piece.
        let encoded = KvStateMachine::encode(command);
        let piece = Bytes::from([&encoded[..], &frame].concat());
        let slice = piece.slice(..encoded.len());
        let decoded = KvStateMachine::decode(&slice).unwrap();
        drop(slice);
        apply(&mut kv, decoded).unwrap();
        assert!(piece.is_unique(), "{command:?} keeps its frame");
        command.clone()
    })
    .collect();
    assert_eq!(kv.len(), commands.len() as u64);
}

#[test]
fn equal_contents_are_equal_states_whatever_led_to_them() {
    let ascending = filled(&[("a", "1"), ("b", "2"), ("c", "")]);
    let mut other = filled(&[("x", "9"), ("c", "7"), ("b", "2"), ("c", ""), ("a", "1")]);
    apply(&mut other, delete("x")).unwrap();
    assert_eq!(state(&ascending), state(&other));
    let mut restored = filled(&[("gone", "gone")]);
    block_on(restored.set_state(&state(&other))).unwrap();
    assert_eq!(state(&restored), state(&ascending));
    assert_eq!((restored.len(), restored.bytes()), (3, 5));
}

/// The source must be refused, and the machine be as it was; gives the reason.
fn refused(source: &mut (dyn Read + Send)) -> StateError {
    let mut kv = filled(&[("stays", "as it was")]);
    let before = state(&kv);
    let KvError::State(error) = block_on(kv.restore(source)).unwrap_err() else { panic!("no error of a state") };
    assert_eq!(state(&kv), before);
    error
}

/// A state with these bytes after the head.
fn kv_state(keys: u64, bytes: u64, records: &[u8]) -> Vec<u8> {
    [&b"RWKV\x01"[..], &keys.to_le_bytes(), &bytes.to_le_bytes(), records].concat()
}

#[test]
fn a_state_that_is_cut_or_padded_anywhere_is_refused() {
    let whole = state(&filled(&[("a", "1"), ("b", ""), ("c", "a value")]));
    for length in 0..whole.len() {
        let error = refused(&mut &whole[..length]);
        assert!(matches!(error, StateError::Damaged { .. } | StateError::Foreign { .. }), "{length} bytes: {error}");
    }
    let padded = refused(&mut &[&whole[..], &[0]].concat()[..]);
    assert!(matches!(padded, StateError::Damaged { offset, .. } if offset == whole.len() as u64 + 1), "{padded}");
}

#[test]
fn a_state_that_is_not_as_it_must_be_is_refused() {
    let damaged = [
        ("keys that descend", kv_state(2, 2, b"\x01\x00b\x01\x00a")),
        ("a key twice", kv_state(2, 2, b"\x01\x00a\x01\x00a")),
        ("less than it says", kv_state(1, 3, b"\x01\x01ab")),
        ("more than it says", kv_state(1, 1, b"\x01\x01ab")),
        ("fewer keys than it holds", kv_state(1, 1, b"\x01\x00a\x01\x00b")),
        ("more keys than it holds", kv_state(u64::MAX, 1, b"\x01\x00a")),
        ("a length not written in the shortest way", kv_state(1, 1, b"\x81\x00\x00a")),
        ("lengths that overflow", kv_state(1, u64::MAX, &[&[0xff; 9][..], &[1], &[0xff; 9], &[1]].concat())),
        ("a length that is no number", kv_state(1, 9, &[0xff; 30])),
        ("a value that no command could set", {
            // The value itself is not even looked for.
            kv_state(1, 1 + (256 << 20) + 1, b"\x01\x81\x80\x80\x80\x01a")
        }),
        ("a key that no command could set", kv_state(1, 65_536, &[&b"\x80\x80\x04\x00"[..], &[7; 65_536]].concat())),
    ];
    for (what, state) in damaged {
        let error = refused(&mut &state[..]);
        assert!(matches!(error, StateError::Damaged { .. }), "{what}: {error}");
        let is_too_long = error.to_string().contains("longer than any");
        assert_eq!(is_too_long, what.contains("no command could set"), "{what}: {error}");
    }
    let newer = refused(&mut &b"RWKV\x02and so on, twenty bytes"[..]);
    assert!(matches!(newer, StateError::Version { found: 2, known: 1 }), "{newer}");
    let other = refused(&mut &state(&CounterStateMachine::new(1))[..]);
    assert!(matches!(other, StateError::Foreign { expected: "kv/1" }), "{other}");
}

#[test]
fn a_source_that_fails_in_the_middle_leaves_the_machine_as_it_was() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("the device is gone"))
        }
    }
    let whole = state(&filled(&[("a", "1"), ("b", "2")]));
    for length in 0..whole.len() {
        let error = refused(&mut (&whole[..length]).chain(Failing));
        assert!(matches!(&error, StateError::Io(error) if error.to_string() == "the device is gone"), "{error}");
    }
}

#[test]
fn a_source_that_gives_a_byte_at_a_time_is_restored_whole() {
    struct Drops(Vec<u8>);
    impl Read for Drops {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let Some(byte) = self.0.pop() else { return Ok(0) };
            buffer[0] = byte;
            Ok(1)
        }
    }
    let long = Bytes::from(vec![3; 200_000]);
    let mut kv = filled(&[("a", "1"), ("b", "2")]);
    apply(&mut kv, KvCommand::Set { key: "long".into(), value: long.clone() }).unwrap();
    let mut restored = KvStateMachine::new();
    block_on(restored.restore(&mut Drops(state(&kv).into_iter().rev().collect()))).unwrap();
    assert_eq!(state(&restored), state(&kv));
    assert_eq!(restored.get(b"long"), Some(long));
}

#[test]
fn a_counters_state_that_is_not_one_is_refused() {
    let whole = state(&CounterStateMachine::new(5));
    let mut counter = CounterStateMachine::new(77);
    let padded = [&whole[..], &[0]].concat();
    let cuts = (0..whole.len()).map(|length| &whole[..length]);
    for damaged in cuts.chain([&padded[..], b"RWCN\x02\0\0\0\0\0\0\0\0", b"RWKV\x01\0\0\0\0\0\0\0\0"]) {
        assert!(matches!(block_on(counter.set_state(damaged)), Err(CounterError::State(_))), "{damaged:?}");
        assert_eq!(counter.count(), 77);
    }
}

#[test]
fn commands_are_encoded_as_they_ever_were() {
    let golden = [
        (set("k", "v"), "0101016b76"),
        (set("", ""), "010100"),
        (delete("key"), "01026b6579"),
        (get("key"), "01036b6579"),
        (KvCommand::Batch(vec![]), "010400"),
        (KvCommand::Batch(vec![put_op("k", "v"), delete_op("d")]), "01040200016b0176010164"),
        (compare_and_set("k", None, None), "0105016b0000"),
        (compare_and_set("k", Some(""), Some("new")), "0105016b01046e6577"),
        (scan("a", None, 300), "0106016100ac02"),
        (scan("", Some("b"), 1), "010600026201"),
    ];
    for (command, bytes) in golden {
        assert_eq!(hex(&KvStateMachine::encode(&command)), bytes, "{command:?}");
    }
    let counter = [
        (CounterCommand::Increment(1), "010102"),
        (CounterCommand::Decrement(-64), "01027f"),
        (CounterCommand::Set(i64::MIN), "0103ffffffffffffffffff01"),
        (CounterCommand::Get, "0104"),
    ];
    for (command, bytes) in counter {
        assert_eq!(hex(&CounterStateMachine::encode(&command)), bytes, "{command:?}");
    }
}

#[test]
fn states_are_encoded_as_they_ever_were() {
    let kv = filled(&[("b", ""), ("a", "one")]);
    assert_eq!(hex(&state(&kv)), "52574b560102000000000000000500000000000000010361".to_owned() + "6f6e65" + "010062");
    assert_eq!(hex(&state(&CounterStateMachine::new(-2))), "5257434e01feffffffffffffff");
}

#[test]
fn commands_of_newer_versions_and_unknown_ones_say_so() {
    let kv = |bytes: &'static [u8]| match KvStateMachine::decode(&Bytes::from_static(bytes)) {
        Err(KvError::Command(error)) => error,
        other => panic!("{other:?}"),
    };
    assert_eq!(kv(b"\x02\x01\x01kv"), CommandError::Version { found: 2, known: 1 });
    assert_eq!(kv(b"\x00"), CommandError::Version { found: 0, known: 1 });
    assert_eq!(kv(b"\x01\x63"), CommandError::Unknown { tag: 0x63 });
    assert_eq!(kv(b"\x01\x04\x01\x02\x00"), CommandError::Unknown { tag: 2 });
    for malformed in [
        &b""[..],
        b"\x01",
        b"\x01\x01",
        b"\x01\x01\x05kv",
        b"\x01\x01\x80\x00",
        b"\x01\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02",
        b"\x01\x04\x02\x01\x00",
        b"\x01\x04\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x01\x04\x01\x01\x00!",
        b"\x01\x05\x01k\x00",
        b"\x01\x06\x00\x00",
    ] {
        assert!(matches!(kv(malformed), CommandError::Malformed { .. }), "{malformed:?}");
    }
    let counter =
        |bytes: &'static [u8]| CounterStateMachine::decode(&Bytes::from_static(bytes)).unwrap_err().to_string();
    assert!(counter(b"\x09\x01").contains("a newer one wrote it"));
    assert!(counter(b"\x01\x09").contains("no command has the tag 9"));
    assert!(counter(b"\x01\x04\x00").contains("goes on after its end"));
}

fn string() -> impl Strategy<Value = Bytes> {
    prop_oneof![8 => vec(0..3u8, 0..4), 1 => vec(any::<u8>(), 0..20), 1 => vec(any::<u8>(), 120..300)]
        .prop_map(Bytes::from)
}

fn optional() -> impl Strategy<Value = Option<Bytes>> {
    proptest::option::of(string())
}

fn op() -> impl Strategy<Value = KvOp> {
    prop_oneof![
        (string(), string()).prop_map(|(key, value)| KvOp::Put { key, value }),
        string().prop_map(|key| KvOp::Delete { key }),
    ]
}

fn command() -> impl Strategy<Value = KvCommand> {
    prop_oneof![
        4 => (string(), string()).prop_map(|(key, value)| KvCommand::Set { key, value }),
        2 => string().prop_map(|key| KvCommand::Delete { key }),
        2 => string().prop_map(|key| KvCommand::Get { key }),
        1 => vec(op(), 0..6).prop_map(KvCommand::Batch),
        2 => (string(), optional(), optional())
            .prop_map(|(key, expected, new)| KvCommand::CompareAndSet { key, expected, new }),
        1 => (string(), optional(), prop_oneof![0..4u64, any::<u64>()])
            .prop_map(|(start, end, limit)| KvCommand::Scan { start, end, limit }),
    ]
}

/// What a machine should do, on a plain map.
#[derive(Clone, Default)]
struct Model(BTreeMap<Bytes, Bytes>);

impl Model {
    fn apply(&mut self, command: &KvCommand) -> KvResponse {
        match command.clone() {
            KvCommand::Set { key, value } => {
                self.0.insert(key, value);
                KvResponse::Done
            }
            KvCommand::Delete { key } => KvResponse::Deleted { existed: self.0.remove(&key).is_some() },
            KvCommand::Get { key } => KvResponse::Value(self.0.get(&key).cloned()),
            KvCommand::Batch(ops) => {
                for op in ops {
                    match op {
                        KvOp::Put { key, value } => _ = self.0.insert(key, value),
                        KvOp::Delete { key } => _ = self.0.remove(&key),
                    }
                }
                KvResponse::Done
            }
            KvCommand::CompareAndSet { key, expected, new } if self.0.get(&key) == expected.as_ref() => {
                self.0.remove(&key);
                self.0.extend(new.map(|value| (key, value)));
                KvResponse::Swapped
            }
            KvCommand::CompareAndSet { key, .. } => KvResponse::Differs(self.0.get(&key).cloned()),
            KvCommand::Scan { start, end, limit } => {
                let from = self.0.range((Bound::Included(start), Bound::Unbounded));
                let within = from.filter(|(key, _)| end.as_ref().is_none_or(|end| key < &end));
                let some = within.take(limit.min(1000) as usize);
                KvResponse::Entries(some.map(|(key, value)| (key.clone(), value.clone())).collect())
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn the_machine_does_what_a_plain_map_does_and_images_and_batches_change_nothing(
        steps in vec((command(), 0..8u8), 1..80),
    ) {
        let (mut kv, mut batched, mut model) = (KvStateMachine::new(), KvStateMachine::new(), Model::default());
        let (mut expected, mut images) = (Vec::new(), Vec::new());
        for (command, choice) in &steps {
            match choice {
                0 => images.push((kv.image(), model.clone())),
                1 => images.truncate(images.len() / 2),
                2 => _ = images.drain(..images.len() / 2),
                _ => (),
            }
            expected.push(model.apply(command));
            prop_assert_eq!(apply(&mut kv, command.clone()).unwrap(), expected.last().unwrap().clone());
        }
        let commands = steps.into_iter().map(|(command, _)| command).collect();
        let results: Vec<KvResponse> = block_on(batched.apply_batch(commands)).into_iter().map(Result::unwrap).collect();
        prop_assert_eq!(results, expected);
        prop_assert_eq!(state(&batched), state(&kv));
        for (image, model) in images {
            prop_assert!(image.iter().eq(model.0.iter().map(|(key, value)| (&key[..], &value[..]))));
        }
    }

    #[test]
    fn every_command_comes_back_as_it_was(command in command()) {
        let encoded = KvStateMachine::encode(&command);
        prop_assert_eq!(KvStateMachine::decode(&encoded).unwrap(), command);
    }

    #[test]
    fn every_count_comes_back_as_it_was(count in prop_oneof![any::<i64>(), -300..300i64]) {
        for command in [CounterCommand::Increment(count), CounterCommand::Decrement(count), CounterCommand::Set(count)] {
            prop_assert_eq!(CounterStateMachine::decode(&CounterStateMachine::encode(&command)).unwrap(), command);
        }
    }

    #[test]
    fn any_bytes_are_a_command_with_that_one_encoding_or_an_error(
        bytes in prop_oneof![
            vec(any::<u8>(), 0..40),
            (0..8u8, vec(0..6u8, 0..40)).prop_map(|(tag, rest)| [&[1, tag][..], &rest].concat()),
        ],
    ) {
        let bytes = Bytes::from(bytes);
        if let Ok(command) = KvStateMachine::decode(&bytes) {
            prop_assert_eq!(KvStateMachine::encode(&command), bytes.clone());
        }
        if let Ok(command) = CounterStateMachine::decode(&bytes) {
            prop_assert_eq!(CounterStateMachine::encode(&command), bytes);
        }
    }

    #[test]
    fn a_state_with_anything_altered_is_refused_or_another_state(
        entries in proptest::collection::btree_map(string(), string(), 0..40),
        at in any::<proptest::sample::Index>(),
        to in any::<u8>(),
    ) {
        let mut kv = KvStateMachine::new();
        let ops = entries.into_iter().map(|(key, value)| KvOp::Put { key, value }).collect();
        apply(&mut kv, KvCommand::Batch(ops)).unwrap();
        let mut bytes = state(&kv);
        let at = at.index(bytes.len());
        bytes[at] = to;
        let before = state(&kv);
        match block_on(kv.set_state(&bytes)) {
            Ok(()) => prop_assert_eq!(state(&kv), bytes),
            Err(_) => prop_assert_eq!(state(&kv), before),
        }
    }
}
