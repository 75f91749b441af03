//! The real process, killed: 20 rounds on one directory, each acknowledgement that the child printed is there after.
//!
//! The child's batches follow a script that the parent can follow too: batch `n` depends only on the round's seed and
//! the batches before it, and writes `n` to the hard state. Producers take the next batch and submit it in one step, so
//! the log's order is the script's. After the kill the hard state tells the parent up to where the log goes (all or
//! nothing: never between two batches), and the model says what must then be in it, byte for byte.

#[path = "look/mod.rs"]
mod look;

use std::collections::BTreeMap;
use std::env;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use look::Look;
use ringwal::sim::Rng;
use ringwal::{Batch, Config, Error, IoChoice, Log, LogEntry, RecoveryReport};

const ROUNDS: u64 = 20;
const PRODUCERS: usize = 3;
const SEGMENT: u64 = 24 * 4096;

fn config(round: u64) -> Config {
    let io = if round.is_multiple_of(2) { IoChoice::Auto } else { IoChoice::Syscall };
    let small = Config::default().segment_bytes(SEGMENT).frame_bytes_max(16 << 10).queue_bytes_max(128 << 10);
    small.io(io).tail_cache_bytes(0).idle_mark_after(Duration::from_millis(5)).lock_wait(Duration::from_secs(60))
}

/// One step of a batch.
#[derive(Debug)]
enum Step {
    Entry { index: u64, term: u64, bytes: usize },
    Truncate { from: u64 },
    Compact { index: u64, term: u64 },
    Vote(u64),
}

/// As much of the log as the script needs to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    first: u64,
    next: u64,
    term: u64,
    op: u64,
}

impl Shape {
    fn of(look: &Look) -> Shape {
        let (next, term) = look.last.or(look.compacted).map_or((1, 1), |(index, term)| (index + 1, term));
        let op = look.meta.iter().find(|(key, _)| *key == b"op"[..]);
        let op = op.map_or(0, |(_, value)| u64::from_le_bytes(value[..].try_into().unwrap()));
        Shape { first: look.first.min(next), next, term, op }
    }
}

/// What the producers of one round write.
struct Script {
    rng: Rng,
    shape: Shape,
}

impl Script {
    fn new(seed: u64, round: u64, shape: Shape) -> Script {
        Script { rng: Rng::new(seed ^ (round << 32)), shape }
    }

    fn below(&mut self, bound: usize) -> u64 {
        self.rng.below(bound) as u64
    }

    /// The next batch's steps; its number is then `shape.op`.
    fn next(&mut self) -> Vec<Step> {
        self.shape.op += 1;
        let mut steps = Vec::new();
        let Shape { first, next, .. } = self.shape;
        match self.rng.below(16) {
            0 if next > first + 3 => steps.push(Step::Truncate { from: next - 1 - self.below(3) }),
            // Enough stays that nothing is ever truncated below it.
            1 if next > first + 120 => steps.push(Step::Compact { index: next - 60, term: 0 }),
            2 if self.rng.one_in(8) => {
                let term = self.shape.term;
                steps.push(Step::Compact { index: next + 4, term });
            }
            3 => steps.push(Step::Vote(self.below(1000))),
            4 => self.shape.term += 1,
            _ => {}
        }
        match steps.first() {
            Some(Step::Truncate { from }) => self.shape.next = *from,
            Some(Step::Compact { index, .. }) => {
                (self.shape.first, self.shape.next) = (index + 1, next.max(index + 1));
            }
            _ => {}
        }
        for _ in 0..self.rng.below(5) {
            let bytes = if self.rng.one_in(10) { 9000 } else { self.rng.below(800) };
            steps.push(Step::Entry { index: self.shape.next, term: self.shape.term, bytes });
            self.shape.next += 1;
        }
        steps
    }
}

/// The payload of an entry.
fn payload(op: u64, index: u64, bytes: usize) -> Vec<u8> {
    let mut rng = Rng::new(op << 20 ^ index);
    let mut payload = Vec::with_capacity(bytes + 8);
    while payload.len() < bytes {
        payload.extend_from_slice(&rng.next_u64().to_le_bytes());
    }
    payload.truncate(bytes);
    payload
}

