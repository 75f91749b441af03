//! Snapshots on their way into a store, for its log to ask: openraft purges the log under one as soon as it has asked for
//! the installation, and whoever crashes in between must find one of the two.
//!
//! Invariant: where a snapshot is on its way, nothing is purged that only it would stand for; whoever waits for it is told
//! when it will never be there. Where none is, the log asks for nothing: it may have no machine, or one whose snapshots
//! are kept elsewhere.

use std::sync::Arc;

use tokio::sync::watch;

/// What a machine tells its log.
#[derive(Clone, Debug)]
pub(super) struct Arrivals(Arc<watch::Sender<State>>);

#[derive(Debug)]
struct State {
    /// The index of the newest snapshot that a restart would find.
    published: Option<u64>,
    /// How many may yet be installed.
    on_their_way: usize,
    /// The last one could not be installed.
    has_failed: bool,
    /// Nobody installs anything any more.
    is_over: bool,
}

/// A snapshot on its way, until it is dropped.
#[derive(Debug)]
pub(super) struct Arrival(Arrivals);

impl Arrivals {
    /// Of a store whose newest snapshot has this index.
    pub(super) fn new(published: Option<u64>) -> Arrivals {
        let state = State { published, on_their_way: 0, has_failed: false, is_over: false };
        Arrivals(Arc::new(watch::Sender::new(state)))
    }

    /// One more is on its way.
    pub(super) fn begin(&self) -> Arrival {
        self.0.send_modify(|state| {
            state.on_their_way += 1;
            state.has_failed = false;
        });
        Arrival(self.clone())
    }

    /// A snapshot of this index is durable.
    pub(super) fn publish(&self, index: u64) {
        self.0.send_modify(|state| state.published = state.published.max(Some(index)));
    }

    /// One could not be installed.
    pub(super) fn fail(&self) {
        self.0.send_modify(|state| state.has_failed = true);
    }

    /// The machine is gone.
    pub(super) fn end(&self) {
        self.0.send_modify(|state| state.is_over = true);
    }

    /// Waits until the log may be purged up to an index; `false` where the snapshot that would stand for that never came.
    pub(super) async fn allow(&self, upto: u64) -> bool {
        let mut seen = self.0.subscribe();
        let is_awaited = {
            let state = seen.borrow();
            state.on_their_way > 0 || state.has_failed || state.is_over
        };
        if !is_awaited {
            return true;
        }
        let is_decided = |state: &State| {
            state.published >= Some(upto) || state.on_their_way == 0 || state.has_failed || state.is_over
        };
        // The sender is here: it cannot be closed.
        seen.wait_for(is_decided).await.is_ok_and(|state| state.published >= Some(upto))
    }
}

impl Arrival {
    /// It is durable.
    pub(super) fn publish(&self, index: u64) {
        self.0.publish(index);
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.0.0.send_modify(|state| state.on_their_way -= 1);
    }
}
