//! `ringwal kv` as its users meet it: what one process sets another gets, whatever bytes it is; what is not there is not
//! found; a load that stops, or is killed, loses nothing that it told of, and goes on.

#[path = "../../../tests/common/mounted.rs"]
mod mounted;
#[path = "../../../tests/common/skip.rs"]
mod skip;
mod tool;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use ringwal::machine::{KvCommand, KvStateMachine};
use ringwal::sim::Rng;
use ringwal::{Config, Driver, DriverConfig, Log};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tool::{Place, Running, command, eventually, failed, on, succeeded};

const SMALL: [&str; 2] = ["--segment-size", "1MiB"];

fn set(place: &Place, key: &str, value: &str) {
    place.ok(&["kv", "set", key, value, "--segment-size", "1MiB"]);
}

#[test]
fn what_one_process_sets_another_gets() {
    let place = Place::new();
    set(&place, "name", "naïve \\t\\\\ \\xff");
    assert_eq!(place.ok(&["kv", "get", "name"]), "naïve \\t\\\\ \\xff\n".as_bytes());
    assert_eq!(place.ok(&["kv", "get", "name", "--raw"]), b"na\xc3\xafve \t\\ \xff");
    set(&place, "name", "again");
    set(&place, "\\x00", "");
    assert_eq!(place.ok(&["kv", "get", "name"]), b"again\n");
    assert_eq!(place.ok(&["kv", "get", "\\x00"]), b"\n", "an empty value is a value");
    place.ok(&["kv", "delete", "name"]);
    assert_eq!(place.export(), b"\\x00\t\n");
}

#[test]
fn a_value_can_be_any_bytes_of_a_file_or_of_standard_input() {
    let place = Place::new();
    let bytes = (0..=255).chain([0; 100_000]).collect::<Vec<u8>>();
    let file = place.file("value", &bytes);
    place.ok(&["kv", "set", "file", "--from", &file]);
    place.ok_with(&["kv", "set", "input", "--from", "-"], b"line\n");
    assert_eq!(place.ok(&["kv", "get", "file", "--raw"]), bytes);
    assert_eq!(place.ok(&["kv", "get", "input"]), b"line\\n\n");
    place.fails(1, &["kv", "set", "file", "--from", "/nowhere/at/all"]);
    place.fails(2, &["kv", "set", "file"]);
    place.fails(2, &["kv", "set", "file", "value", "--from", &file]);
}

#[test]
fn what_is_not_there_is_not_found() {
    let place = Place::new();
    set(&place, "here", "1");
    assert!(place.fails(4, &["kv", "get", "there\\\\"]).ends_with("there is no key there\\\\"));
    assert!(place.fails(4, &["kv", "delete", "there"]).ends_with("there is no key there"));
    assert_eq!(place.ok(&["kv", "scan", "x"]), b"", "an empty range is an answer");
}

#[test]
fn no_store_is_made_where_one_is_only_looked_for() {
    let place = Place::new();
    let reading: [&[&str]; 4] = [&["kv", "get", "k"], &["kv", "scan"], &["kv", "export"], &["kv", "delete", "k"]];
    for arguments in reading {
        assert!(place.fails(4, arguments).contains("there is no store"), "{arguments:?}");
        assert!(!place.dir().exists());
    }
    fs::create_dir(place.dir()).unwrap();
    for arguments in reading {
        assert!(place.fails(4, arguments).contains("there is no store"), "{arguments:?}");
        assert_eq!(fs::read_dir(place.dir()).unwrap().count(), 0);
    }
    fs::write(place.dir().join("mine"), "precious").unwrap();
    for arguments in reading {
        assert!(place.fails(1, arguments).contains("not a ringwal log"), "{arguments:?}");
    }
    assert!(place.fails(1, &["kv", "set", "k", "v"]).contains("not a ringwal log"));
    assert_eq!(fs::read_dir(place.dir()).unwrap().count(), 1);
    command(&["kv", "get", "k"]).output().map(|output| failed(2, &["no --dir"], &output)).unwrap();
}

