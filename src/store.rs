//! A durable key-value store: [`KvStore`], and [`Storage`], the trait that it implements.
//!
//! Everything here is said in terms of a [`Driver`] of a [`KvStateMachine`]: writes are commands that it proposes,
//! reads look at its machine in memory. Nothing here knows the log, snapshots or threads.

use std::fmt;
use std::future::{Future, ready};
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::disk::Disk;
use crate::machine::{
    Driver, DriverConfig, DriverError, DriverReport, DriverStats, KvCommand, KvError, KvImage, KvOp, KvResponse,
    KvStateMachine, StateMachine,
};
use crate::snapshot::Snapshot;

/// Settings of a [`KvStore`].
pub type StoreConfig = DriverConfig;

/// What can go wrong with a [`KvStore`].
pub type StoreError = DriverError<KvError>;

type Result<T> = std::result::Result<T, StoreError>;

/// Entries that a scan copies while writers wait for it. A longer one goes on in an image, which nobody waits for.
const LENT_ENTRIES_MAX: usize = 1024;

/// Keys and values as a service stores them. Byte order is the order of the keys.
///
/// # Guarantees
///
/// A write that was answered is durable, and whoever reads later sees it, from any thread. A batch is there as a whole
/// or not at all, after a crash and for every reader.
///
/// # Futures
///
/// They are `Send` and need no reactor: any executor drives them. Those of reads are ready at once. A write whose
/// future is dropped may or may not happen, but never in part. Implementers may write `async fn`.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let scratch = tempfile::tempdir()?;
/// # let dir = scratch.path().join("store");
/// use ringwal::{KvStore, Storage, StoreConfig};
///
/// async fn rename<S: Storage>(store: &S, from: &[u8], to: &[u8]) -> Result<bool, S::Error> {
///     let Some(value) = store.read(from).await? else { return Ok(false) };
///     store.write(to, &value).await?;
///     store.delete(from).await?;
///     Ok(true)
/// }
///
/// # fn block_on<F: std::future::Future>(future: F) -> F::Output {
/// #     let mut future = std::pin::pin!(future);
/// #     loop {
/// #         match future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
/// #             std::task::Poll::Ready(value) => return value,
/// #             std::task::Poll::Pending => std::thread::yield_now(),
/// #         }
/// #     }
/// # }
/// let (store, _report) = KvStore::open(&dir, StoreConfig::default())?;
/// store.set("a", "1")?;
/// assert!(block_on(rename(&store, b"a", b"b"))?);
/// assert_eq!(block_on(store.range_scan(b"a", b"z"))?, [("b".into(), "1".into())]);
/// # Ok(())
/// # }
/// ```
pub trait Storage: Send + Sync {
    /// What can go wrong.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Gives a key a value, in place of any that it has. **Durable on return.**
    ///
    /// # Errors
    ///
    /// Those of the implementation: nothing was written, or, where it failed half way, that is for the next open to
    /// decide.
    fn write(&self, key: &[u8], value: &[u8]) -> impl Future<Output = std::result::Result<(), Self::Error>> + Send;

    /// The value of a key; `None` where there is no such key.
    ///
    /// # Errors
    ///
    /// Those of the implementation: of a [`KvStore`], those of [`Driver::try_read`].
    fn read(&self, key: &[u8]) -> impl Future<Output = std::result::Result<Option<Bytes>, Self::Error>> + Send;

    /// Removes a key, if it is there. **Durable on return.**
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    fn delete(&self, key: &[u8]) -> impl Future<Output = std::result::Result<(), Self::Error>> + Send;

    /// Does all of these in their order, or none of them. **Durable on return.**
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write), for all of them.
    fn batch_write(&self, ops: Vec<KvOp>) -> impl Future<Output = std::result::Result<(), Self::Error>> + Send;

    /// The entries from the key `start` up to, not including, the key `end`, in order, as they were at one moment. A
    /// range that ends before it begins has none.
    ///
    /// All of them are in memory at once: ask for bounded ranges.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    #[allow(clippy::type_complexity, reason = "keys and values")]
    fn range_scan(
        &self,
        start: &[u8],
        end: &[u8],
    ) -> impl Future<Output = std::result::Result<Vec<(Bytes, Bytes)>, Self::Error>> + Send;
}

