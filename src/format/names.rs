//! File names: which file of the directory is what.
//!
//! Names order segments by their sequence number in 20 decimal digits, so that a directory listing reads in log order.
//! Anything that is not a name made here is not ours and is left alone.
//!
//! A snapshot is made, or received from elsewhere, under a name that nobody ever uses again: it has 64 random bits in
//! it. So whoever holds the lock of such a file and finds the name still there knows that the name leads to that very
//! file.

/// Name of the lock file.
pub const LOCK: &str = "lock";

const SEGMENT: &str = ".seg";
const INDEX: &str = ".idx";
const TEMPORARY: &str = ".tmp";
const CUT: &str = "cut-";
const SNAPSHOT_ID: &str = "snapshot_";
const SNAPSHOT: &str = ".zst";
const PARTIAL: &str = ".part";
const DAMAGED: &str = ".damaged";

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// A segment, by sequence number.
    Segment(u64),
    /// The index file of a segment.
    Index(u64),
    /// The lock file.
    Lock,
    /// A file that was being made.
    Temporary,
    /// Bytes that a recovery cut and kept.
    Cut,
    /// A snapshot, by index and term.
    Snapshot(u64, u64),
    /// A snapshot that is being made, or was: by index and term.
    SnapshotTemporary(u64, u64),
    /// The beginning of a snapshot that is being received from elsewhere: by index and term.
    SnapshotPartial(u64, u64),
    /// A damaged snapshot that was set aside: by index and term.
    SnapshotDamaged(u64, u64),
    /// Not ours.
    Other,
}

/// Name of a segment file.
pub fn segment(sequence: u64) -> String {
    format!("{sequence:020}{SEGMENT}")
}

/// Name of an index file.
pub fn index(sequence: u64) -> String {
    format!("{sequence:020}{INDEX}")
}

/// The name under which a file is made before it gets its own.
pub fn temporary(name: &str) -> String {
    format!("{name}{TEMPORARY}")
}

/// Name of the file that keeps what a recovery cut: from which segment and byte, by the open with which epoch counter.
pub fn cut(sequence: u64, offset: u64, epoch_counter: u64) -> String {
    format!("{CUT}{sequence:020}-{offset}-{epoch_counter}.bin")
}

/// A snapshot's id: plain decimal, so that there is one way to write each.
pub fn snapshot_id(index: u64, term: u64) -> String {
    format!("{SNAPSHOT_ID}{index}_{term}")
}

/// Reads a snapshot's id, or says what is wrong with it.
///
/// # Errors
///
/// Whatever [`snapshot_id`] would not write.
pub fn read_snapshot_id(id: &str) -> Result<(u64, u64), &'static str> {
    let numbers = id.strip_prefix(SNAPSHOT_ID).ok_or("it does not begin with snapshot_")?;
    let (index, term) = numbers.split_once('_').ok_or("it has no term")?;
    Ok((decimal(index)?, decimal(term)?))
}

/// Name of a snapshot.
pub fn snapshot(index: u64, term: u64) -> String {
    snapshot_id(index, term) + SNAPSHOT
}

/// The name under which a snapshot is made.
pub fn snapshot_temporary(index: u64, term: u64, random: u64) -> String {
    format!("{}.{random:016x}{TEMPORARY}", snapshot(index, term))
}

/// The name under which a snapshot is received.
pub fn snapshot_partial(index: u64, term: u64, random: u64) -> String {
    format!("{}.{random:016x}{PARTIAL}", snapshot(index, term))
}

/// The name under which a damaged snapshot is set aside.
pub fn snapshot_damaged(index: u64, term: u64, random: u64) -> String {
    format!("{}.{random:016x}{DAMAGED}", snapshot(index, term))
}

/// Tells what a name stands for.
pub fn classify(name: &str) -> Name {
    if name == LOCK {
        Name::Lock
    } else if name.strip_suffix(TEMPORARY).is_some_and(is_made_under_another_name) {
        Name::Temporary
    } else if name.starts_with(CUT) && name.ends_with(".bin") {
        Name::Cut
    } else if let Some(sequence) = name.strip_suffix(SEGMENT).and_then(sequence) {
        Name::Segment(sequence)
    } else if let Some(sequence) = name.strip_suffix(INDEX).and_then(sequence) {
        Name::Index(sequence)
    } else {
        snapshot_file(name).unwrap_or(Name::Other)
    }
}

