//! The driver: a log, a machine that is fed from it, and the snapshots that let the log be short.
//!
//! | module | what |
//! |---|---|
//! | `open` | restore the newest snapshot, replay the rest |
//! | `replay` | commands read back from the log |
//! | `apply` | from acknowledged to applied, and the answers |
//! | `proposed` | commands that somebody waits for later |
//! | `checkpoint` | the thread that takes snapshots and compacts the log |
//! | `inside` | who would wait for itself |
//!
//! Invariant: `last_applied <= commit_index <= last_index`, and in [`Durability::Sync`](crate::Durability::Sync)
//! `commit_index <= durable_index`; the log is compacted only below a snapshot that was published and read back.

mod apply;
mod checkpoint;
mod config;
mod error;
mod inside;
#[cfg(all(test, ringwal_shuttle))]
mod models;
mod open;
mod proposed;
mod replay;
mod report;
mod shared;

use std::fmt;
use std::future::Future;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use self::checkpoint::ToKeeper;
pub use self::config::DriverConfig;
pub use self::error::{DriverError, MachineFailure};
use self::inside::{Inside, is_inside};
pub use self::proposed::Proposed;
pub use self::report::{DriverReport, DriverStats};
use self::shared::Shared;
use super::StateMachine;
use crate::disk::Disk;
use crate::log::Log;
use crate::snapshot::{FileSnapshots, Snapshot};
use crate::sync::Mutex;
use crate::sync::atomic::Ordering;
use crate::sync::thread::{self, JoinHandle};

/// A state machine whose commands survive.
///
/// Commands are proposed by any number of threads and tasks; each answer means that the command is in the log as surely
/// as the log's [`Durability`](crate::Durability) says, and that the machine applied it. Reads see everything that was
/// answered, wait for nothing but a machine that is applying just then, and never for the disk.
///
/// Clones share the driver; when the last one goes, everything is closed, as [`Driver::close`] does with a report.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let scratch = tempfile::tempdir()?;
/// # let dir = scratch.path().join("counter");
/// use ringwal::machine::{CounterCommand, CounterStateMachine};
/// use ringwal::{Driver, DriverConfig, DriverError};
///
/// let (driver, _report) = Driver::open(&dir, CounterStateMachine::new(40), DriverConfig::default())?;
/// assert_eq!(driver.propose(CounterCommand::Increment(2))?, 42); // survives power loss when this returns
/// assert_eq!(driver.read(|counter| counter.count()), 42);
/// let refused = driver.propose(CounterCommand::Increment(i64::MAX));
/// assert!(matches!(refused, Err(DriverError::Refused(_))));
///
/// driver.checkpoint()?; // the log is short again
/// driver.close()?;
///
/// let (driver, report) = Driver::open(&dir, CounterStateMachine::default(), DriverConfig::default())?;
/// assert_eq!((driver.read(|counter| counter.count()), report.replayed_entries), (42, 0));
/// # Ok(())
/// # }
/// ```
///
/// # What an answer is worth
///
/// With [`Durability::Sync`](crate::Durability::Sync), the default, it survives power loss. With the others it survives
/// a killed process, and power loss takes back what the log had not synced: answers, and what readers saw with them. A
/// snapshot is never ahead of what was synced.
///
/// # From inside the machine
///
/// While a closure reads the machine, or the machine applies a command, the same thread can neither propose nor take a
/// checkpoint: [`DriverError::Reentrant`]. A closure that reads for long holds up everyone who proposes; an
/// [image](StateMachine::image) does not.
///
/// # When things fail
///
/// - A failed write poisons the log: every waiter and every later proposal gets the first cause, reads go on with what
///   was applied, and the next open decides. A full disk refuses proposals before anything is accepted, and they go on
///   once there is room.
/// - A failed checkpoint leaves the log and the older snapshots as they were. One that was due is tried again.
/// - A machine that panics while it applies is not used any more: [`DriverError::MachineFailed`].
pub struct Driver<M: StateMachine> {
    handle: Arc<Handle<M>>,
}

impl<M: StateMachine> Clone for Driver<M> {
    fn clone(&self) -> Driver<M> {
        Driver { handle: self.handle.clone() }
    }
}

