//! Threads that write to a store side by side, each with keys of its own, and what they leave: the whole content follows
//! from how many writes of each are in it.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use bytes::Bytes;
use ringwal::machine::KvOp;
use ringwal::sim::Rng;

pub(crate) const WRITERS: u64 = 3;
/// Keys of a writer, which it uses in turn.
pub(crate) const SLOTS: u64 = 40;
/// Every so many-th write removes its key.
const REMOVES: u64 = 7;

/// What the n-th write of a writer puts under its slot.
fn value(writer: u64, n: u64) -> Bytes {
    let mut rng = Rng::of_part(writer, &[n]);
    (0..100 + rng.below(400)).map(|_| rng.next_u64() as u8).collect()
}

fn slot(writer: u64, n: u64) -> Bytes {
    Bytes::from(format!("{writer}/slot {}", n % SLOTS))
}

fn head(writer: u64) -> Bytes {
    Bytes::from(format!("{writer}/head"))
}

/// The n-th write of a writer, from 1: its number, and its slot's value.
pub(crate) fn write(writer: u64, n: u64) -> Vec<KvOp> {
    let key = slot(writer, n);
    let slot = match n % REMOVES {
        0 => KvOp::Delete { key },
        _ => KvOp::Put { key, value: value(writer, n) },
    };
    vec![KvOp::Put { key: head(writer), value: Bytes::copy_from_slice(&n.to_le_bytes()) }, slot]
}

/// How many writes of a writer are there, where this leads from keys to values.
pub(crate) fn written(writer: u64, get: impl Fn(&[u8]) -> Option<Bytes>) -> u64 {
    get(&head(writer)).map_or(0, |bytes| u64::from_le_bytes(bytes[..].try_into().unwrap()))
}

/// What a writer leaves after so many writes.
fn left(writer: u64, n: u64) -> BTreeMap<Bytes, Bytes> {
    let writes = (n.saturating_sub(SLOTS) + 1..=n).filter(|n| n % REMOVES != 0);
    let mut left: BTreeMap<Bytes, Bytes> = writes.map(|n| (slot(writer, n), value(writer, n))).collect();
    if n > 0 {
        left.insert(head(writer), Bytes::copy_from_slice(&n.to_le_bytes()));
    }
    left
}

/// Holds a content against what the writers must and may have written; returns how many writes of each there are.
pub(crate) fn check(
    content: &BTreeMap<Bytes, Bytes>,
    told: impl Fn(u64) -> RangeInclusive<u64>,
) -> Result<[u64; WRITERS as usize], String> {
    let mut found = [0; WRITERS as usize];
    let mut expected = BTreeMap::new();
    for (writer, found) in (0..).zip(&mut found) {
        *found = written(writer, |key| content.get(key).cloned());
        if !told(writer).contains(found) {
            return Err(format!("{found} writes of writer {writer}, and it was told of {:?}", told(writer)));
        }
        expected.extend(left(writer, *found));
    }
    if *content == expected { Ok(found) } else { Err(format!("it is not what {found:?} writes leave")) }
}
