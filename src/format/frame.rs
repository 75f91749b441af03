//! Frame: what one write carries. Everything the log does is a frame.
//!
//! ```text
//! frame:  | head | base (if flagged) | operation | operation | ... | zeros to the block size |
//!
//! head, 88 bytes, at the start of a block (so within one sector):
//!  0       4     5      6       8            12          16       20         24
//!  | magic | kind| flags| log   | frame      | operation | entry  | base     | operations' |
//!  | RWF1  | u8  | u8   | no u16| bytes u32  | count u32 | cnt u32| bytes u32| bytes u32   |
//!  28          32            40           48            56           60         64     72
//!  | chain u32 | first index | frame      | epoch       | epoch      | offset   | salt | durable       |
//!  |           | u64, a=MAX  | number u64 | counter u64 | random u32 | u32      | u64  | watermark u64 |
//!  80                     84
//!  | headers checksum u32 | head checksum u32 |
//!
//! operation: header of 40 bytes, then its payload, then zeros to a multiple of 8
//!  0         1        4               8           16         24              32            36
//!  | kind u8 | zeros  | payload       | index u64 | term u64 | timestamp ms  | key bytes   | checksum |
//!  |         | 3      | bytes u32     |           |          | u64           | u32         | u32      |
//! ```
//!
//! | kind of operation | index | term | payload |
//! |---|---|---|---|
//! | 1 entry | its own | its own | the command |
//! | 2 truncate | first index removed | term of the last entry that stays | none |
//! | 3 put meta | 0 | 0 | key, then value |
//! | 4 compact | last index dropped | its term | none |
//! | 5 delete meta | 0 | 0 | key |
//!
//! Fields that a kind has no use for are zero.
//!
//! What is checked by what: the head checksum covers bytes 0..84 of the head; the headers checksum covers the base and
//! then every operation header in order; each operation's checksum covers its header, with the operation's place in the
//! segment (bytes, u32) standing where the checksum will, and its payload. So an operation verifies only where it was
//! written: an entry that was truncated away does not pass for the newer one of its index when a device reads or writes
//! at the wrong place. The chain (the checksum of the previous frame's head) covers everything, each payload is read once, and
//! one entry can be proved alone. A frame is **whole** when all of these verify and every padding byte is zero.
//!
//! A head is verified alone, before its length is believed. This module does not know whether a frame belongs where it
//! was found: recovery does.

use bytes::Bytes;

use super::state::State;
use super::{Salted, align8, all_zero, index_at, put, put_index, u16_at, u32_at, u64_at};
use crate::plant::{Plant, planted};

/// Bytes of a frame's head.
pub const HEAD_BYTES: usize = 88;

/// Bytes of an operation's header.
pub const OPERATION_HEADER_BYTES: usize = 40;

const MAGIC: [u8; 4] = *b"RWF1";
const FLAG_BASE: u8 = 1;
const HEADERS_CHECKSUM_AT: usize = 80;
const HEAD_CHECKSUM_AT: usize = 84;
const OPERATION_CHECKSUM_AT: usize = 36;
const _: () = assert!(HEAD_CHECKSUM_AT + 4 == HEAD_BYTES && HEAD_BYTES.is_multiple_of(8));
const _: () = assert!(HEAD_BYTES <= super::SECTOR_BYTES, "a head lies in one sector, or it could be torn");
const _: () = assert!(OPERATION_CHECKSUM_AT + 4 == OPERATION_HEADER_BYTES && OPERATION_HEADER_BYTES.is_multiple_of(8));

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// Carries operations.
    Data,
    /// Begins an epoch.
    Open,
    /// Carries nothing but its watermark.
    Mark,
}

/// One life of the log between opens: a counter that grows, and bits that make two lives of one counter differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch {
    /// One above the highest seen at open.
    pub counter: u64,
    /// Random.
    pub random: u32,
}

