//! The durable key-value store: what was acknowledged is read by everyone and survives, batches are all or nothing, and
//! images stay as they were.

mod common;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use bytes::Bytes;
use common::{FOR_EVER, block_on, held_disk, scratch, small, tiny, within};
use ringwal::machine::KvStateMachine;
use ringwal::sim::{Mode, Rng, SimDisk};
use ringwal::{Config, DriverError, Error, KvOp, KvStore, Storage, StoreConfig, Swap};

fn config() -> StoreConfig {
    StoreConfig::default().log(small())
}

fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> KvOp {
    KvOp::Put { key: key.into(), value: value.into() }
}

fn delete(key: impl Into<Bytes>) -> KvOp {
    KvOp::Delete { key: key.into() }
}

fn sim(seed: u64) -> (SimDisk, KvStore) {
    let disk = SimDisk::new(seed);
    let store = reopen(&disk);
    (disk, store)
}

fn reopen(disk: &SimDisk) -> KvStore {
    KvStore::open_on(Arc::new(disk.clone()), StoreConfig::default().log(tiny())).unwrap().0
}

fn everything(store: &KvStore) -> Vec<(Bytes, Bytes)> {
    store.scan::<&[u8]>(.., usize::MAX)
}

#[test]
fn set_get_delete_get() {
    let dir = scratch();
    let (store, report) = KvStore::open(dir.path(), config()).unwrap();
    assert!(report.created && store.is_empty());
    assert_eq!(store.get(b"key"), None);
    store.set("key", "value").unwrap();
    assert_eq!(store.get(b"key").unwrap(), "value");
    store.set("key", "other").unwrap();
    assert_eq!((store.get(b"key").unwrap(), store.len(), store.bytes()), (Bytes::from("other"), 1, 8));
    assert!(store.delete("key").unwrap());
    assert!(!store.delete("key").unwrap());
    assert_eq!((store.get(b"key"), store.contains_key(b"key")), (None, false));
    store.set("", "").unwrap();
    assert_eq!(store.get(b"").unwrap(), "");
}

#[test]
fn a_store_is_after_every_reopen_what_it_was() {
    let dir = scratch();
    let mut model: BTreeMap<Bytes, Bytes> = BTreeMap::new();
    let mut rng = Rng::new(3);
    for round in 0..8 {
        let (store, _) = KvStore::open(dir.path(), config()).unwrap();
        assert_eq!(everything(&store), model.clone().into_iter().collect::<Vec<_>>());
        for _ in 0..20 {
            let key = Bytes::from(format!("key {}", rng.below(30)));
            let value = Bytes::from(vec![rng.below(256) as u8; rng.below(3000)]);
            match rng.below(4) {
                0 => assert_eq!(store.delete(key.clone()).unwrap(), model.remove(&key).is_some()),
                1 => {
                    store.write_batch(vec![put(key.clone(), value.clone()), delete("key 1")]).unwrap();
                    model.insert(key, value);
                    model.remove(&b"key 1"[..]);
                }
                _ => {
                    store.set(key.clone(), value.clone()).unwrap();
                    model.insert(key, value);
                }
            }
        }
        match round % 3 {
            0 => drop(store.checkpoint().unwrap()),
            1 => store.close().unwrap(),
            _ => drop(store),
        }
    }
}

