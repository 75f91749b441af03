//! An index file opened for lookups: mapped read-only where the disk has descriptors, else held in memory.
//!
//! Header, runs and identity are verified with positioned reads before the file is mapped: a damaged or stale file, a
//! wrong size or a media error found there is an error value. The offsets are neither read nor verified at open, so
//! opening costs a page or two however large the log is; the entry at an offset is verified by whoever reads it.
//!
//! Invariants: only whole files are mapped, and this crate never changes, truncates or grows a file that has the name
//! of an index (it writes a temporary one, whose space is reserved, and renames it; a replaced or removed file lives on
//! under its map). What remains is what no mapping can exclude: if *someone else* shortens the file, or the medium
//! fails under a page of offsets not yet in memory, the lookup ends in SIGBUS.
//!
//! Each open index takes one mapping out of the process's share (`vm.max_map_count`, 65530 by default) and no
//! descriptor. How many stay open is the caller's to bound.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use memmap2::{Mmap, MmapOptions};

use crate::disk::DiskFile;
use crate::format::index::{
    INDEX_HEADER_BYTES, IndexDefect, IndexHeader, IndexIdentity, IndexView, RUN_BYTES, RunsCheck,
};

/// How much of the runs is read at once, in bytes.
const PIECE_BYTES: usize = 64 << 10;
const _: () = assert!(PIECE_BYTES.is_multiple_of(RUN_BYTES));

/// Why an index file cannot be used. Whatever it is, the segment still has everything: rebuild from there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IndexUnusable {
    /// The file is damaged, or belongs to something else.
    #[error("the index file is unusable: {0}")]
    Defect(#[from] IndexDefect),
    /// It could not be read, or not be mapped.
    #[error("the index file cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// A verified index file.
#[derive(Debug)]
pub(crate) struct IndexMap {
    header: IndexHeader,
    bytes: Backing,
}

#[derive(Debug)]
enum Backing {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl IndexMap {
    /// Verifies the file, which need not stay open, and that it is the index of `expect`.
    ///
    /// It must have been opened for reads through the page cache.
    pub(crate) fn open(file: &dyn DiskFile, expect: &IndexIdentity) -> Result<IndexMap, IndexUnusable> {
        let header = read_header(file)?;
        header.check_identity(expect)?;
        check_runs(file, &header)?;
        let bytes = match file.descriptor() {
            Some(descriptor) => Backing::Mapped(map(file, descriptor, &header)?),
            None => Backing::Owned(read_whole(file, &header)?),
        };
        Ok(IndexMap { header, bytes })
    }

    /// As [`IndexMap::open`], for bytes that are in memory already.
    pub(crate) fn from_bytes(bytes: Vec<u8>, expect: &IndexIdentity) -> Result<IndexMap, IndexDefect> {
        let header = IndexHeader::decode(&bytes, bytes.len() as u64)?;
        header.check_identity(expect)?;
        IndexView::new(&header, &bytes)?;
        Ok(IndexMap { header, bytes: Backing::Owned(bytes) })
    }

    fn view(&self) -> IndexView<'_> {
        let bytes = match &self.bytes {
            Backing::Mapped(map) => map,
            Backing::Owned(bytes) => bytes.as_slice(),
        };
        IndexView::of_verified(&self.header, bytes)
    }

    /// What the header says: range, highest index ever written, floor, identity.
    pub(crate) fn header(&self) -> &IndexHeader {
        &self.header
    }

    /// Indexes of the entries that were live when the segment was sealed.
    pub(crate) fn range(&self) -> Range<u64> {
        self.header.range()
    }

    /// Byte offset of the entry's header in the segment. Verify the entry there: the offsets were not.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn offset_of(&self, index: u64) -> Option<u32> {
        self.view().offset_of(index)
    }

    /// The same for the entry at `index` and all after it.
    pub(crate) fn offsets_from(&self, index: u64) -> impl Iterator<Item = u32> + '_ {
        self.view().offsets_from(index)
    }

    /// Term of the entry.
    pub(crate) fn term_of(&self, index: u64) -> Option<u64> {
        self.view().term_of(index)
    }

    /// Verifies the offsets too, reading the whole file.
    #[cfg(test)]
    pub(crate) fn verify_all(&self) -> Result<(), IndexDefect> {
        self.view().verify_all()
    }
}

