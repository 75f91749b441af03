//! What one writes without a log engine: a file, a mutex, and in it a write and an fdatasync for every call.
//!
//!   | length u32 | crc32c u32 | payload ... |
//!
//! It shares no sync between callers, allocates nothing ahead (every sync also commits the file's new size), and cannot
//! tell a batch that was torn from a shorter one. A batch is one write and one sync.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, ensure};
use bytes::Bytes;

use crate::engine::{Contestant, Engine};
use crate::load::Load;

pub(crate) const CONTESTANT: Contestant = Contestant {
    name: "naive",
    version: || "-".to_owned(),
    durability: "write and fdatasync under a mutex, once per call",
    open,
};

struct Naive {
    file: Mutex<File>,
    path: PathBuf,
}

fn open(dir: &Path, _: &Load) -> Result<Box<dyn Engine>> {
    let path = dir.join("log");
    let file = Mutex::new(File::create_new(&path)?);
    File::open(dir)?.sync_all()?;
    Ok(Box::new(Naive { file, path }))
}

impl Engine for Naive {
    fn append(&self, producer: usize, payload: Bytes) -> Result<()> {
        self.append_batch(producer, vec![payload])
    }

    fn append_batch(&self, _: usize, payloads: Vec<Bytes>) -> Result<()> {
        let mut framed = Vec::with_capacity(payloads.iter().map(|payload| 8 + payload.len()).sum());
        for payload in &payloads {
            framed.extend_from_slice(&u32::try_from(payload.len())?.to_le_bytes());
            framed.extend_from_slice(&crc32c::crc32c(payload).to_le_bytes());
            framed.extend_from_slice(payload);
        }
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(&framed)?;
        file.sync_data()?;
        Ok(())
    }

    fn close_and_count(self: Box<Self>) -> Result<u64> {
        let mut file = BufReader::with_capacity(1 << 20, File::open(&self.path)?);
        let mut left = file.get_ref().metadata()?.len();
        let (mut header, mut payload, mut count) = ([0; 8], Vec::new(), 0);
        while left > 0 {
            file.read_exact(&mut header)?;
            let [length, crc] = [0, 4].map(|at| u32::from_le_bytes([0, 1, 2, 3].map(|byte| header[at + byte])));
            let framed_bytes = u64::from(length) + 8;
            ensure!(framed_bytes <= left, "the last entry is cut off");
            payload.resize(length as usize, 0);
            file.read_exact(&mut payload)?;
            ensure!(crc32c::crc32c(&payload) == crc, "entry {count} is damaged");
            (left, count) = (left - framed_bytes, count + 1);
        }
        Ok(count)
    }
}
