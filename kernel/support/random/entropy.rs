// SPDX-License-Identifier: GPL-2.0-only

//! What goes into the pool of the kernel's random number generator.
//!
//! C header: [`include/linux/random.h`](srctree/include/linux/random.h)

use kernel::bindings;

/// Mixes bytes into the entropy pool, without crediting any entropy. They come into effect at the
/// next reseed.
pub(crate) fn mix(bytes: &[u8]) {
    // SAFETY: The pointer and the length are those of a slice.
    unsafe { bindings::add_device_randomness(bytes.as_ptr().cast(), bytes.len()) };
}
