//! `ringwal kv load`: a file of lines into a store, several batches under way at once.
//!
//! One thread reads and understands lines; this one proposes batches, in the order of the file, and takes their
//! acknowledgements in the same order. So what is durable at any moment is a prefix of the lines, and its length is what
//! is told when the load stops, whatever stops it.
//!
//! A batch that is not full when the input has nothing more for a moment is not held back: what a slow pipe gave is
//! durable soon. The half-full batch lies where both threads get at it, under a lock. It is only ever taken from there by
//! who has seen, under the same lock, that no batch before it is still waiting.
//!
//! Each batch is one entry of the log. A batch is proposed only once the one before has its index: a later line for the
//! same key must win.

use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io::BufRead;
use std::path::Path;
use std::pin::Pin;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use bytes::Bytes;
use ringwal::machine::{KvCommand, KvError, KvOp, KvResponse, KvStateMachine};
use ringwal::{DriverConfig, DriverError};
use serde::Serialize;

use super::args::LoadArgs;
use super::lines::{LineError, Lines, Misread, read_line_up_to};
use super::store::{self, Store};
use crate::failure::from_driver;
use crate::interrupt;
use crate::output;
use crate::progress::Progress;
use crate::text;

/// Bytes of the file after which a batch ends, at most: the log's frames are of this size.
const BATCH_BYTES_MAX: u64 = 1 << 20;

/// Batches that are read ahead.
const READ_AHEAD: usize = 4;

/// How often somebody who waits for the file looks whether to stop.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What was done.
#[derive(Debug, Serialize)]
struct Loaded {
    /// Lines of the file that are durable now, from the first on; those that were passed over are among them.
    durable_lines: u64,
    skipped_lines: u64,
    loaded_lines: u64,
    loaded_bytes: u64,
    batches: u64,
    seconds: f64,
    lines_per_s: f64,
    /// Keys in the store afterwards.
    keys: u64,
}

impl Loaded {
    fn table(&self) -> String {
        let Loaded { loaded_lines, loaded_bytes, batches, seconds, lines_per_s, .. } = self;
        let passed = match self.skipped_lines {
            0 => String::new(),
            lines => format!(" after {} that were passed over", text::count(lines)),
        };
        format!(
            "loaded {} lines ({}) in {} batches in {} s, {} a second{passed}; the store has {} keys\n",
            text::count(*loaded_lines),
            text::bytes(*loaded_bytes),
            text::count(*batches),
            text::value(*seconds),
            text::value(*lines_per_s),
            text::count(self.keys),
        )
    }
}

/// Why a load stopped, and from where to go on.
#[derive(Debug)]
struct Stopped {
    file: String,
    durable_lines: u64,
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (file, lines) = (&self.file, self.durable_lines);
        write!(f, "the load of {file} stopped with the first {lines} lines durable; to go on, load it again ")?;
        write!(f, "(lines that are there already are set to the same once more), or with --skip {lines}")
    }
}

/// Loads the file.
pub(crate) fn run(args: &LoadArgs) -> Result<()> {
    interrupt::listen();
    interrupt::listen_to_supervisors();
    let json_file = output::open_json(args.json.as_deref())?;
    let lines = super::lines_of(&args.file, &args.to)?;
    let store = store::open_or_make(&args.to, DriverConfig::default())?;
    let mut load = Load::new(&store, args);
    let outcome = load.run(lines, args);
    let (keys, durable_lines) = (store.read(|machine| machine.len()), load.durable_lines);
    let loaded = load.loaded(keys);
    drop(load);
    let stopped = || Stopped { file: args.file.display().to_string(), durable_lines };
    match (outcome, store::close(store)) {
        (Ok(()), Ok(())) => output::publish(&loaded, || loaded.table(), args.json.as_deref(), json_file),
        (Err(error), _) | (Ok(()), Err(error)) => Err(error.context(stopped().to_string())),
    }
}

