//! Reads a snapshot file: streams the state back, seeks in it, verifies it.
//!
//! A chunk is read from the file, verified against its header and the seek table, decompressed and verified again
//! before a byte of it is handed out. Once two chunks in a row were asked for, threads read and decompress ahead of the
//! caller. Reads of the file are whole blocks into aligned memory, so that files opened past the page cache will do
//! too.
//!
//! Invariants: no byte that does not verify is handed out; whoever reads from the start to the end has also had the
//! checksum of the whole verified, before the last chunk is handed out; damage is an error each time it is met, and
//! never the end of the state; memory is bounded by the size of a few chunks, whose limit is the format's, and by the
//! seek table, which is read only once the trailer, verified, says that it is so large.
//!
//! Does not know names or directories.

use std::io::{self, BufRead, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::Sender;
use zstd::bulk::Decompressor;

use super::SnapshotError;
use super::pace::Pace;
use super::pool::{self, InOrder, Job, Threads};
use crate::disk::{AlignedBuf, DiskFile};
use crate::format::snapshot::{
    CHUNK_HEADER_BYTES, ChunkHeader, END_BYTES, SNAPSHOT_BLOCK_BYTES, SnapshotDefect, SnapshotEnd, SnapshotHeader,
    SnapshotMeta, SnapshotTable, SnapshotTotals, combined_checksum, raw_checksum,
};

/// Threads that decompress ahead.
const WORKERS_MAX: usize = 2;

/// A state that is read from a snapshot file.
#[derive(Debug)]
pub struct SnapshotReader {
    source: Arc<Source>,
    workers: usize,
    low_priority: bool,
    /// Where in the state the next byte is read.
    position: u64,
    /// The chunk that is in memory.
    current: Piece,
    decoder: Decoder,
    ahead: Option<Ahead>,
    so_far: SoFar,
}

impl SnapshotReader {
    /// Opens a file and verifies its header and its end; chunks are verified as they are read.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Corrupt`], [`SnapshotError::Unsupported`], [`SnapshotError::Io`].
    pub(crate) fn open(file: Arc<dyn DiskFile>, path: PathBuf) -> Result<SnapshotReader, SnapshotError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        SnapshotReader::open_with(file, path, cores, false)
    }

    /// As [`SnapshotReader::open`], with these many threads of this priority to read ahead; with 0 none is ever
    /// started.
    pub(crate) fn open_with(
        file: Arc<dyn DiskFile>,
        path: PathBuf,
        workers: usize,
        low_priority: bool,
    ) -> Result<SnapshotReader, SnapshotError> {
        let source = Arc::new(Source::open(file, path)?);
        let decoder = Decoder::new(&source, Pace::new(low_priority, 1))?;
        let workers = workers.min(WORKERS_MAX);
        let (current, so_far) = (Piece::default(), SoFar::default());
        Ok(SnapshotReader { source, workers, low_priority, position: 0, current, decoder, ahead: None, so_far })
    }

    /// Which state it is.
    pub fn meta(&self) -> &SnapshotMeta {
        &self.source.header.meta
    }

    /// What tells this very file, and copies of it, from any other of the same state.
    #[cfg(feature = "openraft")]
    pub(crate) fn salt(&self) -> u64 {
        self.source.header.salt
    }

    /// What the file amounts to.
    pub fn totals(&self) -> &SnapshotTotals {
        self.source.table.totals()
    }

    /// Reads and verifies everything. Where reading goes on afterwards is not changed.
    ///
    /// # Errors
    ///
    /// The first defect, or the first failure of the disk.
    pub fn verify(&mut self) -> Result<(), SnapshotError> {
        self.verify_while(&|| true)
    }

    /// As [`SnapshotReader::verify`]; fails before the next chunk where it is not to go on.
    pub(super) fn verify_while(&mut self, goes_on: &dyn Fn() -> bool) -> Result<(), SnapshotError> {
        let position = self.position;
        let outcome = (0..self.totals().chunks).try_for_each(|number| match goes_on() {
            true => self.load(number),
            false => Err(SnapshotError::io("verify", &self.source.path)(io::Error::other("it was given up"))),
        });
        self.position = position;
        outcome.and_then(|()| self.check_the_whole())
    }

    /// The rest of the chunk at the position; empty at the end of the state.
    fn rest(&mut self) -> Result<&[u8], SnapshotError> {
        let Some(number) = self.source.table.chunk_at(self.position) else {
            if self.position == self.totals().raw_bytes {
                self.check_the_whole()?;
            }
            return Ok(&[]);
        };
        if self.current.number != Some(number) {
            self.load(number)?;
        }
        let from = (self.position - self.source.table.raw_offset(number)) as usize;
        Ok(&self.current.raw[from..])
    }

    /// Brings a chunk into memory, verified.
    fn load(&mut self, number: u64) -> Result<(), SnapshotError> {
        let follows = self.current.number.is_some_and(|last| last + 1 == number);
        self.current.number = None;
        if self.ahead.as_ref().is_some_and(|ahead| ahead.next != number) {
            self.ahead = None;
        }
        if follows && self.ahead.is_none() && self.workers > 0 {
            self.ahead = Some(Ahead::start(&self.source, self.workers, self.low_priority, number)?);
        }
        let outcome = match &mut self.ahead {
            Some(ahead) => ahead.take(&mut self.current, &self.source),
            None => self.decoder.decode(&self.source, number, &mut self.current),
        };
        if outcome.is_err() {
            self.ahead = None;
        }
        outcome?;
        self.so_far.take_in(number, &self.current);
        if number + 1 == self.totals().chunks {
            self.check_the_whole()?;
        }
        self.current.number = Some(number);
        Ok(())
    }

    /// Fails where everything was read from the start and is not, as a whole, what the file says.
    fn check_the_whole(&self) -> Result<(), SnapshotError> {
        let totals = self.totals();
        if self.so_far.chunks == totals.chunks && self.so_far.checksum != totals.checksum {
            let reason = "the whole state does not match its checksum";
            return Err(SnapshotError::of(SnapshotDefect::Corrupt { offset: 0, reason }, &self.source.path));
        }
        Ok(())
    }
}

