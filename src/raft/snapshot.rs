//! A snapshot's file on its way from one node to another: what openraft reads, sends, receives and writes.
//!
//! The bytes are the file's own, compressed and checksummed, so nothing is decompressed to be sent, and what arrives is
//! verified piece by piece. Whatever waits for the disk is done on tokio's pool for blocking work; one piece at a time is
//! in memory in either direction.
//!
//! Invariants:
//!
//! - What arrives becomes a snapshot of the store, durable and read back, at [`shutdown`], which openraft calls when all
//!   of it was sent and before it hands it on to be installed. openraft purges the log without waiting for the
//!   installation; so it must not be ahead of what a restart finds. Where `shutdown` was not called, the purge waits.
//! - A write is taken whole or not at all, so that whoever gives up waiting for one knows where it ends. Its failure is
//!   told by the next call.
//! - Bytes that arrived already and are sent again are left alone; after a failure everything begins anew at byte 0.
//!
//! Does not know machines, nor what openraft keeps in a snapshot.
//!
//! [`shutdown`]: tokio::io::AsyncWriteExt::shutdown

use std::fmt;
use std::future::Future;
use std::io::{self, SeekFrom};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncSeek, AsyncWrite, ReadBuf};

use super::arrivals::Arrival;
use super::blocking::{Work, blocking};
use crate::disk::{Access, DiskFile};
use crate::format::snapshot::{HEADER_BYTES, SnapshotDefect, SnapshotHeader};
use crate::snapshot::{FileSnapshots, SnapshotError, SnapshotId, SnapshotImporter};

/// How much of a file is read at once.
const READ_BYTES: usize = 256 << 10;

/// The file of a snapshot: one that is read, of a snapshot that a node has, or one that is received. Use it as
/// `SnapshotData` of the node's type configuration.
///
/// The bytes are those of the file, whatever its state: compressed, and verified where they arrive. To read goes on also
/// when the node drops the snapshot meanwhile.
///
/// A transport of the application's own writes the bytes in their order, seeks back to send some again, and calls
/// [`shutdown`](tokio::io::AsyncWriteExt::shutdown) before [`Raft::install_full_snapshot`]: that makes the snapshot durable
/// and reads it back. openraft's transport does so within the call for the last chunk, and the machine is restored within it
/// too: its [`install_snapshot_timeout`] must leave time for that. Where it does not, the next try finds the snapshot made.
///
/// Without the `shutdown` openraft's core waits for the installation, and the node stops where that fails. The very
/// `RaftSnapshot` of another node in the same process may be handed over, and is copied; but openraft may have purged the log
/// before the copy is durable, so a node that is to survive a crash of the process receives the bytes.
///
/// [`Raft::install_full_snapshot`]: openraft::Raft::install_full_snapshot
/// [`install_snapshot_timeout`]: openraft::Config::install_snapshot_timeout
pub struct RaftSnapshot {
    /// `None` while it is worked on elsewhere.
    body: Option<Body>,
    work: Option<Work<Body>>,
}

/// What it is.
pub(super) enum Body {
    Read(Reading),
    Receive(Receiving),
    /// Nothing: a snapshot that could not be made.
    Empty,
}

impl fmt::Debug for RaftSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.body {
            Some(Body::Read(reading)) => write!(f, "RaftSnapshot({}, read)", reading.path.display()),
            Some(Body::Receive(receiving)) => write!(f, "RaftSnapshot({} bytes received)", receiving.arrived),
            Some(Body::Empty) => f.write_str("RaftSnapshot(empty)"),
            None => f.write_str("RaftSnapshot(at work)"),
        }
    }
}

impl RaftSnapshot {
    /// Opens the file of a snapshot. Gives its salt too, where its header is whole.
    pub(super) fn open(
        snapshots: &FileSnapshots,
        id: SnapshotId,
    ) -> Result<(RaftSnapshot, Option<u64>), SnapshotError> {
        let reading = Reading::open(snapshots, id)?;
        let salt = reading.salt()?;
        Ok((RaftSnapshot::of(Body::Read(reading)), salt))
    }

    /// Begins to receive one.
    pub(super) fn receive(snapshots: &FileSnapshots, arrival: Arrival) -> RaftSnapshot {
        RaftSnapshot::of(Body::Receive(Receiving::new(snapshots, Some(arrival))))
    }

    pub(super) fn empty() -> RaftSnapshot {
        RaftSnapshot::of(Body::Empty)
    }

