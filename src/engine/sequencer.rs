//! Batches in, frames out: assigns indexes, joins batches into frames, gives each frame its place, decides to roll.
//!
//! Runs under one short lock. Invariants:
//!
//! - A batch is accepted as one step: it is checked against a copy of the outline and its place is found first, so a
//!   refusal leaves nothing behind and an accepted batch has its space.
//! - Frames lie end to end in the order of their numbers; once the log has rolled, nothing goes to the segment before.
//! - The operations of one batch are never split over frames.
//! - The first frame of a segment carries the state before its own operations.
//! - Frame numbers: accepted >= acknowledged, durable; none moves back.
//!
//! Does not know when frames are written (the writer takes them), nor bytes, files or threads.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::ledger::{Ledger, Outline};
use super::operations::Operations;
use super::space::{self, Class};
use crate::entry::LogEntry;
use crate::error::Error;
use crate::format::INDEX_MAX;
use crate::format::frame::{FrameKind, HEAD_BYTES, Operation, operation_bytes};
use crate::format::state::State;
use crate::plant::{Plant, planted};

/// One operation as a caller asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Append at the next index with the last term.
    Push(Bytes),
    /// Append exactly this.
    Entry(LogEntry),
    /// Remove this index and all after it.
    Truncate(u64),
    PutMeta(Bytes, Bytes),
    DeleteMeta(Bytes),
    /// Drop all up to and including this index; without a term, it is the one in the log.
    Compact(u64, Option<u64>),
}

/// Why a batch was not accepted.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// It can never be accepted as it is.
    Error(Error),
    /// The term of this index is needed and is not known here: look it up and come again.
    NeedTerm(u64),
    /// There is no room until a spare stands behind the segment.
    NoRoom,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        Refusal::Error(error)
    }
}

/// A segment as far as placing frames goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plot {
    pub(crate) sequence: u64,
    pub(crate) salt: u64,
    pub(crate) block_bytes: u32,
    pub(crate) segment_bytes: u64,
}

/// A frame with its number and place.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: FrameKind,
    pub(crate) number: u64,
    pub(crate) plot: Plot,
    pub(crate) offset: u64,
    /// The state before the frame, if it is the first of its segment.
    pub(crate) base: Option<State>,
    /// Shared with whoever keeps them for readers once the frame is closed; until then it is the only holder.
    pub(crate) operations: Arc<Operations>,
    pub(crate) entry_count: u32,
    /// Calls that joined it.
    pub(crate) calls: u64,
    /// Bytes of its entries' payloads.
    pub(crate) payload_bytes: u64,
    /// Head, base and operations, without padding.
    pub(crate) used_bytes: u64,
    /// Next index after the frame.
    pub(crate) next: Option<u64>,
    first_entry: Option<u64>,
}

impl Frame {
    /// Length on disk.
    pub(crate) fn padded_bytes(&self) -> u64 {
        self.used_bytes.next_multiple_of(u64::from(self.plot.block_bytes))
    }

    /// What keeping the operations in memory costs.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.used_bytes + (self.operations.len() * size_of::<Operation>()) as u64
    }

    pub(crate) fn end(&self) -> u64 {
        self.offset + self.padded_bytes()
    }

    /// The head's first index.
    pub(crate) fn first_index(&self) -> Option<u64> {
        self.first_entry.or(self.next)
    }

    /// Whether no other frame may be in flight with this one: an open frame must be durable before the first frame of
    /// its epoch, or a crash could leave that one as a whole frame of an epoch that never began.
    pub(crate) fn goes_alone(&self) -> bool {
        self.kind == FrameKind::Open
    }
}

/// What is remembered of a frame until it is durable.
#[derive(Clone, Copy, Debug)]
struct Digest {
    number: u64,
    end: Option<End>,
    /// Where the frame's lowest truncation leaves the log.
    truncated: Option<End>,
    compacted: Option<u64>,
    bytes: u64,
}

