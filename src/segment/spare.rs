//! Makes segments ready before they are needed: allocated, zero-filled (or recycled), with a header, synced, named.
//!
//! The order is what makes a crash harmless at every step:
//!
//! 1. A file to recycle first loses its segment name (rename to a temporary one, directory synced): from here on no
//!    recovery can take it for what it was. Where that sync fails, the file is left alone for good.
//! 2. Bytes, then header, then sync: the header is durable before the file has a segment name, so a named segment whose
//!    header does not verify is damaged, never half made.
//! 3. The lock is taken through the descriptor that will write the segment, then comes the rename, then the sync of the
//!    directory. Only now may a frame go there, or the frame could be lost with the name.
//!
//! Zero-filling is what makes later writes fast: a first write into an unwritten extent costs a metadata update each.

use std::sync::Arc;

use crate::disk::{Access, AlignedBuf, Disk, DiskFile};
use crate::engine::pace::PIECE_BYTES;
use crate::engine::sequencer::Plot;
use crate::error::{Error, Result};
use crate::format::names;
use crate::format::segment::SegmentHeader;

/// Spares beyond those asked for that are made of dropped segments: compaction drops several at once and rarely just when
/// a spare is wanted, and a recycled spare saves writing a segment of zeros.
pub(crate) const RECYCLED_EXTRA: usize = 2;

/// Says, after so many bytes were filled, how large the next piece may be; `None` gives the work up. It may take its
/// time.
pub(crate) type Pacer<'a> = &'a mut dyn FnMut(u64) -> Option<usize>;

/// As fast as it goes.
pub(crate) fn at_once(_filled_bytes: u64) -> Option<usize> {
    Some(PIECE_BYTES)
}

/// A segment and the file it is written through.
#[derive(Clone)]
pub(crate) struct OpenSegment {
    pub(crate) header: SegmentHeader,
    pub(crate) file: Arc<dyn DiskFile>,
}

impl OpenSegment {
    pub(crate) fn plot(&self) -> Plot {
        let SegmentHeader { sequence, salt, block_bytes, segment_bytes, .. } = self.header;
        Plot { sequence, salt, block_bytes, segment_bytes }
    }
}

/// What segments of this size are filled with; kept by whoever makes many, since making it takes half a millisecond.
pub(crate) fn zeros(segment_bytes: u64) -> AlignedBuf {
    AlignedBuf::zeroed(PIECE_BYTES.min(segment_bytes as usize))
}

/// Makes a segment from nothing, at the given pace; `None` where the pacer gave it up.
///
/// # Errors
///
/// [`Error::NoSpace`] where the disk is full; nothing stays behind then.
pub(crate) fn make(
    disk: &dyn Disk,
    header: &SegmentHeader,
    durable_writes: bool,
    zeros: &AlignedBuf,
    pacer: Pacer<'_>,
) -> Result<Option<OpenSegment>> {
    let temporary = names::temporary(&names::segment(header.sequence));
    let made = fill(disk, &temporary, header, zeros, pacer).and_then(|is_full| match is_full {
        true => publish(disk, &temporary, header, durable_writes).map(Some),
        false => Ok(None),
    });
    if !matches!(made, Ok(Some(_))) {
        // A left-over is harmless but would keep the space that just proved scarce.
        let _ = disk.remove(&temporary);
    }
    made
}

/// Makes a segment of a dropped one, which nobody reads any more: its bytes stay, its salt does not.
///
/// # Errors
///
/// [`Error::Io`]; the old file is gone or has a temporary name then.
pub(crate) fn recycle(disk: &dyn Disk, old: u64, header: &SegmentHeader, durable_writes: bool) -> Result<OpenSegment> {
    let temporary = names::temporary(&names::segment(header.sequence));
    let old_path = disk.path_of(&names::segment(old));
    disk.rename(&names::segment(old), &temporary).map_err(Error::io("rename", &old_path))?;
    let synced = disk.sync_dir().map_err(Error::io("sync", disk.path()));
    let made = synced.and_then(|()| publish(disk, &temporary, header, durable_writes));
    if made.is_err() {
        let _ = disk.remove(&temporary);
    }
    made
}

/// Removes a dropped segment. The removal need not be durable: a left-over is recognised at open.
pub(crate) fn remove(disk: &dyn Disk, sequence: u64) -> Result<()> {
    let name = names::segment(sequence);
    disk.remove(&name).map_err(Error::io("remove", disk.path_of(&name)))
}

/// Allocates a file and fills it with zeros; whether it was not given up.
fn fill(
    disk: &dyn Disk,
    temporary: &str,
    header: &SegmentHeader,
    zeros: &AlignedBuf,
    pacer: Pacer<'_>,
) -> Result<bool> {
    let path = disk.path_of(temporary);
    let full = |action| {
        let wrap = Error::io(action, &path);
        move |source| {
            let error = wrap(source);
            if error.is_out_of_space() { Error::NoSpace } else { error }
        }
    };
    // Asked before anything is done: making and allocating a file would be felt as well.
    let Some(mut piece) = pacer(0) else { return Ok(false) };
    // A left-over may be a segment to be recycled, of whose old name a crash can still undo the loss: it is not emptied,
    // or it would be empty under that name.
    match disk.remove(temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(full("remove")(error)),
        _ => {}
    }
    let file = disk.open(temporary, Access::CreateSegment).map_err(full("create"))?;
    file.allocate(header.segment_bytes).map_err(full("allocate"))?;
    let mut offset = 0;
    loop {
        let bytes = (zeros.len().min(piece) as u64).min(header.segment_bytes - offset);
        file.write_at(&zeros[..bytes as usize], offset).map_err(full("zero-fill"))?;
        offset += bytes;
        if offset == header.segment_bytes {
            return Ok(true);
        }
        let Some(next) = pacer(offset) else { return Ok(false) };
        piece = next;
    }
}

fn publish(disk: &dyn Disk, temporary: &str, header: &SegmentHeader, durable_writes: bool) -> Result<OpenSegment> {
    let path = disk.path_of(temporary);
    let access = Access::Segment { durable: durable_writes };
    let file = disk.open(temporary, access).map_err(Error::io("open", &path))?;
    let mut block = AlignedBuf::zeroed(header.block_bytes as usize);
    header.encode(&mut block);
    file.write_at(&block[..header.block_bytes as usize], 0).map_err(Error::io("write", &path))?;
    file.sync().map_err(Error::io("sync", &path))?;
    if !file.try_lock().map_err(Error::io("lock", &path))? {
        return Err(Error::Locked { path, holder: "another process".into() });
    }
    let name = names::segment(header.sequence);
    disk.rename(temporary, &name).map_err(Error::io("rename", &path))?;
    disk.sync_dir().map_err(Error::io("sync", disk.path()))?;
    // Renaming changed the file's inode. Without this the first frame's durable write would have to carry that along.
    file.sync().map_err(Error::io("sync", disk.path_of(&name)))?;
    Ok(OpenSegment { header: *header, file })
}
