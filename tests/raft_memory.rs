//! A snapshot far larger than the memory it may take is made, sent, received and installed: all of it is streamed,
//! measured as the memory of this process.
//!
//! A process of its own with one test, so that nothing else takes memory meanwhile.

mod common;

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;

use bytes::Bytes;
use common::{block_on, scratch};
use openraft::storage::RaftStateMachine;
use openraft::{BasicNode, CommittedLeaderId, Entry, EntryPayload, LogId, RaftSnapshotBuilder};
use ringwal::raft::{self, RaftConfig, RaftSnapshot, Reply};
use ringwal::sim::Rng;
use ringwal::{SnapshotOptions, StateImage, StateMachine};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

/// The state, which does not compress.
const STATE_BYTES: u64 = 128 << 20;

/// What any step may take: the chunks on their way, what zstd needs, the pieces that are read and sent.
const ALLOWED_BYTES: u64 = 24 << 20;

/// How much is sent at once.
const CHUNK_BYTES: usize = 1 << 20;

/// A machine whose state follows from one number, and is long.
#[derive(Default)]
struct Long {
    seed: u64,
}

/// The state as it is written.
struct LongImage(u64);

/// Words of the state.
fn words(seed: u64) -> impl Iterator<Item = [u8; 8]> {
    let mut rng = Rng::new(seed);
    let first = std::iter::once(seed.to_le_bytes());
    first.chain((1..STATE_BYTES / 8).map(move |_| rng.next_u64().to_le_bytes()))
}

impl StateImage for LongImage {
    fn write_to(self, sink: &mut dyn Write) -> io::Result<()> {
        words(self.0).try_for_each(|word| sink.write_all(&word))
    }
}

impl StateMachine for Long {
    type Command = u64;
    type Response = u64;
    type Image = LongImage;
    type Error = io::Error;

    const KIND: &'static str = "long/1";

    async fn apply(&mut self, seed: u64) -> io::Result<u64> {
        self.seed = seed;
        Ok(seed)
    }

    fn image(&self) -> LongImage {
        LongImage(self.seed)
    }

    async fn restore(&mut self, source: &mut (dyn Read + Send)) -> io::Result<()> {
        let mut source = io::BufReader::new(source);
        let mut first = [0; 8];
        source.read_exact(&mut first)?;
        let seed = u64::from_le_bytes(first);
        for expected in words(seed).skip(1) {
            let mut found = [0; 8];
            source.read_exact(&mut found)?;
            if found != expected {
                return Err(io::Error::other("another state"));
            }
        }
        self.seed = seed;
        if source.read(&mut [0])? == 0 { Ok(()) } else { Err(io::Error::other("more follows")) }
    }

    fn encode(command: &u64) -> Bytes {
        Bytes::copy_from_slice(&command.to_le_bytes())
    }

    fn decode(bytes: &Bytes) -> io::Result<u64> {
        bytes[..].try_into().map(u64::from_le_bytes).map_err(io::Error::other)
    }
}

#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
struct Answer(Option<u64>);

impl From<Reply<Long>> for Answer {
    fn from(reply: Reply<Long>) -> Answer {
        match reply {
            Reply::Done(seed) => Answer(Some(seed)),
            Reply::Nothing | Reply::Refused(_) => Answer(None),
        }
    }
}

openraft::declare_raft_types!(
    /// A long state.
    Types: D = u64, R = Answer, Node = BasicNode, Entry = Entry<Types>, SnapshotData = RaftSnapshot,
);

fn open(dir: &Path, id: u64) -> raft::RaftStore<Types, Long> {
    let snapshots = SnapshotOptions::default().level(1).low_priority(false).workers(1);
    raft::open(dir, id, Long::default(), RaftConfig::default().snapshots(snapshots)).unwrap()
}

/// A figure of this process, in bytes.
fn status(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Does something and says how much memory it took at its highest.
fn measured<T>(what: &str, work: impl FnOnce() -> T) -> T {
    // Begins the highest mark anew.
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmRSS:");
    let value = work();
    let grown = status("VmHWM:").saturating_sub(before);
    println!("{what}: {} KiB of {} KiB", grown >> 10, ALLOWED_BYTES >> 10);
    assert!(grown < ALLOWED_BYTES, "{what}");
    value
}

#[test]
fn a_snapshot_larger_than_the_memory_it_may_take_is_made_sent_received_and_installed() {
    let (there, here) = (scratch(), scratch());
    let (mut from, mut to) = (open(there.path(), 1), open(here.path(), 2));
    let log_id = LogId::new(CommittedLeaderId::new(1, 1), 1);
    let entry = Entry { log_id, payload: EntryPayload::Normal(77) };
    block_on(from.machine.apply([entry])).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let snapshot = measured("made", || {
        runtime.block_on(async { from.machine.get_snapshot_builder().await.build_snapshot().await.unwrap() })
    });
    let (meta, mut sending) = (snapshot.meta, snapshot.snapshot);
    let mut receiving = block_on(to.machine.begin_receiving_snapshot()).unwrap();
    let bytes = measured("sent and received", || {
        runtime.block_on(async {
            let end = sending.seek(io::SeekFrom::End(0)).await.unwrap();
            sending.seek(io::SeekFrom::Start(0)).await.unwrap();
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            for _ in 0..end.div_ceil(CHUNK_BYTES as u64) {
                chunk.clear();
                (&mut *sending).take(CHUNK_BYTES as u64).read_to_end(&mut chunk).await.unwrap();
                receiving.write_all(&chunk).await.unwrap();
            }
            receiving.shutdown().await.unwrap();
            end
        })
    });
    assert!(bytes > STATE_BYTES * 9 / 10, "it does not compress");
    measured("installed", || runtime.block_on(to.machine.install_snapshot(&meta, receiving)).unwrap());
    assert_eq!(to.machine.handle().read(|long| long.seed).unwrap(), 77);
}
