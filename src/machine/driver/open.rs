//! Opening: the newest snapshot, and what the log has after it.
//!
//! Invariants:
//!
//! - A directory without a snapshot is never an empty state, unless its log is new too: the initial state is a snapshot
//!   from the beginning.
//! - Whatever is wrong with the newest snapshot is an error. Only where the caller asked for it is an older one taken,
//!   and only where the log has everything since: so the state is the same.
//! - No snapshot is deleted. A damaged one that was got over is renamed, after an older one was restored.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::apply::State;
use super::config::DriverConfig;
use super::error::DriverError;
use super::replay::Chunks;
use super::report::DriverReport;
use crate::disk::Disk;
use crate::log::{Batch, Log};
use crate::machine::handling::{self, Trouble, looking_twice};
use crate::machine::{StateImage, StateMachine};
use crate::plant::{StackPlant, planted};
use crate::snapshot::{FileSnapshots, Snapshot, SnapshotError, SnapshotId};

/// The key of the log's hard state that says whose commands its entries are.
const MACHINE: &[u8] = b"machine";

/// What an open made ready.
pub(super) struct Opened<M> {
    pub(super) log: Log,
    pub(super) snapshots: FileSnapshots,
    pub(super) state: State<M>,
    pub(super) snapshot: Snapshot,
    pub(super) report: DriverReport,
}

type Result<T, M> = std::result::Result<T, DriverError<<M as StateMachine>::Error>>;

type Restored<M> = std::result::Result<Snapshot, Trouble<DriverError<<M as StateMachine>::Error>>>;

/// Opens the log and the snapshots of a disk, and brings the machine to where they are.
pub(super) fn open<M: StateMachine>(disk: &Arc<dyn Disk>, machine: M, config: &DriverConfig) -> Result<Opened<M>, M> {
    config.validate()?;
    let started = Instant::now();
    let (log, recovery) = Log::open_on(disk.clone(), config.log.clone())?;
    let snapshots = FileSnapshots::open_on(disk.clone(), config.snapshots.clone())?;
    let mut opening = Opening { disk, log: &log, snapshots: &snapshots, config, machine, set_aside: Vec::new() };
    let (snapshot, created) = opening.begin()?;
    let Opening { machine, set_aside, .. } = opening;
    let mut state = State::new(machine, snapshot.index);
    let replayed_entries = replay(&log, &mut state)?;
    snapshots.set_stands_on(Some(log.state().compacted.map_or(0, |(index, _)| index)));
    let report = DriverReport {
        created,
        log: recovery,
        snapshot: snapshot.id,
        replayed_entries,
        replayed_bytes: state.bytes,
        set_aside,
        took: started.elapsed(),
    };
    tell(disk, &report);
    Ok(Opened { log, snapshots, state, snapshot, report })
}

fn tell(disk: &Arc<dyn Disk>, report: &DriverReport) {
    let DriverReport { snapshot, replayed_entries, took, .. } = report;
    let directory = disk.path().display();
    tracing::info!(%directory, %snapshot, replayed_entries, ?took, "restored the machine");
}

/// Applies what the log has after what was applied.
fn replay<M: StateMachine>(log: &Log, state: &mut State<M>) -> Result<u64, M> {
    if planted(StackPlant::ReplayedOneTooMany) && log.state().first <= state.last_applied {
        state.last_applied -= 1;
    }
    if planted(StackPlant::ReplayedOneTooFew) && log.state().last.is_some_and(|(last, _)| last > state.last_applied) {
        state.last_applied += 1;
    }
    let start = state.last_applied + 1;
    let end = log.state().last.map_or(start, |(last, _)| last + 1);
    for chunk in Chunks::<M>::new(log, start..end) {
        let chunk = chunk?;
        state.apply(chunk.indexes, chunk.commands, chunk.bytes).map_err(DriverError::MachineFailed)?;
    }
    Ok(state.last_applied + 1 - start)
}

struct Opening<'a, M> {
    disk: &'a Arc<dyn Disk>,
    log: &'a Log,
    snapshots: &'a FileSnapshots,
    config: &'a DriverConfig,
    machine: M,
    set_aside: Vec<PathBuf>,
}

