//! What happened in a history, a line each: for the report of a broken promise.

use super::local::SYNC_TOKEN;
use super::model::Refused;
use crate::engine::sequencer::Request;

/// Something that happens to a log.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Open { life: usize, kept: usize },
    Submit { frame: u64, batch: Vec<Request> },
    Refused { why: Refused, batch: Vec<Request> },
    Pump,
    Short { bytes: usize },
    PagesDropped,
    Complete { token: u64 },
    Fail { token: u64 },
    Collect,
    Read,
    Spare,
    Seal,
    Drop,
    Remove,
    Full,
    Relieve,
    RoomAgain,
    Mark,
    Slot,
    Sync,
    Close,
    Fault { what: String, outcome: String },
    PowerFails { fates: String },
    Killed { story: String },
}

impl Step {
    /// The step in a line, payloads by their length only.
    pub(super) fn told(&self) -> String {
        match self {
            Step::Open { life, kept } => format!("Open for life {life}, {kept} entries kept"),
            Step::Submit { frame, batch } => format!("Submit into frame {frame}: {}", told(batch)),
            Step::Refused { why, batch } => format!("Refused, {why:?}: {}", told(batch)),
            Step::Short { bytes } => format!("The next write takes {bytes} bytes at first"),
            Step::Complete { token } => format!("Complete {}", told_operation(*token)),
            Step::Fail { token } => format!("Fail {}", told_operation(*token)),
            Step::Fault { what, outcome } => format!("Fault, {what}: {outcome}"),
            Step::PowerFails { fates } => format!("PowerFails:\n{fates}"),
            Step::Killed { story } => format!("Killed: {story}"),
            other => format!("{other:?}"),
        }
    }
}

fn told_operation(token: u64) -> String {
    if token == SYNC_TOKEN { "a sync".into() } else { format!("frame {token}") }
}

fn told(batch: &[Request]) -> String {
    let one = |request: &Request| match request {
        Request::Push(payload) => format!("push {} bytes", payload.len()),
        Request::Entry(entry) => {
            format!("entry {} of term {}, {} bytes", entry.index, entry.term, entry.command.len())
        }
        Request::PutMeta(key, value) => format!("put {} bytes under {key:?}", value.len()),
        other => format!("{other:?}"),
    };
    batch.iter().map(one).collect::<Vec<_>>().join(", ")
}
