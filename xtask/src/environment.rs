// SPDX-License-Identifier: MIT OR Apache-2.0

//! Everything that a guest needs, prepared.

use std::path::PathBuf;

use anyhow::Context;
use anyhow::Result;

use crate::cache::Cache;
use crate::guid;
use crate::initramfs;
use crate::kernel::Choice;
use crate::kernel::Kernel;
use crate::kernel::debug;
use crate::kernel::debug::Hunt;
use crate::modules;
use crate::modules::Modules;
use crate::programs::Programs;
use crate::qemu::Machine;
use crate::tree::Tree;

/// A tree, a kernel, and a file system to boot.
pub(crate) struct Environment {
    /// The tree with QEMU in it.
    pub(crate) tree: Tree,
    /// The kernel.
    pub(crate) kernel: Kernel,
    modules: Option<Modules>,
    programs: Programs,
    initramfs: PathBuf,
    memory_mib: u32,
    /// What the kernel is told in any case.
    append: &'static [&'static str],
}

/// How much memory a guest has, in MiB.
const MEMORY_MIB: u32 = 384;

/// How much it has where the kernel keeps books about it.
const DEBUG_MEMORY_MIB: u32 = 1024;

/// What such a kernel is told. While it makes itself fit for five levels of page tables, KASAN takes whatever an interrupt
/// touches for wild: it is off for the task alone.
const DEBUG_APPEND: &[&str] = &["no5lvl"];

impl Environment {
    /// Prepares guests with the modules in them, with exactly the kernel that is wanted.
    pub(crate) fn with_driver(cache: &Cache, choice: &Choice, programs: &Programs) -> Result<Self> {
        Self::with_modules(cache, choice, programs, modules::build)
    }

    /// The same, but with an older kernel if the newest does not work.
    pub(crate) fn with_driver_on_some_kernel(
        cache: &Cache,
        choice: &Choice,
        programs: &Programs,
    ) -> Result<Self> {
        Self::with_modules(cache, choice, programs, modules::build_for_some_kernel)
    }

    /// The same as [`with_driver`](Self::with_driver), and a plain driver in C beside the modules.
    pub(crate) fn with_yardstick(
        cache: &Cache,
        choice: &Choice,
        programs: &Programs,
    ) -> Result<Self> {
        Self::with_modules(cache, choice, programs, modules::build_with_yardstick)
    }

    fn with_modules(
        cache: &Cache,
        choice: &Choice,
        programs: &Programs,
        build: fn(&Cache, &Tree, &Choice) -> Result<Modules>,
    ) -> Result<Self> {
        let _lock = cache.lock("prepare")?;
        let tree = Tree::prepare_for_guests(cache, choice.arch)?;
        let modules = build(cache, &tree, choice)?;
        let kernel = modules.build_folder.kernel.clone();
        Self::of(cache, tree, kernel, Some(modules), programs)
    }

    /// Prepares guests without the modules, for which any stock kernel will do.
    pub(crate) fn without_driver(
        cache: &Cache,
        choice: &Choice,
        programs: &Programs,
    ) -> Result<Self> {
        let _lock = cache.lock("prepare")?;
        let tree = Tree::prepare_for_guests(cache, choice.arch)?;
        let kernel = Kernel::prepare(cache, &tree, choice)?;
        Self::of(cache, tree, kernel, None, programs)
    }

    /// Prepares guests with the same kernel as these, without the modules.
    pub(crate) fn but_without_driver(&self, cache: &Cache) -> Result<Self> {
        let _lock = cache.lock("prepare")?;
        let (tree, kernel) = (self.tree.clone(), self.kernel.clone());
        Self::of(cache, tree, kernel, None, &self.programs)
    }

    /// Prepares guests with a kernel that looks for bugs, made from the source of this one's, with the
    /// modules and those with bugs to be found.
    pub(crate) fn on_a_debug_kernel(&self, cache: &Cache, hunt: Hunt) -> Result<Self> {
        let _lock = cache.lock("prepare")?;
        let tree = self.tree.clone();
        let build_folder = debug::prepare(cache, &tree, &self.modules()?.build_folder, hunt)?;
        let kernel = build_folder.kernel.clone();
        let modules = modules::build_with_defects(cache, &tree, build_folder)?;
        let environment = Self::of(cache, tree, kernel, Some(modules), &self.programs)?;
        Ok(Self {
            memory_mib: DEBUG_MEMORY_MIB,
            append: DEBUG_APPEND,
            ..environment
        })
    }

    fn of(
        cache: &Cache,
        tree: Tree,
        kernel: Kernel,
        modules: Option<Modules>,
        programs: &Programs,
    ) -> Result<Self> {
        let initramfs = initramfs::build(cache, &tree, &kernel, programs, modules.as_ref())?;
        Ok(Self {
            tree,
            kernel,
            modules,
            programs: programs.clone(),
            initramfs,
            memory_mib: MEMORY_MIB,
            append: &[],
        })
    }

    /// The modules in the guests.
    ///
    /// # Errors
    ///
    /// If they are guests without.
    pub(crate) fn modules(&self) -> Result<&Modules> {
        self.modules
            .as_ref()
            .context("these guests have no modules")
    }

    /// A machine of the usual kind, without a generation ID.
    pub(crate) fn machine(&self) -> Machine {
        Machine {
            arch: self.tree.arch(),
            kernel: self.kernel.image(),
            initramfs: self.initramfs.clone(),
            append: self.append.iter().map(ToString::to_string).collect(),
            memory_mib: self.memory_mib,
            guid: None,
            acpi_tables: Vec::new(),
            disk: None,
            vmclock: None,
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
