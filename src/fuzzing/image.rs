//! Directories drawn from an input: any bytes under any names, or the directory of a log that was lived in, altered.
//!
//! Alterations go past the checksums: what a fuzzer changes can be made to verify again, and to be chained again, in
//! all segments at once. An [`Image`] remembers whether that was done, for then the log may lie where a damaged one cannot.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use super::choices::Choices;
use super::forge::{self, Field};
use crate::config::Config;
use crate::disk::{Disk, PROBE_NAME};
use crate::engine::sequencer::Request;
use crate::entry::LogEntry;
use crate::format::names::{self, Name};
use crate::format::segment::SEGMENT_BLOCKS_MIN;
use crate::sim::{LocalLog, Rng, SimDisk};

/// Contents by name.
pub(super) type Files = BTreeMap<String, Vec<u8>>;

/// Alterations of one directory.
const ALTERATIONS_MAX: usize = 16;

/// Bytes of the largest file that alterations make.
const FILE_BYTES_MAX: usize = 256 << 10;

/// A directory to be opened.
pub(super) struct Image {
    pub(super) files: Files,
    /// Settings that fit the log, if it is one.
    pub(super) config: Config,
    /// The files are as a log left them.
    pub(super) is_untouched: bool,
    /// Bytes were altered and made to verify again.
    pub(super) is_forged: bool,
    /// The same for an index file.
    pub(super) has_forged_index: bool,
}

impl Image {
    pub(super) fn draw(choices: &mut Choices<'_>) -> Image {
        if choices.one_in(4) {
            return Image::of_any_bytes(choices);
        }
        let (files, config) = grown(choices.byte());
        let is_untouched = choices.are_spent();
        let mut image = Image { files, config, is_untouched, is_forged: false, has_forged_index: false };
        for _ in 0..ALTERATIONS_MAX {
            if choices.are_spent() {
                break;
            }
            image.alter(choices);
        }
        image
    }

    fn of_any_bytes(choices: &mut Choices<'_>) -> Image {
        let block = choices.one_of(&[512, 1024, 4096]);
        let config = config(block, SEGMENT_BLOCKS_MIN + choices.below(4) as u64, 1);
        // Nothing here was ever a log: whatever it turns out to be is as good as forged.
        let files = Files::new();
        let mut image = Image { files, config, is_untouched: false, is_forged: true, has_forged_index: true };
        for _ in 0..1 + choices.below(6) {
            let name = draw_name(choices);
            let mut bytes = choices.bytes(2048).to_vec();
            if choices.one_in(2) {
                bytes.resize(choices.below(64) * 512, 0);
            }
            image.files.insert(name, bytes);
        }
        if choices.one_in(2) {
            image.make_verify(&[Seal::Chain, Seal::Segments, Seal::Slots, Seal::Indexes], choices);
        }
        image
    }

    pub(super) fn without_indexes(&self) -> Files {
        let is_index = |name: &str| matches!(names::classify(name), Name::Index(_));
        self.files
            .iter()
            .filter(|(name, _)| !is_index(name))
            .map(|(name, bytes)| (name.clone(), bytes.clone()))
            .collect()
    }

    fn alter(&mut self, choices: &mut Choices<'_>) {
        let Some(name) = self.pick(choices, |_| true) else { return };
        match choices.below(16) {
            0 => self.overwrite(&name, choices),
            1 => self.flip(&name, choices),
            2 => self.zero(&name, choices),
            3 => self.resize(&name, choices),
            4 => drop(self.files.remove(&name)),
            5 => self.copy_file(name, choices),
            6 => self.swap(name, choices),
            7..9 => self.copy_blocks(&name, choices),
            9..12 => {
                self.alter_frame(choices);
                self.make_verify(&[Seal::Nothing, Seal::Segments, Seal::Chain, Seal::Chain], choices);
            }
            12 => {
                self.alter_field(is_segment, &[0], &forge::SEGMENT, choices);
                self.make_verify(&[Seal::Nothing, Seal::Segments, Seal::Chain], choices);
            }
            13 => {
                self.alter_field(|name| name == names::LOCK, &[0, 4096], &forge::SLOT, choices);
                self.make_verify(&[Seal::Nothing, Seal::Slots], choices);
            }
            14 => {
                self.alter_field(is_index, &[0], &forge::INDEX, choices);
                self.make_verify(&[Seal::Nothing, Seal::Indexes], choices);
            }
            _ => self.make_verify(&[Seal::Chain, Seal::Segments, Seal::Slots, Seal::Indexes], choices),
        }
    }

    /// The name of one of the files that are wanted.
    fn pick(&self, choices: &mut Choices<'_>, is_wanted: impl Fn(&str) -> bool) -> Option<String> {
        let names: Vec<&String> = self.files.keys().filter(|name| is_wanted(name)).collect();
        let nth = choices.below(names.len().max(1));
        names.get(nth).map(|name| name.to_string())
    }

