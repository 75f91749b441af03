//! The nodes of the tree, and how a leaf is changed that an image holds.

use std::sync::Arc;

use super::sorted::{Keyed, Record, Separator, Sorted, common, find};

/// Records in a leaf, at most.
pub(super) const SLOTS: usize = 32;
/// Children of an inner node, at most.
pub(super) const FAN: usize = 32;
/// A node with fewer looks for a neighbour to be merged with.
pub(super) const LOW: usize = SLOTS / 4;
/// Nodes are merged if they have so many together.
pub(super) const MERGED_MAX: usize = SLOTS * 3 / 4;
/// A patch with more changes becomes a leaf of its own: a copy for so many changes costs less than half of each.
const CHANGES_MAX: usize = 12;

/// Records in the order of their keys.
pub(super) type Leaf = Sorted<Record, SLOTS>;

/// A place in the tree. What is held twice is shared with an image and never changes again.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Inner(Arc<Inner>),
    Leaf(Arc<Leaf>),
    Patched(Arc<Patched>),
}

/// Children, and the keys where they meet: those of child `i` lie below key `i` and not below key `i - 1`.
#[derive(Clone, Debug)]
pub(super) struct Inner {
    pub(super) keys: Sorted<Separator, { FAN - 1 }>,
    pub(super) children: [Option<Node>; FAN],
}

/// A leaf that an image holds, and what changed since.
///
/// Changing one of a leaf's records must not cost a copy of the leaf: the copies would be many times what was written.
#[derive(Clone, Debug)]
pub(super) struct Patched {
    pub(super) base: Arc<Leaf>,
    /// In the order of their keys.
    pub(super) changes: Vec<Change>,
    /// Records, with the changes.
    len: usize,
}

/// A record that is new, or one of the leaf's that is gone.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) head: u64,
    pub(super) record: Record,
    pub(super) is_gone: bool,
}

/// The keys that can come to a node: not below the first, below the second; where there is none, without bound.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fences<'a> {
    pub(super) low: Option<&'a Separator>,
    pub(super) high: Option<&'a Separator>,
}

impl Fences<'_> {
    /// How many bytes all keys between have in common, at least.
    pub(super) fn skip(self) -> usize {
        match (self.low, self.high) {
            (Some(low), Some(high)) => common(low, high),
            _ => 0,
        }
    }
}

impl Default for Node {
    fn default() -> Node {
        Node::leaf(Leaf::new(0))
    }
}

impl Node {
    pub(super) fn leaf(leaf: Leaf) -> Node {
        Node::Leaf(Arc::new(leaf))
    }

    /// A new root over two nodes.
    pub(super) fn parent(left: Node, separator: Separator, right: Node) -> Node {
        let mut inner = Inner::new(0, left);
        inner.insert(0, separator, right);
        Node::Inner(Arc::new(inner))
    }

    /// Makes a root's only child the root.
    pub(super) fn lower(&mut self) {
        while let Node::Inner(inner) = self
            && inner.len() == 1
            && let Some(child) = inner.child(0)
        {
            *self = child.clone();
        }
    }

    /// Records of a leaf, children of an inner node.
    pub(super) fn len(&self) -> usize {
        match self {
            Node::Inner(inner) => inner.len(),
            Node::Leaf(leaf) => leaf.len(),
            Node::Patched(patched) => patched.len,
        }
    }

    /// The record with a key.
    pub(super) fn get(&self, key: &[u8]) -> Option<&Record> {
        let mut node = self;
        while let Node::Inner(inner) = node {
            node = inner.child(inner.route(key))?;
        }
        match node {
            Node::Patched(patched) => patched.get(key),
            Node::Leaf(leaf) => leaf.get(leaf.find(key).ok()?),
            Node::Inner(_) => None,
        }
    }

