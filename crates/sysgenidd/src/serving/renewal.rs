// SPDX-License-Identifier: MIT OR Apache-2.0

//! Renews the kernel's copy of the page, where mappings cannot go to the page itself.
//!
//! Storing into the page cache waits for the page's lock, which a fault holds until the daemon has
//! answered its READ, and cannot be killed meanwhile. So it is done by a process of its own: the daemon
//! goes on, and if it dies just then, it is gone at once and its successor can answer.

use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io;
use rustix::process::{Pid, PidfdFlags};
use sysgenid_core::Generation;

use crate::keeping::storage::Storage;
use crate::protocol::Connection;
use crate::serving::files;

/// The size of the page that programs map, in bytes.
pub(crate) const PAGE: usize = 4096;

/// The command that makes a process of this program renew copies; for nobody else.
pub const COMMAND: &str = "renew";

/// The page as programs see it.
pub(crate) fn page(generation: Generation) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    let start = sysgenid_core::abi::PAGE_GENERATION_OFFSET;
    page[start..start + sysgenid_core::abi::GENERATION_SIZE]
        .copy_from_slice(&generation.to_ne_bytes());
    page
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
    let original = Storage::resume(file)?;
    loop {
        let generation = original.first_u32().load(Ordering::Acquire);
        let page = page(Generation::new(generation));
        for inode in files::NODES {
            connection.notify_store(inode, &page);
        }
        // This may have waited for so long that others have stored what is newer. Whoever comes last must
        // have stored the newest.
        if original.first_u32().load(Ordering::Acquire) == generation {
            return Ok(());
        }
    }
}

/// One that is under way.
#[derive(Debug)]
struct Renewal {
    process: Child,
    ended: OwnedFd,
    connection: Arc<Connection>,
}

/// Those that are under way. Its descriptor becomes readable when one has ended.
#[derive(Debug)]
pub struct Renewals {
    watch: OwnedFd,
    running: RefCell<Vec<Renewal>>,
}

impl Renewals {
    /// None yet.
    ///
    /// # Errors
    ///
    /// `EMFILE`.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            watch: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            running: RefCell::new(Vec::new()),
        })
    }

    /// Starts to renew the copies of a page. [`finished`](Self::finished) will name the connection.
    ///
    /// # Errors
    ///
    /// If no process can be started; then programs that map the node see the old page.
    pub fn start(&self, connection: &Arc<Connection>, page: &Storage) -> std::io::Result<()> {
        let process = Command::new("/proc/self/exe")
            .arg(COMMAND)
            .stdin(connection.as_fd().try_clone_to_owned()?)
            .stdout(page.as_fd().try_clone_to_owned()?)
            .stderr(Stdio::inherit())
            .spawn()?;
        let ended = rustix::process::pidfd_open(Pid::from_child(&process), PidfdFlags::empty())?;
        epoll::add(&self.watch, &ended, EventData::new_u64(0), EventFlags::IN)?;
        self.running.borrow_mut().push(Renewal {
            process,
            ended,
            connection: Arc::clone(connection),
        });
        Ok(())
    }

    /// The connections whose copies have been renewed since the last call, one for each time.
    pub fn finished(&self) -> Vec<Arc<Connection>> {
        let mut finished = Vec::new();
        self.running.borrow_mut().retain_mut(|renewal| {
            match renewal.process.try_wait() {
                Ok(None) => return true,
                Ok(Some(status)) if status.success() => {}
                Ok(Some(status)) => tracing::error!("a page could not be renewed: {status}"),
                Err(error) => tracing::error!("a renewal of a page was lost: {error}"),
            }
            // It fails only for what is not watched.
            let _ = epoll::delete(&self.watch, &renewal.ended);
            finished.push(Arc::clone(&renewal.connection));
            false
        });
        finished
    }
}

impl AsFd for Renewals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }
}
