// SPDX-License-Identifier: MIT OR Apache-2.0

//! Nobody pays for a stranger: what others do with their nodes, or with this one, delays nobody, moves nobody else's
//! generation, and takes no more than a limit allows.
//!
//! `SYSGENIDD_STRANGERS` says how many pollers there are, and `SYSGENIDD_INSTANCES` how many instances.

#![allow(clippy::unwrap_used)] // A test ends by a panic.

mod common;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::crowd::{self, Pollers, Times, as_user};
use common::daemon::{Daemon, Setup, Supervision};
use common::process::Part;
use common::program::{NOBODY, Program};
use common::watcher::{Page, Watcher};
use common::{eventually, process};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::Signal;

/// Another user without any right.
const SOMEBODY: u32 = 65_533;

/// How far the page of a container may be behind the host's.
const LATE: Duration = Duration::from_millis(5);

/// How long an open of the host's node may take.
const SLOW: Duration = Duration::from_millis(2);

/// How long opens are made beside a tenant that triggers all the time.
const BUSY: Duration = Duration::from_secs(3);

/// More watchers than any test has.
const MANY: &str = "[limits]\nwatchers = 300000\nwatchers-per-user = 300000\n";

/// How much more memory the daemon may have for what is refused, in kilobytes.
const SOME_MEMORY: u64 = 4096;

/// The program that maps; see [`Program`].
#[test]
#[ignore = "a part of other tests"]
fn part_program() {
    common::program::run();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn pollers_of_a_stranger_do_not_delay_the_page_of_a_container() {
    let daemon = start(MANY);
    let strangers = crowd::number("SYSGENIDD_STRANGERS", 20_000);
    let trigger = Watcher::open(&daemon.node("host")).unwrap();
    let pages =
        [&daemon.node("host"), &daemon.node("follower")].map(|node| Page::open(node).unwrap());
    let mut crowd = Pollers::start(&daemon.node("host"), Some(NOBODY), strangers);
    let mut late = Vec::new();
    for change in 1..=9 {
        late.push(lag(&pages, &trigger));
        crowd.wait(change);
    }
    let late = Times::new(late);
    let (median, p99) = (late.median(), late.p99());
    eprintln!("{strangers} pollers: {median:?} behind, {p99:?} at worst");
    assert!(median <= LATE, "{median:?} behind, {p99:?} at worst");
    drop(crowd);
    daemon.stop();
}

/// How long after the first page the second one changes.
fn lag([first, second]: &[Page; 2], trigger: &Watcher) -> Duration {
    let begun = Barrier::new(2);
    thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let before = [first.generation(), second.generation()];
            begun.wait();
            while first.generation() == before[0] {
                std::hint::spin_loop();
            }
            let start = Instant::now();
            while second.generation() == before[1] {
                std::hint::spin_loop();
            }
            start.elapsed()
        });
        begun.wait();
        trigger.trigger(0).unwrap();
        looking.join().unwrap()
    })
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_tenant_that_triggers_all_the_time_delays_no_open_and_moves_nobody_else() {
    let daemon = start(MANY);
    let mut tenant = Tenant::start(&daemon);
    let pid = tenant.0.id().to_string();
    daemon.must(&["instance", "add", "tenant", "--pid", &pid]);
    tenant.go(&daemon.node("tenant"));
    let node = daemon.node("host");
    let page = Page::open(&daemon.node("tenant")).unwrap();
    let host = Page::open(&node).unwrap();
    let before = (host.generation(), page.generation());
    let begun = Instant::now();
    let opens = std::iter::from_fn(|| {
        let start = Instant::now();
        Watcher::open(&node).unwrap();
        (begun.elapsed() < BUSY).then(|| start.elapsed())
    });
    let opens = Times::new(opens.collect());
    let (median, p99) = (opens.median(), opens.p99());
    eprintln!(
        "an open took {median:?}, p99 {p99:?}, while a tenant changed {} times",
        page.generation() - before.1
    );
    assert!(page.generation() > before.1, "the tenant does nothing");
    assert_eq!(host.generation(), before.0, "a tenant moved the host");
    let started = Instant::now();
    Watcher::open(&node).unwrap().trigger(0).unwrap();
    assert!(started.elapsed() < LATE * 10, "{:?}", started.elapsed());
    assert!(p99 <= SLOW, "median {median:?}, p99 {p99:?}");
    drop(tenant);
    daemon.stop();
}