    /// The records of a leaf.
    pub(super) fn records(&self) -> Records<'_> {
        match self {
            Node::Inner(_) => Records { base: None, base_at: 0, changes: &[] },
            Node::Leaf(leaf) => Records { base: Some(leaf), base_at: 0, changes: &[] },
            Node::Patched(patched) => Records { base: Some(&patched.base), base_at: 0, changes: &patched.changes },
        }
    }

    /// Visits all entries in order, and frees what is held nowhere else.
    pub(super) fn drain<E>(self, visit: &mut impl FnMut(&[u8], &[u8]) -> Result<(), E>) -> Result<(), E> {
        let Node::Inner(mut inner) = self else {
            return self.records().map(Record::entry).try_for_each(|(key, value)| visit(key, value));
        };
        for at in 0..inner.len() {
            let child = match Arc::get_mut(&mut inner) {
                Some(inner) => inner.children[at].take(),
                None => inner.child(at).cloned(),
            };
            child.map_or(Ok(()), |child| child.drain(visit))?;
        }
        Ok(())
    }

    /// Makes a leaf with a patch a plain one, in place, if no image holds it any more. Whether it did.
    pub(super) fn fold(&mut self) -> bool {
        let Node::Patched(patched) = self else { return false };
        let Some(base) = Arc::get_mut(patched).and_then(Patched::fold) else { return false };
        *self = Node::Leaf(base);
        true
    }
}

impl Inner {
    pub(super) fn new(skip: usize, first: Node) -> Inner {
        let mut children = [const { None }; FAN];
        children[0] = Some(first);
        Inner { keys: Sorted::new(skip), children }
    }

    /// Number of children.
    pub(super) fn len(&self) -> usize {
        self.keys.len() + 1
    }

    /// Which child a key belongs to.
    pub(super) fn route(&self, key: &[u8]) -> usize {
        self.keys.find(key).map_or_else(|at| at, |at| at + 1)
    }

    pub(super) fn child(&self, at: usize) -> Option<&Node> {
        self.children.get(at)?.as_ref()
    }

    /// What can come to the children from `first` to `last`.
    pub(super) fn fences<'a>(&'a self, first: usize, last: usize, own: Fences<'a>) -> Fences<'a> {
        Fences {
            low: first.checked_sub(1).map_or(own.low, |before| self.keys.get(before)),
            high: self.keys.get(last).or(own.high),
        }
    }

    /// A child to be changed, and what can come to it.
    pub(super) fn child_mut<'a>(&'a mut self, at: usize, own: Fences<'a>) -> Option<(&'a mut Node, Fences<'a>)> {
        let Inner { keys, children } = self;
        let low = at.checked_sub(1).map_or(own.low, |before| keys.get(before));
        let fences = Fences { low, high: keys.get(at).or(own.high) };
        Some((children.get_mut(at)?.as_mut()?, fences))
    }

    /// Puts a child behind the one at `at`. There must be room.
    pub(super) fn insert(&mut self, at: usize, key: Separator, child: Node) {
        let len = self.len();
        self.keys.insert(at, key);
        self.children[len] = Some(child);
        self.children[at + 1..=len].rotate_right(1);
    }

    /// Takes the child behind the one at `at`, and the key where they meet.
    pub(super) fn remove_after(&mut self, at: usize) -> Option<(Separator, Node)> {
        let len = self.len();
        let key = self.keys.remove(at)?;
        let child = self.children[at + 1].take()?;
        self.children[at + 1..len].rotate_left(1);
        Some((key, child))
    }

    /// Takes the children from `at` on, which is not the first; gives them, and the key where the two nodes meet.
    pub(super) fn split_off(&mut self, at: usize) -> Option<(Separator, Inner)> {
        let len = self.len();
        let keys = self.keys.split_off(at);
        let key = self.keys.remove(at - 1)?;
        let mut children = [const { None }; FAN];
        children[..len - at].swap_with_slice(&mut self.children[at..len]);
        Some((key, Inner { keys, children }))
    }
}

impl Patched {
    pub(super) fn new(base: Arc<Leaf>) -> Patched {
        let len = base.len();
        Patched { base, changes: Vec::with_capacity(1), len }
    }

    fn find(&self, key: &[u8]) -> Result<usize, usize> {
        let (changes, head) = (&self.changes, self.base.head_of(key));
        find(|at| changes[at].head, changes.len(), head, |at| changes[at].record.key(), key)
    }

