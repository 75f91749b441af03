//! Crashes: from one frozen state of a simulated disk to every image that a power failure or a kill may leave of it.
//!
//! A [`CrashPoint`] lists its *loose ends* in a fixed order: first the writes and size changes of each file that no
//! sync has covered (in order of completion, those in flight last), then the directory operations that no directory
//! sync has covered. A fate for each of them, a [`Class`], makes an image: a fresh disk with everything durable, no
//! locks, nothing in flight. Making an image copies only the files that a kept write alters.

use std::fmt::Write as _;
use std::sync::Arc;

use super::class::{Class, units_of};
use super::disk::{InFlight, OpId, SimDisk, SimOptions, view};
use super::medium::{Change, Content, DirOp, Edit, Flight, FlightKind, Inode, InodeId, Medium, Names, Standing, put};
use super::rng::Rng;

/// How many images [`SimDisk::crash_images`] makes at most.
const IMAGES_MAX: usize = 1024;

/// Something that a power failure at this moment keeps or loses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LooseEnd {
    /// The file's present name; of a directory operation, the name before it.
    pub file: Arc<str>,
    /// What is at stake.
    pub what: Loose,
}

/// The kinds of loose ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loose {
    /// A write: any subset of its units may survive.
    Write {
        /// Where it writes.
        offset: u64,
        /// How much.
        bytes: usize,
        /// The operation, where it is still in flight.
        in_flight: Option<OpId>,
    },
    /// The size grew.
    Grown {
        /// At least to this.
        to: u64,
    },
    /// All bytes were dropped.
    Emptied,
    /// The name was made.
    Created,
    /// The name was changed.
    Renamed {
        /// The new name.
        to: Arc<str>,
    },
    /// The name was removed.
    Removed,
}

impl LooseEnd {
    /// How many units may survive or not: 1 for anything that is not a write.
    pub fn units(&self) -> usize {
        match self.what {
            Loose::Write { offset, bytes, .. } => units_of(offset, bytes),
            _ => 1,
        }
    }

    /// Whether it is an operation that had not completed.
    pub fn is_in_flight(&self) -> bool {
        matches!(self.what, Loose::Write { in_flight: Some(_), .. })
    }
}

/// One alteration on the way from the durable content to an image.
#[derive(Clone)]
struct Step {
    inode: InodeId,
    edit: Edit,
    /// Durable already: it has no loose end.
    is_settled: bool,
}

/// What becomes of an operation in flight when its process is killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Landing {
    /// These units of it were written (and may still be lost to a power failure); the rest never will be.
    Units(Class),
    /// The kernel still works on it: it stays in flight, keeps the lock of the open file it went through, and lands
    /// when [`SimDisk::complete`] is called on the killed disk.
    Queued,
}

/// A frozen state of a disk. Cheap to take and independent of the disk it was taken from.
#[derive(Clone)]
pub struct CrashPoint {
    medium: Medium,
    options: SimOptions,
    steps: Vec<Step>,
    ends: Vec<LooseEnd>,
}

impl CrashPoint {
    pub(super) fn new(medium: Medium, options: SimOptions) -> CrashPoint {
        let mut point = CrashPoint { medium, options, steps: Vec::new(), ends: Vec::new() };
        for inode in 0..point.medium.inodes.len() {
            if point.has_steps(inode) && point.medium.may_have_a_name(inode) {
                point.gather(inode);
            }
        }
        let names = point.medium.dir_ops.iter().map(name_end);
        point.ends.extend(names);
        point
    }

    fn has_steps(&self, inode: InodeId) -> bool {
        !self.medium.inodes[inode].changes.is_empty() || self.medium.flights.iter().any(|flight| flight.inode == inode)
    }

