//! A simulated disk, for testing what survives: writes and durable bytes kept apart, completions in any order,
//! crashes into any legal image, faults and damage by rule. Everything follows from one seed.
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
//! | create, rename, remove | each on its own kept or undone, until a directory sync | yes |
//! | what a failed sync should have covered | any subset, whatever syncs follow | yes |
//! | lock | no | only while a write of that open file is queued |
//!
//! Deliberately unknown: the page cache and its coherence with direct access, sub-directories, media that lose what
//! was durable (that is what the damage calls are for), and how a real file system orders its journal: the simulated
//! directory forgets in any combination.
//!
//! # The explorer
//!
//! [`explore`] lives through random histories of a log on such a disk, crashes them everywhere and checks the promises.
//! [`LocalLog`] is the log it drives: all of it in the caller's thread, a step at a time.
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
mod fault;
mod history;
mod judge;
mod local;
mod medium;
mod model;
#[cfg(test)]
mod naive;
mod portray;
mod rng;
mod shrink;
mod state;
mod tale;
#[cfg(test)]
mod tests;
mod trace;

pub use class::{Class, UNIT_BYTES};
pub use crash::{CrashPoint, Fates, Landing, Loose, LooseEnd};
pub use disk::{InFlight, Mode, OpId, SimDisk, SimOptions};
pub use explore::{RealCheck, Summary, Violation, explore, explore_until, explore_with};
pub use fault::{Counters, FaultRule, OpKind};
pub use local::{Contents, LocalLog};
pub use rng::Rng;
