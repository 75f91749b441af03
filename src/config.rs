//! Settings of a log: each with its meaning, unit, default and bounds, checked as a whole before anything is touched.
//!
//! Two settings belong to the directory and not to the handle: the segment size (fixed when the log is created) and
//! the block size (fixed for each segment when it is made). Everything else may differ from one open to the next.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::format::segment::SEGMENT_BLOCKS_MIN;

/// When an append is acknowledged and what an acknowledgement is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Durability {
    /// Acknowledge only what survives power loss. The default, and the only mode that loses nothing.
    #[default]
    Sync,
    /// Acknowledge what is written and readable by another process; sync within the given time. **Power loss loses up
    /// to that much time of acknowledged appends**; a killed process loses nothing.
    Interval(Duration),
    /// Acknowledge what is written and readable by another process; sync when a segment is full, at `sync()` and at
    /// close. **Power loss loses whatever was acknowledged since**; a killed process loses nothing.
    None,
}

/// How threads wait for something that is about to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Wait {
    /// Sleep in the kernel at once: cheapest for the machine.
    #[default]
    Park,
    /// Spin before sleeping: saves the wake-up where a core is to spare. The writer spins at most this long for more to
    /// do. A caller spins through a write that lately took up to four times this, and this much beyond; where writes take
    /// longer, it sleeps until shortly before the end is due. A spinning thread offers its CPU to others every few
    /// microseconds.
    Spin(Duration),
}

/// Which driver carries the writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum IoChoice {
    /// io_uring where it is allowed and the file system takes non-blocking direct writes, else plain system calls.
    #[default]
    Auto,
    /// io_uring, or an error where it is barred.
    Uring,
    /// Plain system calls.
    Syscall,
}

/// How much an open verifies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Verify {
    /// Only the last segments: everything whose durability no later segment proves.
    #[default]
    Tail,
    /// Every frame of every segment.
    Full,
}

