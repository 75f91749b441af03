//! The log as a consensus library sees it: append, get, truncate and compact by (index, term), without blocking.
//!
//! One semantics for every implementation: [`MemLog`](crate::MemLog) in memory, and the durable log. The tests of this
//! file are a suite that each implementation runs. Nothing here knows about disks or threads.

use std::future::Future;

use crate::entry::LogEntry;

/// A log of entries by index and term.
///
/// # The log as a range
///
/// The entries are one contiguous range, from the *first index* up to the *next index*. Below the first index lies what
/// was compacted: its last entry is the **compaction point**, of which index and term are remembered.
///
/// | index                      | `get_entry`   | `truncate`              | `compact`                  |
/// |----------------------------|---------------|-------------------------|----------------------------|
/// | below the compaction point | `Compacted`   | `Compacted`             | nothing to do              |
/// | the compaction point       | `Compacted`   | the log is then empty   | nothing to do              |
/// | of an entry                | the entry     | drops what is after it  | drops it and all before it |
/// | at or past the next index  | `None`        | nothing to do           | `NotWritten`               |
///
/// A log with neither entries nor a compaction point (new, or truncated to nothing) takes the first entry at whatever
/// index it brings. Afterwards each entry has the next index, and terms never fall, the compaction point's included. A
/// log that started above the lowest index without a compaction point treats reads below its first entry as compacted;
/// a truncate there empties it, and a compaction there has nothing to do.
///
/// # Errors
///
/// The names in this documentation (`Gap`, `TermFell`, `Compacted`, `NotWritten`) are variants of
/// [`ringwal::Error`](crate::Error); an implementation with its own error type offers the same distinctions. A refused
/// operation changes nothing.
///
/// # Durability
///
/// In the durable log an operation that changes the log is on the medium when its future is ready with `Ok`, unless the
/// log was opened with a weaker [`Durability`](crate::Durability). If a future is dropped before that, the operation
/// may or may not have happened, but never in part. After a failed write or sync every further change is refused.
///
/// # Futures
///
/// They are `Send` and need no reactor: any executor drives them. Implementers may write `async fn`.
///
/// ```
/// use std::future::Future;
/// use std::task::{Context, Poll, Waker};
///
/// use ringwal::{Error, LogEntry, LogStorage, MemLog};
///
/// /// Any executor's will do; this one asks again and again.
/// fn block_on<F: Future>(future: F) -> F::Output {
///     let mut future = std::pin::pin!(future);
///     loop {
///         match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
///             Poll::Ready(value) => return value,
///             Poll::Pending => std::thread::yield_now(),
///         }
///     }
/// }
///
/// async fn take_over<S: LogStorage>(log: &mut S) -> Result<(), S::Error> {
///     log.append_entries(&[LogEntry::new(1, 1, "a"), LogEntry::new(1, 2, "b"), LogEntry::new(1, 3, "c")]).await?;
///     // A new leader replaces what an old one did not commit.
///     log.truncate(2).await?;
///     log.append_entry(&LogEntry::new(2, 3, "d")).await?;
///     assert_eq!(log.last_term().await?, Some(2));
///     // What a snapshot covers is not needed any more.
///     log.compact(2).await?;
///     assert_eq!(log.get_entries(3, 10).await?, [LogEntry::new(2, 3, "d")]);
///     Ok(())
/// }
///
/// let mut log = MemLog::new();
/// block_on(take_over(&mut log))?;
/// assert!(matches!(block_on(log.get_entry(2)), Err(Error::Compacted { first: 3 })));
/// # Ok::<(), Error>(())
/// ```
pub trait LogStorage: Send + Sync {
    /// What can go wrong.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Appends one entry and returns its index. **Durable on return.**
    ///
    /// # Errors
    ///
    /// `Gap` where its index is not the next one, `TermFell` where its term is lower than the last one.
    fn append_entry(&mut self, entry: &LogEntry) -> impl Future<Output = Result<u64, Self::Error>> + Send;

    /// Appends the entries, all or none, and returns the index of the last one. **Durable on return.**
    ///
    /// Without entries nothing happens, and the index before the next one is returned (0 in a new log).
    ///
    /// # Errors
    ///
    /// As [`append_entry`](Self::append_entry), for whichever entry comes first; none is appended then.
    fn append_entries(&mut self, entries: &[LogEntry]) -> impl Future<Output = Result<u64, Self::Error>> + Send;

