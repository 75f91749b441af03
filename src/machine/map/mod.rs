//! The ordered map under the key-value machine: a B+ tree of which images share what did not change since.
//!
//! # Images
//!
//! An image is one more reference to the root. What only the map itself holds is changed in place; of what an image
//! holds too, the way down to a leaf is copied once (an inner node stands for hundreds of records), and the leaf gets a
//! **patch**: its changes, beside it. So memory grows by what is written, not by copies of what lies around it. A patch
//! that has grown to a third of its leaf becomes a leaf of its own.
//!
//! When an image ends, whoever drops it frees what only it held (an image that is written frees it on the way); the map
//! does nothing at that moment. Patches that no image needs any more are folded into their leaves when these are written
//! next, and by a sweep that goes on by a leaf or two with each write. Any number of images may live, and end in any
//! order: nothing piles up behind one that stays.
//!
//! # Memory
//!
//! A record is one allocation with key and value, 18 bytes more than these. A leaf has 24 bytes for each of its 32
//! places, of which random insertion fills two thirds, ascending insertion and restoring more.
//!
//! # What else there is
//!
//! Measured with 5 million records of 16-byte random keys and 100-byte values on two cores, one process each: nanoseconds
//! for a write of a new key, a read, an overwrite; and by how many MiB resident memory grew while an image lived and so
//! many records were rewritten at random, one in four of them removed. Allowed are 64 MiB and twice the bytes of keys and
//! values rewritten: 108 MiB after 200,000 of them, 174 after 500,000, 285 after a million.
//!
//! | map | licence | bytes a record | new | read | over | 200,000 | 500,000 | 1,000,000 |
//! |---|---|---|---|---|---|---|---|---|
//! | this one | | 185 | 786 | 1127 | 1110 | 52 | 99 | 164 |
//! | `std` `BTreeMap<Bytes, Bytes>`, no images | | 244 | 1456 | 1559 | 1597 | | | |
//! | the same frozen, with an overlay of changes | | 244 | 1535 | 1760 | 2010 | 35 | 93 | 182 |
//! | `imbl` 7.0 `OrdMap<Bytes, Bytes>` | MPL-2.0 | 248 | 2163 | 2533 | 2954 | 309 | 562 | 762 |
//! | `imbl` 7.0 `OrdSet` of records as here | MPL-2.0 | 187 | 1029 | 1652 | 1786 | 109 | 194 | 278 |
//! | `rpds` 1.2 `RedBlackTreeMapSync<Bytes, Bytes>` | MIT | 288 | 4016 | 3245 | 3202 | 80 | 168 | 281 |
//!
//! `imbl` copies leaves, and with them touches the reference count of every record in one: it is over the limit with
//! maps of any size, and its licence is another than ours; `im`, from which it comes, is no longer kept. `rpds` stays
//! below it, at three times the time. The overlay needs no copies at all, but every read looks twice, its changes have
//! to be brought back into the base one by one, and with images that overlap for ever the base is never free: layers pile
//! up. A patch for each leaf is that overlay in small, where it is wanted and no longer than it is.
//!
//! Does not know commands or encodings. Invariants are checked by [`tests`] after every step of random histories.

mod build;
mod node;
mod range;
mod sorted;
#[cfg(test)]
mod tests;
mod write;

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use node::{Fences, Node};
use sorted::{Record, Separator};
use write::Outcome;

pub(super) use build::Builder;
pub(super) use range::Range;
pub(super) use sorted::KEY_BYTES_MAX;

/// Leaves that a write folds on the side, at most.
const FOLDED_AT_ONCE: usize = 2;

/// A value up to this length is copied for who wants to keep it: that costs less than a reference to the record.
const COPIED_BYTES_MAX: usize = 1024;

/// A block that allocators do not keep at hand, but search for.
const SEARCHED_BYTES: usize = 4096;

/// Entries that do not change: an image of a map, and what it shares with the map.
#[derive(Clone, Debug, Default)]
pub(super) struct Entries {
    root: Node,
    len: u64,
    bytes: u64,
}

impl Entries {
    /// Number of keys.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Bytes of all keys and values.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The value, lent.
    pub(super) fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.root.get(key).map(Record::value)
    }

    /// The value, to keep.
    pub(super) fn get_bytes(&self, key: &[u8]) -> Option<Bytes> {
        let record = self.root.get(key)?;
        let value = record.value();
        Some(if value.len() <= COPIED_BYTES_MAX {
            Bytes::copy_from_slice(value)
        } else {
            Bytes::from_owner(Value(record.clone()))
        })
    }

    /// The entries in a range, in order. One that ends before it begins is empty.
    pub(super) fn range(&self, start: Bound<&[u8]>, end: Bound<&[u8]>) -> Range<'_> {
        Range::new(&self.root, start, end)
    }

    /// All entries, in order.
    pub(super) fn iter(&self) -> Range<'_> {
        self.range(Bound::Unbounded, Bound::Unbounded)
    }
}

