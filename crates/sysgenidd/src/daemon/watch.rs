// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the daemon's thread sleeps on, and which of it has something to say.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io;

/// Where an event comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The process that the instance with this index goes with.
    Tie(usize),
    /// The connection of the control socket with this index.
    Caller(usize),
    /// The control socket.
    Listener,
    /// Another thread has something to say.
    Events,
    /// A signal came.
    Signals,
}

impl Source {
    /// The lower half is the index.
    const INDEX: u64 = u32::MAX as u64;

    fn to_data(self) -> u64 {
        let (kind, index) = match self {
            Source::Tie(index) => (1, index),
            Source::Caller(index) => (2, index),
            Source::Listener => (3, 0),
            Source::Events => (4, 0),
            Source::Signals => (5, 0),
        };
        // There are fewer of each than there can be descriptors.
        kind << 32 | u64::try_from(index).unwrap_or(0) & Self::INDEX
    }

    /// What [`Watch`] was given.
    pub(crate) fn from_data(data: u64) -> Option<Self> {
        let index = usize::try_from(data & Self::INDEX).ok()?;
        Some(match data >> 32 {
            1 => Source::Tie(index),
            2 => Source::Caller(index),
            3 => Source::Listener,
            4 => Source::Events,
            5 => Source::Signals,
            _ => return None,
        })
    }
}

/// An epoll instance.
#[derive(Debug)]
pub(crate) struct Watch(OwnedFd);

impl Watch {
    pub(crate) fn new() -> io::Result<Self> {
        epoll::create(CreateFlags::CLOEXEC).map(Self)
    }

    /// Watches for input, for as long as there is any.
    pub(crate) fn add(&self, fd: BorrowedFd<'_>, source: Source) -> io::Result<()> {
        self.add_for(fd, source, EventFlags::IN)
    }

    /// Watches for each new input, and for each time that there is room for output again.
    pub(crate) fn add_both(&self, fd: BorrowedFd<'_>, source: Source) -> io::Result<()> {
        self.add_for(
            fd,
            source,
            EventFlags::IN | EventFlags::OUT | EventFlags::ET,
        )
    }

    fn add_for(&self, fd: BorrowedFd<'_>, source: Source, events: EventFlags) -> io::Result<()> {
        epoll::add(&self.0, fd, EventData::new_u64(source.to_data()), events)
    }

    /// Watches no longer.
    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) {
        // It fails only for what is not watched.
        let _ = epoll::delete(&self.0, fd);
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_comes_back_as_it_went() {
        for source in [
            Source::Tie(0),
            Source::Tie(70_000),
            Source::Caller(9),
            Source::Listener,
            Source::Events,
            Source::Signals,
        ] {
            assert_eq!(Source::from_data(source.to_data()), Some(source));
        }
        assert_eq!(Source::from_data(0), None);
    }
}
