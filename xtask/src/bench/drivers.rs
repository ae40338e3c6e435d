// SPDX-License-Identifier: MIT OR Apache-2.0

//! The module beside a plain C driver of the same contract, which is in `xtask/kernels/yardstick`.

use anyhow::Result;
use comfy_table::Table;
use sysgenid_guest::measurement::C_DRIVER;
use sysgenid_guest::measurement::C_DRIVER_WITHOUT_RESEED;
use sysgenid_guest::measurement::MODULE;
use sysgenid_guest::measurement::Measurement;

use crate::bench::Guest;
use crate::bench::Run;
use crate::bench::measure_by;
use crate::cache::Cache;
use crate::environment::Environment;
use crate::kernel::Choice;
use crate::programs::Programs;
use crate::progress::Step;
use crate::qemu::Machine;
use crate::qemu::PATIENCE;
use crate::qemu::Vm;
use crate::table;

/// Enough memory for as many watchers as are measured.
const MEMORY_MIB: u32 = 2048;

/// What the works are called in which it is measured how long a change takes that concerns very many, and
/// for how long it holds interrupts off. There is nothing in them to be quicker at: the kernel walks.
const INTERRUPTS: &str = "interrupts, ";

/// How much slower than the C driver the module may be, in hundredths.
const GOAL: u64 = 110;

/// Measures in one boot: with the events for udev, and without.
pub(super) fn measure(cache: &Cache, choice: &Choice, programs: &Programs) -> Result<Guest> {
    let environment = Environment::with_yardstick(cache, choice, programs)?;
    let folder = cache.temporary_folder()?;
    let step = Step::start("boot a guest");
    let machine = Machine {
        memory_mib: MEMORY_MIB,
        ..environment.machine_with_guid()?
    };
    let mut vm = Vm::boot(&environment.tree, &machine, folder.path())?;
    step.done();

    let mut runs = Vec::new();
    for (parameters, options) in [
        ("", ""),
        // Events have nothing to do with how the kernel walks.
        ("uevents=0", "--descriptors 0 --sleepers 0"),
    ] {
        let name = format!("sysgenid {parameters}").trim_end().to_owned();
        // The driver in C looks for the other when it is loaded.
        let load = format!("modprobe sysgenid {parameters} && modprobe yardstick");
        vm.run(&load, PATIENCE)?;
        let command = format!("sysgenid-guest bench-drivers {options}");
        let title = format!("measure {name} beside a driver in C");
        let measurements = measure_by(&mut vm, &title, &command)?;
        vm.run("rmmod yardstick && rmmod sysgenid", PATIENCE)?;
        runs.push(Run { name, measurements });
    }
    vm.power_off()?;
    Ok(Guest {
        kernel: environment.kernel.version.release,
        runs,
    })
}

/// Prints what was measured.
pub(super) fn print(guest: &Guest) {
    println!(
        "\nThe module beside a plain C driver, kernel {} in an emulated machine: median and 99th \
         percentile of one operation in ns; a ratio is to the C driver, sampled in turns with it.",
        guest.kernel
    );
    for run in &guest.runs {
        println!("\n{}:\n\n{}", run.name, table(&run.measurements));
        println!("\n{}", verdict(&run.measurements));
    }
}

/// A line for each work.
fn table(measurements: &[Measurement]) -> Table {
    let mut table = table::new(vec![
        "work",
        C_DRIVER,
        "p99",
        MODULE,
        "p99",
        "ratio",
        "of p99",
        C_DRIVER_WITHOUT_RESEED,
    ]);
    for (work, [driver, module]) in pairs(measurements) {
        let plain = find(measurements, &work, C_DRIVER_WITHOUT_RESEED);
        table.add_row([
            work,
            driver.median_ns.to_string(),
            driver.p99_ns.to_string(),
            module.median_ns.to_string(),
            module.p99_ns.to_string(),
            shown(hundredths(module.median_ns, driver.median_ns)),
            shown(hundredths(module.p99_ns, driver.p99_ns)),
            plain.map_or(String::new(), |plain| plain.median_ns.to_string()),
        ]);
    }
    table::align_right(&mut table, 1..8);
    table
}

/// Whether the module is as quick as it is to be, and where it is not.
fn verdict(measurements: &[Measurement]) -> String {
    let slow: Vec<String> = pairs(measurements)
        .into_iter()
        .filter(|(work, _)| !work.starts_with(INTERRUPTS))
        .filter_map(|(work, [driver, module])| {
            let ratio = hundredths(module.median_ns, driver.median_ns);
            (ratio > GOAL).then(|| format!("{work}: {}", shown(ratio)))
        })
        .collect();
    let what = format!("within {} x of the C driver at each work", shown(GOAL));
    if slow.is_empty() {
        format!("{what}: yes")
    } else {
        format!("{what}: no ({})", slow.join("; "))
    }
}

/// Each work, by the C driver and by the module.
fn pairs(measurements: &[Measurement]) -> Vec<(String, [&Measurement; 2])> {
    measurements
        .iter()
        .filter(|module| module.candidate == MODULE)
        .filter_map(|module| {
            let driver = find(measurements, &module.work, C_DRIVER)?;
            Some((module.work.clone(), [driver, module]))
        })
        .collect()
}

fn find<'a>(
    measurements: &'a [Measurement],
    work: &str,
    candidate: &str,
) -> Option<&'a Measurement> {
    measurements
        .iter()
        .find(|found| found.work == work && found.candidate == candidate)
}

/// A ratio, rounded.
fn hundredths(mine: u64, yardstick: u64) -> u64 {
    let yardstick = yardstick.max(1);
    (mine * 100 + yardstick / 2) / yardstick
}

fn shown(hundredths: u64) -> String {
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(work: &str, driver: u64, module: u64) -> [Measurement; 3] {
        [
            (C_DRIVER, driver),
            (MODULE, module),
            (C_DRIVER_WITHOUT_RESEED, 1),
        ]
        .map(|(candidate, median_ns)| Measurement {
            work: work.to_owned(),
            candidate: candidate.to_owned(),
            samples: 1,
            batch: 1,
            median_ns,
            p99_ns: 2 * median_ns,
        })
    }

    #[test]
    fn one_slow_work_is_enough_for_a_no() {
        let quick = [measured("read", 1000, 1104), measured("write", 100, 90)].concat();
        assert!(verdict(&quick).ends_with(": yes"));
        let slow = [measured("read", 1000, 1106), measured("write", 100, 90)].concat();
        assert!(verdict(&slow).ends_with(": no (read: 1.11)"));
    }

    #[test]
    fn how_the_kernel_walks_is_no_goal() {
        let slow = measured("interrupts, 10 asleep: the change", 100, 200);
        assert!(verdict(&slow).ends_with(": yes"));
    }

    #[test]
    fn a_ratio_is_to_the_driver_that_does_the_same() {
        let text = table(&measured("read", 200, 310)).to_string();
        assert!(text.contains("1.55") && !text.contains("310.00"), "{text}");
    }
}
