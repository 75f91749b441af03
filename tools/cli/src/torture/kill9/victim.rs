//! The process that is killed: this very program with a command that its help does not show.
//!
//! It opens the log, writes the round's script to it from several threads while another one reads, and tells every
//! acknowledgement in eight bytes that one system call puts into a pipe: a kill leaves them whole or not there.
//!
//!   0            7      8
//!   | batch (56) | kind |   little-endian

use std::collections::VecDeque;
use std::fs;
use std::process;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::args::VictimArgs;
use crate::engine::{Config, Durability, Error, IoChoice, Log, Rng, Verify, Wait};
use crate::torture::Broken;
use crate::torture::kill9::model::shape_of;
use crate::torture::kill9::script::{Script, batch, is_whole};

pub(crate) const COMMAND: &str = "torture-victim";

/// Bytes of one message.
pub(crate) const TOLD_BYTES: usize = 8;
const BATCH_BITS: u32 = 56;
/// 48 blocks of 4096, or the least of 8192: small, so that rolling, sealing, dropping and recycling never rest.
const SEGMENT_BYTES: u64 = 48 * 4096;
/// Submissions outstanding of a producer that does not wait for each.
const WINDOW: usize = 16;

/// What the process tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// The log is open and ends with this batch.
    Start(u64),
    /// A thread that waited for this batch has its acknowledgement.
    Waited(u64),
    /// The callback of this batch was called; these come in the log's order.
    Called(u64),
}

impl Told {
    fn encode(self) -> [u8; TOLD_BYTES] {
        let (kind, batch) = match self {
            Told::Start(batch) => (1, batch),
            Told::Waited(batch) => (2, batch),
            Told::Called(batch) => (3, batch),
        };
        (kind << BATCH_BITS | batch).to_le_bytes()
    }

    /// `None` for what was never told.
    pub(crate) fn decode(bytes: [u8; TOLD_BYTES]) -> Option<Told> {
        let number = u64::from_le_bytes(bytes);
        let batch = number & ((1 << BATCH_BITS) - 1);
        match number >> BATCH_BITS {
            1 => Some(Told::Start(batch)),
            2 => Some(Told::Waited(batch)),
            3 => Some(Told::Called(batch)),
            _ => None,
        }
    }

    fn tell(self) -> Result<()> {
        let written = rustix::io::write(std::io::stdout(), &self.encode())?;
        ensure!(written == TOLD_BYTES, "nobody listens");
        Ok(())
    }
}

/// The log's settings in a round: every durability with both drivers, and by chance what else makes a difference.
pub(crate) fn config(seed: u64, round: u32) -> Config {
    let mut rng = Rng::new(seed ^ u64::from(round));
    let mut one_of = |choices: &[u64]| choices[rng.below(choices.len())];
    let durability = match round / 2 % 3 {
        0 => Durability::Sync,
        1 => Durability::Interval(Duration::from_millis(one_of(&[1, 5, 50]))),
        _ => Durability::None,
    };
    let linger = Duration::from_micros(one_of(&[0, 0, 0, 200]));
    let may_write_in_place = durability == Durability::Sync && linger.is_zero();
    Config::default()
        .segment_bytes(SEGMENT_BYTES)
        .write_in_place(may_write_in_place && one_of(&[0, 1]) == 1)
        .io(if round.is_multiple_of(2) { IoChoice::Auto } else { IoChoice::Syscall })
        .durability(durability)
        .block_bytes([None, Some(8192)][one_of(&[0, 0, 0, 1]) as usize])
        .frames_in_flight(one_of(&[1, 2, 4, 8]) as usize)
        .frame_bytes_max(one_of(&[8 << 10, 16 << 10, 64 << 10]))
        .queue_bytes_max(one_of(&[64 << 10, 256 << 10]))
        .tail_cache_bytes(one_of(&[0, 64 << 10]))
        .spare_segments(one_of(&[1, 1, 2]) as usize)
        .linger(linger)
        .wait([Wait::Park, Wait::Spin(Duration::from_micros(20))][one_of(&[0, 0, 1]) as usize])
        .idle_mark_after(Duration::from_millis(one_of(&[1, 5, 1000])))
        .lock_wait(Duration::from_secs(60))
        .verify(if round % 10 == 9 { Verify::Full } else { Verify::Tail })
}

