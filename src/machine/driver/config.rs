//! Settings of a driver: the log's, the snapshots', and when to take and to drop snapshots.

use crate::config::Config;
use crate::error::{Error, Result};
use crate::snapshot::{SnapshotError, SnapshotOptions};

/// Settings of a [`Driver`](super::Driver). Start from [`DriverConfig::default`] and change what you need.
///
/// ```
/// use ringwal::{Config, DriverConfig};
/// let config = DriverConfig::default()
///     .log(Config::default().segment_bytes(16 << 20))
///     .snapshot_every_entries(Some(1_000_000))
///     .keep_snapshots(3);
/// config.validate()?;
/// # Ok::<(), ringwal::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct DriverConfig {
    pub(super) log: Config,
    pub(super) snapshots: SnapshotOptions,
    pub(super) snapshot_every_entries: Option<u64>,
    pub(super) snapshot_every_bytes: Option<u64>,
    pub(super) keep_snapshots: usize,
    pub(super) log_reaches_back_to: usize,
    pub(super) fall_back: bool,
    pub(super) install_over_entries: bool,
}

impl Default for DriverConfig {
    fn default() -> DriverConfig {
        DriverConfig {
            log: Config::default(),
            snapshots: SnapshotOptions::default(),
            snapshot_every_entries: None,
            snapshot_every_bytes: Some(1 << 30),
            keep_snapshots: 2,
            log_reaches_back_to: 1,
            fall_back: false,
            install_over_entries: false,
        }
    }
}

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $type:ty,)*) => {
        $($(#[$doc])* #[must_use] pub fn $name(mut self, $name: $type) -> DriverConfig { self.$name = $name; self })*
    };
}

impl DriverConfig {
    setters! {
        /// Settings of the log. Its `first_index` must be 1: index 0 is the state that the machine began with.
        log: Config,
        /// How snapshots are written.
        snapshots: SnapshotOptions,
        /// Take a snapshot in the background once so many entries were applied since the last one: default `None`,
        /// never for this reason; at least 1.
        snapshot_every_entries: Option<u64>,
        /// Take a snapshot in the background once commands of so many bytes, as encoded, were applied since the last
        /// one: default 1 GiB; at least 1; `None` for never. It bounds how much an open has to replay.
        snapshot_every_bytes: Option<u64>,
        /// How many snapshots are kept: default 2, at least 1.
        keep_snapshots: usize,
        /// Which snapshot, counted from the newest, the log still reaches back to after a checkpoint: default 1, the
        /// newest itself; at most `keep_snapshots`. With 1, the log is as short as can be, and older snapshots serve to
        /// look at past states. With 2, a damaged newest snapshot can be got over by [`fall_back`](Self::fall_back), at
        /// the price of a log that holds the entries since the one before.
        log_reaches_back_to: usize,
        /// Where the newest snapshot is damaged, open with the newest intact one that the log still reaches back to,
        /// rather than with an error: default `false`. No state is lost that way, since the log has all that came
        /// after. The damaged file, once a second look past the page cache says the same, is set aside under another
        /// name. A device that fails to read is an error all the same: it says nothing of the file.
        fall_back: bool,
        /// Where a snapshot of a peer is ahead of a log with entries that are in no intact snapshot of its own, install
        /// it and give these entries up, rather than fail with [`DriverError::Ahead`](super::DriverError::Ahead):
        /// default `false`. For a replica whose consensus says that the snapshot has them, or that they do not count. A
        /// log without such entries takes a snapshot in any case.
        install_over_entries: bool,
    }

    /// Checks that every setting is in its range and that they fit together.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] naming the setting, its value and its bounds.
    pub fn validate(&self) -> Result<()> {
        self.log.validate()?;
        self.snapshots.validate().map_err(|error| match error {
            SnapshotError::Config(what) => Error::Config(what),
            other => Error::Config(other.to_string()),
        })?;
        check(self.log.first_index == 1, || {
            let first_index = self.log.first_index;
            format!("first_index is {first_index}: a driver's log begins at 1")
        })?;
        check(self.snapshot_every_entries != Some(0), || "snapshot_every_entries is 0: use None for never".into())?;
        check(self.snapshot_every_bytes != Some(0), || "snapshot_every_bytes is 0: use None for never".into())?;
        check(self.keep_snapshots >= 1, || "keep_snapshots is 0: it must be at least 1".into())?;
        check((1..=self.keep_snapshots).contains(&self.log_reaches_back_to), || {
            let (reach, keep) = (self.log_reaches_back_to, self.keep_snapshots);
            format!("log_reaches_back_to is {reach}: it must be from 1 to keep_snapshots ({keep})")
        })
    }

    /// Whether so much since the last snapshot asks for another.
    pub(super) fn is_due(&self, entries: u64, bytes: u64) -> bool {
        self.snapshot_every_entries.is_some_and(|every| entries >= every)
            || self.snapshot_every_bytes.is_some_and(|every| entries > 0 && bytes >= every)
    }
}

fn check(holds: bool, message: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::Config(message())) }
}
