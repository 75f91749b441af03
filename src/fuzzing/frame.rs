//! Target: frames from any bytes. A head is verified before it is believed, and what verifies is what was written.

use std::sync::Arc;

use bytes::Bytes;

use super::choices::Choices;
use super::forge;
use crate::format::frame::{
    self, Epoch, FoundOperation, FrameKind, FrameSpec, HEAD_BYTES, Head, HeadRead, OPERATION_HEADER_BYTES, Operation,
    OperationHeader, WholeFrame,
};
use crate::format::state::State;
use crate::format::{INDEX_MAX, Salted};

const BLOCKS: [u32; 3] = [512, 1024, 4096];

/// Any bytes as they are; any bytes made to verify; or a frame of any parts, read back, altered, and read again.
pub fn decode_frame(input: &[u8]) {
    let mut choices = Choices::new(input);
    match choices.below(3) {
        0 => {
            let bytes = choices.rest();
            check(bytes, Head::salt_in(bytes).unwrap_or(0));
        }
        1 => {
            let mut bytes = choices.rest().to_vec();
            let salt = Head::salt_in(&bytes).unwrap_or(0);
            forge::frame(&mut bytes, salt);
            check(&bytes, salt);
        }
        _ => build_and_alter(&mut choices),
    }
}

/// Reads whatever stands there. A frame that is whole must come out the same when it is written once more.
fn check(bytes: &[u8], salt: u64) -> Option<WholeFrame> {
    let HeadRead::Head(head) = Head::decode(bytes, salt) else { return None };
    // Also where its lengths were never looked at.
    let _ = frame::verify(&head, bytes);
    let block = BLOCKS.into_iter().find(|&block| head.lengths_fit(block, bytes.len() as u64))?;
    let bytes = &bytes[..head.frame_bytes as usize];
    let whole = frame::verify(&head, bytes).ok()?;
    assert!(bytes.len().is_multiple_of(block as usize), "a whole frame of {} bytes", bytes.len());
    let again = encode_again(&whole, bytes);
    assert!(again == bytes, "a whole frame differs when it is written once more:\n{whole:?}");
    Some(whole)
}

fn encode_again(whole: &WholeFrame, bytes: &[u8]) -> Vec<u8> {
    let head = whole.head;
    let operations: Vec<Operation> = whole.operations.iter().map(|found| original(found, bytes, &head)).collect();
    let spec = FrameSpec {
        kind: head.kind,
        number: head.number,
        epoch: head.epoch,
        chain: head.chain,
        watermark: head.watermark,
        salt: head.salt,
        offset: head.offset,
        first_index: head.first_index,
        base: whole.base.as_ref(),
        operations: &operations,
    };
    let mut again = vec![0xA5; bytes.len()];
    assert_eq!(frame::encode(&spec, &mut again), head.checksum, "the checksum of the head written once more");
    again
}

/// The operation that was found, with its payload; an entry must be provable alone.
fn original(found: &FoundOperation, bytes: &[u8], head: &Head) -> Operation {
    match found {
        FoundOperation::Other(operation) => operation.clone(),
        FoundOperation::Entry { header, offset } => {
            let whole = &bytes[*offset as usize..][..header.bytes() as usize];
            assert_eq!(OperationHeader::decode(whole), Some(*header));
            assert!(
                header.is_entry() && header.verifies(whole, Salted::new(head.salt), head.offset.wrapping_add(*offset)),
                "an entry is proved alone"
            );
            let payload = Bytes::copy_from_slice(&whole[OPERATION_HEADER_BYTES..]);
            Operation::Entry { index: header.index, term: header.term, timestamp: header.timestamp, payload }
        }
    }
}

fn build_and_alter(choices: &mut Choices<'_>) {
    let salt = choices.number();
    let mut bytes = build(choices, salt);
    for nth in 0.. {
        if choices.are_spent() {
            break;
        }
        let at = choices.below(1 << 16) % bytes.len();
        let kind = choices.below(4);
        match kind {
            0 => bytes[at] ^= choices.byte().max(1),
            1 => alter_field(choices, &mut bytes),
            2 => bytes.truncate(at.max(HEAD_BYTES)),
            _ => {
                forge::frame(&mut bytes, salt);
            }
        }
        let whole = check(&bytes, salt);
        assert!(nth > 0 || kind > 0 || whole.is_none(), "byte {at} was altered and the frame is whole");
    }
    forge::frame(&mut bytes, salt);
    check(&bytes, salt);
}

fn alter_field(choices: &mut Choices<'_>, bytes: &mut [u8]) {
    let operations = forge::operations(bytes);
    let (start, field) = match choices.below(3) {
        0 => (0, choices.one_of(&forge::HEAD)),
        1 => (HEAD_BYTES, choices.one_of(&forge::BASE)),
        _ if operations.is_empty() => return,
        _ => (choices.one_of(&operations), choices.one_of(&forge::OPERATION)),
    };
    let is_relative = choices.one_in(2);
    forge::alter(bytes, start, field, choices.number(), is_relative);
}

