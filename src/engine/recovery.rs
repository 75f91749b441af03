//! The table of recovery: every decision that it takes, as rows with names.
//!
//! Each table below is an enum with a row per variant, followed by the one function that picks the row from the facts.
//! The functions are total and pure; [`crate::segment::recover`] reads the files, gathers the facts, asks here, and does
//! what the row says. In the order in which recovery asks:
//!
//! | table | decides | an error for |
//! |---|---|---|
//! | [`Files`] | whether there is a log, and one log only | parts of several logs, a log that is gone |
//! | [`Header`] | what a segment's header block is worth | damage, a newer version, another name |
//! | [`Start`] | where the walk starts | |
//! | [`Older`] | how a segment before the start is known | its first frame, or the next one's, damaged |
//! | [`Next`] | whether the frame at a place is the next one | a newer version |
//! | [`Base`], [`Misfit`] | whether a frame that follows agrees with the state before it | all that does not |
//! | [`Stop`] | what it means that no frame follows in a segment | the run's first frame gone |
//! | [`Behind`] | torn or corrupt: what a head or mark behind the end proves | a witness, a newer version |
//! | [`Beginning`] | whether a segment is missing before the first one | a missing segment |
//! | [`Kept`] | what is written again | |
//! | [`Ending`], [`OpenFrame`] | what is cut, and where the open frame goes | |
//! | [`Blocks`], [`Spare`] | which segments behind the end may be used, and how | |
//!
//! The tests try every combination of facts against predicates that are stated apart from the functions: each meets
//! exactly one row. The tests of [`crate::segment`] inflict each row's damage on a log and look at what comes of it.
//!
//! Does not know files.

use std::collections::{BTreeMap, BTreeSet};

use super::ledger::Ledger;
use super::space;
use crate::error::Error;
use crate::format::frame::{Epoch, FoundOperation, FrameKind, Head, Operation, WholeFrame};
use crate::format::state::State;
use crate::plant::{Plant, planted};

/// Makes a table: an enum with a row per variant. Tests see all its rows, and learn which ones a recovery met.
macro_rules! table {
    ($(#[$doc:meta])* $table:ident { $($(#[$row_doc:meta])* $row:ident,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $table { $($(#[$row_doc])* $row,)* }

        impl $table {
            /// Tells a test that this row applied; nothing elsewhere.
            fn met(self) -> $table {
                #[cfg(test)]
                met::note(self.name());
                self
            }

            #[cfg(test)]
            pub(crate) const ALL: &'static [$table] = &[$($table::$row),*];

            #[cfg(test)]
            pub(crate) fn name(self) -> &'static str {
                match self { $($table::$row => concat!(stringify!($table), "::", stringify!($row)),)* }
            }
        }
    };
}

/// Which rows were met on this thread, for tests.
#[cfg(test)]
pub(crate) mod met {
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    thread_local! {
        static MET: RefCell<BTreeSet<&'static str>> = const { RefCell::new(BTreeSet::new()) };
    }

    pub(super) fn note(row: &'static str) {
        MET.with_borrow_mut(|met| met.insert(row));
    }

    /// The rows met since the last call.
    pub(crate) fn take() -> BTreeSet<&'static str> {
        MET.take()
    }
}

table! {
    /// What the files of a directory are together.
    Files {
        /// No segment and no mark: a writer makes a log.
        Empty,
        /// No segment and no mark, and a reader has nothing to show: error.
        NothingToRead,
        /// No segment, but a mark in the lock file says that frames were durable: error.
        AllGone,
        /// Segments of one size and one log; a mark, if one proves anything, is of that log too.
        OneLog,
        /// Segments of several sizes: error.
        SizesDiffer,
        /// Segments of several logs: error.
        LogsDiffer,
        /// The lock file's mark proves frames of another log durable: error.
        OtherMark,
    }
}

/// The facts for [`Files`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FilesFacts {
    pub(crate) has_segments: bool,
    pub(crate) sizes_agree: bool,
    pub(crate) logs_agree: bool,
    /// The lock file's mark: does it prove any frame durable, and is it of the segments' log?
    pub(crate) mark: Option<(bool, bool)>,
    pub(crate) read_only: bool,
}

