//! Checkpoints: an image of the machine becomes a snapshot, and the log is compacted below it.
//!
//! All of them are taken by one thread, the keeper: those that are asked for, and those that are due because much was
//! applied since the last one. It is the driver's only thread, and nobody who proposes or reads waits for it.
//!
//! The order is always: image, stream, publish (durable and read back), compact the log, drop older snapshots. A crash
//! or a failure between any two of these leaves more than is needed, never less, and the next checkpoint tidies up.

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::error::DriverError;
use super::inside::Inside;
use super::shared::Shared;
use crate::machine::{StateImage, StateMachine};
use crate::plant::{self, StackPlant, planted};
use crate::snapshot::{Snapshot, SnapshotError, SnapshotId};
use crate::sync::Instant;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use crate::sync::thread::{self, JoinHandle};

/// How long the keeper waits after a failure before it tries again what is due: doubled each time, up to the second.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

type Outcome<M> = Result<Snapshot, DriverError<<M as StateMachine>::Error>>;

/// What the keeper is told.
pub(super) enum ToKeeper<M: StateMachine> {
    /// So much was applied that a snapshot is due.
    Due,
    /// Somebody wants one now, and waits for it here.
    Wanted(Sender<Outcome<M>>),
    /// Finish.
    Stop,
}

/// Starts the keeper.
pub(super) fn start_keeper<M: StateMachine>(
    shared: &Arc<Shared<M>>,
    inbox: Receiver<ToKeeper<M>>,
) -> crate::Result<JoinHandle<()>> {
    let keeper = Keeper { shared: shared.clone(), inbox, hold: None };
    let name = format!("{}-keeper", shared.config.log.thread_name);
    let carried = plant::carried();
    let spawned = thread::Builder::new().name(name).spawn(move || {
        carried.take_root();
        keeper.run();
    });
    spawned.map_err(crate::Error::io("start the thread that takes snapshots for", shared.directory()))
}

/// Has the priority that it was started with: it takes locks which every proposal takes, so it must not be kept waiting with
/// one in its hands. While it walks through an image, the snapshot's stream has it yield.
struct Keeper<M: StateMachine> {
    shared: Arc<Shared<M>>,
    inbox: Receiver<ToKeeper<M>>,
    /// Lets what is due wait, because it failed before.
    hold: Option<Hold>,
}

/// After a failure.
struct Hold {
    since: Instant,
    /// How long it is from then on.
    patience: Duration,
}

impl<M: StateMachine> Keeper<M> {
    fn run(mut self) {
        loop {
            match self.next() {
                ToKeeper::Due => self.take_if_due(),
                ToKeeper::Wanted(by) => self.take_for(by),
                ToKeeper::Stop => return,
            }
        }
    }

    fn next(&self) -> ToKeeper<M> {
        loop {
            let left = self.hold.as_ref().map(|hold| hold.patience.saturating_sub(hold.since.elapsed()));
            let message = match left {
                Some(left) => self.inbox.recv_timeout(left),
                None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match message {
                // It was asked for before the failure, or while that was on its way: its time comes.
                Ok(ToKeeper::Due) if left.is_some_and(|left| !left.is_zero()) => {}
                Ok(message) => return message,
                Err(RecvTimeoutError::Timeout) => return ToKeeper::Due,
                Err(RecvTimeoutError::Disconnected) => return ToKeeper::Stop,
            }
        }
    }

    fn take_if_due(&mut self) {
        // It counts as asked until it is done: else what the keeper itself applies meanwhile would ask again.
        if self.shared.is_due() {
            let outcome = self.shared.checkpoint();
            self.note(&outcome);
        } else {
            self.hold = None;
            self.listen();
        }
    }

    /// Lets those who apply ask for a snapshot again, and looks whether they would have.
    fn listen(&self) {
        self.shared.is_asked.store(false, Ordering::Release);
        self.shared.ask_for_snapshot_if_due();
    }

    fn take_for(&mut self, by: Sender<Outcome<M>>) {
        let (others, is_stopped) = self.others();
        if is_stopped {
            // Nobody takes it any more; whoever waits sees the senders go.
            return;
        }
        let outcome = self.shared.checkpoint();
        self.note(&outcome);
        // All of them asked before the image was taken, so it has what they want. A failure is everyone's own.
        for other in others {
            let theirs = match &outcome {
                Ok(snapshot) => Ok(snapshot.clone()),
                Err(_) => self.shared.checkpoint(),
            };
            self.note(&theirs);
            let _ = other.send(theirs);
        }
        let _ = by.send(outcome);
    }

    /// Who else wants one by now, and whether the keeper is to stop.
    fn others(&self) -> (Vec<Sender<Outcome<M>>>, bool) {
        let mut others = Vec::new();
        while let Ok(message) = self.inbox.try_recv() {
            match message {
                ToKeeper::Wanted(by) => others.push(by),
                // Looked at again once those who wait are served.
                ToKeeper::Due => {}
                ToKeeper::Stop => {
                    let _ = self.shared.to_keeper.send(ToKeeper::Stop);
                    return (Vec::new(), true);
                }
            }
        }
        (others, false)
    }

    fn note(&mut self, outcome: &Outcome<M>) {
        match outcome {
            Ok(_) => {
                self.hold = None;
                self.listen();
            }
            Err(_) => {
                // What is due waits for its time, however much is applied meanwhile.
                self.shared.is_asked.store(true, Ordering::Release);
                let patience = self.hold.as_ref().map_or(PATIENCE.0, |hold| (hold.patience * 2).min(PATIENCE.1));
                self.hold = Some(Hold { since: Instant::now(), patience });
            }
        }
    }
}

impl<M: StateMachine> Shared<M> {
    fn directory(&self) -> std::path::PathBuf {
        self.disk.path().to_path_buf()
    }

