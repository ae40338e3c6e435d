// SPDX-License-Identifier: MIT OR Apache-2.0

//! `sysgenctl exec`.

use rustix::process::{Pid, Signal, kill_process};
use sysgenid_fixture::{Machine, eventually};

use crate::process::runs;
use crate::program::{Program, run, sysgenctl};

/// Prints its number, and then does nothing until it is ended.
const SLEEPS: &str = "echo up $$; exec sleep 1000";

/// The number of the process that says that it is up.
fn await_up(exec: &mut Program) -> String {
    let line = exec.await_stdout("up ");
    line.strip_prefix("up ").unwrap().to_owned()
}

/// Ends what does not listen.
fn kill(pid: &str) {
    let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
    let _ = kill_process(pid, Signal::KILL);
}

#[test]
#[ignore = "needs a node"]
fn exec_starts_the_command_again_at_each_change_and_acknowledges() {
    let machine = Machine::new();
    let mut exec = Program::start(&["exec", "--", "/bin/sh", "-c", SLEEPS]);
    let mut pid = await_up(&mut exec);
    for _ in 0..3 {
        machine.bump();
        let next = await_up(&mut exec);
        assert_ne!(next, pid);
        assert!(!runs(&pid), "the one before it has ended");
        machine.await_outdated(0);
        pid = next;
    }
    exec.signal(Signal::TERM);
    exec.end().assert_code(128 + 15);
    assert!(!runs(&pid), "the signal was passed on");
}

#[test]
#[ignore = "needs a node"]
fn exec_is_late_until_the_command_was_started_again() {
    let machine = Machine::new();
    let go = machine.file("go");
    // Each command that is run between two looks takes part of a process; `read` from nowhere does not.
    let stubborn = format!(
        "trap 'while ! [ -e {} ]; do sleep 0.05; done; exit' TERM; echo up $$; \
         while :; do sleep 0.05; done",
        go.display()
    );
    let arguments = ["exec", "--grace", "1h", "--", "/bin/sh", "-c", &stubborn];
    let mut exec = Program::start(&arguments);
    let pid = await_up(&mut exec);
    machine.bump();
    exec.await_stderr("starting anew");
    run(&["wait", "--timeout", "300ms"]).assert_code(3);
    assert!(runs(&pid));
    std::fs::write(&go, "").unwrap();
    assert_ne!(await_up(&mut exec), pid);
    run(&["wait", "--timeout", "30"]).assert_code(0);
}

#[test]
#[ignore = "needs a node"]
fn nobody_waits_for_an_untracked_exec() {
    let machine = Machine::new();
    let arguments = ["exec", "--untracked", "--", "/bin/sh", "-c", SLEEPS];
    let mut exec = Program::start(&arguments);
    let pid = await_up(&mut exec);
    machine.bump();
    assert_eq!(machine.outdated(), 0);
    assert_ne!(await_up(&mut exec), pid);
}

#[test]
#[ignore = "needs a node"]
fn a_command_that_does_not_end_is_killed_with_all_that_it_has_started() {
    let machine = Machine::new();
    let deaf = "trap '' TERM; sleep 1000 & echo up $! $$; while :; do sleep 1; done";
    let arguments = ["exec", "--grace", "200ms", "--", "/bin/sh", "-c", deaf];
    let mut exec = Program::start(&arguments);
    let first = await_up(&mut exec);
    machine.bump();
    exec.await_stderr("killing it");
    assert_ne!(await_up(&mut exec), first);
    for pid in first.split(' ') {
        eventually("it has ended", || !runs(pid));
    }
    // It does not listen to the signal that ends the other.
    machine.bump();
    exec.await_stderr("killing it");
    let second = await_up(&mut exec);
    second.split(' ').for_each(kill);
    exec.end().assert_code(128 + 9);
}

#[test]
#[ignore = "needs a node"]
fn what_a_command_leaves_behind_ends_with_it() {
    let machine = Machine::new();
    // It is up when it does not listen any more.
    let leaves = "/bin/sh -c \"trap '' TERM; echo up \\$\\$; exec sleep 1000\" & exec sleep 1000";
    let arguments = ["exec", "--grace", "1h", "--", "/bin/sh", "-c", leaves];
    let mut exec = Program::start(&arguments);
    let first = await_up(&mut exec);
    machine.bump();
    let second = await_up(&mut exec);
    eventually("it has ended", || !runs(&first));
    assert!(runs(&second));
    kill(&second);
}

#[test]
#[ignore = "needs a node"]
fn the_signal_can_be_chosen() {
    let machine = Machine::new();
    let hears = "trap 'echo heard; exit' USR1; echo up $$; while :; do sleep 0.05; done";
    let arguments = ["exec", "--signal", "SIGUSR1", "--", "/bin/sh", "-c", hears];
    let mut exec = Program::start(&arguments);
    await_up(&mut exec);
    machine.bump();
    exec.await_stdout("heard");
    await_up(&mut exec);
}

#[test]
#[ignore = "needs a node"]
fn the_exit_code_of_the_command_is_that_of_exec() {
    let machine = Machine::new();
    run(&["exec", "--", "/bin/sh", "-c", "exit 0"]).assert_code(0);
    run(&["exec", "--", "/bin/sh", "-c", "exit 7"]).assert_code(7);
    run(&["exec", "--", "/bin/sh", "-c", "kill -9 $$"]).assert_code(128 + 9);
    run(&["exec", "--", "/no/such/command"]).assert_code(127);
    let file = machine.write("file", "not executable");
    run(&["exec", "--", file.to_str().unwrap()]).assert_code(126);
}

#[test]
#[ignore = "needs a node"]
fn a_signal_that_was_ignored_at_the_start_stays_ignored() {
    let machine = Machine::new();
    let exec = sysgenctl(&["exec", "--", "/bin/sh", "-c", SLEEPS]);
    let mut shell = std::process::Command::new("/bin/sh");
    shell.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]);
    shell.arg(exec.get_program()).args(exec.get_args());
    let mut exec = Program::of(&mut shell);
    let pid = await_up(&mut exec);
    exec.signal(Signal::HUP);
    machine.bump();
    assert_ne!(await_up(&mut exec), pid);
    exec.signal(Signal::TERM);
    let ended = exec.end().assert_code(128 + 15);
    assert!(ended.stderr.contains("starting anew"), "{ended:?}");
}
