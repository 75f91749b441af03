//! The kit for programs that embed the log: crashes a program's own state machine everywhere. What it is for and how it is
//! used stands at [`crash_everywhere`].
//!
//! A workload is run anew for each crash point, with the power failing there, rather than recorded once: so it needs no
//! more memory than one disk, the program meets the errors that a dying disk gives it, and the log with its threads can
//! be tried as well. A crash point is the number of an instant of the disk, from 1; the last one is the end.
//!
//! Knows no log: what is promised, recovered and compared is the program's.

use std::cell::Cell;
use std::fmt::{self, Debug, Display};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use super::class::Class;
use super::crash::{CrashPoint, Landing};
use super::disk::{InFlight, Mode, SimDisk, SimOptions};
use super::fault::FaultRates;
use super::rng::Rng;

/// Runs a program's own state machine over a simulated disk, crashes it at every moment at which the disk changes, and lets
/// the program's own recovery face what each crash may leave. With the usual settings of [`CrashTest`].
///
/// A test says two things:
///
/// - the *workload*: what the program does, on [`Life::disk`], with a [`Life::promise`] at each moment from which on
///   somebody may rely on something (a client has its answer, a vote was sent, a file was deleted elsewhere);
/// - the *check*: the program's own recovery on the disk that a crash left, and whether every promise that was made before
///   the crash is kept. What the check returns is what recovery shows to the world: after one more crash the next
///   recovery must show the same. `()` compares nothing. A panic in it is a failure like an error.
///
/// The workload is run once, without faults, to count the moments at which the disk changes, and then once for each of
/// them: there the power fails, every later call returns an error, and the promises made until then are those that count.
/// Return these errors from the workload; a panic after the power failed is an end as well. Files that the program keeps
/// beside the log belong on the same disk (see [`Disk`](crate::disk::Disk)), or they take no part in the crash.
///
/// That is as many runs as there are moments, so keep the workload short. What a longer one adds are rolls and
/// compactions, and small segments make those come soon ([`Config`](crate::Config): `segment_bytes` of 16 KiB with
/// `block_bytes` of 512).
///
/// Images of each moment: all combinations of what may be lost, where they are few, else the extremes and a sample, and
/// some of a killed process. Some recoveries are themselves crashed at every moment, and every recovery is followed by one
/// more crash.
///
/// ```
/// use ringwal::sim::{SimDisk, crash_everywhere};
/// use ringwal::{Config, Error};
///
/// /// The sum of all that was ever added: its state is the log.
/// fn sum(disk: &SimDisk) -> Result<u64, Error> {
///     let log = disk.open_log(Config::default().segment_bytes(16 << 10).block_bytes(Some(512)))?;
///     log.iter(..).map(|entry| Ok(u64::from(entry?.command[0]))).sum()
/// }
///
/// let tried = crash_everywhere(
///     1,
///     |life| {
///         let mut log = life.disk().open_log(Config::default().segment_bytes(16 << 10).block_bytes(Some(512)))?;
///         for n in 1..=5u8 {
///             log.append(vec![n])?;
///             life.promise(u64::from(n)); // from now on somebody relies on it
///         }
///         Ok::<(), Error>(())
///     },
///     |disk, promised| {
///         let found = sum(disk)?;
///         assert!(found >= promised.iter().sum::<u64>(), "{found} after {promised:?}");
///         Ok::<u64, Error>(found)
///     },
/// )
/// .unwrap_or_else(|failure| panic!("{failure}"));
/// assert!(tried.points > 10 && tried.images > 100);
/// ```
///
/// # With threads or without
///
/// [`SimDisk::open_log`] gives a [`LocalLog`](super::LocalLog): all of it in the caller's thread, so that everything follows
/// from the seed and a crash point can be run again by its number. Use this where you can.
///
/// [`Log::open_on`](crate::Log::open_on) gives the log with its threads: for code that needs callbacks, subscriptions,
/// futures or several producers. What the kit finds is as true; but threads decide what comes first, so the number of a
/// crash point leads to a moment like the one that failed, not to the same. [`CrashFailure::image`] holds the disk that
/// failed.
///
/// ```
/// use std::sync::Arc;
///
/// use ringwal::sim::{SimDisk, crash_everywhere};
/// use ringwal::{Config, Error, Log};
///
/// fn open(disk: &SimDisk) -> Result<Log, Error> {
///     let config = Config::default().segment_bytes(16 << 10).block_bytes(Some(512));
///     Log::open_on(Arc::new(disk.clone()), config).map(|(log, _report)| log)
/// }
///
/// let tried = crash_everywhere(
///     1,
///     |life| open(life.disk())?.append("x").map(|index| life.promise(index)),
///     |disk, promised| -> Result<(), Error> {
///         let log = open(disk)?;
///         promised.iter().try_for_each(|&index| log.get(index).map(drop))
///     },
/// );
/// assert!(tried.is_ok_and(|tried| tried.promises > 0));
/// ```
///
/// # Errors
///
/// The first failure: of the check after a crash, or of the workload while nothing was wrong.
pub fn crash_everywhere<P, S, E, F>(
    seed: u64,
    workload: impl FnMut(&Life<P>) -> Result<(), E>,
    check: impl FnMut(&SimDisk, &[P]) -> Result<S, F>,
) -> Result<CrashReport, Box<CrashFailure>>
where
    P: Clone,
    S: PartialEq + Debug,
    E: Display,
    F: Display,
{
    CrashTest::new(seed).run(workload, check)
}

