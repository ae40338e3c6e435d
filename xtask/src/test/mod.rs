// SPDX-License-Identifier: MIT OR Apache-2.0

//! `cargo xtask test`: everything that CI checks, in one command.
//!
//! `checks` needs neither root nor network; `host_daemon`, and what of `client` runs on this machine, needs root, and
//! is skipped without. The other files each prove one subject in guests.

mod arm64;
mod checkpoint;
mod checks;
mod client;
mod conformance;
mod daemon;
mod debug_kernel;
mod firmware;
mod fuzz;
mod guest;
mod hibernation;
mod host_daemon;
mod in_tree;
mod interop;
mod known_limits;
mod lifetime;
mod passed;
mod refused;
mod restore;
mod sighting;
mod suite;
mod survival;
mod upstream;
mod user_space;

use std::cell::OnceCell;
use std::ffi::OsStr;
use std::process::Command;
use std::time::Duration;
use std::time::Instant;

use anyhow::Result;
use anyhow::anyhow;
use anyhow::bail;
use clap::Args;

use crate::arch::Arch;
use crate::cache::Cache;
use crate::environment::Environment;
use crate::kernel::Choice;
use crate::kernel::debug::Hunt;
use crate::programs::Programs;
use crate::progress;
use crate::progress::Step;
use crate::table;
use crate::test::fuzz::RandomCalls;
use crate::test::passed::Passed;

/// What to test.
#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    choice: Choice,
    /// Only the part that needs no network and no guest; what needs root is skipped without
    #[arg(long)]
    no_vm: bool,
    /// Also the long versions of some, which take hours. What has passed in such a run is not run again for
    /// the same commit
    #[arg(long, conflicts_with = "no_vm")]
    all: bool,
    /// Run what has passed, too
    #[arg(long, requires = "all")]
    again: bool,
    /// Only the tests whose names contain this
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// Only print the tests' names
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    random_calls: RandomCalls,
}

/// One test: a name that says what it proves, and how.
pub(crate) struct Test {
    name: &'static str,
    run: fn(&Context<'_>) -> Result<()>,
    is_long: bool,
}

impl Test {
    const fn new(name: &'static str, run: fn(&Context<'_>) -> Result<()>) -> Self {
        Self {
            name,
            run,
            is_long: false,
        }
    }

    /// One that is too long for every day.
    const fn long(name: &'static str, run: fn(&Context<'_>) -> Result<()>) -> Self {
        Self {
            is_long: true,
            ..Self::new(name, run)
        }
    }
}

/// What tests share. What could not be prepared is not tried again for each test.
pub(crate) struct Context<'a> {
    cache: &'a Cache,
    choice: &'a Choice,
    random_calls: RandomCalls,
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
    fn new(cache: &'a Cache, options: &'a Options) -> Self {
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

/// Why a test proves nothing here.
#[derive(Debug, thiserror::Error)]
#[error("skipped: {0}")]
struct Skipped(&'static str);

/// Ends a test that cannot run here. It neither passes nor fails.
pub(crate) fn skip(reason: &'static str) -> Result<()> {
    Err(Skipped(reason).into())
}

/// How a test ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Passed,
    Skipped,
    Failed,
}

/// Runs the tests, prints a table of them, and fails if one failed.
pub(crate) fn run(cache: &Cache, options: &Options) -> Result<()> {
    let guest_tests: &[&[Test]] = &[
        in_tree::TESTS,
        refused::TESTS,
        conformance::TESTS,
        restore::TESTS,
        hibernation::TESTS,
        checkpoint::TESTS,
        lifetime::TESTS,
        user_space::TESTS,
        firmware::TESTS,
        fuzz::TESTS,
        daemon::TESTS,
        client::TESTS,
        interop::TESTS,
        survival::TESTS,
        survival::LONG_TESTS,
        debug_kernel::MEMORY_TESTS,
        debug_kernel::RACE_TESTS,
        debug_kernel::REALTIME_TESTS,
        upstream::LONG_TESTS,
        arm64::TESTS,
    ];
    let groups = [checks::TESTS, host_daemon::TESTS, client::HOST_TESTS]
        .into_iter()
        .chain(guest_tests.iter().copied().filter(|_| !options.no_vm));
    let wanted = |test: &&Test| {
        let filter = options.filter.as_ref();
        (options.all || !test.is_long)
            && filter.is_none_or(|filter| test.name.contains(filter.as_str()))
    };
    let mut tests: Vec<&Test> = groups.flatten().filter(wanted).collect();
    if options.list {
        for test in tests {
            let mark = if test.is_long { " (long)" } else { "" };
            println!("{}{mark}", test.name);
        }
        return Ok(());
    }
    if tests.is_empty() {
        bail!("no test has such a name; cargo xtask test --list names them");
    }
    let mut passed = None;
    if options.all {
        let names = tests.iter().map(|test| test.name);
        let kept = passed.insert(Passed::open(cache, options.choice.kernel.as_deref()));
        if options.again {
            kept.forget(names)?;
        }
        let chosen = tests.len();
        tests.retain(|test| !kept.contains(test.name));
        let left_out = chosen - tests.len();
        if left_out > 0 {
            eprintln!(
                "{left_out} of {chosen} tests passed before, for this commit; --again runs them, too"
            );
        }
    }

    let context = Context::new(cache, options);
    let mut results = Vec::new();
    for (index, test) in tests.iter().enumerate() {
        let step = Step::start(&format!("[{}/{}] {}", index + 1, tests.len(), test.name));
        let started = Instant::now();
        let result = (test.run)(&context);
        let duration = started.elapsed();
        let end = match &result {
            Ok(()) => {
                step.done();
                if let Some(passed) = &mut passed {
                    passed.add(test.name)?;
                }
                End::Passed
            }
            Err(error) if error.is::<Skipped>() => {
                step.done();
                eprintln!("   {error:#}");
                End::Skipped
            }
            Err(error) => {
                step.failed();
                eprintln!("{error:#}\n");
                End::Failed
            }
        };
        results.push((test.name, end, duration));
    }
    summarise(&results)
}

fn summarise(results: &[(&str, End, Duration)]) -> Result<()> {
    let mut table = table::new(["test", "result", "seconds"]);
    for (name, end, duration) in results {
        table.add_row([
            (*name).to_owned(),
            match end {
                End::Passed => "ok",
                End::Skipped => "skipped",
                End::Failed => "FAILED",
            }
            .to_owned(),
            format!("{:.1}", duration.as_secs_f64()),
        ]);
    }
    table::align_right(&mut table, [2]);
    let count = |end: End| results.iter().filter(|result| result.1 == end).count();
    let failed = count(End::Failed);
    println!("\n{table}\n");
    if failed > 0 {
        // The reasons stand above; this is for whoever reads only the end.
        eprintln!("the logs of builds are in the cache folder, under logs/");
    }
    print!("{} passed, {failed} failed", count(End::Passed));
    match count(End::Skipped) {
        0 => println!(),
        skipped => println!(", {skipped} skipped"),
    }
    if failed > 0 {
        std::process::exit(1);
    }
    Ok(())
}
