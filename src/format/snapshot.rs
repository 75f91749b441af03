//! A snapshot file, version 1: a valid zstd file in zstd's seekable format, with frames of our own that zstd skips.
//!
//! Pure: bytes to values and back. Whatever is read is checked before it is believed; nothing here compresses, reads a
//! file or allocates by a length that was not held against what is there.
//!
//! # Layout
//!
//! | frame | what |
//! |---|---|
//! | header (skippable) | version, which state this is, size of a chunk, the file's salt |
//! | for each chunk: chunk header (skippable) | its number, sizes and checksums |
//! | for each chunk: a zstd frame | the chunk, compressed on its own, with zstd's own content checksum |
//! | trailer (skippable) | totals, checksum of the whole state, checksum of the seek table |
//! | padding (skippable) | zeros, so that the file is a multiple of 4096 bytes |
//! | seek table (skippable) | as the seekable format says: it must be last |
//!
//! Every chunk but the last holds exactly the header's chunk size of the state, so where a byte of the state lies
//! follows from its offset, and where its chunk lies in the file from the seek table. What a chunk is stands before it,
//! not behind it: the file can be verified from the front while it arrives, without seeking. The seek table has an
//! entry for every frame, the skippable ones with a decompressed size of 0, as the seekable format asks.
//!
//! # Checksums
//!
//! The checksums of the frames that are ours, of a chunk's stored bytes and of the seek table are salted and masked
//! (see [`crate::format`]) with the file's salt, which is drawn anew for each file: no frame of another snapshot
//! verifies in this one. Those of a chunk's raw bytes and of the whole state are plain CRC-32C: the whole's is combined
//! from the chunks'. Magic and version have a checksum of their own, whose place no later version changes: so a newer
//! version is told from damage.
//!
//! # Why not a crate for the seekable format
//!
//! `zeekstd` was looked at: a good reader and writer of the format, one frame after another on the caller's thread.
//! Here a pool compresses and one decompresses ahead, so its encoder and decoder have no place. Its table would do, but what
//! makes ours worth having is what it is held against: the chunks' headers, a checksum, and sizes that must add up to
//! the file before anything is allocated by them. Without those checks it is some forty lines. So it is used where it
//! is worth more: in a test, as a reader of our files that knows nothing of them.

use super::{Salted, all_zero, crc, put, u32_at, u64_at};

/// The version of snapshot files that this crate writes, and the only one it reads.
pub const SNAPSHOT_VERSION: u32 = 1;

/// The smallest size of a chunk of the state, in bytes.
pub const CHUNK_BYTES_MIN: u32 = 1 << 10;

/// The largest size of a chunk of the state, in bytes: what a reader must be ready to hold for each chunk.
pub const CHUNK_BYTES_MAX: u32 = 8 << 20;

/// The longest name of a machine, in bytes.
pub const MACHINE_BYTES_MAX: usize = 64;

/// A snapshot file is a multiple of this many bytes long.
pub const SNAPSHOT_BLOCK_BYTES: u64 = 4096;

/// Size of the header frame in bytes.
pub const HEADER_BYTES: usize = FRAME_HEADER_BYTES + 128;

/// Size of a chunk's header frame in bytes.
pub const CHUNK_HEADER_BYTES: usize = FRAME_HEADER_BYTES + 32;

/// How many of a file's last bytes [`SnapshotEnd::decode`] reads: the seek table's last entry and its footer.
pub const END_BYTES: usize = ENTRY_BYTES + FOOTER_BYTES;

/// The most chunks that a file can have: what the seekable format allows in frames.
pub const CHUNKS_MAX: u64 = (0x0800_0000 - 3) / 2;

/// Padding is shorter than this: a frame that pads no more than it must.
const PADDING_END: u64 = SNAPSHOT_BLOCK_BYTES + FRAME_HEADER_BYTES as u64;

const TRAILER_BYTES: usize = FRAME_HEADER_BYTES + 44;
const FRAME_HEADER_BYTES: usize = 8;
const ENTRY_BYTES: usize = 8;
const FOOTER_BYTES: usize = 9;

/// One of the sixteen that zstd leaves to its users.
const OUR_FRAME: u32 = 0x184D_2A57;
const SEEK_TABLE_FRAME: u32 = 0x184D_2A5E;
const SEEKABLE_MAGIC: u32 = 0x8F92_EAB1;
const MAGIC: [u8; 8] = *b"ringwsnp";

/// What the frames that are ours begin with, after the header.
const KIND_CHUNK: u32 = 1;
const KIND_TRAILER: u32 = 2;

/// Which state a snapshot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// Index of the last entry that was applied to the state.
    pub index: u64,
    /// Term of that entry.
    pub term: u64,
    /// When the snapshot was taken, in milliseconds since the Unix epoch.
    pub timestamp_ms: u64,
    /// Which machine's state it is and in which version of its encoding, as in `kv/1`: at most 64 bytes.
    pub machine: String,
}

/// What a snapshot file amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotTotals {
    /// Size of the state in bytes.
    pub raw_bytes: u64,
    /// Size of the file in bytes.
    pub stored_bytes: u64,
    /// Chunks in the file.
    pub chunks: u64,
    /// CRC-32C of the whole state.
    pub checksum: u32,
}

/// Why bytes are not a snapshot of this version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotDefect {
    /// Damaged, cut short, or not a snapshot.
    Corrupt {
        /// The place in the file, in bytes.
        offset: u64,
        /// What did not fit.
        reason: &'static str,
    },
    /// Written by a newer version.
    Unsupported(String),
}