/// Where a log of entries ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// Index that follows.
    pub(crate) next: u64,
    /// Term of the last entry before it, or of the compaction point.
    pub(crate) last_term: u64,
}

impl End {
    pub(crate) fn of(state: &State) -> Option<End> {
        state.next.map(|next| End { next, last_term: state.last_term })
    }

    fn lower(self, other: End) -> End {
        if other.next < self.next && !planted(Plant::TruncationLowersNothing) { other } else { self }
    }
}

/// Where the next frame would go.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    /// 0 is the active segment, n the n-th spare.
    spares_used: usize,
    tail: u64,
}

/// An accepted batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Accepted {
    /// Indexes of its entries; empty, at the next index, if it has none.
    pub(crate) indexes: std::ops::Range<u64>,
    /// The frame it joined.
    pub(crate) number: u64,
    /// How many operations it has; with none, it is done when the frames before it are.
    pub(crate) operation_count: usize,
    /// It has nothing but entries, each at the next index.
    pub(crate) is_plain: bool,
}

/// Limits that do not change while a log is open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) frame_bytes_max: u64,
    /// Block size of the segments to come.
    pub(crate) block_bytes: u32,
    pub(crate) first_index: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Sequencer {
    pub(crate) ledger: Ledger,
    limits: Limits,
    active: Plot,
    /// End of the last closed frame.
    tail: u64,
    spares: VecDeque<Plot>,
    pending: Option<Frame>,
    closed: VecDeque<Frame>,
    next_number: u64,
    /// An open frame must go before anything else.
    open_due: bool,
    last_kind: FrameKind,
    /// Oldest first: all frames that are accepted and not durable.
    digests: VecDeque<Digest>,
    acknowledged: u64,
    durable: u64,
    durable_end: Option<End>,
    durable_compaction: Option<u64>,
    queued_bytes: u64,
    truncations: u64,
}

/// What recovery hands over.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) ledger: Ledger,
    pub(crate) active: Plot,
    pub(crate) tail: u64,
    pub(crate) spares: Vec<Plot>,
    pub(crate) next_number: u64,
    /// The last durable frame, and where the log ends after it.
    pub(crate) durable: (u64, Option<End>),
    pub(crate) open_due: bool,
    pub(crate) last_kind: FrameKind,
}

impl Sequencer {
    pub(crate) fn new(start: Start, limits: Limits) -> Sequencer {
        let (durable, durable_end) = start.durable;
        let durable_compaction = start.ledger.outline.state.compacted.map(|(index, _)| index);
        Sequencer {
            ledger: start.ledger,
            limits,
            active: start.active,
            tail: start.tail,
            spares: start.spares.into(),
            pending: None,
            closed: VecDeque::new(),
            next_number: start.next_number,
            open_due: start.open_due,
            last_kind: start.last_kind,
            digests: VecDeque::new(),
            acknowledged: start.next_number - 1,
            durable,
            durable_end,
            durable_compaction,
            queued_bytes: 0,
            truncations: 0,
        }
    }

    /// Accepts a batch and empties it, or refuses it and leaves everything as it was. `hints` are terms of live indexes
    /// that were asked for by [`Refusal::NeedTerm`]; they hold as long as [`Sequencer::truncations`] did not change.
    ///
    /// # Errors
    ///
    /// See [`Refusal`].
    pub(crate) fn accept(
        &mut self,
        batch: &mut Vec<Request>,
        now_ms: u64,
        hints: &[(u64, u64)],
    ) -> Result<Accepted, Refusal> {
        match self.plain_bytes(batch) {
            Some(bytes) => self.accept_plain(batch, bytes, now_ms),
            None => self.accept_any(batch, now_ms, hints),
        }
    }

    /// Bytes of a batch that only appends at the next indexes, and that no check of its single operations could refuse.
    fn plain_bytes(&self, batch: &[Request]) -> Option<u64> {
        let mut bytes = 0;
        for request in batch {
            match request {
                Request::Push(payload) if payload.len() <= u32::MAX as usize => bytes += operation_bytes(payload.len()),
                _ => return None,
            }
        }
        let fits = INDEX_MAX.checked_sub(self.next_index()).is_some_and(|room| batch.len() as u64 <= room);
        (fits && !batch.is_empty()).then_some(bytes)
    }

