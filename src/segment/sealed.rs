//! Reads single entries and runs of entries from a segment, each checked on its own.
//!
//! Ways of access: while a segment is being filled it is read around the page cache, because its writes go around it
//! too; once it is sealed it is read through the page cache, and what does not verify there is read once more around
//! it before it is called damaged. Positioned reads, not a mapping, so that a media error is an `Err` and not a signal.
//!
//! A handle never holds the descriptor that writes the segment: readers that outlive a log must not keep its lock.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;

use super::index_map::IndexMap;
use super::scan::{SegmentReader, rebuild_index};
use crate::disk::{Access, AlignedBuf, Disk, DiskFile};
use crate::entry::LogEntry;
use crate::error::{Error, Result};
use crate::format::frame::{OPERATION_HEADER_BYTES, OperationHeader};
use crate::format::index::{self, IndexIdentity};
use crate::format::names;
use crate::format::segment::SegmentHeader;

/// First guess at an entry's size: one read finds and proves most entries.
const GUESS_BYTES: u64 = 4096;

/// How much a run of entries reads at once.
const RUN_BYTES: u64 = 256 << 10;

/// A file that is opened when it is first read.
type FileCell = Mutex<Option<Arc<dyn DiskFile>>>;

/// A segment as readers hold it.
pub(crate) struct SegmentHandle {
    pub(crate) header: SegmentHeader,
    disk: Arc<dyn Disk>,
    direct: FileCell,
    buffered: FileCell,
    /// Set when the segment is sealed.
    identity: OnceLock<IndexIdentity>,
    map: Mutex<Option<Arc<IndexMap>>>,
    /// A file or map was opened since anyone asked.
    is_newly_opened: AtomicBool,
}

impl SegmentHandle {
    pub(crate) fn new(disk: Arc<dyn Disk>, header: SegmentHeader) -> SegmentHandle {
        let (direct, buffered, map) = (FileCell::default(), FileCell::default(), Mutex::new(None));
        let (identity, is_newly_opened) = (OnceLock::new(), AtomicBool::new(false));
        SegmentHandle { header, disk, direct, buffered, identity, map, is_newly_opened }
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
        let mut cell = cell.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &*cell {
            return Ok(file.clone());
        }
        let file = self.disk.open(&names::segment(self.header.sequence), access)?;
        self.is_newly_opened.store(true, Ordering::Relaxed);
        Ok(cell.insert(file).clone())
    }

    /// Bytes of the segment, fewer than asked for only where it ends.
    fn fetch(&self, offset: u64, bytes: u64, around_cache: bool) -> io::Result<Bytes> {
        let bytes = bytes.min(self.header.segment_bytes.saturating_sub(offset));
        if self.is_sealed() && !around_cache {
            let mut buffer = vec![0; bytes as usize];
            let filled = self.buffered()?.read_at(&mut buffer, offset)?;
            buffer.truncate(filled);
            return Ok(buffer.into());
        }
        // A segment that came from a device with smaller blocks is read in this device's.
        let block = u64::from(self.header.block_bytes.max(self.disk.physical_block_bytes()));
        let start = offset - offset % block;
        let end = (offset + bytes).next_multiple_of(block);
        let mut buffer = AlignedBuf::zeroed((end - start) as usize);
        let filled = self.direct()?.read_at(&mut buffer[..(end - start) as usize], start)?;
        let from = ((offset - start) as usize).min(filled);
        let to = (from + bytes as usize).min(filled);
        Ok(Bytes::copy_from_slice(&buffer[from..to]))
    }