/// What the reading thread hands over.
enum Read {
    Batch(Lot),
    Failed(LineError),
    /// There are fewer lines than were to be passed over.
    TooShort(u64),
    /// There are no more lines: all of them were handed over.
    End,
}

/// The lines of one batch.
#[derive(Default)]
struct Lot {
    operations: Vec<KvOp>,
    /// Bytes of these lines.
    bytes: u64,
    /// Bytes of the file up to the end of these lines.
    until_byte: u64,
}

/// The batch that the reading thread is filling.
#[derive(Clone, Default)]
struct Filling(Arc<Mutex<Lot>>);

impl Filling {
    fn lock(&self) -> MutexGuard<'_, Lot> {
        // Whoever panicked, a line is in it as a whole or not at all.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Lot {
        std::mem::take(&mut *self.lock())
    }

    /// Puts a line in; says whether the batch is full.
    fn push(&self, line: KvOp, bytes: u64, until_byte: u64, size: &LotSize) -> bool {
        let mut lot = self.lock();
        lot.operations.push(line);
        lot.bytes += bytes;
        lot.until_byte = until_byte;
        lot.operations.len() >= size.lines || lot.bytes >= size.bytes
    }
}

type Answer = Result<KvResponse, DriverError<KvError>>;

/// A batch that the log has taken in.
struct UnderWay {
    answer: Pin<Box<dyn Future<Output = Answer> + Send>>,
    /// Lines of the file up to the end of this batch.
    until_line: u64,
    until_byte: u64,
    bytes: u64,
}

struct Load<'a> {
    store: &'a Store,
    under_way: VecDeque<UnderWay>,
    under_way_max: usize,
    started: Instant,
    bar: Progress,
    skipped_lines: u64,
    proposed_lines: u64,
    durable_lines: u64,
    loaded_bytes: u64,
    batches: u64,
}

impl<'a> Load<'a> {
    fn new(store: &'a Store, args: &LoadArgs) -> Load<'a> {
        Load {
            store,
            under_way: VecDeque::new(),
            under_way_max: args.in_flight as usize,
            started: Instant::now(),
            bar: Progress::start("load", size_of(&args.file)),
            skipped_lines: args.skip,
            proposed_lines: args.skip,
            durable_lines: args.skip,
            loaded_bytes: 0,
            batches: 0,
        }
    }

    /// Loads everything, or as much as can be; what was read before a mistake is loaded too.
    fn run(&mut self, lines: Lines<Box<dyn BufRead + Send>>, args: &LoadArgs) -> Result<()> {
        let (sender, lots) = sync_channel(READ_AHEAD);
        let size = LotSize { lines: args.batch as usize, bytes: self.batch_bytes() };
        let skip = args.skip;
        // Not waited for: standard input may never end.
        let filling = Filling::default();
        let fill = filling.clone();
        thread::spawn(move || read(lines, skip, &size, &fill, &sender));
        let outcome = self.propose_all(&lots, &filling);
        let settled = self.settle_down_to(0);
        // The first cause is the one to tell.
        outcome.and(settled)
    }

    /// A batch has to fit a segment, with room to spare.
    fn batch_bytes(&self) -> u64 {
        let segments = self.store.log().segments();
        segments.iter().map(|segment| segment.bytes / 4).min().unwrap_or(BATCH_BYTES_MAX).min(BATCH_BYTES_MAX)
    }

    fn propose_all(&mut self, lots: &Receiver<Read>, filling: &Filling) -> Result<()> {
        loop {
            interrupt::check()?;
            match next(lots, filling)? {
                Read::Batch(lot) if lot.operations.is_empty() => self.settle_down_to(0)?,
                Read::Batch(lot) => self.propose(lot)?,
                Read::Failed(error) => return Err(error.into()),
                Read::TooShort(lines) => return Err(self.too_short(lines)),
                Read::End => return Ok(()),
            }
        }
    }

    fn too_short(&mut self, lines: u64) -> anyhow::Error {
        let asked = self.skipped_lines;
        self.durable_lines = 0;
        anyhow!("the file has {lines} lines, and --skip {asked} was to pass over more: is it the same file?")
    }

    /// Proposes a batch, and waits for the oldest ones where too many are under way.
    fn propose(&mut self, lot: Lot) -> Result<()> {
        self.settle_down_to(self.under_way_max - 1)?;
        self.proposed_lines += lot.operations.len() as u64;
        let index = self.store.log().state().last.map_or(0, |(last, _)| last) + 1;
        let mut answer: Pin<Box<dyn Future<Output = Answer> + Send>> =
            Box::pin(self.store.propose_async(KvCommand::Batch(lot.operations)));
        let early = pollster::block_on(poll_fn(|context| match answer.as_mut().poll(context) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending if self.is_accepted(index) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }));
        if let Some(early) = early {
            answer = Box::pin(std::future::ready(early));
        }
        let (until_line, until_byte, bytes) = (self.proposed_lines, lot.until_byte, lot.bytes);
        self.under_way.push_back(UnderWay { answer, until_line, until_byte, bytes });
        Ok(())
    }

