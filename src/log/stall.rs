//! Stalls, while they last: the log's threads say what they ask of the disk, and a thread that asks nothing of it tells.
//!
//! The writer blocks in the kernel with every plain write, and the helper with every sync: neither could tell. So the
//! *watcher* does, a thread that sleeps until the oldest operation under way would be a stall. While nothing is under way
//! and was not lately it sleeps for ever, so that an idle log costs nothing, and a busy one a wake-up per threshold.
//!
//! Invariants:
//!
//! - An operation stands here before it is asked for, and until its end is known.
//! - The watcher never sleeps for ever while something is under way: it says that it is about to, and then looks once
//!   more; whoever begins an operation looks at that afterwards, and both look under one lock.
//! - Nobody's code runs under a lock: a subscriber of `tracing` may ask for the log's statistics.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::ack::Waiters;
use super::core::Shared;
use crate::engine::stall::{News, Stage, StallWatch};
use crate::stats::Stall;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{Condvar, Mistake, Mutex, MutexGuard, planted};

/// Whose operations: each thread has a watch of its own, so that none waits for another's.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Who {
    Writer,
    Helper,
}

/// What the watcher was told.
#[derive(Debug, Default)]
struct Call {
    /// There is something to see.
    is_wanted: bool,
    /// It is to leave.
    is_over: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Stalls {
    device: String,
    after: Duration,
    clock: Arc<Waiters>,
    /// By [`Who`].
    watches: [Mutex<StallWatch>; 2],
    /// The watcher sleeps, or is about to, until somebody calls it.
    is_asleep: AtomicBool,
    call: Mutex<Call>,
    called: Condvar,
}

impl Stalls {
    pub(crate) fn new(device: String, after: Duration, clock: Arc<Waiters>) -> Stalls {
        let after_ns = u64::try_from(after.as_nanos()).unwrap_or(u64::MAX);
        Stalls {
            device,
            after,
            clock,
            watches: [(); 2].map(|()| Mutex::new(StallWatch::new(after_ns))),
            is_asleep: AtomicBool::new(false),
            call: Mutex::new(Call::default()),
            called: Condvar::new(),
        }
    }

    fn watch(&self, who: Who) -> MutexGuard<'_, StallWatch> {
        self.watches[who as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread is about to ask the disk for something.
    pub(crate) fn begin(&self, who: Who, token: u64, stage: Stage, bytes: u64, now_ns: u64) {
        self.watch(who).begin(token, stage, bytes, now_ns);
        // The watcher's last look before it sleeps took the lock before this did, or it saw the operation.
        if self.is_asleep.load(Ordering::Relaxed) && !planted(Mistake::BeginWithoutCall) {
            self.call(|call| call.is_wanted = true);
        }
    }

    /// It has its answer.
    pub(crate) fn end(&self, who: Who, token: u64, stage: Stage, now_ns: u64) {
        let has_news = self.watch(who).end(token, stage, now_ns);
        if has_news {
            self.call(|call| call.is_wanted = true);
        }
    }

    /// A thread is gone, whatever it waited for.
    pub(crate) fn clear(&self, who: Who) {
        let now_ns = self.clock.now_ns();
        self.watch(who).clear(now_ns);
    }

    fn call(&self, what: impl FnOnce(&mut Call)) {
        what(&mut self.call.lock().unwrap_or_else(PoisonError::into_inner));
        self.called.notify_one();
    }

    /// The stall there is now, of several the longest; and how many there have been.
    pub(crate) fn look(&self) -> (Option<Stall>, u64) {
        let now_ns = self.clock.now_ns();
        let looks = [Who::Writer, Who::Helper].map(|who| {
            let mut watch = self.watch(who);
            (watch.look(now_ns), watch.stalls())
        });
        let longest = looks.iter().filter_map(|(delay, _)| *delay).max_by_key(|delay| delay.waited_ns);
        let stall = longest.map(|delay| Stall {
            stage: delay.stage,
            device: self.device.clone(),
            waited_ns: delay.waited_ns,
            operations: delay.operations,
            bytes: delay.bytes,
        });
        (stall, looks.iter().map(|(_, stalls)| stalls).sum())
    }

    fn take_news(&self) -> impl Iterator<Item = News> {
        let now_ns = self.clock.now_ns();
        let news = [Who::Writer, Who::Helper].map(|who| {
            let mut watch = self.watch(who);
            watch.look(now_ns);
            watch.take_news()
        });
        news.into_iter().flatten()
    }

    /// What there is to wait for: the earliest time at which something under way would be a stall; and how much was ever
    /// begun.
    fn outlook(&self) -> (Option<u64>, u64) {
        let outlooks = [Who::Writer, Who::Helper].map(|who| {
            let watch = self.watch(who);
            (watch.due_ns(), watch.begun())
        });
        (outlooks.iter().filter_map(|(due_ns, _)| *due_ns).min(), outlooks.iter().map(|(_, begun)| begun).sum())
    }

    /// Tells news until told to leave.
    fn run(&self, tell: impl Fn(News)) {
        let mut begun_before = 0;
        loop {
            let is_over = self.call.lock().unwrap_or_else(PoisonError::into_inner).is_over;
            self.take_news().for_each(&tell);
            if is_over {
                return;
            }
            begun_before = self.rest(begun_before);
        }
    }

    /// Sleeps until there may be news. Where nothing is under way and nothing was begun since the last time, until it is
    /// called; how much has ever been begun.
    fn rest(&self, begun_before: u64) -> u64 {
        let (due_ns, begun) = self.outlook();
        let limit = due_ns.map(|due_ns| Duration::from_nanos(due_ns.saturating_sub(self.clock.now_ns())));
        if limit.is_some() || begun > begun_before {
            self.sleep(Some(limit.unwrap_or(self.after)));
            return begun;
        }
        self.is_asleep.store(true, Ordering::Relaxed);
        if self.outlook() == (None, begun) {
            self.sleep(None);
        }
        self.is_asleep.store(false, Ordering::Relaxed);
        begun
    }

    fn sleep(&self, limit: Option<Duration>) {
        let mut call = self.call.lock().unwrap_or_else(PoisonError::into_inner);
        if !call.is_wanted && !call.is_over && limit != Some(Duration::ZERO) {
            call = match limit {
                Some(limit) => self.called.wait_timeout(call, limit).unwrap_or_else(PoisonError::into_inner).0,
                None => self.called.wait(call).unwrap_or_else(PoisonError::into_inner),
            };
        }
        call.is_wanted = false;
    }
}

/// What the helper does with the disk just now, until this is dropped.
pub(crate) struct Busy<'a> {
    shared: &'a Shared,
    stage: Stage,
}

impl<'a> Busy<'a> {
    pub(crate) fn with(shared: &'a Shared, stage: Stage, bytes: u64) -> Busy<'a> {
        shared.stalls.begin(Who::Helper, 0, stage, bytes, shared.now_ns());
        Busy { shared, stage }
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.shared.stalls.end(Who::Helper, 0, self.stage, self.shared.now_ns());
    }
}

/// The watcher's thread; dropping this ends it.
pub(crate) struct Watcher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    pub(crate) fn start(shared: &Arc<Shared>) -> std::io::Result<Watcher> {
        let theirs = shared.clone();
        let named = thread::Builder::new().name(format!("{}-watch", shared.config.thread_name));
        let thread = named.spawn(move || theirs.stalls.run(|news| tell(&theirs, news)))?;
        Ok(Watcher { shared: shared.clone(), thread: Some(thread) })
    }

