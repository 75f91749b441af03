//! Crash-tests a state machine of one's own at every moment at which it changes its disk:
//!
//! `cargo run --example crash_test --features sim`
//!
//! With `-- early` it answers its client before the log has acknowledged, and sees which crash proves that wrong.

use ringwal::sim::{Life, SimDisk, crash_everywhere};
use ringwal::{Batch, Config, Error, Result};

fn config() -> Config {
    Config::default().segment_bytes(16 << 10).block_bytes(Some(512))
}

/// Two accounts, recovered from the log. A payment takes from one and gives to the other, in one batch.
fn recover(disk: &SimDisk) -> Result<[i64; 2]> {
    let (log, mut balances) = (disk.open_log(config())?, [100, 0]);
    for entry in log.iter(..) {
        let command = entry?.command;
        balances[usize::from(command[0])] += i64::from(command[1] as i8);
    }
    Ok(balances)
}

fn main() {
    let answers_early = std::env::args().nth(1).as_deref() == Some("early");
    let pay = |life: &Life<i64>| {
        let mut log = life.disk().open_log(config())?;
        for paid in 1..=40 {
            if answers_early {
                life.promise(paid);
            }
            log.write(Batch::new().push(vec![0, -1i8 as u8]).push(vec![1, 1]))?;
            life.promise(paid); // the client has its answer: from now on it must be true
        }
        Ok::<(), Error>(())
    };
    let check = |disk: &SimDisk, promised: &[i64]| {
        let [from, to] = recover(disk)?;
        assert_eq!(from + to, 100, "a payment is there as a whole or not at all");
        assert!(to >= promised.last().copied().unwrap_or(0), "{to} payments, but {promised:?} were answered");
        Ok::<_, Error>([from, to]) // the world has seen this: the next recovery must show the same
    };
    match crash_everywhere(1, pay, check) {
        Ok(tried) => println!("{} crash points, {} images: nothing was lost", tried.points, tried.images),
        Err(failure) => panic!("{failure}"),
    }
}
