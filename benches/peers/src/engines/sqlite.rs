//! sqlite in WAL mode: every call is a transaction that inserts its entries into one table.
//!
//! `synchronous = FULL` syncs the WAL at each commit. sqlite has one writer at a time and no group commit. There is one
//! connection behind a mutex, with an exclusive locking mode that spares it the shared-memory index. A connection per
//! thread with a busy timeout was tried: no faster, and those that wait sleep while one of them makes all the commits.
//! Checkpoints come every 64 MiB instead of every 4 MiB, and the warm-up fills that much of the WAL and checkpoints it,
//! so that the run overwrites blocks that are there, which is when a sync is cheapest.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Result, ensure};
use bytes::Bytes;
use rusqlite::Connection;

use crate::engine::{Contestant, Engine};
use crate::load::Load;
use crate::versions;

pub(crate) const CONTESTANT: Contestant = Contestant { name: "sqlite", version, durability: DURABILITY, open };

pub(crate) const DURABILITY: &str = match option_env!("LIBSQLITE3_FLAGS") {
    Some(_) => "WAL mode, synchronous = FULL: fdatasync of the WAL at each commit",
    None => "WAL mode, synchronous = FULL, built without the flag for fdatasync: fsync of the WAL at each commit",
};

const PAGE_BYTES: u32 = 4096;
const CHECKPOINT_PAGES: u32 = (64 << 20) / PAGE_BYTES;
const INSERT: &str = "INSERT INTO log (payload) VALUES (?1)";

pub(crate) fn version() -> String {
    format!("{} (rusqlite {})", rusqlite::version(), versions::of("rusqlite"))
}

struct Sqlite {
    connection: Mutex<Connection>,
    path: PathBuf,
}

fn open(dir: &Path, _: &Load) -> Result<Box<dyn Engine>> {
    let path = dir.join("log.sqlite");
    let connection = connect(&path)?;
    connection.execute_batch("CREATE TABLE log (number INTEGER PRIMARY KEY, payload BLOB NOT NULL)")?;
    fill_wal(&connection)?;
    Ok(Box::new(Sqlite { connection: Mutex::new(connection), path }))
}

/// The database in this file, with the settings of all.
pub(crate) fn connect(path: &Path) -> Result<Connection> {
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.pragma_update(None, "page_size", PAGE_BYTES)?;
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    ensure!(mode == "wal", "sqlite stays in journal mode {mode}");
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    Ok(connection)
}

/// Writes the blocks of the WAL, which keeps its length over checkpoints.
pub(crate) fn fill_wal(connection: &Connection) -> Result<()> {
    connection.execute_batch("CREATE TABLE warm_up (payload BLOB NOT NULL)")?;
    let pages = CHECKPOINT_PAGES.saturating_sub(64);
    connection.execute("INSERT INTO warm_up VALUES (zeroblob(?1))", [pages * PAGE_BYTES])?;
    connection.execute("DELETE FROM warm_up", [])?;
    let is_blocked: bool = connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |row| row.get(0))?;
    ensure!(!is_blocked, "the WAL of the warm-up could not be checkpointed");
    Ok(())
}

impl Sqlite {
    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine for Sqlite {
    fn append(&self, _: usize, payload: Bytes) -> Result<()> {
        // A statement on its own is a transaction.
        self.connection().prepare_cached(INSERT)?.execute([&payload[..]])?;
        Ok(())
    }

    fn append_batch(&self, _: usize, payloads: Vec<Bytes>) -> Result<()> {
        let mut connection = self.connection();
        let transaction = connection.transaction()?;
        {
            let mut insert = transaction.prepare_cached(INSERT)?;
            for payload in &payloads {
                insert.execute([&payload[..]])?;
            }
        }
        Ok(transaction.commit()?)
    }

    fn close_and_count(self: Box<Self>) -> Result<u64> {
        let connection = self.connection.into_inner().unwrap_or_else(PoisonError::into_inner);
        connection.close().map_err(|(_, error)| error)?;
        let connection = connect(&self.path)?;
        let count: i64 = connection.query_row("SELECT count(*) FROM log", [], |row| row.get(0))?;
        Ok(u64::try_from(count)?)
    }
}
