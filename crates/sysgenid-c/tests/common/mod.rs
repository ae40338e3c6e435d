// SPDX-License-Identifier: MIT OR Apache-2.0

//! What tests of C programs share: the library as it is installed, and the compiler.

// Each test program uses a part of it.
#![allow(dead_code)]

pub(crate) mod program;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// This repository.
pub(crate) fn repository() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.canonicalize().unwrap()
}

/// The node that the environment names, for tests that need one.
pub(crate) fn node() -> PathBuf {
    let path = std::env::var_os(sysgenid::PATH_VARIABLE);
    path.expect("SYSGENID_PATH names a node that may be bumped")
        .into()
}

/// Runs a command that has to succeed, and returns what it prints.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}:\n{printed}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    printed
}

/// Where cargo puts what it builds for these tests.
fn target() -> &'static Path {
    let of_tests = Path::new(env!("CARGO_TARGET_TMPDIR"));
    of_tests.parent().unwrap()
}

/// Where cargo has put the libraries.
pub(crate) fn built() -> PathBuf {
    target().join("debug")
}

/// How a program takes the library.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Linking {
    Shared,
    Static,
}

/// The library, installed for a while.
pub(crate) struct Installation {
    folder: tempfile::TempDir,
}

impl Installation {
    /// The one that the tests of a program share: it is built and installed when the first asks for it.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Installation> = OnceLock::new();
        SHARED.get_or_init(Self::new)
    }

    fn new() -> Self {
        run(Command::new(env!("CARGO"))
            .current_dir(repository())
            .args(["build", "--package", "sysgenid-c", "--target-dir"])
            .arg(target()));
        let folder = tempfile::tempdir().unwrap();
        run(Command::new(repository().join("packaging/c/install.sh"))
            .env("PREFIX", folder.path())
            .env("BUILD", built())
            .env_remove("LIBDIR")
            .env_remove("DESTDIR"));
        Self { folder }
    }

    pub(crate) fn libraries(&self) -> PathBuf {
        self.folder.path().join("lib")
    }

    /// Where `pkg-config` finds it.
    pub(crate) fn package_path(&self) -> PathBuf {
        self.libraries().join("pkgconfig")
    }

    /// What `pkg-config` (of Debian's package pkgconf) says.
    pub(crate) fn flags(&self, linking: Linking) -> Vec<String> {
        let mut command = Command::new("pkg-config");
        command.args(["--cflags", "--libs"]);
        if matches!(linking, Linking::Static) {
            command.arg("--static");
        }
        command
            .arg("sysgenid")
            .env("PKG_CONFIG_PATH", self.package_path());
        run(&mut command)
            .split_whitespace()
            .map(str::to_owned)
            .collect()
    }

    /// Compiles a C program against it, strictly.
    pub(crate) fn compile(&self, source: &Path, program: &Path, linking: Linking) {
        let mut command = Command::new("cc");
        command
            .args(["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror"])
            .arg(source)
            .arg("-o")
            .arg(program);
        if matches!(linking, Linking::Static) {
            command.arg("-static");
        }
        run(command.args(self.flags(linking)));
    }

    /// A command that finds the shared library, as after `ldconfig`.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env("LD_LIBRARY_PATH", self.libraries());
        command
    }
}
