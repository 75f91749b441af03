//! The one buffer type that direct I/O may touch: aligned, zeroed when made, of fixed capacity.
//!
//! Invariant: every byte of the buffer is initialised from the moment it exists, so no uninitialised memory can reach
//! the disk as padding.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Alignment of every buffer, in bytes: a page, and the largest memory alignment that direct I/O asks for in practice.
pub const ALIGNMENT: usize = 4096;

/// A zero-initialised, page-aligned byte buffer.
pub struct AlignedBuf {
    start: NonNull<u8>,
    capacity: usize,
}

// SAFETY: the buffer owns its memory alone, as a `Box<[u8]>` does; moving it to another thread moves that ownership.
unsafe impl Send for AlignedBuf {}
// SAFETY: a shared reference gives shared access to plain bytes only.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// A buffer of `capacity` zero bytes, rounded up to the alignment; an empty one still has one page.
    ///
    /// # Panics
    ///
    /// Where `capacity` is above `isize::MAX`; aborts where memory is exhausted, as all of Rust's collections do.
    pub fn zeroed(capacity: usize) -> AlignedBuf {
        let layout = Self::layout(capacity);
        // SAFETY: the layout's size is at least ALIGNMENT, hence not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        AlignedBuf { start, capacity: layout.size() }
    }

    fn layout(capacity: usize) -> Layout {
        let bytes = capacity.max(1).next_multiple_of(ALIGNMENT);
        Layout::from_size_align(bytes, ALIGNMENT).expect("a buffer is smaller than the address space")
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` points to `capacity` initialised bytes that this value owns; the borrow of `self` keeps
        // anyone from writing them meanwhile.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.capacity) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and the exclusive borrow of `self` makes this the only access.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.capacity) }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: `start` came from `alloc_zeroed` with this very layout (capacity is the rounded size, which rounds
        // to itself), and nothing uses it after this.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.capacity)) }
    }
}

// SAFETY: the memory belongs to the value alone, does not move with it, and is neither replaced nor resized until the
// value is dropped, so the pointer stays valid for as long as the ring's operation owns the buffer. All of the capacity
// is initialised from the start.
unsafe impl tokio_uring::buf::IoBuf for AlignedBuf {
    fn stable_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.capacity
    }

    fn bytes_total(&self) -> usize {
        self.capacity
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.capacity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_zeroed_aligned_and_rounded_up() {
        let large = if cfg!(miri) { 5000 } else { 1 << 20 };
        for capacity in [0, 1, 4096, 4097, large] {
            let mut buffer = AlignedBuf::zeroed(capacity);
            assert_eq!(buffer.as_ptr() as usize % ALIGNMENT, 0);
            assert!(buffer.len() >= capacity.max(1) && buffer.len().is_multiple_of(ALIGNMENT));
            assert!(buffer.iter().all(|&byte| byte == 0));
            *buffer.last_mut().expect("a buffer is never empty") = 1;
        }
    }
}
