//! What a history is made of, drawn by chance: its temper, its settings, and the batches it asks for.
//!
//! Each history has a [`Temper`]: what it does much of. A history that does everything evenly does nothing often enough
//! to meet the rare coincidences that break logs (two rolls in flight at once, a frame of the same length as the one
//! lost in the life before).
//!
//! Draws depend on the generator that is passed in and on the state of the log, on nothing that was drawn before: so a
//! step can be left out of a history and the others still do what they did.

use std::time::Duration;

use bytes::Bytes;

use super::model::{Fitting, Model};
use super::rng::Rng;
use crate::config::{Config, Durability};
use crate::engine::sequencer::Request;
use crate::engine::space::batch_bytes_max;
use crate::entry::LogEntry;
use crate::format::frame::{self, Epoch, FrameKind, FrameSpec, HEAD_BYTES, OPERATION_HEADER_BYTES};
use crate::format::segment::SEGMENT_BLOCKS_MIN;
use crate::format::state::hard_state_bytes_max;

/// Entries beyond which a history compacts rather than grows.
const ENTRIES_MANY: usize = 60;

/// What a history does much of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Temper {
    pub(super) lives: usize,
    pub(super) steps: usize,
    /// Largest payload, as a part of the largest batch: 1 is all of it, 100 a hundredth.
    payload_part: usize,
    /// One batch in so many truncates, or compacts.
    truncates: usize,
    compacts: usize,
    /// One step in so many, of those that could, is housekeeping.
    pub(super) tends: usize,
    /// Whether everything accepted is submitted at once.
    pub(super) is_eager: bool,
    /// Whether operations fail now and then.
    pub(super) is_failing: bool,
    /// Whether writes come short now and then.
    pub(super) is_short: bool,
    /// Whether the block size changes from life to life.
    is_mixed: bool,
    /// Whether the other settings change from life to life.
    is_fickle: bool,
    /// Whether payloads look like frames.
    is_forging: bool,
    /// Segments that the disk has room for, if it is short of it.
    pub(super) room: Option<u64>,
}

impl Temper {
    pub(super) fn draw(rng: &mut Rng) -> Temper {
        let one_of = |rng: &mut Rng, choices: &[usize]| choices[rng.below(choices.len())];
        Temper {
            lives: 2 + rng.below(6),
            steps: one_of(rng, &[8, 20, 40]),
            payload_part: one_of(rng, &[1, 1, 2, 4, 10, 40]),
            truncates: one_of(rng, &[4, 10, 30]),
            compacts: one_of(rng, &[3, 6, 30]),
            tends: one_of(rng, &[1, 3, 10]),
            is_eager: rng.one_in(2),
            is_failing: rng.one_in(4),
            is_short: rng.one_in(4),
            is_mixed: rng.one_in(8),
            is_fickle: rng.one_in(3),
            is_forging: rng.one_in(8),
            room: if rng.one_in(4) { Some(2 + rng.below(3) as u64) } else { None },
        }
    }

    /// Settings for the first life.
    pub(super) fn config(&self, rng: &mut Rng) -> Config {
        let block = if self.is_mixed { 1024 } else { [512, 512, 512, 512, 512, 512, 1024, 4096][rng.below(8)] };
        let blocks = SEGMENT_BLOCKS_MIN + rng.below(17) as u64;
        let config = Config::default()
            .block_bytes(Some(block))
            .segment_bytes(blocks * u64::from(block))
            .first_index([0, 1, 1, 7][rng.below(4)])
            .lock_wait(Duration::ZERO);
        with_pace(config, rng)
    }

    /// Settings for the next life.
    pub(super) fn alter(&self, config: &Config, rng: &mut Rng) -> Config {
        let mut config = config.clone();
        if self.is_mixed {
            config = config.block_bytes(Some([512, 1024][rng.below(2)]));
        }
        if self.is_fickle { with_pace(config, rng) } else { config }
    }
}

/// Draws the settings that say when what is written and acknowledged.
fn with_pace(config: Config, rng: &mut Rng) -> Config {
    let durability = match rng.below(6) {
        0 => Durability::None,
        1 => Durability::Interval(Duration::from_secs(1)),
        _ => Durability::Sync,
    };
    let frame_blocks = [1, 4, 16][rng.below(3)];
    let block = u64::from(config.block_bytes.unwrap_or(512));
    config
        .durability(durability)
        .frames_in_flight(1 + rng.below(3))
        .frame_bytes_max(frame_blocks * block)
        .spare_segments(1 + rng.below(3))
}

/// Draws batches for the log of one history.
pub(super) struct Drawer {
    temper: Temper,
    pub(super) fitting: Fitting,
    payload_max: usize,
    block_bytes: usize,
    /// Payload sizes that come again and again, so that new frames cover exactly what old ones left.
    favourites: [usize; 4],
}

impl Drawer {
    pub(super) fn new(temper: Temper, config: &Config, rng: &mut Rng) -> Drawer {
        let block = config.block_bytes.unwrap_or(512);
        let batch_max = batch_bytes_max(config.segment_bytes, block) as usize;
        let fitting = Fitting {
            first_index: config.first_index,
            hard_state_bytes_max: hard_state_bytes_max(config.segment_bytes) as usize,
        };
        let payload_max = (batch_max / temper.payload_part).saturating_sub(48);
        let mut drawer = Drawer { temper, fitting, payload_max, block_bytes: block as usize, favourites: [0; 4] };
        drawer.favourites = [(); 4].map(|()| drawer.any_size(rng));
        drawer
    }

