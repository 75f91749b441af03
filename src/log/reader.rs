//! Reading: from the tail cache, else from the segment that holds the index.
//!
//! What to read is decided in one look under the core's lock; the disk is touched after it. An entry found at a place
//! is what was there at that look, because bytes are never changed until they are dropped, and a segment that a reader
//! holds is not recycled. What lies in sealed segments the [`Shelf`](super::shelf::Shelf) may know without that lock.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, PoisonError};

use super::core::{Core, ReadJob, Shared};
use super::pending::Answer;
use super::shelf::Shelved;
use crate::entry::{EntryRef, LogEntry};
use crate::error::{Error, Result};
use crate::segment::piece::{Piece, Plan};
use crate::segment::sealed::SegmentHandle;
use crate::sync::channel::unbounded;
use crate::sync::thread;

/// Segments that readers have open at once: each costs two descriptors and a mapping, and both are limited.
const OPEN_MAX: usize = 128;

/// Entries looked up at once in an index in memory, under the lock.
const LOOKUP_ENTRIES: u64 = 2048;

/// How much an iterator takes from the tail cache at once.
const CACHED_BYTES: usize = 256 << 10;

/// Entries an iterator reads at once from its end.
const BACK_ENTRIES: u64 = 64;

/// Where an entry is.
enum Place {
    Cached(LogEntry),
    /// In a segment whose index is in memory: at this byte, and the next entry at that one.
    At(Arc<SegmentHandle>, u32, Option<u32>),
    /// In a sealed segment: its index file knows.
    Sealed(Arc<SegmentHandle>),
}

fn place_of(core: &Core, index: u64) -> Result<Place> {
    core.check_readable(index)?;
    if let Some(entry) = core.cached(index) {
        return Ok(Place::Cached(entry));
    }
    let (handle, sequence) = handle_of(core, index)?;
    match core.sequencer.ledger.indexes.get(&sequence) {
        Some(offsets) => match offsets.offset_of(index) {
            Some(offset) => Ok(Place::At(handle, offset, offsets.offset_of(index + 1))),
            None => Err(Error::NotWritten { next: core.visible_next() }),
        },
        None => {
            core.shelf.missed(index, || sealed_segments(core));
            Ok(Place::Sealed(handle))
        }
    }
}

/// The segments that their index files serve, and what of them can be read.
fn sealed_segments(core: &Core) -> Vec<Shelved> {
    let visible = core.visible();
    let ledger = &core.sequencer.ledger;
    let sealed = ledger.ranges.iter().filter(|range| !ledger.indexes.contains_key(&range.sequence));
    let shelved = sealed.filter_map(|range| {
        let live = range.live.start.max(visible.start)..range.live.end.min(visible.end);
        let handle = core.handles.get(&range.sequence).filter(|handle| handle.is_sealed() && !live.is_empty())?;
        Some((live, handle.clone()))
    });
    shelved.collect()
}

fn handle_of(core: &Core, index: u64) -> Result<(Arc<SegmentHandle>, u64)> {
    let segment = core.sequencer.ledger.ranges.locate(index);
    let found = segment.and_then(|segment| Some((core.handles.get(&segment.sequence)?.clone(), segment.sequence)));
    found.ok_or(Error::NotWritten { next: core.visible_next() })
}

/// Reads one entry.
pub(crate) fn get(shared: &Shared, index: u64) -> Result<LogEntry> {
    let place = match shared.shelf.find(index) {
        Some(handle) => Place::Sealed(handle),
        None => place_of(&shared.core(), index)?,
    };
    read(shared, place, index).or_else(|error| explain(shared, index, error))
}

/// A cached entry, without touching the disk.
pub(crate) fn get_cached(shared: &Shared, index: u64) -> Result<Option<LogEntry>> {
    match place_of(&shared.core(), index)? {
        Place::Cached(entry) => Ok(Some(entry)),
        Place::At(..) | Place::Sealed(_) => Ok(None),
    }
}

fn read(shared: &Shared, place: Place, index: u64) -> Result<LogEntry> {
    match place {
        Place::Cached(entry) => Ok(entry),
        Place::At(handle, offset, next) => {
            let entry = handle.read_entry(index, offset, next);
            note_open(shared, &handle);
            entry
        }
        Place::Sealed(handle) => {
            let entry = handle.read_sealed(index);
            note_open(shared, &handle);
            entry
        }
    }
}

