//! Changing the tree: in place where nobody else looks, by a copy of the way down or a patch where an image does.

use std::sync::Arc;

use super::node::{FAN, Fences, Inner, LOW, Leaf, MERGED_MAX, Node, Patched, SLOTS};
use super::sorted::{Keyed, Record, Separator, separator};

/// What a change did.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Length of the value that the key had before.
    pub(super) before: Option<usize>,
    /// By how many leaves with patches there are more, or fewer.
    pub(super) patched: i64,
}

/// What came off a node that was full, and the key from which on it holds them.
type Split = Option<(Separator, Node)>;

/// Sets a key below a node.
pub(super) fn put(node: &mut Node, fences: Fences<'_>, entry: (&[u8], &[u8]), outcome: &mut Outcome) -> Split {
    let Node::Inner(inner) = node else { return put_in_leaf(node, fences, entry, outcome) };
    let inner = Arc::make_mut(inner);
    let at = inner.route(entry.0);
    let (child, child_fences) = inner.child_mut(at, fences)?;
    let (key, right) = put(child, child_fences, entry, outcome)?;
    put_child(inner, at, (key, right), fences)
}

fn put_child(inner: &mut Inner, at: usize, (key, child): (Separator, Node), fences: Fences<'_>) -> Split {
    if inner.len() < FAN {
        inner.insert(at, key, child);
        return None;
    }
    // Children that come at the end will go on doing so: the node stays full.
    let cut = if at + 1 == FAN { FAN - 1 } else { FAN / 2 };
    let (middle, mut right) = inner.split_off(cut)?;
    if at >= cut {
        right.insert(at - cut, key, child)
    } else {
        inner.insert(at, key, child)
    }
    inner.keys.set_skip(Fences { high: Some(&middle), ..fences }.skip());
    right.keys.set_skip(Fences { low: Some(&middle), ..fences }.skip());
    Some((middle, Node::Inner(Arc::new(right))))
}

fn put_in_leaf(node: &mut Node, fences: Fences<'_>, entry: (&[u8], &[u8]), outcome: &mut Outcome) -> Split {
    outcome.patched -= i64::from(node.fold());
    if let Node::Leaf(leaf) = node
        && let Some(leaf) = Arc::get_mut(leaf)
    {
        return put_in_place(leaf, fences, entry, outcome);
    }
    let patched = patch(node, outcome)?;
    outcome.before = patched.put(entry.0, entry.1);
    if patched.is_full() { settle(node, fences, outcome) } else { None }
}

/// The patch of a leaf, a new one if it has none.
fn patch<'a>(node: &'a mut Node, outcome: &mut Outcome) -> Option<&'a mut Patched> {
    if let Node::Leaf(leaf) = node {
        *node = Node::Patched(Arc::new(Patched::new(leaf.clone())));
        outcome.patched += 1;
    }
    match node {
        Node::Patched(patched) => Some(Arc::make_mut(patched)),
        _ => None,
    }
}

fn put_in_place(leaf: &mut Leaf, fences: Fences<'_>, (key, value): (&[u8], &[u8]), outcome: &mut Outcome) -> Split {
    let at = match leaf.find(key) {
        Ok(at) => {
            outcome.before = leaf.get_mut(at).map(|record| record.set_value(value));
            return None;
        }
        Err(at) => at,
    };
    let record = Record::new(key, value);
    if !leaf.is_full() {
        leaf.insert(at, record);
        return None;
    }
    // Keys that come at an end will go on doing so: the leaf stays full.
    let cut = if at == 0 || at == SLOTS { at } else { SLOTS / 2 };
    let mut right = leaf.split_off(cut);
    if at > cut || cut == SLOTS {
        right.insert(at - cut, record)
    } else {
        leaf.insert(at, record)
    }
    Some(part(leaf, right, fences))
}

/// Tells two leaves apart that are one no longer.
fn part(left: &mut Leaf, mut right: Leaf, fences: Fences<'_>) -> (Separator, Node) {
    let key = separator(left.last().map_or(&[], Keyed::key), right.get(0).map_or(&[], Keyed::key));
    left.set_skip(Fences { high: Some(&key), ..fences }.skip());
    right.set_skip(Fences { low: Some(&key), ..fences }.skip());
    (key, Node::leaf(right))
}

/// Makes a leaf with a patch one leaf, or two, of its own.
fn settle(node: &mut Node, fences: Fences<'_>, outcome: &mut Outcome) -> Split {
    let len = node.len();
    let mut records = node.records().cloned();
    let skip = fences.skip();
    let mut left = leaf_of(records.by_ref().take(if len > SLOTS { len / 2 } else { len }), skip);
    let right = leaf_of(records, skip);
    let split = if right.len() > 0 { Some(part(&mut left, right, fences)) } else { None };
    *node = Node::leaf(left);
    outcome.patched -= 1;
    split
}

