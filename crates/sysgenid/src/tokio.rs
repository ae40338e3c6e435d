// SPDX-License-Identifier: MIT OR Apache-2.0

//! Watching from tasks of tokio.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use tokio::io::unix::AsyncFd;

use crate::change::Change;
use crate::error::Error;
use crate::sys::reactor;
use crate::watcher::{Tracking, Watcher};

/// A [`Watcher`] for tasks of tokio.
///
/// An acknowledgement is a short system call, so [`Change`] is the same as without tokio. To rebuild may take longer:
/// await it, then acknowledge.
///
/// # Example
///
/// ```no_run
/// use sysgenid::{Acknowledged, AsyncWatcher, Tracking};
///
/// # async fn rebuild_secrets() {}
/// # async fn watch() -> Result<(), sysgenid::Error> {
/// let watcher = AsyncWatcher::open(Tracking::Tracked)?;
/// loop {
///     let mut change = watcher.changed().await?;
///     loop {
///         rebuild_secrets().await;
///         match change.acknowledge()? {
///             Acknowledged::Current => break,
///             Acknowledged::ChangedAgain(newer) => change = newer,
///         }
///     }
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
            .map_err(|source| Error::Io {
                action: "watch with tokio",
                path,
                source,
            })
    }

    /// Waits for a change that was not acknowledged, as [`Watcher::wait`].
    ///
    /// Any number of tasks may wait at once, and all are told. It may be cancelled at any time, and loses nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Gone`], [`Error::Io`].
    pub async fn changed(&self) -> Result<Change, Error> {
        loop {
            let mut guard = self
                .0
                .readable()
                .await
                .map_err(|source| self.lost(source))?;
            match self.watcher().try_changed()? {
                Some(change) => return Ok(change),
                None => guard.clear_ready(),
            }
        }
    }

    /// The changes as a stream, which ends after an error. The change that it yields is to be acknowledged before the
    /// next one is asked for; else it is the same one again, at once.
    pub fn into_stream(self) -> Changes {
        Changes(Some(self))
    }

    /// The watcher itself.
    pub fn watcher(&self) -> &Watcher {
        self.0.get_ref()
    }

    /// The same for one task alone: only the one that asked last is woken.
    fn poll_changed(&self, context: &mut Context<'_>) -> Poll<Result<Change, Error>> {
        loop {
            let mut guard = match ready!(self.0.poll_read_ready(context)) {
                Ok(guard) => guard,
                Err(source) => return Poll::Ready(Err(self.lost(source))),
            };
            match self.watcher().try_changed()? {
                Some(change) => return Poll::Ready(Ok(change)),
                None => guard.clear_ready(),
            }
        }
    }

    fn lost(&self, source: io::Error) -> Error {
        Error::Io {
            action: "watch with tokio",
            path: self.watcher().path().to_owned(),
            source,
        }
    }
}

impl From<AsyncWatcher> for Watcher {
    /// Takes it out of the runtime.
    fn from(watcher: AsyncWatcher) -> Self {
        watcher.0.into_inner()
    }
}

/// The changes that a watcher is told of; see [`AsyncWatcher::into_stream`].
#[derive(Debug)]
pub struct Changes(Option<AsyncWatcher>);

impl Stream for Changes {
    type Item = Result<Change, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(watcher) = &self.0 else {
            return Poll::Ready(None);
        };
        let result = ready!(watcher.poll_changed(context));
        if result.is_err() {
            self.0 = None;
        }
        Poll::Ready(Some(result))
    }
}
