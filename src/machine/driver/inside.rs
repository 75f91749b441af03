//! Whether this thread is inside a machine: reading it, or applying to it. What waits for the machine would then wait
//! for itself.
//!
//! Knows nothing of machines: it counts entries by a number that tells drivers apart.

use std::cell::RefCell;

use crate::sync::thread_local;

thread_local! {
    static INSIDE: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// This thread is inside a machine for as long as this lives.
pub(super) struct Inside;

impl Inside {
    pub(super) fn enter(driver: usize) -> Inside {
        INSIDE.with(|inside| inside.borrow_mut().push(driver));
        Inside
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.with(|inside| inside.borrow_mut().pop());
    }
}

pub(super) fn is_inside(driver: usize) -> bool {
    INSIDE.with(|inside| inside.borrow().contains(&driver))
}
