// SPDX-License-Identifier: MIT OR Apache-2.0

//! The service that runs hooks, as systemd runs it: the packaged units with `sysgenctl` and the daemon.
//!
//! The hooks are the tests' own, and say how they were run. What the packaged ones do is tested in `hooks.rs`.

use std::path::Path;

use anyhow::Context;
use anyhow::Result;
use serde::Deserialize;
use sysgenid_interop::Stage;
use sysgenid_interop::cue::Cue;
use sysgenid_interop::systemd;
use sysgenid_interop::systemd::COMMAND_LINE_PATH;
use sysgenid_interop::systemd::Machine;
use sysgenid_interop::systemd::SLEEPER;

const DAEMON: &str = "sysgenidd.service";
const HOOKS: &str = "sysgenid-hooks.service";
const SETTLED: &str = "sysgenid-settled.target";
const WAIT: &str = "sysgenid-settled.service";

/// The operator's hooks.
const FOLDER: &str = "/etc/sysgenid/hooks.d";

/// The packaged ones, of which a machine that runs this test may have some.
const PACKAGED_HOOKS: &str = "/usr/lib/sysgenid/hooks.d";

/// Where the service notes what it has dealt with.
const PROGRESS: &str = "/run/sysgenid-hooks/progress";

/// The end of a hook that fails until somebody has made this file.
const FAILS_UNTIL_MENDED: &str = "[ -e /run/mended ]";

/// How long `sysgenctl wait` may take. Only ever waited for in full where something is wrong.
const PATIENCE: &str = "60";

/// What `sysgenctl wait` returns when the time is over.
const TIME_IS_OVER: i32 = 3;

#[test]
#[ignore = "needs root and systemd"]
fn a_change_runs_the_hooks_and_the_target_is_reached_again_when_they_have_succeeded() {
    Stage::play(|stage| {
        let (machine, cue) = boot_with_held_hook(stage)?;
        assert_eq!(status(&machine)?, "waiting for a change of generation 0");
        machine.add_unit(
            "web.service",
            &format!("[Unit]\nWants={SETTLED}\nAfter={SETTLED}\nPartOf={SETTLED}\n{SLEEPER}"),
        )?;
        machine.systemctl(&["start", "web.service"])?;
        assert_eq!(machine.state(SETTLED)?, "active");

        let mut runs = Vec::new();
        for (previous, generation) in [(0, 1), (1, 2)] {
            let before = machine.invocations(&["web"])?;
            bump(&machine, generation)?;
            runs.push(format!("{generation} {previous} 1"));
            await_runs(&machine, "10-held", &runs)?;
            machine.wait_for_state(WAIT, "activating")?;
            machine.wait_for_state("web.service", "inactive")?;
            assert_eq!(machine.state(SETTLED)?, "inactive");
            assert_eq!(machine.state(HOOKS)?, "active");
            let running = format!("generation {generation}: running 10-held, attempt 1");
            await_status(&machine, &running)?;

            cue.give(&machine, 0)?;
            settle(&machine)?;
            let done = format!("generation {generation}: 1 hook succeeded; acknowledged");
            await_status(&machine, &done)?;
            assert_eq!(machine.state(HOOKS)?, "active");
            machine.wait_for_state("web.service", "active")?;
            assert_eq!(machine.state(SETTLED)?, "active");
            assert_ne!(machine.invocations(&["web"])?, before);
        }
        assert_eq!(hook_runs("10-held"), runs);
        Ok(())
    });
}

#[test]
#[ignore = "needs root and systemd"]
fn a_hook_that_fails_is_why_everybody_waits_until_it_is_mended() {
    Stage::play(|stage| {
        let machine = boot(stage)?;
        add_hook(stage, "10-fails", FAILS_UNTIL_MENDED)?;
        add_hook(stage, "20-works", "")?;
        machine.systemctl(&["start", HOOKS, SETTLED])?;

        bump(&machine, 1)?;
        await_status(&machine, "generation 1: failed: 10-fails; attempt ")?;
        assert_eq!(machine.state(HOOKS)?, "active");
        machine.wait_for_state(WAIT, "activating")?;
        let expected = [service(&machine)?];
        let waited = machine.output(
            Path::new(COMMAND_LINE_PATH),
            &["wait", "--timeout", "1", "--json"],
        )?;
        assert_eq!(waited.status.code(), Some(TIME_IS_OVER), "{waited:?}");
        let answer: Answer = serde_json::from_slice(&waited.stdout)?;
        assert_eq!(answer.late, expected);
        assert_eq!(late(&machine)?, expected);
        let table = sysgenctl(&machine, &["watchers", "--outdated"])?;
        assert!(table.contains(HOOKS), "{table}");
        assert_eq!(machine.state(SETTLED)?, "inactive");

        std::fs::write("/run/mended", "")?;
        settle(&machine)?;
        await_status(&machine, "generation 1: 2 hooks succeeded; acknowledged")?;
        machine.wait_for_state(SETTLED, "active")?;
        assert_eq!(late(&machine)?, []);
        let attempts = hook_runs("10-fails");
        let expected: Vec<_> = (1..=attempts.len())
            .map(|attempt| format!("1 0 {attempt}"))
            .collect();
        assert_eq!(attempts, expected);
        assert!(attempts.len() > 1, "{attempts:?}");
        assert_eq!(hook_runs("20-works"), ["1 0 1"]);
        Ok(())
    });
}

