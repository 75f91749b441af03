//! Makes altered bytes verify: a fuzzer does not guess checksums, and without them every alteration ends at the first.
//!
//! Written after the diagrams in [`crate::format`], with places of its own: what is shared with the code under test
//! would share its mistakes. Lengths are taken from the bytes and believed only as far as the bytes go.

use crate::format::Salted;

/// A field: its place in what it is part of, and its length, both in bytes.
pub(super) type Field = (usize, usize);

/// The fields of a frame's head.
pub(super) const HEAD: [Field; 18] = [
    (4, 1),
    (5, 1),
    (6, 2),
    (8, 4),
    (12, 4),
    (16, 4),
    (20, 4),
    (24, 4),
    (28, 4),
    (32, 8),
    (40, 8),
    (48, 8),
    (56, 4),
    (60, 4),
    (64, 8),
    (72, 8),
    (80, 4),
    (84, 4),
];
/// The fields of an operation's header.
pub(super) const OPERATION: [Field; 8] = [(0, 1), (1, 3), (4, 4), (8, 8), (16, 8), (24, 8), (32, 4), (36, 4)];
/// The fields of a base, up to its first pair's lengths.
pub(super) const BASE: [Field; 9] = [(0, 8), (8, 8), (16, 8), (24, 8), (32, 8), (40, 4), (44, 4), (48, 4), (52, 4)];
/// The fields of a segment's header.
pub(super) const SEGMENT: [Field; 7] = [(8, 4), (12, 4), (16, 8), (24, 8), (40, 8), (48, 8), (56, 4)];
/// The fields of a slot of the lock file.
pub(super) const SLOT: [Field; 5] = [(8, 4), (16, 8), (24, 8), (32, 8), (40, 4)];
/// The fields of an index file's header, its first run and its first offset if it has one run.
pub(super) const INDEX: [Field; 19] = [
    (8, 4),
    (12, 4),
    (16, 8),
    (32, 8),
    (40, 8),
    (48, 8),
    (56, 8),
    (64, 8),
    (72, 8),
    (80, 8),
    (88, 4),
    (92, 4),
    (96, 4),
    (100, 4),
    (104, 4),
    (108, 4),
    (112, 8),
    (120, 8),
    (128, 4),
];

/// The fields of a snapshot's header.
pub(super) const SNAPSHOT: [Field; 13] = [
    (4, 4),
    (8, 8),
    (16, 4),
    (20, 4),
    (24, 4),
    (28, 4),
    (32, 8),
    (40, 8),
    (48, 8),
    (56, 8),
    (64, 8),
    (120, 8),
    (128, 4),
];
/// The fields of the header of a snapshot's chunk.
pub(super) const CHUNK: [Field; 8] = [(0, 4), (4, 4), (8, 4), (12, 4), (16, 8), (24, 4), (28, 4), (32, 4)];
/// The fields of a snapshot's trailer.
pub(super) const TRAILER: [Field; 8] = [(4, 4), (8, 4), (12, 4), (16, 8), (24, 8), (32, 8), (40, 4), (44, 4)];

pub(super) const HEAD_BYTES: usize = 88;
const HEAD_MAGIC: [u8; 4] = *b"RWF1";
const OPERATION_BYTES: usize = 40;

fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
    let mut value = [0; 8];
    match bytes.get(at..at + length) {
        Some(found) => value[..length].copy_from_slice(found),
        None => return 0,
    }
    u64::from_le_bytes(value)
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

/// Changes a field of what begins at `start`: to a number, or by as much. Fields beyond the end are left alone.
pub(super) fn alter(bytes: &mut [u8], start: usize, (at, length): Field, value: u64, is_relative: bool) {
    let before = number(bytes, start + at, length);
    let after = if is_relative { before.wrapping_add(value) } else { value };
    put(bytes, start + at, &after.to_le_bytes()[..length]);
}

/// Whether a frame seems to begin here.
pub(super) fn is_head(bytes: &[u8]) -> bool {
    bytes.len() >= HEAD_BYTES && bytes[..4] == HEAD_MAGIC
}

