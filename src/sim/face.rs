//! The log without threads as a user of [`Log`](crate::Log) knows it: the same calls with the same meaning, each of which
//! carries itself through to its acknowledgement, and two more for what happens between acceptance and acknowledgement.
//!
//! Whatever threads would do meanwhile is done in the call: frames are written, operations complete (by chance, where
//! the disk leaves it to chance), segments are sealed, dropped and made. So every change of the disk, and with it every
//! moment at which a crash matters, lies inside some call.

use std::ops::{Range, RangeBounds};
use std::time::Duration;

use bytes::Bytes;

use super::disk::SimDisk;
use super::local::LocalLog;
use super::rng::Rng;
use crate::config::Config;
use crate::disk::PollWait;
use crate::engine::sequencer::Accepted;
use crate::entry::LogEntry;
use crate::error::{Error, Result};
use crate::log::tail::entry_of;
use crate::log::view::View;
use crate::{Batch, LogState};

/// A batch that was accepted: what [`LocalLog::is_acked`] asks about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    indexes: Range<u64>,
    /// The frame it joined.
    pub(super) number: u64,
    /// How many operations it has.
    pub(super) operation_count: usize,
}

impl Receipt {
    pub(super) fn of(accepted: Accepted) -> Receipt {
        let Accepted { indexes, number, operation_count, .. } = accepted;
        Receipt { indexes, number, operation_count }
    }

    /// Indexes of the batch's entries; empty, at the next index, if it has none.
    pub fn indexes(&self) -> Range<u64> {
        self.indexes.clone()
    }
}

/// Opening a log on the disk.
impl SimDisk {
    /// Opens the log on this disk, running recovery, or makes one; all of it in the caller's thread. What is left to
    /// chance follows from the disk's seed and how much happened on it: a crash makes disks with other seeds.
    ///
    /// ```
    /// use ringwal::{Batch, Config};
    /// use ringwal::sim::SimDisk;
    ///
    /// let disk = SimDisk::new(1);
    /// let mut log = disk.open_log(Config::default().segment_bytes(1 << 20))?;
    /// assert_eq!(log.append("one")?, 1); // durable when it returns
    /// let receipt = log.submit(Batch::new().push("two").put_meta(b"vote", b"7"))?;
    /// assert!(!log.is_acked(&receipt)); // accepted and readable, and nobody may be told
    /// assert_eq!(log.get(2)?.command, "two");
    ///
    /// // The power fails now: whatever it takes, the log comes back with what was acknowledged, and all of a batch or
    /// // nothing of it.
    /// for image in disk.crash_images() {
    ///     let log = image.open_log(Config::default().segment_bytes(1 << 20))?;
    ///     assert_eq!(log.get(1)?.command, "one");
    ///     assert_eq!(log.get_meta(b"vote").is_some(), log.get(2).is_ok());
    /// }
    /// # Ok::<(), ringwal::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`Log::open`](crate::Log::open).
    pub fn open_log(&self, config: Config) -> Result<LocalLog> {
        let seed = self.seed() ^ self.counters().total();
        LocalLog::open(self, config, Rng::new(seed).next_u64())
    }
}

/// Writing, as [`Log`](crate::Log) does.
impl LocalLog {
    /// Appends one entry and carries it to its acknowledgement; returns its index.
    ///
    /// # Errors
    ///
    /// Those of [`Log::append`](crate::Log::append).
    pub fn append(&mut self, command: impl Into<Bytes>) -> Result<u64> {
        self.write(Batch::new().push(command)).map(|indexes| indexes.start)
    }

    /// Appends entries that bring their index and term, all or none.
    ///
    /// # Errors
    ///
    /// Those of [`Log::append_entries`](crate::Log::append_entries).
    pub fn append_entries(&mut self, entries: Vec<LogEntry>) -> Result<Range<u64>> {
        self.write(entries.into_iter().fold(Batch::new(), Batch::push_entry))
    }

    /// Writes a batch and carries it to its acknowledgement; returns the indexes of its entries.
    ///
    /// # Errors
    ///
    /// Those of [`Log::write`](crate::Log::write).
    pub fn write(&mut self, batch: Batch) -> Result<Range<u64>> {
        let receipt = self.submit(batch)?;
        while !self.is_acked(&receipt) {
            self.advance()?;
        }
        self.tend()?;
        Ok(receipt.indexes)
    }

    /// Accepts a batch into the pending frame: it can be read, and nothing is written yet. Makes a spare segment first
    /// where there is no room without one.
    ///
    /// # Errors
    ///
    /// Those of [`Log::submit`](crate::Log::submit). Nothing was accepted then.
    pub fn submit(&mut self, batch: impl Into<Batch>) -> Result<Receipt> {
        self.accept(batch.into().requests).map(Receipt::of)
    }

    /// Whether a batch is acknowledged: durable with [`Durability::Sync`](crate::Durability::Sync), else written.
    pub fn is_acked(&self, receipt: &Receipt) -> bool {
        receipt.number <= self.progress().0
    }

