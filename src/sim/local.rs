//! The whole log in the caller's thread: recovery, sequencer, pipeline and the housekeeping of segments, over a
//! [`SimDisk`], one step at a time.
//!
//! The crash explorer drives it, and so may tests of programs that embed the log. It makes no decision of its own: what
//! threads do in [`Log`](crate::Log) is here a method each, so that a crash can be tried between any two and, with
//! [`SimDisk::start_recording`], inside each.
//!
//! Invariants:
//!
//! - Nothing is acknowledged but what the pipeline reports; nothing is dropped or sealed but what the engine allows.
//! - After a failed write or sync no step writes anything any more ([`Error::Poisoned`]).
//! - Everything read back was verified against the disk.
//!
//! Does not know when steps should happen, nor what the log ought to contain.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::disk::SimDisk;
use super::driver::SimDriver;
use super::rng::Rng;
use crate::config::{Config, Durability};
use crate::disk::{AlignedBuf, Completion, Disk, Driver, Operation, PollWait};
use crate::engine::operations::Operations;
use crate::engine::pipeline::{Bounds, Offer, Pipeline, Progress, Step as PipelineStep};
use crate::engine::sequencer::{Accepted, Frame, Limits, Refusal, Request, Sequencer};
use crate::entry::LogEntry;
use crate::error::{Error, Result};
use crate::format::index::{self, IndexIdentity};
use crate::format::names;
use crate::format::segment::SegmentHeader;
use crate::segment::dir::LockFile;
use crate::segment::recover::{self, Recovered, RecoveryReport};
use crate::segment::sealed::{self, SegmentHandle};
use crate::segment::spare::{self, OpenSegment};

/// The token of every sync; those of writes are frame numbers.
pub(super) const SYNC_TOKEN: u64 = u64::MAX;

/// Everything a log holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// The live entries in order, each read and verified from the disk.
    pub entries: Vec<LogEntry>,
    /// Index and term of the last compacted entry.
    pub compacted: Option<(u64, u64)>,
    /// Index of the next entry; `None` where an entry may start the log anywhere.
    pub next: Option<u64>,
    /// Term of the last entry, or of the compaction point if there is none after it, or 0.
    pub last_term: u64,
    /// Hard state.
    pub hard_state: BTreeMap<Bytes, Bytes>,
}

/// A log without threads, on a [`SimDisk`]: it does everything in the caller's thread, in the call.
///
/// [`SimDisk::open_log`] makes one. It has the calls of [`Log`](crate::Log), each of which carries itself through to its
/// acknowledgement; with [`LocalLog::submit`], [`LocalLog::advance`] and [`LocalLog::is_acked`] a program sees what lies
/// between. The smaller steps (from [`LocalLog::pump`] to [`LocalLog::write_slot`]) are for explorers, which crash it
/// between any two.
///
/// ```
/// use ringwal::sim::SimDisk;
/// use ringwal::{Batch, Config, Durability};
///
/// let disk = SimDisk::new(1);
/// let mut log = disk.open_log(Config::default().segment_bytes(1 << 20).durability(Durability::None))?;
/// let receipts = ["a", "b", "c"].map(|text| log.submit(Batch::new().push(text)));
/// while !log.is_acked(receipts[2].as_ref().unwrap()) {
///     log.advance()?;
/// }
/// assert_eq!((log.state().last, log.state().durable), (Some((3, 0)), None)); // acknowledged means written here
/// assert_eq!(log.sync()?, Some(3));
/// # Ok::<(), ringwal::Error>(())
/// ```
pub struct LocalLog {
    // Dropped first: it closes the descriptors that hold the segments' locks.
    driver: SimDriver,
    pub(super) sim: SimDisk,
    disk: Arc<dyn Disk>,
    pub(super) config: Config,
    lock: LockFile,
    random: Mutex<Rng>,
    pub(super) sequencer: Sequencer,
    pipeline: Pipeline,
    /// Segments that are or will be written, by sequence number: with spares, without sealed ones.
    files: BTreeMap<u64, OpenSegment>,
    /// Segments that hold frames, by sequence number.
    pub(super) handles: BTreeMap<u64, SegmentHandle>,
    /// Segments that were left for the next one, oldest first, until they have their index file.
    unsealed: VecDeque<IndexIdentity>,
    /// The segment of the newest frame submitted.
    filling: u64,
    /// Dropped segments whose files are still there.
    dropped: VecDeque<u64>,
    /// Frames that are not durable, each with the watermark in its head.
    watermarks: VecDeque<(u64, u64)>,
    /// Frames that were submitted and are not written, oldest first: what is in them can be read nowhere else.
    pub(super) in_flight: VecDeque<(u64, Arc<Operations>)>,
    /// Somebody waits for a sync, whatever the durability.
    pub(super) syncs: bool,
    witnessed: u64,
    buffers: Vec<AlignedBuf>,
    /// The time as the pipeline is told it, in nanoseconds: it moves only where a step says so.
    clock_ns: u64,
    report: RecoveryReport,
    pub(super) poison: Option<Arc<Error>>,
}

