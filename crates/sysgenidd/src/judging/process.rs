// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is known of a process: who it is, whether it lives, whether a handler of its waits to run.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};

use crate::keeping::state::Opener;

use super::proc::{Proc, Status};

/// Who the thread `tid` belongs to, as this process sees it.
pub fn opener(tid: u32) -> Opener {
    let mut opener = Opener {
        pid: tid,
        command: [0; 16],
    };
    let Some(status) = status(tid) else {
        return opener;
    };
    let name = status.field("Name").unwrap_or_default();
    // The kernel's limit is 15 bytes, and escapes can make it longer here.
    let length = name.len().min(opener.command.len());
    opener.command[..length].copy_from_slice(&name[..length]);
    let pid = status.text("Tgid").and_then(|text| text.parse().ok());
    opener.pid = pid.unwrap_or(tid);
    opener
}

/// Whether a signal is pending for the thread `tid` that a handler of its waits for, and that it does not block.
///
/// The kernel does not tell of such a signal to a thread whose request can only be ended by a fatal one; and the
/// handler cannot run before the request has ended.
pub fn pending_handler(tid: u32) -> bool {
    status(tid).is_some_and(|status| has_pending_handler(&status) == Some(true))
}

fn has_pending_handler(status: &Status) -> Option<bool> {
    let pending = status.set("SigPnd")? | status.set("ShdPnd")?;
    Some(pending & !status.set("SigBlk")? & status.set("SigCgt")? != 0)
}

/// Whether a process has ended, its parent knowing of it or not.
pub fn is_gone(pid: u32) -> bool {
    match open(pid) {
        Ok(process) => has_ended(process.as_fd()),
        // There is something of that number, and it leads no process: it was a thread's.
        Err(Errno::INVAL | Errno::NOENT) => false,
        Err(_) => true,
    }
}

/// A process that an instance is tied to: the instance ends with it.
///
/// Its descriptor becomes readable when the process has ended.
#[derive(Debug)]
pub struct Process {
    fd: OwnedFd,
    tie: Tie,
}

/// What stands for a process, for a successor of this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tie {
    /// Its number, as this pid namespace counts.
    pub pid: u32,
    /// What it is told by from another that gets its number later: the inode of its pidfd, which no two processes
    /// share until the machine starts anew.
    identity: u64,
}

impl Process {
    /// The process that has this number now.
    pub fn open(pid: u32) -> Result<Self, Errno> {
        let fd = open(pid)?;
        let identity = rustix::fs::fstat(&fd)?.st_ino;
        let tie = Tie { pid, identity };
        Ok(Self { fd, tie })
    }

    /// The process that was tied, unless it has ended.
    pub fn find(tie: Tie) -> Option<Self> {
        Self::open(tie.pid)
            .ok()
            .filter(|process| process.tie == tie && !process.has_ended())
    }

    /// What it is found by again.
    pub fn tie(&self) -> Tie {
        self.tie
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        has_ended(self.fd.as_fd())
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn status(tid: u32) -> Option<Status> {
    if tid == 0 {
        return None;
    }
    Status::of(Proc::own().ok()?, tid).ok()
}

fn open(pid: u32) -> Result<OwnedFd, Errno> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    rustix::process::pidfd_open(pid.ok_or(Errno::SRCH)?, PidfdFlags::empty())
}

fn has_ended(process: BorrowedFd<'_>) -> bool {
    let mut poll = [PollFd::new(&process, PollFlags::IN)];
    let now = Timespec::default();
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut poll, Some(&now))) == Ok(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    fn cat() -> Child {
        Command::new("cat").stdin(Stdio::piped()).spawn().unwrap()
    }

    /// Has it end, without waiting for it as its parent.
    fn end(child: &mut Child) {
        let process = Process::open(child.id()).unwrap();
        drop(child.stdin.take());
        let mut poll = [PollFd::new(&process, PollFlags::IN)];
        rustix::event::poll(&mut poll, None).unwrap();
    }

    #[test]
    fn a_process_is_known_by_its_own_name_also_from_a_thread() {
        let here = std::process::id();
        let opener = std::thread::Builder::new()
            .name("elsewhere".to_owned())
            .spawn(|| {
                opener(
                    rustix::thread::gettid()
                        .as_raw_nonzero()
                        .get()
                        .unsigned_abs(),
                )
            })
            .unwrap()
            .join()
            .unwrap();
        assert_eq!(opener.pid, here);
        assert!(opener.command.starts_with(b"elsewhere"));
    }

    #[test]
    fn a_process_that_nobody_waited_for_is_gone_all_the_same() {
        let mut child = cat();
        let pid = child.id();
        assert!(!is_gone(pid));
        end(&mut child);
        assert!(is_gone(pid));
        child.wait().unwrap();
        assert!(is_gone(pid));
        assert!(is_gone(0));
    }

    #[test]
    fn a_number_that_a_thread_has_is_not_gone() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let tid = rustix::thread::gettid().as_raw_nonzero().get();
            sender.send(tid.unsigned_abs()).unwrap();
            let _ = ended.recv();
        });
        assert!(!is_gone(receiver.recv().unwrap()));
        drop(end);
        thread.join().unwrap();
    }

    #[test]
    fn a_tied_process_is_found_again_until_it_ends_and_never_another() {
        let mut child = cat();
        let tie = Process::open(child.id()).unwrap().tie();
        assert_eq!(Process::find(tie).unwrap().tie(), tie);
        // Another that has come by the number of the first.
        let mut other = cat();
        let pid = other.id();
        assert!(Process::find(Tie { pid, ..tie }).is_none());
        end(&mut child);
        assert!(Process::find(tie).is_none());
        drop(other.stdin.take());
        child.wait().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn only_a_signal_that_is_pending_handled_and_not_blocked_counts() {
        let status = |own: u8, shared: u8, blocked: u8, caught: u8| {
            let text = format!(
                "SigPnd:\t{own:016x}\nShdPnd:\t{shared:016x}\nSigBlk:\t{blocked:016x}\nSigIgn:\t0\nSigCgt:\t{caught:016x}\n"
            );
            has_pending_handler(&Status::from_text(&text))
        };
        assert_eq!(status(1, 0, 0, 1), Some(true));
        assert_eq!(status(0, 2, 1, 3), Some(true));
        assert_eq!(status(0, 0, 0, 3), Some(false));
        assert_eq!(status(1, 0, 1, 1), Some(false));
        assert_eq!(status(1, 0, 0, 2), Some(false));
        assert_eq!(
            has_pending_handler(&Status::from_text("SigPnd:\t1\n")),
            None
        );
    }

    #[test]
    fn a_signal_that_has_come_to_a_stopped_process_is_pending() {
        use rustix::process::Signal;

        // It handles USR1 from the moment in which it says so.
        let mut child = Command::new("sh")
            .args(["-c", "trap : USR1; echo ready; read end"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut output, &mut line).unwrap();
        let pid = Pid::from_child(&child);
        assert!(!pending_handler(child.id()));
        rustix::process::kill_process(pid, Signal::STOP).unwrap();
        let options = rustix::process::WaitOptions::UNTRACED;
        rustix::process::waitpid(Some(pid), options).unwrap();
        rustix::process::kill_process(pid, Signal::USR1).unwrap();
        assert!(pending_handler(child.id()));
        rustix::process::kill_process(pid, Signal::KILL).unwrap();
        child.wait().unwrap();
        assert!(!pending_handler(child.id()));
        assert!(!pending_handler(0));
    }
}