    /// Lets some of what threads do happen: frames that may go are submitted, a sync begins where one is due, and some
    /// operations complete; where the disk is stepped by hand, all of them. No time passes: with
    /// [`Durability::Interval`](crate::Durability::Interval) as with `None`, syncs come with a new segment and with
    /// [`LocalLog::sync`].
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`] where a write or sync failed, now or before.
    pub fn advance(&mut self) -> Result<()> {
        self.pump()?;
        if self.sync_is_due() {
            self.begin_sync()?;
        }
        if self.poll(PollWait::AtMost(Duration::ZERO))? == 0 {
            self.sim.complete_all();
            self.poll(PollWait::No)?;
        }
        Ok(())
    }

    /// Makes everything accepted durable; returns the durable index.
    ///
    /// # Errors
    ///
    /// Those of [`Log::sync`](crate::Log::sync).
    pub fn sync(&mut self) -> Result<Option<u64>> {
        self.syncs = true;
        let last = self.last_frame();
        let synced = (|| {
            while self.progress().1 < last {
                self.advance()?;
            }
            self.tend()
        })();
        self.syncs = false;
        synced.map(|()| self.state().durable)
    }

    /// Removes the entry at an index and all after it.
    ///
    /// # Errors
    ///
    /// Those of [`Log::truncate_from`](crate::Log::truncate_from).
    pub fn truncate_from(&mut self, first_removed: u64) -> Result<()> {
        self.write(Batch::new().truncate_from(first_removed)).map(drop)
    }

    /// Drops all entries up to and including an index, which must be in the log.
    ///
    /// # Errors
    ///
    /// Those of [`Log::compact`](crate::Log::compact).
    pub fn compact(&mut self, upto: u64) -> Result<()> {
        self.write(Batch::new().compact(upto)).map(drop)
    }

    /// Drops all entries up to and including an index whose term is given; it may lie past the last entry.
    ///
    /// # Errors
    ///
    /// Those of [`Log::compact_to`](crate::Log::compact_to).
    pub fn compact_to(&mut self, index: u64, term: u64) -> Result<()> {
        self.write(Batch::new().compact_to(index, term)).map(drop)
    }

    /// Sets a key of the hard state.
    ///
    /// # Errors
    ///
    /// Those of [`Log::put_meta`](crate::Log::put_meta).
    pub fn put_meta(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.write(Batch::new().put_meta(key, value)).map(drop)
    }

    /// All the housekeeping that is due: what the log's helper thread does elsewhere. The writing calls do it themselves.
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`] where a spare could not be made, or after a failed write or sync. An index file that cannot be
    /// written is none, nor is a spare that finds no room before it is needed.
    pub fn tend(&mut self) -> Result<()> {
        // Where its file cannot be written, the index stays in memory.
        while self.seal_one().is_ok_and(|sealed| sealed) {}
        while self.drop_one()? {}
        loop {
            match self.prepare_spare() {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => match self.without_spare(error) {
                    Error::NoSpace => break,
                    poisoned => return Err(poisoned),
                },
            }
        }
        while self.remove_dropped()? {}
        Ok(())
    }
}

/// Reading, as [`Log`](crate::Log) does.
impl LocalLog {
    fn view(&self) -> View<'_> {
        View { sequencer: &self.sequencer, poison: self.poison.as_ref() }
    }

    /// One consistent look.
    pub fn state(&self) -> LogState {
        self.view().state()
    }

    /// The value of a key of the hard state, as accepted.
    pub fn get_meta(&self, key: &[u8]) -> Option<Bytes> {
        self.sequencer.outline().state.hard_state.get(key).cloned()
    }

    /// All of the hard state, as accepted, by key.
    pub fn meta(&self) -> Vec<(Bytes, Bytes)> {
        let pairs = self.sequencer.outline().state.hard_state.iter();
        pairs.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// Reads one entry, as accepted; after poisoning, as durable.
    ///
    /// # Errors
    ///
    /// Those of [`Log::get`](crate::Log::get).
    pub fn get(&self, index: u64) -> Result<LogEntry> {
        self.view().check_readable(index)?;
        self.unwritten(index).map_or_else(|| self.stored(index), Ok)
    }

    /// The entries of a range, as they are when each is asked for; an unbounded side ends where the log does now.
    pub fn iter(&self, range: impl RangeBounds<u64>) -> impl DoubleEndedIterator<Item = Result<LogEntry>> + '_ {
        self.view().indexes_of(range).map(|index| self.get(index))
    }

    /// An entry of a frame that is not written: the newest frame that has the index is the one that counts.
    fn unwritten(&self, index: u64) -> Option<LogEntry> {
        let written = self.progress().0;
        let growing = self.sequencer.pending().map(|frame| &frame.operations);
        let queued = self.sequencer.closed_after(written).map(|frame| &frame.operations);
        let entry = |operations| entry_of(operations, index);
        let in_queue = || queued.filter_map(|operations| entry(operations)).last();
        let in_flight = || self.in_flight.iter().rev().find_map(|(_, operations)| entry(operations));
        growing.and_then(|operations| entry(operations)).or_else(in_queue).or_else(in_flight)
    }

    fn stored(&self, index: u64) -> Result<LogEntry> {
        let segment = self.sequencer.ledger.ranges.locate(index).map(|segment| segment.sequence);
        let found = segment.and_then(|sequence| Some((sequence, self.handles.get(&sequence)?)));
        let Some((sequence, handle)) = found else { return Err(Error::NotWritten { next: self.view().visible().end }) };
        match self.sequencer.ledger.indexes.get(&sequence) {
            Some(offsets) => match offsets.offset_of(index) {
                Some(offset) => handle.read_entry(index, offset, offsets.offset_of(index + 1)),
                None => Err(Error::NotWritten { next: self.view().visible().end }),
            },
            None => handle.read_sealed(index),
        }
    }
}
