//! A full disk is an error and not a crash: refused before an index is given out, while reads, compaction and reopening
//! go on; and once there is room, so do appends, without a restart.

mod common;

use std::sync::Arc;

use common::{append_each, block_on, eventually, held_disk, open_sim, payloads, tiny, try_open_sim, within};
use ringwal::format::names;
use ringwal::sim::{Class, FaultRule, OpKind, Rng, SimDisk};
use ringwal::{Batch, Error, Log};

const SEGMENT: u64 = 24 * 512;

/// A disk with room for so many segments, the lock file and some index files.
fn disk_for(segments: u64, seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    disk.set_capacity(Some(segments * SEGMENT + 12_000));
    disk
}

/// Appends until the disk is full; returns what was acknowledged, `from` that on.
fn fill(log: &Log) -> u64 {
    let log = log.clone();
    within("filling the disk", move || {
        loop {
            let before = log.state().last;
            match log.append("a block each") {
                Ok(index) => assert_eq!(Some(index), before.map_or(Some(1), |(last, _)| Some(last + 1))),
                Err(Error::NoSpace) => {
                    assert_eq!(log.state().last, before, "no index was given out");
                    return before.map_or(0, |(last, _)| last);
                }
                Err(other) => panic!("{other}"),
            }
        }
    })
}

#[test]
fn a_full_disk_refuses_before_an_index_is_given_out() {
    let disk = disk_for(3, 1);
    let log = open_sim(&disk, tiny());
    let last = fill(&log);
    assert!(last > 40, "{last} entries in three segments");
    for _ in 0..3 {
        assert!(matches!(log.append("more"), Err(Error::NoSpace)));
        assert!(matches!(log.submit(Batch::new().push("more")).map(drop), Err(Error::NoSpace)));
        assert!(matches!(block_on(log.append_async("more")), Err(Error::NoSpace)));
        assert!(matches!(log.submit_with(Batch::new().push("more"), |_| panic!("refused")), Err(Error::NoSpace)));
        let (refused, batch) = log.try_submit(Batch::new().push("more")).unwrap_err();
        assert!(matches!(refused, Error::NoSpace | Error::Busy) && batch == Batch::new().push("more"));
    }
    assert_eq!(log.state().last, Some((last, 0)));
    assert_eq!(payloads(&log).len() as u64, last);
}

#[test]
fn reads_hard_state_compaction_and_reopening_go_on_while_the_disk_is_full() {
    let disk = disk_for(3, 2);
    let log = open_sim(&disk, tiny());
    let last = fill(&log);
    log.put_meta(b"vote", b"me").unwrap();
    assert_eq!(payloads(&log).len() as u64, last);
    // It frees nothing, and is taken all the same.
    log.compact(1).unwrap();
    log.close().unwrap();
    let log = open_sim(&disk, tiny());
    assert_eq!((log.state().first, log.state().last), (2, Some((last, 0))));
    assert_eq!(log.get_meta(b"vote").as_deref(), Some(&b"me"[..]));
    assert!(matches!(within("an append", move || log.append("more")), Err(Error::NoSpace)));
}

#[test]
fn compaction_on_a_full_disk_lets_appends_go_on_without_a_restart() {
    let disk = disk_for(3, 3);
    let log = open_sim(&disk, tiny());
    let mut last = fill(&log);
    for round in 1..6 {
        log.compact(last - 5).unwrap();
        eventually("a segment is dropped", || log.stats().drops >= round);
        let theirs = log.clone();
        let next = within("an append", move || {
            loop {
                match theirs.append("goes on") {
                    Ok(index) => return index,
                    // Between the drop and the spare that is made of it.
                    Err(Error::NoSpace) => std::thread::yield_now(),
                    Err(other) => panic!("{other}"),
                }
            }
        });
        assert_eq!(next, last + 1);
        last = fill(&log);
        assert!(last > next, "room for more than one");
    }
    assert!(log.stats().recycled > 0, "dropped segments became new ones");
    assert!(disk.used_bytes() <= 3 * SEGMENT + 12_000);
    let kept = payloads(&log);
    log.close().unwrap();
    assert_eq!(payloads(&open_sim(&disk, tiny())), kept);
}

#[test]
fn the_compaction_of_everything_is_taken_by_a_log_that_is_full_to_the_last_block() {
    let disk = disk_for(2, 4);
    let log = open_sim(&disk, tiny());
    let last = fill(&log);
    // Hard state may use the reserve up to what the freeing compaction needs.
    let theirs = log.clone();
    within("using up the reserve", move || while theirs.put_meta(b"counter", b"1").is_ok() {});
    assert!(matches!(log.put_meta(b"counter", b"2"), Err(Error::NoSpace)));
    log.compact(last).unwrap();
    eventually("appends go on", || log.append("goes on").is_ok());
    assert_eq!(log.state().first, last + 1);
}

#[test]
fn more_room_on_the_disk_lets_appends_go_on_without_a_restart() {
    let disk = disk_for(2, 5);
    let log = open_sim(&disk, tiny());
    let last = fill(&log);
    disk.set_capacity(None);
    let theirs = log.clone();
    // The very first call that waits finds it.
    assert_eq!(within("an append", move || theirs.append("goes on")).unwrap(), last + 1);
    append_each(&log, ["over rolls"; 60]);
    assert_eq!(payloads(&log).len() as u64, last + 61);
}

