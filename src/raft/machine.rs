//! A machine under openraft: entries are applied to it as the cluster commits them, and snapshots stand for its state.
//!
//! Invariants:
//!
//! - What was applied last, the membership there and the machine's state belong together: they change under the
//!   machine's lock.
//! - The current snapshot is durable and read back before openraft hears of it.
//! - A snapshot that cannot be installed leaves the machine as it was, or as nobody sees it: a machine that panics, or
//!   whose snapshot failed behind what it had taken from it, is neither used nor read any more.
//! - Nobody waits on the executor for an installation, which takes as long as a snapshot takes to read.
//!
//! Does not know the log: openraft reads it, after a restart too.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError,
};

use openraft::storage::RaftStateMachine;
use openraft::{
    Entry, EntryPayload, ErrorSubject, ErrorVerb, LogId, OptionalSend, RaftTypeConfig, Snapshot, SnapshotMeta,
    StorageError, StoredMembership,
};
use tokio::sync::Notify;

use super::arrivals::Arrivals;
use super::blocking::blocking;
use super::builder::RaftSnapshotBuilder;
use super::error::{RaftError, storage_error};
use super::header::{Applied, snapshot_id};
use super::snapshot::{Body, RaftSnapshot, bring_in};
use crate::machine::StateMachine;
use crate::machine::handling::{self, Results, Trouble, apply_all, looking_twice, message_of};
use crate::snapshot::{FileSnapshots, SnapshotError, SnapshotId};

/// What a machine answers to an entry: make it the response type `R` of the node's type configuration, or give that a
/// `From` of it.
pub enum Reply<M: StateMachine> {
    /// To a blank entry, or one that changes the membership: the machine never sees it.
    Nothing,
    /// The machine's response.
    Done(M::Response),
    /// The machine refused the command, as it does on every node.
    Refused(M::Error),
}

impl<M: StateMachine<Response: fmt::Debug>> fmt::Debug for Reply<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reply::Nothing => f.write_str("Nothing"),
            Reply::Done(response) => f.debug_tuple("Done").field(response).finish(),
            Reply::Refused(error) => f.debug_tuple("Refused").field(error).finish(),
        }
    }
}

/// A type configuration that goes with a machine. Implemented for all that do; it only saves the repetition.
pub trait RaftTypes<M: StateMachine>:
    RaftTypeConfig<D = M::Command, R: From<Reply<M>>, Entry = Entry<Self>, SnapshotData = RaftSnapshot>
{
}

impl<M: StateMachine, C> RaftTypes<M> for C where
    C: RaftTypeConfig<D = M::Command, R: From<Reply<M>>, Entry = Entry<C>, SnapshotData = RaftSnapshot>
{
}

/// A machine and its snapshots, as openraft wants them: give it to [`Raft::new`](openraft::Raft::new).
pub struct RaftMachine<C: RaftTypeConfig, M> {
    pub(super) shared: Arc<Shared<C, M>>,
}

impl<C: RaftTypeConfig, M: StateMachine> fmt::Debug for RaftMachine<C, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RaftMachine({}, {:?})", M::KIND, self.shared.snapshots)
    }
}

/// Where openraft's worker ends, nobody installs what it was given.
impl<C: RaftTypeConfig, M> Drop for RaftMachine<C, M> {
    fn drop(&mut self) {
        self.shared.arrivals.end();
    }
}

/// Reads a machine that openraft applies to. Clones are for the same machine.
pub struct MachineHandle<M> {
    held: Arc<Held<M>>,
}

impl<M> Clone for MachineHandle<M> {
    fn clone(&self) -> MachineHandle<M> {
        MachineHandle { held: self.held.clone() }
    }
}

impl<M: StateMachine> MachineHandle<M> {
    /// Looks at the machine as it is now: at what this node has applied. For what the cluster has committed, await
    /// [`Raft::ensure_linearizable`](openraft::Raft::ensure_linearizable) first.
    ///
    /// Blocks while entries are being applied, and while a snapshot is being installed, which takes seconds where it is
    /// large: not for a thread that an executor needs, see [`read_async`](MachineHandle::read_async). Entries are applied
    /// after the closure, so let it be short, or take an image and look at that.
    ///
    /// # Errors
    ///
    /// [`RaftError::MachineFailed`]: the machine may be half changed, and is not shown.
    pub fn read<T>(&self, look: impl FnOnce(&M) -> T) -> std::result::Result<T, RaftError> {
        let machine = self.held.read();
        self.held.check_sound().map(|()| look(&machine))
    }