    /// The way of nearly every batch: what [`Sequencer::accept_any`] does, without trying anything on a copy first.
    fn accept_plain(&mut self, batch: &mut Vec<Request>, bytes: u64, now_ms: u64) -> Result<Accepted, Refusal> {
        self.check_batch_bytes(bytes)?;
        self.reserve(bytes, Class::Data)?;
        let operation_count = batch.len();
        let first = self.next_index();
        let payloads = batch.drain(..).filter_map(|request| match request {
            Request::Push(payload) => Some(payload),
            _ => None,
        });
        self.join_plain(first, payloads, operation_count, now_ms);
        let indexes = first..first + operation_count as u64;
        Ok(Accepted { indexes, number: self.last_number(), operation_count, is_plain: true })
    }

    fn accept_any(&mut self, batch: &mut Vec<Request>, now_ms: u64, hints: &[(u64, u64)]) -> Result<Accepted, Refusal> {
        let mut outline = self.ledger.outline.clone();
        let segment_bytes = self.active.segment_bytes;
        let trial = Trial { limits: self.limits, segment_bytes, now_ms, ledger: &self.ledger, hints };
        let operations = trial.run(&mut outline, batch)?;
        let next = outline.state.next.unwrap_or(self.limits.first_index);
        let operation_count = operations.len();
        if operation_count == 0 {
            batch.clear();
            return Ok(Accepted { indexes: next..next, number: self.last_number(), operation_count, is_plain: false });
        }
        let bytes = operations.iter().map(Operation::encoded_bytes).sum();
        self.check_batch_bytes(bytes)?;
        self.reserve(bytes, self.class_of(&operations, outline.state.first.is_none()))?;
        let mut entries = operations.iter().filter_map(entry_index);
        let indexes = match entries.next() {
            Some(first) => first..entries.last().unwrap_or(first) + 1,
            None => next..next,
        };
        self.join(operations);
        batch.clear();
        debug_assert_eq!(self.ledger.outline, outline, "joining does what the trial did");
        Ok(Accepted { indexes, number: self.last_number(), operation_count, is_plain: false })
    }

    fn check_batch_bytes(&self, bytes: u64) -> Result<(), Refusal> {
        let limit = self.batch_bytes_max();
        if bytes > limit { Err(Error::TooLarge { what: "batch", bytes, limit }.into()) } else { Ok(()) }
    }

    /// What fits any segment that the batch may have to go to.
    pub(crate) fn batch_bytes_max(&self) -> u64 {
        let spares = self.spares.iter().map(|spare| spare.block_bytes);
        let block_bytes = spares.fold(self.active.block_bytes.max(self.limits.block_bytes), u32::max);
        space::batch_bytes_max(self.active.segment_bytes, block_bytes)
    }

    /// A truncation that is there for a compaction which leaves no entry belongs to that: it must go on a full disk too.
    fn class_of(&self, operations: &[Operation], leaves_none: bool) -> Class {
        let compacts = |operation: &Operation| matches!(operation, Operation::Compact { .. });
        let clears = leaves_none && operations.iter().any(compacts);
        let is_data = |operation: &Operation| match operation {
            Operation::Entry { .. } => true,
            Operation::Truncate { .. } => !clears,
            _ => false,
        };
        let frees = |operation: &Operation| match operation {
            Operation::Compact { index, .. } => self.ledger.ranges.frees(*index),
            _ => false,
        };
        if operations.iter().any(is_data) {
            Class::Data
        } else if operations.iter().any(frees) {
            Class::Vital
        } else {
            Class::Small
        }
    }

