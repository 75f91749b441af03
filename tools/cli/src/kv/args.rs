//! What can be asked of `ringwal kv`: pure parsing, as in the tool's `args`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use bytes::Bytes;
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Subcommand};

use super::lines::{self, Misread};
use crate::args::size;
use crate::failure::EXIT_CODES;

const LINES: &str = "\
Lines are KEY, one tab, VALUE, one newline. Keys and values are UTF-8 text in which \\\\, \\t, \\n and \\r stand
for a backslash, a tab, a newline and a carriage return, and \\xNN for any byte: control characters and what is
not UTF-8 are always written so. Keys and values on the command line are written the same way; one that reads
like an option, such as --dir, goes after `--` or with \\x2d for its first hyphen.";

/// Options of `ringwal kv`.
#[derive(Debug, Args)]
#[command(after_help = format!("{LINES}\n\n{EXIT_CODES}"))]
pub(crate) struct KvArgs {
    #[command(subcommand)]
    pub(crate) command: KvCommand,
}

/// What to do with a store.
#[derive(Debug, Subcommand)]
pub(crate) enum KvCommand {
    /// Print the value of a key; takes no lock, and exits with 4 where there is no such key
    #[command(after_help = EXIT_CODES)]
    Get(GetArgs),
    /// Give a key a value; done when it survives power loss. Makes the store if there is none
    #[command(after_help = EXIT_CODES)]
    Set(SetArgs),
    /// Remove a key; exits with 4 where there is no such key
    #[command(after_help = EXIT_CODES)]
    Delete(DeleteArgs),
    /// Print keys and values in the order of the keys, as lines; takes no lock
    #[command(after_help = EXIT_CODES)]
    Scan(ScanArgs),
    /// Do many operations as one: all of them or none. Makes the store if there is none
    #[command(after_help = EXIT_CODES)]
    Batch(BatchArgs),
    /// Set all keys of a file of lines, in batches. Makes the store if there is none
    #[command(after_help = format!("{LOAD}\n\n{EXIT_CODES}"))]
    Load(LoadArgs),
    /// Print the whole store as lines, in the order of the keys; takes no lock
    #[command(after_help = EXIT_CODES)]
    Export(ExportArgs),
}

const LOAD: &str = "\
Lines are set in the order of the file; of several for one key the last one counts. When the load stops, by an error,
by Ctrl-C or by SIGTERM, it says how many lines are durable: those from the first on. Load the same file again to go
on: lines that are there already are set once more to the same, so a load that was killed and said nothing loses
nothing either. --skip N passes over lines that are known to be durable, and is only faster.";

/// Which store.
#[derive(Clone, Debug, Args)]
pub(crate) struct StoreArgs {
    /// The store's directory
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Where the newest snapshot is damaged, use the newest one that is intact, as long as the log still reaches back to it
    /// (see snapshot create --reach-back)
    #[arg(long)]
    pub(crate) fall_back: bool,
}

/// A store that may be new.
#[derive(Clone, Debug, Args)]
pub(crate) struct NewStoreArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// Size of the log's segment files, where the store is new; no value or batch can be larger
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = size)]
    pub(crate) segment_size: u64,
}

/// Options of `ringwal kv get`.
#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// The key, escaped as in a line
    #[arg(value_name = "KEY", value_parser = field(), allow_hyphen_values = true)]
    pub(crate) key: Bytes,
    /// Print the value's bytes as they are, and nothing after them
    #[arg(long)]
    pub(crate) raw: bool,
}

/// Options of `ringwal kv set`.
#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    #[command(flatten)]
    pub(crate) to: NewStoreArgs,
    /// The key, escaped as in a line
    #[arg(value_name = "KEY", value_parser = field(), allow_hyphen_values = true)]
    pub(crate) key: Bytes,
    /// The value, escaped as in a line
    #[arg(value_name = "VALUE", value_parser = field(), allow_hyphen_values = true, required_unless_present = "from")]
    pub(crate) value: Option<Bytes>,
    /// Take the bytes of this file as the value, or those of standard input with `-`, as they are
    #[arg(long, value_name = "FILE", conflicts_with = "value")]
    pub(crate) from: Option<PathBuf>,
}

/// Options of `ringwal kv delete`.
#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// The key, escaped as in a line
    #[arg(value_name = "KEY", value_parser = field(), allow_hyphen_values = true)]
    pub(crate) key: Bytes,
}

/// Options of `ringwal kv scan`.
#[derive(Debug, Args)]
pub(crate) struct ScanArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    // Not any hyphen: a mistyped option would be a key, and an empty range is an answer.
    /// The first key, escaped as in a line [default: the first of all]
    #[arg(value_name = "START", value_parser = field(), allow_negative_numbers = true)]
    pub(crate) start: Option<Bytes>,
    /// The key to stop before, escaped as in a line [default: none, up to the last]
    #[arg(value_name = "END", value_parser = field(), allow_negative_numbers = true)]
    pub(crate) end: Option<Bytes>,
    /// Only keys that begin with this, escaped as in a line
    #[arg(long, value_name = "KEY", value_parser = field(), allow_hyphen_values = true, conflicts_with_all = ["start", "end"])]
    pub(crate) prefix: Option<Bytes>,
    /// Stop after so many keys
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
}

/// Options of `ringwal kv batch`.
#[derive(Debug, Args)]
pub(crate) struct BatchArgs {
    #[command(flatten)]
    pub(crate) to: NewStoreArgs,
    /// The operations, one per line: `set` TAB key TAB value, or `delete` TAB key; `-` reads standard input
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
}

/// Options of `ringwal kv load`.
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    #[command(flatten)]
    pub(crate) to: NewStoreArgs,
    /// The lines to load; `-` reads standard input
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Lines per batch; a batch also ends with 1 MiB
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) batch: u32,
    /// Batches under way at once, so that the disk is never idle
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) in_flight: u32,
    /// Pass over so many lines first: those that an earlier load said are durable
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) skip: u64,
    /// Write what was done to this file as JSON, or to the screen with `-`
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// Options of `ringwal kv export`.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// Reads an argument as a field of a line.
fn field() -> impl TypedValueParser<Value = Bytes> {
    OsStringValueParser::new()
        .try_map(|text: OsString| -> Result<Bytes, Misread> { lines::read_field(text.as_bytes()) })
}
