//! What is going on, on standard error: a live bar on a terminal, a plain line a second elsewhere.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Shows one phase of a job.
pub(crate) struct Progress {
    bar: ProgressBar,
    phase: &'static str,
    total: u64,
    last_line: Instant,
}

impl Progress {
    /// Starts a phase of `total` steps.
    pub(crate) fn start(phase: &'static str, total: u64) -> Progress {
        let bar = ProgressBar::new(total);
        if let Ok(style) = ProgressStyle::with_template("{prefix} {wide_bar} {human_pos}/{human_len} {msg}") {
            bar.set_style(style);
        }
        bar.set_prefix(phase);
        let progress = Progress { bar, phase, total, last_line: Instant::now() };
        if progress.bar.is_hidden() {
            eprintln!("{phase} ...");
        }
        progress.bar.tick();
        progress
    }

    /// So many steps are done.
    pub(crate) fn at(&mut self, position: u64, note: impl FnOnce() -> String) {
        if !self.bar.is_hidden() {
            self.bar.set_message(note());
            self.bar.set_position(position);
        } else if self.last_line.elapsed() >= Duration::from_secs(1) {
            eprintln!("{} {position}/{} {}", self.phase, self.total, note());
            self.last_line = Instant::now();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
