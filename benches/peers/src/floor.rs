//! The device's floor: single 4 KiB writes, one at a time, each durable when it returns, with no log around them.
//!
//! The files are filled with zeros and synced before the first round and opened `O_DIRECT | O_DSYNC`; the writes
//! advance through all of them before they start over. Where the file system refuses direct writes they go through the
//! page cache, and the report says so.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

const BLOCK_BYTES: usize = 4096;
const FILE_BYTES: u64 = 64 << 20;
const FILES: u64 = 4;

/// The floor's files.
#[derive(Debug)]
pub(crate) struct Floor {
    files: Vec<File>,
    next_block: u64,
    is_direct: bool,
}

/// What was reached, of one or more turns.
#[derive(Clone, Debug, Default)]
pub(crate) struct Writes {
    pub(crate) latencies_ns: Vec<u64>,
    pub(crate) time: Duration,
}

impl Floor {
    /// Prepares the files in this directory.
    pub(crate) fn prepare(dir: &Path) -> Result<Floor> {
        let mut floor = Floor { files: Vec::new(), next_block: 0, is_direct: true };
        for number in 0..FILES {
            let path = dir.join(format!("floor-{number}"));
            let file = fill(&path).and_then(|()| floor.open(&path));
            floor.files.push(file.with_context(|| format!("cannot prepare {}", path.display()))?);
        }
        Ok(floor)
    }

    fn open(&mut self, path: &Path) -> Result<File> {
        let open = |flags| OpenOptions::new().write(true).custom_flags(flags).open(path);
        match open(libc::O_DIRECT | libc::O_DSYNC) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                self.is_direct = false;
                Ok(open(libc::O_DSYNC)?)
            }
            other => Ok(other?),
        }
    }

    /// Whether the writes go around the page cache.
    pub(crate) fn is_direct(&self) -> bool {
        self.is_direct
    }

    /// Writes for this long and adds what was reached to `writes`.
    pub(crate) fn measure(&mut self, time: Duration, writes: &mut Writes) -> Result<()> {
        let room = vec![0xa5; 2 * BLOCK_BYTES];
        let start = room.as_ptr().align_offset(BLOCK_BYTES);
        let block = room.get(start..start + BLOCK_BYTES).context("the block cannot be aligned")?;
        let begin = Instant::now();
        let mut now = begin;
        while now - begin < time {
            let (file, offset) = self.claim()?;
            file.write_all_at(block, offset).context("a write of the floor failed")?;
            let done = Instant::now();
            writes.latencies_ns.push((done - now).as_nanos() as u64);
            now = done;
        }
        writes.time += now - begin;
        Ok(())
    }

    /// The next block, in the order in which a log would write.
    fn claim(&mut self) -> Result<(&File, u64)> {
        let blocks_per_file = FILE_BYTES / BLOCK_BYTES as u64;
        let block = self.next_block;
        self.next_block = (block + 1) % (blocks_per_file * FILES);
        let file = self.files.get((block / blocks_per_file) as usize).context("the floor has no files")?;
        Ok((file, block % blocks_per_file * BLOCK_BYTES as u64))
    }
}

fn fill(path: &Path) -> Result<()> {
    let file = File::create_new(path)?;
    let zeros = vec![0; 1 << 20];
    for offset in (0..FILE_BYTES).step_by(zeros.len()) {
        file.write_all_at(&zeros, offset)?;
    }
    Ok(file.sync_all()?)
}

impl Writes {
    /// Writes per second.
    pub(crate) fn per_s(&self) -> f64 {
        self.latencies_ns.len() as f64 / self.time.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_measured_and_advances_through_all_files() {
        let dir = tempfile::tempdir().unwrap();
        let mut floor = Floor::prepare(dir.path()).unwrap();
        let mut writes = Writes::default();
        floor.measure(Duration::from_millis(5), &mut writes).unwrap();
        floor.measure(Duration::from_millis(5), &mut writes).unwrap();
        assert!(writes.per_s() > 0.0 && writes.time >= Duration::from_millis(10));
        floor.next_block = FILE_BYTES / BLOCK_BYTES as u64 * FILES - 1;
        assert_eq!(floor.claim().unwrap().1, FILE_BYTES - BLOCK_BYTES as u64);
        assert_eq!(floor.claim().unwrap().1, 0);
        assert_eq!(floor.next_block, 1);
    }
}
