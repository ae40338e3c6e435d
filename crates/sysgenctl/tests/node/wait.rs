// SPDX-License-Identifier: MIT OR Apache-2.0

//! `sysgenctl wait`.

use rustix::process::Signal;
use sysgenid_fixture::{Machine, acknowledge, tracked};

use crate::program::{Program, json, run};

#[test]
#[ignore = "needs a node"]
fn wait_ends_at_once_where_nobody_is_late() {
    let machine = Machine::new();
    // It is no laggard itself, however often it opens the node.
    let generation = machine.bump();
    let text = run(&["wait"]).assert_code(0).stdout;
    assert_eq!(text, format!("everybody is in generation {generation}\n"));
    let answer = json(&["wait", "--json"]);
    assert_eq!(answer["settled"], true, "{answer}");
    assert_eq!(answer["generation"], generation.get(), "{answer}");
}

#[test]
#[ignore = "needs a node"]
fn wait_names_the_late_when_the_time_is_over() {
    let machine = Machine::new();
    let watcher = tracked();
    machine.bump();
    let pid = std::process::id();

    // Long enough to look several times who is late.
    let ended = run(&["wait", "--timeout", "1.5"]).assert_code(3);
    assert_eq!(ended.stderr.matches("waiting for").count(), 1, "{ended:?}");
    let row = format!("!  {pid} ");
    assert!(ended.stdout.contains(&row), "{ended:?}");
    assert!(
        ended.stderr.contains("1 watcher did not acknowledge"),
        "{ended:?}"
    );

    let ended = run(&["wait", "--timeout", "1ms", "--json"]).assert_code(3);
    let answer = ended.json();
    assert_eq!(answer["settled"], false, "{answer}");
    assert_eq!(answer["outdated"], 1, "{answer}");
    assert_eq!(answer["late"][0]["pid"], pid, "{answer}");
    acknowledge(&watcher);
}

#[test]
#[ignore = "needs a node"]
fn wait_says_in_a_pipe_who_is_late_once_and_again_when_that_changes() {
    let machine = Machine::new();
    let (first, second) = (tracked(), tracked());
    machine.bump();
    let pid = std::process::id();

    let mut wait = Program::start(&["wait"]);
    let line = wait.await_stderr("waiting for 2 watchers");
    assert_eq!(
        line.matches(&format!("process {pid} ")).count(),
        2,
        "{line}"
    );
    acknowledge(&first);
    let line = wait.await_stderr("waiting for 1 watcher");
    assert_eq!(
        line.matches(&format!("process {pid} ")).count(),
        1,
        "{line}"
    );
    acknowledge(&second);
    let ended = wait.end().assert_code(0);
    assert!(
        ended.stdout.starts_with("everybody is in generation"),
        "{ended:?}"
    );
    assert_eq!(ended.stderr.lines().count(), 2, "{ended:?}");
}

#[test]
#[ignore = "needs a node"]
fn wait_goes_on_for_the_latest_generation() {
    let machine = Machine::new();
    let watcher = tracked();
    machine.bump();
    let mut wait = Program::start(&["wait"]);
    wait.await_stderr("waiting for 1 watcher");
    let latest = machine.bump();
    assert_eq!(acknowledge(&watcher), latest);
    let ended = wait.end().assert_code(0);
    assert_eq!(
        ended.stdout,
        format!("everybody is in generation {latest}\n")
    );
}

#[test]
#[ignore = "needs a node"]
fn wait_can_be_interrupted() {
    let machine = Machine::new();
    let watcher = tracked();
    machine.bump();
    let mut wait = Program::start(&["wait"]);
    wait.await_stderr("waiting for");
    wait.signal(Signal::INT);
    assert_eq!(wait.end().signal, Some(Signal::INT.as_raw()));
    acknowledge(&watcher);
}
