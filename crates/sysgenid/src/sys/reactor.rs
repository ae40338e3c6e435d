// SPDX-License-Identifier: MIT OR Apache-2.0

//! Handing the descriptor of a watcher to tokio.

use std::io;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::watcher::Watcher;

/// What is waited for: a change, and the end of the server, which poll reports as an error alone.
pub(crate) const INTEREST: Interest = Interest::READABLE.add(Interest::ERROR);

/// Registers a watcher with the current runtime.
///
/// # Panics
///
/// Outside of a runtime whose I/O is enabled.
pub(crate) fn register(watcher: Watcher) -> io::Result<AsyncFd<Watcher>> {
    // SAFETY: A watcher owns its descriptor, and has another one only after `Watcher::reconnect`, which takes
    // `&mut`. Nobody has that while tokio has the watcher: `AsyncWatcher` gives only `&` of it away.
    let registered = unsafe { AsyncFd::register_with_interest(watcher, INTEREST) };
    registered.map_err(io::Error::from)
}