#[test]
fn a_log_that_is_no_store_is_left_alone() {
    let place = Place::new();
    let (log, _) = Log::open(place.dir(), Config::default().segment_bytes(1 << 20)).unwrap();
    log.append("an entry of somebody").unwrap();
    log.close().unwrap();
    assert!(place.fails(1, &["kv", "get", "k"]).contains("no machine drives"));
    assert!(place.fails(1, &["kv", "set", "k", "v"]).contains("no machine drives"));
    assert_eq!(Log::open_read_only(place.dir()).unwrap().0.state().last, Some((1, 0)));
}

#[test]
fn a_scan_takes_a_range_a_prefix_and_a_limit() {
    let place = Place::new();
    place.load(b"a\t1\nb\t2\nba\t3\nb\\xff\t4\nc\t5\n");
    let lines = |arguments: &[&str]| String::from_utf8(place.ok(&[&["kv", "scan"], arguments].concat())).unwrap();
    assert_eq!(lines(&[]), "a\t1\nb\t2\nba\t3\nb\\xff\t4\nc\t5\n");
    assert_eq!(lines(&["b"]), "b\t2\nba\t3\nb\\xff\t4\nc\t5\n");
    assert_eq!(lines(&["b", "b\\xff"]), "b\t2\nba\t3\n");
    assert_eq!(lines(&["--prefix", "b"]), "b\t2\nba\t3\nb\\xff\t4\n");
    assert_eq!(lines(&["--limit", "2"]), "a\t1\nb\t2\n");
    assert_eq!(lines(&["c", "a"]), "");
    place.fails(2, &["kv", "scan", "a", "--prefix", "b"]);
}

#[test]
fn a_batch_is_done_as_a_whole_or_not_at_all() {
    let place = Place::new();
    set(&place, "old", "1");
    place.ok_with(&["kv", "batch", "-"], b"set\ta\t1\ndelete\told\nset\tb\t\\n\ndelete\tnever\nset\ta\t2");
    assert_eq!(place.export(), b"a\t2\nb\t\\n\n");
    let output = place.with(&["kv", "batch", "-"], b"delete\ta\nset\tb\nset\tc\t1\n");
    let error = failed(1, &["batch"], &output);
    assert!(error.contains("nothing was changed") && error.contains("line 2, column 6"), "{error}");
    assert_eq!(place.export(), b"a\t2\nb\t\\n\n");
}

/// Lines of keys and values full of what has to be escaped, many keys more than once; and what they come to.
fn hostile(seed: u64, lines: usize) -> (Vec<u8>, Vec<u8>) {
    const SPECIAL: &[u8] = b"\\\t\n\rxnt0 \x00\x1b\x7f\x80\x9b\xc2\xc3\xa9\xe2\xff";
    let mut rng = Rng::new(seed);
    let mut bytes = |most: usize| (0..rng.below(most)).map(|_| SPECIAL[rng.below(SPECIAL.len())]).collect::<Vec<u8>>();
    let mut map = BTreeMap::new();
    let mut text = Vec::new();
    for _ in 0..lines {
        let (key, value) = (bytes(5), bytes(60));
        text.extend_from_slice(&line(&key, &value));
        map.insert(key, value);
    }
    let sorted = map.iter().flat_map(|(key, value)| line(key, value)).collect();
    (text, sorted)
}

/// The line of a key and its value: the format, written down once more.
fn line(key: &[u8], value: &[u8]) -> Vec<u8> {
    let field = |bytes: &[u8]| {
        let mut text = String::new();
        for chunk in bytes.utf8_chunks() {
            for char in chunk.valid().chars() {
                match char {
                    '\\' => text.push_str("\\\\"),
                    '\t' => text.push_str("\\t"),
                    '\n' => text.push_str("\\n"),
                    '\r' => text.push_str("\\r"),
                    char if char.is_control() => {
                        char.to_string().bytes().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
                    }
                    char => text.push(char),
                }
            }
            chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
        }
        text
    };
    format!("{}\t{}\n", field(key), field(value)).into_bytes()
}