fn corrupt(offset: u64, reason: &'static str) -> SnapshotDefect {
    SnapshotDefect::Corrupt { offset, reason }
}

/// The most bytes that a chunk of `raw_bytes` may take once it is compressed: what zstd itself may need, and a little.
pub const fn stored_bytes_max(raw_bytes: u32) -> u32 {
    raw_bytes + raw_bytes / 256 + 512
}

/// The first frame of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotHeader {
    /// Which state.
    pub meta: SnapshotMeta,
    /// Size of every chunk but the last, in bytes of the state.
    pub chunk_bytes: u32,
    /// Drawn anew for each file: it tells this file from any other of the same state.
    pub salt: u64,
}

// Offsets in the header frame.
const AT_VERSION: usize = 16;
const AT_PREFIX_CHECKSUM: usize = 20;
const AT_CHUNK_BYTES: usize = 24;
const AT_MACHINE_BYTES: usize = 28;
const AT_SALT: usize = 32;
const AT_INDEX: usize = 40;
const AT_TERM: usize = 48;
const AT_TIMESTAMP: usize = 56;
const AT_MACHINE: usize = 64;
const AT_FLAGS: usize = 128;

impl SnapshotHeader {
    /// The header frame.
    ///
    /// # Panics
    ///
    /// Where the machine's name is longer than [`MACHINE_BYTES_MAX`].
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut frame = skippable::<HEADER_BYTES>();
        put(&mut frame, FRAME_HEADER_BYTES, &MAGIC);
        put(&mut frame, AT_VERSION, &SNAPSHOT_VERSION.to_le_bytes());
        let prefix_checksum = crc::append(0, &frame[FRAME_HEADER_BYTES..AT_PREFIX_CHECKSUM]);
        put(&mut frame, AT_PREFIX_CHECKSUM, &prefix_checksum.to_le_bytes());
        put(&mut frame, AT_CHUNK_BYTES, &self.chunk_bytes.to_le_bytes());
        put(&mut frame, AT_MACHINE_BYTES, &(self.meta.machine.len() as u32).to_le_bytes());
        put(&mut frame, AT_SALT, &self.salt.to_le_bytes());
        put(&mut frame, AT_INDEX, &self.meta.index.to_le_bytes());
        put(&mut frame, AT_TERM, &self.meta.term.to_le_bytes());
        put(&mut frame, AT_TIMESTAMP, &self.meta.timestamp_ms.to_le_bytes());
        put(&mut frame[..AT_FLAGS], AT_MACHINE, self.meta.machine.as_bytes());
        seal(&mut frame, self.salt);
        frame
    }

    /// Reads a header frame from the start of a file's bytes.
    ///
    /// # Errors
    ///
    /// A defect, also where there are too few bytes.
    pub fn decode(bytes: &[u8]) -> Result<SnapshotHeader, SnapshotDefect> {
        check_prefix(bytes)?;
        let frame = bytes.get(..HEADER_BYTES).ok_or_else(|| corrupt(0, "the file ends within its header"))?;
        let salt = u64_at(frame, AT_SALT);
        check_sealed(frame, salt, 0, "the header does not match its checksum")?;
        match u32_at(frame, AT_FLAGS) {
            0 => {}
            flags => return Err(SnapshotDefect::Unsupported(format!("a header with the flags {flags:#x}"))),
        }
        let chunk_bytes = u32_at(frame, AT_CHUNK_BYTES);
        if !(CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&chunk_bytes) {
            return Err(corrupt(AT_CHUNK_BYTES as u64, "the size of a chunk is out of its range"));
        }
        let machine = machine_of(frame).ok_or_else(|| corrupt(AT_MACHINE as u64, "the machine's name is not one"))?;
        let (index, term) = (u64_at(frame, AT_INDEX), u64_at(frame, AT_TERM));
        let meta = SnapshotMeta { index, term, timestamp_ms: u64_at(frame, AT_TIMESTAMP), machine };
        Ok(SnapshotHeader { meta, chunk_bytes, salt })
    }
}

/// What every version begins with.
fn check_prefix(bytes: &[u8]) -> Result<(), SnapshotDefect> {
    let prefix = bytes.get(..AT_CHUNK_BYTES).ok_or_else(|| corrupt(0, "the file is too short for a snapshot"))?;
    if u32_at(prefix, 0) != OUR_FRAME || prefix[FRAME_HEADER_BYTES..AT_VERSION] != MAGIC {
        return Err(corrupt(0, "the file does not begin as a snapshot does"));
    }
    let checksum = crc::append(0, &prefix[FRAME_HEADER_BYTES..AT_PREFIX_CHECKSUM]);
    if checksum != u32_at(prefix, AT_PREFIX_CHECKSUM) {
        return Err(corrupt(AT_VERSION as u64, "the version does not match its checksum"));
    }
    match u32_at(prefix, AT_VERSION) {
        SNAPSHOT_VERSION => Ok(()),
        version => Err(SnapshotDefect::Unsupported(format!("snapshot format version {version}"))),
    }
}

fn machine_of(frame: &[u8]) -> Option<String> {
    let bytes = &frame[AT_MACHINE..AT_FLAGS];
    let name = bytes.get(..u32_at(frame, AT_MACHINE_BYTES) as usize)?;
    all_zero(&bytes[name.len()..]).then(|| std::str::from_utf8(name).ok().map(str::to_owned)).flatten()
}

