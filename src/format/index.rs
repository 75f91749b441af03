//! Index of one segment: where its live entries lie, in memory and as the file written when the segment is sealed.
//!
//! ```text
//!    0                8          12         16                             32
//!    | magic          | version  | chain    | log id                       |
//!   32                40                    48             56             64
//!    | sequence       | salt                | first frame  | last frame    |
//!   64                72                    80             88     92      96
//!    | lowest         | highest ever        | floor        | count| runs  |
//!   96                100                   104            108           112
//!    | checksum, runs | checksum, offsets   | zero         | checksum of 0..108
//!  112  runs:    | first index (8) | term (8) |  one where a term begins, both numbers rising
//!   ..  offsets: | u32 |  one for each index from the lowest, in units of 8 bytes, rising
//! ```
//!
//! Little-endian; checksums are CRC32C over the salt and the bytes. *Chain* is the head checksum of the segment's last
//! frame: the next segment's first frame repeats it, so an index made before the segment got its last frame, or of
//! another life of the file, is seen to be stale. `u64::MAX` stands for "none" in *highest ever* and *floor*.
//!
//! Invariants: the header and the runs can be verified without touching the offsets, so that opening a large log reads
//! little. An index is derived: any [`IndexDefect`] means "rebuild it from the segment" and is no evidence about the
//! log. The offsets say where to look, never what is there: whoever reads an entry verifies it at the target.
//!
//! Pure: knows no files, no frames, and not how large the segment is.

use std::ops::Range;

use super::INDEX_MAX;
use crate::plant::{Plant, planted};

const MAGIC: [u8; 8] = *b"ringwidx";
/// Version of the index file's format that this crate writes and reads.
pub const INDEX_VERSION: u32 = 1;

const AT_MAGIC: usize = 0;
const AT_VERSION: usize = 8;
const AT_CHAIN: usize = 12;
const AT_LOG_ID: usize = 16;
const AT_SEQUENCE: usize = 32;
const AT_SALT: usize = 40;
const AT_FIRST_FRAME: usize = 48;
const AT_LAST_FRAME: usize = 56;
const AT_LOWEST: usize = 64;
const AT_HIGHEST_EVER: usize = 72;
const AT_FLOOR: usize = 80;
const AT_COUNT: usize = 88;
const AT_RUN_COUNT: usize = 92;
const AT_RUNS_CHECKSUM: usize = 96;
const AT_OFFSETS_CHECKSUM: usize = 100;
const AT_ZERO: usize = 104;
const AT_HEADER_CHECKSUM: usize = 108;

/// Size in bytes of an index file's header: what [`IndexHeader::decode`] needs to see.
pub const INDEX_HEADER_BYTES: usize = 112;
/// Size in bytes of one run of equal terms.
pub(crate) const RUN_BYTES: usize = 16;
const OFFSET_BYTES: usize = 4;
/// Entries start at multiples of this many bytes.
const OFFSET_UNIT: u32 = 8;
const NONE: u64 = u64::MAX;

const _: () = assert!(AT_MAGIC + 8 == AT_VERSION && AT_VERSION + 4 == AT_CHAIN && AT_CHAIN + 4 == AT_LOG_ID);
const _: () = assert!(AT_LOG_ID + 16 == AT_SEQUENCE && AT_SEQUENCE + 8 == AT_SALT && AT_SALT + 8 == AT_FIRST_FRAME);
const _: () = assert!(AT_FIRST_FRAME + 8 == AT_LAST_FRAME && AT_LAST_FRAME + 8 == AT_LOWEST);
const _: () = assert!(AT_LOWEST + 8 == AT_HIGHEST_EVER && AT_HIGHEST_EVER + 8 == AT_FLOOR && AT_FLOOR + 8 == AT_COUNT);
const _: () = assert!(AT_COUNT + 4 == AT_RUN_COUNT && AT_RUN_COUNT + 4 == AT_RUNS_CHECKSUM);
const _: () = assert!(AT_RUNS_CHECKSUM + 4 == AT_OFFSETS_CHECKSUM && AT_OFFSETS_CHECKSUM + 4 == AT_ZERO);
const _: () = assert!(AT_ZERO + 4 == AT_HEADER_CHECKSUM && AT_HEADER_CHECKSUM + 4 == INDEX_HEADER_BYTES);
const _: () = assert!(INDEX_HEADER_BYTES.is_multiple_of(RUN_BYTES) && RUN_BYTES.is_multiple_of(OFFSET_BYTES));
// "None" must not be an index, nor the index after the last.
const _: () = assert!(INDEX_MAX < NONE - 1);

