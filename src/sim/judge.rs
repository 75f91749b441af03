//! The promises, checked: recovers images of a crash, a kill or a damaged disk and compares them with what must hold.
//!
//! What must hold is told by a [`Tale`].
//!
//! Does not know how the disk got into its state, nor which batches come next.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::class::Class;
use super::crash::{CrashPoint, Landing};
use super::disk::{InFlight, SimDisk};
use super::explore::{RealCheck, Summary};
use super::fault::{EIO, ENOSPC, FaultRule, OpKind};
use super::local::{Contents, LocalLog};
use super::portray::portray;
use super::rng::Rng;
use super::tale::Tale;
use crate::config::{Config, Durability, Verify};
use crate::error::Error;
use crate::format::frame::HEAD_BYTES;
use crate::format::names::{self, Name};
use crate::log::Log;

/// One state in so many is also opened by the [`RealCheck`].
const REAL_EVERY: u64 = 1000;

/// At one crash point in so many, all combinations of fates are tried if they are at most so many.
const ALL_EVERY: usize = 16;
const ALL_OF: usize = 64;

/// So many old versions of an index file are kept.
const OLD_INDEXES_MAX: usize = 8;

/// The kinds of promises that may be found broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Promise {
    /// Torn is not corrupt: a legal image opens.
    Opens,
    /// What opens is the log after a prefix of the operations with every acknowledged one.
    Prefix,
    /// A second recovery decides as the first did.
    Decided,
    /// What had been witnessed and is damaged is an error, and the right one.
    Noticed,
    /// An operation that fails is an error and takes nothing along.
    Fails,
    /// A reading open shows what the writing one finds.
    ReadOnly,
    /// Index files are derived.
    Derived,
    /// A killed process's queued writes keep recovery out.
    Locked,
    /// The log with threads shows the same.
    Threads,
    /// The living log does as the model does.
    Lives,
}

/// A promise that does not hold, and where.
#[derive(Clone, Debug)]
pub(super) struct Finding {
    pub(super) kind: Promise,
    pub(super) promise: String,
    pub(super) place: String,
}

impl Finding {
    pub(super) fn new(kind: Promise, promise: impl Into<String>, place: impl Into<String>) -> Finding {
        Finding { kind, promise: promise.into(), place: place.into() }
    }
}

/// How closely a moment is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effort {
    /// Not at all: the log only lives.
    None,
    /// A few images of it.
    Usual,
    /// So many times as much as usual.
    Times(u64),
}

/// Checks images and counts what it saw.
pub(super) struct Judge<'a> {
    pub(super) config: Config,
    pub(super) rng: Rng,
    pub(super) summary: &'a mut Summary,
    pub(super) real: Option<&'a dyn RealCheck>,
    /// Images tried at each crash point.
    pub(super) images: usize,
    pub(super) effort: Effort,
    /// Index files as they were or could have been at some time of the history, by name.
    pub(super) old_indexes: BTreeMap<String, Vec<Vec<u8>>>,
}

