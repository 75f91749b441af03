//! Many threads on one log, and the log's own: everybody who waits is told, however many wait and however they do it;
//! spares are made, recycled and given up beside appends.

mod common;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use common::{HeldLog, eventually, open_sim, payloads, scratch, small, tiny, within};
use ringwal::format::names;
use ringwal::sim::{Class, FaultRule, OpKind, SimDisk};
use ringwal::{Batch, Config, Error, Log, SegmentRole, Wait};

/// More than are woken before the next frame goes.
const MANY: u64 = 80;

/// Appends from many threads; every index is given out once, and everything is there after reopening.
fn append_from_many(config: Config, each: u64) {
    let dir = scratch();
    let (log, _) = Log::open(dir.path().join("log"), config.clone()).unwrap();
    let theirs = log.clone();
    let indexes = within("appending from many threads", move || {
        let log = &theirs;
        thread::scope(|scope| {
            let append = |nth| move || (0..each).map(|n| log.append(format!("{nth} {n}")).unwrap()).collect::<Vec<_>>();
            let threads: Vec<_> = (0..MANY).map(|nth| scope.spawn(append(nth))).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<u64>>()
        })
    });
    assert_eq!(indexes.len() as u64, MANY * each);
    assert_eq!(indexes.iter().collect::<BTreeSet<_>>().len(), indexes.len(), "no index is given out twice");
    log.close().unwrap();
    let (log, _) = Log::open(dir.path().join("log"), config).unwrap();
    let found: BTreeSet<Vec<u8>> = payloads(&log).into_iter().collect();
    assert_eq!(found.len() as u64, MANY * each);
}

#[test]
fn however_many_wait_for_a_frame_each_is_told() {
    append_from_many(small(), 40);
}

#[test]
fn threads_that_spin_are_told_as_those_that_sleep() {
    for limit in [1, 50, 5_000, u64::MAX] {
        append_from_many(small().wait(Wait::Spin(Duration::from_micros(limit))), 10);
    }
}

#[test]
fn however_many_wait_for_a_frame_that_fails_each_learns_the_cause() {
    for nth in [1, 3, 9] {
        let disk = SimDisk::new(nth);
        let log = open_sim(&disk, small());
        disk.fail(FaultRule::io_error(OpKind::Write, nth));
        let theirs = log.clone();
        let acked = within("appending to a disk that fails", move || {
            let acked = AtomicU64::new(0);
            thread::scope(|scope| {
                for _ in 0..MANY {
                    scope.spawn(|| {
                        loop {
                            match theirs.append("entry") {
                                Ok(_) => acked.fetch_add(1, Ordering::Relaxed),
                                Err(Error::Poisoned(_)) => break,
                                Err(other) => panic!("{other}"),
                            };
                        }
                    });
                }
            });
            acked.into_inner()
        });
        drop(log);
        let kept = payloads(&open_sim(&disk, small())).len() as u64;
        assert!(kept >= acked, "{acked} were acknowledged, {kept} are there");
    }
}

#[test]
fn a_poisoned_log_closes_however_far_the_next_spare_is() {
    let mut poisoned = 0;
    for nth in (10..130).step_by(6) {
        let disk = SimDisk::new(nth);
        let log = open_sim(&disk, small().segment_bytes(4 << 20));
        // In the second segment, beside whose filling the third one is made at the appends' pace.
        disk.fail(FaultRule::io_error(OpKind::Write, nth).on(&names::segment(2)));
        let append = || (0..400).all(|_| log.append(vec![7; 4000]).is_ok());
        thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(append))));
        let closed = within("closing the log", move || log.close());
        poisoned += u32::from(matches!(closed, Err(Error::Poisoned(_))));
    }
    assert!(poisoned > 5, "the failures were to be met: {poisoned}");
}

#[test]
fn the_writer_of_a_poisoned_log_sleeps_even_where_threads_spin() {
    let held = HeldLog::open(small().wait(Wait::Spin(Duration::from_micros(50))).thread_name("asleep"));
    let log = held.log().clone();
    let first = log.submit(Batch::new().push("in flight")).unwrap();
    held.wait_in_flight(1);
    let second = log.submit(Batch::new().push("behind it")).unwrap();
    held.disk.complete_failing(held.disk.in_flight()[0].id, 5, Class::Absent);
    within("waiting", move || assert!(first.wait().is_err() && second.wait().is_err()));
    let status = |task: &std::fs::DirEntry| std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
    let writer = std::fs::read_dir("/proc/self/task").unwrap().map(Result::unwrap);
    let writer = writer.into_iter().find(|task| status(task).starts_with("Name:\tasleep-writer")).unwrap();
    eventually("the writer sleeps", || (0..50).all(|_| status(&writer).contains("State:\tS")));
}

