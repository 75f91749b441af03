//! What is done to the cluster, and when: drawn from a seed before anything starts.
//!
//! Nodes are named by the part they play at that moment (the leader, the n-th follower): which one that is, the operating
//! system's timing has a say in. Faults come from a shuffled deck that has each at least once; a run plays at least one
//! whole deck, so that a short one meets everything too.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde::Serialize;

use super::proxy::Weather;

/// A kind of fault, as it is asked for on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `kill -9` of the leader, of a follower, of all nodes at once, or a stop on request; then a restart
    Kill,
    /// A leader or follower that stops (SIGSTOP) and goes on later
    Pause,
    /// Links cut, held back, or deaf to answers; one way, around a node, between two halves
    Cut,
    /// Slow links
    Slow,
    /// A full disk under one node
    Full,
    /// A node that loses its directory and comes back as a new member
    Wipe,
    /// A node that leaves the voters and comes back with what it has
    Member,
    /// Snapshots made on demand, everywhere
    Snapshot,
}

/// A node, by the part it plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whom {
    Leader,
    /// The n-th of those that do not lead, counted around.
    Follower(usize),
    All,
}

impl Whom {
    /// The places that are meant where so many nodes follow this leader.
    pub(crate) fn places(self, nodes: usize, leader: usize) -> Vec<usize> {
        match self {
            Whom::Leader => vec![leader],
            Whom::Follower(number) => {
                let others: Vec<usize> = (0..nodes).filter(|at| *at != leader).collect();
                vec![others[number % others.len()]]
            }
            Whom::All => (0..nodes).collect(),
        }
    }
}

/// Which of a node's links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Links {
    /// Those on which it asks.
    Out,
    /// Those on which it is asked.
    In,
    Both,
}

/// Something that is done to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Kill(Whom),
    /// Asked to stop, under load.
    Stop(Whom),
    Pause(Whom),
    /// A weather on the links of one node.
    Around(Whom, Links, Weather),
    /// A weather between the smaller part (with the leader or without) and the larger one.
    Split {
        leader_is_alone: bool,
        weather: Weather,
    },
    /// The disk of one node; whether it is started once more before there is room again.
    Full {
        restarts_full: bool,
    },
    /// And whether it is killed once more so long after it began to learn.
    Wipe {
        whom: Whom,
        dies_after: Option<Duration>,
    },
    Member(Whom),
    Snapshot,
}

impl Fault {
    pub(crate) fn kind(self) -> Kind {
        match self {
            Fault::Kill(_) | Fault::Stop(_) => Kind::Kill,
            Fault::Pause(_) => Kind::Pause,
            Fault::Around(_, _, Weather::Slow(_)) => Kind::Slow,
            Fault::Around(..) | Fault::Split { .. } => Kind::Cut,
            Fault::Full { .. } => Kind::Full,
            Fault::Wipe { .. } => Kind::Wipe,
            Fault::Member(_) => Kind::Member,
            Fault::Snapshot => Kind::Snapshot,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Kill(whom) => write!(f, "kill {whom}"),
            Fault::Stop(whom) => write!(f, "ask {whom} to stop"),
            Fault::Pause(whom) => write!(f, "pause {whom}"),
            Fault::Around(whom, links, weather) => write!(f, "{weather} {links} {whom}"),
            Fault::Split { leader_is_alone: true, weather } => {
                write!(f, "{weather} between the leader's minority and the rest")
            }
            Fault::Split { leader_is_alone: false, weather } => {
                write!(f, "{weather} between a minority and the leader's rest")
            }
            Fault::Full { restarts_full: true } => f.write_str("fill a disk, and restart its node on it"),
            Fault::Full { restarts_full: false } => f.write_str("fill a disk"),
            Fault::Wipe { whom, dies_after: None } => write!(f, "wipe {whom}, back as a new member"),
            Fault::Wipe { whom, dies_after: Some(after) } => {
                write!(f, "wipe {whom}, back as a new member that dies once more after {} ms", after.as_millis())
            }
            Fault::Member(whom) => write!(f, "remove {whom} from the voters, and take it back"),
            Fault::Snapshot => f.write_str("snapshots everywhere"),
        }
    }
}

impl fmt::Display for Whom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Whom::Leader => f.write_str("the leader"),
            Whom::Follower(number) => write!(f, "follower {number}"),
            Whom::All => f.write_str("all nodes"),
        }
    }
}

impl fmt::Display for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Links::Out => "from",
            Links::In => "to",
            Links::Both => "around",
        })
    }
}

impl fmt::Display for Weather {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Weather::Fair => f.write_str("fair links"),
            Weather::Slow(delay) => write!(f, "links slow by {} ms", delay.as_millis()),
            Weather::Held => f.write_str("links held back"),
            Weather::Deaf => f.write_str("answers lost on links"),
            Weather::Cut => f.write_str("links cut"),
        }
    }
}