    /// A file, and a place in it.
    fn place(&mut self, name: &str, choices: &mut Choices<'_>) -> Option<(&mut Vec<u8>, usize)> {
        let bytes = self.files.get_mut(name)?;
        let at = choices.below(1 << 16) % bytes.len().max(1);
        Some((bytes, at))
    }

    fn overwrite(&mut self, name: &str, choices: &mut Choices<'_>) {
        let value = choices.bytes(16);
        let Some((bytes, at)) = self.place(name, choices) else { return };
        bytes.iter_mut().skip(at).zip(value).for_each(|(byte, value)| *byte = *value);
    }

    fn flip(&mut self, name: &str, choices: &mut Choices<'_>) {
        let bit = choices.below(8);
        let Some((bytes, at)) = self.place(name, choices) else { return };
        bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << bit);
    }

    fn zero(&mut self, name: &str, choices: &mut Choices<'_>) {
        let sectors = 1 + choices.below(16);
        let Some((bytes, at)) = self.place(name, choices) else { return };
        bytes.iter_mut().skip(at - at % 512).take(sectors * 512).for_each(|byte| *byte = 0);
    }

    fn resize(&mut self, name: &str, choices: &mut Choices<'_>) {
        let length = choices.below(FILE_BYTES_MAX / 512) * 512 + choices.one_of(&[0, 0, 1, 511]);
        if let Some(bytes) = self.files.get_mut(name) {
            bytes.resize(length, 0);
        }
    }

    fn copy_file(&mut self, name: String, choices: &mut Choices<'_>) {
        let bytes = self.files[&name].clone();
        self.files.insert(draw_name(choices), bytes);
    }

    fn swap(&mut self, name: String, choices: &mut Choices<'_>) {
        let Some(other) = self.pick(choices, |_| true) else { return };
        let bytes = std::mem::take(self.files.get_mut(&name).expect("it was picked from them"));
        let bytes = self.files.insert(other, bytes).unwrap_or_default();
        if self.files[&name].is_empty() {
            self.files.insert(name, bytes);
        }
    }

    /// Copies some sectors, such as those of whole frames, to another place of a file or to another file.
    fn copy_blocks(&mut self, from: &str, choices: &mut Choices<'_>) {
        let Some(to) = self.pick(choices, is_segment) else { return };
        let (source, target, count) =
            (choices.below(256) * 512, choices.below(256) * 512, (1 + choices.below(24)) * 512);
        let bytes: Vec<u8> = self.files[from].iter().copied().skip(source).take(count).collect();
        let Some(target_bytes) = self.files.get_mut(&to) else { return };
        target_bytes.iter_mut().skip(target).zip(bytes).for_each(|(byte, value)| *byte = value);
    }

    /// Alters a field of a frame's head, base, or operation.
    fn alter_frame(&mut self, choices: &mut Choices<'_>) {
        let Some(name) = self.pick(choices, is_segment) else { return };
        let bytes = &self.files[&name];
        let frames = forge::frames(bytes);
        if frames.is_empty() {
            return;
        }
        let frame = choices.one_of(&frames);
        let operations = forge::operations(&bytes[frame..]);
        match choices.below(3) {
            1 if !operations.is_empty() => {
                let start = frame + choices.one_of(&operations);
                self.alter_at(&name, start, &forge::OPERATION, choices);
            }
            2 => self.alter_at(&name, frame + forge::HEAD_BYTES, &forge::BASE, choices),
            _ => self.alter_at(&name, frame, &forge::HEAD, choices),
        }
    }

    fn alter_field(
        &mut self,
        is_wanted: impl Fn(&str) -> bool,
        starts: &[usize],
        fields: &[Field],
        choices: &mut Choices<'_>,
    ) {
        let Some(name) = self.pick(choices, is_wanted) else { return };
        self.alter_at(&name, choices.one_of(starts), fields, choices);
    }

    fn alter_at(&mut self, name: &str, start: usize, fields: &[Field], choices: &mut Choices<'_>) {
        let (field, is_relative, value) = (choices.one_of(fields), choices.one_in(2), choices.number());
        if let Some(bytes) = self.files.get_mut(name) {
            forge::alter(bytes, start, field, value, is_relative);
        }
    }

    /// Makes files verify as they are now, of one of these kinds.
    fn make_verify(&mut self, kinds: &[Seal], choices: &mut Choices<'_>) {
        let kind = choices.one_of(kinds);
        let mut chain = 0;
        for (name, bytes) in &mut self.files {
            match (names::classify(name), kind) {
                (Name::Segment(_), Seal::Segments) => forge::segment(bytes, None),
                (Name::Segment(_), Seal::Chain) => forge::segment(bytes, Some(&mut chain)),
                (Name::Lock, Seal::Slots) => {
                    forge::slot(bytes);
                    forge::slot(bytes.get_mut(4096..).unwrap_or_default());
                }
                (Name::Index(_), Seal::Indexes) => forge::index(bytes),
                _ => continue,
            }
            self.is_forged = true;
            self.has_forged_index |= kind == Seal::Indexes;
        }
    }
}

