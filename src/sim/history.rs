//! Random histories of a log: what is asked of it, in which order its writes complete, when housekeeping runs, and when
//! the power fails; several lives on one disk.
//!
//! Everything follows from one seed. After each step, and inside each, the [`Judge`] looks at crashes.
//!
//! Each history has a [`Temper`]: what it does much of. A history that does everything evenly does nothing often enough
//! to meet the rare coincidences that break logs (two rolls in flight at once, a frame of the same length as the one
//! lost in the life before).

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;

use super::class::Class;
use super::crash::CrashPoint;
use super::disk::SimDisk;
use super::explore::{RealCheck, Summary, Violation};
use super::fault::EIO;
use super::judge::{Finding, Judge, Tale};
use super::local::{LocalLog, SYNC_TOKEN};
use super::model::{Fitting, Model, Refused};
use super::rng::Rng;
use crate::config::{Config, Durability};
use crate::engine::sequencer::Request;
use crate::engine::space::batch_bytes_max;
use crate::entry::LogEntry;
use crate::error::Error;
use crate::format::segment::SEGMENT_BLOCKS_MIN;
use crate::format::state::hard_state_bytes_max;

/// Entries beyond which a history compacts rather than grows.
const ENTRIES_MANY: usize = 60;

/// Room that a disk short of it has besides segments: for the lock file, indexes, and what recoveries cut.
const SMALL_FILES_BYTES: u64 = 16 << 10;

/// What a history does much of.
#[derive(Clone, Copy, Debug)]
struct Temper {
    lives: usize,
    steps: usize,
    /// Largest payload, as a part of the largest batch: 1 is all of it, 100 a hundredth.
    payload_part: usize,
    /// One batch in so many truncates, or compacts.
    truncates: usize,
    compacts: usize,
    /// One step in so many, of those that could, is housekeeping.
    tends: usize,
    /// Whether everything accepted is submitted at once.
    is_eager: bool,
    /// Whether writes fail now and then.
    is_failing: bool,
    /// Whether the block size changes from life to life.
    is_mixed: bool,
    /// Segments that the disk has room for, if it is short of it.
    room: Option<u64>,
}

impl Temper {
    fn draw(rng: &mut Rng) -> Temper {
        let one_of = |rng: &mut Rng, choices: &[usize]| choices[rng.below(choices.len())];
        Temper {
            lives: 2 + rng.below(6),
            steps: one_of(rng, &[8, 20, 40]),
            payload_part: one_of(rng, &[1, 1, 2, 4, 10, 40]),
            truncates: one_of(rng, &[4, 10, 30]),
            compacts: one_of(rng, &[3, 6, 30]),
            tends: one_of(rng, &[1, 3, 10]),
            is_eager: rng.one_in(2),
            is_failing: rng.one_in(4),
            is_mixed: rng.one_in(8),
            room: if rng.one_in(6) { Some(2 + rng.below(3) as u64) } else { None },
        }
    }
}

/// Something that happens to a log.
#[derive(Clone, Debug)]
enum Step {
    Open { life: usize, kept: usize },
    Submit { frame: u64, batch: Vec<Request> },
    Refused { why: Refused, batch: Vec<Request> },
    Pump,
    Complete { token: u64 },
    Fail { token: u64 },
    Collect,
    Spare,
    Seal,
    Drop,
    Remove,
    Full,
    Mark,
    Slot,
    Sync,
    Close,
    PowerFails { fates: String },
    Killed { story: String },
}

/// A history under way.
pub(super) struct History<'a> {
    seed: u64,
    rng: Rng,
    temper: Temper,
    judge: Judge<'a>,
    fitting: Fitting,
    payload_max: usize,
    sim: SimDisk,
    tale: Tale,
    trace: Vec<Step>,
    /// Payload sizes of late: sizes come again, so that new frames cover exactly what old ones left.
    sizes: VecDeque<usize>,
    stamp: u64,
    /// The crash points inside the last step, and what must hold there: what the step achieved is not yet true.
    inside: (Vec<CrashPoint>, Tale),
}

impl<'a> History<'a> {
    /// Lives through the history of this seed.
    pub(super) fn run(seed: u64, summary: &'a mut Summary, real: Option<&'a dyn RealCheck>) -> Result<(), Violation> {
        History::run_by(Rng::new(seed), seed, summary, real)
    }

