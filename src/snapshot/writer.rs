//! Writes a snapshot file: bytes of any number come in, chunks go out compressed, in order, to any [`DiskFile`].
//!
//! The caller's bytes fill a chunk; full chunks go to a pool that compresses them, and one more thread writes them to
//! the file in order. The chunks' buffers are made once and go round, so a caller that is quicker than the pool or the
//! disk waits for one of them: that is what bounds the memory. No thread is started before a second chunk is begun.
//!
//! Invariants: the file is written from its start to its end, every byte once, in pieces that direct I/O takes; it is
//! synced every few MiB, so that no sync has much to do and whoever else writes to the device never waits behind a
//! large one; a file that [`SnapshotStream::finish`] did not answer for has no trailer, so it is not taken for a
//! snapshot. The first error is final: everything after it fails, and nothing more is written.
//!
//! Does not know names, directories or publication.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, unbounded};
use zstd::bulk::Compressor;
use zstd::zstd_safe::CParameter;

use super::pace::Pace;
use super::pool::{self, InOrder, Job, Threads};
use super::{SnapshotError, SnapshotOptions};
use crate::disk::{AlignedBuf, DiskFile};
use crate::format::snapshot::{
    CHUNKS_MAX, ChunkHeader, MACHINE_BYTES_MAX, SNAPSHOT_BLOCK_BYTES, SnapshotHeader, SnapshotIndex, SnapshotMeta,
    SnapshotTotals, raw_checksum, stored_bytes_max,
};
use crate::plant::{StackPlant, planted};

/// Size of one write to the file: one that others on the same disk hardly notice.
const WRITE_BYTES: usize = 128 << 10;

/// So much of the state is taken in before the thread it comes from lets others have the processor, where there is no hurry.
const YIELD_EVERY_BYTES: usize = 4 << 10;

/// So much is written between two syncs.
const SYNC_EVERY_BYTES: u64 = 16 << 20;

/// A snapshot on its way into a file.
#[derive(Debug)]
pub(crate) struct SnapshotStream {
    header: SnapshotHeader,
    options: SnapshotOptions,
    path: PathBuf,
    /// Bytes of the state that are not yet given to anybody.
    filling: Box<Chunk>,
    /// Bytes that were taken in since others were let have the processor.
    unyielded_bytes: usize,
    next_number: u64,
    stage: Stage,
}

/// Who compresses and writes.
#[derive(Debug)]
enum Stage {
    /// The caller's thread.
    Here(Box<Here>),
    /// A pool and a writing thread.
    Threads(Team),
    /// Nobody any more.
    Failed(SnapshotError),
}

#[derive(Debug)]
struct Here {
    encoder: Encoder,
    sink: Sink,
}

#[derive(Debug)]
struct Team {
    /// Full chunks, on their way to be compressed.
    jobs: Sender<Box<Chunk>>,
    /// Chunks whose buffers can be filled again.
    free: Receiver<Box<Chunk>>,
    writing: Writing,
    /// Waited for when it is dropped: last.
    _compressing: Threads,
}

/// The thread that writes.
#[derive(Debug)]
struct Writing(Option<JoinHandle<Result<Sink, SnapshotError>>>);

impl SnapshotStream {
    /// Begins a snapshot in a file that is empty. Direct I/O is taken if the file was opened for it.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Config`] for settings out of range or a machine's name that is too long.
    pub(crate) fn begin(
        file: Arc<dyn DiskFile>,
        path: PathBuf,
        meta: &SnapshotMeta,
        options: &SnapshotOptions,
    ) -> Result<SnapshotStream, SnapshotError> {
        let salt = getrandom::u64().map_err(|error| SnapshotError::io("draw a salt for", &path)(error.into()))?;
        let header = SnapshotHeader { meta: meta.clone(), chunk_bytes: options.chunk_bytes, salt };
        SnapshotStream::begin_with(file, path, header, options)
    }

