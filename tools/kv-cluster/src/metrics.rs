//! A node's figures, as text for Prometheus: of openraft, of the requests, and of the log below.
//!
//! Durations are in seconds and sizes in bytes, as Prometheus has them; the names say so. The log's own histograms are
//! HDR histograms: their buckets are counted out when they are asked for.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram as Hdr;
use openraft::ServerState;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use ringwal::Stats;

use crate::http::matched;
use crate::leading::Metrics as RaftMetrics;

/// Names and values.
type Labels<const N: usize> = [(&'static str, String); N];

/// Upper bounds of what is timed, in nanoseconds: each the double of the one before it, from 16 µs to 8.6 s.
const NS_BOUNDS: [u64; 20] = doubled(1 << 14);
/// Upper bounds of what is measured in bytes: from 4 KiB to 2 GiB.
const BYTES_BOUNDS: [u64; 20] = doubled(1 << 12);
/// Upper bounds of what is counted.
const COUNT_BOUNDS: [u64; 12] = doubled(1);

const fn doubled<const N: usize>(first: u64) -> [u64; N] {
    let mut bounds = [first; N];
    let mut place = 1;
    while place < N {
        bounds[place] = bounds[place - 1] * 2;
        place += 1;
    }
    bounds
}

/// What is counted here: requests with their times, and what went wrong without anybody being answered.
#[derive(Debug)]
pub(crate) struct Metrics {
    requests: Family<Labels<2>, Counter>,
    seconds: Family<Labels<1>, Histogram, fn() -> Histogram>,
    /// Parts of snapshots that another node sent and this one could not take.
    pub(crate) snapshot_receive_failures: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let constructor: fn() -> Histogram = || Histogram::new(exponential_buckets(0.0001, 2.0, 17));
        Metrics {
            requests: Family::default(),
            seconds: Family::new_with_constructor(constructor),
            snapshot_receive_failures: Counter::default(),
        }
    }

    /// Counts a request that was answered.
    pub(crate) fn request(&self, operation: &str, status: u16, took: Duration) {
        let operation = ("operation", operation.to_owned());
        self.requests.get_or_create(&[operation.clone(), ("status", status.to_string())]).inc();
        self.seconds.get_or_create(&[operation]).observe(took.as_secs_f64());
    }

    /// Everything, as it is now.
    ///
    /// # Errors
    ///
    /// A value cannot be told: nothing else fails into a string.
    pub(crate) fn text(&self, raft: &RaftMetrics, log: &Stats, keys: u64) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("ringwal_cluster");
        registry.register("requests", "Requests that were answered", self.requests.clone());
        registry.register("request_duration_seconds", "From a request to its answer", self.seconds.clone());
        let failures = self.snapshot_receive_failures.clone();
        registry.register("snapshot_receive_failures", "Parts of snapshots that could not be taken", failures);
        registry.register_collector(Box::new(Look { raft: raft.clone(), log: log.clone(), keys }));
        let mut text = String::new();
        text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

/// Figures at one moment.
struct Look {
    raft: RaftMetrics,
    log: Stats,
    keys: u64,
}

impl fmt::Debug for Look {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Look")
    }
}

impl Collector for Look {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let encoder = &mut encoder;
        self.node(encoder)?;
        self.places(encoder)?;
        self.replication(encoder)?;
        self.log_counters(encoder)?;
        self.log_histograms(encoder)
    }
}