#[test]
fn callbacks_run_in_the_order_of_their_calls_however_many_wait() {
    let dir = scratch();
    let (log, _) = Log::open(dir.path().join("log"), small()).unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let (theirs, list) = (log.clone(), told.clone());
    within("callbacks beside many threads", move || {
        thread::scope(|scope| {
            for _ in 0..MANY {
                scope.spawn(|| (0..30).for_each(|_| assert!(theirs.append("entry").unwrap() > 0)));
            }
            for nth in 0..600 {
                // An empty batch is done when everything before it is, which may be so already.
                let batch = if nth % 2 == 0 { Batch::new() } else { Batch::new().push("called back") };
                let list = list.clone();
                theirs.submit_with(batch, move |result| list.lock().unwrap().push((nth, result.is_ok()))).unwrap();
            }
        });
    });
    log.close().unwrap();
    assert_eq!(*told.lock().unwrap(), (0..600).map(|nth| (nth, true)).collect::<Vec<_>>());
}

#[test]
fn the_logs_threads_have_the_name_they_were_given_and_the_writer_its_cpu() {
    let dir = scratch();
    let cpu = rustix::thread::sched_getcpu();
    let config = small().thread_name("ledger").writer_cpu(Some(cpu));
    let (log, _) = Log::open(dir.path().join("log"), config).unwrap();
    log.append("entry").unwrap();
    let names: Vec<(String, String)> = std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| {
            let task = task.unwrap().path();
            let name = std::fs::read_to_string(task.join("comm")).ok()?;
            Some((name.trim().to_string(), std::fs::read_to_string(task.join("status")).ok()?))
        })
        .collect();
    let status = |wanted: &str| names.iter().find(|(name, _)| name == wanted).map(|(_, status)| status.clone());
    assert!(status("ledger-helper").is_some(), "{names:?}");
    let writer = status("ledger-writer").unwrap();
    assert!(writer.lines().any(|line| line == format!("Cpus_allowed_list:\t{cpu}")), "{writer}");
}

#[test]
fn a_cpu_or_a_name_that_cannot_be_is_an_error_that_names_the_setting() {
    let dir = scratch();
    for cpu in [1023, usize::MAX] {
        let error = Log::open(dir.path().join("log"), small().writer_cpu(Some(cpu))).unwrap_err();
        assert!(error.to_string().contains("writer_cpu"), "{error}");
    }
    for name in ["", "more than eight", "a\0b"] {
        let error = Log::open(dir.path().join("log"), small().thread_name(name)).unwrap_err();
        assert!(matches!(&error, Error::Config(why) if why.contains("thread_name")), "{error}");
    }
    Log::open(dir.path().join("log"), small()).unwrap();
}

#[test]
fn dropped_segments_become_spares_beyond_those_asked_for() {
    let disk = SimDisk::new(7);
    let log = open_sim(&disk, tiny());
    let spares = |log: &Log| log.segments().iter().filter(|segment| segment.role == SegmentRole::Spare).count();
    let mut last = 0;
    while log.stats().rolls < 8 {
        last = log.append(vec![1; 300]).unwrap();
    }
    log.compact(last).unwrap();
    eventually("dropped segments are recycled", || spares(&log) == 3 && log.stats().recycled >= 2);
    while log.stats().rolls < 12 {
        log.append(vec![2; 300]).unwrap();
    }
    assert_eq!(payloads(&log).first().map(Vec::len), Some(300));
    log.close().unwrap();
    let log = open_sim(&disk, tiny());
    assert!(payloads(&log).iter().all(|payload| payload == &vec![2; 300]), "nothing of a file's earlier life");
}

#[test]
fn a_log_that_is_closed_while_a_spare_is_filled_leaves_no_half_one_behind() {
    for appends in [0, 1, 20] {
        let dir = scratch();
        let (log, _) = Log::open(dir.path().join("log"), Config::default()).unwrap();
        (0..appends).for_each(|nth| assert_eq!(log.append("entry").unwrap(), nth + 1));
        log.close().unwrap();
        let names = std::fs::read_dir(dir.path().join("log")).unwrap().map(|entry| entry.unwrap().file_name());
        let names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
        assert!(names.iter().all(|name| !name.ends_with(".tmp")), "{names:?}");
    }
}