    /// Makes `pending` a frame that can take `bytes` more, or refuses without a change.
    fn reserve(&mut self, bytes: u64, class: Class) -> Result<(), Refusal> {
        if self.pending.as_ref().is_some_and(|pending| self.may_join(pending, bytes, class)) {
            return Ok(());
        }
        let state = &self.ledger.outline.state;
        let start = Cursor { spares_used: 0, tail: self.pending.as_ref().map_or(self.tail, Frame::end) };
        let after_open = match self.open_due {
            true => self.place(start, 0, Class::Vital, state).map(|place| place.end()).ok_or(Refusal::NoRoom)?,
            false => start,
        };
        // Both are placed before either is made: an open frame for a batch that is refused would waste a block.
        self.place(after_open, bytes, class, state).ok_or(Refusal::NoRoom)?;
        self.close_pending();
        if std::mem::take(&mut self.open_due) {
            self.begin_frame(FrameKind::Open, 0, Class::Vital)?;
            self.close_pending();
        }
        self.begin_frame(FrameKind::Data, bytes, class)
    }

    fn may_join(&self, pending: &Frame, bytes: u64, class: Class) -> bool {
        let used = pending.used_bytes + bytes;
        let padded = used.next_multiple_of(u64::from(pending.plot.block_bytes));
        let Plot { segment_bytes, block_bytes, .. } = pending.plot;
        let limit = match planted(Plant::JoinsPastTheEnd) {
            true => u64::MAX,
            false => space::limit(class, segment_bytes, block_bytes, !self.spares.is_empty()),
        };
        used <= self.limits.frame_bytes_max && pending.offset + padded <= limit
    }

    fn plot(&self, spares_used: usize) -> Option<&Plot> {
        spares_used.checked_sub(1).map_or(Some(&self.active), |nth| self.spares.get(nth))
    }

    /// Finds the place for a frame with `bytes` of operations, at the cursor or in a later segment.
    fn place(&self, mut cursor: Cursor, bytes: u64, class: Class, state: &State) -> Option<Place> {
        loop {
            let plot = self.plot(cursor.spares_used)?;
            let block = u64::from(plot.block_bytes);
            let begins_segment = cursor.tail == block;
            let base_bytes = if begins_segment { state.encoded_bytes() } else { 0 };
            let used_bytes = HEAD_BYTES as u64 + base_bytes + bytes;
            let spare_behind = self.spares.len() > cursor.spares_used;
            let limit = space::limit(class, plot.segment_bytes, plot.block_bytes, spare_behind);
            let end = cursor.tail + used_bytes.next_multiple_of(block);
            if end <= limit {
                return Some(Place { cursor, begins_segment, end });
            }
            cursor = Cursor { spares_used: cursor.spares_used + 1, tail: block_of(self.plot(cursor.spares_used + 1)?) };
        }
    }

    /// Starts the pending frame at the first place that has room.
    fn begin_frame(&mut self, kind: FrameKind, bytes: u64, class: Class) -> Result<(), Refusal> {
        let cursor = Cursor { spares_used: 0, tail: self.tail };
        let place = self.place(cursor, bytes, class, &self.ledger.outline.state).ok_or(Refusal::NoRoom)?;
        for _ in 0..place.cursor.spares_used {
            self.active = self.spares.pop_front().ok_or(Refusal::NoRoom)?;
        }
        let number = self.next_number;
        self.next_number = number.checked_add(1).ok_or(Refusal::Error(counters_full(number)))?;
        if place.begins_segment {
            self.ledger.add_segment(self.active.sequence, number);
        }
        let base = place.begins_segment.then(|| self.base());
        let base_bytes = base.as_ref().map_or(0, State::encoded_bytes);
        self.tail = place.cursor.tail;
        self.last_kind = kind;
        let next = self.ledger.outline.state.next;
        let end = End::of(&self.ledger.outline.state);
        self.digests.push_back(Digest { number, end, truncated: None, compacted: None, bytes: 0 });
        self.pending = Some(Frame {
            kind,
            number,
            plot: self.active,
            offset: self.tail,
            used_bytes: HEAD_BYTES as u64 + base_bytes,
            base,
            operations: Arc::default(),
            entry_count: 0,
            calls: 0,
            payload_bytes: 0,
            next,
            first_entry: None,
        });
        Ok(())
    }

