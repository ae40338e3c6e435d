// SPDX-License-Identifier: MIT OR Apache-2.0

//! `sysgenctl trigger`.

use sysgenid_fixture::{Machine, acknowledge, tracked};

use crate::program::{Program, json, run, run_as_nobody};

#[test]
#[ignore = "needs a node"]
fn trigger_changes_the_generation_and_prints_it() {
    let machine = Machine::new();
    let next = machine.generation().next();
    let text = run(&["trigger"]).assert_code(0).stdout;
    assert_eq!(text, format!("generation {next}\n"));
    assert_eq!(machine.generation(), next);
}

#[test]
#[ignore = "needs a node"]
fn trigger_keeps_a_minimum() {
    let machine = Machine::new();
    let minimum = machine.generation().get() + 5;
    let answer = json(&["trigger", "--min", &minimum.to_string(), "--json"]);
    assert_eq!(answer["generation"], minimum, "{answer}");
    // One that is behind is no minimum.
    let answer = json(&["trigger", "--min", "1", "--json"]);
    assert_eq!(answer["generation"], minimum + 1, "{answer}");
    assert_eq!(machine.generation().get(), minimum + 1);
}

#[test]
#[ignore = "needs a node"]
fn trigger_waits_for_everybody_where_it_is_asked_to() {
    let machine = Machine::new();
    let watcher = tracked();
    let ended = run(&["trigger", "--wait", "--timeout", "200ms"]).assert_code(3);
    assert!(
        ended.stdout.contains(&std::process::id().to_string()),
        "{ended:?}"
    );
    acknowledge(&watcher);

    let mut trigger = Program::start(&["trigger", "--wait"]);
    trigger.await_stdout("generation");
    let generation = acknowledge(&watcher);
    let ended = trigger.end().assert_code(0);
    let settled = format!("everybody is in generation {generation}");
    assert!(ended.stdout.contains(&settled), "{ended:?}");
    assert_eq!(machine.outdated(), 0);
}

#[test]
#[ignore = "needs a node"]
fn who_may_not_change_the_generation_is_told_what_it_takes() {
    let machine = Machine::new();
    let generation = machine.generation();
    let ended = run_as_nobody(&["trigger"]).assert_code(1);
    // Of a node that not everybody may read the permission is what is missing first.
    let says = |text| ended.stderr.contains(text);
    assert!(
        says("CAP_CHECKPOINT_RESTORE") || says("no permission"),
        "{ended:?}"
    );
    assert_eq!(machine.generation(), generation);
}
