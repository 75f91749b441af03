//! A counter: the smallest machine whose commands can be refused.
//!
//! ```text
//! command   | 1: version | tag | number, zigzag: all but Get |
//! state     | "RWCN" | 1: version | count: i64, little-endian |
//! ```

use std::io::{self, Read, Write};

use bytes::{BufMut, Bytes, BytesMut};

use super::codec::{Decoder, put_number, unzigzag, zigzag};
use super::error::{CommandError, StateError};
use super::{StateImage, StateMachine};

/// The version of the encoding of commands.
const COMMAND_VERSION: u8 = 1;
/// How a state begins.
const MAGIC: [u8; 4] = *b"RWCN";
/// The version of the encoding of the state.
const STATE_VERSION: u8 = 1;
const STATE_BYTES: usize = 13;

const INCREMENT: u8 = 1;
const DECREMENT: u8 = 2;
const SET: u8 = 3;
const GET: u8 = 4;

/// A count that begins where it is told to.
///
/// The initial count is part of the state: a snapshot carries it, and a machine that is restored has the snapshot's
/// count, whatever it was made with.
///
/// ```
/// use ringwal::StateMachine;
/// use ringwal::machine::{CounterCommand, CounterStateMachine};
///
/// # /// These futures are ready at once.
/// # fn block_on<F: Future>(future: F) -> F::Output {
/// #     let mut context = std::task::Context::from_waker(std::task::Waker::noop());
/// #     match std::pin::pin!(future).poll(&mut context) {
/// #         std::task::Poll::Ready(value) => value,
/// #         std::task::Poll::Pending => unreachable!(),
/// #     }
/// # }
/// let mut counter = CounterStateMachine::new(10);
/// assert_eq!(block_on(counter.apply(CounterCommand::Increment(5))).unwrap(), 15);
/// assert!(block_on(counter.apply(CounterCommand::Increment(i64::MAX))).is_err()); // and nothing changed
/// assert_eq!(counter.count(), 15);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CounterStateMachine {
    count: i64,
}

/// What a [`CounterStateMachine`] does. Each gives back the count after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "openraft", derive(serde::Serialize, serde::Deserialize))]
pub enum CounterCommand {
    /// Adds to the count.
    Increment(i64),
    /// Subtracts from the count.
    Decrement(i64),
    /// Replaces the count.
    Set(i64),
    /// Leaves the count as it is.
    Get,
}

/// Why a [`CounterStateMachine`] refuses.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CounterError {
    /// The result does not fit 64 bits with a sign. The count is as it was.
    #[error("the count {count} would overflow: {command:?} is refused")]
    Overflow {
        /// The count, before and after.
        count: i64,
        /// The command that is refused.
        command: CounterCommand,
    },
    /// An entry of the log is no command of this machine.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A state that cannot be restored.
    #[error(transparent)]
    State(#[from] StateError),
}

impl CounterStateMachine {
    /// A counter that begins with this count.
    pub fn new(initial: i64) -> CounterStateMachine {
        CounterStateMachine { count: initial }
    }

    /// The count.
    pub fn count(&self) -> i64 {
        self.count
    }

    fn step(&mut self, command: CounterCommand) -> Result<i64, CounterError> {
        let count = match command {
            CounterCommand::Increment(by) => self.count.checked_add(by),
            CounterCommand::Decrement(by) => self.count.checked_sub(by),
            CounterCommand::Set(count) => Some(count),
            CounterCommand::Get => Some(self.count),
        };
        self.count = count.ok_or(CounterError::Overflow { count: self.count, command })?;
        Ok(self.count)
    }
}

impl StateMachine for CounterStateMachine {
    type Command = CounterCommand;
    type Response = i64;
    type Image = CounterImage;
    type Error = CounterError;

    const KIND: &'static str = "counter/1";

    async fn apply(&mut self, command: CounterCommand) -> Result<i64, CounterError> {
        self.step(command)
    }

    fn image(&self) -> CounterImage {
        CounterImage { count: self.count }
    }

    async fn restore(&mut self, source: &mut (dyn Read + Send)) -> Result<(), CounterError> {
        self.count = read_state(source)?;
        Ok(())
    }

    fn encode(command: &CounterCommand) -> Bytes {
        let mut out = BytesMut::with_capacity(12);
        let (tag, number) = match *command {
            CounterCommand::Increment(by) => (INCREMENT, Some(by)),
            CounterCommand::Decrement(by) => (DECREMENT, Some(by)),
            CounterCommand::Set(count) => (SET, Some(count)),
            CounterCommand::Get => (GET, None),
        };
        out.put_slice(&[COMMAND_VERSION, tag]);
        number.into_iter().for_each(|number| put_number(&mut out, zigzag(number)));
        out.freeze()
    }

    fn decode(bytes: &Bytes) -> Result<CounterCommand, CounterError> {
        let (mut decoder, tag) = Decoder::begin(bytes, COMMAND_VERSION)?;
        let command = match tag {
            INCREMENT => CounterCommand::Increment(unzigzag(decoder.number()?)),
            DECREMENT => CounterCommand::Decrement(unzigzag(decoder.number()?)),
            SET => CounterCommand::Set(unzigzag(decoder.number()?)),
            GET => CounterCommand::Get,
            tag => return Err(CommandError::Unknown { tag }.into()),
        };
        decoder.end()?;
        Ok(command)
    }
}

/// The count of a state.
fn read_state(source: &mut (dyn Read + Send)) -> Result<i64, StateError> {
    // One byte more than there should be, so that a padded source is noticed.
    let mut state = Vec::with_capacity(STATE_BYTES + 1);
    source.take(STATE_BYTES as u64 + 1).read_to_end(&mut state)?;
    if !state.starts_with(&MAGIC) {
        return Err(StateError::Foreign { expected: CounterStateMachine::KIND });
    }
    match state[4..] {
        [STATE_VERSION, ref count @ ..] => count.try_into().map(i64::from_le_bytes).map_err(|_| {
            let reason = if state.len() < STATE_BYTES { "it ends too early" } else { "it goes on after its end" };
            StateError::Damaged { offset: state.len().min(STATE_BYTES) as u64, reason }
        }),
        [found, ..] => Err(StateError::Version { found, known: STATE_VERSION }),
        [] => Err(StateError::Damaged { offset: 4, reason: "it ends too early" }),
    }
}

/// The count of a [`CounterStateMachine`] at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CounterImage {
    count: i64,
}

impl CounterImage {
    /// The count.
    pub fn count(&self) -> i64 {
        self.count
    }
}

impl StateImage for CounterImage {
    fn write_to(self, sink: &mut dyn Write) -> io::Result<()> {
        let mut state = [0; STATE_BYTES];
        state[..4].copy_from_slice(&MAGIC);
        state[4] = STATE_VERSION;
        state[5..].copy_from_slice(&self.count.to_le_bytes());
        sink.write_all(&state)
    }
}