/// A durable, ordered key-value store, whose keys and values are in memory as well.
///
/// Writes are durable when they are answered, and many writers share each write to the disk. Reads never wait for the
/// disk, and see everything that was answered before, to any thread. Clones share the store; when the last one goes, it
/// is closed, as [`KvStore::close`] does with a report.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let scratch = tempfile::tempdir()?;
/// # let dir = scratch.path().join("store");
/// use ringwal::{KvOp, KvStore, StoreConfig, Swap};
///
/// let (store, _report) = KvStore::open(&dir, StoreConfig::default())?;
/// store.set("apple", "red")?; // survives power loss when this returns
/// store.write_batch(vec![
///     KvOp::Put { key: "banana".into(), value: "yellow".into() },
///     KvOp::Delete { key: "apple".into() },
/// ])?; // all or nothing
/// assert_eq!(store.get(b"apple"), None);
///
/// let green = store.compare_and_set("banana", Some("yellow".into()), Some("green".into()))?;
/// assert_eq!(green, Swap::Swapped);
/// assert_eq!(store.scan("a"..="c", 10), [("banana".into(), "green".into())]);
///
/// // A consistent look at everything, for as long as wanted, while writes go on.
/// let image = store.image();
/// store.set("cherry", "red")?;
/// assert_eq!((image.len(), store.len()), (1, 2));
///
/// store.checkpoint()?; // a snapshot; the log is short again
/// store.close()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct KvStore {
    driver: Driver<KvStateMachine>,
}

/// What became of a [`KvStore::compare_and_set`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swap {
    /// The key was as expected and is now as wanted.
    Swapped,
    /// The key was not as expected, and nothing changed: this is the value it has.
    Differs(Option<Bytes>),
}

/// Opening and closing.
impl KvStore {
    /// Opens the store of a directory; creates directory and store where there is none.
    ///
    /// # Errors
    ///
    /// Those of [`Driver::open`].
    pub fn open(dir: impl AsRef<Path>, config: StoreConfig) -> Result<(KvStore, DriverReport)> {
        let (driver, report) = Driver::open(dir, KvStateMachine::new(), config)?;
        Ok((KvStore { driver }, report))
    }

    /// Opens the store of a given disk, such as a simulated one; else as [`KvStore::open`].
    ///
    /// # Errors
    ///
    /// Those of [`Driver::open`].
    pub fn open_on(disk: Arc<dyn Disk>, config: StoreConfig) -> Result<(KvStore, DriverReport)> {
        let (driver, report) = Driver::open_on(disk, KvStateMachine::new(), config)?;
        Ok((KvStore { driver }, report))
    }

    /// Closes the store. Clones can still read, and nothing else.
    ///
    /// # Errors
    ///
    /// Those of [`Driver::close`].
    pub fn close(self) -> Result<()> {
        self.driver.close()
    }
}

/// Writing. Each call returns when what it wrote is durable, as the log's [`Durability`](crate::Durability) says, and
/// can be read.
///
/// # Errors
///
/// [`DriverError::Refused`] for keys and values above the limits of [`KvStateMachine`]; else those of
/// [`Driver::propose`], of which [`Error::TooLarge`](crate::Error::TooLarge) is for what does not fit a segment of the
/// log.
impl KvStore {
    /// Gives a key a value, in place of any that it has.
    ///
    /// # Errors
    ///
    /// See above.
    pub fn set(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<()> {
        self.driver.propose(KvCommand::Set { key: key.into(), value: value.into() }).map(drop)
    }

    /// As [`KvStore::set`]; the future is done when the value is durable and can be read. See
    /// [`Driver::propose_async`].
    ///
    /// # Errors
    ///
    /// See above.
    pub fn set_async<K: Into<Bytes>, V: Into<Bytes>>(
        &self,
        key: K,
        value: V,
    ) -> impl Future<Output = Result<()>> + Send + use<K, V> + 'static {
        done(self.driver.propose_async(KvCommand::Set { key: key.into(), value: value.into() }))
    }