impl<M: StateMachine> Opening<'_, M> {
    fn directory(&self) -> PathBuf {
        self.disk.path().to_path_buf()
    }

    /// Brings the machine to a snapshot; tells whether the directory was new.
    fn begin(&mut self) -> Result<(Snapshot, bool), M> {
        match self.log.get_meta(MACHINE) {
            Some(kind) if kind == M::KIND.as_bytes() => Ok((self.restore_newest()?, false)),
            Some(kind) => Err(self.other_machine(self.directory(), String::from_utf8_lossy(&kind).into_owned())),
            None => self.found(),
        }
    }

    fn other_machine(&self, path: PathBuf, found: String) -> DriverError<M::Error> {
        DriverError::OtherMachine { path, found, expected: M::KIND }
    }

    /// Founds the machine of a log that has none. Where this was interrupted before, or where a snapshot of a peer was
    /// put into a new directory, there is a snapshot already.
    fn found(&mut self) -> Result<(Snapshot, bool), M> {
        let state = self.log.state();
        if state.last.is_some() || state.compacted.is_some() {
            return Err(DriverError::NoMachine { path: self.directory() });
        }
        let (snapshot, created) = match self.snapshots.newest()? {
            Some(_) => (self.restore_newest()?, false),
            None => (self.publish_initial()?, true),
        };
        self.log.put_meta(MACHINE, M::KIND.as_bytes())?;
        Ok((snapshot, created))
    }

    fn publish_initial(&self) -> Result<Snapshot, M> {
        let mut writer = self.snapshots.writer(0, 0, M::KIND)?;
        let written = self.machine.image().write_to(&mut writer);
        written.map_err(SnapshotError::io("write the initial state of the machine to", self.directory()))?;
        Ok(writer.publish()?)
    }

    fn restore_newest(&mut self) -> Result<Snapshot, M> {
        let mut ids = self.snapshots.ids()?;
        ids.sort();
        let newest = ids.pop().ok_or_else(|| DriverError::NoSnapshot { path: self.directory() })?;
        self.check_fits(newest)?;
        let snapshot = match self.restore_looking_twice(newest) {
            Ok(snapshot) => snapshot,
            Err(Trouble::Other(error)) => return Err(error),
            Err(Trouble::Damaged(error)) => self.fall_back(newest, ids, error)?,
        };
        self.install(snapshot.id)?;
        Ok(snapshot)
    }

    /// Checks that the log has everything after a snapshot, and the same term at its index.
    fn check_fits(&self, id: SnapshotId) -> Result<(), M> {
        let state = self.log.state();
        if !self.reaches(id) {
            return Err(DriverError::OutOfReach { path: self.directory(), snapshot: id.index, first: state.first });
        }
        let is_known = state.compacted.is_some_and(|(compacted, _)| compacted == id.index)
            || state.last.is_some_and(|(last, _)| (state.first..=last).contains(&id.index));
        if is_known {
            let expected = self.log.term(id.index)?;
            if expected != id.term {
                return Err(DriverError::OtherHistory { index: id.index, found: id.term, expected });
            }
        }
        Ok(())
    }

    fn reaches(&self, id: SnapshotId) -> bool {
        self.log.state().first <= id.index + 1
    }

    /// The newest intact snapshot that the log still reaches back to, where the caller wants that.
    fn fall_back(&mut self, newest: SnapshotId, older: Vec<SnapshotId>, error: SnapshotError) -> Result<Snapshot, M> {
        let mut reachable: Vec<SnapshotId> = older.into_iter().filter(|id| self.reaches(*id)).collect();
        let file = self.disk.path_of(&newest.file_name());
        if !self.config.fall_back && !planted(StackPlant::OlderTakenSilently) {
            return Err(DriverError::Damaged { file, reachable: reachable.pop(), source: Box::new(error) });
        }
        let mut damaged = vec![newest];
        while let Some(id) = reachable.pop() {
            self.check_fits(id)?;
            match self.restore_looking_twice(id) {
                Ok(snapshot) => {
                    damaged.into_iter().try_for_each(|id| self.set_aside(id))?;
                    return Ok(snapshot);
                }
                Err(Trouble::Other(error)) => return Err(error),
                Err(Trouble::Damaged(_)) => damaged.push(id),
            }
        }
        Err(DriverError::Damaged { file, reachable: None, source: Box::new(error) })
    }

    fn set_aside(&mut self, id: SnapshotId) -> Result<(), M> {
        self.set_aside.push(self.snapshots.set_aside(&id.to_string())?);
        Ok(())
    }

    fn restore_looking_twice(&mut self, id: SnapshotId) -> Restored<M> {
        looking_twice(self.snapshots, id, || self.restore(id))
    }

    /// Restores the machine from a snapshot, and verifies all of it.
    fn restore(&mut self, id: SnapshotId) -> Restored<M> {
        let file = self.disk.path_of(&id.file_name());
        let mut reader = self.snapshots.open_snapshot(&id.to_string())?;
        let snapshot = Snapshot::of(&reader);
        if snapshot.machine != M::KIND {
            return Err(Trouble::Other(self.other_machine(file, snapshot.machine.clone())));
        }
        let refused = |source| DriverError::NotRestored { file: file.clone(), source };
        handling::restore(&mut self.machine, &mut reader, &file, refused)?;
        Ok(snapshot)
    }

    /// Lets the log go on after a snapshot that is ahead of it: one that a peer sent, or that has what a log which is
    /// not synced at every append lost.
    fn install(&self, id: SnapshotId) -> Result<(), M> {
        let state = self.log.state();
        let next = state.last.map_or(state.first, |(last, _)| last + 1);
        if next <= id.index {
            self.check_may_replace(id)?;
            tracing::warn!(%id, next, "the log goes on after a snapshot that is ahead of it");
            self.log.write(Batch::new().compact_to(id.index, id.term).put_meta(MACHINE, M::KIND.as_bytes()))?;
        }
        Ok(())
    }
}

impl<M: StateMachine> Opening<'_, M> {
    /// Entries that no snapshot of the log's own stands for are given up only where that is wanted: whether the one
    /// that is ahead has them too, nobody here can tell.
    fn check_may_replace(&self, ahead: SnapshotId) -> Result<(), M> {
        let state = self.log.state();
        let Some((last, _)) = state.last.filter(|(last, _)| *last >= state.first) else { return Ok(()) };
        if self.config.install_over_entries {
            return Ok(());
        }
        let mut own: Vec<SnapshotId> = self.snapshots.ids()?;
        own.retain(|id| id.index <= last);
        let covered = own.into_iter().rev().find(|id| self.snapshots.verify(&id.to_string()).is_ok());
        let first = covered.map_or(state.first, |id| id.index + 1).max(state.first);
        match first > last {
            true => Ok(()),
            false => Err(DriverError::Ahead { file: self.disk.path_of(&ahead.file_name()), first, last }),
        }
    }
}
