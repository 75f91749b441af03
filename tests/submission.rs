//! The ways to put a batch in, short of plain `append`: pendings, callbacks, tasks, and never waiting. Who is told what,
//! in which order, how often, and on which thread.

mod common;

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use common::{FOR_EVER, HeldLog, block_on, eventually, open_sim, payloads, poll_once, small, tiny, within};
use ringwal::sim::{Class, FaultRule, OpKind, SimDisk};
use ringwal::{Batch, Durability, Error, Log, Upto};

fn one(payload: &str) -> Batch {
    Batch::new().push(payload.to_string())
}

#[test]
fn a_pending_can_be_waited_for_by_a_thread_or_a_task_and_says_when_it_is_done() {
    let held = HeldLog::open(tiny());
    let log = held.log();
    let first = log.submit(one("first")).unwrap();
    let mut second = log.submit(one("second")).unwrap();
    assert_eq!((first.indexes(), second.indexes()), (1..2, 2..3));
    assert!(!first.is_done() && poll_once(&mut second).is_pending());
    assert_eq!(log.get(2).unwrap().command, "second", "accepted is readable");
    assert_eq!((log.state().last, log.state().durable), (Some((2, 0)), None));
    held.release();
    within("waiting", move || first.wait()).unwrap();
    block_on(&mut second).unwrap();
    assert!(second.is_done());
    assert_eq!(log.state().durable, Some(2));
}

#[test]
fn a_log_that_lingers_waits_for_company_and_not_for_ever() {
    const CALLS: usize = 20;
    // Nobody else comes: the linger's end alone sends it.
    let held = HeldLog::open(tiny().linger(Duration::from_millis(20)));
    let alone = held.log().submit(one("alone")).unwrap();
    held.wait_in_flight(1);
    held.release();
    within("waiting", move || alone.wait()).unwrap();
    // On a machine that is slow enough some of the calls come after the linger, but not each time.
    eventually("all calls of a while go in one frame", || {
        let held = HeldLog::open(small().linger(Duration::from_millis(500)));
        (0..CALLS).for_each(|_| drop(held.log().submit(Batch::new().push(vec![1; 1000])).unwrap()));
        held.wait_in_flight(1);
        held.disk.in_flight()[0].bytes > CALLS * 1000
    });
    // Whoever closes the log does not wait for company.
    let log = open_sim(&SimDisk::new(1), small().linger(Duration::from_secs(1)));
    let pending = log.submit(one("closed over")).unwrap();
    log.close().unwrap();
    pending.wait().unwrap();
}

#[test]
fn dropping_a_pending_or_a_future_does_not_take_the_batch_back() {
    let held = HeldLog::open(tiny());
    let log = held.log();
    drop(log.submit(one("pending")).unwrap());
    let mut task = Box::pin(log.append_async("task"));
    assert!(poll_once(&mut task).is_pending());
    drop(task);
    drop(log.append_async("never polled"));
    held.release();
    log.sync().unwrap();
    assert_eq!(payloads(log), [b"pending".to_vec(), b"task".to_vec()]);
}

#[test]
fn callbacks_run_once_each_in_log_order_on_one_thread_of_the_log() {
    let disk = SimDisk::new(5);
    let log = open_sim(&disk, tiny());
    let (sender, receiver) = mpsc::channel();
    for nth in 0..200u64 {
        let sender = sender.clone();
        let batch = if nth % 3 == 0 { Batch::new() } else { one("entry") };
        let done = move |result: Result<(), Error>| {
            result.unwrap();
            sender.send((nth, thread::current().id())).unwrap();
        };
        log.submit_with(batch, done).unwrap();
    }
    drop(sender);
    let told: Vec<_> = (0..200).map(|_| receiver.recv_timeout(FOR_EVER).unwrap()).collect();
    assert!(receiver.recv_timeout(FOR_EVER).is_err(), "nobody is told twice");
    assert_eq!(told.iter().map(|(nth, _)| *nth).collect::<Vec<_>>(), (0..200).collect::<Vec<_>>());
    assert!(told.iter().all(|(_, thread)| *thread == told[0].1 && *thread != thread::current().id()));
}

