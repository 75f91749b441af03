//! Snapshots as files of one directory, through its [`Disk`].
//!
//! Invariants: a name means that the file is whole, was synced and was read back; nothing is removed for a newer
//! snapshot that was not read back; of what the log stands on ([`FileSnapshots::set_stands_on`]) the newest one stays;
//! a failure leaves the snapshots as they were. Several handles, also in several processes, may use one directory.
//!
//! Does not know the log, nor what a state means.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::temporary::{self, Temporary};
use super::{
    Snapshot, SnapshotError, SnapshotId, SnapshotManager, SnapshotOptions, SnapshotReader, SnapshotStream,
    check_may_go, now_ms,
};
use crate::config::IoChoice;
use crate::disk::{Access, Disk, DiskFile, RealDisk};
use crate::format::names::{self, Name};
use crate::format::snapshot::SnapshotMeta;
use crate::plant::{StackPlant, planted};

/// The snapshots of a directory. Cloning gives another handle of the same.
///
/// ```
/// # let scratch = tempfile::tempdir().unwrap();
/// # let dir = scratch.path();
/// use std::io::{Read, Write};
///
/// use ringwal::{FileSnapshots, SnapshotOptions};
///
/// let snapshots = FileSnapshots::open(dir, SnapshotOptions::default())?;
///
/// // A state of any size goes through, in bounded memory.
/// let mut writer = snapshots.writer(1200, 3, "numbers/1")?;
/// for number in 0..1000u32 {
///     writer.write_all(&number.to_le_bytes())?;
/// }
/// let snapshot = writer.publish()?; // whole, durable and read back, or not there at all
/// assert_eq!((snapshot.id.to_string().as_str(), snapshot.raw_bytes), ("snapshot_1200_3", 4000));
///
/// let mut reader = snapshots.open_snapshot("snapshot_1200_3")?;
/// let mut first = [0; 8];
/// reader.read_exact(&mut first)?; // every byte was verified before it is handed out
/// assert_eq!(first, [0, 0, 0, 0, 1, 0, 0, 0]);
///
/// assert!(snapshots.open_snapshot("../secrets").is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct FileSnapshots {
    pub(super) shared: Arc<Shared>,
    /// Whose snapshots they are to be, if that was said.
    pub(super) machine: Option<Arc<str>>,
}

/// What all handles share.
pub(super) struct Shared {
    pub(super) disk: Arc<dyn Disk>,
    options: SnapshotOptions,
    is_read_only: bool,
    state: Mutex<State>,
}

/// Held while names change.
#[derive(Default)]
struct State {
    /// See [`FileSnapshots::set_stands_on`].
    stands_on: Option<u64>,
    /// Those that were read back as a whole in this life.
    verified: BTreeSet<SnapshotId>,
}

impl fmt::Debug for FileSnapshots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileSnapshots({}, {:?})", self.shared.disk.path().display(), self.machine)
    }
}

/// Opening.
impl FileSnapshots {
    /// Opens the snapshots of a directory, which is made if it is missing, and removes what makers that were killed
    /// have left unfinished. The directory may be that of a log; then open the log first: it begins in no directory
    /// that has snapshots and no segment.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Config`] for settings out of their range; [`SnapshotError::Io`].
    pub fn open(dir: impl AsRef<Path>, options: SnapshotOptions) -> Result<FileSnapshots, SnapshotError> {
        let dir = dir.as_ref();
        options.validate()?;
        match std::fs::create_dir_all(dir) {
            // On a read-only disk an existing directory is still named by what cannot be done in it.
            Err(error) if !dir.is_dir() => return Err(SnapshotError::io("create", dir)(error)),
            _ => {}
        }
        FileSnapshots::open_on(Arc::new(RealDisk::open(dir, IoChoice::Syscall)?), options)
    }

