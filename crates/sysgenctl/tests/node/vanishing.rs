// SPDX-License-Identifier: MIT OR Apache-2.0

//! A node whose server ends, and comes back.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use sysgenid_fixture::{Daemon, Machine, eventually};

use crate::hooks::Hooks;
use crate::process::runs;
use crate::program::{Program, run, sysgenctl};

#[test]
#[ignore = "needs a daemon"]
fn watch_waits_until_a_node_that_has_gone_is_back() {
    let mut daemon = Daemon::start();
    let mut watch = Program::start(&["watch", "--json", "--node", &daemon.node()]);
    watch.await_stderr("is in generation");
    for _ in 0..2 {
        daemon.stop();
        watch.await_stderr("has gone");
        watch.await_stdout("\"gone\"");
        daemon.start_again();
        watch.await_stderr("is back");
        watch.await_stdout("\"back\"");
        daemon.orchestrator().bump().unwrap();
        watch.await_stdout("\"changed\"");
    }
    daemon.stop();
    watch.await_stderr("has gone");
    watch.signal(Signal::TERM);
    watch.end().assert_code(0);
}

#[test]
#[ignore = "needs a daemon"]
fn watch_waits_also_if_the_node_goes_while_it_prints_a_change() {
    let mut daemon = Daemon::start();
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    // What is printed has to wait for somebody who reads this.
    writer.write_all(&[b' '; 65536]).unwrap();
    let mut watch = sysgenctl(&["watch", "--node", &daemon.node()])
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(watch.stderr.take().unwrap()).lines();
    let mut await_said = |text| assert!(said.any(|line| line.unwrap().contains(text)), "{text}");
    await_said("is in generation");
    daemon.orchestrator().bump().unwrap();
    let call = format!("/proc/{}/syscall", watch.id());
    eventually("it prints", || {
        let call = std::fs::read_to_string(&call).unwrap();
        // The first argument is the standard output.
        call.split(' ').nth(1) == Some("0x1")
    });
    daemon.stop();
    reader.read_exact(&mut [0; 65536]).unwrap();
    await_said("has gone");
    kill_process(Pid::from_child(&watch), Signal::TERM).unwrap();
    assert!(watch.wait().unwrap().success());
}

#[test]
#[ignore = "needs a daemon"]
fn exec_starts_the_command_again_when_the_node_is_back() {
    let mut daemon = Daemon::start();
    let node = daemon.node();
    let mut exec = Program::start(&[
        "--node",
        &node,
        "exec",
        "--",
        "/bin/sh",
        "-c",
        "echo up $$; exec sleep 1000",
    ]);
    let first = exec.await_stdout("up");
    daemon.stop();
    exec.await_stderr("has gone");
    daemon.start_again();
    let mut last = exec.await_stdout("up");
    assert_ne!(first, last);
    // Twice: the first may be found out by the acknowledgement of the return.
    for _ in 0..2 {
        daemon.orchestrator().bump().unwrap();
        let next = exec.await_stdout("up");
        assert_ne!(next, last);
        daemon.await_settled();
        last = next;
    }
}

#[test]
#[ignore = "needs a daemon"]
fn hooks_run_when_the_node_is_back() {
    let machine = Machine::new();
    let hooks = Hooks::of(&machine);
    hooks.add("etc/10-first", "");
    let mut daemon = Daemon::start();
    let node = daemon.node();
    let mut service = hooks.serve(&["--node", &node]);
    daemon.stop();
    service.await_stderr("has gone");
    assert_eq!(machine.lines("log").len(), 0);
    daemon.start_again();
    service.await_stderr("acknowledged");
    assert_eq!(machine.lines("log").len(), 1);
    daemon.orchestrator().bump().unwrap();
    service.await_stderr("acknowledged");
    assert_eq!(machine.lines("log").len(), 2);
    daemon.await_settled();
}

#[test]
#[ignore = "needs a daemon"]
fn whoever_waits_when_the_server_goes_is_told() {
    let machine = Machine::new();
    let mut daemon = Daemon::start();
    let node = daemon.node();
    let arguments = [
        "--node", &node, "exec", "--grace", "1h", "--", "/bin/sh", "-c",
    ];
    let done = machine.file("done");
    let deaf = format!(
        "[ -e {} ] && exit; trap '' TERM; echo up $$; while :; do sleep 0.1; done",
        done.display()
    );
    let mut laggard = Program::start(&[&arguments[..], &[&deaf]].concat());
    let pid = laggard.await_stdout("up ");
    daemon.orchestrator().bump().unwrap();
    laggard.await_stderr("starting anew");
    let mut wait = Program::start(&["wait", "--node", &node]);
    wait.await_stderr("waiting for 1 watcher");
    daemon.stop();
    let ended = wait.end().assert_code(4);
    assert!(ended.stderr.contains("has gone"), "{ended:?}");
    run(&["status", "--node", &node]).assert_code(4);
    let pid = pid.strip_prefix("up ").unwrap().parse().unwrap();
    // What is started in its place ends at once.
    std::fs::write(done, "").unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    laggard.end().assert_code(0);
}

#[test]
#[ignore = "needs a daemon"]
fn something_else_in_the_place_of_the_node_is_waited_out() {
    let mut daemon = Daemon::start();
    let node = daemon.node();
    let script = "echo up $$; exec sleep 1000";
    let arguments = ["--node", &node, "exec", "--", "/bin/sh", "-c", script];
    let mut exec = Program::start(&arguments);
    exec.await_stdout("up");
    daemon.stop();
    let folder = daemon.folder().join("host");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(&node, "text").unwrap();
    exec.await_stderr("not a node");
    std::fs::remove_dir_all(folder).unwrap();
    daemon.start_again();
    exec.await_stdout("up");
    exec.signal(Signal::TERM);
    let ended = exec.end().assert_code(128 + 15);
    assert_eq!(ended.stderr.matches("not a node").count(), 1, "{ended:?}");
}

#[test]
#[ignore = "needs a daemon"]
fn exec_that_cannot_go_on_ends_its_command() {
    let mut daemon = Daemon::start();
    let node = daemon.node();
    let script = "echo up $$; exec sleep 1000";
    let arguments = ["--node", &node, "exec", "--", "/bin/sh", "-c", script];
    let mut exec = Program::start(&arguments);
    let pid = exec.await_stdout("up ");
    daemon.stop();
    // A path that leads in a circle is none of the errors that are waited out.
    std::fs::create_dir_all(daemon.folder()).unwrap();
    std::os::unix::fs::symlink("host", daemon.folder().join("host")).unwrap();
    exec.await_stderr("cannot go on");
    exec.end().assert_code(1);
    assert!(!runs(pid.strip_prefix("up ").unwrap()));
}
