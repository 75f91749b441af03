//! Entries and hard state as bytes: a version, then the value in postcard's encoding of its serde form.
//!
//! Invariant: the same value gives the same bytes in every version of this crate that writes [`VERSION`]; a test holds
//! them still. Does not know the log, nor where the bytes lie.

use bytes::{BufMut, Bytes, BytesMut};
use postcard::ser_flavors::Flavor;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The version of the encoding.
const VERSION: u8 = 1;

/// How much the buffer that values are encoded in grows by, at least: entries that were encoded one after the other share
/// their memory.
const BUFFER_BYTES: usize = 16 << 10;

/// Why bytes of the log are no value of the type that is read, or a value cannot be encoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// A newer version wrote the bytes.
    #[error("it has version {found}, and this program knows version {known}: a newer one wrote it")]
    Version {
        /// The version found.
        found: u8,
        /// The one known here.
        known: u8,
    },
    /// The bytes are not of that type, or the value's serde form is none that postcard can hold: one without a length, or
    /// that wants to see its type in the bytes.
    #[error("it is not of the type that this program has for it ({0}): was the node's type configuration changed?")]
    Malformed(String),
    /// The bytes go on after the value.
    #[error(
        "{bytes} bytes follow the value: it is not of the type that this program has for it; was the node's type configuration changed?"
    )]
    Trailing {
        /// How many.
        bytes: usize,
    },
}

impl From<postcard::Error> for CodecError {
    fn from(error: postcard::Error) -> CodecError {
        CodecError::Malformed(error.to_string())
    }
}

/// Encodes a value into the spare room of a buffer. What the buffer gave out before keeps its memory alive.
pub(super) fn encode<T: Serialize>(value: &T, buffer: &mut BytesMut) -> Result<Bytes, CodecError> {
    if buffer.capacity() < 256 {
        buffer.reserve(BUFFER_BYTES);
    }
    buffer.put_u8(VERSION);
    match postcard::serialize_with_flavor(value, Into(buffer)) {
        Ok(()) => Ok(buffer.split().freeze()),
        Err(error) => {
            buffer.clear();
            Err(error.into())
        }
    }
}

/// The value that [`encode`] made these bytes of.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let body = match bytes {
        [VERSION, body @ ..] => body,
        [found, ..] => return Err(CodecError::Version { found: *found, known: VERSION }),
        [] => return Err(CodecError::Malformed("there is nothing".into())),
    };
    match postcard::take_from_bytes(body)? {
        (value, []) => Ok(value),
        (_, rest) => Err(CodecError::Trailing { bytes: rest.len() }),
    }
}

/// Where postcard writes to.
struct Into<'a>(&'a mut BytesMut);

impl Flavor for Into<'_> {
    type Output = ();

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.put_u8(byte);
        Ok(())
    }

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_encoded_is_decoded_and_nothing_else() {
        let mut buffer = BytesMut::new();
        let value = (7u64, String::from("seven"), Some(vec![1u8, 2]));
        let bytes = encode(&value, &mut buffer).unwrap();
        assert_eq!(decode::<(u64, String, Option<Vec<u8>>)>(&bytes).unwrap(), value);
        for end in 0..bytes.len() {
            assert!(matches!(decode::<(u64, String, Option<Vec<u8>>)>(&bytes[..end]), Err(CodecError::Malformed(_))));
        }
        let longer = [&bytes[..], b"xy"].concat();
        let refused = decode::<(u64, String, Option<Vec<u8>>)>(&longer);
        assert_eq!(refused, Err(CodecError::Trailing { bytes: 2 }));
        let newer = [&[2], &bytes[1..]].concat();
        let refused = decode::<(u64, String, Option<Vec<u8>>)>(&newer);
        assert_eq!(refused, Err(CodecError::Version { found: 2, known: 1 }));
    }

    #[test]
    fn a_value_that_cannot_be_encoded_leaves_no_bytes_for_the_next_one() {
        let mut buffer = BytesMut::new();
        let clean = encode(&5u64, &mut buffer).unwrap();
        assert!(matches!(encode(&(1u64, Endless), &mut buffer), Err(CodecError::Malformed(_))));
        assert_eq!(encode(&5u64, &mut buffer).unwrap(), clean);
    }

    /// Cannot be encoded.
    struct Endless;

    impl Serialize for Endless {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("it has no end"))
        }
    }

    #[test]
    fn values_encoded_one_after_the_other_share_their_memory() {
        let mut buffer = BytesMut::new();
        let first = encode(&1u64, &mut buffer).unwrap();
        let second = encode(&2u64, &mut buffer).unwrap();
        assert_eq!(first.as_ptr().wrapping_add(first.len()), second.as_ptr());
    }
}
