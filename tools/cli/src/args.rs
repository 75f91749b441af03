//! The command line: what can be asked for, in which units, within which bounds.
//!
//! Everything here is pure parsing: a value that gets through is in its range, and a refusal is one line that names
//! the option. What does not fit together only in the log's eyes (a segment too small for its blocks) is refused by
//! the log itself.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::bench::suite::child;
use crate::engine::{Durability, IoChoice, Wait};
use crate::kv::args::KvArgs;
use crate::snapshot::args::SnapshotArgs;
use crate::torture::kill9::victim;

/// Measure, torture and inspect ringwal logs, and keep a key-value store on one.
#[derive(Debug, Parser)]
#[command(name = "ringwal", version, max_term_width = 120)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Measure a log against the device it lies on, then check that every acknowledged entry is there
    Bench(BenchArgs),
    /// Crash logs on a simulated disk by the million, or kill real ones, and check that nothing promised is lost
    Torture(TortureArgs),
    /// Show what a log's directory holds; writes nothing
    Inspect(InspectArgs),
    /// A durable key-value store: get, set, delete, scan, load and export
    Kv(KvArgs),
    /// The snapshots that a store's log stands on: take, list, verify, print and delete them
    Snapshot(SnapshotArgs),
    /// Open a log and tell what that took, for the suite
    #[command(hide = true, name = child::OPEN)]
    SuiteOpen(ChildArgs),
    /// Append to a log until killed, for the suite
    #[command(hide = true, name = child::APPEND)]
    SuiteAppend(ChildArgs),
    /// Take snapshots of a store beside its writers and tell what they felt, for the suite
    #[command(hide = true, name = child::SNAPSHOTS)]
    SuiteSnapshots(ChildArgs),
    /// Write to a log until killed, for torture
    #[command(hide = true, name = victim::COMMAND)]
    TortureVictim(VictimArgs),
}

/// Options of `ringwal bench`.
#[derive(Clone, Debug, Args)]
pub(crate) struct BenchArgs {
    /// Run the whole table of loads, each against its bar, in place of the one load that the options describe
    #[arg(long, conflicts_with_all = ["producers", "window", "payload", "batch", "durability", "segment_size", "retain",
        "wait", "keep"])]
    pub(crate) suite: bool,
    /// Rows of the suite to run: names or parts of names, with commas between them [default: all]
    #[arg(long, value_name = "LIST", requires = "suite", value_delimiter = ',')]
    pub(crate) rows: Vec<String>,
    /// How large the suite's logs are that are opened; the one that is read through takes as much, up to 1 GiB
    #[arg(long, value_name = "SIZE", default_value = "10GB", requires = "suite", value_parser = size)]
    pub(crate) open_bytes: u64,
    /// Where to make the log and the floor's files: empty or not there yet [default: a new directory under target/, or
    /// under the temporary directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Threads that append
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) producers: u32,
    /// Submissions each producer keeps outstanding; 1 appends and waits
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) window: u32,
    /// Bytes per entry, at least 8 (they carry the number that is checked afterwards)
    #[arg(long, value_name = "SIZE", default_value = "128", value_parser = payload)]
    pub(crate) payload: usize,
    /// Entries per submission
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) batch: u32,
    /// How long to measure; half of it goes to the device's floor, and 6.4 s is the least
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub(crate) seconds: u32,
    /// What an acknowledgement is worth: sync, interval:MS or none
    #[arg(long, value_name = "MODE", default_value = "sync", value_parser = durability)]
    pub(crate) durability: Durability,
    /// Size of a segment file
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = size)]
    pub(crate) segment_size: u64,
    /// Compact while appending, so that about this much payload stays [default: keep all]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) retain: Option<u64>,
    /// How threads wait: park or spin:US
    #[arg(long, value_name = "HOW", default_value = "park", value_parser = wait)]
    pub(crate) wait: Wait,
    /// Who carries the writes
    #[arg(long, value_name = "MODE", value_enum, default_value_t = IoModeArg::Auto)]
    pub(crate) io_mode: IoModeArg,
    /// Frames that may be written at once; also the depth of the floor's deep measurements
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) frames_in_flight: u32,
    /// Show a figure only with its grounds: entries compared after reopening, and what the device flushed. Where the device
    /// does not count flushes there is no figure, and compacted entries could not be compared
    #[arg(long, conflicts_with_all = ["suite", "retain"])]
    pub(crate) audit: bool,
    /// Write the figures to this file as JSON, or to the screen instead of the table with `-`
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Leave the log on the disk afterwards
    #[arg(long)]
    pub(crate) keep: bool,
}

