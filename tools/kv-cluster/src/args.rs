//! The command line: its commands, and a node's arguments, which are also how this program starts nodes.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::failure::EXIT_CODES;
use crate::torture::TortureArgs;
use crate::types::NodeId;

/// A replicated key-value service over ringwal and openraft.
#[derive(Debug, Parser)]
#[command(name = "ringwal-cluster", version, after_long_help = EXIT_CODES)]
pub struct Cli {
    /// What is to be done.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run one node until it is asked to stop
    #[command(after_help = EXIT_CODES)]
    Node(NodeArgs),
    /// Start a cluster on this machine's loopback, and run it until Ctrl-C
    Up(UpArgs),
    /// Show a cluster at work: writes, a killed leader, a membership change, a snapshot sent to a new node
    Demo(DemoArgs),
    /// Show a cluster as one of its nodes sees it
    Status(StatusArgs),
    /// Kill, pause, cut, fill up and wipe the nodes of a cluster under load, and check everything that clients were told
    Torture(TortureArgs),
}

/// What carries the log's writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum IoMode {
    /// `io_uring` where it works
    #[default]
    Auto,
    /// `io_uring`, or no start
    Uring,
    /// Plain system calls
    Syscall,
}

/// A fault that is built in on purpose, for a torture that has to find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Plant {
    /// Writes are acknowledged when they are proposed, before any node has them
    AckBeforeCommit,
    /// A write now and then is acknowledged in its turn, and comes to no node's state
    LostWrite,
}

/// A node's arguments.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct NodeArgs {
    /// This node's number: never given to another directory
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub id: NodeId,
    /// The node's directory, made if it is not there
    #[arg(long)]
    pub dir: PathBuf,
    /// Where the other nodes reach this one (port 0: any that is free, told in the ready line)
    #[arg(long, value_name = "HOST:PORT")]
    pub peer_addr: String,
    /// Where clients reach this node
    #[arg(long, value_name = "HOST:PORT")]
    pub client_addr: String,
    /// Reach this node there, instead of where the membership says it is
    #[arg(long, value_name = "ID=HOST:PORT", value_parser = dial)]
    pub dial: Vec<(NodeId, String)>,
    /// Make a snapshot after this many entries
    #[arg(long, default_value_t = 10_000, value_name = "ENTRIES", value_parser = clap::value_parser!(u64).range(1..))]
    pub snapshot_every: u64,
    /// Keep this many entries that are in the snapshot already, for nodes that are a little behind
    #[arg(long, default_value_t = 1_000, value_name = "ENTRIES")]
    pub keep_entries: u64,
    /// The leader's interval between signs of life, and how long an answer of a follower may take
    #[arg(long, default_value_t = 150, value_name = "MS", value_parser = clap::value_parser!(u64).range(10..))]
    pub heartbeat_ms: u64,
    /// Elections begin after this much silence at the least
    #[arg(long, default_value_t = 600, value_name = "MS")]
    pub election_min_ms: u64,
    /// and after this much at the most
    #[arg(long, default_value_t = 1200, value_name = "MS")]
    pub election_max_ms: u64,
    /// How long a client's request may take before it is answered that its outcome is not known
    #[arg(long, default_value_t = 5000, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    pub request_timeout_ms: u64,
    /// Bytes of a segment of the log, fixed when the directory is made; the same for all nodes
    #[arg(long, default_value = "64MiB", value_parser = segment_size)]
    pub segment_size: u64,
    /// What carries the log's writes
    #[arg(long, value_enum, default_value_t)]
    pub io_mode: IoMode,
    /// Writes are refused while the disk has less room than this: the log keeps what it needs to go on
    #[arg(long, default_value = "0", value_parser = size, value_name = "BYTES")]
    pub reserve: u64,
    /// Bytes of a snapshot in one request to another node
    #[arg(long, hide = true, default_value = "1MiB", value_parser = size, value_name = "BYTES")]
    pub snapshot_chunk: u64,
    /// End as soon as this process does, which started this one
    #[arg(long, hide = true, value_name = "PID")]
    pub with_parent: Option<u32>,
    /// A fault, built in on purpose
    #[arg(long, value_enum, hide = true)]
    pub plant: Option<Plant>,
}

/// What `up` takes.
#[derive(Args, Clone, Debug)]
pub struct UpArgs {
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=9))]
    pub nodes: u64,
    /// Where the nodes keep their directories [default: a temporary directory, gone in the end]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Node N listens for clients at this port + N, and for the others 100 above
    #[arg(long, default_value_t = 7000, value_parser = clap::value_parser!(u16).range(1..=65_400))]
    pub base_port: u16,
}

/// What `demo` takes.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(3..=9))]
    pub nodes: u64,
}

/// What `status` takes.
#[derive(Args, Clone, Debug)]
pub struct StatusArgs {
    /// A node's address for clients
    #[arg(long, value_name = "HOST:PORT")]
    pub client_addr: String,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

impl NodeArgs {
    /// A node with its number, directory and addresses, and the defaults of the command line for the rest.
    pub fn new(id: NodeId, dir: &Path, peer_addr: &str, client_addr: &str) -> NodeArgs {
        NodeArgs {
            id,
            dir: dir.to_owned(),
            peer_addr: peer_addr.to_owned(),
            client_addr: client_addr.to_owned(),
            dial: Vec::new(),
            snapshot_every: 10_000,
            keep_entries: 1_000,
            heartbeat_ms: 150,
            election_min_ms: 600,
            election_max_ms: 1200,
            request_timeout_ms: 5000,
            segment_size: 64 << 20,
            io_mode: IoMode::Auto,
            reserve: 0,
            snapshot_chunk: 1 << 20,
            with_parent: None,
            plant: None,
        }
    }

