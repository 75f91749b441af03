//! The suite's result: a table of at most 120 columns for people, JSON for programs.

use std::fmt::Write as _;

use serde::Serialize;

use crate::bench::suite::row::{Finished, Verdict};

/// Widths of the first three columns; the verdicts take what is left.
const NAME: usize = 24;
const BAR: usize = 44;
const FIGURE: usize = 43;

/// Everything that is told about a run of the suite.
#[derive(Debug, Serialize)]
pub(crate) struct SuiteReport {
    pub(crate) version: &'static str,
    pub(crate) file_system: String,
    pub(crate) cpus: usize,
    pub(crate) seconds: u32,
    pub(crate) open_bytes: u64,
    pub(crate) rows: Vec<Finished>,
}

impl SuiteReport {
    /// How many lines ended so.
    pub(crate) fn count(&self, verdict: Verdict) -> usize {
        self.rows.iter().flat_map(|row| &row.lines).filter(|line| line.verdict == verdict).count()
    }

    /// The table.
    pub(crate) fn table(&self) -> String {
        let mut table = String::from("\n");
        line(&mut table, ["row", "bar", "figure", "verdict"]);
        for row in self.rows.iter().flat_map(|row| &row.lines) {
            line(&mut table, [&row.name, &row.bar, &row.figure, word(row.verdict)]);
        }
        let counts = [Verdict::Met, Verdict::Missed, Verdict::Skipped, Verdict::Failed];
        let counts = counts.map(|verdict| format!("{} {}", self.count(verdict), word(verdict)));
        let _ = writeln!(table, "\n{}, on {} with {} CPUs", counts.join(", "), self.file_system, self.cpus);
        table
    }
}

fn line(table: &mut String, [name, bar, figure, verdict]: [&str; 4]) {
    let [name, bar, figure] = [(name, NAME), (bar, BAR), (figure, FIGURE)].map(|(text, width)| cut(text, width - 1));
    let _ = writeln!(table, "{name:<NAME$}{bar:<BAR$}{figure:<FIGURE$}{verdict}");
}

/// What does not fit ends in dots; the JSON has it whole.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.into();
    }
    text.chars().take(width - 3).chain("...".chars()).collect()
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Met => "met",
        Verdict::Missed => "MISSED",
        Verdict::Skipped => "skipped",
        Verdict::Failed => "FAILED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::suite::row::Line;

    fn report() -> SuiteReport {
        let line = |verdict, figure: &str| Line {
            name: "a-row-with-a-long-name".into(),
            bar: "as long as the longest bar that there is now".into(),
            figure: figure.into(),
            verdict,
        };
        let lines = vec![line(Verdict::Met, "1.00 x"), line(Verdict::Skipped, &"no place, ".repeat(20))];
        let rows = vec![Finished { name: "a-row".into(), lines, raw: serde_json::Value::Null }];
        SuiteReport { version: "0", file_system: "ext4".into(), cpus: 2, seconds: 1, open_bytes: 1, rows }
    }

    #[test]
    fn no_line_is_longer_than_120_columns() {
        let table = report().table();
        assert!(table.lines().all(|line| line.chars().count() <= 120), "{table}");
        assert!(table.contains("a-row-with-a-long-name") && table.contains("..."), "{table}");
    }

    #[test]
    fn verdicts_are_counted() {
        let report = report();
        assert_eq!((report.count(Verdict::Met), report.count(Verdict::Failed)), (1, 0));
        assert!(report.table().contains("1 met, 0 MISSED, 1 skipped, 0 FAILED, on ext4"));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["rows"][0]["lines"][1]["verdict"], "skipped");
    }
}
