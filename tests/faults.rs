//! The log with its threads on a disk that does what disks do: takes parts of writes, is slow and out of order, lets bits
//! rot, and writes and reads at wrong places. Nothing that is only slow or short breaks a promise; no lie is ever passed on
//! as data, and none that is told once, on the way, costs anything that was acknowledged.

mod common;

use std::sync::{Arc, Mutex};
use std::thread;

use common::{append_each, eventually, interrupted, open_sim, payloads, small, tiny, try_open_sim};
use ringwal::format::names;
use ringwal::sim::{Class, FaultRates, FaultRule, Mode, OpKind, Rng, SimDisk};
use ringwal::{Batch, Config, Durability, Error, Log, LogEntry, Verify};

/// Everything that was acknowledged, after a power failure that takes all that is not durable.
fn survivors(disk: &SimDisk, config: &Config) -> Vec<Vec<u8>> {
    let image = disk.crash_point().lose_all();
    image.set_mode(Mode::Random);
    payloads(&open_sim(&image, config.clone()))
}

fn payload(index: u64) -> Vec<u8> {
    format!("entry {index} ").repeat(1 + index as usize % 40).into_bytes()
}

#[test]
fn short_writes_lose_nothing_and_acknowledge_nothing_early() {
    for durability in [Durability::Sync, Durability::None] {
        for (nth, bytes) in (1..12).flat_map(|nth| [1, 511, 512, 700, 1024].map(|bytes| (nth, bytes))) {
            let config = tiny().durability(durability);
            let disk = SimDisk::new(nth);
            let log = open_sim(&disk, config.clone());
            disk.fail(FaultRule::short_write(nth, bytes));
            for index in 1..40 {
                assert_eq!(log.append(payload(index)).unwrap(), index);
            }
            log.sync().unwrap();
            assert_eq!(survivors(&disk, &config), (1..40).map(payload).collect::<Vec<_>>(), "{nth} {bytes}");
        }
    }
}

#[test]
fn a_write_that_stays_short_poisons_the_log_and_keeps_what_was_acknowledged() {
    for bytes in [0, 100] {
        let disk = SimDisk::new(5);
        let log = open_sim(&disk, tiny());
        append_each(&log, (1..10).map(payload));
        disk.fail(FaultRule::short_write(1, bytes).on(&names::segment(1)).for_good());
        let error = log.append("never whole").unwrap_err();
        assert!(matches!(&error, Error::Poisoned(cause) if matches!(**cause, Error::Io { .. })), "{error}");
        assert_eq!(survivors(&disk, &tiny()), (1..10).map(payload).collect::<Vec<_>>());
    }
}

#[test]
fn slow_and_short_writes_and_syncs_of_several_producers_break_no_promise_wherever_the_power_fails() {
    let mut struck = 0;
    for seed in 0..40 {
        let durability = if seed % 2 == 0 { Durability::Sync } else { Durability::None };
        let config = tiny().frames_in_flight(4).durability(durability);
        let disk = SimDisk::new(seed);
        let log = open_sim(&disk, config.clone());
        disk.fail_by_chance(FaultRates { short_writes: 3, slow: 3, ..FaultRates::default() }, seed);
        disk.power_off_after(40 + Rng::new(seed).below(200) as u64);
        let safe = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for producer in 0..4u64 {
                let (log, safe) = (&log, &safe);
                scope.spawn(move || {
                    for number in 0..60 {
                        let text = payload(producer * 1000 + number);
                        let Ok(index) = log.append(text.clone()) else { return };
                        // Without durable writes an acknowledgement promises nothing, but a sync does.
                        if durability == Durability::Sync || log.sync().is_ok_and(|durable| durable >= Some(index)) {
                            safe.lock().unwrap().push((index, text));
                        }
                    }
                });
            }
        });
        drop(log);
        struck += disk.struck().len();
        for image_seed in 0..4 {
            let image = disk.crash_point().random_image(image_seed);
            let log = open_sim(&image, config.clone());
            for (index, text) in safe.lock().unwrap().iter() {
                assert_eq!(log.get(*index).unwrap().command, text[..], "seed {seed}, image {image_seed}");
            }
        }
    }
    assert!(struck > 400, "{struck} faults struck");
}

