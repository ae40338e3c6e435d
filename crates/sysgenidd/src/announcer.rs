// SPDX-License-Identifier: MIT OR Apache-2.0

//! Renews the kernel's copy of the page, where mappings cannot go to the page itself.
//!
//! Storing into the page cache waits for the page's lock, which a fault holds until the daemon has
//! answered its READ. So a thread of its own stores, and the one that answers requests goes on.

use std::cell::OnceCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use rustix::event::EventfdFlags;
use rustix::io;
use sysgenid_core::Generation;

use crate::fuse::Connection;
use crate::node;

/// The size of the page that programs map, in bytes.
pub(crate) const PAGE: usize = 4096;

/// The page as programs see it.
pub(crate) fn page(generation: Generation) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    let start = sysgenid_core::abi::PAGE_GENERATION_OFFSET;
    page[start..start + sysgenid_core::abi::GENERATION_SIZE]
        .copy_from_slice(&generation.to_ne_bytes());
    page
}

#[derive(Debug)]
struct Announcement {
    connection: Arc<Connection>,
    generation: Generation,
    instance: String,
}

/// The thread, once it is needed, and what it has finished.
#[derive(Debug)]
pub struct Announcer {
    to_thread: OnceCell<Sender<Announcement>>,
    done: Sender<String>,
    from_thread: Receiver<String>,
    finished: Arc<OwnedFd>,
}

impl Announcer {
    /// An announcer that has no thread yet.
    ///
    /// # Errors
    ///
    /// `EMFILE`.
    pub fn new() -> io::Result<Self> {
        let (done, from_thread) = mpsc::channel();
        Ok(Self {
            to_thread: OnceCell::new(),
            done,
            from_thread,
            finished: Arc::new(rustix::event::eventfd(
                0,
                EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
            )?),
        })
    }

    /// Renews the copies of an instance's page. [`finished`](Self::finished) will name the instance.
    pub fn announce(&self, connection: &Arc<Connection>, instance: &str, generation: Generation) {
        let announcement = Announcement {
            connection: Arc::clone(connection),
            generation,
            instance: instance.to_owned(),
        };
        let sent = self
            .to_thread
            .get_or_init(|| self.start())
            .send(announcement);
        if sent.is_err() {
            tracing::error!("no thread renews the page of {instance}: its mappings are stale");
            self.finish(instance.to_owned());
        }
    }

    /// Starts the thread.
    fn start(&self) -> Sender<Announcement> {
        let (to_thread, announcements) = mpsc::channel::<Announcement>();
        let done = self.done.clone();
        let signal = Arc::clone(&self.finished);
        let thread = thread::Builder::new()
            .name("announcer".to_owned())
            .stack_size(128 * 1024)
            .spawn(move || {
                for announcement in announcements {
                    let page = page(announcement.generation);
                    for inode in node::NODES {
                        announcement.connection.notify_store(inode, &page);
                    }
                    finish(&done, &signal, announcement.instance);
                }
            });
        if let Err(error) = thread {
            // The receiver is gone with the closure, so whoever sends will know.
            tracing::error!("a thread cannot be started: {error}");
        }
        to_thread
    }

    fn finish(&self, instance: String) {
        finish(&self.done, &self.finished, instance);
    }

    /// The instances whose announcements are done, one for each.
    pub fn finished(&self) -> Vec<String> {
        let _ = io::read(&*self.finished, &mut [0; 8]);
        self.from_thread.try_iter().collect()
    }
}

fn finish(done: &Sender<String>, signal: &OwnedFd, instance: String) {
    // Nobody listens at the end of the process; an overflow leaves the descriptor readable.
    let _ = done.send(instance);
    let _ = io::write(signal, &1_u64.to_ne_bytes());
}

impl AsFd for Announcer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.finished.as_fd()
    }
}
