//! Tells a snapshot file that arrives from its first byte on from anything else, piece by piece. Pure.
//!
//! A *piece* is the header, a chunk with its header, or the end of the file from the trailer on: what can be verified
//! alone. Where one ends is where an interrupted transfer goes on. What a chunk decompresses to is not looked at.
//!
//! Invariant: no more is held than one piece, whose size is checked before it is waited for; what stands before the
//! present piece is never asked for again.

use std::sync::Arc;

use crate::format::snapshot::{
    CHUNK_HEADER_BYTES, ChunkHeader, HEADER_BYTES, SnapshotDefect, SnapshotHeader, SnapshotIndex,
};

/// A file on its way.
#[derive(Debug, Default)]
pub(super) struct Arrival {
    /// What there is of the present piece.
    piece: Vec<u8>,
    /// Size of all pieces before it.
    offset: u64,
    /// What it is.
    stage: Stage,
    /// What follows it, once it is whole.
    after: Option<Stage>,
    index: SnapshotIndex,
    /// The last chunk was not full.
    is_short: bool,
}

/// What is arriving.
#[derive(Debug, Default)]
enum Stage {
    #[default]
    Header,
    /// A chunk's header, or the beginning of the end.
    Between(Arc<SnapshotHeader>),
    Chunk(Arc<SnapshotHeader>, ChunkHeader),
    /// What the end must be.
    End(Vec<u8>),
    Over,
}

/// What came of some bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Arrived {
    /// The piece is not whole yet.
    Part,
    /// The header is whole.
    Header(Arc<SnapshotHeader>),
    /// Another piece is whole.
    Piece,
}

impl Arrival {
    /// Where the present piece begins: everything before is verified.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether the whole file has arrived.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }

    /// The present piece: whole once [`Arrival::take`] says so.
    pub(super) fn piece(&self) -> &[u8] {
        &self.piece
    }

    /// Goes on to the next piece, once the present one is whole and was stored.
    pub(super) fn next(&mut self) {
        if let Stage::Chunk(header, chunk) = &self.stage {
            self.index.push(chunk);
            self.is_short = chunk.raw_bytes < header.chunk_bytes;
        }
        if let Some(after) = self.after.take() {
            self.stage = after;
        }
        self.offset += self.piece.len() as u64;
        self.piece.clear();
    }

    /// Forgets what there is of the present piece: it will arrive from its start again.
    pub(super) fn drop_piece(&mut self) {
        self.piece.clear();
        self.after = None;
        if let Stage::Chunk(header, _) = &self.stage {
            self.stage = Stage::Between(header.clone());
        }
    }

    /// Takes bytes, up to the end of the present piece at most; says how many, and what came of it.
    ///
    /// # Errors
    ///
    /// What is wrong with the piece; forget it then.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<(usize, Arrived), SnapshotDefect> {
        let mut taken = 0;
        loop {
            let missing = self.bytes_to_judge() - self.piece.len();
            let now = missing.min(bytes.len() - taken);
            self.piece.extend_from_slice(&bytes[taken..taken + now]);
            taken += now;
            if now < missing {
                return Ok((taken, Arrived::Part));
            }
            if let Some(arrived) = self.judge()? {
                return Ok((taken, arrived));
            }
        }
    }

    /// How much of the present piece must be there before more can be said of it.
    fn bytes_to_judge(&self) -> usize {
        match &self.stage {
            Stage::Header => HEADER_BYTES,
            Stage::Between(_) => CHUNK_HEADER_BYTES,
            Stage::Chunk(_, chunk) => CHUNK_HEADER_BYTES + chunk.stored_bytes as usize,
            Stage::End(end) => end.len(),
            Stage::Over => 1,
        }
    }

    /// Judges what was waited for; `None` where it only tells how much more to wait for.
    fn judge(&mut self) -> Result<Option<Arrived>, SnapshotDefect> {
        match &self.stage {
            Stage::Header => {
                let header = Arc::new(SnapshotHeader::decode(&self.piece)?);
                self.after = Some(Stage::Between(header.clone()));
                Ok(Some(Arrived::Header(header)))
            }
            Stage::Between(header) => {
                self.stage = self.what_follows(header)?;
                Ok(None)
            }
            Stage::Chunk(header, chunk) if chunk.matches(&self.piece[CHUNK_HEADER_BYTES..], header.salt) => {
                self.after = Some(Stage::Between(header.clone()));
                Ok(Some(Arrived::Piece))
            }
            Stage::Chunk(..) => Err(corrupt(self.offset, "a chunk's stored bytes do not match their checksum")),
            Stage::End(end) => match end.iter().zip(&self.piece).position(|(expected, found)| expected != found) {
                Some(at) => Err(corrupt(self.offset + at as u64, "the end of the file contradicts what is before it")),
                None => {
                    self.after = Some(Stage::Over);
                    Ok(Some(Arrived::Piece))
                }
            },
            Stage::Over => Err(corrupt(self.offset, "more follows the end of the file")),
        }
    }

    /// A chunk, or the end: what the end must be follows from the chunks.
    fn what_follows(&self, header: &Arc<SnapshotHeader>) -> Result<Stage, SnapshotDefect> {
        let defect = match ChunkHeader::decode(&self.piece, self.index.chunks(), self.offset, header) {
            Ok(_) if self.is_short => corrupt(self.offset, "a chunk follows one that is not full"),
            Ok(chunk) => return Ok(Stage::Chunk(header.clone(), chunk)),
            Err(defect) => defect,
        };
        let (end, _) = self.index.encode_tail(header);
        if end.starts_with(&self.piece) { Ok(Stage::End(end)) } else { Err(defect) }
    }
}

fn corrupt(offset: u64, reason: &'static str) -> SnapshotDefect {
    SnapshotDefect::Corrupt { offset, reason }
}