/// What makes an index file unusable. The remedy is always the same: rebuild it from the segment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IndexDefect {
    /// The file is shorter or longer than its header says, or shorter than a header.
    #[error("it has {found} bytes where {expected} were expected")]
    Length {
        /// The size in bytes that the header tells, or that of a header alone.
        expected: u64,
        /// The size in bytes that was found.
        found: u64,
    },
    /// It does not begin as an index file does.
    #[error("it is not an index file")]
    Magic,
    /// It has a format version that this crate does not read.
    #[error("it has format version {0}, this crate reads {INDEX_VERSION}")]
    Version(u32),
    /// A checksum does not fit its bytes.
    #[error("the checksum of its {0} does not fit")]
    Checksum(&'static str),
    /// Its checksums fit, but its contents contradict each other.
    #[error("its contents contradict each other: {0}")]
    Inconsistent(&'static str),
    /// It belongs to another segment, or to an earlier state of this one.
    #[error("it is stale: its {0} is not the segment's")]
    Stale(&'static str),
}

/// What ties an index to one state of one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexIdentity {
    /// The log's id.
    pub log_id: [u8; 16],
    /// The segment's sequence number.
    pub sequence: u64,
    /// The segment's salt.
    pub salt: u64,
    /// Checksum of the head of the segment's last frame, as the next segment's first frame repeats it.
    pub last_head_checksum: u32,
    /// Number of the segment's first frame.
    pub first_frame: u64,
    /// Number of the segment's last frame.
    pub last_frame: u64,
}

impl IndexIdentity {
    /// The first part in which the two differ.
    fn difference(&self, other: &IndexIdentity) -> Option<&'static str> {
        let takes_stale = planted(Plant::StaleIndexTaken);
        let parts = [
            (self.log_id == other.log_id, "log id"),
            (self.sequence == other.sequence, "sequence number"),
            (self.salt == other.salt, "salt"),
            (self.first_frame == other.first_frame, "first frame"),
            (self.last_frame == other.last_frame || takes_stale, "last frame"),
            (self.last_head_checksum == other.last_head_checksum || takes_stale, "last head"),
        ];
        parts.into_iter().find(|(same, _)| !same).map(|(_, part)| part)
    }
}

/// Where the live entries of one segment lie, kept in step with the operations written into it.
///
/// The live entries are one contiguous range. It is what this segment's own operations left; what later segments
/// truncate or compact is not recorded here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SegmentIndex {
    lowest: u64,
    /// By (index - lowest), in units of [`OFFSET_UNIT`]; rising.
    offsets: Vec<u32>,
    /// (first index, term), both rising; the first begins at `lowest`.
    runs: Vec<(u64, u64)>,
    highest_ever: Option<u64>,
    floor: Option<u64>,
}

impl SegmentIndex {
    /// The index of a segment without operations.
    pub fn new() -> SegmentIndex {
        SegmentIndex::default()
    }

    /// Adds the entry whose header lies at byte `offset_bytes` of the segment.
    ///
    /// The index continues the range. Where it does not (the range is empty, or a compaction past the end moved the
    /// log on), the range starts afresh with it. Offsets are multiples of 8, and neither they nor terms fall.
    pub fn push(&mut self, index: u64, term: u64, offset_bytes: u32) {
        debug_assert!(index <= INDEX_MAX, "index {index} is out of range");
        debug_assert!(offset_bytes.is_multiple_of(OFFSET_UNIT), "offset {offset_bytes} is not aligned");
        if self.offsets.is_empty() || index != self.range().end {
            debug_assert!(self.offsets.is_empty() || index > self.range().end, "index {index} goes back");
            self.start_at(index);
        }
        let units = offset_bytes / OFFSET_UNIT;
        debug_assert!(self.offsets.last().is_none_or(|&last| last < units), "offset {offset_bytes} goes back");
        self.offsets.push(units);
        match self.runs.last() {
            Some(&(_, last)) if last == term => {}
            last => {
                debug_assert!(last.is_none_or(|&(_, last)| last < term), "term {term} fell");
                self.runs.push((index, term));
            }
        }
        self.highest_ever = self.highest_ever.max(Some(index));
    }

    /// Removes the entry at `first_removed` and all after it, also those of older segments (see [`Self::floor`]).
    pub fn truncate_from(&mut self, first_removed: u64) {
        self.floor = Some(self.floor.map_or(first_removed, |floor| floor.min(first_removed)));
        if self.offsets.is_empty() || first_removed <= self.lowest {
            return self.start_at(first_removed);
        }
        let kept = usize::try_from(first_removed - self.lowest).unwrap_or(usize::MAX);
        self.offsets.truncate(kept);
        self.runs.truncate(self.runs.partition_point(|&(first, _)| first < first_removed));
    }

