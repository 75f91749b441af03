//! What goes wrong on purpose, and what is counted: faults by rule and by seed, and operation counters.
//!
//! Invariant: a fault strikes by counting operations, never by time, so that a failing test fails again. Chance, too,
//! counts: what befalls the n-th operation of a kind follows from the seed, the kind and n alone, whatever operations of
//! other kinds came between.
//!
//! Knows what is to go wrong, not how: the ways of doing it are in `state` and `medium`.

use std::fmt;
use std::sync::Arc;

use super::class::{Class, UNIT_BYTES};
use super::rng::Rng;

/// What a disk is asked to do, as faults and counters see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OpKind {
    /// A read of a file.
    Read,
    /// An attempt at a write, by a driver or directly: what goes on after a short write is the next one.
    Write,
    /// A sync of a file, by a driver or directly.
    Sync,
    /// An open that makes or empties a file; a missing lock file counts too.
    Create,
    /// Any other open.
    Open,
    /// [`DiskFile::allocate`](crate::disk::DiskFile::allocate).
    Allocate,
    /// A rename.
    Rename,
    /// The removal of a name.
    Remove,
    /// A sync of the directory.
    SyncDir,
    /// A listing of the directory.
    List,
    /// A question for a file's size.
    Size,
    /// An attempt at a lock.
    Lock,
    /// The making of a driver.
    Driver,
}

impl OpKind {
    /// Every kind.
    pub const ALL: [OpKind; KINDS] = [
        OpKind::Read,
        OpKind::Write,
        OpKind::Sync,
        OpKind::Create,
        OpKind::Open,
        OpKind::Allocate,
        OpKind::Rename,
        OpKind::Remove,
        OpKind::SyncDir,
        OpKind::List,
        OpKind::Size,
        OpKind::Lock,
        OpKind::Driver,
    ];

    /// Whether it may need room on the medium.
    fn takes_room(self) -> bool {
        use OpKind::{Allocate, Create, Rename, Sync, SyncDir, Write};
        matches!(self, Write | Sync | Create | Allocate | Rename | SyncDir)
    }
}

/// Number of kinds, for tables indexed by kind.
const KINDS: usize = OpKind::Driver as usize + 1;

/// What can befall one operation. The module's table says what a log can promise under each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails.
    Error {
        /// The number of the operating system (`errno`).
        os_error: i32,
        /// What of a write reaches the file all the same; of a sync that drops pages, what had reached the medium.
        lands: Class,
        /// Of a sync: what it should have covered is no longer in memory, reads show what the medium has.
        drops_pages: bool,
    },
    /// A write transfers only so many bytes; the driver goes on with the rest, as the real ones do.
    Short {
        /// Bytes from its start that are written; as many as it has, or more, make it a whole one.
        bytes: usize,
    },
    /// A write or sync of a driver completes only after so many others did.
    Slow {
        /// How many. Where nothing else is in flight, time passes at once.
        completions: u64,
    },
    /// A write or sync of a driver completes only when [`SimDisk::complete`](super::SimDisk::complete) says so.
    Held,
    /// A bit of the medium flips for good: one of what the operation writes or reads.
    BitRot {
        /// Which, counted from the lowest bit of the first byte, modulo what there is.
        bit: u64,
    },
    /// A bit that is read flips on the way; the medium is right.
    BitError {
        /// Which, as for [`Fault::BitRot`].
        bit: u64,
    },
    /// A write lands, or a read takes its bytes, elsewhere.
    Misdirected {
        /// The file; `None` is its own.
        file: Option<Arc<str>>,
        /// Where in that file: a multiple of 512. A write past its end goes nowhere, a read finds zeros.
        offset: u64,
    },
}

/// Makes something go wrong with the n-th operation of a kind from now.
#[derive(Clone, Debug)]
pub struct FaultRule {
    op: OpKind,
    /// Matching operations that still go through before the rule fires.
    spared: u64,
    name: Option<String>,
    for_good: bool,
    fault: Fault,
}

/// What happens.
impl FaultRule {
    /// The `nth` operation of the kind from now (1 is the very next) fails, once, with this number of the operating
    /// system (`errno`).
    pub fn new(op: OpKind, nth: u64, os_error: i32) -> FaultRule {
        FaultRule::of(op, nth, Fault::Error { os_error, lands: Class::Absent, drops_pages: false })
    }

    /// The `nth` fails with an I/O error (`EIO`).
    pub fn io_error(op: OpKind, nth: u64) -> FaultRule {
        FaultRule::new(op, nth, EIO)
    }

