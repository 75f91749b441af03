//! Subscriptions: entries as they come, truncations below one's place as events.
//!
//! Invariants: a subscriber sees indexes in order; before an index is shown again it is told of the truncation that
//! removed it; falling behind compaction and poison are errors, once, and end it.
//!
//! A durable subscriber learns of a truncation when that is durable, an accepted one when it is accepted.

use std::collections::VecDeque;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_core::Stream;

use super::core::{Core, Shared};
use super::pending::Answer;
use super::reader;
use crate::entry::LogEntry;
use crate::error::{Error, Result};
use crate::sync::{Condvar, Mutex, MutexGuard};

/// Which entries a subscriber sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upto {
    /// All that were accepted: they may yet be lost in a crash.
    Accepted,
    /// Those that survive power loss.
    Durable,
}

/// What a subscriber is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The next entry.
    Entry(LogEntry),
    /// The entry at this index and all after it were removed; the next entry has this index.
    Truncated {
        /// First index removed.
        from: u64,
    },
}

/// How much is read from disk at once for a subscriber that lags.
const READ_BYTES: usize = 256 << 10;

#[derive(Debug, Default)]
struct Inbox {
    /// Next index to be shown.
    next: u64,
    /// Lowest truncation below `next` that is to be told.
    truncated: Option<u64>,
    /// Truncations of frames that are not durable yet, for a durable subscriber.
    undurable: VecDeque<(u64, u64)>,
    /// Something happened since the last look.
    is_notified: bool,
    waker: Option<Waker>,
}

impl Inbox {
    fn truncate(&mut self, from: u64) {
        if from < self.next {
            self.next = from;
            self.truncated = Some(self.truncated.map_or(from, |low| low.min(from)));
        }
    }
}

/// The part of a subscription that the log knows.
#[derive(Debug)]
pub(crate) struct Subscriber {
    upto: Upto,
    inbox: Mutex<Inbox>,
    news: Condvar,
}

impl Subscriber {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn waits_for_durable(&self) -> bool {
        self.upto == Upto::Durable
    }

    /// A truncation was accepted, in this frame.
    pub(crate) fn on_truncate(&self, from: u64, frame: u64) {
        let mut inbox = self.inbox();
        match self.upto {
            Upto::Accepted => inbox.truncate(from),
            Upto::Durable => inbox.undurable.push_back((frame, from)),
        }
    }

    /// Frames up to this number are durable.
    pub(crate) fn on_durable(&self, durable: u64) {
        let mut inbox = self.inbox();
        while let Some((_, from)) = inbox.undurable.pop_front_if(|(frame, _)| *frame <= durable) {
            inbox.truncate(from);
        }
    }

    /// Tells of news; a task that waits is for the caller to wake.
    pub(crate) fn notify(&self) -> Option<Waker> {
        let mut inbox = self.inbox();
        inbox.is_notified = true;
        self.news.notify_one();
        inbox.waker.take()
    }
}

/// Entries as they come: an iterator that blocks until there is more; [`Subscription::stream`] does not block.
///
/// It ends after an error, and when the log is closed.
pub struct Subscription {
    shared: Arc<Shared>,
    subscriber: Arc<Subscriber>,
    ready: VecDeque<LogEntry>,
    is_over: bool,
}

impl Subscription {
    pub(crate) fn new(shared: Arc<Shared>, from: u64, upto: Upto) -> Subscription {
        let inbox = Inbox { next: from, ..Inbox::default() };
        let subscriber = Arc::new(Subscriber { upto, inbox: Mutex::new(inbox), news: Condvar::new() });
        shared.core().subscribers.push(Arc::downgrade(&subscriber));
        Subscription { shared, subscriber, ready: VecDeque::new(), is_over: false }
    }

    /// The same events for a task, which never blocks: what left the tail cache is read by the log's reader thread.
    pub fn stream(self) -> EventStream {
        EventStream { subscription: self, reading: None }
    }

    /// What is to be done next. Errors are given once.
    fn look(&mut self) -> Look {
        let core = self.shared.core();
        let mut inbox = self.subscriber.inbox();
        inbox.is_notified = false;
        if let Some(from) = inbox.truncated {
            // What was read before the truncation and not yet shown goes first, but only if it stays.
            self.ready.retain(|entry| entry.index < from);
        }
        if let Some(entry) = self.ready.pop_front() {
            return Look::Event(Ok(Event::Entry(entry)));
        }
        if let Some(from) = inbox.truncated.take() {
            return Look::Event(Ok(Event::Truncated { from }));
        }
        match readable(&core, self.subscriber.upto, inbox.next) {
            Ok(Some(end)) => Look::Read(Wanted { range: inbox.next..end, truncations: core.sequencer.truncations() }),
            Ok(None) => Look::Wait,
            Err(error) => Look::Event(Err(error)),
        }
    }

