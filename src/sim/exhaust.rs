//! Scenarios that are tried to the end: every image that a crash may leave of one frame, and every combination of the
//! classes over three frames in flight.
//!
//! Random fates meet each of these now and then; here none is left out. The scenes: in the middle of a segment or across
//! a roll; over zeros, or over the stale frames of a life before that lie exactly where the new ones go; frames in
//! flight, or written and not yet synced.

use std::collections::BTreeMap;
use std::time::Duration;

use super::class::Class;
use super::crash::{CrashPoint, Loose};
use super::disk::SimDisk;
use super::draw::payload;
use super::explore::Summary;
use super::history::{At, Broken};
use super::judge::{Effort, Finding, Judge, Promise};
use super::local::LocalLog;
use super::model::Fitting;
use super::rng::Rng;
use super::tale::Tale;
use crate::config::{Config, Durability};
use crate::engine::sequencer::Request;
use crate::error::Error;
use crate::format::frame::{HEAD_BYTES, OPERATION_HEADER_BYTES};
use crate::format::state::{BASE_FIXED_BYTES, hard_state_bytes_max};

const BLOCK: usize = 512;
const SEGMENT_BLOCKS: usize = 64;

/// What is tried to the end, and where.
#[derive(Clone, Debug)]
pub(super) struct Scene {
    /// Units of each frame at stake: at least two. One frame: all subsets of its units. More: all combinations of the
    /// classes, each unit missing once.
    pub(super) frames: Vec<usize>,
    /// The second frame begins a segment.
    pub(super) rolls: bool,
    /// Frames of a life before lie where the new ones go.
    pub(super) is_stale: bool,
    /// Frames are written and not synced, rather than in flight.
    pub(super) is_unsynced: bool,
}

impl Scene {
    /// Any scene that is not too long.
    pub(super) fn draw(rng: &mut Rng) -> Scene {
        let frames = match rng.one_in(2) {
            true => vec![2 + rng.below(8)],
            false => vec![2 + rng.below(4), 2 + rng.below(4), 2 + rng.below(4)],
        };
        let rolls = frames.len() > 1 && rng.one_in(2);
        Scene { frames, rolls, is_stale: rng.one_in(2), is_unsynced: rng.one_in(4) }
    }

    /// Lives up to the scene, tries every image, and tells how many there were.
    pub(super) fn run(&self, seed: u64, summary: &mut Summary) -> Result<u64, Box<Broken>> {
        let mut rng = Rng::new(seed);
        summary.histories += 1;
        summary.exhausted += 1;
        let durability = if self.is_unsynced { Durability::None } else { Durability::Sync };
        let config = Config::default()
            .block_bytes(Some(BLOCK as u32))
            .segment_bytes((SEGMENT_BLOCKS * BLOCK) as u64)
            .frame_bytes_max(BLOCK as u64)
            .frames_in_flight(3)
            .spare_segments(1)
            .durability(durability)
            .lock_wait(Duration::ZERO);
        let (sim, judge_rng) = (SimDisk::manual(rng.next_u64()), Rng::new(rng.next_u64()));
        let judge = Judge {
            config,
            rng: judge_rng,
            summary,
            real: None,
            images: 1,
            effort: Effort::Usual,
            old_indexes: BTreeMap::new(),
        };
        let mut stage = Stage { scene: self, rng, judge, sim, tale: Tale::new(), told: String::new() };
        stage.play().map_err(|finding| {
            let trace = format!("{self:?}\n{}", stage.told);
            Box::new(Broken { finding, at: At::default(), visited: Vec::new(), trace })
        })
    }
}

struct Stage<'a> {
    scene: &'a Scene,
    rng: Rng,
    judge: Judge<'a>,
    sim: SimDisk,
    tale: Tale,
    told: String,
}

