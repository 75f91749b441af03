//! Reads single entries and runs of entries from a segment, each checked on its own.
//!
//! Ways of access: while a segment is being filled it is read around the page cache, because its writes go around it
//! too; once it is sealed it is read through the page cache, and what does not verify there is read once more around
//! it before it is called damaged. Positioned reads, not a mapping, so that a media error is an `Err` and not a signal.
//!
//! Where an entry ends is known before it is read: not after the next one begins. Short entries are read alone and
//! copied; runs of entries share a [`Piece`].
//!
//! A handle never holds the descriptor that writes the segment: readers that outlive a log must not keep its lock.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use bytes::Bytes;

use super::index_map::IndexMap;
use super::piece::{Piece, Plan};
use super::scan::{SegmentReader, rebuild_index};
use crate::disk::{Access, AlignedBuf, Disk, DiskFile};
use crate::entry::LogEntry;
use crate::error::{Error, Result};
use crate::format::frame::{OPERATION_HEADER_BYTES, OperationHeader};
use crate::format::index::{self, IndexIdentity};
use crate::format::segment::SegmentHeader;
use crate::format::{Salted, names};

/// What is read for an entry of which nothing tells the length; and the most that is read to be copied out of.
pub(super) const GUESS_BYTES: u64 = 4096;

/// The longest entry whose length is believed before its header was seen.
pub(super) const ROOM_BYTES_MAX: u64 = 1 << 20;

/// A file that is opened when it is first read.
type FileCell = RwLock<Option<Arc<dyn DiskFile>>>;

/// A segment as readers hold it.
pub(crate) struct SegmentHandle {
    pub(crate) header: SegmentHeader,
    seed: Salted,
    disk: Arc<dyn Disk>,
    direct: FileCell,
    buffered: FileCell,
    /// Set when the segment is sealed.
    identity: OnceLock<IndexIdentity>,
    map: RwLock<Option<Arc<IndexMap>>>,
    /// A file or map was opened since anyone asked.
    is_newly_opened: AtomicBool,
}

impl SegmentHandle {
    pub(crate) fn new(disk: Arc<dyn Disk>, header: SegmentHeader) -> SegmentHandle {
        let (direct, buffered, map) = (FileCell::default(), FileCell::default(), RwLock::new(None));
        let (identity, is_newly_opened) = (OnceLock::new(), AtomicBool::new(false));
        let seed = Salted::new(header.salt);
        SegmentHandle { header, seed, disk, direct, buffered, identity, map, is_newly_opened }
    }

    /// Nothing will be written to the segment any more, and all of it is durable.
    pub(crate) fn seal(&self, identity: IndexIdentity) {
        let _ = self.identity.set(identity);
    }

    pub(crate) fn is_sealed(&self) -> bool {
        self.identity.get().is_some()
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.disk.path_of(&names::segment(self.header.sequence))
    }

    fn direct(&self) -> io::Result<Arc<dyn DiskFile>> {
        self.opened(&self.direct, Access::ReadDirect)
    }

    fn buffered(&self) -> io::Result<Arc<dyn DiskFile>> {
        self.opened(&self.buffered, Access::Read)
    }

    fn opened(&self, cell: &FileCell, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        if let Some(file) = &*cell.read().unwrap_or_else(PoisonError::into_inner) {
            return Ok(file.clone());
        }
        let mut cell = cell.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &*cell {
            return Ok(file.clone());
        }
        let file = self.disk.open(&names::segment(self.header.sequence), access)?;
        self.is_newly_opened.store(true, Ordering::Relaxed);
        Ok(cell.insert(file).clone())
    }