    /// Opens the snapshots of a given disk, such as a simulated one or that of a log; else as [`FileSnapshots::open`].
    ///
    /// # Errors
    ///
    /// Those of [`FileSnapshots::open`].
    pub fn open_on(disk: Arc<dyn Disk>, options: SnapshotOptions) -> Result<FileSnapshots, SnapshotError> {
        options.validate()?;
        temporary::remove_left_overs(&disk)?;
        // A maker that was killed may have given a name and not synced it: what is seen from here on stays.
        disk.sync_dir().map_err(SnapshotError::io("sync", disk.path()))?;
        Ok(FileSnapshots::with(disk, options, false))
    }

    /// Opens the snapshots of a directory for reading, also beside somebody who makes some: nothing is written, made or
    /// removed.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Io`] where there is no such directory, or it cannot be read.
    pub fn open_read_only(dir: impl AsRef<Path>) -> Result<FileSnapshots, SnapshotError> {
        Ok(FileSnapshots::open_read_only_on(Arc::new(RealDisk::open_read_only(dir)?)))
    }

    /// Opens the snapshots of a given disk for reading; else as [`FileSnapshots::open_read_only`].
    pub fn open_read_only_on(disk: Arc<dyn Disk>) -> FileSnapshots {
        FileSnapshots::with(disk, SnapshotOptions::default(), true)
    }

    fn with(disk: Arc<dyn Disk>, options: SnapshotOptions, is_read_only: bool) -> FileSnapshots {
        let shared = Shared { disk, options, is_read_only, state: Mutex::default() };
        FileSnapshots { shared: Arc::new(shared), machine: None }
    }

    /// A handle for the snapshots of one machine (at most 64 bytes: which machine, and which version of its state):
    /// those of another one are neither opened, nor written, nor imported.
    #[must_use]
    pub fn of_machine(&self, machine: &str) -> FileSnapshots {
        FileSnapshots { shared: self.shared.clone(), machine: Some(machine.into()) }
    }

    /// Says up to which index the log is compacted: it cannot be replayed without a snapshot at or past that index, so
    /// the newest of these can no longer be deleted. `None`, as after opening, for no log. For all handles that share
    /// this one's state; another process does not hear of it.
    pub fn set_stands_on(&self, index: Option<u64>) {
        self.state().stands_on = index;
    }

    /// Whether it is of the same directory, by the same open.
    #[cfg(feature = "openraft")]
    pub(crate) fn is_same_as(&self, other: &FileSnapshots) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// The directory they are in, for messages.
    #[cfg(feature = "openraft")]
    pub(crate) fn directory(&self) -> &Path {
        self.shared.disk.path()
    }

    /// Whose snapshots they are to be; empty where that was not said.
    pub(crate) fn machine(&self) -> &str {
        self.machine.as_deref().unwrap_or_default()
    }

    /// Where the file of a snapshot is, for messages.
    #[cfg(feature = "openraft")]
    pub(crate) fn path_of(&self, id: SnapshotId) -> PathBuf {
        self.shared.disk.path_of(&id.file_name())
    }