    /// As [`SnapshotStream::begin`], with a salt that is given.
    pub(crate) fn begin_with(
        file: Arc<dyn DiskFile>,
        path: PathBuf,
        header: SnapshotHeader,
        options: &SnapshotOptions,
    ) -> Result<SnapshotStream, SnapshotError> {
        options.validate()?;
        if header.meta.machine.len() > MACHINE_BYTES_MAX {
            let (name, bytes) = (&header.meta.machine, header.meta.machine.len());
            let message =
                format!("the machine's name {name:?} has {bytes} bytes: it must have at most {MACHINE_BYTES_MAX}");
            return Err(SnapshotError::Config(message));
        }
        let mut sink = Sink::new(file, path.clone(), header.salt, options.low_priority);
        sink.put(&header.encode())?;
        let encoder = Encoder::new(options.level, &path)?;
        let options = options.clone();
        let filling = Box::new(Chunk::new(options.chunk_bytes));
        let stage = Stage::Here(Box::new(Here { encoder, sink }));
        Ok(SnapshotStream { header, options, path, filling, unyielded_bytes: 0, next_number: 0, stage })
    }

    /// What tells the file from any other of the same state.
    #[cfg(feature = "openraft")]
    pub(crate) fn salt(&self) -> u64 {
        self.header.salt
    }

    /// Takes in more of the state. Waits while the pool and the disk are behind.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) -> Result<(), SnapshotError> {
        if let Stage::Failed(error) = &self.stage {
            return Err(error.again());
        }
        let room = self.options.chunk_bytes as usize;
        self.give_way(bytes.len());
        while !bytes.is_empty() {
            if self.filling.raw.len() == room {
                self.pass_on(false).map_err(|error| self.fail(error))?;
            }
            let (now, rest) = bytes.split_at(bytes.len().min(room - self.filling.raw.len()));
            self.filling.raw.extend_from_slice(now);
            bytes = rest;
        }
        Ok(())
    }

    /// Writes what is left and the end of the file, and syncs the file; its name and directory are the caller's to make
    /// durable.
    ///
    /// # Errors
    ///
    /// The first error of any thread, if [`SnapshotStream::push`] did not report it already.
    pub(crate) fn finish(mut self) -> Result<SnapshotTotals, SnapshotError> {
        if let Stage::Failed(error) = self.stage {
            return Err(error);
        }
        if !self.filling.raw.is_empty() {
            self.pass_on(true)?;
        }
        let header = self.header.clone();
        self.into_sink()?.finish(&header)
    }

    /// Lets others have the processor now and then. Whoever walks through a large state does not wait for anything for
    /// milliseconds, and for so long the scheduler may keep a thread that became ready meanwhile waiting.
    fn give_way(&mut self, bytes: usize) {
        self.unyielded_bytes += bytes;
        if self.options.low_priority && self.unyielded_bytes >= YIELD_EVERY_BYTES {
            self.unyielded_bytes = 0;
            std::thread::yield_now();
        }
    }

    /// Gives the chunk away and begins another.
    fn pass_on(&mut self, is_last: bool) -> Result<(), SnapshotError> {
        if self.next_number == CHUNKS_MAX {
            return Err(SnapshotError::Config(format!(
                "the state has more than {CHUNKS_MAX} chunks of {} bytes: make them larger",
                self.options.chunk_bytes
            )));
        }
        if !is_last && self.options.workers > 0 {
            self.call_the_team()?;
        }
        self.filling.number = self.next_number;
        self.next_number += 1;
        match &mut self.stage {
            Stage::Here(here) => here.carry_out(&mut self.filling),
            Stage::Threads(team) => match team.exchange(&mut self.filling) {
                Ok(()) => Ok(()),
                Err(Gone) => Err(self.first_error()),
            },
            Stage::Failed(error) => Err(error.again()),
        }
    }

    /// Has threads do the work from now on.
    fn call_the_team(&mut self) -> Result<(), SnapshotError> {
        self.stage = match self.take_stage() {
            Stage::Here(here) => Stage::Threads(Team::start(here.sink, &self.options, &self.path)?),
            other => other,
        };
        Ok(())
    }

    /// Whoever is at work, to be put in place again or ended: nobody is until then.
    fn take_stage(&mut self) -> Stage {
        let nobody = SnapshotError::Config("the snapshot was given up".to_owned());
        std::mem::replace(&mut self.stage, Stage::Failed(nobody))
    }

    /// What ended the team's work before it was told to end.
    fn first_error(&mut self) -> SnapshotError {
        match self.take_stage() {
            Stage::Threads(team) => team.end(&self.path).err().unwrap_or_else(|| panicked(&self.path)),
            Stage::Failed(error) => error,
            Stage::Here(_) => panicked(&self.path),
        }
    }

    fn fail(&mut self, error: SnapshotError) -> SnapshotError {
        self.stage = Stage::Failed(error.again());
        error
    }

    fn into_sink(self) -> Result<Sink, SnapshotError> {
        match self.stage {
            Stage::Here(here) => Ok(here.sink),
            Stage::Threads(team) => team.end(&self.path),
            Stage::Failed(error) => Err(error),
        }
    }
}