    /// Fills `buf` with the segment's bytes from `offset`; fewer only where the file ends.
    fn fill(&self, buf: &mut [u8], offset: u64, around_cache: bool) -> io::Result<usize> {
        if self.is_sealed() && !around_cache {
            return self.buffered()?.read_at(buf, offset);
        }
        // A segment that came from a device with smaller blocks is read in this device's.
        let block = u64::from(self.header.block_bytes.max(self.disk.physical_block_bytes()));
        let start = offset - offset % block;
        let end = (offset + buf.len() as u64).next_multiple_of(block);
        let mut buffer = AlignedBuf::zeroed((end - start) as usize);
        let filled = self.direct()?.read_at(&mut buffer[..(end - start) as usize], start)?;
        let from = ((offset - start) as usize).min(filled);
        let bytes = &buffer[from..(from + buf.len()).min(filled)];
        buf[..bytes.len()].copy_from_slice(bytes);
        Ok(bytes.len())
    }

    /// Bytes of the segment, fewer than asked for only where it ends.
    fn fetch(&self, offset: u64, bytes: u64, around_cache: bool) -> io::Result<Bytes> {
        let bytes = bytes.min(self.header.segment_bytes.saturating_sub(offset));
        let mut buffer = vec![0; bytes as usize];
        let filled = self.fill(&mut buffer, offset, around_cache)?;
        buffer.truncate(filled);
        Ok(buffer.into())
    }

    /// Reads the entry whose header lies at `offset`; `next` is where the entry after it lies, if that is known.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] where it does not verify, on the medium itself; [`Error::Io`].
    pub(crate) fn read_entry(&self, index: u64, offset: u32, next: Option<u32>) -> Result<LogEntry> {
        let room = room(offset, next);
        let read = |around| self.try_entry(index, offset, room, around).map_err(|source| self.read_error(source));
        if let Some(entry) = read(false)? {
            return Ok(entry);
        }
        read(true)?.ok_or_else(|| self.damaged(index, offset))
    }

    /// The path is made only for an error: there is a read for every entry.
    fn read_error(&self, source: io::Error) -> Error {
        Error::io("read", self.path())(source)
    }

    fn damaged(&self, index: u64, offset: u32) -> Error {
        let reason = "the entry does not verify".into();
        Error::Corrupt { file: self.path(), offset: offset.into(), indexes: index..index + 1, reason }
    }

    fn try_entry(&self, index: u64, offset: u32, room: u64, around: bool) -> io::Result<Option<LogEntry>> {
        if room <= GUESS_BYTES && !around && self.is_sealed() {
            let mut buffer = [0; GUESS_BYTES as usize];
            let filled = self.fill(&mut buffer[..room as usize], offset.into(), false)?;
            let bytes = &buffer[..filled];
            if let Some(header) = verified(bytes, index, self.seed, offset) {
                let command = &bytes[OPERATION_HEADER_BYTES..header.bytes() as usize];
                return Ok(Some(entry(&header, Bytes::copy_from_slice(command))));
            }
        }
        let bytes = self.fetch(offset.into(), room, around)?;
        match OperationHeader::decode(&bytes) {
            Some(header) if header.bytes() > bytes.len() as u64 => {
                // The length is believed only as far as the segment goes, and only for a header of this very entry.
                let fits = u64::from(offset) + header.bytes() <= self.header.segment_bytes;
                if !(fits && header.is_entry() && header.index == index) {
                    return Ok(None);
                }
                let bytes = self.fetch(offset.into(), header.bytes(), around)?;
                Ok(entry_in(&bytes, index, self.seed, offset))
            }
            _ => Ok(entry_in(&bytes, index, self.seed, offset)),
        }
    }

