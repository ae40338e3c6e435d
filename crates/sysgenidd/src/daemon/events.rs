// SPDX-License-Identifier: MIT OR Apache-2.0

//! What other threads have to say to the main one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, mpsc};

use rustix::event::EventfdFlags;
use rustix::io;

/// What another thread has to say.
#[derive(Debug)]
pub(super) enum Event {
    /// An instance is served no longer. The number is that of its start.
    Ended { serial: u64, error: Option<String> },
    /// Something notices restores of this machine, or nothing does any more.
    Noticed(bool),
}

/// Where events go in.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    channel: mpsc::Sender<Event>,
    wake: Arc<OwnedFd>,
}

/// Where events come out.
#[derive(Debug)]
pub(super) struct Receiver {
    channel: mpsc::Receiver<Event>,
    wake: Arc<OwnedFd>,
}

/// A new way for events.
pub(super) fn channel() -> io::Result<(Sender, Receiver)> {
    let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let wake = Arc::new(wake);
    let (sender, receiver) = mpsc::channel();
    Ok((
        Sender {
            channel: sender,
            wake: Arc::clone(&wake),
        },
        Receiver {
            channel: receiver,
            wake,
        },
    ))
}

impl Sender {
    pub(super) fn send(&self, event: Event) {
        // Nobody listens any more when the daemon ends.
        if self.channel.send(event).is_ok() {
            let _ = io::write(&self.wake, &1_u64.to_ne_bytes());
        }
    }
}

impl Receiver {
    /// What has been said since the last call.
    pub(super) fn take(&self) -> Vec<Event> {
        let _ = io::read(&self.wake, &mut [0; 8]);
        self.channel.try_iter().collect()
    }
}

impl AsFd for Receiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