/// Reads and verifies the header against the file's size.
fn read_header(file: &dyn DiskFile) -> Result<IndexHeader, IndexUnusable> {
    let file_len = file.size()?;
    let mut bytes = [0; INDEX_HEADER_BYTES];
    let read = file.read_at(&mut bytes, 0)?;
    Ok(IndexHeader::decode(bytes.get(..read).unwrap_or_default(), file_len)?)
}

/// Verifies the runs piece by piece: there may be as many as entries, and they need not stay in memory.
fn check_runs(file: &dyn DiskFile, header: &IndexHeader) -> Result<(), IndexUnusable> {
    let Range { start: mut at, end } = header.runs_bytes();
    let mut check = RunsCheck::new(header);
    let mut piece = vec![0; PIECE_BYTES.min(usize::try_from(end - at).unwrap_or(PIECE_BYTES))];
    while at < end {
        let wanted = piece.len().min(usize::try_from(end - at).unwrap_or(PIECE_BYTES));
        read_exact(file, &mut piece[..wanted], at)?;
        check.feed(&piece[..wanted])?;
        at += wanted as u64;
    }
    Ok(check.finish()?)
}

/// Fills the buffer; a file that ends before is one that became shorter since its size was asked.
fn read_exact(file: &dyn DiskFile, buf: &mut [u8], at: u64) -> Result<(), IndexUnusable> {
    match file.read_at(buf, at)? {
        read if read == buf.len() => Ok(()),
        read => Err(IndexDefect::Length { expected: at + buf.len() as u64, found: at + read as u64 }.into()),
    }
}

fn read_whole(file: &dyn DiskFile, header: &IndexHeader) -> Result<Vec<u8>, IndexUnusable> {
    let mut bytes = vec![0; whole(header)?];
    read_exact(file, &mut bytes, 0)?;
    Ok(bytes)
}

fn map(file: &dyn DiskFile, descriptor: BorrowedFd<'_>, header: &IndexHeader) -> Result<Mmap, IndexUnusable> {
    let len = whole(header)?;
    // A shortened file must not be mapped past its end; the last moment to look is now.
    let (expected, found) = (header.file_bytes(), file.size()?);
    if found != expected {
        return Err(IndexDefect::Length { expected, found }.into());
    }
    // SAFETY: the bytes under a shared slice must not change while it lives. Files with an index's name are complete
    // and are never written or resized by this crate; the mapping keeps the inode, so a rename over it or its removal
    // changes nothing here. Should another program write to it all the same, the bytes are only ever read as plain
    // integers, through bounds-checked copies, and an answer is verified where it leads to; should it shorten the
    // file, the kernel ends the process (SIGBUS) rather than show other memory.
    let map = unsafe { MmapOptions::new().len(len).map(&descriptor) }?;
    debug_assert_eq!(map.len() as u64, expected);
    Ok(map)
}