/// The fields of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// What the frame is for.
    pub kind: FrameKind,
    /// Whether a base follows the head.
    pub has_base: bool,
    /// Length of the frame, padding included: a multiple of the block size.
    pub frame_bytes: u32,
    /// Number of operations.
    pub operation_count: u32,
    /// Number of entries among them.
    pub entry_count: u32,
    /// Bytes of the base.
    pub base_bytes: u32,
    /// Bytes of all operations.
    pub operations_bytes: u32,
    /// Head checksum of the frame before; 0 in a log's first frame.
    pub chain: u32,
    /// Index of the first entry, or the next index after the frame if it has none.
    pub first_index: Option<u64>,
    /// Frame number: one more than the frame before.
    pub number: u64,
    /// The life of the log that wrote it.
    pub epoch: Epoch,
    /// Where in its segment the frame was meant to lie, in bytes.
    pub offset: u32,
    /// Salt of its segment.
    pub salt: u64,
    /// Every frame up to this number was durable when this one was encoded.
    pub watermark: u64,
    /// Checksum of base and operation headers.
    pub headers_checksum: u32,
    /// Checksum of the head: what the next frame's chain must be.
    pub checksum: u32,
}

/// What a block begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeadRead {
    /// No head of this segment verifies here.
    Absent,
    /// A head verifies, but a newer version wrote it.
    Newer(String),
    /// A head.
    Head(Head),
}

impl Head {
    /// Looks for a head of the segment with this salt at the start of `block`.
    pub fn decode(block: &[u8], salt: u64) -> HeadRead {
        let is_ours = block.len() >= HEAD_BYTES && (u64_at(block, 64) == salt || planted(Plant::SaltLeftOut));
        if !is_ours || block[..4] != MAGIC {
            return HeadRead::Absent;
        }
        let checksum = u32_at(block, HEAD_CHECKSUM_AT);
        if Salted::new(salt).over(&block[..HEAD_CHECKSUM_AT]).value() != checksum {
            return HeadRead::Absent;
        }
        let kind = match block[4] {
            1 => FrameKind::Data,
            2 => FrameKind::Open,
            3 => FrameKind::Mark,
            kind => return HeadRead::Newer(format!("frame kind {kind}")),
        };
        if block[5] & !FLAG_BASE != 0 {
            return HeadRead::Newer(format!("frame flags {:#x}", block[5]));
        }
        if u16_at(block, 6) != 0 {
            return HeadRead::Newer(format!("log number {}", u16_at(block, 6)));
        }
        HeadRead::Head(Head {
            kind,
            has_base: block[5] & FLAG_BASE != 0,
            frame_bytes: u32_at(block, 8),
            operation_count: u32_at(block, 12),
            entry_count: u32_at(block, 16),
            base_bytes: u32_at(block, 20),
            operations_bytes: u32_at(block, 24),
            chain: u32_at(block, 28),
            first_index: index_at(block, 32),
            number: u64_at(block, 40),
            epoch: Epoch { counter: u64_at(block, 48), random: u32_at(block, 56) },
            offset: u32_at(block, 60),
            salt,
            watermark: u64_at(block, 72),
            headers_checksum: u32_at(block, HEADERS_CHECKSUM_AT),
            checksum,
        })
    }

    /// The salt that a head at the start of `block` carries, if one may begin there: nothing is verified.
    pub fn salt_in(block: &[u8]) -> Option<u64> {
        (block.len() >= HEAD_BYTES && block[..4] == MAGIC).then(|| u64_at(block, 64))
    }

    fn encode(&self, out: &mut [u8]) -> u32 {
        put(out, 0, &MAGIC);
        out[4] = match self.kind {
            FrameKind::Data => 1,
            FrameKind::Open => 2,
            FrameKind::Mark => 3,
        };
        out[5] = if self.has_base { FLAG_BASE } else { 0 };
        put(out, 6, &0u16.to_le_bytes());
        put(out, 8, &self.frame_bytes.to_le_bytes());
        put(out, 12, &self.operation_count.to_le_bytes());
        put(out, 16, &self.entry_count.to_le_bytes());
        put(out, 20, &self.base_bytes.to_le_bytes());
        put(out, 24, &self.operations_bytes.to_le_bytes());
        put(out, 28, &self.chain.to_le_bytes());
        put_index(out, 32, self.first_index);
        put(out, 40, &self.number.to_le_bytes());
        put(out, 48, &self.epoch.counter.to_le_bytes());
        put(out, 56, &self.epoch.random.to_le_bytes());
        put(out, 60, &self.offset.to_le_bytes());
        put(out, 64, &self.salt.to_le_bytes());
        put(out, 72, &self.watermark.to_le_bytes());
        put(out, HEADERS_CHECKSUM_AT, &self.headers_checksum.to_le_bytes());
        let checksum = Salted::new(self.salt).over(&out[..HEAD_CHECKSUM_AT]).value();
        put(out, HEAD_CHECKSUM_AT, &checksum.to_le_bytes());
        checksum
    }

