// SPDX-License-Identifier: MIT OR Apache-2.0

//! The examples in C and Python, as a user runs them.
//!
//! Those that need a node change its generation, and nobody else may meanwhile: run them one at a time.

#![allow(clippy::unwrap_used)] // The lint does not see that all of this file is tests.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use sysgenid::{Acknowledged, Generation, Orchestrator, Settlement, Tracking, Watcher};

use common::program::{PATIENCE, Program};
use common::{Installation, run};

/// The four workflows.
const WORKFLOWS: [&str; 4] = [
    "watchdog_thread",
    "epoll_loop",
    "mapped_secret",
    "orchestrator",
];

/// The examples in C, compiled by their own Makefile.
fn compiled() -> &'static Path {
    static COMPILED: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = COMPILED.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        run(Command::new("make")
            .arg("-C")
            .arg(common::repository().join("examples/c"))
            .arg(format!("BUILD={}", folder.path().display()))
            .args(["all", "library"])
            .env("PKG_CONFIG_PATH", Installation::shared().package_path()));
        folder
    });
    folder.path()
}

/// A command for an example in C, with the node at a path.
fn in_c(name: &str, node: &Path) -> Command {
    let mut command = Installation::shared().command(&compiled().join(name));
    command.arg(node);
    command
}

/// The same for one in Python.
fn in_python(name: &str, node: &Path) -> Command {
    let mut command = Command::new("python3");
    command
        // The sources are no place for what Python keeps.
        .arg("-B")
        .arg(common::repository().join(format!("examples/python/{name}.py")))
        .arg(node);
    command
}

/// An example in one of the languages.
type Example = fn(&str, &Path) -> Command;

/// What a test of an example has in its hands.
struct Stage {
    node: PathBuf,
    orchestrator: Orchestrator,
}

impl Stage {
    fn new() -> Self {
        let node = common::node();
        let orchestrator = Orchestrator::open_at(&node).unwrap();
        assert_eq!(orchestrator.outdated_watchers().unwrap(), 0);
        Self { node, orchestrator }
    }

    fn start(&self, example: Example, name: &str) -> Program {
        let program = Program::start(&mut example(name, &self.node));
        program.expect("ready");
        program
    }

    fn assert_settles_in(&self, generation: Generation) {
        let settlement = self.orchestrator.settle(Some(PATIENCE)).unwrap();
        assert_eq!(settlement, Settlement::Settled(generation));
    }

    fn assert_outdated(&self, watchers: u32) {
        assert_eq!(self.orchestrator.outdated_watchers().unwrap(), watchers);
    }
}

/// The token that the program answers with.
fn token(program: &mut Program) -> String {
    program.ask();
    let line = program.line();
    line.strip_prefix("token ").expect(&line).to_owned()
}

/// A program that is told rebuilds by itself, and others wait until it has.
fn rebuilds_and_acknowledges(example: Example, name: &str) {
    let stage = Stage::new();
    let mut program = stage.start(example, name);
    let mut old = token(&mut program);
    for _ in 0..3 {
        program.pause();
        let generation = stage.orchestrator.bump().unwrap();
        stage.assert_outdated(1);
        program.resume();
        stage.assert_settles_in(generation);
        program.expect(&format!("generation {generation}: rebuilt"));
        let new = token(&mut program);
        assert_ne!(new, old);
        old = new;
    }
    assert!(program.finish().success());
    // Nobody waits for a program that has ended.
    let generation = stage.orchestrator.bump().unwrap();
    stage.assert_settles_in(generation);
}

/// A program that asks rebuilds before it gives anything away, and nobody waits for it.
fn rebuilds_before_use(example: Example, name: &str) {
    let stage = Stage::new();
    let mut program = stage.start(example, name);
    let mut old = token(&mut program);
    for _ in 0..3 {
        program.pause();
        let generation = stage.orchestrator.bump().unwrap();
        stage.assert_outdated(0);
        program.resume();
        program.ask();
        program.expect(&format!("generation {generation}: rebuilt"));
        let new = program.line();
        assert!(new.starts_with("token ") && !new.ends_with(&old), "{new}");
        old = token(&mut program);
    }
    assert!(program.finish().success());
}