impl Judge<'_> {
    /// Looks at the moments inside a step, before which the log was as `before` tells, and at the one after it.
    pub(super) fn step(
        &mut self,
        inside: (&[CrashPoint], &Tale),
        after: Option<(&CrashPoint, &Tale)>,
    ) -> Result<(), Finding> {
        let rounds = match self.effort {
            Effort::None => 0,
            Effort::Usual => 1,
            Effort::Times(rounds) => rounds,
        };
        (0..rounds).try_for_each(|_| self.step_once(inside, after))
    }

    fn step_once(
        &mut self,
        (points, before): (&[CrashPoint], &Tale),
        after: Option<(&CrashPoint, &Tale)>,
    ) -> Result<(), Finding> {
        // Long steps (a spare being made) are all alike: a few of their moments each time will do.
        for point in points {
            if points.len() <= 2 || self.rng.one_in(points.len() / 2) {
                self.point(point, before)?;
            }
        }
        let Some((point, tale)) = after else { return Ok(()) };
        self.summary.note_flights(point);
        self.point(point, tale)
    }

    /// Tries images of a crash point.
    fn point(&mut self, point: &CrashPoint, tale: &Tale) -> Result<(), Finding> {
        let floor = tale.durable;
        self.summary.crash_points += 1;
        let limit = self.images.min(point.combinations());
        if point.combinations() <= ALL_OF && self.rng.one_in(ALL_EVERY) {
            let seed = self.rng.next_u64();
            return point.fates(ALL_OF, seed).try_for_each(|fates| self.image(point, &fates, tale, floor, 0));
        }
        for nth in 0..limit {
            let fates = self.draw(point, nth);
            self.image(point, &fates, tale, floor, 0)?;
        }
        if self.rng.one_in(6) { self.kill(point, tale) } else { Ok(()) }
    }

    /// Fates of the kinds that find most: everything lost, everything kept, or each by chance.
    fn draw(&mut self, point: &CrashPoint, nth: usize) -> Vec<Class> {
        let ends = point.loose_ends().len();
        match (nth, self.rng.below(8)) {
            (0, 0..3) => vec![Class::Absent; ends],
            (0, 3) => vec![Class::Whole; ends],
            _ => point.random_fates(self.rng.next_u64()),
        }
    }

    /// One image: recovers it, checks what is found, and looks at what crashes of that recovery and after it leave.
    pub(super) fn image(
        &mut self,
        point: &CrashPoint,
        fates: &[Class],
        tale: &Tale,
        floor: u64,
        depth: usize,
    ) -> Result<(), Finding> {
        let place = |within: &str| told_place(within, point, fates);
        self.summary.note_fates(point, fates);
        let image = point.image(fates);
        let is_recorded = depth < 3 && self.rng.one_in(if depth == 0 { 16 } else { 8 });
        if is_recorded {
            image.start_recording();
        }
        let (log, found) = self.recover(&image).map_err(|why| Finding::new(Promise::Opens, why, place("")))?;
        let matching = tale.matching(floor, &found);
        matching.map_err(|why| Finding::new(Promise::Prefix, not_a_prefix(&why), place("")))?;
        let points = image.take_recording();
        if !log.report().was_clean && self.rng.one_in(2) || self.rng.one_in(8) {
            self.again(&image.crash_point(), &found, || place(", recovery, power failure"))?;
        }
        let was_made = log.report().created;
        drop(log);
        for inner in self.some_of(&points, 3) {
            self.summary.crash_points_in_recovery += 1;
            let fates = self.draw(inner, 1);
            self.image(inner, &fates, tale, floor, depth + 1).map_err(|finding| Finding {
                place: format!("{}\nthen, during recovery, {}", place(""), finding.place),
                ..finding
            })?;
        }
        self.look_otherwise(point, fates, &found, was_made)?;
        if depth == 0 && self.rng.one_in(12) {
            self.fail_in_recovery(point, fates, tale, floor)?;
        }
        if depth == 0 && self.rng.one_in(10) {
            self.lie_in_recovery(point, fates, tale, floor)?;
        }
        if depth == 0 && self.rng.one_in(6) { self.damage(point, fates, tale) } else { Ok(()) }
    }

    fn some_of<'p>(&mut self, points: &'p [CrashPoint], most: usize) -> Vec<&'p CrashPoint> {
        let mut chosen: Vec<&CrashPoint> = points.iter().collect();
        while chosen.len() > most {
            let nth = self.rng.below(chosen.len());
            chosen.swap_remove(nth);
        }
        chosen
    }

    /// Opens and reads; an error is a broken promise, for torn is not corrupt. Now and then all frames are read, or
    /// the new life has another durability than the old one had.
    pub(super) fn recover(&mut self, image: &SimDisk) -> Result<(LocalLog, Contents), String> {
        self.summary.states += 1;
        let mut config = self.config.clone().verify(if self.rng.one_in(6) { Verify::Full } else { Verify::Tail });
        if self.rng.one_in(8) {
            config = config.durability(if self.rng.one_in(2) { Durability::None } else { Durability::Sync });
        }
        let seed = self.rng.next_u64();
        self.open(image, &config, seed).map_err(|error| format!("a legal image is refused: {error}"))
    }

    fn open(&mut self, image: &SimDisk, config: &Config, seed: u64) -> Result<(LocalLog, Contents), Error> {
        self.summary.recoveries += 1;
        let log = LocalLog::open(image, config.clone(), seed)?;
        self.summary.note_report(log.report());
        let contents = log.contents()?;
        Ok((log, contents))
    }

    fn open_plainly(&mut self, image: &SimDisk) -> Result<(LocalLog, Contents), Error> {
        let (config, seed) = (self.config.clone(), self.rng.next_u64());
        self.open(image, &config, seed)
    }

    /// What was found once must be found again, whatever a power failure takes now: nothing was written since.
    fn again(&mut self, point: &CrashPoint, found: &Contents, place: impl Fn() -> String) -> Result<(), Finding> {
        let nth = self.rng.below(2);
        let fates = self.draw(point, nth);
        let place = || format!("{}:\n{}{}", place(), point.describe(&fates), portray(&point.image(&fates)));
        let refused = |error| format!("what one recovery made is refused by the next: {error}");
        let (_, again) = self
            .open_plainly(&point.image(&fates))
            .map_err(|error| Finding::new(Promise::Decided, refused(error), place()))?;
        match again == *found {
            true => Ok(()),
            false => Err(Finding::new(Promise::Decided, second_differs(found, &again), place())),
        }
    }

    /// The same image opened in other ways must show the same.
    fn look_otherwise(
        &mut self,
        point: &CrashPoint,
        fates: &[Class],
        found: &Contents,
        was_made: bool,
    ) -> Result<(), Finding> {
        let finding = |kind| move |why: String| Finding::new(kind, why, told_place("", point, fates));
        if self.rng.one_in(10) && !was_made {
            self.summary.read_only_looks += 1;
            look_without_writing(&point.image(fates), found).map_err(finding(Promise::ReadOnly))?;
        }
        if self.rng.one_in(10) {
            self.look_with_other_indexes(&point.image(fates), found).map_err(finding(Promise::Derived))?;
        }
        self.try_real(point, fates, found).map_err(finding(Promise::Threads))
    }

    /// Keeps an index file, to put it back later when it is stale.
    pub(super) fn keep_index(&mut self, name: String, content: Vec<u8>) {
        let known = self.old_indexes.entry(name).or_default();
        if !known.contains(&content) && known.len() < OLD_INDEXES_MAX {
            known.push(content);
        }
    }

    /// Without its index files the log is the same, with stale ones it is, and so it is if every frame is read.
    fn look_with_other_indexes(&mut self, image: &SimDisk, found: &Contents) -> Result<(), String> {
        let are_stale = self.rng.one_in(2);
        let altered = if are_stale { self.put_back_indexes(image) } else { remove_indexes(image) };
        let altered = altered.map_err(|error| format!("the simulated disk cannot alter a file: {error}"))?;
        if !altered {
            return Ok(());
        }
        self.summary.states += 1;
        *if are_stale { &mut self.summary.stale_indexes } else { &mut self.summary.without_indexes } += 1;
        let verify = if self.rng.one_in(3) { Verify::Full } else { Verify::Tail };
        let (config, seed) = (self.config.clone().verify(verify), self.rng.next_u64());
        let how = if are_stale { "with index files of an earlier time" } else { "without its index files" };
        let opened = self.open(image, &config, seed);
        let (_, other) = opened.map_err(|error| format!("{how} the log is refused: {error}"))?;
        if other == *found { Ok(()) } else { Err(format!("{how}, {}", second_differs(found, &other))) }
    }

    /// Puts index files of an earlier time beside the segments of the same number, other ones than are there; whether
    /// there was one.
    fn put_back_indexes(&mut self, image: &SimDisk) -> io::Result<bool> {
        let mut altered = false;
        for (name, contents) in &self.old_indexes {
            if image.contents(&name.replace(".idx", ".seg")).is_err() {
                continue;
            }
            let present = image.contents(name).ok();
            let is_other = |content: &&Vec<u8>| present.as_ref().is_none_or(|present| **present != **content);
            let others: Vec<_> = contents.iter().filter(is_other).collect();
            if !others.is_empty() {
                image.write_file(name, others[self.rng.below(others.len())])?;
                altered = true;
            }
        }
        Ok(altered)
    }

    /// Lets an operation of a recovery fail: that is an error or makes no difference, is no evidence about the log, and
    /// the next open finds everything.
    fn fail_in_recovery(
        &mut self,
        point: &CrashPoint,
        fates: &[Class],
        tale: &Tale,
        floor: u64,
    ) -> Result<(), Finding> {
        let image = point.image(fates);
        let (rule, story) = draw_fault(&mut self.rng, 8);
        image.fail(rule);
        self.summary.failing_recoveries += 1;
        let outcome = self.open_plainly(&image);
        image.clear_faults();
        let place = || format!("{}{story} during recovery", told_place("", point, fates));
        let finding = |why: String| Finding::new(Promise::Fails, why, place());
        let first = match outcome {
            Ok((log, found)) => {
                drop(log);
                Some(found)
            }
            Err(Error::Io { .. } | Error::NoSpace) => {
                self.summary.failed_recoveries += 1;
                None
            }
            Err(error) => return Err(finding(format!("a failed operation is taken for something else: {error}"))),
        };
        let next = if self.rng.one_in(2) {
            let after = image.crash_point();
            let fates = self.draw(&after, 0);
            after.image(&fates)
        } else {
            image
        };
        let (_, found) = self.recover(&next).map_err(|why| finding(format!("after an operation failed, {why}")))?;
        tale.matching(floor, &found).map_err(|why| finding(not_a_prefix(&why)))?;
        match first {
            Some(first) if first != found => Err(finding(second_differs(&first, &found))),
            _ => Ok(()),
        }
    }

    /// Lets a read of a recovery return wrong bytes, once: that is an error or makes no difference, nothing is cut or
    /// written back for it, and the next open finds everything.
    fn lie_in_recovery(&mut self, point: &CrashPoint, fates: &[Class], tale: &Tale, floor: u64) -> Result<(), Finding> {
        let image = point.image(fates);
        let rule = draw_lie(&mut self.rng, &image);
        let story = format!("{rule:?} during recovery");
        image.fail(rule);
        self.summary.lied_to += 1;
        self.summary.recoveries += 1;
        let opened = LocalLog::open(&image, self.config.clone(), self.rng.next_u64());
        let outcome = opened.and_then(|log| log.contents().map(|found| (log, found)));
        image.clear_faults();
        let ended = outcome.as_ref().map_or_else(|error| error.to_string(), |_| "the log opened".into());
        let left = image.copy_at_rest();
        let place = || format!("{}{story}: {ended}\n{}", told_place("", point, fates), portray(&left));
        let finding = |why: String| Finding::new(Promise::Fails, why, place());
        match outcome {
            Ok((log, found)) => {
                drop(log);
                tale.matching(floor, &found).map_err(|why| finding(not_a_prefix(&why)))?;
            }
            Err(_) => self.summary.lies_noticed += 1,
        }
        let (_, found) = self.recover(&image).map_err(|why| finding(format!("after a wrong read, {why}")))?;
        tale.matching(floor, &found).map(drop).map_err(|why| finding(not_a_prefix(&why)))
    }

    /// Kills the process instead, recovers on the same medium, and then lets the power fail.
    pub(super) fn kill(&mut self, point: &CrashPoint, tale: &Tale) -> Result<(), Finding> {
        let mut rng = Rng::new(self.rng.next_u64());
        let (killed, story) = self.kill_image(point, &mut rng)?;
        let before = killed.copy_at_rest();
        let place = || format!("kill: {story}\n{}", portray(&before));
        let (log, found) = self.recover(&killed).map_err(|why| Finding::new(Promise::Opens, why, place()))?;
        let matching = tale.matching(tale.written, &found);
        matching.map_err(|why| Finding::new(Promise::Prefix, not_a_prefix(&why), place()))?;
        if self.rng.one_in(8) && !log.report().created {
            self.summary.read_only_looks += 1;
            let looked = look_without_writing(&before, &found);
            looked.map_err(|why| Finding::new(Promise::ReadOnly, why, place()))?;
        }
        let after = killed.crash_point();
        (0..2).try_for_each(|_| self.again(&after, &found, || format!("{}, recovery, power failure", place())))
    }

    /// A disk after a kill, with no operation under way, and the story of it.
    pub(super) fn kill_image(&mut self, point: &CrashPoint, rng: &mut Rng) -> Result<(SimDisk, String), Finding> {
        self.summary.kills += 1;
        let (mut queued, mut story) = (false, String::new());
        let killed = point.kill(|operation: &InFlight| {
            let of_segment = operation.name.ends_with(".seg") && operation.file != 0 && !operation.is_sync;
            let landing = match rng.below(4) {
                0 if of_segment => Landing::Queued,
                _ => Landing::Units(Class::random(operation.bytes.div_ceil(512), rng)),
            };
            queued |= landing == Landing::Queued;
            story.push_str(&format!("{} at {}: {landing:?}; ", operation.name, operation.offset));
            landing
        });
        if queued {
            self.summary.kills_with_queued_writes += 1;
            match LocalLog::open(&killed, self.config.clone(), rng.next_u64()) {
                Err(Error::Locked { .. }) => {}
                other => {
                    let why = format!("queued writes of a killed process do not keep recovery out: {other:?}");
                    return Err(Finding::new(Promise::Locked, why, format!("kill: {story}")));
                }
            }
            killed.complete_all();
        }
        Ok((killed, story))
    }

    /// Damages one place of an image: whatever was witnessed there is missed, or an error says so.
    fn damage(&mut self, point: &CrashPoint, fates: &[Class], tale: &Tale) -> Result<(), Finding> {
        let image = point.image(fates);
        let Some((story, floor)) = self.harm(&image, tale) else { return Ok(()) };
        self.summary.damaged += 1;
        self.summary.states += 1;
        let verify = if self.rng.one_in(2) { Verify::Full } else { Verify::Tail };
        let place = || format!("{}{story}", told_place("", point, fates));
        let finding = |why| Finding::new(Promise::Noticed, why, place());
        let (config, seed) = (self.config.clone().verify(verify), self.rng.next_u64());
        match self.open(&image, &config, seed) {
            Ok((_, found)) => tale.matching(floor, &found).map(drop).map_err(|why| {
                finding(format!("damage was not noticed, and what was witnessed is gone or different:\n  {why}"))
            }),
            Err(Error::Corrupt { .. } | Error::Unsupported { .. }) if floor == tale.witnessed => {
                self.summary.damage_noticed += 1;
                Ok(())
            }
            Err(error) => Err(finding(format!("damage gives the wrong error: {error}"))),
        }
    }

    /// Damages a place: a bit flips, a unit becomes zeros or holds what belongs elsewhere. Tells the frame up to which the
    /// log must be as it was, or refuse. More than a unit could be a frame and its witness at once.
    fn harm(&mut self, image: &SimDisk, tale: &Tale) -> Option<(String, u64)> {
        let derived = self.rng.one_in(8);
        let wanted = if derived { ".idx" } else { ".seg" };
        let names: Vec<Arc<str>> = image.file_names().into_iter().filter(|name| name.ends_with(wanted)).collect();
        let from = if self.rng.one_in(3) { 0 } else { names.len().saturating_sub(3) };
        let name = names.get(from + self.rng.below((names.len() - from).max(1)))?;
        let content = image.contents(name).ok()?;
        let used = content.iter().rposition(|&byte| byte != 0)? + 1;
        let at = self.rng.below(used) as u64;
        let range = at - at % 512..(at - at % 512 + 512).min(content.len() as u64);
        drop(content);
        let what = match self.rng.below(4) {
            0 => image.rot_bit(name, at, self.rng.below(8) as u8).map(|()| "a bit rotten".into()),
            1 => image.flip_bit(name, at, self.rng.below(8) as u8).map(|()| "a bit flipped".into()),
            2 => image.zero_range(name, range.clone()).map(|()| format!("zeros for {range:?}")),
            _ => self.misplace(image, name, range),
        };
        // An index file is derived: its damage changes nothing at all.
        let floor = if derived { tale.durable } else { tale.witnessed };
        Some((format!("{} at byte {at} of {name}\n", what.ok()?), floor))
    }

    /// Overwrites a range with what stands elsewhere, in this segment or in another, as a misdirected write does.
    fn misplace(&mut self, image: &SimDisk, name: &str, range: Range<u64>) -> io::Result<String> {
        let names = image.file_names();
        let segments: Vec<&Arc<str>> = names.iter().filter(|it| it.ends_with(".seg")).collect();
        let from = segments[self.rng.below(segments.len())];
        let content = image.contents(from)?;
        let bytes = (range.end - range.start) as usize;
        let at = 512 * self.rng.below(1 + content.len().saturating_sub(bytes) / 512);
        let other = content[at.min(content.len())..(at + bytes).min(content.len())].to_vec();
        drop(content);
        image.edit_range(name, range.start..range.start + other.len() as u64, |place| place.copy_from_slice(&other))?;
        Ok(format!("{bytes} bytes of {from} at byte {at} for {range:?}"))
    }

    fn try_real(&mut self, point: &CrashPoint, fates: &[Class], found: &Contents) -> Result<(), String> {
        let Some(real) = self.real.filter(|_| self.summary.states >= (self.summary.real_checks + 1) * REAL_EVERY)
        else {
            return Ok(());
        };
        let checked = real.check(&point.image(fates), &self.config, found);
        self.summary.real_checks += u64::from(checked.map_err(|why| format!("the log with threads differs: {why}"))?);
        Ok(())
    }

    /// Opens the disk on which life goes on, judging crashes inside this recovery, and tells which version it holds.
    /// What the new life draws comes from `rng`, so that it lives the same however closely it is judged.
    pub(super) fn revive(
        &mut self,
        sim: &SimDisk,
        tale: &Tale,
        floor: u64,
        rng: &mut Rng,
    ) -> Result<(LocalLog, usize, Vec<CrashPoint>), Finding> {
        let before = sim.copy_at_rest();
        let place = || format!("the next life's recovery:\n{}", portray(&before));
        sim.start_recording();
        self.summary.states += 1;
        let verify = if rng.one_in(6) { Verify::Full } else { Verify::Tail };
        let opened = self.open(sim, &self.config.clone().verify(verify), rng.next_u64());
        let refused = |error| Finding::new(Promise::Opens, format!("a legal image is refused: {error}"), place());
        let (log, found) = opened.map_err(refused)?;
        let points = sim.take_recording();
        sim.start_recording();
        let version = tale.matching(floor, &found);
        let version = version.map_err(|why| Finding::new(Promise::Prefix, not_a_prefix(&why), place()))?;
        let rounds = match self.effort {
            Effort::None => 0,
            Effort::Usual => 1,
            Effort::Times(rounds) => rounds,
        };
        for _ in 0..rounds {
            for point in self.some_of(&points, 6) {
                self.summary.crash_points_in_recovery += 1;
                let fates = self.draw(point, 1);
                // Even after a kill, which keeps more: until recovery is through, only the durable is safe from a power
                // failure.
                self.image(point, &fates, tale, tale.durable, 1)?;
            }
        }
        Ok((log, version, points))
    }
}