#[test]
#[ignore = "needs root and systemd"]
fn when_the_service_was_killed_the_hook_that_ran_ends_with_it_and_runs_again() {
    Stage::play(|stage| {
        let (machine, cue) = boot_with_held_hook(stage)?;
        machine.systemctl(&["start", SETTLED])?;
        bump(&machine, 1)?;
        await_runs(&machine, "10-held", &["1 0 1"])?;
        assert!(is_pending()?);

        machine.crash(HOOKS)?;

        assert_eq!(machine.state(HOOKS)?, "active");
        await_runs(&machine, "10-held", &["1 0 1"; 2])?;
        assert_is_said(UNFINISHED);
        assert_eq!(processes(&machine)?, 2, "the service, and one hook");
        assert!(is_pending()?);
        // The next process is a watcher that is current, and is waited for all the same.
        let list = self::list(&machine)?;
        assert!(list.watchers.is_empty() && list.hooks_pending, "{list:?}");
        machine.wait_for_state(WAIT, "activating")?;
        assert_ne!(machine.state(SETTLED)?, "active");
        cue.give(&machine, 0)?;
        await_status(&machine, "generation 1: 1 hook succeeded")?;
        machine.wait_for_state(SETTLED, "active")?;
        assert!(!self::list(&machine)?.hooks_pending);
        assert_nothing_is_pending(&machine)?;
        assert_eq!(hook_runs("10-held"), ["1 0 1"; 2]);
        Ok(())
    });
}

#[test]
#[ignore = "needs root and systemd"]
fn a_restart_of_the_service_ends_the_hook_that_runs_and_begins_it_anew() {
    Stage::play(|stage| {
        let (machine, cue) = boot_with_held_hook(stage)?;
        bump(&machine, 1)?;
        await_runs(&machine, "10-held", &["1 0 1"])?;

        machine.systemctl(&["restart", HOOKS])?;

        assert_is_said("generation 1: 10-held was ended");
        await_runs(&machine, "10-held", &["1 0 1"; 2])?;
        assert_is_said(UNFINISHED);
        // Another change meanwhile is dealt with as any other.
        bump(&machine, 2)?;
        cue.give(&machine, 0)?;
        await_status(&machine, "generation 2: running 10-held, attempt 1")?;
        assert_eq!(late(&machine)?, [service(&machine)?]);
        cue.give(&machine, 0)?;
        settle(&machine)?;
        await_status(&machine, "generation 2: 1 hook succeeded; acknowledged")?;
        assert_nothing_is_pending(&machine)
    });
}

#[test]
#[ignore = "needs root and systemd"]
fn a_change_while_the_service_is_stopped_is_dealt_with_when_it_is_started() {
    Stage::play(|stage| {
        let (machine, cue) = boot_with_held_hook(stage)?;
        machine.systemctl(&["start", SETTLED])?;
        machine.systemctl(&["stop", HOOKS])?;
        bump(&machine, 1)?;
        assert_eq!(machine.state(SETTLED)?, "active", "nobody was there to see");

        machine.systemctl(&["start", HOOKS])?;

        await_runs(&machine, "10-held", &["1 0 1"])?;
        machine.wait_for_state(WAIT, "activating")?;
        assert_ne!(machine.state(SETTLED)?, "active");
        cue.give(&machine, 0)?;
        await_status(&machine, "generation 1: 1 hook succeeded")?;
        machine.wait_for_state(SETTLED, "active")?;
        assert_nothing_is_pending(&machine)?;
        assert_eq!(hook_runs("10-held"), ["1 0 1"]);
        Ok(())
    });
}

