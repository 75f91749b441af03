//! Subscriptions: entries in order, first from the disk and then as they come; truncations told before an index is shown
//! again; compaction, poison and closing.

mod common;

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::thread;

use common::{
    HeldLog, Place, append_each, block_on, entries, eventually, open_sim, scratch, small, tiny, told, within,
};
use futures_core::Stream;
use ringwal::sim::{Class, FaultRule, OpKind, Rng, SimDisk};
use ringwal::{Batch, Config, Error, Event, EventStream, Log, LogEntry, Subscription, Upto};

const BOTH: [Upto; 2] = [Upto::Accepted, Upto::Durable];

/// No tail cache: what is not in flight is read from the disk.
fn uncached() -> Config {
    tiny().tail_cache_bytes(0)
}

/// The next event of a subscription, which must come.
fn next(subscription: &mut Subscription) -> Event {
    subscription.next().expect("the subscription goes on").unwrap()
}

fn next_index(subscription: &mut Subscription) -> u64 {
    match next(subscription) {
        Event::Entry(entry) => entry.index,
        other => panic!("not an entry: {other:?}"),
    }
}

fn poll_next(stream: &mut EventStream) -> Poll<Option<Result<Event, Error>>> {
    Pin::new(stream).poll_next(&mut Context::from_waker(Waker::noop()))
}

/// What a consumer keeps by doing what it is told; it checks that nothing is shown out of order.
#[derive(Debug, Default, PartialEq, Eq)]
struct Replica {
    first: u64,
    entries: Vec<LogEntry>,
}

impl Replica {
    fn from(first: u64) -> Replica {
        Replica { first, entries: Vec::new() }
    }

    fn take(&mut self, event: Event) {
        let next = self.first + self.entries.len() as u64;
        match event {
            Event::Entry(entry) => {
                assert_eq!(entry.index, next, "shown out of order, or again without being told of a truncation");
                self.entries.push(entry);
            }
            Event::Truncated { from } => {
                assert!(from <= next, "a truncation at {from} is news to one who is at {next}");
                self.entries.truncate(from.saturating_sub(self.first) as usize);
            }
        }
    }

    fn is_at(&self, command: &str) -> bool {
        self.entries.last().is_some_and(|last| last.command == command)
    }
}

/// Follows a log until an entry says that it is the last.
fn follow(subscription: Subscription, first: u64) -> Vec<LogEntry> {
    let mut replica = Replica::from(first);
    for event in subscription {
        replica.take(event.unwrap());
        if replica.is_at("the end") {
            return replica.entries;
        }
    }
    panic!("the subscription ended early");
}

async fn follow_stream(mut stream: EventStream, first: u64) -> Vec<LogEntry> {
    let mut replica = Replica::from(first);
    while let Some(event) = poll_fn(|context| Pin::new(&mut stream).poll_next(context)).await {
        replica.take(event.unwrap());
        if replica.is_at("the end") {
            return replica.entries;
        }
    }
    panic!("the stream ended early");
}

#[test]
fn subscribers_catch_up_from_the_disk_and_go_on_live() {
    for place in [Place::uring(), Place::syscall(), Place::sim(3)] {
        let log = place.open(small().tail_cache_bytes(0));
        append_each(&log, (0..150).map(|nth| format!("{nth}").repeat(nth)));
        let followers: Vec<_> = BOTH
            .into_iter()
            .flat_map(|upto| {
                let (one, other) = (log.subscribe(1, upto), log.subscribe(70, upto).stream());
                [thread::spawn(|| follow(one, 1)), thread::spawn(|| block_on(follow_stream(other, 70)))]
            })
            .collect();
        append_each(&log, (150..250).map(|nth| format!("{nth}").repeat(nth % 90)));
        log.append("the end").unwrap();
        let all: Vec<LogEntry> = log.iter(..).map(Result::unwrap).collect();
        for (nth, follower) in followers.into_iter().enumerate() {
            let seen = within("following", move || follower.join().unwrap());
            assert_eq!(seen, all[if nth % 2 == 0 { 0 } else { 69 }..]);
        }
    }
}

