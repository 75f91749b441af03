//! Streams written and read back, damaged, cut, mixed up and interrupted, on a simulated disk that insists on aligned
//! access.

use std::io::{self, BufRead, Read, Seek, SeekFrom, Write};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use proptest::prelude::*;

use super::{FileSnapshots, SnapshotError, SnapshotOptions, SnapshotReader, SnapshotStream};
use crate::disk::{Access, Disk, DiskFile};
use crate::format::Salted;
use crate::format::snapshot::{
    CHUNK_HEADER_BYTES, HEADER_BYTES, SnapshotHeader, SnapshotMeta, SnapshotTotals, raw_checksum,
};
use crate::sim::{FaultRule, OpKind, SimDisk};

#[path = "../../tests/common/skip.rs"]
mod skip;

const NAME: &str = "file";

/// Size of a trailer, as the format's documentation has it.
const TRAILER_BYTES: usize = 52;

fn meta() -> SnapshotMeta {
    SnapshotMeta { index: 7, term: 3, timestamp_ms: 1_700_000_000_000, machine: "test/1".to_owned() }
}

fn options(workers: usize) -> SnapshotOptions {
    SnapshotOptions::default().chunk_bytes(1024).workers(workers)
}

/// Bytes that do not compress.
fn noise(bytes: usize) -> Vec<u8> {
    let mut random = 1u64;
    let next = |_| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 32) as u8
    };
    (0..bytes).map(next).collect()
}

/// A state that compresses somewhat.
fn state(bytes: usize) -> Vec<u8> {
    noise(bytes).into_iter().enumerate().map(|(at, byte)| if at % 3 == 0 { byte } else { (at / 7) as u8 }).collect()
}

fn create(disk: &SimDisk) -> Arc<dyn DiskFile> {
    disk.open(NAME, Access::CreateSegment).unwrap()
}

fn begin(file: Arc<dyn DiskFile>, options: &SnapshotOptions) -> SnapshotStream {
    SnapshotStream::begin(file, PathBuf::from(NAME), &meta(), options).unwrap()
}

fn write(disk: &SimDisk, state: &[u8], piece_bytes: usize, options: &SnapshotOptions) -> SnapshotTotals {
    let mut stream = begin(create(disk), options);
    for piece in state.chunks(piece_bytes.max(1)) {
        stream.write_all(piece).unwrap();
    }
    stream.finish().unwrap()
}

/// The file that a state gives.
fn stored(state: &[u8]) -> Vec<u8> {
    let disk = SimDisk::new(1);
    write(&disk, state, state.len(), &options(0));
    disk.read_file(NAME).unwrap()
}

fn open(disk: &SimDisk, workers: usize) -> Result<SnapshotReader, SnapshotError> {
    SnapshotReader::open_with(disk.open(NAME, Access::ReadDirect).unwrap(), PathBuf::from(NAME), workers, false)
}

fn read_all(reader: &mut SnapshotReader) -> Result<Vec<u8>, SnapshotError> {
    let mut state = Vec::new();
    match reader.read_to_end(&mut state) {
        Ok(_) => Ok(state),
        Err(error) => Err(error.downcast().unwrap()),
    }
}

/// Reads a file of these bytes in every way; all agree.
fn judge(bytes: &[u8]) -> Result<Vec<u8>, SnapshotError> {
    let disk = SimDisk::manual(1);
    disk.write_file(NAME, bytes).unwrap();
    let mut reader = open(&disk, 0)?;
    let state = read_all(&mut reader);
    let verified = reader.verify();
    assert_eq!(state.is_ok(), verified.is_ok(), "reading: {:?}, verifying: {verified:?}", state.as_ref().err());
    state
}

fn is_corrupt(outcome: &Result<Vec<u8>, SnapshotError>) -> bool {
    matches!(outcome, Err(SnapshotError::Corrupt { .. }))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_written_is_read_back(
        bytes in prop_oneof![Just(0), Just(1), 1022..1027usize, 2046..2050usize, 0..100_000usize],
        piece_bytes in 1..5000usize,
        workers in 0..5usize,
        readers in 0..3usize,
        seeks in prop::collection::vec((0..100_500u64, 0..3000usize), 0..8),
    ) {
        let (disk, state) = (SimDisk::new(1), state(bytes));
        let totals = write(&disk, &state, piece_bytes, &options(workers));
        prop_assert_eq!((totals.raw_bytes, totals.chunks), (bytes as u64, bytes.div_ceil(1024) as u64));
        prop_assert_eq!(totals.checksum, raw_checksum(&state));
        prop_assert_eq!(totals.stored_bytes, disk.open(NAME, Access::Read).unwrap().size().unwrap());
        let mut reader = open(&disk, readers).unwrap();
        prop_assert_eq!((reader.meta(), reader.totals()), (&meta(), &totals));
        prop_assert!(read_all(&mut reader).unwrap() == state);
        for (offset, length) in seeks {
            reader.seek(SeekFrom::Start(offset)).unwrap();
            let expected = &state[(offset as usize).min(bytes)..];
            let expected = &expected[..expected.len().min(length)];
            let mut read = Vec::new();
            (&mut reader).take(length as u64).read_to_end(&mut read).unwrap();
            prop_assert!(read == expected, "{} bytes at {}", length, offset);
            if length % 5 == 0 {
                reader.verify().unwrap();
            }
        }
    }
}