#[test]
fn what_is_loaded_is_exported_sorted_whatever_bytes_it_is() {
    let place = Place::new();
    let (text, sorted) = hostile(1, 20_000);
    let file = place.file("lines", &text);
    let report =
        place.ok(&[&["kv", "load", &file, "--batch", "7", "--in-flight", "5", "--json", "-"], &SMALL[..]].concat());
    let report = serde_json::from_slice::<Value>(&report).unwrap();
    assert_eq!((&report["durable_lines"], &report["skipped_lines"]), (&20_000.into(), &0.into()));
    let keys = sorted.iter().filter(|&&byte| byte == b'\n').count();
    assert!(report["keys"] == keys && report["batches"].as_u64() >= Some(20_000 / 7), "{report}");
    assert!(place.export() == sorted, "something else came out");
    let other = Place::new();
    other.load(&sorted);
    assert!(other.export() == sorted, "an export is not loaded as it is");
}

#[test]
fn a_load_that_meets_a_mistake_says_what_is_durable_and_goes_on_once_it_is_mended() {
    let place = Place::new();
    let good = (0..2500).map(|number| format!("key {number:04}\t{number}\n")).collect::<String>();
    let bad = good.replace("key 1234\t", "key 1234 ");
    let file = place.file("lines", bad.as_bytes());
    let error = place.fails(1, &["kv", "load", &file, "--batch", "100", "--segment-size", "1MiB"]);
    assert!(error.contains("first 1234 lines durable") && error.contains("line 1235, column 14"), "{error}");
    assert!(error.contains("--skip 1234"), "{error}");
    let until = good.find("key 1234").unwrap();
    assert_eq!(place.export(), &good.as_bytes()[..until]);
    place.file("lines", good.as_bytes());
    let report = place.ok(&["kv", "load", &file, "--skip", "1234", "--json", "-"]);
    let report = serde_json::from_slice::<Value>(&report).unwrap();
    assert_eq!((&report["loaded_lines"], &report["loaded_bytes"]), (&1266.into(), &(good.len() - until).into()));
    assert_eq!(place.export(), good.as_bytes());
    let error = place.fails(1, &["kv", "load", &file, "--skip", "9999"]);
    assert!(error.contains("the file has 2500 lines"), "{error}");
    place.fails(1, &["kv", "load", "/nowhere/at/all"]);
}

#[test]
fn a_key_or_value_that_is_too_large_is_refused_and_told_with_its_limit() {
    let place = Place::new();
    let limit = KvStateMachine::KEY_BYTES_MAX;
    let long = format!("key\t\n{}\t\n", "k".repeat(limit + 1));
    let error = failed(1, &["long"], &place.with(&["kv", "load", "-", "--segment-size", "1MiB"], long.as_bytes()));
    assert!(error.contains("line 2, column 1") && error.contains(&format!("at most {limit}")), "{error}");
    let huge = vec![b'v'; 2 << 20];
    let file = place.file("huge", &huge);
    let error = place.fails(1, &["kv", "set", "huge", "--from", &file]);
    assert!(error.contains("too large") && error.contains("larger segments"), "{error}");
    assert_eq!(place.export(), b"key\t\n");
}

