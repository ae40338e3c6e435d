// SPDX-License-Identifier: GPL-2.0-only

//! Events for udev.
//!
//! C header: [`include/linux/kobject.h`](srctree/include/linux/kobject.h)

use kernel::{
    bindings,
    device::Device,
    error::to_result,
    prelude::*, //
};

/// Sends a `change` event of `device` with one variable, `NAME=value`. May sleep.
///
/// # Errors
///
/// `ENOMEM`, or what the kernel's own filters of events return.
pub(crate) fn change(device: &Device, variable: &CStr) -> Result {
    // `Device` is a transparent wrapper of `struct device`.
    let device = core::ptr::from_ref(device)
        .cast_mut()
        .cast::<bindings::device>();
    let mut environment = [
        variable.as_char_ptr().cast_mut(),
        core::ptr::null_mut(), //
    ];
    // SAFETY: The device is valid and registered, and the environment is a null-terminated array of
    // strings that are only read.
    to_result(unsafe {
        bindings::kobject_uevent_env(
            &raw mut (*device).kobj,
            bindings::kobject_action_KOBJ_CHANGE,
            environment.as_mut_ptr(),
        )
    })
}