    fn of(body: Body) -> RaftSnapshot {
        RaftSnapshot { body: Some(body), work: None }
    }

    /// What it is, once nobody works on it any more.
    pub(super) async fn into_body(mut self) -> io::Result<Body> {
        std::future::poll_fn(|context| self.poll_idle(context).map_ok(drop)).await?;
        self.body.take().ok_or_else(lost)
    }

    /// Waits for what is under way.
    fn poll_idle(&mut self, context: &mut Context<'_>) -> Poll<io::Result<&mut Body>> {
        if let Some(work) = &mut self.work {
            let body = ready!(Pin::new(work).poll(context));
            self.work = None;
            self.body = Some(body?);
        }
        Poll::Ready(self.body.as_mut().ok_or_else(lost))
    }

    /// Has something done that waits for the disk.
    fn start(&mut self, work: impl FnOnce(&mut Body) + Send + 'static) {
        let Some(mut body) = self.body.take() else { return };
        self.work = Some(blocking(move || {
            work(&mut body);
            body
        }));
    }
}

/// What is given up halfway is removed, and what was read may have lost its name meanwhile: then the system frees all of
/// the file here, which takes its time.
impl Drop for RaftSnapshot {
    fn drop(&mut self) {
        let (body, work) = (self.body.take(), self.work.take());
        if work.is_some() || matches!(body, Some(Body::Read(_) | Body::Receive(_))) {
            drop(blocking(move || drop((body, work))));
        }
    }
}

fn lost() -> io::Error {
    io::Error::other("the snapshot was lost in an earlier failure")
}

/// A file that is read.
pub(super) struct Reading {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    bytes: u64,
    /// Where the next byte is read, that of the piece included.
    position: u64,
    piece: Vec<u8>,
    /// How much of the piece was handed out.
    used: usize,
    failure: Option<SnapshotError>,
}

impl Reading {
    fn open(snapshots: &FileSnapshots, id: SnapshotId) -> Result<Reading, SnapshotError> {
        let (file, path) = snapshots.file(&id.file_name(), Access::Read)?;
        let bytes = file.size().map_err(SnapshotError::io("read", &path))?;
        Ok(Reading { file, path, bytes, position: 0, piece: Vec::new(), used: 0, failure: None })
    }

    fn salt(&self) -> Result<Option<u64>, SnapshotError> {
        let mut start = [0; HEADER_BYTES];
        let count = self.file.read_at(&mut start, 0).map_err(SnapshotError::io("read", &self.path))?;
        Ok(SnapshotHeader::decode(&start[..count]).ok().map(|header| header.salt))
    }

    /// Reads the next piece.
    fn fill(&mut self) {
        let offset = self.position;
        self.piece.resize(READ_BYTES.min((self.bytes.saturating_sub(offset)) as usize), 0);
        self.used = 0;
        let read = match self.file.read_at(&mut self.piece, offset) {
            Ok(0) if offset < self.bytes => {
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter"))
            }
            read => read,
        };
        self.piece.truncate(*read.as_ref().unwrap_or(&0));
        self.failure = read.err().map(SnapshotError::io("read", &self.path));
    }

    /// Puts what there is of the piece into the caller's buffer.
    fn hand_out(&mut self, into: &mut ReadBuf<'_>) {
        let count = into.remaining().min(self.piece.len() - self.used);
        into.put_slice(&self.piece[self.used..self.used + count]);
        self.used += count;
        self.position += count as u64;
    }

    fn seek(&mut self, position: u64) {
        if position != self.position {
            self.position = position;
            self.piece.clear();
            self.used = 0;
        }
    }

    /// Receives the whole file elsewhere.
    fn copy_to(&self, receiving: &mut Receiving) -> Result<(), SnapshotError> {
        let mut piece = vec![0; READ_BYTES];
        let mut offset = 0;
        loop {
            match self.file.read_at(&mut piece, offset).map_err(SnapshotError::io("read", &self.path))? {
                0 => return Ok(()),
                count => {
                    receiving.store(&piece[..count])?;
                    offset += count as u64;
                }
            }
        }
    }
}

/// A file that arrives.
pub(super) struct Receiving {
    snapshots: FileSnapshots,
    /// Tells the log of the store that it may come to be installed.
    arrival: Option<Arrival>,
    stage: Stage,
    /// Which byte the caller sends next.
    position: u64,
    /// How much of the file was taken in, or is on its way to be.
    arrived: u64,
}