fn told_place(within: &str, point: &CrashPoint, fates: &[Class]) -> String {
    format!("power failure{within}:\n{}{}", point.describe(fates), portray(&point.image(fates)))
}

/// Removes all index files; whether there was one.
fn remove_indexes(image: &SimDisk) -> io::Result<bool> {
    let names: Vec<Arc<str>> = image.file_names().into_iter().filter(|name| name.ends_with(".idx")).collect();
    names.iter().try_for_each(|name| image.remove_file(name)).map(|()| !names.is_empty())
}

/// A fault for one of the next `most` operations of some kind, and the story of it.
pub(super) fn draw_fault(rng: &mut Rng, most: usize) -> (FaultRule, String) {
    let kind = OpKind::ALL[rng.below(OpKind::ALL.len())];
    let takes_space = matches!(kind, OpKind::Write | OpKind::Create | OpKind::Allocate);
    let os_error = if takes_space && rng.one_in(2) { ENOSPC } else { EIO };
    let nth = 1 + rng.below(most) as u64;
    let rule = FaultRule::new(kind, nth, os_error).landing(Class::random(8, rng));
    (rule, format!("{kind:?} {nth} from now fails with error {os_error}"))
}

/// A read that is to return wrong bytes: with a bit flipped, or another place's. Not those of a file that keeps what was
/// cut: it is a copy of what a dead life had in the very same places, which an entry read alone cannot tell from its own,
/// as it could not where a device lost the write over it.
fn draw_lie(rng: &mut Rng, image: &SimDisk) -> FaultRule {
    let nth = 1 + rng.below(24) as u64;
    if rng.one_in(2) {
        // Any of what is read, or of the head that a frame begins with.
        let bits = if rng.one_in(2) { 8 * HEAD_BYTES as u64 } else { u64::MAX };
        return FaultRule::bit_error(nth, rng.next_u64() % bits);
    }
    let mut names = image.file_names();
    names.retain(|name| names::classify(name) != Name::Cut);
    let other = names.get(rng.below(names.len().max(1))).filter(|_| rng.one_in(2));
    let bytes = other.or(names.first()).and_then(|name| image.contents(name).ok()).map_or(0, |content| content.len());
    let rule = FaultRule::misdirected(OpKind::Read, nth, 512 * rng.below(1 + bytes / 512) as u64);
    match other {
        Some(name) => rule.to(name),
        None => rule,
    }
}