    /// Lives through the history that these choices lead to.
    pub(super) fn run_by(
        mut rng: Rng,
        seed: u64,
        summary: &'a mut Summary,
        real: Option<&'a dyn RealCheck>,
    ) -> Result<(), Violation> {
        let temper = Temper::draw(&mut rng);
        let config = draw_config(&mut rng, temper.is_mixed);
        let block = config.block_bytes.unwrap_or(512);
        let batch_max = batch_bytes_max(config.segment_bytes, block) as usize;
        let sim = SimDisk::manual(rng.next_u64());
        let mut history = History {
            seed,
            temper,
            fitting: Fitting {
                first_index: config.first_index,
                hard_state_bytes_max: hard_state_bytes_max(config.segment_bytes) as usize,
            },
            payload_max: (batch_max / temper.payload_part).saturating_sub(48),
            sim,
            tale: Tale::new(),
            trace: Vec::new(),
            sizes: VecDeque::new(),
            stamp: seed,
            inside: (Vec::new(), Tale::new()),
            judge: Judge { config, rng: Rng::new(rng.next_u64()), summary, real, images: 1 + rng.below(5) },
            rng,
        };
        history.judge.summary.histories += 1;
        history.live_all().map_err(|finding| history.violation(finding))
    }

    fn violation(&self, finding: Finding) -> Violation {
        let mut trace = format!("{:?}\n{:?}\n", self.temper, self.judge.config);
        for step in &self.trace {
            let _ = writeln!(trace, "{}", step.told());
        }
        Violation { seed: self.seed, promise: finding.promise, place: finding.place, trace }
    }

    fn live_all(&mut self) -> Result<(), Finding> {
        let mut floor = 0;
        for life in 0..self.temper.lives {
            if self.rng.is_spent() {
                break;
            }
            self.judge.summary.lives += 1;
            if self.temper.is_mixed {
                self.judge.config.block_bytes = Some([512, 1024][self.rng.below(2)]);
            }
            let bytes = |segments| segments * self.judge.config.segment_bytes + SMALL_FILES_BYTES;
            self.sim.set_capacity(self.temper.room.map(bytes));
            let (mut log, version, inside) = self.judge.revive(&self.sim, &self.tale, floor)?;
            let before = self.tale.clone();
            self.tale.restart(version, &log);
            self.trace.push(Step::Open { life, kept: self.tale.newest().len() });
            self.after(&log)?;
            self.inside = (inside, before);
            let steps = 1 + self.rng.below(self.temper.steps * 2);
            for _ in 0..steps {
                if self.rng.is_spent() || !self.step(&mut log)? {
                    break;
                }
            }
            floor = self.end(log)?;
        }
        Ok(())
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
                let (killed, story) = self.judge.kill_image(&point).map_err(|why| self.failed("a kill", &why))?;
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
        result.map_err(|error| self.failed(what, &error.to_string()))
    }

    /// As `does`, for steps that may find the disk full; then they changed nothing.
    fn may<T: Default>(&self, what: &str, result: Result<T, Error>) -> Result<T, Finding> {
        match result {
            Err(error) if error.is_out_of_space() && self.temper.room.is_some() => Ok(T::default()),
            other => self.does(what, other),
        }
    }

    fn failed(&self, what: &str, why: &str) -> Finding {
        Finding { promise: format!("{what} fails though nothing is wrong: {why}"), place: "the living log".into() }
    }

    /// Judges crashes inside the step that was just made, and right after it if it changed anything.
    fn after(&mut self, log: &LocalLog) -> Result<(), Finding> {
        self.judge.summary.steps += 1;
        self.inside = (self.sim.take_recording(), self.tale.clone());
        self.sim.start_recording();
        let (points, tale) = &self.inside;
        // Long steps (a spare being made) are all alike: a few of their moments each time will do.
        for point in points {
            if points.len() <= 2 || self.rng.one_in(points.len() / 2) {
                self.judge.point(point, tale)?;
            }
        }
        self.tale.advance(log);
        if points.is_empty() && (tale.written, tale.durable) == (self.tale.written, self.tale.durable) {
            return Ok(());
        }
        let point = self.sim.crash_point();
        self.judge.summary.note_flights(&point);
        self.judge.point(&point, &self.tale)
    }

