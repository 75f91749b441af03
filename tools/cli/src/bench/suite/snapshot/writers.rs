//! Threads that set random keys of a store, one durable write after the other, each its own keys.
//!
//! A value names its key and says how often that key was set before, so that after a reopen every key can be held
//! against the last write of it that was acknowledged. What a writer notes has its room from the beginning: it is not in
//! any growth of memory.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use hdrhistogram::Histogram;

use crate::bench::payload::next_random;
use crate::engine::KvStore;

/// Bytes of a key.
pub(super) const KEY_BYTES: usize = 16;

/// What goes on while a write is made. Of two, a write that saw both belongs to the later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Nothing that counts.
    Between = 0,
    /// Only the writers are at work.
    Without = 1,
    /// A snapshot is taken.
    With = 2,
}

/// The keys of a store: as many as there are, and which writer has which.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keys {
    pub(super) count: u64,
    pub(super) writers: u64,
    pub(super) value_bytes: usize,
}

impl Keys {
    /// The key of this number: eight bytes that look random, and the number.
    pub(super) fn key(&self, number: u64) -> [u8; KEY_BYTES] {
        let mut key = [0; KEY_BYTES];
        let mut state = number;
        key[..8].copy_from_slice(&next_random(&mut state).to_be_bytes());
        key[8..].copy_from_slice(&number.to_be_bytes());
        key
    }

    /// The number of a key, if it is one of these.
    fn number(&self, key: &[u8]) -> Option<u64> {
        let number = u64::from_be_bytes(*key.last_chunk()?);
        (number < self.count && key == self.key(number)).then_some(number)
    }

    /// What a key holds after it was set so often. Half of it looks random, the other half repeats.
    pub(super) fn value(&self, number: u64, times: u32, value: &mut Vec<u8>) {
        let mut state = number ^ (u64::from(times) << 40);
        value.clear();
        while value.len() < self.value_bytes {
            value.extend_from_slice(&next_random(&mut state).to_le_bytes());
            value.extend_from_slice(b"a filler");
        }
        value.truncate(self.value_bytes);
    }

    fn owned_by(&self, writer: u64) -> u64 {
        (self.count + self.writers - 1 - writer) / self.writers
    }
}

/// What all writers share.
#[derive(Debug)]
struct Shared {
    phase: AtomicU8,
    over: AtomicBool,
    sets: AtomicU64,
}

/// The running writers.
pub(super) struct Writers {
    shared: std::sync::Arc<Shared>,
    threads: Vec<JoinHandle<Result<Wrote>>>,
}

/// What a writer saw.
#[derive(Debug)]
pub(super) struct Wrote {
    /// Times of the writes, in nanoseconds: without a snapshot, and with one.
    pub(super) latencies_ns: [Histogram<u64>; 2],
    /// How often each of its keys was set, in the order of their numbers.
    times: Vec<u32>,
}

impl Writers {
    /// Starts them.
    pub(super) fn start(store: &KvStore, keys: Keys) -> Result<Writers> {
        let shared = Shared { phase: AtomicU8::new(0), over: AtomicBool::new(false), sets: AtomicU64::new(0) };
        let mut writers = Writers { shared: shared.into(), threads: Vec::new() };
        for number in 0..keys.writers {
            let histogram = || Histogram::new(3);
            // Set to something else than zero, so that the kernel gives the memory now.
            let mut times = vec![1; keys.owned_by(number) as usize];
            times.fill(0);
            let wrote = Wrote { latencies_ns: [histogram()?, histogram()?], times };
            let (store, shared) = (store.clone(), writers.shared.clone());
            let thread = std::thread::Builder::new().name(format!("writer-{number}"));
            let thread = thread.spawn(move || write(&store, &keys, number, &shared, wrote));
            writers.threads.push(thread.context("cannot start another writer")?);
        }
        Ok(writers)
    }

    /// From now on this goes on.
    pub(super) fn enter(&self, phase: Phase) {
        self.shared.phase.store(phase as u8, Ordering::SeqCst);
    }

    /// Writes that were acknowledged so far.
    pub(super) fn sets(&self) -> u64 {
        self.shared.sets.load(Ordering::Relaxed)
    }

