//! What a newer version wrote is refused as such: never cut as torn, never called corrupt, and left as it is.
//!
//! The bytes are altered by hand, as the format's description says, and their checksums made to fit.

use std::sync::Arc;
use std::time::Duration;

use ringwal::format::{Salted, lock, names};
use ringwal::sim::SimDisk;
use ringwal::{Config, Error, Log, SegmentRole, Verify};

const BLOCK: usize = 512;
const SEGMENT: usize = 24 * BLOCK;

fn config() -> Config {
    let small = Config::default().segment_bytes(SEGMENT as u64).block_bytes(Some(BLOCK as u32));
    small.idle_mark_after(Duration::from_secs(3600))
}

/// Where the frames of a log lie: file and offset.
struct Frames {
    disk: SimDisk,
    /// Of each segment with frames, oldest first: its name and the end of its frames.
    ends: Vec<(String, usize)>,
}

/// A log of some segments, one block per frame; closed or killed.
fn log(closed: bool) -> Frames {
    let disk = SimDisk::new(1);
    let (log, _) = Log::open_on(Arc::new(disk.clone()), config()).unwrap();
    for nth in 0..60u64 {
        log.append(vec![nth as u8; 50]).unwrap();
    }
    let of_log = |log: &Log| {
        let used = log.segments().into_iter().filter(|segment| segment.role != SegmentRole::Spare);
        used.map(|segment| (names::segment(segment.sequence), segment.used_bytes as usize)).collect::<Vec<_>>()
    };
    let ends = of_log(&log);
    assert!(ends.len() >= 3);
    let killed = disk.copy_at_rest();
    log.close().unwrap();
    Frames { disk: if closed { disk } else { killed }, ends }
}

fn salt_of(header: &[u8]) -> u64 {
    u64::from_le_bytes(header[48..56].try_into().unwrap())
}

/// Alters the head of a frame and makes its checksum fit.
fn alter_head(disk: &SimDisk, name: &str, offset: usize, alter: impl Fn(&mut [u8])) {
    let edit = |bytes: &mut Vec<u8>| {
        let salt = salt_of(bytes);
        let head = &mut bytes[offset..offset + 88];
        assert_eq!(&head[..4], b"RWF1", "there is a frame at {offset} of {name}");
        alter(head);
        let checksum = Salted::new(salt).over(&head[..84]).value();
        head[84..].copy_from_slice(&checksum.to_le_bytes());
    };
    disk.edit_file(name, edit).unwrap();
}

/// The open, by whatever way, says that a newer version wrote this file at this place; and changes nothing.
fn assert_unsupported(disk: &SimDisk, name: &str, offset: u64, what: &str) {
    for verify in [Verify::Tail, Verify::Full] {
        let copy = disk.copy_at_rest();
        let refused = Log::open_on(Arc::new(copy.clone()), config().verify(verify)).unwrap_err();
        assert!(refused.to_string().contains("open it with that version"), "{refused}");
        match &refused {
            Error::Unsupported { file, offset: at, what: found } => {
                assert!(file.ends_with(name) && *at == offset && found.contains(what), "{name} at {offset}: {refused}");
            }
            other => panic!("{name} at {offset}: {other}"),
        }
        for name in disk.file_names() {
            if *name != *names::LOCK {
                assert!(copy.contents(&name).unwrap() == disk.contents(&name).unwrap(), "{name} was changed");
            }
        }
        assert_eq!(copy.file_names(), disk.file_names());
    }
}

#[test]
fn a_frame_of_a_future_kind_flag_or_log_is_refused_wherever_it_stands() {
    // What the error says, the byte of the head, and the bits that change.
    let changes = [("frame kind", 4, 8), ("frame flags", 5, 0x40), ("log number 3", 6, 3)];
    for closed in [true, false] {
        let frames = log(closed);
        let (active, end) = frames.ends.last().unwrap();
        // In the middle of the last segment, and the last frame: in a log that was killed nothing proves that one.
        for offset in [BLOCK, 2 * BLOCK, end - 2 * BLOCK, end - BLOCK] {
            for (what, at, bits) in changes {
                let copy = frames.disk.copy_at_rest();
                alter_head(&copy, active, offset, |head| head[at] ^= bits);
                assert_unsupported(&copy, active, offset as u64, what);
            }
        }
        // The first frame of each segment is looked at by every open.
        for (name, _) in &frames.ends {
            for (what, at, bits) in changes {
                let copy = frames.disk.copy_at_rest();
                alter_head(&copy, name, BLOCK, |head| head[at] ^= bits);
                assert_unsupported(&copy, name, BLOCK as u64, what);
            }
        }
    }
}

