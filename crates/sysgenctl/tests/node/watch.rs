// SPDX-License-Identifier: MIT OR Apache-2.0

//! `sysgenctl watch`.

use rustix::process::Signal;
use sysgenid_fixture::Machine;

use crate::program::Program;

#[test]
#[ignore = "needs a node"]
fn watch_prints_a_line_at_each_change_until_it_is_told_to_end() {
    let machine = Machine::new();
    for signal in [Signal::INT, Signal::TERM] {
        let mut watch = Program::start(&["watch"]);
        watch.await_stderr("is in generation");
        for _ in 0..3 {
            let generation = machine.bump();
            let line = watch.await_stdout(&format!("generation {generation}"));
            // 2026-11-25 09:00:00.000  generation 3
            assert!(line.starts_with("20") && line.contains(':'), "{line}");
            assert_eq!(machine.outdated(), 0, "nobody waits for it");
        }
        watch.signal(signal);
        let ended = watch.end().assert_code(0);
        assert_eq!(ended.stdout.lines().count(), 3, "{ended:?}");
    }
}

#[test]
#[ignore = "needs a node"]
fn watch_prints_a_document_at_each_change() {
    let machine = Machine::new();
    let mut watch = Program::start(&["watch", "--json"]);
    let mut next = |event: &str| {
        let line = watch.await_stdout("");
        let document: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(document["event"], event, "{line}");
        assert!(document["time"].as_str().unwrap().ends_with('Z'), "{line}");
        document["generation"].clone()
    };
    // Whoever has read the first one knows that all changes from then on are told.
    assert_eq!(next("start"), machine.generation().get());
    for _ in 0..2 {
        let generation = machine.bump();
        assert_eq!(next("changed"), generation.get());
    }
}