/// Where the operations of the frame at the start of `bytes` lie, header by header, as far as their lengths lead.
pub(super) fn operations(bytes: &[u8]) -> Vec<usize> {
    let start = HEAD_BYTES + number(bytes, 20, 4) as usize;
    let end = start.saturating_add(number(bytes, 24, 4) as usize).min(bytes.len());
    let count = number(bytes, 12, 4) as usize;
    let next = |&at: &usize| Some(at + (OPERATION_BYTES + number(bytes, at + 4, 4) as usize).next_multiple_of(8));
    let all = std::iter::successors(Some(start), next);
    all.take_while(|at| at + OPERATION_BYTES <= end).take(count).collect()
}

/// Makes the frame at the start of `bytes` verify with this salt: operations, their headers, the head. Returns the
/// head's checksum.
pub(super) fn frame(bytes: &mut [u8], salt: u64) -> u32 {
    if bytes.len() < HEAD_BYTES {
        return 0;
    }
    let seed = Salted::new(salt);
    let base_end = (HEAD_BYTES + number(bytes, 20, 4) as usize).min(bytes.len());
    let mut headers = seed.over(&bytes[HEAD_BYTES..base_end]);
    for at in operations(bytes) {
        let end = (at + OPERATION_BYTES).saturating_add(number(bytes, at + 4, 4) as usize).min(bytes.len());
        let place = (number(bytes, 60, 4) as u32).wrapping_add(at as u32);
        put(bytes, at + 36, &place.to_le_bytes());
        let checksum = seed.over(&bytes[at..end]).value();
        put(bytes, at + 36, &checksum.to_le_bytes());
        headers = headers.over(&bytes[at..at + OPERATION_BYTES]);
    }
    put(bytes, 0, &HEAD_MAGIC);
    put(bytes, 64, &salt.to_le_bytes());
    put(bytes, 80, &headers.value().to_le_bytes());
    head(bytes, salt)
}

/// Makes a head verify alone, whatever it says of its frame.
pub(super) fn head(bytes: &mut [u8], salt: u64) -> u32 {
    let checksum = Salted::new(salt).over(&bytes[..84]).value();
    put(bytes, 84, &checksum.to_le_bytes());
    checksum
}

/// Makes a segment's header verify.
pub(super) fn segment_header(bytes: &mut [u8]) {
    if bytes.len() < 60 {
        return;
    }
    put(bytes, 0, b"RWALSEG1");
    let checksum = Salted::new(number(bytes, 48, 8)).over(&bytes[..56]).value();
    put(bytes, 56, &checksum.to_le_bytes());
}

/// Makes a slot of the lock file verify.
pub(super) fn slot(bytes: &mut [u8]) {
    if bytes.len() < 44 {
        return;
    }
    put(bytes, 0, b"RWALLOCK");
    let checksum = Salted::new(number(bytes, 16, 8)).over(&bytes[..40]).value();
    put(bytes, 40, &checksum.to_le_bytes());
}

/// Makes an index file verify: runs, offsets, header.
pub(super) fn index(bytes: &mut [u8]) {
    if bytes.len() < 112 {
        return;
    }
    let salt = crc32c::crc32c(&bytes[40..48]);
    let runs_end = (112 + 16 * number(bytes, 92, 4) as usize).min(bytes.len());
    let offsets_end = runs_end.saturating_add(4 * number(bytes, 88, 4) as usize).min(bytes.len());
    let runs = crc32c::crc32c_append(salt, &bytes[112..runs_end]);
    let offsets = crc32c::crc32c_append(salt, &bytes[runs_end..offsets_end]);
    put(bytes, 0, b"ringwidx");
    put(bytes, 96, &runs.to_le_bytes());
    put(bytes, 100, &offsets.to_le_bytes());
    let header = crc32c::crc32c_append(salt, &bytes[..108]);
    put(bytes, 108, &header.to_le_bytes());
}

const SNAPSHOT_BYTES: usize = 136;
const CHUNK_BYTES: usize = 40;
const TRAILER_BYTES: usize = 52;