    /// As [`read`](MachineHandle::read), and blocks no thread while it waits.
    ///
    /// # Errors
    ///
    /// Those of [`read`](MachineHandle::read).
    pub async fn read_async<T>(&self, look: impl FnOnce(&M) -> T) -> std::result::Result<T, RaftError> {
        loop {
            let mut written = pin!(self.held.written.notified());
            // From here on the end of a change is not missed.
            written.as_mut().enable();
            if let Some(machine) = self.held.try_read() {
                return self.held.check_sound().map(|()| look(&machine));
            }
            written.await;
        }
    }

    /// As [`read`](MachineHandle::read), but gives `None` at once where that would wait.
    ///
    /// # Errors
    ///
    /// Those of [`read`](MachineHandle::read).
    pub fn try_read<T>(&self, look: impl FnOnce(&M) -> T) -> std::result::Result<Option<T>, RaftError> {
        let Some(machine) = self.held.try_read() else { return Ok(None) };
        self.held.check_sound().map(|()| Some(look(&machine)))
    }

    /// Index of the last entry applied; `None` before the first.
    pub fn last_applied(&self) -> Option<u64> {
        self.held.next.load(Ordering::Acquire).checked_sub(1)
    }
}

impl<M> fmt::Debug for MachineHandle<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MachineHandle(next {})", self.held.next.load(Ordering::Relaxed))
    }
}

/// The machine itself.
pub(super) struct Held<M> {
    machine: RwLock<M>,
    /// The index after the last one applied; 0 before the first.
    next: AtomicU64,
    /// Why the machine is not used any more.
    failure: OnceLock<String>,
    /// Told after each change, for those who wait for its end without a thread.
    written: Notify,
}

impl<M> Held<M> {
    fn new(machine: M, next: u64) -> Held<M> {
        let (machine, next) = (RwLock::new(machine), AtomicU64::new(next));
        Held { machine, next, failure: OnceLock::new(), written: Notify::new() }
    }

