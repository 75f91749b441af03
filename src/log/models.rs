//! The whole log under shuttle: its real threads over a simulated disk, in very many random interleavings.
//!
//! Invariant of every model: it ends. Time does not pass here, so a wake-up that is lost is a deadlock and is reported as
//! one, with a schedule that replays it. Beyond that each model checks what its callers were told.
//!
//! The disk's writes are carried out by a thread of the model, which the scheduler runs whenever it likes.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;
use std::{io, path};

use shuttle::rand::{Rng, thread_rng};

use super::*;
use crate::block_on::block_on;
use crate::config::Wait;
use crate::disk::{Access, Alarm, Bell, Completion, Disk, DiskFile, Driver, FileId, Operation, PollWait};
use crate::sim::{FaultRule, OpKind, SimDisk};
use crate::sync::{Condvar, Mistake, plant};

/// Interleavings that each model tries in each of two ways, unless `RINGWAL_MODEL_ROUNDS` says how many.
const ROUNDS: usize = 1500;

fn rounds() -> usize {
    std::env::var("RINGWAL_MODEL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS)
}

/// A simulated disk whose driver is served by a thread of the model.
#[derive(Clone)]
pub(crate) struct ModelDisk(pub(crate) SimDisk);

impl Disk for ModelDisk {
    fn path(&self) -> &path::Path {
        self.0.path()
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        self.0.open(name, access)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.0.sync_dir()
    }

    fn is_in_place(&self) -> bool {
        self.0.is_in_place()
    }

    fn physical_block_bytes(&self) -> u32 {
        self.0.physical_block_bytes()
    }

    fn device(&self) -> String {
        self.0.device()
    }

    fn driver(&self, depth: usize) -> io::Result<Box<dyn Driver>> {
        let (inner, bell) = (self.0.driver(depth)?, Bell::of_this_thread());
        let device = Arc::new(Device { sim: self.0.clone(), bell, queue: Mutex::default(), news: Condvar::new() });
        let serving = device.clone();
        thread::spawn(move || serving.serve());
        Ok(Box::new(ModelDriver { inner, device }))
    }

    fn io_mode(&self) -> IoMode {
        self.0.io_mode()
    }
}

/// The thread that carries out what is in flight, and the ways to reach it.
struct Device {
    sim: SimDisk,
    bell: Arc<Bell>,
    queue: Mutex<Queue>,
    news: Condvar,
}

#[derive(Default)]
struct Queue {
    submitted: usize,
    is_over: bool,
}

impl Device {
    fn tell(&self, what: impl FnOnce(&mut Queue)) {
        what(&mut self.queue.lock().unwrap());
        self.news.notify_all();
    }

    fn serve(&self) {
        loop {
            let mut queue = self.queue.lock().unwrap();
            while queue.submitted == 0 && !queue.is_over {
                queue = self.news.wait(queue).unwrap();
            }
            if queue.is_over {
                return;
            }
            queue.submitted -= 1;
            drop(queue);
            let in_flight = self.sim.in_flight();
            self.sim.complete(in_flight[thread_rng().gen_range(0..in_flight.len())].id);
            self.bell.ring();
        }
    }
}

struct ModelDriver {
    inner: Box<dyn Driver>,
    device: Arc<Device>,
}

impl Driver for ModelDriver {
    fn attach(&mut self, id: FileId, file: Arc<dyn DiskFile>) -> io::Result<()> {
        self.inner.attach(id, file)
    }

    fn detach(&mut self, id: FileId) {
        self.inner.detach(id);
    }

    fn submit(&mut self, operation: Operation) {
        self.inner.submit(operation);
        self.device.tell(|queue| queue.submitted += 1);
    }

    fn poll(&mut self, wait: PollWait, done: &mut Vec<Completion>) {
        self.inner.poll(PollWait::No, done);
        if let PollWait::AtMost(limit) = wait
            && done.is_empty()
        {
            self.device.bell.park(limit);
            self.inner.poll(PollWait::No, done);
        }
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }

    fn alarm(&self) -> Arc<dyn Alarm> {
        self.device.bell.clone()
    }
}

impl Drop for ModelDriver {
    fn drop(&mut self) {
        self.device.tell(|queue| queue.is_over = true);
    }
}

/// Segments as small as can be, and no marks: they come by time.
pub(crate) fn config() -> Config {
    let small = Config::default().block_bytes(Some(512)).segment_bytes(24 * 512).frame_bytes_max(2048);
    small.idle_mark_after(Duration::from_secs(1 << 40)).stall_after(Duration::MAX)
}

fn open(config: Config) -> (Log, SimDisk) {
    let sim = SimDisk::manual(1);
    let (log, _) = Log::open_on(Arc::new(ModelDisk(sim.clone())), config).unwrap();
    (log, sim)
}

/// Tries interleavings: at random, and with few preemptions at the worst places.
pub(crate) fn check(model: impl Fn() + Send + Sync + Clone + 'static) {
    plant(None);
    check_rounds(model, rounds());
}

fn check_rounds(model: impl Fn() + Send + Sync + Clone + 'static, rounds: usize) {
    let mut config = shuttle::Config::new();
    config.silence_warnings = true;
    config.stack_size = 1 << 18;
    let random = shuttle::scheduler::RandomScheduler::new(rounds);
    shuttle::Runner::new(random, config.clone()).run(model.clone());
    let few = shuttle::scheduler::PctScheduler::new(3, rounds);
    shuttle::Runner::new(few, config).run(model);
}

/// As [`check`], with a mistake that must be found. The rarest shows once in some ten thousand interleavings: so many are
/// tried, now in one way and now in the other, that chance does not decide. Only a mistake that is not found any more
/// takes a minute.
pub(crate) fn find(mistake: Mistake, model: impl Fn() + Send + Sync + Clone + 'static) {
    plant(Some(mistake));
    (0..200).for_each(|_| check_rounds(model.clone(), ROUNDS));
}

pub(crate) fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
    thread::spawn(work)
}

