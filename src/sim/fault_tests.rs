//! The laws of the faults, one test each, named for the law; and what a log without threads makes of them.

use std::io;
use std::time::Duration;

use super::tests::{BLOCK, DURABLE, LOOSE, block, disk_with_a, driver_on_a, poll, read, units, write_op};
use super::*;
use crate::disk::{Access, AlignedBuf, Disk, Operation, PollWait};

/// A write of four blocks at the start of file `a`.
fn long_write(token: u64, byte: u8) -> Operation {
    let mut buffer = AlignedBuf::zeroed(4 * BLOCK);
    buffer.fill(byte);
    Operation::Write { token, file: 1, offset: 0, buffer, bytes: 4 * BLOCK }
}

/// Tokens of everything that one waiting poll collects.
fn wait(driver: &mut dyn crate::disk::Driver) -> Vec<u64> {
    let mut done = Vec::new();
    driver.poll(PollWait::AtMost(Duration::from_secs(600)), &mut done);
    done.iter().map(|completion| completion.token).collect()
}

#[test]
fn a_short_write_goes_on_where_a_block_begins_and_the_power_may_fail_between() {
    let disk = disk_with_a(SimDisk::manual(1));
    let (mut driver, _file) = driver_on_a(&disk, DURABLE);
    disk.fail(FaultRule::short_write(1, BLOCK + 700));
    disk.start_recording();
    driver.submit(long_write(9, 7));
    assert_eq!(disk.take_recording().len(), 1);
    disk.start_recording();
    let id = disk.in_flight()[0].id;
    assert!(disk.complete(id));
    assert!(poll(&mut *driver).is_empty(), "a part is no completion");
    let rest = disk.in_flight().remove(0);
    // Half a unit more than one block was taken: it goes on at the physical block, 512 here.
    assert_eq!((rest.id, rest.offset, rest.bytes), (id, BLOCK as u64 + 512, 3 * BLOCK - 512));
    let between = disk.take_recording();
    assert_eq!(between.len(), 1);
    let lost = between[0].lose_all().read_file("a").unwrap();
    assert_eq!(lost.iter().filter(|&&byte| byte == 7).count(), BLOCK + 700, "what was transferred is durable");
    assert!(disk.complete(id));
    assert_eq!(disk.read_file("a").unwrap(), vec![7; 4 * BLOCK]);
    assert!(poll(&mut *driver)[0].result.is_ok());
    assert_eq!(disk.counters().of(OpKind::Write), 2, "what goes on is a write of its own");
}

#[test]
fn the_parts_of_a_short_write_that_is_not_durable_stay_loose() {
    let disk = disk_with_a(SimDisk::manual(1));
    let file = disk.open("a", LOOSE).unwrap();
    disk.fail(FaultRule::short_write(1, 512));
    disk.fail(FaultRule::short_write(2, 1024));
    file.write_at(&block(7), 0).unwrap();
    assert_eq!(units(&disk, 0, 7), "xxxxxxxx");
    assert_eq!(disk.crash_point().loose_ends().len(), 3);
    assert_eq!(units(&disk.crash_point().lose_all(), 0, 7), "........");
    file.sync().unwrap();
    assert_eq!(units(&disk.crash_point().lose_all(), 0, 7), "xxxxxxxx");
}

