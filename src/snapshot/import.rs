//! Snapshots on their way from one machine to another: a file's bytes, and a verified beginning of them kept.
//!
//! Invariants: what is kept of a file that is arriving was verified, so that a transfer goes on where the last one
//! ended; it becomes a snapshot only as one that is made here does, read back and verified as a whole; after a failed
//! sync nothing of it is kept. Does not know the network.

use std::io::{self, Read, Write};

use super::arrival::{Arrival, Arrived};
use super::temporary::Temporary;
use super::{FileSnapshots, Snapshot, SnapshotError, SnapshotId};
use crate::disk::{Access, AlignedBuf};
use crate::format::names::{self, Name};
use crate::format::snapshot::{SnapshotDefect, SnapshotHeader};

/// Size of one read or write of a file.
const STEP_BYTES: usize = 256 << 10;

/// So much is written between two syncs: none has much to do, and whoever else writes to the device waits for none.
const SYNC_EVERY_BYTES: u64 = 8 << 20;

/// Receiving.
impl FileSnapshots {
    /// Receives a snapshot that another machine exports ([`FileSnapshots::export`]), or goes on doing so: what arrived
    /// before, and was verified, is kept, also over a crash. Ask [`SnapshotImporter::offset`] from which byte of the
    /// file on to send.
    ///
    /// ```
    /// # let scratch = tempfile::tempdir().unwrap();
    /// # let (here, there) = (scratch.path().join("here"), scratch.path().join("there"));
    /// use ringwal::{FileSnapshots, SnapshotOptions};
    ///
    /// let leader = FileSnapshots::open(&there, SnapshotOptions::default().chunk_bytes(1 << 10))?;
    /// leader.create_snapshot(9, 2, &[7; 100_000])?;
    ///
    /// let follower = FileSnapshots::open(&here, SnapshotOptions::default())?;
    /// let mut wire = Vec::new(); // stands for a connection
    /// leader.export("snapshot_9_2", 0, &mut wire)?;
    /// let mut importer = follower.importer("snapshot_9_2")?;
    /// importer.receive(&mut &wire[..2000])?; // and here it breaks
    /// drop(importer);
    ///
    /// let mut importer = follower.importer("snapshot_9_2")?; // later
    /// let mut wire = Vec::new();
    /// leader.export("snapshot_9_2", importer.offset(), &mut wire)?;
    /// importer.receive(&mut &wire[..])?;
    /// assert_eq!(importer.publish()?.raw_bytes, 100_000);
    /// # Ok::<(), ringwal::SnapshotError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`SnapshotError::BadId`], [`SnapshotError::Exists`]; [`SnapshotError::InUse`] where it is being received
    /// already; [`SnapshotError::Io`].
    pub fn importer(&self, id: &str) -> Result<SnapshotImporter, SnapshotError> {
        let id: SnapshotId = id.parse()?;
        self.check_writable()?;
        self.check_absent(id)?;
        let is_one = |name: &&String| names::classify(name) == Name::SnapshotPartial(id.index, id.term);
        for name in self.names()?.iter().filter(is_one) {
            let in_use = || SnapshotError::InUse { path: self.shared.disk.path_of(name) };
            let partial = Temporary::take_over(&self.shared.disk, name)?.ok_or_else(in_use)?;
            let mut importer = SnapshotImporter::go_on(self.clone(), id, partial)?;
            if importer.offset() > 0 {
                return Ok(importer);
            }
            // Nothing in it is worth keeping: another file is sure to have nothing behind the new end.
            importer.partial.keep(false);
        }
        let mut partial = Temporary::make(&self.shared.disk, id, names::snapshot_partial, Access::Create)?;
        partial.keep(true);
        Ok(SnapshotImporter::new(self.clone(), id, partial))
    }

    /// Receives a snapshot anew, whatever there is of it: for who never goes on with an earlier transfer. Nothing of it
    /// outlives the importer, nor the process.
    #[cfg(feature = "openraft")]
    pub(crate) fn importer_anew(&self, id: SnapshotId) -> Result<SnapshotImporter, SnapshotError> {
        self.check_writable()?;
        id.check()?;
        let partial = Temporary::make(&self.shared.disk, id, names::snapshot_temporary, Access::Create)?;
        Ok(SnapshotImporter::new(self.clone(), id, partial))
    }

    /// The ids of the snapshots that began to arrive and are not whole yet.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Io`].
    pub fn imports(&self) -> Result<Vec<SnapshotId>, SnapshotError> {
        self.ids_of(|name| match name {
            Name::SnapshotPartial(index, term) => Some(SnapshotId { index, term }),
            _ => None,
        })
    }

