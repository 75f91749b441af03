//! Recovery: finds the end of the log and makes it safe to go on from there.
//!
//! The steps, in an order that matters (what is lost if it changes):
//!
//! 1. **Lock** every named segment through the descriptor that will write it, before anything is read: a killed
//!    writer's queued writes hold those locks until they are done, and would otherwise land after we looked.
//! 2. **Start** at the newest segment whose successor proves its first frame durable.
//! 3. **Walk** frame by frame. Before following the log into the next segment, look through the rest of this one:
//!    otherwise damage in its last frames would be taken for the roll.
//! 4. **Torn or corrupt**: one head behind the end whose watermark covers the missing frame is enough for an error.
//! 5. **Make durable** what is kept and not witnessed: a killed process leaves writes in the device's cache, and a
//!    failed sync leaves pages that read back but never reached the disk. Without this, a second crash could lose what
//!    the first recovery showed. The same goes for names: the directory is synced.
//! 6. **Save** what is cut, **then decide** with an open frame, synced. Only then are dead first frames cleared from the
//!    spares behind (step 2 of a later recovery would go by them), left-overs removed and the log handed out. A second
//!    recovery decides the same.
//!
//! A read-only recovery takes no lock, writes nothing and stops after step 4. A segment whose header is damaged makes a
//! writing recovery an error; a read-only one reads its frames by the salt they carry.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::dir::{self, Listing, LockFile};
use super::index_map::IndexMap;
use super::salvage;
use super::scan::{Found, OnDemand, SegmentReader, rebuild_index};
use super::spare::{self, OpenSegment};
use crate::config::{Config, Durability, Verify};
use crate::disk::{Access, AlignedBuf, Disk};
use crate::engine::ranges::SegmentRange;
use crate::engine::recovery::{self, Fit, Replay};
use crate::engine::sequencer::{End, Start};
use crate::engine::space;
use crate::error::{Error, Result};
use crate::format::frame::{self, Epoch, FrameKind, FrameSpec, Head, HeadRead};
use crate::format::index::{self, IndexIdentity};
use crate::format::lock::Slot;
use crate::format::names;
use crate::format::segment::{HeaderDefect, SEGMENT_BLOCKS_MIN, SegmentHeader};
use crate::plant::{Plant, planted};

/// What an open found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// The directory held no log, and one was made.
    pub created: bool,
    /// The log had been closed, or left idle long enough for a mark: nothing had to be written.
    pub was_clean: bool,
    /// Frames read and kept; older ones were proved durable by later segments and not read.
    pub frames_kept: u64,
    /// Entries in those frames.
    pub entries_kept: u64,
    /// Kept frames that nothing on disk proved durable, written again as they are.
    pub frames_rewritten: u64,
    /// Bytes behind the end that were in flight at the crash and never acknowledged.
    pub bytes_cut: u64,
    /// Why they were cut; empty where nothing was.
    pub cut_reason: String,
    /// Where the cut bytes were copied to; `None` where nothing was cut, or no space was left for the copy.
    pub saved_to: Option<PathBuf>,
    /// Files of dropped segments that an interrupted drop had left.
    pub segments_removed: u64,
    /// Segments with a damaged header, read by the salt that their frames carry; only a read-only open does so.
    pub damaged_headers: u64,
    /// Index files that were missing or wrong and are made anew from their segments.
    pub indexes_rebuilt: u64,
    /// How long it took.
    pub took: Duration,
}

/// Stands for the log id of a segment whose header is damaged.
const LOG_ID_UNKNOWN: [u8; 16] = [0; 16];

/// A segment older than the one being filled.
pub(crate) struct SealedSegment {
    pub(crate) header: SegmentHeader,
    pub(crate) identity: IndexIdentity,
}

/// The result of a recovery.
pub(crate) struct Recovered {
    /// `None` in a read-only recovery.
    pub(crate) lock: Option<LockFile>,
    pub(crate) sealed: Vec<SealedSegment>,
    pub(crate) active: OpenSegment,
    pub(crate) spares: Vec<OpenSegment>,
    pub(crate) start: Start,
    /// Head checksum of the last frame.
    pub(crate) chain: u32,
    pub(crate) epoch: Epoch,
    pub(crate) report: RecoveryReport,
}

/// What a recovery needs from outside.
pub(crate) struct Request<'a> {
    pub(crate) disk: &'a Arc<dyn Disk>,
    pub(crate) config: &'a Config,
    pub(crate) random: &'a dyn Fn() -> u64,
    pub(crate) read_only: bool,
}

