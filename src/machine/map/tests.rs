//! The map against a plain one: random histories with images that come and go in any order, and what must hold of the
//! tree after every step.

use std::collections::BTreeMap;
use std::ops::Bound;

use proptest::prelude::*;

use super::node::{FAN, Fences, Node, SLOTS};
use super::sorted::{Keyed, Separator};
use super::{Builder, Entries, Image, Map};

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// What a look over the whole tree finds.
#[derive(Debug, Default)]
struct Shape {
    records: u64,
    leaves: u64,
    patched: u64,
    depth: usize,
}

/// Checks all that the code relies on.
fn check(entries: &Entries) -> Shape {
    let mut shape = Shape::default();
    check_node(&entries.root, Fences::default(), 0, &mut shape);
    assert_eq!(shape.records, entries.len());
    shape
}

fn check_node(node: &Node, fences: Fences<'_>, depth: usize, shape: &mut Shape) {
    let Node::Inner(inner) = node else { return check_leaf(node, fences, depth, shape) };
    assert!(inner.len() <= FAN && inner.keys.skip() <= fences.skip());
    assert_eq!(inner.children.iter().flatten().count(), inner.len());
    let keys: Vec<&Separator> = (0..inner.keys.len()).map(|at| inner.keys.get(at).unwrap()).collect();
    assert!(keys.is_sorted_by(|left, right| left < right), "{keys:?}");
    keys.iter().for_each(|key| check_within(key, fences));
    for at in 0..inner.len() {
        check_node(inner.child(at).unwrap(), inner.fences(at, at, fences), depth + 1, shape);
    }
}

fn check_within(key: &[u8], fences: Fences<'_>) {
    assert!(fences.low.is_none_or(|low| &low[..] <= key) && fences.high.is_none_or(|high| key < &high[..]));
}

fn check_leaf(node: &Node, fences: Fences<'_>, depth: usize, shape: &mut Shape) {
    let keys: Vec<&[u8]> = node.records().map(Keyed::key).collect();
    assert!(keys.is_sorted_by(|left, right| left < right), "{keys:?}");
    keys.iter().for_each(|key| check_within(key, fences));
    assert!(keys.len() <= SLOTS && keys.len() == node.len());
    let skip = match node {
        Node::Leaf(leaf) => leaf.skip(),
        Node::Patched(patched) => patched.base.skip(),
        Node::Inner(_) => unreachable!(),
    };
    assert!(skip <= fences.skip());
    assert!(shape.leaves == 0 || shape.depth == depth, "all leaves are equally far down");
    shape.depth = depth;
    shape.leaves += 1;
    shape.records += keys.len() as u64;
    shape.patched += u64::from(matches!(node, Node::Patched(_)));
}

fn compare(entries: &Entries, model: &Model) {
    assert!(entries.iter().eq(model.iter().map(|(key, value)| (&key[..], &value[..]))));
    assert_eq!(entries.len(), model.len() as u64);
    assert_eq!(entries.bytes(), model.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum::<u64>());
}

/// How numbers become keys: what two keys have in common matters.
#[derive(Clone, Copy, Debug)]
enum Keys {
    /// Spread over all bytes.
    Spread,
    /// A long common beginning, then digits.
    Named,
    /// Of two bytes only, some empty, many the beginning of another.
    Nested,
}

