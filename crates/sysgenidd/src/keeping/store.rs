// SPDX-License-Identifier: MIT OR Apache-2.0

//! The fd store: what outlives this process at its service manager.
//!
//! systemd keeps descriptors for a service (`FileDescriptorStoreMax=`), and so does
//! [`crate::keeping::supervisor`]. A descriptor is kept from the moment in which [`Store::keep`] returns: the
//! message then lies in a queue of the kernel, which the manager empties before it deals with the end
//! of this process. [`Store::barrier`] waits until it is known to have been read.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::env;
use std::io;
use std::os::fd::AsFd as _;
use std::os::fd::AsRawFd as _;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd as _;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::pipe::PipeFlags;

use crate::keeping::handover::Handover;
use crate::keeping::handover::List;
use crate::service;
use crate::service::Manager;

/// Why the fd store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The manager was not told.
    #[error(transparent)]
    Manager(#[from] service::Error),
    /// The descriptors that were handed over at the start do not agree with their description.
    #[error(
        "the service manager described the descriptors that it hands over wrongly: {0}; stop the service, then start it again"
    )]
    Inherited(String),
    /// The name of a descriptor that no manager takes.
    #[error(
        "{0:?} cannot name a stored descriptor: a name is 1 to 255 printable characters without `:`"
    )]
    Name(String),
    /// The store has no room for another descriptor.
    #[error(
        "the service manager cannot keep another descriptor ({0} are kept); remove instances, or raise FileDescriptorStoreMax= if that is lower than it could be"
    )]
    Full(usize),
    /// The manager has not read its messages in time.
    #[error("the service manager has not answered within {0:?}; is it stopped?")]
    Barrier(Duration),
    /// A system call failed.
    #[error("cannot wait for the service manager: {0}")]
    System(#[from] io::Error),
}

/// How long the list of the names of kept descriptors may become. systemd gives it to the next process as one
/// variable of its environment, for which the kernel has 128 KiB; beyond that no process could be started at
/// all.
const LONGEST_LIST: usize = 120 * 1024;

/// How long to wait for the manager to close what it should not have had.
const DOUBLED_PATIENCE: Duration = Duration::from_secs(1);

/// Where descriptors are kept for the next process.
#[derive(Debug)]
pub struct Store {
    manager: Manager,
    /// How many descriptors are kept; a manager drops what is too much without a word. None at all
    /// is the absence of a store.
    room: usize,
    /// What is kept. In a cell, because keeping something changes nothing for the caller.
    kept: RefCell<Names>,
}

/// The names of what is kept.
#[derive(Debug, Default)]
struct Names {
    names: BTreeSet<String>,
    /// How long their list is, with a separator behind each.
    length: usize,
}

impl Names {
    fn insert(&mut self, name: &str) {
        if self.names.insert(name.to_owned()) {
            self.length += name.len() + 1;
        }
    }

    fn remove(&mut self, name: &str) {
        if self.names.remove(name) {
            self.length -= name.len() + 1;
        }
    }
}

/// The descriptors that the previous process had kept, by name.
#[derive(Debug, Default)]
pub struct Inherited {
    fds: BTreeMap<String, OwnedFd>,
    /// The names that more than one bore. Which of them is in use cannot be known, so they are closed.
    doubled: BTreeSet<String>,
}

impl Store {
    /// Finds the store in the environment, and takes over what is in it.
    ///
    /// To be called once, first of all: it owns what the manager handed over, and a second call
    /// finds the numbers already taken.
    ///
    /// # Errors
    ///
    /// [`Error::Inherited`] and [`Error::Manager`].
    pub fn take() -> Result<(Self, Inherited), Error> {
        if let Some(handover) = Handover::from_environment()? {
            let manager = Manager::at(adopt(handover.notify)?);
            let others = [handover.notify, handover.list];
            let list = List::from_file(adopt(handover.list)?, &others)?;
            let inherited = Inherited::adopt(list.0)?;
            let store = Self::new(manager, usize::MAX, &inherited);
            return Ok((store, inherited));
        }
        let described = sd_notify::listen_fds_with_names()
            .map_err(|error| Error::Inherited(error.to_string()))?;
        let inherited = Inherited::adopt(described.map(|(fd, name)| (name, fd)))?;
        let manager = Manager::from_environment()?;
        let announced = env::var("FDSTORE").ok().and_then(|room| room.parse().ok());
        let room = match announced {
            _ if !manager.is_present() => 0,
            Some(room) => room,
            // systemd before version 254 says only by handing them over that it keeps descriptors.
            None if inherited.fds.is_empty() => 0,
            None => usize::MAX,
        };
        let store = Self::new(manager, room, &inherited);
        store.forget_doubled(&inherited)?;
        Ok((store, inherited))
    }

