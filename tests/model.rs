//! The log against a plain model of it: random operations, reopened now and then, compared in full after each step, on
//! every disk and in every durability. And several producers at once, whose acknowledgements must all come true.
//!
//! A failure prints its seed: `RINGWAL_TEST_SEED=<seed>` runs the same steps again.

mod common;
#[path = "common/model.rs"]
mod model;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::{FOR_EVER, Place, block_on, eventually, small, tiny, within};
use model::{Model, Op};
use proptest::prelude::*;
use proptest::test_runner::{Config as RunConfig, RngAlgorithm, TestRng, TestRunner};
use ringwal::{Batch, Config, Durability, Error, Log, LogEntry, Verify};

/// An operation relative to where the log stands, so that most of them hit something.
#[derive(Clone, Debug)]
enum Draft {
    Push(usize),
    /// Distance of the index from the next one, of the term from the last one, length.
    Entry(i64, i64, usize),
    /// Distance from the next index.
    Truncate(i64),
    /// Distance from the first index.
    Compact(i64),
    /// Distance from the next index, of the term from what the log holds there or last.
    CompactTo(i64, i64),
    Put(u8, usize),
    Delete(u8),
}

/// By which call a batch goes in.
#[derive(Clone, Copy, Debug)]
enum How {
    Write,
    Submit,
    TrySubmit,
    Callback,
    Async,
    /// By the call that exists for a single operation, where there is one.
    Single,
}

#[derive(Clone, Debug)]
enum Step {
    Batch(Vec<Draft>, How),
    Sync,
    Reopen {
        is_closed: bool,
        verify: Verify,
        tail_cache_bytes: u64,
    },
    /// Power failure; on a real disk and in weak durabilities a reopening only.
    Crash(u64),
}

fn draft() -> impl Strategy<Value = Draft> {
    let length = prop_oneof![Just(0), 1..40usize, 300..700usize];
    let near = prop_oneof![6 => Just(0i64), 1 => -3..4i64];
    let term = prop_oneof![5 => Just(0i64), 2 => Just(1), 1 => -2..3i64];
    prop_oneof![
        6 => length.clone().prop_map(Draft::Push),
        4 => (near, term.clone(), length).prop_map(|(index, term, bytes)| Draft::Entry(index, term, bytes)),
        2 => (-12..2i64).prop_map(Draft::Truncate),
        2 => (-1..12i64).prop_map(Draft::Compact),
        1 => (-14..4i64, term).prop_map(|(index, term)| Draft::CompactTo(index, term)),
        2 => (0..4u8, prop_oneof![9 => 0..60usize, 1 => Just(SMALL_TOO_MUCH)]).prop_map(|(key, bytes)| Draft::Put(key, bytes)),
        1 => (0..4u8).prop_map(Draft::Delete),
    ]
}

/// Above what the hard state of the smallest segments may take.
const SMALL_TOO_MUCH: usize = 13_000;

fn step() -> impl Strategy<Value = Step> {
    use How::{Async, Callback, Single, Submit, TrySubmit, Write};
    let how = prop::sample::select(vec![Write, Submit, TrySubmit, Callback, Async, Single]);
    let size = prop_oneof![4 => Just(1..2usize), 3 => Just(1..5), 1 => Just(8..16), 1 => Just(0..1)];
    let batch = size.prop_flat_map(|size| prop::collection::vec(draft(), size));
    let verify = prop::sample::select(vec![Verify::Tail, Verify::Full]);
    let cache = prop::sample::select(vec![0, 500, 1 << 20]);
    prop_oneof![
        24 => (batch, how).prop_map(|(batch, how)| Step::Batch(batch, how)),
        1 => Just(Step::Sync),
        2 => (any::<bool>(), verify, cache)
            .prop_map(|(is_closed, verify, tail_cache_bytes)| Step::Reopen { is_closed, verify, tail_cache_bytes }),
        1 => any::<u64>().prop_map(Step::Crash),
    ]
}

