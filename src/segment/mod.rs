//! Segments and their index files on a disk: where the format's bytes and the disk's files meet.

pub(crate) mod index_map;
