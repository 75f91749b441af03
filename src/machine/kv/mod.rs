//! A key-value store as a state machine: ordered, any bytes as keys and values.
//!
//! What is applied is decided here; how it lies in memory is `map`'s business, how as bytes that of `command` and `state`.

mod command;
mod state;

use std::io::{self, Read, Write};
use std::ops::{Bound, RangeBounds};

use bytes::Bytes;

use super::error::{CommandError, StateError};
use super::map::{self, Entries, Image, Map};
use super::{StateImage, StateMachine};

pub use command::{KvCommand, KvOp};

/// An ordered map from bytes to bytes, driven by [`KvCommand`]s.
///
/// Reads need no command: [`get`](Self::get), [`range`](Self::range) and the rest look at the state as it is. A command
/// that reads ([`KvCommand::Get`], [`KvCommand::Scan`]) has its place in the order of the log.
///
/// ```
/// use ringwal::machine::{KvCommand, KvOp, KvResponse, KvStateMachine};
/// use ringwal::{StateImage, StateMachine};
///
/// # /// These futures are ready at once.
/// # fn block_on<F: Future>(future: F) -> F::Output {
/// #     let mut context = std::task::Context::from_waker(std::task::Waker::noop());
/// #     match std::pin::pin!(future).poll(&mut context) {
/// #         std::task::Poll::Ready(value) => value,
/// #         std::task::Poll::Pending => unreachable!(),
/// #     }
/// # }
/// let mut kv = KvStateMachine::new();
/// block_on(kv.apply(KvCommand::Set { key: "apple".into(), value: "red".into() }))?;
/// let image = kv.image();
///
/// let ops = vec![
///     KvOp::Put { key: "banana".into(), value: "yellow".into() },
///     KvOp::Delete { key: "apple".into() },
/// ];
/// assert_eq!(block_on(kv.apply(KvCommand::Batch(ops)))?, KvResponse::Done); // all or nothing
/// let swap = KvCommand::CompareAndSet { key: "banana".into(), expected: None, new: Some("green".into()) };
/// assert_eq!(block_on(kv.apply(swap))?, KvResponse::Differs(Some("yellow".into())));
///
/// assert_eq!(kv.range("a".."c").count(), 1);
/// assert_eq!(image.get(b"apple").unwrap(), "red"); // the image shows its moment
///
/// let mut state = Vec::new();
/// image.write_to(&mut state)?;
/// block_on(kv.set_state(&state))?;
/// assert_eq!(kv.get(b"apple").unwrap(), "red");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Memory and images
///
/// A record of a 16-byte key and a 100-byte value takes about 185 bytes in all, fewer where keys come in order or from a
/// snapshot. [`image`](StateMachine::image) takes a microsecond whatever the size. While it lives, memory grows by what is
/// written meanwhile and little more: for such records, below twice the bytes of the keys and values rewritten. When it
/// ends, the machine does nothing at that moment: an image that is written frees what only it needed on the way, and the
/// rest goes with the writes that follow, a leaf or two at a time.
///
/// Keys and values are copied when they are applied: none keeps the log's buffer that it came in.
#[derive(Debug, Default)]
pub struct KvStateMachine {
    map: Map,
}

/// What a [`KvCommand`] gives back.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "openraft", derive(serde::Serialize, serde::Deserialize))]
pub enum KvResponse {
    /// It is done.
    Done,
    /// The key is not there (any more).
    Deleted {
        /// Whether it was.
        existed: bool,
    },
    /// The key's value; `None` where there is no such key.
    Value(Option<Bytes>),
    /// The key was as expected and is now as wanted.
    Swapped,
    /// The key was not as expected, and nothing changed: this is the value it has.
    Differs(Option<Bytes>),
    /// The entries of a range, in the order of their keys.
    Entries(Vec<(Bytes, Bytes)>),
}

/// Why a [`KvStateMachine`] refuses.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KvError {
    /// A key or a value is longer than allowed. Nothing of the command was done.
    #[error("the {what} has {bytes} bytes, and at most {limit} are allowed")]
    TooLarge {
        /// Which: `key` or `value`.
        what: &'static str,
        /// How long it is.
        bytes: u64,
        /// How long it may be.
        limit: u64,
    },
    /// An entry of the log is no command of this machine.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A state that cannot be restored.
    #[error(transparent)]
    State(#[from] StateError),
}

impl KvStateMachine {
    /// The longest key, in bytes.
    pub const KEY_BYTES_MAX: usize = map::KEY_BYTES_MAX;
    /// The longest value, in bytes. The log has limits of its own, which may be lower.
    pub const VALUE_BYTES_MAX: usize = 256 << 20;

    /// A machine without keys.
    pub fn new() -> KvStateMachine {
        KvStateMachine::default()
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.map.entries().get_bytes(key)
    }

    /// The value of a key, lent.
    pub fn get_ref(&self, key: &[u8]) -> Option<&[u8]> {
        self.map.entries().get(key)
    }

    /// Whether the key is there.
    pub fn contains_key(&self, key: &[u8]) -> bool {
        self.map.entries().get(key).is_some()
    }

