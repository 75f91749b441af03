//! The log's directory: which files are there, and the lock that keeps a second writer out.
//!
//! Invariant: nothing here changes a file of the log but the lock file's slots and its holder line.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::disk::{self, Access, Disk, DiskFile};
use crate::error::{Error, Result};
use crate::format::lock::{HOLDER_BYTES_MAX, HOLDER_OFFSET, SLOT_BYTES, SLOT_OFFSETS, Slot, SlotRead};
use crate::format::names::{self, Name};
use crate::plant::{Plant, planted};

/// Length of a lock file.
const LOCK_BYTES: u64 = HOLDER_OFFSET + HOLDER_BYTES_MAX as u64;

/// What a directory holds.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Sequence numbers, ascending.
    pub(crate) segments: Vec<u64>,
    pub(crate) indexes: Vec<u64>,
    pub(crate) temporaries: Vec<String>,
    pub(crate) has_lock: bool,
    /// One of the snapshots beside the log.
    pub(crate) snapshot: Option<String>,
    /// A file that is not the log's.
    pub(crate) foreign: Option<String>,
}

impl Listing {
    pub(crate) fn read(disk: &dyn Disk) -> Result<Listing> {
        let mut listing = Listing::default();
        for name in disk.list().map_err(Error::io("list", disk.path()))? {
            match names::classify(&name) {
                Name::Segment(sequence) => listing.segments.push(sequence),
                Name::Index(sequence) => listing.indexes.push(sequence),
                Name::Temporary => listing.temporaries.push(name),
                Name::Lock => listing.has_lock = true,
                Name::Cut => {}
                // The root of a fresh ext4 is as good as empty.
                Name::Other if name == "lost+found/" => {}
                // Left by an open that was killed while it tried the disk.
                Name::Other if name == disk::PROBE_NAME => listing.temporaries.push(name),
                // None of the log's business, but they tell of a log: where they are and no segment is, one is lost.
                Name::Snapshot(..) => listing.snapshot = Some(name),
                Name::SnapshotTemporary(..) | Name::SnapshotPartial(..) | Name::SnapshotDamaged(..) | Name::Other => {
                    listing.foreign = Some(name);
                }
            }
        }
        listing.segments.sort_unstable();
        Ok(listing)
    }

    /// Refuses a directory with other people's files in which nothing is ours: also a lock file that is none of ours.
    pub(crate) fn check_ours(&self, disk: &dyn Disk) -> Result<()> {
        let foreign = |found| Err(Error::Foreign { path: disk.path().into(), found });
        match (&self.foreign, &self.snapshot) {
            _ if !self.segments.is_empty() => Ok(()),
            _ if self.has_lock && !is_lock_file(disk)? => foreign("its file \"lock\" is another program's".into()),
            // Also where the lock file is there: they were made from a log.
            (_, Some(name)) => foreign(format!("it holds {name:?} and no segment: the log it was made from is gone")),
            (Some(name), None) if !self.has_lock => foreign(format!("it holds {name:?} and no segment")),
            _ => Ok(()),
        }
    }

    /// The segments that belong to the log: the contiguous run that ends at the highest.
    pub(crate) fn run(&self) -> &[u64] {
        let gap = self.segments.windows(2).rposition(|pair| pair[0] + 1 != pair[1]);
        &self.segments[gap.map_or(0, |at| at + 1)..]
    }
}

/// Whether the lock file looks like one: not too long, and each slot written or never touched.
fn is_lock_file(disk: &dyn Disk) -> Result<bool> {
    let path = disk.path_of(names::LOCK);
    let file = disk.open(names::LOCK, Access::Read).map_err(Error::io("read", &path))?;
    let mut looks_right = file.size().map_err(Error::io("read", &path))? <= LOCK_BYTES;
    for offset in SLOT_OFFSETS {
        let mut bytes = [0; SLOT_BYTES];
        file.read_at(&mut bytes, offset).map_err(Error::io("read", &path))?;
        looks_right &= bytes == [0; SLOT_BYTES] || Slot::decode(&bytes) != SlotRead::Absent;
    }
    Ok(looks_right)
}

/// The locked lock file.
pub(crate) struct LockFile {
    file: Arc<dyn DiskFile>,
    disk: Arc<dyn Disk>,
    next_slot: AtomicUsize,
}