    fn stands_on(&self) -> Option<u64> {
        self.state().stands_on
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reading.
impl FileSnapshots {
    /// The ids of all snapshots, ascending, by their names alone: damaged ones too.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Io`].
    pub fn ids(&self) -> Result<Vec<SnapshotId>, SnapshotError> {
        self.ids_of(|name| match name {
            Name::Snapshot(index, term) => Some(SnapshotId { index, term }),
            _ => None,
        })
    }

    /// The ids of the files that are of a kind.
    pub(super) fn ids_of(&self, pick: impl Fn(Name) -> Option<SnapshotId>) -> Result<Vec<SnapshotId>, SnapshotError> {
        let mut ids: Vec<SnapshotId> = self.names()?.iter().filter_map(|name| pick(names::classify(name))).collect();
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    pub(super) fn names(&self) -> Result<Vec<String>, SnapshotError> {
        let disk = &self.shared.disk;
        disk.list().map_err(SnapshotError::io("list", disk.path()))
    }

    /// The newest snapshot by its name alone: a damaged one is still the newest.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Io`].
    pub fn newest(&self) -> Result<Option<SnapshotId>, SnapshotError> {
        Ok(self.ids()?.last().copied())
    }

    /// All snapshots, ascending, each with what its file says of itself, or why that cannot be read. What the file
    /// holds is not looked at: see [`FileSnapshots::verify`].
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Io`] where the directory cannot be listed.
    #[allow(clippy::type_complexity, reason = "a list of ids, each with an answer of its own: that is what it is")]
    pub fn list(&self) -> Result<Vec<(SnapshotId, Result<Snapshot, SnapshotError>)>, SnapshotError> {
        let described = self.ids()?.into_iter().map(|id| (id, self.describe(id)));
        // One that is gone by now is none.
        Ok(described.filter(|(_, snapshot)| !matches!(snapshot, Err(SnapshotError::NotFound { .. }))).collect())
    }

    /// Opens a snapshot for reading. It can be read to its end even if it is deleted meanwhile.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::BadId`], [`SnapshotError::NotFound`]; [`SnapshotError::Corrupt`] and
    /// [`SnapshotError::Unsupported`] as far as both ends of the file tell, [`SnapshotError::Misnamed`],
    /// [`SnapshotError::OtherMachine`], [`SnapshotError::Io`].
    pub fn open_snapshot(&self, id: &str) -> Result<SnapshotReader, SnapshotError> {
        let id: SnapshotId = id.parse()?;
        let reader = self.reader(id)?;
        self.check_machine(&reader.meta().machine, &id.file_name())?;
        Ok(reader)
    }

    /// Reads a whole snapshot around the page cache where the file system allows it, and verifies every byte.
    ///
    /// # Errors
    ///
    /// Those of [`FileSnapshots::open_snapshot`], and whatever is found to be damaged.
    pub fn verify(&self, id: &str) -> Result<Snapshot, SnapshotError> {
        let id: SnapshotId = id.parse()?;
        let snapshot = self.read_back(id, &id.file_name())?;
        self.check_machine(&snapshot.machine, &id.file_name())?;
        self.state().verified.insert(id);
        Ok(snapshot)
    }

    /// Reads a whole snapshot into memory.
    ///
    /// # Errors
    ///
    /// Those of [`FileSnapshots::verify`].
    pub fn load_snapshot(&self, id: &str) -> Result<(Snapshot, Vec<u8>), SnapshotError> {
        let mut reader = self.open_snapshot(id)?;
        let mut data = Vec::new();
        reader.read_to_end(&mut data).map_err(SnapshotError::io("read", self.shared.disk.path()))?;
        Ok((Snapshot::of(&reader), data))
    }

    /// Writes the file of a snapshot, from byte `from_offset` on, into `sink`, as [`FileSnapshots::importer`] of
    /// another machine takes it. Returns how many bytes it wrote. It is the receiver that verifies them.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::BadId`], [`SnapshotError::NotFound`]; [`SnapshotError::Config`] where the file is shorter;
    /// [`SnapshotError::Io`], also for the sink's errors.
    pub fn export(&self, id: &str, from_offset: u64, sink: &mut dyn Write) -> Result<u64, SnapshotError> {
        let id: SnapshotId = id.parse()?;
        super::import::export(self, id, from_offset, sink)
    }

    /// What the ends of a snapshot's file say.
    pub(super) fn describe(&self, id: SnapshotId) -> Result<Snapshot, SnapshotError> {
        Ok(Snapshot::of(&self.reader(id)?))
    }

    /// Verifies the snapshot of a file, whatever its name is as yet.
    pub(super) fn read_back(&self, id: SnapshotId, name: &str) -> Result<Snapshot, SnapshotError> {
        self.read_back_while(id, name, &|| true)
    }

    fn read_back_while(
        &self,
        id: SnapshotId,
        name: &str,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Snapshot, SnapshotError> {
        let SnapshotOptions { workers, low_priority, .. } = self.shared.options;
        let (file, path) = self.file(name, Access::ReadDirect)?;
        let mut reader = SnapshotReader::open_with(file, path, workers, low_priority)?;
        self.check_id(id, name, &reader)?;
        if !planted(StackPlant::NotReadBack) {
            reader.verify_while(goes_on)?;
        }
        Ok(Snapshot::of(&reader))
    }

    fn reader(&self, id: SnapshotId) -> Result<SnapshotReader, SnapshotError> {
        let name = id.file_name();
        let (file, path) = self.file(&name, Access::Read)?;
        let reader = match self.shared.options.workers {
            0 => SnapshotReader::open_with(file, path, 0, false)?,
            _ => SnapshotReader::open(file, path)?,
        };
        self.check_id(id, &name, &reader)?;
        Ok(reader)
    }

    pub(crate) fn file(&self, name: &str, access: Access) -> Result<(Arc<dyn DiskFile>, PathBuf), SnapshotError> {
        let (disk, path) = (&self.shared.disk, self.shared.disk.path_of(name));
        match disk.open(name, access) {
            Ok(file) => Ok((file, path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(SnapshotError::NotFound { path }),
            Err(error) => Err(SnapshotError::io("open", path)(error)),
        }
    }

    /// Refuses what is not the snapshot that it is named for.
    fn check_id(&self, id: SnapshotId, name: &str, reader: &SnapshotReader) -> Result<(), SnapshotError> {
        let found = SnapshotId { index: reader.meta().index, term: reader.meta().term };
        match found == id {
            true => Ok(()),
            false => Err(SnapshotError::Misnamed { file: self.shared.disk.path_of(name), found }),
        }
    }

    /// Refuses what another machine made, or would make.
    pub(super) fn check_machine(&self, found: &str, name: &str) -> Result<(), SnapshotError> {
        match &self.machine {
            Some(expected) if **expected != *found => Err(SnapshotError::OtherMachine {
                file: self.shared.disk.path_of(name),
                found: found.to_owned(),
                expected: expected.to_string(),
            }),
            _ => Ok(()),
        }
    }
}

/// Making.
impl FileSnapshots {
    /// Begins a snapshot of the state after the entry `index` of `term`, made by `machine`. There is none before
    /// [`SnapshotWriter::publish`].
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Exists`]; [`SnapshotError::Config`] where `index` or `machine` is out of range;
    /// [`SnapshotError::OtherMachine`] where this handle is another machine's; [`SnapshotError::Io`].
    pub fn writer(&self, index: u64, term: u64, machine: &str) -> Result<SnapshotWriter, SnapshotError> {
        let id = SnapshotId { index, term };
        self.check_writable()?;
        id.check()?;
        self.check_machine(machine, &id.file_name())?;
        self.check_absent(id)?;
        let temporary = Temporary::make(&self.shared.disk, id, names::snapshot_temporary, Access::CreateSegment)?;
        let meta = SnapshotMeta { index, term, timestamp_ms: now_ms(), machine: machine.to_owned() };
        let (file, path) = (temporary.file.clone(), temporary.path.clone());
        let stream = SnapshotStream::begin(file, path, &meta, &self.shared.options)?;
        Ok(SnapshotWriter { snapshots: self.clone(), id, stream, temporary })
    }

    /// Makes a snapshot of a state that is in memory. Its machine is that of this handle
    /// ([`FileSnapshots::of_machine`]).
    ///
    /// # Errors
    ///
    /// Those of [`FileSnapshots::writer`] and [`SnapshotWriter::publish`].
    pub fn create_snapshot(&self, index: u64, term: u64, data: &[u8]) -> Result<Snapshot, SnapshotError> {
        let mut writer = self.writer(index, term, self.machine())?;
        writer.stream.push(data)?;
        writer.publish()
    }

    /// Gives a whole and synced file its name, once it was read back. Unless it gets the name, the caller's hold on it
    /// decides what becomes of it.
    pub(super) fn publish(
        &self,
        id: SnapshotId,
        temporary: &mut Temporary,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Snapshot, SnapshotError> {
        let snapshot = self.read_back_while(id, &temporary.name, goes_on)?;
        let mut state = self.state();
        self.check_absent(id)?;
        let named = temporary.rename_to(&id.file_name()).map(|()| self.describe(id));
        // Where it has the name and may lose it in a crash, it goes before anybody can see it and rely on it.
        match named.inspect_err(|_| temporary.discard())? {
            Ok(named) if named == snapshot => drop(state.verified.insert(id)),
            Ok(_) => {
                // Another process gave the same name in the same moment: the file that has it is theirs.
                temporary.keep(true);
                return Err(SnapshotError::Exists { id });
            }
            // Another process has newer ones already, and compacted this one away.
            Err(SnapshotError::NotFound { .. }) => {}
            Err(error) => {
                temporary.discard();
                return Err(error);
            }
        }
        temporary.keep(true);
        Ok(snapshot)
    }

    /// As [`FileSnapshots::publish`], in the place of a damaged one: there is a file of that name at every moment, after a
    /// crash too.
    #[cfg(feature = "openraft")]
    pub(super) fn replace_damaged(&self, id: SnapshotId, temporary: &mut Temporary) -> Result<(), SnapshotError> {
        self.read_back(id, &temporary.name)?;
        self.check_damaged(id)?;
        let mut state = self.state();
        state.verified.remove(&id);
        let renamed = temporary.rename_to(&id.file_name());
        // Where its name may be lost in a crash it stays all the same: the other one was good for nothing.
        temporary.keep(temporary.name == id.file_name());
        renamed?;
        state.verified.insert(id);
        Ok(())
    }

    pub(super) fn check_writable(&self) -> Result<(), SnapshotError> {
        if !self.shared.is_read_only {
            return Ok(());
        }
        let read_only = io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "the snapshots were opened read-only");
        Err(SnapshotError::io("change", self.shared.disk.path())(read_only))
    }

    pub(super) fn check_absent(&self, id: SnapshotId) -> Result<(), SnapshotError> {
        if self.ids()?.contains(&id) { Err(SnapshotError::Exists { id }) } else { Ok(()) }
    }
}

/// Removing.
impl FileSnapshots {
    /// Deletes a snapshot. Where the log stands on one, the newest is read back first, if this was not done before.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::BadId`], [`SnapshotError::NotFound`]; [`SnapshotError::Needed`] where the compacted log stands
    /// on it; what [`FileSnapshots::verify`] says of the newest: nothing is deleted then; [`SnapshotError::Io`].
    pub fn delete_snapshot(&self, id: &str) -> Result<(), SnapshotError> {
        let id: SnapshotId = id.parse()?;
        self.check_writable()?;
        self.check_present(id)?;
        let state = match self.stands_on() {
            Some(_) => self.state_with_sound_newest()?,
            None => self.state(),
        };
        check_may_go(state.stands_on, self.newest()?, id)?;
        self.remove(state, &[id])
    }

    /// Deletes all but the newest `keep_count` snapshots, after the newest was read back, if this was not done before.
    /// Returns those that it deleted, ascending. Snapshots that are damaged as far as both ends of their files tell are
    /// not counted and not deleted; what was received of older ones and never came to its end is.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::KeepCount`] for 0; [`SnapshotError::Needed`] where the compacted log stands on none of them;
    /// what [`FileSnapshots::verify`] says of the newest: nothing is deleted then; [`SnapshotError::Io`].
    pub fn compact_snapshots(&self, keep_count: usize) -> Result<Vec<Snapshot>, SnapshotError> {
        self.check_writable()?;
        if keep_count == 0 {
            return Err(SnapshotError::KeepCount);
        }
        if self.ids()?.len() <= keep_count {
            return Ok(Vec::new());
        }
        let state = self.state_with_sound_newest()?;
        self.drop_all_but(keep_count, self.newest()?, state)
    }

    /// As [`FileSnapshots::compact_snapshots`], for a log whose newest snapshot is this one: those that are newer came
    /// from elsewhere, so they are neither counted nor relied on, nor deleted.
    pub(crate) fn compact_snapshots_up_to(
        &self,
        newest: SnapshotId,
        keep_count: usize,
    ) -> Result<Vec<Snapshot>, SnapshotError> {
        self.make_sure(newest)?;
        let state = self.state();
        self.check_present(newest)?;
        self.drop_all_but(keep_count, Some(newest), state)
    }

    /// Counts from the newest one down.
    fn drop_all_but(
        &self,
        keep_count: usize,
        newest: Option<SnapshotId>,
        state: MutexGuard<'_, State>,
    ) -> Result<Vec<Snapshot>, SnapshotError> {
        let doomed = self.all_but(keep_count, newest)?;
        let ids: Vec<SnapshotId> = doomed.iter().map(|snapshot| snapshot.id).collect();
        ids.iter().try_for_each(|&id| check_may_go(state.stands_on, newest, id))?;
        self.remove(state, &ids)?;
        match self.ids()?.first() {
            Some(&oldest) => self.drop_imports_below(oldest).map(|()| doomed),
            None => Ok(doomed),
        }
    }

    /// Takes a snapshot that is damaged out of the way without deleting it: its file gets another name, which is
    /// returned, and no call here sees it any more. It is read back first, and stays where it is if it is whole. Where
    /// the log stands on one, another one that will do is read back too.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::BadId`], [`SnapshotError::NotFound`], [`SnapshotError::Intact`]; [`SnapshotError::Needed`] where the compacted log could
    /// stand on no other one; [`SnapshotError::Io`].
    pub fn set_aside(&self, id: &str) -> Result<PathBuf, SnapshotError> {
        let id: SnapshotId = id.parse()?;
        self.check_writable()?;
        self.check_present(id)?;
        self.check_damaged(id)?;
        if let Some(stands_on) = self.stands_on() {
            self.check_replaceable(id, stands_on)?;
        }
        let disk = &self.shared.disk;
        let (from, to) = (id.file_name(), names::snapshot_damaged(id.index, id.term, temporary::random(disk)?));
        let mut state = self.state();
        match planted(StackPlant::DamagedDeleted) {
            true => disk.remove(&from),
            false => disk.rename(&from, &to),
        }
        .map_err(SnapshotError::io("rename", disk.path_of(&from)))?;
        state.verified.remove(&id);
        disk.sync_dir().map_err(SnapshotError::io("sync", disk.path()))?;
        Ok(disk.path_of(&to))
    }

    /// Only what its bytes on the medium say is evidence, and a device that cannot be read says nothing.
    fn check_damaged(&self, id: SnapshotId) -> Result<(), SnapshotError> {
        match self.read_back(id, &id.file_name()) {
            Ok(_) => Err(SnapshotError::Intact { id }),
            Err(error @ (SnapshotError::Io { .. } | SnapshotError::NotFound { .. })) => Err(error),
            Err(_) => Ok(()),
        }
    }

    /// Looks for an intact snapshot other than this one on which the log can stand.
    fn check_replaceable(&self, id: SnapshotId, stands_on: u64) -> Result<(), SnapshotError> {
        for other in self.ids()?.into_iter().rev().filter(|&other| other != id && other.index >= stands_on) {
            match self.make_sure(other) {
                Err(error @ SnapshotError::Io { .. }) => return Err(error),
                Err(error) => tracing::warn!(%other, %error, "this snapshot will not do either"),
                Ok(()) => return Ok(()),
            }
        }
        Err(SnapshotError::Needed { id, stands_on })
    }

    /// Ascending.
    fn all_but(&self, keep_count: usize, newest: Option<SnapshotId>) -> Result<Vec<Snapshot>, SnapshotError> {
        let (mut kept, mut doomed) = (0, Vec::new());
        let mut listed = self.list()?;
        listed.retain(|(id, _)| Some(*id) <= newest);
        if !planted(StackPlant::OldestKept) {
            listed.reverse();
        }
        for (id, snapshot) in listed {
            match snapshot {
                Ok(_) if kept < keep_count => kept += 1,
                Ok(snapshot) => doomed.push(snapshot),
                Err(error @ SnapshotError::Io { .. }) => return Err(error),
                Err(error) => tracing::warn!(%id, %error, "a damaged snapshot is left where it is"),
            }
        }
        doomed.reverse();
        Ok(doomed)
    }

    /// Makes sure that the newest snapshot is whole, and that it is the newest still: what is older is about to go.
    fn state_with_sound_newest(&self) -> Result<MutexGuard<'_, State>, SnapshotError> {
        loop {
            let newest = self.newest()?;
            match newest.map_or(Ok(()), |newest| self.make_sure(newest)) {
                // Deleted meanwhile.
                Err(SnapshotError::NotFound { .. }) => continue,
                outcome => outcome?,
            }
            let state = self.state();
            if self.newest()? == newest {
                return Ok(state);
            }
        }
    }

    /// Reads a snapshot back, if this was not done before.
    pub(crate) fn make_sure(&self, id: SnapshotId) -> Result<(), SnapshotError> {
        if !self.state().verified.contains(&id) {
            self.read_back(id, &id.file_name())?;
            self.state().verified.insert(id);
        }
        Ok(())
    }

    fn remove(&self, mut state: MutexGuard<'_, State>, ids: &[SnapshotId]) -> Result<(), SnapshotError> {
        let disk = &self.shared.disk;
        let sync = || disk.sync_dir().map_err(SnapshotError::io("sync", disk.path()));
        // The names of those that stay may be another process's, who has not synced them yet.
        sync()?;
        for id in ids {
            let path = disk.path_of(&id.file_name());
            match disk.remove(&id.file_name()) {
                // Somebody else was quicker.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed.map_err(SnapshotError::io("remove", path))?,
            }
            state.verified.remove(id);
        }
        sync()
    }

    fn check_present(&self, id: SnapshotId) -> Result<(), SnapshotError> {
        if self.ids()?.contains(&id) {
            return Ok(());
        }
        Err(SnapshotError::NotFound { path: self.shared.disk.path_of(&id.file_name()) })
    }
}

impl SnapshotManager for FileSnapshots {
    fn create_snapshot(&mut self, index: u64, term: u64, data: &[u8]) -> Result<Snapshot, SnapshotError> {
        FileSnapshots::create_snapshot(self, index, term, data)
    }

    fn load_snapshot(&self, id: &str) -> Result<(Snapshot, Vec<u8>), SnapshotError> {
        FileSnapshots::load_snapshot(self, id)
    }

    fn delete_snapshot(&mut self, id: &str) -> Result<(), SnapshotError> {
        FileSnapshots::delete_snapshot(self, id)
    }

    fn list_snapshots(&self) -> Result<Vec<Snapshot>, SnapshotError> {
        self.list()?.into_iter().map(|(_, snapshot)| snapshot).collect()
    }

    fn compact_snapshots(&mut self, keep_count: usize) -> Result<Vec<Snapshot>, SnapshotError> {
        FileSnapshots::compact_snapshots(self, keep_count)
    }
}

/// A snapshot that is being made. Dropping it gives it up: its file is removed.
#[derive(Debug)]
pub struct SnapshotWriter {
    snapshots: FileSnapshots,
    id: SnapshotId,
    stream: SnapshotStream,
    temporary: Temporary,
}

impl SnapshotWriter {
    /// Which snapshot it is to be.
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// What tells its file from any other of the same state.
    #[cfg(feature = "openraft")]
    pub(crate) fn salt(&self) -> u64 {
        self.stream.salt()
    }

    /// Ends the snapshot: writes and syncs what is left, reads all of it back and verifies it, past the page cache
    /// where the file system allows that, gives it its name and syncs the directory. When this returns, the snapshot
    /// survives power loss.
    ///
    /// # Errors
    ///
    /// The first error of writing; [`SnapshotError::Corrupt`] where it does not read back; [`SnapshotError::Exists`];
    /// [`SnapshotError::Io`]. The file is removed then, and all other snapshots are as they were.
    pub fn publish(self) -> Result<Snapshot, SnapshotError> {
        self.publish_while(&|| true)
    }

    /// As [`SnapshotWriter::publish`], which takes long for a large one: gives it up, with an error, where it is not to
    /// go on.
    pub(crate) fn publish_while(self, goes_on: &dyn Fn() -> bool) -> Result<Snapshot, SnapshotError> {
        let SnapshotWriter { snapshots, id, stream, mut temporary } = self;
        stream.finish()?;
        snapshots.publish(id, &mut temporary, goes_on)
    }

    /// Gives the snapshot up and removes its file.
    pub fn abort(self) {}
}

/// The error of a snapshot is inside an error of writing: see [`SnapshotError`].
impl Write for SnapshotWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.stream.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
