//! The crash explorer: random histories of a log on the simulated disk, crashed at every step and inside every
//! operation that changes the disk, recovered, and held against the promises.
//!
//! Everything runs in the caller's thread and follows from one seed; a [`Violation`] names the seed of its history, and
//! `explore(seed, 1)` finds it again.
//!
//! # What is checked
//!
//! - A power failure leaves the state after some prefix of the accepted operations, with every durable one; a kill, one
//!   with every written one. No legal image is refused.
//! - What one recovery showed, the next one shows, whatever a power failure takes after the first: also where the first
//!   recovery was cut short, and where a process was killed and its completed writes were not yet on the medium.
//! - A single damaged place is an error, or what it cost was not witnessed; a damaged index file costs nothing.
//! - Batches are refused exactly where the model refuses them, and a refused one leaves nothing behind.
//!
//! # Words
//!
//! A *state* is an image that was recovered and judged. A *life* is the time between two opens of one disk.

use std::fmt;

use super::class::Class;
use super::crash::{CrashPoint, Loose};
use super::disk::SimDisk;
use super::exhaust::Scene;
use super::history::{Broken, History, Plan};
use super::local::Contents;
use super::rng::Rng;
use super::shrink::shrink;
use crate::config::Config;
use crate::segment::recover::RecoveryReport;

/// One history in so many is a scene of which every image is tried.
const SCENES: usize = 24;

/// Opens a state with something else than the explorer's own thread: the log with its threads, on a real directory.
pub trait RealCheck {
    /// Opens the image (an independent disk, see [`SimDisk::export_to`]) and compares it with what recovery found.
    /// Returns whether it did: a state may be passed over, then the next one is offered.
    ///
    /// # Errors
    ///
    /// What differs, in words.
    fn check(&self, image: &SimDisk, config: &Config, expected: &Contents) -> Result<bool, String>;
}

/// A promise that does not hold.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Seed of the history: `explore(seed, 1)` finds the violation again.
    pub seed: u64,
    /// What does not hold.
    pub promise: String,
    /// The crash, kill or damage after which it does not.
    pub place: String,
    /// What happened before, a step a line: of the shortest history found that breaks the same promise.
    pub trace: String,
    /// Steps of the history up to the moment that broke the promise.
    pub steps: usize,
    /// Those of them that are left in the trace; no more than what breaks the promise needs, as far as that was found.
    pub steps_left: usize,
}