    /// The entry at an index, or `None` if it was not written yet. Entries are visible as soon as they are accepted,
    /// which may be before they are durable.
    ///
    /// # Errors
    ///
    /// `Compacted` below the first index.
    fn get_entry(&self, index: u64) -> impl Future<Output = Result<Option<LogEntry>, Self::Error>> + Send;

    /// The entries from `start` up to, not including, `end`.
    ///
    /// Entries past the end of the log are simply not there: what is returned begins at `start` without a gap, and may
    /// be shorter than asked for, or empty. An empty range (`start >= end`) gives nothing, wherever it lies.
    ///
    /// All of them are in memory at once: ask for bounded ranges.
    ///
    /// # Errors
    ///
    /// `Compacted` where `start` is below the first index.
    fn get_entries(&self, start: u64, end: u64) -> impl Future<Output = Result<Vec<LogEntry>, Self::Error>> + Send;

    /// Index of the last entry; `None` if there are no entries, be it that all were compacted.
    fn last_index(&self) -> impl Future<Output = Result<Option<u64>, Self::Error>> + Send;

    /// Term of the last entry; `None` if there are no entries, be it that all were compacted.
    fn last_term(&self) -> impl Future<Output = Result<Option<u64>, Self::Error>> + Send;

    /// Removes all entries after `index`; the one at `index` **stays**. **Durable on return.**
    ///
    /// Where nothing is after it, nothing happens. A log whose first entry has index 0 cannot be emptied this way;
    /// [`MemLog::truncate_from`](crate::MemLog::truncate_from) can.
    ///
    /// # Errors
    ///
    /// `Compacted` below the compaction point: entries that should stay are gone.
    fn truncate(&mut self, index: u64) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Drops the entries up to **and including** `index`, which becomes the compaction point. **Durable on return**;
    /// the space is freed in the background.
    ///
    /// At or below the compaction point nothing happens.
    ///
    /// # Errors
    ///
    /// `NotWritten` past the last index: the term there is not known.
    fn compact(&mut self, index: u64) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

#[cfg(test)]
pub(crate) mod conformance {
    //! What every [`LogStorage`] must do. Run [`all`] with a maker of new, empty logs, and [`agrees_with_mem_log`] with
    //! random [`operations`].

    use proptest::prelude::*;

    use super::LogStorage;
    use crate::block_on::block_on;
    use crate::entry::LogEntry;
    use crate::error::{Error, Result};
    use crate::mem_log::MemLog;

    /// Every case, each on a new log.
    pub(crate) fn all<S: LogStorage<Error = Error>>(make: impl Fn() -> S) {
        block_on(async {
            a_new_log_is_empty(make()).await;
            what_was_appended_is_read_back(make()).await;
            the_first_entry_may_have_any_index(&make).await;
            indexes_leave_no_gap(make()).await;
            terms_never_fall(make()).await;
            a_refused_batch_leaves_nothing(make()).await;
            an_empty_batch_changes_nothing(make()).await;
            ranges_are_half_open(make()).await;
            truncate_keeps_its_index(make()).await;
            a_log_truncated_to_nothing_is_as_new(make()).await;
            compact_drops_its_index(make()).await;
            a_log_compacted_to_nothing_goes_on(make()).await;
            truncate_stops_at_the_compaction_point(make()).await;
            an_index_has_an_upper_bound(make()).await;
        });
    }

    fn entry(term: u64, index: u64) -> LogEntry {
        LogEntry { timestamp: index * 10, ..LogEntry::new(term, index, format!("{index} in {term}")) }
    }

    fn entries(term: u64, indexes: std::ops::Range<u64>) -> Vec<LogEntry> {
        indexes.map(|index| entry(term, index)).collect()
    }

    fn compacted<T>(result: &Result<T>, expect: u64) -> bool {
        matches!(result, Err(Error::Compacted { first }) if *first == expect)
    }

    async fn a_new_log_is_empty<S: LogStorage<Error = Error>>(mut log: S) {
        assert_eq!(log.last_index().await.unwrap(), None);
        assert_eq!(log.last_term().await.unwrap(), None);
        assert_eq!(log.get_entry(0).await.unwrap(), None);
        assert_eq!(log.get_entry(u64::MAX).await.unwrap(), None);
        assert_eq!(log.get_entries(0, u64::MAX).await.unwrap(), []);
        log.truncate(0).await.unwrap();
        log.truncate(u64::MAX).await.unwrap();
        assert!(matches!(log.compact(7).await, Err(Error::NotWritten { .. })));
        assert_eq!(log.append_entry(&entry(1, 1)).await.unwrap(), 1);
    }

