//! The medium below the simulated disk: files and names, what of them is durable, and what a crash may still take.
//!
//! Pure bookkeeping: no locks, no chance, no faults, no threads. The laws:
//!
//! - A file is `durable` content plus an ordered list of *changes* that completed but that no sync has covered.
//!   `current`, what reads see, is always `durable` with all changes applied in order of completion.
//! - A change is *loose* (a crash keeps or loses it, a write unit by unit), *stuck* (loose, and no later sync covers it,
//!   because a sync of it failed: the kernel has marked its pages clean) or *settled* (durable, and in the list only
//!   because an earlier change that is not settled lies beneath it).
//! - Bytes and size persist independently: bytes beyond the size are not readable, size without bytes reads as zeros.
//! - Names are durable as of the last directory sync; since then there is an ordered list of directory operations.
//! - Operations in flight are seen by nobody yet. They come after all completed changes.
//! - What rots does so in every layer that holds the byte; what was never written has no bits that could.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::class::Class;
use crate::disk::transfer::Transfer;

pub(super) type InodeId = usize;
pub(super) type Content = Arc<Vec<u8>>;
pub(super) type Names = BTreeMap<Arc<str>, InodeId>;

/// One alteration of a file.
#[derive(Clone)]
pub(super) enum Edit {
    Write {
        offset: u64,
        data: Arc<[u8]>,
    },
    /// The size became at least this.
    Grow {
        to: u64,
    },
    /// All bytes dropped, size zero.
    Empty,
}

impl Edit {
    /// Whether the order of the two makes a difference.
    fn touches(&self, other: &Edit) -> bool {
        match (self, other) {
            (Edit::Empty, _) | (_, Edit::Empty) => true,
            (Edit::Write { offset: a, data: x }, Edit::Write { offset: b, data: y }) => {
                *a < b + y.len() as u64 && *b < a + x.len() as u64
            }
            _ => false,
        }
    }

