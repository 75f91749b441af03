//! What API.md says in words, one test each: handles and closing, the state, reading, and what is refused.

mod common;

use std::ops::Range;
use std::thread;
use std::time::Duration;

use common::{
    HeldLog, Place, append_each, block_on, entries, eventually, open_sim, payloads, small, tiny, told, try_open_sim,
    within,
};
use ringwal::sim::SimDisk;
use ringwal::{Batch, Error, Event, Log, LogEntry, LogState, SegmentRole, Upto};

fn new_log() -> Log {
    open_sim(&SimDisk::new(1), tiny())
}

fn all(log: &Log) -> Vec<LogEntry> {
    log.iter(..).map(Result::unwrap).collect()
}

// ---- handles ----

#[test]
fn two_logs_in_one_process_know_nothing_of_each_other() {
    for places in [[Place::uring(), Place::syscall()], [Place::sim(1), Place::sim(2)]] {
        let logs = places.each_ref().map(|place| place.open(small()));
        for round in 0..60u64 {
            assert_eq!(logs[0].append(format!("a{round}")).unwrap(), round + 1);
            if round % 2 == 0 {
                logs[1].append_entries(vec![LogEntry::new(7, 100 + round / 2, format!("b{round}"))]).unwrap();
            }
        }
        logs[0].put_meta(b"name", b"a").unwrap();
        logs[0].compact(50).unwrap();
        let [first, second] = logs;
        first.close().unwrap();
        assert_eq!((second.get_meta(b"name"), payloads(&second).len()), (None, 30));
        assert_eq!(second.append("goes on").unwrap(), 130);
        let first = places[0].open(small());
        assert_eq!((first.state().first, first.state().last), (51, Some((60, 0))));
    }
}

#[test]
fn clones_share_one_log_and_dropping_some_closes_nothing() {
    fn is_shared<T: Clone + Send + Sync + 'static>(_: &T) {}
    let log = new_log();
    is_shared(&log);
    let clone = log.clone();
    clone.append("by the clone").unwrap();
    drop(clone);
    let clone = log.clone();
    thread::spawn(move || clone.append("on another thread").unwrap()).join().unwrap();
    assert_eq!(log.append("by the first").unwrap(), 3);
    assert_eq!(payloads(&log).len(), 3);
}

/// What every call says on a log that a clone has closed.
fn refusals(log: &Log) -> Vec<(&'static str, String)> {
    let one = || Batch::new().push("x");
    vec![
        ("append", told(log.append("x"))),
        ("append_async", told(block_on(log.append_async("x")))),
        ("append_entries", told(log.append_entries(entries(0, 3..4)))),
        ("write", told(log.write(one()))),
        ("write_async", told(block_on(log.write_async(one())))),
        ("submit", told(log.submit(one()))),
        ("try_submit", told(log.try_submit(one()).map_err(|(error, _)| error))),
        ("submit_with", told(log.submit_with(one(), |_| panic!("a refused batch has no callback")))),
        ("truncate_from", told(log.truncate_from(2))),
        ("compact", told(log.compact(1))),
        ("put_meta", told(log.put_meta(b"k", b"v"))),
        ("sync", told(log.sync())),
        ("get", told(log.get(2))),
        ("get_async", told(block_on(log.get_async(2)))),
        ("get_entries", told(log.get_entries(2..3, 100))),
        ("term", told(log.term(2))),
        ("term of the compaction point", told(log.term(1))),
        ("iter", told(log.iter(2..3).next().unwrap())),
        ("iter from the back", told(log.iter(2..3).next_back().unwrap())),
    ]
}

#[test]
fn a_closed_log_says_so_to_every_call_of_its_clones() {
    let log = new_log();
    log.write(Batch::new().push("first").push("second").compact(1)).unwrap();
    let subscription = log.subscribe(2, Upto::Accepted);
    log.clone().close().unwrap();
    for (call, told) in refusals(&log) {
        assert_eq!(told, "Closed", "{call}");
    }
    assert_eq!(subscription.count(), 0, "a subscription ends");
    log.close().unwrap();
}

