//! A test that cannot run here says so, and is counted: a suite that silently does less proves less.

use std::env;
use std::fs::File;
use std::io::Write;
use std::thread;

/// The environment names the file that collects what was skipped, a line for each.
const LIST: &str = "RINGWAL_SKIPS";

/// Says of the test that calls this, or of a part of it, that it is skipped, and why.
pub(crate) fn skip(why: impl std::fmt::Display) {
    let thread = thread::current();
    let line = format!("{}: {why}", thread.name().unwrap_or("a test"));
    println!("skipped: {line}");
    let Some(list) = env::var_os(LIST) else { return };
    let mut list = File::options().create(true).append(true).open(list).expect("the list of skips can be written");
    // One write for a line: other tests write to the same file.
    list.write_all(format!("{line}\n").as_bytes()).expect("the list of skips can be written");
}