#[test]
fn every_changed_byte_is_noticed() {
    let bytes = stored(&state(2500));
    assert_eq!((bytes.len(), judge(&bytes).unwrap()), (4096, state(2500)));
    for at in 0..bytes.len() {
        for flip in [1, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            assert!(is_corrupt(&judge(&damaged)), "byte {at} changed by {flip:#x}");
        }
    }
}

#[test]
fn every_cut_and_every_extension_is_noticed() {
    let bytes = stored(&state(2500));
    for end in 0..bytes.len() {
        assert!(is_corrupt(&judge(&bytes[..end])), "cut at {end}");
    }
    let other = stored(&state(2500));
    for more in [&[0; 1][..], &[0; 4096], &[0xff; 4096], &bytes[..512], &bytes, &other] {
        assert!(is_corrupt(&judge(&[&bytes[..], more].concat())), "{} bytes appended", more.len());
        assert!(is_corrupt(&judge(&[more, &bytes[..]].concat())), "{} bytes before it", more.len());
    }
    let larger = stored(&noise(20_000));
    for end in (0..larger.len()).step_by(4096) {
        assert!(is_corrupt(&judge(&larger[..end])), "cut at {end}");
    }
}

/// Where chunks begin in the file, if all are stored in as many bytes as the first.
fn chunk_places(bytes: &[u8], chunks: usize) -> Vec<std::ops::Range<usize>> {
    let stored_bytes = bytes[HEADER_BYTES + 12..].first_chunk().unwrap();
    let size = CHUNK_HEADER_BYTES + u32::from_le_bytes(*stored_bytes) as usize;
    (0..chunks).map(|at| HEADER_BYTES + at * size..HEADER_BYTES + (at + 1) * size).collect()
}

#[test]
fn exchanged_and_repeated_chunks_are_noticed() {
    let state: Vec<u8> = (0..3072).map(|at| (at / 1024) as u8).collect();
    let bytes = stored(&state);
    let places = chunk_places(&bytes, 3);
    assert!(judge(&bytes).unwrap() == state);
    for (one, other) in [(0, 1), (0, 2), (1, 2)] {
        // With their headers, and the zstd frames alone.
        for without in [0, CHUNK_HEADER_BYTES] {
            let place = |at: usize| places[at].start + without..places[at].end;
            let mut damaged = bytes.clone();
            damaged[place(one)].copy_from_slice(&bytes[place(other)]);
            assert!(is_corrupt(&judge(&damaged)), "chunk {other} in place of {one}, but for {without} bytes");
            damaged[place(other)].copy_from_slice(&bytes[place(one)]);
            assert!(is_corrupt(&judge(&damaged)), "chunks {one} and {other} exchanged, but for {without} bytes");
        }
    }
}

#[test]
fn pieces_of_another_snapshot_of_the_same_state_are_noticed() {
    let state: Vec<u8> = (0..3072).map(|at| (at / 1024) as u8).collect();
    let (bytes, other) = (stored(&state), stored(&state));
    let places = chunk_places(&bytes, 3);
    let trailer = places[2].end..places[2].end + TRAILER_BYTES;
    for place in [0..HEADER_BYTES, places[0].clone(), places[1].clone(), places[2].clone(), trailer] {
        let mut spliced = bytes.clone();
        spliced[place.clone()].copy_from_slice(&other[place.clone()]);
        assert!(is_corrupt(&judge(&spliced)), "{place:?} of the other");
    }
    for end in [HEADER_BYTES, places[0].end, places[1].end, places[2].end] {
        assert!(is_corrupt(&judge(&[&bytes[..end], &other[end..]].concat())), "the other from {end} on");
    }
}

