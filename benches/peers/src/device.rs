//! The block device's own count of the writes and flushes it was sent: what shows that an ack was paid for.
//!
//! The counters are the whole device's, so whatever else writes to it is in them too. File systems that are not on one
//! block device have none.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor, stat};

/// Where the kernel counts for one device.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    counters: PathBuf,
}

/// What a device was sent since the machine started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) writes: u64,
    pub(crate) flushes: u64,
}

impl Device {
    /// The device under this directory.
    pub(crate) fn under(dir: &Path) -> Option<Device> {
        let device = stat(dir).ok()?.st_dev;
        let device = fs::canonicalize(format!("/sys/dev/block/{}:{}", major(device), minor(device))).ok()?;
        // Flushes are sent to the disk, never to a part of it.
        let disk = if device.join("partition").exists() { device.parent()? } else { &device };
        Some(Device { counters: disk.join("stat") })
    }

    /// What it was sent since the machine started.
    pub(crate) fn counts(&self) -> Option<Counts> {
        parse(&fs::read_to_string(&self.counters).ok()?)
    }
}

impl Counts {
    /// What was sent since an earlier look.
    pub(crate) fn since(self, before: Counts) -> Option<Counts> {
        let writes = self.writes.checked_sub(before.writes)?;
        Some(Counts { writes, flushes: self.flushes.checked_sub(before.flushes)? })
    }
}

/// The 5th number and the 16th, which kernels before 5.5 do not have.
fn parse(counters: &str) -> Option<Counts> {
    let number = |nth| counters.split_whitespace().nth(nth)?.parse().ok();
    Some(Counts { writes: number(4)?, flushes: number(15)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_the_fifth_number_and_flushes_the_sixteenth() {
        let counts = parse("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17\n").unwrap();
        assert_eq!(counts, Counts { writes: 5, flushes: 16 });
        assert_eq!(counts.since(Counts { writes: 2, flushes: 15 }), Some(Counts { writes: 3, flushes: 1 }));
        assert_eq!(parse("1 2 3 4 5 6 7 8 9 10 11\n"), None);
    }
}
