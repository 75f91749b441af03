//! Many entries of a segment, read at once and verified, and given out one by one.
//!
//! An entry's command is a slice of the piece: nothing is copied, and whoever keeps one command keeps the piece. A
//! piece whose commands are all gone gives its memory to the next one, so that a scan neither allocates nor clears.
//!
//! Knows neither files nor indexes: it is told where the entries lie, and believes none of it. What is given out
//! verified, each at its own index.

use std::io;

use bytes::{Bytes, BytesMut};

use super::sealed::{self, GUESS_BYTES, ROOM_BYTES_MAX};
use crate::entry::{EntryRef, LogEntry};
use crate::format::Salted;
use crate::format::frame::{OPERATION_HEADER_BYTES, OperationHeader};

/// How much a scan reads at once. Larger pieces are no faster: these stay in the processor's cache between being read
/// and being verified.
const PIECE_BYTES: u64 = 256 << 10;

/// How much longer a piece may become so that it ends where an entry does.
const STRETCH_BYTES: u64 = 64 << 10;

/// How much is to be read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Entries that are wanted.
    entries_max: u64,
    bytes_max: u64,
}

impl Plan {
    /// So many entries, in pieces of the best size.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn scan(entries_max: u64) -> Plan {
        Plan { entries_max, bytes_max: PIECE_BYTES }
    }

    /// So many entries, but not many more than have payloads of `payload_bytes` together.
    pub(crate) fn some(entries_max: u64, payload_bytes: usize) -> Plan {
        let payload_bytes = payload_bytes as u64;
        Plan { entries_max, bytes_max: payload_bytes.saturating_add(payload_bytes / 2).min(PIECE_BYTES) }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Piece {
    /// Offset of its first byte in the segment.
    start: u64,
    bytes: Bytes,
    /// How much is to be read into it.
    length: usize,
    filled: usize,
    /// Where in it the headers of its entries lie.
    places: Vec<u32>,
    /// How many of them were given out from the front.
    taken: usize,
}

impl Piece {
    /// Decides what to read of the entries at these offsets, of which the first is read in any case; `None` where there
    /// is none.
    pub(super) fn lay_out(mut offsets: impl Iterator<Item = u32>, plan: Plan, used: Piece) -> Option<Piece> {
        let start = offsets.next()?;
        let Piece { bytes, mut places, .. } = used;
        places.clear();
        places.push(0);
        let (mut last, mut end) = (0, None);
        for offset in offsets {
            // An index that goes back is damaged, and what it leads to here will not verify.
            let Some(at) = offset.checked_sub(start).filter(|&at| at > last) else { break };
            if u64::from(at) >= plan.bytes_max || places.len() as u64 >= plan.entries_max {
                end = Some(at);
                break;
            }
            places.push(at);
            last = at;
        }
        let length = match end.map(u64::from) {
            Some(end) if end <= plan.bytes_max.saturating_add(STRETCH_BYTES) => end,
            // The last entry is a long one: it begins the next piece.
            Some(_) if places.len() > 1 => u64::from(places.pop().unwrap_or_default()),
            Some(end) if end <= ROOM_BYTES_MAX => end,
            _ => u64::from(last) + GUESS_BYTES,
        };
        Some(Piece { start: start.into(), bytes, length: length as usize, filled: 0, places, taken: 0 })
    }

    /// Offset of its first byte in the segment.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// Reads it, at most `room` bytes.
    pub(super) fn read(&mut self, room: u64, fill: impl FnOnce(&mut [u8], u64) -> io::Result<usize>) -> io::Result<()> {
        let length = self.length.min(usize::try_from(room).unwrap_or(usize::MAX));
        let mut buffer = match std::mem::take(&mut self.bytes).try_into_mut() {
            Ok(buffer) if buffer.len() >= length => buffer,
            _ => BytesMut::zeroed(capacity(length)),
        };
        self.filled = fill(&mut buffer[..length], self.start)?.min(length);
        self.bytes = buffer.freeze();
        Ok(())
    }

    /// Keeps the entries that verify, up to the first that does not; `first` is the index of the first.
    pub(super) fn verified(mut self, first: u64, seed: Salted) -> Piece {
        let bytes = &self.bytes[..self.filled];
        let start = self.start as u32;
        let verifies = |(at, index): (u32, u64)| {
            let bytes = bytes.get(at as usize..);
            bytes.is_some_and(|bytes| sealed::verified(bytes, index, seed, start + at).is_some())
        };
        let whole = self.places.iter().copied().zip(first..).take_while(|&entry| verifies(entry)).count();
        self.places.truncate(whole);
        self
    }

    /// Entries not given out yet.
    pub(crate) fn len(&self) -> usize {
        self.places.len() - self.taken
    }

    /// The next entry.
    #[inline]
    pub(crate) fn next(&mut self) -> Option<LogEntry> {
        let at = *self.places.get(self.taken)?;
        self.taken += 1;
        self.entry_at(at as usize)
    }

    /// The next entry, lent.
    #[inline]
    pub(crate) fn next_ref(&mut self) -> Option<EntryRef<'_>> {
        let at = *self.places.get(self.taken)? as usize;
        self.taken += 1;
        let bytes = self.bytes.get(at..)?;
        let header = OperationHeader::decode(bytes)?;
        let command = bytes.get(OPERATION_HEADER_BYTES..header.bytes() as usize)?;
        Some(EntryRef { term: header.term, index: header.index, command, timestamp: header.timestamp })
    }

    /// The last entry.
    pub(crate) fn next_back(&mut self) -> Option<LogEntry> {
        let at = *self.places.get(self.taken..)?.last()?;
        self.places.pop();
        self.entry_at(at as usize)
    }

    #[inline]
    fn entry_at(&self, at: usize) -> Option<LogEntry> {
        let header = OperationHeader::decode(self.bytes.get(at..)?)?;
        let command = at + OPERATION_HEADER_BYTES..at + header.bytes() as usize;
        Some(sealed::entry(&header, self.bytes.slice(command)))
    }
}

