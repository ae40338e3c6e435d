// SPDX-License-Identifier: MIT OR Apache-2.0

//! Nobody waits who need not, and who waits is not disturbed: while daemons hand over or hang, while clients give up,
//! while programs are frozen or stopped, and for tools that read every file that they find.

#![allow(clippy::unwrap_used)] // A test ends by a panic.

mod common;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use common::daemon::{Daemon, RESTART, Setup, Supervision};
use common::program::Program;
use common::watcher::{Page, Watcher};
use common::{eventually, process};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::process::{Pid, Signal};

/// How long an open may take while a daemon hands over.
const LONGEST_OPEN: Duration = Duration::from_millis(100);

/// The watchdog's limit, in seconds, and how long a replacement may take beyond it.
const LIMIT: &str = "1";
const REPLACED: Duration = Duration::from_secs(3);

/// How long a tool may take that reads everything.
const TOOL: Duration = Duration::from_secs(5);

/// The program that maps; see [`Program`].
#[test]
#[ignore = "a part of other tests"]
fn part_program() {
    common::program::run();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_daemon_that_is_told_to_end_hands_over_and_that_is_no_crash() {
    let limit = 5;
    let daemon = start(Supervision::Supervised { limit }, &[]);
    let mut program = Program::start(&daemon.node("host"));
    let opener = Opener::start(&daemon.node("host"));
    // More often than it may crash.
    for time in 1..=limit + 3 {
        rustix::process::kill_process(daemon.server(), Signal::TERM).unwrap();
        daemon.log().wait(" ready ", time + 1);
    }
    opener.finish();
    assert_eq!(program.words().len(), 1, "{:?}", program.words());
    serves(&daemon);
    daemon.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn nobody_waits_long_for_a_daemon_that_hands_over() {
    let daemon = start(Supervision::Supervised { limit: 5 }, &[]);
    let opener = Opener::start(&daemon.node("host"));
    for time in 1..=20 {
        daemon.signal(Signal::USR1);
        daemon.log().wait(" ready ", time + 1);
    }
    let longest = opener.finish();
    eprintln!("the longest open took {longest:?}");
    assert!(longest <= LONGEST_OPEN, "{longest:?}");
    daemon.stop();
}

/// Opens a node again and again, and knows how long that took at worst.
struct Opener {
    enough: Arc<AtomicBool>,
    thread: JoinHandle<Duration>,
}

impl Opener {
    fn start(node: &Path) -> Self {
        let enough = Arc::new(AtomicBool::new(false));
        let (until, node) = (Arc::clone(&enough), node.to_owned());
        let thread = thread::spawn(move || {
            let mut longest = Duration::ZERO;
            while !until.load(Ordering::Acquire) {
                let start = Instant::now();
                Watcher::open(&node).unwrap();
                longest = longest.max(start.elapsed());
            }
            longest
        });
        Self { enough, thread }
    }

    fn finish(self) -> Duration {
        self.enough.store(true, Ordering::Release);
        self.thread.join().expect("every open succeeds")
    }
}

/// Checks that there is somebody who serves.
fn serves(daemon: &Daemon) {
    let watcher = Watcher::open(&daemon.node("host")).unwrap();
    let page = watcher.map().unwrap();
    let before = page.generation();
    watcher.trigger(0).unwrap();
    assert_eq!(watcher.read(), Ok(before + 1));
    assert_eq!(page.generation(), before + 1);
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn nothing_is_done_for_a_client_that_gave_up() {
    let daemon = start(Supervision::None, &[]);
    let stranger = "stranger";
    for request in [
        &["instance", "add", "web"][..],
        &["instance", "remove", stranger],
        &["stop"],
    ] {
        daemon.signal(Signal::STOP);
        let mut client = daemon
            .request(request)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_until_it_asks(&client);
        process::kill(&mut client, "the client");
        daemon.signal(Signal::CONT);
        // What is asked next is answered next.
        let list = daemon.must(&["instance", "list"]);
        assert!(!list.contains("web"), "{list}");
        assert!(list.contains(stranger), "{list}");
    }
    assert!(!daemon.node("web").exists());
    serves(&daemon);
    daemon.stop();
}

/// Waits until a process is in a call, with a socket.
fn wait_until_it_asks(client: &Child) {
    let id = client.id();
    eventually("the client has asked", || {
        let files = std::fs::read_dir(format!("/proc/{id}/fd")).unwrap();
        let mut links = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
        let has_socket = links.any(|link| link.to_string_lossy().starts_with("socket:"));
        let state = state(id);
        if has_socket && state == 'S' {
            Ok(())
        } else {
            Err(format!("it is {state}"))
        }
    });
}

/// What a process does: `S` is to sleep, `T` to be stopped.
fn state(id: u32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(')').unwrap();
    rest.trim_start().chars().next().unwrap()
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_daemon_that_hangs_is_replaced_and_nobody_stays_unkillable() {
    let daemon = start(Supervision::Supervised { limit: 5 }, &["--watchdog", LIMIT]);
    let mut program = Program::start(&daemon.node("host"));
    let mut victim = Waiter::start(&daemon, Wait::Read, &[]);
    let mut reader = Waiter::start(&daemon, Wait::Read, &[]);
    let hung = Instant::now();
    rustix::process::kill_process(daemon.server(), Signal::STOP).unwrap();
    process::kill(&mut victim.child, "a reader of a daemon that hangs");
    assert!(
        hung.elapsed() <= REPLACED,
        "killed after {:?}",
        hung.elapsed()
    );
    daemon.log().wait(" ready ", 2);
    assert!(
        hung.elapsed() <= REPLACED,
        "replaced after {:?}",
        hung.elapsed()
    );
    assert_eq!(program.words().len(), 1, "{:?}", program.words());
    serves(&daemon);
    assert_eq!(reader.end().0, Ok(()));
    daemon.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_daemon_that_has_nothing_to_do_is_not_taken_for_one_that_hangs() {
    let daemon = start(Supervision::Supervised { limit: 5 }, &["--watchdog", LIMIT]);
    let server = daemon.server();
    // There is no event for nothing.
    thread::sleep(REPLACED);
    assert_eq!(daemon.log().count(RESTART), 0, "{}", daemon.log().tail());
    assert_eq!(daemon.server(), server);
    daemon.stop();
}

/// A call that waits.
#[derive(Clone, Copy, Debug)]
enum Wait {
    Read,
    Poll,
    Epoll,
    /// For those who have not acknowledged, at most so long.
    Watchers,
}

const DEADLINE: Duration = Duration::from_secs(3);

/// How much later than its deadline a wait may end.
const LATE: Duration = Duration::from_millis(500);

/// A process that waits, and says how that ended.
struct Waiter {
    child: Child,
    lines: BufReader<ChildStdout>,
}

const WAITER: &str = "part_waiter";
const WAIT: &str = "SYSGENIDD_TEST_WAIT";
const NODE: &str = "SYSGENIDD_TEST_NODE";
const ENDED: &str = "the wait ended: ";

impl Waiter {
    /// Starts it, in these control groups, and returns once it waits.
    fn start(daemon: &Daemon, wait: Wait, groups: &[&Path]) -> Self {
        let mut child = Command::new("/proc/self/exe")
            .args(["--exact", WAITER, "--ignored", "--nocapture", "-q"])
            .args(["--test-threads=1"])
            .env(WAIT, format!("{wait:?}"))
            .env(NODE, daemon.node("host"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        for group in groups {
            std::fs::write(group.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        let mut line = String::new();
        while !line.contains("it will wait") {
            line.clear();
            assert_ne!(lines.read_line(&mut line).unwrap(), 0, "it does not wait");
        }
        let (_, thread) = line.trim_end().rsplit_once(' ').unwrap();
        let (id, thread) = (child.id(), thread.parse().unwrap());
        eventually("it waits", || match thread_state(id, thread) {
            'S' => Ok(()),
            other => Err(format!("it is {other}")),
        });
        Self { child, lines }
    }

    /// How its call ended, and after how long.
    fn end(&mut self) -> (Result<(), Errno>, Duration) {
        let mut line = String::new();
        while !line.contains(ENDED) {
            line.clear();
            assert_ne!(
                self.lines.read_line(&mut line).unwrap(),
                0,
                "it has not told"
            );
        }
        let (_, said) = line.trim_end().split_once(ENDED).unwrap();
        let (errno, milliseconds) = said.split_once(' ').unwrap();
        let outcome = match errno.parse().unwrap() {
            0 => Ok(()),
            errno => Err(Errno::from_raw_os_error(errno)),
        };
        (
            outcome,
            Duration::from_millis(milliseconds.parse().unwrap()),
        )
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        // Not waited for: where a test has failed, it may end no sooner than the daemon.
        let _ = self.child.kill();
    }
}

fn thread_state(id: u32, thread: u32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{id}/task/{thread}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(')').unwrap();
    rest.trim_start().chars().next().unwrap()
}

#[test]
#[ignore = "a part of other tests"]
fn part_waiter() {
    let Some(node) = std::env::var_os(NODE).map(PathBuf::from) else {
        return;
    };
    let Ok(wait) = std::env::var(WAIT) else {
        return;
    };
    let watcher = Watcher::open(&node).unwrap();
    let events = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    println!("it will wait {}", rustix::thread::gettid());
    let start = Instant::now();
    let outcome = match wait.as_str() {
        "Read" => watcher.read().map(drop),
        "Poll" => {
            let mut poll = [PollFd::new(&watcher, PollFlags::IN)];
            rustix::event::poll(&mut poll, None).map(drop)
        }
        "Epoll" => {
            epoll::add(&events, &watcher, EventData::new_u64(0), EventFlags::IN).unwrap();
            let mut list: Vec<epoll::Event> = Vec::with_capacity(1);
            // Linux itself ends this one when a program was stopped, whatever it waits for.
            rustix::io::retry_on_intr(|| epoll::wait(&events, spare_capacity(&mut list), None))
                .map(drop)
        }
        _ => watcher.wait(usize::try_from(DEADLINE.as_millis()).unwrap()),
    };
    let errno = outcome.err().map_or(0, Errno::raw_os_error);
    println!("{ENDED}{errno} {}", start.elapsed().as_millis());
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_frozen_control_group_disturbs_nobody_who_waits() {
    undisturbed(|daemon| {
        let mount = daemon.folder().join("groups");
        std::fs::create_dir(&mount).unwrap();
        if let Err(errno) =
            rustix::mount::mount("groups", &mount, "cgroup2", MountFlags::empty(), None)
        {
            eprintln!("skipped: this machine has no control groups of the second version: {errno}");
            return None;
        }
        let group = Group(mount.join(format!("sysgenidd-test-{}", std::process::id())));
        std::fs::create_dir(&group.0).unwrap();
        let path = group.0.clone();
        let freeze = move |_: &[Waiter], on: bool| {
            let _ = &group;
            std::fs::write(group.0.join("cgroup.freeze"), u8::from(on).to_string()).unwrap();
            let wanted = format!("frozen {}", u8::from(on));
            eventually("all of the group is frozen, or thawed", || {
                let events = std::fs::read_to_string(group.0.join("cgroup.events")).unwrap();
                if events.contains(&wanted) {
                    Ok(())
                } else {
                    Err(events)
                }
            });
        };
        Some((Some(path), Box::new(freeze)))
    });
}

/// A control group that goes with the test.
struct Group(PathBuf);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::write(self.0.join("cgroup.freeze"), "0");
        let _ = std::fs::write(self.0.join("cgroup.kill"), "1");
        eventually("the group is empty", || {
            std::fs::remove_dir(&self.0).map_err(|error| error.to_string())
        });
    }
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn being_stopped_and_continued_disturbs_nobody_who_waits() {
    undisturbed(|_| {
        let stop = |waiters: &[Waiter], on: bool| {
            for waiter in waiters {
                process::signal(&waiter.child, if on { Signal::STOP } else { Signal::CONT });
                eventually("it stops, or goes on", || match state(waiter.child.id()) {
                    'T' if !on => Err("it has stopped".to_owned()),
                    is if on && is != 'T' => Err(format!("it is {is}")),
                    _ => Ok(()),
                });
            }
        };
        Some((None, Box::new(stop)))
    });
}

/// Stops all, or lets them go on, and returns when that is so.
type Halt = Box<dyn Fn(&[Waiter], bool)>;

fn undisturbed(prepare: impl FnOnce(&Daemon) -> Option<(Option<PathBuf>, Halt)>) {
    let daemon = start(Supervision::None, &[]);
    let Some((group, halt)) = prepare(&daemon) else {
        daemon.stop();
        return;
    };
    let groups: Vec<&Path> = group.iter().map(PathBuf::as_path).collect();
    // Somebody for whom others wait.
    let outdated = Watcher::open(&daemon.file("vmgenid")).unwrap();
    outdated.trigger(0).unwrap();
    let mut waiters =
        [Wait::Watchers, Wait::Poll, Wait::Epoll].map(|wait| Waiter::start(&daemon, wait, &groups));

    let start = Instant::now();
    halt(&waiters, true);
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    // They stay so for a time that a deadline must not make up for.
    thread::sleep(DEADLINE / 3);
    halt(&waiters, false);

    let [watchers, poll, epoll] = &mut waiters;
    let (outcome, took) = watchers.end();
    assert_eq!(outcome, Err(Errno::TIME));
    assert!(took >= DEADLINE && took <= DEADLINE + LATE, "{took:?}");
    Watcher::open(&daemon.node("host"))
        .unwrap()
        .trigger(0)
        .unwrap();
    assert_eq!(poll.end().0, Ok(()));
    assert_eq!(epoll.end().0, Ok(()));
    // In this order: who is in a group keeps it.
    drop(waiters);
    drop(halt);
    daemon.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_tool_that_reads_every_file_comes_back_and_holds_up_nobody() {
    let daemon = start(Supervision::None, &[]);
    let to = |name: &str| daemon.folder().join(name).to_str().unwrap().to_owned();
    let from = daemon.directory().to_str().unwrap().to_owned();
    let page = Page::open(&daemon.node("host")).unwrap();
    let before = page.generation();
    let tools: [(&[&str], i32); 7] = [
        (&["tar", "-cf", "/dev/null", &from], 0),
        (&["tar", "-cf", &to("archive"), &from], 0),
        (&["cp", "-r", &from, &to("copy")], 0),
        (&["rsync", "-a", &from, &to("mirror")], 0),
        (
            &[
                "find", &from, "-type", "f", "-exec", "head", "-c1", "{}", "+",
            ],
            0,
        ),
        (
            &["find", &from, "-type", "f", "-exec", "md5sum", "{}", "+"],
            0,
        ),
        // It finds nothing.
        (&["grep", "-r", "no file says this", &from], 1),
    ];
    let mut faults = Vec::new();
    for (tool, expected) in tools {
        if let Err(fault) = run_tool(tool, expected) {
            faults.push(format!("{}: {fault}", tool.join(" ")));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert_eq!(page.generation(), before);
    let host = Watcher::open(&daemon.file("vmgenid")).unwrap();
    host.trigger(0).unwrap();
    host.acknowledge(before + 1).unwrap();
    assert_eq!(host.wait(1), Ok(()));
    daemon.stop();
}

fn run_tool(tool: &[&str], expected: i32) -> Result<(), String> {
    let mut child = Command::new(tool[0])
        .args(&tool[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{error}; cargo xtask test installs it"))?;
    let (end, ends) = mpsc::channel();
    let id = Pid::from_child(&child);
    let mut errors = child.stderr.take().unwrap();
    let waiting = thread::spawn(move || {
        let said = std::io::read_to_string(&mut errors).unwrap_or_default();
        let _ = end.send((child.wait().unwrap().code(), said));
    });
    let outcome = match ends.recv_timeout(TOOL) {
        Ok((code, _)) if code == Some(expected) => Ok(()),
        Ok((code, said)) => Err(format!("status {code:?}: {said}")),
        Err(_) => {
            rustix::process::kill_process(id, Signal::KILL).unwrap();
            Err("it does not come back".to_owned())
        }
    };
    // Its children end with the daemon, if not before.
    if outcome.is_ok() {
        waiting.join().unwrap();
    }
    outcome
}

fn start(supervision: Supervision<'_>, options: &[&str]) -> Daemon {
    let setup = Setup {
        supervision,
        passthrough: true,
        published: false,
        environment: Vec::new(),
    };
    Daemon::start_with(&setup, "", options)
}