/// Size of the whole file, which [`IndexHeader::decode`] found to be the file's.
fn whole(header: &IndexHeader) -> Result<usize, IndexUnusable> {
    Ok(usize::try_from(header.file_bytes()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::format::index::{SegmentIndex, encode};

    /// A file as a real disk has it (with a descriptor), or as a simulated one has (without).
    struct TestFile {
        file: File,
        has_descriptor: bool,
    }

    impl DiskFile for TestFile {
        fn size(&self) -> io::Result<u64> {
            Ok(self.file.metadata()?.len())
        }

        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            let mut done = 0;
            while done < buf.len() {
                match self.file.read_at(&mut buf[done..], offset + done as u64)? {
                    0 => break,
                    read => done += read,
                }
            }
            Ok(done)
        }

        fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
            unreachable!("an index is only read")
        }

        fn sync(&self) -> io::Result<()> {
            unreachable!("an index is only read")
        }

        fn allocate(&self, _: u64) -> io::Result<()> {
            unreachable!("an index is only read")
        }

        fn try_lock(&self) -> io::Result<bool> {
            unreachable!("an index is only read")
        }

        fn descriptor(&self) -> Option<BorrowedFd<'_>> {
            self.has_descriptor.then(|| self.file.as_fd())
        }
    }

    fn identity() -> IndexIdentity {
        IndexIdentity { log_id: [1; 16], sequence: 2, salt: 3, last_head_checksum: 4, first_frame: 5, last_frame: 6 }
    }

    /// An index with so many terms that its runs are more than one piece.
    fn sample() -> SegmentIndex {
        let mut index = SegmentIndex::new();
        for i in 0..10_000 {
            index.push(100 + i, i / 2, 4096 + i as u32 * 8);
        }
        index
    }

    /// Opens the bytes in every way there is, and expects the same of all.
    fn open_all(bytes: &[u8], expect: &IndexIdentity) -> Vec<Result<IndexMap, IndexUnusable>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index");
        fs::write(&path, bytes).unwrap();
        let open = |has_descriptor| {
            let file = TestFile { file: File::open(&path).unwrap(), has_descriptor };
            IndexMap::open(&file, expect)
        };
        vec![open(true), open(false), IndexMap::from_bytes(bytes.to_vec(), expect).map_err(IndexUnusable::from)]
    }

    #[test]
    fn a_map_answers_as_the_index_did() {
        let index = sample();
        // The directory is gone by the time of the lookups: the map needs neither name nor descriptor.
        let maps = open_all(&encode(&index, &identity()), &identity());
        assert!(matches!(maps[0], Ok(IndexMap { bytes: Backing::Mapped(_), .. })));
        for map in maps {
            let map = map.unwrap();
            assert_eq!((map.range(), map.header().highest_ever()), (index.range(), index.highest_ever()));
            for i in 90..10_110 {
                assert_eq!(map.offset_of(i), index.offset_of(i), "offset of {i}");
                assert_eq!(map.term_of(i), index.term_of(i), "term of {i}");
                let some: Vec<u32> = map.offsets_from(i).take(3).collect();
                assert_eq!(some, index.offsets_from(i, 3), "offsets from {i}");
                assert_eq!(some, (i..i + 3).map_while(|i| index.offset_of(i)).collect::<Vec<u32>>());
            }
            map.verify_all().unwrap();
        }
    }

    #[test]
    fn an_empty_index_opens_too() {
        for map in open_all(&encode(&SegmentIndex::new(), &identity()), &identity()) {
            let map = map.unwrap();
            assert_eq!((map.range(), map.offset_of(0), map.term_of(0)), (0..0, None, None));
            map.verify_all().unwrap();
        }
    }

    fn assert_defect(bytes: &[u8], expect: &IndexIdentity, what: &str) {
        for opened in open_all(bytes, expect) {
            assert!(matches!(opened, Err(IndexUnusable::Defect(_))), "{what}: {opened:?}");
        }
    }

    #[test]
    fn a_damaged_file_is_a_defect_and_never_an_error_of_the_log() {
        let good = encode(&sample(), &identity());
        for at in [0, 9, 20, 70, 100, 111, 112, 120, 70_000, 80_000] {
            let mut bytes = good.clone();
            bytes[at] ^= 0x10;
            assert_defect(&bytes, &identity(), &format!("byte {at} changed"));
        }
        for len in [0, 1, 111, 112, 4096, good.len() - 1] {
            assert_defect(&good[..len], &identity(), &format!("cut to {len} bytes"));
        }
        assert_defect(&[good.as_slice(), &[0]].concat(), &identity(), "one byte longer");
        assert_defect(&vec![0; good.len()], &identity(), "zeros");
        assert_defect(&good, &IndexIdentity { last_head_checksum: 0, ..identity() }, "stale");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_told_from_a_damaged_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = TestFile { file: File::open(dir.path()).unwrap(), has_descriptor: true };
        assert!(matches!(IndexMap::open(&file, &identity()), Err(IndexUnusable::Io(_))));
    }

    #[test]
    fn damaged_offsets_open_and_are_found_by_verify_all() {
        let mut bytes = encode(&sample(), &identity());
        *bytes.last_mut().unwrap() ^= 1;
        for map in open_all(&bytes, &identity()) {
            assert_eq!(map.unwrap().verify_all(), Err(IndexDefect::Checksum("offsets")));
        }
    }
}
