//! A simulated disk, for testing what survives: writes and durable bytes kept apart, completions in any order,
//! crashes into any legal image, faults and damage by rule or by chance. Everything follows from seeds.
//!
//! [`SimDisk`] implements [`Disk`](crate::disk::Disk) and hands out simulated files and drivers, so the whole log runs
//! over it, with threads ([`Mode::Random`], [`Mode::Held`]) or stepped by an explorer on one thread
//! ([`Mode::Manual`]). [`SimDisk::crash_point`] freezes a moment; a [`CrashPoint`] makes images of it.
//!
//! # What a crash may leave
//!
//! | what | survives a power failure | survives a kill |
//! |---|---|---|
//! | completed write of a durable [`Segment`](crate::disk::Access::Segment) | all of it, and a size that shows it | yes |
//! | any other completed write | any subset of its 512-byte units, until a sync that began after it completed | yes |
//! | write in flight | any subset of its units | any subset, or still queued |
//! | size of a file that grew or was emptied | either size, independently of the bytes, until a sync | yes |
//! | extents: bytes in space that was only allocated | as any write: a unit whose extent is lost reads as zeros | yes |
//! | create, rename, remove | each on its own kept or undone, until a directory sync | yes |
//! | what a failed sync should have covered | any subset, whatever syncs follow | yes |
//! | lock | no | only while a write of that open file is queued |
//!
//! Deliberately unknown: the page cache and its coherence with direct access, sub-directories, old content of other files
//! in fresh extents (ext4, XFS and Btrfs show zeros), interrupted system calls, and how a real file system orders its
//! journal: the simulated directory forgets in any combination.
//!
//! # What can go wrong, and what a log can promise then
//!
//! By rule ([`SimDisk::fail`]: the n-th operation of a kind, once or for good, on one file or any) or by chance
//! ([`SimDisk::fail_by_chance`]: rates and a seed). Both count operations, so that a failing run fails again;
//! [`SimDisk::struck`] tells what happened.
//!
//! | fault | what it does | what a log can promise |
//! |---|---|---|
//! | [`FaultRule::io_error`], [`FaultRule::new`] | any kind of call fails; of a write, any units may land | nothing acknowledged is lost; a failed write or sync is final; a failed open changes nothing |
//! | [`FaultRule::no_space`], [`SimDisk::set_capacity`] | calls that need room fail | the same; an error before an index is given; it goes on once there is room |
//! | [`FaultRule::short_write`] | a write transfers a part, and goes on as the real drivers do, with a crash point between | nothing shows; if it gets nowhere, it is a failed write |
//! | [`FaultRule::slow`], [`FaultRule::held`] | a write or sync completes after others, or when told | acknowledgements wait, and keep their order |
//! | [`FaultRule::dropping_pages`], [`SimDisk::drop_failed_pages`] | after a failed sync, reads show the old content; without it, the new, which no later sync makes durable | as for a failed sync: what recovery shows it first writes again |
//! | [`FaultRule::bit_rot`], [`SimDisk::rot_bit`] | a bit is wrong on the medium | an error, never other data; what nothing witnesses (the last frames before a crash) may be taken for torn |
//! | [`FaultRule::bit_error`] | a bit is wrong on the way, once | it is read again, or an error; nothing is cut, nothing written back |
//! | [`FaultRule::misdirected`] write | it lands elsewhere: its own place keeps the old bytes, other bytes are overwritten | as for rot, at both places |
//! | [`FaultRule::misdirected`] read | another place's bytes, once | as for a bit error; old bytes of the very same place (a lost write, or the copy that a recovery kept of what it cut) an entry read alone cannot tell from its own |
//! | [`SimDisk::edit_file`] and the other damage | any change of any file | a value or a typed error |
//!
//! Under lies no log can keep what it acknowledged: only one copy exists. It can refuse to call something else that copy.
//!
//! # The explorer
//!
//! [`explore`] lives through random histories of a log on such a disk, crashes them everywhere and checks the promises.
//! [`LocalLog`] is the log it drives: all of it in the caller's thread, a step at a time.
//!
//! # Programs that embed the log
//!
//! [`crash_everywhere`] does the same to a program of yours: it runs your state machine on such a disk, crashes it at
//! every moment at which the disk changes, and lets your own recovery face every image. [`SimDisk::open_log`] gives it a
//! log without threads, with the calls of [`Log`](crate::Log), and [`LogStorage`](crate::LogStorage) is implemented for
//! it, too; or give the disk to [`Log::open_on`](crate::Log::open_on). `tools/examples/crash_test.rs` is a whole one.
//!
//! # Example
//!
//! ```
//! use ringwal::disk::{Access, Disk};
//! use ringwal::sim::{Class, SimDisk};
//!
//! let disk = SimDisk::manual(1);
//! let file = disk.open("a", Access::Create)?;
//! file.write_at(b"kept", 0)?;
//! file.sync()?;
//! disk.sync_dir()?;
//! file.write_at(b"lost", 4)?;
//!
//! let image = disk.crash(|_loose_end| Class::Absent);
//! assert_eq!(image.read_file("a")?, b"kept");
//! assert_eq!(disk.read_file("a")?, b"keptlost");
//! # std::io::Result::Ok(())
//! ```

mod class;
mod crash;
mod damage;
mod disk;
mod draw;
mod driver;
mod exhaust;
mod explore;
mod face;
mod fault;
#[cfg(test)]
mod fault_tests;
mod history;
mod judge;
mod kit;
#[cfg(test)]
mod kit_tests;
mod local;
mod medium;
mod model;
#[cfg(test)]
mod naive;
mod portray;
mod rng;
mod shrink;
#[cfg(test)]
mod stack_tests;
mod state;
mod storage;
mod tale;
#[cfg(test)]
mod tests;
mod trace;

pub use class::{Class, UNIT_BYTES};
pub use crash::{CrashPoint, Fates, Landing, Loose, LooseEnd};
pub use disk::{InFlight, Mode, OpId, SimDisk, SimOptions};
#[cfg(feature = "fuzzing")]
pub(crate) use explore::explore_led_by;
pub use explore::{RealCheck, Summary, Violation, explore, explore_until, explore_with};
pub use face::Receipt;
pub use fault::{Counters, Fault, FaultRates, FaultRule, OpKind, Struck};
pub use kit::{CrashFailure, CrashReport, CrashTest, Life, crash_everywhere};
pub use local::{Contents, LocalLog};
#[cfg(feature = "fuzzing")]
pub(crate) use portray::portray;
pub use rng::Rng;