    /// A batch of one to four operations that mostly fit the log as it is.
    pub(super) fn batch(&self, rng: &mut Rng, newest: &Model) -> Vec<Request> {
        let mut model = newest.clone();
        let count = if rng.one_in(2) { 1 } else { 1 + rng.below(4) };
        let mut batch = Vec::new();
        for _ in 0..count {
            let request = self.request(rng, &model);
            if let Ok(next) = model.after(std::slice::from_ref(&request), self.fitting) {
                model = next;
            } else if !rng.one_in(4) {
                continue;
            }
            batch.push(request);
        }
        batch
    }

    fn request(&self, rng: &mut Rng, model: &Model) -> Request {
        if rng.one_in(self.temper.compacts) || model.len() > ENTRIES_MANY {
            return self.compaction(rng, model);
        }
        if rng.one_in(self.temper.truncates) {
            return self.truncation(rng, model);
        }
        match rng.below(16) {
            0 => {
                let key = Bytes::from(vec![b'k'; 1 + rng.below(3)]);
                let bytes = [4, 40, 400][rng.below(3)];
                Request::PutMeta(key, payload(rng, bytes))
            }
            1 => Request::DeleteMeta(Bytes::from(vec![b'k'; 1 + rng.below(3)])),
            2..6 => self.entry(rng, model),
            _ => Request::Push(self.payload(rng)),
        }
    }

    fn entry(&self, rng: &mut Rng, model: &Model) -> Request {
        let next = model.next().unwrap_or(self.fitting.first_index + rng.below(3) as u64);
        let (index, term) = match rng.below(24) {
            0 => (next + 1, model.last_term()),
            1 => (next, model.last_term().saturating_sub(1)),
            drawn => (next, model.last_term() + u64::from(drawn < 8)),
        };
        Request::Entry(LogEntry::new(term, index, self.payload(rng)))
    }

    fn compaction(&self, rng: &mut Rng, model: &Model) -> Request {
        let next = model.next().unwrap_or(1);
        let first = model.first().unwrap_or(next);
        match rng.below(8) {
            0 => Request::Compact(next + rng.below(5) as u64, Some(model.last_term() + rng.below(2) as u64)),
            1..4 => Request::Compact(next.saturating_sub(1), None),
            4 => Request::Compact(first.saturating_sub(rng.below(3) as u64), Some(model.last_term())),
            _ => {
                let index = first + rng.below((next - first).max(1) as usize) as u64;
                Request::Compact(index, model.term(index).filter(|_| rng.one_in(2)))
            }
        }
    }

    fn truncation(&self, rng: &mut Rng, model: &Model) -> Request {
        let next = model.next().unwrap_or(1);
        let live = model.len();
        let back = match rng.below(4) {
            0 => rng.below(live + 3),
            _ => rng.below(live.min(6) + 1),
        };
        Request::Truncate((next + u64::from(rng.one_in(12))).saturating_sub(back as u64))
    }

    fn payload(&self, rng: &mut Rng) -> Bytes {
        let bytes = match rng.below(8) {
            0..3 => self.favourites[rng.below(self.favourites.len())],
            _ => self.any_size(rng),
        };
        if self.temper.is_forging && rng.one_in(2) { self.forged(rng, bytes) } else { payload(rng, bytes) }
    }

    /// Sizes around block boundaries, and any.
    fn any_size(&self, rng: &mut Rng) -> usize {
        let size = match rng.below(5) {
            0 => rng.below(100),
            // What fills a frame of whole units but for a few bytes, more or less.
            1 => (512 * (1 + rng.below(8)) + 8 * rng.below(5)).saturating_sub(88 + 40 + 16),
            2 => self.payload_max - rng.below(self.payload_max.min(600)),
            _ => rng.below(self.payload_max),
        };
        size.min(self.payload_max)
    }

    /// A payload with a frame wherever a block begins, if the entry is the first of a frame without a base: one that
    /// claims to prove a long future durable. Its salt is not the segment's, which nobody outside can know.
    fn forged(&self, rng: &mut Rng, bytes: usize) -> Bytes {
        let mut forged = payload(rng, bytes).to_vec();
        let ahead = (HEAD_BYTES + OPERATION_HEADER_BYTES).min(self.block_bytes);
        let mut at = self.block_bytes - ahead;
        while at + self.block_bytes <= forged.len() {
            let spec = FrameSpec {
                kind: FrameKind::Mark,
                number: 1 << 40,
                epoch: Epoch { counter: 1 + rng.below(9) as u64, random: rng.next_u64() as u32 },
                chain: rng.next_u64() as u32,
                watermark: (1 << 40) - 1,
                salt: rng.next_u64(),
                offset: (at + ahead) as u32,
                first_index: Some(1),
                base: None,
                operations: &[],
            };
            frame::encode(&spec, &mut forged[at..at + self.block_bytes]);
            at += self.block_bytes;
        }
        forged.into()
    }
}

/// Bytes that no other payload of the history has, as far as they are long enough.
pub(super) fn payload(rng: &mut Rng, bytes: usize) -> Bytes {
    let stamp = rng.next_u64().to_le_bytes();
    Bytes::from(stamp.iter().copied().cycle().take(bytes).collect::<Vec<u8>>())
}
