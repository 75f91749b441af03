//! A real directory and its files, through the kernel's plain interface.
//!
//! Invariants: everything happens relative to the descriptor of the directory that was opened, so a directory put in
//! its place is noticed and never written to; no name is followed through a symbolic link, and nothing but a regular
//! file is opened; every descriptor is closed on exec; a read-only disk changes nothing, not even to probe. What the
//! files mean, and which of them belong together, is not known here.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, Dir, FallocateFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::probe;
use super::syscall::SyscallDriver;
use super::transfer;
use super::uring::UringDriver;
use super::{Access, Disk, DiskFile, Driver, IoMode};
use crate::config::IoChoice;
use crate::error::{Error, Result};

/// Data is on the medium when a write returns, timestamps need not be. (rustix's `OFlags::DSYNC` stands for `O_SYNC` on
/// Linux, which commits the inode with every write: on a journalled file system that is a second write for each.)
const O_DSYNC: OFlags = OFlags::from_bits_retain(libc::O_DSYNC as u32);

/// The permissions of a file that the log makes, less what the process's mask takes away.
const FILE_MODE: Mode = Mode::from_raw_mode(0o666);

/// A directory of the file system.
#[derive(Debug)]
pub struct RealDisk {
    path: PathBuf,
    directory: OwnedFd,
    identity: Identity,
    is_writable: bool,
    takes_direct: bool,
    physical_block_bytes: u32,
    /// See [`Disk::device`].
    device: String,
    choice: IoChoice,
    mode: Mutex<IoMode>,
}

/// Which directory it is, whatever its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

impl RealDisk {
    /// Opens an existing directory for reading and writing, and finds out which driver can write to it.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where the directory cannot be opened or written (a read-only file system, missing permission), or
    /// where io_uring was asked for and cannot be used: the error then says why.
    pub fn open(path: impl AsRef<Path>, choice: IoChoice) -> Result<RealDisk> {
        let (path, directory, identity) = open_directory(path.as_ref())?;
        let found = probe::examine(directory.as_fd(), &path, choice)?;
        announce(&path, &found.mode, choice);
        Ok(RealDisk {
            path,
            directory,
            identity,
            is_writable: true,
            takes_direct: found.takes_direct,
            physical_block_bytes: found.physical_block_bytes,
            device: probe::device_name(identity.device),
            choice,
            mode: Mutex::new(found.mode),
        })
    }

    /// Opens an existing directory for reading. Nothing is written, created, renamed or removed.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where the directory cannot be opened.
    pub fn open_read_only(path: impl AsRef<Path>) -> Result<RealDisk> {
        let (path, directory, identity) = open_directory(path.as_ref())?;
        let physical_block_bytes = probe::physical_block_bytes(directory.as_fd());
        Ok(RealDisk {
            path,
            directory,
            identity,
            is_writable: false,
            takes_direct: true,
            physical_block_bytes,
            device: probe::device_name(identity.device),
            choice: IoChoice::Syscall,
            mode: Mutex::new(IoMode::Syscall { reason: "the directory was opened read-only".to_owned() }),
        })
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.is_writable {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "the directory was opened read-only"))
    }

    fn mode(&self) -> MutexGuard<'_, IoMode> {
        self.mode.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flags_of(&self, access: Access) -> OFlags {
        let direct = if self.takes_direct { OFlags::DIRECT } else { OFlags::empty() };
        let create = OFlags::RDWR | OFlags::CREATE;
        match access {
            Access::Read => OFlags::RDONLY,
            Access::ReadWrite => OFlags::RDWR,
            Access::ReadDirect => OFlags::RDONLY | direct,
            Access::Segment { durable: true } => OFlags::RDWR | O_DSYNC | direct,
            Access::Segment { durable: false } => OFlags::RDWR | direct,
            Access::CreateSegment => create | OFlags::TRUNC | direct,
            Access::Create => create | OFlags::TRUNC,
            Access::Lock => create,
        }
    }
}

fn open_directory(path: &Path) -> Result<(PathBuf, OwnedFd, Identity)> {
    let describe = |error: Errno| Error::io("open the directory", path)(error.into());
    // Absolute, so that the directory is still found after the process changed its own.
    let absolute = std::path::absolute(path).map_err(Error::io("open the directory", path))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(&absolute, flags, Mode::empty()).map_err(describe)?;
    let stat = rustix::fs::fstat(&directory).map_err(describe)?;
    Ok((absolute, directory, Identity { device: stat.st_dev, inode: stat.st_ino }))
}

/// Says once which driver a directory got.
fn announce(path: &Path, mode: &IoMode, choice: IoChoice) {
    let path = path.display();
    match mode {
        IoMode::Syscall { reason } if choice == IoChoice::Auto => {
            tracing::warn!(%path, %reason, "writing with plain system calls instead of io_uring");
        }
        IoMode::Syscall { reason } => tracing::info!(%path, %reason, "writing with plain system calls"),
        IoMode::Uring | IoMode::Simulated => tracing::info!(%path, "writing through io_uring"),
    }
}

/// Opens a regular file of a directory; where `flags` ask for direct I/O and the file system refuses, without it. The
/// second value says whether the file is direct.
pub(super) fn open_with_fallback(directory: BorrowedFd<'_>, name: &str, flags: OFlags) -> io::Result<(File, bool)> {
    match open_regular(directory, name, flags) {
        Err(error) if flags.contains(OFlags::DIRECT) && error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
            Ok((open_regular(directory, name, flags - OFlags::DIRECT)?, false))
        }
        opened => Ok((opened?, flags.contains(OFlags::DIRECT))),
    }
}

