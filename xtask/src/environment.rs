// SPDX-License-Identifier: MIT OR Apache-2.0

//! Everything that a guest needs, prepared.

use std::path::PathBuf;

use anyhow::Result;

use crate::cache::Cache;
use crate::guid;
use crate::initramfs;
use crate::kernel::Choice;
use crate::kernel::Kernel;
use crate::modules;
use crate::modules::Modules;
use crate::qemu::Machine;
use crate::tree::Tree;

/// A tree, a kernel, and a file system to boot.
pub(crate) struct Environment {
    /// The tree with QEMU in it.
    pub(crate) tree: Tree,
    /// The kernel.
    pub(crate) kernel: Kernel,
    /// The modules; `None` if the guest is to have none.
    pub(crate) modules: Option<Modules>,
    programs: PathBuf,
    initramfs: PathBuf,
}

impl Environment {
    /// Prepares guests with the modules in them, with exactly the kernel that is wanted.
    pub(crate) fn with_driver(cache: &Cache, choice: &Choice) -> Result<Self> {
        Self::with_modules(cache, choice, modules::build)
    }

    /// The same, but with an older kernel if the newest does not work.
    pub(crate) fn with_driver_on_some_kernel(cache: &Cache, choice: &Choice) -> Result<Self> {
        Self::with_modules(cache, choice, modules::build_for_some_kernel)
    }

    fn with_modules(
        cache: &Cache,
        choice: &Choice,
        build: fn(&Cache, &Tree, &Choice) -> Result<(Kernel, Modules)>,
    ) -> Result<Self> {
        let _lock = cache.lock("prepare")?;
        let tree = Tree::prepare(cache)?;
        let (kernel, modules) = build(cache, &tree, choice)?;
        let programs = initramfs::build_programs(cache)?;
        let initramfs = initramfs::build(cache, &tree, &kernel, &programs, Some(&modules))?;
        Ok(Self {
            tree,
            kernel,
            modules: Some(modules),
            programs,
            initramfs,
        })
    }

    /// Prepares guests without the modules.
    pub(crate) fn without_driver(cache: &Cache, choice: &Choice) -> Result<Self> {
        let _lock = cache.lock("prepare")?;
        let tree = Tree::prepare(cache)?;
        let kernel = Kernel::prepare(cache, &tree, choice)?;
        let programs = initramfs::build_programs(cache)?;
        Self::without_modules(cache, tree, kernel, programs)
    }

    /// Prepares guests with the same kernel as these, without the modules.
    pub(crate) fn but_without_driver(&self, cache: &Cache) -> Result<Self> {
        let _lock = cache.lock("prepare")?;
        let (tree, kernel) = (self.tree.clone(), self.kernel.clone());
        Self::without_modules(cache, tree, kernel, self.programs.clone())
    }

    fn without_modules(
        cache: &Cache,
        tree: Tree,
        kernel: Kernel,
        programs: PathBuf,
    ) -> Result<Self> {
        let initramfs = initramfs::build(cache, &tree, &kernel, &programs, None)?;
        Ok(Self {
            tree,
            kernel,
            modules: None,
            programs,
            initramfs,
        })
    }

    /// A machine of the usual kind, without a generation ID.
    pub(crate) fn machine(&self) -> Machine {
        Machine {
            kernel: self.kernel.image(),
            initramfs: self.initramfs.clone(),
            append: Vec::new(),
            memory_mib: 384,
            guid: None,
            acpi_tables: Vec::new(),
        }
    }

    /// A machine of the usual kind with a new generation ID.
    pub(crate) fn machine_with_guid(&self) -> Result<Machine> {
        Ok(Machine {
            guid: Some(guid::random()?),
            ..self.machine()
        })
    }
}
