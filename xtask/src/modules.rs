// SPDX-License-Identifier: MIT OR Apache-2.0

//! Builds the kernel modules of this repository with the kernel's own build system.

use std::path::PathBuf;

use anyhow::Context;
use anyhow::Result;

use crate::cache::Cache;
use crate::kernel::Choice;
use crate::kernel::Kernel;
use crate::progress;
use crate::tree::Tree;

/// The modules, in the order in which they load.
pub(crate) const NAMES: [&str; 3] = ["sysgenid", "sysgenid_vmfork", "sysgenid_acpi"];

/// Modules that were built for a kernel.
pub(crate) struct Modules {
    /// The folder with the `.ko` files.
    pub(crate) folder: PathBuf,
}

impl Modules {
    /// The file of a module.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.ko"))
    }
}

/// Prepares the wanted kernel and builds the modules for it. If that fails for the newest kernel, says
/// so and goes back to the newest for which it works.
pub(crate) fn build(cache: &Cache, tree: &Tree, choice: &Choice) -> Result<(Kernel, Modules)> {
    let first = Kernel::prepare(cache, tree, choice)
        .and_then(|kernel| build_for(cache, tree, &kernel).map(|modules| (kernel, modules)));
    let error = match first {
        Ok(built) => return Ok(built),
        Err(error) => error,
    };
    if choice.kernel.is_some() {
        return Err(error);
    }
    for kernel in Kernel::prepared(cache).unwrap_or_default() {
        if let Ok(modules) = build_for(cache, tree, &kernel) {
            eprintln!(
                "\nWARNING: the newest kernel does not work, going back to {}:\n{error:#}\n",
                kernel.version.release
            );
            return Ok((kernel, modules));
        }
    }
    Err(error)
}

/// Builds the modules for one kernel.
fn build_for(cache: &Cache, tree: &Tree, kernel: &Kernel) -> Result<Modules> {
    let release = &kernel.version.release;
    let folder = cache.target().join("modules").join(release);
    std::fs::create_dir_all(&folder)?;
    progress::run_logged(
        &format!("build the modules for {release}"),
        &cache.log("modules")?,
        kernel
            .make_command(tree)
            .arg("-C")
            .arg(kernel.build())
            .arg(format!("M={}", cache.repository().join("kernel").display()))
            .arg(format!("MO={}", folder.display()))
            .arg("modules"),
    )?;
    let modules = Modules { folder };
    for name in NAMES {
        let file = modules.file(name);
        file.metadata().with_context(|| {
            format!("kernel/ built without an error, but not {}", file.display())
        })?;
    }
    Ok(modules)
}
