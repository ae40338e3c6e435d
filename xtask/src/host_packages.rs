// SPDX-License-Identifier: MIT OR Apache-2.0

//! Debian packages that this machine itself needs.

use std::process::Command;

use anyhow::Result;
use anyhow::bail;

use crate::cache::Cache;
use crate::progress;

/// A program, or a file with its whole path, and the package that has it.
pub(crate) struct Needed {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
}

/// A program and its package.
pub(crate) const fn needed(program: &'static str, package: &'static str) -> Needed {
    Needed { program, package }
}

/// Installs those packages whose programs are missing.
pub(crate) fn install(cache: &Cache, needed: &[Needed]) -> Result<()> {
    let missing: Vec<&str> = needed
        .iter()
        .filter(|needed| !has_program(needed.program))
        .map(|needed| needed.package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(", ");
    if !has_program("apt-get") {
        bail!("this machine lacks {names}, and apt-get to install it: is it a Debian system?");
    }
    eprintln!("missing on this machine, installed with apt-get: {names}");
    let log = cache.log("host-packages")?;
    progress::run_logged(
        "update the host's package lists",
        &log,
        Command::new("apt-get").arg("update"),
    )?;
    progress::run_logged(
        &format!("install {names}"),
        &log,
        Command::new("apt-get")
            .args(["install", "--yes", "--no-install-recommends"])
            .args(&missing)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

fn has_program(name: &str) -> bool {
    // Where a user's search path ends, that of the system administrator's programs begins.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}