#[test]
fn a_log_of_large_commands_is_looked_at_in_little_memory() {
    const VALUE_BYTES: usize = 8 << 20;
    let place = Place::new();
    let (driver, _) = Driver::open(place.dir(), KvStateMachine::new(), DriverConfig::default()).unwrap();
    for nth in 0..50 {
        driver.propose(KvCommand::Set { key: "k".into(), value: vec![nth; VALUE_BYTES].into() }).unwrap();
    }
    driver.close().unwrap();
    // All of the commands together do not fit: the limit is on data, in KiB.
    let limited = format!("ulimit -d {}; exec \"$@\"", 200 << 10);
    let mut shell = Command::new("sh");
    shell.args(["-c", &limited, "sh", env!("CARGO_BIN_EXE_ringwal"), "kv", "get", "k", "--raw", "--dir"]);
    let value = succeeded(&["get"], shell.arg(place.dir()).output().unwrap());
    assert!(value == [49; VALUE_BYTES], "another value came out");
}

#[test]
fn keys_and_values_may_begin_with_a_hyphen_and_options_are_still_options() {
    let place = Place::new();
    place.ok(&["kv", "set", "k", "-5", "--segment-size", "1MiB"]);
    place.ok(&["kv", "set", "--segment-size", "1MiB", "-k", "--", "--dir"]);
    place.ok(&["kv", "set", "-n", "-"]);
    assert_eq!(place.ok(&["kv", "get", "k", "--raw"]), b"-5");
    assert_eq!(place.ok(&["kv", "get", "--raw", "-k"]), b"--dir");
    assert_eq!(place.export(), b"-k\t--dir\n-n\t-\nk\t-5\n");
    assert_eq!(place.ok(&["kv", "scan", "-5", "k", "--limit", "1"]), b"-k\t--dir\n");
    assert_eq!(place.ok(&["kv", "scan", "--prefix", "-k"]), b"-k\t--dir\n");
    place.ok(&["kv", "delete", "-n"]);
    place.fails(4, &["kv", "get", "-n"]);
    assert!(place.fails(2, &["kv", "scan", "--limt", "1"]).contains("--limt"), "a mistyped option is no key");
    place.fails(2, &["kv", "get"]);
}

/// A load that waits for more on its standard input, once what it was given can be seen by others.
fn half_loaded(place: &Place, half: &[u8]) -> Running {
    let arguments = ["kv", "load", "-", "--segment-size", "1MiB"];
    let mut child = place.command(&arguments).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(half).unwrap();
    let last = half.trim_ascii_end().rsplit(|&byte| byte == b'\n').next().unwrap();
    let key = std::str::from_utf8(last).unwrap().split('\t').next().unwrap().to_owned();
    let running = Running(child);
    eventually("the half that was given is there", || place.run(&["kv", "get", &key]).status.success());
    running
}

fn numbered(lines: std::ops::Range<u32>) -> Vec<u8> {
    lines.flat_map(|number| format!("{number:08}\tvalue {number}\n").into_bytes()).collect()
}

#[test]
fn lines_of_a_slow_pipe_are_not_held_back_until_there_are_many() {
    let place = Place::new();
    let mut running = half_loaded(&place, &numbered(0..3));
    running.0.stdin.as_mut().unwrap().write_all(&numbered(3..4)).unwrap();
    eventually("the line after them is there", || place.run(&["kv", "get", "00000003"]).status.success());
    drop(running.0.stdin.take());
    assert!(running.0.wait().unwrap().success());
    assert_eq!(place.export(), numbered(0..4));
}

#[test]
fn a_load_that_is_killed_is_loaded_again_and_everything_is_there() {
    let place = Place::new();
    let (half, all) = (numbered(0..20_000), numbered(0..40_000));
    let mut running = half_loaded(&place, &half);
    running.0.kill().unwrap();
    running.0.wait().unwrap();
    assert!(place.export() == half, "what was seen before the kill is not what is there");
    place.load(&all);
    assert!(place.export() == all);
}

#[test]
fn reading_takes_no_lock_and_a_second_writer_is_told_who_holds_it() {
    let place = Place::new();
    let half = numbered(0..1000);
    let running = half_loaded(&place, &half);
    assert!(place.export() == half);
    assert_eq!(place.ok(&["kv", "scan", "--limit", "1"]), numbered(0..1));
    let error = place.fails(5, &["kv", "set", "k", "v"]);
    assert!(error.contains("is locked by") && error.contains(&running.0.id().to_string()), "{error}");
}

