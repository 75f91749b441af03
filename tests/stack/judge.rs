//! The workload of a crash test, with what it promises on the way; and the judge of the disk that a crash left.
//!
//! What must hold is said at [`check`]. It knows nothing of the stack but what its users can see.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use ringwal::disk::Disk;
use ringwal::sim::{Life, Rng, SimDisk};
use ringwal::{
    Config, Driver, DriverConfig, DriverError, DriverReport, Durability, SnapshotError, SnapshotId, SnapshotOptions,
    StateMachine,
};

use super::history::{History, Step};
use super::ledger::{Ledger, LedgerError};
use super::ready;

pub(crate) type Error = DriverError<LedgerError>;

/// What somebody relies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Promise {
    /// The directory was opened: it has a machine and its first snapshot.
    Opened,
    /// The command of this index was answered.
    Applied(u64),
    /// The snapshot was published.
    Published(SnapshotId),
    /// The snapshot may be gone from now on: somebody asked for that.
    Dropping(SnapshotId),
}

/// What a history is lived through with.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    log: Config,
    snapshots: SnapshotOptions,
    durability: Durability,
    every_entries: Option<u64>,
    keep: usize,
    reach: usize,
}

impl Settings {
    /// Log and snapshots so small that everything rolls, and by chance what else makes a difference.
    pub(crate) fn new(seed: u64) -> Settings {
        let mut rng = Rng::of_part(seed, &[1]);
        let log = Config::default().block_bytes(Some(512)).segment_bytes(24 * 512).frame_bytes_max(4096);
        let snapshots = SnapshotOptions::default().chunk_bytes(1024).workers(rng.below(3)).low_priority(false);
        let keep = 1 + rng.below(3);
        Settings {
            log: log.idle_mark_after(Duration::from_secs(3600)),
            snapshots,
            durability: if rng.one_in(4) { Durability::None } else { Durability::Sync },
            every_entries: rng.one_in(4).then(|| 3 + rng.below(10) as u64),
            keep,
            reach: 1 + rng.below(keep),
        }
    }

    /// No threads but those of the log and the driver, and no snapshot but those that the history asks for.
    pub(crate) fn plain(mut self) -> Settings {
        (self.every_entries, self.snapshots) = (None, self.snapshots.workers(0));
        self
    }

    /// What is answered survives power loss.
    pub(crate) fn durable(self) -> Settings {
        self.durability(Durability::Sync)
    }

    pub(crate) fn durability(mut self, durability: Durability) -> Settings {
        self.durability = durability;
        self
    }

    pub(crate) fn is_durable(&self) -> bool {
        self.durability == Durability::Sync
    }

    /// So many snapshots are kept, and the log reaches back to so many.
    pub(crate) fn keeping(mut self, keep: usize, reach: usize) -> Settings {
        (self.keep, self.reach) = (keep, reach);
        self
    }

    pub(crate) fn driver(&self) -> DriverConfig {
        DriverConfig::default()
            .log(self.log.clone().durability(self.durability))
            .snapshots(self.snapshots.clone())
            .snapshot_every_entries(self.every_entries)
            .snapshot_every_bytes(None)
            .keep_snapshots(self.keep)
            .log_reaches_back_to(self.reach)
    }
}

pub(crate) fn open(
    disk: &SimDisk,
    initial: i64,
    config: DriverConfig,
) -> Result<(Driver<Ledger>, DriverReport), Error> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    Driver::open_on(disk, Ledger::new(initial), config)
}

/// Lives through a history, or through what is left of it.
pub(crate) fn live(life: &Life<Promise>, history: &History, settings: &Settings) -> Result<(), Error> {
    let mut driver = begin(life, history, settings)?;
    let mut applied = driver.last_applied();
    for step in history.rest(applied) {
        match step {
            Step::Reopen { closes } => {
                end(life, driver, *closes)?;
                driver = begin(life, history, settings)?;
            }
            step => take(life, &driver, step)?,
        }
        applied += step.commands().len() as u64;
        assert_eq!(driver.last_applied(), applied, "what was answered is applied, and nothing else");
        if settings.is_durable() {
            let log = driver.log().state();
            assert!(
                log.last.is_none() || log.durable >= Some(applied),
                "{applied} is answered and not durable: {log:?}"
            );
            life.promise(Promise::Applied(applied));
        }
    }
    end(life, driver, true)
}

fn take(life: &Life<Promise>, driver: &Driver<Ledger>, step: &Step) -> Result<(), Error> {
    match step {
        Step::Propose(command) => answered(driver.propose(command.clone()).map(drop)),
        Step::Together(commands) => driver.propose_batch(commands.clone()).map(drop),
        Step::Checkpoint => driver.checkpoint().map(|snapshot| life.promise(Promise::Published(snapshot.id))),
        Step::Keep(count) => {
            let ids = driver.snapshots().ids()?;
            ids.iter().rev().skip(*count).for_each(|&id| life.promise(Promise::Dropping(id)));
            Ok(driver.snapshots().compact_snapshots(*count).map(drop)?)
        }
        Step::DeleteOldest => delete_oldest(life, driver),
        Step::Reopen { .. } => unreachable!("nothing is taken in a driver that is closed"),
    }
}

