//! The crash explorer on every core: each job lives through histories of its own until there were states or time enough.
//!
//! All jobs follow from one seed, and with `--states` each has a share of its own: so the same command line tries the
//! same histories. The first job has the seed itself, so that a violation's seed leads straight to its history. A history
//! that panics counts as a broken promise.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use serde::Serialize;

use crate::args::TortureArgs;
use crate::bench::report;
use crate::engine::{Rng, Summary, Violation, explore_until};
use crate::interrupt;
use crate::progress::Progress;
use crate::text::value;
use crate::torture::met::Met;

/// How long is explored where nothing is said.
const SECONDS: u64 = 10;
/// How often the progress is shown, and an interruption noticed.
const TICK: Duration = Duration::from_millis(100);

/// When a job has done enough.
#[derive(Clone, Copy, Debug)]
struct Limits {
    time: Option<Duration>,
    states: Option<u64>,
}

impl Limits {
    fn of(args: &TortureArgs) -> Limits {
        let seconds = args.seconds.map(u64::from).or(args.states.is_none().then_some(SECONDS));
        Limits { time: seconds.map(Duration::from_secs), states: args.states }
    }

    /// What a job has to do of all; `None` where nothing is left for it.
    fn share(self, job: u64, jobs: u64) -> Option<Limits> {
        let states = self.states.map(|states| states / jobs + u64::from(job < states % jobs));
        (states != Some(0)).then_some(Limits { states, ..self })
    }

    fn are_reached(self, states: u64, elapsed: Duration) -> bool {
        self.states.is_some_and(|limit| states >= limit) || self.time.is_some_and(|limit| elapsed >= limit)
    }
}

/// What a job came to.
#[derive(Debug)]
struct Done {
    met: Summary,
    broken: Option<Finding>,
    took: Duration,
}

/// A promise that does not hold, and how to see it again.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finding {
    pub(crate) seed: u64,
    pub(crate) promise: String,
    pub(crate) place: String,
    /// The history, a step a line.
    pub(crate) history: String,
    /// All of it in words.
    #[serde(skip)]
    pub(crate) told: String,
}

impl From<Violation> for Finding {
    fn from(violation: Violation) -> Finding {
        let told = violation.to_string();
        let Violation { seed, promise, place, trace, .. } = violation;
        Finding { seed, promise, place, history: trace, told }
    }
}

/// What all jobs came to.
#[derive(Debug, Serialize)]
pub(crate) struct Explored {
    version: &'static str,
    pub(crate) seed: u64,
    jobs: usize,
    seconds: f64,
    states: u64,
    states_per_s: f64,
    states_per_s_of_each_job: Vec<f64>,
    met: Met,
    pub(crate) violations: Vec<Finding>,
}

/// What the jobs tell while they run.
#[derive(Default)]
struct Board {
    states: AtomicU64,
    ended: AtomicU64,
    is_over: AtomicBool,
}

/// Explores; what was found is in the result, be it a broken promise.
pub(crate) fn run(args: &TortureArgs, seed: u64) -> Result<Explored> {
    let limits = Limits::of(args);
    let jobs = args.jobs.map_or(report::cpus(), |jobs| jobs as usize) as u64;
    let shares = (0..jobs).filter_map(|job| limits.share(job, jobs)).collect::<Vec<_>>();
    let board = &Board::default();
    let begin = Instant::now();
    let done = thread::scope(|scope| {
        let start = |(seed, share)| scope.spawn(move || explore(seed, share, board));
        let running = seeds(seed).zip(shares).map(start).collect::<Vec<_>>();
        let watched = watch(limits, running.len() as u64, board, begin);
        let done = running.into_iter().map(|job| job.join().map_err(|_| anyhow!("an explorer's thread panicked")));
        let done = done.collect::<Result<Vec<_>>>();
        watched.and(done)
    })?;
    Ok(Explored::of(seed, done, begin.elapsed()))
}

/// Where each job starts. The explorer's own histories follow from their job's seed; these come from its complement, so
/// that no job walks through another one's.
fn seeds(seed: u64) -> impl Iterator<Item = u64> {
    let mut rng = Rng::new(!seed);
    std::iter::once(seed).chain(std::iter::repeat_with(move || rng.next_u64()))
}

/// Shows how far the jobs are until all have ended.
fn watch(limits: Limits, jobs: u64, board: &Board, begin: Instant) -> Result<()> {
    let total = limits.states.unwrap_or_else(|| limits.time.unwrap_or_default().as_secs());
    let mut progress = Progress::start("exploring", total);
    while board.ended.load(Ordering::Relaxed) < jobs {
        if let Err(interrupted) = interrupt::check() {
            board.is_over.store(true, Ordering::Relaxed);
            return Err(interrupted.into());
        }
        thread::sleep(TICK.min(begin.elapsed() / 4));
        let (states, elapsed) = (board.states.load(Ordering::Relaxed), begin.elapsed());
        let position = limits.states.map_or(elapsed.as_secs(), |_| states);
        progress.at(position, || format!("{} crash states /s", value(states as f64 / elapsed.as_secs_f64())));
    }
    Ok(())
}

