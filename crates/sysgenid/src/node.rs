// SPDX-License-Identifier: MIT OR Apache-2.0

//! Finding and opening a node, and its calls.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use sysgenid_core::{Generation, PageWord, abi};

use crate::error::{Access, Error};
use crate::sys::ioctl;
use crate::sys::mapping::Mapping;
use crate::sys::secure::is_secure_execution;

/// Where the nodes of a machine are, in the order in which they are tried. The last is where the daemon serves what
/// `/dev/sysgenid` leads to, for programs that have a `/dev` of their own, such as units with `PrivateDevices=`.
pub const PATHS: &[&str] = &[
    "/dev/sysgenid",
    "/dev/vmgenid",
    "/run/sysgenid/host/sysgenid",
];

/// The environment variable with the path of the node to use instead. A program that runs with more rights than
/// whoever started it (set-user-ID, file capabilities) does not look at it.
///
/// It is for this library alone. AWS-LC, for one, always looks at `/dev/sysgenid`: keys that are drawn from it at the
/// word of a node elsewhere come from a generator that knows nothing of the change.
pub const PATH_VARIABLE: &str = "SYSGENID_PATH";

/// An open node.
#[derive(Debug)]
pub(crate) struct Node {
    fd: OwnedFd,
    path: PathBuf,
    access: Access,
    /// The live generation, once somebody has asked for it.
    page: OnceLock<Mapping>,
}

impl Node {
    /// Opens the node of this machine, or of the environment.
    pub(crate) fn find(access: Access) -> Result<Self, Error> {
        if let Some(path) = path_of_environment() {
            return Self::open(&path, access).map_err(Error::of_environment);
        }
        Self::find_anywhere(access)
    }

    /// Opens the node of this machine, whatever the environment says.
    pub(crate) fn find_anywhere(access: Access) -> Result<Self, Error> {
        let mut first_refusal = None;
        for path in PATHS {
            match Self::open(Path::new(path), access) {
                Err(error) if error.is_absent() => {}
                // Another one may be there, also where a server has left its node behind.
                Err(error @ (Error::NoPermission { .. } | Error::Gone { .. })) => {
                    first_refusal.get_or_insert(error);
                }
                opened => return opened,
            }
        }
        Err(first_refusal
            .unwrap_or_else(|| Error::absent(PATHS.iter().map(PathBuf::from).collect())))
    }