impl Write for SnapshotStream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.push(buf)?;
        Ok(buf.len())
    }

    /// Does nothing: only [`SnapshotStream::finish`] makes a snapshot.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The threads of the team are no more.
struct Gone;

impl Team {
    fn start(sink: Sink, options: &SnapshotOptions, path: &Path) -> Result<Team, SnapshotError> {
        let cannot_start = || SnapshotError::io("start threads for", path);
        let encoders: Result<Vec<_>, _> = (0..options.workers).map(|_| Encoder::new(options.level, path)).collect();
        let (path, salt) = (path.to_owned(), sink.salt);
        let workers = encoders?.into_iter().map(|mut encoder| {
            let path = path.clone();
            move |chunk: &mut Box<Chunk>| chunk.compress(&mut encoder, salt, &path)
        });
        let (jobs, done, compressing) =
            pool::start("ringwal-compress", options.low_priority, workers).map_err(cannot_start())?;
        let (free_in, free) = unbounded();
        // One for each worker to work on, one to wait for it, one that is written.
        for _ in 0..2 * options.workers + 1 {
            let _ = free_in.send(Box::new(Chunk::new(options.chunk_bytes)));
        }
        match pool::spawn("ringwal-snapshot", options.low_priority, move || write_all(sink, done, &free_in)) {
            Ok(writing) => Ok(Team { jobs, free, writing: Writing(Some(writing)), _compressing: compressing }),
            Err(error) => {
                // Else the workers would be waited for while they wait for jobs.
                drop(jobs);
                Err(cannot_start()(error))
            }
        }
    }

    /// Takes the full chunk and gives an empty one for it.
    fn exchange(&mut self, chunk: &mut Box<Chunk>) -> Result<(), Gone> {
        let mut free = self.free.recv().map_err(|_| Gone)?;
        free.clear();
        self.jobs.send(std::mem::replace(chunk, free)).map_err(|_| Gone)
    }

    /// Waits until everything that was given in is written.
    fn end(self, path: &Path) -> Result<Sink, SnapshotError> {
        let Team { jobs, free: _free, mut writing, _compressing } = self;
        drop(jobs);
        writing.join(path)
    }
}

impl Writing {
    fn join(&mut self, path: &Path) -> Result<Sink, SnapshotError> {
        let outcome = self.0.take().map(JoinHandle::join);
        outcome.and_then(Result::ok).unwrap_or_else(|| Err(panicked(path)))
    }
}

impl Drop for Writing {
    /// Whoever gives a snapshot up can be sure that nothing is written to its file any more.
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            let _ = thread.join();
        }
    }
}

/// The body of the thread that writes.
fn write_all(mut sink: Sink, mut done: InOrder<Box<Chunk>>, free: &Sender<Box<Chunk>>) -> Result<Sink, SnapshotError> {
    while let Some(mut chunk) = done.next() {
        sink.take(&mut chunk)?;
        if free.send(chunk).is_err() {
            // Given up.
            break;
        }
    }
    Ok(sink)
}

impl Here {
    fn carry_out(&mut self, chunk: &mut Chunk) -> Result<(), SnapshotError> {
        chunk.compress(&mut self.encoder, self.sink.salt, &self.sink.path);
        self.sink.take(chunk)?;
        chunk.clear();
        Ok(())
    }
}

/// A chunk on its way: raw, then compressed too.
#[derive(Debug)]
struct Chunk {
    number: u64,
    raw: Vec<u8>,
    stored: Vec<u8>,
    /// What compressing gave; `None` before, and where it panicked.
    outcome: Option<Result<ChunkHeader, SnapshotError>>,
}

impl Job for Box<Chunk> {
    fn number(&self) -> u64 {
        self.number
    }
}

impl Chunk {
    fn new(chunk_bytes: u32) -> Chunk {
        let raw = Vec::with_capacity(chunk_bytes as usize);
        Chunk { number: 0, raw, stored: Vec::new(), outcome: None }
    }

