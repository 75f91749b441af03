//! `ringwal-cluster torture`: a cluster of real processes is killed, paused, cut, filled up and wiped while clients use
//! it, and everything that the clients were told is checked.
//!
//! - `schedule`: what is done, drawn from a seed; `nemesis` does it to the `cluster` through `proxy` (its links) and
//!   `disk` (one that can be filled)
//! - `clients` use it, `ledger` and `history` keep what they did, `checker` says whether that can be explained, `finale`
//!   reads everything back in the end
//! - `watcher` and `report`: what was met
//!
//! What is checked: the history of each key is linearizable, including the reads of all keys in the end, so that no
//! acknowledged write is lost; no scan has values that cannot have been there at one moment; all nodes have the same
//! state in the end; no node ends by itself but for a full disk; the cluster serves again after each step.
//!
//! A process that is killed leaves what it wrote to the system: a sync that is missing is not found here. The crash
//! tests on a simulated disk, which loses what was not synced, find it.

mod checker;
mod clients;
mod cluster;
mod disk;
mod finale;
mod history;
mod ledger;
mod nemesis;
mod proxy;
mod report;
mod scans;
mod schedule;
mod watcher;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::checker::{Bounds, Verdict};
use self::cluster::{Cluster, Settings};
use self::history::{Key, Operation};
use self::ledger::Ledger;
use self::nemesis::Nemesis;
use self::report::{Counts, Report};
use self::scans::{Histories, Scan, Torn};
pub use self::schedule::Kind;
use self::schedule::Plan;
use crate::args::name;

/// What `torture` takes.
#[derive(Args, Clone, Debug)]
pub struct TortureArgs {
    /// About how long: a run does everything at least once, however short it is to be
    #[arg(long, default_value_t = 60)]
    pub seconds: u64,
    /// Replays a plan, up to the timing of the operating system [default: one that nobody has tried]
    #[arg(long)]
    pub seed: Option<u64>,
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(3..=7))]
    pub nodes: u64,
    /// How many clients
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=64))]
    pub clients: u64,
    /// A directory that is not there yet, for the nodes; it is removed again, unless something is found [default: a
    /// temporary one]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Write what was met to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// What is to be done to the cluster
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Kind::value_variants().to_vec())]
    pub faults: Vec<Kind>,
    /// A fault that is built in on purpose, and has to be found
    #[arg(long, value_enum)]
    pub plant: Option<Plant>,
}

/// A fault that the torture has to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Plant {
    /// Nodes acknowledge writes when they are proposed, before any node has them
    AckBeforeCommit,
    /// Reads are answered by any node, from what it has
    StaleReads,
    /// Nodes acknowledge a write now and then that comes to no node's state
    LostWrite,
    /// Scans read one key after another
    TornScans,
}

impl Plant {
    /// What the nodes have to do with it; what is wrong with reads is the clients' own doing.
    fn in_nodes(self) -> Option<crate::args::Plant> {
        match self {
            Plant::AckBeforeCommit => Some(crate::args::Plant::AckBeforeCommit),
            Plant::StaleReads | Plant::TornScans => None,
            Plant::LostWrite => Some(crate::args::Plant::LostWrite),
        }
    }
}

/// The error of a promise that was seen broken.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Broken(pub String);

/// The error of a run whose history is too hard to check: it may be fine or not.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Undecided(pub String);

/// The error of a run that was asked to stop.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// What is found and counted while the run goes on.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    counts: Arc<Counts>,
    checked: Mutex<Checked>,
    /// For each key.
    bounds: Bounds,
}

#[derive(Debug, Default)]
struct Checked {
    /// As they were when they were checked last.
    keys: BTreeMap<Key, CheckedKey>,
    scans: u64,
    longest: Duration,
    broken: Option<Broken>,
}

#[derive(Debug)]
struct CheckedKey {
    operations: usize,
    contended: usize,
    /// Why it could not be decided.
    undecided: Option<String>,
}

impl Findings {
    /// An error as soon as something was found.
    pub(crate) fn check(&self) -> Result<()> {
        self.checked().broken.clone().map_or(Ok(()), |broken| Err(broken.into()))
    }

