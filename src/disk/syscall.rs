//! The plain driver: carries operations out with system calls, on the writer's own thread, inside `poll`.
//!
//! Used where io_uring is barred or brings nothing. A poll blocks until everything submitted so far is done, in the
//! order it was submitted; while it blocks, arrivals gather into the next frame just as they do behind a ring. It knows
//! nothing of descriptors: the file does its own writing, short writes included.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use super::alarm::Bell;
use super::{Alarm, AlignedBuf, Completion, DiskFile, Driver, FileId, Operation, PollWait};

/// A driver that does each operation itself.
pub(super) struct SyscallDriver {
    files: HashMap<FileId, Arc<dyn DiskFile>>,
    queued: Vec<Operation>,
    bell: Arc<Bell>,
}

impl SyscallDriver {
    /// A driver for this thread.
    pub(super) fn new() -> SyscallDriver {
        SyscallDriver { files: HashMap::new(), queued: Vec::new(), bell: Bell::of_this_thread() }
    }

    fn perform(&self, operation: Operation) -> Completion {
        match operation {
            Operation::Write { token, file, offset, buffer, bytes } => {
                Completion { token, result: self.write(file, offset, &buffer, bytes), buffer: Some(buffer) }
            }
            Operation::Sync { token, file } => {
                let result = self.file(file).and_then(|file| file.sync());
                Completion { token, result, buffer: None }
            }
        }
    }

    fn write(&self, file: FileId, offset: u64, buffer: &AlignedBuf, bytes: usize) -> io::Result<()> {
        let buf = buffer.get(..bytes).ok_or_else(|| past_the_buffer(bytes, buffer.len()))?;
        self.file(file)?.write_at(buf, offset)
    }

    fn file(&self, id: FileId) -> io::Result<&Arc<dyn DiskFile>> {
        self.files.get(&id).ok_or_else(|| not_attached(id))
    }
}

/// The answer to an operation on a file that the driver was never given.
pub(super) fn not_attached(id: FileId) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("file {id} is not attached to this driver"))
}

/// The answer to a write of more bytes than its buffer has.
pub(super) fn past_the_buffer(bytes: usize, capacity: usize) -> io::Error {
    let message = format!("a write of {bytes} bytes from a buffer of {capacity}");
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

impl Driver for SyscallDriver {
    fn attach(&mut self, id: FileId, file: Arc<dyn DiskFile>) -> io::Result<()> {
        self.files.insert(id, file);
        Ok(())
    }

    fn detach(&mut self, id: FileId) {
        self.files.remove(&id);
    }

    fn submit(&mut self, operation: Operation) {
        self.queued.push(operation);
    }

    fn poll(&mut self, wait: PollWait, done: &mut Vec<Completion>) {
        let queued = std::mem::take(&mut self.queued);
        match wait {
            PollWait::AtMost(limit) if queued.is_empty() => self.bell.park(limit),
            PollWait::AtMost(_) => {
                done.extend(queued.into_iter().map(|operation| self.perform(operation)));
                self.bell.silence();
            }
            PollWait::No => done.extend(queued.into_iter().map(|operation| self.perform(operation))),
        }
    }

    fn in_flight(&self) -> usize {
        self.queued.len()
    }

    fn alarm(&self) -> Arc<dyn Alarm> {
        Arc::clone(&self.bell) as Arc<dyn Alarm>
    }
}

impl Drop for SyscallDriver {
    fn drop(&mut self) {
        for operation in std::mem::take(&mut self.queued) {
            // Nobody is left to hear the result: an operation that was not collected was never acknowledged.
            let _ = self.perform(operation);
        }
    }
}
