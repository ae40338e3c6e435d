// SPDX-License-Identifier: MIT OR Apache-2.0

//! The programs of this project that are tested, which other packages build.

use std::path::PathBuf;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;

/// The daemon.
pub(crate) const DAEMON: Built = Built {
    name: "sysgenidd",
    variable: "SYSGENIDD",
};

/// The operator's command line.
pub(crate) const COMMAND_LINE: Built = Built {
    name: "sysgenctl",
    variable: "SYSGENCTL",
};

/// A program, which is called as its package is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Built {
    name: &'static str,
    /// The environment variable that names it, if it is not beside the tests.
    variable: &'static str,
}

impl Built {
    /// Where it is.
    pub(crate) fn program(self) -> Result<PathBuf> {
        if let Some(program) = std::env::var_os(self.variable) {
            return Ok(program.into());
        }
        // The tests are in `deps`, below the folder of the programs.
        let program = std::env::current_exe()?
            .ancestors()
            .nth(2)
            .context("a test is in a folder")?
            .join(self.name);
        if !program.exists() {
            bail!(
                "{} is missing; build it (cargo build -p {}), or name it in {}",
                program.display(),
                self.name,
                self.variable
            );
        }
        Ok(program)
    }
}