    /// The state before the next frame.
    fn base(&self) -> State {
        let mut base = self.ledger.outline.state.clone();
        if planted(Plant::BaseWithoutHardState) {
            base.hard_state = Arc::default();
        }
        base
    }

    fn join(&mut self, operations: Vec<Operation>) {
        let (pending, digest) = reserved(&mut self.pending, &mut self.digests);
        // It has no other holder before it is closed, so this copies nothing.
        let joined = Arc::make_mut(&mut pending.operations);
        pending.calls += 1;
        for operation in operations {
            self.ledger.apply(&operation, (pending.offset + pending.used_bytes) as u32);
            let bytes = operation.encoded_bytes();
            pending.used_bytes += bytes;
            digest.bytes += bytes;
            self.queued_bytes += bytes;
            match &operation {
                Operation::Entry { index, payload, .. } => {
                    pending.entry_count += 1;
                    pending.payload_bytes += payload.len() as u64;
                    pending.first_entry = pending.first_entry.or(Some(*index));
                }
                Operation::Truncate { first_removed, last_term } => {
                    self.truncations += 1;
                    // A log truncated to nothing may begin again lower down: nothing of what it had counts then.
                    let next = self.ledger.outline.state.next.map_or(0, |_| *first_removed);
                    let end = End { next, last_term: *last_term };
                    digest.truncated = Some(digest.truncated.map_or(end, |low| low.lower(end)));
                    self.durable_end = self.durable_end.map(|durable| durable.lower(end));
                }
                Operation::Compact { index, .. } => {
                    digest.compacted = Some(*index);
                    if planted(Plant::CompactionInFlightCounts) {
                        self.durable_compaction = Some(*index);
                    }
                }
                Operation::PutMeta { .. } | Operation::DeleteMeta { .. } => {}
            }
            joined.push(operation);
        }
        pending.next = self.ledger.outline.state.next;
        digest.end = End::of(&self.ledger.outline.state);
    }

    /// Joins entries at the next indexes, with the last term.
    fn join_plain(&mut self, first: u64, payloads: impl Iterator<Item = Bytes>, count: usize, timestamp: u64) {
        let (pending, digest) = reserved(&mut self.pending, &mut self.digests);
        let joined = Arc::make_mut(&mut pending.operations);
        joined.reserve(count);
        let before = pending.used_bytes;
        let term = self.ledger.outline.state.last_term;
        let mut run = self.ledger.begin_run(first, count as u64);
        for (index, payload) in (first..).zip(payloads) {
            run.push(index, (pending.offset + pending.used_bytes) as u32);
            pending.used_bytes += operation_bytes(payload.len());
            pending.payload_bytes += payload.len() as u64;
            joined.push(Operation::Entry { index, term, timestamp, payload });
        }
        pending.calls += 1;
        pending.entry_count += count as u32;
        pending.first_entry = pending.first_entry.or(Some(first));
        pending.next = self.ledger.outline.state.next;
        digest.end = End::of(&self.ledger.outline.state);
        let bytes = pending.used_bytes - before;
        digest.bytes += bytes;
        self.queued_bytes += bytes;
    }

    fn close_pending(&mut self) {
        if let Some(frame) = self.pending.take() {
            self.tail = frame.end();
            self.closed.push_back(frame);
        }
    }

    /// Adds a mark if the last frame carries data and there is room; a mark rolls if it must and can.
    pub(crate) fn add_mark(&mut self) -> bool {
        if self.last_kind != FrameKind::Data || self.pending.is_some() || self.open_due {
            return false;
        }
        let made = self.begin_frame(FrameKind::Mark, 0, Class::Small).is_ok();
        if made {
            self.close_pending();
        }
        made
    }

