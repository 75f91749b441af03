//! The way of a client's write: into a queue, joined with others into an entry, proposed, applied, answered.
//!
//! Invariants:
//!
//! - A write is told to be not applied only if it was never proposed: it is taken out of the queue by exactly one of the
//!   joiner, which proposes it, and the one who waits, who gives up. Whatever happens after it was proposed leaves its
//!   outcome unknown, also where openraft answers that another node leads now: the entry may be in that one's log.
//! - An entry is bounded in commands and bytes, so that it fits a frame of the log, and a heartbeat's time.
//! - A proposal that is never answered frees its place after the time that a request has.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use openraft::Raft;
use openraft::error::ClientWriteError;
use ringwal::machine::{KvCommand, KvResponse};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::args::Plant;
use crate::failing::Failure;
use crate::leading::Leading;
use crate::machine::{Answer, Answers, Commands, Types};
use crate::planted::Planted;

/// Commands in an entry at the most.
const ENTRY_COMMANDS_MAX: usize = 256;
/// Bytes of the commands in an entry at the most, unless one alone has more: half of a frame of the log.
const ENTRY_BYTES_MAX: usize = 512 << 10;
/// Entries on their way. A second one is ready when openraft comes back from waiting for the disk; more would only make
/// them smaller.
const ENTRIES_IN_FLIGHT_MAX: usize = 2;
/// Writes that wait to be proposed, in number and bytes. Beyond that they are refused.
const QUEUE_COMMANDS_MAX: usize = 8192;
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// What a command takes besides its keys and values, at the most.
const COMMAND_OVERHEAD_BYTES: usize = 64;
/// What an entry takes besides its commands, at the most.
const ENTRY_OVERHEAD_BYTES: usize = 256;

/// What one who writes is told.
type Answered = Result<Answer, Failure>;

/// Where writes are handed in.
#[derive(Debug)]
pub(crate) struct Writes {
    queue: mpsc::Sender<Queued>,
    queued_bytes: Arc<AtomicUsize>,
    limit: Duration,
    /// More than this the log does not take.
    command_bytes_max: usize,
}

/// A write in the queue.
struct Queued {
    command: KvCommand,
    bytes: usize,
    ticket: Arc<Ticket>,
    answer: oneshot::Sender<Answered>,
}

/// Who has a write: nobody yet, the joiner, or nobody any more.
#[derive(Debug, Default)]
struct Ticket(AtomicU8);

const WAITING: u8 = 0;
const TAKEN: u8 = 1;
const WITHDRAWN: u8 = 2;

impl Ticket {
    fn take(&self) -> bool {
        self.claim(TAKEN)
    }

    fn withdraw(&self) -> bool {
        self.claim(WITHDRAWN)
    }