#[test]
fn accepted_subscribers_see_what_is_in_flight_and_durable_ones_do_not() {
    let held = HeldLog::open(tiny());
    let log = held.log();
    let mut accepted = log.subscribe(1, Upto::Accepted);
    let mut durable = log.subscribe(1, Upto::Durable).stream();
    log.submit(Batch::new().push("one").push("two")).map(drop).unwrap();
    assert_eq!((next_index(&mut accepted), next_index(&mut accepted)), (1, 2));
    assert!(poll_next(&mut durable).is_pending());
    held.wait_in_flight(1);
    held.disk.complete_all();
    eventually("both are durable", || log.state().durable == Some(2));
    log.submit(Batch::new().push("three")).map(drop).unwrap();
    assert!(matches!(poll_next(&mut durable), Poll::Ready(Some(Ok(Event::Entry(entry)))) if entry.index == 1));
    assert!(matches!(poll_next(&mut durable), Poll::Ready(Some(Ok(Event::Entry(entry)))) if entry.index == 2));
    assert!(poll_next(&mut durable).is_pending(), "the third is not durable");
}

#[test]
fn weakly_durable_logs_show_durable_subscribers_only_what_was_synced() {
    let log = open_sim(&SimDisk::new(1), tiny().durability(ringwal::Durability::None));
    let mut durable = log.subscribe(1, Upto::Durable).stream();
    log.append("written").unwrap();
    assert!(poll_next(&mut durable).is_pending());
    log.sync().unwrap();
    assert!(matches!(poll_next(&mut durable), Poll::Ready(Some(Ok(Event::Entry(entry)))) if entry.index == 1));
}

#[test]
fn a_truncation_is_told_before_any_such_index_is_shown_again() {
    let log = open_sim(&SimDisk::new(1), uncached());
    append_each(&log, ["1", "2", "3", "4"]);
    for upto in BOTH {
        let mut subscription = log.subscribe(1, upto);
        let mut behind = log.subscribe(1, upto);
        (1..5).for_each(|index| assert_eq!(next_index(&mut subscription), index));
        assert_eq!(next_index(&mut behind), 1);
        log.truncate_from(3).unwrap();
        append_each(&log, ["another 3", "another 4"]);
        assert_eq!(next(&mut subscription), Event::Truncated { from: 3 });
        assert_eq!((next_index(&mut subscription), next_index(&mut subscription)), (3, 4));
        // One that had not come so far sees each index once, and the new ones.
        let mut replica = Replica::from(1);
        replica.take(Event::Entry(log.get(1).unwrap()));
        while !replica.is_at("another 4") {
            replica.take(next(&mut behind));
        }
        assert_eq!(replica.entries, log.iter(..).map(Result::unwrap).collect::<Vec<_>>());
    }
}

#[test]
fn truncations_before_the_next_look_are_told_as_one_at_the_lowest() {
    let log = open_sim(&SimDisk::new(1), tiny());
    append_each(&log, ["entry"; 10]);
    for upto in BOTH {
        let mut subscription = log.subscribe(5, upto);
        (5..11).for_each(|index| assert_eq!(next_index(&mut subscription), index));
        log.truncate_from(9).unwrap();
        log.truncate_from(7).unwrap();
        log.write(Batch::new().push("x").push("y").truncate_from(8).push("z")).unwrap();
        assert_eq!(next(&mut subscription), Event::Truncated { from: 7 });
        assert_eq!((next_index(&mut subscription), next_index(&mut subscription)), (7, 8));
        append_each(&log, ["entry"; 2]);
    }
}

#[test]
fn durable_subscribers_are_told_of_a_truncation_when_it_is_durable() {
    let held = HeldLog::open(tiny());
    let log = held.log();
    let mut durable = log.subscribe(1, Upto::Durable).stream();
    let mut accepted = log.subscribe(1, Upto::Accepted);
    log.submit(Batch::new().push("1").push("2").push("3")).map(drop).unwrap();
    held.wait_in_flight(1);
    held.disk.complete_all();
    eventually("they are durable", || log.state().durable == Some(3));
    (0..2).for_each(|_| assert!(matches!(poll_next(&mut durable), Poll::Ready(Some(Ok(Event::Entry(_)))))));
    (1..4).for_each(|index| assert_eq!(next_index(&mut accepted), index));
    log.submit(Batch::new().truncate_from(2).push("another 2")).map(drop).unwrap();
    assert_eq!(next(&mut accepted), Event::Truncated { from: 2 });
    // The third was read together with the others, and may be shown still.
    while let Poll::Ready(event) = poll_next(&mut durable) {
        assert!(matches!(event, Some(Ok(Event::Entry(entry))) if entry.command == "3"));
    }
    held.release();
    log.sync().unwrap();
    assert!(matches!(poll_next(&mut durable), Poll::Ready(Some(Ok(Event::Truncated { from: 2 })))));
    let again = poll_next(&mut durable);
    assert!(matches!(again, Poll::Ready(Some(Ok(Event::Entry(entry)))) if entry.command == "another 2"));
}

