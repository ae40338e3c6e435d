// SPDX-License-Identifier: MIT OR Apache-2.0

//! Our own programs, built once a run for guests and for this machine, and for guests with another processor.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use anyhow::Result;
use serde::Deserialize;

use crate::arch::Arch;
use crate::cache::Cache;
use crate::crates;
use crate::progress;
use crate::progress::Step;
use crate::tree::Tree;

/// The package with the agent and the small programs of tests, and its binary.
pub(crate) const GUEST: &str = "sysgenid-guest";

/// The package with the conformance suite, and its binary.
pub(crate) const SUITE: &str = "sysgenid-conformance";

/// The package with the daemon, and its binary.
pub(crate) const DAEMON: &str = "sysgenidd";

/// The package with the command line, and its binary.
pub(crate) const COMMAND_LINE: &str = "sysgenctl";

const PACKAGES: [&str; 4] = [GUEST, SUITE, DAEMON, COMMAND_LINE];

/// The tests of the client library that need a node, as a program.
pub(crate) const LIBRARY_TESTS: &str = "sysgenid-node-tests";

/// Those of the command line.
pub(crate) const COMMAND_LINE_TESTS: &str = "sysgenctl-node-tests";

/// All of them.
pub(crate) const NAMES: [&str; 6] = [
    GUEST,
    SUITE,
    DAEMON,
    COMMAND_LINE,
    LIBRARY_TESTS,
    COMMAND_LINE_TESTS,
];

/// The package of which a program is the test `node`.
const TESTS: [(&str, &str); 2] = [
    (LIBRARY_TESTS, "sysgenid"),
    (COMMAND_LINE_TESTS, COMMAND_LINE),
];

/// The programs, built.
#[derive(Clone)]
pub(crate) struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// Builds them as static ones, which need no libraries in the guest.
    pub(crate) fn build(cache: &Cache) -> Result<Self> {
        let cargo = || Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        // A folder of its own: other flags would make the main one build everything again each time.
        let target = cache.target().join("programs");
        Self::build_with(cache, &cargo, Arch::Amd64, &target)
    }

    /// The same for arm64, with Debian's compiler: that of this machine need not know any other processor.
    pub(crate) fn build_for_arm64(cache: &Cache) -> Result<Self> {
        let tree = {
            let _lock = cache.lock("prepare")?;
            Tree::prepare_for_arm64_programs(cache)?
        };
        let home = crates::copy(cache)?;
        let cargo = || {
            let mut command = tree.command("cargo");
            command
                .env("CARGO_HOME", &home)
                .env("CARGO_NET_OFFLINE", "true")
                .env(
                    "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER",
                    "aarch64-linux-gnu-gcc-14",
                );
            command
        };
        let target = cache.target().join("programs-arm64");
        Self::build_with(cache, &cargo, Arch::Arm64, &target)
    }

    fn build_with(
        cache: &Cache,
        cargo: &dyn Fn() -> Command,
        arch: Arch,
        target: &Path,
    ) -> Result<Self> {
        let folder = target.join(arch.triple()).join("release");
        let of_guests = match arch {
            Arch::Amd64 => "",
            Arch::Arm64 => " for arm64",
        };
        let command = |task: &str, package: &str| {
            let mut command = cargo();
            add_arguments(&mut command, cache, arch, task, package);
            command.arg("--target-dir").arg(target);
            command
        };
        for package in PACKAGES {
            progress::run_logged(
                &format!("build {package}{of_guests}"),
                &cache.log(package)?,
                &mut command("build", package),
            )?;
        }
        for (program, package) in TESTS {
            let step = Step::start(&format!(
                "build the tests of {package} that need a node{of_guests}"
            ));
            let file = build_tests(cache, program, package, &mut command("test", package))?;
            std::fs::copy(&file, folder.join(program))
                .with_context(|| format!("cannot copy {}", file.display()))?;
            step.done();
        }
        Ok(Self { folder })
    }

    /// The file of a program.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// Tells cargo to make static programs.
fn add_arguments(command: &mut Command, cache: &Cache, arch: Arch, task: &str, package: &str) {
    command
        .current_dir(cache.repository())
        .arg(task)
        .arg("--manifest-path")
        .arg(cache.repository().join("Cargo.toml"))
        .args(["--release", "--target", arch.triple()])
        .args(["--config", "profile.release.strip=true"])
        .args(["--package", package])
        .env("RUSTFLAGS", "-C target-feature=+crt-static");
}

/// Builds the test `node` of a package. Cargo says where the program is, under a name of its own.
fn build_tests(
    cache: &Cache,
    program: &str,
    package: &str,
    command: &mut Command,
) -> Result<PathBuf> {
    let mut executable = None;
    command.args(["--no-run", "--all-features", "--test", "node"]);
    command.args(["--message-format", "json-render-diagnostics"]);
    progress::run_into(&cache.log(program)?, command, &mut |line| {
        executable = executable_of_tests(line).or(executable.take());
    })
    .with_context(|| format!("cannot build the tests of {package}"))?;
    executable.with_context(|| format!("cargo does not say where the tests of {package} are"))
}

/// What cargo's message says of the test `node`.
fn executable_of_tests(message: &str) -> Option<PathBuf> {
    #[derive(Deserialize)]
    struct Message {
        target: Target,
        executable: PathBuf,
    }

    #[derive(Deserialize)]
    struct Target {
        name: String,
    }

    // What is not such a message is another one, or what the compiler says to people.
    let message: Message = serde_json::from_str(message).ok()?;
    (message.target.name == "node").then_some(message.executable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_of_the_tests_is_found_among_cargos_messages() {
        let of = |name, executable| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"name":"{name}"}},"executable":{executable}}}"#
            )
        };
        assert_eq!(
            executable_of_tests(&of("node", r#""/a/node-1""#)),
            Some("/a/node-1".into())
        );
        assert_eq!(executable_of_tests(&of("sysgenctl", r#""/a/b""#)), None);
        assert_eq!(executable_of_tests(&of("node", "null")), None);
        assert_eq!(executable_of_tests("   Compiling sysgenid"), None);
    }
}
