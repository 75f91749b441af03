//! The io_uring driver: writes and syncs in flight at the device while the writer thread encodes the next frame.
//!
//! It runs tokio-uring's runtime on the writer's thread, and only inside `poll`. Each operation is a task of its own
//! that owns its buffer and its file, finishes short writes, and is never cancelled; what it leaves behind is a
//! [`Completion`] in a list that `poll` empties.
//!
//! A small write that is alone does not go through the ring. The kernel carries out an asynchronous `O_DSYNC` write in two
//! halves, the data and then the flush, and hands over between them to a worker thread of its own and from there back to
//! this one; a plain `pwrite` does both in the thread that waits for it anyway. There is nothing to overlap it with, or
//! the caller of `poll` would have submitted it. What is gained is in the benches: a fifth of such a write on a fast disk.
//!
//! Three facts of that runtime shape the code:
//!
//! - Submissions reach the kernel only when the thread parks for want of anything to do: not while a wake-up is
//!   pending, be it an alarm that just rang. So a turn of the runtime ends only after a park that followed its last
//!   submission; the runtime counts them. Where no wait is allowed, an operation that does nothing and completes at
//!   once ends that park.
//! - Errors of that flush are discarded. So a wait with operations in flight turns the runtime again every
//!   [`HEARTBEAT`], which flushes again.
//! - Dropping the runtime frees the buffers of unfinished operations before the kernel is done with them. So a drop
//!   first drains, and where the device hangs (or the runtime panicked) it leaks the runtime with all buffers.
//!
//! Invariant: `outstanding` holds the token of every operation submitted and not yet collected, whatever happens to
//! its task, so each is completed exactly once. The driver knows nothing of names, blocks in frames, or the log.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::runtime::{self, RuntimeMetrics};
use tokio::time::Sleep;
use tokio_uring::Runtime;
use tokio_uring::buf::BoundedBuf;

use super::alarm::Bell;
use super::syscall::{not_attached, past_the_buffer};
use super::transfer::Transfer;
use super::{Alarm, AlignedBuf, Completion, DiskFile, Driver, FileId, Operation, PollWait};
use crate::error::is_out_of_descriptors;

/// How often a wait with operations in flight looks again, so that a flush that failed is tried once more.
const HEARTBEAT: Duration = Duration::from_millis(100);
/// How long a drop waits for a device that does not answer.
const DRAIN: Duration = Duration::from_secs(30);

/// The largest write that goes around the ring when it is alone, in bytes: no later write waits long for it to end.
const LONE_BYTES_MAX: usize = 128 << 10;

/// How many entries a ring needs: the runtime panics on a full queue that it cannot flush.
pub(super) fn ring_entries(depth: usize) -> u32 {
    u32::try_from(depth.saturating_mul(4)).unwrap_or(u32::MAX).clamp(16, 4096)
}

/// What the tasks in the runtime and the driver tell each other.
#[derive(Default)]
struct Shared {
    done: RefCell<Vec<Completion>>,
    /// Wakes the future that the runtime runs, to take note of what happened.
    waker: RefCell<Option<Waker>>,
    /// Tasks that were spawned and have not yet given their operation to the ring.
    unsent: Cell<usize>,
    /// Tasks that were spawned and have not ended.
    running: Cell<usize>,
    /// Whether the ring was given an operation since the thread last parked.
    is_unflushed: Cell<bool>,
    /// The last nudge that came back.
    nudge_back: Cell<u64>,
}

