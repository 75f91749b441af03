//! The helper thread: everything that is slow and must not delay an append.
//!
//! Drops segments, makes or recycles spares, writes index files, repeats marks in the lock file. What is to be done it
//! reads from the core; a message only says that there may be something.
//!
//! Order: drop before spare, so that a dropped segment can be recycled; spare before index files, because appends may
//! be waiting for it.

use std::cell::OnceCell;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::core::{Core, Shared, Shortage, ToHelper};
use super::stall::Busy;
use crate::config::Durability;
use crate::disk::AlignedBuf;
use crate::engine::pace::{self, Pace};
use crate::engine::stall::Stage;
use crate::error::{Error, Result};
use crate::format::names;
use crate::format::segment::SegmentHeader;
use crate::segment::recover;
use crate::segment::sealed::{self, SegmentHandle};
use crate::segment::spare;
use crate::sync::atomic::{Ordering, fence};
use crate::sync::channel::Receiver;
use crate::sync::thread;

/// What the helper's priority is lowered by, as `nice` counts it.
const NICENESS: i32 = 10;

/// How long the filling of a spare rests where it is ahead of the appends.
const REST: Duration = Duration::from_micros(250);

pub(crate) struct Helper {
    shared: Arc<Shared>,
    inbox: Receiver<ToHelper>,
    /// Made by the thread itself when it first fills a segment, so that no open waits for it.
    zeros: OnceCell<AlignedBuf>,
}

impl Helper {
    pub(crate) fn new(shared: Arc<Shared>, inbox: Receiver<ToHelper>) -> Helper {
        Helper { shared, inbox, zeros: OnceCell::new() }
    }

    /// Works until told to leave. What is due then is still done, except for spares.
    pub(crate) fn run(self) {
        be_nice();
        while let Ok(ToHelper::Wake) = self.inbox.recv() {
            self.work(true);
        }
        self.work(false);
    }

    fn work(&self, with_spares: bool) {
        loop {
            let dropped = self.drop_oldest();
            let recycled = dropped.as_ref().filter(|dropped| self.may_recycle(dropped)).map(|old| old.header.sequence);
            // What cannot be recycled goes first: a spare from nothing may need its room.
            if let Some(dropped) = &dropped {
                self.forget_index(dropped);
                if recycled.is_none() {
                    self.remove(dropped);
                }
            }
            let made = with_spares && self.make_spare(recycled);
            if let Some(dropped) = dropped.as_ref().filter(|_| recycled.is_some() && !made) {
                self.remove(dropped);
            }
            if dropped.is_none() && !made {
                break;
            }
        }
        while self.seal_one() {}
        self.write_slot();
    }

    /// Forgets the oldest segment if it may go; its files are then to be recycled or removed.
    fn drop_oldest(&self) -> Option<Arc<SegmentHandle>> {
        let mut core = self.shared.core();
        if core.poison.is_some() {
            return None;
        }
        let sequence = core.sequencer.droppable()?;
        core.sequencer.ledger.ranges.drop_oldest();
        core.shelf.clear();
        core.sequencer.ledger.indexes.remove(&sequence);
        core.to_seal.retain(|identity| identity.sequence != sequence);
        core.files.remove(&sequence);
        self.shared.count(&self.shared.meter.drops);
        core.handles.remove(&sequence)
    }

    /// A segment may be overwritten only when no reader holds it. It was taken from the core, so none can get hold of it
    /// any more, and the answer stays true once it is.
    fn may_recycle(&self, dropped: &Arc<SegmentHandle>) -> bool {
        let is_alone = Arc::strong_count(dropped) == 1;
        // Everything its last reader did is over: counting looks at the count and at nothing else.
        fence(Ordering::Acquire);
        is_alone && self.block_bytes().is_ok_and(|bytes| bytes == dropped.header.block_bytes)
    }

    fn forget_index(&self, dropped: &SegmentHandle) {
        let _busy = Busy::with(&self.shared, Stage::Removal, 0);
        // A missing index file is as good as a removed one.
        let _ = self.shared.disk.remove(&names::index(dropped.header.sequence));
    }

