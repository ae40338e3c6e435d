// SPDX-License-Identifier: MIT OR Apache-2.0

//! Requests at the control socket.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sysgenidd::control::messages;

fuzz_target!(|line: &[u8]| {
    let Ok(message) = messages::parse(line) else {
        return;
    };
    // What is understood can be said, on one line.
    let said = serde_json::to_vec(&message).unwrap();
    assert!(!said.contains(&b'\n'));
    assert_eq!(messages::parse(&said).unwrap(), message);
});
