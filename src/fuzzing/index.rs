//! Target: an index file of any bytes. It gives answers within its bounds, or a defect; every way to open it agrees.

use super::choices::Choices;
use super::forge;
use crate::disk::{Access, Disk};
use crate::format::index::{IndexHeader, IndexIdentity, IndexView, SegmentIndex, encode};
use crate::segment::index_map::IndexMap;
use crate::sim::SimDisk;

/// Answers asked for beyond the ends of the range.
const AROUND: u64 = 3;

/// Any bytes; any bytes made to verify; or the index of a segment, read back, altered, and read again.
pub fn decode_index(input: &[u8]) {
    let mut choices = Choices::new(input);
    match choices.below(3) {
        0 => check(choices.rest()),
        1 => {
            let mut bytes = choices.rest().to_vec();
            forge::index(&mut bytes);
            check(&bytes);
        }
        _ => build_and_alter(&mut choices),
    }
}

fn check(bytes: &[u8]) {
    let Ok(header) = IndexHeader::decode(bytes, bytes.len() as u64) else { return };
    assert_eq!(header.file_bytes(), bytes.len() as u64);
    let view = IndexView::new(&header, bytes);
    let by_map = IndexMap::from_bytes(bytes.to_vec(), header.identity());
    assert_eq!(view.is_ok(), by_map.is_ok(), "{view:?} against {by_map:?}");
    assert_eq!(open_file(bytes, header.identity()), view.is_ok(), "from a file as from memory");
    if let Ok(view) = view {
        check_answers(&header, &view);
    }
}

fn open_file(bytes: &[u8], identity: &IndexIdentity) -> bool {
    let disk = SimDisk::manual(0);
    disk.write_file("index", bytes).expect("a file is made");
    let file = disk.open("index", Access::Read).expect("it is there");
    IndexMap::open(&*file, identity).is_ok()
}

fn check_answers(header: &IndexHeader, view: &IndexView<'_>) {
    let range = view.range();
    assert!(range.is_empty() || header.highest_ever().is_some_and(|highest| range.end - 1 <= highest));
    let is_sound = view.verify_all().is_ok();
    let (mut last_offset, mut last_term) = (None, None);
    for index in range.clone() {
        let offset = view.offset_of(index);
        if is_sound {
            assert!(offset.is_some() && last_offset < offset, "offset {offset:?} of {index} after {last_offset:?}");
            assert_eq!(view.offsets_from(index).next(), offset);
            last_offset = offset;
        }
        let term = view.term_of(index);
        assert!(term.is_some() && last_term <= term, "term {term:?} of {index} after {last_term:?}");
        last_term = term;
    }
    let below = range.start.saturating_sub(AROUND)..range.start;
    for index in below.chain(range.end..range.end.saturating_add(AROUND)).chain([u64::MAX]) {
        assert_eq!((view.offset_of(index), view.term_of(index)), (None, None), "{index} is not within {range:?}");
        assert_eq!(view.offsets_from(index).next(), None);
    }
}

fn build_and_alter(choices: &mut Choices<'_>) {
    let (index, identity) = (draw_index(choices), draw_identity(choices));
    let mut bytes = encode(&index, &identity);
    check_reads_back(&bytes, &index, &identity);
    let mut is_forged = false;
    while !choices.are_spent() {
        match choices.below(4) {
            0 => {
                let at = choices.below(1 << 16) % bytes.len().max(1);
                let value = choices.byte();
                bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = value);
            }
            1 => {
                let (field, is_relative) = (choices.one_of(&forge::INDEX), choices.one_in(2));
                forge::alter(&mut bytes, 0, field, choices.number(), is_relative);
            }
            2 => bytes.resize(choices.below(1024), 0),
            _ => is_forged = true,
        }
        check(&bytes);
    }
    if is_forged {
        forge::index(&mut bytes);
        check(&bytes);
    }
}

fn check_reads_back(bytes: &[u8], index: &SegmentIndex, identity: &IndexIdentity) {
    let header = IndexHeader::decode(bytes, bytes.len() as u64).expect("an index that was just made");
    header.check_identity(identity).expect("it is the one that was asked for");
    let view = IndexView::new(&header, bytes).expect("it is whole");
    view.verify_all().expect("all of it");
    assert_eq!(
        (view.range(), header.highest_ever(), header.floor()),
        (index.range(), index.highest_ever(), index.floor())
    );
    for at in index.range() {
        assert_eq!((view.offset_of(at), view.term_of(at)), (index.offset_of(at), index.term_of(at)), "{at}");
    }
    check_answers(&header, &view);
}

/// An index as operations of a log leave it.
fn draw_index(choices: &mut Choices<'_>) -> SegmentIndex {
    let mut index = SegmentIndex::new();
    let (mut next, mut term, mut offset) = (choices.number().min(1 << 60), choices.number().min(1 << 60), 512);
    for _ in 0..choices.below(24) {
        match choices.below(8) {
            0 => {
                next -= (choices.below(6) as u64).min(next);
                index.truncate_from(next);
                term = next.checked_sub(1).and_then(|last| index.term_of(last)).unwrap_or(term);
            }
            1 => {
                let through = next.saturating_sub(1) + choices.below(3) as u64;
                index.compact_past(through);
                next = through + 1;
            }
            _ => {
                term += u64::from(choices.one_in(4));
                offset += 8 * (6 + choices.below(8) as u32);
                index.push(next, term, offset);
                next += 1;
            }
        }
    }
    index
}

fn draw_identity(choices: &mut Choices<'_>) -> IndexIdentity {
    IndexIdentity {
        log_id: [choices.byte(); 16],
        sequence: choices.number(),
        salt: choices.u64(),
        last_head_checksum: choices.u32(),
        first_frame: choices.number(),
        last_frame: choices.number(),
    }
}

/// Inputs to begin with.
pub(super) fn seeds() -> Vec<(String, Vec<u8>)> {
    let identity =
        IndexIdentity { log_id: [1; 16], sequence: 2, salt: 3, last_head_checksum: 4, first_frame: 5, last_frame: 6 };
    let mut seeds: Vec<(String, Vec<u8>)> = Vec::new();
    for count in [0, 1, 9] {
        let mut index = SegmentIndex::new();
        (0..count).for_each(|nth| index.push(20 + nth, nth / 3, 512 + 64 * nth as u32));
        let bytes = encode(&index, &identity);
        for mode in [0, 1] {
            seeds.push((format!("of-{count}-{mode}"), [&[mode][..], &bytes].concat()));
        }
    }
    let built = |nth: u8| (0..120u8).map(move |at| at.wrapping_mul(29 + 2 * nth) ^ nth);
    seeds.extend((0..4).map(|nth| (format!("built-{nth}"), std::iter::once(2).chain(built(nth)).collect())));
    seeds
}
