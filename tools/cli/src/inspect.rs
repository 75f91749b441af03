//! `ringwal inspect`: what a log's directory holds. Opens it read-only: takes no lock, writes nothing.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;

use crate::engine::{SegmentInfo, SegmentRole, View};
use crate::text::{bytes, count, print};

/// Shows the log in `dir`.
pub(crate) fn run(dir: &Path) -> Result<()> {
    let metadata = dir.metadata().with_context(|| format!("cannot inspect {}", dir.display()))?;
    ensure!(metadata.is_dir(), "{} is not a directory: give the directory of a log", dir.display());
    let view = View::open(dir)?;
    let mut text = String::new();
    state(&mut text, dir, &view);
    segments(&mut text, &view.segments);
    hard_state(&mut text, &view.meta);
    Ok(print(&text)?)
}

fn state(text: &mut String, dir: &Path, view: &View) {
    let place =
        |at: Option<(u64, u64)>| at.map_or("none".into(), |(index, term)| format!("index {index}, term {term}"));
    let mut line = |label: &str, what: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{label:<16}{what}");
    };
    line("log", dir.display().to_string());
    line("first index", count(view.state.first));
    line("last entry", place(view.state.last));
    line("compacted up to", place(view.state.compacted));
    line("known durable", view.state.durable.map_or("nothing".into(), |index| format!("index {index}")));
    line("read through", view.io_mode.clone());
}

fn segments(text: &mut String, segments: &[SegmentInfo]) {
    let total = segments.iter().map(|segment| segment.bytes).sum::<u64>();
    let _ = writeln!(text, "\n{} segments, {}", segments.len(), bytes(total));
    let _ = writeln!(
        text,
        "{:>8}  {:<7}{:>12}{:>12}{:>7}{:>12}  {:<24} file",
        "number", "role", "size", "used", "block", "frame", "entries"
    );
    for segment in segments {
        let file = segment.file.file_name().unwrap_or(segment.file.as_os_str()).to_string_lossy();
        let frame = segment.first_frame.map_or("-".into(), |frame| frame.to_string());
        let entries = match segment.entries.end.checked_sub(1) {
            Some(last) if last >= segment.entries.start => format!("{}..={last}", segment.entries.start),
            _ => "-".into(),
        };
        let _ = writeln!(
            text,
            "{:>8}  {:<7}{:>12}{:>12}{:>7}{frame:>12}  {entries:<24} {file}",
            segment.sequence,
            role(segment.role),
            bytes(segment.bytes),
            bytes(segment.used_bytes),
            segment.block_bytes,
        );
    }
}

fn role(role: SegmentRole) -> &'static str {
    match role {
        SegmentRole::Active => "active",
        SegmentRole::Sealed => "sealed",
        SegmentRole::Spare => "spare",
    }
}

fn hard_state(text: &mut String, meta: &[(Bytes, Bytes)]) {
    let _ = writeln!(text, "\n{} hard-state keys", meta.len());
    for (key, value) in meta {
        let _ = writeln!(text, "  {} = {}", shown(key), shown(value));
    }
}

/// Bytes as text with escapes, cut to what fits on a line.
fn shown(bytes: &[u8]) -> String {
    const SHOWN_BYTES: usize = 64;
    let rest = bytes.len().saturating_sub(SHOWN_BYTES);
    let text = bytes[..bytes.len() - rest].escape_ascii();
    if rest == 0 { format!("\"{text}\"") } else { format!("\"{text}\" and {rest} bytes more") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_escaped_and_cut() {
        assert_eq!(shown(b"vote\0\n"), "\"vote\\x00\\n\"");
        assert!(shown(&[b'a'; 70]).ends_with("\" and 6 bytes more"));
    }

    #[test]
    fn what_is_not_a_directory_is_said_to_be_none() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(run(file.path()).unwrap_err().to_string().contains("not a directory"));
        assert!(run(&file.path().join("nothing")).is_err());
    }
}