    fn get(&self, key: &[u8]) -> Option<&Record> {
        match self.find(key) {
            Ok(at) => Some(&self.changes[at].record).filter(|_| !self.changes[at].is_gone),
            Err(_) => self.base.get(self.base.find(key).ok()?),
        }
    }

    /// The leaf's own record with a key.
    fn in_base(&self, key: &[u8]) -> Option<&Record> {
        self.base.get(self.base.find(key).ok()?)
    }

    /// Whether it has grown too far for a patch.
    pub(super) fn is_full(&self) -> bool {
        self.changes.len() > CHANGES_MAX || self.len > SLOTS
    }

    /// Sets a key. Gives the length of its value before.
    pub(super) fn put(&mut self, key: &[u8], value: &[u8]) -> Option<usize> {
        let before = match self.find(key) {
            Ok(at) => {
                let change = &mut self.changes[at];
                let before = change.record.set_value(value);
                Some(before).filter(|_| !std::mem::take(&mut change.is_gone))
            }
            Err(at) => {
                let before = self.in_base(key).map(|record| record.value().len());
                let head = self.base.head_of(key);
                self.changes.insert(at, Change { head, record: Record::new(key, value), is_gone: false });
                before
            }
        };
        self.len += usize::from(before.is_none());
        before
    }

    /// Removes a key. Gives the length of its value.
    pub(super) fn remove(&mut self, key: &[u8]) -> Option<usize> {
        let before = self.get(key)?.value().len();
        self.len -= 1;
        let head = self.base.head_of(key);
        let gone = self.in_base(key).map(|record| Change { head, record: record.clone(), is_gone: true });
        match (self.find(key), gone) {
            (Ok(at), Some(gone)) => self.changes[at] = gone,
            (Ok(at), None) => _ = self.changes.remove(at),
            (Err(at), Some(gone)) => self.changes.insert(at, gone),
            (Err(_), None) => (),
        }
        Some(before)
    }

    /// Brings the changes into the leaf, if nobody else holds it, and gives it.
    fn fold(&mut self) -> Option<Arc<Leaf>> {
        let base = Arc::get_mut(&mut self.base)?;
        // What goes makes room for what comes.
        let (gone, new): (Vec<_>, Vec<_>) = self.changes.drain(..).partition(|change| change.is_gone);
        for change in gone {
            base.find(change.record.key()).ok().and_then(|at| base.remove(at));
        }
        for Change { record, .. } in new {
            match base.find(record.key()) {
                Ok(at) => base.get_mut(at).into_iter().for_each(|found| *found = record.clone()),
                Err(at) => base.insert(at, record),
            }
        }
        Some(self.base.clone())
    }
}

/// The records of a leaf with its changes, in order.
#[derive(Clone, Debug)]
pub(super) struct Records<'a> {
    base: Option<&'a Leaf>,
    base_at: usize,
    changes: &'a [Change],
}

impl<'a> Records<'a> {
    /// Goes on at the first key that is not below this one.
    pub(super) fn seek(&mut self, key: &[u8]) {
        let Some(base) = self.base else { return };
        self.base_at = base.find(key).unwrap_or_else(|at| at);
        let (changes, head) = (self.changes, base.head_of(key));
        let at = find(|at| changes[at].head, changes.len(), head, |at| changes[at].record.key(), key);
        self.changes = &changes[at.unwrap_or_else(|at| at)..];
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = &'a Record;

    fn next(&mut self) -> Option<&'a Record> {
        let base = self.base?;
        loop {
            let old = base.get(self.base_at);
            let Some((change, rest)) = self.changes.split_first() else {
                self.base_at += 1;
                return old;
            };
            let by_head = |old| {
                base.head_at(self.base_at).cmp(&change.head).then_with(|| Record::key(old).cmp(change.record.key()))
            };
            match old.map(by_head) {
                Some(std::cmp::Ordering::Less) => {
                    self.base_at += 1;
                    return old;
                }
                Some(std::cmp::Ordering::Equal) => self.base_at += 1,
                Some(std::cmp::Ordering::Greater) | None => (),
            }
            self.changes = rest;
            if !change.is_gone {
                return Some(&change.record);
            }
        }
    }
}
