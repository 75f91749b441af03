//! Histories crashed everywhere.

use std::time::Instant;

use ringwal::sim::{CrashReport, CrashTest};

use super::history::History;
use super::judge::{Settings, check, live};
use super::setting;

/// What a test tries, unless the environment says otherwise.
pub(crate) struct Tries {
    pub(crate) histories: u64,
    pub(crate) steps: usize,
    pub(crate) points: u64,
    pub(crate) images: usize,
}

/// Crashes the history of a seed everywhere.
pub(crate) fn crash(
    seed: u64,
    settings: &Settings,
    tries: &Tries,
    also: impl Fn(CrashTest) -> CrashTest,
) -> Result<CrashReport, String> {
    let history = History::new(seed, tries.steps);
    let points = setting("RINGWAL_POINTS").unwrap_or(tries.points);
    let test = also(CrashTest::new(seed).points_max(points).images(tries.images));
    let tried =
        test.run(|life| live(life, &history, settings), |disk, promised| check(disk, promised, &history, settings));
    tried.map_err(|failure| format!("RINGWAL_SEED={seed}: {failure}\n{settings:?}\n{history}"))
}

pub(crate) fn crash_each(tries: &Tries, first: u64, also: impl Fn(CrashTest) -> CrashTest) {
    let first = setting("RINGWAL_SEED").unwrap_or(first);
    for seed in first..first + setting("RINGWAL_HISTORIES").unwrap_or(tries.histories) {
        let began = Instant::now();
        let report = crash(seed, &Settings::new(seed), tries, &also).unwrap_or_else(|failure| panic!("{failure}"));
        println!("seed {seed}: {report:?} in {:?}", began.elapsed());
        assert!(report.images > 0 && report.promises > 0, "{report:?}");
    }
}