#[test]
fn closing_waits_for_what_was_accepted_and_a_second_close_for_the_first() {
    let held = HeldLog::open(tiny());
    let log = held.log().clone();
    for _ in 0..10 {
        drop(log.submit(Batch::new().push("accepted")).unwrap());
    }
    held.wait_in_flight(1);
    let closing: Vec<_> = (0..3)
        .map(|_| {
            let log = log.clone();
            thread::spawn(move || log.close())
        })
        .collect();
    eventually("the closing begins", || matches!(log.get(1), Err(Error::Closed)));
    let impatient = tiny().lock_wait(Duration::ZERO);
    assert!(matches!(try_open_sim(&held.disk, impatient), Err(Error::Locked { .. })), "writes are still in flight");
    held.release();
    for thread in closing {
        within("a close", move || thread.join().unwrap()).unwrap();
    }
    assert_eq!(payloads(&open_sim(&held.disk, tiny())).len(), 10);
}

#[test]
fn a_dropped_log_can_be_opened_at_once_though_readers_of_it_live_on() {
    for place in [Place::uring(), Place::syscall(), Place::sim(4)] {
        // No patience: the locks must be free when the drop returns.
        let config = small().lock_wait(Duration::ZERO).tail_cache_bytes(0);
        let mut log = place.open(config.clone());
        for round in 0..5 {
            for nth in 0..30 {
                log.append(format!("{round}/{nth}")).unwrap();
            }
            let pending = log.submit(Batch::new().push("accepted")).unwrap();
            let mut iterator = log.iter(..);
            assert!(iterator.next().unwrap().is_ok());
            let mut subscription = log.subscribe(1, Upto::Durable);
            assert!(matches!(subscription.next(), Some(Ok(Event::Entry(entry))) if entry.index == 1));
            block_on(log.get_async(1)).unwrap();
            match round % 2 {
                0 => drop(log),
                _ => log.close().unwrap(),
            }
            log = place.open(config.clone());
            assert_eq!(log.state().last, Some((31 * (round + 1), 0)));
            pending.wait().unwrap();
            assert!(subscription.by_ref().all(|event| event.is_ok()), "it ends without an error");
            assert!(iterator.by_ref().take_while(Result::is_ok).count() < 31 * (round as usize + 1));
        }
    }
}

#[test]
fn a_log_looked_at_is_told_in_words() {
    let log = new_log();
    let pending = log.submit(Batch::new().push("x")).unwrap();
    assert!(format!("{pending:?}").contains("1..2"));
    assert!(format!("{log:?}").contains("simulated"));
    log.sync().unwrap();
    eventually("a spare stands", || log.segments().len() == 2);
    let roles: Vec<SegmentRole> = log.segments().iter().map(|segment| segment.role).collect();
    assert_eq!(roles, [SegmentRole::Active, SegmentRole::Spare]);
    assert_eq!(log.segments()[0].entries, 1..2);
    assert_eq!((log.stats().entries, log.stats().payload_bytes), (1, 1));
}

// ---- the state ----

#[test]
fn the_state_says_where_the_log_begins_and_ends() {
    let log = open_sim(&SimDisk::new(1), tiny().first_index(7));
    let check = |first, last: Option<(u64, u64)>, compacted| {
        let durable = last.map(|(index, _)| index);
        assert_eq!(log.state(), LogState { first, last, compacted, durable });
    };
    check(7, None, None);
    log.append_entries(entries(2, 7..10)).unwrap();
    check(7, Some((9, 2)), None);
    log.compact(7).unwrap();
    check(8, Some((9, 2)), Some((7, 2)));
    log.truncate_from(9).unwrap();
    check(8, Some((8, 2)), Some((7, 2)));
    log.truncate_from(8).unwrap();
    check(8, None, Some((7, 2)));
    log.compact_to(20, 5).unwrap();
    check(21, None, Some((20, 5)));
    assert_eq!(log.append("takes the term of the compaction point").unwrap(), 21);
    check(21, Some((21, 5)), Some((20, 5)));
}

