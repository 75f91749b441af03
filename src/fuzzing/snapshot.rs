//! Target: a snapshot file of any bytes. It gives a state that is what it says of itself, or an error; and whether it
//! does, its reader and those who receive it from a peer agree.
//!
//! States are looked at as they stream: a few bytes may rightly stand for very many.

use std::io::{self, BufRead, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::choices::Choices;
use super::forge;
use crate::disk::{Access, Disk};
use crate::format::INDEX_MAX;
use crate::format::snapshot::{HEADER_BYTES, SnapshotHeader, SnapshotMeta, SnapshotTotals};
use crate::sim::SimDisk;
use crate::snapshot::{FileSnapshots, SnapshotError, SnapshotId, SnapshotOptions, SnapshotReader, SnapshotStream};

const NAME: &str = "file";

/// So much of a state is kept for comparison.
const KEPT_BYTES: usize = 16 << 10;

/// Any bytes; any bytes made to verify; or a snapshot, read back, altered, and read again.
pub fn read_snapshot(input: &[u8]) {
    let mut choices = Choices::new(input);
    match choices.below(3) {
        0 => drop(check(choices.rest())),
        1 => {
            let mut bytes = choices.rest().to_vec();
            forge::snapshot(&mut bytes);
            drop(check(&bytes));
        }
        _ => build_and_alter(&mut choices),
    }
}

/// What was seen of a state.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    raw_bytes: u64,
    checksum: u32,
    beginning: Vec<u8>,
}

/// The state that a file of these bytes holds, if it holds one.
fn check(bytes: &[u8]) -> Option<Seen> {
    let header = SnapshotHeader::decode(bytes).ok();
    if let Some(header) = &header {
        assert_eq!(header.encode(), bytes[..HEADER_BYTES], "a header is written as it was read");
    }
    let disk = SimDisk::manual(0);
    disk.write_file(NAME, bytes).expect("a file is made");
    let file = disk.open(NAME, Access::ReadDirect).expect("it is there");
    let seen = SnapshotReader::open_with(file, PathBuf::from(NAME), 0, false).ok().and_then(|mut reader| {
        assert_eq!(Some(reader.meta()), header.as_ref().map(|header| &header.meta));
        check_reader(&mut reader, bytes.len())
    });
    if let Some(meta) = header.map(|header| header.meta).filter(|meta| meta.index <= INDEX_MAX) {
        let received = receive(bytes, &meta);
        assert_eq!(received.is_ok(), seen.is_some(), "who reads it and who receives it disagree: {received:?}");
    }
    seen
}

fn check_reader(reader: &mut SnapshotReader, file_bytes: usize) -> Option<Seen> {
    let totals = *reader.totals();
    assert_eq!(totals.stored_bytes, file_bytes as u64);
    let (seen, verified) = (look(reader), reader.verify());
    assert_eq!(seen.is_ok(), verified.is_ok(), "reading gives {:?}, verifying {verified:?}", seen.as_ref().err());
    let seen = seen.ok()?;
    assert_eq!((seen.raw_bytes, seen.checksum), (totals.raw_bytes, totals.checksum));
    check_seeks(reader, &totals, &seen);
    Some(seen)
}

/// Reads all of a state.
fn look(reader: &mut SnapshotReader) -> io::Result<Seen> {
    let mut seen = Seen { raw_bytes: 0, checksum: 0, beginning: Vec::new() };
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            return Ok(seen);
        }
        seen.raw_bytes += bytes.len() as u64;
        seen.checksum = crc32c::crc32c_append(seen.checksum, bytes);
        let room = KEPT_BYTES - seen.beginning.len();
        seen.beginning.extend_from_slice(&bytes[..bytes.len().min(room)]);
        let count = bytes.len();
        reader.consume(count);
    }
}

fn check_seeks(reader: &mut SnapshotReader, totals: &SnapshotTotals, seen: &Seen) {
    let kept = seen.beginning.len();
    for offset in [0, kept.min(1), kept / 2, kept] {
        reader.seek(SeekFrom::Start(offset as u64)).expect("an offset");
        let mut read = vec![0; (kept - offset).min(100)];
        reader.read_exact(&mut read).expect("it was read before");
        assert!(read == seen.beginning[offset..][..read.len()], "{offset} by seeking");
    }
    reader.seek(SeekFrom::Start(totals.raw_bytes)).expect("the end");
    assert_eq!(reader.read(&mut [0]).expect("nothing is read"), 0);
}

/// Takes the file as if a peer sent it.
fn receive(bytes: &[u8], meta: &SnapshotMeta) -> Result<(), SnapshotError> {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(0));
    let snapshots = FileSnapshots::open_on(disk, SnapshotOptions::default().workers(0))?;
    let id = SnapshotId { index: meta.index, term: meta.term }.to_string();
    let mut importer = snapshots.importer(&id)?;
    importer.receive(&mut &bytes[..])?;
    importer.publish().map(drop)
}

