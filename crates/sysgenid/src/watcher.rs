// SPDX-License-Identifier: MIT OR Apache-2.0

//! Waiting for changes, and acknowledging them.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
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
/// **One watcher, one rebuild.** Threads may share a watcher, but an acknowledgement is one for all of them: whoever has
/// not been told by then is not told any more. So whoever keeps secrets of his own, a thread or a task, opens a watcher of
/// his own. The same holds after `fork`, which gives the child the *same* watcher. The descriptor is closed by `exec`.
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
/// The descriptor of [`AsFd`] is readable while there is a change that nobody has in hand. Register it for reading, and
/// call [`try_changed`](Self::try_changed) when it is reported. With the feature `tokio`,
/// [`AsyncWatcher`](crate::AsyncWatcher) does it.
#[derive(Debug)]
pub struct Watcher(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    node: Node,
    /// For a watcher that cannot write, and so stays outdated from the first change on.
    reader: Option<Reader>,
    /// For a watcher that was opened again.
    gap: Option<Gap>,
}

/// What may have happened before a watcher was opened again, which counts as a change that the node knows nothing of.
#[derive(Debug)]
struct Gap {
    /// Whether nobody has dealt with it yet.
    is_pending: AtomicBool,
    /// Readable for as long as that.
    event: OwnedFd,
    /// An epoll instance that is readable while that is or the node.
    both: OwnedFd,
}

/// What makes a watcher that cannot write behave as if it could.
#[derive(Debug)]
struct Reader {
    /// An epoll instance that is readable while there is something to do.
    edges: OwnedFd,
    /// The generation that was acknowledged last, or that there was at the start.
    acknowledged: AtomicU32,
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
        Inner::of(node).map(Arc::new).map(Self)
    }

    /// Opens the node of one that has gone, with a change to deal with.
    fn open_again(gone: &Self) -> Result<Self, Error> {
        let mut inner = Inner::of(Node::open(gone.path(), gone.tracking().access())?)?;
        inner.gap = Some(Gap::new(&inner)?);
        Ok(Self(Arc::new(inner)))
    }

    /// The current generation.
    ///
    /// # Errors
    ///
    /// [`Error::Gone`], [`Error::Io`].
    pub fn generation(&self) -> Result<Generation, Error> {
        self.0.node.generation()
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
    /// It is the same again at each call until it is acknowledged.
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
    /// rebuild, and acknowledge. Dropped, it comes again, like any other. But the node does not know of it: nobody waits for
    /// this watcher until there is another change. The descriptor is another one, so register it anew.
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
        match self.try_changed()? {
            Some(change) => Ok(change),
            None => unreachable!("nobody else has this watcher yet"),
        }
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
        match Watcher::open_again(gone) {
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
    fn of(node: Node) -> Result<Self, Error> {
        let reader = match node.access() {
            Access::ReadWrite => None,
            Access::Read => Some(Reader::new(&node)?),
        };
        Ok(Self {
            node,
            reader,
            gap: None,
        })
    }

    pub(crate) fn node(&self) -> &Node {
        &self.node
    }

    fn pollable(&self) -> BorrowedFd<'_> {
        match &self.gap {
            Some(gap) => gap.both.as_fd(),
            None => self.changes(),
        }
    }

    /// What is readable while there is a change that the node knows of.
    fn changes(&self) -> BorrowedFd<'_> {
        match &self.reader {
            Some(reader) => reader.edges.as_fd(),
            None => self.node.as_fd(),
        }
    }

    /// The generation of the latest change that was not acknowledged.
    fn next(&self) -> Result<Option<Generation>, Error> {
        let known = match &self.reader {
            Some(reader) => reader.next(&self.node),
            None => self.node.read(),
        }?;
        match &self.gap {
            Some(gap) if known.is_none() && gap.is_pending() => self.node.generation().map(Some),
            _ => Ok(known),
        }
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

    /// A change was dropped: the descriptor is to be readable again. With one that can write it has been all the time.
    pub(crate) fn remind(&self) {
        if let Some(reader) = &self.reader {
            reader.remind(&self.node);
        }
    }

    /// Acknowledges a generation. Returns the current one if it is another.
    pub(crate) fn acknowledge(&self, generation: Generation) -> Result<Option<Generation>, Error> {
        let newer = self.acknowledge_to_node(generation)?;
        if let (None, Some(gap)) = (newer, &self.gap) {
            gap.close();
        }
        Ok(newer)
    }

    fn acknowledge_to_node(&self, generation: Generation) -> Result<Option<Generation>, Error> {
        if let Some(reader) = &self.reader {
            return reader.acknowledge(&self.node, generation);
        }
        if self.node.write(generation)? {
            return Ok(None);
        }
        if let Some(current) = self.node.read()? {
            return Ok(Some(current));
        }
        // Somebody who shares the watcher has acknowledged a newer one, for which the caller has not rebuilt.
        let current = self.node.generation()?;
        Ok((current != generation).then_some(current))
    }
}