pub(crate) fn files(facts: FilesFacts) -> Files {
    match facts {
        FilesFacts { has_segments: false, mark: Some((true, _)), .. } => Files::AllGone,
        FilesFacts { has_segments: false, read_only: true, .. } => Files::NothingToRead,
        FilesFacts { has_segments: false, .. } => Files::Empty,
        FilesFacts { sizes_agree: false, .. } => Files::SizesDiffer,
        FilesFacts { logs_agree: false, .. } => Files::LogsDiffer,
        // A mark that proves nothing is nothing: a log that began beside it would not open again.
        FilesFacts { mark: Some((true, false)), .. } => Files::OtherMark,
        _ => Files::OneLog,
    }
    .met()
}

table! {
    /// What the header block of a named segment is worth. It was durable before the file got its name: what does not
    /// verify is damaged, never torn.
    Header {
        /// It verifies, names this segment, and the file is as long as it says.
        Belongs,
        /// It verifies, but names another segment: error.
        OtherName,
        /// It verifies, but the file is shorter than it says: error.
        CutShort,
        /// A newer version wrote it: error.
        Newer,
        /// It does not verify: to a writer an error.
        Damaged,
        /// It does not verify, and a reader goes on by the salt that the frames carry.
        BySalt,
        /// It does not verify, and the frames tell a reader nothing either: error.
        Mute,
    }
}

/// The facts for [`Header`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderFacts {
    Verifies { is_own_name: bool, is_long_enough: bool },
    Newer,
    Damaged { frames_tell_salt: bool },
}

pub(crate) fn header(facts: HeaderFacts, read_only: bool) -> Header {
    match facts {
        HeaderFacts::Verifies { is_own_name: false, .. } => Header::OtherName,
        HeaderFacts::Verifies { is_long_enough: false, .. } => Header::CutShort,
        HeaderFacts::Verifies { .. } => Header::Belongs,
        HeaderFacts::Newer => Header::Newer,
        HeaderFacts::Damaged { .. } if !read_only => Header::Damaged,
        HeaderFacts::Damaged { frames_tell_salt: true } => Header::BySalt,
        HeaderFacts::Damaged { frames_tell_salt: false } => Header::Mute,
    }
    .met()
}

table! {
    /// Where the walk starts.
    Start {
        /// At the newest segment whose successor's first frame carries a watermark at or past its own first frame:
        /// everything before it was durable.
        NewestProved,
        /// At the run's first segment: no successor proves anything.
        NothingProved,
        /// At the run's first segment: everything is to be verified.
        Full,
    }
}

/// The segment where the walk starts, by the heads of all first frames.
pub(crate) fn start(first_heads: &[Option<Head>], full: bool) -> (Start, usize) {
    let is_proved = |at: &usize| match (&first_heads[*at], first_heads.get(*at + 1)) {
        (Some(this), Some(Some(next))) => witnesses(next.watermark, this.number),
        (this, _) => this.is_some() && planted(Plant::StartNotProved),
    };
    match (0..first_heads.len()).rev().find(is_proved) {
        _ if full => (Start::Full.met(), 0),
        Some(newest) => (Start::NewestProved.met(), newest),
        None => (Start::NothingProved.met(), 0),
    }
}

table! {
    /// How a segment before the walk's start is known: all of it is proved durable.
    Older {
        /// By its index file, which fits the segment as it is.
        ByIndex,
        /// By its frames: the index file is missing, stale or damaged.
        ByFrames,
        /// Its first frame is damaged: error.
        FirstLost,
        /// The first frame of the segment after it is damaged: error.
        NextLost,
    }
}

pub(crate) fn older(has_first: bool, has_next: bool, index_fits: impl FnOnce() -> bool) -> Older {
    match (has_first, has_next) {
        (false, _) => Older::FirstLost,
        (true, false) => Older::NextLost,
        (true, true) if index_fits() => Older::ByIndex,
        (true, true) => Older::ByFrames,
    }
    .met()
}