    /// Whether the lengths fit each other, the block size and the room from the frame's start to its segment's end.
    pub fn lengths_fit(&self, block_bytes: u32, room: u64) -> bool {
        let used = HEAD_BYTES as u64 + u64::from(self.base_bytes) + u64::from(self.operations_bytes);
        u64::from(self.frame_bytes) == used.next_multiple_of(u64::from(block_bytes))
            && u64::from(self.frame_bytes) <= room
            && (self.base_bytes != 0) == self.has_base
            && self.base_bytes.is_multiple_of(8)
            && self.operations_bytes.is_multiple_of(8)
    }
}

/// An operation, as accepted and as encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Append an entry.
    Entry {
        /// Its index.
        index: u64,
        /// Its term.
        term: u64,
        /// Milliseconds since the Unix epoch.
        timestamp: u64,
        /// The command.
        payload: Bytes,
    },
    /// Remove an index and all after it.
    Truncate {
        /// The first index removed.
        first_removed: u64,
        /// Term of the last entry that stays (or of the compaction point, or 0).
        last_term: u64,
    },
    /// Set a key of the hard state.
    PutMeta {
        /// The key.
        key: Bytes,
        /// Its new value.
        value: Bytes,
    },
    /// Remove a key of the hard state.
    DeleteMeta {
        /// The key.
        key: Bytes,
    },
    /// Drop all entries up to and including an index.
    Compact {
        /// The last index dropped.
        index: u64,
        /// Its term.
        term: u64,
    },
}

impl Operation {
    fn payload_bytes(&self) -> usize {
        match self {
            Operation::Entry { payload, .. } => payload.len(),
            Operation::PutMeta { key, value } => key.len() + value.len(),
            Operation::DeleteMeta { key } => key.len(),
            Operation::Truncate { .. } | Operation::Compact { .. } => 0,
        }
    }

    /// Bytes the operation takes in a frame.
    pub fn encoded_bytes(&self) -> u64 {
        operation_bytes(self.payload_bytes())
    }

    /// Writes the operation, which will lie at `place` in its segment, to `out` (zeroed, exactly its length) and returns
    /// its header's bytes.
    fn encode(&self, out: &mut [u8], seed: Salted, place: u32) -> [u8; OPERATION_HEADER_BYTES] {
        let (kind, index, term, timestamp, parts): (u8, u64, u64, u64, [&[u8]; 2]) = match self {
            Operation::Entry { index, term, timestamp, payload } => (1, *index, *term, *timestamp, [payload, &[]]),
            Operation::Truncate { first_removed, last_term } => (2, *first_removed, *last_term, 0, [&[], &[]]),
            Operation::PutMeta { key, value } => (3, 0, 0, 0, [key, value]),
            Operation::Compact { index, term } => (4, *index, *term, 0, [&[], &[]]),
            Operation::DeleteMeta { key } => (5, 0, 0, 0, [key, &[]]),
        };
        let key_bytes = if kind == 3 || kind == 5 { parts[0].len() } else { 0 };
        let mut header = [0; OPERATION_HEADER_BYTES];
        header[0] = kind;
        put(&mut header, 4, &(self.payload_bytes() as u32).to_le_bytes());
        put(&mut header, 8, &index.to_le_bytes());
        put(&mut header, 16, &term.to_le_bytes());
        put(&mut header, 24, &timestamp.to_le_bytes());
        put(&mut header, 32, &(key_bytes as u32).to_le_bytes());
        put(&mut header, OPERATION_CHECKSUM_AT, &place.to_le_bytes());
        let checksum = seed.over(&header).over(parts[0]).over(parts[1]).value();
        put(&mut header, OPERATION_CHECKSUM_AT, &checksum.to_le_bytes());
        put(out, 0, &header);
        put(out, OPERATION_HEADER_BYTES, parts[0]);
        put(out, OPERATION_HEADER_BYTES + parts[0].len(), parts[1]);
        header
    }
}

/// Bytes an operation with a payload of this length takes in a frame.
pub fn operation_bytes(payload_bytes: usize) -> u64 {
    align8((OPERATION_HEADER_BYTES + payload_bytes) as u64)
}

