// SPDX-License-Identifier: GPL-2.0-only

//! What the kernel crate does not tell of an area that is being mapped.

use kernel::mm::virt::VmaNew;

/// The offset of the area into its file, in pages.
pub(crate) fn first_page(vma: &VmaNew) -> usize {
    // SAFETY: The area is being set up by the caller, so nobody writes to it.
    unsafe { (*vma.as_ptr()).vm_pgoff }
}