table! {
    /// What stands at the place where the next frame would.
    Next {
        /// The next frame: followed.
        Follows,
        /// A whole frame of a dead life, or of the file's past: the log goes on elsewhere, or ends.
        Stale,
        /// A head whose frame is not whole: torn or damaged.
        NotWhole,
        /// Nothing that verifies: torn, damaged or never written.
        Nothing,
        /// No place: the segment is full.
        SegmentEnds,
        /// A frame of this segment that a newer version wrote: error.
        Newer,
    }
}

/// The facts for [`Next`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    PastEnd,
    Nothing,
    NotWhole,
    Newer,
    Whole(Link),
}

/// How a whole frame agrees with the frame before it and with its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) number: bool,
    pub(crate) chain: bool,
    /// The same epoch, or an open frame with a higher counter.
    pub(crate) epoch: bool,
    pub(crate) place: bool,
}

impl Link {
    /// Where nothing stands before it the walk starts: what the frame says of number, chain and epoch is taken as given,
    /// its place is not.
    pub(crate) fn of(before: Option<&Head>, head: &Head, offset: u64) -> Link {
        let place = u64::from(head.offset) == offset;
        let Some(before) = before else { return Link { number: true, chain: true, epoch: true, place } };
        if planted(Plant::NeitherChainNorEpoch) {
            return Link { number: head.number > before.number, chain: true, epoch: true, place: true };
        }
        Link {
            number: before.number.checked_add(1) == Some(head.number),
            chain: head.chain == before.checksum,
            epoch: match head.kind {
                FrameKind::Open => head.epoch.counter > before.epoch.counter,
                FrameKind::Data | FrameKind::Mark => head.epoch == before.epoch,
            },
            place,
        }
    }

    /// Whether the frame follows.
    pub(crate) fn holds(self) -> bool {
        self.number && self.chain && self.epoch && self.place
    }
}

pub(crate) fn next(standing: Standing) -> Next {
    match standing {
        Standing::PastEnd => Next::SegmentEnds,
        Standing::Nothing => Next::Nothing,
        Standing::NotWhole => Next::NotWhole,
        Standing::Newer => Next::Newer,
        Standing::Whole(link) if link.holds() => Next::Follows,
        Standing::Whole(_) => Next::Stale,
    }
    .met()
}

table! {
    /// What a followed frame's base is to the state before it: the first frame of a segment carries a base, no other
    /// does.
    Base {
        /// It is the state: the walk starts here.
        Taken,
        /// It repeats the state.
        Agrees,
        /// There is none, and none is due.
        NotDue,
        /// It contradicts the state: error.
        Contradicts,
        /// It is missing where a segment begins: error.
        Missing,
        /// It stands where no segment begins: error.
        Misplaced,
    }
}

pub(crate) fn base(base: Option<&State>, begins_segment: bool, before: Option<&State>) -> Base {
    match (base, begins_segment, before) {
        (Some(_), true, None) => Base::Taken,
        (Some(base), true, Some(before)) if base == before => Base::Agrees,
        (Some(_), true, Some(_)) => Base::Contradicts,
        (Some(_), false, _) => Base::Misplaced,
        (None, true, _) => Base::Missing,
        (None, false, _) => Base::NotDue,
    }
    .met()
}

table! {
    /// Why a frame that verifies and follows cannot be: corrupt, or a mistake of the writer, never torn.
    Misfit {
        /// A watermark at or past the frame itself, or a counter at its end.
        Counters,
        /// See [`Base`].
        Base,
        /// A truncation names another last term than the entry that stays has.
        LastTerm,
        /// An operation that would be refused after those before it.
        Operation,
        /// The head's first index is not that of the entries.
        FirstIndex,
    }
}

table! {
    /// What it means that no frame follows in a segment, once nothing behind it there is a witness ([`Behind`]).
    Stop {
        /// The log goes on with the first frame of the next segment.
        Rolls,
        /// The log ends here, unless a later segment or the lock file has a witness.
        Ends,
        /// Nothing was followed in the log's very first segment: it was being made, unless there is a witness.
        Unborn,
        /// Nothing was followed elsewhere. A run's first frame was durable long ago, and so was the one where the walk
        /// starts: error.
        Lost,
    }
}