    /// Whether nothing of `earlier` can be seen once this is applied.
    fn buries(&self, earlier: &Edit) -> bool {
        match (self, earlier) {
            (Edit::Write { offset: a, data: x }, Edit::Write { offset: b, data: y }) => {
                a <= b && b + y.len() as u64 <= a + x.len() as u64
            }
            _ => false,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Loose,
    Stuck,
    Settled,
}

#[derive(Clone)]
pub(super) struct Change {
    pub(super) edit: Edit,
    pub(super) standing: Standing,
    /// When it completed, by the medium's clock.
    completed_at: u64,
}

/// A file, whatever its name.
#[derive(Clone)]
pub(super) struct Inode {
    pub(super) durable: Content,
    pub(super) current: Content,
    pub(super) changes: Vec<Change>,
    /// The open file that holds the lock.
    pub(super) lock: Option<u64>,
}

impl Inode {
    /// A file whose content is durable as it reads.
    pub(super) fn at_rest(content: Content) -> Inode {
        Inode { durable: content.clone(), current: content, changes: Vec::new(), lock: None }
    }

    pub(super) fn size(&self) -> u64 {
        self.current.len() as u64
    }

    /// A write completed: durable at once (`Settled`) or until a sync at the mercy of a crash.
    pub(super) fn write(&mut self, offset: u64, data: &Arc<[u8]>, at: u64, standing: Standing) {
        if standing == Standing::Settled && self.changes.is_empty() {
            return self.write_durably(offset, data);
        }
        let end = offset + data.len() as u64;
        let edit = Edit::Write { offset, data: data.clone() };
        let changes_nothing = self.is_durable_already(&edit);
        if changes_nothing && end <= self.size() && standing != Standing::Settled {
            return;
        }
        if end > self.size() {
            self.push(Edit::Grow { to: end }, at, standing);
        }
        put(Arc::make_mut(&mut self.current), offset, data);
        if !changes_nothing {
            self.push(edit, at, standing);
        } else if standing == Standing::Settled {
            // The bytes are on the medium, but its size may end before them.
            self.push(Edit::Grow { to: end }, at, standing);
        }
        self.prune();
    }

    /// With nothing loose, `durable` and `current` are equal: one buffer serves both and is written in place unless
    /// another disk shares it.
    fn write_durably(&mut self, offset: u64, data: &[u8]) {
        self.durable = Content::default();
        put(Arc::make_mut(&mut self.current), offset, data);
        self.durable = self.current.clone();
    }

    /// Whether persisting the write could make no difference: the medium holds these bytes (or, past its end, the
    /// zeros that would be read there) and nothing loose lies between. It spares the explorer the zero-filling of
    /// fresh files.
    fn is_durable_already(&self, edit: &Edit) -> bool {
        let Edit::Write { offset, data } = edit else { return false };
        if self.changes.iter().any(|change| change.edit.touches(edit)) {
            return false;
        }
        let start = (*offset).min(self.durable.len() as u64) as usize;
        let end = (offset + data.len() as u64).min(self.durable.len() as u64) as usize;
        let (inside, beyond) = data.split_at(end - start);
        self.durable[start..end] == *inside && beyond.iter().all(|&byte| byte == 0)
    }

    /// Some units of an interrupted or failed write reached the file and can be read.
    pub(super) fn land(&mut self, offset: u64, data: &[u8], class: &Class, at: u64, standing: Standing) {
        for run in class.runs(offset, data.len()) {
            let part: Arc<[u8]> = Arc::from(&data[run.clone()]);
            self.write(offset + run.start as u64, &part, at, standing);
        }
    }

    /// The size becomes at least `to`.
    pub(super) fn grow(&mut self, to: u64, at: u64) {
        if to > self.size() {
            Arc::make_mut(&mut self.current).resize(to as usize, 0);
            self.push(Edit::Grow { to }, at, Standing::Loose);
        }
    }

    /// Drops all bytes.
    pub(super) fn empty(&mut self, at: u64) {
        if self.size() > 0 {
            self.current = Content::default();
            self.push(Edit::Empty, at, Standing::Loose);
        }
    }

    /// A sync that began at `began_at` succeeded.
    pub(super) fn sync(&mut self, began_at: u64) {
        let covered = |change: &Change| change.standing != Standing::Stuck && change.completed_at < began_at;
        if self.changes.iter().all(covered) {
            self.durable = self.current.clone();
            self.changes.clear();
            return;
        }
        self.restand(began_at, Standing::Settled);
        self.prune();
    }

    /// A sync that began at `began_at` failed: what it should have covered can still be read, but no later sync will
    /// take it to the medium.
    pub(super) fn sync_failed(&mut self, began_at: u64) {
        self.restand(began_at, Standing::Stuck);
    }

    fn restand(&mut self, began_at: u64, standing: Standing) {
        for change in &mut self.changes {
            if change.standing == Standing::Loose && change.completed_at < began_at {
                change.standing = standing;
            }
        }
    }

    /// The pages that a failed sync or write left in memory are dropped: of those writes, the given units are on the
    /// medium, and of the rest nothing is left anywhere. Sizes stay as they are known.
    pub(super) fn drop_stuck_pages(&mut self, on_medium: &Class) {
        let changes = std::mem::take(&mut self.changes);
        for Change { edit, standing, completed_at } in changes {
            match &edit {
                Edit::Write { offset, data } if standing == Standing::Stuck => {
                    for run in on_medium.runs(*offset, data.len()) {
                        let part = Edit::Write { offset: offset + run.start as u64, data: Arc::from(&data[run]) };
                        self.push(part, completed_at, Standing::Settled);
                    }
                }
                _ => self.push(edit, completed_at, standing),
            }
        }
        self.replay();
        self.prune();
    }

    /// A bit of the byte at `at` flips, wherever the byte is held.
    pub(super) fn flip(&mut self, at: u64, bit: u8) {
        let flip = |bytes: &mut [u8], at: u64| {
            if let Some(byte) = bytes.get_mut(at as usize) {
                *byte ^= 1 << bit;
            }
        };
        // One buffer may serve both contents: without this it would be copied twice.
        self.current = Content::default();
        flip(Arc::make_mut(&mut self.durable).as_mut_slice(), at);
        for change in &mut self.changes {
            if let Edit::Write { offset, data } = &mut change.edit
                && (*offset..*offset + data.len() as u64).contains(&at)
            {
                flip(Arc::make_mut(data), at - *offset);
            }
        }
        self.replay();
    }

    /// Makes `current` what the law says it is.
    fn replay(&mut self) {
        self.current = self.durable.clone();
        for change in &self.changes {
            apply_whole(Arc::make_mut(&mut self.current), &change.edit);
        }
    }

    /// Makes the file durable as it reads, whatever became of its changes.
    pub(super) fn settle_all(&mut self) {
        self.durable = self.current.clone();
        self.changes.clear();
    }

    fn push(&mut self, edit: Edit, completed_at: u64, standing: Standing) {
        self.changes.push(Change { edit, standing, completed_at });
    }

    /// Takes settled changes to the durable content as soon as nothing earlier can come between, and forgets what a
    /// settled write has buried.
    fn prune(&mut self) {
        let mut at = 0;
        while at < self.changes.len() {
            if self.changes[at].standing != Standing::Settled {
                at += 1;
                continue;
            }
            at -= self.drop_buried(at);
            let settled = self.changes[at].edit.clone();
            if self.changes[..at].iter().any(|earlier| earlier.edit.touches(&settled)) {
                at += 1;
            } else {
                self.changes.remove(at);
                apply_whole(Arc::make_mut(&mut self.durable), &settled);
            }
        }
        if self.changes.is_empty() {
            self.durable = self.current.clone();
        }
    }

    /// Removes writes before `at` that the one at `at` overwrites whole; returns how many.
    fn drop_buried(&mut self, at: usize) -> usize {
        let (earlier, rest) = self.changes.split_at(at);
        let keep: Vec<bool> = earlier.iter().map(|change| !rest[0].edit.buries(&change.edit)).collect();
        let mut position = 0;
        let before = self.changes.len();
        self.changes.retain(|_| {
            position += 1;
            keep.get(position - 1).copied().unwrap_or(true)
        });
        before - self.changes.len()
    }
}

/// Writes `data` at `offset`, with zeros before it where the content ends earlier.
pub(super) fn put(content: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let (start, end) = (offset as usize, offset as usize + data.len());
    if content.len() < end {
        content.resize(end, 0);
    }
    content[start..end].copy_from_slice(data);
}

fn apply_whole(content: &mut Vec<u8>, edit: &Edit) {
    match edit {
        Edit::Write { offset, data } => put(content, *offset, data),
        Edit::Grow { to } => content.resize((*to as usize).max(content.len()), 0),
        Edit::Empty => content.clear(),
    }
}

/// A directory operation that no directory sync has covered.
#[derive(Clone)]
pub(super) enum DirOp {
    Create { name: Arc<str>, inode: InodeId },
    Rename { from: Arc<str>, to: Arc<str>, inode: InodeId },
    Remove { name: Arc<str> },
}

impl DirOp {
    /// Carries the operation out on names that may lack earlier operations. A rename moves the very file it moved
    /// when it happened; where that file is not there under the old name, nothing happens.
    pub(super) fn apply(&self, names: &mut Names) {
        match self {
            DirOp::Create { name, inode } => {
                names.insert(name.clone(), *inode);
            }
            DirOp::Rename { from, to, inode } => {
                if names.get(from) == Some(inode) {
                    names.remove(from);
                    names.insert(to.clone(), *inode);
                }
            }
            DirOp::Remove { name } => {
                names.remove(name);
            }
        }
    }

    fn mentions(&self, id: InodeId) -> bool {
        match self {
            DirOp::Create { inode, .. } | DirOp::Rename { inode, .. } => *inode == id,
            DirOp::Remove { .. } => false,
        }
    }
}

/// What an operation is reported to have failed of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The system says so: an `errno`.
    Os(i32),
    /// Whoever carried it out says so.
    Kind(io::ErrorKind),
}

impl Cause {
    pub(super) fn to_io(self) -> io::Error {
        match self {
            Cause::Os(number) => io::Error::from_raw_os_error(number),
            Cause::Kind(kind) => kind.into(),
        }
    }
}

/// Why an operation in flight will be reported as failed, and what of it reaches the file nevertheless.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) cause: Cause,
    /// Units of a write that land; of a sync that drops pages, those that had reached the medium.
    pub(super) lands: Class,
    pub(super) drops_pages: bool,
}