/// Everything that decides a frame's bytes but its watermark's moment: see [`encode`].
#[derive(Debug)]
pub struct FrameSpec<'a> {
    /// What the frame is for.
    pub kind: FrameKind,
    /// Its number.
    pub number: u64,
    /// The writing life.
    pub epoch: Epoch,
    /// Head checksum of the frame before.
    pub chain: u32,
    /// Frames durable by now.
    pub watermark: u64,
    /// Salt of the segment.
    pub salt: u64,
    /// Place in the segment, in bytes.
    pub offset: u32,
    /// Index of the first entry, or next index after the frame.
    pub first_index: Option<u64>,
    /// The state before the frame, in the first frame of a segment.
    pub base: Option<&'a State>,
    /// The operations in order.
    pub operations: &'a [Operation],
}

/// Writes a frame into `out`, which must be exactly the frame's padded length; returns its head checksum.
///
/// Every byte of `out` is written: a reused buffer leaves nothing of its past in the padding.
///
/// # Panics
///
/// If `out` is too short for the frame, which is a mistake of the caller that computed its length.
pub fn encode(spec: &FrameSpec<'_>, out: &mut [u8]) -> u32 {
    let seed = Salted::new(spec.salt);
    let base_bytes = spec.base.map_or(0, State::encoded_bytes) as usize;
    let mut at = HEAD_BYTES + base_bytes;
    out[..at].fill(0);
    if let Some(base) = spec.base {
        base.encode(&mut out[HEAD_BYTES..at]);
    }
    let mut headers = seed.over(&out[HEAD_BYTES..at]);
    let mut entry_count = 0;
    for operation in spec.operations {
        let end = at + operation.encoded_bytes() as usize;
        let payload_end = at + OPERATION_HEADER_BYTES + operation.payload_bytes();
        headers = headers.over(&operation.encode(&mut out[at..end], seed, spec.offset.wrapping_add(at as u32)));
        out[payload_end..end].fill(0);
        entry_count += u32::from(matches!(operation, Operation::Entry { .. }));
        at = end;
    }
    out[at..].fill(0);
    let head = Head {
        kind: spec.kind,
        has_base: spec.base.is_some(),
        frame_bytes: out.len() as u32,
        operation_count: spec.operations.len() as u32,
        entry_count,
        base_bytes: base_bytes as u32,
        operations_bytes: (at - HEAD_BYTES - base_bytes) as u32,
        chain: spec.chain,
        first_index: spec.first_index,
        number: spec.number,
        epoch: spec.epoch,
        offset: spec.offset,
        salt: spec.salt,
        watermark: spec.watermark,
        headers_checksum: headers.value(),
        checksum: 0,
    };
    head.encode(out)
}

/// An operation's header, read from anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperationHeader {
    kind: u8,
    /// Bytes of the payload.
    pub payload_bytes: u32,
    /// Index, as the table of kinds says.
    pub index: u64,
    /// Term, as the table of kinds says.
    pub term: u64,
    /// Milliseconds since the Unix epoch, of an entry.
    pub timestamp: u64,
    key_bytes: u32,
    checksum: u32,
}

impl OperationHeader {
    /// Reads a header; `None` if there are too few bytes or its reserved bytes are not zero.
    #[inline]
    pub fn decode(bytes: &[u8]) -> Option<OperationHeader> {
        let bytes: &[u8; OPERATION_HEADER_BYTES] = bytes.first_chunk()?;
        if bytes[1..4] != [0; 3] {
            return None;
        }
        Some(OperationHeader {
            kind: bytes[0],
            payload_bytes: u32_at(bytes, 4),
            index: u64_at(bytes, 8),
            term: u64_at(bytes, 16),
            timestamp: u64_at(bytes, 24),
            key_bytes: u32_at(bytes, 32),
            checksum: u32_at(bytes, OPERATION_CHECKSUM_AT),
        })
    }

    /// Whether this is the header of an entry.
    #[inline]
    pub fn is_entry(&self) -> bool {
        self.kind == 1 && self.key_bytes == 0
    }

    /// Bytes of header and payload, without padding.
    #[inline]
    pub fn bytes(&self) -> u64 {
        OPERATION_HEADER_BYTES as u64 + u64::from(self.payload_bytes)
    }

