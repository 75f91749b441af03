//! Ctrl-C: the run ends after the slice that is going on, and the working directory is removed as at any other end.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};

static WAS_ASKED: AtomicBool = AtomicBool::new(false);

/// Listens from now on.
pub(crate) fn listen() -> Result<()> {
    ctrlc::set_handler(|| WAS_ASKED.store(true, Ordering::Relaxed)).context("cannot listen for Ctrl-C")
}

/// An error once the run was asked to end.
pub(crate) fn check() -> Result<()> {
    ensure!(!WAS_ASKED.load(Ordering::Relaxed), "interrupted");
    Ok(())
}
