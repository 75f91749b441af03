//! `ringwal torture --kill9`: the real engine in a process of its own, killed at random moments, on one directory again
//! and again; after each kill the log is opened and everything in it compared with what it must hold.
//!
//! - `victim`: the process that writes; `script`: what it writes
//! - `running`: starting, hearing and killing it
//! - `model`: what must be in the log, and the comparison
//!
//! A kill takes nothing that was written along with the process, so in every durability each acknowledged batch must be
//! there, and what is found becomes the floor of the next round. Two rounds of three open the log for writing: at once,
//! beside the dying process, or when it is gone. The third only looks, so that the next process finds the directory as
//! the kill left it. An open for writing goes on with some batches at once. In one round of ten every frame of every segment
//! is verified.

mod model;
mod running;
mod script;
pub(crate) mod victim;

use std::fs::{self, File};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

use crate::args::{TortureArgs, VictimArgs};
use crate::bench::counters;
use crate::bench::place::Root;
use crate::engine::{Config, Error, Log, RecoveryReport, Rng, Verify};
use crate::interrupt;
use crate::output;
use crate::progress::Progress;
use crate::text::count;
use crate::torture::Broken;
use crate::torture::kill9::model::{Follower, batch_of, shape_of};
use crate::torture::kill9::running::{Moment, Running, Said, has_queued_writes};
use crate::torture::kill9::script::Script;

const ROUNDS: u32 = 20;
const PRODUCERS: u32 = 4;
/// Fewer than so many batches are written after an open.
const GOES_ON_MAX: usize = 8;
/// Marks the scripts of what is written after an open, among the rounds'.
const AFTERLIFE: u32 = 1 << 31;
/// How long a process needs to die if nothing keeps it.
const DYING: Duration = Duration::from_millis(10);

/// What the rounds came to.
#[derive(Debug, Default, Serialize)]
struct Killed {
    version: &'static str,
    file_system: String,
    seed: u64,
    rounds: u32,
    producers: u32,
    seconds: f64,
    /// Acknowledgements that were told, and found to be true.
    acknowledgements: u64,
    batches: u64,
    /// Entries compared with what was appended, over all rounds.
    entries_compared: u64,
    killed_before_the_log_was_open: u32,
    /// Kills after which the process could not die for a while, or had its segments locked still: its writes had to end.
    kills_with_writes_under_way: u32,
    opened_beside_the_dying: u32,
    looked_at_only: u32,
    looked_at_beside_the_living: u32,
    /// Those of them that a writer of such small segments did not leave the time to end.
    looks_overtaken: u32,
    verified_in_full: u32,
    opens_that_cut: u32,
    bytes_cut: u64,
    frames_rewritten: u64,
    segments: u64,
    truncations: u64,
    compactions: u64,
    violation: Option<String>,
}

/// The rounds under way.
struct Rounds {
    /// What every process that is killed is told, but for its round.
    victim: VictimArgs,
    rng: Rng,
    follower: Follower,
    killed: Killed,
}

/// Runs the rounds and tells what was found. After a broken promise the log stays where it is.
pub(crate) fn run(args: &TortureArgs, seed: u64, json_file: Option<File>) -> Result<()> {
    let root = Root::take(args.dir.as_deref())?;
    let log = root.path().join("log");
    let file_system = counters::file_system(root.path());
    eprintln!("seed {seed} (it repeats what is written and when to kill, but no two runs are alike)");
    eprintln!("log in {} ({file_system})", log.display());
    let killed = Killed {
        version: env!("CARGO_PKG_VERSION"),
        file_system,
        seed,
        producers: args.producers.unwrap_or(PRODUCERS),
        ..Killed::default()
    };
    let producers = killed.producers;
    let victim = VictimArgs { dir: log, seed, producers, cgroup: args.cgroup.clone(), ..VictimArgs::default() };
    let mut rounds = Rounds { victim, rng: Rng::new(seed), follower: Follower::new(seed), killed };
    let outcome = rounds.run(args.rounds.unwrap_or(ROUNDS));
    let broken = outcome.as_ref().err().and_then(|error| error.downcast_ref::<Broken>());
    rounds.killed.violation = broken.map(ToString::to_string);
    if !args.keep && broken.is_none() {
        // Best effort: a log that cannot be removed is no reason to hide what was found.
        let _ = fs::remove_dir_all(&rounds.victim.dir);
    }
    if outcome.is_ok() || broken.is_some() {
        output::publish(&rounds.killed, || rounds.killed.table(), args.json.as_deref(), json_file)?;
    }
    outcome
}

