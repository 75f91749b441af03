//! What a caller asks for in one call: all or nothing.

use bytes::Bytes;

use crate::engine::sequencer::Request;
use crate::entry::LogEntry;

/// Operations that are accepted as one step, written in one frame and found after a crash all together or not at all.
///
/// They are applied in the order in which they were added.
///
/// ```
/// use ringwal::Batch;
/// let batch = Batch::new().push("one").push("two").put_meta(b"vote", b"3");
/// assert_eq!(batch.len(), 3);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub(crate) requests: Vec<Request>,
}

impl Batch {
    /// An empty batch. Written, it waits for everything accepted before it and changes nothing.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Appends an entry at the next index, with the term of the entry before it and the time of acceptance.
    #[must_use]
    pub fn push(self, command: impl Into<Bytes>) -> Batch {
        self.with(Request::Push(command.into()))
    }

    /// Appends exactly this entry: its index must be the next one (any, in a log without entries and compaction
    /// point), its term not lower than the last.
    #[must_use]
    pub fn push_entry(self, entry: LogEntry) -> Batch {
        self.with(Request::Entry(entry))
    }

    /// Removes the entry at this index and all after it.
    #[must_use]
    pub fn truncate_from(self, first_removed: u64) -> Batch {
        self.with(Request::Truncate(first_removed))
    }

    /// Sets a key of the hard state: small durable values such as Raft's vote. All pairs together may take 64 KiB (an
    /// eighth of a segment where that is less).
    #[must_use]
    pub fn put_meta(self, key: &[u8], value: &[u8]) -> Batch {
        self.with(Request::PutMeta(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)))
    }

    /// As [`Batch::put_meta`], without copies.
    #[cfg(feature = "openraft")]
    pub(crate) fn put_meta_shared(self, key: &'static [u8], value: Bytes) -> Batch {
        self.with(Request::PutMeta(Bytes::from_static(key), value))
    }

    /// Removes a key of the hard state; nothing happens if it is not there.
    #[must_use]
    pub fn delete_meta(self, key: &[u8]) -> Batch {
        self.with(Request::DeleteMeta(Bytes::copy_from_slice(key)))
    }

    /// Drops all entries up to and including `index`, whose term is given. The index may lie past the last entry: then
    /// the log is empty and goes on at `index + 1`, as after an installed snapshot. At or below the compaction point
    /// nothing happens. Right before the first entry of a log that was never compacted it only sets the compaction
    /// point, whose term must not be above that entry's.
    #[must_use]
    pub fn compact_to(self, index: u64, term: u64) -> Batch {
        self.with(Request::Compact(index, Some(term)))
    }

    /// Drops all entries up to and including `index`, which must be in the log.
    #[must_use]
    pub fn compact(self, index: u64) -> Batch {
        self.with(Request::Compact(index, None))
    }

    /// How many operations it has.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    fn with(mut self, request: Request) -> Batch {
        self.requests.push(request);
        self
    }
}

/// The simulator and the tests within the crate make and compare requests themselves.
#[cfg(any(test, feature = "sim"))]
impl<R: AsRef<[Request]> + ?Sized> From<&R> for Batch {
    fn from(requests: &R) -> Batch {
        Batch { requests: requests.as_ref().to_vec() }
    }
}