#[test]
fn a_load_that_is_asked_to_stop_says_how_many_lines_are_durable() {
    for signal in [Signal::INT, Signal::TERM] {
        let place = Place::new();
        let mut running = half_loaded(&place, &numbered(0..1000));
        kill_process(Pid::from_child(&running.0), signal).unwrap();
        let mut told = String::new();
        running.0.stderr.take().unwrap().read_to_string(&mut told).unwrap();
        assert_eq!(running.0.wait().unwrap().code(), Some(130), "{told}");
        assert!(told.contains("first 1000 lines durable") && told.contains("interrupted"), "{told}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure_and_a_full_disk_is_one() {
    let place = Place::new();
    place.load(&numbered(0..50_000));
    let mut child = place.command(&["kv", "export"]).spawn().unwrap();
    let mut first = String::new();
    BufReader::with_capacity(16, child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(first, "00000000\tvalue 0\n");
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = place.command(&["kv", "export"]).stdout(full).output().unwrap();
    assert!(failed(6, &["export"], &output).contains("cannot write the output"));
}

#[test]
fn a_load_on_a_disk_that_fills_up_keeps_what_it_told_of() {
    let Some(disk) = mounted::Mounted::in_memory(c"size=12m") else { return };
    let dir = disk.at().join("store");
    let place = Place::new();
    let file = place.file("lines", &numbered(0..1_000_000));
    let arguments = ["kv", "load", &file, "--segment-size", "1MiB"];
    let output = on(&dir, &arguments).output().unwrap();
    let error = failed(6, &arguments, &output);
    let durable = error.split("first ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().parse::<u32>().unwrap();
    assert!(durable > 1000 && error.contains("free space on the disk"), "{error}");
    let exported = succeeded(&["export"], on(&dir, &["kv", "export"]).output().unwrap());
    assert!(exported.starts_with(&numbered(0..durable)), "not all of the {durable} lines are there");
    assert_eq!(exported, numbered(0..exported.iter().filter(|&&byte| byte == b'\n').count() as u32));
}

#[test]
fn the_help_tells_the_exit_codes_and_the_format() {
    for arguments in
        [&["kv", "--help"][..], &["snapshot", "-h"], &["kv", "load", "-h"], &["snapshot", "create", "--help"]]
    {
        let help = String::from_utf8(succeeded(arguments, command(arguments).output().unwrap())).unwrap();
        assert!(help.contains("Exit codes:") && help.contains("  5    another process holds the store"), "{help}");
        let own = help.lines().filter(|line| !line.trim_start().starts_with("--"));
        assert!(own.clone().all(|line| line.chars().count() <= 130), "{help}");
    }
}

#[test]
fn arguments_that_cannot_be_read_are_refused_in_one_line() {
    for arguments in [
        &["kv", "get", "a\tb", "--dir", "d"][..],
        &["kv", "get", "a\\", "--dir", "d"],
        &["kv", "load", "f", "--batch", "0", "--dir", "d"],
        &["kv", "load", "f", "--in-flight", "0", "--dir", "d"],
        &["kv", "fetch", "k", "--dir", "d"],
        &["snapshot", "verify", "../secrets", "--dir", "d"],
        &["snapshot", "delete", "snapshot_01_0", "--dir", "d"],
        &["snapshot", "create", "--keep", "0", "--dir", "d"],
        &["snapshot", "create", "--keep", "2", "--keep-log", "--dir", "d"],
        &["snapshot", "create", "--reach-back", "2", "--keep-log", "--dir", "d"],
    ] {
        let output = command(arguments).output().unwrap();
        let error = failed(2, arguments, &output);
        assert_eq!(output.stderr.iter().filter(|&&byte| byte == b'\n').count(), 1, "{error}");
    }
    assert!(!Path::new("d").exists());
}
