//! The one test suite of all disks: what the traits promise, as far as it shows without pulling the plug.
//!
//! [`suite`] expects an empty directory and leaves it empty. It knows nothing of the disk but the traits.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::{Access, AlignedBuf, Completion, Disk, DiskFile, Driver, Operation, PollWait};

/// Longer than anything takes on a disk that works, shorter than anybody's patience.
const LONG: Duration = Duration::from_secs(60);
const DEPTH: usize = 8;
const FILE_BYTES: u64 = 1 << 20;
const DURABLE: Access = Access::Segment { durable: true };

/// Runs every test on a disk.
pub(crate) fn suite(disk: &dyn Disk) {
    files_are_made_written_read_and_cut_to_size(disk);
    names_are_listed_renamed_and_removed(disk);
    a_lock_excludes_other_open_files_until_it_is_closed(disk);
    a_driver_holds_the_lock_of_an_attached_file(disk);
    writes_in_flight_complete_exactly_once_and_give_their_buffers_back(disk);
    a_poll_that_may_not_wait_still_hands_over_and_collects(disk);
    a_sync_completes_without_a_buffer(disk);
    an_operation_that_cannot_be_done_is_completed_with_an_error(disk);
    an_alarm_ends_a_wait_and_a_wait_ends_by_itself(disk);
    a_driver_that_is_dropped_finishes_what_is_in_flight(disk);
    assert!(disk.is_in_place());
    assert_eq!(disk.list().unwrap(), Vec::<String>::new());
}

fn block(disk: &dyn Disk) -> usize {
    disk.physical_block_bytes() as usize
}

/// A buffer whose every block says which block of which write it is.
fn pattern(bytes: usize, seed: u8) -> AlignedBuf {
    let mut buffer = AlignedBuf::zeroed(bytes);
    buffer[..bytes].iter_mut().enumerate().for_each(|(n, byte)| *byte = seed ^ (n / 512) as u8 ^ (n % 251) as u8);
    buffer
}

fn read(disk: &dyn Disk, name: &str, offset: u64, bytes: usize) -> AlignedBuf {
    let mut buffer = AlignedBuf::zeroed(bytes);
    let file = disk.open(name, Access::ReadDirect).unwrap();
    assert_eq!(file.read_at(&mut buffer[..bytes], offset).unwrap(), bytes);
    buffer
}

/// A segment file of [`FILE_BYTES`] zeros, open for durable writes.
fn segment(disk: &dyn Disk, name: &str) -> Arc<dyn DiskFile> {
    let file = disk.open(name, Access::CreateSegment).unwrap();
    file.allocate(FILE_BYTES).unwrap();
    file.write_at(&AlignedBuf::zeroed(FILE_BYTES as usize), 0).unwrap();
    file.sync().unwrap();
    disk.sync_dir().unwrap();
    disk.open(name, DURABLE).unwrap()
}

/// A driver with one segment attached as file 7.
fn driver(disk: &dyn Disk, name: &str) -> Box<dyn Driver> {
    let mut driver = disk.driver(DEPTH).unwrap();
    driver.attach(7, segment(disk, name)).unwrap();
    driver
}

fn write(token: u64, offset: u64, buffer: AlignedBuf) -> Operation {
    Operation::Write { token, file: 7, offset, bytes: buffer.len(), buffer }
}

fn drain(driver: &mut dyn Driver) -> Vec<Completion> {
    let (mut done, start) = (Vec::new(), Instant::now());
    while driver.in_flight() > 0 {
        driver.poll(PollWait::AtMost(LONG), &mut done);
        assert!(start.elapsed() < LONG, "{} operations never completed", driver.in_flight());
    }
    done
}