    /// The next frame for the writer, if there is one; closes the pending frame if nothing stands before it.
    pub(crate) fn take_frame(&mut self) -> Option<Frame> {
        if self.closed.is_empty() {
            self.close_pending();
        }
        self.closed.pop_front()
    }

    /// The frame that [`Sequencer::take_frame`] would give: padded bytes, and whether it goes alone.
    pub(crate) fn peek_frame(&self) -> Option<(u64, bool)> {
        let frame = self.closed.front().or(self.pending.as_ref())?;
        Some((frame.padded_bytes(), frame.goes_alone()))
    }

    /// Whether a frame is closed: it will not grow by waiting.
    pub(crate) fn has_closed(&self) -> bool {
        !self.closed.is_empty()
    }

    /// The newest `count` operations of the pending frame: those of the batch just accepted.
    pub(crate) fn newest_operations(&self, count: usize) -> &[Operation] {
        self.pending.as_ref().map_or(&[], |frame| &frame.operations.list()[frame.operations.len() - count..])
    }

    /// The frame that batches join, if one is begun.
    pub(crate) fn pending(&self) -> Option<&Frame> {
        self.pending.as_ref()
    }

    /// Closed frames that nobody took yet, from the one after `number` on.
    pub(crate) fn closed_after(&self, number: u64) -> impl Iterator<Item = &Frame> {
        self.closed.iter().skip_while(move |frame| frame.number <= number)
    }

    /// Calls that joined the next frame for the writer.
    pub(crate) fn next_calls(&self) -> u64 {
        self.closed.front().or(self.pending.as_ref()).map_or(0, |frame| frame.calls)
    }

    /// A segment stands ready behind the last one.
    pub(crate) fn add_spare(&mut self, plot: Plot) {
        debug_assert_eq!(Some(plot.sequence), self.next_spare());
        self.spares.push_back(plot);
    }

    /// Sequence number of the spare that should be made next; `None` at the counters' end.
    pub(crate) fn next_spare(&self) -> Option<u64> {
        self.active.sequence.checked_add(1 + self.spares.len() as u64).filter(|&sequence| sequence < u64::MAX)
    }

    pub(crate) fn spare_count(&self) -> usize {
        self.spares.len()
    }

    /// Spares that are needed besides those that are always kept: where the open frame has to begin a segment, the
    /// largest batch may not fit behind it without another one.
    pub(crate) fn extra_spares(&self) -> usize {
        let ends = self.tail + u64::from(self.active.block_bytes);
        usize::from(self.open_due && ends > self.active.segment_bytes)
    }

    pub(crate) fn active(&self) -> Plot {
        self.active
    }

    /// End of the last frame given a place, in the active segment.
    pub(crate) fn tail(&self) -> u64 {
        self.pending.as_ref().map_or(self.tail, Frame::end)
    }

    /// Frames up to `number` are acknowledged: their bytes leave the queue.
    pub(crate) fn on_acknowledged(&mut self, number: u64) {
        // Numbers are contiguous: start behind what was acknowledged before, however much is not yet durable.
        let oldest = self.digests.front().map_or(0, |digest| digest.number);
        let start = (self.acknowledged + 1).saturating_sub(oldest) as usize;
        for digest in self.digests.iter_mut().skip(start).take_while(|digest| digest.number <= number) {
            self.queued_bytes -= std::mem::take(&mut digest.bytes);
        }
        self.acknowledged = self.acknowledged.max(number);
    }

    /// Frames up to `number` are durable.
    pub(crate) fn on_durable(&mut self, number: u64) {
        if number <= self.durable {
            return;
        }
        while let Some(digest) = self.digests.pop_front_if(|digest| digest.number <= number) {
            self.queued_bytes -= digest.bytes;
            self.durable_end = digest.end;
            self.durable_compaction = digest.compacted.or(self.durable_compaction);
        }
        let truncated = self.digests.iter().filter_map(|digest| digest.truncated);
        self.durable_end = self.durable_end.map(|durable| truncated.fold(durable, End::lower));
        self.durable = self.durable.max(number);
        self.acknowledged = self.acknowledged.max(number);
    }

