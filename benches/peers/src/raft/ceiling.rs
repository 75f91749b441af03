//! The ceilings: a log in memory that asks the device for one bare write per append, and waits for it.
//!
//! A write is as long as the encoded entries, rounded up to 4 KiB, into files that were written before
//! ([`BareWrites`]): nothing could be read back after a crash. Whoever keeps a log that is durable before openraft goes
//! on needs at least this. There are two of them, which differ in who waits: `ceiling` writes on the executor's own
//! thread, which rests meanwhile and needs no waking; `ceiling-thread` hands the write to a thread of its own, as a
//! store has to that does not block its executor, and pays for two wakes.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::RangeBounds;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::{io, thread};

use anyhow::{Result, anyhow};
use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{AnyError, LogState, OptionalSend, RaftLogReader, StorageIOError};
use tokio::sync::oneshot;

use super::cluster;
use super::types::{Entry, Id, StorageError, Types, Vote};
use crate::engine::{Contestant, Engine};
use crate::floor::{BLOCK_BYTES, BareWrites};
use crate::load::Load;

pub(crate) const IN_PLACE: Contestant = Contestant {
    name: "ceiling",
    version: String::new,
    durability: "a log in memory; a bare device write per append, on the executor's thread",
    open: |dir, load| open(dir, load, |dir, _| Ceiling::open(dir, Device::in_place)),
};

pub(crate) const THREAD: Contestant = Contestant {
    name: "ceiling-thread",
    version: String::new,
    durability: "a log in memory; a bare device write per append, on a thread of its own",
    open: |dir, load| open(dir, load, |dir, _| Ceiling::open(dir, Device::thread)),
};

fn open(dir: &Path, load: &Load, open: cluster::Open<Ceiling>) -> Result<Box<dyn Engine>> {
    cluster::start(dir, load, open, None)
}

/// Bytes that are written around and around.
const FILE_BYTES: u64 = 32 << 20;

/// See the module.
#[derive(Clone)]
pub(crate) struct Ceiling {
    memory: Arc<Mutex<Memory>>,
    device: Arc<Device>,
}

#[derive(Default)]
struct Memory {
    entries: BTreeMap<u64, Entry>,
    purged: Option<Id>,
    vote: Option<Vote>,
}

/// Who writes.
enum Device {
    InPlace(Mutex<BareWrites>),
    Thread(Mutex<Sender<Job>>),
}

struct Job {
    blocks: usize,
    done: Done,
}

type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

impl Device {
    fn in_place(bare: BareWrites) -> Device {
        Device::InPlace(Mutex::new(bare))
    }

    fn thread(bare: BareWrites) -> Device {
        let (jobs, inbox) = channel();
        thread::spawn(move || serve(bare, &inbox));
        Device::Thread(Mutex::new(jobs))
    }

    /// Calls `done` when so many bytes have been written.
    fn write(&self, bytes: usize, done: Done) {
        let blocks = bytes.div_ceil(BLOCK_BYTES).max(1);
        match self {
            Device::InPlace(bare) => done(write(&mut bare.lock().unwrap_or_else(PoisonError::into_inner), blocks)),
            Device::Thread(jobs) => {
                // It answers every job, unless it panicked: then the callback is dropped, which openraft notices.
                let _ = jobs.lock().unwrap_or_else(PoisonError::into_inner).send(Job { blocks, done });
            }
        }
    }
}

fn write(bare: &mut BareWrites, blocks: usize) -> io::Result<()> {
    bare.write(blocks).map_err(|error| io::Error::other(format!("{error:#}")))
}

fn serve(mut bare: BareWrites, inbox: &Receiver<Job>) {
    while let Ok(Job { blocks, done }) = inbox.recv() {
        done(write(&mut bare, blocks));
    }
}

impl Ceiling {
    fn open(dir: &Path, device: fn(BareWrites) -> Device) -> Result<Ceiling> {
        let device = Arc::new(device(BareWrites::prepare(dir, 1, FILE_BYTES)?));
        Ok(Ceiling { memory: Arc::default(), device })
    }

    fn with<T>(&self, look: impl FnOnce(&mut Memory) -> T) -> T {
        look(&mut self.memory.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps the entries; the bytes that they take.
    fn keep(&self, entries: impl Iterator<Item = Entry>) -> Result<usize> {
        let mut bytes = 0;
        for entry in entries {
            bytes += postcard::to_allocvec(&entry)?.len();
            self.with(|memory| memory.entries.insert(entry.log_id.index, entry));
        }
        Ok(bytes)
    }

    /// One block, waited for.
    async fn write_block(&self) -> Result<()> {
        let (done, wait) = oneshot::channel();
        self.device.write(
            1,
            Box::new(move |result| {
                let _ = done.send(result);
            }),
        );
        Ok(wait.await.map_err(|_| anyhow!("the writing thread ended"))??)
    }
}

fn failed(error: anyhow::Error) -> StorageError {
    StorageIOError::write_logs(AnyError::error(format!("{error:#}"))).into()
}

impl RaftLogReader<Types> for Ceiling {
    async fn try_get_log_entries<R>(&mut self, range: R) -> Result<Vec<Entry>, StorageError>
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        Ok(self.with(|memory| memory.entries.range(range).map(|(_, entry)| entry.clone()).collect()))
    }
}

impl RaftLogStorage<Types> for Ceiling {
    type LogReader = Ceiling;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError> {
        Ok(self.with(|memory| {
            let last = memory.entries.last_key_value().map(|(_, entry)| entry.log_id);
            LogState { last_purged_log_id: memory.purged, last_log_id: last.or(memory.purged) }
        }))
    }

    async fn get_log_reader(&mut self) -> Ceiling {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        self.with(|memory| memory.vote = Some(*vote));
        self.write_block().await.map_err(failed)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.with(|memory| memory.vote))
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let bytes = self.keep(entries.into_iter()).map_err(failed)?;
        self.device.write(bytes, Box::new(|result| callback.log_io_completed(result)));
        Ok(())
    }

    async fn truncate(&mut self, from: Id) -> Result<(), StorageError> {
        self.with(|memory| drop(memory.entries.split_off(&from.index)));
        self.write_block().await.map_err(failed)
    }

    async fn purge(&mut self, upto: Id) -> Result<(), StorageError> {
        self.with(|memory| {
            memory.entries = memory.entries.split_off(&(upto.index + 1));
            memory.purged = Some(upto);
        });
        self.write_block().await.map_err(failed)
    }
}
