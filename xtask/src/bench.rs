// SPDX-License-Identifier: MIT OR Apache-2.0

//! `cargo xtask bench`: the module beside `eventfd` and `timerfd`, in one boot.

use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use clap::Args;
use sysgenid_guest::measurement::Measurement;

use crate::cache::Cache;
use crate::environment::Environment;
use crate::kernel::Choice;
use crate::progress::Step;
use crate::qemu::Vm;
use crate::table;

/// How long all measurements may take.
const PATIENCE: Duration = Duration::from_secs(1800);

/// How to measure.
#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    choice: Choice,
    /// Print the measurements as JSON
    #[arg(long)]
    json: bool,
}

/// Measures in a guest and prints the results.
pub(crate) fn run(cache: &Cache, options: &Options) -> Result<()> {
    let environment = Environment::with_driver(cache, &options.choice)?;
    let folder = cache.temporary_folder()?;
    let step = Step::start("boot a guest");
    let machine = environment.machine_with_guid()?;
    let mut vm = Vm::boot(&environment.tree, &machine, folder.path())?;
    step.done();

    // Announcing a change to udev costs more than the change, so both ways are measured.
    let mut results = measure(&mut vm, "sysgenid", "modprobe sysgenid")?;
    results.extend(measure(
        &mut vm,
        "sysgenid uevents=0",
        "rmmod sysgenid && modprobe sysgenid uevents=0",
    )?);
    vm.power_off()?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&results)?);
    } else {
        print(&results, &environment.kernel.version.release);
    }
    Ok(())
}

fn measure(vm: &mut Vm, name: &str, load: &str) -> Result<Vec<Measurement>> {
    vm.run(load, PATIENCE)?;
    let mut step = Step::start(&format!("measure {name}"));
    let mut output = String::new();
    let command = format!("sysgenid-guest bench '{name}'");
    let status = vm.agent.stream(&command, PATIENCE, &mut |text| {
        step.show(text.lines().last().unwrap_or_default());
        output.push_str(text);
    })?;
    if status != 0 {
        step.failed();
        bail!("the benchmark ended with status {status}:\n{output}");
    }
    step.done();
    let line = output.lines().find(|line| line.starts_with('['));
    let line = line.context("the benchmark printed no results")?;
    Ok(serde_json::from_str(line)?)
}

fn print(results: &[Measurement], release: &str) {
    println!(
        "\nKernel {release} in an emulated machine: compare the numbers with each other, not with \
         those of hardware.\nTimes of one operation; the ratio is to the first candidate's median.\n"
    );
    let mut table = table::new([
        "work",
        "candidate",
        "median ns",
        "p99 ns",
        "ratio",
        "samples",
    ]);
    let mut work = "";
    let mut yardstick = 1;
    for result in results {
        let is_first = result.work != work;
        if is_first {
            work = &result.work;
            yardstick = result.median_ns.max(1);
        }
        table.add_row([
            if is_first { work } else { "" }.to_owned(),
            result.candidate.clone(),
            result.median_ns.to_string(),
            result.p99_ns.to_string(),
            ratio(result.median_ns, yardstick),
            format!("{} x {}", result.samples, result.batch),
        ]);
    }
    table::align_right(&mut table, 2..=5);
    println!("{table}");
}

// Times of single operations are far below what a float holds exactly.
#[allow(clippy::cast_precision_loss)]
fn ratio(median_ns: u64, yardstick_ns: u64) -> String {
    format!("{:.2}", median_ns as f64 / yardstick_ns as f64)
}
