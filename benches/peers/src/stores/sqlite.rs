//! sqlite in WAL mode, set up and warmed up as among the logs ([`crate::engines::sqlite`]): `synchronous = FULL` syncs
//! the WAL at each commit, one connection behind a mutex, checkpoints every 64 MiB, WAL blocks written before.
//!
//! A page cache of 1 GiB, as redb's, holds all that a run writes. The table is a B-tree of its own keys (`WITHOUT ROWID`), which spares an index beside it. sqlite has one writer at a
//! time and no group commit.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, params};

use super::{See, Store, engine};
use crate::engine::{Contestant, Engine};
use crate::engines::sqlite::{DURABILITY, connect, fill_wal, version};
use crate::load::Load;
use crate::records::parts;

pub(crate) const CONTESTANT: Contestant = Contestant { name: "sqlite", version, durability: DURABILITY, open };

const CACHE_KIB: i64 = 1 << 20;
const CREATE: &str = "CREATE TABLE kv (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID";
const SET: &str = "INSERT OR REPLACE INTO kv VALUES (?1, ?2)";

struct Sqlite {
    connection: Mutex<Connection>,
    path: PathBuf,
}

fn open(dir: &Path, _: &Load) -> Result<Box<dyn Engine>> {
    let path = dir.join("kv.sqlite");
    let connection = connect_cached(&path)?;
    connection.execute_batch(CREATE)?;
    fill_wal(&connection)?;
    Ok(engine(Sqlite { connection: Mutex::new(connection), path }))
}

fn connect_cached(path: &Path) -> Result<Connection> {
    let connection = connect(path)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    Ok(connection)
}

impl Sqlite {
    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for Sqlite {
    fn set(&self, record: Bytes) -> Result<()> {
        let (key, value) = parts(&record);
        // A statement on its own is a transaction.
        self.connection().prepare_cached(SET)?.execute(params![key, value])?;
        Ok(())
    }

    fn set_all(&self, records: Vec<Bytes>) -> Result<()> {
        let mut connection = self.connection();
        let transaction = connection.transaction()?;
        {
            let mut set = transaction.prepare_cached(SET)?;
            for (key, value) in records.iter().map(|record| parts(record)) {
                set.execute(params![key, value])?;
            }
        }
        Ok(transaction.commit()?)
    }

    fn reopen(self) -> Result<Sqlite> {
        let connection = self.connection.into_inner().unwrap_or_else(PoisonError::into_inner);
        connection.close().map_err(|(_, error)| error)?;
        Ok(Sqlite { connection: Mutex::new(connect_cached(&self.path)?), path: self.path })
    }

    fn for_each(&self, see: &mut See<'_>) -> Result<()> {
        let connection = self.connection();
        let mut all = connection.prepare("SELECT key, value FROM kv ORDER BY key")?;
        let mut rows = all.query([])?;
        while let Some(row) = rows.next()? {
            see(row.get_ref(0)?.as_blob()?, row.get_ref(1)?.as_blob()?)?;
        }
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let connection = self.connection();
        let value = connection.query_row("SELECT value FROM kv WHERE key = ?1", [key], |row| row.get(0)).optional()?;
        Ok(value)
    }
}
