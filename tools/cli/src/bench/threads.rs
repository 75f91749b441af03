//! CPU time per thread: which thread is the one that everything waits for.
//!
//! Read from `/proc/self/task/*/schedstat`, in nanoseconds; where the kernel keeps none, nothing is found and nothing
//! is guessed. Threads that ended between two looks are left out.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// The CPU time of threads, by their ids.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ThreadTimes {
    threads: BTreeMap<u32, (String, Duration)>,
}

impl ThreadTimes {
    /// What each thread of this process has used since it began.
    pub(crate) fn now() -> ThreadTimes {
        let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let threads = tasks.filter_map(|task| {
            let id = task.file_name().to_str()?.parse().ok()?;
            Some((id, time_of(&task.path())?))
        });
        ThreadTimes { threads: threads.collect() }
    }

    /// What was used since an earlier look.
    pub(crate) fn since(mut self, earlier: &ThreadTimes) -> ThreadTimes {
        for (id, (_, time)) in &mut self.threads {
            let before = earlier.threads.get(id).map_or(Duration::ZERO, |(_, before)| *before);
            *time = time.saturating_sub(before);
        }
        self
    }

    /// Both together, by thread.
    pub(crate) fn plus(mut self, other: &ThreadTimes) -> ThreadTimes {
        for (id, (name, time)) in &other.threads {
            self.threads.entry(*id).or_insert_with(|| (name.clone(), Duration::ZERO)).1 += *time;
        }
        self
    }

    /// Name and time of the thread that used most.
    pub(crate) fn busiest(&self) -> Option<(String, Duration)> {
        self.threads.values().max_by_key(|(_, time)| *time).cloned()
    }

    /// Made up: id, name and nanoseconds.
    #[cfg(test)]
    pub(crate) fn of<const N: usize>(threads: [(u32, &str, u64); N]) -> ThreadTimes {
        let thread = |(id, name, ns): (u32, &str, u64)| (id, (name.into(), Duration::from_nanos(ns)));
        ThreadTimes { threads: threads.into_iter().map(thread).collect() }
    }
}

fn time_of(task: &Path) -> Option<(String, Duration)> {
    let schedstat = fs::read_to_string(task.join("schedstat")).ok()?;
    let ns = schedstat.split_whitespace().next()?.parse().ok()?;
    let name = fs::read_to_string(task.join("comm")).ok()?;
    Some((name.trim_end().into(), Duration::from_nanos(ns)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_and_sums_go_by_thread() {
        let early = ThreadTimes::of([(1, "a", 100), (2, "b", 50)]);
        let late = ThreadTimes::of([(1, "a", 130), (2, "b", 90), (3, "c", 5)]);
        let used = late.since(&early);
        assert_eq!(used, ThreadTimes::of([(1, "a", 30), (2, "b", 40), (3, "c", 5)]));
        assert_eq!(used.busiest(), Some(("b".into(), Duration::from_nanos(40))));
        assert_eq!(used.plus(&early), ThreadTimes::of([(1, "a", 130), (2, "b", 90), (3, "c", 5)]));
        assert_eq!(ThreadTimes::default().busiest(), None);
    }

    #[test]
    fn this_thread_is_found_where_the_kernel_counts() {
        if Path::new("/proc/self/schedstat").exists() {
            assert!(!ThreadTimes::now().threads.is_empty());
        }
    }
}
