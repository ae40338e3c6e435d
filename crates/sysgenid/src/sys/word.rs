// SPDX-License-Identifier: MIT OR Apache-2.0

//! A number in memory that somebody else changes: in a mapped page, in this process, or never.

use std::any::Any;
use std::os::fd::AsFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::io;
use rustix::mm::{MapFlags, ProtFlags};

/// A mapped page, or so much of one as is looked at.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: The memory belongs to the process, not to a thread, and it is only ever read, atomically.
unsafe impl Send for Mapping {}
// SAFETY: As above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(fd: impl AsFd, length: usize) -> io::Result<Self> {
        // SAFETY: A mapping at an address of the kernel's choice replaces nothing.
        let start = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                length,
                ProtFlags::READ,
                MapFlags::SHARED,
                fd,
                0,
            )
        }?;
        let start = NonNull::new(start.cast()).ok_or(io::Errno::FAULT)?;
        Ok(Self { start, length })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: Whoever looks at the page keeps this value, so nobody does any more.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.length) };
        debug_assert!(unmapped.is_ok(), "a whole mapping can always be unmapped");
    }
}

/// Keeps a word where it is: a mapping, or memory of this process. A static needs nobody.
type Keeper = Option<Arc<dyn Any + Send + Sync>>;

macro_rules! word {
    ($(#[$documentation:meta])* $name:ident, $number:ty, $atomic:ty) => {
        $(#[$documentation])*
        ///
        /// # Invariants
        ///
        /// `word` is valid and aligned for as long as `_keeper` is kept, and is only accessed atomically.
        #[derive(Clone, Debug)]
        pub(crate) struct $name {
            word: NonNull<$atomic>,
            _keeper: Keeper,
        }

        // SAFETY: The word is an atomic, which all threads may read, and its keeper goes along.
        unsafe impl Send for $name {}
        // SAFETY: As above.
        unsafe impl Sync for $name {}

        impl $name {
            /// A word in this process.
            pub(crate) fn in_memory(memory: &Arc<$atomic>) -> Self {
                // INVARIANT: The keeper shares the allocation, which does not move.
                Self {
                    word: NonNull::from(&**memory),
                    _keeper: Some(Arc::clone(memory) as _),
                }
            }

            /// The word at `offset` of the first page of a file, which must not end before it: whoever opens the
            /// file has seen to that.
            ///
            /// # Panics
            ///
            /// If the offset is not a multiple of the word's size.
            pub(crate) fn map(fd: impl AsFd, offset: usize, length: usize) -> io::Result<Self> {
                assert!(offset % size_of::<$atomic>() == 0 && offset + size_of::<$atomic>() <= length);
                let mapping = Mapping::new(fd, length)?;
                // SAFETY: The word is inside of the mapping.
                let word = unsafe { mapping.start.byte_add(offset) }.cast();
                // INVARIANT: A mapping starts at a page, so the word is aligned; the keeper keeps it mapped.
                Ok(Self {
                    word,
                    _keeper: Some(Arc::new(mapping)),
                })
            }

            /// The number.
            #[inline]
            pub(crate) fn load(&self, ordering: Ordering) -> $number {
                // SAFETY: By the type's invariant. The other side writes the word as a whole.
                unsafe { self.word.as_ref() }.load(ordering)
            }
        }
    };
}

impl Word32 {
    /// A number that is 0 for ever.
    pub(crate) fn never() -> Self {
        static ZERO: AtomicU32 = AtomicU32::new(0);
        // INVARIANT: A static lives for ever.
        Self {
            word: NonNull::from(&ZERO),
            _keeper: None,
        }
    }
}

word!(
    /// A 32-bit number in memory that somebody else changes.
    Word32, u32, AtomicU32
);
word!(
    /// A 64-bit number in memory that somebody else changes.
    Word64, u64, AtomicU64
);