impl fmt::Debug for LocalLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalLog({:?}, frames up to {}, {:?})", self.progress(), self.last_frame(), self.sim)
    }
}

fn draw(random: &Mutex<Rng>) -> u64 {
    random.lock().unwrap_or_else(PoisonError::into_inner).next_u64()
}

/// Opening and closing.
impl LocalLog {
    /// Opens the log on a disk, running recovery, or makes one. The seed takes the place of the operating system's
    /// randomness: each open of one directory should have another.
    ///
    /// # Errors
    ///
    /// As for opening a log.
    pub fn open(sim: &SimDisk, config: Config, seed: u64) -> Result<LocalLog> {
        config.validate()?;
        let disk: Arc<dyn Disk> = Arc::new(sim.clone());
        let random = Mutex::new(Rng::new(seed));
        let draw = || draw(&random);
        let request = recover::Request { disk: &disk, config: &config, random: &draw, read_only: false };
        let recovered = recover::recover(&request)?;
        LocalLog::start(sim.clone(), disk, config, random, recovered)
    }

    fn start(
        sim: SimDisk,
        disk: Arc<dyn Disk>,
        config: Config,
        random: Mutex<Rng>,
        recovered: Recovered,
    ) -> Result<LocalLog> {
        let Recovered { lock, sealed, active, spares, start, chain, epoch, report } = recovered;
        let Some(lock) = lock else { unreachable!("a writing recovery holds the lock") };
        let bounds = Bounds {
            frames: config.frames_in_flight,
            bytes: config.in_flight_bytes_max,
            durable_writes: config.durability == Durability::Sync,
        };
        let block_bytes = crate::segment::recover::block_bytes(&config, &*disk)?;
        let limits = Limits { frame_bytes_max: config.frame_bytes_max, block_bytes, first_index: config.first_index };
        let pipeline = Pipeline::new(bounds, epoch, chain, start.next_number - 1);
        let mut unsealed = VecDeque::new();
        let mut handles = BTreeMap::new();
        for segment in sealed {
            let handle = SegmentHandle::new(disk.clone(), segment.header);
            if start.ledger.indexes.contains_key(&segment.header.sequence) {
                unsealed.push_back(segment.identity);
            } else {
                handle.seal(segment.identity);
            }
            handles.insert(segment.header.sequence, handle);
        }
        let filling = active.header.sequence;
        handles.insert(filling, SegmentHandle::new(disk.clone(), active.header));
        let driver = sim.sim_driver().map_err(Error::io("make a driver for", disk.path()))?;
        let mut log = LocalLog {
            driver,
            sim,
            disk,
            config,
            lock,
            random,
            sequencer: Sequencer::new(start, limits),
            pipeline,
            files: BTreeMap::new(),
            handles,
            unsealed,
            filling,
            dropped: VecDeque::new(),
            watermarks: VecDeque::new(),
            in_flight: VecDeque::new(),
            syncs: false,
            witnessed: 0,
            buffers: Vec::new(),
            clock_ns: 0,
            report,
            poison: None,
        };
        std::iter::once(active).chain(spares).try_for_each(|segment| log.attach(segment))?;
        Ok(log)
    }

