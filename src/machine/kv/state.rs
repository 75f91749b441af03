//! The key-value machine's state as bytes.
//!
//! ```text
//!   0        4            5                 13                  21
//!   | "RWKV" | 1: version | keys: u64, LE   | bytes of all keys | record ... |
//!                                           | and values: u64   |
//!
//!   record   | key bytes: number | value bytes: number | key | value |       (numbers: see `codec`)
//! ```
//!
//! Keys ascend. So equal states are equal bytes, whatever led to them. The counts say where the state ends: a source that
//! ends before, or goes on after, is damaged. Flipped bits within a record are for the snapshot's checksums to find.
//!
//! No length is believed before the bytes are there: reading allocates at most [`PIECE_BYTES`] ahead.

use std::io::{self, BufReader, Read, Write};

use super::KvStateMachine;
use crate::machine::codec::{number_at, put_number};
use crate::machine::error::StateError;
use crate::machine::map::{Builder, Image, KEY_BYTES_MAX, Map};

/// How a state begins.
const MAGIC: [u8; 4] = *b"RWKV";
/// The version of the encoding.
const VERSION: u8 = 1;
const HEAD_BYTES: usize = 21;

/// What is written and read at once.
const PIECE_BYTES: usize = 64 << 10;

/// Writes what an image shows.
pub(crate) fn write(image: Image, sink: &mut dyn Write) -> io::Result<()> {
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    piece.extend_from_slice(&MAGIC);
    piece.push(VERSION);
    piece.extend_from_slice(&image.entries().len().to_le_bytes());
    piece.extend_from_slice(&image.entries().bytes().to_le_bytes());
    image.drain(|key, value| {
        put_number(&mut piece, key.len() as u64);
        put_number(&mut piece, value.len() as u64);
        put(&mut piece, key, sink)?;
        put(&mut piece, value, sink)
    })?;
    sink.write_all(&piece)
}

/// Appends to a piece, which goes to the sink when it is full. What is larger than a piece is not copied.
fn put(piece: &mut Vec<u8>, string: &[u8], sink: &mut dyn Write) -> io::Result<()> {
    if piece.len() + string.len() > PIECE_BYTES {
        sink.write_all(piece)?;
        piece.clear();
    }
    if string.len() > PIECE_BYTES {
        return sink.write_all(string);
    }
    piece.extend_from_slice(string);
    Ok(())
}

/// Reads a map from a source that ends with it.
pub(crate) fn read(source: &mut (dyn Read + Send), kind: &'static str) -> Result<Map, StateError> {
    let mut source = Source { inner: BufReader::with_capacity(PIECE_BYTES, source), offset: 0 };
    let (keys, bytes) = read_head(&mut source, kind)?;
    let mut builder = Builder::default();
    let (mut key, mut value, mut last) = (Vec::new(), Vec::new(), None::<Vec<u8>>);
    let mut left = bytes;
    for _ in 0..keys {
        let (key_bytes, value_bytes) = (source.number()?, source.number()?);
        let together = key_bytes.checked_add(value_bytes).filter(|&together| together <= left);
        left -= together.ok_or(source.damaged("a record is longer than what is left"))?;
        if key_bytes > KEY_BYTES_MAX as u64 {
            return Err(source.damaged("a key is longer than any can be"));
        }
        if value_bytes > KvStateMachine::VALUE_BYTES_MAX as u64 {
            return Err(source.damaged("a value is longer than any can be"));
        }
        source.fill(&mut key, key_bytes)?;
        if last.as_ref().is_some_and(|last| *last >= key) {
            return Err(source.damaged("keys do not ascend"));
        }
        source.fill(&mut value, value_bytes)?;
        builder.push(&key, &value);
        let last = last.get_or_insert_default();
        std::mem::swap(last, &mut key);
    }
    if left > 0 {
        return Err(source.damaged("it holds less than it says"));
    }
    source.end()?;
    Ok(builder.finish())
}

fn read_head<R: Read>(source: &mut Source<R>, kind: &'static str) -> Result<(u64, u64), StateError> {
    let mut head = Vec::new();
    source.inner.by_ref().take(HEAD_BYTES as u64).read_to_end(&mut head)?;
    source.offset = head.len() as u64;
    if !head.starts_with(&MAGIC) {
        return Err(StateError::Foreign { expected: kind });
    }
    match head.get(4) {
        Some(&found) if found != VERSION => Err(StateError::Version { found, known: VERSION }),
        Some(_) if head.len() == HEAD_BYTES => {
            let number = |at| u64::from_le_bytes(std::array::from_fn(|byte| head[at + byte]));
            Ok((number(5), number(13)))
        }
        _ => Err(source.damaged("it ends within its head")),
    }
}

/// A source and the place in it.
struct Source<R> {
    inner: BufReader<R>,
    offset: u64,
}

impl<R: Read> Source<R> {
    fn damaged(&self, reason: &'static str) -> StateError {
        StateError::Damaged { offset: self.offset, reason }
    }

    fn byte(&mut self) -> Result<Option<u8>, StateError> {
        let mut byte = [0];
        loop {
            match self.inner.read(&mut byte) {
                Ok(0) => return Ok(None),
                Ok(_) => {
                    self.offset += 1;
                    return Ok(Some(byte[0]));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn number(&mut self) -> Result<u64, StateError> {
        let (mut bytes, mut length) = ([0; 10], 0);
        while length < bytes.len() {
            bytes[length] = self.byte()?.ok_or(self.damaged("it ends within a number"))?;
            length += 1;
            if bytes[length - 1] & 0x80 == 0 {
                break;
            }
        }
        number_at(&bytes[..length]).map(|(number, _)| number).map_err(|why| self.damaged(why.reason()))
    }

    /// Fills a buffer with exactly so many bytes; room is made as they come.
    fn fill(&mut self, buffer: &mut Vec<u8>, length: u64) -> Result<(), StateError> {
        buffer.clear();
        let mut left = length;
        while left > 0 {
            let piece = left.min(PIECE_BYTES as u64);
            let taken = self.inner.by_ref().take(piece).read_to_end(buffer)? as u64;
            self.offset += taken;
            if taken < piece {
                return Err(self.damaged("it ends within a record"));
            }
            left -= piece;
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), StateError> {
        match self.byte()? {
            Some(_) => Err(self.damaged("it goes on after its end")),
            None => Ok(()),
        }
    }
}
