// SPDX-License-Identifier: MIT OR Apache-2.0

//! Giving the kernel a file that mappings of a node go to.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::io;
use rustix::ioctl::{self, Ioctl, IoctlOutput, Opcode, opcode};
use zerocopy::{FromZeros, IntoBytes};

use super::wire::BackingMap;

/// The kernel's name for a backing file of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackingId(i32);

impl BackingId {
    /// From what was kept in storage.
    pub const fn new(raw: i32) -> Self {
        Self(raw)
    }

    /// The raw number.
    pub const fn get(self) -> i32 {
        self.0
    }
}

/// `FUSE_DEV_IOC_BACKING_OPEN`: it takes a structure and returns the id.
struct OpenBacking(BackingMap);

// SAFETY: the opcode is that of the header for this very structure, which lives in `self` while the
// kernel reads it; the kernel writes nothing, and returns a number.
unsafe impl Ioctl for OpenBacking {
    type Output = BackingId;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        opcode::write::<BackingMap>(229, 1)
    }

    fn as_ptr(&mut self) -> *mut core::ffi::c_void {
        self.0.as_mut_bytes().as_mut_ptr().cast()
    }

    unsafe fn output_from_ptr(
        id: IoctlOutput,
        _: *mut core::ffi::c_void,
    ) -> io::Result<Self::Output> {
        Ok(BackingId(id))
    }
}

/// Makes `file` one that nodes of the connection `device` may be mapped to.
///
/// # Errors
///
/// `EPERM` without `CAP_SYS_ADMIN`, or if kernel and daemon did not agree on passthrough; `ENOTTY` from a
/// kernel without it.
pub(super) fn open(device: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<BackingId> {
    let mut map = BackingMap::new_zeroed();
    map.fd = file.as_fd().as_raw_fd();
    // SAFETY: `OpenBacking` describes this ioctl, and another file would answer ENOTTY.
    unsafe { ioctl::ioctl(device, OpenBacking(map)) }
}
