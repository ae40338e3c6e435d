// SPDX-License-Identifier: MIT OR Apache-2.0

//! `sysgenctl watchers`.

use std::os::fd::AsRawFd;

use serde_json::Value;

use crate::machine::{Machine, acknowledge, tracked};
use crate::program::{json, run};

/// What is listed of a process.
pub(crate) fn of_process(list: &Value, pid: u32) -> Vec<&Value> {
    let all = list["watchers"].as_array().unwrap().iter();
    all.filter(|seen| seen["pid"] == pid).collect()
}

#[test]
#[ignore = "needs a node"]
fn watchers_names_a_laggard_with_its_descriptor_and_its_generation() {
    let machine = Machine::new();
    let watcher = tracked();
    let acknowledged = machine.generation();
    machine.bump();
    machine.bump();
    let pid = std::process::id();

    let list = json(&["watchers", "--json"]);
    assert_eq!(list["generation"], machine.generation().get(), "{list}");
    assert_eq!(
        (&list["outdated"], &list["unseen"]),
        (&1.into(), &0.into()),
        "{list}"
    );
    let first = &list["watchers"][0];
    assert_eq!(first["pid"], pid, "the late come first: {list}");
    assert_eq!(first["tracked"], true, "{list}");
    assert_eq!(first["outdated"], true, "{list}");
    assert_eq!(first["acknowledged"], acknowledged.get(), "{list}");
    let seconds = first["outdated_seconds"].as_f64().unwrap();
    assert!((0.0..30.0).contains(&seconds), "{list}");
    let fds = first["fds"].as_array().unwrap();
    assert!(fds.contains(&watcher.as_raw_fd().into()), "{list}");
    let name = std::fs::read_to_string("/proc/self/comm").unwrap();
    assert_eq!(first["command"], name.trim_end(), "{list}");

    let text = run(&["watchers"]).assert_code(0).stdout;
    let mut lines = text.lines();
    assert!(lines.next().unwrap().contains("ACKNOWLEDGED"), "{text}");
    assert!(
        lines.next().unwrap().starts_with(&format!("!  {pid} ")),
        "{text}"
    );

    acknowledge(&watcher);
    let list = json(&["watchers", "--json"]);
    let seen = of_process(&list, pid);
    let current = seen.iter().find(|seen| seen["tracked"] == true).unwrap();
    assert_eq!(current["outdated"], false, "{list}");
    assert_eq!(current["outdated_seconds"], Value::Null, "{list}");
    assert_eq!(
        current["acknowledged"],
        machine.generation().get(),
        "{list}"
    );
}

#[test]
#[ignore = "needs a node"]
fn watchers_can_be_limited_to_the_late() {
    let machine = Machine::new();
    let (late, other) = (tracked(), tracked());
    machine.bump();
    acknowledge(&other);
    let list = json(&["watchers", "--outdated", "--json"]);
    assert_eq!(list["watchers"].as_array().unwrap().len(), 1, "{list}");
    let text = run(&["watchers", "--outdated"]).assert_code(0).stdout;
    assert_eq!(text.lines().count(), 2, "{text}");
    acknowledge(&late);
    let text = run(&["watchers", "--outdated"]).assert_code(0).stdout;
    assert_eq!(text, "");
}

#[test]
#[ignore = "needs a node"]
fn several_watchers_of_a_process_are_all_listed() {
    let machine = Machine::new();
    let watchers = [tracked(), tracked(), tracked()];
    machine.bump();
    let list = json(&["watchers", "--outdated", "--json"]);
    let seen = of_process(&list, std::process::id());
    assert_eq!(seen.len(), 3, "{list}");
    for watcher in &watchers {
        let fd = Value::from(watcher.as_raw_fd());
        let is_named = |seen: &&Value| seen["fds"].as_array().unwrap().contains(&fd);
        assert!(seen.iter().any(is_named), "{fd}: {list}");
    }
    for watcher in &watchers {
        acknowledge(watcher);
    }
}
