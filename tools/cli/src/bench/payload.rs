//! What an entry of the bench holds, so that it can be told from every other one afterwards.
//!
//!   0                                   8
//!   | producer (16 bits) | number (48)  | fill ...            |
//!
//! The first eight bytes, little-endian, name the entry: which producer made it, and as its how-many-th. The fill is a
//! piece of a pseudo-random pool chosen by that name, so an altered byte or a fill of another entry does not pass.
//! Pure; the pool is the only memory.

use bytes::{Bytes, BytesMut};

/// Producers that can be told apart.
pub(crate) const PRODUCERS_MAX: u32 = 1 << 16;
const NUMBER_BITS: u32 = 48;
const NAME_BYTES: usize = 8;
/// Places in the pool where a fill may begin, eight bytes apart: small enough to stay in a cache of a core.
const PLACES: usize = 4096;
/// Payloads are cut from pieces of this size, so that making one costs a copy and no allocation of its own.
const PIECE_BYTES: usize = 64 << 10;

/// Makes and checks payloads of one size.
#[derive(Clone, Debug)]
pub(crate) struct Payloads {
    pool: Bytes,
    payload_bytes: usize,
    piece: BytesMut,
}

/// Why a payload is not what was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Altered {
    /// Another size than every payload of the run.
    Size,
    /// The fill does not belong to the name.
    Fill,
}

impl Payloads {
    /// Payloads of `payload_bytes` (at least 8) whose fill depends on `seed`.
    pub(crate) fn new(payload_bytes: usize, seed: u64) -> Payloads {
        let mut state = seed;
        let words = (payload_bytes / 8) + PLACES + 1;
        let pool = (0..words).flat_map(|_| next_random(&mut state).to_le_bytes()).collect::<Vec<u8>>();
        Payloads { pool: pool.into(), payload_bytes: payload_bytes.max(NAME_BYTES), piece: BytesMut::new() }
    }

    /// Size of every payload.
    pub(crate) fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }

    /// The payload of a producer's `number`-th entry.
    pub(crate) fn make(&mut self, producer: u32, number: u64) -> Bytes {
        let name = name(producer, number);
        if self.piece.capacity() < self.payload_bytes {
            self.piece = BytesMut::with_capacity(self.payload_bytes.max(PIECE_BYTES));
        }
        self.piece.extend_from_slice(&name.to_le_bytes());
        self.piece.extend_from_slice(fill(&self.pool, name, self.payload_bytes));
        self.piece.split_to(self.payload_bytes).freeze()
    }

    /// Who made a payload and as which number, if it is exactly what was made.
    pub(crate) fn check(&self, payload: &[u8]) -> Result<(u32, u64), Altered> {
        let (head, rest) = payload.split_first_chunk::<NAME_BYTES>().ok_or(Altered::Size)?;
        if payload.len() != self.payload_bytes {
            return Err(Altered::Size);
        }
        let name = u64::from_le_bytes(*head);
        if rest != fill(&self.pool, name, self.payload_bytes) {
            return Err(Altered::Fill);
        }
        Ok(((name >> NUMBER_BITS) as u32, name & ((1 << NUMBER_BITS) - 1)))
    }
}

fn name(producer: u32, number: u64) -> u64 {
    debug_assert!(producer < PRODUCERS_MAX && number < 1 << NUMBER_BITS);
    (u64::from(producer) << NUMBER_BITS) | number
}

fn fill(pool: &[u8], name: u64, payload_bytes: usize) -> &[u8] {
    let mut state = name;
    let start = 8 * (next_random(&mut state) as usize % PLACES);
    &pool[start..start + payload_bytes - NAME_BYTES]
}

/// SplitMix64: every state gives another value, and neighbours share nothing.
pub(crate) fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_passes_and_names_its_maker() {
        for size in [8, 9, 16, 128, 1000, 16384, 200_000] {
            let mut payloads = Payloads::new(size, 7);
            for (producer, number) in [(0, 0), (3, 1), (65535, (1 << 48) - 1)] {
                let payload = payloads.make(producer, number);
                assert_eq!(payload.len(), size);
                assert_eq!(payloads.check(&payload), Ok((producer, number)));
            }
        }
    }

    #[test]
    fn every_altered_byte_shows_as_altered_or_as_another_entry() {
        let mut payloads = Payloads::new(64, 7);
        let payload = payloads.make(5, 99);
        for at in 0..payload.len() {
            let mut damaged = payload.to_vec();
            damaged[at] ^= 0x10;
            assert_ne!(payloads.check(&damaged), Ok((5, 99)), "byte {at}");
        }
        assert_eq!(payloads.check(&payload[..63]), Err(Altered::Size));
        assert_eq!(payloads.check(&[]), Err(Altered::Size));
    }

    #[test]
    fn another_run_has_another_fill() {
        let payload = Payloads::new(64, 7).make(5, 99);
        assert_eq!(Payloads::new(64, 8).check(&payload), Err(Altered::Fill));
    }
}
