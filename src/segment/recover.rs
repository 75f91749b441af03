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

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::dir::{self, Listing, LockFile};
use super::index_map::IndexMap;
use super::salvage;
use super::scan::{Found, OnDemand, SegmentReader, rebuild_index};
use super::sealed::SegmentHandle;
use super::spare::{self, OpenSegment};
use crate::config::{Config, Durability, Verify};
use crate::disk::{Access, AlignedBuf, Disk, DiskFile};
use crate::engine::ranges::SegmentRange;
use crate::engine::recovery::{
    self, Beginning, Behind, Blocks, Ending, Evidence, Files, FilesFacts, Header, HeaderFacts, Kept, Next, Older,
    OpenFrame, Replay, Spare, Standing, Stop,
};
use crate::engine::sequencer::{End, Start};
use crate::error::{Error, Result};
use crate::format::frame::{self, Epoch, FrameKind, FrameSpec, Head, HeadRead, WholeFrame};
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
    recovery.find_end()?;
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
struct KeptFrame {
    segment: usize,
    offset: u64,
    head: Head,
    /// Where the log ends after it.
    end: Option<End>,
}

/// What lies behind the end of the log.
#[derive(Default)]
struct Remains {
    /// End of the last frame that any head behind the cut claims, in the segment of the cut.
    claimed_end: u64,
    /// A head of the last frame's epoch stands behind it: frames of this life were in flight.
    same_epoch: bool,
}

struct Recovery<'a> {
    request: &'a Request<'a>,
    disk: &'a Arc<dyn Disk>,
    slot: Option<Slot>,
    /// Live ranges are taken from index files that fit.
    trusts_indexes: bool,
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
    unwitnessed: VecDeque<KeptFrame>,
    /// The last frame that something proves durable, and where the log ends after it.
    witnessed_end: Option<(u64, Option<End>)>,
    sealed: Vec<IndexIdentity>,
    highest_counter: u64,
    behind: Remains,
    epoch: Epoch,
    open_due: bool,
    /// The older segment whose entries' terms were last asked for.
    asked: Option<Asked>,
    report: RecoveryReport,
}

/// A sealed segment that was asked for an entry's term, and what it answered.
struct Asked {
    handle: SegmentHandle,
    answered: Option<(u64, Option<u64>)>,
}

impl Asked {
    fn answer(&self, sequence: u64, index: u64) -> Option<Option<u64>> {
        let (answered, term) = self.answered?;
        (self.handle.header.sequence == sequence && answered == index).then_some(term)
    }
}

impl<'a> Recovery<'a> {
    fn new(request: &'a Request<'a>, slot: Option<Slot>) -> Recovery<'a> {
        Recovery {
            request,
            disk: request.disk,
            slot,
            trusts_indexes: true,
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
            behind: Remains::default(),
            epoch: Epoch { counter: 0, random: 0 },
            open_due: false,
            asked: None,
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
    fn read_error(&self, segment: usize) -> impl FnOnce(io::Error) -> Error + use<'a> {
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
        self.check_files()?;
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
        self.check_files()?;
        let segment_bytes = self.files[0].header.segment_bytes;
        if self.request.read_only { Ok(()) } else { self.check_block_bytes(segment_bytes) }
    }