    fn remove(&self, dropped: &SegmentHandle) {
        let sequence = dropped.header.sequence;
        let _busy = Busy::with(&self.shared, Stage::Removal, 0);
        match spare::remove(&*self.shared.disk, sequence) {
            Ok(()) => tracing::debug!(sequence, "removed a dropped segment"),
            // A recycling that got half way took its name.
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%error, "a dropped segment stays behind; the next open removes it"),
        }
    }

    fn block_bytes(&self) -> Result<u32> {
        recover::block_bytes(&self.shared.config, &*self.shared.disk)
    }

    /// Makes the next spare if one is wanted, of the dropped segment that may be recycled or from nothing; says whether it did.
    fn make_spare(&self, recycled: Option<u64>) -> bool {
        let (sequence, segment_bytes) = {
            let mut core = self.shared.core();
            let extra = recycled.map_or(0, |_| spare::RECYCLED_EXTRA);
            let wanted = self.shared.config.spare_segments + core.sequencer.extra_spares() + extra;
            let enough = core.sequencer.spare_count() >= wanted;
            let next = core.sequencer.next_spare();
            let is_over = core.poison.is_some() || core.is_closed;
            let Some(sequence) = next.filter(|_| !enough && !is_over) else {
                core.spare.is_wanted = false;
                if next.is_none() {
                    // At the end of the sequence numbers there is no room, and waiting for it must end.
                    core.spare.attempts += 1;
                    core.spare.shortage = Some(Shortage::Space);
                }
                self.shared.notify_room(&mut core);
                return false;
            };
            core.spare.is_wanted = true;
            (sequence, core.sequencer.active().segment_bytes)
        };
        let made = self.make(sequence, segment_bytes, recycled).map_err(|error| self.gone_or(error));
        let mut core = self.shared.core();
        if let Ok(None) = made {
            // Given up for something better; whether one is still wanted is asked again.
            return true;
        }
        core.spare.attempts += 1;
        core.spare.is_wanted = false;
        core.spare.shortage = made.as_ref().err().and_then(Shortage::of);
        let done = made.is_ok();
        match made {
            Ok(spare) => spare.into_iter().for_each(|spare| self.shared.add_spare(&mut core, spare)),
            Err(_) if core.spare.shortage == Some(Shortage::Space) => {}
            Err(error) if core.spare.shortage.is_some() => tracing::warn!(%error, "no segment could be made for now"),
            Err(error) => self.shared.poison(&mut core, error),
        }
        self.shared.notify_room(&mut core);
        done
    }

    /// Says how large the next piece of a spare's zeros may be; while the filling is ahead of the appends, the other
    /// work is done meanwhile. `None` where filling is not worth going on with.
    fn pace(&self, filled_bytes: u64, segment_bytes: u64) -> Option<usize> {
        loop {
            let (appends, is_over, can_recycle) = {
                let core = self.shared.core();
                (core.appends(), core.is_closed || core.poison.is_some(), self.can_recycle(&core))
            };
            // A spare is of no use any more; or there is a better one, and more to be saved than is lost.
            if is_over || can_recycle && filled_bytes < segment_bytes / 4 * 3 {
                return None;
            }
            match pace::pace(filled_bytes, segment_bytes, &appends) {
                Pace::Write(piece) => return Some(piece),
                Pace::Rest => {
                    thread::sleep(REST);
                    if filled_bytes > 0 {
                        self.seal_one();
                        self.write_slot();
                    }
                }
            }
        }
    }

    /// Whether a segment may go now that could be the spare.
    fn can_recycle(&self, core: &Core) -> bool {
        let oldest = core.sequencer.droppable().and_then(|sequence| core.handles.get(&sequence));
        // The core's own hold is the only one.
        oldest.is_some_and(|oldest| Arc::strong_count(oldest) == 1)
    }

    /// A directory that goes away in the midst of the work is the cause of whatever failed then.
    fn gone_or(&self, error: Error) -> Error {
        let disk = &*self.shared.disk;
        if disk.is_in_place() { error } else { Error::DirectoryGone { path: disk.path().into() } }
    }

    /// `None` where it was given up.
    fn make(&self, sequence: u64, segment_bytes: u64, recycled: Option<u64>) -> Result<Option<spare::OpenSegment>> {
        let disk = &*self.shared.disk;
        if !disk.is_in_place() {
            return Err(Error::DirectoryGone { path: disk.path().into() });
        }
        let durable_writes = self.shared.config.durability == Durability::Sync;
        let (log_id, block_bytes) = (self.shared.log_id, self.block_bytes()?);
        let header = SegmentHeader { log_id, sequence, salt: super::open::random(), block_bytes, segment_bytes };
        match recycled {
            Some(old) => {
                self.shared.count(&self.shared.meter.recycled);
                let _busy = Busy::with(&self.shared, Stage::Spare, 0);
                spare::recycle(disk, old, &header, durable_writes).map(Some)
            }
            None => {
                // A stall is a piece that takes long, not a rest between two.
                let mut busy = None;
                let pacer = &mut |filled| {
                    busy = None;
                    let piece = self.pace(filled, segment_bytes);
                    busy = piece.map(|bytes| Busy::with(&self.shared, Stage::Spare, bytes as u64));
                    piece
                };
                let zeros = self.zeros.get_or_init(|| spare::zeros(segment_bytes));
                spare::make(disk, &header, durable_writes, zeros, pacer)
            }
        }
    }

    /// Writes one index file; where that fails the index stays in memory.
    fn seal_one(&self) -> bool {
        let (identity, index, handle) = {
            let mut core = self.shared.core();
            let Some(identity) = core.to_seal.pop_front() else { return false };
            let index = core.sequencer.ledger.indexes.get(&identity.sequence).cloned();
            (identity, index, core.handles.get(&identity.sequence).cloned())
        };
        let (Some(index), Some(handle)) = (index, handle) else { return true };
        let written = {
            let _busy = Busy::with(&self.shared, Stage::Index, 0);
            sealed::write_index(&*self.shared.disk, &index, &identity)
        };
        handle.seal(identity);
        match written {
            Ok(()) => {
                let mut core = self.shared.core();
                core.sequencer.ledger.indexes.remove(&identity.sequence);
            }
            Err(error) => tracing::warn!(%error, "an index file could not be written; the index stays in memory"),
        }
        true
    }

    fn write_slot(&self) {
        let Some(watermark) = self.shared.core().slot_due.take() else { return };
        let lock = self.shared.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(lock) = &*lock else { return };
        let _busy = Busy::with(&self.shared, Stage::Slot, 0);
        let written = lock.write_slot(self.shared.log_id, watermark);
        match written.map_err(Error::io("write", self.shared.disk.path_of(names::LOCK))) {
            Ok(()) => {}
            // It is one more witness, not the only one: the next mark tries again.
            Err(error) if error.is_out_of_space() => tracing::warn!(%error, "the lock file's slot is not up to date"),
            Err(error) => self.shared.poison(&mut self.shared.core(), error),
        }
    }
}

/// Gives this thread's CPU to whoever wants it, the writer above all. It gets its turn when appends wait for it: then
/// they want none.
fn be_nice() {
    if cfg!(ringwal_shuttle) {
        // There the thread is the whole test's.
        return;
    }
    if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICENESS) {
        tracing::debug!(%error, "the helper thread keeps its priority");
    }
}

impl Drop for Helper {
    /// However the thread ends, nobody waits for a spare in vain.
    fn drop(&mut self) {
        if thread::panicking() {
            let cause = Error::Io {
                action: "go on preparing segments in",
                path: self.shared.disk.path().to_path_buf(),
                source: std::io::Error::other("the helper thread panicked"),
            };
            self.shared.poison(&mut self.shared.core(), cause);
        }
    }
}
