//! The rounds: every engine gets every load once in each, in an order that rotates, so that none always comes first,
//! after the same neighbour, or when the disk is at its best. The floor is measured before and after the engines of
//! each load, so that it brackets them.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::args::Args;
use crate::engine::Contestant;
use crate::floor::{Floor, Writes};
use crate::interrupt;
use crate::load::Load;
use crate::place::Place;
use crate::slice::{self, Reached};

/// What one load gave in one round.
#[derive(Debug)]
pub(crate) struct Turn {
    /// The floor around it.
    pub(crate) floor: Writes,
    /// Of each engine, in the order of the contestants: what it reached, or why it did not.
    pub(crate) outcomes: Vec<Result<Reached, String>>,
}

/// All turns.
#[derive(Debug)]
pub(crate) struct Results {
    /// Of each load, its turns in the order of the rounds.
    pub(crate) turns: Vec<Vec<Turn>>,
    /// Whether the floor's writes went around the page cache.
    pub(crate) floor_is_direct: bool,
}

/// Runs all rounds.
pub(crate) fn run(args: &Args, loads: &[Load], contestants: &[&Contestant], place: &Place) -> Result<Results> {
    let mut floor = Floor::prepare(&place.make_dir("floor")?)?;
    let mut results = Results { turns: Vec::new(), floor_is_direct: floor.is_direct() };
    results.turns.resize_with(loads.len(), Vec::new);
    for round in 0..args.rounds as usize {
        for (number, (load, turns)) in loads.iter().zip(&mut results.turns).enumerate() {
            eprintln!("round {} of {}: {load}", round + 1, args.rounds);
            let order = rotated(contestants.len(), round + number);
            turns.push(turn(contestants, &order, place, load, args.seconds, &mut floor)?);
        }
    }
    Ok(results)
}

/// The numbers below `count`, starting with another one each round.
fn rotated(count: usize, round: usize) -> Vec<usize> {
    (0..count).map(|place| (place + round) % count).collect()
}

fn turn(
    contestants: &[&Contestant],
    order: &[usize],
    place: &Place,
    load: &Load,
    time: Duration,
    floor: &mut Floor,
) -> Result<Turn> {
    let mut writes = Writes::default();
    place.settle()?;
    floor.measure(time / 4, &mut writes)?;
    let mut outcomes = vec![Err("it did not run".to_owned()); contestants.len()];
    for &number in order {
        if let (Some(contestant), Some(outcome)) = (contestants.get(number), outcomes.get_mut(number)) {
            *outcome = run_alone(contestant, place, load, time)?;
        }
    }
    floor.measure(time / 4, &mut writes)?;
    Ok(Turn { floor: writes, outcomes })
}

/// One engine in a directory of its own. Its failure ends nothing but its slice.
fn run_alone(contestant: &Contestant, place: &Place, load: &Load, time: Duration) -> Result<Result<Reached, String>> {
    interrupt::check()?;
    let dir = place.make_dir(contestant.name)?;
    let outcome = slice::run(contestant, place, &dir, load, time).map_err(|error| format!("{error:#}"));
    match &outcome {
        Ok(reached) => eprintln!("    {:<16} {:>12.0} acks/s", contestant.name, reached.acks_per_s),
        Err(error) => eprintln!("    {:<16} {error}", contestant.name),
    }
    fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    place.settle()?;
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_has_every_place_once() {
        assert_eq!([0, 1, 2].map(|round| rotated(3, round)), [vec![0, 1, 2], vec![1, 2, 0], vec![2, 0, 1]]);
        assert_eq!(rotated(3, 4), [1, 2, 0]);
    }
}