/// A skippable frame of ours of `N` bytes in all, zeros behind its own header.
fn skippable<const N: usize>() -> [u8; N] {
    let mut frame = [0; N];
    put(&mut frame, 0, &frame_header(OUR_FRAME, N - FRAME_HEADER_BYTES));
    frame
}

fn frame_header(magic: u32, content_bytes: usize) -> [u8; FRAME_HEADER_BYTES] {
    let mut header = [0; FRAME_HEADER_BYTES];
    put(&mut header, 0, &magic.to_le_bytes());
    put(&mut header, 4, &(content_bytes as u32).to_le_bytes());
    header
}

/// Writes the checksum over a frame into its last four bytes.
fn seal(frame: &mut [u8], salt: u64) {
    let at = frame.len() - 4;
    let checksum = salted(salt, &frame[..at]);
    put(frame, at, &checksum.to_le_bytes());
}

fn check_sealed(frame: &[u8], salt: u64, offset: u64, reason: &'static str) -> Result<(), SnapshotDefect> {
    let at = frame.len() - 4;
    let is_sealed = frame[..FRAME_HEADER_BYTES] == frame_header(OUR_FRAME, frame.len() - FRAME_HEADER_BYTES)
        && salted(salt, &frame[..at]) == u32_at(frame, at);
    is_sealed.then_some(()).ok_or_else(|| corrupt(offset, reason))
}

fn salted(salt: u64, bytes: &[u8]) -> u32 {
    Salted::new(salt).over(bytes).value()
}

/// The CRC-32C of raw bytes, plain: those of the chunks combine to that of the whole.
pub fn raw_checksum(bytes: &[u8]) -> u32 {
    crc::append(0, bytes)
}

/// The checksum of all that came before and then `chunk_bytes` more, whose own is `chunk_checksum`.
pub fn combined_checksum(before: u32, chunk_checksum: u32, chunk_bytes: usize) -> u32 {
    crc32c::crc32c_combine(before, chunk_checksum, chunk_bytes)
}

/// What stands before a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    /// Counts from 0.
    pub number: u64,
    /// Size of the zstd frame behind this header, in bytes.
    pub stored_bytes: u32,
    /// Size of what it decompresses to, in bytes.
    pub raw_bytes: u32,
    /// Of the zstd frame: see [`ChunkHeader::of`].
    pub stored_checksum: u32,
    /// Of what it decompresses to: see [`raw_checksum`].
    pub raw_checksum: u32,
}

impl ChunkHeader {
    /// Describes a chunk whose raw bytes have this checksum.
    pub fn of(number: u64, stored: &[u8], raw_bytes: u32, raw_checksum: u32, salt: u64) -> ChunkHeader {
        let stored_bytes = stored.len() as u32;
        ChunkHeader { number, stored_bytes, raw_bytes, stored_checksum: salted(salt, stored), raw_checksum }
    }

    /// The chunk header's frame.
    pub fn encode(&self, salt: u64) -> [u8; CHUNK_HEADER_BYTES] {
        let mut frame = skippable::<CHUNK_HEADER_BYTES>();
        put(&mut frame, 8, &KIND_CHUNK.to_le_bytes());
        put(&mut frame, 12, &self.stored_bytes.to_le_bytes());
        put(&mut frame, 16, &self.number.to_le_bytes());
        put(&mut frame, 24, &self.raw_bytes.to_le_bytes());
        put(&mut frame, 28, &self.stored_checksum.to_le_bytes());
        put(&mut frame, 32, &self.raw_checksum.to_le_bytes());
        seal(&mut frame, salt);
        frame
    }

    /// Reads the header of chunk `number` from bytes that begin at `offset` of the file.
    ///
    /// # Errors
    ///
    /// A defect, also where it is another chunk's header or its sizes are beyond what `file` allows.
    pub fn decode(
        bytes: &[u8],
        number: u64,
        offset: u64,
        file: &SnapshotHeader,
    ) -> Result<ChunkHeader, SnapshotDefect> {
        let frame = bytes.get(..CHUNK_HEADER_BYTES).ok_or_else(|| corrupt(offset, "a chunk's header is cut short"))?;
        check_sealed(frame, file.salt, offset, "a chunk's header does not match its checksum")?;
        let header = ChunkHeader {
            number: u64_at(frame, 16),
            stored_bytes: u32_at(frame, 12),
            raw_bytes: u32_at(frame, 24),
            stored_checksum: u32_at(frame, 28),
            raw_checksum: u32_at(frame, 32),
        };
        if u32_at(frame, 8) != KIND_CHUNK || header.number != number {
            return Err(corrupt(offset, "another chunk stands here"));
        }
        let are_sizes_sound = (1..=file.chunk_bytes).contains(&header.raw_bytes)
            && (1..=stored_bytes_max(header.raw_bytes)).contains(&header.stored_bytes);
        are_sizes_sound.then_some(header).ok_or_else(|| corrupt(offset, "a chunk's sizes are out of their range"))
    }

    /// Whether this is the zstd frame that the header was made for.
    pub fn matches(&self, stored: &[u8], salt: u64) -> bool {
        stored.len() == self.stored_bytes as usize && salted(salt, stored) == self.stored_checksum
    }
}