impl Read for SnapshotReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let rest = self.rest()?;
        let count = rest.len().min(buf.len());
        buf[..count].copy_from_slice(&rest[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for SnapshotReader {
    /// The rest of the present chunk, verified.
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Ok(self.rest()?)
    }

    fn consume(&mut self, count: usize) {
        self.position += count as u64;
    }
}

impl Seek for SnapshotReader {
    /// Goes to an offset of the state; reading there reads and verifies the chunk it lies in.
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::Current(distance) => self.position.checked_add_signed(distance),
            SeekFrom::End(distance) => self.totals().raw_bytes.checked_add_signed(distance),
        };
        let before = || io::Error::new(io::ErrorKind::InvalidInput, "a seek to before the start of the state");
        self.position = position.ok_or_else(before)?;
        Ok(self.position)
    }
}

/// The checksum of the chunks from the first on, as far as they were read in order.
#[derive(Clone, Copy, Debug, Default)]
struct SoFar {
    chunks: u64,
    checksum: u32,
}

impl SoFar {
    fn take_in(&mut self, number: u64, piece: &Piece) {
        if number == 0 {
            *self = SoFar::default();
        }
        if number == self.chunks {
            self.checksum = combined_checksum(self.checksum, piece.checksum, piece.raw.len());
            self.chunks += 1;
        }
    }
}

/// The file, with what is known of it from its two ends.
struct Source {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    header: SnapshotHeader,
    table: SnapshotTable,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Source({}, {:?})", self.path.display(), self.header)
    }
}

impl Source {
    fn open(file: Arc<dyn DiskFile>, path: PathBuf) -> Result<Source, SnapshotError> {
        let defect = |defect| SnapshotError::of(defect, &path);
        let read = || SnapshotError::io("read", &path);
        let file_bytes = file.size().map_err(read())?;
        let mut window = Window::default();
        let start = window.read(&*file, 0..file_bytes.min(SNAPSHOT_BLOCK_BYTES)).map_err(read())?;
        let header = SnapshotHeader::decode(start).map_err(defect)?;
        let end = file_bytes.saturating_sub(END_BYTES as u64)..file_bytes;
        let end = window.read(&*file, end).map_err(read())?.first_chunk();
        let end = end.ok_or(SnapshotDefect::Corrupt { offset: 0, reason: "the file is cut short" }).map_err(defect)?;
        let end = SnapshotEnd::decode(end, file_bytes).map_err(defect)?;
        let trailer = window.read(&*file, end.trailer()).map_err(read())?;
        end.check_trailer(trailer, &header).map_err(defect)?;
        let tail = window.read(&*file, end.trailer().start..file_bytes).map_err(read())?;
        let table = SnapshotTable::decode(tail, file_bytes, &header).map_err(defect)?;
        Ok(Source { file, path, header, table })
    }
}

/// Memory that pieces of the file are read into, by whole blocks.
#[derive(Debug, Default)]
struct Window(Option<AlignedBuf>);

impl Window {
    /// The bytes of the file in this range: fewer where it ends earlier.
    fn read(&mut self, file: &dyn DiskFile, range: std::ops::Range<u64>) -> io::Result<&[u8]> {
        let start = range.start - range.start % SNAPSHOT_BLOCK_BYTES;
        let bytes = (range.end.next_multiple_of(SNAPSHOT_BLOCK_BYTES) - start) as usize;
        let buffer = match self.0.take().filter(|buffer| buffer.len() >= bytes) {
            Some(buffer) => self.0.insert(buffer),
            None => self.0.insert(AlignedBuf::zeroed(bytes)),
        };
        let count = file.read_at(&mut buffer[..bytes], start)?;
        let (from, to) = ((range.start - start) as usize, (range.end - start) as usize);
        Ok(&buffer[from.min(count)..to.min(count)])
    }
}

