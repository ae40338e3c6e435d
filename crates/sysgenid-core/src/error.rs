// SPDX-License-Identifier: MIT OR Apache-2.0

//! Why a call on a node fails.

use core::fmt;

/// Why a call on a node fails. Each variant is one errno of the contract; a front end maps them by
/// name, because their numbers differ between architectures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Error {
    /// `EINVAL`: a wrong size, a value that is not the current generation, a mapping of anything but
    /// the first page, or a minimum beyond `u32`.
    Invalid,
    /// `EAGAIN`: nothing to read, and the caller does not want to block.
    WouldBlock,
    /// `EINTR`, or a restart where the signal handler asks for one: a signal came while reading.
    Restart,
    /// `EINTR`: a signal came while waiting, or the caller itself is outdated.
    Interrupted,
    /// `ETIME`: the time-out of a wait ran out first.
    TimedOut,
    /// `EBADF`: the description is not open for writing, so it could never acknowledge.
    NotWritable,
    /// `EACCES`: the caller may not bump the generation.
    NotCapable,
    /// `EPERM`: the page can only be mapped for reading.
    NotPermitted,
    /// `ENOTTY`: a node has no such ioctl.
    UnknownIoctl,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Error::Invalid => "the size or value is not valid for this node",
            Error::WouldBlock => "the watcher is current, and the call must not block",
            Error::Restart => "a signal ended the read",
            Error::Interrupted => {
                "a signal, or a generation change that the caller has not acknowledged"
            }
            Error::TimedOut => "the time-out passed before every tracked watcher acknowledged",
            Error::NotWritable => "a watcher that cannot write cannot be tracked",
            Error::NotCapable => "bumping needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN",
            Error::NotPermitted => "the page can only be mapped for reading",
            Error::UnknownIoctl => "the node has no such ioctl",
        })
    }
}

impl core::error::Error for Error {}
