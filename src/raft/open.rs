//! Opening a node's store: its log, and its machine as the newest snapshot says. openraft applies what follows, up to
//! where it had committed.
//!
//! Invariants:
//!
//! - A machine is never begun anew while its log says that entries were purged.
//! - A damaged snapshot is an error, unless an older one is whole and the log leads from there up to the damaged one: the
//!   state that openraft brings the machine to is the same then. The damaged file is set aside under another name, after
//!   the older one was restored. Nothing is deleted.
//! - A snapshot may be ahead of the log: it arrived, and the node stopped before openraft had purged the log up to it.
//!   What it stands for was committed: a log that does not go on from it is dropped before openraft sees either.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::RaftTypeConfig;

use super::error::RaftError;
use super::header::Applied;
use super::log::RaftLog;
use super::machine::{RaftMachine, RaftTypes, Restored, restore};
use crate::config::Config;
use crate::disk::Disk;
use crate::error::Error;
use crate::format::snapshot::MACHINE_BYTES_MAX;
use crate::log::{Log, disk_of};
use crate::machine::StateMachine;
use crate::machine::handling::{Trouble, looking_twice};
use crate::segment::recover::RecoveryReport;
use crate::snapshot::{FileSnapshots, SnapshotError, SnapshotId, SnapshotOptions};

type Result<T> = std::result::Result<T, RaftError>;

/// Settings of a node's store. Start from [`RaftConfig::default`] and change what you need.
///
/// ```
/// use ringwal::Config;
/// use ringwal::raft::RaftConfig;
/// let config = RaftConfig::default().log(Config::default().segment_bytes(16 << 20)).keep_snapshots(1);
/// config.validate()?;
/// # Ok::<(), ringwal::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct RaftConfig {
    log: Config,
    snapshots: SnapshotOptions,
    keep_snapshots: usize,
}

impl Default for RaftConfig {
    fn default() -> RaftConfig {
        RaftConfig { log: Config::default(), snapshots: SnapshotOptions::default(), keep_snapshots: 2 }
    }
}

impl RaftConfig {
    /// Settings of the log. Its durability must be the default, [`Durability::Sync`](crate::Durability::Sync): what a node
    /// acknowledges, the cluster relies on. [`Config::write_in_place`] is for nodes that have a thread to spare for the disk:
    /// see [the module](super), "How fast".
    #[must_use]
    pub fn log(mut self, log: Config) -> RaftConfig {
        self.log = log;
        self
    }

    /// How snapshots are written.
    #[must_use]
    pub fn snapshots(mut self, snapshots: SnapshotOptions) -> RaftConfig {
        self.snapshots = snapshots;
        self
    }

    /// How many snapshots are kept: default 2, at least 1. The one before the newest serves where that is damaged, as long
    /// as the log reaches back to it: openraft keeps as many entries before a snapshot as its
    /// `max_in_snapshot_log_to_keep` says.
    #[must_use]
    pub fn keep_snapshots(mut self, keep_snapshots: usize) -> RaftConfig {
        self.keep_snapshots = keep_snapshots;
        self
    }

    /// Checks that every setting is in its range.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] naming the setting, its value and its bounds.
    pub fn validate(&self) -> crate::Result<()> {
        self.log.validate()?;
        self.snapshots.validate().map_err(|error| match error {
            SnapshotError::Config(what) => Error::Config(what),
            other => Error::Config(other.to_string()),
        })?;
        match self.keep_snapshots {
            0 => Err(Error::Config("keep_snapshots is 0: it must be at least 1".into())),
            _ => Ok(()),
        }
    }
}

/// What [`open`] gives: log and machine go into [`Raft::new`](openraft::Raft::new).
#[derive(Debug)]
#[non_exhaustive]
pub struct RaftStore<C: RaftTypeConfig, M: StateMachine> {
    /// The node's log, vote and committed log id.
    pub log: RaftLog<C>,
    /// The node's machine and its snapshots. Keep a [`handle`](RaftMachine::handle) to read it.
    pub machine: RaftMachine<C, M>,
    /// What the open found.
    pub report: RaftReport,
}

