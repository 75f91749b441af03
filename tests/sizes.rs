//! Sizes: payloads around every block boundary, the largest batch and one byte more, segments and blocks of every size,
//! settings out of their range.

mod common;

use std::time::Duration;

use common::{append_each, eventually, open_sim, payloads, small, told, try_open_sim, within};
use ringwal::format::frame::{HEAD_BYTES, OPERATION_HEADER_BYTES};
use ringwal::sim::{SimDisk, SimOptions};
use ringwal::{Batch, Config, Durability, Error, Log};

/// A payload that shows when bytes of another one are among its own.
fn payload(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 7 + bytes) as u8 | 1).collect()
}

fn blocks(block_bytes: u32) -> Config {
    small().block_bytes(Some(block_bytes)).segment_bytes(24 * u64::from(block_bytes))
}

/// The payload of the largest batch of one entry.
fn largest_payload(log: &Log) -> usize {
    match log.append(vec![0; 8 << 20]) {
        Err(Error::TooLarge { what: "batch", bytes, limit }) => {
            assert_eq!(bytes, (8 << 20) + OPERATION_HEADER_BYTES as u64);
            limit as usize - OPERATION_HEADER_BYTES
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn payloads_around_every_block_boundary_come_back_as_they_were() {
    for block_bytes in [512, 4096] {
        let disk = SimDisk::new(u64::from(block_bytes));
        let config = blocks(block_bytes).tail_cache_bytes(0);
        let log = open_sim(&disk, config.clone());
        let room = block_bytes as usize - HEAD_BYTES - OPERATION_HEADER_BYTES;
        let mut written = Vec::new();
        for around in [0, room, room + block_bytes as usize, room + 2 * block_bytes as usize] {
            for bytes in around.saturating_sub(9)..around + 10 {
                written.push(payload(bytes));
                let index = log.append(payload(bytes)).unwrap();
                assert_eq!(log.get(index).unwrap().command, payload(bytes), "{bytes} bytes");
            }
        }
        assert_eq!(payloads(&log), written);
        let log = open_sim(&disk.crash_point().keep_completed(), config.verify(ringwal::Verify::Full));
        assert_eq!(payloads(&log), written);
    }
}

#[test]
fn the_largest_batch_fits_and_one_byte_more_is_refused_with_the_limit() {
    for (block_bytes, segment_blocks) in [(512, 24), (512, 100), (4096, 24), (4096, 64), (65536, 24)] {
        let disk = SimDisk::new(1);
        let config = blocks(block_bytes).segment_bytes(u64::from(block_bytes) * segment_blocks);
        let log = open_sim(&disk, config.clone());
        let largest = largest_payload(&log);
        let block_bytes = block_bytes as usize;
        assert!(largest > block_bytes * segment_blocks as usize * 2 / 5, "the limit of {largest} is too small");
        let refused = told(log.append(payload(largest + 1)));
        assert!(refused.contains(&format!("limit: {}", largest + OPERATION_HEADER_BYTES)), "{refused}");
        assert_eq!(log.state().last, None);
        // Behind one small entry each, so that most do not fit where the log stands.
        for round in 0..4 {
            assert_eq!(log.append(payload(largest)).unwrap(), 2 * round + 1);
            log.append("small").unwrap();
        }
        log.close().unwrap();
        let log = open_sim(&disk, config);
        assert_eq!(payloads(&log).iter().filter(|found| **found == payload(largest)).count(), 4);
    }
}

#[test]
fn many_small_entries_make_a_largest_batch_too() {
    let disk = SimDisk::new(1);
    let log = open_sim(&disk, blocks(512));
    let each = OPERATION_HEADER_BYTES + 8;
    let count = (largest_payload(&log) + OPERATION_HEADER_BYTES) / each;
    let batch = |count: usize| (0..count).fold(Batch::new(), |batch, _| batch.push(payload(8)));
    assert!(matches!(log.write(batch(count + 1)), Err(Error::TooLarge { what: "batch", .. })));
    assert_eq!(log.write(batch(count)).unwrap(), 1..count as u64 + 1);
    drop(log);
    assert_eq!(payloads(&open_sim(&disk, blocks(512))), vec![payload(8); count]);
}

#[test]
fn the_largest_batch_fits_with_the_largest_hard_state_wherever_the_log_stands() {
    // The pair's header, the key and the value together are an eighth of the segment.
    let config = blocks(512);
    let value = vec![1; 24 * 512 / 8 - 8 - 1];
    for filled in 0..24 {
        let disk = SimDisk::new(filled);
        let log = open_sim(&disk, config.clone());
        log.put_meta(b"k", &value).unwrap();
        assert!(matches!(log.put_meta(b"l", b""), Err(Error::TooLarge { what: "hard state", .. })));
        eventually("a spare stands", || log.segments().len() == 2);
        append_each(&log, (0..filled).map(|_| "a block each"));
        let largest = largest_payload(&log);
        // A log closed with its segment filled to any block begins its next life with an open frame there.
        log.close().unwrap();
        let log = open_sim(&disk, config.clone());
        let theirs = log.clone();
        let index = within("the largest batch", move || theirs.append(payload(largest))).unwrap();
        assert_eq!((index, log.get(index).unwrap().command), (filled + 1, payload(largest).into()));
        let theirs = log.clone();
        within("another", move || theirs.append(payload(largest))).unwrap();
        assert_eq!(log.get_meta(b"k").as_deref(), Some(&value[..]));
    }
}

#[test]
fn blocks_are_no_smaller_than_what_the_device_writes_as_a_whole() {
    let device =
        |physical_block_bytes| SimDisk::with_options(SimOptions { physical_block_bytes, ..Default::default() });
    let refused = told(try_open_sim(&device(4096), blocks(512)));
    assert!(refused.contains("Config") && refused.contains("512") && refused.contains("4096"), "{refused}");
    for (physical, expected) in [(512, 4096), (4096, 4096), (16384, 16384)] {
        let log = open_sim(&device(physical), small().segment_bytes(1 << 20));
        assert_eq!(log.segments()[0].block_bytes, expected, "a device with blocks of {physical}");
        log.append(payload(20_000)).unwrap();
        assert_eq!(log.get(1).unwrap().command, payload(20_000));
    }
}

#[test]
fn segments_too_small_for_the_blocks_they_would_have_are_refused() {
    // The device decides the block size here, and then the segment has too few of them.
    let disk = SimDisk::with_options(SimOptions { physical_block_bytes: 16384, ..Default::default() });
    let refused = told(try_open_sim(&disk, small()));
    assert!(refused.starts_with("Config") && refused.contains("segment"), "{refused}");
    assert!(try_open_sim(&disk, small().segment_bytes(24 * 16384)).is_ok());
    // The log's own segment size decides, not the setting.
    let disk = SimDisk::new(1);
    open_sim(&disk, blocks(512)).append("kept").unwrap();
    let refused = told(try_open_sim(&disk, small().segment_bytes(4 << 20).block_bytes(Some(65536))));
    assert!(refused.starts_with("Config") && refused.contains("segment"), "{refused}");
    assert_eq!(payloads(&open_sim(&disk, blocks(512))), [b"kept"]);
}

#[test]
fn the_segment_size_is_the_logs_and_the_block_size_each_segments_own() {
    let disk = SimDisk::new(1);
    let log = open_sim(&disk, blocks(512).segment_bytes(48 * 4096));
    log.append("first").unwrap();
    eventually("a spare stands", || log.segments().len() == 2);
    drop(log);
    let log = open_sim(&disk, small().segment_bytes(1 << 20).block_bytes(Some(4096)));
    let theirs = log.clone();
    within("rolling twice", move || append_each(&theirs, (0..200).map(|_| payload(3000))));
    assert!(log.stats().rolls >= 2);
    let segments = log.segments();
    assert!(segments.iter().all(|segment| segment.bytes == 48 * 4096));
    assert_eq!((segments[0].block_bytes, segments.last().unwrap().block_bytes), (512, 4096));
    drop(log);
    assert_eq!(payloads(&open_sim(&disk, small())).len(), 201);
}

#[test]
fn settings_out_of_their_range_are_refused_by_name() {
    let base = Config::default;
    let bad = [
        (base().block_bytes(Some(513)), "block_bytes"),
        (base().block_bytes(Some(256)), "block_bytes"),
        (base().block_bytes(Some(1 << 17)), "block_bytes"),
        (base().segment_bytes(23 * 4096), "segment_bytes"),
        (base().segment_bytes(100_000), "segment_bytes"),
        (base().segment_bytes(1 << 32), "segment_bytes"),
        (base().segment_bytes(24 * 4096).block_bytes(Some(8192)), "segment_bytes"),
        (base().frames_in_flight(0), "frames_in_flight"),
        (base().frames_in_flight(65), "frames_in_flight"),
        (base().frame_bytes_max(4095), "frame_bytes_max"),
        (base().frame_bytes_max(u64::MAX), "frame_bytes_max"),
        (base().spare_segments(0), "spare_segments"),
        (base().spare_segments(9), "spare_segments"),
        (base().linger(Duration::from_secs(2)), "linger"),
        (base().idle_mark_after(Duration::ZERO), "idle_mark_after"),
        (base().first_index(u64::MAX), "first_index"),
        (base().durability(Durability::Interval(Duration::ZERO)), "Interval"),
    ];
    for (config, name) in bad {
        let disk = SimDisk::new(1);
        let error = try_open_sim(&disk, config.clone()).unwrap_err();
        assert!(matches!(&error, Error::Config(text) if text.contains(name)), "{name}: {error}");
        assert!(config.validate().is_err());
        assert_eq!(disk.file_names(), [], "nothing was touched");
    }
    assert!(base().validate().is_ok());
}

#[test]
fn extreme_settings_that_are_allowed_work() {
    let good = [
        blocks(512).frames_in_flight(1).in_flight_bytes_max(0).tail_cache_bytes(0).spare_segments(8),
        blocks(512).frames_in_flight(64).frame_bytes_max(512).queue_bytes_max(1),
        blocks(512).frame_bytes_max(1 << 30).in_flight_bytes_max(u64::MAX).queue_bytes_max(u64::MAX),
        blocks(512).linger(Duration::from_millis(1)).idle_mark_after(Duration::from_millis(1)),
        blocks(512).wait(ringwal::Wait::Spin(Duration::from_micros(50))).tail_cache_bytes(u64::MAX),
        blocks(512).durability(Durability::Interval(Duration::MAX)).lock_wait(Duration::ZERO),
        blocks(512).first_index(ringwal::format::INDEX_MAX - 60).idle_mark_after(Duration::MAX),
    ];
    for config in good {
        let disk = SimDisk::new(1);
        let (log, wanted) = (open_sim(&disk, config.clone()), config.clone());
        within("appending", move || append_each(&log, (0..60).map(payload)));
        let log = open_sim(&disk, wanted);
        assert_eq!(payloads(&log), (0..60).map(payload).collect::<Vec<_>>(), "{config:?}");
    }
}

#[test]
fn the_last_index_there_is_can_be_used_and_none_above_it() {
    let last = ringwal::format::INDEX_MAX;
    let disk = SimDisk::new(1);
    let log = open_sim(&disk, blocks(512).first_index(last));
    assert_eq!(log.append("the last").unwrap(), last);
    assert!(matches!(log.append("one more"), Err(Error::TooLarge { what: "index", limit, .. }) if limit == last));
    assert!(matches!(log.compact_to(last + 1, 0), Err(Error::TooLarge { what: "index", .. })));
    assert_eq!(log.iter(..).map(|entry| entry.unwrap().index).collect::<Vec<_>>(), [last]);
    assert_eq!(log.iter(last..=u64::MAX).count(), 1);
    log.compact(last).unwrap();
    assert_eq!(log.term(last).unwrap(), 0);
    drop(log);
    assert_eq!(open_sim(&disk, blocks(512)).state().compacted, Some((last, 0)));
}
