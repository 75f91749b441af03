//! Frames in, writes and acknowledgements out: how many frames are in flight, what each says, which acks may leave.
//!
//! Invariants:
//!
//! - *written* is the highest n such that every frame up to n is completely written; *durable* is the highest n such
//!   that every frame up to n survives power loss: never the highest completed one. Neither moves back.
//! - With durable writes (`O_DSYNC`) the two are one. Without, only a completed sync moves *durable*, and only up to
//!   what was written before that sync began.
//! - Each head carries *durable* as it was when the frame was encoded, and the checksum of the head before (the chain),
//!   so frames are encoded in the order of their numbers.
//! - After a failure nothing is admitted and nothing moves.
//!
//! Does not know files, threads or callers.

use std::collections::{BTreeMap, VecDeque};

use super::gather::Gather;
use super::sequencer::Frame;
use crate::format::frame::{self, Epoch, FrameSpec};
use crate::plant::{Plant, planted};

/// Bytes of a pending frame that make it worth sending while others are in flight: below, arrivals gather until the
/// device is free, because a second small write costs the device as much as a large one.
pub(crate) const GATHER_BYTES: u64 = 64 << 10;

/// The next frame, as far as it decides whether to send it now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offer {
    pub(crate) bytes: u64,
    /// Calls that joined it.
    pub(crate) calls: u64,
    pub(crate) goes_alone: bool,
    /// It takes no more: waiting gains nothing.
    pub(crate) is_closed: bool,
}

/// What to do with the next frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Encode and submit it.
    Go,
    /// Nothing is in flight, but callers are about to come back: wait until this time or this many calls.
    Hold { until_ns: u64, calls: u64 },
    /// Look again after a completion, or once it has this many bytes.
    Wait { worth_bytes: u64 },
}

/// Bounds of the pipeline.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) frames: usize,
    pub(crate) bytes: u64,
    /// Whether a completed write is durable.
    pub(crate) durable_writes: bool,
}

#[derive(Debug)]
struct Flight {
    number: u64,
    bytes: u64,
    calls: u64,
    submitted_ns: u64,
    is_written: bool,
}

/// How far things are after a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) written: u64,
    pub(crate) durable: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Pipeline {
    bounds: Bounds,
    epoch: Epoch,
    chain: u32,
    /// Submitted and not yet part of the written prefix.
    flights: VecDeque<Flight>,
    bytes_in_flight: u64,
    submitted: u64,
    written: u64,
    durable: u64,
    /// An open frame that must be durable before anything follows it.
    barrier: Option<u64>,
    /// Segments with frames that are written and not durable, each with the highest such frame.
    unsynced: BTreeMap<u64, u64>,
    /// Highest frame that carries more than a mark.
    last_content: u64,
    /// What the sync under way covers, and how many files it waits for.
    sync: Option<(u64, usize)>,
    gather: Gather,
    is_poisoned: bool,
}

impl Pipeline {
    /// A pipeline after frame `last`, whose head has the checksum `chain`; everything up to it is durable.
    pub(crate) fn new(bounds: Bounds, epoch: Epoch, chain: u32, last: u64) -> Pipeline {
        Pipeline {
            bounds,
            epoch,
            chain,
            flights: VecDeque::new(),
            bytes_in_flight: 0,
            submitted: last,
            written: last,
            durable: last,
            barrier: None,
            unsynced: BTreeMap::new(),
            last_content: last,
            sync: None,
            gather: Gather::new(),
            is_poisoned: false,
        }
    }

    /// Whether the next frame, of this length, may be submitted now.
    pub(crate) fn admits(&self, bytes: u64, goes_alone: bool) -> bool {
        if self.is_poisoned || self.barrier.is_some() {
            return false;
        }
        if self.flights.is_empty() {
            return true;
        }
        !goes_alone && self.flights.len() < self.bounds.frames && self.bytes_in_flight + bytes <= self.bounds.bytes
    }

    /// Whether the next frame should go now, as far as the pipeline is concerned.
    pub(crate) fn next_step(&self, now_ns: u64, offer: Offer) -> Step {
        if !self.admits(offer.bytes, offer.goes_alone) {
            // Where every slot is taken, only a completion changes that.
            let worth_bytes = if self.admits(self.worth_bytes(), false) { self.worth_bytes() } else { u64::MAX };
            return Step::Wait { worth_bytes };
        }
        if offer.is_closed || offer.bytes >= self.worth_bytes() {
            return Step::Go;
        }
        if !self.flights.is_empty() {
            return Step::Wait { worth_bytes: self.worth_bytes() };
        }
        match self.gather.holds(now_ns, offer.calls) {
            Some(until_ns) => Step::Hold { until_ns, calls: self.gather.worth_calls() },
            None => Step::Go,
        }
    }

    /// Bytes that make a frame worth sending at once. What is in flight counts, so that under load frames grow until a
    /// few large ones keep the device busy: each costs the writer as much as a small one.
    pub(crate) fn worth_bytes(&self) -> u64 {
        GATHER_BYTES.max(self.bytes_in_flight / 2)
    }

    /// Smoothed time of a write, in nanoseconds.
    pub(crate) fn write_ns(&self) -> u64 {
        self.gather.write_ns()
    }

