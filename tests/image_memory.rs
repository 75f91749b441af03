//! What an image costs, measured as the memory of this process: nothing while nothing is written, and no more than twice
//! what is written then.
//!
//! A process of its own with one test, so that nothing else takes memory meanwhile.

mod common;

use std::fs;
use std::io;
use std::sync::mpsc;
use std::thread;

use bytes::Bytes;
use ringwal::machine::{KvCommand, KvOp, KvStateMachine};
use ringwal::{StateImage, StateMachine};

use common::block_on;

const RECORDS: u64 = 1_000_000;
const KEY_BYTES: u64 = 16;
const VALUE_BYTES: u64 = 100;

/// What an image may cost that does not grow with the writes: 64 MiB for ten million records, so a tenth of it here.
const FIXED_BYTES: u64 = 64 << 20;
const FIXED_BYTES_HERE: u64 = FIXED_BYTES / (10_000_000 / RECORDS);

/// Resident bytes of this process.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// A key that says nothing about where its neighbours are.
fn key(number: u64) -> Bytes {
    let spread = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Bytes::from([spread.to_be_bytes(), number.to_be_bytes()].concat())
}

fn put(number: u64, round: u8) -> KvOp {
    KvOp::Put { key: key(number), value: Bytes::from(vec![round; VALUE_BYTES as usize]) }
}

/// Overwrites, and one in four a removal, all over the keys.
fn rewrite(kv: &mut KvStateMachine, numbers: std::ops::Range<u64>, round: u8) {
    let spread = |nth: u64| nth.wrapping_mul(2_654_435_761) % RECORDS;
    let op =
        |nth: u64| if nth.is_multiple_of(4) { KvOp::Delete { key: key(spread(nth)) } } else { put(spread(nth), round) };
    for from in numbers.step_by(1000) {
        block_on(kv.apply(KvCommand::Batch((from..from + 1000).map(op).collect()))).unwrap();
    }
}

fn filled() -> KvStateMachine {
    let mut kv = KvStateMachine::new();
    for from in (0..RECORDS).step_by(1000) {
        block_on(kv.apply(KvCommand::Batch((from..from + 1000).map(|number| put(number, 0)).collect()))).unwrap();
    }
    assert_eq!((kv.len(), kv.bytes()), (RECORDS, RECORDS * (KEY_BYTES + VALUE_BYTES)));
    kv
}

fn grown(before: u64, allowed: u64, what: &str) {
    let grown = resident().saturating_sub(before);
    println!("{what}: grown by {} KiB, and {} KiB are allowed", grown >> 10, allowed >> 10);
    assert!(grown < allowed, "{what}");
}

/// A sink that goes on only when it is told to: an image that is being written.
struct Slow(mpsc::Receiver<()>);

impl io::Write for Slow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Told nothing any more, it goes on by itself.
        _ = self.0.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn memory_grows_by_what_is_written_while_images_live_and_not_by_copies_of_what_lies_around_it() {
    let mut kv = filled();
    let before = resident();
    println!("{} bytes for each record", before / RECORDS);

    kv.image().write_to(&mut io::sink()).unwrap();
    grown(before, FIXED_BYTES_HERE, "an image that is written, without writes");

    let (go, told) = mpsc::channel();
    let (image, shown) = (kv.image(), kv.image());
    let writer = thread::spawn(move || image.write_to(&mut Slow(told)));
    for (nth, most) in [20_000, 100_000, 400_000].into_iter().enumerate() {
        let from = [0, 20_000, 100_000][nth];
        rewrite(&mut kv, from..most, 1);
        let allowed = FIXED_BYTES_HERE + 2 * most * (KEY_BYTES + VALUE_BYTES);
        grown(before, allowed, &format!("{most} rewritten while an image is written"));
    }
    assert!(shown.iter().all(|(_, value)| value[0] == 0) && shown.len() == RECORDS);
    drop((go, shown));
    writer.join().unwrap().unwrap();

    // Image after image over the same records: what one of them needed is free for the next.
    let once = resident();
    for round in 2..8 {
        let image = kv.image();
        rewrite(&mut kv, 0..100_000, round);
        drop(image);
        rewrite(&mut kv, 0..100_000, round);
    }
    grown(once, FIXED_BYTES_HERE + 2 * 100_000 * (KEY_BYTES + VALUE_BYTES), "six images one after the other");
}
