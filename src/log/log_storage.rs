//! [`LogStorage`] for [`Log`]: the trait's words in terms of the log's own.

use super::{Batch, Log, LogState};
use crate::engine::sequencer::Request;
use crate::entry::LogEntry;
use crate::error::{Error, Result};
use crate::log_storage::LogStorage;

/// How much one read of a range takes at once.
const READ_BYTES: usize = 1 << 20;

impl Log {
    async fn storage_append(&self, entries: &[LogEntry]) -> Result<u64> {
        let requests = entries.iter().cloned().map(Request::Entry).collect();
        let indexes = self.write_async(Batch { requests }).await?;
        Ok(indexes.end.saturating_sub(1))
    }

    async fn storage_get(&self, index: u64) -> Result<Option<LogEntry>> {
        match self.get_async(index).await {
            Ok(entry) => Ok(Some(entry)),
            Err(Error::NotWritten { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn storage_range(&self, start: u64, end: u64) -> Result<Vec<LogEntry>> {
        if start >= end {
            return Ok(Vec::new());
        }
        let read = move |shared: &super::Shared| {
            let mut entries: Vec<LogEntry> = Vec::new();
            while start + (entries.len() as u64) < end {
                match super::reader::get_entries(shared, start + entries.len() as u64..end, READ_BYTES) {
                    Ok(mut more) => entries.append(&mut more),
                    Err(Error::NotWritten { .. }) => break,
                    Err(error) => return Err(error),
                }
            }
            Ok(entries)
        };
        let answer = super::reader::on_reader_thread(self.shared(), Box::new(read));
        std::future::poll_fn(|context| answer.poll(context.waker())).await
    }

    async fn storage_truncate(&self, index: u64) -> Result<()> {
        match self.state().first_removed_by_truncate(index)? {
            Some(first_removed) => self.write_async(Batch::new().truncate_from(first_removed)).await.map(drop),
            None => Ok(()),
        }
    }

    async fn storage_compact(&self, index: u64) -> Result<()> {
        self.write_async(Batch::new().compact(index)).await.map(drop)
    }
}

impl LogState {
    /// The first index that goes where everything up to and including `index` is kept; `None` where nothing goes.
    pub(crate) fn first_removed_by_truncate(&self, index: u64) -> Result<Option<u64>> {
        if self.compacted.is_some_and(|(compacted, _)| index < compacted) {
            return Err(Error::Compacted { first: self.first });
        }
        let last = self.last.map(|(last, _)| last);
        Ok(index.checked_add(1).filter(|&first_removed| last.is_some_and(|last| first_removed <= last)))
    }
}

macro_rules! log_storage {
    ($($type:ty),*) => {$(
        impl LogStorage for $type {
            type Error = Error;

            async fn append_entry(&mut self, entry: &LogEntry) -> Result<u64> {
                self.storage_append(std::slice::from_ref(entry)).await
            }

            async fn append_entries(&mut self, entries: &[LogEntry]) -> Result<u64> {
                self.storage_append(entries).await
            }

            async fn get_entry(&self, index: u64) -> Result<Option<LogEntry>> {
                self.storage_get(index).await
            }

            async fn get_entries(&self, start: u64, end: u64) -> Result<Vec<LogEntry>> {
                self.storage_range(start, end).await
            }

            async fn last_index(&self) -> Result<Option<u64>> {
                Ok(self.state().last.map(|(index, _)| index))
            }

            async fn last_term(&self) -> Result<Option<u64>> {
                Ok(self.state().last.map(|(_, term)| term))
            }

            async fn truncate(&mut self, index: u64) -> Result<()> {
                self.storage_truncate(index).await
            }

            async fn compact(&mut self, index: u64) -> Result<()> {
                self.storage_compact(index).await
            }
        }
    )*};
}

log_storage!(Log, &Log);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::Config;
    use crate::log_storage::conformance;

    fn small() -> Config {
        Config::default().segment_bytes(128 << 10)
    }

    fn scratch() -> Log {
        let dir = tempfile::tempdir().unwrap();
        // The directory stays for as long as the process: the log closes after the guard would have gone.
        Log::open(dir.keep(), small()).unwrap().0
    }

    #[test]
    fn a_log_passes_the_suite_of_its_trait() {
        conformance::all(scratch);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn a_log_answers_as_the_log_in_memory_does(operations in conformance::operations()) {
            conformance::agrees_with_mem_log(scratch(), &operations);
        }
    }
}