/// Closes the driver when the last clone goes.
struct Handle<M: StateMachine> {
    shared: Arc<Shared<M>>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

type Result<T, M> = std::result::Result<T, DriverError<<M as StateMachine>::Error>>;

impl<M: StateMachine> Driver<M> {
    /// Opens the machine of a directory: restores its newest snapshot and applies what the log has after it. In a new
    /// directory the machine begins as it is given; in any other it is only what is restored into.
    ///
    /// # Errors
    ///
    /// - [`DriverError::OtherMachine`] where the directory belongs to a machine of another [kind](StateMachine::KIND),
    ///   [`DriverError::NoMachine`] where its log was written without a driver;
    /// - [`DriverError::Damaged`] where the newest snapshot is damaged; [`DriverConfig::fall_back`] may be a way on;
    /// - [`DriverError::Ahead`] where a snapshot of a peer would replace entries of the log: see
    ///   [`DriverConfig::install_over_entries`];
    /// - [`DriverError::NoSnapshot`], [`DriverError::OutOfReach`], [`DriverError::OtherHistory`] where files are
    ///   missing or do not belong together;
    /// - [`DriverError::NotRestored`], [`DriverError::Undecodable`], [`DriverError::MachineFailed`] where this machine
    ///   cannot take what another version of it wrote;
    /// - [`DriverError::Log`] with what [`Log::open`] has, [`DriverError::Snapshot`].
    pub fn open(dir: impl AsRef<Path>, machine: M, config: DriverConfig) -> Result<(Driver<M>, DriverReport), M> {
        config.validate()?;
        Driver::open_on(crate::log::disk_of(dir.as_ref(), &config.log)?, machine, config)
    }

    /// Opens the machine of a given disk, such as a simulated one; else as [`Driver::open`].
    ///
    /// # Errors
    ///
    /// Those of [`Driver::open`].
    pub fn open_on(disk: Arc<dyn Disk>, machine: M, config: DriverConfig) -> Result<(Driver<M>, DriverReport), M> {
        let open::Opened { log, snapshots, state, snapshot, report } = open::open(&disk, machine, &config)?;
        let (shared, inbox) = Shared::new(disk, log, snapshots, config, state, snapshot);
        let keeper = checkpoint::start_keeper(&shared, inbox)?;
        shared.ask_for_snapshot_if_due();
        Ok((Driver { handle: Arc::new(Handle { shared, keeper: Mutex::new(Some(keeper)) }) }, report))
    }

    fn shared(&self) -> &Arc<Shared<M>> {
        &self.handle.shared
    }

    /// Appends a command to the log, waits until it is acknowledged and applied, and returns the machine's response.
    ///
    /// # Errors
    ///
    /// [`DriverError::Refused`] is the machine's answer; [`DriverError::Log`] with what [`Log::append`] has;
    /// [`DriverError::MachineFailed`], [`DriverError::Reentrant`].
    pub fn propose(&self, command: M::Command) -> Result<M::Response, M> {
        single(self.shared().propose(vec![command])?)
    }

    /// Appends a command to the log and returns as soon as it is accepted, so that one caller can have many under way:
    /// commands that are submitted one after the other are applied in that order. [`Proposed::wait`] gives the
    /// machine's response, and so does awaiting it. Waits only while the log has no room.
    ///
    /// # Errors
    ///
    /// Those of [`Driver::propose`] by which nothing is accepted; the others come with the response.
    pub fn submit(&self, command: M::Command) -> Result<Proposed<M>, M> {
        let accepted = self.shared().submit_and_leave(vec![command])?;
        Ok(Proposed { driver: self.clone(), accepted })
    }

    /// As [`Driver::propose`]; the future is done when the command is applied.
    ///
    /// The command is accepted when the future is first polled and there is room, not before: where the order counts,
    /// or many are to be under way at once, use [`Driver::submit`]. Dropping the future after that does
    /// not take it back: it is applied, at the latest with a later command. The future blocks only while the machine
    /// applies. No runtime is assumed.
    ///
    /// # Errors
    ///
    /// Those of [`Driver::propose`].
    pub fn propose_async(
        &self,
        command: M::Command,
    ) -> impl Future<Output = Result<M::Response, M>> + Send + use<M> + 'static {
        let driver = self.clone();
        async move { single(driver.shared().propose_async(vec![command]).await?) }
    }

    /// Proposes commands as one batch: after a crash all of them are in the log, or none, and no reader sees some of
    /// them applied and others not. One result for each, in their order: each command may be refused by itself.
    ///
    /// # Errors
    ///
    /// Those of [`Driver::propose`], for all of them; a refusal stands in its place in the results.
    #[allow(clippy::type_complexity, reason = "one result for each command, or one error for all")]
    pub fn propose_batch(
        &self,
        commands: Vec<M::Command>,
    ) -> Result<Vec<std::result::Result<M::Response, M::Error>>, M> {
        if commands.is_empty() { Ok(Vec::new()) } else { self.shared().propose(commands) }
    }

    /// As [`Driver::propose_batch`], in the way of [`Driver::propose_async`].
    ///
    /// # Errors
    ///
    /// Those of [`Driver::propose_batch`].
    #[allow(clippy::type_complexity, reason = "one result for each command, or one error for all")]
    pub fn propose_batch_async(
        &self,
        commands: Vec<M::Command>,
    ) -> impl Future<Output = Result<Vec<std::result::Result<M::Response, M::Error>>, M>> + Send + use<M> + 'static
    {
        let driver = self.clone();
        async move { if commands.is_empty() { Ok(Vec::new()) } else { driver.shared().propose_async(commands).await } }
    }