pub(crate) fn stop(has_followed: bool, is_very_first: bool, next_follows: bool) -> Stop {
    match (has_followed, is_very_first, next_follows) {
        (false, false, _) => Stop::Lost,
        (false, true, _) => Stop::Unborn,
        (true, _, true) => Stop::Rolls,
        (true, _, false) => Stop::Ends,
    }
    .met()
}

table! {
    /// What a head behind the end, in this segment or a later one, or a mark in the lock file says of the missing frame.
    Behind {
        /// A head whose watermark covers it: it was acknowledged, and is damaged. Error.
        Witness,
        /// A mark in the lock file whose watermark covers it: error.
        MarkWitness,
        /// A head that a newer version wrote: error.
        Newer,
        /// A head of the last frame's epoch, without such a watermark: it was in flight with the missing frame.
        InFlight,
        /// A head of another epoch, without such a watermark: of a dead life, or of one that had just begun.
        OtherLife,
        /// A mark without such a watermark: from before the missing frame.
        MarkBefore,
    }
}

/// The facts for [`Behind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Evidence {
    NewerHead,
    Head { watermark: u64, epoch: Epoch },
    Mark { watermark: u64 },
}

pub(crate) fn behind(evidence: Evidence, missing: u64, last_epoch: Option<Epoch>) -> Behind {
    match evidence {
        Evidence::NewerHead => Behind::Newer,
        Evidence::Head { watermark, .. } if witnesses(watermark, missing) => Behind::Witness,
        Evidence::Head { epoch, .. } if Some(epoch) == last_epoch => Behind::InFlight,
        Evidence::Head { .. } => Behind::OtherLife,
        Evidence::Mark { watermark } if witnesses(watermark, missing) => Behind::MarkWitness,
        Evidence::Mark { .. } => Behind::MarkBefore,
    }
    .met()
}

/// Whether a head, wherever it was found, proves that frame `number` was acknowledged.
pub(crate) fn witnesses(watermark: u64, number: u64) -> bool {
    watermark >= number
}

table! {
    /// Whether a segment is missing before the run's first one.
    Beginning {
        /// The run begins with segment 1.
        VeryFirst,
        /// The compaction point covers every index before the run: older segments were dropped.
        Covered,
        /// It does not: error.
        SegmentMissing,
        /// The frame that would tell is damaged: error.
        BaseLost,
    }
}

/// `base` is that of the run's first frame, and only asked for where the run does not begin with segment 1.
pub(crate) fn beginning(is_very_first: bool, base: Option<&State>, compacted: Option<u64>) -> Beginning {
    let first_readable = compacted.map_or(0, |index| index + 1);
    match base {
        _ if is_very_first => Beginning::VeryFirst,
        None => Beginning::BaseLost,
        Some(base) if base.next.is_some_and(|next| first_readable < next) => Beginning::SegmentMissing,
        Some(_) => Beginning::Covered,
    }
    .met()
}

table! {
    /// What becomes of a frame that is kept.
    Kept {
        /// A head or mark proves it durable: it stays as it is.
        Proved,
        /// It may be in the device's cache only: it is written again as it is.
        Rewritten,
    }
}

pub(crate) fn kept(number: u64, witnessed: u64) -> Kept {
    if witnesses(witnessed, number) { Kept::Proved.met() } else { Kept::Rewritten.met() }
}

table! {
    /// How the log ended.
    Ending {
        /// With a mark or open frame, and nothing of its epoch was in flight behind it: nothing is decided, nothing
        /// written.
        Clean,
        /// It was made just now: an open frame begins it.
        Created,
        /// In the middle of work: what is behind is cut and saved, and an open frame ends the old life.
        Cut,
    }
}

pub(crate) fn ending(last: Option<FrameKind>, in_flight_behind: bool, created: bool) -> Ending {
    match last {
        Some(FrameKind::Mark | FrameKind::Open) if !in_flight_behind => Ending::Clean,
        _ if created => Ending::Created,
        _ => Ending::Cut,
    }
    .met()
}

