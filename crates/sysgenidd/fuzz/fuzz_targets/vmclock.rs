// SPDX-License-Identifier: MIT OR Apache-2.0

//! The page of a vmclock device.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|page: &[u8]| {
    let Ok(read) = sysgenid_vmclock::parse(page) else {
        return;
    };
    // The same by hand, from the offsets of the header.
    assert_eq!(&page[..4], b"VCLK");
    assert_eq!(page[0x8..0xa], 1_u16.to_le_bytes());
    assert_eq!(page[0xc] % 2, 0, "torn");
    assert_ne!(page[0x19] & 1, 0, "it has no counter");
    assert_eq!(read.notifies, page[0x19] & 2 != 0);
    assert_eq!(read.generation_counter.to_le_bytes(), page[0x68..0x70]);
    assert!(u32::from_le_bytes(page[4..8].try_into().unwrap()) >= 0x70);
});