    /// Reads entries from `first` on, at these offsets, as many as the plan says, and verifies them. It holds those
    /// that do up to the first that does not; that one is too long for a piece, or damaged, and shows when it is read
    /// alone.
    ///
    /// A piece that is not used any more gives its memory.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub(crate) fn read_piece(
        &self,
        first: u64,
        offsets: impl Iterator<Item = u32>,
        plan: Plan,
        used: Piece,
    ) -> Result<Piece> {
        let Some(mut piece) = Piece::lay_out(offsets, plan, used) else { return Ok(Piece::default()) };
        let room = self.header.segment_bytes.saturating_sub(piece.start());
        let filled = piece.read(room, |buf, offset| self.fill(buf, offset, false));
        filled.map_err(|source| self.read_error(source))?;
        Ok(piece.verified(first, self.seed))
    }

    /// Reads all entries from `first` on at these offsets.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn read_run(&self, first: u64, offsets: &[u32]) -> Result<Vec<LogEntry>> {
        let mut entries: Vec<LogEntry> = Vec::with_capacity(offsets.len());
        let mut piece = Piece::default();
        while entries.len() < offsets.len() {
            let (next, left) = (first + entries.len() as u64, &offsets[entries.len()..]);
            piece = self.read_piece(next, left.iter().copied(), Plan::scan(left.len() as u64), piece)?;
            entries.extend(std::iter::from_fn(|| piece.next()));
            if first + entries.len() as u64 == next {
                entries.push(self.read_entry(next, left[0], left.get(1).copied())?);
            }
        }
        Ok(entries)
    }

    /// The index map, if it is there already.
    pub(crate) fn open_map(&self) -> Option<Arc<IndexMap>> {
        self.map.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The index file, mapped; or, where it is missing or wrong, an index made from the segment.
    pub(crate) fn index_map(&self) -> Result<Arc<IndexMap>> {
        if let Some(map) = self.open_map() {
            return Ok(map);
        }
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(map) = &*map {
            return Ok(map.clone());
        }
        let Some(identity) = self.identity.get() else {
            return Err(Error::Io {
                action: "look up an entry in the index of",
                path: self.path(),
                source: io::Error::other("the segment is not sealed and has no index in memory"),
            });
        };
        let opened = match self.open_index(identity) {
            Some(opened) => opened,
            None => self.rebuild(identity)?,
        };
        self.is_newly_opened.store(true, Ordering::Relaxed);
        Ok(map.insert(Arc::new(opened)).clone())
    }

    /// Whether a file or map was opened since this was last asked, so that somebody can count them.
    pub(crate) fn take_newly_opened(&self) -> bool {
        self.is_newly_opened.load(Ordering::Relaxed) && self.is_newly_opened.swap(false, Ordering::Relaxed)
    }

    /// Whether the file under this segment's name is still this segment: a writer that we only read beside may have
    /// dropped or recycled it. A damaged header is no sign of that: recycling writes a whole one.
    pub(crate) fn is_still_itself(&self) -> bool {
        let named = self.disk.open(&names::segment(self.header.sequence), Access::ReadDirect);
        let is_me = |file: &dyn DiskFile| self.header_of(file).is_none_or(|header| header == self.header);
        named.is_ok_and(|file| is_me(&*file)) && self.direct().is_ok_and(|file| is_me(&*file))
    }

    fn header_of(&self, file: &dyn DiskFile) -> Option<SegmentHeader> {
        let mut block = AlignedBuf::zeroed(4096);
        let filled = file.read_at(&mut block, 0).ok()?;
        SegmentHeader::decode(&block[..filled]).ok()
    }

    fn open_index(&self, identity: &IndexIdentity) -> Option<IndexMap> {
        let file = self.disk.open(&names::index(identity.sequence), Access::Read).ok()?;
        IndexMap::open(&*file, identity).ok()
    }

    fn rebuild(&self, identity: &IndexIdentity) -> Result<IndexMap> {
        let fits_device = self.header.block_bytes >= self.disk.physical_block_bytes();
        let file = if fits_device { self.direct() } else { self.buffered() };
        let file = file.map_err(Error::io("open", self.path()))?;
        let mut reader = SegmentReader::new(file, self.header);
        let rebuilt = rebuild_index(&mut reader, identity, &self.path())?;
        let bytes = index::encode(&rebuilt, identity);
        IndexMap::from_bytes(bytes, identity).map_err(|defect| Error::Corrupt {
            file: self.path(),
            offset: 0,
            indexes: rebuilt.range(),
            reason: format!("its entries cannot be indexed: {defect}"),
        })
    }

    /// Closes what was opened; the next read opens it again.
    pub(crate) fn close(&self) {
        *self.map.write().unwrap_or_else(PoisonError::into_inner) = None;
        for cell in [&self.direct, &self.buffered] {
            *cell.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// Reads an entry by index, from a sealed segment. An index file that leads astray is only derived: the entry is
    /// looked up once more in an index made from the segment before anything is called damaged.
    pub(crate) fn read_sealed(&self, index: u64) -> Result<LogEntry> {
        match self.look_up(&*self.index_map()?, index) {
            Some(Ok(entry)) => Ok(entry),
            Some(Err(Error::Corrupt { .. })) | None => {
                let map = self.replace_index()?;
                self.look_up(&map, index).unwrap_or_else(|| Err(self.damaged(index, 0)))
            }
            Some(Err(other)) => Err(other),
        }
    }

    fn look_up(&self, map: &IndexMap, index: u64) -> Option<Result<LogEntry>> {
        let mut offsets = map.offsets_from(index);
        let offset = offsets.next()?;
        Some(self.read_entry(index, offset, offsets.next()))
    }

    fn replace_index(&self) -> Result<Arc<IndexMap>> {
        let Some(identity) = self.identity.get() else { return self.index_map() };
        let rebuilt = Arc::new(self.rebuild(identity)?);
        *self.map.write().unwrap_or_else(PoisonError::into_inner) = Some(rebuilt.clone());
        Ok(rebuilt)
    }
}

/// How much is read at first for the entry at `offset`.
fn room(offset: u32, next: Option<u32>) -> u64 {
    let room = next.and_then(|next| next.checked_sub(offset)).map(u64::from);
    room.filter(|room| (OPERATION_HEADER_BYTES as u64..=ROOM_BYTES_MAX).contains(room)).unwrap_or(GUESS_BYTES)
}

/// The header at the start of `bytes`, which lie at `place` in the segment, if its entry is there, whole, and has this
/// index.
#[inline]
pub(super) fn verified(bytes: &[u8], index: u64, seed: Salted, place: u32) -> Option<OperationHeader> {
    let header = OperationHeader::decode(bytes)?;
    let whole = bytes.get(..usize::try_from(header.bytes()).ok()?)?;
    (header.is_entry() && header.index == index && header.verifies(whole, seed, place)).then_some(header)
}

#[inline]
pub(super) fn entry(header: &OperationHeader, command: Bytes) -> LogEntry {
    LogEntry { term: header.term, index: header.index, command, timestamp: header.timestamp }
}

/// The entry at the start of `bytes`, which lie at `place`, if it is there, whole, and has this index.
fn entry_in(bytes: &Bytes, index: u64, seed: Salted, place: u32) -> Option<LogEntry> {
    let header = verified(bytes, index, seed, place)?;
    let end = header.bytes() as usize;
    // What was read beyond it is not to be kept along with it.
    let shares = end > bytes.len() / 2;
    let command = OPERATION_HEADER_BYTES..end;
    Some(entry(&header, if shares { bytes.slice(command) } else { Bytes::copy_from_slice(&bytes[command]) }))
}

/// Writes the index file of a sealed segment: whole, under a temporary name, then renamed. Not synced: it is derived,
/// and one that a crash tore is recognised and made anew.
pub(crate) fn write_index(disk: &dyn Disk, built: &index::SegmentIndex, identity: &IndexIdentity) -> Result<()> {
    let name = names::index(identity.sequence);
    let temporary = names::temporary(&name);
    let path = disk.path_of(&name);
    let bytes = index::encode(built, identity);
    let write = || {
        let file = disk.open(&temporary, Access::Create)?;
        // Room is reserved first: a mapped page without a block behind it would be a signal, not an error.
        file.allocate(bytes.len() as u64)?;
        file.write_at(&bytes, 0)?;
        disk.rename(&temporary, &name)
    };
    let written = write().map_err(Error::io("write", &path));
    if written.is_err() {
        let _ = disk.remove(&temporary);
    }
    written
}
