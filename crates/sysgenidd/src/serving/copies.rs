// SPDX-License-Identifier: MIT OR Apache-2.0

//! Where mappings cannot go to the page itself: the kernel keeps a copy, which is renewed at each change.
//!
//! Storing into the page cache waits for the page's lock, which a fault holds until the daemon has
//! answered its READ, and cannot be killed meanwhile. So it is done by a process of its own: the daemon
//! goes on, and if it dies just then, it is gone at once and its successor can answer.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::FlockOperation;
use rustix::io;
use rustix::process::{Pid, PidfdFlags};

use sysgenid_core::PageWord;

use crate::keeping::page::{self, Page};
use crate::protocol::Connection;
use crate::protocol::wire::fopen;

use super::files;
use super::sharing::Sharing;

/// The command that makes a process of this program renew copies; for nobody else.
pub const COMMAND: &str = "renew";

/// The page as programs see it.
pub(super) fn copy_of(word: PageWord) -> [u8; page::SIZE] {
    let mut copy = [0; page::SIZE];
    copy[..size_of::<u64>()].copy_from_slice(&word.to_word().to_ne_bytes());
    copy
}

/// Stores the page that is standard output into the file system whose device is standard input. That is
/// all that the process does.
///
/// # Errors
///
/// If the two are something else.
pub fn run() -> anyhow::Result<()> {
    let device = std::io::stdin().as_fd().try_clone_to_owned()?;
    let file = std::io::stdout().as_fd().try_clone_to_owned()?;
    let connection = Connection::resume(device);
    // One that a daemon before this one has started may still be about to store what is old by now: after
    // this, it would take programs back. It is waited for, also by way of the daemon that has started this.
    let one_at_a_time = File::open("/proc/self/fd/1")?;
    rustix::fs::flock(&one_at_a_time, FlockOperation::LockExclusive)?;
    let original = Page::from_fd(file)?;
    loop {
        let word = original.word();
        let copy = copy_of(word);
        for inode in files::NODES {
            connection.notify_store(inode, &copy);
        }
        // This may have waited for so long that others have stored what is newer. Whoever comes last must
        // have stored the newest.
        if original.word() == word {
            return Ok(());
        }
    }
}

/// The process that renews the copies.
#[derive(Debug)]
struct Renewal {
    process: Child,
    ended: OwnedFd,
}

impl Drop for Renewal {
    fn drop(&mut self) {
        // One that has ended is waited for already. One that has not does nobody any good any more; where it
        // cannot end yet, whoever adopts it waits for it.
        let _ = self.process.kill();
        let _ = self.process.try_wait();
    }
}

impl Renewal {
    fn start(connection: &Connection, page: BorrowedFd<'_>) -> std::io::Result<Self> {
        let process = Command::new("/proc/self/exe")
            .arg(COMMAND)
            .stdin(connection.as_fd().try_clone_to_owned()?)
            .stdout(page.try_clone_to_owned()?)
            .stderr(Stdio::inherit())
            .spawn()?;
        let ended = rustix::process::pidfd_open(Pid::from_child(&process), PidfdFlags::empty())?;
        Ok(Self { process, ended })
    }
}

/// The copies of one instance.
#[derive(Debug)]
pub(super) struct Copies {
    /// The page itself.
    page: OwnedFd,
    watch: OwnedFd,
    /// There is at most one at a time.
    running: Option<Renewal>,
    /// There was another change since it was started.
    again: bool,
}

impl Copies {
    pub(super) fn of(page: &Page) -> io::Result<Self> {
        Ok(Self {
            page: rustix::io::fcntl_dupfd_cloexec(page, 0)?,
            watch: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            running: None,
            again: false,
        })
    }

    fn start(&mut self, connection: &Connection) {
        self.again = false;
        let started = Renewal::start(connection, self.page.as_fd()).and_then(|renewal| {
            epoll::add(
                &self.watch,
                &renewal.ended,
                EventData::new_u64(0),
                EventFlags::IN,
            )?;
            Ok(renewal)
        });
        match started {
            Ok(renewal) => self.running = Some(renewal),
            Err(error) => tracing::error!(
                "no process can be started that renews the page ({error}): programs that map it see the old \
                 generation"
            ),
        }
    }
}

impl Sharing for Copies {
    fn open_flags(&self) -> (u32, i32) {
        // Without a file position, threads can share a descriptor with nothing between them; the kernel does
        // not allow that together with passthrough.
        (fopen::STREAM, 0)
    }

    fn is_copied(&self) -> bool {
        true
    }

    fn renew(&mut self, connection: &Arc<Connection>) {
        if self.running.is_some() {
            self.again = true;
        } else {
            self.start(connection);
        }
    }

    fn is_under_way(&self) -> bool {
        self.running.is_some()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.watch.as_fd())
    }

    fn advance(&mut self, connection: &Arc<Connection>) {
        let Some(renewal) = &mut self.running else {
            return;
        };
        match renewal.process.try_wait() {
            Ok(None) => return,
            Ok(Some(status)) if status.success() => {}
            Ok(Some(status)) => tracing::error!("a page could not be renewed: {status}"),
            Err(error) => tracing::error!("a renewal of a page was lost: {error}"),
        }
        // It fails only for what is not watched.
        let _ = epoll::delete(&self.watch, &renewal.ended);
        self.running = None;
        if self.again {
            self.start(connection);
        }
    }
}