#[test]
#[ignore = "needs root and systemd"]
fn a_hook_that_had_failed_is_tried_again_by_the_next_process_of_the_service() {
    Stage::play(|stage| {
        let machine = boot(stage)?;
        add_hook(stage, "10-fails", FAILS_UNTIL_MENDED)?;
        add_hook(stage, "20-works", "")?;
        machine.systemctl(&["start", HOOKS])?;
        bump(&machine, 1)?;
        let restarts: [fn(&Machine) -> Result<()>; 2] = [
            |machine| machine.systemctl(&["restart", HOOKS]).map(drop),
            |machine| machine.crash(HOOKS),
        ];
        for (runs, restart) in (1..).zip(restarts) {
            await_status(&machine, "generation 1: failed: 10-fails; attempt ")?;
            // Also what had succeeded runs again: only the change is noted.
            assert_eq!(hook_runs("20-works"), vec!["1 0 1"; runs]);
            assert_eq!(systemd::said().matches(UNFINISHED).count(), runs - 1);
            restart(&machine)?;
        }

        await_status(&machine, "generation 1: failed: 10-fails; attempt ")?;
        std::fs::write("/run/mended", "")?;
        await_status(&machine, "generation 1: 2 hooks succeeded")?;
        assert_eq!(hook_runs("20-works"), ["1 0 1"; 3]);
        assert_nothing_is_pending(&machine)?;

        bump(&machine, 2)?;
        settle(&machine)?;
        let last = hook_runs("10-fails").pop();
        assert_eq!(last.as_deref(), Some("2 1 1"));
        Ok(())
    });
}

#[test]
#[ignore = "needs root and systemd"]
fn the_service_goes_on_when_the_daemon_is_restarted_or_crashes() {
    Stage::play(|stage| {
        let (machine, cue) = boot_with_held_hook(stage)?;
        let main = machine.main_process(HOOKS)?;
        let takeovers: [fn(&Machine) -> Result<()>; 2] = [
            |machine| machine.systemctl(&["restart", DAEMON]).map(drop),
            |machine| machine.crash(DAEMON),
        ];
        let mut runs = Vec::new();
        for (generation, take_over) in (1..).zip(takeovers) {
            // While there is nothing to do, and while a hook runs.
            take_over(&machine)?;
            bump(&machine, generation)?;
            runs.push(format!("{generation} {} 1", generation - 1));
            await_runs(&machine, "10-held", &runs)?;
            take_over(&machine)?;
            // systemd counts starts, of which this test makes more than anybody who means well.
            machine.systemctl(&["reset-failed", DAEMON])?;
            assert_eq!(late(&machine)?, [service(&machine)?]);

            cue.give(&machine, 0)?;
            settle(&machine)?;
            let done = format!("generation {generation}: 1 hook succeeded; acknowledged");
            await_status(&machine, &done)?;
            assert_eq!(machine.state(HOOKS)?, "active");
            assert_eq!(machine.main_process(HOOKS)?, main);
        }
        assert_eq!(hook_runs("10-held"), runs);
        Ok(())
    });
}

#[test]
#[ignore = "needs root and systemd"]
fn when_the_daemon_was_stopped_and_is_back_the_same_process_runs_all_hooks() {
    Stage::play(|stage| {
        let machine = boot(stage)?;
        add_hook(stage, "10-works", "")?;
        machine.systemctl(&["start", HOOKS])?;
        let main = machine.main_process(HOOKS)?;
        bump(&machine, 1)?;
        settle(&machine)?;

        machine.systemctl(&["stop", DAEMON])?;
        machine.wait_until("the service notices", || {
            Ok(systemd::said().contains("waiting until it is back"))
        })?;
        assert_eq!(machine.state(HOOKS)?, "active");

        machine.systemctl(&["start", DAEMON])?;
        // Its end was a change, and so is that it is back.
        await_runs(&machine, "10-works", &["1 0 1", "3 1 1"])?;
        await_status(&machine, "generation 3: 1 hook succeeded; acknowledged")?;
        bump(&machine, 4)?;
        await_runs(&machine, "10-works", &["1 0 1", "3 1 1", "4 3 1"])?;
        settle(&machine)?;
        assert_eq!(machine.state(HOOKS)?, "active");
        assert_eq!(machine.main_process(HOOKS)?, main);
        Ok(())
    });
}

/// What the service says when it goes on with the first change.
const UNFINISHED: &str =
    "generation 1 was not dealt with before a restart: running all hooks for generation 1";

/// A machine with the daemon, with `sysgenctl`, and without hooks.
fn boot(stage: &Stage) -> Result<Machine> {
    systemd::install_command_line(stage)?;
    stage.lay_over("/var/lib")?;
    let machine = Machine::boot(stage)?;
    stage.folder(FOLDER)?;
    for (folder, own) in [(FOLDER, "/run/hooks"), (PACKAGED_HOOKS, "/run/no-hooks")] {
        if Path::new(folder).exists() {
            stage.bind(&stage.folder(own)?, Path::new(folder))?;
        }
    }
    machine.systemctl(&["start", DAEMON])?;
    Ok(machine)
}

