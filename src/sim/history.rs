//! Random histories of a log: what is asked of it, in which order its writes complete, when housekeeping runs, what
//! fails, and when the power does; several lives on one disk.
//!
//! Everything follows from one seed. After each step, and inside each, the [`Judge`] looks at crashes.
//!
//! Every step has a generator of its own, made of the seed and its place ([`At`]): a [`Plan`] may leave steps and lives
//! out, and those that stay do what they did, as far as the log they find lets them. That is how a long history is made
//! a short one that fails in the same way (see [`super::shrink`]). How closely a step is judged changes nothing of what
//! the log goes through.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::class::Class;
use super::crash::CrashPoint;
use super::disk::SimDisk;
use super::draw::{Drawer, Temper, payload};
use super::explore::{RealCheck, Summary};
use super::fault::{EIO, FaultRule};
use super::judge::{Effort, Finding, Judge, Promise, draw_fault};
use super::local::LocalLog;
use super::model::Refused;
use super::rng::Rng;
use super::tale::Tale;
use super::trace::Step;
use crate::engine::sequencer::Request;
use crate::error::Error;

/// Room that a disk short of it has besides segments: for the lock file, indexes, and what recoveries cut.
const SMALL_FILES_BYTES: u64 = 16 << 10;

/// A place in a history. Step 0 of a life is its open, the last one its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct At {
    pub(super) life: usize,
    pub(super) step: usize,
}

/// The end of a life.
pub(super) const END: usize = usize::MAX;

/// Which part of a history to live through, and where to look.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    pub(super) without_lives: BTreeSet<usize>,
    pub(super) without_steps: BTreeSet<At>,
    /// Judge this place only, so many times as closely as usual, and stop after it.
    pub(super) focus: Option<(At, u64)>,
    /// Another number lets the power fail differently at the focus and at the end of the life before it.
    pub(super) variant: u64,
}

impl Plan {
    fn effort(&self, at: At) -> Effort {
        match self.focus {
            None => Effort::Usual,
            Some((focus, times)) if focus == at => Effort::Times(times),
            Some(_) => Effort::None,
        }
    }

    /// What is drawn differently at a place: only how the life before the focus ends.
    fn variant_at(&self, at: At) -> u64 {
        let Some((focus, _)) = self.focus else { return 0 };
        let is_next =
            |life: usize| life < focus.life && (life + 1..focus.life).all(|it| self.without_lives.contains(&it));
        if at.step == END && is_next(at.life) { self.variant } else { 0 }
    }

    fn is_over(&self, at: At) -> bool {
        self.focus.is_some_and(|(focus, _)| at > focus)
    }
}

/// A history that broke a promise.
#[derive(Clone, Debug)]
pub(super) struct Broken {
    pub(super) finding: Finding,
    /// Where.
    pub(super) at: At,
    /// The steps that were made, up to there.
    pub(super) visited: Vec<At>,
    /// What happened, a step a line.
    pub(super) trace: String,
}

/// A history under way.
pub(super) struct History<'a> {
    seed: u64,
    plan: &'a Plan,
    at: At,
    visited: Vec<At>,
    rng: Rng,
    temper: Temper,
    drawer: Drawer,
    judge: Judge<'a>,
    sim: SimDisk,
    tale: Tale,
    trace: Vec<Step>,
    /// The crash points inside the last step, and what must hold there: what the step achieved is not yet true.
    inside: (Vec<CrashPoint>, Tale),
}

impl<'a> History<'a> {
    /// Lives through the history of this seed, as far as the plan goes.
    pub(super) fn run(
        seed: u64,
        plan: &'a Plan,
        summary: &'a mut Summary,
        real: Option<&'a dyn RealCheck>,
    ) -> Result<(), Box<Broken>> {
        History::run_by(Rng::new(seed), seed, plan, summary, real)
    }

