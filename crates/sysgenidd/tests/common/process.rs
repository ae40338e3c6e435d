// SPDX-License-Identifier: MIT OR Apache-2.0

//! Processes that a test starts, and what it knows of them.

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

use super::PATIENCE;

/// Waits for the end of a process, but not for ever.
pub(crate) fn wait(child: &mut Child, what: &str) -> ExitStatus {
    let pidfd = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty()).unwrap();
    let timeout = Timespec::try_from(PATIENCE).unwrap();
    let mut poll = [PollFd::new(&pidfd, PollFlags::IN)];
    let ended = rustix::event::poll(&mut poll, Some(&timeout)).unwrap();
    assert_eq!(ended, 1, "{what} does not end: process {}", child.id());
    child.wait().unwrap()
}

/// Kills a process, and returns how long it took to be gone.
pub(crate) fn kill(child: &mut Child, what: &str) -> Duration {
    let start = Instant::now();
    child.kill().unwrap();
    let status = wait(child, what);
    let killed = Signal::KILL.as_raw();
    assert_eq!(
        status.signal(),
        Some(killed),
        "{what} ended before it was killed"
    );
    start.elapsed()
}

/// Sends a signal to a child that has not been waited for.
pub(crate) fn signal(child: &Child, signal: Signal) {
    rustix::process::kill_process(Pid::from_child(child), signal).unwrap();
}

/// The only child of a process, if it has one now.
pub(crate) fn child_of(parent: u32) -> Option<Pid> {
    let parent = parent.to_string();
    std::fs::read_dir("/proc").unwrap().find_map(|entry| {
        let pid = entry.unwrap().file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything; the state and the parent follow the last one.
        let (_, rest) = stat.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace();
        let is_alive = fields.next() != Some("Z");
        (is_alive && fields.next() == Some(&parent)).then(|| Pid::from_raw(pid))?
    })
}

/// Waits until a thread of this process sleeps.
pub(crate) fn wait_until_asleep(tid: Pid) {
    let path = format!("/proc/self/task/{}/stat", tid.as_raw_nonzero());
    super::eventually("a thread goes to sleep", || {
        let stat = std::fs::read_to_string(&path).map_err(|error| error.to_string())?;
        let (_, rest) = stat.rsplit_once(')').unwrap();
        if rest.trim_start().starts_with('S') {
            Ok(())
        } else {
            Err(stat)
        }
    });
}

/// A line of `/proc/PID/status`, in its own unit.
pub(crate) fn status_field(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|line| line.split_ascii_whitespace().next());
    value.unwrap().parse().unwrap()
}
