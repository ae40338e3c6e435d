// SPDX-License-Identifier: MIT OR Apache-2.0

//! `include/sysgenid.h` is what the sources say, and is C and C++.

#![allow(clippy::unwrap_used)] // The lint does not see that all of this file is tests.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The environment variable that has the header written instead of compared.
const RENEW: &str = "RENEW_HEADER";

fn header() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../include/sysgenid.h")
}

/// Has a compiler read a program that does nothing but include the header.
fn compile(compiler: &str, language: &str, standard: &str) {
    let output = Command::new(compiler)
        .args(["-fsyntax-only", "-Wall", "-Wextra", "-Wpedantic", "-Werror"])
        .arg(format!("-std={standard}"))
        .args(["-x", language])
        .arg(header())
        .output();
    let output = output.unwrap_or_else(|error| panic!("{compiler}: {error}"));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{compiler} -std={standard}:\n{complaint}"
    );
}

#[test]
fn the_header_is_made_of_the_sources() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let configuration = cbindgen::Config::from_file(folder.join("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(configuration);
    // In the order of the header, and without asking cargo for the whole crate.
    for subject in ["error", "probe", "watcher", "orchestrator"] {
        builder = builder.with_src(folder.join(format!("src/{subject}.rs")));
    }
    let mut made = Vec::new();
    builder.generate().unwrap().write(&mut made);
    // What Rust calls safety is, to C, a condition like any other.
    let made = String::from_utf8(made)
        .unwrap()
        .replace("# Safety\n *\n * ", "Condition: ");
    if std::env::var_os(RENEW).is_some() {
        std::fs::write(header(), &made).unwrap();
    }
    let committed = std::fs::read_to_string(header()).unwrap_or_default();
    let differs = made
        .lines()
        .zip(committed.lines())
        .find(|(made, committed)| made != committed);
    assert!(
        made == committed,
        "include/sysgenid.h is not what the sources say, first at {differs:?}; renew it by {RENEW}=1 cargo test \
         -p sysgenid-c --test header"
    );
}

#[test]
fn the_header_is_c99() {
    compile("cc", "c", "c99");
}

#[test]
#[ignore = "needs tools that not every machine has"]
fn the_header_is_cxx() {
    compile("c++", "c++", "c++11");
}
