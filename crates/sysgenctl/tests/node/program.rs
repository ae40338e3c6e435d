// SPDX-License-Identifier: MIT OR Apache-2.0

//! Runs the command line, as a shell would.

use std::fs::Permissions;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use sysgenid_fixture::PATIENCE;

/// How a program has ended, and what it has printed.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The program, ready to be started.
pub(crate) fn sysgenctl(arguments: &[&str]) -> Command {
    let program = std::env::var_os("SYSGENCTL");
    let program = program.unwrap_or_else(|| env!("CARGO_BIN_EXE_sysgenctl").into());
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs it to its end.
pub(crate) fn run(arguments: &[&str]) -> Ended {
    Program::start(arguments).end()
}

/// Runs it to its end, as a user who is in no group that may do anything.
pub(crate) fn run_as_nobody(arguments: &[&str]) -> Ended {
    const NOBODY: u32 = 65_534;
    let command = sysgenctl(arguments);
    // A copy, for the folder that it was built in may be closed to others, as root's home is.
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let copy = folder.path().join("sysgenctl");
    std::fs::copy(command.get_program(), &copy).unwrap();
    let mut nobody = Command::new(copy);
    nobody.args(arguments).stdin(Stdio::null());
    Program::of(nobody.uid(NOBODY).gid(NOBODY)).end()
}

/// Runs it to its end, which must be a good one, and reads what it prints as JSON.
pub(crate) fn json(arguments: &[&str]) -> serde_json::Value {
    let ended = run(arguments);
    assert_eq!(ended.code, Some(0), "{arguments:?}: {ended:?}");
    ended.json()
}

impl Ended {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn assert_code(self, expected: i32) -> Self {
        assert_eq!(self.code, Some(expected), "{self:?}");
        self
    }
}

/// A program that runs. It is killed when this value goes away.
pub(crate) struct Program {
    child: Child,
    stdout: Lines,
    stderr: Lines,
}

/// What a program prints, as it comes.
struct Lines {
    receiver: Receiver<String>,
    seen: Vec<String>,
}

impl Program {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::of(&mut sysgenctl(arguments))
    }

    pub(crate) fn of(command: &mut Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            stdout: Lines::of(child.stdout.take().unwrap()),
            stderr: Lines::of(child.stderr.take().unwrap()),
            child,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for a line with this text in it.
    pub(crate) fn await_stdout(&mut self, text: &str) -> String {
        self.stdout.find(text)
    }

    /// The same for what it says to people.
    pub(crate) fn await_stderr(&mut self, text: &str) -> String {
        self.stderr.find(text)
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> Ended {
        let stdout = self.stdout.rest();
        let stderr = self.stderr.rest();
        let status = self.child.wait().unwrap();
        let ended = Ended {
            code: status.code(),
            signal: status.signal(),
            stdout,
            stderr,
        };
        for text in [&ended.stdout, &ended.stderr] {
            assert!(!text.contains('\x1b'), "not plain in a pipe: {ended:?}");
        }
        ended
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // One that is in charge of others ends them.
        if let Ok(None) = self.child.try_wait() {
            self.signal(Signal::TERM);
            let deadline = Instant::now() + PATIENCE;
            while let (Ok(None), true) = (self.child.try_wait(), Instant::now() < deadline) {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Lines {
    fn of(stream: impl Read + Send + 'static) -> Self {
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines() {
                let Ok(line) = line else { return };
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            receiver,
            seen: Vec::new(),
        }
    }

    /// The next line with this text in it.
    fn find(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.receiver.recv_timeout(left) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(reason) => panic!("no line has {text:?} ({reason}): {:#?}", self.seen),
            }
        }
    }

    /// All, once there are no more.
    fn rest(&mut self) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.receiver.recv_timeout(left) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it does not end: {:#?}", self.seen),
            }
        }
        self.seen.iter().map(|line| format!("{line}\n")).collect()
    }
}
