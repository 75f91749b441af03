//! What a node holds: a few keyed items in order, of which most comparisons see only a number.
//!
//! All keys that can come into a node share its first `skip` bytes; the next eight, as a number, are the item's **head**.
//! Heads stand side by side, so a search touches few cache lines; a key itself is looked at where heads are equal.

use std::sync::Arc;

/// Bytes before a record's key: its length.
const KEY_LENGTH_BYTES: usize = 2;

/// The longest key of a record.
pub(in crate::machine) const KEY_BYTES_MAX: usize = u16::MAX as usize;

/// Something with a key.
pub(super) trait Keyed {
    fn key(&self) -> &[u8];
}

/// Where two nodes meet: no longer than it takes to tell their keys apart.
pub(super) type Separator = Arc<[u8]>;

impl Keyed for Separator {
    fn key(&self) -> &[u8] {
        self
    }
}

/// The shortest separator: above `left`, and not above `right`.
pub(super) fn separator(left: &[u8], right: &[u8]) -> Separator {
    right[..(common(left, right) + 1).min(right.len())].into()
}

/// How many bytes two strings have in common at their beginning.
pub(super) fn common(left: &[u8], right: &[u8]) -> usize {
    left.iter().zip(right).take_while(|(left, right)| left == right).count()
}

/// A key and its value, in one allocation of their own: neither pins a buffer that it was a slice of.
///
/// ```text
/// | key bytes: u16 | key | value |
/// ```
#[derive(Clone, Debug)]
pub(super) struct Record(Arc<[u8]>);

impl Keyed for Record {
    fn key(&self) -> &[u8] {
        &self.0[KEY_LENGTH_BYTES..self.value_at()]
    }
}

impl Record {
    pub(super) fn new(key: &[u8], value: &[u8]) -> Record {
        debug_assert!(key.len() <= KEY_BYTES_MAX, "the machine refuses longer ones");
        let value_at = KEY_LENGTH_BYTES + key.len();
        // An iterator of known length: one allocation, which nobody else has yet.
        let mut record: Arc<[u8]> = std::iter::repeat_n(0, value_at + value.len()).collect();
        let bytes = Arc::make_mut(&mut record);
        bytes[..KEY_LENGTH_BYTES].copy_from_slice(&(key.len() as u16).to_le_bytes());
        bytes[KEY_LENGTH_BYTES..value_at].copy_from_slice(key);
        bytes[value_at..].copy_from_slice(value);
        Record(record)
    }

    fn value_at(&self) -> usize {
        KEY_LENGTH_BYTES + usize::from(u16::from_le_bytes([self.0[0], self.0[1]]))
    }

    pub(super) fn value(&self) -> &[u8] {
        &self.0[self.value_at()..]
    }

    /// Key and value.
    pub(super) fn entry(&self) -> (&[u8], &[u8]) {
        (self.key(), self.value())
    }

    /// Replaces the value, in place if it fits and nobody else sees the record. Gives the length of the value before.
    pub(super) fn set_value(&mut self, value: &[u8]) -> usize {
        let (value_at, bytes) = (self.value_at(), self.0.len());
        match Arc::get_mut(&mut self.0) {
            Some(record) if bytes == value_at + value.len() => record[value_at..].copy_from_slice(value),
            _ => *self = Record::new(self.key(), value),
        }
        bytes - value_at
    }
}

/// The eight bytes after `skip` as a number that is ordered as they are.
pub(super) fn head(key: &[u8], skip: usize) -> u64 {
    let rest = key.get(skip..).unwrap_or_default();
    match rest.first_chunk() {
        Some(chunk) => u64::from_be_bytes(*chunk),
        None => {
            let mut chunk = [0; 8];
            chunk[..rest.len()].copy_from_slice(rest);
            u64::from_be_bytes(chunk)
        }
    }
}

/// Finds a key among sorted ones, of which `heads` are known: its place, or the place where it belongs.
pub(super) fn find<'a>(
    heads: impl Fn(usize) -> u64,
    len: usize,
    head: u64,
    key_of: impl Fn(usize) -> &'a [u8],
    key: &[u8],
) -> Result<usize, usize> {
    let (mut low, mut high) = (0, len);
    while low < high {
        let middle = (low + high) / 2;
        match heads(middle).cmp(&head).then_with(|| key_of(middle).cmp(key)) {
            std::cmp::Ordering::Less => low = middle + 1,
            std::cmp::Ordering::Equal => return Ok(middle),
            std::cmp::Ordering::Greater => high = middle,
        }
    }
    Err(low)
}

/// Up to `N` items in the order of their keys.
#[derive(Clone, Debug)]
pub(super) struct Sorted<T, const N: usize> {
    skip: u32,
    len: u32,
    heads: [u64; N],
    items: [Option<T>; N],
}

impl<T: Keyed, const N: usize> Sorted<T, N> {
    pub(super) fn new(skip: usize) -> Sorted<T, N> {
        Sorted { skip: skip as u32, len: 0, heads: [0; N], items: [const { None }; N] }
    }

    pub(super) fn len(&self) -> usize {
        self.len as usize
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() == N
    }

    pub(super) fn skip(&self) -> usize {
        self.skip as usize
    }

    pub(super) fn get(&self, at: usize) -> Option<&T> {
        self.items.get(at)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, at: usize) -> Option<&mut T> {
        self.items.get_mut(at)?.as_mut()
    }

    pub(super) fn last(&self) -> Option<&T> {
        self.get(self.len().checked_sub(1)?)
    }

    pub(super) fn head_at(&self, at: usize) -> u64 {
        self.heads[at]
    }

    /// The key's head in this node.
    pub(super) fn head_of(&self, key: &[u8]) -> u64 {
        head(key, self.skip())
    }

    /// Where a key is, or where it belongs.
    pub(super) fn find(&self, key: &[u8]) -> Result<usize, usize> {
        let key_of = |at: usize| self.get(at).map_or(&[][..], Keyed::key);
        find(|at| self.heads[at], self.len(), self.head_of(key), key_of, key)
    }

    /// Puts an item where it belongs. There must be room.
    pub(super) fn insert(&mut self, at: usize, item: T) {
        let len = self.len();
        self.heads[len] = self.head_of(item.key());
        self.items[len] = Some(item);
        self.heads[at..=len].rotate_right(1);
        self.items[at..=len].rotate_right(1);
        self.len += 1;
    }

    /// Appends an item. There must be room.
    pub(super) fn push(&mut self, item: T) {
        self.insert(self.len(), item);
    }

    pub(super) fn remove(&mut self, at: usize) -> Option<T> {
        let removed = self.items[at].take()?;
        let len = self.len();
        self.heads[at..len].rotate_left(1);
        self.items[at..len].rotate_left(1);
        self.len -= 1;
        Some(removed)
    }

    /// Takes the items from a place on.
    pub(super) fn split_off(&mut self, at: usize) -> Sorted<T, N> {
        let mut right = Sorted::new(self.skip());
        let (from, to) = (at.min(self.len()), self.len());
        right.heads[..to - from].copy_from_slice(&self.heads[from..to]);
        right.items[..to - from].swap_with_slice(&mut self.items[from..to]);
        right.len = (to - from) as u32;
        self.len = from as u32;
        right
    }

    /// All keys that can come here share so many bytes at their beginning.
    pub(super) fn set_skip(&mut self, skip: usize) {
        if skip == self.skip() {
            return;
        }
        self.skip = skip as u32;
        for (item, slot) in self.items.iter().flatten().zip(&mut self.heads) {
            *slot = head(item.key(), skip);
        }
    }
}