/// The size of a new buffer: that of all pieces of a scan, where it seems to be one.
fn capacity(length: usize) -> usize {
    let full = (PIECE_BYTES + STRETCH_BYTES) as usize;
    if length > PIECE_BYTES as usize / 2 { length.max(full) } else { length }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lay_out(offsets: &[u32], plan: Plan) -> (Vec<u32>, usize) {
        let piece = Piece::lay_out(offsets.iter().copied(), plan, Piece::default()).unwrap();
        (piece.places, piece.length)
    }

    #[test]
    fn a_piece_ends_where_an_entry_does_and_long_ones_begin_the_next() {
        let (piece, guess) = (PIECE_BYTES as u32, GUESS_BYTES as usize);
        let all = Plan::scan(100);
        assert!(Piece::lay_out([].into_iter(), all, Piece::default()).is_none());
        assert_eq!(lay_out(&[512], all), (vec![0], guess));
        assert_eq!(lay_out(&[512, 600, 720], all), (vec![0, 88, 208], 208 + guess));
        // The offset after the last wanted entry tells its end.
        assert_eq!(lay_out(&[512, 600, 720], Plan::scan(2)), (vec![0, 88], 208));
        assert_eq!(lay_out(&[512, 600, 720], Plan::some(2, 0)), (vec![0], 88));
        let full = [512, 600, 512 + piece + 8, 512 + piece + 64];
        assert_eq!(lay_out(&full, all), (vec![0, 88], piece as usize + 8));
        assert_eq!(lay_out(&[512, 600, 600 + 2 * piece], all), (vec![0], 88));
        // A long one alone: read whole where that is not absurd, else looked at first.
        assert_eq!(lay_out(&[512, 512 + 3 * piece], all), (vec![0], 3 * piece as usize));
        assert_eq!(lay_out(&[512, 512 + 30 * piece], all), (vec![0], guess));
        // Going back or staying is damage.
        assert_eq!(lay_out(&[512, 600, 600, 700], all), (vec![0, 88], 88 + guess));
        assert_eq!(lay_out(&[512, 8, 700], all), (vec![0], guess));
    }

    #[test]
    fn a_piece_nobody_shares_gives_its_memory_and_a_shared_one_keeps_it() {
        let lay = |used| Piece::lay_out([0, 200_000].into_iter(), Plan::scan(1), used).unwrap();
        let read = |mut piece: Piece, byte: u8| {
            let fill = |buf: &mut [u8], _| {
                buf.fill(byte);
                Ok(buf.len())
            };
            piece.read(1 << 20, fill).unwrap();
            piece
        };
        let first = read(lay(Piece::default()), 1);
        let memory = first.bytes.as_ptr();
        let second = read(lay(first), 2);
        assert_eq!(second.bytes.as_ptr(), memory);
        let shared = second.bytes.slice(5..10);
        let third = read(lay(second), 3);
        assert_ne!(third.bytes.as_ptr(), memory);
        assert_eq!((&shared[..], third.bytes[7]), (&[2; 5][..], 3));
    }
}