    /// Notes a compaction up to and including `index`: where it emptied the log, no entry of this segment is live and
    /// the next one is `index + 1`. Elsewhere nothing changes: the compaction point is asked before any index.
    pub fn compact_past(&mut self, index: u64) {
        let next = index.saturating_add(1);
        if self.range().end <= next {
            self.start_at(next);
        }
    }

    fn start_at(&mut self, index: u64) {
        self.lowest = index;
        self.offsets.clear();
        self.runs.clear();
    }

    /// Indexes of the live entries. An empty range stands where the next entry goes, as far as this segment knows.
    pub fn range(&self) -> Range<u64> {
        self.lowest..self.lowest.saturating_add(self.offsets.len() as u64)
    }

    /// Byte offset of the entry's header in the segment.
    pub fn offset_of(&self, index: u64) -> Option<u32> {
        let nth = usize::try_from(index.checked_sub(self.lowest)?).ok()?;
        self.offsets.get(nth)?.checked_mul(OFFSET_UNIT)
    }

    /// As [`Self::offset_of`], for the entry at `index` and at most so many in all, as far as there are any.
    pub(crate) fn offsets_from(&self, index: u64, count: usize) -> Vec<u32> {
        let nth = index.checked_sub(self.lowest).and_then(|nth| usize::try_from(nth).ok());
        let offsets = nth.and_then(|nth| self.offsets.get(nth..)).unwrap_or_default();
        offsets.iter().take(count).map_while(|units| units.checked_mul(OFFSET_UNIT)).collect()
    }

    /// Term of the entry.
    pub fn term_of(&self, index: u64) -> Option<u64> {
        if !self.range().contains(&index) {
            return None;
        }
        let after = self.runs.partition_point(|&(first, _)| first <= index);
        self.runs.get(after.checked_sub(1)?).map(|&(_, term)| term)
    }

    /// The highest index ever written in the segment, live or not: the segment may be dropped only once the compaction
    /// point is at or past it.
    pub fn highest_ever(&self) -> Option<u64> {
        self.highest_ever
    }

    /// The lowest index that was truncated from while the segment was written: in older segments, no entry at or past
    /// it is live.
    pub fn floor(&self) -> Option<u64> {
        self.floor
    }

    /// Memory that the index takes, in bytes.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.offsets.capacity() * OFFSET_BYTES + self.runs.capacity() * size_of::<(u64, u64)>()
    }
}

/// The bytes of an index file.
///
/// # Panics
///
/// Where the index holds more than `u32::MAX` entries, which no segment below 4 GiB can.
pub fn encode(index: &SegmentIndex, identity: &IndexIdentity) -> Vec<u8> {
    let count = u32::try_from(index.offsets.len()).expect("a segment below 4 GiB holds fewer entries");
    let run_count = u32::try_from(index.runs.len()).expect("there are no more runs than entries");
    let mut runs = Vec::with_capacity(index.runs.len() * RUN_BYTES);
    for (first, term) in &index.runs {
        runs.extend_from_slice(&first.to_le_bytes());
        runs.extend_from_slice(&term.to_le_bytes());
    }
    let offsets: Vec<u8> = index.offsets.iter().flat_map(|units| units.to_le_bytes()).collect();

    let header = IndexHeader {
        identity: *identity,
        lowest: index.lowest,
        highest_ever: index.highest_ever,
        floor: index.floor,
        count,
        run_count,
        runs_checksum: salted_checksum(identity.salt, &runs),
        offsets_checksum: salted_checksum(identity.salt, &offsets),
    };
    let mut bytes = Vec::with_capacity(INDEX_HEADER_BYTES + runs.len() + offsets.len());
    bytes.extend_from_slice(&header.encode());
    bytes.extend_from_slice(&runs);
    bytes.extend_from_slice(&offsets);
    bytes
}

/// A verified header of an index file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexHeader {
    identity: IndexIdentity,
    lowest: u64,
    highest_ever: Option<u64>,
    floor: Option<u64>,
    count: u32,
    run_count: u32,
    runs_checksum: u32,
    offsets_checksum: u32,
}