impl Stage<'_> {
    fn play(&mut self) -> Result<u64, Finding> {
        let mut log = self.open(0)?;
        self.go_to_place(&mut log)?;
        let mut frames = self.scene.frames.clone();
        if self.scene.is_stale {
            log = self.leave_stale_frames(log)?;
            // The open frame took a block of the first one's place.
            frames[0] -= 1;
        }
        self.set_going(&mut log, &frames)?;
        let point = self.sim.crash_point();
        self.judge.summary.note_flights(&point);
        self.try_all(&point)
    }

    fn does<T>(&self, what: &str, result: Result<T, Error>) -> Result<T, Finding> {
        result.map_err(|error| Finding::new(Promise::Lives, format!("{what} fails: {error}"), "the living log"))
    }

    fn open(&mut self, floor: u64) -> Result<LocalLog, Finding> {
        self.judge.summary.lives += 1;
        let (log, version, _) = self.judge.revive(&self.sim, &self.tale, floor, &mut self.rng)?;
        self.tale.restart(version, &log);
        Ok(log)
    }

    /// Fills the segment so far that the first frame at stake is the last one that fits, or up to any place in its first
    /// half.
    fn go_to_place(&mut self, log: &mut LocalLog) -> Result<(), Finding> {
        self.does("making a spare", log.prepare_spare())?;
        let frames = &self.scene.frames;
        let keep_free = match self.scene.rolls {
            true => frames[0] + self.rng.below(frames[1]),
            false => SEGMENT_BLOCKS / 2 + self.rng.below(SEGMENT_BLOCKS / 4),
        };
        let mut blocks = SEGMENT_BLOCKS - keep_free - log.tail() as usize / BLOCK;
        while blocks > 0 {
            let frame = 1 + self.rng.below(blocks.min(6));
            self.write(log, frame)?;
            blocks -= frame;
        }
        let drained = log.drain();
        self.does("writing", drained)?;
        self.tale.advance(log);
        Ok(())
    }

    /// Submits a batch that makes a frame of so many blocks, whether or not it begins a segment.
    fn write(&mut self, log: &mut LocalLog, blocks: usize) -> Result<(), Finding> {
        let around = HEAD_BYTES + OPERATION_HEADER_BYTES + BASE_FIXED_BYTES as usize;
        let batch = [Request::Push(payload(&mut self.rng, blocks * BLOCK - around))];
        let limit = hard_state_bytes_max(self.judge.config.segment_bytes) as usize;
        let fitting = Fitting { first_index: self.judge.config.first_index, hard_state_bytes_max: limit };
        let accepted = log.submit(&batch);
        let accepted = self.does("submitting", accepted)?;
        let model = self.tale.newest().after(&batch, fitting);
        let model =
            model.map_err(|why| Finding::new(Promise::Lives, format!("the model refuses: {why:?}"), "a batch"))?;
        self.tale.push(accepted.number, &batch, model, fitting);
        let pumped = log.pump();
        self.does("pumping", pumped).map(drop)
    }

    /// Puts frames of so many blocks each in flight, and further where the scene says so.
    fn set_going(&mut self, log: &mut LocalLog, frames: &[usize]) -> Result<(), Finding> {
        let active = log.active_segment();
        frames.iter().try_for_each(|&blocks| self.write(log, blocks))?;
        assert_eq!(self.sim.in_flight().len(), frames.len(), "all frames are in flight at once");
        assert_eq!(log.active_segment() > active, self.scene.rolls, "the frames lie where they should");
        if self.scene.is_unsynced {
            self.sim.complete_all();
            let collected = log.collect();
            self.does("writing", collected)?;
        }
        self.tale.advance(log);
        Ok(())
    }

    /// Ends a life with the frames in flight: the first is torn, of the others some are whole.
    fn leave_stale_frames(&mut self, mut log: LocalLog) -> Result<LocalLog, Finding> {
        self.set_going(&mut log, &self.scene.frames.clone())?;
        let point = self.sim.crash_point();
        drop(log);
        let mut fates: Vec<Class> = point.loose_ends().iter().map(|_| Class::Whole).collect();
        let at_stake = frames_at_stake(&point);
        fates[at_stake[0]] = [Class::Absent, Class::Tail, Class::Head][self.rng.below(3)].clone();
        self.told = format!("the life before ends with:\n{}", point.describe(&fates));
        self.sim = point.image(&fates);
        self.tale.lose_what_is_not_durable();
        self.open(self.tale.durable)
    }

    fn try_all(&mut self, point: &CrashPoint) -> Result<u64, Finding> {
        let at_stake = frames_at_stake(point);
        let units = |end: &usize| point.loose_ends()[*end].units();
        let choices: Vec<Vec<Class>> = match &at_stake[..] {
            [one] => vec![every_subset(units(one))],
            several => several.iter().map(|end| every_class(units(end))).collect(),
        };
        let images: usize = choices.iter().map(Vec::len).product();
        for image in 0..images {
            let mut fates = vec![Class::Whole; point.loose_ends().len()];
            let mut number = image;
            for (&end, classes) in at_stake.iter().zip(&choices) {
                fates[end] = classes[number % classes.len()].clone();
                number /= classes.len();
            }
            self.judge.image(point, &fates, &self.tale, self.tale.durable, 0)?;
        }
        self.judge.summary.exhausted_images += images as u64;
        Ok(images as u64)
    }
}

/// The loose ends that are frames.
fn frames_at_stake(point: &CrashPoint) -> Vec<usize> {
    let is_frame = |at: &usize| {
        let end = &point.loose_ends()[*at];
        end.file.ends_with(".seg") && matches!(end.what, Loose::Write { .. })
    };
    (0..point.loose_ends().len()).filter(is_frame).collect()
}

/// The classes of a write of so many units, each unit missing once.
fn every_class(units: usize) -> Vec<Class> {
    let mut classes = vec![Class::Absent, Class::Whole];
    if units > 1 {
        classes.push(Class::Head);
        classes.push(Class::Tail);
    }
    if units > 2 {
        classes.extend((1..units).map(Class::OneMissing));
    }
    classes
}

fn every_subset(units: usize) -> Vec<Class> {
    (0..1u32 << units).map(|kept| Class::Units((0..units).map(|unit| kept >> unit & 1 == 1).collect())).collect()
}