impl Rounds {
    fn run(&mut self, rounds: u32) -> Result<()> {
        let begin = Instant::now();
        let mut progress = Progress::start("killing", u64::from(rounds));
        for round in 0..rounds {
            interrupt::check()?;
            let outcome = self.round(round);
            self.killed.seconds = begin.elapsed().as_secs_f64();
            outcome.map_err(|error| self.told(round, error))?;
            self.killed.rounds += 1;
            progress.at(u64::from(round) + 1, || format!("{} acknowledgements", count(self.killed.acknowledgements)));
        }
        let full = victim::config(self.killed.seed, 0).verify(Verify::Full);
        let whole = self.open(full).and_then(|(log, _)| {
            self.check(rounds, &log, batch_of(&log)?, 0)?;
            log.close().map_err(victim::blame)
        });
        self.killed.verified_in_full += 1;
        self.killed.seconds = begin.elapsed().as_secs_f64();
        whole.map_err(|error| self.told(rounds, error))
    }

    /// Where it happened, if it is a broken promise.
    fn told(&self, round: u32, error: anyhow::Error) -> anyhow::Error {
        if !error.is::<Broken>() {
            return error.context(format!("round {round}"));
        }
        let (seed, log) = (self.killed.seed, self.victim.dir.display());
        Broken(format!("A PROMISE WAS BROKEN in round {round} of seed {seed}: {error:#}\nthe log stays in {log}"))
            .into()
    }

    fn round(&mut self, round: u32) -> Result<()> {
        let mut running = Running::start(&VictimArgs { round, ..self.victim.clone() })?;
        let Moment { acks, then } = Moment::draw(&mut self.rng);
        running.wait_for(acks)?;
        if acks > 0 && self.rng.one_in(6) {
            self.look_beside(&running)?;
        }
        thread::sleep(then);
        running.kill()?;
        // Once there is a log: one that was never made whole cannot be looked at.
        let only_looks = round % 3 == 2;
        let is_dying_slowly = if only_looks || self.rng.one_in(2) {
            let dying = Instant::now();
            running.wait()?;
            dying.elapsed() > DYING
        } else {
            self.killed.opened_beside_the_dying += 1;
            self.rng.one_in(2) && {
                thread::sleep(DYING);
                has_queued_writes(&self.victim.dir)
            }
        };
        self.killed.kills_with_writes_under_way += u32::from(is_dying_slowly);
        let config = victim::config(self.victim.seed, round);
        let (log, report) = if only_looks { self.look()? } else { self.open(config)? };
        let found = batch_of(&log)?;
        let goes_on = if only_looks { 0 } else { self.rng.below(GOES_ON_MAX) };
        self.go_on(round, &log, goes_on)?;
        running.wait()?;
        self.check_what_was_said(round, running.said()?, found)?;
        self.check(round, &log, found, goes_on as u64)?;
        self.note(round, &log, &report);
        let state = log.state();
        if !only_looks && state.durable != state.last.map(|(index, _)| index) && goes_on == 0 {
            return Err(Broken(format!("recovery left entries that are not durable: {state:?}")).into());
        }
        log.close().map_err(victim::blame)
    }

    /// Reads the log beside the process that writes it: it has what was acknowledged before, and nothing that was never
    /// appended. What is compacted meanwhile may be gone under the reader's hands.
    fn look_beside(&mut self, running: &Running) -> Result<()> {
        self.killed.looked_at_beside_the_living += 1;
        let acked = running.acked();
        match self.read_beside(acked) {
            Err(error) if is_overtaken(&error) => self.killed.looks_overtaken += 1,
            Err(error) => return Err(Broken(format!("beside the process that writes: {error}")).into()),
            Ok(Some(wrong)) => return Err(Broken(format!("beside the process that writes: {wrong}")).into()),
            Ok(None) => {}
        }
        Ok(())
    }

    /// What a reader sees that cannot be.
    fn read_beside(&self, acked: u64) -> Result<Option<String>, Error> {
        let (log, _) = Log::open_read_only(&self.victim.dir)?;
        let last = batch_of(&log).unwrap_or(0);
        if last < acked {
            return Ok(Some(format!("batch {acked} was acknowledged, and the last in the log is {last}")));
        }
        for entry in log.iter(..) {
            let entry = entry?;
            if !script::is_whole(self.victim.seed, &entry) {
                return Ok(Some(format!("nobody appended this entry: {entry:?}")));
            }
        }
        Ok(None)
    }

