// SPDX-License-Identifier: MIT OR Apache-2.0

//! `sysgenctl run-hooks`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use sysgenid_fixture::{Machine, PATIENCE, eventually};

use crate::process::runs;
use crate::program::{Ended, Program, json, run, sysgenctl};
use crate::watchers::of_process;

/// A folder of hooks, and one that it overrides.
pub(crate) struct Hooks<'a> {
    machine: &'a Machine,
}

impl<'a> Hooks<'a> {
    pub(crate) fn of(machine: &'a Machine) -> Self {
        for folder in ["etc", "lib"] {
            fs::create_dir(machine.file(folder)).unwrap();
        }
        Self { machine }
    }

    /// Writes a hook that notes how it was run, and then does this.
    pub(crate) fn add(&self, name: &str, script: &str) {
        let log = self.machine.file("log");
        let text = format!(
            "#!/bin/sh\necho \"${{0##*/}} $SYSGENID_GENERATION $SYSGENID_PREVIOUS_GENERATION \
             $SYSGENID_ATTEMPT\" >>{}\n{script}\n",
            log.display()
        );
        let path = self.machine.write(name, &text);
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn arguments(&self, more: &[&str]) -> Vec<String> {
        let mut arguments = vec!["run-hooks".to_owned()];
        for folder in ["etc", "lib"] {
            arguments.push("--hooks-dir".to_owned());
            arguments.push(self.machine.file(folder).to_str().unwrap().to_owned());
        }
        arguments.extend(more.iter().map(ToString::to_string));
        arguments
    }

    /// Starts the service, and returns once it watches.
    pub(crate) fn serve(&self, more: &[&str]) -> Program {
        let arguments = self.arguments(more);
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let mut program = Program::start(&arguments);
        program.await_stderr("ready");
        program
    }

    fn run(&self, more: &[&str]) -> Ended {
        let arguments = self.arguments(more);
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        run(&arguments)
    }
}

#[test]
#[ignore = "needs a node"]
fn hooks_run_in_order_with_the_generations_and_then_the_change_is_acknowledged() {
    let machine = Machine::new();
    let hooks = Hooks::of(&machine);
    hooks.add("lib/20-second", "");
    hooks.add("etc/10-first", "");
    hooks.add("etc/30-third", "");
    let start = machine.generation();
    let _service = hooks.serve(&[]);
    assert_eq!(
        machine.lines("log"),
        [""; 0],
        "nothing runs before a change"
    );

    let first = machine.bump();
    run(&["wait", "--timeout", "30"]).assert_code(0);
    let second = machine.bump();
    run(&["wait", "--timeout", "30"]).assert_code(0);
    let expected = [
        format!("10-first {first} {start} 1"),
        format!("20-second {first} {start} 1"),
        format!("30-third {first} {start} 1"),
        format!("10-first {second} {first} 1"),
        format!("20-second {second} {first} 1"),
        format!("30-third {second} {first} 1"),
    ];
    assert_eq!(machine.lines("log"), expected);
}

#[test]
#[ignore = "needs a node"]
fn nothing_is_acknowledged_before_the_last_hook_has_succeeded() {
    let machine = Machine::new();
    let hooks = Hooks::of(&machine);
    let go = machine.file("go");
    hooks.add(
        "etc/10-waits",
        &format!("while ! [ -e {} ]; do sleep 0.05; done", go.display()),
    );
    let _service = hooks.serve(&[]);
    machine.bump();
    machine.await_lines("log", 1);
    assert_eq!(machine.outdated(), 1);
    fs::write(&go, "").unwrap();
    machine.await_outdated(0);
}

#[test]
#[ignore = "needs a node"]
fn a_hook_that_fails_is_tried_again_alone_and_is_visible_until_it_succeeds() {
    let machine = Machine::new();
    let hooks = Hooks::of(&machine);
    let mended = machine.file("mended");
    hooks.add("etc/10-fails", &format!("[ -e {} ]", mended.display()));
    hooks.add("etc/20-works", "");
    machine.write("etc/30-off", "");
    let start = machine.generation();
    let mut service = hooks.serve(&[]);
    let generation = machine.bump();
    let line = service.await_stderr("10-fails has failed");
    assert!(line.contains("exit status 1"), "{line}");
    service.await_stderr("attempt 2 in 1 s");
    service.await_stderr("attempt 3 in 2 s");

    let list = json(&["watchers", "--outdated", "--json"]);
    let seen = of_process(&list, service.pid());
    assert_eq!(seen.len(), 1, "{list}");
    assert_eq!(seen[0]["acknowledged"], start.get(), "{list}");
    run(&["wait", "--timeout", "1ms"]).assert_code(3);

    fs::write(&mended, "").unwrap();
    service.await_stderr("acknowledged");
    run(&["wait", "--timeout", "30"]).assert_code(0);
    let expected = [
        format!("10-fails {generation} {start} 1"),
        format!("20-works {generation} {start} 1"),
        format!("10-fails {generation} {start} 2"),
        format!("10-fails {generation} {start} 3"),
    ];
    assert_eq!(machine.lines("log"), expected);

    service.signal(Signal::TERM);
    let ended = service.end().assert_code(0);
    let said = ended.stderr.matches("30-off: turned off").count();
    assert_eq!(said, 1, "whatever was looked for again: {ended:?}");
    assert_small_letters(&ended);
}

/// Each line of the log begins alike.
fn assert_small_letters(ended: &Ended) {
    for line in ended.stderr.lines() {
        let text = line.strip_prefix("sysgenctl: ").unwrap();
        assert!(!text.starts_with(char::is_uppercase), "{ended:?}");
    }
}

#[test]
#[ignore = "needs a node"]
fn a_folder_that_was_named_and_does_not_exist_is_an_error_at_the_start() {
    let machine = Machine::new();
    let hooks = Hooks::of(&machine);
    hooks.add("etc/10-works", "");
    fs::remove_dir(machine.file("lib")).unwrap();
    for more in [&[][..], &["--once"], &["--list"], &["--list", "--json"]] {
        let ended = hooks.run(more).assert_code(1);
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
        let folder = machine.file("lib");
        assert!(ended.stderr.contains(folder.to_str().unwrap()), "{ended:?}");
        assert_eq!(ended.stdout, "", "{ended:?}");
    }
    assert_eq!(machine.lines("log"), [""; 0], "nothing has run");
}

#[test]
#[ignore = "needs a node"]
fn a_folder_that_goes_away_later_holds_up_the_change_until_it_is_back() {
    let machine = Machine::new();
    let hooks = Hooks::of(&machine);
    hooks.add("lib/10-works", "");
    let mut service = hooks.serve(&[]);
    fs::rename(machine.file("lib"), machine.file("away")).unwrap();
    machine.bump();
    service.await_stderr("cannot look for hooks in");
    service.await_stderr("attempt 2 in 1 s");
    assert_eq!(machine.outdated(), 1);
    fs::rename(machine.file("away"), machine.file("lib")).unwrap();
    service.await_stderr("acknowledged");
    assert_eq!(machine.lines("log").len(), 1);
}

#[test]
#[ignore = "needs a node"]
fn that_there_are_no_hooks_is_a_warning_which_names_the_folders() {
    let machine = Machine::new();
    let hooks = Hooks::of(&machine);
    machine.write("etc/10-off", "");
    // As a service whose standard error is the journal.
    let run = || {
        let path = machine.write("journal", "");
        let journal = fs::File::create(&path).unwrap();
        let file = journal.metadata().unwrap();
        let arguments = hooks.arguments(&["--once"]);
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let mut command = sysgenctl(&arguments);
        command
            .env("JOURNAL_STREAM", format!("{}:{}", file.dev(), file.ino()))
            .stderr(journal);
        assert!(command.status().unwrap().success());
        fs::read_to_string(path).unwrap()
    };
    let (etc, lib) = (machine.file("etc"), machine.file("lib"));
    let warning = format!(
        "<4>there are no hooks to run in {}, {}\n",
        etc.display(),
        lib.display()
    );
    let said = run();
    assert!(said.starts_with(&warning), "{said}");
    hooks.add("lib/20-works", "");
    let said = run();
    assert!(!said.contains("there are no hooks"), "{said}");
}

#[test]
#[ignore = "needs a node"]
fn a_change_ends_the_pause_before_another_attempt_and_begins_anew_with_all_hooks() {
    let machine = Machine::new();
    let hooks = Hooks::of(&machine);
    hooks.add("etc/10-works", "");
    hooks.add("etc/20-fails", "exit 3");
    let start = machine.generation();
    let mut service = hooks.serve(&[]);
    let first = machine.bump();
    service.await_stderr("attempt 4 in 4 s");
    let pause = Instant::now();
    let second = machine.bump();
    service.await_stderr(&format!("generation {second}: 20-fails has failed"));
    assert!(
        pause.elapsed() < Duration::from_secs(3),
        "{:?}",
        pause.elapsed()
    );
    let lines = machine.lines("log");
    let expected = [
        format!("10-works {first} {start} 1"),
        format!("20-fails {first} {start} 1"),
        format!("20-fails {first} {start} 2"),
        format!("20-fails {first} {start} 3"),
        format!("10-works {second} {start} 1"),
        format!("20-fails {second} {start} 1"),
    ];
    assert_eq!(lines[..6], expected);
    // The pauses begin anew, too.
    service.await_stderr("attempt 2 in 1 s");
}

#[test]
#[ignore = "needs a node"]
fn a_change_while_a_hook_runs_lets_it_finish_and_begins_anew() {
    let machine = Machine::new();
    let hooks = Hooks::of(&machine);
    let go = machine.file("go");
    hooks.add(
        "etc/10-waits",
        &format!(
            "while ! [ -e {} ]; do sleep 0.05; done; echo finished >>{}",
            go.display(),
            machine.file("log").display()
        ),
    );
    hooks.add("etc/20-next", "");
    let start = machine.generation();
    let _service = hooks.serve(&[]);
    let first = machine.bump();
    machine.await_lines("log", 1);
    let second = machine.bump();
    fs::write(&go, "").unwrap();
    machine.await_outdated(0);
    let expected = [
        format!("10-waits {first} {start} 1"),
        "finished".to_owned(),
        format!("10-waits {second} {start} 1"),
        "finished".to_owned(),
        format!("20-next {second} {start} 1"),
    ];
    assert_eq!(machine.lines("log"), expected);
}

#[test]
#[ignore = "needs a node"]
fn a_hook_that_hangs_is_ended_with_all_that_it_has_started() {
    let machine = Machine::new();
    let hooks = Hooks::of(&machine);
    let pids = machine.file("pids");
    hooks.add(
        "etc/10-hangs",
        &format!(
            "(trap '' TERM; exec sleep 1000) & echo $! >>{0}; echo $$ >>{0}; exec sleep 1000",
            pids.display()
        ),
    );
    hooks.add("etc/20-works", "");
    let mut service = hooks.serve(&["--timeout", "300ms"]);
    machine.bump();
    let line = service.await_stderr("10-hangs has failed");
    assert!(line.contains("longer than 0.3 s"), "{line}");
    service.await_stderr("20-works has succeeded");
    for pid in &machine.lines("pids")[..2] {
        eventually("it has ended", || !runs(pid));
    }
    assert_eq!(machine.outdated(), 1);
}

#[test]
#[ignore = "needs a node"]
fn a_hook_that_does_not_end_when_asked_is_killed() {
    let machine = Machine::new();
    let hooks = Hooks::of(&machine);
    let pids = machine.file("pids");
    hooks.add(
        "etc/10-deaf",
        &format!(
            "trap '' TERM; echo $$ >>{}; while :; do sleep 1; done",
            pids.display()
        ),
    );
    let mut service = hooks.serve(&["--timeout", "100ms"]);
    machine.bump();
    let start = Instant::now();
    service.await_stderr("10-deaf has failed");
    assert!(
        start.elapsed() >= Duration::from_secs(5),
        "it had time to end"
    );
    assert!(!runs(&machine.lines("pids")[0]));
}

#[test]
#[ignore = "needs a node"]
fn what_the_operator_has_turned_off_or_replaced_does_not_run() {
    let machine = Machine::new();
    let hooks = Hooks::of(&machine);
    for name in ["10-empty", "20-null", "30-replaced", "40-stays", "50-left~"] {
        hooks.add(&format!("lib/{name}"), "echo of the system");
    }
    machine.write("etc/10-empty", "");
    symlink("/dev/null", machine.file("etc/20-null")).unwrap();
    hooks.add("etc/30-replaced", "echo of the operator");
    machine.write("etc/60-text", "not executable");

    let ended = hooks.run(&["--list", "--json"]).assert_code(0);
    let states: Vec<_> = ended
        .json()
        .as_array()
        .unwrap()
        .iter()
        .map(|hook| {
            let text = |name: &str| hook[name].as_str().unwrap().to_owned();
            format!("{} {}", text("name"), text("state"))
        })
        .collect();
    let expected = [
        "10-empty masked",
        "20-null masked",
        "30-replaced runs",
        "40-stays runs",
        "50-left~ skipped",
        "60-text skipped",
    ];
    assert_eq!(states, expected);

    let ended = hooks.run(&["--once"]).assert_code(0);
    assert_eq!(ended.stdout, "of the operator\nof the system\n");
    for said in ["10-empty: turned off", "60-text: skipped: not executable"] {
        assert_eq!(ended.stderr.matches(said).count(), 1, "{ended:?}");
    }
}

#[test]
#[ignore = "needs a node"]
fn once_runs_all_hooks_for_the_generation_that_there_is() {
    let machine = Machine::new();
    let hooks = Hooks::of(&machine);
    hooks.add("etc/10-first", "");
    hooks.add("etc/20-second", "[ -e /nowhere ]");
    hooks.add("etc/30-third", "");
    let generation = machine.generation();
    hooks.run(&["--once"]).assert_code(1);
    let expected: Vec<_> = ["10-first", "20-second", "30-third"]
        .iter()
        .map(|name| format!("{name} {generation} {generation} 1"))
        .collect();
    assert_eq!(machine.lines("log"), expected);
    fs::remove_file(machine.file("etc/20-second")).unwrap();
    hooks.run(&["--once"]).assert_code(0);
}

#[test]
#[ignore = "needs a node"]
fn a_stop_ends_the_hook_that_runs_and_acknowledges_nothing() {
    let machine = Machine::new();
    let hooks = Hooks::of(&machine);
    let pid = machine.file("pid");
    hooks.add(
        "etc/10-slow",
        &format!("echo $$ >{}; exec sleep 1000", pid.display()),
    );
    hooks.add("etc/20-next", "");
    let service = hooks.serve(&["--timeout", "1h"]);
    machine.bump();
    let pid = machine.await_lines("pid", 1).remove(0);
    assert!(runs(&pid));
    service.signal(Signal::TERM);
    let ended = service.end().assert_code(0);
    assert!(!runs(&pid));
    assert!(!ended.stderr.contains("acknowledged"), "{ended:?}");
    assert_eq!(machine.lines("log").len(), 1);
}

#[test]
#[ignore = "needs a node"]
fn a_hook_has_no_input_and_the_folders_of_the_system() {
    let machine = Machine::new();
    let hooks = Hooks::of(&machine);
    hooks.add(
        "etc/10-looks",
        "cat; echo \"path $PATH\"; echo \"own $OWN\"; echo \"notify ${NOTIFY_SOCKET-none}\"",
    );
    let arguments = hooks.arguments(&["--once"]);
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let mut command = sysgenctl(&arguments);
    command.env("PATH", "/nowhere").env("OWN", "kept");
    command.env("NOTIFY_SOCKET", machine.file("notify"));
    let ended = Program::of(&mut command).end().assert_code(0);
    let expected = "path /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
                    own kept\nnotify none\n";
    assert_eq!(ended.stdout, expected);
}

#[test]
#[ignore = "needs a node"]
fn the_service_manager_is_told_what_is_going_on() {
    let machine = Machine::new();
    let hooks = Hooks::of(&machine);
    hooks.add("etc/10-fails", "exit 1");
    let socket = UnixDatagram::bind(machine.file("notify")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut seen = String::new();
    let mut await_told = |text: &str| {
        while !seen.contains(text) {
            let mut bytes = [0; 4096];
            let length = socket.recv(&mut bytes).unwrap_or_else(|error| {
                panic!("{text:?} is not told ({error}): {seen}");
            });
            seen.push_str(std::str::from_utf8(&bytes[..length]).unwrap());
        }
    };
    let arguments = hooks.arguments(&[]);
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let mut command = sysgenctl(&arguments);
    command.env("NOTIFY_SOCKET", machine.file("notify"));
    let service = Program::of(&mut command);
    await_told("READY=1");
    let generation = machine.bump();
    await_told(&format!("STATUS=generation {generation}: running 10-fails"));
    await_told(&format!("STATUS=generation {generation}: failed: 10-fails"));
    service.signal(Signal::TERM);
    await_told("STOPPING=1");
    service.end().assert_code(0);
}

#[test]
#[ignore = "needs a node"]
fn a_change_that_a_restart_has_left_unfinished_is_dealt_with_at_the_start() {
    let machine = Machine::new();
    let hooks = Hooks::of(&machine);
    let mended = machine.file("mended");
    hooks.add("etc/10-fails", &format!("[ -e {} ]", mended.display()));
    let state = machine.file("state");
    let state = state.to_str().unwrap();
    let options = ["--state-dir", state];
    let pending = || {
        let progress: Value = serde_json::from_str(&machine.lines("state/progress")[0]).unwrap();
        progress["pending"].clone()
    };
    let start = machine.generation();
    let mut service = hooks.serve(&options);
    assert_eq!(pending(), Value::Null);
    let first = machine.bump();
    service.await_stderr("10-fails has failed");
    assert_eq!(pending(), first.get());
    service.signal(Signal::TERM);
    service.end().assert_code(0);

    let mut service = hooks.serve(&options);
    service.await_stderr(&format!("generation {first} was not dealt with"));
    service.await_stderr("attempt 2 in 1 s");
    assert_eq!(pending(), first.get());
    // It is not one of the late any more, and is waited for all the same.
    assert_eq!(machine.outdated(), 0);
    let waiting = ["wait", "--hooks-state", state];
    let ended = run(&[&waiting[..], &["--timeout", "50ms"]].concat()).assert_code(3);
    let late = format!("the hooks for generation {first} have not all succeeded");
    assert!(ended.stderr.contains(&late), "{ended:?}");
    let answer = run(&[&waiting[..], &["--timeout", "50ms", "--json"]].concat())
        .assert_code(3)
        .json();
    assert_eq!(answer["hooks_pending"], true, "{answer}");
    assert_eq!(answer["outdated"], 0, "{answer}");
    let mut wait = Program::start(&waiting);
    wait.await_stderr(&format!("waiting: the hooks for generation {first}"));
    fs::write(&mended, "").unwrap();
    service.await_stderr(&format!("generation {first}: 1 hook succeeded"));
    wait.end().assert_code(0);
    assert_eq!(pending(), Value::Null);
    let second = machine.bump();
    service.await_stderr("acknowledged");
    assert_eq!(pending(), Value::Null);
    service.signal(Signal::TERM);
    assert_small_letters(&service.end().assert_code(0));
    let mut expected = vec![
        format!("10-fails {first} {start} 1"),
        format!("10-fails {first} {start} 1"),
    ];
    // As often as it took this test to look.
    let log = machine.lines("log");
    let retries = log.len() - 3;
    for attempt in 2..2 + retries {
        expected.push(format!("10-fails {first} {start} {attempt}"));
    }
    expected.push(format!("10-fails {second} {first} 1"));
    assert_eq!(log, expected);

    let service = hooks.serve(&options);
    service.signal(Signal::TERM);
    service.end().assert_code(0);
    assert_eq!(machine.lines("log"), log, "nothing was unfinished");
}

#[test]
#[ignore = "needs a node"]
fn a_change_that_came_while_nothing_ran_is_dealt_with_at_the_next_start() {
    let machine = Machine::new();
    let hooks = Hooks::of(&machine);
    hooks.add("etc/10-works", "");
    let state = machine.file("state");
    let options = ["--state-dir", state.to_str().unwrap()];
    let service = hooks.serve(&options);
    service.signal(Signal::TERM);
    service.end().assert_code(0);
    assert_eq!(machine.lines("log"), [""; 0]);

    let before = machine.generation();
    machine.bump();
    let latest = machine.bump();
    let mut service = hooks.serve(&options);
    service.await_stderr(&format!("the generation has changed from {before} while"));
    service.await_stderr(&format!("generation {latest}: 1 hook succeeded"));
    assert_eq!(
        machine.lines("log"),
        [format!("10-works {latest} {before} 1")]
    );
    service.signal(Signal::TERM);
    service.end().assert_code(0);

    // What cannot be read says nothing of what was dealt with.
    fs::write(state.join("progress"), "nonsense").unwrap();
    let wait = run(&["wait", "--hooks-state", state.to_str().unwrap()]).assert_code(0);
    assert!(wait.stderr.contains("cannot tell from"), "{wait:?}");
    let mut service = hooks.serve(&options);
    service.await_stderr("a change may not have been dealt with");
    service.await_stderr("1 hook succeeded");
}

#[test]
#[ignore = "needs a node"]
fn hooks_that_nobody_runs_any_more_are_waited_for_until_somebody_could_have_been_started_again() {
    let machine = Machine::new();
    let hooks = Hooks::of(&machine);
    hooks.add("etc/10-fails", "exit 1");
    let state = machine.file("state");
    let state = state.to_str().unwrap();
    let mut service = hooks.serve(&["--state-dir", state]);
    let generation = machine.bump();
    service.await_stderr("10-fails has failed");
    service.signal(Signal::KILL);
    service.end();
    machine.await_outdated(0);

    let text = format!("the hooks for generation {generation} have not all succeeded, and ");
    let at_once = run(&["wait", "--hooks-state", state, "--timeout", "100ms"]).assert_code(3);
    assert!(at_once.stderr.contains(&text), "{at_once:?}");
    let ended = run(&["wait", "--hooks-state", state]).assert_code(0);
    assert!(ended.stderr.contains(&text), "{ended:?}");
    let folder = machine.file("nowhere");
    let missing = run(&["wait", "--hooks-state", folder.to_str().unwrap()]).assert_code(1);
    assert!(missing.stderr.contains("cannot look into"), "{missing:?}");

    // A change that comes now is one that nobody has seen.
    fs::write(machine.file("etc/10-fails"), "#!/bin/sh\n").unwrap();
    let mut service = hooks.serve(&["--state-dir", state]);
    service.await_stderr("1 hook succeeded");
    service.signal(Signal::KILL);
    service.end();
    machine.bump();
    run(&["wait", "--hooks-state", state, "--timeout", "100ms"]).assert_code(3);
}

#[test]
#[ignore = "needs a node"]
fn where_another_process_notes_already_nothing_is_noted() {
    let machine = Machine::new();
    let hooks = Hooks::of(&machine);
    hooks.add("etc/10-works", "");
    let state = machine.file("state");
    let options = ["--state-dir", state.to_str().unwrap()];
    let mut first = hooks.serve(&options);
    let noted = machine.lines("state/progress");
    let mut second = Program::start(
        &[
            "run-hooks",
            "--hooks-dir",
            machine.file("etc").to_str().unwrap(),
        ]
        .iter()
        .chain(&options)
        .copied()
        .collect::<Vec<_>>(),
    );
    second.await_stderr("this one notes nothing");
    second.await_stderr("ready");
    assert_eq!(machine.lines("state/progress"), noted);
    machine.bump();
    first.await_stderr("acknowledged");
    second.await_stderr("acknowledged");
}

#[test]
#[ignore = "needs a node"]
fn a_change_comes_before_the_hooks_of_one_that_was_unfinished_and_is_acknowledged() {
    let machine = Machine::new();
    let hooks = Hooks::of(&machine);
    hooks.add(
        "etc/10-fails",
        &format!("[ -e {} ]", machine.file("mended").display()),
    );
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let note = serde_json::json!({
        "dealt_with": 0,
        "pending": 1,
        "process": {"pid": 1, "started": null},
        "boot": boot.trim_end(),
    });
    machine.write("state/progress", &note.to_string());
    let mut command = sysgenctl(&["run-hooks", "--hooks-dir"]);
    command
        .arg(machine.file("etc"))
        .env("RUNTIME_DIRECTORY", machine.file("state"));
    let mut service = Program::of(&mut command);
    service.await_stderr("attempt 2 in 1 s");
    let generation = machine.bump();
    service.await_stderr(&format!("generation {generation}: 10-fails has failed"));
    assert_eq!(machine.outdated(), 1);
    machine.write("mended", "");
    service.await_stderr("acknowledged");
    assert_eq!(machine.outdated(), 0);
    let last = machine.lines("log").pop().unwrap();
    assert!(
        last.starts_with(&format!("10-fails {generation} 0 ")),
        "{last}"
    );
}

#[test]
#[ignore = "needs a node"]
fn a_link_that_leads_nowhere_is_a_failure_until_it_leads_somewhere() {
    let machine = Machine::new();
    let hooks = Hooks::of(&machine);
    symlink(machine.file("hook"), machine.file("etc/10-linked")).unwrap();
    hooks.run(&["--once"]).assert_code(1);
    let mut service = hooks.serve(&[]);
    machine.bump();
    let line = service.await_stderr("10-linked has failed");
    assert!(line.contains("leads nowhere"), "{line}");
    service.await_stderr("failed: 10-linked; attempt 2");
    assert_eq!(machine.outdated(), 1);
    hooks.add("hook", "");
    service.await_stderr("acknowledged");
    assert_eq!(machine.outdated(), 0);
}
