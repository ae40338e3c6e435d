// SPDX-License-Identifier: MIT OR Apache-2.0

//! However serving ends, no mapping goes blind: a program that maps a page, closes the node and only ever loads sees one
//! last change, and that the page is not live any more, both by one load; and once the instance is served again under
//! its name, the same mapping goes on.

#![allow(clippy::unwrap_used)] // A test ends by a panic.

mod common;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use common::PATIENCE;
use common::daemon::{Daemon, RESTART, Setup, Supervision};
use common::program::Program;
use common::watcher::{Page, Watcher};
use rustix::process::Signal;
use sysgenid_core::PageWord;

const SUPERVISED: Supervision<'_> = Supervision::Supervised { limit: 1 };

/// A configuration without the instance `follower`, which there is else.
const WITHOUT_FOLLOWER: &str = "[backends]\nuse = []\n[instances.stranger]\nparent = \"none\"\n";
const WITH_FOLLOWER: &str =
    "[backends]\nuse = []\n[instances.follower]\n[instances.stranger]\nparent = \"none\"\n";

/// The program that maps; see [`Program`].
#[test]
#[ignore = "a part of other tests"]
fn part_program() {
    common::program::run();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_mapping_sees_the_daemon_stop_and_goes_on_with_the_next() {
    the_end(
        "host",
        start(Supervision::None, true),
        interrupt,
        Daemon::start_again,
    );
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_mapping_sees_a_supervised_daemon_stop_and_goes_on_with_the_next() {
    the_end(
        "follower",
        start(SUPERVISED, true),
        interrupt,
        Daemon::start_again,
    );
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_mapping_that_is_a_copy_sees_the_daemon_stop() {
    the_end(
        "host",
        start(Supervision::None, false),
        interrupt,
        Daemon::start_again,
    );
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_mapping_sees_the_stop_command_and_goes_on_with_the_next() {
    let stop = |daemon: &mut Daemon| {
        daemon.must(&["stop"]);
        daemon.end();
    };
    the_end(
        "host",
        start(Supervision::None, true),
        stop,
        Daemon::start_again,
    );
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_mapping_sees_its_instance_removed_and_goes_on_when_it_is_added_again() {
    removed(true);
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_mapping_that_is_a_copy_sees_its_instance_removed() {
    removed(false);
}

fn removed(passthrough: bool) {
    let daemon = start(Supervision::None, passthrough);
    daemon.must(&["instance", "add", "web"]);
    let remove = |daemon: &mut Daemon| {
        daemon.must(&["instance", "remove", "web"]);
    };
    let add = |daemon: &mut Daemon| {
        daemon.must(&["instance", "add", "web"]);
    };
    the_end("web", daemon, remove, add);
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_mapping_sees_a_reload_drop_its_instance_and_goes_on_when_it_is_configured_again() {
    let drop_it = |daemon: &mut Daemon| {
        daemon.configure(WITHOUT_FOLLOWER);
        daemon.must(&["reload"]);
    };
    let restore = |daemon: &mut Daemon| {
        daemon.configure(WITH_FOLLOWER);
        daemon.must(&["reload"]);
    };
    the_end("follower", start(SUPERVISED, true), drop_it, restore);
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_mapping_sees_the_supervisor_give_up_and_goes_on_with_the_next() {
    let give_up = |daemon: &mut Daemon| {
        // The limit is one, so that the second is too many.
        for death in 1..=2 {
            rustix::process::kill_process(daemon.server(), Signal::KILL).unwrap();
            daemon.log().wait(RESTART, death);
        }
        assert_eq!(daemon.end().code(), Some(1));
    };
    the_end(
        "host",
        start(SUPERVISED, true),
        give_up,
        Daemon::start_again,
    );
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_mapping_sees_what_cleans_up_after_a_daemon_that_was_killed() {
    let clean = |daemon: &mut Daemon| {
        daemon.signal(Signal::KILL);
        daemon.end();
        daemon.must(&["clean"]);
    };
    the_end(
        "host",
        start(Supervision::None, true),
        clean,
        Daemon::start_again,
    );
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn after_the_last_change_there_is_none_whoever_triggers_meanwhile() {
    let daemon = start(Supervision::None, true);
    let node = daemon.node("host");
    let page = Page::open(&node).unwrap();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let trigger = Watcher::open(&node).unwrap();
                while trigger.trigger(0).is_ok() {}
            });
        }
        let looks = scope.spawn(|| {
            let mut words = Vec::new();
            let start = std::time::Instant::now();
            let mut ended = None;
            while ended.is_none_or(|at: std::time::Instant| at.elapsed().as_millis() < 300) {
                assert!(start.elapsed() < PATIENCE);
                let word = page.word();
                if words.last() != Some(&word) {
                    words.push(word);
                }
                if !word.live && ended.is_none() {
                    ended = Some(std::time::Instant::now());
                }
            }
            words
        });
        thread::sleep(std::time::Duration::from_millis(50));
        daemon.stop();
        let words = looks.join().unwrap();
        let last = words.iter().position(|word| !word.live).unwrap();
        assert_eq!(words.len(), last + 1, "{:?}", &words[last..]);
    });
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_mapping_goes_on_with_the_next_daemon_where_nobody_could_tell_of_the_end() {
    let mut daemon = start(Supervision::None, true);
    let mut program = Program::start(&daemon.node("host"));
    let before = program.generation();
    daemon.signal(Signal::KILL);
    daemon.end();
    daemon.start_again();
    goes_on(&daemon, &mut program, "host", before);
    daemon.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_state_that_a_successor_cannot_read_costs_the_watchers_and_not_the_mappings() {
    let daemon = start(Supervision::Supervised { limit: 5 }, true);
    let node = daemon.node("host");
    Watcher::open(&node).unwrap().trigger(5).unwrap();
    let mut program = Program::start(&node);
    let before = program.generation();
    let (result, results) = mpsc::channel();
    let sleeper = Watcher::open(&node).unwrap();
    thread::spawn(move || result.send(sleeper.read()));

    let server = daemon.server();
    rustix::process::kill_process(server, Signal::STOP).unwrap();
    let state = daemon.directory().join(".keep/host/state");
    let file = std::fs::File::options().write(true).open(&state);
    let file = file.unwrap_or_else(|error| panic!("{}: {error}", state.display()));
    file.write_all_at(&[0xff; 8], 0).unwrap();
    daemon.signal(Signal::USR1);
    rustix::process::kill_process(server, Signal::CONT).unwrap();
    daemon.log().wait(" ready ", 2);

    let read = results.recv_timeout(PATIENCE).expect("the reader returns");
    read.expect_err("a watcher of which nothing is known went on");
    let was_told = daemon.log().count("watchers");
    assert!(was_told > 0, "the log says nothing of it");
    goes_on(&daemon, &mut program, "host", before);
    daemon.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_hand_over_and_a_crash_are_no_ends() {
    let daemon = start(Supervision::Supervised { limit: 5 }, true);
    let mut program = Program::start(&daemon.node("follower"));
    let before = program.generation();
    for restart in 1..=4 {
        if restart % 2 == 0 {
            daemon.signal(Signal::USR1);
        } else {
            rustix::process::kill_process(daemon.server(), Signal::KILL).unwrap();
        }
        daemon.log().wait(" ready ", restart + 1);
    }
    assert_eq!(program.generation(), before);
    assert_eq!(program.words().len(), 1, "{:?}", program.words());
    assert!(program.word().live, "{:?}", program.word());
    Watcher::open(&daemon.node("host"))
        .unwrap()
        .trigger(0)
        .unwrap();
    assert_eq!(program.generation(), before + 1);
    daemon.stop();
}

fn start(supervision: Supervision<'_>, passthrough: bool) -> Daemon {
    Daemon::start(&Setup {
        supervision,
        passthrough,
        published: false,
        environment: Vec::new(),
    })
}

fn interrupt(daemon: &mut Daemon) {
    daemon.signal(Signal::INT);
    let status = daemon.end();
    assert!(status.success(), "{status}");
}

/// Lets an instance end and begin again under the eyes of a program that maps its page.
fn the_end(
    instance: &str,
    mut daemon: Daemon,
    end: impl FnOnce(&mut Daemon),
    begin: impl FnOnce(&mut Daemon),
) {
    let node = daemon.node(instance);
    let is_page = says_passthrough(&daemon, instance);
    Watcher::open(&node).unwrap().trigger(0).unwrap();
    let mut program = Program::start(&node);
    let before = program.generation();

    end(&mut daemon);
    let last = program.generation();
    assert!(last > before, "the last change of {before} is {last}");
    assert!(!program.word().live, "{:?}", program.word());
    let seen = program.words();
    assert_eq!(seen.len(), 2, "one change, with its flag: {seen:?}");
    assert_eq!(seen[1].generation.get(), last);

    begin(&mut daemon);
    if is_page {
        goes_on(&daemon, &mut program, instance, last);
        let seen = program.words();
        let ends = seen.iter().filter(|word| !word.live).count();
        assert_eq!(ends, 1, "{seen:?}");
    } else {
        assert_eq!(program.words(), seen, "a copy cannot go on");
        assert!(page(&node).generation.get() > last);
    }
    daemon.stop();
}

/// Checks that an old mapping shows what a new one does, and that this is beyond what it showed.
fn goes_on(daemon: &Daemon, program: &mut Program, instance: &str, last: u32) {
    let node = daemon.node(instance);
    let served = page(&node);
    assert!(
        served.generation.get() > last,
        "served again at {served:?}, after {last}"
    );
    assert_eq!(
        program.generation(),
        served.generation.get(),
        "the mapping is of another page"
    );
    Watcher::open(&node).unwrap().trigger(0).unwrap();
    assert_eq!(program.generation(), served.generation.get() + 1);
    let seen = program.words();
    assert!(program.word().live, "{seen:?}");
    let is_sorted = seen.is_sorted_by(|one, next| one.generation.get() < next.generation.get());
    assert!(
        is_sorted,
        "a generation twice, or one that went back: {seen:?}"
    );
}

fn page(node: &Path) -> PageWord {
    common::watcher::Page::open(node).unwrap().word()
}

fn says_passthrough(daemon: &Daemon, instance: &str) -> bool {
    let status = daemon.directory().join(instance).join("status");
    let status = std::fs::read_to_string(status).unwrap();
    let mut lines = status.lines().filter(|line| line.starts_with("mapping:"));
    lines.next().unwrap().contains("passthrough")
}