impl Violation {
    fn new(seed: u64, steps: usize, broken: Broken) -> Violation {
        let Broken { finding, visited, trace, .. } = broken;
        let (promise, place) = (finding.promise, finding.place);
        Violation { seed, promise, place, trace, steps, steps_left: visited.len() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Violation { seed, promise, place, trace, steps, steps_left } = self;
        writeln!(f, "{steps_left} of {steps} steps are enough:\n{trace}{place}\n{promise}")?;
        writeln!(f, "history {seed}; replay it with `ringwal torture --seed {seed} --states 1`, or with")?;
        write!(f, "`RINGWAL_SEED={seed} RINGWAL_STATES=1 cargo test -p ringwal --lib from_a_new_seed`")
    }
}

impl std::error::Error for Violation {}

/// What an exploration did: proof that it met what it is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Histories lived through, each on a disk of its own.
    pub histories: u64,
    /// Opens on which life went on.
    pub lives: u64,
    /// Steps of living logs.
    pub steps: u64,
    /// Batches accepted.
    pub batches: u64,
    /// Batches refused, as they should be.
    pub refused: u64,
    /// Moments at which crashes were tried.
    pub crash_points: u64,
    /// Those of them inside a recovery.
    pub crash_points_in_recovery: u64,
    /// Images recovered and judged.
    pub states: u64,
    /// Recoveries, with those that repeat another.
    pub recoveries: u64,
    /// Recoveries that cut something.
    pub cuts: u64,
    /// Recoveries that wrote frames again because nothing proved them durable.
    pub rewrites: u64,
    /// Recoveries that had nothing to decide.
    pub clean_opens: u64,
    /// Segments filled and left for the next.
    pub rolls: u64,
    /// Segments sealed.
    pub sealed: u64,
    /// Segments dropped.
    pub dropped: u64,
    /// Spares made of dropped segments.
    pub recycled: u64,
    /// Marks written.
    pub marks: u64,
    /// Batches with a truncation.
    pub truncations: u64,
    /// Those of them that reached into an older segment.
    pub truncations_across: u64,
    /// Crash points with several frames in flight.
    pub several_in_flight: u64,
    /// Crash points with frames in flight to several segments.
    pub rolling_in_flight: u64,
    /// Most frames in flight at a crash point.
    pub in_flight_max: usize,
    /// Writes in flight of which a crash left nothing.
    pub torn_absent: u64,
    /// ... the first unit only.
    pub torn_head: u64,
    /// ... all but the first unit.
    pub torn_tail: u64,
    /// ... all but one unit.
    pub torn_one_missing: u64,
    /// ... some units.
    pub torn_scattered: u64,
    /// ... everything.
    pub torn_whole: u64,
    /// Processes killed.
    pub kills: u64,
    /// Those of them with writes that were still queued.
    pub kills_with_queued_writes: u64,
    /// Lives ended by a failed write or sync.
    pub poisoned: u64,
    /// Batches refused because the disk was full.
    pub full: u64,
    /// States with a damaged place.
    pub damaged: u64,
    /// Those of them that gave an error.
    pub damage_noticed: u64,
    /// States that the [`RealCheck`] opened too.
    pub real_checks: u64,
    /// States that were opened for reading too.
    pub read_only_looks: u64,
    /// States that were opened without their index files too.
    pub without_indexes: u64,
    /// States that were opened with index files of an earlier time too.
    pub stale_indexes: u64,
    /// Recoveries in which an operation was to fail.
    pub failing_recoveries: u64,
    /// Those of them that it made fail.
    pub failed_recoveries: u64,
    /// Recoveries in which a read was to return wrong bytes.
    pub lied_to: u64,
    /// Those of them that gave an error.
    pub lies_noticed: u64,
    /// Writes that were to take a part at first.
    pub short_writes: u64,
    /// Pieces of housekeeping in which an operation was to fail.
    pub failing_housekeeping: u64,
    /// Times that a living log was read whole.
    pub reads: u64,
    /// Full disks that compaction made room on.
    pub relieved: u64,
    /// Scenes of which every image was tried.
    pub exhausted: u64,
    /// The images of those.
    pub exhausted_images: u64,
}

impl Summary {
    pub(super) fn note_fates(&mut self, point: &CrashPoint, fates: &[Class]) {
        let in_flight = point.loose_ends().iter().zip(fates).filter(|(end, _)| end.is_in_flight() && end.units() > 1);
        for (_, fate) in in_flight {
            *match fate {
                Class::Absent => &mut self.torn_absent,
                Class::Head => &mut self.torn_head,
                Class::Tail => &mut self.torn_tail,
                Class::OneMissing(_) => &mut self.torn_one_missing,
                Class::Whole => &mut self.torn_whole,
                Class::Scattered(_) | Class::Units(_) => &mut self.torn_scattered,
            } += 1;
        }
    }

    pub(super) fn note_report(&mut self, report: &RecoveryReport) {
        self.cuts += u64::from(report.bytes_cut > 0);
        self.rewrites += u64::from(report.frames_rewritten > 0);
        self.clean_opens += u64::from(report.was_clean);
    }

    pub(super) fn note_flights(&mut self, point: &CrashPoint) {
        let in_flight = |what: &Loose| matches!(what, Loose::Write { in_flight: Some(_), .. });
        let files: Vec<_> =
            point.loose_ends().iter().filter(|end| in_flight(&end.what)).map(|end| end.file.clone()).collect();
        self.in_flight_max = self.in_flight_max.max(files.len());
        self.several_in_flight += u64::from(files.len() > 1);
        self.rolling_in_flight += u64::from(files.windows(2).any(|pair| pair[0] != pair[1]));
    }
}