    /// Ends them; what each saw.
    pub(super) fn finish(mut self) -> Result<Vec<Wrote>> {
        self.shared.over.store(true, Ordering::Relaxed);
        let ended = self.threads.drain(..).map(JoinHandle::join);
        ended.map(|wrote| wrote.map_err(|_| anyhow!("a writer panicked"))?.context("cannot write")).collect()
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn write(store: &KvStore, keys: &Keys, writer: u64, shared: &Shared, mut wrote: Wrote) -> Result<Wrote> {
    let (mut random, mut value) = (writer + 1, Vec::new());
    while !shared.over.load(Ordering::Relaxed) {
        let nth = next_random(&mut random) % wrote.times.len() as u64;
        let number = nth * keys.writers + writer;
        let times = wrote.times[nth as usize] + 1;
        keys.value(number, times, &mut value);
        let key = Bytes::copy_from_slice(&keys.key(number));
        let (before, start) = (shared.phase.load(Ordering::SeqCst), Instant::now());
        store.set(key, Bytes::copy_from_slice(&value))?;
        let (latency, after) = (start.elapsed(), shared.phase.load(Ordering::SeqCst));
        wrote.times[nth as usize] = times;
        shared.sets.fetch_add(1, Ordering::Relaxed);
        if let Some(phase) = before.max(after).checked_sub(Phase::Without as u8) {
            wrote.latencies_ns[usize::from(phase)].record(latency.as_nanos() as u64)?;
        }
    }
    Ok(wrote)
}

/// Checks that a store has every key with the last value that was acknowledged, and nothing else; how many keys.
pub(super) fn check<'a>(
    keys: Keys,
    wrote: &[Wrote],
    entries: impl Iterator<Item = (&'a [u8], &'a [u8])>,
) -> Result<u64> {
    let (mut count, mut value) = (0, Vec::new());
    for (key, found) in entries {
        let number = keys.number(key).with_context(|| format!("nobody wrote the key {key:02x?}"))?;
        let (writer, nth) = (number % keys.writers, number / keys.writers);
        let times = wrote.get(writer as usize).and_then(|wrote| wrote.times.get(nth as usize)).copied();
        keys.value(number, times.unwrap_or(0), &mut value);
        anyhow::ensure!(found == value, "key {number} was set {times:?} times, and its value is not the last one");
        count += 1;
    }
    anyhow::ensure!(count == keys.count, "{} keys were written and {count} are there", keys.count);
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Stored = Vec<(Vec<u8>, Vec<u8>)>;

    fn keys() -> Keys {
        Keys { count: 10, writers: 4, value_bytes: 100 }
    }

    fn wrote() -> Vec<Wrote> {
        let times = [vec![0, 2, 0], vec![0, 0, 7], vec![0, 0], vec![0, 0]];
        let histogram = || Histogram::new(3).unwrap();
        times.map(|times| Wrote { latencies_ns: [histogram(), histogram()], times }).into()
    }

    fn stored(change: impl Fn(u64) -> u32) -> Stored {
        let entry = |number| {
            let mut value = Vec::new();
            keys().value(number, change(number), &mut value);
            (keys().key(number).to_vec(), value)
        };
        (0..10).map(entry).collect()
    }

    #[test]
    fn every_key_has_one_owner() {
        assert_eq!((0..4).map(|writer| keys().owned_by(writer)).collect::<Vec<_>>(), [3, 3, 2, 2]);
    }

    #[test]
    fn a_lost_write_and_a_lost_key_are_noticed() {
        let times = |number| [(4, 2), (9, 7)].iter().find(|(key, _)| *key == number).map_or(0, |(_, times)| *times);
        let check = |entries: &[(Vec<u8>, Vec<u8>)]| {
            check(keys(), &wrote(), entries.iter().map(|(key, value)| (&key[..], &value[..])))
        };
        assert_eq!(check(&stored(times)).unwrap(), 10);
        let lost = stored(|number| if number == 9 { 6 } else { times(number) });
        assert!(check(&lost).unwrap_err().to_string().contains("not the last one"));
        assert!(check(&stored(times)[1..]).is_err());
    }
}