    /// Whether the caller runs on it.
    pub(crate) fn is_this(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| thread.thread().id() == thread::current().id())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.stalls.call(|call| call.is_over = true);
        if !self.is_this() {
            // Only a subscriber of `tracing` that panics could make this an error.
            let _ = self.thread.take().map(JoinHandle::join);
        }
    }
}

fn tell(shared: &Shared, news: News) {
    let (directory, device) = (shared.disk.path().display(), &shared.stalls.device);
    match news {
        News::Begun(delay) => {
            let queued_bytes = shared.core().sequencer.queued_bytes();
            let waited = Duration::from_nanos(delay.waited_ns);
            let (stage, operations, bytes) = (delay.stage, delay.operations, delay.bytes);
            tracing::warn!(
                %directory, device, %stage, ?waited, operations, bytes, queued_bytes,
                "the disk stalls: still waiting"
            );
        }
        News::Over { stage, lasted_ns } => {
            let lasted = Duration::from_nanos(lasted_ns);
            tracing::warn!(%directory, device, %stage, ?lasted, "the disk's stall is over");
        }
    }
}

/// Every interleaving of the watcher and a thread that asks something of the disk.
#[cfg(all(test, ringwal_loom))]
mod loom_models {
    use super::*;
    use crate::config::Wait;
    use crate::stats::Meter;
    use crate::sync::plant;

    /// An operation begins while the watcher goes to sleep for ever, and ends when it was told of; then the watcher is to
    /// leave. A call that is lost is a deadlock.
    fn an_operation_hangs(mistake: Option<Mistake>) {
        let meter = Arc::new(Meter::new());
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(move || {
            plant(mistake);
            let clock = Arc::new(Waiters::new(Wait::Park, meter.clone()));
            let stalls = Arc::new(Stalls::new("device".into(), Duration::ZERO, clock));
            let told = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
            let (theirs, hears) = (stalls.clone(), told.clone());
            let watcher = thread::spawn(move || {
                theirs.run(|news| {
                    hears.0.lock().unwrap().push(news);
                    hears.1.notify_one();
                })
            });
            stalls.begin(Who::Writer, 1, Stage::Write, 1, 1);
            let mut list = told.0.lock().unwrap();
            while list.is_empty() {
                list = told.1.wait(list).unwrap();
            }
            drop(list);
            stalls.end(Who::Writer, 1, Stage::Write, u64::MAX);
            stalls.call(|call| call.is_over = true);
            watcher.join().unwrap();
            let list = told.0.lock().unwrap();
            assert!(matches!(list[..], [News::Begun(_), News::Over { .. }]), "each is told once: {list:?}");
        });
    }

    #[test]
    fn an_operation_that_hangs_is_told_of_however_the_watcher_sleeps() {
        an_operation_hangs(None);
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn an_operation_that_does_not_call_the_watcher_would_be_found() {
        an_operation_hangs(Some(Mistake::BeginWithoutCall));
    }
}
