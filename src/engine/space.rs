//! How far into a segment a frame may reach, so that space is promised only where it is.
//!
//! The end of the last segment is kept back until a spare stands behind it: without this, a full disk could not even
//! record the compaction that would free it.
//!
//! ```text
//! | header | ... anything ...                | 6 blocks: marks, hard state, compaction | 2 blocks: open, freeing |
//!                                   data ends ^ unless a spare stands behind                                      ^ segment ends
//! ```

use crate::plant::{Plant, planted};

/// Blocks at the end of a segment that take no entries while no spare stands behind it.
pub(crate) const RESERVE_BLOCKS: u64 = 8;

/// Blocks of those that only take an open frame, or a compaction that lets a segment go.
pub(crate) const LAST_BLOCKS: u64 = 2;

const _: () = assert!(LAST_BLOCKS < RESERVE_BLOCKS && RESERVE_BLOCKS < crate::format::segment::SEGMENT_BLOCKS_MIN);

/// What a frame is, as far as its right to space goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// Entries and truncations.
    Data,
    /// Hard state, compactions that free nothing, marks.
    Small,
    /// Open frames, and compactions that let a segment go.
    Vital,
}

/// The byte in a segment up to which frames of a class may reach.
pub(crate) fn limit(class: Class, segment_bytes: u64, block_bytes: u32, spare_behind: bool) -> u64 {
    let kept_back = match class {
        _ if spare_behind || planted(Plant::ReserveNotKept) => 0,
        Class::Data => RESERVE_BLOCKS,
        Class::Small => LAST_BLOCKS,
        Class::Vital => 0,
    };
    segment_bytes.saturating_sub(kept_back * u64::from(block_bytes))
}

/// The most bytes that the operations of one batch may take: what fits an empty segment behind which no spare stands,
/// however large the base is.
pub(crate) fn batch_bytes_max(segment_bytes: u64, block_bytes: u32) -> u64 {
    use crate::format::{align8, frame::HEAD_BYTES, state};
    let base_max = align8(state::BASE_FIXED_BYTES + state::hard_state_bytes_max(segment_bytes));
    segment_bytes.saturating_sub((1 + RESERVE_BLOCKS) * u64::from(block_bytes) + HEAD_BYTES as u64 + base_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_falls_away_when_a_spare_stands_behind() {
        let limits = |spare| [Class::Data, Class::Small, Class::Vital].map(|class| limit(class, 65536, 4096, spare));
        assert_eq!(limits(false), [32768, 57344, 65536]);
        assert_eq!(limits(true), [65536; 3]);
    }

    #[test]
    fn the_smallest_segment_takes_a_batch_of_some_size() {
        for block in [512u32, 4096, 65536] {
            let segment = crate::format::segment::SEGMENT_BLOCKS_MIN * u64::from(block);
            assert!(batch_bytes_max(segment, block) > 8 * u64::from(block));
        }
    }
}