/// The same with the service of hooks, which has one, "10-held", that ends at a cue.
fn boot_with_held_hook(stage: &Stage) -> Result<(Machine, Cue)> {
    let machine = boot(stage)?;
    let cue = Cue::new(stage, "hook")?;
    add_hook(stage, "10-held", &cue.script())?;
    machine.systemctl(&["start", HOOKS])?;
    Ok((machine, cue))
}

/// Writes a hook that says how it is run, and then does this.
fn add_hook(stage: &Stage, name: &str, script: &str) -> Result<()> {
    let text = format!(
        "#!/bin/sh\necho \"hook {name}: $SYSGENID_GENERATION $SYSGENID_PREVIOUS_GENERATION \
         $SYSGENID_ATTEMPT\"\n{script}\n"
    );
    stage.write_program(&Path::new(FOLDER).join(name), &text)
}

/// Of each run of a hook what it said: the generation, the previous one, and the attempt.
fn hook_runs(name: &str) -> Vec<String> {
    let prefix = format!("hook {name}: ");
    systemd::said()
        .lines()
        .filter_map(|line| line.strip_prefix(&prefix).map(str::to_owned))
        .collect()
}

fn await_runs(machine: &Machine, name: &str, runs: &[impl AsRef<str>]) -> Result<()> {
    let runs: Vec<_> = runs.iter().map(AsRef::as_ref).collect();
    machine.wait_until(&format!("{name} was run {runs:?}"), || {
        Ok(hook_runs(name) == runs)
    })
}

/// What the service says it does.
fn status(machine: &Machine) -> Result<String> {
    machine.property(HOOKS, "StatusText")
}

/// Waits until it says something that begins so.
fn await_status(machine: &Machine, start: &str) -> Result<()> {
    machine.wait_until(&format!("the status is {start:?}"), || {
        Ok(status(machine)?.starts_with(start))
    })
}

/// How many processes the service has.
fn processes(machine: &Machine) -> Result<usize> {
    let group: String = machine.property(HOOKS, "ControlGroup")?;
    let list = format!("/sys/fs/cgroup{group}/cgroup.procs");
    Ok(machine.run(Path::new("cat"), &[&list])?.lines().count())
}

/// Whether the service notes that it has something to deal with.
fn is_pending() -> Result<bool> {
    let progress = std::fs::read_to_string(PROGRESS)?;
    Ok(!progress.contains("\"pending\":null"))
}

/// The next start of the service runs nothing.
fn assert_nothing_is_pending(machine: &Machine) -> Result<()> {
    assert!(!is_pending()?);
    machine.systemctl(&["restart", HOOKS])?;
    let status = status(machine)?;
    assert!(
        status.starts_with("waiting for a change of generation "),
        "{status}"
    );
    Ok(())
}

fn assert_is_said(text: &str) {
    let said = systemd::said();
    assert!(said.contains(text), "{text:?} is not in:\n{said}");
}

fn sysgenctl(machine: &Machine, arguments: &[&str]) -> Result<String> {
    machine
        .run(Path::new(COMMAND_LINE_PATH), arguments)
        .with_context(|| format!("the services said:\n{}", systemd::said()))
}

/// Changes the generation, which becomes this one.
fn bump(machine: &Machine, generation: u32) -> Result<()> {
    let said = sysgenctl(machine, &["trigger"])?;
    assert_eq!(said, format!("generation {generation}"));
    Ok(())
}

/// Waits until everybody has acknowledged.
fn settle(machine: &Machine) -> Result<()> {
    sysgenctl(machine, &["wait", "--timeout", PATIENCE]).map(drop)
}

/// A watcher, as `sysgenctl` tells of it.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Watcher {
    pid: Option<u32>,
    unit: Option<String>,
}

/// What `sysgenctl wait` answers.
#[derive(Debug, Deserialize)]
struct Answer {
    late: Vec<Watcher>,
}

/// What `sysgenctl watchers` answers.
#[derive(Debug, Deserialize)]
struct List {
    watchers: Vec<Watcher>,
    hooks_pending: bool,
}

/// The service as a watcher.
fn service(machine: &Machine) -> Result<Watcher> {
    Ok(Watcher {
        pid: Some(machine.main_process(HOOKS)?),
        unit: Some(HOOKS.to_owned()),
    })
}

/// Whoever others wait for.
fn late(machine: &Machine) -> Result<Vec<Watcher>> {
    Ok(list(machine)?.watchers)
}

fn list(machine: &Machine) -> Result<List> {
    let answer = sysgenctl(machine, &["watchers", "--outdated", "--json"])?;
    Ok(serde_json::from_str(&answer)?)
}