impl Shared {
    fn finish(&self, completion: Completion) {
        self.done.borrow_mut().push(completion);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Whether the kernel has every operation that was started.
    fn is_handed_over(&self) -> bool {
        self.unsent.get() == 0 && !self.is_unflushed.get()
    }
}

/// A runtime with what is needed to wait in it.
struct Ring {
    /// Stays registered from one wait to the next, since moving a timer is cheap and adding one costs a wake-up.
    heartbeat: Pin<Box<Sleep>>,
    metrics: RuntimeMetrics,
    nudges: u64,
    runtime: Runtime,
}

impl Ring {
    fn new(entries: u32) -> io::Result<Ring> {
        // The runtime panics where the system is out of descriptors.
        let made = panic::catch_unwind(|| {
            let runtime = Runtime::new(tokio_uring::builder().entries(entries))?;
            let (heartbeat, metrics) = runtime
                .block_on(async { (Box::pin(tokio::time::sleep(HEARTBEAT)), runtime::Handle::current().metrics()) });
            Ok(Ring { heartbeat, metrics, nudges: 0, runtime })
        });
        made.unwrap_or_else(|_| Err(io::Error::other("the io_uring runtime panicked while it was set up")))
    }

    /// Runs the runtime: starts `operations`, hands them to the kernel, and goes on until there is a completion, the
    /// bell rang or the time has come; without a bell, only until all that is complete was taken note of.
    fn turn(&mut self, operations: Vec<Start>, shared: &Rc<Shared>, bell: Option<&Bell>, until: Instant) {
        self.nudges += 1;
        self.heartbeat.as_mut().reset(until.into());
        let mut turn = Turn {
            heartbeat: self.heartbeat.as_mut(),
            metrics: &self.metrics,
            parks: self.metrics.worker_park_count(0),
            bell,
            shared,
            nudge: self.nudges,
            is_nudged: false,
            is_over: false,
        };
        self.runtime.block_on(async move {
            operations.into_iter().for_each(|start| start.spawn(shared));
            std::future::poll_fn(|context| turn.poll(context)).await;
        });
    }
}

/// One run of the runtime.
struct Turn<'a> {
    heartbeat: Pin<&'a mut Sleep>,
    metrics: &'a RuntimeMetrics,
    /// How often the thread had parked when this was last polled.
    parks: u64,
    bell: Option<&'a Bell>,
    shared: &'a Rc<Shared>,
    nudge: u64,
    is_nudged: bool,
    is_over: bool,
}

impl Turn<'_> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.shared.waker.replace(Some(context.waker().clone()));
        self.note_parks();
        let is_time = self.heartbeat.as_mut().poll(context).is_ready();
        if is_time && self.is_nudged {
            // The kernel takes nothing just now. The next turn goes on with it.
            return Poll::Ready(());
        }
        self.is_over |= match self.bell {
            None => self.shared.nudge_back.get() == self.nudge,
            Some(bell) => is_time || bell.listen(context.waker()) || !self.shared.done.borrow().is_empty(),
        };
        if self.is_over && self.shared.is_handed_over() {
            return Poll::Ready(());
        }
        if !self.is_nudged && (self.is_over || self.bell.is_none()) {
            self.send_nudge(context);
        }
        Poll::Pending
    }

    /// Tasks give operations to the ring only after this future was polled and before the thread parks.
    fn note_parks(&mut self) {
        let parks = self.metrics.worker_park_count(0);
        if std::mem::replace(&mut self.parks, parks) != parks {
            self.shared.is_unflushed.set(false);
        }
    }

    /// Sees to it that the thread parks, and for a moment only.
    fn send_nudge(&mut self, context: &mut Context<'_>) {
        let (shared, nudge) = (Rc::clone(self.shared), self.nudge);
        drop(tokio_uring::spawn(async move {
            // Only that it came back counts.
            let _ = tokio_uring::no_op().await;
            shared.nudge_back.set(nudge);
            shared.wake();
        }));
        self.is_nudged = true;
        self.heartbeat.as_mut().reset((Instant::now() + HEARTBEAT).into());
        let _ = self.heartbeat.as_mut().poll(context);
    }
}

/// An operation whose file was found and whose buffer is large enough.
enum Start {
    Write { token: u64, file: Rc<Attached>, offset: u64, buffer: AlignedBuf, transfer: Transfer },
    Sync { token: u64, file: Rc<Attached> },
}

