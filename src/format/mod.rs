//! The disk format, version 1: bytes to values and back. Pure: no I/O, no clock, no threads.
//!
//! Any bytes give a value or a typed defect; lengths are checked before they are believed and nothing is allocated by
//! a length that was not checked against what is there.
//!
//! # The files of a log
//!
//! | name | what it is | specified in |
//! |---|---|---|
//! | `00000000000000000001.seg` | a segment: one header block, then frames end to end | [`segment`], [`frame`], [`state`] |
//! | `00000000000000000001.idx` | derived index of a sealed segment | [`index`] |
//! | `lock` | the writer's lock, and two slots repeating the newest mark | [`lock`] |
//! | `*.seg.tmp`, `*.idx.tmp` | being made; removed by the next writing open | [`names`] |
//! | `cut-*.bin` | bytes that a recovery cut, kept for a person to look at | [`names`] |
//! | `snapshot_1200_3.zst` | a snapshot of the state after entry 1200 of term 3 | [`snapshot`] |
//! | `snapshot_1200_3.zst.*.tmp` | one that is being made; left behind, it is removed when the snapshots are opened | [`names`] |
//! | `snapshot_1200_3.zst.*.part` | the beginning of one that is being received from another machine | [`names`] |
//! | `snapshot_1200_3.zst.*.damaged` | a damaged one that was set aside | [`names`] |
//!
//! All integers are little-endian. Blocks are 4096 bytes unless a segment's header says otherwise.
//!
//! # Checksums
//!
//! Every checksum is CRC-32C (Castagnoli, as in RFC 3720) over the segment's 8-byte salt followed by the bytes it
//! covers. The salt is drawn anew whenever a file becomes a segment, so nothing that an earlier use of the file left
//! behind, and no payload that looks like a frame, can verify.
//!
//! In segments and the lock file a checksum is written *masked*: rotated right by 15 bits, then 0xA282EAD8 added
//! (wrapping). The reason is that of LevelDB's log: a CRC over data that embeds its own CRC is the same for any data.
//! Without the mask the checksum over the operation headers of a frame, each of which ends with a checksum over itself,
//! would not notice one header in place of another. Index files embed no such pair and use plain CRCs.

use crate::plant::{Plant, planted};

mod crc;
pub mod frame;
pub mod index;
pub mod lock;
pub mod names;
pub mod segment;
pub mod snapshot;
pub mod state;

/// The format version this crate writes and the only one it reads.
pub const FORMAT_VERSION: u32 = 1;

/// The highest index an entry can have: the next index after it, and "no index", still fit a `u64`.
pub const INDEX_MAX: u64 = u64::MAX - 2;

/// How "no index" is written where an index may be absent.
const INDEX_ABSENT: u64 = u64::MAX;

/// The unit that a device writes all or nothing: a frame's head lies within one.
pub const SECTOR_BYTES: usize = 512;

/// What masking adds to a rotated checksum.
const MASK_DELTA: u32 = 0xA282_EAD8;

/// A CRC-32C that already took in a segment's salt, to be continued over the covered bytes.
#[derive(Clone, Copy, Debug)]
pub struct Salted(u32);

impl Salted {
    /// Starts a checksum with the salt.
    pub fn new(salt: u64) -> Salted {
        let salt = if planted(Plant::SaltLeftOut) { 0 } else { salt };
        Salted(crc::append(0, &salt.to_le_bytes()))
    }

    /// The checksum continued over `bytes`.
    #[inline]
    #[must_use]
    pub fn over(self, bytes: &[u8]) -> Salted {
        Salted(crc::append(self.0, bytes))
    }

    /// The checksum as it is written: masked, see the module.
    #[inline]
    pub fn value(self) -> u32 {
        self.0.rotate_right(15).wrapping_add(MASK_DELTA)
    }
}

#[inline]
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

#[inline]
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

#[inline]
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

/// Callers check the length of `bytes` first: offsets within fixed layouts are constants.
#[inline]
fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

fn put_index(out: &mut [u8], at: usize, index: Option<u64>) {
    put(out, at, &index.unwrap_or(INDEX_ABSENT).to_le_bytes());
}

fn index_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64_at(bytes, at)).filter(|&index| index != INDEX_ABSENT)
}

/// Rounds up to the 8 bytes that operations and bases are aligned to.
pub(crate) const fn align8(bytes: u64) -> u64 {
    bytes.next_multiple_of(8)
}

fn all_zero(bytes: &[u8]) -> bool {
    // Whole words first: padding is checked on every frame of a recovery.
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_le_bytes(*word) == 0) && rest.iter().all(|&byte| byte == 0)
}