/// Explores at least so many states, history after history.
///
/// # Errors
///
/// The first violation.
///
/// # Example
///
/// ```
/// let summary = ringwal::sim::explore(7, 100)?;
/// assert!(summary.states >= 100 && summary.crash_points > 0);
/// # Ok::<(), Box<ringwal::sim::Violation>>(())
/// ```
pub fn explore(seed: u64, states: u64) -> Result<Summary, Box<Violation>> {
    explore_until(seed, |summary| summary.states >= states, None)
}

/// Lives through the one history that an input leads to: every choice of the history is a byte of it. What the judge
/// tries follows from the input as a whole.
///
/// # Errors
///
/// The violation.
#[cfg(feature = "fuzzing")]
pub(crate) fn explore_led_by(input: &[u8]) -> Result<Summary, Box<Violation>> {
    let mut summary = Summary::default();
    let seed = u64::from(crc32c::crc32c(input));
    let lived = History::run_by(Rng::led_by(input), seed, &Plan::default(), &mut summary, None);
    match lived {
        Ok(()) => Ok(summary),
        Err(broken) => Err(Box::new(Violation::new(seed, broken.visited.len(), *broken))),
    }
}

/// As [`explore`]; one state in a thousand is also opened by `real`.
///
/// # Errors
///
/// As for [`explore`].
pub fn explore_with(seed: u64, states: u64, real: &dyn RealCheck) -> Result<Summary, Box<Violation>> {
    explore_until(seed, |summary| summary.states >= states, Some(real))
}

/// Explores history after history until `is_enough` says so. It is asked before each history, with what was done so
/// far: it may report progress, count states, or look at a clock. One state in a thousand is also opened by `real`.
///
/// The first history has the seed itself, so that a [`Violation`]'s seed leads straight to it; the others have seeds
/// that follow from it. The same seed always gives the same histories in the same order.
///
/// # Errors
///
/// The first violation.
///
/// # Example
///
/// ```
/// use std::time::{Duration, Instant};
///
/// let began = Instant::now();
/// let is_enough = |_: &_| began.elapsed() > Duration::from_millis(50);
/// let summary = ringwal::sim::explore_until(7, is_enough, None)?;
/// println!("{} states in {} histories", summary.states, summary.histories);
/// # Ok::<(), Box<ringwal::sim::Violation>>(())
/// ```
pub fn explore_until(
    seed: u64,
    is_enough: impl FnMut(&Summary) -> bool,
    real: Option<&dyn RealCheck>,
) -> Result<Summary, Box<Violation>> {
    search(seed, is_enough, real).map_err(|(seed, broken)| {
        let steps = broken.visited.len();
        Box::new(Violation::new(seed, steps, *shrink(seed, broken)))
    })
}

/// Explores; a broken history is given as it is, with its seed.
fn search(
    seed: u64,
    mut is_enough: impl FnMut(&Summary) -> bool,
    real: Option<&dyn RealCheck>,
) -> Result<Summary, (u64, Box<Broken>)> {
    let mut summary = Summary::default();
    let (mut history_seed, mut seeds) = (seed, Rng::new(seed));
    while !is_enough(&summary) {
        live(history_seed, &mut summary, real).map_err(|broken| (history_seed, broken))?;
        history_seed = seeds.next_u64();
    }
    Ok(summary)
}

/// Lives through the history of a seed: a random one, or a scene of which everything is tried.
fn live(seed: u64, summary: &mut Summary, real: Option<&dyn RealCheck>) -> Result<(), Box<Broken>> {
    let mut kind = Rng::of_part(seed, &[0x5CE4E]);
    if kind.one_in(SCENES) {
        return Scene::draw(&mut kind).run(seed, summary).map(drop);
    }
    History::run(seed, &Plan::default(), summary, real)
}

#[cfg(test)]
mod tests;
