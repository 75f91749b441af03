//! The key-value machine's commands, and their encoding.
//!
//! ```text
//! | 1: version | tag | fields                                                        (see `codec`)
//!
//!   Set            1   key: string, value: the rest
//!   Delete         2   key: the rest
//!   Get            3   key: the rest
//!   Batch          4   operations: number, then each: 0, key: string, value: string | 1, key: string
//!   CompareAndSet  5   key: string, expected: optional, new: optional
//!   Scan           6   start: string, end: optional, limit: number
//! ```
//!
//! Written by hand because it is shorter than what a serializer would need around it: see the module's documentation.

use bytes::{BufMut, Bytes, BytesMut};

use crate::machine::codec::{Decoder, put_number, put_optional, put_string};
use crate::machine::error::CommandError;

/// The version of the encoding.
const VERSION: u8 = 1;

const SET: u8 = 1;
const DELETE: u8 = 2;
const GET: u8 = 3;
const BATCH: u8 = 4;
const COMPARE_AND_SET: u8 = 5;
const SCAN: u8 = 6;

const PUT_OP: u8 = 0;
const DELETE_OP: u8 = 1;
/// The least that an operation takes: its tag and an empty key.
const OP_BYTES_MIN: usize = 2;

/// What a [`KvStateMachine`](super::KvStateMachine) does.
///
/// Keys and values may be any bytes, none included, up to the limits
/// [`KEY_BYTES_MAX`](super::KvStateMachine::KEY_BYTES_MAX) and
/// [`VALUE_BYTES_MAX`](super::KvStateMachine::VALUE_BYTES_MAX).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "openraft", derive(serde::Serialize, serde::Deserialize))]
pub enum KvCommand {
    /// Gives a key a value. Answered by [`Done`](super::KvResponse::Done).
    Set {
        /// The key.
        key: Bytes,
        /// The value, in place of any that the key has.
        value: Bytes,
    },
    /// Removes a key. Answered by [`Deleted`](super::KvResponse::Deleted).
    Delete {
        /// The key.
        key: Bytes,
    },
    /// Reads a key, at this place of the log. Answered by [`Value`](super::KvResponse::Value).
    Get {
        /// The key.
        key: Bytes,
    },
    /// All of these, in their order, or none. Answered by [`Done`](super::KvResponse::Done).
    Batch(Vec<KvOp>),
    /// Gives a key a value, or removes it, if it is as expected. Answered by [`Swapped`](super::KvResponse::Swapped) or
    /// [`Differs`](super::KvResponse::Differs).
    CompareAndSet {
        /// The key.
        key: Bytes,
        /// The value that the key must have; `None`: it must not be there.
        expected: Option<Bytes>,
        /// The value that it gets; `None`: it is removed.
        new: Option<Bytes>,
    },
    /// Reads a range, at this place of the log. Answered by [`Entries`](super::KvResponse::Entries).
    Scan {
        /// The first key.
        start: Bytes,
        /// Where the range ends, before this key; `None`: with the last key.
        end: Option<Bytes>,
        /// How many entries at most.
        limit: u64,
    },
}

/// One of the operations of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "openraft", derive(serde::Serialize, serde::Deserialize))]
pub enum KvOp {
    /// Gives a key a value.
    Put {
        /// The key.
        key: Bytes,
        /// The value, in place of any that the key has.
        value: Bytes,
    },
    /// Removes a key, if it is there.
    Delete {
        /// The key.
        key: Bytes,
    },
}

/// The bytes of a command.
pub(crate) fn encode(command: &KvCommand) -> Bytes {
    let mut out = BytesMut::with_capacity(bytes_about(command));
    out.put_slice(&[VERSION, tag(command)]);
    match command {
        KvCommand::Set { key, value } => {
            put_string(&mut out, key);
            out.put_slice(value);
        }
        KvCommand::Delete { key } | KvCommand::Get { key } => out.put_slice(key),
        KvCommand::Batch(ops) => {
            put_number(&mut out, ops.len() as u64);
            ops.iter().for_each(|op| put_op(&mut out, op));
        }
        KvCommand::CompareAndSet { key, expected, new } => {
            put_string(&mut out, key);
            put_optional(&mut out, expected.as_ref());
            put_optional(&mut out, new.as_ref());
        }
        KvCommand::Scan { start, end, limit } => {
            put_string(&mut out, start);
            put_optional(&mut out, end.as_ref());
            put_number(&mut out, *limit);
        }
    }
    out.freeze()
}