impl IndexHeader {
    /// Verifies the header in the first [`INDEX_HEADER_BYTES`] of an index file of `file_len` bytes (further bytes are
    /// not looked at).
    ///
    /// # Errors
    ///
    /// An [`IndexDefect`] where the bytes are no whole header, contradict themselves, or tell another length.
    pub fn decode(bytes: &[u8], file_len: u64) -> Result<IndexHeader, IndexDefect> {
        let Some(bytes) = bytes.first_chunk::<INDEX_HEADER_BYTES>() else {
            let found = file_len.min(bytes.len() as u64);
            return Err(IndexDefect::Length { expected: INDEX_HEADER_BYTES as u64, found });
        };
        if field(bytes, AT_MAGIC) != MAGIC {
            return Err(IndexDefect::Magic);
        }
        let version = u32_at(bytes, AT_VERSION);
        if version != INDEX_VERSION {
            return Err(IndexDefect::Version(version));
        }
        let covered = &bytes[..AT_HEADER_CHECKSUM];
        if u32_at(bytes, AT_HEADER_CHECKSUM) != salted_checksum(u64_at(bytes, AT_SALT), covered) {
            return Err(IndexDefect::Checksum("header"));
        }
        if u32_at(bytes, AT_ZERO) != 0 {
            return Err(IndexDefect::Inconsistent("reserved bytes are not zero"));
        }
        let header = IndexHeader::parse(bytes);
        header.check_numbers()?;
        match header.file_bytes() {
            expected if expected == file_len => Ok(header),
            expected => Err(IndexDefect::Length { expected, found: file_len }),
        }
    }

    fn parse(bytes: &[u8; INDEX_HEADER_BYTES]) -> IndexHeader {
        let some = |index| (index != NONE).then_some(index);
        IndexHeader {
            identity: IndexIdentity {
                log_id: field(bytes, AT_LOG_ID),
                sequence: u64_at(bytes, AT_SEQUENCE),
                salt: u64_at(bytes, AT_SALT),
                last_head_checksum: u32_at(bytes, AT_CHAIN),
                first_frame: u64_at(bytes, AT_FIRST_FRAME),
                last_frame: u64_at(bytes, AT_LAST_FRAME),
            },
            lowest: u64_at(bytes, AT_LOWEST),
            highest_ever: some(u64_at(bytes, AT_HIGHEST_EVER)),
            floor: some(u64_at(bytes, AT_FLOOR)),
            count: u32_at(bytes, AT_COUNT),
            run_count: u32_at(bytes, AT_RUN_COUNT),
            runs_checksum: u32_at(bytes, AT_RUNS_CHECKSUM),
            offsets_checksum: u32_at(bytes, AT_OFFSETS_CHECKSUM),
        }
    }

    fn encode(&self) -> [u8; INDEX_HEADER_BYTES] {
        let mut bytes = [0; INDEX_HEADER_BYTES];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(AT_MAGIC, &MAGIC);
        put(AT_VERSION, &INDEX_VERSION.to_le_bytes());
        put(AT_CHAIN, &self.identity.last_head_checksum.to_le_bytes());
        put(AT_LOG_ID, &self.identity.log_id);
        put(AT_SEQUENCE, &self.identity.sequence.to_le_bytes());
        put(AT_SALT, &self.identity.salt.to_le_bytes());
        put(AT_FIRST_FRAME, &self.identity.first_frame.to_le_bytes());
        put(AT_LAST_FRAME, &self.identity.last_frame.to_le_bytes());
        put(AT_LOWEST, &self.lowest.to_le_bytes());
        put(AT_HIGHEST_EVER, &self.highest_ever.unwrap_or(NONE).to_le_bytes());
        put(AT_FLOOR, &self.floor.unwrap_or(NONE).to_le_bytes());
        put(AT_COUNT, &self.count.to_le_bytes());
        put(AT_RUN_COUNT, &self.run_count.to_le_bytes());
        put(AT_RUNS_CHECKSUM, &self.runs_checksum.to_le_bytes());
        put(AT_OFFSETS_CHECKSUM, &self.offsets_checksum.to_le_bytes());
        let checksum = salted_checksum(self.identity.salt, &bytes[..AT_HEADER_CHECKSUM]);
        bytes[AT_HEADER_CHECKSUM..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Checks the numbers against each other, before any of them is used.
    fn check_numbers(&self) -> Result<(), IndexDefect> {
        let Some(end) = self.lowest.checked_add(u64::from(self.count)).filter(|&end| end <= INDEX_MAX + 1) else {
            return Err(IndexDefect::Inconsistent("the range passes the highest index there can be"));
        };
        if self.run_count > self.count || (self.run_count == 0) != (self.count == 0) {
            return Err(IndexDefect::Inconsistent("the number of runs does not fit the number of entries"));
        }
        if self.count > 0 && self.highest_ever.is_none_or(|highest| highest < end - 1) {
            return Err(IndexDefect::Inconsistent("the highest index ever written is below the range's"));
        }
        Ok(())
    }

    /// Checks that the index belongs to the segment as it is.
    ///
    /// # Errors
    ///
    /// [`IndexDefect::Stale`] naming the first part that differs.
    pub fn check_identity(&self, expect: &IndexIdentity) -> Result<(), IndexDefect> {
        self.identity.difference(expect).map_or(Ok(()), |part| Err(IndexDefect::Stale(part)))
    }

    /// What the index belongs to.
    pub fn identity(&self) -> &IndexIdentity {
        &self.identity
    }

    /// As [`SegmentIndex::range`].
    pub fn range(&self) -> Range<u64> {
        self.lowest..self.lowest + u64::from(self.count)
    }

    /// As [`SegmentIndex::highest_ever`].
    pub fn highest_ever(&self) -> Option<u64> {
        self.highest_ever
    }

    /// As [`SegmentIndex::floor`].
    pub fn floor(&self) -> Option<u64> {
        self.floor
    }

    /// Where the runs lie in the file, in bytes.
    pub(crate) fn runs_bytes(&self) -> Range<u64> {
        let start = INDEX_HEADER_BYTES as u64;
        start..start + u64::from(self.run_count) * RUN_BYTES as u64
    }

    /// Where the offsets lie in the file, in bytes.
    fn offsets_bytes(&self) -> Range<u64> {
        let start = self.runs_bytes().end;
        start..start + u64::from(self.count) * OFFSET_BYTES as u64
    }

    /// Size of the whole file in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.offsets_bytes().end
    }
}

/// Verifies the runs of an index file piece by piece, so that they need not be in memory at once.
pub(crate) struct RunsCheck<'a> {
    header: &'a IndexHeader,
    checksum: u32,
    last: Option<(u64, u64)>,
}

