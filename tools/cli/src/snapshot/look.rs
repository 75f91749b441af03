//! Looking at snapshots: `list`, `verify`, `cat`. Takes no lock and writes nothing.
//!
//! One that is damaged is a row like the others, and the exit code says that there is one.

use std::fmt::Write as _;
use std::io::BufRead;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use ringwal::machine::{CounterStateMachine, KvStateMachine};
use ringwal::{FileSnapshots, Snapshot, SnapshotError, SnapshotId, SnapshotReader, StateMachine};
use serde::Serialize;

use super::args::{CatArgs, ListArgs, VerifyArgs};
use crate::failure::{Damaged, exit_code, unwrapped};
use crate::kv;
use crate::output;
use crate::progress::Busy;
use crate::text::{bytes, print, printed};

/// One snapshot, as it is shown.
#[derive(Debug, Serialize)]
struct Row {
    id: String,
    index: u64,
    term: u64,
    /// Nothing is known of a file that is damaged at its ends.
    #[serde(flatten)]
    known: Option<Known>,
    /// What is wrong with it.
    defect: Option<String>,
}

/// What a file says of itself.
#[derive(Debug, Serialize)]
struct Known {
    /// Milliseconds since the Unix epoch.
    timestamp_ms: u64,
    machine: String,
    raw_bytes: u64,
    stored_bytes: u64,
    checksum: String,
}

impl From<Snapshot> for Known {
    fn from(snapshot: Snapshot) -> Known {
        let Snapshot { timestamp_ms, machine, raw_bytes, stored_bytes, .. } = snapshot;
        Known { timestamp_ms, machine, raw_bytes, stored_bytes, checksum: format!("{:08x}", snapshot.checksum) }
    }
}

type Found = Vec<(SnapshotId, Result<Snapshot, SnapshotError>)>;

/// Shows what the ends of all files say.
pub(super) fn list(args: &ListArgs) -> Result<()> {
    let json_file = output::open_json(args.json.as_deref())?;
    show(open(&args.dir)?.list()?, args.json.as_deref(), json_file, "")
}

/// Reads everything and says what is wrong with which.
pub(super) fn verify(args: &VerifyArgs) -> Result<()> {
    let json_file = output::open_json(args.json.as_deref())?;
    let snapshots = open(&args.dir)?;
    let ids = match &args.ids[..] {
        [] => snapshots.ids()?,
        ids => ids.to_vec(),
    };
    let found = ids.into_iter().map(|id| {
        let _bar = Busy::start(format!("verifying {id}"));
        (id, snapshots.verify(&id.to_string()))
    });
    show(found.collect(), args.json.as_deref(), json_file, "every byte was read and verified\n")
}

fn open(dir: &Path) -> Result<FileSnapshots> {
    kv::view::check_directory(dir)?;
    Ok(FileSnapshots::open_read_only(dir)?)
}

/// Shows what was found, with a last word where all is well; an error where it is not.
fn show(found: Found, json_path: Option<&Path>, json_file: Option<std::fs::File>, all_well: &str) -> Result<()> {
    let mut worst: Option<anyhow::Error> = None;
    let mut rows = Vec::with_capacity(found.len());
    for (SnapshotId { index, term }, found) in found {
        let id = SnapshotId { index, term }.to_string();
        let defect = found.as_ref().err().map(ToString::to_string);
        let known = found.map_err(|error| worst = Some(worse(worst.take(), error.into()))).ok().map(Known::from);
        rows.push(Row { id, index, term, known, defect });
    }
    let last_word = if worst.is_none() && !rows.is_empty() { all_well } else { "" };
    output::publish(&rows, || table(&rows) + last_word, json_path, json_file)?;
    match worst {
        None => Ok(()),
        Some(error) if exit_code(&error) == 3 => Err(Damaged("not all snapshots are intact: see above".into()).into()),
        Some(error) => Err(error),
    }
}

/// Damage counts more than anything else.
fn worse(so_far: Option<anyhow::Error>, error: anyhow::Error) -> anyhow::Error {
    match so_far {
        Some(so_far) if exit_code(&so_far) == 3 || exit_code(&error) != 3 => so_far,
        _ => error,
    }
}

fn table(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "there are no snapshots\n".into();
    }
    let mut text = format!(
        "{:<28} {:<20} {:<12} {:>11} {:>11}  checksum\n",
        "snapshot", "taken (UTC)", "machine", "state", "file"
    );
    for row in rows {
        // Writing to a string cannot fail.
        let _ = match (&row.known, &row.defect) {
            (Some(known), _) => writeln!(
                text,
                "{:<28} {:<20} {:<12} {:>11} {:>11}  {}",
                row.id,
                humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(known.timestamp_ms)),
                known.machine.escape_debug().to_string(),
                bytes(known.raw_bytes),
                bytes(known.stored_bytes),
                known.checksum,
            ),
            (None, defect) => writeln!(text, "{:<28} {}", row.id, defect.as_deref().unwrap_or("not known")),
        };
    }
    text
}

/// Prints the state that a snapshot holds.
pub(super) fn cat(args: &CatArgs) -> Result<()> {
    let reader = open(&args.dir)?.open_snapshot(&args.id.to_string())?;
    if args.raw {
        return print_raw(reader).with_context(|| format!("{} is not printed to its end", args.id));
    }
    match reader.meta().machine.as_str() {
        KvStateMachine::KIND => kv::print_all(&kv::view::restored(reader)?),
        CounterStateMachine::KIND => print_count(reader),
        other => {
            bail!("{} holds the state of {other:?}, which has no text form here: print its bytes with --raw", args.id)
        }
    }
}

/// Prints the state's bytes. What cannot be read is not told as if it could not be written.
fn print_raw(mut reader: SnapshotReader) -> Result<()> {
    let mut unread = None;
    printed(|out| {
        loop {
            let piece = match reader.fill_buf() {
                Ok([]) => return Ok(()),
                Ok(piece) => piece,
                Err(error) => {
                    unread = Some(error);
                    return Ok(());
                }
            };
            out.write_all(piece)?;
            let count = piece.len();
            reader.consume(count);
        }
    })?;
    unread.map_or(Ok(()), |error| Err(unwrapped(error)))
}

fn print_count(mut reader: SnapshotReader) -> Result<()> {
    let mut machine = CounterStateMachine::default();
    pollster::block_on(machine.restore(&mut reader))?;
    print(&format!("{}\n", machine.count())).context("cannot write the output")
}