impl Start {
    fn spawn(self, shared: &Rc<Shared>) {
        match self {
            Start::Write { token, file, offset, buffer, transfer } => {
                let report = Report::new(token, shared);
                drop(tokio_uring::spawn(write(report, file, offset, buffer, transfer)));
            }
            Start::Sync { token, file } => drop(tokio_uring::spawn(sync(Report::new(token, shared), file))),
        }
    }
}

/// Writes a buffer in as many attempts as it takes.
async fn write(mut report: Report, file: Rc<Attached>, offset: u64, mut buffer: AlignedBuf, mut transfer: Transfer) {
    let Some(in_ring) = &file.in_ring else {
        let result = file.plain.write_at(&buffer[transfer.rest().unwrap_or_default()], offset);
        return report.end(result, Some(buffer));
    };
    let mut result = Ok(());
    while let (Some(rest), Ok(())) = (transfer.rest(), &result) {
        let at = offset + rest.start as u64;
        let in_flight = in_ring.write_at(buffer.slice(rest), at).submit();
        report.sent();
        let (outcome, slice) = in_flight.await;
        buffer = slice.into_inner();
        result = transfer.advance(outcome);
    }
    report.end(result, Some(buffer));
}

/// Syncs a file. Its failure is final: it is not tried again, since a second sync would have nothing left to fail on.
async fn sync(mut report: Report, file: Rc<Attached>) {
    let Some(in_ring) = &file.in_ring else {
        return report.end(file.plain.sync(), None);
    };
    // The runtime polls this task again only after the kernel has the operation.
    report.sent();
    let result = in_ring.sync_data().await;
    report.end(result, None);
}

/// Sees to it that a task reports its end exactly once, even where it panics.
struct Report {
    token: u64,
    shared: Rc<Shared>,
    is_sent: bool,
    is_over: bool,
}

impl Report {
    fn new(token: u64, shared: &Rc<Shared>) -> Report {
        shared.unsent.set(shared.unsent.get() + 1);
        shared.running.set(shared.running.get() + 1);
        Report { token, shared: Rc::clone(shared), is_sent: false, is_over: false }
    }

    /// The operation, or the next part of it, is in the ring's queue.
    fn sent(&mut self) {
        self.shared.is_unflushed.set(true);
        self.leave_unsent();
    }

    fn leave_unsent(&mut self) {
        if !std::mem::replace(&mut self.is_sent, true) {
            self.shared.unsent.set(self.shared.unsent.get() - 1);
        }
    }

    fn end(&mut self, result: io::Result<()>, buffer: Option<AlignedBuf>) {
        if !std::mem::replace(&mut self.is_over, true) {
            self.leave_unsent();
            self.shared.running.set(self.shared.running.get() - 1);
            self.shared.finish(Completion { token: self.token, result, buffer });
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.end(Err(broken()), None);
    }
}

fn broken() -> io::Error {
    io::Error::other("the io_uring runtime panicked: whether the operation was carried out is unknown")
}

/// A file as the driver knows it: both name the same open file.
struct Attached {
    /// `None` where no descriptor was left for it: then everything goes around the ring.
    in_ring: Option<tokio_uring::fs::File>,
    plain: Arc<dyn DiskFile>,
}

/// A driver that carries operations through io_uring.
pub(super) struct UringDriver {
    /// `None` once it had to be abandoned.
    ring: Option<Ring>,
    files: HashMap<FileId, Rc<Attached>>,
    queued: Vec<Start>,
    outstanding: Vec<u64>,
    shared: Rc<Shared>,
    bell: Arc<Bell>,
    alignment: usize,
    /// Smaller writes go around the ring when they are alone.
    lone_bytes_max: usize,
    path: PathBuf,
}

impl UringDriver {
    /// A driver for this thread with room for `depth` operations at once; after a short write it goes on at a multiple
    /// of `alignment`. The path is for messages.
    pub(super) fn new(depth: usize, alignment: usize, path: &Path) -> io::Result<UringDriver> {
        Ok(UringDriver {
            ring: Some(Ring::new(ring_entries(depth))?),
            files: HashMap::new(),
            queued: Vec::with_capacity(depth),
            outstanding: Vec::with_capacity(depth),
            shared: Rc::default(),
            bell: Bell::of_this_thread(),
            alignment,
            lone_bytes_max: 0,
            path: path.to_path_buf(),
        })
    }