impl<'a> RunsCheck<'a> {
    pub(crate) fn new(header: &'a IndexHeader) -> RunsCheck<'a> {
        RunsCheck { header, checksum: salted_checksum(header.identity.salt, &[]), last: None }
    }

    /// Takes the next runs. All pieces together are the bytes at [`IndexHeader::runs_bytes`]; each holds whole runs.
    pub(crate) fn feed(&mut self, piece: &[u8]) -> Result<(), IndexDefect> {
        self.checksum = crc32c::crc32c_append(self.checksum, piece);
        for bytes in piece.as_chunks::<RUN_BYTES>().0 {
            let run = decode_run(bytes);
            let fits = match self.last {
                None => run.0 == self.header.lowest,
                Some((first, term)) => first < run.0 && run.0 < self.header.range().end && term < run.1,
            };
            if !fits {
                return Err(IndexDefect::Inconsistent("the runs do not divide the range into rising terms"));
            }
            self.last = Some(run);
        }
        Ok(())
    }

    /// Says whether what was fed is what the header promised.
    pub(crate) fn finish(self) -> Result<(), IndexDefect> {
        if self.checksum == self.header.runs_checksum { Ok(()) } else { Err(IndexDefect::Checksum("runs")) }
    }
}

/// An index file's bytes, ready to be asked.
#[derive(Clone, Debug)]
pub struct IndexView<'a> {
    header: &'a IndexHeader,
    bytes: &'a [u8],
}

