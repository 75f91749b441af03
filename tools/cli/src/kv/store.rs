//! A store for the commands that write: the only place where one is opened for it.
//!
//! One-shot commands take no snapshot on their own: it would be broken off when they end. A load may take some.

use anyhow::{Context, Result};
use ringwal::machine::{KvCommand, KvResponse, KvStateMachine};
use ringwal::{Config, Driver, DriverConfig};

use super::args::{NewStoreArgs, StoreArgs};
use crate::failure::{Missing, from_driver};
use crate::progress::Busy;

pub(crate) type Store = Driver<KvStateMachine>;

/// Opens the store, or makes it where there is none.
pub(crate) fn open_or_make(args: &NewStoreArgs, config: DriverConfig) -> Result<Store> {
    open(&args.store, config.log(Config::default().segment_bytes(args.segment_size)))
}

/// Opens a store that has to be there.
pub(crate) fn open_existing(args: &StoreArgs, config: DriverConfig) -> Result<Store> {
    if is_empty(args) {
        return Err(Missing(format!("there is no store in {}", args.dir.display())).into());
    }
    open(args, config)
}

/// Opens it, and says on standard error if that meant to give a damaged snapshot up.
fn open(args: &StoreArgs, config: DriverConfig) -> Result<Store> {
    let _bar = Busy::start("opening the store");
    let config = config.fall_back(args.fall_back);
    let (store, report) = Driver::open(&args.dir, KvStateMachine::new(), config).map_err(from_driver)?;
    for path in &report.set_aside {
        eprintln!("a damaged snapshot was set aside: {}", path.display());
    }
    Ok(store)
}

/// Does one thing durably, and closes the store.
pub(crate) fn once(store: Store, command: KvCommand) -> Result<KvResponse> {
    let response = store.propose(command).map_err(from_driver)?;
    close(store)?;
    Ok(response)
}

/// Settings of a command that does one thing.
pub(crate) fn one_shot() -> DriverConfig {
    DriverConfig::default().snapshot_every_bytes(None)
}

/// Closes the store, which may still fail.
pub(crate) fn close(store: Store) -> Result<()> {
    store.close().map_err(from_driver).context("the store did not close well")
}

fn is_empty(args: &StoreArgs) -> bool {
    std::fs::read_dir(&args.dir)
        .map_or_else(|error| error.kind() == std::io::ErrorKind::NotFound, |mut entries| entries.next().is_none())
}
