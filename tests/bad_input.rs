//! Directories that are not as they should be: each a typed error that says what to do, and nothing on disk changed.

#[path = "look/mod.rs"]
mod look;
#[path = "common/mounted.rs"]
mod mounted;
#[path = "common/skip.rs"]
mod skip;

use std::env;
use std::fs::{self, Permissions};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use look::{Look, files, segment_names};
use mounted::Mounted;
use ringwal::{Config, Error, Log, SegmentInfo, SegmentRole, Upto};
use rustix::mount::MountFlags;
use skip::skip;
use tempfile::TempDir;

const SEGMENT: u64 = 24 * 4096;

fn config() -> Config {
    let small = Config::default().segment_bytes(SEGMENT).lock_wait(Duration::from_millis(20)).tail_cache_bytes(0);
    small.idle_mark_after(Duration::from_secs(3600))
}

/// Waits until the helper has made the spare and the index files: the directory then stays as it is.
fn settle(log: &Log) {
    let is_settled = |segments: &[SegmentInfo]| {
        let is_indexed =
            |info: &SegmentInfo| info.role != SegmentRole::Sealed || info.file.with_extension("idx").exists();
        segments.iter().all(is_indexed) && segments.iter().any(|info| info.role == SegmentRole::Spare)
    };
    while !is_settled(&log.segments()) {
        thread::sleep(Duration::from_millis(1));
    }
}

fn fill(directory: &Path) -> Log {
    let (log, _) = Log::open(directory, config()).unwrap();
    for nth in 0..90u64 {
        log.append(vec![nth as u8; 3000]).unwrap();
    }
    settle(&log);
    log
}

/// A closed log of several segments in a directory of its own.
fn closed_log() -> (TempDir, Look) {
    let directory = tempfile::tempdir().unwrap();
    let log = fill(directory.path());
    let look = Look::take(&log).unwrap();
    log.close().unwrap();
    assert!(segment_names(directory.path()).len() >= 5);
    (directory, look)
}

/// The error of an open that must be refused and must change nothing; its text says what to do.
fn refused(directory: &Path, advice: &str) -> Error {
    let before = files(directory);
    let error = Log::open(directory, config()).expect_err("it must be refused");
    let (mut before, mut after) = (before, files(directory));
    if matches!(error, Error::Locked { .. }) {
        // The writer that has the log may repeat its marks, write index files anew and make spares.
        before.retain(|name, _| name.ends_with(".seg"));
        after.retain(|name, _| before.contains_key(name));
    }
    assert!(after == before, "the open was refused ({error}) and changed {directory:?}");
    assert!(error.to_string().contains(advice), "{advice:?} is not said: {error}");
    error
}

fn refused_as_corrupt(directory: &Path, what: &str) {
    let error = refused(directory, "restore the file from a replica or backup");
    assert!(matches!(error, Error::Corrupt { .. }), "{what}: {error}");
}

fn opens_whole(directory: &Path, whole: &Look) -> ringwal::RecoveryReport {
    let (log, report) = Log::open(directory, config()).unwrap();
    assert_eq!(Look::take(&log).unwrap(), *whole);
    log.close().unwrap();
    report
}

#[test]
fn a_directory_with_other_peoples_files_is_foreign() {
    let contents: [&[(&str, &str)]; 9] = [
        &[("notes.txt", "mine")],
        &[("notes.tmp", "mine")],
        &[("probe.tmp", "mine")],
        &[("lock", "pid 17")],
        &[("lock", "pid 17"), ("data", "mine")],
        &[("LOCK", "mine"), ("data/", "")],
        &[("lock/", "")],
        &[("7.seg", "mine")],
        &[("00000000000000000001.seg/", "")],
    ];
    for content in contents {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in content {
            match name.strip_suffix('/') {
                Some(name) => fs::create_dir(directory.path().join(name)).unwrap(),
                None => fs::write(directory.path().join(name), text).unwrap(),
            }
        }
        let error = refused(directory.path(), "give an empty directory");
        assert!(matches!(error, Error::Foreign { .. }), "{content:?}: {error}");
    }
}

#[test]
fn a_file_instead_of_a_directory_is_foreign_and_stays() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("log");
    fs::write(&file, "mine").unwrap();
    for error in [Log::open(&file, config()).unwrap_err(), Log::open_read_only(&file).unwrap_err()] {
        assert!(matches!(error, Error::Foreign { .. }), "{error}");
        assert!(error.to_string().contains("not a directory"), "{error}");
    }
    let below = Log::open(file.join("below"), config()).unwrap_err();
    assert!(matches!(below, Error::Io { .. }), "{below}");
    assert_eq!(fs::read(&file).unwrap(), b"mine");
}

