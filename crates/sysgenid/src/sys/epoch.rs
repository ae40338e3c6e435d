// SPDX-License-Identifier: MIT OR Apache-2.0

//! A number that becomes another one when a probe has found another page, and in a child after `fork`.
//!
//! It is in memory that the kernel wipes at a fork (`MADV_WIPEONFORK`), so a child finds 0 there, without a system call
//! and whoever called `fork`. Where a kernel or a sandbox does not know that, the C library is asked to call
//! back in the child, which `fork()` does and a bare system call does not.

use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

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
        if wiped.is_err() {
            // SAFETY: As above.
            unsafe { rustix::mm::munmap(page, page_size()) }?;
            return Ok(Self::told());
        }
        let epoch = Self {
            word,
            owns_page: true,
        };
        epoch.advance();
        Ok(epoch)
    }

    /// One that the C library sets to that of a child.
    fn told() -> Self {
        let epoch = Self {
            word: NonNull::from(told_by_the_c_library()),
            owns_page: false,
        };
        epoch.advance();
        epoch
    }

    /// The number of this process, for what has none of its own.
    pub(crate) fn of_process() -> &'static Self {
        OF_PROCESS.get_or_init(|| {
            be_told();
            Self::new().unwrap_or_else(|_| Self::told())
        })
    }

    /// The number of this process, which no other has had that it comes from.
    pub(crate) fn process() -> u64 {
        let epoch = Self::of_process();
        epoch.settle();
        epoch.number().load(Ordering::Relaxed)
    }

    /// Has the kernel wipe the page at a fork, which it does already unless the process was restored by a CRIU that does
    /// not know of that.
    pub(crate) fn confirm(&self) {
        if self.owns_page {
            // SAFETY: The page is ours, and this changes nothing that is in it.
            let _ = unsafe {
                rustix::mm::madvise(
                    self.word.as_ptr().cast(),
                    page_size(),
                    Advice::LinuxWipeOnFork,
                )
            };
        }
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

    /// In a child: becomes a number of its own, if no other thread was quicker.
    pub(crate) fn settle(&self) {
        let number = self.number();
        if number.load(Ordering::Relaxed) == CHILD {
            let _ = number.compare_exchange(CHILD, unused(), Ordering::AcqRel, Ordering::Relaxed);
        }
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

/// A number that the C library has set to that of a child.
struct Told {
    number: AtomicU64,
    /// The one that was made before. None of them ever goes.
    previous: AtomicPtr<Told>,
}

/// The last of them.
static LAST_TOLD: AtomicPtr<Told> = AtomicPtr::new(ptr::null_mut());

/// The number of this process.
static OF_PROCESS: OnceLock<Epoch> = OnceLock::new();

/// A number that is set to that of a child by the C library, where no page is wiped.
fn told_by_the_c_library() -> &'static AtomicU64 {
    be_told();
    let told: &'static Told = Box::leak(Box::new(Told {
        number: AtomicU64::new(CHILD),
        previous: AtomicPtr::default(),
    }));
    let mut last = LAST_TOLD.load(Ordering::Acquire);
    loop {
        told.previous.store(last, Ordering::Relaxed);
        let this = ptr::from_ref(told).cast_mut();
        match LAST_TOLD.compare_exchange(last, this, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return &told.number,
            Err(newer) => last = newer,
        }
    }
}

/// Has the C library call back in each child.
fn be_told() {
    static TOLD: OnceLock<()> = OnceLock::new();
    TOLD.get_or_init(|| {
        // SAFETY: The function may be called at any time, and does nothing but store to atomics.
        let registered = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
        assert_eq!(registered, 0, "no memory to be told of forks");
    });
}

extern "C" fn in_child() {
    // A process that CRIU has restored may have pages that are not wiped any more.
    if let Some(epoch) = OF_PROCESS.get() {
        epoch.number().store(CHILD, Ordering::Relaxed);
    }
    let mut next = LAST_TOLD.load(Ordering::Acquire);
    // SAFETY: It is null or one that was leaked.
    while let Some(told) = unsafe { next.as_ref() } {
        told.number.store(CHILD, Ordering::Relaxed);
        next = told.previous.load(Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a child finds that it is one.
    fn is_wiped(epoch: &Epoch) -> bool {
        // SAFETY: The child looks at a number and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let is_wiped = epoch.number().load(Ordering::Relaxed) == CHILD;
            // SAFETY: As above.
            unsafe { libc::_exit(i32::from(is_wiped)) };
        }
        let mut status = 0;
        // SAFETY: The status is written to a local.
        let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert_eq!(waited, child);
        libc::WEXITSTATUS(status) == 1
    }

    #[test]
    fn a_page_that_a_restore_has_left_as_any_other_is_wiped_again() {
        let epoch = Epoch::new().unwrap();
        assert!(is_wiped(&epoch));
        // SAFETY: The page is ours.
        unsafe {
            rustix::mm::madvise(
                epoch.word.as_ptr().cast(),
                page_size(),
                Advice::LinuxKeepOnFork,
            )
        }
        .unwrap();
        assert!(!is_wiped(&epoch));
        epoch.confirm();
        assert!(is_wiped(&epoch));
    }

    #[test]
    fn where_no_page_is_wiped_the_c_library_tells_each_number() {
        let (first, second) = (Epoch::told(), Epoch::told());
        assert!(is_wiped(&first) && is_wiped(&second));
        assert!(Epoch::process() != CHILD);
    }
}
