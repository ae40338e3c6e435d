// SPDX-License-Identifier: GPL-2.0-only

//! What the calling thread may do to the whole machine.
//!
//! C header: [`include/linux/capability.h`](srctree/include/linux/capability.h)

use kernel::{
    bindings,
    ffi::c_int, //
};

/// Whether the calling thread may checkpoint and restore in the initial user namespace.
///
/// Being root in a user namespace of one's own is not enough, unlike with
/// `checkpoint_restore_ns_capable(current_user_ns())`.
pub(crate) fn may_checkpoint_restore() -> bool {
    has(bindings::CAP_CHECKPOINT_RESTORE) || has(bindings::CAP_SYS_ADMIN)
}

/// Whether the calling thread has a capability in the initial user namespace.
fn has(capability: u32) -> bool {
    // SAFETY: The initial user namespace is static, and the number is one that the kernel defines.
    unsafe { bindings::ns_capable(&raw mut bindings::init_user_ns, capability as c_int) }
}