    /// Writes small operations that are alone with a plain system call: see the module. Without this, everything goes
    /// through the ring, as it must where the ring itself is to be tried.
    pub(super) fn with_lone_writes(mut self) -> UringDriver {
        self.lone_bytes_max = LONE_BYTES_MAX;
        self
    }

    /// Finds what an operation needs, or says why it cannot be started.
    fn prepare(&self, operation: Operation) -> Result<Start, Completion> {
        let refuse = |token, error, buffer| Completion { token, result: Err(error), buffer };
        match operation {
            Operation::Write { token, buffer, bytes, .. } if bytes > buffer.len() => {
                Err(refuse(token, past_the_buffer(bytes, buffer.len()), Some(buffer)))
            }
            Operation::Write { token, file, offset, buffer, bytes } => match self.file(file) {
                Ok(file) => {
                    Ok(Start::Write { token, file, offset, buffer, transfer: Transfer::new(bytes, self.alignment) })
                }
                Err(error) => Err(refuse(token, error, Some(buffer))),
            },
            Operation::Sync { token, file } => match self.file(file) {
                Ok(file) => Ok(Start::Sync { token, file }),
                Err(error) => Err(refuse(token, error, None)),
            },
        }
    }

    fn file(&self, id: FileId) -> io::Result<Rc<Attached>> {
        match (&self.ring, self.files.get(&id)) {
            (None, _) => Err(broken()),
            (_, None) => Err(not_attached(id)),
            (_, Some(file)) => Ok(Rc::clone(file)),
        }
    }

    /// Turns the runtime once. A panic inside it abandons it: its state can no longer be trusted.
    fn turn(&mut self, until: Instant, wait: bool) {
        let Some(ring) = self.ring.as_mut() else { return };
        let (operations, shared) = (std::mem::take(&mut self.queued), &self.shared);
        let bell = wait.then_some(&*self.bell);
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| ring.turn(operations, shared, bell, until)));
        if outcome.is_err() {
            tracing::error!(path = %self.path.display(), "the io_uring runtime panicked: its buffers are leaked");
            self.abandon();
        }
    }

    /// Leaks the runtime with everything the kernel may still touch, and fails what was not completed.
    fn abandon(&mut self) {
        std::mem::forget(self.ring.take());
        std::mem::take(&mut self.files).into_values().for_each(std::mem::forget);
        let mut done = self.shared.done.borrow_mut();
        let lost: Vec<u64> =
            self.outstanding.iter().copied().filter(|token| !done.iter().any(|one| one.token == *token)).collect();
        done.extend(lost.into_iter().map(|token| Completion { token, result: Err(broken()), buffer: None }));
    }

    /// Takes back a small write that is all there is to do.
    fn take_lone_write(&mut self) -> Option<Start> {
        let is_alone = self.outstanding.len() == 1 && self.shared.done.borrow().is_empty();
        let is_small = |transfer: &Transfer| transfer.rest().is_some_and(|rest| rest.len() <= self.lone_bytes_max);
        let is_lone = matches!(self.queued.as_slice(), [Start::Write { transfer, .. }] if is_small(transfer));
        if is_alone && is_lone { self.queued.pop() } else { None }
    }

    /// Writes with a plain system call. The bell may ring meanwhile; that counts as taken note of, since this returns.
    fn write_at_once(&mut self, write: Start) {
        let Start::Write { token, file, offset, buffer, transfer } = write else { return };
        let result = file.plain.write_at(&buffer[transfer.rest().unwrap_or_default()], offset);
        self.bell.silence();
        self.shared.done.borrow_mut().push(Completion { token, result, buffer: Some(buffer) });
    }

    /// Waits until there is a completion, the bell rang, or the time is over.
    fn wait(&mut self, limit: Duration) {
        let deadline = Instant::now().checked_add(limit);
        loop {
            let beat = Instant::now() + HEARTBEAT;
            self.turn(deadline.map_or(beat, |deadline| deadline.min(beat)), true);
            let rung = self.bell.silence();
            if rung || !self.shared.done.borrow().is_empty() {
                return;
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return;
            }
        }
    }

    fn collect(&mut self, done: &mut Vec<Completion>) {
        let completions = self.shared.done.take();
        for completion in &completions {
            if let Some(at) = self.outstanding.iter().position(|token| *token == completion.token) {
                self.outstanding.swap_remove(at);
            }
        }
        done.extend(completions);
    }

    /// Whether the kernel may still touch a buffer, or will be given one at the next turn.
    fn has_work(&self) -> bool {
        self.ring.is_some() && (self.shared.running.get() > 0 || !self.queued.is_empty())
    }
}

