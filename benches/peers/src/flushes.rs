//! The block device's own count of the flushes it was sent: what shows that an ack was paid for.
//!
//! The counter is the whole device's, so whatever else writes to it is in it too. File systems that are not on one
//! block device have none.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor, stat};

/// Where the kernel counts for one device.
#[derive(Clone, Debug)]
pub(crate) struct Flushes {
    counters: PathBuf,
}

impl Flushes {
    /// The counter of the device under this directory.
    pub(crate) fn under(dir: &Path) -> Option<Flushes> {
        let device = stat(dir).ok()?.st_dev;
        let device = fs::canonicalize(format!("/sys/dev/block/{}:{}", major(device), minor(device))).ok()?;
        // Flushes are sent to the disk, never to a part of it.
        let disk = if device.join("partition").exists() { device.parent()? } else { &device };
        Some(Flushes { counters: disk.join("stat") })
    }

    /// Flushes since the machine started.
    pub(crate) fn count(&self) -> Option<u64> {
        parse(&fs::read_to_string(&self.counters).ok()?)
    }
}

/// The 16th number, which kernels before 5.5 do not have.
fn parse(counters: &str) -> Option<u64> {
    counters.split_whitespace().nth(15)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn the_flushes_are_the_sixteenth_number() {
        assert_eq!(parse("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17\n"), Some(16));
        assert_eq!(parse("1 2 3 4 5 6 7 8 9 10 11\n"), None);
    }
}