/// One run of a workload: its disk, and what it promised.
pub struct Life<P> {
    disk: SimDisk,
    number: usize,
    promised: Mutex<Vec<P>>,
}

impl<P> Life<P> {
    fn new(disk: SimDisk, number: usize, promised: Vec<P>) -> Life<P> {
        Life { disk, number, promised: Mutex::new(promised) }
    }

    /// The disk: everything that is to survive belongs on it.
    pub fn disk(&self) -> &SimDisk {
        &self.disk
    }

    /// Which life it is on its disk, from 1; see [`CrashTest::lives`].
    pub fn number(&self) -> usize {
        self.number
    }

    /// From this moment on, somebody relies on this. A promise is never taken back.
    pub fn promise(&self, promise: P) {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner).push(promise);
    }

    /// Everything promised so far, in earlier lives too, in order.
    pub fn promised(&self) -> Vec<P>
    where
        P: Clone,
    {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What a crash test tries: a seed, and how much.
///
/// ```
/// use ringwal::sim::{CrashTest, FaultRates};
/// use ringwal::{Config, Error};
///
/// let config = || Config::default().segment_bytes(16 << 10).block_bytes(Some(512));
/// let tried = CrashTest::new(7)
///     .lives(2)
///     .faults(FaultRates { short_writes: 5, ..FaultRates::default() })
///     .run(
///         |life| life.disk().open_log(config())?.append("x").map(|index| life.promise(index)),
///         |disk, promised| -> Result<(), Error> {
///             let log = disk.open_log(config())?;
///             promised.iter().try_for_each(|&index| log.get(index).map(drop))
///         },
///     );
/// assert!(tried.is_ok_and(|tried| tried.lives > tried.points));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct CrashTest {
    seed: u64,
    points_max: u64,
    images: usize,
    lives: usize,
    faults: FaultRates,
    only: Option<u64>,
}

/// Settings.
impl CrashTest {
    /// A test with the usual settings. Everything left to chance follows from the seed.
    pub fn new(seed: u64) -> CrashTest {
        CrashTest { seed, points_max: 1000, images: 32, lives: 1, faults: FaultRates::default(), only: None }
    }

    /// Crash points that are tried at most (1000): of more, some are drawn.
    #[must_use]
    pub fn points_max(mut self, points: u64) -> CrashTest {
        self.points_max = points.max(1);
        self
    }

    /// Images of a power failure that are tried at each point (32): all there are, where they are no more.
    #[must_use]
    pub fn images(mut self, images: usize) -> CrashTest {
        self.images = images.max(1);
        self
    }

    /// How often the workload lives on one disk (1): after a crash, or after a kill, it begins again on what that left, and
    /// its earlier promises still count. The workload must be able to go on from whatever its recovery finds.
    #[must_use]
    pub fn lives(mut self, lives: usize) -> CrashTest {
        self.lives = lives.max(1);
        self
    }

    /// Faults that strike the workload by chance (none). Where any did, it may end with an error.
    #[must_use]
    pub fn faults(mut self, rates: FaultRates) -> CrashTest {
        self.faults = rates;
        self
    }

    /// Tries one crash point only: that of a [`CrashFailure`].
    #[must_use]
    pub fn only_point(mut self, point: u64) -> CrashTest {
        self.only = Some(point);
        self
    }
}

/// How much a crash test tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CrashReport {
    /// Moments at which the power failed.
    pub points: u64,
    /// Those of them that lay in the middle of a recovery.
    pub points_in_recovery: u64,
    /// Images checked, those of killed processes among them.
    pub images: u64,
    /// Processes killed.
    pub kills: u64,
    /// Runs of the workload.
    pub lives: u64,
    /// Faults that struck.
    pub faults: u64,
    /// Promises made by all runs together.
    pub promises: u64,
}