    /// Reads the entry whose header lies at `offset`.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] where it does not verify, on the medium itself; [`Error::Io`].
    pub(crate) fn read_entry(&self, index: u64, offset: u32) -> Result<LogEntry> {
        let read = |around| self.try_entry(index, offset, around).map_err(|source| self.read_error(source));
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

    fn try_entry(&self, index: u64, offset: u32, around: bool) -> io::Result<Option<LogEntry>> {
        let bytes = self.fetch(offset.into(), GUESS_BYTES, around)?;
        match OperationHeader::decode(&bytes) {
            Some(header) if header.bytes() > bytes.len() as u64 => {
                // The length is believed only as far as the segment goes, and only for a header of this very entry.
                let fits = u64::from(offset) + header.bytes() <= self.header.segment_bytes;
                if !(fits && header.is_entry() && header.index == index) {
                    return Ok(None);
                }
                let bytes = self.fetch(offset.into(), header.bytes(), around)?;
                Ok(entry_in(&bytes, index, self.header.salt))
            }
            _ => Ok(entry_in(&bytes, index, self.header.salt)),
        }
    }

    /// Reads entries `first..` at these offsets until their payloads pass `bytes_max`; at least one.
    pub(crate) fn read_run(&self, first: u64, offsets: &[u32], bytes_max: usize) -> Result<Vec<LogEntry>> {
        let mut entries = Vec::new();
        let mut taken = 0;
        let mut chunk = (0u64, Bytes::new());
        for (index, &offset) in (first..).zip(offsets) {
            let start = u64::from(offset);
            let entry = match self.entry_in_chunk(&chunk, index, start) {
                Some(entry) => entry,
                None => {
                    let last = u64::from(*offsets.last().unwrap_or(&offset));
                    let bytes = RUN_BYTES.min(last.saturating_sub(start) + GUESS_BYTES);
                    chunk = (start, self.fetch(start, bytes, false).map_err(|source| self.read_error(source))?);
                    // One that still does not verify is too long for a chunk, or damaged: read alone, it shows.
                    match self.entry_in_chunk(&chunk, index, start) {
                        Some(entry) => entry,
                        None => self.read_entry(index, offset)?,
                    }
                }
            };
            if !entries.is_empty() && taken + entry.command.len() > bytes_max {
                break;
            }
            taken += entry.command.len();
            entries.push(entry);
        }
        Ok(entries)
    }

    fn entry_in_chunk(&self, (start, bytes): &(u64, Bytes), index: u64, offset: u64) -> Option<LogEntry> {
        let at = offset.checked_sub(*start).filter(|&at| at < bytes.len() as u64)? as usize;
        entry_in(&bytes.slice(at..), index, self.header.salt)
    }

    /// The index map, if it is there already.
    pub(crate) fn open_map(&self) -> Option<Arc<IndexMap>> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The index file, mapped; or, where it is missing or wrong, an index made from the segment.
    pub(crate) fn index_map(&self) -> Result<Arc<IndexMap>> {
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
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
        *self.map.lock().unwrap_or_else(PoisonError::into_inner) = None;
        for cell in [&self.direct, &self.buffered] {
            *cell.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// Reads an entry by index, from a sealed segment. An index file that leads astray is only derived: the entry is
    /// looked up once more in an index made from the segment before anything is called damaged.
    pub(crate) fn read_sealed(&self, index: u64) -> Result<LogEntry> {
        let looked_up = self.index_map()?.offset_of(index).map(|offset| self.read_entry(index, offset));
        match looked_up {
            Some(Ok(entry)) => Ok(entry),
            Some(Err(Error::Corrupt { .. })) | None => {
                let map = self.replace_index()?;
                let offset = map.offset_of(index).ok_or_else(|| self.damaged(index, 0))?;
                self.read_entry(index, offset)
            }
            Some(Err(other)) => Err(other),
        }
    }

    fn replace_index(&self) -> Result<Arc<IndexMap>> {
        let Some(identity) = self.identity.get() else { return self.index_map() };
        let rebuilt = Arc::new(self.rebuild(identity)?);
        *self.map.lock().unwrap_or_else(PoisonError::into_inner) = Some(rebuilt.clone());
        Ok(rebuilt)
    }
}

/// The entry at the start of `bytes`, if it is there, whole, and has this index.
fn entry_in(bytes: &Bytes, index: u64, salt: u64) -> Option<LogEntry> {
    let header = OperationHeader::decode(bytes)?;
    let end = usize::try_from(header.bytes()).ok().filter(|&end| end <= bytes.len())?;
    let verifies = header.is_entry() && header.index == index && header.verifies(&bytes[..end], salt);
    verifies.then(|| LogEntry {
        term: header.term,
        index,
        command: bytes.slice(OPERATION_HEADER_BYTES..end),
        timestamp: header.timestamp,
    })
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