/// What an open of a node's store did.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RaftReport {
    /// What the log's recovery did.
    pub log: RecoveryReport,
    /// The snapshot that the machine was restored from; `None` where there is none yet.
    pub snapshot: Option<SnapshotId>,
    /// Damaged snapshots that were set aside, under their new names.
    pub set_aside: Vec<PathBuf>,
    /// How long all of it took.
    pub took: Duration,
}

/// Opens the store of a node in a directory, or makes it where there is none. `machine` is as it is before the first
/// entry: the same on every node. Blocks.
///
/// # Errors
///
/// Those of [`RaftError`], each with what to do. Nothing was changed then.
pub fn open<C: RaftTypes<M>, M: StateMachine>(
    dir: impl AsRef<Path>,
    node_id: C::NodeId,
    machine: M,
    config: RaftConfig,
) -> Result<RaftStore<C, M>> {
    let disk = disk_of(dir.as_ref(), &config.log).map_err(RaftError::Log)?;
    open_on(disk, node_id, machine, config)
}

/// Opens the store of a node on any disk, such as a simulated one; else as [`open`].
///
/// # Errors
///
/// Those of [`open`].
pub fn open_on<C: RaftTypes<M>, M: StateMachine>(
    disk: Arc<dyn Disk>,
    node_id: C::NodeId,
    machine: M,
    config: RaftConfig,
) -> Result<RaftStore<C, M>> {
    config.validate().map_err(RaftError::Log)?;
    let kind = kind_of::<M>()?;
    let started = Instant::now();
    let RaftConfig { log, snapshots, keep_snapshots } = config;
    let (log, recovery) = RaftLog::open_on(disk.clone(), node_id, M::KIND, log)?;
    let snapshots = FileSnapshots::open_on(disk, snapshots)?.of_machine(&kind);
    let purged = log.log().state().compacted.map(|(index, _)| index);
    let mut opening = Opening { snapshots: &snapshots, log: log.log(), purged, machine, set_aside: Vec::new() };
    let restored = opening.restore_newest()?;
    let Opening { machine, set_aside, .. } = opening;
    let snapshot = restored.as_ref().map(|restored: &Restored<C>| restored.current.id);
    let report = RaftReport { log: recovery, snapshot, set_aside, took: started.elapsed() };
    tell(&snapshots, &report);
    let (applied, current) = match restored {
        Some(Restored { applied, current }) => (applied, Some(current)),
        None => (Applied::default(), None),
    };
    if let Some(last) = &applied.last {
        log.begin_after(last)?;
    }
    let machine = RaftMachine::new(machine, snapshots, keep_snapshots, applied, current);
    log.purge_behind(machine.shared.arrivals.clone());
    Ok(RaftStore { log, machine, report })
}

/// The name that a machine's snapshots have under openraft: a driver's are others.
fn kind_of<M: StateMachine>() -> Result<String> {
    let kind = format!("raft/{}", M::KIND);
    match kind.len() <= MACHINE_BYTES_MAX {
        true => Ok(kind),
        false => Err(RaftError::Log(Error::Config(format!("the machine's kind {:?} is too long for a node", M::KIND)))),
    }
}

fn tell(snapshots: &FileSnapshots, report: &RaftReport) {
    let (directory, RaftReport { snapshot, took, .. }) = (snapshots.directory().display(), report);
    tracing::info!(%directory, ?snapshot, ?took, "opened the store of a node");
}

struct Opening<'a, M> {
    snapshots: &'a FileSnapshots,
    log: &'a Log,
    /// The last index that the log has not any more.
    purged: Option<u64>,
    machine: M,
    set_aside: Vec<PathBuf>,
}

