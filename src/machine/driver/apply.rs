//! From acknowledged to applied: by whoever waits for it, for everyone.
//!
//! A proposal is queued in the very step in which the log accepts it, so the queue is in log order. Whoever learns that
//! its own proposal is acknowledged applies all that are, in order, in one go, and leaves the others their answers: no
//! thread stands between the log and the machine, and of the callers that share a frame one does the work for all.
//!
//! Invariants:
//!
//! - Commands are applied in the order of the log, each once, and only when they are acknowledged:
//!   `last_applied <= commit_index`, and where an acknowledgement means durable, `commit_index <= durable`.
//! - Whoever applies waits for nothing but the machine: not for the disk, not for the log, not for another caller. It
//!   goes no further than its own proposal asks for.
//! - The machine is locked against readers while it applies, and at no other time.
//! - After a panic in the machine nothing is applied to it any more, and nothing accepted.

use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;

use super::error::{DriverError, MachineFailure};
use super::inside::{Inside, is_inside};
use super::replay::Chunks;
use super::shared::Shared;
use crate::config::Durability;
use crate::log::{Batch, Pending};
use crate::machine::StateMachine;
use crate::machine::handling::{Results, apply_all};
use crate::sync::atomic::Ordering;
use crate::sync::channel::Receiver;
use crate::sync::{Mistake, Mutex, MutexGuard, planted, thread};

/// Commands that are applied before readers get their turn, where they are not of one proposal.
const ROUND_COMMANDS_MAX: usize = 256;

/// Proposals that may lie acknowledged in the queue, because those who made them went away, before the next caller
/// applies them.
const LEFT_OVER_MAX: usize = 256;

/// So often a caller looks whether another has its answer ready, before it sleeps; and how long it spins between two
/// looks, before others get its CPU: with fewer CPUs than callers, the one that is waited for may need it.
const LOOKS: u32 = 4;
const SPINS: u32 = if cfg!(ringwal_shuttle) { 1 } else { 16 };

type Answer<M> = Result<Results<M>, DriverError<<M as StateMachine>::Error>>;

/// Where a caller finds its answer.
pub(super) struct Reply<M: StateMachine>(Mutex<Option<Answer<M>>>);

impl<M: StateMachine> Reply<M> {
    fn new() -> Arc<Reply<M>> {
        Arc::new(Reply(Mutex::new(None)))
    }

    fn give(&self, answer: Answer<M>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
    }

    fn take(&self) -> Option<Answer<M>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Commands on their way: accepted by the log as one batch.
pub(super) struct Proposal<M: StateMachine> {
    pending: Pending,
    commands: Vec<M::Command>,
    bytes: u64,
    reply: Arc<Reply<M>>,
}

/// Commands as the log takes them.
struct Encoded<M: StateMachine> {
    batch: Batch,
    commands: Vec<M::Command>,
    bytes: u64,
}

impl<M: StateMachine> Encoded<M> {
    fn new(commands: Vec<M::Command>) -> Encoded<M> {
        let payloads: Vec<Bytes> = commands.iter().map(M::encode).collect();
        let bytes = payloads.iter().map(|payload| payload.len() as u64).sum();
        Encoded { batch: payloads.into_iter().fold(Batch::new(), Batch::push), commands, bytes }
    }
}

/// Consecutive commands that are applied together, and whom to tell.
pub(super) struct Round<M: StateMachine> {
    indexes: Range<u64>,
    commands: Vec<M::Command>,
    bytes: u64,
    /// With the number of commands that are theirs.
    replies: Vec<(usize, Arc<Reply<M>>)>,
}

impl<M: StateMachine> Round<M> {
    fn of(proposal: Proposal<M>) -> Round<M> {
        let Proposal { pending, commands, bytes, reply } = proposal;
        Round { indexes: pending.indexes(), replies: vec![(commands.len(), reply)], commands, bytes }
    }

