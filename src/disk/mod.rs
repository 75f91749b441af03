//! The disk as the log sees it: one directory of files, and a driver that carries writes by submit and poll.
//!
//! Three disks implement these traits and pass one test suite: the real directory with the tokio-uring driver, the
//! real directory with plain system calls, and the simulated disk. Nothing here knows what a frame is.
//!
//! # What a disk promises
//!
//! - A write through a file opened with [`Access::Segment`] and `durable: true` survives power loss once it is
//!   reported complete, and so does the file metadata needed to read it back.
//! - [`DiskFile::sync`] covers every write that was reported complete before it was called, and nothing else.
//! - A name is durable only after [`Disk::sync_dir`].
//! - An interrupted write leaves any subset of its 512-byte units: no order, no prefix.
//! - A completion is reported exactly once and hands the buffer back; until then the operation owns buffer and file.
//! - Writes in flight complete in any order.

mod alarm;
pub mod buffer;
mod probe;
mod real;
#[cfg(test)]
pub(crate) mod suite;
mod syscall;
pub(crate) mod transfer;
mod uring;

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

#[cfg(all(test, ringwal_shuttle))]
pub(crate) use alarm::Bell;
pub use buffer::AlignedBuf;
pub use probe::PROBE_NAME;
pub use real::RealDisk;

/// What a file is opened for; it fixes the flags of the descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read through the page cache. Must exist.
    Read,
    /// Read around the page cache where the file system allows it: offset, length and address are block multiples.
    /// Must exist.
    ReadDirect,
    /// Read and write a segment around the page cache: block multiples only. With `durable`, each write is on the
    /// medium when it completes. Must exist.
    Segment {
        /// Open with `O_DSYNC`.
        durable: bool,
    },
    /// Read and write through the page cache. Must exist.
    ReadWrite,
    /// Make a new segment file to be filled: as `Segment { durable: false }`, but created, or emptied if it exists.
    CreateSegment,
    /// Make a small file through the page cache: created, or emptied if it exists.
    Create,
    /// Read and write the lock file through the page cache; created if missing, never emptied.
    Lock,
}

/// Who carries the writes, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IoMode {
    /// io_uring, through tokio-uring.
    Uring,
    /// Plain system calls, with the reason io_uring is not used.
    Syscall {
        /// Why not io_uring: the setting, or what refused.
        reason: String,
    },
    /// A simulated disk.
    Simulated,
}

impl fmt::Display for IoMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IoMode::Uring => f.write_str("io_uring"),
            IoMode::Syscall { reason } => write!(f, "system calls ({reason})"),
            IoMode::Simulated => f.write_str("simulated"),
        }
    }
}

/// A directory on a disk.
pub trait Disk: Send + Sync + 'static {
    /// The directory's path, for messages.
    fn path(&self) -> &Path;

    /// Names of all files in the directory, in no order. Sub-directories are listed with a trailing `/`.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Opens a file of the directory.
    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn DiskFile>>;

    /// Renames a file over whatever has the new name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a name; open files live on.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes all names of the directory durable as they are.
    fn sync_dir(&self) -> io::Result<()>;

    /// Whether the directory still stands at its path.
    fn is_in_place(&self) -> bool;

    /// The device's physical block in bytes: no smaller write is sure to leave its neighbours alone.
    fn physical_block_bytes(&self) -> u32;

    /// The device that the directory is on, for messages: of a block device its name and numbers, as in `nvme0n1p2 (259:2)`;
    /// else the file system's type.
    fn device(&self) -> String {
        "unknown".to_owned()
    }

    /// Makes the driver for a writer thread. Called on that thread; the driver never leaves it.
    fn driver(&self, depth: usize) -> io::Result<Box<dyn Driver>>;

    /// Makes a driver that is handed from thread to thread: it carries an operation out inside `poll`, on the thread that
    /// polls, and never waits for its alarm.
    fn driver_in_place(&self) -> Box<dyn Driver + Send> {
        Box::new(syscall::SyscallDriver::new())
    }

    /// What [`Disk::driver`] will make.
    fn io_mode(&self) -> IoMode;

    /// The full path of a file, for messages.
    fn path_of(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}

/// An open file.
pub trait DiskFile: Send + Sync {
    /// Current size in bytes.
    fn size(&self) -> io::Result<u64>;

    /// Fills `buf` from `offset`, stopping early only at the end of the file; returns the bytes read. Direct files
    /// need `buf` (from an [`AlignedBuf`]), its length and `offset` to be block multiples.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `buf` at `offset`. Direct files need block multiples as for reading.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Makes every completed write of the file, and its size, durable.
    fn sync(&self) -> io::Result<()>;

    /// Reserves room for `bytes` from the start of the file and sets its size to it.
    fn allocate(&self, bytes: u64) -> io::Result<()>;

    /// Takes the exclusive lock of this open file without waiting; `false` if another open file holds it. The lock
    /// goes when the last descriptor of this open file is closed and no write is queued on it.
    fn try_lock(&self) -> io::Result<bool>;

    /// The descriptor, for disks that have one.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;
}

/// Names an attached file within a driver: the log uses segment sequence numbers.
pub type FileId = u64;

/// An operation for a driver. It owns its buffer until its completion hands it back.
#[derive(Debug)]
pub enum Operation {
    /// Write the first `bytes` bytes of the buffer at `offset`.
    Write {
        /// Given back in the completion.
        token: u64,
        /// Where to write.
        file: FileId,
        /// Byte offset in the file: a block multiple.
        offset: u64,
        /// What to write.
        buffer: AlignedBuf,
        /// How much of it: a block multiple.
        bytes: usize,
    },
    /// Make all completed writes of the file durable.
    Sync {
        /// Given back in the completion.
        token: u64,
        /// What to sync.
        file: FileId,
    },
}

/// The end of an operation.
#[derive(Debug)]
pub struct Completion {
    /// The operation's token.
    pub token: u64,
    /// Whether all of it was done. A short write is finished by the driver or reported as an error, never as success.
    pub result: io::Result<()>,
    /// The buffer of a write.
    pub buffer: Option<AlignedBuf>,
}

/// How long [`Driver::poll`] may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollWait {
    /// Not at all: hand everything to the kernel, take what is complete, return.
    No,
    /// Until something completes, the alarm rings, or the time is over.
    AtMost(Duration),
}

/// Wakes a driver that waits in [`Driver::poll`], from any thread.
pub trait Alarm: Send + Sync {
    /// Ends the current wait, or the next one if there is none.
    fn ring(&self);
}

/// Carries operations to the device. Lives on one thread.
///
/// Dropping a driver first waits for everything in flight: no buffer is freed under the kernel's hands.
pub trait Driver {
    /// Makes a file known under an id. Writes to it go through the very open file description given here.
    fn attach(&mut self, id: FileId, file: Arc<dyn DiskFile>) -> io::Result<()>;

    /// Forgets a file. No operation on it may be in flight.
    fn detach(&mut self, id: FileId);

    /// Takes an operation. It is sure to reach the kernel only by the next [`Driver::poll`].
    fn submit(&mut self, operation: Operation);

    /// Collects completions into `done`, waiting as told if there are none.
    fn poll(&mut self, wait: PollWait, done: &mut Vec<Completion>);

    /// Operations submitted and not yet collected.
    fn in_flight(&self) -> usize;

    /// Wakes this driver.
    fn alarm(&self) -> Arc<dyn Alarm>;
}
