//! The state machine of every node: a map in memory. Nobody takes snapshots, so that none falls into a measurement.

use std::collections::HashMap;
use std::io::Cursor;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, ensure};
use bytes::Bytes;
use openraft::storage::{RaftStateMachine, Snapshot};
use openraft::{
    AnyError, BasicNode, EntryPayload, OptionalSend, RaftSnapshotBuilder, SnapshotMeta, StorageIOError,
    StoredMembership,
};

use super::types::{Entry, Id, NodeId, Record, StorageError, Types};
use crate::records::{KEY_BYTES, check, parts};

/// A node's state, shared with who checks it.
#[derive(Clone, Default)]
pub(crate) struct Table {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    applied: Option<Id>,
    membership: StoredMembership<NodeId, BasicNode>,
    /// The records by their keys.
    records: HashMap<[u8; KEY_BYTES], Bytes>,
    /// Writes applied.
    writes: u64,
}

impl Table {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many records there are, each of which has the value that was written with its key.
    pub(crate) fn check(&self) -> Result<u64> {
        let state = self.state();
        state.records.values().try_for_each(|record| {
            let (key, value) = parts(record);
            check(key, value)
        })?;
        let count = state.records.len() as u64;
        ensure!(state.writes == count, "{count} records are there after {} writes of new keys", state.writes);
        Ok(count)
    }
}

impl State {
    fn apply(&mut self, entry: Entry) {
        self.applied = Some(entry.log_id);
        match entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Normal(Record(record)) => {
                let key = record.first_chunk().copied().unwrap_or_default();
                self.records.insert(key, record);
                self.writes += 1;
            }
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
            }
        }
    }
}

fn no_snapshots() -> StorageError {
    StorageIOError::read_state_machine(AnyError::error("nobody takes snapshots here")).into()
}

impl RaftStateMachine<Types> for Table {
    type SnapshotBuilder = Table;

    async fn applied_state(&mut self) -> Result<(Option<Id>, StoredMembership<NodeId, BasicNode>), StorageError> {
        let state = self.state();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<()>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut state = self.state();
        Ok(entries.into_iter().map(|entry| state.apply(entry)).collect())
    }

    async fn get_snapshot_builder(&mut self) -> Table {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Err(no_snapshots())
    }

    async fn install_snapshot(
        &mut self,
        _: &SnapshotMeta<NodeId, BasicNode>,
        _: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        Err(no_snapshots())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StorageError> {
        Ok(None)
    }
}

impl RaftSnapshotBuilder<Types> for Table {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StorageError> {
        Err(no_snapshots())
    }
}
