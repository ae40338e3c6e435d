// SPDX-License-Identifier: GPL-2.0-only

//! A few bytes of memory that the firmware or the hypervisor writes to.
//!
//! C header: [`include/linux/io.h`](srctree/include/linux/io.h)

use kernel::{
    bindings,
    prelude::*, //
};

/// `N` bytes of physical memory, mapped for reading.
///
/// # Invariants
///
/// The pointer came from `memremap` for `N` bytes.
pub(crate) struct FirmwareMemory<const N: usize>(*const u8);

// SAFETY: The mapping may be read and undone on any thread.
unsafe impl<const N: usize> Send for FirmwareMemory<N> {}
// SAFETY: Reading takes no exclusive access.
unsafe impl<const N: usize> Sync for FirmwareMemory<N> {}

impl<const N: usize> FirmwareMemory<N> {
    /// Maps the bytes at a physical address.
    ///
    /// # Errors
    ///
    /// `EINVAL` for address 0 and for one beyond what this machine can address, `ENOMEM` if it cannot
    /// be mapped.
    pub(crate) fn new(address: u64) -> Result<Self> {
        // SAFETY: The end of the resource tree's root is set at boot.
        let last = unsafe { bindings::iomem_resource.end };
        let end = address.checked_add(N as u64 - 1);
        if address == 0 || end.is_none_or(|end| end > last) {
            return Err(EINVAL);
        }
        // SAFETY: `memremap` checks the range; mapping it as memory has no side effects.
        let pointer = unsafe {
            bindings::memremap(
                address,
                N,
                (bindings::MEMREMAP_WB | bindings::MEMREMAP_DEC) as usize,
            )
        };
        if pointer.is_null() {
            return Err(ENOMEM);
        }
        Ok(Self(pointer.cast()))
    }

    /// The bytes as they are now.
    pub(crate) fn read(&self) -> [u8; N] {
        // SAFETY: By the type invariants there are `N` bytes. Each is read once, and may change at
        // any time.
        core::array::from_fn(|index| unsafe { self.0.add(index).read_volatile() })
    }
}

impl<const N: usize> Drop for FirmwareMemory<N> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants this undoes `memremap`.
        unsafe { bindings::memunmap(self.0.cast_mut().cast()) };
    }
}