/// Writes the checksum of a frame of ours anew.
fn seal(bytes: &mut [u8], frame: std::ops::Range<usize>, salt: u64) {
    let at = frame.end - 4;
    let checksum = Salted::new(salt).over(&bytes[frame.start..at]).value();
    bytes[at..frame.end].copy_from_slice(&checksum.to_le_bytes());
}

#[test]
fn a_newer_version_is_named_as_such_and_a_damaged_one_is_not() {
    let bytes = stored(&state(100));
    let mut newer = bytes.clone();
    newer[16] = 2;
    assert!(is_corrupt(&judge(&newer)), "a version without its checksum");
    let checksum = raw_checksum(&newer[8..20]);
    newer[20..24].copy_from_slice(&checksum.to_le_bytes());
    // Whatever a newer version has behind.
    newer[24..].fill(0xa5);
    let is_newer =
        |bytes: &[u8]| matches!(judge(bytes), Err(SnapshotError::Unsupported { what, .. }) if what.contains('2'));
    assert!(is_newer(&newer));
    let mut flagged = bytes.clone();
    flagged[128] = 0x20;
    seal(&mut flagged, 0..HEADER_BYTES, SnapshotHeader::decode(&bytes).unwrap().salt);
    assert!(is_newer(&flagged));
}

#[test]
fn a_whole_that_does_not_match_its_checksum_is_noticed_before_its_last_chunk_is_given() {
    let state: Vec<u8> = (0..3072).map(|at| (at / 1024) as u8).collect();
    let mut bytes = stored(&state);
    let trailer = chunk_places(&bytes, 3)[2].end;
    bytes[trailer + 12] ^= 1;
    let salt = SnapshotHeader::decode(&bytes).unwrap().salt;
    seal(&mut bytes, trailer..trailer + TRAILER_BYTES, salt);
    let disk = SimDisk::manual(1);
    disk.write_file(NAME, &bytes).unwrap();
    for workers in 0..3 {
        let mut reader = open(&disk, workers).unwrap();
        let mut read = Vec::new();
        for _ in 0..3 {
            // Again and again: never the end of a shorter state.
            assert_eq!(reader.read_to_end(&mut read).unwrap_err().kind(), io::ErrorKind::InvalidData);
            assert!(read == state[..2048]);
        }
        assert!(matches!(reader.verify(), Err(SnapshotError::Corrupt { .. })));
        reader.seek(SeekFrom::Start(3072)).unwrap();
        assert!(reader.read(&mut [0; 8]).is_err(), "{workers} workers");
    }
}

#[test]
fn what_stands_before_and_behind_a_damaged_chunk_is_still_read() {
    let state = state(8 * 1024);
    let mut bytes = stored(&state);
    let third = chunk_places(&bytes, 1)[0].end + 100;
    bytes[third] ^= 1;
    let disk = SimDisk::manual(1);
    disk.write_file(NAME, &bytes).unwrap();
    for workers in 0..3 {
        let mut reader = open(&disk, workers).unwrap();
        let (mut read, mut damaged) = (Vec::new(), Vec::new());
        for chunk in 0..8 {
            reader.seek(SeekFrom::Start(1024 * chunk)).unwrap();
            match reader.fill_buf() {
                Ok(bytes) => read.extend_from_slice(bytes),
                Err(_) => damaged.push(chunk),
            }
        }
        assert_eq!(damaged, [1]);
        assert!(read == [&state[..1024], &state[2048..]].concat(), "{workers} workers");
    }
}

#[test]
fn a_read_that_fails_is_told_and_can_be_tried_again() {
    let state = state(100_000);
    let disk = SimDisk::new(1);
    write(&disk, &state, 1000, &options(0));
    for workers in 0..3 {
        for nth in 1..20 {
            let mut reader = open(&disk, workers).unwrap();
            disk.fail(FaultRule::io_error(OpKind::Read, nth));
            let mut read = Vec::new();
            let failed = reader.read_to_end(&mut read).unwrap_err().downcast().unwrap();
            assert!(matches!(failed, SnapshotError::Io { .. }), "{failed}");
            disk.clear_faults();
            reader.read_to_end(&mut read).unwrap();
            assert!(read == state, "{workers} workers, read {nth}");
        }
    }
}

/// Pushes a state of several writes until it is refused, and gives what was said.
fn write_until_refused(disk: &SimDisk, workers: usize) -> SnapshotError {
    let state = noise(5 << 20);
    let options = SnapshotOptions::default().chunk_bytes(64 << 10).workers(workers);
    let mut stream = begin(create(disk), &options);
    for piece in state.chunks(10_000) {
        if let Err(error) = stream.write_all(piece) {
            assert!(stream.write_all(piece).is_err(), "an error is final");
            let first: SnapshotError = error.downcast().unwrap();
            assert_eq!(stream.finish().unwrap_err().to_string(), first.to_string());
            return first;
        }
    }
    stream.finish().unwrap_err()
}