/// A read that failed because the segment was dropped meanwhile, by this log or by the writer that a read-only log
/// stands beside, is a compaction.
fn explain(shared: &Shared, index: u64, error: Error) -> Result<LogEntry> {
    let is_gone = match &error {
        Error::Io { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
        Error::Corrupt { .. } => shared.read_only && segment_changed(shared, index),
        _ => false,
    };
    let first = shared.core().visible().start;
    if is_gone && (shared.read_only || index < first) {
        return Err(Error::Compacted { first: first.max(index + 1) });
    }
    Err(error)
}

/// Whether the segment that held an index has another salt or name by now.
fn segment_changed(shared: &Shared, index: u64) -> bool {
    let Ok((handle, _)) = handle_of(&shared.core(), index) else { return true };
    !handle.is_still_itself()
}

/// Remembers that a handle has files open, and closes the oldest beyond the limit.
fn note_open(shared: &Shared, handle: &Arc<SegmentHandle>) {
    if !handle.take_newly_opened() {
        return;
    }
    let mut open = shared.open_handles.lock().unwrap_or_else(PoisonError::into_inner);
    open.push_back(Arc::downgrade(handle));
    while open.len() > OPEN_MAX {
        if let Some(oldest) = open.pop_front().and_then(|weak| weak.upgrade()) {
            oldest.close();
        }
    }
}

/// The term at an index, or at the compaction point.
pub(crate) fn term(shared: &Shared, index: u64) -> Result<u64> {
    let handle = match known_term(shared, index)? {
        Known::Term(term) => return Ok(term),
        Known::Sealed(handle) => handle,
    };
    let term = handle.index_map().map(|map| map.term_of(index));
    note_open(shared, &handle);
    match term {
        Ok(Some(term)) => Ok(term),
        // Read alone, the entry shows its term, or whether the segment went meanwhile.
        _ => get(shared, index).map(|entry| entry.term),
    }
}

/// The term at an index, where it is known without touching the disk.
pub(crate) fn term_in_memory(shared: &Shared, index: u64) -> Result<Option<u64>> {
    match known_term(shared, index)? {
        Known::Term(term) => Ok(Some(term)),
        Known::Sealed(handle) => Ok(handle.open_map().and_then(|map| map.term_of(index))),
    }
}

/// A term, or the segment whose index file knows it.
enum Known {
    Term(u64),
    Sealed(Arc<SegmentHandle>),
}

fn known_term(shared: &Shared, index: u64) -> Result<Known> {
    let core = shared.core();
    if let Some((compacted, term)) = core.sequencer.outline().state.compacted
        && compacted == index
        && !core.is_closed
    {
        return Ok(Known::Term(term));
    }
    core.check_readable(index)?;
    match core.cached(index).map(|entry| entry.term).or(core.sequencer.ledger.term_of(index)) {
        Some(term) => Ok(Known::Term(term)),
        None => handle_of(&core, index).map(|(handle, _)| Known::Sealed(handle)),
    }
}

/// Reads the entries of a range until their payloads pass `bytes_max`; at least one.
pub(crate) fn get_entries(shared: &Shared, range: Range<u64>, bytes_max: usize) -> Result<Vec<LogEntry>> {
    let mut entries: Vec<LogEntry> = Vec::new();
    let (mut bytes, mut found) = (0, Found::default());
    let mut next = range.start;
    while next < range.end {
        match read_some(shared, next..range.end, bytes_max.saturating_sub(bytes), found) {
            Ok(some) => found = some,
            // What is there is given; the caller learns of the end when it asks for what follows.
            Err(Error::NotWritten { .. }) if !entries.is_empty() => break,
            Err(error) => return Err(error),
        };
        while let Some(entry) = found.next() {
            bytes += entry.command.len();
            if !entries.is_empty() && bytes > bytes_max {
                return Ok(entries);
            }
            next += 1;
            entries.push(entry);
        }
        if bytes >= bytes_max {
            break;
        }
    }
    Ok(entries)
}

/// The first entries of a range, where they are in memory, until their payloads pass `bytes_max`; without touching the disk.
pub(crate) fn get_entries_cached(
    shared: &Shared,
    range: Range<u64>,
    bytes_max: usize,
) -> Result<Option<Vec<LogEntry>>> {
    let core = shared.core();
    core.check_readable(range.start)?;
    if core.cached(range.start).is_none() {
        return Ok(None);
    }
    let end = range.end.min(core.visible_next());
    Ok(Some(cached(&core, range.start..end, bytes_max).into()))
}

/// Entries that were read, of consecutive indexes, and not given out yet.
#[derive(Default)]
struct Found {
    cached: VecDeque<LogEntry>,
    /// Empty where there are cached ones.
    piece: Piece,
}

impl Found {
    fn len(&self) -> usize {
        self.cached.len() + self.piece.len()
    }

    #[inline]
    fn next(&mut self) -> Option<LogEntry> {
        self.piece.next().or_else(|| self.cached.pop_front())
    }

    fn next_back(&mut self) -> Option<LogEntry> {
        self.piece.next_back().or_else(|| self.cached.pop_back())
    }

    fn of(cached: impl Into<VecDeque<LogEntry>>) -> Found {
        Found { cached: cached.into(), piece: Piece::default() }
    }
}

/// Reads from one place: the tail cache or one segment. At least one entry, and of what has more than one not many more
/// than have payloads of `bytes_max`. What was found before and is not needed any more gives its memory.
fn read_some(shared: &Shared, range: Range<u64>, bytes_max: usize, used: Found) -> Result<Found> {
    let (first, (handle, offsets, end)) = (
        range.start,
        match look(shared, range, bytes_max)? {
            Look::Cached(entries) => return Ok(Found::of(entries)),
            Look::In(handle, offsets, end) => (handle, offsets, end),
        },
    );
    let plan = Plan::some(end - first, bytes_max);
    let piece = match offsets {
        Some(offsets) => handle.read_piece(first, offsets.into_iter(), plan, used.piece),
        None => handle.index_map().and_then(|map| handle.read_piece(first, map.offsets_from(first), plan, used.piece)),
    };
    note_open(shared, &handle);
    match piece {
        Ok(piece) if piece.len() > 0 => Ok(Found { piece, cached: VecDeque::new() }),
        // Read alone, the first entry shows whether it is damaged, the index led astray, or the segment went meanwhile.
        Ok(_) | Err(Error::Corrupt { .. } | Error::Io { .. }) => {
            drop(handle);
            get(shared, first).map(|entry| Found::of([entry]))
        }
        Err(error) => Err(error),
    }
}

/// Where the first entries of a range are.
enum Look {
    Cached(VecDeque<LogEntry>),
    /// In this segment, those below an index; at these offsets, where its index is in memory.
    In(Arc<SegmentHandle>, Option<Vec<u32>>, u64),
}

fn look(shared: &Shared, range: Range<u64>, bytes_max: usize) -> Result<Look> {
    let core = shared.core();
    core.check_readable(range.start)?;
    let end = range.end.min(core.visible_next());
    if core.cached(range.start).is_some() {
        return Ok(Look::Cached(cached(&core, range.start..end, bytes_max)));
    }
    let (handle, sequence) = handle_of(&core, range.start)?;
    let live = core.sequencer.ledger.ranges.locate(range.start).map_or(range.start + 1, |found| found.live.end);
    let end = end.min(live);
    let Some(index) = core.sequencer.ledger.indexes.get(&sequence) else { return Ok(Look::In(handle, None, end)) };
    let end = end.min(range.start.saturating_add(LOOKUP_ENTRIES));
    // One more than is wanted tells where the last one ends.
    let offsets = index.offsets_from(range.start, (end - range.start) as usize + 1);
    Ok(Look::In(handle, Some(offsets), end))
}

fn cached(core: &Core, range: Range<u64>, bytes_max: usize) -> VecDeque<LogEntry> {
    let mut bytes = 0;
    let mut entries = VecDeque::new();
    // Not more than are looked up elsewhere at once: the log's lock is held.
    for entry in range.take(LOOKUP_ENTRIES as usize).map_while(|index| core.cached(index)) {
        bytes += entry.command.len();
        if !entries.is_empty() && bytes > bytes_max {
            break;
        }
        entries.push_back(entry);
    }
    entries
}

/// A read, as it is handed to the reader thread.
pub(crate) type Read<T> = Box<dyn FnOnce(&Shared) -> Result<T> + Send>;

/// Runs a read on the reader thread, which is started by the first one.
pub(crate) fn on_reader_thread<T: Send + 'static>(shared: &Arc<Shared>, read: Read<T>) -> Arc<Answer<T>> {
    let answer = Arc::new(Answer::default());
    let theirs = answer.clone();
    let sent = send_read(shared, Box::new(move |shared| theirs.give(read(shared))));
    if let Err(error) = sent {
        answer.give(Err(error));
    }
    answer
}

