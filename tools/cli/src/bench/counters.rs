//! What the machine counts: this process's CPU time and memory, the block device's flushes, the kind of file system.
//!
//! The device's counters belong to the whole device: what other programs flush meanwhile is in them. Where there is no
//! block device (tmpfs, overlays), or the kernel does not count flushes, the answer is `None`, never a guess.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{major, minor};
use rustix::time::{ClockId, clock_gettime};

/// CPU time of all threads of this process, user and system.
pub(crate) fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// The most memory this process held so far, in bytes.
pub(crate) fn peak_rss_bytes() -> Option<u64> {
    status_bytes("VmHWM:")
}

/// The memory this process holds now, in bytes.
pub(crate) fn rss_bytes() -> Option<u64> {
    status_bytes("VmRSS:")
}

fn status_bytes(name: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kib = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?;
    Some(kib * 1024)
}

/// Lets the most memory held start again from what is held now. Where that is refused, the figure covers more.
pub(crate) fn reset_peak_rss() {
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// How much of the machine others used while something ran: the kernel's own work for us is among it.
#[derive(Debug)]
pub(crate) struct Others {
    start: Instant,
    own: Duration,
    busy_ticks: Option<u64>,
}

impl Others {
    /// Starts to watch.
    pub(crate) fn watch() -> Others {
        Others { start: Instant::now(), own: cpu_time(), busy_ticks: busy_ticks() }
    }

    /// The others' share of all CPU time since then, from 0 to 1.
    pub(crate) fn share(&self, cpus: usize) -> Option<f64> {
        // Ticks of /proc/stat are 10 ms on every machine: USER_HZ is part of the kernel's interface.
        let busy_s = (busy_ticks()?.checked_sub(self.busy_ticks?)?) as f64 / 100.0;
        let others_s = busy_s - (cpu_time() - self.own).as_secs_f64();
        Some((others_s / (self.start.elapsed().as_secs_f64() * cpus as f64)).clamp(0.0, 1.0))
    }
}

fn busy_ticks() -> Option<u64> {
    busy_ticks_of(&fs::read_to_string("/proc/stat").ok()?)
}

/// All CPUs' ticks but those idle (4th) and waiting for I/O (5th); the guests' (9th on) are in the first two already.
fn busy_ticks_of(stat: &str) -> Option<u64> {
    let mut fields =
        stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().map(|ticks| ticks.parse::<u64>().ok());
    let mut take = || fields.next().flatten();
    let (user, nice, system, _idle, _iowait) = (take()?, take()?, take()?, take()?, take()?);
    Some(user + nice + system + take()? + take()? + take()?)
}

/// What all CPUs together were idle since the machine was started, waiting for I/O included; the kernel counts it to the
/// microsecond where it stops the tick of an idle CPU, and tells it in hundredths of a second.
pub(crate) fn idle_time() -> Option<Duration> {
    idle_ticks_of(&fs::read_to_string("/proc/stat").ok()?).map(|ticks| Duration::from_millis(ticks * 10))
}

fn idle_ticks_of(stat: &str) -> Option<u64> {
    let mut fields = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().skip(3);
    let mut take = || fields.next()?.parse::<u64>().ok();
    Some(take()? + take()?)
}

/// The counters of the block device under a directory, and what it says of itself.
#[derive(Debug)]
pub(crate) struct Device {
    whole: PathBuf,
}

/// What a device needs so that a write is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cache {
    /// Nothing: it has no volatile cache.
    WriteThrough,
    /// A flag on the write itself, which no counter counts.
    ForcedUnitAccess,
    /// A flush after it.
    WriteBack,
}

impl Device {
    /// The whole device under `dir` (a partition's flushes are counted there), if there is one that counts flushes.
    pub(crate) fn under(dir: &Path) -> Option<Device> {
        let device = fs::metadata(dir).ok()?.dev();
        let entry = PathBuf::from(format!("/sys/dev/block/{}:{}", major(device), minor(device)));
        let entry = fs::canonicalize(entry).ok()?;
        let whole = if entry.join("partition").exists() { entry.parent()?.to_path_buf() } else { entry };
        let device = Device { whole };
        device.flushes().map(|_| device)
    }

