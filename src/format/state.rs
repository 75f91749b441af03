//! The base: the state of the log so far, as the first frame of every segment carries it.
//!
//! ```text
//!  0                 8                16            24           32          40          44           48
//!  | compacted index | compacted term | first index | next index | last term | pair      | pair bytes | pairs, end to end:
//!  | u64, absent=MAX | u64            | u64, a=MAX  | u64, a=MAX | u64       | count u32 | u32        | key len, value len,
//!                                                                                                       key, value
//! ```
//!
//! followed by zeros to a multiple of 8. Without a compaction point its term is 0. First and next index enclose the live entries; the first one is said because
//! the segments before may be gone, and whether a later truncation or compaction leaves an entry depends on it. The
//! pairs are the hard state, sorted by key. A base needs no checksum of its own: the head of its frame covers it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::{INDEX_MAX, align8, all_zero, index_at, put, put_index, u32_at, u64_at};

/// Bytes of a base before its pairs.
pub const BASE_FIXED_BYTES: u64 = 48;

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
    /// The lowest index that holds an entry; `None` while there is no entry.
    pub first: Option<u64>,
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
        put_index(out, 16, self.first);
        put_index(out, 24, self.next);
        put(out, 32, &self.last_term.to_le_bytes());
        put(out, 40, &(self.hard_state.len() as u32).to_le_bytes());
        put(out, 44, &(self.hard_state_bytes() as u32).to_le_bytes());
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
        let count = u32_at(bytes, 40);
        let pairs_end = BASE_FIXED_BYTES + u64::from(u32_at(bytes, 44));
        if align8(pairs_end) != bytes.len() as u64 || !all_zero(&bytes[pairs_end as usize..]) {
            return None;
        }
        let hard_state = decode_pairs(&bytes[BASE_FIXED_BYTES as usize..pairs_end as usize], count)?;
        let compacted = index_at(bytes, 0).map(|index| (index, u64_at(bytes, 8)));
        if compacted.is_none() && u64_at(bytes, 8) != 0 {
            return None;
        }
        let (first, next) = (index_at(bytes, 16), index_at(bytes, 24));
        let state = State { compacted, first, next, last_term: u64_at(bytes, 32), hard_state: Arc::new(hard_state) };
        state.indexes_fit().then_some(state)
    }

    /// Whether the indexes agree: entries follow the compaction point without a hole, and where there is neither, the
    /// log may go on anywhere.
    fn indexes_fit(&self) -> bool {
        let after_compaction = self.compacted.map(|(index, _)| index.checked_add(1));
        match (self.first, self.next) {
            (Some(first), Some(next)) => {
                first < next && next <= INDEX_MAX + 1 && after_compaction.is_none_or(|start| start == Some(first))
            }
            (None, Some(next)) => next <= INDEX_MAX + 1 && after_compaction == Some(Some(next)),
            (None, None) => after_compaction.is_none(),
            (Some(_), None) => false,
        }
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
            let first = compacted.map(|(index, _)| index + 1).filter(|_| ahead > 1);
            let state = State { compacted, first, next, last_term, hard_state: Arc::new(hard_state) };
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

    #[test]
    fn a_term_without_a_compaction_point_is_no_base() {
        let mut bytes = vec![0; State::default().encoded_bytes() as usize];
        State::default().encode(&mut bytes);
        assert!(State::decode(&bytes).is_some());
        bytes[8] = 1;
        assert_eq!(State::decode(&bytes), None);
    }
}
