//! A real process that writes to a store from several threads, while snapshots are taken and the log is compacted, killed
//! again and again: every write that it was told of is there, each batch as a whole, and nothing that was never written.
//!
//! `RINGWAL_ROUNDS` kills it more often.

mod common;
mod stack;

use std::collections::BTreeMap;
use std::env;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use common::{scratch, small};
use ringwal::sim::Rng;
use ringwal::{KvStore, SnapshotError, SnapshotOptions, StoreConfig};
use stack::setting;
use stack::writers::{self, SLOTS, WRITERS, write};

const ROUNDS: u64 = 16;

fn config() -> StoreConfig {
    StoreConfig::default()
        .log(small().lock_wait(Duration::from_secs(60)))
        .snapshots(SnapshotOptions::default().chunk_bytes(8 << 10))
        .snapshot_every_entries(Some(60))
        .keep_snapshots(2)
}

fn open(directory: &Path) -> KvStore {
    KvStore::open(directory, config()).unwrap_or_else(|error| panic!("{error}")).0
}

/// One line by one system call: whole in the pipe, or not there.
fn tell(line: &str) {
    assert_eq!(rustix::io::write(std::io::stdout(), line.as_bytes()), Ok(line.len()));
}

/// Not a test of its own: writes and takes snapshots until the test below kills it.
#[test]
#[ignore = "the process that is killed by another test"]
fn the_process_with_a_store() {
    let Ok(directory) = env::var("RINGWAL_STORE") else { return println!("nobody asked for it") };
    let store = open(Path::new(&directory));
    println!();
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let store = &store;
            scope.spawn(move || {
                for n in writers::written(writer, |key| store.get(key)) + 1.. {
                    store.write_batch(write(writer, n)).unwrap();
                    tell(&format!("{writer} {n}\n"));
                }
            });
        }
        loop {
            tell(&format!("snapshot {}\n", store.checkpoint().unwrap().index));
            thread::sleep(Duration::from_millis(5));
        }
    });
}

/// What the process told before it died: the last of each.
#[derive(Debug, Default)]
struct Told {
    written: [u64; WRITERS as usize],
    snapshot: u64,
    /// Lives since the store was looked at: each may have written one more than it told.
    lives: u64,
}

impl Told {
    fn note(&mut self, line: &str) {
        let Some((what, number)) = line.split_once(' ') else { return };
        let Ok(number) = number.parse() else { return };
        match what.parse::<usize>() {
            Ok(writer) if writer < self.written.len() => self.written[writer] = number,
            _ if what == "snapshot" => self.snapshot = number,
            _ => {}
        }
    }

    /// Runs the process for so long.
    fn live(&mut self, directory: &Path, time: Duration) {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "the_process_with_a_store", "--ignored", "--nocapture"]);
        let mut child = command.env("RINGWAL_STORE", directory).stdout(Stdio::piped()).spawn().unwrap();
        thread::sleep(time);
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        child.kill().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        lines.map_while(Result::ok).for_each(|line| self.note(&line));
        child.wait().unwrap();
        self.lives += 1;
    }

    fn check(&mut self, store: &KvStore, round: u64) {
        let content: BTreeMap<Bytes, Bytes> = store.scan::<&[u8]>(.., usize::MAX).into_iter().collect();
        let told = |writer: u64| self.written[writer as usize]..=self.written[writer as usize] + self.lives;
        self.written =
            writers::check(&content, told).unwrap_or_else(|wrong| panic!("round {round}: {wrong}, {self:?}"));
        let snapshots = store.driver().snapshots();
        let ids = snapshots.ids().unwrap();
        assert!(
            ids.last().is_some_and(|newest| newest.index >= self.snapshot),
            "round {round}: {ids:?} after {self:?}"
        );
        // One that is due by now is taken meanwhile, and then the oldest goes.
        let is_gone = |id| !snapshots.ids().unwrap().contains(id);
        ids.iter().for_each(|id| match snapshots.verify(&id.to_string()) {
            Err(SnapshotError::NotFound { .. }) if is_gone(id) => {}
            verified => drop(verified.unwrap()),
        });
        self.lives = 0;
    }
}

#[test]
fn a_process_killed_again_and_again_leaves_a_store_with_every_write_that_was_answered() {
    let scratch = scratch();
    let directory = scratch.path().join("store");
    let (mut rng, mut told) = (Rng::new(1), Told::default());
    let rounds = setting("RINGWAL_ROUNDS").unwrap_or(ROUNDS);
    for round in 0..rounds {
        told.live(&directory, Duration::from_micros(rng.next_u64() % 150_000));
        // As often as not, so that one kill follows another on what the last one left.
        if rng.one_in(2) {
            let store = open(&directory);
            told.check(&store, round);
            store.close().unwrap();
        }
    }
    told.live(&directory, Duration::from_millis(500));
    let store = open(&directory);
    told.check(&store, rounds);
    println!("{told:?}");
    assert!(told.written.iter().all(|&written| written > SLOTS) && told.snapshot > 0, "{told:?}");
}
