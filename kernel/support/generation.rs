// SPDX-License-Identifier: GPL-2.0-only

//! What `sysgenid.ko` offers to backends.
//!
//! C header: `kernel/sysgenid/sysgenid.h`

extern "C" {
    fn sysgenid_bump_generation();
    fn sysgenid_register_backend();
    fn sysgenid_unregister_backend();
}

/// As long as there is one, every program is told that something notices restores without being
/// told.
///
/// # Invariants
///
/// It stands for one call of `sysgenid_register_backend()` that was not taken back.
pub(crate) struct Backend(());

impl Backend {
    /// To be called once a restore would be noticed, and dropped before none is any more.
    pub(crate) fn register() -> Self {
        // SAFETY: The function may be called from process context at any time, and resolving the
        // symbol pins the module that has it.
        unsafe { sysgenid_register_backend() };
        // INVARIANT: That was the call.
        Self(())
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // SAFETY: By the type invariants this takes back one call, and the module is pinned.
        unsafe { sysgenid_unregister_backend() };
    }
}

/// Tells every program that this machine was cloned or rolled back. May sleep.
///
/// Whoever calls this has fed the kernel's random number generator before.
pub(crate) fn bump() {
    // SAFETY: The function may be called from process context at any time, and resolving the symbol
    // pins the module that has it.
    unsafe { sysgenid_bump_generation() };
}