fn batch(op: u64, steps: &[Step]) -> Batch {
    let batch = steps.iter().fold(Batch::new(), |batch, step| match *step {
        Step::Entry { index, term, bytes } => {
            batch.push_entry(LogEntry { timestamp: op, ..LogEntry::new(term, index, payload(op, index, bytes)) })
        }
        Step::Truncate { from } => batch.truncate_from(from),
        // A term that the log knows itself is not given.
        Step::Compact { index, term: 0 } => batch.compact(index),
        Step::Compact { index, term } => batch.compact_to(index, term),
        Step::Vote(vote) => batch.put_meta(b"vote", &vote.to_le_bytes()),
    });
    batch.put_meta(b"op", &op.to_le_bytes())
}

/// What must be in the log.
#[derive(Default)]
struct Model {
    entries: BTreeMap<u64, (u64, u64, usize)>,
    compacted: Option<(u64, u64)>,
    vote: Option<u64>,
    op: u64,
}

impl Model {
    fn apply(&mut self, op: u64, steps: &[Step]) {
        for step in steps {
            match *step {
                Step::Entry { index, term, bytes } => {
                    self.entries.insert(index, (term, op, bytes));
                }
                Step::Truncate { from } => drop(self.entries.split_off(&from)),
                Step::Compact { index, term } => {
                    let term = self.entries.get(&index).map_or(term, |&(term, ..)| term);
                    self.entries = self.entries.split_off(&(index + 1));
                    self.compacted = Some((index, term));
                }
                Step::Vote(vote) => self.vote = Some(vote),
            }
        }
        self.op = op;
    }

    fn look(&self) -> Look {
        let mut meta = Vec::new();
        if self.op > 0 {
            meta.push((b"op".to_vec().into(), self.op.to_le_bytes().to_vec().into()));
        }
        if let Some(vote) = self.vote {
            meta.push((b"vote".to_vec().into(), vote.to_le_bytes().to_vec().into()));
        }
        let entry = |(&index, &(term, op, bytes)): (&u64, &(u64, u64, usize))| LogEntry {
            timestamp: op,
            ..LogEntry::new(term, index, payload(op, index, bytes))
        };
        let entries: Vec<LogEntry> = self.entries.iter().map(entry).collect();
        let last = entries.last().map(|last| (last.index, last.term));
        let empty_at = self.compacted.map_or(1, |(index, _)| index + 1);
        let first = entries.first().map_or(empty_at, |first| first.index);
        Look { first, last, compacted: self.compacted, meta, entries }
    }
}

/// The child: not a test of its own, but the process that the test below kills.
#[test]
#[ignore = "the process that is killed by the other test"]
fn the_process_that_is_killed() {
    let Ok(arguments) = env::var("RINGWAL_KILL9") else { return println!("nobody asked for it") };
    let mut arguments = arguments.splitn(3, ' ');
    let mut number = || arguments.next().unwrap().parse::<u64>().unwrap();
    let (seed, round) = (number(), number());
    let (log, _) = Log::open(arguments.next().unwrap(), config(round)).unwrap();
    let shape = Shape::of(&Look::without_entries(&log));
    say(&format!("\nstart {}\n", shape.op));
    let script = Mutex::new(Script::new(seed, round, shape));
    thread::scope(|scope| {
        for _ in 0..PRODUCERS {
            scope.spawn(|| {
                loop {
                    let mut script = script.lock().unwrap();
                    let steps = script.next();
                    let op = script.shape.op;
                    let done = move |result: Result<(), Error>| {
                        result.unwrap();
                        say(&format!("ack {op}\n"));
                    };
                    log.submit_with(batch(op, &steps), done).unwrap();
                }
            });
        }
    });
}

/// One line by one system call: whole in the pipe, or not there.
fn say(line: &str) {
    let written = rustix::io::write(std::io::stdout(), line.as_bytes()).unwrap();
    assert_eq!(written, line.len());
}

/// A child, and what it said.
struct Running {
    child: Child,
    acks: Arc<AtomicU64>,
    listener: JoinHandle<Said>,
}

#[derive(Debug, Default)]
struct Said {
    start: Option<u64>,
    acked: Option<u64>,
}

