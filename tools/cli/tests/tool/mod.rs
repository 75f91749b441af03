//! The real binary, run by tests: with arguments, input, and a directory of its own.
#![allow(dead_code, reason = "each test file uses its part")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringwal"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A store's directory, not there yet, and the commands on it.
pub(crate) struct Place {
    scratch: TempDir,
}

impl Place {
    pub(crate) fn new() -> Place {
        Place { scratch: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap() }
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.scratch.path().join("store")
    }

    /// A file beside the store.
    pub(crate) fn file(&self, name: &str, content: &[u8]) -> String {
        let path = self.scratch.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        on(&self.dir(), arguments)
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Standard output of a run that has to succeed.
    pub(crate) fn ok(&self, arguments: &[&str]) -> Vec<u8> {
        succeeded(arguments, self.run(arguments))
    }

    /// As [`Place::ok`], with this on standard input.
    pub(crate) fn ok_with(&self, arguments: &[&str], input: &[u8]) -> Vec<u8> {
        succeeded(arguments, self.with(arguments, input))
    }

    pub(crate) fn with(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        // It may end without having read everything.
        let writer = thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output
    }

    /// The error of a run that has to fail with this code.
    pub(crate) fn fails(&self, code: i32, arguments: &[&str]) -> String {
        failed(code, arguments, &self.run(arguments))
    }

    /// Sets the lines of `content`, in a store of small segments.
    pub(crate) fn load(&self, content: &[u8]) {
        self.ok_with(&["kv", "load", "-", "--segment-size", "1MiB"], content);
    }

    pub(crate) fn export(&self) -> Vec<u8> {
        self.ok(&["kv", "export"])
    }
}

/// A command on a store.
pub(crate) fn on(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = command(&arguments[..2]);
    command.arg("--dir").arg(dir).args(&arguments[2..]);
    command
}

pub(crate) fn succeeded(arguments: &[&str], output: Output) -> Vec<u8> {
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// What was told of a failure with this code: the last line is the error.
pub(crate) fn failed(code: i32, arguments: &[&str], output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
    let last = error.lines().last().unwrap_or_default();
    assert!(last.starts_with("ringwal: "), "{arguments:?}: {error}");
    last.to_owned()
}

/// Waits until it holds; the limit only keeps a test from hanging.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(120);
    while !holds() {
        assert!(Instant::now() < until, "{what} did not come to hold");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A process that is ended whatever becomes of the test.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
