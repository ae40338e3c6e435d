// SPDX-License-Identifier: MIT OR Apache-2.0

//! The ioctls of a node, each as a typed call.
//!
//! The numbers are those of `<linux/sysgenid.h>` and `<linux/vmgenid.h>`, by way of [`sysgenid_core::abi`], which
//! a test compares with the headers.

use std::os::fd::AsFd;

use rustix::io;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};
use sysgenid_core::abi;

/// Returns the number of tracked, outdated watchers.
///
/// # References
///
/// `VMGENID_GET_OUTDATED_WATCHERS` in `docs/sysgenid.rst`.
pub(crate) fn outdated_watchers(node: impl AsFd) -> io::Result<u32> {
    let count = call::<{ abi::VMGENID_GET_OUTDATED_WATCHERS }>(node, 0)?;
    Ok(count.unsigned_abs())
}

/// Waits until no tracked watcher is outdated, for so many milliseconds; 0 is for ever.
///
/// # References
///
/// `SYSGENID_WAIT_WATCHERS` in `docs/sysgenid.rst`.
pub(crate) fn wait_watchers(node: impl AsFd, milliseconds: usize) -> io::Result<()> {
    call::<{ abi::SYSGENID_WAIT_WATCHERS }>(node, milliseconds).map(drop)
}

/// Has the watcher count, or not, when others wait for everybody.
///
/// # References
///
/// `SYSGENID_SET_WATCHER_TRACKING` in `docs/sysgenid.rst`.
pub(crate) fn set_tracking(node: impl AsFd, tracked: bool) -> io::Result<()> {
    call::<{ abi::SYSGENID_SET_WATCHER_TRACKING }>(node, usize::from(tracked)).map(drop)
}

/// Bumps the generation to at least `minimum`.
///
/// # References
///
/// `SYSGENID_TRIGGER_GEN_UPDATE` in `docs/sysgenid.rst`.
pub(crate) fn trigger(node: impl AsFd, minimum: u32) -> io::Result<()> {
    // A `u32` is at most as wide as an `unsigned long` wherever Linux runs.
    let minimum = minimum as usize;
    call::<{ abi::SYSGENID_TRIGGER_GEN_UPDATE }>(node, minimum).map(drop)
}

fn call<const REQUEST: u32>(node: impl AsFd, argument: usize) -> io::Result<i32> {
    // SAFETY: None of the requests above takes a pointer, so the kernel accesses no memory of ours. A
    // file that is no node answers them with an error.
    unsafe { rustix::ioctl::ioctl(node, ByValue::<REQUEST> { argument }) }
}

/// A request whose argument and result are numbers.
struct ByValue<const REQUEST: u32> {
    argument: usize,
}

// SAFETY: The opcode and the argument are handed over as they are, and no output is read from memory.
unsafe impl<const REQUEST: u32> Ioctl for ByValue<REQUEST> {
    type Output = i32;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        REQUEST as Opcode
    }

    fn as_ptr(&mut self) -> *mut core::ffi::c_void {
        core::ptr::without_provenance_mut(self.argument)
    }

    unsafe fn output_from_ptr(
        output: IoctlOutput,
        _: *mut core::ffi::c_void,
    ) -> io::Result<Self::Output> {
        Ok(output)
    }
}