/// Where the chunks of a snapshot begin, and behind them where the trailer does, as far as their lengths lead.
pub(super) fn chunks(bytes: &[u8]) -> Vec<usize> {
    let is_chunk = |at: usize| number(bytes, at, 4) == 0x184D_2A57 && number(bytes, at + 8, 4) == 1;
    let next = |&at: &usize| is_chunk(at).then(|| at + CHUNK_BYTES + number(bytes, at + 12, 4) as usize);
    std::iter::successors(Some(SNAPSHOT_BYTES), next).take_while(|&at| at < bytes.len()).collect()
}

/// Makes a snapshot verify: header, chunks, trailer, and what the trailer says of the seek table and of the whole.
pub(super) fn snapshot(bytes: &mut [u8]) {
    if bytes.len() < SNAPSHOT_BYTES {
        return;
    }
    put(bytes, 0, &0x184D_2A57u32.to_le_bytes());
    put(bytes, 8, b"ringwsnp");
    let version = crc32c::crc32c(&bytes[8..20]);
    put(bytes, 20, &version.to_le_bytes());
    let salt = number(bytes, 32, 8);
    seal(bytes, 0, SNAPSHOT_BYTES, salt);
    let (places, mut whole) = (chunks(bytes), 0);
    for chunk in places.windows(2) {
        let stored = &bytes[(chunk[0] + CHUNK_BYTES).min(chunk[1])..chunk[1]];
        let stored_checksum = Salted::new(salt).over(stored).value();
        let raw = zstd::bulk::decompress(stored, 1 << 20).unwrap_or_default();
        put(bytes, chunk[0] + 28, &stored_checksum.to_le_bytes());
        put(bytes, chunk[0] + 32, &crc32c::crc32c(&raw).to_le_bytes());
        whole = crc32c::crc32c_append(whole, &raw);
        seal(bytes, chunk[0], CHUNK_BYTES, salt);
    }
    let Some(&trailer) = places.last() else { return };
    let entries = bytes.len().checked_sub(9).map_or(0, |footer| number(bytes, footer, 4) as usize);
    let table = bytes.len().saturating_sub(17 + 8 * entries);
    let table_checksum = Salted::new(salt).over(&bytes[table..]).value();
    put(bytes, trailer + 12, &whole.to_le_bytes());
    put(bytes, trailer + 40, &table_checksum.to_le_bytes());
    seal(bytes, trailer, TRAILER_BYTES, salt);
}

/// Writes the checksum of a snapshot's frame into its last four bytes, where it is all there.
fn seal(bytes: &mut [u8], start: usize, length: usize, salt: u64) {
    let Some(frame) = bytes.get(start..start + length) else { return };
    let checksum = Salted::new(salt).over(&frame[..length - 4]).value();
    put(bytes, start + length - 4, &checksum.to_le_bytes());
}

/// Block size and salt that a segment's header tells, believed as far as it can be.
fn blocks(bytes: &[u8]) -> (usize, u64) {
    let block = number(bytes, 12, 4) as usize;
    let block = if (512..=65536).contains(&block) && block.is_power_of_two() { block } else { 512 };
    (block, number(bytes, 48, 8))
}

/// Where frames seem to begin in a segment.
pub(super) fn frames(bytes: &[u8]) -> Vec<usize> {
    let (block, _) = blocks(bytes);
    (block..bytes.len()).step_by(block).filter(|&at| is_head(&bytes[at..])).collect()
}

/// Makes a segment and every frame in it verify. Where `chain` is given, frames are chained, the first to that, and the
/// last one's checksum is put there.
pub(super) fn segment(bytes: &mut [u8], mut chain: Option<&mut u32>) {
    segment_header(bytes);
    let (block, salt) = blocks(bytes);
    let mut at = block;
    while at + HEAD_BYTES <= bytes.len() {
        let mut length = block;
        if is_head(&bytes[at..]) {
            if let Some(chain) = &chain {
                put(bytes, at + 28, &chain.to_le_bytes());
            }
            let checksum = frame(&mut bytes[at..], salt);
            if let Some(chain) = &mut chain {
                **chain = checksum;
            }
            length = (number(bytes, at + 8, 4) as usize).next_multiple_of(block).max(block);
        }
        at += length;
    }
}
