//! What a run met, counted: on the screen and as JSON.
//!
//! A run that did not meet what it set out to proves nothing, and is not called good.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use super::schedule::Kind;

/// The environment names the file that collects what was skipped, a line for each.
const SKIPS: &str = "RINGWAL_SKIPS";

/// What the clients count while they run.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) ok: AtomicU64,
    pub(crate) not_applied: AtomicU64,
    pub(crate) unknown: AtomicU64,
    /// Answers that the disk is full.
    pub(crate) full: AtomicU64,
    /// Reads of single keys that were answered, and scans.
    pub(crate) reads: AtomicU64,
    pub(crate) scans: AtomicU64,
}

/// Everything that was met.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) nodes: usize,
    pub(crate) clients: usize,
    pub(crate) seconds: f64,
    pub(crate) outcome: String,
    pub(crate) steps_planned: usize,
    pub(crate) steps_done: usize,
    /// Faults brought about, by kind.
    pub(crate) faults: BTreeMap<Kind, u64>,
    /// Kinds that this machine does not let us bring about.
    pub(crate) skipped: BTreeSet<Kind>,
    pub(crate) kills_of_leaders: u64,
    pub(crate) kills_of_followers: u64,
    pub(crate) kills_of_all: u64,
    pub(crate) stops: u64,
    pub(crate) restarts: u64,
    pub(crate) pauses_of_leaders: u64,
    pub(crate) pauses_of_followers: u64,
    pub(crate) leader_changes: u64,
    pub(crate) connections_cut: u64,
    pub(crate) pieces_held: u64,
    pub(crate) pieces_swallowed: u64,
    pub(crate) pieces_slowed: u64,
    /// Nodes that stopped because their disk was full, and requests that were answered so.
    pub(crate) full_disk_refusals: u64,
    pub(crate) snapshots_made: u64,
    /// As far as it was seen.
    pub(crate) snapshots_transferred: u64,
    /// New members that had no other way to catch up.
    pub(crate) members_sent_a_snapshot: u64,
    pub(crate) members_replaced: u64,
    pub(crate) membership_changes: u64,
    pub(crate) longest_recovery_ms: u64,
    pub(crate) operations_ok: u64,
    pub(crate) operations_not_applied: u64,
    pub(crate) operations_unknown: u64,
    pub(crate) reads: u64,
    pub(crate) scans: u64,
    pub(crate) keys_checked: u64,
    pub(crate) operations_checked: u64,
    /// Of those: operations during which another client was at the same key, and one of the two changed it.
    pub(crate) operations_contended: u64,
    /// Scans of which all values were compared with each other.
    pub(crate) scans_checked: u64,
    /// Keys of which the checker does not know whether they are linearizable.
    pub(crate) keys_undecided: u64,
    pub(crate) keys_read_back: u64,
    pub(crate) longest_check_ms: u64,
    /// Keys compared on every node in the end.
    pub(crate) keys_compared: u64,
}

impl Report {
    /// Notes that a fault was brought about.
    pub(crate) fn met(&mut self, kind: Kind) {
        *self.faults.entry(kind).or_default() += 1;
    }

    /// Takes over what the clients counted.
    pub(crate) fn add(&mut self, counts: &Counts) {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        self.operations_ok = of(&counts.ok);
        self.operations_not_applied = of(&counts.not_applied);
        self.operations_unknown = of(&counts.unknown);
        self.full_disk_refusals += of(&counts.full);
        self.reads = of(&counts.reads);
        self.scans = of(&counts.scans);
    }

