//! `ringwal snapshot` as its users meet it: what is taken can be listed, verified, printed and stood on; what is needed
//! is not deleted; what is damaged is told, with the way on, and hides nothing else.

#[path = "../../../tests/common/skip.rs"]
mod skip;
mod tool;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use ringwal::machine::{CounterCommand, CounterStateMachine, KvStateMachine};
use ringwal::{Driver, DriverConfig, FileSnapshots, Log, SnapshotOptions, StateImage, StateMachine};
use serde_json::Value;
use skip::skip;
use tool::{Place, failed};

fn numbered(lines: std::ops::Range<u32>) -> Vec<u8> {
    lines.flat_map(|number| format!("{number:08}\tvalue {number}\n").into_bytes()).collect()
}

/// The id of the snapshot that is taken, and what is said of it.
fn create(place: &Place, options: &[&str]) -> (String, Value) {
    let created = place.ok(&[&["snapshot", "create", "--json", "-"], options].concat());
    let created = serde_json::from_slice::<Value>(&created).unwrap();
    (created["id"].as_str().unwrap().to_owned(), created)
}

fn ids(place: &Place) -> Vec<String> {
    let rows = serde_json::from_slice::<Value>(&place.run(&["snapshot", "list", "--json", "-"]).stdout).unwrap();
    rows.as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
}

fn file(place: &Place, id: &str) -> PathBuf {
    place.dir().join(format!("{id}.zst"))
}

