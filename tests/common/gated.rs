//! A real directory, written with plain system calls, on which chosen operations wait at a gate.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use ringwal::IoChoice;
use ringwal::disk::{Access, Disk, DiskFile, Driver, IoMode, RealDisk};

/// What waits.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Held {
    /// Writes to the file of this name.
    WriteTo(String),
    /// Syncs of the file of this name.
    SyncOf(String),
    /// Syncs of the directory.
    SyncDir,
    /// Removals of this name.
    RemovalOf(String),
    /// Every write.
    Writes,
    /// Every read.
    Reads,
}

#[derive(Default)]
pub(crate) struct Gate {
    held: Mutex<Option<Held>>,
    waiting: AtomicUsize,
    changed: Condvar,
}

impl Gate {
    pub(crate) fn hold(&self, what: Held) {
        *self.held.lock().unwrap() = Some(what);
    }

    pub(crate) fn open(&self) {
        *self.held.lock().unwrap() = None;
        self.changed.notify_all();
    }

    /// Whether an operation waits at it.
    pub(crate) fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    fn pass(&self, what: &Held) {
        let mut held = self.held.lock().unwrap();
        let is_write = matches!(what, Held::WriteTo(_));
        while held.as_ref().is_some_and(|held| held == what || *held == Held::Writes && is_write) {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            held = self.changed.wait(held).unwrap();
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

pub(crate) struct GatedDisk {
    inner: RealDisk,
    gate: Arc<Gate>,
}

impl GatedDisk {
    pub(crate) fn open(path: &Path) -> (GatedDisk, Arc<Gate>) {
        let (inner, gate) = (RealDisk::open(path, IoChoice::Syscall).unwrap(), Arc::new(Gate::default()));
        (GatedDisk { inner, gate: gate.clone() }, gate)
    }
}

impl Disk for GatedDisk {
    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let (inner, gate) = (self.inner.open(name, access)?, self.gate.clone());
        Ok(Arc::new(GatedFile { inner, gate, name: name.to_owned() }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.gate.pass(&Held::RemovalOf(name.to_owned()));
        self.inner.remove(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.gate.pass(&Held::SyncDir);
        self.inner.sync_dir()
    }

    fn is_in_place(&self) -> bool {
        self.inner.is_in_place()
    }

    fn physical_block_bytes(&self) -> u32 {
        self.inner.physical_block_bytes()
    }

    fn device(&self) -> String {
        self.inner.device()
    }

    fn driver(&self, depth: usize) -> io::Result<Box<dyn Driver>> {
        self.inner.driver(depth)
    }

    fn io_mode(&self) -> IoMode {
        self.inner.io_mode()
    }
}

/// Has the name that it was opened by: a segment's is the temporary one until the log is opened again.
struct GatedFile {
    inner: Arc<dyn DiskFile>,
    gate: Arc<Gate>,
    name: String,
}

impl DiskFile for GatedFile {
    fn size(&self) -> io::Result<u64> {
        self.inner.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.gate.pass(&Held::Reads);
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.gate.pass(&Held::WriteTo(self.name.clone()));
        self.inner.write_at(buf, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.gate.pass(&Held::SyncOf(self.name.clone()));
        self.inner.sync()
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.inner.allocate(bytes)
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.inner.try_lock()
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.inner.descriptor()
    }
}