fn tag(command: &KvCommand) -> u8 {
    match command {
        KvCommand::Set { .. } => SET,
        KvCommand::Delete { .. } => DELETE,
        KvCommand::Get { .. } => GET,
        KvCommand::Batch(_) => BATCH,
        KvCommand::CompareAndSet { .. } => COMPARE_AND_SET,
        KvCommand::Scan { .. } => SCAN,
    }
}

/// Room for a command, at least what it takes unless strings are huge.
fn bytes_about(command: &KvCommand) -> usize {
    let optional = |string: &Option<Bytes>| string.as_ref().map_or(1, |string| string.len() + 5);
    match command {
        KvCommand::Set { key, value } => 7 + key.len() + value.len(),
        KvCommand::Delete { key } | KvCommand::Get { key } => 2 + key.len(),
        KvCommand::Batch(ops) => 7 + ops.iter().map(op_bytes_about).sum::<usize>(),
        KvCommand::CompareAndSet { key, expected, new } => 7 + key.len() + optional(expected) + optional(new),
        KvCommand::Scan { start, end, .. } => 17 + start.len() + optional(end),
    }
}

fn op_bytes_about(op: &KvOp) -> usize {
    match op {
        KvOp::Put { key, value } => 8 + key.len() + value.len(),
        KvOp::Delete { key } => 4 + key.len(),
    }
}

fn put_op(out: &mut BytesMut, op: &KvOp) {
    match op {
        KvOp::Put { key, value } => {
            out.put_u8(PUT_OP);
            put_string(out, key);
            put_string(out, value);
        }
        KvOp::Delete { key } => {
            out.put_u8(DELETE_OP);
            put_string(out, key);
        }
    }
}

/// The command in some bytes; its strings are slices of them.
pub(crate) fn decode(bytes: &Bytes) -> Result<KvCommand, CommandError> {
    let (mut decoder, tag) = Decoder::begin(bytes, VERSION)?;
    let command = match tag {
        SET => return Ok(KvCommand::Set { key: decoder.string()?, value: decoder.rest() }),
        DELETE => return Ok(KvCommand::Delete { key: decoder.rest() }),
        GET => return Ok(KvCommand::Get { key: decoder.rest() }),
        BATCH => KvCommand::Batch(take_ops(&mut decoder)?),
        COMPARE_AND_SET => {
            KvCommand::CompareAndSet { key: decoder.string()?, expected: decoder.optional()?, new: decoder.optional()? }
        }
        SCAN => KvCommand::Scan { start: decoder.string()?, end: decoder.optional()?, limit: decoder.number()? },
        tag => return Err(CommandError::Unknown { tag }),
    };
    decoder.end()?;
    Ok(command)
}

fn take_ops(decoder: &mut Decoder<'_>) -> Result<Vec<KvOp>, CommandError> {
    let count = decoder.number()?;
    // The count alone is not believed: room only for what the bytes can hold.
    let possible = decoder.left() / OP_BYTES_MIN;
    let mut ops = Vec::with_capacity(usize::try_from(count).unwrap_or(possible).min(possible));
    for _ in 0..count {
        ops.push(take_op(decoder)?);
    }
    Ok(ops)
}

fn take_op(decoder: &mut Decoder<'_>) -> Result<KvOp, CommandError> {
    match decoder.byte()? {
        PUT_OP => Ok(KvOp::Put { key: decoder.string()?, value: decoder.string()? }),
        DELETE_OP => Ok(KvOp::Delete { key: decoder.string()? }),
        tag => Err(CommandError::Unknown { tag }),
    }
}
