//! Reads a segment frame by frame: bytes through a window, heads alone, frames whole or not.
//!
//! Reads through whatever descriptor it is given, in block multiples, so a direct one will do. Memory is bounded by the
//! window, or by one frame where that is larger; a frame's length is believed only after its head verified and fits
//! the segment.
//!
//! An I/O error is returned as such: it is never evidence about the log.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

use crate::disk::{Access, AlignedBuf, Disk, DiskFile};
use crate::engine::recovery::{self, Fit, Replay};
use crate::error::{Error, Result};
use crate::format::frame::{self, FrameDefect, Head, HeadRead, WholeFrame};
use crate::format::index::{IndexIdentity, SegmentIndex};
use crate::format::segment::SegmentHeader;
use crate::plant::{Plant, planted};

/// How much is read at once.
const WINDOW_BYTES: u64 = 1 << 20;

/// What stands at a place where a frame could.
#[derive(Debug)]
pub(crate) enum Found {
    /// No head verifies.
    Nothing,
    /// A head verifies; the frame is not whole.
    NotWhole,
    /// A newer version wrote it.
    Newer(String),
    /// A whole frame.
    Whole(Box<WholeFrame>),
}

/// A segment that is opened for each read: for those that are seldom read, of which there may be more than a process
/// can have open.
pub(crate) struct OnDemand {
    disk: Arc<dyn Disk>,
    name: String,
}

impl OnDemand {
    pub(crate) fn new(disk: Arc<dyn Disk>, name: String) -> OnDemand {
        OnDemand { disk, name }
    }

    fn open(&self) -> io::Result<Arc<dyn DiskFile>> {
        self.disk.open(&self.name, Access::Read)
    }
}

