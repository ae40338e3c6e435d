// SPDX-License-Identifier: MIT OR Apache-2.0

//! Those who use a node: a watcher, and a mapping of the page.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::{self, Errno};
use rustix::ioctl::{self, Ioctl, IoctlOutput, Opcode};
use rustix::mm::{MapFlags, ProtFlags};
use sysgenid_core::PageWord;
use sysgenid_core::abi;

/// One open file description of a node.
#[derive(Debug)]
pub(crate) struct Watcher {
    fd: OwnedFd,
}

impl Watcher {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Self::open_with(path, OFlags::RDWR)
    }

    pub(crate) fn open_with(path: &Path, flags: OFlags) -> io::Result<Self> {
        let fd = rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { fd })
    }

    /// The generation, once there is one to acknowledge.
    pub(crate) fn read(&self) -> io::Result<u32> {
        let mut bytes = [0; abi::GENERATION_SIZE];
        match io::read(&self.fd, &mut bytes)? {
            abi::GENERATION_SIZE => Ok(u32::from_ne_bytes(bytes)),
            _ => Err(Errno::IO),
        }
    }

    pub(crate) fn acknowledge(&self, generation: u32) -> io::Result<()> {
        io::write(&self.fd, &generation.to_ne_bytes()).map(drop)
    }

    pub(crate) fn is_readable(&self) -> io::Result<bool> {
        let mut poll = [PollFd::new(&self.fd, PollFlags::IN)];
        rustix::event::poll(&mut poll, Some(&Timespec::default()))?;
        Ok(poll[0].revents().contains(PollFlags::IN))
    }

    pub(crate) fn track(&self, on: bool) -> io::Result<()> {
        self.ioctl(abi::SYSGENID_SET_WATCHER_TRACKING, usize::from(on))
            .map(drop)
    }

    /// The number of tracked, outdated watchers.
    pub(crate) fn outdated(&self) -> io::Result<i32> {
        self.ioctl(abi::VMGENID_GET_OUTDATED_WATCHERS, 0)
    }

    /// Waits until there is none of those; 0 milliseconds are for ever.
    pub(crate) fn wait(&self, milliseconds: usize) -> io::Result<()> {
        self.ioctl(abi::SYSGENID_WAIT_WATCHERS, milliseconds)
            .map(drop)
    }

    pub(crate) fn trigger(&self, minimum: usize) -> io::Result<()> {
        self.ioctl(abi::SYSGENID_TRIGGER_GEN_UPDATE, minimum)
            .map(drop)
    }

    fn ioctl(&self, number: u32, argument: usize) -> io::Result<i32> {
        // SAFETY: `ByValue` describes the ioctls of a node, and another file would answer ENOTTY.
        unsafe { ioctl::ioctl(&self.fd, ByValue { number, argument }) }
    }

    pub(crate) fn map(&self) -> io::Result<Page> {
        self.map_bytes(Page::SIZE)
    }

    fn map_bytes(&self, length: usize) -> io::Result<Page> {
        // SAFETY: the kernel chooses a free place for a new mapping, so it disturbs nothing.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ,
                MapFlags::SHARED,
                &self.fd,
                0,
            )?
        };
        Ok(Page(NonNull::new(start.cast()).ok_or(Errno::INVAL)?))
    }
}

impl AsFd for Watcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// An ioctl with a number as its argument.
struct ByValue {
    number: u32,
    argument: usize,
}

// SAFETY: all ioctls of a node take a number, touch no memory, and return a number.
unsafe impl Ioctl for ByValue {
    type Output = i32;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        self.number
    }

    fn as_ptr(&mut self) -> *mut core::ffi::c_void {
        std::ptr::without_provenance_mut(self.argument)
    }

    unsafe fn output_from_ptr(number: IoctlOutput, _: *mut core::ffi::c_void) -> io::Result<i32> {
        Ok(number)
    }
}

/// A mapping of the page.
///
/// # Invariants
///
/// It is the start of a readable mapping of `SIZE` bytes that nobody else unmaps.
#[derive(Debug)]
pub(crate) struct Page(NonNull<AtomicU32>);

// SAFETY: the mapping belongs to the process, not to a thread, and is only seen through an atomic.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

impl Page {
    const SIZE: usize = 4096;

    /// What AWS-LC does: opens for reading, maps four bytes, and closes. It loads once a use then.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Watcher::open_with(path, OFlags::RDONLY)?.map_bytes(abi::GENERATION_SIZE)
    }

    pub(crate) fn generation(&self) -> u32 {
        // SAFETY: by the invariant it is mapped and aligned; the daemon writes it by atomic stores.
        unsafe { self.0.as_ref() }.load(Ordering::Acquire)
    }

    /// All that it says, at once.
    pub(crate) fn word(&self) -> PageWord {
        // SAFETY: as above; a page is aligned for any word.
        let word = unsafe { self.0.cast::<AtomicU64>().as_ref() };
        PageWord::from_word(word.load(Ordering::Acquire))
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: by the invariant this is the whole mapping, and no reference into it is left.
        let _ = unsafe { rustix::mm::munmap(self.0.as_ptr().cast(), Self::SIZE) };
    }
}
