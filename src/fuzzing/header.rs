//! Target: what is small and stands at fixed places: a segment's header, a slot of the lock file, a base, a name.

use super::choices::Choices;
use super::forge;
use crate::format::lock::{SLOT_BYTES, Slot, SlotRead};
use crate::format::names::{self, Name};
use crate::format::segment::{BLOCK_BYTES, HEADER_BYTES, SEGMENT_BLOCKS_MIN, SegmentHeader};
use crate::format::state::State;

/// Any bytes, as they are and made to verify: what is believed comes out the same when it is written once more.
pub fn decode_segment_header(input: &[u8]) {
    let mut choices = Choices::new(input);
    let kind = choices.below(4);
    let is_forged = choices.one_in(2);
    let mut bytes = choices.rest().to_vec();
    match kind {
        0 => {
            if is_forged {
                forge::segment_header(&mut bytes);
            }
            check_header(&bytes);
        }
        1 => {
            if is_forged {
                forge::slot(&mut bytes);
            }
            check_slot(&bytes);
        }
        2 => check_base(&bytes),
        _ => check_name(&String::from_utf8_lossy(&bytes)),
    }
}

fn check_header(bytes: &[u8]) {
    let Ok(header) = SegmentHeader::decode(bytes) else { return };
    assert!(BLOCK_BYTES.contains(&header.block_bytes) && header.block_bytes.is_power_of_two());
    let block = u64::from(header.block_bytes);
    assert!(header.segment_bytes.is_multiple_of(block) && header.segment_bytes >= SEGMENT_BLOCKS_MIN * block);
    assert!(u32::try_from(header.segment_bytes).is_ok(), "offsets have 32 bits");
    assert_eq!(names::classify(&names::segment(header.sequence)), Name::Segment(header.sequence));
    let mut again = vec![0; HEADER_BYTES];
    header.encode(&mut again);
    assert_eq!(again, bytes[..HEADER_BYTES], "a header written once more");
}

fn check_slot(bytes: &[u8]) {
    if let SlotRead::Slot(slot) = Slot::decode(bytes) {
        assert_eq!(slot.encode(), bytes[..SLOT_BYTES], "a slot written once more");
    }
}

fn check_base(bytes: &[u8]) {
    let Some(state) = State::decode(bytes) else { return };
    let mut again = vec![0; state.encoded_bytes() as usize];
    state.encode(&mut again);
    assert_eq!(again, bytes, "a base written once more: {state:?}");
}

fn check_name(name: &str) {
    match names::classify(name) {
        Name::Segment(sequence) => assert_eq!(names::segment(sequence), name),
        Name::Index(sequence) => assert_eq!(names::index(sequence), name),
        Name::Lock => assert_eq!(name, names::LOCK),
        Name::Temporary => assert!(name.ends_with(".tmp")),
        Name::Cut => assert!(name.ends_with(".bin")),
        Name::Snapshot(index, term) => assert_eq!(names::snapshot(index, term), name),
        Name::SnapshotTemporary(index, term) => {
            check_random(name, |random| names::snapshot_temporary(index, term, random))
        }
        Name::SnapshotPartial(index, term) => check_random(name, |random| names::snapshot_partial(index, term, random)),
        Name::SnapshotDamaged(index, term) => check_random(name, |random| names::snapshot_damaged(index, term, random)),
        Name::Other => {}
    }
}

/// A name with a random number in it, which is its last part but one.
fn check_random(name: &str, make: impl Fn(u64) -> String) {
    let random = name.rsplit('.').nth(1).and_then(|digits| u64::from_str_radix(digits, 16).ok());
    assert_eq!(random.map(make).as_deref(), Some(name));
}

/// Inputs to begin with.
pub(super) fn seeds() -> Vec<(String, Vec<u8>)> {
    let header = SegmentHeader { log_id: [7; 16], sequence: 3, salt: 9, block_bytes: 512, segment_bytes: 24 * 512 };
    let mut segment = vec![0; HEADER_BYTES];
    header.encode(&mut segment);
    let slot = Slot { log_id: [7; 16], watermark: 40 }.encode();
    let pairs = [("term", "8"), ("vote", "3")].map(|(key, value)| (key.into(), value.into()));
    let hard_state = std::sync::Arc::new(pairs.into());
    let state = State { compacted: Some((4, 2)), first: Some(5), next: Some(9), last_term: 3, hard_state };
    let mut base = vec![0; state.encoded_bytes() as usize];
    state.encode(&mut base);
    let name = names::temporary(&names::segment(12));
    let parts = [("segment", 0, &segment[..]), ("slot", 1, &slot), ("base", 2, &base), ("name", 3, name.as_bytes())];
    let both = |forged: u8| parts.map(|(what, kind, bytes)| (format!("{what}-{forged}"), input(kind, forged, bytes)));
    [both(0), both(1)].concat()
}

fn input(kind: u8, forged: u8, bytes: &[u8]) -> Vec<u8> {
    [&[kind, forged], bytes].concat()
}
