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

/// What a write is made of.
pub(crate) const BLOCK_BYTES: usize = 4096;
const FILE_BYTES: u64 = 64 << 20;
const FILES: u64 = 4;

/// The floor's files.
#[derive(Debug)]
pub(crate) struct Floor {
    bare: BareWrites,
}

/// Files that are written once around and again, with nothing that could be read back.
#[derive(Debug)]
pub(crate) struct BareWrites {
    files: Vec<File>,
    blocks_per_file: u64,
    next_block: u64,
    is_direct: bool,
    /// What is written, and a block more so that its start can be aligned.
    room: Vec<u8>,
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
        Ok(Floor { bare: BareWrites::prepare(dir, FILES, FILE_BYTES)? })
    }

    /// Whether the writes go around the page cache.
    pub(crate) fn is_direct(&self) -> bool {
        self.bare.is_direct
    }

    /// Writes for this long and adds what was reached to `writes`.
    pub(crate) fn measure(&mut self, time: Duration, writes: &mut Writes) -> Result<()> {
        let begin = Instant::now();
        let mut now = begin;
        while now - begin < time {
            self.bare.write(1).context("a write of the floor failed")?;
            let done = Instant::now();
            writes.latencies_ns.push((done - now).as_nanos() as u64);
            now = done;
        }
        writes.time += now - begin;
        Ok(())
    }
}

impl BareWrites {
    /// Prepares so many files of so many bytes in this directory.
    pub(crate) fn prepare(dir: &Path, files: u64, file_bytes: u64) -> Result<BareWrites> {
        let (blocks_per_file, room) = (file_bytes / BLOCK_BYTES as u64, vec![0xa5; 2 * BLOCK_BYTES]);
        let mut bare = BareWrites { files: Vec::new(), blocks_per_file, next_block: 0, is_direct: true, room };
        for number in 0..files {
            let path = dir.join(format!("floor-{number}"));
            let file = fill(&path, file_bytes).and_then(|()| bare.open(&path));
            bare.files.push(file.with_context(|| format!("cannot prepare {}", path.display()))?);
        }
        Ok(bare)
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

    /// Writes so many blocks at once; they survive power loss when it returns.
    pub(crate) fn write(&mut self, blocks: usize) -> Result<()> {
        let bytes = blocks * BLOCK_BYTES;
        if self.room.len() < bytes + BLOCK_BYTES {
            self.room = vec![0xa5; bytes + BLOCK_BYTES];
        }
        let start = self.room.as_ptr().align_offset(BLOCK_BYTES);
        let (number, offset) = self.claim(blocks as u64);
        let block = self.room.get(start..start + bytes).context("the block cannot be aligned")?;
        Ok(self.files.get(number).context("there are no files")?.write_all_at(block, offset)?)
    }

    /// The next blocks, in the order in which a log would write: the number of the file, and where in it.
    fn claim(&mut self, blocks: u64) -> (usize, u64) {
        let left = self.blocks_per_file - self.next_block % self.blocks_per_file;
        // They never span files.
        let block = if blocks > left { self.next_block + left } else { self.next_block };
        let block = block % (self.blocks_per_file * self.files.len() as u64);
        self.next_block = block + blocks;
        ((block / self.blocks_per_file) as usize, block % self.blocks_per_file * BLOCK_BYTES as u64)
    }
}

fn fill(path: &Path, file_bytes: u64) -> Result<()> {
    let file = File::create_new(path)?;
    let zeros = vec![0; 1 << 20];
    for offset in (0..file_bytes).step_by(zeros.len()) {
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
        let bare = &mut floor.bare;
        bare.next_block = FILE_BYTES / BLOCK_BYTES as u64 * FILES - 1;
        assert_eq!(bare.claim(1), (3, FILE_BYTES - BLOCK_BYTES as u64));
        assert_eq!(bare.claim(1), (0, 0));
        assert_eq!(bare.next_block, 1);
    }

    #[test]
    fn large_writes_never_span_files() {
        let dir = tempfile::tempdir().unwrap();
        let mut bare = BareWrites::prepare(dir.path(), 2, 1 << 20).unwrap();
        bare.write(255).unwrap();
        assert_eq!(bare.claim(3), (1, 0));
        bare.next_block = 511;
        bare.write(2).unwrap();
        assert_eq!(bare.next_block, 2);
    }
}
