//! Micro-benchmarks of a log on a real directory, and of the format alone.
//!
//! `RINGWAL_BENCH_DIR` names the directory (default: the system's for temporary files); compare runs on one machine
//! only, one after the other. What the device could do at best is `ringwal bench`'s business.

use std::hint::black_box;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringwal::format::frame::{self, Epoch, FrameKind, FrameSpec, Head, HeadRead, Operation};
use ringwal::{Batch, Config, Log};
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

fn read(criterion: &mut Criterion) {
    let dir = scratch();
    let log = open(&dir);
    for _ in 0..400 {
        let batch = (0..500).fold(Batch::new(), |batch, _| batch.push(vec![7; 128]));
        log.write(batch).expect("written");
    }
    let next = log.state().last.map_or(0, |(index, _)| index + 1);
    let mut group = criterion.benchmark_group("read 128 B");
    let mut spread = 0u64;
    let mut somewhere = move |from: u64, to: u64| {
        spread = spread.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        from + (spread >> 33) % (to - from)
    };
    group.bench_function("get, tail cache", |bench| {
        bench.iter(|| log.get(black_box(somewhere(next - 1000, next))).expect("read"));
    });
    group.bench_function("get, sealed and warm", |bench| {
        bench.iter(|| log.get(black_box(somewhere(1, next / 4))).expect("read"));
    });
    group.throughput(Throughput::Elements(next / 4));
    group.bench_function("scan, sealed and warm", |bench| {
        bench.iter(|| log.iter(1..next / 4).map(|entry| entry.expect("read").command.len()).sum::<usize>());
    });
    group.finish();
}

fn format(criterion: &mut Criterion) {
    let payload = Bytes::from(vec![7; 1 << 10]);
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
    let mut group = criterion.benchmark_group("frame of 100 x 1 KiB");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("encode", |bench| bench.iter(|| frame::encode(&spec, black_box(&mut bytes))));
    let HeadRead::Head(head) = Head::decode(&bytes, 1) else { unreachable!("it was encoded just now") };
    group.bench_function("verify", |bench| bench.iter(|| frame::verify(&head, black_box(&bytes)).is_ok()));
    group.finish();
}

criterion_group!(benches, append, batch, read, format);
criterion_main!(benches);
