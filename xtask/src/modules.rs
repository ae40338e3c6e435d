// SPDX-License-Identifier: MIT OR Apache-2.0

//! Builds the kernel modules of this repository with the kernel's own build system.

use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use anyhow::Result;

use crate::cache::Cache;
use crate::kernel::BuildFolder;
use crate::kernel::Choice;
use crate::progress;
use crate::tree::Tree;

/// The modules, in the order in which they load.
pub(crate) const NAMES: [&str; 3] = ["sysgenid", "sysgenid_vmfork", "sysgenid_acpi"];

/// Modules that were built for a kernel.
pub(crate) struct Modules {
    /// What they were built against.
    pub(crate) build_folder: BuildFolder,
    folder: PathBuf,
    others: Vec<PathBuf>,
}

impl Modules {
    /// The file of a module.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.ko"))
    }

    /// The files of all modules.
    pub(crate) fn files(&self) -> impl Iterator<Item = PathBuf> {
        let ours = NAMES.iter().map(|name| self.file(name));
        ours.chain(self.others.iter().cloned())
    }
}

/// Prepares the wanted kernel and builds the modules for it.
pub(crate) fn build(cache: &Cache, tree: &Tree, choice: &Choice) -> Result<Modules> {
    build_for(cache, tree, BuildFolder::prepare(cache, tree, choice)?)
}

/// The same, but if nobody asked for a certain kernel and the newest does not work, says so and goes
/// back to the newest that does. This is for showing something, never for proving it.
pub(crate) fn build_for_some_kernel(
    cache: &Cache,
    tree: &Tree,
    choice: &Choice,
) -> Result<Modules> {
    let error = match build(cache, tree, choice) {
        Err(error) if choice.kernel.is_none() => error,
        result => return result,
    };
    for build_folder in BuildFolder::prepared(cache, tree.arch()).unwrap_or_default() {
        if let Ok(modules) = build_for(cache, tree, build_folder) {
            eprintln!(
                "\nWARNING: the newest kernel does not work, going back to {}:\n{error:#}\n",
                modules.build_folder.kernel.version.release
            );
            return Ok(modules);
        }
    }
    Err(error)
}

/// Builds the modules for one kernel.
fn build_for(cache: &Cache, tree: &Tree, build_folder: BuildFolder) -> Result<Modules> {
    let release = &build_folder.kernel.version.release;
    let folder = cache.target().join("modules").join(release);
    let source = cache.repository().join("kernel");
    let step = format!("build the modules for {release}");
    make(cache, tree, &build_folder, &step, &source, &folder)?;
    let modules = Modules {
        build_folder,
        folder,
        others: Vec::new(),
    };
    for name in NAMES {
        let file = modules.file(name);
        file.metadata().with_context(|| {
            format!("kernel/ built without an error, but not {}", file.display())
        })?;
    }
    Ok(modules)
}

/// Builds the modules for one kernel, and those whose bugs are to be found: in C, and in Rust.
pub(crate) fn build_with_defects(
    cache: &Cache,
    tree: &Tree,
    build_folder: BuildFolder,
) -> Result<Modules> {
    let modules = build_for(cache, tree, build_folder)?;
    add(
        modules,
        cache,
        tree,
        "defects",
        &["defects", "defects_rust"],
    )
}

/// The same as [`build`], and a plain driver in C to measure them by.
pub(crate) fn build_with_yardstick(cache: &Cache, tree: &Tree, choice: &Choice) -> Result<Modules> {
    let modules = build(cache, tree, choice)?;
    add(modules, cache, tree, "yardstick", &["yardstick"])
}

/// Builds what else a test loads, from a folder of `xtask/kernels`.
fn add(
    modules: Modules,
    cache: &Cache,
    tree: &Tree,
    subject: &str,
    names: &[&str],
) -> Result<Modules> {
    let folder = modules.folder.join(subject);
    make(
        cache,
        tree,
        &modules.build_folder,
        &format!("build the modules with the {subject}"),
        &cache.repository().join("xtask/kernels").join(subject),
        &folder,
    )?;
    Ok(Modules {
        others: names
            .iter()
            .map(|name| folder.join(format!("{name}.ko")))
            .collect(),
        ..modules
    })
}

/// Has the kernel's build system build a folder of modules into another.
fn make(
    cache: &Cache,
    tree: &Tree,
    build_folder: &BuildFolder,
    step: &str,
    source: &Path,
    folder: &Path,
) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    progress::run_logged(
        step,
        &cache.log("modules")?,
        build_folder
            .make_command(tree)
            .arg("-C")
            .arg(build_folder.build())
            .arg(format!("M={}", source.display()))
            .arg(format!("MO={}", folder.display()))
            .arg("modules"),
    )
}
