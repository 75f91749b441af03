//! The torture of a cluster of real processes.

mod checker;
mod history;
mod ledger;
mod proxy;
mod schedule;