#[test]
fn the_callback_of_an_empty_batch_comes_like_any_other_and_may_look_at_the_log() {
    let disk = SimDisk::new(5);
    let log = open_sim(&disk, tiny());
    log.append("acknowledged long ago").unwrap();
    let (sender, receiver) = mpsc::channel();
    let theirs = log.clone();
    within("submitting an empty batch", move || {
        let inner = theirs.clone();
        let done = move |result: Result<(), Error>| {
            result.unwrap();
            sender.send((inner.state().last, inner.append("blocks").unwrap_err(), thread::current().id())).unwrap();
        };
        assert_eq!(theirs.submit_with(Batch::new(), done).unwrap(), 2..2);
    });
    let (last, refused, thread) = receiver.recv_timeout(FOR_EVER).unwrap();
    assert_eq!(last, Some((1, 0)));
    assert!(matches!(refused, Error::InCallback));
    assert_ne!(thread, thread::current().id());
    assert_eq!(log.append("later").unwrap(), 2);
}

#[test]
fn callbacks_run_exactly_once_also_on_poison_and_on_close() {
    let held = HeldLog::open(tiny());
    let log = held.log().clone();
    let calls: Arc<Vec<AtomicUsize>> = Arc::new((0..6).map(|_| AtomicUsize::new(0)).collect());
    for nth in 0..6 {
        let calls = calls.clone();
        let done = move |result: Result<(), Error>| {
            assert!(matches!(result, Err(Error::Poisoned(_))));
            calls[nth].fetch_add(1, Ordering::Relaxed);
        };
        log.submit_with(one("lost"), done).unwrap();
    }
    held.wait_in_flight(1);
    held.disk.complete_failing(held.disk.in_flight()[0].id, 5, Class::Absent);
    eventually("all callbacks run", || calls.iter().all(|calls| calls.load(Ordering::Relaxed) > 0));
    drop(held);
    drop(log);
    assert!(calls.iter().all(|calls| calls.load(Ordering::Relaxed) == 1));

    let disk = SimDisk::new(1);
    let log = open_sim(&disk, tiny());
    let told = Arc::new(AtomicUsize::new(0));
    for _ in 0..50 {
        let told = told.clone();
        log.submit_with(one("kept"), move |result| drop(result.map(|()| told.fetch_add(1, Ordering::Relaxed))))
            .unwrap();
    }
    log.close().unwrap();
    assert_eq!(told.load(Ordering::Relaxed), 50, "close waits for the callbacks");
}

#[test]
fn blocking_calls_inside_a_callback_are_refused_and_others_are_not() {
    let disk = SimDisk::new(5);
    let log = open_sim(&disk, tiny());
    let (sender, receiver) = mpsc::channel();
    let inner = log.clone();
    let done = move |_| {
        let in_callback = |refused: Result<(), Error>| matches!(refused, Err(Error::InCallback));
        let pending = inner.try_submit(one("from the callback")).unwrap();
        let refusals = [
            in_callback(inner.append("x").map(drop)),
            in_callback(inner.write(one("x")).map(drop)),
            in_callback(inner.submit(one("x")).map(drop)),
            in_callback(inner.submit_with(one("x"), |_| {}).map(drop)),
            in_callback(inner.truncate_from(1)),
            in_callback(inner.compact(1)),
            in_callback(inner.put_meta(b"k", b"v")),
            in_callback(inner.sync().map(drop)),
            in_callback(inner.clone().close()),
            in_callback(pending.wait()),
        ];
        let reads = inner.get(1).is_ok() && inner.state().last.is_some() && inner.term(1).is_ok();
        sender.send((refusals, reads)).unwrap();
    };
    log.submit_with(one("first"), done).unwrap();
    let (refusals, reads) = receiver.recv_timeout(FOR_EVER).expect("the callback does not wait for itself");
    assert_eq!((refusals, reads), ([true; 10], true));
    assert_eq!(log.append("outside").unwrap(), 3);
    assert_eq!(payloads(&log)[1], b"from the callback");
}

#[test]
fn a_callback_that_panics_harms_nobody_else() {
    let disk = SimDisk::new(5);
    let log = open_sim(&disk, tiny());
    log.submit_with(one("first"), |_| panic!("this panic is part of a test")).unwrap();
    assert_eq!(log.append("second").unwrap(), 2);
    log.close().unwrap();
}

