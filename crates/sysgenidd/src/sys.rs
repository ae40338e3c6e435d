// SPDX-License-Identifier: MIT OR Apache-2.0

//! The system calls of the backends, of the capability check and of the keeping that need `unsafe`, each
//! behind a safe function.

use std::ffi::{c_int, c_void};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::{ptr, slice};

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::ioctl::{Getter, Ioctl, IoctlOutput, NoArg, Opcode, opcode};
use rustix::mm::{MapFlags, ProtFlags};

/// The group of the ioctls of a namespace's file (`include/uapi/linux/nsfs.h`).
const NSFS: u8 = 0xb7;
const NS_GET_PARENT: Opcode = opcode::none(NSFS, 2);
const NS_GET_NSTYPE: Opcode = opcode::none(NSFS, 3);
const NS_GET_OWNER_UID: Opcode = opcode::none(NSFS, 4);

const RNDRESEEDCRNG: Opcode = opcode::none(b'R', 7);

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

/// Whether no other descriptor of a file is open, and no mapping of it is left, anywhere. The file must
/// belong to this process's user, and be open for writing.
///
/// That is what the kernel examines before it grants a lease. A file system without leases is `EINVAL`.
pub(crate) fn is_open_nowhere_else(file: impl AsFd) -> Result<bool, Errno> {
    // The same number wherever this program runs (`asm-generic/fcntl.h`).
    const F_SETSIG: c_int = 10;
    let control = |command: c_int, argument: c_int| {
        // SAFETY: these commands take a number, and look at no memory of this process.
        let result = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), command, argument) };
        let failed = || std::io::Error::last_os_error().raw_os_error();
        match result {
            0.. => Ok(()),
            _ => Err(Errno::from_raw_os_error(failed().unwrap_or(libc::EIO))),
        }
    };
    // Who opens the file in this very moment breaks the lease, and its holder is told by this signal, which
    // is ignored; the usual one would end it.
    control(F_SETSIG, libc::SIGURG)?;
    match control(libc::F_SETLEASE, c_int::from(libc::F_WRLCK)) {
        Ok(()) => {
            control(libc::F_SETLEASE, c_int::from(libc::F_UNLCK))?;
            Ok(true)
        }
        Err(Errno::AGAIN) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// The first eight bytes of a mapped file, as a program sees them that maps it.
///
/// The kernel copies them. So a file whose page cannot be had (its server died) is `EFAULT`, where a load
/// would be a SIGBUS.
#[derive(Debug)]
pub(crate) struct MappedWord {
    start: *mut c_void,
    /// Where the kernel copies to.
    copy: OwnedFd,
}

impl MappedWord {
    const LENGTH: usize = size_of::<u64>();

    /// Maps `file`, which then stays open for as long as this lives.
    ///
    /// # Errors
    ///
    /// Those of `mmap(2)` and `memfd_create(2)`.
    pub(crate) fn new(file: impl AsFd) -> Result<Self, Errno> {
        let copy = rustix::fs::memfd_create(c"mapped-word", MemfdFlags::CLOEXEC)?;
        // SAFETY: the address is the kernel's to choose, so that no other memory is replaced.
        let start = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                Self::LENGTH,
                ProtFlags::READ,
                MapFlags::SHARED,
                file,
                0,
            )?
        };
        Ok(Self { start, copy })
    }

    /// The bytes as they are now, all of one moment.
    ///
    /// # Errors
    ///
    /// `EFAULT` if there is no page; `EAGAIN` if they change all the time.
    pub(crate) fn load(&self) -> Result<u64, Errno> {
        /// A page changes once a restore.
        const MOST_ATTEMPTS: usize = 100;
        // The kernel's copy is not promised to be of one moment; two equal ones are.
        let mut last = self.copied()?;
        for _ in 0..MOST_ATTEMPTS {
            let next = self.copied()?;
            if next == last {
                return Ok(u64::from_ne_bytes(next));
            }
            last = next;
        }
        Err(Errno::AGAIN)
    }

    fn copied(&self) -> Result<[u8; Self::LENGTH], Errno> {
        let mut copy = [0; Self::LENGTH];
        // SAFETY: the mapping has a page from `start` on and lives as long as `self`. The slice is handed to
        // the kernel only: nothing here looks at the bytes, which may change or be missing.
        let mapped = unsafe { slice::from_raw_parts(self.start.cast::<u8>(), copy.len()) };
        if rustix::io::pwrite(&self.copy, mapped, 0)? != copy.len()
            || rustix::io::pread(&self.copy, &mut copy, 0)? != copy.len()
        {
            return Err(Errno::IO);
        }
        Ok(copy)
    }
}

impl Drop for MappedWord {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, and nothing refers to it any more.
        let unmapped = unsafe { rustix::mm::munmap(self.start, Self::LENGTH) };
        debug_assert!(unmapped.is_ok());
    }
}

/// Makes the kernel's generator over from its pool (`RNDRESEEDCRNG` of `include/uapi/linux/random.h`).
/// `random` is `/dev/random`; another file's driver may understand the number differently.
///
/// # Errors
///
/// `EPERM` without `CAP_SYS_ADMIN`; `ENODATA` if the generator was never ready yet.
pub(crate) fn reseed(random: impl AsFd) -> Result<(), Errno> {
    // SAFETY: the request takes no argument.
    unsafe { rustix::ioctl::ioctl(random, NoArg::<RNDRESEEDCRNG>::new()) }
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
        assert_eq!(RNDRESEEDCRNG, 0x5207);
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
        file.write_all(&0xfeed_f00d_dead_beef_u64.to_ne_bytes())
            .expect("room for a word");
        let word = MappedWord::new(&file).expect("a mapping");
        assert_eq!(word.load(), Ok(0xfeed_f00d_dead_beef));
        rustix::io::pwrite(&file, &7_u64.to_ne_bytes(), 0).expect("room for a word");
        assert_eq!(word.load(), Ok(7));
    }

    #[test]
    fn a_page_that_is_not_there_is_an_error_and_no_signal() {
        let empty = tempfile::tempfile().expect("a file");
        let word = MappedWord::new(&empty).expect("a mapping");
        assert_eq!(word.load(), Err(Errno::FAULT));
    }
}
