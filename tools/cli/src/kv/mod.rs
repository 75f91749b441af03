//! `ringwal kv`: a durable key-value store from the shell.
//!
//! - `lines`: keys and values as text; `args`: what can be asked for
//! - `view`: a store to look at, without a lock: `get`, `scan`, `export`
//! - `store`: a store to write to: `set`, `delete`, `batch`, and `load`, which has its own file

pub(crate) mod args;
pub(crate) mod lines;
mod load;
pub(crate) mod store;
pub(crate) mod view;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::ops::Bound;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use ringwal::machine::{KvCommand, KvOp, KvResponse, KvStateMachine};

use self::args::{
    BatchArgs, DeleteArgs, ExportArgs, GetArgs, KvArgs, KvCommand as Asked, NewStoreArgs, ScanArgs, SetArgs,
};
use self::lines::{Lines, Operation, line_bytes_max, read_operation, write_field, write_line};
use crate::failure::Missing;
use crate::text::printed;

/// Most bytes of keys and values in one batch: it has to fit a segment, and is in memory as a whole.
const BATCH_BYTES_MAX: usize = 48 << 20;

/// Does one of the commands.
pub(crate) fn run(args: &KvArgs) -> Result<()> {
    match &args.command {
        Asked::Get(args) => get(args),
        Asked::Set(args) => set(args),
        Asked::Delete(args) => delete(args),
        Asked::Scan(args) => scan(args),
        Asked::Batch(args) => batch(args),
        Asked::Load(args) => load::run(args),
        Asked::Export(args) => export(args),
    }
}

fn get(args: &GetArgs) -> Result<()> {
    let machine = view::open(&args.store)?;
    let Some(value) = machine.get_ref(&args.key) else { return Err(no_such_key(&args.key)) };
    printed(|out| {
        if args.raw {
            return out.write_all(value);
        }
        let mut line = Vec::new();
        write_field(value, &mut line);
        line.push(b'\n');
        out.write_all(&line)
    })
}

fn no_such_key(key: &[u8]) -> anyhow::Error {
    let mut shown = Vec::new();
    write_field(key, &mut shown);
    Missing(format!("there is no key {}", String::from_utf8_lossy(&shown))).into()
}

fn scan(args: &ScanArgs) -> Result<()> {
    let machine = view::open(&args.store)?;
    let (start, end) = match &args.prefix {
        Some(prefix) => (Some(prefix.clone()), after_prefix(prefix)),
        None => (args.start.clone(), args.end.clone()),
    };
    let bounds = (start.map_or(Bound::Unbounded, Bound::Included), end.map_or(Bound::Unbounded, Bound::Excluded));
    print_lines(machine.range(bounds).take(args.limit.unwrap_or(usize::MAX)))
}

/// The first key after all that begin with `prefix`; none where these go up to the last.
fn after_prefix(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|&byte| byte < u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end.into())
}

fn export(args: &ExportArgs) -> Result<()> {
    print_all(&view::open(&args.store)?)
}

/// Prints a whole store.
pub(crate) fn print_all(machine: &KvStateMachine) -> Result<()> {
    print_lines(machine.iter())
}

fn print_lines<'a>(entries: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Result<()> {
    const PIECE_BYTES: usize = 256 << 10;
    printed(|out| {
        let mut piece = Vec::with_capacity(PIECE_BYTES + 4096);
        for (key, value) in entries {
            write_line(key, value, &mut piece);
            if piece.len() >= PIECE_BYTES {
                out.write_all(&piece)?;
                piece.clear();
            }
        }
        out.write_all(&piece)
    })
}

fn set(args: &SetArgs) -> Result<()> {
    let value = match (&args.value, &args.from) {
        (Some(value), _) => value.clone(),
        (None, Some(path)) => whole(path)?,
        (None, None) => bail!("a value is needed"),
    };
    let store = store::open_or_make(&args.to, store::one_shot())?;
    store::once(store, KvCommand::Set { key: args.key.clone(), value }).map(drop)
}

/// All bytes of a file.
fn whole(path: &Path) -> Result<Bytes> {
    let limit = KvStateMachine::VALUE_BYTES_MAX as u64;
    let mut bytes = Vec::new();
    let read = input(path)?.take(limit + 1).read_to_end(&mut bytes);
    read.with_context(|| format!("cannot read {}", path.display()))?;
    if bytes.len() as u64 > limit {
        bail!("{} is too large for a value: at most {limit} bytes are allowed", path.display());
    }
    Ok(bytes.into())
}

/// A file to read, or standard input for `-`.
fn input(path: &Path) -> Result<Box<dyn BufRead + Send>> {
    const BUFFER_BYTES: usize = 1 << 20;
    if path == Path::new("-") {
        return Ok(Box::new(BufReader::with_capacity(BUFFER_BYTES, io::stdin())));
    }
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Box::new(BufReader::with_capacity(BUFFER_BYTES, file)))
}

/// The lines of a file for a store: none is longer than what such a store can take, however it is escaped.
fn lines_of(path: &Path, to: &NewStoreArgs) -> Result<Lines<Box<dyn BufRead + Send>>> {
    const LARGEST_BYTES: usize = KvStateMachine::KEY_BYTES_MAX + KvStateMachine::VALUE_BYTES_MAX;
    Ok(Lines::new(input(path)?, line_bytes_max(to.segment_size.min(LARGEST_BYTES as u64))))
}

fn delete(args: &DeleteArgs) -> Result<()> {
    let store = store::open_existing(&args.store, store::one_shot())?;
    match store::once(store, KvCommand::Delete { key: args.key.clone() })? {
        KvResponse::Deleted { existed: false } => Err(no_such_key(&args.key)),
        _ => Ok(()),
    }
}

fn batch(args: &BatchArgs) -> Result<()> {
    let named = || format!("nothing was changed: {}", args.file.display());
    let operations = operations(&mut lines_of(&args.file, &args.to)?).with_context(named)?;
    let store = store::open_or_make(&args.to, store::one_shot())?;
    store::once(store, KvCommand::Batch(operations)).map(drop)
}

fn operations(lines: &mut Lines<impl BufRead>) -> Result<Vec<KvOp>> {
    let mut operations = Vec::new();
    while let Some(operation) = lines.next(read_operation)? {
        operations.push(match operation {
            Operation::Set(key, value) => KvOp::Put { key, value },
            Operation::Delete(key) => KvOp::Delete { key },
        });
        if lines.bytes() > BATCH_BYTES_MAX as u64 {
            return Err(anyhow!("more than {BATCH_BYTES_MAX} bytes do not fit one batch: split it, or use load"));
        }
    }
    Ok(operations)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_where_its_keys_end() {
        assert_eq!(after_prefix(b"ab"), Some("ac".into()));
        assert_eq!(after_prefix(b"a\xff\xff"), Some("b".into()));
        assert_eq!(after_prefix(b"\xff"), None);
        assert_eq!(after_prefix(b""), None);
    }
}
