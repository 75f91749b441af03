//! Building a map from entries in order: nodes are filled one after the other, and none is touched again.
//!
//! Beside the tree itself there is one node of each level: building takes no more memory than what is built.

use std::sync::Arc;

use super::Map;
use super::node::{FAN, Fences, Inner, Leaf, Node, SLOTS};
use super::sorted::{Keyed, Record, Separator, separator};

/// Records in a leaf and children in an inner node: some room stays, or the first changes would split every node.
const FILL: usize = SLOTS - 3;
const _: () = assert!(FILL <= FAN);

/// Builds a map from entries in ascending order.
#[derive(Debug)]
pub(in crate::machine) struct Builder {
    /// The leaf that is being filled, and where it begins.
    leaf: Leaf,
    low: Option<Separator>,
    /// The inner nodes that are being filled, those above the leaves first.
    levels: Vec<Level>,
    len: u64,
    bytes: u64,
}

/// An inner node that is being filled.
#[derive(Clone, Debug)]
struct Level {
    inner: Inner,
    low: Option<Separator>,
}

impl Default for Builder {
    fn default() -> Builder {
        Builder { leaf: Leaf::new(0), low: None, levels: Vec::new(), len: 0, bytes: 0 }
    }
}

impl Builder {
    /// The next entry. Its key must be above all before.
    pub(in crate::machine) fn push(&mut self, key: &[u8], value: &[u8]) {
        if self.leaf.len() >= FILL {
            self.close_leaf(key);
        }
        self.leaf.push(Record::new(key, value));
        self.len += 1;
        self.bytes += (key.len() + value.len()) as u64;
    }

    /// The leaf is full, and the next begins with this key.
    fn close_leaf(&mut self, next: &[u8]) {
        let high = separator(self.leaf.last().map_or(&[], Keyed::key), next);
        let mut leaf = std::mem::replace(&mut self.leaf, Leaf::new(0));
        let low = self.low.replace(high.clone());
        leaf.set_skip(Fences { low: low.as_ref(), high: Some(&high) }.skip());
        self.add(0, low, Node::leaf(leaf));
    }

    /// Adds a node that begins at `low` to the inner node of a level.
    fn add(&mut self, nth: usize, low: Option<Separator>, node: Node) {
        let Some(level) = self.levels.get_mut(nth) else {
            self.levels.push(Level { inner: Inner::new(0, node), low });
            return;
        };
        // The first node of all has no lower end, and it is never behind another.
        let Some(key) = low else { return };
        if level.inner.len() < FILL {
            let at = level.inner.len() - 1;
            level.inner.insert(at, key, node);
            return;
        }
        let next = Level { inner: Inner::new(0, node), low: Some(key.clone()) };
        let Level { mut inner, low } = std::mem::replace(level, next);
        inner.keys.set_skip(Fences { low: low.as_ref(), high: Some(&key) }.skip());
        self.add(nth + 1, low, Node::Inner(Arc::new(inner)));
    }

    /// The map of all that was pushed.
    pub(in crate::machine) fn finish(mut self) -> Map {
        let (mut node, mut low) = (Node::leaf(self.leaf), self.low.take());
        self.leaf = Leaf::new(0);
        let mut nth = 0;
        while nth < self.levels.len() {
            self.add(nth, low, node);
            let Level { inner, low: from } = self.levels[nth].clone();
            (node, low) = (Node::Inner(Arc::new(inner)), from);
            nth += 1;
        }
        Map::from_parts(node, self.len, self.bytes)
    }
}