/// A step of the plan: a fault, perhaps a second one while it lasts, and the time after which all is made well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) fault: Fault,
    pub(crate) then: Option<Fault>,
    pub(crate) hold: Duration,
    /// How long the cluster is left alone afterwards.
    pub(crate) quiet: Duration,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.fault)?;
        if let Some(then) = self.then {
            write!(f, ", then {then}")?;
        }
        write!(f, " for {} ms, quiet {} ms", self.hold.as_millis(), self.quiet.as_millis())
    }
}

/// What is done in a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    /// So many of the first steps are a whole deck.
    pub(crate) deck: usize,
}

/// What a step takes besides what it says: an election, restarts.
const OVERHEAD_MS: u64 = 700;

/// A leader that is away for so long shall have a successor.
const SUCCESSION_MS: u64 = 1500;

impl Step {
    /// Whether it shall last until another node leads, however long that takes.
    pub(crate) fn lasts_for_a_successor(&self) -> bool {
        let is_long = self.hold >= Duration::from_millis(SUCCESSION_MS);
        is_long && self.fault == Fault::Kill(Whom::Leader) && self.then.is_none()
    }

    /// The weather that shall be met while it lasts: on links with traffic, however slow the nodes are.
    pub(crate) fn shall_show(&self) -> Option<Weather> {
        match self.fault {
            Fault::Around(_, Links::Both, weather) | Fault::Split { weather, .. } if self.then.is_none() => {
                Some(weather)
            }
            _ => None,
        }
    }
}

impl Plan {
    /// For a run of about this long.
    pub(crate) fn draw(seed: u64, time: Duration, kinds: &BTreeSet<Kind>) -> Plan {
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut steps, mut deck, mut planned) = (Vec::new(), 0, Duration::ZERO);
        while deck == 0 || planned < time {
            let cards = cards(&mut rng, kinds, deck == 0);
            if cards.is_empty() {
                break;
            }
            for fault in cards {
                let step = step(&mut rng, fault, deck == 0, kinds);
                planned += step.hold + step.quiet + Duration::from_millis(OVERHEAD_MS);
                steps.push(step);
            }
            deck = if deck == 0 { steps.len() } else { deck };
        }
        Plan { steps, deck }
    }

    /// How many nodes lose their directories in it.
    pub(crate) fn wipes(&self) -> usize {
        self.steps.iter().filter(|step| step.fault.kind() == Kind::Wipe).count()
    }
}

/// A deck: each fault of the wanted kinds, shuffled.
fn cards(rng: &mut StdRng, kinds: &BTreeSet<Kind>, is_first: bool) -> Vec<Fault> {
    let follower = |rng: &mut StdRng| Whom::Follower(rng.random_range(0..4));
    let someone = |rng: &mut StdRng| if rng.random_bool(0.5) { Whom::Leader } else { follower(rng) };
    let [first, second, third] = weathers(rng);
    // Each of the three where there is traffic for certain: the leader's links, the leader's link to a follower, the
    // links between it and the rest.
    let mut cards = vec![
        Fault::Kill(Whom::Leader),
        Fault::Kill(follower(rng)),
        Fault::Kill(Whom::All),
        Fault::Stop(someone(rng)),
        Fault::Pause(Whom::Leader),
        Fault::Pause(follower(rng)),
        Fault::Around(Whom::Leader, Links::Both, first),
        Fault::Around(follower(rng), Links::Both, second),
        Fault::Around(someone(rng), Links::Out, harm(rng)),
        Fault::Around(someone(rng), Links::In, harm(rng)),
        Fault::Split { leader_is_alone: rng.random_bool(0.6), weather: third },
        Fault::Around(someone(rng), Links::Both, Weather::Slow(Duration::from_millis(rng.random_range(5..80)))),
        Fault::Full { restarts_full: rng.random_bool(0.5) },
        Fault::Wipe {
            whom: if is_first { follower(rng) } else { someone(rng) },
            dies_after: rng.random_bool(0.6).then(|| Duration::from_millis(rng.random_range(0..120))),
        },
        Fault::Member(if is_first { follower(rng) } else { someone(rng) }),
        Fault::Snapshot,
    ];
    cards.retain(|fault| kinds.contains(&fault.kind()));
    cards.shuffle(rng);
    cards
}

const HARMS: [Weather; 3] = [Weather::Cut, Weather::Held, Weather::Deaf];

/// All that links can do, shuffled.
fn weathers(rng: &mut StdRng) -> [Weather; 3] {
    let mut weathers = HARMS;
    weathers.shuffle(rng);
    weathers
}

fn harm(rng: &mut StdRng) -> Weather {
    HARMS[rng.random_range(0..HARMS.len())]
}

