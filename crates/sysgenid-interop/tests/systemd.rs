// SPDX-License-Identifier: MIT OR Apache-2.0

//! The packaged units, run by systemd.

use std::path::Path;

use anyhow::Context;
use anyhow::Result;
use rustix::io::Errno;
use sysgenid_interop::Stage;
use sysgenid_interop::conversation::Conversation;
use sysgenid_interop::conversation::Request;
use sysgenid_interop::conversation::Running;
use sysgenid_interop::load::Report;
use sysgenid_interop::node::Mapping;
use sysgenid_interop::systemd;
use sysgenid_interop::systemd::Machine;

const UNIT: &str = "sysgenidd.service";
const CLEAN: &str = "sysgenidd-clean.service";
const NODES: [&str; 2] = ["/dev/sysgenid", "/dev/vmgenid"];
const CLIENT: &str = "/run/bin/node-client";
const DIRECTORY: &str = "/run/sysgenid";

#[test]
#[ignore = "needs root and systemd"]
fn no_program_notices_that_systemd_restarts_the_daemon() {
    nobody_notices(|machine, restart| {
        let old = machine.main_process(UNIT)?;
        machine.systemctl(&["restart", UNIT])?;
        assert_ne!(machine.main_process(UNIT)?, old, "nothing was restarted");
        // It was not killed because it took too long: nobody would notice that either.
        let said = systemd::said();
        let handovers = said.matches("handing over to the next process").count();
        assert_eq!(handovers, restart, "{said}");
        Ok(())
    });
}

#[test]
#[ignore = "needs root and systemd"]
fn no_program_notices_that_the_daemon_crashes() {
    nobody_notices(|machine, _| {
        machine.crash(UNIT)?;
        assert_eq!(machine.state(UNIT)?, "active");
        Ok(())
    });
}

#[test]
#[ignore = "needs root and systemd"]
fn no_program_notices_that_somebody_terminates_the_daemon() {
    nobody_notices(|machine, _| {
        machine.signal(UNIT, "TERM")?;
        assert_eq!(machine.state(UNIT)?, "active");
        let result: String = machine.property(UNIT, "Result")?;
        assert_eq!(result, "success", "a hand-over is no failure");
        Ok(())
    });
}

#[test]
#[ignore = "needs root and systemd"]
fn no_program_notices_that_a_daemon_hangs_for_longer_than_the_watchdog_waits() {
    Stage::play(|stage| {
        let machine = Machine::boot(stage)?;
        // Shorter than the unit's, and long enough for a daemon that has something to do.
        let watchdog = "[Service]\nWatchdogSec=3\n";
        machine.add_unit("sysgenidd.service.d/watchdog.conf", watchdog)?;
        start(stage, &machine)?;
        let mut load = Load::start(&machine)?;
        let daemon = machine.main_process(UNIT)?;
        let heard = || machine.property::<u64>(UNIT, "WatchdogTimestampMonotonic");
        let first = heard()?;
        machine.wait_until("the daemon says that it lives", || Ok(heard()? > first))?;
        assert_eq!(machine.main_process(UNIT)?, daemon);
        let before = load.check()?;

        machine.signal(UNIT, "STOP")?;

        assert_eq!(machine.state(UNIT)?, "active");
        load.check_after_start(&machine, &before)
    });
}

#[test]
#[ignore = "needs root and systemd"]
fn a_stop_in_the_middle_of_a_start_ends_what_was_kept_for_it() {
    Stage::play(|stage| {
        let machine = start_service(stage)?;
        let (mut sleeper, _running) = start_sleeper(&machine, "read")?;
        let mapping = Mapping::open(Path::new("/dev/sysgenid"))?;
        let before = mapping.generation();
        let old = machine.main_process(UNIT)?;
        machine.delay_starts()?;
        machine.systemctl(&["restart", "--no-block", UNIT])?;
        machine.wait_until("the next daemon waits for its configuration", || {
            Ok(![0, old].contains(&machine.main_process(UNIT)?))
        })?;

        // Only that daemon waits, and not who cleans after it.
        machine.remove_configuration()?;
        machine.systemctl(&["stop", UNIT])?;

        let error: Option<i32> = sleeper.receive()?;
        assert_eq!(error, Some(Errno::CONNABORTED.raw_os_error()));
        machine.wait_until("neither mounts nor links are left", || {
            Ok(what_is_left(&machine)?.is_empty())
        })?;
        assert_ne!(mapping.generation(), before, "who maps the page is told");
        Ok(())
    });
}

