//! A disk filled to the brim, for real: appends are refused, all else works, and goes on when there is room again.
//!
//! On small file systems of their own: in memory, and ext4 with a journal on a loop device. Where this user may not
//! mount, the tests say so and are skipped.

#[path = "look/mod.rs"]
mod look;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use look::Look;
use ringwal::{Batch, Config, Error, IoChoice, Log};
use rustix::mount::{MountFlags, UnmountFlags};
use tempfile::TempDir;

/// A small file system, until this is dropped.
struct Small {
    at: PathBuf,
    _directory: TempDir,
}

impl Small {
    fn in_memory() -> Option<Small> {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().join("mounted");
        fs::create_dir(&at).unwrap();
        match rustix::mount::mount("tmpfs", &at, "tmpfs", MountFlags::empty(), Some(c"size=1m")) {
            Ok(()) => Some(Small { at, _directory: directory }),
            Err(error) => {
                println!("skipped: cannot mount a file system here ({error})");
                None
            }
        }
    }

    fn ext4() -> Option<Small> {
        let directory = tempfile::tempdir().unwrap();
        let (at, image) = (directory.path().join("mounted"), directory.path().join("image"));
        fs::create_dir(&at).unwrap();
        File::create(&image).unwrap().set_len(12 << 20).unwrap();
        let made = run("mkfs.ext4", &["-q", "-F", "-m", "0", "-J", "size=4", image.to_str().unwrap()]);
        let mounted = made.and_then(|()| run("mount", &["-o", "loop", image.to_str().unwrap(), at.to_str().unwrap()]));
        match mounted {
            Ok(()) => {
                let small = Small { at, _directory: directory };
                small.leave(1 << 20);
                Some(small)
            }
            Err(why) => {
                println!("skipped: cannot make and mount an ext4 here ({why})");
                None
            }
        }
    }

    fn log(&self) -> PathBuf {
        self.at.join("log")
    }

    fn filler(&self) -> PathBuf {
        self.at.join("filler")
    }

    /// Takes all room but so much: every synced append takes its time.
    fn leave(&self, bytes: u64) {
        let room = rustix::fs::statvfs(&self.at).unwrap();
        let ballast = (room.f_bavail * room.f_frsize).saturating_sub(bytes) as usize;
        fs::write(self.at.join("ballast"), vec![1; ballast]).unwrap();
    }

    /// Keeps some room from the log, for [`Small::free`] to give: more than one segment.
    fn reserve(&self, bytes: usize) {
        File::create(self.filler()).unwrap().write_all(&vec![1; bytes]).unwrap();
    }

    /// Takes whatever room is left, to the last block.
    fn fill(&self) {
        let mut filler = File::options().create(true).append(true).open(self.filler()).unwrap();
        for piece in [64 << 10, 4096, 512, 1] {
            while filler.write_all(&vec![1; piece]).is_ok() {}
            let _ = filler.sync_all();
        }
    }

