//! `ringwal torture`: tries to make a log break its promises.
//!
//! - `explore`: histories on a simulated disk, crashed everywhere, a hundred thousand times in a few seconds; `met`: what
//!   happened in them
//! - `kill9`: a real process, killed at random moments, and every acknowledgement it gave checked afterwards
//!
//! Everything that chance decides follows from one seed, which is told before anything else.

mod explore;
pub(crate) mod kill9;
mod met;

use std::fmt;

use anyhow::{Result, anyhow};

use crate::args::TortureArgs;
use crate::interrupt;
use crate::output;

/// The error of a promise that was seen broken, with all that led to it.
#[derive(Debug)]
pub(crate) struct Broken(pub(crate) String);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Broken {}

/// Runs it and shows what was met. [`Broken`] where a promise does not hold.
pub(crate) fn run(args: &TortureArgs) -> Result<()> {
    interrupt::listen();
    let seed = args.seed.map_or_else(new_seed, Ok)?;
    let json_file = output::open_json(args.json.as_deref())?;
    if args.kill9 {
        return kill9::run(args, seed, json_file);
    }
    eprintln!("seed {seed}");
    let explored = explore::run(args, seed)?;
    output::publish(&explored, || explored.table(), args.json.as_deref(), json_file)?;
    let told = explored.violations.iter().map(|broken| broken.told.as_str()).collect::<Vec<_>>();
    if told.is_empty() { Ok(()) } else { Err(Broken(told.join("\n\n")).into()) }
}

/// One that nobody has tried before.
fn new_seed() -> Result<u64> {
    getrandom::u64().map_err(|error| anyhow!("no random seed can be had: {error}"))
}