/// Writes until it is killed, or something goes wrong: then the process ends, in the way of all commands.
pub(crate) fn run(args: &VictimArgs) -> Result<()> {
    if let Some(group) = &args.cgroup {
        // Zero stands for whoever writes it.
        let joined = fs::write(group.join("cgroup.procs"), "0");
        joined.with_context(|| format!("cannot join the control group {}", group.display()))?;
    }
    let (log, _) = Log::open(&args.dir, config(args.seed, args.round)).map_err(blame)?;
    let shape = shape_of(&log)?;
    Told::Start(shape.batch).tell()?;
    let script = Arc::new(Mutex::new(Script::new(args.seed, args.round, shape)));
    let (ended, wait) = std::sync::mpsc::channel();
    for nth in 0..args.producers {
        let (log, script, ended, seed) = (log.clone(), script.clone(), ended.clone(), args.seed);
        thread::spawn(move || drop(ended.send(produce(&log, &script, seed, nth))));
    }
    let seed = args.seed;
    thread::spawn(move || drop(ended.send(read(&log, seed))));
    // All of them go on for ever: the first to end has something to say.
    wait.recv()?
}

/// What the machine cannot do is no broken promise; whatever else is refused or found is one.
pub(crate) fn blame(error: Error) -> anyhow::Error {
    let is_the_machine_s = match &error {
        Error::Poisoned(cause) => matches!(**cause, Error::Io { .. } | Error::NoSpace | Error::DirectoryGone { .. }),
        other => matches!(other, Error::Io { .. } | Error::NoSpace | Error::DirectoryGone { .. } | Error::Config(_)),
    };
    if is_the_machine_s { error.into() } else { Broken(error.to_string()).into() }
}

/// A third of the producers each: learn of acknowledgements by callback, wait for each, keep some outstanding.
fn produce(log: &Log, script: &Mutex<Script>, seed: u64, nth: u32) -> Result<()> {
    let window = [0, 1, WINDOW][nth as usize % 3];
    let mut outstanding = VecDeque::with_capacity(window);
    loop {
        {
            let mut script = script.lock().unwrap_or_else(PoisonError::into_inner);
            let steps = script.next();
            let number = script.batch();
            let batch = batch(seed, number, &steps);
            if window == 0 {
                log.submit_with(batch, move |result| called(number, result)).map_err(blame)?;
            } else {
                outstanding.push_back((number, log.submit(batch).map_err(blame)?));
            }
        }
        while window > 0 && outstanding.len() >= window {
            let Some((number, pending)) = outstanding.pop_front() else { break };
            pending.wait().map_err(blame)?;
            Told::Waited(number).tell()?;
        }
    }
}

/// On the log's own thread, which has nobody to tell of an error.
fn called(number: u64, result: Result<(), Error>) {
    if let Err(error) = result.map_err(blame).and_then(|()| Told::Called(number).tell()) {
        eprintln!("ringwal: {error:#}");
        process::exit(if error.is::<Broken>() { 3 } else { 1 });
    }
}

/// Reads whatever is there, beside rolls, truncations and compactions.
fn read(log: &Log, seed: u64) -> Result<()> {
    let mut rng = Rng::new(seed);
    loop {
        for entry in log.iter(..) {
            match entry {
                Ok(entry) if is_whole(seed, &entry) => {}
                Ok(entry) => return Err(Broken(format!("read an entry that nobody appended: {entry:?}")).into()),
                // Gone since.
                Err(Error::Compacted { .. } | Error::NotWritten { .. }) => break,
                Err(error) => return Err(blame(error)),
            }
        }
        thread::sleep(Duration::from_micros(rng.next_u64() % 2000));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_understood_and_nothing_else() {
        for told in [Told::Start(0), Told::Waited(1), Told::Called((1 << BATCH_BITS) - 1)] {
            assert_eq!(Told::decode(told.encode()), Some(told));
        }
        assert_eq!(Told::decode([0; 8]), None);
        assert_eq!(Told::decode([9; 8]), None);
    }

    #[test]
    fn rounds_meet_every_durability_with_both_drivers_and_are_valid() {
        let (mut met, mut in_place) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
        for round in 0..60 {
            let config = config(3, round);
            config.validate().unwrap();
            let text = format!("{config:?}");
            let of = |name: &str| text.split(&format!(" {name}: ")).nth(1).unwrap()[..4].to_owned();
            met.insert((of("durability"), of("io")));
            in_place.insert(of("write_in_place"));
        }
        assert_eq!((met.len(), in_place.len()), (6, 2), "{met:?}, {in_place:?}");
    }
}