/// Settings of a [`Log`](crate::Log). Start from [`Config::default`] and change what you need.
///
/// ```
/// use ringwal::Config;
/// let config = Config::default().segment_bytes(16 << 20).frames_in_flight(2);
/// config.validate().unwrap();
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub(crate) segment_bytes: u64,
    pub(crate) block_bytes: Option<u32>,
    pub(crate) durability: Durability,
    pub(crate) frames_in_flight: usize,
    pub(crate) frame_bytes_max: u64,
    pub(crate) in_flight_bytes_max: u64,
    pub(crate) queue_bytes_max: u64,
    pub(crate) tail_cache_bytes: u64,
    pub(crate) spare_segments: usize,
    pub(crate) linger: Duration,
    pub(crate) wait: Wait,
    pub(crate) io: IoChoice,
    pub(crate) idle_mark_after: Duration,
    pub(crate) stall_after: Duration,
    pub(crate) lock_wait: Duration,
    pub(crate) first_index: u64,
    pub(crate) verify: Verify,
    pub(crate) writer_cpu: Option<usize>,
    pub(crate) write_in_place: bool,
    pub(crate) thread_name: String,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            segment_bytes: 64 << 20,
            block_bytes: None,
            durability: Durability::Sync,
            frames_in_flight: 4,
            frame_bytes_max: 1 << 20,
            in_flight_bytes_max: 8 << 20,
            queue_bytes_max: 64 << 20,
            tail_cache_bytes: 32 << 20,
            spare_segments: 1,
            linger: Duration::ZERO,
            wait: Wait::Park,
            io: IoChoice::Auto,
            idle_mark_after: Duration::from_secs(1),
            stall_after: Duration::from_secs(1),
            lock_wait: Duration::from_secs(5),
            first_index: 1,
            verify: Verify::Tail,
            writer_cpu: None,
            write_in_place: false,
            thread_name: "ringwal".into(),
        }
    }
}

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $type:ty,)*) => {
        $($(#[$doc])* #[must_use] pub fn $name(mut self, $name: $type) -> Config { self.$name = $name; self })*
    };
}

impl Config {
    setters! {
        /// Size of a segment file in bytes: default 64 MiB, at least 24 blocks, at most 4 GiB less one block, a
        /// multiple of the block size. Fixed when the log is created: an open of an existing log ignores this setting
        /// and keeps the size found on disk. It bounds the largest batch.
        segment_bytes: u64,
        /// Block size in bytes: a power of two from 512 to 65536. `None` (the default) takes 4096 or the device's
        /// physical block where that is larger. A smaller one than the physical block is refused. Fixed per segment:
        /// an existing segment keeps its own, new segments take this one.
        block_bytes: Option<u32>,
        /// What an acknowledgement is worth: default [`Durability::Sync`].
        durability: Durability,
        /// How many frames may be written at once: default 4, from 1 to 64.
        frames_in_flight: usize,
        /// Size in bytes at which a frame takes no further batch: default 1 MiB, at least one block. A larger batch
        /// goes in a frame of its own. No append waits behind more than this times the frames in flight.
        frame_bytes_max: u64,
        /// Bytes that may be in flight to the device at once: default 8 MiB. One frame may always be in flight.
        in_flight_bytes_max: u64,
        /// Bytes that may be accepted and not yet acknowledged: default 64 MiB. Beyond, `append` waits and
        /// `try_submit` returns [`Error::Busy`]. One batch may always be queued.
        queue_bytes_max: u64,
        /// Bytes of acknowledged payloads kept in memory for readers: default 32 MiB; what is not yet durable is
        /// always kept and counts against the queue instead.
        tail_cache_bytes: u64,
        /// Segments kept prepared ahead of the one that is written: default 1, from 1 to 8.
        spare_segments: usize,
        /// How long the first append of an idle log waits for company: default zero (arrivals gather by themselves
        /// while a write is in flight), at most 1 s.
        linger: Duration,
        /// How callers and the writer thread wait: default [`Wait::Park`].
        wait: Wait,
        /// Which driver writes: default [`IoChoice::Auto`].
        io: IoChoice,
        /// Idle time after which a mark proves the last entries durable: default 1 s, at least 1 ms.
        idle_mark_after: Duration,
        /// How long the disk may take for one operation before that is a stall, which
        /// [`Stats::stalled`](crate::Stats::stalled) shows while it lasts and `tracing` tells of when it begins and when it
        /// is over: default 1 s, at least 1 ms; [`Duration::MAX`] for never.
        stall_after: Duration,
        /// How long an open waits for the locks of a writer that is going away: default 5 s.
        lock_wait: Duration,
        /// Index of the first entry that brings none, in a log without entries and without a compaction point:
        /// default 1. An entry with an explicit index may start an empty log anywhere.
        first_index: u64,
        /// How much an open verifies: default [`Verify::Tail`].
        verify: Verify,
        /// The CPU that the writer thread is bound to: default `None`, any. Worth trying where the application binds its
        /// own threads elsewhere. An open fails if this process may not use that CPU.
        writer_cpu: Option<usize>,
        /// Whether a batch that is accepted while the log is idle is written at once, by its caller, on the caller's thread:
        /// default `false`. The call then blocks until the device has answered, **calls that return futures too**, and
        /// callbacks of [`Log::submit_with`](crate::Log::submit_with) run before it returns, while the caller holds whatever
        /// locks it holds. It saves waking the writer thread and being woken by it, which costs as much as half a write of a
        /// fast device: for one producer that can do nothing else meanwhile. What comes while a caller writes gathers, and is
        /// written by the log's own thread. Writes are plain system calls, whatever [`Config::io`] says. Needs
        /// [`Durability::Sync`] and no linger.
        write_in_place: bool,
    }

    /// Which driver is wanted, as far as settings decide it.
    pub(crate) fn io_choice(&self) -> IoChoice {
        if self.write_in_place { IoChoice::Syscall } else { self.io }
    }

    /// What the names of the log's threads begin with, so that the threads of several logs can be told apart: default
    /// `ringwal`, as in `ringwal-writer`. From 1 to 8 bytes without a zero byte, since the kernel keeps 15.
    #[must_use]
    pub fn thread_name(mut self, thread_name: impl Into<String>) -> Config {
        self.thread_name = thread_name.into();
        self
    }

    /// Checks that every setting is in its range and that they fit together.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] naming the setting, its value and its bounds.
    pub fn validate(&self) -> Result<()> {
        let block = u64::from(self.block_bytes.unwrap_or(4096));
        check(block.is_power_of_two() && (512..=65536).contains(&block), || {
            format!("block_bytes is {block}: it must be a power of two from 512 to 65536")
        })?;
        check(self.segment_bytes.is_multiple_of(block), || {
            format!("segment_bytes is {}: it must be a multiple of the block size {block}", self.segment_bytes)
        })?;
        let (low, high) = (SEGMENT_BLOCKS_MIN * block, (1u64 << 32) - block);
        check((low..=high).contains(&self.segment_bytes), || {
            format!("segment_bytes is {}: it must be from {low} to {high} with blocks of {block}", self.segment_bytes)
        })?;
        check((1..=64).contains(&self.frames_in_flight), || {
            format!("frames_in_flight is {}: it must be from 1 to 64", self.frames_in_flight)
        })?;
        check((block..=1 << 30).contains(&self.frame_bytes_max), || {
            format!("frame_bytes_max is {}: it must be from one block ({block}) to 1 GiB", self.frame_bytes_max)
        })?;
        check((1..=8).contains(&self.spare_segments), || {
            format!("spare_segments is {}: it must be from 1 to 8", self.spare_segments)
        })?;
        check(self.linger <= Duration::from_secs(1), || {
            format!("linger is {:?}: it must be at most 1 s", self.linger)
        })?;
        check(self.idle_mark_after >= Duration::from_millis(1), || {
            format!("idle_mark_after is {:?}: it must be at least 1 ms", self.idle_mark_after)
        })?;
        check(self.stall_after >= Duration::from_millis(1), || {
            format!("stall_after is {:?}: it must be at least 1 ms", self.stall_after)
        })?;
        check(self.first_index <= crate::format::INDEX_MAX, || {
            format!("first_index is {}: it must be at most {}", self.first_index, crate::format::INDEX_MAX)
        })?;
        check((1..=8).contains(&self.thread_name.len()) && !self.thread_name.contains('\0'), || {
            format!("thread_name is {:?}: it must have from 1 to 8 bytes and no zero byte", self.thread_name)
        })?;
        check(!self.write_in_place || self.durability == Durability::Sync && self.linger.is_zero(), || {
            "write_in_place is set: durability must be `Sync`, and linger zero".into()
        })?;
        match self.durability {
            Durability::Interval(every) if every.is_zero() => {
                Err(Error::Config("Durability::Interval is zero: use Durability::Sync".into()))
            }
            _ => Ok(()),
        }
    }
}

fn check(holds: bool, message: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::Config(message())) }
}