/// How far it is.
enum Stage {
    /// Not so far that it is known which snapshot it is.
    Beginning(Vec<u8>),
    Arriving(Box<SnapshotImporter>),
    /// All of it is here, and it is a snapshot of the store.
    Published(SnapshotId),
    Failed(SnapshotError),
}

impl Receiving {
    fn new(snapshots: &FileSnapshots, arrival: Option<Arrival>) -> Receiving {
        let stage = Stage::Beginning(Vec::new());
        Receiving { snapshots: snapshots.clone(), arrival, stage, position: 0, arrived: 0 }
    }

    /// The part of a write that did not arrive before.
    fn accept<'a>(&mut self, bytes: &'a [u8]) -> io::Result<&'a [u8]> {
        if let Stage::Failed(error) = &self.stage {
            return Err(error.again().into());
        }
        let known = (self.arrived - self.position).min(bytes.len() as u64);
        self.position += bytes.len() as u64;
        self.arrived = self.arrived.max(self.position);
        Ok(&bytes[known as usize..])
    }

    fn seek(&mut self, position: u64) -> io::Result<()> {
        if position > self.arrived {
            let missing = format!("bytes {} to {position} of the snapshot are missing", self.arrived);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, missing));
        }
        if position == 0 && matches!(self.stage, Stage::Failed(_)) {
            *self = Receiving::new(&self.snapshots, self.arrival.take());
        }
        self.position = position;
        Ok(())
    }

    fn store(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        match &mut self.stage {
            Stage::Beginning(start) => {
                start.extend_from_slice(bytes);
                if start.len() < HEADER_BYTES {
                    return Ok(());
                }
                let start = std::mem::take(start);
                let mut importer = Box::new(self.snapshots.importer_anew(self.id_in(&start)?)?);
                importer.take(&start)?;
                self.stage = Stage::Arriving(importer);
                Ok(())
            }
            Stage::Arriving(importer) => importer.take(bytes),
            Stage::Published(id) => Err(SnapshotError::of(more_follows(), &self.snapshots.path_of(*id))),
            Stage::Failed(error) => Err(error.again()),
        }
    }

    /// Which snapshot it is.
    fn id_in(&self, start: &[u8]) -> Result<SnapshotId, SnapshotError> {
        let whence = self.snapshots.directory().join("a snapshot that arrives");
        let header = SnapshotHeader::decode(start).map_err(|defect| SnapshotError::of(defect, &whence))?;
        Ok(SnapshotId { index: header.meta.index, term: header.meta.term })
    }

    /// Makes a snapshot of the store of what arrived.
    fn publish(&mut self) -> Result<SnapshotId, SnapshotError> {
        let id = match std::mem::replace(&mut self.stage, Stage::Beginning(Vec::new())) {
            Stage::Published(id) => id,
            Stage::Arriving(importer) => publish_or_adopt(&self.snapshots, *importer)?,
            Stage::Failed(error) => return Err(error),
            Stage::Beginning(start) => {
                let path = self.snapshots.directory().join("a snapshot that arrives");
                return Err(SnapshotError::Incomplete { path, offset: start.len() as u64 });
            }
        };
        self.stage = Stage::Published(id);
        if let Some(arrival) = &self.arrival {
            arrival.publish(id.index);
        }
        Ok(id)
    }

    fn note<T>(&mut self, outcome: Result<T, SnapshotError>) {
        if let Err(error) = outcome {
            self.stage = Stage::Failed(error);
        }
    }

    fn check(&self) -> io::Result<()> {
        match &self.stage {
            Stage::Failed(error) => Err(error.again().into()),
            _ => Ok(()),
        }
    }
}

fn more_follows() -> SnapshotDefect {
    SnapshotDefect::Corrupt { offset: 0, reason: "more follows the end of the file" }
}

