//! What writers feel of a snapshot of 1 GiB, and what it costs in memory.
//!
//! 16 writers set random keys of a key-value store, each waiting for its write to be durable, one after the other. Stretches
//! in which a snapshot is taken (from the image to its publication: compressed, synced, read back and verified, the log
//! compacted below it) take turns with as long ones without. The figure is the ratio of the 99th percentiles over all
//! stretches of a kind; a write that saw both belongs to the snapshot. Before them one is taken while nobody writes.
//!
//! Memory is what the process holds: the most it held while a snapshot was taken, less what it held right before. It is
//! measured in a process of its own. What a snapshot needed and gave back to the allocator is still held, and one that
//! needs it again would show no growth of its own: so the most is held against what was held before the first one too,
//! and may have grown since by what all of them together may. At the end the store is opened again, and every key is held
//! against the last write of it that was acknowledged.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::args::ChildArgs;
use crate::bench::counters;
use crate::bench::place::Place;
use crate::bench::suite::append::base;
use crate::bench::suite::child;
use crate::bench::suite::row::{Bar, Judged, Outcome, Row, Site};
use crate::bench::suite::snapshot::writers::{KEY_BYTES, Keys, Phase, Writers, Wrote, check};
use crate::engine::{DriverConfig, KvOp, KvStore, Snapshot};
use crate::interrupt;
use crate::progress::Progress;
use crate::text::{bytes, print, value};

/// Bytes of all keys and values.
const STATE_BYTES: u64 = 1 << 30;
const VALUE_BYTES: usize = 100;
const WRITERS: u64 = 16;
const ROUNDS: usize = 3;
/// Pairs of a batch while the store is filled.
const BATCH: u64 = 1000;
/// What the writers run before anything counts.
const WARM_UP: Duration = Duration::from_secs(2);
/// The log, the snapshots, and one more on its way.
const FREE_BYTES: u64 = 8 << 30;

const RATIO_MAX: f64 = 2.0;
const GROWTH_BYTES_MAX: u64 = 64 << 20;

/// What the process that measures has to tell.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Measured {
    state_bytes: u64,
    stored_bytes: u64,
    keys: u64,
    /// Memory held before the first snapshot.
    held_bytes: u64,
    /// 99th percentile of a write over all stretches: without a snapshot, and with one.
    p99_us: [f64; 2],
    p50_us: [f64; 2],
    max_us: [f64; 2],
    ratio: f64,
    sets: [u64; 2],
    /// The snapshot that was taken while nobody wrote.
    idle: Taken,
    rounds: Vec<Taken>,
    verified_keys: u64,
}

/// One snapshot.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Taken {
    seconds: f64,
    growth: Growth,
    /// Since before the first snapshot.
    growth_in_all: Growth,
}

/// By how much the memory held grew, and why it may.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Growth {
    bytes: u64,
    /// Of keys and values, by writes that were acknowledged while snapshots were taken.
    rewritten_bytes: u64,
}

impl Growth {
    fn bytes_max(self) -> u64 {
        GROWTH_BYTES_MAX + 2 * self.rewritten_bytes
    }

    /// How far it is from what it may be.
    fn over(self) -> i64 {
        self.bytes as i64 - self.bytes_max() as i64
    }
}

/// The row.
pub(crate) fn row() -> Row {
    let bars = [
        ("snapshot-latency", format!("p99 while one is taken <= {RATIO_MAX} x without")),
        ("snapshot-memory-idle", "growth <= 64 MiB".into()),
        ("snapshot-memory-writing", "growth <= 64 MiB + 2 x bytes rewritten".into()),
    ];
    Row {
        name: "snapshot-latency".into(),
        bars: bars.map(|(name, bar)| Bar { name: name.into(), bar }).into(),
        run: Box::new(|site| {
            let parent = site.dir.parent().context("a row's directory has a parent")?;
            if counters::free_bytes(parent).is_some_and(|free| free < FREE_BYTES) {
                return Ok(Outcome::Skipped(format!("needs {} free", bytes(FREE_BYTES))));
            }
            let measured = run(site)?;
            let raw = serde_json::to_value(&measured).context("cannot write the figures as JSON")?;
            Ok(Outcome::Measured(judge(&measured), raw))
        }),
    }
}

