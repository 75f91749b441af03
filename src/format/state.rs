//! The base: the state of the log so far, as the first frame of every segment carries it.
//!
//! ```text
//!  0                 8                16           24          32          36           40
//!  | compacted index | compacted term | next index | last term | pair      | pair bytes | pairs, end to end:
//!  | u64, absent=MAX | u64            | u64, a=MAX | u64       | count u32 | u32        | key len, value len, key, value
//! ```
//!
//! followed by zeros to a multiple of 8. The pairs are the hard state, sorted by key. A base needs no checksum of its
//! own: the head of its frame covers it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::{INDEX_MAX, align8, all_zero, index_at, put, put_index, u32_at, u64_at};

/// Bytes of a base before its pairs.
pub const BASE_FIXED_BYTES: u64 = 40;

/// Bytes a pair of hard state takes besides its key and value.
pub const PAIR_HEADER_BYTES: u64 = 8;

/// The most bytes the pairs of the hard state may take together: 64 KiB, or an eighth of a small segment.
pub fn hard_state_bytes_max(segment_bytes: u64) -> u64 {
    (segment_bytes / 8).min(64 << 10)
}

/// The durable small key/values (Raft's vote, commit index), shared so that a roll can take a look without copying.
pub type HardState = Arc<BTreeMap<Bytes, Bytes>>;

/// What the log knows at one point besides the entries themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Index and term of the last compacted entry.
    pub compacted: Option<(u64, u64)>,
    /// Index of the next entry; `None` until the log got its first entry or compaction point.
    pub next: Option<u64>,
    /// Term of the last entry, or of the compaction point if there is none after it, or 0.
    pub last_term: u64,
    /// Hard state.
    pub hard_state: HardState,
}

/// Bytes one pair takes in a base.
pub(crate) fn pair_bytes(key: &[u8], value: &[u8]) -> u64 {
    PAIR_HEADER_BYTES + key.len() as u64 + value.len() as u64
}

impl State {
    /// Bytes of all pairs.
    pub fn hard_state_bytes(&self) -> u64 {
        self.hard_state.iter().map(|(key, value)| pair_bytes(key, value)).sum()
    }

    /// Bytes of the encoded base.
    pub fn encoded_bytes(&self) -> u64 {
        align8(BASE_FIXED_BYTES + self.hard_state_bytes())
    }

    /// Writes the base to `out`, which must be zeroed and exactly [`State::encoded_bytes`] long.
    ///
    /// # Panics
    ///
    /// If `out` is shorter than that.
    pub fn encode(&self, out: &mut [u8]) {
        put_index(out, 0, self.compacted.map(|(index, _)| index));
        put(out, 8, &self.compacted.map_or(0, |(_, term)| term).to_le_bytes());
        put_index(out, 16, self.next);
        put(out, 24, &self.last_term.to_le_bytes());
        put(out, 32, &(self.hard_state.len() as u32).to_le_bytes());
        put(out, 36, &(self.hard_state_bytes() as u32).to_le_bytes());
        let mut at = BASE_FIXED_BYTES as usize;
        for (key, value) in self.hard_state.iter() {
            put(out, at, &(key.len() as u32).to_le_bytes());
            put(out, at + 4, &(value.len() as u32).to_le_bytes());
            put(out, at + 8, key);
            put(out, at + 8 + key.len(), value);
            at += 8 + key.len() + value.len();
        }
    }

    /// Reads a base that fills `bytes`; `None` if it does not fit together.
    pub fn decode(bytes: &[u8]) -> Option<State> {
        if (bytes.len() as u64) < BASE_FIXED_BYTES {
            return None;
        }
        let count = u32_at(bytes, 32);
        let pairs_end = BASE_FIXED_BYTES + u64::from(u32_at(bytes, 36));
        if align8(pairs_end) != bytes.len() as u64 || !all_zero(&bytes[pairs_end as usize..]) {
            return None;
        }
        let hard_state = decode_pairs(&bytes[BASE_FIXED_BYTES as usize..pairs_end as usize], count)?;
        let compacted = index_at(bytes, 0).map(|index| (index, u64_at(bytes, 8)));
        let next = index_at(bytes, 16);
        let plausible = match (compacted, next) {
            (Some((index, _)), Some(next)) => index < next && next <= INDEX_MAX + 1,
            (None, Some(next)) => next <= INDEX_MAX + 1,
            (Some(_), None) => false,
            (None, None) => true,
        };
        plausible.then(|| State { compacted, next, last_term: u64_at(bytes, 24), hard_state: Arc::new(hard_state) })
    }
}

fn decode_pairs(mut bytes: &[u8], count: u32) -> Option<BTreeMap<Bytes, Bytes>> {
    let mut pairs = BTreeMap::new();
    let mut last_key: Option<Bytes> = None;
    for _ in 0..count {
        let (lengths, rest) = bytes.split_at_checked(8)?;
        let (key, rest) = rest.split_at_checked(u32_at(lengths, 0) as usize)?;
        let (value, rest) = rest.split_at_checked(u32_at(lengths, 4) as usize)?;
        bytes = rest;
        let key = Bytes::copy_from_slice(key);
        if last_key.as_ref().is_some_and(|last| *last >= key) {
            return None;
        }
        pairs.insert(key.clone(), Bytes::copy_from_slice(value));
        last_key = Some(key);
    }
    bytes.is_empty().then_some(pairs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_base_reads_back(
            compacted in proptest::option::of((0..1000u64, 0..9u64)),
            ahead in 1..50u64,
            last_term in 0..9u64,
            pairs in proptest::collection::btree_map(
                proptest::collection::vec(any::<u8>(), 0..9), proptest::collection::vec(any::<u8>(), 0..30), 0..6),
        ) {
            let hard_state = pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
            let next = compacted.map(|(index, _)| index + ahead);
            let state = State { compacted, next, last_term, hard_state: Arc::new(hard_state) };
            let mut bytes = vec![0; state.encoded_bytes() as usize];
            state.encode(&mut bytes);
            prop_assert_eq!(State::decode(&bytes), Some(state));
        }

        #[test]
        fn any_bytes_are_safe_to_decode(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(state) = State::decode(&bytes) {
                prop_assert_eq!(state.encoded_bytes(), bytes.len() as u64);
            }
        }
    }
}
