//! Ctrl-C: the first one asks the job to stop and clean up after itself, the second one stops at once.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use signal_hook::consts::SIGTERM;
use signal_hook::flag;

static ASKED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// The error of a job that was asked to stop.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Starts to listen. Where that is refused, Ctrl-C simply ends the process, as ever.
pub(crate) fn listen() {
    let installed = ctrlc::set_handler(|| {
        if ASKED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    });
    drop(installed);
}

/// Starts to listen to SIGTERM as well, which is how supervisors ask: for jobs that have something to say when they stop.
pub(crate) fn listen_to_supervisors() {
    const EXIT_CODE: i32 = 130;
    // In this order: the second one finds what the first one left.
    let installed = flag::register_conditional_shutdown(SIGTERM, EXIT_CODE, ASKED.clone())
        .and_then(|_| flag::register(SIGTERM, ASKED.clone()));
    drop(installed);
}

/// An error as soon as someone asked to stop.
pub(crate) fn check() -> Result<(), Interrupted> {
    if ASKED.load(Ordering::Relaxed) { Err(Interrupted) } else { Ok(()) }
}