    /// Whether the entry has its place in the log. Nobody else proposes.
    fn is_accepted(&self, index: u64) -> bool {
        self.store.log().state().last.is_some_and(|(last, _)| last >= index)
    }

    /// Waits for the oldest batches until no more than so many are under way.
    fn settle_down_to(&mut self, left: usize) -> Result<()> {
        while self.under_way.len() > left {
            let Some(UnderWay { answer, until_line, until_byte, bytes }) = self.under_way.pop_front() else { break };
            if let Err(error) = pollster::block_on(answer) {
                // What comes after it may be durable all the same; it is not part of what can be counted on.
                self.under_way.clear();
                return Err(from_driver(error));
            }
            self.durable_lines = until_line;
            self.loaded_bytes += bytes;
            self.batches += 1;
            let lines = self.durable_lines;
            self.bar.at(until_byte, || format!("bytes, {} lines are durable", text::count(lines)));
        }
        Ok(())
    }

    fn loaded(&self, keys: u64) -> Loaded {
        let seconds = self.started.elapsed().as_secs_f64();
        let loaded_lines = self.durable_lines.saturating_sub(self.skipped_lines);
        Loaded {
            durable_lines: self.durable_lines,
            skipped_lines: self.skipped_lines,
            loaded_lines,
            loaded_bytes: self.loaded_bytes,
            batches: self.batches,
            seconds,
            lines_per_s: loaded_lines as f64 / seconds.max(f64::EPSILON),
            keys,
        }
    }
}

/// Size of a file in bytes, where it has one.
fn size_of(path: &Path) -> u64 {
    path.metadata().ok().filter(|metadata| metadata.is_file()).map_or(0, |metadata| metadata.len())
}

/// With what a batch ends: the first of these that is reached.
struct LotSize {
    lines: usize,
    bytes: u64,
}

/// What comes next: where that takes a moment, whatever there is, which may be an empty batch.
fn next(lots: &Receiver<Read>, filling: &Filling) -> Result<Read> {
    // A thread that is gone without a word has panicked: what it had read is not all there is.
    let died = || anyhow!("the thread that reads the lines panicked, so there may be more of them");
    match lots.recv_timeout(LOOK_EVERY) {
        Ok(read) => return Ok(read),
        Err(RecvTimeoutError::Disconnected) => return Err(died()),
        Err(RecvTimeoutError::Timeout) => (),
    }
    let mut lot = filling.lock();
    match lots.try_recv() {
        Ok(read) => Ok(read),
        Err(TryRecvError::Disconnected) => Err(died()),
        // Whatever was to be handed over before this batch's first line was read was handed over, and taken.
        Err(TryRecvError::Empty) => Ok(Read::Batch(std::mem::take(&mut *lot))),
    }
}