#[test]
fn a_disk_that_fails_or_is_full_is_told_once_and_for_all() {
    for workers in [0, 1, 3] {
        for (op, nth) in [(OpKind::Write, 1), (OpKind::Write, 3), (OpKind::Write, 6), (OpKind::Sync, 1)] {
            let disk = SimDisk::new(1);
            disk.fail(FaultRule::no_space(op, nth));
            let error = write_until_refused(&disk, workers);
            let SnapshotError::Io { source, .. } = &error else { panic!("{error}") };
            assert_eq!(source.kind(), io::ErrorKind::StorageFull, "{op:?} {nth}, {workers} workers");
            assert!(error.to_string().contains("free space"), "{error}");
            let operations = disk.counters().of(OpKind::Write);
            if op == OpKind::Write {
                assert_eq!(operations, nth, "nothing is written after a failure");
                assert!(open(&disk, 0).is_err(), "what is left is no snapshot");
            }
        }
    }
}

#[test]
fn a_short_write_is_gone_on_with() {
    let (disk, state) = (SimDisk::new(1), noise(3 << 20));
    disk.fail(FaultRule::short_write(2, 70_000));
    write(&disk, &state, 100_000, &SnapshotOptions::default().workers(2));
    assert_eq!(disk.struck().len(), 1);
    assert!(read_all(&mut open(&disk, 2).unwrap()).unwrap() == state);
}

#[test]
fn a_stream_given_up_leaves_no_thread_and_no_snapshot() {
    for pushed in [0, 1000, 1 << 20, 4 << 20] {
        let disk = SimDisk::new(1);
        let file = create(&disk);
        let mut stream = begin(Arc::clone(&file), &options(3));
        stream.write_all(&noise(pushed)).unwrap();
        drop(stream);
        assert_eq!(Arc::strong_count(&file), 1, "a thread still has the file");
        assert!(open(&disk, 0).is_err());
    }
}

#[test]
fn a_reader_dropped_early_leaves_no_thread() {
    let disk = SimDisk::new(1);
    write(&disk, &state(1 << 20), 1 << 20, &options(0));
    for bytes in [0, 1, 1024, 1025, 5000, 500_000] {
        let file = disk.open(NAME, Access::ReadDirect).unwrap();
        let mut reader = SnapshotReader::open(Arc::clone(&file), PathBuf::from(NAME)).unwrap();
        reader.read_exact(&mut vec![0; bytes]).unwrap();
        drop(reader);
        assert_eq!(Arc::strong_count(&file), 1, "a thread still has the file");
    }
}

/// A file whose user panics, from the `nth` write on.
struct Panicking(SimDisk, u64);

impl DiskFile for Panicking {
    fn size(&self) -> io::Result<u64> {
        unimplemented!("a stream only writes and syncs")
    }

    fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
        unimplemented!("a stream only writes and syncs")
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        assert!(offset < self.1, "planted");
        self.0.open(NAME, Access::Segment { durable: false })?.write_at(buf, offset)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn allocate(&self, _: u64) -> io::Result<()> {
        unimplemented!("a stream only writes and syncs")
    }