impl DiskFile for OnDemand {
    fn size(&self) -> io::Result<u64> {
        self.open()?.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.open()?.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.disk.open(&self.name, Access::Segment { durable: true })?.write_at(buf, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.open(&self.name, Access::ReadWrite)?.sync()
    }

    fn allocate(&self, _bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn try_lock(&self) -> io::Result<bool> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// See the module.
pub(crate) struct SegmentReader {
    file: Arc<dyn DiskFile>,
    pub(crate) header: SegmentHeader,
    window: AlignedBuf,
    window_start: u64,
    window_filled: usize,
}

impl SegmentReader {
    pub(crate) fn new(file: Arc<dyn DiskFile>, header: SegmentHeader) -> SegmentReader {
        SegmentReader { file, header, window: AlignedBuf::zeroed(0), window_start: 0, window_filled: 0 }
    }

    /// Gives the window's memory back; reading goes on as before.
    pub(crate) fn release(&mut self) {
        (self.window, self.window_start, self.window_filled) = (AlignedBuf::zeroed(0), 0, 0);
    }

    /// Reads anew whatever is asked for next.
    pub(crate) fn forget(&mut self) {
        self.window_filled = 0;
    }

    pub(crate) fn block_bytes(&self) -> u64 {
        u64::from(self.header.block_bytes)
    }

    /// The bytes from a block's start, fewer than asked for only where the file ends.
    pub(crate) fn bytes(&mut self, offset: u64, bytes: u64) -> io::Result<&[u8]> {
        let bytes = bytes.min(self.header.segment_bytes.saturating_sub(offset));
        if !(self.window_start <= offset && offset + bytes <= self.end()) {
            self.load(offset, bytes)?;
        }
        let start = (offset - self.window_start) as usize;
        let end = (start + bytes as usize).min(self.window_filled);
        Ok(&self.window[start.min(end)..end])
    }

    /// Where the loaded bytes end.
    fn end(&self) -> u64 {
        self.window_start + self.window_filled as u64
    }

    fn load(&mut self, offset: u64, bytes: u64) -> io::Result<()> {
        // A look at one place reads no more than it needs; whoever goes on from there reads ahead.
        let goes_on = self.window_filled > 0 && (self.window_start..=self.end()).contains(&offset);
        let ahead = if goes_on { WINDOW_BYTES.min(self.header.segment_bytes - offset) } else { 0 };
        let wanted = bytes.max(ahead);
        let wanted = wanted.next_multiple_of(self.block_bytes()) as usize;
        if self.window.len() < wanted {
            self.window = AlignedBuf::zeroed(wanted);
        }
        self.window_filled = 0;
        self.window_filled = self.file.read_at(&mut self.window[..wanted], offset)?;
        self.window_start = offset;
        Ok(())
    }

    /// Looks for a head alone.
    pub(crate) fn head_at(&mut self, offset: u64) -> io::Result<HeadRead> {
        let salt = self.header.salt;
        let block = self.block_bytes();
        Ok(Head::decode(self.bytes(offset, block)?, salt))
    }

    /// Looks for a whole frame.
    pub(crate) fn frame_at(&mut self, offset: u64) -> io::Result<Found> {
        let head = match self.head_at(offset)? {
            HeadRead::Absent => return Ok(Found::Nothing),
            HeadRead::Newer(what) => return Ok(Found::Newer(what)),
            HeadRead::Head(head) => head,
        };
        if !head.lengths_fit(self.header.block_bytes, self.header.segment_bytes - offset) {
            return Ok(Found::NotWhole);
        }
        let bytes = self.bytes(offset, u64::from(head.frame_bytes))?;
        Ok(match frame::verify(&head, bytes) {
            Ok(frame) => Found::Whole(Box::new(frame)),
            Err(FrameDefect::Newer(what)) => Found::Newer(what),
            Err(FrameDefect::NotWhole(_)) => Found::NotWhole,
        })
    }

    /// Calls `visit` with the place of every head from `offset` to the end of the segment that verifies alone, until
    /// it answers `false`. A head of a newer version is visited as an error.
    pub(crate) fn heads_from(
        &mut self,
        offset: u64,
        mut visit: impl FnMut(u64, std::result::Result<&Head, &str>) -> bool,
    ) -> io::Result<()> {
        let mut offset = offset;
        while offset < self.header.segment_bytes {
            let go_on = match self.head_at(offset)? {
                HeadRead::Absent => true,
                HeadRead::Newer(what) => visit(offset, Err(&what)),
                HeadRead::Head(head) => visit(offset, Ok(&head)),
            };
            if !go_on || planted(Plant::OneBlockBehind) {
                break;
            }
            offset += self.block_bytes();
        }
        Ok(())
    }
}

/// Makes the index of a sealed segment from its frames, all of which the next segment proves durable.
///
/// # Errors
///
/// [`Error::Corrupt`] where a frame is damaged; [`Error::Unsupported`]; [`Error::Io`].
pub(crate) fn rebuild_index(
    segment: &mut SegmentReader,
    identity: &IndexIdentity,
    path: &Path,
) -> Result<SegmentIndex> {
    let SegmentHeader { sequence, segment_bytes, .. } = segment.header;
    let mut replay = Replay::default();
    let mut offset = segment.block_bytes();
    let corrupt = |replay: &Replay, offset, reason: String| {
        let first = replay.ledger.outline.state.next.unwrap_or(0);
        Error::Corrupt { file: path.into(), offset, indexes: first..u64::MAX, reason }
    };
    while replay.last.is_none_or(|last| last.number < identity.last_frame) {
        match segment.frame_at(offset).map_err(Error::io("read", path))? {
            Found::Whole(frame) if recovery::fits(replay.last.as_ref(), &frame.head, offset) == Fit::Next => {
                let followed = replay.follow(&frame, sequence, offset, segment_bytes);
                followed.map_err(|why| corrupt(&replay, offset, why))?;
                offset += u64::from(frame.head.frame_bytes);
            }
            Found::Newer(what) => return Err(Error::Unsupported { file: path.into(), offset, what }),
            _ => {
                let reason = "a frame is damaged, and later segments prove it durable";
                return Err(corrupt(&replay, offset, reason.into()));
            }
        }
    }
    if replay.last.map(|last| last.checksum) != Some(identity.last_head_checksum) {
        let reason = "its last frame is not the one that the next segment follows";
        return Err(corrupt(&replay, offset, reason.into()));
    }
    let index = replay.ledger.indexes.remove(&sequence);
    Ok(index.map(Arc::unwrap_or_clone).unwrap_or_default())
}