    /// The command line that is read as these arguments, from the command's name on.
    pub fn to_arguments(&self) -> Vec<OsString> {
        // In one word: a directory may begin with a hyphen.
        let mut dir = OsString::from("--dir=");
        dir.push(&self.dir);
        let mut line: Vec<OsString> = vec!["node".into(), dir];
        for (name, value) in self.options() {
            line.extend([name.into(), value.into()]);
        }
        for (id, addr) in &self.dial {
            line.extend(["--dial".into(), format!("{id}={addr}").into()]);
        }
        line
    }

    fn options(&self) -> Vec<(&'static str, String)> {
        let mut options = vec![
            ("--id", self.id.to_string()),
            ("--peer-addr", self.peer_addr.clone()),
            ("--client-addr", self.client_addr.clone()),
            ("--snapshot-every", self.snapshot_every.to_string()),
            ("--keep-entries", self.keep_entries.to_string()),
            ("--heartbeat-ms", self.heartbeat_ms.to_string()),
            ("--election-min-ms", self.election_min_ms.to_string()),
            ("--election-max-ms", self.election_max_ms.to_string()),
            ("--request-timeout-ms", self.request_timeout_ms.to_string()),
            ("--segment-size", self.segment_size.to_string()),
            ("--io-mode", name(&self.io_mode)),
            ("--reserve", self.reserve.to_string()),
            ("--snapshot-chunk", self.snapshot_chunk.to_string()),
        ];
        options.extend(self.with_parent.map(|parent| ("--with-parent", parent.to_string())));
        options.extend(self.plant.as_ref().map(|plant| ("--plant", name(plant))));
        options
    }
}

/// A choice as it is written on the command line.
pub(crate) fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn dial(text: &str) -> Result<(NodeId, String), String> {
    let wrong = || "a node and where to reach it look like 2=127.0.0.1:9102".to_owned();
    let (id, addr) = text.split_once('=').ok_or_else(wrong)?;
    let id = id.parse().map_err(|_| wrong())?;
    if addr.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) {
        return Ok((id, addr.to_owned()));
    }
    Err(wrong())
}

fn size(text: &str) -> Result<u64, String> {
    text.parse::<ByteSize>().map(|size| size.0).map_err(|_| "a size looks like 65536, 64KiB, 16MiB or 1GiB".into())
}

/// The log has bounds of its own; this one leaves room for what is joined in an entry.
fn segment_size(text: &str) -> Result<u64, String> {
    match size(text)? {
        bytes if bytes < SEGMENT_BYTES_MIN => Err(format!("a segment has at least {SEGMENT_BYTES_MIN} bytes here")),
        bytes => Ok(bytes),
    }
}

/// Below 4 MiB, a node refuses the largest values: they have to fit into a segment.
pub const SEGMENT_BYTES_MIN: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: Vec<OsString>) -> NodeArgs {
        let line = std::iter::once("ringwal-cluster".into()).chain(line);
        match Cli::try_parse_from(line).unwrap().command {
            Command::Node(node) => node,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_of_a_node_is_read_as_its_arguments() {
        let plain = NodeArgs::new(1, Path::new("/d"), "127.0.0.1:0", "127.0.0.1:0");
        assert_eq!(parsed(plain.to_arguments()), plain);
        let mut other = NodeArgs::new(u64::MAX, Path::new("-d e"), "a:1", "b:2");
        other.dial = vec![(2, "127.0.0.1:5".into()), (3, "[::1]:6".into())];
        (other.snapshot_every, other.keep_entries) = (7, 8);
        (other.heartbeat_ms, other.election_min_ms, other.election_max_ms) = (11, 22, 33);
        (other.request_timeout_ms, other.segment_size, other.reserve) = (44, 3 << 20, 55);
        other.snapshot_chunk = 66;
        (other.io_mode, other.with_parent, other.plant) = (IoMode::Syscall, Some(77), Some(Plant::AckBeforeCommit));
        assert_eq!(parsed(other.to_arguments()), other);
    }

    #[test]
    fn the_defaults_are_those_of_the_command_line() {
        let line = ["node", "--id", "1", "--dir", "d", "--peer-addr", "p:1", "--client-addr", "c:2"];
        let plain = NodeArgs::new(1, Path::new("d"), "p:1", "c:2");
        assert_eq!(parsed(line.map(OsString::from).to_vec()), plain);
    }

    #[test]
    fn a_place_to_dial_needs_a_number_a_host_and_a_port() {
        assert_eq!(dial("2=localhost:80"), Ok((2, "localhost:80".into())));
        for wrong in ["", "2", "2=", "x=localhost:80", "2=localhost", "2=:80", "2=localhost:99999"] {
            assert!(dial(wrong).is_err(), "{wrong}");
        }
    }
}