    /// The oldest segment, if it may go now.
    pub(crate) fn droppable(&self) -> Option<u64> {
        self.ledger.ranges.droppable(self.durable_compaction, self.durable)
    }

    pub(crate) fn outline(&self) -> &Outline {
        &self.ledger.outline
    }

    /// Index that the next entry without one gets.
    pub(crate) fn next_index(&self) -> u64 {
        self.ledger.outline.state.next.unwrap_or(self.limits.first_index)
    }

    /// One past the last index that is durable and not truncated since; `None` where nothing is.
    pub(crate) fn durable_next(&self) -> Option<u64> {
        self.durable_end.map(|end| end.next)
    }

    /// Where what is durable and not truncated since ends; `None` where nothing is.
    pub(crate) fn durable_end(&self) -> Option<End> {
        self.durable_end
    }

    /// Bytes accepted and not acknowledged.
    pub(crate) fn queued_bytes(&self) -> u64 {
        self.queued_bytes
    }

    /// Number of the newest frame.
    pub(crate) fn last_number(&self) -> u64 {
        self.next_number - 1
    }

    /// How many truncations were accepted.
    pub(crate) fn truncations(&self) -> u64 {
        self.truncations
    }

    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    pub(crate) fn durable(&self) -> u64 {
        self.durable
    }
}

/// The frame that was reserved for a batch, and what is remembered of it.
fn reserved<'a>(pending: &'a mut Option<Frame>, digests: &'a mut VecDeque<Digest>) -> (&'a mut Frame, &'a mut Digest) {
    let (Some(pending), Some(digest)) = (pending.as_mut(), digests.back_mut()) else {
        unreachable!("a frame was reserved before anything joins it")
    };
    (pending, digest)
}

struct Place {
    cursor: Cursor,
    begins_segment: bool,
    end: u64,
}

impl Place {
    fn end(&self) -> Cursor {
        Cursor { spares_used: self.cursor.spares_used, tail: self.end }
    }
}

fn block_of(plot: &Plot) -> u64 {
    u64::from(plot.block_bytes)
}

fn entry_index(operation: &Operation) -> Option<u64> {
    match operation {
        Operation::Entry { index, .. } => Some(*index),
        _ => None,
    }
}

fn counters_full(number: u64) -> Error {
    Error::TooLarge { what: "frame number", bytes: number, limit: u64::MAX - 1 }
}

/// Turns requests into operations against a copy of the outline.
struct Trial<'a> {
    limits: Limits,
    segment_bytes: u64,
    now_ms: u64,
    ledger: &'a Ledger,
    hints: &'a [(u64, u64)],
}

