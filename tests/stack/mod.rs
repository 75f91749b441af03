//! The whole stack (log, machine, snapshots, driver) lived through by random histories on a simulated disk, and the
//! judge of what a crash left of them.
//!
//! - `ledger`: the machine; `history`: what is done to it, and the model of its states
//! - `judge`: the workload with its promises, and what must hold after a crash; `crash`: a history crashed everywhere
//! - `scene`: one thing that goes wrong at a time
//! - `writers`: threads that write side by side, and what they leave
//!
//! Uses the public API only. The library's own tests take it in too, to plant mistakes under it.
#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod crash;
pub(crate) mod history;
pub(crate) mod judge;
pub(crate) mod ledger;
pub(crate) mod scene;
pub(crate) mod writers;

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// The value of a future that is ready at once, as those of the machines here are.
pub(crate) fn ready<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a machine's future is not ready at once"),
    }
}

/// A number from the environment, for running longer, or again.
pub(crate) fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}
