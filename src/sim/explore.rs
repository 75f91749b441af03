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
use super::history::History;
use super::local::Contents;
use super::rng::Rng;
use crate::config::Config;
use crate::segment::recover::RecoveryReport;

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
    /// What happened before, a step a line.
    pub trace: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Violation { seed, promise, place, trace } = self;
        write!(f, "history {seed} (replay with RINGWAL_SEED={seed} RINGWAL_STATES=1)\n{trace}{place}\n{promise}")
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
pub fn explore(seed: u64, states: u64) -> Result<Summary, Box<Violation>> {
    explore_until(seed, |summary| summary.states >= states, None)
}

/// Lives through the one history that an input leads to: every choice of the history is a byte of it.
///
/// # Errors
///
/// The violation.
#[cfg(feature = "fuzzing")]
pub(crate) fn explore_led_by(input: &[u8]) -> Result<Summary, Box<Violation>> {
    let mut summary = Summary::default();
    History::run_by(Rng::led_by(input), 0, &mut summary, None)?;
    Ok(summary)
}

/// As [`explore`]; one state in a thousand is also opened by `real`.
///
/// # Errors
///
/// As for [`explore`].
pub fn explore_with(seed: u64, states: u64, real: &dyn RealCheck) -> Result<Summary, Box<Violation>> {
    explore_until(seed, |summary| summary.states >= states, Some(real))
}