    /// Lists the alterations of one file, in order.
    fn gather(&mut self, inode: InodeId) {
        let name = self.medium.name_of(inode);
        for Change { edit, standing, .. } in &self.medium.inodes[inode].changes {
            let is_settled = *standing == Standing::Settled;
            self.steps.push(Step { inode, edit: edit.clone(), is_settled });
            if !is_settled {
                self.ends.push(LooseEnd { file: name.clone(), what: loose(edit, None) });
            }
        }
        let size = self.medium.inodes[inode].size();
        for flight in self.medium.flights.iter().filter(|flight| flight.inode == inode) {
            let FlightKind::Write { offset, data, .. } = &flight.kind else { continue };
            let to = offset + data.len() as u64;
            let growth = (to > size).then_some(Edit::Grow { to });
            let write = Edit::Write { offset: *offset, data: data.clone() };
            for edit in growth.into_iter().chain([write]) {
                self.ends.push(LooseEnd { file: name.clone(), what: loose(&edit, Some(flight.id)) });
                self.steps.push(Step { inode, edit, is_settled: false });
            }
        }
    }

    /// Everything that a power failure here keeps or loses, in the order of the fates of [`CrashPoint::image`].
    pub fn loose_ends(&self) -> &[LooseEnd] {
        &self.ends
    }

    /// The image in which each loose end has the given fate.
    ///
    /// # Panics
    ///
    /// Where there are not as many fates as loose ends.
    pub fn image(&self, fates: &[Class]) -> SimDisk {
        assert_eq!(fates.len(), self.ends.len(), "one fate for each loose end");
        let mut fates = fates.iter();
        let mut files: Vec<Sketch> = self.medium.inodes.iter().map(Sketch::new).collect();
        for step in &self.steps {
            if step.is_settled {
                files[step.inode].apply(&step.edit, &Class::Whole, true);
            } else if let Some(fate) = fates.next() {
                files[step.inode].apply(&step.edit, fate, false);
            }
        }
        let mut names = self.medium.durable_names.clone();
        for (operation, fate) in self.medium.dir_ops.iter().zip(fates) {
            if *fate != Class::Absent {
                operation.apply(Arc::make_mut(&mut names));
            }
        }
        self.disk_of(files, names)
    }

    fn disk_of(&self, files: Vec<Sketch>, names: Arc<Names>) -> SimDisk {
        let inodes = files.into_iter().map(|file| Inode::at_rest(file.finish())).collect();
        SimDisk::on(Medium::at_rest(inodes, names), self.options)
    }

    /// The image in which each loose end has the fate that `choose` gives it.
    pub fn image_where(&self, choose: impl FnMut(&LooseEnd) -> Class) -> SimDisk {
        let fates: Vec<Class> = self.ends.iter().map(choose).collect();
        self.image(&fates)
    }

    /// The image in which only what is durable survived.
    pub fn lose_all(&self) -> SimDisk {
        self.image_where(|_| Class::Absent)
    }

    /// The image in which everything survived, writes in flight included.
    pub fn keep_all(&self) -> SimDisk {
        self.image_where(|_| Class::Whole)
    }

    /// The image in which everything that had completed survived, and nothing of what was in flight.
    pub fn keep_completed(&self) -> SimDisk {
        self.image_where(|end| if end.is_in_flight() { Class::Absent } else { Class::Whole })
    }

    /// Random fates: the same for the same seed.
    pub fn random_fates(&self, seed: u64) -> Vec<Class> {
        let mut rng = Rng::new(seed);
        self.ends.iter().map(|end| Class::random(end.units(), &mut rng)).collect()
    }

    /// A random legal image: the same for the same seed.
    pub fn random_image(&self, seed: u64) -> SimDisk {
        self.image(&self.random_fates(seed))
    }

    /// How many combinations [`CrashPoint::fates`] would have to try to try them all.
    pub fn combinations(&self) -> usize {
        let classes = self.ends.iter().map(|end| Class::usual(end.units(), 0).len());
        classes.fold(1, |product: usize, count| product.saturating_mul(count))
    }

