//! The device's floor: what plain `pwrite` reaches on this file system with nothing around it.
//!
//! The files are prepared exactly as segments are (allocated, filled with zeros, synced) and opened as the log opens
//! its own (`O_DIRECT | O_DSYNC`), so every write is one that is durable when it returns. Writes advance through all
//! files before they start over. No write spans two files. Preparing takes place outside of every measured time.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::fs::{FallocateFlags, OFlags, fallocate};

use crate::bench::counters;
use crate::engine::AlignedBuf;

/// What the log's own descriptors have: rustix's `OFlags::DSYNC` would be `O_SYNC`, which also commits timestamps.
const O_DSYNC: OFlags = OFlags::from_bits_retain(libc::O_DSYNC as u32);

/// The small write of the floor: one block of nearly every device.
pub(crate) const BLOCK_BYTES: usize = 4096;
/// The large write of the floor.
pub(crate) const SEQUENTIAL_BYTES: usize = 1 << 20;
/// The files together, so that the writes do not return to the same blocks soon.
const TOTAL_BYTES: u64 = 256 << 20;
/// The smallest file, where segments are tiny, and the largest, where they are huge.
const FILE_BYTES_MIN: u64 = 8 << 20;
const FILE_BYTES_MAX: u64 = 512 << 20;

/// The floor's files, ready to be written.
#[derive(Debug)]
pub(crate) struct Floor {
    files: Vec<File>,
    file_bytes: u64,
    next: Mutex<Spot>,
    direct: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Spot {
    file: usize,
    offset: u64,
}

/// What a number of writers reached.
#[derive(Clone, Debug, Default)]
pub(crate) struct Writes {
    pub(crate) per_s: f64,
    pub(crate) latencies_ns: Vec<u64>,
}

impl Floor {
    /// Prepares files of a segment's size in `dir`, which must exist.
    pub(crate) fn prepare(dir: &Path, segment_bytes: u64) -> Result<Floor> {
        let room = counters::free_bytes(dir).unwrap_or(u64::MAX) / 8;
        let room = room.clamp(FILE_BYTES_MIN, FILE_BYTES_MAX).next_multiple_of(BLOCK_BYTES as u64);
        let file_bytes = segment_bytes.clamp(FILE_BYTES_MIN, room).next_multiple_of(BLOCK_BYTES as u64);
        let total = TOTAL_BYTES.min(room);
        let mut floor = Floor { files: Vec::new(), file_bytes, next: Mutex::default(), direct: true };
        for number in 0..total.div_ceil(file_bytes) {
            let path = dir.join(format!("floor-{number}.tmp"));
            let file = floor.prepare_file(&path);
            floor.files.push(file.with_context(|| format!("cannot prepare {} for the floor", path.display()))?);
        }
        Ok(floor)
    }

    fn prepare_file(&mut self, path: &Path) -> Result<File> {
        let filled = OpenOptions::new().write(true).create_new(true).open(path)?;
        // Not every file system can allocate ahead; the zeros below allocate in any case.
        let _ = fallocate(&filled, FallocateFlags::empty(), 0, self.file_bytes);
        let zeros = AlignedBuf::zeroed(SEQUENTIAL_BYTES);
        let mut offset = 0;
        while offset < self.file_bytes {
            crate::interrupt::check()?;
            let bytes = (self.file_bytes - offset).min(SEQUENTIAL_BYTES as u64);
            filled.write_all_at(&zeros[..bytes as usize], offset)?;
            offset += bytes;
        }
        filled.sync_all()?;
        self.open_durable(path)
    }

    /// Direct if the file system can; otherwise through the page cache, as the log would have to.
    fn open_durable(&mut self, path: &Path) -> Result<File> {
        let open = |flags: OFlags| OpenOptions::new().write(true).custom_flags(flags.bits() as i32).open(path);
        match open(OFlags::DIRECT | O_DSYNC) {
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {
                self.direct = false;
                Ok(open(O_DSYNC)?)
            }
            other => Ok(other?),
        }
    }

