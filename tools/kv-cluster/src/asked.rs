//! SIGTERM and Ctrl-C: being asked to stop.
//!
//! Invariant: from [`Asked::listen`] on, neither ends the process by itself. So listen before telling anybody that they
//! may ask.

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Hears of it.
pub(crate) struct Asked {
    terminate: Signal,
    interrupt: Signal,
}

impl Asked {
    /// Begins to listen.
    pub(crate) fn listen() -> Result<Asked> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Asked { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Waits until somebody asked, also before this call.
    pub(crate) async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