    /// Takes in what was read, unless the log changed below it meanwhile; an error that the next look will not explain
    /// comes back.
    fn absorb(&mut self, wanted: &Wanted, read: Result<Vec<LogEntry>>) -> Result<()> {
        match read {
            Ok(entries) => {
                let core = self.shared.core();
                let mut inbox = self.subscriber.inbox();
                // After a truncation it is open which of them were read before it, and which are not durable yet.
                let is_same = core.sequencer.truncations() == wanted.truncations;
                if is_same && inbox.next == wanted.range.start {
                    inbox.next += entries.len() as u64;
                    self.ready.extend(entries);
                }
                Ok(())
            }
            // Truncated or compacted between the look and the read: the next look tells which.
            Err(Error::NotWritten { .. } | Error::Compacted { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The event, and whether it is the last.
    fn tell(&mut self, event: Result<Event>) -> Option<Result<Event>> {
        self.is_over = event.is_err();
        // A closed log ends a subscription without further words.
        Some(event).filter(|event| !matches!(event, Err(Error::Closed)))
    }
}

/// Entries to be read, and how many truncations had been accepted when they were seen to be there.
#[derive(Clone)]
struct Wanted {
    range: Range<u64>,
    truncations: u64,
}

/// What a subscription is to do next.
enum Look {
    Event(Result<Event>),
    Read(Wanted),
    Wait,
}

/// One past the last index that a subscriber at `next` may see now; `None` if it is to wait.
fn readable(core: &Core, upto: Upto, next: u64) -> Result<Option<u64>> {
    if core.is_closed {
        return Err(Error::Closed);
    }
    let visible = core.visible();
    let end = match upto {
        Upto::Accepted => visible.end,
        Upto::Durable => core.sequencer.durable_next().unwrap_or(visible.start).min(visible.end),
    };
    if core.sequencer.outline().state.next.is_some() && next < visible.start {
        return Err(Error::Compacted { first: visible.start });
    }
    match &core.poison {
        _ if core.sequencer.outline().state.first.is_some() && next < end => Ok(Some(end)),
        Some(cause) => Err(Error::Poisoned(cause.clone())),
        None => Ok(None),
    }
}

impl Iterator for Subscription {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Result<Event>> {
        while !self.is_over {
            match self.look() {
                Look::Event(event) => return self.tell(event),
                Look::Read(wanted) => {
                    let read = reader::get_entries(&self.shared, wanted.range.clone(), READ_BYTES);
                    if let Err(error) = self.absorb(&wanted, read) {
                        return self.tell(Err(error));
                    }
                }
                Look::Wait => {
                    let inbox = self.subscriber.inbox();
                    if !inbox.is_notified {
                        drop(self.subscriber.news.wait(inbox).unwrap_or_else(PoisonError::into_inner));
                    }
                }
            }
        }
        None
    }
}

/// A subscription as a [`Stream`]; see [`Subscription::stream`].
pub struct EventStream {
    subscription: Subscription,
    reading: Option<Reading>,
}

/// What the reader thread is reading.
struct Reading {
    wanted: Wanted,
    answer: Arc<Answer<Vec<LogEntry>>>,
}

impl EventStream {
    /// Reads from memory at once, and leaves what needs the disk to the reader thread.
    fn start_reading(&mut self, wanted: Wanted) -> Result<()> {
        let shared = &self.subscription.shared;
        match reader::get_cached(shared, wanted.range.start) {
            Ok(None) => {
                let range = wanted.range.clone();
                let read = move |shared: &Shared| reader::get_entries(shared, range, READ_BYTES);
                let answer = reader::on_reader_thread(shared, Box::new(read));
                self.reading = Some(Reading { wanted, answer });
                Ok(())
            }
            Ok(Some(entry)) => self.subscription.absorb(&wanted, Ok(vec![entry])),
            Err(error) => self.subscription.absorb(&wanted, Err(error)),
        }
    }
}

impl Stream for EventStream {
    type Item = Result<Event>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Event>>> {
        let this = &mut *self;
        while !this.subscription.is_over {
            if let Some(Reading { wanted, answer }) = &this.reading {
                let read = std::task::ready!(answer.poll(context.waker()));
                let absorbed = this.subscription.absorb(wanted, read);
                this.reading = None;
                if let Err(error) = absorbed {
                    return Poll::Ready(this.subscription.tell(Err(error)));
                }
            }
            this.subscription.subscriber.inbox().waker = Some(context.waker().clone());
            match this.subscription.look() {
                Look::Event(event) => return Poll::Ready(this.subscription.tell(event)),
                Look::Read(wanted) => {
                    if let Err(error) = this.start_reading(wanted) {
                        return Poll::Ready(this.subscription.tell(Err(error)));
                    }
                }
                Look::Wait if this.subscription.subscriber.inbox().is_notified => {}
                Look::Wait => return Poll::Pending,
            }
        }
        Poll::Ready(None)
    }
}
