// SPDX-License-Identifier: GPL-2.0-only

//! A few bytes of memory that an ACPI device has designated for its driver to read.
//!
//! C header: [`include/linux/io.h`](srctree/include/linux/io.h)

use crate::acpi_device::{
    AcpiDevice,
    EvaluateError, //
};
use kernel::{
    bindings,
    fmt,
    page::PAGE_SIZE,
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

/// Why the memory cannot be found or mapped.
pub(crate) enum LocateError {
    /// The method does not return what it should.
    Evaluate(EvaluateError),
    /// One of the two integers has more than 32 bits.
    Halves,
    /// This address is 0, beyond what the machine can address, or not followed by `N` bytes of the
    /// same page.
    Address(u64),
    /// The memory at this address cannot be mapped.
    Map(u64),
}

impl fmt::Display for LocateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LocateError::Evaluate(error) => error.fmt(f),
            LocateError::Halves => f.write_fmt(fmt!("a half of the address exceeds 32 bits")),
            LocateError::Address(address) => {
                f.write_fmt(fmt!("{address:#x} is not a valid address"))
            }
            LocateError::Map(address) => f.write_fmt(fmt!("cannot map the memory at {address:#x}")),
        }
    }
}

impl<const N: usize> FirmwareMemory<N> {
    /// Maps the bytes at the address that a method of the device returns, as two integers: the low
    /// and the high 32 bits.
    ///
    /// # Errors
    ///
    /// A [`LocateError`], whatever the firmware returns.
    pub(crate) fn locate(device: &AcpiDevice<'_>, method: &CStr) -> Result<Self, LocateError> {
        let [low, high] = device
            .evaluate_integers(method)
            .map_err(LocateError::Evaluate)?;
        let (Ok(low), Ok(high)) = (u32::try_from(low), u32::try_from(high)) else {
            return Err(LocateError::Halves);
        };
        Self::map(u64::from(high) << 32 | u64::from(low))
    }

    fn map(address: u64) -> Result<Self, LocateError> {
        const { assert!(N > 0 && N <= PAGE_SIZE) };
        // SAFETY: The root of the resource tree is set up at boot.
        let last_address = unsafe { bindings::iomem_resource.end };
        let in_page = address as usize % PAGE_SIZE;
        let ends_within = address
            .checked_add(N as u64 - 1)
            .is_some_and(|last| last <= last_address);
        if address == 0 || in_page > PAGE_SIZE - N || !ends_within {
            return Err(LocateError::Address(address));
        }
        // SAFETY: Mapping memory as such has no side effects, and what is mapped is what the firmware
        // has designated for the driver to read.
        let pointer = unsafe {
            bindings::memremap(
                address,
                N,
                (bindings::MEMREMAP_WB | bindings::MEMREMAP_DEC) as usize,
            )
        };
        if pointer.is_null() {
            return Err(LocateError::Map(address));
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