#[test]
fn a_short_write_that_gets_nowhere_fails_and_one_may_be_followed_by_an_error() {
    let disk = disk_with_a(SimDisk::manual(1));
    let file = disk.open("a", DURABLE).unwrap();
    disk.fail(FaultRule::short_write(1, 100).for_good());
    assert_eq!(file.write_at(&block(1), 0).unwrap_err().kind(), io::ErrorKind::WriteZero);
    disk.clear_faults();
    disk.fail(FaultRule::short_write(1, 0));
    assert_eq!(file.write_at(&block(2), 0).unwrap_err().kind(), io::ErrorKind::WriteZero);

    disk.fail(FaultRule::short_write(1, 1024));
    disk.fail(FaultRule::no_space(OpKind::Write, 2));
    assert_eq!(file.write_at(&block(3), 0).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(units(&disk.crash_point().lose_all(), 0, 3), "xx......", "what was taken before the error stays");
}

#[test]
fn the_power_fails_between_the_parts_of_a_direct_write_and_it_fails_with_it() {
    let disk = disk_with_a(SimDisk::manual(1));
    let file = disk.open("a", DURABLE).unwrap();
    disk.fail(FaultRule::short_write(1, 1024));
    disk.power_off_after(1);
    assert!(file.write_at(&block(3), 0).is_err() && disk.is_dead());
    assert_eq!(units(&disk.crash_point().lose_all(), 0, 3), "xx......");
    assert_eq!(units(&disk.crash_point().keep_all(), 0, 3), "xxxxxxxx");
}

#[test]
fn a_killed_process_does_not_go_on_with_a_short_write() {
    let disk = disk_with_a(SimDisk::manual(1));
    let (mut driver, _file) = driver_on_a(&disk, DURABLE);
    disk.fail(FaultRule::short_write(1, BLOCK));
    driver.submit(long_write(1, 7));
    let killed = disk.kill(|_| Landing::Queued);
    killed.complete_all();
    let found = killed.read_file("a").unwrap();
    assert_eq!((found[..BLOCK].to_vec(), found[BLOCK..].to_vec()), (vec![7; BLOCK], vec![0; 3 * BLOCK]));
    assert!(killed.in_flight().is_empty());
}

#[test]
fn a_slow_write_completes_no_earlier_than_as_many_others_as_the_rule_says() {
    for completions in [1, 2, 3] {
        let disk = disk_with_a(SimDisk::new(1));
        let (mut driver, _file) = driver_on_a(&disk, DURABLE);
        disk.fail(FaultRule::slow(OpKind::Write, 1, completions));
        driver.submit(write_op(1, 0, 1));
        let mut order = Vec::new();
        for token in 2..=4 {
            driver.submit(write_op(token, BLOCK as u64 * (token - 1), 1));
            order.extend(wait(&mut *driver));
        }
        while driver.in_flight() > 0 {
            order.extend(wait(&mut *driver));
        }
        let found = order.iter().position(|&token| token == 1);
        assert!(found.is_some_and(|found| found as u64 >= completions), "{completions}: {order:?}");
    }
}

#[test]
fn a_slow_write_that_is_alone_completes_though_nothing_else_does() {
    let disk = disk_with_a(SimDisk::new(1));
    let (mut driver, _file) = driver_on_a(&disk, DURABLE);
    disk.fail(FaultRule::slow(OpKind::Write, 1, 5));
    driver.submit(write_op(1, 0, 1));
    let polls = (1..100).find(|_| !poll(&mut *driver).is_empty());
    assert!(polls.is_some_and(|polls| polls >= 5), "a poll in vain counts as a completion: {polls:?}");
    disk.fail(FaultRule::slow(OpKind::Sync, 1, 1 << 60));
    driver.submit(Operation::Sync { token: 2, file: 1 });
    assert_eq!(wait(&mut *driver), [2], "for a driver that waits, time passes at once");
    disk.fail(FaultRule::slow(OpKind::Write, 1, 1 << 60));
    driver.submit(write_op(3, 0, 3));
    drop(driver);
    assert_eq!(units(&disk, 0, 3), "xxxxxxxx", "a dropped driver waits for it");
}

#[test]
fn a_held_write_completes_when_it_is_told_to_and_others_go_on() {
    let disk = disk_with_a(SimDisk::new(1));
    let (mut driver, _file) = driver_on_a(&disk, DURABLE);
    disk.fail(FaultRule::held(OpKind::Write, 1));
    driver.submit(write_op(1, 0, 1));
    driver.submit(write_op(2, BLOCK as u64, 2));
    assert_eq!(wait(&mut *driver), [2]);
    for _ in 0..50 {
        assert!(poll(&mut *driver).is_empty());
    }
    let id = disk.in_flight()[0].id;
    std::thread::scope(|scope| {
        scope.spawn(|| disk.complete(id));
        assert_eq!(wait(&mut *driver), [1]);
    });
    disk.fail(FaultRule::held(OpKind::Write, 1));
    driver.submit(write_op(3, 0, 3));
    let dropped = std::thread::scope(|scope| {
        let disk = &disk;
        scope.spawn(move || disk.complete(disk.in_flight()[0].id));
        drop(driver);
        disk.in_flight().len()
    });
    assert_eq!(dropped, 0);
}

#[test]
fn a_bit_that_rots_in_a_write_is_wrong_for_good_and_one_on_the_way_only_once() {
    let disk = disk_with_a(SimDisk::manual(1));
    let file = disk.open("a", DURABLE).unwrap();
    disk.fail(FaultRule::bit_rot(OpKind::Write, 1, 8 * 513 + 2));
    file.write_at(&block(0), 0).unwrap();
    for image in [disk.crash_point().lose_all(), disk.clone()] {
        let found = image.read_file("a").unwrap();
        assert_eq!((found[512], found[513], found[514]), (0, 4, 0));
    }
    disk.fail(FaultRule::bit_error(2, 3));
    let seen: Vec<u8> = (0..3).map(|_| read(&*file, BLOCK)[0]).collect();
    assert_eq!(seen, [0, 8, 0]);
    disk.fail(FaultRule::bit_rot(OpKind::Read, 2, 3));
    let seen: Vec<u8> = (0..3).map(|_| read(&*file, BLOCK)[0]).collect();
    assert_eq!(seen, [0, 8, 8]);
    assert_eq!(disk.crash_point().lose_all().read_file("a").unwrap()[0], 8);
}

#[test]
fn a_bit_rots_at_any_moment_in_every_layer_and_settles_nothing() {
    let disk = disk_with_a(SimDisk::manual(1));
    let file = disk.open("a", LOOSE).unwrap();
    file.write_at(&block(6), 0).unwrap();
    disk.rot_bit("a", 0, 0).unwrap();
    let first_bytes = |disk: &SimDisk| disk.read_file("a").unwrap()[..2].to_vec();
    assert_eq!(first_bytes(&disk), [7, 6]);
    assert_eq!(first_bytes(&disk.crash_point().lose_all()), [1, 0], "the old bytes have rotted too");
    assert_eq!(first_bytes(&disk.crash_point().keep_all()), [7, 6]);
    disk.rot_bit("a", 1 << 40, 0).unwrap();
    assert!(disk.rot_bit("none", 0, 0).is_err());

    let fresh = SimDisk::manual(1);
    fresh.write_file("a", b"").unwrap();
    fresh.open("a", LOOSE).unwrap().allocate(BLOCK as u64).unwrap();
    fresh.rot_bit("a", 0, 0).unwrap();
    assert_eq!(fresh.read_file("a").unwrap(), vec![0; BLOCK], "what was never written has no bits");
}

#[test]
fn a_misdirected_write_lands_elsewhere_and_its_own_place_stays_old() {
    let disk = disk_with_a(SimDisk::manual(1));
    disk.write_file("b", &[5; 2 * BLOCK]).unwrap();
    let (mut driver, _file) = driver_on_a(&disk, DURABLE);
    disk.fail(FaultRule::misdirected(OpKind::Write, 1, 2 * BLOCK as u64));
    driver.submit(write_op(1, 0, 7));
    assert_eq!(units(&disk.crash(|_| Class::Head), 2 * BLOCK, 7), "x.......", "in flight it is torn there");
    disk.complete_all();
    assert!(poll(&mut *driver)[0].result.is_ok(), "nobody notices");
    let lost = disk.crash_point().lose_all();
    assert_eq!((units(&lost, 0, 7), units(&lost, 2 * BLOCK, 7)), ("........".into(), "xxxxxxxx".into()));

    disk.fail(FaultRule::misdirected(OpKind::Write, 1, BLOCK as u64 + 512).to("b"));
    driver.submit(write_op(2, 0, 8));
    disk.complete_all();
    let found = disk.read_file("b").unwrap();
    assert_eq!(found.len(), 2 * BLOCK, "a file does not grow by what goes astray");
    assert_eq!((found[BLOCK + 511], found[BLOCK + 512], found[2 * BLOCK - 1]), (5, 8, 8));

    disk.fail(FaultRule::misdirected(OpKind::Write, 1, 1 << 30));
    driver.submit(write_op(3, 0, 9));
    disk.complete_all();
    assert!(!disk.read_file("a").unwrap().contains(&9), "past the end it goes nowhere");
}

#[test]
fn a_misdirected_write_through_the_last_handle_lets_go_of_the_right_lock() {
    let disk = disk_with_a(SimDisk::manual(1));
    disk.write_file("b", &[0; BLOCK]).unwrap();
    let (mut driver, file) = driver_on_a(&disk, DURABLE);
    assert!(file.try_lock().unwrap());
    disk.fail(FaultRule::misdirected(OpKind::Write, 1, 0).to("b"));
    driver.submit(write_op(1, 0, 7));
    let killed = disk.kill(|_| Landing::Queued);
    let again = killed.open("a", DURABLE).unwrap();
    assert!(!again.try_lock().unwrap());
    killed.complete_all();
    assert!(again.try_lock().unwrap());
}

#[test]
fn a_misdirected_read_returns_another_place_once() {
    let disk = disk_with_a(SimDisk::manual(1));
    disk.write_file("b", &[5; BLOCK]).unwrap();
    let file = disk.open("a", DURABLE).unwrap();
    file.write_at(&block(1), BLOCK as u64).unwrap();
    disk.fail(FaultRule::misdirected(OpKind::Read, 1, BLOCK as u64));
    disk.fail(FaultRule::misdirected(OpKind::Read, 2, 512).to("b"));
    assert_eq!(read(&*file, BLOCK), vec![1; BLOCK]);
    let half = read(&*file, BLOCK);
    assert_eq!((half[0], half[BLOCK - 513], half[BLOCK - 512]), (5, 5, 0), "past the end of a file there are zeros");
    assert_eq!(read(&*file, BLOCK), vec![0; BLOCK]);
}

#[test]
fn after_a_failed_sync_that_drops_its_pages_reads_show_what_the_medium_has() {
    let disk = disk_with_a(SimDisk::manual(1));
    let file = disk.open("a", LOOSE).unwrap();
    file.write_at(&block(1), 0).unwrap();
    disk.fail(FaultRule::io_error(OpKind::Sync, 1).dropping_pages().landing(Class::Head));
    assert!(file.sync().is_err());
    assert_eq!(units(&disk, 0, 1), "x.......");
    assert_eq!(disk.crash_point().loose_ends(), [], "what is left is on the medium");
    file.write_at(&block(2), 0).unwrap();
    file.sync().unwrap();
    assert_eq!(units(&disk.crash_point().lose_all(), 0, 2), "xxxxxxxx", "writing it again helps");
}

#[test]
fn pages_of_a_failed_sync_may_be_dropped_later_and_newer_writes_stay() {
    let disk = disk_with_a(SimDisk::manual(1));
    let file = disk.open("a", LOOSE).unwrap();
    file.write_at(&block(1), 0).unwrap();
    disk.fail(FaultRule::io_error(OpKind::Sync, 1));
    assert!(file.sync().is_err());
    file.write_at(&block(2)[..UNIT_BYTES], 0).unwrap();
    assert_eq!((units(&disk, 0, 1), units(&disk, 0, 2)), (".xxxxxxx".into(), "x.......".into()));
    disk.drop_failed_pages(Class::Absent);
    assert_eq!((units(&disk, 0, 1), units(&disk, 0, 2)), ("........".into(), "x.......".into()));
    assert_eq!(disk.crash_point().loose_ends().len(), 1, "the newer write is as loose as before");
}

#[test]
fn space_that_was_allocated_and_whose_extents_are_lost_reads_as_zeros() {
    let disk = SimDisk::manual(1);
    disk.write_file("a", b"").unwrap();
    let file = disk.open("a", Access::CreateSegment).unwrap();
    file.allocate(4 * BLOCK as u64).unwrap();
    file.sync().unwrap();
    file.write_at(&block(5), BLOCK as u64).unwrap();
    let lost = disk.crash_point().lose_all();
    assert_eq!(lost.read_file("a").unwrap(), vec![0; 4 * BLOCK], "the size stays, the extent is as if never written");
    file.sync().unwrap();
    assert_eq!(units(&disk.crash_point().lose_all(), BLOCK, 5), "xxxxxxxx", "a sync makes extents durable too");
}

#[test]
fn every_kind_of_call_can_fail_once_or_for_good() {
    for kind in OpKind::ALL {
        let disk = disk_with_a(SimDisk::manual(1));
        disk.write_file("b", b"").unwrap();
        let file = disk.open("a", DURABLE).unwrap();
        let ask = || -> io::Result<()> {
            match kind {
                OpKind::Read => file.read_at(&mut block(0), 0).map(drop),
                OpKind::Write => file.write_at(&block(0), 0),
                OpKind::Sync => file.sync(),
                OpKind::Create => disk.open("new", Access::Create).map(drop),
                OpKind::Open => disk.open("a", Access::Read).map(drop),
                OpKind::Allocate => file.allocate(BLOCK as u64),
                OpKind::Rename => disk.rename("b", "c"),
                OpKind::Remove => disk.remove("b"),
                OpKind::SyncDir => disk.sync_dir(),
                OpKind::List => disk.list().map(drop),
                OpKind::Size => file.size().map(drop),
                OpKind::Lock => file.try_lock().map(drop),
                OpKind::Driver => disk.driver(1).map(drop),
            }
        };
        disk.fail(FaultRule::io_error(kind, 1));
        assert_eq!(ask().unwrap_err().raw_os_error(), Some(5), "{kind:?}");
        disk.fail(FaultRule::no_space(kind, 1).for_good());
        for _ in 0..3 {
            assert_eq!(ask().unwrap_err().kind(), io::ErrorKind::StorageFull, "{kind:?}");
        }
        assert_eq!(disk.struck().len(), 4);
        assert_eq!((disk.struck()[3].op, disk.struck()[3].nth), (kind, disk.counters().of(kind)));
        disk.clear_faults();
        ask().unwrap_or_else(|error| panic!("{kind:?} goes on failing: {error}"));
    }
}

#[test]
fn chance_strikes_the_same_operations_for_the_same_seed_whatever_others_come_between() {
    let strokes = |seed: u64, reads: bool| {
        let disk = disk_with_a(SimDisk::manual(1));
        disk.fail_by_chance(FaultRates { io_errors: 4, short_writes: 4, bit_rot: 8, ..FaultRates::default() }, seed);
        let file = loop {
            // Opening may fail, too.
            if let Ok(file) = disk.open("a", DURABLE) {
                break file;
            }
        };
        for _ in 0..200 {
            let _ = file.write_at(&block(1), 0);
            if reads {
                let _ = file.read_at(&mut block(0), 0);
            }
        }
        let of_writes = disk.struck().into_iter().filter(|struck| struck.op == OpKind::Write);
        of_writes.map(|struck| struck.to_string()).take(50).collect::<Vec<_>>()
    };
    assert_eq!(strokes(1, false), strokes(1, true));
    assert_ne!(strokes(1, false), strokes(2, false));
    assert_eq!(strokes(1, false).len(), 50);
}

#[test]
fn every_fault_comes_by_chance_at_its_rate_and_ends_with_it() {
    let disk = SimDisk::manual(1);
    disk.write_file("b", &[1; BLOCK]).unwrap();
    let disk = disk_with_a(disk);
    let rates = FaultRates { for_good: 0, ..FaultRates::honest(20) };
    let lying = FaultRates::lying(20);
    let FaultRates { bit_rot, bit_errors, misdirected_reads, misdirected_writes, .. } = lying;
    disk.fail_by_chance(FaultRates { bit_rot, bit_errors, misdirected_reads, misdirected_writes, ..rates }, 3);
    let file = loop {
        if let Ok(file) = disk.open("a", LOOSE) {
            break file;
        }
    };
    for _ in 0..2000 {
        let _ = file.write_at(&block(1), 0);
        let _ = file.read_at(&mut block(0), 0);
        let _ = file.sync();
    }
    let struck = disk.struck();
    let count = |wanted: &dyn Fn(&Fault) -> bool| struck.iter().filter(|struck| wanted(&struck.fault)).count();
    let counts = [
        count(&|fault| matches!(fault, Fault::Error { drops_pages: false, .. })),
        count(&|fault| matches!(fault, Fault::Error { drops_pages: true, .. })),
        count(&|fault| matches!(fault, Fault::Short { .. })),
        count(&|fault| matches!(fault, Fault::Slow { .. })),
        count(&|fault| matches!(fault, Fault::BitRot { .. })),
        count(&|fault| matches!(fault, Fault::BitError { .. })),
        count(&|fault| matches!(fault, Fault::Misdirected { .. })),
    ];
    assert!(counts.iter().all(|&count| count > 10), "{counts:?}");
    disk.fail_by_chance(FaultRates::default(), 3);
    let before = disk.counters().of(OpKind::Write);
    file.write_at(&block(9), 0).unwrap();
    assert_eq!((units(&disk, 0, 9), disk.counters().of(OpKind::Write)), ("xxxxxxxx".into(), before + 1));

    let disk = disk_with_a(SimDisk::manual(1));
    disk.fail_by_chance(FaultRates { io_errors: 3, for_good: 1, ..FaultRates::default() }, 1);
    let fails: Vec<bool> = (0..40).map(|_| disk.list().is_err()).collect();
    assert!(!fails[0] || fails[39], "{fails:?}");
    assert!(fails.is_sorted(), "for good: {fails:?}");
}
