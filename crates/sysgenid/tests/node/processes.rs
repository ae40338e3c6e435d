// SPDX-License-Identifier: MIT OR Apache-2.0

//! Forks and other programs.

use std::io::{Read as _, Write as _};
use std::process::Command;
use std::time::{Duration, Instant};

use sysgenid::{Acknowledged, Guarded, Probe};
use sysgenid_fixture::{Machine, PATIENCE, tracked};

use crate::in_child::Child;

#[test]
#[ignore = "needs a node"]
fn a_probe_is_live_in_a_forked_child() {
    let machine = Machine::new();
    let probe = Probe::open().unwrap();
    let mut child = Child::fork(|to_parent| {
        let started = Instant::now();
        // One of its own: the fork itself is a change.
        let stamp = probe.stamp();
        to_parent.write_all(b"!").unwrap();
        while !probe.has_changed(&stamp) {
            if started.elapsed() > PATIENCE {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    });
    child.says.read_exact(&mut [0]).unwrap();
    machine.bump();
    assert_eq!(child.status(), 0);
}

#[test]
#[ignore = "needs a node"]
fn a_guarded_value_is_rebuilt_in_a_forked_child() {
    let machine = Machine::new();
    let guarded = Guarded::new(Probe::open().unwrap(), |generation| generation);
    let before = *guarded.get();
    machine.bump();
    let child = Child::fork(|_| *guarded.get() == before.next());
    assert_eq!(child.status(), 0);
}

#[test]
#[ignore = "needs a node"]
fn after_a_fork_parent_and_child_have_the_same_watcher() {
    let machine = Machine::new();
    let watcher = tracked();
    let generation = machine.bump();
    let child = Child::fork(|_| {
        let change = watcher.try_changed().unwrap().expect("a change");
        matches!(change.acknowledge(), Ok(Acknowledged::Current))
    });
    assert_eq!(child.status(), 0);
    assert!(watcher.try_changed().unwrap().is_none());
    assert_eq!(watcher.generation().unwrap(), generation);
    machine.assert_outdated(0);
}

#[test]
#[ignore = "needs a node"]
fn a_program_that_is_executed_does_not_hold_the_watcher() {
    let machine = Machine::new();
    let watcher = tracked();
    let mut child = Command::new("sleep").arg("60").spawn().unwrap();
    machine.bump();
    drop(watcher);
    machine.assert_outdated(0);
    child.kill().unwrap();
    child.wait().unwrap();
}
