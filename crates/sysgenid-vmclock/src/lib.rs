// SPDX-License-Identifier: MIT OR Apache-2.0

//! The layout of the hypervisor's page (`/dev/vmclock0`), as far as it concerns restores.
//!
//! It is `struct vmclock_abi` of `include/uapi/linux/vmclock-abi.h`. All numbers in it are little-endian. Whoever
//! opens the device reads the page once and has it judged by [`parse`]; the counter is at
//! [`COUNTER_OFFSET`] of a mapping of it.

#![forbid(unsafe_code)]

use std::mem::offset_of;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// "VCLK", read as a little-endian number.
const MAGIC: u32 = 0x4b4c_4356;
/// The only version there is. The driver of Linux refuses every other one, too.
const VERSION: u16 = 1;
/// `VMCLOCK_FLAG_VM_GEN_COUNTER_PRESENT`.
const COUNTER_PRESENT: u64 = 1 << 8;
/// `VMCLOCK_FLAG_NOTIFICATION_PRESENT`.
const NOTIFICATION_PRESENT: u64 = 1 << 9;

/// `struct vmclock_abi`, as far as this backend needs it.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Abi {
    magic: U32,
    size: U32,
    version: U16,
    _counter_id: u8,
    _time_type: u8,
    sequence: U32,
    _disruption_marker: U64,
    flags: U64,
    // The clock itself.
    _clock: [u8; 72],
    generation_counter: U64,
}

/// How many bytes of a page [`parse`] needs.
pub const SIZE: usize = size_of::<Abi>();

/// Where the counter of restores is, in bytes from the start of the page.
pub const COUNTER_OFFSET: usize = offset_of!(Abi, generation_counter);

const _: () = assert!(
    offset_of!(Abi, sequence) == 0xc
        && offset_of!(Abi, flags) == 0x18
        && COUNTER_OFFSET == 0x68
        && SIZE == 0x70
);

/// What a page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Another number after every restore. It does not repeat, but need not grow.
    pub generation_counter: u64,
    /// Whether the hypervisor promises to notify the machine of each update.
    pub notifies: bool,
}

/// What is wrong with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It ends before the counter.
    #[error("only {0} bytes of it can be read, of 112")]
    Short(usize),
    /// It does not start with the magic number.
    #[error("it starts with {0:#010x}, where a vmclock page has 0x4b4c4356")]
    Magic(u32),
    /// Another version than 1. What is only added to version 1 shows in its size, so another version may
    /// have moved anything, and is not guessed at.
    #[error(
        "its layout is version {0}, and only version 1 is known: a newer sysgenidd may know it"
    )]
    Version(u16),
    /// By its own account it ends before the counter.
    #[error("it has {0} bytes, too few to hold the counter of restores")]
    Size(u32),
    /// The hypervisor does not count restores.
    #[error("the hypervisor keeps no counter of restores in it")]
    NoCounter,
    /// The hypervisor is changing it: read it again.
    #[error("the hypervisor is changing it")]
    Torn,
}

/// Reads a page.
///
/// # Errors
///
/// [`Malformed::Torn`] is to be read again; all others stay.
pub fn parse(page: &[u8]) -> Result<Page, Malformed> {
    let (abi, _) = Abi::ref_from_prefix(page).map_err(|_| Malformed::Short(page.len()))?;
    // Magic, size and version are constant. The rest may be read only where the sequence is even.
    if abi.magic != MAGIC {
        return Err(Malformed::Magic(abi.magic.get()));
    }
    if abi.version != VERSION {
        return Err(Malformed::Version(abi.version.get()));
    }
    if usize::try_from(abi.size.get()).is_ok_and(|size| size < SIZE) {
        return Err(Malformed::Size(abi.size.get()));
    }
    if abi.sequence.get() % 2 == 1 {
        return Err(Malformed::Torn);
    }
    let flags = abi.flags.get();
    if flags & COUNTER_PRESENT == 0 {
        return Err(Malformed::NoCounter);
    }
    Ok(Page {
        generation_counter: abi.generation_counter.get(),
        notifies: flags & NOTIFICATION_PRESENT != 0,
    })
}

/// A page whose hypervisor counts restores and promises no notification: for tests of whoever reads one.
pub fn sample(counter: u64) -> [u8; 4096] {
    let mut page = [0; 4096];
    page[0..4].copy_from_slice(b"VCLK");
    page[4..8].copy_from_slice(&4096_u32.to_le_bytes());
    page[8..10].copy_from_slice(&1_u16.to_le_bytes());
    page[0xc..0x10].copy_from_slice(&6_u32.to_le_bytes());
    page[0x18..0x20].copy_from_slice(&0x100_u64.to_le_bytes());
    page[0x68..0x70].copy_from_slice(&counter.to_le_bytes());
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(at: usize, bytes: &[u8]) -> Result<Page, Malformed> {
        let mut page = sample(7);
        page[at..at + bytes.len()].copy_from_slice(bytes);
        parse(&page)
    }

    #[test]
    fn a_sound_page_is_read() {
        let read = |notifies| {
            Ok(Page {
                generation_counter: 7,
                notifies,
            })
        };
        assert_eq!(parse(&sample(7)), read(false));
        assert_eq!(parse(&sample(7)[..112]), read(false));
        assert_eq!(changed(0x18, &0x300_u64.to_le_bytes()), read(true));
        assert_eq!(changed(4, &112_u32.to_le_bytes()), read(false));
    }

    #[test]
    fn each_defect_of_a_page_has_its_name() {
        assert_eq!(parse(&[]), Err(Malformed::Short(0)));
        assert_eq!(parse(&sample(7)[..111]), Err(Malformed::Short(111)));
        assert_eq!(changed(0, b"KCLV"), Err(Malformed::Magic(0x564c_434b)));
        assert_eq!(changed(8, &[2, 0]), Err(Malformed::Version(2)));
        assert_eq!(changed(8, &[0, 0]), Err(Malformed::Version(0)));
        assert_eq!(changed(4, &[111, 0]), Err(Malformed::Size(111)));
        assert_eq!(changed(0x18, &[0xff, 0]), Err(Malformed::NoCounter));
        assert_eq!(changed(0xc, &[7]), Err(Malformed::Torn));
    }

    #[test]
    fn a_torn_page_is_believed_in_nothing_that_changes() {
        let mut torn = sample(7);
        torn[0xc] = 7;
        torn[0x18..0x20].fill(0);
        assert_eq!(parse(&torn), Err(Malformed::Torn));
    }
}