/// Turns a bit of the file over, in the middle.
fn damage(place: &Place, id: &str) {
    let file = File::options().read(true).write(true).open(file(place, id)).unwrap();
    let at = file.metadata().unwrap().len() / 8;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

#[test]
fn a_snapshot_shortens_the_log_unless_it_is_to_be_kept() {
    let place = Place::new();
    place.load(&numbered(0..200_000));
    let (first, created) = create(&place, &["--keep-log"]);
    assert_eq!(
        (&created["keys"], &created["was_there"], &created["compacted"]),
        (&200_000.into(), &false.into(), &0.into())
    );
    assert_eq!(created["log_bytes"], created["log_bytes_before"]);
    let (again, created) = create(&place, &["--keep-log"]);
    assert!(again == first && created["was_there"] == true);
    assert_eq!(ids(&place), ["snapshot_0_0", &first]);

    place.ok(&["kv", "set", "later", "1"]);
    let (second, created) = create(&place, &["--keep", "1"]);
    assert_eq!(created["compacted"], created["index"]);
    assert!(created["log_bytes"].as_u64() < created["log_bytes_before"].as_u64(), "{created}");
    assert_eq!(ids(&place), [&second[..]]);
    assert_eq!(place.export(), [&numbered(0..200_000)[..], b"later\t1\n"].concat());
    assert_eq!(place.ok(&["kv", "get", "later"]), b"1\n");
    let shown = String::from_utf8(place.ok(&["snapshot", "create"])).unwrap();
    assert!(shown.contains(&second) && shown.contains("was there already"), "{shown}");
}

#[test]
fn writing_goes_on_after_a_compaction_and_several_snapshots_are_kept() {
    let place = Place::new();
    for round in 0..4 {
        place.load(&numbered(round * 100..round * 100 + 100));
        create(&place, &["--keep", "3"]);
    }
    assert_eq!(ids(&place), ["snapshot_2_0", "snapshot_3_0", "snapshot_4_0"]);
    assert_eq!(place.ok(&["snapshot", "cat", "snapshot_3_0"]), numbered(0..300));
    assert_eq!(place.export(), numbered(0..400));
}

#[test]
fn what_the_log_stands_on_is_not_deleted() {
    let place = Place::new();
    place.load(&numbered(0..100));
    let (first, _) = create(&place, &[]);
    place.ok(&["kv", "set", "later", "1"]);
    let (second, _) = create(&place, &["--keep-log"]);
    place.ok(&["snapshot", "delete", &first]);
    assert_eq!(ids(&place).last(), Some(&second));
    assert!(!ids(&place).contains(&first), "the newer one serves as well");
    let error = place.fails(1, &["snapshot", "delete", &second]);
    assert!(error.contains("must stay") && error.contains("take a newer snapshot"), "{error}");
    assert!(place.fails(4, &["snapshot", "delete", &first]).contains("does not exist"));
    assert_eq!(place.ok(&["kv", "get", "later"]), b"1\n");
}

#[test]
fn a_damaged_newest_snapshot_is_an_error_with_a_way_on() {
    let place = Place::new();
    place.load(&numbered(0..5000));
    let (id, _) = create(&place, &["--keep-log"]);
    place.ok(&["kv", "set", "later", "1"]);
    damage(&place, &id);
    for arguments in [&["kv", "get", "later"][..], &["kv", "export"], &["kv", "set", "k", "v"], &["snapshot", "create"]]
    {
        let error = place.fails(3, arguments);
        assert!(error.contains("--fall-back") && error.contains("snapshot_0_0"), "{arguments:?}: {error}");
    }
    let verified = place.run(&["snapshot", "verify"]);
    assert!(failed(3, &["verify"], &verified).contains("not all snapshots are intact"));
    let shown = String::from_utf8(verified.stdout).unwrap();
    assert!(shown.contains("snapshot_0_0 ") && shown.contains("damaged at byte"), "{shown}");
    place.ok(&["snapshot", "verify", "snapshot_0_0"]);
    for arguments in [&["snapshot", "cat", &id][..], &["snapshot", "cat", &id, "--raw"]] {
        let error = place.fails(3, arguments);
        assert!(error.contains("damaged at byte") && !error.contains("write the output"), "{error}");
    }

    let all = [&numbered(0..5000)[..], b"later\t1\n"].concat();
    assert_eq!(place.ok(&["kv", "export", "--fall-back"]), all);
    assert!(file(&place, &id).exists(), "who only reads sets nothing aside");
    place.ok(&["kv", "set", "k", "v", "--fall-back"]);
    assert!(!file(&place, &id).exists());
    assert_eq!(place.export(), [&numbered(0..5000)[..], b"k\tv\nlater\t1\n"].concat());
}

#[test]
fn there_is_no_falling_back_past_a_compacted_log() {
    let place = Place::new();
    place.load(&numbered(0..100));
    create(&place, &[]);
    place.ok(&["kv", "set", "later", "1"]);
    let (id, _) = create(&place, &[]);
    damage(&place, &id);
    for arguments in [["kv", "export"], ["snapshot", "create"]] {
        let error = place.fails(3, &arguments);
        assert!(error.contains("replica or backup") && !error.contains("--fall-back"), "{error}");
        place.fails(3, &[&arguments[..], &["--fall-back"]].concat());
    }
    assert_eq!(ids(&place).len(), 2, "nothing was taken away");
}

#[test]
fn a_damaged_newest_snapshot_is_got_over_where_the_log_was_to_reach_further_back() {
    let place = Place::new();
    let reaching = ["--reach-back", "2"];
    place.load(&numbered(0..100));
    create(&place, &reaching);
    place.ok(&["kv", "set", "later", "1"]);
    let (id, created) = create(&place, &reaching);
    assert!(created["compacted"].as_u64() < created["index"].as_u64(), "{created}");
    assert_eq!(ids(&place).len(), 2);
    damage(&place, &id);
    assert!(place.fails(3, &["kv", "export"]).contains("--fall-back"));
    assert_eq!(place.ok(&["kv", "export", "--fall-back"]), [&numbered(0..100)[..], b"later\t1\n"].concat());
    place.ok(&["kv", "set", "k", "v", "--fall-back"]);
    place.ok(&["kv", "delete", "k"]);
    assert_eq!(place.export(), [&numbered(0..100)[..], b"later\t1\n"].concat());
}

#[test]
fn a_snapshot_of_another_history_is_not_taken_for_this_logs() {
    let place = Place::new();
    place.load(&numbered(0..100));
    place.ok(&["kv", "set", "later", "1"]);
    let snapshots = FileSnapshots::open(place.dir(), SnapshotOptions::default()).unwrap();
    let mut writer = snapshots.writer(1, 7, KvStateMachine::KIND).unwrap();
    KvStateMachine::new().image().write_to(&mut writer).unwrap();
    writer.publish().unwrap();
    for arguments in [&["kv", "export"][..], &["kv", "get", "later"], &["kv", "set", "k", "v"]] {
        for arguments in [arguments.to_vec(), [arguments, &["--fall-back"]].concat()] {
            assert!(place.fails(3, &arguments).contains("term 7"), "{arguments:?}");
        }
    }
    fs::remove_file(file(&place, "snapshot_1_7")).unwrap();
    assert_eq!(place.export(), [&numbered(0..100)[..], b"later\t1\n"].concat());
}

#[test]
fn the_log_reaches_back_to_no_more_snapshots_than_stay() {
    let place = Place::new();
    for round in 0..4 {
        place.load(&numbered(round * 100..round * 100 + 100));
        create(&place, &["--reach-back", "3"]);
    }
    assert_eq!(ids(&place), ["snapshot_2_0", "snapshot_3_0", "snapshot_4_0"]);
    assert_eq!(Log::open_read_only(place.dir()).unwrap().0.state().compacted, Some((2, 0)));
    let error = place.fails(1, &["snapshot", "create", "--reach-back", "3", "--keep", "2"]);
    assert!(error.contains("--reach-back 3") && error.contains("--keep 2"), "{error}");
    assert_eq!(ids(&place).len(), 3);
}

#[test]
fn files_that_are_cut_swapped_or_of_another_machine_hide_nothing() {
    let place = Place::new();
    place.load(&numbered(0..100));
    let (first, _) = create(&place, &["--keep-log"]);
    place.ok(&["kv", "set", "later", "1"]);
    let (second, _) = create(&place, &["--keep-log"]);
    let whole = fs::read(file(&place, &second)).unwrap();
    fs::write(file(&place, &second), &whole[..whole.len() / 2]).unwrap();
    let listed = place.run(&["snapshot", "list"]);
    failed(3, &["list"], &listed);
    let shown = String::from_utf8(listed.stdout).unwrap();
    assert!(shown.contains(&first) && shown.contains("damaged at byte"), "{shown}");
    fs::copy(file(&place, &first), file(&place, &second)).unwrap();
    let error = place.fails(3, &["snapshot", "cat", &second]);
    assert!(error.contains(&format!("holds {first}")), "{error}");
    fs::write(file(&place, &second), whole).unwrap();
    place.ok(&["snapshot", "verify"]);
    assert!(place.fails(4, &["snapshot", "verify", "snapshot_7_7"]).contains("does not exist"));
}

#[test]
fn a_printed_snapshot_is_what_was_exported_and_raw_it_is_what_zstd_prints() {
    let place = Place::new();
    place.load(&numbered(0..30_000));
    let exported = place.export();
    let (id, created) = create(&place, &["--level", "9"]);
    place.ok(&["kv", "set", "later", "1"]);
    assert_eq!(place.ok(&["snapshot", "cat", &id]), exported);
    let raw = place.ok(&["snapshot", "cat", &id, "--raw"]);
    assert_eq!(created["raw_bytes"], raw.len());
    match Command::new("zstd").arg("-dc").arg(file(&place, &id)).output() {
        Ok(output) => assert!(output.status.success() && output.stdout == raw),
        Err(error) => skip(format_args!("there is no zstd to compare with ({error})")),
    }
}

#[test]
fn a_counter_prints_its_count_and_is_no_store() {
    let place = Place::new();
    let (driver, _) = Driver::open(place.dir(), CounterStateMachine::new(40), DriverConfig::default()).unwrap();
    driver.propose(CounterCommand::Increment(2)).unwrap();
    let id = driver.checkpoint().unwrap().id.to_string();
    driver.close().unwrap();
    assert_eq!(place.ok(&["snapshot", "cat", &id]), b"42\n");
    assert!(String::from_utf8(place.ok(&["snapshot", "list"])).unwrap().contains("counter/1"));
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = place.command(&["snapshot", "cat", &id]).stdout(full).output().unwrap();
    assert!(failed(6, &["cat"], &output).contains("cannot write the output"));
    for arguments in [&["kv", "export"][..], &["kv", "set", "k", "v"], &["snapshot", "create"]] {
        assert!(place.fails(1, arguments).contains("counter/1"), "{arguments:?}");
    }
    damage(&place, &id);
    for arguments in [&["snapshot", "cat", &id][..], &["snapshot", "cat", &id, "--raw"]] {
        assert!(place.fails(3, arguments).contains("damaged at byte"), "{arguments:?}");
    }
}

#[test]
fn nothing_is_made_where_snapshots_are_only_looked_for() {
    let place = Place::new();
    for arguments in [
        &["snapshot", "list"][..],
        &["snapshot", "create"],
        &["snapshot", "verify"],
        &["snapshot", "delete", "snapshot_0_0"],
        &["snapshot", "cat", "snapshot_0_0"],
    ] {
        place.fails(4, arguments);
        assert!(!place.dir().exists(), "{arguments:?}");
    }
    fs::create_dir(place.dir()).unwrap();
    assert_eq!(place.ok(&["snapshot", "list"]), b"there are no snapshots\n");
    place.fails(4, &["snapshot", "create"]);
    assert_eq!(fs::read_dir(place.dir()).unwrap().count(), 0);
}