#[test]
fn a_log_whose_last_handle_goes_in_a_callback_still_keeps_everything() {
    let mut held = HeldLog::open(tiny());
    let log = held.log.take().unwrap();
    eventually("a spare stands", || log.segments().len() == 2);
    let (theirs, (sender, receiver)) = (log.clone(), mpsc::channel());
    let done = move |_| {
        drop(theirs);
        sender.send(()).unwrap();
    };
    log.submit_with(one("first"), done).unwrap();
    held.wait_in_flight(1);
    // Accepted behind it, enough to roll, and nobody waits for them.
    let mut accepted = 1;
    while log.try_submit(Batch::new().push(vec![7; 1500])).map(drop).is_ok() {
        accepted += 1;
    }
    assert!(accepted > 8, "more than one segment takes");
    drop(log);
    held.release();
    receiver.recv_timeout(FOR_EVER).expect("the callback comes to its end");
    let log = open_sim(&held.disk, tiny());
    assert_eq!(payloads(&log).len(), accepted);
}

#[test]
fn try_submit_is_busy_while_the_queue_is_full_and_gives_the_batch_back() {
    let held = HeldLog::open(small().queue_bytes_max(2000));
    let log = held.log();
    let mut accepted = 0;
    let back = loop {
        match log.try_submit(Batch::new().push(vec![1; 500])) {
            Ok(_) => accepted += 1,
            Err((Error::Busy, batch)) => break batch,
            Err((other, _)) => panic!("{other}"),
        }
    };
    assert!((2..=4).contains(&accepted), "{accepted} of 500 bytes into a queue of 2000");
    assert_eq!(back, Batch::new().push(vec![1; 500]));
    assert_eq!(log.state().last, Some((accepted, 0)), "what was refused left nothing");
    // A call that waits gets in when there is room.
    let waiting = thread::spawn({
        let log = log.clone();
        move || log.submit(Batch::new().push("waited")).map(|pending| pending.indexes())
    });
    let mut task = Box::pin(log.write_async(back));
    assert!(poll_once(&mut task).is_pending());
    held.release();
    within("the waiting submit", move || waiting.join().unwrap()).unwrap();
    block_on(task).unwrap();
    assert_eq!(log.state().last, Some((accepted + 2, 0)));
}

#[test]
fn a_queue_of_no_bytes_still_takes_one_batch_at_a_time() {
    let disk = SimDisk::new(2);
    let log = open_sim(&disk, tiny().queue_bytes_max(0));
    within("appending through a queue of no bytes", move || {
        (0..20).for_each(|_| assert!(log.append("x").is_ok()));
    });
}

#[test]
fn try_submit_is_busy_while_the_next_segment_is_not_ready() {
    // The helper cannot make a spare as long as this call of its own fails to return: here, because there is no space.
    let disk = SimDisk::new(9);
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock().unwrap();
    let slow: Arc<dyn ringwal::disk::Disk> = Arc::new(slow::SlowDisk { disk, gate: gate.clone() });
    let log = Log::open_on(slow, tiny()).unwrap().0;
    let mut accepted = 0;
    let refused = loop {
        match log.try_submit(Batch::new().push(vec![1; 400])) {
            Ok(pending) => within("an append", move || pending.wait()).unwrap(),
            Err((error, _)) => break error,
        }
        accepted += 1;
    };
    assert!(matches!(refused, Error::Busy), "{refused}");
    assert!(accepted > 3);
    drop(closed);
    eventually("the segment is made", || log.try_submit(Batch::new().push(vec![1; 400])).is_ok());
}

mod slow {
    //! A disk on which making a second segment waits at a gate.

    use std::io;
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    use ringwal::disk::{Access, Disk, DiskFile, Driver, IoMode};
    use ringwal::format::names;
    use ringwal::sim::SimDisk;

    pub(super) struct SlowDisk {
        pub(super) disk: SimDisk,
        pub(super) gate: Arc<Mutex<()>>,
    }

    impl Disk for SlowDisk {
        fn path(&self) -> &Path {
            self.disk.path()
        }