impl<'a> IndexView<'a> {
    /// Looks at the whole bytes of a file through its header, once both header and runs are verified here.
    ///
    /// # Errors
    ///
    /// An [`IndexDefect`] where the runs are damaged or the length is not the header's.
    pub fn new(header: &'a IndexHeader, bytes: &'a [u8]) -> Result<IndexView<'a>, IndexDefect> {
        let view = IndexView::of_verified(header, bytes);
        if bytes.len() as u64 != header.file_bytes() {
            return Err(IndexDefect::Length { expected: header.file_bytes(), found: bytes.len() as u64 });
        }
        let mut check = RunsCheck::new(header);
        check.feed(view.part(header.runs_bytes())?)?;
        check.finish()?;
        Ok(view)
    }

    /// As [`IndexView::new`] for bytes whose runs were verified before. Any other bytes give wrong answers, no panic.
    pub(crate) fn of_verified(header: &'a IndexHeader, bytes: &'a [u8]) -> IndexView<'a> {
        IndexView { header, bytes }
    }

    /// As [`SegmentIndex::range`].
    pub fn range(&self) -> Range<u64> {
        self.header.range()
    }

    /// As [`SegmentIndex::offset_of`]. It may be wrong unless [`IndexView::verify_all`] passed: verify the entry there.
    pub fn offset_of(&self, index: u64) -> Option<u32> {
        if !self.range().contains(&index) {
            return None;
        }
        let at = self.header.offsets_bytes().start + (index - self.header.lowest) * OFFSET_BYTES as u64;
        let bytes = self.bytes.get(usize::try_from(at).ok()?..)?.first_chunk()?;
        u32::from_le_bytes(*bytes).checked_mul(OFFSET_UNIT)
    }

    /// As [`IndexView::offset_of`], for the entry at `index` and all after it.
    pub(crate) fn offsets_from(&self, index: u64) -> impl Iterator<Item = u32> + use<'a> {
        let range = self.range();
        let nth = if range.contains(&index) { index - range.start } else { range.end - range.start };
        let start = self.header.offsets_bytes().start + nth * OFFSET_BYTES as u64;
        let bytes = usize::try_from(start).ok().and_then(|start| self.bytes.get(start..)).unwrap_or_default();
        let units = bytes.as_chunks::<OFFSET_BYTES>().0.iter().map(|units| u32::from_le_bytes(*units));
        units.map_while(|units| units.checked_mul(OFFSET_UNIT))
    }

    /// As [`SegmentIndex::term_of`].
    pub fn term_of(&self, index: u64) -> Option<u64> {
        if !self.range().contains(&index) {
            return None;
        }
        let (mut low, mut high) = (0, self.header.run_count);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.run(middle)?.0 <= index { low = middle + 1 } else { high = middle }
        }
        self.run(low.checked_sub(1)?).map(|(_, term)| term)
    }

    fn run(&self, nth: u32) -> Option<(u64, u64)> {
        let at = self.header.runs_bytes().start + u64::from(nth) * RUN_BYTES as u64;
        self.bytes.get(usize::try_from(at).ok()?..)?.first_chunk().map(decode_run)
    }

    /// Verifies the offsets too, reading the whole file.
    ///
    /// # Errors
    ///
    /// An [`IndexDefect`] where they are damaged or do not rise.
    pub fn verify_all(&self) -> Result<(), IndexDefect> {
        let offsets = self.part(self.header.offsets_bytes())?;
        if salted_checksum(self.header.identity.salt, offsets) != self.header.offsets_checksum {
            return Err(IndexDefect::Checksum("offsets"));
        }
        let mut units = offsets.as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes));
        let rise = units.clone().is_sorted_by(|a, b| a < b);
        if !rise || units.next_back().is_some_and(|highest| highest > u32::MAX / OFFSET_UNIT) {
            return Err(IndexDefect::Inconsistent("the offsets do not rise within a segment"));
        }
        Ok(())
    }

    fn part(&self, range: Range<u64>) -> Result<&'a [u8], IndexDefect> {
        let (Ok(start), Ok(end)) = (usize::try_from(range.start), usize::try_from(range.end)) else {
            return Err(IndexDefect::Length { expected: range.end, found: self.bytes.len() as u64 });
        };
        let defect = IndexDefect::Length { expected: range.end, found: self.bytes.len() as u64 };
        self.bytes.get(start..end).ok_or(defect)
    }
}

fn salted_checksum(salt: u64, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&salt.to_le_bytes()), bytes)
}

fn decode_run(bytes: &[u8; RUN_BYTES]) -> (u64, u64) {
    (u64::from_le_bytes(field(bytes, 0)), u64::from_le_bytes(field(bytes, 8)))
}

