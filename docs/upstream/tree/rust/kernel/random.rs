// SPDX-License-Identifier: GPL-2.0-only

//! The kernel's random number generator, for drivers that notice that the machine was restored.
//!
//! C header: [`include/linux/random.h`](srctree/include/linux/random.h)

use crate::bindings;

#[cfg(CONFIG_VMGENID)]
pub mod vmfork;

/// Mixes bytes into the entropy pool, without crediting any entropy, and reseeds the generator, so that
/// they and whatever was mixed in before take effect at once.
pub fn reseed_with(bytes: &[u8]) {
    // SAFETY: The pointer and the length are those of a slice.
    unsafe { bindings::add_restore_randomness(bytes.as_ptr().cast(), bytes.len()) };
}