table! {
    /// Where the open frame goes.
    OpenFrame {
        /// To the cut.
        Here,
        /// To the first block of the segment behind: the one of the cut is full.
        NextSegment,
        /// Nowhere yet. The last blocks are for the compaction that frees something, and for the open frame before it.
        Deferred,
    }
}

/// `room_bytes` is left behind the cut in its segment.
pub(crate) fn open_frame(room_bytes: u64, block_bytes: u64, has_spare: bool) -> OpenFrame {
    match has_spare {
        false if room_bytes <= space::LAST_BLOCKS * block_bytes => OpenFrame::Deferred,
        true if room_bytes < block_bytes => OpenFrame::NextSegment,
        _ => OpenFrame::Here,
    }
    .met()
}

table! {
    /// Whether the blocks of the end's segment, and of the spares behind it, suit the device: it may write more as a
    /// whole than the one that the log was copied from.
    Blocks {
        /// All do.
        Fit,
        /// Those of the segment where the log ends are too small: it is left as it is, and the spares go.
        EndTooSmall,
        /// Those of the first segment of a log that was never begun are: there is nothing to go on from. Error.
        UnbornTooSmall,
        /// Those of a spare are: it goes, and those behind it.
        SpareTooSmall,
    }
}

pub(crate) fn blocks(end_is_too_small: bool, spare_is_too_small: bool, has_frames: bool) -> Blocks {
    match (end_is_too_small, spare_is_too_small) {
        (true, _) if !has_frames => Blocks::UnbornTooSmall,
        (true, _) => Blocks::EndTooSmall,
        (false, true) => Blocks::SpareTooSmall,
        (false, false) => Blocks::Fit,
    }
    .met()
}

table! {
    /// What a segment behind the end begins with.
    Spare {
        /// No frame: it is used as it is.
        Blank,
        /// A dead frame. Left there until this life's own frame lands on it, it would be taken for that, and for durable,
        /// as soon as the segment behind has a frame of this life: it is cleared.
        DeadFrame,
    }
}

pub(crate) fn spare(begins_with_frame: bool) -> Spare {
    if begins_with_frame { Spare::DeadFrame.met() } else { Spare::Blank.met() }
}

/// Carries the state of the log forward frame by frame.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    pub(crate) ledger: Ledger,
    /// The last frame followed.
    pub(crate) last: Option<Head>,
    /// Highest watermark in any head followed.
    pub(crate) witnessed: u64,
    pub(crate) entries: u64,
    pub(crate) frames: u64,
}

impl Replay {
    /// Number of the frame that comes next; `None` at the counter's end.
    pub(crate) fn expected(&self) -> Option<u64> {
        match &self.last {
            None => Some(1),
            Some(last) => last.number.checked_add(1).filter(|&number| number < u64::MAX),
        }
    }

    /// The entries whose terms decide whether the frame's truncations fit, where the index that would tell is not in
    /// memory: by segment and index. [`Replay::follow`] is to be told them.
    pub(crate) fn terms_wanted(&self, frame: &WholeFrame) -> BTreeSet<(u64, u64)> {
        let last_kept = |found: &FoundOperation| match found {
            FoundOperation::Other(Operation::Truncate { first_removed, .. }) => first_removed.checked_sub(1),
            _ => None,
        };
        let is_elsewhere = |index| {
            let segment = self.ledger.ranges.locate(index)?.sequence;
            (!self.ledger.indexes.contains_key(&segment)).then_some((segment, index))
        };
        frame.operations.iter().filter_map(last_kept).filter_map(is_elsewhere).collect()
    }

