//! Snapshots as a user of the library meets them: made, listed, read, deleted, sent to another machine; and what is
//! said when something is wrong.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::sync::Arc;
use std::thread;

use ringwal::disk::{Access, Disk, RealDisk};
use ringwal::sim::SimDisk;
use ringwal::{
    Error, FileSnapshots, IoChoice, Log, MemSnapshots, SnapshotError, SnapshotId, SnapshotImporter, SnapshotManager,
    SnapshotOptions, SnapshotReader, SnapshotWriter,
};

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
fn handles_may_be_shared_and_sent() {
    fn shared<T: Send + Sync + std::fmt::Debug>() {}
    fn sent<T: Send + 'static>() {}
    shared::<FileSnapshots>();
    shared::<MemSnapshots>();
    shared::<SnapshotError>();
    sent::<SnapshotReader>();
    sent::<SnapshotWriter>();
    sent::<SnapshotImporter>();
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

#[test]
fn what_is_no_id_is_refused_before_it_touches_a_path() {
    let scratch = common::scratch();
    let dir = scratch.path().join("snapshots");
    let mut snapshots = FileSnapshots::open(&dir, options()).unwrap();
    snapshots.create_snapshot(1, 2, b"state").unwrap();
    // What a path would lead to if it were taken for one.
    fs::copy(dir.join("snapshot_1_2.zst"), scratch.path().join("snapshot_1_2.zst")).unwrap();
    let huge = format!("snapshot_1_{}", "9".repeat(5000));
    for id in [
        "",
        "/",
        ".",
        "..",
        "../snapshot_1_2",
        "snapshot_1_2/../snapshot_1_2",
        "/snapshot_1_2",
        "./snapshot_1_2",
        "snapshot_1_2.zst",
        "snapshot_1_2\0",
        "snapshot_1_2 ",
        "snapshot_01_2",
        "snapshot_1_02",
        "snapshot_+1_2",
        "snapshot_1_-2",
        "snapshot_1",
        "snapshot_1_",
        "snapshot__2",
        "snapshot_1_2_3",
        "snapshot_1_18446744073709551616",
        "snapshot_18446744073709551616_2",
        "snapshot_18446744073709551615_2",
        "snapshot_１_2",
        &huge,
    ] {
        let errors = [
            snapshots.load_snapshot(id).map(drop).unwrap_err(),
            snapshots.open_snapshot(id).map(drop).unwrap_err(),
            snapshots.verify(id).map(drop).unwrap_err(),
            snapshots.export(id, 0, &mut std::io::sink()).map(drop).unwrap_err(),
            snapshots.importer(id).map(drop).unwrap_err(),
            snapshots.set_aside(id).map(drop).unwrap_err(),
            FileSnapshots::delete_snapshot(&snapshots, id).unwrap_err(),
            SnapshotManager::delete_snapshot(&mut snapshots, id).unwrap_err(),
            MemSnapshots::default().load_snapshot(id).map(drop).unwrap_err(),
            MemSnapshots::default().delete_snapshot(id).unwrap_err(),
            id.parse::<SnapshotId>().map(drop).unwrap_err(),
        ];
        for error in errors {
            assert!(matches!(error, SnapshotError::BadId { .. }), "{id:?}: {error}");
            assert!(error.to_string().contains("snapshot_INDEX_TERM"), "{error}");
        }
    }
    assert_eq!(ids(&snapshots), ["snapshot_1_2"]);
    let error = snapshots.create_snapshot(u64::MAX, 0, b"").unwrap_err();
    assert!(matches!(error, SnapshotError::BadId { .. }), "{error}");
}

#[test]
fn a_snapshot_that_is_not_there_is_not_found_and_one_that_is_there_is_not_made_again() {
    let disk = SimDisk::new(1);
    let snapshots = open(&disk);
    for error in [
        snapshots.load_snapshot("snapshot_1_2").map(drop).unwrap_err(),
        snapshots.verify("snapshot_1_2").map(drop).unwrap_err(),
        snapshots.delete_snapshot("snapshot_1_2").unwrap_err(),
        snapshots.export("snapshot_1_2", 0, &mut std::io::sink()).map(drop).unwrap_err(),
        snapshots.set_aside("snapshot_1_2").map(drop).unwrap_err(),
    ] {
        assert!(matches!(&error, SnapshotError::NotFound { path } if path.ends_with("snapshot_1_2.zst")), "{error}");
    }
    assert_eq!((snapshots.newest().unwrap(), snapshots.compact_snapshots(1).unwrap()), (None, vec![]));
    let before = snapshots.create_snapshot(1, 2, b"first").unwrap();
    for error in [
        snapshots.create_snapshot(1, 2, b"second").map(drop).unwrap_err(),
        snapshots.importer("snapshot_1_2").map(drop).unwrap_err(),
    ] {
        assert!(matches!(error, SnapshotError::Exists { .. }), "{error}");
    }
    assert_eq!(snapshots.load_snapshot("snapshot_1_2").unwrap(), (before, b"first".to_vec()));
    assert_eq!(disk.file_names().len(), 1);
}

/// Two begin the same; the one that is done first has it.
#[test]
fn of_two_makers_of_the_same_snapshot_one_succeeds_and_the_other_is_told() {
    let disk = SimDisk::new(1);
    let (one, other) = (open(&disk), open(&disk));
    for second in [one.clone(), other] {
        let mut writers = [one.writer(5, 1, "").unwrap(), second.writer(5, 1, "").unwrap()];
        writers[0].write_all(&state(1, 3000)).unwrap();
        writers[1].write_all(&state(2, 3000)).unwrap();
        let [first, second] = writers;
        second.publish().unwrap();
        assert!(matches!(first.publish(), Err(SnapshotError::Exists { .. })));
        assert!(one.load_snapshot("snapshot_5_1").unwrap().1 == state(2, 3000));
        assert_eq!(disk.file_names().len(), 1);
        one.delete_snapshot("snapshot_5_1").unwrap();
    }
}

#[test]
fn what_the_compacted_log_stands_on_cannot_be_deleted() {
    let disk = SimDisk::new(1);
    let snapshots = open(&disk);
    for index in [10, 20, 30] {
        snapshots.create_snapshot(index, 1, b"state").unwrap();
    }
    let refused = |error: SnapshotError| match error {
        SnapshotError::Needed { id, stands_on } => (id.index, stands_on),
        other => panic!("{other}"),
    };
    snapshots.set_stands_on(Some(30));
    assert_eq!(refused(snapshots.delete_snapshot("snapshot_30_1").unwrap_err()), (30, 30));
    snapshots.set_stands_on(Some(15));
    assert_eq!(refused(snapshots.clone().delete_snapshot("snapshot_30_1").unwrap_err()), (30, 15), "the newest stays");
    snapshots.delete_snapshot("snapshot_20_1").unwrap();
    // A log compacted past all of them needs one that is lost: none of the others goes.
    snapshots.set_stands_on(Some(31));
    assert_eq!(refused(snapshots.delete_snapshot("snapshot_10_1").unwrap_err()), (10, 31));
    assert_eq!(refused(snapshots.compact_snapshots(1).unwrap_err()), (10, 31));
    assert_eq!(ids(&snapshots), ["snapshot_10_1", "snapshot_30_1"]);
    snapshots.set_stands_on(Some(30));
    assert_eq!(snapshots.compact_snapshots(1).unwrap().len(), 1);
    snapshots.set_stands_on(None);
    snapshots.delete_snapshot("snapshot_30_1").unwrap();

    let mut mem = MemSnapshots::default();
    mem.create_snapshot(30, 1, b"state").unwrap();
    mem.set_stands_on(Some(30));
    assert_eq!(refused(mem.delete_snapshot("snapshot_30_1").unwrap_err()), (30, 30));
}

#[test]
fn at_least_one_snapshot_is_kept() {
    let managers: [Box<dyn SnapshotManager>; 2] = [Box::new(open(&SimDisk::new(1))), Box::new(MemSnapshots::default())];
    for mut manager in managers {
        for index in [10, 20, 30] {
            manager.create_snapshot(index, 1, b"state").unwrap();
        }
        let error = manager.compact_snapshots(0).unwrap_err();
        assert!(matches!(error, SnapshotError::KeepCount) && error.to_string().contains("at least 1"), "{error}");
        assert_eq!(manager.list_snapshots().unwrap().len(), 3);
        assert_eq!(manager.compact_snapshots(usize::MAX).unwrap(), []);
        assert_eq!(manager.compact_snapshots(2).unwrap().iter().map(|gone| gone.index).collect::<Vec<_>>(), [10]);
    }
}

#[test]
fn a_file_under_the_name_of_another_snapshot_is_told_by_its_own_name() {
    let disk = SimDisk::new(1);
    let snapshots = open(&disk);
    snapshots.create_snapshot(10, 1, b"ten").unwrap();
    snapshots.create_snapshot(20, 1, b"twenty").unwrap();
    disk.swap_files("snapshot_10_1.zst", "snapshot_20_1.zst").unwrap();
    let snapshots = open(&disk);
    for error in [
        snapshots.load_snapshot("snapshot_20_1").map(drop).unwrap_err(),
        snapshots.open_snapshot("snapshot_20_1").map(drop).unwrap_err(),
        snapshots.verify("snapshot_20_1").map(drop).unwrap_err(),
        snapshots.compact_snapshots(1).map(drop).unwrap_err(),
    ] {
        assert!(
            matches!(&error, SnapshotError::Misnamed { file, found }
            if file.ends_with("snapshot_20_1.zst") && found.index == 10),
            "{error}"
        );
        assert!(error.to_string().contains("holds snapshot_10_1"), "{error}");
    }
    assert_eq!(ids(&snapshots).len(), 2);
}

#[test]
fn another_machines_snapshot_is_refused_by_name() {
    let disk = SimDisk::new(1);
    let snapshots = open(&disk);
    let (kv, counter) = (snapshots.of_machine("kv/1"), snapshots.of_machine("counter/1"));
    assert_eq!(kv.create_snapshot(10, 1, b"state").unwrap().machine, "kv/1");
    for error in [
        counter.load_snapshot("snapshot_10_1").map(drop).unwrap_err(),
        counter.open_snapshot("snapshot_10_1").map(drop).unwrap_err(),
        counter.verify("snapshot_10_1").map(drop).unwrap_err(),
        counter.writer(11, 1, "kv/1").map(drop).unwrap_err(),
    ] {
        assert!(
            matches!(&error, SnapshotError::OtherMachine { found, expected, .. }
            if found == "kv/1" && expected == "counter/1"),
            "{error}"
        );
    }
    // Who says nothing of a machine may read it.
    assert_eq!(snapshots.load_snapshot("snapshot_10_1").unwrap().1, b"state");
    let long = "a machine's name of more than sixty-four bytes is not worth the disk it is on";
    assert!(matches!(snapshots.writer(11, 1, long).map(drop), Err(SnapshotError::Config(_))));
    assert_eq!(disk.file_names().len(), 1, "{:?}", disk.file_names());
}

#[test]
fn a_damaged_snapshot_hides_none_of_the_others_and_is_not_deleted_in_passing() {
    let disk = SimDisk::new(1);
    let snapshots = open(&disk);
    for index in [10, 20, 30, 40] {
        snapshots.create_snapshot(index, 1, &state(index, 5000)).unwrap();
    }
    disk.set_len("snapshot_20_1.zst", 2048).unwrap();
    let list = snapshots.list().unwrap();
    let sound: Vec<(u64, bool)> = list.iter().map(|(id, snapshot)| (id.index, snapshot.is_ok())).collect();
    assert_eq!(sound, [(10, true), (20, false), (30, true), (40, true)]);
    let error = snapshots.list_snapshots().unwrap_err();
    assert!(matches!(&error, SnapshotError::Corrupt { file, .. } if file.ends_with("snapshot_20_1.zst")), "{error}");
    // It is not counted: of the sound ones two stay.
    assert_eq!(FileSnapshots::compact_snapshots(&snapshots, 2).unwrap().len(), 1);
    assert_eq!(ids(&snapshots), ["snapshot_20_1", "snapshot_30_1", "snapshot_40_1"]);
    FileSnapshots::delete_snapshot(&snapshots, "snapshot_20_1").unwrap();
    assert_eq!(snapshots.list_snapshots().unwrap().len(), 2);
}

/// The way on when the newest is damaged: it is set aside, the one before it is the newest.
#[test]
fn a_damaged_newest_is_set_aside_only_where_another_will_do() {
    let disk = SimDisk::new(1);
    let made = open(&disk);
    for index in [10, 20] {
        made.create_snapshot(index, 1, &state(index, 5000)).unwrap();
    }
    disk.flip_bit("snapshot_20_1.zst", 2000, 1).unwrap();
    let snapshots = open(&disk);
    snapshots.set_stands_on(Some(11));
    let error = snapshots.set_aside("snapshot_20_1").unwrap_err();
    assert!(matches!(error, SnapshotError::Needed { .. }), "{error}");
    snapshots.set_stands_on(Some(10));
    let damaged = disk.read_file("snapshot_20_1.zst").unwrap();
    let path = snapshots.set_aside("snapshot_20_1").unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    assert_eq!(disk.crash_point().lose_all().read_file(name).unwrap(), damaged, "it is kept for a person to look at");
    assert_eq!((ids(&snapshots), snapshots.newest().unwrap().unwrap().index), (vec!["snapshot_10_1".to_owned()], 10));
    snapshots.create_snapshot(20, 1, &state(20, 5000)).unwrap();
    assert_eq!(snapshots.compact_snapshots(1).unwrap().len(), 1);
    assert!(disk.read_file(name).is_ok(), "and compaction leaves it alone");
    // Where the other one is damaged as well, both stay.
    snapshots.create_snapshot(30, 1, &state(30, 5000)).unwrap();
    for name in ["snapshot_20_1.zst", "snapshot_30_1.zst"] {
        disk.flip_bit(name, 2000, 1).unwrap();
    }
    let snapshots = open(&disk);
    snapshots.set_stands_on(Some(10));
    assert!(matches!(snapshots.set_aside("snapshot_30_1"), Err(SnapshotError::Needed { .. })));
}

#[test]
fn left_overs_go_when_their_maker_is_gone_and_not_before() {
    let scratch = common::scratch();
    let real: Arc<dyn Disk> = Arc::new(RealDisk::open(scratch.path(), IoChoice::Syscall).unwrap());
    for disk in [Arc::new(SimDisk::new(1)) as Arc<dyn Disk>, real] {
        let files = || disk.list().unwrap().into_iter().filter(|name| name.ends_with(".tmp")).collect::<Vec<_>>();
        let mine = FileSnapshots::open_on(disk.clone(), options()).unwrap();
        let mut writer = mine.writer(5, 1, "").unwrap();
        writer.write_all(&state(5, 5000)).unwrap();
        // Somebody else's file, under a name that only looks like one of ours.
        disk.open("snapshot_5_1.zst.tmp", Access::Create).unwrap();
        disk.open("snapshot_6_1.zst.00000000000000ff.tmp", Access::Create).unwrap();
        assert_eq!(files().len(), 3);
        let other = FileSnapshots::open_on(disk.clone(), options()).unwrap();
        assert_eq!(files().len(), 2, "what is being made stays, what nobody makes goes: {:?}", files());
        other.create_snapshot(6, 1, b"state").unwrap();
        assert_eq!(writer.publish().unwrap().index, 5);
        assert_eq!(ids(&other), ["snapshot_5_1", "snapshot_6_1"]);
        assert_eq!(files(), ["snapshot_5_1.zst.tmp"]);
    }
}

/// Each makes, lists, reads and compacts, and none knows of the other but through the directory.
#[test]
fn two_managers_in_one_directory_never_lose_the_newest() {
    let scratch = common::scratch();
    let workers = (0..2u64).map(|worker| {
        let dir = scratch.path().to_owned();
        thread::spawn(move || {
            let snapshots = FileSnapshots::open(&dir, options()).unwrap();
            for round in 0..25 {
                let index = 2 * round + worker;
                snapshots.create_snapshot(index, 1, &state(index, 20_000)).unwrap();
                snapshots.set_stands_on(Some(index));
                snapshots.compact_snapshots(2).unwrap();
                let newest = snapshots.newest().unwrap().unwrap();
                assert!(newest.index >= index, "{newest} after {index}");
                match snapshots.load_snapshot(&newest.to_string()) {
                    Ok((_, data)) => assert!(data == state(newest.index, 20_000)),
                    // The other one made two newer ones meanwhile.
                    Err(SnapshotError::NotFound { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.join().unwrap();
    }
    let snapshots = FileSnapshots::open(scratch.path(), options()).unwrap();
    assert_eq!(snapshots.newest().unwrap().unwrap().index, 49);
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), snapshots.ids().unwrap().len(), "nothing is left behind");
    assert!(snapshots.load_snapshot("snapshot_49_1").unwrap().1 == state(49, 20_000));
}

#[test]
fn a_snapshot_that_is_deleted_while_it_is_read_is_read_to_its_end() {
    let scratch = common::scratch();
    let snapshots = FileSnapshots::open(scratch.path(), options()).unwrap();
    snapshots.create_snapshot(5, 1, &state(5, 50_000)).unwrap();
    let mut reader = snapshots.open_snapshot("snapshot_5_1").unwrap();
    snapshots.delete_snapshot("snapshot_5_1").unwrap();
    let mut read = Vec::new();
    reader.read_to_end(&mut read).unwrap();
    assert!(read == state(5, 50_000));
}

#[test]
fn a_read_only_open_changes_nothing_and_refuses_to() {
    let scratch = common::scratch();
    let made = FileSnapshots::open(scratch.path(), options()).unwrap();
    made.create_snapshot(5, 1, &state(5, 5000)).unwrap();
    let mut writer = made.writer(6, 1, "").unwrap();
    writer.write_all(b"half").unwrap();
    fs::write(scratch.path().join("snapshot_7_1.zst.00000000000000ff.tmp"), b"left over").unwrap();
    let names = || {
        let names = fs::read_dir(scratch.path()).unwrap().map(|entry| entry.unwrap().file_name());
        names.collect::<std::collections::BTreeSet<_>>()
    };
    let before = names();
    let snapshots = FileSnapshots::open_read_only(scratch.path()).unwrap();
    assert_eq!(ids(&snapshots), ["snapshot_5_1"]);
    assert!(snapshots.load_snapshot("snapshot_5_1").unwrap().1 == state(5, 5000));
    snapshots.verify("snapshot_5_1").unwrap();
    for error in [
        snapshots.create_snapshot(8, 1, b"state").map(drop).unwrap_err(),
        snapshots.delete_snapshot("snapshot_5_1").unwrap_err(),
        snapshots.compact_snapshots(1).map(drop).unwrap_err(),
        snapshots.importer("snapshot_9_1").map(drop).unwrap_err(),
        snapshots.set_aside("snapshot_5_1").map(drop).unwrap_err(),
    ] {
        assert!(error.to_string().contains("read-only"), "{error}");
    }
    assert_eq!(names(), before);
    let missing = FileSnapshots::open_read_only(scratch.path().join("missing")).map(drop).unwrap_err();
    assert!(missing.to_string().contains("check the path"), "{missing}");
    let file = FileSnapshots::open(scratch.path().join("snapshot_5_1.zst"), options()).map(drop).unwrap_err();
    assert!(matches!(file, SnapshotError::Io { .. }), "{file}");
}

/// Links and directories under a snapshot's name are nobody's snapshot.
#[test]
fn what_is_no_regular_file_is_no_snapshot_to_follow() {
    let scratch = common::scratch();
    let snapshots = FileSnapshots::open(scratch.path().join("here"), options()).unwrap();
    let elsewhere = FileSnapshots::open(scratch.path().join("elsewhere"), options()).unwrap();
    elsewhere.create_snapshot(5, 1, b"state").unwrap();
    std::os::unix::fs::symlink(
        scratch.path().join("elsewhere/snapshot_5_1.zst"),
        scratch.path().join("here/snapshot_5_1.zst"),
    )
    .unwrap();
    fs::create_dir(scratch.path().join("here/snapshot_6_1.zst")).unwrap();
    assert!(matches!(snapshots.load_snapshot("snapshot_5_1"), Err(SnapshotError::Io { .. })));
    assert_eq!(ids(&snapshots), ["snapshot_5_1"]);
    assert!(snapshots.list().unwrap()[0].1.is_err());
}

/// A log that is lost is not begun anew in silence beside the snapshots that were made of it.
#[test]
fn no_log_begins_where_there_are_snapshots_and_no_segment() {
    let scratch = common::scratch();
    let dir = scratch.path();
    let (log, _) = Log::open(dir, common::small()).unwrap();
    log.append("one").unwrap();
    log.close().unwrap();
    let snapshots = FileSnapshots::open(dir, options()).unwrap();
    snapshots.create_snapshot(1, 0, b"state").unwrap();
    // Beside a log they are none of its business: not even what is half made.
    let mut writer = snapshots.writer(2, 0, "").unwrap();
    writer.write_all(b"state").unwrap();
    let (log, report) = Log::open(dir, common::small()).unwrap();
    assert!(!report.created && log.get(1).unwrap().command == "one");
    log.close().unwrap();
    writer.publish().unwrap();
    for file in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if !file.to_str().unwrap().ends_with(".zst") && !file.ends_with("lock") {
            fs::remove_file(file).unwrap();
        }
    }
    let lost = |what| {
        for error in
            [Log::open(dir, common::small()).map(drop).unwrap_err(), Log::open_read_only(dir).map(drop).unwrap_err()]
        {
            assert!(matches!(error, Error::Foreign { .. } | Error::Corrupt { .. }), "{what}: {error}");
        }
    };
    lost("with the lock file's mark");
    fs::write(dir.join("lock"), b"").unwrap();
    lost("with an empty lock file");
    fs::remove_file(dir.join("lock")).unwrap();
    lost("without a lock file");
    assert_eq!(ids(&snapshots).len(), 2);
}

// ---- from one machine to another ----

/// A snapshot of some chunks, and its file.
fn exported(index: u64) -> (Vec<u8>, Vec<u8>) {
    let (snapshots, data) = (open(&SimDisk::new(index)), state(index, 10_000));
    snapshots.of_machine("kv/1").create_snapshot(index, 2, &data).unwrap();
    let mut file = Vec::new();
    let sent = snapshots.export(&format!("snapshot_{index}_2"), 0, &mut file).unwrap();
    assert_eq!(sent, file.len() as u64);
    (data, file)
}

#[test]
fn a_transfer_cut_anywhere_goes_on_where_a_chunk_ended() {
    let (data, file) = exported(9);
    let mut offsets = std::collections::BTreeSet::new();
    for cut in (0..file.len()).step_by(61).chain([file.len() - 1, file.len()]) {
        let disk = SimDisk::new(1);
        let snapshots = open(&disk);
        let mut importer = snapshots.importer("snapshot_9_2").unwrap();
        assert_eq!(importer.receive(&mut &file[..cut]).unwrap(), cut as u64);
        assert_eq!((importer.offset(), importer.is_complete()), (cut as u64, cut == file.len()));
        match importer.is_complete() {
            true => drop(importer),
            false => assert!(matches!(importer.publish(), Err(SnapshotError::Incomplete { .. }))),
        }
        assert_eq!((ids(&snapshots), snapshots.imports().unwrap().len()), (vec![], 1));
        // Also after the process ended: what is kept is found again.
        let snapshots = open(&disk);
        let mut importer = snapshots.importer("snapshot_9_2").unwrap();
        let offset = importer.offset();
        offsets.insert(offset);
        // The last piece is longer: it is filled up to whole blocks.
        assert!(cut as u64 - offset < 1500 || cut > file.len() - 5000, "{offset} of {cut}");
        assert_eq!(importer.is_complete(), cut == file.len());
        // Cut once more, and gone on with at once.
        let (mut more, mut rest) = file[offset as usize..].split_at((file.len() - offset as usize) / 2);
        importer.receive(&mut more).unwrap();
        importer.receive(&mut rest).unwrap();
        assert!(importer.is_complete());
        importer.publish().unwrap();
        assert!(snapshots.load_snapshot("snapshot_9_2").unwrap().1 == data);
        assert_eq!((disk.read_file("snapshot_9_2.zst").unwrap(), disk.file_names().len()), (file.clone(), 1));
    }
    assert!(offsets.len() > 10, "a boundary for each chunk: {offsets:?}");
}

#[test]
fn a_transfer_arrives_in_pieces_of_any_size() {
    let (data, file) = exported(9);
    for size in [1, 7, 40, 511, 4096, 100_000] {
        let disk = SimDisk::new(1);
        let snapshots = open(&disk);
        let mut importer = snapshots.importer("snapshot_9_2").unwrap();
        for piece in file.chunks(size) {
            assert_eq!(importer.write(piece).unwrap(), piece.len());
        }
        importer.flush().unwrap();
        assert_eq!((importer.offset(), importer.is_complete()), (file.len() as u64, true));
        importer.publish().unwrap();
        assert!(snapshots.load_snapshot("snapshot_9_2").unwrap().1 == data);
    }
}

/// A power failure keeps of the beginning whatever it likes; what verifies is gone on with.
#[test]
fn a_transfer_goes_on_after_a_power_failure() {
    let (data, file) = exported(9);
    let disk = SimDisk::new(1);
    let mut importer = open(&disk).importer("snapshot_9_2").unwrap();
    disk.start_recording();
    importer.receive(&mut &file[..]).unwrap();
    importer.publish().unwrap();
    let (mut kept, mut whole) = (std::collections::BTreeSet::new(), 0);
    for point in disk.take_recording() {
        for image in point.images(32, 1) {
            let snapshots = open(&image);
            if ids(&snapshots).is_empty() {
                let mut importer = snapshots.importer("snapshot_9_2").unwrap();
                let offset = importer.offset();
                kept.insert(offset);
                importer.receive(&mut &file[offset as usize..]).unwrap();
                importer.publish().unwrap();
            } else {
                whole += 1;
            }
            assert!(snapshots.load_snapshot("snapshot_9_2").unwrap().1 == data);
            assert_eq!(image.file_names().len(), 1, "{:?}", image.file_names());
        }
    }
    assert!(kept.len() > 5 && kept.contains(&0) && whole > 0, "{kept:?} {whole}");
}

#[test]
fn a_byte_changed_on_the_way_is_found_at_its_chunk_and_not_kept() {
    let (data, file) = exported(9);
    let mut found_at = std::collections::BTreeSet::new();
    for changed in (0..file.len()).step_by(13) {
        let disk = SimDisk::new(1);
        let snapshots = open(&disk);
        let mut importer = snapshots.importer("snapshot_9_2").unwrap();
        let mut tampered = file.clone();
        tampered[changed] ^= 0x10;
        let error = importer.receive(&mut &tampered[..]).unwrap_err();
        let SnapshotError::Corrupt { offset, .. } = error else { panic!("byte {changed}: {error}") };
        assert!(offset <= changed as u64, "byte {changed}: {error}");
        let kept = importer.offset();
        found_at.insert(kept);
        assert!(kept <= changed as u64 && !importer.is_complete(), "byte {changed}: {kept} bytes are kept");
        // The same again, right this time.
        importer.receive(&mut &file[kept as usize..]).unwrap();
        importer.publish().unwrap();
        assert!(snapshots.load_snapshot("snapshot_9_2").unwrap().1 == data);
    }
    assert!(found_at.len() > 10, "{found_at:?}");
}

#[test]
fn what_was_not_asked_for_is_refused_and_not_kept() {
    let (_, file) = exported(9);
    let (_, other) = exported(10);
    let disk = SimDisk::new(1);
    let snapshots = open(&disk);
    let mut importer = snapshots.importer("snapshot_10_2").unwrap();
    let error = importer.receive(&mut &file[..]).unwrap_err();
    assert!(matches!(error, SnapshotError::Misnamed { found, .. } if found.index == 9), "{error}");
    assert_eq!(importer.offset(), 0);
    importer.receive(&mut &other[..]).unwrap();
    importer.publish().unwrap();

    let mut importer = snapshots.of_machine("counter/1").importer("snapshot_9_2").unwrap();
    let error = importer.receive(&mut &file[..]).unwrap_err();
    assert!(matches!(&error, SnapshotError::OtherMachine { found, .. } if found == "kv/1"), "{error}");
    assert_eq!(importer.offset(), 0);
    for mut nonsense in [&[0; 5000][..], b"GET /".repeat(100).as_slice(), &other[2000..], &file[1..]] {
        let error = importer.receive(&mut nonsense).unwrap_err();
        assert!(matches!(error, SnapshotError::Corrupt { offset: 0, .. }) && importer.offset() == 0, "{error}");
    }
    importer.abort();

    // The end is the end; and half of one file and half of another are none.
    let mut importer = snapshots.importer("snapshot_9_2").unwrap();
    importer.receive(&mut &file[..3000]).unwrap();
    let (_, again) = exported(9);
    let error = importer.receive(&mut &again[importer.offset() as usize..]).unwrap_err();
    assert!(matches!(error, SnapshotError::Corrupt { .. }), "{error}");
    importer.receive(&mut &file[importer.offset() as usize..]).unwrap();
    let error = importer.receive(&mut &b"more"[..]).unwrap_err();
    assert!(error.to_string().contains("more follows the end"), "{error}");
    importer.publish().unwrap();
    assert_eq!(ids(&snapshots), ["snapshot_9_2", "snapshot_10_2"]);
}

#[test]
fn one_receives_and_others_are_told_so() {
    let disk = SimDisk::new(1);
    let (_, file) = exported(9);
    let (snapshots, other) = (open(&disk), open(&disk));
    let mut importer = snapshots.importer("snapshot_9_2").unwrap();
    importer.write_all(&file[..3000]).unwrap();
    assert!(matches!(other.importer("snapshot_9_2").map(drop), Err(SnapshotError::InUse { .. })));
    // Made here meanwhile: what was received is of no use any more.
    other.create_snapshot(9, 2, b"made here").unwrap();
    importer.write_all(&file[importer.offset() as usize..]).unwrap();
    assert!(matches!(importer.publish(), Err(SnapshotError::Exists { .. })));
    assert_eq!(
        (disk.file_names().len(), snapshots.load_snapshot("snapshot_9_2").unwrap().1),
        (1, b"made here".to_vec())
    );
}

#[test]
fn a_beginning_that_nobody_goes_on_with_goes_with_the_snapshots_of_its_time() {
    let disk = SimDisk::new(1);
    let (_, file) = exported(9);
    let snapshots = open(&disk);
    let begun = |id: &str| drop(snapshots.importer(id).unwrap());
    let mut importer = snapshots.importer("snapshot_9_2").unwrap();
    importer.receive(&mut &file[..3000]).unwrap();
    drop(importer);
    begun("snapshot_25_2");
    let held = snapshots.importer("snapshot_8_2").unwrap();
    for index in [10, 20, 30] {
        snapshots.create_snapshot(index, 2, b"state").unwrap();
    }
    snapshots.compact_snapshots(2).unwrap();
    let left: Vec<u64> = snapshots.imports().unwrap().iter().map(|id| id.index).collect();
    assert_eq!(left, [8, 25], "older than all that is kept, and nobody at it");
    held.abort();
    snapshots.importer("snapshot_25_2").unwrap().abort();
    assert!(snapshots.imports().unwrap().is_empty());
}

#[test]
fn an_export_goes_on_from_any_byte_and_says_where_there_is_none() {
    let (_, file) = exported(9);
    let disk = SimDisk::new(1);
    disk.write_file("snapshot_9_2.zst", &file).unwrap();
    let snapshots = open(&disk);
    for from in [0, 1, 4095, 4096, file.len() as u64 - 1, file.len() as u64] {
        let mut rest = Vec::new();
        assert_eq!(snapshots.export("snapshot_9_2", from, &mut rest).unwrap(), file.len() as u64 - from);
        assert!(rest == file[from as usize..]);
    }
    let error = snapshots.export("snapshot_9_2", file.len() as u64 + 1, &mut std::io::sink()).unwrap_err();
    assert!(matches!(error, SnapshotError::Config(_)), "{error}");
    let error = snapshots.export("snapshot_9_2", 0, &mut &mut [0; 100][..]).unwrap_err();
    assert!(matches!(error, SnapshotError::Io { .. }), "a sink that is full: {error}");
}

#[test]
fn what_another_copy_sends_does_not_continue_what_arrived_and_may_be_begun_anew() {
    let (disks, data) = ([SimDisk::new(1), SimDisk::new(2), SimDisk::new(3)], vec![7; 100_000]);
    let [one, other, here] = disks.each_ref().map(open);
    let files = [&one, &other].map(|snapshots| {
        snapshots.create_snapshot(9, 2, &data).unwrap();
        let mut file = Vec::new();
        snapshots.export("snapshot_9_2", 0, &mut file).unwrap();
        file
    });
    let mut importer = here.importer("snapshot_9_2").unwrap();
    importer.receive(&mut &files[0][..2000]).unwrap();
    drop(importer);
    let mut importer = here.importer("snapshot_9_2").unwrap();
    let offset = importer.offset() as usize;
    let refused = importer.receive(&mut &files[1][offset..]).unwrap_err();
    assert!(matches!(refused, SnapshotError::OtherCopy { offset: from, .. } if from == offset as u64), "{refused}");
    importer.abort();
    let mut importer = here.importer("snapshot_9_2").unwrap();
    assert_eq!(importer.offset(), 0);
    importer.receive(&mut &files[1][..]).unwrap();
    importer.publish().unwrap();
    assert_eq!(here.load_snapshot("snapshot_9_2").unwrap().1, data);
}