#[test]
fn a_log_emptied_and_begun_again_lower_down_is_followed_there() {
    for upto in BOTH {
        let log = open_sim(&SimDisk::new(1), uncached());
        log.append_entries(entries(1, 100..103)).unwrap();
        let mut subscription = log.subscribe(100, upto);
        (100..103).for_each(|index| assert_eq!(next_index(&mut subscription), index));
        log.truncate_from(100).unwrap();
        log.append_entries(entries(1, 5..7)).unwrap();
        let (mut subscription, event) = within("the truncation", move || {
            let event = next(&mut subscription);
            (subscription, event)
        });
        assert!(matches!(event, Event::Truncated { from } if from <= 100), "{event:?}");
        let seen = within("following down", move || {
            loop {
                match next(&mut subscription) {
                    Event::Truncated { from } => assert!(from <= 100),
                    Event::Entry(entry) => return (entry.index, next_index(&mut subscription)),
                }
            }
        });
        assert_eq!(seen, (5, 6));
    }
}

#[test]
fn a_subscriber_of_a_new_log_waits_for_its_first_entry() {
    for first in [0, 3] {
        let log = open_sim(&SimDisk::new(1), tiny());
        let mut stream = log.subscribe(3, Upto::Accepted).stream();
        assert!(poll_next(&mut stream).is_pending());
        log.append_entries(entries(1, first..5)).unwrap();
        assert!(matches!(poll_next(&mut stream), Poll::Ready(Some(Ok(Event::Entry(entry)))) if entry.index == 3));
    }
}

#[test]
fn a_consumer_that_does_as_it_is_told_ends_with_what_the_log_holds() {
    for seed in 0..30 {
        let log = open_sim(&SimDisk::new(seed), uncached());
        let followers = BOTH.map(|upto| {
            let (one, other) = (log.subscribe(1, upto), log.subscribe(1, upto).stream());
            [thread::spawn(|| follow(one, 1)), thread::spawn(|| block_on(follow_stream(other, 1)))]
        });
        let mut rng = Rng::new(seed);
        let mut pending = None;
        for term in 0..300u64 {
            let next = log.state().last.map_or(1, |(last, _)| last + 1);
            let from = next - rng.below(6).min(next as usize - 1) as u64;
            let batch =
                Batch::new().truncate_from(from).push_entry(LogEntry::new(term, from, format!("{from} in {term}")));
            let batch = (0..rng.below(5)).fold(batch, |batch, nth| batch.push(format!("{nth} after it in {term}")));
            pending = Some(log.submit(batch).unwrap());
        }
        pending.unwrap().wait().unwrap();
        log.append("the end").unwrap();
        let whole: Vec<LogEntry> = log.iter(..).map(Result::unwrap).collect();
        for follower in followers.into_iter().flatten() {
            assert_eq!(within("following", move || follower.join().unwrap()), whole, "seed {seed}");
        }
    }
}

#[test]
fn falling_behind_a_compaction_is_an_error_once_and_then_the_end() {
    for upto in BOTH {
        let log = open_sim(&SimDisk::new(1), uncached());
        append_each(&log, ["entry"; 60]);
        let mut fresh = log.subscribe(1, upto);
        let mut stream = log.subscribe(1, upto).stream();
        let mut ahead = log.subscribe(1, upto);
        (1..61).for_each(|index| assert_eq!(next_index(&mut ahead), index));
        log.compact(50).unwrap();
        assert_eq!(told(fresh.next().unwrap()), "Compacted { first: 51 }");
        assert!(fresh.next().is_none() && fresh.next().is_none());
        let error = block_on(poll_fn(|context| Pin::new(&mut stream).poll_next(context)));
        assert_eq!(told(error.unwrap()), "Compacted { first: 51 }");
        assert!(matches!(poll_next(&mut stream), Poll::Ready(None)));
        // One who had seen them all goes on; a compaction past the end overtakes it too.
        log.append("after").unwrap();
        assert_eq!(next_index(&mut ahead), 61);
        log.compact_to(100, 0).unwrap();
        log.append("far ahead").unwrap();
        assert_eq!(told(ahead.next().unwrap()), "Compacted { first: 101 }");
        assert!(ahead.next().is_none());
    }
}