/// Reads everything, batch by batch. Nobody left to take it is as good as the end.
fn read(
    mut lines: Lines<Box<dyn BufRead + Send>>,
    skip: u64,
    size: &LotSize,
    filling: &Filling,
    sender: &SyncSender<Read>,
) {
    let last = match lines.skip(skip) {
        Ok(skipped) if skipped == skip => match read_lots(&mut lines, size, filling, sender) {
            Some(last) => last,
            None => return,
        },
        Ok(skipped) => Read::TooShort(skipped),
        Err(error) => Read::Failed(error),
    };
    drop(sender.send(last));
}

/// Hands over all lines, and says why there are no more; `None` where nobody takes them.
fn read_lots(
    lines: &mut Lines<Box<dyn BufRead + Send>>,
    size: &LotSize,
    filling: &Filling,
    sender: &SyncSender<Read>,
) -> Option<Read> {
    let last = loop {
        let start = lines.bytes();
        match lines.next(read_record) {
            Ok(Some((key, value))) => {
                let (line, bytes) = (KvOp::Put { key, value }, lines.bytes() - start);
                if filling.push(line, bytes, lines.bytes(), size) {
                    sender.send(Read::Batch(filling.take())).ok()?;
                }
            }
            Ok(None) => break Read::End,
            Err(error) => break Read::Failed(error),
        }
    };
    sender.send(Read::Batch(filling.take())).ok()?;
    Some(last)
}

/// A line that the store takes: what it would refuse is better told with its place.
fn read_record(line: &[u8]) -> Result<(Bytes, Bytes), Misread> {
    read_line_up_to(line, KvStateMachine::KEY_BYTES_MAX, KvStateMachine::VALUE_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::args::KvCommand as Asked;
    use super::*;
    use crate::args::{Cli, Command};

    fn args(dir: &Path) -> LoadArgs {
        let line = ["ringwal", "kv", "load", "-", "--segment-size", "1MiB", "--dir", dir.to_str().unwrap()];
        let Command::Kv(kv) = Cli::try_parse_from(line).unwrap().command else { panic!() };
        let Asked::Load(args) = kv.command else { panic!() };
        args
    }

    fn lot(key: &'static str) -> Lot {
        let put = KvOp::Put { key: key.into(), value: "".into() };
        Lot { operations: vec![put], bytes: 10, until_byte: 100 }
    }

    #[test]
    fn a_reading_thread_that_dies_is_no_end_of_the_file() {
        let scratch = tempfile::tempdir().unwrap();
        let args = args(scratch.path());
        let store = store::open_or_make(&args.to, DriverConfig::default()).unwrap();
        let mut load = Load::new(&store, &args);
        let (sender, lots) = sync_channel(READ_AHEAD);
        sender.send(Read::Batch(lot("k"))).unwrap();
        drop(sender);
        let error = load.propose_all(&lots, &Filling::default()).unwrap_err().to_string();
        assert!(error.contains("panicked"), "{error}");
        load.settle_down_to(0).unwrap();
        assert_eq!((load.durable_lines, load.loaded_bytes), (1, 10));
    }

    #[test]
    fn a_half_full_batch_does_not_overtake_the_one_before_it() {
        let (sender, lots) = sync_channel(READ_AHEAD);
        let filling = Filling::default();
        let size = LotSize { lines: 2, bytes: 1 << 20 };
        let text: Box<dyn BufRead + Send> = Box::new(&b"a\t1\nb\t2\nc\t3\n"[..]);
        let mut lines = Lines::new(text, 100);
        assert!(matches!(read_lots(&mut lines, &size, &filling, &sender), Some(Read::End)));
        *filling.lock() = lot("d");
        let keys = |read: Read| match read {
            Read::Batch(lot) => (lot.operations.len(), lot.bytes, lot.until_byte),
            _ => panic!("no batch"),
        };
        let taken = [(); 3].map(|()| keys(next(&lots, &filling).unwrap()));
        assert_eq!(taken, [(2, 8, 8), (1, 4, 12), (1, 10, 100)]);
        assert_eq!(keys(next(&lots, &filling).unwrap()), (0, 0, 0));
        drop(sender);
        assert!(next(&lots, &filling).is_err());
    }
}
