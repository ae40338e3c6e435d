// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a running daemon is asked for: it does what is wanted still, to the instance that is meant, for as long as
//! the process lives that it is for.

#![allow(clippy::unwrap_used)] // A test ends by a panic.

mod common;

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::daemon::{Daemon, Setup, Supervision};
use common::process;
use common::watcher::Watcher;
use rustix::process::Signal;
use serde_json::Value;
use sysgenidd::config::Attributes;
use sysgenidd::control::{self, Request, Response, client};

fn start(supervision: Supervision<'_>) -> Daemon {
    Daemon::start(&Setup {
        supervision,
        passthrough: true,
        published: false,
        environment: Vec::new(),
    })
}

/// What it prints if it succeeds.
fn told(daemon: &Daemon, arguments: &[&str]) -> Value {
    serde_json::from_str(&daemon.must(arguments)).unwrap()
}

fn names(daemon: &Daemon) -> Vec<String> {
    match control::call(&daemon.directory(), &Request::List).unwrap() {
        Response::Instances(list) => list.iter().map(|each| each.name.to_string()).collect(),
        answer => panic!("{answer:?}"),
    }
}

/// A process that lives until its input ends.
fn container() -> Child {
    Command::new("cat").stdin(Stdio::piped()).spawn().unwrap()
}