/// What is made to verify.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Seal {
    Nothing,
    /// All segments, but for the chain of their frames.
    Segments,
    /// All segments, and the chain of all frames through them.
    Chain,
    Slots,
    Indexes,
}

fn is_segment(name: &str) -> bool {
    matches!(names::classify(name), Name::Segment(_))
}

fn is_index(name: &str) -> bool {
    matches!(names::classify(name), Name::Index(_))
}

fn draw_name(choices: &mut Choices<'_>) -> String {
    let sequence = 1 + choices.below(8) as u64;
    match choices.below(12) {
        0..6 => names::segment(sequence),
        6 | 7 => names::index(sequence),
        8 => names::LOCK.into(),
        9 => names::temporary(&names::segment(sequence)),
        10 => names::cut(sequence, 512, 1),
        _ => choices.one_of(&["somebody-else's", PROBE_NAME, "lost+found"]).into(),
    }
}

/// A disk with these files, all of it durable.
pub(super) fn disk_with(files: &Files) -> SimDisk {
    let disk = SimDisk::manual(0);
    for (name, bytes) in files {
        disk.write_file(name, bytes).expect("only plain names are drawn");
    }
    disk
}

/// The files of a disk as they read.
pub(super) fn files_of(disk: &SimDisk) -> Files {
    let names = disk.list().expect("nothing fails here");
    names.into_iter().map(|name| (name.clone(), disk.read_file(&name).expect("it is listed"))).collect()
}

fn config(block: u32, blocks: u64, first_index: u64) -> Config {
    Config::default()
        .block_bytes(Some(block))
        .segment_bytes(blocks * u64::from(block))
        .frame_bytes_max(4 * u64::from(block))
        .first_index(first_index)
        .lock_wait(Duration::ZERO)
}

thread_local! {
    /// Logs that were grown before.
    static GROWN: RefCell<BTreeMap<u8, Rc<(Files, Config)>>> = const { RefCell::new(BTreeMap::new()) };
}

/// The directory of a log that went through several lives: the same for the same number.
fn grown(number: u8) -> (Files, Config) {
    let known = GROWN.with_borrow(|grown| grown.get(&number).cloned());
    let known = known.unwrap_or_else(|| {
        let made = Rc::new(grow(number));
        GROWN.with_borrow_mut(|grown| grown.insert(number, made.clone()));
        made
    });
    (*known).clone()
}

fn grow(number: u8) -> (Files, Config) {
    let mut rng = Rng::new(number.into());
    let block = [512, 512, 512, 1024][rng.below(4)];
    let config = config(block, SEGMENT_BLOCKS_MIN + rng.below(6) as u64, [0, 1, 1, 7][rng.below(4)]);
    let mut disk = SimDisk::manual(number.into());
    for _ in 0..1 + rng.below(3) {
        let mut log = LocalLog::open(&disk, config.clone(), rng.next_u64()).expect("what a crash leaves opens");
        for _ in 0..4 + rng.below(30) {
            live_on(&mut log, &disk, &mut rng);
        }
        match rng.below(3) {
            0 => log.close().expect("nothing fails here"),
            _ => disk = disk.crash_point().random_image(rng.next_u64()),
        }
    }
    (files_of(&disk), config)
}

fn live_on(log: &mut LocalLog, disk: &SimDisk, rng: &mut Rng) {
    let done = match rng.below(12) {
        0 => log.seal_one().map(drop),
        1 => log.drop_one().map(drop),
        2 => log.prepare_spare().map(drop),
        3 => log.mark().map(drop),
        4 => log.write_slot(),
        5 => log.pump().map(drop),
        6 | 7 => log.drain(),
        _ => {
            // Refused where it does not fit: then nothing happened.
            let _ = log.submit(&[draw_request(log, rng)]);
            log.pump().map(drop)
        }
    };
    done.expect("nothing fails here");
    if rng.one_in(2) {
        disk.complete_all();
        log.collect().expect("nothing fails here");
    }
}

fn draw_request(log: &LocalLog, rng: &mut Rng) -> Request {
    let next = log.next_index();
    let payload = Bytes::from(vec![rng.below(256) as u8; [10, 100, 400, 2000][rng.below(4)] + rng.below(50)]);
    match rng.below(12) {
        0 => Request::Truncate(next.saturating_sub(rng.below(6) as u64)),
        1 => Request::Compact(next.saturating_sub(1 + rng.below(8) as u64), None),
        2 => Request::PutMeta(vec![b'k'; 1 + rng.below(2)].into(), payload.slice(..10)),
        3 => Request::DeleteMeta(Bytes::from_static(b"k")),
        4..7 => Request::Entry(LogEntry::new(next / 4 + rng.below(2) as u64, next, payload)),
        _ => Request::Push(payload),
    }
}
