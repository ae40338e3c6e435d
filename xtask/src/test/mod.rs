// SPDX-License-Identifier: MIT OR Apache-2.0

//! `cargo xtask test`: everything that CI checks, in one command.
//!
//! `checks` needs neither root nor network; `daemon::host`, and what of `client` runs on this machine, needs root, and
//! is skipped without. The other files each prove one subject, most of them in guests.

mod checks;
mod client;
mod context;
mod daemon;
mod guest;
mod known_limits;
mod module;
mod passed;
mod sighting;
mod suite;
mod upstream;

use std::time::Duration;
use std::time::Instant;

use anyhow::Result;
use anyhow::bail;
use clap::Args;

use crate::cache::Cache;
use crate::kernel::Choice;
use crate::progress::Step;
use crate::table;
pub(crate) use crate::test::context::Context;
use crate::test::module::fuzz::RandomCalls;
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
        module::in_tree::TESTS,
        module::refused::TESTS,
        module::conformance::TESTS,
        module::restore::TESTS,
        module::hibernation::TESTS,
        module::checkpoint::TESTS,
        module::lifetime::TESTS,
        module::user_space::TESTS,
        module::firmware::TESTS,
        module::fuzz::TESTS,
        daemon::guests::TESTS,
        client::TESTS,
        daemon::interop::TESTS,
        daemon::survival::TESTS,
        daemon::survival::LONG_TESTS,
        module::debug_kernel::MEMORY_TESTS,
        module::debug_kernel::RACE_TESTS,
        module::debug_kernel::REALTIME_TESTS,
        upstream::LONG_TESTS,
        module::arm64::TESTS,
    ];
    let groups = [checks::TESTS, daemon::host::TESTS, client::HOST_TESTS]
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