fn step(rng: &mut StdRng, fault: Fault, is_first: bool, kinds: &BTreeSet<Kind>) -> Step {
    let hold_ms = match fault.kind() {
        // Long enough for another one to be elected, or so short that it comes back as the leader that it was.
        _ if fault == Fault::Kill(Whom::Leader) && (is_first || rng.random_bool(0.5)) => {
            rng.random_range(SUCCESSION_MS..2 * SUCCESSION_MS)
        }
        Kind::Kill => rng.random_range(50..SUCCESSION_MS),
        Kind::Pause | Kind::Cut => rng.random_range(500..2500),
        Kind::Slow => rng.random_range(500..1500),
        Kind::Full | Kind::Wipe | Kind::Member => rng.random_range(300..1000),
        Kind::Snapshot => 50,
    };
    let quiet_ms = if rng.random_bool(0.3) { 0 } else { rng.random_range(50..1000) };
    // Harm on top of harm, where the step waits for nobody's consent meanwhile.
    let takes_more = matches!(fault.kind(), Kind::Kill | Kind::Pause | Kind::Cut | Kind::Slow | Kind::Full);
    let then = (takes_more && !is_first && rng.random_bool(0.4))
        .then(|| second(rng))
        .filter(|then| kinds.contains(&then.kind()));
    Step { fault, then, hold: Duration::from_millis(hold_ms), quiet: Duration::from_millis(quiet_ms) }
}

fn second(rng: &mut StdRng) -> Fault {
    match rng.random_range(0..6) {
        0 => Fault::Kill(Whom::Leader),
        1 => Fault::Kill(Whom::Follower(rng.random_range(0..4))),
        2 => Fault::Kill(Whom::All),
        3 => Fault::Pause(Whom::Leader),
        4 => Fault::Around(Whom::Leader, Links::Both, harm(rng)),
        _ => Fault::Snapshot,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> BTreeSet<Kind> {
        Kind::value_variants().iter().copied().collect()
    }

    #[test]
    fn a_leader_is_never_taken_for_a_follower_nor_a_follower_for_the_leader() {
        for (nodes, leader) in (3..=7).flat_map(|nodes| (0..nodes).map(move |leader| (nodes, leader))) {
            assert_eq!(Whom::Leader.places(nodes, leader), [leader]);
            assert_eq!(Whom::All.places(nodes, leader).len(), nodes);
            let followers = (0..2 * nodes).flat_map(|number| Whom::Follower(number).places(nodes, leader));
            let others: BTreeSet<usize> = (0..nodes).filter(|at| *at != leader).collect();
            assert_eq!(followers.collect::<BTreeSet<_>>(), others);
        }
    }

    #[test]
    fn one_seed_gives_one_plan_and_another_gives_another() {
        let time = Duration::from_secs(60);
        assert_eq!(Plan::draw(1, time, &all()), Plan::draw(1, time, &all()));
        assert_ne!(Plan::draw(1, time, &all()), Plan::draw(2, time, &all()));
    }

    #[test]
    fn even_the_shortest_run_plans_each_kind() {
        for seed in 0..50 {
            let plan = Plan::draw(seed, Duration::ZERO, &all());
            let kinds: BTreeSet<Kind> = plan.steps[..plan.deck].iter().map(|step| step.fault.kind()).collect();
            assert_eq!(kinds, all());
            assert_eq!(plan.deck, plan.steps.len());
        }
    }

    #[test]
    fn no_seed_leaves_a_weather_out_of_the_first_deck() {
        for seed in 0..2000 {
            let plan = Plan::draw(seed, Duration::ZERO, &all());
            let shown: Vec<Weather> = plan.steps.iter().filter_map(Step::shall_show).collect();
            assert!(HARMS.iter().all(|weather| shown.contains(weather)), "seed {seed}: {shown:?}");
            assert!(shown.iter().any(|weather| matches!(weather, Weather::Slow(_))), "seed {seed}: {shown:?}");
        }
    }

    #[test]
    fn only_the_kinds_that_were_asked_for_are_planned() {
        let asked = BTreeSet::from([Kind::Kill, Kind::Cut]);
        let plan = Plan::draw(3, Duration::from_secs(300), &asked);
        let faults = plan.steps.iter().flat_map(|step| [Some(step.fault), step.then]).flatten();
        assert_eq!(faults.map(Fault::kind).collect::<BTreeSet<_>>(), asked);
        assert_eq!(Plan::draw(3, Duration::from_secs(3), &BTreeSet::new()).steps, []);
    }

    #[test]
    fn a_longer_run_has_a_longer_plan_with_faults_on_top_of_faults() {
        let plan = Plan::draw(4, Duration::from_secs(600), &all());
        assert!(plan.steps.len() > 4 * plan.deck && plan.wipes() > 4);
        assert!(plan.steps.iter().any(|step| step.then.is_some()));
    }
}