    /// Whether the writes go around the page cache.
    pub(crate) fn is_direct(&self) -> bool {
        self.direct
    }

    /// Keeps `depth` writes of `bytes` going for `time`. Every writer's rate runs to its own last completion, so the
    /// end of the time cuts nothing off.
    pub(crate) fn write(&self, bytes: usize, depth: usize, time: Duration) -> Result<Writes> {
        let bytes = bytes.next_multiple_of(BLOCK_BYTES);
        ensure!(bytes as u64 <= self.file_bytes, "a frame of {bytes} bytes does not fit the floor's files");
        if depth <= 1 {
            return self.write_alone(bytes, time, &Barrier::new(1));
        }
        let start = Barrier::new(depth);
        let parts = std::thread::scope(|scope| {
            let writer = || scope.spawn(|| self.write_alone(bytes, time, &start));
            let writers = (0..depth).map(|_| writer()).collect::<Vec<_>>();
            writers.into_iter().map(|writer| writer.join()).collect::<Vec<_>>()
        });
        let mut all = Writes::default();
        for part in parts {
            let part = part.map_err(|_| anyhow!("a thread of the floor panicked"))??;
            all.per_s += part.per_s;
            all.latencies_ns.extend(part.latencies_ns);
        }
        Ok(all)
    }

    fn write_alone(&self, bytes: usize, time: Duration, start: &Barrier) -> Result<Writes> {
        let mut buffer = AlignedBuf::zeroed(bytes);
        buffer.fill(0xa5);
        start.wait();
        let begin = Instant::now();
        let (mut now, mut latencies_ns) = (begin, Vec::new());
        while now - begin < time {
            let (file, offset) = self.claim(bytes as u64)?;
            file.write_all_at(&buffer[..bytes], offset).context("a write of the floor failed")?;
            let done = Instant::now();
            latencies_ns.push((done - now).as_nanos() as u64);
            now = done;
        }
        Ok(Writes { per_s: latencies_ns.len() as f64 / (now - begin).as_secs_f64(), latencies_ns })
    }

    /// The next place for a write of `bytes`, within one file.
    fn claim(&self, bytes: u64) -> Result<(&File, u64)> {
        let mut next = self.next.lock().map_err(|_| anyhow!("a thread of the floor panicked"))?;
        if next.offset + bytes > self.file_bytes {
            *next = Spot { file: (next.file + 1) % self.files.len(), offset: 0 };
        }
        let spot = *next;
        next.offset += bytes;
        let file = self.files.get(spot.file).context("the floor has no files")?;
        Ok((file, spot.offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_advance_through_all_files_and_never_span_two() {
        let dir = tempfile::tempdir().unwrap();
        let mut floor =
            Floor { files: Vec::new(), file_bytes: 3 * BLOCK_BYTES as u64, next: Mutex::default(), direct: true };
        for name in ["floor-0.tmp", "floor-1.tmp"] {
            let file = floor.prepare_file(&dir.path().join(name)).unwrap();
            floor.files.push(file);
        }
        let claimed = (0..5).map(|_| floor.claim(2 * BLOCK_BYTES as u64).unwrap().1).collect::<Vec<_>>();
        assert_eq!(claimed, [0; 5]);
        assert_eq!(floor.next.lock().unwrap().file, 0, "the fifth write is in the first file again");
    }

    #[test]
    fn a_floor_is_measured_at_any_depth() {
        let dir = tempfile::tempdir().unwrap();
        let floor = Floor::prepare(dir.path(), 1 << 20).unwrap();
        for depth in [1, 3] {
            let writes = floor.write(5000, depth, Duration::from_millis(5)).unwrap();
            assert!(writes.per_s > 0.0 && writes.latencies_ns.len() >= depth);
        }
        assert!(floor.write(1 << 30, 1, Duration::from_millis(1)).is_err());
    }
}