        fn list(&self) -> io::Result<Vec<String>> {
            self.disk.list()
        }

        fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn DiskFile>> {
            if name == names::temporary(&names::segment(2)) {
                drop(self.gate.lock().unwrap());
            }
            self.disk.open(name, access)
        }

        fn rename(&self, from: &str, to: &str) -> io::Result<()> {
            self.disk.rename(from, to)
        }

        fn remove(&self, name: &str) -> io::Result<()> {
            self.disk.remove(name)
        }

        fn sync_dir(&self) -> io::Result<()> {
            self.disk.sync_dir()
        }

        fn is_in_place(&self) -> bool {
            self.disk.is_in_place()
        }

        fn physical_block_bytes(&self) -> u32 {
            self.disk.physical_block_bytes()
        }

        fn driver(&self, depth: usize) -> io::Result<Box<dyn Driver>> {
            self.disk.driver(depth)
        }

        fn io_mode(&self) -> IoMode {
            self.disk.io_mode()
        }
    }
}

#[test]
fn futures_need_no_runtime_and_move_between_threads() {
    fn is_static_and_send<T>(
        future: impl Future<Output = T> + Send + 'static,
    ) -> impl Future<Output = T> + Send + 'static {
        future
    }
    let disk = SimDisk::new(5);
    let log = open_sim(&disk, tiny().tail_cache_bytes(0));
    let append = is_static_and_send(log.append_async("first"));
    assert_eq!(within("a task", move || block_on(append)).unwrap(), 1);
    let write = is_static_and_send(log.write_async(one("second").push("third").put_meta(b"k", b"v")));
    assert_eq!(within("a task", move || block_on(write)).unwrap(), 2..4);
    for (index, payload) in [(1, "first"), (2, "second"), (3, "third")] {
        let get = is_static_and_send(log.get_async(index));
        assert_eq!(within("a task", move || block_on(get)).unwrap().command, payload);
    }
    assert!(matches!(block_on(log.get_async(4)), Err(Error::NotWritten { next: 4 })));
    let pending = is_static_and_send(log.submit(one("fourth")).unwrap());
    within("a task", move || block_on(pending)).unwrap();
}

/// A waker that looks at the log when it is woken, as an executor that runs tasks at once does.
struct Nosy(Log, AtomicUsize);

