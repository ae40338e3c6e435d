// SPDX-License-Identifier: MIT OR Apache-2.0

//! The host's side of the agent's protocol: runs commands in a guest and asks for its time.

use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use sysgenid_guest::protocol::Answer;
use sysgenid_guest::protocol::Order;
use sysgenid_guest::protocol::Reply;
use sysgenid_guest::protocol::Request;

/// How much longer than a command's own time the host waits for the answer: the guest is slow.
const SLACK: Duration = Duration::from_secs(30);

/// A connection to one agent.
pub(crate) struct Agent {
    lines: BufReader<UnixStream>,
    last_number: u64,
}

/// How a command in a guest ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Its exit status.
    pub(crate) status: i32,
    /// What it printed, standard output and error in one.
    pub(crate) output: String,
}

/// The guest's clock against the host's, at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Correlation {
    /// The host's real-time clock in the middle of the exchange, in nanoseconds since the epoch.
    pub(crate) host_ns: u64,
    /// The guest's `CLOCK_MONOTONIC` during the exchange, in nanoseconds.
    pub(crate) guest_ns: u64,
    /// How far the two may be from the same moment, either way, in nanoseconds.
    pub(crate) uncertainty_ns: u64,
}

impl Agent {
    /// Takes over a fresh connection.
    pub(crate) fn new(stream: UnixStream) -> Self {
        // Numbers must not repeat those of the connection that was there before a restore.
        let last_number = u64::from(std::process::id()) << 32 | host_ns() & 0xffff_ffff;
        Self {
            lines: BufReader::new(stream),
            last_number,
        }
    }

    /// Ends the connection, so that another can be made.
    pub(crate) fn disconnect(&self) {
        let _ = self.lines.get_ref().shutdown(std::net::Shutdown::Both);
    }

    /// Waits until the agent answers.
    pub(crate) fn wait_until_ready(&mut self, timeout: Duration) -> Result<()> {
        self.ask(Order::Ping, timeout, &mut |_| ())
            .map(drop)
            .context("the guest's agent does not answer")
    }

    /// Runs a command and hands on its output as it comes. Returns its exit status.
    pub(crate) fn stream(
        &mut self,
        command: &str,
        timeout: Duration,
        output: &mut dyn FnMut(&str),
    ) -> Result<i32> {
        let order = Order::Run {
            command: command.to_owned(),
            timeout_ms: u64::try_from(timeout.as_millis())?,
        };
        match self
            .ask(order, timeout + SLACK, output)
            .with_context(|| format!("in the guest, `{command}`"))?
        {
            Answer::Exited { status } => Ok(status),
            Answer::TimedOut => bail!("in the guest, `{command}` took longer than {timeout:?}"),
            Answer::Failed { reason } => bail!("in the guest, `{command}`: {reason}"),
            other => bail!("in the guest, `{command}`: unexpected answer {other:?}"),
        }
    }

    /// Runs a command to its end.
    pub(crate) fn outcome(&mut self, command: &str, timeout: Duration) -> Result<Outcome> {
        let mut output = String::new();
        let status = self.stream(command, timeout, &mut |text| output.push_str(text))?;
        Ok(Outcome { status, output })
    }

    /// Compares the clocks many times and returns the sharpest comparison.
    pub(crate) fn correlate(&mut self, rounds: u32) -> Result<Correlation> {
        let mut best: Option<Correlation> = None;
        for _ in 0..rounds {
            let (before, started) = (host_ns(), Instant::now());
            let Answer::Pong { monotonic_ns } = self.ask(Order::Ping, SLACK, &mut |_| ())? else {
                bail!("the agent answered a ping with something else");
            };
            let half = u64::try_from(started.elapsed().as_nanos() / 2)?;
            if best.is_none_or(|best| half < best.uncertainty_ns) {
                best = Some(Correlation {
                    host_ns: before + half,
                    guest_ns: monotonic_ns,
                    uncertainty_ns: half,
                });
            }
        }
        best.context("no rounds were asked for")
    }

    /// Sends an order and returns the answer that ends it.
    fn ask(
        &mut self,
        order: Order,
        timeout: Duration,
        output: &mut dyn FnMut(&str),
    ) -> Result<Answer> {
        self.last_number += 1;
        let mut line = serde_json::to_vec(&Request {
            number: self.last_number,
            order,
        })?;
        line.push(b'\n');
        self.lines.get_mut().write_all(&line)?;
        let deadline = Instant::now() + timeout;
        loop {
            match self.receive(deadline)? {
                reply if reply.number != self.last_number => (),
                Reply {
                    answer: Answer::Output { text },
                    ..
                } => output(&text),
                reply => return Ok(reply.answer),
            }
        }
    }

    fn receive(&mut self, deadline: Instant) -> Result<Reply> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.lines
            .get_mut()
            .set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(0) => bail!("the machine went down"),
            Ok(_) => serde_json::from_str(&line).with_context(|| format!("not a reply: {line}")),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                bail!("no answer in time")
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// The host's real-time clock, in nanoseconds since the epoch.
pub(crate) fn host_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}
