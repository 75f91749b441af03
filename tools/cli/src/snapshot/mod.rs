//! `ringwal snapshot`: the snapshots of a directory from the shell.
//!
//! - `create`: takes one, as the driver does
//! - `look`: lists, verifies and prints them, beside a writer or without one
//! - `delete` is here: all it has to know is what the log stands on

pub(crate) mod args;
mod create;
mod look;

use anyhow::{Context, Result};
use ringwal::{FileSnapshots, Log, SnapshotOptions};

use self::args::{DeleteArgs, SnapshotArgs, SnapshotCommand};
use crate::kv::view::check_directory;

/// Does one of the commands.
pub(crate) fn run(args: &SnapshotArgs) -> Result<()> {
    match &args.command {
        SnapshotCommand::Create(args) => create::run(args),
        SnapshotCommand::List(args) => look::list(args),
        SnapshotCommand::Verify(args) => look::verify(args),
        SnapshotCommand::Cat(args) => look::cat(args),
        SnapshotCommand::Delete(args) => delete(args),
    }
}

/// Takes no lock: the newest snapshot that the log needs is refused whoever asks, and a writer that compacts meanwhile
/// has made a newer one first.
fn delete(args: &DeleteArgs) -> Result<()> {
    check_directory(&args.dir)?;
    let what_for = "the log tells which snapshots are needed, and has to be readable";
    let (log, _) = Log::open_read_only(&args.dir).context(what_for)?;
    let snapshots = FileSnapshots::open(&args.dir, SnapshotOptions::default())?;
    snapshots.set_stands_on(Some(log.state().compacted.map_or(0, |(index, _)| index)));
    Ok(snapshots.delete_snapshot(&args.id.to_string())?)
}
