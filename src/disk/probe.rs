//! Decides, when a directory is opened, who carries its writes, and finds out what the device is like.
//!
//! Nothing is believed that was not tried: a file is made under a temporary name and loses it at once; whether it takes
//! O_DIRECT, and direct writes that must not block, is asked of the kernel; and before io_uring is trusted, a ring is
//! set up by hand (tokio-uring panics where that fails) and a real write goes through the real driver, on a thread that
//! is left behind if it hangs.
//!
//! A directory that cannot be written is an error here and not a reason for another driver: the log would only run into
//! it later. A full disk is neither: a log on a full disk must open.

use std::fs::{self, File};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use rustix::fs::{AtFlags, OFlags, StatxFlags};
use rustix::io::{Errno, ReadWriteFlags};

use super::real::{self, RealFile};
use super::uring::{UringDriver, ring_entries};
use super::{AlignedBuf, Completion, DiskFile, Driver, IoMode, Operation, PollWait};
use crate::config::IoChoice;
use crate::error::{Error, Result};

/// The probe's file. It has this name for a moment only; an open that is killed in between leaves it to the next one.
pub const PROBE_NAME: &str = "ringwal-probe.tmp";
/// How long the test write may take.
const TIME_LIMIT: Duration = Duration::from_secs(2);
/// Bytes of the test write: a multiple of whatever block a device has.
const TEST_BYTES: usize = 65536;
/// Operations in flight that the test sets a ring up for: as many as a log may ask for.
const TEST_DEPTH: usize = 64;

/// What a writing open found out.
#[derive(Debug)]
pub(super) struct Findings {
    /// Whether files can be opened with O_DIRECT.
    pub(super) takes_direct: bool,
    /// See [`physical_block_bytes`].
    pub(super) physical_block_bytes: u32,
    /// Who will carry the writes.
    pub(super) mode: IoMode,
}

/// Tries the directory and the kernel. `path` is for messages.
pub(super) fn examine(directory: BorrowedFd<'_>, path: &Path, choice: IoChoice) -> Result<Findings> {
    let probe = ProbeFile::make(directory).map_err(Error::io("write to the directory", path))?;
    let physical_block_bytes = physical_block_bytes(probe.file.as_fd());
    let takes_direct = probe.is_direct;
    let alignment = physical_block_bytes as usize;
    let refusal = match choice {
        IoChoice::Syscall => Some("plain system calls were asked for".to_owned()),
        IoChoice::Auto => probe.reason_against_ring().or_else(|| try_ring(probe, alignment, path)),
        IoChoice::Uring => try_ring(probe, alignment, path),
    };
    let mode = match refusal {
        None => IoMode::Uring,
        Some(reason) if choice == IoChoice::Uring => {
            let source = io::Error::new(io::ErrorKind::Unsupported, reason);
            return Err(Error::Io { action: "use io_uring for", path: path.to_path_buf(), source });
        }
        Some(reason) => IoMode::Syscall { reason },
    };
    Ok(Findings { takes_direct, physical_block_bytes, mode })
}

/// An open file to try things on.
struct ProbeFile {
    file: File,
    is_direct: bool,
    /// Not so where the disk is too full to make a file, and one that was there had to do.
    is_writable: bool,
}

impl ProbeFile {
    fn make(directory: BorrowedFd<'_>) -> io::Result<ProbeFile> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC;
        match real::open_with_fallback(directory, PROBE_NAME, flags | OFlags::DIRECT) {
            Ok((file, is_direct)) => {
                match rustix::fs::unlinkat(directory, PROBE_NAME, AtFlags::empty()) {
                    // Somebody else probes at the same time and was faster.
                    Ok(()) | Err(Errno::NOENT) => Ok(ProbeFile { file, is_direct, is_writable: true }),
                    Err(error) => Err(error.into()),
                }
            }
            Err(error) if is_out_of_space(&error) => Self::borrow(directory).ok_or(error),
            Err(error) => Err(error),
        }
    }

    /// Any file of the directory, to be read only.
    fn borrow(directory: BorrowedFd<'_>) -> Option<ProbeFile> {
        let names = real::list(directory).ok()?;
        let (file, is_direct) = names
            .iter()
            .find_map(|name| real::open_with_fallback(directory, name, OFlags::RDONLY | OFlags::DIRECT).ok())?;
        Some(ProbeFile { file, is_direct, is_writable: false })
    }

