//! The load: a closed loop of producer threads that append during slices and rest between them.
//!
//! Invariants: between two slices every submission has been acknowledged and every producer is parked; a producer sees
//! its acks in the order of its submissions; whatever it saw acknowledged is in its [`Acks`]. Latency runs from just
//! before the submit until the producer has the ack in its hands.
//!
//! Each submission is made before it is due: right after the submit of the one before it, so with one outstanding
//! between its submit and the wait for its ack. What a payload costs to make is the caller's business, the floor makes
//! none, and so it overlaps with the write wherever it can.
//!
//! With thousands outstanding there is no time to look at the clock for each entry: one look serves a group of acks and
//! up to [`STRIDE`] submissions after it. A submission's start is then the last look before it, never one after it: a
//! latency may be told longer than it was by what the submissions in between took, and never shorter.
//!
//! Rates are counted from [`RAMP`] after the start of a slice to its end, while the loop is full: its filling and its
//! draining are in the latencies and in the totals, not in the rate.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Barrier, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::bench::acks::Acks;
use crate::bench::compactor::Request;
use crate::bench::payload::Payloads;
use crate::engine::{Batch, Pending, Target};

/// Start of a slice that the rate leaves out: the time in which the loop fills.
pub(crate) const RAMP: Duration = Duration::from_millis(10);

/// Submissions of one entry that share a look at the clock, at most.
const STRIDE: usize = 8;

/// What the producers do.
#[derive(Clone, Debug)]
pub(crate) struct LoadPlan {
    pub(crate) producers: u32,
    /// Number of the first producer: above 0 where a load before this one left entries in the log.
    pub(crate) first_producer: u32,
    pub(crate) window: usize,
    pub(crate) batch: u32,
    /// Bytes that one producer may append before it asks for a compaction; `None` for no compaction at all.
    pub(crate) compact_every_bytes: Option<u64>,
    /// Whether takes say which index had which latency.
    pub(crate) trace: bool,
}

impl Default for LoadPlan {
    /// One producer that appends an entry at a time and waits for it.
    fn default() -> LoadPlan {
        LoadPlan { producers: 1, first_producer: 0, window: 1, batch: 1, compact_every_bytes: None, trace: false }
    }
}

/// The running producers.
pub(crate) struct Load {
    gate: Arc<Gate>,
    threads: Vec<JoinHandle<Acks>>,
    takes: Vec<Arc<Mutex<Take>>>,
}

/// What one producer saw during one slice.
#[derive(Debug, Default)]
pub(crate) struct Take {
    /// One per submission.
    pub(crate) latencies_ns: Vec<u64>,
    /// Entries whose ack came within the counted time.
    pub(crate) counted: u64,
    /// First index of a submission and its latency in nanoseconds; empty unless asked for.
    pub(crate) traced: Vec<(u64, u64)>,
}

struct Gate {
    start: Barrier,
    end: Barrier,
    slice: Mutex<Slice>,
    failed: AtomicBool,
    failure: Mutex<Option<anyhow::Error>>,
}

#[derive(Clone, Copy)]
struct Slice {
    count_from: Instant,
    deadline: Instant,
    over: bool,
}

impl Load {
    /// Starts the producers; they rest until the first slice.
    pub(crate) fn start(
        target: &Target,
        plan: &LoadPlan,
        payloads: &Payloads,
        compactor: Option<SyncSender<Request>>,
    ) -> Result<Load> {
        let everyone = plan.producers as usize + 1;
        let now = Instant::now();
        let gate = Arc::new(Gate {
            start: Barrier::new(everyone),
            end: Barrier::new(everyone),
            slice: Mutex::new(Slice { count_from: now, deadline: now, over: false }),
            failed: AtomicBool::new(false),
            failure: Mutex::new(None),
        });
        let mut load = Load { gate: gate.clone(), threads: Vec::new(), takes: Vec::new() };
        for id in (plan.first_producer..).take(plan.producers as usize) {
            let take = Arc::<Mutex<Take>>::default();
            load.takes.push(take.clone());
            let producer = Producer {
                id,
                target: target.clone(),
                payloads: payloads.clone(),
                plan: plan.clone(),
                compactor: compactor.clone().filter(|_| id == plan.first_producer),
                next: Batch::new(),
                next_number: 0,
                bytes_since_compaction: 0,
                outstanding: VecDeque::new(),
                acks: Acks::new(plan.batch),
            };
            let gate = gate.clone();
            let thread = std::thread::Builder::new().name(format!("producer-{id}"));
            let thread = thread.spawn(move || producer.run(&gate, &take));
            load.threads.push(thread.context("cannot start another producer thread")?);
        }
        Ok(load)
    }

    /// Lets the producers run for `time` and waits until all their acks are in. Each producer's take goes to `see`;
    /// the result is the time that the takes' `counted` cover.
    pub(crate) fn slice(&self, time: Duration, mut see: impl FnMut(&Take)) -> Result<Duration> {
        let now = Instant::now();
        let ramp = RAMP.min(time / 2);
        *lock(&self.gate.slice) = Slice { count_from: now + ramp, deadline: now + time, over: false };
        self.gate.start.wait();
        self.gate.end.wait();
        if let Some(error) = lock(&self.gate.failure).take() {
            return Err(error);
        }
        for take in &self.takes {
            let mut take = lock(take);
            see(&take);
            take.latencies_ns.clear();
            take.traced.clear();
            take.counted = 0;
        }
        Ok(time - ramp)
    }