fn u32_at(bytes: &[u8; INDEX_HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes(field(bytes, at))
}

fn u64_at(bytes: &[u8; INDEX_HEADER_BYTES], at: usize) -> u64 {
    u64::from_le_bytes(field(bytes, at))
}

/// `N` bytes at a place that the constants above keep inside.
fn field<const N: usize, const OF: usize>(bytes: &[u8; OF], at: usize) -> [u8; N] {
    let mut value = [0; N];
    value.copy_from_slice(&bytes[at..at + N]);
    value
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// One operation on a log, as far as a segment's index is concerned.
    #[derive(Clone, Debug)]
    enum Step {
        Push { term_step: u64 },
        TruncateFrom { back: u64 },
        CompactTo { ahead: i64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => prop_oneof![9 => Just(0), 1 => 1..3u64].prop_map(|term_step| Step::Push { term_step }),
            2 => prop_oneof![0..4u64, 0..60u64].prop_map(|back| Step::TruncateFrom { back }),
            1 => (-20..5i64).prop_map(|ahead| Step::CompactTo { ahead }),
        ]
    }

    /// The naive index: a map, and the log's next index.
    #[derive(Debug)]
    struct Model {
        next: u64,
        live: BTreeMap<u64, (u64, u32)>,
        highest_ever: Option<u64>,
        floor: Option<u64>,
    }

    /// Runs the steps on both, in a segment that begins at the given next index.
    fn run(next: u64, steps: &[Step]) -> (Model, SegmentIndex) {
        let mut model = Model { next, live: BTreeMap::new(), highest_ever: None, floor: None };
        let mut index = SegmentIndex::new();
        for (step, nth) in steps.iter().zip(1..) {
            match *step {
                Step::Push { term_step } => {
                    let term = model.live.last_key_value().map_or(3, |(_, &(term, _))| term) + term_step;
                    index.push(model.next, term, nth * 64);
                    model.live.insert(model.next, (term, nth * 64));
                    model.highest_ever = model.highest_ever.max(Some(model.next));
                    model.next += 1;
                }
                Step::TruncateFrom { back } => {
                    model.next = model.next.saturating_sub(back);
                    index.truncate_from(model.next);
                    model.live.retain(|&index, _| index < model.next);
                    model.floor = Some(model.floor.unwrap_or(u64::MAX).min(model.next));
                }
                Step::CompactTo { ahead } => {
                    let upto = model.next.saturating_add_signed(ahead);
                    index.compact_past(upto);
                    if model.next <= upto + 1 {
                        model.live.clear();
                        model.next = upto + 1;
                    }
                }
            }
        }
        (model, index)
    }

    fn identity() -> IndexIdentity {
        IndexIdentity { log_id: [7; 16], sequence: 3, salt: 99, last_head_checksum: 5, first_frame: 20, last_frame: 31 }
    }

    /// Everything at once: decode, runs, offsets, identity.
    fn check(bytes: &[u8]) -> Result<IndexHeader, IndexDefect> {
        let header = IndexHeader::decode(bytes, bytes.len() as u64)?;
        header.check_identity(&identity())?;
        IndexView::new(&header, bytes)?.verify_all()?;
        Ok(header)
    }

    fn sample() -> SegmentIndex {
        let mut steps = vec![Step::Push { term_step: 0 }; 5];
        steps.extend([Step::TruncateFrom { back: 7 }, Step::Push { term_step: 0 }, Step::Push { term_step: 2 }]);
        run(40, &steps).1
    }

    proptest! {
        #[test]
        fn the_index_agrees_with_a_naive_map(next in 0..100u64, steps in prop::collection::vec(step(), 0..120)) {
            let (model, index) = run(next, &steps);
            let range = match (model.live.first_key_value(), model.live.last_key_value()) {
                (Some((&first, _)), Some((&last, _))) => first..last + 1,
                _ => index.range().start..index.range().start,
            };
            prop_assert_eq!(index.range(), range);
            prop_assert_eq!(index.highest_ever(), model.highest_ever);
            prop_assert_eq!(index.floor(), model.floor);
            for i in (0..400).chain([u64::MAX]) {
                prop_assert_eq!(index.term_of(i), model.live.get(&i).map(|&(term, _)| term));
                prop_assert_eq!(index.offset_of(i), model.live.get(&i).map(|&(_, offset)| offset));
            }
        }

        #[test]
        fn a_file_says_what_the_index_said(next in 0..100u64, steps in prop::collection::vec(step(), 0..120)) {
            let (_, index) = run(next, &steps);
            let bytes = encode(&index, &identity());
            let header = check(&bytes).unwrap();
            let view = IndexView::new(&header, &bytes).unwrap();
            prop_assert_eq!(header.identity(), &identity());
            prop_assert_eq!(view.range(), index.range());
            prop_assert_eq!(header.highest_ever(), index.highest_ever());
            prop_assert_eq!(header.floor(), index.floor());
            for i in (0..400).chain([u64::MAX]) {
                prop_assert_eq!(view.term_of(i), index.term_of(i));
                prop_assert_eq!(view.offset_of(i), index.offset_of(i));
            }
        }

        #[test]
        fn any_bytes_are_safe(mut bytes in prop::collection::vec(any::<u8>(), 0..400), sealed: bool, len: u64) {
            // Half of them get a header that verifies, so that what lies behind the checksum is reached too.
            if sealed && bytes.len() >= INDEX_HEADER_BYTES {
                bytes[..8].copy_from_slice(&MAGIC);
                bytes[8..12].copy_from_slice(&INDEX_VERSION.to_le_bytes());
                bytes[AT_ZERO..AT_HEADER_CHECKSUM].fill(0);
                let checksum = salted_checksum(u64::from_le_bytes(bytes[40..48].try_into().unwrap()), &bytes[..108]);
                bytes[108..112].copy_from_slice(&checksum.to_le_bytes());
            }
            prop_assert!(check(&bytes).is_err());
            let _ = IndexHeader::decode(&bytes, len);
        }
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let bytes = encode(&sample(), &identity());
        assert!(check(&bytes).is_ok());
        for at in 0..bytes.len() {
            for flip in 1..=255 {
                let mut damaged = bytes.clone();
                damaged[at] ^= flip;
                assert!(check(&damaged).is_err(), "byte {at} changed by {flip:#x} went unnoticed");
            }
        }
    }

    #[test]
    fn every_cut_and_extension_is_noticed() {
        let bytes = encode(&sample(), &identity());
        for end in 0..bytes.len() {
            assert!(check(&bytes[..end]).is_err(), "cut at {end}");
        }
        for more in [1, 4, 16, 4096] {
            for fill in [0, 0xff] {
                let mut longer = bytes.clone();
                longer.resize(bytes.len() + more, fill);
                assert!(check(&longer).is_err(), "{more} bytes of {fill} appended");
            }
        }
    }

    #[test]
    fn an_index_of_another_state_is_stale() {
        let bytes = encode(&sample(), &identity());
        let header = check(&bytes).unwrap();
        let changes: [fn(&mut IndexIdentity); 6] = [
            |identity| identity.log_id[15] = 0,
            |identity| identity.sequence += 1,
            |identity| identity.salt += 1,
            |identity| identity.first_frame += 1,
            |identity| identity.last_frame += 1,
            |identity| identity.last_head_checksum += 1,
        ];
        for change in changes {
            let mut other = identity();
            change(&mut other);
            assert!(matches!(header.check_identity(&other), Err(IndexDefect::Stale(_))), "{other:?}");
        }
    }

    #[test]
    fn a_newer_version_is_named_as_such() {
        let mut bytes = encode(&sample(), &identity());
        bytes[AT_VERSION] = 2;
        assert_eq!(check(&bytes), Err(IndexDefect::Version(2)));
    }

    #[test]
    fn the_header_alone_tells_the_range() {
        let bytes = encode(&sample(), &identity());
        let header = IndexHeader::decode(&bytes[..INDEX_HEADER_BYTES], bytes.len() as u64).unwrap();
        assert_eq!((header.range(), header.highest_ever(), header.floor()), (38..40, Some(44), Some(38)));
    }

    #[test]
    fn contradicting_headers_are_refused_though_they_verify() {
        let bytes = encode(&sample(), &identity());
        let good = check(&bytes).unwrap();
        let changes: [fn(&mut IndexHeader); 5] = [
            |header| header.lowest = u64::MAX - 1,
            |header| header.run_count = 3,
            |header| header.run_count = 0,
            |header| header.highest_ever = None,
            |header| header.highest_ever = Some(header.lowest),
        ];
        for change in changes {
            let mut header = good.clone();
            change(&mut header);
            let defect = IndexHeader::decode(&header.encode(), header.file_bytes());
            assert!(matches!(defect, Err(IndexDefect::Inconsistent(_))), "{header:?}");
        }
    }

    #[test]
    fn runs_and_offsets_that_do_not_rise_are_refused_though_they_verify() {
        let index = |offsets: &[u32], runs: &[(u64, u64)]| SegmentIndex {
            lowest: 10,
            offsets: offsets.to_vec(),
            runs: runs.to_vec(),
            highest_ever: Some(12),
            floor: None,
        };
        assert!(check(&encode(&index(&[1, 2, 3], &[(10, 1), (12, 2)]), &identity())).is_ok());
        let wrong = [
            index(&[1, 2, 2], &[(10, 1)]),
            index(&[1, 2, u32::MAX / 8 + 1], &[(10, 1)]),
            index(&[1, 2, 3], &[(11, 1)]),
            index(&[1, 2, 3], &[(10, 1), (13, 2)]),
            index(&[1, 2, 3], &[(10, 2), (11, 1)]),
            index(&[1, 2, 3], &[(10, 1), (10, 2)]),
        ];
        for index in wrong {
            let defect = check(&encode(&index, &identity()));
            assert!(matches!(defect, Err(IndexDefect::Inconsistent(_))), "{index:?}: {defect:?}");
        }
    }

    #[test]
    fn the_bytes_are_the_documented_ones() {
        let mut index = SegmentIndex::new();
        index.push(5, 9, 4096);
        let bytes = encode(&index, &identity());
        assert_eq!(bytes.len(), INDEX_HEADER_BYTES + 16 + 4);
        assert_eq!(&bytes[..16], b"ringwidx\x01\0\0\0\x05\0\0\0");
        assert_eq!((bytes[32], bytes[40], bytes[48], bytes[56]), (3, 99, 20, 31));
        assert_eq!((bytes[64], bytes[72], bytes[88], bytes[92]), (5, 5, 1, 1));
        assert_eq!(&bytes[80..88], &[0xff; 8]);
        assert_eq!(&bytes[112..], b"\x05\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\0\x02\0\0");
    }
}