fn leaf_of(records: impl Iterator<Item = Record>, skip: usize) -> Leaf {
    let mut leaf = Leaf::new(skip);
    records.for_each(|record| leaf.push(record));
    leaf
}

/// Removes a key below a node, where it is.
pub(super) fn remove(node: &mut Node, fences: Fences<'_>, key: &[u8], outcome: &mut Outcome) {
    let Node::Inner(inner) = node else { return remove_in_leaf(node, fences, key, outcome) };
    let inner = Arc::make_mut(inner);
    let at = inner.route(key);
    let Some((child, child_fences)) = inner.child_mut(at, fences) else { return };
    remove(child, child_fences, key, outcome);
    if child.len() < LOW {
        merge_around(inner, at, fences, outcome);
    }
}

fn remove_in_leaf(node: &mut Node, fences: Fences<'_>, key: &[u8], outcome: &mut Outcome) {
    outcome.patched -= i64::from(node.fold());
    if let Node::Leaf(leaf) = node
        && let Some(leaf) = Arc::get_mut(leaf)
    {
        let removed = leaf.find(key).ok().and_then(|at| leaf.remove(at));
        outcome.before = removed.map(|record| record.value().len());
        return;
    }
    let Some(patched) = patch(node, outcome) else { return };
    outcome.before = patched.remove(key);
    if patched.is_full() {
        settle(node, fences, outcome);
    }
}

/// Merges a child with one of its neighbours, if they fit together well.
fn merge_around(inner: &mut Inner, at: usize, fences: Fences<'_>, outcome: &mut Outcome) {
    for left in [at.checked_sub(1), Some(at)].into_iter().flatten() {
        let (Some(first), Some(second)) = (inner.child(left), inner.child(left + 1)) else { continue };
        let (lens, is_inner) = ([first.len(), second.len()], matches!(first, Node::Inner(_)));
        let fit = lens.iter().sum::<usize>() <= MERGED_MAX || (!is_inner && lens.contains(&0));
        if fit {
            let skip = inner.fences(left, left + 1, fences).skip();
            merge(inner, left, skip, outcome);
            return;
        }
    }
}

/// Makes two children one.
fn merge(inner: &mut Inner, left: usize, skip: usize, outcome: &mut Outcome) {
    let Some((key, second)) = inner.remove_after(left) else { return };
    let Some(Some(first)) = inner.children.get_mut(left) else { return };
    match (first, second) {
        (Node::Inner(first), Node::Inner(second)) => {
            join(Arc::make_mut(first), key, Arc::unwrap_or_clone(second), skip);
        }
        (first, second) => {
            let patches = [&*first, &second].into_iter().filter(|node| matches!(node, Node::Patched(_))).count();
            outcome.patched -= patches as i64;
            *first = Node::leaf(leaf_of(first.records().chain(second.records()).cloned(), skip));
        }
    }
}

/// Takes over the children of the inner node behind.
fn join(first: &mut Inner, key: Separator, second: Inner, skip: usize) {
    let mut keys = second.keys;
    let keys = std::iter::once(key).chain(std::iter::from_fn(move || keys.remove(0)));
    for (key, child) in keys.zip(second.children.into_iter().flatten()) {
        first.insert(first.len() - 1, key, child);
    }
    first.keys.set_skip(skip);
}

/// Folds patches that no image holds any more, from the leaf that `from` belongs to on, up to `budget` of them and
/// within one inner node. Gives the key to go on from; `None` at the end.
pub(super) fn fold(
    node: &mut Node,
    from: &[u8],
    high: Option<&Separator>,
    budget: usize,
    outcome: &mut Outcome,
) -> Option<Separator> {
    let Node::Inner(inner) = node else {
        outcome.patched -= i64::from(node.fold());
        return high.cloned();
    };
    // Where an image holds the node, it holds all below.
    let Some(inner) = Arc::get_mut(inner) else { return high.cloned() };
    let (first, mut left) = (inner.route(from), budget);
    let own = Fences { low: None, high };
    for at in first..inner.len() {
        let (child, fences) = inner.child_mut(at, own)?;
        if matches!(child, Node::Inner(_)) {
            return fold(child, from, fences.high, budget, outcome);
        }
        if child.fold() {
            outcome.patched -= 1;
            left -= 1;
        }
        if left == 0 {
            return fences.high.cloned();
        }
    }
    high.cloned()
}
