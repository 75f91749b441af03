//! Micro-benchmarks of a log on a real directory, and of the format alone.
//!
//! `RINGWAL_BENCH_DIR` names the directory (default: the system's for temporary files); compare runs on one machine
//! only, one after the other. What the device could do at best is `ringwal bench`'s business.

use std::fs::File;
use std::hint::black_box;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringwal::format::frame::{self, Epoch, FrameKind, FrameSpec, Head, HeadRead, Operation};
use ringwal::{Batch, Config, Log, SegmentInfo, SegmentRole};
use tempfile::TempDir;

fn scratch() -> TempDir {
    let root = std::env::var_os("RINGWAL_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::tempdir_in(root).expect("the directory for benches can be written")
}

fn open(dir: &TempDir) -> Log {
    let config = Config::default().segment_bytes(16 << 20).tail_cache_bytes(1 << 20);
    Log::open(dir.path().join("log"), config).expect("a fresh log opens").0
}

/// Time for `count` appends of 128 bytes, shared among so many producers.
fn append_many(log: &Log, producers: u64, count: u64) -> Duration {
    let started = Instant::now();
    thread::scope(|scope| {
        for nth in 0..producers {
            let share = count / producers + u64::from(nth < count % producers);
            scope.spawn(move || {
                for _ in 0..share {
                    log.append(vec![7; 128]).expect("appended");
                }
            });
        }
    });
    // What is kept stays bounded however long the bench runs.
    if let Some((last, _)) = log.state().last {
        log.compact(last).expect("compacted");
    }
    started.elapsed()
}

fn append(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("append 128 B");
    group.throughput(Throughput::Elements(1)).sample_size(10);
    for producers in [1, 16, 256] {
        let dir = scratch();
        let log = open(&dir);
        group.bench_function(format!("{producers} producers"), |bench| {
            bench.iter_custom(|count| append_many(&log, producers, count));
        });
    }
    group.finish();
}

fn batch(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("batch");
    group.throughput(Throughput::Bytes(100 << 10)).sample_size(10);
    let dir = scratch();
    let log = open(&dir);
    let payload = Bytes::from(vec![7; 1 << 10]);
    group.bench_function("100 x 1 KiB", |bench| {
        bench.iter(|| {
            let batch = (0..100).fold(Batch::new(), |batch, _| batch.push(payload.clone()));
            let indexes = log.write(batch).expect("written");
            if indexes.end % 10_000 < 100 {
                log.compact(indexes.start).expect("compacted");
            }
        });
    });
    group.finish();
}

/// A closed log with so many bytes in entries of this size, in segments that have their index files.
fn filled(payload_bytes: usize, bytes: usize) -> TempDir {
    let dir = scratch();
    let log = open(&dir);
    let payload = Bytes::from(vec![7; payload_bytes]);
    let batches = bytes / (payload_bytes + 40) / 500;
    for _ in 0..batches {
        log.write((0..500).fold(Batch::new(), |batch, _| batch.push(payload.clone()))).expect("written");
    }
    log.close().expect("closed");
    dir
}

/// The sealed segments, and the entries in them.
fn sealed(log: &Log) -> (Vec<SegmentInfo>, Range<u64>) {
    let segments = log.segments().into_iter().filter(|info| info.role == SegmentRole::Sealed).collect::<Vec<_>>();
    let entries = segments[0].entries.start..segments[segments.len() - 1].entries.end;
    (segments, entries)
}

fn get(criterion: &mut Criterion) {
    let dir = filled(128, 64 << 20);
    let log = open(&dir);
    let (_, entries) = sealed(&log);
    for _ in 0..2000 {
        drop(log.submit(Batch::new().push(vec![7; 128])).expect("accepted"));
    }
    log.sync().expect("synced");
    let next = log.state().last.map_or(0, |(index, _)| index + 1);
    let mut group = criterion.benchmark_group("get 128 B");
    let mut spread = 0u64;
    let mut somewhere = move |range: Range<u64>| {
        spread = spread.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        range.start + (spread >> 33) % (range.end - range.start)
    };
    group.bench_function("tail cache", |bench| {
        bench.iter(|| log.get(black_box(somewhere(next - 1000..next))).expect("read"));
    });
    group.bench_function("sealed and warm", |bench| {
        bench.iter(|| log.get(black_box(somewhere(entries.clone()))).expect("read"));
    });
    group.finish();
}

/// What a scan cannot be faster than by much: the files in pieces of 1 MiB, and a checksum over each.
fn read_bare(segments: &[SegmentInfo], buffer: &mut [u8]) -> u32 {
    let mut checksum = 0;
    for segment in segments {
        let file = File::open(&segment.file).expect("opened");
        for offset in (0..segment.bytes).step_by(buffer.len()) {
            let read = file.read_at(buffer, offset).expect("read");
            checksum ^= crc32c::crc32c(&buffer[..read]);
        }
    }
    checksum
}

fn scan(criterion: &mut Criterion) {
    for (name, payload_bytes) in [("scan 128 B", 128), ("scan 1 KiB", 1 << 10)] {
        let dir = filled(payload_bytes, 256 << 20);
        let (log, _) = Log::open_read_only(dir.path().join("log")).expect("opened");
        let (segments, entries) = sealed(&log);
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Bytes(segments.iter().map(|info| info.bytes).sum())).sample_size(20);
        let mut buffer = vec![0; 1 << 20];
        group.bench_function("bare read and checksum", |bench| bench.iter(|| read_bare(&segments, &mut buffer)));
        group.bench_function("iterated", |bench| {
            bench.iter(|| log.iter(entries.clone()).map(|entry| entry.expect("read").command.len()).sum::<usize>());
        });
        group.bench_function("lent", |bench| {
            bench.iter(|| {
                let (mut scan, mut bytes) = (log.iter(entries.clone()), 0);
                while let Some(entry) = scan.next_ref() {
                    bytes += entry.expect("read").command.len();
                }
                bytes
            });
        });
        group.finish();
    }
}

