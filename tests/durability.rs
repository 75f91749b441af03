//! What an acknowledgement is worth in each durability, what moves the durable index, and what a power failure leaves.

mod common;

use std::thread;
use std::time::Duration;

use common::{FOR_EVER, HeldLog, Place, append_each, eventually, held_disk, open_sim, payloads, small, tiny, within};
use ringwal::sim::{OpKind, SimDisk};
use ringwal::{Batch, Config, Durability, Log, LogEntry};

const SHORT: Durability = Durability::Interval(Duration::from_millis(10));
const LONG: Durability = Durability::Interval(FOR_EVER);
const ALL: [Durability; 3] = [Durability::Sync, SHORT, Durability::None];

/// The log as a power failure at this moment leaves it, with all the luck on the other side.
fn after_power_failure(disk: &SimDisk) -> Log {
    open_sim(&disk.crash_point().lose_all(), tiny())
}

// ---- the seed's tests ----

#[test]
fn two_entries_appended_come_back_equal_after_recovery() {
    for place in [Place::uring(), Place::syscall(), Place::sim(1)] {
        let log = place.open(small());
        let written = vec![
            LogEntry { timestamp: 1000, ..LogEntry::new(1, 1, "first command") },
            LogEntry { timestamp: 1001, ..LogEntry::new(1, 2, vec![0, 255, 10]) },
        ];
        for entry in &written {
            assert_eq!(log.append_entries(vec![entry.clone()]).unwrap(), entry.index..entry.index + 1);
        }
        drop(log);
        let (log, report) = place.try_open(small()).unwrap();
        assert_eq!(log.get_entries(1..3, usize::MAX).unwrap(), written);
        assert_eq!((log.state().last, report.entries_kept, report.bytes_cut), (Some((2, 1)), 2, 0));
        assert!(report.was_clean && !report.created);
    }
}

#[test]
fn a_batch_comes_back_whole() {
    for place in [Place::uring(), Place::syscall(), Place::sim(1)] {
        let log = place.open(small());
        let batch = (0..100).fold(Batch::new(), |batch, nth| batch.push(format!("command {nth}")));
        assert_eq!(log.write(batch).unwrap(), 1..101);
        assert_eq!(log.stats().frames, 1);
        drop(log);
        let expected: Vec<Vec<u8>> = (0..100).map(|nth| format!("command {nth}").into_bytes()).collect();
        assert_eq!(payloads(&place.open(small())), expected);
    }
}

#[test]
fn the_interval_flushes_in_the_background() {
    for place in [Place::uring(), Place::syscall(), Place::sim(1)] {
        let log = place.open(small().durability(SHORT));
        for round in 1..5 {
            log.append("acknowledged before it is durable").unwrap();
            eventually("the timer syncs", || log.state().durable == Some(round));
        }
        assert!(log.stats().syncs >= 4);
    }
}

// ---- what is acknowledged ----

#[test]
fn whatever_is_acknowledged_can_be_read_by_another_process() {
    for durability in ALL {
        for place in [Place::uring(), Place::syscall()] {
            let Place::Dir(dir, _) = &place else { unreachable!("both are directories") };
            let log = place.open(small().durability(durability));
            for round in 0..30u64 {
                let payload = vec![round as u8; 900];
                log.append(payload.clone()).unwrap();
                if round % 5 == 0 {
                    // Opening anew sees the files as another process would.
                    let reader = Log::open_read_only(dir.path()).unwrap().0;
                    assert_eq!(reader.get(round + 1).unwrap().command, payload, "{durability:?}");
                }
            }
        }
    }
}

#[test]
fn a_killed_process_loses_nothing_acknowledged_in_any_durability() {
    for durability in ALL {
        for seed in 0..10 {
            let disk = SimDisk::new(seed);
            let log = open_sim(&disk, tiny().durability(durability));
            append_each(&log, (0..40).map(|nth| vec![nth; 200]));
            let image = disk.kill(|_| unreachable!("nothing is in flight"));
            assert_eq!(payloads(&open_sim(&image, tiny().durability(durability))).len(), 40);
        }
    }
}