impl Failure {
    /// A failure that leaves nothing behind.
    pub(super) fn of(os_error: i32) -> Failure {
        Failure { cause: Cause::Os(os_error), lands: Class::Absent, drops_pages: false }
    }
}

#[derive(Clone)]
pub(super) enum FlightKind {
    Write { offset: u64, data: Arc<[u8]>, durable: bool },
    Sync { began_at: u64 },
}

/// An operation that began and has not completed.
#[derive(Clone)]
pub(super) struct Flight {
    pub(super) id: u64,
    /// Who will be told; nobody where the process was killed or the power is gone.
    pub(super) driver: Option<u64>,
    pub(super) token: u64,
    pub(super) file: u64,
    /// The open file it goes through: its lock lives at least as long.
    pub(super) open: u64,
    /// The file of that open file.
    pub(super) home: InodeId,
    /// The file it happens to: another one only where it is misdirected.
    pub(super) inode: InodeId,
    pub(super) kind: FlightKind,
    pub(super) failure: Option<Failure>,
    /// What of it can be read already.
    pub(super) landed: Option<Class>,
    /// A write that transfers only so many bytes, and goes on with the rest.
    pub(super) takes: Option<usize>,
    /// How far a write has come that was short before.
    pub(super) transfer: Option<Transfer>,
    /// Completions of others that chance lets pass before it completes this one; [`TOLD`]: for ever.
    pub(super) hold: u64,
}

/// The hold of an operation that completes only by hand.
pub(super) const TOLD: u64 = u64::MAX;