fn open_regular(directory: BorrowedFd<'_>, name: &str, flags: OFlags) -> io::Result<File> {
    // Non-blocking, because opening a pipe would wait for its other end.
    let careful = OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = retry(|| rustix::fs::openat(directory, name, flags | careful, FILE_MODE))?;
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    // And blocking from here on: io_uring answers a write that would block with an error if the file says so.
    rustix::fs::fcntl_setfl(&file, rustix::fs::fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
    Ok(File::from(file))
}

/// Names in a directory; those of sub-directories end in `/`.
pub(super) fn list(directory: BorrowedFd<'_>) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let mut name = entry.file_name().to_string_lossy().into_owned();
        if name == "." || name == ".." {
            continue;
        }
        if is_directory(directory, &entry)? {
            name.push('/');
        }
        names.push(name);
    }
    Ok(names)
}

fn is_directory(directory: BorrowedFd<'_>, entry: &rustix::fs::DirEntry) -> io::Result<bool> {
    match entry.file_type() {
        // Some file systems do not keep the type with the name.
        FileType::Unknown => match rustix::fs::statat(directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        },
        known => Ok(known == FileType::Directory),
    }
}

/// Repeats a call that a signal interrupted before it did anything. Never for syncs: their first answer is final.
fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            outcome => return outcome.map_err(io::Error::from),
        }
    }
}

impl Disk for RealDisk {
    fn path(&self) -> &Path {
        &self.path
    }

    fn list(&self) -> io::Result<Vec<String>> {
        list(self.directory.as_fd())
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        if !matches!(access, Access::Read | Access::ReadDirect) {
            self.check_writable()?;
        }
        let (file, is_direct) = open_with_fallback(self.directory.as_fd(), name, self.flags_of(access))?;
        let alignment = if is_direct { self.physical_block_bytes as usize } else { 1 };
        Ok(Arc::new(RealFile::new(file, alignment)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.check_writable()?;
        Ok(rustix::fs::renameat(&self.directory, from, &self.directory, to)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.check_writable()?;
        Ok(rustix::fs::unlinkat(&self.directory, name, AtFlags::empty())?)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.check_writable()?;
        Ok(rustix::fs::fsync(&self.directory)?)
    }

    fn is_in_place(&self) -> bool {
        rustix::fs::stat(&self.path)
            .is_ok_and(|stat| Identity { device: stat.st_dev, inode: stat.st_ino } == self.identity)
    }

    fn physical_block_bytes(&self) -> u32 {
        self.physical_block_bytes
    }

    fn device(&self) -> String {
        self.device.clone()
    }

    fn driver(&self, depth: usize) -> io::Result<Box<dyn Driver>> {
        self.check_writable()?;
        let mut mode = self.mode();
        if *mode == IoMode::Uring {
            match UringDriver::new(depth, self.physical_block_bytes as usize, &self.path) {
                Ok(driver) => return Ok(Box::new(driver.with_lone_writes())),
                Err(error) if self.choice == IoChoice::Uring => return Err(error),
                Err(error) => {
                    *mode = IoMode::Syscall { reason: format!("io_uring worked at first and then not ({error})") };
                    announce(&self.path, &mode, self.choice);
                }
            }
        }
        Ok(Box::new(SyscallDriver::new()))
    }

    fn io_mode(&self) -> IoMode {
        self.mode().clone()
    }
}

/// An open regular file.
#[derive(Debug)]
pub(super) struct RealFile {
    file: File,
    /// What offsets are multiples of: the physical block of a direct file, else 1.
    alignment: usize,
}

impl RealFile {
    /// Takes a file over. After a short transfer it goes on at a multiple of `alignment`.
    pub(super) fn new(file: File, alignment: usize) -> RealFile {
        RealFile { file, alignment }
    }
}

impl DiskFile for RealFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            let count = match self.file.read_at(&mut buf[filled..], offset + filled as u64) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
                Ok(0) => break,
                Ok(count) => count,
            };
            let reached = filled + count;
            let next = reached - reached % self.alignment;
            if reached == buf.len() || next < reached && offset + reached as u64 >= self.size()? {
                return Ok(reached);
            }
            // A direct read cut short inside a block before the end of the file: the block is read again.
            if next == filled {
                return Err(io::Error::other("the device answers a read with less than a block"));
            }
            filled = next;
        }
        Ok(filled)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        transfer::write_all(buf, self.alignment, |rest, distance| self.file.write_at(rest, offset + distance))
    }

    fn sync(&self) -> io::Result<()> {
        // Covers the size too: only times and permissions are left out. A failure is returned as it is: a second call
        // would find nothing left to fail on.
        Ok(rustix::fs::fdatasync(&self.file)?)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        if bytes > 0 {
            match retry(|| rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, bytes)) {
                Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => {}
                outcome => outcome?,
            }
        }
        // Where room cannot be reserved, and where the file was longer.
        if self.size()? != bytes {
            retry(|| rustix::fs::ftruncate(&self.file, bytes))?;
        }
        Ok(())
    }

    fn try_lock(&self) -> io::Result<bool> {
        match retry(|| rustix::fs::flock(&self.file, FlockOperation::NonBlockingLockExclusive)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            outcome => outcome.map(|()| true),
        }
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}
