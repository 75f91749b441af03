//! File names: which file of the directory is what.
//!
//! Names order segments by their sequence number in 20 decimal digits, so that a directory listing reads in log order.
//! Anything that is not a name made here is not ours and is left alone.

/// Name of the lock file.
pub const LOCK: &str = "lock";

const SEGMENT: &str = ".seg";
const INDEX: &str = ".idx";
const TEMPORARY: &str = ".tmp";
const CUT: &str = "cut-";

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
        Name::Other
    }
}

/// Whether files of this name are made under a temporary one. Others that end like one are somebody else's.
fn is_made_under_another_name(name: &str) -> bool {
    matches!(classify(name), Name::Segment(_) | Name::Index(_))
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
        assert_eq!((classify("x"), classify("x.tmp"), classify("lock.tmp")), (Name::Other, Name::Other, Name::Other));
    }
}