/// Makes an operation of a draft, for a log that is as the model.
fn settle(draft: &Draft, model: &Model, serial: &mut u64) -> Op {
    let mut payload = |bytes: usize| {
        *serial += 1;
        let mut payload = format!("{serial}:").into_bytes();
        payload.resize(bytes, b'.');
        payload
    };
    let shift = |from: u64, by: i64| from.saturating_add_signed(by);
    match draft {
        Draft::Push(bytes) => Op::Push(payload(*bytes)),
        Draft::Entry(index, term, bytes) => {
            let timestamp = *bytes as u64 + 7;
            let entry = LogEntry::new(shift(model.last_term(), *term), shift(model.next(), *index), payload(*bytes));
            Op::Entry(LogEntry { timestamp, ..entry })
        }
        Draft::Truncate(by) => Op::Truncate(shift(model.next(), *by)),
        Draft::Compact(by) => Op::Compact(shift(model.first(), *by)),
        Draft::CompactTo(by, term) => {
            let index = shift(model.next(), *by);
            Op::CompactTo(index, shift(model.term(index).unwrap_or(model.last_term()), *term))
        }
        Draft::Put(key, bytes) => Op::Put(vec![b'k', *key], payload(*bytes)),
        Draft::Delete(key) => Op::Delete(vec![b'k', *key]),
    }
}

fn batch_of(ops: &[Op]) -> Batch {
    ops.iter().cloned().fold(Batch::new(), |batch, op| match op {
        Op::Push(command) => batch.push(command),
        Op::Entry(entry) => batch.push_entry(entry),
        Op::Truncate(from) => batch.truncate_from(from),
        Op::Compact(index) => batch.compact(index),
        Op::CompactTo(index, term) => batch.compact_to(index, term),
        Op::Put(key, value) => batch.put_meta(&key, &value),
        Op::Delete(key) => batch.delete_meta(&key),
    })
}

/// Puts a batch into the log and waits until it is acknowledged.
fn put(log: &Log, ops: &[Op], how: How) -> Result<Range<u64>, Error> {
    let batch = batch_of(ops);
    match how {
        How::Write => log.write(batch),
        How::Submit => {
            let pending = log.submit(batch)?;
            let indexes = pending.indexes();
            pending.wait().map(|()| indexes)
        }
        How::TrySubmit => try_submit(log, batch),
        How::Callback => {
            let (sender, receiver) = std::sync::mpsc::channel();
            let indexes = log.submit_with(batch, move |result| sender.send(result).unwrap())?;
            receiver.recv_timeout(FOR_EVER).expect("a callback comes").map(|()| indexes)
        }
        How::Async => block_on(log.write_async(batch)),
        How::Single => single(log, ops),
    }
}

fn try_submit(log: &Log, mut batch: Batch) -> Result<Range<u64>, Error> {
    loop {
        match log.try_submit(batch) {
            Ok(pending) => {
                let indexes = pending.indexes();
                return block_on(pending).map(|()| indexes);
            }
            Err((Error::Busy, back)) => batch = back,
            Err((error, _)) => return Err(error),
        }
        thread::yield_now();
    }
}

/// The call for a single operation; those without entries say nothing of indexes.
fn single(log: &Log, ops: &[Op]) -> Result<Range<u64>, Error> {
    let nothing = |()| u64::MAX..u64::MAX;
    match ops {
        [Op::Push(command)] => log.append(command.clone()).map(|index| index..index + 1),
        [Op::Entry(entry)] => log.append_entries(vec![entry.clone()]),
        [Op::Truncate(from)] => log.truncate_from(*from).map(nothing),
        [Op::Compact(index)] => log.compact(*index).map(nothing),
        [Op::CompactTo(index, term)] => log.compact_to(*index, *term).map(nothing),
        [Op::Put(key, value)] => log.put_meta(key, value).map(nothing),
        _ => log.write(batch_of(ops)),
    }
}

/// One run: a log and its model.
struct Run {
    place: Place,
    config: Config,
    log: Option<Log>,
    model: Model,
    serial: u64,
}

