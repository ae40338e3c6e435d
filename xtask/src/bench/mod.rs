// SPDX-License-Identifier: MIT OR Apache-2.0

//! `cargo xtask bench`: the module and the daemon beside `eventfd` and `timerfd`, and the module beside a
//! plain C driver of the same contract, each in one boot; and the daemon on this machine, which is what it
//! is for.

mod drivers;
mod report;

use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use clap::Args;
use serde::Serialize;
use sysgenid_guest::measurement::Footprint;
use sysgenid_guest::measurement::Measurement;

use crate::cache::Cache;
use crate::environment::Environment;
use crate::front_end::FrontEnd;
use crate::host_daemon::HostDaemon;
use crate::kernel::Choice;
use crate::programs;
use crate::programs::Programs;
use crate::progress::Step;
use crate::qemu::PATIENCE;
use crate::qemu::Vm;

/// How long all measurements may take.
const LONG: Duration = Duration::from_secs(1800);

/// What the daemon is called in the results.
const DAEMON: &str = "sysgenidd";

/// With how many watchers the daemon is measured: each of their calls costs it a request, and what takes
/// long says no more than what takes short.
const MOST_WATCHERS_OF_THE_DAEMON: usize = 1000;

/// The daemon's configuration beside strangers: it permits them all, and has a container's instance.
const STRANGERS: &str = "
[backends]
use = []
[limits]
watchers = 200000
watchers-per-user = 200000
[instances.container]
";

/// How to measure.
#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    choice: Choice,
    /// Measure the daemon on this machine only, and start no guest
    #[arg(long, conflicts_with = "drivers_only")]
    host_only: bool,
    /// Measure the module beside a plain C driver of the same contract only
    #[arg(long)]
    drivers_only: bool,
    /// Print the measurements as JSON: `host`, `guest` and `drivers`, each null if it was not measured, and
    /// the `schema`, a number that changes when something in it goes or means something else
    #[arg(long)]
    json: bool,
}

/// The number of what is printed as JSON.
const SCHEMA: u32 = 1;

/// All that was measured.
#[derive(Serialize)]
struct Results {
    schema: u32,
    host: Option<Host>,
    guest: Option<Guest>,
    /// The module beside a plain C driver, with its events for udev and without.
    drivers: Option<Guest>,
}

/// What was measured on this machine.
#[derive(Serialize)]
struct Host {
    measurements: Vec<Measurement>,
    footprint: Footprint,
}

/// What was measured in a guest.
#[derive(Serialize)]
struct Guest {
    kernel: String,
    /// A run with each front end.
    runs: Vec<Run>,
}

/// One front end beside the yardsticks.
#[derive(Serialize)]
struct Run {
    /// What the front end is called among the candidates.
    name: String,
    measurements: Vec<Measurement>,
}

/// Measures and prints the results.
pub(crate) fn run(cache: &Cache, options: &Options) -> Result<()> {
    let programs = Programs::build(cache)?;
    let host = if options.drivers_only {
        None
    } else {
        measure_host_if_possible(cache, options, &programs)?
    };
    let guest = if options.host_only || options.drivers_only {
        None
    } else {
        Some(measure_guest(cache, options, &programs)?)
    };
    let drivers = if options.host_only {
        None
    } else {
        Some(drivers::measure(cache, &options.choice, &programs)?)
    };
    let results = Results {
        schema: SCHEMA,
        host,
        guest,
        drivers,
    };
    if options.json {
        println!("{}", serde_json::to_string_pretty(&results)?);
    } else {
        report::print(&results);
    }
    Ok(())
}

fn measure_host_if_possible(
    cache: &Cache,
    options: &Options,
    programs: &Programs,
) -> Result<Option<Host>> {
    match HostDaemon::cannot_run() {
        Some(reason) if options.host_only => bail!("the daemon cannot be measured here: {reason}"),
        Some(reason) => {
            eprintln!("the daemon is not measured on this machine: {reason}");
            Ok(None)
        }
        None => Ok(Some(measure_host(cache, programs)?)),
    }
}

fn measure_host(cache: &Cache, programs: &Programs) -> Result<Host> {
    let step = Step::start("measure what sysgenidd takes of this machine");
    let daemon = HostDaemon::start(cache, programs, "")?;
    let footprint = output(
        daemon
            .command(programs::GUEST)
            .arg("footprint")
            .arg(daemon.file("sysgenid"))
            .arg(daemon.pid().to_string()),
    )?;
    daemon.stop()?;
    step.done();

    let step = Step::start("measure sysgenidd on this machine");
    let daemon = HostDaemon::start(cache, programs, "")?;
    let measurements = output(
        daemon
            .command(programs::GUEST)
            .args(["bench", DAEMON, "--most-watchers"])
            .arg(MOST_WATCHERS_OF_THE_DAEMON.to_string())
            .arg("--node")
            .arg(daemon.file("sysgenid")),
    )?;
    daemon.stop()?;
    step.done();

    let step = Step::start("measure sysgenidd beside strangers");
    let daemon = HostDaemon::start(cache, programs, STRANGERS)?;
    let beside_strangers = output(
        daemon
            .command(programs::GUEST)
            .args(["strangers", DAEMON, "--daemon"])
            .arg(programs.file(programs::DAEMON))
            .arg("--directory")
            .arg(daemon.directory()),
    )?;
    daemon.stop()?;
    step.done();
    let mut measurements: Vec<Measurement> = serde_json::from_str(&measurements)?;
    measurements.extend(serde_json::from_str::<Vec<Measurement>>(&beside_strangers)?);
    Ok(Host {
        measurements,
        footprint: serde_json::from_str(&footprint)?,
    })
}

/// What a program prints to its standard output.
fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .context("cannot start nsenter")?;
    if !output.status.success() {
        bail!(
            "the benchmark ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn measure_guest(cache: &Cache, options: &Options, programs: &Programs) -> Result<Guest> {
    let environment = Environment::with_driver(cache, &options.choice, programs)?;
    let folder = cache.temporary_folder()?;
    let step = Step::start("boot a guest");
    let machine = environment.machine_with_guid()?;
    let mut vm = Vm::boot(&environment.tree, &machine, folder.path())?;
    step.done();

    // Announcing a change to udev costs more than the change, so both ways are measured.
    vm.run("modprobe sysgenid", PATIENCE)?;
    let mut runs = vec![measure(&mut vm, "sysgenid", "")?];
    vm.run("rmmod sysgenid && modprobe sysgenid uevents=0", PATIENCE)?;
    runs.push(measure(&mut vm, "sysgenid uevents=0", "")?);
    vm.run("rmmod sysgenid", PATIENCE)?;
    FrontEnd::Daemon.start(&mut vm)?;
    // A request of an emulated machine takes about a millisecond.
    let options = format!("--most-watchers {MOST_WATCHERS_OF_THE_DAEMON} --samples 30");
    runs.push(measure(&mut vm, DAEMON, &options)?);
    vm.power_off()?;
    Ok(Guest {
        kernel: environment.kernel.version.release,
        runs,
    })
}

fn measure(vm: &mut Vm, name: &str, options: &str) -> Result<Run> {
    let command = format!("sysgenid-guest bench '{name}' {options}");
    Ok(Run {
        name: name.to_owned(),
        measurements: measure_by(vm, &format!("measure {name}"), &command)?,
    })
}

/// Runs a benchmark in the guest, and returns what it printed.
fn measure_by(vm: &mut Vm, title: &str, command: &str) -> Result<Vec<Measurement>> {
    let mut step = Step::start(title);
    let mut output = String::new();
    let status = vm.agent.stream(command, LONG, &mut |text| {
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