    /// What bears one name twice is of no use to any process.
    fn forget_doubled(&self, inherited: &Inherited) -> Result<(), Error> {
        if inherited.doubled.is_empty() {
            return Ok(());
        }
        for name in inherited.doubled() {
            tracing::error!(
                "the service manager keeps two descriptors named {name}; neither is used"
            );
            self.forget(name)?;
        }
        // A lock that one of them holds is free only then.
        self.barrier(DOUBLED_PATIENCE)
    }

    pub(super) fn new(manager: Manager, room: usize, inherited: &Inherited) -> Self {
        let mut kept = Names::default();
        for name in inherited.names().chain(inherited.doubled()) {
            kept.insert(name);
        }
        Self {
            manager,
            room,
            kept: RefCell::new(kept),
        }
    }

    /// Whether what is kept survives this process.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.room > 0
    }

    /// The service manager that has the store.
    #[must_use]
    pub fn manager(&self) -> &Manager {
        &self.manager
    }

    /// Keeps a duplicate of `fd` for the next process. Without a store, does nothing.
    ///
    /// What was inherited is still kept. A name stands for one descriptor: forget the old one
    /// before another takes its name.
    ///
    /// # Errors
    ///
    /// [`Error::Name`], [`Error::Full`] and [`Error::Manager`].
    pub fn keep(&self, name: &str, fd: BorrowedFd<'_>) -> Result<(), Error> {
        check_name(name)?;
        if !self.is_present() {
            return Ok(());
        }
        let mut kept = self.kept.borrow_mut();
        if !kept.names.contains(name)
            && (kept.names.len() >= self.room || kept.length + name.len() + 1 > LONGEST_LIST)
        {
            return Err(Error::Full(kept.names.len()));
        }
        // FDPOLL=0: systemd would drop a descriptor that reports an error or a hang-up, and that
        // of a FUSE connection may do so while the manager starts the next process.
        let message = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0");
        self.manager.send(&message, Some(fd))?;
        kept.insert(name);
        Ok(())
    }

    /// Whether something is kept under `name`.
    pub(super) fn keeps(&self, name: &str) -> bool {
        self.kept.borrow().names.contains(name)
    }

    /// Lets the store close what is kept under `name`.
    ///
    /// # Errors
    ///
    /// [`Error::Name`] and [`Error::Manager`].
    pub fn forget(&self, name: &str) -> Result<(), Error> {
        check_name(name)?;
        if !self.is_present() {
            return Ok(());
        }
        let message = format!("FDSTOREREMOVE=1\nFDNAME={name}");
        self.manager.send(&message, None)?;
        self.kept.borrow_mut().remove(name);
        Ok(())
    }

    /// Waits until the manager has read everything that was sent.
    ///
    /// # Errors
    ///
    /// [`Error::Barrier`], [`Error::Manager`] and [`Error::System`].
    pub fn barrier(&self, timeout: Duration) -> Result<(), Error> {
        if !self.manager.is_present() {
            return Ok(());
        }
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
        self.manager.send("BARRIER=1", Some(write.as_fd()))?;
        // The manager's copy is then the last one, which it closes once it has come to it.
        drop(write);
        let time = Timespec::try_from(timeout).map_err(io::Error::other)?;
        let mut fds = [PollFd::new(&read, PollFlags::empty())];
        let ended = rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&time)))
            .map_err(io::Error::from)?;
        if ended == 0 {
            return Err(Error::Barrier(timeout));
        }
        Ok(())
    }
}

impl Inherited {
    pub(super) fn adopt(
        described: impl IntoIterator<Item = (String, RawFd)>,
    ) -> Result<Self, Error> {
        let mut inherited = Self::default();
        for (name, fd) in described {
            if inherited.fds.insert(name.clone(), adopt(fd)?).is_some() {
                inherited.doubled.insert(name);
            }
        }
        for name in &inherited.doubled {
            inherited.fds.remove(name);
        }
        Ok(inherited)
    }