/// One job: history after history, until its share is done or somebody found something.
fn explore(seed: u64, share: Limits, board: &Board) -> Done {
    let begin = Instant::now();
    let mut met = Summary::default();
    let explored = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let is_enough = |now: &Summary| {
            board.states.fetch_add(now.states - met.states, Ordering::Relaxed);
            met.clone_from(now);
            board.is_over.load(Ordering::Relaxed) || share.are_reached(now.states, begin.elapsed())
        };
        explore_until(seed, is_enough, None)
    }));
    let broken = match explored {
        Ok(Ok(_)) => None,
        Ok(Err(violation)) => Some(Finding::from(*violation)),
        Err(panic) => Some(panicked(seed, &met, &*panic)),
    };
    if broken.is_some() {
        board.is_over.store(true, Ordering::Relaxed);
    }
    board.ended.fetch_add(1, Ordering::Relaxed);
    Done { met, broken, took: begin.elapsed() }
}

/// The history that panicked is the one after those that were done.
fn panicked(seed: u64, met: &Summary, panic: &(dyn std::any::Any + Send)) -> Finding {
    let said = panic.downcast_ref::<String>().cloned();
    let said = said.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default();
    let promise = format!("it panicked: {said}");
    let place = format!("history {} from seed {seed}", met.histories + 1);
    let replay = format!("ringwal torture --seed {seed} --jobs 1 --states {}", met.states + 1);
    Finding {
        seed,
        told: format!("{promise}\n{place}; replay it with `{replay}`"),
        promise,
        place,
        history: String::new(),
    }
}

impl Explored {
    fn of(seed: u64, done: Vec<Done>, took: Duration) -> Explored {
        let rate = |states: u64, took: Duration| states as f64 / took.as_secs_f64();
        let met = Met::of(done.iter().map(|job| &job.met));
        let states = done.iter().map(|job| job.met.states).sum();
        Explored {
            version: env!("CARGO_PKG_VERSION"),
            seed,
            jobs: done.len(),
            seconds: took.as_secs_f64(),
            states,
            states_per_s: rate(states, took),
            states_per_s_of_each_job: done.iter().map(|job| rate(job.met.states, job.took)).collect(),
            met,
            violations: done.into_iter().filter_map(|job| job.broken).collect(),
        }
    }

    /// The result in words.
    pub(crate) fn table(&self) -> String {
        let of_each = self.states_per_s_of_each_job.iter().map(|&rate| value(rate)).collect::<Vec<_>>().join(", ");
        let outcome = match self.violations.len() {
            0 => "no promise was broken",
            _ => "A PROMISE WAS BROKEN",
        };
        format!(
            "\n{outcome} in {} crash states: seed {}, {:.1} s, {} states /s (jobs: {of_each})\n\n{}",
            crate::text::count(self.states),
            self.seed,
            self.seconds,
            value(self.states_per_s),
            self.met.table()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(states: Option<u64>, seconds: Option<u32>, jobs: u32) -> TortureArgs {
        TortureArgs { states, seconds, jobs: Some(jobs), ..TortureArgs::default() }
    }

    #[test]
    fn the_states_are_shared_out_and_one_state_is_one_history_of_the_very_seed() {
        let shares = |states, jobs| {
            let limits = Limits::of(&args(Some(states), None, 1));
            (0..jobs).filter_map(|job| limits.share(job, jobs)).map(|share| share.states.unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(shares(10, 4), [3, 3, 2, 2]);
        assert_eq!(shares(1, 4), [1]);
        let explored = run(&args(Some(1), None, 4), 7).unwrap();
        assert_eq!((explored.jobs, explored.met.count("histories")), (1, 1));
        assert_eq!(seeds(7).next(), Some(7));
    }

    #[test]
    fn a_seed_with_a_number_of_states_meets_the_same_again() {
        let met = |seed| run(&args(Some(600), None, 2), seed).unwrap().met;
        assert_eq!(met(11), met(11));
        assert_ne!(met(11), met(12));
    }

    #[test]
    fn time_is_the_limit_unless_states_are() {
        let limits = Limits::of(&args(None, None, 1));
        assert!(
            !limits.are_reached(u64::MAX, Duration::from_secs(9)) && limits.are_reached(0, Duration::from_secs(10))
        );
        let limits = Limits::of(&args(Some(5), None, 1));
        assert!(!limits.are_reached(4, Duration::MAX) && limits.are_reached(5, Duration::ZERO));
    }

    #[test]
    fn a_panic_says_which_history_it_was() {
        let met = Summary { histories: 3, states: 99, ..Summary::default() };
        let broken = panicked(7, &met, &"index out of bounds");
        assert!(broken.told.contains("index out of bounds") && broken.told.contains("--seed 7 --jobs 1 --states 100"));
    }
}
