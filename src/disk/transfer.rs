//! Where a write goes on after the kernel did only a part of it.
//!
//! Invariants: every attempt starts at a multiple of the alignment, counted from the start of the transfer, so that a
//! short direct write is never followed by one that the kernel refuses as unaligned; a transfer ends after finitely
//! many attempts that get nowhere. Pure: it knows no file, no buffer and no driver.

use std::io;
use std::ops::Range;

/// Attempts in a row that may get nowhere before the transfer is given up.
const STUCK_ATTEMPTS_MAX: u32 = 8;

/// How far a write of known length has come.
#[derive(Clone, Debug)]
pub(crate) struct Transfer {
    bytes_done: usize,
    bytes: usize,
    alignment: usize,
    stuck_attempts: u32,
}

impl Transfer {
    /// A transfer of `bytes` bytes whose attempts start at multiples of `alignment`.
    pub(crate) fn new(bytes: usize, alignment: usize) -> Transfer {
        debug_assert!(alignment > 0);
        Transfer { bytes_done: 0, bytes, alignment, stuck_attempts: 0 }
    }

    /// What is left to write; `None` when all is done.
    pub(crate) fn rest(&self) -> Option<Range<usize>> {
        (self.bytes_done < self.bytes).then_some(self.bytes_done..self.bytes)
    }

    /// Takes the outcome of an attempt to write the rest. An error is final, except for an interruption, after which
    /// the same bytes are written again.
    pub(crate) fn advance(&mut self, outcome: io::Result<usize>) -> io::Result<()> {
        match outcome {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
            Ok(0) => Err(io::Error::new(io::ErrorKind::WriteZero, "the device took nothing of a write")),
            Ok(count) => self.step(count),
        }
    }

    fn step(&mut self, count: usize) -> io::Result<()> {
        let reached = self.bytes.min(self.bytes_done.saturating_add(count));
        let next = if reached == self.bytes { reached } else { reached - reached % self.alignment };
        // Less than one block was written: the same block once more, but not for ever.
        self.stuck_attempts = if next > self.bytes_done { 0 } else { self.stuck_attempts + 1 };
        if self.stuck_attempts > STUCK_ATTEMPTS_MAX {
            return Err(io::Error::new(io::ErrorKind::WriteZero, "the device takes no whole block of a write"));
        }
        self.bytes_done = next;
        Ok(())
    }
}

/// Writes all of `buf` through `attempt`, which is given the bytes still to write and their distance from the start.
pub(super) fn write_all(
    buf: &[u8],
    alignment: usize,
    mut attempt: impl FnMut(&[u8], u64) -> io::Result<usize>,
) -> io::Result<()> {
    let mut transfer = Transfer::new(buf.len(), alignment);
    while let Some(rest) = transfer.rest() {
        let distance = rest.start as u64;
        transfer.advance(attempt(&buf[rest], distance))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that takes as much of each write as `counts` says, refusing what is not aligned, as direct I/O does.
    fn write_in_parts(buf: &[u8], counts: &[usize]) -> (Vec<u8>, io::Result<()>) {
        let (mut file, mut counts) = (vec![0; buf.len()], counts.iter());
        let result = write_all(buf, 512, |bytes, at| {
            let at = at as usize;
            if !at.is_multiple_of(512) || !bytes.len().is_multiple_of(512) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let count = counts.next().copied().unwrap_or(usize::MAX).min(bytes.len());
            file[at..at + count].copy_from_slice(&bytes[..count]);
            Ok(count)
        });
        (file, result)
    }

    #[test]
    fn a_short_write_goes_on_at_a_block_whatever_the_count() {
        let data: Vec<u8> = (0..4096u32).map(|n| (n % 251) as u8).collect();
        for first in 1..4096 {
            let (file, result) = write_in_parts(&data, &[first, 700]);
            result.unwrap_or_else(|error| panic!("a first count of {first}: {error}"));
            assert!(file == data, "a first count of {first}");
        }
    }

    #[test]
    fn a_write_that_gets_nowhere_ends_in_an_error() {
        let data = vec![1; 1024];
        let (_, nothing) = write_in_parts(&data, &[0]);
        assert_eq!(nothing.unwrap_err().kind(), io::ErrorKind::WriteZero);
        let (_, always_too_little) = write_in_parts(&data, &[100; 1000]);
        assert_eq!(always_too_little.unwrap_err().kind(), io::ErrorKind::WriteZero);
    }

    #[test]
    fn an_interruption_is_no_failure_and_an_error_is_final() {
        let mut outcomes = vec![Err(io::ErrorKind::StorageFull), Ok(512), Err(io::ErrorKind::Interrupted)];
        let mut calls = 0;
        let result = write_all(&[0; 1024], 512, |_, _| {
            calls += 1;
            outcomes.pop().expect("no attempt after the error").map_err(io::Error::from)
        });
        assert_eq!((result.unwrap_err().kind(), calls), (io::ErrorKind::StorageFull, 3));
    }

    #[test]
    fn nothing_to_write_is_no_attempt() {
        write_all(&[], 512, |_, _| unreachable!()).unwrap();
    }
}