    /// An error where a key remains of which nothing is known: to be asked in the end, as one that is easier to decide
    /// may still be found wrong.
    fn check_decided(&self) -> Result<()> {
        let checked = self.checked();
        let mut undecided = checked.keys.values().filter_map(|key| key.undecided.as_deref());
        let Some(first) = undecided.next() else { return Ok(()) };
        let others = match undecided.count() {
            0 => String::new(),
            others => format!(" (nor is that of {others} more)"),
        };
        let hint = "nothing wrong was found, and this is no pass: run it again, with fewer --clients";
        Err(Undecided(format!("{first}{others}; {hint}")).into())
    }

    /// Checks the history of a key as it is now.
    fn check_key(&self, key: Key, ledger: &Ledger) {
        let operations = ledger.operations(key);
        let began = Instant::now();
        let verdict = checker::verdict(&operations, self.bounds);
        let took = began.elapsed();
        let broken = (verdict == Verdict::NotLinearizable).then(|| Broken(wrong(key, &operations, self.bounds)));
        let undecided = (verdict == Verdict::Undecided).then(|| undecided(key, &operations, self.bounds));
        // Not only in the end: it may take long until then.
        undecided.iter().for_each(|undecided| eprintln!("{undecided}"));
        let contended = history::contended(&operations);
        let mut checked = self.checked();
        checked.keys.insert(key, CheckedKey { operations: operations.len(), contended, undecided });
        checked.longest = checked.longest.max(took);
        checked.broken = checked.broken.take().or(broken);
    }

    /// Checks everything, until something is found.
    fn check_all(&self, ledger: &Ledger) {
        let is_fine = |key: Key| {
            self.check_key(key, ledger);
            self.check().is_ok()
        };
        if ledger.all().into_iter().all(is_fine) {
            self.check_scans(ledger);
        }
    }

    /// Checks all scans, against histories of keys that are linearizable.
    fn check_scans(&self, ledger: &Ledger) {
        let mut histories = Histories::default();
        ledger.all().into_iter().for_each(|key| histories.add(key, &ledger.operations(key)));
        let scans = ledger.scans();
        let torn = scans.iter().find_map(|scan| Some(Broken(in_parts(scan, &histories.torn(scan)?))));
        let mut checked = self.checked();
        checked.scans = scans.len() as u64;
        checked.broken = checked.broken.take().or(torn);
    }

    fn tell(&self, report: &mut Report) {
        report.add(&self.counts);
        let checked = self.checked();
        let keys = || checked.keys.values();
        report.keys_checked = keys().len() as u64;
        report.keys_undecided = keys().filter(|key| key.undecided.is_some()).count() as u64;
        report.operations_checked = keys().map(|key| key.operations as u64).sum();
        report.operations_contended = keys().map(|key| key.contended as u64).sum();
        report.scans_checked = checked.scans;
        report.longest_check_ms = checked.longest.as_millis() as u64;
    }

