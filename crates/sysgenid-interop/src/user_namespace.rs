// SPDX-License-Identifier: MIT OR Apache-2.0

//! A user namespace that is there before any container is in it, so that an instance can belong to it.

use std::process::Command;

use anyhow::Context;
use anyhow::Result;

use crate::conversation::Conversation;
use crate::conversation::Running;

/// The user and group of the machine that are root in a namespace made here.
pub const FIRST_ID: u32 = 100_000;

/// How many users and groups such a namespace has.
pub const IDS: u32 = 65_536;

/// Says who it is, and stays until the test closes its input.
const HOLD: &str = "echo $$; exec cat";

/// A user namespace, held by a process in it.
#[derive(Debug)]
pub struct UserNamespace {
    pid: u32,
    _holder: Running,
    _input: Conversation,
}

impl UserNamespace {
    /// Makes a user namespace whose root is an unprivileged user of the machine.
    pub fn create() -> Result<Self> {
        Self::create_with(&[])
    }

    /// The same, with further namespaces, by the options of `unshare`.
    pub fn create_with(further: &[&str]) -> Result<Self> {
        let namespace = Self::enter(Command::new("unshare").arg("--user").args(further))?;
        for map in ["uid_map", "gid_map"] {
            let path = format!("/proc/{}/{map}", namespace.pid());
            std::fs::write(&path, format!("0 {FIRST_ID} {IDS}\n"))
                .with_context(|| format!("cannot write {path}"))?;
        }
        Ok(namespace)
    }

    /// The user namespace in which this command runs what is added to it.
    pub fn enter(command: &mut Command) -> Result<Self> {
        // The command may put processes of its own between: only the last one is surely inside.
        let (mut input, holder) = Conversation::start(command.args(["sh", "-c", HOLD]))?;
        let pid = input
            .receive()
            .context("no process came to be in a user namespace")?;
        Ok(Self {
            pid,
            _holder: holder,
            _input: input,
        })
    }

    /// A process in it.
    pub fn pid(&self) -> u32 {
        self.pid
    }
}