/// Where the walk ends, what is behind is in flight and cut: but not if a newer version wrote it.
#[test]
fn a_frame_of_a_future_kind_behind_the_end_is_not_cut_as_torn() {
    let frames = log(false);
    let (active, end) = frames.ends.last().unwrap();
    let last = end - BLOCK;
    let copy = frames.disk.copy_at_rest();
    // The last frame once more, one block later, of a future kind; where it was it is torn.
    let bytes = copy.read_file(active).unwrap()[last..*end].to_vec();
    copy.edit_range(active, *end as u64..(*end + BLOCK) as u64, |block| block.copy_from_slice(&bytes)).unwrap();
    alter_head(&copy, active, *end, |head| head[4] = 9);
    copy.zero_range(active, last as u64..*end as u64).unwrap();
    assert_unsupported(&copy, active, *end as u64, "frame kind 9");
}

#[test]
fn a_segment_of_format_version_2_is_refused() {
    let frames = log(true);
    for (name, _) in &frames.ends {
        let copy = frames.disk.copy_at_rest();
        let edit = |bytes: &mut Vec<u8>| {
            bytes[8] = 2;
            let checksum = Salted::new(salt_of(bytes)).over(&bytes[..56]).value();
            bytes[56..60].copy_from_slice(&checksum.to_le_bytes());
        };
        copy.edit_file(name, edit).unwrap();
        assert_unsupported(&copy, name, 8, "format version 2");
    }
}

#[test]
fn a_lock_slot_of_format_version_2_is_refused() {
    let frames = log(true);
    for offset in lock::SLOT_OFFSETS {
        let copy = frames.disk.copy_at_rest();
        let edit = |bytes: &mut Vec<u8>| {
            let slot = &mut bytes[offset as usize..][..44];
            assert_eq!(&slot[..8], b"RWALLOCK", "both slots were written");
            slot[8] = 2;
            let salt = u64::from_le_bytes(slot[16..24].try_into().unwrap());
            let checksum = Salted::new(salt).over(&slot[..40]).value();
            slot[40..].copy_from_slice(&checksum.to_le_bytes());
        };
        copy.edit_file(names::LOCK, edit).unwrap();
        assert_unsupported(&copy, names::LOCK, offset, "format version 2");
    }
}

/// Gives the frame without a base at a place an operation of a future kind, and makes all of it verify.
fn give_it_a_future_operation(disk: &SimDisk, name: &str, offset: usize) {
    let edit = |bytes: &mut Vec<u8>| {
        let salt = salt_of(bytes);
        let place = (offset + 88) as u32;
        let operation = &mut bytes[offset + 88..];
        operation[0] = 77;
        let payload_bytes = u32::from_le_bytes(operation[4..8].try_into().unwrap()) as usize;
        operation[36..40].copy_from_slice(&place.to_le_bytes());
        let checksum = Salted::new(salt).over(&operation[..40 + payload_bytes]).value();
        operation[36..40].copy_from_slice(&checksum.to_le_bytes());
        let headers = Salted::new(salt).over(&operation[..40]).value();
        bytes[offset + 80..offset + 84].copy_from_slice(&headers.to_le_bytes());
    };
    disk.edit_file(name, edit).unwrap();
    alter_head(disk, name, offset, |_| ());
}

/// An operation of a future kind makes its frame unreadable, though its head is of a known kind.
#[test]
fn an_operation_of_a_future_kind_is_refused() {
    let frames = log(true);
    let (active, end) = frames.ends.last().unwrap();
    let copy = frames.disk.copy_at_rest();
    // Its head changes with it: it is the last one, so that no chain is broken.
    give_it_a_future_operation(&copy, active, end - BLOCK);
    let refused = Log::open_on(Arc::new(copy), config()).unwrap_err();
    assert!(matches!(refused, Error::Unsupported { .. }), "{refused}");
}

/// A newer version crashed with two frames in flight, of which only the second arrived, and it has an operation of a
/// future kind. An open cuts it like any other frame in flight; then it stands right behind the new life's first frame,
/// dead, and must not keep the log from opening again.
#[test]
fn a_dead_frame_with_an_operation_of_a_future_kind_does_not_bar_the_log() {
    let frames = log(false);
    let (active, end) = frames.ends.last().unwrap();
    let (lost, last) = (end - 2 * BLOCK, end - BLOCK);
    give_it_a_future_operation(&frames.disk, active, last);
    let in_flight_together = |head: &mut [u8]| {
        let watermark = u64::from_le_bytes(head[72..80].try_into().unwrap());
        head[72..80].copy_from_slice(&(watermark - 1).to_le_bytes());
    };
    alter_head(&frames.disk, active, last, in_flight_together);
    frames.disk.zero_range(active, lost as u64..last as u64).unwrap();
    for life in 0..3 {
        let (log, report) = Log::open_on(Arc::new(frames.disk.clone()), config()).unwrap();
        assert_eq!((log.state().last, report.bytes_cut > 0), (Some((58, 0)), life == 0));
        log.close().unwrap();
    }
}
