// SPDX-License-Identifier: MIT OR Apache-2.0

//! A node whose server ends, and comes back: a daemon of the test's own, by the program that `SYSGENIDD` names.
//!
//! It needs root and a mount namespace of its own, as `cargo xtask test` makes one.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use sysgenid::Orchestrator;

use crate::hooks::Hooks;
use crate::machine::{Machine, eventually};
use crate::program::{Program, run};

struct Daemon {
    folder: PathBuf,
    child: Option<Child>,
}

impl Daemon {
    fn start(machine: &Machine) -> Self {
        let folder = machine.file("daemon");
        std::fs::create_dir(&folder).unwrap();
        Self {
            child: Some(Self::spawn(&folder)),
            folder,
        }
    }

    fn spawn(folder: &Path) -> Child {
        let program = std::env::var_os("SYSGENIDD").expect("SYSGENIDD names the daemon");
        let mut child = Command::new(program)
            .args(["--foreground", "--directory"])
            .arg(folder)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("ready") {
            line.clear();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "it ended");
        }
        // What else it says must not fill the pipe.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        child
    }

    fn node(&self) -> String {
        let node = self.folder.join("host/sysgenid");
        node.to_str().unwrap().to_owned()
    }

    /// Ends it cleanly; its folder is empty then.
    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            kill_process(Pid::from_child(&child), Signal::INT).unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts another one, which knows nothing of the first.
    fn start_again(&mut self) {
        self.child = Some(Self::spawn(&self.folder));
    }

    fn orchestrator(&self) -> Orchestrator {
        Orchestrator::open_at(self.node()).unwrap()
    }

    fn await_settled(&self) {
        let orchestrator = self.orchestrator();
        eventually("nobody is late", || {
            orchestrator.outdated_watchers().unwrap() == 0
        });
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}

#[test]
#[ignore = "needs a daemon"]
fn watch_waits_until_a_node_that_has_gone_is_back() {
    let machine = Machine::new();
    let mut daemon = Daemon::start(&machine);
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
fn exec_starts_the_command_again_when_the_node_is_back() {
    let machine = Machine::new();
    let mut daemon = Daemon::start(&machine);
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
    let mut daemon = Daemon::start(&machine);
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
    let mut daemon = Daemon::start(&machine);
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
    let machine = Machine::new();
    let mut daemon = Daemon::start(&machine);
    let node = daemon.node();
    let script = "echo up $$; exec sleep 1000";
    let arguments = ["--node", &node, "exec", "--", "/bin/sh", "-c", script];
    let mut exec = Program::start(&arguments);
    exec.await_stdout("up");
    daemon.stop();
    let file = machine.write("daemon/host/sysgenid", "text");
    exec.await_stderr("not a node");
    std::fs::remove_dir_all(file.parent().unwrap()).unwrap();
    daemon.start_again();
    exec.await_stdout("up");
    exec.signal(Signal::TERM);
    let ended = exec.end().assert_code(128 + 15);
    assert_eq!(ended.stderr.matches("not a node").count(), 1, "{ended:?}");
}

#[test]
#[ignore = "needs a daemon"]
fn exec_that_cannot_go_on_ends_its_command() {
    let machine = Machine::new();
    let mut daemon = Daemon::start(&machine);
    let node = daemon.node();
    let script = "echo up $$; exec sleep 1000";
    let arguments = ["--node", &node, "exec", "--", "/bin/sh", "-c", script];
    let mut exec = Program::start(&arguments);
    let pid = exec.await_stdout("up ");
    daemon.stop();
    // A path that leads in a circle is none of the errors that are waited out.
    std::fs::create_dir_all(&daemon.folder).unwrap();
    std::os::unix::fs::symlink("host", machine.file("daemon/host")).unwrap();
    exec.await_stderr("cannot go on");
    exec.end().assert_code(1);
    assert!(!crate::machine::runs(pid.strip_prefix("up ").unwrap()));
}
