// SPDX-License-Identifier: MIT OR Apache-2.0

//! The numbers of `include/uapi` are those of the core.

#![allow(clippy::unwrap_used)] // The lint does not see that all of this file is tests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use sysgenid_core::abi;

/// Every macro of the uapi headers whose value is an ABI number, with the core's constant for it.
#[allow(clippy::cast_possible_truncation)] // A page is not that long.
const NUMBERS: [(&str, u32); 12] = [
    ("SYSGENID_IOCTL_TYPE", abi::SYSGENID_IOCTL_TYPE as u32),
    ("SYSGENID_PAGE_FLAGS_OFFSET", abi::PAGE_FLAGS_OFFSET as u32),
    (
        "SYSGENID_PAGE_GENERATION_OFFSET",
        abi::PAGE_GENERATION_OFFSET as u32,
    ),
    ("SYSGENID_PAGE_LIVE", abi::PAGE_LIVE),
    ("SYSGENID_PAGE_NOTICED", abi::PAGE_NOTICED),
    (
        "SYSGENID_SET_WATCHER_TRACKING",
        abi::SYSGENID_SET_WATCHER_TRACKING,
    ),
    (
        "SYSGENID_TRIGGER_GEN_UPDATE",
        abi::SYSGENID_TRIGGER_GEN_UPDATE,
    ),
    ("SYSGENID_WAIT_WATCHERS", abi::SYSGENID_WAIT_WATCHERS),
    ("VMGENID_FORCE_GEN_UPDATE", abi::VMGENID_FORCE_GEN_UPDATE),
    (
        "VMGENID_GET_OUTDATED_WATCHERS",
        abi::VMGENID_GET_OUTDATED_WATCHERS,
    ),
    ("VMGENID_IOCTL_TYPE", abi::VMGENID_IOCTL_TYPE as u32),
    ("VMGENID_WAIT_WATCHERS", abi::VMGENID_WAIT_WATCHERS),
];

const HEADERS: [&str; 2] = ["linux/sysgenid.h", "linux/vmgenid.h"];

fn include_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../include/uapi")
}

/// The headers as a C program sees them.
fn headers() -> String {
    HEADERS
        .map(|header| format!("#include <{header}>\n"))
        .concat()
}

/// Has the C compiler read a source text, strictly, in a folder of its own, and returns what it prints.
fn compile(folder: &Path, source: &str, arguments: &[&str]) -> String {
    std::fs::write(folder.join("source.c"), source).unwrap();
    let output = Command::new("cc")
        .current_dir(folder)
        .args(["-Wall", "-Wextra", "-Werror", "-pedantic", "-std=c99"])
        .arg("-I")
        .arg(include_folder())
        .args(arguments)
        .arg("source.c")
        .output()
        .unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaint}");
    String::from_utf8(output.stdout).unwrap()
}

/// The values of the macros, printed by a C program that includes the headers.
fn values_from_c(names: &[String]) -> BTreeMap<String, u32> {
    let folder = tempfile::tempdir().unwrap();
    let prints: String = names
        .iter()
        .map(|name| format!("\tprintf(\"{name} %lu\\n\", (unsigned long)({name}));\n"))
        .collect();
    let text = format!(
        "{}#include <stdio.h>\nint main(void)\n{{\n{prints}\treturn 0;\n}}\n",
        headers()
    );
    compile(folder.path(), &text, &["-o", "numbers"]);
    let program = folder.path().join("numbers");
    let printed = Command::new(program).output().unwrap().stdout;
    String::from_utf8(printed)
        .unwrap()
        .lines()
        .map(|line| {
            let (name, value) = line.split_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

/// The names of all macros that the headers themselves define, but for their include guards.
fn macro_names() -> Vec<String> {
    let own = |name: &str| {
        (name.starts_with("SYSGENID_") || name.starts_with("VMGENID_")) && !name.ends_with("_H")
    };
    let folder = tempfile::tempdir().unwrap();
    compile(folder.path(), &headers(), &["-E", "-dM"])
        .lines()
        .filter_map(|line| line.strip_prefix("#define ")?.split_whitespace().next())
        .filter(|name| own(name))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_number_in_the_headers_is_the_one_in_the_core() {
    let core: BTreeMap<String, u32> = NUMBERS
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    assert_eq!(values_from_c(&macro_names()), core);
}

#[test]
fn each_header_compiles_on_its_own_as_strict_c() {
    for header in HEADERS {
        let folder = tempfile::tempdir().unwrap();
        let text = format!("#include <{header}>\nint alone;\n");
        compile(folder.path(), &text, &["-fsyntax-only"]);
    }
}