    fn free(&self) {
        fs::remove_file(self.filler()).unwrap();
        // Blocks that a journal still speaks of are not free before it is written.
        File::open(&self.at).unwrap().sync_all().unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.at, UnmountFlags::DETACH);
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

fn config(io: IoChoice) -> Config {
    let small = Config::default().segment_bytes(24 * 4096).tail_cache_bytes(0).lock_wait(Duration::from_secs(60));
    small.idle_mark_after(Duration::from_secs(3600)).io(io)
}

fn open(small: &Small, io: IoChoice) -> Log {
    Log::open(small.log(), config(io)).unwrap_or_else(|error| panic!("{io:?}: {error}")).0
}

/// Appends until it is refused; returns how many were acknowledged.
fn append_until_refused(log: &Log) -> u64 {
    for nth in 0..100_000u64 {
        match log.append(vec![nth as u8; 2000]) {
            Ok(_) => {}
            Err(Error::NoSpace) => return nth,
            Err(error) => panic!("append {nth}: {error}"),
        }
    }
    panic!("the disk is never full");
}

fn assert_refuses(log: &Log) {
    let before = log.state();
    let error = log.append(vec![1; 2000]).unwrap_err();
    assert!(matches!(error, Error::NoSpace), "{error}");
    assert!(error.to_string().contains("free space on the disk or compact the log"), "{error}");
    assert_eq!(log.state(), before, "a refused append leaves nothing behind");
    // Where no spare stands, a call that never waits says that it would have to, or what the last attempt found.
    let (error, _) = log.try_submit(Batch::new().push(vec![1; 2000])).map(drop).unwrap_err();
    assert!(matches!(error, Error::NoSpace | Error::Busy), "{error}");
}

fn filled_to_the_brim(small: &Small) {
    for io in [IoChoice::Auto, IoChoice::Syscall] {
        let log = open(small, io);
        println!("{io:?}: {}", log.io_mode());
        small.reserve(300 << 10);
        let acked = append_until_refused(&log);
        assert!(acked > 30, "only {acked} fitted");
        small.fill();
        assert_refuses(&log);
        let whole = Look::take(&log).unwrap();
        assert_eq!(whole.entries.len() as u64, acked, "reads go on");
        log.put_meta(b"vote", b"small things still fit").unwrap();
        log.close().unwrap();

        reopens_while_full(small, io, &whole);
        goes_on_when_space_is_freed(small, io, &whole);
        goes_on_after_compaction(small, io);
        fs::remove_dir_all(small.log()).unwrap();
    }
}

/// Again and again: an open must not use up what little is left.
fn reopens_while_full(small: &Small, io: IoChoice, whole: &Look) {
    for _ in 0..12 {
        let log = open(small, io);
        assert_eq!(Look::take(&log).unwrap().entries, whole.entries);
        assert_refuses(&log);
        log.close().unwrap();
    }
    assert_eq!(Look::take(&Log::open_read_only(small.log()).unwrap().0).unwrap().entries, whole.entries);
}

fn goes_on_when_space_is_freed(small: &Small, io: IoChoice, whole: &Look) {
    let log = open(small, io);
    assert_refuses(&log);
    small.free();
    let index = log.append("there is room again").unwrap_or_else(|error| panic!("{io:?}: {error}"));
    assert_eq!(index, whole.last.unwrap().0 + 1);
    small.reserve(150 << 10);
    append_until_refused(&log);
    small.fill();
    assert_refuses(&log);
}

/// Compaction is recorded on a full disk, and what it lets go makes room, also behind the filler.
fn goes_on_after_compaction(small: &Small, io: IoChoice) {
    let log = open(small, io);
    assert_refuses(&log);
    for _ in 0..3 {
        let state = log.state();
        let (last, _) = state.last.unwrap();
        let middle = state.first + (last - state.first) / 2;
        log.compact(middle).unwrap_or_else(|error| panic!("{io:?}: {error}"));
        assert_eq!((log.state().first, log.get(last).unwrap().index), (middle + 1, last));
        let more = append_until_refused(&log);
        assert!(more > 0, "nothing fitted after a compaction to {middle} of {state:?}");
        assert_refuses(&log);
    }
    let whole = Look::take(&log).unwrap();
    log.close().unwrap();
    let log = open(small, io);
    assert_eq!(Look::take(&log).unwrap(), whole);
    small.free();
    log.append("after all").unwrap();
}

#[test]
fn a_file_system_in_memory_filled_to_the_brim() {
    if let Some(small) = Small::in_memory() {
        filled_to_the_brim(&small);
    }
}

#[test]
fn an_ext4_filled_to_the_brim() {
    if let Some(small) = Small::ext4() {
        filled_to_the_brim(&small);
    }
}

/// No room for even the first segment: an error, and nothing that stands in the way of the next try.
#[test]
fn a_log_cannot_be_created_on_a_full_disk_and_can_once_there_is_room() {
    for small in [Small::in_memory(), Small::ext4()].into_iter().flatten() {
        fs::create_dir(small.log()).unwrap();
        small.fill();
        let error = Log::open(small.log(), config(IoChoice::Auto)).unwrap_err();
        assert!(error.to_string().contains("free space on the disk"), "{error}");
        assert!(is_out_of_space(&error), "{error}");
        small.free();
        open(&small, IoChoice::Auto).append("created").unwrap();
    }
}

fn is_out_of_space(error: &Error) -> bool {
    match error {
        Error::NoSpace => true,
        Error::Io { source, .. } => source.kind() == std::io::ErrorKind::StorageFull,
        _ => false,
    }
}

/// Kills nothing, but leaves the log as a kill would: the last frames have no mark, and there is no room to save or
/// rewrite anything new.
#[test]
fn a_log_that_was_not_closed_reopens_while_the_disk_is_full() {
    for small in [Small::in_memory(), Small::ext4()].into_iter().flatten() {
        small.reserve(300 << 10);
        let log = open(&small, IoChoice::Auto);
        append_until_refused(&log);
        small.fill();
        let whole = Look::take(&log).unwrap();
        let copy = copy_over(&small);
        log.close().unwrap();
        // Back in place as it stood while the log was open; every block that differs is allocated.
        for (name, bytes) in copy {
            let path = small.log().join(name);
            let (now, file) = (fs::read(&path).unwrap(), File::options().write(true).open(path).unwrap());
            for (nth, block) in
                bytes.chunks(512).enumerate().filter(|(nth, block)| now[nth * 512..][..block.len()] != **block)
            {
                file.write_all_at(block, nth as u64 * 512).unwrap();
            }
        }
        let log = open(&small, IoChoice::Auto);
        assert_eq!(Look::take(&log).unwrap(), whole);
        assert_refuses(&log);
        small.free();
        log.append("there is room again").unwrap();
    }
}

/// The log's files as they stand.
fn copy_over(small: &Small) -> Vec<(String, Vec<u8>)> {
    let read = |path: &Path| fs::read(path).unwrap();
    let entries = fs::read_dir(small.log()).unwrap().map(|entry| entry.unwrap());
    let files = entries.map(|entry| (entry.file_name().into_string().unwrap(), entry.path()));
    // The helper may be trying to make something, and not be able to.
    files.filter(|(name, _)| !name.ends_with(".tmp")).map(|(name, path)| (name, read(&path))).collect()
}
