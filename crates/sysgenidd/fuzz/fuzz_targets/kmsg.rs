// SPDX-License-Identifier: MIT OR Apache-2.0

//! Records of the kernel's log.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sysgenidd::noticing::kmsg;

fuzz_target!(|bytes: &[u8]| {
    let Some(record) = kmsg::parse_record(bytes) else {
        return;
    };
    assert!(record.level < 8);
    assert!(!record.message.contains(&b'\n'));
    if record.is_notice() {
        // Whoever may write to the log cannot choose facility 0, whose priorities are 0 to 7. A plus sign
        // and zeros before it are as harmless as the kernel is unlikely to write them.
        let digits = bytes.iter().position(|byte| *byte == b',').unwrap();
        let digits = std::str::from_utf8(&bytes[..digits]).unwrap();
        assert!(digits.trim_start_matches(['+', '0']).len() <= 1, "{digits}");
    }
});
