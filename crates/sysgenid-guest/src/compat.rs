// SPDX-License-Identifier: MIT OR Apache-2.0

//! System calls as a 32-bit program makes them.

use anyhow::Result;
use rustix::fd::AsFd;

/// An ioctl whose argument is an integer. Returns what the kernel does: a result, or a negated errno.
///
/// `int 0x80` enters the kernel's 32-bit path from a 64-bit program too, so no 32-bit C library is needed.
#[cfg(target_arch = "x86_64")]
pub(crate) fn ioctl(fd: &impl AsFd, request: u32, argument: u32) -> Result<i32> {
    use std::arch::asm;
    use std::os::fd::AsRawFd;

    /// `ioctl` in the 32-bit table, `arch/x86/entry/syscalls/syscall_32.tbl`.
    const IOCTL: u64 = 54;

    let fd = u64::try_from(fd.as_fd().as_raw_fd())?;
    let result: u64;
    // SAFETY: The ioctls that this is for take integers, so the kernel accesses no memory of ours.
    // The compiler keeps a register of its own in rbx, which is put back.
    unsafe {
        asm!(
            "xchg rbx, {fd}",
            "int 0x80",
            "xchg rbx, {fd}",
            fd = inout(reg) fd => _,
            inlateout("rax") IOCTL => result,
            in("rcx") u64::from(request),
            in("rdx") u64::from(argument),
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    // The kernel fills 32 bits; which of the other 32 it fills is its own affair.
    #[allow(clippy::cast_possible_truncation)]
    Ok((result as u32).cast_signed())
}

/// On other processors a 64-bit program cannot enter the kernel's 32-bit path.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn ioctl(_fd: &impl AsFd, _request: u32, _argument: u32) -> Result<i32> {
    anyhow::bail!("a 64-bit program for this processor cannot call the kernel as a 32-bit one does")
}