fn run(site: &Site<'_>) -> Result<Measured> {
    let args = base(site.args);
    let place = Place::take(Some(site.dir), false)?;
    child::run_snapshots(&ChildArgs { dir: place.log(), payload: VALUE_BYTES, io_mode: args.io_mode })
}

fn judge(measured: &Measured) -> Vec<Judged> {
    let [without, with] = measured.p99_us.map(value);
    let latency = format!("{} x, {with} us, without {without}", value(measured.ratio));
    let growths = measured.rounds.iter().flat_map(|taken| [taken.growth, taken.growth_in_all]);
    vec![
        Judged::new(measured.ratio <= RATIO_MAX, latency),
        judge_growth(Some(measured.idle.growth)),
        judge_growth(growths.max_by_key(|growth| growth.over())),
    ]
}

fn judge_growth(worst: Option<Growth>) -> Judged {
    let growth = worst.unwrap_or_default();
    let figure = format!("{} of {}", bytes(growth.bytes), bytes(growth.bytes_max()));
    Judged::new(worst.is_some_and(|growth| growth.over() <= 0), figure)
}

/// Measures, and tells it in one line of JSON.
pub(crate) fn measure(args: &ChildArgs) -> Result<()> {
    let value_bytes = args.payload;
    let keys = Keys { count: STATE_BYTES / (KEY_BYTES + value_bytes) as u64, writers: WRITERS, value_bytes };
    let store = open(args)?;
    fill(&store, keys)?;
    let mut memory = Memory::now()?;
    let (idle, snapshot) = memory.take(&store, || 0)?;
    let mut measured = Measured {
        state_bytes: snapshot.raw_bytes,
        stored_bytes: snapshot.stored_bytes,
        keys: keys.count,
        held_bytes: memory.held_first,
        idle,
        ..Measured::default()
    };
    let writers = Writers::start(&store, keys)?;
    measured.rounds = take_turns(&store, &writers, keys, memory, &measured.idle)?;
    let wrote = writers.finish()?;
    measured.summarize(&wrote);
    store.close()?;
    measured.verified_keys = verify(args, keys, &wrote)?;
    Ok(print(&(serde_json::to_string(&measured)? + "\n"))?)
}

fn open(args: &ChildArgs) -> Result<KvStore> {
    // Snapshots are taken when they are measured, and never for another reason.
    let config = DriverConfig::default().log(child::config(args)).snapshot_every_bytes(None);
    let (store, _) = KvStore::open(&args.dir, config).context("cannot open the store")?;
    Ok(store)
}

fn fill(store: &KvStore, keys: Keys) -> Result<()> {
    let mut progress = Progress::start("filling", keys.count);
    let mut filled = Vec::new();
    for first in (0..keys.count).step_by(BATCH as usize) {
        interrupt::check()?;
        let put = |number| {
            keys.value(number, 0, &mut filled);
            KvOp::Put { key: keys.key(number).to_vec().into(), value: filled.clone().into() }
        };
        store.write_batch((first..keys.count.min(first + BATCH)).map(put).collect())?;
        progress.at(first, || "keys".into());
    }
    Ok(())
}

fn take_turns(store: &KvStore, writers: &Writers, keys: Keys, mut memory: Memory, idle: &Taken) -> Result<Vec<Taken>> {
    std::thread::sleep(WARM_UP);
    let (mut rounds, mut stretch_s) = (Vec::new(), idle.seconds);
    for _ in 0..ROUNDS {
        interrupt::check()?;
        writers.enter(Phase::Without);
        std::thread::sleep(Duration::from_secs_f64(stretch_s));
        writers.enter(Phase::With);
        let (taken, _) = memory.take(store, || writers.sets() * (KEY_BYTES + keys.value_bytes) as u64)?;
        writers.enter(Phase::Between);
        stretch_s = taken.seconds;
        rounds.push(taken);
    }
    Ok(rounds)
}

