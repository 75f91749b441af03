//! The check after the run: every acknowledged entry is in the log, once, at its index, with its content.
//!
//! The log is read in order and compared with what each producer saw acknowledged, which is in order too: so one entry
//! per producer is looked at a time. Entries at or below the compaction point may be gone; above it nothing may be
//! missing, and nothing may be there that nobody appended. Pure: entries come from an iterator.

use std::iter::Peekable;

use anyhow::{Result, bail, ensure};
use bytes::Bytes;

use crate::bench::acks::Acks;
use crate::bench::payload::Payloads;

/// Compares the log's entries with the acknowledged ones above index `compacted`; how many were checked. `tick` is
/// told the number so far now and then, and may stop the check.
pub(crate) fn verify(
    entries: impl Iterator<Item = Result<(u64, Bytes)>>,
    acks: &[Acks],
    compacted: u64,
    payloads: &Payloads,
    mut tick: impl FnMut(u64) -> Result<()>,
) -> Result<u64> {
    let mut expected = acks.iter().map(|acks| acks.iter().peekable()).collect::<Vec<_>>();
    for producer in &mut expected {
        while producer.next_if(|&(index, _)| index <= compacted).is_some() {}
    }
    let mut verified = 0;
    for entry in entries {
        let (index, payload) = entry?;
        ensure!(index > compacted, "index {index} is still there although everything up to {compacted} was compacted");
        check_entry(index, &payload, &mut expected, payloads)?;
        verified += 1;
        if verified % 4096 == 0 {
            tick(verified)?;
        }
    }
    let missing = expected.iter_mut().enumerate().filter_map(|(id, rest)| rest.peek().map(|&(index, _)| (index, id)));
    if let Some((index, producer)) = missing.min() {
        bail!("index {index} of producer {producer} was acknowledged and is missing");
    }
    Ok(verified)
}

fn check_entry(
    index: u64,
    payload: &[u8],
    expected: &mut [Peekable<impl Iterator<Item = (u64, u64)>>],
    payloads: &Payloads,
) -> Result<()> {
    let Ok((producer, number)) = payloads.check(payload) else {
        bail!("index {index} has a content that was never appended ({} bytes)", payload.len());
    };
    let Some(rest) = expected.get_mut(producer as usize) else {
        bail!("index {index} claims to be of producer {producer}, which does not exist");
    };
    match rest.next() {
        Some(next) if next == (index, number) => Ok(()),
        Some((next_index, next_number)) if next_index < index => bail!(
            "index {next_index} (entry {next_number} of producer {producer}) was acknowledged and is missing or \
             altered: index {index} holds that producer's entry {number}"
        ),
        Some((next_index, next_number)) => bail!(
            "index {index} holds entry {number} of producer {producer}, whose next acknowledged one is entry \
             {next_number} at index {next_index}: an entry is altered, out of place or twice in the log"
        ),
        None => bail!("index {index} holds entry {number} of producer {producer}, beyond the last acknowledged one"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three producers of two entries per submission, and the log they made, from index 1.
    fn run() -> (Vec<Acks>, Vec<(u64, Bytes)>, Payloads) {
        let mut payloads = Payloads::new(32, 1);
        let mut acks = vec![Acks::new(2); 3];
        let (mut log, mut index) = (Vec::new(), 1);
        for (round, producer) in [0, 2, 1, 1, 0, 2].into_iter().enumerate() {
            let number = acks[producer].entries();
            acks[producer].add(index..index + 2).unwrap();
            for offset in 0..2 {
                log.push((index + offset, payloads.make(producer as u32, number + offset)));
            }
            index += 2;
            assert!(round < 6);
        }
        (acks, log, payloads)
    }

    fn check(log: &[(u64, Bytes)], compacted: u64) -> Result<u64> {
        let (acks, _, payloads) = run();
        verify(log.iter().cloned().map(Ok), &acks, compacted, &payloads, |_| Ok(()))
    }

    #[test]
    fn a_whole_log_passes() {
        let (_, log, _) = run();
        assert_eq!(check(&log, 0).unwrap(), 12);
    }

    #[test]
    fn what_was_compacted_is_not_expected_and_must_be_gone() {
        let (_, log, _) = run();
        assert_eq!(check(&log[5..], 5).unwrap(), 7);
        assert!(check(&log[4..], 5).is_err());
        assert!(check(&log[6..], 5).is_err(), "index 6 is above the compaction point");
        assert_eq!(check(&[], 12).unwrap(), 0);
    }

    #[test]
    fn every_missing_entry_is_noticed() {
        let (_, log, _) = run();
        for gone in 0..log.len() {
            let mut log = log.clone();
            log.remove(gone);
            assert!(check(&log, 0).is_err(), "without entry {gone}");
            assert!(check(&log[..gone], 0).is_err(), "cut at entry {gone}");
        }
    }

    #[test]
    fn every_altered_swapped_or_doubled_entry_is_noticed() {
        let (_, log, mut payloads) = run();
        for at in 0..log.len() {
            let mut altered = log.clone();
            let mut bytes = altered[at].1.to_vec();
            bytes[20] ^= 1;
            altered[at].1 = bytes.into();
            assert!(check(&altered, 0).is_err(), "altered {at}");

            let mut swapped = log.clone();
            let other = (at + 1) % log.len();
            (swapped[at].1, swapped[other].1) = (log[other].1.clone(), log[at].1.clone());
            assert!(check(&swapped, 0).is_err(), "swapped {at}");

            let mut doubled = log.clone();
            doubled[at].1 = log[other].1.clone();
            assert!(check(&doubled, 0).is_err(), "doubled {at}");
        }
        let mut longer = log.clone();
        longer.push((13, payloads.make(0, 4)));
        assert!(check(&longer, 0).is_err(), "one that nobody saw acknowledged");
    }
}
