// SPDX-License-Identifier: MIT OR Apache-2.0

//! `sysgenctl status`.

use sysgenid_fixture::{Machine, acknowledge, tracked};

use crate::program::{json, run};

#[test]
#[ignore = "needs a node"]
fn status_tells_the_generation_since_when_and_how_many_lag_behind() {
    let machine = Machine::new();
    let before = json(&["status", "--json"]);
    let watcher = tracked();
    let generation = machine.bump();

    let status = json(&["status", "--json"]);
    assert_eq!(status["generation"], generation.get(), "{status}");
    assert_eq!(status["ever_changed"], true, "{status}");
    let age = status["changed_seconds_ago"].as_f64().unwrap();
    assert!((0.0..30.0).contains(&age), "{status}");
    assert_eq!(status["outdated"], 1, "{status}");
    let more = |name: &str| status[name].as_u64().unwrap() - before[name].as_u64().unwrap();
    assert_eq!(more("tracked"), 1, "{before} {status}");
    assert_eq!(more("watchers"), 1, "{before} {status}");
    // The same of whom `watchers` makes a list, neither with the program itself.
    let list = json(&["watchers", "--json"]);
    let listed = list["watchers"].as_array().unwrap().len();
    assert_eq!(status["watchers"], listed, "{status} {list}");
    let software = status["backends"]
        .as_array()
        .unwrap()
        .iter()
        .any(|backend| backend["name"] == "software" && backend["works"] == true);
    assert!(software, "{status}");

    let text = run(&["status"]).assert_code(0).stdout;
    assert!(
        text.contains(&format!("generation  {generation}, since ")),
        "{text}"
    );
    assert!(text.contains("1 outdated"), "{text}");
    acknowledge(&watcher);
    let text = run(&["status"]).assert_code(0).stdout;
    assert!(text.contains("0 outdated"), "{text}");
}