#[test]
fn a_compare_and_set_serves_one_of_many() {
    let (_disk, store) = sim(1);
    assert_eq!(store.compare_and_set("key", Some("x".into()), Some("y".into())).unwrap(), Swap::Differs(None));
    assert_eq!(store.compare_and_set("key", None, Some("0".into())).unwrap(), Swap::Swapped);
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let store = store.clone();
            thread::spawn(move || {
                for _ in 0..25 {
                    let mut expected = store.get(b"key").unwrap();
                    loop {
                        let count: u64 = std::str::from_utf8(&expected).unwrap().parse().unwrap();
                        let next = Bytes::from((count + 1).to_string());
                        match store.compare_and_set("key", Some(expected), Some(next)).unwrap() {
                            Swap::Swapped => break,
                            Swap::Differs(found) => expected = found.unwrap(),
                        }
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(store.get(b"key").unwrap(), "200");
    assert_eq!(store.compare_and_set("key", Some("200".into()), None).unwrap(), Swap::Swapped);
    assert!(!store.contains_key(b"key"));
}

#[test]
fn a_scan_is_half_open_ordered_and_bounded() {
    let (_disk, store) = sim(2);
    let keys = ["", "a", "a\0", "ab", "b", "\u{ff}"];
    store.write_batch(keys.iter().map(|key| put(*key, format!("value of {key}"))).collect()).unwrap();
    let found = |range: (Bound<&str>, Bound<&str>), limit| -> Vec<String> {
        let text = |(key, _): (Bytes, Bytes)| String::from_utf8(key.to_vec()).unwrap();
        store.scan::<&str>(range, limit).into_iter().map(text).collect()
    };
    use Bound::{Excluded, Included, Unbounded};
    assert_eq!(found((Unbounded, Unbounded), 99), keys);
    assert_eq!(found((Included("a"), Excluded("b")), 99), ["a", "a\0", "ab"]);
    assert_eq!(found((Excluded("a"), Included("b")), 99), ["a\0", "ab", "b"]);
    assert_eq!(found((Included("a"), Unbounded), 2), ["a", "a\0"]);
    assert_eq!(found((Included("b"), Excluded("a")), 99), [""; 0]);
    assert_eq!(found((Included("a"), Excluded("a")), 99), [""; 0]);
    assert_eq!(found((Unbounded, Unbounded), 0), [""; 0]);
    let scanned = block_on(Storage::range_scan(&store, b"a", b"b")).unwrap();
    assert_eq!(scanned.len(), 3);
    assert_eq!(block_on(Storage::range_scan(&store, b"b", b"a")).unwrap(), []);
}

#[test]
fn a_long_scan_is_of_one_moment() {
    let (_disk, store) = sim(3);
    let fill = |value: u64| {
        let ops = (0..3000u64).map(|key| put(key.to_be_bytes().to_vec(), value.to_be_bytes().to_vec()));
        // One command, which the smallest segments would not take.
        ops.collect::<Vec<_>>()
    };
    let dir = scratch();
    drop(store);
    let (store, _) =
        KvStore::open(dir.path(), StoreConfig::default().log(Config::default().segment_bytes(1 << 20))).unwrap();
    store.write_batch(fill(0)).unwrap();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for value in 1..20 {
                store.write_batch(fill(value)).unwrap();
            }
            is_over.store(true, Ordering::SeqCst);
        });
        while !is_over.load(Ordering::SeqCst) {
            let found = everything(&store);
            assert_eq!(found.len(), 3000);
            assert!(found.iter().all(|(_, value)| *value == found[0].1), "of two moments");
            assert!(found.is_sorted());
        }
    });
    assert_eq!(store.scan::<&[u8]>(.., 2000).len(), 2000);
}

#[test]
fn an_image_stays_as_it_was() {
    let (_disk, store) = sim(4);
    store.write_batch((0..50).map(|key| put(format!("key {key:02}"), "old")).collect()).unwrap();
    let image = store.image();
    let second = {
        for key in 0..50 {
            match key % 3 {
                0 => drop(store.delete(format!("key {key:02}")).unwrap()),
                _ => store.set(format!("key {key:02}"), "new").unwrap(),
            }
        }
        store.image()
    };
    store.checkpoint().unwrap();
    store.set("another", "new").unwrap();
    assert_eq!((image.len(), second.len(), store.len()), (50, 33, 34));
    assert!(image.iter().all(|(_, value)| value == b"old"));
    assert!(second.iter().all(|(_, value)| value == b"new"));
    assert_eq!(image.range("key 10"..="key 12").count(), 3);
}

