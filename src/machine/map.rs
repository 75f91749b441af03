//! The ordered map under the key-value machine.
//!
//! Does not know commands or encodings.

use std::collections::{BTreeMap, btree_map};
use std::ops::Bound;

use bytes::Bytes;

/// An ordered map from bytes to bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Map {
    tree: BTreeMap<Bytes, Bytes>,
    bytes: u64,
}

impl Map {
    /// Number of keys.
    pub(crate) fn len(&self) -> u64 {
        self.tree.len() as u64
    }

    /// Bytes of all keys and values.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The value, lent.
    pub(crate) fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.tree.get(key).map(|value| &value[..])
    }

    /// The value, to keep.
    pub(crate) fn get_bytes(&self, key: &[u8]) -> Option<Bytes> {
        self.tree.get(key).cloned()
    }

    /// Copies key and value: neither pins the buffer that it is a slice of.
    pub(crate) fn insert(&mut self, key: &[u8], value: &[u8]) {
        let previous = self.tree.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
        self.bytes += value.len() as u64;
        self.bytes -= previous.as_ref().map_or(0, |value| value.len() as u64);
        self.bytes += if previous.is_none() { key.len() as u64 } else { 0 };
    }

    /// Whether the key was there.
    pub(crate) fn remove(&mut self, key: &[u8]) -> bool {
        let removed = self.tree.remove(key);
        self.bytes -= removed.as_ref().map_or(0, |value| (key.len() + value.len()) as u64);
        removed.is_some()
    }

    /// The entries in a range, in order. One that ends before it begins is empty.
    pub(crate) fn range(&self, start: Bound<&[u8]>, end: Bound<&[u8]>) -> Range<'_> {
        Range(if is_empty(start, end) { None } else { Some(self.tree.range::<[u8], _>((start, end))) })
    }

    /// All entries, in order.
    pub(crate) fn iter(&self) -> Range<'_> {
        self.range(Bound::Unbounded, Bound::Unbounded)
    }

    /// The map as it is now.
    pub(crate) fn image(&self) -> Map {
        self.clone()
    }
}

/// Whether no key can be in a range.
fn is_empty(start: Bound<&[u8]>, end: Bound<&[u8]>) -> bool {
    match (start, end) {
        (Bound::Included(start), Bound::Included(end)) => start > end,
        (Bound::Included(start) | Bound::Excluded(start), Bound::Included(end) | Bound::Excluded(end)) => start >= end,
        _ => false,
    }
}

/// The entries of a range.
#[derive(Clone, Debug)]
pub(crate) struct Range<'a>(Option<btree_map::Range<'a, Bytes, Bytes>>);

impl<'a> Iterator for Range<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.as_mut()?.next().map(|(key, value)| (&key[..], &value[..]))
    }
}

/// Builds a map from entries in ascending order.
#[derive(Debug, Default)]
pub(crate) struct Builder(Map);

impl Builder {
    /// Keys must come in ascending order.
    pub(crate) fn push(&mut self, key: &[u8], value: &[u8]) {
        self.0.insert(key, value);
    }

    pub(crate) fn finish(self) -> Map {
        self.0
    }
}