impl Driver for UringDriver {
    fn attach(&mut self, id: FileId, file: Arc<dyn DiskFile>) -> io::Result<()> {
        let Some(descriptor) = file.descriptor() else {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "io_uring writes need a file with a descriptor"));
        };
        // A duplicate names the same open file: the lock on it stays until the last write is over.
        let in_ring = match descriptor.try_clone_to_owned() {
            Ok(duplicate) => Some(tokio_uring::fs::File::from_std(File::from(duplicate))),
            Err(error) if error.raw_os_error().is_some_and(is_out_of_descriptors) => {
                tracing::warn!(path = %self.path.display(), %error, "a segment is written with plain system calls");
                None
            }
            Err(error) => return Err(error),
        };
        self.files.insert(id, Rc::new(Attached { in_ring, plain: file }));
        Ok(())
    }

    fn detach(&mut self, id: FileId) {
        self.files.remove(&id);
    }

    fn submit(&mut self, operation: Operation) {
        let (Operation::Write { token, .. } | Operation::Sync { token, .. }) = operation;
        self.outstanding.push(token);
        match self.prepare(operation) {
            Ok(start) => self.queued.push(start),
            Err(refused) => self.shared.done.borrow_mut().push(refused),
        }
    }

    fn poll(&mut self, wait: PollWait, done: &mut Vec<Completion>) {
        match wait {
            PollWait::AtMost(limit) if self.outstanding.is_empty() => self.bell.park(limit),
            PollWait::AtMost(limit) => match self.take_lone_write() {
                Some(lone) => self.write_at_once(lone),
                None => self.wait(limit),
            },
            PollWait::No if self.has_work() => self.turn(Instant::now() + HEARTBEAT, false),
            PollWait::No => {}
        }
        self.collect(done);
    }

    fn in_flight(&self) -> usize {
        self.outstanding.len()
    }

    fn alarm(&self) -> Arc<dyn Alarm> {
        Arc::clone(&self.bell) as Arc<dyn Alarm>
    }
}

impl Drop for UringDriver {
    fn drop(&mut self) {
        let start = Instant::now();
        while self.has_work() && start.elapsed() < DRAIN {
            self.wait(HEARTBEAT);
            self.collect(&mut Vec::new());
        }
        if self.has_work() {
            tracing::error!(
                path = %self.path.display(),
                in_flight = self.outstanding.len(),
                "no answer from the device for {DRAIN:?}: the writes in flight are left to it, their buffers leaked"
            );
            self.abandon();
        }
        // With nothing in flight this is quiet; a panic in a drop would end the process.
        let ring = self.ring.take();
        let _ = panic::catch_unwind(AssertUnwindSafe(|| drop(ring)));
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Read, Write, pipe};
    use std::os::fd::{AsFd, BorrowedFd};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// A file that is nothing but a descriptor: the end of a pipe takes writes in parts, or not at all for a while.
    struct Descriptor(File);