    /// Why the file system would make io_uring slower than plain system calls, if it would.
    fn reason_against_ring(&self) -> Option<String> {
        if !self.is_direct {
            return Some("the file system refuses O_DIRECT".to_owned());
        }
        (self.is_writable && !self.takes_nonblocking_writes())
            .then(|| "the file system refuses non-blocking direct writes: each would take a kernel worker".to_owned())
    }

    /// Whether a direct write that must not block is taken, or at least tried.
    fn takes_nonblocking_writes(&self) -> bool {
        let buffer = AlignedBuf::zeroed(TEST_BYTES);
        let outcome = rustix::io::pwritev2(&self.file, &[IoSlice::new(&buffer)], 0, ReadWriteFlags::NOWAIT);
        // Anything else, "would block" above all, means that the file system understood.
        !matches!(outcome, Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS))
    }
}

fn is_out_of_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Sets up a ring and writes through it; returns why io_uring cannot be used, or `None` where it works.
fn try_ring(probe: ProbeFile, alignment: usize, path: &Path) -> Option<String> {
    // Setting up and entering are two calls, each of which may be barred. The runtime tells of neither: it panics over the
    // first and goes on without the second.
    let ring = tokio_uring::uring_builder().build(ring_entries(TEST_DEPTH));
    if let Err(error) = ring.and_then(|ring| ring.submit()) {
        return Some(explain_setup(&error, fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok().as_deref()));
    }
    let path = path.to_path_buf();
    let (send, receive) = mpsc::sync_channel(1);
    // A thread of its own: the caller may stand inside a runtime, and a hanging kernel must not take the caller along.
    let spawned = thread::Builder::new().name("ringwal-probe".to_owned()).spawn(move || {
        // Nobody listens any more once the time limit has passed.
        let _ = send.send(write_through_ring(probe, alignment, &path));
    });
    let thread = match spawned {
        Ok(thread) => thread,
        Err(error) => return Some(format!("no thread could be started to test io_uring ({error})")),
    };
    match receive.recv_timeout(TIME_LIMIT) {
        Ok(result) => {
            // Its last act was to send.
            let _ = thread.join();
            result.err().map(|error| format!("a test write through io_uring failed ({error})"))
        }
        Err(RecvTimeoutError::Timeout) => Some(not_in_time()),
        Err(RecvTimeoutError::Disconnected) => Some("the test of io_uring panicked".to_owned()),
    }
}

fn not_in_time() -> String {
    format!("a test write through io_uring was not done after {TIME_LIMIT:?}")
}

/// One operation through the real driver: a write, or a sync where the file may not be written.
fn write_through_ring(probe: ProbeFile, alignment: usize, path: &Path) -> io::Result<()> {
    let mut driver = UringDriver::new(TEST_DEPTH, alignment, path)?;
    let operation = if probe.is_writable {
        let buffer = AlignedBuf::zeroed(TEST_BYTES);
        Operation::Write { token: 0, file: 0, offset: 0, bytes: buffer.len(), buffer }
    } else {
        Operation::Sync { token: 0, file: 0 }
    };
    let file: Arc<dyn DiskFile> = Arc::new(RealFile::new(probe.file, 1));
    driver.attach(0, file)?;
    driver.submit(operation);
    let mut done: Vec<Completion> = Vec::new();
    driver.poll(PollWait::AtMost(TIME_LIMIT), &mut done);
    match done.pop() {
        Some(Completion { result: Err(error), .. }) if !is_out_of_space(&error) => Err(error),
        Some(_) => Ok(()),
        None => Err(io::Error::new(io::ErrorKind::TimedOut, not_in_time())),
    }
}