#[test]
fn tasks_and_threads_that_wait_for_a_segment_are_told_when_there_is_no_room_for_one() {
    let disk = disk_for(2, 6);
    let log = open_sim(&disk, tiny());
    fill(&log);
    let threads: Vec<_> = (0..4)
        .map(|nth| {
            let log = log.clone();
            std::thread::spawn(move || match nth % 2 {
                0 => log.append("more"),
                _ => block_on(log.append_async("more")),
            })
        })
        .collect();
    for thread in threads {
        assert!(matches!(within("a refusal", move || thread.join().unwrap()), Err(Error::NoSpace)));
    }
}

#[test]
fn no_room_at_any_step_of_making_a_segment_is_no_failure() {
    let temporary = names::temporary(&names::segment(2));
    for kind in [OpKind::Create, OpKind::Allocate, OpKind::Write, OpKind::Sync, OpKind::Rename] {
        let disk = SimDisk::new(7);
        disk.fail(FaultRule::no_space(kind, 1).on(&temporary).for_good());
        let log = open_sim(&disk, tiny());
        let last = fill(&log);
        assert!(last > 5 && payloads(&log).len() as u64 == last, "{kind:?}");
        disk.clear_faults();
        let theirs = log.clone();
        assert_eq!(within("an append", move || theirs.append("goes on")).unwrap(), last + 1, "{kind:?}");
        append_each(&log, ["over rolls"; 60]);
    }
}

#[test]
fn a_full_disk_where_an_index_file_should_go_does_no_harm() {
    let disk = SimDisk::new(8);
    for kind in [OpKind::Create, OpKind::Allocate, OpKind::Write, OpKind::Rename] {
        for sequence in 1..10 {
            disk.fail(FaultRule::no_space(kind, 1).on(&names::temporary(&names::index(sequence))));
        }
    }
    let log = open_sim(&disk, tiny().tail_cache_bytes(0));
    append_each(&log, (0..150).map(|nth| vec![nth; 60]));
    assert_eq!(payloads(&log), (0..150).map(|nth| vec![nth; 60]).collect::<Vec<_>>());
    log.close().unwrap();
    let log = open_sim(&disk, tiny());
    assert_eq!(payloads(&log).len(), 150);
}

#[test]
fn a_log_cannot_be_created_without_room_and_can_once_there_is_some() {
    let disk = SimDisk::new(9);
    disk.set_capacity(Some(SEGMENT / 2));
    assert!(matches!(try_open_sim(&disk, tiny()), Err(Error::NoSpace)));
    disk.set_capacity(Some(0));
    assert!(matches!(try_open_sim(&disk, tiny()), Err(Error::NoSpace | Error::Io { .. })));
    disk.set_capacity(None);
    let log = open_sim(&disk, tiny());
    assert_eq!(log.append("first").unwrap(), 1);
}

#[test]
fn a_log_that_crashes_again_and_again_on_a_full_disk_opens_each_time() {
    for seed in 0..6 {
        let mut rng = Rng::new(seed);
        let mut disk = disk_for(2, seed);
        let log = open_sim(&disk, tiny());
        let last = fill(&log);
        drop(log);
        let mut votes = 0u64;
        for round in 0..60 {
            let log = open_sim(&disk, tiny());
            assert_eq!(payloads(&log).len() as u64, last, "round {round}");
            let vote = log.get_meta(b"vote").map_or(0, |vote| u64::from_le_bytes(vote[..].try_into().unwrap()));
            assert!(vote >= votes, "round {round}: vote {vote} after {votes} was acknowledged");
            votes = vote;
            match log.put_meta(b"vote", &(votes + 1).to_le_bytes()) {
                Ok(()) => votes += 1,
                Err(error) => assert!(matches!(error, Error::NoSpace), "{error}"),
            }
            assert!(matches!(log.append("more"), Err(Error::NoSpace)));
            disk = disk.crash_at_random(rng.next_u64());
        }
        let log = open_sim(&disk, tiny());
        log.compact(last).unwrap();
        eventually("appends go on", || log.append("goes on").is_ok());
        assert_eq!((log.state().first, log.state().last), (last + 1, Some((last + 1, 0))));
    }
}

#[test]
fn what_is_cut_is_saved_only_where_there_is_room_and_the_report_says_so() {
    for is_full in [false, true] {
        let disk = held_disk();
        let log = open_sim(&disk, tiny());
        eventually("a spare stands", || log.segments().len() == 2);
        let pending = log.submit(Batch::new().push(vec![9; 2000])).unwrap();
        assert!(disk.wait_in_flight(1, common::FOR_EVER));
        let image = disk.crash(|_| Class::OneMissing(2));
        disk.set_mode(ringwal::sim::Mode::Random);
        disk.complete_all();
        pending.wait().unwrap();
        image.set_mode(ringwal::sim::Mode::Random);
        image.set_capacity(is_full.then(|| image.used_bytes()));
        let (log, report) = Log::open_on(Arc::new(image.clone()), tiny()).unwrap();
        assert!(report.bytes_cut >= 2000, "{report:?}");
        assert_eq!(report.saved_to.is_none(), is_full, "{report:?}");
        assert_eq!(report.cut_reason.contains("no space"), is_full);
        let saved = image.file_names().iter().any(|name| name.starts_with("cut-"));
        assert_eq!(saved, !is_full);
        assert_eq!(log.append("in its place").unwrap(), 1);
    }
}