    /// Whether `bytes` (header and payload, padding excluded) are what was written at `place` in a segment whose salt
    /// `seed` took in.
    #[inline]
    pub fn verifies(&self, bytes: &[u8], seed: Salted, place: u32) -> bool {
        let Some((header, payload)) = bytes.split_first_chunk::<OPERATION_HEADER_BYTES>() else { return false };
        let mut header = *header;
        put(&mut header, OPERATION_CHECKSUM_AT, &place.to_le_bytes());
        payload.len() as u64 == u64::from(self.payload_bytes)
            && seed.over(&header).over(payload).value() == self.checksum
    }

    /// Whether fields are used for which this version has no use in the kind: it writes zeros there.
    fn has_unknown_fields(&self) -> bool {
        match self.kind {
            1 => self.key_bytes != 0,
            2 | 4 => self.timestamp != 0 || self.key_bytes != 0,
            _ => self.timestamp != 0 || self.index != 0 || self.term != 0,
        }
    }

    /// The operation as a frame's reader is given it, if this version knows its kind and fields and it fits together.
    fn found(&self, payload: &[u8]) -> Result<FoundOperation, FrameDefect> {
        match self.kind {
            kind @ 1..=5 if self.has_unknown_fields() => {
                Err(FrameDefect::Newer(format!("operation kind {kind} with unknown fields")))
            }
            1..=5 => self.operation(payload).map(FoundOperation::Other).ok_or(BROKEN),
            kind => Err(FrameDefect::Newer(format!("operation kind {kind}"))),
        }
    }

    fn operation(&self, payload: &[u8]) -> Option<Operation> {
        let copy = Bytes::copy_from_slice;
        let key = || payload.split_at_checked(self.key_bytes as usize);
        match self.kind {
            1 => Some(Operation::Entry {
                index: self.index,
                term: self.term,
                timestamp: self.timestamp,
                payload: copy(payload),
            }),
            2 if payload.is_empty() => Some(Operation::Truncate { first_removed: self.index, last_term: self.term }),
            3 => key().map(|(key, value)| Operation::PutMeta { key: copy(key), value: copy(value) }),
            4 if payload.is_empty() => Some(Operation::Compact { index: self.index, term: self.term }),
            5 if self.key_bytes as usize == payload.len() => Some(Operation::DeleteMeta { key: copy(payload) }),
            _ => None,
        }
    }
}

/// Why a frame whose head verifies is not whole, or cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameDefect {
    /// Some of its bytes are not what was written: torn or damaged.
    NotWhole(&'static str),
    /// All of it verifies, but a newer version wrote it.
    Newer(String),
}

/// An operation found in a frame. Entries come without their payload: recovery wants places, not data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FoundOperation {
    /// An entry, its header at `offset` bytes from the frame's start.
    Entry {
        /// Its header.
        header: OperationHeader,
        /// Bytes from the start of the frame to the entry's operation header.
        offset: u32,
    },
    /// Any other operation.
    Other(Operation),
}

/// A frame that is whole.
#[derive(Clone, Debug)]
pub struct WholeFrame {
    /// Its head.
    pub head: Head,
    /// Its base.
    pub base: Option<State>,
    /// Its operations in order.
    pub operations: Vec<FoundOperation>,
}

/// Verifies that `bytes`, exactly `head.frame_bytes` long, are a whole frame, and reads it.
///
/// # Errors
///
/// [`FrameDefect::NotWhole`] for any difference from what was written, in any byte; [`FrameDefect::Newer`] if it is
/// whole and has an operation of an unknown kind.
pub fn verify(head: &Head, bytes: &[u8]) -> Result<WholeFrame, FrameDefect> {
    let used = HEAD_BYTES + head.base_bytes as usize + head.operations_bytes as usize;
    if bytes.len() != head.frame_bytes as usize || used > bytes.len() || !all_zero(&bytes[used..]) {
        return Err(FrameDefect::NotWhole("its padding is not zero"));
    }
    let (base_bytes, area) = bytes[HEAD_BYTES..used].split_at(head.base_bytes as usize);
    let seed = Salted::new(head.salt);
    let place = head.offset.wrapping_add((HEAD_BYTES + base_bytes.len()) as u32);
    let mut operations =
        Operations { area, at: 0, place, seed, headers: seed.over(base_bytes), entry_count: 0, strange: None };
    let found = operations.read_all(head)?;
    let base = decode_base(head, base_bytes)?;
    if let Some(strange) = operations.strange {
        return Err(strange);
    }
    let sound = operations.entry_count == head.entry_count && (head.kind == FrameKind::Data) != found.is_empty();
    if !sound {
        return Err(FrameDefect::NotWhole("its counts do not fit its kind or operations"));
    }
    Ok(WholeFrame { head: *head, base, operations: found })
}

