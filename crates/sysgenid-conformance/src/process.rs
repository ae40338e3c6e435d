// SPDX-License-Identifier: MIT OR Apache-2.0

//! Processes that report an outcome, die when told to, and never outlive the suite.

use std::any::Any;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, getpid, getppid, kill_process,
    pidfd_open, set_parent_process_death_signal, waitid,
};

use crate::outcome::{Failure, Outcome, decode, encode, fail};
use crate::sys;

/// How long a case lets something take that should take no time, before it fails. It is only ever
/// waited for in full where the node is wrong.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// A child process.
#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    pidfd: OwnedFd,
    report: OwnedFd,
}

impl Process {
    /// Starts a process that runs `body`, reports what that comes to, and exits. It is killed when
    /// the thread that called this dies.
    ///
    /// The body must not wait for another thread of this process: it is not there.
    pub(crate) fn spawn(body: impl FnOnce() -> Outcome) -> Result<Self, Errno> {
        let (report, write_end) = pipe_with(PipeFlags::CLOEXEC)?;
        let parent = getpid();
        match sys::fork()? {
            Some(pid) => Ok(Self {
                pid,
                pidfd: pidfd_open(pid, PidfdFlags::empty())?,
                report,
            }),
            None => {
                drop(report);
                let outcome = catch_unwind(AssertUnwindSafe(|| {
                    die_with(parent)?;
                    body()
                }))
                .unwrap_or_else(|panic| fail(format!("panicked: {}", text_of(&*panic))));
                write_all(&write_end, &encode(&outcome));
                sys::exit_now(0)
            }
        }
    }

    /// Its process id, which is also the id of its first thread.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// What it comes to; `None` if that takes longer than `limit`. It may not have exited yet.
    ///
    /// # Errors
    ///
    /// Its failure, or one of our own if it died without a report.
    pub(crate) fn outcome(&self, limit: Duration) -> Option<Outcome> {
        let deadline = Instant::now() + limit;
        let mut bytes = Vec::new();
        loop {
            match wait_readable(&[&self.report, &self.pidfd], deadline) {
                Ok(true) => {}
                Ok(false) => return None,
                Err(errno) => return Some(Err(errno.into())),
            }
            // Looked at before the report, of which nothing can then be missing.
            let dead = matches!(wait_readable(&[&self.pidfd], Instant::now()), Ok(true));
            while let Ok(true) = wait_readable(&[&self.report], Instant::now()) {
                let mut buffer = [0; 1024];
                match rustix::io::read(&self.report, &mut buffer) {
                    Ok(0) | Err(_) => break,
                    Ok(length) => bytes.extend_from_slice(&buffer[..length]),
                }
            }
            if let Some(outcome) = decode(&bytes) {
                return Some(outcome);
            }
            if dead {
                return Some(fail(format!(
                    "the process died before it could report: {}",
                    self.end()
                )));
            }
        }
    }

    /// Waits for its success.
    pub(crate) fn join(self, what: &str) -> Outcome {
        let outcome = self.outcome(PATIENCE);
        let gone = self.kill();
        match outcome {
            None => fail(format!("{what}: no end after {PATIENCE:?}")),
            Some(Err(Failure::Fail(why))) => fail(format!("{what}: {why}")),
            Some(other) => other.and(gone),
        }
    }

    /// Kills it and waits until it has gone.
    ///
    /// # Errors
    ///
    /// A failure if it does not go.
    pub(crate) fn kill(&self) -> Outcome {
        self.kill_within(PATIENCE)
    }

    /// As [`kill`](Self::kill), with another limit.
    ///
    /// # Errors
    ///
    /// A failure if it does not go in time.
    pub(crate) fn kill_within(&self, limit: Duration) -> Outcome {
        // It fails for one that has gone already.
        let _ = kill_process(self.pid, Signal::KILL);
        if !wait_readable(&[&self.pidfd], Instant::now() + limit)? {
            return fail(format!(
                "process {} is not gone {limit:?} after SIGKILL",
                self.pid.as_raw_nonzero()
            ));
        }
        let _ = waitid(
            WaitId::PidFd(self.pidfd.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        )?;
        Ok(())
    }

    /// How it ended, without taking note of it.
    fn end(&self) -> String {
        let status: Option<WaitIdStatus> = waitid(
            WaitId::PidFd(self.pidfd.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT,
        )
        .ok()
        .flatten();
        match status.map(|status| (status.exit_status(), status.terminating_signal())) {
            Some((Some(code), _)) => format!("exit code {code}"),
            Some((_, Some(signal))) => format!("signal {signal}"),
            _ => "in an unknown way".to_owned(),
        }
    }
}

/// Something that has happened once, to be waited for in another process or thread.
#[derive(Debug)]
pub(crate) struct Event(OwnedFd);

impl Event {
    /// An event that has not happened.
    pub(crate) fn new() -> Result<Self, Errno> {
        eventfd(0, EventfdFlags::CLOEXEC).map(Self)
    }

    /// Lets it happen.
    pub(crate) fn set(&self) -> Outcome {
        rustix::io::write(&self.0, &1_u64.to_ne_bytes())?;
        Ok(())
    }

    /// Whether it has happened.
    pub(crate) fn has_happened(&self) -> Result<bool, Errno> {
        wait_readable(&[&self.0], Instant::now())
    }

    /// Waits until it has happened; the next call returns at once.
    pub(crate) fn wait(&self, what: &str) -> Outcome {
        if wait_readable(&[&self.0], Instant::now() + PATIENCE)? {
            Ok(())
        } else {
            fail(format!("{what} did not happen within {PATIENCE:?}"))
        }
    }
}

/// Whether one of `fds` is readable, or has ended, before `deadline`.
pub(crate) fn wait_readable(fds: &[&OwnedFd], deadline: Instant) -> Result<bool, Errno> {
    let mut waits: Vec<PollFd<'_>> = fds
        .iter()
        .map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN))
        .collect();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
        match poll(&mut waits, Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// The text of a panic.
pub(crate) fn text_of(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no text")
}

/// Ends this process when the parent dies.
fn die_with(parent: Pid) -> Result<(), Errno> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() == Some(parent) {
        Ok(())
    } else {
        // The parent died before the line above.
        sys::exit_now(1)
    }
}

fn write_all(fd: &OwnedFd, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            // Nobody is listening any more.
            Err(_) => return,
        }
    }
}