    fn checked(&self) -> MutexGuard<'_, Checked> {
        self.checked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why nothing is known of a key.
fn undecided(key: Key, operations: &[Operation], bounds: Bounds) -> String {
    let open = operations.iter().filter(|operation| operation.end.is_none()).count();
    let all = operations.len();
    format!("whether {key} is linearizable is not decided within {bounds}: {all} operations, {open} of them open")
}

/// What is wrong with a key, and what led to it.
fn wrong(key: Key, operations: &[Operation], bounds: Bounds) -> String {
    const SHOWN: usize = 20;
    let Some(wrong) = checker::first_wrong(operations, bounds) else {
        return format!(
            "{key} is not linearizable; what is the first that nothing explains is not decided in {bounds}"
        );
    };
    let until_ns = wrong.end.map_or(u64::MAX, |(end_ns, _)| end_ns);
    let mut before: Vec<_> = operations.iter().filter(|operation| operation.start_ns <= until_ns).collect();
    before.sort_by_key(|operation| operation.end.map_or(operation.start_ns, |(end_ns, _)| end_ns));
    let shown = before[before.len().saturating_sub(SHOWN)..].iter().map(|operation| format!("\n  {operation}"));
    format!("{key} is not linearizable: nothing explains\n  {wrong}\nafter{}", shown.collect::<String>())
}

/// What is wrong with a scan.
fn in_parts(scan: &Scan, torn: &Torn) -> String {
    let Scan { client, start_ns, end_ns, .. } = scan;
    let (start_ms, end_ms) = (*start_ns as f64 / 1e6, *end_ns as f64 / 1e6);
    format!("a scan is not linearizable: client {client} did it from {start_ms:.3} to {end_ms:.3} ms, but {torn}")
}

/// Checks keys that nobody works on any more, as they come.
fn check_settled(findings: Arc<Findings>, ledger: &Arc<Ledger>, mut settled: UnboundedReceiver<Key>) {
    // The ledger holds the other end: this must not hold the ledger, or neither would ever end.
    let ledger = Arc::downgrade(ledger);
    tokio::task::spawn_blocking(move || {
        while let Some((key, ledger)) = settled.blocking_recv().zip(ledger.upgrade()) {
            findings.check_key(key, &ledger);
        }
    });
}

/// Runs it, and shows what was met.
///
/// # Errors
///
/// [`Broken`] where a promise was seen broken, or where the run did not meet what it set out to; [`Undecided`] where
/// the checker does not know; [`Interrupted`]; anything that keeps the run from being made.
pub async fn run(args: &TortureArgs) -> Result<()> {
    let seed =
        args.seed.map_or_else(getrandom::u64, Ok).map_err(|error| anyhow::anyhow!("no seed can be had: {error}"))?;
    let json = args
        .json
        .as_ref()
        .map(|path| File::create(path).with_context(|| format!("{} cannot be written", path.display())));
    let json = json.transpose()?;
    let kinds: BTreeSet<Kind> = args.faults.iter().copied().collect();
    let plan = Plan::draw(seed, Duration::from_secs(args.seconds), &kinds);
    eprintln!("seed {seed}, {} steps:", plan.steps.len());
    plan.steps.iter().enumerate().for_each(|(number, step)| eprintln!("  {number}: {step}"));
    let dir = Directory::make(args.dir.as_deref())?;
    let (nodes, clients) = (args.nodes as usize, args.clients as usize);
    let mut run = Run {
        seed,
        args,
        plan,
        dir: dir.path.clone(),
        findings: Arc::default(),
        ledger: None,
        cluster: None,
        report: Report { seed, nodes, clients, ..Report::default() },
    };
    let began = Instant::now();
    let outcome = tokio::select! {
        outcome = run.all(&kinds) => outcome,
        interrupted = interrupted() => Err(interrupted),
    };
    run.report.seconds = began.elapsed().as_secs_f64();
    run.report.outcome = match &outcome {
        Ok(()) => "ok".into(),
        Err(error) => error.to_string().lines().next().unwrap_or_default().to_owned(),
    };
    let has_failed = outcome.as_ref().is_err_and(|error| !error.is::<Interrupted>());
    let kept = run.end(has_failed, dir).await;
    println!("{}", run.report.table());
    kept.iter().for_each(|kept| eprintln!("{kept}"));
    let written = json.map_or(Ok(()), |json| run.report.write(json).context("what was met cannot be written"));
    // What was found is told, whatever becomes of the rest.
    outcome.and(written)
}

/// Ends when somebody asks the run to stop.
async fn interrupted() -> anyhow::Error {
    let (interrupt, terminate) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    let (mut interrupt, mut terminate) = match (interrupt, terminate) {
        (Ok(interrupt), Ok(terminate)) => (interrupt, terminate),
        (Err(error), _) | (_, Err(error)) => return error.into(),
    };
    tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
    Interrupted.into()
}

/// The directory of a run: it goes with the run, unless it is kept.
struct Directory {
    path: PathBuf,
    is_kept: bool,
}

impl Directory {
    fn make(asked: Option<&Path>) -> Result<Directory> {
        let path = match asked {
            Some(path) => {
                fs::create_dir(path).with_context(|| format!("{} cannot be made", path.display()))?;
                path.canonicalize()?
            }
            None => tempfile::Builder::new().prefix("ringwal-torture-").tempdir()?.keep(),
        };
        Ok(Directory { path, is_kept: false })
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if !self.is_kept
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            eprintln!("{} is left behind: {error}", self.path.display());
        }
    }
}

