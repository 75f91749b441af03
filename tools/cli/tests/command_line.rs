//! The tool as its users meet it: exit codes, one line per mistake, nothing touched that is not ours, and a short bench
//! whose JSON has every promised field.

#[path = "../../../tests/common/skip.rs"]
mod skip;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use skip::skip;

fn ringwal(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringwal")).args(arguments).output().unwrap()
}

/// The one line on standard error of a run that has to fail with `code`.
fn refusal(code: i32, arguments: &[&str]) -> String {
    let output = ringwal(arguments);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
    assert_eq!(error.lines().count(), 1, "{arguments:?}: {error}");
    assert!(output.stdout.is_empty());
    error
}

#[test]
fn arguments_that_cannot_be_read_are_refused_in_one_line() {
    for arguments in [
        ["bench", "--payload", "3"],
        ["bench", "--payload", "many"],
        ["bench", "--producers", "0"],
        ["bench", "--window", "0"],
        ["bench", "--wait", "spin:0"],
        ["bench", "--durability", "interval"],
        ["bench", "--io-mode", "magic"],
        ["bench", "--segment-size", "64 parsecs"],
        ["bench", "--no-such-option", "1"],
    ] {
        let error = refusal(2, &arguments);
        assert!(error.contains(arguments[1]), "{error}");
    }
    refusal(2, &["inspect"]);
    refusal(2, &["benhc"]);
}

#[test]
fn settings_that_do_not_fit_together_are_refused_by_the_log() {
    let error = refusal(1, &["bench", "--segment-size", "100000"]);
    assert!(error.contains("block size"), "{error}");
}

#[test]
fn a_directory_in_use_is_neither_benched_nor_changed() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("mine"), "precious").unwrap();
    let path = dir.path().to_str().unwrap();
    assert!(refusal(1, &["bench", "--dir", path]).contains("not empty"));
    assert!(refusal(1, &["inspect", path]).contains("not a ringwal log"));
    assert_eq!(names(dir.path()), ["mine"]);
}

#[test]
fn there_has_to_be_something_to_inspect() {
    let dir = tempfile::tempdir().unwrap();
    let nothing = dir.path().join("nothing");
    assert!(refusal(1, &["inspect", nothing.to_str().unwrap()]).contains("No such file"));
    refusal(1, &["inspect", dir.path().to_str().unwrap()]);
    assert!(names(dir.path()).is_empty(), "inspecting wrote something");
}

#[test]
fn a_json_file_that_cannot_be_written_costs_no_run() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("no/such/directory.json");
    refusal(1, &["bench", "--json", file.to_str().unwrap()]);
}

#[test]
fn a_short_bench_verifies_everything_and_its_log_can_be_inspected() {
    let dir = tempfile::tempdir().unwrap();
    let (place, json) = (dir.path().join("bench"), dir.path().join("bench.json"));
    let place_text = place.to_str().unwrap();
    let options = ["--seconds", "1", "--producers", "3", "--window", "4", "--segment-size", "4MiB", "--keep"];
    let arguments = [&["bench", "--dir", place_text, "--json", json.to_str().unwrap()], &options[..]].concat();
    let output = ringwal(&arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8(output.stdout).unwrap().contains("verified after reopening"));
    assert_eq!(names(&place), ["log"]);

    let figures = serde_json::from_slice::<Value>(&fs::read(&json).unwrap()).unwrap();
    has_every_field(&figures);
    let verified = figures["verified_entries"].as_u64().unwrap();
    assert!(verified > 0 && figures["durability"] == "sync");

    let inspected = ringwal(&["inspect", place.join("log").to_str().unwrap()]);
    let shown = String::from_utf8(inspected.stdout).unwrap();
    assert!(inspected.status.success() && shown.contains(&format!("index {verified}, term 0")), "{shown}");
}

#[test]
fn a_suite_gives_bars_figures_and_verdicts_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (place, json) = (dir.path().join("suite"), dir.path().join("suite.json"));
    let (place_text, json_text) = (place.to_str().unwrap(), json.to_str().unwrap());
    let rows = ["batch-100", "scan-1KiB", "open-1KiB"];
    let options = ["--suite", "--rows", &rows.join(","), "--seconds", "1", "--open-bytes", "8MiB", "--json", json_text];
    let output = ringwal(&[&["bench", "--dir", place_text], &options[..]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.lines().all(|line| line.chars().count() <= 120), "{table}");
    assert!(!place.exists(), "the suite left something behind");

    let suite = serde_json::from_slice::<Value>(&fs::read(&json).unwrap()).unwrap();
    let finished = suite["rows"].as_array().unwrap();
    assert_eq!(finished.iter().map(|row| &row["name"]).collect::<Vec<_>>(), rows);
    for line in finished.iter().flat_map(|row| row["lines"].as_array().unwrap()) {
        let [name, bar, figure, verdict] = ["name", "bar", "figure", "verdict"].map(|key| line[key].as_str().unwrap());
        assert!(["met", "missed", "skipped"].contains(&verdict) && !figure.is_empty(), "{line}");
        let shown = table.lines().find(|shown| shown.starts_with(&format!("{name} "))).unwrap();
        assert!(shown.contains(bar) && shown.to_lowercase().ends_with(verdict), "{shown}");
    }
    has_every_field(&finished[0]["raw"]);
    assert_eq!(finished[0]["raw"]["settings"]["payload"], 1024);
    assert!(finished[1]["raw"]["ratio"].as_f64().unwrap() > 0.0);
    // Without room on the disk the opens are skipped.
    if let Some(cases) = finished[2]["raw"]["cases"].as_array() {
        assert_eq!(cases.len(), 4);
        assert!(cases.iter().all(|case| case["rounds"].as_array().unwrap().len() == 3));
    }
}

