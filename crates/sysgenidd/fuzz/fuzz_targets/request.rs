// SPDX-License-Identifier: MIT OR Apache-2.0

//! Requests of the FUSE protocol.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sysgenidd::protocol::{Operation, Request};

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    // With the length that the header should name, what follows is reached more often.
    if let (Ok(length), Some(_)) = (u32::try_from(bytes.len()), bytes.get(..4)) {
        let mut bytes = bytes.to_vec();
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        check(&bytes);
    }
});

fn check(bytes: &[u8]) {
    let Ok(request) = Request::parse(bytes) else {
        return;
    };
    // It can be put off, and is the same then.
    assert_eq!(request.bytes, bytes);
    assert_eq!(request.unique.identity() & 1 << 63, 0);
    match request.operation {
        Operation::Lookup { name } => assert!(!name.contains(&0)),
        Operation::Write { data, .. } => assert!(bytes.ends_with(data) || data.len() < bytes.len()),
        _ => {}
    }
}
