//! Commands read back from the log, in pieces of bounded size.

use std::marker::PhantomData;
use std::ops::Range;

use bytes::Bytes;

use super::error::DriverError;
use crate::log::{Entries, Log};
use crate::machine::StateMachine;

/// Commands in a chunk, and bytes at which it takes no more.
const CHUNK_COMMANDS: usize = 1024;
const CHUNK_BYTES: u64 = 1 << 20;

/// Consecutive commands.
pub(super) struct Chunk<M: StateMachine> {
    pub(super) indexes: Range<u64>,
    pub(super) commands: Vec<M::Command>,
    pub(super) bytes: u64,
}

/// The commands of a range of the log, chunk by chunk.
pub(super) struct Chunks<M> {
    entries: Entries,
    next: u64,
    end: u64,
    machine: PhantomData<fn() -> M>,
}

impl<M: StateMachine> Chunks<M> {
    pub(super) fn new(log: &Log, indexes: Range<u64>) -> Chunks<M> {
        Chunks { entries: log.iter(indexes.clone()), next: indexes.start, end: indexes.end, machine: PhantomData }
    }

    /// Empty at the end of the range, or of the log.
    fn read(&mut self) -> Result<Chunk<M>, DriverError<M::Error>> {
        let start = self.next;
        let (mut commands, mut bytes) = (Vec::new(), 0);
        while self.next < self.end && commands.len() < CHUNK_COMMANDS && bytes < CHUNK_BYTES {
            let Some(entry) = self.entries.next_ref().transpose()? else { break };
            bytes += entry.command.len() as u64;
            // A copy: machines may keep parts of it, which must not hold on to the large piece that was read.
            let command = M::decode(&Bytes::copy_from_slice(entry.command));
            commands.push(command.map_err(|source| DriverError::Undecodable { index: self.next, source })?);
            self.next += 1;
        }
        Ok(Chunk { indexes: start..self.next, commands, bytes })
    }
}

impl<M: StateMachine> Iterator for Chunks<M> {
    type Item = Result<Chunk<M>, DriverError<M::Error>>;

    fn next(&mut self) -> Option<Self::Item> {
        let chunk = self.read();
        if chunk.is_err() {
            self.end = self.next;
        }
        Some(chunk).filter(|chunk| chunk.as_ref().map_or(true, |chunk| !chunk.commands.is_empty()))
    }
}
