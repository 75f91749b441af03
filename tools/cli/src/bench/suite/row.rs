//! What a row of the suite is, and what becomes of it.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use crate::args::BenchArgs;

/// A row: one thing that is run, and the lines it gives to the table.
pub(crate) struct Row {
    /// What it is asked for by.
    pub(crate) name: String,
    pub(crate) bars: Vec<Bar>,
    pub(crate) run: RunRow,
}

/// Measures a row in a directory of its own that is not there yet.
pub(crate) type RunRow = Box<dyn Fn(&Site<'_>) -> Result<Outcome>>;

/// What one line of the table has to reach.
#[derive(Clone, Debug)]
pub(crate) struct Bar {
    /// Name of the line.
    pub(crate) name: String,
    pub(crate) bar: String,
}

/// Where and how a row is run.
pub(crate) struct Site<'a> {
    pub(crate) args: &'a BenchArgs,
    /// The row's directory; not there yet.
    pub(crate) dir: &'a Path,
}

/// What became of a row.
pub(crate) enum Outcome {
    /// One per line, and all there is to know.
    Measured(Vec<Judged>, Value),
    /// Why it could not be run here.
    Skipped(String),
}

/// A figure against its bar.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Judged {
    pub(crate) figure: String,
    pub(crate) verdict: Verdict,
}

/// How a line ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Met,
    Missed,
    Skipped,
    /// It could not be measured, or the check after it found something missing.
    Failed,
}

impl Judged {
    /// Met or missed. A figure that is not a number meets nothing, as it compares with none.
    pub(crate) fn new(met: bool, figure: String) -> Judged {
        Judged { figure, verdict: if met { Verdict::Met } else { Verdict::Missed } }
    }
}

/// A line of the table.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) bar: String,
    /// The figure, or why there is none.
    pub(crate) figure: String,
    pub(crate) verdict: Verdict,
}

/// A row that was run.
#[derive(Debug, Serialize)]
pub(crate) struct Finished {
    pub(crate) name: String,
    pub(crate) lines: Vec<Line>,
    /// All figures of the row; null where there are none.
    pub(crate) raw: Value,
}

impl Row {
    /// Runs the row; a failure is a verdict of all its lines.
    pub(crate) fn finish(&self, outcome: Result<Outcome>) -> Finished {
        let all = |verdict, why: String| vec![Judged { figure: why, verdict }; self.bars.len()];
        let (judged, raw) = match outcome {
            Ok(Outcome::Measured(judged, raw)) => (judged, raw),
            Ok(Outcome::Skipped(why)) => (all(Verdict::Skipped, why), Value::Null),
            Err(error) => (all(Verdict::Failed, crate::text::one_line(&format!("{error:#}"))), Value::Null),
        };
        let lines = self.bars.iter().zip(judged).map(|(bar, judged)| Line {
            name: bar.name.clone(),
            bar: bar.bar.clone(),
            figure: judged.figure,
            verdict: judged.verdict,
        });
        Finished { name: self.name.clone(), lines: lines.collect(), raw }
    }
}

/// The rows that a list asks for: an item that is a row's whole name means that row, any other means all rows whose
/// name has it in it. An empty list means all rows.
pub(crate) fn choose(rows: Vec<Row>, wanted: &[String]) -> Result<Vec<Row>> {
    let names = rows.iter().map(|row| row.name.clone()).collect::<Vec<_>>();
    let means = |item: &str, name: &str| {
        if names.iter().any(|whole| whole == item) { name == item } else { name.contains(item) }
    };
    for item in wanted {
        let known = names.iter().any(|name| means(item, name));
        anyhow::ensure!(known, "no row of the suite is called '{item}': there are {}", names.join(", "));
    }
    let chosen = |row: &Row| wanted.is_empty() || wanted.iter().any(|item| means(item, &row.name));
    Ok(rows.into_iter().filter(chosen).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Row> {
        let row = |name: &str| Row {
            name: name.into(),
            bars: ["cold", "warm"].map(|line| Bar { name: line.into(), bar: "<= 1".into() }).to_vec(),
            run: Box::new(|_| Ok(Outcome::Skipped("never run".into()))),
        };
        ["batch-100", "batch-1000", "get", "tmpfs-spin"].map(row).into()
    }

    fn chosen(wanted: &[&str]) -> Vec<String> {
        let wanted = wanted.iter().map(|&item| item.into()).collect::<Vec<_>>();
        choose(rows(), &wanted).unwrap().into_iter().map(|row| row.name).collect()
    }

    #[test]
    fn rows_are_chosen_by_name_or_by_a_part_of_it() {
        assert_eq!(chosen(&[]).len(), 4);
        assert_eq!(chosen(&["batch-100"]), ["batch-100"]);
        assert_eq!(chosen(&["batch"]), ["batch-100", "batch-1000"]);
        assert_eq!(chosen(&["spin", "get"]), ["get", "tmpfs-spin"]);
        let error = choose(rows(), &["gte".into()]).err().unwrap().to_string();
        assert!(error.contains("'gte'") && error.contains("tmpfs-spin"), "{error}");
    }

    #[test]
    fn what_was_not_measured_says_so_in_every_line() {
        let row = rows().remove(0);
        let skipped = row.finish(Ok(Outcome::Skipped("no tmpfs".into())));
        assert!(skipped.lines.iter().all(|line| line.verdict == Verdict::Skipped && line.figure == "no tmpfs"));
        let failed = row.finish(Err(anyhow::anyhow!("an entry\nis missing").context("check")));
        assert_eq!(failed.lines.len(), 2);
        assert!(failed.lines.iter().all(|line| line.verdict == Verdict::Failed));
        assert_eq!(failed.lines[0].figure, "check: an entry is missing");
    }
}
