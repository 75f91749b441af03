//! The log entry: a caller's payload at an index, with the term it was proposed in.
//!
//! This is the value that callers put in and get back. How it lies on disk is [`crate::format`]'s business.

use bytes::Bytes;

/// One entry of the log.
///
/// Indexes are dense: the entry after index `i` has index `i + 1`. Terms never fall from one entry to the next. The
/// timestamp is carried for the caller and never decides an order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LogEntry {
    /// The term (Raft's epoch of leadership) in which the entry was proposed; `0` where terms are not used.
    pub term: u64,
    /// The entry's place in the log.
    pub index: u64,
    /// The caller's payload.
    pub command: Bytes,
    /// Milliseconds since the Unix epoch.
    pub timestamp: u64,
}

impl LogEntry {
    /// An entry with the given place and payload and a zero timestamp.
    pub fn new(term: u64, index: u64, command: impl Into<Bytes>) -> LogEntry {
        LogEntry { term, index, command: command.into(), timestamp: 0 }
    }
}

/// One entry of the log, lent: see [`Entries::next_ref`](crate::Entries::next_ref).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EntryRef<'a> {
    /// As [`LogEntry::term`].
    pub term: u64,
    /// As [`LogEntry::index`].
    pub index: u64,
    /// As [`LogEntry::command`].
    pub command: &'a [u8],
    /// As [`LogEntry::timestamp`].
    pub timestamp: u64,
}

impl EntryRef<'_> {
    /// The entry with a copy of the payload.
    pub fn to_entry(&self) -> LogEntry {
        let EntryRef { term, index, command, timestamp } = *self;
        LogEntry { term, index, command: Bytes::copy_from_slice(command), timestamp }
    }
}

impl<'a> From<&'a LogEntry> for EntryRef<'a> {
    fn from(entry: &'a LogEntry) -> EntryRef<'a> {
        let LogEntry { term, index, command, timestamp } = entry;
        EntryRef { term: *term, index: *index, command, timestamp: *timestamp }
    }
}
