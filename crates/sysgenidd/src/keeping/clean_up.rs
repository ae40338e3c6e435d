// SPDX-License-Identifier: MIT OR Apache-2.0

//! Removing what a daemon that nobody starts again has left.

use std::path::Path;

use crate::control;
use crate::keeping::folder;
use crate::keeping::lock;
use crate::placing::{mounts, publish};

/// What could not be removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Programs that map a page may not have been told.
    #[error("programs that map a page cannot all be told that it has ended: {0}; restart them")]
    Pages(#[from] folder::Error),
    /// The links in `/dev`.
    #[error(transparent)]
    Links(#[from] publish::Error),
}

/// Removes links, connections, mounts and the rest, in this order: whoever maps a page learns of it first;
/// nobody comes through the links any more; `close` closes the connections, so that nobody is stuck in one;
/// and what then is mounted is dead.
///
/// The caller holds the lock of `directory`, of which nothing but the file is removed.
///
/// # Errors
///
/// The first [`Error`]; the rest is done even so.
pub(crate) fn clean_up(
    directory: &Path,
    devices: &Path,
    close: impl FnOnce(),
) -> Result<(), Error> {
    let ended = folder::end_all(directory);
    let unpublished = publish::unpublish(directory, devices);
    close();
    mounts::clean(directory, |_| false);
    control::remove(directory);
    lock::remove(directory);
    ended?;
    Ok(unpublished?)
}
