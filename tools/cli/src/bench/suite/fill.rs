//! Makes a log large, in batches as fast as it goes.

use std::time::Duration;

use anyhow::Result;

use crate::bench::acks::Acks;
use crate::bench::load::{Load, LoadPlan};
use crate::bench::payload::Payloads;
use crate::engine::{SegmentInfo, SegmentRole, Target};
use crate::interrupt;
use crate::progress::Progress;
use crate::text::bytes;

/// Payload bytes of a batch.
const BATCH_BYTES: usize = 512 << 10;
/// Batches on their way at once.
pub(crate) const WINDOW: usize = 8;
const SLICE: Duration = Duration::from_millis(100);

/// Entries of a batch.
pub(crate) fn batch_entries(payload_bytes: usize) -> u32 {
    (BATCH_BYTES / payload_bytes).max(1) as u32
}

/// Appends as producer 0 until the full segments take `goal_bytes` and there is one at least; what was acknowledged.
pub(crate) fn fill(target: &Target, payloads: &Payloads, goal_bytes: u64) -> Result<Vec<Acks>> {
    let batch = batch_entries(payloads.payload_bytes());
    let plan = LoadPlan { producers: 1, window: WINDOW, batch, ..LoadPlan::default() };
    let load = Load::start(target, &plan, payloads, None)?;
    let mut progress = Progress::start("filling", goal_bytes);
    loop {
        interrupt::check()?;
        load.slice(SLICE, |_| ())?;
        let sealed = sealed(target).iter().map(|segment| segment.bytes).sum::<u64>();
        progress.at(sealed, || format!("bytes ({} so far)", bytes(sealed)));
        if sealed >= goal_bytes.max(1) {
            return load.finish();
        }
    }
}

/// The full segments of a log, oldest first.
pub(crate) fn sealed(target: &Target) -> Vec<SegmentInfo> {
    target.segments().into_iter().filter(|segment| segment.role == SegmentRole::Sealed).collect()
}
