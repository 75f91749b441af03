//! Where the comparison works: a new directory in the one that was asked for, removed with all that is in it at the
//! end.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::device::{Counts, Device};

/// The working directory.
#[derive(Debug)]
pub(crate) struct Place {
    root: TempDir,
    parent: PathBuf,
    device: Option<Device>,
}

impl Place {
    /// Makes it in `parent`, which is made as well if it is not there.
    pub(crate) fn make(parent: &Path) -> Result<Place> {
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        let root = tempfile::Builder::new().prefix("ringwal-peers-").tempdir_in(parent);
        let root = root.with_context(|| format!("cannot make a directory in {}", parent.display()))?;
        let device = Device::under(root.path());
        Ok(Place { root, parent: parent.to_path_buf(), device })
    }

    /// The directory it was made in.
    pub(crate) fn parent(&self) -> &Path {
        &self.parent
    }

    /// What the device was sent since the machine started, if anybody counts.
    pub(crate) fn device_counts(&self) -> Option<Counts> {
        self.device.as_ref()?.counts()
    }

    /// A new, empty directory of this name.
    pub(crate) fn make_dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.root.path().join(name);
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(dir)
    }

    /// Writes out everything that the file system still holds back, so that what one engine left behind (dirty pages,
    /// a journal full of deletions) is not charged to the next one's syncs.
    pub(crate) fn settle(&self) -> Result<()> {
        rustix::fs::syncfs(File::open(self.root.path())?).context("cannot sync the file system")
    }

    /// The file system's name, or its number where it has none here.
    pub(crate) fn file_system(&self) -> String {
        let Ok(status) = rustix::fs::statfs(self.root.path()) else { return "unknown".to_owned() };
        let name = match status.f_type as u32 {
            0xef53 => "ext4",
            0x5846_5342 => "xfs",
            0x9123_683e => "btrfs",
            0x0102_1994 => "tmpfs",
            0x794c_7630 => "overlayfs",
            0x2fc1_2fc1 => "zfs",
            0xf2f5_2010 => "f2fs",
            other => return format!("file system {other:#x}"),
        };
        name.to_owned()
    }
}
