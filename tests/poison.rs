//! A failed write or sync is final: no acknowledgement after it, waiters learn the first cause, reads go on up to the
//! durable index, and the next open decides. And what fails while a log is opened is an error, never a cut.

mod common;

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use common::{
    FOR_EVER, HeldLog, append_each, block_on, entries, eventually, interrupted, open_sim, payloads, poll_once, small,
    tiny, try_open_sim, within,
};
use ringwal::disk::Disk;
use ringwal::format::names;
use ringwal::sim::{Class, FaultRule, OpKind, SimDisk};
use ringwal::{Batch, Config, Durability, Error, Log, LogEntry};

const EIO: i32 = 5;

fn first_segment() -> String {
    names::segment(1)
}

/// The first cause behind a poisoned result.
fn cause<T: std::fmt::Debug>(result: Result<T, Error>) -> Arc<Error> {
    match result {
        Err(Error::Poisoned(cause)) => cause,
        other => panic!("not poisoned: {other:?}"),
    }
}

fn is_io_error<T: std::fmt::Debug>(result: Result<T, Error>) {
    assert!(matches!(&*cause(result), Error::Io { source, .. } if source.raw_os_error() == Some(EIO)));
}

#[test]
fn no_append_is_acknowledged_after_a_write_that_failed_once() {
    for nth in 1..=6 {
        for lands in [Class::Absent, Class::Head, Class::Scattered(nth), Class::Whole] {
            let disk = SimDisk::new(nth);
            let log = open_sim(&disk, tiny());
            disk.fail(FaultRule::io_error(OpKind::Write, nth).on(&first_segment()).landing(lands));
            for index in 1..nth {
                assert_eq!(log.append(format!("entry {index}")).unwrap(), index);
            }
            is_io_error(log.append(format!("entry {nth}")));
            drop_and_decide(log, &disk, nth);
        }
    }
}

/// Every later call fails with the first cause, reads end where durability ends, the next open keeps what was acked.
fn drop_and_decide(log: Log, disk: &SimDisk, failed: u64) {
    let first_cause = cause(log.append("later"));
    for _ in 0..3 {
        assert!(Arc::ptr_eq(&first_cause, &cause(log.append("later"))));
    }
    assert!(Arc::ptr_eq(&first_cause, &cause(log.sync())));
    assert!(Arc::ptr_eq(&first_cause, &cause(log.put_meta(b"vote", b"1"))));
    assert!(Arc::ptr_eq(&first_cause, &cause(log.try_submit(Batch::new().push("later")).map_err(|(error, _)| error))));
    assert!(Arc::ptr_eq(&first_cause, &cause(log.get(failed))));
    assert!(matches!(log.get(failed + 1), Err(Error::NotWritten { .. })));
    let acked: Vec<Vec<u8>> = (1..failed).map(|index| format!("entry {index}").into_bytes()).collect();
    assert_eq!(payloads(&log), acked);
    let last = Some(failed - 1).filter(|&last| last > 0);
    assert_eq!((log.state().last.map(|(last, _)| last), log.state().durable), (last, last));
    assert!(Arc::ptr_eq(&first_cause, &cause(log.close())));
    let log = open_sim(disk, tiny());
    let kept = payloads(&log);
    assert_eq!(kept[..acked.len()], acked);
    assert!(kept.len() <= acked.len() + 1, "{} entries came of {failed}", kept.len());
    assert_eq!(log.append("goes on").unwrap(), kept.len() as u64 + 1);
}