    /// Removes a key; tells whether it was there.
    ///
    /// # Errors
    ///
    /// See above.
    pub fn delete(&self, key: impl Into<Bytes>) -> Result<bool> {
        let response = self.driver.propose(KvCommand::Delete { key: key.into() })?;
        Ok(matches!(response, KvResponse::Deleted { existed: true }))
    }

    /// As [`KvStore::delete`]; the future is done when that is durable. See [`Driver::propose_async`].
    ///
    /// # Errors
    ///
    /// See above.
    pub fn delete_async<K: Into<Bytes>>(&self, key: K) -> impl Future<Output = Result<bool>> + Send + use<K> + 'static {
        let proposed = self.driver.propose_async(KvCommand::Delete { key: key.into() });
        async move { Ok(matches!(proposed.await?, KvResponse::Deleted { existed: true })) }
    }

    /// Does all of these in their order, or none of them: after a crash, and for every reader.
    ///
    /// # Errors
    ///
    /// See above, for all of them.
    pub fn write_batch(&self, ops: Vec<KvOp>) -> Result<()> {
        if ops.is_empty() { Ok(()) } else { self.driver.propose(KvCommand::Batch(ops)).map(drop) }
    }

    /// As [`KvStore::write_batch`]; the future is done when all of it is durable and can be read. See
    /// [`Driver::propose_async`].
    ///
    /// # Errors
    ///
    /// See above, for all of them.
    pub fn write_batch_async(&self, ops: Vec<KvOp>) -> impl Future<Output = Result<()>> + Send + use<> + 'static {
        let proposed = (!ops.is_empty()).then(|| self.driver.propose_async(KvCommand::Batch(ops)));
        async move {
            match proposed {
                Some(proposed) => proposed.await.map(drop),
                None => Ok(()),
            }
        }
    }

    /// Gives a key a value, or removes it (`new` is `None`), if it has the value expected (`None`: if it is not there).
    /// In one step: of several callers that expect the same, one is served.
    ///
    /// # Errors
    ///
    /// See above.
    pub fn compare_and_set(&self, key: impl Into<Bytes>, expected: Option<Bytes>, new: Option<Bytes>) -> Result<Swap> {
        match self.driver.propose(KvCommand::CompareAndSet { key: key.into(), expected, new })? {
            KvResponse::Differs(found) => Ok(Swap::Differs(found)),
            _ => Ok(Swap::Swapped),
        }
    }
}

/// Waits for a command whose answer says nothing.
async fn done(proposed: impl Future<Output = Result<KvResponse>> + Send + 'static) -> Result<()> {
    proposed.await.map(drop)
}