    /// The names that more than one descriptor bore.
    fn doubled(&self) -> impl Iterator<Item = &str> {
        self.doubled.iter().map(String::as_str)
    }

    #[cfg(test)]
    pub(super) fn of(fds: BTreeMap<String, OwnedFd>) -> Self {
        Self {
            fds,
            ..Self::default()
        }
    }

    /// Takes the descriptor of this name.
    pub fn take(&mut self, name: &str) -> Option<OwnedFd> {
        self.fds.remove(name)
    }

    /// Where the file is that has not been taken and bears this name.
    pub(crate) fn path(&self, name: &str) -> Option<PathBuf> {
        let fd = self.fds.get(name)?.as_raw_fd();
        std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()
    }

    /// The names of those that have not been taken.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.fds.keys().map(String::as_str)
    }
}

/// systemd's rule, without spaces.
pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    let good = |byte: u8| byte.is_ascii_graphic() && byte != b':';
    if name.is_empty() || name.len() > 255 || !name.bytes().all(good) {
        return Err(Error::Name(name.to_owned()));
    }
    Ok(())
}

/// Becomes the owner of a descriptor that this process was started with, and that no child of it
/// shall have.
fn adopt(fd: RawFd) -> Result<OwnedFd, Error> {
    let gone = |error: rustix::io::Errno| Error::Inherited(format!("descriptor {fd}: {error}"));
    if (0..3).contains(&fd) {
        return Err(gone(rustix::io::Errno::BADF));
    }
    // SAFETY: the service manager opened this number for this process before it began, and says so in
    // the environment; `Store::take`, the only caller, runs once and before anything else could
    // close the number. Whether it is open at all is examined by the call below, which ends the
    // borrow before anybody owns it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC).map_err(gone)?;
    // SAFETY: as above; it is open, and each number is adopted once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd as _;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    const SHORT: Duration = Duration::from_millis(1);

    fn store_and_peer() -> (Store, UnixDatagram) {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let manager = Manager::at(ours.into());
        let store = Store::new(manager, usize::MAX, &Inherited::default());
        (store, theirs)
    }

    fn received(peer: &UnixDatagram) -> (String, Vec<OwnedFd>) {
        crate::keeping::handover::receive(peer.as_fd(), rustix::net::RecvFlags::empty())
            .unwrap()
            .unwrap()
    }

    #[test]
    fn a_kept_descriptor_arrives_with_its_name_and_is_the_same_file() {
        let (store, peer) = store_and_peer();
        let (read, write) = rustix::pipe::pipe().unwrap();
        store.keep("state/host", read.as_fd()).unwrap();
        drop(read);
        let (message, mut fds) = received(&peer);
        assert_eq!(message, "FDSTORE=1\nFDNAME=state/host\nFDPOLL=0");
        assert_eq!(fds.len(), 1);
        rustix::io::write(&write, b"x").unwrap();
        let mut byte = [0];
        rustix::io::read(fds.remove(0), &mut byte).unwrap();
        assert_eq!(&byte, b"x");

        store.forget("state/host").unwrap();
        let (message, fds) = received(&peer);
        assert_eq!(message, "FDSTOREREMOVE=1\nFDNAME=state/host");
        assert!(fds.is_empty());
    }

    #[test]
    fn what_was_kept_is_there_though_its_keeper_has_gone() {
        let (store, peer) = store_and_peer();
        let (read, _write) = rustix::pipe::pipe().unwrap();
        store.keep("a", read.as_fd()).unwrap();
        drop((store, read));
        assert_eq!(received(&peer).1.len(), 1);
    }

    #[test]
    fn a_barrier_waits_until_its_message_was_read() {
        let (store, peer) = store_and_peer();
        assert!(matches!(store.barrier(SHORT), Err(Error::Barrier(_))));
        let (message, fds) = received(&peer);
        assert_eq!((message.as_str(), fds.len()), ("BARRIER=1", 1));
        drop(fds);

        let reader = std::thread::spawn(move || {
            let (message, fds) = received(&peer);
            assert_eq!(message, "BARRIER=1");
            drop(fds);
            peer
        });
        store.barrier(Duration::from_secs(60)).unwrap();
        reader.join().unwrap();
    }

    #[test]
    fn a_name_that_no_manager_takes_is_refused() {
        let (store, _peer) = store_and_peer();
        for bad in ["", "a:b", "a\nb", "a b", "é", &"a".repeat(256)] {
            let refused = store.keep(bad, store_fd());
            assert!(matches!(refused, Err(Error::Name(_))), "{bad:?}");
            assert!(matches!(store.forget(bad), Err(Error::Name(_))));
        }
    }

    fn store_fd() -> BorrowedFd<'static> {
        rustix::stdio::stdin()
    }

    #[test]
    fn without_a_store_nothing_is_sent() {
        let (mut store, peer) = store_and_peer();
        store.room = 0;
        peer.set_nonblocking(true).unwrap();
        store.keep("a", store_fd()).unwrap();
        store.forget("a").unwrap();
        assert!(peer.recv(&mut [0]).is_err());
    }

    #[test]
    fn what_a_manager_would_drop_is_refused() {
        let (mut store, peer) = store_and_peer();
        let (read, write) = rustix::pipe::pipe().unwrap();
        let inherited = Inherited::of([("old".to_owned(), write)].into());
        store = Store::new(store.manager, 2, &inherited);
        store.keep("a", read.as_fd()).unwrap();
        store.keep("a", read.as_fd()).unwrap();
        let full = store.keep("b", read.as_fd());
        assert!(matches!(full, Err(Error::Full(2))), "{full:?}");
        store.forget("old").unwrap();
        store.keep("b", read.as_fd()).unwrap();
        drop(peer);
    }

    #[test]
    fn the_list_never_becomes_too_long_to_start_a_process_with() {
        let (store, peer) = store_and_peer();
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while peer.recv(&mut buffer).unwrap() != "STATUS=".len() {}
        });
        let (read, _write) = rustix::pipe::pipe().unwrap();
        let name = |n: usize| format!("{n:0>255}");
        let refused = (0..10_000).find(|&n| store.keep(&name(n), read.as_fd()).is_err());
        let names: Vec<_> = (0..refused.unwrap()).map(name).collect();
        let list = format!("LISTEN_FDNAMES={}", names.join(":"));
        assert!((LONGEST_LIST - 300..127 * 1024).contains(&list.len()));
        store.forget(&name(3)).unwrap();
        store.keep(&name(3), read.as_fd()).unwrap();
        let status = std::process::Command::new("true")
            .env("LISTEN_FDNAMES", names.join(":"))
            .status();
        assert!(status.unwrap().success());
        store.manager().status("").unwrap();
        reader.join().unwrap();
    }

    #[test]
    fn what_is_adopted_is_not_passed_on() {
        let (read, _write) = rustix::pipe::pipe().unwrap();
        let flags = rustix::io::fcntl_getfd(&read).unwrap();
        assert!(!flags.contains(rustix::io::FdFlags::CLOEXEC));
        let mut inherited = Inherited::adopt([("a".to_owned(), read.into_raw_fd())]).unwrap();
        assert_eq!(inherited.names().collect::<Vec<_>>(), ["a"]);
        assert!(inherited.take("b").is_none());
        let fd = inherited.take("a").unwrap();
        let flags = rustix::io::fcntl_getfd(&fd).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        assert_eq!(inherited.names().count(), 0);
    }

    #[test]
    fn what_bears_one_name_twice_is_forgotten_and_the_rest_is_not() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let third = read.try_clone().unwrap();
        let twice = [
            ("a".to_owned(), read.into_raw_fd()),
            ("b".to_owned(), third.into_raw_fd()),
            ("a".to_owned(), write.into_raw_fd()),
        ];
        let inherited = Inherited::adopt(twice).unwrap();
        assert_eq!(inherited.names().collect::<Vec<_>>(), ["b"]);
        let (ours, peer) = UnixDatagram::pair().unwrap();
        let store = Store::new(Manager::at(ours.into()), 2, &inherited);
        let reader = std::thread::spawn(move || [received(&peer).0, received(&peer).0]);
        store.forget_doubled(&inherited).unwrap();
        assert_eq!(
            reader.join().unwrap(),
            ["FDSTOREREMOVE=1\nFDNAME=a", "BARRIER=1"]
        );
        assert!(!store.keeps("a") && store.keeps("b"));
    }

    #[test]
    fn a_descriptor_that_is_not_open_is_an_error() {
        for bad in [0, 2, 1_000_000] {
            let refused = Inherited::adopt([("a".to_owned(), bad)]);
            assert!(matches!(refused, Err(Error::Inherited(_))), "{bad}");
        }
    }
}