/// Options of `ringwal torture`.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct TortureArgs {
    /// Where chance begins; a broken promise names the seed that shows it again [default: a new one, which is printed]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// How long to explore [default: 10, unless --states says when to end]
    #[arg(long, value_name = "S", conflicts_with = "kill9", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) seconds: Option<u32>,
    /// How many crash states to try; 1 tries the one history of the seed
    #[arg(long, value_name = "N", conflicts_with = "kill9", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) states: Option<u64>,
    /// Explorers at a time [default: one per CPU]
    #[arg(long, value_name = "J", conflicts_with = "kill9", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) jobs: Option<u32>,
    /// Kill a real process that writes to a real log, again and again, and check what it was told after each time
    #[arg(long)]
    pub(crate) kill9: bool,
    /// Where to make that log: empty or not there yet [default: a new directory under target/, or under the temporary
    /// directory]
    #[arg(long, value_name = "DIR", requires = "kill9")]
    pub(crate) dir: Option<PathBuf>,
    /// How often to kill it [default: 20]
    #[arg(long, value_name = "N", requires = "kill9", value_parser = clap::value_parser!(u32).range(1..=1 << 30))]
    pub(crate) rounds: Option<u32>,
    /// Threads of that process that write [default: 4]
    #[arg(long, value_name = "P", requires = "kill9", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) producers: Option<u32>,
    /// A control group for the processes that are killed: one whose writes are slow has them die with writes under way
    #[arg(long, value_name = "DIR", requires = "kill9")]
    pub(crate) cgroup: Option<PathBuf>,
    /// Leave the log on the disk afterwards
    #[arg(long, requires = "kill9")]
    pub(crate) keep: bool,
    /// Write what was found to this file as JSON, or to the screen instead of the table with `-`
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// Options of the process that torture kills.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct VictimArgs {
    /// The log's directory
    pub(crate) dir: PathBuf,
    #[arg(long)]
    pub(crate) seed: u64,
    #[arg(long)]
    pub(crate) round: u32,
    #[arg(long)]
    pub(crate) producers: u32,
    #[arg(long)]
    pub(crate) cgroup: Option<PathBuf>,
}

/// Options of `ringwal inspect`.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// The log's directory
    pub(crate) dir: PathBuf,
}

/// Options of the commands that the suite runs in processes of their own.
#[derive(Debug, Args)]
pub(crate) struct ChildArgs {
    /// The log's directory
    pub(crate) dir: PathBuf,
    /// Bytes per entry
    #[arg(long, value_name = "SIZE", default_value = "128", value_parser = payload)]
    pub(crate) payload: usize,
    /// Who carries the writes
    #[arg(long, value_name = "MODE", value_enum, default_value_t = IoModeArg::Auto)]
    pub(crate) io_mode: IoModeArg,
}

/// The io modes by their names on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum IoModeArg {
    /// io_uring where it is allowed, else plain system calls
    Auto,
    /// io_uring, or an error
    Uring,
    /// Plain system calls
    Syscall,
}

impl From<IoModeArg> for IoChoice {
    fn from(mode: IoModeArg) -> IoChoice {
        match mode {
            IoModeArg::Auto => IoChoice::Auto,
            IoModeArg::Uring => IoChoice::Uring,
            IoModeArg::Syscall => IoChoice::Syscall,
        }
    }
}

pub(crate) fn size(text: &str) -> Result<u64, String> {
    match text.parse::<ByteSize>() {
        Ok(ByteSize(0)) => Err("a size above zero is needed".into()),
        Ok(ByteSize(bytes)) => Ok(bytes),
        Err(_) => Err("a size looks like 65536, 64KiB, 16MiB or 1GiB".into()),
    }
}

fn payload(text: &str) -> Result<usize, String> {
    match size(text)? {
        bytes @ 8..=0x4000_0000 => Ok(bytes as usize),
        bytes => Err(format!("{bytes} bytes is out of range: from 8 (the number that is checked) to 1 GiB")),
    }
}

fn durability(text: &str) -> Result<Durability, String> {
    match text.split_once(':') {
        None if text == "sync" => Ok(Durability::Sync),
        None if text == "none" => Ok(Durability::None),
        Some(("interval", ms)) => positive(ms).map(|ms| Durability::Interval(Duration::from_millis(ms))),
        _ => Err("use sync, interval:MS (for example interval:50) or none".into()),
    }
}

fn wait(text: &str) -> Result<Wait, String> {
    match text.split_once(':') {
        None if text == "park" => Ok(Wait::Park),
        Some(("spin", us)) => positive(us).map(|us| Wait::Spin(Duration::from_micros(us))),
        _ => Err("use park or spin:US (for example spin:50)".into()),
    }
}

/// A whole number from one to an hour's microseconds: enough for any wait, and far from overflow.
fn positive(text: &str) -> Result<u64, String> {
    match text.parse::<u64>() {
        Ok(number @ 1..=3_600_000_000) => Ok(number),
        _ => Err(format!("'{text}' is not a whole number above zero (or it is far too large)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_binary_and_decimal_units() {
        for (text, bytes) in [("1024", 1024), ("64MiB", 64 << 20), ("1GiB", 1 << 30), ("1 KiB", 1024), ("1kB", 1000)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "MiB", "-1", "12 parsecs", "0", "1..2"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_payload_holds_at_least_its_number() {
        assert_eq!(payload("8"), Ok(8));
        assert_eq!(payload("16KiB"), Ok(16384));
        assert!(payload("7").is_err() && payload("2GiB").is_err());
    }

    #[test]
    fn durabilities_and_waits_are_read_with_their_units() {
        assert_eq!(durability("sync"), Ok(Durability::Sync));
        assert_eq!(durability("none"), Ok(Durability::None));
        assert_eq!(durability("interval:50"), Ok(Durability::Interval(Duration::from_millis(50))));
        assert_eq!(wait("park"), Ok(Wait::Park));
        assert_eq!(wait("spin:50"), Ok(Wait::Spin(Duration::from_micros(50))));
        for text in ["", "interval", "interval:", "interval:0", "interval:-5", "sync:1", "Sync"] {
            assert!(durability(text).is_err(), "{text}");
        }
        for text in ["spin", "spin:0", "spin:x", "park:1", "spin:99999999999999"] {
            assert!(wait(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_defaults_are_the_main_job() {
        let Command::Bench(bench) = Cli::try_parse_from(["ringwal", "bench"]).unwrap().command else { panic!() };
        assert_eq!((bench.producers, bench.window, bench.payload, bench.batch), (16, 1, 128, 1));
        assert_eq!((bench.durability, bench.segment_size), (Durability::Sync, 64 << 20));
    }
}