/// A snapshot of the very entry may be here already, made by this node or received before: it stands for the same state,
/// and stays if it is whole. If it is damaged, the new one takes its name at once: the log may rest on it.
fn publish_or_adopt(snapshots: &FileSnapshots, importer: SnapshotImporter) -> Result<SnapshotId, SnapshotError> {
    let id = importer.id();
    if snapshots.ids()?.contains(&id) && importer.is_complete() {
        match snapshots.make_sure(id) {
            Ok(()) => return Ok(id),
            Err(SnapshotError::Corrupt { .. } | SnapshotError::Misnamed { .. }) => {
                return importer.publish_over_damaged().map(|()| id);
            }
            Err(SnapshotError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    match importer.publish() {
        // Somebody made one while this was looked at and read back.
        Err(SnapshotError::Exists { id }) => snapshots.make_sure(id).map(|()| id),
        published => published.map(|snapshot| snapshot.id),
    }
}

/// Makes what openraft hands over a snapshot of this store, if it is not one.
pub(super) fn bring_in(snapshots: &FileSnapshots, body: Body) -> Result<SnapshotId, SnapshotError> {
    match body {
        Body::Receive(mut receiving) if receiving.snapshots.is_same_as(snapshots) => receiving.publish(),
        Body::Receive(mut receiving) => {
            let id = receiving.publish()?;
            copy(snapshots, &Reading::open(&receiving.snapshots, id)?)
        }
        Body::Read(reading) => copy(snapshots, &reading),
        Body::Empty => Err(SnapshotError::Config("the snapshot that is to be installed is empty".into())),
    }
}

fn copy(snapshots: &FileSnapshots, from: &Reading) -> Result<SnapshotId, SnapshotError> {
    let mut receiving = Receiving::new(snapshots, None);
    from.copy_to(&mut receiving)?;
    receiving.publish()
}

impl AsyncRead for RaftSnapshot {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let Body::Read(reading) = ready!(self.poll_idle(context))? else { return Poll::Ready(Err(not_to_read())) };
            if let Some(failure) = reading.failure.take() {
                return Poll::Ready(Err(failure.into()));
            }
            if reading.used < reading.piece.len() || reading.position >= reading.bytes || into.remaining() == 0 {
                reading.hand_out(into);
                return Poll::Ready(Ok(()));
            }
            self.start(|body| {
                if let Body::Read(reading) = body {
                    reading.fill();
                }
            });
        }
    }
}

fn not_to_read() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "a snapshot that arrives cannot be read before it is installed")
}

fn not_to_write() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "a snapshot of the store is never written to")
}

impl AsyncWrite for RaftSnapshot {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Body::Receive(receiving) = ready!(self.poll_idle(context))? else {
            return Poll::Ready(Err(not_to_write()));
        };
        let new = receiving.accept(bytes)?.to_vec();
        if !new.is_empty() {
            self.start(move |body| {
                if let Body::Receive(receiving) = body {
                    let stored = receiving.store(&new);
                    receiving.note(stored);
                }
            });
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Body::Receive(receiving) = ready!(self.poll_idle(context))? else { return Poll::Ready(Ok(())) };
        Poll::Ready(receiving.check())
    }

    /// Makes a snapshot of the store of what arrived; fails where that is not a whole one.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let Body::Receive(receiving) = ready!(self.poll_idle(context))? else { return Poll::Ready(Ok(())) };
            receiving.check()?;
            if matches!(receiving.stage, Stage::Published(_)) {
                return Poll::Ready(Ok(()));
            }
            self.start(|body| {
                if let Body::Receive(receiving) = body {
                    let published = receiving.publish();
                    receiving.note(published);
                }
            });
        }
    }
}

/// The sender of a snapshot goes back to send again what may not have arrived, and its receiver with it.
impl AsyncSeek for RaftSnapshot {
    fn start_seek(mut self: Pin<&mut Self>, to: SeekFrom) -> io::Result<()> {
        let busy = || io::Error::other("a seek while something else is under way");
        match self.body.as_mut().ok_or_else(busy)? {
            Body::Read(reading) => {
                let position = place(to, reading.position, reading.bytes)?;
                reading.seek(position);
                Ok(())
            }
            Body::Receive(receiving) => {
                let position = place(to, receiving.position, receiving.arrived)?;
                receiving.seek(position)
            }
            Body::Empty => Ok(()),
        }
    }

    fn poll_complete(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(Ok(match ready!(self.poll_idle(context))? {
            Body::Read(reading) => reading.position,
            Body::Receive(receiving) => receiving.position,
            Body::Empty => 0,
        }))
    }
}

fn place(to: SeekFrom, position: u64, end: u64) -> io::Result<u64> {
    let place = match to {
        SeekFrom::Start(offset) => Some(offset),
        SeekFrom::Current(distance) => position.checked_add_signed(distance),
        SeekFrom::End(distance) => end.checked_add_signed(distance),
    };
    place.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a seek to before the start of the snapshot"))
}