fn build_and_alter(choices: &mut Choices<'_>) {
    let (header, state) = (draw_header(choices), draw_state(choices));
    let original = build(&header, &state, choices.below(3) as i32 + 1);
    let seen = check(&original).expect("it was just written");
    assert!(seen.raw_bytes == state.len() as u64 && seen.beginning == state[..state.len().min(KEPT_BYTES)]);
    let (mut bytes, mut is_forged) = (original.clone(), false);
    while !choices.are_spent() {
        is_forged |= alter(choices, &mut bytes);
        let seen = check(&bytes);
        assert!(is_forged || seen.is_none() || bytes == original, "damage went unnoticed");
    }
}

fn build(header: &SnapshotHeader, state: &[u8], level: i32) -> Vec<u8> {
    let disk = SimDisk::new(0);
    let file = disk.open(NAME, Access::CreateSegment).expect("a file is made");
    let options = SnapshotOptions::default().workers(0).level(level).chunk_bytes(header.chunk_bytes);
    let stream = SnapshotStream::begin_with(file, PathBuf::from(NAME), header.clone(), &options);
    let mut stream = stream.expect("the settings are in their range");
    stream.write_all(state).expect("the disk does not fail");
    stream.finish().expect("nor here");
    disk.read_file(NAME).expect("it is there")
}

/// Alters the file; says whether the checksums were made to fit.
fn alter(choices: &mut Choices<'_>, bytes: &mut Vec<u8>) -> bool {
    let chunks = forge::chunks(bytes);
    let (start, fields) = match choices.below(8) {
        0 => {
            let at = choices.below(1 << 16) % bytes.len().max(1);
            let value = choices.byte();
            bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = value);
            return false;
        }
        1 => (0, &forge::SNAPSHOT[..]),
        2 if !chunks.is_empty() => (choices.one_of(&chunks), &forge::CHUNK[..]),
        3 => (chunks.last().copied().unwrap_or_default(), &forge::TRAILER[..]),
        // A field of the seek table, counted from the end.
        4 => (bytes.len().saturating_sub(9 + 4 * choices.below(16)), &[(0, 4)][..]),
        5 => {
            bytes.resize(choices.below(4) * 4096 + choices.below(2), 0);
            return false;
        }
        6 => {
            exchange(choices, bytes, &chunks);
            return false;
        }
        _ => {
            forge::snapshot(bytes);
            return true;
        }
    };
    let (field, is_relative) = (choices.one_of(fields), choices.one_in(2));
    forge::alter(bytes, start, field, choices.number(), is_relative);
    false
}

/// Puts one chunk in another's place, as far as it goes.
fn exchange(choices: &mut Choices<'_>, bytes: &mut [u8], chunks: &[usize]) {
    let places: Vec<Range<usize>> = chunks.windows(2).map(|ends| ends[0]..ends[1]).collect();
    if places.is_empty() {
        return;
    }
    let (from, to) = (choices.below(places.len()), choices.below(places.len()));
    let (from, to) = (places[from].clone(), places[to].clone());
    let length = from.len().min(to.len());
    bytes.copy_within(from.start..from.start + length, to.start);
}

fn draw_header(choices: &mut Choices<'_>) -> SnapshotHeader {
    let machine = ["", "kv/1", "counter/1"][choices.below(3)].to_owned();
    let (index, term) = (choices.number().min(INDEX_MAX), choices.number());
    let meta = SnapshotMeta { index, term, timestamp_ms: choices.number(), machine };
    SnapshotHeader { meta, chunk_bytes: 1024 + choices.below(256) as u32, salt: choices.u64() }
}

/// Runs of one byte and bytes of the input.
fn draw_state(choices: &mut Choices<'_>) -> Vec<u8> {
    let mut state = Vec::new();
    for _ in 0..choices.below(8) {
        match choices.below(2) {
            0 => state.extend(std::iter::repeat_n(choices.byte(), choices.below(4096))),
            _ => state.extend(choices.bytes(200)),
        }
    }
    state
}

/// Inputs to begin with.
pub(super) fn seeds() -> Vec<(String, Vec<u8>)> {
    let meta = SnapshotMeta { index: 9, term: 2, timestamp_ms: 1, machine: "kv/1".to_owned() };
    let header = SnapshotHeader { meta, chunk_bytes: 1024, salt: 3 };
    let mut seeds = Vec::new();
    for bytes in [0, 1, 3000] {
        let state: Vec<u8> = (0..bytes).map(|at| (at / 100) as u8).collect();
        let file = build(&header, &state, 1);
        for mode in [0, 1] {
            seeds.push((format!("of-{bytes}-{mode}"), [&[mode][..], &file].concat()));
        }
    }
    let built = |nth: u8| (0..150u8).map(move |at| at.wrapping_mul(31 + 2 * nth) ^ nth);
    seeds.extend((0..6).map(|nth| (format!("built-{nth}"), std::iter::once(2).chain(built(nth)).collect())));
    seeds
}
