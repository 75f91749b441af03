//! How a machine is handled by whatever drives it: it is applied to, and restored from a snapshot.
//!
//! Invariants: a machine that panics, or that does not answer each command, is told from one that refuses; a snapshot
//! counts as restored only once every byte of it was verified; damage is told from a device that fails to read, which
//! says nothing of what the file holds.

use std::any::Any;
use std::future::Future;
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::StateMachine;
use crate::block_on::block_on;
use crate::snapshot::{FileSnapshots, SnapshotError, SnapshotId, SnapshotReader};

/// One result for each command.
pub(crate) type Results<M> = Vec<Result<<M as StateMachine>::Response, <M as StateMachine>::Error>>;

/// Applies commands, or says why the machine cannot be used any more.
pub(crate) fn apply_all<M: StateMachine>(machine: &mut M, commands: Vec<M::Command>) -> Result<Results<M>, String> {
    let count = commands.len();
    match catch_unwind(AssertUnwindSafe(|| drive(machine.apply_batch(commands)))) {
        Ok(results) if results.len() == count => Ok(results),
        Ok(results) => Err(format!("{} results for {count} commands", results.len())),
        Err(panic) => Err(message_of(&*panic)),
    }
}

/// What a machine that panicked says.
pub(crate) fn message_of(panic: &(dyn Any + Send)) -> String {
    let message = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
    format!("it panicked: {}", message.unwrap_or("without a message"))
}

/// Waits for the future of a machine. Most are ready at once.
pub(crate) fn drive<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => block_on(future),
    }
}

/// Why a snapshot was not restored.
#[derive(Debug)]
pub(crate) enum Trouble<E> {
    /// Its bytes are not what they were.
    Damaged(SnapshotError),
    Other(E),
}

impl<E: From<SnapshotError>> From<SnapshotError> for Trouble<E> {
    fn from(error: SnapshotError) -> Trouble<E> {
        // That the system refuses a call, also for a failure of the device, says nothing of what the file holds.
        match error {
            SnapshotError::Corrupt { .. } | SnapshotError::Misnamed { .. } => Trouble::Damaged(error),
            error => Trouble::Other(error.into()),
        }
    }
}

/// Restores a machine from what is left to read of a snapshot, and verifies all of that.
pub(crate) fn restore<M: StateMachine, E: From<SnapshotError>>(
    machine: &mut M,
    reader: &mut SnapshotReader,
    file: &Path,
    refused: impl FnOnce(M::Error) -> E,
) -> Result<(), Trouble<E>> {
    let mut source = Watched { source: reader, error: None };
    let restored = drive(machine.restore(&mut source));
    let trouble = source.error.take();
    // The end of the source is where the whole of it is verified.
    let rest = io::copy(reader, &mut io::sink());
    match (trouble, restored, rest) {
        (Some(error), ..) | (None, Ok(()), Err(error)) => Err(SnapshotError::io("read", file)(error).into()),
        (None, Err(source), _) => Err(Trouble::Other(refused(source))),
        (None, Ok(()), Ok(_)) => Ok(()),
    }
}

/// Restores from a snapshot that is looked at once more, past the page cache, if it seems damaged: a bit that flipped on
/// its way here is no reason to give the file up.
pub(crate) fn looking_twice<T, E: From<SnapshotError>>(
    snapshots: &FileSnapshots,
    id: SnapshotId,
    mut restore: impl FnMut() -> Result<T, Trouble<E>>,
) -> Result<T, Trouble<E>> {
    let restored = restore();
    if !matches!(restored, Err(Trouble::Damaged(_))) {
        return restored;
    }
    snapshots.verify(&id.to_string())?;
    match restore() {
        // Whole on the medium and damaged in memory: somebody has to look into that.
        Err(Trouble::Damaged(error)) => Err(Trouble::Other(error.into())),
        restored => restored,
    }
}

/// A source that remembers why it failed: a machine may tell it in its own words.
struct Watched<'a, R> {
    source: &'a mut R,
    error: Option<io::Error>,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(bytes);
        match read {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                let told = io::Error::new(error.kind(), error.to_string());
                self.error = Some(error);
                Err(told)
            }
            other => other,
        }
    }
}
