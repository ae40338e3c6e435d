// SPDX-License-Identifier: MIT OR Apache-2.0

//! `cargo xtask test`: everything that CI checks, in one command.
//!
//! `checks` needs neither root nor network. The other files each prove one subject in guests.

mod checks;
mod conformance;
mod firmware;
mod guest;
mod in_tree;
mod lifetime;
mod restore;
mod user_space;

use std::cell::OnceCell;
use std::time::Duration;
use std::time::Instant;

use anyhow::Result;
use anyhow::bail;
use clap::Args;

use crate::cache::Cache;
use crate::environment::Environment;
use crate::kernel::Choice;
use crate::progress::Step;
use crate::table;

/// What to test.
#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    choice: Choice,
    /// Only the part that needs no root, no network and no guest
    #[arg(long)]
    no_vm: bool,
    /// Only the tests whose names contain this
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// Only print the tests' names
    #[arg(long)]
    list: bool,
}

/// One test: a name that says what it proves, and how.
pub(crate) struct Test {
    name: &'static str,
    run: fn(&Context<'_>) -> Result<()>,
}

impl Test {
    const fn new(name: &'static str, run: fn(&Context<'_>) -> Result<()>) -> Self {
        Self { name, run }
    }
}

/// What tests share.
pub(crate) struct Context<'a> {
    cache: &'a Cache,
    choice: &'a Choice,
    /// The reason if it could not be prepared, so that it is not tried again for each test.
    environment: OnceCell<Result<Environment, String>>,
}

impl Context<'_> {
    /// The tree, the kernel and the modules, prepared when the first test asks for them.
    pub(crate) fn environment(&self) -> Result<&Environment> {
        let prepared = self.environment.get_or_init(|| {
            Environment::with_driver(self.cache, self.choice).map_err(|error| format!("{error:#}"))
        });
        match prepared {
            Ok(environment) => Ok(environment),
            Err(reason) => bail!("no guest can be started: {reason}"),
        }
    }
}

/// Runs the tests, prints a table of them, and fails if one failed.
pub(crate) fn run(cache: &Cache, options: &Options) -> Result<()> {
    let guest_tests: &[&[Test]] = &[
        in_tree::TESTS,
        conformance::TESTS,
        restore::TESTS,
        lifetime::TESTS,
        user_space::TESTS,
        firmware::TESTS,
    ];
    let groups = std::iter::once(checks::TESTS)
        .chain(guest_tests.iter().copied().filter(|_| !options.no_vm));
    let wanted = |test: &&Test| {
        options
            .filter
            .as_ref()
            .is_none_or(|filter| test.name.contains(filter.as_str()))
    };
    let tests: Vec<&Test> = groups.flatten().filter(wanted).collect();
    if options.list {
        for test in tests {
            println!("{}", test.name);
        }
        return Ok(());
    }
    if tests.is_empty() {
        bail!("no test has such a name; cargo xtask test --list names them");
    }

    let context = Context {
        cache,
        choice: &options.choice,
        environment: OnceCell::new(),
    };
    let mut results = Vec::new();
    for (index, test) in tests.iter().enumerate() {
        let step = Step::start(&format!("[{}/{}] {}", index + 1, tests.len(), test.name));
        let started = Instant::now();
        let result = (test.run)(&context);
        let duration = started.elapsed();
        match &result {
            Ok(()) => step.done(),
            Err(error) => {
                step.failed();
                eprintln!("{error:#}\n");
            }
        }
        results.push((test.name, result.is_ok(), duration));
    }
    summarise(&results)
}

fn summarise(results: &[(&str, bool, Duration)]) -> Result<()> {
    let mut table = table::new(["test", "result", "seconds"]);
    for (name, passed, duration) in results {
        table.add_row([
            (*name).to_owned(),
            if *passed { "ok" } else { "FAILED" }.to_owned(),
            format!("{:.1}", duration.as_secs_f64()),
        ]);
    }
    table::align_right(&mut table, [2]);
    let failed = results.iter().filter(|(_, passed, _)| !passed).count();
    println!("\n{table}\n");
    if failed > 0 {
        // The reasons stand above; this is for whoever reads only the end.
        eprintln!("the logs of builds are in the cache folder, under logs/");
    }
    println!("{} passed, {failed} failed", results.len() - failed);
    if failed > 0 {
        std::process::exit(1);
    }
    Ok(())
}
