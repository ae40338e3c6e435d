// SPDX-License-Identifier: MIT OR Apache-2.0

//! The configuration file.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sysgenidd::config::{Config, InstanceName};

fuzz_target!(|text: &str| {
    match Config::parse(text) {
        Ok(config) => {
            assert!(config.directory.is_absolute());
            assert!(config.instances.contains_key(&InstanceName::host()));
            for name in config.instances.keys() {
                // It becomes the name of a folder.
                assert!(!name.as_str().contains('/') && !name.as_str().starts_with('.'));
            }
        }
        Err(fault) => {
            assert!(
                (1..=text.split('\n').count()).contains(&fault.line),
                "{fault}"
            );
            assert!(!fault.reason.contains('\n'), "{fault}");
        }
    }
});
