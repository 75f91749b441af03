//! What the clients did and what they were told: a list of operations for each key.
//!
//! Values are written once in a whole run, so a read names the write that it saw. Times are nanoseconds of one monotonic
//! clock, taken before a request leaves and after its answer is there. An operation whose outcome nobody told stays open:
//! it may take effect at any time from its start on, or never. One that was told not to have been applied is not in here;
//! if its value is ever seen, it is one that nobody wrote.

use std::fmt;
use std::io::{self, Write};

use serde::Serialize;

/// A key of the run: they are numbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub(crate) struct Key(pub(crate) u64);

impl Key {
    /// As the store has it: in the order of the numbers.
    pub(crate) fn bytes(self) -> Vec<u8> {
        self.to_string().into_bytes()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key-{:09}", self.0)
    }
}

/// A value of the run: numbered, and none written twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub(crate) struct Value(pub(crate) u64);

impl Value {
    /// Bytes that no client ever wrote.
    pub(crate) const FOREIGN: Value = Value(u64::MAX);

    /// As the store has it: the number, and bytes that follow from it up to a length that does.
    pub(crate) fn bytes(self) -> Vec<u8> {
        const FILLER_BYTES_MAX: u64 = 300;
        let head = format!("{}:", self.0);
        let filler = (0..self.0.wrapping_mul(7919) % FILLER_BYTES_MAX).map(|at| (self.0.wrapping_add(at) % 251) as u8);
        head.into_bytes().into_iter().chain(filler).collect()
    }

    /// The value that is stored as these bytes; [`Value::FOREIGN`] if they are any others.
    pub(crate) fn parse(bytes: &[u8]) -> Value {
        let head = bytes.split(|byte| *byte == b':').next().unwrap_or_default();
        let number = std::str::from_utf8(head).ok().and_then(|text| text.parse().ok());
        number.map(Value).filter(|value| value.bytes() == bytes).unwrap_or(Value::FOREIGN)
    }
}

/// What a client asks of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Action {
    /// Its value, alone or as part of a scan.
    Get,
    /// That it has this value.
    Set(Value),
    /// That it is not there.
    Delete,
    /// That it has a new value (or none) if it has the one expected (or none).
    Swap {
        /// What it has to have.
        expected: Option<Value>,
        /// What it gets.
        new: Option<Value>,
    },
}

/// What the client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// The value, or that there is none.
    Found(Option<Value>),
    /// It is set.
    Set,
    /// It is gone.
    Deleted {
        /// Whether it was there.
        existed: bool,
    },
    /// Whether it was as expected, and is now as wanted.
    Swapped(bool),
}

/// One operation on one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Operation {
    /// Who asked.
    pub(crate) client: u32,
    /// For what.
    pub(crate) action: Action,
    /// Before the request left.
    pub(crate) start_ns: u64,
    /// After the answer was there, and the answer. `None`: the outcome is not known.
    pub(crate) end: Option<(u64, Answer)>,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |ns: u64| ns as f64 / 1e6;
        write!(f, "{:>12.3} ms", ms(self.start_ns))?;
        match self.end {
            Some((end_ns, answer)) => write!(f, " to {:>12.3} ms  {:?} -> {answer:?}", ms(end_ns), self.action)?,
            None => write!(f, " to    (unknown)  {:?}", self.action)?,
        }
        write!(f, "  (client {})", self.client)
    }
}

impl Operation {
    /// Whether both were answered, and each had begun before the other's answer was there.
    fn overlapped(&self, other: &Operation) -> bool {
        let (Some((end_ns, _)), Some((other_end_ns, _))) = (self.end, other.end) else { return false };
        self.start_ns <= other_end_ns && other.start_ns <= end_ns
    }

    /// Whether two clients were at the key at the same time, and one of them to change it: what came of it hung on who
    /// was first. What is still open is not counted: it overlaps with all that came after it, which says little.
    fn contended_with(&self, other: &Operation) -> bool {
        let writes = self.action != Action::Get || other.action != Action::Get;
        writes && self.client != other.client && self.overlapped(other)
    }
}

/// How many of the operations on a key met another client at it.
pub(crate) fn contended(operations: &[Operation]) -> usize {
    operations.iter().filter(|one| operations.iter().any(|other| one.contended_with(other))).count()
}

/// Writes the history of a key, one line of JSON for each operation.
///
/// # Errors
///
/// The writer's own.
pub(crate) fn write(out: &mut impl Write, key: Key, operations: &[Operation]) -> io::Result<()> {
    #[derive(Serialize)]
    struct Line<'a> {
        key: Key,
        #[serde(flatten)]
        operation: &'a Operation,
    }
    for operation in operations {
        serde_json::to_writer(&mut *out, &Line { key, operation })?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_from_their_bytes_and_no_others_do() {
        for number in [0, 1, 9, 10, 299, 123_456_789] {
            assert_eq!(Value::parse(&Value(number).bytes()), Value(number));
        }
        assert!(Key(9).bytes() < Key(10).bytes());
        let mut damaged = Value(17).bytes();
        *damaged.last_mut().unwrap() ^= 1;
        for other in [&b""[..], b":", b"17", b"x:", &damaged] {
            assert_eq!(Value::parse(other), Value::FOREIGN);
        }
    }

    #[test]
    fn two_clients_contend_where_both_are_at_the_key_and_one_of_them_changes_it() {
        let set = |client, start_ns, end_ns| {
            let end = Some((end_ns, Answer::Set));
            Operation { client, action: Action::Set(Value(1)), start_ns, end }
        };
        let get = |client, start_ns, end_ns| {
            let end = Some((end_ns, Answer::Found(None)));
            Operation { client, action: Action::Get, start_ns, end }
        };
        let open = Operation { end: None, ..set(9, 0, 0) };
        assert_eq!(contended(&[set(1, 0, 5), get(2, 5, 6)]), 2);
        assert_eq!(contended(&[set(1, 0, 9), get(2, 1, 2), set(3, 3, 4), get(4, 20, 21)]), 3);
        // One after the other; one client alone; two that only look; one whose end nobody knows.
        assert_eq!(contended(&[set(1, 0, 5), set(2, 6, 7)]), 0);
        assert_eq!(contended(&[set(1, 0, 5), get(1, 0, 5)]), 0);
        assert_eq!(contended(&[get(1, 0, 5), get(2, 0, 5)]), 0);
        assert_eq!(contended(&[open, get(2, 0, 5), set(3, 6, 7)]), 0);
    }

    #[test]
    fn a_line_of_the_file_tells_the_whole_operation() {
        let action = Action::Swap { expected: None, new: Some(Value(3)) };
        let operation = Operation { client: 7, action, start_ns: 5, end: Some((9, Answer::Swapped(true))) };
        let mut out = Vec::new();
        write(&mut out, Key(2), &[operation]).unwrap();
        let line: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(line["key"], 2);
        assert_eq!(line["action"]["swap"]["new"], 3);
        assert_eq!(line["end"][1]["swapped"], true);
    }
}