    /// Takes another proposal in, if it follows and there is room.
    fn join(&mut self, proposal: Proposal<M>) -> Option<Proposal<M>> {
        let has_room = self.commands.len() + proposal.commands.len() <= ROUND_COMMANDS_MAX;
        if !has_room || proposal.pending.indexes().start != self.indexes.end {
            return Some(proposal);
        }
        self.indexes.end = proposal.pending.indexes().end;
        self.bytes += proposal.bytes;
        self.replies.push((proposal.commands.len(), proposal.reply));
        self.commands.extend(proposal.commands);
        None
    }
}

/// The end of the queue where proposals are taken out.
pub(super) struct Applier<M: StateMachine> {
    queue: Receiver<Proposal<M>>,
    /// The oldest one, taken out and not acknowledged yet.
    head: Option<Proposal<M>>,
}

impl<M: StateMachine> Applier<M> {
    pub(super) fn new(queue: Receiver<Proposal<M>>) -> Applier<M> {
        Applier { queue, head: None }
    }

    /// The oldest proposals that are acknowledged and were not applied. Those that failed go: whoever waits for one
    /// learns it from the log.
    fn next_round(&mut self) -> Option<Round<M>> {
        let mut round: Option<Round<M>> = None;
        while let Some(proposal) = self.head.take().or_else(|| self.queue.try_recv().ok()) {
            if !proposal.pending.is_done() && !planted(Mistake::ApplyEarly) {
                self.head = Some(proposal);
                break;
            }
            if proposal.pending.has_failed() {
                continue;
            }
            match &mut round {
                None => round = Some(Round::of(proposal)),
                Some(round) => self.head = round.join(proposal),
            }
            if self.head.is_some() {
                break;
            }
        }
        round
    }
}

/// The machine, and how far it is.
pub(super) struct State<M> {
    pub(super) machine: M,
    pub(super) last_applied: u64,
    /// Bytes of the commands applied since the open.
    pub(super) bytes: u64,
    pub(super) failure: Option<Arc<MachineFailure>>,
}

impl<M: StateMachine> State<M> {
    pub(super) fn new(machine: M, last_applied: u64) -> State<M> {
        State { machine, last_applied, bytes: 0, failure: None }
    }

    /// Applies the commands of entries that follow what was applied. A machine that panics was applied to for the last
    /// time.
    pub(super) fn apply(
        &mut self,
        indexes: Range<u64>,
        commands: Vec<M::Command>,
        bytes: u64,
    ) -> Result<Results<M>, Arc<MachineFailure>> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        if indexes.start != self.last_applied + 1 {
            let reason = format!("the last entry applied is {}, and these do not follow it", self.last_applied);
            return Err(self.fail(indexes.start, reason));
        }
        match apply_all(&mut self.machine, commands) {
            Ok(results) => {
                self.last_applied = indexes.end - 1;
                self.bytes += bytes;
                Ok(results)
            }
            Err(reason) => Err(self.fail(indexes.start, reason)),
        }
    }

    pub(super) fn fail(&mut self, index: u64, reason: String) -> Arc<MachineFailure> {
        tracing::error!(index, reason, "the machine failed");
        self.failure.insert(Arc::new(MachineFailure { index, reason })).clone()
    }
}

/// Commands that were accepted, for whoever waits for them.
pub(super) struct Accepted<M: StateMachine> {
    pub(super) pending: Pending,
    pub(super) reply: Arc<Reply<M>>,
}

impl<M: StateMachine> Shared<M> {
    /// Proposes commands as one batch of the log, and waits until they are applied.
    pub(super) fn propose(&self, commands: Vec<M::Command>) -> Answer<M> {
        let Accepted { pending, reply } = self.submit(commands)?;
        self.settle(pending.wait(), &reply)
    }

    /// As [`Shared::propose`], for those who wait later, or never.
    pub(super) fn submit_and_leave(&self, commands: Vec<M::Command>) -> Result<Accepted<M>, DriverError<M::Error>> {
        let accepted = self.submit(commands)?;
        self.apply_left_over();
        Ok(accepted)
    }

