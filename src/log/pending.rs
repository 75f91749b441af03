//! What a caller holds while a batch is on its way.

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker};

use super::ack::Ticket;
use super::writer;
use crate::error::{Error, Result};
use crate::sync::Mutex;

/// An accepted batch that is not acknowledged yet: wait for it by [`Pending::wait`] or by `.await`.
///
/// Dropping it does not take the batch back.
#[must_use = "the batch is accepted, but only waiting tells whether it is acknowledged"]
pub struct Pending {
    ticket: Arc<Ticket>,
    indexes: Range<u64>,
    /// Where its waker lies in the ticket.
    slot: Option<usize>,
}

impl Pending {
    pub(crate) fn new(ticket: Arc<Ticket>, indexes: Range<u64>) -> Pending {
        Pending { ticket, indexes, slot: None }
    }

    /// Indexes of the batch's entries; empty, at the next index, if it has none.
    pub fn indexes(&self) -> Range<u64> {
        self.indexes.clone()
    }

    /// Whether [`Pending::wait`] would return at once.
    pub fn is_done(&self) -> bool {
        self.ticket.is_settled()
    }

    /// Whether the batch was lost to a failure.
    pub(crate) fn has_failed(&self) -> bool {
        self.ticket.has_failed()
    }

    /// Another one for the same batch.
    pub(crate) fn twin(&self) -> Pending {
        Pending::new(self.ticket.clone(), self.indexes())
    }

    /// Blocks until the batch is acknowledged.
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`] where a write failed: whether the batch is on disk, the next open decides.
    /// [`Error::InCallback`] on the writer thread itself.
    pub fn wait(self) -> Result<()> {
        if !self.is_done() && writer::in_callback() {
            return Err(Error::InCallback);
        }
        self.ticket.wait()
    }
}

impl Future for Pending {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        let Pending { ticket, slot, .. } = &mut *self;
        ticket.poll(context.waker(), slot)
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").field("indexes", &self.indexes).field("is_done", &self.is_done()).finish()
    }
}

/// One answer, given once by a thread and taken once by a task.
pub(crate) struct Answer<T> {
    state: Mutex<(Option<Result<T>>, Option<Waker>)>,
}

impl<T> Default for Answer<T> {
    fn default() -> Answer<T> {
        Answer { state: Mutex::new((None, None)) }
    }
}

impl<T> Answer<T> {
    pub(crate) fn give(&self, answer: Result<T>) {
        let waker = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.0 = Some(answer);
            state.1.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn poll(&self, waker: &Waker) -> Poll<Result<T>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.0.take() {
            Some(answer) => Poll::Ready(answer),
            None => {
                state.1 = Some(waker.clone());
                Poll::Pending
            }
        }
    }
}
