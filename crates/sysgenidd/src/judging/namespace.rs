// SPDX-License-Identifier: MIT OR Apache-2.0

//! The user namespace that owns an instance.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FsWord};
use rustix::io::Errno;

use crate::sys;

use super::proc::{self, Proc, open_at, read_at};

/// Where the files of namespaces are (`NSFS_MAGIC`).
const NSFS: FsWord = 0x6e73_6673;

/// Why a user namespace cannot be an owner.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is something else. Another file has to be named.
    #[error("{} is not a user namespace: name a file such as /proc/PID/ns/user", path.display())]
    NotAUserNamespace {
        /// What was opened.
        path: PathBuf,
    },

    /// The process is in another user namespace than the instance's. Another process has to be named.
    #[error("{} is not in the user namespace that owns the instance: name a process that is", process.display())]
    NotInNamespace {
        /// The process's folder.
        process: PathBuf,
    },

    /// Processes cannot be looked at. Its message says what to do.
    #[error("{0}")]
    Proc(&'static proc::Error),

    /// It cannot be read: no such process, or no right to look at it.
    #[error("{} cannot be read: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: Errno,
    },
}

/// The user namespace that owns an instance. It exists for as long as this is kept.
#[derive(Debug)]
pub struct Owner(OwnedFd);

/// Who root of a user namespace is on the daemon's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    /// The user; `None` if the namespace maps no root.
    pub uid: Option<u32>,
    /// The group; `None` if the namespace maps none.
    pub gid: Option<u32>,
}

/// The identity of a user namespace: device and inode of its file. No two that exist share it.
pub(super) type Identity = (u64, u64);

impl Owner {
    /// The daemon's own user namespace: the initial one, unless the daemon is in a container.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn of_current_process() -> Result<Self, Error> {
        Self::open("/proc/self/ns/user")
    }

    /// The namespace behind a file such as `/proc/PID/ns/user`, or a mount of one.
    ///
    /// # Errors
    ///
    /// [`Error::NotAUserNamespace`], [`Error::Io`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let file = open_at(CWD, path).map_err(|source| Error::Io {
            path: path.to_owned(),
            source,
        })?;
        Self::from_fd(file).map_err(|not| not.map_path(path))
    }

    /// The namespace behind a descriptor, as [`as_fd`](AsFd::as_fd) gives one.
    ///
    /// # Errors
    ///
    /// [`Error::NotAUserNamespace`], [`Error::Io`].
    pub fn from_fd(file: OwnedFd) -> Result<Self, Error> {
        let path = PathBuf::from("the descriptor of a user namespace");
        match is_user_namespace(&file) {
            Ok(true) => Ok(Self(file)),
            Ok(false) => Err(Error::NotAUserNamespace { path }),
            Err(source) => Err(Error::Io { path, source }),
        }
    }

    /// The number of the namespace, as `lsns` shows it.
    pub fn inode(&self) -> u64 {
        identity(&self.0).map_or(0, |(_, inode)| inode)
    }

    /// Who root of this namespace is on the daemon's side, by the maps of `process` (`/proc/PID`), which
    /// is in it.
    ///
    /// # Errors
    ///
    /// [`Error::NotInNamespace`], [`Error::Proc`], [`Error::Io`].
    pub fn root_of(&self, process: impl AsRef<Path>) -> Result<Root, Error> {
        let process = process.as_ref();
        let failed = |source| Error::Io {
            path: process.to_owned(),
            source,
        };
        let proc = Proc::own().map_err(Error::Proc)?;
        // All is read by way of one descriptor, which never stands for another process.
        let folder = number(process)
            .ok_or(Errno::NOENT)
            .and_then(|number| proc.folder(number))
            .map_err(failed)?;
        let identity_of_it = identity(&self.0).map_err(failed)?;
        let namespace = open_at(&folder, "ns/user").map_err(failed)?;
        if identity(&namespace).map_err(failed)? != identity_of_it {
            return Err(Error::NotInNamespace {
                process: process.to_owned(),
            });
        }
        let own = open_at(proc, "self/ns/user").map_err(failed)?;
        if identity(&own).map_err(failed)? == identity_of_it {
            // The maps would tell of the namespace above.
            return Ok(Root {
                uid: Some(0),
                gid: Some(0),
            });
        }
        let read = |name: &str| read_at(&folder, name).map_err(failed);
        Ok(Root {
            uid: outside_of_zero(&read("uid_map")?),
            gid: outside_of_zero(&read("gid_map")?),
        })
    }
}