/// A record of which the value is wanted.
struct Value(Record);

impl AsRef<[u8]> for Value {
    fn as_ref(&self) -> &[u8] {
        self.0.value()
    }
}

/// An ordered map from bytes to bytes.
#[derive(Debug, Default)]
pub(super) struct Map {
    entries: Entries,
    /// Held by every image too: so many live.
    images: Arc<()>,
    /// Images that lived at the last write.
    images_seen: usize,
    /// Leaves with patches.
    patched: u64,
    sweep: Sweep,
}

/// The folding of patches that no image needs any more.
#[derive(Debug, Default)]
struct Sweep {
    /// Where it goes on; `None` where none is under way.
    from: Option<Separator>,
    /// An image ended meanwhile: what was passed by may now be free.
    again: bool,
}

impl Map {
    fn from_parts(root: Node, len: u64, bytes: u64) -> Map {
        Map { entries: Entries { root, len, bytes }, ..Map::default() }
    }

    /// What it holds.
    pub(super) fn entries(&self) -> &Entries {
        &self.entries
    }

    /// Sets a key. Key and value are copied; the key has at most [`KEY_BYTES_MAX`] bytes.
    pub(super) fn insert(&mut self, key: &[u8], value: &[u8]) {
        let mut outcome = Outcome::default();
        let split = write::put(&mut self.entries.root, Fences::default(), (key, value), &mut outcome);
        if let Some((separator, right)) = split {
            let left = std::mem::take(&mut self.entries.root);
            self.entries.root = Node::parent(left, separator, right);
        }
        self.entries.bytes += value.len() as u64;
        match outcome.before {
            Some(before) => self.entries.bytes -= before as u64,
            None => {
                self.entries.bytes += key.len() as u64;
                self.entries.len += 1;
            }
        }
        self.written(&outcome);
    }

    /// Removes a key; whether it was there.
    pub(super) fn remove(&mut self, key: &[u8]) -> bool {
        // What is not there changes nothing, and copies nothing that an image holds.
        if self.entries.get(key).is_none() {
            return false;
        }
        let mut outcome = Outcome::default();
        write::remove(&mut self.entries.root, Fences::default(), key, &mut outcome);
        self.entries.root.lower();
        self.entries.len -= 1;
        self.entries.bytes -= (key.len() + outcome.before.unwrap_or_default()) as u64;
        self.written(&outcome);
        true
    }

    /// The entries as they are now, whatever comes.
    pub(super) fn image(&self) -> Image {
        Image { entries: self.entries.clone(), _lives: self.images.clone() }
    }

    /// After a write: a step of the sweep, where there is something to fold.
    fn written(&mut self, outcome: &Outcome) {
        self.patched = self.patched.saturating_add_signed(outcome.patched);
        let images = Arc::strong_count(&self.images) - 1;
        self.sweep.again |= images < self.images_seen;
        self.images_seen = images;
        if images > 0 || self.patched > 0 {
            tidy_up();
        }
        if self.patched == 0 {
            self.sweep = Sweep::default();
        } else if self.sweep.from.is_some() || self.sweep.again {
            self.sweep_on();
        }
    }

    fn sweep_on(&mut self) {
        let from = self.sweep.from.take().unwrap_or_else(|| {
            self.sweep.again = false;
            [].into()
        });
        let mut outcome = Outcome::default();
        self.sweep.from = write::fold(&mut self.entries.root, &from, None, FOLDED_AT_ONCE, &mut outcome);
        self.patched = self.patched.saturating_add_signed(outcome.patched);
    }
}

/// Lets the allocator sort what was freed lately.
///
/// Images and patches that end free many blocks, and glibc only lists them; it sorts up to ten thousand at once, for
/// milliseconds, when it is next asked for a block that it has to search for. Asked with each write, it sorts a few.
fn tidy_up() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(SEARCHED_BYTES)));
}

/// A map at one moment.
#[derive(Clone, Debug)]
pub(super) struct Image {
    // Dropped before the count of images falls.
    entries: Entries,
    _lives: Arc<()>,
}

impl Image {
    /// What the map held.
    pub(super) fn entries(&self) -> &Entries {
        &self.entries
    }

    /// Visits all entries in order, and frees on the way what only this image holds. Freed at once, it would be hundreds
    /// of thousands of blocks for some allocators to sort before the map's next write goes on: milliseconds.
    pub(super) fn drain<E>(self, mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), E>) -> Result<(), E> {
        self.entries.root.drain(&mut visit)
    }
}