    /// Encodes the next frame into `out`, its padded length, and counts it as in flight.
    ///
    /// # Panics
    ///
    /// If frames come out of order, which would break the chain.
    pub(crate) fn encode(&mut self, frame: &Frame, out: &mut [u8], now_ns: u64) {
        assert_eq!(frame.number, self.submitted + 1, "frames are encoded in order");
        let spec = FrameSpec {
            kind: frame.kind,
            number: frame.number,
            epoch: self.epoch,
            chain: self.chain,
            watermark: self.watermark(),
            salt: frame.plot.salt,
            offset: frame.offset as u32,
            first_index: frame.first_index(),
            base: frame.base.as_ref(),
            operations: frame.operations.list(),
        };
        self.chain = frame::encode(&spec, out);
        self.submitted = frame.number;
        let (number, bytes) = (frame.number, out.len() as u64);
        self.flights.push_back(Flight { number, bytes, calls: frame.calls, submitted_ns: now_ns, is_written: false });
        self.gather.on_submitted(frame.calls);
        self.bytes_in_flight += bytes;
        if frame.goes_alone() {
            self.barrier = Some(frame.number);
        }
        if frame.kind != frame::FrameKind::Mark {
            self.last_content = frame.number;
        }
        if !self.bounds.durable_writes {
            self.unsynced.insert(frame.plot.sequence, frame.number);
        }
        if planted(Plant::AckBeforeCompletion) {
            self.advance(frame.number);
        }
    }

    /// The watermark that the next frame carries.
    fn watermark(&self) -> u64 {
        match self.durable {
            _ if planted(Plant::NoWatermark) => 0,
            _ if planted(Plant::WatermarkAhead) => self.submitted,
            durable => durable,
        }
    }

    /// A frame is completely written.
    pub(crate) fn on_written(&mut self, number: u64, now_ns: u64) -> Progress {
        if let Some(flight) = self.flights.iter_mut().find(|flight| flight.number == number) {
            flight.is_written = true;
            self.gather.on_written(now_ns.saturating_sub(flight.submitted_ns));
        }
        if planted(Plant::AckOutOfOrder) && !self.is_poisoned {
            self.advance(number.max(self.written));
        }
        let released = self.pop_written();
        self.gather.on_acknowledged(now_ns, released);
        self.progress()
    }

    /// Lets go of the frames that are written and have none before them in flight; how many calls those carried.
    fn pop_written(&mut self) -> u64 {
        let mut calls = 0;
        while let Some(flight) = self.flights.pop_front_if(|flight| flight.is_written) {
            self.bytes_in_flight -= flight.bytes;
            calls += flight.calls;
            if !self.is_poisoned || planted(Plant::AcksAfterPoison) {
                self.advance(flight.number.max(self.written));
            }
        }
        calls
    }

    fn advance(&mut self, written: u64) {
        self.written = written;
        if self.bounds.durable_writes {
            self.set_durable(written);
        }
    }

    fn set_durable(&mut self, durable: u64) {
        self.durable = self.durable.max(durable);
        self.barrier = self.barrier.filter(|&number| number > self.durable);
    }

    /// A write failed or a sync failed: nothing that is not durable by now will be.
    pub(crate) fn poison(&mut self) {
        self.is_poisoned = true;
    }

    /// A write failed: it is no longer in flight.
    pub(crate) fn on_failed(&mut self, number: u64) {
        self.poison();
        if let Some(at) = self.flights.iter().position(|flight| flight.number == number) {
            self.bytes_in_flight -= self.flights.remove(at).map_or(0, |flight| flight.bytes);
        }
        // Those behind it that were written before it failed complete no more: nobody would wait for them in vain.
        self.pop_written();
    }

    /// Begins a sync of all that is written, unless one is under way or there is nothing to do; returns the segments to
    /// sync. What completes after this is not covered.
    pub(crate) fn begin_sync(&mut self) -> Option<Vec<u64>> {
        if self.sync.is_some() || self.durable == self.written || self.is_poisoned {
            return None;
        }
        let first = if planted(Plant::SyncsNewestOnly) { self.unsynced.len().saturating_sub(1) } else { 0 };
        let segments: Vec<u64> = self.unsynced.keys().copied().skip(first).collect();
        self.sync = Some((self.written, segments.len()));
        Some(segments)
    }

    /// One file of the sync is done.
    pub(crate) fn on_synced(&mut self) -> Progress {
        if let Some((through, files)) = &mut self.sync {
            *files -= 1;
            if *files == 0 {
                let through = if planted(Plant::SyncCoversLater) { self.written } else { *through };
                self.sync = None;
                if !self.is_poisoned {
                    self.set_durable(through);
                    self.unsynced.retain(|_, &mut highest| highest > through);
                }
            }
        }
        self.progress()
    }

    /// A sync failed: it never counts, and neither does one after it.
    pub(crate) fn on_sync_failed(&mut self) {
        self.poison();
        self.on_synced();
    }

    /// Whether something that matters is written and not durable: marks alone are not worth a sync.
    pub(crate) fn wants_sync(&self) -> bool {
        !self.bounds.durable_writes && self.durable < self.last_content && self.durable < self.written
    }

    /// Whether anything at all is written and not durable.
    pub(crate) fn has_unsynced(&self) -> bool {
        self.durable < self.written
    }

    pub(crate) fn is_syncing(&self) -> bool {
        self.sync.is_some()
    }

    /// An open frame is waiting for a sync to let others follow it.
    pub(crate) fn barrier_waits(&self) -> bool {
        !self.bounds.durable_writes && self.barrier.is_some_and(|number| number <= self.written)
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.flights.is_empty() && self.sync.is_none()
    }

    pub(crate) fn progress(&self) -> Progress {
        Progress { written: self.written, durable: self.durable }
    }

    /// Head checksum of the last frame encoded.
    pub(crate) fn chain(&self) -> u32 {
        self.chain
    }
}
