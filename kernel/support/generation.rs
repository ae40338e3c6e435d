// SPDX-License-Identifier: GPL-2.0-only

//! What `sysgenid.ko` offers to backends.
//!
//! C header: `kernel/sysgenid/sysgenid.h`

extern "C" {
    fn sysgenid_bump_generation();
    fn sysgenid_register_backend();
    fn sysgenid_unregister_backend();
    fn sysgenid_reseed();
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

/// Tells every program that this machine was cloned or rolled back. Waits for nobody, in any context in
/// which spin locks may be taken.
///
/// Whoever calls this has fed the kernel's random number generator before.
pub(crate) fn bump() {
    // SAFETY: The function may be called so, and resolving the symbol pins the module that has it.
    unsafe { sysgenid_bump_generation() };
}

/// Reseeds the kernel's random number generator, so that what was mixed into its pool comes into
/// effect. May sleep.
#[allow(dead_code)] // Where the kernel has done so itself.
pub(crate) fn reseed() {
    // SAFETY: The function may be called from process context at any time, and resolving the symbol
    // pins the module that has it.
    unsafe { sysgenid_reseed() };
}
