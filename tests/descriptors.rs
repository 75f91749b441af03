//! A process that has no descriptor left: the log refuses what needs a new segment, loses nothing, and goes on when there
//! are some again.
//!
//! Alone in its file: the limit is the whole process's.

mod common;

use std::fs::File;

use common::{eventually, payloads, scratch, small, within};
use ringwal::{Config, Error, IoChoice, Log, SegmentRole};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// EMFILE.
const NONE_LEFT: i32 = 24;

/// Takes all descriptors, and gives them back when it is dropped.
struct Taken(Vec<File>, Rlimit);

impl Taken {
    fn all() -> Taken {
        let before = getrlimit(Resource::Nofile);
        // Lowered, so that there are not very many to be taken.
        setrlimit(Resource::Nofile, Rlimit { current: Some(200), maximum: before.maximum }).unwrap();
        let mut taken = Taken(Vec::new(), before);
        taken.take_again();
        taken
    }

    /// Takes what was closed since.
    fn take_again(&mut self) {
        while let Ok(file) = File::open("/dev/null") {
            self.0.push(file);
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.clear();
        setrlimit(Resource::Nofile, self.1).unwrap();
    }
}

/// Appends over several rolls; how many were acknowledged, and that the others were refused for want of descriptors.
fn append_beside(mut taken: Taken, log: &Log) -> u64 {
    let log = log.clone();
    within("appending", move || {
        let mut acked = 0;
        for _ in 0..200 {
            match log.append(vec![7; 3000]) {
                Ok(_) => acked += 1,
                Err(Error::Io { source, .. }) if source.raw_os_error() == Some(NONE_LEFT) => {}
                Err(other) => panic!("not for want of descriptors: {other}"),
            }
            // A segment that is left gives its own back, for which the next spare races.
            taken.take_again();
        }
        acked
    })
}

fn runs_out(config: Config) {
    let dir = scratch();
    let path = dir.path().join("log");
    let (log, _) = Log::open(&path, config.clone()).unwrap();
    eventually("a spare", || log.segments().iter().any(|segment| segment.role == SegmentRole::Spare));
    let mut acked = append_beside(Taken::all(), &log);
    assert!(acked > 20, "the segments that stood are used up at least");
    assert_eq!(log.state().durable, Some(acked));
    for _ in 0..60 {
        log.append(vec![7; 3000]).unwrap();
        acked += 1;
    }
    log.close().unwrap();
    let (log, _) = Log::open(&path, config).unwrap();
    assert_eq!(payloads(&log).len() as u64, acked);
}

#[test]
fn a_log_without_descriptors_refuses_what_needs_a_segment_and_goes_on_later() {
    for io in [IoChoice::Auto, IoChoice::Syscall] {
        runs_out(small().io(io).tail_cache_bytes(0));
    }
}
