//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::engine::Contestant;
use crate::load::{Load, Shape};
use crate::{engines, raft, stores};

/// Bytes of a value that a cluster's client writes.
const CLUSTER_VALUE_BYTES: usize = 100;

/// Compares ringwal with others where every acknowledged write has to survive power loss.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Args {
    /// What is compared: logs, key-value stores, or the log stores of raft clusters.
    #[arg(default_value = "logs")]
    pub(crate) what: What,
    /// How often every engine gets every load; the table shows medians over the rounds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// Seconds that one engine runs one load in a round.
    #[arg(long, default_value = "1.5", value_parser = seconds)]
    pub(crate) seconds: Duration,
    /// Where to work: a new directory is made in it and removed again. It should be on the disk that matters to you.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/target"))]
    pub(crate) dir: PathBuf,
    /// Which engines, with commas between them; all that are built in by default.
    #[arg(long, value_delimiter = ',')]
    pub(crate) engines: Vec<String>,
    /// Which loads, with commas between them, each PRODUCERSxBATCHxBYTES: 16x1x128 is 16 threads that append single
    /// entries of 128 bytes, or set single keys to values of 128 bytes [default: the README's]
    #[arg(long, value_delimiter = ',')]
    loads: Vec<Load>,
    /// Of `raft`: how many nodes a cluster has, with commas between the clusters.
    #[arg(long, value_delimiter = ',', default_value = "1,3", value_parser = clap::value_parser!(u16).range(1..=9))]
    nodes: Vec<u16>,
    /// Of `raft`: how many clients write to a cluster, with commas between the loads.
    #[arg(long, value_delimiter = ',', default_value = "1,16,64", value_parser = clap::value_parser!(u16).range(1..))]
    clients: Vec<u16>,
    /// Of `raft`: threads of the runtime that all nodes and clients share.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    workers: u16,
    /// Write all figures of all rounds to this file.
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    /// Logs: entries are appended.
    Logs,
    /// Key-value stores: keys of 16 bytes are set.
    Kv,
    /// Log stores under clusters of openraft: keys of 16 bytes are set through the leader.
    Raft,
}

impl What {
    /// Everybody who can take part.
    pub(crate) fn built_in(self) -> &'static [Contestant] {
        match self {
            What::Logs => engines::BUILT_IN,
            What::Kv => stores::BUILT_IN,
            What::Raft => raft::BUILT_IN,
        }
    }

    /// The one that the others are compared with.
    pub(crate) fn yardstick(self) -> &'static str {
        match self {
            What::Logs | What::Kv => "ringwal",
            What::Raft => "ceiling",
        }
    }

    /// Producers, entries in a batch, bytes of a payload or value.
    fn loads(self) -> &'static [[usize; 3]] {
        match self {
            What::Logs => &[[1, 1, 128], [16, 1, 128], [256, 1, 128], [1, 100, 1024], [4, 1000, 128]],
            What::Kv => &[[1, 1, 100], [16, 1, 100], [1, 1000, 100], [16, 1000, 100]],
            What::Raft => &[],
        }
    }
}

impl Args {
    /// The loads, those that are usual here if none was asked for.
    pub(crate) fn loads(&self) -> Vec<Load> {
        if self.what == What::Raft {
            return self.cluster_loads();
        }
        let of = |&[producers, batch, payload_bytes]: &[usize; 3]| Load {
            producers,
            batch,
            payload_bytes,
            is_keyed: false,
            cluster: None,
        };
        let usual = || self.what.loads().iter().map(of).collect();
        let loads = if self.loads.is_empty() { usual() } else { self.loads.clone() };
        loads.into_iter().map(|load| if self.what == What::Kv { load.keyed() } else { load }).collect()
    }

    /// Every number of clients on every cluster.
    fn cluster_loads(&self) -> Vec<Load> {
        let workers = self.workers.into();
        let shapes = self.nodes.iter().map(|&nodes| Shape { nodes: nodes.into(), workers });
        let on = |cluster| {
            let of = move |&clients: &u16| Load {
                producers: clients.into(),
                batch: 1,
                payload_bytes: CLUSTER_VALUE_BYTES,
                is_keyed: true,
                cluster: Some(cluster),
            };
            self.clients.iter().map(of)
        };
        shapes.flat_map(on).collect()
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().map_err(|error| error.to_string())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if time >= Duration::from_millis(100) => Ok(time),
        _ => Err("at least 0.1 s is needed".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_nonsense_is_refused() {
        assert_eq!(Args::parse_from(["peers"]).loads().len(), 5);
        assert!(Args::parse_from(["peers", "kv"]).loads().iter().all(|load| load.is_keyed));
        assert_eq!(Args::parse_from(["peers", "kv", "--loads=2x1x100"]).loads().len(), 1);
        let clusters = Args::parse_from(["peers", "raft", "--clients=1,64"]).loads();
        assert_eq!(clusters.len(), 4);
        assert!(clusters.iter().all(|load| load.cluster.is_some()));
        for wrong in
            ["--rounds=0", "--seconds=0", "--seconds=-1", "--loads=16", "--loads=0x1x128", "--nodes=0", "--clients="]
        {
            assert!(Args::try_parse_from(["peers", wrong]).is_err(), "{wrong}");
        }
    }
}