    fn clear(&mut self) {
        self.raw.clear();
        self.outcome = None;
    }

    fn compress(&mut self, encoder: &mut Encoder, salt: u64, path: &Path) {
        let raw_bytes = self.raw.len() as u32;
        let outcome = encoder.compress(&self.raw, &mut self.stored).map_err(SnapshotError::io("compress", path));
        self.outcome = Some(
            outcome.map(|()| ChunkHeader::of(self.number, &self.stored, raw_bytes, raw_checksum(&self.raw), salt)),
        );
    }
}

/// A zstd context that is used again and again.
struct Encoder(Compressor<'static>);

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Encoder")
    }
}

impl Encoder {
    fn new(level: i32, path: &Path) -> Result<Encoder, SnapshotError> {
        let mut context = Compressor::new(level).map_err(SnapshotError::io("compress", path))?;
        context.set_parameter(CParameter::ChecksumFlag(true)).map_err(SnapshotError::io("compress", path))?;
        Ok(Encoder(context))
    }

    fn compress(&mut self, raw: &[u8], stored: &mut Vec<u8>) -> io::Result<()> {
        stored.clear();
        stored.reserve(stored_bytes_max(raw.len() as u32) as usize);
        self.0.compress_to_buffer(raw, stored).map(drop)
    }
}

/// The end of the way: gathers what is to be written and writes it in large pieces.
struct Sink {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    salt: u64,
    buffer: AlignedBuf,
    /// Bytes of the buffer that are used.
    filled: usize,
    /// Where in the file the buffer goes.
    offset: u64,
    synced: u64,
    index: SnapshotIndex,
    pace: Pace,
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sink({} at {})", self.path.display(), self.offset + self.filled as u64)
    }
}

impl Sink {
    fn new(file: Arc<dyn DiskFile>, path: PathBuf, salt: u64, is_gentle: bool) -> Sink {
        let (buffer, index) = (AlignedBuf::zeroed(WRITE_BYTES), SnapshotIndex::default());
        let pace = Pace::new(is_gentle, 1);
        Sink { file, path, salt, buffer, filled: 0, offset: 0, synced: 0, index, pace }
    }

    /// Writes a compressed chunk behind its header.
    fn take(&mut self, chunk: &mut Chunk) -> Result<(), SnapshotError> {
        let header = chunk.outcome.take().unwrap_or_else(|| Err(panicked(&self.path)))?;
        self.put(&header.encode(self.salt))?;
        self.put(&chunk.stored)?;
        self.index.push(&header);
        Ok(())
    }

    fn put(&mut self, mut bytes: &[u8]) -> Result<(), SnapshotError> {
        while !bytes.is_empty() {
            let room = &mut self.buffer[self.filled..];
            let (now, rest) = bytes.split_at(bytes.len().min(room.len()));
            room[..now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = rest;
            if self.filled == self.buffer.len() {
                self.write_out()?;
            }
        }
        Ok(())
    }

    fn write_out(&mut self) -> Result<(), SnapshotError> {
        let (piece, offset) = (&self.buffer[..self.filled], self.offset);
        self.pace.work(|| self.file.write_at(piece, offset)).map_err(SnapshotError::io("write", &self.path))?;
        self.offset += self.filled as u64;
        self.filled = 0;
        if self.offset - self.synced >= SYNC_EVERY_BYTES {
            self.sync()?;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), SnapshotError> {
        self.pace.work(|| self.file.sync()).map_err(SnapshotError::io("sync", &self.path))?;
        self.synced = self.offset;
        Ok(())
    }

    fn finish(mut self, header: &SnapshotHeader) -> Result<SnapshotTotals, SnapshotError> {
        let (tail, totals) = self.index.encode_tail(header);
        self.put(&tail)?;
        debug_assert!((self.filled as u64).is_multiple_of(SNAPSHOT_BLOCK_BYTES));
        if self.filled > 0 {
            self.write_out()?;
        }
        if !planted(StackPlant::NamedBeforeSync) {
            self.sync()?;
        }
        Ok(totals)
    }
}

/// A thread ended in a way that only a mistake in this crate explains.
fn panicked(path: &Path) -> SnapshotError {
    SnapshotError::io("compress", path)(io::Error::other("a thread of the snapshot panicked"))
}
