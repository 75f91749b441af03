//! Makes a node's snapshots: an image of the machine, behind how far openraft's log it goes, streamed into a file.
//!
//! Invariants: openraft hears of a snapshot once it is durable and read back, and purges the log only then; a disk that
//! is full is no reason to stop the node, so the snapshot that was there before is given again.
//!
//! Does not know how a snapshot is sent, nor the log.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use openraft::{ErrorSubject, ErrorVerb, RaftTypeConfig, Snapshot, SnapshotMeta, StorageError};

use super::error::{RaftError, storage_error};
use super::header::Applied;
use super::machine::{Current, RaftTypes, Shared, View};
use super::snapshot::RaftSnapshot;
use crate::machine::{StateImage, StateMachine};
use crate::snapshot::{SnapshotError, SnapshotId};

type Result<T> = std::result::Result<T, RaftError>;

/// Makes one snapshot of a [`RaftMachine`](super::RaftMachine), as it was when the builder was asked for.
pub struct RaftSnapshotBuilder<C: RaftTypeConfig, M: StateMachine> {
    shared: Arc<Shared<C, M>>,
    /// Taken by the first call. A later one makes a snapshot of the machine as it is then.
    view: Mutex<Option<Result<View<C, M>>>>,
}

impl<C: RaftTypeConfig, M: StateMachine> fmt::Debug for RaftSnapshotBuilder<C, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RaftSnapshotBuilder({}, {:?})", M::KIND, self.shared.snapshots)
    }
}

impl<C: RaftTypeConfig, M: StateMachine> RaftSnapshotBuilder<C, M> {
    pub(super) fn new(shared: Arc<Shared<C, M>>, view: Result<View<C, M>>) -> RaftSnapshotBuilder<C, M> {
        RaftSnapshotBuilder { shared, view: Mutex::new(Some(view)) }
    }
}

impl<C: RaftTypes<M>, M: StateMachine> openraft::RaftSnapshotBuilder<C> for RaftSnapshotBuilder<C, M> {
    async fn build_snapshot(&mut self) -> std::result::Result<Snapshot<C>, StorageError<C::NodeId>> {
        let view = self.view.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let built = self.shared.elsewhere(|shared| shared.build(view.unwrap_or_else(|| shared.view())?)).await;
        built.map_err(|error| storage_error(ErrorSubject::Snapshot(None), ErrorVerb::Write, &error))
    }
}

impl<C: RaftTypeConfig<SnapshotData = RaftSnapshot>, M: StateMachine> Shared<C, M> {
    fn build(&self, view: View<C, M>) -> Result<Snapshot<C>> {
        match self.make(view) {
            Err(RaftError::Snapshot(error)) if error.is_out_of_space() => self.do_without(&error),
            made => made,
        }
    }

    /// The disk is full: openraft goes on with the snapshot it has, which is not newer, and asks again in due time.
    fn do_without(&self, error: &SnapshotError) -> Result<Snapshot<C>> {
        let directory = self.snapshots.directory().display();
        tracing::warn!(%error, %directory, "no snapshot was made, and so the log cannot be purged: make room on the disk");
        Ok(self.open_current()?.unwrap_or_else(nothing))
    }

    fn make(&self, view: View<C, M>) -> Result<Snapshot<C>> {
        if view.applied.last.is_none() {
            // Its name would be that of one of the entry 0 of term 0, and whoever receives that would take this for it.
            return Ok(nothing());
        }
        let is_current = self.current().as_ref().is_some_and(|current| current.meta.last_log_id == view.applied.last);
        if is_current && let Some(snapshot) = self.open_current()? {
            return Ok(snapshot);
        }
        let id = view.applied.id();
        let is_there = self.snapshots.ids()?.contains(&id);
        if is_there && let Some(current) = self.adopt(id, &view.applied)? {
            return self.put(current);
        }
        let applied = view.applied.clone();
        let current = match self.write(id, view) {
            // One was received meanwhile.
            Err(error @ RaftError::Snapshot(SnapshotError::Exists { .. })) => self.adopt(id, &applied)?.ok_or(error)?,
            written => written?,
        };
        self.put(current)
    }

    /// Somebody else's snapshot of the very entry, received and never installed, stands for the same state. Where it is
    /// damaged, or of another state under the same name, it goes.
    fn adopt(&self, id: SnapshotId, applied: &Applied<C>) -> Result<Option<Current<C>>> {
        let name = id.to_string();
        match self.snapshots.make_sure(id) {
            Err(SnapshotError::Corrupt { .. } | SnapshotError::Misnamed { .. }) => {
                self.snapshots.set_aside(&name)?;
                return Ok(None);
            }
            sure => sure?,
        }
        let mut reader = self.snapshots.open_snapshot(&name)?;
        let found = Applied::<C>::read_from(&mut reader, &self.snapshots.path_of(id))?;
        if found.last == applied.last {
            return Ok(Some(Current { id, meta: found.meta(reader.salt()) }));
        }
        self.snapshots.delete_snapshot(&name)?;
        Ok(None)
    }

    fn write(&self, id: SnapshotId, view: View<C, M>) -> Result<Current<C>> {
        let View { image, applied } = view;
        let mut writer = self.snapshots.writer(id.index, id.term, self.snapshots.machine())?;
        let written = applied.write_to(&mut writer).and_then(|()| image.write_to(&mut writer));
        written.map_err(SnapshotError::io("write a snapshot in", self.snapshots.directory()))?;
        let meta = applied.meta(writer.salt());
        let snapshot = writer.publish()?;
        tracing::info!(%id, raw_bytes = snapshot.raw_bytes, stored_bytes = snapshot.stored_bytes, "made a snapshot");
        Ok(Current { id, meta })
    }
}

/// What stands for no snapshot: openraft takes none that is not newer than what it has.
fn nothing<C: RaftTypeConfig<SnapshotData = RaftSnapshot>>() -> Snapshot<C> {
    Snapshot { meta: SnapshotMeta::default(), snapshot: Box::new(RaftSnapshot::empty()) }
}
