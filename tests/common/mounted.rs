//! File systems of a test's own, for what no directory of others can be used: filled, remounted, on a device that fails.
//!
//! In memory; ext4 on a loop device; ext4 on compressed memory whose limit makes its writes fail. Where this user or
//! this machine may not, the test is told and skipped.
#![allow(dead_code, reason = "each test file uses its part")]

use std::ffi::CStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags};
use tempfile::TempDir;

use super::skip::skip;

/// A mounted file system, until this is dropped.
pub(crate) struct Mounted {
    at: PathBuf,
    _directory: TempDir,
    // Given back once nothing is mounted on it.
    device: Option<Zram>,
}

impl Mounted {
    /// In memory; `size` is an option of that mount.
    pub(crate) fn in_memory(size: &CStr) -> Option<Mounted> {
        let mounted = Mounted::nowhere(None);
        match rustix::mount::mount("tmpfs", &mounted.at, "tmpfs", MountFlags::empty(), Some(size)) {
            Ok(()) => Some(mounted),
            Err(error) => none(format_args!("cannot mount a file system here ({error})")),
        }
    }

    /// With a journal, on a file through a loop device.
    pub(crate) fn ext4(bytes: u64) -> Option<Mounted> {
        let mounted = Mounted::nowhere(None);
        let image = mounted.at.with_file_name("image");
        File::create(&image).unwrap().set_len(bytes).unwrap();
        let made = run("mkfs.ext4", &["-q", "-F", "-m", "0", "-J", "size=4"], &[&image]);
        match made.and_then(|()| run("mount", &["-o", "loop"], &[&image, &mounted.at])) {
            Ok(()) => Some(mounted),
            Err(why) => none(format_args!("cannot make and mount an ext4 here ({why})")),
        }
    }

    /// On a device of its own that can be made to fail; without a journal, which would not outlive that.
    pub(crate) fn on_a_device_that_can_fail(bytes: u64) -> Option<Mounted> {
        let device = match Zram::make(bytes) {
            Ok(device) => device,
            Err(why) => return none(format_args!("no device that can be made to fail here ({why})")),
        };
        let path = device.path();
        let mounted = Mounted::nowhere(Some(device));
        let made = run("mkfs.ext4", &["-q", "-F", "-m", "0", "-O", "^has_journal"], &[&path]);
        match made.and_then(|()| run("mount", &[], &[&path, &mounted.at])) {
            Ok(()) => Some(mounted),
            Err(why) => none(format_args!("cannot make and mount an ext4 on {} ({why})", path.display())),
        }
    }

    fn nowhere(device: Option<Zram>) -> Mounted {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().join("mounted");
        fs::create_dir(&at).unwrap();
        Mounted { at, _directory: directory, device }
    }

    /// Where it is.
    pub(crate) fn at(&self) -> &Path {
        &self.at
    }

    /// From now on the device has no room for contents that it does not have yet: their writes fail.
    pub(crate) fn fail_writes(&self) {
        let device = self.device.as_ref().expect("it is on a device that can fail");
        device.set_memory_limit(1);
    }

    /// The device works again.
    pub(crate) fn heal(&self) {
        self.device.as_ref().expect("it is on a device that can fail").set_memory_limit(0);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Not there where mounting failed.
        let _ = rustix::mount::unmount(&self.at, UnmountFlags::DETACH);
    }
}

/// Skips the test, or the part of it that needs this.
fn none(why: impl std::fmt::Display) -> Option<Mounted> {
    skip(why);
    None
}

/// Runs a program; its error is what it said.
fn run(program: &str, arguments: &[&str], paths: &[&Path]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).args(paths).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// A block device in compressed memory (the kernel's zram). Past its limit of memory a write fails as on a broken disk,
/// while reads go on, and writes of zeros, which need none.
struct Zram {
    number: String,
}

impl Zram {
    fn make(bytes: u64) -> Result<Zram, String> {
        let number = fs::read_to_string("/sys/class/zram-control/hot_add").map_err(|error| error.to_string())?;
        let device = Zram { number: number.trim().to_owned() };
        fs::write(device.setting("disksize"), bytes.to_string()).map_err(|error| error.to_string())?;
        Ok(device)
    }

    fn path(&self) -> PathBuf {
        format!("/dev/zram{}", self.number).into()
    }

    fn setting(&self, name: &str) -> PathBuf {
        format!("/sys/block/zram{}/{name}", self.number).into()
    }

    /// 0 for none.
    fn set_memory_limit(&self, bytes: u64) {
        fs::write(self.setting("mem_limit"), bytes.to_string()).unwrap();
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        // A detached mount lives on for a moment: the device is busy until then.
        for _ in 0..100 {
            let is_reset = fs::write(self.setting("reset"), "1").is_ok();
            if is_reset && fs::write("/sys/class/zram-control/hot_remove", &self.number).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        eprintln!("{} is left behind", self.path().display());
    }
}