fn snapshot_file(name: &str) -> Option<Name> {
    let (id, rest) = name.split_once(SNAPSHOT)?;
    let (index, term) = read_snapshot_id(id).ok()?;
    if rest.is_empty() {
        return Some(Name::Snapshot(index, term));
    }
    let (random, ending) = rest.strip_prefix('.')?.split_at_checked(16)?;
    let is_ours = random.bytes().all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit));
    match ending {
        TEMPORARY if is_ours => Some(Name::SnapshotTemporary(index, term)),
        PARTIAL if is_ours => Some(Name::SnapshotPartial(index, term)),
        DAMAGED if is_ours => Some(Name::SnapshotDamaged(index, term)),
        _ => None,
    }
}

/// Whether files of this name are made under a temporary one. Others that end like one are somebody else's.
fn is_made_under_another_name(name: &str) -> bool {
    matches!(classify(name), Name::Segment(_) | Name::Index(_))
}

/// A number as it is written here: digits alone, the first of them no zero but for zero itself.
fn decimal(digits: &str) -> Result<u64, &'static str> {
    match digits.as_bytes() {
        [] => Err("a number is missing"),
        digits if !digits.iter().all(u8::is_ascii_digit) => Err("index and term must be digits alone"),
        [b'0', _, ..] => Err("a number begins with a zero"),
        _ => digits.parse().map_err(|_| "a number is above 2^64"),
    }
}

fn sequence(digits: &str) -> Option<u64> {
    let plain = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|&sequence| plain && sequence > 0 && sequence < u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_foreign_ones_are_other() {
        assert_eq!(classify(&segment(7)), Name::Segment(7));
        assert_eq!(classify(&index(u64::MAX - 1)), Name::Index(u64::MAX - 1));
        assert_eq!(classify(&temporary(&segment(7))), Name::Temporary);
        assert_eq!(classify(&cut(1, 4096, 2)), Name::Cut);
        assert_eq!(classify("lock"), Name::Lock);
        for other in ["7.seg", "+0000000000000000007.seg", "00000000000000000000.seg", "99999999999999999999.seg"] {
            assert_eq!(classify(other), Name::Other, "{other}");
        }
        assert_eq!(classify(&snapshot(7, 0)), Name::Snapshot(7, 0));
        assert_eq!(classify(&snapshot_temporary(7, 2, 255)), Name::SnapshotTemporary(7, 2));
        assert_eq!(classify(&snapshot_partial(u64::MAX, 2, u64::MAX)), Name::SnapshotPartial(u64::MAX, 2));
        assert_eq!(classify(&snapshot_damaged(0, u64::MAX, 0)), Name::SnapshotDamaged(0, u64::MAX));
        for other in [
            "snapshot_7_1",
            "snapshot_7.zst",
            "snapshot_07_1.zst",
            "snapshot_7_1.zst.tmp",
            "snapshot_7_1.zst.00000000000000FF.tmp",
            "snapshot_7_1.zst.00000000000000ff.tmp.tmp",
            "snapshot_7_1.zst.000000000000ééé.tmp",
            "snapshot_7_18446744073709551616.zst",
        ] {
            assert_eq!(classify(other), Name::Other, "{other}");
        }
        assert_eq!((classify("x"), classify("x.tmp"), classify("lock.tmp")), (Name::Other, Name::Other, Name::Other));
    }

    #[test]
    fn a_snapshot_id_is_written_in_one_way_only() {
        for (index, term) in [(0, 0), (1, 10), (u64::MAX, u64::MAX)] {
            assert_eq!(read_snapshot_id(&snapshot_id(index, term)), Ok((index, term)));
        }
        for bad in [
            "",
            "snapshot",
            "snapshot_",
            "snapshot_1",
            "snapshot_1_",
            "snapshot__1",
            "snapshot_1_2_3",
            "snapshot_01_2",
            "snapshot_1_00",
            "snapshot_+1_2",
            "snapshot_1_-2",
            "snapshot_ 1_2",
            "snapshot_1_2 ",
            "snapshot_1_2\0",
            "snapshot_1_2.zst",
            "Snapshot_1_2",
            "snapshot_0x1_2",
            "snapshot_1_18446744073709551616",
            "snapshot_99999999999999999999999999_2",
            "snapshot_\u{0661}_2",
            "../snapshot_1_2",
            "snapshot_1/../../x_2",
            "snapshot_1_..",
            "/snapshot_1_2",
            "..",
            "/",
        ] {
            assert!(read_snapshot_id(bad).is_err(), "{bad:?}");
        }
    }
}
