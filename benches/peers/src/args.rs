//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::load::Load;

/// Compares ringwal with other logs where every acknowledged append has to survive power loss.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Args {
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
    /// entries of 128 bytes.
    #[arg(long, value_delimiter = ',', default_value = "1x1x128,16x1x128,256x1x128,1x100x1024,4x1000x128")]
    pub(crate) loads: Vec<Load>,
    /// Write all figures of all rounds to this file.
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
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
    use clap::Parser;

    use super::Args;

    #[test]
    fn the_defaults_are_valid_and_nonsense_is_refused() {
        assert_eq!(Args::parse_from(["peers"]).loads.len(), 5);
        for wrong in ["--rounds=0", "--seconds=0", "--seconds=-1", "--loads=16", "--loads=0x1x128"] {
            assert!(Args::try_parse_from(["peers", wrong]).is_err(), "{wrong}");
        }
    }
}
