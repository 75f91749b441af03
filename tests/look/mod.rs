//! What a log shows, taken whole, and what a directory holds, so that two looks can be compared.
#![allow(dead_code, reason = "each test file that includes this uses its own part of it")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bytes::Bytes;
use ringwal::{Error, Log, LogEntry};

/// Everything that a log shows to readers, except how much of it is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    pub(crate) first: u64,
    pub(crate) last: Option<(u64, u64)>,
    pub(crate) compacted: Option<(u64, u64)>,
    pub(crate) meta: Vec<(Bytes, Bytes)>,
    pub(crate) entries: Vec<LogEntry>,
}

impl Look {
    /// Reads everything; `Err` where an entry cannot be read.
    pub(crate) fn take(log: &Log) -> Result<Look, Error> {
        let mut look = Look::without_entries(log);
        look.entries = log.iter(..).collect::<Result<_, _>>()?;
        Ok(look)
    }

    /// The state and the hard state.
    pub(crate) fn without_entries(log: &Log) -> Look {
        let state = log.state();
        let (first, last, compacted) = (state.first, state.last, state.compacted);
        Look { first, last, compacted, meta: log.meta(), entries: Vec::new() }
    }
}

/// Names and bytes of all files in a directory. Of the lock file without the line that names its holder, which is only
/// for messages; a lock file without a slot counts as none.
pub(crate) fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    const HOLDER_AT: usize = 8192;
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            files.insert(format!("{name}/"), Vec::new());
            continue;
        }
        // Beside a writer, temporary files come and go.
        let Ok(mut bytes) = fs::read(entry.path()) else { continue };
        let is_lock = name == "lock" && bytes.len() <= HOLDER_AT + 256;
        if is_lock {
            bytes.truncate(HOLDER_AT);
        }
        if !is_lock || bytes.iter().any(|&byte| byte != 0) {
            files.insert(name, bytes);
        }
    }
    files
}

/// The names of a directory's segment files, in log order.
pub(crate) fn segment_names(directory: &Path) -> Vec<String> {
    files(directory).into_keys().filter(|name| name.ends_with(".seg")).collect()
}
