//! Streams written and read back, on a simulated disk that insists on aligned access.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::Arc;

use proptest::prelude::*;

use super::{SnapshotError, SnapshotOptions, SnapshotReader, SnapshotStream};
use crate::disk::{Access, Disk, DiskFile};
use crate::format::snapshot::{SnapshotMeta, SnapshotTotals, raw_checksum};
use crate::sim::SimDisk;

const NAME: &str = "file";

fn meta() -> SnapshotMeta {
    SnapshotMeta { index: 7, term: 3, timestamp_ms: 1_700_000_000_000, machine: "test/1".to_owned() }
}

fn options(workers: usize) -> SnapshotOptions {
    SnapshotOptions::default().chunk_bytes(1024).workers(workers)
}

/// A state that compresses somewhat.
fn state(bytes: usize) -> Vec<u8> {
    let mut random = 1u32;
    let mut next = || {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        random >> 24
    };
    (0..bytes).map(|at| if at % 3 == 0 { next() as u8 } else { (at / 7) as u8 }).collect()
}

fn create(disk: &SimDisk) -> Arc<dyn DiskFile> {
    disk.open(NAME, Access::CreateSegment).unwrap()
}

fn write(disk: &SimDisk, state: &[u8], piece_bytes: usize, options: &SnapshotOptions) -> SnapshotTotals {
    let mut stream = SnapshotStream::begin(create(disk), PathBuf::from(NAME), &meta(), options).unwrap();
    for piece in state.chunks(piece_bytes.max(1)) {
        stream.write_all(piece).unwrap();
    }
    stream.finish().unwrap()
}

fn open(disk: &SimDisk, workers: usize) -> Result<SnapshotReader, SnapshotError> {
    SnapshotReader::open_with(disk.open(NAME, Access::ReadDirect).unwrap(), PathBuf::from(NAME), workers, false)
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
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        prop_assert!(read == state);
        for (offset, length) in seeks {
            reader.seek(SeekFrom::Start(offset)).unwrap();
            let expected = &state[(offset as usize).min(bytes)..];
            let expected = &expected[..expected.len().min(length)];
            read.clear();
            (&mut reader).take(length as u64).read_to_end(&mut read).unwrap();
            prop_assert!(read == expected, "{} bytes at {}", length, offset);
            if length % 5 == 0 {
                reader.verify().unwrap();
            }
        }
    }
}