#[test]
#[ignore = "needs root and systemd"]
fn who_opens_a_node_while_no_daemon_runs_waits_for_the_next() {
    Stage::play(|stage| {
        let machine = start_service(stage)?;
        let (mut reader, _reader) = start_sleeper(&machine, "read")?;
        let old = machine.main_process(UNIT)?;
        machine.delay_starts()?;
        machine.systemctl(&["restart", "--no-block", UNIT])?;
        machine.wait_until("the next daemon waits for its configuration", || {
            Ok(![0, old].contains(&machine.main_process(UNIT)?))
        })?;
        assert_eq!(machine.state(UNIT)?, "activating");
        let (mut opener, _opener) = start_sleeper(&machine, "open")?;

        machine.configure("")?;

        assert_eq!(opener.receive::<Option<i32>>()?, None);
        let bump = Path::new("/run/bin/watching-program");
        machine.run(bump, &["bump", "/dev/sysgenid"])?;
        assert_eq!(reader.receive::<Option<i32>>()?, None);
        Ok(())
    });
}

#[test]
#[ignore = "needs root and systemd"]
fn systemd_reloads_the_configuration_and_tells_of_a_fault_in_it() {
    Stage::play(|stage| {
        let machine = start_service(stage)?;
        let main = machine.main_process(UNIT)?;
        let mapping = Mapping::open(Path::new("/dev/sysgenid"))?;
        let instance = Path::new(DIRECTORY).join("web/sysgenid");
        assert!(!instance.exists());

        machine.configure("[instances.web]\n")?;
        machine.systemctl(&["reload", UNIT])?;
        assert!(instance.exists(), "the configured instance is not there");

        machine.configure("[instances.web]\nparent = \"nobody\"\n")?;
        let refused = machine
            .systemctl(&["reload", UNIT])
            .expect_err("systemd says that all is well with a faulty configuration");
        assert!(format!("{refused:#}").contains("nobody"), "{refused:#}");
        assert_eq!(machine.state(UNIT)?, "active");
        assert!(
            instance.exists(),
            "a faulty configuration changed something"
        );

        machine.configure("")?;
        machine.systemctl(&["reload", UNIT])?;
        assert!(
            !instance.exists(),
            "the instance is not configured any more"
        );

        assert_eq!(machine.main_process(UNIT)?, main, "a reload is no restart");
        assert_eq!(mapping.generation(), 0);
        Ok(())
    });
}

#[test]
#[ignore = "needs root and systemd"]
fn a_stop_by_systemd_wakes_who_sleeps_and_leaves_nothing_behind() {
    Stage::play(|stage| {
        let machine = start_service(stage)?;
        let (mut sleeper, _running) = start_sleeper(&machine, "read")?;
        let mapping = Mapping::open(Path::new("/dev/sysgenid"))?;
        let before = mapping.generation();

        machine.systemctl(&["stop", UNIT])?;

        let error: Option<i32> = sleeper.receive()?;
        assert_eq!(error, Some(Errno::NODEV.raw_os_error()));
        assert_eq!(machine.state(UNIT)?, "inactive");
        assert_eq!(what_is_left(&machine)?, [""; 0]);

        check_that_a_mapping_goes_on(&machine, &mapping, before)
    });
}

#[test]
#[ignore = "needs root and systemd"]
fn a_daemon_that_cannot_stay_up_is_given_up_and_cleaned_up_after() {
    Stage::play(|stage| {
        let machine = start_service(stage)?;
        let (mut sleeper, _running) = start_sleeper(&machine, "read")?;
        let mapping = Mapping::open(Path::new("/dev/sysgenid"))?;
        let before = mapping.generation();

        // The first start counts, too.
        let mut crashes = 0;
        while machine.state(UNIT)? != "failed" {
            assert!(crashes < 5, "systemd starts it for ever");
            machine.crash(UNIT)?;
            crashes += 1;
        }
        let result: String = machine.property(UNIT, "Result")?;
        assert_eq!((crashes, result.as_str()), (5, "signal"));

        let error: Option<i32> = sleeper.receive()?;
        assert_eq!(error, Some(Errno::CONNABORTED.raw_os_error()));
        machine.wait_until("neither mounts nor links are left", || {
            Ok(what_is_left(&machine)?.is_empty())
        })?;
        machine.wait_until("cleaning has ended", || {
            Ok(machine.state(CLEAN)? == "inactive")
        })?;
        let result: String = machine.property(CLEAN, "Result")?;
        assert_eq!(result, "success");

        // Once somebody has mended it.
        machine.systemctl(&["reset-failed", UNIT])?;
        check_that_a_mapping_goes_on(&machine, &mapping, before)
    });
}