    /// Lives through the history that these choices lead to.
    pub(super) fn run_by(
        rng: Rng,
        seed: u64,
        plan: &'a Plan,
        summary: &'a mut Summary,
        real: Option<&'a dyn RealCheck>,
    ) -> Result<(), Box<Broken>> {
        summary.histories += 1;
        let mut history = History::new(rng, seed, plan, summary, real);
        history.live_all().map_err(|finding| Box::new(history.broken(finding)))
    }

    fn new(
        mut rng: Rng,
        seed: u64,
        plan: &'a Plan,
        summary: &'a mut Summary,
        real: Option<&'a dyn RealCheck>,
    ) -> History<'a> {
        let temper = Temper::draw(&mut rng);
        let config = temper.config(&mut rng);
        let drawer = Drawer::new(temper, &config, &mut rng);
        let (sim, images) = (SimDisk::manual(rng.next_u64()), 1 + rng.below(5));
        let judge = Judge {
            config,
            rng: rng.clone(),
            summary,
            real,
            images,
            effort: Effort::Usual,
            old_indexes: BTreeMap::new(),
        };
        History {
            seed,
            plan,
            at: At::default(),
            visited: Vec::new(),
            rng,
            temper,
            drawer,
            judge,
            sim,
            tale: Tale::new(),
            trace: Vec::new(),
            inside: (Vec::new(), Tale::new()),
        }
    }

    fn broken(&mut self, finding: Finding) -> Broken {
        let mut trace = format!("{:?}\n{:?}\n", self.temper, self.judge.config);
        for step in &self.trace {
            let _ = writeln!(trace, "{}", step.told());
        }
        Broken { finding, at: self.at, visited: std::mem::take(&mut self.visited), trace }
    }

    /// Goes to a place, whose draws depend on nothing that was drawn elsewhere; `false` where the plan, or what leads it, ends before it.
    fn enter(&mut self, at: At) -> bool {
        self.at = at;
        self.visited.push(at);
        let (life, step) = (at.life as u64, at.step as u64);
        let variant = self.plan.variant_at(at);
        if !self.rng.is_led() {
            self.rng = Rng::of_part(self.seed, &[life, step, variant]);
        }
        self.judge.rng = Rng::of_part(self.seed, &[life, step, 1 << 32 | self.plan.variant]);
        self.judge.effort = self.plan.effort(at);
        !self.plan.is_over(at) && !self.rng.is_spent()
    }

    fn live_all(&mut self) -> Result<(), Finding> {
        let mut floor = 0;
        for life in (0..self.temper.lives).filter(|life| !self.plan.without_lives.contains(life)) {
            if !self.enter(At { life, step: 0 }) {
                break;
            }
            let mut log = self.begin(life, floor)?;
            let steps = 1 + self.rng.below(self.temper.steps * 2);
            for step in (1..=steps).filter(|&step| !self.plan.without_steps.contains(&At { life, step })) {
                if !self.enter(At { life, step }) || !self.step(&mut log)? {
                    break;
                }
            }
            if !self.enter(At { life, step: END }) {
                break;
            }
            floor = self.end(log)?;
        }
        Ok(())
    }

    /// Opens the log for the next life.
    fn begin(&mut self, life: usize, floor: u64) -> Result<LocalLog, Finding> {
        self.judge.summary.lives += 1;
        self.judge.config = self.temper.alter(&self.judge.config, &mut self.rng);
        let bytes = |segments| segments * self.judge.config.segment_bytes + SMALL_FILES_BYTES;
        self.sim.set_capacity(self.temper.room.map(bytes));
        let (log, version, inside) = self.judge.revive(&self.sim, &self.tale, floor, &mut self.rng)?;
        let before = self.tale.clone();
        self.tale.restart(version, &log);
        self.trace.push(Step::Open { life, kept: self.tale.newest().len() });
        self.after(&log)?;
        self.inside = (inside, before);
        Ok(log)
    }

    /// Ends a life; returns the frame up to which the next one must know everything.
    fn end(&mut self, mut log: LocalLog) -> Result<u64, Finding> {
        let is_poisoned = log.is_poisoned();
        match self.rng.below(10) {
            0 | 1 if !is_poisoned => {
                self.close(&mut log)?;
                Ok(self.tale.durable)
            }
            2..5 => {
                let point = self.pick_point();
                let (killed, story) = self.judge.kill_image(&point, &mut self.rng)?;
                self.trace.push(Step::Killed { story });
                self.sim = killed;
                Ok(self.tale.written)
            }
            _ => {
                let point = self.pick_point();
                let fates = point.random_fates(self.rng.next_u64());
                self.trace.push(Step::PowerFails { fates: point.describe(&fates) });
                self.sim = point.image(&fates);
                self.tale.lose_what_is_not_durable();
                Ok(self.tale.durable)
            }
        }
    }

    /// The present, or a moment inside the last step.
    fn pick_point(&mut self) -> CrashPoint {
        let (points, tale) = &mut self.inside;
        match self.rng.below(points.len() + 1) {
            0 => self.sim.crash_point(),
            nth => {
                self.tale = tale.clone();
                points.swap_remove(nth - 1)
            }
        }
    }

    /// A clean close, step by step.
    fn close(&mut self, log: &mut LocalLog) -> Result<(), Finding> {
        self.trace.push(Step::Close);
        self.drain(log)?;
        self.does("mark", log.mark())?;
        self.drain(log)?;
        self.may("slot", log.write_slot())?;
        self.after(log)
    }

    fn drain(&mut self, log: &mut LocalLog) -> Result<(), Finding> {
        while log.progress().1 < log.last_frame() {
            self.does("pump", log.pump())?;
            self.does("sync", log.begin_sync())?;
            self.after(log)?;
            self.complete_some(log, usize::MAX)?;
        }
        Ok(())
    }

    fn does<T>(&self, what: &str, result: Result<T, Error>) -> Result<T, Finding> {
        result.map_err(|error| failed(what, &error.to_string()))
    }

    /// As `does`, for steps that may find the disk full; then they changed nothing.
    fn may<T: Default>(&self, what: &str, result: Result<T, Error>) -> Result<T, Finding> {
        match result {
            Err(error) if error.is_out_of_space() && self.temper.room.is_some() => Ok(T::default()),
            other => self.does(what, other),
        }
    }

    /// Judges crashes inside the step that was just made, and right after it if it changed anything.
    fn after(&mut self, log: &LocalLog) -> Result<(), Finding> {
        self.judge.summary.steps += 1;
        self.inside = (self.sim.take_recording(), self.tale.clone());
        self.sim.start_recording();
        self.tale.advance(log);
        let expected = self.tale.durable_next();
        if log.durable_next() != expected {
            let why = format!("it shows {:?} as the end of what is durable, not {expected:?}", log.durable_next());
            return Err(failed("looking", &why));
        }
        if let Some((name, content)) = log.index_of_active().filter(|_| self.judge.rng.one_in(12)) {
            self.judge.keep_index(name, content);
        }
        let (points, before) = &self.inside;
        let is_still = points.is_empty() && (before.written, before.durable) == (self.tale.written, self.tale.durable);
        if self.judge.effort == Effort::None || is_still {
            return Ok(());
        }
        let present = self.sim.crash_point();
        self.judge.step((points, before), Some((&present, &self.tale)))
    }

    /// Makes one step; returns whether life goes on.
    fn step(&mut self, log: &mut LocalLog) -> Result<bool, Finding> {
        let in_flight = self.sim.in_flight().len();
        if self.rng.one_in(2 + self.temper.tends) {
            return self.tend(log).map(|()| true);
        }
        match self.rng.below(22) {
            0..7 => self.submit(log)?,
            7..10 if log.can_pump() => self.pump(log)?,
            10..15 if in_flight > 0 => {
                let count = 1 + self.rng.below(in_flight);
                return self.complete_some(log, count).map(|()| !log.is_poisoned());
            }
            15 if self.temper.is_failing && in_flight > 0 && self.rng.one_in(3) => return self.fail(log),
            16 if log.wants_sync() || self.rng.one_in(4) => {
                self.trace.push(Step::Sync);
                self.does("sync", log.begin_sync())?;
            }
            17 if self.rng.one_in(3) => {
                self.trace.push(Step::Mark);
                self.judge.summary.marks += u64::from(self.does("mark", log.mark())?);
            }
            18 if self.rng.one_in(3) => {
                self.trace.push(Step::Slot);
                self.may("slot", log.write_slot())?;
            }
            19 => self.read(log)?,
            20 if self.temper.is_failing => return self.fail_in_housekeeping(log),
            _ => return Ok(true),
        }
        if self.temper.is_eager {
            self.does("pump", log.pump())?;
        }
        self.after(log).map(|()| true)
    }

    fn pump(&mut self, log: &mut LocalLog) -> Result<(), Finding> {
        self.trace.push(Step::Pump);
        if self.temper.is_short && self.rng.one_in(3) {
            let bytes = 1 + self.rng.below(6) * 256;
            self.trace.push(Step::Short { bytes });
            self.sim.fail(FaultRule::short_write(1, bytes));
            self.judge.summary.short_writes += 1;
        }
        if self.rng.one_in(2) {
            // As the writer thread decides it: time passes, from none to many writes' worth.
            let passed_ns = 1 << self.rng.below(24);
            self.does("pump", log.pump_as_writer(passed_ns)).map(drop)
        } else {
            self.does("pump", log.pump_one()).map(drop)
        }
    }

    /// Housekeeping, each piece a step of its own: the first that has something to do, from a random one on.
    fn tend(&mut self, log: &mut LocalLog) -> Result<(), Finding> {
        let first = self.rng.below(4);
        let could_remove = log.dropped() > 1 || log.dropped() > 0 && self.rng.one_in(3);
        let could = [log.can_seal(), log.can_drop(), log.wants_spare(), could_remove];
        let Some(chosen) = (first..first + 4).map(|nth| nth % 4).find(|&nth| could[nth]) else { return Ok(()) };
        match chosen {
            0 => {
                self.trace.push(Step::Seal);
                self.judge.summary.sealed += u64::from(self.may("seal", log.seal_one())?);
            }
            1 => {
                self.trace.push(Step::Drop);
                self.judge.summary.dropped += u64::from(self.does("drop", log.drop_one())?);
                self.after(log)?;
                // While what let the segment go is still fresh, its file goes too.
                return if self.rng.one_in(2) { self.tend(log) } else { Ok(()) };
            }
            2 => {
                self.trace.push(Step::Spare);
                self.judge.summary.recycled += u64::from(log.dropped() > 0);
                self.may("spare", log.prepare_spare())?;
            }
            _ => {
                self.trace.push(Step::Remove);
                self.does("remove", log.remove_dropped())?;
            }
        }
        self.after(log)
    }

    /// Housekeeping in which an operation fails. What could not be done may be tried again while the log lives on,
    /// unless an I/O error told more: then, as the log with threads does, only reopening decides.
    fn fail_in_housekeeping(&mut self, log: &mut LocalLog) -> Result<bool, Finding> {
        let (rule, what) = draw_fault(&mut self.rng, 4);
        self.sim.fail(rule);
        let (deed, outcome) = match self.rng.below(5) {
            0 => ("seal", log.seal_one().map(drop)),
            1 => ("drop", log.drop_one().map(drop)),
            2 => ("remove", log.remove_dropped().map(drop)),
            3 => ("slot", log.write_slot()),
            _ => ("spare", log.prepare_spare().map(drop)),
        };
        self.sim.clear_faults();
        self.judge.summary.failing_housekeeping += 1;
        let told = outcome.as_ref().map_or_else(|error| error.to_string(), |()| "all the same done".into());
        self.trace.push(Step::Fault { what: format!("{deed}, {what}"), outcome: told });
        let goes_on = match outcome {
            Ok(()) => true,
            Err(error) if error.is_out_of_space() => true,
            Err(Error::Io { .. }) => matches!(deed, "seal" | "drop" | "remove"),
            Err(other) => return Err(Finding::new(Promise::Fails, format!("{deed} gives {other}"), "the living log")),
        };
        self.after(log)?;
        Ok(goes_on)
    }

    /// Completes operations in any order and collects them.
    fn complete_some(&mut self, log: &mut LocalLog, count: usize) -> Result<(), Finding> {
        let mut ids = self.sim.in_flight();
        for _ in 0..count.min(ids.len()) {
            let one = ids.swap_remove(self.rng.below(ids.len()));
            self.trace.push(Step::Complete { token: one.token });
            self.sim.complete(one.id);
        }
        self.trace.push(Step::Collect);
        self.does("collect", log.collect())?;
        self.after(log)
    }

    /// Lets a write or sync fail: from then on nothing may be acknowledged, and only reopening decides.
    fn fail(&mut self, log: &mut LocalLog) -> Result<bool, Finding> {
        let operations = self.sim.in_flight();
        let one = &operations[self.rng.below(operations.len())];
        self.trace.push(Step::Fail { token: one.token });
        self.judge.summary.poisoned += 1;
        let lands = Class::random(one.bytes.div_ceil(512), &mut self.rng);
        self.sim.complete_failing(one.id, EIO, lands);
        let (acknowledged, _) = log.progress();
        let refused = log.collect();
        self.sim.complete_all();
        if self.rng.one_in(2) {
            // The kernel gives up the pages that it could not write: what was written a moment ago reads as before.
            let on_medium = Class::random(one.bytes.div_ceil(512), &mut self.rng);
            self.trace.push(Step::PagesDropped);
            self.sim.drop_failed_pages(on_medium);
            self.tale.lose_pages();
        }
        let refused_later = log.collect();
        if !matches!((refused, refused_later), (Err(Error::Poisoned(_)), Err(Error::Poisoned(_)))) {
            return Err(failed("poisoning", "a failed write or sync leaves the log writable"));
        }
        if log.progress().0 > acknowledged + operations.len() as u64 {
            return Err(failed("poisoning", "more is acknowledged than was in flight"));
        }
        self.after(log)?;
        Ok(false)
    }

    /// Reads everything in the middle of a life, where all of it is written.
    fn read(&mut self, log: &LocalLog) -> Result<(), Finding> {
        if log.progress().0 < log.last_frame() {
            return Ok(());
        }
        self.trace.push(Step::Read);
        self.judge.summary.reads += 1;
        let found = self.does("reading", log.contents())?;
        let difference = self.tale.newest().difference(&found);
        difference.map_or(Ok(()), |why| Err(failed("reading", &why)))
    }

    fn submit(&mut self, log: &mut LocalLog) -> Result<(), Finding> {
        let batch = self.drawer.batch(&mut self.rng, self.tale.newest());
        self.submit_batch(log, batch)
    }

    fn submit_batch(&mut self, log: &mut LocalLog, batch: Vec<Request>) -> Result<(), Finding> {
        let expected = self.tale.newest().after(&batch, self.drawer.fitting);
        let active = log.active_segment();
        match (log.submit(&batch), expected) {
            (Ok(accepted), Ok(model)) => {
                self.note_batch(&batch, log, active);
                if accepted.operation_count > 0 {
                    self.tale.push(accepted.number, &batch, model, self.drawer.fitting);
                }
                self.trace.push(Step::Submit { frame: accepted.number, batch });
                Ok(())
            }
            (Err(error), Err(why)) if Refused::of(&error) == Some(why) => {
                self.judge.summary.refused += 1;
                self.trace.push(Step::Refused { why, batch });
                Ok(())
            }
            (Err(Error::NoSpace), Ok(_)) if self.temper.room.is_some() => self.full(log),
            // The model knows no frames, hence no largest batch.
            (Err(Error::TooLarge { what: "batch", .. }), _) => Ok(()),
            (found, expected) => {
                let found = found.map(|accepted| accepted.number);
                let expected = expected.map(|_| ());
                self.trace.push(Step::Submit { frame: 0, batch });
                Err(failed("submit", &format!("the log says {found:?}, the model {expected:?}")))
            }
        }
    }

    /// The disk is full: appends go on as soon as there is room, without a new start.
    fn full(&mut self, log: &mut LocalLog) -> Result<(), Finding> {
        self.trace.push(Step::Full);
        self.judge.summary.full += 1;
        match self.rng.below(4) {
            0 => {
                self.trace.push(Step::RoomAgain);
                self.sim.set_capacity(None);
                self.temper.room = None;
                self.submit(log)
            }
            1 | 2 => self.relieve(log),
            _ => Ok(()),
        }
    }

    /// Makes room on a full disk by compaction alone: as long as there is an older segment, that must work.
    fn relieve(&mut self, log: &mut LocalLog) -> Result<(), Finding> {
        let active = log.active_segment();
        let older = log.segments().iter().filter(|&&sequence| sequence < active).count();
        if older == 0 || log.dropped() > 0 || log.can_drop() {
            return Ok(());
        }
        self.trace.push(Step::Relieve);
        self.judge.summary.relieved += 1;
        let newest = self.tale.newest();
        // Beyond whatever was written and truncated: a segment goes when no index it ever held can be needed.
        let past = newest.next().unwrap_or(self.drawer.fitting.first_index) + 1000;
        let everything = vec![Request::Compact(past, Some(newest.last_term()))];
        self.submit_on_full(log, everything)?;
        self.drain(log)?;
        if !self.does("drop", log.drop_one())? {
            return Err(failed("compaction on a full disk", "everything is compacted, and no segment may go"));
        }
        self.does("making a spare of a dropped segment", log.prepare_spare())?;
        self.after(log)?;
        let small = vec![Request::Push(payload(&mut self.rng, 8))];
        if self.submit_on_full(log, small)? {
            return Ok(());
        }
        Err(failed("an append", "a segment was let go and made a spare, and there is still no space"))
    }

    /// Submits what fits the model; returns whether it was accepted, which it need not be where the blocks kept for it
    /// are taken by one like it.
    fn submit_on_full(&mut self, log: &mut LocalLog, batch: Vec<Request>) -> Result<bool, Finding> {
        let model = self.tale.newest().after(&batch, self.drawer.fitting);
        let model = model.map_err(|why| failed("submit", &format!("the model refuses it: {why:?}")))?;
        match log.submit(&batch) {
            Ok(accepted) => {
                self.tale.push(accepted.number, &batch, model, self.drawer.fitting);
                self.trace.push(Step::Submit { frame: accepted.number, batch });
                Ok(true)
            }
            Err(Error::NoSpace) => Ok(false),
            Err(error) => Err(failed("submit", &error.to_string())),
        }
    }

    fn note_batch(&mut self, batch: &[Request], log: &LocalLog, active: u64) {
        let summary = &mut *self.judge.summary;
        summary.batches += 1;
        summary.rolls += log.active_segment() - active;
        let truncation = batch.iter().any(|request| matches!(request, Request::Truncate(_)));
        summary.truncations += u64::from(truncation);
        summary.truncations_across += u64::from(truncation && log.newest_segment_is_cut_empty());
    }
}

fn failed(what: &str, why: &str) -> Finding {
    Finding::new(Promise::Lives, format!("{what} fails though nothing is wrong: {why}"), "the living log")
}