/// What was held before the first snapshot, and what was rewritten while there were some.
#[derive(Clone, Copy, Debug)]
struct Memory {
    held_first: u64,
    rewritten_bytes: u64,
}

impl Memory {
    fn now() -> Result<Memory> {
        Ok(Memory { held_first: held_bytes()?, rewritten_bytes: 0 })
    }

    /// Takes a snapshot: what that took.
    fn take(&mut self, store: &KvStore, rewritten_bytes: impl Fn() -> u64) -> Result<(Taken, Snapshot)> {
        let (held, before) = (held_bytes()?, rewritten_bytes());
        counters::reset_peak_rss();
        let start = Instant::now();
        let snapshot = store.checkpoint()?;
        let seconds = start.elapsed().as_secs_f64();
        let rewritten_bytes = rewritten_bytes() - before;
        let most = counters::peak_rss_bytes().context("this kernel does not tell how much memory was held")?;
        self.rewritten_bytes += rewritten_bytes;
        let growth = Growth { bytes: most.saturating_sub(held), rewritten_bytes };
        let in_all = Growth { bytes: most.saturating_sub(self.held_first), rewritten_bytes: self.rewritten_bytes };
        Ok((Taken { seconds, growth, growth_in_all: in_all }, snapshot))
    }
}

fn held_bytes() -> Result<u64> {
    counters::rss_bytes().context("this kernel does not tell how much memory is held")
}

/// Opens the store again and looks at every key.
fn verify(args: &ChildArgs, keys: Keys, wrote: &[Wrote]) -> Result<u64> {
    let store = open(args)?;
    let verified = check(keys, wrote, store.image().iter())?;
    store.close()?;
    Ok(verified)
}

impl Measured {
    fn summarize(&mut self, wrote: &[Wrote]) {
        for phase in [0, 1] {
            let mut all = wrote[0].latencies_ns[phase].clone();
            for other in &wrote[1..] {
                // They are all made alike.
                let _ = all.add(&other.latencies_ns[phase]);
            }
            let us = |ns: u64| ns as f64 / 1e3;
            self.p50_us[phase] = us(all.value_at_quantile(0.5));
            self.p99_us[phase] = us(all.value_at_quantile(0.99));
            self.max_us[phase] = us(all.max());
            self.sets[phase] = all.len();
        }
        self.ratio = self.p99_us[1] / self.p99_us[0];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::suite::row::Verdict;

    fn growth(mib: u64, rewritten_mib: u64) -> Growth {
        Growth { bytes: mib << 20, rewritten_bytes: rewritten_mib << 20 }
    }

    fn verdicts(ratio: f64, idle: Growth, rounds: &[[Growth; 2]]) -> Vec<Verdict> {
        let taken = |[growth, growth_in_all]: &[Growth; 2]| Taken {
            seconds: 1.0,
            growth: *growth,
            growth_in_all: *growth_in_all,
        };
        let rounds = rounds.iter().map(taken).collect();
        let measured = Measured { ratio, idle: taken(&[idle; 2]), rounds, ..Measured::default() };
        judge(&measured).into_iter().map(|judged| judged.verdict).collect()
    }

    #[test]
    fn memory_may_grow_by_twice_what_was_rewritten_and_by_nothing_else() {
        use Verdict::{Met, Missed};
        let within = [growth(84, 10), growth(104, 20)];
        assert_eq!(verdicts(2.0, growth(64, 0), &[within]), [Met, Met, Met]);
        assert_eq!(verdicts(2.1, growth(65, 0), &[within, [growth(85, 10); 2]]), [Missed, Missed, Missed]);
        assert_eq!(verdicts(f64::NAN, growth(0, 0), &[]), [Missed, Met, Missed], "nothing was measured");
    }

    #[test]
    fn memory_that_is_needed_again_by_each_snapshot_does_not_hide() {
        let hidden = [growth(1, 10), growth(105, 20)];
        assert_eq!(verdicts(1.0, growth(0, 0), &[hidden])[2], Verdict::Missed);
    }
}
