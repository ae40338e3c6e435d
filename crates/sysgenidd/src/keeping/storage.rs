// SPDX-License-Identifier: MIT OR Apache-2.0

//! Memory that outlives the process: a file, mapped, and seen as atomic words.
//!
//! Another process (the next daemon, or a program that maps the page) may look at any moment, and this
//! one may be killed at any moment; atomic words are what both can bear.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::AtomicU64;

use rustix::fs::FallocateFlags;
use rustix::io::{self, Errno};
use rustix::mm::{MapFlags, MremapFlags, ProtFlags};
use zerocopy::{FromBytes, IntoBytes};

const WORD: usize = size_of::<u64>();

/// A mapped file.
///
/// # Invariants
///
/// `start` is the start of a shared, readable and writable mapping of `words` words, which is `file` from
/// its beginning on, and which nobody else unmaps. Every word has memory of its own already, and nobody
/// shrinks the file: it is one of [`Folder`](super::folder::Folder), where nobody but root gets at it.
#[derive(Debug)]
pub struct Storage {
    file: OwnedFd,
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is only seen through atomics.
unsafe impl Send for Storage {}

impl Storage {
    /// The memory that is this file, which is made to have at least so many words. What it had not had
    /// before is zero.
    ///
    /// The file must be one that nobody shrinks: whoever loads what is not there any more dies of it.
    ///
    /// # Errors
    ///
    /// `ENOSPC` and `ENOMEM` if there is no room.
    pub(super) fn of_file(file: OwnedFd, words: usize) -> io::Result<Self> {
        let present = u64::try_from(rustix::fs::fstat(&file)?.st_size).map_err(|_| Errno::INVAL)?;
        let bytes = present.max(size(words)?);
        allocate(&file, bytes)?;
        let words = usize::try_from(bytes).map_err(|_| Errno::NOMEM)? / WORD;
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
    /// `ENOMEM`, `ENOSPC`; then no word has changed.
    pub fn grow(&mut self, words: usize) -> io::Result<()> {
        if words <= self.words {
            return Ok(());
        }
        allocate(&self.file, size(words)?)?;
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

    /// The same as a structure at the start, and as many others behind it as there are; nothing if there is
    /// no room for the first.
    pub(super) fn parts<Head: AtomicWords, Rest: AtomicWords>(&self) -> Option<(&Head, &[Rest])> {
        const {
            assert!(align_of::<Head>() == align_of::<AtomicU64>());
            assert!(align_of::<Rest>() == align_of::<AtomicU64>());
            assert!(size_of::<Rest>() > 0);
        }
        let (head, rest) = self.words().split_at_checked(size_of::<Head>() / WORD)?;
        let count = size_of_val(rest) / size_of::<Rest>();
        // SAFETY: both are as long as what is made of them, by the division above, and aligned as that, by
        // the assertions. By the trait they are nothing but atomic words, for which any bits are valid, and
        // all are borrowed from `self` for as long as the result is.
        Some(unsafe {
            (
                &*head.as_ptr().cast::<Head>(),
                slice::from_raw_parts(rest.as_ptr().cast::<Rest>(), count),
            )
        })
    }
}

/// A structure that memory can be seen as which others look at and store into at any moment.
///
/// # Safety
///
/// It is `repr(C)` and consists of nothing but `AtomicU64`.
pub(super) unsafe trait AtomicWords: FromBytes + IntoBytes {}

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

/// Makes a file at least `bytes` long and without holes: a store into one would be a SIGBUS where no memory
/// is left for it.
pub(super) fn allocate(file: impl AsFd, bytes: u64) -> io::Result<()> {
    let allocated = io::retry_on_intr(|| {
        rustix::fs::fallocate(file.as_fd(), FallocateFlags::empty(), 0, bytes)
    });
    if allocated != Err(Errno::OPNOTSUPP) {
        return allocated;
    }
    // Some file systems can only be written to.
    let mut end = u64::try_from(rustix::fs::fstat(&file)?.st_size).map_err(|_| Errno::INVAL)?;
    let zeros = [0; 4096];
    while end < bytes {
        let part = usize::try_from(bytes - end).map_or(zeros.len(), |left| left.min(zeros.len()));
        let written = io::retry_on_intr(|| io::pwrite(file.as_fd(), &zeros[..part], end))?;
        if written == 0 {
            return Err(Errno::NOSPC);
        }
        end += u64::try_from(written).map_err(|_| Errno::IO)?;
    }
    Ok(())
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
        let file = OwnedFd::from(tempfile::tempfile().unwrap());
        let mut storage = Storage::of_file(file, 512).unwrap();
        storage.words()[511].store(7, Ordering::Release);
        storage.grow(4096).unwrap();
        storage.words()[4095].store(8, Ordering::Release);
        let file = storage.as_fd().try_clone_to_owned().unwrap();
        drop(storage);
        let successor = Storage::of_file(file, 1).unwrap();
        assert_eq!(successor.words().len(), 4096);
        assert_eq!(successor.words()[511].load(Ordering::Acquire), 7);
        assert_eq!(successor.words()[4095].load(Ordering::Acquire), 8);
        assert_eq!(successor.words()[512].load(Ordering::Acquire), 0);
    }

    #[derive(FromBytes, IntoBytes)]
    #[repr(C)]
    struct Three([AtomicU64; 3]);

    // SAFETY: it is.
    unsafe impl AtomicWords for Three {}

    #[test]
    fn memory_is_seen_as_structures_as_far_as_they_are_whole() {
        let parts = |words: usize| {
            let storage = Storage::of_file(tempfile::tempfile().unwrap().into(), words).unwrap();
            let parts = storage.parts::<Three, Three>();
            parts.map(|(head, rest)| {
                rest.iter()
                    .for_each(|three| three.0[2].store(1, Ordering::Release));
                head.0[0].store(1, Ordering::Release);
                assert_eq!(storage.words()[0].load(Ordering::Acquire), 1);
                rest.len()
            })
        };
        assert_eq!(parts(2), None);
        assert_eq!(parts(3), Some(0));
        assert_eq!(parts(5), Some(0));
        assert_eq!(parts(9), Some(2));
    }

    #[test]
    fn no_word_lies_in_a_hole() {
        let holes = |file: BorrowedFd<'_>| {
            let found = rustix::fs::fstat(file).unwrap();
            found.st_blocks * 512 < found.st_size
        };
        let sparse = tempfile::tempfile().unwrap();
        sparse.set_len(16 * 4096).unwrap();
        assert!(holes(sparse.as_fd()));
        let mut storage = Storage::of_file(sparse.into(), 1).unwrap();
        assert_eq!(storage.words().len(), 16 * 512);
        assert!(!holes(storage.as_fd()));
        storage.grow(64 * 512).unwrap();
        assert!(!holes(storage.as_fd()));
    }
}
