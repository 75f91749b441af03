//! A device made slow for some processes: control groups of either version, where this user may.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A control group whose writes to one device are slow, until this is dropped.
pub(crate) struct Throttle {
    group: PathBuf,
}

impl Throttle {
    /// Of the device under `dir`: writes take so many bytes per second.
    pub(crate) fn of(dir: &Path, bytes_per_s: u64) -> Result<Throttle, String> {
        let device = whole_device(dir)?;
        let name = format!("ringwal-{}", std::process::id());
        let first = Throttle::version_1(&device, &name, bytes_per_s);
        first
            .or_else(|_| Throttle::version_2(&device, &name, bytes_per_s))
            .map_err(|error| format!("no control group can slow device {device} down ({error})"))
    }

    fn version_1(device: &str, name: &str, bytes_per_s: u64) -> io::Result<Throttle> {
        let throttle = Throttle::make(Path::new("/sys/fs/cgroup/blkio").join(name))?;
        throttle.set("blkio.throttle.write_bps_device", &format!("{device} {bytes_per_s}"))?;
        Ok(throttle)
    }

    fn version_2(device: &str, name: &str, bytes_per_s: u64) -> io::Result<Throttle> {
        let root = Path::new("/sys/fs/cgroup");
        fs::write(root.join("cgroup.subtree_control"), "+io")?;
        let throttle = Throttle::make(root.join(name))?;
        throttle.set("io.max", &format!("{device} wbps={bytes_per_s}"))?;
        Ok(throttle)
    }

    /// The directory exists once the kernel made it; where there are no control groups, its parent is missing.
    fn make(group: PathBuf) -> io::Result<Throttle> {
        fs::create_dir(&group)?;
        Ok(Throttle { group })
    }

    fn set(&self, name: &str, value: &str) -> io::Result<()> {
        // The file is the kernel's: where it is missing, it must not be made.
        use io::Write;
        fs::File::options().write(true).open(self.group.join(name))?.write_all(value.as_bytes())
    }

    /// The group's directory, for processes to join.
    pub(crate) fn group(&self) -> &Path {
        &self.group
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        // Processes that just ended leave it empty only after a moment.
        for _ in 0..100 {
            match fs::remove_dir(&self.group) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
                _ => return,
            }
        }
        eprintln!("{} is left behind", self.group.display());
    }
}

/// The numbers of the whole block device under a directory: a partition has no limits of its own.
fn whole_device(dir: &Path) -> Result<String, String> {
    let device = fs::metadata(dir).map_err(|error| error.to_string())?.dev();
    let entry = format!("/sys/dev/block/{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let entry = fs::canonicalize(&entry).map_err(|error| format!("there is no block device under it: {error}"))?;
    let whole = if entry.join("partition").exists() { entry.join("..") } else { entry };
    let numbers = fs::read_to_string(whole.join("dev")).map_err(|error| error.to_string())?;
    Ok(numbers.trim().to_owned())
}
