//! Reading in order: one leaf after the other, each with its patch.

use std::ops::Bound;

use super::node::{Inner, Node, Records};
use super::sorted::{Keyed, Record};

/// The entries of a range, in order.
#[derive(Clone, Debug)]
pub(in crate::machine) struct Range<'a> {
    /// The way down to the leaf, and at each node the child that comes next.
    way: Vec<(&'a Inner, usize)>,
    records: Option<Records<'a>>,
    end: Bound<Vec<u8>>,
    /// A first key that does not count.
    not: Option<Vec<u8>>,
}

impl<'a> Range<'a> {
    pub(super) fn new(root: &'a Node, start: Bound<&[u8]>, end: Bound<&[u8]>) -> Range<'a> {
        let (from, not) = match start {
            Bound::Included(key) => (key, None),
            Bound::Excluded(key) => (key, Some(key.to_vec())),
            Bound::Unbounded => (&[][..], None),
        };
        let mut range = Range { way: Vec::new(), records: None, end: end.map(<[u8]>::to_vec), not };
        range.descend(root, |inner| inner.route(from));
        range.records.iter_mut().for_each(|records| records.seek(from));
        range
    }

    fn descend(&mut self, mut node: &'a Node, route: impl Fn(&Inner) -> usize) {
        while let Node::Inner(inner) = node {
            let at = route(inner);
            self.way.push((inner, at + 1));
            let Some(child) = inner.child(at) else { return };
            node = child;
        }
        self.records = Some(node.records());
    }

    /// Goes to the next leaf.
    fn advance(&mut self) -> Option<()> {
        loop {
            let (inner, next) = self.way.last_mut()?;
            match inner.child(*next) {
                Some(child) => {
                    *next += 1;
                    self.descend(child, |_| 0);
                    return Some(());
                }
                None => _ = self.way.pop(),
            }
        }
    }

    fn next_record(&mut self) -> Option<&'a Record> {
        loop {
            if let Some(record) = self.records.as_mut()?.next() {
                return Some(record);
            }
            if self.advance().is_none() {
                self.records = None;
            }
        }
    }

    fn is_within(&self, key: &[u8]) -> bool {
        match &self.end {
            Bound::Included(end) => key <= &end[..],
            Bound::Excluded(end) => key < &end[..],
            Bound::Unbounded => true,
        }
    }
}

impl<'a> Iterator for Range<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let mut record = self.next_record()?;
        if self.not.take().is_some_and(|not| not == record.key()) {
            record = self.next_record()?;
        }
        if !self.is_within(record.key()) {
            self.records = None;
            return None;
        }
        Some(record.entry())
    }
}