impl Flight {
    /// An operation through an open file, with nothing wrong with it.
    pub(super) fn new(open: u64, inode: InodeId, kind: FlightKind) -> Flight {
        Flight {
            id: 0,
            driver: None,
            token: 0,
            file: 0,
            open,
            home: inode,
            inode,
            kind,
            failure: None,
            landed: None,
            takes: None,
            transfer: None,
            hold: 0,
        }
    }

    /// The operation without its process: what a short write has left to do, nobody does.
    pub(super) fn orphaned(mut self) -> Flight {
        if let (Some(count), FlightKind::Write { data, .. }) = (self.takes.take(), &mut self.kind) {
            *data = Arc::from(&data[..count]);
        }
        Flight { driver: None, hold: 0, ..self }
    }
}

/// Everything that survives the process: files, names, and the operations the kernel still works on.
#[derive(Clone, Default)]
pub(super) struct Medium {
    pub(super) inodes: Vec<Inode>,
    pub(super) names: Arc<Names>,
    pub(super) durable_names: Arc<Names>,
    pub(super) dir_ops: Vec<DirOp>,
    pub(super) flights: Vec<Flight>,
    clock: u64,
}

impl Medium {
    /// A medium with everything durable: these files under these names.
    pub(super) fn at_rest(inodes: Vec<Inode>, names: Arc<Names>) -> Medium {
        Medium { inodes, durable_names: names.clone(), names, ..Medium::default() }
    }

    /// The next instant: no two events share one.
    pub(super) fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// The name of a file, or a stand-in where it has none.
    pub(super) fn name_of(&self, inode: InodeId) -> Arc<str> {
        let name = self.names.iter().chain(self.durable_names.iter()).find(|(_, id)| **id == inode);
        name.map_or_else(|| Arc::from("(removed)"), |(name, _)| name.clone())
    }

    /// Makes an empty file with a name that nothing has; `is_open` tells which nameless files are still in use.
    pub(super) fn create(&mut self, name: &str, is_open: impl Fn(InodeId) -> bool) -> InodeId {
        let free = (0..self.inodes.len()).find(|&id| !is_open(id) && !self.is_referenced(id));
        let inode = free.unwrap_or(self.inodes.len());
        let fresh = Inode::at_rest(Content::default());
        match free {
            Some(id) => self.inodes[id] = fresh,
            None => self.inodes.push(fresh),
        }
        let name: Arc<str> = Arc::from(name);
        self.change_names(DirOp::Create { name, inode });
        inode
    }

    /// Whether a name, a possible name after a crash, or an operation leads to the file.
    fn is_referenced(&self, id: InodeId) -> bool {
        self.may_have_a_name(id)
            || self.names.values().any(|&inode| inode == id)
            || self.flights.iter().any(|flight| flight.inode == id || flight.home == id)
    }

    /// Whether some crash leaves the file with a name.
    pub(super) fn may_have_a_name(&self, id: InodeId) -> bool {
        self.durable_names.values().any(|&inode| inode == id) || self.dir_ops.iter().any(|op| op.mentions(id))
    }

    /// Carries out a directory operation; a crash may undo it until the next [`Medium::sync_dir`].
    pub(super) fn change_names(&mut self, op: DirOp) {
        op.apply(Arc::make_mut(&mut self.names));
        self.dir_ops.push(op);
    }

    pub(super) fn sync_dir(&mut self) {
        self.durable_names = self.names.clone();
        self.dir_ops.clear();
    }

    /// Ends the operation at `position` of the flights, as it was fated.
    pub(super) fn finish(&mut self, position: usize) -> Flight {
        let flight = self.flights.remove(position);
        let at = self.tick();
        let inode = &mut self.inodes[flight.inode];
        match (&flight.kind, &flight.failure) {
            (FlightKind::Write { offset, data, durable }, None) => {
                inode.write(*offset, data, at, if *durable { Standing::Settled } else { Standing::Loose });
            }
            (FlightKind::Write { offset, data, .. }, Some(failure)) => {
                inode.land(*offset, data, &failure.lands, at, Standing::Stuck);
            }
            (FlightKind::Sync { began_at }, None) => inode.sync(*began_at),
            (FlightKind::Sync { began_at }, Some(failure)) => {
                inode.sync_failed(*began_at);
                if failure.drops_pages {
                    inode.drop_stuck_pages(&failure.lands);
                }
            }
        }
        flight
    }

    /// Bytes of all files that have a name or are open.
    pub(super) fn used_bytes(&self, is_open: impl Fn(InodeId) -> bool) -> u64 {
        let in_use = |id: &usize| is_open(*id) || self.names.values().any(|inode| inode == id);
        (0..self.inodes.len()).filter(in_use).map(|id| self.inodes[id].size()).sum()
    }
}
