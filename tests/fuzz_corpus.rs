//! The fuzz targets over the corpus in git: what a fuzzer once found stays found, also where there is no fuzzer.
//!
//! `RINGWAL_WRITE_SEEDS=1 cargo test -p ringwal --test fuzz_corpus` writes the targets' own inputs into the corpus.

use std::fs;
use std::path::PathBuf;

use ringwal::fuzzing::{TARGETS, Target};

fn folder(target: &Target) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target.name)
}

fn write_seeds(target: &Target) {
    fs::create_dir_all(folder(target)).unwrap();
    for (name, input) in (target.seeds)() {
        fs::write(folder(target).join(name), input).unwrap();
    }
}

/// Runs one target over its folder.
fn replay(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    if std::env::var_os("RINGWAL_WRITE_SEEDS").is_some() {
        write_seeds(target);
    }
    let mut inputs = 0;
    for file in fs::read_dir(folder(target)).unwrap() {
        let path = file.unwrap().path();
        println!("{}", path.display());
        (target.run)(&fs::read(path).unwrap());
        inputs += 1;
    }
    assert!(inputs >= (target.seeds)().len(), "the corpus of {name} has {inputs} inputs, fewer than were made for it");
}

#[test]
fn frames_decode_as_they_ever_did() {
    replay("decode_frame");
}

#[test]
fn headers_decode_as_they_ever_did() {
    replay("decode_segment_header");
}

#[test]
fn indexes_decode_as_they_ever_did() {
    replay("decode_index");
}

#[test]
fn directories_open_as_they_ever_did() {
    replay("open_directory");
}

#[test]
fn histories_hold_as_they_ever_did() {
    replay("ops_vs_model");
}

#[test]
fn snapshots_read_as_they_ever_did() {
    replay("read_snapshot");
}

#[test]
fn machines_live_as_they_ever_did() {
    replay("machine");
}

/// Runs one input on one target: `RINGWAL_INPUT=open_directory:path/of/the/input`, to look at a finding.
#[test]
fn the_input_of_the_environment_holds() {
    let Ok(named) = std::env::var("RINGWAL_INPUT") else { return };
    let (name, path) = named.split_once(':').expect("RINGWAL_INPUT is target:path");
    let target = TARGETS.iter().find(|target| target.name == name).expect("one of the targets");
    (target.run)(&fs::read(path).unwrap());
}

#[test]
fn every_target_is_replayed_and_has_a_file_of_its_own() {
    let source = fs::read_to_string(file!()).unwrap_or_else(|_| include_str!("fuzz_corpus.rs").into());
    for target in TARGETS {
        assert!(source.contains(&format!("replay(\"{}\")", target.name)), "{} is not replayed", target.name);
        let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("fuzz/fuzz_targets/{}.rs", target.name));
        assert!(fs::read_to_string(file).unwrap().contains(&format!("fuzzing::{}(", target.name)));
    }
}
