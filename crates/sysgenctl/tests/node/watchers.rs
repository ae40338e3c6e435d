// SPDX-License-Identifier: MIT OR Apache-2.0

//! `sysgenctl watchers`.

use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use serde_json::Value;
use sysgenid_fixture::{Machine, acknowledge, tracked};

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
    assert_eq!(text, "no watcher is late, as far as can be seen\n");
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

#[test]
#[ignore = "needs a node"]
fn two_descriptors_of_one_watcher_are_not_taken_for_two_watchers() {
    let machine = Machine::new();
    let watcher = tracked();
    let other = watcher.as_fd().try_clone_to_owned().unwrap();
    machine.bump();
    let list = json(&["watchers", "--outdated", "--json"]);
    assert_eq!(list["outdated"], 1, "{list}");
    let seen = of_process(&list, std::process::id());
    for fd in [watcher.as_raw_fd(), other.as_raw_fd()] {
        let fd = Value::from(fd);
        let is_named = |seen: &&Value| seen["fds"].as_array().unwrap().contains(&fd);
        assert!(seen.iter().any(is_named), "{fd}: {list}");
    }
    // The daemon knows its watchers, the module shows descriptors: then it is said.
    let ended = run(&["watchers"]).assert_code(0);
    let says = ended.stderr.contains("stand for 1 watcher: some share one");
    assert_eq!(says, seen.len() == 2, "{ended:?}");
    acknowledge(&watcher);
}

#[test]
#[ignore = "needs a node"]
fn a_laggard_without_a_descriptor_is_counted_even_if_it_cannot_be_seen() {
    const LENGTH: usize = 4;
    let machine = Machine::new();
    let watcher = tracked();
    // SAFETY: It is a new mapping, of which no reference is made.
    let mapping = unsafe {
        mmap(
            ptr::null_mut(),
            LENGTH,
            ProtFlags::READ,
            MapFlags::SHARED,
            &watcher,
            0,
        )
    };
    let mapping = mapping.unwrap();
    drop(watcher);
    machine.bump();
    // The daemon's mapping may be of its page, and keep no watcher.
    let outdated = machine.outdated();
    let list = json(&["watchers", "--outdated", "--json"]);
    let seen = list["watchers"].as_array().unwrap().len();
    let unseen = list["unseen"].as_u64().unwrap();
    assert_eq!(seen as u64 + unseen, u64::from(outdated), "{list}");
    let ended = run(&["wait", "--timeout", "300ms"]);
    assert_eq!(
        ended.code,
        Some(if outdated == 0 { 0 } else { 3 }),
        "{ended:?}"
    );
    let says = ended.stderr.contains("1 more outdated cannot be seen");
    assert_eq!(says, unseen == 1, "{ended:?}");
    // SAFETY: It is that mapping, which nobody uses.
    unsafe { munmap(mapping, LENGTH) }.unwrap();
}
