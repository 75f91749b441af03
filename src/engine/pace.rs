//! How fast a spare segment is filled with zeros beside a log that is being appended to.
//!
//! The spare is needed when the active segment is full. Filling it at once and as fast as the device goes would make
//! every append of that time wait behind large writes; filling it too slowly would make appends wait for the segment.
//! So the filling keeps ahead of the appends by a fixed factor: it is done when the active segment is filled to one
//! part in [`LEAD`]. Where it is ahead it takes small pieces and rests; where it is behind, or nobody would notice, it
//! takes large ones and does not.
//!
//! Pure: a decision from numbers.

/// The spare is ready when this part (one in so many) of the active segment is used.
const LEAD: u64 = 2;

/// Nothing is done before this part of the active segment is used: so many frames after a roll, nobody can tell.
const START: u64 = 32;

/// Behind by this part of a segment, it hurries.
const FAR: u64 = 16;

/// A piece of zeros where appends are under way, in bytes: a write of this size costs the device little more than a
/// small one.
const PIECE_GENTLE_BYTES: usize = 128 << 10;

/// A piece of zeros where nobody would notice, or everybody waits. Larger ones were no faster here.
pub(crate) const PIECE_BYTES: usize = 1 << 20;

/// What the appends are doing, as far as the filling of a spare is concerned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Appends {
    /// Something is accepted and not yet durable.
    pub(crate) are_under_way: bool,
    /// Callers wait for room.
    pub(crate) wait_for_room: bool,
    /// How much of the active segment is used, in bytes.
    pub(crate) used_bytes: u64,
}

/// What the filling does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Write a piece of at most so many bytes.
    Write(usize),
    /// It is ahead: look again in a moment.
    Rest,
}

/// Decides after `filled_bytes` of `segment_bytes`.
pub(crate) fn pace(filled_bytes: u64, segment_bytes: u64, appends: &Appends) -> Pace {
    if !appends.are_under_way || appends.wait_for_room {
        return Pace::Write(PIECE_BYTES);
    }
    if filled_bytes == 0 && appends.used_bytes < segment_bytes / START {
        return Pace::Rest;
    }
    let due_bytes = appends.used_bytes.saturating_mul(LEAD).min(segment_bytes);
    match due_bytes.saturating_sub(filled_bytes) {
        // Far behind: this device or these appends are so fast that gentleness would not help.
        behind if behind >= segment_bytes / FAR => Pace::Write(PIECE_BYTES),
        behind if behind >= PIECE_GENTLE_BYTES as u64 || due_bytes == segment_bytes => Pace::Write(PIECE_GENTLE_BYTES),
        _ => Pace::Rest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 64 << 20;

    fn busy(used_bytes: u64) -> Appends {
        Appends { are_under_way: true, wait_for_room: false, used_bytes }
    }

    #[test]
    fn it_is_done_when_half_of_the_active_segment_is_used() {
        for used in (0..=SEGMENT).step_by(1 << 20) {
            let mut filled = 0;
            while let Pace::Write(bytes) = pace(filled, SEGMENT, &busy(used)) {
                filled = (filled + bytes as u64).min(SEGMENT);
                if filled == SEGMENT {
                    break;
                }
            }
            let due = if used < SEGMENT / START { 0 } else { (used * LEAD).min(SEGMENT) };
            assert!(
                (due..due + 2 * PIECE_GENTLE_BYTES as u64).contains(&(filled + PIECE_GENTLE_BYTES as u64))
                    || filled == due
            );
        }
    }

    #[test]
    fn it_does_not_rest_while_callers_wait_or_nobody_appends() {
        for used_bytes in [0, SEGMENT] {
            for filled in [0, SEGMENT - 1] {
                let waiting = Appends { wait_for_room: true, ..busy(used_bytes) };
                let idle = Appends { are_under_way: false, ..busy(used_bytes) };
                assert_eq!(pace(filled, SEGMENT, &waiting), Pace::Write(PIECE_BYTES));
                assert_eq!(pace(filled, SEGMENT, &idle), Pace::Write(PIECE_BYTES));
            }
        }
    }

    #[test]
    fn pieces_are_small_beside_appends_and_large_when_far_behind() {
        assert_eq!(pace(SEGMENT / 2, SEGMENT, &busy(SEGMENT / 4 + (1 << 20))), Pace::Write(PIECE_GENTLE_BYTES));
        assert_eq!(pace(SEGMENT - 4096, SEGMENT, &busy(SEGMENT)), Pace::Write(PIECE_GENTLE_BYTES), "the last piece");
        assert_eq!(pace(SEGMENT / 2, SEGMENT, &busy(SEGMENT / 2)), Pace::Write(PIECE_BYTES));
    }
}
