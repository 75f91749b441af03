//! The key-value stores that are built in, one file each, and what makes an engine of a store.
//!
//! Behind the rounds a store is a log: an entry is a record ([`crate::records`]), appending it is a transaction that
//! sets its key. After the reopen all records are read in the order of their keys, each is held against what was
//! written, and some are looked up by their keys as well.

#[cfg(feature = "fjall")]
mod fjall;
#[cfg(feature = "redb")]
mod redb;
mod ringwal;
#[cfg(feature = "rocksdb")]
mod rocksdb;
#[cfg(feature = "sqlite")]
mod sqlite;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;

use crate::engine::{Contestant, Engine};
use crate::records::check;

/// The first one is what the others are compared with.
pub(crate) const BUILT_IN: &[Contestant] = &[
    ringwal::CONTESTANT,
    #[cfg(feature = "rocksdb")]
    rocksdb::CONTESTANT,
    #[cfg(feature = "fjall")]
    fjall::CONTESTANT,
    #[cfg(feature = "redb")]
    redb::CONTESTANT,
    #[cfg(feature = "sqlite")]
    sqlite::CONTESTANT,
];

/// After the reopen one record in so many is looked up by its key.
const LOOK_UP_EVERY: u64 = 101;

/// Gets every key and its value.
type See<'a> = dyn FnMut(&[u8], &[u8]) -> Result<()> + 'a;

/// An open store. The calls that write return when what they wrote survives power loss.
pub(crate) trait Store: Send + Sync + Sized + 'static {
    /// Sets one record's key to its value, in a transaction of its own.
    fn set(&self, record: Bytes) -> Result<()>;

    /// Sets all of these, in one transaction.
    fn set_all(&self, records: Vec<Bytes>) -> Result<()>;

    /// Closes the store and opens it again as a program after a restart would.
    fn reopen(self) -> Result<Self>;

    /// Reads all records in the order of their keys.
    fn for_each(&self, see: &mut See<'_>) -> Result<()>;

    /// Looks one key up.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>>;
}

/// A store as an engine.
struct Keyed<S>(S);

/// A store for the rounds.
fn engine(store: impl Store) -> Box<dyn Engine> {
    Box::new(Keyed(store))
}

impl<S: Store> Engine for Keyed<S> {
    fn append(&self, _: usize, payload: Bytes) -> Result<()> {
        self.0.set(payload)
    }

    fn append_batch(&self, _: usize, payloads: Vec<Bytes>) -> Result<()> {
        self.0.set_all(payloads)
    }

    fn close_and_count(self: Box<Self>) -> Result<u64> {
        let store = self.0.reopen().context("cannot open again")?;
        let (mut count, mut last, mut samples) = (0, Vec::new(), Vec::new());
        store.for_each(&mut |key, value| {
            ensure!(last.as_slice() < key, "the keys are out of order");
            last.clear();
            last.extend_from_slice(key);
            if count % LOOK_UP_EVERY == 0 {
                samples.push(last.clone());
            }
            count += 1;
            check(key, value)
        })?;
        for key in &samples {
            check(key, &store.get(key)?.context("a key that was read in order is not found")?)?;
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use super::*;
    use crate::load::Load;
    use crate::records::{Records, parts};

    const WRITERS: usize = 3;

    fn load(batch: usize) -> Load {
        Load { producers: WRITERS, batch, payload_bytes: 100, is_keyed: true, cluster: None }
    }

    fn write_ten(store: &dyn Engine, writer: usize, batch: usize) {
        let mut records = Records::new(writer, 100);
        for _ in 0..10 {
            match batch {
                1 => store.append(writer, records.make()).unwrap(),
                _ => store.append_batch(writer, (0..batch).map(|_| records.make()).collect()).unwrap(),
            }
        }
    }

    #[test]
    fn every_store_finds_again_what_it_acknowledged_and_nothing_else() {
        for contestant in BUILT_IN {
            for batch in [1, 7] {
                let dir = tempfile::tempdir().unwrap();
                let store = (contestant.open)(dir.path(), &load(batch)).unwrap();
                std::thread::scope(|scope| {
                    for writer in 0..WRITERS {
                        let store = store.as_ref();
                        scope.spawn(move || write_ten(store, writer, batch));
                    }
                });
                let (found, written) = (store.close_and_count().unwrap(), (10 * WRITERS * batch) as u64);
                assert_eq!(found, written, "{}, batches of {batch}", contestant.name);
            }
        }
    }

    /// In memory; what comes back is what `spoil` makes of it.
    struct Spoiled {
        records: Mutex<BTreeMap<Vec<u8>, Vec<u8>>>,
        spoil: fn(&mut BTreeMap<Vec<u8>, Vec<u8>>),
    }

    impl Store for Spoiled {
        fn set(&self, record: Bytes) -> Result<()> {
            let (key, value) = parts(&record);
            self.records.lock().unwrap().insert(key.to_vec(), value.to_vec());
            Ok(())
        }

        fn set_all(&self, records: Vec<Bytes>) -> Result<()> {
            records.into_iter().try_for_each(|record| self.set(record))
        }

        fn reopen(self) -> Result<Spoiled> {
            (self.spoil)(&mut self.records.lock().unwrap());
            Ok(self)
        }

        fn for_each(&self, see: &mut See<'_>) -> Result<()> {
            self.records.lock().unwrap().iter().try_for_each(|(key, value)| see(key, value))
        }

        fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
            Ok(self.records.lock().unwrap().get(key).cloned())
        }
    }

    fn found(spoil: fn(&mut BTreeMap<Vec<u8>, Vec<u8>>)) -> Result<u64> {
        let store = engine(Spoiled { records: Mutex::default(), spoil });
        write_ten(store.as_ref(), 0, 5);
        store.close_and_count()
    }

    #[test]
    fn a_store_that_gives_back_something_else_is_found_out() {
        assert_eq!(found(|_| ()).unwrap(), 50);
        assert_eq!(found(|records| drop(records.pop_first())).unwrap(), 49);
        let swapped = found(|records| {
            let (first, last) = (records.pop_first().unwrap(), records.pop_last().unwrap());
            records.extend([(first.0, last.1), (last.0, first.1)]);
        });
        assert!(swapped.unwrap_err().to_string().contains("is not the one that was written"));
    }
}