    /// Makes one step; returns whether life goes on.
    fn step(&mut self, log: &mut LocalLog) -> Result<bool, Finding> {
        let in_flight = self.sim.in_flight().len();
        if self.rng.one_in(2 + self.temper.tends) {
            return self.tend(log).map(|()| true);
        }
        match self.rng.below(20) {
            0..7 => self.submit(log)?,
            7..10 if log.can_pump() => {
                self.trace.push(Step::Pump);
                if self.rng.one_in(2) {
                    // As the writer thread decides it: time passes, from none to many writes' worth.
                    let passed_ns = 1 << self.rng.below(24);
                    self.does("pump", log.pump_as_writer(passed_ns))?;
                } else {
                    self.does("pump", log.pump_one())?;
                }
            }
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
            _ => return Ok(true),
        }
        if self.temper.is_eager {
            self.does("pump", log.pump())?;
        }
        self.after(log).map(|()| true)
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
        let refused_later = log.collect();
        if !matches!((refused, refused_later), (Err(Error::Poisoned(_)), Err(Error::Poisoned(_)))) {
            return Err(self.failed("poisoning", "a failed write or sync leaves the log writable"));
        }
        if log.progress().0 > acknowledged + operations.len() as u64 {
            return Err(self.failed("poisoning", "more is acknowledged than was in flight"));
        }
        self.after(log)?;
        Ok(false)
    }

    fn submit(&mut self, log: &mut LocalLog) -> Result<(), Finding> {
        let batch = self.draw_batch();
        let expected = self.tale.newest().after(&batch, self.fitting);
        let active = log.active_segment();
        match (log.submit(&batch), expected) {
            (Ok(accepted), Ok(model)) => {
                self.note_batch(&batch, log, active);
                self.trace.push(Step::Submit { frame: accepted.number, batch });
                if accepted.operation_count > 0 {
                    self.tale.push(accepted.number, model);
                }
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
                Err(self.failed("submit", &format!("the log says {found:?}, the model {expected:?}")))
            }
        }
    }

    /// The disk is full: appends go on as soon as there is room, without a new start.
    fn full(&mut self, log: &mut LocalLog) -> Result<(), Finding> {
        self.trace.push(Step::Full);
        self.judge.summary.full += 1;
        if self.rng.one_in(4) {
            self.sim.set_capacity(None);
            self.temper.room = None;
            return self.submit(log);
        }
        Ok(())
    }

    fn note_batch(&mut self, batch: &[Request], log: &LocalLog, active: u64) {
        let summary = &mut *self.judge.summary;
        summary.batches += 1;
        summary.rolls += log.active_segment() - active;
        let truncation = batch.iter().any(|request| matches!(request, Request::Truncate(_)));
        summary.truncations += u64::from(truncation);
        summary.truncations_across += u64::from(truncation && log.newest_segment_is_cut_empty());
    }

    /// A batch of one to four operations that mostly fit.
    fn draw_batch(&mut self) -> Vec<Request> {
        let mut model = (**self.tale.newest()).clone();
        let count = if self.rng.one_in(2) { 1 } else { 1 + self.rng.below(4) };
        let mut batch = Vec::new();
        for _ in 0..count {
            let request = self.draw_request(&model);
            if let Ok(next) = model.after(std::slice::from_ref(&request), self.fitting) {
                model = next;
            } else if !self.rng.one_in(4) {
                continue;
            }
            batch.push(request);
        }
        batch
    }

    fn draw_request(&mut self, model: &Model) -> Request {
        if self.rng.one_in(self.temper.compacts) || model.len() > ENTRIES_MANY {
            return self.draw_compaction(model);
        }
        if self.rng.one_in(self.temper.truncates) {
            return self.draw_truncation(model);
        }
        match self.rng.below(16) {
            0 => {
                let key = Bytes::from(vec![b'k'; 1 + self.rng.below(3)]);
                let bytes = [4, 40, 400][self.rng.below(3)];
                Request::PutMeta(key, self.payload(bytes))
            }
            1 => Request::DeleteMeta(Bytes::from(vec![b'k'; 1 + self.rng.below(3)])),
            2..6 => {
                let next = model.next().unwrap_or(self.fitting.first_index + self.rng.below(3) as u64);
                let (index, term) = match self.rng.below(24) {
                    0 => (next + 1, model.last_term()),
                    1 => (next, model.last_term().saturating_sub(1)),
                    drawn => (next, model.last_term() + u64::from(drawn < 8)),
                };
                let bytes = self.draw_size();
                Request::Entry(LogEntry::new(term, index, self.payload(bytes)))
            }
            _ => {
                let bytes = self.draw_size();
                Request::Push(self.payload(bytes))
            }
        }
    }