/// A chunk in memory.
#[derive(Debug, Default)]
struct Piece {
    number: Option<u64>,
    raw: Vec<u8>,
    checksum: u32,
}

/// A zstd context and a window, used again and again.
struct Decoder {
    context: Decompressor<'static>,
    window: Window,
    pace: Pace,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Decoder")
    }
}

impl Decoder {
    fn new(source: &Source, pace: Pace) -> Result<Decoder, SnapshotError> {
        let context = Decompressor::new().map_err(SnapshotError::io("decompress", &source.path))?;
        Ok(Decoder { context, window: Window::default(), pace })
    }

    /// Reads, verifies, decompresses and verifies a chunk.
    fn decode(&mut self, source: &Source, number: u64, piece: &mut Piece) -> Result<(), SnapshotError> {
        let place = source.table.place(number).unwrap_or_default();
        let read = self.pace.work(|| self.window.read(&*source.file, place.clone()));
        let bytes = read.map_err(SnapshotError::io("read", &source.path))?;
        let defect = |reason| SnapshotDefect::Corrupt { offset: place.start, reason };
        let of = |defect| SnapshotError::of(defect, &source.path);
        let header = ChunkHeader::decode(bytes, number, place.start, &source.header).map_err(of)?;
        let stored = &bytes[CHUNK_HEADER_BYTES..];
        if header.raw_bytes != source.table.raw_bytes(number) {
            return Err(of(defect("a chunk has another size than the seek table says")));
        }
        if !header.matches(stored, source.header.salt) {
            return Err(of(defect("a chunk's stored bytes do not match their checksum")));
        }
        piece.raw.clear();
        piece.raw.reserve_exact(header.raw_bytes as usize);
        let decompressed = self.context.decompress_to_buffer(stored, &mut piece.raw);
        if !matches!(decompressed, Ok(count) if count == header.raw_bytes as usize) {
            return Err(of(defect("a chunk does not decompress to its size")));
        }
        piece.checksum = raw_checksum(&piece.raw);
        if piece.checksum != header.raw_checksum {
            return Err(of(defect("a chunk does not match its checksum")));
        }
        Ok(())
    }
}

/// Threads that decode the chunks that come next.
struct Ahead {
    /// The chunk that [`Ahead::take`] gives.
    next: u64,
    /// The chunk that is asked for next.
    next_asked: u64,
    jobs: Sender<Box<Asked>>,
    done: InOrder<Box<Asked>>,
    is_over: Arc<AtomicBool>,
    /// Waited for last: dropped last.
    _threads: Threads,
}

impl std::fmt::Debug for Ahead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ahead({}..{})", self.next, self.next_asked)
    }
}

/// A chunk that was asked for.
struct Asked {
    number: u64,
    piece: Piece,
    /// `None` before, and where it panicked.
    outcome: Option<Result<(), SnapshotError>>,
}

impl Job for Box<Asked> {
    fn number(&self) -> u64 {
        self.number
    }
}

impl Ahead {
    fn start(source: &Arc<Source>, workers: usize, low_priority: bool, next: u64) -> Result<Ahead, SnapshotError> {
        let is_over = Arc::new(AtomicBool::new(false));
        let decoders: Result<Vec<_>, _> =
            (0..workers).map(|_| Decoder::new(source, Pace::new(low_priority, workers))).collect();
        let bodies = decoders?.into_iter().map(|mut decoder| {
            let (source, is_over) = (Arc::clone(source), Arc::clone(&is_over));
            move |asked: &mut Box<Asked>| {
                if !is_over.load(Ordering::Relaxed) {
                    asked.outcome = Some(decoder.decode(&source, asked.number, &mut asked.piece));
                }
            }
        });
        let (jobs, done, threads) = pool::start("ringwal-restore", low_priority, bodies)
            .map_err(SnapshotError::io("start threads for", &source.path))?;
        let done = done.starting_at(next);
        let mut ahead = Ahead { next, next_asked: next, jobs, done, is_over, _threads: threads };
        for _ in 0..2 * workers {
            ahead.ask(Box::new(Asked { number: 0, piece: Piece::default(), outcome: None }), source);
        }
        Ok(ahead)
    }

    /// Asks for one chunk more, if there is one.
    fn ask(&mut self, mut asked: Box<Asked>, source: &Source) {
        if self.next_asked < source.table.totals().chunks {
            asked.number = self.next_asked;
            asked.outcome = None;
            self.next_asked += 1;
            // Where nobody takes it, nothing comes out either: that is noticed there.
            let _ = self.jobs.send(asked);
        }
    }

    /// Exchanges the piece for the next chunk.
    fn take(&mut self, piece: &mut Piece, source: &Source) -> Result<(), SnapshotError> {
        let died = || SnapshotError::io("read", &source.path)(io::Error::other("a thread of the snapshot panicked"));
        let mut asked = self.done.next().ok_or_else(died)?;
        self.next += 1;
        asked.outcome.take().ok_or_else(died)??;
        std::mem::swap(piece, &mut asked.piece);
        self.ask(asked, source);
        Ok(())
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}
