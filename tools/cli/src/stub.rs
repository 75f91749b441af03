//! TEMPORARY stand-in for the library's `Log`, until it lands. Delete.
#![allow(dead_code)]
use std::collections::HashMap;
use std::ops::{Range, RangeBounds};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use ringwal::{Config, LogEntry, Result};

type Entries = Arc<Mutex<Inner>>;
static LOGS: LazyLock<Mutex<HashMap<PathBuf, Entries>>> = LazyLock::new(Default::default);

#[derive(Default)]
struct Inner {
    first: u64,
    entries: std::collections::VecDeque<Bytes>,
    frames: u64,
}
#[derive(Clone)]
pub(crate) struct Log(Entries);
#[derive(Debug)]
pub(crate) struct RecoveryReport;
pub(crate) struct LogState {
    pub(crate) first: u64,
    pub(crate) last: Option<(u64, u64)>,
    pub(crate) compacted: Option<(u64, u64)>,
    pub(crate) durable: Option<u64>,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SegmentRole {
    Active,
    Sealed,
    Spare,
}
pub(crate) struct SegmentInfo {
    pub(crate) sequence: u64,
    pub(crate) file: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) block_bytes: u32,
    pub(crate) used_bytes: u64,
    pub(crate) entries: Range<u64>,
    pub(crate) role: SegmentRole,
    pub(crate) first_frame: Option<u64>,
}
pub(crate) struct Stats {
    pub(crate) frames: u64,
    pub(crate) entries: u64,
    pub(crate) payload_bytes: u64,
    pub(crate) written_bytes: u64,
    pub(crate) marks: u64,
    pub(crate) rolls: u64,
    pub(crate) queue_wait_ns: Histogram<u64>,
    pub(crate) encode_ns: Histogram<u64>,
    pub(crate) write_ns: Histogram<u64>,
    pub(crate) wake_ns: Histogram<u64>,
    pub(crate) entries_per_frame: Histogram<u64>,
    pub(crate) bytes_per_frame: Histogram<u64>,
}
#[derive(Default)]
pub(crate) struct Batch(Vec<Bytes>);
impl Batch {
    pub(crate) fn new() -> Batch {
        Batch::default()
    }
    pub(crate) fn push(mut self, c: impl Into<Bytes>) -> Batch {
        self.0.push(c.into());
        self
    }
}
pub(crate) struct Pending(Range<u64>, Instant);
impl Pending {
    pub(crate) fn indexes(&self) -> Range<u64> {
        self.0.clone()
    }
    pub(crate) fn wait(self) -> Result<()> {
        std::thread::sleep(self.1.saturating_duration_since(Instant::now()));
        Ok(())
    }
    pub(crate) fn is_done(&self) -> bool {
        self.1 <= Instant::now()
    }
}
impl Log {
    pub(crate) fn open(dir: impl AsRef<Path>, config: Config) -> Result<(Log, RecoveryReport)> {
        config.validate()?;
        std::fs::create_dir_all(dir.as_ref()).unwrap();
        let mut logs = LOGS.lock().unwrap();
        let inner = logs
            .entry(dir.as_ref().into())
            .or_insert_with(|| Arc::new(Mutex::new(Inner { first: 1, ..Inner::default() })));
        Ok((Log(inner.clone()), RecoveryReport))
    }
    pub(crate) fn open_read_only(dir: impl AsRef<Path>) -> Result<(Log, RecoveryReport)> {
        Log::open(dir, Config::default())
    }
    pub(crate) fn append(&self, c: impl Into<Bytes>) -> Result<u64> {
        Ok(self.write(Batch::new().push(c))?.start)
    }
    pub(crate) fn write(&self, batch: Batch) -> Result<Range<u64>> {
        let p = self.submit(batch)?;
        let i = p.indexes();
        p.wait()?;
        Ok(i)
    }
    pub(crate) fn submit(&self, batch: Batch) -> Result<Pending> {
        let mut inner = self.0.lock().unwrap();
        let next = inner.first + inner.entries.len() as u64;
        let n = batch.0.len() as u64;
        inner.entries.extend(batch.0);
        inner.frames += 1;
        Ok(Pending(next..next + n, Instant::now() + Duration::from_micros(200)))
    }
    pub(crate) fn compact(&self, upto: u64) -> Result<()> {
        let mut inner = self.0.lock().unwrap();
        while inner.first <= upto {
            inner.entries.pop_front().unwrap();
            inner.first += 1;
        }
        Ok(())
    }
    pub(crate) fn state(&self) -> LogState {
        let inner = self.0.lock().unwrap();
        let next = inner.first + inner.entries.len() as u64;
        LogState {
            first: inner.first,
            last: (next > 1).then(|| (next - 1, 0)),
            compacted: (inner.first > 1).then(|| (inner.first - 1, 0)),
            durable: None,
        }
    }
    pub(crate) fn iter<R: RangeBounds<u64>>(&self, _: R) -> Box<dyn Iterator<Item = Result<LogEntry>>> {
        let inner = self.0.lock().unwrap();
        let all = inner.entries.iter().cloned().zip(inner.first..).collect::<Vec<_>>();
        Box::new(all.into_iter().map(|(c, i)| Ok(LogEntry::new(0, i, c))))
    }
    pub(crate) fn stats(&self) -> Stats {
        let inner = self.0.lock().unwrap();
        let h = || Histogram::<u64>::new(3).unwrap();
        let mut f = h();
        f.record_n(4000, inner.frames).unwrap();
        let end = inner.first + inner.entries.len() as u64 - 1;
        Stats {
            frames: inner.frames,
            entries: end,
            payload_bytes: end * 128,
            written_bytes: inner.frames * 4096,
            marks: 0,
            rolls: 0,
            queue_wait_ns: h(),
            encode_ns: h(),
            write_ns: h(),
            wake_ns: h(),
            entries_per_frame: h(),
            bytes_per_frame: f,
        }
    }
    pub(crate) fn io_mode(&self) -> String {
        "stub".into()
    }
    pub(crate) fn segments(&self) -> Vec<SegmentInfo> {
        vec![SegmentInfo {
            sequence: 1,
            file: "x".into(),
            bytes: 64 << 20,
            block_bytes: 4096,
            used_bytes: 4096,
            entries: 1..2,
            role: SegmentRole::Spare,
            first_frame: Some(1),
        }]
    }
    pub(crate) fn meta(&self) -> Vec<(Bytes, Bytes)> {
        vec![]
    }
    pub(crate) fn close(self) -> Result<()> {
        Ok(())
    }
}