#[test]
fn everyone_who_waits_learns_the_first_cause() {
    let held = HeldLog::open(tiny());
    let log = held.log().clone();
    let order = Arc::new(Mutex::new(Vec::new()));
    let note = |name: &'static str| {
        let order = order.clone();
        move |result: Result<(), Error>| order.lock().unwrap().push((name, cause(result)))
    };
    let first = log.submit(Batch::new().push("first")).unwrap();
    held.wait_in_flight(1);
    log.submit_with(Batch::new().push("second"), note("second")).unwrap();
    let third = log.submit(Batch::new().push("third")).unwrap();
    log.submit_with(Batch::new().push("fourth"), note("fourth")).unwrap();
    let mut fifth = Box::pin(log.write_async(Batch::new().push("fifth")));
    assert!(poll_once(&mut fifth).is_pending());
    let syncing = thread::spawn({
        let log = log.clone();
        move || log.sync()
    });
    held.disk.complete_failing(held.disk.in_flight()[0].id, EIO, Class::Absent);
    let first_cause = within("waiting", move || cause(first.wait()));
    assert!(matches!(&*first_cause, Error::Io { source, .. } if source.raw_os_error() == Some(EIO)));
    assert!(Arc::ptr_eq(&first_cause, &within("waiting", move || cause(third.wait()))));
    assert!(Arc::ptr_eq(&first_cause, &cause(block_on(fifth))));
    assert!(Arc::ptr_eq(&first_cause, &cause(syncing.join().unwrap())));
    eventually("both callbacks run", || order.lock().unwrap().len() == 2);
    let order = order.lock().unwrap();
    assert_eq!([order[0].0, order[1].0], ["second", "fourth"]);
    assert!(order.iter().all(|(_, cause)| Arc::ptr_eq(cause, &first_cause)));
    assert_eq!(held.disk.in_flight(), [], "nothing was submitted after the failure");
}

#[test]
fn callers_who_wait_for_room_are_let_go_by_poison() {
    let held = HeldLog::open(tiny().queue_bytes_max(600));
    let log = held.log().clone();
    let pending = log.submit(Batch::new().push(vec![0; 700])).unwrap();
    held.wait_in_flight(1);
    let blocked: Vec<_> = (0..3)
        .map(|_| {
            let log = log.clone();
            thread::spawn(move || log.append("no room yet"))
        })
        .collect();
    let mut task = Box::pin(log.append_async("no room yet"));
    assert!(poll_once(&mut task).is_pending());
    held.disk.complete_failing(held.disk.in_flight()[0].id, EIO, Class::Absent);
    is_io_error(within("waiting", move || pending.wait()));
    for thread in blocked {
        is_io_error(within("a blocked append", move || thread.join().unwrap()));
    }
    is_io_error(block_on(task));
}

#[test]
fn frames_behind_a_failed_one_are_not_acknowledged_though_they_are_written() {
    let held = HeldLog::open(small().frame_bytes_max(4096));
    let log = held.log().clone();
    // Each is a frame of its own, because it fills one; the fourth stays behind and gathers.
    let pending: Vec<_> = (0..4).map(|_| log.submit(Batch::new().push(vec![1; 4000])).unwrap()).collect();
    held.wait_in_flight(3);
    let flights = held.disk.in_flight();
    held.disk.complete(flights[2].id);
    held.disk.complete(flights[0].id);
    held.disk.complete_failing(flights[1].id, EIO, Class::Head);
    let fates: Vec<bool> =
        pending.into_iter().map(|pending| within("waiting", move || pending.wait().is_ok())).collect();
    assert_eq!(fates[1..], [false; 3]);
    assert_eq!(log.state().durable, Some(1).filter(|_| fates[0]));
    let kept = payloads(&log).len();
    drop(log);
    let disk = held.disk.clone();
    drop(held);
    let log = open_sim(&disk, small());
    assert!(payloads(&log).len() >= kept && payloads(&log).len() < 2, "a frame behind a hole is not kept");
}

#[test]
fn a_log_whose_first_write_failed_shows_nothing() {
    let disk = SimDisk::new(1);
    let log = open_sim(&disk, tiny());
    disk.fail(FaultRule::io_error(OpKind::Write, 1).on(&first_segment()));
    is_io_error(log.append("lost"));
    let state = log.state();
    assert_eq!((state.last, state.durable), (None, None));
    is_io_error(log.get(1));
    is_io_error(log.term(1));
    assert_eq!(log.iter(..).count(), 0);
}

