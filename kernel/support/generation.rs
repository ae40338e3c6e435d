// SPDX-License-Identifier: GPL-2.0-only

//! What `sysgenid.ko` offers to backends.
//!
//! C header: `kernel/sysgenid/sysgenid.h`

extern "C" {
    fn sysgenid_bump_generation();
}

/// Tells every program that this machine was cloned or rolled back. May sleep.
///
/// Whoever calls this has fed the kernel's random number generator before.
pub(crate) fn bump() {
    // SAFETY: The function may be called from process context at any time, and resolving the symbol
    // pins the module that has it.
    unsafe { sysgenid_bump_generation() };
}