impl Look {
    fn node(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let raft = &self.raft;
        gauge(encoder, "raft_term", "The node's term", raft.current_term)?;
        gauge(
            encoder,
            "raft_leader_id",
            "The leader that the node knows, 0 for none",
            raft.current_leader.unwrap_or(0),
        )?;
        gauge(encoder, "raft_is_leader", "1 where the node leads", u64::from(raft.state == ServerState::Leader))?;
        let voters = raft.membership_config.membership().voter_ids().count() as u64;
        gauge(encoder, "raft_voters", "Nodes that vote", voters)?;
        let learners = raft.membership_config.membership().learner_ids().count() as u64;
        gauge(encoder, "raft_learners", "Nodes that only learn", learners)?;
        gauge(encoder, "keys", "Keys in the node's state", self.keys)?;
        let mut states =
            encoder.encode_descriptor("raft_state", "1 for the state the node is in", None, MetricType::Gauge)?;
        for state in [ServerState::Learner, ServerState::Follower, ServerState::Candidate, ServerState::Leader] {
            let labels = [("state", format!("{state:?}").to_lowercase())];
            ConstGauge::new(u64::from(raft.state == state)).encode(states.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// Indexes begin at 0 in openraft: what is not there yet is told as -1.
    fn places(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let raft = &self.raft;
        let index = |id: &Option<openraft::LogId<u64>>| id.as_ref().map(|id| id.index);
        let places = [
            ("raft_last_log_index", "Last entry of the node's log", raft.last_log_index),
            ("raft_applied_index", "Last entry applied", index(&raft.last_applied)),
            ("raft_snapshot_index", "Last entry in the newest snapshot", index(&raft.snapshot)),
            ("raft_purged_index", "Last entry that the log no longer has", index(&raft.purged)),
        ];
        for (name, help, index) in places {
            let gauge = ConstGauge::new(index.map_or(-1, |index| index as i64));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }

    /// Only a leader has something to tell here.
    fn replication(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let raft = &self.raft;
        let Some(replication) = &raft.replication else { return Ok(()) };
        if let Some(age_ms) = raft.millis_since_quorum_ack {
            let help = "Since a majority confirmed this leader last";
            let gauge = ConstGauge::new(age_ms as f64 / 1e3);
            gauge.encode(encoder.encode_descriptor(
                "raft_quorum_ack_age_seconds",
                help,
                None,
                gauge.metric_type(),
            )?)?;
        }
        let help = "Entries that a node is behind the leader";
        let mut lags = encoder.encode_descriptor("raft_replication_lag_entries", help, None, MetricType::Gauge)?;
        let next = |index: Option<u64>| index.map_or(0, |index| index + 1);
        for id in replication.keys() {
            let lag = next(raft.last_log_index).saturating_sub(next(matched(raft, *id)));
            ConstGauge::new(lag).encode(lags.encode_family(&[("node", id.to_string())])?)?;
        }
        Ok(())
    }

    fn log_counters(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let log = &self.log;
        let counters = [
            ("log_frames", "Frames acknowledged", log.frames),
            ("log_entries", "Entries acknowledged", log.entries),
            ("log_payload_bytes", "Bytes of the acknowledged entries", log.payload_bytes),
            ("log_written_bytes", "Bytes of acknowledged frames, padding included", log.written_bytes),
            ("log_marks", "Frames that only witness others", log.marks),
            ("log_segment_rolls", "Times the log went on in a new segment", log.rolls),
            ("log_segment_drops", "Segments dropped after compaction", log.drops),
            ("log_segments_recycled", "Dropped segments that are used again", log.recycled),
            ("log_syncs", "Syncs apart from writing", log.syncs),
            ("log_stalls", "Times the disk did not answer for long", log.stalls),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        let stalled = self.log.stalled.as_ref().map_or(0.0, |stall| stall.waited_ns as f64 / 1e9);
        let gauge = ConstGauge::new(stalled);
        let help = "How long the disk has not answered, 0 where it does";
        gauge.encode(encoder.encode_descriptor("log_stalled_seconds", help, None, gauge.metric_type())?)
    }

    fn log_histograms(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let log = &self.log;
        let seconds = [
            ("log_queue_wait_seconds", "From a frame's first batch to its write", &log.queue_wait_ns),
            ("log_encode_seconds", "Copying and checksumming a frame", &log.encode_ns),
            ("log_write_seconds", "A frame's write, until it is durable", &log.write_ns),
            ("log_wake_seconds", "From an acknowledgement to the waiter", &log.wake_ns),
        ];
        for (name, help, hdr) in seconds {
            histogram(encoder, name, help, hdr, &NS_BOUNDS, 1e9)?;
        }
        histogram(encoder, "log_frame_entries", "Entries in a frame", &log.entries_per_frame, &COUNT_BOUNDS, 1.0)?;
        histogram(encoder, "log_frame_bytes", "Bytes of a frame", &log.bytes_per_frame, &BYTES_BOUNDS, 1.0)
    }
}

fn gauge(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: u64) -> fmt::Result {
    let gauge = ConstGauge::new(value);
    gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
}

/// Counts out the buckets of an HDR histogram, whose values are so many to the unit.
fn histogram(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    hdr: &Hdr<u64>,
    bounds: &[u64],
    per_unit: f64,
) -> fmt::Result {
    let (buckets, sum) = counted(hdr, bounds, per_unit);
    let mut encoder = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    encoder.encode_histogram::<NoLabelSet>(sum, hdr.len(), &buckets, None)
}

/// Each bucket with the count of its own, the last one without a bound; and the sum of all values.
fn counted(hdr: &Hdr<u64>, bounds: &[u64], per_unit: f64) -> (Vec<(f64, u64)>, f64) {
    let mut buckets: Vec<_> = bounds.iter().map(|bound| (*bound as f64 / per_unit, 0)).collect();
    buckets.push((f64::INFINITY, 0));
    let mut sum = 0.0;
    for value in hdr.iter_recorded() {
        let place = bounds.partition_point(|bound| *bound < value.value_iterated_to());
        buckets[place].1 += value.count_at_value();
        sum += value.value_iterated_to() as f64 / per_unit * value.count_at_value() as f64;
    }
    (buckets, sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_what_is_recorded_each_value_once() {
        let mut hdr = Hdr::new_with_bounds(1, 1 << 40, 2).unwrap();
        for value in [1, 2, 3, 100, 1 << 39] {
            hdr.record(value).unwrap();
        }
        let (buckets, sum) = counted(&hdr, &[2, 64, 128], 1.0);
        assert_eq!(buckets.iter().map(|bucket| bucket.1).collect::<Vec<_>>(), [2, 1, 1, 1]);
        assert!((sum / (106.0 + (1u64 << 39) as f64) - 1.0).abs() < 0.01, "{sum}");
    }

    #[test]
    fn figures_are_told_in_the_form_that_prometheus_reads() {
        let metrics = Metrics::new();
        metrics.request("put", 204, Duration::from_millis(3));
        let raft = RaftMetrics::new_initial(7);
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = ringwal::Log::open(dir.path(), ringwal::Config::default().segment_bytes(1 << 20)).unwrap();
        log.append("an entry").unwrap();
        let text = metrics.text(&raft, &log.stats(), 3).unwrap();
        for line in [
            "ringwal_cluster_requests_total{operation=\"put\",status=\"204\"} 1",
            "ringwal_cluster_request_duration_seconds_count{operation=\"put\"} 1",
            "ringwal_cluster_raft_last_log_index -1",
            "ringwal_cluster_snapshot_receive_failures_total 0",
            "ringwal_cluster_keys 3",
            "ringwal_cluster_log_entries_total 1",
            "ringwal_cluster_log_write_seconds_count 1",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in {text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
