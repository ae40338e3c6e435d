// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a test and a program say to each other: a line of JSON each way.

use std::fs::File;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// How long a program may take to answer. Only ever waited for in full where something is wrong.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a test asks of a program.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Use the secret, and say which it was.
    Now,
    /// The same, as soon as the program is at another generation than this.
    After(u32),
}

/// What a watching program says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The generation that the secret was made in.
    pub generation: u32,
    /// What must never be the same in two clones.
    pub secret: String,
}

/// What AWS-LC says, and a draw from its random number generator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draw {
    /// Who draws.
    pub user: u32,
    /// Whether AWS-LC found the node.
    pub supported: bool,
    /// Whether AWS-LC mapped the node.
    pub active: bool,
    /// The generation that it sees, if asking did not fail.
    pub generation: Option<u32>,
    /// How often its generator was seeded anew, after this draw.
    pub reseeds: u64,
    /// What was drawn.
    pub bytes: String,
}

/// A program that talks with the test.
#[derive(Debug)]
pub struct Conversation {
    requests: File,
    answers: BufReader<File>,
}

impl Conversation {
    /// Starts a command that is talked with by pipes.
    pub fn start(command: &mut Command) -> Result<(Self, Running)> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let requests = child.stdin.take().context("the child has no input")?;
        let answers = child.stdout.take().context("the child has no output")?;
        let conversation = Self::over(
            OwnedFd::from(requests).into(),
            OwnedFd::from(answers).into(),
        );
        Ok((conversation, Running(child)))
    }

    /// Talks over files that a program has as its standard input and output.
    pub fn over(requests: File, answers: File) -> Self {
        Self {
            requests,
            answers: BufReader::new(answers),
        }
    }

    /// Asks, and waits for the answer.
    pub fn ask<Answer: DeserializeOwned>(&mut self, request: Request) -> Result<Answer> {
        self.send(request)?;
        self.receive().with_context(|| format!("asked {request:?}"))
    }

    /// Asks, and leaves the answer for later.
    pub fn send(&mut self, request: Request) -> Result<()> {
        let mut line = serde_json::to_string(&request)?;
        line.push('\n');
        self.requests
            .write_all(line.as_bytes())
            .context("the program takes no more requests")
    }

    /// Waits for an answer.
    pub fn receive<Answer: DeserializeOwned>(&mut self) -> Result<Answer> {
        if self.answers.buffer().is_empty() && !self.is_readable(PATIENCE)? {
            bail!("the program has not answered for {} s", PATIENCE.as_secs());
        }
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("the program answered {line:?}"))
    }

    fn is_readable(&self, patience: Duration) -> Result<bool> {
        let timeout = Timespec::try_from(patience)?;
        let mut fds = [PollFd::new(self.answers.get_ref(), PollFlags::IN)];
        let ready = rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&timeout)))?;
        Ok(ready > 0)
    }
}

/// A child that is killed when the test is done with it, however the test ends.
#[derive(Debug)]
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The program's side: answers each request with what `answer` says, until there are no more.
pub fn serve<Answer: Serialize>(mut answer: impl FnMut(Request) -> Result<Answer>) -> Result<()> {
    let mut output = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let request = serde_json::from_str(&line?)?;
        let mut line = serde_json::to_string(&answer(request)?)?;
        line.push('\n');
        output.write_all(line.as_bytes())?;
        output.flush()?;
    }
    Ok(())
}

/// Bytes as a person reads them.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
