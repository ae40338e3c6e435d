// SPDX-License-Identifier: MIT OR Apache-2.0

//! A program that was started, and what can be done with it.

use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};

use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid,
};

/// Whom signals are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// The program and all that it starts, in a process group of its own.
    Group,
    /// The program alone. It stays in this one's process group, which has the terminal.
    Process,
}

/// A program that may still run.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    pid: Pid,
    reach: Reach,
}

impl Running {
    pub(crate) fn start(command: &mut Command, reach: Reach) -> io::Result<Self> {
        if reach == Reach::Group {
            command.process_group(0);
        }
        let child = command.spawn()?;
        Ok(Self {
            pid: Pid::from_child(&child),
            child,
            reach,
        })
    }

    /// Sends a signal. It is no error that there is nobody any more.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        // Until it is reaped its number is nobody else's.
        let sent = match self.reach {
            Reach::Group => kill_process_group(self.pid, signal),
            Reach::Process => kill_process(self.pid, signal),
        };
        match sent {
            Err(Errno::SRCH) => Ok(()),
            sent => Ok(sent?),
        }
    }

    /// Whether it has ended. It is not reaped, so its group can still be sent a signal.
    pub(crate) fn has_ended(&self) -> io::Result<bool> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        let ended = rustix::io::retry_on_intr(|| waitid(WaitId::Pid(self.pid), options))?;
        Ok(ended.is_some())
    }

    /// Waits for its end, and says how it came.
    pub(crate) fn reap(mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }
}

/// The exit code of a shell for how a program has ended.
pub(crate) fn code_of(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// For people.
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (_, Some(signal)) => format!("signal {signal}"),
        _ => status.to_string(),
    }
}