const BROKEN: FrameDefect = FrameDefect::NotWhole("its operations do not fit together");

/// Walks the operations of a frame.
struct Operations<'a> {
    area: &'a [u8],
    at: usize,
    /// Where the area begins in its segment, as the head says.
    place: u32,
    seed: Salted,
    /// Over the base and the headers so far.
    headers: Salted,
    entry_count: u32,
    /// What cannot be read though it verifies: believed only where the whole frame is what was written.
    strange: Option<FrameDefect>,
}

impl Operations<'_> {
    fn read_all(&mut self, head: &Head) -> Result<Vec<FoundOperation>, FrameDefect> {
        let count = head.operation_count as usize;
        let fits = count <= self.area.len() / OPERATION_HEADER_BYTES;
        let mut found = Vec::with_capacity(if fits { count } else { return Err(BROKEN) });
        for _ in 0..count {
            let (header, at) = self.next()?;
            if header.is_entry() {
                self.entry_count += 1;
                let offset = (HEAD_BYTES + head.base_bytes as usize + at) as u32;
                found.push(FoundOperation::Entry { header, offset });
                continue;
            }
            let payload = &self.area[at + OPERATION_HEADER_BYTES..][..header.payload_bytes as usize];
            match header.found(payload) {
                Ok(operation) => found.push(operation),
                Err(defect) => self.strange = self.strange.take().or(Some(defect)),
            }
        }
        match (self.at == self.area.len(), self.headers.value() == head.headers_checksum) {
            (true, true) => Ok(found),
            (true, false) => Err(FrameDefect::NotWhole("its base or operation headers do not verify")),
            (false, _) => Err(BROKEN),
        }
    }

    /// The next header and its place in the area, once it, its payload and its padding verify.
    fn next(&mut self) -> Result<(OperationHeader, usize), FrameDefect> {
        let (area, at) = (self.area, self.at);
        let header = area.get(at..).and_then(OperationHeader::decode).ok_or(BROKEN)?;
        let end = at as u64 + header.bytes();
        let next = align8(end);
        if next > area.len() as u64 || area[end as usize..next as usize].iter().any(|&byte| byte != 0) {
            return Err(BROKEN);
        }
        self.headers = self.headers.over(&area[at..at + OPERATION_HEADER_BYTES]);
        let place = self.place.wrapping_add(at as u32);
        if !header.verifies(&area[at..end as usize], self.seed, place) && !planted(Plant::PayloadsNotVerified) {
            return Err(FrameDefect::NotWhole("an operation does not verify"));
        }
        self.at = next as usize;
        Ok((header, at))
    }
}

