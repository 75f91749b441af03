//! One engine, one load, once: open, warm up, run the producers in a closed loop, close, open again and count.
//!
//! Only calls that end between the end of the ramp and the deadline count for rates, latencies and CPU time; all of
//! them count for the check that nothing acknowledged is missing. Opening, warming up and checking are outside of every
//! measured time. CPU time is that of the whole process: producers, the engine's own threads and the kernel's work for
//! them.

use std::path::Path;
use std::sync::{Barrier, OnceLock};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::device::Counts;
use crate::engine::{Contestant, Engine};
use crate::load::Load;
use crate::place::Place;

/// Share of the time before the counting starts, in which the loop fills and the engine adapts.
const RAMP_SHARE: u32 = 10;

/// What an engine reached.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Reached {
    /// Entries acknowledged per second.
    pub(crate) acks_per_s: f64,
    /// Time of a call, from before it to after it.
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// CPU time of the process per million acknowledged entries.
    pub(crate) cpu_s_per_million_acks: f64,
    /// Flushes that the device was sent per call, whoever sent them; `null` if nobody counts.
    pub(crate) flushes_per_call: Option<f64>,
    /// Writes that the device was sent per call, likewise.
    pub(crate) writes_per_call: Option<f64>,
    /// Entries acknowledged in all, each of which was found again.
    pub(crate) acked: u64,
}

/// What one producer saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    acked: u64,
    counted_latencies_ns: Vec<u64>,
}

/// What the counted time cost.
#[derive(Clone, Copy, Debug)]
struct Spent {
    time: Duration,
    cpu: Duration,
    device: Option<Counts>,
}

/// When calls count.
#[derive(Clone, Copy)]
pub(crate) struct Window {
    count_from: Instant,
    deadline: Instant,
}

/// The moment at which the producers begin, which whoever is ready first decides.
pub(crate) struct Start {
    time: Duration,
    window: OnceLock<Window>,
}

/// Runs one slice in a directory of its own, which must be empty.
pub(crate) fn run(contestant: &Contestant, place: &Place, dir: &Path, load: &Load, time: Duration) -> Result<Reached> {
    let engine = (contestant.open)(dir, load).context("cannot open")?;
    place.settle()?;
    let (seen, spent) = drive(engine.as_ref(), place, load, time)?;
    let acked = seen.acked;
    let found = engine.close_and_count().context("cannot close, open again and count")?;
    ensure!(found == acked, "{acked} entries were acknowledged, {found} were found after a reopen");
    reached(seen, load, spent)
}

fn reached(mut seen: Seen, load: &Load, spent: Spent) -> Result<Reached> {
    let latencies = &mut seen.counted_latencies_ns;
    ensure!(!latencies.is_empty(), "not a single call ended in the counted time");
    latencies.sort_unstable();
    let calls = latencies.len() as f64;
    let acks = calls * load.batch as f64;
    Ok(Reached {
        acks_per_s: acks / spent.time.as_secs_f64(),
        p50_us: quantile(latencies, 0.5) / 1e3,
        p99_us: quantile(latencies, 0.99) / 1e3,
        cpu_s_per_million_acks: spent.cpu.as_secs_f64() * 1e6 / acks,
        flushes_per_call: spent.device.map(|counts| counts.flushes as f64 / calls),
        writes_per_call: spent.device.map(|counts| counts.writes as f64 / calls),
        acked: seen.acked,
    })
}

/// The value at or below which this share of the sorted values lies; zero of none.
pub(crate) fn quantile(sorted: &[u64], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).map_or(0.0, |value| *value as f64)
}

/// Lets the producers run: what they saw, and what the counted time cost.
fn drive(engine: &dyn Engine, place: &Place, load: &Load, time: Duration) -> Result<(Seen, Spent)> {
    let start = &Start { time, window: OnceLock::new() };
    std::thread::scope(|scope| {
        let producing = scope.spawn(move || {
            let seen = engine.produce(load, start);
            // Those who could not begin leave nobody waiting for them.
            start.now();
            seen
        });
        let spent = watch(*start.window.wait(), place);
        let seen = producing.join().map_err(|_| anyhow!("a producer panicked"))?.context("an append failed")?;
        Ok((seen, spent))
    })
}

/// Runs the producers as threads.
pub(crate) fn produce_in_threads<E: Engine + ?Sized>(engine: &E, load: &Load, start: &Start) -> Result<Seen> {
    let are_ready = &Barrier::new(load.producers);
    std::thread::scope(|scope| {
        let produce = |producer| {
            move || {
                let source = load.source(producer);
                are_ready.wait();
                run_producer(engine, load, producer, source, start.now())
            }
        };
        let producers = (0..load.producers).map(|producer| scope.spawn(produce(producer))).collect::<Vec<_>>();
        let mut all = Seen::default();
        for producer in producers {
            all.add(producer.join().map_err(|_| anyhow!("a producer panicked"))??);
        }
        Ok(all)
    })
}