/// Opens an image for reading, which must write nothing, and compares what is there with what a writing open found.
fn look_without_writing(image: &SimDisk, found: &Contents) -> Result<(), String> {
    let log = Log::open_read_only_on(Arc::new(image.clone()));
    let (log, _) = log.map_err(|error| format!("an open for reading refuses what one for writing takes: {error}"))?;
    let entries: Result<Vec<_>, Error> = log.iter(..).collect();
    let entries =
        entries.map_err(|error| format!("an open for reading cannot read what one for writing can: {error}"))?;
    let hard_state = log.meta().into_iter().collect();
    let state = log.state();
    let (compacted, last) = (state.compacted, found.entries.last().map(|last| (last.index, last.term)));
    let shown = Contents { entries, compacted, next: found.next, last_term: found.last_term, hard_state };
    if shown != *found || state.last != last {
        return Err(format!("an open for reading shows something else: {}", second_differs(found, &shown)));
    }
    let counters = image.counters();
    let writing = [OpKind::Write, OpKind::Sync, OpKind::Create, OpKind::Rename, OpKind::Remove, OpKind::SyncDir];
    match writing.iter().find(|&&kind| counters.of(kind) > 0) {
        Some(kind) => Err(format!("an open for reading does a {kind:?}")),
        None => Ok(()),
    }
}

fn not_a_prefix(why: &str) -> String {
    format!("what is found is no prefix of the operations that has every acknowledged one:\n  {why}")
}

fn second_differs(first: &Contents, second: &Contents) -> String {
    let sketch = |contents: &Contents| {
        let indexes = contents.entries.first().map(|first| first.index..contents.next.unwrap_or(0));
        format!("entries {indexes:?}, compacted {:?}, next {:?}", contents.compacted, contents.next)
    };
    let mut pairs = first.entries.iter().zip(&second.entries);
    let differing = pairs.find(|(one, other)| one != other).map(|(one, _)| format!(", from entry {} on", one.index));
    let (one, other) = (sketch(first), sketch(second));
    format!("a second recovery decides otherwise{}: first {one}; then {other}", differing.unwrap_or_default())
}