fn files_are_made_written_read_and_cut_to_size(disk: &dyn Disk) {
    let block = block(disk);
    let file = disk.open("a.seg", Access::CreateSegment).unwrap();
    assert_eq!(file.size().unwrap(), 0);
    file.allocate(4 * block as u64).unwrap();
    assert_eq!(file.size().unwrap(), 4 * block as u64);
    file.write_at(&pattern(2 * block, 3)[..2 * block], block as u64).unwrap();
    file.sync().unwrap();
    let all = read(disk, "a.seg", 0, 4 * block);
    assert!(all[..block].iter().chain(&all[3 * block..4 * block]).all(|byte| *byte == 0));
    assert!(all[block..3 * block] == pattern(2 * block, 3)[..2 * block]);

    let mut past = AlignedBuf::zeroed(4 * block);
    assert_eq!(file.read_at(&mut past[..4 * block], 3 * block as u64).unwrap(), block, "short at the end");
    assert_eq!(file.read_at(&mut past[..block], 4 * block as u64).unwrap(), 0, "nothing at the end");
    assert_eq!(file.read_at(&mut past[..block], 64 * block as u64).unwrap(), 0, "nothing beyond it");

    let small = disk.open("a.idx", Access::Create).unwrap();
    small.write_at(b"some bytes", 5).unwrap();
    let mut bytes = [9; 32];
    assert_eq!(disk.open("a.idx", Access::Read).unwrap().read_at(&mut bytes, 5).unwrap(), 10);
    assert_eq!(&bytes[..10], b"some bytes");
    let mut direct = AlignedBuf::zeroed(block);
    assert_eq!(disk.open("a.idx", Access::ReadDirect).unwrap().read_at(&mut direct[..block], 0).unwrap(), 15);
    drop(disk.open("a.idx", Access::Lock).unwrap());
    assert_eq!(small.size().unwrap(), 15, "the lock file is never emptied");
    drop(disk.open("a.idx", Access::Create).unwrap());
    assert_eq!(small.size().unwrap(), 0, "Create empties");
    drop(disk.open("a.seg", Access::CreateSegment).unwrap());
    assert_eq!(file.size().unwrap(), 0, "CreateSegment empties");
    disk.remove("a.seg").unwrap();
    disk.remove("a.idx").unwrap();
}

