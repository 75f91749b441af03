//! Clusters of openraft whose nodes differ in their log store and in nothing else: how many writes a cluster
//! acknowledges that waits for its logs.
//!
//! All nodes are in this process, and so are their clients; calls between nodes are calls of functions
//! ([`network`]), the state machine is a map in memory ([`machine`]). Behind the rounds a cluster is an engine like
//! any other: an append is a client's write, acknowledged when the leader has applied it.
//!
//! openraft 0.9 writes one client's request per append, and waits for each append before it does anything else. So the
//! device is asked for one write at a time, and a log store can gain nothing by having several under way. What bounds
//! every store is in [`ceiling`].

mod ceiling;
mod cluster;
mod machine;
mod network;
mod ringwal;
#[cfg(feature = "rocksdb")]
mod rocks;
mod types;

use crate::engine::Contestant;

/// The first one is what the others are compared with.
pub(crate) const BUILT_IN: &[Contestant] = &[
    ceiling::IN_PLACE,
    ceiling::THREAD,
    ringwal::DEFAULT,
    ringwal::IN_PLACE,
    ringwal::SPIN,
    ringwal::SYSCALL,
    #[cfg(feature = "rocksdb")]
    rocks::CONTESTANT,
];

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::load::{Load, Shape};
    use crate::place::Place;
    use crate::slice;

    #[test]
    fn every_store_keeps_what_its_cluster_acknowledged() {
        for contestant in BUILT_IN {
            for nodes in [1, 3] {
                let dir = tempfile::tempdir().unwrap();
                let place = Place::make(dir.path()).unwrap();
                let cluster = Some(Shape { nodes, workers: 2 });
                let load = Load { producers: 3, batch: 1, payload_bytes: 100, is_keyed: true, cluster };
                let store = place.make_dir(contestant.name).unwrap();
                let reached = slice::run(contestant, &place, &store, &load, Duration::from_millis(200));
                assert!(reached.unwrap().acked > 0, "{} with {nodes} nodes", contestant.name);
            }
        }
    }
}