#[test]
fn durable_follows_the_device_and_falls_with_a_truncate() {
    let held = HeldLog::open(tiny());
    let log = held.log();
    log.submit(Batch::new().push("1").push("2").push("3")).map(drop).unwrap();
    held.wait_in_flight(1);
    assert_eq!((log.state().last, log.state().durable), (Some((3, 0)), None));
    held.disk.complete_all();
    eventually("they are durable", || log.state().durable == Some(3));
    log.submit(Batch::new().truncate_from(2).push("another 2").push("another 3")).map(drop).unwrap();
    assert_eq!((log.state().last, log.state().durable), (Some((3, 0)), Some(1)), "an accepted truncate lowers it");
    held.release();
    assert_eq!(log.sync().unwrap(), Some(3));
    log.submit(Batch::new().compact_to(50, 0)).map(drop).unwrap();
    assert_eq!(log.state().durable, None);
    assert_eq!(log.sync().unwrap(), None);
}

// ---- reading ----

#[test]
fn terms_are_answered_at_the_compaction_point_too() {
    let log = new_log();
    log.append_entries([entries(1, 1..4), entries(3, 4..6)].concat()).unwrap();
    log.compact(4).unwrap();
    assert_eq!((log.term(4).unwrap(), log.term(5).unwrap()), (3, 3));
    assert_eq!(told(log.term(3)), "Compacted { first: 5 }");
    assert_eq!(told(log.term(6)), "NotWritten { next: 6 }");
    log.compact_to(9, 4).unwrap();
    assert_eq!(log.term(9).unwrap(), 4);
    assert_eq!(told(log.term(10)), "NotWritten { next: 10 }");
}

#[test]
fn compacted_and_not_yet_written_are_different_errors() {
    let log = new_log();
    assert_eq!(told(log.get(1)), "NotWritten { next: 1 }");
    log.append_entries(entries(1, 1..6)).unwrap();
    log.compact(2).unwrap();
    assert_eq!(told(log.get(2)), "Compacted { first: 3 }");
    assert_eq!(told(log.get(6)), "NotWritten { next: 6 }");
    assert_eq!(told(log.get_entries(2..6, 100)), "Compacted { first: 3 }");
    assert_eq!(told(log.get_entries(6..9, 100)), "NotWritten { next: 6 }");
    assert_eq!(told(log.get(u64::MAX)), "NotWritten { next: 6 }");
}

#[test]
fn ranges_are_half_open_and_give_at_least_one_entry() {
    for tail_cache_bytes in [0, 1 << 20] {
        let log = open_sim(&SimDisk::new(1), tiny().tail_cache_bytes(tail_cache_bytes));
        append_each(&log, (0..60).map(|nth| vec![nth; 100]));
        let indexes = |range: Range<u64>, max_bytes| -> Vec<u64> {
            log.get_entries(range, max_bytes).unwrap().iter().map(|entry| entry.index).collect()
        };
        assert_eq!(indexes(3..6, usize::MAX), [3, 4, 5]);
        assert_eq!(indexes(3..6, 0), [3]);
        assert_eq!(indexes(3..6, 199), [3]);
        assert_eq!(indexes(3..6, 200), [3, 4]);
        assert_eq!(indexes(58..u64::MAX, usize::MAX), [58, 59, 60]);
        assert_eq!(indexes(5..5, 100), [0; 0]);
        #[allow(clippy::reversed_empty_ranges, reason = "callers compute such ranges")]
        let backwards = 9..5;
        assert_eq!(indexes(backwards, 100), [0; 0]);
        assert_eq!(indexes(1..61, 3000).len(), 30);
        assert_eq!(indexes(1..61, usize::MAX).len(), 60);
    }
}

#[test]
fn iterators_meet_in_the_middle_and_take_every_kind_of_range() {
    let log = open_sim(&SimDisk::new(1), tiny().tail_cache_bytes(1000));
    append_each(&log, ["entry"; 150]);
    let indexes = |entries: ringwal::Entries| -> Vec<u64> { entries.map(|entry| entry.unwrap().index).collect() };
    assert_eq!(indexes(log.iter(140..)), (140..151).collect::<Vec<_>>());
    assert_eq!(indexes(log.iter(..=3)), [1, 2, 3]);
    assert_eq!(indexes(log.iter(5..7)), [5, 6]);
    assert_eq!(indexes(log.iter(149..1000)), [149, 150]);
    assert_eq!(indexes(log.iter(151..)), [0; 0]);
    let mut entries = log.iter(..);
    let mut met = (Vec::new(), Vec::new());
    while let Some(front) = entries.next() {
        met.0.push(front.unwrap().index);
        met.1.extend(entries.next_back().map(|entry| entry.unwrap().index));
    }
    met.1.reverse();
    assert_eq!([met.0, met.1].concat(), (1..151).collect::<Vec<_>>());
    assert!(entries.next().is_none() && entries.next_back().is_none());
}