    /// The `nth` fails because the disk is full (`ENOSPC`).
    pub fn no_space(op: OpKind, nth: u64) -> FaultRule {
        FaultRule::new(op, nth, ENOSPC)
    }

    /// The `nth` write transfers only `bytes` bytes. What goes on with the rest is a write of its own, for this and all
    /// other rules.
    pub fn short_write(nth: u64, bytes: usize) -> FaultRule {
        FaultRule::of(OpKind::Write, nth, Fault::Short { bytes })
    }

    /// The `nth` write or sync completes only after so many others; see [`Fault::Slow`]. It concerns drivers in
    /// [`Mode::Random`](super::Mode::Random): elsewhere a hand completes operations, and needs no rule for it.
    pub fn slow(op: OpKind, nth: u64, completions: u64) -> FaultRule {
        FaultRule::of(op, nth, Fault::Slow { completions })
    }

    /// The `nth` write or sync completes only when it is told to; see [`Fault::Held`].
    pub fn held(op: OpKind, nth: u64) -> FaultRule {
        FaultRule::of(op, nth, Fault::Held)
    }

    /// A bit of what the `nth` write writes, or of what the `nth` read finds, is wrong on the medium from then on.
    /// [`SimDisk::rot_bit`](super::SimDisk::rot_bit) does it at any moment.
    pub fn bit_rot(op: OpKind, nth: u64, bit: u64) -> FaultRule {
        FaultRule::of(op, nth, Fault::BitRot { bit })
    }

    /// A bit of what the `nth` read reads is wrong; the next read of the place is right.
    pub fn bit_error(nth: u64, bit: u64) -> FaultRule {
        FaultRule::of(OpKind::Read, nth, Fault::BitError { bit })
    }

    /// The `nth` write or read happens at another offset of its file; [`FaultRule::to`] names another file.
    pub fn misdirected(op: OpKind, nth: u64, offset: u64) -> FaultRule {
        FaultRule::of(op, nth, Fault::Misdirected { file: None, offset })
    }

    /// The `nth` operation of the kind from now meets this fault.
    ///
    /// # Panics
    ///
    /// Where `nth` is 0, or the kind of operation cannot meet such a fault.
    pub fn of(op: OpKind, nth: u64, fault: Fault) -> FaultRule {
        assert!(nth > 0, "the next operation is number 1");
        let is_possible = match &fault {
            Fault::Error { .. } => true,
            Fault::Short { .. } => op == OpKind::Write,
            Fault::Slow { .. } | Fault::Held => matches!(op, OpKind::Write | OpKind::Sync),
            Fault::BitRot { .. } => matches!(op, OpKind::Write | OpKind::Read),
            Fault::BitError { .. } => op == OpKind::Read,
            Fault::Misdirected { offset, .. } => {
                matches!(op, OpKind::Write | OpKind::Read) && offset.is_multiple_of(UNIT_BYTES as u64)
            }
        };
        assert!(is_possible, "{fault:?} does not befall a {op:?}");
        FaultRule { op, spared: nth - 1, name: None, for_good: false, fault }
    }
}

/// To what it happens, and how often.
impl FaultRule {
    /// Every later matching operation meets it too.
    #[must_use]
    pub fn for_good(mut self) -> FaultRule {
        self.for_good = true;
        self
    }

    /// Only operations on the file of this name match, and are counted. For a rename it is the old name.
    #[must_use]
    pub fn on(mut self, name: &str) -> FaultRule {
        self.name = Some(name.to_string());
        self
    }

    /// What of a failing write reaches the file all the same (default: nothing). It can be read, may or may not
    /// survive a crash, and no later sync makes it durable. Of a sync that drops its pages: what had reached the medium.
    ///
    /// # Panics
    ///
    /// Where nothing fails.
    #[must_use]
    pub fn landing(mut self, class: Class) -> FaultRule {
        let Fault::Error { lands, .. } = &mut self.fault else { panic!("{:?} is no failure", self.fault) };
        *lands = class;
        self
    }

    /// A failing sync drops what it should have covered from memory, as some kernels do: from then on reads show what the
    /// medium has, which is old content as far as [`FaultRule::landing`] does not say otherwise.
    ///
    /// # Panics
    ///
    /// Where it is no sync that fails.
    #[must_use]
    pub fn dropping_pages(mut self) -> FaultRule {
        assert!(self.op == OpKind::Sync, "a {:?} drops no pages", self.op);
        let Fault::Error { drops_pages, .. } = &mut self.fault else { panic!("{:?} is no failure", self.fault) };
        *drops_pages = true;
        self
    }