/// Opens the log in a directory, creating it where there is none.
///
/// # Errors
///
/// Every error of opening a log; see [`crate::Log::open`].
pub(crate) fn recover(request: &Request<'_>) -> Result<Recovered> {
    let disk = &**request.disk;
    let listing = Listing::read(disk)?;
    listing.check_ours(disk)?;
    let lock = match request.read_only {
        true => None,
        false => Some(LockFile::acquire(request.disk, request.config.lock_wait)?),
    };
    // Listed again under the lock: the writer that went away may have made or dropped segments meanwhile.
    let listing = Listing::read(disk)?;
    let slot = match &lock {
        Some(lock) => lock.slot()?,
        None => dir::peek_slot(disk)?,
    };
    let slot = slot.filter(|_| !planted(Plant::SlotIgnored));
    let mut recovery = Recovery::new(request, slot);
    if listing.segments.is_empty() {
        recovery.create(&listing)?;
    } else {
        recovery.open_segments(listing.run())?;
    }
    recovery.restore_before_walk()?;
    recovery.walk()?;
    recovery.check_nothing_is_missing()?;
    if !request.read_only {
        recovery.make_durable()?;
        recovery.decide()?;
        recovery.clear_spares()?;
        recovery.clean_up(&listing)?;
    }
    recovery.finish(lock)
}

/// Segments whose files are kept open while recovery runs; a log has many more than a process may have open.
const OPEN_AT_ONCE: usize = 64;

/// A whole frame that was kept, for writing it again.
struct Kept {
    segment: usize,
    offset: u64,
    head: Head,
    /// Where the log ends after it.
    end: Option<End>,
}

/// What lies behind the end of the log.
#[derive(Default)]
struct Behind {
    /// End of the last frame that any head behind the cut claims, in the segment of the cut.
    claimed_end: u64,
    /// A head of the last frame's epoch stands behind it: frames of this life were in flight.
    same_epoch: bool,
}

struct Recovery<'a> {
    request: &'a Request<'a>,
    disk: &'a Arc<dyn Disk>,
    slot: Option<Slot>,
    segments: Vec<SegmentReader>,
    files: Vec<OpenSegment>,
    first_heads: Vec<Option<Head>>,
    /// Position in `segments` where the walk starts, and where it ended.
    start: usize,
    end: usize,
    /// End of the last frame in the segment where the walk ended.
    tail: u64,
    replay: Replay,
    /// Oldest first.
    unwitnessed: VecDeque<Kept>,
    /// The last frame that something proves durable, and where the log ends after it.
    witnessed_end: Option<(u64, Option<End>)>,
    sealed: Vec<IndexIdentity>,
    highest_counter: u64,
    behind: Behind,
    epoch: Epoch,
    open_due: bool,
    report: RecoveryReport,
}

