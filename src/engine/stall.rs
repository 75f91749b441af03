//! Which operations of a thread have been under way for too long, and what is to be told of that.
//!
//! A *stall* begins when the oldest operation under way has been so for the threshold; it is over when none is that old.
//!
//! Invariants:
//!
//! - Whoever looks sees the stall there is at that moment, whether or not it was told of.
//! - Each is counted once and told twice, in this order: when it began, with what waits, and when it was over, with how
//!   long it took. One that nobody looked at while it lasted is noticed by its end.
//! - Untold news are few: where nobody takes them, later stalls are only counted.
//!
//! Pure: time comes in as nanoseconds of any clock that does not go back. It does not know what an operation is, nor
//! who watches.

use std::collections::VecDeque;
use std::fmt;

/// News that are kept for whoever tells them.
const NEWS_MAX: usize = 16;

/// What a log's thread waits for the disk with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// The write of a frame: appends wait for it.
    Write,
    /// A sync of written frames, where durability is apart from writing.
    Sync,
    /// The making of a spare segment: a piece of its zeros, or its header, syncs and name. Appends wait for it only once
    /// the segment before it is full.
    Spare,
    /// The index file of a sealed segment.
    Index,
    /// The watermark in the lock file.
    Slot,
    /// The removal of a dropped segment.
    Removal,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Write => "write",
            Stage::Sync => "sync",
            Stage::Spare => "spare",
            Stage::Index => "index",
            Stage::Slot => "slot",
            Stage::Removal => "removal",
        })
    }
}

/// A stall, as it is at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Delay {
    /// What the oldest operation does, and for how long it has.
    pub(crate) stage: Stage,
    pub(crate) waited_ns: u64,
    /// Everything that is under way.
    pub(crate) operations: usize,
    pub(crate) bytes: u64,
}

/// What is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    Begun(Delay),
    Over { stage: Stage, lasted_ns: u64 },
}

#[derive(Debug)]
struct UnderWay {
    token: u64,
    stage: Stage,
    bytes: u64,
    since_ns: u64,
}

/// The stall there is: what it began with.
#[derive(Debug)]
struct Present {
    stage: Stage,
    since_ns: u64,
    is_told: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct StallWatch {
    after_ns: u64,
    /// By their start.
    under_way: VecDeque<UnderWay>,
    present: Option<Present>,
    news: VecDeque<News>,
    begun: u64,
    stalls: u64,
}

impl StallWatch {
    /// Calls it a stall when an operation has been under way for so long.
    pub(crate) fn new(after_ns: u64) -> StallWatch {
        StallWatch { after_ns, under_way: VecDeque::new(), present: None, news: VecDeque::new(), begun: 0, stalls: 0 }
    }

    /// An operation begins. Several may have one token and stage: they count as equals.
    pub(crate) fn begin(&mut self, token: u64, stage: Stage, bytes: u64, now_ns: u64) {
        self.begun += 1;
        self.under_way.push_back(UnderWay { token, stage, bytes, since_ns: now_ns });
    }

    /// An operation is over, well or not; one that never began changes nothing. Returns whether there are news.
    pub(crate) fn end(&mut self, token: u64, stage: Stage, now_ns: u64) -> bool {
        self.look(now_ns);
        let at = self.under_way.iter().position(|one| one.token == token && one.stage == stage);
        if let Some(at) = at {
            self.under_way.remove(at);
            self.end_stall(now_ns);
        }
        !self.news.is_empty()
    }

    /// Whatever is under way will not end any more.
    pub(crate) fn clear(&mut self, now_ns: u64) {
        self.look(now_ns);
        self.under_way.clear();
        self.end_stall(now_ns);
    }

    fn end_stall(&mut self, now_ns: u64) {
        if self.is_oldest_late(now_ns) {
            return;
        }
        if let Some(Present { stage, since_ns, is_told: true }) = self.present.take() {
            self.news.push_back(News::Over { stage, lasted_ns: now_ns.saturating_sub(since_ns) });
        }
    }

    fn is_oldest_late(&self, now_ns: u64) -> bool {
        self.under_way.front().is_some_and(|oldest| now_ns.saturating_sub(oldest.since_ns) >= self.after_ns)
    }

    /// The stall there is now.
    pub(crate) fn look(&mut self, now_ns: u64) -> Option<Delay> {
        if !self.is_oldest_late(now_ns) {
            return None;
        }
        let oldest = self.under_way.front()?;
        let (stage, since_ns) = (oldest.stage, oldest.since_ns);
        let bytes = self.under_way.iter().map(|one| one.bytes).sum();
        let waited_ns = now_ns.saturating_sub(since_ns);
        let delay = Delay { stage, waited_ns, operations: self.under_way.len(), bytes };
        if self.present.is_none() {
            self.stalls += 1;
            let is_told = self.news.len() < NEWS_MAX;
            self.present = Some(Present { stage, since_ns, is_told });
            self.news.extend(is_told.then_some(News::Begun(delay)));
        }
        Some(delay)
    }

    /// When there is something to tell, unless something ends before; `None` where there will not be.
    pub(crate) fn due_ns(&self) -> Option<u64> {
        if !self.news.is_empty() {
            return Some(0);
        }
        let oldest = self.under_way.front().filter(|_| self.present.is_none())?;
        Some(oldest.since_ns.saturating_add(self.after_ns))
    }

