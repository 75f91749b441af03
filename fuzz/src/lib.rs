//! What all targets share: the cap on allocations.
//!
//! Bytes that were not read yet must not decide how much memory is taken. An input that makes more than
//! [`LIVE_BYTES_MAX`] live, in one block or in many, ends the process, and the fuzzer keeps it as a finding.

use std::alloc::System;
use std::sync::Once;

use cap::Cap;

/// What one input may hold at any moment: far above what any needs, far below what a length field can claim.
pub const LIVE_BYTES_MAX: usize = 32 << 20;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// Runs a target on one input under the cap.
pub fn capped(target: impl FnOnce()) {
    static HOOK: Once = Once::new();
    HOOK.call_once(lift_on_panic);
    let limit = ALLOCATOR.allocated().saturating_add(LIVE_BYTES_MAX);
    ALLOCATOR.set_limit(limit).expect("the limit is above what is allocated");
    target();
    lift();
}

fn lift() {
    ALLOCATOR.set_limit(usize::MAX).expect("nothing is above this limit");
}

/// Telling where a panic came from takes more memory than any input may.
fn lift_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        lift();
        tell(panic);
    }));
}