#[test]
fn a_held_write_holds_the_acks_of_all_after_it_and_they_come_in_order() {
    let disk = SimDisk::new(1);
    let log = open_sim(&disk, small().frames_in_flight(4).frame_bytes_max(8192));
    disk.fail(FaultRule::held(OpKind::Write, 1).on(&names::segment(1)));
    let order = Arc::new(Mutex::new(Vec::new()));
    // Each closes the frame before it, which then has no reason to wait for the device.
    for number in 1..=4 {
        let order = order.clone();
        log.submit_with(Batch::new().push(vec![number; 5000]), move |acked| {
            order.lock().unwrap().push((number, acked.is_ok()))
        })
        .unwrap();
    }
    let is_written =
        |number: u8| disk.contents(&names::segment(1)).unwrap().windows(5000).any(|run| run == [number; 5000]);
    eventually("the others are written", || is_written(2) && is_written(3));
    assert_eq!((order.lock().unwrap().len(), log.state().durable), (0, None), "nothing may overtake the first");
    let lost = disk.crash(|_| Class::Absent);
    lost.set_mode(Mode::Random);
    assert!(payloads(&open_sim(&lost, small())).is_empty(), "without the first, the others are no log");
    disk.complete(disk.in_flight()[0].id);
    log.sync().unwrap();
    eventually("all callbacks ran", || order.lock().unwrap().len() == 4);
    assert_eq!(*order.lock().unwrap(), [(1, true), (2, true), (3, true), (4, true)]);
}

/// Writes 30 entries with one lie among the writes, and closes: the lock file says that everything was durable.
fn closed_after(lie: &FaultRule) -> Option<SimDisk> {
    let disk = SimDisk::new(3);
    let log = open_sim(&disk, tiny());
    disk.fail(lie.clone());
    append_each(&log, (1..31).map(payload));
    drop(log);
    let has_struck = !disk.struck().is_empty();
    disk.clear_faults();
    has_struck.then_some(disk)
}

/// Whether damage was noticed. What is not noticed changed nothing: no entry is missing, none is other.
fn is_noticed(disk: &SimDisk, verify: Verify) -> bool {
    match try_open_sim(disk, tiny().verify(verify)) {
        Err(Error::Corrupt { .. } | Error::Unsupported { .. } | Error::Foreign { .. }) => true,
        Err(other) => panic!("a lie is told as: {other}"),
        Ok(log) => {
            let found: Vec<_> = (1..31).map(|index| log.get(index)).collect();
            for (index, found) in (1..31).zip(&found) {
                match found {
                    Ok(entry) => assert_eq!(entry.command, payload(index)[..]),
                    Err(Error::Corrupt { .. }) => {}
                    Err(other) => panic!("entry {index}: {other}"),
                }
            }
            found.iter().any(Result::is_err)
        }
    }
}

#[test]
fn bits_that_rot_in_any_acknowledged_write_are_noticed_or_harmless() {
    let mut noticed = 0;
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let lie = FaultRule::bit_rot(OpKind::Write, 1 + rng.below(30) as u64, rng.next_u64());
        let Some(disk) = closed_after(&lie) else { continue };
        let verify = if rng.one_in(2) { Verify::Full } else { Verify::Tail };
        noticed += u64::from(is_noticed(&disk, verify));
    }
    assert!(noticed > 100, "{noticed} were noticed");
}

#[test]
fn a_write_that_lands_elsewhere_is_noticed_or_harmless() {
    let mut noticed = 0;
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let (nth, offset) = (1 + rng.below(30) as u64, 512 * rng.below(24) as u64);
        let lie = FaultRule::misdirected(OpKind::Write, nth, offset).to(&names::segment(1 + rng.below(2) as u64));
        let Some(disk) = closed_after(&lie) else { continue };
        noticed += u64::from(is_noticed(&disk, Verify::Full));
    }
    assert!(noticed > 100, "{noticed} were noticed");
}

