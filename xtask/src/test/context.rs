// SPDX-License-Identifier: MIT OR Apache-2.0

//! What tests share: programs and guests, each prepared when the first test asks for it.

use std::cell::OnceCell;
use std::ffi::OsStr;
use std::process::Command;

use anyhow::Result;
use anyhow::anyhow;

use crate::arch::Arch;
use crate::cache::Cache;
use crate::environment::Environment;
use crate::kernel::Choice;
use crate::kernel::debug::Hunt;
use crate::programs::Programs;
use crate::progress;
use crate::test::Options;
use crate::test::module::fuzz::RandomCalls;

/// What tests share. What could not be prepared is not tried again for each test.
pub(crate) struct Context<'a> {
    pub(super) cache: &'a Cache,
    choice: &'a Choice,
    pub(super) random_calls: RandomCalls,
    programs: OnceCell<Result<Programs, String>>,
    with_driver: OnceCell<Result<Environment, String>>,
    without_driver: OnceCell<Result<Environment, String>>,
    stock: OnceCell<Result<Environment, String>>,
    debug: [OnceCell<Result<Environment, String>>; 3],
    arm64_programs: OnceCell<Result<Programs, String>>,
    arm64: OnceCell<Result<Environment, String>>,
    arm64_stock: OnceCell<Result<Environment, String>>,
}

impl<'a> Context<'a> {
    pub(super) fn new(cache: &'a Cache, options: &'a Options) -> Self {
        Self {
            cache,
            choice: &options.choice,
            random_calls: options.random_calls.clone(),
            programs: OnceCell::new(),
            with_driver: OnceCell::new(),
            without_driver: OnceCell::new(),
            stock: OnceCell::new(),
            debug: [const { OnceCell::new() }; 3],
            arm64_programs: OnceCell::new(),
            arm64: OnceCell::new(),
            arm64_stock: OnceCell::new(),
        }
    }

    /// Runs cargo in this repository, with some variables in its environment.
    pub(crate) fn cargo(
        &self,
        log: &str,
        arguments: &[&str],
        environment: &[(&str, &OsStr)],
    ) -> Result<()> {
        let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        progress::run_logged(
            &format!("cargo {}", arguments.join(" ")),
            &self.cache.log(log)?,
            Command::new(program)
                .current_dir(self.cache.repository())
                .args(arguments)
                .envs(environment.iter().copied()),
        )
    }

    /// Our programs, built when the first test asks for them.
    pub(crate) fn programs(&self) -> Result<&Programs> {
        once(&self.programs, || Programs::build(self.cache))
    }

    /// The tree, the kernel and the modules, prepared when the first test asks for them.
    pub(crate) fn environment(&self) -> Result<&Environment> {
        once(&self.with_driver, || {
            Environment::with_driver(self.cache, self.choice, self.programs()?)
        })
    }

    /// The same kernel, without the modules.
    pub(crate) fn without_driver(&self) -> Result<&Environment> {
        once(&self.without_driver, || {
            self.environment()?.but_without_driver(self.cache)
        })
    }

    /// A kernel that looks for bugs of some kind, with the modules and with what has bugs to be found.
    pub(crate) fn debug_kernel(&self, hunt: Hunt) -> Result<&Environment> {
        once(&self.debug[hunt as usize], || {
            self.environment()?.on_a_debug_kernel(self.cache, hunt)
        })
    }

    /// The kernel that Debian's release itself has, which needs no Rust.
    pub(crate) fn stock(&self) -> Result<&Environment> {
        once(&self.stock, || {
            let choice = Choice {
                kernel: None,
                ..self.choice.clone()
            };
            Environment::without_driver(self.cache, &choice, self.programs()?)
        })
    }

    /// The same as `environment` for arm64: the kernel and the modules.
    pub(crate) fn arm64(&self) -> Result<&Environment> {
        once(&self.arm64, || {
            let kernel = self.choice.kernel.as_deref();
            let choice = Choice {
                kernel: kernel.map(|name| name.replace("amd64", "arm64")),
                arch: Arch::Arm64,
                ..self.choice.clone()
            };
            Environment::with_driver(self.cache, &choice, self.arm64_programs()?)
        })
    }

    /// The same as `stock` for arm64: the kernel that Debian's release itself has.
    pub(crate) fn arm64_stock(&self) -> Result<&Environment> {
        once(&self.arm64_stock, || {
            let choice = Choice {
                kernel: None,
                arch: Arch::Arm64,
                ..self.choice.clone()
            };
            Environment::without_driver(self.cache, &choice, self.arm64_programs()?)
        })
    }

    fn arm64_programs(&self) -> Result<&Programs> {
        once(&self.arm64_programs, || {
            Programs::build_for_arm64(self.cache)
        })
    }
}

/// What was prepared the first time, or why it could not be.
fn once<T>(cell: &OnceCell<Result<T, String>>, prepare: impl FnOnce() -> Result<T>) -> Result<&T> {
    let prepared = cell.get_or_init(|| prepare().map_err(|error| format!("{error:#}")));
    prepared.as_ref().map_err(|reason| anyhow!("{reason}"))
}
