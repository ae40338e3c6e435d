// SPDX-License-Identifier: MIT OR Apache-2.0

//! Declares the functions of AWS-LC that its bindings leave out.
//!
//! Each release of `aws-lc-sys` gives its symbols a prefix with its version, so that two releases can be
//! linked at once. The `links` key of its manifest has the same name, and Cargo hands it to us in the
//! names of environment variables: so an update needs no change here.

use std::path::PathBuf;

/// What Cargo's variable with the library's folder is called, around the version.
const VARIABLE: (&str, &str) = ("DEP_AWS_LC_", "_ROOT");

fn main() {
    let version = std::env::vars()
        .find_map(|(name, _)| {
            let version = name.strip_prefix(VARIABLE.0)?.strip_suffix(VARIABLE.1)?;
            Some(version.to_owned())
        })
        .expect("aws-lc-sys is a dependency and sets its `root`");
    let declarations = format!(
        r#"
unsafe extern "C" {{
    #[link_name = "aws_lc_{version}_CRYPTO_get_vm_ube_supported"]
    pub(super) fn CRYPTO_get_vm_ube_supported() -> core::ffi::c_int;
    #[link_name = "aws_lc_{version}_CRYPTO_get_vm_ube_active"]
    pub(super) fn CRYPTO_get_vm_ube_active() -> core::ffi::c_int;
    #[link_name = "aws_lc_{version}_CRYPTO_get_vm_ube_generation"]
    pub(super) fn CRYPTO_get_vm_ube_generation(generation: *mut u32) -> core::ffi::c_int;
    #[link_name = "aws_lc_{version}_get_private_thread_reseed_calls_since_initialization"]
    pub(super) fn get_private_thread_reseed_calls_since_initialization() -> u64;
}}
"#
    );
    let folder = std::env::var_os("OUT_DIR").expect("Cargo sets OUT_DIR");
    std::fs::write(PathBuf::from(folder).join("aws_lc.rs"), declarations)
        .expect("OUT_DIR is writable");
    println!("cargo::rerun-if-changed=build.rs");
}