/// Collects what the end of a file says, chunk by chunk.
#[derive(Clone, Debug, Default)]
pub struct SnapshotIndex {
    stored_bytes: Vec<u32>,
    raw_bytes: u64,
    last_raw_bytes: u32,
    checksum: u32,
}

impl SnapshotIndex {
    /// Chunks so far.
    pub fn chunks(&self) -> u64 {
        self.stored_bytes.len() as u64
    }

    /// Takes in the next chunk.
    pub fn push(&mut self, chunk: &ChunkHeader) {
        self.stored_bytes.push(chunk.stored_bytes);
        self.raw_bytes += u64::from(chunk.raw_bytes);
        self.last_raw_bytes = chunk.raw_bytes;
        self.checksum = combined_checksum(self.checksum, chunk.raw_checksum, chunk.raw_bytes as usize);
    }

    /// The end of the file, from the trailer on, and what it says.
    pub fn encode_tail(&self, file: &SnapshotHeader) -> (Vec<u8>, SnapshotTotals) {
        let padding_bytes = self.padding_bytes();
        let table = self.encode_table(file.chunk_bytes, padding_bytes);
        let stored_bytes = self.trailer_offset() + (TRAILER_BYTES + padding_bytes + table.len()) as u64;
        let totals =
            SnapshotTotals { raw_bytes: self.raw_bytes, stored_bytes, chunks: self.chunks(), checksum: self.checksum };
        let mut tail = encode_trailer(&totals, padding_bytes, salted(file.salt, &table), file.salt).to_vec();
        tail.extend(frame_header(OUR_FRAME, padding_bytes - FRAME_HEADER_BYTES));
        tail.resize(TRAILER_BYTES + padding_bytes, 0);
        tail.extend(table);
        (tail, totals)
    }

    fn trailer_offset(&self) -> u64 {
        let chunks: u64 = self.stored_bytes.iter().map(|&bytes| CHUNK_HEADER_BYTES as u64 + u64::from(bytes)).sum();
        HEADER_BYTES as u64 + chunks
    }

    fn padding_bytes(&self) -> usize {
        let without = self.trailer_offset() + TRAILER_BYTES as u64 + table_bytes(self.chunks());
        let least = without + FRAME_HEADER_BYTES as u64;
        (least.next_multiple_of(SNAPSHOT_BLOCK_BYTES) - without) as usize
    }

    fn encode_table(&self, chunk_bytes: u32, padding_bytes: usize) -> Vec<u8> {
        let bytes = table_bytes(self.chunks()) as usize;
        let mut table = Vec::with_capacity(bytes);
        table.extend(frame_header(SEEK_TABLE_FRAME, bytes - FRAME_HEADER_BYTES));
        push_entry(&mut table, HEADER_BYTES as u32, 0);
        for (number, &stored_bytes) in self.stored_bytes.iter().enumerate() {
            let is_last = number + 1 == self.stored_bytes.len();
            push_entry(&mut table, CHUNK_HEADER_BYTES as u32, 0);
            push_entry(&mut table, stored_bytes, if is_last { self.last_raw_bytes } else { chunk_bytes });
        }
        push_entry(&mut table, TRAILER_BYTES as u32, 0);
        push_entry(&mut table, padding_bytes as u32, 0);
        table.extend((entries_of(self.chunks()) as u32).to_le_bytes());
        table.push(0);
        table.extend(SEEKABLE_MAGIC.to_le_bytes());
        table
    }
}

fn push_entry(table: &mut Vec<u8>, stored_bytes: u32, raw_bytes: u32) {
    table.extend(stored_bytes.to_le_bytes());
    table.extend(raw_bytes.to_le_bytes());
}

/// Header, trailer, padding, and two for each chunk.
fn entries_of(chunks: u64) -> u64 {
    3 + 2 * chunks
}

fn table_bytes(chunks: u64) -> u64 {
    (FRAME_HEADER_BYTES + FOOTER_BYTES) as u64 + ENTRY_BYTES as u64 * entries_of(chunks)
}

fn encode_trailer(
    totals: &SnapshotTotals,
    padding_bytes: usize,
    table_checksum: u32,
    salt: u64,
) -> [u8; TRAILER_BYTES] {
    let mut frame = skippable::<TRAILER_BYTES>();
    put(&mut frame, 8, &KIND_TRAILER.to_le_bytes());
    put(&mut frame, 12, &totals.checksum.to_le_bytes());
    put(&mut frame, 16, &totals.chunks.to_le_bytes());
    put(&mut frame, 24, &totals.raw_bytes.to_le_bytes());
    put(&mut frame, 32, &totals.stored_bytes.to_le_bytes());
    put(&mut frame, 40, &table_checksum.to_le_bytes());
    put(&mut frame, 44, &(padding_bytes as u32).to_le_bytes());
    seal(&mut frame, salt);
    frame
}

/// How many chunks the footer of a file claims, held against the size of the file.
fn chunks_of(footer: &[u8; FOOTER_BYTES], file_bytes: u64) -> Result<u64, SnapshotDefect> {
    let at = file_bytes.saturating_sub(FOOTER_BYTES as u64);
    let entries = u64::from(u32_at(footer, 0));
    if u32_at(footer, 5) != SEEKABLE_MAGIC || footer[4] != 0 || !file_bytes.is_multiple_of(SNAPSHOT_BLOCK_BYTES) {
        return Err(corrupt(at, "the file does not end as a snapshot does"));
    }
    let least = |chunks| (HEADER_BYTES + TRAILER_BYTES) as u64 + chunks * (CHUNK_HEADER_BYTES as u64 + 1);
    let is_odd = !entries.is_multiple_of(2);
    let chunks = entries.checked_sub(3).filter(|_| is_odd).map(|for_chunks| for_chunks / 2);
    let chunks = chunks.filter(|&chunks| chunks <= CHUNKS_MAX && least(chunks) + table_bytes(chunks) <= file_bytes);
    chunks.ok_or_else(|| corrupt(at, "the seek table's length cannot be"))
}

