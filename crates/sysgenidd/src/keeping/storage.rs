// SPDX-License-Identifier: MIT OR Apache-2.0

//! Memory that outlives the process: a memfd, mapped, and seen as atomic words.
//!
//! Another process (the next daemon, or a program that maps the page) may look at any moment, and this
//! one may be killed at any moment; atomic words are what both can bear.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::fs::MemfdFlags;
use rustix::io::{self, Errno};
use rustix::mm::{MapFlags, MremapFlags, ProtFlags};

const WORD: usize = size_of::<u64>();

/// A mapped memfd.
///
/// # Invariants
///
/// `start` is the start of a shared, readable and writable mapping of `words` words, which is `file` from
/// its beginning on, and which nobody else unmaps. The file is sealed against shrinking, so that every
/// word stays backed.
#[derive(Debug)]
pub struct Storage {
    file: OwnedFd,
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is only seen through atomics.
unsafe impl Send for Storage {}

impl Storage {
    /// New memory, all zero.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `EMFILE`.
    pub fn create(name: &CStr, words: usize) -> io::Result<Self> {
        let file = rustix::fs::memfd_create(
            name,
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::NOEXEC_SEAL,
        )?;
        rustix::fs::ftruncate(&file, size(words)?)?;
        rustix::fs::fcntl_add_seals(&file, rustix::fs::SealFlags::SHRINK)?;
        Self::map(file, words)
    }

    /// The memory that a process before this one created.
    ///
    /// # Errors
    ///
    /// `EINVAL` if it could shrink below the mapping, as nothing from [`create`](Self::create) can.
    pub fn resume(file: OwnedFd) -> io::Result<Self> {
        if !rustix::fs::fcntl_get_seals(&file)?.contains(rustix::fs::SealFlags::SHRINK) {
            return Err(Errno::INVAL);
        }
        let bytes = rustix::fs::fstat(&file)?.st_size;
        let words = usize::try_from(bytes).map_err(|_| Errno::INVAL)? / WORD;
        Self::map(file, words)
    }

    fn map(file: OwnedFd, words: usize) -> io::Result<Self> {
        // SAFETY: the kernel chooses a free place for a new mapping, so it disturbs nothing.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                words * WORD,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &file,
                0,
            )?
        };
        let start = NonNull::new(start.cast()).ok_or(Errno::INVAL)?;
        // INVARIANT: mapped just now, and the callers have seen to the size and the seal.
        Ok(Self { file, start, words })
    }

    /// Makes room for at least `words` words; the new ones are zero.
    ///
    /// # Errors
    ///
    /// `ENOMEM`; then nothing has changed.
    pub fn grow(&mut self, words: usize) -> io::Result<()> {
        if words <= self.words {
            return Ok(());
        }
        rustix::fs::ftruncate(&self.file, size(words)?)?;
        // SAFETY: by the invariant this is the whole mapping, and `&mut self` says that nobody holds a
        // reference into it.
        let start = unsafe {
            rustix::mm::mremap(
                self.start.as_ptr().cast(),
                self.words * WORD,
                words * WORD,
                MremapFlags::MAYMOVE,
            )?
        };
        self.start = NonNull::new(start.cast()).ok_or(Errno::INVAL)?;
        self.words = words;
        Ok(())
    }

    /// The words.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: by the invariant they are mapped for as long as `self` is borrowed; a page is aligned
        // for words, any bits are a valid word, and all who share them use atomics.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }

    /// The first 4 bytes, which are where the page of a node has its generation.
    pub fn first_u32(&self) -> &AtomicU32 {
        // SAFETY: as `words`; a mapping is at least one page.
        unsafe { self.start.cast().as_ref() }
    }
}

impl AsFd for Storage {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        // SAFETY: by the invariant this is the whole mapping, and no reference into it outlives `self`.
        // It cannot fail for such a mapping.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.words * WORD) };
    }
}

fn size(words: usize) -> io::Result<u64> {
    u64::try_from(words * WORD).map_err(|_| Errno::NOMEM)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn what_was_stored_is_there_for_the_successor_also_after_growing() {
        let mut storage = Storage::create(c"test", 512).unwrap();
        storage.words()[511].store(7, Ordering::Release);
        storage.grow(4096).unwrap();
        storage.words()[4095].store(8, Ordering::Release);
        let file = storage.as_fd().try_clone_to_owned().unwrap();
        drop(storage);
        let successor = Storage::resume(file).unwrap();
        assert_eq!(successor.words().len(), 4096);
        assert_eq!(successor.words()[511].load(Ordering::Acquire), 7);
        assert_eq!(successor.words()[4095].load(Ordering::Acquire), 8);
        assert_eq!(successor.words()[512].load(Ordering::Acquire), 0);
    }

    #[test]
    fn a_file_that_could_shrink_under_the_mapping_is_refused() {
        let file = rustix::fs::memfd_create(c"test", MemfdFlags::CLOEXEC).unwrap();
        assert_eq!(Storage::resume(file).unwrap_err(), Errno::INVAL);
    }
}
