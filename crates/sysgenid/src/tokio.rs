// SPDX-License-Identifier: MIT OR Apache-2.0

//! Watching from tasks of tokio.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use tokio::io::unix::AsyncFd;

use crate::change::Change;
use crate::deadline::Deadline;
use crate::error::Error;
use crate::sys::reactor;
use crate::watcher::{Attempts, Tracking, Watcher};

/// A [`Watcher`] for tasks of tokio.
///
/// An acknowledgement is a short system call, so [`Change`] is the same as without tokio. To rebuild may take longer, and
/// [`Change::rebuild_async`] awaits it.
///
/// # Example
///
/// ```no_run
/// use sysgenid::{AsyncWatcher, Error, Tracking};
///
/// # async fn rebuild_secrets() -> Result<(), Error> { Ok(()) }
/// # async fn watch() -> Result<(), Error> {
/// let watcher = AsyncWatcher::open(Tracking::Tracked)?;
/// loop {
///     let change = watcher.changed().await?;
///     change.rebuild_async(|_generation| rebuild_secrets()).await?;
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct AsyncWatcher(AsyncFd<Watcher>);

impl AsyncWatcher {
    /// As [`Watcher::open`].
    ///
    /// # Errors
    ///
    /// As [`Watcher::open`].
    ///
    /// # Panics
    ///
    /// Outside of a runtime of tokio whose I/O is enabled.
    pub fn open(tracking: Tracking) -> Result<Self, Error> {
        Self::new(Watcher::open(tracking)?)
    }

    /// As [`Watcher::open_at`].
    ///
    /// # Errors
    ///
    /// As [`Watcher::open_at`].
    ///
    /// # Panics
    ///
    /// As [`open`](Self::open).
    pub fn open_at(path: impl AsRef<Path>, tracking: Tracking) -> Result<Self, Error> {
        Self::new(Watcher::open_at(path, tracking)?)
    }

    /// Registers a watcher with the runtime.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if that does not want it.
    ///
    /// # Panics
    ///
    /// As [`open`](Self::open).
    pub fn new(watcher: Watcher) -> Result<Self, Error> {
        let path = watcher.path().to_owned();
        reactor::register(watcher)
            .map(Self)
            .map_err(|reason| lost(path, reason))
    }

    /// Waits for a change that was not acknowledged, as [`Watcher::wait`].
    ///
    /// Tasks may share a watcher as threads may (see [`Watcher`]). It may be cancelled at any time, and loses nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Gone`], [`Error::Io`].
    pub async fn changed(&self) -> Result<Change, Error> {
        loop {
            let mut guard = self
                .0
                .ready(reactor::INTEREST)
                .await
                .map_err(|reason| lost(self.watcher().path().to_owned(), reason))?;
            match self.watcher().try_changed()? {
                Some(change) => return Ok(change),
                None => guard.clear_ready(),
            }
        }
    }

    /// As [`Watcher::reconnect`], without blocking.
    ///
    /// # Errors
    ///
    /// As [`Watcher::reconnect`].
    ///
    /// # Panics
    ///
    /// Outside of a runtime of tokio whose time is enabled.
    pub async fn reconnect(&mut self, timeout: Option<Duration>) -> Result<Change, Error> {
        let mut attempts = Attempts::until(Deadline::after(timeout));
        let watcher = loop {
            match attempts.open(self.watcher())? {
                Ok(watcher) => break watcher,
                Err(pause) => tokio::time::sleep(pause).await,
            }
        };
        *self = Self::new(watcher)?;
        self.watcher().unknown_change()
    }

    /// The changes as a stream, which ends after an error. The change that it yields is to be acknowledged before the
    /// next one is asked for; else it is the same one again, at once.
    pub fn into_stream(self) -> Changes {
        Changes(Some(wait(self)))
    }

    /// The watcher itself.
    pub fn watcher(&self) -> &Watcher {
        self.0.get_ref()
    }
}

/// The runtime does not hear of the node.
fn lost(path: PathBuf, reason: io::Error) -> Error {
    Error::Io {
        action: "watch with tokio",
        path,
        reason,
    }
}

impl From<AsyncWatcher> for Watcher {
    /// Takes it out of the runtime.
    fn from(watcher: AsyncWatcher) -> Self {
        watcher.0.into_inner()
    }
}

/// The changes that a watcher is told of; see [`AsyncWatcher::into_stream`].
pub struct Changes(Option<Waiting>);

/// The wait for the next change, which hands the watcher back.
type Waiting = Pin<Box<dyn Future<Output = (AsyncWatcher, Result<Change, Error>)> + Send>>;

fn wait(watcher: AsyncWatcher) -> Waiting {
    Box::pin(async {
        let result = watcher.changed().await;
        (watcher, result)
    })
}

impl Stream for Changes {
    type Item = Result<Change, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(waiting) = &mut self.0 else {
            return Poll::Ready(None);
        };
        let Poll::Ready((watcher, result)) = waiting.as_mut().poll(context) else {
            return Poll::Pending;
        };
        self.0 = result.is_ok().then(|| wait(watcher));
        Poll::Ready(Some(result))
    }
}

impl fmt::Debug for Changes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Changes").finish_non_exhaustive()
    }
}