    fn read(&self) -> RwLockReadGuard<'_, M> {
        self.machine.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` while the machine is being changed, or somebody waits to change it: a [`Writing`] will end.
    fn try_read(&self) -> Option<RwLockReadGuard<'_, M>> {
        match self.machine.try_read() {
            Ok(machine) => Some(machine),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn write(&self) -> Writing<'_, M> {
        let machine = self.machine.write().unwrap_or_else(PoisonError::into_inner);
        Writing { machine, _end: End(&self.written) }
    }

    fn check_sound(&self) -> std::result::Result<(), RaftError> {
        match self.failure.get() {
            Some(reason) => Err(RaftError::MachineFailed { reason: reason.clone() }),
            None => Ok(()),
        }
    }
}

/// The machine while it is changed.
struct Writing<'a, M> {
    machine: RwLockWriteGuard<'a, M>,
    /// After the lock: fields are dropped in their order, and who is told of the end finds it free.
    _end: End<'a>,
}

impl<M> Deref for Writing<'_, M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.machine
    }
}

impl<M> DerefMut for Writing<'_, M> {
    fn deref_mut(&mut self) -> &mut M {
        &mut self.machine
    }
}

/// Tells of the end of a change.
struct End<'a>(&'a Notify);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.notify_waiters();
    }
}

/// What the machine shares with those who read it and those who make snapshots of it.
pub(super) struct Shared<C: RaftTypeConfig, M> {
    pub(super) snapshots: FileSnapshots,
    keep_snapshots: usize,
    held: Arc<Held<M>>,
    /// Changed only under the machine's lock.
    applied: Mutex<Applied<C>>,
    /// The snapshot that openraft sends and knows of. Held while snapshots are deleted.
    current: Mutex<Option<Current<C>>>,
    /// What the log beside it waits for.
    pub(super) arrivals: Arrivals,
}

/// A snapshot of the store.
pub(super) struct Current<C: RaftTypeConfig> {
    pub(super) id: SnapshotId,
    pub(super) meta: SnapshotMeta<C::NodeId, C::Node>,
}

impl<C: RaftTypeConfig> Clone for Current<C> {
    fn clone(&self) -> Current<C> {
        Current { id: self.id, meta: self.meta.clone() }
    }
}

/// A consistent view of the machine.
pub(super) struct View<C: RaftTypeConfig, M: StateMachine> {
    pub(super) image: M::Image,
    pub(super) applied: Applied<C>,
}

type Result<T, C> = std::result::Result<T, StorageError<<C as RaftTypeConfig>::NodeId>>;

impl<C: RaftTypeConfig, M: StateMachine> RaftMachine<C, M> {
    /// A machine that is as its newest snapshot says, where it has one.
    pub(super) fn new(
        machine: M,
        snapshots: FileSnapshots,
        keep_snapshots: usize,
        applied: Applied<C>,
        current: Option<Current<C>>,
    ) -> RaftMachine<C, M> {
        let arrivals = Arrivals::new(current.as_ref().map(|current| current.id.index));
        let shared = Shared {
            snapshots,
            keep_snapshots,
            held: Arc::new(Held::new(machine, applied.next())),
            applied: Mutex::new(applied),
            current: Mutex::new(current),
            arrivals,
        };
        RaftMachine { shared: Arc::new(shared) }
    }

    /// A handle to read the machine with, before this is given to openraft.
    pub fn handle(&self) -> MachineHandle<M> {
        MachineHandle { held: self.shared.held.clone() }
    }
}

impl<C: RaftTypes<M>, M: StateMachine> RaftStateMachine<C> for RaftMachine<C, M> {
    type SnapshotBuilder = RaftSnapshotBuilder<C, M>;

    async fn applied_state(&mut self) -> Result<(Option<LogId<C::NodeId>>, StoredMembership<C::NodeId, C::Node>), C> {
        let Applied { last, membership } = self.shared.applied().clone();
        Ok((last, membership))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<C::R>, C>
    where
        I: IntoIterator<Item = C::Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry<C>> = entries.into_iter().collect();
        let Some(last) = entries.last().map(|entry| entry.log_id.clone()) else { return Ok(Vec::new()) };
        let applied = self.shared.apply(entries);
        applied.map_err(|error| storage_error(ErrorSubject::Apply(last), ErrorVerb::Write, &error))
    }

    async fn get_snapshot_builder(&mut self) -> RaftSnapshotBuilder<C, M> {
        // Here, in the order of the entries: what openraft knows to be applied is in it, and nothing more.
        RaftSnapshotBuilder::new(self.shared.clone(), self.shared.view())
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<RaftSnapshot>, C> {
        Ok(Box::new(RaftSnapshot::receive(&self.shared.snapshots, self.shared.arrivals.begin())))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<C::NodeId, C::Node>,
        snapshot: Box<RaftSnapshot>,
    ) -> Result<(), C> {
        let subject = || ErrorSubject::Snapshot(Some(meta.signature()));
        let body = snapshot.into_body().await;
        let body = body.map_err(|error| StorageError::from_io_error(subject(), ErrorVerb::Read, error))?;
        let wanted = meta.clone();
        let installed = self.shared.elsewhere(move |shared| shared.install(body, &wanted)).await;
        installed.map_err(|error| storage_error(subject(), ErrorVerb::Write, &error))
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<C>>, C> {
        let opened = self.shared.elsewhere(|shared| shared.open_current()).await;
        opened.map_err(|error| storage_error(ErrorSubject::Snapshot(None), ErrorVerb::Read, &error))
    }
}

impl<C: RaftTypeConfig, M: StateMachine> Shared<C, M> {
    /// Does work that waits for the disk, away from the executor.
    pub(super) async fn elsewhere<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> std::result::Result<T, RaftError> + Send + 'static,
    ) -> std::result::Result<T, RaftError> {
        let shared = self.clone();
        let done = blocking(move || work(&shared)).await;
        done.map_err(SnapshotError::io("work on the snapshots in", self.snapshots.directory()))?
    }

    fn applied(&self) -> MutexGuard<'_, Applied<C>> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn current(&self) -> MutexGuard<'_, Option<Current<C>>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine's image, and how far it is; why not, where it failed.
    pub(super) fn view(&self) -> std::result::Result<View<C, M>, RaftError> {
        let machine = self.held.read();
        self.held.check_sound()?;
        let image = catch_unwind(AssertUnwindSafe(|| machine.image()));
        let image = image.map_err(|panic| RaftError::MachineFailed { reason: message_of(&*panic) })?;
        Ok(View { image, applied: self.applied().clone() })
    }

    /// The machine is not used any more. It is locked.
    fn fail(&self, reason: String) -> RaftError {
        tracing::error!(reason, directory = %self.snapshots.directory().display(), "the machine failed");
        RaftError::MachineFailed { reason: self.held.failure.get_or_init(|| reason).clone() }
    }

    /// Changes what was applied. The machine is locked.
    fn note_applied(&self, change: impl FnOnce(&mut Applied<C>)) {
        let mut applied = self.applied();
        change(&mut applied);
        self.held.next.store(applied.next(), Ordering::Release);
    }
}

/// Applying.
impl<C: RaftTypes<M>, M: StateMachine> Shared<C, M> {
    fn apply(&self, entries: Vec<Entry<C>>) -> std::result::Result<Vec<C::R>, RaftError> {
        let mut machine = self.held.write();
        self.held.check_sound()?;
        self.check_follows(&entries)?;
        self.feed(&mut machine, entries)
    }

    /// Commands are applied once. Entries may be missing between them: openraft's own tests leave some out.
    fn check_follows(&self, entries: &[Entry<C>]) -> std::result::Result<(), RaftError> {
        let mut next = self.held.next.load(Ordering::Relaxed);
        for entry in entries {
            let index = entry.log_id.index;
            if index < next {
                return Err(RaftError::AppliedTwice { index, next });
            }
            next = index + 1;
        }
        Ok(())
    }

    fn feed(&self, machine: &mut M, entries: Vec<Entry<C>>) -> std::result::Result<Vec<C::R>, RaftError> {
        let (mut last, mut membership) = (None, None);
        let (mut commands, mut are_commands) = (Vec::with_capacity(entries.len()), Vec::with_capacity(entries.len()));
        for Entry { log_id, payload } in entries {
            are_commands.push(matches!(payload, EntryPayload::Normal(_)));
            match payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(command) => commands.push(command),
                EntryPayload::Membership(new) => membership = Some(StoredMembership::new(Some(log_id.clone()), new)),
            }
            last = Some(log_id);
        }
        let results = if commands.is_empty() { Ok(Vec::new()) } else { apply_all(machine, commands) };
        let results = results.map_err(|reason| self.fail(reason))?;
        self.note_applied(|applied| {
            applied.last = last;
            applied.membership = membership.unwrap_or_else(|| std::mem::take(&mut applied.membership));
        });
        Ok(replies::<C, M>(&are_commands, results))
    }
}

fn replies<C: RaftTypes<M>, M: StateMachine>(are_commands: &[bool], results: Results<M>) -> Vec<C::R> {
    let mut results = results.into_iter();
    let reply = |&is_command: &bool| match is_command.then(|| results.next()).flatten() {
        None => Reply::Nothing,
        Some(Ok(response)) => Reply::Done(response),
        Some(Err(error)) => Reply::Refused(error),
    };
    are_commands.iter().map(reply).map(C::R::from).collect()
}

/// Snapshots.
impl<C: RaftTypeConfig<SnapshotData = RaftSnapshot>, M: StateMachine> Shared<C, M> {
    /// Makes what arrived a snapshot of this store, and the machine what it says.
    fn install(&self, body: Body, wanted: &SnapshotMeta<C::NodeId, C::Node>) -> std::result::Result<(), RaftError> {
        let arrival = self.arrivals.begin();
        self.held.check_sound().inspect_err(|_| self.arrivals.fail())?;
        let id = bring_in(&self.snapshots, body).inspect_err(|_| self.arrivals.fail())?;
        arrival.publish(id.index);
        let mut machine = self.held.write();
        let restored =
            catch_unwind(AssertUnwindSafe(|| restore_twice(&mut *machine, &self.snapshots, id, Some(wanted))));
        let restored = restored.map_err(|panic| self.fail(message_of(&*panic)))?;
        let Restored { applied: new, current } = restored.inspect_err(|error| self.note_unrestored(error))?;
        self.note_applied(|applied| *applied = new);
        drop(machine);
        self.put(current).map(drop)
    }

    /// The machine takes all of a state or nothing. But what it took from a file that failed behind that, it has.
    fn note_unrestored(&self, error: &RaftError) {
        use RaftError::{NotRestored, OtherSnapshot, Undecodable};
        if !matches!(error, NotRestored { .. } | OtherSnapshot { .. } | Undecodable { .. }) {
            self.fail(format!("a snapshot failed while it was restored: {error}"));
        }
    }

    /// Makes a snapshot the current one, unless that is newer, and drops those that are not kept. Gives the current one.
    pub(super) fn put(&self, new: Current<C>) -> std::result::Result<Snapshot<C>, RaftError> {
        self.arrivals.publish(new.id.index);
        let mut current = self.current();
        let newest = match current.take() {
            Some(newer) if newer.meta.last_log_id > new.meta.last_log_id => current.insert(newer),
            _ => current.insert(new),
        };
        let snapshot = self.open(newest)?;
        // That there are too many is not worth failing for.
        if let Err(error) = self.snapshots.compact_snapshots_up_to(newest.id, self.keep_snapshots) {
            let directory = self.snapshots.directory().display();
            tracing::warn!(%error, %directory, "older snapshots could not be deleted");
        }
        Ok(snapshot)
    }

    pub(super) fn open_current(&self) -> std::result::Result<Option<Snapshot<C>>, RaftError> {
        self.current().as_ref().map(|current| self.open(current)).transpose()
    }

    fn open(&self, current: &Current<C>) -> std::result::Result<Snapshot<C>, RaftError> {
        let (snapshot, salt) = RaftSnapshot::open(&self.snapshots, current.id)?;
        let mut meta = current.meta.clone();
        // The file may be another one by now, received in the place of a damaged one: the id is that of its bytes. One
        // that cannot be told is found damaged wherever it is sent.
        if let Some(salt) = salt {
            meta.snapshot_id = snapshot_id(current.id, salt);
        }
        Ok(Snapshot { meta, snapshot: Box::new(snapshot) })
    }
}

/// What restoring a snapshot gave.
pub(super) struct Restored<C: RaftTypeConfig> {
    pub(super) applied: Applied<C>,
    pub(super) current: Current<C>,
}

/// Restores a machine from a snapshot of the store, which is looked at twice if it seems damaged; fails where it is not
/// the one that is wanted.
fn restore_twice<C: RaftTypeConfig, M: StateMachine>(
    machine: &mut M,
    snapshots: &FileSnapshots,
    id: SnapshotId,
    wanted: Option<&SnapshotMeta<C::NodeId, C::Node>>,
) -> std::result::Result<Restored<C>, RaftError> {
    let restored = looking_twice(snapshots, id, || restore(machine, snapshots, id, wanted));
    restored.map_err(|trouble| match trouble {
        Trouble::Damaged(error) => RaftError::from(error),
        Trouble::Other(error) => error,
    })
}

/// Restores a machine from a snapshot of the store.
pub(super) fn restore<C: RaftTypeConfig, M: StateMachine>(
    machine: &mut M,
    snapshots: &FileSnapshots,
    id: SnapshotId,
    wanted: Option<&SnapshotMeta<C::NodeId, C::Node>>,
) -> std::result::Result<Restored<C>, Trouble<RaftError>> {
    let file = snapshots.path_of(id);
    let mut reader = snapshots.open_snapshot(&id.to_string())?;
    let applied: Applied<C> = Applied::read_from(&mut reader, &file).map_err(trouble)?;
    if let Some(wanted) = wanted {
        check_wanted(&applied, wanted, &file).map_err(Trouble::Other)?;
    }
    let meta = applied.meta(reader.salt());
    let refused = |error| RaftError::NotRestored { file: file.clone(), older: None, source: Box::new(error) };
    handling::restore(machine, &mut reader, &file, refused)?;
    Ok(Restored { applied, current: Current { id, meta } })
}

/// Tells damage within the header from everything else.
fn trouble(error: RaftError) -> Trouble<RaftError> {
    match error {
        RaftError::Snapshot(error) => error.into(),
        error => Trouble::Other(error),
    }
}

fn check_wanted<C: RaftTypeConfig>(
    found: &Applied<C>,
    wanted: &SnapshotMeta<C::NodeId, C::Node>,
    file: &std::path::Path,
) -> std::result::Result<(), RaftError> {
    if found.last == wanted.last_log_id && found.membership == wanted.last_membership {
        return Ok(());
    }
    let found = format!("{} with membership {}", Show(&found.last), found.membership);
    let announced = format!("{} with membership {}", Show(&wanted.last_log_id), wanted.last_membership);
    Err(RaftError::OtherSnapshot { file: file.to_owned(), found, announced })
}

struct Show<'a, N: openraft::NodeId>(&'a Option<LogId<N>>);

impl<N: openraft::NodeId> fmt::Display for Show<'_, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(id) => id.fmt(f),
            None => f.write_str("nothing"),
        }
    }
}