/// A mapping was told of the end of the service, and is the page of the one that is started now.
fn check_that_a_mapping_goes_on(machine: &Machine, mapping: &Mapping, before: u32) -> Result<()> {
    let ended = mapping.generation();
    assert!(ended > before, "who maps the page is told of the end");
    machine.systemctl(&["start", UNIT])?;
    let again = Mapping::open(Path::new("/dev/sysgenid"))?.generation();
    assert!(again > ended, "a generation never comes again");
    assert_eq!(mapping.generation(), again);
    Ok(())
}

/// Boots a machine, and starts the daemon there. The programs of the tests are in `/run/bin`.
fn start_service(stage: &Stage) -> Result<Machine> {
    let machine = Machine::boot(stage)?;
    start(stage, &machine)?;
    Ok(machine)
}

/// Starts the daemon on a machine.
fn start(stage: &Stage, machine: &Machine) -> Result<()> {
    machine.systemctl(&["start", UNIT])?;
    stage.install(env!("CARGO_BIN_EXE_node-client"))?;
    stage.install(env!("CARGO_BIN_EXE_watching-program"))?;
    Ok(())
}

/// The mounts and links of a daemon that should have left none.
fn what_is_left(machine: &Machine) -> Result<Vec<String>> {
    let mut left = machine.mounts()?;
    for node in NODES {
        if std::fs::symlink_metadata(node).is_ok() {
            left.push(node.to_owned());
        }
    }
    Ok(left)
}

/// A program that sleeps in a call on a node.
fn start_sleeper(machine: &Machine, call: &str) -> Result<(Conversation, Running)> {
    let arguments = ["sleep", "/dev/sysgenid", "--in", call];
    let (mut sleeper, running) = machine.start(Path::new(CLIENT), &arguments)?;
    let asleep: Option<i32> = sleeper.receive()?;
    assert_eq!(asleep, None);
    Ok((sleeper, running))
}

/// A program that puts the nodes under load, and what it has reported.
struct Load {
    program: Conversation,
    _running: Running,
}

/// Has the daemon started anew twenty times by `act`, which is told how often it was called, under load.
fn nobody_notices(act: impl Fn(&Machine, usize) -> Result<()> + Send + 'static) {
    Stage::play(move |stage| {
        let machine = start_service(stage)?;
        let mut load = Load::start(&machine)?;
        for time in 1..=20 {
            let before = load.check()?;
            act(&machine, time)?;
            load.check_after_start(&machine, &before)?;
        }
        Ok(())
    });
}

impl Load {
    fn start(machine: &Machine) -> Result<Self> {
        let (program, running) = machine.start(Path::new(CLIENT), &["load"])?;
        Ok(Self {
            program,
            _running: running,
        })
    }

    /// Nothing has failed, nothing was lost, nothing was done twice.
    fn check(&mut self) -> Result<Report> {
        let report: Report = self
            .program
            .ask(Request::Now)
            .context("the load has come to a halt")?;
        assert_eq!(report.faults, [""; 0]);
        assert_eq!(report.generation, report.triggers);
        for (watcher, seen) in &report.seen {
            assert_eq!(*seen, report.triggers, "{watcher}");
        }
        Ok(report)
    }

    /// The same after the daemon was started anew, and that the load goes on.
    fn check_after_start(&mut self, machine: &Machine, before: &Report) -> Result<()> {
        // systemd counts starts, of which this test makes more than anybody who means well.
        machine.systemctl(&["reset-failed", UNIT])?;
        loop {
            let now = self.check()?;
            if now.triggers >= before.triggers + 2 && now.glances >= before.glances + 2 {
                return Ok(());
            }
        }
    }
}
