//! Memory is bounded by settings, never by what the disk says: lengths that lie, and logs ten times as large.
//!
//! An allocator that counts stands under this file's tests: bytes, not time. It counts each thread apart, and recovery
//! runs in the caller's thread ([`Log::recover_on`]).

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use common::{block_on, eventually, open_sim, small, tiny};
use ringwal::format::snapshot::CHUNKS_MAX;
use ringwal::format::{Salted, lock, names};
use ringwal::machine::KvStateMachine;
use ringwal::sim::SimDisk;
use ringwal::{
    Batch, Config, Error, FileSnapshots, Log, SegmentRole, SnapshotError, SnapshotOptions, StateMachine, Verify,
};

thread_local! {
    static NOW: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on to the system's allocator as it is; the counters are plain cells of this thread without
// a destructor, so that touching them neither allocates nor fails.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        NOW.set(NOW.get().wrapping_add(layout.size()));
        // What was freed for other threads may have brought the counter below zero.
        PEAK.set(PEAK.get().max(if NOW.get() > usize::MAX / 2 { 0 } else { NOW.get() }));
        // SAFETY: the caller's promise for `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.set(NOW.get().wrapping_sub(layout.size()));
        // SAFETY: the pointer came from `alloc` with the same layout, so from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What `work` gives, and the most bytes it held at once beyond those held before.
fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    NOW.set(0);
    PEAK.set(0);
    let done = work();
    (done, PEAK.get())
}

#[test]
fn the_counter_counts() {
    let (bytes, held) = peak(|| {
        drop(vec![1u8; 3 << 20]);
        vec![1u8; 1 << 20]
    });
    assert_eq!((bytes.len(), held), (1 << 20, 3 << 20));
}

/// A closed log of three segments or more, with index files.
fn closed(config: Config, entries: usize, bytes: usize) -> SimDisk {
    let disk = SimDisk::new(1);
    let log = open_sim(&disk, config);
    log.put_meta(b"vote", b"me").unwrap();
    for nth in 0..entries {
        log.append(vec![nth as u8; bytes]).unwrap();
    }
    log.write(Batch::new().push("one").push("two").put_meta(b"vote", b"you")).unwrap();
    let has_index = |sequence| disk.contents(&names::index(sequence)).is_ok();
    let is_done = || log.segments().iter().all(|info| info.role != SegmentRole::Sealed || has_index(info.sequence));
    eventually("index files are made", is_done);
    log.close().unwrap();
    disk.copy_at_rest()
}

/// Lies with their checksums made to fit: the place of the field, its width, and the bytes that a checksum covers.
struct Lie {
    at: usize,
    width: usize,
    sealed: fn(&mut [u8], u64),
}

fn lies() -> Vec<(&'static str, Lie)> {
    let header = |what, at, width| (what, Lie { at, width, sealed: seal_header });
    let head = |what, at| (what, Lie { at, width: 4, sealed: seal_head });
    vec![
        header("the segment's size", 16, 8),
        header("the block size", 12, 4),
        head("the frame's length", 512 + 8),
        head("the count of operations", 512 + 12),
        head("the count of entries", 512 + 16),
        head("the base's length", 512 + 20),
        head("the operations' length", 512 + 24),
        head("the first frame's pairs of hard state", 512 + 88 + 40),
        head("the first frame's bytes of hard state", 512 + 88 + 44),
        head("a later frame's length", 1024 + 8),
        head("a later frame's operations' length", 1024 + 24),
        head("an operation's length", 1024 + 88 + 4),
        head("an operation's key", 1024 + 88 + 32),
    ]
}

fn seal(bytes: &mut [u8], covered: std::ops::Range<usize>, at: usize, salt: u64) {
    let checksum = Salted::new(salt).over(&bytes[covered]).value();
    bytes[at..at + 4].copy_from_slice(&checksum.to_le_bytes());
}

fn seal_header(bytes: &mut [u8], salt: u64) {
    seal(bytes, 0..56, 56, salt);
}