    /// Whether the files are those of one log, or there is none to be found.
    fn check_files(&self) -> Result<()> {
        let first = self.files.first().map(|file| file.header);
        let differs = |part: fn(&SegmentHeader) -> (u64, [u8; 16])| {
            self.files.iter().position(|file| Some(part(&file.header)) != first.as_ref().map(part))
        };
        let other_size = differs(|header| (header.segment_bytes, [0; 16]));
        let other_log = differs(|header| (0, header.log_id));
        let facts = FilesFacts {
            has_segments: first.is_some(),
            sizes_agree: other_size.is_none(),
            logs_agree: other_log.is_none(),
            mark: self.slot.map(|slot| (slot.watermark > 0, first.is_some_and(|first| first.log_id == slot.log_id))),
            read_only: self.request.read_only,
        };
        let corrupt = |name: &str, reason: &str| {
            let (file, reason) = (self.disk.path_of(name), reason.to_string());
            Err(Error::Corrupt { file, offset: 0, indexes: 0..u64::MAX, reason })
        };
        match recovery::files(facts) {
            Files::Empty | Files::OneLog => Ok(()),
            Files::NothingToRead => {
                Err(Error::Foreign { path: self.disk.path().into(), found: "there is no segment".into() })
            }
            Files::AllGone => corrupt(&names::segment(1), "all segments are gone, but a mark proves frames durable"),
            Files::SizesDiffer => {
                Err(self.corrupt(other_size.unwrap_or(0), 0, "its size differs from that of the other segments"))
            }
            Files::LogsDiffer => Err(self.corrupt(other_log.unwrap_or(0), 0, "it belongs to another log")),
            Files::OtherMark => corrupt(names::LOCK, "it belongs to another log than the segments"),
        }
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
        // There may be tens of thousands of segments, most of which are looked at no further.
        reader.release();
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
        let (facts, header) = self.read_header(&*file, sequence).map_err(Error::io("read", &path))?;
        let damaged = |reason: String| Error::Corrupt { file: path.clone(), offset: 0, indexes: 0..u64::MAX, reason };
        match (recovery::header(facts, self.request.read_only), header) {
            (Header::Belongs | Header::BySalt, Ok(header)) => Ok(OpenSegment { header, file }),
            (Header::OtherName, Ok(header)) => {
                Err(damaged(format!("it is segment {} under the name of segment {sequence}", header.sequence)))
            }
            (Header::CutShort, Ok(header)) => {
                Err(damaged(format!("it is shorter than its {} bytes", header.segment_bytes)))
            }
            (_, Err(HeaderDefect::Version(version))) => {
                Err(Error::Unsupported { file: path, offset: 8, what: format!("format version {version}") })
            }
            (_, Err(HeaderDefect::Damaged(why))) => Err(damaged(why.into())),
            (Header::Newer | Header::Damaged | Header::Mute, Ok(_)) => unreachable!("these rows have no header"),
        }
    }

    /// The header, or what can be said without it; and what that is worth.
    fn read_header(
        &self,
        file: &dyn DiskFile,
        sequence: u64,
    ) -> io::Result<(HeaderFacts, std::result::Result<SegmentHeader, HeaderDefect>)> {
        let mut block = AlignedBuf::zeroed(4096);
        let bytes = file.read_at(&mut block, 0)?;
        let header = SegmentHeader::decode(&block[..bytes]);
        Ok(match header {
            Ok(header) => {
                let is_long_enough = file.size()? >= header.segment_bytes;
                (HeaderFacts::Verifies { is_own_name: header.sequence == sequence, is_long_enough }, Ok(header))
            }
            Err(HeaderDefect::Version(_)) => (HeaderFacts::Newer, header),
            Err(HeaderDefect::Damaged(_)) => {
                let found = if self.request.read_only { salvage::header(file, sequence)? } else { None };
                (HeaderFacts::Damaged { frames_tell_salt: found.is_some() }, found.map_or(header, Ok))
            }
        })
    }

    /// Steps 2 to 4. An index file that verifies and tells of other entries than the log does is no evidence: then all is
    /// read once more, without any.
    fn find_end(&mut self) -> Result<()> {
        self.walk_from_start()?;
        if !self.replay.ledger.ranges_agree() && self.trusts_indexes {
            self.forget_walk();
            self.trusts_indexes = false;
            self.walk_from_start()?;
        }
        match self.replay.ledger.ranges_agree() {
            true => Ok(()),
            false => Err(self.corrupt(self.start, 0, "the segments hold other entries than the log's state says")),
        }
    }

    fn walk_from_start(&mut self) -> Result<()> {
        self.restore_before_walk()?;
        self.walk()?;
        self.check_nothing_is_missing()
    }

    /// Goes back to where the segments were just opened.
    fn forget_walk(&mut self) {
        let known = std::mem::replace(self, Recovery::new(self.request, self.slot));
        (self.segments, self.files, self.first_heads) = (known.segments, known.files, known.first_heads);
        self.report = RecoveryReport { indexes_rebuilt: 0, ..known.report };
    }

    /// Step 2: where the walk starts, and the live ranges of everything before it.
    fn restore_before_walk(&mut self) -> Result<()> {
        self.start = recovery::start(&self.first_heads, self.request.config.verify == Verify::Full).1;
        for segment in 0..self.start {
            self.restore_segment(segment)?;
        }
        Ok(())
    }

