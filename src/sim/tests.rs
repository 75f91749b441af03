//! The laws of the simulated disk, one test each, named for the law.
//!
//! They use the disk only through its public face, as the log and the explorer do.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::disk::{Access, AlignedBuf, Completion, Disk, DiskFile, Driver, Operation, PollWait};

pub(super) const BLOCK: usize = 4096;
pub(super) const DURABLE: Access = Access::Segment { durable: true };
pub(super) const LOOSE: Access = Access::Segment { durable: false };

/// An aligned buffer of one block filled with one byte.
pub(super) fn block(byte: u8) -> AlignedBuf {
    let mut buffer = AlignedBuf::zeroed(BLOCK);
    buffer.fill(byte);
    buffer
}

/// A disk with a durable file `a` of four zero blocks.
pub(super) fn disk_with_a(disk: SimDisk) -> SimDisk {
    disk.write_file("a", &[0; 4 * BLOCK]).unwrap();
    disk
}

pub(super) fn write_op(token: u64, offset: u64, byte: u8) -> Operation {
    Operation::Write { token, file: 1, offset, buffer: block(byte), bytes: BLOCK }
}

/// A driver with the file `a` attached as file 1.
pub(super) fn driver_on_a(disk: &SimDisk, access: Access) -> (Box<dyn Driver>, Arc<dyn DiskFile>) {
    let file = disk.open("a", access).unwrap();
    let mut driver = disk.driver(4).unwrap();
    driver.attach(1, file.clone()).unwrap();
    (driver, file)
}

pub(super) fn poll(driver: &mut dyn Driver) -> Vec<Completion> {
    let mut done = Vec::new();
    driver.poll(PollWait::No, &mut done);
    done
}

/// Which units of the block at `offset` of file `a` hold `byte`, as a string of `x` and `.`.
pub(super) fn units(disk: &SimDisk, offset: usize, byte: u8) -> String {
    let content = disk.contents("a").unwrap();
    let unit = |unit: &[u8]| if unit.iter().all(|&it| it == byte) { 'x' } else { '.' };
    content[offset..offset + BLOCK].chunks(UNIT_BYTES).map(unit).collect()
}

pub(super) fn read(file: &dyn DiskFile, bytes: usize) -> Vec<u8> {
    let mut buffer = AlignedBuf::zeroed(bytes);
    let read = file.read_at(&mut buffer[..bytes], 0).unwrap();
    buffer[..read].to_vec()
}

#[test]
fn an_unsynced_write_reads_back_and_may_be_lost_kept_or_torn() {
    let disk = disk_with_a(SimDisk::manual(1));
    let file = disk.open("a", LOOSE).unwrap();
    file.write_at(&block(7), 0).unwrap();
    assert_eq!(units(&disk, 0, 7), "xxxxxxxx");
    let point = disk.crash_point();
    assert_eq!(point.loose_ends().len(), 1);
    let outcomes: Vec<String> = point.images(100, 3).map(|image| units(&image, 0, 7)).collect();
    assert_eq!(outcomes.len(), 5);
    for expected in ["........", "x.......", ".xxxxxxx", "xxxxxxxx"] {
        assert!(outcomes.iter().any(|outcome| outcome == expected), "{expected} is not among {outcomes:?}");
    }
    assert_eq!(units(&disk.crash(|_| Class::OneMissing(2)), 0, 7), "xx.xxxxx");
    let mask = vec![false, true, false, true];
    assert_eq!(units(&disk.crash(|_| Class::Units(mask.clone())), 0, 7), ".x.x....");
}

#[test]
fn a_sync_covers_what_completed_before_it_began_and_nothing_else() {
    let disk = disk_with_a(SimDisk::manual(1));
    let (mut driver, file) = driver_on_a(&disk, LOOSE);
    for (token, byte) in [(1, 1), (2, 2), (3, 3)] {
        driver.submit(write_op(token, (token - 1) * BLOCK as u64, byte));
    }
    let ids: Vec<OpId> = disk.in_flight().iter().map(|flight| flight.id).collect();
    disk.complete(ids[0]);
    driver.submit(Operation::Sync { token: 9, file: 1 });
    let sync = disk.in_flight().iter().find(|flight| flight.is_sync).unwrap().id;
    disk.complete(ids[1]);
    assert_eq!(disk.crash_point().loose_ends().len(), 3, "a sync in flight promises nothing");
    disk.complete(sync);
    let lost = disk.crash_point().lose_all();
    assert_eq!((units(&lost, 0, 1), units(&lost, BLOCK, 2)), ("xxxxxxxx".into(), "........".into()));
    file.sync().unwrap();
    let lost = disk.crash_point().lose_all();
    assert_eq!((units(&lost, BLOCK, 2), units(&lost, 2 * BLOCK, 3)), ("xxxxxxxx".into(), "........".into()));
}

