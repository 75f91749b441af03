//! Work that waits for the disk, away from the executor: on tokio's pool, or at once where there is no runtime.
//!
//! Invariant: work that began is done to its end, whether anybody waits for it or not; work of a runtime that is being
//! shut down may never begin, and whoever waits is told so.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// Work under way; its value, or why there is none.
pub(super) enum Work<T> {
    Elsewhere(JoinHandle<T>),
    /// It may be of any type, and this be moved all the same.
    Done(Option<Box<T>>),
}

/// Begins work that blocks.
pub(super) fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Work<T> {
    match Handle::try_current() {
        Ok(runtime) => Work::Elsewhere(runtime.spawn_blocking(work)),
        Err(_) => Work::Done(Some(Box::new(work()))),
    }
}

impl<T> Future for Work<T> {
    type Output = io::Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        Poll::Ready(match &mut *self {
            Work::Elsewhere(task) => ready!(Pin::new(task).poll(context)).map_err(io::Error::other),
            Work::Done(value) => {
                value.take().map(|value| *value).ok_or_else(|| io::Error::other("its value was taken"))
            }
        })
    }
}
