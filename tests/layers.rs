//! The modules keep to their layers: what each may use, who may start threads, where `unsafe` may stand.
//!
//! Reads the sources as text. Comments and test modules do not count.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// What the code of a module may use of this crate. Modules that are not listed may use anything.
const MAY_USE: [(&str, &[&str]); 11] = [
    ("plant", &[]),
    ("priority", &[]),
    ("sync", &[]),
    ("error", &[]),
    ("entry", &[]),
    ("config", &["error", "format"]),
    ("format", &["format", "plant"]),
    ("engine", &["engine", "plant", "format", "config", "error", "entry"]),
    ("disk", &["disk", "config", "error", "sync"]),
    ("snapshot", &["snapshot", "plant", "format", "disk", "config", "error", "sync", "priority"]),
    ("segment", &["segment", "engine", "plant", "format", "disk", "config", "error", "entry"]),
];

/// Where threads may be started, or a pool's asked for: the log itself, the snapshots' pool, a driver's keeper, a node's
/// snapshots, and where a disk's driver or the kernel is tried.
const THREADS: [&str; 8] = [
    "log/mod.rs",
    "log/open.rs",
    "log/reader.rs",
    "log/stall.rs",
    "disk/probe.rs",
    "snapshot/pool.rs",
    "machine/driver/checkpoint.rs",
    "raft/blocking.rs",
];

/// The only files with `unsafe` in them.
const UNSAFE: [&str; 4] = ["disk/buffer.rs", "format/crc.rs", "priority.rs", "segment/index_map.rs"];

/// Files that are compiled for tests only.
const TESTS: [&str; 4] = ["tests.rs", "suite.rs", "naive.rs", "models.rs"];

/// All sources by their path below `src`.
fn sources() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut found, mut directories) = (BTreeMap::new(), vec![root.clone()]);
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_string();
                found.insert(name, fs::read_to_string(path).unwrap());
            }
        }
    }
    assert!(found.len() > 40, "the sources were not found");
    found
}

/// The lines of code, without comments and without what is compiled for tests only.
fn code(name: &str, text: &str) -> Vec<String> {
    if TESTS.iter().any(|tests| name.ends_with(tests)) {
        return Vec::new();
    }
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let code = code.split("#[cfg(all(test, ringwal_loom))]\nmod ").next().unwrap_or_default();
    let without_comment = |line: &str| line.split("//").next().unwrap_or_default().trim().to_string();
    code.lines().map(without_comment).filter(|line| !line.is_empty()).collect()
}

/// The module of the crate's root that a file belongs to.
fn module_of(name: &str) -> &str {
    name.split(['/', '.']).next().unwrap_or_default()
}

/// The modules of this crate that a line names.
fn used(line: &str) -> Vec<&str> {
    let after = line.split("crate::").skip(1);
    let modules =
        after.map(|path| path.split(|at: char| !at.is_alphanumeric() && at != '_').next().unwrap_or_default());
    // What the root exports has a capital letter; it is not a layer.
    modules.filter(|module| module.starts_with(|first: char| first.is_lowercase())).collect()
}

fn is_word(line: &str, word: &str) -> bool {
    line.split(|at: char| !at.is_alphanumeric() && at != '_').any(|found| found == word)
}

#[test]
fn each_layer_uses_only_those_below_it() {
    let (mut wrong, mut counted) = (Vec::new(), 0);
    for (name, text) in sources() {
        let Some((_, may_use)) = MAY_USE.iter().find(|(module, _)| *module == module_of(&name)) else { continue };
        for line in code(&name, &text) {
            let uses = used(&line);
            counted += uses.len();
            wrong.extend(
                uses.iter().filter(|module| !may_use.contains(module)).map(|module| format!("{name}: {module}")),
            );
            if line.contains("super::super::") {
                wrong.push(format!("{name}: {line}"));
            }
        }
    }
    assert!(counted > 50, "the use lines were not found");
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn the_root_has_no_layer_that_is_unknown_here() {
    let known =
        ["lib", "block_on", "fuzzing", "log", "log_storage", "machine", "mem_log", "raft", "sim", "stats", "store"];
    let is_known = |module: &str| known.contains(&module) || MAY_USE.iter().any(|(listed, _)| *listed == module);
    let unknown: Vec<String> = sources().into_keys().filter(|name| !is_known(module_of(name))).collect();
    assert_eq!(unknown, [""; 0]);
}

#[test]
fn nothing_but_the_simulator_and_the_fuzz_targets_use_the_simulator() {
    let uses_it = |(name, text): &(String, String)| {
        !["sim", "fuzzing"].contains(&module_of(name))
            && code(name, text).iter().any(|line| used(line).contains(&"sim"))
    };
    assert_eq!(sources().into_iter().filter(uses_it).map(|(name, _)| name).collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn threads_are_started_in_few_places() {
    let starts = ["thread::spawn(", "thread::Builder", "thread::scope(", ".spawn(move", "spawn_blocking"];
    let mut starting = Vec::new();
    for (name, text) in sources() {
        if code(&name, &text).iter().any(|line| starts.iter().any(|start| line.contains(start))) {
            starting.push(name);
        }
    }
    assert!(starting.iter().any(|name| name == "log/open.rs"), "the search finds what is there: {starting:?}");
    let elsewhere: Vec<_> = starting.iter().filter(|name| !THREADS.contains(&name.as_str())).collect();
    assert_eq!(elsewhere, [""; 0]);
}

#[test]
fn unsafe_code_stands_in_few_places() {
    let mut found = Vec::new();
    for (name, text) in sources() {
        if code(&name, &text).iter().any(|line| is_word(line, "unsafe")) {
            found.push(name);
        }
    }
    assert_eq!(found, UNSAFE);
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent: Vec<_> =
        sources().into_iter().filter(|(_, text)| !text.starts_with("//! ")).map(|(name, _)| name).collect();
    assert_eq!(silent, [""; 0]);
}

#[test]
fn what_is_looked_for_would_be_found() {
    assert_eq!(used("use crate::engine::plant::{Plant, planted}; crate::log::x(crate::Error)"), ["engine", "log"]);
    assert_eq!(code("a.rs", "//! doc\nfn a() {} // unsafe\n#[cfg(test)]\nmod tests {\nunsafe"), ["fn a() {}"]);
    assert!(is_word("pub unsafe fn", "unsafe") && !is_word("unsafe_code", "unsafe"));
}
