// SPDX-License-Identifier: MIT OR Apache-2.0

//! What can go wrong, by what a caller can do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// The oldest kernel on which anything can serve a node: what the daemon `sysgenidd` needs. (The kernel module needs
/// 7.3.)
const OLDEST_KERNEL: (u32, u32) = (6, 9);

/// Why something could not be done with a node. Each variant is a cause that a caller can act on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing serves a node on this machine. Load the kernel module `sysgenid`, start the daemon `sysgenidd`,
    /// or go on without ([`Probe::open_or_never`](crate::Probe::open_or_never)).
    #[error(
        "there is no {}{}: load the kernel module sysgenid or start the daemon sysgenidd (sysgenctl doctor says \
         what this machine lacks)",
        Paths(tried),
        if *by_environment { ", which SYSGENID_PATH names" } else { "" }
    )]
    NoNode {
        /// Where it was looked for.
        tried: Vec<PathBuf>,
        /// Whether the environment variable `SYSGENID_PATH` said so.
        by_environment: bool,
    },

    /// Nothing serves a node, and on this kernel nothing could: the daemon needs Linux 6.9.
    #[error(
        "there is no {}, and Linux {release} is too old to have one: it takes 6.9 or newer",
        Paths(tried)
    )]
    KernelTooOld {
        /// The kernel's release, as `uname -r` prints it.
        release: String,
        /// Where a node was looked for.
        tried: Vec<PathBuf>,
    },

    /// There is a node, which this process may not open in this way.
    #[error(
        "no permission to open {} for {access}{}",
        path.display(),
        access.advice()
    )]
    NoPermission {
        /// The node.
        path: PathBuf,
        /// What it was to be opened for.
        access: Access,
    },

    /// There is something else at the path of the node.
    #[error("{} is not a node of a system generation counter", path.display())]
    NotANode {
        /// The file.
        path: PathBuf,
    },

    /// Whoever served the node has gone. What changed since is not known, so everything must be rebuilt once a
    /// node is there again ([`Watcher::reconnect`](crate::Watcher::reconnect)).
    #[error("the server of {} has gone: is sysgenidd running?", path.display())]
    Gone {
        /// The node.
        path: PathBuf,
    },

    /// Changing the generation needs `CAP_CHECKPOINT_RESTORE` or `CAP_SYS_ADMIN` in the user namespace that owns
    /// the instance; for the machine's own nodes that is the initial one.
    #[error(
        "not allowed to change the generation of {}: it takes CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN in \
         the user namespace that owns the node (for the machine's own: outside of any container)",
        path.display()
    )]
    NotCapable {
        /// The node.
        path: PathBuf,
    },

    /// The system refused something for a reason of its own.
    #[error("cannot {action} {}: {reason}", path.display())]
    Io {
        /// What was to be done.
        action: &'static str,
        /// The node, or the device.
        path: PathBuf,
        /// What the system said. It is part of the text of this error, and so not its
        /// [`source`](std::error::Error::source) as well.
        reason: io::Error,
    },
}

/// What a node is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// To look and to wait. Everybody may, by default, on `/dev/sysgenid`.
    Read,
    /// To acknowledge as well: root, and by the rule that is shipped with the module the group `sysgenid`.
    ReadWrite,
}

impl Access {
    fn advice(self) -> &'static str {
        match self {
            Self::Read => ": ask whoever runs the machine",
            Self::ReadWrite => {
                ": run as root or in the group sysgenid, or watch without being tracked"
            }
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Read => "reading",
            Self::ReadWrite => "reading and writing",
        })
    }
}

impl Error {
    /// Nothing is there: because nobody serves it, or because nobody can.
    pub(crate) fn absent(tried: Vec<PathBuf>) -> Self {
        let release = rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned();
        if is_too_old(&release) {
            Self::KernelTooOld { release, tried }
        } else {
            Self::NoNode {
                tried,
                by_environment: false,
            }
        }
    }

    /// The same, at the path that the environment names.
    pub(crate) fn of_environment(self) -> Self {
        match self {
            Self::NoNode { tried, .. } => Self::NoNode {
                tried,
                by_environment: true,
            },
            error => error,
        }
    }

    /// A call on an open node failed.
    pub(crate) fn call(action: &'static str, path: &Path, errno: Errno) -> Self {
        let path = path.to_owned();
        match errno {
            // FUSE's words for a server that ended: the connection was aborted with the call under way, it
            // has been, or the daemon said good-bye.
            Errno::CONNABORTED | Errno::NOTCONN | Errno::NODEV => Self::Gone { path },
            errno => Self::Io {
                action,
                path,
                reason: errno.into(),
            },
        }
    }

    /// Whether nothing serves a node here, for whatever reason: what a program may choose to go on without.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::NoNode { .. } | Self::KernelTooOld { .. })
    }

    /// Whether whoever served the node has gone.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Gone { .. })
    }
}

fn is_too_old(release: &str) -> bool {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    let mut number = || numbers.next()?.parse::<u32>().ok();
    match (number(), number()) {
        (Some(major), Some(minor)) => (major, minor) < OLDEST_KERNEL,
        // A release that says nothing is not held against it.
        _ => false,
    }
}

struct Paths<'a>(&'a [PathBuf]);

impl fmt::Display for Paths<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, path) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { " or " };
            write!(formatter, "{separator}{}", path.display())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_too_old_before_6_9() {
        for release in [
            "6.8.0-31-generic",
            "5.10.0",
            "4.19.0-27-amd64",
            "6.1.0-49-amd64",
        ] {
            assert!(is_too_old(release), "{release}");
        }
        for release in ["6.9.0", "6.12.107+deb13-amd64", "7.3.4", "10.0", "unknown"] {
            assert!(!is_too_old(release), "{release}");
        }
    }

    #[test]
    fn an_error_says_what_happened_to_what_and_what_to_do() {
        let absent = Error::NoNode {
            tried: vec!["/dev/sysgenid".into(), "/dev/vmgenid".into()],
            by_environment: false,
        };
        let text = absent.to_string();
        assert!(
            text.starts_with("there is no /dev/sysgenid or /dev/vmgenid: load "),
            "{text}"
        );
        let elsewhere = Error::NoNode {
            tried: vec!["/run/node".into()],
            by_environment: true,
        };
        let text = elsewhere.to_string();
        assert!(
            text.starts_with("there is no /run/node, which SYSGENID_PATH names: "),
            "{text}"
        );
        let denied = Error::NoPermission {
            path: "/dev/sysgenid".into(),
            access: Access::ReadWrite,
        };
        assert!(denied.to_string().contains("group sysgenid"), "{denied}");
    }

    #[test]
    fn the_reason_of_the_system_is_said_once() {
        let error = Error::call("read", Path::new("/dev/sysgenid"), Errno::IO);
        let reason = io::Error::from(Errno::IO).to_string();
        assert_eq!(
            error.to_string(),
            format!("cannot read /dev/sysgenid: {reason}")
        );
        assert!(std::error::Error::source(&error).is_none());
    }
}
