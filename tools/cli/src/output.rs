//! A job's result, handed out: JSON into a file for programs, a table or that JSON to the screen.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::text::print;

/// The file the JSON goes to, made before the job so that a bad path costs no one the job.
pub(crate) fn open_json(path: Option<&Path>) -> Result<Option<File>> {
    let Some(path) = path.filter(|path| *path != Path::new("-")) else { return Ok(None) };
    let file = File::options().write(true).create(true).truncate(false).open(path);
    file.map(Some).with_context(|| format!("cannot write {}", path.display()))
}

/// Hands a result out: JSON into its file, the table (or, asked for with `-`, the JSON) to the screen.
pub(crate) fn publish(
    result: &impl Serialize,
    table: impl FnOnce() -> String,
    json_path: Option<&Path>,
    json_file: Option<File>,
) -> Result<()> {
    let json = serde_json::to_string_pretty(result).context("cannot write the figures as JSON")? + "\n";
    if let Some(mut file) = json_file {
        let written = file.set_len(0).and_then(|()| file.write_all(json.as_bytes()));
        written.context("cannot write the JSON file")?;
    }
    let show_json = json_path == Some(Path::new("-"));
    print(&if show_json { json } else { table() }).context("cannot print the result")
}