    fn attach(&mut self, segment: OpenSegment) -> Result<()> {
        let sequence = segment.header.sequence;
        let attached = self.driver.attach(sequence, segment.file.clone());
        attached.map_err(Error::io("attach", self.disk.path_of(&names::segment(sequence))))?;
        self.files.insert(sequence, segment);
        Ok(())
    }

    /// Closes the log cleanly: everything accepted becomes durable, then a mark and the lock file's slot say so.
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`] where a write or sync failed, now or before; [`Error::Io`] for the slot.
    pub fn close(mut self) -> Result<()> {
        self.drain()?;
        self.mark()?;
        self.drain()?;
        self.write_slot()
    }

    /// Carries everything accepted to the medium, completing operations in order.
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`] where a write or sync failed, now or before.
    pub fn drain(&mut self) -> Result<()> {
        while self.sequencer.durable() < self.last_frame() {
            self.pump()?;
            self.begin_sync()?;
            self.sim.complete_all();
            self.collect()?;
        }
        Ok(())
    }

    /// What recovery found and did when the log was opened.
    pub fn report(&self) -> &RecoveryReport {
        &self.report
    }
}

/// The way of a batch.
impl LocalLog {
    /// Accepts a batch into the pending frame, making a spare segment where there is no room without one.
    pub(super) fn accept(&mut self, mut batch: Vec<Request>) -> Result<Accepted> {
        self.check_alive()?;
        let mut hints = Vec::new();
        loop {
            match self.sequencer.accept(&mut batch, 0, &hints) {
                Ok(accepted) => return Ok(accepted),
                Err(Refusal::Error(error)) => return Err(error),
                Err(Refusal::NeedTerm(index)) => hints.push((index, self.stored_term(index)?)),
                Err(Refusal::NoRoom) => {
                    if let Err(error) = self.add_spare() {
                        return Err(self.without_spare(error));
                    }
                }
            }
        }
    }

    /// The term of a live entry whose segment's index is no longer in memory.
    fn stored_term(&self, index: u64) -> Result<u64> {
        let sequence = self.sequencer.ledger.ranges.locate(index).map(|segment| segment.sequence);
        let handle = sequence.and_then(|sequence| self.handles.get(&sequence));
        let term = handle.map(|handle| handle.index_map()).transpose()?.and_then(|map| map.term_of(index));
        term.ok_or(Error::NotWritten { next: self.sequencer.next_index() })
    }