fn send_read(shared: &Arc<Shared>, job: ReadJob) -> Result<()> {
    let mut reads = shared.reads.lock().unwrap_or_else(PoisonError::into_inner);
    let jobs = match &*reads {
        _ if shared.core().is_closed => return Err(Error::Closed),
        Some(jobs) => jobs,
        None => {
            let (jobs, inbox) = unbounded::<ReadJob>();
            let theirs = shared.clone();
            // It leaves when the log is closed, which drops the sender.
            let serve = move || inbox.iter().for_each(|job| job(&theirs));
            let spawned = thread::Builder::new().name(format!("{}-reader", shared.config.thread_name)).spawn(serve);
            spawned.map_err(Error::io("start the reader thread for", shared.disk.path()))?;
            reads.insert(jobs)
        }
    };
    jobs.send(job).map_err(|_| Error::Closed)
}

/// The entries of a range, from either end, in bounded memory. What is there when it is made bounds it; an entry that
/// is truncated or compacted before it is reached is an error in its place, and the last item.
///
/// Commands that were read from disk together share their memory, some hundred KiB: copy what is kept for long.
pub struct Entries {
    shared: Arc<Shared>,
    front: Found,
    back: VecDeque<LogEntry>,
    /// Indexes not yet read.
    unread: Range<u64>,
    /// Lent last, where it was not read with others.
    lent: Option<LogEntry>,
}

