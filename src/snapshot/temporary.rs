//! A file that is being made under a name of its own, which goes with it unless it gets its proper one.
//!
//! Its name was never used before and will never be used again (`format::names`), and its lock is held by whoever makes it.
//! So two makers never meet in one file, and a left-over of a process that died is known by its lock being free. Whoever
//! gets a lock makes sure that the name is there still: then nobody else can take it away or give it another one.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use super::{SnapshotError, SnapshotId};
use crate::disk::{Access, Disk, DiskFile};
use crate::format::names::{self, Name};
use crate::plant::{StackPlant, planted};

/// Names that are tried for one file: each is lost only to somebody who tidied up in that very moment.
const TRIES: usize = 100;

/// How a temporary name is made of index, term and a random number.
pub(super) type NameOf = fn(u64, u64, u64) -> String;

/// A locked file under a temporary name.
pub(super) struct Temporary {
    disk: Arc<dyn Disk>,
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn DiskFile>,
    /// Whether the name stays when this is dropped.
    is_kept: bool,
}

impl Temporary {
    /// Makes an empty file.
    pub(super) fn make(
        disk: &Arc<dyn Disk>,
        id: SnapshotId,
        name_of: NameOf,
        access: Access,
    ) -> Result<Temporary, SnapshotError> {
        for _ in 0..TRIES {
            let name = name_of(id.index, id.term, random(disk)?);
            let path = disk.path_of(&name);
            let file = disk.open(&name, access).map_err(SnapshotError::io("create", &path))?;
            let temporary = Temporary { disk: disk.clone(), name, path, file, is_kept: false };
            if temporary.is_ours()? {
                return Ok(temporary);
            }
        }
        Err(SnapshotError::InUse { path: disk.path_of(&id.file_name()) })
    }

    /// Takes over a file that somebody left; `None` where it is gone, or somebody has it.
    pub(super) fn take_over(disk: &Arc<dyn Disk>, name: &str) -> Result<Option<Temporary>, SnapshotError> {
        let path = disk.path_of(name);
        let file = match disk.open(name, Access::ReadWrite) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(SnapshotError::io("open", &path))?,
        };
        let taken = Temporary { disk: disk.clone(), name: name.to_owned(), path, file, is_kept: true };
        Ok(taken.is_ours()?.then_some(taken))
    }

    /// Takes the lock; whether nobody else has it and the name still leads here.
    fn is_ours(&self) -> Result<bool, SnapshotError> {
        let is_locked = self.file.try_lock().map_err(SnapshotError::io("lock", &self.path))?;
        let names = || self.disk.list().map_err(SnapshotError::io("list", self.disk.path()));
        Ok(is_locked && names()?.contains(&self.name))
    }

    /// Whether the name stays when this is dropped.
    pub(super) fn keep(&mut self, is_kept: bool) {
        self.is_kept = is_kept;
    }

    /// Gives the file another name, durably. Whatever stood under that name is gone then. Also after an error the file goes
    /// with its name when this is dropped, unless it is kept.
    pub(super) fn rename_to(&mut self, name: &str) -> Result<(), SnapshotError> {
        self.disk.rename(&self.name, name).map_err(SnapshotError::io("rename", &self.path))?;
        name.clone_into(&mut self.name);
        if planted(StackPlant::SnapshotNameNotSynced) {
            return Ok(());
        }
        self.disk.sync_dir().map_err(SnapshotError::io("sync", self.disk.path()))
    }
}

impl fmt::Debug for Temporary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Temporary({})", self.path.display())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        match self.disk.remove(&self.name) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "a temporary file stays until the next open");
            }
            _ => {}
        }
    }
}

/// Removes what makers that are no more have left behind.
pub(super) fn remove_left_overs(disk: &Arc<dyn Disk>) -> Result<(), SnapshotError> {
    for name in disk.list().map_err(SnapshotError::io("list", disk.path()))? {
        if let Name::SnapshotTemporary(..) = names::classify(&name)
            && let Some(mut left_over) = Temporary::take_over(disk, &name)?
        {
            left_over.keep(false);
        }
    }
    Ok(())
}

/// 64 bits that no other file has in its name.
pub(super) fn random(disk: &Arc<dyn Disk>) -> Result<u64, SnapshotError> {
    getrandom::u64().map_err(|error| SnapshotError::io("draw a name for a file in", disk.path())(error.into()))
}