/// After a close, in whatever durability, all that was answered survives.
fn end(life: &Life<Promise>, driver: Driver<Ledger>, closes: bool) -> Result<(), Error> {
    let applied = driver.last_applied();
    if closes {
        driver.close()?;
        life.promise(Promise::Applied(applied));
    }
    Ok(())
}

fn begin(life: &Life<Promise>, history: &History, settings: &Settings) -> Result<Driver<Ledger>, Error> {
    let (driver, _) = open(life.disk(), initial_for(&life.promised(), history), settings.driver())?;
    life.promise(Promise::Opened);
    Ok(driver)
}

/// Once a directory has a machine, what a later open brings along has no part in it.
fn initial_for(promised: &[Promise], history: &History) -> i64 {
    if promised.contains(&Promise::Opened) { -1 } else { history.initial }
}

/// A refusal is an answer.
fn answered(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(DriverError::Refused(_)) => Ok(()),
        other => other,
    }
}

/// The one that the log stands on is not deleted.
fn delete_oldest(life: &Life<Promise>, driver: &Driver<Ledger>) -> Result<(), Error> {
    let Some(&oldest) = driver.snapshots().ids()?.first() else { panic!("an open driver has no snapshot") };
    life.promise(Promise::Dropping(oldest));
    match driver.snapshots().delete_snapshot(&oldest.to_string()) {
        Err(SnapshotError::Needed { .. }) | Ok(()) => Ok(()),
        Err(other) => Err(other.into()),
    }
}

/// What recovery shows: how many commands are applied. All else follows from that, or the check fails.
pub(crate) type Shown = u64;

/// Recovers, and holds what is there against the history. After any crash:
///
/// - The state is, byte for byte, the one after a prefix of all commands that contains every answered one, and does not
///   end within a batch.
/// - Every snapshot there is intact, and is the state after its index; with what the log has after it applied, it gives
///   that same state again, wherever the log reaches back to it. It does so to as many as it is told to.
/// - The newest snapshot that was published is there, or a newer one; so are those before it that are to be kept. The
///   open changes nothing about that.
/// - No temporary file is left.
pub(crate) fn check(
    disk: &SimDisk,
    promised: &[Promise],
    history: &History,
    settings: &Settings,
) -> Result<Shown, String> {
    let before = named(disk);
    let opened = open(disk, initial_for(promised, history), settings.clone().plain().driver());
    let (driver, _) = opened.map_err(|error| format!("it does not open: {error}\n{disk:?}"))?;
    let applied = check_state(&driver, promised, history)?;
    let ids = driver.snapshots().ids().map_err(text)?;
    ensure(before.is_empty() || ids == before, || format!("the open makes {ids:?} of {before:?}"))?;
    check_kept(&ids, promised, settings)?;
    let is_thinned = promised.iter().any(|promise| matches!(promise, Promise::Dropping(_)));
    check_reach(&driver, &ids, is_thinned, settings)?;
    for id in ids {
        check_snapshot(&driver, id, history, applied).map_err(|wrong| format!("{id}: {wrong}"))?;
    }
    let names = disk.file_names();
    let left = names.iter().find(|name| name.starts_with("snapshot_") && !name.ends_with(".zst"));
    ensure(left.is_none(), || format!("left over: {left:?}"))?;
    driver.close().map_err(text)?;
    Ok(applied)
}

/// As [`check`], where the newest snapshot is damaged besides: an open says so and changes nothing, and one that may fall
/// back gives the whole state all the same. For settings by which the log reaches back to two snapshots.
pub(crate) fn check_damaged(
    disk: &SimDisk,
    promised: &[Promise],
    history: &History,
    settings: &Settings,
) -> Result<Shown, String> {
    assert!(settings.reach >= 2 && settings.is_durable());
    let (config, initial) = (settings.clone().plain().driver(), initial_for(promised, history));
    let is_got_over = disk.file_names().iter().any(|name| name.ends_with(".damaged"));
    if let ([_, .., newest], false) = (&named(disk)[..], is_got_over) {
        let name = format!("{newest}.zst");
        let bytes = disk.contents(&name).map_err(text)?.len() as u64;
        disk.set_len(&name, bytes / 2).map_err(text)?;
        match open(disk, initial, config.clone()) {
            Err(DriverError::Damaged { reachable: Some(_), .. }) => {}
            Err(error) => return Err(format!("with {newest} damaged: {error}")),
            Ok(_) => return Err(format!("it opens with {newest} damaged")),
        }
    }
    let opened = open(disk, initial, config.clone().fall_back(true));
    let (driver, _) = opened.map_err(|error| format!("it does not fall back: {error}\n{disk:?}"))?;
    let applied = check_state(&driver, promised, history)?;
    for id in driver.snapshots().ids().map_err(text)? {
        check_snapshot(&driver, id, history, applied).map_err(|wrong| format!("{id}: {wrong}"))?;
    }
    driver.close().map_err(text)?;
    let (driver, _) = open(disk, initial, config).map_err(|error| format!("it does not open again: {error}"))?;
    ensure(check_state(&driver, promised, history)? == applied, || "another open, another state".into())?;
    Ok(applied)
}