    /// Fates to try: all combinations of the usual classes where they are at most `limit`, else `limit` fates: all
    /// lost, all kept, each end alone kept, each alone lost, and then random ones by the seed.
    pub fn fates(&self, limit: usize, seed: u64) -> Fates<'_> {
        let is_exhaustive = self.combinations() <= limit;
        let missing = |place: usize| Rng::new(seed ^ place as u64).next_u64() as usize >> 1;
        let mut choices = Vec::new();
        if is_exhaustive {
            let usual = |(place, end): (usize, &LooseEnd)| Class::usual(end.units(), missing(place));
            choices = self.ends.iter().enumerate().map(usual).collect();
        }
        let left = if is_exhaustive { self.combinations() } else { limit };
        Fates { point: self, choices, is_exhaustive, made: 0, left, seed }
    }

    /// The images of [`CrashPoint::fates`].
    pub fn images(&self, limit: usize, seed: u64) -> impl Iterator<Item = SimDisk> + '_ {
        self.fates(limit, seed).map(|fates| self.image(&fates))
    }

    /// Fates in words, one loose end a line: for the report of a failing state.
    pub fn describe(&self, fates: &[Class]) -> String {
        let mut text = String::new();
        for (end, fate) in self.ends.iter().zip(fates) {
            writeln!(text, "{}: {:?} -> {fate:?}", end.file, end.what).expect("writing to a string succeeds");
        }
        text
    }

    /// The disk after the process was killed while the power stayed on: whatever had completed is still readable
    /// and, where no sync covered it, still at the mercy of a later power failure; `choose` decides about each
    /// operation in flight. Open files and locks are gone, but for those of queued operations. A sync that does not
    /// stay queued never happened.
    pub fn kill(&self, mut choose: impl FnMut(&InFlight) -> Landing) -> SimDisk {
        let mut medium = self.medium.clone();
        for flight in std::mem::take(&mut medium.flights) {
            match choose(&view(&self.medium, &flight)) {
                Landing::Queued => medium.flights.push(flight.orphaned()),
                Landing::Units(class) => land(&mut medium, &flight, &class),
            }
        }
        for inode in &mut medium.inodes {
            inode.lock = inode.lock.filter(|&holder| medium.flights.iter().any(|flight| flight.open == holder));
        }
        SimDisk::on(medium, self.options)
    }
}

/// Some units of a killed process's write were written, those that could be read already among them.
fn land(medium: &mut Medium, flight: &Flight, class: &Class) {
    let FlightKind::Write { offset, data, .. } = &flight.kind else { return };
    let seen = flight.landed.as_ref();
    let units =
        (0..units_of(*offset, data.len())).map(|unit| class.keeps(unit) || seen.is_some_and(|it| it.keeps(unit)));
    let both = Class::Units(units.collect());
    let at = medium.tick();
    medium.inodes[flight.inode].land(*offset, data, &both, at, Standing::Loose);
}

fn loose(edit: &Edit, in_flight: Option<OpId>) -> Loose {
    match edit {
        Edit::Write { offset, data } => Loose::Write { offset: *offset, bytes: data.len(), in_flight },
        Edit::Grow { to } => Loose::Grown { to: *to },
        Edit::Empty => Loose::Emptied,
    }
}

fn name_end(operation: &DirOp) -> LooseEnd {
    let (file, what) = match operation {
        DirOp::Create { name, .. } => (name, Loose::Created),
        DirOp::Rename { from, to, .. } => (from, Loose::Renamed { to: to.clone() }),
        DirOp::Remove { name } => (name, Loose::Removed),
    };
    LooseEnd { file: file.clone(), what }
}

/// A file of an image in the making: bytes may stand beyond its size until the size is known.
struct Sketch {
    content: Content,
    size: usize,
}

impl Sketch {
    fn new(inode: &Inode) -> Sketch {
        Sketch { content: inode.durable.clone(), size: inode.durable.len() }
    }

