//! Target: sequences of operations on a log over the simulated disk, held against the model.
//!
//! The history is the crash explorer's, with its judge; only its choices are bytes of the input instead of numbers from
//! a seed. So a fuzzer steers it by what it reaches in the engine: batches of all operations, completions in any order,
//! failed writes and syncs, a full disk, housekeeping, crashes with any fates, kills, damage, several lives.

use crate::sim::{self, Rng};

/// The history ends with the input, or after so many bytes of it: beyond, a fuzzer repeats what shorter ones do.
const INPUT_BYTES_MAX: usize = 1024;

/// Lives through the history that the input leads to.
pub fn ops_vs_model(input: &[u8]) {
    let input = &input[..input.len().min(INPUT_BYTES_MAX)];
    if let Err(violation) = sim::explore_led_by(input) {
        panic!("{violation}");
    }
}

/// Inputs to begin with.
pub(super) fn seeds() -> Vec<(String, Vec<u8>)> {
    let random = |seed: u64| {
        let mut rng = Rng::new(seed);
        let bytes = (0..200 + 20 * seed as usize).map(|_| rng.below(256) as u8).collect();
        (format!("random-{seed}"), bytes)
    };
    (0..8).map(random).collect()
}
