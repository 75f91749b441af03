//! Plays the plan: brings about each fault, lets it last, makes all well again, and waits until the cluster serves.
//!
//! How long something takes is noted and never held against it, but for what takes so long that it must hang.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::cluster::{Cluster, PATIENCE};
use super::proxy::Weather;
use super::report::Report;
use super::schedule::{Fault, Kind, Plan, Step, Whom};
use super::{Broken, Findings};
use crate::client::ClientError;
use crate::types::NodeId;

/// How often it is looked whether all nodes are there and nothing was found.
const LOOK: Duration = Duration::from_millis(50);
/// How long a full disk is held full at the most until a node has noticed.
const NOTICE: Duration = Duration::from_secs(15);

/// Who does harm to a cluster.
pub(crate) struct Nemesis<'a> {
    pub(crate) cluster: &'a mut Cluster,
    pub(crate) report: &'a mut Report,
    pub(crate) findings: &'a Findings,
    pub(crate) began: Instant,
}

impl Nemesis<'_> {
    /// Plays the steps; those past the first deck only until the time is over.
    pub(crate) async fn play(&mut self, plan: &Plan, time: Duration) -> Result<()> {
        self.report.steps_planned = plan.steps.len();
        for (number, step) in plan.steps.iter().enumerate() {
            if number >= plan.deck && self.began.elapsed() >= time {
                break;
            }
            self.tell(format_args!("step {number}: {step}"));
            self.step(step).await?;
            self.report.steps_done += 1;
        }
        // The clients go on for as long as was asked for, also where no harm is planned.
        self.hold(time.saturating_sub(self.began.elapsed())).await
    }

    async fn step(&mut self, step: &Step) -> Result<()> {
        // Who is meant is said by the part that it plays: first there has to be a leader.
        self.until_led().await?;
        let weather = step.shall_show().map(|weather| (weather, self.cluster.harm.met(weather)));
        self.bring(step.fault).await?;
        if let Some(then) = step.then {
            self.hold(step.hold / 2).await?;
            self.bring(then).await?;
        }
        self.hold(step.hold).await?;
        self.until_met(weather).await?;
        if step.lasts_for_a_successor() {
            self.until_led().await?;
        }
        let began = Instant::now();
        self.cluster.restore().await?;
        self.cluster.settle().await?;
        self.report.longest_recovery_ms = self.report.longest_recovery_ms.max(began.elapsed().as_millis() as u64);
        self.hold(step.quiet).await
    }

    /// Waits, for a while, until somebody leads.
    async fn until_led(&mut self) -> Result<()> {
        let began = Instant::now();
        while self.cluster.leader().await.is_none() && began.elapsed() < NOTICE {
            self.hold(LOOK).await?;
        }
        Ok(())
    }

    /// Waits, for a while, until a weather was met more often than this.
    async fn until_met(&mut self, weather: Option<(Weather, u64)>) -> Result<()> {
        let began = Instant::now();
        while weather.is_some_and(|(weather, before)| self.cluster.harm.met(weather) == before)
            && began.elapsed() < NOTICE
        {
            self.hold(LOOK).await?;
        }
        Ok(())
    }

    /// Waits, and looks after the nodes and the findings meanwhile.
    async fn hold(&mut self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        loop {
            self.findings.check()?;
            self.cluster.watch().await?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            tokio::time::sleep(left.min(LOOK)).await;
        }
    }

    /// Brings about a fault, and counts it if anything came of it: there may have been nothing left to kill.
    async fn bring(&mut self, fault: Fault) -> Result<()> {
        let has_effect = match fault {
            Fault::Kill(whom) => self.kill(whom).await?,
            Fault::Stop(whom) => self.stop(whom).await?,
            Fault::Pause(whom) => self.pause(whom).await,
            Fault::Around(whom, links, weather) => {
                for at in self.cluster.who(whom).await {
                    self.cluster.around(at, links, weather);
                }
                true
            }
            Fault::Split { leader_is_alone, weather } => {
                let minority = self.minority(leader_is_alone).await;
                self.cluster.split(&minority, weather);
                true
            }
            Fault::Full { restarts_full } => self.fill(restarts_full).await?,
            Fault::Wipe { whom, dies_after } => self.wipe(whom, dies_after).await.map(|()| true)?,
            Fault::Member(whom) => self.member(whom).await.map(|()| true)?,
            Fault::Snapshot => self.snapshot().await,
        };
        if has_effect {
            self.report.met(fault.kind());
        }
        Ok(())
    }

    /// Whether there was something to kill.
    async fn kill(&mut self, whom: Whom) -> Result<bool> {
        let (places, leader) = self.cluster.who_and_leader(whom).await;
        let mut killed = 0;
        for at in places {
            killed += u64::from(self.cluster.kill(at).await?);
        }
        match (whom, leader) {
            (Whom::All, _) => self.report.kills_of_all += u64::from(killed == self.cluster.len() as u64),
            // Nobody knows what it was.
            (_, None) => {}
            (Whom::Leader, Some(_)) => self.report.kills_of_leaders += killed,
            (Whom::Follower(_), Some(_)) => self.report.kills_of_followers += killed,
        }
        Ok(killed > 0)
    }

    /// Whether there was something to stop.
    async fn stop(&mut self, whom: Whom) -> Result<bool> {
        let before = self.report.stops;
        for at in self.cluster.who(whom).await {
            self.report.stops += u64::from(self.cluster.terminate(at).await?);
        }
        Ok(self.report.stops > before)
    }

    /// Whether there was something to pause.
    async fn pause(&mut self, whom: Whom) -> bool {
        let (places, leader) = self.cluster.who_and_leader(whom).await;
        let mut paused = 0;
        for at in places {
            let is_paused = u64::from(self.cluster.pause(at));
            paused += is_paused;
            match leader {
                None => {}
                Some(leader) if at == leader => self.report.pauses_of_leaders += is_paused,
                Some(_) => self.report.pauses_of_followers += is_paused,
            }
        }
        paused > 0
    }

    /// Less than half of the nodes, with the leader among them or not.
    async fn minority(&self, with_leader: bool) -> BTreeSet<usize> {
        let leader = self.cluster.leader().await.unwrap_or_default();
        let others = (1..self.cluster.len()).map(|offset| (leader + offset) % self.cluster.len());
        let others = others.take((self.cluster.len() - 1) / 2 - usize::from(with_leader));
        others.chain(with_leader.then_some(leader)).collect()
    }

    /// Fills the disk, and waits until somebody has noticed; whether somebody did.
    async fn fill(&mut self, restarts_full: bool) -> Result<bool> {
        let Some(at) = self.cluster.small_disk() else {
            self.report.skipped.insert(Kind::Full);
            return Ok(false);
        };
        let before = self.refusals();
        let began = Instant::now();
        self.cluster.fill(at)?;
        while self.refusals() == before && began.elapsed() < NOTICE {
            // What compaction gives back is taken as well, and a snapshot needs room.
            self.cluster.fill(at)?;
            let _ = self.cluster.admin.snapshot(&self.cluster.addr(at).client).await;
            self.hold(LOOK).await?;
        }
        if restarts_full {
            self.cluster.restart_full(at).await?;
        }
        Ok(self.refusals() > before)
    }

    fn refusals(&self) -> u64 {
        self.cluster.full_exits + self.findings.counts.full.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// A node leaves, loses everything, and comes back under another number: as a learner, then as a voter.
    async fn wipe(&mut self, whom: Whom, dies_after: Option<Duration>) -> Result<()> {
        for at in self.cluster.who(whom).await {
            self.vote(self.cluster.ids_but(Some(at))).await?;
            self.cluster.kill(at).await?;
            self.cluster.wipe(at)?;
            self.leave_nothing_but_snapshots(at).await?;
            self.cluster.start_all().await?;
            if let Some(after) = dies_after {
                self.learn(at).await?;
                // Perhaps in the middle of the snapshot that it is sent.
                self.hold(after).await?;
                self.cluster.kill(at).await?;
                self.cluster.start_all().await?;
            }
            self.join(at).await?;
            self.report.members_replaced += 1;
            self.report.members_sent_a_snapshot += 1;
        }
        Ok(())
    }

    /// Waits until every other node has forgotten the beginning of its log: who comes with nothing has no way to catch
    /// up then but a snapshot, whoever leads. Nobody has to look at the right moment to see that it was sent one.
    async fn leave_nothing_but_snapshots(&mut self, without: usize) -> Result<()> {
        let began = Instant::now();
        for at in (0..self.cluster.len()).filter(|at| *at != without) {
            while self.cluster.status(at).await.is_none_or(|status| status.purged.is_none()) {
                if began.elapsed() > PATIENCE {
                    let seen = self.cluster.statuses().await;
                    return Err(Broken(format!("the log was not compacted in {PATIENCE:?}: {seen:#?}")).into());
                }
                let _ = self.cluster.watcher.snapshot(&self.cluster.addr(at).client).await;
                self.hold(LOOK).await?;
            }
        }
        Ok(())
    }

    /// A node leaves the voters, and comes back with all it has.
    async fn member(&mut self, whom: Whom) -> Result<()> {
        for at in self.cluster.who(whom).await {
            self.vote(self.cluster.ids_but(Some(at))).await?;
            self.hold(Duration::from_millis(300)).await?;
            self.join(at).await?;
            self.report.membership_changes += 1;
        }
        Ok(())
    }

    async fn join(&mut self, at: usize) -> Result<()> {
        self.learn(at).await?;
        self.vote(self.cluster.ids_but(None)).await
    }

    async fn learn(&mut self, at: usize) -> Result<()> {
        let (id, addr) = (self.cluster.id(at), self.cluster.addr(at));
        let began = Instant::now();
        while let Err(error) = self.cluster.admin.add_learner(id, &addr).await {
            self.again("a learner could not be added", began, &error).await?;
        }
        Ok(())
    }

    /// Changes the voters, as often as it takes: a change is made once, however often it is asked for.
    async fn vote(&mut self, ids: BTreeSet<NodeId>) -> Result<()> {
        let began = Instant::now();
        while let Err(error) = self.cluster.admin.set_voters(&ids).await {
            self.again(&format!("the voters could not be changed to {ids:?}"), began, &error).await?;
        }
        Ok(())
    }

    async fn again(&mut self, what: &str, began: Instant, error: &ClientError) -> Result<()> {
        if began.elapsed() > PATIENCE {
            let seen = self.cluster.statuses().await;
            return Err(Broken(format!("{what} in {PATIENCE:?}: {error}: {seen:#?}")).into());
        }
        self.hold(LOOK).await
    }

    /// Whether anybody was there to be asked.
    async fn snapshot(&mut self) -> bool {
        let mut asked = 0;
        for at in self.cluster.who(Whom::All).await {
            // One that is down or paused makes none.
            asked += u64::from(self.cluster.watcher.snapshot(&self.cluster.addr(at).client).await.is_ok());
        }
        asked > 0
    }

    fn tell(&self, what: fmt::Arguments<'_>) {
        eprintln!("{:>7.1} s  {what}", self.began.elapsed().as_secs_f64());
    }
}
