//! A log whose callers write: an append on an idle log is written on its caller's thread, whoever comes meanwhile is
//! served by the log's own; nothing that was acknowledged is lost, and everybody is told once.

mod common;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use common::{FOR_EVER, Place, block_on, eventually, open_sim, payloads, small, tiny, within};
use ringwal::sim::{FaultRule, OpKind, SimDisk};
use ringwal::{Batch, Config, Durability, Error, Log};

fn in_place(config: Config) -> Config {
    config.write_in_place(true)
}

#[test]
fn an_append_to_an_idle_log_is_done_when_the_call_returns_and_its_callback_ran_on_the_callers_thread() {
    for place in [Place::syscall(), Place::uring(), Place::sim(1)] {
        let log = place.open(in_place(small()));
        for nth in 0..50u64 {
            let (sender, receiver) = mpsc::channel();
            // Until the log's own thread has nothing to do (a segment was made, say), it may be the one that writes.
            log.submit_with(Batch::new().push("entry"), move |told| {
                let _ = sender.send((told.is_ok(), thread::current().id()));
            })
            .unwrap();
            let (is_acked, who) = receiver.recv_timeout(FOR_EVER).unwrap();
            assert!(is_acked);
            if who == thread::current().id() {
                assert_eq!(log.state().durable, Some(nth + 1), "a callback came before its entry was durable");
            }
        }
        let on_this_thread = (0..1000).any(|_| {
            let who = Arc::new(Mutex::new(None));
            let theirs = who.clone();
            let told = move |_| *theirs.lock().unwrap() = Some(thread::current().id());
            log.submit_with(Batch::new().push("entry"), told).unwrap();
            let who = *who.lock().unwrap();
            who == Some(thread::current().id())
        });
        assert!(on_this_thread, "no caller ever wrote");
        log.close().unwrap();
    }
}

#[test]
fn what_many_callers_had_acknowledged_is_there_after_a_reopen() {
    for place in [Place::syscall(), Place::sim(2)] {
        let log = place.open(in_place(small()));
        let theirs = log.clone();
        let indexes = within("appending from many threads", move || {
            let log = &theirs;
            thread::scope(|scope| {
                let append = |nth| {
                    move || {
                        let name = |n| format!("{nth} {n}");
                        let one = |n| match n % 2 {
                            0 => log.append(name(n)).unwrap(),
                            _ => block_on(log.append_async(name(n))).unwrap(),
                        };
                        (0..100).map(one).collect::<Vec<_>>()
                    }
                };
                let threads: Vec<_> = (0..8).map(|nth| scope.spawn(append(nth))).collect();
                threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<u64>>()
            })
        });
        assert_eq!(indexes.iter().collect::<BTreeSet<_>>().len(), 800, "no index is given out twice");
        assert!(log.stats().rolls > 0, "the segments were too large for this test");
        log.close().unwrap();
        let log = place.open(small());
        assert_eq!(payloads(&log).into_iter().collect::<BTreeSet<_>>().len(), 800);
    }
}

#[test]
fn a_write_that_fails_on_a_callers_thread_poisons_the_log_and_everyone_learns_it() {
    for nth in 1..=5 {
        let disk = SimDisk::new(nth);
        let log = open_sim(&disk, in_place(tiny()));
        disk.fail(FaultRule::io_error(OpKind::Write, nth));
        let theirs = log.clone();
        let acked = within("appending to a disk that fails", move || {
            thread::scope(|scope| {
                let append = || (0..20).take_while(|_| theirs.append("entry").is_ok()).count();
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(append)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
            })
        });
        assert!(acked < 80, "the write never failed");
        assert!(matches!(log.append("later"), Err(Error::Poisoned(_))));
        assert!(matches!(log.close(), Err(Error::Poisoned(_))));
        let kept = payloads(&open_sim(&disk, tiny())).len();
        assert!(kept >= acked, "{acked} were acknowledged, {kept} are there");
    }
}

#[test]
fn a_log_that_callers_wrote_to_is_marked_when_it_rests_each_time_anew() {
    let place = Place::syscall();
    let log = place.open(in_place(small()).idle_mark_after(Duration::from_millis(5)));
    for marks in 1..=3 {
        log.append("entry").unwrap();
        eventually("a mark", || log.stats().marks >= marks);
    }
    log.close().unwrap();
}

#[test]
fn a_callback_on_a_callers_thread_may_submit_and_its_panic_ends_nothing() {
    let place = Place::sim(3);
    let log = place.open(in_place(small()));
    let (sender, receiver) = mpsc::channel();
    let again = log.clone();
    let done = move |_| {
        assert!(matches!(again.append("not here"), Err(Error::InCallback)));
        drop(again.submit_with(Batch::new(), |_| ()));
        drop(again.try_submit(Batch::new().push("from a callback")).unwrap());
        let _ = sender.send(());
    };
    log.submit_with(Batch::new().push("entry"), done).unwrap();
    receiver.recv_timeout(FOR_EVER).unwrap();
    log.submit_with(Batch::new().push("entry"), |_| panic!("as planned")).unwrap();
    log.append("last").unwrap();
    log.close().unwrap();
    assert_eq!(payloads(&place.open(small())).len(), 4);
}

#[test]
fn durabilities_whose_acks_come_later_are_refused() {
    let is_refused = |config: Config| {
        let place = Place::sim(4);
        matches!(place.try_open(in_place(config)), Err(Error::Config(_)))
    };
    assert!(is_refused(small().durability(Durability::None)));
    assert!(is_refused(small().durability(Durability::Interval(Duration::from_millis(1)))));
    assert!(is_refused(small().linger(Duration::from_millis(1))));
    assert!(!is_refused(small()));
}

#[test]
fn a_log_that_is_dropped_lets_go_of_its_directory() {
    let place = Place::syscall();
    let log: Log = place.open(in_place(small()));
    log.append("entry").unwrap();
    drop(log);
    let log = place.open(in_place(small()).lock_wait(FOR_EVER));
    assert_eq!(payloads(&log).len(), 1);
}