#[test]
fn a_durable_write_is_any_subset_in_flight_and_whole_once_complete() {
    let disk = disk_with_a(SimDisk::manual(1));
    let (mut driver, file) = driver_on_a(&disk, DURABLE);
    driver.submit(write_op(1, 0, 7));
    assert_eq!(read(&*file, BLOCK), vec![0; BLOCK], "a write in flight is not visible");
    assert!(poll(&mut *driver).is_empty(), "nothing completes by itself in manual mode");
    let flight = disk.in_flight().remove(0);
    assert_eq!((flight.token, flight.file, flight.offset, flight.bytes), (1, 1, 0, BLOCK));
    assert_eq!(disk.crash_images().count(), 5);
    assert_eq!(units(&disk.crash(|_| Class::Tail), 0, 7), ".xxxxxxx");

    assert!(disk.complete(flight.id) && !disk.complete(flight.id));
    assert_eq!(disk.crash_point().loose_ends(), []);
    assert_eq!(units(&disk.crash_point().lose_all(), 0, 7), "xxxxxxxx");
    let done = poll(&mut *driver);
    assert_eq!((done.len(), done[0].token, driver.in_flight()), (1, 1, 0));
    assert!(done[0].result.is_ok() && done[0].buffer.as_ref().is_some_and(|buffer| buffer[0] == 7));
    assert!(poll(&mut *driver).is_empty(), "a completion is reported once");
}

#[test]
fn writes_in_flight_complete_and_survive_independently_of_their_order() {
    let disk = disk_with_a(SimDisk::manual(1));
    let (mut driver, _file) = driver_on_a(&disk, DURABLE);
    for token in 1..=3 {
        driver.submit(write_op(token, (token - 1) * BLOCK as u64, token as u8));
    }
    assert_eq!(disk.crash_point().combinations(), 125);
    disk.complete(disk.in_flight()[2].id);
    let lost = disk.crash_point().lose_all();
    assert_eq!((units(&lost, 0, 1), units(&lost, 2 * BLOCK, 3)), ("........".into(), "xxxxxxxx".into()));
    assert_eq!(poll(&mut *driver)[0].token, 3);
    let mut seen: Vec<(String, String)> = Vec::new();
    for image in disk.crash_images() {
        let outcome = (units(&image, 0, 1), units(&image, BLOCK, 2));
        assert!(!seen.contains(&outcome), "each combination comes once");
        seen.push(outcome);
    }
    assert_eq!(seen.len(), 25);
}

#[test]
fn overlapping_loose_writes_apply_in_order_and_a_durable_one_lies_on_top() {
    let disk = disk_with_a(SimDisk::manual(1));
    let loose = disk.open("a", LOOSE).unwrap();
    loose.write_at(&block(1), 0).unwrap();
    loose.write_at(&block(2), 0).unwrap();
    assert_eq!(units(&disk.crash_point().keep_all(), 0, 2), "xxxxxxxx");
    let first_only = disk.crash_point().image(&[Class::Whole, Class::Head]);
    assert_eq!((units(&first_only, 0, 1), units(&first_only, 0, 2)), (".xxxxxxx".into(), "x.......".into()));

    let durable = disk.open("a", DURABLE).unwrap();
    durable.write_at(&block(3)[..UNIT_BYTES], 512).unwrap();
    for image in disk.crash_images() {
        assert_eq!(units(&image, 0, 3), ".x......");
    }
    durable.write_at(&block(4), 0).unwrap();
    assert_eq!(disk.crash_point().loose_ends(), [], "what is buried is no longer at stake");
    assert_eq!(units(&disk.crash_point().lose_all(), 0, 4), "xxxxxxxx");
}

#[test]
fn size_and_bytes_persist_independently() {
    let disk = SimDisk::manual(1);
    disk.write_file("a", b"").unwrap();
    let file = disk.open("a", Access::CreateSegment).unwrap();
    file.allocate(4 * BLOCK as u64).unwrap();
    assert_eq!(file.size().unwrap(), 4 * BLOCK as u64);
    assert_eq!(read(&*file, BLOCK), vec![0; BLOCK], "what was never written reads as zeros");
    file.write_at(&block(5), 0).unwrap();
    let sizes: Vec<usize> = disk.crash_images().map(|image| image.contents("a").unwrap().len()).collect();
    assert!(sizes.contains(&0) && sizes.contains(&(4 * BLOCK)));
    let size_only = disk.crash(|end| match end.what {
        Loose::Grown { .. } => Class::Whole,
        _ => Class::Absent,
    });
    assert_eq!(size_only.read_file("a").unwrap(), vec![0; 4 * BLOCK]);
    file.sync().unwrap();
    assert_eq!(disk.crash_point().loose_ends(), []);
}

