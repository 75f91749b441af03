//! Target: opening a directory of any bytes.
//!
//! It gives a value or a typed error. Then, whatever was forged:
//!
//! - looking writes nothing, and an open that fails changes no file of the log;
//! - what one open shows, the next one shows, also after a power failure right behind the first; only where there is
//!   damage that a full verification meets and the first open did not look at, the next one may meet it: an open that
//!   cuts a torn frame at the start of a segment takes away what proved the segment before, and the next walk is
//!   longer;
//! - an index file makes no difference to a full verification;
//! - what opens takes an append (or refuses it with a reason), closes, and opens again with it.
//!
//! What a log left, in a crash or a close, opens.
//!
//! And where nothing was forged, that is, where every checksum is as the log or the damage left it:
//!
//! - a full verification that finds nothing wrong finds what an ordinary open finds;
//! - what opens for writing opens for reading, with the same entries;
//! - an index file makes no open fail that would succeed without it, and never changes what is shown. The other way
//!   round there is a difference: without it a segment is read from end to end, and damage in places that hold no live
//!   entry is met that an open with index files never looks at.

use super::choices::Choices;
use super::image::{Files, Image, disk_with, files_of};
use crate::config::{Config, Verify};
use crate::engine::sequencer::Request;
use crate::error::Error;
use crate::format::names;
use crate::log::Log;
use crate::sim::{Contents, LocalLog, SimDisk};

/// Entries up to which each is also read alone.
const READ_ALONE_MAX: usize = 64;

/// A directory of any bytes, or of a log that was altered.
pub fn open_directory(input: &[u8]) {
    let mut choices = Choices::new(input);
    let seed = choices.byte().into();
    let image = Image::draw(&mut choices);
    if std::env::var_os("RINGWAL_SHOW").is_some() {
        println!(
            "forged {}, index {}\n{}",
            image.is_forged,
            image.has_forged_index,
            crate::sim::portray(&disk_with(&image.files))
        );
    }
    let full = try_all(&image, Verify::Full, seed, true);
    let tail = try_all(&image, Verify::Tail, seed, full.is_ok());
    assert!(full.is_ok() || !image.is_untouched, "what a crash leaves is refused: {full:?}");
    if full.is_ok() && !image.is_forged {
        assert_eq!(tail, full, "an ordinary open differs from a full verification");
    }
}

/// Opens in every way there is, and lives on; returns what was shown.
fn try_all(image: &Image, verify: Verify, seed: u64, is_sound: bool) -> Result<Contents, Kind> {
    let with = open(&image.files, &image.config, verify, seed);
    let without = open(&image.without_indexes(), &image.config, verify, seed);
    compare_indexes(image, verify, &with, &without);
    compare_look(image, verify, &with);
    let shown = with.contents.clone();
    live_on(with, image, is_sound);
    live_on(without, image, is_sound);
    shown
}

/// What an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Corrupt,
    Unsupported,
    Foreign,
    Config,
}

impl Kind {
    fn of(error: &Error) -> Kind {
        match error {
            Error::Corrupt { .. } => Kind::Corrupt,
            Error::Unsupported { .. } => Kind::Unsupported,
            Error::Foreign { .. } => Kind::Foreign,
            Error::Config(_) => Kind::Config,
            other => panic!("bytes on a sound disk give the wrong error: {other:?}"),
        }
    }
}

/// A writing open, and what there was to see.
struct Opened {
    disk: SimDisk,
    config: Config,
    log: Result<LocalLog, Kind>,
    contents: Result<Contents, Kind>,
}

fn open(files: &Files, config: &Config, verify: Verify, seed: u64) -> Opened {
    let (disk, config) = (disk_with(files), config.clone().verify(verify));
    match LocalLog::open(&disk, config.clone(), seed) {
        Ok(log) => {
            let contents = log.contents().map_err(|error| Kind::of(&error));
            assert!(verify == Verify::Tail || contents.is_ok(), "verified in full, and then {contents:?}");
            Opened { disk, config, log: Ok(log), contents }
        }
        Err(error) => {
            let kind = Kind::of(&error);
            let before = of_the_log(files);
            assert!(of_the_log(&files_of(&disk)) == before, "an open that fails changed a file: {error}");
            Opened { disk, config, log: Err(kind), contents: Err(kind) }
        }
    }
}

/// All but the lock file, where an open writes its name.
fn of_the_log(files: &Files) -> Vec<(&String, &Vec<u8>)> {
    files.iter().filter(|(name, _)| *name != names::LOCK).collect()
}

fn compare_indexes(image: &Image, verify: Verify, with: &Opened, without: &Opened) {
    let (with, without) = (&with.contents, &without.contents);
    match verify {
        Verify::Full => assert_eq!(with, without, "with index files, and without them"),
        Verify::Tail if image.has_forged_index => {}
        Verify::Tail => match (with, without) {
            (_, Ok(_)) => assert_eq!(with, without, "with index files, and without them"),
            (_, Err(kind)) => assert!(*kind != Kind::Foreign || with == without),
        },
    }
}