#[test]
fn an_iterator_ends_where_the_log_did_when_it_was_made() {
    let log = new_log();
    append_each(&log, ["before"; 3]);
    let entries = log.iter(..);
    log.append("after").unwrap();
    assert_eq!(entries.count(), 3);
}

#[test]
fn an_entry_truncated_or_compacted_before_an_iterator_read_it_is_an_error_and_the_last_item() {
    let log = new_log();
    append_each(&log, ["entry"; 40]);
    let (mut forth, mut back) = (log.iter(30..), log.iter(..));
    let (mut early, mut late) = (log.iter(..), log.iter(..30));
    log.truncate_from(30).unwrap();
    assert_eq!(told(forth.next().unwrap()), "NotWritten { next: 30 }");
    assert_eq!(told(back.next_back().unwrap()), "NotWritten { next: 30 }");
    assert!(forth.next().is_none() && back.next_back().is_none() && back.next().is_none());
    log.compact(10).unwrap();
    assert_eq!(told(early.next().unwrap()), "Compacted { first: 11 }");
    assert!(early.next().is_none());
    // From the end it goes on until it gets there.
    let read: Vec<_> = std::iter::from_fn(|| late.next_back()).collect();
    assert!(read.last().unwrap().is_err() && read[..read.len() - 1].iter().all(Result::is_ok));
    assert_eq!(read.len(), 20, "entries 29 to 11, and the error");
}

// ---- what is refused ----

#[test]
fn an_empty_log_takes_any_first_index_and_then_only_the_next() {
    for first in [0, 1, 5, 1 << 40] {
        let log = new_log();
        assert_eq!(log.append_entries(entries(2, first..first + 2)).unwrap(), first..first + 2);
        let expected = first + 2;
        for found in [first, first + 1, first + 3, u64::MAX] {
            let refused = log.append_entries(vec![LogEntry::new(2, found, "x")]);
            assert_eq!(told(refused), format!("Gap {{ expected: {expected}, found: {found} }}"));
        }
        assert_eq!(log.append("next").unwrap(), expected);
        assert_eq!(log.get(first).unwrap(), entries(2, first..first + 1)[0]);
    }
}

#[test]
fn terms_never_fall() {
    let log = new_log();
    log.append_entries(entries(5, 1..3)).unwrap();
    assert_eq!(told(log.append_entries(entries(4, 3..4))), "TermFell { last: 5, found: 4 }");
    assert_eq!(log.append("without a term").unwrap(), 3);
    assert_eq!(log.get(3).unwrap().term, 5);
    assert_eq!(told(log.compact_to(9, 4)), "TermFell { last: 5, found: 4 }");
    assert_eq!(told(log.compact_to(2, 4)), "TermMismatch { index: 2, expected: 5, found: 4 }");
    log.compact_to(2, 5).unwrap();
    assert_eq!(all(&log).len(), 1);
    // A point right before the first entry may be set, but not above that entry's term.
    let disk = SimDisk::new(2);
    let log = open_sim(&disk, tiny());
    log.append_entries(entries(3, 10..12)).unwrap();
    assert_eq!(told(log.compact_to(9, 4)), "TermFell { last: 4, found: 3 }");
    log.compact_to(9, 2).unwrap();
    log.truncate_from(10).unwrap();
    drop(log);
    let log = open_sim(&disk, tiny());
    assert_eq!((log.term(9).unwrap(), log.append("next").unwrap()), (2, 10));
}

#[test]
fn truncation_and_compaction_stay_where_they_may() {
    let log = new_log();
    log.append_entries(entries(1, 1..9)).unwrap();
    log.compact(3).unwrap();
    assert_eq!(told(log.truncate_from(3)), "Compacted { first: 4 }");
    assert_eq!(told(log.truncate_from(0)), "Compacted { first: 4 }");
    assert_eq!(told(log.truncate_from(10)), "NotWritten { next: 9 }");
    assert_eq!(told(log.compact(9)), "NotWritten { next: 9 }");
    log.truncate_from(9).unwrap();
    log.compact(2).unwrap();
    assert_eq!(log.state(), LogState { first: 4, last: Some((8, 1)), compacted: Some((3, 1)), durable: Some(8) });
    log.truncate_from(4).unwrap();
    assert_eq!(told(log.append_entries(entries(1, 9..10))), "Gap { expected: 4, found: 9 }");
    assert_eq!(log.append("again").unwrap(), 4);
}