/// Each thread writes ever larger numbers to keys of its own, and tells which were acknowledged; all threads read all
/// keys and must find at least what was acknowledged before, and never a number go back.
#[test]
fn reads_see_all_acknowledged_writes_of_all_threads() {
    const WRITERS: usize = 6;
    let dir = scratch();
    let (store, _) = KvStore::open(dir.path(), config().snapshot_every_entries(Some(200))).unwrap();
    let acknowledged: Vec<AtomicU64> = (0..WRITERS).map(|_| AtomicU64::new(0)).collect();
    let key = |writer: usize| format!("key of {writer}");
    let number = |store: &KvStore, writer: usize| -> u64 {
        let value = store.get(key(writer).as_bytes());
        value.map_or(0, |value| u64::from_be_bytes(value[..].try_into().unwrap()))
    };
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (store, acknowledged, number) = (&store, &acknowledged, &number);
            scope.spawn(move || {
                let mut seen = [0; WRITERS];
                for count in 1..=150u64 {
                    match count % 2 {
                        0 => store.set(key(writer), count.to_be_bytes().to_vec()).unwrap(),
                        _ => block_on(store.write(key(writer).as_bytes(), &count.to_be_bytes())).unwrap(),
                    }
                    acknowledged[writer].store(count, Ordering::SeqCst);
                    for other in 0..WRITERS {
                        let at_least = acknowledged[other].load(Ordering::SeqCst);
                        let found = number(store, other);
                        assert!(found >= at_least, "{other} was told {at_least}, and {found} is read");
                        assert!(found >= seen[other], "{found} after {}", seen[other]);
                        seen[other] = found;
                    }
                }
            });
        }
    });
    drop(store);
    let (store, _) = KvStore::open(dir.path(), config()).unwrap();
    assert!((0..WRITERS).all(|writer| number(&store, writer) == 150));
}