impl LockFile {
    /// Takes the writer's lock, waiting for a writer that is going away.
    ///
    /// # Errors
    ///
    /// [`Error::Locked`] naming the holder; [`Error::Io`].
    pub(crate) fn acquire(disk: &Arc<dyn Disk>, wait: Duration) -> Result<LockFile> {
        let path = disk.path_of(names::LOCK);
        let file = disk.open(names::LOCK, Access::Lock).map_err(Error::io("open for writing", &path))?;
        lock_within(&*file, wait, || Error::Locked { path: path.clone(), holder: holder(&*file) }, &path)?;
        match name_holder(&*file).map_err(Error::io("write", &path)) {
            // On a full disk the name may have no room; the lock holds without it.
            Err(error) if !error.is_out_of_space() => return Err(error),
            _ => {}
        }
        Ok(LockFile { file, disk: disk.clone(), next_slot: AtomicUsize::new(0) })
    }

    /// The larger valid slot.
    pub(crate) fn slot(&self) -> Result<Option<Slot>> {
        let (slot, at) = read_slots(&*self.file, &*self.disk)?;
        self.next_slot.store(1 - at, Ordering::Relaxed);
        Ok(slot)
    }

    /// Repeats a mark: every frame up to `watermark` is durable.
    pub(crate) fn write_slot(&self, log_id: [u8; 16], watermark: u64) -> io::Result<()> {
        let watermark = if planted(Plant::NoWatermark) { 0 } else { watermark };
        let at = self.next_slot.fetch_xor(1, Ordering::Relaxed);
        self.file.write_at(&Slot { log_id, watermark }.encode(), SLOT_OFFSETS[at])?;
        self.file.sync()
    }
}

/// The larger valid slot of a directory whose lock is not taken.
pub(crate) fn peek_slot(disk: &dyn Disk) -> Result<Option<Slot>> {
    match disk.open(names::LOCK, Access::Read) {
        Ok(file) => read_slots(&*file, disk).map(|(slot, _)| slot),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", disk.path_of(names::LOCK))(error)),
    }
}

fn read_slots(file: &dyn DiskFile, disk: &dyn Disk) -> Result<(Option<Slot>, usize)> {
    let path = disk.path_of(names::LOCK);
    let mut best: (Option<Slot>, usize) = (None, 1);
    for (at, offset) in SLOT_OFFSETS.into_iter().enumerate() {
        let mut bytes = [0; SLOT_BYTES];
        file.read_at(&mut bytes, offset).map_err(Error::io("read", &path))?;
        match Slot::decode(&bytes) {
            SlotRead::Absent => {}
            SlotRead::Newer(what) => return Err(Error::Unsupported { file: path, offset, what }),
            SlotRead::Slot(slot) if best.0.is_none_or(|old| old.watermark < slot.watermark) => best = (Some(slot), at),
            SlotRead::Slot(_) => {}
        }
    }
    Ok(best)
}

/// Writes who holds the lock. Only for messages: whether it reaches the disk does not matter. A file that is longer
/// than a lock file is something else under its name, perhaps a segment: recovery will say so, and it stays as it is.
fn name_holder(file: &dyn DiskFile) -> io::Result<()> {
    if file.size()? > LOCK_BYTES {
        return Ok(());
    }
    let text = format!("process {}\n", std::process::id());
    let mut line = [0; HOLDER_BYTES_MAX];
    line[..text.len()].copy_from_slice(text.as_bytes());
    file.write_at(&line, HOLDER_OFFSET)
}

fn holder(file: &dyn DiskFile) -> String {
    let mut line = [0; HOLDER_BYTES_MAX];
    let bytes = file.read_at(&mut line, HOLDER_OFFSET).unwrap_or(0);
    let text = String::from_utf8_lossy(&line[..bytes]);
    match text.trim_end_matches('\0').trim() {
        "" => "another process".into(),
        text => text.into(),
    }
}

/// Takes a file's lock, waiting at most so long.
pub(crate) fn lock_within(
    file: &dyn DiskFile,
    wait: Duration,
    refusal: impl Fn() -> Error,
    path: &std::path::Path,
) -> Result<()> {
    // A wait beyond the clock's end is one without an end.
    let deadline = Instant::now().checked_add(wait);
    loop {
        if file.try_lock().map_err(Error::io("lock", path))? {
            return Ok(());
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(refusal());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