/// Lies once in each read of an open: that is an error or nothing, and the open after it finds everything.
fn lie_to_each_read(durability: Durability, lies: impl Fn(u64) -> Vec<FaultRule>) {
    let (image, config, kept) = interrupted(durability);
    let mut refused = 0;
    for nth in 1.. {
        let mut has_struck = false;
        for lie in lies(nth) {
            let disk = image.copy_at_rest();
            disk.fail(lie.clone());
            match try_open_sim(&disk, config.clone()) {
                Ok(log) => {
                    let found: Vec<_> = log.iter(..).collect();
                    let found: Vec<LogEntry> = found.into_iter().map_while(Result::ok).collect();
                    assert!(found.len() <= kept.len() && found == kept[..found.len()], "{lie:?}");
                }
                Err(Error::Corrupt { .. } | Error::Unsupported { .. } | Error::Foreign { .. }) => refused += 1,
                Err(other) => panic!("{lie:?} is told as: {other}"),
            }
            has_struck |= !disk.struck().is_empty();
            disk.clear_faults();
            let log = open_sim(&disk, config.clone());
            let found: Vec<LogEntry> = log.iter(..).map(Result::unwrap).collect();
            assert_eq!(found.len(), kept.len(), "after {lie:?}");
            assert_eq!(found, kept, "after {lie:?}");
            assert_eq!(log.get_meta(b"vote").as_deref(), Some(&b"me"[..]), "after {lie:?}");
        }
        if !has_struck {
            break;
        }
    }
    assert!(refused > 0);
}

#[test]
fn a_read_that_comes_from_elsewhere_while_opening_costs_nothing() {
    for durability in [Durability::Sync, Durability::None] {
        lie_to_each_read(durability, |nth| {
            let own = [0, 512, 4096, 1 << 30].map(|offset| FaultRule::misdirected(OpKind::Read, nth, offset));
            let other = names::segment(2);
            let others = [512, 1 << 30].map(|offset| FaultRule::misdirected(OpKind::Read, nth, offset).to(&other));
            own.into_iter().chain(others).collect()
        });
    }
}

#[test]
fn a_bit_that_flips_on_the_way_while_opening_costs_nothing() {
    let mut rng = Rng::new(1);
    let bits: Vec<u64> = (0..12).map(|_| rng.next_u64()).collect();
    lie_to_each_read(Durability::Sync, |nth| bits.iter().map(|&bit| FaultRule::bit_error(nth, bit)).collect());
}

#[test]
fn a_read_of_an_entry_that_comes_from_elsewhere_or_with_a_wrong_bit_is_read_again() {
    let (image, config, kept) = interrupted(Durability::Sync);
    let log = open_sim(&image, config.tail_cache_bytes(0));
    for (nth, entry) in kept.iter().enumerate() {
        image.fail(match nth % 3 {
            0 => FaultRule::misdirected(OpKind::Read, 1, 512),
            1 => FaultRule::misdirected(OpKind::Read, 1, 4096).to(&names::segment(3)),
            _ => FaultRule::bit_error(1, 97 * nth as u64),
        });
        assert_eq!(log.get(entry.index).unwrap(), *entry);
        image.clear_faults();
    }
    assert!(image.struck().len() > kept.len() / 2, "{}", image.struck().len());
}

#[test]
fn what_a_failed_sync_left_in_memory_may_vanish_and_nothing_acknowledged_with_it() {
    for seed in 0..30 {
        let disk = SimDisk::new(seed);
        let log = open_sim(&disk, tiny().durability(Durability::None));
        append_each(&log, (1..10).map(payload));
        assert_eq!(log.sync().unwrap(), Some(9));
        append_each(&log, (10..20).map(payload));
        disk.fail(FaultRule::io_error(OpKind::Sync, 1).dropping_pages().landing(Class::Scattered(seed)));
        assert!(matches!(log.sync(), Err(Error::Poisoned(_))));
        assert_eq!(payloads(&log), (1..10).map(payload).collect::<Vec<_>>());
        assert!(log.close().is_err());
        let found = payloads(&open_sim(&disk, tiny()));
        assert!(found.len() >= 9 && found == (1..20).map(payload).collect::<Vec<_>>()[..found.len()], "{seed}");
        assert_eq!(found, survivors(&disk, &tiny()), "and what is shown once stays");
    }
}

