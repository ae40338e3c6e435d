// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a user is told who may not do something with a node.

use sysgenid_fixture::Daemon;

use crate::program::{Ended, run_as_nobody};

fn advice_of(doctor: &Ended, subject: &str) -> String {
    let diagnosis = doctor.json();
    let checks = diagnosis["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["subject"] == subject);
    let advice = check.unwrap_or_else(|| panic!("{subject}: {diagnosis}"))["advice"].as_str();
    advice.unwrap_or_default().to_owned()
}

#[test]
#[ignore = "needs a daemon"]
fn who_may_not_acknowledge_is_told_the_group_that_may() {
    let daemon = Daemon::with("[instances.host]\ngroup = 4711\n");
    let node = daemon.node();

    let exec = run_as_nobody(&["exec", "--node", &node, "--", "true"]).assert_code(1);
    assert!(exec.stderr.contains("the group 4711"), "{exec:?}");
    assert!(exec.stderr.contains("--untracked"), "{exec:?}");
    let hooks = run_as_nobody(&["run-hooks", "--node", &node]).assert_code(1);
    assert!(hooks.stderr.contains("the group 4711"), "{hooks:?}");
    for text in [&exec.stderr, &hooks.stderr] {
        assert!(!text.contains("being tracked"), "{text}");
    }
    assert!(!hooks.stderr.contains("--untracked"), "{hooks:?}");

    let doctor = run_as_nobody(&["doctor", "--json", "--node", &node]);
    let advice = advice_of(&doctor, "to acknowledge");
    assert!(advice.contains("the group 4711"), "{advice}");
}

#[test]
#[ignore = "needs a daemon"]
fn where_no_group_may_acknowledge_none_is_named() {
    // It is root's, who has no group for others.
    let daemon = Daemon::with("[instances.host]\ngroup = 0\n");
    let node = daemon.node();
    let exec = run_as_nobody(&["exec", "--node", &node, "--", "true"]).assert_code(1);
    assert!(exec.stderr.contains("run as root; with"), "{exec:?}");
    let doctor = run_as_nobody(&["doctor", "--json", "--node", &node]);
    let advice = advice_of(&doctor, "to acknowledge");
    assert!(advice.starts_with("no group may write to it"), "{advice}");
}

#[test]
#[ignore = "needs a daemon"]
fn who_may_not_even_read_is_told_the_group_that_may() {
    let config = "[instances.host]\ngroup = 4711\nsysgenid-mode = \"0660\"\n";
    let daemon = Daemon::with(config);
    let node = daemon.node();
    let status = run_as_nobody(&["status", "--node", &node]).assert_code(1);
    assert!(status.stderr.contains("the group 4711"), "{status:?}");
    let doctor = run_as_nobody(&["doctor", "--json", "--node", &node]).assert_code(1);
    let advice = advice_of(&doctor, "to be told");
    assert!(advice.contains("the group 4711"), "{advice}");
}