/// Compares a reading open with the writing one.
fn compare_look(image: &Image, verify: Verify, opened: &Opened) {
    let disk = disk_with(&image.files);
    let looked = Log::look_on(std::sync::Arc::new(disk.clone()), image.config.clone().verify(verify));
    let found = looked.and_then(|(log, report)| read(&log, image).map(|entries| (entries, log, report)));
    assert!(files_of(&disk) == image.files, "looking changed a file");
    let was_created = opened.log.as_ref().is_ok_and(|log| log.report().created);
    match (&opened.contents, found) {
        (Ok(contents), Ok((entries, log, _))) => {
            assert!(entries == contents.entries, "a reading open shows other entries");
            assert_eq!(log.state().compacted, contents.compacted);
            assert!(log.meta().into_iter().eq(contents.hard_state.clone()), "a reading open shows other hard state");
        }
        (Ok(_), Err(error)) => {
            let kind = Kind::of(&error);
            assert!(was_created && kind == Kind::Foreign, "what opens for writing does not for reading: {error}");
        }
        (Err(kind), Ok((_, _, report))) => {
            let is_reason = *kind == Kind::Config || report.damaged_headers > 0 || image.is_forged;
            assert!(is_reason, "what opens for reading does not for writing: {kind:?}");
        }
        (Err(_), Err(error)) => drop(Kind::of(&error)),
    }
}

/// Reads all entries, from both ends, and a few of them alone. A term is asked of an index, which may differ where an
/// entry was forged in a segment that an ordinary open does not look through.
fn read(log: &Log, image: &Image) -> Result<Vec<crate::LogEntry>, Error> {
    let entries: Vec<_> = log.iter(..).collect::<Result<_, _>>()?;
    let mut backwards: Vec<_> = log.iter(..).rev().collect::<Result<_, _>>()?;
    backwards.reverse();
    assert!(entries == backwards, "read from the end there are other entries");
    for entry in entries.iter().take(READ_ALONE_MAX) {
        assert_eq!(log.get(entry.index)?, *entry);
        assert!(log.term(entry.index)? == entry.term || image.is_forged);
    }
    Ok(entries)
}

/// Uses a log that opened: it takes an append, and shows the same whenever it is opened again.
fn live_on(opened: Opened, image: &Image, is_sound: bool) {
    let Opened { disk, config, log: Ok(mut log), contents: Ok(before) } = opened else { return };
    let after_power_failure = disk.crash_point().lose_all();
    if std::env::var_os("RINGWAL_SHOW").is_some() {
        println!("opened {:?}\n{}", log.report(), crate::sim::portray(&after_power_failure));
    }
    assert_same(&after_power_failure, &config, &before, is_sound, "after a power failure");
    let mut expected = before;
    match log.submit(&[Request::Push(bytes::Bytes::from_static(b"one more"))]) {
        Ok(_) => {
            log.drain().expect("nothing fails here");
            let found = log.contents().expect("what was read once reads again");
            let newest = found.entries.last().expect("there is at least the new one").clone();
            expected.next = Some(newest.index + 1);
            assert_eq!((newest.term, &newest.command[..]), (expected.last_term, &b"one more"[..]));
            expected.entries.push(newest);
            assert_eq!(found, expected, "an append changes more than it adds");
        }
        Err(error) => assert!(image.is_forged, "an append is refused: {error}"),
    }
    keep_house(&mut log);
    log.close().expect("nothing fails here");
    assert_same(&disk, &config, &expected, is_sound, "after a clean close");
}

fn keep_house(log: &mut LocalLog) {
    while log.seal_one().expect("nothing fails here") {}
    while log.drop_one().expect("nothing fails here") {}
    while log.remove_dropped().expect("nothing fails here") {}
}

fn assert_same(disk: &SimDisk, config: &Config, expected: &Contents, is_sound: bool, when: &str) {
    let found = LocalLog::open(disk, config.clone(), 7).and_then(|log| log.contents());
    match found {
        Ok(found) => assert!(found == *expected, "{when} it shows {found:?} instead of {expected:?}"),
        Err(Error::Corrupt { .. } | Error::Unsupported { .. }) if !is_sound => {}
        // Only a forger brings a counter of 64 bits so near its end that the last open or two are left.
        Err(Error::Corrupt { reason, .. }) if reason.ends_with("counter is at its end") => {}
        Err(error) => panic!("{when} it does not open: {error}"),
    }
}

/// Inputs to begin with.
pub(super) fn seeds() -> Vec<(String, Vec<u8>)> {
    let drawn = |nth: u8| (0..4 * nth).map(move |at| at.wrapping_mul(41) ^ nth).collect::<Vec<u8>>();
    let grown = |nth: u8| (format!("grown-{nth:02}"), [&[nth, nth % 3, nth][..], &drawn(nth)].concat());
    let any = |nth: u8| (format!("any-{nth}"), [&[nth, 3][..], &drawn(nth + 8)].concat());
    (0..16).map(grown).chain((0..4).map(any)).collect()
}
