//! From the turns to the table and the JSON.
//!
//! Every figure is the median over the rounds of that figure in one round; a ratio is the median of the rounds' own
//! ratios, so that both sides of it saw the same disk. Rounds in which an engine failed are left out of its medians and
//! named beneath the table.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::args::Args;
use crate::engine::Contestant;
use crate::load::Load;
use crate::place::Place;
use crate::rounds::{Results, Turn};
use crate::slice::{Reached, quantile};

/// The whole result.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// The engine that the others are compared with.
    yardstick: &'static str,
    environment: Environment,
    engines: Vec<Described>,
    loads: Vec<Table>,
}

#[derive(Debug, Serialize)]
struct Environment {
    kernel: String,
    cpus: usize,
    dir: String,
    file_system: String,
    floor_is_direct: bool,
    rounds: u32,
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct Described {
    name: &'static str,
    version: String,
    durability: &'static str,
}

#[derive(Debug, Serialize)]
struct Table {
    load: Load,
    floor_writes_per_s: f64,
    floor_p50_us: f64,
    rows: Vec<Row>,
}

/// One engine under one load. `null` in the JSON where there is no figure.
#[derive(Debug, Serialize)]
struct Row {
    engine: &'static str,
    acks_per_s: f64,
    acks_to_floor: f64,
    acks_to_yardstick: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_s_per_million_acks: f64,
    flushes_per_call: f64,
    writes_per_call: f64,
    rounds: Vec<Reached>,
    failures: Vec<String>,
}

impl Report {
    /// The report of these results.
    pub(crate) fn of(
        args: &Args,
        loads: &[Load],
        contestants: &[&Contestant],
        place: &Place,
        results: Results,
    ) -> Report {
        let environment = Environment {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            dir: place.parent().display().to_string(),
            file_system: place.file_system(),
            floor_is_direct: results.floor_is_direct,
            rounds: args.rounds,
            seconds: args.seconds.as_secs_f64(),
        };
        let describe = |engine: &&Contestant| Described {
            name: engine.name,
            version: (engine.version)(),
            durability: engine.durability,
        };
        let yardstick = args.what.yardstick();
        let table = |(load, turns): (&Load, &Vec<Turn>)| Table::of(*load, contestants, yardstick, turns);
        let loads = loads.iter().zip(&results.turns).map(table);
        Report { yardstick, environment, engines: contestants.iter().map(describe).collect(), loads: loads.collect() }
    }

    /// Whether every engine ran every time and kept all that it had acknowledged.
    pub(crate) fn is_sound(&self) -> bool {
        self.loads.iter().flat_map(|table| &table.rows).all(|row| row.failures.is_empty())
    }

    /// Prints the tables.
    pub(crate) fn print(&self) {
        let Environment { kernel, cpus, dir, file_system, floor_is_direct, rounds, seconds } = &self.environment;
        println!("Linux {kernel}, {cpus} CPUs, {file_system} ({dir}); medians of {rounds} rounds of {seconds} s");
        if !floor_is_direct {
            println!("the file system refuses direct writes: the floor's go through the page cache");
        }
        if file_system == "tmpfs" {
            println!("tmpfs is memory: nothing here survives power loss, whatever an engine does");
        }
        println!();
        for engine in &self.engines {
            println!("{:<16} {:<38} {}", engine.name, engine.version, engine.durability);
        }
        self.loads.iter().for_each(|table| table.print(self.yardstick));
    }

    /// Writes everything as JSON.
    pub(crate) fn write_json(&self, path: &Path) -> Result<()> {
        let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
        serde_json::to_writer_pretty(BufWriter::new(file), self).context("cannot write the JSON")
    }
}

impl Table {
    fn of(load: Load, contestants: &[&Contestant], yardstick: &str, turns: &[Turn]) -> Table {
        let yardstick = contestants.iter().position(|engine| engine.name == yardstick);
        let row = |(number, engine): (usize, &&Contestant)| Row::of(engine.name, number, yardstick, turns);
        let floor_p50_us = |turn: &Turn| {
            let mut latencies = turn.floor.latencies_ns.clone();
            latencies.sort_unstable();
            quantile(&latencies, 0.5) / 1e3
        };
        Table {
            load,
            floor_writes_per_s: median(turns.iter().map(|turn| turn.floor.per_s())),
            floor_p50_us: median(turns.iter().map(floor_p50_us)),
            rows: contestants.iter().enumerate().map(row).collect(),
        }
    }