#[test]
fn the_last_term_after_poison_is_that_of_the_last_durable_entry() {
    let disk = SimDisk::new(1);
    let log = open_sim(&disk, tiny());
    log.append_entries(entries(3, 1..4)).unwrap();
    disk.fail(FaultRule::io_error(OpKind::Write, 1).on(&first_segment()));
    is_io_error(log.append_entries(entries(9, 4..6)));
    assert_eq!(log.state().last, Some((3, 3)));
    assert_eq!(log.term(3).unwrap(), 3);
}

#[test]
fn a_log_that_began_again_lower_down_shows_nothing_undurable_after_poison() {
    let held = HeldLog::open(tiny());
    let log = held.log().clone();
    let first = log.submit(Batch::new().push_entry(LogEntry::new(1, 100, "old"))).unwrap();
    held.wait_in_flight(1);
    held.disk.complete_all();
    within("waiting", move || first.wait()).unwrap();
    let again = log.submit(Batch::new().truncate_from(100).push_entry(LogEntry::new(1, 5, "new"))).unwrap();
    held.wait_in_flight(1);
    assert_eq!((log.state().last, log.state().durable), (Some((5, 1)), None));
    held.disk.complete_failing(held.disk.in_flight()[0].id, EIO, Class::Absent);
    is_io_error(within("waiting", move || again.wait()));
    assert_eq!((log.state().last, log.state().durable), (None, None));
    is_io_error(log.get(5));
}

#[test]
fn a_failed_sync_is_final_where_syncs_are_apart() {
    for durability in [Durability::None, Durability::Interval(Duration::from_millis(5))] {
        let disk = SimDisk::new(3);
        // The interval is long while entries are put in, and the sync is asked for.
        let patient = if durability == Durability::None { durability } else { Durability::Interval(FOR_EVER) };
        let log = open_sim(&disk, tiny().durability(patient));
        log.append("synced").unwrap();
        assert_eq!(log.sync().unwrap(), Some(1));
        disk.fail(FaultRule::io_error(OpKind::Sync, 1).on(&first_segment()));
        log.append("written").unwrap();
        assert_eq!(log.state().durable, Some(1));
        is_io_error(log.sync());
        is_io_error(log.sync());
        is_io_error(log.append("later"));
        assert_eq!((log.state().durable, payloads(&log).len()), (Some(1), 1));
        is_io_error(log.close());
        // Nobody lost power: what was acknowledged as written is there.
        let log = open_sim(&disk, tiny().durability(durability));
        assert_eq!(payloads(&log), [b"synced".to_vec(), b"written".to_vec()]);
    }
}

#[test]
fn a_failed_timed_sync_poisons_too() {
    let disk = SimDisk::new(3);
    let log = open_sim(&disk, tiny().durability(Durability::Interval(Duration::from_millis(5))));
    disk.fail(FaultRule::io_error(OpKind::Sync, 1).on(&first_segment()));
    log.append("written").unwrap();
    eventually("the timer's sync fails", || log.append("more").is_err());
    is_io_error(log.append("more"));
    assert_eq!(log.state().durable, None);
}

#[test]
fn a_spare_that_cannot_be_made_poisons_and_loses_nothing() {
    let temporary = names::temporary(&names::segment(2));
    for kind in [OpKind::Create, OpKind::Allocate, OpKind::Write, OpKind::Open, OpKind::Sync, OpKind::Rename] {
        let disk = SimDisk::new(7);
        disk.fail(FaultRule::io_error(kind, 1).on(&temporary));
        let log = open_sim(&disk, tiny());
        let mut acked = 0;
        within("filling the log", {
            let log = log.clone();
            move || while log.append("an entry").is_ok() {}
        });
        is_io_error(log.append("later"));
        while log.get(acked + 1).is_ok() {
            acked += 1;
        }
        assert_eq!(log.state().durable.unwrap_or(0), acked, "{kind:?}");
        drop(log);
        let log = open_sim(&disk, tiny());
        assert!(payloads(&log).len() as u64 >= acked, "{kind:?}");
        append_each(&log, ["goes on, over rolls"; 100]);
        assert!(log.stats().rolls > 0);
    }
}