#[test]
fn power_failure_loses_nothing_that_sync_durability_acknowledged() {
    for seed in 0..10 {
        let disk = SimDisk::new(seed);
        let log = open_sim(&disk, tiny());
        for count in 1..40 {
            log.append(format!("{count}")).unwrap();
            assert_eq!(payloads(&after_power_failure(&disk)).len(), count);
        }
    }
}

#[test]
fn power_failure_loses_nothing_up_to_the_durable_index() {
    for durability in [LONG, Durability::None] {
        let disk = SimDisk::new(4);
        let log = open_sim(&disk, tiny().durability(durability));
        append_each(&log, ["synced"; 3]);
        assert_eq!(log.sync().unwrap(), Some(3));
        append_each(&log, ["only written"; 3]);
        assert_eq!((log.state().last, log.state().durable), (Some((6, 0)), Some(3)));
        assert_eq!(payloads(&after_power_failure(&disk)), vec![b"synced".to_vec(); 3]);
        log.close().unwrap();
        assert_eq!(payloads(&after_power_failure(&disk)).len(), 6, "closing syncs");
    }
}

#[test]
fn nothing_but_a_completed_sync_moves_the_durable_index() {
    let disk = held_disk();
    // A log made before, so that no segment is made while operations are held back.
    drop(open_sim(&disk, tiny()));
    let log = open_sim(&disk, tiny().durability(Durability::None));
    // The open frame of this life goes alone, with a sync of its own.
    let pending = log.submit(Batch::new().push("first")).unwrap();
    let (waiting, theirs) = (thread::spawn(move || pending.wait()), log.clone());
    eventually("it is acknowledged", || {
        disk.complete_all();
        waiting.is_finished()
    });
    waiting.join().unwrap().unwrap();
    assert_eq!(theirs.state().durable, None, "written and acknowledged, but not synced");
    let syncing = thread::spawn(move || theirs.sync());
    eventually("the sync is in flight", || disk.in_flight().iter().any(|operation| operation.is_sync));
    assert_eq!(log.state().durable, None);
    disk.set_mode(ringwal::sim::Mode::Random);
    disk.complete_all();
    assert_eq!(within("the sync", move || syncing.join().unwrap()).unwrap(), Some(1));
    assert_eq!(log.state().durable, Some(1));
}

#[test]
fn what_is_written_during_a_sync_is_not_covered_by_it() {
    let disk = SimDisk::new(2);
    let log = open_sim(&disk, tiny().durability(Durability::None));
    append_each(&log, ["before"; 3]);
    log.sync().unwrap();
    disk.set_mode(ringwal::sim::Mode::Held);
    let complete = |is_sync| {
        let found = disk.in_flight().into_iter().find(|operation| operation.is_sync == is_sync);
        found.is_some_and(|operation| disk.complete(operation.id))
    };
    let first = log.submit(Batch::new().push("fourth")).unwrap();
    eventually("the fourth is written", || complete(false) || first.is_done());
    within("waiting", move || first.wait()).unwrap();
    let theirs = log.clone();
    let syncing = thread::spawn(move || theirs.sync());
    eventually("the sync is in flight", || disk.in_flight().iter().any(|operation| operation.is_sync));
    let second = log.submit(Batch::new().push("fifth")).unwrap();
    eventually("the fifth is written", || complete(false) || second.is_done());
    within("waiting", move || second.wait()).unwrap();
    eventually("the sync completes", || complete(true) || syncing.is_finished());
    assert_eq!(within("the sync", move || syncing.join().unwrap()).unwrap(), Some(4));
    assert_eq!(payloads(&after_power_failure(&disk)).len(), 4);
    disk.set_mode(ringwal::sim::Mode::Random);
    disk.complete_all();
}

#[test]
fn without_durability_a_roll_syncs_what_was_before_it() {
    let disk = SimDisk::new(4);
    let log = open_sim(&disk, tiny().durability(Durability::None));
    let mut last_of_first = 0;
    while log.stats().rolls == 0 {
        last_of_first = log.state().last.map_or(0, |(last, _)| last);
        log.append("a block each").unwrap();
    }
    eventually("the first segment is durable", || log.state().durable >= Some(last_of_first));
    assert!(payloads(&after_power_failure(&disk)).len() as u64 >= last_of_first);
}

