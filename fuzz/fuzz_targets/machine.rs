//! See `ringwal::fuzzing`, where the target is told and written.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ringwal_fuzz::capped(|| ringwal::fuzzing::machine(input)));
