// SPDX-License-Identifier: GPL-2.0-only

//! Feeding the kernel's random number generator.
//!
//! C headers: [`include/linux/random.h`](srctree/include/linux/random.h),
//! `kernel/sysgenid_acpi/reseed.h`

use kernel::{
    bindings,
    error::to_result,
    ffi::c_int,
    prelude::*, //
};

extern "C" {
    fn sysgenid_reseed() -> c_int;
}

/// Mixes bytes into the entropy pool, without crediting any entropy. They come into effect at the
/// next reseed.
pub(crate) fn mix(bytes: &[u8]) {
    // SAFETY: The pointer and the length are those of a slice.
    unsafe { bindings::add_device_randomness(bytes.as_ptr().cast(), bytes.len()) };
}

/// Reseeds the generator, so that what was mixed in comes into effect. May sleep.
///
/// A generator that was never seeded is left alone: what was mixed in is part of its seed to come.
///
/// # Errors
///
/// The error of opening `/dev/urandom`, whose ioctl this uses, or `ENODEV` if it is something else.
pub(crate) fn reseed() -> Result {
    // SAFETY: The function may be called in process context at any time.
    to_result(unsafe { sysgenid_reseed() })
}
