//! What an exploration met, added up over its jobs, in words: many states prove little where nothing happened in them.

use std::fmt::Write as _;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::engine::Summary;
use crate::text::count;

/// Counts by their names, in the order in which they are shown.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Met(Vec<(&'static str, u64)>);

/// How the jobs' counts of one name are put together.
type Fold = fn(u64, u64) -> u64;

const SUM: Fold = |all, one| all + one;

macro_rules! counts {
    ($summary:expr; $($field:ident $fold:ident,)*) => {{
        // Without dots: whoever adds a count to the summary adds it here too.
        let Summary { $($field),* } = $summary;
        [$((stringify!($field), *$field as u64, $fold)),*]
    }};
}

const MOST: Fold = |all, one| if one > all { one } else { all };

/// A summary's counts, in the order in which they are shown.
#[allow(clippy::unnecessary_cast, reason = "one of the counts is of another type")]
fn counts(summary: &Summary) -> impl Iterator<Item = (&'static str, u64, Fold)> {
    counts!(summary;
        histories SUM, lives SUM, steps SUM, batches SUM, refused SUM,
        states SUM, recoveries SUM, crash_points SUM, crash_points_in_recovery SUM, several_in_flight SUM,
        rolling_in_flight SUM, in_flight_max MOST,
        cuts SUM, rewrites SUM, clean_opens SUM,
        torn_absent SUM, torn_head SUM, torn_tail SUM, torn_one_missing SUM, torn_scattered SUM, torn_whole SUM,
        kills SUM, kills_with_queued_writes SUM, poisoned SUM, full SUM, damaged SUM, damage_noticed SUM,
        rolls SUM, sealed SUM, dropped SUM, recycled SUM, marks SUM, truncations SUM, truncations_across SUM,
        lied_to SUM, lies_noticed SUM, short_writes SUM,
        reads SUM, read_only_looks SUM, without_indexes SUM, stale_indexes SUM,
        failing_recoveries SUM, failed_recoveries SUM, failing_housekeeping SUM, relieved SUM, exhausted SUM,
        exhausted_images SUM, real_checks SUM,
    )
    .into_iter()
}

impl Met {
    /// All jobs' summaries in one.
    pub(crate) fn of<'a>(summaries: impl Iterator<Item = &'a Summary>) -> Met {
        let mut all: Vec<_> = counts(&Summary::default()).map(|(name, zero, _)| (name, zero)).collect();
        for summary in summaries {
            for (sum, (_, one, fold)) in all.iter_mut().zip(counts(summary)) {
                sum.1 = fold(sum.1, one);
            }
        }
        Met(all)
    }

    /// What was counted under a name of the summary's; 0 for a name that there is not.
    #[cfg(test)]
    pub(crate) fn count(&self, name: &str) -> u64 {
        self.0.iter().find(|(found, _)| *found == name).map_or(0, |&(_, count)| count)
    }

    /// Three counts a line.
    pub(crate) fn table(&self) -> String {
        let mut table = String::new();
        for line in self.0.chunks(3) {
            for (name, number) in line {
                // Writing to a string cannot fail.
                let _ = write!(table, "{:>12} {:<26}", count(*number), name.replace('_', " "));
            }
            table.truncate(table.trim_end().len());
            table.push('\n');
        }
        table
    }
}

impl Serialize for Met {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, count) in &self.0 {
            map.serialize_entry(name, count)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_add_up_and_the_most_is_the_most() {
        let one = Summary { states: 10, in_flight_max: 4, ..Summary::default() };
        let other = Summary { states: 5, in_flight_max: 3, ..Summary::default() };
        let met = Met::of([&one, &other].into_iter());
        assert_eq!((met.count("states"), met.count("in_flight_max"), met.count("rolls")), (15, 4, 0));
        let json = serde_json::to_value(&met).unwrap();
        assert_eq!(json["states"], 15);
        assert!(met.table().lines().all(|line| line.chars().count() <= 120));
    }
}