    /// Flush requests the device has completed since it was started.
    pub(crate) fn flushes(&self) -> Option<u64> {
        flushes_of(&fs::read_to_string(self.whole.join("stat")).ok()?)
    }

    /// What it says of its cache; a device that says nothing is taken to need flushes.
    pub(crate) fn cache(&self) -> Cache {
        let read = |name| fs::read_to_string(self.whole.join("queue").join(name)).unwrap_or_default();
        cache_of(&read("write_cache"), &read("fua"))
    }

    /// The kernel's name for it.
    pub(crate) fn name(&self) -> String {
        self.whole.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

/// The 16th field of a device's `stat`: completed flush requests (Linux 5.5 and later).
fn flushes_of(stat: &str) -> Option<u64> {
    stat.split_whitespace().nth(15)?.parse().ok()
}

fn cache_of(write_cache: &str, fua: &str) -> Cache {
    match (write_cache.trim(), fua.trim()) {
        ("write through", _) => Cache::WriteThrough,
        (_, "1") => Cache::ForcedUnitAccess,
        _ => Cache::WriteBack,
    }
}

/// Bytes that may still be written to the file system under `dir`.
pub(crate) fn free_bytes(dir: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Name of the file system under `dir`, where it is one of the usual ones.
pub(crate) fn file_system(dir: &Path) -> String {
    let Ok(stat) = rustix::fs::statfs(dir) else { return "unknown".into() };
    match stat.f_type as u64 & 0xffff_ffff {
        0xef53 => "ext4".into(),
        0x5846_5342 => "xfs".into(),
        0x9123_683e => "btrfs".into(),
        0xf2f5_2010 => "f2fs".into(),
        0x2fc1_2fc1 => "zfs".into(),
        0x0102_1994 => "tmpfs".into(),
        0x794c_7630 => "overlayfs".into(),
        0x6969 => "nfs".into(),
        other => format!("file system {other:#x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_is_what_nobody_used_and_what_waited_for_the_disk() {
        assert_eq!(idle_ticks_of("cpu  1 2 3 40 5 6 7 8 0 0\ncpu0 9"), Some(45));
        assert_eq!(idle_ticks_of("cpu  1 2 3 40"), None);
    }

    #[test]
    fn flushes_are_the_sixteenth_field() {
        let stat = "  1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 695 27\n";
        assert_eq!(flushes_of(stat), Some(695));
        assert_eq!(flushes_of("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15"), None, "a kernel before 5.5");
        assert_eq!(flushes_of(""), None);
    }

    #[test]
    fn a_device_that_says_nothing_needs_flushes() {
        assert_eq!(cache_of("write through\n", "0\n"), Cache::WriteThrough);
        assert_eq!(cache_of("write back\n", "1\n"), Cache::ForcedUnitAccess);
        assert_eq!([cache_of("write back\n", "0\n"), cache_of("", "")], [Cache::WriteBack; 2]);
    }

    #[test]
    fn busy_is_neither_idle_nor_waiting() {
        assert_eq!(busy_ticks_of("cpu  1 2 4 1000 2000 8 16 32 7 7\ncpu0 1"), Some(63));
        assert_eq!(busy_ticks_of("cpu 1 2"), None);
        assert!(Others::watch().share(1).unwrap() <= 1.0);
    }

    #[test]
    fn this_process_uses_memory_and_time() {
        assert!(peak_rss_bytes().unwrap() > 100_000 && rss_bytes().unwrap() > 100_000);
        let before = cpu_time();
        while cpu_time() == before {}
    }

    #[test]
    fn a_file_system_without_a_device_has_no_counters() {
        assert!(Device::under(Path::new("/proc")).is_none());
        assert!(Device::under(Path::new("/there/is/nothing")).is_none());
    }
}