/// What the last bytes of a file claim. They are held against the trailer before anything is allocated by them: a file
/// with a hole in it may be of any size.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotEnd {
    file_bytes: u64,
    chunks: u64,
    trailer_offset: u64,
}

impl SnapshotEnd {
    /// Reads the last bytes of a file of `file_bytes`.
    ///
    /// # Errors
    ///
    /// A defect where they are not the end of a seek table that can be this file's.
    pub fn decode(end: &[u8; END_BYTES], file_bytes: u64) -> Result<SnapshotEnd, SnapshotDefect> {
        let (padding_bytes, (_, footer)) = (u64::from(u32_at(end, 0)), end.split_at(ENTRY_BYTES));
        let footer = footer.first_chunk().ok_or_else(|| corrupt(0, "the file is cut short"))?;
        let chunks = chunks_of(footer, file_bytes)?;
        let trailer_offset = file_bytes.checked_sub(table_bytes(chunks) + padding_bytes + TRAILER_BYTES as u64);
        let trailer_offset = trailer_offset
            .filter(|_| padding_bytes < PADDING_END)
            .ok_or_else(|| corrupt(file_bytes - END_BYTES as u64, "the padding is not what the seek table says"))?;
        Ok(SnapshotEnd { file_bytes, chunks, trailer_offset })
    }

    /// Where the trailer has to lie. With it begins what [`SnapshotTable::decode`] reads.
    pub fn trailer(&self) -> std::ops::Range<u64> {
        self.trailer_offset..self.trailer_offset + TRAILER_BYTES as u64
    }

    /// Checks that the bytes at that place are this file's trailer, and claim the same.
    ///
    /// # Errors
    ///
    /// A defect.
    pub fn check_trailer(&self, frame: &[u8], header: &SnapshotHeader) -> Result<(), SnapshotDefect> {
        let offset = self.trailer_offset;
        let frame = frame.get(..TRAILER_BYTES).ok_or_else(|| corrupt(offset, "the file is cut short"))?;
        check_sealed(frame, header.salt, offset, "the trailer does not match its checksum")?;
        let (chunks, raw_bytes, stored_bytes) = (u64_at(frame, 16), u64_at(frame, 24), u64_at(frame, 32));
        let is_the_same = (chunks, stored_bytes) == (self.chunks, self.file_bytes)
            && raw_bytes.div_ceil(header.chunk_bytes.into()) == chunks;
        is_the_same.then_some(()).ok_or_else(|| corrupt(offset, "the totals are those of another file"))
    }
}

/// Where the chunks of a file lie, and what it amounts to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotTable {
    totals: SnapshotTotals,
    chunk_bytes: u32,
    /// Where each chunk's header begins, and where the last chunk ends.
    offsets: Vec<u64>,
}

impl SnapshotTable {
    /// Reads the end of a file of `file_bytes` from its last bytes, at least from the trailer on: [`SnapshotEnd`] tells
    /// where that is.
    ///
    /// # Errors
    ///
    /// A defect: every byte from the trailer on is checked.
    pub fn decode(tail: &[u8], file_bytes: u64, header: &SnapshotHeader) -> Result<SnapshotTable, SnapshotDefect> {
        let from =
            file_bytes.checked_sub(tail.len() as u64).ok_or_else(|| corrupt(0, "more bytes than the file has"))?;
        let short = || corrupt(from, "the file is cut short");
        let footer: &[u8; FOOTER_BYTES] = tail.last_chunk().ok_or_else(short)?;
        let chunks = chunks_of(footer, file_bytes)?;
        let table_at = tail.len().checked_sub(table_bytes(chunks) as usize).ok_or_else(short)?;
        let (before, table) = tail.split_at(table_at);
        let (trailer, padding_bytes) = split_trailer(before, table, from)?;
        let trailer_offset = from + (before.len() - padding_bytes - TRAILER_BYTES) as u64;
        let totals = decode_trailer(trailer, trailer_offset, padding_bytes, table, header.salt)?;
        if (totals.chunks, totals.stored_bytes) != (chunks, file_bytes) {
            return Err(corrupt(trailer_offset, "the totals are those of another file"));
        }
        let offsets = offsets_of(table, &totals, header.chunk_bytes)
            .filter(|offsets| offsets.last() == Some(&trailer_offset))
            .ok_or_else(|| corrupt(from + table_at as u64, "the seek table contradicts the file"))?;
        Ok(SnapshotTable { totals, chunk_bytes: header.chunk_bytes, offsets })
    }

    /// What the file amounts to.
    pub fn totals(&self) -> &SnapshotTotals {
        &self.totals
    }

    /// The chunk that holds the byte of the state at `offset`; `None` at its end and beyond.
    pub fn chunk_at(&self, offset: u64) -> Option<u64> {
        (offset < self.totals.raw_bytes).then(|| offset / u64::from(self.chunk_bytes))
    }