    /// Submits every frame that may go now; returns how many.
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`] after a failed write or sync.
    pub fn pump(&mut self) -> Result<usize> {
        let mut frames = 0;
        while self.pump_one()? {
            frames += 1;
        }
        Ok(frames)
    }

    /// Submits the next frame if there is one and it may go now.
    ///
    /// # Errors
    ///
    /// As for [`LocalLog::pump`].
    pub fn pump_one(&mut self) -> Result<bool> {
        self.check_alive()?;
        if !self.can_pump() {
            return Ok(false);
        }
        let Some(frame) = self.sequencer.take_frame() else { return Ok(false) };
        if frame.base.is_some() {
            self.roll(&frame);
        }
        let bytes = frame.padded_bytes() as usize;
        let mut buffer = self.buffer(bytes);
        self.watermarks.push_back((frame.number, self.pipeline.progress().durable));
        self.pipeline.encode(&frame, &mut buffer[..bytes], self.clock_ns);
        self.in_flight.push_back((frame.number, frame.operations.clone()));
        let (token, file, offset) = (frame.number, frame.plot.sequence, frame.offset);
        self.driver.submit(Operation::Write { token, file, offset, buffer, bytes });
        self.settle(self.pipeline.progress());
        Ok(true)
    }

    /// Lets so much time pass and submits what a writer thread would then: a frame that it would hold back for callers
    /// who were just acknowledged, or let grow while others are in flight, stays. Returns how many went.
    ///
    /// # Errors
    ///
    /// As for [`LocalLog::pump`].
    pub fn pump_as_writer(&mut self, passed_ns: u64) -> Result<usize> {
        self.clock_ns = self.clock_ns.saturating_add(passed_ns);
        let mut frames = 0;
        while self.is_ripe() && self.pump_one()? {
            frames += 1;
        }
        Ok(frames)
    }

    fn is_ripe(&self) -> bool {
        let Some((bytes, goes_alone)) = self.sequencer.peek_frame() else { return false };
        let (calls, is_closed) = (self.sequencer.next_calls(), self.sequencer.has_closed());
        self.pipeline.next_step(self.clock_ns, Offer { bytes, calls, goes_alone, is_closed }) == PipelineStep::Go
    }

    /// Whether [`LocalLog::pump_one`] would submit a frame.
    pub fn can_pump(&self) -> bool {
        self.sequencer.peek_frame().is_some_and(|(bytes, goes_alone)| self.pipeline.admits(bytes, goes_alone))
    }

    fn buffer(&mut self, bytes: usize) -> AlignedBuf {
        match self.buffers.iter().position(|buffer| buffer.len() >= bytes) {
            Some(fitting) => self.buffers.swap_remove(fitting),
            None => AlignedBuf::zeroed(bytes),
        }
    }

    /// The log goes on in the next segment: notes what the index of the one before will belong to.
    fn roll(&mut self, frame: &Frame) {
        let Some(segment) = self.files.get(&frame.plot.sequence) else { unreachable!("frames go to open segments") };
        self.handles.insert(frame.plot.sequence, SegmentHandle::new(self.disk.clone(), segment.header));
        self.filling = frame.plot.sequence;
        let before = frame.plot.sequence - 1;
        let range = self.sequencer.ledger.ranges.iter().rev().find(|range| range.sequence == before);
        if let (Some(range), Some(segment)) = (range, self.files.get(&before)) {
            let SegmentHeader { log_id, sequence, salt, .. } = segment.header;
            self.unsealed.push_back(IndexIdentity {
                log_id,
                sequence,
                salt,
                last_head_checksum: self.pipeline.chain(),
                first_frame: range.first_frame,
                last_frame: frame.number - 1,
            });
        }
    }

    /// Begins a sync of what is written, where writes are not durable by themselves and none is under way; returns
    /// whether it did.
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`] after a failed write or sync.
    pub fn begin_sync(&mut self) -> Result<bool> {
        self.check_alive()?;
        let Some(segments) = self.pipeline.begin_sync() else { return Ok(false) };
        for file in segments {
            self.driver.submit(Operation::Sync { token: SYNC_TOKEN, file });
        }
        Ok(true)
    }

    /// Whether a writer thread would sync now: somebody waits for it, frames wait behind an open frame, or a segment was
    /// left for the next one.
    pub(super) fn sync_is_due(&self) -> bool {
        self.syncs || self.pipeline.barrier_waits() || !self.unsealed.is_empty()
    }

    /// Takes in what has completed since the last call and moves the watermarks.
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`] where a write or sync failed, now or before.
    pub fn collect(&mut self) -> Result<()> {
        self.poll(PollWait::No).map(drop)
    }

    /// As `collect`, for a caller that may wait; returns how many operations completed.
    pub(super) fn poll(&mut self, wait: PollWait) -> Result<usize> {
        let mut done = Vec::new();
        self.driver.poll(wait, &mut done);
        let count = done.len();
        for completion in done {
            self.complete(completion);
        }
        self.settle(self.pipeline.progress());
        self.check_alive().map(|()| count)
    }

    fn complete(&mut self, Completion { token, result, buffer }: Completion) {
        self.buffers.extend(buffer);
        match result {
            Ok(()) if token == SYNC_TOKEN => drop(self.pipeline.on_synced()),
            Ok(()) => drop(self.pipeline.on_written(token, self.clock_ns)),
            Err(source) => {
                if token == SYNC_TOKEN {
                    self.pipeline.on_sync_failed();
                } else {
                    self.pipeline.on_failed(token);
                }
                let (action, path) = ("write", self.disk.path().into());
                self.poison.get_or_insert(Arc::new(Error::Io { action, path, source }));
            }
        }
    }

    fn settle(&mut self, progress: Progress) {
        self.sequencer.on_acknowledged(progress.written);
        while self.in_flight.pop_front_if(|(number, _)| *number <= progress.written).is_some() {}
        self.sequencer.on_durable(progress.durable);
        while let Some((_, watermark)) = self.watermarks.pop_front_if(|(number, _)| *number <= progress.durable) {
            self.witnessed = self.witnessed.max(watermark);
        }
    }

    /// What callers are told where a spare could not be made: what is no lack of space is final, as a failed write is.
    pub(super) fn without_spare(&mut self, error: Error) -> Error {
        if error.is_out_of_space() {
            return Error::NoSpace;
        }
        self.pipeline.poison();
        Error::Poisoned(self.poison.get_or_insert_with(|| Arc::new(error)).clone())
    }

    /// Whether a write or sync failed.
    pub fn is_poisoned(&self) -> bool {
        self.poison.is_some()
    }

    fn check_alive(&self) -> Result<()> {
        self.poison.as_ref().map_or(Ok(()), |cause| Err(Error::Poisoned(cause.clone())))
    }
}

/// Housekeeping: what helper threads and timers do elsewhere.
impl LocalLog {
    /// Makes one spare segment if fewer stand ready than the settings want; of a dropped segment where there is one.
    /// Returns whether it did.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`], [`Error::Io`]; [`Error::Poisoned`] after a failed write or sync.
    pub fn prepare_spare(&mut self) -> Result<bool> {
        self.check_alive()?;
        let is_wanted = self.wants_spare();
        if is_wanted {
            self.add_spare()?;
        }
        Ok(is_wanted)
    }

    /// Whether fewer spares stand ready than the settings want, or a dropped segment can be recycled into one more.
    pub fn wants_spare(&self) -> bool {
        let recycled = if self.dropped.is_empty() { 0 } else { spare::RECYCLED_EXTRA };
        self.sequencer.spare_count() < self.config.spare_segments + recycled
    }

    fn add_spare(&mut self) -> Result<()> {
        let Some(sequence) = self.sequencer.next_spare() else { return Err(Error::NoSpace) };
        let Some(known) = self.files.values().next() else { unreachable!("the active segment is open") };
        let header = SegmentHeader {
            sequence,
            salt: draw(&self.random),
            block_bytes: recover::block_bytes(&self.config, &*self.disk)?,
            ..known.header
        };
        let durable_writes = self.config.durability == Durability::Sync;
        let spare = match self.dropped.pop_front() {
            Some(old) => spare::recycle(&*self.disk, old, &header, durable_writes)?,
            None => match spare::make(
                &*self.disk,
                &header,
                durable_writes,
                &spare::zeros(header.segment_bytes),
                &mut spare::at_once,
            )? {
                Some(spare) => spare,
                None => unreachable!("this pacer gives nothing up"),
            },
        };
        let plot = spare.plot();
        self.attach(spare)?;
        self.sequencer.add_spare(plot);
        Ok(())
    }

    /// Seals the oldest segment that was left for the next one, if all of it is durable: writes its index file and
    /// lets go of the descriptor that wrote it. Returns whether it did.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where the index cannot be written; [`Error::Poisoned`] after a failed write or sync.
    pub fn seal_one(&mut self) -> Result<bool> {
        self.check_alive()?;
        let durable = self.sequencer.durable();
        let Some(identity) = self.unsealed.front().filter(|identity| identity.last_frame <= durable) else {
            return Ok(false);
        };
        if let Some(index) = self.sequencer.ledger.indexes.get(&identity.sequence) {
            sealed::write_index(&*self.disk, index, identity)?;
        }
        let Some(identity) = self.unsealed.pop_front() else { return Ok(false) };
        let sequence = identity.sequence;
        if let Some(handle) = self.handles.get(&sequence) {
            handle.seal(identity);
        }
        self.sequencer.ledger.indexes.remove(&sequence);
        self.let_go(sequence);
        Ok(true)
    }

    /// Whether [`LocalLog::seal_one`] would seal a segment.
    pub fn can_seal(&self) -> bool {
        self.unsealed.front().is_some_and(|identity| identity.last_frame <= self.sequencer.durable())
    }

    /// Closes the descriptor that wrote a segment.
    fn let_go(&mut self, sequence: u64) {
        if self.files.remove(&sequence).is_some() {
            self.driver.detach(sequence);
        }
    }

    /// Drops the oldest segment if nothing in it can be needed again. Its file stays until a spare is made of it or
    /// [`LocalLog::remove_dropped`] takes it. Returns whether it did.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where the index file cannot be removed; [`Error::Poisoned`] after a failed write or sync.
    pub fn drop_one(&mut self) -> Result<bool> {
        self.check_alive()?;
        let Some(sequence) = self.sequencer.droppable().filter(|&sequence| !self.is_written(sequence)) else {
            return Ok(false);
        };
        self.sequencer.ledger.ranges.drop_oldest();
        self.sequencer.ledger.indexes.remove(&sequence);
        self.unsealed.retain(|identity| identity.sequence != sequence);
        self.handles.remove(&sequence);
        self.let_go(sequence);
        self.dropped.push_back(sequence);
        let name = names::index(sequence);
        match self.disk.remove(&name) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
            other => other.map(|()| true).map_err(Error::io("remove", self.disk.path_of(&name))),
        }
    }

    /// Whether [`LocalLog::drop_one`] would drop a segment.
    pub fn can_drop(&self) -> bool {
        self.sequencer.droppable().is_some_and(|sequence| !self.is_written(sequence))
    }

    /// Whether an operation on the segment is under way or still to come.
    fn is_written(&self, sequence: u64) -> bool {
        let under_way = || self.sim.in_flight().iter().any(|operation| operation.file == sequence);
        self.files.contains_key(&sequence) && (sequence >= self.filling || under_way())
    }

    /// Removes the file of a dropped segment; returns whether there was one.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::Poisoned`] after a failed write or sync.
    pub fn remove_dropped(&mut self) -> Result<bool> {
        self.check_alive()?;
        let Some(sequence) = self.dropped.pop_front() else { return Ok(false) };
        spare::remove(&*self.disk, sequence).map(|()| true)
    }

    /// Dropped segments whose files wait to be recycled or removed.
    pub fn dropped(&self) -> usize {
        self.dropped.len()
    }

    /// Adds a mark frame where one has a use; returns whether it did.
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`] after a failed write or sync.
    pub fn mark(&mut self) -> Result<bool> {
        self.check_alive()?;
        Ok(self.sequencer.add_mark())
    }

    /// Repeats the durable watermark in the lock file.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn write_slot(&mut self) -> Result<()> {
        let durable = self.sequencer.durable();
        let Some(log_id) = self.files.values().next().map(|segment| segment.header.log_id) else { return Ok(()) };
        self.lock.write_slot(log_id, durable).map_err(Error::io("write", self.disk.path_of(names::LOCK)))?;
        self.witnessed = self.witnessed.max(durable);
        Ok(())
    }
}

/// Looking at it.
impl LocalLog {
    /// Frames written and frames durable: every frame up to these numbers. What is acknowledged is the durable one
    /// where writes are durable, else the written one.
    pub fn progress(&self) -> (u64, u64) {
        (self.sequencer.acknowledged(), self.sequencer.durable())
    }

    /// Number of the newest frame, accepted or more.
    pub fn last_frame(&self) -> u64 {
        self.sequencer.last_number()
    }

    /// One past the last index that is durable and not truncated since; `None` where nothing is.
    pub fn durable_next(&self) -> Option<u64> {
        self.sequencer.durable_next()
    }

    /// Index of the next entry that brings none.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn next_index(&self) -> u64 {
        self.sequencer.next_index()
    }

    /// Every frame up to this one is durable *and* a durable head or slot of this life says so: damage to it must be
    /// noticed.
    pub fn witnessed(&self) -> u64 {
        self.witnessed
    }

    /// Whether something is written and waits for a sync.
    pub fn wants_sync(&self) -> bool {
        !self.pipeline.is_syncing() && (self.pipeline.wants_sync() || self.pipeline.barrier_waits())
    }

    /// Sequence number of the segment being filled.
    pub fn active_segment(&self) -> u64 {
        self.sequencer.active().sequence
    }

    /// Sequence numbers of the segments that hold frames or wait for their turn, oldest first.
    pub fn segments(&self) -> Vec<u64> {
        let live = self.sequencer.ledger.ranges.iter().map(|range| range.sequence);
        let newest = self.active_segment();
        live.chain(newest + 1..=newest + self.sequencer.spare_count() as u64).collect()
    }

    /// Whether the segment being filled holds no live entry though it held some: a truncation reached past it.
    pub fn newest_segment_is_cut_empty(&self) -> bool {
        let newest = self.sequencer.ledger.ranges.newest();
        newest.is_some_and(|newest| newest.live.is_empty() && newest.sequence > 1)
    }

    /// Where the last frame of the segment being filled ends, in bytes.
    pub fn tail(&self) -> u64 {
        self.sequencer.tail()
    }

    /// Name and content of the index file that the segment being filled would get if the log went on in the next one
    /// now. `None` while something accepted is still to be written.
    pub(super) fn index_of_active(&self) -> Option<(String, Vec<u8>)> {
        let range = self.sequencer.ledger.ranges.newest()?;
        let index = self.sequencer.ledger.indexes.get(&range.sequence)?;
        let SegmentHeader { log_id, sequence, salt, .. } = self.files.get(&range.sequence)?.header;
        let identity = IndexIdentity {
            log_id,
            sequence,
            salt,
            last_head_checksum: self.pipeline.chain(),
            first_frame: range.first_frame,
            last_frame: self.last_frame(),
        };
        let is_written = self.sequencer.acknowledged() == identity.last_frame;
        is_written.then(|| (names::index(sequence), index::encode(index, &identity)))
    }

    /// Reads everything back from the disk. Call it while nothing accepted is still to be written.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] where an entry does not verify; [`Error::Io`].
    pub fn contents(&self) -> Result<Contents> {
        let state = &self.sequencer.outline().state;
        let mut contents = Contents {
            entries: Vec::new(),
            compacted: state.compacted,
            next: state.next,
            last_term: state.last_term,
            hard_state: (*state.hard_state).clone(),
        };
        for range in self.sequencer.ledger.ranges.iter().filter(|range| !range.live.is_empty()) {
            let Some(handle) = self.handles.get(&range.sequence) else { unreachable!("live segments have handles") };
            contents.entries.extend(self.read_segment(handle, range.live.clone())?);
        }
        Ok(contents)
    }

    fn read_segment(&self, handle: &SegmentHandle, live: std::ops::Range<u64>) -> Result<Vec<LogEntry>> {
        let damaged = |index| Error::Corrupt {
            file: handle.path(),
            offset: 0,
            indexes: index..index + 1,
            reason: "no index leads to the entry".into(),
        };
        if let Some(index) = self.sequencer.ledger.indexes.get(&handle.header.sequence) {
            let offsets = live.clone().map(|at| index.offset_of(at).ok_or_else(|| damaged(at)));
            return handle.read_run(live.start, &offsets.collect::<Result<Vec<u32>>>()?);
        }
        let map = handle.index_map()?;
        let offsets: Option<Vec<u32>> = live.clone().map(|index| map.offset_of(index)).collect();
        match offsets.map(|offsets| handle.read_run(live.start, &offsets)) {
            Some(Ok(entries)) => Ok(entries),
            // The index is only derived: one entry at a time, reading corrects it.
            None | Some(Err(Error::Corrupt { .. })) => live.map(|index| handle.read_sealed(index)).collect(),
            Some(Err(error)) => Err(error),
        }
    }
}
