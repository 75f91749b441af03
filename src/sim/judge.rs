//! The promises, checked: recovers images of a crash, a kill or a damaged disk and compares them with what must hold.
//!
//! What must hold is told by a [`Tale`]: the models after each batch that may be the last one kept, and how far the log
//! got. A power failure keeps what is durable, a kill what is written, damage is noticed up to what is witnessed.
//!
//! Does not know how the disk got into its state, nor which batches come next.

use std::collections::VecDeque;
use std::sync::Arc;

use super::class::Class;
use super::crash::{CrashPoint, Landing};
use super::disk::{InFlight, SimDisk};
use super::explore::{RealCheck, Summary};
use super::local::{Contents, LocalLog};
use super::model::Model;
use super::rng::Rng;
use crate::config::{Config, Verify};
use crate::error::Error;
use crate::format::frame::{self, FoundOperation, Head, HeadRead, Operation, WholeFrame};
use crate::format::segment::SegmentHeader;

/// One state in so many is also opened by the [`RealCheck`].
const REAL_EVERY: u64 = 1000;

/// At one crash point in so many, all combinations of fates are tried if they are at most so many.
const ALL_EVERY: usize = 16;
const ALL_OF: usize = 64;

/// A promise that does not hold, and where.
#[derive(Clone, Debug)]
pub(super) struct Finding {
    pub(super) promise: String,
    pub(super) place: String,
}

/// The log after a batch.
#[derive(Clone, Debug)]
pub(super) struct Version {
    /// The frame that the batch joined.
    pub(super) frame: u64,
    pub(super) model: Arc<Model>,
}

/// What may be found after a crash.
#[derive(Clone, Debug)]
pub(super) struct Tale {
    /// Oldest first; at least one, and the first is not newer than what is witnessed.
    versions: VecDeque<Version>,
    /// Frames up to this one are written: a killed process does not take them along.
    pub(super) written: u64,
    /// Frames up to this one survive power loss.
    pub(super) durable: u64,
    /// Frames up to this one are durable, and the disk says so.
    pub(super) witnessed: u64,
}

impl Tale {
    /// Nothing was ever written.
    pub(super) fn new() -> Tale {
        let empty = Version { frame: 0, model: Arc::default() };
        Tale { versions: [empty].into(), written: 0, durable: 0, witnessed: 0 }
    }

    /// The log with everything that was accepted.
    pub(super) fn newest(&self) -> &Arc<Model> {
        let Some(version) = self.versions.back() else { unreachable!("there is always one version") };
        &version.model
    }

    /// A batch was accepted.
    pub(super) fn push(&mut self, frame: u64, model: Model) {
        self.versions.push_back(Version { frame, model: Arc::new(model) });
    }

    /// The log reports how far it is.
    pub(super) fn advance(&mut self, log: &LocalLog) {
        let (written, durable) = log.progress();
        self.written = self.written.max(written);
        self.durable = self.durable.max(durable);
        self.witnessed = self.witnessed.max(log.witnessed());
        let first = self.position(self.witnessed.min(self.durable));
        self.versions.drain(..first);
    }

    /// The power failed.
    pub(super) fn lose_what_is_not_durable(&mut self) {
        self.written = self.durable;
    }

    /// The log was opened again and holds exactly the version of this number.
    pub(super) fn restart(&mut self, version: usize, log: &LocalLog) {
        self.versions.truncate(version + 1);
        let last = log.last_frame();
        (self.written, self.durable) = (last, last);
        self.advance(log);
    }

    /// The last version that everything up to `frame` is part of.
    fn position(&self, frame: u64) -> usize {
        self.versions.iter().rposition(|version| version.frame <= frame).unwrap_or(0)
    }

    /// The version that was found, of those that contain every frame up to `floor`.
    fn matching(&self, floor: u64, found: &Contents) -> Result<usize, String> {
        let first = self.position(floor);
        let candidates = self.versions.range(first..);
        if let Some(nth) = candidates.clone().rposition(|version| version.model.difference(found).is_none()) {
            return Ok(first + nth);
        }
        let say = |version: &Version| {
            let difference = version.model.difference(found).unwrap_or_default();
            format!("it is not the log after frame {}: {difference}", version.frame)
        };
        Err(candidates.map(say).collect::<Vec<_>>().join("\n  "))
    }
}

/// Checks images and counts what it saw.
pub(super) struct Judge<'a> {
    pub(super) config: Config,
    pub(super) rng: Rng,
    pub(super) summary: &'a mut Summary,
    pub(super) real: Option<&'a dyn RealCheck>,
    /// Images tried at each crash point.
    pub(super) images: usize,
}