    async fn what_was_appended_is_read_back<S: LogStorage<Error = Error>>(mut log: S) {
        assert_eq!(log.append_entry(&entry(1, 1)).await.unwrap(), 1);
        assert_eq!(log.append_entries(&entries(2, 2..6)).await.unwrap(), 5);
        let empty = LogEntry::new(2, 6, "");
        assert_eq!(log.append_entry(&empty).await.unwrap(), 6);
        assert_eq!(log.get_entry(1).await.unwrap(), Some(entry(1, 1)));
        assert_eq!(log.get_entry(5).await.unwrap(), Some(entry(2, 5)));
        assert_eq!(log.get_entry(6).await.unwrap(), Some(empty));
        assert_eq!(log.get_entry(7).await.unwrap(), None);
        assert_eq!((log.last_index().await.unwrap(), log.last_term().await.unwrap()), (Some(6), Some(2)));
    }

    async fn the_first_entry_may_have_any_index<S: LogStorage<Error = Error>>(make: impl Fn() -> S) {
        for first in [0, 1, 2, 1 << 40] {
            let mut log = make();
            assert_eq!(log.append_entries(&entries(3, first..first + 2)).await.unwrap(), first + 1);
            assert_eq!(log.get_entries(first, first + 9).await.unwrap(), entries(3, first..first + 2));
            assert!(matches!(log.append_entry(&entry(3, first)).await, Err(Error::Gap { .. })));
            if first > 0 {
                // Nothing was compacted, yet nothing below can ever be read.
                assert!(compacted(&log.get_entry(first - 1).await, first));
                assert!(compacted(&log.get_entries(0, first + 1).await, first));
                log.compact(first - 1).await.unwrap();
                assert_eq!(log.get_entry(first).await.unwrap(), Some(entry(3, first)));
            }
        }
    }

    async fn indexes_leave_no_gap<S: LogStorage<Error = Error>>(mut log: S) {
        log.append_entries(&entries(1, 1..4)).await.unwrap();
        for found in [0, 1, 3, 5, u64::MAX] {
            let refused = log.append_entry(&LogEntry::new(1, found, "x")).await;
            assert!(matches!(refused, Err(Error::Gap { expected: 4, found: f }) if f == found), "{refused:?}");
        }
        log.append_entry(&entry(1, 4)).await.unwrap();
    }

    async fn terms_never_fall<S: LogStorage<Error = Error>>(mut log: S) {
        log.append_entry(&entry(5, 1)).await.unwrap();
        let refused = log.append_entry(&entry(4, 2)).await;
        assert!(matches!(refused, Err(Error::TermFell { last: 5, found: 4 })), "{refused:?}");
        log.append_entry(&entry(5, 2)).await.unwrap();
        log.append_entry(&entry(9, 3)).await.unwrap();
        // Truncating takes the term back too.
        log.truncate(2).await.unwrap();
        log.append_entry(&entry(6, 3)).await.unwrap();
        assert_eq!(log.last_term().await.unwrap(), Some(6));
    }

    async fn a_refused_batch_leaves_nothing<S: LogStorage<Error = Error>>(mut log: S) {
        log.append_entry(&entry(2, 1)).await.unwrap();
        let gap = log.append_entries(&[entry(2, 2), entry(2, 3), entry(2, 5)]).await;
        assert!(matches!(gap, Err(Error::Gap { expected: 4, found: 5 })), "{gap:?}");
        let fell = log.append_entries(&[entry(2, 2), entry(4, 3), entry(3, 4)]).await;
        assert!(matches!(fell, Err(Error::TermFell { last: 4, found: 3 })), "{fell:?}");
        assert_eq!(log.get_entries(1, 9).await.unwrap(), [entry(2, 1)]);
        assert_eq!(log.append_entries(&entries(2, 2..4)).await.unwrap(), 3);
    }

    async fn an_empty_batch_changes_nothing<S: LogStorage<Error = Error>>(mut log: S) {
        assert_eq!(log.append_entries(&[]).await.unwrap(), 0);
        assert_eq!(log.last_index().await.unwrap(), None);
        log.append_entries(&entries(1, 8..10)).await.unwrap();
        assert_eq!(log.append_entries(&[]).await.unwrap(), 9);
        log.compact(9).await.unwrap();
        assert_eq!(log.append_entries(&[]).await.unwrap(), 9);
    }