    /// Life goes on at once, by a script of its own: what a dying process still writes must not land on top of it.
    fn go_on(&mut self, round: u32, log: &Log, batches: usize) -> Result<()> {
        let mut script = Script::new(self.victim.seed, round | AFTERLIFE, shape_of(log)?);
        for _ in 0..batches {
            let steps = script.next();
            log.write(script::batch(self.victim.seed, script.batch(), &steps)).map_err(victim::blame)?;
        }
        Ok(())
    }

    fn open(&self, config: Config) -> Result<(Log, RecoveryReport)> {
        Log::open(&self.victim.dir, config).map_err(victim::blame)
    }

    fn look(&mut self) -> Result<(Log, RecoveryReport)> {
        self.killed.looked_at_only += 1;
        Log::open_read_only(&self.victim.dir).map_err(victim::blame)
    }

    fn check_what_was_said(&mut self, round: u32, said: Said, found: u64) -> Result<()> {
        let Some(start) = said.start else {
            self.killed.killed_before_the_log_was_open += 1;
            return Ok(());
        };
        let started = self.follower.start(round, start);
        started.map_err(|error| Broken(format!("the process found: {error:#}")))?;
        if let Some(acked) = said.acked {
            if found < acked {
                return Err(
                    Broken(format!("batch {acked} was acknowledged, and the log ended with batch {found}")).into()
                );
            }
            self.killed.batches += acked - start;
            self.killed.acknowledgements += said.acks;
        }
        Ok(())
    }

    /// The log ended with batch `found`, and so many were written to it since.
    fn check(&mut self, round: u32, log: &Log, found: u64, since: u64) -> Result<()> {
        let broken = |error: anyhow::Error| Broken(format!("{error:#}"));
        if since > 0 {
            self.follower.start(round | AFTERLIFE, found).map_err(broken)?;
        }
        self.killed.entries_compared += self.follower.check(found + since, log).map_err(broken)?;
        Ok(())
    }

    fn note(&mut self, round: u32, log: &Log, report: &RecoveryReport) {
        self.killed.verified_in_full += u32::from(round % 10 == 9 && round % 3 != 2);
        self.killed.opens_that_cut += u32::from(report.bytes_cut > 0);
        self.killed.bytes_cut += report.bytes_cut;
        self.killed.frames_rewritten += report.frames_rewritten;
        self.killed.segments = log.segments().last().map_or(0, |segment| segment.sequence);
        (self.killed.truncations, self.killed.compactions) =
            (self.follower.counts.truncations, self.follower.counts.compactions);
    }
}

/// Whether a writer that drops segments, or makes new ones of them, was faster than a reader.
fn is_overtaken(error: &Error) -> bool {
    match error {
        Error::Busy | Error::Compacted { .. } => true,
        Error::Io { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

impl Killed {
    /// The result in words, a count a line.
    fn table(&self) -> String {
        let outcome = match self.violation {
            None => "no acknowledgement was lost",
            Some(_) => "A PROMISE WAS BROKEN",
        };
        let (seed, rounds) = (self.seed, self.rounds);
        let mut table =
            format!("\n{outcome} in {rounds} kills on {}: seed {seed}, {:.1} s\n\n", self.file_system, self.seconds);
        let of_rounds = |rounds: u32| u64::from(rounds);
        for (number, what) in [
            (self.acknowledgements, "acknowledgements were told, and the batches were there"),
            (self.batches, "batches were acknowledged"),
            (self.entries_compared, "entries were compared after reopening"),
            (self.truncations, "truncations in the log"),
            (self.compactions, "compactions"),
            (self.segments, "segments, of which few are left"),
            (of_rounds(self.killed_before_the_log_was_open), "processes killed before the log was open"),
            (of_rounds(self.kills_with_writes_under_way), "left writes under way that had to end first"),
            (of_rounds(self.opened_beside_the_dying), "opens beside the dying process"),
            (of_rounds(self.looked_at_only), "rounds only looked, and left the log as it was"),
            (of_rounds(self.looked_at_beside_the_living), "looks beside the living process"),
            (of_rounds(self.looks_overtaken), "of them were overtaken by it"),
            (of_rounds(self.verified_in_full), "opens verified every frame"),
            (of_rounds(self.opens_that_cut), "opens cut a torn tail"),
            (self.bytes_cut, "bytes were cut"),
            (self.frames_rewritten, "frames were written again"),
        ] {
            table.push_str(&format!("{:>12} {what}\n", count(number)));
        }
        table
    }
}
