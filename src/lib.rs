//! ringwal: an embeddable, crash-proof, append-only log for Linux.
//!
//! The write-ahead log or Raft log inside a database, broker or consensus service. Many threads append; one writer
//! thread makes their entries durable together, through io_uring where that is allowed, in preallocated segment files;
//! a crash loses nothing that was acknowledged.
//!
//! ```
//! # fn main() -> Result<(), ringwal::Error> {
//! # let scratch = tempfile::tempdir().unwrap();
//! # let dir = scratch.path().join("log");
//! use ringwal::{Batch, Config, Log};
//!
//! let (log, _report) = Log::open(&dir, Config::default().segment_bytes(1 << 20))?;
//!
//! let index = log.append("one entry")?; // survives power loss when this returns
//! let indexes = log.write(Batch::new().push("two").push("more").put_meta(b"vote", b"7"))?; // all or nothing
//! assert_eq!(indexes, index + 1..index + 3);
//!
//! for entry in log.iter(index..) {
//!     let entry = entry?;
//!     println!("{}: {:?}", entry.index, entry.command);
//! }
//! log.compact(index)?; // drop what a snapshot covers
//! log.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Guarantees
//!
//! 1. **An acknowledgement means durable.** With [`Durability::Sync`], the default, an append returns only after its
//!    bytes survive power loss. [`Durability::Interval`] and [`Durability::None`] say what they lose.
//! 2. **Append-only.** Acknowledged bytes are never changed in place; truncation and compaction are logged facts.
//! 3. **All or nothing.** One [`Batch`] is one step: after a crash all of it is there, or none.
//! 4. **The longest contiguous chain.** Recovery returns the state after a prefix of the accepted operations that
//!    contains every acknowledged one: never a hole, never a stale frame, never an entry that was truncated durably.
//! 5. **Torn is not corrupt.** What a crash tore is cut and reported. Damage to what was acknowledged, where anything on
//!    disk witnesses that it was, is [`Error::Corrupt`]: nothing is cut, nothing deleted.
//! 6. **A failed write or sync is final.** The log is poisoned with the first cause, reads go on up to the durable
//!    index, and reopening decides. No sync is retried and believed.
//! 7. **A full disk is an error, not a crash.** [`Error::NoSpace`] comes before an index is assigned; reads, compaction
//!    and reopening work, and appends go on once there is room.
//! 8. **Any bytes are safe to open**: a value or a typed error, no panic, no unbounded allocation.
//!
//! # Frames, watermarks, indexes
//!
//! Batches join **frames**; a frame is what one write carries, and frame numbers grow by one. Three watermarks count
//! them: *accepted* (queued; readable, unless a reader asks for durable), *submitted* (handed to the kernel), *durable*
//! (on the medium, with every frame before it). None moves back. The indexes shown are derived from them: the last
//! index falls when a truncation is accepted. While a write is in flight, arrivals gather into the next frame: that is
//! the group commit, and it needs no timer.
//!
//! # What costs what
//!
//! - **A small frame that is alone** is written by a plain `pwrite` on the writer thread, whatever driver the log has:
//!   the kernel finishes an asynchronous `O_DSYNC` write on a thread of its own, and that hand-over costs about a fifth
//!   of such a write. Frames that can overlap, and larger ones, go through io_uring.
//! - **Callers who come back.** With nothing in flight, a frame is held for the callers that were acknowledged just now,
//!   for a quarter of a write's usual time at most, and only as many as lately did come back. One producer never waits.
//! - **Wake-ups.** A frame's waiters share one futex word; where very many sleep, the next frame goes to the device
//!   before they are woken. Tasks are woken without a system call of the log's own.
//! - **One append at a time.** A caller with nothing else to do pays for two wakes of sleeping threads per append: the
//!   writer's, and its own. [`Config::write_in_place`] saves both, and blocks the caller for the write.
//! - **A new segment** is zero-filled before it is used, at the pace of the appends, and dropped segments are recycled
//!   first: a growing log writes everything twice, a log that is compacted does not.
//! - **Reading.** The newest frames are kept in memory as they were accepted. A sealed entry is found without the log's
//!   lock and read with one positioned read of its exact length. [`Entries::next_ref`] lends entries out of large
//!   verified pieces; the iterator gives each its share of the piece to keep, which costs two atomic operations.
//!
//! # A disk that does not answer
//!
//! An operation that takes longer than [`Config::stall_after`] is a stall. While it lasts, [`Stats::stalled`] says so to any
//! thread that asks for [`Log::stats`]: what the log waits for, on which device, for how long and with how much. `tracing`
//! tells of each twice, as warnings: when it has been one for too long, and when it is over. Neither depends on the threads
//! that hang. Recovery, before the log is handed out, is not watched.
//!
//! # Where things are
//!
//! | module | what | public |
//! |---|---|---|
//! | [`mod@format`] | bytes to values and back; the specification of the files | yes |
//! | `engine` | the decisions, without I/O, clock or threads | no |
//! | [`disk`] | a directory of files and the drivers that write to it | yes |
//! | `segment` | segments on a disk: recovery, spares, reading | no |
//! | `snapshot` | snapshots of a state machine, beside the log: [`FileSnapshots`] | its items |
//! | `log` | the handle, the writer thread and its helper: [`Log`] | its items |
//! | [`machine`] | what the entries mean: [`StateMachine`] and two of them; what drives them: [`Driver`] | yes |
//! | `store` | a durable key-value store: [`KvStore`] | its items |
#![cfg_attr(
    any(test, feature = "sim"),
    doc = "| [`sim`] | a simulated disk that loses what a real one may lose | feature `sim` |"
)]
#![cfg_attr(feature = "openraft", doc = "| [`raft`] | the store of an openraft node | feature `openraft` |")]
//!
//! # Features
//!
//! - `openraft`: `ringwal::raft`, the log, a machine and its snapshots as the store of a node of an openraft cluster.
//! - `sim`: the simulated disk, the crash explorer, and a kit with which a program that embeds the log crash-tests its own
//!   state machine and its own recovery, for tests of this crate and of such programs.
#![deny(missing_docs)]

// The tests of the whole stack name this crate as its users do; its own tests take them in, to plant mistakes under them.
#[cfg(test)]
extern crate self as ringwal;

mod block_on;
mod config;
pub mod disk;
mod engine;
mod entry;
mod error;
pub mod format;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod log;
mod log_storage;
pub mod machine;
mod mem_log;
mod plant;
mod priority;
#[cfg(feature = "openraft")]
pub mod raft;
mod segment;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod snapshot;
mod stats;
mod store;
mod sync;

pub use config::{Config, Durability, IoChoice, Verify, Wait};
pub use engine::stall::Stage;
pub use entry::{EntryRef, LogEntry};
pub use error::{Error, Result};
pub use log::{
    Batch, Entries, Event, EventStream, Log, LogState, Pending, SegmentInfo, SegmentRole, Subscription, Upto,
};
pub use log_storage::LogStorage;
pub use machine::{
    Driver, DriverConfig, DriverError, DriverReport, DriverStats, KvOp, MachineFailure, Proposed, StateImage,
    StateMachine,
};
pub use mem_log::MemLog;
pub use segment::recover::RecoveryReport;
pub use snapshot::{
    FileSnapshots, MemSnapshots, Snapshot, SnapshotError, SnapshotId, SnapshotImporter, SnapshotManager,
    SnapshotOptions, SnapshotReader, SnapshotWriter,
};
pub use stats::{Stall, Stats};
pub use store::{KvStore, Storage, StoreConfig, StoreError, Swap};

/// The README's code compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
