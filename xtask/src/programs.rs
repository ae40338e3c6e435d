// SPDX-License-Identifier: MIT OR Apache-2.0

//! Our own programs, built once a run for guests and for this machine.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::cache::Cache;
use crate::progress;

/// The package with the agent and the small programs of tests, and its binary.
pub(crate) const GUEST: &str = "sysgenid-guest";

/// The package with the conformance suite, and its binary.
pub(crate) const SUITE: &str = "sysgenid-conformance";

/// The package with the daemon, and its binary.
pub(crate) const DAEMON: &str = "sysgenidd";

/// All of them.
pub(crate) const NAMES: [&str; 3] = [GUEST, SUITE, DAEMON];

/// The triple for which they are built: static programs need no libraries in the guest.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The programs, built.
#[derive(Clone)]
pub(crate) struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// Builds them as static ones.
    pub(crate) fn build(cache: &Cache) -> Result<Self> {
        // A folder of its own: other flags would make the main one build everything again each time.
        let target = cache.target().join("programs");
        for package in NAMES {
            let mut command =
                Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
            command
                .current_dir(cache.repository())
                .args(["build", "--release", "--target", TARGET])
                .args(["--config", "profile.release.strip=true"])
                .args(["--package", package, "--target-dir"])
                .arg(&target)
                .env("RUSTFLAGS", "-C target-feature=+crt-static");
            progress::run_logged(
                &format!("build {package}"),
                &cache.log(package)?,
                &mut command,
            )?;
        }
        Ok(Self {
            folder: target.join(TARGET).join("release"),
        })
    }

    /// The file of a program.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}