/// Why a ring could not be set up, in words that name what to change. `disabled` is the value of the kernel's
/// `io_uring_disabled` setting, where it could be read.
fn explain_setup(error: &io::Error, disabled: Option<&str>) -> String {
    let switch = disabled.map(str::trim).filter(|value| *value != "0");
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::PERM) => match switch {
            Some(value) => format!("io_uring is switched off: kernel.io_uring_disabled is {value} ({error})"),
            None => format!("io_uring is barred, as a rule by a container's seccomp filter ({error})"),
        },
        Some(Errno::ACCESS) => format!("io_uring is barred by a security module ({error})"),
        Some(Errno::NOSYS) => format!("the kernel has no io_uring, or a seccomp filter hides it ({error})"),
        Some(Errno::NOMEM) => format!("a ring does not fit into the locked-memory limit, RLIMIT_MEMLOCK ({error})"),
        Some(Errno::MFILE | Errno::NFILE) => format!("no file descriptor is left for a ring ({error})"),
        _ => format!("io_uring could not be set up ({error})"),
    }
}

/// The device's physical block in bytes, and at least what direct I/O asks offsets to be multiples of; 4096 where there
/// is no device or it does not say.
pub(super) fn physical_block_bytes(file: BorrowedFd<'_>) -> u32 {
    let block = rustix::fs::fstat(file).ok().and_then(|stat| device_block_bytes(stat.st_dev)).unwrap_or(4096);
    let direct = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
        .ok()
        .filter(|stat| StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::DIOALIGN))
        .map_or(0, |stat| stat.stx_dio_offset_align);
    clamp_block(block.max(direct))
}

fn clamp_block(bytes: u32) -> u32 {
    bytes.clamp(512, 65536).next_power_of_two()
}

fn device_block_bytes(device: u64) -> Option<u32> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    // A partition has no queue of its own: its parent directory is the whole device's.
    ["queue", "../queue"].iter().find_map(|queue| {
        let text = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/{queue}/physical_block_size")).ok()?;
        text.trim().parse().ok()
    })
}

/// What a device is called: the kernel's name of a block device with its numbers; where files are on none, the type of the
/// file system.
pub(super) fn device_name(device: u64) -> String {
    let numbers = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let link = fs::read_link(format!("/sys/dev/block/{numbers}"));
    if let Some(name) = link.as_ref().ok().and_then(|link| link.file_name()) {
        return format!("{} ({numbers})", name.display());
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().find_map(|line| file_system(line, &numbers)).map_or(numbers, str::to_owned)
}

/// The type of the file system in a line of `mountinfo`, if it has these numbers.
fn file_system<'a>(line: &'a str, numbers: &str) -> Option<&'a str> {
    let (mount, source) = line.split_once(" - ")?;
    (mount.split(' ').nth(2)? == numbers).then(|| source.split(' ').next())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_ring_is_explained_by_what_to_change() {
        let explain = |errno: Errno, disabled| explain_setup(&errno.into(), disabled);
        assert!(explain(Errno::PERM, Some("2\n")).contains("kernel.io_uring_disabled is 2"));
        assert!(explain(Errno::PERM, Some("0\n")).contains("seccomp"));
        assert!(explain(Errno::PERM, None).contains("seccomp"));
        assert!(explain(Errno::NOSYS, None).contains("no io_uring"));
        assert!(explain(Errno::NOMEM, None).contains("RLIMIT_MEMLOCK"));
        assert!(explain(Errno::MFILE, None).contains("descriptor"));
        assert!(explain(Errno::INVAL, None).contains("Invalid argument"));
    }

    #[test]
    fn a_device_is_named_as_people_know_it() {
        let line = "31 24 0:27 / /dev/shm rw,nosuid shared:5 master:1 - tmpfs shm rw,inode64";
        assert_eq!(file_system(line, "0:27"), Some("tmpfs"));
        assert_eq!(file_system(line, "0:2"), None);
        assert_eq!(file_system("31 24 0:27 / /dev/shm rw", "0:27"), None);
        let process = rustix::fs::stat("/proc").map(|stat| device_name(stat.st_dev)).unwrap();
        assert_eq!(process, "proc");
        assert_eq!(device_name(u64::MAX), format!("{0}:{0}", u32::MAX), "one that nobody knows");
    }

    #[test]
    fn a_block_is_a_power_of_two_from_512_to_65536() {
        for (given, expected) in [(0, 512), (512, 512), (513, 1024), (4096, 4096), (1 << 20, 65536)] {
            assert_eq!(clamp_block(given), expected);
        }
    }
}
