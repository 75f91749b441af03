//! From a long history that breaks a promise to a short one that breaks the same.
//!
//! Delta debugging (A. Zeller, R. Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002) over the lives
//! and then the steps of a history: parts are left out, large ones first, as long as what is left still fails. Whether
//! it does is seen by living through it again and judging only the place where it failed, more closely than usual: with
//! other steps before it the moment that breaks the promise is another one.
//!
//! Bounded by a number of trials, not by time: the same seed always gives the same short history.

use std::collections::BTreeSet;

use super::explore::Summary;
use super::history::{At, Broken, END, History, Plan};
use super::judge::Promise;

/// How many shortened histories are tried at most.
const TRIALS_MAX: usize = 600;

/// How many ways of letting the power fail are tried on each.
const VARIANTS: u64 = 2;

/// How much more closely the place is judged.
const ROUNDS: u64 = 12;

/// The shortest history found that breaks the same promise as this one of the seed; itself where there is none.
pub(super) fn shrink(seed: u64, broken: Box<Broken>) -> Box<Broken> {
    if broken.finding.kind == Promise::Threads {
        return broken;
    }
    let mut search =
        Search { seed, kind: broken.finding.kind, focus: broken.at, trials: 0, plan: Plan::default(), best: broken };
    let lives: BTreeSet<usize> =
        search.best.visited.iter().map(|at| at.life).filter(|&it| it != search.focus.life).collect();
    minimise(lives.into_iter().collect(), |without| search.try_without_lives(without));
    let steps = search.best.visited.iter().copied().filter(|at| at.step != 0 && at.step != END && *at != search.focus);
    let steps: Vec<At> = steps.collect();
    minimise(steps, |without| search.try_without_steps(without));
    search.best
}

/// What is known while a history is shortened.
struct Search {
    seed: u64,
    kind: Promise,
    focus: At,
    trials: usize,
    /// The plan of the best.
    plan: Plan,
    best: Box<Broken>,
}

impl Search {
    fn try_without_lives(&mut self, without: &[usize]) -> bool {
        let mut plan = self.plan.clone();
        plan.without_lives.extend(without);
        self.still_breaks(plan)
    }

    fn try_without_steps(&mut self, without: &[At]) -> bool {
        let mut plan = self.plan.clone();
        plan.without_steps.extend(without);
        self.still_breaks(plan)
    }

    fn still_breaks(&mut self, plan: Plan) -> bool {
        (0..VARIANTS).any(|variant| self.breaks(Plan { focus: Some((self.focus, ROUNDS)), variant, ..plan.clone() }))
    }

    fn breaks(&mut self, plan: Plan) -> bool {
        self.trials += 1;
        if self.trials > TRIALS_MAX {
            return false;
        }
        match History::run(self.seed, &plan, &mut Summary::default(), None) {
            Err(broken) if broken.finding.kind == self.kind && broken.at == self.focus => {
                (self.plan, self.best) = (plan, broken);
                true
            }
            _ => false,
        }
    }
}

/// Leaves out as many of the items as `leave_out`, which is told some and says whether it did, allows: halves first,
/// then smaller parts, and single ones until none more can go. Later ones go first: what they build on then goes too.
fn minimise<T: Copy>(mut items: Vec<T>, mut leave_out: impl FnMut(&[T]) -> bool) {
    let mut part = items.len();
    while part > 0 && !items.is_empty() {
        let before = items.len();
        let mut end = items.len();
        while end > 0 {
            let start = end.saturating_sub(part);
            if leave_out(&items[start..end]) {
                items.drain(start..end);
            }
            end = start;
        }
        // Once single ones are tried, go on as long as that helps.
        let helped = items.len() < before;
        part = if part == 1 && helped { 1 } else { part / 2 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_stays_and_all_else_goes() {
        for needed in [vec![], vec![0], vec![99], vec![3, 50, 51, 98]] {
            let mut left: BTreeSet<usize> = (0..100).collect();
            let mut trials = 0;
            minimise((0..100).collect(), |without| {
                trials += 1;
                let may_go = without.iter().all(|item| !needed.contains(item));
                if may_go {
                    without.iter().for_each(|item| assert!(left.remove(item)));
                }
                may_go
            });
            assert_eq!(left.into_iter().collect::<Vec<_>>(), needed);
            assert!(trials < 120, "{trials} trials");
        }
    }
}
