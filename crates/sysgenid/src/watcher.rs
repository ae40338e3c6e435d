// SPDX-License-Identifier: MIT OR Apache-2.0

//! Waiting for changes, and acknowledging them.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::Errno;
use sysgenid_core::Generation;

use crate::change::Change;
use crate::deadline::Deadline;
use crate::error::{Access, Error};
use crate::node::Node;

/// Whether others wait for a watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tracking {
    /// They do, until it has acknowledged: for whoever keeps something that must be rebuilt. It takes permission to
    /// write to the node.
    Tracked,
    /// They do not: for whoever only wants to know. It takes permission to read.
    Untracked,
}

/// A watcher of the generation: it is told of each change, and acknowledges it.
///
/// All methods take `&self`, any number of threads may use one watcher at once, and all of them are told of a change.
/// After `fork` the child has the *same* watcher: an acknowledgement of either is one of both, so a child that keeps
/// secrets of its own opens its own. The descriptor is closed by `exec`.
///
/// # Example
///
/// ```no_run
/// use sysgenid::{Tracking, Watcher};
///
/// # fn rebuild_secrets() -> Result<(), sysgenid::Error> { Ok(()) }
/// # fn main() -> Result<(), sysgenid::Error> {
/// let watcher = Watcher::open(Tracking::Tracked)?;
/// loop {
///     // Sleeps until the machine was restored; acknowledges once the closure has succeeded.
///     watcher.wait()?.rebuild(|_generation| rebuild_secrets())?;
/// }
/// # }
/// ```
///
/// # In an event loop
///
/// The descriptor of [`AsFd`] is readable while there is a change that was not acknowledged. Register it for
/// reading, and call [`try_changed`](Self::try_changed) when it is reported. With the feature `tokio`,
/// [`AsyncWatcher`](crate::AsyncWatcher) does it.
#[derive(Debug)]
pub struct Watcher(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    node: Node,
    /// For a watcher that cannot acknowledge, and so stays outdated from the first change on: an epoll instance
    /// that reports each change once.
    edges: Option<OwnedFd>,
    /// The generation that was acknowledged last, or that there was at the start.
    acknowledged: Mutex<Generation>,
}

impl Watcher {
    /// Opens the node of this machine: the one that the environment variable `SYSGENID_PATH` names
    /// ([`PATH_VARIABLE`](crate::PATH_VARIABLE)), or else `/dev/sysgenid`, or else `/dev/vmgenid`.
    ///
    /// Changes before this call are over: what a program makes from now on is made for the generation that it finds.
    ///
    /// # Errors
    ///
    /// [`Error::NoNode`], [`Error::KernelTooOld`], [`Error::NoPermission`], [`Error::NotANode`], [`Error::Gone`],
    /// [`Error::Io`].
    pub fn open(tracking: Tracking) -> Result<Self, Error> {
        Self::of(Node::find(tracking.access())?)
    }

    /// The same for the node at a path.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_at(path: impl AsRef<Path>, tracking: Tracking) -> Result<Self, Error> {
        Self::of(Node::open(path.as_ref(), tracking.access())?)
    }

    fn of(node: Node) -> Result<Self, Error> {
        let edges = match node.access() {
            Access::ReadWrite => None,
            Access::Read => {
                Some(report_each_change(&node).map_err(|errno| node.failed("poll", errno))?)
            }
        };
        let acknowledged = Mutex::new(node.generation()?);
        Ok(Self(Arc::new(Inner {
            node,
            edges,
            acknowledged,
        })))
    }

    /// The current generation.
    ///
    /// # Errors
    ///
    /// [`Error::Gone`], [`Error::Io`].
    pub fn generation(&self) -> Result<Generation, Error> {
        let acknowledged = self.0.acknowledged();
        Ok(self.0.node.read()?.unwrap_or(*acknowledged))
    }

    /// Sleeps until there is a change that was not acknowledged. It returns at once while there is one, the latest.
    ///
    /// # Errors
    ///
    /// [`Error::Gone`], [`Error::Io`]. A signal is none: to be interruptible, wait for a while at a time, or poll the
    /// descriptor together with another one.
    pub fn wait(&self) -> Result<Change, Error> {
        loop {
            if let Some(change) = self.wait_until(Deadline::after(None))? {
                return Ok(change);
            }
        }
    }

    /// The same for at most so long. Nothing is returned when the time is over.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub fn wait_timeout(&self, timeout: Duration) -> Result<Option<Change>, Error> {
        self.wait_until(Deadline::after(Some(timeout)))
    }

    fn wait_until(&self, deadline: Deadline) -> Result<Option<Change>, Error> {
        loop {
            if let Some(change) = self.try_changed()? {
                return Ok(Some(change));
            }
            if deadline.is_over() {
                return Ok(None);
            }
            self.0.sleep(deadline.left())?;
        }
    }

    /// The latest change that was not acknowledged, if there is one, without sleeping.
    ///
    /// A watcher that is tracked gets it again at each call until it has acknowledged. One that is not tracked gets
    /// each change once.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub fn try_changed(&self) -> Result<Option<Change>, Error> {
        Ok(self
            .0
            .next()?
            .map(|generation| Change::new(Arc::clone(&self.0), generation)))
    }

    /// Whether others wait for this watcher.
    pub fn tracking(&self) -> Tracking {
        match self.0.node.access() {
            Access::Read => Tracking::Untracked,
            Access::ReadWrite => Tracking::Tracked,
        }
    }

    /// The node that is watched.
    pub fn path(&self) -> &Path {
        self.0.node.path()
    }

    /// Opens the node again after [`Error::Gone`], at the same path, as soon as it is back; for ever without a
    /// time-out. The change that this returns stands for whatever happened meanwhile, which nobody can know:
    /// rebuild, and acknowledge. The descriptor is another one, so register it anew.
    ///
    /// # Errors
    ///
    /// [`Error::NoNode`] or [`Error::Gone`] if the node is not back in time; [`Error::NoPermission`],
    /// [`Error::NotANode`], [`Error::Io`].
    pub fn reconnect(&mut self, timeout: Option<Duration>) -> Result<Change, Error> {
        let mut attempts = Attempts::until(Deadline::after(timeout));
        *self = loop {
            match attempts.open(self)? {
                Ok(watcher) => break watcher,
                Err(pause) => std::thread::sleep(pause),
            }
        };
        self.unknown_change()
    }

    /// What stands for all that may have happened before this watcher was opened.
    pub(crate) fn unknown_change(&self) -> Result<Change, Error> {
        let generation = self.generation()?;
        Ok(Change::new(Arc::clone(&self.0), generation))
    }
}

