// SPDX-License-Identifier: MIT OR Apache-2.0

//! Many who use a node at once, as other users, and how long something takes meanwhile.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::OFlags;
use rustix::process::{Gid, Resource, Rlimit, Signal, Uid, getrlimit, setrlimit};

use super::process::Part;
use super::watcher::Watcher;

/// The name of the test that is [`run`], and where it finds what to poll, and how often.
const PART: &str = "part_poller";
const NODE: &str = "SYSGENIDD_TEST_POLLED";
const COUNT: &str = "SYSGENIDD_TEST_POLLERS";

/// What begins a line of it; the others are the harness's.
const MARK: &str = "heard ";

/// How many files a process has beside those that the test wants.
const OTHERS: usize = 100;

/// Lets this process and its children open as many files as they may, and returns how many that are.
pub(crate) fn allow_many_files() -> usize {
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open").unwrap();
    let most = most.trim().parse().unwrap();
    let limit = |files| Rlimit {
        current: Some(files),
        maximum: Some(files),
    };
    // Not everybody who is root may raise a limit.
    if setrlimit(Resource::Nofile, limit(most)).is_ok() {
        return usize::try_from(most).unwrap();
    }
    let permitted = getrlimit(Resource::Nofile).maximum.unwrap_or(most);
    setrlimit(Resource::Nofile, limit(permitted)).unwrap();
    usize::try_from(permitted).unwrap()
}

/// Does something as another user, who has no rights.
pub(crate) fn as_user<T: Send>(user: u32, act: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let acting = scope.spawn(|| {
            become_user(user);
            act()
        });
        acting.join().unwrap()
    })
}

/// Changes the user of this thread alone.
fn become_user(user: u32) {
    let group = Gid::from_raw(user);
    rustix::thread::set_thread_groups(&[]).unwrap();
    rustix::thread::set_thread_res_gid(group, group, group).unwrap();
    let user = Uid::from_raw(user);
    rustix::thread::set_thread_res_uid(user, user, user).unwrap();
}

/// So many descriptions of a node, each in an epoll that hears of every change. They never acknowledge, and are those of
/// as many processes as it takes, which end with this.
#[derive(Debug)]
pub(crate) struct Pollers(Vec<Part>);

impl Pollers {
    /// Opens them, as a user if one is named, and waits until all poll.
    pub(crate) fn start(node: &Path, user: Option<u32>, count: usize) -> Self {
        let each = allow_many_files() - OTHERS;
        let mut left = count;
        let mut processes = Vec::new();
        while left > 0 {
            let some = left.min(each);
            processes.push(start(node, user, some));
            left -= some;
        }
        let mut pollers = Self(processes);
        pollers.wait(0);
        pollers
    }

    /// Waits until each has heard of so many changes.
    pub(crate) fn wait(&mut self, changes: usize) {
        let wanted = format!("{MARK}{changes}\n");
        for part in &mut self.0 {
            let heard = part.hear(|line| line.ends_with(&wanted));
            assert!(heard.is_some(), "those who poll ended before they {wanted}");
        }
    }
}

/// Starts a process of them.
fn start(node: &Path, user: Option<u32>, count: usize) -> Part {
    let mut command = Command::new("/proc/self/exe");
    command
        .args(Part::arguments(PART))
        .env(NODE, node)
        .env(COUNT, count.to_string());
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    Part::start(&mut command)
}

/// Is a process of [`Pollers`]. It does nothing unless a test starts it.
pub(crate) fn run() {
    let Some(node) = std::env::var_os(NODE).map(PathBuf::from) else {
        return;
    };
    // Nobody else ends it if the test is killed.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let count: usize = std::env::var(COUNT).unwrap().parse().unwrap();
    let events = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let edges = EventFlags::IN | EventFlags::ET;
    let watchers: Vec<_> = (0..count)
        .map(|_| Watcher::open_with(&node, OFlags::RDONLY | OFlags::NONBLOCK).unwrap())
        .inspect(|watcher| epoll::add(&events, watcher, EventData::new_u64(0), edges).unwrap())
        .collect();
    let (mut heard, mut changes) = (0, 0);
    let mut list: Vec<epoll::Event> = Vec::with_capacity(1024);
    loop {
        while changes <= heard / watchers.len() {
            println!("{MARK}{changes}");
            changes += 1;
        }
        list.clear();
        epoll::wait(&events, spare_capacity(&mut list), None).unwrap();
        heard += list.len();
    }
}

/// So many, or as many as the environment says.
pub(crate) fn number(variable: &str, usual: usize) -> usize {
    std::env::var(variable).map_or(usual, |number| number.parse().expect("a number"))
}

/// How long something took, again and again.
#[derive(Debug)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn new(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    pub(crate) fn median(&self) -> Duration {
        self.0[self.0.len() / 2]
    }

    pub(crate) fn p99(&self) -> Duration {
        self.0[self.0.len() * 99 / 100]
    }
}

/// A file that anybody may run, with this very program: its own may be where others cannot come.
pub(crate) fn program_for_others(folder: &Path) -> PathBuf {
    let path = folder.join("program");
    std::fs::copy("/proc/self/exe", &path).unwrap();
    let file = File::open(&path).unwrap();
    rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
    path
}