impl<M: StateMachine> Opening<'_, M> {
    fn restore_newest<C: RaftTypes<M>>(&mut self) -> Result<Option<Restored<C>>> {
        let mut ids = self.snapshots.ids()?;
        let newest = ids.pop();
        self.check_reach(newest)?;
        let Some(newest) = newest else { return Ok(None) };
        match self.restore(newest) {
            Ok(restored) => Ok(Some(restored)),
            Err(Trouble::Other(error)) => Err(self.with_way_back(error, &ids)),
            Err(Trouble::Damaged(error)) => self.fall_back(newest, ids, error).map(Some),
        }
    }

    fn restore<C: RaftTypes<M>>(&mut self, id: SnapshotId) -> std::result::Result<Restored<C>, Trouble<RaftError>> {
        looking_twice(self.snapshots, id, || restore(&mut self.machine, self.snapshots, id, None))
    }

    fn check_reach(&self, newest: Option<SnapshotId>) -> Result<()> {
        if self.reaches(newest) {
            return Ok(());
        }
        let (path, snapshot) = (self.snapshots.directory().to_owned(), newest.map(|id| id.index));
        Err(RaftError::OutOfReach { path, snapshot, first: self.purged.map_or(0, |purged| purged + 1) })
    }

    /// Whether the log has everything after a snapshot.
    fn reaches(&self, id: Option<SnapshotId>) -> bool {
        self.purged <= id.map(|id| id.index)
    }

    /// A snapshot that arrived and that the machine has never taken keeps the node from nothing but itself. Which it is,
    /// and whether to wait for another version of the machine, is for its operator to know.
    fn with_way_back(&self, error: RaftError, older: &[SnapshotId]) -> RaftError {
        match error {
            RaftError::NotRestored { file, source, .. } => {
                let older = older.last().filter(|id| self.reaches(Some(**id)));
                RaftError::NotRestored { file, source, older: older.map(|id| self.snapshots.path_of(*id)) }
            }
            error => error,
        }
    }

    /// The newest intact snapshot that the log still reaches back to.
    fn fall_back<C: RaftTypes<M>>(
        &mut self,
        newest: SnapshotId,
        mut older: Vec<SnapshotId>,
        error: SnapshotError,
    ) -> Result<Restored<C>> {
        if let Some(before) = older.last().filter(|id| self.reaches(Some(**id))) {
            self.check_leads_to(newest, *before, &error)?;
        }
        let mut damaged = vec![newest];
        while let Some(id) = older.pop().filter(|id| self.reaches(Some(*id))) {
            match self.restore(id) {
                Ok(restored) => {
                    damaged.into_iter().try_for_each(|id| self.set_aside(id))?;
                    return Ok(restored);
                }
                Err(Trouble::Other(error)) => return Err(error),
                Err(Trouble::Damaged(_)) => damaged.push(id),
            }
        }
        let (path, file) = (self.snapshots.directory().to_owned(), self.snapshots.path_of(newest));
        Err(RaftError::DamagedSnapshot { path, file, source: Box::new(error) })
    }

    /// A snapshot may have come from another node, and stand for entries that this log never had: or for others than those
    /// that it has there, which are to be dropped.
    fn check_leads_to(&self, newest: SnapshotId, before: SnapshotId, error: &SnapshotError) -> Result<()> {
        let reaches_up = self.log.state().last.is_some_and(|(last, _)| last >= newest.index);
        if reaches_up && self.log.term(newest.index).map_err(RaftError::Log)? == newest.term {
            return Ok(());
        }
        let path_of = |id| self.snapshots.path_of(id);
        let (path, file, older) = (self.snapshots.directory().to_owned(), path_of(newest), path_of(before));
        Err(RaftError::EntriesGone { path, file, older, source: Box::new(error.again()) })
    }

    fn set_aside(&mut self, id: SnapshotId) -> Result<()> {
        self.set_aside.push(self.snapshots.set_aside(&id.to_string())?);
        Ok(())
    }
}