    /// Where in the state a chunk begins.
    pub fn raw_offset(&self, number: u64) -> u64 {
        number * u64::from(self.chunk_bytes)
    }

    /// Size of a chunk of the state in bytes.
    pub fn raw_bytes(&self, number: u64) -> u32 {
        (self.totals.raw_bytes - self.raw_offset(number)).min(self.chunk_bytes.into()) as u32
    }

    /// Where a chunk lies in the file, from its header on; `None` for a number that is none.
    pub fn place(&self, number: u64) -> Option<std::ops::Range<u64>> {
        let at = usize::try_from(number).ok()?;
        Some(*self.offsets.get(at)?..*self.offsets.get(at + 1)?)
    }
}

/// The trailer, and the size of the padding behind it, which the table's last entry says.
fn split_trailer<'a>(before: &'a [u8], table: &[u8], from: u64) -> Result<(&'a [u8], usize), SnapshotDefect> {
    let wrong = || corrupt(from + before.len() as u64, "the padding is not what the seek table says");
    let padding_bytes = u32_at(table, table.len() - FOOTER_BYTES - ENTRY_BYTES) as usize;
    let padding_at = before.len().checked_sub(padding_bytes).ok_or_else(wrong)?;
    let (rest, padding) = before.split_at(padding_at);
    let content_bytes = padding_bytes.checked_sub(FRAME_HEADER_BYTES).ok_or_else(wrong)?;
    let (header, zeros) = padding.split_at(FRAME_HEADER_BYTES);
    if padding_bytes as u64 >= PADDING_END || header != frame_header(OUR_FRAME, content_bytes) || !all_zero(zeros) {
        return Err(wrong());
    }
    let at = rest.len().checked_sub(TRAILER_BYTES).ok_or_else(wrong)?;
    Ok((&rest[at..], padding_bytes))
}

fn decode_trailer(
    frame: &[u8],
    offset: u64,
    padding_bytes: usize,
    table: &[u8],
    salt: u64,
) -> Result<SnapshotTotals, SnapshotDefect> {
    check_sealed(frame, salt, offset, "the trailer does not match its checksum")?;
    let table_checksum = salted(salt, table);
    if u32_at(frame, 40) != table_checksum {
        return Err(corrupt(offset, "the seek table does not match its checksum"));
    }
    let (chunks, raw_bytes, stored_bytes) = (u64_at(frame, 16), u64_at(frame, 24), u64_at(frame, 32));
    let totals = SnapshotTotals { raw_bytes, stored_bytes, chunks, checksum: u32_at(frame, 12) };
    let is_the_one = encode_trailer(&totals, padding_bytes, table_checksum, salt) == frame;
    is_the_one.then_some(totals).ok_or_else(|| corrupt(offset, "the trailer contradicts what is behind it"))
}