    /// The file that is hit instead of the right one; where there is none of that name, its own.
    ///
    /// # Panics
    ///
    /// Where nothing is misdirected.
    #[must_use]
    pub fn to(mut self, name: &str) -> FaultRule {
        let Fault::Misdirected { file, .. } = &mut self.fault else { panic!("{:?} misdirects nothing", self.fault) };
        *file = Some(Arc::from(name));
        self
    }
}

/// How often chance strikes: each is one operation in so many of those that can meet it, and 0 is never.
///
/// ```
/// use ringwal::sim::{FaultRates, SimDisk};
///
/// let disk = SimDisk::new(7);
/// disk.fail_by_chance(FaultRates { short_writes: 10, slow: 20, ..FaultRates::default() }, 7);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultRates {
    /// Operations of any kind that fail with an I/O error.
    pub io_errors: usize,
    /// Operations that may need room and find none.
    pub no_space: usize,
    /// Failures after which every later operation of the kind fails the same way.
    pub for_good: usize,
    /// Writes that transfer only a part.
    pub short_writes: usize,
    /// Writes and syncs that complete only after up to eight others.
    pub slow: usize,
    /// Failing syncs that drop the pages they should have covered.
    pub dropped_pages: usize,
    /// Writes of which a bit is wrong on the medium.
    pub bit_rot: usize,
    /// Reads of which a bit is wrong on the way.
    pub bit_errors: usize,
    /// Writes that land elsewhere.
    pub misdirected_writes: usize,
    /// Reads that come from elsewhere.
    pub misdirected_reads: usize,
}

impl FaultRates {
    /// Failures that are reported, one operation in so many, and delays: a log survives them without losing anything it
    /// acknowledged.
    pub fn honest(one_in: usize) -> FaultRates {
        FaultRates {
            io_errors: one_in * 4,
            no_space: one_in * 4,
            for_good: 8,
            short_writes: one_in,
            slow: one_in,
            dropped_pages: 2,
            ..FaultRates::default()
        }
    }

    /// Damage that nothing reports, one read or write in so many: all a log can do is notice.
    pub fn lying(one_in: usize) -> FaultRates {
        FaultRates {
            bit_rot: one_in,
            bit_errors: one_in,
            misdirected_writes: one_in,
            misdirected_reads: one_in,
            ..FaultRates::default()
        }
    }
}

/// A fault that struck: for reports, and for tests that must know what happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Struck {
    /// What it struck.
    pub op: OpKind,
    /// Which operation of the kind, counted from 1 since the disk was made.
    pub nth: u64,
    /// The file; empty where it is the directory's.
    pub file: Arc<str>,
    /// What it did.
    pub fault: Fault,
}

impl fmt::Display for Struck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Struck { op, nth, file, fault } = self;
        write!(f, "{op:?} {nth} {file}: {fault:?}")
    }
}

/// Strokes that are remembered: a rule for good must not fill the memory.
const STRUCK_MAX: usize = 1024;

/// An operation as faults see it.
pub(super) struct Asked<'a> {
    pub(super) op: OpKind,
    /// Which of its kind, from 1.
    pub(super) nth: u64,
    pub(super) name: &'a Arc<str>,
    /// How much it reads or writes.
    pub(super) bytes: usize,
}

/// Rates, and the seed that they strike by.
#[derive(Clone, Debug)]
struct Chance {
    rates: FaultRates,
    seed: u64,
}

/// The faults in force, and those that struck.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    rules: Vec<FaultRule>,
    chance: Option<Chance>,
    pub(super) struck: Vec<Struck>,
}

impl Faults {
    pub(super) fn add(&mut self, rule: FaultRule) {
        self.rules.push(rule);
    }

    pub(super) fn set_chance(&mut self, rates: FaultRates, seed: u64) {
        self.chance = (rates != FaultRates::default()).then_some(Chance { rates, seed });
    }

    pub(super) fn clear(&mut self) {
        (self.rules, self.chance) = (Vec::new(), None);
    }

    /// Whether nothing can go wrong.
    pub(super) fn are_idle(&self) -> bool {
        self.rules.is_empty() && self.chance.is_none()
    }