fn names_are_listed_renamed_and_removed(disk: &dyn Disk) {
    for name in ["one", "two", "three"] {
        drop(disk.open(name, Access::Create).unwrap());
    }
    let kept = disk.open("two", Access::Lock).unwrap();
    kept.write_at(b"two", 0).unwrap();
    disk.rename("two", "three").unwrap();
    disk.sync_dir().unwrap();
    let names: HashSet<String> = disk.list().unwrap().into_iter().collect();
    assert_eq!(names, HashSet::from(["one".to_owned(), "three".to_owned()]));
    assert_eq!(disk.open("three", Access::Read).unwrap().size().unwrap(), 3, "the new name had a file before");
    disk.remove("three").unwrap();
    assert_eq!(kept.size().unwrap(), 3, "an open file outlives its name");
    for access in [Access::Read, Access::ReadDirect, DURABLE] {
        let error = disk.open("three", access).err().expect("the name is gone");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
    assert_eq!(disk.remove("three").unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(disk.rename("three", "one").unwrap_err().kind(), io::ErrorKind::NotFound);
    disk.remove("one").unwrap();
}

fn a_lock_excludes_other_open_files_until_it_is_closed(disk: &dyn Disk) {
    let (first, second) = (disk.open("lock", Access::Lock).unwrap(), disk.open("lock", Access::Lock).unwrap());
    assert!(first.try_lock().unwrap());
    assert!(first.try_lock().unwrap(), "the holder may ask again");
    assert!(!second.try_lock().unwrap());
    drop(first);
    assert!(second.try_lock().unwrap());
    disk.remove("lock").unwrap();
}

fn a_driver_holds_the_lock_of_an_attached_file(disk: &dyn Disk) {
    let (file, other) = (segment(disk, "held"), disk.open("held", DURABLE).unwrap());
    let mut driver = disk.driver(DEPTH).unwrap();
    assert!(file.try_lock().unwrap());
    driver.attach(7, file).unwrap();
    assert!(!other.try_lock().unwrap(), "the driver has the open file");
    driver.detach(7);
    assert!(other.try_lock().unwrap());
    disk.remove("held").unwrap();
}

fn writes_in_flight_complete_exactly_once_and_give_their_buffers_back(disk: &dyn Disk) {
    let (block, mut driver) = (block(disk), driver(disk, "flight"));
    for round in 0..20u64 {
        let mut expected = HashSet::new();
        for n in 0..DEPTH as u64 {
            let token = round * 100 + n;
            driver.submit(write(token, n * 2 * block as u64, pattern(2 * block, token as u8)));
            expected.insert(token);
        }
        assert_eq!(driver.in_flight(), DEPTH);
        for completion in drain(&mut *driver) {
            completion.result.unwrap();
            assert!(expected.remove(&completion.token), "{} completed twice or was never submitted", completion.token);
            let buffer = completion.buffer.expect("a write gives its buffer back");
            assert!(buffer[..] == pattern(2 * block, completion.token as u8)[..]);
        }
        assert!(expected.is_empty(), "{expected:?} never completed");
        for n in 0..DEPTH as u64 {
            let found = read(disk, "flight", n * 2 * block as u64, 2 * block);
            assert!(found[..] == pattern(2 * block, (round * 100 + n) as u8)[..], "round {round}, write {n}");
        }
    }
    disk.remove("flight").unwrap();
}

fn a_poll_that_may_not_wait_still_hands_over_and_collects(disk: &dyn Disk) {
    let (block, mut driver, mut done) = (block(disk), driver(disk, "no-wait"), Vec::new());
    driver.poll(PollWait::No, &mut done);
    assert!(done.is_empty());
    driver.submit(write(1, 0, pattern(block, 9)));
    let start = Instant::now();
    while driver.in_flight() > 0 {
        driver.poll(PollWait::No, &mut done);
        assert!(start.elapsed() < LONG, "never handed to the kernel, or never collected");
    }
    assert_eq!((done.len(), done[0].token), (1, 1));
    assert!(read(disk, "no-wait", 0, block)[..block] == pattern(block, 9)[..block]);
    disk.remove("no-wait").unwrap();
}

fn a_sync_completes_without_a_buffer(disk: &dyn Disk) {
    let (block, mut driver) = (block(disk), driver(disk, "sync"));
    driver.submit(write(1, 0, pattern(block, 1)));
    assert_eq!(drain(&mut *driver).len(), 1);
    driver.submit(Operation::Sync { token: 2, file: 7 });
    let done = drain(&mut *driver);
    assert_eq!((done.len(), done[0].token), (1, 2));
    assert!(done[0].result.is_ok() && done[0].buffer.is_none());
    disk.remove("sync").unwrap();
}

fn an_operation_that_cannot_be_done_is_completed_with_an_error(disk: &dyn Disk) {
    let (block, mut driver) = (block(disk), driver(disk, "refused"));
    driver.attach(8, disk.open("refused", Access::Read).unwrap()).unwrap();
    driver.detach(7);
    let operation = |token, file| {
        let buffer = pattern(block, 1);
        Operation::Write { token, file, offset: 0, bytes: buffer.len(), buffer }
    };
    driver.submit(operation(1, 7));
    driver.submit(operation(2, 8));
    driver.submit(Operation::Sync { token: 3, file: 7 });
    let mut done = drain(&mut *driver);
    done.sort_by_key(|completion| completion.token);
    assert_eq!(done.iter().map(|one| one.token).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(done.iter().all(|one| one.result.is_err()));
    assert!(done[0].buffer.is_some() && done[1].buffer.is_some());
    assert!(read(disk, "refused", 0, block)[..block].iter().all(|byte| *byte == 0));
    disk.remove("refused").unwrap();
}

fn an_alarm_ends_a_wait_and_a_wait_ends_by_itself(disk: &dyn Disk) {
    let (mut driver, mut done) = (disk.driver(DEPTH).unwrap(), Vec::new());
    let alarm = driver.alarm();
    let mut wait = |limit| {
        let start = Instant::now();
        driver.poll(PollWait::AtMost(limit), &mut done);
        start.elapsed()
    };
    alarm.ring();
    assert!(wait(LONG) < LONG / 2, "an alarm before the wait ends it");
    let short = Duration::from_millis(30);
    assert!(wait(short) >= short, "an alarm ends one wait only");
    let there = Arc::clone(&alarm);
    let ringer = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        there.ring();
    });
    assert!(wait(LONG) < LONG / 2, "an alarm during the wait ends it");
    ringer.join().unwrap();
    drop(driver);
    alarm.ring();
    assert!(done.is_empty());
}

fn a_driver_that_is_dropped_finishes_what_is_in_flight(disk: &dyn Disk) {
    let (block, mut driver) = (block(disk), driver(disk, "drop"));
    for n in 0..DEPTH as u64 {
        driver.submit(write(n, n * 4 * block as u64, pattern(4 * block, n as u8)));
    }
    driver.poll(PollWait::No, &mut Vec::new());
    drop(driver);
    for n in 0..DEPTH as u64 {
        assert!(read(disk, "drop", n * 4 * block as u64, 4 * block)[..] == pattern(4 * block, n as u8)[..]);
    }
    disk.remove("drop").unwrap();
}

/// The real disk: the suite with both drivers, and what only a real directory can show.
mod real {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    use super::*;
    use crate::config::IoChoice;
    use crate::disk::{IoMode, RealDisk};
    use crate::error::Error;

    /// A directory on the disk that tests are run on: `RINGWAL_TEST_DIR` or the system's temporary directory.
    fn directory() -> tempfile::TempDir {
        match std::env::var_os("RINGWAL_TEST_DIR") {
            Some(root) => tempfile::tempdir_in(root).unwrap(),
            None => tempfile::tempdir().unwrap(),
        }
    }

    /// A directory in memory, where there is one: a file system that takes no non-blocking writes.
    fn memory_directory() -> Option<tempfile::TempDir> {
        let root = Path::new("/dev/shm");
        root.is_dir().then(|| tempfile::tempdir_in(root).unwrap())
    }

    /// Whether the kernel lets these tests use io_uring at all.
    fn has_uring() -> bool {
        tokio_uring::uring_builder().build(8).is_ok()
    }

    #[test]
    fn the_suite_passes_with_system_calls() {
        for directory in [Some(directory()), memory_directory()].into_iter().flatten() {
            let disk = RealDisk::open(directory.path(), IoChoice::Syscall).unwrap();
            assert!(matches!(disk.io_mode(), IoMode::Syscall { .. }));
            suite(&disk);
        }
    }

    #[test]
    fn the_suite_passes_with_io_uring() {
        if !has_uring() {
            return;
        }
        for directory in [Some(directory()), memory_directory()].into_iter().flatten() {
            let disk = RealDisk::open(directory.path(), IoChoice::Uring).unwrap();
            assert_eq!(disk.io_mode(), IoMode::Uring);
            suite(&disk);
        }
    }

    #[test]
    fn the_default_choice_is_io_uring_on_a_disk_and_system_calls_in_memory() {
        let directory = directory();
        let disk = RealDisk::open(directory.path(), IoChoice::Auto).unwrap();
        if let IoMode::Syscall { reason } = disk.io_mode() {
            assert!(!has_uring() || reason.starts_with("the file system refuses"), "{reason}");
        }
        assert_eq!(disk.list().unwrap(), Vec::<String>::new(), "the probe leaves nothing behind");
        if let Some(memory) = memory_directory() {
            let IoMode::Syscall { reason } = RealDisk::open(memory.path(), IoChoice::Auto).unwrap().io_mode() else {
                panic!("io_uring brings nothing in memory");
            };
            assert!(reason.starts_with("the file system refuses"), "{reason}");
        }
    }

    #[test]
    fn a_directory_that_was_removed_or_replaced_is_noticed() {
        let outer = directory();
        let path = outer.path().join("log");
        fs::create_dir(&path).unwrap();
        let disk = RealDisk::open(&path, IoChoice::Syscall).unwrap();
        assert!(disk.is_in_place());
        fs::rename(&path, outer.path().join("moved")).unwrap();
        assert!(!disk.is_in_place(), "removed");
        fs::create_dir(&path).unwrap();
        assert!(!disk.is_in_place(), "replaced");
        drop(disk.open("file", Access::Create).unwrap());
        assert!(fs::read_dir(&path).unwrap().next().is_none(), "the directory in its place is not written to");
        assert!(outer.path().join("moved/file").exists());
    }

    #[test]
    fn a_durable_write_syncs_its_data_and_not_the_timestamps() {
        let directory = directory();
        let disk = RealDisk::open(directory.path(), IoChoice::Syscall).unwrap();
        let _made = disk.open("a", Access::CreateSegment).unwrap();
        for durable in [true, false] {
            let file = disk.open("a", Access::Segment { durable }).unwrap();
            let flags = rustix::fs::fcntl_getfl(file.descriptor().unwrap()).unwrap().bits() as i32;
            assert_eq!(flags & libc::O_SYNC, if durable { libc::O_DSYNC } else { 0 });
        }
    }

    #[test]
    fn a_read_only_disk_changes_nothing() {
        let directory = directory();
        fs::write(directory.path().join("file"), vec![7; 5000]).unwrap();
        fs::create_dir(directory.path().join("snapshots")).unwrap();
        let before = fs::metadata(directory.path()).unwrap().modified().unwrap();
        let disk = RealDisk::open_read_only(directory.path()).unwrap();
        for access in [DURABLE, Access::CreateSegment, Access::Create, Access::Lock] {
            let error = disk.open("file", access).err().expect("a read-only disk opens nothing for writing");
            assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
        }
        assert!(disk.rename("file", "other").is_err() && disk.remove("file").is_err() && disk.driver(1).is_err());
        let mut buffer = AlignedBuf::zeroed(8192);
        assert_eq!(disk.open("file", Access::ReadDirect).unwrap().read_at(&mut buffer, 0).unwrap(), 5000);
        assert_eq!(disk.open("file", Access::Read).unwrap().read_at(&mut buffer, 4999).unwrap(), 1);
        let names: HashSet<String> = disk.list().unwrap().into_iter().collect();
        assert_eq!(names, HashSet::from(["file".to_owned(), "snapshots/".to_owned()]));
        assert_eq!(fs::metadata(directory.path()).unwrap().modified().unwrap(), before);
    }

    #[test]
    fn nothing_but_a_regular_file_is_opened() {
        let directory = directory();
        let disk = RealDisk::open(directory.path(), IoChoice::Syscall).unwrap();
        symlink("/etc/hostname", directory.path().join("link")).unwrap();
        fs::create_dir(directory.path().join("sub")).unwrap();
        let pipe = directory.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
        for name in ["link", "sub", "pipe"] {
            for access in [Access::Read, Access::ReadDirect, DURABLE, Access::Create, Access::Lock] {
                assert!(disk.open(name, access).is_err(), "{name} was opened for {access:?}");
            }
        }
    }

    #[test]
    fn a_directory_that_cannot_be_written_or_is_none_is_a_clear_error() {
        let directory = directory();
        let missing = RealDisk::open(directory.path().join("missing"), IoChoice::Auto).unwrap_err();
        assert!(matches!(missing, Error::Io { action: "open the directory", .. }), "{missing}");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o500)).unwrap();
        // The superuser may write anyway; then there is nothing to see here.
        if let Err(error) = RealDisk::open(directory.path(), IoChoice::Auto) {
            let Error::Io { action: "write to the directory", source, .. } = error else { panic!("{error}") };
            assert_eq!(source.kind(), io::ErrorKind::PermissionDenied);
        }
        // The kernel's own file systems cannot be written by anybody.
        if Path::new("/proc/self").is_dir() {
            let error = RealDisk::open("/proc/self", IoChoice::Auto).unwrap_err();
            assert!(matches!(error, Error::Io { action: "write to the directory", .. }), "{error}");
        }
    }

    #[test]
    fn the_alarm_ends_a_wait_for_writes_too() {
        if !has_uring() {
            return;
        }
        let directory = directory();
        let disk = RealDisk::open(directory.path(), IoChoice::Uring).unwrap();
        let mut driver = driver(&disk, "busy");
        let (alarm, mut done) = (driver.alarm(), Vec::new());
        for round in 0..200 {
            driver.submit(write(round, 0, pattern(4096, round as u8)));
            alarm.ring();
            driver.poll(PollWait::AtMost(LONG), &mut done);
            while driver.in_flight() == DEPTH {
                driver.poll(PollWait::AtMost(LONG), &mut done);
            }
        }
        done.extend(drain(&mut *driver));
        assert_eq!(done.iter().map(|one| one.token).collect::<HashSet<_>>().len(), 200);
        assert!(done.len() == 200 && done.iter().all(|one| one.result.is_ok()));
    }
}
