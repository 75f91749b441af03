//! The tail cache: the newest closed frames in memory, so that a reader gets what it just appended without the disk.
//!
//! It shares each frame's operations with the writer that encodes them, so keeping an entry costs nothing when it is
//! appended. The frame that still grows is not here: the sequencer has it.
//!
//! Invariants: the cached indexes are contiguous and end where the growing frame begins; a frame leaves from the front,
//! and only once it is acknowledged, so every entry that is not readable on disk is here or in the growing frame. What
//! is not acknowledged is bounded by the queue, the rest by the limit given (and one frame). What goes is handed out: a
//! frame has many entries, and whoever holds the log's lock had better not be the one who drops them.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use crate::engine::operations::Operations;
use crate::engine::sequencer::Frame;
use crate::entry::LogEntry;
use crate::format::frame::Operation;

#[derive(Debug)]
struct Cached {
    frame: u64,
    /// Its entries that no later frame truncated or compacted.
    live: Range<u64>,
    operations: Arc<Operations>,
    bytes: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct TailCache {
    frames: VecDeque<Cached>,
    /// Number of the newest frame that was added.
    newest: u64,
    bytes: u64,
    bytes_max: u64,
}

impl TailCache {
    pub(crate) fn new(bytes_max: u64) -> TailCache {
        TailCache { frames: VecDeque::new(), newest: 0, bytes: 0, bytes_max }
    }

    /// Number of the newest frame that was added.
    pub(crate) fn newest(&self) -> u64 {
        self.newest
    }

    /// Adds a closed frame; one whose entries do not continue the cached ones starts afresh. What goes is added to `gone`.
    pub(crate) fn push(&mut self, frame: &Frame, gone: &mut Vec<Arc<Operations>>) {
        self.newest = frame.number;
        let live = frame.operations.live();
        if live.is_empty() {
            return;
        }
        if self.frames.back().is_some_and(|last| last.live.end != live.start) {
            gone.extend(self.frames.drain(..).map(|cached| cached.operations));
            self.bytes = 0;
        }
        let bytes = frame.memory_bytes();
        self.bytes += bytes;
        self.frames.push_back(Cached { frame: frame.number, live, operations: frame.operations.clone(), bytes });
    }

    pub(crate) fn truncate_from(&mut self, first_removed: u64, gone: &mut Vec<Arc<Operations>>) {
        while let Some(last) = self.frames.pop_back_if(|last| last.live.start >= first_removed) {
            self.bytes -= last.bytes;
            gone.push(last.operations);
        }
        if let Some(last) = self.frames.back_mut() {
            last.live.end = last.live.end.min(first_removed);
        }
    }

    /// Forgets what was compacted.
    pub(crate) fn compact_to(&mut self, index: u64, gone: &mut Vec<Arc<Operations>>) {
        while let Some(first) = self.frames.pop_front_if(|first| first.live.end - 1 <= index) {
            self.bytes -= first.bytes;
            gone.push(first.operations);
        }
        if let Some(first) = self.frames.front_mut() {
            first.live.start = first.live.start.max(index + 1);
        }
    }

    /// Lets go of the oldest frames above the limit, as far as they are acknowledged.
    pub(crate) fn evict(&mut self, acknowledged: u64, gone: &mut Vec<Arc<Operations>>) {
        while self.bytes > self.bytes_max {
            let Some(oldest) = self.frames.pop_front_if(|first| first.frame <= acknowledged) else { break };
            self.bytes -= oldest.bytes;
            gone.push(oldest.operations);
        }
    }

    pub(crate) fn get(&self, index: u64) -> Option<LogEntry> {
        let at = self.frames.partition_point(|cached| cached.live.end <= index);
        let cached = self.frames.get(at).filter(|cached| cached.live.contains(&index))?;
        entry_of(&cached.operations, index)
    }
}

/// The entry of an index among a frame's operations.
pub(crate) fn entry_of(operations: &Operations, index: u64) -> Option<LogEntry> {
    match operations.entry(index) {
        Some(Operation::Entry { index, term, timestamp, payload }) => {
            Some(LogEntry { term: *term, index: *index, command: payload.clone(), timestamp: *timestamp })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ledger::Ledger;
    use crate::engine::sequencer::{Limits, Plot, Request, Sequencer, Start};
    use crate::format::frame::FrameKind;

    /// Closed frames of `count` entries each, indexes from `first` on.
    fn frames(first: u64, count: usize, how_many: usize) -> Vec<Frame> {
        let start = Start {
            ledger: Ledger::default(),
            active: Plot { sequence: 1, salt: 1, block_bytes: 4096, segment_bytes: 1 << 20 },
            tail: 4096,
            spares: Vec::new(),
            next_number: first,
            durable: (first - 1, None),
            open_due: false,
            last_kind: FrameKind::Open,
        };
        let limits = Limits { frame_bytes_max: 1 << 20, block_bytes: 4096, first_index: first };
        let mut sequencer = Sequencer::new(start, limits);
        let mut take = |_| {
            let mut batch = vec![Request::Push("x".into()); count];
            sequencer.accept(&mut batch, 0, &[]).unwrap();
            sequencer.take_frame().unwrap()
        };
        (0..how_many).map(&mut take).collect()
    }

    /// Frames 10..=14 with indexes 10..25.
    fn cache() -> TailCache {
        let frames = frames(10, 3, 5);
        let mut cache = TailCache::new(2 * frames[0].memory_bytes());
        frames.iter().for_each(|frame| cache.push(frame, &mut Vec::new()));
        cache
    }

    fn cached(cache: &TailCache) -> Vec<u64> {
        (0..100).filter_map(|index| cache.get(index)).map(|entry| entry.index).collect()
    }

    #[test]
    fn only_acknowledged_frames_leave() {
        let mut cache = cache();
        let mut gone = Vec::new();
        cache.evict(11, &mut gone);
        assert_eq!(gone.len(), 2);
        assert_eq!(cached(&cache), (16..25).collect::<Vec<_>>());
        cache.evict(100, &mut gone);
        assert_eq!(gone.len(), 3);
        assert_eq!(cached(&cache), (19..25).collect::<Vec<_>>());
    }

    #[test]
    fn truncation_compaction_and_jumps_keep_the_cache_contiguous() {
        let mut cache = cache();
        let gone = &mut Vec::new();
        cache.truncate_from(20, gone);
        cache.compact_to(10, gone);
        assert_eq!(cached(&cache), (11..20).collect::<Vec<_>>());
        cache.compact_to(12, gone);
        assert_eq!(cached(&cache), (13..20).collect::<Vec<_>>());
        cache.push(&frames(50, 1, 1)[0], gone);
        assert_eq!((cached(&cache), cache.newest()), (vec![50], 50));
        cache.compact_to(90, gone);
        assert_eq!((cached(&cache), cache.bytes), (vec![], 0));
        assert_eq!(gone.len(), 6, "every frame was handed out once");
    }
}
