//! Damage and repair by hand: reading, writing, flipping and exchanging the files of a simulated disk from outside.
//!
//! None of it passes through faults, counters, power failures or the capacity. A file that is touched is durable as it
//! then reads, and so are all names; operations in flight on it stay in flight. Only [`SimDisk::rot_bit`] settles nothing.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::disk::{SimDisk, check_name};
use super::medium::{Inode, Medium, Names};

impl SimDisk {
    /// The names of all files, sorted.
    pub fn file_names(&self) -> Vec<Arc<str>> {
        self.shared.lock().medium.names.keys().cloned().collect()
    }

    /// The content of a file as it reads, shared and not copied.
    pub fn contents(&self, name: &str) -> io::Result<Arc<Vec<u8>>> {
        let state = self.shared.lock();
        let inode = *state.medium.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(state.medium.inodes[inode].current.clone())
    }

    /// The content of a file as it reads.
    pub fn read_file(&self, name: &str) -> io::Result<Vec<u8>> {
        self.contents(name).map(|content| content.to_vec())
    }

    /// Makes a file, or replaces its content.
    pub fn write_file(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        check_name(name)?;
        let mut state = self.shared.lock();
        if !state.medium.names.contains_key(name) {
            // A slot of its own: nothing open can lead to it.
            state.medium.create(name, |_| true);
        }
        drop(state);
        self.edit_file(name, |content| *content = bytes.to_vec())
    }

    /// Alters the content of a file in place.
    pub fn edit_file(&self, name: &str, edit: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut state = self.shared.lock();
        let inode = *state.medium.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        let file = &mut state.medium.inodes[inode];
        edit(Arc::make_mut(&mut file.current));
        file.settle_all();
        state.medium.sync_dir();
        Ok(())
    }

    /// Flips one bit (0 is the lowest) of the byte at `offset`.
    pub fn flip_bit(&self, name: &str, offset: u64, bit: u8) -> io::Result<()> {
        self.edit_range(name, offset..offset + 1, |bytes| bytes[0] ^= 1 << bit)
    }

    /// A bit of the medium rots (0 is the lowest of the byte at `offset`): unlike after [`SimDisk::flip_bit`], everything
    /// that a crash may take stays at its mercy. Where nothing was ever written, nothing rots.
    pub fn rot_bit(&self, name: &str, offset: u64, bit: u8) -> io::Result<()> {
        let mut state = self.shared.lock();
        let inode = *state.medium.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        state.medium.inodes[inode].flip(offset, bit % 8);
        Ok(())
    }

    /// Overwrites a range with zeros.
    pub fn zero_range(&self, name: &str, range: Range<u64>) -> io::Result<()> {
        self.edit_range(name, range, |bytes| bytes.fill(0))
    }

    /// Alters a range that lies within the file.
    pub fn edit_range(&self, name: &str, range: Range<u64>, edit: impl FnOnce(&mut [u8])) -> io::Result<()> {
        let bytes = self.contents(name)?.len() as u64;
        if range.start > range.end || range.end > bytes {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{range:?} is not within {bytes} bytes")));
        }
        self.edit_file(name, |content| edit(&mut content[range.start as usize..range.end as usize]))
    }

    /// Cuts a file, or lengthens it with zeros.
    pub fn set_len(&self, name: &str, bytes: u64) -> io::Result<()> {
        self.edit_file(name, |content| content.resize(bytes as usize, 0))
    }

    /// Removes a file.
    pub fn remove_file(&self, name: &str) -> io::Result<()> {
        let mut state = self.shared.lock();
        state.medium.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        settle_names(&mut state.medium, |names| {
            names.remove(name);
        });
        Ok(())
    }

    /// Renames a file over whatever has the new name.
    pub fn rename_file(&self, from: &str, to: &str) -> io::Result<()> {
        check_name(to)?;
        let mut state = self.shared.lock();
        let inode = *state.medium.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        settle_names(&mut state.medium, |names| {
            names.remove(from);
            names.insert(Arc::from(to), inode);
        });
        Ok(())
    }

    /// Exchanges the names of two files.
    pub fn swap_files(&self, one: &str, other: &str) -> io::Result<()> {
        let mut state = self.shared.lock();
        let first = *state.medium.names.get(one).ok_or(io::ErrorKind::NotFound)?;
        let second = *state.medium.names.get(other).ok_or(io::ErrorKind::NotFound)?;
        settle_names(&mut state.medium, |names| {
            names.insert(Arc::from(one), second);
            names.insert(Arc::from(other), first);
        });
        Ok(())
    }

    /// A disk of its own with the same files as they read, all of it durable: for damaging one state in many ways.
    pub fn copy_at_rest(&self) -> SimDisk {
        let state = self.shared.lock();
        let inodes = state.medium.inodes.iter().map(|inode| Inode::at_rest(inode.current.clone())).collect();
        SimDisk::on(Medium::at_rest(inodes, state.medium.names.clone()), state.options)
    }

    /// Writes all files, as they read, into a real directory, which is made if it is missing.
    pub fn export_to(&self, directory: &Path) -> io::Result<()> {
        fs::create_dir_all(directory)?;
        for name in self.file_names() {
            fs::write(directory.join(&*name), &**self.contents(&name)?)?;
        }
        Ok(())
    }

    /// Takes over all regular files of a real directory; files with other names stay.
    pub fn import_from(&self, directory: &Path) -> io::Result<()> {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                let name = entry.file_name().into_string();
                let name = name.map_err(|name| io::Error::new(io::ErrorKind::InvalidData, format!("{name:?}")))?;
                self.write_file(&name, &fs::read(entry.path())?)?;
            }
        }
        Ok(())
    }
}

/// Alters the names as they are and as the medium has them, and makes the outcome durable.
fn settle_names(medium: &mut Medium, alter: impl FnOnce(&mut Names)) {
    alter(Arc::make_mut(&mut medium.names));
    medium.sync_dir();
}
