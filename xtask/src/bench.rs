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
use crate::programs::Programs;
use crate::progress::Step;
use crate::qemu::Vm;
use crate::table;

/// How long all measurements may take.
const PATIENCE: Duration = Duration::from_secs(1800);

/// The yardstick of the short calls, and the two works that are held against it; the names are the
/// benchmark's.
const EVENTFD_READ: &str = "eventfd read";
const COUNT: &str = "ioctl GET_OUTDATED_WATCHERS";
const READ: &str = "non-blocking read, nothing new";

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
    let environment = Environment::with_driver(cache, &options.choice, &Programs::build(cache)?)?;
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
    println!("{}", verdict(results));
}

/// Whether the short calls take about as long as an eventfd's non-blocking read.
fn verdict(results: &[Measurement]) -> String {
    let beside_eventfd = |work: &str| {
        let median = |is_eventfd: bool| {
            let of_work = |result: &&Measurement| {
                result.work == work && (result.candidate == EVENTFD_READ) == is_eventfd
            };
            let not_timerfd = |result: &&Measurement| !result.candidate.starts_with("timerfd");
            results
                .iter()
                .filter(of_work)
                .find(not_timerfd)
                .map(|result| result.median_ns)
        };
        Some((median(false)?, median(true)?.max(1)))
    };
    let (Some(count), Some(read)) = (beside_eventfd(COUNT), beside_eventfd(READ)) else {
        return "within 1.2 x of an eventfd read: not measured".to_owned();
    };
    let is_within = |(mine, yardstick): (u64, u64)| mine * 10 <= yardstick * 12;
    format!(
        "within 1.2 x of an eventfd read: {} (ioctl {}, read {})",
        if is_within(count) && is_within(read) {
            "yes"
        } else {
            "no"
        },
        ratio(count.0, count.1),
        ratio(read.0, read.1)
    )
}

// Times of single operations are far below what a float holds exactly.
#[allow(clippy::cast_precision_loss)]
fn ratio(median_ns: u64, yardstick_ns: u64) -> String {
    format!("{:.2}", median_ns as f64 / yardstick_ns as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(work: &str, yardstick: u64, mine: u64) -> [Measurement; 3] {
        [
            (EVENTFD_READ, yardstick),
            ("timerfd read", 1),
            ("sysgenid", mine),
        ]
        .map(|(candidate, median_ns)| Measurement {
            work: work.to_owned(),
            candidate: candidate.to_owned(),
            samples: 1,
            batch: 1,
            median_ns,
            p99_ns: median_ns,
        })
    }

    #[test]
    fn one_slow_call_is_enough_for_a_no() {
        let quick = [measured(COUNT, 100, 120), measured(READ, 100, 103)].concat();
        assert!(verdict(&quick).ends_with("yes (ioctl 1.20, read 1.03)"));
        let slow = [measured(COUNT, 100, 121), measured(READ, 100, 103)].concat();
        assert!(verdict(&slow).ends_with("no (ioctl 1.21, read 1.03)"));
    }
}
