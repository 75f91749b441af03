//! Whether a frame should wait a moment for the callers that were acknowledged just now.
//!
//! Blocking producers come back: each that is woken by an ack soon appends again. A frame that leaves with the first
//! of them makes all the others wait for a whole write. So while nothing is in flight, a frame is held back until
//! about as many calls have joined as may be expected, but never longer than a quarter of the time that a write takes
//! here: the wait can then not cost more than it can win.
//!
//! What may be expected is learned: the share of acknowledged calls that came back in time, as it was lately. Where
//! callers do not come back (an open loop, one producer in turn with others) the share falls and nothing is held.
//!
//! Pure: time comes in as nanoseconds of any clock that does not go back.

/// The longest hold is the time of a write divided by this.
const HOLD_PART: u64 = 4;

/// And never more than this, however slow the device is: there, what is held back costs less than it would to be late for
/// whatever else the writer is wanted for.
const HOLD_MAX_NS: u64 = 500_000;

/// A write that took much longer than usual says little about the next: it counts as so many times the usual.
const OUTLIER: u64 = 4;

/// With more calls than this on their way back nothing is held: they keep every CPU busy for longer than a hold may
/// last, and the writer had better be at work meanwhile.
const RELEASED_MAX: u64 = 32;

/// Shares are counted in parts of this.
const WHOLE: u64 = 256;

/// What a new observation counts for: one part in so many.
const SMOOTHING: u64 = 8;

/// See the module.
#[derive(Debug)]
pub(crate) struct Gather {
    /// Smoothed time of a write, in nanoseconds; 0 before the first.
    write_ns: u64,
    /// Calls acknowledged since the last frame left: those that may come back.
    released: u64,
    released_at_ns: u64,
    /// Which part of the released calls came back in time, in parts of [`WHOLE`].
    share: u64,
}

impl Gather {
    pub(crate) fn new() -> Gather {
        Gather { write_ns: 0, released: 0, released_at_ns: 0, share: WHOLE }
    }

    /// A write took this long.
    pub(crate) fn on_written(&mut self, write_ns: u64) {
        self.write_ns = match self.write_ns {
            0 => write_ns,
            known => smooth(known, write_ns.min(known.saturating_mul(OUTLIER))),
        };
    }

    /// So many calls were acknowledged.
    pub(crate) fn on_acknowledged(&mut self, now_ns: u64, calls: u64) {
        self.released += calls;
        if calls > 0 {
            self.released_at_ns = now_ns;
        }
    }

    /// A frame with so many calls leaves.
    pub(crate) fn on_submitted(&mut self, calls: u64) {
        if self.released > 1 {
            let returned = (calls * WHOLE / self.released).min(WHOLE);
            self.share = smooth(self.share, returned);
        }
        self.released = 0;
    }

    /// The number of calls that makes a frame worth sending while nothing is in flight.
    pub(crate) fn worth_calls(&self) -> u64 {
        // A quarter more than lately, so that the share can grow again.
        let hoped = self.released * (self.share + self.share / 4 + 1) / WHOLE;
        hoped.min(self.released).max(1)
    }

    /// Until when a pending frame of `calls` calls should be held; `None` if it should go now.
    pub(crate) fn holds(&self, now_ns: u64, calls: u64) -> Option<u64> {
        let until = self.released_at_ns + (self.write_ns / HOLD_PART).min(HOLD_MAX_NS);
        (self.released <= RELEASED_MAX && calls < self.worth_calls() && now_ns < until).then_some(until)
    }

    /// Smoothed time of a write, in nanoseconds.
    pub(crate) fn write_ns(&self) -> u64 {
        self.write_ns
    }
}

fn smooth(known: u64, seen: u64) -> u64 {
    (known * (SMOOTHING - 1) + seen + SMOOTHING / 2) / SMOOTHING
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One turn: `released` calls are acknowledged, of which `returned` come back at once; how long the frame is held.
    fn turn(gather: &mut Gather, now_ns: &mut u64, released: u64, returned: u64) -> u64 {
        gather.on_written(100_000);
        gather.on_acknowledged(*now_ns, released);
        let held = gather.holds(*now_ns, returned).map_or(0, |until| until - *now_ns);
        *now_ns += held + 100_000;
        gather.on_submitted(returned);
        held
    }

    #[test]
    fn all_sixteen_are_waited_for_and_none_once_they_are_there() {
        let (mut gather, mut now_ns) = (Gather::new(), 5);
        for _ in 0..20 {
            assert_eq!(turn(&mut gather, &mut now_ns, 16, 16), 0);
        }
        gather.on_acknowledged(now_ns, 16);
        assert_eq!(gather.holds(now_ns, 15), Some(now_ns + 25_000));
        assert_eq!(gather.holds(now_ns, 16), None);
        assert_eq!(gather.holds(now_ns + 25_000, 3), None, "not longer than a quarter of a write");
    }

    #[test]
    fn a_single_producer_never_waits() {
        let (mut gather, mut now_ns) = (Gather::new(), 0);
        for _ in 0..50 {
            assert_eq!(turn(&mut gather, &mut now_ns, 1, 1), 0);
        }
    }

    #[test]
    fn callers_that_do_not_come_back_are_soon_not_waited_for_and_again_once_they_do() {
        let (mut gather, mut now_ns) = (Gather::new(), 0);
        let held: Vec<u64> = (0..60).map(|_| turn(&mut gather, &mut now_ns, 16, 1)).collect();
        assert_eq!((held[0], held[59]), (25_000, 0), "{held:?}");
        for _ in 0..60 {
            turn(&mut gather, &mut now_ns, 16, 16);
        }
        gather.on_acknowledged(now_ns, 16);
        assert_eq!(gather.worth_calls(), 16, "{gather:?}");
    }

    #[test]
    fn a_stall_neither_makes_holds_long_nor_forgets_what_is_usual() {
        let (mut gather, mut now_ns) = (Gather::new(), 0);
        gather.on_written(30_000_000_000);
        gather.on_acknowledged(now_ns, 16);
        assert_eq!(gather.holds(now_ns, 1), Some(HOLD_MAX_NS), "even after a first write that took half a minute");
        let mut gather = Gather::new();
        assert!((0..20).all(|_| turn(&mut gather, &mut now_ns, 16, 16) == 0));
        gather.on_written(30_000_000_000);
        assert!(gather.write_ns() < 150_000, "{gather:?}");
    }

    #[test]
    fn before_anything_was_written_nothing_is_held() {
        let mut gather = Gather::new();
        assert_eq!(gather.holds(0, 1), None);
        gather.on_acknowledged(7, 100);
        assert_eq!(gather.holds(7, 1), None);
    }

    proptest! {
        #[test]
        fn no_hold_is_longer_than_a_quarter_of_the_longest_write(
            writes in proptest::collection::vec((1_000..10_000_000u64, 0..300u64, 0..300u64), 1..40),
        ) {
            let (mut gather, mut now_ns, mut longest) = (Gather::new(), 0, 0);
            for (write_ns, acknowledged, calls) in writes {
                gather.on_written(write_ns);
                longest = longest.max(write_ns);
                gather.on_acknowledged(now_ns, acknowledged);
                let until = gather.holds(now_ns, calls).unwrap_or(now_ns);
                prop_assert!(until - now_ns <= longest / HOLD_PART);
                prop_assert!(gather.holds(until, calls).is_none());
                now_ns = until + write_ns;
                gather.on_submitted(calls);
            }
        }
    }
}