    fn print(&self, yardstick: &str) {
        println!("\n{}", self.load);
        println!(
            "    floor: {:.0} writes of 4 KiB/s one at a time, p50 {:.0} us",
            self.floor_writes_per_s, self.floor_p50_us
        );
        println!(
            "    engine                 acks/s  x floor  {:>9}     p50 us     p99 us  CPU s/M acks  flushes/call  writes/call",
            format!("x {yardstick}")
        );
        self.rows.iter().for_each(Row::print);
    }
}

impl Row {
    fn of(engine: &'static str, number: usize, yardstick: Option<usize>, turns: &[Turn]) -> Row {
        let reached = |turn: &Turn, number: usize| turn.outcomes.get(number)?.as_ref().ok().copied();
        let of =
            |figure: fn(&Reached) -> f64| median(turns.iter().filter_map(|turn| Some(figure(&reached(turn, number)?))));
        let to_floor = |turn: &Turn| Some(reached(turn, number)?.acks_per_s / turn.floor.per_s());
        let to_yardstick =
            |turn: &Turn| Some(reached(turn, number)?.acks_per_s / reached(turn, yardstick?)?.acks_per_s);
        Row {
            engine,
            acks_per_s: of(|reached| reached.acks_per_s),
            acks_to_floor: median(turns.iter().filter_map(to_floor)),
            acks_to_yardstick: median(turns.iter().filter_map(to_yardstick)),
            p50_us: of(|reached| reached.p50_us),
            p99_us: of(|reached| reached.p99_us),
            cpu_s_per_million_acks: of(|reached| reached.cpu_s_per_million_acks),
            flushes_per_call: of(|reached| reached.flushes_per_call.unwrap_or(f64::NAN)),
            writes_per_call: of(|reached| reached.writes_per_call.unwrap_or(f64::NAN)),
            rounds: turns.iter().filter_map(|turn| reached(turn, number)).collect(),
            failures: turns.iter().filter_map(|turn| turn.outcomes.get(number)?.as_ref().err().cloned()).collect(),
        }
    }

    fn print(&self) {
        println!(
            "    {:<16} {:>12} {:>8} {:>10} {:>10} {:>10} {:>13} {:>13} {:>12}",
            self.engine,
            text(self.acks_per_s, 0),
            text(self.acks_to_floor, 2),
            text(self.acks_to_yardstick, 2),
            text(self.p50_us, 0),
            text(self.p99_us, 0),
            text(self.cpu_s_per_million_acks, 2),
            text(self.flushes_per_call, 2),
            text(self.writes_per_call, 2),
        );
        for failure in &self.failures {
            println!("        {} failed: {failure}", self.engine);
        }
    }
}

fn text(figure: f64, decimals: usize) -> String {
    if figure.is_finite() { format!("{figure:.decimals$}") } else { "-".to_owned() }
}

/// The median, of an even number the mean of the middle two; NaN of none.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values = values.collect::<Vec<_>>();
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::floor::Writes;

    fn turn(acks: [Option<f64>; 2]) -> Turn {
        let reached = |acks_per_s| Reached {
            acks_per_s,
            p50_us: 1.0,
            p99_us: 2.0,
            cpu_s_per_million_acks: 3.0,
            flushes_per_call: None,
            writes_per_call: None,
            acked: 1,
        };
        let outcome = |acks: Option<f64>| acks.map(reached).ok_or_else(|| "lost".to_owned());
        let floor = Writes { latencies_ns: vec![1000; 10], time: Duration::from_secs(1) };
        Turn { floor, outcomes: acks.map(outcome).to_vec() }
    }

    #[test]
    fn ratios_are_medians_of_the_rounds_own_and_failures_stay_out() {
        let turns = [turn([Some(100.0), Some(50.0)]), turn([Some(10.0), Some(20.0)]), turn([Some(40.0), None])];
        let row = Row::of("other", 1, Some(0), &turns);
        assert_eq!((row.acks_per_s, row.acks_to_floor, row.acks_to_yardstick), (35.0, 3.5, 1.25));
        assert_eq!((row.rounds.len(), row.failures.as_slice()), (2, ["lost".to_owned()].as_slice()));
        assert!(Row::of("other", 1, None, &turns).acks_to_yardstick.is_nan());
    }

    #[test]
    fn medians() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0].into_iter()), 2.5);
        assert_eq!(text(median(std::iter::empty()), 1), "-");
    }
}