/// Reading. Never waits for the disk; sees everything that was answered before.
///
/// # Panics
///
/// Each of these, except those that return a `Result`, where [`Driver::read`] does: after the machine failed, and from
/// inside of a closure that reads it.
impl KvStore {
    /// The value of a key.
    ///
    /// # Panics
    ///
    /// See above.
    pub fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.driver.read(|machine| machine.get(key))
    }

    /// As [`KvStore::get`], and never panics.
    ///
    /// # Errors
    ///
    /// Those of [`Driver::try_read`].
    pub fn try_get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.driver.try_read(|machine| machine.get(key))
    }

    /// Whether the key is there.
    ///
    /// # Panics
    ///
    /// See above.
    pub fn contains_key(&self, key: &[u8]) -> bool {
        self.driver.read(|machine| machine.contains_key(key))
    }

    /// The entries of a range of keys, in order, as they are at one moment: the first `limit` of them.
    ///
    /// # Panics
    ///
    /// See above.
    pub fn scan<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>, limit: usize) -> Vec<(Bytes, Bytes)> {
        match self.try_scan(range, limit) {
            Ok(found) => found,
            Err(failure) => panic!("{failure}"),
        }
    }

    /// As [`KvStore::scan`], and never panics.
    ///
    /// # Errors
    ///
    /// Those of [`Driver::try_read`].
    pub fn try_scan<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>, limit: usize) -> Result<Vec<(Bytes, Bytes)>> {
        let (start, end) = (range.start_bound().map(K::as_ref), range.end_bound().map(K::as_ref));
        let (mut found, image) = self.driver.try_read(|machine| {
            let lent = machine.range::<&[u8]>((start, end)).take(limit.min(LENT_ENTRIES_MAX));
            let found: Vec<(Bytes, Bytes)> = lent.map(copied).collect();
            // There may be more, which nobody who writes is to wait for.
            let is_long = found.len() == LENT_ENTRIES_MAX && limit > LENT_ENTRIES_MAX;
            (found, is_long.then(|| machine.image()))
        })?;
        if let (Some(image), Some((last, _))) = (image, found.last().cloned()) {
            let rest = image.range::<&[u8]>((Bound::Excluded(&*last), end)).take(limit - found.len());
            found.extend(rest.map(copied));
        }
        Ok(found)
    }

    /// Everything, as it is at this moment: to be read for as long as wanted while writes go on. As long as it lives,
    /// memory grows with what is written.
    ///
    /// # Panics
    ///
    /// See above.
    pub fn image(&self) -> KvImage {
        self.driver.read(|machine| machine.image())
    }

    /// Number of keys.
    ///
    /// # Panics
    ///
    /// See above.
    pub fn len(&self) -> u64 {
        self.driver.read(|machine| machine.len())
    }

    /// Whether there are no keys.
    ///
    /// # Panics
    ///
    /// See above.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of all keys and values.
    ///
    /// # Panics
    ///
    /// See above.
    pub fn bytes(&self) -> u64 {
        self.driver.read(|machine| machine.bytes())
    }
}

fn copied((key, value): (&[u8], &[u8])) -> (Bytes, Bytes) {
    (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value))
}

/// Beneath.
impl KvStore {
    /// Takes a snapshot of everything that was answered before, and compacts the log below it: [`Driver::checkpoint`].
    ///
    /// # Errors
    ///
    /// Those of [`Driver::checkpoint`].
    pub fn checkpoint(&self) -> Result<Snapshot> {
        self.driver.checkpoint()
    }

    /// What was done since the open.
    pub fn stats(&self) -> DriverStats {
        self.driver.stats()
    }

    /// The driver, with its log and its snapshots.
    pub fn driver(&self) -> &Driver<KvStateMachine> {
        &self.driver
    }
}

impl fmt::Debug for KvStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Also after the machine failed, and from inside of it.
        let keys = self.driver.try_read(|machine| machine.len()).ok();
        f.debug_struct("KvStore").field("keys", &keys).field("driver", &self.driver).finish()
    }
}

macro_rules! storage {
    ($($type:ty),*) => {$(
        impl Storage for $type {
            type Error = StoreError;

            fn write(&self, key: &[u8], value: &[u8]) -> impl Future<Output = Result<()>> + Send {
                self.set_async(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value))
            }

            fn read(&self, key: &[u8]) -> impl Future<Output = Result<Option<Bytes>>> + Send {
                ready(self.try_get(key))
            }

            async fn delete(&self, key: &[u8]) -> Result<()> {
                self.delete_async(Bytes::copy_from_slice(key)).await.map(drop)
            }

            fn batch_write(&self, ops: Vec<KvOp>) -> impl Future<Output = Result<()>> + Send {
                self.write_batch_async(ops)
            }

            fn range_scan(
                &self,
                start: &[u8],
                end: &[u8],
            ) -> impl Future<Output = Result<Vec<(Bytes, Bytes)>>> + Send {
                ready(self.try_scan(start..end, usize::MAX))
            }
        }
    )*};
}

storage!(KvStore, &KvStore);
