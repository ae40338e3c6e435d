// SPDX-License-Identifier: MIT OR Apache-2.0

//! Names the shared library, for the loader, by the version of its interface.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!(
        "cargo::rustc-cdylib-link-arg=-Wl,-soname,libsysgenid.so.{}",
        env!("CARGO_PKG_VERSION_MAJOR")
    );
}
