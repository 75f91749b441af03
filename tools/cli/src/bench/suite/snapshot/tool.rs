//! The `zstd` tool, as a user would run it.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

const NAME: &str = "zstd";

/// The tool's version, or why there is none here.
pub(super) fn version() -> Result<String, String> {
    let output = Command::new(NAME).arg("-V").stdin(Stdio::null()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    match text {
        Ok(text) => Ok(text.trim().trim_matches('*').trim().to_owned()),
        Err(error) => Err(format!("there is no {NAME} here: {error}")),
    }
}

/// Compresses a file into another one on this many threads.
pub(super) fn compress(from: &Path, to: &Path, level: i32, threads: usize) -> Result<Duration> {
    let (level, threads) = (format!("-{level}"), format!("-T{threads}"));
    run(["-q", "-f", &level, &threads].map(OsStr::new).into_iter().chain([from.as_ref(), "-o".as_ref(), to.as_ref()]))
}

/// Decompresses a file to nowhere.
pub(super) fn decompress(file: &Path) -> Result<Duration> {
    run(["-q".as_ref(), "-dc".as_ref(), file.as_ref()])
}

fn run<'a>(args: impl IntoIterator<Item = &'a OsStr>) -> Result<Duration> {
    let start = Instant::now();
    let mut command = Command::new(NAME);
    let status = command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).status();
    let status = status.with_context(|| format!("cannot run {NAME}"))?;
    ensure!(status.success(), "{NAME} failed: {status}");
    Ok(start.elapsed())
}