/// Both heads; and of the frame in the second block its operation and its operations' headers.
fn seal_head(bytes: &mut [u8], salt: u64) {
    let payload = u32::from_le_bytes(bytes[1024 + 92..1024 + 96].try_into().unwrap()) as usize;
    let operation = 1024 + 88..1024 + 128;
    if payload <= 512 - 128 {
        // Where the checksum will be stands the operation's place.
        bytes[operation.start + 36..operation.end].copy_from_slice(&(operation.start as u32).to_le_bytes());
        seal(bytes, operation.start..operation.end + payload, operation.start + 36, salt);
    }
    seal(bytes, operation, 1024 + 80, salt);
    seal(bytes, 512..512 + 84, 512 + 84, salt);
    seal(bytes, 1024..1024 + 84, 1024 + 84, salt);
}

#[test]
fn lengths_that_lie_allocate_no_more_than_a_window() {
    let disk = closed(tiny(), 60, 200);
    let names: Vec<String> = disk.file_names().iter().map(|name| name.to_string()).collect();
    let mut refused = 0;
    for name in names.iter().filter(|name| name.ends_with(".seg")) {
        let salt = u64::from_le_bytes(disk.contents(name).unwrap()[48..56].try_into().unwrap());
        for (what, lie) in lies() {
            for value in [u64::MAX, u64::MAX >> 1, (1 << 31) - 8, (1 << 32) - 512, 1 << 30, 1 << 24, 65_536] {
                let copy = disk.copy_at_rest();
                let edit = |bytes: &mut Vec<u8>| {
                    bytes[lie.at..lie.at + lie.width].copy_from_slice(&value.to_le_bytes()[..lie.width]);
                    (lie.sealed)(bytes, salt);
                };
                copy.edit_file(name, edit).unwrap();
                refused += open_bounded(&copy, &format!("{what} of {name} is {value}"));
            }
        }
    }
    assert!(refused > 200, "only {refused} lies were noticed");
}

#[test]
fn index_files_that_lie_allocate_no_more_than_a_window() {
    let disk = closed(tiny(), 60, 200);
    let is_index = |name: &String| name.ends_with(".idx");
    for name in disk.file_names().iter().map(|name| name.to_string()).filter(is_index) {
        let salt = u64::from_le_bytes(disk.contents(&name).unwrap()[40..48].try_into().unwrap());
        for at in [88, 92] {
            for value in [u32::MAX, 1 << 31, 1 << 28, 1 << 20] {
                let copy = disk.copy_at_rest();
                let edit = |bytes: &mut Vec<u8>| {
                    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
                    seal(bytes, 0..108, 108, salt);
                };
                copy.edit_file(&name, edit).unwrap();
                assert_eq!(open_bounded(&copy, &format!("byte {at} of {name} is {value}")), 0, "an index is derived");
            }
        }
    }
}

#[test]
fn files_of_random_bytes_allocate_no_more_than_a_window() {
    let disk = closed(tiny(), 60, 200);
    let mut rng = ringwal::sim::Rng::new(7);
    for name in disk.file_names() {
        for _ in 0..20 {
            let copy = disk.copy_at_rest();
            let from = [0, 60, 512, 600, lock::SLOT_OFFSETS[1] as usize][rng.below(5)];
            let fill = |bytes: &mut Vec<u8>| {
                bytes.iter_mut().skip(from).for_each(|byte| *byte = rng.next_u64() as u8);
            };
            copy.edit_file(&name, fill).unwrap();
            open_bounded(&copy, &format!("{name} at random from {from}"));
        }
    }
}

/// Opens and reads everything; 1 where that is refused.
fn open_bounded(disk: &SimDisk, what: &str) -> usize {
    const WINDOW: usize = 1 << 20;
    let mut refused = 0;
    for verify in [Verify::Tail, Verify::Full] {
        let work = || match Log::recover_on(Arc::new(disk.copy_at_rest()), tiny().verify(verify)) {
            Ok((log, _)) => log.iter(..).all(|entry| entry.is_ok()),
            Err(Error::Corrupt { .. } | Error::Unsupported { .. }) => false,
            Err(other) => panic!("{what}: {other}"),
        };
        let (is_whole, held) = peak(work);
        assert!(held < 3 * WINDOW, "{what}: {held} bytes were held at once");
        refused = refused.max(usize::from(!is_whole));
    }
    refused
}