    /// Applies what survives of an edit; a durable write brings the size that makes it readable.
    fn apply(&mut self, edit: &Edit, fate: &Class, is_durable: bool) {
        if *fate == Class::Absent {
            return;
        }
        match edit {
            Edit::Write { offset, data } => {
                for run in fate.runs(*offset, data.len()) {
                    put(Arc::make_mut(&mut self.content), offset + run.start as u64, &data[run]);
                }
                if is_durable {
                    self.size = self.size.max(*offset as usize + data.len());
                }
            }
            Edit::Grow { to } => self.size = self.size.max(*to as usize),
            Edit::Empty => (self.content, self.size) = (Content::default(), 0),
        }
    }

    fn finish(mut self) -> Content {
        if self.content.len() != self.size {
            Arc::make_mut(&mut self.content).resize(self.size, 0);
        }
        self.content
    }
}

/// The fates to try at a crash point: see [`CrashPoint::fates`].
pub struct Fates<'a> {
    point: &'a CrashPoint,
    /// The classes of each end, where all combinations are tried.
    choices: Vec<Vec<Class>>,
    is_exhaustive: bool,
    made: usize,
    left: usize,
    seed: u64,
}

impl Fates<'_> {
    /// Whether all combinations are tried.
    pub fn is_exhaustive(&self) -> bool {
        self.is_exhaustive
    }

    /// The combination of this number: its digits, in the mixed radix of the ends' choices.
    fn combination(&self, mut number: usize) -> Vec<Class> {
        let mut digit = |classes: &Vec<Class>| {
            let class = classes[number % classes.len()].clone();
            number /= classes.len();
            class
        };
        self.choices.iter().map(&mut digit).collect()
    }

    /// The sample of this number.
    fn sample(&self, number: usize) -> Vec<Class> {
        let ends = self.point.ends.len();
        let all_but = |one: usize, other: Class, its: Class| {
            let mut fates = vec![other; ends];
            fates[one] = its;
            fates
        };
        match number {
            0 => vec![Class::Absent; ends],
            1 => vec![Class::Whole; ends],
            _ if number < 2 + ends => all_but(number - 2, Class::Absent, Class::Whole),
            _ if number < 2 + 2 * ends => all_but(number - 2 - ends, Class::Whole, Class::Absent),
            _ => self.point.random_fates(Rng::new(self.seed.wrapping_add(number as u64)).next_u64()),
        }
    }
}

impl Iterator for Fates<'_> {
    type Item = Vec<Class>;

    fn next(&mut self) -> Option<Vec<Class>> {
        if self.left == 0 {
            return None;
        }
        let number = self.made;
        self.left -= 1;
        self.made += 1;
        Some(if self.is_exhaustive { self.combination(number) } else { self.sample(number) })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Fates<'_> {}

/// Crashes of the present state, in short; [`SimDisk::crash_point`] gives the long form.
impl SimDisk {
    /// The image after a power failure in which each loose end has the fate that `choose` gives it.
    pub fn crash(&self, choose: impl FnMut(&LooseEnd) -> Class) -> SimDisk {
        self.crash_point().image_where(choose)
    }

    /// A random legal image after a power failure: the same for the same seed.
    pub fn crash_at_random(&self, seed: u64) -> SimDisk {
        self.crash_point().random_image(seed)
    }

    /// Images after a power failure: all combinations of the usual classes where they are few (up to 1024, hence with
    /// three writes and a few names at stake), else the extremes and a random sample.
    pub fn crash_images(&self) -> impl Iterator<Item = SimDisk> + use<> {
        let point = self.crash_point();
        let fates: Vec<Vec<Class>> = point.fates(IMAGES_MAX, point.options.seed).collect();
        fates.into_iter().map(move |fates| point.image(&fates))
    }

    /// The disk after the process was killed: see [`CrashPoint::kill`].
    pub fn kill(&self, choose: impl FnMut(&InFlight) -> Landing) -> SimDisk {
        self.crash_point().kill(choose)
    }
}