#[test]
fn a_newer_version_is_unsupported() {
    let (directory, _) = closed_log();
    let path = directory.path().join(&segment_names(directory.path())[0]);
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = 2;
    let salt = u64::from_le_bytes(bytes[48..56].try_into().unwrap());
    let checksum = ringwal::format::Salted::new(salt).over(&bytes[..56]).value();
    bytes[56..60].copy_from_slice(&checksum.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let error = refused(directory.path(), "open it with that version");
    assert!(matches!(&error, Error::Unsupported { file, .. } if *file == path), "{error}");
}

#[test]
fn a_second_opener_in_this_process_is_told_who_has_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let log = fill(directory.path());
    let error = refused(directory.path(), "close that writer, or open read-only");
    let holder = format!("process {}", std::process::id());
    assert!(matches!(&error, Error::Locked { holder: found, .. } if *found == holder), "{error}");
    log.append("the first goes on").unwrap();
    log.close().unwrap();
    Log::open(directory.path(), config()).unwrap().0.append("and now the second may").unwrap();
}

/// Not a test of its own: the process that holds a log in the test below.
#[test]
#[ignore = "the process that holds the log in another test"]
fn the_process_that_holds_the_log() {
    let Ok(directory) = env::var("RINGWAL_HOLD") else { return println!("nobody asked for it") };
    let log = Log::open(directory, config()).unwrap().0;
    settle(&log);
    println!("\nheld");
    // Until the parent kills this process or goes away.
    let _ = io::stdin().lines().count();
}

fn this_test_binary(helper: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", helper, "--ignored", "--nocapture"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

fn wait_for_line(child: &mut Child, wanted: &str) {
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == wanted), "the child never said {wanted:?}");
}

#[test]
fn a_second_opener_in_another_process_is_told_and_the_lock_dies_with_the_first() {
    let (directory, whole) = closed_log();
    let mut holder = this_test_binary("the_process_that_holds_the_log");
    let mut child = holder.env("RINGWAL_HOLD", directory.path()).spawn().unwrap();
    wait_for_line(&mut child, "held");
    let error = refused(directory.path(), "close that writer, or open read-only");
    let expected = format!("process {}", child.id());
    assert!(matches!(&error, Error::Locked { holder, .. } if *holder == expected), "{error} instead of {expected}");
    child.kill().unwrap();
    child.wait().unwrap();
    let (log, _) = Log::open(directory.path(), config().lock_wait(Duration::from_secs(60))).unwrap();
    assert_eq!(Look::take(&log).unwrap(), whole);
}

#[test]
fn an_entry_larger_than_a_segment_names_the_limit_and_one_of_the_limit_fits() {
    let directory = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(directory.path(), config()).unwrap();
    let error = log.append(vec![1; SEGMENT as usize]).unwrap_err();
    let Error::TooLarge { bytes, limit, .. } = error else { panic!("{error}") };
    assert!(bytes > SEGMENT && limit < SEGMENT);
    assert!(error.to_string().contains("larger segments"), "{error}");
    // The entry's own header counts.
    let largest = vec![7; limit as usize - 40];
    assert!(matches!(log.append(vec![7; limit as usize - 39]), Err(Error::TooLarge { .. })));
    assert_eq!(log.state().last, None, "a refused entry leaves nothing behind");
    let index = log.append(largest.clone()).unwrap();
    log.close().unwrap();
    assert_eq!(Log::open(directory.path(), config()).unwrap().0.get(index).unwrap().command, largest);
}

/// Runs what needs a user without rights: in this process, or as nobody where this one is root.
#[test]
fn missing_permissions_are_errors_that_name_the_path() {
    let (directory, _) = closed_log();
    let mode = |mode| fs::set_permissions(directory.path(), Permissions::from_mode(mode)).unwrap();
    for denied in [0o555, 0o000] {
        mode(denied);
        match rustix::process::geteuid().is_root() {
            false => is_denied(directory.path()),
            true => {
                let mut command = this_test_binary("the_process_without_rights");
                command.env("RINGWAL_DENIED", directory.path()).uid(65534).gid(65534);
                match command.output() {
                    Err(error) => skip(format_args!("cannot run this binary as nobody ({error})")),
                    Ok(output) => {
                        let said = String::from_utf8_lossy(&output.stdout);
                        assert!(output.status.success() && said.contains("denied as it should be"), "{said}");
                    }
                }
            }
        }
    }
    mode(0o755);
}

