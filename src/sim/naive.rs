//! The laws of a file's bytes once more, unit by unit and as plainly as can be, to test the disk against.
//!
//! A unit is a list of the values written to it, each loose, stuck or settled. What a power failure may leave of it is
//! the last settled value or any later one. Sizes are fixed here; nothing is shared with `medium`, neither code nor
//! the ways it saves work.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::disk::{Access, AlignedBuf, Disk, DiskFile, Driver, Operation, PollWait};

const UNITS: usize = 8;

#[derive(Clone, Copy, PartialEq)]
enum Standing {
    Loose,
    Stuck,
    Settled,
}

/// Every value a unit ever had: value, standing, when it was completed.
type History = Vec<(u8, Standing, u64)>;

/// A write in flight: its units, its value, whether it will be durable.
type Write = (std::ops::Range<usize>, u8, bool);

enum Flight {
    Write(Write),
    Sync { began_at: u64 },
}

/// A driver and the file `a` attached to it.
type Opened = (Box<dyn Driver>, Arc<dyn DiskFile>);

fn open(disk: &SimDisk, durable: bool) -> Opened {
    let file = disk.open("a", Access::Segment { durable }).unwrap();
    let mut driver = disk.driver(8).unwrap();
    driver.attach(1, file.clone()).unwrap();
    (driver, file)
}

/// The disk under test beside the plain model of its one file.
struct Pair {
    disk: SimDisk,
    loose: Opened,
    durable: Opened,
    units: Vec<History>,
    flights: Vec<(OpId, Flight)>,
    clock: u64,
}

impl Pair {
    fn new(seed: u64) -> Pair {
        let disk = SimDisk::manual(seed);
        disk.write_file("a", &[0; UNITS * UNIT_BYTES]).unwrap();
        let (loose, durable) = (open(&disk, false), open(&disk, true));
        let units = vec![vec![(0, Standing::Settled, 0)]; UNITS];
        Pair { disk, loose, durable, units, flights: Vec::new(), clock: 0 }
    }

    fn submit_write(&mut self, rng: &mut Rng) {
        let start = rng.below(UNITS);
        let units = start..start + 1 + rng.below(UNITS - start);
        let (value, durable) = (rng.below(4) as u8, rng.one_in(3));
        let mut buffer = AlignedBuf::zeroed(UNITS * UNIT_BYTES);
        buffer.fill(value);
        let (offset, bytes) = ((units.start * UNIT_BYTES) as u64, units.len() * UNIT_BYTES);
        let driver = if durable { &mut self.durable.0 } else { &mut self.loose.0 };
        driver.submit(Operation::Write { token: 0, file: 1, offset, buffer, bytes });
        self.flights.push((self.newest(), Flight::Write((units, value, durable))));
    }

    fn submit_sync(&mut self) {
        self.clock += 1;
        self.loose.0.submit(Operation::Sync { token: 0, file: 1 });
        self.flights.push((self.newest(), Flight::Sync { began_at: self.clock }));
    }

    fn newest(&self) -> OpId {
        self.disk.in_flight().last().unwrap().id
    }

    fn complete_one(&mut self, rng: &mut Rng) {
        if self.flights.is_empty() {
            return;
        }
        let (id, flight) = self.flights.remove(rng.below(self.flights.len()));
        let fails = matches!(flight, Flight::Sync { .. }) && rng.one_in(4);
        let was_there = match fails {
            true => self.disk.complete_failing(id, 5, Class::Absent),
            false => self.disk.complete(id),
        };
        assert!(was_there);
        self.clock += 1;
        match flight {
            Flight::Write((units, value, durable)) => {
                let standing = if durable { Standing::Settled } else { Standing::Loose };
                self.units[units].iter_mut().for_each(|history| history.push((value, standing, self.clock)));
            }
            Flight::Sync { began_at } => {
                self.restand(began_at, if fails { Standing::Stuck } else { Standing::Settled });
            }
        }
    }

    fn restand(&mut self, began_at: u64, standing: Standing) {
        for value in self.units.iter_mut().flatten() {
            if value.1 == Standing::Loose && value.2 < began_at {
                value.1 = standing;
            }
        }
    }

    /// What a power failure may leave of a unit.
    fn possible(&self, unit: usize) -> BTreeSet<u8> {
        let history = &self.units[unit];
        let settled = history.iter().rposition(|value| value.1 == Standing::Settled).unwrap();
        let completed = history[settled..].iter().map(|value| value.0);
        let in_flight = self.flights.iter().filter_map(|(_, flight)| match flight {
            Flight::Write((units, value, _)) if units.contains(&unit) => Some(*value),
            _ => None,
        });
        completed.chain(in_flight).collect()
    }

    /// After a kill that leaves nothing of what is in flight, the model goes on with the disk that is left.
    fn kill(self) -> Pair {
        let disk = self.disk.kill(|_| Landing::Units(Class::Absent));
        let (loose, durable) = (open(&disk, false), open(&disk, true));
        Pair { disk, loose, durable, units: self.units, flights: Vec::new(), clock: self.clock }
    }

    fn check(&mut self, seed: u64) {
        for pair in [&mut self.loose, &mut self.durable] {
            pair.0.poll(PollWait::No, &mut Vec::new());
        }
        let content = self.disk.read_file("a").unwrap();
        for (unit, history) in self.units.iter().enumerate() {
            assert_eq!(
                content[unit * UNIT_BYTES],
                history.last().unwrap().0,
                "seed {seed}: unit {unit} reads otherwise"
            );
        }
        let point = self.disk.crash_point();
        let mut seen = vec![BTreeSet::new(); UNITS];
        for image in point.images(64, seed).chain((0..256).map(|seed| point.random_image(seed))) {
            let content = image.read_file("a").unwrap();
            for (unit, seen) in seen.iter_mut().enumerate() {
                seen.insert(content[unit * UNIT_BYTES]);
            }
        }
        for (unit, seen) in seen.into_iter().enumerate() {
            let possible = self.possible(unit);
            assert!(seen.is_subset(&possible), "seed {seed}: unit {unit} came back as {seen:?} of {possible:?}");
            assert_eq!(seen, possible, "seed {seed}: unit {unit} never came back as some");
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "it takes hundreds of images of each state to see everything that may come back")]
fn the_disk_leaves_what_the_plain_model_leaves_no_more_and_no_less() {
    for seed in 0..400 {
        let (mut rng, mut pair) = (Rng::new(seed), Pair::new(seed));
        for _ in 0..30 {
            match rng.below(16) {
                0..=6 => pair.submit_write(&mut rng),
                7..=8 => pair.submit_sync(),
                15 => pair = pair.kill(),
                _ => pair.complete_one(&mut rng),
            }
            if rng.one_in(5) {
                pair.check(seed);
            }
        }
    }
}
