//! `ringwal torture` as its users meet it: it finds nothing in a log that works and says what it met, it can be replayed,
//! and it notices a log that somebody damages behind its back.

#[path = "../../../tests/common/skip.rs"]
mod skip;
#[path = "../../../tests/common/throttle.rs"]
mod throttle;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use ringwal::disk::AlignedBuf;
use serde_json::Value;
use skip::skip;
use throttle::Throttle;

fn torture(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringwal"));
    command.arg("torture").args(arguments);
    command
}

/// The JSON of a run that has to find nothing.
fn found_nothing(arguments: &[&str]) -> Value {
    let output = torture(arguments).args(["--json", "-"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_short_exploration_finds_nothing_and_says_what_it_met() {
    let output = torture(&["--seconds", "1", "--jobs", "2"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    assert!(told(&output).starts_with("seed "), "the seed is told first");
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("no promise was broken") && table.contains("crash points"), "{table}");
    assert!(table.lines().all(|line| line.chars().count() <= 120), "{table}");
}

#[test]
fn a_seed_is_replayed_and_one_state_is_one_history() {
    let explored = found_nothing(&["--seed", "77", "--states", "500", "--jobs", "2"]);
    assert_eq!((&explored["seed"], &explored["jobs"]), (&77.into(), &2.into()));
    assert!(explored["states"].as_u64() >= Some(500) && explored["states_per_s"].as_f64() > Some(1.0));
    assert_eq!(explored["states_per_s_of_each_job"].as_array().unwrap().len(), 2);
    let again = found_nothing(&["--seed", "77", "--states", "500", "--jobs", "2"]);
    assert_eq!(explored["met"], again["met"]);
    let one = found_nothing(&["--seed", "77", "--states", "1"]);
    assert_eq!(one["met"]["histories"], 1);
    assert!(one["violations"].as_array().unwrap().is_empty());
}

#[test]
fn a_killed_process_takes_no_acknowledged_batch_along() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let place = dir.path().join("killed");
    let killed = found_nothing(&["--kill9", "--rounds", "12", "--producers", "5", "--dir", place.to_str().unwrap()]);
    let count = |name: &str| killed[name].as_u64().unwrap_or_else(|| panic!("{name} in {killed}"));
    println!("{killed:#}");
    assert_eq!((count("rounds"), count("looked_at_only"), count("verified_in_full")), (12, 4, 2));
    assert!(count("acknowledgements") > 500 && count("entries_compared") > 500);
    assert!(count("truncations") > 20 && count("compactions") > 0 && count("segments") > 10);
    assert!(killed["violation"].is_null() && !place.exists(), "what it made is removed");
}

/// Writes of a killed process that the device still carries out must not land behind the back of the recovery that has
/// read: it waits for them.
#[test]
fn slow_writes_of_a_killed_process_end_before_the_log_is_read() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let throttle = match Throttle::of(dir.path(), 8 << 20) {
        Ok(throttle) => throttle,
        Err(why) => return skip(why),
    };
    // Only theirs: the recovery's own writes are as fast as ever, and would be overtaken.
    let (place, group) = (dir.path().join("slow"), throttle.group().to_str().unwrap());
    let arguments = ["--kill9", "--seed", "2", "--rounds", "30", "--cgroup", group, "--dir", place.to_str().unwrap()];
    let killed = found_nothing(&arguments);
    println!("{killed:#}");
    assert!(killed["opened_beside_the_dying"].as_u64() > Some(2));
    assert!(killed["kills_with_writes_under_way"].as_u64() > Some(1), "there was nothing to wait for");
}

/// The check of the check: blocks are zeroed while it runs, and that must not pass.
#[test]
fn a_log_that_loses_blocks_is_a_broken_promise_and_stays() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let log = dir.path().join("log");
    let arguments = ["--kill9", "--rounds", "1000", "--json", "-", "--dir", dir.path().to_str().unwrap()];
    let mut running = torture(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while running.try_wait().unwrap().is_none() {
        zero_the_first_frames(&log);
    }
    let output = running.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", told(&output));
    assert!(told(&output).contains("A PROMISE WAS BROKEN"), "{}", told(&output));
    let killed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(killed["violation"].is_string() && log.exists());
}

/// Of every segment that is there, behind its header; around the page cache, as the log itself writes.
fn zero_the_first_frames(log: &Path) {
    let zeros = AlignedBuf::zeroed(16 << 10);
    for entry in fs::read_dir(log).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "seg")
            && let Ok(file) = File::options().write(true).custom_flags(libc::O_DIRECT).open(&path)
        {
            // A file that goes away meanwhile is as good as another.
            let _ = file.write_all_at(&zeros, 8192);
        }
    }
}

#[test]
fn options_of_one_kind_of_torture_are_refused_with_the_other() {
    for arguments in [
        &["--rounds", "3"][..],
        &["--dir", "/tmp/x"],
        &["--kill9", "--states", "3"],
        &["--kill9", "--seconds", "3"],
        &["--states", "0"],
        &["--seed", "-1"],
    ] {
        let output = torture(arguments).output().unwrap();
        assert_eq!((output.status.code(), told(&output).lines().count()), (Some(2), 1), "{}", told(&output));
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("mine"), "precious").unwrap();
    let output = torture(&["--kill9", "--dir", dir.path().to_str().unwrap()]).output().unwrap();
    assert!(output.status.code() == Some(1) && told(&output).contains("not empty"), "{}", told(&output));
}