fn explore_until(
    seed: u64,
    is_enough: impl Fn(&Summary) -> bool,
    real: Option<&dyn RealCheck>,
) -> Result<Summary, Box<Violation>> {
    let mut summary = Summary::default();
    // The first history has the seed itself, so that a violation's seed leads straight to it.
    let (mut history_seed, mut seeds) = (seed, Rng::new(seed));
    while !is_enough(&summary) {
        History::run(history_seed, &mut summary, real)?;
        history_seed = seeds.next_u64();
    }
    Ok(summary)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Arc;
    use std::time::Instant;

    use super::*;
    use crate::engine::plant::{self, Plant};
    use crate::sim::{LocalLog, Mode};
    use crate::{Error, Log};

    /// A number from the environment.
    fn setting(name: &str) -> Option<u64> {
        std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
    }

    /// A seed that was never used before, unless the environment names one.
    fn fresh_seed() -> u64 {
        setting("RINGWAL_SEED").unwrap_or_else(|| {
            let mut bytes = [0; 8];
            getrandom::fill(&mut bytes).unwrap();
            u64::from_le_bytes(bytes)
        })
    }

    fn explore_and_tell(seed: u64, states: u64) -> Summary {
        let states = setting("RINGWAL_STATES").unwrap_or(states);
        println!("explores {states} states from seed {seed}");
        let began = Instant::now();
        let threaded = Threaded::default();
        let summary = explore_with(seed, states, &threaded).unwrap_or_else(|violation| panic!("{violation}"));
        assert!(summary.real_checks >= states / 1000 - 1, "one state in a thousand is opened with threads");
        println!("{} opens on a real directory", threaded.on_a_real_directory.get());
        println!("{summary:#?}\n{:.0} states a second", summary.states as f64 / began.elapsed().as_secs_f64());
        summary
    }

    /// Many states prove little if nothing happened in them.
    fn check_is_interesting(summary: &Summary) {
        let Summary { rolls, sealed, dropped, recycled, marks, refused, truncations_across, .. } = *summary;
        let Summary { several_in_flight, rolling_in_flight, in_flight_max, cuts, rewrites, clean_opens, .. } = *summary;
        let Summary { crash_points_in_recovery, kills, kills_with_queued_writes, poisoned, damage_noticed, .. } =
            *summary;
        let Summary { torn_absent, torn_head, torn_tail, torn_one_missing, torn_scattered, torn_whole, .. } = *summary;
        assert!([rolls, sealed, dropped, recycled, marks, refused].iter().all(|&count| count > 20), "{summary:#?}");
        assert!([truncations_across, several_in_flight, rolling_in_flight].iter().all(|&count| count > 20));
        assert!([cuts, rewrites, clean_opens, crash_points_in_recovery, kills].iter().all(|&count| count > 1000));
        assert!(kills_with_queued_writes > 100 && poisoned > 5 && damage_noticed > 1000 && in_flight_max >= 3);
        let classes = [torn_absent, torn_head, torn_tail, torn_one_missing, torn_scattered, torn_whole];
        assert!(classes.iter().all(|&count| count > 500));
    }

    #[test]
    fn no_crash_breaks_a_promise_from_a_fixed_seed() {
        let summary = explore_and_tell(1, 100_000);
        if summary.states >= 100_000 {
            check_is_interesting(&summary);
        }
    }

    /// Opens a state with the log's own threads: on the simulated disk, and on a real directory where its blocks are
    /// large enough for one.
    #[derive(Default)]
    struct Threaded {
        on_a_real_directory: Cell<u64>,
    }

    fn look(log: &Log, expected: &Contents) -> Result<(), String> {
        let entries: Result<Vec<_>, _> = log.iter(..).collect();
        let found = (entries.map_err(|error| error.to_string())?, log.state().compacted, log.meta());
        let meta: Vec<_> = expected.hard_state.clone().into_iter().collect();
        let wanted = (expected.entries.clone(), expected.compacted, meta);
        if found == wanted { Ok(()) } else { Err(format!("{found:?} instead of {wanted:?}")) }
    }

    impl RealCheck for Threaded {
        fn check(&self, image: &SimDisk, config: &Config, expected: &Contents) -> Result<bool, String> {
            let scratch = tempfile::tempdir().map_err(|error| error.to_string())?;
            image.export_to(scratch.path()).map_err(|error| error.to_string())?;
            match Log::open(scratch.path(), config.clone()) {
                Ok((log, _)) => {
                    look(&log, expected)?;
                    self.on_a_real_directory.set(self.on_a_real_directory.get() + 1);
                }
                Err(Error::Config(_)) => {}
                Err(error) => return Err(error.to_string()),
            }
            image.set_mode(Mode::Random);
            let (log, _) = Log::open_on(Arc::new(image.clone()), config.clone()).map_err(|error| error.to_string())?;
            look(&log, expected).map(|()| true)
        }
    }

    /// Opens what it is given once more in this thread, and counts.
    struct Again(Cell<u64>);

    impl RealCheck for Again {
        fn check(&self, image: &SimDisk, config: &Config, expected: &Contents) -> Result<bool, String> {
            self.0.set(self.0.get() + 1);
            let log = LocalLog::open(image, config.clone(), 1).map_err(|error| error.to_string())?;
            let found = log.contents().map_err(|error| error.to_string())?;
            if found == *expected { Ok(self.0.get().is_multiple_of(2)) } else { Err(format!("{found:?}")) }
        }
    }

    #[test]
    fn one_state_in_a_thousand_is_opened_by_the_real_check_too() {
        let again = Again(Cell::new(0));
        let summary = explore_with(3, 5_000, &again).unwrap_or_else(|violation| panic!("{violation}"));
        assert!((3..6).contains(&summary.real_checks), "{}", summary.real_checks);
        assert_eq!(again.0.get(), 2 * summary.real_checks, "a state that was passed over is made up for");
    }

    #[test]
    fn no_crash_breaks_a_promise_from_a_new_seed() {
        explore_and_tell(fresh_seed(), 100_000);
    }

    /// Explores with a planted mistake until it is found.
    fn finds(plant: Plant) {
        let began = Instant::now();
        let found = plant::with(plant, || explore_until(1, |_| began.elapsed().as_secs() >= 60, None));
        let violation = found.expect_err("the explorer does not find the planted mistake");
        println!(
            "{plant:?} is found after {:?}, in history {}: {}",
            began.elapsed(),
            violation.seed,
            violation.promise
        );
        let again = plant::with(plant, || explore(violation.seed, 1)).expect_err("a violation's seed replays it");
        assert_eq!((&again.promise, &again.place), (&violation.promise, &violation.place));
        assert!(explore(violation.seed, 1).is_ok(), "without the mistake the same history holds");
    }

    #[test]
    fn it_can_fail_ack_before_completion() {
        finds(Plant::AckBeforeCompletion);
    }

    #[test]
    fn it_can_fail_ack_out_of_order() {
        finds(Plant::AckOutOfOrder);
    }

    #[test]
    fn it_can_fail_neither_chain_nor_epoch() {
        finds(Plant::NeitherChainNorEpoch);
    }

    #[test]
    fn it_can_fail_no_watermark() {
        finds(Plant::NoWatermark);
    }

    #[test]
    fn it_can_fail_drop_before_next_base() {
        finds(Plant::DropBeforeNextBase);
    }

    #[test]
    fn it_can_fail_follow_without_look() {
        finds(Plant::FollowWithoutLook);
    }
}