    /// What the run set out to meet and did not.
    pub(crate) fn missing(&self, kinds: &BTreeSet<Kind>) -> Vec<&'static str> {
        let wanted = |kind| kinds.contains(&kind) && !self.skipped.contains(&kind);
        let (kill, pause) = (wanted(Kind::Kill), wanted(Kind::Pause));
        let needs = [
            ("operations that were acknowledged", true, self.operations_ok),
            ("reads that were answered", true, self.reads),
            ("scans that were checked", true, self.scans_checked),
            ("keys that were checked", true, self.keys_checked),
            ("operations of two clients on one key at the same time", self.clients > 1, self.operations_contended),
            ("keys that were read back", true, self.keys_read_back),
            ("keys that were compared on all nodes", true, self.keys_compared),
            ("kills of leaders", kill, self.kills_of_leaders),
            ("kills of followers", kill, self.kills_of_followers),
            ("kills of all nodes at once", kill, self.kills_of_all),
            ("stops on request", kill, self.stops),
            ("changes of the leader", kill, self.leader_changes),
            ("pauses of leaders", pause, self.pauses_of_leaders),
            ("pauses of followers", pause, self.pauses_of_followers),
            ("connections that were cut", wanted(Kind::Cut), self.connections_cut),
            ("pieces that were held back", wanted(Kind::Cut), self.pieces_held),
            ("pieces that were swallowed", wanted(Kind::Cut), self.pieces_swallowed),
            ("pieces that came late", wanted(Kind::Slow), self.pieces_slowed),
            ("refusals for a full disk", wanted(Kind::Full), self.full_disk_refusals),
            ("members that were replaced", wanted(Kind::Wipe), self.members_replaced),
            ("new members that were sent a snapshot", wanted(Kind::Wipe), self.members_sent_a_snapshot),
            ("changes of the membership", wanted(Kind::Member), self.membership_changes),
            ("snapshots that were made", wanted(Kind::Snapshot), self.snapshots_made),
        ];
        needs.into_iter().filter(|(_, is_wanted, count)| *is_wanted && *count == 0).map(|(what, _, _)| what).collect()
    }

    /// As JSON.
    pub(crate) fn write(&self, mut file: File) -> std::io::Result<()> {
        serde_json::to_writer_pretty(&mut file, self)?;
        file.write_all(b"\n")
    }

    /// For the screen.
    pub(crate) fn table(&self) -> String {
        let faults: Vec<String> =
            self.faults.iter().map(|(kind, count)| format!("{kind:?} {count}").to_lowercase()).collect();
        let lines = [
            ("outcome", self.outcome.clone()),
            ("seed", self.seed.to_string()),
            ("ran", format!("{:.0} s, {} nodes, {} clients", self.seconds, self.nodes, self.clients)),
            ("steps", format!("{} of {} ({})", self.steps_done, self.steps_planned, faults.join(", "))),
            (
                "kills",
                format!(
                    "{} leaders, {} followers, {} times all; {} stops, {} restarts",
                    self.kills_of_leaders, self.kills_of_followers, self.kills_of_all, self.stops, self.restarts
                ),
            ),
            ("pauses", format!("{} leaders, {} followers", self.pauses_of_leaders, self.pauses_of_followers)),
            ("leader changes", self.leader_changes.to_string()),
            (
                "links",
                format!(
                    "{} connections cut; {} pieces held back, {} swallowed, {} slowed",
                    self.connections_cut, self.pieces_held, self.pieces_swallowed, self.pieces_slowed
                ),
            ),
            ("full disk", format!("{} refusals", self.full_disk_refusals)),
            ("snapshots", format!("{} made, {} transferred", self.snapshots_made, self.snapshots_transferred)),
            (
                "members",
                format!(
                    "{} replaced, {} of them by a snapshot; {} changes",
                    self.members_replaced, self.members_sent_a_snapshot, self.membership_changes
                ),
            ),
            ("recovery", format!("{} ms at the longest", self.longest_recovery_ms)),
            (
                "operations",
                format!(
                    "{} ok, {} not applied, {} unknown; {} reads, {} scans",
                    self.operations_ok, self.operations_not_applied, self.operations_unknown, self.reads, self.scans
                ),
            ),
            (
                "checked",
                format!(
                    "{} keys, {} undecided; {} operations, {} of them contended; {} scans; {} ms at the longest",
                    self.keys_checked,
                    self.keys_undecided,
                    self.operations_checked,
                    self.operations_contended,
                    self.scans_checked,
                    self.longest_check_ms
                ),
            ),
            (
                "in the end",
                format!("{} keys read back, {} compared on all nodes", self.keys_read_back, self.keys_compared),
            ),
        ];
        lines.into_iter().map(|(name, told)| format!("{name:<16}{told}\n")).collect()
    }
}

/// Says that something cannot be done here, and counts it where skips are counted.
pub(crate) fn skip(why: &str) {
    eprintln!("skipped: {why}");
    let Some(list) = std::env::var_os(SKIPS) else { return };
    let line = format!("cluster torture: {why}\n");
    // One write for a line: others write to the same file.
    let written =
        File::options().create(true).append(true).open(list).and_then(|mut list| list.write_all(line.as_bytes()));
    if let Err(error) = written {
        eprintln!("the list of skips cannot be written: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_met_nothing_says_all_that_it_missed_and_no_more_than_it_set_out_to() {
        let all: BTreeSet<Kind> = <Kind as clap::ValueEnum>::value_variants().iter().copied().collect();
        let nothing = Report { clients: 8, ..Report::default() };
        assert!(nothing.missing(&all).len() >= 15);
        for weather in ["connections that were cut", "pieces that were held back", "pieces that were swallowed"] {
            assert!(nothing.missing(&all).contains(&weather));
        }
        let only_kills = nothing.missing(&BTreeSet::from([Kind::Kill]));
        assert!(only_kills.contains(&"kills of leaders") && !only_kills.contains(&"refusals for a full disk"));
        let skipped = Report { skipped: BTreeSet::from([Kind::Full]), ..Report::default() };
        assert!(!skipped.missing(&all).contains(&"refusals for a full disk"));
    }

    #[test]
    fn a_run_whose_clients_never_met_on_a_key_or_were_never_told_a_value_is_not_called_good() {
        let met = Report {
            clients: 2,
            operations_ok: 9,
            reads: 3,
            scans_checked: 1,
            keys_checked: 1,
            operations_contended: 2,
            keys_read_back: 1,
            keys_compared: 1,
            ..Report::default()
        };
        let missing = |report: Report| report.missing(&BTreeSet::new());
        assert_eq!(missing(met.clone()), [] as [&str; 0]);
        assert_eq!(missing(Report { reads: 0, ..met.clone() }), ["reads that were answered"]);
        assert_eq!(missing(Report { scans_checked: 0, ..met.clone() }), ["scans that were checked"]);
        let alone = Report { operations_contended: 0, ..met };
        assert_eq!(missing(alone.clone()), ["operations of two clients on one key at the same time"]);
        // A single client has nobody to meet.
        assert_eq!(missing(Report { clients: 1, ..alone }), [] as [&str; 0]);
    }
}
