//! A small file system for one node, which can be filled up: in memory, mounted for the run.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::mount::{MountFlags, UnmountFlags};

/// Room for a few segments of the log, and for snapshots.
const SIZE: &CStr = c"size=24m";

/// A mounted file system, until this is dropped.
#[derive(Debug)]
pub(crate) struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// Mounts one at a new directory.
    ///
    /// # Errors
    ///
    /// This user may not, or the system has none.
    pub(crate) fn mount(at: &Path) -> io::Result<SmallDisk> {
        fs::create_dir_all(at)?;
        rustix::mount::mount("tmpfs", at, "tmpfs", MountFlags::empty(), Some(SIZE))?;
        Ok(SmallDisk { at: at.to_owned() })
    }

    /// The directory of the node on it.
    pub(crate) fn dir(&self) -> PathBuf {
        self.at.join("node")
    }

    /// Takes all the room that is left.
    ///
    /// # Errors
    ///
    /// Any but the one that says that it is taken.
    pub(crate) fn fill(&self) -> io::Result<()> {
        const LARGEST: u64 = 1 << 20;
        const SMALLEST: u64 = 4 << 10;
        let ballast = File::options().create(true).append(true).open(self.ballast())?;
        let (mut taken, mut piece) = (ballast.metadata()?.len(), LARGEST);
        while piece >= SMALLEST {
            match fallocate(&ballast, FallocateFlags::empty(), taken, piece) {
                Ok(()) => taken += piece,
                Err(rustix::io::Errno::NOSPC) => piece /= 2,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Gives the room back.
    ///
    /// # Errors
    ///
    /// The system's own.
    pub(crate) fn free(&self) -> io::Result<()> {
        match fs::remove_file(self.ballast()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn ballast(&self) -> PathBuf {
        self.at.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Detached: a process that is only just dying may still have files there.
        if let Err(error) = rustix::mount::unmount(&self.at, UnmountFlags::DETACH) {
            eprintln!("{} stays mounted: {error}", self.at.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_disk_is_full_until_it_is_freed_and_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let disk = match SmallDisk::mount(&directory.path().join("small")) {
            Ok(disk) => disk,
            Err(error) => return super::super::report::skip(&format!("no disk to be filled: {error}")),
        };
        fs::create_dir(disk.dir()).unwrap();
        let mut file = File::create(disk.dir().join("file")).unwrap();
        file.write_all(b"before").unwrap();
        disk.fill().unwrap();
        let full = fs::write(disk.dir().join("other"), vec![1; 64 << 10]).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        disk.free().unwrap();
        fs::write(disk.dir().join("other"), vec![1; 64 << 10]).unwrap();
        drop(file);
        drop(disk);
        assert_eq!(fs::read_dir(directory.path().join("small")).unwrap().count(), 0);
    }
}