    /// Opens the node at a path: tracked if it is to be written to, else not, for it could never acknowledge.
    ///
    /// Reads never sleep: whoever wants to sleep polls, which any number of threads can do on one description at
    /// once.
    pub(crate) fn open(path: &Path, access: Access) -> Result<Self, Error> {
        let mode = match access {
            Access::Read => OFlags::RDONLY,
            Access::ReadWrite => OFlags::RDWR,
        };
        let flags = mode | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let fd = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(fd) => fd,
            // A driver whose device has gone, or a link that leads nowhere, is as good as nothing.
            Err(Errno::NOENT | Errno::NXIO | Errno::NOTDIR) => {
                return Err(Error::absent(vec![path.to_owned()]));
            }
            Err(Errno::NODEV) if is_device(path) => {
                return Err(Error::absent(vec![path.to_owned()]));
            }
            Err(Errno::ACCESS | Errno::PERM | Errno::ROFS) => {
                return Err(Error::NoPermission {
                    path: path.to_owned(),
                    access,
                });
            }
            Err(Errno::ISDIR) => {
                return Err(Error::NotANode {
                    path: path.to_owned(),
                });
            }
            Err(errno) => return Err(Error::call("open", path, errno)),
        };
        let node = Self {
            fd,
            path: path.to_owned(),
            access,
            page: OnceLock::new(),
        };
        // A new watcher of /dev/vmgenid that can write is tracked, one of /dev/sysgenid is not; and the answer tells a node from
        // another file.
        match ioctl::set_tracking(&node, access == Access::ReadWrite) {
            Ok(()) => Ok(node),
            Err(Errno::NOTTY | Errno::INVAL | Errno::OPNOTSUPP) => {
                Err(Error::NotANode { path: node.path })
            }
            Err(errno) => Err(node.failed("use", errno)),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn access(&self) -> Access {
        self.access
    }

    /// Maps the live generation.
    pub(crate) fn map(&self) -> Result<Mapping, Error> {
        Mapping::of(&self.fd).map_err(|errno| self.failed("map", errno))
    }

    /// The live generation.
    pub(crate) fn generation(&self) -> Result<Generation, Error> {
        // A page whose server has gone shows the last one for ever.
        self.outdated_watchers()?;
        let page = match self.page.get() {
            Some(page) => page,
            None => {
                let page = self.map()?;
                self.page.get_or_init(|| page)
            }
        };
        Ok(PageWord::from_word(page.load(0)).generation)
    }

    /// The current generation if the watcher is outdated, nothing if it is current.
    pub(crate) fn read(&self) -> Result<Option<Generation>, Error> {
        let mut bytes = [0; abi::GENERATION_SIZE];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut bytes)) {
            Ok(abi::GENERATION_SIZE) => Ok(Some(Generation::from_ne_bytes(bytes))),
            Ok(_) => Err(self.failed("read a whole generation from", Errno::IO)),
            Err(Errno::AGAIN) => Ok(None),
            Err(errno) => Err(self.failed("read", errno)),
        }
    }

    /// Acknowledges a generation. False if it is not the current one.
    pub(crate) fn write(&self, generation: Generation) -> Result<bool, Error> {
        let bytes = generation.to_ne_bytes();
        let written = rustix::io::retry_on_intr(|| {
            // By `write` the position would move on, until it meets the limit of file sizes (`RLIMIT_FSIZE`).
            match rustix::io::pwrite(&self.fd, &bytes, 0) {
                // Some nodes have no position.
                Err(Errno::SPIPE) => rustix::io::write(&self.fd, &bytes),
                written => written,
            }
        });
        match written {
            Ok(_) => Ok(true),
            Err(Errno::INVAL) => Ok(false),
            Err(errno) => Err(self.failed("acknowledge to", errno)),
        }
    }

    pub(crate) fn outdated_watchers(&self) -> Result<u32, Error> {
        ioctl::outdated_watchers(self).map_err(|errno| self.failed("count the watchers of", errno))
    }

    pub(crate) fn trigger(&self, minimum: Generation) -> Result<(), Error> {
        match ioctl::trigger(self, minimum.get()) {
            Err(Errno::ACCESS | Errno::PERM) => Err(Error::NotCapable {
                path: self.path.clone(),
            }),
            result => result.map_err(|errno| self.failed("change the generation of", errno)),
        }
    }

    /// One wait for all tracked watchers; for ever without a time-out.
    pub(crate) fn wait_watchers(&self, timeout: Option<Duration>) -> Result<Waited, Error> {
        match ioctl::wait_watchers(self, milliseconds(timeout)) {
            Ok(()) => Ok(Waited::Everybody),
            Err(Errno::TIME) => Ok(Waited::TimedOut),
            Err(Errno::INTR) => Ok(Waited::Interrupted),
            Err(errno) => Err(self.failed("wait for the watchers of", errno)),
        }
    }

    pub(crate) fn failed(&self, action: &'static str, errno: Errno) -> Error {
        Error::call(action, &self.path, errno)
    }
}

impl AsFd for Node {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// How one wait for all tracked watchers ended.
pub(crate) enum Waited {
    /// None is outdated.
    Everybody,
    /// Some still are.
    TimedOut,
    /// By a signal, or because the waiting watcher is outdated itself.
    Interrupted,
}

/// The argument of the wait: 0 is for ever, so that no time at all is one millisecond.
fn milliseconds(timeout: Option<Duration>) -> usize {
    let Some(timeout) = timeout else { return 0 };
    let rounded_up = timeout.as_nanos().div_ceil(1_000_000).max(1);
    usize::try_from(rounded_up).unwrap_or(usize::MAX)
}

fn is_device(path: &Path) -> bool {
    rustix::fs::stat(path)
        .is_ok_and(|file| FileType::from_raw_mode(file.st_mode) == FileType::CharacterDevice)
}

/// The path that the environment names, for whoever may listen to it.
pub(crate) fn path_of_environment() -> Option<PathBuf> {
    if is_secure_execution() {
        return None;
    }
    let path = std::env::var_os(PATH_VARIABLE)?;
    (!path.is_empty()).then(|| path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_out_is_never_for_ever_and_never_too_short() {
        assert_eq!(milliseconds(None), 0);
        assert_eq!(milliseconds(Some(Duration::ZERO)), 1);
        assert_eq!(milliseconds(Some(Duration::from_micros(1500))), 2);
        assert_eq!(milliseconds(Some(Duration::MAX)), usize::MAX);
    }

    #[test]
    fn what_is_no_node_is_told_from_what_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        assert!(Node::open(&path, Access::Read).unwrap_err().is_absent());
        std::fs::write(&path, [0; 4096]).unwrap();
        for path in [path.as_path(), folder.path(), Path::new("/dev/null")] {
            let error = Node::open(path, Access::Read).unwrap_err();
            assert!(matches!(error, Error::NotANode { .. }), "{error}");
        }
    }
}
