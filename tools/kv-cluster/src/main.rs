//! The command line of the replicated key-value service.
//!
//! Results go to standard output, errors to standard error: one line per error. Exit codes: see `failure`.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use ringwal_kv_cluster::args::{Cli, Command};
use ringwal_kv_cluster::{failure, node, show, torture};
use tracing_subscriber::EnvFilter;

/// What is told where `RUST_LOG` says nothing else. openraft tells every try to reach a node that is down.
const TOLD: &str = "warn,ringwal_kv_cluster=info,openraft=off";

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
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(TOLD));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    runtime.block_on(async {
        match command {
            Command::Node(args) => node::run(args).await,
            Command::Up(args) => show::up(&args).await,
            Command::Demo(args) => show::demo(&args).await,
            Command::Status(args) => show::status(&args).await,
            Command::Torture(args) => torture::run(&args).await,
        }
    })
}