/// Not a test of its own: what the test above runs as another user.
#[test]
#[ignore = "the process without rights in another test"]
fn the_process_without_rights() {
    match env::var("RINGWAL_DENIED") {
        Ok(directory) => is_denied(Path::new(&directory)),
        Err(_) => println!("nobody asked for it"),
    }
}

fn is_denied(directory: &Path) {
    let error = Log::open(directory, config()).unwrap_err();
    let Error::Io { path, source, .. } = &error else { panic!("{error}") };
    assert!(path.starts_with(directory) && source.kind() == io::ErrorKind::PermissionDenied, "{error}");
    assert!(error.to_string().contains("give this user the right"), "{error}");
    println!("\ndenied as it should be");
}

#[test]
fn a_read_only_file_system_refuses_a_writer_and_shows_the_log_to_a_reader() {
    let Some(mounted) = Mounted::in_memory(c"size=4m") else { return };
    let log = fill(mounted.at());
    let whole = Look::take(&log).unwrap();
    log.close().unwrap();
    rustix::mount::mount_remount(mounted.at(), MountFlags::RDONLY, c"").unwrap();
    let error = refused(mounted.at(), "mount it writable");
    let is_read_only = matches!(&error, Error::Io { source, .. } if source.kind() == io::ErrorKind::ReadOnlyFilesystem);
    assert!(is_read_only, "{error}");
    assert_eq!(Look::take(&Log::open_read_only(mounted.at()).unwrap().0).unwrap(), whole);
    let missing = Log::open(mounted.at().join("new"), config()).unwrap_err();
    assert!(missing.to_string().contains("mount it writable"), "{missing}");
}

fn is_directory_gone(error: &Error) -> bool {
    match error {
        Error::Poisoned(cause) => matches!(&**cause, Error::DirectoryGone { .. }),
        other => matches!(other, Error::DirectoryGone { .. }),
    }
}

#[test]
fn a_directory_removed_while_open_is_noticed_by_sync() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let log = fill(&path);
    fs::remove_dir_all(&path).unwrap();
    let error = log.sync().unwrap_err();
    assert!(is_directory_gone(&error) && error.to_string().contains("put it back and reopen"), "{error}");
    assert!(is_directory_gone(&log.append("x").unwrap_err()));
    assert!(is_directory_gone(&log.close().unwrap_err()));
    assert!(!path.exists(), "nothing was made in its place");
}

#[test]
fn a_directory_removed_while_open_is_noticed_by_the_next_roll() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let log = fill(&path);
    fs::remove_dir_all(&path).unwrap();
    let error =
        (0..200).find_map(|_| log.append(vec![1; 3000]).err()).expect("noticed by the second roll at the latest");
    assert!(is_directory_gone(&error), "{error}");
    assert!(!path.exists());
}

#[test]
fn a_directory_removed_while_open_is_noticed_when_the_log_goes_idle() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let config = config().idle_mark_after(Duration::from_millis(10)).tail_cache_bytes(1 << 20);
    let (log, _) = Log::open(&path, config).unwrap();
    settle(&log);
    // A new log is not marked: only what is written now brings the next tick.
    fs::remove_dir_all(&path).unwrap();
    let subscription = log.subscribe(1, Upto::Durable);
    let appended = log.append("written through the open file");
    let error = subscription.filter_map(Result::err).next().expect("the subscription ends with the error");
    assert!(is_directory_gone(&error), "{error}");
    assert!(appended.is_ok() || is_directory_gone(&appended.unwrap_err()));
}

#[test]
fn a_directory_replaced_by_another_is_noticed_and_the_other_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let (path, aside) = (directory.path().join("log"), directory.path().join("aside"));
    let log = fill(&path);
    let whole = Look::take(&log).unwrap();
    fs::rename(&path, &aside).unwrap();
    fs::create_dir(&path).unwrap();
    fs::write(path.join("mine"), "mine").unwrap();
    let error = log.sync().unwrap_err();
    assert!(is_directory_gone(&error), "{error}");
    assert_eq!(Look::take(&log).unwrap(), whole, "reads go on in the directory that was opened");
    assert!(is_directory_gone(&log.close().unwrap_err()));
    assert_eq!(files(&path).into_keys().collect::<Vec<_>>(), ["mine"]);
    opens_whole(&aside, &whole);
}

