// SPDX-License-Identifier: MIT OR Apache-2.0

//! `sysgenctl doctor`.

use rustix::process::Signal;
use serde_json::Value;
use sysgenid_fixture::{Daemon, Machine};

use crate::program::{Program, run, sysgenctl};

fn check<'a>(diagnosis: &'a Value, subject: &str) -> &'a Value {
    let checks = diagnosis["checks"].as_array().unwrap();
    let found = checks.iter().find(|check| check["subject"] == subject);
    found.unwrap_or_else(|| panic!("{subject}: {diagnosis}"))
}

#[test]
#[ignore = "needs a node"]
fn the_exit_code_of_doctor_is_its_answer() {
    let machine = Machine::new();
    let ended = run(&["doctor", "--json"]);
    let diagnosis = ended.json();
    let told = diagnosis["told"].as_bool().unwrap();
    assert_eq!(ended.code, Some(if told { 0 } else { 1 }), "{ended:?}");
    let verdict = |subject: &str| check(&diagnosis, subject)["verdict"].clone();
    for subject in ["kernel", "node", "to be told", "to acknowledge"] {
        assert_eq!(verdict(subject), "ok", "{diagnosis}");
    }
    // Whether anything notices restores is the machine's own affair, but it decides.
    assert_eq!(verdict("noticed by") == "ok", told, "{diagnosis}");

    let text = run(&["doctor"]).assert_code(i32::from(!told)).stdout;
    let answer = if told {
        "would be told"
    } else {
        "would not be told"
    };
    assert!(text.contains(answer), "{text}");
    drop(machine);
}

#[test]
#[ignore = "needs a node"]
fn doctor_says_what_has_named_a_node_that_is_not_there() {
    let machine = Machine::new();
    let missing = machine.file("missing");
    let mut by_option = sysgenctl(&["doctor", "--json", "--node"]);
    by_option.arg(&missing);
    let mut by_variable = sysgenctl(&["doctor", "--json"]);
    by_variable.env("SYSGENID_PATH", &missing);
    for (command, name) in [
        (&mut by_option, "--node"),
        (&mut by_variable, "SYSGENID_PATH"),
    ] {
        let diagnosis = Program::of(command).end().assert_code(1).json();
        assert_eq!(diagnosis["told"], false, "{diagnosis}");
        let node = check(&diagnosis, "node");
        assert_eq!(node["verdict"], "missing", "{diagnosis}");
        let found = format!("there is no {}, which {name} names", missing.display());
        assert_eq!(node["found"], found, "{diagnosis}");
        let advice = node["advice"].as_str().unwrap();
        assert!(advice.starts_with(&format!("correct {name}, ")), "{advice}");
    }
}

#[test]
#[ignore = "needs a daemon"]
fn doctor_has_a_daemon_restarted_that_crashed() {
    let mut daemon = Daemon::start();
    let node = daemon.node();
    daemon.end(Signal::KILL);
    let diagnosis = run(&["doctor", "--json", "--node", &node])
        .assert_code(1)
        .json();
    let daemon_check = check(&diagnosis, "daemon");
    assert_eq!(daemon_check["verdict"], "missing", "{diagnosis}");
    let advice = daemon_check["advice"].as_str().unwrap();
    assert!(
        advice.starts_with("restart it: systemctl restart sysgenidd"),
        "{advice}"
    );
    assert_eq!(check(&diagnosis, "node")["verdict"], "missing");
    // As it is said.
    daemon.start_again();
    let diagnosis = run(&["doctor", "--json", "--node", &node]).json();
    assert_eq!(check(&diagnosis, "node")["verdict"], "ok", "{diagnosis}");
}