    /// Ends the producers; what each of them saw acknowledged.
    pub(crate) fn finish(mut self) -> Result<Vec<Acks>> {
        self.stop();
        let ended = self.threads.drain(..).map(JoinHandle::join);
        ended.map(|acks| acks.map_err(|_| anyhow!("a producer panicked"))).collect()
    }

    fn stop(&self) {
        lock(&self.gate.slice).over = true;
        self.gate.start.wait();
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Producers that could not all be started wait for a start that never comes: they end with the process.
        if self.threads.len() == self.takes.len() && !self.threads.is_empty() {
            self.stop();
            self.threads.drain(..).for_each(|thread| drop(thread.join()));
        }
    }
}

struct Producer {
    id: u32,
    target: Target,
    payloads: Payloads,
    plan: LoadPlan,
    compactor: Option<SyncSender<Request>>,
    /// The next submission, made and not yet handed in.
    next: Batch,
    next_number: u64,
    bytes_since_compaction: u64,
    outstanding: VecDeque<(Instant, Pending)>,
    acks: Acks,
}

/// A submission that was acknowledged: when it was handed in, and its first index.
type Seen = (Instant, u64);

impl Producer {
    fn run(mut self, gate: &Gate, take: &Mutex<Take>) -> Acks {
        self.make_next();
        loop {
            gate.start.wait();
            let slice = *lock(&gate.slice);
            if slice.over {
                return self.acks;
            }
            // A panic must not leave the others waiting at the gate.
            let ran = catch_unwind(AssertUnwindSafe(|| self.run_slice(gate, slice, &mut lock(take))));
            if let Err(error) = ran.unwrap_or_else(|_| Err(anyhow!("a producer panicked"))) {
                gate.failed.store(true, Ordering::Relaxed);
                lock(&gate.failure).get_or_insert(error.context(format!("producer {} cannot append", self.id)));
            }
            gate.end.wait();
        }
    }

    fn run_slice(&mut self, gate: &Gate, slice: Slice, take: &mut Take) -> Result<()> {
        let (mut now, mut seen) = (Instant::now(), Vec::with_capacity(self.plan.window));
        loop {
            while self.outstanding.len() < self.plan.window
                && now < slice.deadline
                && !gate.failed.load(Ordering::Relaxed)
            {
                if self.outstanding.len().is_multiple_of(STRIDE) || self.plan.batch > 1 {
                    now = Instant::now();
                }
                let pending = self.target.submit(std::mem::take(&mut self.next))?;
                self.outstanding.push_back((now, pending));
                self.make_next();
            }
            self.see_acks(&mut seen)?;
            if seen.is_empty() {
                return Ok(());
            }
            now = Instant::now();
            self.record(slice, take, &seen, now);
            seen.clear();
        }
    }

    fn make_next(&mut self) {
        let first = self.next_number;
        self.next_number += u64::from(self.plan.batch);
        let numbers = first..self.next_number;
        self.next = numbers.fold(Batch::new(), |batch, number| batch.push(self.payloads.make(self.id, number)));
    }

    /// Waits for the oldest outstanding submission and takes along all that are done behind it.
    fn see_acks(&mut self, seen: &mut Vec<Seen>) -> Result<()> {
        while let Some((start, pending)) = self.outstanding.pop_front() {
            let indexes = pending.indexes();
            let first = indexes.start;
            pending.wait()?;
            self.acks.add(indexes).map_err(|error| anyhow!(error))?;
            seen.push((start, first));
            if !self.outstanding.front().is_some_and(|(_, next)| next.is_done()) {
                break;
            }
        }
        Ok(())
    }

    fn record(&mut self, slice: Slice, take: &mut Take, seen: &[Seen], end: Instant) {
        let latency_ns = |start: Instant| (end - start).as_nanos() as u64;
        take.latencies_ns.extend(seen.iter().map(|&(start, _)| latency_ns(start)));
        if self.plan.trace {
            take.traced.extend(seen.iter().map(|&(start, index)| (index, latency_ns(start))));
        }
        let entries = seen.len() as u64 * u64::from(self.plan.batch);
        if (slice.count_from..slice.deadline).contains(&end) {
            take.counted += entries;
        }
        self.ask_for_compaction(entries);
    }

    fn ask_for_compaction(&mut self, entries: u64) {
        let (Some(every), Some(compactor)) = (self.plan.compact_every_bytes, &self.compactor) else { return };
        self.bytes_since_compaction += entries * self.payloads.payload_bytes() as u64;
        // A compactor that is still busy with the last request takes this one's entries along next time.
        if self.bytes_since_compaction >= every && compactor.try_send(Request::Compact).is_ok() {
            self.bytes_since_compaction = 0;
        }
    }
}

/// The data behind these locks is valid whatever a thread that panicked was doing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
