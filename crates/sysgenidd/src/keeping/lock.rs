// SPDX-License-Identifier: MIT OR Apache-2.0

//! The lock of a daemon's folder: held by whoever serves there, and between two daemons by the fd store.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

/// The name of its file.
const NAME: &str = ".lock";

/// Why the lock cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody has it.
    #[error("another sysgenidd serves {}: stop that one, or name another --directory", .0.display())]
    Held(PathBuf),
    /// Somebody had it a moment ago.
    #[error("another sysgenidd has just ended at {}: try again", .0.display())]
    Removed(PathBuf),
    /// A system call failed.
    #[error("{} cannot be locked: {source}", path.display())]
    System {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Makes sure that nobody else serves `directory` while the result is open.
pub(crate) fn take(directory: &Path) -> Result<OwnedFd, Error> {
    let path = directory.join(NAME);
    let failed = |errno: Errno| Error::System {
        path: path.clone(),
        source: errno.into(),
    };
    let lock = rustix::fs::open(
        &path,
        OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::RUSR | Mode::WUSR,
    )
    .map_err(failed)?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Err(Error::Held(directory.to_owned())),
        Err(errno) => return Err(failed(errno)),
    }
    // A daemon that ends removes the file. Who opened it just before has locked nothing.
    let locked = rustix::fs::fstat(&lock).map_err(failed)?.st_ino;
    if rustix::fs::stat(&path).map(|found| found.st_ino) != Ok(locked) {
        return Err(Error::Removed(directory.to_owned()));
    }
    Ok(lock)
}

/// Removes the file. To be called by whoever holds the lock.
pub(crate) fn remove(directory: &Path) {
    let _ = std::fs::remove_file(directory.join(NAME));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_daemon_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let lock = take(directory.path()).unwrap();
        assert!(matches!(take(directory.path()), Err(Error::Held(_))));
        // Whoever inherits it has it.
        let kept = lock.try_clone().unwrap();
        drop(lock);
        assert!(matches!(take(directory.path()), Err(Error::Held(_))));
        remove(directory.path());
        drop(kept);
        take(directory.path()).unwrap();
    }
}
