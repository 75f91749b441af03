//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::engine::Contestant;
use crate::load::Load;
use crate::{engines, stores};

/// Compares ringwal with others where every acknowledged write has to survive power loss.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Args {
    /// What is compared: logs, or key-value stores.
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
}

impl What {
    /// Everybody who can take part.
    pub(crate) fn built_in(self) -> &'static [Contestant] {
        match self {
            What::Logs => engines::BUILT_IN,
            What::Kv => stores::BUILT_IN,
        }
    }

    /// Producers, entries in a batch, bytes of a payload or value.
    fn loads(self) -> &'static [[usize; 3]] {
        match self {
            What::Logs => &[[1, 1, 128], [16, 1, 128], [256, 1, 128], [1, 100, 1024], [4, 1000, 128]],
            What::Kv => &[[1, 1, 100], [16, 1, 100], [1, 1000, 100], [16, 1000, 100]],
        }
    }
}

impl Args {
    /// The loads, those that are usual here if none was asked for.
    pub(crate) fn loads(&self) -> Vec<Load> {
        let of =
            |&[producers, batch, payload_bytes]: &[usize; 3]| Load { producers, batch, payload_bytes, is_keyed: false };
        let usual = || self.what.loads().iter().map(of).collect();
        let loads = if self.loads.is_empty() { usual() } else { self.loads.clone() };
        loads.into_iter().map(|load| if self.what == What::Kv { load.keyed() } else { load }).collect()
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
        for wrong in ["--rounds=0", "--seconds=0", "--seconds=-1", "--loads=16", "--loads=0x1x128"] {
            assert!(Args::try_parse_from(["peers", wrong]).is_err(), "{wrong}");
        }
    }
}