/// What did not hold, and how to see it again.
#[derive(Clone, Debug)]
pub struct CrashFailure {
    /// The seed of the test.
    pub seed: u64,
    /// The crash point, for [`CrashTest::only_point`]; 0 where the workload failed without one.
    pub point: u64,
    /// The moment, in words.
    pub moment: String,
    /// What the crash kept and lost, in words.
    pub crash: String,
    /// What the check, or the workload, says.
    pub reason: String,
    /// The disk as the check found it.
    pub image: SimDisk,
}

impl Display for CrashFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CrashFailure { seed, point, moment, crash, reason, .. } = self;
        write!(f, "{reason}\n{moment}\n{crash}again: CrashTest::new({seed}).only_point({point}), same settings")
    }
}

impl std::error::Error for CrashFailure {}

/// Running it.
impl CrashTest {
    /// Runs the test; see [`crash_everywhere`].
    ///
    /// # Errors
    ///
    /// The first failure.
    pub fn run<P, S, E, F>(
        self,
        workload: impl FnMut(&Life<P>) -> Result<(), E>,
        check: impl FnMut(&SimDisk, &[P]) -> Result<S, F>,
    ) -> Result<CrashReport, Box<CrashFailure>>
    where
        P: Clone,
        S: PartialEq + Debug,
        E: Display,
        F: Display,
    {
        let mut workload = workload;
        let mut check = check;
        let mut work = |life: &Life<P>| guarded(|| workload(life).map_err(|error| error.to_string()));
        let mut look =
            |disk: &SimDisk, promised: &[P]| guarded(|| check(disk, promised).map_err(|error| error.to_string()));
        let mut runner = Runner { test: self, report: CrashReport::default(), place: Place::default() };
        runner.run(&mut work, &mut look)?;
        Ok(runner.report)
    }

    /// The points to try of so many.
    fn points(&self, count: u64) -> Vec<u64> {
        match self.only {
            Some(point) => vec![point],
            None if count <= self.points_max => (1..=count).collect(),
            None => {
                // One out of each of equal parts.
                let mut rng = Rng::new(self.seed);
                let part = |nth: u64| nth * count / self.points_max;
                let draw = |nth| part(nth) + 1 + rng.below((part(nth + 1) - part(nth)).max(1) as usize) as u64;
                (0..self.points_max).map(draw).collect()
            }
        }
    }
}

/// The result of code that is not ours: a panic is an error too.
fn guarded<T>(code: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(code)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        Err(text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("it panics").to_string())
    })
}

type Work<'a, P> = &'a mut dyn FnMut(&Life<P>) -> Result<(), String>;
type Look<'a, P, S> = &'a mut dyn FnMut(&SimDisk, &[P]) -> Result<S, String>;

/// Where a test is.
#[derive(Default)]
struct Place {
    point: u64,
    moment: String,
}

struct Runner {
    test: CrashTest,
    report: CrashReport,
    place: Place,
}

impl Runner {
    fn run<P: Clone, S: PartialEq + Debug>(
        &mut self,
        work: Work<'_, P>,
        look: Look<'_, P, S>,
    ) -> Result<(), Box<CrashFailure>> {
        let whole = self.live(Life::new(self.disk(), 1, Vec::new()), None, work)?;
        let instants = whole.disk.instants();
        for point in self.test.points(instants + 1) {
            self.place.point = point;
            let mut rng = Rng::new(self.test.seed ^ point);
            let mut life = self.live(Life::new(self.disk(), 1, Vec::new()), Some(point - 1), work)?;
            self.crash(&life, &mut rng, look)?;
            for number in 2..=self.test.lives {
                let next = Life::new(next_disk(&life.disk.crash_point(), &mut rng), number, life.promised());
                life = self.live(next, Some(rng.below(instants as usize + 1) as u64), work)?;
                self.crash(&life, &mut rng, look)?;
            }
        }
        Ok(())
    }

    fn disk(&self) -> SimDisk {
        SimDisk::with_options(SimOptions { seed: self.test.seed, ..SimOptions::default() })
    }

    /// Runs the workload until the power fails after so many instants, or to its end.
    fn live<P: Clone>(
        &mut self,
        life: Life<P>,
        instants: Option<u64>,
        work: Work<'_, P>,
    ) -> Result<Life<P>, Box<CrashFailure>> {
        self.report.lives += 1;
        let (disk, before) = (&life.disk, life.promised().len());
        if let Some(instants) = instants {
            disk.fail_by_chance(self.test.faults, Rng::new(self.test.seed ^ self.place.point).next_u64());
            disk.power_off_after(instants);
        }
        let result = work(&life);
        let promises = life.promised().len();
        self.report.promises += (promises - before) as u64;
        self.report.faults += disk.struck().len() as u64;
        self.place.moment = format!("life {}, {promises} promises, {}", life.number, moment(disk));
        match result {
            Err(reason) if !disk.is_dead() && disk.struck().is_empty() => {
                let reason = format!("the workload fails though nothing is wrong with the disk: {reason}");
                Err(self.failure(reason, String::new(), disk.copy_at_rest()))
            }
            _ => Ok(life),
        }
    }