    fn is_due(&self) -> bool {
        let (entries, bytes) = self.since_snapshot();
        self.config.is_due(entries, bytes)
    }

    /// Tells the keeper, once, that a snapshot is due.
    pub(super) fn ask_for_snapshot_if_due(&self) {
        if self.is_due() && !self.is_asked.swap(true, Ordering::AcqRel) {
            let _ = self.to_keeper.send(ToKeeper::Due);
        }
    }

    /// Waits for a checkpoint by the keeper.
    pub(super) fn wait_for_checkpoint(&self) -> Outcome<M> {
        self.check_outside()?;
        self.log.check_may_block()?;
        let (by, outcome) = bounded(1);
        let is_stopped = self.is_stopping.load(Ordering::Acquire);
        if is_stopped || self.to_keeper.send(ToKeeper::Wanted(by)).is_err() {
            return Err(DriverError::Stopped);
        }
        outcome.recv().unwrap_or(Err(DriverError::Stopped))
    }

    fn checkpoint(&self) -> Outcome<M> {
        // A panic in the image of a machine is a failure like any other: the keeper goes on.
        let outcome = catch_unwind(AssertUnwindSafe(|| self.take_checkpoint())).unwrap_or_else(|_| {
            let panicked = io::Error::other("the image of the machine panicked");
            Err(SnapshotError::io("take a snapshot in", self.directory())(panicked).into())
        });
        let (counter, failure) = match &outcome {
            Ok(_) => (&self.counters.checkpoints, None),
            Err(error) => (&self.counters.failed_checkpoints, Some(error.to_string())),
        };
        counter.fetch_add(1, Ordering::Relaxed);
        if let Some(failure) = &failure {
            tracing::warn!(failure, directory = %self.disk.path().display(), "no snapshot could be taken");
        }
        *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
        outcome
    }

    fn take_checkpoint(&self) -> Outcome<M> {
        // A log that takes nothing more is told of before the work is done.
        self.make_durable()?;
        self.apply_acknowledged();
        let base = self.base();
        let is_newest = base.index == self.last_applied.load(Ordering::Acquire);
        let snapshot = match is_newest && self.snapshots.ids()?.contains(&base.id) {
            true => base,
            false => self.publish()?,
        };
        self.compact(snapshot.id)?;
        Ok(snapshot)
    }

    /// A snapshot is never ahead of what the log has for sure, or after a crash the log would have to leave out what
    /// older snapshots need.
    fn make_durable(&self) -> crate::Result<()> {
        if planted(StackPlant::ImageAheadOfLog) { Ok(()) } else { self.log.sync().map(drop) }
    }

    /// Makes a snapshot of the machine as it is now.
    fn publish(&self) -> Outcome<M> {
        let (image, index, bytes) = self.image()?;
        // Others may have been answered since the last time.
        self.make_durable()?;
        let term = if index == 0 { 0 } else { self.log.term(index)? };
        let snapshot = match self.write(image, index, term) {
            Err(DriverError::Snapshot(SnapshotError::Exists { id })) => self.adopt(id)?,
            written => written?,
        };
        let Snapshot { id, raw_bytes, stored_bytes, .. } = &snapshot;
        tracing::info!(%id, raw_bytes, stored_bytes, "took a snapshot");
        self.base_index.store(snapshot.index, Ordering::Relaxed);
        self.base_bytes.store(bytes, Ordering::Relaxed);
        *self.base.lock().unwrap_or_else(PoisonError::into_inner) = snapshot.clone();
        Ok(snapshot)
    }