impl Run {
    fn new(place: Place, config: Config, hard_state_max: u64) -> Run {
        let config = config.first_index(5);
        let log = Some(place.open(config.clone()));
        Run { place, config, log, model: Model::new(5, hard_state_max), serial: 0 }
    }

    fn log(&self) -> &Log {
        self.log.as_ref().unwrap()
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Batch(drafts, how) => self.batch(drafts, *how),
            Step::Sync => {
                let durable = self.log().sync().unwrap();
                assert_eq!(durable, self.model.last().map(|(index, _)| index), "all is durable after a sync");
            }
            Step::Reopen { is_closed, verify, tail_cache_bytes } => {
                self.config = self.config.clone().verify(*verify).tail_cache_bytes(*tail_cache_bytes);
                self.reopen(*is_closed);
            }
            Step::Crash(seed) => self.crash(*seed),
        }
        self.compare();
    }

    fn batch(&mut self, drafts: &[Draft], how: How) {
        // Each draft is relative to what the ones before it did, as far as they are accepted.
        let (mut trial, mut ops) = (self.model.clone(), Vec::new());
        for draft in drafts {
            let op = settle(draft, &trial, &mut self.serial);
            let _ = trial.apply(std::slice::from_ref(&op));
            ops.push(op);
        }
        let expected = self.model.apply(&ops);
        let found = put(self.log(), &ops, how);
        match (&found, &expected) {
            (Ok(found), Ok(_)) if *found == (u64::MAX..u64::MAX) => {}
            _ => assert_eq!(format!("{found:?}"), format!("{expected:?}"), "{ops:?}"),
        }
    }

    fn reopen(&mut self, is_closed: bool) {
        let log = self.log.take().unwrap();
        let outlives = log.iter(..);
        match is_closed {
            true => log.close().unwrap(),
            false => drop(log),
        }
        let (log, report) = self.place.try_open(self.config.clone()).unwrap();
        assert_eq!((report.created, report.bytes_cut), (false, 0), "{report:?}");
        self.log = Some(log);
        drop(outlives);
    }

    fn crash(&mut self, seed: u64) {
        let Place::Sim(disk) = &self.place else { return self.reopen(false) };
        if self.config != self.config.clone().durability(Durability::Sync) {
            return self.reopen(false);
        }
        // Everything so far was acknowledged: whatever the crash leaves, it is there.
        let image = disk.crash_at_random(seed);
        self.log = None;
        self.place = Place::Sim(image);
        self.log = Some(self.place.open(self.config.clone()));
    }

    fn compare(&self) {
        let (log, model) = (self.log(), &self.model);
        let state = log.state();
        assert_eq!((state.first, state.last, state.compacted), (model.first(), model.last(), model.compacted));
        let last = model.last().map(|(index, _)| index);
        match self.config == self.config.clone().durability(Durability::Sync) {
            true => assert_eq!(state.durable, last, "what is acknowledged is durable"),
            false => assert!(state.durable <= last, "{state:?}"),
        }
        for index in model.first().saturating_sub(2)..model.next() + 2 {
            same(index, log.get(index), model.get(index).map(|_| ()), model);
            assert_eq!(format!("{:?}", log.term(index)), format!("{:?}", model.term(index)), "term of {index}");
        }
        self.compare_ranges();
        let meta: Vec<_> = model.meta.iter().map(|(key, value)| (key.clone().into(), value.clone().into())).collect();
        assert_eq!(log.meta(), meta);
        assert!(model.meta.iter().all(|(key, value)| log.get_meta(key).is_some_and(|found| found == value[..])));
        assert_eq!(log.get_meta(b"never put"), None);
    }

    fn compare_ranges(&self) {
        let (log, model) = (self.log(), &self.model);
        let (first, next) = (model.first(), model.next());
        let forth: Vec<LogEntry> = log.iter(..).map(Result::unwrap).collect();
        assert_eq!(forth.len(), model.entries.len());
        forth.iter().zip(first..).for_each(|(entry, index)| same(index, Ok(entry.clone()), Ok(()), model));
        let mut back: Vec<LogEntry> = log.iter(..).rev().map(Result::unwrap).collect();
        back.reverse();
        assert_eq!(back, forth);
        let half = first + (next - first) / 2;
        let part: Vec<LogEntry> = log.iter(first + 1..=half).map(Result::unwrap).collect();
        assert_eq!(
            part,
            forth.iter().filter(|entry| (first + 1..=half).contains(&entry.index)).cloned().collect::<Vec<_>>()
        );
        assert_eq!(log.get_entries(next..next, 10).unwrap(), []);
        assert!(matches!(log.get_entries(next..next + 3, 10), Err(Error::NotWritten { .. })));
        if first < next {
            let some = log.get_entries(first..next + 3, 1000).unwrap();
            assert_eq!(some[..], forth[..some.len()]);
            let bytes: usize = some.iter().map(|entry| entry.command.len()).sum();
            assert!(some.len() == 1 || bytes <= 1000, "{bytes} bytes in {} entries", some.len());
            assert_eq!(log.get_entries(first..next, usize::MAX).unwrap(), forth);
        }
    }
}