impl Trial<'_> {
    fn run(&self, outline: &mut Outline, batch: &[Request]) -> Result<Vec<Operation>, Refusal> {
        let mut operations = Vec::with_capacity(batch.len());
        for request in batch {
            if let Some(operation) = self.operation(outline, request, &operations)? {
                outline.check(&operation, self.segment_bytes)?;
                outline.apply(&operation);
                operations.push(operation);
            }
        }
        Ok(operations)
    }

    /// The operation that a request stands for; `None` if it changes nothing.
    fn operation(
        &self,
        outline: &Outline,
        request: &Request,
        before: &[Operation],
    ) -> Result<Option<Operation>, Refusal> {
        let state = &outline.state;
        let next = state.next.unwrap_or(self.limits.first_index);
        let entry = |index, term, timestamp, payload: &Bytes| match u32::try_from(payload.len()) {
            Ok(_) => Ok(Some(Operation::Entry { index, term, timestamp, payload: payload.clone() })),
            Err(_) => Err(self.too_large("payload", payload.len())),
        };
        match request {
            Request::Push(payload) => entry(next, state.last_term, self.now_ms, payload),
            Request::Entry(given) => entry(given.index, given.term, given.timestamp, &given.command),
            Request::Truncate(first_removed) if *first_removed == next => Ok(None),
            Request::Truncate(first_removed) => {
                // In a log that was never compacted, everything from an index before the first one is everything.
                let lowest = outline.state.first.filter(|_| state.compacted.is_none()).unwrap_or(0);
                self.truncation(outline, lowest.max(*first_removed), next, before).map(Some)
            }
            Request::PutMeta(key, value) => {
                if key.len() as u64 + value.len() as u64 > u64::from(u32::MAX) {
                    return Err(self.too_large("hard state", key.len() + value.len()));
                }
                Ok(Some(Operation::PutMeta { key: key.clone(), value: value.clone() }))
            }
            Request::DeleteMeta(key) if !state.hard_state.contains_key(key) => Ok(None),
            Request::DeleteMeta(key) => Ok(Some(Operation::DeleteMeta { key: key.clone() })),
            Request::Compact(index, _) if state.compacted.is_some_and(|(done, _)| *index <= done) => Ok(None),
            Request::Compact(index, None) if outline.state.first.is_some_and(|first| *index < first) => Ok(None),
            Request::Compact(index, _) if outline.state.first.is_some_and(|first| index.saturating_add(1) < first) => {
                Ok(None)
            }
            Request::Compact(index, term) => self.compaction(outline, *index, *term, next, before).map(Some),
        }
    }

    fn too_large(&self, what: &'static str, bytes: usize) -> Refusal {
        Error::TooLarge { what, bytes: bytes as u64, limit: self.segment_bytes }.into()
    }

    fn truncation(
        &self,
        outline: &Outline,
        first_removed: u64,
        next: u64,
        before: &[Operation],
    ) -> Result<Operation, Refusal> {
        let refused = Operation::Truncate { first_removed, last_term: 0 };
        match outline.check(&refused, self.segment_bytes) {
            Err(Error::NotWritten { .. }) => return Err(Error::NotWritten { next }.into()),
            other => other?,
        }
        let last_term = match outline.state.compacted {
            _ if outline.state.first.is_some_and(|first| first < first_removed) => {
                self.term(first_removed - 1, before)?
            }
            Some((_, term)) => term,
            None => 0,
        };
        Ok(Operation::Truncate { first_removed, last_term })
    }

    fn compaction(
        &self,
        outline: &Outline,
        index: u64,
        term: Option<u64>,
        next: u64,
        before: &[Operation],
    ) -> Result<Operation, Refusal> {
        if term.is_some() || outline.state.first.is_some_and(|first| index < first) {
            outline.check(&Operation::Compact { index, term: u64::MAX }, self.segment_bytes)?;
        }
        let is_live = outline.state.first.is_some_and(|first| (first..next).contains(&index));
        let in_log = if is_live { Some(self.term(index, before)?) } else { None };
        match (term, in_log) {
            (Some(found), Some(expected)) if found != expected => {
                Err(Error::TermMismatch { index, expected, found }.into())
            }
            (None, None) => Err(Error::NotWritten { next }.into()),
            // Right before the first entry of a log that was never compacted: its term bounds that of the point.
            (Some(last), None)
                if outline.state.first == index.checked_add(1) && last > self.term(index + 1, before)? =>
            {
                Err(Error::TermFell { last, found: self.term(index + 1, before)? }.into())
            }
            (given, in_log) => {
                let term = in_log.or(given).unwrap_or_default();
                Ok(Operation::Compact { index, term })
            }
        }
    }

    /// The term of a live entry: of this batch, or of the log.
    fn term(&self, index: u64, before: &[Operation]) -> Result<u64, Refusal> {
        let own = before.iter().rev().find_map(|operation| match operation {
            Operation::Entry { index: at, term, .. } if *at == index => Some(*term),
            _ => None,
        });
        let hinted = || self.hints.iter().find(|(at, _)| *at == index).map(|(_, term)| *term);
        own.or_else(|| self.ledger.term_of(index)).or_else(hinted).ok_or(Refusal::NeedTerm(index))
    }
}
