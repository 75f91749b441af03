//! What a crash leaves of one write: the class of an interrupted write, down to its 512-byte units.
//!
//! Units are cut at multiples of 512 of the *file* offset, as a disk cuts its sectors, not of the write's start.

use std::ops::Range;

use super::rng::Rng;

/// The bytes that a disk writes whole or not at all.
pub const UNIT_BYTES: usize = 512;

/// Which units of a write survive a crash. For what has no units (sizes and names): anything but `Absent` keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Class {
    /// Nothing of it.
    Absent,
    /// Its first unit only.
    Head,
    /// All but its first unit.
    Tail,
    /// All but the unit of this number, counted from zero; a number past the end misses nothing.
    OneMissing(usize),
    /// All of it.
    Whole,
    /// A random subset, fixed by this seed.
    Scattered(u64),
    /// Exactly the units marked `true`; units past the end of the list are lost.
    Units(Vec<bool>),
}

impl Class {
    /// Whether the given unit survives.
    pub fn keeps(&self, unit: usize) -> bool {
        match self {
            Class::Absent => false,
            Class::Head => unit == 0,
            Class::Tail => unit != 0,
            Class::OneMissing(missing) => unit != *missing,
            Class::Whole => true,
            Class::Scattered(seed) => Rng::new(seed ^ (unit as u64 / 64)).next_u64() >> (unit % 64) & 1 == 1,
            Class::Units(kept) => kept.get(unit).copied().unwrap_or(false),
        }
    }

    /// The classes worth trying on a write of so many units, without those that come to the same; `missing` picks the
    /// unit that [`Class::OneMissing`] loses (modulo the units that neither head nor tail test).
    pub fn usual(units: usize, missing: usize) -> Vec<Class> {
        match units {
            0 | 1 => vec![Class::Absent, Class::Whole],
            2 => vec![Class::Absent, Class::Head, Class::Tail, Class::Whole],
            _ => {
                let one = Class::OneMissing(1 + missing % (units - 1));
                vec![Class::Absent, Class::Head, Class::Tail, one, Class::Whole]
            }
        }
    }

    /// A random class: half of the time all or nothing, which is what most writes of a real crash come to.
    pub fn random(units: usize, rng: &mut Rng) -> Class {
        match rng.below(8) {
            0 | 1 => Class::Absent,
            2 | 3 => Class::Whole,
            _ if units < 2 => [Class::Absent, Class::Whole][rng.below(2)].clone(),
            4 => Class::Head,
            5 => Class::Tail,
            6 => Class::OneMissing(rng.below(units)),
            _ => Class::Scattered(rng.next_u64()),
        }
    }

    /// The byte ranges, relative to the write's start, that survive of a write of `bytes` at `offset`: adjoining units
    /// make one range.
    pub(super) fn runs(&self, offset: u64, bytes: usize) -> Vec<Range<usize>> {
        match self {
            Class::Absent => return Vec::new(),
            Class::Whole if bytes > 0 => return std::iter::once(0..bytes).collect(),
            _ => {}
        }
        let into_unit = (offset % UNIT_BYTES as u64) as usize;
        let mut runs: Vec<Range<usize>> = Vec::new();
        for unit in (0..units_of(offset, bytes)).filter(|&unit| self.keeps(unit)) {
            let start = (unit * UNIT_BYTES).saturating_sub(into_unit);
            let end = ((unit + 1) * UNIT_BYTES - into_unit).min(bytes);
            match runs.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => runs.push(start..end),
            }
        }
        runs
    }
}

/// How many units a write of `bytes` at `offset` touches.
pub(super) fn units_of(offset: u64, bytes: usize) -> usize {
    ((offset % UNIT_BYTES as u64) as usize + bytes).div_ceil(UNIT_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_follow_the_file_s_units() {
        let runs = |class: Class, offset, bytes| -> Vec<(usize, usize)> {
            class.runs(offset, bytes).into_iter().map(|run| (run.start, run.end)).collect()
        };
        assert_eq!(runs(Class::Head, 0, 2048), [(0, 512)]);
        assert_eq!(runs(Class::Tail, 0, 2048), [(512, 2048)]);
        assert_eq!(runs(Class::OneMissing(1), 4096, 2048), [(0, 512), (1024, 2048)]);
        assert_eq!(runs(Class::Head, 500, 100), [(0, 12)], "the first unit ends at file offset 512");
        assert_eq!(runs(Class::Tail, 500, 100), [(12, 100)]);
        assert_eq!(runs(Class::Units(vec![true, true]), 0, 2048), [(0, 1024)]);
        assert_eq!((units_of(500, 100), units_of(0, 512)), (2, 1));
        assert!(Class::Whole.runs(0, 0).is_empty() && Class::Absent.runs(0, 512).is_empty());
    }

    #[test]
    fn a_scattered_class_is_fixed_by_its_seed_and_keeps_about_half() {
        let class = Class::Scattered(7);
        let kept = (0..2048).filter(|&unit| class.keeps(unit)).count();
        assert!((900..1150).contains(&kept), "{kept} of 2048 units kept");
        assert_eq!(class.runs(0, 1 << 20), Class::Scattered(7).runs(0, 1 << 20));
    }
}
