// SPDX-License-Identifier: MIT OR Apache-2.0

//! The exit codes that all subcommands share, and what the build makes of the command line.

use sysgenid_fixture::Machine;

use crate::program::run;

#[test]
#[ignore = "needs a node"]
fn where_there_is_no_node_the_exit_code_is_4() {
    let machine = Machine::new();
    let missing = machine.file("missing");
    let missing = missing.to_str().unwrap();
    for task in [
        &["status"][..],
        &["watch"],
        &["wait"],
        &["trigger"],
        &["watchers"],
        &["exec", "--", "/bin/sh", "-c", "exit 7"],
        &["run-hooks"],
        &["run-hooks", "--once"],
    ] {
        let ended = run(&[&["--node", missing], task].concat()).assert_code(4);
        assert!(ended.stderr.contains(missing), "{task:?}: {ended:?}");
    }
}

#[test]
#[ignore = "needs a node"]
fn what_is_no_node_is_an_error() {
    let machine = Machine::new();
    let file = machine.write("file", "text");
    let ended = run(&["status", "--node", file.to_str().unwrap()]).assert_code(1);
    assert!(ended.stderr.contains("not a node"), "{ended:?}");
}

#[test]
#[ignore = "needs a node"]
fn where_the_command_line_is_wrong_the_exit_code_is_2() {
    for arguments in [
        &[][..],
        &["frobnicate"],
        &["status", "--frobnicate"],
        &["trigger", "--min", "4294967296"],
        &["trigger", "--timeout", "1"],
        &["wait", "--timeout", "soon"],
        &["wait", "--timeout", "-1"],
        &["exec", "true"],
        &["exec", "--"],
        &["exec", "--signal", "NONE", "--", "true"],
        &["run-hooks", "--once", "--list"],
        &["run-hooks", "--json"],
        &["run-hooks", "--json", "--once"],
    ] {
        run(arguments).assert_code(2);
    }
}

#[test]
#[ignore = "needs a node"]
fn the_help_tells_the_exit_codes() {
    let all = run(&["--help"]).assert_code(0).stdout;
    for line in [
        "1  an error",
        "2  the command line",
        "3  the time is over",
        "4  nothing serves",
    ] {
        assert!(all.contains(line), "{line}: {all}");
    }
    for task in [
        "status",
        "watch",
        "wait",
        "trigger",
        "watchers",
        "exec",
        "run-hooks",
        "doctor",
    ] {
        assert!(all.contains(&format!("\n  {task}")), "{task}: {all}");
        let help = run(&[task, "--help"]).assert_code(0).stdout;
        assert!(help.contains("Exit status:"), "{task}: {help}");
    }
}