    fn try_lock(&self) -> io::Result<bool> {
        unimplemented!("a stream only writes and syncs")
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[test]
fn a_thread_that_panics_is_an_error_and_nobody_waits_for_it() {
    for workers in [1, 3] {
        let disk = SimDisk::new(1);
        drop(create(&disk));
        let mut stream = begin(Arc::new(Panicking(disk, 2 << 20)), &options(workers));
        let pushed = noise(8 << 20).chunks(10_000).try_for_each(|piece| stream.write_all(piece));
        let error: SnapshotError = pushed.unwrap_err().downcast().unwrap();
        assert!(error.to_string().contains("panicked"), "{error}");
        assert!(stream.finish().is_err());
    }
}

#[test]
fn settings_out_of_range_and_machines_with_long_names_are_refused() {
    let bad = [
        SnapshotOptions::default().chunk_bytes(1023),
        SnapshotOptions::default().chunk_bytes((8 << 20) + 1),
        SnapshotOptions::default().level(0),
        SnapshotOptions::default().level(23),
        SnapshotOptions::default().workers(65),
    ];
    for options in bad {
        assert!(matches!(options.validate(), Err(SnapshotError::Config(what)) if what.contains("must be from")));
    }
    for (bytes, is_fine) in [(0, true), (64, true), (65, false)] {
        let disk = SimDisk::new(1);
        let meta = SnapshotMeta { machine: "m".repeat(bytes), ..meta() };
        let stream = SnapshotStream::begin(create(&disk), PathBuf::from(NAME), &meta, &options(0));
        assert_eq!(stream.is_ok(), is_fine, "{bytes}");
        if let Ok(stream) = stream {
            stream.finish().unwrap();
            assert_eq!(*open(&disk, 0).unwrap().meta(), meta);
        }
    }
}

#[test]
fn a_seek_to_before_the_start_is_refused_and_one_past_the_end_reads_nothing() {
    let disk = SimDisk::new(1);
    write(&disk, &state(3000), 3000, &options(0));
    let mut reader = open(&disk, 2).unwrap();
    assert_eq!(reader.seek(SeekFrom::End(-1000)).unwrap(), 2000);
    assert_eq!(reader.seek(SeekFrom::Current(-1000)).unwrap(), 1000);
    assert!(reader.seek(SeekFrom::Current(-1001)).is_err());
    assert!(reader.seek(SeekFrom::End(-3001)).is_err());
    assert_eq!(reader.stream_position().unwrap(), 1000);
    for offset in [3000, 3001, u64::MAX] {
        reader.seek(SeekFrom::Start(offset)).unwrap();
        assert_eq!(reader.read(&mut [0; 10]).unwrap(), 0);
    }
    assert!(reader.seek(SeekFrom::Current(1)).is_err(), "beyond any offset");
}

/// Runs the `zstd` tool on a file; `None` where there is none.
fn zstd(arguments: &[&str], file: &Path) -> Option<(bool, Vec<u8>)> {
    match Command::new("zstd").args(arguments).arg(file).stdin(Stdio::null()).output() {
        Ok(output) => Some((output.status.success(), output.stdout)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn the_zstd_tool_accepts_a_snapshot_and_prints_the_state() {
    let scratch = tempfile::tempdir().unwrap();
    for bytes in [0, 1, 1024, 100_000] {
        let (state, path) = (state(bytes), scratch.path().join(format!("{bytes}.zst")));
        let mut file = stored(&state);
        std::fs::write(&path, &file).unwrap();
        let Some((accepts, _)) = zstd(&["-t", "-q"], &path) else { return skip::skip("there is no zstd tool") };
        assert!(accepts, "{bytes} bytes");
        assert!(zstd(&["-d", "-c", "-q"], &path).unwrap() == (true, state), "{bytes} bytes");
        if bytes > 0 {
            // Also a tool that knows nothing of our checksums sees damage in the state.
            file[HEADER_BYTES + CHUNK_HEADER_BYTES + 7] ^= 1;
            std::fs::write(&path, &file).unwrap();
            assert!(!zstd(&["-t", "-q"], &path).unwrap().0, "{bytes} bytes, damaged");
        }
    }
}

#[test]
fn another_reader_of_the_seekable_format_finds_every_offset() {
    let state = state(50_000);
    let mut decoder = zeekstd::Decoder::new(io::Cursor::new(stored(&state))).unwrap();
    // Header, trailer, padding, and two for each chunk.
    assert_eq!(decoder.seek_table().num_frames(), 3 + 2 * 49);
    assert_eq!(decoder.seek_table().size_decomp(), 50_000);
    for offset in [0, 1, 1023, 1024, 1025, 31_000, 49_999] {
        decoder.reset();
        decoder.set_offset(offset).unwrap();
        let mut read = Vec::new();
        decoder.read_to_end(&mut read).unwrap();
        assert!(read == state[offset as usize..], "from {offset} on");
    }
}

#[test]
fn a_snapshot_that_is_given_up_while_it_is_read_back_is_not_there() {
    let disk = SimDisk::new(5);
    let snapshots = FileSnapshots::open_on(Arc::new(disk.clone()), options(1)).unwrap();
    let mut writer = snapshots.writer(7, 3, "test/1").unwrap();
    writer.write_all(&state(20_000)).unwrap();
    let looks = std::cell::Cell::new(0);
    let given_up = writer.publish_while(&|| looks.replace(looks.get() + 1) < 3);
    assert!(matches!(given_up, Err(SnapshotError::Io { .. })), "{given_up:?}");
    assert_eq!((looks.get(), disk.file_names().len()), (4, 0), "after three of twenty chunks");
}