impl Start {
    /// The producers begin, if they have not yet.
    pub(crate) fn now(&self) -> Window {
        *self.window.get_or_init(|| Window::starting_now(self.time))
    }
}

impl Seen {
    /// A call of so many entries began at `before`, and ended; when.
    pub(crate) fn note(&mut self, entries: usize, before: Instant, window: Window) -> Instant {
        let now = Instant::now();
        self.acked += entries as u64;
        if (window.count_from..window.deadline).contains(&now) {
            self.counted_latencies_ns.push((now - before).as_nanos() as u64);
        }
        now
    }

    /// Adds what another producer saw.
    pub(crate) fn add(&mut self, other: Seen) {
        self.acked += other.acked;
        self.counted_latencies_ns.extend(other.counted_latencies_ns);
    }
}

impl Window {
    fn starting_now(time: Duration) -> Window {
        let now = Instant::now();
        Window { count_from: now + time / RAMP_SHARE, deadline: now + time }
    }

    /// Whether a call may still begin.
    pub(crate) fn is_open_at(&self, now: Instant) -> bool {
        now < self.deadline
    }
}

fn run_producer<E: Engine + ?Sized>(
    engine: &E,
    load: &Load,
    producer: usize,
    mut next: impl FnMut() -> Bytes,
    window: Window,
) -> Result<Seen> {
    let (mut seen, mut now) = (Seen::default(), Instant::now());
    while window.is_open_at(now) {
        let call = (0..load.batch).map(|_| next()).collect::<Vec<_>>();
        let before = Instant::now();
        append(engine, producer, call)?;
        now = seen.note(load.batch, before, window);
    }
    Ok(seen)
}

fn append<E: Engine + ?Sized>(engine: &E, producer: usize, mut call: Vec<Bytes>) -> Result<()> {
    match call.len() {
        1 => call.pop().map_or(Ok(()), |payload| engine.append(producer, payload)),
        _ => engine.append_batch(producer, call),
    }
}

/// Sleeps through the window and sees what it cost.
fn watch(window: Window, place: &Place) -> Spent {
    sleep(window.count_from.saturating_duration_since(Instant::now()));
    let (cpu_before, counts_before) = (cpu_time(), place.device_counts());
    sleep(window.deadline.saturating_duration_since(Instant::now()));
    Spent {
        time: window.deadline - window.count_from,
        cpu: cpu_time().saturating_sub(cpu_before),
        device: place.device_counts().zip(counts_before).and_then(|(after, before)| after.since(before)),
    }
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.max(0) as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// Counts and, if it is to, loses the last entry.
    struct Counter {
        kept: AtomicU64,
        loses: u64,
    }

    impl Engine for Counter {
        fn append(&self, producer: usize, payload: Bytes) -> Result<()> {
            self.append_batch(producer, vec![payload])
        }

        fn append_batch(&self, _: usize, payloads: Vec<Bytes>) -> Result<()> {
            sleep(Duration::from_millis(1));
            self.kept.fetch_add(payloads.len() as u64, Ordering::Relaxed);
            Ok(())
        }

        fn close_and_count(self: Box<Self>) -> Result<u64> {
            Ok(self.kept.into_inner() - self.loses)
        }
    }

    fn run_counter(open: fn(&Path, &Load) -> Result<Box<dyn Engine>>) -> Result<Reached> {
        let contestant = Contestant { name: "counter", version: String::new, durability: "none", open };
        let dir = tempfile::tempdir().unwrap();
        let place = Place::make(dir.path()).unwrap();
        let load = Load { producers: 2, batch: 3, payload_bytes: 10, is_keyed: false, cluster: None };
        run(&contestant, &place, dir.path(), &load, Duration::from_millis(100))
    }

    #[test]
    fn what_was_acknowledged_is_counted_and_must_be_found() {
        let whole = run_counter(|_, _| Ok(Box::new(Counter { kept: AtomicU64::new(0), loses: 0 }))).unwrap();
        assert!(
            whole.acked > 0 && whole.acked.is_multiple_of(3) && whole.p50_us >= 1000.0 && whole.p99_us >= whole.p50_us
        );
        let lossy = run_counter(|_, _| Ok(Box::new(Counter { kept: AtomicU64::new(0), loses: 1 })));
        assert!(lossy.unwrap_err().to_string().contains("were found after a reopen"));
    }

    #[test]
    fn quantiles_are_values_that_occurred() {
        let sorted = (1..=100).collect::<Vec<u64>>();
        assert_eq!([0.5, 0.99, 1.0].map(|share| quantile(&sorted, share)), [50.0, 99.0, 100.0]);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }
}