#[test]
fn a_suite_is_asked_for_by_rows_that_exist_and_without_a_load_of_its_own() {
    assert!(refusal(1, &["bench", "--suite", "--rows", "prodcuers"]).contains("'prodcuers'"));
    refusal(2, &["bench", "--suite", "--producers", "3"]);
    refusal(2, &["bench", "--rows", "batch"]);
}

#[test]
fn an_audit_shows_every_figure_with_its_grounds() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (place, json) = (dir.path().join("audit"), dir.path().join("audit.json"));
    let options = ["bench", "--audit", "--seconds", "1", "--producers", "4", "--segment-size", "4MiB"];
    let places = ["--dir", place.to_str().unwrap(), "--json", json.to_str().unwrap()];
    let output = ringwal(&[&options[..], &places].concat());
    let error = String::from_utf8_lossy(&output.stderr);
    if error.contains("NO FIGURE: no device") {
        assert!(output.status.code() == Some(1) && output.stdout.is_empty(), "{error}");
        return skip(error.trim());
    }
    assert!(output.status.success(), "{error}");
    let table = String::from_utf8(output.stdout).unwrap();
    let audit = serde_json::from_slice::<Value>(&fs::read(&json).unwrap()).unwrap();
    let figures = audit["figures"].as_array().unwrap();
    assert!(figures.len() >= 9 && audit["frames"].as_u64() > Some(0), "{audit}");
    for figure in figures {
        let name = figure["figure"].as_str().unwrap();
        let [value, ratio] = ["value", "flushes_per_frame"].map(|key| figure[key].as_f64().unwrap());
        let [compared, flushes] = ["entries_compared", "device_flushes"].map(|key| figure[key].as_u64().unwrap());
        assert!(value > 0.0 && compared > 0, "{figure}");
        assert!((ratio - flushes as f64 / audit["frames"].as_f64().unwrap()).abs() < 1e-9, "{figure}");
        let shown = table.lines().find(|line| line.starts_with(name)).unwrap();
        let grounds = shown.replace(',', "");
        assert!([compared, flushes].iter().all(|number| grounds.contains(&number.to_string())), "{shown}");
    }
    assert!(["enough", "none_needed", "not_counted"].contains(&audit["flushes"].as_str().unwrap()), "{audit}");
}

#[test]
fn an_audit_without_grounds_has_no_figure_and_says_why() {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else { return skip("there is no /dev/shm to write to") };
    let place = dir.path().join("audit");
    let error = refusal(1, &["bench", "--audit", "--seconds", "1", "--dir", place.to_str().unwrap()]);
    assert!(error.contains("NO FIGURE") && error.contains("counts flushes"), "{error}");
    assert!(!place.exists(), "it left something behind");
    refusal(2, &["bench", "--audit", "--suite"]);
    refusal(2, &["bench", "--audit", "--retain", "1GiB"]);
}

fn has_every_field(figures: &Value) {
    let latency = ["p50", "p90", "p99", "p999", "max"].map(|field| format!("/latency_us/{field}"));
    let floor = [
        "write_p50_us",
        "writes_per_s_depth1",
        "writes_per_s_depthN",
        "frame_bytes",
        "frame_writes_per_s_depth1",
        "frame_writes_per_s_depthN",
        "sequential_mb_per_s",
        "handover_us",
    ];
    let floor = floor.map(|field| format!("/floor/{field}"));
    let ratio = ["p50_to_floor", "acked_to_depth1", "acked_batches_to_frame_depth1", "frames_to_frame_depthN"];
    let ratio = ratio.map(|field| format!("/ratio/{field}"));
    let top = ["acked_per_s", "mb_per_s", "frames_per_s", "entries_per_frame", "bytes_written_per_payload_byte"];
    let more = [
        "cpu_seconds_per_million_acks",
        "cpu_share",
        "busiest_thread/cpu_share",
        "peak_rss_mb",
        "verified_entries",
        "ratio/mb_to_sequential",
    ];
    let top = top.iter().chain(&more).map(|field| format!("/{field}"));
    for field in latency.into_iter().chain(floor).chain(ratio).chain(top) {
        let figure = figures.pointer(&field).and_then(Value::as_f64);
        assert!(figure.is_some_and(|figure| figure > 0.0), "{field} is {figure:?}");
    }
    let flushes = figures.get("device_flushes_per_ack").unwrap();
    assert!(flushes.is_null() || flushes.is_number());
    assert!(figures["io_mode"].is_string());
}

fn names(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
