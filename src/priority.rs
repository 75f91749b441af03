//! How much of the processor a thread gets, for work that is never urgent.

use std::io;

/// Has the calling thread run only where no other wants the processor, and leave it at once to one that does: the
/// kernel's scheduling policy for that. The lowest priority of the ordinary policy is not enough: such a thread keeps the
/// processor for a slice of some milliseconds once it has it, and whoever becomes ready meanwhile waits, which an append
/// feels. Requests to the disk come after others' where the scheduler of the device looks at that.
///
/// Where all processors are taken for good by others, next to nothing is left for such a thread.
pub(crate) fn step_back() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: 0 names the calling thread. The pointer is to a whole parameter block that outlives the call, and the kernel
    // only reads it. The policy of a thread has no part in what any code may assume of memory.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::step_back;

    /// The 41st field of `/proc/thread-self/stat` is the policy: 5 is idle.
    fn policy() -> String {
        let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
        let (_, after_name) = stat.rsplit_once(") ").unwrap();
        after_name.split(' ').nth(41 - 3).unwrap().to_owned()
    }

    #[test]
    fn a_thread_that_steps_back_is_alone_in_that() {
        let before = policy();
        let of_the_other = std::thread::spawn(|| step_back().map(|()| policy())).join().unwrap().unwrap();
        assert_eq!((before.as_str(), of_the_other.as_str(), policy().as_str()), ("0", "5", "0"));
    }
}
