//! A store to look at: what the newest snapshot and the log after it say, beside a writer or without one.
//!
//! Takes no lock and writes nothing. The log is looked at first and the snapshots afterwards, so that the newest
//! snapshot is never older than what that log begins with: a writer may compact meanwhile, and takes older snapshots
//! away only after newer ones are there. Where it takes away what was being read, everything is looked at anew.
//!
//! What is seen is everything that was acknowledged before the look.

use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use ringwal::machine::{KvError, KvStateMachine, StateError};
use ringwal::{DriverError, Error, FileSnapshots, Log, SnapshotError, SnapshotId, SnapshotReader, StateMachine};

use super::args::StoreArgs;
use crate::failure::{self, Missing, from_driver};
use crate::progress::Progress;

/// How often a writer may take away what is being read before that is an error.
const TRIES: u32 = 20;

/// Commands that are applied at a time, and bytes of them after which no more are taken: a command may be large.
const CHUNK_COMMANDS: usize = 64;
const CHUNK_BYTES: usize = 1 << 20;

/// The state of the store in a directory.
pub(crate) fn open(args: &StoreArgs) -> Result<KvStateMachine> {
    check_directory(&args.dir)?;
    for _ in 1..TRIES {
        match look(args) {
            Err(error) if is_overtaken(&error) => std::thread::sleep(Duration::from_millis(20)),
            outcome => return outcome,
        }
    }
    look(args)
}

/// An error where there is no directory at all.
pub(crate) fn check_directory(dir: &Path) -> Result<()> {
    match dir.metadata() {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(anyhow!("{} is not a directory: give the directory of a store", dir.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Missing(format!("there is no store in {}: no such directory", dir.display())).into())
        }
        Err(error) => Err(error).with_context(|| format!("cannot look into {}", dir.display())),
    }
}

/// Whether a live writer took away what was being read.
fn is_overtaken(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(Error::Compacted { .. }))
            || matches!(cause.downcast_ref(), Some(SnapshotError::NotFound { .. }))
    })
}

fn look(args: &StoreArgs) -> Result<KvStateMachine> {
    if args.dir.read_dir()?.next().is_none() {
        return Err(Missing(format!("there is no store in {}: it is empty", args.dir.display())).into());
    }
    let (log, _) = Log::open_read_only(&args.dir)?;
    let snapshots = FileSnapshots::open_read_only(&args.dir)?.of_machine(KvStateMachine::KIND);
    let (mut machine, index) = restore(&log, &snapshots, args)?;
    replay(&log, &mut machine, index)?;
    Ok(machine)
}

/// The state of the newest snapshot; where that is damaged, and it was asked for, of one before it that will do.
fn restore(log: &Log, snapshots: &FileSnapshots, args: &StoreArgs) -> Result<(KvStateMachine, u64)> {
    let reach = log.state().compacted.map_or(0, |(index, _)| index);
    let mut ids = snapshots.ids()?;
    ids.retain(|id| id.index >= reach);
    let Some(newest) = ids.pop() else { return Err(without_snapshot(log, args)) };
    let damage = match restore_one(log, snapshots, newest) {
        Err(error) if is_damage(&error) => error,
        outcome => return outcome,
    };
    if !args.fall_back {
        return Err(damaged(args, newest, ids.pop(), damage));
    }
    eprintln!("falling back: {damage:#}");
    let older = ids.into_iter().rev().map(|id| restore_one(log, snapshots, id));
    older.into_iter().find(|outcome| !matches!(outcome, Err(error) if is_damage(error))).unwrap_or(Err(damage))
}

fn without_snapshot(log: &Log, args: &StoreArgs) -> anyhow::Error {
    let path = args.dir.clone();
    match log.get_meta(b"machine") {
        Some(_) => from_driver::<KvError>(DriverError::NoSnapshot { path }),
        None => from_driver::<KvError>(DriverError::NoMachine { path }),
    }
}

/// What is said of a newest snapshot that is damaged: as the driver says it.
fn damaged(
    args: &StoreArgs,
    newest: SnapshotId,
    reachable: Option<SnapshotId>,
    damage: anyhow::Error,
) -> anyhow::Error {
    let file = args.dir.join(format!("{newest}.zst"));
    from_driver::<KvError>(DriverError::Damaged { file, reachable, source: damage.into() })
}

/// Whether the bytes of a snapshot are not what they were, or cannot be read.
fn is_damage(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| match cause.downcast_ref() {
        Some(SnapshotError::Corrupt { .. } | SnapshotError::Misnamed { .. }) => true,
        Some(SnapshotError::Io { source, .. }) => source.raw_os_error() == Some(libc::EIO),
        _ => false,
    })
}

fn restore_one(log: &Log, snapshots: &FileSnapshots, id: SnapshotId) -> Result<(KvStateMachine, u64)> {
    check_history(log, id)?;
    let reader = snapshots.open_snapshot(&id.to_string())?;
    Ok((restored(reader)?, id.index))
}

/// Checks that the log has the same term at a snapshot's index, where it still knows that: else what follows there is
/// not what followed this state. As the driver does.
fn check_history(log: &Log, id: SnapshotId) -> Result<()> {
    let state = log.state();
    let is_known = state.compacted.is_some_and(|(compacted, _)| compacted == id.index)
        || state.last.is_some_and(|(last, _)| (state.first..=last).contains(&id.index));
    if !is_known {
        return Ok(());
    }
    match log.term(id.index)? {
        expected if expected == id.term => Ok(()),
        expected => {
            Err(from_driver::<KvError>(DriverError::OtherHistory { index: id.index, found: id.term, expected }))
        }
    }
}

/// The machine of a snapshot.
pub(crate) fn restored(reader: SnapshotReader) -> Result<KvStateMachine> {
    let mut machine = KvStateMachine::new();
    let total = reader.totals().raw_bytes;
    let mut source = Shown { reader, bar: Progress::bar("restoring", total), done: 0 };
    pollster::block_on(machine.restore(&mut source)).map_err(unwrapped)?;
    Ok(machine)
}

/// The snapshot's own error, where the machine only passed it on.
fn unwrapped(error: KvError) -> anyhow::Error {
    match error {
        KvError::State(StateError::Io(error)) => failure::unwrapped(error),
        error => error.into(),
    }
}

/// A snapshot that is read with a bar.
struct Shown {
    reader: SnapshotReader,
    bar: Progress,
    done: u64,
}

impl Read for Shown {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.done += count as u64;
        self.bar.at(self.done, String::new);
        Ok(count)
    }
}

/// Applies what the log has after `index`.
fn replay(log: &Log, machine: &mut KvStateMachine, index: u64) -> Result<()> {
    let last = log.state().last.map_or(index, |(last, _)| last);
    let mut bar = Progress::bar("replaying", last.saturating_sub(index));
    let mut entries = log.iter(index + 1..);
    let (mut commands, mut bytes) = (Vec::with_capacity(CHUNK_COMMANDS), 0);
    while let Some(entry) = entries.next_ref().transpose()? {
        let at = entry.index;
        bytes += entry.command.len();
        let command = KvStateMachine::decode(&Bytes::copy_from_slice(entry.command));
        commands.push(command.map_err(|source| from_driver(DriverError::Undecodable { index: at, source }))?);
        if commands.len() == CHUNK_COMMANDS || bytes >= CHUNK_BYTES || at == last {
            // A refusal was one when it was proposed.
            let _ = pollster::block_on(machine.apply_batch(std::mem::take(&mut commands)));
            bytes = 0;
            bar.at(at - index, String::new);
        }
    }
    let _ = pollster::block_on(machine.apply_batch(commands));
    Ok(())
}
