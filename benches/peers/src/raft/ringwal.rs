//! ringwal as a log store ([`RaftLog`]), with its default settings: entries are readable when they are appended, and
//! openraft is told by the log's writer thread when they are durable.
//!
//! Besides the one that everybody gets there are the same log written by openraft's own task where it is idle
//! ([`Config::write_in_place`]), which is to `ringwal` what `ceiling` is to `ceiling-thread`; with callers and writer that
//! spin; and with plain system calls instead of io_uring. The others start in files that were written before, so a run
//! begins when the segment that an open prepares in the background stands. Those after it are prepared while it is
//! measured.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ringwal::raft::RaftLog;
use ringwal::{Config, IoChoice, SegmentRole, Wait};

use super::cluster::{self, Open};
use super::types::Types;
use crate::engine::{Contestant, Engine};
use crate::load::Load;
use crate::versions;

pub(crate) const DEFAULT: Contestant = Contestant {
    name: "ringwal",
    version,
    durability: "RaftLog, all defaults: direct writes through io_uring on its own thread, durable before the ack",
    open: |dir, load| start(dir, load, |dir, id| open(dir, id, Config::default())),
};

pub(crate) const SPIN: Contestant = Contestant {
    name: "ringwal-spin",
    version,
    durability: "as ringwal, with Wait::Spin of 20 us",
    open: |dir, load| start(dir, load, |dir, id| open(dir, id, spinning())),
};

pub(crate) const SYSCALL: Contestant = Contestant {
    name: "ringwal-syscall",
    version,
    durability: "as ringwal, with plain system calls",
    open: |dir, load| start(dir, load, |dir, id| open(dir, id, Config::default().io(IoChoice::Syscall))),
};

pub(crate) const IN_PLACE: Contestant = Contestant {
    name: "ringwal-in-place",
    version,
    durability: "as ringwal, with Config::write_in_place: on the executor's thread where the log is idle",
    open: |dir, load| start(dir, load, |dir, id| open(dir, id, Config::default().write_in_place(true))),
};

/// How long a segment of 64 MiB may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// What the log is told that it belongs to.
const KIND: &str = "peers/1";

fn version() -> String {
    versions::of("ringwal")
}

fn spinning() -> Config {
    Config::default().wait(Wait::Spin(Duration::from_micros(20)))
}

fn start(dir: &Path, load: &Load, open: Open<RaftLog<Types>>) -> Result<Box<dyn Engine>> {
    cluster::start(dir, load, open, Some(open))
}

fn open(dir: &Path, id: u64, config: Config) -> Result<RaftLog<Types>> {
    let (log, _) = RaftLog::open(dir, id, KIND, config)?;
    let has_spare = || log.log().segments().iter().any(|segment| segment.role == SegmentRole::Spare);
    let start = Instant::now();
    while !has_spare() {
        ensure!(start.elapsed() < PATIENCE, "the next segment is not made");
        sleep(Duration::from_millis(1));
    }
    Ok(log)
}
