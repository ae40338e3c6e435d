// SPDX-License-Identifier: MIT OR Apache-2.0

//! Kernels that look for bugs, which none of Debian's does: built here, from the same source.
//!
//! They are small: `kernels/debug` lists all that they have. Each is built once, and kept.

use std::path::Path;
use std::process::Command;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use serde::Deserialize;
use serde::Serialize;

use crate::cache;
use crate::cache::Cache;
use crate::kernel::BuildFolder;
use crate::kernel::Kernel;
use crate::kernel::Toolchain;
use crate::kernel::Version;
use crate::progress;
use crate::tree::Tree;

/// What all of them have.
const COMMON: &str = include_str!("../../kernels/debug/common.config");

/// What a kernel looks for. No kernel can look for everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hunt {
    /// Wrong use of memory, of locks, and of contexts.
    Memory,
    /// Data races.
    Races,
    /// What may not be where almost every lock may sleep: it is `PREEMPT_RT`.
    Realtime,
}

impl Hunt {
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Races => "races",
            Self::Realtime => "realtime",
        }
    }

    fn config(self) -> &'static str {
        match self {
            Self::Memory => include_str!("../../kernels/debug/memory.config"),
            Self::Races => include_str!("../../kernels/debug/races.config"),
            Self::Realtime => include_str!("../../kernels/debug/realtime.config"),
        }
    }

    fn toolchain(self) -> Toolchain {
        match self {
            Self::Memory | Self::Realtime => Toolchain::Clang,
            Self::Races => Toolchain::ClangThreadSanitizer,
        }
    }
}

/// What tells that one was built, and from what.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    version: Version,
    config: String,
    arguments: Vec<String>,
}

/// Builds a kernel, if that has not been done yet, from the source of a stock one.
pub(crate) fn prepare(
    cache: &Cache,
    tree: &Tree,
    stock: &BuildFolder,
    hunt: Hunt,
) -> Result<BuildFolder> {
    let version = Version {
        package: stock.kernel.version.package.clone(),
        release: format!(
            "{}-debug-{}",
            numbers(&stock.kernel.version.release),
            hunt.name()
        ),
    };
    let debug = BuildFolder {
        kernel: Kernel::at(cache, version.clone()),
        toolchain: hunt.toolchain(),
    };
    let stamp = Stamp {
        version,
        config: format!("{COMMON}\n{}", hunt.config()),
        // All but how many jobs there are at a time.
        arguments: debug.make_arguments().split_off(1),
    };
    tree.add(cache, "clang", &["clang", "lld", "llvm"])?;
    let file = debug.kernel.folder.join("built.stamp");
    if cache::read_stamp::<Stamp>(&file).as_ref() != Some(&stamp) {
        build(cache, tree, stock, &debug, hunt, &stamp.config)?;
        cache::write_stamp(&file, &stamp)?;
    }
    Ok(debug)
}

/// The numbers that a release begins with.
fn numbers(release: &str) -> &str {
    let end = release.find(|character: char| !character.is_ascii_digit() && character != '.');
    &release[..end.unwrap_or(release.len())]
}

fn build(
    cache: &Cache,
    tree: &Tree,
    stock: &BuildFolder,
    debug: &BuildFolder,
    hunt: Hunt,
    config: &str,
) -> Result<()> {
    cache::empty_folder(&debug.kernel.folder)?;
    std::os::unix::fs::symlink(stock.source(), debug.source())?;
    let build = debug.build();
    std::fs::create_dir(&build)?;
    let wanted = build.join("wanted.config");
    std::fs::write(&wanted, config)?;

    let make = |arguments: &[&str]| -> Command {
        let mut command = debug.make_command(tree);
        command.arg("-C").arg(stock.source());
        command
            .arg(format!("O={}", build.display()))
            .args(arguments);
        command
    };
    let name = hunt.name();
    progress::run_logged(
        &format!("configure the kernel that looks for bugs ({name})"),
        &cache.log(&format!("debug-kernel-{name}-config"))?,
        &mut make(&[
            &format!("KCONFIG_ALLCONFIG={}", wanted.display()),
            "allnoconfig",
        ]),
    )?;
    check(config, &build.join(".config"))?;
    progress::run_logged(
        &format!("build the kernel that looks for bugs ({name}; a quarter of an hour, once)"),
        &cache.log(&format!("debug-kernel-{name}"))?,
        &mut make(&["bzImage", "modules"]),
    )?;
    std::fs::create_dir_all(debug.kernel.modules())?;
    std::fs::copy(build.join("arch/x86/boot/bzImage"), debug.kernel.image())?;
    Ok(())
}

/// Fails if the kernel's own rules have not left an option as it was wanted.
fn check(wanted: &str, config: &Path) -> Result<()> {
    let text = std::fs::read_to_string(config)
        .with_context(|| format!("cannot read {}", config.display()))?;
    let missing: Vec<&str> = wanted
        .lines()
        .filter(|line| line.starts_with("CONFIG_"))
        .filter(|line| !text.lines().any(|other| other == *line))
        .collect();
    ensure!(
        missing.is_empty(),
        "this kernel cannot have {}: look for what that needs, and correct kernels/debug",
        missing.join(", ")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_begins_with_its_numbers() {
        assert_eq!(numbers("7.3.4+deb13-cloud-amd64"), "7.3.4");
        assert_eq!(numbers("7.3.4"), "7.3.4");
    }

    #[test]
    fn what_a_kernel_cannot_have_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config");
        std::fs::write(&config, "CONFIG_A=y\n# CONFIG_B is not set\n").unwrap();
        assert!(check("# a comment\n\nCONFIG_A=y\n", &config).is_ok());
        let error = check("CONFIG_A=y\nCONFIG_B=y\n", &config).unwrap_err();
        assert!(error.to_string().contains("CONFIG_B=y"), "{error}");
    }
}