    /// Removes the beginnings of snapshots that are older than `id` and that nobody is receiving.
    pub(super) fn drop_imports_below(&self, id: SnapshotId) -> Result<(), SnapshotError> {
        for name in self.names()? {
            if let Name::SnapshotPartial(index, term) = names::classify(&name)
                && (SnapshotId { index, term }) < id
                && let Some(mut partial) = Temporary::take_over(&self.shared.disk, &name)?
            {
                partial.keep(false);
            }
        }
        Ok(())
    }
}

/// A snapshot that is being received. Dropping it keeps what was verified, for [`FileSnapshots::importer`] to go on
/// with.
#[derive(Debug)]
pub struct SnapshotImporter {
    snapshots: FileSnapshots,
    id: SnapshotId,
    partial: Temporary,
    arrival: Arrival,
    /// All before is durable.
    synced_bytes: u64,
    /// Whether nothing has arrived yet that goes on from what an earlier transfer left.
    is_resuming: bool,
    /// What ended it: of a file whose sync failed nothing can be believed any more.
    failure: Option<SnapshotError>,
}

impl SnapshotImporter {
    fn new(snapshots: FileSnapshots, id: SnapshotId, partial: Temporary) -> SnapshotImporter {
        let arrival = Arrival::default();
        SnapshotImporter { snapshots, id, partial, arrival, synced_bytes: 0, is_resuming: false, failure: None }
    }

    /// Finds out how far an earlier transfer came: past the page cache, which may show what never came to the disk.
    fn go_on(snapshots: FileSnapshots, id: SnapshotId, partial: Temporary) -> Result<SnapshotImporter, SnapshotError> {
        let (file, path) = snapshots.file(&partial.name, Access::ReadDirect)?;
        let mut importer = SnapshotImporter::new(snapshots, id, partial);
        let mut window = AlignedBuf::zeroed(STEP_BYTES);
        let mut offset = 0;
        loop {
            let bytes = file.read_at(&mut window, offset).map_err(SnapshotError::io("read", &path))?;
            if !importer.find_again(&window[..bytes]) || bytes < window.len() {
                break;
            }
            offset += bytes as u64;
        }
        importer.arrival.drop_piece();
        importer.is_resuming = importer.offset() > 0;
        Ok(importer)
    }

