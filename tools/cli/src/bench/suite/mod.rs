//! `ringwal bench --suite`: the whole table of loads in one go, each against its bar.
//!
//! - `row`: what a row is, and which ones were asked for
//! - `append`: the rows that are ordinary benches; `rolling`, with `windows`: segments that end
//! - `get`, `scan`, `open`: reading and opening; `fill`: the logs for that; `child`: processes of their own
//! - `snapshot`: snapshots beside writers, and beside the `zstd` tool
//! - `table`: what is shown
//!
//! Every row works in a directory of its own, which is gone before the next one starts. A missed bar is a result; a row
//! that cannot be measured, or whose log lost something, fails the suite once all others are done.

mod append;
pub(crate) mod child;
mod fill;
mod get;
mod open;
mod rolling;
mod row;
mod scan;
pub(crate) mod snapshot;
mod table;
mod windows;

use std::path::Path;

use anyhow::{Result, ensure};

use crate::args::BenchArgs;
use crate::bench::place::Root;
use crate::bench::suite::row::{Finished, Row, Site, Verdict, choose};
use crate::bench::suite::table::SuiteReport;
use crate::bench::{counters, report};
use crate::interrupt;
use crate::output;

/// Runs the rows that were asked for and shows the table.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    let rows = choose(all_rows(), &args.rows)?;
    let json_file = output::open_json(args.json.as_deref())?;
    let root = Root::take(args.dir.as_deref())?;
    let file_system = counters::file_system(root.path());
    eprintln!("logs in {} ({file_system}), removed afterwards", root.path().display());
    let mut suite = SuiteReport {
        version: env!("CARGO_PKG_VERSION"),
        file_system,
        cpus: report::cpus(),
        seconds: args.seconds,
        open_bytes: args.open_bytes,
        rows: Vec::new(),
    };
    for row in &rows {
        suite.rows.push(run_row(row, args, root.path())?);
    }
    output::publish(&suite, || suite.table(), args.json.as_deref(), json_file)?;
    all_measured(&suite)
}

/// A missed bar is a result, and no error.
fn all_measured(suite: &SuiteReport) -> Result<()> {
    let failed = suite.count(Verdict::Failed);
    ensure!(failed == 0, "{failed} lines of the suite FAILED: they could not be measured, or entries are missing");
    Ok(())
}

/// All rows, in the table's order.
fn all_rows() -> Vec<Row> {
    let mut rows = append::on_disk();
    rows.push(rolling::row());
    rows.extend(append::in_memory());
    rows.push(get::row());
    rows.extend(scan::rows());
    rows.extend(open::rows());
    rows.extend(snapshot::rows());
    rows
}

fn run_row(row: &Row, args: &BenchArgs, root: &Path) -> Result<Finished> {
    interrupt::check()?;
    eprintln!("\n{}", row.name);
    let dir = root.join(&row.name);
    let outcome = (row.run)(&Site { args, dir: &dir });
    if let Err(error) = &outcome
        && error.is::<interrupt::Interrupted>()
    {
        return Err(interrupt::Interrupted.into());
    }
    let finished = row.finish(outcome);
    for line in &finished.lines {
        eprintln!("  {}: {} (bar {}): {:?}", line.name, line.figure, line.bar, line.verdict);
    }
    Ok(finished)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::suite::row::{Judged, Outcome};

    #[test]
    fn only_what_could_not_be_measured_or_checked_fails_the_suite() {
        let row = || append::on_disk().remove(0);
        let missed = row().finish(Ok(Outcome::Measured(vec![Judged::new(false, "9 x".into())], serde_json::json!({}))));
        let skipped = row().finish(Ok(Outcome::Skipped("no place".into())));
        let mut suite = SuiteReport {
            version: "0",
            file_system: "ext4".into(),
            cpus: 2,
            seconds: 1,
            open_bytes: 1,
            rows: vec![missed, skipped],
        };
        all_measured(&suite).unwrap();
        suite.rows.push(row().finish(Err(anyhow::anyhow!("index 7 was acknowledged and is missing"))));
        assert!(all_measured(&suite).is_err());
    }

    #[test]
    fn every_row_and_every_line_has_a_name_of_its_own() {
        let rows = all_rows();
        let unique = |mut names: Vec<String>| {
            names.sort();
            names.windows(2).all(|pair| pair[0] != pair[1])
        };
        assert!(unique(rows.iter().map(|row| row.name.clone()).collect()));
        assert!(unique(rows.iter().flat_map(|row| &row.bars).map(|bar| bar.name.clone()).collect()));
    }
}