#[test]
fn a_durable_write_makes_the_size_durable_that_shows_it() {
    let disk = SimDisk::manual(1);
    disk.write_file("a", b"").unwrap();
    let file = disk.open("a", DURABLE).unwrap();
    file.allocate(4 * BLOCK as u64).unwrap();
    file.write_at(&block(5), BLOCK as u64).unwrap();
    let lost = disk.crash_point().lose_all();
    assert_eq!(lost.contents("a").unwrap().len(), 2 * BLOCK);
    assert_eq!(units(&lost, BLOCK, 5), "xxxxxxxx");
    file.write_at(&block(0), 2 * BLOCK as u64).unwrap();
    assert_eq!(disk.crash_point().lose_all().contents("a").unwrap().len(), 3 * BLOCK, "zeros count as bytes, too");
}

#[test]
fn an_emptied_file_may_come_back_full() {
    let disk = SimDisk::manual(1);
    disk.write_file("a", b"old content").unwrap();
    let file = disk.open("a", Access::Create).unwrap();
    assert_eq!(disk.crash_point().lose_all().read_file("a").unwrap(), b"old content");
    assert_eq!(disk.crash_point().keep_all().read_file("a").unwrap(), b"");
    file.write_at(b"new", 0).unwrap();
    file.sync().unwrap();
    assert_eq!(disk.crash_point().lose_all().read_file("a").unwrap(), b"new");
}

#[test]
fn zeros_over_fresh_zeros_are_not_at_stake() {
    let disk = disk_with_a(SimDisk::manual(1));
    let file = disk.open("a", LOOSE).unwrap();
    file.write_at(&block(0), 0).unwrap();
    assert_eq!(disk.crash_point().loose_ends(), []);
    file.write_at(&block(1), 0).unwrap();
    file.write_at(&block(0), 0).unwrap();
    assert_eq!(disk.crash_point().loose_ends().len(), 2, "over loose bytes they are");
    assert_eq!(units(&disk.crash_point().image(&[Class::Whole, Class::Absent]), 0, 1), "xxxxxxxx");
}

#[test]
fn a_rename_is_atomic_and_may_be_undone_until_the_directory_is_synced() {
    let disk = SimDisk::manual(1);
    disk.write_file("old", b"x").unwrap();
    disk.write_file("new", b"y").unwrap();
    disk.rename("old", "new").unwrap();
    let names = |disk: &SimDisk| disk.list().unwrap().join(" ");
    let mut outcomes: Vec<String> = disk.crash_images().map(|image| names(&image)).collect();
    outcomes.sort();
    assert_eq!(outcomes, ["new", "new old"]);
    assert_eq!(disk.crash_point().keep_all().read_file("new").unwrap(), b"x");
    assert_eq!(disk.crash_point().lose_all().read_file("new").unwrap(), b"y");
    disk.sync_dir().unwrap();
    assert_eq!(names(&disk.crash_point().lose_all()), "new");
}

#[test]
fn any_subset_of_directory_operations_survives() {
    let disk = SimDisk::manual(1);
    disk.write_file("keep", b"k").unwrap();
    let file = disk.open("tmp", Access::Create).unwrap();
    file.write_at(b"t", 0).unwrap();
    file.sync().unwrap();
    disk.rename("tmp", "segment").unwrap();
    disk.remove("keep").unwrap();
    let mut outcomes: Vec<String> = disk.crash_images().map(|image| image.list().unwrap().join(" ")).collect();
    outcomes.sort();
    outcomes.dedup();
    assert_eq!(outcomes, ["", "keep", "keep segment", "keep tmp", "segment", "tmp"]);
}

#[test]
fn a_rename_moves_the_file_it_moved_or_nothing() {
    let disk = SimDisk::manual(1);
    disk.write_file("tmp", b"old").unwrap();
    disk.remove("tmp").unwrap();
    let file = disk.open("tmp", Access::Create).unwrap();
    file.write_at(b"new", 0).unwrap();
    file.sync().unwrap();
    disk.rename("tmp", "segment").unwrap();
    for image in disk.crash_images() {
        assert!(image.read_file("segment").is_err() || image.read_file("segment").unwrap() == b"new");
    }
}