    fn submit(&self, commands: Vec<M::Command>) -> Result<Accepted<M>, DriverError<M::Error>> {
        self.check_open()?;
        let Encoded { batch, commands, bytes } = Encoded::<M>::new(commands);
        let reply = Reply::new();
        let theirs = reply.clone();
        let pending = self.log.submit_noting(batch, |pending| self.enqueue(pending, commands, bytes, theirs))?;
        Ok(Accepted { pending, reply })
    }

    /// Applies what nobody came back for, once that is much.
    fn apply_left_over(&self) {
        if self.queued.load(Ordering::Relaxed) > LEFT_OVER_MAX {
            self.apply_acknowledged();
        }
    }

    /// As [`Shared::propose`], without blocking for anything but the machine.
    pub(super) fn propose_async(
        self: &Arc<Self>,
        commands: Vec<M::Command>,
    ) -> impl Future<Output = Answer<M>> + Send + use<M> + 'static {
        let shared = self.clone();
        async move {
            shared.check_open()?;
            let Encoded { batch, commands, bytes } = Encoded::<M>::new(commands);
            let reply = Reply::new();
            let (theirs, queue) = (reply.clone(), shared.clone());
            let note = move |pending: &Pending| queue.enqueue(pending, commands, bytes, theirs);
            let pending = shared.log.submit_noting_async(batch, note).await?;
            shared.apply_left_over();
            let acknowledged = pending.await;
            shared.settle(acknowledged, &reply)
        }
    }

    /// Queues a proposal. Runs under the log's lock.
    fn enqueue(&self, pending: &Pending, commands: Vec<M::Command>, bytes: u64, reply: Arc<Reply<M>>) {
        self.queued.fetch_add(1, Ordering::Relaxed);
        let _ = self.queue.send(Proposal { pending: pending.twin(), commands, bytes, reply });
    }

    /// Refuses what would wait for itself, and what a failed machine refuses: its entries would only grow the log.
    fn check_open(&self) -> Result<(), DriverError<M::Error>> {
        self.check_outside()?;
        match self.is_broken.load(Ordering::Acquire) {
            true => Err(self.failure()),
            false => Ok(()),
        }
    }

    pub(super) fn check_outside(&self) -> Result<(), DriverError<M::Error>> {
        if is_inside(self.id()) { Err(DriverError::Reentrant) } else { Ok(()) }
    }

    fn failure(&self) -> DriverError<M::Error> {
        let failure = self.state().failure.clone();
        let unknown = || Arc::new(MachineFailure { index: 0, reason: "it is not known why".into() });
        DriverError::MachineFailed(failure.unwrap_or_else(unknown))
    }

    /// The answer to a proposal that the log is done with.
    pub(super) fn settle(&self, acknowledged: crate::Result<()>, reply: &Reply<M>) -> Answer<M> {
        acknowledged?;
        self.check_outside()?;
        // Another one may be at it, for this caller too.
        for _ in 0..LOOKS {
            if let Some(answer) = reply.take() {
                return answer;
            }
            if let Ok(mut applier) = self.applier.try_lock() {
                return self.apply_until(&mut applier, reply);
            }
            (0..SPINS).for_each(|_| std::hint::spin_loop());
            thread::yield_now();
        }
        self.apply_until(&mut self.applier(), reply)
    }

    fn applier(&self) -> MutexGuard<'_, Applier<M>> {
        self.applier.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies what is acknowledged up to a caller's own proposal: those who are behind it look after themselves.
    fn apply_until(&self, applier: &mut Applier<M>, reply: &Reply<M>) -> Answer<M> {
        loop {
            if let Some(answer) = reply.take() {
                self.ask_for_snapshot_if_due();
                return answer;
            }
            match self.next_round(applier) {
                Some(round) => self.apply_round(round),
                // It was queued before it could be acknowledged, and nobody takes one out without an answer.
                None => return Err(self.failure()),
            }
        }
    }

    /// Applies whatever is acknowledged, also where nobody waits for it any more.
    pub(super) fn apply_acknowledged(&self) {
        let mut applier = self.applier();
        while let Some(round) = self.next_round(&mut applier) {
            self.apply_round(round);
        }
        drop(applier);
        self.ask_for_snapshot_if_due();
    }

    fn next_round(&self, applier: &mut Applier<M>) -> Option<Round<M>> {
        let round = applier.next_round()?;
        self.queued.fetch_sub(round.replies.len(), Ordering::Relaxed);
        Some(round)
    }

    fn apply_round(&self, round: Round<M>) {
        let Round { indexes, commands, bytes, replies } = round;
        if self.is_broken.load(Ordering::Acquire) {
            return replies.into_iter().for_each(|(_, reply)| reply.give(Err(self.failure())));
        }
        if let Err(failure) = self.catch_up(indexes.start) {
            return tell_failure(replies, &failure);
        }
        self.raise_commit_index(indexes.end - 1);
        match self.apply(indexes, commands, bytes) {
            Ok(results) => tell(replies, results),
            Err(failure) => tell_failure(replies, &failure),
        }
    }

    /// Applies to the machine, locked for as long as that takes.
    fn apply(
        &self,
        indexes: Range<u64>,
        commands: Vec<M::Command>,
        bytes: u64,
    ) -> Result<Results<M>, Arc<MachineFailure>> {
        let (count, last) = (commands.len() as u64, indexes.end - 1);
        let applied = {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            let _inside = Inside::enter(self.id());
            state.apply(indexes, commands, bytes)
        };
        match &applied {
            Ok(results) => {
                self.last_applied.store(last, Ordering::Release);
                self.applied_bytes.fetch_add(bytes, Ordering::Relaxed);
                self.counters.rounds.fetch_add(1, Ordering::Relaxed);
                self.counters.commands.fetch_add(count, Ordering::Relaxed);
                let refusals = results.iter().filter(|result| result.is_err()).count() as u64;
                self.counters.refusals.fetch_add(refusals, Ordering::Relaxed);
            }
            Err(_) => self.is_broken.store(true, Ordering::Release),
        }
        applied
    }

    fn raise_commit_index(&self, index: u64) {
        self.commit_index.fetch_max(index, Ordering::Release);
        let is_durable = || self.log.state().durable.is_some_and(|durable| index <= durable);
        debug_assert!(self.durability != Durability::Sync || is_durable(), "{index} is not durable");
    }

    /// Applies entries that somebody appended to the log past this driver, up to where its own go on. Whoever does that
    /// has to write commands, and must not take anything away.
    fn catch_up(&self, until: u64) -> Result<(), Arc<MachineFailure>> {
        let next = self.last_applied.load(Ordering::Relaxed) + 1;
        if next == until {
            return Ok(());
        }
        let fail = |reason: String| {
            self.is_broken.store(true, Ordering::Release);
            self.state.write().unwrap_or_else(PoisonError::into_inner).fail(next, reason)
        };
        if next > until {
            return Err(fail("entries that were applied are gone from the log".into()));
        }
        for chunk in Chunks::<M>::new(&self.log, next..until) {
            let chunk = chunk.map_err(|error| fail(error.to_string()))?;
            self.raise_commit_index(chunk.indexes.end - 1);
            self.apply(chunk.indexes, chunk.commands, chunk.bytes)?;
        }
        Ok(())
    }
}

fn tell<M: StateMachine>(replies: Vec<(usize, Arc<Reply<M>>)>, results: Results<M>) {
    if let [(_, reply)] = &replies[..] {
        return reply.give(Ok(results));
    }
    let mut results = results.into_iter();
    for (count, reply) in replies {
        reply.give(Ok(results.by_ref().take(count).collect()));
    }
}

fn tell_failure<M: StateMachine>(replies: Vec<(usize, Arc<Reply<M>>)>, failure: &Arc<MachineFailure>) {
    for (_, reply) in replies {
        reply.give(Err(DriverError::MachineFailed(failure.clone())));
    }
}
