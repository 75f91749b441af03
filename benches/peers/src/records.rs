//! What is written to stores: records of a key and a value, each of which says what its value has to be.
//!
//! A key is random and yet new: eight bytes that look random, then the producer and the number of its record, four
//! bytes each. The value is the random sequence that the first eight bytes stand for. So no engine gains by compressing
//! or by keys that come in order, and whoever reads a record back can tell whether its value is the one written.

use anyhow::{Context, Result, ensure};
use bytes::{BufMut, Bytes, BytesMut};

use crate::load::{PIECE_BYTES, next_random};

/// Bytes of a key.
pub(crate) const KEY_BYTES: usize = 16;

/// Makes the records of one producer: each a key with its value behind it.
#[derive(Debug)]
pub(crate) struct Records {
    producer: u32,
    next_number: u32,
    value_bytes: usize,
    piece: BytesMut,
    state: u64,
}

impl Records {
    /// Records with values of this size; another producer gets others.
    pub(crate) fn new(producer: usize, value_bytes: usize) -> Records {
        let (producer, state) = (producer as u32, producer as u64);
        Records { producer, next_number: 0, value_bytes, piece: BytesMut::new(), state }
    }

    /// The next record.
    pub(crate) fn make(&mut self) -> Bytes {
        let bytes = KEY_BYTES + self.value_bytes;
        if self.piece.capacity() < bytes {
            self.piece = BytesMut::with_capacity(bytes.max(PIECE_BYTES));
        }
        let seed = next_random(&mut self.state);
        self.piece.put_u64(seed);
        self.piece.put_u32(self.producer);
        self.piece.put_u32(self.next_number);
        self.next_number += 1;
        put_value(&mut self.piece, seed, self.value_bytes);
        self.piece.split_to(bytes).freeze()
    }
}

/// The value that belongs to a key with this start.
fn put_value(to: &mut BytesMut, seed: u64, bytes: usize) {
    let (mut state, mut left) = (seed, bytes);
    while left > 0 {
        let word = next_random(&mut state).to_le_bytes();
        let part = &word[..left.min(word.len())];
        to.put_slice(part);
        left -= part.len();
    }
}

/// A record's key and its value.
pub(crate) fn parts(record: &[u8]) -> (&[u8], &[u8]) {
    record.split_at(KEY_BYTES.min(record.len()))
}

/// An error unless this is the value that was written with this key.
pub(crate) fn check(key: &[u8], value: &[u8]) -> Result<()> {
    let seed = key.first_chunk().filter(|_| key.len() == KEY_BYTES).context("a key was found that nobody wrote")?;
    let mut written = BytesMut::new();
    put_value(&mut written, u64::from_be_bytes(*seed), value.len());
    ensure!(written == value, "the value of key {key:02x?} is not the one that was written");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn keys_are_new_and_their_values_can_be_told_from_others() {
        let mut keys = HashSet::new();
        for producer in 0..3 {
            let mut records = Records::new(producer, 100);
            for _ in 0..1000 {
                let record = records.make();
                let (key, value) = parts(&record);
                assert!(keys.insert(key.to_vec()) && value.len() == 100);
                check(key, value).unwrap();
            }
        }
    }

    #[test]
    fn a_damaged_record_is_noticed() {
        let record = Records::new(0, 100).make();
        for at in [0, 7, KEY_BYTES, KEY_BYTES + 99] {
            let mut damaged = record.to_vec();
            damaged[at] ^= 1;
            let (key, value) = parts(&damaged);
            assert!(check(key, value).is_err(), "byte {at}");
        }
        assert!(check(&record[..8], &record[KEY_BYTES..]).is_err());
    }
}