    fn claim(&self, as_what: u8) -> bool {
        self.0.compare_exchange(WAITING, as_what, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// Withdraws a write whose client went away.
struct Waiting(Arc<Ticket>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.withdraw();
    }
}

impl Writes {
    /// Starts the joiner.
    pub(crate) fn start(
        raft: Raft<Types>,
        leading: Leading,
        limit: Duration,
        entry_bytes_max: usize,
        plant: Option<Plant>,
    ) -> Writes {
        let (writes, queue) = Writes::new(limit, entry_bytes_max.saturating_sub(ENTRY_OVERHEAD_BYTES));
        tokio::spawn(Joiner { raft, leading, queue, limit, planted: Planted::new(plant) }.run());
        writes
    }

    fn new(limit: Duration, command_bytes_max: usize) -> (Writes, Queue) {
        let (queue, queued) = mpsc::channel(QUEUE_COMMANDS_MAX);
        let queued_bytes = Arc::new(AtomicUsize::new(0));
        let writes = Writes { queue, queued_bytes: queued_bytes.clone(), limit, command_bytes_max };
        (writes, Queue { queued, queued_bytes, held: None })
    }

    /// Applies a command, on all nodes in the end.
    pub(crate) async fn write(&self, command: KvCommand) -> Result<KvResponse, Failure> {
        let (ticket, answer) = self.enqueue(command)?;
        let waiting = Waiting(ticket);
        match timeout(self.limit, answer).await {
            Ok(Ok(answered)) => answered?.map_err(Failure::refused),
            Ok(Err(_)) => Err(Failure::stopped()),
            Err(_) if waiting.0.withdraw() => Err(Failure::overloaded("it was not proposed in time")),
            Err(_) => Err(Failure::timed_out()),
        }
    }

    fn enqueue(&self, command: KvCommand) -> Result<(Arc<Ticket>, oneshot::Receiver<Answered>), Failure> {
        let bytes = bytes_about(&command);
        if bytes > self.command_bytes_max {
            // The log would refuse the entry, and openraft stops the node for it: this one, and then the next leader.
            return Err(Failure::too_large("command", bytes, self.command_bytes_max));
        }
        if self.queued_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > QUEUE_BYTES_MAX {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(Failure::overloaded("too many bytes wait already"));
        }
        let ticket = Arc::<Ticket>::default();
        let (tell, answer) = oneshot::channel();
        let queued = Queued { command, bytes, ticket: ticket.clone(), answer: tell };
        match self.queue.try_send(queued) {
            Ok(()) => Ok((ticket, answer)),
            Err(refused) => {
                self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
                Err(match refused {
                    mpsc::error::TrySendError::Full(_) => Failure::overloaded("too many writes wait already"),
                    mpsc::error::TrySendError::Closed(_) => Failure::stopping(),
                })
            }
        }
    }
}

fn bytes_about(command: &KvCommand) -> usize {
    let optional = |bytes: &Option<bytes::Bytes>| bytes.as_ref().map_or(0, bytes::Bytes::len);
    COMMAND_OVERHEAD_BYTES
        + match command {
            KvCommand::Set { key, value } => key.len() + value.len(),
            KvCommand::CompareAndSet { key, expected, new } => key.len() + optional(expected) + optional(new),
            KvCommand::Delete { key } | KvCommand::Get { key } => key.len(),
            // Not sent by this service.
            KvCommand::Batch(_) | KvCommand::Scan { .. } => 0,
        }
}

/// The queue's other end.
struct Queue {
    queued: mpsc::Receiver<Queued>,
    queued_bytes: Arc<AtomicUsize>,
    /// One that did not fit the entry before.
    held: Option<Queued>,
}

impl Queue {
    async fn next(&mut self) -> Option<Queued> {
        match self.held.take() {
            Some(held) => Some(held),
            None => self.queued.recv().await,
        }
    }

    /// The next entry: this write and those that wait behind it, except for those that were given up.
    fn join(&mut self, first: Queued) -> Vec<Queued> {
        let (mut joined, mut bytes) = (Vec::new(), 0);
        let mut next = Some(first);
        while let Some(queued) = next {
            let is_full = joined.len() == ENTRY_COMMANDS_MAX || bytes + queued.bytes > ENTRY_BYTES_MAX;
            if is_full && !joined.is_empty() {
                self.held = Some(queued);
                break;
            }
            self.queued_bytes.fetch_sub(queued.bytes, Ordering::Relaxed);
            if queued.ticket.take() {
                bytes += queued.bytes;
                joined.push(queued);
            }
            next = self.queued.try_recv().ok();
        }
        joined
    }
}

/// Takes writes out of the queue and proposes them.
struct Joiner {
    raft: Raft<Types>,
    leading: Leading,
    queue: Queue,
    limit: Duration,
    planted: Planted,
}

impl Joiner {
    async fn run(mut self) {
        let places = Arc::new(Semaphore::new(ENTRIES_IN_FLIGHT_MAX));
        // First the place, then the commands: those that come while all places are taken are joined.
        while let Ok(place) = places.clone().acquire_owned().await {
            let Some(first) = self.queue.next().await else { return };
            let joined = self.queue.join(first);
            if !joined.is_empty() {
                self.propose(joined, place).await;
            }
        }
    }

    async fn propose(&mut self, joined: Vec<Queued>, place: OwnedSemaphorePermit) {
        if let Err(failure) = self.leading.check() {
            return fail(joined.into_iter().map(|queued| queued.answer), &failure);
        }
        let (mut commands, waiting): (Vec<_>, Vec<_>) =
            joined.into_iter().map(|queued| (queued.command, queued.answer)).unzip();
        let early = self.planted.early_answers(&commands);
        let missing = self.planted.lose(&mut commands);
        let receiver = match self.raft.client_write_ff(Commands(commands)).await {
            Ok(receiver) => receiver,
            // It never reached openraft's core.
            Err(_) => return fail(waiting, &Failure::stopping()),
        };
        if let Some(answers) = early {
            answer(waiting, Ok(answers));
            return;
        }
        let limit = self.limit;
        tokio::spawn(async move {
            let outcome = timeout(limit, receiver).await;
            drop(place);
            match outcome {
                Ok(Ok(Ok(written))) => answer(waiting, Ok(missing.cover(written.data))),
                Ok(Ok(Err(error))) => answer(waiting, Err(Failure::lost(&lost(&error)))),
                Ok(Err(_)) => answer(waiting, Err(Failure::stopped())),
                Err(_) => answer(waiting, Err(Failure::timed_out())),
            }
        });
    }
}

fn lost(error: &ClientWriteError<u64, crate::types::NodeAddr>) -> String {
    match error {
        ClientWriteError::ForwardToLeader(_) => "this node no longer leads".into(),
        error => error.to_string(),
    }
}

type Waiters = Vec<oneshot::Sender<Answered>>;

fn answer(waiting: Waiters, outcome: Result<Answers, Failure>) {
    match outcome {
        Ok(Answers(answers)) if answers.len() == waiting.len() => {
            waiting.into_iter().zip(answers).for_each(|(waiter, answer)| drop(waiter.send(Ok(answer))));
        }
        Ok(_) => fail(waiting, &Failure::lost("the entry was answered with another number of answers")),
        Err(failure) => fail(waiting, &failure),
    }
}

/// Who went away need not be told.
fn fail(waiting: impl IntoIterator<Item = oneshot::Sender<Answered>>, failure: &Failure) {
    waiting.into_iter().for_each(|waiter| drop(waiter.send(Err(failure.clone()))));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_taken_or_withdrawn_and_never_both() {
        let taken = Ticket::default();
        assert!(taken.take() && !taken.withdraw() && !taken.take());
        let withdrawn = Arc::<Ticket>::default();
        drop(Waiting(withdrawn.clone()));
        assert!(!withdrawn.take());
    }

    fn set(bytes: usize) -> KvCommand {
        KvCommand::Set { key: "k".into(), value: vec![0; bytes].into() }
    }

    #[tokio::test]
    async fn writes_that_wait_are_joined_up_to_what_an_entry_may_hold() {
        let (writes, mut queue) = Writes::new(Duration::from_secs(1), usize::MAX);
        let hand_in =
            |count: usize, bytes: usize| (0..count).map(|_| writes.enqueue(set(bytes)).unwrap()).collect::<Vec<_>>();
        let _waiting =
            [hand_in(ENTRY_COMMANDS_MAX + 1, 0), hand_in(2, ENTRY_BYTES_MAX / 2), hand_in(1, 2 * ENTRY_BYTES_MAX)];
        let mut sizes = Vec::new();
        for _ in 0..4 {
            let first = queue.next().await.unwrap();
            sizes.push(queue.join(first).len());
        }
        // As many as may be; the next with half an entry's bytes; the other half alone, too, for what is added to each;
        // what is too large for any entry with others.
        assert_eq!(sizes, [ENTRY_COMMANDS_MAX, 2, 1, 1]);
        assert_eq!(writes.queued_bytes.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_write_that_was_given_up_is_not_proposed_and_is_told_so() {
        let (writes, mut queue) = Writes::new(Duration::from_millis(1), usize::MAX);
        let refused = writes.write(set(1)).await.unwrap_err();
        assert_eq!(refused.outcome(), Some(crate::api::Outcome::NotApplied));
        let (_ticket, _answer) = writes.enqueue(set(2)).unwrap();
        let first = queue.next().await.unwrap();
        let joined = queue.join(first);
        assert!(joined.iter().map(|queued| queued.bytes).eq([bytes_about(&set(2))]));
    }

    #[tokio::test]
    async fn a_write_whose_answer_does_not_come_is_unknown_once_it_was_taken() {
        let (writes, mut queue) = Writes::new(Duration::from_millis(50), usize::MAX);
        let taken = async {
            let first = queue.next().await.unwrap();
            queue.join(first)
        };
        let (failed, joined) = tokio::join!(writes.write(set(1)), taken);
        assert_eq!((failed.unwrap_err(), joined.len()), (Failure::timed_out(), 1));
    }

    #[tokio::test]
    async fn what_waits_is_bounded_in_bytes() {
        let (writes, _queue) = Writes::new(Duration::from_secs(1), usize::MAX);
        let mut waiting = Vec::new();
        let refused = loop {
            match writes.enqueue(set(8 << 20)) {
                Ok(accepted) => waiting.push(accepted),
                Err(refused) => break refused,
            }
        };
        assert_eq!(waiting.len(), 7);
        assert_eq!(refused.outcome(), Some(crate::api::Outcome::NotApplied));
        // A smaller one still fits.
        assert!(writes.enqueue(set(1 << 20)).is_ok());
    }

    #[test]
    fn the_largest_command_is_counted_with_all_that_it_carries() {
        let big = bytes::Bytes::from(vec![0; 1000]);
        let swap = KvCommand::CompareAndSet { key: big.clone(), expected: Some(big.clone()), new: Some(big) };
        assert!(bytes_about(&swap) >= 3000);
    }
}
