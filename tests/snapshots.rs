//! Snapshots as a user of the library meets them: made, listed, read, deleted, sent to another machine; and what is said
//! when something is wrong.

mod common;

use std::io::{Read, Write};
use std::sync::Arc;

use ringwal::disk::Disk;
use ringwal::sim::SimDisk;
use ringwal::{FileSnapshots, MemSnapshots, SnapshotError, SnapshotId, SnapshotManager, SnapshotOptions};

/// Small chunks, and no threads.
fn options() -> SnapshotOptions {
    SnapshotOptions::default().chunk_bytes(1 << 10).workers(0)
}

fn open(disk: &SimDisk) -> FileSnapshots {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    FileSnapshots::open_on(disk, options()).unwrap()
}

/// A state that names its index and does not compress to nothing.
fn state(index: u64, bytes: usize) -> Vec<u8> {
    let mut random = index + 1;
    let mut next = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 56) as u8
    };
    (0..bytes).map(|at| if at % 4 == 0 { next() } else { index as u8 }).collect()
}

fn ids(snapshots: &FileSnapshots) -> Vec<String> {
    snapshots.ids().unwrap().iter().map(SnapshotId::to_string).collect()
}

#[test]
fn what_is_created_is_loaded_with_index_term_and_data() {
    let scratch = common::scratch();
    let file = FileSnapshots::open(scratch.path(), SnapshotOptions::default()).unwrap();
    let managers: [Box<dyn SnapshotManager>; 3] =
        [Box::new(file), Box::new(open(&SimDisk::new(1))), Box::new(MemSnapshots::default())];
    for mut manager in managers {
        for (index, bytes) in [(0, 0), (100, 12), (101, 3_000_000)] {
            let data = state(index, bytes);
            let made = manager.create_snapshot(index, 3, &data).unwrap();
            assert_eq!((made.index, made.term, made.raw_bytes), (index, 3, bytes as u64));
            let (loaded, read) = manager.load_snapshot(&made.id.to_string()).unwrap();
            assert_eq!(loaded, made);
            assert!(read == data);
        }
        let listed = manager.list_snapshots().unwrap();
        assert_eq!(listed.iter().map(|snapshot| snapshot.index).collect::<Vec<_>>(), [0, 100, 101]);
        let gone = manager.compact_snapshots(1).unwrap();
        assert_eq!(gone, listed[..2]);
        assert!(matches!(manager.load_snapshot("snapshot_100_3"), Err(SnapshotError::NotFound { .. })));
        manager.delete_snapshot("snapshot_101_3").unwrap();
        assert!(manager.list_snapshots().unwrap().is_empty());
    }
}

#[test]
fn a_snapshot_is_there_only_once_it_is_published() {
    let disk = SimDisk::new(1);
    let snapshots = open(&disk);
    let mut writer = snapshots.writer(5, 1, "test/1").unwrap();
    writer.write_all(&state(5, 10_000)).unwrap();
    assert_eq!((ids(&snapshots), disk.file_names().len()), (vec![], 1));
    drop(writer);
    assert_eq!(disk.file_names(), []);
    let mut writer = snapshots.writer(5, 1, "test/1").unwrap();
    writer.write_all(&state(5, 10_000)).unwrap();
    let snapshot = writer.publish().unwrap();
    assert_eq!((ids(&snapshots), disk.file_names().len()), (vec!["snapshot_5_1".to_owned()], 1));
    assert_eq!(snapshots.verify("snapshot_5_1").unwrap(), snapshot);
    let mut read = Vec::new();
    snapshots.open_snapshot("snapshot_5_1").unwrap().read_to_end(&mut read).unwrap();
    assert!(read == state(5, 10_000));
}