    /// What is to be told, once.
    pub(crate) fn take_news(&mut self) -> VecDeque<News> {
        std::mem::take(&mut self.news)
    }

    /// Stalls so far, the present one included.
    pub(crate) fn stalls(&self) -> u64 {
        self.stalls
    }

    /// Operations that ever began.
    pub(crate) fn begun(&self) -> u64 {
        self.begun
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch() -> StallWatch {
        StallWatch::new(100)
    }

    fn delay(stage: Stage, waited_ns: u64, operations: usize, bytes: u64) -> Delay {
        Delay { stage, waited_ns, operations, bytes }
    }

    #[test]
    fn a_stall_is_seen_from_the_threshold_on_until_the_operation_ends() {
        let mut watch = watch();
        watch.begin(1, Stage::Write, 4096, 10);
        assert_eq!((watch.look(109), watch.due_ns()), (None, Some(110)));
        assert_eq!(watch.look(110), Some(delay(Stage::Write, 100, 1, 4096)));
        assert_eq!((watch.look(900), watch.due_ns()), (Some(delay(Stage::Write, 890, 1, 4096)), Some(0)));
        assert_eq!(watch.take_news(), [News::Begun(delay(Stage::Write, 100, 1, 4096))]);
        assert_eq!((watch.look(950).is_some(), watch.due_ns()), (true, None), "it is told of once");
        assert!(watch.end(1, Stage::Write, 1000));
        assert_eq!((watch.look(5000), watch.stalls()), (None, 1));
        assert_eq!(watch.take_news(), [News::Over { stage: Stage::Write, lasted_ns: 990 }]);
        assert!(watch.take_news().is_empty() && watch.due_ns().is_none());
    }

    #[test]
    fn one_that_nobody_looked_at_is_told_of_by_its_end() {
        let mut watch = watch();
        watch.begin(1, Stage::Sync, 0, 0);
        assert!(watch.end(1, Stage::Sync, 250));
        let over = News::Over { stage: Stage::Sync, lasted_ns: 250 };
        assert_eq!(watch.take_news(), [News::Begun(delay(Stage::Sync, 250, 1, 0)), over]);
        assert_eq!(watch.stalls(), 1);
    }

    #[test]
    fn quick_operations_are_no_news_however_many_there_are() {
        let mut watch = watch();
        for now in (0..10_000).step_by(50) {
            watch.begin(now, Stage::Write, 1, now);
            assert!(!watch.end(now, Stage::Write, now + 99));
        }
        assert_eq!((watch.stalls(), watch.look(u64::MAX), watch.due_ns()), (0, None, None));
    }

    #[test]
    fn a_stall_goes_on_as_long_as_any_operation_is_late_and_counts_what_waits() {
        let mut watch = watch();
        watch.begin(1, Stage::Write, 10, 0);
        watch.begin(2, Stage::Write, 20, 60);
        watch.begin(9, Stage::Sync, 0, 90);
        assert_eq!(watch.look(120), Some(delay(Stage::Write, 120, 3, 30)));
        watch.end(1, Stage::Write, 165);
        assert_eq!(watch.look(170), Some(delay(Stage::Write, 110, 2, 20)), "the second is late by now");
        assert!(watch.end(2, Stage::Write, 180));
        assert_eq!(watch.take_news()[1], News::Over { stage: Stage::Write, lasted_ns: 180 });
        assert_eq!((watch.look(185), watch.due_ns()), (None, Some(190)), "the third is not, yet");
        assert_eq!(watch.look(190).map(|found| found.stage), Some(Stage::Sync));
        assert_eq!(watch.stalls(), 2);
    }

    #[test]
    fn operations_may_end_in_any_order_and_one_that_never_began_ends_nothing() {
        let mut watch = watch();
        watch.begin(7, Stage::Sync, 0, 0);
        watch.begin(7, Stage::Sync, 0, 50);
        assert!(!watch.end(7, Stage::Write, 60) && !watch.end(8, Stage::Sync, 60));
        assert!(!watch.end(7, Stage::Sync, 70));
        assert_eq!(watch.due_ns(), Some(150));
        watch.clear(100);
        assert_eq!((watch.look(1000), watch.stalls()), (None, 0));
    }

    #[test]
    fn news_that_nobody_takes_are_bounded_and_those_told_come_in_pairs() {
        let mut watch = watch();
        for now in (0..100_000).step_by(1000) {
            watch.begin(now, Stage::Write, 1, now);
            watch.end(now, Stage::Write, now + 500);
        }
        let news = watch.take_news();
        assert!(news.len() <= NEWS_MAX + 1 && news.len().is_multiple_of(2), "{}", news.len());
        assert_eq!(watch.stalls(), 100);
        watch.begin(1, Stage::Write, 1, 200_000);
        assert!(watch.end(1, Stage::Write, 200_500) && watch.take_news().len() == 2, "and it goes on");
    }

    #[test]
    fn a_threshold_that_never_comes_is_never_due() {
        let mut watch = StallWatch::new(u64::MAX);
        watch.begin(1, Stage::Write, 1, 5);
        assert_eq!((watch.due_ns(), watch.look(u64::MAX - 1)), (Some(u64::MAX), None));
    }
}
