//! The golden snapshot of format version 1: that it still reads as it did, and that today's writer frames it the same.
//!
//! `tests/golden/v1` is frozen: see `tests/golden/README.md`. What zstd makes of a chunk may change with zstd's version, what
//! it decompresses to may not: so the frames that are ours are compared byte for byte, and the whole file where zstd is
//! the one that the file was made with.

use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;

use super::{SnapshotOptions, SnapshotReader, SnapshotStream};
use crate::disk::{Access, Disk};
use crate::format::snapshot::{
    CHUNK_HEADER_BYTES, ChunkHeader, HEADER_BYTES, SnapshotHeader, SnapshotIndex, SnapshotMeta,
};
use crate::sim::SimDisk;

const NAME: &str = "snapshot_1007_42.zst";

/// What made it: 1.5.7.
const ZSTD_VERSION: u32 = 1_05_07;

fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1/snapshot").join(NAME)
}

fn header() -> SnapshotHeader {
    let meta = SnapshotMeta { index: 1007, term: 42, timestamp_ms: 1_700_000_000_000, machine: "golden/1".to_owned() };
    SnapshotHeader { meta, chunk_bytes: 1024, salt: 0x5eed_0f5a_17ed_b17e }
}

/// Three chunks: text, one repeated byte, bytes that do not compress.
fn state() -> Vec<u8> {
    let text = "what a state machine holds, line after line. ".repeat(30).into_bytes();
    let mut random = 7u32;
    let next = |_| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 24) as u8
    };
    let noise: Vec<u8> = (0..700).map(next).collect();
    [&text[..1024], &[b'z'; 1024], &noise[..]].concat()
}

/// What today's writer makes.
fn made() -> Vec<u8> {
    let disk = SimDisk::new(1);
    let file = disk.open(NAME, Access::CreateSegment).unwrap();
    let options = SnapshotOptions::default().chunk_bytes(1024).workers(0);
    let mut stream = SnapshotStream::begin_with(file, PathBuf::from(NAME), header(), &options).unwrap();
    stream.write_all(&state()).unwrap();
    stream.finish().unwrap();
    disk.read_file(NAME).unwrap()
}

/// Only where there is no such file: what is there never changes.
#[test]
#[ignore = "makes a new golden file"]
fn make() {
    assert!(!golden().exists(), "it never changes");
    fs::create_dir_all(golden().parent().unwrap()).unwrap();
    fs::write(golden(), made()).unwrap();
}

#[test]
fn a_snapshot_of_version_1_holds_what_was_written() {
    let disk = SimDisk::manual(1);
    disk.write_file(NAME, &fs::read(golden()).unwrap()).unwrap();
    let mut reader = SnapshotReader::open(disk.open(NAME, Access::ReadDirect).unwrap(), PathBuf::from(NAME)).unwrap();
    let mut read = Vec::new();
    reader.read_to_end(&mut read).unwrap();
    assert!(read == state());
    assert_eq!(*reader.meta(), header().meta);
    let totals = reader.totals();
    assert_eq!((totals.raw_bytes, totals.stored_bytes, totals.chunks, totals.checksum), (2748, 4096, 3, 0x47f5_6ffc));
}

#[test]
fn todays_writer_frames_a_snapshot_as_version_1_does() {
    let golden = fs::read(golden()).unwrap();
    assert!(golden.starts_with(&header().encode()));
    let (mut at, mut index) = (HEADER_BYTES, SnapshotIndex::default());
    for (number, raw) in state().chunks(1024).enumerate() {
        let found = ChunkHeader::decode(&golden[at..], number as u64, at as u64, &header()).unwrap();
        let stored = &golden[at + CHUNK_HEADER_BYTES..][..found.stored_bytes as usize];
        let raw_checksum = crate::format::snapshot::raw_checksum(raw);
        let made = ChunkHeader::of(number as u64, stored, raw.len() as u32, raw_checksum, header().salt);
        assert!(golden[at..].starts_with(&made.encode(header().salt)), "chunk {number}");
        index.push(&made);
        at += CHUNK_HEADER_BYTES + stored.len();
    }
    let (tail, _) = index.encode_tail(&header());
    assert!(golden[at..] == tail, "the end of the file");
    if zstd::zstd_safe::version_number() == ZSTD_VERSION {
        assert!(golden == made(), "the same version of zstd, another file");
    }
}
