// SPDX-License-Identifier: MIT OR Apache-2.0

//! `sysgenctl doctor`.

use crate::machine::Machine;
use crate::program::run;

#[test]
#[ignore = "needs a node"]
fn the_exit_code_of_doctor_is_its_answer() {
    let machine = Machine::new();
    let ended = run(&["doctor", "--json"]);
    let diagnosis = ended.json();
    let told = diagnosis["told"].as_bool().unwrap();
    assert_eq!(ended.code, Some(if told { 0 } else { 1 }), "{ended:?}");
    let checks = diagnosis["checks"].as_array().unwrap();
    let verdict = |subject: &str| {
        let check = checks.iter().find(|check| check["subject"] == subject);
        check.unwrap_or_else(|| panic!("{subject}: {diagnosis}"))["verdict"].clone()
    };
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
fn doctor_misses_a_node_that_is_not_there() {
    let machine = Machine::new();
    let missing = machine.file("missing");
    let ended = run(&["doctor", "--json", "--node", missing.to_str().unwrap()]).assert_code(1);
    let diagnosis = ended.json();
    assert_eq!(diagnosis["told"], false, "{diagnosis}");
    let checks = diagnosis["checks"].as_array().unwrap();
    let node = checks
        .iter()
        .find(|check| check["subject"] == "node")
        .unwrap();
    assert_eq!(node["verdict"], "missing", "{diagnosis}");
    assert!(node["advice"].is_string(), "{diagnosis}");
}
