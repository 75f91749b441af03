//! The kit finds the mistakes that programs make with a log, and lets the right program pass.
//!
//! The program is a bank: transfers between two accounts that must always hold 100 together. Its state is a snapshot file
//! and the log after it.

use std::sync::Arc;

use super::*;
use crate::disk::{Access, Disk};
use crate::{Batch, Config, Durability, Error, Log};

/// What a programmer may get wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mistake {
    None,
    /// The client has its answer before the log has acknowledged.
    AnswersEarly,
    /// Debit and credit are two entries, written one after the other.
    HalfATransfer,
    /// The snapshot is renamed before it is synced.
    SnapshotUnsynced,
    /// The log is compacted before the snapshot's name is durable.
    CompactsEarly,
    /// How far the snapshot goes is kept in a file of its own.
    PointerBeside,
    /// Recovery shows a snapshot that it has just made and not synced.
    ShowsUnsynced,
}

fn config() -> Config {
    Config::default().segment_bytes(16 << 10).block_bytes(Some(512)).spare_segments(1)
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Accounts {
    first: i64,
    second: i64,
    transfers: u64,
}

impl Accounts {
    fn encode(self, applied: u64) -> Vec<u8> {
        [self.first as u64, self.second as u64, self.transfers, applied].map(u64::to_le_bytes).concat()
    }

    fn decode(bytes: &[u8]) -> (Accounts, u64) {
        let mut words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
        let mut word = || words.next().unwrap_or(0);
        (Accounts { first: word() as i64, second: word() as i64, transfers: word() }, word())
    }

    fn apply(&mut self, command: &[u8]) {
        match command {
            [b'd', amount] => self.first -= i64::from(*amount),
            [b'c', amount] => {
                self.second += i64::from(*amount);
                self.transfers += 1;
            }
            // A long memo, so that the log rolls.
            [b'm', ..] => {}
            other => panic!("no command: {other:?}"),
        }
    }
}

struct Bank {
    disk: SimDisk,
    log: LocalLog,
    accounts: Accounts,
    applied: u64,
    mistake: Mistake,
}

impl Bank {
    fn open(disk: &SimDisk, mistake: Mistake) -> Result<Bank, Error> {
        let log = disk.open_log(config())?;
        let (mut accounts, mut applied) = match disk.read_file("snapshot") {
            Ok(bytes) => Accounts::decode(&bytes),
            Err(_) => (Accounts { first: 100, ..Accounts::default() }, 0),
        };
        if mistake == Mistake::PointerBeside {
            applied = disk.read_file("pointer").map_or(0, |bytes| Accounts::decode(&bytes).0.first as u64);
        }
        for entry in log.iter(applied + 1..) {
            let entry = entry?;
            accounts.apply(&entry.command);
            applied = entry.index;
        }
        let mut bank = Bank { disk: disk.clone(), log, accounts, applied, mistake };
        if mistake == Mistake::ShowsUnsynced {
            bank.accounts.transfers += 1;
            bank.write("snapshot").map_err(Error::io("write", "snapshot"))?;
        }
        Ok(bank)
    }

    fn transfer(&mut self, amount: u8, answer: impl Fn(u64)) -> Result<(), Error> {
        if self.mistake == Mistake::AnswersEarly {
            answer(self.accounts.transfers + 1);
        }
        let (debit, credit) = ([b'd', amount], [b'c', amount]);
        self.applied = if self.mistake == Mistake::HalfATransfer {
            self.log.append(debit.to_vec())?;
            self.log.append(credit.to_vec())?
        } else {
            let memo = vec![b'm'; 900];
            self.log.write(Batch::new().push(debit.to_vec()).push(credit.to_vec()).push(memo))?.end - 1
        };
        self.accounts.apply(&debit);
        self.accounts.apply(&credit);
        answer(self.accounts.transfers);
        Ok(())
    }

    fn write(&self, name: &str) -> std::io::Result<()> {
        let bytes = match self.mistake {
            Mistake::PointerBeside if name == "pointer" => self.applied.to_le_bytes().to_vec(),
            _ => self.accounts.encode(self.applied),
        };
        let file = self.disk.open("new", Access::Create)?;
        file.write_at(&bytes, 0)?;
        if !matches!(self.mistake, Mistake::SnapshotUnsynced | Mistake::ShowsUnsynced) {
            file.sync()?;
        }
        self.disk.rename("new", name)
    }

    fn snapshot(&mut self) -> Result<(), Error> {
        let io = |error| Error::io("write", "snapshot")(error);
        self.write("snapshot").map_err(io)?;
        if self.mistake == Mistake::PointerBeside {
            self.write("pointer").map_err(io)?;
        }
        if self.mistake == Mistake::CompactsEarly {
            self.log.compact(self.applied)?;
        }
        self.disk.sync_dir().map_err(io)?;
        self.log.compact(self.applied)
    }
}

/// A few transfers with a snapshot among them; what is promised is how many were answered.
fn work(life: &Life<u64>, mistake: Mistake) -> Result<(), Error> {
    let mut bank = Bank::open(life.disk(), mistake)?;
    for number in 1..=25 {
        bank.transfer(number, |transfers| life.promise(transfers))?;
        if number % 8 == 2 {
            bank.snapshot()?;
        }
    }
    Ok(())
}

fn check(disk: &SimDisk, promised: &[u64], mistake: Mistake) -> Result<Accounts, String> {
    let accounts = Bank::open(disk, mistake).map_err(|error| error.to_string())?.accounts;
    let Accounts { first, second, transfers } = accounts;
    if first + second != 100 {
        return Err(format!("money is lost or made: {accounts:?}"));
    }
    let answered = promised.last().copied().unwrap_or(0);
    if transfers < answered {
        return Err(format!("{answered} transfers were answered, {transfers} are there"));
    }
    Ok(accounts)
}

fn test(test: CrashTest, mistake: Mistake) -> Result<CrashReport, Box<CrashFailure>> {
    test.run(|life| work(life, mistake), |disk, promised| check(disk, promised, mistake))
}

#[test]
fn a_program_that_does_it_right_survives_every_crash() {
    let report = test(CrashTest::new(1), Mistake::None).unwrap_or_else(|failure| panic!("{failure}"));
    println!("{report:?}");
    assert!(report.points > 80 && report.images > 1000 && report.points_in_recovery > 200, "{report:?}");
    assert!(report.kills > 100 && report.promises > 50);
    assert_eq!(test(CrashTest::new(1), Mistake::None).unwrap(), report, "everything follows from the seed");
}

#[test]
fn a_program_that_does_it_right_survives_several_lives_and_honest_faults() {
    for seed in 0..4 {
        let lives = CrashTest::new(seed).lives(3).images(4).points_max(40);
        let report = test(lives.faults(FaultRates::honest(20)), Mistake::None);
        let report = report.unwrap_or_else(|failure| panic!("{failure}"));
        assert!(report.faults > 20 && report.lives > report.points, "{report:?}");
    }
}

#[test]
fn each_mistake_is_found_told_and_found_again() {
    for mistake in [
        Mistake::AnswersEarly,
        Mistake::HalfATransfer,
        Mistake::SnapshotUnsynced,
        Mistake::CompactsEarly,
        Mistake::PointerBeside,
        Mistake::ShowsUnsynced,
    ] {
        let failure = test(CrashTest::new(1), mistake).expect_err(&format!("{mistake:?} is not found"));
        println!("{mistake:?}: {failure}\n");
        let again = test(CrashTest::new(1).only_point(failure.point), mistake).unwrap_err();
        assert_eq!((&again.reason, &again.crash, &again.moment), (&failure.reason, &failure.crash, &failure.moment));
        assert!(failure.to_string().contains(&format!("only_point({})", failure.point)));
        // The image shows it by itself, unless it takes the promises or two looks to see it.
        let alone = check(&failure.image, &[], mistake);
        let needs_more = [Mistake::AnswersEarly, Mistake::ShowsUnsynced, Mistake::PointerBeside];
        assert!(alone.is_err() || needs_more.contains(&mistake), "{mistake:?}");
    }
}

#[test]
fn a_workload_that_fails_by_itself_is_told_so_and_a_panic_is_no_way_out() {
    let check = |_: &SimDisk, _: &[()]| Ok::<(), String>(());
    let failure = crash_everywhere(1, |_: &Life<()>| Err("out of ideas"), check).unwrap_err();
    assert!(failure.reason.ends_with("out of ideas") && failure.point == 0, "{failure}");
    let failure = crash_everywhere(1, |_| -> Result<(), String> { panic!("no {}", 7) }, check).unwrap_err();
    assert!(failure.reason.ends_with("no 7"));
    let work = |life: &Life<()>| life.disk().open_log(config()).map(drop);
    let failure = crash_everywhere(1, work, |_, _| -> Result<(), String> { panic!("it cannot recover") }).unwrap_err();
    assert_eq!((failure.reason.as_str(), failure.point), ("it cannot recover", 1));
}

#[test]
fn the_log_with_threads_goes_through_the_same_kit() {
    let open = |disk: &SimDisk| Log::open_on(Arc::new(disk.clone()), config()).map(|(log, _)| log);
    let find = |durability: Durability| {
        CrashTest::new(3).images(6).points_max(60).run(
            |life| {
                let (log, _) = Log::open_on(Arc::new(life.disk().clone()), config().durability(durability))?;
                std::thread::scope(|scope| {
                    for producer in 0..3u8 {
                        let (log, life) = (&log, &life);
                        scope.spawn(move || {
                            for number in 0..5 {
                                let Ok(index) = log.append(vec![producer, number]) else { return };
                                life.promise((index, producer, number));
                            }
                        });
                    }
                });
                log.sync().map(drop)
            },
            |disk, promised| -> Result<(), Error> {
                let log = open(disk)?;
                for &(index, producer, number) in promised {
                    assert_eq!(log.get(index)?.command, [producer, number][..]);
                }
                Ok(())
            },
        )
    };
    let report = find(Durability::Sync).unwrap_or_else(|failure| panic!("{failure}"));
    assert!(report.points > 10 && report.promises > 10, "{report:?}");
    let failure = find(Durability::None).expect_err("without durable writes an acknowledgement is no promise");
    assert!(failure.point > 0);
}

#[test]
fn a_log_without_threads_answers_as_the_one_with_threads_does() {
    let disk = SimDisk::new(5);
    let (threaded, _) = Log::open_on(Arc::new(SimDisk::new(6)), config()).unwrap();
    let mut local = disk.open_log(config()).unwrap();
    let mut rng = Rng::new(9);
    for round in 0..300u64 {
        let next = threaded.state().last.map_or(1, |(last, _)| last + 1);
        let batch = match rng.below(10) {
            0 => Batch::new().truncate_from(next.saturating_sub(rng.below(4) as u64)),
            1 => Batch::new().compact(next.saturating_sub(1 + rng.below(20) as u64)),
            2 => Batch::new().put_meta(&[b'k', rng.below(3) as u8], &round.to_le_bytes()),
            _ => Batch::new().push(vec![round as u8; 1 + rng.below(900)]).push("more"),
        };
        let (one, other) = (threaded.write(batch.clone()), local.write(batch));
        match (&one, &other) {
            (Ok(one), Ok(other)) => assert_eq!(one, other),
            (Err(one), Err(other)) => assert_eq!(one.to_string(), other.to_string()),
            _ => panic!("{one:?} and {other:?}"),
        }
        assert_eq!(threaded.state(), local.state(), "round {round}");
        for index in [1, next / 2, next.saturating_sub(1), next] {
            let told = |found: Result<crate::LogEntry, Error>| {
                found.map(|entry| (entry.index, entry.term, entry.command)).map_err(|error| error.to_string())
            };
            assert_eq!(told(threaded.get(index)), told(local.get(index)), "round {round}, entry {index}");
        }
    }
    assert_eq!(threaded.meta(), local.meta());
    let commands = |entry: Result<crate::LogEntry, Error>| entry.unwrap().command;
    assert!(threaded.iter(..).map(commands).eq(local.iter(..).map(commands)));
    assert!(threaded.iter(..).rev().map(commands).eq(local.iter(..).rev().map(commands)));
    assert!(local.segments().len() < 12, "what was compacted is dropped: {:?}", local.segments());
    let last = local.state();
    local.close().unwrap();
    assert_eq!(disk.open_log(config()).unwrap().state(), last);
}

#[test]
fn what_is_accepted_can_be_read_before_it_is_written_and_after_a_failure_only_what_is_durable() {
    let disk = SimDisk::manual(1);
    let mut log = disk.open_log(config().frames_in_flight(3)).unwrap();
    log.append("one").unwrap();
    let receipts: Vec<Receipt> = ["two", "three", "four"]
        .map(|text| {
            let receipt = log.submit(Batch::new().push(text)).unwrap();
            log.pump().unwrap();
            receipt
        })
        .into();
    assert_eq!(receipts[2].indexes(), 4..5);
    let texts = |log: &LocalLog| -> Vec<Vec<u8>> { log.iter(..).map(|it| it.unwrap().command.to_vec()).collect() };
    assert_eq!(texts(&log), [&b"one"[..], b"two", b"three", b"four"]);
    assert!(receipts.iter().all(|receipt| !log.is_acked(receipt)));
    assert_eq!((log.state().last, log.state().durable), (Some((4, 0)), Some(1)));
    disk.complete(disk.in_flight()[1].id);
    log.collect().unwrap();
    assert!(!log.is_acked(&receipts[1]), "not before the one before it");
    disk.complete(disk.in_flight()[0].id);
    log.collect().unwrap();
    assert!(log.is_acked(&receipts[1]) && !log.is_acked(&receipts[2]));
    disk.complete_failing(disk.in_flight()[0].id, 5, Class::Whole);
    assert!(matches!(log.advance(), Err(Error::Poisoned(_))));
    assert_eq!(texts(&log), [&b"one"[..], b"two", b"three"]);
    assert!(matches!(log.get(4), Err(Error::Poisoned(_))) && matches!(log.append("five"), Err(Error::Poisoned(_))));
}

#[test]
fn without_durable_writes_only_a_sync_makes_durable_what_is_acknowledged() {
    let disk = SimDisk::new(1);
    let mut log = disk.open_log(config().durability(Durability::None)).unwrap();
    let index = log.append("one").unwrap();
    assert_eq!((index, log.state().durable), (1, None));
    assert!(disk.crash(|_| Class::Absent).open_log(config()).unwrap().get(1).is_err());
    assert_eq!(log.sync().unwrap(), Some(1));
    assert!(disk.crash(|_| Class::Absent).open_log(config()).unwrap().get(1).is_ok());
}

#[test]
fn no_life_on_a_disk_draws_the_salts_of_another() {
    let mut disk = SimDisk::new(1);
    let mut salts = std::collections::BTreeSet::new();
    for life in 0..5 {
        for _ in 0..2 {
            let mut log = disk.open_log(config()).unwrap();
            for _ in 0..40 {
                log.append(vec![life; 900]).unwrap();
            }
            log.compact(log.state().last.unwrap().0).unwrap();
        }
        let headers = disk.file_names().into_iter().filter(|name| name.ends_with(".seg"));
        let headers = headers.map(|name| crate::format::segment::SegmentHeader::decode(&disk.contents(&name).unwrap()));
        let found: Vec<_> =
            headers.map(|header| header.map(|header| (header.salt, header.sequence)).unwrap()).collect();
        salts.extend(found);
        disk = if life % 2 == 0 { disk.crash_point().lose_all() } else { disk.kill(|_| Landing::Queued) };
    }
    let of_salts: std::collections::BTreeSet<u64> = salts.iter().map(|(salt, _)| *salt).collect();
    assert_eq!(of_salts.len(), salts.len(), "a salt belongs to one segment");
    assert!(salts.len() > 10);
}