fn ensure(holds: bool, wrong: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(wrong()) }
}

fn text(error: impl Display) -> String {
    error.to_string()
}

/// The snapshots that have their names.
pub(crate) fn named(disk: &SimDisk) -> Vec<SnapshotId> {
    let names = disk.file_names();
    let mut ids: Vec<_> = names.iter().filter_map(|name| name.strip_suffix(".zst")?.parse().ok()).collect();
    ids.sort();
    ids
}

/// No snapshot is gone.
pub(crate) fn check_kept_as(before: &[SnapshotId], disk: &SimDisk) -> Result<(), String> {
    let (now, newest) = (named(disk), before.last());
    // Once there is a newer one, older ones may go.
    let is_newer = now.last() > newest;
    ensure(is_newer || before.iter().all(|id| now.contains(id)), || format!("of {before:?} there are {now:?}"))
}

/// How many commands are applied, and that the state is theirs.
fn check_state(driver: &Driver<Ledger>, promised: &[Promise], history: &History) -> Result<u64, String> {
    let applied = driver.last_applied();
    ensure(applied <= history.len(), || format!("{applied} commands are applied, of {}", history.len()))?;
    let answered = promised.iter().filter_map(|promise| match promise {
        Promise::Applied(index) => Some(*index),
        Promise::Published(id) => Some(id.index),
        _ => None,
    });
    let answered = answered.max().unwrap_or(0);
    ensure(applied >= answered, || format!("{applied} commands are applied, and {answered} were answered"))?;
    ensure(history.is_boundary(applied), || format!("command {applied} is applied, and not all of its batch"))?;
    let state = driver.read(|machine| ready(machine.get_state())).map_err(text)?;
    ensure(state == history.state(applied), || format!("it is not the state after {applied} commands"))?;
    Ok(applied)
}

/// A snapshot is what it says, and the log leads from it to the state there is.
fn check_snapshot(driver: &Driver<Ledger>, id: SnapshotId, history: &History, applied: u64) -> Result<(), String> {
    let (snapshot, data) = driver.snapshots().load_snapshot(&id.to_string()).map_err(text)?;
    ensure(snapshot.id == id && snapshot.index == id.index && snapshot.raw_bytes == data.len() as u64, || {
        format!("it says it is {snapshot:?}")
    })?;
    ensure(id.index <= applied, || format!("it is newer than the state, of {applied} commands"))?;
    ensure(data == history.state(id.index), || format!("it is not the state after {} commands", id.index))?;
    if id.index + 1 < driver.log().state().first {
        return Ok(());
    }
    let mut machine = Ledger::new(-2);
    ready(machine.set_state(&data)).map_err(text)?;
    let mut last = id.index;
    for entry in driver.log().iter(id.index + 1..) {
        let entry = entry.map_err(text)?;
        // A refusal is one here too.
        let _ = ready(machine.apply(Ledger::decode(&entry.command).map_err(text)?));
        last = entry.index;
    }
    let state = ready(machine.get_state()).map_err(text)?;
    ensure(last == applied, || format!("the log leads from it to {last}, and the state is that of {applied}"))?;
    ensure(state == history.state(applied), || "the log leads from it to another state".into())
}

/// What was published is there, as far as nothing newer took its place.
fn check_kept(ids: &[SnapshotId], promised: &[Promise], settings: &Settings) -> Result<(), String> {
    let mut published: Vec<SnapshotId> = Vec::new();
    let mut dropping = Vec::new();
    for promise in promised {
        match promise {
            Promise::Published(id) => published.push(*id),
            Promise::Dropping(id) => dropping.push(*id),
            _ => {}
        }
    }
    let Some(newest) = published.pop() else { return Ok(()) };
    ensure(ids.last() >= Some(&newest), || format!("{newest} was published, and there are only {ids:?}"))?;
    if settings.every_entries.is_some() {
        // Snapshots that nobody was told of may have taken the places of older ones.
        return Ok(());
    }
    // One more may have taken the place of the oldest, and nobody was told.
    let kept = published.iter().rev().take(settings.keep.saturating_sub(2));
    let lost = kept.filter(|id| !dropping.contains(id)).find(|id| !ids.contains(id));
    ensure(lost.is_none(), || format!("{lost:?} was to be kept, and there are only {ids:?}"))
}

/// The log goes back to the newest snapshot, and to as many before it as it is to, unless somebody thinned them.
pub(crate) fn check_reach<M: StateMachine>(
    driver: &Driver<M>,
    ids: &[SnapshotId],
    is_thinned: bool,
    settings: &Settings,
) -> Result<(), String> {
    let Some((compacted, _)) = driver.log().state().compacted else { return Ok(()) };
    let reach = if is_thinned { 1 } else { settings.reach.min(ids.len()) };
    let oldest = ids.iter().rev().nth(reach - 1);
    ensure(oldest.is_some_and(|oldest| compacted <= oldest.index), || {
        format!("the log is compacted up to {compacted}, and is to reach back to snapshot {reach} of {ids:?}")
    })
}
