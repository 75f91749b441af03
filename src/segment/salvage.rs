//! Reads a segment whose header block is damaged by the salt that its frames carry themselves.
//!
//! Only for looking: a read-only open shows what is there, a writing one refuses. What is believed of the frames is
//! decided where it always is: a salt found here makes them readable, number, chain and epoch make them the log's.
//!
//! The first frame of a segment lies behind its header, so it tells the block size and, alone or torn, the salt. What
//! a recycled file holds there from its earlier use carries its earlier salt, and is then found to be stale.

use std::io;

use crate::disk::{AlignedBuf, DiskFile};
use crate::format::SECTOR_BYTES;
use crate::format::frame::{Head, HeadRead};
use crate::format::segment::{BLOCK_BYTES, SegmentHeader};

/// How much is read at once: the largest header block and what follows it.
const READ_BYTES: usize = 2 * *BLOCK_BYTES.end() as usize;

/// What can be said of a segment without its header; its log id is left zero. `None` where there are frames and
/// nothing tells how to read them.
pub(crate) fn header(file: &dyn DiskFile, sequence: u64) -> io::Result<Option<SegmentHeader>> {
    let size = file.size()?;
    let mut start = AlignedBuf::zeroed(READ_BYTES);
    let filled = file.read_at(&mut start, 0)?;
    let found = first_frame(&start[..filled]);
    let (salt, block_bytes) = match found {
        Some(found) => found,
        // A spare that was never used has no frames to be misread.
        None if !has_heads(file, size)? => (0, 4096),
        None => return Ok(None),
    };
    let block = u64::from(block_bytes);
    let segment_bytes = (size - size % block).min((1 << 32) - block);
    let header = SegmentHeader { log_id: [0; 16], sequence, salt, block_bytes, segment_bytes };
    Ok((segment_bytes >= 2 * block).then_some(header))
}

/// Salt and block size, from the frame behind the header.
fn first_frame(start: &[u8]) -> Option<(u64, u32)> {
    let sizes = std::iter::successors(Some(*BLOCK_BYTES.start()), |bytes| bytes.checked_mul(2));
    sizes.take_while(|bytes| BLOCK_BYTES.contains(bytes)).find_map(|block_bytes| {
        let head = head_of_any_salt(start.get(block_bytes as usize..)?)?;
        (head.has_base && head.offset == block_bytes).then_some((head.salt, block_bytes))
    })
}

/// A head that verifies with the salt it carries.
fn head_of_any_salt(bytes: &[u8]) -> Option<Head> {
    match Head::decode(bytes, Head::salt_in(bytes)?) {
        HeadRead::Head(head) => Some(head),
        HeadRead::Absent | HeadRead::Newer(_) => None,
    }
}

/// Whether anything in the file could be a frame, of whatever salt and version.
fn has_heads(file: &dyn DiskFile, size: u64) -> io::Result<bool> {
    let mut buffer = AlignedBuf::zeroed(READ_BYTES);
    let mut offset = 0;
    while offset < size {
        let filled = file.read_at(&mut buffer, offset)?;
        let is_head = |sector: &[u8]| {
            let salt = Head::salt_in(sector);
            salt.is_some_and(|salt| Head::decode(sector, salt) != HeadRead::Absent)
        };
        if buffer[..filled].chunks(SECTOR_BYTES).any(is_head) {
            return Ok(true);
        }
        if filled == 0 {
            break;
        }
        offset += READ_BYTES as u64;
    }
    Ok(false)
}