/// The attempts to find a node again that has vanished, with longer and longer pauses.
pub(crate) struct Attempts {
    deadline: Deadline,
    pause: Duration,
}

impl Attempts {
    const FIRST_PAUSE: Duration = Duration::from_millis(10);
    const LONGEST_PAUSE: Duration = Duration::from_secs(1);

    pub(crate) fn until(deadline: Deadline) -> Self {
        Self {
            deadline,
            pause: Self::FIRST_PAUSE,
        }
    }

    /// One attempt: another watcher in the place of one, or how long to wait before the next attempt. It fails if
    /// there is no time for another one, or if it would be of no use.
    pub(crate) fn open(&mut self, gone: &Watcher) -> Result<Result<Watcher, Duration>, Error> {
        match Watcher::open_at(gone.path(), gone.tracking()) {
            Err(error) if error.is_absent() || error.is_gone() => {
                if self.deadline.is_over() {
                    return Err(error);
                }
                let pause = self.pause;
                self.pause = (pause * 2).min(Self::LONGEST_PAUSE);
                Ok(Err(self
                    .deadline
                    .left()
                    .map_or(pause, |left| pause.min(left))))
            }
            opened => opened.map(Ok),
        }
    }
}

impl AsFd for Watcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.pollable()
    }
}

impl AsRawFd for Watcher {
    /// The same, for interfaces that are older than [`AsFd`].
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl Tracking {
    fn access(self) -> Access {
        match self {
            Self::Tracked => Access::ReadWrite,
            Self::Untracked => Access::Read,
        }
    }
}

impl Inner {
    pub(crate) fn node(&self) -> &Node {
        &self.node
    }

    fn pollable(&self) -> BorrowedFd<'_> {
        match &self.edges {
            Some(edges) => edges.as_fd(),
            None => self.node.as_fd(),
        }
    }

    fn acknowledged(&self) -> MutexGuard<'_, Generation> {
        // A number is whole whoever panicked.
        self.acknowledged
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The generation of the latest change that was not acknowledged, or not reported yet.
    fn next(&self) -> Result<Option<Generation>, Error> {
        if let Some(edges) = &self.edges {
            let mut events = Vec::with_capacity(1);
            let at_once = Timespec::default();
            let reported = rustix::io::retry_on_intr(|| {
                epoll::wait(
                    edges,
                    rustix::buffer::spare_capacity(&mut events),
                    Some(&at_once),
                )
            })
            .map_err(|errno| self.node.failed("poll", errno))?;
            if reported == 0 {
                return Ok(None);
            }
        }
        let generation = self.node.read()?;
        if let (Some(generation), true) = (generation, self.edges.is_some()) {
            *self.acknowledged() = generation;
        }
        Ok(generation)
    }

    /// Sleeps until there may be a change.
    fn sleep(&self, timeout: Option<Duration>) -> Result<(), Error> {
        // More than the kernel can count is as good as for ever.
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut files = [PollFd::new(self, PollFlags::IN)];
        match poll(&mut files, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(self.node.failed("poll", errno)),
        }
        let events = files[0].revents();
        if events.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL)
            && !events.contains(PollFlags::IN)
            && self.node.read()?.is_none()
        {
            return Err(self.node.failed("poll", Errno::IO));
        }
        Ok(())
    }

    /// Acknowledges a generation. Returns the current one if it is another.
    pub(crate) fn acknowledge(&self, generation: Generation) -> Result<Option<Generation>, Error> {
        if self.edges.is_some() {
            // Nobody waits for it.
            return Ok(self.node.read()?.filter(|current| *current != generation));
        }
        let mut acknowledged = self.acknowledged();
        if self.node.write(generation)? {
            *acknowledged = generation;
            return Ok(None);
        }
        // If another thread has acknowledged the current one meanwhile, there is nothing to read.
        self.node.read()
    }
}

impl AsFd for Inner {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pollable()
    }
}

fn report_each_change(node: &Node) -> rustix::io::Result<OwnedFd> {
    let edges = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(
        &edges,
        node,
        epoll::EventData::new_u64(0),
        epoll::EventFlags::IN | epoll::EventFlags::ET,
    )?;
    Ok(edges)
}
