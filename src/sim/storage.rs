//! [`LogStorage`] for [`LocalLog`]: consensus code that is written against the trait runs over the log without threads as
//! it is. Every future is ready at once, with the work done in it.

use super::local::LocalLog;
use crate::Batch;
use crate::engine::sequencer::Request;
use crate::entry::LogEntry;
use crate::error::{Error, Result};
use crate::log_storage::LogStorage;

impl LogStorage for LocalLog {
    type Error = Error;

    async fn append_entry(&mut self, entry: &LogEntry) -> Result<u64> {
        LogStorage::append_entries(self, std::slice::from_ref(entry)).await
    }

    async fn append_entries(&mut self, entries: &[LogEntry]) -> Result<u64> {
        let requests: Vec<Request> = entries.iter().cloned().map(Request::Entry).collect();
        Ok(self.write(Batch { requests })?.end.saturating_sub(1))
    }

    async fn get_entry(&self, index: u64) -> Result<Option<LogEntry>> {
        match self.get(index) {
            Ok(entry) => Ok(Some(entry)),
            Err(Error::NotWritten { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn get_entries(&self, start: u64, end: u64) -> Result<Vec<LogEntry>> {
        let mut entries = Vec::new();
        for index in start..end {
            match self.get(index) {
                Ok(entry) => entries.push(entry),
                Err(Error::NotWritten { .. }) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(entries)
    }

    async fn last_index(&self) -> Result<Option<u64>> {
        Ok(self.state().last.map(|(index, _)| index))
    }

    async fn last_term(&self) -> Result<Option<u64>> {
        Ok(self.state().last.map(|(_, term)| term))
    }

    async fn truncate(&mut self, index: u64) -> Result<()> {
        match self.state().first_removed_by_truncate(index)? {
            Some(first_removed) => self.truncate_from(first_removed),
            None => Ok(()),
        }
    }

    async fn compact(&mut self, index: u64) -> Result<()> {
        LocalLog::compact(self, index)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::Config;
    use crate::log_storage::conformance;
    use crate::sim::SimDisk;

    fn scratch() -> LocalLog {
        SimDisk::new(1).open_log(Config::default().segment_bytes(16 << 10).block_bytes(Some(512))).unwrap()
    }

    #[test]
    fn a_log_without_threads_passes_the_suite_of_its_trait() {
        conformance::all(scratch);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn a_log_without_threads_answers_as_the_log_in_memory_does(operations in conformance::operations()) {
            conformance::agrees_with_mem_log(scratch(), &operations);
        }
    }
}