    /// Looks at the machine, which has at least everything that was answered before. Waits only while the machine
    /// applies; whoever proposes waits for the closure.
    ///
    /// # Panics
    ///
    /// Inside of a closure that reads the same machine, and after the machine failed.
    pub fn read<T>(&self, look: impl FnOnce(&M) -> T) -> T {
        assert!(!is_inside(self.shared().id()), "a machine is read from inside of it, which may wait for itself");
        match self.try_read(look) {
            Ok(seen) => seen,
            Err(failure) => panic!("{failure}"),
        }
    }

    /// As [`Driver::read`], and never panics, unless the closure does.
    ///
    /// # Errors
    ///
    /// [`DriverError::Reentrant`]; [`DriverError::MachineFailed`].
    pub fn try_read<T>(&self, look: impl FnOnce(&M) -> T) -> Result<T, M> {
        let shared = self.shared();
        shared.check_outside()?;
        let state = shared.state();
        if let Some(failure) = &state.failure {
            return Err(DriverError::MachineFailed(failure.clone()));
        }
        let _inside = Inside::enter(shared.id());
        Ok(look(&state.machine))
    }

    /// Takes a snapshot of everything that was answered before, and compacts the log below it. Where nothing came since
    /// the last one, that is returned. Proposals and reads go on meanwhile.
    ///
    /// # Errors
    ///
    /// [`DriverError::Snapshot`] where no snapshot could be made: the log and the older snapshots are as they were
    /// then. [`DriverError::Log`] where the log could not be compacted; [`DriverError::Stopped`],
    /// [`DriverError::MachineFailed`], [`DriverError::Reentrant`].
    pub fn checkpoint(&self) -> Result<Snapshot, M> {
        self.shared().wait_for_checkpoint()
    }

    /// Index of the last entry that the machine applied; 0 for its initial state.
    pub fn last_applied(&self) -> u64 {
        self.shared().last_applied.load(Ordering::Acquire)
    }

    /// Index of the last entry that is known here to be acknowledged: in [`Durability::Sync`](crate::Durability::Sync),
    /// durable. What is asked for later is never below what [`Driver::last_applied`] was.
    pub fn commit_index(&self) -> u64 {
        self.shared().commit_index.load(Ordering::Acquire)
    }

    /// The log, to look at and to subscribe to. What is appended to it past the driver is applied as a command with the
    /// next one that is proposed, and must be one; nothing may be truncated, and nothing compacted past the newest
    /// snapshot.
    pub fn log(&self) -> &Log {
        &self.shared().log
    }

    /// The snapshots.
    pub fn snapshots(&self) -> &FileSnapshots {
        &self.shared().snapshots
    }

    /// What was done since the open.
    pub fn stats(&self) -> DriverStats {
        self.shared().stats()
    }

    /// Ends a checkpoint that is under way, drains and closes the log. Clones can still read, and nothing else.
    ///
    /// # Errors
    ///
    /// [`DriverError::Log`] where not everything accepted could be made durable; [`DriverError::Reentrant`].
    pub fn close(self) -> Result<(), M> {
        let shared = self.shared();
        shared.check_outside()?;
        shared.log.check_may_block()?;
        self.handle.stop_keeper();
        let closed = shared.log.clone().close();
        shared.apply_acknowledged();
        Ok(closed?)
    }
}

/// The result of the only command.
fn single<R, E: std::error::Error>(results: Vec<std::result::Result<R, E>>) -> std::result::Result<R, DriverError<E>> {
    match results.into_iter().next() {
        Some(result) => result.map_err(DriverError::Refused),
        None => Err(DriverError::Log(crate::Error::Closed)),
    }
}

impl<M: StateMachine> Handle<M> {
    /// Ends the keeper and waits for it, unless it may be waiting for this very thread.
    fn stop_keeper(&self) {
        self.shared.is_stopping.store(true, Ordering::Release);
        let _ = self.shared.to_keeper.send(ToKeeper::Stop);
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(keeper) = keeper else { return };
        let is_this = keeper.thread().id() == thread::current().id();
        if !is_this && !self.shared.log.is_on_own_thread() && keeper.join().is_err() {
            tracing::error!("the thread that takes snapshots panicked");
        }
    }
}

impl<M: StateMachine> Drop for Handle<M> {
    fn drop(&mut self) {
        self.stop_keeper();
    }
}

impl<M: StateMachine> fmt::Debug for Driver<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("kind", &M::KIND)
            .field("last_applied", &self.last_applied())
            .field("log", self.log())
            .finish()
    }
}