#[test]
fn a_removed_file_lives_while_it_is_open() {
    let disk = disk_with_a(SimDisk::manual(1));
    let file = disk.open("a", DURABLE).unwrap();
    file.write_at(&block(7), 0).unwrap();
    disk.remove("a").unwrap();
    disk.sync_dir().unwrap();
    assert!(disk.list().unwrap().is_empty());
    let _other = disk.open("b", Access::Create).unwrap();
    assert_eq!(read(&*file, BLOCK), vec![7; BLOCK], "a new file does not take its place");
    assert_eq!(disk.used_bytes(), 4 * BLOCK as u64);
    drop(file);
    assert_eq!(disk.used_bytes(), 0);
    assert_eq!(disk.open("a", Access::Read).err().unwrap().kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_kill_loses_nothing_that_completed_and_leaves_it_at_the_mercy_of_a_power_failure() {
    let disk = disk_with_a(SimDisk::manual(1));
    let (mut driver, file) = driver_on_a(&disk, LOOSE);
    file.write_at(&block(1), 0).unwrap();
    let _new = disk.open("b", Access::Create).unwrap();
    driver.submit(write_op(1, BLOCK as u64, 2));
    let killed = disk.kill(|_| Landing::Units(Class::Head));
    assert_eq!((units(&killed, 0, 1), units(&killed, BLOCK, 2)), ("xxxxxxxx".into(), "x.......".into()));
    assert_eq!(killed.list().unwrap(), ["a", "b"]);
    let lost = killed.crash_point().lose_all();
    assert_eq!((units(&lost, 0, 1), units(&lost, BLOCK, 2)), ("........".into(), "........".into()));
    assert_eq!(lost.list().unwrap(), ["a"]);
    killed.open("a", LOOSE).unwrap().sync().unwrap();
    let kept = killed.crash_point().lose_all();
    assert_eq!((units(&kept, 0, 1), units(&kept, BLOCK, 2)), ("xxxxxxxx".into(), "x.......".into()));
}

#[test]
fn a_queued_write_of_a_killed_process_holds_its_lock_and_lands_later() {
    let disk = disk_with_a(SimDisk::manual(1));
    let (mut driver, file) = driver_on_a(&disk, DURABLE);
    assert!(file.try_lock().unwrap());
    driver.submit(write_op(1, 0, 7));
    let killed = disk.kill(|_| Landing::Queued);
    let again = killed.open("a", DURABLE).unwrap();
    assert!(!again.try_lock().unwrap(), "the queued write keeps the lock");
    let flight = killed.in_flight().remove(0);
    assert!(killed.complete(flight.id));
    assert_eq!(units(&killed.crash_point().lose_all(), 0, 7), "xxxxxxxx");
    assert!(again.try_lock().unwrap());
    let gone = disk.kill(|_| Landing::Units(Class::Absent));
    assert!(gone.open("a", DURABLE).unwrap().try_lock().unwrap());
}

#[test]
fn a_lock_belongs_to_an_open_file_and_ends_with_it_or_with_a_crash() {
    let disk = disk_with_a(SimDisk::manual(1));
    let (driver, holder) = driver_on_a(&disk, DURABLE);
    let other = disk.open("a", Access::Lock).unwrap();
    assert!(holder.try_lock().unwrap() && holder.try_lock().unwrap(), "the holder may ask again");
    assert!(!other.try_lock().unwrap());
    let image = disk.crash_point().keep_all();
    assert!(image.open("a", Access::Lock).unwrap().try_lock().unwrap());
    drop(holder);
    assert!(!other.try_lock().unwrap(), "the driver still has the open file");
    drop(driver);
    assert!(other.try_lock().unwrap());
}

#[test]
fn a_failed_sync_is_final_for_what_it_should_have_covered() {
    let disk = disk_with_a(SimDisk::manual(1));
    let file = disk.open("a", LOOSE).unwrap();
    file.write_at(&block(1), 0).unwrap();
    disk.fail(FaultRule::io_error(OpKind::Sync, 1));
    assert_eq!(file.sync().unwrap_err().raw_os_error(), Some(5));
    file.sync().expect("the second sync reports success, as on Linux");
    assert_eq!(read(&*file, BLOCK), vec![1; BLOCK]);
    assert_eq!(units(&disk.crash_point().lose_all(), 0, 1), "........");
    let killed = disk.kill(|_| Landing::Queued);
    killed.open("a", LOOSE).unwrap().sync().unwrap();
    assert_eq!(units(&killed.crash_point().lose_all(), 0, 1), "........", "nor does a sync after a restart");
    file.write_at(&block(1), 0).unwrap();
    file.sync().unwrap();
    assert_eq!(units(&disk.crash_point().lose_all(), 0, 1), "xxxxxxxx", "writing it again does");
}

#[test]
fn faults_fire_at_the_nth_operation_once_or_for_good() {
    let disk = disk_with_a(SimDisk::manual(1));
    let file = disk.open("a", DURABLE).unwrap();
    disk.fail(FaultRule::io_error(OpKind::Write, 2));
    assert!(file.write_at(&block(1), 0).is_ok());
    assert_eq!(file.write_at(&block(2), 0).unwrap_err().raw_os_error(), Some(5));
    assert_eq!(units(&disk, 0, 1), "xxxxxxxx", "a failed write leaves nothing unless it is told to");
    assert!(file.write_at(&block(3), 0).is_ok());

    disk.fail(FaultRule::no_space(OpKind::Allocate, 1).for_good());
    for _ in 0..3 {
        assert_eq!(file.allocate(8 * BLOCK as u64).unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
    disk.clear_faults();
    assert!(file.allocate(8 * BLOCK as u64).is_ok());

    disk.fail(FaultRule::io_error(OpKind::Read, 1).on("b"));
    assert_eq!(read(&*file, BLOCK), vec![3; BLOCK], "a rule for another file does not fire");
    for (kind, attempt) in [
        (OpKind::Rename, &(|| disk.rename("a", "b")) as &dyn Fn() -> io::Result<()>),
        (OpKind::Remove, &|| disk.remove("a")),
        (OpKind::SyncDir, &|| disk.sync_dir()),
        (OpKind::Create, &|| disk.open("c", Access::Create).map(drop)),
        (OpKind::Open, &|| disk.open("a", Access::Read).map(drop)),
        (OpKind::List, &|| disk.list().map(drop)),
    ] {
        disk.fail(FaultRule::io_error(kind, 1));
        assert_eq!(attempt().unwrap_err().raw_os_error(), Some(5), "{kind:?}");
    }
    assert_eq!(disk.list().unwrap(), ["a"], "what failed did not happen");
}

#[test]
fn a_failed_write_of_a_driver_lands_as_told_and_is_never_durable() {
    let disk = disk_with_a(SimDisk::manual(1));
    let (mut driver, file) = driver_on_a(&disk, DURABLE);
    disk.fail(FaultRule::io_error(OpKind::Write, 1).landing(Class::Head));
    driver.submit(write_op(1, 0, 7));
    disk.complete_all();
    let done = poll(&mut *driver);
    assert!(done[0].result.is_err() && done[0].buffer.is_some());
    assert_eq!(units(&disk, 0, 7), "x.......");
    file.sync().unwrap();
    assert_eq!(units(&disk.crash_point().lose_all(), 0, 7), "........");
    driver.submit(write_op(2, 0, 8));
    disk.complete_failing(disk.in_flight()[0].id, 5, Class::Whole);
    assert!(poll(&mut *driver)[0].result.is_err());
    assert_eq!(units(&disk, 0, 8), "xxxxxxxx");
}

#[test]
fn a_full_disk_refuses_growth_and_serves_the_rest() {
    let disk = disk_with_a(SimDisk::manual(1));
    disk.set_capacity(Some(6 * BLOCK as u64));
    let file = disk.open("b", Access::CreateSegment).unwrap();
    file.allocate(2 * BLOCK as u64).unwrap();
    assert_eq!(file.allocate(3 * BLOCK as u64).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(file.write_at(&block(1), 2 * BLOCK as u64).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(disk.open("c", Access::Create).err().unwrap().kind(), io::ErrorKind::StorageFull);
    file.write_at(&block(1), 0).unwrap();
    file.sync().unwrap();
    disk.remove("a").unwrap();
    assert!(file.allocate(6 * BLOCK as u64).is_ok());
}

#[test]
fn direct_access_must_be_aligned_and_reading_files_are_not_written() {
    let options = SimOptions { physical_block_bytes: 4096, mode: Mode::Manual, ..SimOptions::default() };
    let disk = disk_with_a(SimDisk::with_options(options));
    let (buffer, file) = (block(1), disk.open("a", DURABLE).unwrap());
    let refused = |result: io::Result<()>| result.unwrap_err().raw_os_error() == Some(22);
    assert!(refused(file.write_at(&buffer[..512], 0)));
    assert!(refused(file.write_at(&buffer, 512)));
    assert!(refused(file.read_at(&mut block(0)[..100], 0).map(drop)));
    assert!(refused(file.read_at(&mut AlignedBuf::zeroed(8192)[8..4104], 0).map(drop)));
    assert!(disk.open("a", Access::Read).unwrap().write_at(b"x", 0).is_err());
    assert!(disk.open("../a", Access::Create).is_err());
    let end = file.read_at(&mut AlignedBuf::zeroed(8192), 3 * BLOCK as u64).unwrap();
    assert_eq!(end, BLOCK, "a read ends at the end of the file");
}

#[test]
fn reads_may_see_parts_of_writes_in_flight() {
    let disk = disk_with_a(SimDisk::manual(1));
    let (mut driver, file) = driver_on_a(&disk, DURABLE);
    driver.submit(write_op(1, 0, 7));
    disk.land(disk.in_flight()[0].id, Class::Units(vec![false, true]));
    let seen = read(&*file, BLOCK);
    assert_eq!((seen[511], seen[512], seen[1023], seen[1024]), (0, 7, 7, 0));
    let killed = disk.kill(|_| Landing::Units(Class::Absent));
    assert_eq!(units(&killed, 0, 7), ".x......", "what was seen is not unseen by a kill");
    assert_eq!(units(&disk.crash_point().lose_all(), 0, 7), "........");
}

/// Drives a random disk to a random end and returns everything that could differ: completions and an image.
fn run_at_random(seed: u64) -> (Vec<u64>, Vec<u8>) {
    let disk = disk_with_a(SimDisk::new(seed));
    let (mut driver, _file) = driver_on_a(&disk, LOOSE);
    let (mut order, mut done) = (Vec::new(), Vec::new());
    for token in 0..20 {
        driver.submit(write_op(token, token % 4 * BLOCK as u64, token as u8 + 1));
        driver.poll(PollWait::No, &mut done);
        order.extend(done.drain(..).map(|completion| completion.token));
    }
    (order, disk.crash_at_random(seed).read_file("a").unwrap())
}

#[test]
#[cfg_attr(miri, ignore = "it compares dozens of runs, which take an interpreter half a minute")]
fn the_seed_decides_everything() {
    assert_eq!(run_at_random(5), run_at_random(5));
    let distinct: std::collections::HashSet<_> = (0..20).map(run_at_random).collect();
    assert!(distinct.len() > 15, "{} distinct runs", distinct.len());
    assert!((0..20).any(|seed| !run_at_random(seed).0.is_sorted()), "completions come in any order");
}

#[test]
fn many_loose_ends_are_sampled_extremes_first() {
    let disk = disk_with_a(SimDisk::manual(1));
    let file = disk.open("a", LOOSE).unwrap();
    for byte in 1..=12 {
        file.write_at(&block(byte), u64::from(byte) % 4 * BLOCK as u64).unwrap();
    }
    let point = disk.crash_point();
    let fates: Vec<Vec<Class>> = point.fates(200, 9).collect();
    assert!(!point.fates(200, 9).is_exhaustive() && fates.len() == 200);
    assert_eq!((&fates[0], &fates[1]), (&vec![Class::Absent; 12], &vec![Class::Whole; 12]));
    assert_eq!(fates, point.fates(200, 9).collect::<Vec<_>>());
    assert_ne!(fates, point.fates(200, 10).collect::<Vec<_>>());
    assert!(point.describe(&fates[2]).contains("a: Write { offset: 4096, bytes: 4096, in_flight: None } -> Whole"));
}

#[test]
fn a_recording_holds_the_middle_of_every_operation() {
    let disk = SimDisk::manual(1);
    disk.start_recording();
    publish(&disk).unwrap();
    let points = disk.take_recording();
    assert_eq!(points.len(), 5, "create, write, sync, rename, directory sync");
    for (at, point) in points.iter().enumerate() {
        for image in point.images(500, 1) {
            let name_came_early = image.read_file("segment").is_ok_and(|content| content != b"content");
            assert!(!name_came_early, "at instant {at}");
        }
    }
    assert_eq!(disk.crash_point().lose_all().read_file("segment").unwrap(), b"content");
}

/// The right way to make a file: content durable before the name.
fn publish(disk: &SimDisk) -> io::Result<()> {
    let file = disk.open("tmp", Access::Create)?;
    file.write_at(b"content", 0)?;
    file.sync()?;
    disk.rename("tmp", "segment")?;
    disk.sync_dir()
}

/// A file that takes several writes around the page cache and is locked while it is made.
fn publish_in_parts(disk: &SimDisk) -> io::Result<Arc<dyn DiskFile>> {
    let file = disk.open("part", Access::CreateSegment)?;
    assert!(file.try_lock()?);
    for nth in 0..3 {
        file.write_at(&block(nth as u8 + 1), nth * BLOCK as u64)?;
    }
    file.sync()?;
    disk.rename("part", "whole")?;
    disk.sync_dir()?;
    Ok(file)
}

#[test]
#[cfg_attr(miri, ignore = "it is run for each moment of the disk, which takes an interpreter minutes")]
fn a_file_made_in_parts_has_its_name_whole_or_not_at_all_wherever_the_power_fails() {
    let content = |disk: &SimDisk, name| disk.read_file(name).ok();
    let (mut unnamed, mut named) = (0, 0);
    for instants in 0.. {
        let disk = SimDisk::manual(1);
        disk.power_off_after(instants);
        let is_through = publish_in_parts(&disk).is_ok();
        for image in disk.crash_images() {
            let whole = content(&image, "whole");
            assert!(whole.is_some() || !is_through, "a name that was synced is gone");
            match whole {
                Some(bytes) => {
                    assert!(bytes == [[1; BLOCK], [2; BLOCK], [3; BLOCK]].concat());
                    named += 1;
                }
                None => unnamed += 1,
            }
        }
        if is_through {
            break;
        }
    }
    assert!(unnamed > 20 && named > 2, "{unnamed} {named}");
}

#[test]
fn a_lock_follows_its_file_to_a_new_name_and_a_removed_file_is_another_than_the_next_of_its_name() {
    let disk = SimDisk::manual(1);
    let maker = publish_in_parts(&disk).unwrap();
    let reader = disk.open("whole", Access::ReadDirect).unwrap();
    assert!(!disk.open("whole", Access::ReadWrite).unwrap().try_lock().unwrap(), "its maker has it still");
    disk.remove("whole").unwrap();
    let next = disk.open("whole", Access::CreateSegment).unwrap();
    assert!(next.try_lock().unwrap() && maker.try_lock().unwrap(), "they are two files");
    next.write_at(&block(9), 0).unwrap();
    let mut buffer = AlignedBuf::zeroed(BLOCK);
    assert_eq!((reader.read_at(&mut buffer, BLOCK as u64).unwrap(), buffer[0]), (BLOCK, 2));
    assert_eq!(disk.read_file("whole").unwrap(), [9; BLOCK]);
}

#[test]
fn a_power_failure_cuts_an_operation_short_and_nothing_changes_after_it() {
    for instants in 0..5 {
        let disk = SimDisk::manual(1);
        disk.power_off_after(instants);
        assert!(publish(&disk).is_err() && disk.is_dead());
        let ends = disk.crash_point().loose_ends().to_vec();
        assert!(disk.open("x", Access::Create).is_err() && disk.list().is_err() && disk.sync_dir().is_err());
        assert_eq!(disk.crash_point().loose_ends(), ends);
    }
    let disk = SimDisk::manual(1);
    disk.power_off_after(5);
    assert!(publish(&disk).is_ok() && !disk.is_dead());
}

#[test]
fn a_power_failure_fails_what_a_driver_has_in_flight_and_leaves_it_at_stake() {
    let disk = disk_with_a(SimDisk::manual(1));
    let (mut driver, _file) = driver_on_a(&disk, DURABLE);
    disk.power_off_after(1);
    driver.submit(write_op(1, 0, 1));
    driver.submit(write_op(2, BLOCK as u64, 2));
    driver.submit(write_op(3, 0, 3));
    let done = poll(&mut *driver);
    assert_eq!(done.len(), 3);
    assert!(done.iter().all(|completion| completion.result.is_err() && completion.buffer.is_some()));
    assert_eq!(disk.crash_point().loose_ends().len(), 2, "the third never began");
}

#[test]
fn damage_is_durable_and_an_export_comes_back() {
    let disk = disk_with_a(SimDisk::manual(1));
    disk.write_file("b", b"bb").unwrap();
    disk.flip_bit("a", 3, 7).unwrap();
    disk.set_len("b", 4).unwrap();
    disk.swap_files("a", "b").unwrap();
    let image = disk.crash_point().lose_all();
    assert_eq!(image.read_file("a").unwrap(), b"bb\0\0");
    assert_eq!(image.contents("b").unwrap()[3], 128);
    disk.zero_range("b", 0..8).unwrap();
    assert!(disk.zero_range("b", 0..1 << 20).is_err() && disk.flip_bit("none", 0, 0).is_err());
    assert_eq!(*disk.contents("b").unwrap(), vec![0; 4 * BLOCK]);

    let directory = tempfile::tempdir().unwrap();
    disk.export_to(directory.path()).unwrap();
    let copy = SimDisk::manual(2);
    copy.import_from(directory.path()).unwrap();
    assert_eq!(copy.read_file("a").unwrap(), b"bb\0\0");
    copy.rename_file("a", "c").unwrap();
    copy.remove_file("b").unwrap();
    assert_eq!(copy.crash_point().lose_all().list().unwrap(), ["c"]);
    assert_eq!(copy.copy_at_rest().list().unwrap(), ["c"]);
}

#[test]
fn counters_count() {
    let disk = disk_with_a(SimDisk::manual(1));
    let file = disk.open("a", DURABLE).unwrap();
    file.write_at(&block(1), 0).unwrap();
    file.sync().unwrap();
    disk.sync_dir().unwrap();
    read(&*file, 2 * BLOCK);
    let counters = disk.counters();
    assert_eq!((counters.of(OpKind::Write), counters.of(OpKind::Sync), counters.of(OpKind::SyncDir)), (1, 1, 1));
    assert_eq!((counters.bytes_written, counters.bytes_read), (BLOCK as u64, 2 * BLOCK as u64));
    assert_eq!(counters.total(), 5);
}

#[test]
fn an_alarm_ends_a_wait_from_another_thread_or_the_next_one() {
    let disk = disk_with_a(SimDisk::new(1));
    let (mut driver, _file) = driver_on_a(&disk, DURABLE);
    let (alarm, mut done) = (driver.alarm(), Vec::new());
    alarm.ring();
    driver.poll(PollWait::AtMost(Duration::from_secs(600)), &mut done);
    let ringer = std::thread::spawn(move || alarm.ring());
    driver.poll(PollWait::AtMost(Duration::from_secs(600)), &mut done);
    ringer.join().unwrap();
    driver.poll(PollWait::AtMost(Duration::from_millis(1)), &mut done);
    assert!(done.is_empty());
}

#[test]
fn two_threads_with_random_completion_do_not_hang() {
    const WRITES: u64 = if cfg!(miri) { 20 } else { 500 };
    let disk = SimDisk::new(3);
    std::thread::scope(|scope| {
        for name in ["one", "two"] {
            let disk = disk.clone();
            scope.spawn(move || {
                let file = disk.open(name, Access::CreateSegment).unwrap();
                let mut driver = disk.driver(4).unwrap();
                driver.attach(1, file).unwrap();
                let (mut sum, mut done) = (0, Vec::new());
                for token in 1..=WRITES {
                    driver.submit(write_op(token, 0, 1));
                    while driver.in_flight() >= 4 {
                        driver.poll(PollWait::AtMost(Duration::from_secs(600)), &mut done);
                    }
                }
                while driver.in_flight() > 0 {
                    driver.poll(PollWait::AtMost(Duration::from_secs(600)), &mut done);
                }
                sum += done.iter().map(|completion| completion.token).sum::<u64>();
                assert_eq!(sum, WRITES * (WRITES + 1) / 2);
            });
        }
    });
    assert!(disk.in_flight().is_empty());
}

#[test]
fn held_writes_wait_for_another_thread_even_when_the_driver_is_dropped() {
    let disk = disk_with_a(SimDisk::with_options(SimOptions { mode: Mode::Held, ..SimOptions::default() }));
    let writer = std::thread::spawn({
        let disk = disk.clone();
        move || {
            let (mut driver, file) = driver_on_a(&disk, DURABLE);
            assert!(file.try_lock().unwrap());
            driver.submit(write_op(1, 0, 1));
            let mut done = Vec::new();
            driver.poll(PollWait::AtMost(Duration::from_secs(600)), &mut done);
            assert_eq!(done.len(), 1);
            driver.submit(write_op(2, 0, 2));
        }
    });
    for token in [1, 2] {
        assert!(disk.wait_in_flight(1, Duration::from_secs(600)));
        let other = disk.open("a", Access::Lock).unwrap();
        assert!(!other.try_lock().unwrap(), "the lock lives as long as the write");
        let flight = disk.in_flight().remove(0);
        assert_eq!(flight.token, token);
        disk.complete(flight.id);
    }
    writer.join().unwrap();
    assert!(disk.open("a", Access::Lock).unwrap().try_lock().unwrap());
}

#[test]
fn dropping_a_driver_drains_it() {
    let disk = disk_with_a(SimDisk::manual(1));
    let (mut driver, _file) = driver_on_a(&disk, DURABLE);
    driver.submit(write_op(1, 0, 7));
    drop(driver);
    assert!(disk.in_flight().is_empty());
    assert_eq!(units(&disk.crash_point().lose_all(), 0, 7), "xxxxxxxx");
}

#[test]
fn a_driver_takes_only_open_files_of_its_disk() {
    let (disk, other) = (disk_with_a(SimDisk::new(1)), disk_with_a(SimDisk::new(1)));
    let mut driver = disk.driver(1).unwrap();
    let error = driver.attach(1, other.open("a", DURABLE).unwrap()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

/// Not a law but a promise to the explorer: images are cheap. Run with `--ignored --nocapture` to see the rate.
#[test]
#[ignore = "measures; run by hand"]
fn images_per_second() {
    let disk = SimDisk::manual(1);
    for name in ["a", "b", "c", "d", "e"] {
        disk.write_file(name, &[1; 48 << 10]).unwrap();
    }
    let (mut driver, _file) = driver_on_a(&disk, DURABLE);
    for token in 0..4 {
        driver.submit(write_op(token, token * BLOCK as u64, 9));
    }
    let point = disk.crash_point();
    let (start, mut bytes) = (std::time::Instant::now(), 0);
    let mut buffer = AlignedBuf::zeroed(48 << 10);
    for seed in 0..100_000 {
        let image = point.random_image(seed);
        for name in image.list().unwrap() {
            bytes += image.open(&name, Access::ReadDirect).unwrap().read_at(&mut buffer, 0).unwrap();
        }
        image.open("a", DURABLE).unwrap().write_at(&buffer[..BLOCK], 0).unwrap();
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("{:.0} images made, read ({bytes} bytes) and written per second", 1e5 / seconds);
}