    /// Takes a segment's part of the log from its index file, or from itself where that will not do.
    fn restore_segment(&mut self, segment: usize) -> Result<()> {
        let heads = (self.first_heads[segment], self.first_heads[segment + 1]);
        let identity = heads.0.zip(heads.1).map(|(first, next)| self.identity(segment, &first, &next));
        let mut map = None;
        let index_fits = || {
            map = identity.as_ref().and_then(|identity| self.open_index(identity));
            map.is_some()
        };
        let row = recovery::older(heads.0.is_some(), heads.1.is_some(), index_fits);
        let damaged = if row == Older::FirstLost { segment } else { segment + 1 };
        let Some(identity) = identity else {
            let offset = self.segments[damaged].block_bytes();
            let reason = "its first frame is damaged, and later segments prove it durable";
            return Err(self.corrupt(damaged, offset, reason));
        };
        let IndexIdentity { sequence, first_frame, .. } = identity;
        let range = |live, highest_ever| SegmentRange { sequence, first_frame, live, highest_ever };
        match map {
            Some(map) => {
                let range = range(map.range(), map.header().highest_ever());
                self.replay.ledger.ranges.restore(range, map.header().floor());
            }
            None => {
                let path = self.path(segment);
                let index = rebuild_index(&mut self.segments[segment], &identity, &path)?;
                self.replay.ledger.ranges.restore(range(index.range(), index.highest_ever()), index.floor());
                self.replay.ledger.indexes.insert(sequence, Arc::new(index));
                self.report.indexes_rebuilt += 1;
            }
        }
        self.segments[segment].release();
        self.sealed.push(identity);
        if !self.trusts_indexes {
            // Made anew for all segments because one index file lied: those that do not need not be kept in memory.
            self.leave_to_file();
        }
        Ok(())
    }

    /// What the index of a segment belongs to, by the first frames of it and of the next one.
    fn identity(&self, segment: usize, first: &Head, next: &Head) -> IndexIdentity {
        let header = self.segments[segment].header;
        IndexIdentity {
            log_id: header.log_id,
            sequence: header.sequence,
            salt: header.salt,
            last_head_checksum: next.chain,
            first_frame: first.number,
            last_frame: next.number.saturating_sub(1),
        }
    }

