//! What the fuzz targets in `fuzz/` run, one function a target: any bytes go in, and a broken promise is a panic.
//!
//! They stand here and not in `fuzz/` because they need the crate's inside, and so that the plain test suite can run
//! them over the corpus in git, with any compiler and without a fuzzer.
//!
//! Invariant: everything follows from the input, so that an input that was found once is found again.
//!
//! Internal: no part of the crate's interface. Does not know libFuzzer; allocations and time are limited by whoever
//! calls.

mod choices;
mod directory;
mod forge;
mod frame;
mod header;
mod image;
mod index;
mod machine;
mod operations;
mod snapshot;

pub use directory::open_directory;
pub use frame::decode_frame;
pub use header::decode_segment_header;
pub use index::decode_index;
pub use machine::machine;
pub use operations::ops_vs_model;
pub use snapshot::read_snapshot;

/// A target: its name, what it does with an input, and inputs to begin with.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Also the name of its file in `fuzz/fuzz_targets` and of its folder in `fuzz/corpus`.
    pub name: &'static str,
    /// Panics where a promise does not hold.
    pub run: fn(&[u8]),
    /// Inputs for the corpus, each with the name of its file.
    pub seeds: fn() -> Vec<(String, Vec<u8>)>,
}

/// All targets.
pub const TARGETS: [Target; 7] = [
    Target { name: "decode_frame", run: decode_frame, seeds: frame::seeds },
    Target { name: "decode_segment_header", run: decode_segment_header, seeds: header::seeds },
    Target { name: "decode_index", run: decode_index, seeds: index::seeds },
    Target { name: "open_directory", run: open_directory, seeds: directory::seeds },
    Target { name: "ops_vs_model", run: ops_vs_model, seeds: operations::seeds },
    Target { name: "read_snapshot", run: read_snapshot, seeds: snapshot::seeds },
    Target { name: "machine", run: machine, seeds: machine::seeds },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_target_begins_with_holds() {
        // A log's life takes an interpreter minutes; decoding is enough for it.
        let targets = if cfg!(miri) { &TARGETS[..3] } else { &TARGETS[..] };
        for target in targets {
            let some = if cfg!(miri) { 2 } else { usize::MAX };
            for (name, input) in (target.seeds)().into_iter().take(some) {
                println!("{} {name}", target.name);
                (target.run)(&input);
            }
        }
    }
}