    /// Counts an operation against all rules that match it; what befalls it by the first that fires, or else by chance.
    /// `place` draws a place of the disk for what goes astray.
    pub(super) fn strike(
        &mut self,
        asked: &Asked<'_>,
        place: impl Fn(&mut Rng) -> Option<(Arc<str>, u64)>,
    ) -> Option<Fault> {
        let fault = self.by_rule(asked).or_else(|| self.by_chance(asked, place))?;
        if self.struck.len() < STRUCK_MAX {
            let (op, nth, file) = (asked.op, asked.nth, asked.name.clone());
            self.struck.push(Struck { op, nth, file, fault: fault.clone() });
        }
        Some(fault)
    }

    fn by_rule(&mut self, asked: &Asked<'_>) -> Option<Fault> {
        let mut fault = None;
        self.rules.retain_mut(|rule| {
            if rule.op != asked.op || rule.name.as_deref().is_some_and(|wanted| *wanted != **asked.name) {
                return true;
            }
            if rule.spared > 0 {
                rule.spared -= 1;
                return true;
            }
            fault.get_or_insert_with(|| rule.fault.clone());
            rule.for_good
        });
        fault
    }

    fn by_chance(&mut self, asked: &Asked<'_>, place: impl Fn(&mut Rng) -> Option<(Arc<str>, u64)>) -> Option<Fault> {
        let Chance { rates, seed } = self.chance.as_ref()?;
        let mut rng = Rng::new(Rng::new(seed ^ (asked.op as u64) << 56).next_u64() ^ asked.nth);
        let fault = rates.draw(asked, &mut rng, place)?;
        if matches!(fault, Fault::Error { .. }) && strikes(rates.for_good, &mut rng) {
            self.rules.push(FaultRule::of(asked.op, 1, fault.clone()).for_good());
        }
        Some(fault)
    }
}

fn strikes(one_in: usize, rng: &mut Rng) -> bool {
    one_in > 0 && rng.one_in(one_in)
}

impl FaultRates {
    fn draw(
        &self,
        asked: &Asked<'_>,
        rng: &mut Rng,
        place: impl Fn(&mut Rng) -> Option<(Arc<str>, u64)>,
    ) -> Option<Fault> {
        let Asked { op, bytes, .. } = *asked;
        if strikes(self.io_errors, rng) {
            return Some(self.failure(op, EIO, rng));
        }
        if op.takes_room() && strikes(self.no_space, rng) {
            return Some(self.failure(op, ENOSPC, rng));
        }
        let is_write = op == OpKind::Write;
        if is_write && bytes > 1 && strikes(self.short_writes, rng) {
            return Some(Fault::Short { bytes: 1 + rng.below(bytes - 1) });
        }
        if (is_write || op == OpKind::Sync) && strikes(self.slow, rng) {
            return Some(Fault::Slow { completions: 1 + rng.below(8) as u64 });
        }
        if is_write && strikes(self.bit_rot, rng) {
            return Some(Fault::BitRot { bit: rng.next_u64() });
        }
        if op == OpKind::Read && strikes(self.bit_errors, rng) {
            return Some(Fault::BitError { bit: rng.next_u64() });
        }
        let goes_astray = match op {
            OpKind::Write => strikes(self.misdirected_writes, rng),
            OpKind::Read => strikes(self.misdirected_reads, rng),
            _ => false,
        };
        let (file, offset) = if goes_astray { place(rng)? } else { return None };
        Some(Fault::Misdirected { file: Some(file), offset })
    }

    fn failure(&self, op: OpKind, os_error: i32, rng: &mut Rng) -> Fault {
        let drops_pages = op == OpKind::Sync && strikes(self.dropped_pages, rng);
        let lands = match op {
            OpKind::Write | OpKind::Sync if rng.one_in(2) => Class::Scattered(rng.next_u64()),
            _ => Class::Absent,
        };
        Fault::Error { os_error, lands, drops_pages }
    }
}

/// Operations a disk was asked for since it was made, failed ones included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    by_kind: [u64; KINDS],
    /// Bytes that writes were asked to write.
    pub bytes_written: u64,
    /// Bytes that reads returned.
    pub bytes_read: u64,
}

impl Counters {
    /// Operations of one kind.
    pub fn of(&self, kind: OpKind) -> u64 {
        self.by_kind[kind as usize]
    }

    /// All operations.
    pub fn total(&self) -> u64 {
        self.by_kind.iter().sum()
    }

    pub(super) fn count(&mut self, kind: OpKind) {
        self.by_kind[kind as usize] += 1;
    }
}

pub(super) const EIO: i32 = rustix::io::Errno::IO.raw_os_error();
pub(super) const ENOSPC: i32 = rustix::io::Errno::NOSPC.raw_os_error();
pub(super) const EINVAL: i32 = rustix::io::Errno::INVAL.raw_os_error();