    /// Takes in a frame that is the [`Next::Follows`] one, which lies at `offset` in segment `sequence`; `terms` are
    /// those that [`Replay::terms_wanted`] asked for, by index.
    ///
    /// # Errors
    ///
    /// What does not fit, in words, for an error that names the place: the frame verifies, so this is corruption (or
    /// a mistake of the writer), never a torn write. See [`Misfit`].
    pub(crate) fn follow(
        &mut self,
        frame: &WholeFrame,
        (sequence, offset): (u64, u64),
        segment_bytes: u64,
        terms: &BTreeMap<u64, u64>,
    ) -> Result<(), String> {
        let head = &frame.head;
        if head.watermark >= head.number || head.number == u64::MAX || head.epoch.counter == u64::MAX {
            return Err(misfit(Misfit::Counters, "its counters are impossible"));
        }
        let begins_segment = self.ledger.ranges.newest().is_none_or(|newest| newest.sequence != sequence);
        self.take_base(frame, begins_segment)?;
        if begins_segment {
            self.ledger.add_segment(sequence, head.number);
        }
        let mut first_entry = None;
        for found in &frame.operations {
            let (operation, at) = operation_of(found);
            if let Operation::Entry { index, .. } = operation {
                first_entry = first_entry.or(Some(index));
                self.entries += 1;
            }
            self.check_last_term(&operation, terms)?;
            self.ledger.outline.check(&operation, segment_bytes).map_err(|error| does_not_fit(&error))?;
            self.ledger.apply(&operation, (offset + u64::from(at)) as u32);
        }
        if head.first_index != first_entry.or(self.ledger.outline.state.next) {
            return Err(misfit(Misfit::FirstIndex, "its first index is not that of its entries"));
        }
        self.witnessed = self.witnessed.max(head.watermark);
        self.frames += 1;
        self.last = Some(*head);
        Ok(())
    }

    /// A truncation says the term of the last entry that stays; where that is known, it must be so.
    fn check_last_term(&self, operation: &Operation, terms: &BTreeMap<u64, u64>) -> Result<(), String> {
        let Operation::Truncate { first_removed, last_term } = operation else { return Ok(()) };
        let known = first_removed.checked_sub(1).and_then(|last| {
            let told = || self.ledger.ranges.locate(last).and_then(|_| terms.get(&last).copied());
            self.ledger.term_of(last).or_else(told)
        });
        let fits = known.map_or(*last_term <= self.ledger.outline.state.last_term, |term| term == *last_term);
        let why = || format!("a truncation leaves term {last_term} last, which is not so");
        if fits { Ok(()) } else { Err(misfit(Misfit::LastTerm, why())) }
    }

    /// The first frame of a segment carries a base and no other does. Where the walk starts the base is the state;
    /// later it must agree with what was replayed.
    fn take_base(&mut self, frame: &WholeFrame, begins_segment: bool) -> Result<(), String> {
        let before = self.last.is_some().then_some(&self.ledger.outline.state);
        let why = match base(frame.base.as_ref(), begins_segment, before) {
            Base::Agrees | Base::NotDue => return Ok(()),
            Base::Taken => {
                self.begin_with(frame.base.clone().unwrap_or_default());
                return Ok(());
            }
            Base::Contradicts => "its base contradicts the frames before it",
            Base::Misplaced => "it carries a base but does not begin a segment",
            Base::Missing => "it begins a segment but carries no base",
        };
        Err(misfit(Misfit::Base, why))
    }

    fn begin_with(&mut self, base: State) {
        if let Some((index, _)) = base.compacted {
            self.ledger.ranges.compact_to(index);
        }
        self.ledger.ranges.truncate_from(base.next.unwrap_or(0));
        self.ledger.outline.state = base;
    }
}

/// Why a frame does not fit, in words.
fn misfit(row: Misfit, why: impl Into<String>) -> String {
    row.met();
    why.into()
}

fn does_not_fit(error: &Error) -> String {
    misfit(Misfit::Operation, format!("an operation does not fit the log before it: {error}"))
}

fn operation_of(found: &FoundOperation) -> (Operation, u32) {
    match found {
        FoundOperation::Other(operation) => (operation.clone(), 0),
        FoundOperation::Entry { header, offset } => {
            let (index, term, timestamp) = (header.index, header.term, header.timestamp);
            (Operation::Entry { index, term, timestamp, payload: bytes::Bytes::new() }, *offset)
        }
    }
}

/// The epoch of a new life: one above the highest counter seen in any head that verifies.
pub(crate) fn next_epoch(highest_counter: u64, random: u32) -> Option<Epoch> {
    let counter = highest_counter.checked_add(1).filter(|&counter| counter < u64::MAX)?;
    Some(Epoch { counter, random })
}

#[cfg(test)]
mod tests;