#[test]
fn poison_is_an_error_once_and_then_the_end() {
    let disk = SimDisk::new(1);
    let log = open_sim(&disk, tiny());
    append_each(&log, ["durable"; 2]);
    let [mut accepted, mut durable] = BOTH.map(|upto| log.subscribe(1, upto));
    let mut waiting = log.subscribe(3, Upto::Durable);
    let waiting = thread::spawn(move || (waiting.next(), waiting.next().is_none()));
    disk.fail(FaultRule::io_error(OpKind::Write, 1).on(&ringwal::format::names::segment(1)));
    assert!(log.append("lost").is_err());
    for subscription in [&mut accepted, &mut durable] {
        assert_eq!((next_index(subscription), next_index(subscription)), (1, 2));
        assert!(matches!(subscription.next(), Some(Err(Error::Poisoned(_)))));
        assert!(subscription.next().is_none());
    }
    let (event, is_over) = within("a waiting subscriber", move || waiting.join().unwrap());
    assert!(matches!(event, Some(Err(Error::Poisoned(_)))) && is_over);
    let mut late = log.subscribe(3, Upto::Accepted).stream();
    assert!(matches!(poll_next(&mut late), Poll::Ready(Some(Err(Error::Poisoned(_))))));
    assert!(matches!(poll_next(&mut late), Poll::Ready(None)));
}

#[test]
fn an_accepted_subscriber_learns_that_what_it_saw_is_void() {
    let held = HeldLog::open(tiny());
    let log = held.log();
    let mut subscription = log.subscribe(1, Upto::Accepted);
    log.submit(Batch::new().push("seen and lost")).map(drop).unwrap();
    assert_eq!(next_index(&mut subscription), 1);
    held.wait_in_flight(1);
    held.disk.complete_failing(held.disk.in_flight()[0].id, 5, Class::Absent);
    let last = within("the error", move || (subscription.next(), subscription.next()));
    assert!(matches!(last, (Some(Err(Error::Poisoned(_))), None)));
    assert_eq!(log.state().durable, None);
}

#[test]
fn closing_ends_subscriptions_also_those_that_wait() {
    for is_dropped in [false, true] {
        let log = open_sim(&SimDisk::new(1), tiny());
        log.append("entry").unwrap();
        let waiting: Vec<_> = BOTH
            .into_iter()
            .flat_map(|upto| {
                let (one, mut other) = (log.subscribe(2, upto), log.subscribe(2, upto).stream());
                let stream = move || usize::from(block_on(poll_fn(|at| Pin::new(&mut other).poll_next(at))).is_some());
                [thread::spawn(move || one.count()), thread::spawn(stream)]
            })
            .collect();
        if is_dropped {
            drop(log)
        } else {
            log.close().unwrap()
        }
        for thread in waiting {
            assert_eq!(within("a subscription", move || thread.join().unwrap()), 0);
        }
    }
}

#[test]
fn closing_a_read_only_log_ends_its_subscriptions() {
    let dir = scratch();
    let log = Log::open(dir.path(), small()).unwrap().0;
    append_each(&log, ["1", "2"]);
    let reader = Log::open_read_only(dir.path()).unwrap().0;
    let mut subscription = reader.subscribe(1, Upto::Accepted);
    assert_eq!((next_index(&mut subscription), next_index(&mut subscription)), (1, 2));
    let waiting = thread::spawn(move || subscription.next().is_none());
    reader.close().unwrap();
    assert!(within("a subscription", move || waiting.join().unwrap()));
}

#[test]
fn a_subscription_dropped_is_forgotten_and_others_go_on() {
    let log = open_sim(&SimDisk::new(1), tiny());
    let mut kept = log.subscribe(1, Upto::Accepted);
    for upto in BOTH {
        drop(log.subscribe(1, upto));
        let mut stream = log.subscribe(1, upto).stream();
        assert!(poll_next(&mut stream).is_pending());
    }
    append_each(&log, ["entry"; 3]);
    assert_eq!((next_index(&mut kept), next_index(&mut kept), next_index(&mut kept)), (1, 2, 3));
}