#[test]
fn a_segment_whose_loss_of_its_name_could_not_be_synced_is_not_made_another_under_that_name() {
    let mut struck = 0;
    for (kind, nth) in
        [OpKind::SyncDir, OpKind::Rename].into_iter().flat_map(|kind| (1..14).map(move |nth| (kind, nth)))
    {
        let disk = SimDisk::new(nth);
        let mut log = disk.open_log(tiny()).unwrap();
        disk.fail(FaultRule::no_space(kind, nth));
        let mut looks = 0;
        for index in 1..150 {
            disk.start_recording();
            assert_eq!(log.append(payload(index)).unwrap(), index);
            if index % 15 == 0 {
                log.compact(index - 3).unwrap();
            }
            // The next segment is made over many moments; from the fault on, each may be the last.
            let mut points = disk.take_recording();
            if disk.struck().is_empty() || looks > 2000 {
                points.clear();
            }
            looks += points.len();
            points.push(disk.crash_point());
            let newest = points.len() - 1;
            for (at, point) in points.iter().enumerate() {
                let found = point.lose_all().open_log(tiny());
                let found = found.unwrap_or_else(|error| panic!("{kind:?} {nth}, entry {index}: {error}"));
                let acknowledged = if at == newest { index } else { index - 1 };
                let entry = (acknowledged > 0).then(|| found.get(acknowledged).unwrap().command);
                assert!(entry.is_none_or(|command| command == payload(acknowledged)[..]));
            }
        }
        struck += disk.struck().len();
    }
    assert!(struck > 15, "{struck} faults struck");
}

#[test]
fn a_log_on_a_disk_that_fails_by_chance_loses_nothing_that_it_acknowledged() {
    let (mut poisoned, mut opened) = (0, 0);
    for seed in 0..60 {
        let disk = SimDisk::new(seed);
        let (mut acked, mut rng): (Vec<(u64, Vec<u8>)>, _) = (Vec::new(), Rng::new(seed));
        for life in 0..4 {
            disk.fail_by_chance(FaultRates::honest(10 + rng.below(30)), rng.next_u64());
            // An open that fails is tried again on a disk that works.
            let log = try_open_sim(&disk, tiny()).or_else(|_| {
                disk.clear_faults();
                try_open_sim(&disk, tiny())
            });
            let log = log.unwrap_or_else(|error| panic!("seed {seed}, life {life}: {error}"));
            opened += 1;
            check_all(&log, &acked, seed);
            for number in 0..30 {
                let text = payload(life * 100 + number);
                match log.append(text.clone()) {
                    Ok(index) => acked.push((index, text)),
                    Err(Error::NoSpace) => {}
                    Err(_) => break,
                }
            }
            poisoned += u64::from(log.close().is_err());
        }
        disk.clear_faults();
        check_all(&open_sim(&disk, tiny()), &acked, seed);
    }
    assert!(poisoned > 20 && opened == 240, "{poisoned} poisoned, {opened} opened");
}

/// Every acknowledged entry is there. An index that was never acknowledged may have been given twice.
fn check_all(log: &Log, acked: &[(u64, Vec<u8>)], seed: u64) {
    for (index, text) in acked {
        let found = log.get(*index).map(|entry| entry.command);
        // The read may fail, too.
        let found = found.or_else(|_| log.get(*index).map(|entry| entry.command));
        match found {
            Ok(found) => assert_eq!(found, text[..], "seed {seed}, entry {index}"),
            Err(Error::Io { .. }) => {}
            Err(other) => panic!("seed {seed}, entry {index}: {other}"),
        }
    }
}
