// SPDX-License-Identifier: GPL-2.0-only

//! A page whose first eight bytes are a word that user space maps and reads.

use kernel::{
    alloc::flags::__GFP_ZERO,
    bindings,
    mm::virt::VmaNew,
    page::Page,
    prelude::*,
    sync::atomic::{
        ordering::Release,
        Atomic, //
    }, //
};

/// A zeroed page but for the `u64` at its start.
pub(crate) struct WordPage {
    page: Page,
}

impl WordPage {
    /// Allocates the page. Everything behind the word is zero.
    pub(crate) fn new(word: u64) -> Result<Self> {
        let page = Self {
            page: Page::alloc_page(GFP_KERNEL | __GFP_ZERO)?,
        };
        page.store(word);
        Ok(page)
    }

    /// Stores the word as a whole, ordered after everything that the caller did before.
    ///
    /// Everybody who has the page mapped sees the new value at once.
    pub(crate) fn store(&self, value: u64) {
        // SAFETY: The page is valid for as long as `self` is.
        let start = unsafe { bindings::kmap_local_page(self.page.as_ptr()) };
        // SAFETY: The mapping is writable and aligned to a page until it is undone below, and the
        // kernel only ever accesses these bytes through this atomic.
        let word = unsafe { Atomic::from_ptr(start.cast::<u64>()) };
        word.store(value, Release);
        // SAFETY: This undoes the latest local mapping of this thread.
        unsafe { bindings::kunmap_local(start) };
    }

    /// Maps the page to the start of `vma`, for reading and for ever so: the mapping can neither
    /// become writable or executable nor grow, and is left out of core dumps.
    ///
    /// # Errors
    ///
    /// `EINVAL` if `vma` is writable or executable already; `ENOMEM` if there is no memory for page
    /// tables.
    pub(crate) fn map(&self, vma: &VmaNew) -> Result {
        vma.try_clear_maywrite()?;
        vma.try_clear_mayexec()?;
        vma.set_dontexpand();
        vma.set_dontdump();
        // Put in place now, so that the first look is no page fault.
        vma.set_mixedmap().vm_insert_page(vma.start(), &self.page)
    }

    /// Puts the page back into a mapping that has lost it.
    ///
    /// # Safety
    ///
    /// `fault` must be a fault in an area that [`map`](Self::map) has set up, for this page or another.
    pub(crate) unsafe fn handle_fault(
        &self,
        fault: *mut bindings::vm_fault,
    ) -> bindings::vm_fault_t {
        // SAFETY: The caller passes a valid fault.
        let place = unsafe { (*fault).__bindgen_anon_1 };
        // SAFETY: The area is valid during a fault in it, and `map` has made it a mixed map, which is
        // what this function needs where the area is shared already.
        let result =
            unsafe { bindings::vm_insert_page(place.vma, place.address, self.page.as_ptr()) };
        // `EBUSY`: another thread was faster.
        if result == 0 || result == EBUSY.to_errno() {
            bindings::vm_fault_reason_VM_FAULT_NOPAGE
        } else {
            bindings::vm_fault_reason_VM_FAULT_OOM
        }
    }
}
