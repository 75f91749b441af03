//! What the handles of a driver and its keeper share.

use std::sync::{Arc, PoisonError};

use super::apply::{Applier, Proposal, State};
use super::checkpoint::ToKeeper;
use super::config::DriverConfig;
use super::report::DriverStats;
use crate::config::Durability;
use crate::disk::Disk;
use crate::log::Log;
use crate::machine::StateMachine;
use crate::snapshot::{FileSnapshots, Snapshot};
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::channel::{Receiver, Sender, unbounded};
use crate::sync::{Mutex, RwLock, RwLockReadGuard};

/// Counted for [`DriverStats`], without order.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) commands: AtomicU64,
    pub(super) refusals: AtomicU64,
    pub(super) rounds: AtomicU64,
    pub(super) checkpoints: AtomicU64,
    pub(super) failed_checkpoints: AtomicU64,
}

/// See the module.
pub(super) struct Shared<M: StateMachine> {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) log: Log,
    pub(super) snapshots: FileSnapshots,
    pub(super) config: DriverConfig,
    pub(super) durability: Durability,
    pub(super) queue: Sender<Proposal<M>>,
    /// Proposals in the queue, about.
    pub(super) queued: AtomicUsize,
    /// Held by whoever applies. Taken before the state's lock, never after it.
    pub(super) applier: Mutex<Applier<M>>,
    pub(super) state: RwLock<State<M>>,
    pub(super) commit_index: AtomicU64,
    pub(super) last_applied: AtomicU64,
    pub(super) applied_bytes: AtomicU64,
    pub(super) is_broken: AtomicBool,
    pub(super) counters: Counters,
    /// The newest snapshot that this driver made, or began with.
    pub(super) base: Mutex<Snapshot>,
    /// Its index, and the bytes of commands applied between the open and it, for the look after every round.
    pub(super) base_index: AtomicU64,
    pub(super) base_bytes: AtomicU64,
    pub(super) to_keeper: Sender<ToKeeper<M>>,
    /// The keeper was asked for a snapshot that is due, and did not take it yet.
    pub(super) is_asked: AtomicBool,
    pub(super) is_stopping: AtomicBool,
    pub(super) last_failure: Mutex<Option<String>>,
}

impl<M: StateMachine> Shared<M> {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        log: Log,
        snapshots: FileSnapshots,
        config: DriverConfig,
        state: State<M>,
        snapshot: Snapshot,
    ) -> (Arc<Shared<M>>, Receiver<ToKeeper<M>>) {
        let ((queue, proposals), (to_keeper, inbox)) = (unbounded(), unbounded());
        let shared = Shared {
            disk,
            log,
            snapshots,
            durability: config.log.durability,
            config,
            queue,
            queued: AtomicUsize::new(0),
            applier: Mutex::new(Applier::new(proposals)),
            commit_index: AtomicU64::new(state.last_applied),
            last_applied: AtomicU64::new(state.last_applied),
            applied_bytes: AtomicU64::new(state.bytes),
            state: RwLock::new(state),
            is_broken: AtomicBool::new(false),
            counters: Counters::default(),
            base_index: AtomicU64::new(snapshot.index),
            base_bytes: AtomicU64::new(0),
            base: Mutex::new(snapshot),
            to_keeper,
            is_asked: AtomicBool::new(false),
            is_stopping: AtomicBool::new(false),
            last_failure: Mutex::new(None),
        };
        (Arc::new(shared), inbox)
    }

    /// Tells this driver from others.
    pub(super) fn id(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    pub(super) fn state(&self) -> RwLockReadGuard<'_, State<M>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn base(&self) -> Snapshot {
        self.base.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Entries applied since the newest snapshot, and bytes of their commands.
    pub(super) fn since_snapshot(&self) -> (u64, u64) {
        let since = |now: &AtomicU64, base: &AtomicU64| {
            now.load(Ordering::Relaxed).saturating_sub(base.load(Ordering::Relaxed))
        };
        (since(&self.last_applied, &self.base_index), since(&self.applied_bytes, &self.base_bytes))
    }

    pub(super) fn stats(&self) -> DriverStats {
        // In this order: each never passes the next, however much is applied meanwhile.
        let last_applied = self.last_applied.load(Ordering::Acquire);
        let commit_index = self.commit_index.load(Ordering::Acquire);
        let (entries_since_snapshot, bytes_since_snapshot) = self.since_snapshot();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DriverStats {
            last_applied,
            commit_index,
            commands: count(&self.counters.commands),
            refusals: count(&self.counters.refusals),
            rounds: count(&self.counters.rounds),
            snapshot: self.base().id,
            entries_since_snapshot,
            bytes_since_snapshot,
            checkpoints: count(&self.counters.checkpoints),
            failed_checkpoints: count(&self.counters.failed_checkpoints),
            last_failure: self.last_failure.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}
