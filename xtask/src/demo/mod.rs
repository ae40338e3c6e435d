// SPDX-License-Identifier: MIT OR Apache-2.0

//! `cargo xtask demo`: two clones of one snapshot, without a front end and with one.

mod report;
mod resume;
mod scene;

use anyhow::Result;
use anyhow::bail;
use clap::Args;

use crate::cache::Cache;
use crate::demo::scene::Scene;
use crate::environment::Environment;
use crate::front_end::FrontEnd;
use crate::kernel::Choice;
use crate::programs::Programs;
use crate::vm;

/// How to run the demo.
#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    choice: Choice,
    /// What serves the nodes
    #[arg(long, value_enum, default_value_t = FrontEnd::Module)]
    front_end: FrontEnd,
    /// Leave the two clones running, with a shell on their consoles
    #[arg(long)]
    keep: bool,
    /// Print everything that was measured as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the demo and fails if it does not show what it is there to show.
pub(crate) fn run(cache: &Cache, options: &Options) -> Result<()> {
    if options.keep {
        for name in scene::CLONES {
            vm::refuse_if_running(cache, name)?;
        }
    }
    let programs = Programs::build(cache)?;
    let (without, with) = match options.front_end {
        FrontEnd::Module => {
            let with = Environment::with_driver_on_some_kernel(cache, &options.choice, &programs)?;
            (with.but_without_driver(cache)?, Some(with))
        }
        FrontEnd::Daemon => (
            Environment::without_driver(cache, &options.choice, &programs)?,
            None,
        ),
    };
    let with = with.as_ref().unwrap_or(&without);

    let unprotected = Scene::without(options.front_end, cache, &without)?;
    let protected = Scene::with(options.front_end, cache, with, options.keep)?;

    let faults: Vec<String> = unprotected
        .faults()
        .into_iter()
        .chain(protected.faults())
        .collect();
    if options.json {
        report::print_json(&unprotected, &protected, &faults)?;
    } else {
        report::print(&unprotected, &protected);
    }
    if options.keep {
        report::print_how_to_attach(&protected);
    }
    if !faults.is_empty() {
        bail!("the demo failed:\n    {}", faults.join("\n    "));
    }
    Ok(())
}
