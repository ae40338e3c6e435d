// SPDX-License-Identifier: MIT OR Apache-2.0

//! A page that somebody else writes, mapped into this process; and a place in memory that can show one after the other.

use std::os::fd::AsFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use rustix::io;
use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags};

/// One page of memory, for reading.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
}

// SAFETY: The memory belongs to the process, not to a thread, and it is only ever read, atomically.
unsafe impl Send for Mapping {}
// SAFETY: As above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first page of a file, and has it stay in memory as far as that can be: a page of FUSE whose server has
    /// ended could not be fetched again, and whoever looked would be killed by `SIGBUS`.
    ///
    /// Limits: without passthrough the kernel takes the page away from everybody who has it mapped when another program
    /// maps it, and they fetch it again at the next look.
    ///
    /// # Errors
    ///
    /// What `mmap` returns; `EFAULT` if there is no page to be had.
    pub(crate) fn of(fd: impl AsFd) -> io::Result<Self> {
        // SAFETY: A mapping at an address of the kernel's choice replaces nothing.
        let start = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                page_size(),
                ProtFlags::READ,
                MapFlags::SHARED,
                fd,
                0,
            )
        }?;
        let mapping = Self::at(start.cast())?;
        mapping.keep()?;

        Ok(mapping)
    }

    /// A page of zeroes.
    fn of_zeroes() -> io::Result<Self> {
        // SAFETY: As above.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                ptr::null_mut(),
                page_size(),
                ProtFlags::READ,
                MapFlags::PRIVATE,
            )
        }?;
        Self::at(start.cast())
    }

    fn at(start: *mut u8) -> io::Result<Self> {
        let start = NonNull::new(start).ok_or(io::Errno::FAULT)?;
        Ok(Self { start })
    }

    /// Has the page fetched now, and stay. What a driver maps itself needs neither, and some systems know neither.
    fn keep(&self) -> io::Result<()> {
        let start = self.start.as_ptr().cast();
        // SAFETY: The page is mapped; this changes nothing that is in it.
        let fetched = unsafe { rustix::mm::madvise(start, page_size(), Advice::LinuxPopulateRead) };
        match fetched {
            Ok(()) | Err(io::Errno::INVAL) => {}
            Err(errno) => return Err(errno),
        }
        // SAFETY: As above. A process may not be allowed to; then the page stays for as long as memory is not short.
        let _ = unsafe { rustix::mm::mlock(start, page_size()) };
        Ok(())
    }

    /// The word at `offset`.
    ///
    /// # Panics
    ///
    /// If it is not inside of the page, or not aligned.
    fn word(&self, offset: usize) -> NonNull<AtomicU64> {
        assert!(offset % size_of::<AtomicU64>() == 0 && offset < page_size());
        // SAFETY: The word is inside of the mapping.
        unsafe { self.start.byte_add(offset) }.cast()
    }

    /// What the word at `offset` is now.
    ///
    /// # Panics
    ///
    /// If it is not inside of the page, or not aligned.
    pub(crate) fn load(&self, offset: usize) -> u64 {
        // SAFETY: The word is aligned and mapped. The other side writes it as a whole.
        let number = unsafe { self.word(offset).as_ref() }.load(Ordering::Relaxed);
        // Not a load that acquires, which a machine may not be able to do of memory that is for reading only.
        fence(Ordering::Acquire);
        number
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: Whoever looks at the page keeps this value, so nobody does any more.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), page_size()) };
        debug_assert!(unmapped.is_ok(), "a whole mapping can always be unmapped");
    }
}

/// A place in memory that shows zeroes at first, and then one page after the other. Whoever looks at it while a page is
/// replaced sees the old one or the new one.
#[derive(Debug)]
pub(crate) struct Place(Mapping);

impl Place {
    /// A place that shows zeroes.
    pub(crate) fn new() -> io::Result<Self> {
        Mapping::of_zeroes().map(Self)
    }

    /// Shows another page.
    pub(crate) fn show(&self, page: Mapping) -> io::Result<()> {
        // SAFETY: `page` is a whole mapping that nobody else looks at. What was at the place is only ever read, by atomic
        // loads, for which one page is as good as another; the kernel lets nobody look between the two.
        let moved = unsafe {
            rustix::mm::mremap_fixed(
                page.start.as_ptr().cast(),
                page_size(),
                page_size(),
                MremapFlags::MAYMOVE,
                self.0.start.as_ptr().cast(),
            )
        };
        if let Err(errno) = moved {
            self.fill_hole();
            return Err(errno);
        }
        // It has moved.
        std::mem::forget(page);
        Ok(())
    }

    /// Where a page could not be shown, what was there may be gone: shows zeroes then. Without memory for that the program
    /// ends, for others are about to look.
    fn fill_hole(&self) {
        // SAFETY: Nothing is replaced: what is still there stays.
        let filled = unsafe {
            rustix::mm::mmap_anonymous(
                self.0.start.as_ptr().cast(),
                page_size(),
                ProtFlags::READ,
                MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE,
            )
        };
        match filled {
            Ok(_) | Err(io::Errno::EXIST) => {}
            Err(_) => std::process::abort(),
        }
    }

    /// Has what is shown stay in memory; shows zeroes instead if it is not to be had any more.
    pub(crate) fn keep(&self) -> io::Result<()> {
        match self.0.keep() {
            Ok(()) => Ok(()),
            Err(_) => self.show(Mapping::of_zeroes()?),
        }
    }

    /// The word at `offset`, which stays where it is.
    pub(super) fn word(&self, offset: usize) -> NonNull<AtomicU64> {
        self.0.word(offset)
    }
}

/// How much is mapped. The drivers take exactly one page.
pub(super) fn page_size() -> usize {
    rustix::param::page_size()
}
