//! Histories crashed everywhere.

use std::sync::Arc;
use std::time::Instant;

use ringwal::sim::{CrashFailure, CrashReport, CrashTest, SimDisk};

use super::history::History;
use super::judge::{Promise, Settings, Shown, check, live, named};
use super::setting;

/// What a test tries, unless the environment says otherwise.
pub(crate) struct Tries {
    pub(crate) histories: u64,
    pub(crate) steps: usize,
    pub(crate) points: u64,
    pub(crate) images: usize,
}

/// What the disks held that were recovered: crashes prove little where nothing was under way.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Met {
    /// A snapshot that was not published.
    unfinished: u64,
    /// Several snapshots.
    several: u64,
    /// Commands behind the newest snapshot.
    replayed: u64,
}

impl Met {
    fn note(&mut self, disk: &SimDisk) {
        let is_unfinished = |name: &Arc<str>| name.starts_with("snapshot_") && name.ends_with(".tmp");
        self.unfinished += u64::from(disk.file_names().iter().any(is_unfinished));
        self.several += u64::from(named(disk).len() > 1);
    }

    fn add(&mut self, other: Met) {
        let Met { unfinished, several, replayed } = other;
        self.unfinished += unfinished;
        self.several += several;
        self.replayed += replayed;
    }
}

/// What judges a disk.
pub(crate) type Judge = fn(&SimDisk, &[Promise], &History, &Settings) -> Result<Shown, String>;

/// Crashes the history of a seed everywhere.
pub(crate) fn crash(
    seed: u64,
    settings: &Settings,
    tries: &Tries,
    judge: Judge,
    also: impl Fn(CrashTest) -> CrashTest,
) -> Result<(CrashReport, Met), String> {
    let (history, mut met) = (History::new(seed, tries.steps), Met::default());
    let points = setting("RINGWAL_POINTS").unwrap_or(tries.points);
    let test = also(CrashTest::new(seed).points_max(points).images(tries.images));
    let tried = test.run(
        |life| live(life, &history, settings),
        |disk, promised| {
            met.note(disk);
            let applied = judge(disk, promised, &history, settings)?;
            met.replayed += u64::from(named(disk).last().is_some_and(|newest| newest.index < applied));
            Ok::<_, String>(applied)
        },
    );
    let told = |failure: Box<CrashFailure>| format!("RINGWAL_SEED={seed}: {failure}\n{settings:?}\n{history}");
    Ok((tried.map_err(told)?, met))
}

pub(crate) fn crash_each(tries: &Tries, first: u64, also: impl Fn(CrashTest) -> CrashTest) {
    let first = setting("RINGWAL_SEED").unwrap_or(first);
    let mut all = Met::default();
    for seed in first..first + setting("RINGWAL_HISTORIES").unwrap_or(tries.histories) {
        let began = Instant::now();
        let lived = crash(seed, &Settings::new(seed), tries, check, &also);
        let (report, met) = lived.unwrap_or_else(|failure| panic!("{failure}"));
        println!("seed {seed}: {report:?}, {met:?} in {:?}", began.elapsed());
        all.add(met);
    }
    let Met { unfinished, several, replayed } = all;
    assert!([unfinished, several, replayed].iter().all(|&count| count > 0), "{all:?}");
}
