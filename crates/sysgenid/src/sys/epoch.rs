// SPDX-License-Identifier: MIT OR Apache-2.0

//! A number that becomes another one when a probe has found another page, and in a child after `fork`.
//!
//! It is in memory that the kernel wipes at a fork (`MADV_WIPEONFORK`), so a child finds 0 there, without a system call
//! and whoever called `fork`. Where a kernel or a sandbox does not know that, the C library is asked to call
//! back in the child, which `fork()` does and a bare system call does not.

use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::sys::mapping::page_size;

/// What a child finds, until it has a number of its own.
pub(crate) const CHILD: u64 = 0;

/// A number that no stamp has had in this process or in those that it comes from.
fn unused() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(CHILD);
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}

/// Where the number is.
#[derive(Debug)]
pub(crate) struct Epoch {
    word: NonNull<AtomicU64>,
    /// Whether a page is to be given back.
    owns_page: bool,
}

// SAFETY: The word is an atomic that every thread may use, for as long as this is kept.
unsafe impl Send for Epoch {}
// SAFETY: As above.
unsafe impl Sync for Epoch {}

impl Epoch {
    /// A number of its own, where that can be.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: A mapping at an address of the kernel's choice replaces nothing.
        let page = unsafe {
            rustix::mm::mmap_anonymous(
                ptr::null_mut(),
                page_size(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        // SAFETY: Nobody uses the page yet.
        let wiped = unsafe { rustix::mm::madvise(page, page_size(), Advice::LinuxWipeOnFork) };
        let word = NonNull::new(page.cast::<AtomicU64>()).ok_or(io::Errno::FAULT)?;
        let epoch = if wiped.is_ok() {
            Self {
                word,
                owns_page: true,
            }
        } else {
            // SAFETY: As above.
            unsafe { rustix::mm::munmap(page, page_size()) }?;
            Self {
                word: NonNull::from(told_by_the_c_library()),
                owns_page: false,
            }
        };
        epoch.advance();
        Ok(epoch)
    }

    /// The number of this process, for what has none of its own.
    pub(crate) fn of_process() -> &'static Self {
        static OF_PROCESS: OnceLock<Epoch> = OnceLock::new();
        OF_PROCESS.get_or_init(|| {
            Self::new().unwrap_or_else(|_| Self {
                word: NonNull::from(told_by_the_c_library()),
                owns_page: false,
            })
        })
    }

    /// Where the number is, for as long as this is kept.
    pub(super) fn word(&self) -> NonNull<AtomicU64> {
        self.word
    }

    fn number(&self) -> &AtomicU64 {
        // SAFETY: The word is aligned, and there for as long as `self` is.
        unsafe { self.word.as_ref() }
    }

    /// Becomes another number.
    pub(crate) fn advance(&self) {
        self.number().store(unused(), Ordering::Release);
    }

    /// In a child: becomes a number of its own, if no other thread was quicker. Says whether this was it.
    pub(crate) fn settle(&self) -> bool {
        let number = self.number();
        number.load(Ordering::Relaxed) == CHILD
            && number
                .compare_exchange(CHILD, unused(), Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
    }
}

impl Drop for Epoch {
    fn drop(&mut self) {
        if self.owns_page {
            // SAFETY: Whoever looks at the page keeps this value, so nobody does any more.
            let unmapped = unsafe { rustix::mm::munmap(self.word.as_ptr().cast(), page_size()) };
            debug_assert!(unmapped.is_ok(), "a whole mapping can always be unmapped");
        }
    }
}

/// A number that is set to that of a child by the C library.
fn told_by_the_c_library() -> &'static AtomicU64 {
    static NUMBER: AtomicU64 = AtomicU64::new(CHILD);
    static TOLD: OnceLock<()> = OnceLock::new();

    extern "C" fn in_child() {
        NUMBER.store(CHILD, Ordering::Relaxed);
    }

    TOLD.get_or_init(|| {
        // SAFETY: The function may be called at any time, and does nothing but store to a static.
        let registered = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
        assert_eq!(registered, 0, "no memory to be told of forks");
        Epoch {
            word: NonNull::from(&NUMBER),
            owns_page: false,
        }
        .advance();
    });
    &NUMBER
}