    async fn ranges_are_half_open<S: LogStorage<Error = Error>>(mut log: S) {
        log.append_entries(&entries(1, 1..11)).await.unwrap();
        log.compact(3).await.unwrap();
        assert_eq!(log.get_entries(4, 7).await.unwrap(), entries(1, 4..7));
        assert_eq!(log.get_entries(4, 5).await.unwrap(), entries(1, 4..5));
        assert_eq!(log.get_entries(9, 20).await.unwrap(), entries(1, 9..11));
        assert_eq!(log.get_entries(9, u64::MAX).await.unwrap(), entries(1, 9..11));
        assert_eq!(log.get_entries(11, 20).await.unwrap(), []);
        assert_eq!(log.get_entries(u64::MAX, u64::MAX).await.unwrap(), []);
        assert!(compacted(&log.get_entries(3, 7).await, 4));
        assert!(compacted(&log.get_entries(0, 1).await, 4));
        for (start, end) in [(5, 5), (7, 5), (2, 2), (3, 0)] {
            assert_eq!(log.get_entries(start, end).await.unwrap(), [], "{start}..{end}");
        }
    }

    async fn truncate_keeps_its_index<S: LogStorage<Error = Error>>(mut log: S) {
        log.append_entries(&entries(1, 1..11)).await.unwrap();
        for nothing_after in [10, 11, u64::MAX] {
            log.truncate(nothing_after).await.unwrap();
            assert_eq!(log.last_index().await.unwrap(), Some(10));
        }
        log.truncate(7).await.unwrap();
        assert_eq!(log.last_index().await.unwrap(), Some(7));
        assert_eq!(log.get_entry(7).await.unwrap(), Some(entry(1, 7)));
        assert_eq!(log.get_entry(8).await.unwrap(), None);
        log.append_entries(&entries(2, 8..10)).await.unwrap();
        assert_eq!(log.get_entries(7, 20).await.unwrap(), [entry(1, 7), entry(2, 8), entry(2, 9)]);
    }

    async fn a_log_truncated_to_nothing_is_as_new<S: LogStorage<Error = Error>>(mut log: S) {
        log.append_entries(&entries(5, 10..13)).await.unwrap();
        log.truncate(9).await.unwrap();
        assert_eq!((log.last_index().await.unwrap(), log.last_term().await.unwrap()), (None, None));
        assert_eq!(log.get_entry(10).await.unwrap(), None);
        // With nothing to continue, index and term may be anything.
        log.append_entries(&entries(1, 4..6)).await.unwrap();
        log.truncate(0).await.unwrap();
        assert_eq!(log.append_entry(&entry(1, 700)).await.unwrap(), 700);
    }

    async fn compact_drops_its_index<S: LogStorage<Error = Error>>(mut log: S) {
        log.append_entries(&entries(1, 1..11)).await.unwrap();
        log.compact(4).await.unwrap();
        for gone in [0, 1, 4] {
            assert!(compacted(&log.get_entry(gone).await, 5));
        }
        assert_eq!(log.get_entry(5).await.unwrap(), Some(entry(1, 5)));
        for done in [0, 3, 4] {
            log.compact(done).await.unwrap();
            assert_eq!(log.get_entry(5).await.unwrap(), Some(entry(1, 5)));
        }
        for unwritten in [11, 12, u64::MAX] {
            let refused = log.compact(unwritten).await;
            assert!(matches!(refused, Err(Error::NotWritten { next: 11 })), "{refused:?}");
        }
        assert_eq!(log.last_index().await.unwrap(), Some(10));
    }

    async fn a_log_compacted_to_nothing_goes_on<S: LogStorage<Error = Error>>(mut log: S) {
        log.append_entries(&entries(3, 1..11)).await.unwrap();
        log.compact(10).await.unwrap();
        assert_eq!((log.last_index().await.unwrap(), log.last_term().await.unwrap()), (None, None));
        assert!(compacted(&log.get_entry(10).await, 11));
        assert_eq!(log.get_entry(11).await.unwrap(), None);
        assert!(matches!(log.compact(11).await, Err(Error::NotWritten { next: 11 })));
        assert!(matches!(log.append_entry(&entry(3, 1)).await, Err(Error::Gap { expected: 11, found: 1 })));
        assert!(matches!(log.append_entry(&entry(2, 11)).await, Err(Error::TermFell { last: 3, found: 2 })));
        assert_eq!(log.append_entry(&entry(3, 11)).await.unwrap(), 11);
    }