    fn failure(&self, reason: String, crash: String, image: SimDisk) -> Box<CrashFailure> {
        let Place { point, moment } = &self.place;
        Box::new(CrashFailure { seed: self.test.seed, point: *point, moment: moment.clone(), crash, reason, image })
    }

    /// Tries what a crash at the end of a life may leave.
    fn crash<P: Clone, S: PartialEq + Debug>(
        &mut self,
        life: &Life<P>,
        rng: &mut Rng,
        look: Look<'_, P, S>,
    ) -> Result<(), Box<CrashFailure>> {
        self.report.points += 1;
        let (point, promised) = (life.disk.crash_point(), life.promised());
        let crashed_again = rng.below(self.test.images);
        for (nth, fates) in point.fates(self.test.images, rng.next_u64()).enumerate() {
            let crash = format!("power failure:\n{}", point.describe(&fates));
            let image = point.image(&fates);
            self.check(image, &promised, &crash, nth == crashed_again || nth == 0, rng, look)?;
        }
        for _ in 0..2 {
            self.report.kills += 1;
            let (killed, crash) = kill(&point, rng);
            self.check(killed, &promised, &crash, false, rng, look)?;
        }
        Ok(())
    }

    /// Checks one image, crashes what recovery leaves of it, and, where that is wanted, recovery itself.
    fn check<P: Clone, S: PartialEq + Debug>(
        &mut self,
        image: SimDisk,
        promised: &[P],
        crash: &str,
        crashes_recovery: bool,
        rng: &mut Rng,
        look: Look<'_, P, S>,
    ) -> Result<(), Box<CrashFailure>> {
        if crashes_recovery {
            image.start_recording();
        }
        let shown = self.look(&image, promised, crash, look)?;
        let inside = image.take_recording();
        let (again, then) = draw(&image.crash_point(), rng);
        let crash_after = format!("{crash}then recovery, then {then}");
        let before = again.copy_at_rest();
        let seen = self.look(&again, promised, &crash_after, look)?;
        if seen != shown {
            let reason = format!("one recovery shows {shown:?}, the next one after another crash {seen:?}");
            return Err(self.failure(reason, crash_after, before));
        }
        for point in &inside {
            self.report.points_in_recovery += 1;
            let (torn, then) = draw(point, rng);
            self.look(&torn, promised, &format!("{crash}then, during recovery, {then}"), look)?;
        }
        Ok(())
    }

    /// Lets the program recover on an image.
    fn look<P: Clone, S>(
        &mut self,
        image: &SimDisk,
        promised: &[P],
        crash: &str,
        look: Look<'_, P, S>,
    ) -> Result<S, Box<CrashFailure>> {
        self.report.images += 1;
        let before = image.copy_at_rest();
        look(image, promised).map_err(|reason| self.failure(reason, crash.into(), before))
    }
}

/// The moment at which a workload ended, in words.
fn moment(disk: &SimDisk) -> String {
    match disk.died_in() {
        Some((op, nth)) => format!("the power fails in the middle of {op:?} number {nth}"),
        None => "the workload is through".into(),
    }
}

/// The disk on which the next life begins: after a power failure or, now and then, after a kill, which leaves things as
/// they were and yet not durable.
fn next_disk(point: &CrashPoint, rng: &mut Rng) -> SimDisk {
    if rng.one_in(4) { kill(point, rng).0 } else { point.random_image(rng.next_u64()) }
}

/// A random image of a power failure, and its story.
fn draw(point: &CrashPoint, rng: &mut Rng) -> (SimDisk, String) {
    let fates = match rng.below(4) {
        0 => vec![Class::Absent; point.loose_ends().len()],
        _ => point.random_fates(rng.next_u64()),
    };
    (point.image(&fates), format!("power failure:\n{}", point.describe(&fates)))
}

/// The disk of a killed process, with nothing queued any more, and its story.
fn kill(point: &CrashPoint, rng: &mut Rng) -> (SimDisk, String) {
    let story = Cell::new(String::from("kill:\n"));
    let killed = point.kill(|operation: &InFlight| {
        let landing = match rng.below(3) {
            0 => Landing::Queued,
            _ => Landing::Units(Class::random(operation.bytes.div_ceil(super::UNIT_BYTES), rng)),
        };
        let mut told = story.take();
        told.push_str(&format!("{} at {}: {landing:?}\n", operation.name, operation.offset));
        story.set(told);
        landing
    });
    killed.complete_all();
    killed.set_mode(Mode::Random);
    (killed, story.into_inner())
}
