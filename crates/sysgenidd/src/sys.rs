// SPDX-License-Identifier: MIT OR Apache-2.0

//! The system calls of the backends and the capability check that need `unsafe`, each behind a safe
//! function.

use std::ffi::{c_int, c_void};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::{ptr, slice};

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::ioctl::{Getter, Ioctl, IoctlOutput, Opcode, opcode};
use rustix::mm::{MapFlags, ProtFlags};

/// The group of the ioctls of a namespace's file (`include/uapi/linux/nsfs.h`).
const NSFS: u8 = 0xb7;
const NS_GET_PARENT: Opcode = opcode::none(NSFS, 2);
const NS_GET_NSTYPE: Opcode = opcode::none(NSFS, 3);
const NS_GET_OWNER_UID: Opcode = opcode::none(NSFS, 4);

/// The type of a user namespace, as [`namespace_type`] returns it (`CLONE_NEWUSER`).
pub(crate) const USER_NAMESPACE: c_int = 0x1000_0000;

/// What an ioctl without an argument returns.
struct Returned<const OPCODE: Opcode>;

// SAFETY: this is used with opcodes only that take no argument and return a number; the kernel then looks
// at no memory of this process.
unsafe impl<const OPCODE: Opcode> Ioctl for Returned<OPCODE> {
    type Output = c_int;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        OPCODE
    }

    fn as_ptr(&mut self) -> *mut c_void {
        ptr::null_mut()
    }

    unsafe fn output_from_ptr(
        output: IoctlOutput,
        _argument: *mut c_void,
    ) -> rustix::io::Result<Self::Output> {
        Ok(output)
    }
}

/// The type of a namespace. The descriptor must be a namespace's file (on `nsfs`); another file's driver
/// may understand the number differently.
pub(crate) fn namespace_type(namespace: impl AsFd) -> Result<c_int, Errno> {
    // SAFETY: the request takes no argument.
    unsafe { rustix::ioctl::ioctl(namespace, Returned::<NS_GET_NSTYPE>) }
}

/// The parent of a user namespace. `EPERM` for one whose parent is not below this process's own, and for
/// the initial one.
pub(crate) fn parent_of_user_namespace(namespace: impl AsFd) -> Result<OwnedFd, Errno> {
    // SAFETY: the request takes no argument.
    let parent = unsafe { rustix::ioctl::ioctl(namespace, Returned::<NS_GET_PARENT>)? };
    // SAFETY: what the request returns is a descriptor made for the caller, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(parent) })
}

/// The user who owns a user namespace, as this process sees users.
pub(crate) fn owner_of_user_namespace(namespace: impl AsFd) -> Result<u32, Errno> {
    // SAFETY: the request writes a `uid_t`, which is 32 bits on every Linux.
    unsafe { rustix::ioctl::ioctl(namespace, Getter::<NS_GET_OWNER_UID, u32>::new()) }
}

/// The first four bytes that a program would see that maps `file`.
///
/// The kernel copies them. So a file whose page cannot be had (its server died) is `EFAULT`, where a load
/// would be a SIGBUS.
pub(crate) fn mapped_word(file: impl AsFd) -> Result<u32, Errno> {
    const LENGTH: usize = size_of::<u32>();
    // SAFETY: the address is the kernel's to choose, so that no other memory is replaced.
    let start = unsafe {
        rustix::mm::mmap(
            ptr::null_mut(),
            LENGTH,
            ProtFlags::READ,
            MapFlags::SHARED,
            file,
            0,
        )?
    };
    let copied = copy_of(start);
    // SAFETY: the mapping was made above, and nothing refers to it any more.
    let unmapped = unsafe { rustix::mm::munmap(start, LENGTH) };
    debug_assert!(unmapped.is_ok());
    copied.map(u32::from_ne_bytes)
}

/// Four bytes from `start`, the start of a live mapping, by way of a file.
fn copy_of(start: *const c_void) -> Result<[u8; 4], Errno> {
    let file = rustix::fs::memfd_create(c"mapped-word", MemfdFlags::CLOEXEC)?;
    let mut copy = [0; 4];
    // SAFETY: the mapping has a page from `start` on and lives until this returns. The slice is handed to
    // the kernel only: nothing here looks at the bytes, which may change or be missing.
    let mapped = unsafe { slice::from_raw_parts(start.cast::<u8>(), copy.len()) };
    if rustix::io::pwrite(&file, mapped, 0)? != copy.len()
        || rustix::io::pread(&file, &mut copy, 0)? != copy.len()
    {
        return Err(Errno::IO);
    }
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_header() {
        assert_eq!(NS_GET_PARENT, 0xb702);
        assert_eq!(NS_GET_NSTYPE, 0xb703);
        assert_eq!(NS_GET_OWNER_UID, 0xb704);
    }

    #[test]
    fn the_own_user_namespace_is_one_and_others_are_not() {
        let user = File::open("/proc/self/ns/user").expect("the file of a namespace");
        assert_eq!(namespace_type(&user), Ok(USER_NAMESPACE));
        let mount = File::open("/proc/self/ns/mnt").expect("the file of a namespace");
        assert_ne!(namespace_type(&mount), Ok(USER_NAMESPACE));
    }

    #[test]
    fn a_word_is_seen_as_a_mapping_shows_it() {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&0xfeed_f00d_u32.to_ne_bytes())
            .expect("room for a word");
        assert_eq!(mapped_word(&file), Ok(0xfeed_f00d));
    }

    #[test]
    fn a_page_that_is_not_there_is_an_error_and_no_signal() {
        let empty = tempfile::tempfile().expect("a file");
        assert_eq!(mapped_word(&empty), Err(Errno::FAULT));
    }
}
