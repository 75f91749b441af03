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
    /// Take a snapshot of a key-value store and read it back; with --compact, drop the log that it covers
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
    /// Once the snapshot is verified, drop the log's entries that it covers and all but the newest snapshots
    #[arg(long)]
    pub(crate) compact: bool,
    /// How many snapshots stay, with --compact
    #[arg(long, value_name = "K", default_value_t = 2, requires = "compact",
        value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) keep: u32,
    /// How hard to compress: levels of zstd
    #[arg(long, value_name = "LEVEL", default_value_t = 3, value_parser = clap::value_parser!(i32).range(1..=22))]
    pub(crate) level: i32,
    /// Write what was done to this file as JSON, or to the screen instead of the table with `-`
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
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
