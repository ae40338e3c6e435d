// SPDX-License-Identifier: MIT OR Apache-2.0

//! Processes that a test starts, and what it knows of them.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
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

/// A process in namespaces of its own, which options of unshare(1) name, and its number. It lives until its input ends.
pub(crate) fn unshared(namespaces: &[&str]) -> (Child, String) {
    let mut child = Command::new("unshare")
        .args(namespaces)
        .args(["sh", "-c", "echo; exec cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It is in its namespaces once it speaks.
    let said = child.stdout.as_mut().unwrap();
    said.read_exact(&mut [0]).unwrap();
    let pid = child.id().to_string();
    (child, pid)
}

/// A part of a test that is a process of its own: what is told to it and what it says is a line each. It ends with this.
#[derive(Debug)]
pub(crate) struct Part {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Part {
    /// What makes a command run one of the ignored tests of this very program.
    pub(crate) fn arguments(name: &str) -> [&str; 5] {
        ["--exact", name, "--ignored", "--nocapture", "-q"]
    }

    /// Starts the command.
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// Says a line to it.
    pub(crate) fn tell(&mut self, line: &str) -> std::io::Result<()> {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}")
    }

    /// The next line of it that is meant; others are the harness's. `None`: it has ended.
    pub(crate) fn hear(&mut self, is_meant: impl Fn(&str) -> bool) -> Option<String> {
        let mut line = String::new();
        while self.lines.read_line(&mut line).unwrap() > 0 {
            if is_meant(&line) {
                return Some(line);
            }
            line.clear();
        }
        None
    }

    /// The number of its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it has ended.
    pub(crate) fn status(&mut self, what: &str) -> ExitStatus {
        wait(&mut self.child, what)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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
