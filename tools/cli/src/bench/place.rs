//! Where the bench works: a directory that was empty or not there, with `log/` and `floor/` side by side in it; the
//! suite's has one such directory per row in it.
//!
//! Invariants: nothing that was there before is written or removed; what the bench made is removed when the value is
//! dropped, except a log that is to be kept. Both live in one directory so that they share a file system, which a
//! sibling of a mount point would not.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// A directory to work in. Dropped, it is removed if it was not there before and is empty again.
#[derive(Debug)]
pub(crate) struct Root {
    path: PathBuf,
    made: bool,
}

impl Root {
    /// Takes `dir`, or a new directory of our own.
    pub(crate) fn take(dir: Option<&Path>) -> Result<Root> {
        let path = dir.map_or_else(default_root, Path::to_path_buf);
        let made = !is_there_and_empty(&path)?;
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Root { path, made })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if self.made {
            // A directory that is not empty has something in it that is to be kept.
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// The bench's directory.
#[derive(Debug)]
pub(crate) struct Place {
    root: Root,
    keep_log: bool,
}

impl Place {
    /// Takes `dir`, or a new directory of our own.
    pub(crate) fn take(dir: Option<&Path>, keep_log: bool) -> Result<Place> {
        let place = Place { root: Root::take(dir)?, keep_log };
        for path in [place.log(), place.floor()] {
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        Ok(place)
    }

    /// The log's own directory.
    pub(crate) fn log(&self) -> PathBuf {
        self.root.path.join("log")
    }

    /// Leaves the log on the disk after all.
    pub(crate) fn keep_log(&mut self) {
        self.keep_log = true;
    }

    /// The directory of the floor's files.
    pub(crate) fn floor(&self) -> PathBuf {
        self.root.path.join("floor")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Best effort: a directory that cannot be removed now is no reason to hide the run's result.
        let _ = fs::remove_dir_all(self.floor());
        if !self.keep_log {
            let _ = fs::remove_dir_all(self.log());
        }
    }
}

/// A build's own directory if we stand beside one, else the temporary directory.
fn default_root() -> PathBuf {
    let target = Path::new("target");
    let parent = if target.is_dir() { target.to_path_buf() } else { std::env::temp_dir() };
    parent.join(format!("ringwal-bench-{}", std::process::id()))
}

/// False if there is nothing at `dir`; an error if there is something that is not ours to touch.
fn is_there_and_empty(dir: &Path) -> Result<bool> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("cannot use {}", dir.display())),
    };
    for entry in entries {
        let name = entry.with_context(|| format!("cannot list {}", dir.display()))?.file_name();
        // A freshly made file system has this one from birth.
        if name != "lost+found" {
            bail!(
                "{} is not empty (it holds {name:?}): give an empty directory, or one that is not there",
                dir.display()
            );
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_is_removed_and_what_was_there_stays() {
        let temp = tempfile::tempdir().unwrap();
        let made = temp.path().join("made");
        drop(Place::take(Some(&made), false).unwrap());
        assert!(!made.exists());

        drop(Place::take(Some(temp.path()), false).unwrap());
        assert!(is_there_and_empty(temp.path()).unwrap());
    }

    #[test]
    fn a_kept_log_stays_without_the_floor() {
        let temp = tempfile::tempdir().unwrap();
        let place = Place::take(Some(temp.path()), true).unwrap();
        let (log, floor) = (place.log(), place.floor());
        drop(place);
        assert!(log.exists() && !floor.exists());
    }

    #[test]
    fn a_directory_in_use_is_refused_untouched() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("mine"), "x").unwrap();
        let error = Place::take(Some(temp.path()), false).unwrap_err().to_string();
        assert!(error.contains("not empty"), "{error}");
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_in_place_of_the_directory_is_refused() {
        let temp = tempfile::NamedTempFile::new().unwrap();
        assert!(Place::take(Some(temp.path()), false).is_err());
    }
}