impl AsFd for Owner {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Error {
    fn map_path(self, path: &Path) -> Self {
        let path = path.to_owned();
        match self {
            Self::NotAUserNamespace { .. } => Self::NotAUserNamespace { path },
            Self::Io { source, .. } => Self::Io { path, source },
            other @ (Self::NotInNamespace { .. } | Self::Proc(_)) => other,
        }
    }
}

/// The number of a process by its folder, `/proc/PID`.
fn number(process: &Path) -> Option<u32> {
    process.strip_prefix("/proc").ok()?.to_str()?.parse().ok()
}

/// What id 0 of the inside is outside, by a `uid_map` or `gid_map`.
fn outside_of_zero(map: &[u8]) -> Option<u32> {
    let map = std::str::from_utf8(map).ok()?;
    let mut extents = map.lines().filter_map(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    });
    let (_, outside) = extents.find(|&(inside, _)| inside == 0)?;
    // The number of those who do not exist outside either.
    (outside != u32::MAX).then_some(outside)
}

fn is_user_namespace(file: &OwnedFd) -> Result<bool, Errno> {
    // First where it is: another file may take the request for something else.
    Ok(rustix::fs::fstatfs(file)?.f_type == NSFS
        && sys::namespace_type(file)? == sys::USER_NAMESPACE)
}

pub(super) fn identity(file: &OwnedFd) -> Result<Identity, Errno> {
    let found = rustix::fs::fstat(file)?;
    Ok((found.st_dev, found.st_ino))
}

#[cfg(test)]
mod tests {
    use crate::judging::people::{OWN_NAMESPACE, Process, as_user, here, start};

    use super::*;

    #[test]
    fn only_a_user_namespace_can_be_an_owner() {
        for path in ["/proc/self/ns/mnt", "/dev/null", "/proc/self/status"] {
            let error = Owner::open(path).unwrap_err();
            assert!(matches!(error, Error::NotAUserNamespace { .. }), "{error}");
            assert!(error.to_string().contains(path));
        }
        let error = Owner::open("/nonexistent").unwrap_err();
        assert!(
            matches!(
                error,
                Error::Io {
                    source: Errno::NOENT,
                    ..
                }
            ),
            "{error}"
        );
        let kept = rustix::io::fcntl_dupfd_cloexec(here().as_fd(), 0).unwrap();
        assert_eq!(Owner::from_fd(kept).unwrap().inode(), here().inode());
    }

    #[test]
    fn root_of_a_namespace_is_who_made_it_outside() {
        let mut made = as_user("1234");
        made.extend(OWN_NAMESPACE.map(str::to_owned));
        let Some(inside) = start(&made) else {
            return;
        };
        let root = inside.namespace().root_of(inside.folder()).unwrap();
        assert_eq!((root.uid, root.gid), (Some(1234), Some(1234)));
        assert_eq!(
            here()
                .root_of(format!("/proc/{}", std::process::id()))
                .unwrap(),
            Root {
                uid: Some(0),
                gid: Some(0)
            }
        );
        let error = here().root_of(inside.folder()).unwrap_err();
        assert!(matches!(error, Error::NotInNamespace { .. }), "{error}");
    }

    #[test]
    fn a_namespace_without_a_map_has_no_root() {
        let Some(inside) = Process::start(&["unshare", "-U"]) else {
            return;
        };
        let root = inside.namespace().root_of(inside.folder()).unwrap();
        assert_eq!((root.uid, root.gid), (None, None));
    }

    #[test]
    fn a_map_is_searched_for_root() {
        assert_eq!(
            outside_of_zero(b"         0     100000      65536\n"),
            Some(100_000)
        );
        assert_eq!(outside_of_zero(b"  1  5  1\n  0  7  1\n"), Some(7));
        assert_eq!(outside_of_zero(b"  1000  1000  1\n"), None);
        assert_eq!(outside_of_zero(b"  0  4294967295  1\n"), None);
        assert_eq!(outside_of_zero(b""), None);
    }
}