impl AsFd for Inner {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pollable()
    }
}

impl Gap {
    fn new(watcher: &Inner) -> Result<Self, Error> {
        let failed = |errno| watcher.node.failed("poll", errno);
        let event = eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(failed)?;
        let both = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
        for file in [event.as_fd(), watcher.changes()] {
            epoll::add(&both, file, TOKEN, epoll::EventFlags::IN).map_err(failed)?;
        }
        Ok(Self {
            is_pending: AtomicBool::new(true),
            event,
            both,
        })
    }

    fn is_pending(&self) -> bool {
        self.is_pending.load(Ordering::Acquire)
    }

    /// Somebody has dealt with it.
    fn close(&self) {
        if self.is_pending.swap(false, Ordering::AcqRel) {
            // It fails only where there is nothing to read any more.
            let _ = rustix::io::read(&self.event, &mut [0; 8]);
        }
    }
}

impl Reader {
    fn new(node: &Node) -> Result<Self, Error> {
        let failed = |errno| node.failed("poll", errno);
        let edges = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
        epoll::add(&edges, node, TOKEN, EACH_CHANGE).map_err(failed)?;
        let acknowledged = AtomicU32::new(node.generation()?.get());
        Ok(Self {
            edges,
            acknowledged,
        })
    }

    fn next(&self, node: &Node) -> Result<Option<Generation>, Error> {
        // Before the look: a change that comes after it is reported anew.
        self.settle(node)?;
        let acknowledged = self.acknowledged.load(Ordering::Relaxed);
        match node.read() {
            Ok(current) => Ok(current.filter(|current| current.get() != acknowledged)),
            Err(error) => {
                // Everybody who waits is to hear of it.
                self.remind(node);
                Err(error)
            }
        }
    }

    fn acknowledge(
        &self,
        node: &Node,
        generation: Generation,
    ) -> Result<Option<Generation>, Error> {
        self.settle(node)?;
        let newer = node.read()?.filter(|current| *current != generation);
        if newer.is_none() {
            self.acknowledged.store(generation.get(), Ordering::Relaxed);
        }
        Ok(newer)
    }

    /// Takes in what was reported: the descriptor is not readable until the next change.
    fn settle(&self, node: &Node) -> Result<(), Error> {
        let mut events = Vec::with_capacity(1);
        let at_once = Timespec::default();
        rustix::io::retry_on_intr(|| {
            let buffer = rustix::buffer::spare_capacity(&mut events);
            epoll::wait(&self.edges, buffer, Some(&at_once))
        })
        .map(drop)
        .map_err(|errno| node.failed("poll", errno))
    }

    /// Has it reported again. It fails only where there is nothing to poll any more.
    fn remind(&self, node: &Node) {
        let _ = epoll::modify(&self.edges, node, TOKEN, EACH_CHANGE);
    }
}

/// Nobody asks which file it was.
const TOKEN: epoll::EventData = epoll::EventData::new_u64(0);

const EACH_CHANGE: epoll::EventFlags = epoll::EventFlags::IN.union(epoll::EventFlags::ET);
