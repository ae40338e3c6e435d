// SPDX-License-Identifier: GPL-2.0-only

//! What a driver judges of an area that is being mapped.
//!
//! C headers: [`include/linux/mm.h`](srctree/include/linux/mm.h),
//! [`include/uapi/linux/personality.h`](srctree/include/uapi/linux/personality.h)

use kernel::{
    bindings,
    current,
    mm::virt::{
        flags,
        VmaNew, //
    },
    page::PAGE_SIZE, //
};

/// An area that somebody wants to map.
pub(crate) struct Area {
    /// The offset of the area into its file, in pages.
    pub(crate) first_page: usize,
    /// The length in pages.
    pub(crate) pages: usize,
    /// Whether it is to be written to.
    pub(crate) writable: bool,
    /// Whether it is to be executed.
    pub(crate) executable: bool,
}

impl Area {
    /// What is to be mapped.
    pub(crate) fn of(vma: &VmaNew) -> Self {
        Self {
            // SAFETY: The area is being set up by the caller, so nobody writes to it.
            first_page: unsafe { (*vma.as_ptr()).vm_pgoff },
            pages: (vma.end() - vma.start()) / PAGE_SIZE,
            writable: vma.writable(),
            executable: vma.executable(),
        }
    }
}

/// Takes the permission to execute from an area whose owner asks for it with everything that he reads,
/// needed or not: a process with the personality `READ_IMPLIES_EXEC`, as old 32-bit programs have.
pub(crate) fn drop_implied_exec(vma: &VmaNew) {
    let task = current!().as_ptr();
    // SAFETY: The personality of the current task changes by the task itself only.
    let personality = unsafe { (*task).personality };
    if personality & bindings::READ_IMPLIES_EXEC == 0 || !vma.executable() {
        return;
    }
    let flags = vma.flags() & !flags::EXEC;
    let vma = vma.as_ptr();
    // SAFETY: The area is being set up by the caller, so nobody else looks at it, and nothing has been
    // mapped into it yet that had the permissions of before.
    unsafe {
        (*vma).__bindgen_anon_2.vm_flags = flags;
        (*vma).vm_page_prot = bindings::vm_get_page_prot(flags);
    }
}