#[test]
fn ten_times_the_log_opens_in_hardly_more_memory() {
    for verify in [Verify::Tail, Verify::Full] {
        let mut held = Vec::new();
        for entries in [300, 3000] {
            let disk = closed(small(), entries, 7000);
            let bytes: usize = disk.file_names().iter().map(|name| disk.contents(name).unwrap().len()).sum();
            let open = || Log::recover_on(Arc::new(disk.clone()), small().verify(verify)).unwrap();
            let ((log, report), most) = peak(open);
            assert_eq!((report.indexes_rebuilt, log.state().last.map(|(last, _)| last)), (0, Some(entries as u64 + 2)));
            held.push((bytes, most, log.segments().len()));
        }
        println!("{verify:?}: {held:?}");
        let ((small_bytes, small_held, _), (large_bytes, large_held, segments)) = (held[0], held[1]);
        assert!(large_bytes > 9 * small_bytes);
        // A kilobyte for each segment, whatever its size; a megabyte is the window.
        assert!(large_held < small_held.max(1 << 20) + 1024 * segments, "{large_held} bytes for {large_bytes}");
    }
}

#[test]
fn a_snapshot_whose_end_lies_in_a_file_of_holes_allocates_no_more_than_a_window() {
    const FILE_BYTES: u64 = 16 << 30;
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let snapshots = FileSnapshots::open(scratch.path(), SnapshotOptions::default()).unwrap();
    snapshots.writer(1, 0, "kv/1").unwrap().publish().unwrap();
    let file = File::options().write(true).open(scratch.path().join("snapshot_1_0.zst")).unwrap();
    file.set_len(FILE_BYTES).unwrap();
    for chunks in [1 << 10, 1 << 20, CHUNKS_MAX] {
        // The table's last entry, of padding, and its footer.
        let entries = (3 + 2 * chunks) as u32;
        let end = [&8u64.to_le_bytes()[..], &entries.to_le_bytes(), &[0], &0x8F92_EAB1u32.to_le_bytes()].concat();
        file.write_all_at(&end, FILE_BYTES - end.len() as u64).unwrap();
        let (found, held) = peak(|| snapshots.list().unwrap());
        assert!(matches!(found[..], [(_, Err(SnapshotError::Corrupt { .. }))]), "{found:?}");
        assert!(held < 256 << 10, "{chunks} chunks that are not there took {held} bytes");
    }
}

/// A state of the key-value machine: its head, then anything.
fn kv_state(keys: u64, bytes: u64, records: &[u8]) -> Vec<u8> {
    [&b"RWKV\x01"[..], &keys.to_le_bytes(), &bytes.to_le_bytes(), records].concat()
}

/// The LEB128 bytes of a number.
fn number(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

#[test]
fn states_and_commands_that_lie_allocate_no_more_than_a_window() {
    let mut machine = KvStateMachine::new();
    for value in [u64::MAX, u64::MAX >> 1, 1 << 40, 1 << 31, 1 << 24] {
        let records =
            [kv_state(value, value, b"\x01\x00a"), kv_state(1, value, &[number(value - 9), number(9)].concat())];
        let values = [kv_state(1, value, &[number(1), number(value - 1), b"ab".to_vec()].concat())];
        for state in records.iter().chain(&values) {
            let (restored, held) = peak(|| block_on(machine.set_state(state)));
            assert!(restored.is_err() && held < 256 << 10, "{state:?} took {held} bytes");
        }
        for tag in 1..=6 {
            for fields in [number(value), [vec![0], number(value)].concat(), [number(value), vec![0; 9]].concat()] {
                let command = Bytes::from([vec![1, tag], fields].concat());
                let (_, held) = peak(|| KvStateMachine::decode(&command));
                assert!(held < 4 << 10, "{command:?} took {held} bytes");
            }
        }
    }
}
