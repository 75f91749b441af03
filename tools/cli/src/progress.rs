//! What is going on, on standard error: a live bar on a terminal, a plain line a second elsewhere.

use std::borrow::Cow;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// What is over within this shows no bar, and how often a sign of life is given.
const PATIENCE: Duration = Duration::from_millis(300);

/// Shows one phase of a job.
pub(crate) struct Progress {
    bar: ProgressBar,
    /// Nothing is said where there is no terminal.
    is_bar_only: bool,
    phase: &'static str,
    total: u64,
    last_line: Instant,
}

impl Progress {
    /// Starts a phase of `total` steps.
    pub(crate) fn start(phase: &'static str, total: u64) -> Progress {
        let progress = Progress::new(phase, total, "{prefix} {wide_bar} {human_pos}/{human_len} {msg}");
        if progress.bar.is_hidden() {
            say(&format!("{phase} ..."));
        }
        progress.bar.tick();
        progress
    }

    /// Starts a phase that shows a bar on a terminal once it turns out to be long, and says nothing elsewhere: for what
    /// is a part of many short commands.
    pub(crate) fn bar(phase: &'static str, total: u64) -> Progress {
        let mut progress = Progress::new(phase, total, "{prefix} {wide_bar} {percent}% {msg}");
        progress.is_bar_only = true;
        progress
    }

    fn new(phase: &'static str, total: u64, template: &str) -> Progress {
        let bar = ProgressBar::new(total);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(phase);
        Progress { bar, is_bar_only: false, phase, total, last_line: Instant::now() }
    }

    /// So many steps are done.
    pub(crate) fn at(&mut self, position: u64, note: impl FnOnce() -> String) {
        if self.is_bar_only && (self.bar.is_hidden() || self.bar.elapsed() < PATIENCE) {
            return;
        }
        if !self.bar.is_hidden() {
            self.bar.set_message(note());
            self.bar.set_position(position);
        } else if self.last_line.elapsed() >= Duration::from_secs(1) {
            say(&format!("{} {position}/{} {}", self.phase, self.total, note()));
            self.last_line = Instant::now();
        }
    }
}

/// A line on standard error. Nobody there to read it is no reason to stop a job.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Something whose end cannot be foreseen: a sign of life on a terminal, nothing elsewhere.
pub(crate) struct Busy {
    bar: ProgressBar,
}

impl Busy {
    /// Starts it.
    pub(crate) fn start(what: impl Into<Cow<'static, str>>) -> Busy {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
            bar.set_style(style);
        }
        bar.set_message(what);
        if !bar.is_hidden() {
            bar.enable_steady_tick(PATIENCE);
        }
        Busy { bar }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
