//! Subscriptions: entries as they come, truncations below one's place as events.
//!
//! Invariants: a subscriber sees indexes in order; before an index is shown again it is told of the truncation that
//! removed it; falling behind compaction and poison are errors, once, and end it.
//!
//! A durable subscriber learns of a truncation when that is durable, an accepted one when it is accepted.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_core::Stream;

use super::core::{Core, Shared};
use super::reader;
use crate::entry::LogEntry;
use crate::error::{Error, Result};

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

    pub(crate) fn notify(&self) {
        let mut inbox = self.inbox();
        inbox.is_notified = true;
        self.news.notify_one();
        if let Some(waker) = inbox.waker.take() {
            waker.wake();
        }
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

    /// The same events for a task. Reads of entries that left the tail cache happen within the poll: a stream that
    /// lags far behind belongs on a thread of its own.
    pub fn stream(self) -> EventStream {
        EventStream { subscription: self }
    }

    /// The next event if there is one; `None` means wait. Errors are given once.
    fn take(&mut self) -> Option<Result<Event>> {
        let range = {
            let core = self.shared.core();
            let mut inbox = self.subscriber.inbox();
            inbox.is_notified = false;
            if let Some(from) = inbox.truncated.take() {
                self.ready.retain(|entry| entry.index < from);
                // What was read before the truncation and not yet shown goes first only if it stays.
                if let Some(entry) = self.ready.pop_front() {
                    inbox.truncated = Some(from);
                    return Some(Ok(Event::Entry(entry)));
                }
                return Some(Ok(Event::Truncated { from }));
            }
            if let Some(entry) = self.ready.pop_front() {
                return Some(Ok(Event::Entry(entry)));
            }
            match readable(&core, self.subscriber.upto, inbox.next) {
                Ok(Some(end)) => inbox.next..end,
                Ok(None) => return None,
                Err(error) => return Some(Err(error)),
            }
        };
        self.read(range)
    }

    fn read(&mut self, range: std::ops::Range<u64>) -> Option<Result<Event>> {
        match reader::get_entries(&self.shared, range.clone(), READ_BYTES) {
            Ok(entries) => {
                let _core = self.shared.core();
                let mut inbox = self.subscriber.inbox();
                if inbox.next == range.start && inbox.truncated.is_none() {
                    inbox.next += entries.len() as u64;
                    self.ready.extend(entries);
                }
            }
            // Truncated or compacted between the look and the read: the next look tells which.
            Err(Error::NotWritten { .. } | Error::Compacted { .. }) => {}
            Err(error) => return Some(Err(error)),
        }
        self.take()
    }

    fn over<T>(&mut self, event: Option<Result<T>>) -> Option<Result<T>> {
        self.is_over = !matches!(event, Some(Ok(_)));
        event
    }
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
            match self.take() {
                Some(Err(Error::Closed)) => return self.over(None),
                Some(event) => return self.over(Some(event)),
                None => {
                    let subscriber = self.subscriber.clone();
                    let inbox = subscriber.inbox();
                    if !inbox.is_notified {
                        drop(subscriber.news.wait(inbox).unwrap_or_else(PoisonError::into_inner));
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
}

impl Stream for EventStream {
    type Item = Result<Event>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Event>>> {
        let subscription = &mut self.subscription;
        while !subscription.is_over {
            subscription.subscriber.inbox().waker = Some(context.waker().clone());
            match subscription.take() {
                Some(Err(Error::Closed)) => return Poll::Ready(subscription.over(None)),
                Some(event) => return Poll::Ready(subscription.over(Some(event))),
                None if subscription.subscriber.inbox().is_notified => {}
                None => return Poll::Pending,
            }
        }
        Poll::Ready(None)
    }
}