fn decode_base(head: &Head, bytes: &[u8]) -> Result<Option<State>, FrameDefect> {
    if !head.has_base {
        return Ok(None);
    }
    State::decode(bytes).map(Some).ok_or(FrameDefect::NotWhole("its base does not fit together"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    const SALT: u64 = 0xfeed_beef;
    const OFFSET: u32 = 512;

    fn operation() -> impl Strategy<Value = Operation> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from);
        prop_oneof![
            (any::<u64>(), any::<u64>(), any::<u64>(), bytes())
                .prop_map(|(index, term, timestamp, payload)| { Operation::Entry { index, term, timestamp, payload } }),
            (any::<u64>(), any::<u64>())
                .prop_map(|(first_removed, last_term)| Operation::Truncate { first_removed, last_term }),
            (bytes(), bytes()).prop_map(|(key, value)| Operation::PutMeta { key, value }),
            bytes().prop_map(|key| Operation::DeleteMeta { key }),
            (any::<u64>(), any::<u64>()).prop_map(|(index, term)| Operation::Compact { index, term }),
        ]
    }

    fn state() -> State {
        let pairs = [(Bytes::from_static(b"vote"), Bytes::from_static(b"term 3"))];
        State {
            compacted: Some((4, 2)),
            first: Some(5),
            next: Some(9),
            last_term: 3,
            hard_state: Arc::new(pairs.into()),
        }
    }

    fn encoded(kind: FrameKind, base: Option<&State>, operations: &[Operation], dirt: u8) -> Vec<u8> {
        let used: u64 = operations.iter().map(Operation::encoded_bytes).sum();
        let used = HEAD_BYTES as u64 + base.map_or(0, State::encoded_bytes) + used;
        let mut bytes = vec![dirt; used.next_multiple_of(512) as usize];
        let epoch = Epoch { counter: 1, random: 2 };
        let spec = FrameSpec {
            kind,
            number: 5,
            epoch,
            chain: 6,
            watermark: 4,
            salt: SALT,
            offset: OFFSET,
            first_index: None,
            base,
            operations,
        };
        encode(&spec, &mut bytes);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<WholeFrame, FrameDefect> {
        match Head::decode(bytes, SALT) {
            HeadRead::Head(head) if head.lengths_fit(512, bytes.len() as u64) => {
                verify(&head, &bytes[..head.frame_bytes as usize])
            }
            _ => Err(FrameDefect::NotWhole("no head")),
        }
    }

    fn original(found: &FoundOperation, bytes: &[u8]) -> Operation {
        match found {
            FoundOperation::Other(operation) => operation.clone(),
            FoundOperation::Entry { header, offset } => {
                let start = *offset as usize;
                let range = start + OPERATION_HEADER_BYTES..start + header.bytes() as usize;
                let (whole, seed, place) = (&bytes[start..range.end], Salted::new(SALT), OFFSET + *offset);
                assert!(header.verifies(whole, seed, place), "an entry is proved alone");
                assert!(!header.verifies(whole, seed, place + 8), "and only where it lies");
                header.operation(&bytes[range]).unwrap()
            }
        }
    }

    proptest! {
        #[test]
        fn frames_read_back(operations in proptest::collection::vec(operation(), 1..8), based: bool, dirt: u8) {
            let state = state();
            let bytes = encoded(FrameKind::Data, based.then_some(&state), &operations, dirt);
            let frame = read(&bytes).unwrap();
            prop_assert_eq!(frame.base, based.then_some(state));
            let found: Vec<_> = frame.operations.iter().map(|found| original(found, &bytes)).collect();
            prop_assert_eq!(found, operations);
        }

        #[test]
        fn every_damaged_byte_is_noticed(
            operations in proptest::collection::vec(operation(), 1..5),
            at: prop::sample::Index,
            flip in 1..=255u8,
        ) {
            let mut bytes = encoded(FrameKind::Data, Some(&state()), &operations, 0);
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            prop_assert!(read(&bytes).is_err(), "byte {}", at);
        }

        #[test]
        fn any_bytes_are_safe_to_read(mut bytes in proptest::collection::vec(any::<u8>(), 512..1024), lengths: [u16; 5]) {
            let mut head = [0; HEAD_BYTES];
            let template = Head::decode(&encoded(FrameKind::Mark, None, &[], 0), SALT);
            let HeadRead::Head(template) = template else { unreachable!("an encoded head decodes") };
            let [frame_bytes, operation_count, entry_count, base_bytes, operations_bytes] = lengths.map(u32::from);
            Head { frame_bytes, operation_count, entry_count, base_bytes, operations_bytes, has_base: base_bytes > 0,
                kind: FrameKind::Data, ..template }.encode(&mut head);
            bytes[..HEAD_BYTES].copy_from_slice(&head);
            let HeadRead::Head(head) = Head::decode(&bytes, SALT) else { unreachable!("it has just been encoded") };
            prop_assert!(verify(&head, &bytes).is_err());
        }
    }

    #[test]
    fn a_frame_of_another_segment_is_absent() {
        let bytes = encoded(FrameKind::Open, None, &[], 0);
        assert_eq!(Head::decode(&bytes, SALT + 1), HeadRead::Absent);
        assert!(matches!(Head::decode(&bytes, SALT), HeadRead::Head(_)));
    }

    #[test]
    fn a_head_of_a_newer_version_is_told_from_a_torn_one() {
        for (at, value) in [(4, 9u8), (5, 2), (6, 1)] {
            let mut bytes = encoded(FrameKind::Mark, None, &[], 0);
            bytes[at] = value;
            assert_eq!(Head::decode(&bytes, SALT), HeadRead::Absent, "without its checksum it is damaged");
            let checksum = Salted::new(SALT).over(&bytes[..HEAD_CHECKSUM_AT]).value();
            put(&mut bytes, HEAD_CHECKSUM_AT, &checksum.to_le_bytes());
            assert!(matches!(Head::decode(&bytes, SALT), HeadRead::Newer(_)));
        }
    }

    #[test]
    fn a_torn_frame_over_the_operations_of_a_dead_one_is_not_whole() {
        // Each operation below is followed by a checksum over itself: only the mask keeps the one over all of them from
        // coming out the same whatever they say.
        let base = Some(state());
        let compact = |term| [Operation::Compact { index: 19, term }, Operation::DeleteMeta { key: Bytes::new() }];
        let entry =
            |term| [Operation::Entry { index: 9, term, timestamp: 0, payload: Bytes::new() }, compact(1)[0].clone()];
        for (new, dead) in [(compact(5), compact(4)), (entry(5), entry(4)), (compact(5), entry(4))] {
            let mut bytes = encoded(FrameKind::Data, base.as_ref(), &new, 0);
            let dead = encoded(FrameKind::Data, base.as_ref(), &dead, 0);
            let operations = HEAD_BYTES + base.as_ref().map_or(0, State::encoded_bytes) as usize;
            assert!(read(&bytes).is_ok());
            bytes[operations..].copy_from_slice(&dead[operations..]);
            assert!(read(&bytes).is_err(), "{new:?}");
        }
    }

    /// Makes the only operation of a frame without a base verify as it stands, and with it the head.
    fn seal(bytes: &mut [u8], payload_bytes: usize) {
        let seed = Salted::new(SALT);
        let (header, payload) = (HEAD_BYTES, HEAD_BYTES + OPERATION_HEADER_BYTES);
        put(bytes, header + OPERATION_CHECKSUM_AT, &(OFFSET + HEAD_BYTES as u32).to_le_bytes());
        let covered = seed.over(&bytes[header..payload]);
        let checksum = covered.over(&bytes[payload..payload + payload_bytes]).value();
        put(bytes, header + OPERATION_CHECKSUM_AT, &checksum.to_le_bytes());
        let headers = seed.over(&bytes[header..payload]).value();
        put(bytes, HEADERS_CHECKSUM_AT, &headers.to_le_bytes());
        let head = seed.over(&bytes[..HEAD_CHECKSUM_AT]).value();
        put(bytes, HEAD_CHECKSUM_AT, &head.to_le_bytes());
    }

    #[test]
    fn an_operation_with_something_in_fields_it_does_not_have_is_a_newer_versions() {
        let (key, value) = (Bytes::from_static(b"key"), Bytes::from_static(b"value"));
        let compact = Operation::Compact { index: 7, term: 1 };
        let truncate = Operation::Truncate { first_removed: 7, last_term: 1 };
        let entry = Operation::Entry { index: 7, term: 1, timestamp: 9, payload: value.clone() };
        let put_meta = Operation::PutMeta { key: key.clone(), value };
        let delete = Operation::DeleteMeta { key };
        let unused: [(Operation, &[usize]); 5] = [
            (entry, &[32]),
            (truncate, &[24, 32]),
            (put_meta, &[8, 16, 24]),
            (compact, &[24, 32]),
            (delete, &[8, 16, 24]),
        ];
        for (operation, fields) in unused {
            let good = encoded(FrameKind::Data, None, std::slice::from_ref(&operation), 0);
            let mut sealed = good.clone();
            seal(&mut sealed, operation.payload_bytes());
            assert_eq!(sealed, good, "sealing changes nothing where all is as written");
            for &field in fields {
                let mut bytes = good.clone();
                bytes[HEAD_BYTES + field] = 1;
                seal(&mut bytes, operation.payload_bytes());
                let read = read(&bytes);
                assert!(matches!(read, Err(FrameDefect::Newer(_))), "{operation:?}, byte {field}: {read:?}");
            }
        }
    }

    #[test]
    fn zeros_are_no_head() {
        assert_eq!(Head::decode(&[0; 4096], 0), HeadRead::Absent);
    }
}
