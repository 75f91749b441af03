//! `ringwal bench`: a log under load, against the device it lies on, in the same run.
//!
//! - `place`: the directory, and that nothing of anyone else's is touched
//! - `load`, `payload`, `acks`, `compactor`: what is done to the log, and what it acknowledged
//! - `floor`, `handover`, `counters`, `threads`: what the device and the machine can do, and what they count
//! - `slices`: one pair of measurements; `figures`: from the pairs to the figures
//! - `job`: one whole run; `verify`: the check at its end
//! - `report`: what is shown; `audit`: the same, each figure with its grounds
//! - `suite`: many runs, each against a bar

mod acks;
mod audit;
mod compactor;
pub(crate) mod counters;
mod figures;
mod floor;
mod handover;
mod job;
mod load;
mod payload;
pub(crate) mod place;
pub(crate) mod report;
mod slices;
pub(crate) mod suite;
mod threads;
mod verify;

use anyhow::Result;

use crate::args::BenchArgs;
use crate::bench::place::Place;
use crate::bench::report::{durability_name, durability_promise};
use crate::interrupt;
use crate::output;
use crate::text::{bytes, count};

/// Runs the bench and shows its result. An error if the check afterwards finds anything wrong.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    interrupt::listen();
    if args.suite {
        return suite::run(args);
    }
    job::config(args).validate()?;
    let json_file = output::open_json(args.json.as_deref())?;
    let mut place = Place::take(args.dir.as_deref(), args.keep)?;
    let device = args.audit.then(|| audit::device(&place.log())).transpose()?;
    announce(args, &place);
    let report = job::run(args, &mut place)?;
    if let Some(device) = device {
        return audit::publish(&report, &device, args, json_file);
    }
    let table = || report::table(&report, args.durability);
    output::publish(&report, table, args.json.as_deref(), json_file)?;
    if args.keep {
        eprintln!("the log stays in {}", place.log().display());
    }
    Ok(())
}

/// Says what is about to happen and where.
fn announce(args: &BenchArgs, place: &Place) {
    let (log, kind) = (place.log(), counters::file_system(&place.log()));
    let after = if args.keep { "kept" } else { "removed afterwards" };
    eprintln!("log in {} ({kind}), {after}", log.display());
    if kind == "tmpfs" {
        eprintln!("note: this is memory, not a disk; --dir chooses another place");
    }
    let (durability, promise) = (durability_name(args.durability), durability_promise(args.durability));
    eprintln!("durability {durability}: {promise}");
    eprintln!(
        "{} producers, {} outstanding each, {} B per entry, {} per submission, segments of {}",
        args.producers,
        args.window,
        count(args.payload as u64),
        args.batch,
        bytes(args.segment_size)
    );
}