impl Judge<'_> {
    /// Tries images of a crash point.
    pub(super) fn point(&mut self, point: &CrashPoint, tale: &Tale) -> Result<(), Finding> {
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
    fn image(
        &mut self,
        point: &CrashPoint,
        fates: &[Class],
        tale: &Tale,
        floor: u64,
        depth: usize,
    ) -> Result<(), Finding> {
        let place =
            |within: &str| format!("power failure{within}:\n{}{}", point.describe(fates), portray(&point.image(fates)));
        self.summary.note_fates(point, fates);
        let image = point.image(fates);
        let is_recorded = depth < 3 && self.rng.one_in(if depth == 0 { 16 } else { 8 });
        if is_recorded {
            image.start_recording();
        }
        let (log, found) = self.recover(&image).map_err(|promise| Finding { promise, place: place("") })?;
        let matching = tale.matching(floor, &found);
        matching.map_err(|why| Finding { promise: not_a_prefix(&why), place: place("") })?;
        let points = image.take_recording();
        if !log.report().was_clean && self.rng.one_in(2) || self.rng.one_in(8) {
            self.again(&image.crash_point(), &found, || place(", recovery, power failure"))?;
        }
        drop(log);
        for inner in self.some_of(&points, 3) {
            self.summary.crash_points_in_recovery += 1;
            let fates = self.draw(inner, 1);
            self.image(inner, &fates, tale, floor, depth + 1).map_err(|finding| Finding {
                place: format!("{}\nthen, during recovery, {}", place(""), finding.place),
                ..finding
            })?;
        }
        self.try_real(point, fates, &found).map_err(|promise| Finding { promise, place: place("") })?;
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

    /// Opens and reads; an error is a broken promise, for torn is not corrupt.
    pub(super) fn recover(&mut self, image: &SimDisk) -> Result<(LocalLog, Contents), String> {
        self.summary.states += 1;
        let verify = if self.rng.one_in(6) { Verify::Full } else { Verify::Tail };
        self.open(image, &self.config.clone().verify(verify))
            .map_err(|error| format!("a legal image is refused: {error}"))
    }

    fn open(&mut self, image: &SimDisk, config: &Config) -> Result<(LocalLog, Contents), Error> {
        self.summary.recoveries += 1;
        let log = LocalLog::open(image, config.clone(), self.rng.next_u64())?;
        self.summary.note_report(log.report());
        let contents = log.contents()?;
        Ok((log, contents))
    }

    /// What was found once must be found again, whatever a power failure takes now: nothing was written since.
    fn again(&mut self, point: &CrashPoint, found: &Contents, place: impl Fn() -> String) -> Result<(), Finding> {
        let nth = self.rng.below(2);
        let fates = self.draw(point, nth);
        let finding = |promise| Finding {
            promise,
            place: format!("{}:\n{}{}", place(), point.describe(&fates), portray(&point.image(&fates))),
        };
        let (_, again) = self
            .open(&point.image(&fates), &self.config.clone())
            .map_err(|error| finding(format!("what one recovery made is refused by the next: {error}")))?;
        if again == *found { Ok(()) } else { Err(finding(second_differs(found, &again))) }
    }

    /// Kills the process instead, recovers on the same medium, and then lets the power fail.
    pub(super) fn kill(&mut self, point: &CrashPoint, tale: &Tale) -> Result<(), Finding> {
        let (killed, story) = self.kill_image(point).map_err(|promise| Finding { promise, place: "a kill".into() })?;
        let before = killed.copy_at_rest();
        let place = || format!("kill: {story}\n{}", portray(&before));
        let (_log, found) = self.recover(&killed).map_err(|promise| Finding { promise, place: place() })?;
        let matching = tale.matching(tale.written, &found);
        matching.map_err(|why| Finding { promise: not_a_prefix(&why), place: place() })?;
        let after = killed.crash_point();
        (0..2).try_for_each(|_| self.again(&after, &found, || format!("{}, recovery, power failure", place())))
    }

    /// A disk after a kill, with no operation under way, and the story of it.
    pub(super) fn kill_image(&mut self, point: &CrashPoint) -> Result<(SimDisk, String), String> {
        self.summary.kills += 1;
        let (mut queued, mut story) = (false, String::new());
        let killed = point.kill(|operation: &InFlight| {
            let of_segment = operation.name.ends_with(".seg") && operation.file != 0 && !operation.is_sync;
            let landing = match self.rng.below(4) {
                0 if of_segment => Landing::Queued,
                _ => Landing::Units(Class::random(operation.bytes.div_ceil(512), &mut self.rng)),
            };
            queued |= landing == Landing::Queued;
            story.push_str(&format!("{} at {}: {landing:?}; ", operation.name, operation.offset));
            landing
        });
        if queued {
            self.summary.kills_with_queued_writes += 1;
            match LocalLog::open(&killed, self.config.clone(), self.rng.next_u64()) {
                Err(Error::Locked { .. }) => {}
                other => return Err(format!("queued writes of a killed process do not keep recovery out: {other:?}")),
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
        let place = || format!("power failure:\n{}{}{story}", point.describe(fates), portray(&point.image(fates)));
        let finding = |promise| Finding { promise, place: place() };
        match self.open(&image, &self.config.clone().verify(verify)) {
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

    /// Flips a bit or zeroes a unit, and tells the frame up to which the log must be as it was or refuse.
    fn harm(&mut self, image: &SimDisk, tale: &Tale) -> Option<(String, u64)> {
        let derived = self.rng.one_in(8);
        let wanted = if derived { ".idx" } else { ".seg" };
        let names: Vec<Arc<str>> = image.file_names().into_iter().filter(|name| name.ends_with(wanted)).collect();
        let from = if self.rng.one_in(3) { 0 } else { names.len().saturating_sub(3) };
        let name = names.get(from + self.rng.below((names.len() - from).max(1)))?;
        let content = image.contents(name).ok()?;
        let used = content.iter().rposition(|&byte| byte != 0)? + 1;
        let at = self.rng.below(used) as u64;
        let unit = at - at % 512..(at - at % 512 + 512).min(content.len() as u64);
        drop(content);
        let what = match self.rng.one_in(2) {
            true => image.flip_bit(name, at, self.rng.below(8) as u8).map(|()| "a bit flipped"),
            false => image.zero_range(name, unit).map(|()| "a unit zeroed"),
        };
        // An index file is derived: its damage changes nothing at all.
        let floor = if derived { tale.durable } else { tale.witnessed };
        Some((format!("{} at byte {at} of {name}\n", what.ok()?), floor))
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
    pub(super) fn revive(
        &mut self,
        sim: &SimDisk,
        tale: &Tale,
        floor: u64,
    ) -> Result<(LocalLog, usize, Vec<CrashPoint>), Finding> {
        let before = sim.copy_at_rest();
        let finding = |promise| Finding { promise, place: format!("the next life's recovery:\n{}", portray(&before)) };
        sim.start_recording();
        let (log, found) = self.recover(sim).map_err(finding)?;
        let points = sim.take_recording();
        sim.start_recording();
        let version = tale.matching(floor, &found).map_err(|why| finding(not_a_prefix(&why)))?;
        for point in self.some_of(&points, 6) {
            self.summary.crash_points_in_recovery += 1;
            let fates = self.draw(point, 1);
            // Even after a kill, which keeps more: until recovery is through, only the durable is safe from a power failure.
            self.image(point, &fates, tale, tale.durable, 1)?;
        }
        Ok((log, version, points))
    }
}

/// Every frame on a disk, a line each: what a person wants to see of a failing image.
pub(crate) fn portray(image: &SimDisk) -> String {
    let mut text = String::new();
    for name in image.file_names() {
        let Ok(content) = image.contents(&name) else { continue };
        text.push_str(&format!("{name}: {} bytes\n", content.len()));
        let Ok(header) = SegmentHeader::decode(&content) else { continue };
        for offset in (0..content.len()).step_by(header.block_bytes as usize) {
            let HeadRead::Head(head) = Head::decode(&content[offset..], header.salt) else { continue };
            let frame =
                content.get(offset..offset + head.frame_bytes as usize).map(|bytes| frame::verify(&head, bytes));
            let Head { kind, number, epoch, watermark, frame_bytes, .. } = head;
            text.push_str(&format!(
                "  {offset:6} {kind:?} {number}, {frame_bytes} bytes, epoch {}, watermark {watermark}: ",
                epoch.counter
            ));
            match frame {
                Some(Ok(frame)) => text.push_str(&told_frame(&frame)),
                _ => text.push_str("not whole\n"),
            }
        }
    }
    text
}

fn told_frame(frame: &WholeFrame) -> String {
    let base = frame.base.as_ref().map(|base| format!("base {:?} {:?}", base.compacted, base.next)).unwrap_or_default();
    let one = |operation: &FoundOperation| match operation {
        FoundOperation::Entry { header, .. } => format!("{}/{}", header.index, header.term),
        FoundOperation::Other(Operation::PutMeta { .. }) => "put".into(),
        FoundOperation::Other(other) => format!("{other:?}"),
    };
    format!("{base} {}\n", frame.operations.iter().map(one).collect::<Vec<_>>().join(" "))
}

fn not_a_prefix(why: &str) -> String {
    format!("what is found is no prefix of the operations that has every acknowledged one:\n  {why}")
}

fn second_differs(first: &Contents, second: &Contents) -> String {
    let sketch = |contents: &Contents| {
        let indexes = contents.entries.first().map(|first| first.index..contents.next.unwrap_or(0));
        format!("entries {indexes:?}, compacted {:?}, next {:?}", contents.compacted, contents.next)
    };
    format!("a second recovery decides otherwise: first {}; then {}", sketch(first), sketch(second))
}
