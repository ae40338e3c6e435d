// SPDX-License-Identifier: MIT OR Apache-2.0

//! The four workflows.

use std::process::Command;

use sysgenid::{Acknowledged, Orchestrator, Tracking, Watcher};

use crate::program::Program;
use crate::{PATIENCE, bump_and_settle};

const ORCHESTRATOR: &str = env!("CARGO_BIN_EXE_orchestrator");

/// Signs with one secret in each generation, and has rebuilt it when it has acknowledged.
fn rebuilds_and_acknowledges(path: &str) {
    let (mut program, _) = Program::start(path, &[]);
    let mut before = program.ask("message");
    assert!(before.starts_with("signed "), "{before}");
    for _ in 0..3 {
        assert_eq!(program.ask("message"), before);
        let generation = bump_and_settle();
        assert_eq!(program.line(), format!("generation {generation}: rebuilt"));
        let after = program.ask("message");
        assert_ne!(after, before);
        before = after;
    }
}

#[test]
#[ignore = "needs a node"]
fn the_watchdog_thread_has_rebuilt_when_it_has_acknowledged() {
    rebuilds_and_acknowledges(env!("CARGO_BIN_EXE_watchdog-thread"));
}

#[test]
#[ignore = "needs a node"]
fn the_event_loop_has_rebuilt_when_it_has_acknowledged() {
    rebuilds_and_acknowledges(env!("CARGO_BIN_EXE_event-loop"));
}

#[test]
#[ignore = "needs a node"]
fn what_comes_in_after_a_restore_is_never_signed_by_the_event_loop_with_the_old_secret() {
    let (mut program, _) = Program::start(env!("CARGO_BIN_EXE_event-loop"), &[]);
    let orchestrator = Orchestrator::open().unwrap();
    let mut before = program.ask("message");
    for _ in 0..20 {
        // Nobody waits for it: the line and the change may be reported in one round.
        let generation = orchestrator.bump().unwrap();
        assert_eq!(
            program.ask("message"),
            format!("generation {generation}: rebuilt")
        );
        let after = program.line();
        assert_ne!(after, before);
        before = after;
    }
}

#[test]
#[ignore = "needs a node"]
fn the_cached_secrets_are_rebuilt_before_their_first_use_and_nobody_waits_for_them() {
    let (mut program, _) = Program::start(env!("CARGO_BIN_EXE_cached-secret"), &[]);
    let orchestrator = Orchestrator::open().unwrap();
    let mut sign = move || {
        let lines = [program.ask("message"), program.line()];
        lines.map(|line| {
            let (generation, signature) = line.split_once(": ").unwrap();
            (generation.to_owned(), signature.to_owned())
        })
    };
    let mut before = sign();
    for _ in 0..3 {
        assert_eq!(sign(), before);
        let generation = orchestrator.bump().unwrap();
        assert_eq!(orchestrator.outdated_watchers().unwrap(), 0);
        let after = sign();
        for (after, before) in after.iter().zip(&before) {
            assert_eq!(after.0, format!("generation {generation}"));
            assert_ne!(after.1, before.1);
        }
        before = after;
    }
}

#[test]
#[ignore = "needs a node"]
fn a_service_that_waits_for_all_others_resumes_only_when_the_last_has_acknowledged() {
    let late = Watcher::open(Tracking::Tracked).unwrap();
    let (program, _) = Program::start(ORCHESTRATOR, &["serve", "1"]);
    let orchestrator = Orchestrator::open().unwrap();
    let paused = |generation| format!("generation {generation}: paused and rebuilt");
    let waiting = |generation| format!("generation {generation}: 1 watchers are late, not serving");
    let resumed = |generation| format!("generation {generation}: everybody is done, resumed");

    let first = orchestrator.bump().unwrap();
    assert_eq!(program.line(), paused(first));
    assert_eq!(program.line(), waiting(first));
    // Another restore, while it waits for those who were late at the first.
    let second = orchestrator.bump().unwrap();
    assert_eq!(program.line(), paused(second));
    assert_eq!(program.line(), waiting(second));
    let acknowledged = late.wait().unwrap().acknowledge().unwrap();
    assert!(matches!(acknowledged, Acknowledged::Current));
    assert_eq!(program.line(), resumed(second));

    drop(late);
    let third = orchestrator.bump().unwrap();
    assert_eq!(program.line(), paused(third));
    assert_eq!(program.line(), resumed(third));
}

#[test]
#[ignore = "needs a node"]
fn the_restore_hook_passes_the_generation_of_the_snapshot_and_tells_by_its_status_who_is_late() {
    let restored = |in_snapshot: u32| {
        let output = Command::new(ORCHESTRATOR)
            .args(["restored", &in_snapshot.to_string(), "1"])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code(), text)
    };
    let watcher = Watcher::open(Tracking::Tracked).unwrap();
    let in_snapshot = watcher.generation().unwrap().get() + 5;
    assert_eq!(
        restored(in_snapshot),
        (Some(1), "1 watchers are late\n".into())
    );
    let change = watcher.wait_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!(change.generation().get(), in_snapshot + 1);
    drop((change, watcher));
    // The snapshot is older than the node is by now.
    let expected = format!("generation {}: everybody is done\n", in_snapshot + 2);
    assert_eq!(restored(in_snapshot), (Some(0), expected));
}
