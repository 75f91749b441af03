//! What goes wrong on purpose, and what is counted: faults by rule and operation counters.
//!
//! Invariant: a rule fires by counting operations, never by chance or time, so that a failing test fails again.

use super::class::Class;
use super::medium::Failure;

/// What a disk is asked to do, as faults and counters see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OpKind {
    /// A read of a file.
    Read,
    /// A write, by a driver or directly.
    Write,
    /// A sync of a file, by a driver or directly.
    Sync,
    /// An open that makes or empties a file; a missing lock file counts too.
    Create,
    /// Any other open.
    Open,
    /// [`DiskFile::allocate`](crate::disk::DiskFile::allocate).
    Allocate,
    /// A rename.
    Rename,
    /// The removal of a name.
    Remove,
    /// A sync of the directory.
    SyncDir,
    /// A listing of the directory.
    List,
}

/// Number of kinds, for tables indexed by kind.
const KINDS: usize = OpKind::List as usize + 1;

/// Makes the n-th operation of a kind from now fail.
#[derive(Clone, Debug)]
pub struct FaultRule {
    op: OpKind,
    /// Matching operations that still go through before the rule fires.
    spared: u64,
    name: Option<String>,
    for_good: bool,
    failure: Failure,
}

impl FaultRule {
    /// The `nth` operation of the kind from now (1 is the very next) fails, once, with this number of the operating
    /// system (`errno`).
    pub fn new(op: OpKind, nth: u64, os_error: i32) -> FaultRule {
        assert!(nth > 0, "the next operation is number 1");
        let failure = Failure { os_error, lands: Class::Absent };
        FaultRule { op, spared: nth - 1, name: None, for_good: false, failure }
    }

    /// The `nth` fails with an I/O error (`EIO`).
    pub fn io_error(op: OpKind, nth: u64) -> FaultRule {
        FaultRule::new(op, nth, EIO)
    }

    /// The `nth` fails because the disk is full (`ENOSPC`).
    pub fn no_space(op: OpKind, nth: u64) -> FaultRule {
        FaultRule::new(op, nth, ENOSPC)
    }

    /// Every later matching operation fails too.
    #[must_use]
    pub fn for_good(mut self) -> FaultRule {
        self.for_good = true;
        self
    }

    /// Only operations on the file of this name match, and are counted. For a rename it is the old name.
    #[must_use]
    pub fn on(mut self, name: &str) -> FaultRule {
        self.name = Some(name.to_string());
        self
    }

    /// What of a failing write reaches the file all the same (default: nothing). It can be read, may or may not
    /// survive a crash, and no later sync makes it durable.
    #[must_use]
    pub fn landing(mut self, lands: Class) -> FaultRule {
        self.failure.lands = lands;
        self
    }
}

/// The rules in force.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    rules: Vec<FaultRule>,
}

impl Faults {
    pub(super) fn add(&mut self, rule: FaultRule) {
        self.rules.push(rule);
    }

    pub(super) fn clear(&mut self) {
        self.rules.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Counts an operation against all rules that match it; the failure of the first that fires.
    pub(super) fn strike(&mut self, op: OpKind, name: &str) -> Option<Failure> {
        let mut failure = None;
        self.rules.retain_mut(|rule| {
            if rule.op != op || rule.name.as_deref().is_some_and(|wanted| wanted != name) {
                return true;
            }
            if rule.spared > 0 {
                rule.spared -= 1;
                return true;
            }
            failure.get_or_insert_with(|| rule.failure.clone());
            rule.for_good
        });
        failure
    }
}

/// Operations a disk was asked for since it was made, failed ones included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    by_kind: [u64; KINDS],
    /// Bytes that writes were asked to write.
    pub bytes_written: u64,
    /// Bytes that reads returned.
    pub bytes_read: u64,
}

impl Counters {
    /// Operations of one kind.
    pub fn of(&self, kind: OpKind) -> u64 {
        self.by_kind[kind as usize]
    }

    /// All operations.
    pub fn total(&self) -> u64 {
        self.by_kind.iter().sum()
    }

    pub(super) fn count(&mut self, kind: OpKind) {
        self.by_kind[kind as usize] += 1;
    }
}

pub(super) const EIO: i32 = rustix::io::Errno::IO.raw_os_error();
pub(super) const ENOSPC: i32 = rustix::io::Errno::NOSPC.raw_os_error();
pub(super) const EINVAL: i32 = rustix::io::Errno::INVAL.raw_os_error();
