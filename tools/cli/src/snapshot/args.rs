//! What can be asked of `ringwal snapshot`: pure parsing, as in the tool's `args`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use ringwal::SnapshotId;

use crate::failure::EXIT_CODES;
use crate::kv::args::StoreArgs;

/// Options of `ringwal snapshot`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct SnapshotArgs {
    #[command(subcommand)]
    pub(crate) command: SnapshotCommand,
}

/// What to do with snapshots.
#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Take a snapshot of a key-value store and read it back; then drop the log that it covers, and older snapshots
    #[command(after_help = EXIT_CODES)]
    Create(CreateArgs),
    /// Show the snapshots of a directory, the damaged ones too; takes no lock
    #[command(after_help = EXIT_CODES)]
    List(ListArgs),
    /// Read snapshots through and check every byte of them; takes no lock
    #[command(after_help = EXIT_CODES)]
    Verify(VerifyArgs),
    /// Print the state that a snapshot holds: a store's as lines, a counter's as a number; takes no lock
    #[command(after_help = EXIT_CODES)]
    Cat(CatArgs),
    /// Remove a snapshot; the one that the compacted log stands on is refused
    #[command(after_help = EXIT_CODES)]
    Delete(DeleteArgs),
}

/// Options of `ringwal snapshot create`.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// Take the snapshot alone: leave the log and the older snapshots as they are
    #[arg(long)]
    pub(crate) keep_log: bool,
    /// How many snapshots stay [default: 2, or what --reach-back asks for]
    #[arg(long, value_name = "K", conflicts_with = "keep_log", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) keep: Option<u32>,
    /// The log stays long enough for the Nth newest snapshot. With 1 it is as short as can be; with 2, should the newest
    /// snapshot be damaged one day, --fall-back can still start from the one before it
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "keep_log",
        value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) reach_back: u32,
    /// How hard to compress: levels of zstd
    #[arg(long, value_name = "LEVEL", default_value_t = 3, value_parser = clap::value_parser!(i32).range(1..=22))]
    pub(crate) level: i32,
    /// Write what was done to this file as JSON, or to the screen instead of the table with `-`
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

impl CreateArgs {
    /// How many snapshots stay. What the log reaches back to has to be there.
    pub(crate) fn kept(&self) -> Result<u32, String> {
        const USUAL: u32 = 2;
        match (self.keep, self.reach_back) {
            (None, reach_back) => Ok(USUAL.max(reach_back)),
            (Some(keep), reach_back) if keep >= reach_back => Ok(keep),
            (Some(keep), reach_back) => {
                Err(format!("--reach-back {reach_back} is of no use with --keep {keep}: so many snapshots do not stay"))
            }
        }
    }
}

/// Options of `ringwal snapshot list`.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// The directory that holds the snapshots
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Write the list to this file as JSON, or to the screen instead of the table with `-`
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// Options of `ringwal snapshot verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The directory that holds the snapshots
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Which snapshots, as `list` shows them [default: all]
    #[arg(value_name = "ID")]
    pub(crate) ids: Vec<SnapshotId>,
    /// Write the findings to this file as JSON, or to the screen instead of the table with `-`
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// Options of `ringwal snapshot cat`.
#[derive(Debug, Args)]
pub(crate) struct CatArgs {
    /// The directory that holds the snapshots
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Which snapshot, as `list` shows it
    #[arg(value_name = "ID")]
    pub(crate) id: SnapshotId,
    /// Print the state's bytes as they are, whichever machine's they are
    #[arg(long)]
    pub(crate) raw: bool,
}

/// Options of `ringwal snapshot delete`.
#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// The directory that holds the snapshots
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Which snapshot, as `list` shows it
    #[arg(value_name = "ID")]
    pub(crate) id: SnapshotId,
}
