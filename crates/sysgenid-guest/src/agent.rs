// SPDX-License-Identifier: MIT OR Apache-2.0

//! Takes orders from the host: runs commands and tells the time.

use std::fs::File;
use std::fs::OpenOptions;
use std::io::BufRead;
use std::io::BufReader;
use std::io::PipeReader;
use std::io::Read;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::event::poll;
use rustix::process::Pid;
use rustix::process::PidfdFlags;
use rustix::process::Signal;
use rustix::process::kill_process_group;
use rustix::process::pidfd_open;
use sysgenid_guest::protocol::Answer;
use sysgenid_guest::protocol::Order;
use sysgenid_guest::protocol::PORT_NAME;
use sysgenid_guest::protocol::Reply;
use sysgenid_guest::protocol::Request;

use crate::clock::monotonic_ns;

/// Serves until the machine goes down.
pub(crate) fn run() -> Result<()> {
    let path = port()?;
    let port = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open the agent's port {}", path.display()))?;
    let mut lines = BufReader::new(port.try_clone()?);
    let mut line = String::new();
    loop {
        line.clear();
        match lines.read_line(&mut line)? {
            // The host closed its end; the next one to connect is served like the first.
            0 => std::thread::sleep(Duration::from_millis(5)),
            _ => serve(&port, &line)?,
        }
    }
}

/// The device of the port with the agent's name.
fn port() -> Result<PathBuf> {
    let class = "/sys/class/virtio-ports";
    for entry in std::fs::read_dir(class).with_context(|| format!("cannot list {class}"))? {
        let entry = entry?;
        let name = std::fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim_end() == PORT_NAME {
            return Ok(PathBuf::from("/dev").join(entry.file_name()));
        }
    }
    anyhow::bail!("no virtio serial port is called {PORT_NAME}")
}

fn serve(port: &File, line: &str) -> Result<()> {
    let request: Request = match serde_json::from_str(line) {
        Ok(request) => request,
        // A line that was cut off while hosts changed: nobody waits for its answer.
        Err(_) => return Ok(()),
    };
    let reply = |answer| reply(port, request.number, answer);
    match request.order {
        Order::Ping => reply(Answer::Pong {
            monotonic_ns: monotonic_ns(),
        }),
        Order::Run {
            command,
            timeout_ms,
        } => {
            let timeout = Duration::from_millis(timeout_ms);
            let end = run_command(&command, timeout, &|text| reply(Answer::Output { text }));
            reply(end.unwrap_or_else(|error| Answer::Failed {
                reason: format!("{error:#}"),
            }))
        }
    }
}

fn reply(mut port: &File, number: u64, answer: Answer) -> Result<()> {
    let mut line = serde_json::to_vec(&Reply { number, answer })?;
    line.push(b'\n');
    port.write_all(&line)
        .context("cannot write to the agent's port")
}

/// Runs a command, hands on what it prints as it comes, and says how it ended.
///
/// Only the shell itself is waited for: what it leaves running in the background does not hold up
/// the answer, even if it keeps the output open.
fn run_command(
    command: &str,
    timeout: Duration,
    output: &dyn Fn(String) -> Result<()>,
) -> Result<Answer> {
    let (mut reader, writer) = std::io::pipe()?;
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0)
        .spawn()
        .context("cannot start /bin/sh")?;
    let group = Pid::from_child(&child);
    let ended = pidfd_open(group, PidfdFlags::empty())?;
    let deadline = Instant::now() + timeout;
    let mut open = true;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut files = vec![PollFd::new(&ended, PollFlags::IN)];
        if open {
            files.push(PollFd::new(&reader, PollFlags::IN));
        }
        if poll(&mut files, Some(&Timespec::try_from(left)?))? == 0 {
            kill_process_group(group, Signal::KILL)?;
            child.wait()?;
            return Ok(Answer::TimedOut);
        }
        let has_ended = !files[0].revents().is_empty();
        let has_output = files.get(1).is_some_and(|file| !file.revents().is_empty());
        if has_output {
            open = forward(&mut reader, output)?;
        } else if has_ended {
            return exit_status(&mut child);
        }
    }
}

/// Hands on one piece of output; false at its end.
fn forward(reader: &mut PipeReader, output: &dyn Fn(String) -> Result<()>) -> Result<bool> {
    let mut piece = [0; 4096];
    let length = reader.read(&mut piece)?;
    if length > 0 {
        output(String::from_utf8_lossy(&piece[..length]).into_owned())?;
    }
    Ok(length > 0)
}

fn exit_status(child: &mut Child) -> Result<Answer> {
    let status = child.wait()?;
    Ok(Answer::Exited {
        status: status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
    })
}
