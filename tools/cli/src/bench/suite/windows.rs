//! Windows of entries, around rolls and away from them. Pure.
//!
//! Entries are named by their places from 0 in the order of the log; a roll is the place of the first entry of a new
//! segment.

use std::ops::Range;

use crate::bench::payload::next_random;

/// One window of `size` entries centred on each roll; rolls too close to an end of the log get none.
pub(crate) fn around(rolls: &[u64], size: u64, entries: u64) -> Vec<Range<u64>> {
    let window = |&roll: &u64| {
        let start = roll.checked_sub(size / 2)?;
        Some(start..start + size).filter(|window| window.end <= entries)
    };
    rolls.iter().filter_map(window).collect()
}

/// At most `count` windows of `size` entries, one in each stretch between two rolls, at a place that looks random and
/// is the same every time. None touches a roll's own window.
pub(crate) fn away(rolls: &[u64], size: u64, entries: u64, count: usize) -> Vec<Range<u64>> {
    let starts = std::iter::once(0).chain(rolls.iter().map(|roll| roll + size));
    let ends = rolls.iter().map(|roll| roll.saturating_sub(size)).chain(std::iter::once(entries));
    let mut state = 1;
    let window = |(start, end): (u64, u64)| {
        let room = end.checked_sub(start + size)?;
        let start = start + next_random(&mut state) % (room + 1);
        Some(start..start + size)
    };
    starts.zip(ends).filter_map(window).take(count).collect()
}

/// The largest value in each window.
pub(crate) fn slowest(latencies_ns: &[u64], windows: &[Range<u64>]) -> Vec<u64> {
    let slowest = |window: &Range<u64>| {
        latencies_ns.get(window.start as usize..window.end as usize).and_then(|window| window.iter().max().copied())
    };
    windows.iter().filter_map(slowest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_roll_is_in_the_middle_of_its_window() {
        assert_eq!(around(&[100, 300], 8, 400), [96..104, 296..304]);
        assert_eq!(around(&[3, 100, 200, 397], 8, 400), [96..104, 196..204], "the first and the last do not fit");
    }

    #[test]
    fn windows_away_from_rolls_overlap_no_window_of_a_roll() {
        let rolls = (1..=100).map(|nth| nth * 1000).collect::<Vec<_>>();
        let (size, entries) = (160, 101_000);
        let (at, away) = (around(&rolls, size, entries), away(&rolls, size, entries, 100));
        assert_eq!((at.len(), away.len()), (100, 100));
        for window in &away {
            assert!(window.end - window.start == size && window.end <= entries);
            assert!(at.iter().all(|roll| window.end <= roll.start || roll.end <= window.start), "{window:?}");
        }
        assert!(away.iter().any(|window| window.start % 1000 != away[0].start % 1000), "always at the same place");
    }

    #[test]
    fn rolls_too_close_together_leave_no_room_between_them() {
        let away = away(&[100, 110, 120], 50, 130, 9);
        assert!(away.len() == 1 && away[0] == (0..50), "{away:?}");
    }

    #[test]
    fn the_slowest_of_a_window_is_found() {
        let latencies = [1, 9, 2, 3, 8, 1];
        assert_eq!(slowest(&latencies, &[0..2, 2..4, 3..6, 4..7]), [9, 3, 8], "the last one is not there as a whole");
    }
}