fn generation(node: &Path) -> u32 {
    Watcher::open(node).unwrap().map().unwrap().generation()
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_daemon_that_was_stopped_does_nothing_for_a_client_that_gave_up() {
    let daemon = start(Supervision::None);
    daemon.signal(Signal::STOP);
    let request = Request::Add {
        name: "web".parse().unwrap(),
        attributes: Attributes::default(),
        generation: None,
        pid: None,
    };
    for request in [request, Request::Stop] {
        let limit = Duration::from_millis(200);
        let answer = client::call_within(&daemon.directory(), &request, limit);
        let error = answer.unwrap_err();
        assert!(matches!(error, control::Error::NoAnswer(..)), "{error}");
    }
    daemon.signal(Signal::CONT);
    // It comes after the others, so it is answered after them.
    assert_eq!(names(&daemon), ["follower", "host", "stranger"]);
    daemon.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn an_instance_ends_with_its_process_also_under_a_successor() {
    let daemon = start(Supervision::Supervised { limit: 5 });
    let mut children = [container(), container(), container()];
    let pids = children.each_ref().map(|child| child.id().to_string());
    for (name, pid) in [("first", 0), ("second", 1), ("third", 2)] {
        let added = daemon.ask(&["instance", "add", name, "--pid", &pids[pid]]);
        assert!(added.status.success(), "{added:?}");
    }
    let arguments = ["instance", "add", "fourth", "--pid", &pids[0], "--outlive"];
    assert!(daemon.ask(&arguments).status.success());
    let list = told(&daemon, &["instance", "list", "--json"]);
    let tied: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|each| &each["pid"])
        .collect();
    assert_eq!(tied.iter().filter(|pid| pid.is_u64()).count(), 3, "{list}");

    process::kill(&mut children[0], "the first process");
    daemon.log().wait("its process", 1);
    assert!(!names(&daemon).contains(&"first".to_owned()));

    // The second ends while no daemon runs, the third under the next daemon.
    let running = process::child_of(daemon.id()).unwrap();
    rustix::process::kill_process(running, Signal::STOP).unwrap();
    process::kill(&mut children[1], "the second process");
    rustix::process::kill_process(running, Signal::KILL).unwrap();
    daemon.log().wait(" ready ", 2);
    let left = ["follower", "fourth", "host", "stranger", "third"];
    assert_eq!(names(&daemon), left);
    process::kill(&mut children[2], "the third process");
    daemon.log().wait("its process", 3);
    assert_eq!(names(&daemon), ["follower", "fourth", "host", "stranger"]);
    daemon.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_process_that_has_ended_gets_no_instance() {
    let daemon = start(Supervision::None);
    let mut child = container();
    let pid = child.id().to_string();
    process::kill(&mut child, "the process");
    let said = daemon.must_refuse(&["instance", "add", "web", "--pid", &pid]);
    assert!(said.contains(&pid), "{said}");
    assert!(!names(&daemon).contains(&"web".to_owned()));
    daemon.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_token_removes_what_it_was_given_for_and_nothing_else() {
    let daemon = start(Supervision::Supervised { limit: 5 });
    let add = ["instance", "add", "web", "--json"];
    let old = told(&daemon, &add)["token"].as_str().unwrap().to_owned();
    // Somebody else's of the same name.
    let removed = daemon.ask(&["instance", "remove", "web"]);
    assert!(removed.status.success(), "{removed:?}");
    let new = told(&daemon, &add)["token"].as_str().unwrap().to_owned();
    let said = daemon.must_refuse(&["instance", "remove", "web", "--token", &old]);
    assert!(said.contains("leave it alone"), "{said}");

    let said = daemon.must_refuse(&["instance", "remove", "follower", "--token", &new]);
    assert!(
        said.contains("change the configuration and reload"),
        "{said}"
    );
    assert!(names(&daemon).contains(&"follower".to_owned()));

    // The token is good under a successor too.
    let running = process::child_of(daemon.id()).unwrap();
    rustix::process::kill_process(running, Signal::KILL).unwrap();
    daemon.log().wait(" ready ", 2);
    let removed = daemon.ask(&["instance", "remove", "web", "--token", &new]);
    assert!(removed.status.success(), "{removed:?}");
    assert!(!names(&daemon).contains(&"web".to_owned()));
    daemon.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn an_instance_begins_above_what_its_programs_have_seen() {
    let daemon = start(Supervision::None);
    for (name, seen, above) in [("web", "41", 42), ("last", "4294967295", 1)] {
        let arguments = ["instance", "add", name, "--generation", seen, "--json"];
        let added = told(&daemon, &arguments);
        assert_eq!(added["generation"], above);
        let path = daemon.directory().join(name);
        assert_eq!(added["path"], path.to_str().unwrap());
        assert_eq!(generation(&path.join("sysgenid")), above);
        assert_eq!(generation(&path.join("vmgenid")), above);
    }
    daemon.stop();
}

/// What `sendfile` copies of a file, which is not more than the kernel takes for its size.
fn copied(file: &File) -> Vec<u8> {
    let mut copy = tempfile::tempfile().unwrap();
    while rustix::fs::sendfile(&copy, file, None, 1 << 16).unwrap() > 0 {}
    copy.rewind().unwrap();
    let mut bytes = Vec::new();
    copy.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_report_that_grows_while_it_is_opened_is_not_cut() {
    let daemon = start(Supervision::None);
    let node = daemon.node("host");
    let _nine: Vec<_> = (0..9).map(|_| Watcher::open(&node).unwrap()).collect();
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        // The tenth takes a digit more.
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                drop(Watcher::open(&node).unwrap());
            }
        });
        let cut = [("status", "always there\n"), ("metrics", "# EOF\n")].map(|(report, last)| {
            let path = node.with_file_name(report);
            (0..2000)
                .filter(|_| !copied(&File::open(&path).unwrap()).ends_with(last.as_bytes()))
                .count()
        });
        ended.store(true, Ordering::Relaxed);
        assert_eq!(cut, [0, 0], "of 2000 reports each");
    });
    daemon.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn the_metrics_say_for_how_long_somebody_has_been_outdated() {
    let daemon = start(Supervision::None);
    let node = daemon.node("host");
    let path = node.with_file_name("metrics");
    let seconds = || -> f64 {
        let length = path.metadata().unwrap().len();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.len() as u64, length, "{text}");
        let sample = "sysgenid_outdated_seconds{instance=\"host\"} ";
        let line = text.lines().find_map(|line| line.strip_prefix(sample));
        line.unwrap_or_else(|| panic!("{text}")).parse().unwrap()
    };
    let watcher = Watcher::open(&node).unwrap();
    watcher.track(true).unwrap();
    assert!(seconds() == 0.0);
    let began = Instant::now();
    watcher.trigger(0).unwrap();
    thread::sleep(Duration::from_millis(20));
    let outdated = seconds();
    assert!(outdated >= 0.02 && outdated <= began.elapsed().as_secs_f64());
    watcher.acknowledge(watcher.read().unwrap()).unwrap();
    assert!(seconds() == 0.0);
    daemon.stop();
}