fn open_clean(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("open 256 MiB after a clean close");
    group.sample_size(10);
    for (name, payload_bytes) in [("128 B", 128), ("1 KiB", 1 << 10)] {
        let dir = filled(payload_bytes, 256 << 20);
        group.bench_function(name, |bench| {
            bench.iter_custom(|count| (0..count).map(|_| time_open(&dir)).sum());
        });
    }
    group.finish();
}

fn time_open(dir: &TempDir) -> Duration {
    let started = Instant::now();
    let log = open(dir);
    let took = started.elapsed();
    log.close().expect("closed");
    took
}

fn format(criterion: &mut Criterion) {
    for (name, payload_bytes) in [("frame of 100 x 128 B", 128), ("frame of 100 x 1 KiB", 1 << 10)] {
        let payload = Bytes::from(vec![7; payload_bytes]);
        let entry = |index| Operation::Entry { index, term: 1, timestamp: 0, payload: payload.clone() };
        let operations: Vec<Operation> = (0..100).map(entry).collect();
        let used = frame::HEAD_BYTES as u64 + operations.iter().map(Operation::encoded_bytes).sum::<u64>();
        let mut bytes = vec![0; used.next_multiple_of(4096) as usize];
        let spec = FrameSpec {
            kind: FrameKind::Data,
            number: 2,
            epoch: Epoch { counter: 1, random: 1 },
            chain: 1,
            watermark: 1,
            salt: 1,
            offset: 4096,
            first_index: Some(0),
            base: None,
            operations: &operations,
        };
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function("encode", |bench| bench.iter(|| frame::encode(&spec, black_box(&mut bytes))));
        let HeadRead::Head(head) = Head::decode(&bytes, 1) else { unreachable!("it was encoded just now") };
        group.bench_function("verify", |bench| bench.iter(|| frame::verify(&head, black_box(&bytes)).is_ok()));
        group.finish();
    }
}

criterion_group!(benches, append, batch, get, scan, open_clean, format);
criterion_main!(benches);
