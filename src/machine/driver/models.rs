//! The driver under shuttle: the log's real threads, the keeper and those who propose, in very many random
//! interleavings. See the models of the log, whose disk and whose ways of checking these use.

use std::sync::Arc;

use super::{Driver, DriverConfig, DriverError};
use crate::block_on::block_on;
use crate::log::models::{ModelDisk, check, config as log_config, find, spawn};
use crate::machine::{CounterCommand, CounterStateMachine};
use crate::sim::SimDisk;
use crate::snapshot::SnapshotOptions;
use crate::sync::Mistake;

/// Snapshots without threads of their own: those are none of the model's.
fn config() -> DriverConfig {
    let snapshots = SnapshotOptions::default().workers(0).low_priority(false);
    DriverConfig::default().log(log_config()).snapshots(snapshots)
}

fn open(disk: &SimDisk, config: DriverConfig) -> Driver<CounterStateMachine> {
    Driver::open_on(Arc::new(ModelDisk(disk.clone())), CounterStateMachine::new(0), config).unwrap().0
}

/// Threads and a task propose at once, one future is dropped half way: every answer is given once, and none is missing.
fn everyone_is_answered(config: DriverConfig) {
    let driver = open(&SimDisk::manual(1), config);
    let (one, two, three) = (driver.clone(), driver.clone(), driver.clone());
    let blocking =
        spawn(move || (0..2).map(|_| one.propose(CounterCommand::Increment(1)).unwrap()).collect::<Vec<_>>());
    let task = spawn(move || block_on(two.propose_async(CounterCommand::Increment(1))).unwrap());
    let reader = spawn(move || {
        let (applied, count) = (three.last_applied(), three.read(|counter| counter.count()));
        assert!(applied as i64 <= count && applied <= three.commit_index(), "reads see what was answered");
    });
    let mut answers = driver.propose_batch(vec![CounterCommand::Increment(1); 2]).unwrap();
    let mut told: Vec<i64> = answers.drain(..).map(Result::unwrap).collect();
    told.extend(blocking.join().unwrap());
    told.push(task.join().unwrap());
    reader.join().unwrap();
    told.sort_unstable();
    assert_eq!(told, [1, 2, 3, 4, 5]);
    assert_eq!((driver.read(|counter| counter.count()), driver.last_applied()), (5, 5));
    driver.close().unwrap();
}

#[test]
fn every_proposal_is_applied_in_order_and_answered_once() {
    check(|| everyone_is_answered(config()));
}

#[test]
fn every_proposal_is_answered_while_snapshots_are_taken() {
    check(|| everyone_is_answered(config().snapshot_every_entries(Some(1))));
}

#[test]
#[should_panic(expected = "is not durable")]
fn a_command_that_is_applied_before_it_is_durable_would_be_found() {
    find(Mistake::ApplyEarly, || everyone_is_answered(config()));
}

/// A checkpoint, a proposal, and the last handle that goes meanwhile: all of them end, and nothing that was answered is
/// missing afterwards.
#[test]
fn the_last_handle_may_go_while_others_wait() {
    check(|| {
        let disk = SimDisk::manual(1);
        let driver = open(&disk, config());
        let (one, two) = (driver.clone(), driver.clone());
        let checkpoint = spawn(move || one.checkpoint());
        let proposal = spawn(move || two.propose(CounterCommand::Increment(1)));
        let closed = driver.close();
        let outcome = checkpoint.join().unwrap();
        assert!(outcome.is_ok() || matches!(outcome, Err(DriverError::Stopped | DriverError::Log(_))), "{outcome:?}");
        let answered = proposal.join().unwrap().is_ok();
        closed.unwrap();
        let count = open(&disk, config()).read(|counter| counter.count());
        assert!(count == 1 || !answered, "what was answered is lost");
    });
}