impl Keys {
    fn key(self, number: u32) -> Vec<u8> {
        match self {
            Keys::Spread => number.wrapping_mul(0x9e37_79b1).to_be_bytes().repeat(4),
            Keys::Named => format!("a/common/beginning/{:06}", number % 20_000).into_bytes(),
            Keys::Nested => (0..number % 12).map(|bit| (number >> (4 + bit)) as u8 & 1).collect(),
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// From a number on, so many, so far apart.
    Put(u32, u32, u32),
    Remove(u32, u32, u32),
    Image,
    /// An image of the same moment as another.
    CloneImage(usize),
    DropImage(usize),
    /// Writes it out, which ends it.
    DrainImage(usize),
    /// Reads a range of the map and of an image.
    Range(u32, u32),
    /// Builds the map anew from its entries.
    Rebuild,
}

fn step() -> impl Strategy<Value = Step> {
    let count = prop_oneof![3 => 1..4u32, 1 => 1..700u32];
    let stride = prop_oneof![2 => Just(1u32), 1 => 1..50u32, 1 => any::<u32>()];
    prop_oneof![
        6 => (0..20_000u32, count.clone(), stride.clone()).prop_map(|(from, count, by)| Step::Put(from, count, by)),
        5 => (0..20_000u32, count, stride).prop_map(|(from, count, by)| Step::Remove(from, count, by)),
        2 => Just(Step::Image),
        1 => any::<usize>().prop_map(Step::CloneImage),
        3 => any::<usize>().prop_map(Step::DropImage),
        2 => any::<usize>().prop_map(Step::DrainImage),
        2 => (0..20_000u32, 0..20_000u32).prop_map(|(from, to)| Step::Range(from, to)),
        1 => Just(Step::Rebuild),
    ]
}

struct History {
    keys: Keys,
    map: Map,
    model: Model,
    images: Vec<(Image, Model)>,
    writes: u32,
}

impl History {
    fn new(keys: Keys) -> History {
        History { keys, map: Map::default(), model: Model::new(), images: Vec::new(), writes: 0 }
    }

    fn put(&mut self, number: u32) {
        self.writes += 1;
        let (key, value) = (self.keys.key(number), vec![self.writes as u8; (self.writes % 7) as usize]);
        self.map.insert(&key, &value);
        assert_eq!(self.map.entries().get(&key), Some(&value[..]));
        self.model.insert(key, value);
    }

    fn remove(&mut self, number: u32) {
        let key = self.keys.key(number);
        assert_eq!(self.map.remove(&key), self.model.remove(&key).is_some());
        assert_eq!(self.map.entries().get(&key), None);
    }

    fn range(&self, from: u32, to: u32) {
        let (from, to) = (self.keys.key(from), self.keys.key(to));
        range_compares(self.map.entries(), &self.model, &from, &to);
        self.images.iter().for_each(|(image, model)| range_compares(image.entries(), model, &from, &to));
    }

    fn rebuild(&mut self) {
        let mut builder = Builder::default();
        self.model.iter().for_each(|(key, value)| builder.push(key, value));
        self.map = builder.finish();
    }

    fn take(&mut self, step: Step) {
        let numbers =
            |from: u32, count, by: u32| (0..count).map(move |nth: u32| from.wrapping_add(nth.wrapping_mul(by)));
        match step {
            Step::Put(from, count, by) => numbers(from, count, by).for_each(|number| self.put(number)),
            Step::Remove(from, count, by) => numbers(from, count, by).for_each(|number| self.remove(number)),
            Step::Image => self.images.push((self.map.image(), self.model.clone())),
            Step::CloneImage(nth) if !self.images.is_empty() => {
                self.images.push(self.images[nth % self.images.len()].clone());
            }
            Step::DropImage(nth) if !self.images.is_empty() => _ = self.images.swap_remove(nth % self.images.len()),
            Step::DrainImage(nth) if !self.images.is_empty() => self.drain(nth % self.images.len()),
            Step::Range(from, to) => self.range(from, to),
            Step::Rebuild => self.rebuild(),
            Step::CloneImage(_) | Step::DropImage(_) | Step::DrainImage(_) => (),
        }
        assert_eq!(check(self.map.entries()).patched, self.map.patched);
    }

    /// Visits everything that an image shows, and ends it.
    fn drain(&mut self, nth: usize) {
        let (image, model) = self.images.swap_remove(nth);
        let mut expected = model.iter();
        let visit = |key: &[u8], value: &[u8]| match expected.next() {
            Some((this, that)) if (&this[..], &that[..]) == (key, value) => Ok(()),
            other => Err(format!("{key:?} and not {other:?}")),
        };
        image.drain(visit).unwrap();
        assert!(expected.next().is_none());
    }

    fn compare(&self) {
        compare(self.map.entries(), &self.model);
        for (image, model) in &self.images {
            check(image.entries());
            compare(image.entries(), model);
        }
    }
}

fn range_compares(entries: &Entries, model: &Model, from: &[u8], to: &[u8]) {
    let bounds = |key| [Bound::Included(key), Bound::Excluded(key), Bound::Unbounded];
    for (start, end) in bounds(from).into_iter().flat_map(|start| bounds(to).map(|end| (start, end))) {
        let within = model.iter().filter(|(key, _)| {
            let key = &key[..];
            let from_start = match start {
                Bound::Included(start) => key >= start,
                Bound::Excluded(start) => key > start,
                Bound::Unbounded => true,
            };
            from_start
                && match end {
                    Bound::Included(end) => key <= end,
                    Bound::Excluded(end) => key < end,
                    Bound::Unbounded => true,
                }
        });
        assert!(entries.range(start, end).eq(within.map(|(key, value)| (&key[..], &value[..]))));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_image_shows_exactly_its_moment(
        keys in prop_oneof![Just(Keys::Spread), Just(Keys::Named), Just(Keys::Nested)],
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let mut history = History::new(keys);
        for (nth, step) in steps.into_iter().enumerate() {
            history.take(step);
            if nth % 8 == 7 {
                history.compare();
            }
        }
        history.compare();
    }
}

/// A map of so many keys that there are inner nodes below the root.
fn large(keys: Keys) -> History {
    let mut history = History::new(keys);
    (0..20_000).for_each(|number| history.put(number));
    assert!(check(history.map.entries()).depth >= 2);
    history
}

#[test]
fn the_patches_of_an_image_that_ended_are_folded_by_the_writes_that_follow() {
    let mut history = large(Keys::Named);
    for _ in 0..3 {
        history.take(Step::Image);
        history.take(Step::Put(0, 4000, 5));
        assert!(history.map.patched > 100, "{}", history.map.patched);
        history.compare();
        let patched = history.map.patched;
        history.images.clear();
        // All at one place: what lies elsewhere is left to the sweep.
        for nth in 0..patched {
            history.put(nth as u32 % 3);
        }
        assert_eq!(history.map.patched, 0);
        history.compare();
    }
}

#[test]
fn an_image_that_stays_does_not_keep_what_later_images_needed() {
    let mut history = large(Keys::Spread);
    history.take(Step::Image);
    for _ in 0..5 {
        history.take(Step::Image);
        history.take(Step::Put(0, 300, 60));
        history.images.truncate(1);
    }
    history.compare();
    let shape = check(history.map.entries());
    assert!(shape.patched <= 300, "a leaf has one patch, however many images there were: {shape:?}");
}

#[test]
fn a_map_that_is_emptied_is_as_small_as_a_new_one() {
    for keys in [Keys::Spread, Keys::Named, Keys::Nested] {
        for holds_image in [false, true] {
            let mut history = History::new(keys);
            (0..20_000).for_each(|number| history.put(number));
            if holds_image {
                history.take(Step::Image);
            }
            // In another order than they came in.
            (0..20_000u32).for_each(|nth| history.remove(nth.wrapping_mul(7919) % 20_000));
            history.compare();
            let shape = check(history.map.entries());
            assert!(shape.leaves <= 4 && shape.records == 0, "{keys:?}: {shape:?}");
        }
    }
}

#[test]
fn leaves_do_not_stay_nearly_empty_after_most_is_removed() {
    let mut history = large(Keys::Spread);
    (0..20_000).filter(|number| number % 16 != 0).for_each(|number| history.remove(number));
    let shape = check(history.map.entries());
    assert!(shape.records / shape.leaves >= SLOTS as u64 / 4, "{shape:?}");
}

#[test]
fn ascending_and_descending_keys_fill_the_leaves() {
    for is_descending in [false, true] {
        let mut history = History::new(Keys::Named);
        (0..20_000).for_each(|nth| history.put(if is_descending { 19_999 - nth } else { nth }));
        let shape = check(history.map.entries());
        assert!(shape.records / shape.leaves >= SLOTS as u64 - 1, "{shape:?}");
        history.compare();
    }
}

#[test]
fn maps_of_every_size_are_built_right() {
    for count in (0..70).chain([840, 841, 842, 870, 24_388, 24_389, 24_390, 25_230]) {
        let mut builder = Builder::default();
        let model: Model = (0..count).map(|number| (format!("{number:08}").into_bytes(), vec![1])).collect();
        model.iter().for_each(|(key, value)| builder.push(key, value));
        let map = builder.finish();
        check(map.entries());
        compare(map.entries(), &model);
    }
}

#[test]
fn a_value_that_is_kept_is_not_changed_by_a_write_in_place() {
    let mut map = Map::default();
    for length in [10, 100_000] {
        map.insert(b"key", &vec![1; length]);
        let kept = map.entries().get_bytes(b"key").unwrap();
        map.insert(b"key", &vec![2; length]);
        assert_eq!(kept, vec![1; length]);
        assert_eq!(map.entries().get(b"key"), Some(&vec![2; length][..]));
    }
}
