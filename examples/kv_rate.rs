//! scratch: rates of the store beside the bare log
use ringwal::*;
use std::sync::atomic::*;
use std::time::*;
fn run(threads: usize, secs: f64, op: impl Fn(usize, u64) + Sync) -> (f64, Vec<u64>) {
    let stop = AtomicBool::new(false);
    let all = std::sync::Mutex::new(Vec::new());
    let began = Instant::now();
    std::thread::scope(|s| {
        for t in 0..threads {
            let (stop, all, op) = (&stop, &all, &op);
            s.spawn(move || {
                let mut lat = Vec::new();
                let mut n = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    let a = Instant::now();
                    op(t, n);
                    lat.push(a.elapsed().as_nanos() as u64);
                    n += 1;
                }
                all.lock().unwrap().extend(lat);
            });
        }
        std::thread::sleep(Duration::from_secs_f64(secs));
        stop.store(true, Ordering::Relaxed);
    });
    let took = began.elapsed().as_secs_f64();
    let mut all = all.into_inner().unwrap();
    all.sort();
    (all.len() as f64 / took, all)
}
fn show(what: &str, (rate, lat): &(f64, Vec<u64>)) {
    let q = |p: f64| lat[((lat.len() - 1) as f64 * p) as usize] as f64 / 1000.0;
    println!("{what:28} {rate:10.0}/s  p50 {:8.1} us  p99 {:8.1}  max {:8.1}", q(0.5), q(0.99), q(1.0));
}
fn key(t: usize, n: u64) -> Vec<u8> {
    let mut x = (t as u64 + 1).wrapping_mul(0x9E3779B97F4A7C15) ^ n.wrapping_mul(0xD1B54A32D192ED03);
    x ^= x >> 29;
    let mut k = x.wrapping_mul(0xBF58476D1CE4E5B9).to_be_bytes().to_vec();
    k.extend(n.to_be_bytes());
    k
}
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let base = args.get(1).cloned().unwrap_or("/tmp/kvrate".into());
    let secs: f64 = args.get(2).map_or(2.0, |s| s.parse().unwrap());
    let what = args.get(3).cloned().unwrap_or("16".into());
    let rounds: usize = args.get(4).map_or(3, |s| s.parse().unwrap());
    let _ = std::fs::remove_dir_all(&base);
    std::fs::create_dir_all(&base).unwrap();
    let (log, _) = Log::open(format!("{base}/log"), Config::default()).unwrap();
    let (store, _) = KvStore::open(format!("{base}/kv"), StoreConfig::default()).unwrap();
    let value = vec![7u8; 100];
    let payload = vec![7u8; 119];
    let threads: usize = what.trim_start_matches('b').parse().unwrap();
    for _ in 0..rounds {
        if what.starts_with('b') {
            let bulk = vec![7u8; 118 * 1000];
            let a = run(threads, secs, |_, _| drop(log.append(bulk.clone()).unwrap()));
            show("log, 118 kB entries", &a);
            let b = run(threads, secs, |t, n| {
                let ops = (0..1000)
                    .map(|i| KvOp::Put { key: key(t, n * 1000 + i).into(), value: value.clone().into() })
                    .collect();
                store.write_batch(ops).unwrap()
            });
            show("store, batches of 1000", &b);
            println!("ratio {:.3}", b.0 / a.0);
        } else {
            let a = run(threads, secs, |_, _| drop(log.append(payload.clone()).unwrap()));
            show("log", &a);
            let b = run(threads, secs, |t, n| store.set(key(t, n), value.clone()).unwrap());
            show("store", &b);
            println!("ratio {:.3}", b.0 / a.0);
        }
    }
    let s = store.stats();
    println!(
        "{s:?}\nkeys {} ; log frames {} entries {}",
        store.len(),
        store.driver().log().stats().frames,
        store.driver().log().stats().entries
    );
    let got = run(2, 1.0, |t, n| drop(store.get(&key(t, n))));
    show("get, 2 threads", &got);
    drop((log, store));
    let _ = std::fs::remove_dir_all(&base);
}
