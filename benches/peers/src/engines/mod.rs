//! The engines that are built in, one file each, and the choice among them.

mod naive;
#[cfg(feature = "okaywal")]
mod okaywal;
#[cfg(feature = "raft-engine")]
mod raft_engine;
mod ringwal;
#[cfg(feature = "rocksdb")]
mod rocksdb;
#[cfg(feature = "sqlite")]
mod sqlite;

use anyhow::{Result, bail};

use crate::engine::Contestant;

/// The first one is what the others are compared with.
const BUILT_IN: &[Contestant] = &[
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

/// The engines of these names, in the order of the table; all of them if none is named.
pub(crate) fn chosen(names: &[String]) -> Result<Vec<&'static Contestant>> {
    let known = || BUILT_IN.iter().map(|engine| engine.name).collect::<Vec<_>>();
    if let Some(unknown) = names.iter().find(|name| !known().contains(&name.as_str())) {
        bail!("there is no engine {unknown} in this build: it has {}", known().join(", "));
    }
    Ok(BUILT_IN.iter().filter(|engine| names.is_empty() || names.iter().any(|name| name == engine.name)).collect())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::load::Load;

    #[test]
    fn engines_are_chosen_by_name() {
        assert_eq!(chosen(&[]).unwrap().len(), BUILT_IN.len());
        assert_eq!(chosen(&["naive".to_owned()]).unwrap()[0].name, "naive");
        assert!(chosen(&["naiv".to_owned()]).is_err());
    }

    #[test]
    fn every_engine_finds_again_what_it_acknowledged_and_nothing_else() {
        for engine in BUILT_IN {
            for batch in [1, 7] {
                let dir = tempfile::tempdir().unwrap();
                let log = (engine.open)(dir.path(), &Load { producers: 3, batch, payload_bytes: 100 }).unwrap();
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