#[test]
fn a_batch_is_applied_in_its_order_as_one_step() {
    let log = new_log();
    log.append_entries(entries(1, 1..6)).unwrap();
    let batch = Batch::new()
        .truncate_from(4)
        .push_entry(LogEntry::new(2, 4, "new 4"))
        .push("new 5")
        .put_meta(b"vote", b"2")
        .put_meta(b"gone", b"x")
        .delete_meta(b"gone")
        .compact(2);
    assert_eq!((batch.len(), batch.is_empty()), (7, false));
    assert_eq!(log.write(batch).unwrap(), 4..6);
    assert_eq!(log.meta(), [(b"vote".to_vec().into(), b"2".to_vec().into())]);
    assert_eq!(payloads(&log), [&b"3 in 1"[..], b"new 4", b"new 5"]);
    assert_eq!((log.term(2).unwrap(), log.term(5).unwrap()), (1, 2));
    assert_eq!(log.write(Batch::new().put_meta(b"vote", b"3")).unwrap(), 6..6);
    assert_eq!(log.stats().entries, 7);
}

#[test]
fn a_refused_batch_leaves_nothing_whatever_stood_before_the_refusal() {
    let disk = SimDisk::new(3);
    let log = open_sim(&disk, tiny());
    log.append_entries(entries(3, 1..6)).unwrap();
    log.write(Batch::new().put_meta(b"vote", b"1").compact(1)).unwrap();
    let good = || Batch::new().truncate_from(4).push("x").put_meta(b"vote", b"2").compact(2).push("y");
    let bad = [
        (good().push_entry(LogEntry::new(3, 9, "gap")), "Gap { expected: 6, found: 9 }"),
        (good().push_entry(LogEntry::new(2, 6, "term")), "TermFell { last: 3, found: 2 }"),
        (good().truncate_from(2), "Compacted { first: 3 }"),
        (good().truncate_from(7), "NotWritten { next: 6 }"),
        (good().compact(6), "NotWritten { next: 6 }"),
        (good().compact_to(3, 9), "TermMismatch { index: 3, expected: 3, found: 9 }"),
        (good().compact_to(9, 1), "TermFell { last: 3, found: 1 }"),
        (good().put_meta(b"big", &[0; 2000]), "TooLarge { what: \"hard state\""),
        (good().push(vec![0; 12_000]), "TooLarge { what: \"batch\""),
    ];
    let before = (log.state(), all(&log), log.meta(), log.stats().frames);
    for (batch, expected) in bad {
        let found = told(log.write(batch.clone()));
        assert!(found.starts_with(expected), "{found}");
        let (error, back) = log.try_submit(batch.clone()).unwrap_err();
        assert!(format!("{error:?}").starts_with(expected) && back == batch);
        assert_eq!((log.state(), all(&log), log.meta(), log.stats().frames), before);
    }
    log.close().unwrap();
    let log = open_sim(&disk, tiny());
    assert_eq!((log.state(), all(&log), log.meta()), (before.0, before.1, before.2));
}

#[test]
fn hard_state_is_kept_over_reopening_and_rolls() {
    let disk = SimDisk::new(3);
    let log = open_sim(&disk, tiny());
    for round in 0..100u64 {
        log.put_meta(b"round", &round.to_le_bytes()).unwrap();
        log.put_meta(format!("key {}", round % 5).as_bytes(), b"value").unwrap();
    }
    log.write(Batch::new().delete_meta(b"key 0").delete_meta(b"never there")).unwrap();
    assert!(log.stats().rolls > 0);
    drop(log);
    let log = open_sim(&disk, tiny());
    assert_eq!(log.get_meta(b"round").as_deref(), Some(&99u64.to_le_bytes()[..]));
    assert_eq!((log.get_meta(b"key 0"), log.meta().len()), (None, 5));
    assert_eq!((log.state().last, log.state().first), (None, 1));
}
