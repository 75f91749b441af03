//! A node's own state, as those see it who ask the node: what it has applied.
//!
//! Invariant: nobody keeps a thread of the executor for a look at it. While a snapshot is installed, who reads waits as
//! tasks do, and no longer than a request may take; who only watches the node is told what was so before.
//!
//! Does not know whether what it has applied is all that the cluster committed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ringwal::machine::KvStateMachine;
use ringwal::raft::{MachineHandle, RaftError};
use tokio::time::timeout;

use crate::failing::Failure;
use crate::machine::JoinedKv;

/// The state, for looks at it.
#[derive(Debug)]
pub(crate) struct LocalState {
    machine: MachineHandle<JoinedKv>,
    /// How many keys there were when somebody looked last.
    keys: AtomicU64,
    limit: Duration,
}

impl LocalState {
    /// Before openraft has the machine: it may block.
    pub(crate) fn new(machine: MachineHandle<JoinedKv>, limit: Duration) -> Result<LocalState, RaftError> {
        let keys = AtomicU64::new(machine.read(|joined| joined.kv().len())?);
        Ok(LocalState { machine, keys, limit })
    }

    /// Looks at it, once no snapshot is being installed.
    pub(crate) async fn look<T>(&self, look: impl FnOnce(&KvStateMachine) -> T) -> Result<T, Failure> {
        let looked = timeout(self.limit, self.machine.read_async(|joined| look(joined.kv()))).await;
        looked.map_err(|_| Failure::read_timed_out())?.map_err(|_| Failure::stopping())
    }

    /// How many keys there are; while a snapshot is being installed, how many there were.
    pub(crate) fn keys(&self) -> u64 {
        if let Ok(Some(keys)) = self.machine.try_read(|joined| joined.kv().len()) {
            self.keys.store(keys, Ordering::Relaxed);
        }
        self.keys.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use axum::http::StatusCode;
    use axum::response::IntoResponse;
    use openraft::storage::RaftStateMachine;
    use openraft::{CommittedLeaderId, Entry, EntryPayload, LogId};
    use ringwal::Config;
    use ringwal::machine::KvCommand;
    use ringwal::raft::{RaftConfig, RaftMachine, RaftStore, open};
    use tokio::runtime::{Builder, Runtime};

    use super::*;
    use crate::machine::{Commands, Types};

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_time().build().unwrap()
    }

    /// Applies an entry that sets a key of its own.
    fn apply(machine: &mut RaftMachine<Types, JoinedKv>, index: u64) {
        let set = KvCommand::Set { key: index.to_string().into(), value: "here".into() };
        let log_id = LogId::new(CommittedLeaderId::new(1, 1), index);
        let entry = Entry { log_id, payload: EntryPayload::Normal(Commands(vec![set])) };
        runtime().block_on(machine.apply([entry])).unwrap();
    }

    #[test]
    fn a_node_whose_state_is_being_changed_is_watched_all_the_same_and_reads_give_up_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let config = RaftConfig::default().log(Config::default().segment_bytes(1 << 20));
        let RaftStore { mut machine, .. } = open(dir.path(), 1, JoinedKv::default(), config).unwrap();
        apply(&mut machine, 0);
        let handle = machine.handle();
        let state = LocalState::new(handle.clone(), Duration::from_millis(20)).unwrap();
        let look = || runtime().block_on(state.look(KvStateMachine::len));
        let (go, gate) = mpsc::channel::<()>();
        let (held, is_held) = mpsc::channel();
        thread::scope(|scope| {
            // A change that takes long: it waits for this one's look.
            let reader = handle.clone();
            scope.spawn(move || {
                reader.read(|_| {
                    held.send(()).unwrap();
                    gate.recv().unwrap();
                })
            });
            is_held.recv().unwrap();
            scope.spawn(move || apply(&mut machine, 1));
            while handle.try_read(|_| ()).unwrap().is_some() {
                thread::yield_now();
            }
            assert_eq!(state.keys(), 1);
            assert_eq!(look().unwrap_err().into_response().status(), StatusCode::GATEWAY_TIMEOUT);
            go.send(()).unwrap();
        });
        assert_eq!((look().unwrap(), state.keys()), (2, 2));
    }
}