/// What callers heard, in the order in which they did.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<(u64, bool)>>>);

impl Heard {
    fn by(&self, who: u64) -> impl FnOnce(Result<()>) + Send + 'static {
        let heard = self.clone();
        move |result| heard.0.lock().unwrap().push((who, result.is_ok()))
    }

    fn list(&self) -> Vec<(u64, bool)> {
        self.0.lock().unwrap().clone()
    }
}

/// Callers append in all ways at once; each is told, and everything is there and in order.
fn everyone_is_told(config: Config) {
    let (log, _) = open(config);
    let heard = Heard::default();
    let (one, two) = (log.clone(), log.clone());
    let blocking = spawn(move || (0..2).map(|_| one.append("blocking").unwrap()).collect::<Vec<_>>());
    let task = spawn(move || block_on(two.append_async("task")).unwrap());
    let mut last = 0;
    for who in 0..3 {
        // An empty batch is done when everything before it is.
        let batch = if who == 1 { Batch::new() } else { Batch::new().push("called back") };
        let indexes = log.submit_with(batch, heard.by(who)).unwrap();
        assert!(indexes.start >= last);
        last = indexes.start;
    }
    let mut told = blocking.join().unwrap();
    told.push(task.join().unwrap());
    log.sync().unwrap();
    assert!(told.iter().all(|index| log.get(*index).is_ok()));
    assert_eq!(log.state().durable, Some(5));
    log.close().unwrap();
    assert_eq!(heard.list(), [(0, true), (1, true), (2, true)], "callbacks run once, in the order of their calls");
}

#[test]
fn every_caller_is_told_once_and_callbacks_in_order() {
    check(|| everyone_is_told(config()));
}

#[test]
fn every_caller_of_a_log_that_syncs_by_itself_is_told() {
    check(|| everyone_is_told(config().durability(Durability::None)));
}