    /// An index file that fits the segment as it is. Anything else, an I/O error included, means: rebuild.
    fn open_index(&self, identity: &IndexIdentity) -> Option<IndexMap> {
        if !self.trusts_indexes {
            return None;
        }
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
            let missing = self.expected(segment, offset)?;
            let was = (self.replay.last, self.segments[segment].header);
            let mut next_first = None;
            match self.stop(segment, offset, missing, &mut next_first)? {
                Stop::Rolls => {
                    self.seal(was, segment_first);
                    self.leave_to_file();
                    self.segments[segment].release();
                    segment += 1;
                    segment_first = next_first;
                    offset = self.segments[segment].block_bytes()
                        + self.replay.last.map_or(0, |last| u64::from(last.frame_bytes));
                }
                Stop::Ends | Stop::Unborn => {
                    (self.end, self.tail) = (segment, offset);
                    return self.check_end(segment, missing);
                }
                Stop::Lost => return Err(self.corrupt(segment, offset, "its first frame is damaged")),
            }
        }
    }

    /// What it means that no frame follows at a place; where the log goes on in the next segment, that frame is followed.
    fn stop(&mut self, segment: usize, offset: u64, missing: u64, next_first: &mut Option<u64>) -> Result<Stop> {
        let has_followed = self.replay.last.is_some();
        let is_very_first = segment == 0 && self.segments[segment].header.sequence == 1;
        if !has_followed && !is_very_first {
            return Ok(recovery::stop(false, false, false));
        }
        self.behind = match planted(Plant::FollowWithoutLook) {
            true => Remains::default(),
            false => self.look_behind(segment, offset, missing)?,
        };
        let next_block = self.segments.get(segment + 1).map(SegmentReader::block_bytes).filter(|_| has_followed);
        let next_follows = match next_block {
            Some(block) => self.follow_at(segment + 1, block, next_first)?,
            None => false,
        };
        Ok(recovery::stop(has_followed, is_very_first, next_follows))
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

    /// What stands at a place where the next frame would. Before the log is taken to end, the place is read a second
    /// time: a device that once returns wrong bytes, or those of another place, must not cost what is there.
    fn look_at(&mut self, segment: usize, offset: u64) -> Result<(Next, Option<Found>)> {
        if offset >= self.segments[segment].header.segment_bytes {
            return Ok((recovery::next(Standing::PastEnd), None));
        }
        let last = self.replay.last;
        let look = |reader: &mut SegmentReader| {
            reader.frame_at(offset).map(|found| (recovery::next(found.standing(last.as_ref(), offset)), Some(found)))
        };
        let reader = &mut self.segments[segment];
        let mut looked = look(reader);
        if let Ok((Next::Nothing | Next::NotWhole | Next::Stale, _)) = looked {
            reader.forget();
            looked = look(reader);
        }
        looked.map_err(self.read_error(segment))
    }

    /// Follows the frame at a place if it is the next one; remembers the number of a segment's first frame.
    fn follow_at(&mut self, segment: usize, offset: u64, segment_first: &mut Option<u64>) -> Result<bool> {
        let header = self.segments[segment].header;
        let (next, found) = self.look_at(segment, offset)?;
        let frame = match (next, found) {
            (Next::Follows, Some(Found::Whole(frame))) => frame,
            (Next::Newer, Some(Found::Newer(what, _))) => return Err(self.unsupported(segment, offset, what)),
            _ => return Ok(false),
        };
        let terms = self.terms_of(&frame);
        self.replay
            .follow(&frame, (header.sequence, offset), header.segment_bytes, &terms)
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
        self.unwitnessed.push_back(KeptFrame { segment, offset, head: frame.head, end });
        segment_first.get_or_insert(frame.head.number);
        Ok(true)
    }

    /// The terms of entries in older segments that the frame's truncations leave last, each read from the entry itself:
    /// an index only leads to it. One that cannot be read is left out: it may be dead by now, and if it is not, whoever
    /// reads it learns of the damage. It must not keep all others from being read.
    fn terms_of(&mut self, frame: &WholeFrame) -> BTreeMap<u64, u64> {
        let wanted = self.replay.terms_wanted(frame).into_iter();
        wanted.filter_map(|(sequence, index)| Some((index, self.stored_term(sequence, index)?))).collect()
    }

    /// A sealed segment's entry never changes, and truncations come back to the same one: the last answer is kept, and
    /// the segment that gave it.
    fn stored_term(&mut self, sequence: u64, index: u64) -> Option<u64> {
        if let Some(term) = self.asked.iter().find_map(|asked| asked.answer(sequence, index)) {
            return term;
        }
        if self.asked.as_ref().is_none_or(|asked| asked.handle.header.sequence != sequence) {
            let at = self.sealed.iter().position(|identity| identity.sequence == sequence);
            let Some(at) = at else { unreachable!("entries lie in this segment or in sealed ones") };
            let handle = SegmentHandle::new(self.disk.clone(), self.segments[at].header);
            handle.seal(self.sealed[at]);
            self.asked = Some(Asked { handle, answered: None });
        }
        let Some(asked) = &mut self.asked else { unreachable!("it was made just now") };
        let term = asked.handle.read_sealed(index).ok().map(|entry| entry.term);
        asked.answered = Some((index, term));
        term
    }

    /// Looks at every head from a place to its segment's end for a witness of the missing frame.
    fn look_behind(&mut self, segment: usize, offset: u64, missing: u64) -> Result<Remains> {
        let last_epoch = self.replay.last.map(|last| last.epoch);
        let mut verdict: Option<(u64, Result<u64, String>)> = None;
        let (mut counter, mut behind) = (self.highest_counter, Remains::default());
        let path = self.path(segment);
        self.segments[segment]
            .heads_from(offset, |at, head| {
                let evidence = match head {
                    Err(_) => Evidence::NewerHead,
                    Ok(head) => Evidence::Head { watermark: head.watermark, epoch: head.epoch },
                };
                match (recovery::behind(evidence, missing, last_epoch), head) {
                    (_, Err(what)) => verdict = Some((at, Err(what.into()))),
                    (Behind::Witness, Ok(head)) => verdict = Some((at, Ok(head.watermark))),
                    (row, Ok(head)) => {
                        counter = counter.max(head.epoch.counter);
                        behind.same_epoch |= row == Behind::InFlight;
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
        let (mut segment, mut offset) = match self.unwitnessed.back() {
            Some(last) => (last.segment, last.offset + u64::from(last.head.frame_bytes)),
            None => (self.start, self.segments[self.start].block_bytes()),
        };
        if offset >= self.segments[segment].header.segment_bytes && segment + 1 < self.segments.len() {
            segment += 1;
            offset = self.segments[segment].block_bytes();
        }
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
        let Some(Slot { watermark, .. }) = self.slot else { return Ok(()) };
        match recovery::behind(Evidence::Mark { watermark }, missing, None) {
            Behind::MarkWitness => Err(self.damaged_end(missing, watermark, "the mark in the lock file")),
            _ => Ok(()),
        }
    }

    /// A segment is missing if the log's base tells of entries that no compaction covers.
    fn check_nothing_is_missing(&mut self) -> Result<()> {
        let (sequence, block) = (self.segments[0].header.sequence, self.segments[0].block_bytes());
        let is_very_first = sequence == 1;
        let base = match is_very_first {
            true => None,
            false => match self.segments[0].frame_at(block).map_err(self.read_error(0))? {
                Found::Whole(frame) => frame.base,
                _ => None,
            },
        };
        let compacted = self.replay.ledger.outline.state.compacted.map(|(index, _)| index);
        match recovery::beginning(is_very_first, base.as_ref(), compacted) {
            Beginning::VeryFirst | Beginning::Covered => Ok(()),
            Beginning::BaseLost => {
                let indexes = self.replay.ledger.ranges.iter().next().map_or(0..u64::MAX, |oldest| oldest.live.clone());
                let reason = "its first frame is damaged".to_string();
                Err(Error::Corrupt { file: self.path(0), offset: block, indexes, reason })
            }
            Beginning::SegmentMissing => {
                let file = self.disk.path_of(&names::segment(sequence - 1));
                let indexes =
                    compacted.map_or(0, |index| index + 1)..base.and_then(|base| base.next).unwrap_or(u64::MAX);
                let reason = "the segment is missing, and its entries were not compacted".to_string();
                Err(Error::Corrupt { file, offset: 0, indexes, reason })
            }
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
            if recovery::kept(kept.head.number, witnessed) == Kept::Proved || planted(Plant::KeptNotWrittenAgain) {
                continue;
            }
            let path = self.path(kept.segment);
            let file = self.files[kept.segment].file.clone();
            let bytes = self.segments[kept.segment].bytes(kept.offset, u64::from(kept.head.frame_bytes));
            let bytes = bytes.map_err(Error::io("read", &path))?;
            // It was whole a moment ago, in what other reads returned. These are the bytes that are written over it.
            let has_head = Head::decode(bytes, kept.head.salt) == HeadRead::Head(kept.head);
            let is_whole = frame::verify(&kept.head, bytes).is_ok();
            if !(is_whole && (has_head || planted(Plant::HeadWrittenUnread))) {
                return Err(self.corrupt(kept.segment, kept.offset, "a frame reads otherwise the second time"));
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
        let last = self.replay.last.map(|last| last.kind);
        match recovery::ending(last, self.behind.same_epoch, self.report.created) {
            Ending::Clean => {
                self.report.was_clean = true;
                self.open_due = true;
                return self.leave_small_blocks();
            }
            Ending::Created => {}
            Ending::Cut => self.save_cut()?,
        }
        self.leave_small_blocks()?;
        self.write_open_frame()
    }

    /// Ends a segment whose blocks are smaller than the device's: the log goes on in a new one, which the spares behind
    /// it, made for the same blocks, cannot be.
    fn leave_small_blocks(&mut self) -> Result<()> {
        let is_too_small = |segment: usize| self.is_below_device(&self.segments[segment].header);
        let spare = (self.end + 1..self.segments.len()).find(|&spare| is_too_small(spare));
        match recovery::blocks(is_too_small(self.end), spare.is_some(), self.replay.last.is_some()) {
            Blocks::Fit => Ok(()),
            Blocks::SpareTooSmall => self.remove_spares_from(spare.unwrap_or(self.segments.len())),
            Blocks::UnbornTooSmall => Err(Error::Config(format!(
                "a log that was never begun lies in {}, for smaller blocks than this device's: remove its files",
                self.disk.path().display()
            ))),
            Blocks::EndTooSmall => {
                self.tail = self.segments[self.end].header.segment_bytes;
                self.remove_spares_from(self.end + 1)
            }
        }
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
        let room = self.segments[self.end].header.segment_bytes - self.tail;
        let (segment, offset) = match recovery::open_frame(room, block, self.end + 1 < self.segments.len()) {
            OpenFrame::Here => (self.end, self.tail),
            OpenFrame::NextSegment => {
                let was = (self.replay.last, self.segments[self.end].header);
                let first = self.replay.ledger.ranges.newest().map(|newest| newest.first_frame);
                self.seal(was, first);
                (self.end + 1, self.segments[self.end + 1].block_bytes())
            }
            OpenFrame::Deferred => {
                self.open_due = true;
                return Ok(());
            }
        };
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

    /// Clears the first block of every segment behind the end in which a dead frame begins: the first frame of a segment
    /// is what step 2 goes by.
    fn clear_spares(&mut self) -> Result<()> {
        for segment in self.end + 1..self.segments.len() {
            let is_blank = recovery::spare(self.first_heads[segment].is_some()) == Spare::Blank;
            if is_blank || planted(Plant::SparesNotCleared) {
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