/// Where the chunks lie; `None` where the table is not one that [`SnapshotIndex`] could have made.
fn offsets_of(table: &[u8], totals: &SnapshotTotals, chunk_bytes: u32) -> Option<Vec<u64>> {
    let entries = &table[FRAME_HEADER_BYTES..table.len() - FOOTER_BYTES];
    let (entries, _) = entries.as_chunks::<ENTRY_BYTES>();
    let entry = |at: usize| (u32_at(&entries[at], 0), u32_at(&entries[at], 4));
    let count = entries.len();
    let is_framed = table[..FRAME_HEADER_BYTES] == frame_header(SEEK_TABLE_FRAME, table.len() - FRAME_HEADER_BYTES)
        && entry(0) == (HEADER_BYTES as u32, 0)
        && entry(count - 2) == (TRAILER_BYTES as u32, 0)
        && entry(count - 1).1 == 0;
    let (mut offsets, mut raw_left) = (Vec::with_capacity(count / 2), totals.raw_bytes);
    offsets.push(HEADER_BYTES as u64);
    for at in (1..count - 2).step_by(2) {
        let ((header_bytes, nothing), (stored_bytes, raw_bytes)) = (entry(at), entry(at + 1));
        let is_sound = (header_bytes, nothing) == (CHUNK_HEADER_BYTES as u32, 0)
            && raw_bytes > 0
            && u64::from(raw_bytes) == raw_left.min(chunk_bytes.into())
            && (1..=stored_bytes_max(raw_bytes)).contains(&stored_bytes);
        raw_left = raw_left.checked_sub(raw_bytes.into()).filter(|_| is_sound)?;
        offsets.push(offsets.last()? + u64::from(header_bytes) + u64::from(stored_bytes));
    }
    (is_framed && raw_left == 0).then_some(offsets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SnapshotHeader {
        let meta = SnapshotMeta { index: 7, term: 3, timestamp_ms: 11, machine: "kv/1".to_owned() };
        SnapshotHeader { meta, chunk_bytes: 1024, salt: 0x0123_4567_89ab_cdef }
    }

    fn chunk(number: u64, stored_bytes: u32, raw_bytes: u32) -> ChunkHeader {
        ChunkHeader { number, stored_bytes, raw_bytes, stored_checksum: 5, raw_checksum: 6 }
    }

    /// Chunks, each with its stored and its raw size.
    fn index(sizes: &[(u32, u32)]) -> SnapshotIndex {
        let mut index = SnapshotIndex::default();
        for (number, &(stored_bytes, raw_bytes)) in sizes.iter().enumerate() {
            index.push(&chunk(number as u64, stored_bytes, raw_bytes));
        }
        index
    }

    const SIZES: [(u32, u32); 3] = [(100, 1024), (1300, 1024), (50, 7)];

    #[test]
    fn a_header_reads_back_and_every_changed_byte_of_it_is_noticed() {
        for machine in ["", "kv/1", "ü", &"m".repeat(MACHINE_BYTES_MAX)] {
            let mut header = header();
            header.meta.machine = machine.to_owned();
            let frame = header.encode();
            assert_eq!(SnapshotHeader::decode(&frame), Ok(header));
            for at in 0..frame.len() {
                assert!(SnapshotHeader::decode(&frame[..at]).is_err(), "cut at {at}");
                let mut damaged = frame;
                damaged[at] ^= 0x40;
                let decoded = SnapshotHeader::decode(&damaged);
                assert!(matches!(decoded, Err(SnapshotDefect::Corrupt { .. })), "byte {at}: {decoded:?}");
            }
        }
    }

    #[test]
    fn headers_that_contradict_themselves_are_refused_though_they_verify() {
        let contradictions: [fn(&mut [u8]); 5] = [
            |frame| put(frame, AT_CHUNK_BYTES, &(CHUNK_BYTES_MIN - 1).to_le_bytes()),
            |frame| put(frame, AT_CHUNK_BYTES, &(CHUNK_BYTES_MAX + 1).to_le_bytes()),
            |frame| put(frame, AT_MACHINE_BYTES, &65u32.to_le_bytes()),
            |frame| put(frame, AT_MACHINE_BYTES, &3u32.to_le_bytes()),
            |frame| put(frame, AT_MACHINE, &[0xff]),
        ];
        for (nth, contradict) in contradictions.iter().enumerate() {
            let mut frame = header().encode();
            contradict(&mut frame);
            seal(&mut frame, header().salt);
            let decoded = SnapshotHeader::decode(&frame);
            assert!(matches!(decoded, Err(SnapshotDefect::Corrupt { .. })), "{nth}: {decoded:?}");
        }
    }

    #[test]
    fn a_chunks_header_reads_back_at_its_own_place_in_its_own_file_only() {
        let (file, chunk) = (header(), chunk(5, 700, 1024));
        let frame = chunk.encode(file.salt);
        assert_eq!(ChunkHeader::decode(&frame, 5, 0, &file), Ok(chunk));
        assert!(ChunkHeader::decode(&frame, 6, 0, &file).is_err());
        assert!(ChunkHeader::decode(&frame, 5, 0, &SnapshotHeader { salt: 1, ..header() }).is_err());
        for at in 0..frame.len() {
            assert!(ChunkHeader::decode(&frame[..at], 5, 0, &file).is_err(), "cut at {at}");
            let mut damaged = frame;
            damaged[at] ^= 0x40;
            assert!(ChunkHeader::decode(&damaged, 5, 0, &file).is_err(), "byte {at}");
        }
    }

    #[test]
    fn sizes_beyond_what_the_file_allows_are_refused_though_they_verify() {
        for (stored_bytes, raw_bytes) in [(0, 1024), (1540 + 1, 1024), (100, 0), (100, 1025), (u32::MAX, u32::MAX)] {
            let frame = chunk(0, stored_bytes, raw_bytes).encode(header().salt);
            assert!(ChunkHeader::decode(&frame, 0, 0, &header()).is_err(), "{stored_bytes} for {raw_bytes}");
        }
    }

    #[test]
    fn the_end_of_a_file_tells_where_every_chunk_lies() {
        for sizes in [&SIZES[..0], &SIZES[2..], &SIZES] {
            let (tail, totals) = index(sizes).encode_tail(&header());
            assert!(totals.stored_bytes.is_multiple_of(SNAPSHOT_BLOCK_BYTES));
            let end = SnapshotEnd::decode(tail.last_chunk().unwrap(), totals.stored_bytes).unwrap();
            assert_eq!(end.trailer().start, totals.stored_bytes - tail.len() as u64);
            assert_eq!(end.check_trailer(&tail, &header()), Ok(()));
            let table = SnapshotTable::decode(&tail, totals.stored_bytes, &header()).unwrap();
            assert_eq!((table.totals(), totals.chunks), (&totals, sizes.len() as u64));
            let (mut at, mut raw_at) = (HEADER_BYTES as u64, 0);
            for (number, &(stored_bytes, raw_bytes)) in sizes.iter().enumerate() {
                let number = number as u64;
                let end = at + CHUNK_HEADER_BYTES as u64 + u64::from(stored_bytes);
                assert_eq!((table.place(number), table.raw_bytes(number)), (Some(at..end), raw_bytes));
                let last = raw_at + u64::from(raw_bytes) - 1;
                assert_eq!((table.chunk_at(raw_at), table.chunk_at(last)), (Some(number), Some(number)));
                (at, raw_at) = (end, last + 1);
            }
            assert_eq!((table.chunk_at(raw_at), table.chunk_at(u64::MAX)), (None, None));
            assert_eq!((table.place(totals.chunks), table.place(u64::MAX)), (None, None));
        }
    }

    #[test]
    fn every_changed_byte_of_the_end_and_every_cut_is_noticed() {
        let (tail, totals) = index(&SIZES).encode_tail(&header());
        let step = if cfg!(miri) { 101 } else { 1 };
        for at in (0..tail.len()).step_by(step) {
            let mut damaged = tail.clone();
            damaged[at] ^= 0x40;
            assert!(SnapshotTable::decode(&damaged, totals.stored_bytes, &header()).is_err(), "byte {at}");
            assert!(SnapshotTable::decode(&tail[at + 1..], totals.stored_bytes, &header()).is_err(), "from {at}");
            assert!(SnapshotTable::decode(&tail[..at], totals.stored_bytes, &header()).is_err(), "up to {at}");
        }
        for bytes in [0, 4095, totals.stored_bytes - 4096, totals.stored_bytes + 4096] {
            assert!(SnapshotTable::decode(&tail, bytes, &header()).is_err(), "in a file of {bytes}");
        }
    }

    #[test]
    fn a_table_that_contradicts_the_file_is_refused_though_it_verifies() {
        let wrong = [
            vec![(100, 1024), (100, 1023), (50, 7)],
            vec![(100, 1024), (100, 1024), (50, 1025)],
            vec![(100, 1024), (0, 1024), (50, 7)],
            vec![(100, 1024), (1541, 1024), (50, 7)],
        ];
        for sizes in wrong {
            let (tail, totals) = index(&sizes).encode_tail(&header());
            assert!(SnapshotTable::decode(&tail, totals.stored_bytes, &header()).is_err(), "{sizes:?}");
        }
    }

    #[test]
    fn a_trailer_that_contradicts_the_padding_is_refused_though_it_verifies() {
        let (mut tail, totals) = index(&SIZES).encode_tail(&header());
        tail[44] ^= 8;
        seal(&mut tail[..TRAILER_BYTES], header().salt);
        let decoded = SnapshotTable::decode(&tail, totals.stored_bytes, &header());
        assert!(matches!(decoded, Err(SnapshotDefect::Corrupt { .. })), "{decoded:?}");
    }

    #[test]
    fn a_footer_claims_no_more_than_the_file_has() {
        let footer_of = |entries: u32| {
            let mut footer = [0; FOOTER_BYTES];
            put(&mut footer, 0, &entries.to_le_bytes());
            put(&mut footer, 5, &SEEKABLE_MAGIC.to_le_bytes());
            footer
        };
        assert_eq!(chunks_of(&footer_of(3), 4096), Ok(0));
        for entries in [0, 1, 2, 4, 511, 0x0800_0001, u32::MAX - 1, u32::MAX] {
            assert!(chunks_of(&footer_of(entries), 4096).is_err(), "{entries} entries in 4096 bytes");
        }
        assert!(chunks_of(&footer_of(3), 4095).is_err());
        assert!(chunks_of(&footer_of(u32::MAX), u64::MAX - 4095).is_err());
    }

    #[test]
    fn the_end_is_not_believed_where_the_trailer_is_anothers_or_damaged() {
        let (tail, totals) = index(&SIZES).encode_tail(&header());
        let end = SnapshotEnd::decode(tail.last_chunk().unwrap(), totals.stored_bytes).unwrap();
        let trailer = &tail[..TRAILER_BYTES];
        for at in 0..TRAILER_BYTES {
            let mut damaged = trailer.to_vec();
            damaged[at] ^= 0x40;
            assert!(end.check_trailer(&damaged, &header()).is_err(), "byte {at}");
            assert!(end.check_trailer(&trailer[..at], &header()).is_err(), "cut at {at}");
        }
        assert!(end.check_trailer(trailer, &SnapshotHeader { salt: 1, ..header() }).is_err());
        assert!(end.check_trailer(trailer, &SnapshotHeader { chunk_bytes: 4096, ..header() }).is_err());
        let other = SnapshotEnd::decode(tail.last_chunk().unwrap(), totals.stored_bytes + 4096).unwrap();
        assert!(other.check_trailer(trailer, &header()).is_err());
        let mut padding = *tail.last_chunk::<END_BYTES>().unwrap();
        put(&mut padding, 0, &(PADDING_END as u32).to_le_bytes());
        assert!(SnapshotEnd::decode(&padding, 1 << 20).is_err());
    }

    #[test]
    fn the_bytes_are_the_documented_ones() {
        let frame = header().encode();
        assert_eq!(&frame[..32], b"\x57\x2a\x4d\x18\x80\0\0\0ringwsnp\x01\0\0\0\xf3\xa1\xd8\x2a\0\x04\0\0\x04\0\0\0");
        assert_eq!((frame[32], frame[40], frame[48], frame[56], &frame[64..69]), (0xef, 7, 3, 11, &b"kv/1\0"[..]));
        let frame = chunk(9, 100, 1024).encode(header().salt);
        assert_eq!(
            &frame[..36],
            b"\x57\x2a\x4d\x18\x20\0\0\0\x01\0\0\0\x64\0\0\0\x09\0\0\0\0\0\0\0\0\x04\0\0\x05\0\0\0\x06\0\0\0"
        );
        let (tail, _) = index(&SIZES[..1]).encode_tail(&header());
        assert_eq!(&tail[..12], b"\x57\x2a\x4d\x18\x2c\0\0\0\x02\0\0\0");
        let table = &tail[tail.len() - 57..];
        assert_eq!(&table[..8], b"\x5e\x2a\x4d\x18\x31\0\0\0");
        assert_eq!(&table[8..32], b"\x88\0\0\0\0\0\0\0\x28\0\0\0\0\0\0\0\x64\0\0\0\0\x04\0\0");
        assert_eq!(&table[48..], b"\x05\0\0\0\0\xb1\xea\x92\x8f");
    }
}
