//! A command that the log accepted, on its way to the machine: the caller need not wait before it proposes the next.
//!
//! Invariant: the command is queued from the moment this exists, and is applied whatever becomes of this.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use super::apply::Accepted;
use super::{Driver, Result, single};
use crate::machine::StateMachine;

/// A command that was accepted: [`Proposed::wait`] for the machine's response, or await it.
///
/// Dropping this does not take the command back: it is applied, at the latest with a later command.
#[must_use = "it is not known yet whether the command is durable, and what the machine says to it"]
pub struct Proposed<M: StateMachine> {
    pub(super) driver: Driver<M>,
    pub(super) accepted: Accepted<M>,
}

impl<M: StateMachine> Proposed<M> {
    /// The command's index in the log.
    pub fn index(&self) -> u64 {
        self.accepted.pending.indexes().start
    }

    /// Waits until the command is acknowledged and applied, and returns the machine's response.
    ///
    /// # Errors
    ///
    /// Those of [`Driver::propose`](super::Driver::propose) that come after the command was accepted.
    pub fn wait(self) -> Result<M::Response, M> {
        let Accepted { pending, reply } = self.accepted;
        single(self.driver.shared().settle(pending.wait(), &reply)?)
    }
}

/// Done when the command is applied. It blocks only while the machine applies.
impl<M: StateMachine> Future for Proposed<M> {
    type Output = Result<M::Response, M>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<M::Response, M>> {
        let acknowledged = ready!(Pin::new(&mut self.accepted.pending).poll(context));
        Poll::Ready(self.driver.shared().settle(acknowledged, &self.accepted.reply).and_then(single))
    }
}

impl<M: StateMachine> fmt::Debug for Proposed<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proposed({})", self.index())
    }
}
