// SPDX-License-Identifier: GPL-2.0-only

//! Events for udev.
//!
//! C header: [`include/linux/kobject.h`](srctree/include/linux/kobject.h)

use kernel::{
    bindings,
    device::Device,
    error::to_result,
    fmt,
    new_mutex,
    prelude::*,
    str::CString,
    sync::{
        aref::ARef,
        Mutex, //
    }, //
};

/// Sends events of a device for as long as it is registered.
///
/// # Invariants
///
/// A device that is in here is registered.
#[pin_data]
pub(crate) struct Uevents {
    #[pin]
    device: Mutex<Option<ARef<Device>>>,
}

impl Uevents {
    /// Events of no device yet.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            // INVARIANT: There is no device.
            device <- new_mutex!(None),
        })
    }

    /// From now on events are sent of `device`.
    ///
    /// # Safety
    ///
    /// The device must be registered, and stay so until [`stop`](Self::stop) has returned.
    pub(crate) unsafe fn start(&self, device: &Device) {
        // INVARIANT: The caller promises it.
        *self.device.lock() = Some(device.into());
    }

    /// From now on no events are sent, and none is being sent when this returns.
    pub(crate) fn stop(&self) {
        *self.device.lock() = None;
    }

    /// Sends a `change` event with one variable, `NAME=value`, if there is a device; else it does not
    /// even allocate memory for it. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, or what the kernel's own filters of events return.
    pub(crate) fn send_change(&self, variable: fmt::Arguments<'_>) -> Result {
        let device = self.device.lock();
        let Some(device) = &*device else {
            return Ok(());
        };
        let variable = CString::try_from_fmt(variable)?;
        // `Device` is a transparent wrapper of `struct device`.
        let device = core::ptr::from_ref::<Device>(device)
            .cast_mut()
            .cast::<bindings::device>();
        let mut environment = [
            variable.as_char_ptr().cast_mut(),
            core::ptr::null_mut(), //
        ];
        // SAFETY: By the type invariants the device is registered, and it stays so while the lock is
        // held. The environment is a null-terminated array of strings that are only read.
        to_result(unsafe {
            bindings::kobject_uevent_env(
                &raw mut (*device).kobj,
                bindings::kobject_action_KOBJ_CHANGE,
                environment.as_mut_ptr(),
            )
        })
    }
}