    async fn truncate_stops_at_the_compaction_point<S: LogStorage<Error = Error>>(mut log: S) {
        log.append_entries(&entries(3, 1..11)).await.unwrap();
        log.compact(5).await.unwrap();
        for gone in [0, 4] {
            assert!(compacted(&log.truncate(gone).await, 6));
        }
        assert_eq!(log.last_index().await.unwrap(), Some(10));
        log.truncate(5).await.unwrap();
        assert_eq!(log.last_index().await.unwrap(), None);
        assert!(matches!(log.append_entry(&entry(3, 5)).await, Err(Error::Gap { expected: 6, found: 5 })));
        assert_eq!(log.append_entry(&entry(4, 6)).await.unwrap(), 6);
    }

    async fn an_index_has_an_upper_bound<S: LogStorage<Error = Error>>(mut log: S) {
        let highest = crate::format::INDEX_MAX;
        for above in [highest + 1, u64::MAX] {
            let refused = log.append_entry(&LogEntry::new(1, above, "x")).await;
            assert!(matches!(refused, Err(Error::TooLarge { what: "index", .. })), "{refused:?}");
        }
        assert_eq!(log.append_entry(&LogEntry::new(1, highest, "x")).await.unwrap(), highest);
        let refused = log.append_entry(&LogEntry::new(1, highest + 1, "x")).await;
        assert!(matches!(refused, Err(Error::TooLarge { what: "index", .. })), "{refused:?}");
        log.compact(highest).await.unwrap();
        assert_eq!(log.last_index().await.unwrap(), None);
    }

    /// A call to a log, with arguments near its end, so that many succeed.
    #[derive(Clone, Debug)]
    pub(crate) enum Operation {
        Append { count: u64, skip: i64, term_step: i64 },
        Truncate { back: i64 },
        Compact { back: i64 },
        Get { back: i64 },
        GetEntries { back: i64, count: i64 },
    }

    /// Sequences of calls, from a generator that favours legal ones.
    pub(crate) fn operations() -> impl Strategy<Value = Vec<Operation>> {
        let mostly = |usual: i64| prop_oneof![9 => Just(usual), 1 => -2..3i64];
        let one = prop_oneof![
            6 => (0..5u64, mostly(0), prop_oneof![mostly(0), Just(1)])
                .prop_map(|(count, skip, term_step)| Operation::Append { count, skip, term_step }),
            2 => (-2..12i64).prop_map(|back| Operation::Truncate { back }),
            1 => (-2..12i64).prop_map(|back| Operation::Compact { back }),
            1 => (-2..20i64).prop_map(|back| Operation::Get { back }),
            1 => (-2..20i64, -1..9i64).prop_map(|(back, count)| Operation::GetEntries { back, count }),
        ];
        proptest::collection::vec(one, 0..40)
    }

    /// Makes the same calls on a new log and on a [`MemLog`] and compares every answer.
    pub(crate) fn agrees_with_mem_log<S: LogStorage<Error = Error>>(mut log: S, operations: &[Operation]) {
        let mut mem = MemLog::new();
        for (operation, nth) in operations.iter().zip(0..) {
            let next = mem.next_index().unwrap_or(5);
            let term = mem.last().or(mem.compacted()).map_or(3, |(_, term)| term);
            let expect = block_on(answer(&mut mem, operation, next, term));
            let found = block_on(answer(&mut log, operation, next, term));
            assert_eq!(found, expect, "operation {nth}: {operation:?} with next index {next}, term {term}");
        }
    }

    /// Makes a call and says in words what came of it, and what the log then looks like.
    async fn answer<S: LogStorage<Error = Error>>(log: &mut S, operation: &Operation, next: u64, term: u64) -> String {
        let before = |back: i64| next.saturating_add_signed(-back);
        let result = match *operation {
            Operation::Append { count, skip, term_step } => {
                let (first, term) = (before(-skip), term.saturating_add_signed(term_step));
                format!("{:?}", log.append_entries(&entries(term, first..first + count)).await)
            }
            Operation::Truncate { back } => format!("{:?}", log.truncate(before(back)).await),
            Operation::Compact { back } => format!("{:?}", log.compact(before(back)).await),
            Operation::Get { back } => format!("{:?}", log.get_entry(before(back)).await),
            Operation::GetEntries { back, count } => {
                let start = before(back);
                format!("{:?}", log.get_entries(start, start.saturating_add_signed(count)).await)
            }
        };
        format!("{result}; last is {:?} in {:?}", log.last_index().await, log.last_term().await)
    }
}