/// Compares one answer with the model's.
fn same(index: u64, found: Result<LogEntry, Error>, expected: Result<(), Error>, model: &Model) {
    match (found, expected) {
        (Ok(entry), Ok(())) => {
            let known = model.get(index).unwrap();
            assert_eq!((entry.index, entry.term, &entry.command[..]), (index, known.term, &known.command[..]));
            assert!(known.timestamp.is_none_or(|timestamp| timestamp == entry.timestamp));
        }
        (found, expected) => {
            assert_eq!(format!("{:?}", found.map(|_| ())), format!("{expected:?}"), "index {index}")
        }
    }
}

fn seed() -> u64 {
    let given = std::env::var("RINGWAL_TEST_SEED").ok().and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| RandomState::new().build_hasher().finish())
}

/// Runs random histories on places made by `place`.
fn explore(cases: u32, steps: usize, config: Config, place: impl Fn(u64) -> Place + Send + 'static) {
    let seed = seed();
    println!("RINGWAL_TEST_SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let settings = RunConfig { cases, failure_persistence: None, max_shrink_iters: 300, ..RunConfig::default() };
    let mut runner = TestRunner::new_with_rng(settings, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let histories = prop::collection::vec(step(), 1..steps);
    let segment_bytes = if config == config.clone().block_bytes(Some(512)) { 24 * 512 } else { common::SMALL_SEGMENT };
    let outcome = runner.run(&histories, |history| {
        let mut run = Run::new(place(seed), config.clone(), segment_bytes / 8);
        history.iter().for_each(|step| run.take(step));
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("RINGWAL_TEST_SEED={seed}: {error}"));
}

const INTERVAL: Durability = Durability::Interval(Duration::from_millis(20));

macro_rules! models {
    ($($name:ident: $cases:literal, $steps:literal, $durability:expr, $base:expr, $place:expr;)*) => {
        $(#[test] fn $name() { explore($cases, $steps, $base.durability($durability), $place); })*
    };
}

models! {
    uring_agrees_in_sync: 16, 150, Durability::Sync, small(), |_| Place::uring();
    uring_agrees_in_interval: 10, 150, INTERVAL, small(), |_| Place::uring();
    uring_agrees_in_none: 10, 150, Durability::None, small(), |_| Place::uring();
    system_calls_agree_in_sync: 16, 150, Durability::Sync, small(), |_| Place::syscall();
    system_calls_agree_in_interval: 10, 150, INTERVAL, small(), |_| Place::syscall();
    system_calls_agree_in_none: 10, 150, Durability::None, small(), |_| Place::syscall();
    callers_who_write_agree: 16, 150, Durability::Sync, small().write_in_place(true), |_| Place::syscall();
    callers_who_write_to_a_simulated_disk_agree: 150, 300, Durability::Sync, tiny().write_in_place(true), Place::sim;
    simulated_disk_agrees_in_sync: 250, 300, Durability::Sync, tiny(), Place::sim;
    simulated_disk_agrees_in_interval: 150, 300, INTERVAL, tiny(), Place::sim;
    simulated_disk_agrees_in_none: 150, 300, Durability::None, tiny(), Place::sim;
}

/// What one producer was told: the indexes of each of its batches, and their payloads.
type Acked = Vec<(Range<u64>, Vec<Vec<u8>>)>;

/// Puts batches of one to three entries in, three at a time, some by one call, some by another.
fn produce(log: &Log, name: usize) -> Acked {
    let mut acked = Acked::new();
    for round in 0..20 {
        let payloads = |part: usize| -> Vec<Vec<u8>> {
            (0..1 + (name + round + part) % 3)
                .map(|nth| format!("{name}/{round}/{part}/{nth}").repeat(1 + round % 7).into_bytes())
                .collect()
        };
        let batch = |part| payloads(part).into_iter().fold(Batch::new(), |batch, payload| batch.push(payload));
        let pending = log.submit(batch(0)).unwrap();
        let task = log.write_async(batch(1));
        acked.push((pending.indexes(), payloads(0)));
        acked.push((log.write(batch(2)).unwrap(), payloads(2)));
        acked.push((block_on(task).unwrap(), payloads(1)));
        pending.wait().unwrap();
    }
    acked
}

/// Each acknowledged entry that is not compacted is there; together they are all there is.
fn check_acked(log: &Log, all: &[Acked]) {
    let first = log.state().first;
    let mut indexes = Vec::new();
    for (range, payloads) in all.iter().flatten() {
        assert_eq!(range.end - range.start, payloads.len() as u64);
        for (index, payload) in range.clone().zip(payloads) {
            indexes.push(index);
            match log.get(index) {
                Ok(entry) => assert_eq!(entry.command, *payload),
                Err(error) => assert!(matches!(error, Error::Compacted { .. }) && index < first, "{index}: {error}"),
            }
        }
    }
    indexes.sort_unstable();
    assert_eq!(indexes, (1..=indexes.len() as u64).collect::<Vec<_>>(), "each index went to one entry");
    assert_eq!(log.state().last.map(|(last, _)| last), Some(indexes.len() as u64));
}

fn many_producers(place: Place, config: Config) {
    let log = place.open(config.clone());
    let is_done = Arc::new(AtomicBool::new(false));
    let compactor = {
        let (log, is_done) = (log.clone(), is_done.clone());
        thread::spawn(move || {
            while !is_done.load(Ordering::Relaxed) {
                match log.state().last {
                    Some((last, _)) if last > 60 => log.compact(last - 50).unwrap(),
                    _ => thread::yield_now(),
                }
            }
        })
    };
    let producers: Vec<_> = (0..4)
        .map(|name| {
            let log = log.clone();
            thread::spawn(move || produce(&log, name))
        })
        .collect();
    let all: Vec<Acked> = producers.into_iter().map(|producer| producer.join().unwrap()).collect();
    is_done.store(true, Ordering::Relaxed);
    compactor.join().unwrap();
    // One producer's synchronous batches came in order.
    for acked in &all {
        let in_order: Vec<u64> = acked.iter().step_by(3).map(|(range, _)| range.start).collect();
        assert!(in_order.is_sorted(), "{in_order:?}");
    }
    check_acked(&log, &all);
    log.compact(log.state().last.unwrap().0 - 10).unwrap();
    log.sync().unwrap();
    eventually("the log rolls and drops", || log.stats().rolls > 0 && log.stats().drops > 0);
    log.close().unwrap();
    let log = place.open(config);
    assert!(log.state().compacted.is_some());
    check_acked(&log, &all);
}

#[test]
fn producers_at_once_all_get_what_they_were_acknowledged() {
    let modes = [(Durability::Sync, false), (Durability::Sync, true), (INTERVAL, false), (Durability::None, false)];
    for (durability, in_place) in modes {
        for place in [Place::uring(), Place::syscall(), Place::sim(seed())] {
            let config = if matches!(place, Place::Sim(_)) { tiny() } else { small() };
            let config = config.durability(durability).write_in_place(in_place).tail_cache_bytes(2000);
            within("a run of producers", move || many_producers(place, config));
        }
    }
}