#[test]
fn a_spare_that_no_descriptor_is_left_for_is_refused_and_poisons_nothing() {
    // EMFILE, ENFILE, ENOMEM.
    for number in [24, 23, 12] {
        let disk = SimDisk::new(7);
        disk.fail(FaultRule::new(OpKind::Create, 1, number).on(&names::temporary(&names::segment(2))).for_good());
        let log = open_sim(&disk, tiny());
        let theirs = log.clone();
        let refused = within("filling the log", move || {
            loop {
                if let Err(error) = theirs.append("an entry") {
                    break error;
                }
            }
        });
        assert!(
            matches!(&refused, Error::Io { source, .. } if source.raw_os_error() == Some(number)),
            "{number}: {refused}"
        );
        let state = log.state();
        assert_eq!(state.durable, state.last.map(|(last, _)| last), "what was accepted is durable all the same");
        disk.clear_faults();
        append_each(&log, ["goes on, over rolls"; 100]);
        assert!(log.stats().rolls > 0);
        log.close().unwrap();
    }
}

#[test]
fn a_read_that_fails_once_while_opening_is_an_error_and_never_a_cut() {
    for durability in [Durability::Sync, Durability::None] {
        for kind in [OpKind::Read, OpKind::Open, OpKind::List] {
            fail_each_once(&interrupted(durability), kind);
        }
    }
}

#[test]
fn what_else_fails_once_while_opening_loses_nothing_either() {
    let apart = [OpKind::Read, OpKind::Open, OpKind::List];
    for kind in OpKind::ALL.into_iter().filter(|kind| !apart.contains(kind)) {
        fail_each_once(&interrupted(Durability::Sync), kind);
    }
}

/// Lets each operation of a kind fail once while the log is opened: that is an error or does not matter, and the open
/// after it finds everything.
fn fail_each_once((image, config, kept): &(SimDisk, Config, Vec<LogEntry>), kind: OpKind) {
    let mut refused = 0;
    for nth in 1.. {
        let disk = image.copy_at_rest();
        disk.fail(FaultRule::io_error(kind, nth));
        let opened = try_open_sim(&disk, config.clone());
        let has_struck = disk.counters().of(kind) >= nth;
        match opened {
            Ok(log) => {
                let found: Vec<LogEntry> = log.iter(..).map_while(Result::ok).collect();
                assert!(found.len() <= kept.len() && found == kept[..found.len()], "{kind:?} {nth}");
            }
            Err(Error::Io { source, .. }) if source.raw_os_error() == Some(EIO) => refused += 1,
            Err(other) => panic!("{kind:?} number {nth} failing is told as: {other}"),
        }
        disk.clear_faults();
        let log = open_sim(&disk, config.clone());
        let found: Vec<LogEntry> = log.iter(..).map(Result::unwrap).collect();
        assert_eq!(found, *kept, "after {kind:?} number {nth} failed");
        assert_eq!(log.get_meta(b"vote").as_deref(), Some(&b"me"[..]));
        if !has_struck {
            break;
        }
    }
    let always = [OpKind::Read, OpKind::Open, OpKind::List, OpKind::Write];
    assert!(refused > 0 || !always.contains(&kind), "no {kind:?} was made to fail");
}

#[test]
fn a_full_verification_reports_a_failing_read_as_such() {
    let (image, config, kept) = interrupted(Durability::Sync);
    let disk = image.copy_at_rest();
    disk.fail(FaultRule::io_error(OpKind::Read, 12).for_good());
    let opened = try_open_sim(&disk, config.clone().verify(ringwal::Verify::Full));
    assert!(matches!(opened, Err(Error::Io { .. })), "{opened:?}");
    let read_only: Arc<dyn Disk> = Arc::new(disk.clone());
    assert!(read_only.list().unwrap().contains(&first_segment()) || kept[0].index > 1);
    disk.clear_faults();
    let log = open_sim(&disk, config.verify(ringwal::Verify::Full));
    assert_eq!(log.iter(..).map(Result::unwrap).collect::<Vec<_>>(), kept);
}