    impl DiskFile for Descriptor {
        fn size(&self) -> io::Result<u64> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn sync(&self) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn allocate(&self, _: u64) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn try_lock(&self) -> io::Result<bool> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn descriptor(&self) -> Option<BorrowedFd<'_>> {
            Some(self.0.as_fd())
        }
    }

    fn driver_of(file: File) -> Option<UringDriver> {
        // Where the kernel bars io_uring there is nothing to test.
        tokio_uring::uring_builder().build(8).ok()?;
        let mut driver = UringDriver::new(64, 512, Path::new("a test")).unwrap();
        driver.attach(1, Arc::new(Descriptor(file))).unwrap();
        Some(driver)
    }

    /// A driver for a pipe that already holds `filled` bytes.
    fn driver_of_pipe(filled: usize) -> Option<(UringDriver, PipeReader)> {
        let (reader, mut writer) = pipe().unwrap();
        writer.write_all(&vec![0; filled]).unwrap();
        driver_of(File::from(std::os::fd::OwnedFd::from(writer))).map(|driver| (driver, reader))
    }

    fn write(token: u64, bytes: usize) -> Operation {
        let mut buffer = AlignedBuf::zeroed(bytes);
        buffer.iter_mut().enumerate().for_each(|(n, byte)| *byte = (n % 251) as u8);
        Operation::Write { token, file: 1, offset: 0, buffer, bytes }
    }

    fn read(reader: &mut PipeReader, bytes: usize) -> Vec<u8> {
        let mut buffer = vec![0; bytes];
        reader.read_exact(&mut buffer).unwrap();
        buffer
    }

    /// As much as a pipe holds unless told otherwise.
    const PIPE_BYTES: usize = 65536;

    #[test]
    fn a_short_write_is_finished_before_it_is_reported() {
        let Some((mut driver, mut reader)) = driver_of_pipe(PIPE_BYTES - 4096) else { return };
        driver.submit(write(1, 32768));
        let mut done = Vec::new();
        driver.poll(PollWait::AtMost(Duration::from_millis(20)), &mut done);
        assert!(done.is_empty(), "one page of eight fits");
        let there = thread::spawn(move || (read(&mut reader, PIPE_BYTES - 4096), read(&mut reader, 32768)));
        driver.poll(PollWait::AtMost(LONG), &mut done);
        assert!(done[0].result.is_ok() && done[0].buffer.is_some());
        let (_, written) = there.join().unwrap();
        assert!(written.iter().enumerate().all(|(n, byte)| *byte == (n % 251) as u8));
    }

    #[test]
    fn an_alarm_and_the_time_end_a_wait_while_a_write_hangs() {
        let Some((mut driver, mut reader)) = driver_of_pipe(PIPE_BYTES) else { return };
        let (alarm, mut done) = (driver.alarm(), Vec::new());
        driver.submit(write(1, 4096));
        for limit in [Duration::ZERO, Duration::from_millis(150)] {
            let start = Instant::now();
            driver.poll(PollWait::AtMost(limit), &mut done);
            assert!(start.elapsed() >= limit && start.elapsed() < LONG / 2);
        }
        let start = Instant::now();
        let ringer = thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            alarm.ring();
        });
        driver.poll(PollWait::AtMost(LONG), &mut done);
        assert!(start.elapsed() < LONG / 2 && done.is_empty() && driver.in_flight() == 1);
        ringer.join().unwrap();
        read(&mut reader, PIPE_BYTES);
        driver.poll(PollWait::AtMost(LONG), &mut done);
        assert!(done.len() == 1 && driver.in_flight() == 0);
    }

    #[test]
    fn every_poll_hands_over_even_one_that_an_alarm_ends_at_once() {
        for wait in [PollWait::No, PollWait::AtMost(Duration::ZERO), PollWait::AtMost(LONG)] {
            let Some((mut driver, mut reader)) = driver_of_pipe(0) else { return };
            for token in 0..50 {
                driver.submit(write(token, 4096));
                driver.alarm().ring();
                driver.poll(wait, &mut Vec::new());
                // Waits for ever if the kernel was not given the write: nobody polls meanwhile.
                read(&mut reader, 4096);
            }
        }
    }

    #[test]
    fn an_alarm_that_rings_at_any_moment_of_a_wait_does_not_hold_a_write_back() {
        let Some((mut driver, mut reader)) = driver_of_pipe(0) else { return };
        let (alarm, is_over) = (driver.alarm(), Arc::new(AtomicBool::new(false)));
        let seen = Arc::clone(&is_over);
        let ringer = thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                alarm.ring();
            }
        });
        for token in 0..5000 {
            driver.submit(write(token, 4096));
            driver.poll(PollWait::AtMost(LONG), &mut Vec::new());
            read(&mut reader, 4096);
        }
        is_over.store(true, Ordering::Relaxed);
        ringer.join().unwrap();
    }

    #[test]
    fn more_operations_than_the_ring_has_entries_complete() {
        let Some(mut driver) = driver_of(File::options().write(true).open("/dev/null").unwrap()) else { return };
        let (count, mut done) = (1000, Vec::new());
        (0..count).for_each(|token| driver.submit(write(token, 4096)));
        while driver.in_flight() > 0 {
            driver.poll(PollWait::AtMost(LONG), &mut done);
        }
        let tokens: std::collections::HashSet<u64> = done.iter().map(|one| one.token).collect();
        assert!(done.len() == 1000 && tokens.len() == 1000 && done.iter().all(|one| one.result.is_ok()));
    }

    #[test]
    fn a_drop_waits_for_a_slow_device() {
        let Some((mut driver, mut reader)) = driver_of_pipe(PIPE_BYTES) else { return };
        driver.submit(write(1, 4096));
        driver.poll(PollWait::No, &mut Vec::new());
        let there = thread::spawn(move || {
            thread::sleep(Duration::from_millis(150));
            read(&mut reader, PIPE_BYTES);
            reader
        });
        drop(driver);
        let mut reader = there.join().unwrap();
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).unwrap();
        assert_eq!(rest.len(), 4096, "the write was carried out before the driver was gone");
    }

    #[test]
    fn an_abandoned_driver_fails_what_was_in_flight_once_and_refuses_the_rest() {
        let Some((mut driver, _reader)) = driver_of_pipe(PIPE_BYTES) else { return };
        let mut done = Vec::new();
        driver.submit(write(1, 4096));
        driver.submit(Operation::Sync { token: 2, file: 9 });
        driver.poll(PollWait::No, &mut done);
        driver.abandon();
        driver.submit(write(3, 4096));
        driver.poll(PollWait::AtMost(LONG), &mut done);
        driver.poll(PollWait::AtMost(Duration::ZERO), &mut done);
        done.sort_by_key(|one| one.token);
        assert_eq!(done.iter().map(|one| one.token).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(done.iter().all(|one| one.result.is_err()));
        assert!(done[0].buffer.is_none(), "the kernel may still read it");
        assert!(done[2].buffer.is_some());
        assert_eq!(driver.in_flight(), 0);
    }

    #[test]
    fn a_panic_in_the_runtime_is_an_error_of_the_operations() {
        let Some((mut driver, mut reader)) = driver_of_pipe(0) else { return };
        driver.submit(write(1, 4096));
        let mut done = Vec::new();
        // A runtime cannot be run inside another one: it panics.
        tokio_uring::start(async { driver.poll(PollWait::AtMost(LONG), &mut done) });
        assert!(done.len() == 1 && done[0].result.is_err());
        assert_eq!(driver.in_flight(), 0);
        drop(driver);
        rustix::fs::fcntl_setfl(&reader, rustix::fs::OFlags::NONBLOCK).unwrap();
        let error = reader.read(&mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "the file is leaked too: neither bytes nor an end");
    }
}
