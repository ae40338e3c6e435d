// SPDX-License-Identifier: MIT OR Apache-2.0

//! The library, installed as a user installs it, does what its header says.

#![allow(clippy::unwrap_used)] // The lint does not see that all of this file is tests.

mod common;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::program::Program;
use common::{Installation, Linking, run};
use sysgenid_fixture::Daemon;

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/programs")
        .join(name)
}

/// Compiles one of the programs, and has it run with one argument.
fn compile<T>(
    name: &str,
    linking: Linking,
    argument: impl AsRef<OsStr>,
    run: impl FnOnce(&mut Command) -> T,
) -> T {
    let installation = Installation::shared();
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("program");
    installation.compile(&source(name), &program, linking);
    run(installation.command(&program).arg(argument))
}

fn compile_and_run(name: &str, linking: Linking, argument: &Path) {
    compile(name, linking, argument, run);
}

/// What the loader finds in a program or library, by `readelf`.
fn dynamic_entries(file: &Path) -> String {
    run(Command::new("readelf").arg("-d").arg(file))
}

#[test]
#[ignore = "needs tools that not every machine has"]
fn a_shared_program_is_told_that_there_is_no_node_and_null_does_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    compile_and_run(
        "without_node.c",
        Linking::Shared,
        &folder.path().join("node"),
    );
}

#[test]
#[ignore = "needs tools that not every machine has"]
fn a_static_program_is_told_that_there_is_no_node_and_null_does_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    compile_and_run(
        "without_node.c",
        Linking::Static,
        &folder.path().join("node"),
    );
}

#[test]
#[ignore = "needs tools that not every machine has"]
fn a_shared_program_asks_the_loader_for_the_version_of_the_interface() {
    let installation = Installation::shared();
    let version = env!("CARGO_PKG_VERSION");
    let name = format!("libsysgenid.so.{}", env!("CARGO_PKG_VERSION_MAJOR"));
    let library = installation.libraries().join("libsysgenid.so");
    assert!(dynamic_entries(&library).contains(&format!("soname: [{name}]")));
    let real = library.canonicalize().unwrap();
    assert_eq!(
        real.file_name().unwrap(),
        &*format!("libsysgenid.so.{version}")
    );
    assert_eq!(
        installation.libraries().join(name).canonicalize().unwrap(),
        real
    );
}

#[test]
#[ignore = "needs tools that not every machine has"]
fn a_package_is_made_for_where_it_will_be_used() {
    // The libraries are built.
    let _ = Installation::shared();
    let package = tempfile::tempdir().unwrap();
    run(
        Command::new(common::repository().join("packaging/c/install.sh"))
            .env("DESTDIR", package.path())
            .env("PREFIX", "/usr")
            .env("LIBDIR", "/usr/lib64")
            .env("BUILD", common::built()),
    );
    let libraries = package.path().join("usr/lib64");
    assert!(libraries.join("libsysgenid.so").is_file());
    assert!(package.path().join("usr/include/sysgenid.h").is_file());
    let description = std::fs::read_to_string(libraries.join("pkgconfig/sysgenid.pc")).unwrap();
    assert!(description.contains("libdir=/usr/lib64\n"), "{description}");
    assert!(!description.contains('@'), "{description}");
    assert!(
        !description.contains(&*package.path().to_string_lossy()),
        "{description}"
    );
}

#[test]
#[ignore = "needs a node"]
fn every_function_keeps_its_word_on_a_node() {
    compile_and_run("with_node.c", Linking::Shared, &common::node());
}

#[test]
#[ignore = "needs a daemon"]
fn a_program_is_told_that_its_server_has_gone_and_goes_on_when_it_is_back() {
    let mut daemon = Daemon::start();
    let node = daemon.node();
    let program = compile("vanishing.c", Linking::Shared, node, Program::start);
    program.expect("open");
    daemon.stop();
    program.expect("gone");
    daemon.start_again();
    program.expect("back");
    daemon.await_settled();
    let generation = daemon.orchestrator().bump().unwrap();
    program.expect(&format!("changed to {generation}"));
    daemon.await_settled();
    assert!(program.finish().success());
}