impl<'a> Recovery<'a> {
    fn new(request: &'a Request<'a>, slot: Option<Slot>) -> Recovery<'a> {
        Recovery {
            request,
            disk: request.disk,
            slot,
            segments: Vec::new(),
            files: Vec::new(),
            first_heads: Vec::new(),
            start: 0,
            end: 0,
            tail: 0,
            replay: Replay::default(),
            unwitnessed: VecDeque::new(),
            witnessed_end: None,
            sealed: Vec::new(),
            highest_counter: 0,
            behind: Behind::default(),
            epoch: Epoch { counter: 0, random: 0 },
            open_due: false,
            report: RecoveryReport::default(),
        }
    }

    fn durable_writes(&self) -> bool {
        self.request.config.durability == Durability::Sync
    }

    fn path(&self, segment: usize) -> PathBuf {
        self.disk.path_of(&names::segment(self.segments[segment].header.sequence))
    }

    /// The path is made only for an error: there is a read for every frame.
    fn read_error(&self, segment: usize) -> impl FnOnce(std::io::Error) -> Error + use<'a> {
        let (disk, sequence) = (self.disk, self.segments[segment].header.sequence);
        move |source| Error::io("read", disk.path_of(&names::segment(sequence)))(source)
    }

    fn corrupt(&self, segment: usize, offset: u64, reason: impl Into<String>) -> Error {
        let first = self.replay.ledger.outline.state.next.unwrap_or(0);
        Error::Corrupt { file: self.path(segment), offset, indexes: first..u64::MAX, reason: reason.into() }
    }

    fn unsupported(&self, segment: usize, offset: u64, what: String) -> Error {
        Error::Unsupported { file: self.path(segment), offset, what }
    }

    /// Makes the first segment of a new log; the walk then finds it empty.
    fn create(&mut self, listing: &Listing) -> Result<()> {
        if let Some(slot) = self.slot.filter(|slot| slot.watermark > 0) {
            let reason = format!("all segments are gone, but {} frames were durable", slot.watermark);
            let file = self.disk.path_of(&names::segment(1));
            return Err(Error::Corrupt { file, offset: 0, indexes: 0..u64::MAX, reason });
        }
        if self.request.read_only {
            let found = "there is no segment".into();
            return Err(Error::Foreign { path: self.disk.path().into(), found });
        }
        let config = self.request.config;
        self.check_block_bytes(config.segment_bytes)?;
        self.remove_temporaries(listing)?;
        let mut log_id = [0; 16];
        log_id[..8].copy_from_slice(&(self.request.random)().to_le_bytes());
        log_id[8..].copy_from_slice(&(self.request.random)().to_le_bytes());
        let block_bytes = block_bytes(config, &**self.disk)?;
        let segment_bytes = config.segment_bytes;
        let header = SegmentHeader { log_id, sequence: 1, salt: (self.request.random)(), block_bytes, segment_bytes };
        self.report.created = true;
        let made = spare::make(
            &**self.disk,
            &header,
            self.durable_writes(),
            &spare::zeros(segment_bytes),
            &mut spare::at_once,
        )?;
        let Some(made) = made else { unreachable!("this pacer gives nothing up") };
        self.add_segment(made)
    }

    fn open_segments(&mut self, run: &[u64]) -> Result<()> {
        let mut opened = Vec::with_capacity(run.len());
        for (at, &sequence) in run.iter().enumerate() {
            let mut segment = self.open_segment(sequence)?;
            if at + OPEN_AT_ONCE < run.len() {
                // Its lock was free, so nothing is queued for it any more, and nobody else will write to it.
                segment.file = Arc::new(OnDemand::new(self.disk.clone(), names::segment(sequence)));
            }
            opened.push(segment);
        }
        self.lend_log_id(&mut opened);
        for opened in opened {
            self.add_segment(opened)?;
        }
        let SegmentHeader { log_id: id, segment_bytes, .. } = self.files[0].header;
        if let Some(segment) = self.files.iter().position(|file| file.header.segment_bytes != segment_bytes) {
            return Err(self.corrupt(segment, 0, "its size differs from that of the other segments"));
        }
        if let Some(segment) = self.files.iter().position(|file| file.header.log_id != id) {
            return Err(self.corrupt(segment, 0, "it belongs to another log"));
        }
        if self.slot.is_some_and(|slot| slot.log_id != id) {
            let reason = "it belongs to another log than the segments".to_string();
            let file = self.disk.path_of(names::LOCK);
            return Err(Error::Corrupt { file, offset: 0, indexes: 0..u64::MAX, reason });
        }
        if self.request.read_only { Ok(()) } else { self.check_block_bytes(segment_bytes) }
    }

    /// New segments will have the size of the old ones and the blocks of the settings: both must go together.
    fn check_block_bytes(&self, segment_bytes: u64) -> Result<()> {
        let block = u64::from(block_bytes(self.request.config, &**self.disk)?);
        if segment_bytes.is_multiple_of(block) && segment_bytes >= SEGMENT_BLOCKS_MIN * block {
            return Ok(());
        }
        Err(Error::Config(format!(
            "blocks here have {block} bytes, but the log's segments {segment_bytes}: segment_bytes must be \
             a multiple of the block size and at least {SEGMENT_BLOCKS_MIN} blocks"
        )))
    }

    /// Segments without a header of their own belong to the log that the others, or the lock file, name.
    fn lend_log_id(&mut self, opened: &mut [OpenSegment]) {
        if !self.request.read_only {
            return;
        }
        let whole = opened.iter().map(|segment| segment.header.log_id).find(|&id| id != LOG_ID_UNKNOWN);
        let id = whole.or(self.slot.map(|slot| slot.log_id)).unwrap_or(LOG_ID_UNKNOWN);
        for segment in opened.iter_mut().filter(|segment| segment.header.log_id == LOG_ID_UNKNOWN) {
            let file = self.disk.path_of(&names::segment(segment.header.sequence));
            tracing::warn!(file = %file.display(), "a damaged header: the frames are read by the salt they carry");
            segment.header.log_id = id;
            self.report.damaged_headers += 1;
        }
    }

    fn add_segment(&mut self, mut opened: OpenSegment) -> Result<()> {
        if self.is_below_device(&opened.header) {
            // Direct reads and writes of such blocks are refused, or would tear what lies around them.
            let name = names::segment(opened.header.sequence);
            let access = if self.request.read_only { Access::Read } else { Access::ReadWrite };
            opened.file = self.disk.open(&name, access).map_err(Error::io("open", self.disk.path_of(&name)))?;
        }
        let mut reader = SegmentReader::new(opened.file.clone(), opened.header);
        self.files.push(opened);
        let first = reader.head_at(reader.block_bytes());
        self.segments.push(reader);
        let segment = self.segments.len() - 1;
        self.first_heads.push(match first.map_err(self.read_error(segment))? {
            HeadRead::Head(head) => Some(head),
            HeadRead::Absent => None,
            HeadRead::Newer(what) => return Err(self.unsupported(segment, self.segments[segment].block_bytes(), what)),
        });
        Ok(())
    }

    /// Whether a segment's blocks are smaller than what the device writes as a whole: the log was copied here from
    /// another one.
    fn is_below_device(&self, header: &SegmentHeader) -> bool {
        header.block_bytes < self.disk.physical_block_bytes()
    }

    /// Opens and locks a named segment and reads its header.
    fn open_segment(&self, sequence: u64) -> Result<OpenSegment> {
        let name = names::segment(sequence);
        let path = self.disk.path_of(&name);
        let access = match self.request.read_only {
            true => Access::ReadDirect,
            false => Access::Segment { durable: self.durable_writes() },
        };
        let file = self.disk.open(&name, access).map_err(Error::io("open", &path))?;
        if !self.request.read_only && !planted(Plant::SegmentsNotLocked) {
            let holder = "writes of an earlier process that the kernel has not finished".to_string();
            let refusal = || Error::Locked { path: path.clone(), holder: holder.clone() };
            dir::lock_within(&*file, self.request.config.lock_wait, refusal, &path)?;
        }
        let mut block = AlignedBuf::zeroed(4096);
        let bytes = file.read_at(&mut block, 0).map_err(Error::io("read", &path))?;
        let damaged = |reason: String| Error::Corrupt { file: path.clone(), offset: 0, indexes: 0..u64::MAX, reason };
        let header = match SegmentHeader::decode(&block[..bytes]) {
            Ok(header) => header,
            Err(HeaderDefect::Version(version)) => {
                let what = format!("format version {version}");
                return Err(Error::Unsupported { file: path, offset: 8, what });
            }
            Err(HeaderDefect::Damaged(why)) => {
                let salvaged = match self.request.read_only {
                    true => salvage::header(&*file, sequence).map_err(Error::io("read", &path))?,
                    false => None,
                };
                return salvaged.map(|header| OpenSegment { header, file }).ok_or_else(|| damaged(why.into()));
            }
        };
        if header.sequence != sequence {
            return Err(damaged(format!("it is segment {} under the name of segment {sequence}", header.sequence)));
        }
        let size = file.size().map_err(Error::io("look at", &path))?;
        if size < header.segment_bytes {
            return Err(damaged(format!("it has {size} of its {} bytes", header.segment_bytes)));
        }
        Ok(OpenSegment { header, file })
    }

    /// Step 2: where the walk starts, and the live ranges of everything before it.
    fn restore_before_walk(&mut self) -> Result<()> {
        let proved = |at: &usize| match (&self.first_heads[*at], self.first_heads.get(*at + 1)) {
            (Some(this), Some(Some(next))) => recovery::witnesses(next.watermark, this.number),
            (this, _) => this.is_some() && planted(Plant::StartNotProved),
        };
        self.start = match self.request.config.verify {
            Verify::Tail => (0..self.segments.len()).rev().find(proved).unwrap_or(0),
            Verify::Full => 0,
        };
        for segment in 0..self.start {
            self.restore_segment(segment)?;
        }
        Ok(())
    }

    /// Takes a segment's part of the log from its index file, or from itself where that will not do.
    fn restore_segment(&mut self, segment: usize) -> Result<()> {
        let (Some(first), Some(next)) = (self.first_heads[segment], self.first_heads[segment + 1]) else {
            let damaged = if self.first_heads[segment].is_none() { segment } else { segment + 1 };
            let offset = self.segments[damaged].block_bytes();
            return Err(self.corrupt(
                damaged,
                offset,
                "its first frame is damaged, and later segments prove it durable",
            ));
        };
        let header = self.segments[segment].header;
        let identity = IndexIdentity {
            log_id: header.log_id,
            sequence: header.sequence,
            salt: header.salt,
            last_head_checksum: next.chain,
            first_frame: first.number,
            last_frame: next.number.saturating_sub(1),
        };
        let range = |live: Range<u64>, highest_ever| SegmentRange {
            sequence: header.sequence,
            first_frame: first.number,
            live,
            highest_ever,
        };
        match self.open_index(&identity) {
            Some(map) => {
                let range = range(map.range(), map.header().highest_ever());
                self.replay.ledger.ranges.restore(range, map.header().floor());
            }
            None => {
                let path = self.path(segment);
                let index = rebuild_index(&mut self.segments[segment], &identity, &path)?;
                self.replay.ledger.ranges.restore(range(index.range(), index.highest_ever()), index.floor());
                self.replay.ledger.indexes.insert(header.sequence, Arc::new(index));
                self.report.indexes_rebuilt += 1;
            }
        }
        self.segments[segment].release();
        self.sealed.push(identity);
        Ok(())
    }

    /// An index file that fits the segment as it is. Anything else, an I/O error included, means: rebuild.
    fn open_index(&self, identity: &IndexIdentity) -> Option<IndexMap> {
        let file = self.disk.open(&names::index(identity.sequence), Access::Read).ok()?;
        IndexMap::open(&*file, identity).ok()
    }

    /// Steps 3 and 4.
    fn walk(&mut self) -> Result<()> {
        let mut segment = self.start;
        let mut offset = self.segments[segment].block_bytes();
        let mut segment_first = None;
        loop {
            if self.follow_at(segment, offset, &mut segment_first)? {
                offset += self.replay.last.map_or(0, |last| u64::from(last.frame_bytes));
                continue;
            }
            let expected = self.expected(segment, offset)?;
            if self.replay.last.is_none() {
                self.check_may_be_new(segment)?;
            }
            self.behind = match planted(Plant::FollowWithoutLook) {
                true => Behind::default(),
                false => self.look_behind(segment, offset, expected)?,
            };
            let next_block = self.segments.get(segment + 1).map(SegmentReader::block_bytes);
            let was = (self.replay.last, self.segments[segment].header);
            let mut next_first = None;
            match next_block {
                Some(block) if was.0.is_some() && self.follow_at(segment + 1, block, &mut next_first)? => {
                    self.seal(was, segment_first);
                    self.leave_to_file();
                    self.segments[segment].release();
                    segment += 1;
                    segment_first = next_first;
                    offset = block + self.replay.last.map_or(0, |last| u64::from(last.frame_bytes));
                }
                _ => {
                    (self.end, self.tail) = (segment, offset);
                    return self.check_end(segment, expected);
                }
            }
        }
    }

    fn expected(&self, segment: usize, offset: u64) -> Result<u64> {
        self.replay.expected().ok_or_else(|| self.corrupt(segment, offset, "the frame counter is at its end"))
    }

    fn seal(&mut self, (last, header): (Option<Head>, SegmentHeader), first_frame: Option<u64>) {
        if let (Some(last), Some(first_frame)) = (last, first_frame) {
            self.sealed.push(IndexIdentity {
                log_id: header.log_id,
                sequence: header.sequence,
                salt: header.salt,
                last_head_checksum: last.checksum,
                first_frame,
                last_frame: last.number,
            });
        }
    }

    /// Forgets the index of the newest sealed segment where its file says the same: a walk through many segments would
    /// hold them all, and each file would be written once more.
    fn leave_to_file(&mut self) {
        let Some(identity) = self.sealed.last() else { return };
        let index = self.replay.ledger.indexes.get(&identity.sequence);
        if index.is_some_and(|index| self.is_in_file(&index::encode(index, identity), identity.sequence)) {
            self.replay.ledger.indexes.remove(&identity.sequence);
        }
    }

    fn is_in_file(&self, bytes: &[u8], sequence: u64) -> bool {
        let Ok(file) = self.disk.open(&names::index(sequence), Access::Read) else { return false };
        let mut found = vec![0; bytes.len()];
        file.size().is_ok_and(|size| size == bytes.len() as u64)
            && file.read_at(&mut found, 0).is_ok_and(|filled| filled == bytes.len())
            && found == bytes
    }

    /// What stands at a place where the next frame would; whole frames that are not the next one are nothing here. Before
    /// the log is taken to end, the place is read a second time: a device that once returns wrong bytes, or those of
    /// another place, must not cost what is there.
    fn next_frame(&mut self, segment: usize, offset: u64) -> Result<Found> {
        let last = self.replay.last;
        let look = |reader: &mut SegmentReader| {
            reader.frame_at(offset).map(|found| match found {
                Found::Whole(frame) if recovery::fits(last.as_ref(), &frame.head, offset) != Fit::Next => {
                    Found::Nothing
                }
                other => other,
            })
        };
        let reader = &mut self.segments[segment];
        let mut found = look(reader);
        if let Ok(Found::Nothing | Found::NotWhole) = found {
            reader.forget();
            found = look(reader);
        }
        found.map_err(self.read_error(segment))
    }

    /// Follows the frame at a place if it is the next one; remembers the number of a segment's first frame.
    fn follow_at(&mut self, segment: usize, offset: u64, segment_first: &mut Option<u64>) -> Result<bool> {
        let header = self.segments[segment].header;
        if offset >= header.segment_bytes {
            return Ok(false);
        }
        let frame = match self.next_frame(segment, offset)? {
            Found::Whole(frame) => frame,
            Found::Newer(what) => return Err(self.unsupported(segment, offset, what)),
            Found::Nothing | Found::NotWhole => return Ok(false),
        };
        self.replay
            .follow(&frame, header.sequence, offset, header.segment_bytes)
            .map_err(|why| self.corrupt(segment, offset, why))?;
        self.highest_counter = self.highest_counter.max(frame.head.epoch.counter);
        let witnessed = self.replay.witnessed;
        let end = End::of(&self.replay.ledger.outline.state);
        if self.witnessed_end.is_none() {
            // Where the walk starts is witnessed, or there is nothing before it.
            self.witnessed_end = Some((frame.head.number - 1, frame.base.as_ref().and_then(End::of)));
        }
        while let Some(kept) = self.unwitnessed.pop_front_if(|kept| kept.head.number <= witnessed) {
            self.witnessed_end = Some((kept.head.number, kept.end));
        }
        self.unwitnessed.push_back(Kept { segment, offset, head: frame.head, end });
        segment_first.get_or_insert(frame.head.number);
        Ok(true)
    }

    /// The first frame of the run was durable long ago, unless this is the first segment of a log being created.
    fn check_may_be_new(&self, segment: usize) -> Result<()> {
        let is_first = segment == 0 && self.segments[segment].header.sequence == 1;
        let offset = self.segments[segment].block_bytes();
        if is_first { Ok(()) } else { Err(self.corrupt(segment, offset, "its first frame is damaged")) }
    }

    /// Looks at every head from a place to its segment's end for a witness of the missing frame.
    fn look_behind(&mut self, segment: usize, offset: u64, missing: u64) -> Result<Behind> {
        let last_epoch = self.replay.last.map(|last| last.epoch);
        let mut verdict: Option<(u64, Result<u64, String>)> = None;
        let (mut counter, mut behind) = (self.highest_counter, Behind::default());
        let path = self.path(segment);
        self.segments[segment]
            .heads_from(offset, |at, head| {
                match head {
                    Err(what) => verdict = Some((at, Err(what.into()))),
                    Ok(head) if recovery::witnesses(head.watermark, missing) => {
                        verdict = Some((at, Ok(head.watermark)))
                    }
                    Ok(head) => {
                        counter = counter.max(head.epoch.counter);
                        behind.same_epoch |= Some(head.epoch) == last_epoch;
                        behind.claimed_end = behind.claimed_end.max(at + u64::from(head.frame_bytes));
                    }
                }
                verdict.is_none()
            })
            .map_err(Error::io("read", path))?;
        self.highest_counter = counter;
        match verdict {
            None => Ok(behind),
            Some((at, Err(what))) => Err(self.unsupported(segment, at, what)),
            Some((at, Ok(watermark))) => {
                let witness = format!("segment {} at byte {at}", self.segments[segment].header.sequence);
                Err(self.damaged_end(missing, watermark, &witness))
            }
        }
    }

    /// The error for a missing frame that something proves acknowledged; it lies where the walk stopped.
    fn damaged_end(&self, missing: u64, watermark: u64, witness: &str) -> Error {
        let last = self.unwitnessed.back();
        let segment = last.map_or(self.start, |kept| kept.segment);
        let offset =
            last.map_or(self.segments[segment].block_bytes(), |kept| kept.offset + u64::from(kept.head.frame_bytes));
        let reason =
            format!("frame {missing} is missing or damaged, but {witness} proves frames up to {watermark} durable");
        self.corrupt(segment, offset, reason)
    }

    /// Step 4 where the walk finally ends; the rest of the last segment was looked through before.
    fn check_end(&mut self, segment: usize, missing: u64) -> Result<()> {
        let end = if planted(Plant::OneSegmentBehind) { segment + 1 } else { self.segments.len() };
        for later in segment + 1..end {
            let first_block = self.segments[later].block_bytes();
            self.behind.same_epoch |= self.look_behind(later, first_block, missing)?.same_epoch;
        }
        match self.slot {
            Some(slot) if recovery::witnesses(slot.watermark, missing) => {
                Err(self.damaged_end(missing, slot.watermark, "the mark in the lock file"))
            }
            _ => Ok(()),
        }
    }

    /// A segment is missing if the log's base tells of entries that no compaction covers.
    fn check_nothing_is_missing(&mut self) -> Result<()> {
        let first = self.segments[0].header;
        if first.sequence == 1 || self.replay.last.is_none() {
            return Ok(());
        }
        let block = self.segments[0].block_bytes();
        let base = match self.segments[0].frame_at(block).map_err(self.read_error(0))? {
            Found::Whole(frame) => frame.base.unwrap_or_default(),
            _ => return Err(self.corrupt(0, block, "its first frame is damaged")),
        };
        let compacted = self.replay.ledger.outline.state.compacted.map_or(0, |(index, _)| index + 1);
        match base.next {
            Some(next) if compacted < next => {
                let file = self.disk.path_of(&names::segment(first.sequence - 1));
                let reason = "the segment is missing, and its entries were not compacted".to_string();
                Err(Error::Corrupt { file, offset: 0, indexes: compacted..next, reason })
            }
            _ => Ok(()),
        }
    }

    /// Step 5. Names first: a process killed in the middle of making a segment leaves a name that no directory sync
    /// covers, and frames written there would be lost with it.
    fn make_durable(&mut self) -> Result<()> {
        if !planted(Plant::NamesNotSynced) {
            self.disk.sync_dir().map_err(Error::io("sync", self.disk.path()))?;
        }
        let witnessed = self.replay.witnessed.max(self.slot.map_or(0, |slot| slot.watermark));
        let mut touched = Vec::new();
        for kept in std::mem::take(&mut self.unwitnessed) {
            if kept.head.number <= witnessed || planted(Plant::KeptNotWrittenAgain) {
                continue;
            }
            let path = self.path(kept.segment);
            let file = self.files[kept.segment].file.clone();
            let reader = &mut self.segments[kept.segment];
            match reader.frame_at(kept.offset).map_err(Error::io("read", &path))? {
                Found::Whole(frame) if frame.head == kept.head => {}
                // It was whole a moment ago. What this read returned must not be written over it.
                _ => return Err(self.corrupt(kept.segment, kept.offset, "a frame reads otherwise the second time")),
            }
            let bytes = reader.bytes(kept.offset, u64::from(kept.head.frame_bytes));
            let bytes = bytes.map_err(Error::io("read", &path))?;
            // A long frame's head was verified as it came with an earlier read than the one that is written now.
            let is_kept = Head::decode(bytes, kept.head.salt) == HeadRead::Head(kept.head);
            if !is_kept && !planted(Plant::HeadWrittenUnread) {
                return Err(self.corrupt(kept.segment, kept.offset, "a head reads otherwise the second time"));
            }
            file.write_at(bytes, kept.offset).map_err(Error::io("write again", &path))?;
            self.report.frames_rewritten += 1;
            if !touched.contains(&kept.segment) {
                touched.push(kept.segment);
            }
        }
        for segment in touched {
            if !self.durable_writes() || self.is_below_device(&self.files[segment].header) {
                self.files[segment].file.sync().map_err(Error::io("sync", self.path(segment)))?;
            }
        }
        Ok(())
    }

    /// Step 6: nothing to decide after a clean end; else what is cut is saved and an open frame ends the old life.
    fn decide(&mut self) -> Result<()> {
        let random = (self.request.random)() as u32;
        let counters_end = || self.corrupt(self.end, self.tail, "the epoch counter is at its end");
        self.epoch = recovery::next_epoch(self.highest_counter, random).ok_or_else(counters_end)?;
        let ended = self.replay.last.is_some_and(|last| last.kind != FrameKind::Data);
        if ended && !self.behind.same_epoch {
            self.report.was_clean = true;
            self.open_due = true;
            return self.leave_small_blocks();
        }
        if !self.report.created {
            self.save_cut()?;
        }
        self.leave_small_blocks()?;
        self.write_open_frame()
    }

    /// Ends a segment whose blocks are smaller than the device's: the log goes on in a new one, which the spares behind
    /// it, made for the same blocks, cannot be.
    fn leave_small_blocks(&mut self) -> Result<()> {
        if !self.is_below_device(&self.segments[self.end].header) {
            let spares = self.end + 1..self.segments.len();
            return match spares.clone().find(|&spare| self.is_below_device(&self.segments[spare].header)) {
                Some(spare) => self.remove_spares_from(spare),
                None => Ok(()),
            };
        }
        self.tail = self.segments[self.end].header.segment_bytes;
        self.remove_spares_from(self.end + 1)
    }

    fn remove_spares_from(&mut self, first: usize) -> Result<()> {
        while self.segments.len() > first {
            self.files.pop();
            if let Some(spare) = self.segments.pop() {
                spare::remove(&**self.disk, spare.header.sequence)?;
            }
        }
        self.disk.sync_dir().map_err(Error::io("sync", self.disk.path()))
    }

    fn save_cut(&mut self) -> Result<()> {
        let limit = self.request.config.in_flight_bytes_max.max(self.request.config.frame_bytes_max);
        let end = self.behind.claimed_end.min(self.segments[self.end].header.segment_bytes);
        let bytes = end.saturating_sub(self.tail).min(limit);
        if bytes == 0 {
            return Ok(());
        }
        self.report.bytes_cut = bytes;
        self.report.cut_reason =
            "frames were in flight when the log was last open, and nothing proves them acknowledged".to_string();
        let sequence = self.segments[self.end].header.sequence;
        let name = names::cut(sequence, self.tail, self.epoch.counter);
        let path = self.disk.path_of(&name);
        let read_error = Error::io("read", self.path(self.end));
        let cut = self.segments[self.end].bytes(self.tail, bytes).map_err(read_error)?.to_vec();
        let save = || {
            let file = self.disk.open(&name, Access::Create)?;
            file.write_at(&cut, 0)?;
            file.sync()
        };
        match save().map_err(Error::io("save what is cut to", &path)) {
            Ok(()) => self.report.saved_to = Some(path),
            Err(error) if error.is_out_of_space() => {
                let _ = self.disk.remove(&name);
                self.report.cut_reason.push_str("; no space was left to save them");
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Writes the open frame at the cut, or in the first block of the spare behind a full segment, or leaves it to be
    /// written before the first frame of this life where there is neither.
    fn write_open_frame(&mut self) -> Result<()> {
        let block = self.segments[self.end].block_bytes();
        let mut place = (self.end, self.tail);
        let room = self.segments[self.end].header.segment_bytes - self.tail;
        if self.end + 1 == self.segments.len() && room <= space::LAST_BLOCKS * block {
            // The last blocks are for the compaction that frees something, and for the open frame before it.
            self.open_due = true;
            return Ok(());
        }
        if room < block {
            let was = (self.replay.last, self.segments[self.end].header);
            let first = self.replay.ledger.ranges.newest().map(|newest| newest.first_frame);
            self.seal(was, first);
            place = (self.end + 1, self.segments[self.end + 1].block_bytes());
        }
        let (segment, offset) = place;
        let header = self.segments[segment].header;
        let begins_segment = offset == u64::from(header.block_bytes);
        let state = self.replay.ledger.outline.state.clone();
        let number = self.expected(segment, offset)?;
        let used = frame::HEAD_BYTES as u64 + if begins_segment { state.encoded_bytes() } else { 0 };
        let padded = used.next_multiple_of(u64::from(header.block_bytes)) as usize;
        let mut bytes = AlignedBuf::zeroed(padded);
        let spec = FrameSpec {
            kind: FrameKind::Open,
            number,
            epoch: self.epoch,
            chain: self.replay.last.map_or(0, |last| last.checksum),
            watermark: if planted(Plant::NoWatermark) { 0 } else { number - 1 },
            salt: header.salt,
            offset: offset as u32,
            first_index: state.next,
            base: begins_segment.then_some(&state),
            operations: &[],
        };
        frame::encode(&spec, &mut bytes[..padded]);
        let (path, file) = (self.path(segment), &self.files[segment].file);
        file.write_at(&bytes[..padded], offset).map_err(Error::io("write", &path))?;
        if !self.durable_writes() && !planted(Plant::OpenFrameNotSynced) {
            file.sync().map_err(Error::io("sync", &path))?;
        }
        if begins_segment {
            self.replay.ledger.add_segment(header.sequence, number);
        }
        if let HeadRead::Head(head) = Head::decode(&bytes[..padded], header.salt) {
            self.replay.last = Some(head);
        }
        (self.end, self.tail) = (segment, offset + padded as u64);
        Ok(())
    }

    /// Clears the first block of every segment behind the end in which a dead frame begins. The first frame of a segment
    /// is what step 2 goes by: left there until this life's own frame lands on it, a dead one would be taken for it,
    /// and for durable, as soon as the segment behind has a frame of this life.
    fn clear_spares(&mut self) -> Result<()> {
        for segment in self.end + 1..self.segments.len() {
            if self.first_heads[segment].is_none() || planted(Plant::SparesNotCleared) {
                continue;
            }
            let (path, file) = (self.path(segment), &self.files[segment].file);
            let block = self.segments[segment].block_bytes();
            let zeros = AlignedBuf::zeroed(block as usize);
            file.write_at(&zeros[..block as usize], block).map_err(Error::io("clear a spare in", &path))?;
            if !self.durable_writes() {
                file.sync().map_err(Error::io("sync", &path))?;
            }
        }
        Ok(())
    }

    /// Removes what interrupted work left behind. Only after the open frame: until then nothing was decided.
    fn clean_up(&mut self, listing: &Listing) -> Result<()> {
        if !self.report.created {
            self.remove_temporaries(listing)?;
        }
        let first = self.segments[0].header.sequence;
        for &sequence in listing.segments.iter().filter(|&&sequence| sequence < first) {
            spare::remove(&**self.disk, sequence)?;
            self.report.segments_removed += 1;
        }
        let active = self.segments[self.end].header.sequence;
        for &sequence in listing.indexes.iter().filter(|&&sequence| sequence < first || sequence >= active) {
            let name = names::index(sequence);
            self.disk.remove(&name).map_err(Error::io("remove", self.disk.path_of(&name)))?;
        }
        Ok(())
    }

    fn remove_temporaries(&self, listing: &Listing) -> Result<()> {
        for name in &listing.temporaries {
            self.disk.remove(name).map_err(Error::io("remove", self.disk.path_of(name)))?;
        }
        Ok(())
    }

    /// The last durable frame and where the log ends after it. A writing open has made everything durable; a reading
    /// one knows only what the newest watermark says.
    fn durable_end(&mut self, last: u64) -> (u64, Option<End>) {
        if !self.request.read_only {
            return (last, End::of(&self.replay.ledger.outline.state));
        }
        let slot = self.slot.map_or(0, |slot| slot.watermark);
        while let Some(kept) = self.unwitnessed.pop_front_if(|kept| kept.head.number <= slot) {
            self.witnessed_end = Some((kept.head.number, kept.end));
        }
        self.witnessed_end.unwrap_or((0, None))
    }

    fn finish(mut self, lock: Option<LockFile>) -> Result<Recovered> {
        let next_number = self.expected(self.end, self.tail)?;
        let durable = self.durable_end(next_number - 1);
        self.report.frames_kept = self.replay.frames;
        self.report.entries_kept = self.replay.entries;
        if self.replay.ledger.ranges.newest().is_none() && !self.request.read_only {
            unreachable!("a writing open leaves at least an open frame behind");
        }
        let spares = self.files.split_off(self.end + 1);
        let Some(active) = self.files.pop() else { unreachable!("the walk ended in an open segment") };
        let headers: Vec<SegmentHeader> = self.files.iter().map(|file| file.header).collect();
        let sealed = headers.into_iter().zip(self.sealed);
        Ok(Recovered {
            lock,
            sealed: sealed.map(|(header, identity)| SealedSegment { header, identity }).collect(),
            start: Start {
                active: active.plot(),
                tail: self.tail,
                spares: spares.iter().map(OpenSegment::plot).collect(),
                next_number,
                durable,
                open_due: self.open_due,
                last_kind: self.replay.last.map_or(FrameKind::Open, |last| last.kind),
                ledger: self.replay.ledger,
            },
            active,
            spares,
            chain: self.replay.last.map_or(0, |last| last.checksum),
            epoch: self.epoch,
            report: self.report,
        })
    }
}

/// The block size for new segments.
///
/// # Errors
///
/// [`Error::Config`] where the setting is below what the device writes as a whole.
pub(crate) fn block_bytes(config: &Config, disk: &dyn Disk) -> Result<u32> {
    let physical = disk.physical_block_bytes();
    match config.block_bytes {
        None => Ok(physical.max(4096)),
        Some(bytes) if bytes < physical => Err(Error::Config(format!(
            "block_bytes is {bytes}, but the device writes {physical} bytes as a whole: \
             a smaller write could damage acknowledged neighbours"
        ))),
        Some(bytes) => Ok(bytes),
    }
}