/// A process in a user namespace of its own, in which it is root. It ends with the test.
struct Tenant(Part);

const TENANT: &str = "SYSGENIDD_TEST_TENANT";

impl Tenant {
    fn start(daemon: &Daemon) -> Self {
        crowd::allow_many_files();
        let mut command = Command::new("unshare");
        command
            .args(["--user", "--map-root-user"])
            .arg(crowd::program_for_others(daemon.folder()))
            .args(Part::arguments("part_tenant"))
            .env(TENANT, "")
            .uid(NOBODY)
            .gid(NOBODY);
        let mut tenant = Self(Part::start(&mut command));
        tenant.wait_for("in its namespace");
        tenant
    }

    /// Has it trigger all the time.
    fn go(&mut self, node: &Path) {
        self.0.tell(&node.display().to_string()).unwrap();
        self.wait_for("triggering");
    }

    fn wait_for(&mut self, what: &str) {
        let heard = self.0.hear(|line| line.contains(what));
        assert!(heard.is_some(), "the tenant ended before it was {what}");
    }
}

/// Those who poll; see [`Pollers`].
#[test]
#[ignore = "a part of other tests"]
fn part_poller() {
    crowd::run();
}

#[test]
#[ignore = "a part of another test"]
fn part_tenant() {
    if std::env::var_os(TENANT).is_none() {
        return;
    }
    println!("in its namespace");
    let mut node = String::new();
    std::io::stdin().read_line(&mut node).unwrap();
    let node = Path::new(node.trim_end());
    let strangers = crowd::number("SYSGENIDD_STRANGERS", 20_000);
    let _crowd = Pollers::start(node, None, strangers);
    Watcher::open(node).unwrap().trigger(0).unwrap();
    let triggering = || {
        let watcher = Watcher::open(node).unwrap();
        loop {
            // Too many are refused, and are tried all the same.
            let _ = watcher.trigger(0);
        }
    };
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(triggering);
        }
        println!("triggering");
    });
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_user_has_no_more_watchers_than_the_limit_and_takes_nobodys() {
    let daemon = start("[limits]\nwatchers-per-user = 100\n");
    let node = daemon.node("host");
    let open = || Watcher::open_with(&node, OFlags::RDONLY);
    let mut watchers: Vec<_> = as_user(NOBODY, || (0..100).map(|_| open().unwrap()).collect());
    assert_eq!(as_user(NOBODY, open).err(), Some(Errno::DQUOT));
    as_user(SOMEBODY, open).unwrap();
    open().unwrap();
    // Another instance counts for itself.
    as_user(NOBODY, || {
        Watcher::open_with(&daemon.node("stranger"), OFlags::RDONLY)
    })
    .unwrap();
    drop(watchers.pop());
    // The kernel tells of a close after it has returned.
    watchers.push(eventually("a close gives room", || {
        as_user(NOBODY, open).map_err(|errno| errno.to_string())
    }));
    assert_eq!(as_user(NOBODY, open).err(), Some(Errno::DQUOT));
    daemon.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn those_who_open_a_node_during_a_change_keep_nobody_from_hearing_of_it() {
    const POLLERS: usize = 600;
    const OTHERS: usize = 600;
    let daemon = start(MANY);
    crowd::allow_many_files();
    let node = daemon.node("host");
    let trigger = Watcher::open(&node).unwrap();
    let epoll = epoll::create(CreateFlags::CLOEXEC).unwrap();
    let mut watchers = Vec::new();
    for index in 0..POLLERS + OTHERS {
        let watcher = Watcher::open_with(&node, OFlags::RDONLY).unwrap();
        if index % 2 == 0 {
            let data = EventData::new_u64(u64::try_from(index).unwrap());
            epoll::add(&epoll, &watcher, data, EventFlags::IN | EventFlags::ET).unwrap();
        }
        watchers.push(watcher);
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                // More and more of them: each is a new place among the watchers.
                let mut open = Vec::new();
                while !stop.load(Ordering::Relaxed) && open.len() < 3000 {
                    open.push(Watcher::open_with(&node, OFlags::RDONLY).unwrap());
                }
            });
        }
        for round in 1..=10 {
            trigger.trigger(0).unwrap();
            let mut told = BTreeSet::new();
            let until = Instant::now() + Duration::from_secs(5);
            while told.len() < POLLERS && Instant::now() < until {
                let mut events = Vec::with_capacity(POLLERS);
                let limit = rustix::event::Timespec {
                    tv_sec: 0,
                    tv_nsec: 100_000_000,
                };
                let room = rustix::buffer::spare_capacity(&mut events);
                epoll::wait(&epoll, room, Some(&limit)).unwrap();
                told.extend(events.iter().map(|event| event.data.u64()));
            }
            assert_eq!(told.len(), POLLERS, "who has heard of change {round}");
        }
        stop.store(true, Ordering::Relaxed);
    });
    daemon.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn an_instance_has_no_more_watchers_than_the_limit() {
    let daemon = start("[limits]\nwatchers = 50\n");
    let node = daemon.node("host");
    let open = || Watcher::open_with(&node, OFlags::RDONLY);
    let mut watchers: Vec<_> = as_user(NOBODY, || (0..30).map(|_| open().unwrap()).collect());
    watchers.extend((0..20).map(|_| open().unwrap()));
    assert_eq!(as_user(SOMEBODY, open).err(), Some(Errno::NFILE));
    Watcher::open(&daemon.node("follower")).unwrap();
    drop(watchers.pop());
    eventually("a close gives room", || {
        as_user(SOMEBODY, open).map_err(|errno| errno.to_string())
    });
    daemon.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn reports_that_are_kept_open_take_no_memory_without_a_limit() {
    let daemon = start("[limits]\nreports = 4\n");
    crowd::allow_many_files();
    let report = daemon.file("metrics");
    let before = process::status_field(daemon.id(), "VmRSS:");
    let mut open = Vec::new();
    let mut refused = Vec::new();
    as_user(NOBODY, || {
        for _ in 0..10_000 {
            match File::open(&report) {
                Ok(mut file) => {
                    file.read_exact(&mut [0]).unwrap();
                    open.push(file);
                }
                Err(error) => refused.push(error.raw_os_error()),
            }
        }
    });
    let more = process::status_field(daemon.id(), "VmRSS:").saturating_sub(before);
    assert!(more < SOME_MEMORY, "{more} kB for {} reports", open.len());
    assert_eq!(open.len(), 4);
    let all_say_why = refused
        .iter()
        .all(|error| *error == Some(Errno::MFILE.raw_os_error()));
    assert!(all_say_why, "{:?}", refused[0]);
    // Nor do they keep anybody from the nodes.
    Watcher::open(&daemon.node("host")).unwrap();
    open.clear();
    eventually("a close gives room", || {
        std::fs::read_to_string(&report).map_err(|error| error.to_string())
    });
    daemon.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn there_are_no_more_instances_than_the_limit_and_the_command_says_so() {
    let daemon = start("[limits]\ninstances = 3\n");
    let said = daemon.must_refuse(&["instance", "add", "web"]);
    let says_why = said.contains("instances") && said.contains('3') && said.contains("limit");
    assert!(says_why, "{said}");
    assert!(!daemon.node("web").exists());
    daemon.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn there_may_be_many_instances_whatever_the_length_of_their_names() {
    crowd::allow_many_files();
    let daemon = Daemon::start_with(&setup(Supervision::Supervised { limit: 5 }), "", &[]);
    let count = crowd::number("SYSGENIDD_INSTANCES", 300);
    let names: Vec<_> = (0..count).map(|number| format!("{number:0>64}")).collect();
    let (_container, pid) = container();
    let namespace = format!("/proc/{pid}/ns/user");
    for name in &names {
        daemon.must(&["instance", "add", name, "--user-namespace", &namespace]);
    }
    let mappings: Vec<_> = names
        .iter()
        .map(|name| Page::open(&daemon.node(name)).unwrap())
        .collect();
    let all_are_listed = || {
        let list = daemon.must(&["instance", "list"]);
        names.iter().all(|name| list.contains(name.as_str()))
    };
    assert!(all_are_listed());
    daemon.signal(Signal::USR1);
    daemon.log().wait(" ready ", 2);
    assert!(all_are_listed());
    let host = Watcher::open(&daemon.node("host")).unwrap();
    host.trigger(0).unwrap();
    let follow = |page: &Page| page.generation() == 1;
    assert!(mappings.iter().all(follow));
    for name in &names {
        daemon.must(&["instance", "remove", name]);
    }
    assert!(names.iter().all(|name| !daemon.node(name).exists()));
    daemon.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn an_instance_goes_by_itself_when_its_process_ends() {
    let daemon = start("");
    let (mut container, pid) = container();
    daemon.must(&["instance", "add", "web", "--pid", &pid]);
    let mut program = Program::start(&daemon.node("web"));
    let before = program.generation();
    process::kill(&mut container, "the container");
    wait_until_gone(&daemon, "web");
    assert!(program.generation() > before);
    assert!(!program.word().live);
    assert!(!daemon.must(&["instance", "list"]).contains("web"));
    daemon.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn an_instance_goes_when_its_process_ends_while_no_daemon_runs() {
    let daemon = Daemon::start_with(&setup(Supervision::Supervised { limit: 5 }), "", &[]);
    let (mut container, pid) = container();
    let (mut survivor, other) = self::container();
    daemon.must(&["instance", "add", "web", "--pid", &pid]);
    daemon.must(&["instance", "add", "other", "--pid", &other]);
    let server = daemon.server();
    rustix::process::kill_process(server, Signal::STOP).unwrap();
    process::kill(&mut container, "the container");
    rustix::process::kill_process(server, Signal::KILL).unwrap();
    wait_until_gone(&daemon, "web");
    assert!(daemon.node("other").exists(), "its process lives");
    process::kill(&mut survivor, "the other container");
    wait_until_gone(&daemon, "other");
    daemon.stop();
}

fn wait_until_gone(daemon: &Daemon, name: &str) {
    eventually("the instance of a process that has ended goes", || {
        let folder = daemon.directory().join(name);
        if folder.exists() {
            Err(format!("{} is there", folder.display()))
        } else {
            Ok(())
        }
    });
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn only_who_added_an_instance_removes_it_by_its_token() {
    let daemon = start("");
    let add = || -> serde_json::Value {
        let added = daemon.must(&["instance", "add", "web", "--json"]);
        serde_json::from_str(&added).unwrap_or_else(|error| panic!("{error}: {added}"))
    };
    let added = add();
    let path = Path::new(added["path"].as_str().unwrap());
    assert!(
        path.starts_with(daemon.directory()) && path.exists(),
        "{added}"
    );
    let first = added["token"].as_str().unwrap();
    let page = Page::open(&daemon.node("web")).unwrap();
    assert_eq!(added["generation"].as_u64(), Some(page.generation().into()));

    let remove = |name, token| daemon.ask(&["instance", "remove", name, "--token", token]);
    assert!(!remove("web", "wrong").status.success());
    assert!(daemon.node("web").exists());
    assert!(!remove("follower", first).status.success());
    assert!(daemon.node("follower").exists(), "it is configured");
    assert!(remove("web", first).status.success());

    // The next of that name is another's.
    let second = add();
    assert!(!remove("web", first).status.success());
    assert!(daemon.node("web").exists());
    assert!(
        remove("web", second["token"].as_str().unwrap())
            .status
            .success()
    );
    assert!(!daemon.node("web").exists());
    daemon.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn an_instance_for_a_restored_container_begins_beyond_what_its_snapshot_knew() {
    let daemon = start("");
    daemon.must(&["instance", "add", "web", "--generation", "7"]);
    assert_eq!(Page::open(&daemon.node("web")).unwrap().generation(), 8);
    // Nor does it begin below what the name has shown before.
    daemon.must(&["instance", "remove", "web"]);
    daemon.must(&["instance", "add", "web", "--generation", "3"]);
    assert!(Page::open(&daemon.node("web")).unwrap().generation() > 8);
    daemon.stop();
}

fn setup(supervision: Supervision<'_>) -> Setup<'_> {
    Setup {
        supervision,
        passthrough: true,
        published: false,
        environment: Vec::new(),
    }
}

fn start(sections: &str) -> Daemon {
    Daemon::start_with(&setup(Supervision::None), sections, &[])
}

/// A process in a user namespace of its own, and its number.
fn container() -> (Child, String) {
    process::unshared(&["--user", "--map-root-user"])
}