    /// The entries whose keys lie in a range, in order. A range that ends before it begins has none.
    pub fn range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> KvRange<'_> {
        KvRange::new(self.map.entries(), &range)
    }

    /// All entries, in the order of their keys.
    pub fn iter(&self) -> KvRange<'_> {
        KvRange(self.map.entries().iter())
    }

    /// Number of keys.
    pub fn len(&self) -> u64 {
        self.map.entries().len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of all keys and values.
    pub fn bytes(&self) -> u64 {
        self.map.entries().bytes()
    }

    fn step(&mut self, command: KvCommand) -> Result<KvResponse, KvError> {
        match command {
            KvCommand::Set { key, value } => {
                check_key(&key)?;
                check_value(&value)?;
                self.map.insert(&key, &value);
                Ok(KvResponse::Done)
            }
            KvCommand::Delete { key } => Ok(KvResponse::Deleted { existed: self.map.remove(&key) }),
            KvCommand::Get { key } => Ok(KvResponse::Value(self.get(&key))),
            KvCommand::Batch(ops) => self.batch(&ops),
            KvCommand::CompareAndSet { key, expected, new } => self.compare_and_set(&key, expected, new),
            KvCommand::Scan { start, end, limit } => {
                let end = end.map_or(Bound::Unbounded, Bound::Excluded);
                let entries = self.range((Bound::Included(start), end));
                Ok(KvResponse::Entries(copied(entries, limit)))
            }
        }
    }

    fn batch(&mut self, ops: &[KvOp]) -> Result<KvResponse, KvError> {
        ops.iter().try_for_each(check_op)?;
        for op in ops {
            match op {
                KvOp::Put { key, value } => self.map.insert(key, value),
                KvOp::Delete { key } => _ = self.map.remove(key),
            }
        }
        Ok(KvResponse::Done)
    }

    fn compare_and_set(
        &mut self,
        key: &[u8],
        expected: Option<Bytes>,
        new: Option<Bytes>,
    ) -> Result<KvResponse, KvError> {
        check_key(key)?;
        new.as_deref().map_or(Ok(()), check_value)?;
        if self.map.entries().get(key) != expected.as_deref() {
            return Ok(KvResponse::Differs(self.get(key)));
        }
        match new {
            Some(value) => self.map.insert(key, &value),
            None => _ = self.map.remove(key),
        }
        Ok(KvResponse::Swapped)
    }
}

/// Entries to keep.
fn copied(entries: KvRange<'_>, limit: u64) -> Vec<(Bytes, Bytes)> {
    let copy = |(key, value)| (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
    entries.take(usize::try_from(limit).unwrap_or(usize::MAX)).map(copy).collect()
}

fn check_key(key: &[u8]) -> Result<(), KvError> {
    check("key", key, KvStateMachine::KEY_BYTES_MAX)
}

fn check_value(value: &[u8]) -> Result<(), KvError> {
    check("value", value, KvStateMachine::VALUE_BYTES_MAX)
}

fn check(what: &'static str, string: &[u8], limit: usize) -> Result<(), KvError> {
    if string.len() <= limit {
        return Ok(());
    }
    Err(KvError::TooLarge { what, bytes: string.len() as u64, limit: limit as u64 })
}

fn check_op(op: &KvOp) -> Result<(), KvError> {
    match op {
        KvOp::Put { key, value } => check_key(key).and_then(|()| check_value(value)),
        KvOp::Delete { .. } => Ok(()),
    }
}

impl StateMachine for KvStateMachine {
    type Command = KvCommand;
    type Response = KvResponse;
    type Image = KvImage;
    type Error = KvError;

    const KIND: &'static str = "kv/1";

    async fn apply(&mut self, command: KvCommand) -> Result<KvResponse, KvError> {
        self.step(command)
    }

    async fn apply_batch(&mut self, commands: Vec<KvCommand>) -> Vec<Result<KvResponse, KvError>> {
        commands.into_iter().map(|command| self.step(command)).collect()
    }

    fn image(&self) -> KvImage {
        KvImage { image: self.map.image() }
    }

    async fn restore(&mut self, source: &mut (dyn Read + Send)) -> Result<(), KvError> {
        self.map = state::read(source, Self::KIND)?;
        Ok(())
    }

    fn encode(command: &KvCommand) -> Bytes {
        command::encode(command)
    }

    fn decode(bytes: &Bytes) -> Result<KvCommand, KvError> {
        Ok(command::decode(bytes)?)
    }
}

/// The entries of a range, in the order of their keys: see [`KvStateMachine::range`].
#[derive(Clone, Debug)]
pub struct KvRange<'a>(map::Range<'a>);

impl<'a> KvRange<'a> {
    fn new<K: AsRef<[u8]>>(entries: &'a Entries, range: &impl RangeBounds<K>) -> KvRange<'a> {
        KvRange(entries.range(range.start_bound().map(K::as_ref), range.end_bound().map(K::as_ref)))
    }
}

impl<'a> Iterator for KvRange<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }
}

/// A [`KvStateMachine`] at one moment, to be read or written while the machine goes on.
#[derive(Clone, Debug)]
pub struct KvImage {
    image: Image,
}

impl KvImage {
    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.image.entries().get_bytes(key)
    }

    /// The value of a key, lent.
    pub fn get_ref(&self, key: &[u8]) -> Option<&[u8]> {
        self.image.entries().get(key)
    }

    /// The entries whose keys lie in a range, in order. A range that ends before it begins has none.
    pub fn range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> KvRange<'_> {
        KvRange::new(self.image.entries(), &range)
    }

    /// All entries, in the order of their keys.
    pub fn iter(&self) -> KvRange<'_> {
        KvRange(self.image.entries().iter())
    }

    /// Number of keys.
    pub fn len(&self) -> u64 {
        self.image.entries().len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of all keys and values.
    pub fn bytes(&self) -> u64 {
        self.image.entries().bytes()
    }
}

impl StateImage for KvImage {
    fn write_to(self, sink: &mut dyn Write) -> io::Result<()> {
        state::write(self.image, sink)
    }
}
