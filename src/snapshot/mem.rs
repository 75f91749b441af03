//! Snapshots in memory, by the rules of those on disk: for tests of whoever takes a [`SnapshotManager`].

use std::collections::BTreeMap;

use super::{Snapshot, SnapshotError, SnapshotId, SnapshotManager, check_may_go, now_ms};
use crate::format::snapshot::raw_checksum;

/// Snapshots in memory. Nothing survives the value; all else is as with [`FileSnapshots`](super::FileSnapshots).
///
/// ```
/// use ringwal::{MemSnapshots, SnapshotError, SnapshotManager};
///
/// let mut snapshots = MemSnapshots::default();
/// snapshots.create_snapshot(7, 1, b"state")?;
/// assert!(matches!(snapshots.create_snapshot(7, 1, b"other"), Err(SnapshotError::Exists { .. })));
/// assert_eq!(snapshots.load_snapshot("snapshot_7_1")?.1, b"state");
///
/// snapshots.set_stands_on(Some(7)); // the log is compacted up to there
/// assert!(matches!(snapshots.delete_snapshot("snapshot_7_1"), Err(SnapshotError::Needed { .. })));
/// # Ok::<(), SnapshotError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct MemSnapshots {
    states: BTreeMap<SnapshotId, (Snapshot, Vec<u8>)>,
    stands_on: Option<u64>,
}

impl MemSnapshots {
    /// As [`FileSnapshots::set_stands_on`](super::FileSnapshots::set_stands_on).
    pub fn set_stands_on(&mut self, index: Option<u64>) {
        self.stands_on = index;
    }

    fn newest(&self) -> Option<SnapshotId> {
        self.states.last_key_value().map(|(&id, _)| id)
    }
}

impl SnapshotManager for MemSnapshots {
    fn create_snapshot(&mut self, index: u64, term: u64, data: &[u8]) -> Result<Snapshot, SnapshotError> {
        let id = SnapshotId { index, term };
        id.check()?;
        if self.states.contains_key(&id) {
            return Err(SnapshotError::Exists { id });
        }
        let (bytes, checksum) = (data.len() as u64, raw_checksum(data));
        let (timestamp_ms, machine) = (now_ms(), String::new());
        let snapshot =
            Snapshot { id, index, term, timestamp_ms, machine, raw_bytes: bytes, stored_bytes: bytes, checksum };
        self.states.insert(id, (snapshot.clone(), data.to_vec()));
        Ok(snapshot)
    }

    fn load_snapshot(&self, id: &str) -> Result<(Snapshot, Vec<u8>), SnapshotError> {
        let id: SnapshotId = id.parse()?;
        self.states.get(&id).cloned().ok_or_else(|| not_found(id))
    }

    fn delete_snapshot(&mut self, id: &str) -> Result<(), SnapshotError> {
        let id: SnapshotId = id.parse()?;
        if !self.states.contains_key(&id) {
            return Err(not_found(id));
        }
        check_may_go(self.stands_on, self.newest(), id)?;
        self.states.remove(&id);
        Ok(())
    }

    fn list_snapshots(&self) -> Result<Vec<Snapshot>, SnapshotError> {
        Ok(self.states.values().map(|(snapshot, _)| snapshot.clone()).collect())
    }

    fn compact_snapshots(&mut self, keep_count: usize) -> Result<Vec<Snapshot>, SnapshotError> {
        if keep_count == 0 {
            return Err(SnapshotError::KeepCount);
        }
        let doomed = self.states.len().saturating_sub(keep_count);
        let ids: Vec<SnapshotId> = self.states.keys().take(doomed).copied().collect();
        ids.iter().try_for_each(|&id| check_may_go(self.stands_on, self.newest(), id))?;
        Ok(ids.iter().filter_map(|id| self.states.remove(id)).map(|(snapshot, _)| snapshot).collect())
    }
}

fn not_found(id: SnapshotId) -> SnapshotError {
    SnapshotError::NotFound { path: id.file_name().into() }
}
