//! Segment header: who a segment file is, and nothing that changes.
//!
//! ```text
//!  0         8              12           16              24         40         48     56         60
//!  | magic   | format       | block      | segment       | log id   | sequence | salt | checksum | zeros to the
//!  | RWALSEG1| version u32  | bytes u32  | bytes u64     | 16 bytes | u64      | u64  | u32      | block's end
//! ```
//!
//! The checksum covers bytes 0..56. The header is written and synced *before* the file gets its segment name and never
//! again, so a named segment whose header does not verify is damaged, never torn.

use super::{FORMAT_VERSION, Salted, array_at, put, u32_at, u64_at};

/// Bytes of the header that carry information; the rest of its block is zero.
pub const HEADER_BYTES: usize = 60;

const MAGIC: [u8; 8] = *b"RWALSEG1";
const CHECKSUM_AT: usize = 56;
const _: () = assert!(CHECKSUM_AT + 4 == HEADER_BYTES && HEADER_BYTES <= super::SECTOR_BYTES);

/// Smallest number of blocks in a segment: header, the reserve at its end, and room for a base and some data.
pub const SEGMENT_BLOCKS_MIN: u64 = 24;

/// Smallest and largest block size in bytes.
pub const BLOCK_BYTES: std::ops::RangeInclusive<u32> = 512..=65536;

/// Identity of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Drawn when the log was created; the same in all its segments.
    pub log_id: [u8; 16],
    /// Place of the segment in the log: the first is 1.
    pub sequence: u64,
    /// Drawn when the file became this segment; seeds all its checksums.
    pub salt: u64,
    /// Unit of writing: a power of two.
    pub block_bytes: u32,
    /// Size of the file.
    pub segment_bytes: u64,
}

/// Why bytes are not a segment header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderDefect {
    /// Too short, no magic, a checksum that does not verify, or impossible sizes.
    Damaged(&'static str),
    /// A header that verifies, of a version this crate does not know.
    Version(u32),
}

impl SegmentHeader {
    /// Writes the header to the start of `block`, whose other bytes stay as they are (they must be zero).
    ///
    /// # Panics
    ///
    /// If `block` is shorter than [`HEADER_BYTES`].
    pub fn encode(&self, block: &mut [u8]) {
        put(block, 0, &MAGIC);
        put(block, 8, &FORMAT_VERSION.to_le_bytes());
        put(block, 12, &self.block_bytes.to_le_bytes());
        put(block, 16, &self.segment_bytes.to_le_bytes());
        put(block, 24, &self.log_id);
        put(block, 40, &self.sequence.to_le_bytes());
        put(block, 48, &self.salt.to_le_bytes());
        let checksum = Salted::new(self.salt).over(&block[..CHECKSUM_AT]).value();
        put(block, CHECKSUM_AT, &checksum.to_le_bytes());
    }

    /// Reads a header from the start of `block`.
    ///
    /// # Errors
    ///
    /// [`HeaderDefect`], for any bytes that are not a header of this version.
    pub fn decode(block: &[u8]) -> Result<SegmentHeader, HeaderDefect> {
        if block.len() < HEADER_BYTES || block[..8] != MAGIC {
            return Err(HeaderDefect::Damaged("no segment header"));
        }
        let salt = u64_at(block, 48);
        if Salted::new(salt).over(&block[..CHECKSUM_AT]).value() != u32_at(block, CHECKSUM_AT) {
            return Err(HeaderDefect::Damaged("the segment header's checksum does not verify"));
        }
        let version = u32_at(block, 8);
        if version != FORMAT_VERSION {
            return Err(HeaderDefect::Version(version));
        }
        let header = SegmentHeader {
            log_id: array_at(block, 24),
            sequence: u64_at(block, 40),
            salt,
            block_bytes: u32_at(block, 12),
            segment_bytes: u64_at(block, 16),
        };
        if header.sizes_fit() {
            Ok(header)
        } else {
            Err(HeaderDefect::Damaged("the segment header has impossible sizes"))
        }
    }

    fn sizes_fit(&self) -> bool {
        let block = u64::from(self.block_bytes);
        BLOCK_BYTES.contains(&self.block_bytes)
            && self.block_bytes.is_power_of_two()
            && self.segment_bytes.is_multiple_of(block)
            && self.segment_bytes >= SEGMENT_BLOCKS_MIN * block
            && self.segment_bytes <= (1 << 32) - block
            && self.sequence > 0
            && self.sequence < u64::MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn header() -> SegmentHeader {
        SegmentHeader {
            log_id: [7; 16],
            sequence: 3,
            salt: 0x1234_5678_9abc,
            block_bytes: 4096,
            segment_bytes: 1 << 20,
        }
    }

    #[test]
    fn a_header_reads_back_and_every_flipped_bit_is_noticed() {
        let mut block = vec![0; 512];
        header().encode(&mut block);
        assert_eq!(SegmentHeader::decode(&block), Ok(header()));
        for bit in 0..HEADER_BYTES * 8 {
            block[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&block).is_err(), "bit {bit}");
            block[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        let mut block = vec![0; 512];
        header().encode(&mut block);
        put(&mut block, 8, &2u32.to_le_bytes());
        let checksum = Salted::new(header().salt).over(&block[..CHECKSUM_AT]).value();
        put(&mut block, CHECKSUM_AT, &checksum.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&block), Err(HeaderDefect::Version(2)));
    }

    #[test]
    fn zeros_and_short_bytes_are_no_header() {
        for len in [0, 8, 59, 60, 4096] {
            assert!(SegmentHeader::decode(&vec![0; len]).is_err());
        }
    }
}