#[test]
fn every_caller_is_told_where_threads_spin() {
    check(|| everyone_is_told(config().wait(Wait::Spin(Duration::from_micros(250)))));
}

#[test]
fn every_caller_is_told_where_callers_write() {
    check(|| everyone_is_told(config().write_in_place(true)));
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_writer_that_sleeps_without_a_last_look_would_be_found() {
    find(Mistake::SleepWithoutLook, || everyone_is_told(config()));
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_batch_that_does_not_wake_the_writer_would_be_found() {
    find(Mistake::AcceptWithoutWake, || everyone_is_told(config()));
}

#[test]
#[should_panic(expected = "in the order of their calls")]
fn a_late_callback_that_runs_too_early_would_be_found() {
    find(Mistake::LateCallbackFirst, || many_callbacks(config()));
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_caller_who_leaves_the_desk_without_a_last_look_would_be_found() {
    find(Mistake::SleepWithoutLook, || everyone_is_told(config().write_in_place(true)));
}

/// Very many sleep on one frame, so that they are told after the next one is handed over; and callbacks of empty batches
/// come in between.
fn many_callbacks(config: Config) {
    let (log, _) = open(config);
    let heard = Heard::default();
    let sleepers: Vec<_> =
        (0..3).map(|_| log.clone()).map(|log| spawn(move || log.append("sleeps").unwrap())).collect();
    for who in 0..4 {
        let batch = if who % 2 == 1 { Batch::new() } else { Batch::new().push("called back") };
        log.submit_with(batch, heard.by(who)).unwrap();
    }
    sleepers.into_iter().for_each(|sleeper| assert!(sleeper.join().unwrap() > 0));
    log.close().unwrap();
    let list = heard.list();
    assert!(list.is_sorted() && list.len() == 4, "callbacks run once, in the order of their calls: {list:?}");
}

#[test]
fn callbacks_run_in_order_where_many_wait() {
    check(|| many_callbacks(config()));
}

#[test]
fn callbacks_run_in_order_where_callers_write() {
    check(|| many_callbacks(config().write_in_place(true)));
}

/// Threads ask for syncs while others append, in a durability where only a sync makes anything durable.
fn syncs() {
    let (log, _) = open(config().durability(Durability::None));
    let others: Vec<_> = (0..2).map(|_| log.clone()).collect();
    let others = others.into_iter().map(|log| {
        spawn(move || {
            let index = log.append("entry").unwrap();
            assert!(log.sync().unwrap().unwrap() >= index, "a sync covers what was accepted before it");
        })
    });
    let others: Vec<_> = others.collect();
    log.append("entry").unwrap();
    others.into_iter().for_each(|other| other.join().unwrap());
    assert_eq!(log.sync().unwrap(), Some(3));
    log.close().unwrap();
}

#[test]
fn no_sync_waits_in_vain() {
    check(syncs);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_sync_that_does_not_wake_the_writer_would_be_found() {
    find(Mistake::SyncWithoutWake, syncs);
}

/// A write fails under callers that wait in all ways, some of them for room.
fn poisoned(config: Config, nth: u64) {
    let (log, sim) = open(config.queue_bytes_max(600));
    sim.fail(FaultRule::io_error(OpKind::Write, nth).on(&crate::format::names::segment(1)));
    let heard = Heard::default();
    let (one, two, theirs) = (log.clone(), log.clone(), heard.clone());
    let callers = [
        spawn(move || one.append(vec![1; 700]).is_ok()),
        spawn(move || block_on(two.append_async(vec![2; 700])).is_ok()),
    ];
    let accepted = log.submit_with(Batch::new().push(vec![3; 700]), theirs.by(0)).is_ok();
    let acked = callers.into_iter().map(|caller| caller.join().unwrap()).filter(|acked| *acked).count();
    let closed = log.close();
    let heard = heard.list();
    assert_eq!(heard.len(), usize::from(accepted), "a callback runs once if its batch was accepted, else never");
    let acked = acked + heard.iter().filter(|(_, is_ok)| *is_ok).count();
    // Where all were acknowledged, the write that failed may be the last mark.
    assert!(acked == 3 || matches!(closed, Err(Error::Poisoned(_))));
}

#[test]
fn everyone_who_waits_when_a_write_fails_is_told() {
    check(|| poisoned(config(), thread_rng().gen_range(1..5)));
}

#[test]
fn everyone_who_waits_when_a_callers_write_fails_is_told() {
    check(|| poisoned(config().write_in_place(true), thread_rng().gen_range(1..5)));
}

#[test]
#[should_panic(expected = "deadlock")]
fn poison_that_does_not_tell_those_who_wait_for_room_would_be_found() {
    find(Mistake::PoisonWithoutNotice, || poisoned(config(), 1));
}

/// Callers wait for room as threads and tasks, some give up, and everything that was accepted is acknowledged.
fn room() {
    let (log, _) = open(config().queue_bytes_max(600));
    let (one, two, three) = (log.clone(), log.clone(), log.clone());
    let callers = [
        spawn(move || assert!(one.append(vec![1; 700]).unwrap() > 0)),
        spawn(move || assert!(block_on(two.append_async(vec![2; 700])).unwrap() > 0)),
        spawn(move || {
            // Polled once, and dropped wherever it is by then.
            let mut future = pin!(three.append_async(vec![3; 700]));
            let _ = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        }),
    ];
    assert!(log.append(vec![4; 700]).unwrap() > 0);
    callers.into_iter().for_each(|caller| caller.join().unwrap());
    log.close().unwrap();
}

#[test]
fn nobody_waits_for_room_in_vain() {
    check(room);
}

#[test]
#[should_panic(expected = "deadlock")]
fn room_that_nobody_is_told_of_would_be_found() {
    find(Mistake::RoomWithoutNotice, room);
}

/// The log is closed under callers that append, wait for room or for an entry: each ends, and what was acknowledged is
/// there when it is opened again.
fn closed_under_callers(config: Config) {
    let (log, sim) = open(config.clone().queue_bytes_max(600));
    let (one, two) = (log.clone(), log.clone());
    let mut events = log.subscribe(1, Upto::Durable);
    let appending = spawn(move || (0..3).take_while(|_| one.append(vec![1; 700]).is_ok()).count());
    let task = spawn(move || usize::from(block_on(two.append_async(vec![2; 700])).is_ok()));
    let listening = spawn(move || events.by_ref().filter(|event| matches!(event, Ok(Event::Entry(_)))).count());
    log.close().unwrap();
    let acked = appending.join().unwrap() + task.join().unwrap();
    assert!(listening.join().unwrap() <= acked);
    let (log, _) = Log::open_on(Arc::new(ModelDisk(sim)), config).unwrap();
    assert_eq!(log.iter(..).count(), acked, "what is accepted before the close is acknowledged by it");
    log.close().unwrap();
}

#[test]
fn a_close_lets_everyone_go_and_keeps_what_was_acknowledged() {
    check(|| closed_under_callers(config()));
}

#[test]
fn a_close_beside_callers_who_write_keeps_what_was_acknowledged() {
    check(|| closed_under_callers(config().write_in_place(true)));
}

#[test]
fn the_last_handle_may_go_in_a_callback() {
    check(|| {
        let (log, sim) = open(config());
        let done = Arc::new((Mutex::new(false), Condvar::new()));
        let (theirs, last) = (done.clone(), log.clone());
        let told = move |result: Result<()>| {
            assert!(result.is_ok() && matches!(last.append("from a callback"), Err(Error::InCallback)));
            drop(last);
            *theirs.0.lock().unwrap() = true;
            theirs.1.notify_one();
        };
        log.submit_with(Batch::new().push("entry"), told).unwrap();
        drop(log);
        let mut is_done = done.0.lock().unwrap();
        while !*is_done {
            is_done = done.1.wait(is_done).unwrap();
        }
        drop(is_done);
        // The threads let go of the directory some time later.
        let reopened = loop {
            match Log::open_on(Arc::new(ModelDisk(sim.clone())), config().lock_wait(Duration::ZERO)) {
                Err(Error::Locked { .. }) => thread::yield_now(),
                opened => break opened.unwrap().0,
            }
        };
        assert_eq!(reopened.iter(..).count(), 1);
        reopened.close().unwrap();
    });
}

/// Segments roll, are compacted away and recycled, while readers look for entries that may just be going.
fn readers_beside_compaction() {
    let (log, _) = open(config().tail_cache_bytes(0));
    let mut last = 0;
    while log.stats().rolls < 2 {
        last = log.append(vec![1; 1500]).unwrap();
    }
    let one = log.clone();
    let reader = spawn(move || {
        for index in (1..=last).chain(1..=last) {
            match one.get(index) {
                Ok(entry) => assert_eq!((entry.index, entry.command.len()), (index, 1500)),
                Err(Error::Compacted { first }) => assert!(first > index),
                Err(Error::NotWritten { .. }) if index == last => {}
                Err(other) => panic!("{other}"),
            }
        }
    });
    let upto = last / 2;
    log.compact(upto).unwrap();
    assert!(matches!(log.get(upto), Err(Error::Compacted { .. })), "nothing is found behind a compaction");
    let rolls = log.stats().rolls;
    while log.stats().rolls < rolls + 1 {
        log.append(vec![2; 1500]).unwrap();
    }
    log.truncate_from(last).unwrap();
    assert!(matches!(log.get(last), Err(Error::NotWritten { .. })));
    reader.join().unwrap_or_else(|_| panic!("the reader failed"));
    log.close().unwrap();
}

#[test]
fn readers_beside_rolls_and_compaction_find_what_is_there() {
    plant(None);
    check_rounds(readers_beside_compaction, rounds() / 4);
}

#[test]
#[should_panic(expected = "nothing is found behind a compaction")]
fn a_shelf_that_keeps_what_was_compacted_would_be_found() {
    find(Mistake::KeepShelf, || {
        let (log, _) = open(config().tail_cache_bytes(0));
        let mut last = 0;
        while log.stats().rolls < 2 {
            last = log.append(vec![1; 1500]).unwrap();
        }
        // Often enough for it to be on the shelf, once it is sealed.
        (0..40).for_each(|_| drop(log.get(1).map(|_| thread::yield_now())));
        log.compact(last / 2).unwrap();
        assert!(matches!(log.get(1), Err(Error::Compacted { .. })), "nothing is found behind a compaction");
        log.close().unwrap();
    });
}

/// Subscribers, blocking and not, see every entry once and in order, and of a truncation before what replaces it.
#[test]
fn subscribers_miss_nothing() {
    check(|| {
        let (log, _) = open(config());
        let (durable, accepted) = (log.subscribe(1, Upto::Durable), log.subscribe(1, Upto::Accepted));
        let follow = |events: Box<dyn Iterator<Item = Result<Event>> + Send>| {
            spawn(move || {
                let mut next = 1;
                for event in events {
                    match event.unwrap() {
                        Event::Entry(entry) => {
                            assert_eq!(entry.index, next);
                            next += 1;
                        }
                        Event::Truncated { from } => {
                            // What was truncated before it was shown may be told of as well.
                            assert!(from <= next);
                            next = from;
                        }
                    }
                    if next == 4 {
                        return;
                    }
                }
                panic!("the log was closed before everything was seen");
            })
        };
        let mut stream = Box::pin(accepted.stream());
        let polled = std::iter::from_fn(move || {
            block_on(std::future::poll_fn(|context| futures_core::Stream::poll_next(stream.as_mut(), context)))
        });
        let followers = [follow(Box::new(durable)), follow(Box::new(polled))];
        log.append("1").unwrap();
        log.append("2").unwrap();
        log.truncate_from(2).unwrap();
        log.append("2 again").unwrap();
        log.append("3").unwrap();
        followers.into_iter().for_each(|follower| follower.join().unwrap());
        log.close().unwrap();
    });
}

/// A task that waits for a read or an append is dropped at any moment; the log goes on.
#[test]
fn futures_may_be_dropped_while_they_are_settled() {
    check(|| {
        let (log, _) = open(config());
        let one = log.clone();
        let dropping = spawn(move || {
            for _ in 0..2 {
                let mut future = pin!(one.append_async("dropped"));
                let polled = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                if polled.is_pending() {
                    thread::yield_now();
                }
            }
        });
        for _ in 0..2 {
            log.append("kept").unwrap();
        }
        dropping.join().unwrap();
        log.sync().unwrap();
        assert_eq!(log.state().last.map(|(last, _)| last), Some(4), "what was accepted stays");
        log.close().unwrap();
    });
}

/// Every operation counts as a stall, so that the watcher runs beside everything else.
#[test]
fn a_watcher_that_always_has_something_to_tell_holds_nobody_up() {
    check(|| everyone_is_told(config().stall_after(Duration::from_millis(1))));
}

/// Reads that need the disk are asked for by tasks while the log is closed: each is answered.
#[test]
fn a_read_is_answered_however_the_log_is_closed() {
    check(|| {
        let (log, _) = open(config().tail_cache_bytes(0));
        log.append("entry").unwrap();
        let readers = [log.clone(), log.clone()].map(|log| {
            spawn(move || match block_on(log.get_async(1)) {
                Ok(entry) => assert_eq!(entry.command, "entry"),
                Err(Error::Closed) => {}
                Err(other) => panic!("{other}"),
            })
        });
        log.close().unwrap();
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
}

/// The helper fails to make a spare while callers wait for one, for good or for want of something.
#[test]
fn a_spare_that_cannot_be_made_lets_its_callers_go() {
    check(|| {
        let (log, sim) = open(config());
        let (kind, number) =
            [(OpKind::Allocate, 5), (OpKind::Allocate, 28), (OpKind::Create, 24)][thread_rng().gen_range(0..3)];
        sim.fail(FaultRule::new(kind, 1, number).for_good());
        let callers = [log.clone(), log.clone()].map(|log| spawn(move || while log.append(vec![1; 1500]).is_ok() {}));
        callers.into_iter().for_each(|caller| caller.join().unwrap());
        let refused = log.append(vec![1; 1500]).unwrap_err();
        assert_eq!(matches!(refused, Error::Poisoned(_)), number == 5, "{refused}");
        assert_eq!(log.close().is_ok(), number != 5);
    });
}

/// The last handle goes with a waker that a task left behind, on whichever thread of the log wakes it.
#[test]
fn the_last_handle_may_go_with_a_waker() {
    struct Holder(Mutex<Option<Log>>, Arc<Heard>);

    impl std::task::Wake for Holder {
        fn wake(self: Arc<Self>) {
            drop(self.0.lock().unwrap().take());
            self.1.0.lock().unwrap().push((0, true));
        }
    }

    check(|| {
        let (log, sim) = open(config().queue_bytes_max(600));
        let heard = Arc::new(Heard::default());
        // One that waits for its frame, and one that waits for room behind it.
        let mut futures = [700, 701].map(|bytes| Box::pin(log.append_async(vec![1; bytes])));
        let mut waits = 0;
        for future in &mut futures {
            let waker = Waker::from(Arc::new(Holder(Mutex::new(Some(log.clone())), heard.clone())));
            waits += usize::from(future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        }
        drop((log, futures));
        while heard.list().len() < waits {
            thread::yield_now();
        }
        let reopened = loop {
            match Log::open_on(Arc::new(ModelDisk(sim.clone())), config().lock_wait(Duration::ZERO)) {
                Err(Error::Locked { .. }) => thread::yield_now(),
                opened => break opened.unwrap().0,
            }
        };
        assert!((1..=2).contains(&reopened.iter(..).count()));
        reopened.close().unwrap();
    });
}
