//! openraft's own test suite for stores, unchanged, on a node's log and machine: each of its tests by name,
//! on both drivers, and written by openraft's own tasks.
//!
//! The suite prints nothing and stops at the first test that fails: so each is a test of its own here, and their list is
//! compared with the suite's source, lest a newer one brings a test that nobody runs.

#[path = "common/cluster.rs"]
mod cluster;
mod common;

use std::fs;
use std::future::Future;
use std::path::PathBuf;
use std::process::Command;

use cluster::{Kv, Store};
use common::scratch;
use common::skip::skip;
use openraft::StorageError;
use openraft::testing::StoreBuilder;
use ringwal::disk::IoMode;
use ringwal::machine::KvStateMachine;
use ringwal::raft::{RaftConfig, RaftLog, RaftMachine};
use ringwal::{Config, IoChoice};
use tempfile::TempDir;

type Machine = RaftMachine<Kv, KvStateMachine>;
type Suite = openraft::testing::Suite<Kv, RaftLog<Kv>, Machine, Builder, TempDir>;
type Outcome = Result<(), StorageError<u64>>;

/// Makes stores with a driver, each in a directory of its own.
pub struct Builder {
    io: IoChoice,
    /// Whether the log's callers write.
    in_place: bool,
}

const ON_IO_URING: Builder = Builder { io: IoChoice::Uring, in_place: false };
const ON_SYSTEM_CALLS: Builder = Builder { io: IoChoice::Syscall, in_place: false };
const IN_PLACE: Builder = Builder { io: IoChoice::Syscall, in_place: true };

impl Builder {
    fn open(&self) -> (TempDir, Store) {
        let directory = scratch();
        let log = Config::default().segment_bytes(1 << 20).io(self.io).write_in_place(self.in_place);
        let config = RaftConfig::default().log(log);
        let store = ringwal::raft::open(directory.path(), 1, KvStateMachine::new(), config).unwrap();
        (directory, store)
    }

    /// Whether the driver can be had here; says so where it cannot.
    fn is_allowed(&self) -> bool {
        if self.io == IoChoice::Syscall {
            return true;
        }
        let is_allowed = ringwal::Log::open(scratch().path(), Config::default().io(self.io)).is_ok();
        if !is_allowed {
            skip("io_uring is barred here");
        }
        is_allowed
    }
}

impl StoreBuilder<Kv, RaftLog<Kv>, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, RaftLog<Kv>, Machine), StorageError<u64>> {
        let (directory, store) = self.open();
        let mode = store.log.log().io_mode();
        assert_eq!(mode == IoMode::Uring, self.io == IoChoice::Uring, "{mode}");
        Ok((directory, store.log, store.machine))
    }
}

fn on_runtime<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

/// Runs a test of the suite on a new store.
fn run<F: Future<Output = Outcome>>(builder: Builder, test: impl FnOnce(RaftLog<Kv>, Machine) -> F) {
    if builder.is_allowed() {
        on_runtime(async {
            let (_directory, log, machine) = builder.build().await?;
            test(log, machine).await
        })
        .unwrap();
    }
}

/// The tests of the suite that take a store, and the one that makes its own; each on every builder, and their names.
macro_rules! suite {
    ($($name:ident)* ; $transfer:ident) => {
        const NAMES: &[&str] = &[$(stringify!($name),)* stringify!($transfer)];

        mod on_io_uring {
            use super::*;

            suite!(@tests ON_IO_URING, $($name)* ; $transfer);
        }

        mod on_system_calls {
            use super::*;

            suite!(@tests ON_SYSTEM_CALLS, $($name)* ; $transfer);
        }

        mod on_callers_threads {
            use super::*;

            suite!(@tests IN_PLACE, $($name)* ; $transfer);
        }
    };
    (@tests $builder:expr, $($name:ident)* ; $transfer:ident) => {
        $(#[test]
        fn $name() {
            run($builder, Suite::$name);
        })*

        #[test]
        fn $transfer() {
            let builder = $builder;
            if builder.is_allowed() {
                on_runtime(Suite::$transfer(&builder)).unwrap();
            }
        }

        #[test]
        fn all_in_turn() {
            let builder = $builder;
            if builder.is_allowed() {
                Suite::test_all(builder).unwrap();
            }
        }
    };
}

suite! {
    last_membership_in_log_initial
    last_membership_in_log
    last_membership_in_log_multi_step
    get_membership_initial
    get_membership_from_log_and_empty_sm
    get_membership_from_empty_log_and_sm
    get_membership_from_log_le_sm_last_applied
    get_membership_from_log_gt_sm_last_applied_1
    get_membership_from_log_gt_sm_last_applied_2
    get_initial_state_without_init
    get_initial_state_membership_from_log_and_sm
    get_initial_state_with_state
    get_initial_state_last_log_gt_sm
    get_initial_state_last_log_lt_sm
    get_initial_state_log_ids
    get_initial_state_re_apply_committed
    save_vote
    get_log_entries
    limited_get_log_entries
    try_get_log_entry
    initial_logs
    get_log_state
    get_log_id
    last_id_in_log
    last_applied_state
    purge_logs_upto_0
    purge_logs_upto_5
    purge_logs_upto_20
    delete_logs_since_11
    delete_logs_since_0
    append_to_log
    snapshot_meta
    apply_single
    apply_multiple
    ;
    transfer_snapshot
}

/// Where the sources of the openraft that is tested with lie.
fn openraft_sources() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let asked = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--offline", "--manifest-path", manifest])
        .output()
        .unwrap();
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    let metadata = String::from_utf8(asked.stdout).unwrap();
    let path = metadata.split('"').find(|text| text.contains("/openraft-0.9") && text.ends_with("/Cargo.toml"));
    PathBuf::from(path.expect("openraft is among the dependencies")).parent().unwrap().to_owned()
}

#[test]
fn the_suite_has_no_test_that_is_not_run_here() {
    let suite = fs::read_to_string(openraft_sources().join("src/testing/suite.rs")).unwrap();
    let all = suite.split("pub fn test_store(").nth(1).unwrap().split("\n    }\n").next().unwrap();
    let named = all.split("Self::").skip(1).map(|rest| {
        let end = rest.find(|at: char| !at.is_alphanumeric() && at != '_').unwrap();
        &rest[..end]
    });
    assert_eq!(named.collect::<Vec<_>>(), NAMES);
    assert_eq!(NAMES.len(), 35);
}