/// A frame of any parts, which must read back as it was written.
fn build(choices: &mut Choices<'_>, salt: u64) -> Vec<u8> {
    let base = choices.one_in(2).then(|| draw_state(choices));
    let kind = choices.one_of(&[FrameKind::Data, FrameKind::Open, FrameKind::Mark]);
    let count = if kind == FrameKind::Data { 1 + choices.below(5) } else { 0 };
    let operations: Vec<Operation> = (0..count).map(|_| draw_operation(choices)).collect();
    let used: u64 = operations.iter().map(Operation::encoded_bytes).sum();
    let used = HEAD_BYTES as u64 + base.as_ref().map_or(0, State::encoded_bytes) + used;
    let block = u64::from(choices.one_of(&BLOCKS));
    let mut bytes = vec![choices.byte(); used.next_multiple_of(block) as usize];
    let spec = FrameSpec {
        kind,
        number: choices.number(),
        epoch: Epoch { counter: choices.number(), random: choices.u32() },
        chain: choices.u32(),
        watermark: choices.number(),
        salt,
        offset: choices.u32(),
        first_index: Some(choices.number()).filter(|&index| index != u64::MAX),
        base: base.as_ref(),
        operations: &operations,
    };
    frame::encode(&spec, &mut bytes);
    let whole = check(&bytes, salt).expect("a frame that was just written is whole");
    assert_eq!((whole.head.kind, whole.head.number, whole.head.epoch), (spec.kind, spec.number, spec.epoch));
    assert_eq!((whole.head.watermark, whole.head.first_index), (spec.watermark, spec.first_index));
    let found: Vec<Operation> = whole.operations.iter().map(|found| original(found, &bytes, &whole.head)).collect();
    assert_eq!((whole.base, found), (base, operations), "what was written reads back");
    bytes
}

fn draw_operation(choices: &mut Choices<'_>) -> Operation {
    let bytes = |choices: &mut Choices<'_>| Bytes::copy_from_slice(choices.bytes(40));
    match choices.below(5) {
        0 => {
            let (index, term, timestamp) = (choices.number(), choices.number(), choices.number());
            Operation::Entry { index, term, timestamp, payload: bytes(choices) }
        }
        1 => Operation::Truncate { first_removed: choices.number(), last_term: choices.number() },
        2 => Operation::PutMeta { key: bytes(choices), value: bytes(choices) },
        3 => Operation::DeleteMeta { key: bytes(choices) },
        _ => Operation::Compact { index: choices.number(), term: choices.number() },
    }
}

/// A state as a log may be in.
fn draw_state(choices: &mut Choices<'_>) -> State {
    let compacted = choices.one_in(2).then(|| (choices.number().min(INDEX_MAX - 300), choices.number()));
    let count = u64::from(choices.byte());
    let start = compacted.map(|(index, _)| index + 1);
    let from = start.or_else(|| (count > 0).then(|| choices.number().min(INDEX_MAX - 300)));
    let pairs = 0..choices.below(4);
    let hard_state =
        pairs.map(|_| (choices.bytes(9), choices.bytes(20))).map(|(key, value)| (copy(key), copy(value))).collect();
    State {
        compacted,
        first: from.filter(|_| count > 0),
        next: from.map(|from| from + count),
        last_term: choices.number(),
        hard_state: Arc::new(hard_state),
    }
}

fn copy(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

/// Inputs to begin with.
pub(super) fn seeds() -> Vec<(String, Vec<u8>)> {
    let state = State { compacted: Some((4, 2)), first: Some(5), next: Some(9), last_term: 3, ..State::default() };
    let entry = Operation::Entry { index: 9, term: 3, timestamp: 7, payload: Bytes::from_static(b"payload") };
    let truncate = Operation::Truncate { first_removed: 9, last_term: 3 };
    let compact = Operation::Compact { index: 5, term: 2 };
    let put = Operation::PutMeta { key: Bytes::from_static(b"vote"), value: Bytes::from_static(b"7") };
    let delete = Operation::DeleteMeta { key: Bytes::from_static(b"vote") };
    let all = [entry, truncate, compact, put, delete];
    let kinds = [(FrameKind::Data, &all[..]), (FrameKind::Open, &[]), (FrameKind::Mark, &[])];
    let mut seeds: Vec<(String, Vec<u8>)> = Vec::new();
    for ((kind, operations), base) in kinds.into_iter().zip([None, Some(&state), None]) {
        let (number, epoch, salt) = (5, Epoch { counter: 2, random: 6 }, 0x5A17);
        let (chain, watermark, offset, first_index) = (8, 4, 512, Some(9));
        let spec = FrameSpec { kind, number, epoch, chain, watermark, salt, offset, first_index, base, operations };
        let mut bytes = vec![0; 512];
        frame::encode(&spec, &mut bytes);
        for mode in [0, 1] {
            seeds.push((format!("{kind:?}-{mode}").to_lowercase(), [&[mode][..], &bytes].concat()));
        }
    }
    let built = |nth: u8| (format!("built-{nth}"), (0..160u8).map(|at| at.wrapping_mul(37 + 2 * nth) ^ nth).collect());
    seeds.extend((0..6).map(built).map(|(name, bytes): (String, Vec<u8>)| (name, [&[2][..], &bytes].concat())));
    seeds
}