#[test]
fn a_lock_file_that_is_a_directory_is_an_error() {
    let (directory, _) = closed_log();
    let lock = directory.path().join("lock");
    fs::remove_file(&lock).unwrap();
    fs::create_dir(&lock).unwrap();
    let error = refused(directory.path(), "move the directory away");
    assert!(matches!(&error, Error::Io { path, .. } if *path == lock), "{error}");
}

#[test]
fn a_segment_that_is_a_symbolic_link_is_not_followed() {
    let (directory, _) = closed_log();
    let elsewhere = tempfile::tempdir().unwrap();
    let name = &segment_names(directory.path())[1];
    fs::rename(directory.path().join(name), elsewhere.path().join(name)).unwrap();
    symlink(elsewhere.path().join(name), directory.path().join(name)).unwrap();
    let error = refused(directory.path(), name);
    assert!(matches!(error, Error::Io { .. }), "{error}");
}

#[test]
fn segments_of_another_log_are_an_error() {
    let (theirs, _) = closed_log();
    let names = segment_names(theirs.path());
    for name in &names {
        let (ours, _) = closed_log();
        fs::copy(theirs.path().join(name), ours.path().join(name)).unwrap();
        refused_as_corrupt(ours.path(), name);
    }
    let (ours, _) = closed_log();
    let next = format!("{:020}.seg", names.len() + 1);
    let last = theirs.path().join(names.last().unwrap());
    fs::copy(last, ours.path().join(next)).unwrap();
    refused_as_corrupt(ours.path(), "one more");
    let (ours, _) = closed_log();
    fs::copy(theirs.path().join("lock"), ours.path().join("lock")).unwrap();
    refused_as_corrupt(ours.path(), "the lock file");
}

#[test]
fn a_missing_segment_is_an_error_unless_it_is_an_unused_spare() {
    let (directory, whole) = closed_log();
    let names = segment_names(directory.path());
    let spare = names.len() - 1;
    for (nth, name) in names.iter().enumerate() {
        let path = directory.path().join(name);
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        if nth == spare {
            opens_whole(directory.path(), &whole);
        } else {
            refused_as_corrupt(directory.path(), name);
            fs::write(&path, bytes).unwrap();
        }
    }
}

#[test]
fn the_newest_segments_missing_together_are_an_error_by_the_mark_in_the_lock_file() {
    let (directory, _) = closed_log();
    let mut names = segment_names(directory.path());
    let spare = names.pop().unwrap();
    fs::remove_file(directory.path().join(spare)).unwrap();
    while let Some(newest) = names.pop() {
        fs::remove_file(directory.path().join(newest)).unwrap();
        refused_as_corrupt(directory.path(), &format!("{names:?} are left"));
    }
}

#[test]
fn temporary_files_left_over_are_removed_and_others_are_not() {
    let (directory, whole) = closed_log();
    let ours = ["00000000000000000009.seg.tmp", "00000000000000000001.idx.tmp", ringwal::disk::PROBE_NAME];
    for name in ours.iter().chain(&["mine.tmp", "mine"]) {
        fs::write(directory.path().join(name), vec![1; 100]).unwrap();
    }
    opens_whole(directory.path(), &whole);
    assert!(ours.iter().all(|name| !directory.path().join(name).exists()));
    assert!(["mine.tmp", "mine"].iter().all(|name| directory.path().join(name).exists()));
}

#[test]
fn segments_of_an_interrupted_drop_are_removed_once_the_log_is_open() {
    let directory = tempfile::tempdir().unwrap();
    let log = fill(directory.path());
    let names = segment_names(directory.path());
    let old: Vec<_> =
        names[..3].iter().map(|name| (name.clone(), fs::read(directory.path().join(name)).unwrap())).collect();
    log.compact(80).unwrap();
    let whole = Look::take(&log).unwrap();
    log.close().unwrap();
    let kept = segment_names(directory.path());
    assert!(old.iter().all(|(name, _)| !kept.contains(name)), "three segments were dropped: {kept:?}");
    // One that does not reach up to the log's first segment, and all of them in a row.
    for left_over in [&old[..1], &old[..]] {
        for (name, bytes) in left_over {
            fs::write(directory.path().join(name), bytes).unwrap();
        }
        opens_whole(directory.path(), &whole);
    }
    let (name, bytes) = &old[0];
    fs::write(directory.path().join(name), bytes).unwrap();
    assert_eq!(opens_whole(directory.path(), &whole).segments_removed, 1);
    assert!(!directory.path().join(name).exists());
}
