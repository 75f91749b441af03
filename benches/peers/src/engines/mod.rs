//! The logs that are built in, one file each.

mod naive;
#[cfg(feature = "okaywal")]
mod okaywal;
#[cfg(feature = "raft-engine")]
mod raft_engine;
mod ringwal;
#[cfg(feature = "rocksdb")]
pub(crate) mod rocksdb;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;

use crate::engine::Contestant;

/// The first one is what the others are compared with.
pub(crate) const BUILT_IN: &[Contestant] = &[
    ringwal::CONTESTANT,
    #[cfg(feature = "raft-engine")]
    raft_engine::CONTESTANT,
    #[cfg(feature = "okaywal")]
    okaywal::CONTESTANT,
    #[cfg(feature = "rocksdb")]
    rocksdb::CONTESTANT,
    #[cfg(feature = "sqlite")]
    sqlite::CONTESTANT,
    naive::CONTESTANT,
];

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::load::Load;

    #[test]
    fn every_engine_finds_again_what_it_acknowledged_and_nothing_else() {
        for engine in BUILT_IN {
            for batch in [1, 7] {
                let dir = tempfile::tempdir().unwrap();
                let load = Load { producers: 3, batch, payload_bytes: 100, is_keyed: false, cluster: None };
                let log = (engine.open)(dir.path(), &load).unwrap();
                std::thread::scope(|scope| {
                    for producer in 0..3 {
                        let log = &log;
                        scope.spawn(move || append_ten(log.as_ref(), producer, batch));
                    }
                });
                assert_eq!(log.close_and_count().unwrap(), 30 * batch as u64, "{}, batches of {batch}", engine.name);
            }
        }
    }

    fn append_ten(log: &dyn crate::engine::Engine, producer: usize, batch: usize) {
        let payload = Bytes::from(vec![7; 100]);
        for _ in 0..10 {
            match batch {
                1 => log.append(producer, payload.clone()).unwrap(),
                _ => log.append_batch(producer, vec![payload.clone(); batch]).unwrap(),
            }
        }
    }
}