impl Entries {
    pub(crate) fn new(shared: Arc<Shared>, range: Range<u64>) -> Entries {
        Entries { shared, front: Found::default(), back: VecDeque::new(), unread: range, lent: None }
    }

    /// The next entry, as [`Iterator::next`] would give it, but lent until the next call. Its command is not shared, so
    /// nothing is counted: for entries of a hundred bytes that is half of the time that a scan takes.
    #[inline]
    pub fn next_ref(&mut self) -> Option<Result<EntryRef<'_>>> {
        if self.front.piece.len() == 0 {
            match self.front.cached.pop_front().map(Ok).or_else(|| self.read_on())? {
                Ok(entry) => return Some(Ok(EntryRef::from(&*self.lent.insert(entry)))),
                Err(error) => return Some(Err(error)),
            }
        }
        self.front.piece.next_ref().map(Ok)
    }

    fn stop(&mut self, error: Error) -> Option<Result<LogEntry>> {
        self.unread = 0..0;
        self.back.clear();
        self.front = Found::default();
        Some(Err(error))
    }

    /// The next entry once everything that was read from the front is given out.
    fn read_on(&mut self) -> Option<Result<LogEntry>> {
        if self.unread.is_empty() {
            return self.back.pop_front().map(Ok);
        }
        match read_some(&self.shared, self.unread.clone(), CACHED_BYTES, std::mem::take(&mut self.front)) {
            Ok(found) => {
                self.unread.start += found.len() as u64;
                self.front = found;
                self.front.next().map(Ok)
            }
            Err(error) => self.stop(error),
        }
    }
}

impl Iterator for Entries {
    type Item = Result<LogEntry>;

    #[inline]
    fn next(&mut self) -> Option<Result<LogEntry>> {
        match self.front.next() {
            Some(entry) => Some(Ok(entry)),
            None => self.read_on(),
        }
    }
}

impl DoubleEndedIterator for Entries {
    fn next_back(&mut self) -> Option<Result<LogEntry>> {
        if self.back.is_empty() && !self.unread.is_empty() {
            let mut start = self.unread.end.saturating_sub(BACK_ENTRIES).max(self.unread.start);
            let first = self.shared.core().visible().start;
            if (start..self.unread.end).contains(&first) {
                // What was compacted below comes when it is reached.
                start = first;
            }
            match get_entries(&self.shared, start..self.unread.end, usize::MAX) {
                Ok(entries) if (entries.len() as u64) < self.unread.end - start => {
                    return self.stop(Error::NotWritten { next: start + entries.len() as u64 });
                }
                Ok(entries) => {
                    self.unread.end = start;
                    self.back = entries.into();
                }
                Err(error) => return self.stop(error),
            }
        }
        self.back.pop_back().or_else(|| self.front.next_back()).map(Ok)
    }
}
