//! The command line of the replicated key-value service.
//!
//! Results go to standard output, errors to standard error: one line per error. Exit codes: see `failure`.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;
use ringwal_kv_cluster::args::{Cli, Command};
use ringwal_kv_cluster::{failure, torture};

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringwal-cluster: {error:#}");
            ExitCode::from(failure::exit_code(&error))
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Node(_) | Command::Up(_) | Command::Demo(_) | Command::Status(_) => bail!("not built yet"),
        Command::Torture(args) => torture::run(&args),
    }
}