/// A service is paused until the last of the others has acknowledged, also of a change that comes meanwhile.
fn pauses_until_everybody_is_done(example: Example) {
    let stage = Stage::new();
    let other = Watcher::open_at(&stage.node, Tracking::Tracked).unwrap();
    let program = stage.start(example, "orchestrator");

    stage.orchestrator.bump().unwrap();
    for _ in 0..2 {
        let line = program.line();
        let change = other.wait_timeout(PATIENCE).unwrap().unwrap();
        assert_eq!(
            line,
            format!("generation {}: paused", change.generation().get())
        );
        program.expect_silence();
        // It is the other, not the program, that everybody waits for.
        stage.assert_outdated(1);
        stage.orchestrator.bump().unwrap();
    }
    let line = program.line();
    let change = other.wait_timeout(PATIENCE).unwrap().unwrap();
    let generation = change.generation();
    assert_eq!(line, format!("generation {generation}: paused"));
    assert!(matches!(change.acknowledge(), Ok(Acknowledged::Current)));
    program.expect("resumed");
    stage.assert_settles_in(generation);
}

/// Whoever restores changes the generation as far as is asked, and ends when everybody is done.
fn changes_and_waits(example: Example) {
    let stage = Stage::new();
    let other = Watcher::open_at(&stage.node, Tracking::Tracked).unwrap();
    let minimum = stage.orchestrator.generation().unwrap().get() + 10;
    let program = Program::start(example("orchestrator", &stage.node).arg(minimum.to_string()));
    let change = other.wait_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!(change.generation().get(), minimum);
    program.expect(&format!("generation {minimum}: paused"));
    program.expect_silence();
    assert!(matches!(change.acknowledge(), Ok(Acknowledged::Current)));
    program.expect("settled");
    assert!(program.finish().success());
}

/// Where there is no node, an example ends and says what is missing.
fn says_that_there_is_no_node(example: Example, name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let node = folder.path().join("node");
    let output = example(name, &node).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{name}: {said}");
    assert!(said.contains(&*node.to_string_lossy()), "{name}: {said}");
    assert!(said.contains("No such file"), "{name}: {said}");
}

#[test]
#[ignore = "needs tools that not every machine has"]
fn each_workflow_in_c_says_that_there_is_no_node() {
    for name in WORKFLOWS {
        says_that_there_is_no_node(in_c, name);
    }
}

#[test]
#[ignore = "needs tools that not every machine has"]
fn each_workflow_in_python_says_that_there_is_no_node() {
    for name in WORKFLOWS {
        says_that_there_is_no_node(in_python, name);
    }
}

#[test]
#[ignore = "needs tools that not every machine has"]
fn the_example_with_the_library_goes_on_where_there_is_no_node() {
    let folder = tempfile::tempdir().unwrap();
    let node = folder.path().join("node");
    let mut program = Program::start(&mut in_c("probe_library", &node));
    program.expect("nothing tells of restores here, yet");
    program.expect("ready");
    assert_ne!(token(&mut program), token(&mut program));
    assert!(program.finish().success());
}

#[test]
#[ignore = "needs a node"]
fn the_thread_in_c_rebuilds_and_acknowledges() {
    rebuilds_and_acknowledges(in_c, "watchdog_thread");
}

#[test]
#[ignore = "needs a node"]
fn the_thread_in_python_rebuilds_and_acknowledges() {
    rebuilds_and_acknowledges(in_python, "watchdog_thread");
}

#[test]
#[ignore = "needs a node"]
fn the_event_loop_in_c_rebuilds_and_acknowledges() {
    rebuilds_and_acknowledges(in_c, "epoll_loop");
}

#[test]
#[ignore = "needs a node"]
fn the_event_loop_in_python_rebuilds_and_acknowledges() {
    rebuilds_and_acknowledges(in_python, "epoll_loop");
}

#[test]
#[ignore = "needs a node"]
fn the_mapped_secret_in_c_is_rebuilt_before_use() {
    rebuilds_before_use(in_c, "mapped_secret");
}

#[test]
#[ignore = "needs a node"]
fn the_mapped_secret_in_python_is_rebuilt_before_use() {
    rebuilds_before_use(in_python, "mapped_secret");
}

#[test]
#[ignore = "needs a node"]
fn the_secret_with_the_library_is_rebuilt_before_use() {
    rebuilds_before_use(in_c, "probe_library");
}

#[test]
#[ignore = "needs a node"]
fn the_orchestrator_in_c_pauses_until_everybody_is_done() {
    pauses_until_everybody_is_done(in_c);
}

#[test]
#[ignore = "needs a node"]
fn the_orchestrator_in_python_pauses_until_everybody_is_done() {
    pauses_until_everybody_is_done(in_python);
}

#[test]
#[ignore = "needs a node"]
fn the_orchestrator_in_c_changes_the_generation_and_waits() {
    changes_and_waits(in_c);
}

#[test]
#[ignore = "needs a node"]
fn the_orchestrator_in_python_changes_the_generation_and_waits() {
    changes_and_waits(in_python);
}