/// One register under compare-and-set, sets and reads of many threads: every answer fits one order of all calls. Each
/// write brings a value of its own, so that the order can be told from the values: the chain of what each successful
/// swap expected and wrote.
#[test]
fn swaps_of_one_key_form_one_chain() {
    let (disk, store) = sim(6);
    store.set("key", "start").unwrap();
    let links: Vec<(Bytes, Bytes)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..6)
            .map(|thread| {
                let store = &store;
                scope.spawn(move || {
                    let mut links = Vec::new();
                    for nth in 0..60 {
                        let expected = store.get(b"key").unwrap();
                        let new = Bytes::from(format!("{thread}: {nth}"));
                        let swap = store.compare_and_set("key", Some(expected.clone()), Some(new.clone()));
                        if swap.unwrap() == Swap::Swapped {
                            links.push((expected, new));
                        }
                    }
                    links
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let by_expected: BTreeMap<_, _> = links.iter().cloned().collect();
    assert_eq!(by_expected.len(), links.len(), "no value was swapped away twice");
    let mut value = Bytes::from("start");
    for _ in 0..links.len() {
        value = by_expected[&value].clone();
    }
    assert_eq!(store.get(b"key").unwrap(), value, "the chain ends with what is there");
    drop(store);
    assert_eq!(reopen(&disk).get(b"key").unwrap(), value);
}

#[test]
fn a_batch_is_there_as_a_whole_or_not_at_all_after_a_crash() {
    let disk = SimDisk::new(7);
    let store = reopen(&disk);
    disk.start_recording();
    for round in 0..12u64 {
        let ops = (0..5).map(|key| put(format!("key {key}"), round.to_string()));
        store
            .write_batch(
                ops.chain([delete(format!("round {}", round.wrapping_sub(1))), put(format!("round {round}"), "")])
                    .collect(),
            )
            .unwrap();
        if round % 5 == 4 {
            store.checkpoint().unwrap();
        }
    }
    drop(store);
    let mut seed = 0;
    for point in disk.take_recording() {
        seed += 1;
        for left in [point.lose_all(), point.keep_all(), point.random_image(seed)] {
            let store = reopen(&left);
            let all = everything(&store);
            if let Some((_, round)) = all.first() {
                assert_eq!(all.len(), 6);
                assert!(all[..5].iter().all(|(_, value)| value == round));
                assert_eq!(all[5].0, format!("round {}", std::str::from_utf8(round).unwrap()));
            }
        }
    }
    assert!(seed > 25, "{seed} points");
}

#[test]
fn what_is_too_large_is_refused_and_nothing_of_it_done() {
    let (_disk, store) = sim(8);
    let too_long = vec![0; KvStateMachine::KEY_BYTES_MAX + 1];
    let dir = scratch();
    let (large, _) =
        KvStore::open(dir.path(), StoreConfig::default().log(Config::default().segment_bytes(1 << 20))).unwrap();
    assert!(matches!(large.set(too_long.clone(), "x"), Err(DriverError::Refused(_))));
    assert!(matches!(large.write_batch(vec![put("a", "b"), put(too_long, "x")]), Err(DriverError::Refused(_))));
    assert!(large.is_empty());
    assert!(matches!(store.set("key", vec![0; 64 << 10]), Err(DriverError::Log(Error::TooLarge { .. }))));
    store.write_batch(Vec::new()).unwrap();
    store.set("key", "value").unwrap();
    assert_eq!(store.driver().last_applied(), 1, "what the log refuses leaves nothing behind");
}

#[test]
fn a_write_whose_future_is_dropped_happens_as_a_whole_or_not_at_all() {
    let disk = held_disk();
    disk.set_mode(Mode::Random);
    let store = reopen(&disk);
    disk.set_mode(Mode::Held);
    let mut future = Box::pin(store.write_batch_async(vec![put("a", "1"), put("b", "2")]));
    assert!(common::poll_once(&mut future).is_pending());
    drop(future);
    assert!(disk.wait_in_flight(1, FOR_EVER));
    assert!(store.is_empty(), "what is not durable is not shown");
    disk.set_mode(Mode::Random);
    disk.complete_all();
    store.set("c", "3").unwrap();
    assert_eq!(everything(&store).len(), 3);
}

#[test]
fn reads_go_on_while_the_disk_hangs() {
    let disk = held_disk();
    disk.set_mode(Mode::Random);
    let store = reopen(&disk);
    store.set("key", "value").unwrap();
    disk.set_mode(Mode::Held);
    let waiting = {
        let store = store.clone();
        thread::spawn(move || store.set("key", "later").unwrap())
    };
    assert!(disk.wait_in_flight(1, FOR_EVER));
    let reader = store.clone();
    let found = within("reads", move || (reader.get(b"key"), everything(&reader).len(), reader.image().len()));
    assert_eq!(found, (Some("value".into()), 1, 1));
    disk.set_mode(Mode::Random);
    disk.complete_all();
    waiting.join().unwrap();
    assert_eq!(store.get(b"key").unwrap(), "later");
}

async fn through_the_trait<S: Storage>(store: S) -> Result<(), S::Error> {
    store.write(b"a", b"1").await?;
    store.batch_write(vec![put("b", "2"), put("c", "3"), delete("a")]).await?;
    assert_eq!(store.read(b"a").await?, None);
    assert_eq!(store.read(b"b").await?.unwrap(), "2");
    store.delete(b"c").await?;
    assert_eq!(store.range_scan(b"", b"z").await?, [(Bytes::from("b"), Bytes::from("2"))]);
    Ok(())
}

#[test]
fn the_trait_is_there_for_the_store_and_for_what_lends_it() {
    let (_disk, store) = sim(9);
    block_on(through_the_trait(&store)).unwrap();
    store.delete("b").unwrap();
    block_on(through_the_trait(store)).unwrap();
}

#[test]
fn after_its_machine_failed_a_store_answers_with_errors_and_does_not_panic() {
    let (_disk, store) = sim(31);
    store.set("key", "value").unwrap();
    assert_eq!(block_on(Storage::read(&store, b"key")).unwrap().unwrap(), "value");
    // No command: the machine cannot go past it.
    store.driver().log().append(&b"\xff"[..]).unwrap();
    assert!(matches!(store.set("key", "other"), Err(DriverError::MachineFailed(_))));
    assert!(matches!(block_on(Storage::read(&store, b"key")), Err(DriverError::MachineFailed(_))));
    assert!(matches!(block_on(store.range_scan(b"a", b"z")), Err(DriverError::MachineFailed(_))));
    assert!(matches!(store.try_get(b"key"), Err(DriverError::MachineFailed(_))));
    assert!(matches!(store.try_scan::<&[u8]>(.., 1), Err(DriverError::MachineFailed(_))));
    assert!(format!("{store:?}").contains("KvStore"));
}
