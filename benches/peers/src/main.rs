//! Compares ringwal with other logs, and its key-value store with other stores, on one machine, one file system and one
//! minute: how many writes that survive power loss each acknowledges, how long one takes, what it costs in CPU time.
//!
//! What is compared, how to run it and how to read it is in the README beside this crate. The engines are behind one
//! trait ([`engine::Engine`]), one file each; the load knows none of them, and they know nothing of the rounds. To the
//! rounds a store ([`stores::Store`]) is an engine whose entries are records of a key and a value.

mod args;
mod device;
mod engine;
mod engines;
mod floor;
mod interrupt;
mod load;
mod place;
mod raft;
mod records;
mod report;
mod rounds;
mod slice;
mod stores;
mod versions;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

fn main() -> ExitCode {
    match run(args::Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every engine ran and kept all that it had acknowledged.
fn run(args: args::Args) -> Result<bool> {
    interrupt::listen()?;
    let contestants = engine::chosen(args.what.built_in(), &args.engines)?;
    let loads = args.loads();
    let place = place::Place::make(&args.dir)?;
    let results = rounds::run(&args, &loads, &contestants, &place)?;
    let report = report::Report::of(&args, &loads, &contestants, &place, results);
    report.print();
    if let Some(path) = &args.json {
        report.write_json(path)?;
    }
    Ok(report.is_sound())
}