    /// Somebody else made a snapshot of this very index and term, or it came from a peer. It stands for the same state;
    /// the log is compacted only where it is as good as one of the driver's own: whole, of this machine, and durable.
    fn adopt(&self, id: SnapshotId) -> Outcome<M> {
        let snapshot = self.snapshots.of_machine(M::KIND).verify(&id.to_string())?;
        self.disk.sync_dir().map_err(SnapshotError::io("sync", self.directory()))?;
        Ok(snapshot)
    }

    fn write(&self, image: M::Image, index: u64, term: u64) -> Outcome<M> {
        let mut writer = self.snapshots.writer(index, term, M::KIND)?;
        let written = image.write_to(&mut Stoppable { sink: &mut writer, is_stopping: &self.is_stopping });
        let told = SnapshotError::io("write the image of the machine to a snapshot in", self.directory());
        written.map_err(|error| self.or_stopped(told(error)))?;
        if planted(StackPlant::CompactedBeforePublished) {
            self.log.compact_to(index, term)?;
        }
        writer.publish_while(&|| !self.is_stopping.load(Ordering::Acquire)).map_err(|error| self.or_stopped(error))
    }

    /// What fails because the driver is being closed says so.
    fn or_stopped(&self, error: SnapshotError) -> DriverError<M::Error> {
        match self.is_stopping.load(Ordering::Acquire) {
            true => DriverError::Stopped,
            false => error.into(),
        }
    }

    /// The machine's image, the index it stands for, and the bytes that led there.
    #[allow(clippy::type_complexity, reason = "named where it is taken apart, a few lines above")]
    fn image(&self) -> Result<(M::Image, u64, u64), DriverError<M::Error>> {
        let state = self.state();
        if let Some(failure) = &state.failure {
            return Err(DriverError::MachineFailed(failure.clone()));
        }
        let _inside = Inside::enter(self.id());
        Ok((state.machine.image(), state.last_applied, state.bytes))
    }

    /// Drops what a published snapshot made unnecessary: entries of the log, then older snapshots.
    fn compact(&self, newest: SnapshotId) -> Result<(), DriverError<M::Error>> {
        let mut until = self.reach(newest)?;
        if planted(StackPlant::CompactedPastSnapshot) {
            until.index = self.last_applied.load(Ordering::Acquire).min(until.index + 1);
        }
        if until.index > self.log.state().compacted.map_or(0, |(index, _)| index) {
            self.log.compact_to(until.index, until.term)?;
        }
        self.snapshots.set_stands_on(Some(self.log.state().compacted.map_or(0, |(index, _)| index)));
        // That there are too many is not worth failing for.
        let dropped = self.snapshots.compact_snapshots_up_to(newest, self.config.keep_snapshots);
        if let Err(error) = dropped {
            tracing::warn!(%error, directory = %self.disk.path().display(), "older snapshots could not be deleted");
        }
        Ok(())
    }

    /// The snapshot that the log is to reach back to: so many back from the newest, or the oldest where there are
    /// fewer.
    fn reach(&self, newest: SnapshotId) -> Result<SnapshotId, DriverError<M::Error>> {
        let listed = self.snapshots.list()?.into_iter();
        // One that is newer came from elsewhere: it is for the next open. One that cannot be opened is nothing to fall
        // back to; that a device fails to read says nothing of it.
        let counts = |described: &Result<_, _>| matches!(described, Ok(_) | Err(SnapshotError::Io { .. }));
        let ids: Vec<SnapshotId> =
            listed.filter(|(id, described)| *id <= newest && counts(described)).map(|(id, _)| id).collect();
        let place = ids.len().saturating_sub(self.config.log_reaches_back_to);
        Ok(ids.get(place).copied().unwrap_or(newest))
    }
}

/// A sink that refuses once the driver is being closed.
struct Stoppable<'a, W> {
    sink: &'a mut W,
    is_stopping: &'a AtomicBool,
}

impl<W: Write> Write for Stoppable<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.is_stopping.load(Ordering::Acquire) {
            true => Err(io::Error::other("the driver is being closed")),
            false => self.sink.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}
