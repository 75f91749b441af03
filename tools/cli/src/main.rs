//! The `ringwal` command-line tool: measures logs, tries to break them, and shows what they hold.
//!
//! Exit codes: 0 done; 1 the job failed or the check after it did; 2 the command line was not understood; 3 torture saw
//! a broken promise, or something is damaged; 4 to 6: see `failure`; 130 interrupted. Results go to standard output, progress and errors to standard error: one line per
//! error, but a broken promise is told with all that led to it.

mod args;
mod bench;
mod engine;
mod failure;
mod inspect;
mod interrupt;
mod kv;
mod output;
mod progress;
mod snapshot;
mod text;
mod torture;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use clap::error::ErrorKind;

use crate::args::{Cli, Command};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// Tells what went wrong, and gives it its exit code.
fn fail(error: &anyhow::Error) -> ExitCode {
    if error.is::<interrupt::Interrupted>() {
        eprintln!("ringwal: {}", text::one_line(&format!("{error:#}")));
        return ExitCode::from(130);
    }
    if let Some(broken) = error.downcast_ref::<torture::Broken>() {
        eprintln!("{broken}");
        return ExitCode::from(3);
    }
    eprintln!("ringwal: {}", text::one_line(&format!("{error:#}")));
    ExitCode::from(failure::exit_code(error))
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Bench(args) => bench::run(&args),
        Command::Torture(args) => torture::run(&args),
        Command::Inspect(args) => inspect::run(&args.dir),
        Command::Kv(args) => kv::run(&args),
        Command::Snapshot(args) => snapshot::run(&args),
        Command::TortureVictim(args) => torture::kill9::victim::run(&args),
        Command::SuiteOpen(args) => bench::suite::child::open(&args),
        Command::SuiteAppend(args) => bench::suite::child::append(&args),
        Command::SuiteSnapshots(args) => bench::suite::snapshot::latency::measure(&args),
    }
}

/// Help and version as clap prints them; every mistake as one line.
fn refuse(error: &clap::Error) -> ExitCode {
    use ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion};
    if matches!(error.kind(), DisplayHelp | DisplayVersion | DisplayHelpOnMissingArgumentOrSubcommand) {
        // Nothing is left to do if even the help cannot be printed.
        let _ = error.print();
        return ExitCode::from(error.exit_code() as u8);
    }
    let message = error.to_string();
    let first = message.split("\n\n").next().unwrap_or_default();
    eprintln!("ringwal: {}", text::one_line(first.trim_start_matches("error: ")));
    ExitCode::from(2)
}
