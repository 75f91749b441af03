//! io_uring barred, as containers and limits do it: the log says why, system calls carry its writes, and they pass the
//! tests that io_uring passes.
//!
//! This file has other files of tests in it. Each test here runs this very program once more where io_uring is barred,
//! with those of their tests that use a real disk.

#![allow(clippy::duplicate_mod, reason = "the files that are included bring along what they share")]

// They run here unbarred as well, which costs little and shows that they pass at all in this program.
#[path = "api.rs"]
mod api;
#[path = "durability.rs"]
mod durability;
#[path = "read_only.rs"]
mod read_only;
#[path = "reads.rs"]
mod reads;
#[path = "common/skip.rs"]
mod skip;
#[path = "subscribe.rs"]
mod subscribe;

use std::env;
use std::process::{Command, Output};
use std::thread;

use libc::{ENOSYS, EPERM, SYS_io_uring_enter, SYS_io_uring_register, SYS_io_uring_setup};
use ringwal::disk::IoMode;
use ringwal::{Config, Error, IoChoice, Log};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
use skip::skip;

/// The modules whose tests the barred process runs.
const MODULES: [&str; 5] = ["api::", "durability::", "read_only::", "reads::", "subscribe::"];

/// Names the words that the reason for system calls must have in it, to the barred process.
const REASON: &str = "RINGWAL_BARRED";

/// What that process says where the bar bars nothing.
const NOT_BARRED: &str = "io_uring works here all the same";

/// A bar is put up by a thread for itself and whatever it starts.
type Bar = fn();

/// Has system calls answered with an error.
fn answer(calls: &[i64], errno: i32) {
    let rules = calls.iter().map(|&call| (call, Vec::new())).collect();
    let arch = env::consts::ARCH.try_into().expect("seccomp knows this machine");
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno as u32), arch).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    apply_filter(&program).unwrap();
}

/// Runs this program's tests of these names behind a bar.
fn run(bar: Bar, reason: &str, names: &[&str]) -> Output {
    let mut command = Command::new("sh");
    // A limit belongs to a process and not to a thread, so the new one lowers it for itself.
    let lower = if reason.contains("MEMLOCK") { "ulimit -l 0" } else { ":" };
    command.args(["-c", &format!("{lower} && exec \"$0\" \"$@\"")]).arg(env::current_exe().unwrap());
    command.args(names).args(["--include-ignored", "--nocapture"]).env(REASON, reason);
    let run = move || {
        bar();
        command.output().unwrap()
    };
    thread::spawn(run).join().unwrap()
}

/// The barred process passes everything, and knows why it uses system calls.
fn passes(bar: Bar, reason: &str) {
    let first = said(&run(bar, reason, &["the_process_where_it_is_barred"]));
    if first.contains(NOT_BARRED) {
        return skip(format!("{NOT_BARRED}: {reason}"));
    }
    let names = [&["the_process_where_it_is_barred"], &MODULES[..]].concat();
    let said = said(&run(bar, reason, &names));
    let passed = said.lines().filter(|line| line.starts_with("test ") && line.ends_with("... ok")).count();
    assert!(passed > 50, "only {passed} tests ran:\n{said}");
}

fn said(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("the_process_where_it_is_barred ... "), "it was not asked:\n{said}");
    said
}

/// Not a test of its own: what the barred process does first.
#[test]
#[ignore = "the process in which io_uring is barred by the other tests"]
fn the_process_where_it_is_barred() {
    let Ok(reason) = env::var(REASON) else { return println!("nobody asked for it") };
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let small = Config::default().segment_bytes(24 * 4096);
    let refused = match Log::open(dir.path(), small.clone().io(IoChoice::Uring)) {
        Err(error) => error,
        Ok(_) => return println!("{NOT_BARRED}"),
    };
    assert!(matches!(refused, Error::Io { .. }) && refused.to_string().contains(&reason), "{refused}");
    let (log, _) = Log::open(dir.path(), small).unwrap();
    let IoMode::Syscall { reason: found } = log.io_mode() else { panic!("{}", log.io_mode()) };
    assert!(found.contains(&reason), "{found}");
    assert_eq!(log.append("durable all the same").unwrap(), 1);
    log.close().unwrap();
}

#[test]
fn a_filter_that_forbids_io_uring_leaves_system_calls() {
    let all = || answer(&[SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register], EPERM);
    passes(all, "barred, as a rule by a container's seccomp filter");
}

#[test]
fn a_filter_that_hides_io_uring_leaves_system_calls() {
    let all = || answer(&[SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register], ENOSYS);
    passes(all, "no io_uring, or a seccomp filter hides it");
}

#[test]
fn a_filter_that_lets_a_ring_be_made_and_forbids_its_use_leaves_system_calls() {
    passes(|| answer(&[SYS_io_uring_enter], EPERM), "barred, as a rule by a container's seccomp filter");
}

/// Kernels from 5.12 to 6.13 charge no ring to the limit; whoever may lock memory without limit meets none.
#[test]
fn a_low_limit_of_locked_memory_leaves_system_calls() {
    let drop_capability = || {
        // Only those who have it need to lose it, and may.
        let _ = remove_capability_from_bounding_set(CapabilitySet::IPC_LOCK);
    };
    passes(drop_capability, "RLIMIT_MEMLOCK");
}
