//! A device that fails, for real: its writes come back with an error. The log is poisoned by the first one and believes
//! nothing after it, reading goes on, and the next open decides.

#[path = "common/mounted.rs"]
mod mounted;
#[path = "common/skip.rs"]
mod skip;

use std::time::Duration;

use mounted::Mounted;
use ringwal::sim::Rng;
use ringwal::{Config, Durability, Error, IoChoice, Log};

fn config(io: IoChoice, durability: Durability) -> Config {
    let small =
        Config::default().segment_bytes(24 * 4096).tail_cache_bytes(0).idle_mark_after(Duration::from_secs(3600));
    small.io(io).durability(durability).lock_wait(Duration::from_secs(60))
}

/// What no compression makes smaller.
fn payload(index: u64) -> Vec<u8> {
    let mut rng = Rng::new(index);
    (0..2000 / 8).flat_map(|_| rng.next_u64().to_le_bytes()).collect()
}

/// Appends until an append fails; the index of the last one that was acknowledged, and the error.
fn append_until_it_fails(log: &Log, from: u64) -> (u64, Error) {
    for index in from.. {
        if let Err(error) = log.append(payload(index)) {
            return (index - 1, error);
        }
        assert!(index < from + 10_000, "the device never fails");
    }
    unreachable!("there is always a next index")
}

/// The first cause that a poisoned log tells.
fn cause(error: &Error) -> &Error {
    let Error::Poisoned(cause) = error else { panic!("{error}") };
    cause
}

fn has_all(log: &Log, last: u64) {
    for index in 1..=last {
        assert_eq!(log.get(index).unwrap_or_else(|error| panic!("{index}: {error}")).command, payload(index));
    }
}

fn fails_and_heals(mounted: &Mounted, io: IoChoice, durability: Durability) {
    let (dir, config) = (mounted.at().join("log"), config(io, durability));
    let (log, _) = Log::open(&dir, config.clone()).unwrap();
    (1..=60).for_each(|index| assert_eq!(log.append(payload(index)).unwrap(), index));
    mounted.fail_writes();
    let (acked, error) = append_until_it_fails(&log, 61);
    println!("{io:?}, {durability:?}, {}: {} were acknowledged, then: {error}", log.io_mode(), acked);
    assert!(matches!(cause(&error), Error::Io { .. }), "{error}");
    mounted.heal();

    // Healed or not: what was poisoned stays so, and tells the first cause.
    for later in [log.append("later").unwrap_err(), log.sync().unwrap_err(), log.compact(3).unwrap_err()] {
        assert_eq!(cause(&later).to_string(), cause(&error).to_string());
    }
    let durable = log.state().durable.unwrap();
    assert!(durability != Durability::Sync || durable >= acked, "{durable} of {acked}");
    has_all(&log, durable);
    assert!(log.close().is_err());

    // A kill of the process would have kept what was acknowledged, and so does the end of this log.
    let (log, report) = Log::open(&dir, config).unwrap();
    println!("{report:?}");
    has_all(&log, acked);
    let (last, _) = log.state().last.unwrap();
    assert!(last == acked || last == acked + 1, "what failed may be there, and nothing else");
    has_all(&log, last);
    assert_eq!(log.append(payload(last + 1)).unwrap(), last + 1);
    log.close().unwrap();
}

#[test]
fn a_device_that_fails_poisons_the_log_and_reading_goes_on() {
    for durability in [Durability::Sync, Durability::Interval(Duration::from_millis(5)), Durability::None] {
        for io in [IoChoice::Auto, IoChoice::Syscall] {
            let Some(mounted) = Mounted::on_a_device_that_can_fail(64 << 20) else { return };
            fails_and_heals(&mounted, io, durability);
        }
    }
}

#[test]
fn a_log_does_not_open_for_writing_on_a_device_that_fails_and_loses_nothing() {
    let Some(mounted) = Mounted::on_a_device_that_can_fail(64 << 20) else { return };
    let (dir, config) = (mounted.at().join("log"), config(IoChoice::Auto, Durability::Sync));
    let (log, _) = Log::open(&dir, config.clone()).unwrap();
    (1..=60).for_each(|index| assert_eq!(log.append(payload(index)).unwrap(), index));
    mounted.fail_writes();
    let (acked, _) = append_until_it_fails(&log, 61);
    drop(log);
    for _ in 0..5 {
        // Its open frame cannot be written: an error of the device's, and never one that calls the log damaged.
        match Log::open(&dir, config.clone()) {
            Ok((log, _)) => has_all(&log, acked),
            Err(error) => assert!(matches!(error, Error::Io { .. } | Error::Poisoned(_)), "{error}"),
        }
        let (log, _) = Log::open_read_only(&dir).unwrap();
        has_all(&log, acked);
    }
    mounted.heal();
    let (log, _) = Log::open(&dir, config).unwrap();
    has_all(&log, acked);
    log.append("goes on").unwrap();
}