impl Running {
    fn start(directory: &Path, seed: u64, round: u64) -> Running {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "the_process_that_is_killed", "--ignored", "--nocapture"]);
        command.env("RINGWAL_KILL9", format!("{seed} {round} {}", directory.display()));
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let acks = Arc::new(AtomicU64::new(0));
        let counter = acks.clone();
        let listener = thread::spawn(move || {
            let mut said = Said::default();
            for line in output.lines().map_while(Result::ok) {
                if let Some(op) = line.strip_prefix("start ") {
                    said.start = Some(op.parse().unwrap());
                } else if let Some(op) = line.strip_prefix("ack ") {
                    let op: u64 = op.parse().unwrap();
                    let before = said.acked.or(said.start);
                    assert_eq!(Some(op - 1), before, "acknowledgements leave in the log's order, each once");
                    said.acked = Some(op);
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            }
            said
        });
        Running { child, acks, listener }
    }

    /// Kills it at a moment decided by chance: so many acknowledgements and then so long from now.
    fn kill(mut self, rng: &mut Rng) -> (Child, JoinHandle<Said>) {
        let acks = if rng.one_in(4) { 0 } else { rng.below(600) as u64 };
        while self.acks.load(Ordering::Relaxed) < acks {
            assert!(self.child.try_wait().unwrap().is_none(), "the child ended by itself");
            thread::sleep(Duration::from_micros(200));
        }
        thread::sleep(Duration::from_micros(rng.below(if acks == 0 { 60_000 } else { 3_000 }) as u64));
        self.child.kill().unwrap();
        (self.child, self.listener)
    }
}

/// The parent's side: script and model go along with what the log is found to hold.
struct Follower {
    seed: u64,
    script: Script,
    model: Model,
}

impl Follower {
    fn advance(&mut self, to: u64) {
        assert!(
            self.script.shape.op <= to,
            "batch {} was there already, and now the last is {to}",
            self.script.shape.op
        );
        while self.script.shape.op < to {
            let steps = self.script.next();
            self.model.apply(self.script.shape.op, &steps);
        }
    }

    /// Follows the log through a round, and checks all that is in it.
    fn check(&mut self, round: u64, said: &Said, log: &Log) {
        if let Some(start) = said.start {
            self.advance(start);
            self.script = Script::new(self.seed, round, Shape::of(&self.model.look()));
        }
        let found = Shape::of(&Look::without_entries(log));
        if let Some(acked) = said.acked {
            assert!(found.op >= acked, "batch {acked} was acknowledged, and the log ends after {}", found.op);
        }
        self.advance(found.op);
        let (look, expected) = (Look::take(log).unwrap(), self.model.look());
        assert_eq!((look.first, look.last, look.compacted), (expected.first, expected.last, expected.compacted));
        assert_eq!(look.meta, expected.meta);
        assert_eq!(look.entries.len(), expected.entries.len());
        for (found, expected) in look.entries.iter().zip(&expected.entries) {
            assert!(found == expected, "index {}: {found:?} instead of {expected:?}", expected.index);
        }
    }
}

fn seed() -> u64 {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64 % 1_000_000;
    env::var("RINGWAL_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(now)
}

#[test]
fn every_printed_acknowledgement_survives_a_kill() {
    let seed = seed();
    println!("seed {seed} (RINGWAL_SEED={seed} repeats the choices, not the moments)");
    let directory = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(seed);
    let start = Shape { first: 1, next: 1, term: 1, op: 0 };
    let mut follower = Follower { seed, script: Script::new(seed, 0, start), model: Model::default() };
    let (mut acked, mut cut, mut highest_segment) = (0, 0, 0);
    for round in 0..ROUNDS {
        let (mut child, listener) = Running::start(directory.path(), seed, round).kill(&mut rng);
        // At once, beside the dying process: its locks are waited for. Each third round is only looked at, so that the
        // next child finds the directory as the kill left it.
        let only_look = round % 3 == 2 && directory.path().join("00000000000000000001.seg").exists();
        if only_look {
            child.wait().unwrap();
        }
        let (log, report) = open(directory.path(), round, only_look);
        let said = listener.join().unwrap();
        child.wait().unwrap();
        follower.check(round, &said, &log);
        acked += said.acked.map_or(0, |acked| acked - said.start.unwrap_or(0));
        cut += report.bytes_cut;
        highest_segment = log.segments().last().map_or(0, |segment| segment.sequence);
        println!("round {round}: {said:?}, {} kept, {}", report.entries_kept, log.io_mode());
        log.close().unwrap();
    }
    println!("{acked} batches acknowledged, {cut} bytes cut, {highest_segment} segments");
    assert!(acked > 500 && highest_segment > 20, "too little happened to prove anything");
}

fn open(directory: &Path, round: u64, only_look: bool) -> (Log, RecoveryReport) {
    if only_look { Log::open_read_only(directory) } else { Log::open(directory, config(round)) }.unwrap()
}