impl Wake for Nosy {
    fn wake(self: Arc<Self>) {
        let _ = (self.0.state(), self.0.get(1));
        self.1.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn wakers_are_not_called_under_a_lock() {
    let held = HeldLog::open(small().queue_bytes_max(100));
    let log = held.log();
    let nosy = Arc::new(Nosy(log.clone(), AtomicUsize::new(0)));
    let waker = Waker::from(nosy.clone());
    let mut context = Context::from_waker(&waker);
    let mut pending = Box::pin(log.submit(Batch::new().push(vec![1; 200])).unwrap());
    let mut task = Box::pin(log.append_async("waits for room"));
    let mut accepted = Box::pin(log.subscribe(2, Upto::Accepted).stream());
    let mut durable = Box::pin(log.subscribe(1, Upto::Durable).stream());
    assert!(pending.as_mut().poll(&mut context).is_pending());
    assert!(task.as_mut().poll(&mut context).is_pending());
    assert!(futures_core::Stream::poll_next(accepted.as_mut(), &mut context).is_pending());
    assert!(futures_core::Stream::poll_next(durable.as_mut(), &mut context).is_pending());
    held.release();
    let theirs = log.clone();
    within("waking", move || eventually("the first is durable", || theirs.state().durable == Some(1)));
    eventually("three are woken", || nosy.1.load(Ordering::Relaxed) >= 3);
    let theirs = log.clone();
    within("an append that wakes the last", move || theirs.append("second")).unwrap();
    eventually("the fourth is woken", || nosy.1.load(Ordering::Relaxed) >= 4);
    assert!(matches!(pending.as_mut().poll(&mut context), Poll::Ready(Ok(()))));
}

type Task = Pin<Box<dyn Future<Output = Result<u64, Error>> + Send>>;

/// A waker that drops its task and a handle of the log when it is woken.
struct Dropper(Mutex<Option<(Task, Log)>>);

impl Wake for Dropper {
    fn wake(self: Arc<Self>) {
        drop(self.0.lock().unwrap().take());
    }
}

#[test]
fn the_last_handle_may_go_with_a_task_that_the_helper_wakes() {
    let disk = SimDisk::new(9);
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock().unwrap();
    let slow = Arc::new(slow::SlowDisk { disk: disk.clone(), gate: gate.clone() });
    let log = Log::open_on(slow, tiny()).unwrap().0;
    let mut acked = 0;
    while let Ok(pending) = log.try_submit(Batch::new().push(vec![1; 400])) {
        within("an append", move || pending.wait()).unwrap();
        acked += 1;
    }
    let dropper = Arc::new(Dropper(Mutex::new(None)));
    let mut task: Task = Box::pin(log.append_async(vec![1; 400]));
    assert!(task.as_mut().poll(&mut Context::from_waker(&Waker::from(dropper.clone()))).is_pending());
    *dropper.0.lock().unwrap() = Some((task, log));
    drop(closed);
    eventually("the task is woken", || dropper.0.lock().unwrap().is_none());
    let log = within("opening again", move || open_sim(&disk, tiny()));
    assert_eq!(payloads(&log).len(), acked, "a task that was not accepted left nothing");
}

#[test]
fn an_empty_batch_waits_for_what_was_accepted_before_it() {
    let held = HeldLog::open(tiny());
    let log = held.log();
    let empty = log.submit(Batch::new()).unwrap();
    assert_eq!(empty.indexes(), 1..1);
    assert!(empty.is_done(), "nothing was accepted before it");
    let first = log.submit(one("first")).unwrap();
    let second = log.submit(Batch::new()).unwrap();
    assert_eq!(second.indexes(), 2..2);
    held.wait_in_flight(1);
    assert!(!first.is_done() && !second.is_done());
    held.release();
    within("waiting", move || second.wait()).unwrap();
    assert!(first.is_done());
    assert_eq!(log.write(Batch::new()).unwrap(), 2..2);
}

#[test]
fn an_acknowledged_append_is_well_though_a_later_truncate_removes_it() {
    let held = HeldLog::open(tiny());
    let log = held.log();
    let first = log.submit(one("stays").push("goes")).unwrap();
    let truncate = log.submit(Batch::new().truncate_from(2)).unwrap();
    let again = log.submit(one("another")).unwrap();
    assert_eq!((again.indexes(), log.get(2).unwrap().command), (2..3, "another".into()));
    held.release();
    within("waiting", move || first.wait().and(truncate.wait()).and(again.wait())).unwrap();
    assert_eq!(payloads(log), [b"stays".to_vec(), b"another".to_vec()]);
}

#[test]
fn one_frame_carries_what_many_put_in_while_the_device_works() {
    let held = HeldLog::open(small());
    let log = held.log();
    let first = log.submit(one("alone")).unwrap();
    held.wait_in_flight(1);
    let rest: Vec<_> = (0..100).map(|_| log.submit(one("together")).unwrap()).collect();
    assert_eq!(held.disk.in_flight().len(), 1, "small appends gather while a write is in flight");
    let before = held.disk.counters().of(OpKind::Write);
    held.release();
    within("waiting", move || first.wait().map(|()| rest.into_iter().for_each(|pending| pending.wait().unwrap())))
        .unwrap();
    let own = held.disk.counters().of(OpKind::Write) - before;
    assert!(log.stats().frames <= 3, "{} frames, {own} writes", log.stats().frames);
    assert_eq!((log.stats().entries, log.stats().payload_bytes), (101, 5 + 800));
}

#[test]
fn weak_durabilities_acknowledge_what_is_written_before_it_is_synced() {
    let disk = SimDisk::new(5);
    disk.fail(FaultRule::io_error(OpKind::Sync, 1_000_000));
    let log = open_sim(&disk, tiny().durability(Durability::None));
    let (sender, receiver) = mpsc::channel();
    log.submit_with(one("written"), move |result| sender.send(result.is_ok()).unwrap()).unwrap();
    assert!(receiver.recv_timeout(FOR_EVER).unwrap());
    assert_eq!(log.state().durable, None);
    assert_eq!(log.sync().unwrap(), Some(1));
}
