//! The machine that the histories drive: a key-value store and a counter as one, as a user of the crate would put two
//! together. Most of its commands do not come to the same when they are applied twice, or in another order.
//!
//! State: one byte with the length of the counter's state, that state, then the store's to the end.

use std::fmt;
use std::io::{self, Read, Write};

use bytes::{BufMut, Bytes, BytesMut};
use ringwal::machine::{
    CounterCommand, CounterError, CounterImage, CounterStateMachine, KvCommand, KvError, KvImage, KvResponse,
    KvStateMachine,
};
use ringwal::{StateImage, StateMachine};

const KV: u8 = 1;
const COUNT: u8 = 2;

/// A store and a counter.
#[derive(Debug)]
pub(crate) struct Ledger {
    pub(crate) kv: KvStateMachine,
    pub(crate) counter: CounterStateMachine,
}

impl Ledger {
    pub(crate) fn new(initial: i64) -> Ledger {
        Ledger { kv: KvStateMachine::new(), counter: CounterStateMachine::new(initial) }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Kv(KvCommand),
    Count(CounterCommand),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Response {
    Kv(KvResponse),
    Count(i64),
}

#[derive(Debug)]
pub(crate) enum LedgerError {
    Kv(KvError),
    Count(CounterError),
    Io(io::Error),
    Unknown(Option<u8>),
}

impl fmt::Display for LedgerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LedgerError::Kv(error) => error.fmt(f),
            LedgerError::Count(error) => error.fmt(f),
            LedgerError::Io(error) => error.fmt(f),
            LedgerError::Unknown(tag) => write!(f, "no command of a ledger begins with {tag:?}"),
        }
    }
}

impl std::error::Error for LedgerError {}

pub(crate) struct Image {
    kv: KvImage,
    counter: CounterImage,
}

impl StateImage for Image {
    fn write_to(self, sink: &mut dyn Write) -> io::Result<()> {
        let mut count = Vec::new();
        self.counter.write_to(&mut count)?;
        sink.write_all(&[count.len() as u8])?;
        sink.write_all(&count)?;
        self.kv.write_to(sink)
    }
}

impl StateMachine for Ledger {
    type Command = Command;
    type Response = Response;
    type Image = Image;
    type Error = LedgerError;

    const KIND: &'static str = "ledger/1";

    async fn apply(&mut self, command: Command) -> Result<Response, LedgerError> {
        match command {
            Command::Kv(command) => self.kv.apply(command).await.map(Response::Kv).map_err(LedgerError::Kv),
            Command::Count(command) => {
                self.counter.apply(command).await.map(Response::Count).map_err(LedgerError::Count)
            }
        }
    }

    fn image(&self) -> Image {
        Image { kv: self.kv.image(), counter: self.counter.image() }
    }

    async fn restore(&mut self, source: &mut (dyn Read + Send)) -> Result<(), LedgerError> {
        let mut restored = Ledger::new(0);
        let mut length = [0];
        source.read_exact(&mut length).map_err(LedgerError::Io)?;
        let mut count = vec![0; usize::from(length[0])];
        source.read_exact(&mut count).map_err(LedgerError::Io)?;
        restored.counter.set_state(&count).await.map_err(LedgerError::Count)?;
        restored.kv.restore(source).await.map_err(LedgerError::Kv)?;
        *self = restored;
        Ok(())
    }

    fn encode(command: &Command) -> Bytes {
        let (tag, inner) = match command {
            Command::Kv(command) => (KV, KvStateMachine::encode(command)),
            Command::Count(command) => (COUNT, CounterStateMachine::encode(command)),
        };
        let mut bytes = BytesMut::with_capacity(1 + inner.len());
        bytes.put_u8(tag);
        bytes.put(inner);
        bytes.freeze()
    }

    fn decode(bytes: &Bytes) -> Result<Command, LedgerError> {
        match bytes.first() {
            Some(&KV) => KvStateMachine::decode(&bytes.slice(1..)).map(Command::Kv).map_err(LedgerError::Kv),
            Some(&COUNT) => {
                CounterStateMachine::decode(&bytes.slice(1..)).map(Command::Count).map_err(LedgerError::Count)
            }
            other => Err(LedgerError::Unknown(other.copied())),
        }
    }
}