#[test]
fn without_durability_nothing_is_synced_until_it_is_asked_for() {
    let disk = SimDisk::new(4);
    let log = open_sim(&disk, tiny().durability(Durability::None));
    eventually("a spare stands", || log.segments().len() == 2);
    let before = disk.counters().of(OpKind::Sync);
    append_each(&log, ["written"; 10]);
    assert_eq!((disk.counters().of(OpKind::Sync) - before, log.stats().syncs), (0, 0));
    assert_eq!(payloads(&after_power_failure(&disk)).len(), 0);
    log.sync().unwrap();
    assert_eq!((disk.counters().of(OpKind::Sync) - before, log.stats().syncs), (1, 1));
    assert_eq!(log.sync().unwrap(), Some(10));
    assert_eq!(log.stats().syncs, 1, "there was nothing to sync");
}

#[test]
fn hard_state_truncation_and_compaction_are_as_durable_as_entries() {
    let disk = SimDisk::new(4);
    let log = open_sim(&disk, tiny());
    append_each(&log, ["entry"; 10]);
    log.put_meta(b"vote", b"me").unwrap();
    assert_eq!(after_power_failure(&disk).get_meta(b"vote").as_deref(), Some(&b"me"[..]));
    log.truncate_from(8).unwrap();
    assert_eq!(after_power_failure(&disk).state().last, Some((7, 0)));
    log.compact(3).unwrap();
    assert_eq!(after_power_failure(&disk).state().compacted, Some((3, 0)));
}

#[test]
fn durabilities_may_change_from_one_open_to_the_next() {
    let mut disk = SimDisk::new(6);
    for (round, durability) in ALL.into_iter().cycle().take(9).enumerate() {
        let log = open_sim(&disk, tiny().durability(durability));
        assert_eq!(payloads(&log).len(), round * 15);
        append_each(&log, ["entry"; 15]);
        log.sync().unwrap();
        disk = disk.crash_point().lose_all();
    }
    assert_eq!(payloads(&after_power_failure(&disk)).len(), 9 * 15);
}

// ---- sync, marks ----

#[test]
fn sync_waits_for_what_was_accepted_before_it_and_tells_how_far_it_is() {
    let held = HeldLog::open(tiny());
    let log = held.log().clone();
    assert_eq!(log.sync().unwrap(), None);
    for _ in 0..5 {
        log.submit(Batch::new().push("accepted")).map(drop).unwrap();
    }
    held.wait_in_flight(1);
    let syncing = thread::spawn(move || log.sync());
    held.release();
    assert_eq!(within("the sync", move || syncing.join().unwrap()).unwrap(), Some(5));
}

#[test]
fn an_idle_log_marks_its_last_entries_once() {
    for durability in ALL {
        let disk = SimDisk::new(6);
        let log = open_sim(&disk, tiny().durability(durability).idle_mark_after(Duration::from_millis(2)));
        for round in 1..4 {
            append_each(&log, ["entry"; 2]);
            log.sync().unwrap();
            eventually("a mark follows", || log.stats().marks >= round);
            // However long it stays idle, there is no second one.
            thread::sleep(Duration::from_millis(20));
            assert_eq!(log.stats().marks, round, "{durability:?}");
        }
        // With the mark the end is proved: an open after a kill has nothing to decide.
        eventually("the lock file repeats the mark", || {
            let image = disk.crash_point().keep_completed();
            Log::open_on(std::sync::Arc::new(image), tiny()).unwrap().1.was_clean
        });
    }
}

#[test]
fn a_closed_log_opens_clean_and_without_a_write() {
    for durability in ALL {
        let (disk, config): (SimDisk, Config) = (SimDisk::new(6), tiny().durability(durability));
        let log = open_sim(&disk, config.clone());
        append_each(&log, ["entry"; 5]);
        eventually("a spare stands", || log.segments().len() == 2);
        log.close().unwrap();
        let before = disk.counters();
        let (log, report) = Log::open_on(std::sync::Arc::new(disk.clone()), config).unwrap();
        assert!(report.was_clean && report.entries_kept == 5, "{report:?}");
        let frames = |name: &str| disk.read_file(name).unwrap();
        let segment = frames(&ringwal::format::names::segment(1));
        drop(log);
        assert_eq!(frames(&ringwal::format::names::segment(1)), segment, "a log without writes stays as it is");
        assert!(disk.counters().of(OpKind::Rename) == before.of(OpKind::Rename));
    }
}