    fn draw_compaction(&mut self, model: &Model) -> Request {
        let next = model.next().unwrap_or(1);
        let first = model.first().unwrap_or(next);
        match self.rng.below(8) {
            0 => Request::Compact(next + self.rng.below(5) as u64, Some(model.last_term() + self.rng.below(2) as u64)),
            1..4 => Request::Compact(next.saturating_sub(1), None),
            4 => Request::Compact(first.saturating_sub(self.rng.below(3) as u64), Some(model.last_term())),
            _ => {
                let index = first + self.rng.below((next - first).max(1) as usize) as u64;
                Request::Compact(index, model.term(index).filter(|_| self.rng.one_in(2)))
            }
        }
    }

    fn draw_truncation(&mut self, model: &Model) -> Request {
        let next = model.next().unwrap_or(1);
        let live = model.len();
        let back = match self.rng.below(4) {
            0 => self.rng.below(live + 3),
            _ => self.rng.below(live.min(6) + 1),
        };
        Request::Truncate((next + u64::from(self.rng.one_in(12))).saturating_sub(back as u64))
    }

    /// Sizes around block boundaries, sizes seen before, and any.
    fn draw_size(&mut self) -> usize {
        let size = match self.rng.below(8) {
            0..3 if !self.sizes.is_empty() => self.sizes[self.rng.below(self.sizes.len())],
            3 => self.rng.below(100),
            // What fills a frame of whole units but for a few bytes, more or less.
            4 => (512 * (1 + self.rng.below(8)) + 8 * self.rng.below(5)).saturating_sub(88 + 40 + 16),
            5 => self.payload_max - self.rng.below(self.payload_max.min(600)),
            _ => self.rng.below(self.payload_max),
        };
        let size = size.min(self.payload_max);
        self.sizes.push_back(size);
        if self.sizes.len() > 4 {
            self.sizes.pop_front();
        }
        size
    }

    /// Bytes that no other payload of the history has, as far as they are long enough.
    fn payload(&mut self, bytes: usize) -> Bytes {
        self.stamp = self.stamp.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let stamp = self.stamp.to_le_bytes();
        Bytes::from(stamp.iter().copied().cycle().take(bytes).collect::<Vec<u8>>())
    }
}

fn draw_config(rng: &mut Rng, is_mixed: bool) -> Config {
    let block = if is_mixed { 1024 } else { [512, 512, 512, 512, 512, 512, 1024, 4096][rng.below(8)] };
    let blocks = SEGMENT_BLOCKS_MIN + rng.below(17) as u64;
    let durability = match rng.below(6) {
        0 => Durability::None,
        1 => Durability::Interval(Duration::from_secs(1)),
        _ => Durability::Sync,
    };
    let frame_blocks = [1, 4, 16][rng.below(3)];
    Config::default()
        .block_bytes(Some(block))
        .segment_bytes(blocks * u64::from(block))
        .durability(durability)
        .frames_in_flight(1 + rng.below(3))
        .frame_bytes_max(frame_blocks * u64::from(block))
        .spare_segments(1 + rng.below(3))
        .first_index([0, 1, 1, 7][rng.below(4)])
        .lock_wait(Duration::ZERO)
}

impl Step {
    /// The step in a line, payloads by their length only.
    fn told(&self) -> String {
        match self {
            Step::Open { life, kept } => format!("Open for life {life}, {kept} entries kept"),
            Step::Submit { frame, batch } => format!("Submit into frame {frame}: {}", told(batch)),
            Step::Refused { why, batch } => format!("Refused, {why:?}: {}", told(batch)),
            Step::Complete { token } => format!("Complete {}", told_operation(*token)),
            Step::Fail { token } => format!("Fail {}", told_operation(*token)),
            Step::PowerFails { fates } => format!("PowerFails:\n{fates}"),
            Step::Killed { story } => format!("Killed: {story}"),
            other => format!("{other:?}"),
        }
    }
}

fn told_operation(token: u64) -> String {
    if token == SYNC_TOKEN { "a sync".into() } else { format!("frame {token}") }
}

fn told(batch: &[Request]) -> String {
    let one = |request: &Request| match request {
        Request::Push(payload) => format!("push {} bytes", payload.len()),
        Request::Entry(entry) => {
            format!("entry {} of term {}, {} bytes", entry.index, entry.term, entry.command.len())
        }
        Request::PutMeta(key, value) => format!("put {} bytes under {key:?}", value.len()),
        other => format!("{other:?}"),
    };
    batch.iter().map(one).collect::<Vec<_>>().join(", ")
}