/// The command that plays a run again, from the command's name on: the plan hangs on the kinds of faults too.
fn again(seed: u64, args: &TortureArgs) -> String {
    let TortureArgs { seconds, nodes, clients, .. } = args;
    let kinds: BTreeSet<Kind> = args.faults.iter().copied().collect();
    let kinds = kinds.iter().map(name).collect::<Vec<_>>().join(",");
    let plant = args.plant.as_ref().map(|plant| format!(" --plant {}", name(plant))).unwrap_or_default();
    format!("torture --seed {seed} --seconds {seconds} --nodes {nodes} --clients {clients} --faults {kinds}{plant}")
}

/// One run.
struct Run<'a> {
    seed: u64,
    args: &'a TortureArgs,
    plan: Plan,
    dir: PathBuf,
    findings: Arc<Findings>,
    ledger: Option<Arc<Ledger>>,
    cluster: Option<Cluster>,
    report: Report,
}

impl Run<'_> {
    async fn all(&mut self, kinds: &BTreeSet<Kind>) -> Result<()> {
        self.start(kinds).await?;
        let (cluster, ledger) = (self.cluster.as_mut(), self.ledger.clone());
        let (cluster, ledger) = cluster.zip(ledger).context("it was just started")?;
        let (stop, stopped) = watch::channel(false);
        let shared = clients::Shared {
            ledger: ledger.clone(),
            counts: self.findings.counts.clone(),
            addrs: cluster.clients(),
            plant: self.args.plant,
        };
        let start = |number: u64| clients::start(number as u32, self.seed, shared.clone(), stopped.clone());
        let clients: Vec<JoinHandle<()>> = (0..self.args.clients).map(start).collect();
        let watcher = tokio::spawn(watcher::watch(cluster.clients(), cluster.sight.clone(), stopped.clone()));
        let began = Instant::now();
        let mut nemesis = Nemesis { cluster, report: &mut self.report, findings: &self.findings, began };
        let played = nemesis.play(&self.plan, Duration::from_secs(self.args.seconds)).await;
        // Also where it failed: what the clients are about to hear belongs to the history.
        stop.send_replace(true);
        for client in clients {
            client.await?;
        }
        watcher.await?;
        played?;
        self.finish(&ledger, kinds).await
    }

    async fn start(&mut self, kinds: &BTreeSet<Kind>) -> Result<()> {
        let settings = Settings {
            nodes: self.args.nodes as usize,
            dir: self.dir.clone(),
            plant: self.args.plant.and_then(Plant::in_nodes),
            has_small_disk: kinds.contains(&Kind::Full),
            wipes: self.plan.wipes(),
        };
        let cluster = self.cluster.insert(Cluster::start(settings).await?);
        cluster.settle().await?;
        let (tell, settled) = unbounded_channel();
        let ledger = self.ledger.insert(Arc::new(Ledger::new(tell)));
        check_settled(self.findings.clone(), ledger, settled);
        Ok(())
    }

    /// Everything that is only known when nothing happens any more.
    async fn finish(&mut self, ledger: &Arc<Ledger>, kinds: &BTreeSet<Kind>) -> Result<()> {
        let cluster = self.cluster.as_mut().context("it is there until the end")?;
        finale::read_back(cluster, ledger, &mut self.report).await?;
        finale::compare(cluster, &mut self.report).await?;
        cluster.stop().await?;
        let (findings, ledger) = (self.findings.clone(), ledger.clone());
        tokio::task::spawn_blocking(move || findings.check_all(&ledger)).await?;
        self.findings.check()?;
        self.findings.check_decided()?;
        self.gather();
        let missing = self.report.missing(kinds);
        anyhow::ensure!(missing.is_empty(), Broken(format!("the run met no {}", missing.join(", no "))));
        Ok(())
    }

    /// What others have counted.
    fn gather(&mut self) {
        let Some(cluster) = &self.cluster else { return };
        let of = |count: &std::sync::atomic::AtomicU64| count.load(std::sync::atomic::Ordering::Relaxed);
        self.report.connections_cut = of(&cluster.harm.connections_cut);
        self.report.pieces_held = of(&cluster.harm.pieces_held);
        self.report.pieces_swallowed = of(&cluster.harm.pieces_swallowed);
        self.report.pieces_slowed = of(&cluster.harm.pieces_slowed);
        cluster.sight.tell(&mut self.report);
        self.report.restarts = cluster.restarts - cluster.len() as u64;
        self.report.full_disk_refusals = cluster.full_exits;
        self.findings.tell(&mut self.report);
    }

    /// Ends all processes. Of a run that has failed it keeps what is needed to see what went wrong, and says where, and
    /// how to play it again.
    async fn end(&mut self, has_failed: bool, mut dir: Directory) -> Option<String> {
        self.gather();
        if let Some(mut cluster) = self.cluster.take() {
            cluster.kill_all().await;
            if has_failed {
                cluster.keep_disk();
            }
        }
        dir.is_kept = has_failed;
        has_failed.then(|| {
            let history = match self.write_history() {
                Ok(()) => "history, logs".to_owned(),
                Err(error) => format!("the history cannot be written ({error:#}); logs"),
            };
            let program = std::env::args().next().unwrap_or_else(|| "ringwal-cluster".into());
            let again = again(self.seed, self.args);
            format!("{history} and directories are kept in {}\nagain: {program} {again}", self.dir.display())
        })
    }

    fn write_history(&self) -> Result<()> {
        let Some(ledger) = &self.ledger else { return Ok(()) };
        let mut out = BufWriter::new(File::create(self.dir.join("history.jsonl"))?);
        for key in ledger.all() {
            history::write(&mut out, key, &ledger.operations(key))?;
        }
        Ok(out.flush()?)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::history::{Action, Answer};
    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: TortureArgs,
    }

    fn parse(line: &str) -> TortureArgs {
        Line::parse_from(line.split(' ')).args
    }

    #[test]
    fn the_command_that_plays_a_run_again_asks_for_the_same_plan_and_the_same_fault() {
        for line in ["torture", "torture --seconds 7 --nodes 5 --clients 3 --faults wipe,kill --plant lost-write"] {
            let asked = parse(line);
            let played = parse(&again(42, &asked));
            let plan = |args: &TortureArgs| {
                let kinds = args.faults.iter().copied().collect();
                Plan::draw(42, Duration::from_secs(args.seconds), &kinds)
            };
            assert_eq!(plan(&played), plan(&asked));
            assert_eq!(
                (played.seed, played.nodes, played.clients, played.plant),
                (Some(42), asked.nodes, asked.clients, asked.plant)
            );
        }
    }

    #[test]
    fn a_key_that_is_checked_twice_does_not_make_twice_as_many_operations() {
        let (tell, _settled) = unbounded_channel();
        let (ledger, findings) = (Ledger::new(tell), Findings::default());
        let read = Operation { client: 0, action: Action::Get, start_ns: 0, end: Some((1, Answer::Found(None))) };
        for _ in 0..3 {
            ledger.read_back(Key(0), read);
            findings.check_key(Key(0), &ledger);
        }
        findings.check_key(Key(1), &ledger);
        let mut report = Report::default();
        findings.tell(&mut report);
        assert_eq!((report.keys_checked, report.operations_checked), (2, 3));
        findings.check().unwrap();
    }

    #[test]
    fn a_key_that_could_not_be_decided_fails_the_run_in_words_of_its_own_until_it_is_decided() {
        let (tell, _settled) = unbounded_channel();
        let ledger = Ledger::new(tell);
        let read = Operation { client: 0, action: Action::Get, start_ns: 0, end: Some((1, Answer::Found(None))) };
        ledger.read_back(Key(0), read);
        let mut findings = Findings { bounds: Bounds { tries: 0, ..Bounds::default() }, ..Findings::default() };
        findings.check_key(Key(0), &ledger);
        // It is nothing that was seen broken, but no pass either.
        findings.check().unwrap();
        let error = findings.check_decided().unwrap_err();
        assert!(error.is::<Undecided>(), "{error:?}");
        let told = error.to_string();
        assert!(["not decided", "no pass", "--clients"].iter().all(|words| told.contains(words)), "{told}");
        let mut report = Report::default();
        findings.tell(&mut report);
        assert_eq!((report.keys_checked, report.keys_undecided), (1, 1));
        findings.bounds = Bounds::default();
        findings.check_key(Key(0), &ledger);
        findings.check_decided().unwrap();
    }
}
