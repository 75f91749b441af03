//! The lock file: two slots that repeat the newest mark, and a line that names the holder.
//!
//! ```text
//!  block 0 (byte 0)     slot 0: magic RWALLOCK | format version u32 | zero u32 | log id 16 | watermark u64 | checksum u32
//!  block 1 (byte 4096)  slot 1: the same
//!  block 2 (byte 8192)  text: who holds the lock; unsynced, only for messages
//! ```
//!
//! Slots are written in turn, so one is whole whatever happens to the other; the larger valid watermark counts. The
//! checksum covers the 40 bytes before it, with the log id's first half as salt.

use super::{FORMAT_VERSION, Salted, array_at, put, u32_at, u64_at};

/// Bytes of one slot that carry information.
pub const SLOT_BYTES: usize = 44;

/// Where the two slots lie.
pub const SLOT_OFFSETS: [u64; 2] = [0, 4096];

/// Where the holder's line lies.
pub const HOLDER_OFFSET: u64 = 8192;

/// Longest holder's line in bytes.
pub const HOLDER_BYTES_MAX: usize = 256;

const MAGIC: [u8; 8] = *b"RWALLOCK";

/// One slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The log it speaks of.
    pub log_id: [u8; 16],
    /// Every frame up to this number was durable.
    pub watermark: u64,
}

/// What the bytes of a slot are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotRead {
    /// Never written, torn or damaged: no witness.
    Absent,
    /// A slot that verifies, of a version this crate does not know: its number, or what it has that no slot has here.
    Newer(String),
    /// A slot.
    Slot(Slot),
}

impl Slot {
    /// The slot as it is written.
    pub fn encode(&self) -> [u8; SLOT_BYTES] {
        let mut out = [0; SLOT_BYTES];
        put(&mut out, 0, &MAGIC);
        put(&mut out, 8, &FORMAT_VERSION.to_le_bytes());
        put(&mut out, 16, &self.log_id);
        put(&mut out, 32, &self.watermark.to_le_bytes());
        let checksum = checksum(&out);
        put(&mut out, 40, &checksum.to_le_bytes());
        out
    }

    /// Reads a slot from any bytes.
    pub fn decode(bytes: &[u8]) -> SlotRead {
        if bytes.len() < SLOT_BYTES || bytes[..8] != MAGIC || checksum(bytes) != u32_at(bytes, 40) {
            return SlotRead::Absent;
        }
        match u32_at(bytes, 8) {
            FORMAT_VERSION if u32_at(bytes, 12) != 0 => SlotRead::Newer("unknown fields in a slot".into()),
            FORMAT_VERSION => SlotRead::Slot(Slot { log_id: array_at(bytes, 16), watermark: u64_at(bytes, 32) }),
            version => SlotRead::Newer(format!("format version {version}")),
        }
    }
}

fn checksum(bytes: &[u8]) -> u32 {
    Salted::new(u64_at(bytes, 16)).over(&bytes[..40]).value()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_reads_back_and_every_flipped_bit_is_noticed() {
        let slot = Slot { log_id: [9; 16], watermark: 77 };
        let mut bytes = slot.encode();
        assert_eq!(Slot::decode(&bytes), SlotRead::Slot(slot));
        for bit in 0..SLOT_BYTES * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Slot::decode(&bytes), SlotRead::Absent, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(Slot::decode(&[0; 512]), SlotRead::Absent);
    }

    #[test]
    fn a_slot_with_something_in_its_reserved_bytes_is_a_newer_versions() {
        let mut bytes = Slot { log_id: [9; 16], watermark: 77 }.encode();
        bytes[13] = 1;
        let checksum = checksum(&bytes);
        put(&mut bytes, 40, &checksum.to_le_bytes());
        assert!(matches!(Slot::decode(&bytes), SlotRead::Newer(_)));
    }
}
