// SPDX-License-Identifier: MIT OR Apache-2.0

//! Processes in various namespaces, for the tests of those who judge them.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use super::namespace::Owner;

/// A process that lives until this is dropped.
pub(super) struct Process(Child);

impl Process {
    /// Starts `words`, a command that runs the command that follows it. `None`, with the reason
    /// printed, if that is not allowed here.
    pub(super) fn start(words: &[&str]) -> Option<Self> {
        let mut child = Command::new(words[0])
            .args(&words[1..])
            // Each of these replaces the process, so that the id stays the child's.
            .args(["sh", "-c", "echo ready; exec cat >&2"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a program of util-linux");
        let mut line = String::new();
        let output = child.stdout.take().expect("it is piped");
        BufReader::new(output).read_line(&mut line).expect("a line");
        let process = Self(child);
        if line != "ready\n" {
            eprintln!("skipped: {words:?} is not allowed here");
            return None;
        }
        Some(process)
    }

    pub(super) fn tid(&self) -> u32 {
        self.0.id()
    }

    pub(super) fn folder(&self) -> String {
        format!("/proc/{}", self.tid())
    }

    pub(super) fn namespace(&self) -> Owner {
        Owner::open(format!("{}/ns/user", self.folder())).unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended on its own; it is a child, so the id is still its own.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) const OWN_NAMESPACE: [&str; 2] = ["unshare", "-Ur"];

pub(super) fn as_user(id: &str) -> Vec<String> {
    ["setpriv", "--reuid", id, "--regid", id, "--clear-groups"]
        .map(str::to_owned)
        .to_vec()
}

pub(super) fn start(words: &[String]) -> Option<Process> {
    Process::start(&words.iter().map(String::as_str).collect::<Vec<_>>())
}

pub(super) fn here() -> Owner {
    Owner::of_current_process().unwrap()
}