    /// Takes in what is on the disk already, as far as it verifies; whether all of it did.
    fn find_again(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let Ok((taken, arrived)) = self.arrival.take(bytes) else { return false };
            match arrived {
                Arrived::Part => {}
                Arrived::Header(header) if self.check_header(&header).is_err() => return false,
                Arrived::Header(_) | Arrived::Piece => self.arrival.next(),
            }
            bytes = &bytes[taken..];
        }
        true
    }

    /// Which snapshot it is to be.
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// Which byte of the file is to come next. When this is dropped, only what is verified is kept: up to the end of a
    /// chunk.
    pub fn offset(&self) -> u64 {
        self.arrival.offset() + self.arrival.piece().len() as u64
    }

    /// Whether all of it is here.
    pub fn is_complete(&self) -> bool {
        self.arrival.is_over()
    }

    /// Takes everything that `source` gives, which begins at [`SnapshotImporter::offset`], and returns how many bytes
    /// it was. Whether the snapshot is complete then, [`SnapshotImporter::is_complete`] says.
    ///
    /// # Errors
    ///
    /// At the first piece that does not verify, of which nothing is kept, [`SnapshotError::Corrupt`] or
    /// [`SnapshotError::Unsupported`]; [`SnapshotError::Misnamed`] and [`SnapshotError::OtherMachine`], of which
    /// nothing is kept either; [`SnapshotError::OtherCopy`] where the first piece after an interruption does not
    /// continue what was there; [`SnapshotError::Io`], also for the source's errors. The transfer can go on from
    /// [`SnapshotImporter::offset`], unless a sync failed: that is final, and nothing of what was received is kept.
    pub fn receive(&mut self, source: &mut dyn Read) -> Result<u64, SnapshotError> {
        let mut step = vec![0; STEP_BYTES];
        let mut received = 0;
        loop {
            match source.read(&mut step) {
                Ok(0) => return Ok(received),
                Ok(bytes) => {
                    self.take(&step[..bytes])?;
                    received += bytes as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(SnapshotError::io("receive", &self.partial.path)(error)),
            }
        }
    }

    /// As [`SnapshotImporter::receive`], of bytes that are in memory.
    pub(crate) fn take(&mut self, mut bytes: &[u8]) -> Result<(), SnapshotError> {
        if let Some(failure) = &self.failure {
            return Err(failure.again());
        }
        while !bytes.is_empty() {
            match self.take_some(bytes) {
                Ok(taken) => bytes = &bytes[taken..],
                Err(error) => {
                    self.arrival.drop_piece();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Ends it, and has everything that was received removed.
    fn give_up(&mut self, error: SnapshotError) -> SnapshotError {
        self.partial.keep(false);
        self.failure.insert(error).again()
    }

    /// Takes bytes up to the end of the present piece, and stores the piece if it is whole then.
    fn take_some(&mut self, bytes: &[u8]) -> Result<usize, SnapshotError> {
        let (taken, arrived) = match self.arrival.take(bytes) {
            Err(SnapshotDefect::Corrupt { .. }) if self.is_resuming => {
                let (path, offset) = (self.partial.path.clone(), self.arrival.offset());
                return Err(SnapshotError::OtherCopy { path, offset });
            }
            taken => taken.map_err(|defect| SnapshotError::of(defect, &self.partial.path))?,
        };
        match arrived {
            Arrived::Part => return Ok(taken),
            Arrived::Header(header) => self.check_header(&header)?,
            Arrived::Piece => {}
        }
        self.is_resuming = false;
        self.store()?;
        self.arrival.next();
        Ok(taken)
    }

    fn check_header(&self, header: &SnapshotHeader) -> Result<(), SnapshotError> {
        let found = SnapshotId { index: header.meta.index, term: header.meta.term };
        if found != self.id {
            return Err(SnapshotError::Misnamed { file: self.partial.path.clone(), found });
        }
        self.snapshots.check_machine(&header.meta.machine, &self.partial.name)
    }

    fn store(&mut self) -> Result<(), SnapshotError> {
        let Temporary { file, path, .. } = &self.partial;
        let (piece, offset) = (self.arrival.piece(), self.arrival.offset());
        file.write_at(piece, offset).map_err(SnapshotError::io("write", path))?;
        let written = offset + piece.len() as u64;
        if written - self.synced_bytes >= SYNC_EVERY_BYTES {
            if let Err(error) = file.sync() {
                // What it should have covered may be lost, whatever later reads and syncs say.
                let error = SnapshotError::io("sync", path)(error);
                return Err(self.give_up(error));
            }
            self.synced_bytes = written;
        }
        Ok(())
    }

    /// Makes a snapshot of what was received: syncs it, reads all of it back and verifies it, gives it its name and
    /// syncs the directory.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Incomplete`]: what is there is kept. [`SnapshotError::Corrupt`] where it does not read back, or
    /// does not decompress; [`SnapshotError::Exists`]; [`SnapshotError::Io`]: nothing of it is kept.
    pub fn publish(mut self) -> Result<Snapshot, SnapshotError> {
        self.finish()?;
        self.snapshots.publish(self.id, &mut self.partial, &|| true)
    }

    /// As [`SnapshotImporter::publish`], where there is one of the same name that is damaged: this takes its place.
    #[cfg(feature = "openraft")]
    pub(crate) fn publish_over_damaged(mut self) -> Result<(), SnapshotError> {
        self.finish()?;
        self.snapshots.replace_damaged(self.id, &mut self.partial)
    }

    /// Makes sure that all of it is here and durable. From here on nothing of it is kept under its own name.
    fn finish(&mut self) -> Result<(), SnapshotError> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        if !self.is_complete() {
            return Err(SnapshotError::Incomplete { path: self.partial.path.clone(), offset: self.arrival.offset() });
        }
        self.partial.keep(false);
        self.partial.file.sync().map_err(SnapshotError::io("sync", &self.partial.path))
    }

    /// Gives it up and removes what was received.
    pub fn abort(mut self) {
        self.partial.keep(false);
    }
}

/// Takes the bytes of the file from [`SnapshotImporter::offset`] on; else as [`SnapshotImporter::receive`], whose
/// errors are inside those of writing.
impl Write for SnapshotImporter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.take(buf)?;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a snapshot's file, from a byte on.
pub(super) fn export(
    snapshots: &FileSnapshots,
    id: SnapshotId,
    from_offset: u64,
    sink: &mut dyn Write,
) -> Result<u64, SnapshotError> {
    let (file, path) = snapshots.file(&id.file_name(), Access::Read)?;
    let file_bytes = file.size().map_err(SnapshotError::io("read", &path))?;
    if from_offset > file_bytes {
        let message = format!("{} has {file_bytes} bytes: it cannot be sent from {from_offset} on", path.display());
        return Err(SnapshotError::Config(message));
    }
    let mut step = vec![0; STEP_BYTES];
    let mut offset = from_offset;
    loop {
        let bytes = file.read_at(&mut step, offset).map_err(SnapshotError::io("read", &path))?;
        if bytes == 0 {
            break;
        }
        sink.write_all(&step[..bytes]).map_err(SnapshotError::io("send", &path))?;
        offset += bytes as u64;
    }
    sink.flush().map_err(SnapshotError::io("send", &path))?;
    Ok(offset - from_offset)
}
