//! The pieces of encoded commands: a version, a tag, numbers and byte strings.
//!
//! ```text
//!   0        1        2
//!   | version | tag    | fields ...
//!
//!   number    LEB128: seven bits a byte, the lowest first, the high bit where more follow; the shortest form only
//!   string    number of bytes, then the bytes
//!   optional  0, or the number of bytes plus one, then the bytes
//! ```
//!
//! Every value has one encoding, so what decodes comes out byte for byte the same when it is encoded once more. Pure;
//! decoding allocates nothing: strings are slices of the input.

use bytes::{BufMut, Bytes, BytesMut};

use super::error::CommandError;

/// The longest encoding of a number.
const NUMBER_BYTES_MAX: usize = 10;

/// Writes a number.
pub(crate) fn put_number(out: &mut impl BufMut, mut number: u64) {
    while number >= 0x80 {
        out.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    out.put_u8(number as u8);
}

/// A signed number with small numbers of either sign first.
pub(crate) fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

/// The inverse of [`zigzag`].
pub(crate) fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

/// Writes a string.
pub(crate) fn put_string(out: &mut BytesMut, string: &[u8]) {
    put_number(out, string.len() as u64);
    out.put_slice(string);
}

/// Writes a string or its absence.
pub(crate) fn put_optional(out: &mut BytesMut, string: Option<&Bytes>) {
    put_number(out, string.map_or(0, |string| string.len() as u64 + 1));
    out.put_slice(string.map_or(&[], |string| string));
}

/// Why a number cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoNumber {
    Ends,
    TooLarge,
    NotShortest,
}

impl NoNumber {
    pub(crate) fn reason(self) -> &'static str {
        match self {
            NoNumber::Ends => "it ends within a number",
            NoNumber::TooLarge => "a number is too large",
            NoNumber::NotShortest => "a number is not written in the shortest way",
        }
    }
}

/// The number at the beginning of some bytes, and how many it takes.
pub(crate) fn number_at(bytes: &[u8]) -> Result<(u64, usize), NoNumber> {
    let mut number = 0;
    for (at, &byte) in bytes.iter().enumerate().take(NUMBER_BYTES_MAX) {
        let bits = u64::from(byte & 0x7f);
        if at == NUMBER_BYTES_MAX - 1 && byte > 1 {
            return Err(NoNumber::TooLarge);
        }
        number |= bits << (7 * at);
        if byte & 0x80 == 0 {
            let is_shortest = byte != 0 || at == 0;
            return if is_shortest { Ok((number, at + 1)) } else { Err(NoNumber::NotShortest) };
        }
    }
    Err(NoNumber::Ends)
}

/// Takes a command apart.
pub(crate) struct Decoder<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl<'a> Decoder<'a> {
    /// A command of the version known here, and its tag.
    pub(crate) fn begin(bytes: &'a Bytes, known: u8) -> Result<(Decoder<'a>, u8), CommandError> {
        let malformed = |offset| CommandError::Malformed { offset, reason: "it ends before its tag" };
        let &found = bytes.first().ok_or(malformed(0))?;
        if found != known {
            return Err(CommandError::Version { found, known });
        }
        let &tag = bytes.get(1).ok_or(malformed(1))?;
        Ok((Decoder { bytes, at: 2 }, tag))
    }

    fn malformed<T>(&self, reason: &'static str) -> Result<T, CommandError> {
        Err(CommandError::Malformed { offset: self.at, reason })
    }

    pub(crate) fn byte(&mut self) -> Result<u8, CommandError> {
        let Some(&byte) = self.bytes.get(self.at) else { return self.malformed("it ends too early") };
        self.at += 1;
        Ok(byte)
    }

    pub(crate) fn number(&mut self) -> Result<u64, CommandError> {
        match number_at(&self.bytes[self.at..]) {
            Ok((number, length)) => {
                self.at += length;
                Ok(number)
            }
            Err(why) => self.malformed(why.reason()),
        }
    }

    fn take(&mut self, length: u64) -> Result<Bytes, CommandError> {
        let left = self.bytes.len() - self.at;
        match usize::try_from(length) {
            Ok(length) if length <= left => {
                self.at += length;
                Ok(self.bytes.slice(self.at - length..self.at))
            }
            _ => self.malformed("it ends within a string"),
        }
    }

    pub(crate) fn string(&mut self) -> Result<Bytes, CommandError> {
        let length = self.number()?;
        self.take(length)
    }

    pub(crate) fn optional(&mut self) -> Result<Option<Bytes>, CommandError> {
        match self.number()?.checked_sub(1) {
            Some(length) => self.take(length).map(Some),
            None => Ok(None),
        }
    }

    /// All that is left: the last field of a command.
    pub(crate) fn rest(self) -> Bytes {
        self.bytes.slice(self.at..)
    }

    /// Bytes that are left.
    pub(crate) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The command must end here.
    pub(crate) fn end(self) -> Result<(), CommandError> {
        if self.left() > 0 { self.malformed("it goes on after its end") } else { Ok(()) }
    }
}
