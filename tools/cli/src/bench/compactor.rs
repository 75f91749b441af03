//! Keeps the log at about a number of payload bytes: compacts when a producer says that enough has come in.
//!
//! Runs on a thread of its own, so that no producer's latency has a compaction's ack in it. Requests are served one
//! after the other, so that after [`Compactor::rest`] none is under way.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};

use crate::engine::Target;

/// What the compacting thread can be asked for.
pub(crate) enum Request {
    /// Compact now, if there is more than is to be kept.
    Compact,
    /// Answer when everything before was done, with the first failure if there was one.
    Rest(SyncSender<Result<()>>),
}

/// The compacting thread.
pub(crate) struct Compactor {
    requests: Option<SyncSender<Request>>,
    thread: Option<JoinHandle<u64>>,
}

impl Compactor {
    /// Starts the thread; it keeps the newest `keep_entries`, or everything where that is `None`.
    pub(crate) fn start(target: &Target, keep_entries: Option<u64>) -> Result<Compactor> {
        let (requests, received) = sync_channel(1);
        let target = target.clone();
        let thread = std::thread::Builder::new().name("compactor".into());
        let thread = thread.spawn(move || serve(&target, keep_entries, &received));
        let thread = thread.context("cannot start the compacting thread")?;
        Ok(Compactor { requests: Some(requests), thread: Some(thread) })
    }

    /// Where producers say that it is time. Each clone keeps the thread going.
    pub(crate) fn requests(&self) -> Option<SyncSender<Request>> {
        self.requests.clone()
    }

    /// Returns once no compaction is under way; with the error, if one failed.
    pub(crate) fn rest(&self) -> Result<()> {
        let (answer, answered) = sync_channel(1);
        let requests = self.requests.as_ref().context("the compacting thread ended")?;
        requests.send(Request::Rest(answer)).map_err(|_| anyhow!("the compacting thread ended"))?;
        answered.recv().context("the compacting thread ended")?
    }

    /// Ends the thread; the highest index that was compacted, 0 for none.
    pub(crate) fn finish(mut self) -> Result<u64> {
        self.rest()?;
        self.stop().ok_or_else(|| anyhow!("the compacting thread panicked"))
    }

    fn stop(&mut self) -> Option<u64> {
        self.requests = None;
        self.thread.take()?.join().ok()
    }
}

impl Drop for Compactor {
    fn drop(&mut self) {
        // The thread holds the log: it has to be gone before the log's directory may go.
        self.stop();
    }
}

fn serve(target: &Target, keep_entries: Option<u64>, requests: &Receiver<Request>) -> u64 {
    let (mut compacted, mut outcome) = (0, Ok(()));
    for request in requests {
        match request {
            Request::Rest(answer) => drop(answer.send(std::mem::replace(&mut outcome, Ok(())))),
            Request::Compact if outcome.is_err() => {}
            Request::Compact => {
                let goal = keep_entries.and_then(|keep| target.last_index()?.checked_sub(keep));
                let Some(upto) = goal.filter(|&upto| upto > compacted) else { continue };
                outcome = target.compact(upto).with_context(|| format!("cannot compact up to index {upto}"));
                compacted = if outcome.is_ok() { upto } else { compacted };
            }
        }
    }
    compacted
}
