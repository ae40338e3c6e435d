// SPDX-License-Identifier: MIT OR Apache-2.0

//! A client for QEMU's machine protocol, as small as our use of it.

use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use serde_json::Value;
use serde_json::json;

/// How long QEMU may take to answer a command.
const TIMEOUT: Duration = Duration::from_secs(60);

/// How long a snapshot may take to be written or read.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(300);

/// A connection to one QEMU.
pub(crate) struct Qmp {
    lines: BufReader<UnixStream>,
}

/// When something happened, on the host's real-time clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EventTime {
    /// Microseconds since the epoch: the resolution that QEMU gives.
    pub(crate) microseconds: u64,
}

impl Qmp {
    /// Takes over a fresh connection.
    pub(crate) fn new(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(TIMEOUT))?;
        let mut qmp = Self {
            lines: BufReader::new(stream),
        };
        qmp.receive().context("QEMU did not greet")?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and returns what it returns.
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.execute_until(command, arguments, None)
            .map(|(value, _)| value)
    }

    /// Stops the machine; the time is when it stood still.
    pub(crate) fn stop(&mut self) -> Result<EventTime> {
        self.execute_for_event("stop", "STOP")
    }

    /// Lets the machine run on; the time is when it was about to.
    pub(crate) fn resume(&mut self) -> Result<EventTime> {
        self.execute_for_event("cont", "RESUME")
    }

    /// Moves the line of the machine's power key, even if the machine stands still.
    pub(crate) fn press_power_key(&mut self) -> Result<EventTime> {
        self.execute_for_event("system_powerdown", "POWERDOWN")
    }

    /// Waits until a snapshot has been written, or read.
    pub(crate) fn wait_for_migration(&mut self) -> Result<()> {
        let deadline = Instant::now() + MIGRATION_TIMEOUT;
        loop {
            let state = self.execute("query-migrate", json!({}))?;
            match state["status"].as_str() {
                Some("completed") => return Ok(()),
                Some(status @ ("failed" | "cancelled")) => {
                    bail!("the snapshot's transfer {status}: {}", state["error-desc"])
                }
                status if Instant::now() > deadline => {
                    bail!("the snapshot's transfer takes too long, its state is {status:?}")
                }
                // QEMU sends no event for this unless the machine on the other side is asked too.
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn execute_for_event(&mut self, command: &str, event: &str) -> Result<EventTime> {
        let (_, time) = self.execute_until(command, json!({}), Some(event))?;
        time.with_context(|| format!("QEMU's {command} came without the event {event}"))
    }

    /// Runs a command; if an event is named, returns once both it and the answer were there.
    fn execute_until(
        &mut self,
        command: &str,
        arguments: Value,
        event: Option<&str>,
    ) -> Result<(Value, Option<EventTime>)> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.lines.get_mut().write_all(line.as_bytes())?;
        let mut answer = None;
        let mut time = None;
        while answer.is_none() || (event.is_some() && time.is_none()) {
            let mut message = self
                .receive()
                .with_context(|| format!("no answer to {command}"))?;
            if let Some(error) = message.get("error") {
                bail!("QEMU refuses {command}: {}", error["desc"]);
            }
            if message.get("return").is_some() {
                answer = Some(message["return"].take());
            } else if event.is_some() && message["event"].as_str() == event {
                time = Some(event_time(&message["timestamp"])?);
            }
        }
        Ok((answer.unwrap_or_default(), time))
    }

    fn receive(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            bail!("QEMU closed its control socket");
        }
        serde_json::from_str(&line).with_context(|| format!("not JSON: {line}"))
    }
}

fn event_time(timestamp: &Value) -> Result<EventTime> {
    let part = |name: &str| {
        timestamp[name]
            .as_u64()
            .with_context(|| format!("QEMU's event has no {name}: {timestamp}"))
    };
    Ok(EventTime {
        microseconds: part("seconds")? * 1_000_000 + part("microseconds")?,
    })
}
