//! What may be found after a crash: the models after each batch that may be the last one kept, and how far the log got.
//!
//! A power failure keeps what is durable, a kill what is written, damage is noticed up to what is witnessed.
//!
//! Does not know disks, nor which batches come next.

use std::collections::VecDeque;
use std::sync::Arc;

use super::local::{Contents, LocalLog};
use super::model::{Fitting, Model};
use crate::engine::sequencer::Request;

/// The log after a batch.
#[derive(Clone, Debug)]
struct Version {
    /// The frame that the batch joined.
    frame: u64,
    model: Arc<Model>,
    /// Where the lowest truncation of the batch left the log: its next index, 0 where it was emptied.
    truncated: Option<u64>,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Tale {
    /// Oldest first; at least one, and the first is not newer than what is witnessed.
    versions: VecDeque<Version>,
    /// Frames up to this one are written: a killed process does not take them along.
    pub(super) written: u64,
    /// The kernel gave up pages that it could not write: what is only written may be gone.
    has_lost_pages: bool,
    /// Frames up to this one survive power loss.
    pub(super) durable: u64,
    /// Frames up to this one are durable, and the disk says so.
    pub(super) witnessed: u64,
}

impl Tale {
    /// Nothing was ever written.
    pub(super) fn new() -> Tale {
        let empty = Version { frame: 0, model: Arc::default(), truncated: None };
        Tale { versions: [empty].into(), written: 0, has_lost_pages: false, durable: 0, witnessed: 0 }
    }

    /// The log with everything that was accepted.
    pub(super) fn newest(&self) -> &Arc<Model> {
        let Some(version) = self.versions.back() else { unreachable!("there is always one version") };
        &version.model
    }

    /// A batch was accepted, which leaves the log as `model`.
    pub(super) fn push(&mut self, frame: u64, batch: &[Request], model: Model, fitting: Fitting) {
        let truncated = lowest_truncation(self.newest(), batch, fitting);
        self.versions.push_back(Version { frame, model: Arc::new(model), truncated });
    }

    /// The log reports how far it is.
    pub(super) fn advance(&mut self, log: &LocalLog) {
        let (written, durable) = log.progress();
        self.durable = self.durable.max(durable);
        self.written = if self.has_lost_pages { self.durable } else { self.written.max(written) };
        self.witnessed = self.witnessed.max(log.witnessed());
        let first = self.position(self.witnessed.min(self.durable));
        self.versions.drain(..first);
    }

    /// After a failed write or sync the kernel gave up what it had only in memory.
    pub(super) fn lose_pages(&mut self) {
        self.has_lost_pages = true;
        self.lose_what_is_not_durable();
    }

    /// The power failed.
    pub(super) fn lose_what_is_not_durable(&mut self) {
        self.written = self.durable;
    }

    /// The log was opened again and holds exactly the version of this number.
    pub(super) fn restart(&mut self, version: usize, log: &LocalLog) {
        self.versions.truncate(version + 1);
        let last = log.last_frame();
        // Where two versions are alike the newer one was taken for it: its frame may never have been.
        self.versions.iter_mut().for_each(|version| version.frame = version.frame.min(last));
        (self.written, self.durable, self.has_lost_pages) = (last, last, false);
        self.advance(log);
    }

    /// One past the last index that is durable and not truncated since, as the log should show it.
    pub(super) fn durable_next(&self) -> Option<u64> {
        let durable = self.position(self.durable);
        let since = self.versions.range(durable + 1..).filter_map(|version| version.truncated);
        self.versions[durable].model.next().map(|next| since.fold(next, u64::min))
    }

    /// The last version that everything up to `frame` is part of.
    fn position(&self, frame: u64) -> usize {
        self.versions.iter().rposition(|version| version.frame <= frame).unwrap_or(0)
    }

    /// The version that was found, of those that contain every frame up to `floor`.
    pub(super) fn matching(&self, floor: u64, found: &Contents) -> Result<usize, String> {
        let first = self.position(floor);
        let candidates = self.versions.range(first..);
        if let Some(nth) = candidates.clone().rposition(|version| version.model.difference(found).is_none()) {
            return Ok(first + nth);
        }
        let say = |version: &Version| {
            let difference = version.model.difference(found).unwrap_or_default();
            format!("it is not the log after frame {}: {difference}", version.frame)
        };
        Err(candidates.map(say).collect::<Vec<_>>().join("\n  "))
    }
}

/// Where the lowest truncation of a batch leaves the log.
fn lowest_truncation(before: &Model, batch: &[Request], fitting: Fitting) -> Option<u64> {
    if !batch.iter().any(|request| matches!(request, Request::Truncate(_))) {
        return None;
    }
    let (mut model, mut lowest) = (before.clone(), None);
    for request in batch {
        let Ok(next) = model.after(std::slice::from_ref(request), fitting) else { break };
        if matches!(request, Request::Truncate(_)) && next != model {
            let end = next.next().unwrap_or(0);
            lowest = Some(lowest.map_or(end, |low: u64| low.min(end)));
        }
        model = next;
    }
    lowest
}
